//! Refit of one observation.

use jouleward::law::{
    Basis, Catalogue, Form, Gpu, Joules, Law, Observation, Precision, Workload, fit,
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
                width: 512 + 64 * u32::try_from(n % 9).unwrap(),
                height: 512,
                steps: 20,
                precision: if n.is_multiple_of(7) {
                    Precision::Fp32
                } else {
                    Precision::Fp16
                },
                images: 4,
                ..Workload::of(model)
            };
            let (_, features) = catalogue.job(&workload, 1, 1).unwrap();
            let energy = Joules(
                100.0 + 20.0 * features.calls + 4.0 * features.images * features.flops.tera(),
            );
            Observation {
                features,
                energy,
                basis: Basis::Gross,
            }
        })
        .collect();
    let mut law = Law::prior(
        Form::default(),
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
    let many: Vec<Observation> = (0..100_000).map(|n| runs[n % runs.len()].clone()).collect();
    let start = Instant::now();
    let fitted = fit(Form::default(), &Gpu::unmeasured(), &many).unwrap();
    println!(
        "law: fit of {} observations {:.2} s (goal ≤ 2)",
        fitted.observations,
        start.elapsed().as_secs_f64()
    );
    let start = Instant::now();
    let mut sum = 0.0;
    for n in 0..RUNS {
        sum += law
            .predict(&runs[n as usize % runs.len()].features)
            .median
            .0;
    }
    println!(
        "law: prediction {:.2} µs (goal ≤ 5), state {} bytes (goal ≤ 4096), {:.0} J in all",
        start.elapsed().as_secs_f64() * 1e6 / f64::from(RUNS),
        law.save().len(),
        sum
    );
}
