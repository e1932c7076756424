//! Rows of 10 MB: what a column of documents or images does to the memory of the services.

use serde_json::{Map, Value};

use tests::Result;

use super::RESIDENT_BAR_VALUES;
use super::contest::{Contest, content};

/// 10 MB of digits that no compression of PostgreSQL's makes smaller, another one in each row of `row`.
fn text(row: &str) -> String {
    format!("(SELECT string_agg(md5(random()::text || {row} || i), '') FROM generate_series(1, 327680) i)")
}

fn bytes(row: &str) -> String {
    format!(
        "(SELECT string_agg(decode(md5(random()::text || {row} || i), 'hex'), '') FROM generate_series(1, 655360) i)"
    )
}

pub fn run(rows: u64, report: &mut Map<String, Value>) -> Result<()> {
    println!("values of 10 MB: {rows} rows");
    let mut contest = Contest::open("values", RESIDENT_BAR_VALUES, report)?;
    let even = format!("CASE WHEN id % 2 = 0 THEN {} END", text("id"));
    let odd = format!("CASE WHEN id % 2 = 1 THEN {} END", bytes("id"));
    contest.source.run(&format!(
        "CREATE TABLE public.large (id int PRIMARY KEY, n bigint NOT NULL, t text, b bytea);
         INSERT INTO public.large SELECT id, 0, {even}, {odd} FROM generate_series(1, {rows}) id"
    ))?;
    contest.backfill("values_backfill", "rows/s", rows as f64)?;
    contest.backlog("values_update", "one statement updates the values", rows, |contest| {
        contest.source.run(&format!("UPDATE public.large SET t = {even}, b = {odd}"))
    })?;
    contest.backlog("values_insert", "a transaction each inserts the values", rows, |contest| {
        (rows + 1..=rows * 2).try_for_each(|id| {
            contest.source.run(&format!(
                "INSERT INTO public.large SELECT id, 0, {even}, {odd} FROM generate_series({id}, {id}) id"
            ))
        })
    })?;
    let transactions = 20_000;
    let script = format!("\\set id random(1, {rows})\nUPDATE public.large SET n = n + 1 WHERE id = :id;\n");
    contest.backlog("values_unchanged", "updates of another column", transactions, |contest| {
        contest.pgbench(Some(&script), 4, transactions, &[])
    })?;
    contest.same(&[content("public.large")])
}
