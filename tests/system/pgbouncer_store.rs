//! The PgBouncer store against a real PgBouncer in front of two real servers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use control::store::pgbouncer::PgbouncerStore;
use control::store::{ConfigStore, Error, Paused, Swapped, Value, Version};
use service::Hint;
use service::config::Held;
use tests::pgbouncer::Pgbouncer;
use tests::postgres::{Options, PASSWORD, Server};
use tests::sql::Session;
use tests::wait;
use tokio_postgres::{NoTls, SimpleQueryMessage};

const LIMIT: Duration = Duration::from_secs(5);
const SOON: Duration = Duration::from_secs(20);

struct Stage {
    source: Server,
    target: Server,
    bouncer: Pgbouncer,
    store: PgbouncerStore,
}

impl Stage {
    fn new(settings: &str, held: Held) -> Stage {
        let (source, target) = std::thread::scope(|scope| {
            let source = scope.spawn(|| Server::start(Options::new("source")).unwrap());
            let target = scope.spawn(|| Server::start(Options::new("target")).unwrap());
            (source.join().unwrap(), target.join().unwrap())
        });
        for server in [&source, &target] {
            server.database("shop").unwrap().run("CREATE TABLE t (client int, number int)").unwrap();
        }
        let other = format!("other = host=127.0.0.1 port={} dbname=postgres", source.port());
        let shop = format!("shop = host=127.0.0.1 port={} dbname=shop pool_size=4", source.port());
        let bouncer = Pgbouncer::start(&format!("; kept\n{other}\n{shop}"), settings).unwrap();
        let store = PgbouncerStore::new(&service::config::Pgbouncer {
            admin_url: bouncer.admin_url(),
            ini: bouncer.ini(),
            database: "shop".into(),
            held,
        });
        Stage { source, target, bouncer, store: store.unwrap() }
    }

    fn value(&self, server: &Server) -> Value {
        // What an entry cannot say (TLS, the user) is nothing that it differs by.
        let text = format!("postgresql://app:{PASSWORD}@127.0.0.1:{}/shop?sslmode=prefer", server.port());
        Value::new("a test", text).unwrap()
    }

    fn ini(&self) -> String {
        std::fs::read_to_string(self.bouncer.ini()).unwrap()
    }

    fn edit(&self, from: &str, to: &str) {
        let text = self.ini();
        assert!(text.contains(from));
        std::fs::write(self.bouncer.ini(), text.replace(from, to)).unwrap();
    }

    fn paused(&self) -> bool {
        let rows = self.bouncer.console().unwrap().rows("SHOW DATABASES").unwrap();
        let row = rows.iter().find(|row| row[0].as_deref() == Some("shop")).unwrap();
        row.iter().rev().nth(1).unwrap().as_deref() == Some("1")
    }

    /// Where a client lands that comes now.
    fn lands_at(&self) -> u16 {
        let session = Session::connect(&self.bouncer.url("shop")).unwrap();
        session.number("SELECT current_setting('port')").unwrap() as u16
    }

    /// How long the pause, the swap and the resume took.
    async fn switch(&self, to: &Server) -> [Duration; 3] {
        let before = self.store.get().await.unwrap();
        let began = Instant::now();
        assert_eq!(self.store.pause(LIMIT).await.unwrap(), Paused::Held { ended: 0 });
        let paused = began.elapsed();
        self.nothing_is_connected();
        let began = Instant::now();
        let swapped = self.store.compare_and_swap(&before.version, &self.value(to)).await.unwrap();
        let Swapped::Applied(version) = swapped else { panic!("{swapped:?}") };
        let swap = began.elapsed();
        self.store.resume().await.unwrap();
        let resumed = began.elapsed() - swap;
        let after = self.store.get().await.unwrap();
        assert_eq!(after.version, version);
        assert!(self.store.same(&after.value, &self.value(to)) && !self.store.same(&after.value, &before.value));
        [paused, swap, resumed]
    }

    fn nothing_is_connected(&self) {
        // A connection that PgBouncer has closed is a backend's for a moment more.
        for server in [&self.source, &self.target] {
            let session = server.session("postgres").unwrap();
            wait::until_true("no connection is left", SOON, || {
                session.number("SELECT count(*) FROM pg_stat_activity WHERE datname = 'shop'").unwrap() == 0
            })
            .unwrap();
        }
    }
}

/// What clients have seen. Nothing stops them but `done`.
#[derive(Default)]
struct Seen {
    done: AtomicBool,
    transactions: AtomicUsize,
    logins: AtomicUsize,
    longest_ms: AtomicUsize,
}

impl Seen {
    fn took(&self, began: Instant) {
        self.longest_ms.fetch_max(began.elapsed().as_millis() as usize, Ordering::Relaxed);
    }
}

fn port(messages: &[SimpleQueryMessage]) -> u16 {
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    row.expect("a row").parse().unwrap()
}

async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .unwrap_or_else(|error| panic!("a client cannot log in: {error}: {:?}", std::error::Error::source(&error)));
    tokio::spawn(connection);
    client
}

/// Transactions of two statements, each of which has to be on one server.
async fn work(url: String, number: usize, seen: Arc<Seen>) {
    let client = connect(&url).await;
    while !seen.done.load(Ordering::Relaxed) {
        let began = Instant::now();
        let ask = "SELECT current_setting('port')";
        client.batch_execute("BEGIN").await.unwrap();
        let first = port(&client.simple_query(ask).await.unwrap());
        client.batch_execute(&format!("INSERT INTO t VALUES ({number}, 1)")).await.unwrap();
        assert_eq!(port(&client.simple_query(ask).await.unwrap()), first);
        client.batch_execute("COMMIT").await.unwrap();
        seen.took(began);
        seen.transactions.fetch_add(1, Ordering::Relaxed);
    }
}

/// New clients come all the time, also while the others wait: what pgbouncer#498 hits.
async fn log_in(url: String, seen: Arc<Seen>) {
    let mut clients = tokio::task::JoinSet::new();
    while !seen.done.load(Ordering::Relaxed) {
        let (url, seen) = (url.clone(), seen.clone());
        clients.spawn(async move {
            let began = Instant::now();
            connect(&url).await.simple_query("SELECT 1").await.unwrap();
            seen.took(began);
            seen.logins.fetch_add(1, Ordering::Relaxed);
        });
        tokio::task::spawn_blocking(|| wait::pace(Duration::from_millis(20))).await.unwrap();
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_run_through_ten_switches_without_an_error_and_all_land_on_the_other_server() {
    let stage = Stage::new("pool_mode = transaction", Held::Resume);
    let first = stage.ini();
    let seen = Arc::new(Seen::default());
    let clients: Vec<_> = (0..20)
        .map(|number| tokio::spawn(work(stage.bouncer.url("shop"), number, seen.clone())))
        .chain([tokio::spawn(log_in(stage.bouncer.url("shop"), seen.clone()))])
        .collect();
    let mut times = Vec::new();
    for round in 0..10 {
        let before = seen.transactions.load(Ordering::Relaxed);
        wait::until_true("clients work", SOON, || seen.transactions.load(Ordering::Relaxed) > before + 200).unwrap();
        times.push(stage.switch(if round % 2 == 0 { &stage.target } else { &stage.source }).await);
        let here = if round % 2 == 0 { &stage.target } else { &stage.source };
        assert_eq!(stage.lands_at(), here.port());
    }
    // All land there: the other server gets nothing more.
    let rows = |server: &Server| server.session("shop").unwrap().number("SELECT count(*) FROM t").unwrap();
    let (source, target) = (rows(&stage.source), rows(&stage.target));
    wait::until_true("clients work", SOON, || rows(&stage.source) > source + 200).unwrap();
    assert_eq!(rows(&stage.target), target);
    seen.done.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("no client saw an error");
    }
    let committed = rows(&stage.source) + rows(&stage.target);
    assert_eq!(committed as usize, seen.transactions.load(Ordering::Relaxed), "each commit is somewhere, once");
    assert_eq!(stage.ini(), first, "after ten switches the file is what it was, byte for byte");
    // A pool that takes a login for failed is closed for 15 s.
    assert!(seen.longest_ms.load(Ordering::Relaxed) < 10_000);
    let retry = stage.bouncer.console().unwrap().rows("SHOW CONFIG").unwrap();
    let retry = retry.iter().find(|row| row[0].as_deref() == Some("server_login_retry")).unwrap();
    assert_eq!(retry[1].as_deref(), Some("15"), "what was shortened is as before");
    println!(
        "switches: {times:?}; longest of {committed} transactions and {} logins: {} ms",
        seen.logins.load(Ordering::Relaxed),
        seen.longest_ms.load(Ordering::Relaxed)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_never_ends_makes_the_pause_time_out_and_everything_resumes() {
    let stage = Stage::new("pool_mode = session", Held::Resume);
    let holder = Session::connect(&stage.bouncer.url("shop")).unwrap();
    holder.run("SET application_name = 'the holder'; SELECT 1").unwrap();
    for _ in 0..3 {
        let error = stage.store.pause(Duration::from_millis(300)).await.unwrap_err();
        let text = service::report(&error, error.hint());
        assert!(matches!(error, Error::PauseHeld { .. }) && text.contains("it was resumed"), "{text}");
        assert!(text.contains("1 connection(s) held by postgres"), "{text}");
        assert!(!stage.paused());
        // The holder was not disturbed, and others come and go.
        holder.run("SELECT 1").unwrap();
        assert_eq!(stage.lands_at(), stage.source.port());
    }
    let before = stage.store.get().await.unwrap();
    let error = stage.store.compare_and_swap(&before.version, &stage.value(&stage.target)).await.unwrap_err();
    assert!(matches!(error, Error::NotPaused { .. }), "{error:?}");
    drop(holder);
    stage.switch(&stage.target).await;
    assert_eq!(stage.lands_at(), stage.target.port());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_configuration_says_so_sessions_that_hold_on_are_ended() {
    let stage = Stage::new("pool_mode = session", Held::Kill);
    let holder = Session::connect(&stage.bouncer.url("shop")).unwrap();
    holder.run("SELECT 1").unwrap();
    let before = stage.store.get().await.unwrap();
    assert_eq!(stage.store.pause(Duration::from_millis(200)).await.unwrap(), Paused::Held { ended: 1 });
    stage.nothing_is_connected();
    let swapped = stage.store.compare_and_swap(&before.version, &stage.value(&stage.target)).await.unwrap();
    assert!(matches!(swapped, Swapped::Applied(_)), "{swapped:?}");
    stage.store.resume().await.unwrap();
    holder.run("SELECT 1").unwrap_err();
    assert_eq!(stage.lands_at(), stage.target.port());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_transaction_is_waited_for_and_other_databases_go_on() {
    let stage = Stage::new("pool_mode = transaction", Held::Resume);
    let client = Session::connect(&stage.bouncer.url("shop")).unwrap();
    client.run("BEGIN").unwrap();
    let other = Session::connect(&stage.bouncer.url("other")).unwrap();
    let store = stage.store.clone();
    let pause = tokio::spawn(async move { store.pause(LIMIT).await });
    wait::until_true("the pause waits", SOON, || stage.paused()).unwrap();
    other.run("SELECT 1").unwrap();
    assert!(!pause.is_finished());
    client.run("INSERT INTO t VALUES (1, 1)").unwrap();
    client.run("COMMIT").unwrap();
    assert_eq!(pause.await.unwrap().unwrap(), Paused::Held { ended: 0 });
    other.run("SELECT 1").unwrap();
    stage.store.resume().await.unwrap();
    // Nothing was to be loaded.
    assert!(!stage.bouncer.log().contains("RELOAD"));
    client.run("SELECT 1").unwrap();
    stage.store.resume().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_paused_and_died_leaves_a_pause_that_anybody_ends() {
    let stage = Stage::new("pool_mode = transaction", Held::Resume);
    let client = Session::connect(&stage.bouncer.url("shop")).unwrap();
    // A caller that is gone before it holds.
    client.run("BEGIN").unwrap();
    let store = stage.store.clone();
    let caller = tokio::spawn(async move { store.pause(LIMIT).await });
    wait::until_true("the pause waits", SOON, || stage.paused()).unwrap();
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    client.run("COMMIT").unwrap();
    wait::until_true("it is taken back", SOON, || !stage.paused()).unwrap();
    client.run("SELECT 1").unwrap();
    // One that died after the swap and before the resume.
    let before = stage.store.get().await.unwrap();
    stage.store.pause(LIMIT).await.unwrap();
    let target = stage.value(&stage.target);
    let Swapped::Applied(version) = stage.store.compare_and_swap(&before.version, &target).await.unwrap() else {
        panic!()
    };
    let error = stage.store.get().await.unwrap_err();
    assert!(matches!(error, Error::NotLoaded { .. }), "clients are not there yet: {error}");
    let successor = stage.store.clone();
    assert_eq!(successor.read_back(&before.version, &target).await.unwrap(), Swapped::Applied(version.clone()));
    successor.resume().await.unwrap();
    assert_eq!(stage.lands_at(), stage.target.port());
    // A PgBouncer that died while it was paused comes back as the file says, and not paused.
    stage.store.pause(LIMIT).await.unwrap();
    stage.bouncer.kill();
    let error = stage.store.resume().await.unwrap_err();
    assert!(matches!(error, Error::StillPaused { .. }), "{error:?}");
    assert!(!service::report(&error, error.hint()).contains(PASSWORD));
    stage.bouncer.start_again().unwrap();
    stage.store.resume().await.unwrap();
    assert_eq!(stage.store.get().await.unwrap().version, version);
    assert_eq!(stage.lands_at(), stage.target.port());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_else_did_to_the_file_is_told_and_left_alone() {
    let stage = Stage::new("pool_mode = transaction", Held::Resume);
    let target = stage.value(&stage.target);
    let before = stage.store.get().await.unwrap();
    stage.store.pause(LIMIT).await.unwrap();
    // Another entry of the file is no matter, this one is.
    stage.edit("; kept", "; kept still");
    stage.edit("pool_size=4", "pool_size=5");
    let edited = stage.ini();
    let swapped = stage.store.compare_and_swap(&before.version, &target).await.unwrap();
    let Swapped::NotApplied { found: Some(found) } = swapped else { panic!("{swapped:?}") };
    assert_eq!(stage.ini(), edited);
    let swapped = stage.store.compare_and_swap(&found.version, &target).await.unwrap();
    assert!(matches!(swapped, Swapped::Applied(_)), "{swapped:?}");
    assert_eq!(
        stage.store.compare_and_swap(&Version("x".into()), &target).await.unwrap(),
        Swapped::NotApplied {
            found: Some(control::store::Versioned {
                value: Value::new("", format!("postgresql://127.0.0.1:{}/shop", stage.target.port())).unwrap(),
                version: match swapped {
                    Swapped::Applied(version) => version,
                    _ => unreachable!(),
                },
            })
        }
    );
    stage.store.resume().await.unwrap();
    assert!(stage.ini().contains("; kept still") && stage.ini().contains("pool_size=5"));
    // A file that PgBouncer does not take: RELOAD says RELOAD, clients stay where they are and do not wait.
    let before = stage.store.get().await.unwrap();
    stage.edit("; kept still", "broken = nonsense");
    stage.store.pause(LIMIT).await.unwrap();
    let swapped = stage.store.compare_and_swap(&before.version, &stage.value(&stage.source)).await.unwrap();
    assert!(matches!(swapped, Swapped::Applied(_)), "{swapped:?}");
    let error = stage.store.resume().await.unwrap_err();
    assert!(matches!(error, Error::NotLoaded { .. }), "{error:?}");
    assert!(!stage.paused());
    assert_eq!(stage.lands_at(), stage.target.port());
    // And when it is mended, the same call loads it.
    stage.edit("broken = nonsense", "; kept again");
    stage.store.resume().await.unwrap();
    assert_eq!(stage.lands_at(), stage.source.port());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pgbouncer_that_stands_still_in_the_pause_is_told_and_is_not_paused_when_it_goes_on() {
    let stage = Stage::new("pool_mode = transaction", Held::Resume);
    let client = Session::connect(&stage.bouncer.url("shop")).unwrap();
    client.run("BEGIN").unwrap();
    let store = stage.store.clone();
    let pause = tokio::spawn(async move { store.pause(LIMIT).await });
    wait::until_true("the pause waits", SOON, || stage.paused()).unwrap();
    stage.bouncer.pause_process().unwrap();
    let error = pause.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::StillPaused { .. }), "{error:?}");
    assert_eq!(error.hint().unwrap(), "on PgBouncer's console: RESUME \"shop\"");
    // The RESUME is in its socket, behind the PAUSE.
    stage.bouncer.resume_process();
    wait::until_true("it goes on", SOON, || !stage.paused()).unwrap();
    client.run("COMMIT").unwrap();
    assert_eq!(stage.lands_at(), stage.source.port());
    stage.store.resume().await.unwrap();
}
