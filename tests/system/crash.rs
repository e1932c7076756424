//! The crash matrix: {backfill, stream} x {producer, consumer, validator, Kafka, source, target dies}.
//!
//! One writer runs random transactions over several tables and writes down, inside each transaction, its number and a
//! digest of all that it sees. Whatever dies and whenever, every snapshot of the target must be one of these states, their
//! numbers must never fall, and at the end the two databases are equal. Several more writers move money between
//! accounts, so that commits interleave; the sum over all tables never changes.
//!
//! `DFLUX_SEED` replays a schedule; it is printed first.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tests::kafka::{self, Broker};
use tests::postgres::{Options, Server};
use tests::process::Life;
use tests::registry::Registry;
use tests::services::Service;
use tests::sql::Session;
use tests::stack::{Addresses, Migration, shared, unique};
use tests::{Failure, Result, wait};

const SETTLED_WITHIN: Duration = Duration::from_secs(120);
const ACCOUNTS: i64 = 2_000;

const SCHEMA: &str = "
    CREATE TABLE clock (id int PRIMARY KEY, n bigint NOT NULL);
    INSERT INTO clock VALUES (1, 0);
    CREATE TABLE orders (id bigint PRIMARY KEY, customer text, total numeric(12,2), note text);
    CREATE TABLE lines (order_id bigint, line int, item text, PRIMARY KEY (order_id, line));
    CREATE TABLE audit (at_n bigint, what text);
    CREATE TABLE wallet_a (id bigint PRIMARY KEY, balance bigint NOT NULL);
    CREATE TABLE wallet_b (id bigint PRIMARY KEY, balance bigint NOT NULL);
    CREATE TABLE filler (id bigint PRIMARY KEY, body text);
    INSERT INTO filler SELECT i, md5(i::text) FROM generate_series(1, 150000) i;";

/// What the recorded writer's tables hold, as one value.
const DIGEST: &str = "SELECT md5(
    coalesce((SELECT string_agg(o::text, ',' ORDER BY id) FROM orders o), '') || '|' ||
    coalesce((SELECT string_agg(l::text, ',' ORDER BY order_id, line) FROM lines l), '') || '|' ||
    coalesce((SELECT string_agg(a::text, ',' ORDER BY a::text) FROM audit a), ''))";

const MONEY: &str = "SELECT (SELECT sum(balance) FROM wallet_a) + (SELECT sum(balance) FROM wallet_b)";

fn seed() -> u64 {
    let seed = std::env::var("DFLUX_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    eprintln!("DFLUX_SEED={seed}");
    seed
}

/// The states that the source has had, by the number of the transaction that made them.
type States = Arc<Mutex<BTreeMap<i64, String>>>;

/// The application: writers that run until they are stopped, and survive a restart of their server.
struct Application {
    stop: Arc<AtomicBool>,
    writers: Vec<std::thread::JoinHandle<Result<()>>>,
    states: States,
}

impl Application {
    fn start(url: &str, seed: u64) -> Result<Application> {
        let session = Session::connect(url)?;
        session.run(SCHEMA)?;
        session.run(&format!(
            "INSERT INTO wallet_a SELECT i, 1000 FROM generate_series(1, {ACCOUNTS}) i;
             INSERT INTO wallet_b SELECT i, 1000 FROM generate_series(1, {ACCOUNTS}) i;"
        ))?;
        let states: States = Arc::default();
        states.lock().expect("no holder panics").insert(0, session.value(DIGEST)?);
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = Vec::new();
        let (recorded, flag, address) = (states.clone(), stop.clone(), url.to_owned());
        writers.push(std::thread::spawn(move || {
            let mut random = StdRng::seed_from_u64(seed);
            let mut number = 0;
            again_and_again(&flag, &address, |session| {
                number = session.number("SELECT n FROM clock")? + 1;
                record_transaction(session, &mut random, number, &recorded)
            })
        }));
        for writer in 1..3 {
            let (flag, address) = (stop.clone(), url.to_owned());
            writers.push(std::thread::spawn(move || {
                let mut random = StdRng::seed_from_u64(seed.wrapping_add(writer));
                again_and_again(&flag, &address, |session| {
                    let (from, to) = (random.random_range(1..=ACCOUNTS), random.random_range(1..=ACCOUNTS));
                    session.run(&format!(
                        "BEGIN; UPDATE wallet_a SET balance = balance - 1 WHERE id = {from};
                         UPDATE wallet_b SET balance = balance + 1 WHERE id = {to}; COMMIT"
                    ))
                })
            }));
        }
        Ok(Application { stop, writers, states })
    }

    fn stop(self) -> Result<States> {
        self.stop.store(true, Ordering::Release);
        for writer in self.writers {
            writer.join().map_err(|_| Failure::Other("a writer panicked".to_owned()))??;
        }
        Ok(self.states)
    }
}

/// Runs `work` until stopped; a lost connection is made anew, as an application does.
fn again_and_again(stop: &AtomicBool, url: &str, mut work: impl FnMut(&Session) -> Result<()>) -> Result<()> {
    while !stop.load(Ordering::Acquire) {
        let Ok(session) = Session::connect(url) else {
            wait::pace(Duration::from_millis(50));
            continue;
        };
        while !stop.load(Ordering::Acquire) {
            if let Err(failure) = work(&session) {
                if session.run("SELECT 1").is_ok() {
                    // The server is there, so this is a write that failed: the migration must never cause one.
                    return Err(failure);
                }
                break;
            }
            wait::pace(Duration::from_millis(2));
        }
    }
    Ok(())
}

/// One random transaction: orders made, changed, deleted, renumbered, with their lines and an audit row without a key.
fn record_transaction(session: &Session, random: &mut StdRng, number: i64, states: &States) -> Result<()> {
    let mut work = format!("BEGIN; UPDATE clock SET n = {number} WHERE id = 1;");
    for _step in 0..random.random_range(1..6) {
        let id = random.random_range(1..120);
        work.push_str(&match random.random_range(0..7) {
            0..=2 => format!(
                "INSERT INTO orders VALUES ({id}, 'c{number}', {number}.5, repeat('x', {}))
                   ON CONFLICT (id) DO UPDATE SET total = orders.total + 1;
                 INSERT INTO lines VALUES ({id}, {}, 'i{number}') ON CONFLICT DO NOTHING;",
                random.random_range(0..40),
                random.random_range(1..4)
            ),
            3 => format!("DELETE FROM lines WHERE order_id = {id}; DELETE FROM orders WHERE id = {id};"),
            4 => format!(
                "UPDATE orders SET id = id + 1000 WHERE id = {id} AND NOT EXISTS (SELECT FROM orders WHERE id = {id} + 1000);
                 DELETE FROM orders WHERE id = {id} + 1000 AND {number} % 3 = 0;"
            ),
            5 => format!("INSERT INTO audit VALUES ({number} / 10, 'same'), ({number} / 10, 'same');"),
            _ => format!("DELETE FROM audit WHERE ctid IN (SELECT min(ctid) FROM audit GROUP BY at_n HAVING at_n % 7 = {});", id % 7),
        });
    }
    session.run(&work)?;
    let digest = session.value(DIGEST)?;
    // Written down before the commit: a state may be seen on the target as soon as it is committed. If the commit fails
    // (the server goes away) the number is used again, and the entry with it.
    states.lock().expect("no holder panics").insert(number, digest);
    session.run("COMMIT")
}

/// Looks at the target again and again; every snapshot must be a state that the source has had.
struct Observer {
    stop: Arc<AtomicBool>,
    looking: std::thread::JoinHandle<Result<u64>>,
}

impl Observer {
    fn start(url: &str, states: States) -> Observer {
        let (stop, url) = (Arc::new(AtomicBool::new(false)), url.to_owned());
        let flag = stop.clone();
        let looking = std::thread::spawn(move || {
            let mut looks = 0;
            while !flag.load(Ordering::Acquire) {
                let Ok(session) = Session::connect(&url) else {
                    wait::pace(Duration::from_millis(100));
                    continue;
                };
                // A crash of the target takes back its last commits (`synchronous_commit = off`), progress and rows alike.
                let mut newest = -1;
                while !flag.load(Ordering::Acquire) {
                    let Ok(rows) = session.rows(&format!(
                        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT phase FROM dflux.lane;
                         SELECT n FROM clock; {DIGEST}; {MONEY}; COMMIT"
                    )) else {
                        break;
                    };
                    let values: Vec<String> =
                        rows.into_iter().map(|mut row| row.remove(0).unwrap_or_default()).collect();
                    let [phase, number, digest, money] = values.as_slice() else { continue };
                    if phase != "exact" {
                        continue;
                    }
                    let number: i64 = number.parse().unwrap_or(-2);
                    let expected = states.lock().expect("no holder panics").get(&number).cloned();
                    if expected.as_ref() != Some(digest) || *money != (ACCOUNTS * 2_000).to_string() || number < newest
                    {
                        return Err(Failure::Other(format!(
                            "the target shows no state of the source: transaction {number} after {newest}, digest {digest} \
                             instead of {expected:?}, money {money}"
                        )));
                    }
                    newest = number;
                    looks += 1;
                    wait::pace(Duration::from_millis(20));
                }
            }
            Ok(looks)
        });
        Observer { stop, looking }
    }

    fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Release);
        self.looking.join().map_err(|_| Failure::Other("the observer panicked".to_owned()))?
    }
}

fn phase(migration: &Migration) -> String {
    migration.target().and_then(|target| target.value("SELECT phase FROM dflux.lane")).unwrap_or_default()
}

fn start_services(migration: &Migration) -> Result<BTreeMap<&'static str, Service>> {
    let said = tests::services::run("dflux", &migration.config(), ["prepare"])?;
    said.expect_code(0)?;
    let mut services = BTreeMap::new();
    for program in ["producer", "consumer", "validator"] {
        services.insert(program, migration.service(program).start()?);
    }
    Ok(services)
}

fn settled_and_equal(migration: &Migration) -> Result<()> {
    equal(migration, &["clock", "orders", "lines", "audit", "wallet_a", "wallet_b", "filler"])
}

/// Everything written is applied, and these tables are equal on both sides.
fn equal(migration: &Migration, tables: &[&str]) -> Result<()> {
    let source = migration.source()?;
    let end = source.value("SELECT pg_current_wal_insert_lsn()")?;
    let applied = format!("SELECT (commit_lsn >= '{end}')::text FROM dflux.lane WHERE phase = 'exact'");
    wait::until_true("everything is applied", SETTLED_WITHIN, || {
        migration.target().and_then(|target| target.value(&applied)).is_ok_and(|value| value == "true")
    })?;
    let target = migration.target()?;
    for table in tables {
        let query = format!(
            "SELECT count(*) || ' ' || coalesce(md5(string_agg(t::text, ',' ORDER BY t::text COLLATE \"C\")), '') FROM {table} t"
        );
        let (ours, theirs) = (source.value(&query)?, target.value(&query)?);
        assert_eq!(ours, theirs, "{table} differs");
    }
    assert_eq!(target.number("SELECT diverged FROM dflux.lane")?, 0);
    Ok(())
}

/// A chunk that is in the ledger was read once: its record was never written again.
fn no_finished_chunk_was_read_again(migration: &Migration, broker: &Broker) -> Result<()> {
    let mut seen = BTreeMap::new();
    for record in broker.records(&format!("{}.forward-ledger", migration.name))? {
        let key = String::from_utf8_lossy(&record.key.unwrap_or_default()).into_owned();
        if key.starts_with("chunk/") {
            *seen.entry(key).or_insert(0) += 1;
        }
    }
    assert!(seen.len() > 10, "too few chunks to say anything: {}", seen.len());
    let again: Vec<_> = seen.iter().filter(|(_, times)| **times > 1).collect();
    assert!(again.is_empty(), "read again although finished: {again:?}");
    Ok(())
}

fn small_chunks(migration: &Migration) -> Result<()> {
    migration.configure(&[("producer", "chunk_rows", 5_000.into()), ("producer", "backfill_workers", 2.into())])
}

#[test]
fn killing_any_service_at_any_moment_loses_nothing_and_doubles_nothing() {
    let migration = Migration::shared("kills").unwrap();
    small_chunks(&migration).unwrap();
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let application = Application::start(&migration.addresses.source, seed).unwrap();
    let mut services = start_services(&migration).unwrap();
    let observer = Observer::start(&migration.addresses.target, application.states.clone());

    // Kills fall into the backfill first, then into the stream.
    let mut kills_in_stream = 0;
    let began = Instant::now();
    while kills_in_stream < 12 && began.elapsed() < Duration::from_secs(150) {
        wait::pace(Duration::from_millis(random.random_range(100..1_500)));
        if phase(&migration) == "exact" {
            kills_in_stream += 1;
        }
        let victim = ["producer", "consumer", "producer", "consumer", "validator"][random.random_range(0..5)];
        let service = services.remove(victim).expect("all three are there between kills");
        services.insert(victim, service.start_again().unwrap());
    }
    let looks = {
        wait::until_true("the lane is exact", SETTLED_WITHIN, || phase(&migration) == "exact").unwrap();
        wait::pace(Duration::from_secs(2));
        let states = application.stop().unwrap();
        assert!(states.lock().unwrap().len() > 100, "the application hardly wrote");
        settled_and_equal(&migration).unwrap();
        observer.stop().unwrap()
    };
    assert!(looks > 10, "the target was hardly looked at: {looks}");
    no_finished_chunk_was_read_again(&migration, &shared().unwrap().broker).unwrap();
}

#[test]
fn restarting_kafka_or_either_database_needs_nobody() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let source = Server::start(Options::new("source")).unwrap();
    let target = Server::start(Options::new("target")).unwrap();
    let broker = Broker::start(kafka::Options::default()).unwrap();
    let registry = Registry::start(None, Life::Bound).unwrap();
    let name = unique("restarts");
    source.database(&name).unwrap();
    target.database(&name).unwrap();
    let addresses = Addresses {
        source: source.url(&name),
        target: target.url(&name),
        brokers: broker.bootstrap(),
        registry: registry.url(),
    };
    let migration = Migration::between(&name, addresses).unwrap();
    small_chunks(&migration).unwrap();
    let application = Application::start(&migration.addresses.source, seed).unwrap();
    let services = start_services(&migration).unwrap();
    let observer = Observer::start(&migration.addresses.target, application.states.clone());

    // Before its first session a producer that nobody answers ends: the URL may be wrong.
    let streaming = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'dflux_{name}' AND active");
    let session = migration.source().unwrap();
    wait::until_true("the slot streams", SETTLED_WITHIN, || session.number(&streaming).is_ok_and(|n| n == 1)).unwrap();
    let mut victims = vec!["kafka", "source", "target"];
    for round in 0..6 {
        if round == 3 {
            wait::until_true("the lane is exact", SETTLED_WITHIN, || phase(&migration) == "exact").unwrap();
            victims = vec!["kafka", "source", "target"];
        }
        wait::pace(Duration::from_millis(random.random_range(300..2_000)));
        match victims.swap_remove(random.random_range(0..victims.len())) {
            "kafka" => {
                broker.kill();
                broker.start_again().unwrap();
            }
            "source" => {
                source.crash().unwrap();
                source.start_again().unwrap();
            }
            _ => {
                target.crash().unwrap();
                target.start_again().unwrap();
            }
        }
    }
    wait::until_true("the lane is exact", SETTLED_WITHIN, || phase(&migration) == "exact").unwrap();
    wait::pace(Duration::from_secs(2));
    application.stop().unwrap();
    settled_and_equal(&migration).unwrap();
    observer.stop().unwrap();
    for (name, service) in &services {
        service.process().still_running().unwrap_or_else(|failure| panic!("{name}: {failure}"));
    }
}

/// A key that moves from a range not yet read to one already read is in no chunk; its row has a TOAST value that the update
/// does not send. Each kill of the producer makes a new snapshot for what is left, so the moves fall between two.
#[test]
fn a_key_moved_across_chunk_ranges_between_two_snapshots_keeps_its_toast_value() {
    let migration = Migration::shared("moves").unwrap();
    migration.configure(&[("producer", "chunk_rows", 300.into()), ("producer", "backfill_workers", 1.into())]).unwrap();
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let source = migration.source().unwrap();
    source
        .run(
            "CREATE TABLE moving (id bigint PRIMARY KEY, n int NOT NULL, body text);
             ALTER TABLE moving ALTER COLUMN body SET STORAGE EXTERNAL;
             INSERT INTO moving SELECT i, 0, repeat(md5(i::text), 100) FROM generate_series(1, 30000) i;
             ANALYZE moving;",
        )
        .unwrap();
    tests::services::run("dflux", &migration.config(), ["prepare"]).unwrap().expect_code(0).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (flag, url) = (stop.clone(), migration.addresses.source.clone());
    let moving = std::thread::spawn(move || {
        let mut random = StdRng::seed_from_u64(seed);
        again_and_again(&flag, &url, |session| {
            let id = random.random_range(1..=30_000);
            session.run(&format!(
                "UPDATE moving SET id = CASE WHEN id > 100000 THEN id - 100000 ELSE id + 100000 END, n = n + 1
                   WHERE id IN ({id}, {id} + 100000)"
            ))
        })
    });
    let mut producer = migration.service("producer").start().unwrap();
    let consumer = migration.service("consumer").start().unwrap();
    for _kill in 0..4 {
        // By the producer's own count: what the target shows comes later than the end of a fast backfill.
        let copied = || match producer.metric("dflux_producer_backfill_chunks_total") {
            Ok(Some(chunks)) if chunks >= 5.0 => Ok(()),
            other => Err(format!("{other:?}")),
        };
        wait::closely("some chunks are copied", SETTLED_WITHIN, copied).unwrap();
        wait::pace(Duration::from_millis(random.random_range(0..50)));
        producer = producer.start_again().unwrap();
    }
    wait::until_true("the lane is exact", SETTLED_WITHIN, || phase(&migration) == "exact").unwrap();
    stop.store(true, Ordering::Release);
    moving.join().unwrap().unwrap();
    let snapshots = migration.target().unwrap().number("SELECT count(DISTINCT snapshot_lsn) FROM dflux.chunk").unwrap();
    assert!(snapshots > 2, "all chunks were read under {snapshots} snapshots: nothing was tried");
    equal(&migration, &["moving"]).unwrap();
    drop((producer, consumer));
}
