//! PostgreSQL sessions: the URL, TLS, and the settings that every session of every program pins.
//!
//! A value's text depends on session settings. Copy, replication, target and validator sessions pin the same ones, so that a value
//! reads the same wherever it is read. The settings are given as statements, not as startup options: poolers refuse those.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres::Client;
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::Error;
use crate::config::without_password;

/// `(name, value)` of every pinned setting. `extra_float_digits` 1 gives the shortest exact digits since PostgreSQL 12; the
/// time-outs are ours to decide, not the database's defaults. `row_security` off: a row that a policy hides from us is an error
/// that names the table, where it would silently be missing in the copy.
pub const PINNED_SETTINGS: [(&str, &str); 14] = [
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, YMD"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "1"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    ("search_path", ""),
    ("standard_conforming_strings", "on"),
    ("row_security", "off"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    // Questions of the catalog are long and their answers short: compiling one takes seconds.
    ("jit", "off"),
];

/// Puts time-outs off that not every version has (`transaction_timeout` came with 17): an unknown one cannot be SET.
pub const LATER_TIMEOUTS_SQL: &str = "SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings \
    WHERE name IN ('transaction_timeout', 'idle_session_timeout')";

/// The pinned settings as one batch of statements.
pub fn pinned_settings_sql() -> String {
    let settings = PINNED_SETTINGS.iter().map(|(name, value)| format!("SET {name} = '{value}';"));
    settings.chain([format!("{LATER_TIMEOUTS_SQL};")]).collect()
}

/// How much of the server's certificate is checked, as libpq defines `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verification {
    /// disable, prefer, require: encrypted at most, not verified.
    None,
    /// verify-ca: signed by a trusted root.
    Authority,
    /// verify-full: and for this host.
    Full,
}

/// A parsed connection URL.
#[derive(Clone, Debug)]
pub struct Address {
    /// `source` or `target`, for messages.
    pub role: &'static str,
    pub config: tokio_postgres::Config,
    pub verification: Verification,
    /// PEM file of trusted roots; the system's roots if none.
    pub root_certificates: Option<String>,
    /// The URL without its password.
    pub printable: String,
}

impl Address {
    /// # Errors
    /// `Url`. Nothing is connected.
    pub fn parse(role: &'static str, url: &str) -> Result<Address, Error> {
        let printable = without_password(url);
        let invalid = |message: String| Error::Url { role, url: printable.clone(), message };
        let mut parsed = url::Url::parse(url).map_err(|error| invalid(error.to_string()))?;
        let mut verification = Verification::None;
        let mut root_certificates = None;
        let mut kept = Vec::new();
        for (name, value) in parsed.query_pairs() {
            match (&*name, &*value) {
                ("sslmode", "verify-ca") => verification = Verification::Authority,
                ("sslmode", "verify-full") => verification = Verification::Full,
                ("sslmode", "allow") => kept.push((name.into_owned(), "prefer".to_owned())),
                ("sslrootcert", file) => root_certificates = Some(file.to_owned()),
                _ => kept.push((name.into_owned(), value.into_owned())),
            }
        }
        parsed.set_query(None);
        if !kept.is_empty() {
            // tokio-postgres takes %20 and not `+` for a space.
            let query: Vec<String> =
                kept.iter().map(|(name, value)| format!("{name}={}", value.replace(' ', "%20"))).collect();
            parsed.set_query(Some(&query.join("&")));
        }
        let mut config: tokio_postgres::Config = parsed.as_str().parse().map_err(|error: tokio_postgres::Error| {
            let cause = std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
            invalid(format!("{error}{cause}"))
        })?;
        if config.get_hosts().is_empty() {
            return Err(invalid("it names no host".into()));
        }
        if config.get_dbname().is_none() {
            return Err(invalid("it names no database".into()));
        }
        if verification != Verification::None {
            config.ssl_mode(SslMode::Require);
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(std::time::Duration::from_secs(10));
        }
        Ok(Address { role, config, verification, root_certificates, printable })
    }

    /// `host:port`, for messages.
    pub fn host_and_port(&self) -> String {
        let host = match self.config.get_hosts().first() {
            Some(tokio_postgres::config::Host::Tcp(host)) => host.clone(),
            Some(tokio_postgres::config::Host::Unix(path)) => path.display().to_string(),
            None => String::new(),
        };
        format!("{host}:{}", self.config.get_ports().first().copied().unwrap_or(5432))
    }

    /// The TLS side of a connection, whether or not the server will want it.
    ///
    /// # Errors
    /// `Tls` if the root certificates cannot be read.
    pub fn tls(&self) -> Result<ClientConfig, Error> {
        let failed = |message: String| Error::Tls { role: self.role, message };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(error.to_string()))?;
        if self.verification == Verification::None {
            let verifier = Arc::new(Lenient { provider, roots: None });
            return Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth());
        }
        let mut roots = RootCertStore::empty();
        match &self.root_certificates {
            Some(file) => {
                let certificates =
                    CertificateDer::pem_file_iter(file).map_err(|error| failed(format!("{file}: {error}")))?;
                for certificate in certificates {
                    let certificate = certificate.map_err(|error| failed(format!("{file}: {error}")))?;
                    roots.add(certificate).map_err(|error| failed(format!("{file}: {error}")))?;
                }
            }
            None => {
                for certificate in rustls_native_certs::load_native_certs().certs {
                    // A system store may hold certificates that rustls does not take; the others serve.
                    let _ = roots.add(certificate);
                }
            }
        }
        let roots = Arc::new(roots);
        if self.verification == Verification::Authority {
            let verifier = Arc::new(Lenient { provider, roots: Some(roots) });
            return Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth());
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider)
            .build()
            .map_err(|error| failed(error.to_string()))?;
        Ok(builder.with_webpki_verifier(verifier).with_no_client_auth())
    }

    /// Opens a session with the pinned settings. The connection's task ends with the client.
    ///
    /// # Errors
    /// `Connect` with the server's own words.
    pub async fn connect(&self, application_name: &str) -> Result<Client, Error> {
        let client = self.connect_plain(application_name).await?;
        let failed = |source| Error::Connect { role: self.role, address: self.host_and_port(), source };
        client.batch_execute(&pinned_settings_sql()).await.map_err(failed)?;
        Ok(client)
    }

    /// Opens a session without the pinned settings, for what speaks the protocol and is no PostgreSQL (PgBouncer's console).
    ///
    /// # Errors
    /// `Connect` with the server's own words.
    pub async fn connect_plain(&self, application_name: &str) -> Result<Client, Error> {
        let failed = |source| Error::Connect { role: self.role, address: self.host_and_port(), source };
        let mut config = self.config.clone();
        config.application_name(application_name);
        let tls = MakeRustlsConnect::new(self.tls()?);
        let (client, connection) = config.connect(tls).await.map_err(failed)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                // Whoever uses the client gets the error too and handles it.
                tracing::debug!(%error, "session ended");
            }
        });
        Ok(client)
    }
}

/// libpq's sslmode below verify-full: no check of the certificate, or of its authority without the host name.
#[derive(Debug)]
struct Lenient {
    provider: Arc<CryptoProvider>,
    roots: Option<Arc<RootCertStore>>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(roots) = &self.roots {
            let parsed = ParsedCertificate::try_from(certificate)?;
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_checked_before_anything_is_connected() {
        for (url, part) in [
            ("nonsense", "relative URL"),
            ("postgresql://u:p@h:1", "no database"),
            ("postgresql://u:p@h:1/d?nosuch=1", "nosuch"),
        ] {
            let error = Address::parse("source", url).unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains(":p@"), "{error}");
        }
        let address =
            Address::parse("source", "postgresql://u:p%40@h:6543/d?sslmode=verify-full&sslrootcert=/r.pem").unwrap();
        assert_eq!(address.verification, Verification::Full);
        assert_eq!(address.root_certificates.as_deref(), Some("/r.pem"));
        assert_eq!(address.config.get_password(), Some("p@".as_bytes()));
        assert_eq!(address.host_and_port(), "h:6543");
    }
}
