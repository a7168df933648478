//! Processes of the host, read from a /proc tree whose root is a flag.

use super::attribution::Owner;
use super::cgroup;
use rustix::fs::{Access, AtFlags, accessat};
use std::collections::HashMap;
use std::fs::File;
use std::io::ErrorKind;
use std::path::PathBuf;

/// Whose each process is, cached by PID and start time against PID reuse.
#[derive(Debug)]
pub(super) struct Processes {
    root: PathBuf,
    /// Whose a process is that no pod's UID names: in a pod of its own cgroup namespace its
    /// other containers' paths do not.
    others: Owner,
    seen: HashMap<u32, Seen>,
    /// Files that could not be read, and why; that a process is gone is no error.
    pub(super) errors: Vec<(&'static str, ErrorKind)>,
}

#[derive(Debug)]
struct Seen {
    /// Its folder, held open: it stays this process's when the PID is another's, and to ask
    /// whether it lives costs one call. `None` once it is gone, or without a file to spare.
    folder: Option<File>,
    start: u64,
    /// `None` for the server of MPS, which is nobody's tenant: its clients are.
    owner: Option<Owner>,
    /// µs on the monotonic clock when it was last alive: samples lag behind an exit.
    alive_at: u64,
    /// The same: when its folder was last asked.
    asked_at: u64,
}

/// nvidia-cuda-mps-server and -control, as the kernel cuts a process's name.
const MPS_SERVER: &str = "nvidia-cuda-mps";

/// Errors that are kept in mind between two looks.
const MOST_ERRORS: usize = 1000;
/// An answer this young is believed: the watch asks of every process more often.
const FRESH_US: u64 = 500_000;
/// How long after its exit a process is still known.
const REMEMBERED_US: u64 = 15_000_000;

impl Seen {
    /// `None` where the folder is not open.
    fn lives(&mut self, now: u64) -> Option<bool> {
        let folder = self.folder.as_ref()?;
        self.asked_at = now;
        let lives = accessat(folder, "stat", Access::EXISTS, AtFlags::empty()).is_ok();
        if !lives {
            self.folder = None;
        }
        Some(lives)
    }
}

impl Seen {
    /// True where it lived when it was asked a moment ago.
    fn is_fresh(&self, now: u64) -> bool {
        self.folder.is_some() && now.saturating_sub(self.asked_at) <= FRESH_US
    }
}

impl Processes {
    /// In a sidecar, `own` is the UID of its pod.
    pub(super) fn new(root: PathBuf, own: Option<String>) -> Self {
        Self {
            root,
            others: own.map_or(Owner::Host, Owner::Pod),
            seen: HashMap::new(),
            errors: Vec::new(),
        }
    }

    /// A file of a process; `None` where it is gone, or cannot be read, which is kept in mind.
    fn read(&mut self, pid: u32, file: &'static str) -> Option<String> {
        match std::fs::read_to_string(self.root.join(pid.to_string()).join(file)) {
            Ok(text) => Some(text),
            Err(error) => {
                let gone = error.kind() == ErrorKind::NotFound
                    || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error());
                if !gone && self.errors.len() < MOST_ERRORS {
                    self.errors.push((file, error.kind()));
                }
                None
            }
        }
    }

    /// True where the tree shows the host's processes: PID 1's cgroup can be read.
    pub(super) fn visible(&self) -> bool {
        self.root.join("1/cgroup").exists()
    }

    /// True while the process that was seen under this PID lives.
    pub(super) fn alive(&mut self, pid: u32, now: u64) -> bool {
        if let Some(seen) = self.seen.get_mut(&pid)
            && let Some(alive) = seen.lives(now)
        {
            return alive;
        }
        let start = self.start_time(pid);
        start.is_some()
            && self
                .seen
                .get(&pid)
                .is_none_or(|seen| Some(seen.start) == start)
    }

    /// True for the server that clients of MPS work through, once it was asked for by
    /// [`Processes::owner`].
    pub(super) fn serves_mps(&self, pid: u32) -> bool {
        self.seen.get(&pid).is_some_and(|seen| seen.owner.is_none())
    }

    /// Whose a process is; `None` where it cannot be told, or where it is nobody's.
    pub(super) fn owner(&mut self, pid: u32, now: u64) -> Option<Owner> {
        if let Some(seen) = self.seen.get_mut(&pid)
            && (seen.is_fresh(now) || seen.lives(now) == Some(true))
        {
            seen.alive_at = now;
            return seen.owner.clone();
        }
        let start = self.start_time(pid);
        if let Some(seen) = self.seen.get_mut(&pid) {
            match start {
                Some(start) if start == seen.start => {
                    seen.alive_at = now;
                    return seen.owner.clone();
                }
                // Gone: its last samples still come.
                None if now.saturating_sub(seen.alive_at) <= REMEMBERED_US => {
                    return seen.owner.clone();
                }
                _ => {}
            }
        }
        let folder = self.root.join(pid.to_string());
        let text = self.read(pid, "cgroup")?;
        let name = self.read(pid, "comm");
        let owner = if name.is_some_and(|name| name.starts_with(MPS_SERVER)) {
            None
        } else {
            let named = cgroup::parse(&text).map(|m| Owner::Pod(m.pod_uid));
            Some(named.unwrap_or_else(|| self.others.clone()))
        };
        self.seen.insert(
            pid,
            Seen {
                folder: File::open(folder).ok(),
                start: start?,
                owner: owner.clone(),
                alive_at: now,
                asked_at: now,
            },
        );
        owner
    }

    /// Forgets processes that ended long ago.
    pub(super) fn forget(&mut self, now: u64) {
        self.seen
            .retain(|_, seen| now.saturating_sub(seen.alive_at) <= 4 * REMEMBERED_US);
    }

    /// Field 22 of /proc/PID/stat, counted from behind the command's closing parenthesis.
    fn start_time(&mut self, pid: u32) -> Option<u64> {
        let stat = self.read(pid, "stat")?;
        let (_, after) = stat.rsplit_once(')')?;
        after.split_whitespace().nth(19)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn start(root: &Path, pid: u32, at: u64, pod: &str) {
        let folder = root.join(pid.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        let cgroup = format!("0::/kubepods/pod{pod}/{pid:064x}\n");
        std::fs::write(folder.join("cgroup"), cgroup).unwrap();
        std::fs::write(folder.join("comm"), "python\n").unwrap();
        let stat = format!("{pid} (a) b) S {} {at} 0", ["0"; 18].join(" "));
        std::fs::write(folder.join("stat"), stat).unwrap();
    }

    fn end(root: &Path, pid: u32) {
        std::fs::remove_dir_all(root.join(pid.to_string())).unwrap();
    }

    #[test]
    fn in_a_sidecar_whoever_no_pod_names_is_of_its_own_pod() {
        let root = std::env::temp_dir().join(format!("jouleward-own-{}", std::process::id()));
        start(&root, 8, 100, "");
        let cgroup = format!("0::/../{:064x}\n", 8);
        std::fs::write(root.join("8/cgroup"), cgroup).unwrap();
        let owner = |own: Option<&str>| {
            let mut processes = Processes::new(root.clone(), own.map(str::to_owned));
            processes.owner(8, 0)
        };
        assert_eq!(owner(None), Some(Owner::Host));
        assert_eq!(owner(Some("own")), Some(Owner::Pod("own".to_owned())));
        end(&root, 8);
    }

    #[test]
    fn a_process_is_not_asked_after_at_every_look() {
        let root = std::env::temp_dir().join(format!("jouleward-fresh-{}", std::process::id()));
        let pod = "cccccccc-cccc-cccc-cccc-cccccccccccc";
        start(&root, 9, 100, pod);
        let mut processes = Processes::new(root.clone(), None);
        let own = Some(Owner::Pod(pod.to_owned()));
        assert_eq!(processes.owner(9, 0), own);
        end(&root, 9);
        assert_eq!(processes.owner(9, FRESH_US), own, "asked a moment ago");
        let gone = FRESH_US + REMEMBERED_US + 1;
        assert_eq!(processes.owner(9, gone), None, "that was long ago");
    }

    #[test]
    fn a_pid_is_its_process_until_that_ends_and_then_anothers() {
        let root = std::env::temp_dir().join(format!("jouleward-proc-{}", std::process::id()));
        let [a, b] = ["a", "b"].map(|letter| {
            let part = |length| letter.repeat(length);
            format!(
                "{}-{}-{}-{}-{}",
                part(8),
                part(4),
                part(4),
                part(4),
                part(12)
            )
        });
        let owner = |uid: &str| Some(Owner::Pod(uid.to_owned()));
        let mut processes = Processes::new(root.clone(), None);
        start(&root, 7, 100, &a);
        assert_eq!(processes.owner(7, 0), owner(&a));
        assert!(processes.alive(7, 0));
        end(&root, 7);
        assert!(!processes.alive(7, 0));
        assert_eq!(
            processes.owner(7, REMEMBERED_US),
            owner(&a),
            "its samples lag"
        );
        assert_eq!(processes.owner(7, REMEMBERED_US + 1), None);
        start(&root, 7, 200, &b);
        assert!(
            !processes.alive(7, REMEMBERED_US),
            "the one that was seen has ended"
        );
        assert_eq!(processes.owner(7, REMEMBERED_US), owner(&b));
        end(&root, 7);
    }
}
