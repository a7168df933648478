//! A server that answers those alone who prove who they are, out of a folder of files that
//! may come, and change, while it serves: a mounted Secret.

use super::tls::{Certificate, CertificateError, authorities};
use arc_swap::ArcSwapOption;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{CertificateError as Unbelieved, DigitallySignedStruct, DistinguishedName};
use rustls::{Error, ServerConfig, SignatureScheme};
use std::path::PathBuf;
use std::sync::Arc;

/// Files of a Secret of type kubernetes.io/tls.
const FILES: [&str; 3] = ["ca.crt", "tls.crt", "tls.key"];

/// The folder, and what was last taken from it.
#[derive(Debug)]
pub struct Mounted {
    folder: PathBuf,
    taken: Option<[Vec<u8>; 3]>,
    certificate: Arc<Certificate>,
    clients: Arc<Clients>,
}

/// Why the folder's files cannot be used: those before stay in use.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("{0} cannot be read; is the Secret mounted there?")]
    Read(PathBuf, #[source] std::io::Error),
    #[error("the files of {0} cannot be used")]
    Certificate(PathBuf, #[source] CertificateError),
    #[error("ca.crt of {0} names no authority that can be used")]
    Authority(PathBuf),
}

impl Mounted {
    /// Nothing is read yet: until something is, every handshake fails.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            taken: None,
            certificate: Arc::default(),
            clients: Arc::default(),
        }
    }

    /// A configuration for one authority's clients alone, from the files as they are by then.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        let mut config = ServerConfig::builder()
            .with_client_cert_verifier(self.clients.clone())
            .with_cert_resolver(self.certificate.clone());
        // A session that is resumed asks for no certificate: it would outlive its authority.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Arc::new(config)
    }

    /// Takes up the files where they have changed; true where it did.
    ///
    /// # Errors
    /// See [`MountError`].
    pub fn refresh(&mut self) -> Result<bool, MountError> {
        let read = |name: &str| {
            let path = self.folder.join(name);
            std::fs::read(&path).map_err(|error| MountError::Read(path, error))
        };
        let files = [read(FILES[0])?, read(FILES[1])?, read(FILES[2])?];
        if self.taken.as_ref() == Some(&files) {
            return Ok(false);
        }
        let unusable = |error| MountError::Certificate(self.folder.clone(), error);
        let roots = authorities(&files[0]).map_err(unusable)?;
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build();
        let verifier = verifier.map_err(|_| MountError::Authority(self.folder.clone()))?;
        self.certificate
            .set(&files[1], &files[2])
            .map_err(unusable)?;
        self.clients.0.store(Some(Arc::new(verifier)));
        self.taken = Some(files);
        Ok(true)
    }
}

/// Believes whom the authority of the moment has signed; nobody before there is one.
#[derive(Debug, Default)]
struct Clients(ArcSwapOption<Arc<dyn ClientCertVerifier>>);

impl Clients {
    fn now(&self) -> Result<Arc<dyn ClientCertVerifier>, Error> {
        let verifier = self.0.load();
        let unknown = Error::InvalidCertificate(Unbelieved::UnknownIssuer);
        verifier.as_ref().map(|v| (**v).clone()).ok_or(unknown)
    }
}

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // None: the one client there is has one certificate to show.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.now()?
            .verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.now()?
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.now()?
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
