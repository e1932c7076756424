//! A program of the user's that knows the store: whatever is not here is an executable of a few lines.
//!
//! ```text
//! PROGRAM… get              {"value": "postgresql://…", "version": "7"} on standard output; exit 0
//! PROGRAM… cas 7            the new value, without a newline, on standard input
//!     exit 0  applied       {"version": "8"}
//!     exit 3  not applied   as get, or nothing; the store is as it was
//!     other, or no end      ambiguous
//! ```
//!
//! A value goes by standard input and output alone, since everybody can read arguments. After the time-out the program is
//! killed with all that it started (its process group); what it had asked of others may still come true, and so that is
//! ambiguous too. A program that makes sure of its swap compares versions where the value lives.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use super::{ConfigStore, Error, Swapped, Value, Version, Versioned};

const NOT_APPLIED: i32 = 3;
const ANSWER_BYTES_MAX: u64 = 64 << 10;
const SAID_CHARACTERS_MAX: usize = 300;

#[derive(Clone, Debug)]
pub struct CommandStore {
    program: String,
    arguments: Vec<String>,
    limit: Duration,
}

#[derive(Deserialize)]
struct Answer {
    value: Option<String>,
    version: Option<String>,
}

struct Ended {
    status: ExitStatus,
    output: Vec<u8>,
    /// Scrubbed and cut.
    said: String,
}

enum Run {
    Ended(Ended),
    Slow,
}

impl CommandStore {
    /// # Errors
    /// `Section` when no program is named, or no time.
    pub fn new(section: &service::config::Command) -> Result<CommandStore, Error> {
        let Some((program, arguments)) = section.command.split_first().filter(|(program, _)| !program.is_empty())
        else {
            return Err(Error::Section { key: "command", reason: "it names no program".into() });
        };
        if !(1..=600).contains(&section.timeout_seconds) {
            return Err(Error::Section { key: "timeout_seconds", reason: "it is outside of 1 to 600".into() });
        }
        let limit = Duration::from_secs(section.timeout_seconds);
        Ok(CommandStore { program: program.clone(), arguments: arguments.to_vec(), limit })
    }

    /// Runs it to its end, or kills it and all of its group.
    async fn run(&self, arguments: &[&str], input: Option<&Value>) -> Result<Run, Error> {
        let failed = |source| Error::HookStart { program: self.program.clone(), source };
        let mut command = tokio::process::Command::new(&self.program);
        command.args(&self.arguments).args(arguments).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(failed)?;
        // Dropped also when nobody waits for us any more.
        let group = Group(child.id().and_then(|id| i32::try_from(id).ok()));
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let input = input.map(|value| value.expose().as_bytes()).unwrap_or_default();
        let talk = async {
            let write = async {
                if let Some(mut stdin) = stdin {
                    // One that does not read it has said by its exit code what it did.
                    let _unread = stdin.write_all(input).await;
                }
            };
            let ((), output, said) = tokio::join!(write, read(stdout), read(stderr));
            (child.wait().await, output, said)
        };
        let (status, output, said) = match tokio::time::timeout(self.limit, talk).await {
            Ok((status, output, said)) => (status.map_err(failed)?, output, said),
            Err(_) => {
                drop(group);
                return Ok(Run::Slow);
            }
        };
        // What it started in the background goes too: it might write later.
        drop(group);
        Ok(Run::Ended(Ended { status, output, said: String::from_utf8_lossy(&said).into_owned() }))
    }

    fn misunderstood(&self, verb: &'static str, reason: String) -> Error {
        Error::HookAnswer { program: self.program.clone(), verb, reason }
    }

    /// Without the parser's words, which quote what they do not like.
    fn answer(&self, verb: &'static str, output: &[u8]) -> Result<Answer, Error> {
        let told = |error: serde_json::Error| {
            self.misunderstood(
                verb,
                format!("no JSON object of text (line {}, column {})", error.line(), error.column()),
            )
        };
        serde_json::from_slice(output).map_err(told)
    }

    fn versioned(&self, verb: &'static str, output: &[u8]) -> Result<Versioned, Error> {
        let answer = self.answer(verb, output)?;
        match (answer.value, answer.version) {
            (Some(value), Some(version)) => {
                Ok(Versioned { value: Value::new(&self.place(), value)?, version: Version(version) })
            }
            _ => Err(self.misunderstood(verb, "`value` or `version` is missing".into())),
        }
    }
}

impl ConfigStore for CommandStore {
    fn place(&self) -> String {
        format!("command {}", self.program)
    }

    async fn get(&self) -> Result<Versioned, Error> {
        let program = self.program.clone();
        match self.run(&["get"], None).await? {
            Run::Slow => Err(Error::HookSlow { program, verb: "get", seconds: self.limit.as_secs() }),
            Run::Ended(ended) if ended.status.success() => self.versioned("get", &ended.output),
            Run::Ended(ended) => {
                // What it says about a value that we do not know cannot be scrubbed.
                let said = format!("it wrote {} bytes to standard error", ended.said.len());
                Err(Error::HookFailed { program, verb: "get", status: ended.status.to_string(), said })
            }
        }
    }

    async fn compare_and_swap(&self, expected: &Version, value: &Value) -> Result<Swapped, Error> {
        let ended = match self.run(&["cas", &expected.0], Some(value)).await? {
            Run::Slow => {
                let why = format!("{} cas was killed after {} s", self.program, self.limit.as_secs());
                return Ok(Swapped::Ambiguous { why });
            }
            Run::Ended(ended) => ended,
        };
        match ended.status.code() {
            Some(0) => match self.answer("cas", &ended.output).ok().and_then(|answer| answer.version) {
                Some(version) => Ok(Swapped::Applied(Version(version))),
                None => {
                    Ok(Swapped::Ambiguous { why: format!("{} cas exited with 0 and gave no version", self.program) })
                }
            },
            Some(NOT_APPLIED) => Ok(Swapped::NotApplied { found: self.versioned("cas", &ended.output).ok() }),
            _ => {
                let said: String = value.scrub(&ended.said).trim().chars().take(SAID_CHARACTERS_MAX).collect();
                Ok(Swapped::Ambiguous { why: format!("{} cas ended with {}: {said}", self.program, ended.status) })
            }
        }
    }
}

/// All of it up to a bound; more is read away, so that the program does not wait for us.
async fn read(stream: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        // A pipe that fails has ended.
        let _ended = (&mut stream).take(ANSWER_BYTES_MAX).read_to_end(&mut bytes).await;
        let _rest = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    }
    bytes
}

/// A process group that is killed when this is dropped. Its number is ours while one of it lives, and a group without a
/// process is an error that says so.
struct Group(Option<i32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(id) = self.0 {
            let _gone = killpg(Pid::from_raw(id), Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
