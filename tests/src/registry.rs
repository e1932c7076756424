//! A real schema registry (Apicurio) on loopback, spoken to by its Confluent-compatible interface. What it holds lies in
//! a file of its folder, so that it is there again after a restart, as in production.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::process::{Launch, Life};
use crate::server::Place;
use crate::sql::blocking;
use crate::{Failure, Result, cache, ports, scratch};

const STARTED_WITHIN: Duration = Duration::from_secs(120);
const ASKED_WITHIN: Duration = Duration::from_secs(15);

#[derive(Debug)]
pub struct Registry {
    folder: PathBuf,
    port: u16,
    place: Place,
}

impl Registry {
    /// Starts an empty registry in a scratch folder, or in the one given; returns when it answers.
    ///
    /// # Errors
    /// When it cannot be fetched, or did not come up, with its log.
    pub fn start(folder: Option<&Path>, life: Life) -> Result<Registry> {
        let folder = match folder {
            Some(folder) => folder.to_owned(),
            None => scratch::folder("registry")?,
        };
        scratch::make(&folder)?;
        let registry = Registry { folder, port: ports::free()?, place: Place::new(life) };
        registry.start_again()?;
        Ok(registry)
    }

    /// Starts it on what it held, on the same port. Does nothing if it runs.
    ///
    /// # Errors
    /// When it did not come up, with its log.
    pub fn start_again(&self) -> Result<()> {
        self.place.start(STARTED_WITHIN, || self.java(), || self.subjects())
    }

    fn java(&self) -> Result<Launch> {
        let program = runner(&cache::part(&["registry"])?)?;
        let launch = Launch::new("registry", "java", &self.folder)
            .arguments(["-Xmx256m", "-XX:+ExitOnOutOfMemoryError", "-XX:TieredStopAtLevel=1", "-Xshare:auto"])
            .arguments(["-Dquarkus.http.host=127.0.0.1".to_owned(), format!("-Dquarkus.http.port={}", self.port)])
            .arguments(["-Dquarkus.http.access-log.enabled=false", "-Dquarkus.analytics.disabled=true"])
            .arguments([format!("-Dapicurio.datasource.url=jdbc:h2:file:{}/schemas", self.folder.display())])
            .arguments(["-jar".to_owned(), program.display().to_string()]);
        Ok(launch)
    }

    /// `kill -9`.
    pub fn kill(&self) {
        self.place.kill();
    }

    /// # Errors
    /// When it does not stop or come up.
    pub fn restart(&self) -> Result<()> {
        self.place.stop()?;
        self.start_again()
    }

    /// The base of the Confluent-compatible interface, for `[registry] url`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/apis/ccompat/v7", self.port)
    }

    pub fn pid(&self) -> Option<i32> {
        self.place.pid()
    }

    /// Whether it has a subject, even as one that was deleted and is hidden. Asked by its name: a list of all ends somewhere.
    pub fn has(&self, subject: &str) -> bool {
        get(&format!("{}/subjects/{subject}/versions?deleted=true", self.url())).is_ok()
    }

    /// The names of subjects, perhaps not of all.
    ///
    /// # Errors
    /// When it does not answer.
    fn subjects(&self) -> Result<Vec<String>> {
        let answer = get(&format!("{}/subjects", self.url()))?;
        serde_json::from_str(&answer)
            .map_err(|error| Failure::Other(format!("the list of subjects: {error}: {answer}")))
    }

    /// The text of the schema that has an id.
    ///
    /// # Errors
    /// When there is none, or the registry does not answer.
    pub fn schema(&self, id: u32) -> Result<String> {
        let answer = get(&format!("{}/schemas/ids/{id}", self.url()))?;
        text_field(&answer, "schema")
    }

    /// Registers an Avro schema under a subject and returns its id.
    ///
    /// # Errors
    /// When it is refused, with the registry's reason.
    pub fn register(&self, subject: &str, schema: &str) -> Result<u32> {
        let url = format!("{}/subjects/{subject}/versions", self.url());
        let body = serde_json::json!({ "schema": schema });
        let answer = blocking(async move { answered(client()?.post(&url).json(&body)).await })?;
        let parsed: serde_json::Value = serde_json::from_str(&answer).unwrap_or_default();
        let id = parsed.get("id").and_then(serde_json::Value::as_u64).and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| Failure::Other(format!("registering {subject}: no id in {answer}")))
    }
}

/// Fetches a page as text; any status but success is an error that carries the body.
///
/// # Errors
/// When nobody answers, or not with success.
pub fn get(url: &str) -> Result<String> {
    let url = url.to_owned();
    blocking(async move { answered(client()?.get(&url)).await })
}

pub(crate) fn client() -> Result<reqwest::Client> {
    // No proxy: everything here is on this machine, whatever the environment says.
    let builder = reqwest::Client::builder().timeout(ASKED_WITHIN).no_proxy();
    builder.build().map_err(Failure::http("making an HTTP client"))
}

pub(crate) async fn answered(request: reqwest::RequestBuilder) -> Result<String> {
    let response = request.send().await.map_err(Failure::http("asking"))?;
    let (status, url) = (response.status(), response.url().clone());
    let body = response.text().await.map_err(Failure::http(format!("reading the answer of {url}")))?;
    if status.is_success() { Ok(body) } else { Err(Failure::Other(format!("{url}: {status}: {body}"))) }
}

fn text_field(json: &str, name: &str) -> Result<String> {
    let parsed: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
    let field = parsed.get(name).and_then(serde_json::Value::as_str);
    field.map(str::to_owned).ok_or_else(|| Failure::Other(format!("no text `{name}` in {json}")))
}

fn runner(folder: &Path) -> Result<PathBuf> {
    let listed = std::fs::read_dir(folder).map_err(Failure::io(format!("listing {}", folder.display())))?;
    let found =
        listed.flatten().map(|entry| entry.path()).find(|path| path.display().to_string().ends_with("-runner.jar"));
    found.ok_or_else(|| Failure::Missing { what: "the registry's program".to_owned(), path: folder.to_owned() })
}
