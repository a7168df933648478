//! Certificates of Jouleward's own: an authority, and leaves that it signs.

use jiff::{Timestamp, ToSpan};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// Why no certificate could be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum MakeError {
    #[error("the certificate cannot be made")]
    Rcgen(#[from] rcgen::Error),
    #[error("the certificate's dates are out of range")]
    Dates,
}

/// A certificate and its key, both PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) certificate: String,
    pub(super) key: String,
    pub(super) expires: Timestamp,
}

/// A new authority that signs leaves and nothing else.
pub(super) fn authority(name: &str, now: Timestamp, days: i64) -> Result<Pair, MakeError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // Distinct names, or a client takes the leaf for its own issuer.
    params
        .distinguished_name
        .push(DnType::CommonName, format!("{name} {}", now.as_second()));
    let expires = dates(&mut params, now, days)?;
    let key = KeyPair::generate()?;
    Ok(Pair {
        certificate: params.self_signed(&key)?.pem(),
        key: key.serialize_pem(),
        expires,
    })
}

/// A leaf for these host names and addresses, and for one side of a connection alone.
pub(super) fn leaf(
    authority: &Pair,
    name: &str,
    hosts: &[String],
    usage: ExtendedKeyUsagePurpose,
    now: Timestamp,
    days: i64,
) -> Result<Pair, MakeError> {
    let key = KeyPair::from_pem(&authority.key)?;
    let issuer = Issuer::from_ca_cert_pem(&authority.certificate, key)?;
    let mut params = CertificateParams::new(hosts.to_vec())?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    let expires = dates(&mut params, now, days)?;
    let key = KeyPair::generate()?;
    Ok(Pair {
        certificate: params.signed_by(&key, &issuer)?.pem(),
        key: key.serialize_pem(),
        expires,
    })
}

/// From a day ago, for clocks that differ.
fn dates(
    params: &mut CertificateParams,
    now: Timestamp,
    days: i64,
) -> Result<Timestamp, MakeError> {
    let from = now.checked_sub(24.hours()).map_err(|_| MakeError::Dates)?;
    let until = now
        .checked_add((24 * days).hours())
        .map_err(|_| MakeError::Dates)?;
    params.not_before = date(from)?;
    params.not_after = date(until)?;
    Ok(until)
}

fn date(at: Timestamp) -> Result<time::OffsetDateTime, MakeError> {
    time::OffsetDateTime::from_unix_timestamp(at.as_second()).map_err(|_| MakeError::Dates)
}
