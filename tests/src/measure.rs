//! Measures that the demo and the benchmark share, taken from outside: what an application would see, not what a service
//! says of itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::sql::Session;
use crate::{Failure, Result, wait};

/// The table that the lag probe writes on the source and looks for on the target.
pub const PROBE_TABLE: &str = "CREATE TABLE IF NOT EXISTS public.lag_probe (id bigint PRIMARY KEY)";

const PROBE_INTERVAL: Duration = Duration::from_millis(20);
/// The target is asked so often: what the figures can resolve. Without a pause the asking alone takes half a core from
/// those who are measured.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// How long a probe may be under way when the measurement ends.
const PROBE_DEADLINE: Duration = Duration::from_secs(30);

/// A set of durations in milliseconds.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Percentiles {
    pub samples: usize,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

impl Percentiles {
    pub fn of(mut samples: Vec<f64>) -> Percentiles {
        samples.sort_by(f64::total_cmp);
        let at = |share: f64| samples.get(((samples.len() as f64 * share).ceil() as usize).max(1) - 1).copied();
        Percentiles {
            samples: samples.len(),
            p50_ms: at(0.5).unwrap_or_default(),
            p99_ms: at(0.99).unwrap_or_default(),
            max_ms: at(1.0).unwrap_or_default(),
        }
    }
}

/// Measures lag (commit returned on the source to visible on the target) for a while: one row every 20 ms, and a
/// second session that looks for the newest row every millisecond.
///
/// # Errors
/// When a database does not answer, or a row has not arrived 30 s after the end.
pub fn lag(source: &str, target: &str, length: Duration) -> Result<Percentiles> {
    let (writer, reader) = (Session::connect(source)?, Session::connect(target)?);
    let first = writer.number("SELECT coalesce(max(id), 0) FROM public.lag_probe")? + 1;
    let committed: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let done = Arc::new(AtomicBool::new(false));
    let (book, end) = (committed.clone(), done.clone());
    let writing = std::thread::spawn(move || -> Result<()> {
        let began = Instant::now();
        let outcome = (|| {
            for id in first.. {
                if began.elapsed() > length {
                    break;
                }
                writer.run(&format!("INSERT INTO public.lag_probe VALUES ({id})"))?;
                book.lock().expect("no holder of this lock panics").push(Instant::now());
                // A steady rate: the next row is due at its place in the schedule, however long this one took.
                let due = PROBE_INTERVAL * u32::try_from(id - first + 1).unwrap_or(u32::MAX);
                wait::pace(due.saturating_sub(began.elapsed()));
            }
            Ok(())
        })();
        end.store(true, Ordering::Release);
        outcome
    });
    let mut seen = Vec::new();
    let mut deadline = None;
    loop {
        wait::pace(LOOK_INTERVAL);
        let arrived = reader.number("SELECT coalesce(max(id), 0) FROM public.lag_probe")? - first + 1;
        let now = Instant::now();
        let committed = committed.lock().expect("no holder of this lock panics");
        let arrived = usize::try_from(arrived).unwrap_or(0);
        // A row may be visible on the target before its commit has returned to the writer: that counts as no lag.
        for place in seen.len()..arrived {
            seen.push(committed.get(place).map_or(0.0, |at| now.duration_since(*at).as_secs_f64() * 1_000.0));
        }
        if done.load(Ordering::Acquire) {
            if seen.len() >= committed.len() {
                break;
            }
            if now > *deadline.get_or_insert(now + PROBE_DEADLINE) {
                let missing = committed.len() - seen.len();
                return Err(Failure::Other(format!("{missing} probes have not reached the target within 30 s")));
            }
        }
    }
    writing.join().map_err(|_| Failure::Other("the probe's writer panicked".to_owned()))??;
    Ok(Percentiles::of(seen))
}

/// Asks until `done` says so, and returns how long it took; the answer is looked at every few milliseconds.
///
/// # Errors
/// When asking fails, or not within `limit`.
pub fn seconds_until(what: &str, limit: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<f64> {
    let began = Instant::now();
    let ask = || match done() {
        Ok(true) => Ok(Ok(())),
        Ok(false) => Err("not yet"),
        Err(failure) => Ok(Err(failure)),
    };
    wait::closely(what, limit, ask).flatten()?;
    Ok(began.elapsed().as_secs_f64())
}

/// CPU seconds that a process and its children have used, those that have ended included. A figure that another load on the
/// machine disturbs less than any duration.
pub fn cpu_seconds(pid: i32) -> f64 {
    // USER_HZ, which Linux fixes at 100 for what it tells programs.
    const TICKS: f64 = 100.0;
    // After the name, which may hold anything: state, parent, …, utime, stime, cutime, cstime at 11 to 14.
    let fields = |pid: &str| -> Option<Vec<u64>> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(text.rsplit_once(')')?.1.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect())
    };
    let ticks = |fields: &[u64]| fields.get(11..15).map_or(0, |used| used.iter().sum::<u64>());
    let own = fields(&pid.to_string()).map_or(0, |fields| ticks(&fields));
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let children = all.filter_map(|entry| fields(entry.file_name().to_str()?));
    let living: u64 =
        children.filter(|fields| fields.get(1) == u64::try_from(pid).ok().as_ref()).map(|fields| ticks(&fields)).sum();
    (own + living) as f64 / TICKS
}

/// Millions with one decimal, thousands below: for people.
pub fn human(number: f64) -> String {
    if number >= 1e6 {
        format!("{:.2} M", number / 1e6)
    } else if number >= 1e3 {
        format!("{:.1} k", number / 1e3)
    } else {
        format!("{number:.0}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_of_children_counts() {
        let began = cpu_seconds(std::process::id() as i32);
        let loops = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";
        assert!(std::process::Command::new("sh").args(["-c", loops]).status().unwrap().success());
        assert!(cpu_seconds(std::process::id() as i32) > began);
    }

    #[test]
    fn percentiles_are_taken_from_the_sorted_samples() {
        let percentiles = Percentiles::of((1..=100).rev().map(f64::from).collect());
        assert_eq!((percentiles.p50_ms, percentiles.p99_ms, percentiles.max_ms), (50.0, 99.0, 100.0));
        assert_eq!(Percentiles::of(Vec::new()).samples, 0);
    }
}
