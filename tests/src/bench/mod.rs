//! `./dev bench`: dflux beside PostgreSQL's own logical replication, in one run, on the same data.
//!
//! Each contest ([`contest`]) has databases, topics and a slot of its own, so that any of them runs alone (`--only`). Figures are
//! ratios to native; nothing here fails because a machine is slow.

mod contest;
mod tables;
mod validate;
mod values;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value};

use contest::{Contest, content};
use tests::Result;
use tests::measure;

use crate::demo::write_report;

/// What no service should hold more of, in megabytes; with values of 10 MB twice as much.
const RESIDENT_BAR: u64 = 256;
const RESIDENT_BAR_VALUES: u64 = 512;

#[derive(clap::Args)]
pub struct Arguments {
    /// pgbench scale: 100,000 accounts each
    #[arg(long, default_value_t = 50)]
    scale: u32,
    /// Rows of the wide table of mixed types, and of each multi-row transaction
    #[arg(long, default_value_t = 1_000_000)]
    rows: u64,
    /// TPC-B transactions of the backlog, four row changes each
    #[arg(long, default_value_t = 100_000)]
    transactions: u64,
    /// Seconds of each lag measurement
    #[arg(long, default_value_t = 20)]
    lag_seconds: u64,
    /// Rows of 10 MB
    #[arg(long, default_value_t = 30)]
    values: u64,
    /// Rows that one transaction inserts; 0: none
    #[arg(long, default_value_t = 10_000_000)]
    large_transaction: u64,
    /// Small tables of one database; 0: none
    #[arg(long, default_value_t = 5_000)]
    tables: u64,
    /// Only these; the backfill of what they need comes with them
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Phase>,
    /// Where the JSON report goes
    #[arg(long, default_value = ".run/bench.json")]
    json: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Phase {
    /// Backfill of pgbench's tables and the wide one together
    Backfill,
    Tpcb,
    Update,
    Insert,
    Lag,
    /// The wide table of mixed types alone, backfill and stream
    Wide,
    /// Values of 10 MB, backfill and stream
    Values,
    LargeTransaction,
    /// Thousands of small tables, from nothing to exact and then in the stream
    Tables,
    /// The validator beside other differs
    Validate,
}

impl Arguments {
    fn wants(&self, phase: Phase) -> bool {
        self.only.is_empty() || self.only.contains(&phase)
    }
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let mut report = Map::new();
    let wants = |phase| arguments.wants(phase);
    if [Phase::Backfill, Phase::Tpcb, Phase::Update, Phase::Insert, Phase::Lag].into_iter().any(wants) {
        pgbench(arguments, &mut report)?;
    }
    if wants(Phase::Wide) {
        wide(arguments, &mut report)?;
    }
    if wants(Phase::Values) && arguments.values > 0 {
        values::run(arguments.values, &mut report)?;
    }
    if wants(Phase::LargeTransaction) && arguments.large_transaction > 0 {
        large_transaction(arguments.large_transaction, &mut report)?;
    }
    if wants(Phase::Tables) && arguments.tables > 0 {
        tables::run(arguments.tables, &mut report)?;
    }
    if wants(Phase::Validate) {
        validate::run(arguments.rows, &mut report)?;
    }
    write_report(&arguments.json, &Value::Object(report))?;
    println!("report: {}", arguments.json.display());
    Ok(())
}

fn pgbench(arguments: &Arguments, report: &mut Map<String, Value>) -> Result<()> {
    println!("pgbench, scale {}, and a wide table of {} rows", arguments.scale, arguments.rows);
    let mut contest = Contest::open("bench", RESIDENT_BAR, report)?;
    let scale = arguments.scale.to_string();
    let source = &contest.migration.addresses.source;
    contest.servers.source.tool("pgbench", ["-i", "-q", "-s", &scale, source]).run()?;
    make_wide(&contest, arguments.rows)?;
    contest.source.run(&format!(
        "{BULK_TABLE}; {}; ALTER TABLE public.pgbench_history REPLICA IDENTITY FULL;",
        measure::PROBE_TABLE
    ))?;
    let rows = u64::from(arguments.scale) * 100_000 + arguments.rows;
    contest.backfill("backfill", "rows/s", rows as f64)?;
    if arguments.wants(Phase::Tpcb) {
        let transactions = arguments.transactions;
        contest.backlog("tpcb", "TPC-B backlog", transactions * 4, |contest| {
            contest.pgbench(None, 4, transactions, &[])
        })?;
    }
    let rows = arguments.rows;
    if arguments.wants(Phase::Update) {
        contest.backlog("update", "one statement updates", rows, |contest| {
            contest
                .source
                .run(&format!("UPDATE public.pgbench_accounts SET abalance = abalance + 1 WHERE aid <= {rows}"))
        })?;
    }
    if arguments.wants(Phase::Insert) {
        contest.backlog("insert", "one statement inserts", rows, |contest| insert_bulk(contest, rows))?;
    }
    if arguments.wants(Phase::Lag) {
        for tps in [500, 1_000] {
            contest.lag(tps, Duration::from_secs(arguments.lag_seconds))?;
        }
    }
    let tables = ["pgbench_accounts", "pgbench_history", "wide", "bulk"];
    contest.same(&tables.map(|table| content(&format!("public.{table}"))))
}

const BULK_TABLE: &str = "CREATE TABLE public.bulk (id bigint PRIMARY KEY, t text, at timestamptz, n numeric(20,4))";

fn insert_bulk(contest: &Contest<'_>, rows: u64) -> Result<()> {
    contest.source.run(&format!(
        "INSERT INTO public.bulk SELECT i, md5(i::text), now(), i * 1.5 FROM generate_series(1, {rows}) i"
    ))
}

fn make_wide(contest: &Contest<'_>, rows: u64) -> Result<()> {
    contest.source.run(&format!(
        "CREATE TABLE public.wide (id bigint PRIMARY KEY, n numeric(12,2), m numeric, t text, ts timestamptz, d date,
           u uuid, j jsonb, b bytea, f double precision, a int[], flag boolean);
         INSERT INTO public.wide SELECT i, i * 1.01, i / 7.0, md5(i::text), now() + i * interval '1 second', date '2020-01-01' + (i % 3000)::int,
           gen_random_uuid(), jsonb_build_object('i', i, 's', md5(i::text)), decode(md5(i::text), 'hex'), i / 3.0, ARRAY[i, i + 1]::int[], i % 2 = 0
           FROM generate_series(1::bigint, {rows}) i"
    ))
}

/// Every column gets another value.
const WIDE_CHANGE: &str = "UPDATE public.wide SET n = n + 1, m = m * 1.5, t = md5(t), ts = ts + interval '1 hour', d = d + 1,
    u = gen_random_uuid(), j = j || jsonb_build_object('k', md5(t)), b = decode(md5(t), 'hex'), f = f * 1.5, a = a || 7, flag = NOT flag";

fn wide(arguments: &Arguments, report: &mut Map<String, Value>) -> Result<()> {
    const CLIENTS: u64 = 4;
    /// A client deletes what it inserted so many transactions ago.
    const KEPT: u64 = 10;
    let rows = arguments.rows;
    println!("the wide table alone: {rows} rows");
    let mut contest = Contest::open("wide", RESIDENT_BAR, report)?;
    make_wide(&contest, rows)?;
    contest.backfill("wide_backfill", "rows/s", rows as f64)?;
    let changed = rows / 5;
    contest.backlog("wide_update", "one statement updates every column", changed, |contest| {
        contest.source.run(&format!("{WIDE_CHANGE} WHERE id <= {changed}"))
    })?;
    let script = format!(
        "\\set next :next + {CLIENTS}
\\set new {rows} + :next + :client_id
\\set gone :new - {CLIENTS} * {KEPT}
\\set id random(1, {rows})
BEGIN;
INSERT INTO public.wide SELECT :new, n, m, t, ts, d, u, j, b, f, a, flag FROM public.wide WHERE id = :id;
{} WHERE id = :id;
DELETE FROM public.wide WHERE id = :gone AND id > {rows};
COMMIT;
",
        WIDE_CHANGE.replace('\n', " ")
    );
    let transactions = arguments.transactions / 2 / CLIENTS * CLIENTS;
    let changes = (transactions * 3).saturating_sub(CLIENTS * KEPT);
    contest.backlog("wide_small", "small transactions on the wide table", changes, |contest| {
        contest.pgbench(Some(&script), CLIENTS, transactions, &["-D", "next=0"])
    })?;
    contest.same(&[content("public.wide")])
}

fn large_transaction(rows: u64, report: &mut Map<String, Value>) -> Result<()> {
    println!("one transaction of {rows} rows");
    let mut contest = Contest::open("large", RESIDENT_BAR, report)?;
    contest.source.run(&format!("{BULK_TABLE}; INSERT INTO public.bulk VALUES (0, '', now(), 0)"))?;
    contest.backfill("large_transaction_start", "rows/s", 1.0)?;
    contest.backlog("large_transaction", "one transaction inserts", rows, |contest| insert_bulk(contest, rows))?;
    contest.same(&[content("public.bulk")])
}
