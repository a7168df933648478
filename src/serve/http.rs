//! A small HTTP server on hyper: plain or TLS, bounded in connections, bodies and time, draining
//! on shutdown.

use super::idle::Idle;
use super::room::{LARGE, Peer, Room, Taken};
use super::shutdown::Stop;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown, Watcher};
use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
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
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const DRAIN: Duration = Duration::from_secs(10);
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
        let room = Arc::new(Room::default());
        let graceful = Arc::new(GracefulShutdown::new());
        let acceptor = tls.map(TlsAcceptor::from);
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stop.wait() => break,
                accepted = accept(&self.listener, &room) => accepted,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            };
            let Some((stream, address, permit)) = accepted else {
                continue;
            };
            let peer = room.peer(address);
            let Some(own) = peer.connection() else {
                tracing::debug!(%address, "too many connections from one address");
                continue;
            };
            let service = Service {
                handler: handler.clone(),
                room: room.clone(),
                peer,
                idle: Arc::default(),
            };
            let (acceptor, watcher) = (acceptor.clone(), graceful.watcher());
            connections.spawn(async move {
                let _permits = (permit, own);
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
    room: &Room,
) -> Option<(TcpStream, IpAddr, OwnedSemaphorePermit)> {
    let permit = room.connection().await?;
    match listener.accept().await {
        Ok((stream, address)) => {
            let _ = stream.set_nodelay(true);
            Some((stream, address.ip(), permit))
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
    /// Of all connections, and of this address.
    room: Arc<Room>,
    peer: Arc<Peer>,
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
            let handler = self.handler.clone();
            let (room, peer) = (self.room.clone(), self.peer.clone());
            let busy = self.idle.busy();
            async move {
                let answer = match read(request, &room, &peer).await {
                    Ok((call, _taken)) if call.body.len() >= LARGE => {
                        let _alone = room.large.acquire().await;
                        handler(call).await
                    }
                    Ok((call, _taken)) => handler(call).await,
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

/// Reads a request; its room among the bodies is held until the answer is made.
async fn read(
    request: Request<Incoming>,
    room: &Room,
    peer: &Peer,
) -> Result<(Call, Taken), Answer> {
    let (head, body) = request.into_parts();
    let body = tokio::time::timeout(BODY_TIMEOUT, collect(body, room, peer)).await;
    let Ok(body) = body else {
        let why = "the body took too long\n";
        return Err(Answer::text(StatusCode::REQUEST_TIMEOUT, why));
    };
    let (body, taken) = body?;
    let header = |name: header::HeaderName| head.headers.get(name)?.to_str().ok();
    let call = Call {
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        accept: header(header::ACCEPT).map(str::to_owned),
        content_type: header(header::CONTENT_TYPE)
            .and_then(|value| Some(value.split(';').next()?.trim().to_ascii_lowercase())),
        method: head.method,
        body,
    };
    Ok((call, taken))
}

/// A body, with the room that it took as it came: what is only announced takes none.
async fn collect(mut body: Incoming, room: &Room, peer: &Peer) -> Result<(Bytes, Taken), Answer> {
    let too_large = || {
        let why = "the body is larger than 3 MiB or broke off\n";
        Answer::text(StatusCode::PAYLOAD_TOO_LARGE, why)
    };
    if body.size_hint().lower() > LARGEST_BODY as u64 {
        return Err(too_large());
    }
    let mut taken = Taken::default();
    let mut all = Bytes::new();
    let mut joined: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| too_large())?.into_data() else {
            continue;
        };
        let bytes = all.len() + joined.len() + data.len();
        if bytes > LARGEST_BODY {
            return Err(too_large());
        }
        if !room.grow(peer, &mut taken, bytes).await {
            let why = "too much is being read already; ask again\n";
            return Err(Answer::text(StatusCode::SERVICE_UNAVAILABLE, why));
        }
        // Most bodies come in one piece, which is not copied.
        if bytes == data.len() {
            all = data;
        } else {
            if joined.is_empty() {
                joined = std::mem::take(&mut all).to_vec();
            }
            joined.extend_from_slice(&data);
        }
    }
    if !joined.is_empty() {
        all = joined.into();
    }
    Ok((all, taken))
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
