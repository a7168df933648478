//! The law on the command line: explain, plan, score, plot, model, and what predict reads.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn jouleward(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_jouleward"))
        .args(args)
        .output()
        .unwrap()
}

/// What a command prints where it succeeds.
fn said(args: &[&str]) -> String {
    let output = jouleward(args);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {err}");
    String::from_utf8(output.stdout).unwrap()
}

/// What a command says where its input is wrong: one sentence, and exit code 2.
fn refused(args: &[&str]) -> String {
    let output = jouleward(args);
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {err}");
    assert_eq!(err.lines().count(), 1, "{args:?}: {err}");
    err
}

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("jouleward-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

const SDXL: &[&str] = &[
    "--model",
    "sdxl",
    "--num-inference-steps",
    "30",
    "--num-images",
    "4",
];
const H100: &[&str] = &[
    "--gpu",
    "NVIDIA-H100-80GB-HBM3",
    "--intensity",
    "400",
    "--pue",
    "1.2",
];

#[test]
fn an_explanation_shows_each_constant_and_adds_up() {
    insta::assert_snapshot!("explain", said(&[&["explain"], SDXL, H100].concat()));
    let json = said(&[&["explain", "-o", "json"], SDXL, H100].concat());
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    let energy = &report["energy"];
    let sum = |list: &serde_json::Value, key: &str| -> Vec<f64> {
        let list = list.as_array().unwrap().iter();
        list.map(|item| item[key].as_f64().unwrap()).collect()
    };
    let parts: f64 = sum(&energy["parts"], "joules").iter().sum();
    let factors: f64 = sum(&energy["factors"], "value").iter().product();
    let image = energy["joulesPerImage"].as_f64().unwrap();
    assert!((parts * factors / image - 1.0).abs() < 1e-9);
    let start = energy["joulesPerStart"].as_f64().unwrap();
    let total = energy["total"].as_f64().unwrap();
    assert!(((4.0 * image + start) / total - 1.0).abs() < 1e-9);
    let csv = said(&[&["explain", "-o", "csv"], SDXL, H100].concat());
    assert!(
        csv.starts_with("name,amount,unit,constant,joules,origin\nmatrix products,"),
        "{csv}"
    );
    // And it is what is predicted.
    let predicted = said(&[&["predict", "-o", "json"], SDXL, H100].concat());
    let predicted: serde_json::Value = serde_json::from_str(&predicted).unwrap();
    assert!((predicted["joulesMedian"].as_f64().unwrap() - total).abs() < 0.1);
}

#[test]
fn a_plan_compares_and_marks_what_nothing_beats() {
    let args = [
        "plan",
        "--model",
        "flux.1-dev",
        "--images-per-hour",
        "500",
        "--steps",
        "20,28",
        "--precisions",
        "bf16,fp8",
        "--gpus",
        "NVIDIA-L4,NVIDIA-H100-80GB-HBM3",
        "--intensity",
        "400",
        "--pue",
        "1.2",
    ];
    insta::assert_snapshot!("plan", said(&args));
    let json = said(&[&args[..], &["-o", "json"]].concat());
    let choices: Vec<serde_json::Value> = serde_json::from_str(&json).unwrap();
    assert!(choices.iter().any(|choice| choice["pareto"] == true));
    // Two steps counts, two products, two precisions; 12 billion weights of 2 bytes do not
    // fit 24 GB.
    assert_eq!(choices.len(), 6);
    let csv = said(&[&args[..], &["-o", "csv"]].concat());
    assert_eq!(csv.lines().count(), 7);
    assert!(refused(&["plan", "--model", "sdxl", "--images-per-hour", "0"]).contains("500"));
    let none = [
        "plan",
        "--model",
        "sdxl",
        "--images-per-hour",
        "9",
        "--max-joules",
        "1",
    ];
    assert!(refused(&none).contains("raise --max-joules"));
    let size = [
        "plan",
        "--model",
        "sdxl",
        "--images-per-hour",
        "9",
        "--sizes",
        "big",
    ];
    assert!(refused(&size).contains("1024x768"));
    let gpu = [
        "plan",
        "--model",
        "sdxl",
        "--images-per-hour",
        "9",
        "--gpus",
        "abacus",
    ];
    assert!(refused(&gpu).contains("no data sheet"));
}

const JOBS: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: not-work}
---
apiVersion: batch/v1
kind: Job
metadata:
  name: posters
  annotations: {jouleward.dev/model: sdxl, jouleward.dev/num-images: '10'}
spec:
  parallelism: 2
  completions: 2
  template:
    metadata:
      annotations: {jouleward.dev/num-inference-steps: '20'}
    spec:
      nodeSelector: {nvidia.com/gpu.product: NVIDIA-L40S}
      containers:
      - {name: c, image: i, resources: {limits: {nvidia.com/gpu: '1'}}}
";

#[test]
fn a_manifest_is_predicted_as_admission_reads_it() {
    let folder = folder("manifest");
    let path = folder.join("jobs.yaml");
    std::fs::write(&path, JOBS).unwrap();
    let file = path.to_str().unwrap();
    let json = said(&["predict", "-f", file, "-o", "json"]);
    let reports: Vec<serde_json::Value> = serde_json::from_str(&json).unwrap();
    assert_eq!(reports.len(), 1);
    assert_eq!(reports[0]["name"], "job/posters");
    assert_eq!(reports[0]["gpu"], "l40s");
    assert_eq!(reports[0]["images"], 20);
    std::fs::write(&path, JOBS.replace("'20'", "twenty")).unwrap();
    let why = refused(&["predict", "-f", file]);
    assert!(
        why.contains("job/posters") && why.contains("twenty"),
        "{why}"
    );
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_table_of_workloads_is_predicted_line_by_line() {
    let folder = folder("table");
    let path = folder.join("jobs.csv");
    let header = "model,gpu,width,height,num_inference_steps,num_images,num_frames";
    let rows =
        "sdxl,NVIDIA-L40S,1024,1024,30,5,\nwan2.1-1.3b,NVIDIA-H100-80GB-HBM3,832,480,50,1,81";
    std::fs::write(&path, format!("{header}\n{rows}\n")).unwrap();
    let file = path.to_str().unwrap();
    let csv = said(&["predict", "--table", file, "-o", "csv"]);
    assert_eq!(csv.lines().count(), 3, "{csv}");
    assert!(csv.contains("line 3"), "{csv}");
    std::fs::write(
        &path,
        format!("{header}\nsdxl,NVIDIA-L40S,1024,1024,30,5,16\n"),
    )
    .unwrap();
    let why = refused(&["predict", "--table", file]);
    assert!(
        why.contains("line 2") && why.contains("num-frames"),
        "{why}"
    );
    std::fs::remove_dir_all(folder).unwrap();
}

/// A pipeline on disk as `diffusers` saves it; the fields are those of SDXL's own files.
fn pipeline(folder: &Path, unet: &str) {
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write(
        "model_index.json",
        r#"{"_class_name": "StableDiffusionXLPipeline", "_diffusers_version": "0.30.0",
            "scheduler": ["diffusers", "EulerDiscreteScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"], "image_encoder": [null, null]}"#,
    );
    write("unet/config.json", unet);
    write(
        "vae/config.json",
        r#"{"_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512],
            "latent_channels": 4, "layers_per_block": 2}"#,
    );
    write(
        "text_encoder/config.json",
        r#"{"architectures": ["CLIPTextModel"], "hidden_size": 768, "intermediate_size": 3072,
            "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 77}"#,
    );
    write(
        "text_encoder_2/config.json",
        r#"{"architectures": ["CLIPTextModelWithProjection"], "hidden_size": 1280,
            "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
            "projection_dim": 1280, "max_position_embeddings": 77}"#,
    );
}

const UNET: &str = r#"{"_class_name": "UNet2DConditionModel", "sample_size": 128,
    "block_out_channels": [320, 640, 1280], "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": true,
    "addition_embed_type": "text_time", "projection_class_embeddings_input_dim": 2816,
    "class_embed_type": null}"#;

#[test]
fn a_model_on_disk_becomes_an_entry_that_costs_what_it_costs() {
    let folder = folder("import");
    pipeline(&folder, UNET);
    let disk = folder.to_str().unwrap();
    let entry = said(&["model", "import", disk, "--name", "our-sdxl"]);
    let path = folder.join("ours.yaml");
    std::fs::write(&path, &entry).unwrap();
    let of = |model: &str| -> serde_json::Value {
        let args = [
            "predict",
            "--gpu",
            "NVIDIA-L40S",
            "-o",
            "json",
            "--model",
            model,
        ];
        let own = ["--catalogue", path.to_str().unwrap()];
        serde_json::from_str(&said(&[&args[..], &own].concat())).unwrap()
    };
    let (ours, known) = (of("our-sdxl"), of("sdxl"));
    for figure in [
        "teraflopsText",
        "teraflopsDenoising",
        "teraflopsDecoding",
        "joulesMedian",
    ] {
        assert_eq!(ours[figure], known[figure], "{figure}");
    }
    insta::assert_snapshot!("import", entry);
    // The same as an object of the cluster.
    let object = said(&["model", "import", disk, "--name", "our-sdxl", "--manifest"]);
    assert!(object.contains("kind: DiffusionModel") && object.contains("UNet2DConditionModel"));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_configuration_that_cannot_be_counted_is_named_by_field() {
    let folder = folder("misread");
    let disk = folder.to_str().unwrap().to_owned();
    for (unet, words) in [
        (
            UNET.replace("UNet2DConditionModel", "UNet2DConditonModel"),
            "UNet2DConditonModel",
        ),
        (UNET.replace("[320, 640, 1280]", "[]"), "block_out_channels"),
        (
            UNET.replace("\"layers_per_block\": 2", "\"layers_per_block\": \"two\""),
            "UNet2DConditionModel",
        ),
        (UNET.replace("2048", "-2048"), "positive"),
        ("{".to_owned(), "no JSON"),
    ] {
        pipeline(&folder, &unet);
        let why = refused(&["model", "import", &disk]);
        assert!(why.contains(words), "{words}: {why}");
    }
    assert!(refused(&["model", "import", "/no/such/model"]).contains("diffusers"));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn the_catalogue_is_listed_with_the_work_of_a_pass() {
    insta::assert_snapshot!("models", said(&["model", "list"]));
}

/// Runs of three models at four step counts, as a law of its own has them.
fn runs(folder: &Path) -> String {
    let mut text = "model,gpu,width,height,steps,energy_joules_per_image,cfg\n".to_owned();
    for (model, joules) in [("sd1.5", 600), ("sdxl", 1500), ("pixart-sigma", 1100)] {
        for steps in [10, 20, 30, 40] {
            let row = joules * steps / 20;
            text += &format!("{model},NVIDIA L40S,1024,1024,{steps},{row},true\n");
        }
    }
    let path = folder.join("runs.csv");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// What an exporter and kube-state-metrics say of pods: three that made pictures and ended
/// well, one that still runs, one of which nothing is annotated.
fn pods_as_metrics() -> String {
    let mut text = String::new();
    let mut add = |line: String| text += &format!("{line}\n");
    for (uuid, sharing) in [("GPU-1", "exclusive"), ("GPU-2", "time-slicing")] {
        add(format!(
            "jouleward_gpu_info{{node=\"n\",gpu_uuid=\"{uuid}\",model=\"NVIDIA L40S\",driver_version=\"550.54.15\",sharing=\"{sharing}\"}} 1"
        ));
        let gpu = format!("{{node=\"n\",gpu_uuid=\"{uuid}\"}}");
        add(format!("jouleward_gpu_power_limit_watts{gpu} 280"));
        add(format!("jouleward_gpu_power_limit_default_watts{gpu} 350"));
    }
    for (number, (model, joules)) in [
        ("sdxl", 9000),
        ("sdxl", 9100),
        ("sd1.5", 3000),
        ("sdxl", 10),
        ("", 5000),
        ("sdxl", 4000),
        ("sdxl", 8000),
        ("sdxl", 40),
    ]
    .iter()
    .enumerate()
    {
        let pod = format!("namespace=\"team\",pod=\"p{number}\",uid=\"uid-{number}\"");
        // One stood beside another pod, one was gone in half a second.
        let gpu = if number == 6 { "GPU-2" } else { "GPU-1" };
        let end = if number == 7 { 100.5 } else { 160.0 };
        add(format!("kube_pod_start_time{{{pod}}} 100"));
        add(format!("kube_pod_completion_time{{{pod}}} {end}"));
        add(format!(
            "jouleward_pod_gpu_energy_joules_total{{{pod},gpu_uuid=\"{gpu}\",container=\"c\",component=\"active\"}} {joules}"
        ));
        let succeeded = u8::from(number != 3);
        add(format!(
            "kube_pod_status_phase{{{pod},phase=\"Succeeded\"}} {succeeded}"
        ));
        let said = if model.is_empty() {
            String::new()
        } else {
            format!(
                ",annotation_jouleward_dev_model=\"{model}\",annotation_jouleward_dev_num_images=\"5\",annotation_jouleward_dev_num_inference_steps=\"30\""
            )
        };
        // The last says not how many it made together.
        let said = if model.is_empty() || number == 5 {
            said
        } else {
            format!("{said},annotation_jouleward_dev_batch_size=\"1\"")
        };
        add(format!("kube_pod_annotations{{{pod}{said}}} 1"));
    }
    text
}

#[test]
fn a_real_prometheus_server_is_fitted_from_by_what_its_pods_burned_and_said() {
    use harness::prometheus::Prometheus;
    use std::time::Duration;
    let folder = folder("fit-prometheus");
    crate::support::runtime().block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap().to_string();
        let mut serving = tokio::task::JoinSet::new();
        serving.spawn(async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut asked = [0; 4096];
                let _ = stream.read(&mut asked).await;
                let body = pods_as_metrics();
                let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
            }
        });
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap().to_string();
        drop(free);
        let rules = serde_json::json!({ "groups": [] });
        let pause = Duration::from_millis(500);
        let _server =
            Prometheus::start(&folder, "server", &address, pause, &[target], &rules).unwrap();
        let url = format!("http://{address}");
        let fitted = harness::eventually("two models' runs", Duration::from_secs(30), || async {
            let args = ["fit", "--prometheus", &url, "--range", "1h", "-o", "json"];
            let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_jouleward"))
                .args(args)
                .output()
                .await?;
            let report: serde_json::Value =
                serde_json::from_slice(&output.stdout).unwrap_or_default();
            let whole = report["leftOut"].as_array().is_some_and(|left| left.len() == 4);
            Ok((output.status.success() && whole).then_some(report))
        })
        .await
        .unwrap();
        serving.abort_all();
        let law = &fitted["laws"][0];
        assert_eq!(law["gpu"], "l40s");
        // The one that still runs is no run; the one that says nothing is named.
        assert_eq!(law["inSample"]["runs"], 3);
        let why = fitted["leftOut"][0]["why"].as_str().unwrap();
        assert!(why.contains("team/p4") && why.contains("allowlist"), "{why}");
        let why = fitted["leftOut"][1]["why"].as_str().unwrap();
        assert!(why.contains("team/p5") && why.contains("batch-size"), "{why}");
        let why = fitted["leftOut"][2]["why"].as_str().unwrap();
        assert!(why.contains("team/p6") && why.contains("shared"), "{why}");
        let why = fitted["leftOut"][3]["why"].as_str().unwrap();
        assert!(why.contains("team/p7") && why.contains("under 1 s"), "{why}");
        assert!(law["parameters"]["driver/550"].is_number(), "{law}");
        let limit = law["usualPowerLimit"].as_f64().unwrap();
        assert!((0.8..0.9).contains(&limit), "{law}");
    });
    assert!(refused(&["fit", "--prometheus", "https://x", "--range", "1h"]).contains("http://"));
    assert!(refused(&["fit", "--prometheus", "http://x", "--range", "soon"]).contains("7d"));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn the_scoreboard_sets_the_forms_side_by_side() {
    let folder = folder("score");
    let data = runs(&folder);
    let table = said(&["score", &data]);
    insta::assert_snapshot!("score", table);
    for words in [
        "Roofline",
        "Additive",
        "Paper",
        "leave one model out",
        "after 1 own runs",
    ] {
        assert!(table.contains(words), "{words}: {table}");
    }
    let page = said(&["score", &data, "--markdown"]);
    assert!(
        page.contains("## Misses") && page.contains("| sdxl |"),
        "{page}"
    );
    let csv = said(&["score", &data, "-o", "csv"]);
    assert!(csv.starts_with("data,split,form,"), "{csv}");
    std::fs::remove_dir_all(folder).unwrap();
}

/// What stands written in a picture.
fn texts(svg: &str) -> String {
    let parts = svg.split("<text").skip(1).filter_map(|part| {
        let (_, rest) = part.split_once('>')?;
        rest.split_once("</text>").map(|(text, _)| text.trim())
    });
    parts.collect::<Vec<_>>().join("\n")
}

#[test]
fn pictures_are_drawn_as_svg_and_png_without_fonts_of_the_system() {
    let folder = folder("plot");
    let data = runs(&folder);
    let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    said(&["plot", &data, "--out", &at("fit.svg")]);
    said(&[
        "plot",
        &data,
        "--kind",
        "residuals",
        "--out",
        &at("residuals.png"),
    ]);
    let law = ["--model", "sdxl", "--gpu", "NVIDIA-L40S"];
    said(
        &[
            &["plot", "--kind", "steps", "--out", &at("steps.svg")],
            &law[..],
        ]
        .concat(),
    );
    said(
        &[
            &["plot", "--kind", "size", "--out", &at("size.png")],
            &law[..],
        ]
        .concat(),
    );
    let svg = std::fs::read_to_string(at("fit.svg")).unwrap();
    insta::assert_snapshot!("plot", texts(&svg));
    assert!(
        svg.contains("measured, J an image") && svg.contains("<circle"),
        "{svg}"
    );
    for png in ["residuals.png", "size.png"] {
        let bytes = std::fs::read(at(png)).unwrap();
        assert!(
            bytes.starts_with(b"\x89PNG") && bytes.len() > 5_000,
            "{png}"
        );
    }
    assert!(refused(&["plot", &data, "--out", &at("fit.jpeg")]).contains(".svg nor .png"));
    assert!(refused(&["plot", "--out", &at("fit.svg")]).contains("runs.csv"));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_law_fitted_on_one_product_speaks_of_another_by_data_sheets() {
    let folder = folder("carry");
    let data = runs(&folder);
    let laws = folder.join("laws");
    said(&["fit", &data, "--save", laws.to_str().unwrap()]);
    let law = laws.join("l40s.json");
    let args = [
        "predict",
        "--model",
        "sdxl",
        "--gpu",
        "NVIDIA-RTX-6000-Ada-Generation",
    ];
    let own = ["--law", law.to_str().unwrap(), "-o", "json"];
    let prediction = said(&[&args[..], &own].concat());
    assert!(
        prediction.contains("carried over from another product"),
        "{prediction}"
    );
    // The same out of an EnergyLaw object.
    let state = std::fs::read_to_string(&law).unwrap();
    let object = serde_json::json!({"kind": "EnergyLaw", "spec": {"gpu": "NVIDIA-L40S"}, "status": {"state": state}});
    let path = folder.join("object.yaml");
    std::fs::write(&path, serde_yaml::to_string(&object).unwrap()).unwrap();
    let own = ["--law", path.to_str().unwrap(), "-o", "json"];
    assert_eq!(said(&[&args[..], &own].concat()), prediction);
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_fit_reads_as_a_table_and_what_a_cluster_has_learnt_as_the_same() {
    let folder = folder("fit");
    let data = runs(&folder);
    let laws = folder.join("laws");
    let table = said(&["fit", &data, "--save", laws.to_str().unwrap()]);
    insta::assert_snapshot!("fit", table);
    let csv = said(&["fit", &data, "-o", "csv"]);
    let head = csv.lines().next().unwrap();
    assert!(
        head.starts_with("gpu,form,basis,runs,models,")
            && head.contains("parameters.teraflop")
            && head.contains("leaveOneModelOut.mape"),
        "{head}"
    );
    let cells = |line: &str| {
        csv::ReaderBuilder::new()
            .has_headers(false)
            .from_reader(line.as_bytes())
            .records()
            .next()
            .unwrap()
            .unwrap()
            .len()
    };
    assert_eq!(csv.lines().count(), 4, "a line a law");
    assert!(csv.lines().all(|line| cells(line) == cells(head)), "{csv}");
    let state = std::fs::read_to_string(laws.join("l40s.json")).unwrap();
    let object = serde_json::json!({"kind": "List", "items": [
        {"kind": "EnergyLaw", "spec": {"gpu": "NVIDIA-L40S"}, "status": {"state": state}},
        {"kind": "EnergyLaw", "spec": {"gpu": "NVIDIA-A40"}},
    ]});
    let path = folder.join("laws.yaml");
    std::fs::write(&path, serde_yaml::to_string(&object).unwrap()).unwrap();
    let again = folder.join("again");
    let args = [
        "fit",
        path.to_str().unwrap(),
        "--save",
        again.to_str().unwrap(),
    ];
    let learnt = said(&args);
    insta::assert_snapshot!("fit_of_objects", learnt);
    assert_eq!(
        std::fs::read_to_string(again.join("l40s.json")).unwrap(),
        state,
        "what was saved is what is saved again"
    );
    std::fs::write(&path, "kind: ConfigMap\n").unwrap();
    assert!(refused(&args).contains("kubectl get energylaws"));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_fit_of_too_little_says_what_it_does_not_know() {
    let folder = folder("little");
    let path = folder.join("runs.csv");
    let row = "sdxl,NVIDIA L40S,1024,1024,20,1500,true\n";
    let head = "model,gpu,width,height,steps,energy_joules_per_image,cfg\n";
    std::fs::write(&path, format!("{head}{row}{row}")).unwrap();
    let table = said(&["fit", path.to_str().unwrap()]);
    assert!(table.contains("1 different runs for the"), "{table}");
    assert!(table.contains("all 2 runs have the same energy"), "{table}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn the_stack_that_a_law_has_met_is_asked_for_on_the_command_line() {
    let folder = folder("stack");
    let path = folder.join("runs.csv");
    let mut text =
        "model,gpu,width,height,steps,energy_joules_per_image,cfg,software,driver,power_limit\n"
            .to_owned();
    for model in ["sd1.5", "sdxl", "pixart-sigma"] {
        for steps in [10, 20, 30, 40] {
            for (stack, times) in [
                ("eager,535.1,1", 1.0),
                ("compiled,550.2,1", 0.7),
                ("eager,535.1,0.5", 0.8),
            ] {
                let joules = f64::from(steps) * 60.0 * times;
                text += &format!("{model},NVIDIA L40S,1024,1024,{steps},{joules},true,{stack}\n");
            }
        }
    }
    std::fs::write(&path, text).unwrap();
    let laws = folder.join("laws");
    said(&[
        "fit",
        path.to_str().unwrap(),
        "--save",
        laws.to_str().unwrap(),
    ]);
    let law = laws.join("l40s.json");
    let joules = |more: &[&str]| -> f64 {
        let args = [
            "predict",
            "--model",
            "sdxl",
            "--gpu",
            "NVIDIA-L40S",
            "-o",
            "json",
            "--law",
            law.to_str().unwrap(),
        ];
        let report: serde_json::Value =
            serde_json::from_str(&said(&[&args[..], more].concat())).unwrap();
        report["joulesMedian"].as_f64().unwrap()
    };
    let eager = joules(&[
        "--software",
        "eager",
        "--driver",
        "535",
        "--power-limit",
        "1",
    ]);
    let compiled = joules(&[
        "--software",
        "compiled",
        "--driver",
        "550.54.15",
        "--power-limit",
        "1",
    ]);
    let limited = joules(&[
        "--software",
        "eager",
        "--driver",
        "535",
        "--power-limit",
        "0.5",
    ]);
    assert!(
        (0.65..0.8).contains(&(compiled / eager)),
        "{compiled} beside {eager}"
    );
    assert!(
        (0.75..0.9).contains(&(limited / eager)),
        "{limited} beside {eager}"
    );
    let args = ["predict", "--model", "sdxl", "--gpu", "NVIDIA-L40S"];
    for (flag, value, words) in [
        ("--driver", "..", "550.54.15"),
        ("--power-limit", "70", "0.05 to 2"),
        ("--software", "a b", "letters"),
    ] {
        let why = refused(&[&args[..], &[flag, value]].concat());
        assert!(why.contains(words), "{why}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn pipelines_of_other_shapes_are_imported_and_cost_what_the_catalogue_says() {
    let folder = folder("shapes");
    let index = |class: &str, denoiser: &str, network: &str| {
        format!(
            r#"{{"_class_name": "{class}", "{denoiser}": ["diffusers", "{network}"], "scheduler": ["diffusers", "S"]}}"#
        )
    };
    let cascade = r#"{"_class_name": "StableCascadeUNet", "in_channels": 4, "out_channels": 4,
        "patch_size": 2, "conditioning_dim": 1280, "block_out_channels": [320, 640, 1280, 1280],
        "num_attention_heads": [0, 0, 20, 20], "down_num_layers_per_block": [2, 6, 28, 6],
        "up_num_layers_per_block": [6, 28, 6, 2], "down_blocks_repeat_mappers": [1, 1, 1, 1],
        "up_blocks_repeat_mappers": [3, 3, 2, 2], "effnet_in_channels": 16,
        "block_types_per_layer": [["SDCascadeResBlock", "SDCascadeTimestepBlock"],
            ["SDCascadeResBlock", "SDCascadeTimestepBlock"],
            ["SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"],
            ["SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"]],
        "pixel_mapper_in_channels": 3, "timestep_conditioning_type": ["sca"]}"#;
    let class = |network: &str| format!(r#"{{"_class_name": "{network}"}}"#);
    let cases = [
        (
            "stable-cascade",
            "StableCascadeDecoderPipeline",
            "decoder",
            "StableCascadeUNet",
            cascade.to_owned(),
        ),
        (
            "flux.2-dev",
            "Flux2Pipeline",
            "transformer",
            "Flux2Transformer2DModel",
            class("Flux2Transformer2DModel"),
        ),
        (
            "z-image-turbo",
            "ZImagePipeline",
            "transformer",
            "ZImageTransformer2DModel",
            class("ZImageTransformer2DModel"),
        ),
        (
            "auraflow",
            "AuraFlowPipeline",
            "transformer",
            "AuraFlowTransformer2DModel",
            class("AuraFlowTransformer2DModel"),
        ),
    ];
    for (known, pipeline, denoiser, network, config) in cases {
        let disk = folder.join(known);
        std::fs::create_dir_all(disk.join(denoiser)).unwrap();
        std::fs::write(
            disk.join("model_index.json"),
            index(pipeline, denoiser, network),
        )
        .unwrap();
        std::fs::write(disk.join(denoiser).join("config.json"), config).unwrap();
        let entry = said(&["model", "import", disk.to_str().unwrap(), "--name", "ours"]);
        let path = folder.join("ours.yaml");
        std::fs::write(&path, &entry).unwrap();
        let of = |model: &str| -> serde_json::Value {
            let args = [
                "predict",
                "--gpu",
                "NVIDIA-L40S",
                "-o",
                "json",
                "--model",
                model,
                "--width",
                "1024",
                "--height",
                "1024",
                "--num-inference-steps",
                "20",
                "--guidance-scale",
                "4",
                "--catalogue",
                path.to_str().unwrap(),
            ];
            serde_json::from_str(&said(&args)).unwrap()
        };
        assert_eq!(
            of("ours")["teraflopsDenoising"],
            of(known)["teraflopsDenoising"],
            "{known}"
        );
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn what_a_table_says_twice_or_in_the_wrong_unit_is_refused_in_words() {
    let folder = folder("twice");
    let path = folder.join("runs.csv");
    let file = path.to_str().unwrap();
    let with = |text: &str| {
        std::fs::write(&path, text).unwrap();
        refused(&["fit", file])
    };
    let head = "model,gpu,width,height,steps,energy_joules_per_image";
    let twice = with(&format!("{head},model\nsdxl,A100,1024,1024,25,900,sd2\n"));
    assert!(twice.contains("column model is there twice"), "{twice}");
    let two = with(&format!(
        "{head},energy_wh_per_image\nsdxl,A100,1024,1024,25,900,900\n"
    ));
    assert!(
        two.contains("energy_joules_per_image and energy_wh_per_image"),
        "{two}"
    );
    let parted = with(
        "model;gpu;width;height;steps;energy_joules_per_image\nsdxl;A100;1024;1024;25;900,5\n",
    );
    assert!(parted.contains("semicolons"), "{parted}");
    let milli = with(&format!("{head}\nsdxl,A100,1024,1024,25,900000\n"));
    assert!(milli.contains("more than any GPU uses"), "{milli}");
    let lines = folder.join("runs.jsonl");
    std::fs::write(
        &lines,
        r#"{"model":"sdxl","gpu":"A100","width":1024,"height":1024,"steps":25,"energy":900}"#,
    )
    .unwrap();
    let unit = refused(&["fit", lines.to_str().unwrap()]);
    assert!(unit.contains("names no unit"), "{unit}");
    let sdxl = ["predict", "--model", "sdxl", "--gpu", "NVIDIA-L40S"];
    for (flag, value, words) in [
        ("--guidance-scale", "-3", "0 to 100"),
        ("--intensity", "-4", "--intensity"),
        ("--denoising-end", "0.8", "--refiner"),
    ] {
        let why = refused(&[&sdxl[..], &[flag, value]].concat());
        assert!(why.contains(words) && !why.contains("unexpected"), "{why}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_law_that_is_fitted_on_counts_the_runs_before_and_says_what_it_forgets() {
    let folder = folder("fitted-on");
    let data = runs(&folder);
    let (once, twice) = (folder.join("once"), folder.join("twice"));
    said(&["fit", &data, "--save", once.to_str().unwrap()]);
    let law = once.join("l40s.json");
    said(&[
        "fit",
        &data,
        "--law",
        law.to_str().unwrap(),
        "--save",
        twice.to_str().unwrap(),
    ]);
    let state = std::fs::read_to_string(twice.join("l40s.json")).unwrap();
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    assert_eq!(state["observations"], 24);
    let mut text = "model,gpu,width,height,steps,energy_joules_per_image,cfg\n".to_owned();
    for model in [
        "sd1.5",
        "sd2",
        "sdxl",
        "ssd-1b",
        "pixart-sigma",
        "flux.1-dev",
        "sd3-medium",
        "sd3.5-large",
        "sana1.5-1.6b",
        "qwen-image",
        "kandinsky-3",
        "lumina2",
        "auraflow",
        "z-image",
        "chroma",
        "hunyuandit-1.2",
        "cogview4-6b",
        "flux.2-dev",
    ] {
        text += &format!("{model},NVIDIA L40S,1024,1024,20,1500,true\n");
    }
    let many = folder.join("many.csv");
    std::fs::write(&many, text).unwrap();
    let table = said(&["fit", many.to_str().unwrap()]);
    assert!(
        table.contains("a law keeps 20 levels") && table.contains("sd1.5"),
        "{table}"
    );
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_law_net_of_idle_says_so_wherever_it_speaks() {
    let folder = folder("net");
    let path = folder.join("runs.csv");
    let mut text = "model,gpu,width,height,steps,energy_joules_per_image,cfg,basis\n".to_owned();
    for steps in [10, 20, 30, 40] {
        text += &format!(
            "sdxl,NVIDIA L40S,1024,1024,{steps},{},true,net\n",
            steps * 60
        );
    }
    std::fs::write(&path, text).unwrap();
    said(&[
        "fit",
        path.to_str().unwrap(),
        "--save",
        folder.to_str().unwrap(),
    ]);
    let law = folder.join("l40s.json");
    for command in ["predict", "explain"] {
        let args = [
            command,
            "--model",
            "sdxl",
            "--gpu",
            "NVIDIA-L40S",
            "--law",
            law.to_str().unwrap(),
        ];
        assert!(said(&args).contains("net of idle"), "{command}");
        let json: serde_json::Value =
            serde_json::from_str(&said(&[&args[..], &["-o", "json"]].concat())).unwrap();
        assert_eq!(json["basis"], "net of idle", "{command}");
    }
    let law = law.to_str().unwrap();
    let gpus = ["--gpus", "NVIDIA-L40S,NVIDIA-L4"];
    let hour = [
        "plan",
        "--model",
        "sdxl",
        "--images-per-hour",
        "10",
        "--law",
        law,
    ];
    let mixed = refused(&[&hour[..], &gpus[..]].concat());
    assert!(mixed.contains("net of idle power"), "{mixed}");
    said(&[&hour[..], &["--gpus", "NVIDIA-L40S"]].concat());
    std::fs::remove_dir_all(folder).unwrap();
}

/// TFLOPs of denoising of a job of one picture.
fn denoising(args: &[&str]) -> f64 {
    let fixed = ["explain", "--gpu", "NVIDIA-L40S", "-o", "json", "--model"];
    let json: serde_json::Value =
        serde_json::from_str(&said(&[&fixed[..], args].concat())).unwrap();
    let phases = json["phases"].as_array().unwrap().clone();
    let phase = phases.iter().find(|phase| phase["name"] == "denoising");
    phase.unwrap()["teraflops"].as_f64().unwrap()
}

#[test]
fn what_is_charged_is_what_the_pipeline_runs_whatever_is_asked() {
    let of = |model: &str, side: &str, more: &[&str]| {
        denoising(&[&[model, "--width", side, "--height", side][..], more].concat())
    };
    let off = &["--use-resolution-binning", "false"];
    for model in ["pixart-sigma", "sana1.5-1.6b"] {
        let usual = of(model, "1024", &[]);
        for side in ["256", "512", "2048"] {
            assert!(
                (of(model, side, &[]) / usual - 1.0).abs() < 1e-9,
                "{model} {side}"
            );
        }
        assert!(of(model, "512", off) < 0.4 * usual, "{model}");
        assert!(of(model, "2048", off) > 2.0 * usual, "{model}");
    }
    // One of its shapes is made as it is.
    let wide = ["hunyuandit-1.2", "--width", "1024", "--height", "768"];
    assert!(denoising(&wide) < 0.8 * of("hunyuandit-1.2", "1024", &[]));
    // Guidance is an embedding of a latent consistency model, and two passes of a LoRA of one.
    let guided = ["--guidance-scale", "8"];
    let (model, lora) = (
        of("lcm-sdxl", "1024", &guided),
        of("lcm-lora-sdxl", "1024", &guided),
    );
    assert!((lora / model - 2.0).abs() < 1e-6, "{lora} {model}");
    // A video of eighty frames is one of 81.
    let frames = |n: &str| denoising(&["wan2.1-1.3b", "--num-frames", n]);
    assert!((frames("80") / frames("81") - 1.0).abs() < 1e-9);
    let sizes = |model: &str| denoising(&[model]);
    assert!(sizes("stabilityai/stable-diffusion-2-1-base") < 0.5 * sizes("sd2"));
    let unknown = refused(&[
        "plot",
        "--kind",
        "steps",
        "--model",
        "sdxl",
        "--gpu",
        "nope",
        "--out",
        "/tmp/x.svg",
    ]);
    assert!(unknown.contains("nope"), "{unknown}");
}
