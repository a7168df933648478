//! What must hold after every single write, and at the end.

use super::leader::{Leader, Wire};
use super::server::{Key, Server};
use super::world::{World, text};
use crate::api::{CarbonBudget, CarbonReservation};
use crate::budget::Policy;
use crate::cluster::ledger::listed_elsewhere;
use crate::cluster::stores::lite;
use crate::contract::{GRANTED, HOLD, REFUSED};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What the writes have shown so far.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// UIDs that a budget carried in flight before.
    granting: BTreeMap<String, BTreeSet<String>>,
    /// Jobs by UID: how often each was released.
    released: BTreeMap<String, u32>,
    held: BTreeSet<String>,
    /// True once somebody deleted a record: what it taught may be lost with a leader.
    pub(super) tidied: bool,
}

/// All records that there are, and those that were put away as they were last.
fn reservations(server: &Server) -> Vec<CarbonReservation> {
    let mut last: BTreeMap<&Key, &Value> = BTreeMap::new();
    let history = server.history.get("carbonreservations");
    for (key, object) in history.into_iter().flatten() {
        if let Some(object) = object {
            last.insert(key, object);
        }
    }
    last.into_values()
        .map(|r| serde_json::from_value(r.clone()).unwrap())
        .collect()
}

/// What a budget has promised or spent, each UID once: measured where it is settled, else the
/// larger of both; what burned beyond its reservation is not promised by a grant.
fn promised(budget: &CarbonBudget, records: &[CarbonReservation]) -> i64 {
    let name = budget.metadata.name.clone().unwrap_or_default();
    let mut known = BTreeSet::new();
    let mut sum = 0;
    for record in records {
        let Some(entry) = record.entry(&name) else {
            continue;
        };
        known.insert(entry.uid.clone());
        let charged = entry.charged().0;
        sum += if entry.settled {
            charged.min(entry.reserved.0)
        } else {
            entry.reserved.0
        };
    }
    let status = budget.status.clone().unwrap_or_default();
    let flying = status.granting.iter().filter(|g| !known.contains(&g.uid));
    sum + flying.map(|g| g.milligrams).sum::<i64>()
}

impl Seen {
    /// After a write of one object.
    pub(super) fn check(&mut self, server: &Server, key: &Key) -> Result<(), String> {
        match key.0.as_str() {
            "carbonbudgets" => self.budget(server, key),
            "jobs" => self.job(server, key),
            _ => Ok(()),
        }
    }

    /// I1: no write that grants held work leaves more promised than the limit.
    fn budget(&mut self, server: &Server, key: &Key) -> Result<(), String> {
        let Some(object) = server.objects.get(key) else {
            return Ok(());
        };
        let budget: CarbonBudget = serde_json::from_value(object.clone()).unwrap();
        let status = budget.status.clone().unwrap_or_default();
        let now: BTreeSet<String> = status.granting.iter().map(|g| g.uid.clone()).collect();
        let before = self.granting.insert(key.2.clone(), now.clone());
        let before = before.unwrap_or_default();
        // What runs already is charged, fitting or not.
        let new = now.difference(&before);
        let new: Vec<&String> = new.filter(|uid| self.held.contains(*uid)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let records = reservations(server);
        let limit = Policy::try_from(&budget.spec).unwrap().limit.0;
        let promised = promised(&budget, &records);
        if promised > limit {
            return Err(format!(
                "I1: {} grants {new:?} and has promised {promised} of {limit} mg",
                key.2
            ));
        }
        Ok(())
    }

    /// I9: a hold is lifted only with a persisted reservation, and once.
    fn job(&mut self, server: &Server, key: &Key) -> Result<(), String> {
        let Some(job) = server.objects.get(key) else {
            return Ok(());
        };
        let uid = text(&job["metadata"]["uid"]);
        let holds = job["metadata"]["annotations"][HOLD].is_string();
        if job["spec"]["suspend"] == true && holds {
            self.held.insert(uid);
            return Ok(());
        }
        if !self.held.remove(&uid) {
            return Ok(());
        }
        let name = format!("job-{uid}");
        let known = reservations(server);
        if !known
            .iter()
            .any(|record| record.metadata.name.as_deref() == Some(&*name))
        {
            return Err(format!("I9: {} runs with no reservation", key.2));
        }
        if !job["metadata"]["annotations"][GRANTED].is_string() {
            return Err(format!("I9: {} runs with no grant", key.2));
        }
        let times = self.released.entry(uid).or_insert(0);
        *times += 1;
        if *times > 1 {
            return Err(format!("I9: {} was released {times} times", key.2));
        }
        Ok(())
    }

    /// When all has ended and one leader has had its time.
    pub(super) fn at_rest(&self, server: &Server, world: &World) -> Result<(), String> {
        let records = reservations(server);
        let listed = listed_elsewhere(&records);
        for record in &records {
            check_record(record, world)?;
        }
        for job in server.all("jobs") {
            self.check_job(server, job)?;
        }
        let budgets = server.all("carbonbudgets");
        let since = budgets.filter_map(|b| b["status"]["measuredSince"].as_str()?.parse().ok());
        let since = since.min().unwrap_or(jiff::Timestamp::MAX);
        for (pod, burned) in world.burned_since(since) {
            // A record beside the one of the job counts nowhere.
            let beside = |r: &&CarbonReservation| !listed.contains(r.spec.workload.uid.as_str());
            let pods = records
                .iter()
                .filter(beside)
                .filter_map(|r| r.status.as_ref());
            let pods = pods.flat_map(|status| &status.pods);
            let times = pods.filter(|charged| charged.uid == pod).count();
            if burned > 0 && times != 1 {
                return Err(format!("I2: pod {pod} burned and is in {times} records"));
            }
        }
        for budget in server.all("carbonbudgets") {
            check_totals(budget, &records)?;
        }
        check_law(server, &records, self.tidied)?;
        Ok(())
    }

    /// No job is lost: it has run, or it waits for room that there is not, or was refused.
    fn check_job(&self, server: &Server, job: &Value) -> Result<(), String> {
        let (uid, name) = (
            text(&job["metadata"]["uid"]),
            text(&job["metadata"]["name"]),
        );
        if !self.held.contains(&uid) || job["metadata"]["annotations"][REFUSED].is_string() {
            return Ok(());
        }
        let work = lite(job.clone()).and_then(|lite| {
            crate::cluster::objects::Work::of(crate::cluster::objects::Kind::Job, lite)
        });
        let leader = Leader::new(0, &Wire::default(), server, std::time::Duration::ZERO);
        let oracle = leader.context.caches.world.objects().oracle();
        let forecast = crate::cluster::verdicts::forecast(&work.ok_or("no work")?, &oracle);
        let room = |budget: &Value| {
            let budget: CarbonBudget = serde_json::from_value(budget.clone()).unwrap();
            let policy = Policy::try_from(&budget.spec).unwrap();
            let need = forecast.need(&oracle, policy.quantile);
            let left = budget.status.unwrap_or_default().remaining_milligrams;
            matches!(need, crate::budget::Need::Known(mass) if mass.0 <= left)
        };
        if server.all("carbonbudgets").all(room) {
            return Err(format!("{name} waits, and every budget has room for it"));
        }
        Ok(())
    }
}

/// I3, I5: what was set aside is what was charged and what was given back; all of what was burned
/// is charged.
fn check_record(record: &CarbonReservation, world: &World) -> Result<(), String> {
    let (uid, status) = (
        &record.spec.workload.uid,
        record.status.clone().unwrap_or_default(),
    );
    if !status.settled {
        return Err(format!(
            "I5: {uid} has ended and is not settled: {status:?}"
        ));
    }
    let (reserved, charged) = (record.spec.reserved_milligrams, status.charged_milligrams);
    if status.refund_milligrams + charged != reserved {
        return Err(format!(
            "I3: {uid}: {charged} charged of {reserved}: {status:?}"
        ));
    }
    let burned = world.burned();
    let pods = status.pods.iter();
    let pods = pods.filter_map(|pod| burned.get(pod.uid.as_str()));
    let burned: u64 = pods.map(|microjoules| microjoules.div_ceil(1000)).sum();
    // What a job burned before there was a budget is not charged.
    let before: i64 = status.pods.iter().map(|pod| pod.before_millijoules).sum();
    let all = status.measured_millijoules + before;
    if !status.estimated && i64::try_from(burned) != Ok(all) {
        return Err(format!("{uid} burned {burned} mJ: {status:?}"));
    }
    Ok(())
}

/// Every lesson is in the law, once. Of two leaders at once both may give one number: then one of
/// the two may be left out, and none is taken twice.
fn check_law(server: &Server, records: &[CarbonReservation], tidied: bool) -> Result<(), String> {
    let Some(law) = server.all("energylaws").next() else {
        return Ok(());
    };
    let learnt = law["status"]["learnt"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let mut numbers: BTreeMap<i64, (usize, usize)> = BTreeMap::new();
    let (mut told, mut most) = (0, 0);
    for record in records {
        let status = record.status.clone().unwrap_or_default();
        let uid = &record.spec.workload.uid;
        let times = learnt.iter().filter(|learnt| *learnt == uid).count();
        if times > 1 {
            return Err(format!("{uid} is learnt {times} times"));
        }
        // Where a write was not heard of, the law may have a lesson that its record does not.
        let said = status.observation.unwrap_or_default();
        told += usize::from(times == 1 && said.starts_with("Learnt"));
        if let Some(lesson) = status.lesson {
            most = most.max(lesson.number);
            let (given, taken) = numbers.entry(lesson.number).or_default();
            *given += 1;
            *taken += times;
        }
    }
    let lost = numbers.iter().find(|(_, (_, taken))| *taken == 0);
    if let Some((number, _)) = lost.filter(|_| !tidied) {
        return Err(format!(
            "lesson {number} is lost: {}",
            law["status"]["learnt"]
        ));
    }
    let shared = numbers.values().any(|(given, _)| *given > 1);
    let observations = law["status"]["observations"].as_u64().unwrap_or(0);
    let lessons = law["status"]["lessons"].as_i64().unwrap_or(0);
    // A second leader may have settled in other words what the first has learnt from.
    let learns = told as u64..=learnt.len() as u64;
    if !shared && (!learns.contains(&observations) || lessons < most) {
        return Err(format!(
            "{told} of {most} lessons, and the law: {}",
            law["status"]
        ));
    }
    Ok(())
}

/// I5: nothing is set aside any more, and the totals are the records' sum.
fn check_totals(budget: &Value, records: &[CarbonReservation]) -> Result<(), String> {
    let name = text(&budget["metadata"]["name"]);
    let listed = listed_elsewhere(records);
    let counts = |r: &&CarbonReservation| !listed.contains(r.spec.workload.uid.as_str());
    let entries = records.iter().filter(counts);
    let entries = entries.filter_map(|record| record.entry(&name));
    let charged: i64 = entries.map(|entry| entry.charged().0).sum();
    let status = &budget["status"];
    let flying = status["granting"].as_array().is_some_and(|g| !g.is_empty());
    if status["reservedMilligrams"] != 0 || status["consumedMilligrams"] != charged || flying {
        return Err(format!("I5: {name}: {charged} mg were charged: {status}"));
    }
    Ok(())
}
