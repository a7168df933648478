//! One GET of one of our own endpoints, bounded in size; the caller bounds its time.

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("cannot reach {0}")]
    Connect(SocketAddr, #[source] std::io::Error),
    #[error("{0} did not prove that it is {1}, or does not believe us")]
    Tls(SocketAddr, &'static str, #[source] std::io::Error),
    #[error("the connection to {0} broke off")]
    Http(SocketAddr, #[source] hyper::Error),
    #[error("the answer of {0} is too large or broke off")]
    Body(SocketAddr),
    #[error("{0} answered {1}")]
    Status(SocketAddr, StatusCode),
    #[error("{0:?} is no path")]
    Path(String),
}

/// The body of a 200, at most `largest` bytes.
///
/// # Errors
/// See [`FetchError`].
pub async fn get(address: SocketAddr, path: &str, largest: usize) -> Result<Bytes, FetchError> {
    exchange(address, connect(address).await?, path, largest).await
}

/// The same over TLS, from a server that proves to be `name`.
///
/// # Errors
/// See [`FetchError`].
pub async fn get_tls(
    address: SocketAddr,
    name: &'static str,
    config: Arc<rustls::ClientConfig>,
    path: &str,
    largest: usize,
) -> Result<Bytes, FetchError> {
    let failed = |error| FetchError::Tls(address, name, error);
    let server = ServerName::try_from(name).map_err(|e| failed(std::io::Error::other(e)))?;
    let stream = connect(address).await?;
    let stream = TlsConnector::from(config).connect(server, stream).await;
    exchange(address, stream.map_err(failed)?, path, largest).await
}

async fn connect(address: SocketAddr) -> Result<TcpStream, FetchError> {
    TcpStream::connect(address)
        .await
        .map_err(|error| FetchError::Connect(address, error))
}

async fn exchange(
    address: SocketAddr,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    path: &str,
    largest: usize,
) -> Result<Bytes, FetchError> {
    let broke = |error| FetchError::Http(address, error);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broke)?;
    let request = Request::get(path)
        .header(header::HOST, address.to_string())
        .body(Empty::<Bytes>::new())
        .map_err(|_| FetchError::Path(path.to_owned()))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(broke)?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status(address, response.status()));
        }
        let body = Limited::new(response.into_body(), largest).collect().await;
        Ok(body.map_err(|_| FetchError::Body(address))?.to_bytes())
    };
    tokio::select! {
        body = exchange => body,
        _ = connection => Err(FetchError::Body(address)),
    }
}
