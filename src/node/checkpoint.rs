//! What survives the exporter: a file that is replaced after every look, before anything is
//! shown, so that no counter ever falls and no joule is lost to a restart.

use super::allocations::Allocations;
use super::meter::Meter;
use crate::clock;
use crate::serve::crash;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The format; a file of another is set aside.
const VERSION: u32 = 1;
/// The largest file that is read: ten thousand pods take about 4 MB.
const LARGEST: u64 = 256 << 20;

/// What is saved, and found again.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct State {
    /// Names this row of runs: sums go on with it.
    pub(super) epoch: String,
    /// Pods seen by their log folder.
    pub(super) pods: HashSet<String>,
    pub(super) meter: Meter,
    pub(super) allocations: Allocations,
}

impl State {
    /// Goes on with an earlier run's work at `now` (µs, monotonic). Where the machine has started
    /// anew since and was away (ms) for longer than ended pods are kept, those of before have been
    /// told, or are asked for no more: told anew, they would be charged anew. All of them begin at
    /// zero then, and true is given: it is another row of runs.
    pub(super) fn go_on(&mut self, same_boot: bool, away: i64, kept: Duration, now: u64) -> bool {
        self.meter.resume(same_boot);
        self.allocations.resume(same_boot, now);
        let kept = i64::try_from(kept.as_millis()).unwrap_or(i64::MAX);
        let long = !same_boot && away > kept;
        if long {
            self.meter.retire(1, usize::MAX);
        }
        long
    }
}

#[derive(Deserialize)]
struct Saved {
    version: u32,
    boot: String,
    /// Milliseconds since the Unix epoch, by the machine's clock; earlier programs did not say.
    #[serde(default)]
    written_at: i64,
    state: State,
}

/// The same, borrowed for writing.
#[derive(Serialize)]
pub(super) struct View<'a> {
    pub(super) epoch: &'a str,
    pub(super) pods: &'a HashSet<String>,
    pub(super) meter: &'a Meter,
    pub(super) allocations: &'a Allocations,
}

#[derive(Serialize)]
struct Saving<'a> {
    version: u32,
    boot: &'a str,
    written_at: i64,
    state: View<'a>,
}

/// What was found.
#[derive(Debug)]
pub(super) enum Found {
    /// No file: a first start.
    Nothing,
    /// An earlier run's work, and whether the machine has run on since.
    Earlier {
        state: Box<State>,
        same_boot: bool,
        /// Milliseconds since it was written; 0 where that is not known.
        away: i64,
    },
    /// A file that cannot be used was moved out of the way.
    SetAside { why: String, to: PathBuf },
}

/// Where the file is, and which boot this is.
#[derive(Debug)]
pub(super) struct Checkpoint {
    path: PathBuf,
    boot: String,
}

impl Checkpoint {
    /// `boot` names the machine's boot: energy counters and clocks begin anew with it.
    pub(super) fn new(path: PathBuf, boot: String) -> Self {
        Self { path, boot }
    }

    /// Reads what an earlier run left.
    ///
    /// # Errors
    /// Where the file can be neither read nor moved out of the way.
    pub(super) fn load(&self) -> io::Result<Found> {
        let bytes = match read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Err(error),
        };
        match self.parse(&bytes) {
            Ok(found) => Ok(found),
            Err(why) => {
                let to = self.path.with_extension("set-aside");
                std::fs::rename(&self.path, &to)?;
                Ok(Found::SetAside { why, to })
            }
        }
    }

    /// What the bytes hold, or why they cannot be used.
    fn parse(&self, bytes: &[u8]) -> Result<Found, String> {
        let saved: Saved = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if saved.version != VERSION {
            return Err(format!("version {}, not {VERSION}", saved.version));
        }
        if !saved.state.meter.is_sound() {
            return Err("its parts do not sum to the counters".to_owned());
        }
        Ok(Found::Earlier {
            same_boot: saved.boot == self.boot,
            away: match saved.written_at {
                0 => 0,
                at => clock::now().as_millisecond().saturating_sub(at),
            },
            state: Box::new(saved.state),
        })
    }

    /// What a run that found these bytes would go on with.
    #[cfg(any(test, fuzzing))]
    pub(super) fn taken_up(&self, bytes: &[u8]) -> Option<(Meter, Allocations)> {
        match self.parse(bytes).ok()? {
            Found::Earlier { state, .. } => Some((state.meter, state.allocations)),
            _ => None,
        }
    }

    /// Replaces the file: a reader finds the one before or this one, never a part.
    ///
    /// # Errors
    /// Where the folder cannot be written to.
    pub(super) fn save(&self, state: View) -> io::Result<()> {
        let saving = Saving {
            version: VERSION,
            boot: &self.boot,
            written_at: clock::now().as_millisecond(),
            state,
        };
        let bytes = serde_json::to_vec(&saving)?;
        let part = self.path.with_extension("part");
        match std::fs::remove_file(&part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(no_follow())
            .open(&part)?;
        // Not synced: it guards against the death of this process, not of the machine, with
        // which the counters begin anew.
        file.write_all(&bytes)?;
        drop(file);
        crash::point("checkpoint-written");
        std::fs::rename(&part, &self.path)?;
        crash::point("checkpoint-renamed");
        Ok(())
    }
}

fn no_follow() -> i32 {
    i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(no_follow())
        .open(path)?;
    if file.metadata()?.len() > LARGEST {
        // Not parsed, so set aside as one that is broken.
        return Ok(Vec::new());
    }
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::BufReader::new(file), &mut bytes)?;
    Ok(bytes)
}

/// The name of this boot, as the kernel tells it.
pub(super) fn boot_id(proc_root: &Path) -> String {
    let file = proc_root.join("sys/kernel/random/boot_id");
    std::fs::read_to_string(file)
        .or_else(|_| std::fs::read_to_string("/proc/sys/kernel/random/boot_id"))
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::attribution::{Holder, Unattributed};
    use super::super::devices::{Hold, Holders};
    use super::super::meter::Look;
    use super::super::nvml::{EnergySource, GpuInfo};
    use super::*;
    use crate::law::Microjoules;
    use std::collections::BTreeMap;

    const GPU: &str = "GPU-0";
    const SECOND: u64 = 1_000_000;
    /// Seconds that the story lasts.
    const END: u64 = 40;

    /// Who holds the GPU in second `at`: nobody, a, nobody, b.
    fn holder(at: u64) -> Option<&'static str> {
        match at {
            15..25 => Some("a"),
            28..36 => Some("b"),
            _ => None,
        }
    }

    /// The counter in millijoules: 50 W alone, 300 W under a holder.
    fn counter(at: u64) -> u64 {
        let watts = |second| if holder(second).is_some() { 300 } else { 50 };
        7_000_000 + (0..at).map(|second| watts(second) * 1000).sum::<u64>()
    }

    fn list(at: u64) -> Holders {
        let held = holder(at).map(|pod| {
            let holder = Holder {
                uid: String::new(),
                namespace: "ns".into(),
                pod: pod.into(),
                container: "main".into(),
                ..Holder::default()
            };
            let hold = Hold {
                replicas: 1,
                whole: true,
            };
            (GPU.to_owned(), BTreeMap::from([(holder, hold)]))
        });
        held.into_iter().collect()
    }

    struct Run {
        checkpoint: Checkpoint,
        state: State,
        /// The most that was ever shown of each pod.
        shown: BTreeMap<String, u64>,
    }

    /// The side effects of one look, in their order.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Effect {
        Looked,
        Settled,
        Saved,
        Shown,
    }
    const EFFECTS: [Effect; 4] = [
        Effect::Looked,
        Effect::Settled,
        Effect::Saved,
        Effect::Shown,
    ];

    impl Run {
        fn start(folder: &Path, boot: &str, now: u64) -> Self {
            let checkpoint = Checkpoint::new(folder.join("exporter.json"), boot.into());
            let mut state = State::default();
            if let Found::Earlier {
                state: earlier,
                same_boot,
                ..
            } = checkpoint.load().unwrap()
            {
                state = *earlier;
                state.go_on(same_boot, 0, Duration::from_hours(1), now);
            }
            let info = GpuInfo {
                uuid: GPU.into(),
                index: 0,
                minor: 0,
                model: "A100".into(),
                pci_bus_id: String::new(),
                driver: String::new(),
                limit_milliwatts: Some(400_000),
                default_limit_milliwatts: None,
                source: EnergySource::Counter,
            };
            state.meter.add_gpu(info, Some(50_000));
            Self {
                checkpoint,
                state,
                shown: BTreeMap::new(),
            }
        }

        /// One second of the story, up to and with `last`.
        fn second(&mut self, at: u64, last: Effect) {
            let now = at * SECOND;
            let uid = |_: &str, pod: &str| Some(format!("uid-{pod}"));
            if let (None, Some(came)) = (holder(at.wrapping_sub(1)), holder(at)) {
                self.state
                    .allocations
                    .pod_appeared(&format!("uid-{came}"), now);
            }
            if let (Some(went), None) = (holder(at.wrapping_sub(1)), holder(at)) {
                self.state
                    .allocations
                    .pod_vanished(&format!("uid-{went}"), now);
            }
            let look = Look {
                energy_millijoules: Some(counter(at)),
                busy: holder(at).is_some(),
                ..Look::default()
            };
            self.state.meter.look(GPU, look, now);
            if last == Effect::Looked {
                return;
            }
            self.state
                .allocations
                .observe(&list(at), now + 1, now + 2, uid);
            self.state.meter.settle(&self.state.allocations, now + 2);
            if last == Effect::Settled {
                return;
            }
            let view = View {
                epoch: &self.state.epoch,
                pods: &self.state.pods,
                meter: &self.state.meter,
                allocations: &self.state.allocations,
            };
            self.checkpoint.save(view).unwrap();
            if last == Effect::Shown {
                for pod in self.state.meter.pods() {
                    let shown = self.shown.entry(pod.uid.clone()).or_default();
                    assert!(pod.energy().0 >= *shown, "{} fell", pod.uid);
                    *shown = pod.energy().0;
                }
            }
        }

        fn energy(&self) -> Microjoules {
            self.state
                .meter
                .gpus()
                .map(|(_, totals)| totals.energy)
                .sum()
        }

        fn of(&self, uid: &str) -> u64 {
            let mut pods = self.state.meter.pods();
            pods.find(|pod| pod.uid == uid)
                .map_or(0, |pod| pod.energy().0)
        }

        fn gap(&self) -> u64 {
            let totals = self.state.meter.gpus().map(|(_, totals)| totals);
            totals
                .filter_map(|totals| totals.unattributed.get(&Unattributed::Gap))
                .map(|energy| energy.0)
                .sum()
        }
    }

    fn folder(name: &str) -> PathBuf {
        let name = format!("jouleward-checkpoint-{}-{name}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::remove_dir_all(&folder).ok();
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// The story with a kill after one effect, away for `away` seconds.
    fn killed(name: &str, at: u64, effect: Effect, away: u64) -> Run {
        let folder = folder(name);
        let mut run = Run::start(&folder, "boot", 0);
        for second in 0..at {
            run.second(second, Effect::Shown);
        }
        run.second(at, effect);
        let shown = std::mem::take(&mut run.shown);
        let back = at + 1 + away;
        let mut run = Run::start(&folder, "boot", back * SECOND);
        run.shown = shown;
        for second in back..=END {
            run.second(second, Effect::Shown);
        }
        std::fs::remove_dir_all(&folder).unwrap();
        run
    }

    #[test]
    fn a_kill_after_any_side_effect_of_any_look_loses_no_joule_and_takes_nothing_back() {
        let whole = (counter(END) - counter(0)) * 1000;
        for at in 1..END {
            for effect in EFFECTS {
                let run = killed("each", at, effect, 0);
                assert_eq!(run.energy().0, whole, "killed at {at} s after {effect:?}");
                assert!(run.state.meter.is_sound());
                let (a, b) = (run.of("uid-a"), run.of("uid-b"));
                // Where the holder was the same before and after, nothing is even misplaced.
                let edges = [15, 25, 28, 36];
                let near = edges.iter().any(|edge| at + 1 == *edge || at == *edge);
                if !near {
                    assert_eq!((a, b), (3_000_000_000, 2_400_000_000), "{at} {effect:?}");
                }
                assert!(a <= 3_000_000_000 && b <= 2_400_000_000 && run.gap() <= 600_000_000);
            }
        }
    }

    #[test]
    fn an_outage_is_its_holders_where_they_did_not_change_and_else_a_gap() {
        let unchanged = killed("unchanged", 17, Effect::Shown, 5);
        assert_eq!((unchanged.of("uid-a"), unchanged.gap()), (3_000_000_000, 0));
        let incomplete = |run: &Run| -> Vec<String> {
            let pods = run.state.meter.pods().filter(|pod| pod.incomplete);
            pods.map(|pod| pod.uid.clone()).collect()
        };
        assert!(incomplete(&unchanged).is_empty());
        let changed = killed("changed", 20, Effect::Shown, 9);
        assert_eq!(incomplete(&changed), ["uid-a", "uid-b"]);
        assert_eq!(changed.of("uid-b"), 300_000_000 * 6, "from 30 s on");
        assert!(changed.gap() > 0);
        let whole = (counter(END) - counter(0)) * 1000;
        assert_eq!((changed.energy().0, unchanged.energy().0), (whole, whole));
    }

    #[test]
    fn what_a_pod_burned_that_came_and_went_unseen_is_a_gap() {
        let run = killed("unseen", 26, Effect::Shown, 11);
        let idle = 12 * 50_000_000;
        assert_eq!((run.of("uid-b"), run.gap()), (0, 8 * 250_000_000));
        let whole = (counter(END) - counter(0)) * 1000;
        assert_eq!(run.energy().0, whole, "idle {idle} is unallocated");
    }

    #[test]
    fn an_outage_of_more_than_ten_minutes_is_a_gap_though_the_holder_is_the_same() {
        let folder = folder("long");
        let mut run = Run::start(&folder, "boot", 0);
        for second in 0..17 {
            run.second(second, Effect::Shown);
        }
        let a = run.of("uid-a");
        let back = 17 + 3600;
        let mut run = Run::start(&folder, "boot", back * SECOND);
        // The story stands still at 17 s, and the counter goes on.
        let look = Look {
            energy_millijoules: Some(counter(16) + 3601 * 300_000),
            busy: true,
            ..Look::default()
        };
        let (state, now) = (&mut run.state, back * SECOND);
        state.meter.look(GPU, look, now);
        let uid = |_: &str, pod: &str| Some(format!("uid-{pod}"));
        state.allocations.observe(&list(16), now + 1, now + 2, uid);
        state.meter.settle(&state.allocations, now + 2);
        assert_eq!(run.of("uid-a"), a);
        assert!(run.state.meter.is_sound() && run.gap() > 0);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn on_another_boot_totals_stay_and_the_first_look_is_a_baseline() {
        let folder = folder("boot");
        let mut run = Run::start(&folder, "one", 0);
        for second in 0..20 {
            run.second(second, Effect::Shown);
        }
        let (before, a) = (run.energy(), run.of("uid-a"));
        let mut run = Run::start(&folder, "two", 0);
        run.second(0, Effect::Shown);
        assert_eq!((run.energy(), run.of("uid-a")), (before, a));
        run.second(1, Effect::Shown);
        assert_eq!(run.energy().0, before.0 + 50_000_000);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_machine_that_was_off_for_long_does_not_name_its_pods_of_before_again() {
        let kept = Duration::from_hours(1);
        let hour = 3_600_000;
        for (boot, away, named) in [
            ("one", 2 * hour, true),
            ("two", hour, true),
            ("two", 2 * hour, false),
        ] {
            let folder = folder("off");
            let mut run = Run::start(&folder, "one", 0);
            for second in 0..20 {
                run.second(second, Effect::Shown);
            }
            let before = run.energy();
            let path = folder.join("exporter.json");
            let mut saved: serde_json::Value =
                serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            let at = saved["written_at"].as_i64().unwrap();
            // A second less: the test takes time itself.
            saved["written_at"] = (at - away + 1_000 * i64::from(away == hour)).into();
            let bytes = saved.to_string();
            let found = Checkpoint::new(path, boot.into()).parse(bytes.as_bytes());
            let Ok(Found::Earlier {
                mut state,
                same_boot,
                away,
            }) = found
            else {
                panic!("{found:?}");
            };
            assert_eq!(state.go_on(same_boot, away, kept, 5 * SECOND), !named);
            let pods = state.meter.pods().count();
            assert_eq!(pods > 0, named, "{boot} {away}");
            assert!(state.meter.is_sound());
            let gpus = state.meter.gpus().map(|(_, totals)| totals.energy);
            assert_eq!(gpus.sum::<Microjoules>(), before);
            std::fs::remove_dir_all(&folder).unwrap();
        }
    }

    #[test]
    fn a_file_that_cannot_be_used_is_set_aside_and_said() {
        let folder = folder("broken");
        let path = folder.join("exporter.json");
        let checkpoint = Checkpoint::new(path.clone(), "boot".into());
        assert!(matches!(checkpoint.load().unwrap(), Found::Nothing));
        let state = serde_json::to_value(State::default()).unwrap();
        let newer = serde_json::json!({ "version": 2, "boot": "boot", "state": state });
        for (bytes, word) in [
            (b"{".to_vec(), "EOF"),
            (serde_json::to_vec(&newer).unwrap(), "version 2"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let Found::SetAside { why, to } = checkpoint.load().unwrap() else {
                panic!("it was believed");
            };
            assert!(why.contains(word) && to.exists() && !path.exists(), "{why}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn sums_that_do_not_add_up_are_not_believed() {
        let mut state = serde_json::to_value(State::default()).unwrap();
        state["meter"]["retired"] = serde_json::json!(5);
        let saved = serde_json::json!({ "version": 1, "boot": "boot", "state": state });
        let checkpoint = Checkpoint::new("/nowhere".into(), "boot".into());
        let why = checkpoint
            .parse(&serde_json::to_vec(&saved).unwrap())
            .unwrap_err();
        assert!(why.contains("do not sum"), "{why}");
    }
}
