//! A real etcd on loopback: one member, or a cluster, spoken to by its JSON gateway.

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value as Json, json};

use crate::process::{Launch, Life};
use crate::server::Place;
use crate::sql::blocking;
use crate::{Failure, Result, cache, ports, scratch};

const STARTED_WITHIN: Duration = Duration::from_secs(60);
const ASKED_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Member {
    name: String,
    folder: PathBuf,
    port: u16,
    peer_port: u16,
    place: Place,
}

/// The members end when this is dropped.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
}

impl Etcd {
    /// Starts a new, empty cluster; returns when each member answers.
    ///
    /// # Errors
    /// When etcd cannot be fetched, or a member did not come up, with its log.
    pub fn start(members: usize) -> Result<Etcd> {
        let member = |number| {
            let (name, folder) = (format!("etcd{number}"), scratch::folder("etcd")?);
            Ok(Member { name, folder, port: ports::free()?, peer_port: ports::free()?, place: Place::new(Life::Bound) })
        };
        let etcd = Etcd { members: (0..members).map(member).collect::<Result<_>>()? };
        // A member answers when most of them are there.
        std::thread::scope(|scope| {
            let etcd = &etcd;
            let starts: Vec<_> = (0..members).map(|member| scope.spawn(move || etcd.start_again(member))).collect();
            starts.into_iter().try_for_each(|start| match start.join() {
                Ok(outcome) => outcome,
                Err(_) => Err(Failure::Other("starting etcd panicked".to_owned())),
            })
        })?;
        Ok(etcd)
    }

    /// Starts a member on what it holds. Does nothing if it runs.
    ///
    /// # Errors
    /// When it did not come up, with its log.
    pub fn start_again(&self, member: usize) -> Result<()> {
        let health = format!("{}/health", self.endpoint(member));
        let launch = || self.launch(&self.members[member]);
        self.members[member].place.start(STARTED_WITHIN, launch, || {
            let answer = ask(reqwest::Client::new().get(&health))?;
            if answer["health"] == "true" { Ok(()) } else { Err(Failure::Other(answer.to_string())) }
        })
    }

    fn launch(&self, member: &Member) -> Result<Launch> {
        let address = |port: u16| format!("http://127.0.0.1:{port}");
        let cluster: Vec<String> =
            self.members.iter().map(|member| format!("{}={}", member.name, address(member.peer_port))).collect();
        let launch = Launch::new(&member.name, cache::part(&["etcd"])?.join("etcd"), &member.folder)
            .arguments(["--name", &member.name, "--data-dir", "data", "--log-level", "warn"])
            .arguments([
                "--listen-client-urls",
                &address(member.port),
                "--advertise-client-urls",
                &address(member.port),
            ])
            .arguments(["--listen-peer-urls", &address(member.peer_port)])
            .arguments(["--initial-advertise-peer-urls", &address(member.peer_port)])
            .arguments(["--initial-cluster", &cluster.join(",")]);
        Ok(launch)
    }

    pub fn endpoint(&self, member: usize) -> String {
        format!("http://127.0.0.1:{}", self.members[member].port)
    }

    /// `kill -9`.
    pub fn kill(&self, member: usize) {
        self.members[member].place.kill();
    }

    /// SIGSTOP: connections are made and no request is answered.
    ///
    /// # Errors
    /// When it runs on.
    pub fn pause(&self, member: usize) -> Result<()> {
        self.members[member].place.freeze()
    }

    pub fn resume(&self, member: usize) {
        self.members[member].place.signal(Signal::SIGCONT);
    }

    /// A call of the JSON gateway of member 0: `call("/v3/auth/enable", json!({}), None)`.
    ///
    /// # Errors
    /// When it is refused, with etcd's words.
    pub fn call(&self, path: &str, body: &Json, token: Option<&str>) -> Result<Json> {
        let mut request = reqwest::Client::new().post(format!("{}{path}", self.endpoint(0))).json(body);
        if let Some(token) = token {
            request = request.header("authorization", token);
        }
        let answer = ask(request)?;
        if answer["error"].is_null() { Ok(answer) } else { Err(Failure::Other(format!("{path}: {answer}"))) }
    }

    /// Turns authentication on: `root` may do all, `app` may read and write keys that begin with `prefix`. Returns a token of root's.
    ///
    /// # Errors
    /// When etcd refuses it.
    pub fn enable_authentication(&self, password: &str, prefix: &str) -> Result<String> {
        let base64 = |text: &str| {
            use base64::Engine as _;
            base64::engine::general_purpose::STANDARD.encode(text)
        };
        let mut end = prefix.to_owned();
        end.push('\u{7f}');
        let permission = json!({"permType": "READWRITE", "key": base64(prefix), "range_end": base64(&end)});
        for (path, body) in [
            ("/v3/auth/user/add", json!({"name": "root", "password": password})),
            ("/v3/auth/role/add", json!({"name": "root"})),
            ("/v3/auth/user/grant", json!({"user": "root", "role": "root"})),
            ("/v3/auth/user/add", json!({"name": "app", "password": password})),
            ("/v3/auth/role/add", json!({"name": "app"})),
            ("/v3/auth/role/grant", json!({"name": "app", "perm": permission})),
            ("/v3/auth/user/grant", json!({"user": "app", "role": "app"})),
            ("/v3/auth/enable", json!({})),
        ] {
            self.call(path, &body, None)?;
        }
        let answer = self.call("/v3/auth/authenticate", &json!({"name": "root", "password": password}), None)?;
        Ok(answer["token"].as_str().unwrap_or_default().to_owned())
    }
}

fn ask(request: reqwest::RequestBuilder) -> Result<Json> {
    let answer = async move { request.timeout(ASKED_WITHIN).send().await?.json().await };
    blocking(answer).map_err(Failure::http("asking etcd"))
}
