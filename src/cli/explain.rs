//! `jouleward explain`: the arithmetic of a prediction, phase by phase, each constant with
//! its origin.

use super::arguments::{
    GridArguments, KnowledgeArguments, NodeArguments, WorkloadArguments, check_quantile, gpu,
    oracle, origin, unpredictable, wrong,
};
use super::output::{Format, columns, print};
use crate::budget::{Estimate, Placement, Request};
use crate::law::network::Amount;
use crate::law::{Breakdown, Form, Joules, Law};
use clap::Args;
use serde::Serialize;

/// Explains a prediction: the work of each phase, the joules of each kind, the interval, the
/// grams.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  jouleward explain --model sdxl --gpu NVIDIA-H100-80GB-HBM3 --country SWE
  jouleward explain --model wan2.1-14b --gpu NVIDIA-H100-80GB-HBM3 --gpus 8 -o yaml")]
pub(super) struct Explain {
    #[command(flatten)]
    workload: WorkloadArguments,
    /// GPU product, as nvidia-smi or the node label nvidia.com/gpu.product writes it.
    #[arg(long)]
    gpu: String,
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pods: u32,
    /// GPUs of each pod.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    gpus: u32,
    #[command(flatten)]
    node: NodeArguments,
    #[command(flatten)]
    grid: GridArguments,
    #[command(flatten)]
    knowledge: KnowledgeArguments,
    /// Quantile that a budget would charge.
    #[arg(long, default_value_t = 0.9)]
    quantile: f64,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    model: String,
    gpu: String,
    form: Form,
    origin: String,
    /// Whether idle power is in the energies.
    basis: &'static str,
    /// Calls of the denoiser for one image, and rows of a call.
    calls: f64,
    rows: f64,
    phases: Vec<Phase>,
    energy: Breakdown,
    interval: Interval,
    carbon: Carbon,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Phase {
    name: &'static str,
    teraflops: f64,
    work: Amount,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Interval {
    low: f64,
    high: f64,
    ln_sd: f64,
    degrees_of_freedom: f64,
    runs_of_model: u64,
    outside: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Carbon {
    kilowatt_hours: f64,
    pue: f64,
    pue_source: String,
    grams_per_kwh: f64,
    intensity: String,
    milligrams_median: i64,
    milligrams_charged: i64,
    quantile: f64,
}

impl Explain {
    pub(super) fn run(self) -> anyhow::Result<()> {
        check_quantile(self.quantile)?;
        let product = gpu(&self.gpu)?;
        let oracle = oracle(&self.knowledge, &self.grid)?;
        let request = Request {
            namespace: String::new(),
            workload: self.workload.workload(&oracle.catalogue)?,
            pods: self.pods,
            gpus: self.gpus,
            eligible: vec![product.clone()],
            placement: Placement::default(),
            stack: self.node.stack()?,
        };
        let estimate = oracle
            .estimate(&request, self.quantile)
            .map_err(|error| wrong(unpredictable(error, Some(&self.gpu))))?;
        let law = oracle.law(&product);
        let report = self.report(&estimate, &law);
        // As CSV, the parts of the arithmetic of an image.
        match self.output {
            Format::Csv => print(self.output, &report.energy.parts, |_| String::new()),
            other => print(other, &report, table),
        }
    }

    fn report(&self, estimate: &Estimate, law: &Law) -> Report {
        let prediction = &estimate.prediction;
        let origin = origin(law);
        let phases = estimate.count.phases().into_iter();
        let phases = phases.filter(|(_, work)| work.launches > 0.0);
        Report {
            model: estimate.workload.model.clone(),
            gpu: estimate.gpu.to_string(),
            form: law.form,
            origin,
            basis: estimate.basis.as_str(),
            calls: estimate.count.steps * estimate.count.calls,
            rows: estimate.count.rows / estimate.count.calls,
            phases: phases
                .map(|(name, work)| Phase {
                    name,
                    teraflops: work.flops().tera(),
                    work,
                })
                .collect(),
            energy: law.explain(&estimate.features),
            interval: Interval {
                low: prediction.quantile(0.05).0,
                high: prediction.quantile(0.95).0,
                ln_sd: prediction.ln_sd,
                degrees_of_freedom: prediction.df,
                runs_of_model: prediction.runs_of_model,
                outside: prediction.outside.names().collect(),
            },
            carbon: Carbon {
                kilowatt_hours: prediction.median.kilowatt_hours(),
                pue: estimate.pue.value,
                pue_source: estimate.pue.source.clone(),
                grams_per_kwh: estimate.intensity.grams_per_kwh,
                intensity: estimate.intensity.to_string(),
                milligrams_median: estimate.footprint.median.0,
                milligrams_charged: estimate.footprint.charged.0,
                quantile: self.quantile,
            },
        }
    }
}

fn table(report: &Report) -> String {
    let text = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect();
    let mut work = vec![text(&[
        "PHASE",
        "TFLOP",
        "PRODUCTS",
        "CONVOLUTIONS",
        "ATTENTION",
        "10^9 ELEMENTS",
        "LAUNCHES",
    ])];
    for phase in &report.phases {
        let w = &phase.work;
        let tera = |flops: f64| format!("{:.3}", flops / 1e12);
        work.push(vec![
            phase.name.to_owned(),
            format!("{:.3}", phase.teraflops),
            tera(w.linear),
            tera(w.convolution),
            tera(w.attention),
            format!("{:.2}", w.elements / 1e9),
            format!("{:.0}", w.launches),
        ]);
    }
    let mut energy = vec![text(&[
        "OF AN IMAGE",
        "AMOUNT",
        "",
        "J A UNIT",
        "JOULES",
        "BY",
    ])];
    for part in &report.energy.parts {
        energy.push(vec![
            part.name.to_owned(),
            format!("{:.3}", part.amount),
            part.unit.to_owned(),
            format!("{:.3}", part.constant),
            format!("{:.1}", part.joules),
            part.origin.clone(),
        ]);
    }
    let mut out = format!(
        "{} on {}: {} calls of {} rows an image\n\n{}\n{} law, {}, {}\n{}",
        report.model,
        report.gpu,
        report.calls,
        report.rows,
        columns(&work),
        report.form.as_str(),
        report.origin,
        report.basis,
        columns(&energy)
    );
    for factor in &report.energy.factors {
        out += &format!(
            "times {:.3} for {} ({})\n",
            factor.value, factor.name, factor.origin
        );
    }
    let e = &report.energy;
    out += &format!(
        "= {} an image, times {}, and {} to start ({}), times {}\n= {}\n",
        e.joules_per_image, e.images, e.joules_per_start, e.start_origin, e.starts, e.total
    );
    let i = &report.interval;
    out += &format!(
        "90 % between {} and {}: ln E ± {:.3}, t with {:.0} degrees of freedom, {} runs of this model\n",
        Joules(i.low),
        Joules(i.high),
        i.ln_sd,
        i.degrees_of_freedom,
        i.runs_of_model
    );
    if !i.outside.is_empty() {
        out += &format!(
            "wider, for nothing like it was learnt from in {}\n",
            i.outside.join(", ")
        );
    }
    let c = &report.carbon;
    out += &format!(
        "{:.6} kWh · PUE {:.2} ({}) · {:.0} g/kWh ({}) = {}; p{:.0} = {}\n",
        c.kilowatt_hours,
        c.pue,
        c.pue_source,
        c.grams_per_kwh,
        c.intensity,
        crate::carbon::Milligrams(c.milligrams_median),
        c.quantile * 100.0,
        crate::carbon::Milligrams(c.milligrams_charged)
    );
    out
}
