//! The producer against real servers: what it publishes, where it goes on after a kill, what it refuses, and that nothing it
//! installs makes a write of the application fail.
//!
//! A lane is judged by its own rules ([`Lane::check`]): per partition positions grow once resends are dropped, and each
//! manifest counts exactly the events between the one before and itself.
//!
//! Longer than 600 lines because every test reads a lane with the same reader and judge, which stand beside them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use changelog::ledger::Chunk;
use changelog::table::{Op, Value};
use changelog::{Block, EventDecoder, LaneRecord, LedgerRecord, Lsn, Manifest, Marker, Position, Topics};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tests::kafka::{self, Broker};
use tests::postgres::{Options, Proof, Server};
use tests::registry::Registry;
use tests::services::{Service, run};
use tests::sql::Session;
use tests::stack::{self, Addresses, Migration};
use tests::wait;

const LIMIT: Duration = Duration::from_secs(90);

/// One event, its rows as PostgreSQL's text; resends dropped.
#[derive(Clone, Debug)]
struct Read {
    op: Op,
    position: Position,
    before: Option<Vec<Option<String>>>,
    after: Option<Vec<Option<String>>>,
}

/// All that a lane holds.
struct Lane {
    manifests: Vec<Manifest>,
    markers: Vec<Marker>,
    /// By topic; every table here has one partition.
    events: HashMap<String, Vec<Read>>,
    ledger: Vec<LedgerRecord>,
    births: usize,
}

impl Lane {
    /// `tables`: in schema public.
    fn read(broker: &Broker, registry: &Registry, migration: &str, tables: &[&str]) -> Lane {
        let topics = Topics::new(migration, changelog::Lane::Forward);
        let mut lane =
            Lane { manifests: Vec::new(), markers: Vec::new(), events: HashMap::new(), ledger: Vec::new(), births: 0 };
        let mut last = Position::ZERO;
        for record in broker.records(&topics.transactions()).unwrap() {
            let record = LaneRecord::decode(record.value.as_deref().unwrap()).unwrap();
            if let Some(position) = record.position() {
                if position <= last {
                    continue;
                }
                last = position;
            }
            match record {
                LaneRecord::Birth(_) => lane.births += 1,
                LaneRecord::Manifest(manifest) => lane.manifests.push(manifest),
                LaneRecord::Marker(marker) => lane.markers.push(marker),
                LaneRecord::Sequences(_) | LaneRecord::Schema(_) => {}
            }
        }
        let mut decoders: HashMap<u32, EventDecoder> = HashMap::new();
        for table in tables {
            let topic = topics.table(&changelog::TableName::new("public", *table));
            let mut last = None;
            let mut events = Vec::new();
            for record in broker.records(&topic).unwrap() {
                let value = record.value.unwrap();
                let changelog::Head { schema_id: id, header, .. } = EventDecoder::head(&value).unwrap();
                if last.is_some_and(|last| header.position <= last) {
                    continue;
                }
                last = Some(header.position);
                let decoder =
                    decoders.entry(id).or_insert_with(|| EventDecoder::new(id, &registry.schema(id).unwrap()).unwrap());
                events.push(read_event(decoder, &value));
            }
            lane.events.insert(topic, events);
        }
        for record in broker.records(&topics.ledger()).unwrap() {
            lane.ledger.push(LedgerRecord::decode(record.value.as_deref().unwrap()).unwrap());
        }
        lane.check();
        lane
    }

    fn check(&self) {
        assert_eq!(self.births, 1);
        let mut from = Position::ZERO;
        let mut counted = 0;
        for manifest in &self.manifests {
            assert!(!manifest.partitions.is_empty());
            for count in &manifest.partitions {
                let events = &self.events[&count.topic];
                let covered =
                    events.iter().filter(|event| event.position > from && event.position <= manifest.position).count();
                assert_eq!(covered as u64, count.events, "{} in {manifest:?}", count.topic);
                counted += covered;
            }
            from = manifest.position;
        }
        let up_to = |event: &&Read| event.position <= from;
        let all: usize = self.events.values().map(|events| events.iter().filter(up_to).count()).sum();
        assert_eq!(counted, all, "an event stands in no manifest");
    }

    fn chunks(&self) -> BTreeMap<(String, u32, u32), Chunk> {
        let chunk = |record: &LedgerRecord| match record {
            LedgerRecord::Chunk(chunk) => {
                Some(((chunk.id.table.name.clone(), chunk.id.generation, chunk.id.chunk), chunk.clone()))
            }
            _ => None,
        };
        self.ledger.iter().filter_map(chunk).collect()
    }
}

fn read_event(decoder: &EventDecoder, value: &[u8]) -> Read {
    let event = decoder.event(value).unwrap();
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let (has_before, has_after) = decoder.images(&event, &mut before, &mut after).unwrap();
    let texts = |values: &[Value<'_>]| {
        let columns = &decoder.shape().columns;
        let text = |(value, column): (&Value<'_>, &changelog::Column)| {
            let mut text = String::new();
            changelog::text::format_value(value, column.kind(), &mut text).then_some(text)
        };
        values.iter().zip(columns).map(text).collect::<Vec<_>>()
    };
    Read {
        op: event.header.op,
        position: event.header.position,
        before: has_before.then(|| texts(&before)),
        after: has_after.then(|| texts(&after)),
    }
}

/// A migration on the shared servers with its producer running and streaming.
struct Running {
    migration: Migration,
    source: Session,
    producer: Service,
}

impl Running {
    fn start(label: &str, schema: &str, extra: &[(&str, &str, toml::Value)]) -> Running {
        let migration = Migration::shared(label).unwrap();
        migration.configure(extra).unwrap();
        let source = migration.source().unwrap();
        source.run(schema).unwrap();
        let producer = migration.service("producer").start().unwrap();
        streaming(&producer);
        Running { migration, source, producer }
    }

    fn lane(&self, tables: &[&str]) -> Lane {
        let shared = stack::shared().unwrap();
        Lane::read(&shared.broker, &shared.registry, &self.migration.name, tables)
    }

    fn barrier(&self) {
        barrier(&stack::shared().unwrap().broker, &self.migration.name, &self.source);
    }

    fn slot(&self) -> String {
        format!("dflux_{}", self.migration.name)
    }
}

fn streaming(producer: &Service) {
    producer
        .process()
        .wait_until("the producer streams", LIMIT, || match producer.health() {
            Ok(state) if state.trim() == "streaming" => Ok(()),
            Ok(state) => Err(state),
            Err(failure) => Err(failure.to_string()),
        })
        .unwrap();
}

/// Emits a marker and waits until it is in its topic and what was committed before is acknowledged in every other: the
/// marker may overtake the events of a large transaction, which lie in other partitions.
fn barrier(broker: &Broker, migration: &str, source: &Session) {
    let committed = source.value("SELECT pg_current_wal_insert_lsn()").unwrap();
    let text = stack::unique("barrier");
    source.run(&producer::markers::emit_sql(&text)).unwrap();
    let topic = Topics::new(migration, changelog::Lane::Forward).transactions();
    wait::until_true("the barrier is published", LIMIT, || {
        broker.records(&topic).is_ok_and(|records| {
            records.iter().rev().any(|record| {
                let decoded = record.value.as_deref().map(LaneRecord::decode);
                matches!(decoded, Some(Ok(LaneRecord::Marker(marker))) if marker.content == text)
            })
        })
    })
    .unwrap();
    let confirmed = format!(
        "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'dflux_{migration}' AND confirmed_flush_lsn >= '{committed}'"
    );
    wait::until_true("the slot is confirmed", LIMIT, || source.number(&confirmed).is_ok_and(|count| count == 1))
        .unwrap();
}

/// Waits until the process has ended by itself; returns its last words.
fn ended(producer: &Service) -> String {
    wait::until_true("the producer ends", LIMIT, || producer.process().ended().is_some()).unwrap();
    assert_eq!(producer.process().ended().and_then(|status| status.code()), Some(1), "{}", producer.log());
    producer.log()
}

#[test]
fn every_kind_of_change_is_published_in_order_with_its_manifest() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY, a text, big text); ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
                  CREATE TABLE full_toast (id int PRIMARY KEY, a text, big text);
                  ALTER TABLE full_toast ALTER big SET STORAGE EXTERNAL; ALTER TABLE full_toast REPLICA IDENTITY FULL;
                  CREATE TABLE generated (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED)";
    let running = Running::start("changes", schema, &[]);
    let big = "repeat('x', 9000)";
    running
        .source
        .run(&format!(
            "BEGIN; INSERT INTO t VALUES (1, 'one', {big}), (2, NULL, ''); UPDATE t SET a = 'uno' WHERE id = 1;
             UPDATE t SET id = 3 WHERE id = 1; DELETE FROM t WHERE id = 2; COMMIT;
             BEGIN; INSERT INTO full_toast VALUES (1, 'a', {big}); UPDATE full_toast SET a = 'b'; COMMIT;
             INSERT INTO generated VALUES (1, 21); TRUNCATE t, full_toast"
        ))
        .unwrap();
    running.barrier();
    let lane = running.lane(&["t", "full_toast", "generated"]);
    let topics = Topics::new(&running.migration.name, changelog::Lane::Forward);
    let of = |table: &str| &lane.events[&topics.table(&changelog::TableName::new("public", table))];
    let shape: Vec<(Op, u64, u32)> =
        of("t").iter().map(|event| (event.op, event.position.ordinal, event.position.part)).collect();
    assert_eq!(
        shape[..6],
        [
            (Op::Create, 0, 0),
            (Op::Create, 1, 0),
            (Op::Update, 2, 0),
            (Op::Delete, 3, 0),
            (Op::Create, 3, 1),
            (Op::Delete, 4, 0)
        ]
    );
    assert_eq!(shape[6].0, Op::Truncate);
    let moved = &of("t")[3..5];
    assert_eq!(moved[0].before.as_ref().unwrap()[0].as_deref(), Some("1"));
    assert_eq!(moved[1].after.as_ref().unwrap()[..2], [Some("3".to_owned()), Some("uno".to_owned())]);
    assert_eq!(moved[1].after.as_ref().unwrap()[2], None, "a TOAST value that was not sent is not in the image");
    let updated = of("full_toast")[1].after.as_ref().unwrap();
    assert_eq!(updated[2].as_ref().map(String::len), Some(9000), "filled from the old image");
    assert_eq!(of("generated")[0].after.as_ref().unwrap().len(), 2, "a generated column is not carried");
    assert!(lane.manifests.iter().all(|manifest| manifest.last));
    running.producer.terminate().unwrap();
}

#[test]
fn a_transaction_of_many_segments_is_cut_at_fixed_ordinals_and_stays_in_bounded_memory() {
    let running = Running::start("segments", "CREATE TABLE t (id int PRIMARY KEY, a text)", &[]);
    running.source.run("INSERT INTO t SELECT g, repeat('y', 200) FROM generate_series(1, 200000) g").unwrap();
    running.barrier();
    let lane = running.lane(&["t"]);
    let ordinals: Vec<u64> = lane.manifests.iter().map(|manifest| manifest.position.ordinal).collect();
    let expected: Vec<u64> = (1..=20).map(|segment| segment * 10_000 - 1).collect();
    assert_eq!(ordinals, expected);
    let last: Vec<bool> = lane.manifests.iter().map(|manifest| manifest.last).collect();
    assert_eq!(last.iter().filter(|last| **last).count(), 1);
    assert!(last.last().unwrap());
    let peak = running.producer.resident_bytes().unwrap().peak;
    assert!(peak < 256 << 20, "{peak} bytes resident");
}

/// Inserts in transactions of random size into two tables until told to stop; returns how many rows it has committed.
fn load(migration: &Migration, seed: u64, until: std::sync::mpsc::Receiver<()>) -> std::thread::JoinHandle<i64> {
    let session = migration.source().unwrap();
    std::thread::spawn(move || {
        let mut random = StdRng::seed_from_u64(seed);
        let mut rows = 0;
        while until.try_recv().is_err() {
            // Not more than can be read back in a moment, however fast the machine is.
            let large = rows < 300_000 && random.random_range(0..20) == 0;
            let size = if large { 15_000 } else { random.random_range(1..40) };
            session
                .run(&format!(
                    "BEGIN; INSERT INTO log (v) SELECT g FROM generate_series(1, {size}) g;
                     UPDATE total SET n = n + {size}; COMMIT"
                ))
                .unwrap();
            rows += size;
            wait::pace(Duration::from_millis(2));
        }
        rows
    })
}

const LOAD_SCHEMA: &str =
    "CREATE TABLE log (id bigserial PRIMARY KEY, v int); CREATE TABLE total (id int PRIMARY KEY, n bigint);
     INSERT INTO total VALUES (1, 0)";

#[test]
fn killed_at_random_moments_under_load_it_publishes_every_change_exactly_once() {
    let seed = std::env::var("DFLUX_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("DFLUX_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut running = Running::start("kills", LOAD_SCHEMA, &[]);
    let (stop, until) = std::sync::mpsc::channel();
    let loading = load(&running.migration, seed, until);
    for _kill in 0..8 {
        let moment = Duration::from_millis(random.random_range(50..1_500));
        let began = Instant::now();
        wait::until_true("the moment of the kill", LIMIT, || began.elapsed() >= moment).unwrap();
        running.producer.kill();
        running.producer = running.producer.start_again().unwrap();
    }
    stop.send(()).unwrap();
    let rows = loading.join().unwrap();
    streaming(&running.producer);
    running.barrier();
    let lane = running.lane(&["log", "total"]);
    let topics = Topics::new(&running.migration.name, changelog::Lane::Forward);
    let log = &lane.events[&topics.table(&changelog::TableName::new("public", "log"))];
    let created: Vec<i64> =
        log.iter().map(|event| event.after.as_ref().unwrap()[0].as_ref().unwrap().parse().unwrap()).collect();
    // What was committed before the slot's consistent point is in the backfill and not in the stream.
    let streamed: i64 = created.len() as i64;
    assert_eq!(created.iter().collect::<BTreeSet<_>>().len() as i64, streamed, "no row twice");
    let copied: u64 = lane.chunks().iter().filter(|(id, _)| id.0 == "log").map(|(_, chunk)| chunk.row_count).sum();
    let exact = lane.chunks().values().all(|chunk| chunk.exact_snapshot);
    if exact {
        assert_eq!(streamed + copied as i64, rows, "every row either copied or streamed");
    } else {
        assert!(streamed + copied as i64 >= rows);
    }
    let total = &lane.events[&topics.table(&changelog::TableName::new("public", "total"))];
    let last = total.last().unwrap().after.as_ref().unwrap()[1].clone().unwrap();
    assert_eq!(last.parse::<i64>().unwrap(), rows);
}

/// Puts the committed chunks together and lets PostgreSQL read them into the target.
fn load_chunks(broker: &Broker, migration: &Migration, lane: &Lane, table: &str) {
    let topic = Topics::new(&migration.name, changelog::Lane::Forward).snapshot();
    let records = broker.records(&topic).unwrap();
    for ((_, _, number), chunk) in lane.chunks().iter().filter(|(id, _)| id.0 == table) {
        let mut rows = Vec::new();
        let (mut format, mut sequence) = ("text", 0);
        for record in records.iter().filter(|record| {
            record.partition == chunk.partition && (chunk.first_offset..=chunk.last_offset).contains(&record.offset)
        }) {
            let block = Block::decode(record.value.as_deref().unwrap()).unwrap();
            if (&block.id, block.attempt) == (&chunk.id, chunk.attempt) {
                assert_eq!(block.sequence, sequence, "chunk {number}");
                sequence += 1;
                rows.extend_from_slice(block.rows);
                format = block.format.name();
                assert_eq!(block.last, record.offset == chunk.last_offset);
            }
        }
        let path = migration.folder.join(format!("{table}-{number}"));
        std::fs::write(&path, rows).unwrap();
        let copy = format!("\\copy public.{table} from '{}' with (format {format})", path.display());
        let arguments = [migration.addresses.target.clone(), "-c".into(), copy, "-v".into(), "ON_ERROR_STOP=1".into()];
        stack::shared().unwrap().target.tool("psql", arguments).run().unwrap();
    }
}

#[test]
fn a_backfill_killed_and_started_again_reads_no_finished_chunk_twice() {
    let schema = "CREATE TABLE t (id uuid PRIMARY KEY, n numeric(12,2), at timestamptz, a text);
                  INSERT INTO t SELECT md5(g::text)::uuid, g / 7.0, '2020-01-01'::timestamptz + g * interval '1s', repeat('z', g % 300)
                    FROM generate_series(1, 60000) g;
                  CREATE TABLE two (k text, n int, v text, PRIMARY KEY (k, n));
                  INSERT INTO two SELECT 'it''s ' || g % 10, g, E'tab\\there' FROM generate_series(1, 20000) g;
                  CREATE TABLE keyless (a int, b text); INSERT INTO keyless SELECT 1, 'same' FROM generate_series(1, 500);
                  ANALYZE";
    let migration = Migration::shared("chunks").unwrap();
    let tables =
        "CREATE TABLE t (id uuid, n numeric(12,2), at timestamptz, a text); CREATE TABLE two (k text, n int, v text);
                  CREATE TABLE keyless (a int, b text)";
    migration.target().unwrap().run(tables).unwrap();
    migration.source().unwrap().run(schema).unwrap();
    migration
        .configure(&[("producer", "chunk_rows", 2000.into()), ("producer", "backfill_workers", 3.into())])
        .unwrap();
    let shared = stack::shared().unwrap();
    let mut producer = migration.service("producer").start().unwrap();
    let mut before: BTreeMap<(String, u32, u32), Chunk> = BTreeMap::new();
    for finished in [3.0, 8.0, 15.0] {
        producer
            .process()
            .wait_until("some chunks are read", LIMIT, || {
                match producer.metric("dflux_producer_backfill_chunks_total") {
                    Ok(Some(chunks)) if chunks >= finished - before.len() as f64 => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .unwrap();
        producer.kill();
        let chunks = Lane::read(&shared.broker, &shared.registry, &migration.name, &[]).chunks();
        for (id, chunk) in &before {
            assert_eq!(chunks.get(id), Some(chunk), "a finished chunk was read again");
        }
        before = chunks;
        producer = producer.start_again().unwrap();
    }
    producer
        .process()
        .wait_until("the backfill is complete", LIMIT, || {
            if producer.log().contains("backfill completed") { Ok(()) } else { Err("not yet") }
        })
        .unwrap();
    let open = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dflux producer {}/forward' \
         AND state LIKE 'idle in transaction%'",
        migration.name
    );
    let source = migration.source().unwrap();
    wait::until_true("no snapshot holds back vacuum", LIMIT, || source.number(&open).is_ok_and(|n| n == 0)).unwrap();
    let lane = Lane::read(&shared.broker, &shared.registry, &migration.name, &[]);
    for (id, chunk) in &before {
        assert_eq!(lane.chunks().get(id), Some(chunk));
    }
    let (source, target) = (migration.source().unwrap(), migration.target().unwrap());
    for table in ["t", "two", "keyless"] {
        load_chunks(&shared.broker, &migration, &lane, table);
        let digest = format!("SELECT count(*) || md5(string_agg(r::text, ',' ORDER BY r::text)) FROM {table} r");
        assert_eq!(source.value(&digest).unwrap(), target.value(&digest).unwrap(), "{table}");
    }
    assert!(lane.chunks().iter().filter(|(id, _)| id.0 == "keyless").all(|(_, chunk)| chunk.exact_snapshot));
    let completed = lane.ledger.iter().any(|record| matches!(record, LedgerRecord::BackfillCompleted(_)));
    assert!(completed);
}

#[test]
fn a_table_rewritten_in_the_middle_of_its_backfill_is_read_again() {
    let migration = Migration::shared("rewritten").unwrap();
    migration.configure(&[("producer", "backfill_workers", 1.into())]).unwrap();
    let source = migration.source().unwrap();
    source
        .run("CREATE TABLE first (a text); INSERT INTO first SELECT repeat(md5(g::text), 40) FROM generate_series(1, 60000) g;
              CREATE TABLE small (id int PRIMARY KEY, a int); INSERT INTO small SELECT g, g FROM generate_series(1, 1000) g;
              CREATE TABLE typed (id int PRIMARY KEY, a int); INSERT INTO typed SELECT g, g FROM generate_series(1, 1000) g")
        .unwrap();
    let producer = migration.service("producer").start().unwrap();
    producer
        .process()
        .wait_until("the lane is born", LIMIT, || if producer.log().contains("is born") { Ok(()) } else { Err("no") })
        .unwrap();
    source
        .run(
            "BEGIN; TRUNCATE small; INSERT INTO small SELECT g, 7 FROM generate_series(1, 10) g; COMMIT;
                ALTER TABLE typed ALTER a TYPE bigint",
        )
        .unwrap();
    producer
        .process()
        .wait_until("the backfill is complete", LIMIT, || {
            if producer.log().contains("backfill completed") { Ok(()) } else { Err("not yet") }
        })
        .unwrap();
    assert!(producer.log().contains("table was rewritten"), "the rewriting came too late to be met");
    let shared = stack::shared().unwrap();
    let lane = Lane::read(&shared.broker, &shared.registry, &migration.name, &["small"]);
    let rows = |table: &str| -> u64 {
        lane.chunks().iter().filter(|(id, _)| id.0 == table).map(|(_, chunk)| chunk.row_count).sum()
    };
    assert_eq!((rows("small"), rows("typed")), (10, 1000));
    let exact_from = lane.ledger.iter().find_map(|record| match record {
        LedgerRecord::BackfillCompleted(completed) => Some(completed.exact_from),
        _ => None,
    });
    let highest = lane.chunks().values().map(|chunk| chunk.snapshot_lsn).max();
    assert_eq!(exact_from, highest);
}

#[test]
fn no_write_of_the_application_fails_whatever_its_tables_look_like() {
    let schema = "CREATE TABLE keyless (a int); CREATE TABLE nothing (id int PRIMARY KEY, a int);
                  ALTER TABLE nothing REPLICA IDENTITY NOTHING;
                  CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE, a int);
                  CREATE TABLE keyed (id int PRIMARY KEY, a int) PARTITION BY RANGE (id);
                  CREATE TABLE keyed_1 PARTITION OF keyed FOR VALUES FROM (0) TO (100);
                  CREATE TABLE bare (id int, a int) PARTITION BY RANGE (id);
                  CREATE TABLE bare_1 PARTITION OF bare FOR VALUES FROM (0) TO (100);
                  CREATE TABLE named (id int NOT NULL, a int) PARTITION BY RANGE (id);
                  CREATE UNIQUE INDEX named_id ON named (id); ALTER TABLE named REPLICA IDENTITY USING INDEX named_id;
                  CREATE TABLE named_1 PARTITION OF named FOR VALUES FROM (0) TO (100);
                  CREATE UNLOGGED TABLE volatile (a int)";
    let running = Running::start("writes", schema, &[]);
    let write = |table: &str, id: i32| {
        format!(
            "INSERT INTO {table} VALUES ({id}, 1); UPDATE {table} SET a = 2 WHERE id = {id}; DELETE FROM {table} WHERE id = {id};"
        )
    };
    let source = &running.source;
    source.run("INSERT INTO keyless VALUES (1), (1); UPDATE keyless SET a = 2; DELETE FROM keyless").unwrap();
    source.run("INSERT INTO volatile VALUES (1); UPDATE volatile SET a = 2; DELETE FROM volatile").unwrap();
    for (table, id) in [("nothing", 1), ("deferred", 1), ("keyed", 1), ("bare", 1), ("named", 1)] {
        source.run(&write(table, id)).unwrap();
    }
    source
        .run(
            "CREATE TABLE keyed_2 PARTITION OF keyed FOR VALUES FROM (100) TO (200);
              CREATE TABLE bare_2 PARTITION OF bare FOR VALUES FROM (100) TO (200);
              CREATE TABLE named_2 PARTITION OF named FOR VALUES FROM (100) TO (200);
              CREATE TABLE later (id int, a int)",
        )
        .unwrap();
    for (table, id) in [("keyed", 150), ("bare", 150), ("named", 150), ("later", 1)] {
        source.run(&write(table, id)).unwrap();
    }
    running.barrier();
    let lane = running.lane(&["keyless", "nothing", "deferred", "keyed", "bare_1", "named_1"]);
    let counts: BTreeMap<&str, usize> =
        lane.events.iter().map(|(topic, events)| (topic.rsplit('.').next().unwrap(), events.len())).collect();
    let whole = [("keyless", 6), ("nothing", 3), ("deferred", 3), ("keyed", 6), ("bare_1", 3), ("named_1", 3)];
    let expected = BTreeMap::from(whole);
    assert_eq!(counts, expected);
    wait::until_true("tables that are not published are counted", LIMIT, || {
        running.producer.metric("dflux_producer_unpublished_tables").is_ok_and(|count| count == Some(3.0))
    })
    .unwrap();
    let log = running.producer.log();
    for told in ["public.later", "public.bare_2", "public.named_2", "public.volatile"] {
        assert!(log.contains(told), "{told} is not told: {log}");
    }
}

#[test]
fn a_table_created_later_joins_by_a_resync_and_is_copied_exactly() {
    let by_request = [("migration", "join_new_tables", false.into())];
    let running = Running::start("joining", "CREATE TABLE t (id int PRIMARY KEY)", &by_request);
    let source = &running.source;
    source
        .run("CREATE TABLE later (a int, b text); INSERT INTO later SELECT g % 3, 'x' FROM generate_series(1, 700) g")
        .unwrap();
    let topics = Topics::new(&running.migration.name, changelog::Lane::Forward);
    let table = changelog::TableName::new("public", "later");
    let request = LedgerRecord::ResyncRequested(changelog::ledger::ResyncRequested {
        table: table.clone(),
        generation: 1,
        oid: 0,
        token: "asked".into(),
    });
    let (mut value, broker) = (Vec::new(), &stack::shared().unwrap().broker);
    request.encode(1, &mut value);
    broker.put(&topics.ledger(), 0, Some(request.key().as_bytes()), Some(&value)).unwrap();
    running
        .producer
        .process()
        .wait_until("the table is copied", LIMIT, || {
            let log = running.producer.log();
            if log.contains("table copied table=public.later generation=1 rows=700") { Ok(()) } else { Err("no") }
        })
        .unwrap();
    source.run("UPDATE later SET b = 'y' WHERE a = 1; INSERT INTO later VALUES (9, 'z')").unwrap();
    running.barrier();
    let lane = running.lane(&["later"]);
    let chunk = &lane.chunks()[&("later".to_owned(), 1, 0)];
    assert!(chunk.exact_snapshot);
    let events = &lane.events[&topics.table(&table)];
    assert!(events.iter().all(|event| event.position.commit_lsn >= chunk.snapshot_lsn));
    assert_eq!(events.len(), 700 / 3 + 1 + 1);
}

/// A migration on servers of its own.
fn own(label: &str, source: &Server, broker: &Broker) -> Migration {
    let name = stack::unique(label);
    let shared = stack::shared().unwrap();
    shared.target.database(&name).unwrap();
    let addresses = Addresses {
        source: source.url("postgres"),
        target: shared.target.url(&name),
        brokers: broker.bootstrap(),
        registry: shared.registry.url(),
    };
    Migration::between(&name, addresses).unwrap()
}

#[test]
fn while_kafka_is_away_the_slot_is_not_confirmed_and_the_connection_is_kept() {
    let server = Server::start(Options::new("patient").setting("wal_sender_timeout", "3s")).unwrap();
    let broker = Broker::start(kafka::Options::default()).unwrap();
    let migration = own("away", &server, &broker);
    migration.configure(&[("producer", "queue_bytes_max", (2 << 20).into())]).unwrap();
    let source = migration.source().unwrap();
    source.run(LOAD_SCHEMA).unwrap();
    let producer = migration.service("producer").start().unwrap();
    streaming(&producer);
    barrier(&broker, &migration.name, &source);
    broker.pause();
    let held = |source: &Session| {
        source.value("SELECT confirmed_flush_lsn FROM pg_replication_slots").unwrap().parse::<Lsn>().unwrap()
    };
    let pid = source.value("SELECT active_pid FROM pg_replication_slots").unwrap();
    let before: Lsn = source.value("SELECT pg_current_wal_insert_lsn()").unwrap().parse().unwrap();
    source.run("INSERT INTO log (v) SELECT g FROM generate_series(1, 200000) g; UPDATE total SET n = 200000").unwrap();
    let began = Instant::now();
    wait::until_true("longer than a WAL sender waits, and than librdkafka waits for a socket", LIMIT, || {
        assert!(held(&source) <= before, "confirmed what Kafka has not acknowledged");
        began.elapsed() > Duration::from_secs(65)
    })
    .unwrap();
    assert_eq!(source.value("SELECT active_pid FROM pg_replication_slots").unwrap(), pid, "the connection was kept");
    assert_eq!(producer.metric("dflux_producer_session_restarts_total").unwrap(), Some(0.0));
    // The session ends while a record waits for the full queue. (A terminated walsender would not do: it first wants
    // to say so to a reader that does not read.)
    server.crash().unwrap();
    wait::until_true("the session has ended", LIMIT, || producer.health().is_err()).unwrap();
    server.start_again().unwrap();
    let source = migration.source().unwrap();
    broker.resume();
    barrier(&broker, &migration.name, &source);
    let shared = stack::shared().unwrap();
    let lane = Lane::read(&broker, &shared.registry, &migration.name, &["log", "total"]);
    assert_eq!(lane.events.values().map(Vec::len).sum::<usize>(), 200_001);
    wait::until_true("the slot follows", LIMIT, || held(&source) > before).unwrap();
}

#[test]
fn it_goes_on_by_itself_after_a_restart_of_the_source_and_of_the_broker() {
    let server = Server::start(Options::new("restarting")).unwrap();
    let broker = Broker::start(kafka::Options::default()).unwrap();
    let migration = own("restarts", &server, &broker);
    let source = migration.source().unwrap();
    source.run(LOAD_SCHEMA).unwrap();
    // Alive and not ready while an open transaction keeps the slot from being made.
    let open = migration.source().unwrap();
    open.run("BEGIN; SELECT pg_current_xact_id()").unwrap();
    let producer = migration.service("producer").start().unwrap();
    wait::until_true("it creates the slot", LIMIT, || {
        producer.health().is_ok_and(|state| state.trim() == "creating the slot")
    })
    .unwrap();
    let refused = producer.ready().unwrap_err().to_string();
    assert!(refused.contains("503") && refused.contains("creating the slot"), "{refused}");
    open.run("COMMIT").unwrap();
    streaming(&producer);
    assert_eq!(producer.ready().unwrap().trim(), "streaming");
    source.run("INSERT INTO log (v) VALUES (1)").unwrap();
    server.crash().unwrap();
    server.start_again().unwrap();
    migration.source().unwrap().run("INSERT INTO log (v) VALUES (2)").unwrap();
    broker.restart().unwrap();
    let source = migration.source().unwrap();
    source.run("INSERT INTO log (v) VALUES (3)").unwrap();
    barrier(&broker, &migration.name, &source);
    let lane = Lane::read(&broker, &stack::shared().unwrap().registry, &migration.name, &["log"]);
    let topic =
        Topics::new(&migration.name, changelog::Lane::Forward).table(&changelog::TableName::new("public", "log"));
    let values: Vec<String> =
        lane.events[&topic].iter().map(|event| event.after.as_ref().unwrap()[1].clone().unwrap()).collect();
    assert_eq!(values, ["1", "2", "3"]);
    assert_eq!(producer.terminate().unwrap(), Some(0));
    assert_eq!(source.value("SELECT active FROM pg_replication_slots").unwrap(), "f", "the slot is free at once");
}

#[test]
fn a_topic_with_a_short_retention_is_refused_with_the_command_that_mends_it() {
    let migration = Migration::shared("retention").unwrap();
    migration.source().unwrap().run("CREATE TABLE t (id int PRIMARY KEY)").unwrap();
    let topic = Topics::new(&migration.name, changelog::Lane::Forward).table(&changelog::TableName::new("public", "t"));
    stack::shared().unwrap().broker.create_topic(&topic, 1, &[("retention.ms", "604800000")]).unwrap();
    let producer = migration.service("producer").start().unwrap();
    let log = ended(&producer);
    assert!(log.contains(&format!("topic {topic} has retention.ms = 604800000")), "{log}");
    assert!(log.contains("hint: kafka-configs.sh") && log.contains("--add-config retention.ms=-1"), "{log}");
    let slots = migration
        .source()
        .unwrap()
        .number("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()");
    assert_eq!(slots.unwrap(), 0, "nothing was changed before the refusal");
}

#[test]
fn a_slot_made_anew_under_the_same_name_is_refused() {
    let running = Running::start("anew", LOAD_SCHEMA, &[]);
    running.source.run("INSERT INTO log (v) VALUES (1)").unwrap();
    running.barrier();
    assert_eq!(running.producer.terminate().unwrap(), Some(0));
    let slot = running.slot();
    running.source.run(&format!("SELECT pg_drop_replication_slot('{slot}'); INSERT INTO log (v) VALUES (2)")).unwrap();
    running.source.run(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")).unwrap();
    let producer = running.migration.service("producer").name("second").start().unwrap();
    let log = ended(&producer);
    assert!(log.contains("beyond the end of topic") && log.contains("hint: dflux cleanup"), "{log}");
    running.source.run(&format!("SELECT pg_drop_replication_slot('{slot}')")).unwrap();
    let producer = running.migration.service("producer").name("third").start().unwrap();
    let log = ended(&producer);
    assert!(log.contains(&format!("slot {slot} is missing")), "{log}");
}

#[test]
fn a_topic_made_anew_is_refused() {
    let running = Running::start("topicanew", LOAD_SCHEMA, &[]);
    running.source.run("INSERT INTO log (v) VALUES (1)").unwrap();
    running.barrier();
    assert_eq!(running.producer.terminate().unwrap(), Some(0));
    let topics = Topics::new(&running.migration.name, changelog::Lane::Forward);
    let broker = &stack::shared().unwrap().broker;
    broker.delete_topic(&topics.transactions()).unwrap();
    let log = ended(&running.migration.service("producer").name("second").start().unwrap());
    assert!(log.contains("made anew or lost records"), "{log}");
    let settings = [("retention.ms", "-1"), ("max.message.bytes", "8388608")];
    broker.create_topic(&topics.transactions(), 1, &settings).unwrap();
    let log = ended(&running.migration.service("producer").name("third").start().unwrap());
    assert!(log.contains("made anew or lost records"), "{log}");
}

#[test]
fn a_standby_that_lagged_behind_when_it_was_promoted_is_refused() {
    let primary = Server::start(Options::new("leading")).unwrap();
    let broker = Broker::start(kafka::Options::default()).unwrap();
    let mut migration = own("promoted", &primary, &broker);
    let source = migration.source().unwrap();
    source.run(LOAD_SCHEMA).unwrap();
    let standby = primary.standby("lagging").unwrap();
    standby.stop().unwrap();
    let producer = migration.service("producer").start().unwrap();
    streaming(&producer);
    source.run("INSERT INTO log (v) SELECT g FROM generate_series(1, 1000) g").unwrap();
    barrier(&broker, &migration.name, &source);
    assert_eq!(producer.terminate().unwrap(), Some(0));
    primary.crash().unwrap();
    standby.start_again().unwrap();
    standby.promote().unwrap();
    let promoted = standby.session("postgres").unwrap();
    let slot = format!("dflux_{}", migration.name);
    promoted.run("CREATE PUBLICATION dflux_migration FOR TABLE log, total WITH (publish_via_partition_root)").unwrap();
    promoted.run(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")).unwrap();
    migration.addresses.source = standby.url("postgres");
    migration.configure(&[]).unwrap();
    let log = ended(&migration.service("producer").name("second").start().unwrap());
    assert!(log.contains("a standby that lagged behind was promoted"), "{log}");
}

#[test]
fn a_slot_that_another_program_uses_is_refused_with_its_process() {
    let running = Running::start("held", LOAD_SCHEMA, &[]);
    // A second migration's producer told to use the first one's slot would take its changes away.
    let pid = running
        .source
        .value(&format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{}'", running.slot()))
        .unwrap();
    let other = Migration::between(&stack::unique("thief"), running.migration.addresses.clone()).unwrap();
    other.configure(&[("migration", "slot", running.slot().into())]).unwrap();
    let log = ended(&other.service("producer").start().unwrap());
    assert!(log.contains(&format!("in use by process {pid}")), "{log}");
    assert!(log.contains("pg_terminate_backend"), "{log}");
}

#[test]
fn bad_input_is_one_clear_error_before_anything_is_changed() {
    let migration = Migration::shared("badinput").unwrap();
    let none = ended(&migration.service("producer").start().unwrap());
    assert!(none.contains("no table matches [migration] tables") && none.contains("hint:"), "{none}");
    let url = migration.addresses.source.replace(tests::postgres::PASSWORD, "wrong");
    migration.configure(&[("source", "url", url.into())]).unwrap();
    let wrong = ended(&migration.service("producer").name("wrong").start().unwrap());
    assert!(wrong.contains("password authentication failed") && wrong.contains("hint:"), "{wrong}");
    migration.configure(&[("registry", "url", "http://127.0.0.1:1/".into())]).unwrap();
    let registry = ended(&migration.service("producer").name("registry").start().unwrap());
    assert!(registry.contains("schema registry at http://127.0.0.1:1 does not answer"), "{registry}");
    assert!(registry.contains("hint:"), "{registry}");
    let server = Server::start(Options::new("replica").setting("wal_level", "replica")).unwrap();
    migration.configure(&[("source", "url", server.url("postgres").into())]).unwrap();
    let level = ended(&migration.service("producer").name("level").start().unwrap());
    assert!(level.contains("wal_level of the source is replica") && level.contains("ALTER SYSTEM"), "{level}");
}

#[test]
fn every_supported_version_is_read_with_generated_columns_and_partitions() {
    let broker = &stack::shared().unwrap().broker;
    for version in [14, 16, 17, 18] {
        let server = Server::start(Options::new(&format!("version{version}")).version(version)).unwrap();
        let migration = own("versions", &server, broker);
        let source = migration.source().unwrap();
        source
            .run(
                "CREATE TABLE keyless (a int, twice int GENERATED ALWAYS AS (a * 2) STORED);
                  CREATE TABLE keyed (id int PRIMARY KEY, a int) PARTITION BY RANGE (id);
                  CREATE TABLE keyed_1 PARTITION OF keyed FOR VALUES FROM (0) TO (100);
                  INSERT INTO keyless VALUES (1), (2); INSERT INTO keyed VALUES (1, 1)",
            )
            .unwrap();
        let producer = migration.service("producer").start().unwrap();
        streaming(&producer);
        source.run("UPDATE keyless SET a = a + 1; UPDATE keyed SET a = 2; DELETE FROM keyless WHERE a = 3").unwrap();
        barrier(broker, &migration.name, &source);
        let lane = Lane::read(broker, &stack::shared().unwrap().registry, &migration.name, &["keyless", "keyed"]);
        assert_eq!(lane.events.values().map(Vec::len).sum::<usize>(), 4, "{version}");
        for event in lane.events.values().flatten() {
            let widths = event.before.iter().chain(&event.after).map(Vec::len).collect::<Vec<_>>();
            assert!(widths.iter().all(|width| *width == 1 || *width == 2), "{widths:?}");
        }
        assert_eq!(producer.terminate().unwrap(), Some(0));
    }
}

fn copied(producer: &Service) {
    producer
        .process()
        .wait_until("the backfill is complete", LIMIT, || {
            if producer.log().contains("backfill completed") { Ok(()) } else { Err("not yet") }
        })
        .unwrap();
}

#[test]
fn a_virtual_column_never_makes_a_write_of_the_application_fail() {
    let server = Server::start(Options::new("virtual").version(18)).unwrap();
    let broker = &stack::shared().unwrap().broker;
    let migration = own("virtual", &server, broker);
    let source = migration.source().unwrap();
    let columns = "a int, twice int GENERATED ALWAYS AS (a * 2)";
    source
        .run(&format!(
            "CREATE TABLE keyless ({columns}); CREATE TABLE keyed (id int PRIMARY KEY, {columns});
             CREATE TABLE wide (id int PRIMARY KEY, {columns}); ALTER TABLE wide REPLICA IDENTITY FULL;
             INSERT INTO keyless VALUES (1), (2); INSERT INTO keyed VALUES (1, 1), (2, 2); INSERT INTO wide VALUES (1, 1), (2, 2)"
        ))
        .unwrap();
    let said = run("dflux", &migration.config(), ["assess"]).unwrap();
    assert_eq!(said.code, Some(2), "{}", said.stdout);
    let blocker = said.stdout.lines().find(|line| line.contains("virtual generated columns")).unwrap_or_default();
    assert!(blocker.contains("public.keyless") && blocker.contains("public.wide"), "{}", said.stdout);
    assert!(!blocker.contains("public.keyed"), "{blocker}");
    let producer = migration.service("producer").start().unwrap();
    streaming(&producer);
    for table in ["keyless", "keyed", "wide"] {
        source.run(&format!("UPDATE {table} SET a = 3 WHERE a = 1; DELETE FROM {table} WHERE a = 2")).unwrap();
    }
    barrier(broker, &migration.name, &source);
    let lane = Lane::read(broker, &stack::shared().unwrap().registry, &migration.name, &["keyed"]);
    let events: Vec<&Read> = lane.events.values().flatten().collect();
    assert_eq!(events.iter().map(|event| event.op).collect::<Vec<_>>(), [Op::Update, Op::Delete]);
    assert_eq!(events[0].after.as_ref().unwrap().len(), 2, "a computed column is not carried");
    let log = producer.log();
    for table in ["public.keyless", "public.wide"] {
        let left_out = |line: &str| line.contains("left out") && line.contains(table) && line.contains("virtual");
        assert!(log.lines().any(left_out), "{table}: {log}");
    }
    // Its key dropped, a table would get REPLICA IDENTITY FULL, which would make matters worse.
    source.run("ALTER TABLE keyed DROP CONSTRAINT keyed_pkey").unwrap();
    wait::until_true("it is said", LIMIT, || producer.log().contains("ALTER PUBLICATION")).unwrap();
    assert_eq!(source.value("SELECT relreplident FROM pg_class WHERE relname = 'keyed'").unwrap(), "d");
}

#[test]
fn a_table_whose_policy_hides_rows_from_the_role_is_an_error_and_no_empty_copy() {
    let server = Server::start(Options::new("policy")).unwrap();
    let broker = &stack::shared().unwrap().broker;
    let mut migration = own("policy", &server, broker);
    server.login("mover", Proof::Scram, "REPLICATION").unwrap();
    server
        .session("postgres")
        .unwrap()
        .run(
            "CREATE TABLE secret (id int PRIMARY KEY); INSERT INTO secret SELECT generate_series(1, 100);
             ALTER TABLE secret ENABLE ROW LEVEL SECURITY; ALTER TABLE secret FORCE ROW LEVEL SECURITY;
             GRANT ALL ON DATABASE postgres TO mover; GRANT ALL ON SCHEMA public TO mover; ALTER TABLE secret OWNER TO mover",
        )
        .unwrap();
    migration.addresses.source = server.url_as("mover", "postgres");
    migration.configure(&[]).unwrap();
    let log = ended(&migration.service("producer").start().unwrap());
    assert!(log.contains("row-level security policy for table \"secret\""), "{log}");
    assert!(log.contains("hint:") && log.contains("BYPASSRLS"), "{log}");
    let lane = Lane::read(broker, &stack::shared().unwrap().registry, &migration.name, &[]);
    assert!(lane.chunks().is_empty());
    server.session("postgres").unwrap().run("ALTER ROLE mover BYPASSRLS").unwrap();
    let producer = migration.service("producer").name("again").start().unwrap();
    copied(&producer);
    let lane = Lane::read(broker, &stack::shared().unwrap().registry, &migration.name, &[]);
    assert_eq!(lane.chunks().values().map(|chunk| chunk.row_count).sum::<u64>(), 100);
}

#[test]
fn a_table_that_is_dropped_or_excluded_after_the_last_event_is_no_lost_topic() {
    let mut running = Running::start("dropped", LOAD_SCHEMA, &[]);
    let again = |running: &Running, name: &str| {
        let producer = running.migration.service("producer").name(name).start().unwrap();
        streaming(&producer);
        producer
    };
    for (table, leave) in [("log", "DROP TABLE log"), ("total", "")] {
        let change = if table == "log" { "INSERT INTO log (v) VALUES (1)" } else { "UPDATE total SET n = 1" };
        running.source.run(change).unwrap();
        running.barrier();
        assert_eq!(running.producer.terminate().unwrap(), Some(0));
        if leave.is_empty() {
            let exclude = toml::Value::Array(vec![format!("public.{table}").into()]);
            running.source.run("CREATE TABLE other (id int PRIMARY KEY)").unwrap();
            running.migration.configure(&[("migration", "exclude", exclude)]).unwrap();
        } else {
            running.source.run(leave).unwrap();
        }
        running.producer = again(&running, &format!("without-{table}"));
    }
    // The excluded one's topic must be there all the same: the consumer may not have read it.
    assert_eq!(running.producer.terminate().unwrap(), Some(0));
    let topics = Topics::new(&running.migration.name, changelog::Lane::Forward);
    let topic = topics.table(&changelog::TableName::new("public", "total"));
    stack::shared().unwrap().broker.delete_topic(&topic).unwrap();
    let log = ended(&running.migration.service("producer").name("lost").start().unwrap());
    assert!(log.contains(&format!("topic {topic} was made anew or lost records")), "{log}");
}

#[test]
fn a_source_restored_from_an_older_copy_of_its_disk_is_refused() {
    let server = Server::start(Options::new("restored")).unwrap();
    let broker = &stack::shared().unwrap().broker;
    let migration = own("restored", &server, broker);
    migration.source().unwrap().run(LOAD_SCHEMA).unwrap();
    let producer = migration.service("producer").start().unwrap();
    streaming(&producer);
    barrier(broker, &migration.name, &migration.source().unwrap());
    assert_eq!(producer.terminate().unwrap(), Some(0));
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        assert!(std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
    };
    let (data, kept) = (server.data(), server.data().with_extension("kept"));
    server.stop().unwrap();
    copy(&data, &kept);
    server.start_again().unwrap();
    let producer = migration.service("producer").name("second").start().unwrap();
    streaming(&producer);
    let source = migration.source().unwrap();
    source.run("INSERT INTO log (v) SELECT g FROM generate_series(1, 20000) g").unwrap();
    barrier(broker, &migration.name, &source);
    assert_eq!(producer.terminate().unwrap(), Some(0));
    server.crash().unwrap();
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&kept, &data).unwrap();
    server.start_again().unwrap();
    let log = ended(&migration.service("producer").name("third").start().unwrap());
    assert!(log.contains("set back to an earlier state") && log.contains("hint: dflux cleanup"), "{log}");
}

#[test]
fn only_what_this_migrations_other_lane_wrote_is_left_out() {
    let running = Running::start("origins", "CREATE TABLE t (id int PRIMARY KEY, a text)", &[]);
    let (source, name) = (&running.source, &running.migration.name);
    let (ours, others) = (format!("{name}/reverse"), [format!("{name}x/reverse"), "another/forward".to_owned()]);
    let mut id = 0;
    for lane in others.iter().chain([&ours]) {
        let origin = changelog::origin::origin_name(lane);
        id += 1;
        source.run(&format!("SELECT pg_replication_origin_create('{origin}')")).unwrap();
        source.run(&format!("SELECT pg_replication_origin_session_setup('{origin}')")).unwrap();
        source.run(&format!("INSERT INTO t VALUES ({id}, 'origin {lane}')")).unwrap();
        source.run("SELECT pg_replication_origin_session_reset()").unwrap();
        source.run(&format!("SELECT pg_replication_origin_drop('{origin}')")).unwrap();
        id += 1;
        let message =
            format!("SELECT pg_logical_emit_message(true, '{}', '{lane}')", changelog::origin::MESSAGE_PREFIX);
        source.run(&format!("BEGIN; {message}; INSERT INTO t VALUES ({id}, 'message {lane}'); COMMIT")).unwrap();
    }
    running.barrier();
    let lane = running.lane(&["t"]);
    let written: Vec<String> =
        lane.events.values().flatten().map(|event| event.after.as_ref().unwrap()[1].clone().unwrap()).collect();
    let expected: Vec<String> =
        others.iter().flat_map(|lane| [format!("origin {lane}"), format!("message {lane}")]).collect();
    assert_eq!(written, expected);
    assert_eq!(running.producer.metric("dflux_producer_transactions_filtered_total").unwrap(), Some(2.0));
}

#[test]
fn keys_of_extensions_types_are_read_in_ranges_and_an_extensions_tables_are_not_read() {
    let migration = Migration::shared("extensions").unwrap();
    let source = migration.source().unwrap();
    source
        .run(
            "CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext; CREATE EXTENSION ltree;
             CREATE TABLE words (w ext.citext PRIMARY KEY); CREATE TABLE paths (p ltree PRIMARY KEY);
             CREATE TABLE mixed (w ext.citext, n int, PRIMARY KEY (w, n));
             CREATE DOMAIN word AS ext.citext; CREATE TABLE domains (w word PRIMARY KEY);
             CREATE TABLE patterns (w text NOT NULL); CREATE UNIQUE INDEX pattern ON patterns (w text_pattern_ops);
             ALTER TABLE patterns REPLICA IDENTITY USING INDEX pattern;
             INSERT INTO words SELECT CASE g % 2 WHEN 0 THEN upper(md5(g::text)) ELSE md5(g::text) END FROM generate_series(1, 3000) g;
             INSERT INTO domains SELECT w FROM words; INSERT INTO patterns SELECT w FROM words;
             INSERT INTO paths SELECT ('a.' || g % 7 || '.' || g)::ltree FROM generate_series(1, 3000) g;
             INSERT INTO mixed SELECT CASE g % 2 WHEN 0 THEN upper(w) ELSE lower(w) END, g
               FROM (SELECT md5((g / 10)::text) AS w, g FROM generate_series(1, 3000) g) AS x;
             CREATE TABLE belongs (id int PRIMARY KEY); INSERT INTO belongs VALUES (1); ALTER EXTENSION citext ADD TABLE belongs;
             ANALYZE",
        )
        .unwrap();
    let tables = ["words", "domains", "patterns", "paths", "mixed"];
    let target = migration.target().unwrap();
    for table in tables {
        let columns = if table == "mixed" { "w text, n int" } else { "w text" };
        target.run(&format!("CREATE TABLE {table} ({columns})")).unwrap();
    }
    migration.configure(&[("producer", "chunk_rows", 200.into())]).unwrap();
    let producer = migration.service("producer").start().unwrap();
    copied(&producer);
    let shared = stack::shared().unwrap();
    let lane = Lane::read(&shared.broker, &shared.registry, &migration.name, &[]);
    let digest = |table: &str| {
        format!("SELECT count(*) || md5(string_agg(r::text, ',' ORDER BY r::text COLLATE \"C\")) FROM {table} r")
    };
    for table in tables {
        assert!(lane.chunks().keys().filter(|id| id.0 == table).count() > 5, "{table} is not read in ranges");
        load_chunks(&shared.broker, &migration, &lane, table);
        assert_eq!(source.value(&digest(table)).unwrap(), target.value(&digest(table)).unwrap(), "{table}");
    }
    assert_eq!(source.number("SELECT count(*) FROM pg_publication_tables WHERE tablename = 'belongs'").unwrap(), 0);
    assert!(lane.chunks().keys().all(|id| id.0 != "belongs"));
}

#[test]
fn a_row_as_large_as_a_record_may_be_goes_through_with_the_defaults() {
    let running = Running::start("large", "CREATE TABLE t (id int PRIMARY KEY, a text)", &[]);
    // Larger ones come in pieces: `large`.
    let bytes = (8 << 20) - (128 << 10);
    running.source.run(&format!("INSERT INTO t VALUES (1, repeat('x', {bytes}))")).unwrap();
    running.barrier();
    let lane = running.lane(&["t"]);
    let event = lane.events.values().flatten().next().unwrap();
    assert_eq!(event.after.as_ref().unwrap()[1].as_ref().map(String::len), Some(bytes));
    // And it is read again at a start, as the last of its partition.
    assert_eq!(running.producer.terminate().unwrap(), Some(0));
    let producer = running.migration.service("producer").name("second").start().unwrap();
    streaming(&producer);
}
