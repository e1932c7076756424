//! Where an entry of PgBouncer sends its clients, and the connection URL that says the same. Pure.

use service::session::Address as Url;
use tokio_postgres::config::Host;

use crate::store::{Error, Value};

/// Where an entry sends its clients.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    /// Names or addresses with commas, or a folder of sockets. `None`: PgBouncer's default folder of sockets.
    pub host: Option<String>,
    pub port: String,
    pub database: String,
    /// Of all clients, where the entry says so; else each client comes as who it is.
    pub user: Option<String>,
    pub password: Option<String>,
}

impl std::fmt::Display for Address {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}:{}/{}", self.host.as_deref().unwrap_or("(socket)"), self.port, self.database)
    }
}

impl std::fmt::Debug for Address {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{self}")
    }
}

pub const PORT_DEFAULT: &str = "5432";

/// The address of a URL.
///
/// # Errors
/// `NotAValue` when it has what an entry cannot say.
pub fn address(value: &Value) -> Result<Address, Error> {
    let unfit = |reason: &str| Error::NotAValue { place: "the new value".into(), reason: reason.to_owned() };
    let parsed = Url::parse("application", value.expose()).map_err(|error| unfit(&error.to_string()))?;
    let config = &parsed.config;
    let host = match config.get_hosts() {
        [Host::Tcp(host)] => host.clone(),
        [Host::Unix(folder)] => folder.display().to_string(),
        _ => return Err(unfit("an entry of PgBouncer has one host")),
    };
    let password = config.get_password().map(|password| String::from_utf8_lossy(password).into_owned());
    Ok(Address {
        host: Some(host),
        port: config.get_ports().first().map_or_else(|| PORT_DEFAULT.to_owned(), u16::to_string),
        database: config.get_dbname().unwrap_or_default().to_owned(),
        user: config.get_user().map(str::to_owned),
        password,
    })
}

/// The URL of an address.
///
/// # Errors
/// `NotAValue` when it is longer than any URL is.
pub fn url(place: &str, address: &Address) -> Result<Value, Error> {
    let user = match (&address.user, &address.password) {
        (None, _) => String::new(),
        (Some(user), None) => format!("{}@", escaped(user)),
        (Some(user), Some(password)) => format!("{}:{}@", escaped(user), escaped(password)),
    };
    let host = address.host.as_deref().map(escaped).unwrap_or_default();
    Value::new(place, format!("postgresql://{user}{host}:{}/{}", address.port, escaped(&address.database)))
}

fn escaped(part: &str) -> String {
    part.bytes().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"._-,".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
        text
    })
}
