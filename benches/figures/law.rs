//! Refit of one observation.

use jouleward::law::{
    Catalogue, Features, Form, Gpu, Joules, Law, Observation, Precision, Workload, count,
};
use std::time::Instant;

const RUNS: u32 = 20_000;

pub(crate) fn run() {
    let catalogue = Catalogue::built_in();
    let names: Vec<String> = catalogue.names().map(str::to_owned).collect();
    let runs: Vec<Observation> = (0..60)
        .map(|n: usize| {
            let model = catalogue.get(&names[n % names.len()]).unwrap();
            let workload = Workload {
                model: model.name.clone(),
                width: 512 + 64 * u32::try_from(n % 9).unwrap(),
                height: 512,
                steps: 20,
                guidance_scale: 7.5,
                true_cfg_scale: 1.0,
                precision: if n.is_multiple_of(7) {
                    Precision::Fp32
                } else {
                    Precision::Fp16
                },
                images: 4,
                batch: 1,
                assumed: vec![],
            };
            let features = Features::of_job(&workload, &count(model, &workload), 1, 1);
            let energy = Joules(
                100.0 + 20.0 * features.calls + 4.0 * features.images * features.flops.tera(),
            );
            Observation { features, energy }
        })
        .collect();
    let mut law = Law::prior(
        Form::Additive,
        &Gpu::parse("NVIDIA-A100-SXM4-40GB").unwrap(),
    );
    let start = Instant::now();
    for n in 0..RUNS {
        law.learn(&runs[n as usize % runs.len()]);
    }
    let each = start.elapsed() / RUNS;
    println!(
        "law: refit of one observation {:.1} µs ({} parameters; goal ≤ 20)",
        each.as_secs_f64() * 1e6,
        law.parameters().count()
    );
}
