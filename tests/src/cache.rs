//! Where the parts lie that `./dev` fetches (Kafka, the registry, other PostgreSQL versions, Python readers), and where
//! the programs lie that cargo builds. What is missing is fetched by `./dev fetch`, the one place that knows how.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Failure, Result};

/// The checkout that this harness was compiled from.
pub fn checkout() -> PathBuf {
    let member = Path::new(env!("CARGO_MANIFEST_DIR"));
    member.parent().unwrap_or(member).to_owned()
}

/// A fetched part, by the words that `./dev fetch` takes: `["kafka"]`, `["postgres", "17"]`.
///
/// # Errors
/// When the part is not in the cache and cannot be fetched.
pub fn part(words: &[&str]) -> Result<PathBuf> {
    let what = words.join(" ");
    let output = Command::new(checkout().join("dev"))
        .arg("fetch")
        .args(words)
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(Failure::io(format!("./dev fetch {what}")))?;
    let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if output.status.success() && path.is_dir() {
        return Ok(path);
    }
    Err(Failure::Missing { what: format!("the fetched part `{what}`"), path })
}

/// A program that cargo has built beside the one that is running: `producer`, `consumer`, `validator`, `dflux`, `stack`.
///
/// # Errors
/// When it has not been built: `cargo test -p tests` builds none of them.
pub fn program(name: &str) -> Result<PathBuf> {
    let running = std::env::current_exe().map_err(Failure::io("finding the running program"))?;
    let mut folder = running.parent().unwrap_or(Path::new(".")).to_owned();
    if folder.ends_with("deps") {
        folder.pop();
    }
    let path = folder.join(name);
    if path.is_file() { Ok(path) } else { Err(Failure::Missing { what: format!("the program {name}"), path }) }
}
