//! A child process that ends with us: when it is dropped, when this process ends, and also when this process is killed.
//!
//! `setpriv --pdeathsig` does the last (the kernel sends the signal when the parent is gone) and changes the user, so no
//! unsafe code is needed here. Two traps: the "parent" is the *thread* that started the child, and test threads end with
//! their test, so one thread that lives as long as the process starts them all; and each child leads a process group, so
//! that Ctrl-C reaches the harness alone and a group can be signalled as one, set before the child's first instruction
//! (by the `setsid` command a signal sent right after the start would find no group).

use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock, mpsc};
use std::time::Duration;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use crate::error::LogTail;
use crate::{Failure, Result, wait};

const KILLED_WITHIN: Duration = Duration::from_secs(10);
const BOUND_WITHIN: Duration = Duration::from_secs(20);
const LOG_TAIL_BYTES: u64 = 6_000;

/// Whether a server ends with this process or lives on (`stack up`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Life {
    #[default]
    Bound,
    Detached,
}

/// How a program is to be run.
#[derive(Debug, Clone)]
pub struct Launch {
    /// What messages call it, and the name of its log file.
    pub name: String,
    pub program: PathBuf,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    /// The user that it runs as where we are root; PostgreSQL refuses root.
    pub user: Option<&'static str>,
    /// Its working folder; its output goes to `NAME.log` in it, appended.
    pub folder: PathBuf,
    /// The signal that it gets when we die; `None` lets it live on (`stack up`).
    pub when_we_die: Option<Signal>,
}

impl Launch {
    pub fn new(name: &str, program: impl Into<PathBuf>, folder: &Path) -> Self {
        Launch {
            name: name.to_owned(),
            program: program.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            user: None,
            folder: folder.to_owned(),
            when_we_die: Some(Signal::SIGKILL),
        }
    }

    pub fn arguments<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    pub fn environment(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    pub fn user(mut self, user: &'static str) -> Self {
        self.user = Some(user);
        self
    }

    pub fn when_we_die(mut self, signal: Option<Signal>) -> Self {
        self.when_we_die = signal;
        self
    }

    pub fn log(&self) -> PathBuf {
        self.folder.join(format!("{}.log", self.name))
    }

    /// The command line, wrapped in what binds its life and changes its user.
    fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        command.process_group(0);
        if let Some(signal) = self.when_we_die {
            command.args(["--pdeathsig", signal.as_str().trim_start_matches("SIG")]);
        }
        if let Some(user) = self.user
            && nix::unistd::geteuid().is_root()
        {
            command.arg(format!("--reuid={user}")).arg(format!("--regid={user}")).arg("--clear-groups");
            command.env("HOME", "/");
        }
        command.arg("--").arg(&self.program).args(&self.arguments).current_dir(&self.folder);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts it. Returns as soon as its life is bound to ours: whether it came up is for the caller to wait for.
    ///
    /// # Errors
    /// When the log cannot be opened or the program not started.
    pub fn start(self) -> Result<Process> {
        let log = self.log();
        let opened = std::fs::File::options().create(true).append(true).open(&log);
        let output = opened.map_err(Failure::io(format!("opening {}", log.display())))?;
        let errors = output.try_clone().map_err(Failure::io("sharing a log file"))?;
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let child = start_from_the_lasting_thread(command).map_err(Failure::io(format!("starting {}", self.name)))?;
        let process = Process { pid: pid_of(&child), launch: self, child: Mutex::new(child) };
        // A program that ends at once is for the caller to notice too.
        wait::until_true(&format!("{} is bound to us", process.name()), BOUND_WITHIN, || {
            process.runs_its_program() || process.ended().is_some()
        })?;
        Ok(process)
    }

    /// Runs it to its end and returns its standard output.
    ///
    /// # Errors
    /// When it cannot be started or ends with anything but 0.
    pub fn run(self) -> Result<String> {
        let output = self.command().stdin(Stdio::null()).output();
        let output = output.map_err(Failure::io(format!("starting {}", self.name)))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = [output.stdout, output.stderr].concat();
        let log = LogTail(String::from_utf8_lossy(&said).into_owned());
        Err(Failure::Ended { what: self.name, status: output.status.to_string(), log })
    }
}

/// A running (or ended) child. Dropping it kills its group and waits.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    launch: Launch,
    child: Mutex<Child>,
}

impl Process {
    pub fn name(&self) -> &str {
        &self.launch.name
    }

    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// How it was started: `process.launch().clone().start()` starts it again.
    pub fn launch(&self) -> &Launch {
        &self.launch
    }

    /// Its exit status, or `None` while it runs.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.child.lock().expect("no holder of this lock panics").try_wait().ok().flatten()
    }

    /// Sends a signal to its whole group. A process that has ended is left alone.
    pub fn signal(&self, signal: Signal) {
        if self.ended().is_none() {
            // It may end between the question and the signal; its number is still ours until it is waited for.
            let _gone = signal::killpg(self.pid, signal);
        }
    }

    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
        if let Err(failure) = self.wait_ended(KILLED_WITHIN) {
            eprintln!("{failure}");
        }
    }

    /// Sends `signal` and waits; if it has not ended after `limit`, kills it and says so.
    ///
    /// # Errors
    /// `Failure::Deadline` when it had to be killed.
    pub fn stop(&self, signal: Signal, limit: Duration) -> Result<ExitStatus> {
        self.signal(signal);
        let outcome = self.wait_ended(limit);
        if outcome.is_err() {
            self.kill();
        }
        outcome
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// `Failure::Deadline` when it still runs after `limit`.
    pub fn wait_ended(&self, limit: Duration) -> Result<ExitStatus> {
        wait::until(&format!("{} ends", self.name()), limit, || self.ended().ok_or("it runs"))
    }

    /// An error if it has ended, with the end of its log.
    ///
    /// # Errors
    /// `Failure::Ended`.
    pub fn still_running(&self) -> Result<()> {
        match self.ended() {
            None => Ok(()),
            Some(status) => {
                Err(Failure::Ended { what: self.name().to_owned(), status: status.to_string(), log: self.log_tail() })
            }
        }
    }

    /// Waits for a condition that a running process is to bring about; ends early if the process does.
    ///
    /// # Errors
    /// `Failure::Ended` when the process ended, `Failure::Deadline` when the condition did not come true.
    pub fn wait_until<T, E: std::fmt::Display>(
        &self,
        what: &str,
        limit: Duration,
        mut ask: impl FnMut() -> std::result::Result<T, E>,
    ) -> Result<T> {
        let outcome = wait::until(what, limit, || match self.still_running() {
            Ok(()) => ask().map(Ok).map_err(|reason| reason.to_string()),
            Err(ended) => Ok(Err(ended)),
        });
        outcome
            .map_err(|failure| match failure {
                Failure::Deadline { what, seconds, last } => {
                    Failure::Deadline { what, seconds, last: format!("{last}{}", self.log_tail()) }
                }
                other => other,
            })
            .flatten()
    }

    /// Whether `setpriv` has made way for the program. Told by the arguments: a spawn returns while the kernel is still
    /// in the middle of the exec, when `comm` is yet the parent's name and the arguments are empty.
    fn runs_its_program(&self) -> bool {
        let arguments = std::fs::read(format!("/proc/{}/cmdline", self.pid())).unwrap_or_default();
        !arguments.is_empty() && !arguments.starts_with(b"setpriv\0")
    }

    /// All that it has written to its log.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.launch.log()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub fn log_tail(&self) -> LogTail {
        tail(&self.launch.log())
    }

    /// Resident memory in bytes now (`VmRSS`), and the most that it ever was (`VmHWM`). `None` once it has ended.
    pub fn resident_bytes(&self) -> Option<Resident> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
        };
        Some(Resident { now: field("VmRSS:")?, peak: field("VmHWM:")? })
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Resident {
    pub now: u64,
    pub peak: u64,
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {} (process {}){}", self.name(), self.pid(), self.log_tail());
        }
        if self.launch.when_we_die.is_some() && self.ended().is_none() {
            self.kill();
        }
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("Linux numbers processes below 2^22"))
}

fn tail(log: &Path) -> LogTail {
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    LogTail(read().unwrap_or_default())
}

type Order = (Command, mpsc::Sender<std::io::Result<Child>>);

/// See the module's header: the kernel watches the thread that started a child, not its process.
fn start_from_the_lasting_thread(command: Command) -> std::io::Result<Child> {
    static ORDERS: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    let orders = ORDERS.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in receiver {
                let _asker_gone = answer.send(command.spawn());
            }
        });
        Mutex::new(sender)
    });
    let (answer, outcome) = mpsc::channel();
    let sent = orders.lock().expect("no holder of this lock panics").send((command, answer));
    sent.expect("the starting thread lives as long as the process");
    outcome.recv().expect("the starting thread answers each order")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Process {
        let folder = crate::scratch::folder("process-test").unwrap();
        Launch::new("sleeper", "sleep", &folder).arguments(["1000"]).start().unwrap()
    }

    #[test]
    fn a_child_outlives_the_thread_that_asked_for_it() {
        let child = std::thread::spawn(sleeper).join().unwrap();
        assert!(child.wait_ended(Duration::from_millis(300)).is_err());
    }

    /// Runs itself as a process of its own that starts a child and says its number; that process is then killed.
    #[test]
    fn a_child_ends_also_when_the_harness_is_killed() {
        const HOLDER: &str = "DFLUX_TEST_HOLDER";
        if std::env::var_os(HOLDER).is_some() {
            let child = sleeper();
            println!("child {}", child.pid());
            child.wait_ended(Duration::from_secs(60)).unwrap_err();
            return;
        }
        let mut holder = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process::tests::a_child_ends_also_when_the_harness_is_killed", "--nocapture"])
            .env(HOLDER, "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufRead::lines(std::io::BufReader::new(holder.stdout.take().unwrap()));
        let said = lines.map_while(|line| line.ok()).find_map(|line| Some(line.split_once("child ")?.1.to_owned()));
        let child = PathBuf::from("/proc").join(said.expect("the holder says its child's number"));
        assert!(child.exists());
        holder.kill().unwrap();
        holder.wait().unwrap();
        // Who adopts it may be slow to wait for it: a zombie has no memory map left.
        let ended = || std::fs::read_to_string(child.join("status")).is_ok_and(|status| !status.contains("VmRSS"));
        wait::until_true("the child ends", Duration::from_secs(20), || !child.exists() || ended()).unwrap();
    }

    #[test]
    fn dropping_a_child_ends_it() {
        let child = sleeper();
        let proc_folder = PathBuf::from(format!("/proc/{}", child.pid()));
        assert!(proc_folder.exists());
        drop(child);
        assert!(!proc_folder.exists());
    }

    #[test]
    fn a_child_that_ends_early_ends_the_wait_with_its_log() {
        let folder = crate::scratch::folder("process-test").unwrap();
        let launch = Launch::new("mayfly", "sh", &folder).arguments(["-c", "echo last words; exit 3"]);
        let outcome =
            launch.start().unwrap().wait_until::<(), _>("living long", Duration::from_secs(20), || Err("not yet"));
        let text = outcome.unwrap_err().to_string();
        assert!(text.contains("last words") && text.contains('3'), "{text}");
    }
}
