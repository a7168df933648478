//! From a line of /proc/PID/cgroup to the pod and container it belongs to.
//!
//! The rule: the *last* `pod<uid>` component that stands under a `kubepods` component, or
//! anywhere in a path that is relative to the reader's own cgroup (`/../`); the container
//! is the first 64-digit hexadecimal token after it.

/// A pod UID as the API writes it, and the container's runtime id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    pub pod_uid: String,
    pub container_id: Option<String>,
}

/// Reads one line, with or without its `hierarchy:controllers:` prefix.
pub fn parse_line(line: &str) -> Option<Membership> {
    let path = path_of(line.trim());
    let relative = path.starts_with("/../") || path.starts_with("../");
    let components: Vec<&str> = path.split('/').collect();
    let under = components.iter().position(|c| c.contains("kubepods"));
    let first = match (under, relative) {
        (Some(index), _) => index,
        (None, true) => 0,
        (None, false) => return None,
    };
    let (index, uid) = components
        .iter()
        .enumerate()
        .skip(first)
        .filter_map(|(index, component)| Some((index, pod_uid(component)?)))
        .next_back()?;
    let colon_form = components[index].split_once(':').map(|(_, after)| after);
    let container_id = colon_form
        .into_iter()
        .chain(components[index + 1..].iter().copied())
        .find_map(hex64);
    Some(Membership {
        pod_uid: uid,
        container_id,
    })
}

/// Reads a whole /proc/PID/cgroup file: the unified line, or on version 1 any controller
/// that names a pod.
pub fn parse(text: &str) -> Option<Membership> {
    text.lines()
        .filter_map(parse_line)
        .max_by_key(|found| found.container_id.is_some())
}

fn path_of(line: &str) -> &str {
    let mut fields = line.splitn(3, ':');
    match (fields.next(), fields.next(), fields.next()) {
        (Some(hierarchy), Some(_), Some(path)) if hierarchy.bytes().all(|b| b.is_ascii_digit()) => {
            path
        }
        _ => line,
    }
}

/// The UID in `…pod<uid>…`: canonical, with `_` for `-`, or 32 hexadecimal digits.
fn pod_uid(component: &str) -> Option<String> {
    // `….slice:cri-containerd:<id>` is how a runtime writes what it takes for cgroupfs.
    let name = component.split(':').next().unwrap_or(component);
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let at = name.rfind("pod")?;
    let before = &name[..at];
    if !(before.is_empty() || before.ends_with('-')) {
        return None;
    }
    let raw = &name[at + 3..];
    let dashed = raw.replace('_', "-");
    let bytes = dashed.as_bytes();
    let hex = |s: &str| s.bytes().all(|b| b.is_ascii_hexdigit());
    let canonical = bytes.len() == 36
        && [8, 13, 18, 23].iter().all(|i| bytes[*i] == b'-')
        && hex(&dashed.replace('-', ""))
        && dashed.matches('-').count() == 4;
    (canonical || (raw.len() == 32 && hex(raw))).then_some(dashed)
}

/// The first run of exactly 64 hexadecimal digits.
fn hex64(component: &str) -> Option<String> {
    // CRI-O's monitor lives beside the container and is not it.
    if component.contains("conmon") {
        return None;
    }
    component
        .split(|c: char| !c.is_ascii_hexdigit())
        .find(|token| token.len() == 64)
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libpod_and_words_that_begin_with_pod_are_no_pods() {
        assert_eq!(parse_line("0::/machine.slice/libpod-0123.scope"), None);
        assert_eq!(parse_line("0::/user.slice/poddle"), None);
    }

    #[test]
    fn every_line_met_in_the_wild_gives_its_pod_and_container() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../shared/data/cgroup_paths.tsv"
        );
        let Ok(text) = std::fs::read_to_string(path) else {
            #[expect(
                clippy::disallowed_methods,
                reason = "in CI an absent data set is a failure"
            )]
            let ci = std::env::var_os("CI").is_some();
            assert!(!ci, "the collection of cgroup lines must be there in CI");
            eprintln!("SKIPPED: no collection of cgroup lines");
            return;
        };
        let mut wrong = Vec::new();
        for row in text.lines().skip(1) {
            let fields: Vec<&str> = row.split('\t').collect();
            let found = parse_line(fields[0]);
            let uid = found.as_ref().map_or("-", |m| m.pod_uid.as_str());
            let container = found
                .as_ref()
                .and_then(|m| m.container_id.as_deref())
                .unwrap_or("-");
            if uid != fields[1] || (uid != "-" && container != fields[2]) {
                wrong.push(format!("{row}\n    gave {found:?}"));
            }
        }
        assert!(
            wrong.is_empty(),
            "{} wrong:\n{}",
            wrong.len(),
            wrong.join("\n")
        );
    }

    proptest::proptest! {
        #[test]
        fn no_line_whatever_makes_it_panic(line in "\\PC{0,200}") {
            let _ = parse(&line);
            let _ = parse_line(&format!("0::/kubepods/pod{line}"));
        }
    }
}
