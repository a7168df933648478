//! From a request to grams: which model, which GPU, which law, which grid.

use super::placement::{Fleet, Placement};
use crate::carbon::{Footprint, Intensity, Milligrams, Pue};
use crate::law::{
    Basis, Catalogue, Count, Features, Form, GPU_EXAMPLES, Gpu, Law, Prediction, Stack, Workload,
};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Spread of what a suspect namespace's jobs burn beside its mean, in ln.
const SUSPECT_SD: f64 = 0.2;

/// What a job asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Whose annotations these are; empty where no cluster is asked.
    pub namespace: String,
    pub workload: Workload,
    /// Pods that each generate the workload's images.
    pub pods: u32,
    /// GPUs of each pod.
    pub gpus: u32,
    /// GPU products the job may land on; empty = any the cluster has.
    pub eligible: Vec<Gpu>,
    /// What it asks of its node beside the product: among the cluster's nodes it decides.
    pub placement: Placement,
    /// Driver and power limit where they are known; the software is the workload's.
    pub stack: Stack,
}

/// A GPU product where it stands: under which grid.
#[derive(Debug, Clone, PartialEq)]
pub struct Site {
    pub gpu: Gpu,
    pub intensity: Intensity,
    pub pue: Pue,
}

/// All that predictions are made from.
#[derive(Debug, Clone)]
pub struct Oracle {
    pub catalogue: Catalogue,
    pub laws: BTreeMap<Gpu, Law>,
    /// Namespaces whose annotations do not fit what they burn, and by which factor.
    pub suspects: BTreeMap<(Gpu, String), f64>,
    pub sites: Vec<Site>,
    /// Which nodes stand at which of the sites.
    pub fleet: Fleet,
    /// Where no node is known yet, or none is eligible.
    pub fallback: (Intensity, Pue),
}

/// What a job is predicted to cost.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimate {
    pub workload: Workload,
    pub count: Count,
    pub features: Features,
    pub gpu: Gpu,
    pub form: Form,
    pub observations: u64,
    /// Of the law's energies; budgets charge gross ones, as boards draw them.
    pub basis: Basis,
    pub prediction: Prediction,
    pub footprint: Footprint,
    pub intensity: Intensity,
    pub pue: Pue,
    /// True where several products were eligible and the dearest was taken.
    pub dearest: bool,
    /// What the namespace's annotations are known to be off by, and was multiplied in.
    pub calibrated: Option<f64>,
}

/// Why nothing can be predicted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EstimateError {
    #[error("model {0} is no longer in the catalogue")]
    Model(String),
    #[error(
        "nvidia.com/gpu.product: {asked:?} is neither a product of this cluster nor a known one; {allowed}"
    )]
    UnknownGpu { asked: String, allowed: String },
    #[error("no GPU product is known: label nodes with nvidia.com/gpu.product, or name one")]
    NoGpu,
    #[error("the prediction is not a positive number of grams")]
    NotPositive,
}

impl Oracle {
    /// Predicts a request at quantile `p`; of several eligible sites the dearest is
    /// charged.
    pub fn estimate(&self, request: &Request, p: f64) -> Result<Estimate, EstimateError> {
        let (count, mut features) = self
            .catalogue
            .job(&request.workload, request.pods, request.gpus)
            .ok_or_else(|| EstimateError::Model(request.workload.model.clone()))?;
        features.stack.driver.clone_from(&request.stack.driver);
        features.stack.power = request.stack.power;
        let sites = self.eligible(request)?;
        let dearest = sites
            .iter()
            .map(|site| {
                let law = self.law(&site.gpu);
                let mut prediction = law.predict(&features);
                let calibrated = self.suspected(&site.gpu, &request.namespace);
                if let Some(factor) = calibrated {
                    prediction.median.0 *= factor;
                    // What an author leaves out is not known as well as what a law says.
                    prediction.ln_sd = prediction.ln_sd.hypot(SUSPECT_SD);
                }
                let footprint = Footprint::of(&prediction, p, &site.intensity, &site.pue);
                let basis = law.basis().unwrap_or_default();
                let law = (law.form, law.observations, basis);
                (site, law, prediction, calibrated, footprint)
            })
            .max_by_key(|(.., footprint)| footprint.charged);
        let Some((site, (form, observations, basis), prediction, calibrated, footprint)) = dearest
        else {
            return Err(EstimateError::NoGpu);
        };
        // More than can be counted is an estimate all the same: no budget has room.
        if footprint.charged <= Milligrams(0) {
            return Err(EstimateError::NotPositive);
        }
        Ok(Estimate {
            workload: request.workload.clone(),
            count,
            features,
            gpu: site.gpu.clone(),
            form,
            observations,
            basis,
            footprint,
            prediction,
            intensity: site.intensity.clone(),
            pue: site.pue.clone(),
            dearest: sites.len() > 1,
            calibrated,
        })
    }

    /// What a namespace's annotations are known to be off by.
    fn suspected(&self, gpu: &Gpu, namespace: &str) -> Option<f64> {
        if self.suspects.is_empty() {
            return None;
        }
        let key = (gpu.clone(), namespace.to_owned());
        self.suspects.get(&key).copied()
    }

    /// The law for a product: its own, or one inherited of another product's, or the prior.
    pub fn law(&self, gpu: &Gpu) -> Cow<'_, Law> {
        match self.laws.get(gpu) {
            Some(law) => Cow::Borrowed(law),
            None => Cow::Owned(Law::for_product(Form::default(), gpu, self.laws.values())),
        }
    }

    /// Where the request may run. A product that no node has is priced by its law or prior,
    /// if it is one: of a typing error nothing can be predicted.
    fn eligible(&self, request: &Request) -> Result<Vec<Cow<'_, Site>>, EstimateError> {
        let asked = |gpu: &Gpu| request.eligible.is_empty() || request.eligible.contains(gpu);
        let here = self.sites.iter().filter(|site| asked(&site.gpu));
        let known: Vec<Cow<'_, Site>> = here.map(Cow::Borrowed).collect();
        // Where no node is as it asks, some may be made: any of the product then.
        if !request.placement.is_anywhere() {
            let sites = self.fleet.sites(&request.placement);
            let fit = sites.iter().filter_map(|site| self.sites.get(*site));
            let fit = fit.filter(|site| asked(&site.gpu));
            let fit: Vec<Cow<'_, Site>> = fit.map(Cow::Borrowed).collect();
            if !fit.is_empty() {
                return Ok(fit);
            }
        }
        if !known.is_empty() {
            return Ok(known);
        }
        let elsewhere = |gpu: &Gpu| {
            let (intensity, pue) = self.fallback.clone();
            Cow::Owned(Site {
                gpu: gpu.clone(),
                intensity,
                pue,
            })
        };
        let products = request
            .eligible
            .iter()
            .filter(|gpu| gpu.is_product() || self.laws.contains_key(gpu));
        let named: Vec<Cow<'_, Site>> = products.map(elsewhere).collect();
        match request.eligible.first() {
            Some(gpu) if named.is_empty() => Err(EstimateError::UnknownGpu {
                asked: gpu.to_string(),
                allowed: self.products(),
            }),
            _ => Ok(named),
        }
    }

    /// What a node selector may name, in words.
    fn products(&self) -> String {
        let mut here: Vec<&str> = self.sites.iter().map(|site| site.gpu.as_str()).collect();
        here.sort_unstable();
        here.dedup();
        if here.is_empty() {
            format!("for example {GPU_EXAMPLES}")
        } else {
            format!("here are: {}", here.join(", "))
        }
    }
}

impl Estimate {
    /// Law and intensity in a few words, for a verdict.
    pub fn provenance(&self) -> String {
        let mut runs = match self.observations {
            0 => "prior".to_owned(),
            1 => "1 run".to_owned(),
            n => format!("{n} runs"),
        };
        if let Some(factor) = self.calibrated {
            runs = format!(
                "{runs}, times {factor:.2} as this namespace's jobs burn beside their annotations"
            );
        }
        if self.basis == Basis::Net {
            runs = format!("{runs}, net of idle power");
        }
        let outside: Vec<&str> = self.prediction.outside.names().collect();
        if !outside.is_empty() {
            runs = format!("{runs}, none like it in {}", outside.join(", "));
        }
        format!(
            "{}{} law ±{:.0} % ({runs}), {}, PUE {:.2}",
            self.gpu,
            if self.dearest {
                " (dearest eligible)"
            } else {
                ""
            },
            self.prediction.relative_90() * 100.0,
            self.intensity,
            self.pue.value,
        )
    }
}
