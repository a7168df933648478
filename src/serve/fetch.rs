//! One plain GET of one of our own endpoints, bounded in size; the caller bounds its time.

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use tokio::net::TcpStream;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("cannot reach {0}")]
    Connect(SocketAddr, #[source] std::io::Error),
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
    let broke = |error| FetchError::Http(address, error);
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| FetchError::Connect(address, error))?;
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
