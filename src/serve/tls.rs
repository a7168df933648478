//! TLS with a certificate that can be swapped while serving, and the client's side.

use arc_swap::ArcSwapOption;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;

/// The certificate in use; none until one was set, and then handshakes fail.
#[derive(Debug, Default)]
pub struct Certificate(ArcSwapOption<CertifiedKey>);

/// A pair that cannot be used: the one before stays.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("the certificate or key is not PEM")]
    Pem(#[source] rustls::pki_types::pem::Error),
    #[error("the key does not fit the certificate")]
    Pair(#[source] rustls::Error),
    #[error("the authority's certificate cannot be used")]
    Authority(#[source] rustls::Error),
}

impl Certificate {
    /// Swaps in a certificate chain and key, both PEM.
    pub fn set(&self, chain: &[u8], key: &[u8]) -> Result<(), CertificateError> {
        let (chain, key) = (certificates(chain)?, private_key(key)?);
        let provider = rustls::crypto::ring::default_provider();
        let pair = CertifiedKey::from_der(chain, key, &provider).map_err(CertificateError::Pair)?;
        self.0.store(Some(Arc::new(pair)));
        Ok(())
    }

    pub fn is_set(&self) -> bool {
        self.0.load().is_some()
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    all.map_err(CertificateError::Pem)
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, CertificateError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(CertificateError::Pem)
}

/// The authorities of a PEM file.
pub(super) fn authorities(pem: &[u8]) -> Result<RootCertStore, CertificateError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(pem)? {
        store
            .add(certificate)
            .map_err(CertificateError::Authority)?;
    }
    Ok(store)
}

/// A client that believes servers of one authority alone and proves who it is; all PEM.
///
/// # Errors
/// See [`CertificateError`].
pub fn client_config(
    authority: &[u8],
    chain: &[u8],
    key: &[u8],
) -> Result<ClientConfig, CertificateError> {
    let mut config = ClientConfig::builder()
        .with_root_certificates(authorities(authority)?)
        .with_client_auth_cert(certificates(chain)?, private_key(key)?)
        .map_err(CertificateError::Pair)?;
    // Sessions are kept by name, and all exporters bear one.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// A server configuration that takes its certificate from `certificate`, h2 and HTTP/1.1.
pub fn server_config(certificate: Arc<Certificate>) -> Arc<rustls::ServerConfig> {
    let mut config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}
