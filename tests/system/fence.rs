//! The fence in a database: who passes, who does not, and that behind the barrier nothing is written any more.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use changelog::TableName;
use control::cutover::event::{Epoch, Mode};
use control::cutover::fence::{Barrier, Fence, Standing};
use control::{Database, Error};
use tests::postgres::{Options, Server};
use tests::sql::Session;
use tests::stack::{shared, unique};
use tests::wait;

const SCHEMA: &str = "CREATE TABLE plain (id int PRIMARY KEY, v int); INSERT INTO plain SELECT i, 0 FROM generate_series(1, 100) i;
     CREATE TABLE child (id int REFERENCES plain ON DELETE CASCADE); INSERT INTO child VALUES (1);
     CREATE TABLE parted (id int PRIMARY KEY, v int) PARTITION BY RANGE (id); CREATE TABLE leaf PARTITION OF parted DEFAULT;
     CREATE TABLE free (id int)";
const TABLES: [&str; 3] = ["plain", "child", "parted"];

fn tables() -> Vec<TableName> {
    TABLES.iter().map(|name| TableName::new("public", *name)).collect()
}

/// A database with a fence that is open, and what is asked of it.
struct Fenced {
    runtime: tokio::runtime::Runtime,
    database: Database,
    migration: String,
    url: String,
    session: Session,
}

impl Fenced {
    fn new(server: &Server, label: &str) -> Fenced {
        let name = unique(label);
        server.database(&name).unwrap();
        let url = server.url(&name);
        let session = Session::connect(&url).unwrap();
        session.run(SCHEMA).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let database = runtime.block_on(Database::connect("source", &url)).unwrap();
        let fenced = Fenced { runtime, database, migration: format!("it's {name}"), url, session };
        fenced.runtime.block_on(fenced.fence().install(&tables(), Mode::Open)).unwrap();
        fenced
    }

    fn fence(&self) -> Fence<'_> {
        Fence::new(&self.database, &self.migration)
    }

    fn set(&self, epoch: u64, mode: Mode) -> Result<(), Error> {
        self.runtime.block_on(self.fence().set(Epoch(epoch), mode))
    }

    fn barrier(&self, within: Duration) -> Barrier {
        self.runtime.block_on(self.fence().barrier(within)).unwrap()
    }

    fn connect(&self) -> Session {
        Session::connect(&self.url).unwrap()
    }
}

fn refused(session: &Session, sql: &str) {
    let failure = session.run(sql).expect_err(sql).to_string();
    assert!(failure.contains("takes no writes"), "{sql}: {failure}");
    session.run("ROLLBACK").unwrap();
}

const NOW: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(30);

const WRITES: [&str; 9] = [
    "INSERT INTO plain VALUES (1000, 1)",
    "UPDATE plain SET v = 1 WHERE false",
    "DELETE FROM plain WHERE id = 1",
    "TRUNCATE plain CASCADE",
    "INSERT INTO leaf VALUES (1, 1)",
    "INSERT INTO parted VALUES (1, 1)",
    "WITH w AS (UPDATE parted SET v = 2 RETURNING 1) SELECT * FROM w",
    "SET session_replication_role = replica; INSERT INTO plain VALUES (1000, 1)",
    "MERGE INTO plain p USING (VALUES (1)) x (id) ON x.id = p.id WHEN MATCHED THEN UPDATE SET v = 9",
];

#[test]
fn a_closed_fence_lets_nobody_write_but_the_lanes() {
    let fenced = Fenced::new(&shared().unwrap().source, "fenced");
    let role = fenced.session.value("SELECT current_database()").unwrap();
    fenced
        .session
        .run(&format!("CREATE ROLE {role} LOGIN PASSWORD 'dflux'; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}"))
        .unwrap();
    let plain = Session::connect(&fenced.url.replacen("//postgres:", &format!("//{role}:"), 1)).unwrap();
    for sql in WRITES {
        let user = if sql.contains("replica") { &fenced.session } else { &plain };
        user.run(&format!("BEGIN; {sql}")).unwrap();
        user.run("ROLLBACK").unwrap();
    }
    fenced.set(1, Mode::Closed).unwrap();
    for sql in WRITES {
        refused(&fenced.connect(), sql);
        if !sql.contains("replica") {
            refused(&plain, sql);
        }
    }
    // What is not the migration's, and what only reads, goes on.
    plain.run("SELECT * FROM plain FOR UPDATE; CREATE TEMP TABLE z (a int); INSERT INTO z VALUES (1); INSERT INTO free VALUES (1)").unwrap();
    let lane = fenced.connect();
    lane.run(&format!(
        "SET dflux.applier = '{}'; SET session_replication_role = replica",
        fenced.migration.replace('\'', "''")
    ))
    .unwrap();
    lane.run("INSERT INTO plain VALUES (2000, 1); UPDATE leaf SET v = 1").unwrap();
    assert_eq!(
        fenced.runtime.block_on(fenced.fence().standing()).unwrap(),
        Some(Standing { epoch: Epoch(1), mode: Mode::Closed })
    );
    // A later controller opens it, and the one before can do nothing any more.
    fenced.set(3, Mode::Open).unwrap();
    plain.run("INSERT INTO plain VALUES (3000, 1)").unwrap();
    assert!(matches!(fenced.set(2, Mode::Closed), Err(Error::StaleEpoch { .. })));
    assert!(matches!(fenced.set(3, Mode::Sealed), Err(Error::StaleEpoch { .. })), "one that is open is not sealed");
    plain.run("INSERT INTO plain VALUES (3001, 1)").unwrap();
    // A partition that came later has none yet.
    fenced.session.run("CREATE TABLE later PARTITION OF parted FOR VALUES FROM (50) TO (60)").unwrap();
    let lacking = fenced.runtime.block_on(fenced.fence().lacking(&tables())).unwrap();
    assert_eq!(lacking, [TableName::new("public", "later")]);
    fenced.runtime.block_on(fenced.fence().remove()).unwrap();
    assert_eq!(fenced.session.number("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal").unwrap(), 0);
    plain.run("INSERT INTO plain VALUES (3002, 1)").unwrap();
    fenced.session.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).unwrap();
}

#[test]
fn the_barrier_waits_for_whoever_passed_before_and_a_session_with_an_old_snapshot_does_not_pass() {
    let fenced = Fenced::new(&shared().unwrap().source, "barrier");
    let (open, old, reader) = (fenced.connect(), fenced.connect(), fenced.connect());
    for (round, level) in ["REPEATABLE READ", "SERIALIZABLE", "READ COMMITTED"].into_iter().enumerate() {
        let epoch = 10 + 2 * round as u64;
        fenced.set(epoch, Mode::Open).unwrap();
        reader.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT * FROM plain").unwrap();
        old.run(&format!("BEGIN ISOLATION LEVEL {level}; SELECT * FROM plain")).unwrap();
        open.run(&format!("BEGIN ISOLATION LEVEL {level}; UPDATE plain SET v = v + 1 WHERE id = 5")).unwrap();
        fenced.set(epoch + 1, Mode::OldTransactions).unwrap();
        let Barrier::Busy(writers) = fenced.barrier(NOW) else { panic!("a writer is on its way") };
        assert_eq!(writers.len(), 1, "{writers:?}");
        assert!(writers[0].pid.is_some() && writers[0].who.starts_with("postgres"), "{writers:?}");
        // What had not written begins nothing; what had may go on to its end.
        refused(&old, "INSERT INTO plain VALUES (4000, 1)");
        open.run("UPDATE plain SET v = v + 1 WHERE id = 5; UPDATE parted SET v = 0; COMMIT").unwrap();
        assert_eq!(fenced.barrier(LONG), Barrier::Reached, "a reader is waited for");
        refused(&open, "UPDATE plain SET v = v + 1 WHERE id = 5");
        reader.run("COMMIT").unwrap();
    }
    // Closed at once: the transaction fails with its next write.
    fenced.set(20, Mode::Open).unwrap();
    open.run("BEGIN; UPDATE plain SET v = v + 1 WHERE id = 6").unwrap();
    fenced.set(21, Mode::Closed).unwrap();
    refused(&open, "UPDATE plain SET v = v + 1 WHERE id = 6");
    assert_eq!(fenced.barrier(LONG), Barrier::Reached);
    // A prepared one has no session, and counts.
    fenced.set(22, Mode::Open).unwrap();
    let gid = format!("gid {}", fenced.session.value("SELECT current_database()").unwrap());
    open.run(&format!("BEGIN; UPDATE plain SET v = v + 1 WHERE id = 7; PREPARE TRANSACTION '{gid}'")).unwrap();
    fenced.set(23, Mode::Closed).unwrap();
    let Barrier::Busy(writers) = fenced.barrier(NOW) else { panic!("a prepared transaction is on its way") };
    assert_eq!((writers[0].pid, writers[0].who.as_str()), (None, format!("prepared transaction '{gid}'").as_str()));
    open.run(&format!("COMMIT PREPARED '{gid}'")).unwrap();
    assert_eq!(fenced.barrier(LONG), Barrier::Reached);
}

#[test]
fn behind_the_barrier_no_writer_of_many_has_written() {
    let fenced = Fenced::new(&shared().unwrap().source, "writers");
    let (stop, passed, failed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let write = |at: usize| {
        let session = fenced.connect();
        let level = ["READ COMMITTED", "REPEATABLE READ"][at % 2];
        while !stop.load(Ordering::Relaxed) {
            let sql = format!(
                "BEGIN ISOLATION LEVEL {level}; SELECT * FROM free; INSERT INTO parted SELECT coalesce(max(id), 0) + 1, {at} FROM parted; \
                 UPDATE plain SET v = v + 1 WHERE id = {}; COMMIT",
                at + 1
            );
            match session.run(&sql) {
                Ok(()) => passed.fetch_add(1, Ordering::Relaxed),
                Err(failure) => {
                    let text = failure.to_string();
                    assert!(text.contains("takes no writes") || text.contains("duplicate key"), "{text}");
                    session.run("ROLLBACK").unwrap();
                    failed.fetch_add(u64::from(text.contains("takes no writes")), Ordering::Relaxed)
                }
            };
        }
    };
    std::thread::scope(|scope| {
        let writing: Vec<_> = (0..6).map(|at| scope.spawn(move || write(at))).collect();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 1..30 {
                let epoch = 2 * round;
                let seen = passed.load(Ordering::Relaxed);
                wait::until_true("they write", LONG, || passed.load(Ordering::Relaxed) > seen + 20).unwrap();
                fenced.set(epoch, if round % 2 == 0 { Mode::Closed } else { Mode::OldTransactions }).unwrap();
                assert_eq!(fenced.barrier(LONG), Barrier::Reached);
                let state = "SELECT (SELECT sum(v) FROM plain) || ' ' || (SELECT count(*) FROM parted)";
                let at_barrier = fenced.session.value(state).unwrap();
                let (refusals, seen) = (failed.load(Ordering::Relaxed), passed.load(Ordering::Relaxed));
                wait::until_true("they are refused", LONG, || failed.load(Ordering::Relaxed) > refusals + 20).unwrap();
                assert_eq!(
                    fenced.session.value(state).unwrap(),
                    at_barrier,
                    "written behind the barrier of epoch {epoch}"
                );
                // One that had committed may hear of it late.
                assert!(passed.load(Ordering::Relaxed) <= seen + 6);
                fenced.set(epoch + 1, Mode::Open).unwrap();
            }
        }));
        stop.store(true, Ordering::Relaxed);
        writing.into_iter().for_each(|thread| thread.join().unwrap());
        outcome.unwrap();
    });
}

#[test]
fn a_closed_fence_is_closed_after_a_crash_of_the_server() {
    let server = Server::start(Options::new("fence")).unwrap();
    let fenced = Fenced::new(&server, "crash");
    fenced.set(1, Mode::Closed).unwrap();
    server.crash().unwrap();
    server.start_again().unwrap();
    let after = fenced.connect();
    refused(&after, "INSERT INTO plain VALUES (1000, 1)");
}
