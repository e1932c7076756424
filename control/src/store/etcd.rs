//! A key of etcd, over the JSON gateway of its v3 API: reads are linearizable, a swap is one transaction that compares the
//! key's mod_revision.
//!
//! A request that was sent and not answered may have been carried out, or be so later: a member that stands still has it in
//! its socket and takes it up when it goes on. So reading the old value does not prove that the swap failed. [`read_back`]
//! proves it: it writes the old value again, which raises the mod_revision, and what is on its way then fails its comparison.
//! Each request has a connection of its own, since a client that finds its kept connection closed would send again by itself.
//!
//! [`read_back`]: ConfigStore::read_back

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value as Json, json};

use super::{ConfigStore, Error, Swapped, Value, Version, Versioned};

const MESSAGE_CHARACTERS_MAX: usize = 300;

pub struct EtcdStore {
    endpoints: Vec<String>,
    key: String,
    login: Option<(String, String)>,
    http: reqwest::Client,
    /// Of the last login; members know each other's tokens, and forget them after some minutes.
    token: Mutex<Option<String>>,
}

impl std::fmt::Debug for EtcdStore {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "EtcdStore({})", self.place())
    }
}

/// What became of a request at one endpoint.
enum Failure {
    /// It never left.
    Unsent(String),
    /// It left, and nothing is known of it.
    Unknown(String),
    /// It was read and not carried out.
    Refused { status: u16, message: String },
}

/// The state of the key as a transaction found it or left it.
struct Transaction {
    succeeded: bool,
    revision: String,
    found: Option<Versioned>,
}

impl EtcdStore {
    /// # Errors
    /// `Section`.
    pub fn new(section: &service::config::Etcd) -> Result<EtcdStore, Error> {
        let wrong = |key, reason: &str| Err(Error::Section { key, reason: reason.to_owned() });
        if section.endpoints.is_empty() || section.endpoints.len() > 16 {
            return wrong("endpoints", "name 1 to 16 members");
        }
        if !section.endpoints.iter().all(|endpoint| endpoint.starts_with("http://") && !endpoint.contains('@')) {
            return wrong("endpoints", "each is http://host:port; a user goes into `user`");
        }
        if section.key.is_empty() {
            return wrong("key", "it is empty");
        }
        if !(50..=60_000).contains(&section.timeout_ms) {
            return wrong("timeout_ms", "it is outside of 50 to 60000");
        }
        let login = match (&section.user, &section.password) {
            (Some(user), Some(password)) => Some((user.clone(), password.clone())),
            (None, None) => None,
            _ => return wrong("user", "user and password go together"),
        };
        let limit = Duration::from_millis(section.timeout_ms);
        // Half of it for the connection, so that one that was not made is told from an answer that did not come.
        let http = reqwest::Client::builder()
            .timeout(limit)
            .connect_timeout(limit / 2)
            .pool_max_idle_per_host(0)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|error| Error::Section { key: "endpoints", reason: error.to_string() })?;
        let endpoints = section.endpoints.iter().map(|endpoint| endpoint.trim_end_matches('/').to_owned()).collect();
        Ok(EtcdStore { endpoints, key: section.key.clone(), login, http, token: Mutex::new(None) })
    }

    fn token(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One request to one endpoint, sent once.
    async fn send(&self, endpoint: &str, path: &str, body: &Json, token: Option<String>) -> Result<Json, Failure> {
        let mut request = self.http.post(format!("{endpoint}{path}")).json(body);
        if let Some(token) = token {
            request = request.header("authorization", token);
        }
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() || error.is_builder() => return Err(Failure::Unsent(told(&error))),
            Err(error) => return Err(Failure::Unknown(told(&error))),
        };
        let status = response.status().as_u16();
        match (status, response.bytes().await) {
            (200, Ok(bytes)) => {
                serde_json::from_slice(&bytes).map_err(|_| Failure::Unknown("it answered no JSON".into()))
            }
            // What a member says of a request that it did not propose. Others (408, 499, 5xx) say nothing about it: etcd answers
            // "request timed out" to what it carries out a moment later.
            (400 | 401 | 403 | 404 | 409 | 412 | 429, bytes) => {
                let message = self.without_key_and_value(&bytes.unwrap_or_default());
                Err(Failure::Refused { status, message })
            }
            (_, Ok(bytes)) => Err(Failure::Unknown(format!("HTTP {status}: {}", self.without_key_and_value(&bytes)))),
            (_, Err(error)) => Err(Failure::Unknown(told(&error))),
        }
    }

    /// etcd's own words. It does not quote values; if it ever does, base64 of one is no name that we know.
    fn without_key_and_value(&self, body: &[u8]) -> String {
        let answer: Json = serde_json::from_slice(body).unwrap_or_default();
        let message = answer["message"].as_str().or(answer["error"].as_str()).unwrap_or("(no message)");
        message.chars().take(MESSAGE_CHARACTERS_MAX).collect()
    }

    /// As `send`, logged in where that is needed. A token that is not known any more is replaced, and the request, which was
    /// not carried out, sent again with the new one.
    async fn ask(&self, endpoint: &str, path: &str, body: &Json) -> Result<Json, Failure> {
        let Some((user, password)) = &self.login else { return self.send(endpoint, path, body, None).await };
        for fresh in [false, true] {
            let kept = self.token().clone().filter(|_| !fresh);
            let token = match kept {
                Some(token) => token,
                None => {
                    let body = json!({"name": user, "password": password});
                    let answer = match self.send(endpoint, "/v3/auth/authenticate", &body, None).await {
                        // No answer to a login leaves the request itself unsent.
                        Err(Failure::Unknown(why)) => return Err(Failure::Unsent(format!("login: {why}"))),
                        other => other?,
                    };
                    let token = answer["token"].as_str().unwrap_or_default().to_owned();
                    *self.token() = Some(token.clone());
                    token
                }
            };
            match self.send(endpoint, path, body, Some(token)).await {
                Err(Failure::Refused { status, message }) if !fresh && outdated(status, &message) => {}
                outcome => return outcome,
            }
        }
        unreachable!("the second turn returns")
    }

    async fn range(&self) -> Result<Option<Versioned>, Error> {
        const WHAT: &str = "read the key";
        let mut tried = String::new();
        for endpoint in &self.endpoints {
            match self.ask(endpoint, "/v3/kv/range", &json!({"key": BASE64.encode(&self.key)})).await {
                Ok(answer) => return self.found(endpoint, &answer),
                Err(Failure::Unsent(why) | Failure::Unknown(why)) => note(&mut tried, endpoint, &why),
                Err(Failure::Refused { status, message }) => {
                    return Err(Error::EtcdRefused { endpoint: endpoint.clone(), what: WHAT, status, message });
                }
            }
        }
        Err(Error::EtcdSilent { what: WHAT, tried })
    }

    /// The one pair of a range answer.
    fn found(&self, endpoint: &str, answer: &Json) -> Result<Option<Versioned>, Error> {
        let Some(pair) = answer["kvs"].as_array().and_then(|pairs| pairs.first()) else { return Ok(None) };
        let malformed =
            |message: &str| Error::EtcdAnswer { endpoint: endpoint.to_owned(), message: message.to_owned() };
        let revision = pair["mod_revision"].as_str().ok_or_else(|| malformed("a pair without mod_revision"))?;
        // An empty value is left out.
        let value = pair["value"].as_str().unwrap_or_default();
        let value = BASE64.decode(value).map_err(|_| malformed("a value that is not base64"))?;
        let value = Value::from_bytes(&self.place(), &value)?;
        Ok(Some(Versioned { value, version: Version(revision.to_owned()) }))
    }

    /// `Ok(Err(why))`: nobody knows.
    async fn transact(&self, expected: &Version, value: &Value) -> Result<Result<Transaction, String>, Error> {
        let key = BASE64.encode(&self.key);
        let body = json!({
            "compare": [{"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": expected.0}],
            "success": [{"request_put": {"key": key, "value": BASE64.encode(value.expose())}}],
            "failure": [{"request_range": {"key": key}}],
        });
        const WHAT: &str = "swap the key";
        let mut tried = String::new();
        for endpoint in &self.endpoints {
            let answer = match self.ask(endpoint, "/v3/kv/txn", &body).await {
                Ok(answer) => answer,
                Err(Failure::Unsent(why)) => {
                    note(&mut tried, endpoint, &why);
                    continue;
                }
                Err(Failure::Unknown(why)) => return Ok(Err(format!("etcd at {endpoint} gave no answer: {why}"))),
                Err(Failure::Refused { status, message }) => {
                    return Err(Error::EtcdRefused { endpoint: endpoint.clone(), what: WHAT, status, message });
                }
            };
            let Some(revision) = answer["header"]["revision"].as_str().map(str::to_owned) else {
                return Ok(Err(format!("etcd at {endpoint} answered without a revision")));
            };
            // False is left out.
            let succeeded = answer["succeeded"].as_bool().unwrap_or(false);
            // A value that is none of ours to read still was not replaced.
            let found = self.found(endpoint, &answer["responses"][0]["response_range"]).ok().flatten();
            return Ok(Ok(Transaction { succeeded, revision, found }));
        }
        Err(Error::EtcdSilent { what: WHAT, tried })
    }

    fn decided(&self, found: Option<Versioned>, value: &Value) -> Swapped {
        match found {
            Some(found) if self.same(&found.value, value) => Swapped::Applied(found.version),
            found => Swapped::NotApplied { found },
        }
    }
}

impl ConfigStore for EtcdStore {
    fn place(&self) -> String {
        format!("etcd key {} at {}", self.key, self.endpoints.join(", "))
    }

    async fn get(&self) -> Result<Versioned, Error> {
        self.range().await?.ok_or_else(|| Error::Absent { place: self.place() })
    }

    async fn compare_and_swap(&self, expected: &Version, value: &Value) -> Result<Swapped, Error> {
        if !expected.0.parse::<u64>().is_ok_and(|revision| revision > 0) {
            // Not a version of ours; 0 would mean a key that is not there.
            return Ok(Swapped::NotApplied { found: self.range().await? });
        }
        Ok(match self.transact(expected, value).await? {
            Err(why) => Swapped::Ambiguous { why },
            Ok(Transaction { succeeded: true, revision, .. }) => Swapped::Applied(Version(revision)),
            Ok(Transaction { found, .. }) => Swapped::NotApplied { found },
        })
    }

    async fn read_back(&self, expected: &Version, value: &Value) -> Result<Swapped, Error> {
        let found = self.range().await?;
        let Some(unchanged) = found.as_ref().filter(|found| found.version == *expected) else {
            return Ok(self.decided(found, value));
        };
        // It may be on its way. The same value under a new revision makes it fail.
        Ok(match self.transact(expected, &unchanged.value).await? {
            Err(why) => Swapped::Ambiguous { why },
            Ok(Transaction { succeeded: true, revision, .. }) => {
                let found = Versioned { value: unchanged.value.clone(), version: Version(revision) };
                Swapped::NotApplied { found: Some(found) }
            }
            Ok(Transaction { found, .. }) => self.decided(found, value),
        })
    }
}

/// Whether the token, and not the request, was refused: it was forgotten, or users have changed since.
fn outdated(status: u16, message: &str) -> bool {
    status == 401 || message.contains("invalid auth token") || message.contains("revision of auth store is old")
}

fn note(tried: &mut String, endpoint: &str, why: &str) {
    let separator = if tried.is_empty() { "" } else { "; " };
    // Writing to a String cannot fail.
    let _ = write!(tried, "{separator}{endpoint}: {why}");
}

/// The innermost cause: "error sending request" tells nobody anything.
fn told(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".into();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
