//! `dflux status --watch`: bars for the backfill, per table and in total, a line for the stream; on what is no terminal,
//! one line a look.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use service::{Config, Hint};

use super::progress::{Backfill, eta_seconds};
use super::{LaneStatus, Reader, Status};
use crate::Error;
use crate::assess::estimate::{duration, size};
use crate::error::Exit;

const LOOKS_EVERY: Duration = Duration::from_secs(1);
const LOOKS_EVERY_ELSEWHERE: Duration = Duration::from_secs(5);
/// More tables than a screen has lines: the largest that are not loaded are shown.
const BARS_MAX: usize = 15;
/// The weight of the newest look in the rate that is shown.
const SMOOTHING: f64 = 0.3;

/// Until it is interrupted.
///
/// # Errors
/// Those of the first look; later ones are shown, and it goes on.
pub async fn run(config: &Config) -> Result<Exit, Error> {
    let terminal = std::io::stderr().is_terminal();
    let mut reader = Reader::new(config);
    let mut screen = Screen::new();
    let mut status = reader.read().await?;
    loop {
        screen.rate.look(&mut status);
        if terminal {
            screen.show(&status);
        } else {
            println!("{}", line(&status));
        }
        let pause = if terminal { LOOKS_EVERY } else { LOOKS_EVERY_ELSEWHERE };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = tokio::signal::ctrl_c() => {
                screen.clear();
                return Ok(Exit::Done);
            }
        }
        match reader.read().await {
            Ok(next) => status = next,
            Err(error) => status.unreachable = vec![service::report(&error, error.hint())],
        }
    }
}

/// Rows per second, smoothed over the looks.
#[derive(Debug, Default)]
struct Rate {
    last: Option<(Instant, u64)>,
    per_second: Option<f64>,
}

impl Rate {
    fn look(&mut self, status: &mut Status) {
        for backfill in status.lanes.iter_mut().filter_map(|lane| lane.backfill.as_mut()) {
            let now = (Instant::now(), backfill.rows_loaded);
            if let Some((then, rows)) = self.last {
                let seconds = now.0.duration_since(then).as_secs_f64().max(0.001);
                let newest = now.1.saturating_sub(rows) as f64 / seconds;
                let smooth = |before: f64| before + SMOOTHING * (newest - before);
                self.per_second = Some(self.per_second.map_or(newest, smooth));
            }
            self.last = Some(now);
            backfill.rows_per_second = self.per_second;
            backfill.eta_seconds = eta_seconds(backfill.rows_loaded, backfill.rows_expected, self.per_second);
        }
    }
}

struct Screen {
    bars: MultiProgress,
    header: ProgressBar,
    total: Option<ProgressBar>,
    tables: HashMap<String, ProgressBar>,
    footer: ProgressBar,
    rate: Rate,
}

impl Screen {
    fn new() -> Screen {
        let bars = MultiProgress::new();
        let plain = || ProgressBar::new(0).with_style(style("{msg}"));
        let (header, footer) = (bars.add(plain()), bars.add(plain()));
        Screen { bars, header, total: None, tables: HashMap::new(), footer, rate: Rate::default() }
    }

    fn clear(&self) {
        let _ = self.bars.clear();
    }

    fn show(&mut self, status: &Status) {
        self.header.set_message(format!("migration {}: {}", status.migration, status.phase));
        let mut footer = Vec::new();
        for lane in &status.lanes {
            match &lane.backfill {
                Some(backfill) if backfill.chunks_loaded < backfill.chunks_planned || !backfill.completed => {
                    self.show_backfill(backfill);
                }
                _ => self.remove_bars(),
            }
            footer.push(stream_line(lane));
            if let Some(error) = &lane.error {
                footer.push(format!("error: {error}"));
                footer.extend(lane.hint.iter().map(|hint| format!("hint: {hint}")));
            }
        }
        let differences = super::differences(status);
        footer.extend(differences.into_iter().map(|(what, hint)| format!("{what}; hint: {hint}")));
        footer.extend(status.unreachable.iter().map(|part| format!("no answer: {part}")));
        self.footer.set_message(footer.join("\n"));
    }

    fn show_backfill(&mut self, backfill: &Backfill) {
        let mut open: Vec<_> = backfill.tables.iter().filter(|table| !table.loaded()).collect();
        open.sort_by_key(|table| std::cmp::Reverse(table.rows_expected()));
        open.truncate(BARS_MAX);
        self.tables.retain(|name, bar| {
            let stays = open.iter().any(|table| table.table == *name);
            if !stays {
                self.bars.remove(bar);
            }
            stays
        });
        for table in &open {
            let bars = &self.bars;
            let footer = &self.footer;
            let bar = self.tables.entry(table.table.clone()).or_insert_with(|| {
                let bar = ProgressBar::new(0).with_style(style("  {prefix:30!} {bar:30} {pos}/{len} rows {msg}"));
                let bar = bars.insert_before(footer, bar);
                bar.set_prefix(table.table.clone());
                bar
            });
            bar.set_length(table.rows_expected());
            bar.set_position(table.rows_loaded);
            bar.set_message(format!(
                "chunks {}/{} ({} on Kafka)",
                table.chunks_loaded, table.chunks_planned, table.chunks_copied
            ));
        }
        let (bars, footer) = (&self.bars, &self.footer);
        let total = self.total.get_or_insert_with(|| {
            bars.insert_before(
                footer,
                ProgressBar::new(0).with_style(style("  {prefix:30!} {bar:30} {percent}% {msg}")),
            )
        });
        total.set_prefix("all tables");
        total.set_length(backfill.rows_expected);
        total.set_position(backfill.rows_loaded);
        total.set_message(rate_text(backfill));
    }

    fn remove_bars(&mut self) {
        for (_, bar) in self.tables.drain() {
            self.bars.remove(&bar);
        }
        if let Some(bar) = self.total.take() {
            self.bars.remove(&bar);
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn rate_text(backfill: &Backfill) -> String {
    let rate = backfill.rows_per_second.map_or(String::new(), |rate| format!("{rate:.0} rows/s"));
    let left = backfill.eta_seconds.map_or(String::new(), |seconds| format!(", {} left", duration(seconds)));
    format!("{rate}{left}, {} on Kafka", size(backfill.bytes_copied))
}

fn stream_line(lane: &LaneStatus) -> String {
    let lag = lane.lag_ms.map_or("unknown".into(), |lag| format!("{lag:.0} ms"));
    let bytes = lane.lag_bytes.map_or("unknown".into(), |bytes| size(bytes.max(0) as u64));
    let at = lane.position.as_ref().map_or("-", |position| position.commit_lsn.as_str());
    format!(
        "  stream: lag {lag}, {bytes} of WAL, applied up to {at}, {} change(s), {} diverged",
        lane.changes_applied, lane.diverged
    )
}

fn line(status: &Status) -> String {
    let lanes = status.lanes.iter().map(|lane| {
        let backfill = lane.backfill.as_ref().map_or(String::new(), |backfill| {
            format!(
                "  backfill: {}/{} rows, {}/{} chunks, {};",
                backfill.rows_loaded,
                backfill.rows_expected,
                backfill.chunks_loaded,
                backfill.chunks_planned,
                rate_text(backfill)
            )
        });
        format!("{backfill}{}", stream_line(lane))
    });
    let lanes: Vec<String> = lanes.collect();
    format!(
        "{}:{}{}",
        status.phase,
        lanes.join(" "),
        status.unreachable.iter().map(|part| format!(" no answer: {part}")).collect::<String>()
    )
}
