//! The command line as people and scripts meet it.

use std::process::{Command, Output};

fn jouleward(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_jouleward"))
        .args(args)
        .env_remove("KUBECONFIG")
        .output()
        .unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const FLUX: &[&str] = &[
    "predict",
    "--model",
    "flux.1-dev",
    "--gpu",
    "NVIDIA-A100-SXM4-40GB",
    "--num-inference-steps",
    "28",
    "--width",
    "1024",
    "--height",
    "1024",
    "--country",
    "DEU",
];

#[test]
fn a_prediction_reads_as_a_table() {
    let output = jouleward(FLUX);
    assert!(output.status.success(), "{}", err(&output));
    insta::assert_snapshot!("predict", out(&output));
}

#[test]
fn a_prediction_in_json_and_yaml_says_the_same() {
    let json: serde_json::Value =
        serde_json::from_slice(&jouleward(&[FLUX, &["-o", "json"]].concat()).stdout).unwrap();
    let yaml: serde_json::Value =
        serde_yaml::from_slice(&jouleward(&[FLUX, &["-o", "yaml"]].concat()).stdout).unwrap();
    assert_eq!(json, yaml);
    assert!(json["joulesMedian"].as_f64().unwrap() > 1000.0);
}

/// What is typed wrongly, and what the answer must say.
const WRONG: &[(&[&str], &str)] = &[
    (
        &["predict", "--model", "nosuch", "--gpu", "A100"],
        "\"nosuch\" is not a known model",
    ),
    (
        &[
            "predict", "--model", "sdxl", "--gpu", "A100", "--width", "7", "--height", "7",
        ],
        "--width: \"7\" is not 64 to 8192",
    ),
    (
        &[
            "predict", "--model", "sdxl", "--gpu", "A100", "--width", "512",
        ],
        "--height is missing",
    ),
    (
        &[
            "predict",
            "--model",
            "sdxl",
            "--gpu",
            "A100",
            "--country",
            "XX",
        ],
        "alpha-3 code such as DEU",
    ),
    (
        &[
            "predict",
            "--model",
            "sdxl",
            "--gpu",
            "A100",
            "--quantile",
            "2",
        ],
        "for example 0.9",
    ),
    (
        &[
            "predict", "--model", "sdxl", "--gpu", "A100", "--pue", "0.5",
        ],
        "for example 1.2",
    ),
    (
        &["exporter", "--node-name", "n", "--interval-seconds", "0"],
        "--interval-seconds 0 is not from 0.1 to 10",
    ),
    (
        &[
            "controller",
            "--webhook-host",
            "x",
            "--lease-duration-seconds",
            "2",
        ],
        "for example 1, 4, 6",
    ),
    (
        &["predict", "--model", "sdxl", "--gpu", "XYZ"],
        "--gpu \"XYZ\" is no GPU product that is known",
    ),
    (
        &["fit", "/no/such/file.csv"],
        "give a CSV file with one run a line",
    ),
    (
        &["--log", "inof", "crds"],
        "\"inof\" is no level; a level is off, error",
    ),
    (&["fit", "--nosuch"], "unexpected argument '--nosuch' found"),
    (
        &["predict", "--gpu", "A100"],
        "--model is missing: name one",
    ),
    (
        &["predict", "--model", "sdxl"],
        "--gpu is missing: name a product",
    ),
    (
        &["explain", "--model", "sdxl"],
        "not provided: --gpu <GPU>; usage: jouleward explain",
    ),
    (&["crds", "-o", "xml"], "--help says more"),
    (&["nosuch"], "unrecognized subcommand"),
    (
        &[
            "predict", "--model", "sdxl", "--gpu", "A100", "--law", "/no/such",
        ],
        "`jouleward fit FILE --save FOLDER` writes such a file",
    ),
    (
        &["exporter", "--node-name", "n", "--mode", "sidecar"],
        "manifests/sidecar.yaml shows how",
    ),
    (
        &["exporter", "--node-name", "n", "--listen", "foo"],
        "invalid socket address syntax, for example 0.0.0.0:9402",
    ),
];

#[test]
fn wrong_flags_exit_with_2_and_one_sentence_that_says_what_is_allowed() {
    for (args, words) in WRONG {
        let output = jouleward(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", err(&output));
        assert!(err(&output).contains(words), "{args:?}: {}", err(&output));
        assert_eq!(
            err(&output).lines().count(),
            1,
            "{args:?}: {}",
            err(&output)
        );
    }
}

#[test]
fn a_table_of_runs_is_fitted_and_rows_that_cannot_be_used_are_named() {
    let folder = std::env::temp_dir().join(format!("jouleward-fit-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let data = folder.join("runs.csv");
    let mut text = "model,gpu,width,height,steps,energy_joules_per_image,cfg\n".to_owned();
    for (model, joules) in [("sd1.5", 600), ("sdxl", 1500), ("pixart-sigma", 1100)] {
        for steps in [10, 20, 30] {
            text += &format!(
                "{model},NVIDIA L40S,1024,1024,{steps},{},true\n",
                joules * steps / 20
            );
        }
    }
    text += "sdxl,NVIDIA L40S,1024,1024,twenty,5,true\n";
    std::fs::write(&data, text).unwrap();
    let laws = folder.join("laws");
    let output = jouleward(&[
        "fit",
        data.to_str().unwrap(),
        "--save",
        laws.to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{}", err(&output));
    let said = out(&output);
    assert!(
        said.contains("l40s") && said.contains("LEAVE-ONE-MODEL-OUT"),
        "{said}"
    );
    assert!(
        said.contains("steps \"twenty\" is not a whole number from 1 to 1000: line 11"),
        "{said}"
    );
    let law = laws.join("l40s.json");
    let args = [
        "predict",
        "--model",
        "sdxl",
        "--gpu",
        "NVIDIA-L40S",
        "--num-inference-steps",
        "20",
        "--law",
        law.to_str().unwrap(),
        "-o",
        "json",
    ];
    let prediction: serde_json::Value = serde_json::from_slice(&jouleward(&args).stdout).unwrap();
    assert!(
        prediction["law"].as_str().unwrap().contains("9 runs"),
        "{prediction}"
    );
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_table_without_a_usable_row_is_wrong_input() {
    let path = std::env::temp_dir().join(format!("jouleward-empty-{}.csv", std::process::id()));
    std::fs::write(
        &path,
        "model,gpu,width,height,steps,energy_joules_per_image\nx,y,1,1,1,1\n",
    )
    .unwrap();
    let output = jouleward(&["fit", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        err(&output).contains("line 2: model \"x\" is not in the catalogue"),
        "{}",
        err(&output)
    );
    std::fs::remove_file(path).unwrap();
}

#[test]
fn every_command_has_help_with_an_example_or_its_endpoints() {
    for command in [
        "predict",
        "fit",
        "explain",
        "plan",
        "score",
        "plot",
        "model import",
        "exporter",
        "controller",
        "webhook",
        "release",
        "debug attribution",
    ] {
        let args: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let output = jouleward(&args);
        let said = out(&output);
        assert!(
            output.status.success() && (said.contains("Examples:") || said.contains("Endpoints:")),
            "{said}"
        );
    }
}

const NOBODY: &str = "{apiVersion: v1, kind: Config, current-context: c,
clusters: [{name: c, cluster: {server: 'http://127.0.0.1:9'}}],
users: [{name: u, user: {}}], contexts: [{name: c, context: {cluster: c, user: u}}]}";

#[test]
fn without_a_cluster_the_cluster_commands_say_so_and_fail() {
    let output = Command::new(env!("CARGO_BIN_EXE_jouleward"))
        .args(["release", "--all-namespaces"])
        .env("KUBECONFIG", "/no/such/file")
        .output()
        .unwrap();
    let said = err(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("set KUBECONFIG to a readable file"), "{said}");
    assert!(said.lines().count() == 1 && said.len() < 400, "{said}");
    // A cluster that does not answer is a failure, not wrong input.
    let folder = std::env::temp_dir().join(format!("jouleward-nobody-{}", std::process::id()));
    std::fs::write(&folder, NOBODY).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_jouleward"))
        .args(["release", "--all-namespaces"])
        .env("KUBECONFIG", &folder)
        .output()
        .unwrap();
    let said = err(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.lines().count() == 1 && said.len() < 400, "{said}");
    std::fs::remove_file(&folder).unwrap();
}
