//! A small HTTP server on hyper: plain or TLS, bounded in connections, bodies and time, draining
//! on shutdown.

use super::idle::Idle;
use super::shutdown::Stop;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown, Watcher};
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// A request with its body read.
#[derive(Debug)]
pub struct Call {
    pub method: Method,
    pub path: String,
    pub query: String,
    pub accept: Option<String>,
    /// Media type of the body, without parameters.
    pub content_type: Option<String>,
    pub body: Bytes,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub content_type: &'static str,
    pub body: Bytes,
}

impl Answer {
    pub fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            body: body.into().into(),
        }
    }

    pub fn json(body: Vec<u8>) -> Self {
        Self {
            status: StatusCode::OK,
            content_type: "application/json",
            body: body.into(),
        }
    }

    pub fn not_found() -> Self {
        Self::text(StatusCode::NOT_FOUND, "not found\n")
    }
}

/// The status of a readiness probe.
pub fn readiness(ready: bool) -> StatusCode {
    if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

const LARGEST_BODY: usize = 3 << 20;
/// Bodies at once, in KiB: who asks for more waits a moment, and is then sent away.
const BODIES_KIB: usize = 32 << 10;
const BODY_TRIES: u32 = 50;
const BODY_PAUSE: Duration = Duration::from_millis(20);
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const DRAIN: Duration = Duration::from_secs(10);
const CONNECTIONS: usize = 1024;
/// Requests at once on one HTTP/2 connection: an API server has few.
const STREAMS: u32 = 128;
/// A peer that is gone without a word is found out by then.
const PING: Duration = Duration::from_secs(15);

/// A bound server: the port is taken, nothing is answered yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
}

impl Server {
    pub async fn bind(address: SocketAddr) -> std::io::Result<Self> {
        Ok(Self {
            listener: TcpListener::bind(address).await?,
        })
    }

    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until told to stop, then lets open requests finish.
    pub async fn run<H, F>(self, tls: Option<Arc<rustls::ServerConfig>>, handler: H, stop: Stop)
    where
        H: Fn(Call) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let bodies = Arc::new(Semaphore::new(BODIES_KIB));
        let graceful = Arc::new(GracefulShutdown::new());
        let acceptor = tls.map(TlsAcceptor::from);
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stop.wait() => break,
                accepted = accept(&self.listener, &room) => accepted,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            };
            let Some((stream, permit)) = accepted else {
                continue;
            };
            let service = Service {
                handler: handler.clone(),
                bodies: bodies.clone(),
                idle: Arc::default(),
            };
            let (acceptor, watcher) = (acceptor.clone(), graceful.watcher());
            connections.spawn(async move {
                let _permit = permit;
                match acceptor {
                    None => service.serve(stream, false, watcher).await,
                    Some(acceptor) => {
                        match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await
                        {
                            Ok(Ok(stream)) => {
                                let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                                service.serve(stream, h2, watcher).await;
                            }
                            Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
                            Err(_) => tracing::debug!("TLS handshake took too long"),
                        }
                    }
                }
            });
        }
        drop(self.listener);
        if let Some(graceful) = Arc::into_inner(graceful) {
            let _ = tokio::time::timeout(DRAIN, graceful.shutdown()).await;
        }
    }
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let permit = room.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => {
            let _ = stream.set_nodelay(true);
            Some((stream, permit))
        }
        Err(error) => {
            // Out of file descriptors, say: wait, do not spin.
            tracing::warn!(%error, "accepting a connection failed");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

/// What answers on one connection.
struct Service<H> {
    handler: H,
    /// Room for bodies, of all connections.
    bodies: Arc<Semaphore>,
    idle: Arc<Idle>,
}

impl<H, F> Service<H>
where
    H: Fn(Call) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    /// The protocol is known by ALPN, and plain text is HTTP/1.1: a peer that says nothing is not
    /// waited for to tell them apart.
    async fn serve<S>(self, stream: S, h2: bool, watcher: Watcher)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (idle, io) = (self.idle.clone(), TokioIo::new(stream));
        let service = service_fn(move |request: Request<Incoming>| {
            let (handler, bodies) = (self.handler.clone(), self.bodies.clone());
            let busy = self.idle.busy();
            async move {
                let answer = match read(request, &bodies).await {
                    Ok((call, _room)) => handler(call).await,
                    Err(answer) => answer,
                };
                drop(busy);
                Ok::<_, Infallible>(respond(answer))
            }
        });
        if h2 {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .max_concurrent_streams(STREAMS)
                .keep_alive_interval(PING)
                .keep_alive_timeout(PING);
            until_idle(&idle, watcher, builder.serve_connection(io, service)).await;
        } else {
            let mut builder = http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT);
            until_idle(&idle, watcher, builder.serve_connection(io, service)).await;
        }
    }
}

/// Serves a connection until it ends, or until it has asked for nothing for too long.
async fn until_idle<C: GracefulConnection>(idle: &Idle, watcher: Watcher, connection: C)
where
    C::Error: std::fmt::Display,
{
    tokio::select! {
        ended = watcher.watch(connection) => {
            if let Err(error) = ended {
                tracing::debug!(%error, "connection ended");
            }
        }
        () = idle.too_long() => tracing::debug!("an idle connection is closed"),
    }
}

/// Room for so many KiB, if there is some soon. Nobody queues for it: a small body is not to wait
/// behind large ones.
async fn room_for(bodies: &Arc<Semaphore>, wanted: u32) -> Option<OwnedSemaphorePermit> {
    for _ in 0..BODY_TRIES {
        if let Ok(room) = bodies.clone().try_acquire_many_owned(wanted) {
            return Some(room);
        }
        tokio::time::sleep(BODY_PAUSE).await;
    }
    None
}

/// Reads a request; its room among the bodies is held until the answer is made.
async fn read(
    request: Request<Incoming>,
    bodies: &Arc<Semaphore>,
) -> Result<(Call, OwnedSemaphorePermit), Answer> {
    let (head, body) = request.into_parts();
    let said = body.size_hint().exact();
    let too_large = || {
        let why = "the body is larger than 3 MiB or broke off\n";
        Answer::text(StatusCode::PAYLOAD_TOO_LARGE, why)
    };
    let most = said.map_or(LARGEST_BODY, |bytes| {
        usize::try_from(bytes).unwrap_or(usize::MAX)
    });
    if most > LARGEST_BODY {
        return Err(too_large());
    }
    let wanted = u32::try_from(most.div_ceil(1024)).unwrap_or(u32::MAX);
    let Some(room) = room_for(bodies, wanted).await else {
        let why = "too much is being read already; ask again\n";
        return Err(Answer::text(StatusCode::SERVICE_UNAVAILABLE, why));
    };
    let body = Limited::new(body, LARGEST_BODY).collect();
    let Ok(body) = tokio::time::timeout(BODY_TIMEOUT, body).await else {
        let why = "the body took too long\n";
        return Err(Answer::text(StatusCode::REQUEST_TIMEOUT, why));
    };
    let body = body.map_err(|_| too_large())?;
    let header = |name: header::HeaderName| head.headers.get(name)?.to_str().ok();
    let call = Call {
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        accept: header(header::ACCEPT).map(str::to_owned),
        content_type: header(header::CONTENT_TYPE)
            .and_then(|value| Some(value.split(';').next()?.trim().to_ascii_lowercase())),
        method: head.method,
        body: body.to_bytes(),
    };
    Ok((call, room))
}

fn respond(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(answer.body));
    *response.status_mut() = answer.status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(answer.content_type),
    );
    response
}
