//! From a request to grams: which model, which GPU, which law, which grid.

use crate::carbon::{Footprint, Intensity, Milligrams, Pue};
use crate::law::{
    Catalogue, Features, FlopCount, Form, GPU_EXAMPLES, Gpu, Law, Prediction, Workload, count,
};
use std::collections::BTreeMap;

/// What a job asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub workload: Workload,
    /// Pods that each generate the workload's images.
    pub pods: u32,
    /// GPUs of each pod.
    pub gpus: u32,
    /// GPU products the job may land on; empty = any the cluster has.
    pub eligible: Vec<Gpu>,
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
    pub sites: Vec<Site>,
    /// Where no node is known yet, or none is eligible.
    pub fallback: (Intensity, Pue),
}

/// What a job is predicted to cost.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimate {
    pub workload: Workload,
    pub flops: FlopCount,
    pub features: Features,
    pub gpu: Gpu,
    pub form: Form,
    pub observations: u64,
    pub prediction: Prediction,
    pub footprint: Footprint,
    pub intensity: Intensity,
    pub pue: Pue,
    /// True where several products were eligible and the dearest was taken.
    pub dearest: bool,
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
        let model = self
            .catalogue
            .get(&request.workload.model)
            .ok_or_else(|| EstimateError::Model(request.workload.model.clone()))?;
        let flops = count(model, &request.workload);
        let features = Features::of_job(&request.workload, &flops, request.pods, request.gpus);
        let sites = self.eligible(request)?;
        let several = sites.len() > 1;
        sites
            .into_iter()
            .map(|site| self.at(request, &site, flops, &features, p, several))
            .max_by_key(|estimate| estimate.footprint.charged)
            .ok_or(EstimateError::NoGpu)
            .and_then(|estimate| {
                // More than can be counted is an estimate all the same: no budget has room.
                if estimate.footprint.charged > Milligrams(0) {
                    Ok(estimate)
                } else {
                    Err(EstimateError::NotPositive)
                }
            })
    }

    /// The law for a product: its own, or the prior where none was fitted yet.
    pub fn law(&self, gpu: &Gpu) -> Law {
        self.laws
            .get(gpu)
            .cloned()
            .unwrap_or_else(|| Law::prior(Form::default(), gpu))
    }

    /// Where the request may run. A product that no node has is priced by its law or prior,
    /// if it is one: of a typing error nothing can be predicted.
    fn eligible(&self, request: &Request) -> Result<Vec<Site>, EstimateError> {
        let asked = |gpu: &Gpu| request.eligible.is_empty() || request.eligible.contains(gpu);
        let known: Vec<Site> = self
            .sites
            .iter()
            .filter(|site| asked(&site.gpu))
            .cloned()
            .collect();
        if !known.is_empty() {
            return Ok(known);
        }
        let (intensity, pue) = self.fallback.clone();
        let named: Vec<Site> = request
            .eligible
            .iter()
            .filter(|gpu| gpu.is_product() || self.laws.contains_key(gpu))
            .map(|gpu| Site {
                gpu: gpu.clone(),
                intensity: intensity.clone(),
                pue: pue.clone(),
            })
            .collect();
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

    fn at(
        &self,
        request: &Request,
        site: &Site,
        flops: FlopCount,
        features: &Features,
        p: f64,
        dearest: bool,
    ) -> Estimate {
        let prior;
        let law = if let Some(law) = self.laws.get(&site.gpu) {
            law
        } else {
            prior = Law::prior(Form::default(), &site.gpu);
            &prior
        };
        let prediction = law.predict(features);
        Estimate {
            workload: request.workload.clone(),
            flops,
            features: features.clone(),
            gpu: site.gpu.clone(),
            form: law.form,
            observations: law.observations,
            footprint: Footprint::of(&prediction, p, &site.intensity, &site.pue),
            prediction,
            intensity: site.intensity.clone(),
            pue: site.pue.clone(),
            dearest,
        }
    }
}

impl Estimate {
    /// Law and intensity in a few words, for a verdict.
    pub fn provenance(&self) -> String {
        let runs = match self.observations {
            0 => "prior".to_owned(),
            1 => "1 run".to_owned(),
            n => format!("{n} runs"),
        };
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
