//! The schema registry's Confluent-compatible API: a few calls, so we own them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use crate::Error;

const TIMEOUT: Duration = Duration::from_secs(10);

/// A client with a cache of schemas by id; ids never change their meaning. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RegistryClient {
    url: String,
    http: reqwest::Client,
    schemas: Arc<Mutex<HashMap<u32, Arc<str>>>>,
}

#[derive(Deserialize)]
struct Registered {
    id: u32,
}

#[derive(Deserialize)]
struct Version {
    id: u32,
    schema: String,
}

#[derive(Deserialize)]
struct Stored {
    schema: String,
}

impl RegistryClient {
    pub fn new(url: &str) -> RegistryClient {
        RegistryClient {
            url: url.trim_end_matches('/').to_owned(),
            http: reqwest::Client::builder().timeout(TIMEOUT).no_proxy().build().unwrap_or_default(),
            schemas: Arc::default(),
        }
    }

    /// Registers an Avro schema under a subject; the same schema again gives the same id.
    ///
    /// # Errors
    /// `Registry` (no answer) or `RegistryRefused` (incompatible with the subject's earlier schema, or invalid).
    pub async fn register(&self, subject: &str, schema: &str) -> Result<u32, Error> {
        let url = format!("{}/subjects/{}/versions", self.url, escaped(subject));
        let body = json!({"schema": schema, "schemaType": "AVRO"});
        let request =
            self.http.post(url).header("content-type", "application/vnd.schemaregistry.v1+json").body(body.to_string());
        let registered: Registered = self.answer(request, &format!("the schema of subject {subject}")).await?;
        self.remember(registered.id, schema);
        Ok(registered.id)
    }

    /// The schema of an id.
    ///
    /// # Errors
    /// `Registry`, or `RegistryRefused` with status 404 for an unknown id.
    pub async fn schema(&self, id: u32) -> Result<Arc<str>, Error> {
        if let Some(schema) = self.cached(id) {
            return Ok(schema);
        }
        let request = self.http.get(format!("{}/schemas/ids/{id}", self.url));
        let stored: Stored = self.answer(request, &format!("schema id {id}")).await?;
        Ok(self.remember(id, &stored.schema))
    }

    /// The schema that was registered under the subject before the one of this id; none if that is the first one.
    ///
    /// # Errors
    /// `Registry` or `RegistryRefused`.
    pub async fn earlier(&self, subject: &str, id: u32) -> Result<Option<Arc<str>>, Error> {
        let url = format!("{}/subjects/{}/versions", self.url, escaped(subject));
        let versions: Vec<u32> = self.answer(self.http.get(&url), &format!("the versions of {subject}")).await?;
        let mut later = false;
        for version in versions.iter().rev() {
            let request = self.http.get(format!("{url}/{version}"));
            let found: Version = self.answer(request, &format!("version {version} of {subject}")).await?;
            if later {
                return Ok(Some(self.remember(found.id, &found.schema)));
            }
            later = found.id == id;
        }
        Ok(None)
    }

    /// Deletes a subject, for cleanup; one that does not exist is no error. A registry only hides it at first, and forgets it
    /// when it is asked again.
    ///
    /// # Errors
    /// `Registry` or `RegistryRefused`.
    pub async fn delete_subject(&self, subject: &str) -> Result<(), Error> {
        for query in ["", "?permanent=true"] {
            let request = self.http.delete(format!("{}/subjects/{}{query}", self.url, escaped(subject)));
            match self.answer::<serde_json::Value>(request, &format!("deleting subject {subject}")).await {
                Ok(_) | Err(Error::RegistryRefused { status: 404, .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether it answers.
    ///
    /// # Errors
    /// `Registry` or `RegistryRefused`.
    pub async fn ping(&self) -> Result<(), Error> {
        let request = self.http.get(format!("{}/subjects", self.url));
        self.answer::<serde_json::Value>(request, "the list of subjects").await.map(|_| ())
    }

    async fn answer<T: serde::de::DeserializeOwned>(
        &self,
        request: reqwest::RequestBuilder,
        what: &str,
    ) -> Result<T, Error> {
        let unreachable = |source| Error::Registry { url: self.url.clone(), source };
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        if status.is_success() {
            return response.json().await.map_err(unreachable);
        }
        let message = response.text().await.unwrap_or_default();
        let message = message.chars().take(500).collect();
        Err(Error::RegistryRefused { url: self.url.clone(), what: what.to_owned(), status: status.as_u16(), message })
    }

    fn cached(&self, id: u32) -> Option<Arc<str>> {
        self.schemas.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(&id).cloned()
    }

    fn remember(&self, id: u32, schema: &str) -> Arc<str> {
        let mut schemas = self.schemas.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        schemas.entry(id).or_insert_with(|| Arc::from(schema)).clone()
    }
}

/// A subject in a URL path: topic names hold only letters, digits, `.`, `_` and `-`, but be sure.
fn escaped(subject: &str) -> String {
    subject.bytes().fold(String::new(), |mut path, byte| {
        if byte.is_ascii_alphanumeric() || b"._-".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
        path
    })
}
