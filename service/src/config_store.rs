//! `[config_store]`: where the application learns its database's address.

use std::path::PathBuf;

use serde::Deserialize;

use crate::config::without_password;

/// Where the application learns its database's address.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "lowercase")]
pub enum ConfigStore {
    /// A file whose whole content is the application's connection URL.
    File { path: PathBuf },
    /// A key of etcd whose value is the application's connection URL.
    Etcd(Etcd),
    /// An entry of `[databases]` in PgBouncer's configuration.
    Pgbouncer(Pgbouncer),
    /// A program of the user's that reads and swaps the URL.
    Command(Command),
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Etcd {
    /// `http://host:2379`, each a member of one cluster.
    pub endpoints: Vec<String>,
    pub key: String,
    /// With `password`, where etcd's authentication is on.
    #[serde(default)]
    pub user: Option<String>,
    #[serde(default)]
    pub password: Option<String>,
    /// Milliseconds for one answer of one endpoint.
    #[serde(default = "two_thousand")]
    pub timeout_ms: u64,
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the password, nor one that an endpoint may hold.
        write!(out, "Etcd({} endpoints, key {}, user {:?})", self.endpoints.len(), self.key, self.user)
    }
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pgbouncer {
    /// URL of the admin console: `postgresql://user:password@host:6432/pgbouncer`, the user one of `admin_users`.
    pub admin_url: String,
    /// The file with the entry: pgbouncer.ini, or what it includes.
    pub ini: PathBuf,
    /// Name of the entry in `[databases]`.
    pub database: String,
    /// What becomes of clients that hold their connection for longer than the pause may take (session pooling, an open
    /// transaction).
    #[serde(default)]
    pub held: Held,
}

/// See [`Pgbouncer::held`].
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Held {
    /// Everybody is let go, and the switch does not take place.
    #[default]
    Resume,
    /// All clients of the entry are disconnected (`KILL`), and reconnect to the other side.
    Kill,
}

impl std::fmt::Debug for Pgbouncer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (url, ini) = (without_password(&self.admin_url), self.ini.display());
        write!(out, "Pgbouncer({url}, {} in {ini}, held {:?})", self.database, self.held)
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// The program, by its path, and its first arguments; `get` or `cas VERSION` follow.
    pub command: Vec<String>,
    /// Seconds after which it is killed with all that it started.
    #[serde(default = "thirty")]
    pub timeout_seconds: u64,
}

fn two_thousand() -> u64 {
    2_000
}

fn thirty() -> u64 {
    30
}
