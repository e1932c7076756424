//! TLS as libpq's sslmode means it, on rustls with ring, and the certificate's hash for SCRAM's channel binding.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio_rustls::TlsConnector;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::oid::db::rfc5912 as oid;

use super::endpoint::{Endpoint, TlsMode};
use super::error::WalsenderError;

pub(super) fn connector(endpoint: &Endpoint) -> Result<TlsConnector, WalsenderError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match endpoint.tls {
        TlsMode::Disable | TlsMode::Prefer | TlsMode::Require => {
            Arc::new(Unverified { provider: Arc::clone(&provider) })
        }
        TlsMode::VerifyCa | TlsMode::VerifyFull => Arc::new(Verified {
            known: known_certificates(endpoint.root_certificates.as_deref())?,
            check_name: endpoint.tls == TlsMode::VerifyFull,
            provider: Arc::clone(&provider),
        }),
    };
    let tls_error = |error: Error| WalsenderError::Tls {
        endpoint: endpoint.addresses.first().map(ToString::to_string).unwrap_or_default(),
        source: std::io::Error::other(error),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(tls_error)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match &endpoint.client_certificate {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let private_key = PrivateKeyDer::from_pem_file(key).map_err(|error| file_error("sslkey", key, &error))?;
            builder.with_client_auth_cert(read_certificates("sslcert", certificate)?, private_key).map_err(tls_error)?
        }
    };
    // Demanded with sslnegotiation=direct, ignored by servers before 17.
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

fn file_error(parameter: &'static str, path: &Path, error: &dyn std::fmt::Display) -> WalsenderError {
    WalsenderError::CertificateFile { parameter, path: path.display().to_string(), reason: error.to_string() }
}

fn read_certificates(parameter: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, WalsenderError> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| file_error(parameter, path, &error))?;
    if certificates.is_empty() {
        return Err(file_error(parameter, path, &"it holds no certificate"));
    }
    Ok(certificates)
}

/// The authorities, and the certificates themselves: a server's self-signed certificate that is given as its own authority
/// passes in libpq, and does not as a chain in rustls (an authority must not be an end entity).
struct Known {
    roots: RootCertStore,
    pinned: Vec<CertificateDer<'static>>,
}

fn known_certificates(file: Option<&Path>) -> Result<Known, WalsenderError> {
    let mut roots = RootCertStore::empty();
    let pinned = match file {
        Some(path) => {
            let certificates = read_certificates("sslrootcert", path)?;
            roots.add_parsable_certificates(certificates.iter().cloned());
            certificates
        }
        None => {
            // What cannot be loaded is missing then from the roots, and the handshake says so.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            Vec::new()
        }
    };
    Ok(Known { roots, pinned })
}

struct Verified {
    known: Known,
    check_name: bool,
    provider: Arc<CryptoProvider>,
}

impl std::fmt::Debug for Verified {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Verified({} roots, check_name {})", self.known.roots.len(), self.check_name)
    }
}

impl ServerCertVerifier for Verified {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        if self.known.pinned.iter().any(|pinned| pinned == end_entity) {
            check_validity(end_entity, now)?;
        } else {
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&certificate, &self.known.roots, intermediates, now, algorithms)?;
        }
        if self.check_name {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn check_validity(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let parsed = Certificate::from_der(certificate).map_err(|_| Error::from(CertificateError::BadEncoding))?;
    let validity = parsed.tbs_certificate.validity;
    if now.as_secs() < validity.not_before.to_unix_duration().as_secs() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now.as_secs() > validity.not_after.to_unix_duration().as_secs() {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

/// sslmode=prefer and require: the line is encrypted, the other end is anyone's.
///
/// The handshake's signature is not checked either: who may show any certificate can sign with its own key, and the check would
/// refuse the X.509 version 1 certificates that PostgreSQL's manual makes with `openssl x509 -req`.
#[derive(Debug)]
struct Unverified {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// `tls-server-end-point` (RFC 5929): the certificate hashed with its signature's own hash, MD5 and SHA-1 replaced by SHA-256.
/// `None` where that hash is not defined (Ed25519); then there is no channel binding.
pub(super) fn server_end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let parsed = Certificate::from_der(certificate).ok()?;
    let algorithm = match parsed.signature_algorithm.oid {
        oid::MD_5_WITH_RSA_ENCRYPTION
        | oid::SHA_1_WITH_RSA_ENCRYPTION
        | oid::SHA_256_WITH_RSA_ENCRYPTION
        | oid::ECDSA_WITH_SHA_256 => &ring::digest::SHA256,
        oid::SHA_384_WITH_RSA_ENCRYPTION | oid::ECDSA_WITH_SHA_384 => &ring::digest::SHA384,
        oid::SHA_512_WITH_RSA_ENCRYPTION | oid::ECDSA_WITH_SHA_512 => &ring::digest::SHA512,
        _ => return None,
    };
    Some(ring::digest::digest(algorithm, certificate).as_ref().to_vec())
}
