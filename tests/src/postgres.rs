//! A real PostgreSQL server of any supported version in a data folder of its own, as user postgres, on 127.0.0.1 and on
//! a socket in its folder.
//!
//! The harness itself always comes in by the socket (`session`, trusted), so that a test may do with pg_hba.conf and
//! TLS what it likes; the programs under test come in by TCP (`url`), with a password over SCRAM-SHA-256.
//! The server's end is an immediate shutdown (SIGQUIT): to the data it is the same as a crash, and it leaves no shared
//! memory behind, which SIGKILL does.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use crate::process::{Launch, Life, Process};
use crate::sql::Session;
use crate::{Failure, Result, cache, ports, scratch};

/// The superuser's password, and of every login that a test does not give another one.
pub const PASSWORD: &str = "dflux";
/// Debian 12's version, which needs no download.
pub const VERSION_DEFAULT: u16 = 15;

const OPERATING_SYSTEM_USER: &str = "postgres";
const STARTED_WITHIN: Duration = Duration::from_secs(60);
const STOPPED_WITHIN: Duration = Duration::from_secs(60);

/// What a test wants of its server. The defaults suit most: logical decoding on, fsync off, SCRAM.
#[derive(Debug, Clone)]
pub struct Options {
    name: String,
    version: u16,
    settings: Vec<(String, String)>,
    initdb: Vec<String>,
    hba: Vec<String>,
    tls: bool,
    folder: Option<PathBuf>,
    life: Life,
}

impl Options {
    pub fn new(name: &str) -> Self {
        let settings = [
            ("wal_level", "logical"),
            ("max_wal_senders", "60"),
            // Each test leaves its slot and its origin on the servers that all share.
            ("max_replication_slots", "300"),
            ("max_prepared_transactions", "10"),
            ("max_connections", "200"),
            ("fsync", "off"),
            ("max_wal_size", "4GB"),
            ("log_line_prefix", "%m [%p] %q%a "),
        ];
        Options {
            name: name.to_owned(),
            version: VERSION_DEFAULT,
            settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
            initdb: Vec::new(),
            hba: Vec::new(),
            tls: false,
            folder: None,
            life: Life::Bound,
        }
    }

    /// 14 to 18; what is not Debian's is fetched once.
    pub fn version(mut self, version: u16) -> Self {
        self.version = version;
        self
    }

    /// A line of postgresql.conf; the last one of a name counts.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// One more argument of initdb, such as `--encoding=LATIN1` or `--locale=…`.
    pub fn initdb(mut self, argument: &str) -> Self {
        self.initdb.push(argument.to_owned());
        self
    }

    /// A line of pg_hba.conf before the usual ones.
    pub fn hba(mut self, line: &str) -> Self {
        self.hba.push(line.to_owned());
        self
    }

    /// TLS on, with a certificate for 127.0.0.1 and localhost from an authority of its own (`Server::authority`).
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// TLS on, and TCP without it refused.
    pub fn tls_only(self) -> Self {
        self.tls().hba("hostnossl all all all reject")
    }

    /// Where to put it instead of a scratch folder.
    pub fn folder(mut self, folder: &Path) -> Self {
        self.folder = Some(folder.to_owned());
        self
    }

    pub fn life(mut self, life: Life) -> Self {
        self.life = life;
        self
    }
}

/// How a login made by `Server::login` proves itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    Scram,
    Md5,
    /// The password in clear text.
    Password,
    Trust,
}

/// A server; it is shut down when dropped, if its life is bound.
#[derive(Debug)]
pub struct Server {
    options: Options,
    folder: PathBuf,
    port: u16,
    binaries: PathBuf,
    process: Mutex<Option<Process>>,
}

impl Server {
    /// Makes a new cluster and starts it; returns when it answers.
    ///
    /// # Errors
    /// When initdb or the server failed, with its log.
    pub fn start(options: Options) -> Result<Server> {
        let server = Server::place(options)?;
        server.initialize()?;
        server.start_again()?;
        Ok(server)
    }

    fn place(options: Options) -> Result<Server> {
        let folder = match &options.folder {
            Some(folder) => folder.clone(),
            None => scratch::folder(&options.name)?,
        };
        scratch::make(&folder)?;
        if nix::unistd::geteuid().is_root() {
            let user = nix::unistd::User::from_name(OPERATING_SYSTEM_USER).ok().flatten();
            let user = user.ok_or_else(|| Failure::Other(format!("there is no user {OPERATING_SYSTEM_USER}")))?;
            std::os::unix::fs::chown(&folder, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
                .map_err(Failure::io(format!("giving {} to user postgres", folder.display())))?;
        }
        let binaries = binaries(options.version)?;
        Ok(Server { port: ports::free()?, options, folder, binaries, process: Mutex::new(None) })
    }

    fn initialize(&self) -> Result<()> {
        self.write("password", PASSWORD)?;
        let data = self.data();
        let mut arguments = vec!["-D".to_owned(), data.display().to_string()];
        let fixed = ["-U", "postgres", "--pwfile=password", "--auth-local=trust", "--auth-host=scram-sha-256", "-N"];
        arguments.extend(fixed.map(str::to_owned));
        if !self.options.initdb.iter().any(|argument| argument.starts_with("--encoding")) {
            arguments.push("--encoding=UTF8".to_owned());
        }
        if !self.options.initdb.iter().any(|argument| argument.contains("locale")) {
            arguments.push("--locale=C.UTF-8".to_owned());
        }
        arguments.extend(self.options.initdb.iter().cloned());
        self.tool("initdb", arguments).run()?;
        if self.options.tls {
            self.make_certificates()?;
        }
        let mut settings = String::new();
        for (name, value) in &self.options.settings {
            settings.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
        }
        if self.options.tls {
            settings.push_str("ssl = on\nssl_cert_file = '../server.crt'\nssl_key_file = '../server.key'\n");
        }
        self.append("data/postgresql.conf", &settings)?;
        let mut rules = self.options.hba.join("\n");
        rules.push_str("\nlocal all all trust\nlocal replication all trust\n");
        rules.push_str("host all all 127.0.0.1/32 scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256\n");
        self.write("data/pg_hba.conf", &rules)
    }

    /// An authority and a leaf: a certificate that signs itself is refused by rustls as its own authority.
    fn make_certificates(&self) -> Result<()> {
        let script = "set -e
            key='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'
            openssl req -x509 $key -keyout authority.key -out authority.crt -days 3650 -subj '/CN=dflux test authority'
            openssl req $key -keyout server.key -out server.csr -subj /CN=localhost
            printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\n' > server.ext
            openssl x509 -req -in server.csr -CA authority.crt -CAkey authority.key -CAcreateserial -days 3650 \
                -extfile server.ext -out server.crt
            chmod 600 server.key";
        let launch = Launch::new("openssl", "sh", &self.folder).arguments(["-c", script]).user(OPERATING_SYSTEM_USER);
        launch.run().map(|_| ())
    }

    /// Starts it on the data that it has; returns when it answers. Does nothing if it runs.
    ///
    /// # Errors
    /// When it ended instead, with its log.
    pub fn start_again(&self) -> Result<()> {
        let mut place = self.process.lock().expect("no holder of this lock panics");
        if place.as_ref().is_some_and(|process| process.ended().is_none()) {
            return Ok(());
        }
        let port = self.port.to_string();
        let arguments = ["-D", &self.data().display().to_string(), "-p", &port, "-h", "127.0.0.1", "-k"]
            .map(str::to_owned)
            .into_iter()
            .chain([self.folder.display().to_string()]);
        let when_we_die = if self.options.life == Life::Bound { Some(Signal::SIGQUIT) } else { None };
        let process = self.tool("postgres", arguments).when_we_die(when_we_die).start()?;
        process.wait_until(&format!("PostgreSQL {} answers", self.options.name), STARTED_WITHIN, || {
            Session::connect(&self.socket_url("postgres")).and_then(|session| session.run("SELECT 1"))
        })?;
        *place = Some(process);
        Ok(())
    }

    /// Fast shutdown: sessions are ended, a checkpoint is written.
    ///
    /// # Errors
    /// When it had to be killed, because a walsender's receiver did not take its last WAL, say.
    pub fn stop(&self) -> Result<()> {
        self.end(Signal::SIGINT)
    }

    /// Immediate shutdown: to the data and to clients as a crash of the server.
    ///
    /// # Errors
    /// When it had to be killed.
    pub fn crash(&self) -> Result<()> {
        self.end(Signal::SIGQUIT)
    }

    fn end(&self, signal: Signal) -> Result<()> {
        let taken = self.process.lock().expect("no holder of this lock panics").take();
        match taken {
            // The postmaster alone is told: its children are in groups of their own, and it ends them in order.
            Some(process) => process.stop(signal, STOPPED_WITHIN).map(|_| ()),
            None => Ok(()),
        }
    }

    /// # Errors
    /// As `stop` and `start_again`.
    pub fn restart(&self) -> Result<()> {
        self.stop()?;
        self.start_again()
    }

    /// Stops the postmaster and every backend where they are (SIGSTOP): a server that hangs, connections open.
    pub fn pause(&self) {
        self.signal_all(Signal::SIGSTOP);
    }

    pub fn resume(&self) {
        self.signal_all(Signal::SIGCONT);
    }

    fn signal_all(&self, signal: Signal) {
        let Some(postmaster) = self.pid() else { return };
        for pid in [vec![postmaster], children_of(postmaster)].concat() {
            // A backend that ended in between needs no signal.
            let _gone = signal::kill(Pid::from_raw(pid), signal);
        }
    }

    /// A streaming standby of this server, started, as new `pg_basebackup` makes it. Hold it back with
    /// `SELECT pg_wal_replay_pause()`; `promote` makes it a primary with a new timeline.
    ///
    /// # Errors
    /// When pg_basebackup or the standby failed.
    pub fn standby(&self, name: &str) -> Result<Server> {
        let options = Options { name: name.to_owned(), folder: None, ..self.options.clone() };
        let standby = Server::place(options)?;
        let data = standby.data().display().to_string();
        let arguments = ["-d", &self.socket_url("postgres"), "-D", &data, "-X", "stream", "-c", "fast", "-R"];
        standby.tool("pg_basebackup", arguments.map(str::to_owned)).run()?;
        for file in ["server.crt", "server.key", "authority.crt"] {
            let (from, to) = (self.folder.join(file), standby.folder.join(file));
            if self.options.tls {
                let copy = ["-p", &from.display().to_string(), &to.display().to_string()].map(str::to_owned);
                let launch = Launch::new("cp", "cp", &standby.folder).arguments(copy).user(OPERATING_SYSTEM_USER);
                launch.run()?;
            }
        }
        standby.start_again()?;
        Ok(standby)
    }

    /// Makes a standby a primary and waits until it is one.
    ///
    /// # Errors
    /// When it is no standby, or does not become a primary within a minute.
    pub fn promote(&self) -> Result<()> {
        let promoted = self.session("postgres")?.value("SELECT pg_promote(true, 60)")?;
        if promoted == "t" { Ok(()) } else { Err(Failure::Other(format!("{} was not promoted", self.options.name))) }
    }

    /// A session of the superuser by the socket: no password, no TLS, whatever pg_hba.conf says of TCP.
    ///
    /// # Errors
    /// When the server does not answer or has no such database.
    pub fn session(&self, database: &str) -> Result<Session> {
        Session::connect(&self.socket_url(database))
    }

    /// Makes an empty database and returns a session in it.
    ///
    /// # Errors
    /// When it exists already.
    pub fn database(&self, database: &str) -> Result<Session> {
        self.session("postgres")?.run(&format!("CREATE DATABASE \"{database}\""))?;
        self.session(database)
    }

    /// Makes a role that can log in over TCP with `PASSWORD`, by the proof given, and nothing else: no superuser, no
    /// replication. `attributes` go into CREATE ROLE, `"REPLICATION"` say.
    ///
    /// # Errors
    /// When the role exists already.
    pub fn login(&self, role: &str, proof: Proof, attributes: &str) -> Result<()> {
        let (encryption, method) = match proof {
            Proof::Scram => ("scram-sha-256", "scram-sha-256"),
            Proof::Md5 => ("md5", "md5"),
            Proof::Password => ("scram-sha-256", "password"),
            Proof::Trust => ("scram-sha-256", "trust"),
        };
        let rules =
            std::fs::read_to_string(self.data().join("pg_hba.conf")).map_err(Failure::io("reading pg_hba.conf"))?;
        let lines = format!("host all {role} 127.0.0.1/32 {method}\nhost replication {role} 127.0.0.1/32 {method}\n");
        self.write("data/pg_hba.conf", &(lines + &rules))?;
        self.session("postgres")?.run(&format!(
            "SET password_encryption = '{encryption}'; CREATE ROLE {role} LOGIN {attributes} PASSWORD '{PASSWORD}'; \
             SELECT pg_reload_conf()"
        ))
    }

    /// The superuser's URL over TCP, for dflux.toml.
    pub fn url(&self, database: &str) -> String {
        self.url_as("postgres", database)
    }

    pub fn url_as(&self, role: &str, database: &str) -> String {
        format!("postgresql://{role}:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    /// The superuser's URL with TLS demanded and the certificate checked against `authority`.
    pub fn url_tls(&self, database: &str) -> String {
        format!("{}?sslmode=verify-full&sslrootcert={}", self.url(database), self.authority().display())
    }

    /// The certificate of the authority that signed the server's, where TLS is on.
    pub fn authority(&self) -> PathBuf {
        self.folder.join("authority.crt")
    }

    fn socket_url(&self, database: &str) -> String {
        let folder = self.folder.display().to_string().replace('/', "%2F");
        format!("postgresql://postgres@{folder}:{}/{database}?application_name=harness", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The postmaster's process id while it runs.
    pub fn pid(&self) -> Option<i32> {
        let place = self.process.lock().expect("no holder of this lock panics");
        place.as_ref().filter(|process| process.ended().is_none()).map(Process::pid)
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    pub fn version(&self) -> u16 {
        self.options.version
    }

    /// A program of this server's version, run as user postgres in the server's folder: `psql`, `pg_dump`, `pgbench`.
    /// Other versions than Debian's come with `initdb`, `pg_ctl` and `postgres` alone: Debian's clients stand in.
    pub fn tool<S: Into<String>>(&self, name: &str, arguments: impl IntoIterator<Item = S>) -> Launch {
        let own = self.binaries.join(name);
        let program = if own.exists() { own } else { debian_binaries().join(name) };
        Launch::new(name, program, &self.folder).arguments(arguments).user(OPERATING_SYSTEM_USER)
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.folder.join(file);
        std::fs::write(&path, text).map_err(Failure::io(format!("writing {}", path.display())))
    }

    fn append(&self, file: &str, text: &str) -> Result<()> {
        let path = self.folder.join(file);
        let before = std::fs::read_to_string(&path).map_err(Failure::io(format!("reading {}", path.display())))?;
        self.write(file, &(before + text))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.options.life == Life::Bound
            && let Err(failure) = self.resume_and_crash()
        {
            eprintln!("{failure}");
        }
    }
}

impl Server {
    fn resume_and_crash(&self) -> Result<()> {
        // A paused server does not hear SIGQUIT.
        self.resume();
        self.crash()
    }
}

fn debian_binaries() -> PathBuf {
    PathBuf::from(format!("/usr/lib/postgresql/{VERSION_DEFAULT}/bin"))
}

fn binaries(version: u16) -> Result<PathBuf> {
    if version == VERSION_DEFAULT {
        let path = debian_binaries();
        if path.join("postgres").exists() {
            return Ok(path);
        }
        return Err(Failure::Missing { what: format!("PostgreSQL {version}"), path });
    }
    Ok(cache::part(&["postgres", &version.to_string()])?.join("bin"))
}

fn children_of(parent: i32) -> Vec<i32> {
    let listed = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    listed.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}
