//! Thousands of small tables: what each costs at the start, and when changes come to all of them.

use serde_json::{Map, Value};

use tests::Result;

use super::RESIDENT_BAR;
use super::contest::Contest;

const SCHEMAS: u64 = 10;
const ROWS: u64 = 5;
const CHANGES: u64 = 20_000;
/// Tables that one transaction of the source makes: its locks are bounded.
const MADE_TOGETHER: u64 = 500;

pub fn run(tables: u64, report: &mut Map<String, Value>) -> Result<()> {
    println!("{tables} small tables in {SCHEMAS} schemas");
    let mut contest = Contest::open("many", RESIDENT_BAR, report)?;
    contest.migration.configure(&[("migration", "tables", vec!["many_*.*"].into())])?;
    for schema in 0..SCHEMAS {
        contest.source.run(&format!("CREATE SCHEMA many_{schema}"))?;
    }
    for first in (0..tables).step_by(MADE_TOGETHER as usize) {
        let made = (first..tables.min(first + MADE_TOGETHER)).map(|table| {
            let name = name(table);
            format!(
                "CREATE TABLE {name} (id int PRIMARY KEY, n bigint NOT NULL, t text, at timestamptz NOT NULL DEFAULT now());
                 INSERT INTO {name} SELECT i, 0, md5(i::text) FROM generate_series(1, {ROWS}) i;"
            )
        });
        contest.source.run(&made.collect::<String>())?;
    }
    contest.command("tables_assess", &["assess"])?;
    contest.backfill("tables_backfill", "tables/s", tables as f64)?;
    contest.backlog("tables_stream", "small transactions over all tables", CHANGES, |contest| {
        contest.source.run(&format!(
            "DO $$ BEGIN FOR i IN 1..{CHANGES} LOOP
               EXECUTE format('UPDATE many_%s.t_%s SET n = n + 1, t = md5(t) WHERE id = %s', p % {SCHEMAS}, p, 1 + i % {ROWS})
                 FROM (SELECT floor(random() * {tables})::int AS p) AS picked;
               COMMIT;
             END LOOP; END $$"
        ))
    })?;
    contest.running("tables_status", |contest| contest.command("tables_status", &["status"]))?;
    // One hash of all of them: a query that names thousands of tables would be another benchmark.
    contest.same(&[
        "SELECT count(*) || ' ' || sum(hashtextextended(query_to_xml(format('SELECT * FROM %I.%I ORDER BY 1',
        schemaname, tablename), false, false, '')::text, 0)) FROM pg_tables WHERE schemaname LIKE 'many%'"
            .to_owned(),
    ])
}

fn name(table: u64) -> String {
    format!("many_{}.t_{table}", table % SCHEMAS)
}
