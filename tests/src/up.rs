//! `up` and `down`: a stack that lives on after the command, found again by its state file `.run/NAME/stack.json`.
//!
//! A process is known by its number and its start time together, because numbers are used again: `down` never signals
//! a stranger, and `up` starts nothing that still runs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use tests::kafka::{self, Broker};
use tests::postgres::{self, Server};
use tests::process::Life;
use tests::registry::Registry;
use tests::stack::{self, Addresses};
use tests::{Failure, Result, cache, ports, scratch, wait};

const STOPPED_WITHIN: Duration = Duration::from_secs(20);

#[derive(clap::Args)]
pub struct Arguments {
    /// Stacks of different names run side by side
    #[arg(default_value = "default")]
    name: String,
}

/// What `up` left behind for `down` and for the next `up`.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    /// Where the servers keep their data.
    data: PathBuf,
    servers: Vec<Running>,
    source: String,
    target: String,
    brokers: String,
    registry: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Running {
    name: String,
    pid: i32,
    /// Clock ticks from boot to its start: with the number it is unique until the next boot.
    started: u64,
    /// The gentle way to end it: SIGQUIT for PostgreSQL, SIGTERM for the rest.
    quit: bool,
}

impl Running {
    fn of(name: &str, pid: Option<i32>, quit: bool) -> Result<Running> {
        let found = pid.and_then(|pid| Some((pid, start_time(pid)?)));
        let (pid, started) = found.ok_or_else(|| Failure::Other(format!("{name} ended right after its start")))?;
        Ok(Running { name: name.to_owned(), pid, started, quit })
    }

    fn lives(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }
}

/// Starts what is not running yet, and prints where everything is.
///
/// # Errors
/// When a server does not start; what had started by then is stopped again.
pub fn start(arguments: &Arguments) -> Result<()> {
    let place = Place::open(&arguments.name)?;
    if let Some(state) = place.read() {
        if !state.registry.is_empty() && state.servers.iter().all(Running::lives) {
            println!("already running");
            place.print(&state);
            return Ok(());
        }
        for server in state.servers.iter().filter(|server| !server.lives()) {
            println!("{} has ended: the stack is made anew", server.name);
        }
        place.remove(&state)?;
    }
    let mut state = place.empty_state();
    place.write(&state)?;
    let outcome = start_servers(&place, &mut state);
    if outcome.is_err() {
        place.remove(&state)?;
        return outcome;
    }
    place.write(&state)?;
    place.write_configuration(&state)?;
    place.print(&state);
    Ok(())
}

/// Stops what `up` started, and removes its data.
///
/// # Errors
/// When a server does not end.
pub fn stop(arguments: &Arguments) -> Result<()> {
    let place = Place::open(&arguments.name)?;
    match place.read() {
        Some(state) => {
            place.remove(&state)?;
            println!("stopped");
        }
        None => println!("nothing is running under the name {}", arguments.name),
    }
    Ok(())
}

/// The state is written before the first and after each server, so that an interrupted `up` is undone by `down`.
fn start_servers(place: &Place, state: &mut State) -> Result<()> {
    scratch::make(&state.data)?;
    let began = Instant::now();
    let progress = |name: &str| println!("[{:5.1}s] {name} is up", began.elapsed().as_secs_f64());

    for name in ["source", "target"] {
        let options = postgres::Options::new(name).folder(&state.data.join(name)).life(Life::Detached);
        let server = Server::start(options)?;
        state.servers.push(Running::of(name, server.pid(), true)?);
        let url = server.url("postgres");
        if name == "source" {
            state.source = url
        } else {
            state.target = url
        }
        place.write(state)?;
        progress(&format!("{name} PostgreSQL"));
    }
    let broker = Broker::start(kafka::Options::default().folder(&state.data.join("kafka")).life(Life::Detached))?;
    state.servers.push(Running::of("kafka", broker.pid(), false)?);
    state.brokers = broker.bootstrap();
    place.write(state)?;
    progress("Kafka");

    let registry = Registry::start(Some(&state.data.join("registry")), Life::Detached)?;
    state.servers.push(Running::of("registry", registry.pid(), false)?);
    state.registry = registry.url();
    place.write(state)?;
    progress("the schema registry");
    Ok(())
}

/// The folder `.run/NAME` of the checkout, held alone by this process.
struct Place {
    folder: PathBuf,
    name: String,
    _lock: File,
}

impl Place {
    fn open(name: &str) -> Result<Place> {
        if name.is_empty() || !name.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_".contains(letter)) {
            return Err(Failure::Other(format!("a stack's name is letters, digits, - and _: {name:?}")));
        }
        let folder = cache::checkout().join(".run").join(name);
        scratch::make(&folder)?;
        let lock = File::create(folder.join("lock")).map_err(Failure::io("opening the lock of the stack"))?;
        lock.lock().map_err(Failure::io("waiting for the lock of the stack"))?;
        Ok(Place { folder, name: name.to_owned(), _lock: lock })
    }

    fn empty_state(&self) -> State {
        State {
            data: scratch::base().join(format!("up-{}-{:08x}", self.name, checksum(&self.folder))),
            servers: Vec::new(),
            source: String::new(),
            target: String::new(),
            brokers: String::new(),
            registry: String::new(),
        }
    }

    fn state_file(&self) -> PathBuf {
        self.folder.join("stack.json")
    }

    fn read(&self) -> Option<State> {
        serde_json::from_slice(&std::fs::read(self.state_file()).ok()?).ok()
    }

    /// Written beside and renamed: a state file is whole or not there.
    fn write(&self, state: &State) -> Result<()> {
        let text = serde_json::to_vec_pretty(state).expect("a state is plain data");
        let beside = self.folder.join("stack.json.new");
        std::fs::write(&beside, text).map_err(Failure::io("writing the state of the stack"))?;
        std::fs::rename(beside, self.state_file()).map_err(Failure::io("writing the state of the stack"))
    }

    fn write_configuration(&self, state: &State) -> Result<()> {
        let addresses = Addresses {
            source: state.source.clone(),
            target: state.target.clone(),
            brokers: state.brokers.clone(),
            registry: state.registry.clone(),
        };
        let mut table = stack::configuration("m", "dflux_migration_slot", &addresses);
        for service in ["producer", "consumer", "validator"] {
            let listen = toml::Value::from(format!("127.0.0.1:{}", ports::free()?));
            table.insert(service.to_owned(), toml::Value::Table([("listen".to_owned(), listen)].into_iter().collect()));
        }
        stack::write_configuration(&self.folder.join("dflux.toml"), &table)
    }

    fn print(&self, state: &State) {
        println!("source    {}\ntarget    {}", state.source, state.target);
        println!("kafka     {}\nregistry  {}", state.brokers, state.registry);
        println!("config    {}", self.folder.join("dflux.toml").display());
        println!("data      {}", state.data.display());
        println!("next      cargo build --release --workspace, then target/release/producer --config FILE, and so on");
    }

    /// Ends all servers that still are what `up` started, then removes their data and the state.
    fn remove(&self, state: &State) -> Result<()> {
        for server in state.servers.iter().rev().filter(|server| server.lives()) {
            end(server)?;
        }
        end_strays(&state.data);
        remove_if_there(std::fs::remove_dir_all(&state.data), &state.data)?;
        remove_if_there(std::fs::remove_file(self.state_file()), &self.state_file())?;
        remove_if_there(std::fs::remove_file(self.folder.join("dflux.toml")), &self.folder)
    }
}

fn end(server: &Running) -> Result<()> {
    let gentle = if server.quit { Signal::SIGQUIT } else { Signal::SIGTERM };
    for signal in [gentle, Signal::SIGKILL] {
        // It may have ended just now.
        let _gone = signal::kill(Pid::from_raw(server.pid), signal);
        if wait::until_true(&format!("{} ends", server.name), STOPPED_WITHIN, || !server.lives()).is_ok() {
            return Ok(());
        }
    }
    Err(Failure::Other(format!("{} (process {}) does not end", server.name, server.pid)))
}

/// Kills servers that an interrupted `up` had started and not written down yet: they work in a folder below the data.
fn end_strays(data: &Path) {
    let Ok(listed) = std::fs::read_dir("/proc") else { return };
    for process in listed.flatten().map(|entry| entry.path()) {
        let works_in = std::fs::read_link(process.join("cwd")).unwrap_or_default();
        let program = std::fs::read_link(process.join("exe")).unwrap_or_default();
        let server = ["java", "postgres", "initdb"].iter().any(|name| program.ends_with(name));
        let pid = process.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        if let Some(pid) = pid.filter(|_| server && works_in.starts_with(data)) {
            let _gone = signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn remove_if_there(outcome: std::io::Result<()>, path: &Path) -> Result<()> {
    match outcome {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::Io { what: format!("removing {}", path.display()), source: error })
        }
        _ => Ok(()),
    }
}

/// Field 22 of /proc/PID/stat; `None` when there is no such process, or only its zombie. The name in field 2 may hold
/// spaces and brackets: fields are counted from the last bracket.
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.get(stat.rfind(')')? + 2..)?.split(' ');
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Tells apart stacks of one name in several checkouts (FNV-1a).
fn checksum(path: &Path) -> u32 {
    let bytes = path.as_os_str().as_encoded_bytes();
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}
