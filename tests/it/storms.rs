//! The webhook's port as strangers use it: what is no review, who dawdles, who sends too much. Each
//! is sent away in words or in time, and reviews go on meanwhile.
//!
//! What is written on TLS is flushed before an answer is read: where many peers share one task, a
//! record may wait for the task's next turn, and reading does not send it.

use crate::support::{Shared, on_plane};
use anyhow::{Context, ensure};
use jouleward::contract::TLS_SECRET;
use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// What the server gives a peer that says nothing, and some more for a machine at work.
const SENT_AWAY: Duration = Duration::from_secs(30);

/// The webhook's port, by the authority that the API server knows it by.
#[derive(Clone)]
struct Port {
    address: IpAddr,
    connector: TlsConnector,
}

impl Port {
    async fn of(shared: &Shared) -> anyhow::Result<Self> {
        let secrets: Api<Secret> = Api::namespaced(shared.stack.client.clone(), "jouleward-system");
        let secret = secrets.get(TLS_SECRET).await?;
        let authority = secret.data.as_ref().and_then(|data| data.get("ca.crt"));
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&authority.context("a CA")?.0) {
            roots.add(certificate?)?;
        }
        let config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            address: shared.stack.address(20).parse()?,
            connector: TlsConnector::from(Arc::new(config)),
        })
    }

    async fn plain(&self) -> anyhow::Result<TcpStream> {
        Ok(TcpStream::connect((self.address, 9443)).await?)
    }

    async fn tls(&self) -> anyhow::Result<TlsStream<TcpStream>> {
        let name = ServerName::IpAddress(self.address.into());
        Ok(self.connector.connect(name, self.plain().await?).await?)
    }

    /// One request; the answer's status and body.
    async fn ask(&self, method: &str, kind: &str, body: &[u8]) -> anyhow::Result<(u16, String)> {
        let exchange = async {
            let mut stream = self.tls().await?;
            let head = format!(
                "{method} /validate HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            stream.write_all(head.as_bytes()).await?;
            // Refused for its size, the rest of a body is not read.
            let _ = stream.write_all(body).await;
            let _ = stream.flush().await;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            anyhow::Ok(String::from_utf8_lossy(&answer).into_owned())
        };
        let answer = tokio::time::timeout(SENT_AWAY, exchange).await??;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head
            .split_whitespace()
            .nth(1)
            .and_then(|code| code.parse().ok());
        Ok((
            status.with_context(|| format!("no answer: {answer:?}"))?,
            body.to_owned(),
        ))
    }

    /// A review like the API server's is answered.
    async fn goes_on(&self) -> anyhow::Result<()> {
        let review = serde_json::to_vec(&review())?;
        let (status, said) = self.ask("POST", "application/json", &review).await?;
        ensure!(
            status == 200 && said.contains("\"allowed\":true"),
            "{status} {said}"
        );
        Ok(())
    }
}

fn review() -> Value {
    json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "1", "operation": "CREATE", "namespace": "nobodys",
        "kind": { "group": "batch", "version": "v1", "kind": "Job" },
        "object": { "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": "a" },
                    "spec": { "template": { "spec": { "containers": [] } } } },
    } })
}

#[test]
fn what_is_no_review_is_refused_in_words_and_reviews_go_on() {
    on_plane(|shared| async move {
        let port = Port::of(shared).await?;
        let with = |pointer: &str, value: Value| {
            let mut review = review();
            *review.pointer_mut(pointer).expect("it is there") = value;
            serde_json::to_vec(&review).expect("JSON")
        };
        let old = with("/apiVersion", json!("admission.k8s.io/v1beta1"));
        let other = with("/kind", json!("TokenReview"));
        let blank = with("/request", json!(null));
        let deep = "[".repeat(1_000_000);
        let huge = vec![b' '; 10_000_000];
        let whole = with("/request/uid", json!("1"));
        let cases: [(&str, &str, &[u8], u16, &str); 9] = [
            (
                "POST",
                "application/json",
                b"",
                400,
                "not an AdmissionReview",
            ),
            (
                "POST",
                "application/json",
                b"\xff\xfe{}",
                400,
                "not an AdmissionReview",
            ),
            (
                "POST",
                "application/json",
                deep.as_bytes(),
                400,
                "not an AdmissionReview",
            ),
            (
                "POST",
                "application/json",
                &blank,
                400,
                "not an AdmissionReview",
            ),
            (
                "POST",
                "application/json",
                &old,
                400,
                "admissionReviewVersions",
            ),
            ("POST", "application/json", &other, 400, "TokenReview"),
            ("POST", "text/xml", &whole, 415, "application/json"),
            ("GET", "application/json", &whole, 405, "POST"),
            ("POST", "application/json", &huge, 413, "3 MiB"),
        ];
        for (method, kind, body, status, words) in cases {
            let (said, text) = port.ask(method, kind, body).await?;
            ensure!(
                said == status && text.contains(words),
                "{status} {words}: {said} {text}"
            );
            port.goes_on().await?;
        }
        // Of a kind that is not ours there is nothing to say.
        let stranger = with(
            "/request/kind",
            json!({ "group": "", "version": "v1", "kind": "Secret" }),
        );
        let (said, text) = port.ask("POST", "application/json", &stranger).await?;
        ensure!(
            said == 200 && text.contains("\"allowed\":true"),
            "{said} {text}"
        );
        Ok(())
    });
}

/// How a peer dawdles.
#[derive(Debug, Clone, Copy)]
enum Dawdler {
    SaysNothing,
    SpeaksNoTls,
    ShakesHandsAndIsSilent,
    SendsItsHeadByteByByte,
    SendsHalfABody,
}

/// Dawdles until it is sent away.
async fn dawdle(port: Port, how: Dawdler) -> anyhow::Result<()> {
    let sent_away = async {
        match how {
            Dawdler::SaysNothing => until_closed(port.plain().await?, None).await,
            Dawdler::SpeaksNoTls => {
                let mut stream = port.plain().await?;
                stream.write_all(&[0x16; 512]).await?;
                until_closed(stream, None).await
            }
            Dawdler::ShakesHandsAndIsSilent => until_closed(port.tls().await?, None).await,
            Dawdler::SendsItsHeadByteByByte => {
                let (read, mut write) = tokio::io::split(port.tls().await?);
                let slowly = async {
                    for byte in b"POST /validate HTTP/1.1\r\nX-Slow: a".iter().cycle() {
                        if write.write_all(&[*byte]).await.is_err() || write.flush().await.is_err()
                        {
                            return;
                        }
                        tokio::time::sleep(Duration::from_millis(300)).await;
                    }
                };
                tokio::select! {
                    closed = until_closed(read, None) => closed,
                    () = slowly => Ok(()),
                }
            }
            Dawdler::SendsHalfABody => {
                let mut stream = port.tls().await?;
                let head = "POST /validate HTTP/1.1\r\nHost: x\r\nContent-Length: 3000\r\n\r\n{";
                stream.write_all(head.as_bytes()).await?;
                stream.flush().await?;
                until_closed(stream, Some("408")).await
            }
        }
    };
    let patience = tokio::time::timeout(SENT_AWAY, sent_away);
    patience
        .await
        .with_context(|| format!("{how:?} is never sent away"))?
}

/// Reads to the end, or until a status is told.
async fn until_closed(
    mut stream: impl AsyncRead + Unpin,
    told: Option<&str>,
) -> anyhow::Result<()> {
    let mut all = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(n) => all.extend_from_slice(&buffer[..n]),
        }
        if let Some(told) = told
            && String::from_utf8_lossy(&all).contains(told)
        {
            return Ok(());
        }
    }
    ensure!(
        told.is_none(),
        "{told:?} was not told: {:?}",
        String::from_utf8_lossy(&all)
    );
    Ok(())
}

#[test]
fn peers_that_dawdle_are_sent_away_and_reviews_go_on_meanwhile() {
    on_plane(|shared| async move {
        let port = Port::of(shared).await?;
        let ways = [
            Dawdler::SaysNothing,
            Dawdler::SpeaksNoTls,
            Dawdler::ShakesHandsAndIsSilent,
            Dawdler::SendsItsHeadByteByByte,
            Dawdler::SendsHalfABody,
        ];
        let dawdlers = (0..10)
            .flat_map(|_| ways)
            .map(|how| dawdle(port.clone(), how));
        let all = futures::future::try_join_all(dawdlers);
        let meanwhile = async {
            for _ in 0..40 {
                port.goes_on().await?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            anyhow::Ok(())
        };
        futures::future::try_join(all, meanwhile).await?;
        Ok(())
    });
}

/// Sends all but the end of a body as large as may be, from an address of its own; the status that
/// it is told.
async fn stall(port: Port) -> anyhow::Result<u16> {
    let socket = TcpSocket::new_v4()?;
    socket.bind("127.66.0.9:0".parse()?)?;
    let stream = socket.connect((port.address, 9443).into()).await?;
    let name = ServerName::IpAddress(port.address.into());
    let (mut read, mut write) = tokio::io::split(port.connector.connect(name, stream).await?);
    let head = "POST /validate HTTP/1.1\r\nHost: x\r\nContent-Length: 3145728\r\n\r\n";
    write.write_all(head.as_bytes()).await?;
    let mut start = [0; 12];
    let send = async {
        // Sent away, it may not get rid of all of it.
        let _ = write.write_all(&vec![b' '; 3_145_727]).await;
        let _ = write.flush().await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        told = tokio::time::timeout(SENT_AWAY, read.read_exact(&mut start)) => { told??; }
        () = send => {}
    }
    let status = String::from_utf8_lossy(&start[9..]).into_owned();
    Ok(status.parse()?)
}

#[test]
fn one_address_takes_its_part_of_the_room_for_bodies_and_reviews_go_on() {
    on_plane(|shared| async move {
        let port = Port::of(shared).await?;
        let large = futures::future::try_join_all((0..12).map(|_| stall(port.clone())));
        let meanwhile = async {
            for _ in 0..20 {
                port.goes_on().await?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            anyhow::Ok(())
        };
        let (told, ()) = futures::future::try_join(large, meanwhile).await?;
        let count = |status: u16| told.iter().filter(|told| **told == status).count();
        // 8 MiB of one address do not hold three of them.
        ensure!(count(503) >= 6, "{told:?}");
        ensure!(count(503) + count(408) == told.len(), "{told:?}");
        port.goes_on().await?;
        Ok(())
    });
}
