//! One set of topics, read more than once: a second target beside the first, built from the topics alone; a table replayed from them
//! while the rest flows. A kill in the middle changes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tests::services::{Said, Service, run};
use tests::sql::Session;
use tests::stack::{self, Addresses, Migration};
use tests::wait;

const LIMIT: Duration = Duration::from_secs(180);
/// Nobody answers there.
const NOWHERE: &str = "postgresql://nobody@127.0.0.1:1/none";

const SCHEMA: &str = "
    CREATE TABLE orders (id bigint PRIMARY KEY, v text, big text);
    ALTER TABLE orders ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE lines (order_id bigint, line int, v text, PRIMARY KEY (order_id, line));
    CREATE TABLE audit (n bigint, what text);
    INSERT INTO orders SELECT n, 'v' || n, CASE WHEN n % 1000 = 0 THEN repeat(md5(n::text), 500) END FROM generate_series(1, 60000) n;
    INSERT INTO lines SELECT n, n % 3, 'l' || n FROM generate_series(1, 20000) n;
    INSERT INTO audit SELECT n % 100, 'a' || n % 10 FROM generate_series(1, 1000) n;";

/// One transaction of the application, its number for `#`.
const WORK: &str = "BEGIN;
    INSERT INTO orders VALUES (1000000 + #, 'new', repeat('x', 3000));
    UPDATE orders SET v = v || 'u' WHERE id IN (1000000 + # / 2, # % 60000, (# % 60) * 1000);
    UPDATE orders SET id = 3000000 + # WHERE id = 1000000 + # / 3;
    DELETE FROM orders WHERE id = 60000 - #;
    INSERT INTO lines VALUES (1000000 + #, 1, 'new'); DELETE FROM lines WHERE order_id = #;
    INSERT INTO audit VALUES (#, 'done'), (#, 'done'); UPDATE audit SET what = 'seen' WHERE n = # - 1;
    COMMIT";

/// What each table holds, for any of the databases.
const DIGEST: &str = "SELECT
    (SELECT count(*) || ' ' || sum(hashtextextended(t::text, 0)) FROM orders t) || ', ' ||
    (SELECT count(*) || ' ' || sum(hashtextextended(t::text, 0)) FROM lines t) || ', ' ||
    (SELECT count(*) || ' ' || sum(hashtextextended(t::text, 0)) FROM audit t)";

/// The application, writing until it is stopped.
struct Application {
    stop: Arc<AtomicBool>,
    writer: Option<std::thread::JoinHandle<()>>,
}

impl Application {
    fn start(migration: &Migration) -> Application {
        let (session, stop) = (migration.source().unwrap(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let writer = std::thread::spawn(move || {
            for number in 1.. {
                session.run(&WORK.replace('#', &number.to_string())).unwrap();
                wait::pace(Duration::from_millis(10));
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        Application { stop, writer: Some(writer) }
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(writer) = self.writer.take() {
            writer.join().unwrap();
        }
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn dflux<const N: usize>(migration: &Migration, arguments: [&str; N]) -> Said {
    run("dflux", &migration.config(), arguments).unwrap()
}

/// A migration that has come to `streaming`, with its services and an application that writes.
fn streaming(label: &str) -> (Migration, Service, Service, Application) {
    let migration = Migration::shared(label).unwrap();
    migration.source().unwrap().run(SCHEMA).unwrap();
    migration.configure(&[("producer", "chunk_rows", 2000.into())]).unwrap();
    dflux(&migration, ["prepare"]).expect_code(0).unwrap();
    let producer = migration.service("producer").start().unwrap();
    let consumer = migration.service("consumer").environment("DFLUX__SOURCE__URL", NOWHERE).start().unwrap();
    let application = Application::start(&migration);
    exact(&migration.target().unwrap(), &consumer);
    (migration, producer, consumer, application)
}

fn exact(target: &Session, consumer: &Service) {
    holds(target, consumer, "the lane is exact", "SELECT count(*) > 0 FROM dflux.lane WHERE phase = 'exact'");
}

/// Waits until a question to the target is answered with true.
fn holds(target: &Session, consumer: &Service, what: &str, question: &str) {
    let lane = "SELECT string_agg(l::text || coalesce((SELECT string_agg(s::text, ' ') FROM dflux.table_state s), ''), '') FROM dflux.lane l";
    wait::until(what, LIMIT, || match target.value(question) {
        Ok(answer) if answer == "t" => Ok(()),
        answer => Err(format!("{answer:?} {:?}", target.value(lane))),
    })
    .unwrap_or_else(|failure| panic!("{failure}\n{}", consumer.log()));
}

fn equal(source: &Session, target: &Session, consumer: &Service) {
    let wanted = source.value(DIGEST).unwrap();
    wait::until("the target is as the source", LIMIT, || match target.value(DIGEST) {
        Ok(found) if found == wanted => Ok(()),
        found => Err(format!("{found:?} and not {wanted}")),
    })
    .unwrap_or_else(|failure| panic!("{failure}\n{}", consumer.log()));
    assert_eq!(target.value("SELECT diverged || phase FROM dflux.lane").unwrap(), "0exact");
}

#[test]
fn a_second_target_is_built_from_the_topics_and_follows_beside_the_first() {
    let (first, producer, consumer, mut application) = streaming("fanout");
    let (source, target) = (first.source().unwrap(), first.target().unwrap());
    // Two tables have been copied twice; the second target is to take each once.
    for table in ["orders", "audit"] {
        dflux(&first, ["resync", table, "--wait"]).expect_code(0).unwrap();
    }
    // One that joined and is gone again is still in the topics.
    source.run("CREATE TABLE passing (id int PRIMARY KEY); INSERT INTO passing VALUES (1)").unwrap();
    let joined = "SELECT count(*) = 1 FROM dflux.table_state WHERE table_name = 'passing' AND state = 'live'";
    holds(&target, &producer, "it joins", joined);
    source.run("DROP TABLE passing").unwrap();
    let servers = stack::shared().unwrap();
    let name = stack::unique("fanoutsecond");
    servers.target.database(&name).unwrap();
    let addresses = Addresses { target: servers.target.url(&name), ..first.addresses.clone() };
    let second = Migration::between(&first.name, addresses).unwrap();
    // Taken for the migration's own target, it would stand in the first one's way.
    let said = dflux(&second, ["prepare"]).expect_code(2).unwrap();
    assert!(said.stdout.contains("follows = true"), "{said:?}");
    second.configure(&[("target", "follows", true.into())]).unwrap();
    dflux(&second, ["prepare"]).expect_code(0).unwrap();
    let said = run("producer", &second.config(), [] as [&str; 0]).unwrap().expect_code(1).unwrap();
    assert!(said.stderr.contains("follows"), "{said:?}");

    let copy = second.target().unwrap();
    // Not a row is read from the source: this consumer does not reach it.
    let start = second.service("consumer").name("second").environment("DFLUX__SOURCE__URL", NOWHERE);
    let mut follower = start.start().unwrap();
    for moment in [
        "SELECT to_regclass('dflux.chunk') IS NOT NULL",
        "SELECT count(*) >= 3 FROM dflux.chunk",
        "SELECT count(*) >= 12 FROM dflux.chunk",
        "SELECT count(*) > 0 FROM dflux.lane WHERE transactions_applied > 0",
    ] {
        holds(&copy, &follower, moment, moment);
        follower.kill();
        follower = follower.start_again().unwrap();
    }
    exact(&copy, &follower);
    assert_eq!(
        copy.column("SELECT DISTINCT table_name || generation FROM dflux.chunk ORDER BY 1").unwrap(),
        ["audit2", "lines0", "orders1", "passing3"]
    );
    // What is asked of the source from now on reaches both.
    dflux(&second, ["resync", "lines", "--wait"]).expect_code(0).unwrap();
    holds(
        &target,
        &consumer,
        "lines is read again",
        "SELECT state = 'live' FROM dflux.table_state WHERE table_name = 'lines'",
    );
    application.stop();
    equal(&source, &target, &consumer);
    equal(&source, &copy, &follower);
    dflux(&second, ["prepare"]).expect_code(0).unwrap();
    run("validator", &second.config(), ["check"]).unwrap().expect_code(0).unwrap();

    // The second one goes, and the first does not notice.
    assert_eq!(follower.terminate().unwrap(), Some(0));
    let said = dflux(&second, ["cleanup", "--yes"]).expect_code(0).unwrap();
    assert!(!said.stdout.contains("source:") && !said.stdout.contains("Kafka:"), "{said:?}");
    assert_eq!(copy.number("SELECT count(*) FROM pg_namespace WHERE nspname = 'dflux'").unwrap(), 0);
    source.run("INSERT INTO orders VALUES (-1, 'after', 'all')").unwrap();
    equal(&source, &target, &consumer);
    producer.wait_healthy(LIMIT).unwrap();
}

#[test]
fn a_table_is_replayed_from_the_topics_while_the_rest_flows_and_a_kill_changes_nothing() {
    let (migration, _producer, mut consumer, mut application) = streaming("replay");
    let (source, target) = (migration.source().unwrap(), migration.target().unwrap());
    // Rows that the application does not come to meanwhile, so that the lane meets nothing that it must tell.
    let spoilt =
        "UPDATE orders SET v = 'spoilt' WHERE id BETWEEN 20001 AND 20999; DELETE FROM orders WHERE id BETWEEN 30001 AND
        30999; INSERT INTO orders VALUES (-7, 'foreign'); INSERT INTO audit VALUES (-7, 'foreign')";
    target.run(spoilt).unwrap();
    let ledger = format!("{}.forward-ledger", migration.name);
    let broker = &stack::shared().unwrap().broker;
    let before = broker.records(&ledger).unwrap().len();
    dflux(&migration, ["resync", "nothing", "--replay"]).expect_code(2).unwrap();
    dflux(&migration, ["resync", "public.orders", "--replay"]).expect_code(0).unwrap();
    let said = dflux(&migration, ["resync", "orders", "--replay"]).expect_code(2).unwrap();
    assert!(said.stderr.contains("already"), "{said:?}");
    let flows = "SELECT commit_lsn::text FROM dflux.lane";
    for moment in [
        "SELECT state = 'resyncing' FROM dflux.table_state",
        "SELECT count(*) >= 1 FROM dflux.chunk WHERE table_name = 'orders'",
        "SELECT state <> 'resyncing' FROM dflux.table_state",
    ] {
        holds(&target, &consumer, moment, moment);
        consumer.kill();
        consumer = consumer.start_again().unwrap();
        let at = target.value(flows).unwrap();
        holds(&target, &consumer, "the rest flows", &format!("SELECT commit_lsn > '{at}' FROM dflux.lane"));
    }
    dflux(&migration, ["resync", "audit", "--replay", "--wait"]).expect_code(0).unwrap();
    let live = "SELECT count(*) = 2 FROM dflux.table_state WHERE state = 'live' AND generation = 0";
    holds(&target, &consumer, "both are live again", live);
    application.stop();
    equal(&source, &target, &consumer);
    source.run("INSERT INTO orders VALUES (-1, 'after', 'all'); INSERT INTO audit VALUES (-1, 'after')").unwrap();
    equal(&source, &target, &consumer);
    assert_eq!(broker.records(&ledger).unwrap().len(), before, "nothing was asked of the source");
}
