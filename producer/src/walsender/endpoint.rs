//! The connection url: what libpq understands by it, as far as a replication connection needs it.
//!
//! `tokio_postgres::Config` parses the url. What it does not know (the sslmodes that verify, certificate files) is taken out
//! of the query part before.

use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{ChannelBinding, Host, SslNegotiation};

use super::error::WalsenderError;

/// Where the url has no `connect_timeout`. For each host, from the first packet to ReadyForQuery.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Settings that decide how values are printed and how long we may wait; the copy and target sessions pin the same ones.
///
/// `extra_float_digits` is 3 and not 1: from PostgreSQL 12 on every value above 0 means "shortest exact", before that only 3 is
/// exact; so 3 is right on all of them. `search_path` is empty so that names inside of values (regclass and the like) are
/// printed with their schema. `wal_sender_timeout` is the server's business: it must notice that we died.
const PINNED_SETTINGS: [(&str, &str); 11] = [
    ("DateStyle", "ISO"),
    ("IntervalStyle", "postgres"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("TimeZone", "UTC"),
    ("lc_monetary", "C"),
    ("search_path", ""),
    ("row_security", "off"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TlsMode {
    Disable,
    /// TLS if the server has it, unverified; plain if not. Also `allow`, which only tries in the other order.
    Prefer,
    /// TLS, unverified; verified as `VerifyCa` where sslrootcert is given (as libpq).
    Require,
    /// The certificate must be signed by a known authority.
    VerifyCa,
    /// ... and be made out to the url's host.
    VerifyFull,
}

impl TlsMode {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    /// `connect` is the address to dial where the url has hostaddr, else the name.
    Tcp { host: String, connect: String, port: u16 },
    /// The socket's path.
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { host, port, .. } => write!(formatter, "{host}:{port}"),
            Self::Unix(path) => write!(formatter, "{}", path.display()),
        }
    }
}

/// Everything that the url says. Not `Debug`: it holds the password.
pub(super) struct Endpoint {
    /// Tried in order; never empty.
    pub addresses: Vec<Address>,
    pub user: String,
    pub database: String,
    pub password: Option<Vec<u8>>,
    pub tls: TlsMode,
    pub tls_direct: bool,
    /// `sslrootcert`; `None` and `system` mean the machine's own authorities.
    pub root_certificates: Option<PathBuf>,
    /// `sslcert` and `sslkey`.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    pub channel_binding: ChannelBinding,
    pub connect_timeout: Duration,
    /// The url's own `options`, before ours.
    pub options: Option<String>,
}

impl Endpoint {
    pub(super) fn parse(url: &str) -> Result<Self, WalsenderError> {
        let refused = |reason: String| WalsenderError::Url { reason };
        let TlsParameters { rest, mode, root, certificate, key } = take_tls_parameters(url)?;
        if !rest.starts_with("postgres://") && !rest.starts_with("postgresql://") {
            return Err(refused("it does not begin with postgres://".to_owned()));
        }
        // The parser's text names the parameter, never its value.
        let config: Config = rest.parse().map_err(|error: tokio_postgres::Error| {
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            refused(cause)
        })?;
        let user = config.get_user().filter(|user| !user.is_empty());
        let user = user.ok_or_else(|| refused("it names no user".to_owned()))?.to_owned();
        let tls = match mode.as_deref() {
            None | Some("prefer" | "allow") => TlsMode::Prefer,
            Some("disable") => TlsMode::Disable,
            Some("require") if root.is_some() => TlsMode::VerifyCa,
            Some("require") => TlsMode::Require,
            Some("verify-ca") => TlsMode::VerifyCa,
            Some("verify-full") => TlsMode::VerifyFull,
            Some(_) => {
                return Err(refused("sslmode is none of disable, prefer, require, verify-ca, verify-full".to_owned()));
            }
        };
        let client_certificate = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((PathBuf::from(certificate), PathBuf::from(key))),
            (None, None) => None,
            _ => return Err(refused("sslcert and sslkey are given only together".to_owned())),
        };
        Ok(Self {
            addresses: addresses(&config)?,
            database: config.get_dbname().filter(|name| !name.is_empty()).unwrap_or(&user).to_owned(),
            user,
            password: config.get_password().map(<[u8]>::to_vec),
            tls,
            tls_direct: config.get_ssl_negotiation() == SslNegotiation::Direct,
            root_certificates: root.filter(|root| root != "system").map(PathBuf::from),
            client_certificate,
            channel_binding: config.get_channel_binding(),
            connect_timeout: config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT),
            options: config.get_options().map(ToOwned::to_owned),
        })
    }

    /// The startup parameter `options`: the url's, then our pinned settings, so that ours win.
    pub(super) fn startup_options(&self) -> String {
        let mut options = self.options.clone().unwrap_or_default();
        for (name, value) in PINNED_SETTINGS {
            if !options.is_empty() {
                options.push(' ');
            }
            options.push_str("-c ");
            options.push_str(name);
            options.push('=');
            // The server splits at white space; a backslash takes the next byte as it is (pg_split_opts).
            for letter in value.chars() {
                if letter.is_ascii_whitespace() || letter == '\\' {
                    options.push('\\');
                }
                options.push(letter);
            }
        }
        options
    }
}

fn addresses(config: &Config) -> Result<Vec<Address>, WalsenderError> {
    let refused = |reason: &str| WalsenderError::Url { reason: reason.to_owned() };
    let (hosts, numbers, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    let count = hosts.len().max(numbers.len());
    if count == 0 {
        return Err(refused("it names no host"));
    }
    if !hosts.is_empty() && !numbers.is_empty() && hosts.len() != numbers.len() {
        return Err(refused("it has as many hostaddr as host, or none"));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(refused("it has one port, or one for each host"));
    }
    let address = |index: usize| {
        let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
        let number = numbers.get(index).map(ToString::to_string);
        match (hosts.get(index), number) {
            (Some(Host::Unix(folder)), None) => Address::Unix(folder.join(format!(".s.PGSQL.{port}"))),
            (Some(Host::Tcp(host)), number) => {
                Address::Tcp { host: host.clone(), connect: number.unwrap_or_else(|| host.clone()), port }
            }
            (_, number) => {
                let number = number.unwrap_or_default();
                Address::Tcp { host: number.clone(), connect: number, port }
            }
        }
    };
    Ok((0..count).map(address).collect())
}

#[derive(Default)]
struct TlsParameters {
    /// The url without them.
    rest: String,
    mode: Option<String>,
    root: Option<String>,
    certificate: Option<String>,
    key: Option<String>,
}

fn take_tls_parameters(url: &str) -> Result<TlsParameters, WalsenderError> {
    let (head, query) = url.split_once('?').unwrap_or((url, ""));
    let mut taken = TlsParameters { rest: head.to_owned(), ..TlsParameters::default() };
    let mut separator = '?';
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let field = match name {
            "sslmode" => &mut taken.mode,
            "sslrootcert" => &mut taken.root,
            "sslcert" => &mut taken.certificate,
            "sslkey" => &mut taken.key,
            _ => {
                taken.rest.push(separator);
                taken.rest.push_str(pair);
                separator = '&';
                continue;
            }
        };
        *field = Some(percent_decoded(name, value)?).filter(|value| !value.is_empty());
    }
    Ok(taken)
}

fn percent_decoded(name: &str, value: &str) -> Result<String, WalsenderError> {
    let refused = || WalsenderError::Url { reason: format!("{name} has a % escape that is none") };
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, tail) = rest.split_first_chunk::<2>().ok_or_else(refused)?;
        let digits = std::str::from_utf8(digits).map_err(|_| refused())?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| refused())?);
        rest = tail;
    }
    String::from_utf8(bytes).map_err(|_| refused())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_libpq_url_is_understood_with_its_escapes() {
        let endpoint = Endpoint::parse(
            "postgresql://us%40er:p%3Aw%2F%25@db.example:6432/my%20db?sslmode=verify-full&connect_timeout=3\
             &sslrootcert=%2Fetc%2Fca%20x.pem&options=-c%20geqo%3Doff",
        )
        .unwrap();
        assert_eq!(endpoint.user, "us@er");
        assert_eq!(endpoint.password.as_deref(), Some(b"p:w/%".as_slice()));
        assert_eq!(endpoint.database, "my db");
        assert_eq!(endpoint.tls, TlsMode::VerifyFull);
        assert_eq!(endpoint.root_certificates, Some(PathBuf::from("/etc/ca x.pem")));
        assert_eq!(endpoint.connect_timeout, Duration::from_secs(3));
        let host = "db.example".to_owned();
        assert_eq!(endpoint.addresses, [Address::Tcp { connect: host.clone(), host, port: 6432 }]);
        assert!(endpoint.startup_options().starts_with("-c geqo=off -c DateStyle=ISO "));
        assert!(endpoint.startup_options().contains(" -c search_path= -c "));
    }

    #[test]
    fn a_host_that_is_a_path_is_a_unix_socket() {
        for url in ["postgres://u@%2Frun%2Fpg:5433/d", "postgres://u@/d?host=/run/pg&port=5433"] {
            let endpoint = Endpoint::parse(url).unwrap();
            assert_eq!(endpoint.addresses, [Address::Unix("/run/pg/.s.PGSQL.5433".into())], "{url}");
        }
    }

    #[test]
    fn the_sslmodes_are_those_of_libpq() {
        let cases = [
            ("", TlsMode::Prefer),
            ("?sslmode=allow", TlsMode::Prefer),
            ("?sslmode=disable", TlsMode::Disable),
            ("?sslmode=require", TlsMode::Require),
            ("?sslmode=require&sslrootcert=/ca.pem", TlsMode::VerifyCa),
            ("?sslmode=verify-ca", TlsMode::VerifyCa),
        ];
        for (query, expected) in cases {
            assert_eq!(Endpoint::parse(&format!("postgres://u@h/d{query}")).unwrap().tls, expected, "{query}");
        }
    }

    #[test]
    fn a_bad_url_is_refused_without_its_password_in_the_text() {
        let bad = [
            "mysql://u:secret@h/d",
            "postgres://:secret@h/d",
            "postgres://u:secret@/d",
            "postgres://u:secret@h:port/d",
            "postgres://u:secret@h/d?sslmode=maybe",
            "postgres://u:secret@h/d?sslcert=/only",
            "postgres://u:secret@h/d?sslrootcert=%G1",
            "postgres://u:secret@h/d?unknown=1",
            "",
        ];
        for url in bad {
            let error = Endpoint::parse(url).err().unwrap_or_else(|| panic!("{url} was taken"));
            assert!(!error.to_string().contains("secret"), "{error}");
            assert!(error.hint().is_some());
        }
    }
}
