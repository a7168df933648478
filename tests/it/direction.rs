//! Imports point one way, and the pure core sees no I/O.

use std::path::{Path, PathBuf};

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

/// Lines of code of a module, without comments, each with its file.
fn code(module: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let single = root.join(format!("{module}.rs"));
    let files = if single.exists() {
        vec![single]
    } else {
        sources(&root.join(module))
    };
    assert!(!files.is_empty(), "{module} is there");
    files
        .into_iter()
        .flat_map(|file| {
            let text = std::fs::read_to_string(&file).unwrap();
            // Unit tests may read reference files.
            let text = text
                .split("#[cfg(test)]")
                .next()
                .unwrap_or_default()
                .to_owned();
            let tests = file.ends_with("tests.rs");
            let lines: Vec<String> = text
                .lines()
                .filter(|l| !tests && !l.trim_start().starts_with("//"))
                .map(str::to_owned)
                .collect();
            lines
                .into_iter()
                .map(move |line| (file.clone(), line))
                .collect::<Vec<_>>()
        })
        .collect()
}

fn assert_never(module: &str, forbidden: &[&str]) {
    for (file, line) in code(module) {
        for word in forbidden {
            assert!(
                !line.contains(word),
                "{} must not use {word}: {line}",
                file.display()
            );
        }
    }
}

#[test]
fn the_pure_core_sees_no_clock_no_io_no_kubernetes() {
    let io = [
        "tokio",
        "kube::",
        "k8s_openapi",
        "hyper",
        "tonic",
        "nvml_wrapper",
        "tracing",
        "std::fs",
        "std::net",
        "std::env",
        "std::process",
        "SystemTime",
        "Instant",
        "Timestamp::now",
        "crate::clock",
        "rand",
    ];
    for module in ["law", "carbon", "budget"] {
        assert_never(module, &io);
    }
}

#[test]
fn imports_point_from_the_command_line_down_to_the_law() {
    let above = [
        "crate::cli",
        "crate::cluster",
        "crate::node",
        "crate::serve",
        "crate::api",
        "crate::budget",
        "crate::carbon",
    ];
    assert_never("law", &above);
    assert_never("carbon", &above[..6]);
    assert_never("budget", &above[..5]);
    assert_never("api", &above[..4]);
    assert_never("serve", &["crate::cli", "crate::cluster", "crate::node"]);
    assert_never(
        "node",
        &[
            "crate::cli",
            "crate::cluster",
            "crate::api",
            "crate::budget",
        ],
    );
    // The exporter's answer is the one thing the cluster side knows of the node side.
    for (file, line) in code("cluster") {
        let allowed = [
            "crate::node::{LedgerPage, PodEnergy}",
            "crate::node::LedgerPage",
            "crate::node::PodEnergy",
        ];
        assert!(
            !line.contains("crate::node") || allowed.iter().any(|use_| line.contains(use_)),
            "{}: {line}",
            file.display()
        );
        assert!(!line.contains("crate::cli"), "{}: {line}", file.display());
    }
}

#[test]
fn the_simulated_node_shares_no_code_with_what_it_tests() {
    let manifest = include_str!("../simnode/Cargo.toml");
    assert!(
        !manifest.contains("jouleward") && !manifest.contains("harness"),
        "{manifest}"
    );
    let nvml = include_str!("../nvml-sim/Cargo.toml");
    assert!(!nvml.contains("jouleward"), "{nvml}");
    for file in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/simnode/src")) {
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(!text.contains("jouleward::"), "{}", file.display());
    }
}

#[test]
fn generated_files_are_what_the_code_generates() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let said = |args: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_jouleward"))
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(
        said(&["reference"]),
        std::fs::read_to_string(root.join("docs/reference.md")).unwrap(),
        "run make generate"
    );
    let folder = root.join("target/generated-crds");
    std::fs::create_dir_all(&folder).unwrap();
    said(&["crds", "--folder", folder.to_str().unwrap()]);
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        let fresh = std::fs::read_to_string(&path).unwrap();
        for kept in ["crds", "charts/jouleward/files/crds"] {
            let kept = root.join(kept).join(name);
            assert_eq!(
                fresh,
                std::fs::read_to_string(&kept).unwrap_or_default(),
                "{}: run make generate",
                kept.display()
            );
        }
    }
}
