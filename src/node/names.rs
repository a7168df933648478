//! Pod UIDs by name. The kubelet's PodResources API gives none; its log folder names each
//! pod's directory `namespace_name_uid`, and appears the moment a pod is set up.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::SystemTime;

/// The folder /var/log/pods, or wherever it is mounted.
#[derive(Debug)]
pub(super) struct PodNames {
    root: PathBuf,
    stamp: Option<SystemTime>,
    /// True once the folder was read at a time when no further change could bear the same
    /// stamp: kernels stamp by the tick of 4 or 10 ms.
    certain: bool,
    by_name: HashMap<(String, String), String>,
}

/// Stamps younger than this may hide another change.
const COARSE_US: u128 = 50_000;

impl PodNames {
    pub(super) fn new(root: PathBuf) -> Self {
        Self {
            root,
            stamp: None,
            certain: false,
            by_name: HashMap::new(),
        }
    }

    /// Re-reads the folder where it changed, or may have; true if it did. `now` is the
    /// wall clock in µs since the Unix epoch.
    pub(super) fn refresh(&mut self, now: u64) -> bool {
        let stamp = std::fs::metadata(&self.root)
            .and_then(|m| m.modified())
            .ok();
        if stamp == self.stamp && self.certain {
            return false;
        }
        let changed = stamp != self.stamp;
        let micros = stamp
            .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok())
            .map(|at| at.as_micros());
        // Either way: the clock may have been stepped back.
        self.certain = micros.is_none_or(|at| u128::from(now).abs_diff(at) > COARSE_US);
        self.stamp = stamp;
        let before = self.by_name.len();
        self.read();
        changed || self.by_name.len() != before
    }

    fn read(&mut self) {
        let Ok(entries) = std::fs::read_dir(&self.root) else {
            return;
        };
        let mut found: Vec<(SystemTime, String)> = entries
            .filter_map(Result::ok)
            .map(|entry| {
                let born = entry
                    .metadata()
                    .and_then(|m| m.created().or_else(|_| m.modified()));
                (
                    born.unwrap_or(SystemTime::UNIX_EPOCH),
                    entry.file_name().to_string_lossy().into_owned(),
                )
            })
            .collect();
        // Of two pods of one name, a StatefulSet's say, the youngest is the one alive.
        found.sort();
        self.by_name = found.iter().filter_map(|(_, name)| split(name)).collect();
    }

    pub(super) fn uid(&self, namespace: &str, pod: &str) -> Option<&str> {
        self.by_name
            .get(&(namespace.to_owned(), pod.to_owned()))
            .map(String::as_str)
    }
}

impl PodNames {
    /// UIDs of all pods on the node.
    pub(super) fn uids(&self) -> impl Iterator<Item = &str> {
        self.by_name.values().map(String::as_str)
    }
}

/// Neither namespaces, pod names nor UIDs hold an underscore.
fn split(name: &str) -> Option<((String, String), String)> {
    let mut parts = name.split('_');
    let (namespace, pod, uid) = (parts.next()?, parts.next()?, parts.next()?);
    (parts.next().is_none() && !uid.is_empty())
        .then(|| ((namespace.to_owned(), pod.to_owned()), uid.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_folders_name_gives_namespace_pod_and_uid() {
        let ((namespace, pod), uid) = split("team-a_images-x7k2p_0f1e2d3c").unwrap();
        assert_eq!(
            (namespace.as_str(), pod.as_str(), uid.as_str()),
            ("team-a", "images-x7k2p", "0f1e2d3c")
        );
        for name in ["", "lost+found", "a_b", "a_b_", "a_b_c_d"] {
            assert_eq!(split(name), None, "{name}");
        }
    }
}
