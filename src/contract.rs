//! Every name that others depend on: API group, annotations, labels, metrics, ports.
//! A change here is a change of contract; docs/reference.md is generated from it.

pub const GROUP: &str = "jouleward.dev";
pub const VERSION: &str = "v1alpha1";

/// Stamps: written by Jouleward alone. The webhook overwrites them at create, a
/// ValidatingAdmissionPolicy guards them afterwards.
pub const PREDICTION: &str = "jouleward.dev/prediction";
/// Present while Jouleward holds the object; the value is the time since when, RFC 3339.
pub const HOLD: &str = "jouleward.dev/hold";
/// Present once the object was granted; the value names its reservation, and for how many
/// pods it is.
pub const GRANTED: &str = "jouleward.dev/granted";
/// The refusal of an object that stays suspended, in words.
pub const REFUSED: &str = "jouleward.dev/refused";

/// Lets an object run without asking its budgets, which are charged all the same; the value says
/// why. Setting it needs [`GLASS_VERB`].
pub const BREAK_GLASS: &str = "jouleward.dev/break-glass";
/// The custom verb on `jobs` and `pods` that breaking the glass needs.
pub const GLASS_VERB: &str = "jouleward-break-glass";

/// Annotations that are no parameters of a workload.
pub const NO_PARAMETERS: &[&str] = &[PREDICTION, HOLD, GRANTED, REFUSED, BREAK_GLASS];

/// Label on namespaces that have a budget: the strictest mode of its budgets. Webhooks
/// select on it; only the controller may change it.
pub const MODE_LABEL: &str = "jouleward.dev/mode";
/// Scheduling gate of a held pod.
pub const GATE: &str = "jouleward.dev/budget";
/// The custom verb on `jobs` and `pods` that lifting a hold or touching a stamp needs.
pub const VERB: &str = "jouleward-release";

/// Lease of the leading controller.
pub const LEASE: &str = "jouleward-controller";
/// Secret with the webhook's certificate.
pub const TLS_SECRET: &str = "jouleward-webhook-tls";
/// Secrets of the exporters' and the controller's ends of the ledger's connections.
pub const EXPORTER_TLS_SECRET: &str = "jouleward-exporter-tls";
pub const CONTROLLER_TLS_SECRET: &str = "jouleward-controller-tls";
/// The name that every exporter's certificate is for: it is reached by address.
pub const EXPORTER_NAME: &str = "jouleward-exporter";
/// Names of the webhook configurations and of the policy.
pub const WEBHOOKS: &str = "jouleward";

/// GPU resources that a pod may ask for begin with this.
pub const GPU_RESOURCE: &str = "nvidia.com/";
/// Node label with the GPU product, as GPU feature discovery writes it.
pub const PRODUCT_LABEL: &str = "nvidia.com/gpu.product";

pub const EXPORTER_PORT: u16 = 9402;
/// The ledger, over mutual TLS.
pub const LEDGER_PORT: u16 = 9405;
pub const CONTROLLER_PORT: u16 = 9403;
pub const WEBHOOK_PORT: u16 = 9443;
pub const WEBHOOK_ADMIN_PORT: u16 = 9404;

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

/// One metric family. `name` is without the `jouleward_` prefix, unit and `_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    pub name: &'static str,
    pub kind: MetricKind,
    pub unit: Option<&'static str>,
    pub labels: &'static str,
    pub help: &'static str,
}

impl Metric {
    /// The name that a query uses.
    pub fn full_name(&self) -> String {
        let unit = self.unit.map(|unit| format!("_{unit}")).unwrap_or_default();
        let total = if self.kind == MetricKind::Counter {
            "_total"
        } else {
            ""
        };
        format!("jouleward_{}{unit}{total}", self.name)
    }
}

macro_rules! metrics {
    ($list:ident: $($konst:ident = $kind:ident $name:literal $unit:expr, $labels:literal, $help:literal;)*) => {
        $(pub const $konst: Metric =
            Metric { name: $name, kind: MetricKind::$kind, unit: $unit, labels: $labels, help: $help };)*
        pub const $list: &[Metric] = &[$($konst),*];
    };
}

const JOULES: Option<&str> = Some("joules");
const WATTS: Option<&str> = Some("watts");
const SECONDS: Option<&str> = Some("seconds");
const GRAMS: Option<&str> = Some("grams");
const RATIO: Option<&str> = Some("ratio");

metrics! { EXPORTER_METRICS:
    GPU_ENERGY = Counter "gpu_energy" JOULES, "node, gpu_uuid", "Energy of the GPU by its own counter, since the exporter started";
    POD_ENERGY = Counter "pod_gpu_energy" JOULES, "node, namespace, pod, uid, container, gpu_uuid, component", "GPU energy of a pod: active, and its share of idle power";
    UNATTRIBUTED_ENERGY = Counter "unattributed_gpu_energy" JOULES, "node, gpu_uuid, reason", "GPU energy that is no pod's, by reason";
    NAMESPACE_ENERGY = Counter "namespace_gpu_energy" JOULES, "node, namespace", "GPU energy of all pods of a namespace, ended ones included";
    ATTRIBUTION_ENERGY = Counter "gpu_attribution_energy" JOULES, "node, gpu_uuid, quality", "GPU energy by how well its split is known";
    GPU_POWER = Gauge "gpu_power" WATTS, "node, gpu_uuid", "Power the GPU draws now, as its driver reports it";
    GPU_IDLE_POWER = Gauge "gpu_idle_power" WATTS, "node, gpu_uuid, level", "Power of the GPU with nobody on it, configured or learnt";
    GPU_POWER_LIMIT = Gauge "gpu_power_limit" WATTS, "node, gpu_uuid", "Enforced power limit of the GPU";
    GPU_POWER_LIMIT_DEFAULT = Gauge "gpu_power_limit_default" WATTS, "node, gpu_uuid", "Power limit that the board has where nobody set one";
    GPU_INFO = Gauge "gpu_info" None, "node, gpu_uuid, gpu, model, pci_bus_id, driver_version, energy_source, scope, sharing", "What the GPU is; the value is 1";
    ALLOCATION = Gauge "pod_gpu_allocation" RATIO, "node, namespace, pod, uid, container, gpu_uuid, gpu_instance_id, source", "Share of the GPU that the container holds, and is billed of its idle power";
    CLAIM_INFO = Gauge "pod_gpu_claim_info" None, "node, namespace, pod, uid, container, gpu_uuid, gpu_instance_id, claim_namespace, claim", "The ResourceClaim that brought the GPU; the value is 1";
    COUNTER_RESETS = Counter "gpu_energy_resets" None, "node, gpu_uuid", "Times the energy counter fell or jumped and was rebased without billing anyone";
    GPU_LOST = Counter "gpu_lost" None, "node, gpu_uuid", "Times the GPU stopped answering";
    NVML_ERRORS = Counter "nvml_errors" None, "node, call, code", "Failed NVML calls";
    PODRESOURCES_ERRORS = Counter "podresources_errors" None, "node, code", "Failed questions to the kubelet";
    PROC_ERRORS = Counter "proc_errors" None, "node, call, code", "Reads of a process in /proc that failed, other than that it is gone";
    CLAIM_ERRORS = Counter "resource_claim_errors" None, "node, code", "Failed questions to the API server about resource claims";
    GAP_SECONDS = Counter "attribution_gap" SECONDS, "node, gpu_uuid", "Time for which nobody was billed";
    SERIES_DROPPED = Counter "series_dropped" None, "node", "Pod accounts dropped after their time or above the cap";
    TICK_SECONDS = Histogram "tick_duration" SECONDS, "node", "How long a look at all GPUs takes";
    RENDER_SECONDS = Histogram "scrape_render" SECONDS, "node", "How long a page of metrics takes to render: once a look and format, however many scrape";
    LAST_TICK = Gauge "last_tick_timestamp" SECONDS, "node", "When the GPUs were last looked at, Unix time";
    RESTORED = Gauge "restored_from_checkpoint" None, "node", "1 where the sums go on from an earlier run";
    CHECKPOINT_ERRORS = Counter "checkpoint_errors" None, "node", "Times the checkpoint could not be read, used or written";
    BUILD_INFO = Gauge "build_info" None, "node, version", "1, with the version that runs";
    GPUS = Gauge "gpus" None, "node", "GPUs that NVML lists on the node; 0 without a driver";
}

metrics! { CONTROLLER_METRICS:
    BUDGET_LIMIT = Gauge "budget_limit" GRAMS, "namespace, budget", "Limit of a budget for its period, CO2e";
    BUDGET_USED = Gauge "budget_used" GRAMS, "namespace, budget", "Measured CO2e of the period";
    BUDGET_RESERVED = Gauge "budget_reserved" GRAMS, "namespace, budget", "CO2e set aside for jobs granted and not settled";
    BUDGET_REMAINING = Gauge "budget_remaining" GRAMS, "namespace, budget", "CO2e that can still be granted";
    NAMESPACE_CO2 = Counter "namespace_emissions" GRAMS, "namespace", "Measured CO2e of GPU jobs since this leader took over";
    HELD_JOBS = Gauge "held_jobs" None, "namespace", "Jobs and pods that wait for a budget";
    HELD_AGE = Gauge "held_jobs_oldest_age" SECONDS, "namespace", "For how long the longest held job has waited";
    GRANTS = Counter "grants" None, "namespace, reason", "Jobs released, by reason";
    OVERRUNS = Counter "overruns" None, "namespace, action", "Running jobs that burned beyond what was set aside, by what was done: suspended, deleted, told";
    REFUSALS = Counter "refusals" None, "namespace, reason", "Held jobs refused, by reason";
    RECORDS_PUT_AWAY = Counter "records_put_away" None, "namespace", "Records of settled jobs that a statement has taken in, to be handed on and deleted";
    RECORDS_RESTORED = Counter "records_restored" None, "namespace", "Records that somebody deleted and that were made anew";
    LAW_ERROR = Gauge "law_error" RATIO, "gpu, form", "Running mean of |predicted - measured| / measured";
    LAW_OBSERVATIONS = Gauge "law_observations" None, "gpu, form", "Jobs the law has learnt from";
    LAW_SHIFTS = Counter "law_shifts" None, "gpu, form", "Times that a law's level was found to have moved";
    ANNOTATION_SUSPECT = Gauge "annotation_suspect" RATIO, "namespace, gpu", "What a namespace's jobs burn beside their annotations, where it stands apart from the others";
    OBSERVATIONS_REFUSED = Counter "observations_refused" None, "reason", "Finished jobs the law did not learn from";
    LEADER = Gauge "leader" None, "identity", "1 while this replica leads";
    CYCLE_SECONDS = Histogram "cycle_duration" SECONDS, "", "How long one gather-decide-apply cycle takes";
    EXPORTER_ERRORS = Counter "exporter_scrape_errors" None, "node", "Exporters that did not answer the controller";
    API_ERRORS = Counter "api_errors" None, "code", "Failed calls to the API server";
    INTENSITY = Gauge "carbon_intensity_g_per_kwh" None, "zone, source, signal, basis, kind", "Carbon intensity in use";
}

metrics! { WEBHOOK_METRICS:
    REVIEWS = Counter "admission_reviews" None, "webhook, kind, decision", "Reviews answered: allowed, held, warned, denied or error";
    VERDICTS = Counter "verdicts" None, "namespace, reason", "Verdicts by reason";
    REVIEW_SECONDS = Histogram "admission_review_duration" SECONDS, "webhook", "Time from a whole review to its answer";
    SNAPSHOT_AGE = Gauge "snapshot_age" SECONDS, "", "Time since the API server was last heard of: how old what reviews are answered from may be";
    LEADER_STALE = Gauge "leader_stale" None, "", "1 while no leader is at work and nothing is held";
}
