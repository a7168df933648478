//! The chart as Helm renders it: what to apply, and how each part is started.

use crate::plane::Plane;
use anyhow::Context;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Rendered objects, hooks apart.
#[derive(Debug)]
pub struct Chart {
    pub objects: Vec<Value>,
    pub hooks: Vec<Value>,
}

impl Chart {
    /// Renders the chart with values on top of its own.
    pub fn render(plane: &Plane, values: &Value) -> anyhow::Result<Self> {
        // Tests beside each other render it with values of their own.
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = plane.folder.join(format!("values-{number}.json"));
        std::fs::write(&path, serde_json::to_vec(values)?)?;
        let output = Command::new(plane.binaries.join("helm"))
            .args([
                "template",
                "jouleward",
                "--namespace",
                "jouleward-system",
                "--kube-version",
                "1.36.3",
            ])
            .arg("--values")
            .arg(&path)
            .arg(crate::root().join("charts/jouleward"))
            .env("HOME", &plane.folder)
            .output()
            .context("cannot run helm")?;
        anyhow::ensure!(
            output.status.success(),
            "helm: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8(output.stdout)?;
        let mut chart = Self {
            objects: Vec::new(),
            hooks: Vec::new(),
        };
        for document in serde_yaml::Deserializer::from_str(&text) {
            let object = Value::deserialize(document)?;
            if object.is_null() {
                continue;
            }
            let hook = !object["metadata"]["annotations"]["helm.sh/hook"].is_null();
            if hook {
                chart.hooks.push(object);
            } else {
                chart.objects.push(object);
            }
        }
        Ok(chart)
    }

    /// The objects of some kinds, or of all others, as one YAML stream.
    pub fn manifests(&self, choose: impl Fn(&str) -> bool) -> anyhow::Result<String> {
        let chosen = self
            .objects
            .iter()
            .filter(|object| choose(object["kind"].as_str().unwrap_or_default()));
        chosen
            .map(|object| Ok(format!("---\n{}", serde_json::to_string(object)?) + "\n"))
            .collect()
    }

    fn rendered(&self, name: &str) -> anyhow::Result<&Value> {
        let object = self
            .objects
            .iter()
            .find(|o| {
                o["metadata"]["name"] == name
                    && matches!(o["kind"].as_str(), Some("Deployment" | "DaemonSet"))
            })
            .with_context(|| format!("the chart has no {name}"))?;
        Ok(&object["spec"]["template"]["spec"]["containers"][0])
    }

    /// Fails where the chart's ports are not those that tests and demonstration talk to.
    pub fn check_ports(&self) -> anyhow::Result<()> {
        for (name, ports) in [
            ("jouleward-exporter", &[9402, 9405][..]),
            ("jouleward-controller", &[9403]),
            ("jouleward-webhook", &[9443, 9404]),
        ] {
            let rendered = self.rendered(name)?["ports"].as_array().cloned();
            let numbers = rendered.unwrap_or_default().into_iter();
            let numbers: Vec<Value> = numbers.map(|port| port["containerPort"].clone()).collect();
            anyhow::ensure!(
                numbers == ports,
                "{name} is rendered with the ports {numbers:?}"
            );
        }
        Ok(())
    }

    /// Arguments and environment of a Deployment's or DaemonSet's container, with the
    /// downward API resolved from `fields`.
    pub fn container(
        &self,
        name: &str,
        fields: &BTreeMap<&str, String>,
    ) -> anyhow::Result<Started> {
        let container = self.rendered(name)?;
        let mut env = BTreeMap::new();
        for variable in container["env"].as_array().into_iter().flatten() {
            let key = variable["name"].as_str().unwrap_or_default().to_owned();
            let field = variable["valueFrom"]["fieldRef"]["fieldPath"].as_str();
            let value = match field {
                Some(field) => fields
                    .get(field)
                    .with_context(|| format!("no value for {field}"))?
                    .clone(),
                None => variable["value"].as_str().unwrap_or_default().to_owned(),
            };
            env.insert(key, value);
        }
        let expand = |text: &str| {
            env.iter().fold(text.to_owned(), |text, (key, value)| {
                text.replace(&format!("$({key})"), value)
            })
        };
        let args = container["args"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        Ok(Started {
            args: args.map(expand).collect(),
            env,
        })
    }
}

/// How a container is started.
#[derive(Debug, Clone)]
pub struct Started {
    pub args: Vec<String>,
    pub env: BTreeMap<String, String>,
}
