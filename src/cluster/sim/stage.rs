//! The stage of a race: what may happen next, chosen by a seed.

use super::checks::Seen;
use super::leader::{self, Leader, WATCHED, Wire};
use super::random::Random;
use super::server::{self, Server};
use super::world::{NAMESPACE, World};
use serde_json::json;
use std::time::Duration;
use tokio::task::JoinSet;

/// What a seed came to.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Story {
    /// What was done, as a number: the same story has the same.
    pub(super) digest: u64,
    pub(super) writes: usize,
    pub(super) kills: u32,
    pub(super) takeovers: u32,
    pub(super) lost_answers: u32,
    pub(super) refused: u32,
    pub(super) tidied: u32,
    /// Statements among them.
    pub(super) torn: u32,
    pub(super) put_away: usize,
    pub(super) grants: usize,
}

pub(super) struct Sim {
    random: Random,
    server: Server,
    wire: Wire,
    leaders: Vec<Leader>,
    numbers: usize,
    tasks: JoinSet<()>,
    world: World,
    seen: Seen,
    /// The record that was deleted by hand last, until it is there again.
    tidied: Option<server::Key>,
    story: Story,
    /// Tells what happens.
    aloud: bool,
}

/// Turns of the runtime after which everything that can go on has.
const TURNS: usize = 12;

impl Sim {
    pub(super) fn new(seed: u64, aloud: bool) -> Self {
        let mut random = Random::new(seed);
        let mut server = Server::default();
        let mut world = World::new(random.once_in(3));
        world.pass(0, &mut server);
        for number in 0..=random.below(2) {
            // Room for one to five of the jobs.
            let grams = 0.25 + 0.2 * random.fraction() * (1 + random.below(8)) as f64;
            let budget = json!({
                "apiVersion": "jouleward.dev/v1alpha1", "kind": "CarbonBudget",
                "metadata": { "name": format!("b{number}") },
                "spec": { "limit": format!("{grams:.3}g"), "mode": "Enforce" },
            });
            server.make("carbonbudgets", NAMESPACE, budget);
        }
        let law = json!({
            "apiVersion": "jouleward.dev/v1alpha1", "kind": "EnergyLaw",
            "metadata": { "name": "a100-sxm4-40gb" }, "spec": { "gpu": leader::PRODUCT },
        });
        server.make("energylaws", "", law);
        let mut sim = Self {
            random,
            server,
            wire: Wire::default(),
            leaders: Vec::new(),
            numbers: 0,
            tasks: JoinSet::new(),
            world,
            seen: Seen::default(),
            tidied: None,
            story: Story::default(),
            aloud,
        };
        sim.take_over();
        sim
    }

    fn note(&mut self, what: u64) {
        let mixed = self.story.digest.rotate_left(7) ^ what;
        self.story.digest = mixed.wrapping_mul(0x0100_0000_01b3);
    }

    /// A line of the story, where one seed is asked for by name.
    fn say(&self, what: impl FnOnce() -> String) {
        if self.aloud {
            println!("{} {}", self.world.now, what());
        }
    }

    fn take_over(&mut self) {
        self.numbers += 1;
        self.say(|| format!("leader {} takes over", self.numbers));
        let law_write = Duration::from_secs(10 * self.random.below(2));
        let leader = Leader::new(self.numbers, &self.wire, &self.server, law_write);
        self.leaders.push(leader);
    }

    /// Lets everything run until it waits for the wire.
    async fn settle(&self) {
        for _ in 0..TURNS {
            tokio::task::yield_now().await;
        }
    }

    /// The server handles a request.
    fn handle(&mut self, index: usize) -> Result<(), String> {
        let request = self.wire.lock().unwrap()[index].request.clone();
        let lengths = |server: &Server| -> usize { server.history.values().map(Vec::len).sum() };
        let before = lengths(&self.server);
        let answer = self.server.answer(&request);
        self.say(|| {
            let body = String::from_utf8_lossy(&request.body).into_owned();
            let leader = self.wire.lock().unwrap()[index].leader;
            let body: String = body.chars().take(1500).collect();
            format!(
                "{leader}: {} {} -> {} {body}",
                request.method, request.path, answer.0
            )
        });
        self.note(u64::from(answer.0) + request.path.len() as u64);
        self.wire.lock().unwrap()[index].answer = Some(answer);
        if lengths(&self.server) > before {
            self.story.writes += 1;
            self.checked(&request.path)?;
        }
        Ok(())
    }

    /// What was written last must be sound.
    fn checked(&mut self, path: &str) -> Result<(), String> {
        let changed = self.server.history.values().filter_map(|all| all.last());
        let keys: Vec<server::Key> = changed.map(|(key, _)| key.clone()).collect();
        for key in keys.iter().filter(|key| path.contains(&key.0)) {
            self.seen.check(&self.server, key)?;
        }
        Ok(())
    }

    /// An answer goes back, or is lost.
    fn answer(&mut self, index: usize, heard: bool) {
        let call = self.wire.lock().unwrap().remove(index);
        call.finish(heard);
    }

    pub(super) async fn step(&mut self) -> Result<(), String> {
        let waiting = self.wire.lock().unwrap().len();
        match self.random.below(100) {
            0..=54 if waiting > 0 => {
                self.on_the_wire()?;
                self.settle().await;
            }
            0..=64 => {
                self.begin();
                self.settle().await;
            }
            65..=74 => self.watch(),
            75..=80 => self.by_authors()?,
            81..=88 => {
                self.world.start(&mut self.server, &mut self.random);
                self.world.burn(&mut self.server);
                self.jobs_checked()?;
            }
            89..=93 => {
                let milliseconds = 20 + self.random.below(4_000);
                self.world.pass(milliseconds, &mut self.server);
            }
            94..=95 if self.leaders.len() < 3 && !self.is_untidy() => {
                // The lease ran out; the one before may not know yet.
                self.story.takeovers += 1;
                self.take_over();
            }
            96 if !self.is_untidy() => self.kill(),
            _ => {
                let pages = self.world.pages(&self.server);
                for leader in &self.leaders {
                    leader.read_pages(pages.clone());
                }
            }
        }
        Ok(())
    }

    fn on_the_wire(&mut self) -> Result<(), String> {
        let (index, handled) = {
            let wire = self.wire.lock().unwrap();
            let index = self.random.index(wire.len());
            (index, wire[index].answer.is_some())
        };
        if handled {
            let heard = !self.random.once_in(25);
            self.story.lost_answers += u32::from(!heard);
            self.answer(index, heard);
            return Ok(());
        }
        if self.random.once_in(30) {
            // Too many requests, or an etcd without a leader: nothing was done.
            self.story.refused += 1;
            let code = if self.random.once_in(2) { 429 } else { 500 };
            let status =
                json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code });
            self.wire.lock().unwrap()[index].answer = Some((code, status));
            return Ok(());
        }
        self.handle(index)
    }

    fn begin(&mut self) {
        let idle: Vec<usize> = (0..self.leaders.len())
            .filter(|n| !self.leaders[*n].is_busy())
            .collect();
        if !idle.is_empty() {
            let chosen = idle[self.random.index(idle.len())];
            self.note(chosen as u64);
            self.leaders[chosen].cycle(&mut self.tasks);
        }
    }

    fn watch(&mut self) {
        if self.leaders.is_empty() {
            return;
        }
        let chosen = self.random.index(self.leaders.len());
        let plural = WATCHED[self.random.index(WATCHED.len())];
        // One at a time, or a gap that ends with a list of all.
        let most = if self.random.once_in(3) {
            usize::MAX
        } else {
            1
        };
        self.leaders[chosen].watch(&self.server, plural, most);
    }

    fn by_authors(&mut self) -> Result<(), String> {
        let jobs = self.jobs();
        if self.random.once_in(8) {
            let all = [
                "carbonreservations",
                "carbonreservations",
                "carbonstatements",
            ];
            let plural = all[self.random.index(all.len())];
            self.tidy_up(plural);
        } else if jobs.len() < 7 && !self.random.once_in(6) {
            // Now and then the webhook is away.
            let held = !self.random.once_in(6);
            self.world.author(&mut self.server, held, &mut self.random);
        } else if !jobs.is_empty() && self.random.once_in(4) {
            let gone = jobs[self.random.index(jobs.len())].clone();
            self.server.remove(&gone);
        } else if self.random.once_in(6) {
            // The owner lowers a limit under what is used.
            let key = (
                "carbonbudgets".to_owned(),
                NAMESPACE.to_owned(),
                "b0".to_owned(),
            );
            let milligrams = 100 + self.random.below(400);
            self.server.change(&key, |budget| {
                budget["spec"]["limit"] = json!(format!("{milligrams}mg"));
            });
        }
        self.jobs_checked()
    }

    /// Somebody who thinks that records, or statements, are litter deletes one.
    fn tidy_up(&mut self, plural: &str) {
        let records = self.server.objects.keys();
        let records = records.filter(|key| key.0 == plural);
        let records: Vec<server::Key> = records.cloned().collect();
        // What was deleted and made anew by nobody yet is known only to those who lead now.
        if records.is_empty() || self.tidied.is_some() {
            return;
        }
        let chosen = records[self.random.index(records.len())].clone();
        let record = self.server.objects[&chosen].clone();
        let put_away = self.server.all("carbonstatements").any(|statement| {
            let known = statement["status"]["putAway"].as_array();
            known.is_some_and(|all| all.contains(&record["spec"]["workload"]["uid"]))
        });
        // Every leader knows of it, and one as it is.
        let key = format!("{}/{}", chosen.1, chosen.2);
        let known = self.leaders.iter().map(|leader| {
            let caches = &leader.context.caches;
            if chosen.0 == "carbonreservations" {
                Some(caches.reservations.get(&key)?.metadata.clone())
            } else {
                Some(caches.statements.get(&key)?.metadata.clone())
            }
        });
        let known: Vec<_> = known.collect();
        let version = record["metadata"]["resourceVersion"].as_str();
        let newest = known
            .iter()
            .flatten()
            .any(|known| known.resource_version.as_deref() == version);
        if newest && known.iter().all(Option::is_some) && !put_away {
            self.story.tidied += 1;
            self.note(self.story.tidied.into());
            self.say(|| format!("somebody deletes {}", chosen.2));
            self.seen.tidied |= chosen.0 == "carbonreservations";
            self.story.torn += u32::from(chosen.0 == "carbonstatements");
            self.server.remove(&chosen);
            self.tidied = Some(chosen);
        }
    }

    /// True while a record that was deleted by hand has not been made anew.
    pub(super) fn is_untidy(&mut self) -> bool {
        if let Some(key) = &self.tidied
            && self
                .server
                .objects
                .get(key)
                .is_some_and(|r| !r["status"].is_null())
        {
            self.tidied = None;
        }
        self.tidied.is_some()
    }

    fn jobs(&self) -> Vec<server::Key> {
        let keys = self.server.objects.keys();
        keys.filter(|key| key.0 == "jobs").cloned().collect()
    }

    fn jobs_checked(&mut self) -> Result<(), String> {
        for key in self.jobs() {
            self.seen.check(&self.server, &key)?;
        }
        Ok(())
    }

    fn kill(&mut self) {
        if self.leaders.is_empty() {
            return;
        }
        let chosen = self.random.index(self.leaders.len());
        let mut leader = self.leaders.remove(chosen);
        self.story.kills += 1;
        self.note(leader.number as u64);
        leader.kill();
        // What it had sent may still arrive.
        let sent = self.random.once_in(2);
        let of_others = |call: &leader::Call| sent || call.leader != leader.number;
        self.wire.lock().unwrap().retain(of_others);
        if self.leaders.is_empty() {
            self.take_over();
        }
    }

    /// One healthy leader, no faults, until nothing changes any more.
    pub(super) async fn quiet(&mut self) -> Result<(), String> {
        for mut leader in std::mem::take(&mut self.leaders) {
            leader.kill();
        }
        // What was on the wire arrives at last.
        self.settle().await;
        while !self.wire.lock().unwrap().is_empty() {
            if self.wire.lock().unwrap()[0].answer.is_none() {
                self.handle(0)?;
            }
            self.answer(0, true);
        }
        self.numbers += 1;
        let (wire, server) = (&self.wire, &self.server);
        let healthy = Leader::new(self.numbers, wire, server, Duration::ZERO);
        self.leaders.push(healthy);
        // Some authors' jobs go once they have ended.
        let ttl = self.random.once_in(2);
        let mut still = 0;
        for _ in 0..80 {
            let before: usize = self.server.history.values().map(Vec::len).sum();
            self.world.start(&mut self.server, &mut self.random);
            self.world.burn(&mut self.server);
            self.jobs_checked()?;
            if ttl {
                self.world.delete_one_that_ended(&mut self.server);
            }
            self.world.pass(3_000, &mut self.server);
            for plural in WATCHED {
                self.leaders[0].watch(&self.server, plural, usize::MAX);
            }
            if self.random.once_in(16) {
                self.tidy_up("carbonstatements");
            }
            self.leaders[0].read_pages(self.world.pages(&self.server));
            self.leaders[0].cycle(&mut self.tasks);
            while self.leaders[0].is_busy() {
                self.settle().await;
                while !self.wire.lock().unwrap().is_empty() {
                    self.handle(0)?;
                    self.answer(0, true);
                }
            }
            let after: usize = self.server.history.values().map(Vec::len).sum();
            still = if after == before && self.world.all_ended() {
                still + 1
            } else {
                0
            };
            if still == 4 {
                return self.seen.at_rest(&self.server, &self.world);
            }
        }
        Err("it does not come to rest".to_owned())
    }

    /// The story so far.
    pub(super) fn story(mut self) -> Story {
        let statements = self.server.all("carbonstatements");
        let put_away = statements.filter_map(|s| s["status"]["jobs"].as_u64());
        self.story.put_away = usize::try_from(put_away.sum::<u64>()).unwrap_or(0);
        self.story.grants = self.server.all("carbonreservations").count() + self.story.put_away;
        self.note(self.story.writes as u64);
        self.story
    }
}
