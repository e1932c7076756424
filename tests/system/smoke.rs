//! The stack itself: if one of these fails, no other system test means anything.

use std::time::Duration;

use tests::postgres::{Options, PASSWORD, Proof, Server};
use tests::sql::Session;
use tests::stack::{self, Migration};

#[test]
fn kafka_gives_back_the_record_that_it_took() {
    let broker = &stack::shared().unwrap().broker;
    let topic = stack::unique("smoke");
    broker.create_topic(&topic, 2, &[("retention.ms", "-1")]).unwrap();
    assert_eq!(broker.put(&topic, 1, Some(b"k"), Some(b"v")).unwrap(), 0);
    assert_eq!(broker.put(&topic, 1, Some(b"k"), None).unwrap(), 1);
    let records = broker.records(&topic).unwrap();
    assert_eq!(records.len(), 2);
    assert_eq!((records[0].partition, records[0].value.as_deref()), (1, Some(&b"v"[..])));
    assert_eq!((records[1].key.as_deref(), records[1].value.as_deref()), (Some(&b"k"[..]), None));
    assert!(broker.topics().unwrap().contains(&(topic.clone(), 2)));
    broker.delete_topic(&topic).unwrap();
    assert!(broker.records(&topic).is_err());
}

#[test]
fn a_topic_is_not_made_by_writing_to_it() {
    let broker = &stack::shared().unwrap().broker;
    assert!(broker.put("never-made", 0, None, Some(b"v")).is_err());
}

#[test]
fn the_registry_gives_back_the_schema_that_it_took() {
    let registry = &stack::shared().unwrap().registry;
    let schema = r#"{"type":"record","name":"r","fields":[{"name":"a","type":["null","long"]}]}"#;
    let id = registry.register("smoke-value", schema).unwrap();
    assert_eq!(registry.register("smoke-value", schema).unwrap(), id);
    assert!(registry.has("smoke-value") && !registry.has("no-such-value"));
    let held: serde_json::Value = serde_json::from_str(&registry.schema(id).unwrap()).unwrap();
    assert_eq!(held["fields"][0]["name"], "a");
    assert!(registry.register("smoke-value", "{\"type\": \"no such type\"}").is_err());
}

#[test]
fn postgresql_answers_over_scram_and_refuses_a_wrong_password() {
    let source = &stack::shared().unwrap().source;
    let session = Session::connect(&source.url("postgres")).unwrap();
    assert!(session.value("SHOW server_version").unwrap().starts_with("15."));
    assert_eq!(session.value("SHOW wal_level").unwrap(), "logical");
    let held = session.value("SELECT left(rolpassword, 13) FROM pg_authid WHERE rolname = current_user").unwrap();
    assert_eq!(held, "SCRAM-SHA-256");
    let wrong = source.url("postgres").replace(&format!(":{PASSWORD}@"), ":wrong@");
    let failure = Session::connect(&wrong).unwrap_err().to_string();
    assert!(failure.contains("password authentication failed"), "{failure}");
}

/// psql judges: it checks the certificate's chain and name itself.
#[test]
fn postgresql_answers_over_tls_with_a_certificate_that_a_client_can_check() {
    let server = Server::start(Options::new("tls").tls_only()).unwrap();
    assert!(Session::connect(&server.url("postgres")).is_err());
    let query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let ask = |url: String| server.tool("psql", [url, "-Atc".to_owned(), query.to_owned()]).run();
    assert_eq!(ask(server.url_tls("postgres")).unwrap().trim(), "t");
    let stranger = Server::start(Options::new("stranger").tls()).unwrap();
    let of_a_stranger =
        format!("{}?sslmode=verify-full&sslrootcert={}", server.url("postgres"), stranger.authority().display());
    assert!(ask(of_a_stranger).unwrap_err().to_string().contains("certificate verify failed"));
}

#[test]
fn logins_prove_themselves_as_they_were_made_to() {
    let server = Server::start(Options::new("logins")).unwrap();
    let proofs = [("s", Proof::Scram), ("m", Proof::Md5), ("p", Proof::Password), ("t", Proof::Trust)];
    for (role, proof) in proofs {
        server.login(role, proof, "REPLICATION").unwrap();
        let session = Session::connect(&server.url_as(role, "postgres")).unwrap();
        assert_eq!(session.value("SELECT current_user").unwrap(), role);
        let wrong = server.url_as(role, "postgres").replace(&format!(":{PASSWORD}@"), ":wrong@");
        assert_eq!(Session::connect(&wrong).is_ok(), proof == Proof::Trust);
    }
}

#[test]
fn what_is_committed_is_there_after_a_crash_a_pause_and_a_restart() {
    let server = Server::start(Options::new("restarted")).unwrap();
    let session = server.session("postgres").unwrap();
    session.run("CREATE TABLE t (n int); INSERT INTO t VALUES (1)").unwrap();
    server.crash().unwrap();
    assert!(session.run("SELECT 1").is_err());
    server.start_again().unwrap();
    server.restart().unwrap();
    assert_eq!(server.session("postgres").unwrap().number("SELECT count(*) FROM t").unwrap(), 1);
    server.pause();
    let url = server.url("postgres");
    let asked = std::thread::spawn(move || Session::connect(&url).and_then(|session| session.value("SELECT 7")));
    server.resume();
    assert_eq!(asked.join().unwrap().unwrap(), "7");
}

#[test]
fn a_standby_follows_and_is_promoted_to_a_new_timeline() {
    let primary = Server::start(Options::new("primary")).unwrap();
    let session = primary.session("postgres").unwrap();
    session.run("CREATE TABLE t (n int)").unwrap();
    let standby = primary.standby("standby").unwrap();
    session.run("INSERT INTO t VALUES (1)").unwrap();
    let follower = standby.session("postgres").unwrap();
    tests::wait::until_true("the standby has the row", Duration::from_secs(30), || {
        follower.number("SELECT count(*) FROM t").is_ok_and(|count| count == 1)
    })
    .unwrap();
    primary.crash().unwrap();
    standby.promote().unwrap();
    follower.run("INSERT INTO t VALUES (2); CHECKPOINT").unwrap();
    assert_eq!(follower.value("SELECT timeline_id FROM pg_control_checkpoint()").unwrap(), "2");
}

#[test]
fn each_migration_has_databases_and_a_configuration_of_its_own() {
    let one = Migration::shared("smoke").unwrap();
    let other = Migration::shared("smoke").unwrap();
    one.source().unwrap().run("CREATE TABLE only_here (n int)").unwrap();
    let listed = "SELECT count(*) FROM pg_tables WHERE tablename = 'only_here'";
    assert_eq!(other.source().unwrap().number(listed).unwrap(), 0);
    one.configure(&[("consumer", "transactions_max", 7.into())]).unwrap();
    let text = std::fs::read_to_string(one.config()).unwrap();
    let parsed: toml::Table = text.parse().unwrap();
    assert_eq!(parsed["consumer"]["transactions_max"].as_integer(), Some(7));
    assert_eq!(parsed["migration"]["name"].as_str(), Some(one.name.as_str()));
    assert_ne!(one.config(), other.config());
}

#[test]
fn every_supported_version_starts_and_decodes_with_pgoutput() {
    for version in [14, 16, 17, 18] {
        let server = Server::start(Options::new(&format!("v{version}")).version(version)).unwrap();
        let session = server.session("postgres").unwrap();
        assert!(session.value("SHOW server_version").unwrap().starts_with(&version.to_string()));
        session.run("CREATE TABLE t (n int PRIMARY KEY)").unwrap();
        session.run("CREATE PUBLICATION p FOR TABLE t").unwrap();
        session.run("SELECT pg_create_logical_replication_slot('s', 'pgoutput')").unwrap();
        session.run("INSERT INTO t VALUES (1)").unwrap();
        let changes = "SELECT count(*) FROM pg_logical_slot_get_binary_changes('s', NULL, NULL, 'proto_version', '1', \
                       'publication_names', 'p')";
        assert!(session.number(changes).unwrap() >= 4, "begin, relation, insert and commit");
    }
}

#[test]
fn up_twice_starts_nothing_twice_and_down_leaves_nothing() {
    let name = format!("smoke-{}", std::process::id());
    let folder = tests::cache::checkout().join(".run").join(&name);
    let stack = |job: &str| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_stack")).args([job, &name]).output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{said}");
        said
    };
    let servers = || {
        let state: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.join("stack.json")).unwrap()).unwrap();
        let pids = state["servers"].as_array().unwrap().iter().map(|server| server["pid"].as_i64().unwrap());
        (pids.collect::<Vec<_>>(), state["data"].as_str().unwrap().to_owned())
    };
    stack("up");
    let (first, data) = servers();
    assert_eq!(first.len(), 4);
    let config: toml::Table = std::fs::read_to_string(folder.join("dflux.toml")).unwrap().parse().unwrap();
    let source = config["source"]["url"].as_str().unwrap();
    assert_eq!(Session::connect(source).unwrap().value("SELECT 1").unwrap(), "1");
    assert!(stack("up").contains("already running"));
    assert_eq!(servers().0, first);

    stack("down");
    for pid in first {
        assert!(Session::connect(source).is_err());
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        assert!(!status.contains("VmRSS"), "process {pid} goes on");
    }
    assert!(!std::path::Path::new(&data).exists());
    assert!(stack("down").contains("nothing is running"));
    std::fs::remove_dir_all(&folder).unwrap();
}
