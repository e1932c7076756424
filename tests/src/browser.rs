//! A real browser without a screen: Chromium, driven by WebDriver over plain HTTP on loopback. It looks at files of this machine; every
//! host name leads nowhere, so that a page that asks for something is found out and nothing leaves the machine.
//!
//! The driver is bound to us as every server is. Chromium hangs on a pipe to its driver and ends with it, however that ends.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use serde_json::{Value as Json, json};

use crate::process::{Launch, Process};
use crate::registry::{answered, client};
use crate::sql::blocking;
use crate::{Failure, Result, cache, ports, scratch};

const STARTED_WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Browser {
    /// The base of the session's commands.
    session: String,
    _driver: Process,
}

/// What a page is looked at with.
#[derive(Debug, Clone, Copy)]
pub struct View {
    pub width: u32,
    pub height: u32,
    pub dark: bool,
}

impl Browser {
    /// # Errors
    /// When it is not installed and cannot be, or does not come up, with the driver's log.
    pub fn start() -> Result<Browser> {
        let programs = cache::part(&["browser"])?;
        let folder = scratch::folder("browser")?;
        let port = ports::free()?;
        let launch =
            Launch::new("chromedriver", programs.join("chromedriver"), &folder).arguments([format!("--port={port}")]);
        let driver = launch.start()?;
        let base = format!("http://127.0.0.1:{port}");
        driver
            .wait_until("chromedriver answers", STARTED_WITHIN, || crate::registry::get(&format!("{base}/status")))?;
        let options = json!({
            "binary": programs.join("chromium"),
            "args": [
                "--headless=new", "--no-sandbox", "--remote-debugging-pipe", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
                "--host-resolver-rules=MAP * ~NOTFOUND", format!("--user-data-dir={}", folder.join("profile").display()),
            ],
        });
        let logs = json!({ "browser": "ALL", "performance": "ALL" });
        let capabilities =
            json!({ "capabilities": { "alwaysMatch": { "goog:chromeOptions": options, "goog:loggingPrefs": logs } } });
        let answer = post(&format!("{base}/session"), capabilities)?;
        let id = answer["sessionId"].as_str().ok_or_else(|| Failure::Other(format!("no session in {answer}")))?;
        Ok(Browser { session: format!("{base}/session/{id}"), _driver: driver })
    }

    /// Opens a file, and returns when it is loaded.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(&self, file: &Path) -> Result<()> {
        post(&format!("{}/url", self.session), json!({ "url": address(file) })).map(|_| ())
    }

    /// # Errors
    /// When the browser refuses.
    pub fn look(&self, view: View) -> Result<()> {
        let scheme = if view.dark { "dark" } else { "light" };
        let size = json!({ "width": view.width, "height": view.height, "deviceScaleFactor": 1, "mobile": false });
        self.command("Emulation.setDeviceMetricsOverride", size)?;
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.command("Emulation.setEmulatedMedia", features).map(|_| ())
    }

    /// The value of a script's `return`.
    ///
    /// # Errors
    /// When the script throws.
    pub fn run(&self, script: &str) -> Result<Json> {
        post(&format!("{}/execute/sync", self.session), json!({ "script": script, "args": [] }))
    }

    /// A command of the browser's own protocol.
    ///
    /// # Errors
    /// When the browser refuses.
    pub fn command(&self, command: &str, parameters: Json) -> Result<Json> {
        post(&format!("{}/goog/cdp/execute", self.session), json!({ "cmd": command, "params": parameters }))
    }

    /// Messages of the console since the last call: its own errors and violations of a page's policy, too.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub fn console(&self) -> Result<Vec<String>> {
        let entries = self.log("browser")?;
        Ok(entries.iter().filter_map(|entry| entry["message"].as_str()).map(str::to_owned).collect())
    }

    /// The addresses that pages have asked for since the last call.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub fn requests(&self) -> Result<Vec<String>> {
        let entries = self.log("performance")?;
        let messages = entries.iter().filter_map(|entry| serde_json::from_str::<Json>(entry["message"].as_str()?).ok());
        let asked = messages
            .map(|mut message| message["message"].take())
            .filter(|event| event["method"] == "Network.requestWillBeSent");
        // The browser's own first page asks for its parts; what a page asks for names that page.
        let by_pages =
            asked.filter(|event| !event["params"]["documentURL"].as_str().is_some_and(|by| by.starts_with("chrome:")));
        Ok(by_pages.filter_map(|event| event["params"]["request"]["url"].as_str().map(str::to_owned)).collect())
    }

    fn log(&self, kind: &str) -> Result<Vec<Json>> {
        let answer = post(&format!("{}/se/log", self.session), json!({ "type": kind }))?;
        Ok(answer.as_array().cloned().unwrap_or_default())
    }

    /// A picture of what the view shows, or of the whole page up to so many pixels of height, as PNG.
    ///
    /// # Errors
    /// When it cannot be taken or written.
    pub fn picture(&self, file: &Path, height_max: Option<u32>) -> Result<()> {
        let parameters = match height_max {
            None => json!({ "format": "png" }),
            Some(height_max) => {
                let metrics = self.command("Page.getLayoutMetrics", json!({}))?;
                let size = &metrics["cssContentSize"];
                let height = size["height"].as_f64().unwrap_or(0.0).min(f64::from(height_max));
                let clip = json!({ "x": 0, "y": 0, "width": size["width"], "height": height, "scale": 1 });
                json!({ "format": "png", "captureBeyondViewport": true, "clip": clip })
            }
        };
        let answer = self.command("Page.captureScreenshot", parameters)?;
        let data = answer["data"].as_str().unwrap_or_default();
        let bytes = BASE64.decode(data).map_err(|error| Failure::Other(format!("the picture: {error}")))?;
        std::fs::write(file, bytes).map_err(Failure::io(format!("writing {}", file.display())))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let session = self.session.clone();
        // The driver ends the browser; where it does not, killing the driver does.
        let _ended = blocking(async move { answered(client()?.delete(&session)).await });
    }
}

/// `file://` and the path, of which our scratch folders have only plain letters.
pub fn address(file: &Path) -> String {
    format!("file://{}", file.display())
}

fn post(url: &str, body: Json) -> Result<Json> {
    let url = url.to_owned();
    let answer = blocking(async move { answered(client()?.post(&url).json(&body)).await })?;
    let mut answer: Json =
        serde_json::from_str(&answer).map_err(|error| Failure::Other(format!("the driver's answer: {error}")))?;
    Ok(answer["value"].take())
}
