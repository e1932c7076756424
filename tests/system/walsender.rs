//! The replication connection against real servers: each way in, each refusal by name, each kind of message, and that a
//! reader that is blocked costs neither the connection nor a frame.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it in #[test] functions, not in what they call")]

use std::time::{Duration, Instant};

use changelog::Lsn;
use producer::assemble::{Assembled, Assembler, ChangeKind};
use producer::pgoutput::{self, Before, Cell, Message};
use producer::walsender::{
    Frame, Refusal, Remedy, ReplicationStream, SnapshotAction, Status, Walsender, WalsenderError,
};
use tests::ports;
use tests::postgres::{Options, PASSWORD, Proof, Server, VERSION_DEFAULT};
use tests::sql::Session;

const LIMIT: Duration = Duration::from_secs(60);
const OPTIONS: [(&str, &str); 3] = [("proto_version", "1"), ("publication_names", "p"), ("messages", "true")];

async fn connect(url: &str) -> Result<Walsender, WalsenderError> {
    Walsender::connect(url, "dflux producer m/forward").await
}

/// The error of a connection that must not come about.
async fn refused(url: &str) -> WalsenderError {
    connect(url).await.err().unwrap_or_else(|| panic!("{url} was let in"))
}

fn with(url: &str, parameters: &str) -> String {
    format!("{url}{}{parameters}", if url.contains('?') { '&' } else { '?' })
}

#[tokio::test]
async fn every_proof_of_a_login_is_given_with_and_without_tls() {
    let server = Server::start(Options::new("walsender-logins").tls()).unwrap();
    for (role, proof) in [("s", Proof::Scram), ("m", Proof::Md5), ("p", Proof::Password), ("t", Proof::Trust)] {
        server.login(role, proof, "REPLICATION").unwrap();
        let url = server.url_as(role, "postgres");
        let verified = format!("sslmode=verify-full&sslrootcert={}", server.authority().display());
        for (parameters, encrypted) in
            [("sslmode=disable", false), ("sslmode=require", true), ("", true), (&verified, true)]
        {
            let mut walsender = connect(&with(&url, parameters)).await.unwrap();
            assert_eq!(walsender.encrypted(), encrypted, "{parameters}");
            let rows = walsender.simple_query("SELECT current_user, pg_backend_pid()").await.unwrap();
            assert_eq!(rows, [[Some(role.to_owned()), Some(walsender.backend_pid().to_string())]]);
            walsender.close().await.unwrap();
        }
        if proof != Proof::Trust {
            let wrong = refused(&url.replace(&format!(":{PASSWORD}@"), ":wrong@")).await;
            let missing = refused(&url.replace(&format!(":{PASSWORD}@"), "@")).await;
            assert_eq!((wrong.refusal(), wrong.remedy()), (Some(Refusal::WrongPassword), Remedy::Stop));
            assert!(!format!("{wrong:?} {wrong}").contains("wrong@"));
            assert!(matches!(missing, WalsenderError::PasswordMissing { .. }), "{missing}");
        }
        let bound = connect(&with(&url, "sslmode=require&channel_binding=require")).await;
        assert_eq!(bound.is_ok(), proof == Proof::Scram, "only SCRAM binds the channel");
    }
    let unbound = refused(&with(&server.url_as("s", "postgres"), "sslmode=disable&channel_binding=require")).await;
    assert!(matches!(unbound, WalsenderError::Authentication { .. }), "{unbound}");
}

#[tokio::test]
async fn sslmode_means_what_it_means_to_libpq() {
    let server = Server::start(Options::new("walsender-tls").tls_only()).unwrap();
    let plain = Server::start(Options::new("walsender-plain")).unwrap();
    let url = server.url("postgres");
    let authority = server.authority().display().to_string();
    // The certificate is made out to localhost and 127.0.0.1.
    let elsewhere = with(&url.replace("127.0.0.1", "elsewhere.example"), "hostaddr=127.0.0.1&sslmode=verify-ca");
    let let_in = [
        with(&url, "sslmode=require"),
        with(&url, &format!("sslmode=verify-full&sslrootcert={authority}")),
        format!("{elsewhere}&sslrootcert={authority}"),
        with(&plain.url("postgres"), "sslmode=prefer"),
    ];
    for url in &let_in {
        let walsender = connect(url)
            .await
            .unwrap_or_else(|error| panic!("{url}: {error}: {:?}", std::error::Error::source(&error)));
        assert_eq!(walsender.encrypted(), !url.contains("prefer"), "{url}");
    }
    let stranger = Server::start(Options::new("walsender-stranger").tls()).unwrap();
    let not_verified = [
        with(&url, &format!("sslmode=verify-ca&sslrootcert={}", stranger.authority().display())),
        with(&url, &format!("sslmode=require&sslrootcert={}", stranger.authority().display())),
        with(&url, "sslmode=verify-full"),
        format!("{}&sslrootcert={authority}", elsewhere.replace("verify-ca", "verify-full")),
    ];
    for url in &not_verified {
        let error = refused(url).await;
        assert!(matches!(error, WalsenderError::Tls { .. }), "{url}: {error}");
        assert!(error.hint().unwrap().contains("sslrootcert"));
    }
    let demanded = refused(&with(&plain.url("postgres"), "sslmode=require")).await;
    assert!(matches!(demanded, WalsenderError::TlsRefused { .. }), "{demanded}");
    let not_admitted = refused(&with(&url, "sslmode=disable")).await;
    assert_eq!(not_admitted.refusal(), Some(Refusal::NotAdmitted), "{not_admitted}");
    let no_file = refused(&with(&url, "sslmode=verify-ca&sslrootcert=/no/such/file")).await;
    assert!(matches!(no_file, WalsenderError::CertificateFile { .. }), "{no_file}");
    let folder = server.data().parent().unwrap().display().to_string();
    let socket = format!("postgres://postgres@{}:{}/postgres", folder.replace('/', "%2F"), server.port());
    assert!(!connect(&with(&socket, "sslmode=require")).await.unwrap().encrypted(), "no TLS on a unix socket");
}

#[tokio::test]
async fn each_refusal_has_its_name_and_its_hint() {
    let server = Options::new("walsender-refusals").hba("host all outcast 127.0.0.1/32 reject");
    let server = Server::start(server).unwrap();
    server.login("nobody", Proof::Scram, "").unwrap();
    let session = server.session("postgres").unwrap();
    for statement in [
        "CREATE ROLE outcast LOGIN REPLICATION PASSWORD 'dflux'",
        "CREATE ROLE mover LOGIN REPLICATION PASSWORD 'dflux'",
        "CREATE DATABASE closed",
        "REVOKE CONNECT ON DATABASE closed FROM public",
    ] {
        session.run(statement).unwrap();
    }
    let nowhere = format!("postgres://u:p@127.0.0.1:{}/postgres", ports::free().unwrap());
    let error = refused(&nowhere).await;
    assert!(matches!(error, WalsenderError::Connect { .. }) && error.remedy() == Remedy::Retry, "{error}");
    for (url, refusal, hint) in [
        (server.url("absent"), Refusal::NoSuchDatabase, "pg_database"),
        (server.url_as("nobody", "postgres"), Refusal::NotReplicationRole, "ALTER ROLE \"nobody\" REPLICATION"),
        (server.url_as("outcast", "postgres"), Refusal::NotAdmitted, "pg_hba.conf"),
        (server.url_as("mover", "closed"), Refusal::NoConnectPrivilege, "GRANT CONNECT"),
    ] {
        let error = refused(&url).await;
        assert_eq!(error.refusal(), Some(refusal), "{error}: {:?}", std::error::Error::source(&error));
        assert!(error.hint().unwrap().contains(hint), "{:?}", error.hint());
    }
}

#[tokio::test]
async fn a_server_without_room_or_without_logical_wal_says_which() {
    let tight = Options::new("walsender-tight").setting("max_replication_slots", "1").setting("max_wal_senders", "1");
    let tight = Server::start(tight).unwrap();
    let mut walsender = connect(&tight.url("postgres")).await.unwrap();
    let too_many = refused(&tight.url("postgres")).await;
    assert_eq!((too_many.refusal(), too_many.remedy()), (Some(Refusal::TooManySenders), Remedy::Retry));
    walsender.create_slot("a", false, SnapshotAction::Nothing).await.unwrap();
    for (name, refusal) in [("a", Refusal::SlotExists), ("b", Refusal::AllSlotsInUse)] {
        let error = walsender.create_slot(name, false, SnapshotAction::Nothing).await.unwrap_err();
        assert_eq!(error.refusal(), Some(refusal), "{error:?}");
    }
    assert_eq!(walsender.drop_slot("b").await.unwrap_err().refusal(), Some(Refusal::NoSuchSlot));
    walsender.drop_slot("a").await.unwrap();
    let missing = walsender.start_replication("a", Lsn::ZERO, &OPTIONS).await.err().unwrap();
    assert_eq!((missing.refusal(), missing.sqlstate()), (Some(Refusal::NoSuchSlot), Some("42704")));

    let replica = Server::start(Options::new("walsender-replica").setting("wal_level", "replica")).unwrap();
    let mut walsender = connect(&replica.url("postgres")).await.unwrap();
    let error = walsender.create_slot("a", false, SnapshotAction::Nothing).await.unwrap_err();
    assert_eq!(error.refusal(), Some(Refusal::WalLevel), "{error:?}");
}

/// A server with database `d`, publication `p` of table `t`, and slot `s`.
async fn server_with_slot(options: Options) -> (Server, Session) {
    let server = Server::start(options).unwrap();
    let session = server.database("d").unwrap();
    session.run("CREATE TABLE t (n int PRIMARY KEY, text text); CREATE PUBLICATION p FOR TABLE t").unwrap();
    let mut walsender = connect(&server.url("d")).await.unwrap();
    walsender.create_slot("s", false, SnapshotAction::Nothing).await.unwrap();
    walsender.close().await.unwrap();
    (server, session)
}

async fn stream(server: &Server) -> ReplicationStream {
    let walsender = connect(&server.url("d")).await.unwrap();
    walsender.start_replication("s", Lsn::ZERO, &OPTIONS).await.unwrap()
}

async fn next_message(stream: &mut ReplicationStream) -> Message {
    loop {
        if let Frame::XLogData { data, .. } = tokio::time::timeout(LIMIT, stream.next()).await.unwrap().unwrap() {
            return pgoutput::decode(data).unwrap();
        }
    }
}

#[tokio::test]
async fn a_slot_in_use_names_who_uses_it_and_a_terminated_stream_is_retried() {
    let (server, session) = server_with_slot(Options::new("walsender-in-use")).await;
    let mut first = stream(&server).await;
    let pid = session.value("SELECT active_pid FROM pg_replication_slots WHERE slot_name = 's'").unwrap();
    let second = connect(&server.url("d")).await.unwrap();
    let error = second.start_replication("s", Lsn::ZERO, &OPTIONS).await.err().unwrap();
    assert_eq!((error.refusal(), error.remedy()), (Some(Refusal::SlotInUse), Remedy::Retry));
    assert!(error.hint().unwrap().contains(&format!("pg_terminate_backend({pid})")), "{:?}", error.hint());
    let shown = session.value(&format!("SELECT application_name FROM pg_stat_replication WHERE pid = {pid}")).unwrap();
    assert_eq!(shown, "dflux producer m/forward");
    session.run(&format!("SELECT pg_terminate_backend({pid})")).unwrap();
    let ended = loop {
        if let Err(error) = tokio::time::timeout(LIMIT, first.next()).await.unwrap() {
            break error;
        }
    };
    assert_eq!((ended.refusal(), ended.remedy()), (Some(Refusal::Unavailable), Remedy::Retry), "{ended:?}");
}

#[tokio::test]
async fn the_pinned_settings_win_over_those_of_role_and_url() {
    let server = Server::start(Options::new("walsender-settings").version(18)).unwrap();
    let hostile = "ALTER ROLE postgres SET datestyle = 'German'; ALTER ROLE postgres SET extra_float_digits = -5; \
                   ALTER ROLE postgres SET bytea_output = 'escape'; ALTER ROLE postgres SET timezone = 'Asia/Tokyo'; \
                   ALTER ROLE postgres SET intervalstyle = 'iso_8601'; ALTER ROLE postgres SET statement_timeout = 1; \
                   ALTER ROLE postgres SET search_path = 'public'; ALTER ROLE postgres SET transaction_timeout = '60s'; \
                   ALTER ROLE postgres SET idle_session_timeout = '60s'";
    server.session("postgres").unwrap().run(hostile).unwrap();
    let url = with(&server.url("postgres"), "options=-c%20DateStyle%3DSQL%20-c%20geqo%3Doff");
    let mut walsender = connect(&url).await.unwrap();
    let mut show =
        async |name: &str| walsender.simple_query(&format!("SHOW {name}")).await.unwrap()[0][0].clone().unwrap();
    assert!(show("datestyle").await.starts_with("ISO"));
    for (name, expected) in [
        ("geqo", "off"),
        ("extra_float_digits", "3"),
        ("bytea_output", "hex"),
        ("timezone", "UTC"),
        ("intervalstyle", "postgres"),
        ("statement_timeout", "0"),
        ("lock_timeout", "0"),
        ("search_path", ""),
        ("lc_monetary", "C"),
        ("client_encoding", "UTF8"),
        ("row_security", "off"),
        ("transaction_timeout", "0"),
        ("idle_session_timeout", "0"),
    ] {
        assert_eq!(show(name).await, expected, "{name}");
    }
    let address = service::session::Address::parse("source", &server.url("postgres")).unwrap();
    let client = address.connect("settings").await.unwrap();
    for (name, expected) in [
        ("row_security", "off"),
        ("transaction_timeout", "0"),
        ("idle_session_timeout", "0"),
        ("statement_timeout", "0"),
    ] {
        let row = client.query_one(&format!("SHOW {name}"), &[]).await.unwrap();
        assert_eq!(row.get::<_, String>(0), expected, "{name}");
    }
}

#[tokio::test]
async fn a_new_slot_exports_the_snapshot_of_its_consistent_point() {
    let server = Server::start(Options::new("walsender-snapshot")).unwrap();
    let session = server.database("d").unwrap();
    session.run("CREATE TABLE t (n int); INSERT INTO t VALUES (1)").unwrap();
    let mut walsender = connect(&server.url("d")).await.unwrap();
    let identity = walsender.identify_system().await.unwrap();
    let control = session.rows("SELECT system_identifier, 1 FROM pg_control_system()").unwrap();
    assert_eq!(Some(identity.system_identifier), control[0][0]);
    assert_eq!((identity.timeline, identity.dbname.as_deref()), (1, Some("d")));
    let slot = walsender.create_slot("s", true, SnapshotAction::Export).await.unwrap();
    assert!(slot.consistent_point >= identity.xlogpos);
    session.run("INSERT INTO t VALUES (2)").unwrap();
    let snapshot = slot.snapshot_name.unwrap();
    let under =
        format!("BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '{snapshot}'; SELECT count(*) FROM t");
    assert_eq!(session.rows(&under).unwrap(), [[Some("1".to_owned())]]);
    session.run("ROLLBACK").unwrap();
    walsender.simple_query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.unwrap();
    let used = walsender.create_slot("u", true, SnapshotAction::Use).await.unwrap();
    assert_eq!(used.snapshot_name, None);
    session.run("INSERT INTO t VALUES (3)").unwrap();
    assert_eq!(walsender.simple_query("SELECT count(*) FROM public.t").await.unwrap(), [[Some("2".to_owned())]]);
}

#[tokio::test]
async fn a_connection_left_in_the_middle_of_a_command_is_not_used_again() {
    let server = Server::start(Options::new("walsender-abandoned")).unwrap();
    let session = server.session("postgres").unwrap();
    session.run("BEGIN; CREATE TABLE held ()").unwrap();
    let mut walsender = connect(&server.url("postgres")).await.unwrap();
    // It waits for the open transaction.
    let creating = walsender.create_slot("s", true, SnapshotAction::Nothing);
    assert!(tokio::time::timeout(Duration::from_millis(300), creating).await.is_err());
    let error = walsender.identify_system().await.unwrap_err();
    assert!(matches!(error, WalsenderError::Abandoned), "{error}");
    session.run("ROLLBACK").unwrap();
}

/// DFLUX_CORPUS=FILE writes the messages down for the decoder's own tests.
#[tokio::test]
async fn every_kind_of_message_that_a_server_sends_is_decoded() {
    let corpus = decode_every_kind(VERSION_DEFAULT).await;
    if let Some(path) = std::env::var_os("DFLUX_CORPUS") {
        std::fs::write(path, corpus).unwrap();
    }
}

#[tokio::test]
async fn the_oldest_and_the_newest_server_take_our_commands_and_send_the_same_messages() {
    for version in [14, 18] {
        decode_every_kind(version).await;
    }
}

/// PostgreSQL changed the words and the SQLSTATE's detail over the versions; the name must not change.
#[tokio::test]
async fn a_slot_whose_wal_is_gone_is_named_so_by_every_version() {
    for version in [14, VERSION_DEFAULT, 18] {
        let options = Options::new("walsender-lost").version(version).setting("max_slot_wal_keep_size", "1MB");
        let (server, session) = server_with_slot(options.setting("max_wal_size", "32MB")).await;
        let lost = || {
            session.run("INSERT INTO t SELECT coalesce(max(n), 0) + 1 FROM t").unwrap();
            session.run("SELECT pg_switch_wal()").unwrap();
            session.run("CHECKPOINT").unwrap();
            session.value("SELECT wal_status FROM pg_replication_slots").unwrap() == "lost"
        };
        tests::wait::until_true("the slot is lost", LIMIT, lost).unwrap();
        let walsender = connect(&server.url("d")).await.unwrap();
        let error = walsender.start_replication("s", Lsn::ZERO, &OPTIONS).await.err().unwrap();
        assert_eq!((error.refusal(), error.remedy()), (Some(Refusal::SlotLost), Remedy::Stop), "{version}: {error:?}");
    }
}

/// All kinds, as the server makes them; yields each message behind its length (u32).
async fn decode_every_kind(version: u16) -> Vec<u8> {
    let server = Server::start(Options::new("walsender-kinds").version(version)).unwrap();
    let session = server.database("d").unwrap();
    session
        .run(
            "CREATE TYPE mood AS ENUM ('sad', 'ok');
             CREATE TABLE keyed (n int PRIMARY KEY, mood mood, wide text, amount numeric(12,2), at timestamptz);
             ALTER TABLE keyed ALTER wide SET STORAGE EXTERNAL;
             CREATE TABLE full_row (a int, b text, c float8); ALTER TABLE full_row REPLICA IDENTITY FULL;
             CREATE TABLE indexed (a int NOT NULL, b text); CREATE UNIQUE INDEX indexed_a ON indexed (a);
             ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_a;
             CREATE TABLE \"Ödd \"\"name\" (n int PRIMARY KEY);
             CREATE PUBLICATION p FOR ALL TABLES",
        )
        .unwrap();
    let mut walsender = connect(&server.url("d")).await.unwrap();
    walsender.create_slot("s", false, SnapshotAction::Nothing).await.unwrap();
    for statements in [
        "INSERT INTO keyed VALUES (1, 'ok', repeat('w', 5000), 12.50, '2026-01-02 03:04:05.678901+00'), (2, NULL, '', 'NaN', 'infinity')",
        "UPDATE keyed SET amount = amount + 1 WHERE n = 1",
        "UPDATE keyed SET n = 3 WHERE n = 2",
        "DELETE FROM keyed WHERE n = 1",
        "INSERT INTO full_row VALUES (1, 'x', 0.1), (1, NULL, 'NaN'); UPDATE full_row SET b = 'y'; DELETE FROM full_row WHERE c = 0.1",
        "INSERT INTO indexed VALUES (1, 'x'); UPDATE indexed SET a = 2; DELETE FROM indexed",
        "INSERT INTO \"Ödd \"\"name\" VALUES (1); ALTER TABLE \"Ödd \"\"name\" ADD note text; INSERT INTO \"Ödd \"\"name\" VALUES (2, 'käse')",
        "SELECT pg_logical_emit_message(true, 'dflux.marker', 'tick'); SELECT pg_logical_emit_message(false, 'loose', 'x')",
        "SELECT pg_replication_origin_create('elsewhere'); SELECT pg_replication_origin_session_setup('elsewhere')",
        "SELECT pg_replication_origin_xact_setup('0/ABCD', now()); INSERT INTO indexed VALUES (9, 'origin')",
        "SELECT pg_replication_origin_session_reset()",
        "TRUNCATE keyed, full_row RESTART IDENTITY CASCADE; SELECT pg_logical_emit_message(true, 'dflux.marker', 'end')",
    ] {
        session.run(statements).unwrap();
    }
    let mut stream = walsender.start_replication("s", Lsn::ZERO, &OPTIONS).await.unwrap();
    let (mut assembler, mut events, mut corpus, mut kinds) = (Assembler::new(), Vec::new(), Vec::new(), Vec::new());
    let is_end = |event: &Assembled| matches!(event, Assembled::Marker { content, .. } if content.as_ref() == b"end");
    while !(events.iter().any(is_end) && assembler.open_transaction().is_none()) {
        let Frame::XLogData { data, wal_start, .. } =
            tokio::time::timeout(LIMIT, stream.next()).await.unwrap().unwrap()
        else {
            continue;
        };
        corpus.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
        corpus.extend_from_slice(&data);
        kinds.push(data[0]);
        assembler.accept(wal_start, pgoutput::decode(data).unwrap(), &mut events).unwrap();
    }
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(String::from_utf8(kinds).unwrap(), "BCDIMORTUY");
    check_kinds(&events);
    corpus
}

fn check_kinds(events: &[Assembled]) {
    let changes: Vec<_> = events
        .iter()
        .filter_map(|event| if let Assembled::Change(change) = event { Some(change) } else { None })
        .collect();
    let of = |name: &str| {
        changes.iter().filter(|change| change.relation.name == name).map(|change| &change.kind).collect::<Vec<_>>()
    };
    let text = |tuple: &pgoutput::TupleData, column: usize| match tuple.iter().nth(column) {
        Some(Cell::Text(text)) => String::from_utf8(text.to_vec()).unwrap(),
        other => format!("{other:?}"),
    };
    let keyed = of("keyed");
    let [
        ChangeKind::Insert { after: first },
        ChangeKind::Insert { after: second },
        ChangeKind::Update { before: Before::Absent, after: unchanged },
        ChangeKind::Update { before: Before::Key(key), .. },
        ChangeKind::Delete { before: Before::Key(deleted) },
        ChangeKind::Truncate { cascade: true, restart_identity: true },
    ] = keyed[..]
    else {
        panic!("{keyed:?}")
    };
    let shown: Vec<_> = [0, 1, 3, 4].map(|column| text(first, column)).into();
    assert_eq!(shown, ["1", "ok", "12.50", "2026-01-02 03:04:05.678901+00"]);
    assert_eq!([1, 2, 3, 4].map(|column| text(second, column)), ["Some(Null)", "", "NaN", "infinity"]);
    assert_eq!([2, 3].map(|column| text(unchanged, column)), ["Some(Unchanged)", "13.50"]);
    assert_eq!([0, 1].map(|column| text(key, column)), ["2", "Some(Null)"]);
    assert_eq!(text(deleted, 0), "1");
    assert!(matches!(of("full_row")[2], ChangeKind::Update { before: Before::Row(row), .. } if text(row, 1) == "x"));
    assert!(matches!(of("indexed")[1], ChangeKind::Update { before: Before::Key(key), .. } if text(key, 0) == "1"));
    let odd: Vec<_> = changes.iter().filter(|change| change.relation.name == "Ödd \"name").collect();
    assert_eq!(odd.iter().map(|change| change.relation.columns.len()).collect::<Vec<_>>(), [1, 2]);
    assert!(events.iter().any(|event| *event == Assembled::Origin { lsn: Lsn(0xABCD), name: "elsewhere".into() }));
    let truncated: Vec<_> = changes.iter().rev().take(2).map(|change| change.ordinal).collect();
    assert_eq!(truncated, [1, 0]);
}

#[tokio::test]
async fn what_is_confirmed_is_not_sent_again_and_what_is_not_is() {
    let (server, session) = server_with_slot(Options::new("walsender-confirm")).await;
    session.run("INSERT INTO t VALUES (1)").unwrap();
    session.run("INSERT INTO t VALUES (2)").unwrap();
    let mut first = stream(&server).await;
    let end = loop {
        if let Message::Commit(commit) = next_message(&mut first).await {
            break commit.end_lsn;
        }
    };
    first.send_status(Status::at(end), false).await.unwrap();
    let (mut reader, writer) = first.into_split();
    writer.close().await.unwrap();
    while reader.next().await.is_ok() {}
    let confirmed = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE NOT active";
    tests::wait::until("the slot is free", LIMIT, || session.value(confirmed).map_err(|error| error.to_string()))
        .unwrap();
    assert_eq!(session.value(confirmed).unwrap(), end.to_string());
    let mut again = stream(&server).await;
    let inserted = loop {
        if let Message::Insert { after, .. } = next_message(&mut again).await {
            break after;
        }
    };
    assert_eq!(inserted.iter().next(), Some(Cell::Text(b"2")));
}

#[tokio::test]
async fn a_reader_that_is_cancelled_again_and_again_misses_nothing() {
    let (server, session) = server_with_slot(Options::new("walsender-cancel").tls()).await;
    session.run("INSERT INTO t SELECT n, repeat('x', n % 3000) FROM generate_series(1, 20000) AS n").unwrap();
    session.run("INSERT INTO t VALUES (0, repeat('y', 20000000))").unwrap();
    let (mut stream, mut seen, began) = (stream(&server).await, 0, Instant::now());
    while seen < 20_001 {
        assert!(began.elapsed() < LIMIT, "{seen} rows in time");
        let Ok(frame) = tokio::time::timeout(Duration::from_micros(100), stream.next()).await else { continue };
        let Frame::XLogData { data, .. } = frame.unwrap() else { continue };
        if let Message::Insert { after, .. } = pgoutput::decode(data).unwrap() {
            seen += 1;
            let length = if seen == 20_001 { 20_000_000 } else { seen % 3000 };
            assert!(matches!(after.iter().nth(1), Some(Cell::Text(text)) if text.len() == length), "row {seen}");
        }
    }
}

/// The server ends a stream that it does not hear from for wal_sender_timeout. While the reader stands still (its output is
/// blocked) the other half keeps the connection; without it the connection is lost, so this test can fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_reader_is_blocked_is_kept_alive_by_its_status_half() {
    for tls in [false, true] {
        let options = Options::new("walsender-blocked").setting("wal_sender_timeout", "2s");
        let (server, session) = server_with_slot(if tls { options.tls() } else { options }).await;
        session.run("INSERT INTO t SELECT n, repeat('x', 1000) FROM generate_series(1, 60000) AS n").unwrap();
        for kept in [true, false] {
            let (mut reader, mut writer) = stream(&server).await.into_split();
            let pid = session.value("SELECT active_pid FROM pg_replication_slots").unwrap();
            // The stream has begun: from here on the socket's buffers fill up and the server waits for us.
            while !matches!(reader.next().await.unwrap(), Frame::XLogData { data, .. } if data[0] == b'I') {}
            let began = Instant::now();
            let mut ticks = tokio::time::interval(Duration::from_millis(300));
            while began.elapsed() < Duration::from_secs(6) {
                ticks.tick().await;
                if kept {
                    writer.send_status(Status::default(), false).await.unwrap();
                }
            }
            let alive =
                session.value(&format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}")).unwrap() == "1";
            assert_eq!(alive, kept, "tls {tls}");
            let mut rows = 1;
            let ended = loop {
                match tokio::time::timeout(LIMIT, reader.next()).await.unwrap() {
                    Ok(Frame::XLogData { data, .. }) if data[0] == b'I' => rows += 1,
                    Ok(Frame::XLogData { data, .. }) if data[0] == b'C' => break None,
                    Ok(_) => {}
                    Err(error) => break Some(error),
                }
            };
            assert_eq!((ended.is_none(), rows == 60_000), (kept, kept), "{rows} rows, {ended:?}");
            if !kept {
                assert_eq!(ended.map(|error| error.remedy()), Some(Remedy::Retry));
            }
            drop((reader, writer));
            let free = || {
                session.value("SELECT active FROM pg_replication_slots").map(|active| active == "f").unwrap_or(false)
            };
            tests::wait::until_true("the slot is free", LIMIT, free).unwrap();
        }
    }
}
