//! A file whose whole content is the application's connection URL.
//!
//! Its version is made of inode, time and content (`replace` tells why all three). White space after the URL is kept, since
//! some programs want a last newline and some do not. A symbolic link is followed anew each time and stays one.

use std::path::{Path, PathBuf};

use super::replace::{self, Locked, NO_CRASH, Outcome, Seen, Step};
use super::{ConfigStore, Error, Swapped, Value, Version, Versioned};

#[derive(Clone, Debug)]
pub struct FileStore {
    path: PathBuf,
}

impl FileStore {
    pub fn new(path: &Path) -> FileStore {
        FileStore { path: path.to_owned() }
    }

    fn versioned(&self, seen: &Seen) -> Result<Versioned, Error> {
        let value = Value::from_bytes(&self.place(), &seen.content)?;
        let version = Version(format!("{}-{}", seen.stamp(), value.fingerprint()));
        Ok(Versioned { value, version })
    }

    fn read(&self) -> Result<Versioned, Error> {
        self.versioned(&replace::read(&self.path)?)
    }

    fn swap(&self, expected: &Version, value: &Value, step: &dyn Fn(Step)) -> Result<Swapped, Error> {
        let locked = Locked::take(&self.path)?;
        let seen = locked.read()?;
        let found = self.versioned(&seen)?;
        if found.version != *expected {
            return Ok(Swapped::NotApplied { found: Some(found) });
        }
        let ends_at = seen.content.trim_ascii_end().len();
        let content = [value.expose().as_bytes(), &seen.content[ends_at..]].concat();
        Ok(match locked.replace(&seen, &content, step)? {
            Outcome::Done(now) => Swapped::Applied(self.versioned(&now)?.version),
            Outcome::Changed => Swapped::NotApplied { found: locked.read().and_then(|now| self.versioned(&now)).ok() },
            Outcome::Unsure(why) => Swapped::Ambiguous { why },
        })
    }
}

impl ConfigStore for FileStore {
    fn place(&self) -> String {
        format!("file {}", self.path.display())
    }

    async fn get(&self) -> Result<Versioned, Error> {
        let store = self.clone();
        off_the_runtime(move || store.read()).await
    }

    async fn compare_and_swap(&self, expected: &Version, value: &Value) -> Result<Swapped, Error> {
        let (store, expected, value) = (self.clone(), expected.clone(), value.clone());
        off_the_runtime(move || store.swap(&expected, &value, &NO_CRASH)).await
    }
}

/// Runs what blocks on the disk and on locks beside the runtime. Once begun it runs to its end, also if nobody waits any more.
pub(super) async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going away, and whoever waits for this with it.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
