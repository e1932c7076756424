//! What a proof of equality costs: the validator beside the two best known differs and an md5 over the text of each row, on one
//! wide table of mixed types that both sides hold alike. Nothing runs between the two databases.

use std::time::Instant;

use serde_json::{Map, Value, json};

use tests::measure::{cpu_seconds, human};
use tests::process::Launch;
use tests::services;
use tests::stack::{self, Migration};
use tests::{Failure, Result, cache};

/// The same rows wherever it runs.
fn wide_sql(rows: u64) -> String {
    format!(
        "CREATE TABLE public.wide (id bigint PRIMARY KEY, n numeric(12,2), m numeric, t text, ts timestamptz, d date,
           u uuid, j jsonb, b bytea, f double precision, a int[], flag boolean);
         INSERT INTO public.wide SELECT i, i * 1.01, i / 7.0, md5(i::text), '2024-01-01'::timestamptz + i * interval '1 second',
           date '2020-01-01' + (i % 3000)::int, md5(i::text)::uuid, jsonb_build_object('i', i, 's', md5(i::text)),
           decode(md5(i::text), 'hex'), i / 3.0, ARRAY[i, i + 1]::int[], i % 2 = 0 FROM generate_series(1::bigint, {rows}) i;
         VACUUM ANALYZE public.wide"
    )
}

/// The alias is no column's name: that would be the column's text alone.
const MD5: &str =
    "SELECT count(*), sum(('x' || left(md5(whole::text), 16))::bit(64)::bigint) FROM public.wide AS whole";

/// Wall clock, and CPU of the source's server, of the target's, and of the program: all in seconds.
struct Took {
    seconds: f64,
    source: f64,
    target: f64,
}

pub fn run(rows: u64, report: &mut Map<String, Value>) -> Result<()> {
    println!("validation of a wide table of {rows} rows, equal on both sides");
    let servers = stack::shared()?;
    let migration = Migration::shared("validate")?;
    let (source, target) = (migration.source()?, migration.target()?);
    for session in [&source, &target] {
        for statement in wide_sql(rows).split(';') {
            session.run(statement)?;
        }
    }
    let addresses = &migration.addresses;
    let pid = |server: &tests::postgres::Server| server.pid().unwrap_or(0);
    let took = |work: &dyn Fn() -> Result<()>| -> Result<Took> {
        let cpu = || (cpu_seconds(pid(&servers.source)), cpu_seconds(pid(&servers.target)));
        let (before, began) = (cpu(), Instant::now());
        work()?;
        let (seconds, after) = (began.elapsed().as_secs_f64(), cpu());
        Ok(Took { seconds, source: after.0 - before.0, target: after.1 - before.1 })
    };
    let migration = &migration;
    let check = |levels: &'static str, code: i32| {
        move || {
            services::run("validator", &migration.config(), ["check", "--levels", levels])?
                .expect_code(code)
                .map(|_| ())
        }
    };
    let differ = |part: &'static str, module: &'static str| {
        move || {
            let python = cache::part(&[part])?.join("bin/python");
            let columns = ["-c", "n", "-c", "t", "-c", "ts", "-c", "d", "-c", "u", "-c", "f", "-c", "flag", "-c", "m"];
            let both = ["-m", module, &addresses.source, "wide", &addresses.target, "wide", "-k", "id", "--stats"];
            let arguments = both.into_iter().chain(columns).map(str::to_owned);
            Launch::new(part, python, &migration.folder).arguments(arguments).run().map(|_| ())
        }
    };
    let md5 = || {
        std::thread::scope(|scope| {
            let other = scope.spawn(|| migration.source()?.rows(MD5));
            let here = migration.target()?.rows(MD5)?;
            let there = other.join().map_err(|_| Failure::Other("md5 on the source".into()))??;
            if here == there { Ok(()) } else { Err(Failure::Other(format!("md5: {here:?} {there:?}"))) }
        })
    };
    let contenders: [(&str, &dyn Fn() -> Result<()>); 5] = [
        ("dflux_levels_0_to_2", &check("0,1,2", 0)),
        ("dflux_all_levels", &check("0,1,2,3,4,5", 0)),
        ("md5_of_row_text", &md5),
        ("reladiff", &differ("reladiff", "reladiff")),
        ("data_diff", &differ("data-diff", "data_diff")),
    ];
    let mut figures = Map::new();
    let mut best = f64::INFINITY;
    for (name, work) in contenders {
        // What the shared buffers and the part's first download take is nobody's figure.
        match work() {
            Err(failure) if !name.starts_with("dflux") => {
                let why = failure.to_string();
                println!(
                    "  {name} fails on this table: {}",
                    why.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("")
                );
                figures.insert(name.into(), json!({"failed": true}));
                continue;
            }
            warm => warm?,
        }
        let Took { seconds, source, target } = took(work)?;
        println!(
            "  {name}: {} rows/s; CPU of the source {source:.1} s, of the target {target:.1} s",
            human(rows as f64 / seconds)
        );
        figures.insert(name.into(), json!({"rows_per_second": rows as f64 / seconds, "source_cpu_seconds": source, "target_cpu_seconds": target}));
        if name == "dflux_levels_0_to_2" {
            best = seconds;
        } else if name != "dflux_all_levels" {
            println!("    levels 0 to 2 take 1/{:.1} of that", seconds / best);
        }
    }
    target.run(&format!("UPDATE public.wide SET t = upper(t) WHERE id = {}", rows / 3 * 2))?;
    let located = took(&check("0,1,2", 1))?;
    println!("  one wrong row found and named in {:.1} s", located.seconds);
    figures.insert("one_wrong_row_seconds".into(), json!(located.seconds));
    report.insert("validate".into(), Value::Object(figures));
    Ok(())
}
