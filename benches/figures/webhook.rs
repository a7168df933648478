//! Reviews a second over TLS beside an allow-all server that parses the same reviews, and
//! the in-process time of a review.

use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use jouleward::api::{CarbonBudget, EnergyLaw};
use jouleward::cluster::{Lite, Reviewer, Snapshot, Step, answer};
use jouleward::serve::http::{Answer, Call, Server};
use jouleward::serve::shutdown;
use jouleward::serve::tls::{Certificate, server_config};
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

const NAMESPACES: usize = 1000;
const JOBS: usize = 10_000;
const CONNECTIONS: usize = 8;
const SECONDS: u64 = 4;
const ROUNDS: usize = 3;

#[derive(Deserialize)]
struct Parsed {
    request: ParsedRequest,
}

#[derive(Deserialize)]
struct ParsedRequest {
    uid: String,
    object: Lite,
}

/// A review as a real API server sends it: a Job with managed fields, about 10 kB.
fn review(number: usize) -> Vec<u8> {
    let fields = json!({ "f:metadata": { "f:annotations": {} }, "f:spec": { "f:template": { "f:spec": { "f:containers": {} } } } });
    let managed: Vec<Value> = (0..24)
        .map(|n| json!({ "manager": format!("controller-{n}"), "operation": "Update", "apiVersion": "batch/v1",
                         "time": "2026-11-23T12:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": fields }))
        .collect();
    let env: Vec<Value> =
        (0..52).map(|n| json!({ "name": format!("SETTING_{n}"), "value": format!("a value of setting number {n}") })).collect();
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": format!("00000000-0000-4000-8000-{number:012}"),
            "kind": { "group": "batch", "version": "v1", "kind": "Job" },
            "resource": { "group": "batch", "version": "v1", "resource": "jobs" },
            "namespace": format!("team-{}", number % NAMESPACES), "operation": "CREATE",
            "userInfo": { "username": "author", "groups": ["authors", "system:authenticated"] },
            "object": {
                "apiVersion": "batch/v1", "kind": "Job",
                "metadata": { "name": format!("job-{number}"), "managedFields": managed, "annotations": {
                    "jouleward.dev/model": "sdxl", "jouleward.dev/width": "1024", "jouleward.dev/height": "1024",
                    "jouleward.dev/num-inference-steps": "30", "jouleward.dev/num-images": "20",
                } },
                "spec": { "completions": 1, "template": { "spec": { "restartPolicy": "Never", "containers": [{
                    "name": "generate", "image": "example.org/diffusers:1", "env": env,
                    "resources": { "limits": { "nvidia.com/gpu": "1", "memory": "64Gi" } },
                }] } } },
            },
            "oldObject": null, "dryRun": false,
        },
    });
    serde_json::to_vec(&review).unwrap()
}

fn snapshot() -> Snapshot {
    let budgets: Vec<CarbonBudget> = (0..NAMESPACES)
        .map(|n| {
            serde_json::from_value(json!({
                "apiVersion": "jouleward.dev/v1alpha1", "kind": "CarbonBudget",
                "metadata": { "name": "images", "namespace": format!("team-{n}") },
                "spec": { "limit": "5kg", "mode": "Enforce" },
                "status": { "consumedMilligrams": 1_000_000, "reservedMilligrams": 2_000 * JOBS / NAMESPACES },
            }))
            .unwrap()
        })
        .collect();
    let law = |name: &str| -> EnergyLaw {
        serde_json::from_value(
            json!({ "apiVersion": "jouleward.dev/v1alpha1", "kind": "EnergyLaw",
            "metadata": { "name": name.to_lowercase() }, "spec": { "gpu": name } }),
        )
        .unwrap()
    };
    let products = ["NVIDIA-A100-SXM4-40GB", "NVIDIA-H100-80GB-HBM3"];
    Snapshot::of(&budgets, products.map(law).to_vec(), &products)
}

pub(crate) fn run() {
    let snapshot = snapshot();
    let reviews: Arc<Vec<Bytes>> = Arc::new((0..256).map(|n| Bytes::from(review(n))).collect());
    println!(
        "webhook: {NAMESPACES} namespaces, reviews of {:.1} kB",
        reviews[0].len() as f64 / 1000.0
    );
    in_process(&snapshot, &reviews);
    // The very handler of the webhook, metrics and all.
    let reviewer = Arc::new(Reviewer::new(snapshot));
    let ours = {
        let reviewer = reviewer.clone();
        move |call: &Call| reviewer.answer(call)
    };
    // It parses into the same lean types: only the deciding is left out.
    let allow_all = |call: &Call| {
        let review: Parsed = serde_json::from_slice(&call.body).unwrap();
        std::hint::black_box(&review.request.object);
        let response = json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
                               "response": { "uid": review.request.uid, "allowed": true } });
        Answer::json(serde_json::to_vec(&response).unwrap())
    };
    // In turn, so that a machine that slows down slows both.
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        a.push(over_tls(ours.clone(), &reviews));
        b.push(over_tls(allow_all, &reviews));
    }
    let (a, b) = (middle(a), middle(b));
    println!("webhook: {a:.0} reviews/s over TLS on one core (goal ≥ 3000)");
    println!(
        "webhook: {b:.0} reviews/s by an allow-all server that parses the same; ratio {:.2} (goal ≥ 0.8)",
        a / b
    );
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn in_process(snapshot: &Snapshot, reviews: &[Bytes]) {
    let now = jiff::Timestamp::now();
    let (_, outcome) = answer(Step::Mutate, &reviews[0], snapshot, now).unwrap();
    assert_eq!(
        outcome.decision, "held",
        "the reviews that are timed are decided on"
    );
    let mut times: Vec<Duration> = (0..20_000)
        .map(|n| {
            let start = Instant::now();
            let step = if n % 2 == 0 {
                Step::Mutate
            } else {
                Step::Validate
            };
            std::hint::black_box(answer(step, &reviews[n % reviews.len()], snapshot, now).unwrap());
            start.elapsed()
        })
        .collect();
    times.sort();
    let at = |p: usize| times[times.len() * p / 1000].as_secs_f64() * 1e3;
    println!(
        "webhook: in-process p50 {:.3} ms, p99 {:.3} ms (goal ≤ 2)",
        at(500),
        at(990)
    );
}

/// A server on one thread, a load of kept-alive connections on another.
fn over_tls(
    handler: impl Fn(&Call) -> Answer + Clone + Send + Sync + 'static,
    reviews: &Arc<Vec<Bytes>>,
) -> f64 {
    let pair = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let certificate = Arc::new(Certificate::default());
    certificate
        .set(
            pair.cert.pem().as_bytes(),
            pair.signing_key.serialize_pem().as_bytes(),
        )
        .unwrap();
    let (stopper, stop) = shutdown::pair();
    let (sender, receiver) = std::sync::mpsc::channel();
    let server = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let server = Server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
            sender.send(server.address().unwrap()).unwrap();
            let handle = move |call: Call| std::future::ready(handler(&call));
            server
                .run(Some(server_config(certificate)), handle, stop)
                .await;
        });
    });
    let address = receiver.recv().unwrap();
    let rate = load(address, pair.cert.der().clone(), reviews.clone());
    stopper.stop();
    server.join().unwrap();
    rate
}

fn load(
    address: SocketAddr,
    trusted: rustls::pki_types::CertificateDer<'static>,
    reviews: Arc<Vec<Bytes>>,
) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted).unwrap();
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    runtime.block_on(async {
        let end = Instant::now() + Duration::from_secs(SECONDS);
        let start = Instant::now();
        let workers = (0..CONNECTIONS).map(|worker| {
            let (connector, reviews) = (connector.clone(), reviews.clone());
            async move {
                let stream = tokio::net::TcpStream::connect(address).await.unwrap();
                stream.set_nodelay(true).unwrap();
                let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
                let stream = connector.connect(name, stream).await.unwrap();
                let (mut sender, connection) =
                    hyper::client::conn::http1::handshake(TokioIo::new(stream))
                        .await
                        .unwrap();
                let exchange = async {
                    let mut count = 0_u64;
                    while Instant::now() < end {
                        let number = usize::try_from(count).unwrap() + worker;
                        let path = if number % 2 == 0 {
                            "/mutate"
                        } else {
                            "/validate"
                        };
                        let body = Full::new(reviews[number % reviews.len()].clone());
                        let request = Request::post(path)
                            .header("host", "localhost")
                            .body(body)
                            .unwrap();
                        let response = sender.send_request(request).await.unwrap();
                        assert!(response.status().is_success());
                        response.into_body().collect().await.unwrap();
                        count += 1;
                    }
                    count
                };
                tokio::select! {
                    count = exchange => count,
                    _ = connection => 0,
                }
            }
        });
        let counts = futures::future::join_all(workers).await;
        counts.iter().sum::<u64>() as f64 / start.elapsed().as_secs_f64()
    })
}
