//! A round: definitions, then every table range by range, then the report. It is read from top to bottom, in somewhat over 600 lines.
//!
//! ```text
//! watch (the service) ── round ── table ─┬─ delta (what is covered, what has changed)
//!                                        └─ ranges ── attempt
//! ```

mod delta;
mod watch;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use changelog::origin::lane_name;
use changelog::{Lane, Lsn, TableName};
use futures_util::future::try_join_all;
use service::config::Migration;
use service::registry::RegistryClient;
use service::retry::Backoff;
use service::{Config, Shutdown};
use tokio::sync::Mutex;

use crate::attempt::{self, Online, Pair, Subject, Verified};
use crate::canonical::{Field, HashLane, Layout, Scan};
use crate::config::{ATTEMPTS_MAX, PAIRS, Settings};
use crate::coverage::Coverage;
use crate::definition::{DatabaseDefinition, TableDefinition};
use crate::depth::Gathered;
use crate::difference::Explaining;
use crate::error::Remedy;
use crate::images::Decoders;
use crate::lane::{self, Bookkeeping};
use crate::level0::{self, Circumstances};
use crate::levels::Levels;
use crate::range::{Planner, Range, orders_agree};
use crate::report::{Finding, Report, TableReport};
use crate::selection::{self, Unit};
use crate::sequence::{self, Judged};
use crate::session::{Endpoint, Session};
use crate::settle::Unsettled;
use crate::tail::Tail;
use crate::verdict::Verdict;
use crate::{Error, catalog, observe, reader, statistics};

use self::delta::Delta;
pub use self::watch::run;

/// Once one wait for the lane was in vain, later ones in the same round are short.
const IMPATIENT: Duration = Duration::from_secs(2);
/// Of changed rows.
const SUMS: Scan = Scan { sums: true, counts: false, sample: None };
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// A row's, for a guess at how many a file holds; a wrong one makes the sample smaller, or it is thinned.
const ROW_BYTES: u64 = 100;

/// Compares the two databases of one configuration, as often as asked.
#[derive(Debug)]
pub struct Validator {
    config: Config,
    settings: Settings,
    source: Endpoint,
    target: Endpoint,
    tail: Option<Tail>,
    /// What full comparisons have proved, by table.
    covered: HashMap<String, Coverage>,
    shutdown: Shutdown,
}

/// What holds for all tables of a round.
struct Round<'a> {
    migration: &'a Migration,
    settings: &'a Settings,
    source: &'a DatabaseDefinition,
    target: &'a DatabaseDefinition,
    hashes: HashLane,
    online: Option<Online<'a>>,
    bookkeeping: Bookkeeping,
    sequences: Vec<Judged>,
    endpoints: (&'a Endpoint, &'a Endpoint),
    shutdown: &'a Shutdown,
    impatient: AtomicBool,
    delta: Option<Delta<'a>>,
}

/// What runs between the two databases.
enum Following {
    Lane,
    /// dflux is on the target, and its lane is still to come.
    NotBegun,
    None,
}

impl Validator {
    /// # Errors
    /// `Url`. Nothing is connected.
    pub fn new(config: Config, shutdown: Shutdown) -> Result<Validator, Error> {
        Ok(Validator {
            settings: Settings::of(&config),
            source: Endpoint::parse("source", &config.source.url)?,
            target: Endpoint::parse("target", &config.target.url)?,
            config,
            tail: None,
            covered: HashMap::new(),
            shutdown,
        })
    }

    /// Only these levels; whether values are shown.
    pub fn with(mut self, levels: Levels, show_values: bool) -> Validator {
        (self.settings.levels, self.settings.show_values) = (levels, show_values);
        self
    }

    /// Of the reverse lane: the database that the migration calls its target is the source, and the other way round.
    pub fn of_reverse_lane(mut self) -> Validator {
        std::mem::swap(&mut self.source, &mut self.target);
        self.settings.direction = Lane::Reverse;
        self.settings.lane = lane_name(&self.config.migration.name, Lane::Reverse);
        self.config.migration.publication = Lane::Reverse.own(&self.config.migration.publication);
        self
    }

    /// Takes from an earlier report what it proved.
    pub fn since(mut self, covered: HashMap<String, Coverage>) -> Validator {
        self.covered = covered;
        self
    }

    /// One round over all tables, or over one.
    ///
    /// # Errors
    /// What keeps the whole from being compared; what concerns one table is in its report.
    pub async fn check(&mut self, only: Option<&str>) -> Result<Report, Error> {
        if only.is_none_or(|only| self.covered.remove(only).is_none()) {
            // All, or a partition of one of them.
            self.covered.clear();
        }
        self.check_changed(only).await
    }

    /// As [`check`](Self::check), but of a table that matched before only the rows that have changed since.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub async fn check_changed(&mut self, only: Option<&str>) -> Result<Report, Error> {
        let began = Instant::now();
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64);
        tokio::try_join!(self.source.check(), self.target.check())?;
        let (mut source, mut target) = tokio::try_join!(self.source.open(), self.target.open())?;
        let online = match self.follow(&mut target).await? {
            Following::Lane => true,
            Following::None => false,
            // Comparing the two as they stand would call every row that is still to come a missing one.
            Following::NotBegun => return Ok(self.not_begun(started, began)),
        };
        let (of_source, of_target) = tokio::try_join!(
            catalog::read(&mut source, &self.config.migration.publication),
            catalog::read(&mut target, &self.config.migration.publication)
        )?;
        let hashes = choose_hashes(&mut source, &mut target).await?;
        let bookkeeping = if online {
            lane::bookkeeping(&mut target, &self.config.migration.name, &self.settings.lane).await?
        } else {
            Bookkeeping::default()
        };
        let settling = online.then_some((self.settings.lane.as_str(), self.settings.settle));
        let sequences = if self.settings.levels.has(0) {
            sequence::check((&mut source, &mut target), &self.config.migration, settling).await?
        } else {
            Vec::new()
        };
        let decoders = Decoders::new(RegistryClient::new(&self.config.registry.url));
        let tail = self.tail.as_ref().filter(|_| online);
        let delta = match online && !self.covered.is_empty() {
            true => self.delta(&mut source, &mut target).await?,
            false => None,
        };
        let round = Round {
            migration: &self.config.migration,
            settings: &self.settings,
            source: &of_source,
            target: &of_target,
            hashes,
            online: tail.map(|tail| Online { tail, lane: self.settings.lane.clone(), decoders: Mutex::new(decoders) }),
            bookkeeping,
            sequences,
            endpoints: (&self.source, &self.target),
            shutdown: &self.shutdown,
            impatient: AtomicBool::new(false),
            delta,
        };
        let (tables, through) = round.tables(only).await?;
        let lag = if online { lane::lag(&mut source, &mut target, &self.settings.lane).await? } else { None };
        let mode = if online { "online" } else { "offline" };
        let mut report = Report {
            started_at_micros: started,
            seconds: began.elapsed().as_secs_f64(),
            lag,
            ..Report::new(&self.config.migration.name, mode, tables)
        };
        if online {
            undivided_divergence(&mut report, &mut target, &self.settings.lane).await?;
        }
        report.conclude();
        for table in &report.tables {
            match &table.coverage {
                Some(coverage) => self.covered.insert(table.table.clone(), coverage.clone()),
                None => self.covered.remove(&table.table),
            };
        }
        if report.verdict == Verdict::Match && only.is_none() {
            report.verified_through = through.map(|lsn| lsn.to_string());
        }
        Ok(report)
    }

    /// Whether a lane runs between the two databases; then its topics are followed.
    async fn follow(&mut self, target: &mut Session) -> Result<Following, Error> {
        let installed = lane::installed(target).await?;
        if !installed || lane::read(target, &self.settings.lane).await?.is_none() {
            self.tail = None;
            return Ok(if installed { Following::NotBegun } else { Following::None });
        }
        if self.tail.as_ref().is_none_or(Tail::ended) {
            self.tail = None;
            self.tail = Tail::start(&self.config, self.settings.direction).await?;
        }
        Ok(if self.tail.is_some() { Following::Lane } else { Following::None })
    }

    fn not_begun(&self, started_at_micros: i64, began: Instant) -> Report {
        Report {
            verdict: Verdict::Inconclusive,
            reason: Some("the target is prepared and the lane has not begun: no row of it in dflux.lane".into()),
            started_at_micros,
            seconds: began.elapsed().as_secs_f64(),
            ..Report::new(&self.config.migration.name, "online", Vec::new())
        }
    }
}

/// The fast hash where both servers agree on it, else md5.
async fn choose_hashes(source: &mut Session, target: &mut Session) -> Result<HashLane, Error> {
    let mut seen = Vec::new();
    for lane in [HashLane::Extended, HashLane::Md5] {
        let (a, b) = tokio::try_join!(catalog::probe(source, lane), catalog::probe(target, lane))?;
        if a.is_some() && a == b {
            return Ok(lane);
        }
        seen.push(format!("{lane:?}: source {a:?}, target {b:?}"));
    }
    Err(Error::HashDiffers { detail: seen.join("; ") })
}

/// A divergence that the lane counted and no table's row names is a mismatch of the whole.
async fn undivided_divergence(report: &mut Report, target: &mut Session, lane: &str) -> Result<(), Error> {
    let counted = lane::read(target, lane).await?.map_or(0, |state| state.diverged);
    let named = report.tables.iter().any(|table| table.findings.iter().any(|finding| finding.cause == DIVERGENCE));
    if counted > 0 && !named {
        report.verdict = Verdict::Mismatch;
        report.reason = Some(format!("the consumer counted {counted} changes that found no row (dflux.lane.diverged)"));
    }
    Ok(())
}

/// Cause of changes that the consumer could not apply because their row was not there.
pub const DIVERGENCE: &str = "divergence";

impl Round<'_> {
    /// Reports of all selected tables, and the position through which all of them were verified.
    async fn tables(&self, only: Option<&str>) -> Result<(Vec<TableReport>, Option<Lsn>), Error> {
        let mut units = selection::units(&self.source.tables, self.migration);
        let schema = only.is_none() && self.settings.levels.has(0);
        let mut extra = if schema { self.extra_tables(&units) } else { Vec::new() };
        if only.is_none() {
            extra.extend(sequence::lone(&self.sequences, &units));
        }
        units.retain(|unit| only.is_none_or(|only| unit.holds(only)));
        if let (Some(only), true) = (only, units.is_empty()) {
            return Err(Error::NoSuchTable { table: only.to_owned() });
        }
        let mut pairs: Vec<Option<Pair>> = (0..PAIRS).map(|_| None).collect();
        let mut planner = None;
        let (mut reports, mut through) = (Vec::new(), None::<Lsn>);
        for unit in &units {
            let began = Instant::now();
            let mut report = TableReport::new(unit.table.table().to_string());
            for judged in self.sequences.iter().filter(|judged| judged.of(unit)) {
                judged.report(&mut report);
            }
            let verified = self.table(unit, &mut pairs, &mut planner, &mut report).await;
            match verified {
                Ok(verified) => through = through.into_iter().chain(verified).min(),
                Err(error) if error.remedy() == Remedy::Stop => return Err(error),
                Err(error) => {
                    // What the sessions were doing is unknown.
                    pairs.iter_mut().for_each(|pair| *pair = None);
                    planner = None;
                    report.failed(service::report(&error, service::Hint::hint(&error)).replace('\n', "; "));
                }
            }
            report.conclude();
            report.seconds = began.elapsed().as_secs_f64();
            observe::table_verified(&report);
            reports.push(report);
        }
        reports.extend(extra);
        Ok((reports, through))
    }

    /// Tables that only the target has. It may divide a partitioned table in other ways than the source.
    fn extra_tables(&self, units: &[Unit<'_>]) -> Vec<TableReport> {
        let compared = |table: &TableName| units.iter().any(|unit| unit.table.table() == *table);
        let extra = selection::members(&self.target.tables, self.migration).into_iter().filter(|chain| {
            self.source.table(&chain[0].table()).is_none() && !chain.iter().any(|above| compared(&above.table()))
        });
        let extra = extra.map(|chain| chain[0]);
        let reported = |table: &TableDefinition| {
            let mut report = TableReport::new(table.table().to_string());
            report.find(Finding::schema(None, "table_extra", "only the target has this table"));
            observe::table_verified(&report);
            report
        };
        extra.map(reported).collect()
    }

    /// All levels of one table. Yields the position through which it was verified.
    async fn table(
        &self,
        unit: &Unit<'_>,
        pairs: &mut [Option<Pair>],
        planner: &mut Option<Session>,
        report: &mut TableReport,
    ) -> Result<Option<Lsn>, Error> {
        let source = unit.table;
        let table = source.table();
        let Some(target) = self.target.table(&table) else {
            let awaited = match &self.online {
                Some(online) => lane::awaited(&mut self.endpoints.1.open().await?, &online.lane, &table).await?,
                None => None,
            };
            match awaited {
                Some(why) => report.inconclusive(why),
                None => report.find(Finding::schema(None, "table_missing", "only the source has this table")),
            }
            return Ok(None);
        };
        let levels = self.settings.levels;
        if levels.has(0) {
            self.definitions((source, target), report);
            self.partitions(unit, report);
        }
        if levels.has(2) {
            self.divergences(&table, report);
        }
        if self.online.is_some() && source.persistence == "u" {
            report.inconclusive("the table is unlogged: its changes are not replicated");
            return Ok(None);
        }
        let Some(mut subject) = self.subject(source, target) else {
            report.inconclusive("the two sides have no column, or not the whole key, in common");
            return Ok(None);
        };
        if !(1..=5).any(|level| levels.has(level)) {
            return Ok(None);
        }
        let covering = self.covering((source, target), pairs).await?;
        let changed = self.changed(&subject, covering.as_ref(), pairs).await?;
        if changed.is_some() {
            // Statistics of what happened to change say nothing of the table.
            (subject.source.scan, subject.target.scan) = (SUMS, SUMS);
        } else if levels.sample() && [self.source, self.target].iter().all(|database| database.encoding != "SQL_ASCII")
        {
            let mask = self.sample_mask(source, open(planner, self.endpoints.0).await?).await?;
            // The key hash of a row without a key is that of its values: of many equal rows the sample would hold all or none.
            let sample = (mask == 0 || !subject.source.keyless()).then_some(mask);
            (subject.source.scan.sample, subject.target.scan.sample) = (sample, sample);
        }
        let divisible = orders_agree(source, target);
        let (ranges, covering) = match changed {
            Some((ranges, coverage, since)) => {
                report.since = Some(since);
                (Planner::of(ranges), Some(coverage))
            }
            None => (Planner::new(self.settings.chunk_rows, divisible), covering),
        };
        let shared = Mutex::new(Shared { planner: ranges, session: planner, stop: false });
        let total = Mutex::new(Total { report, through: None, gathered: Gathered::default(), levels });
        // A small table is one range: one pair of sessions will do.
        let small =
            !divisible || (source.rows_estimate >= 0.0 && source.rows_estimate <= self.settings.chunk_rows as f64);
        let workers = if small { 1 } else { pairs.len() };
        let working = pairs.iter_mut().take(workers).map(|pair| self.ranges(&subject, &shared, &total, pair));
        try_join_all(working).await?;
        let Total { report, through, gathered, .. } = total.into_inner();
        let fields: Vec<String> = subject.source.fields.iter().map(|field| field.name.clone()).collect();
        let rows_source = report.rows_source.unwrap_or(0);
        let (key, show_values) = (subject.source.key.as_slice(), self.settings.show_values);
        let explaining = Explaining { source, target, fields: &fields, key, rows_source, show_values };
        gathered.conclude(&explaining, levels, report);
        if let Some(online) = self.online.as_ref().filter(|_| levels.has(2) && !report.wrong_rows.is_empty()) {
            report.traced = self.trace(online, &subject, pairs, &report.wrong_rows).await;
        }
        // What changed behind the topics' ends was not looked for.
        let reached = self.delta.as_ref().map(|delta| delta.through).filter(|_| report.since.is_some());
        let through = reached.or(through);
        let still = self.covering((source, target), pairs).await?.map(|now| now.fingerprint);
        report.coverage = covering
            .filter(|covering| still.as_ref() == Some(&covering.fingerprint))
            .zip(through)
            .filter(|_| levels.has(2))
            .map(|(coverage, through)| Coverage { through: through.to_string(), ..coverage });
        Ok(through)
    }

    /// A pair of sessions outside of any snapshot.
    async fn pair<'p>(&self, pairs: &'p mut [Option<Pair>]) -> Result<&'p mut Pair, Error> {
        let Some(place) = pairs.first_mut() else { return Err(Error::TailEnded) };
        close(place).await;
        match place {
            Some(pair) => Ok(pair),
            closed => Ok(closed.insert(self.open().await?)),
        }
    }

    async fn open(&self) -> Result<Pair, Error> {
        let (source, target) = tokio::try_join!(self.endpoints.0.open(), self.endpoints.1.open())?;
        Ok(Pair { source, target })
    }

    /// Which rows are sampled: by the size of the files, because a table that was never analysed has no count of rows.
    async fn sample_mask(&self, table: &TableDefinition, session: &mut Session) -> Result<i64, Error> {
        let bytes = reader::bytes(session, &table.table()).await?;
        Ok(statistics::mask_for((table.rows_estimate.max(0.0) as u64).max(bytes / ROW_BYTES)))
    }

    fn definitions(&self, (source, target): (&TableDefinition, &TableDefinition), report: &mut TableReport) {
        for finding in level0::compare(source, target, self.circumstances()) {
            report.find(finding);
        }
    }

    /// Changes that found no row, as the lane has counted them.
    fn divergences(&self, table: &TableName, report: &mut TableReport) {
        for (_, count, positions) in self.bookkeeping.divergences.iter().filter(|(name, ..)| name == table) {
            let mut finding = Finding::rows(2, None, DIVERGENCE, Vec::new());
            finding.count = *count;
            finding.detail = Some(format!("changes that found no row, at {}", positions.join(", ")));
            report.find(finding);
        }
    }

    fn circumstances(&self) -> Circumstances<'_> {
        Circumstances {
            source: self.source,
            target: self.target,
            post_data_pending: self.bookkeeping.post_data_pending,
            key_pending: self.bookkeeping.key_pending,
            lane: self.online.is_some(),
        }
    }

    /// Level 0 of the partitions that both sides have under one name.
    fn partitions(&self, unit: &Unit<'_>, report: &mut TableReport) {
        for source in &unit.partitions {
            let name = source.table();
            let findings = match self.target.table(&name) {
                Some(target) => level0::compare(source, target, self.circumstances()),
                None => {
                    vec![Finding::schema(None, "partition_missing", "the target divides the table otherwise").as_note()]
                }
            };
            for mut finding in findings {
                finding.detail = Some(format!("partition {name}: {}", finding.detail.unwrap_or_default()));
                report.find(finding);
            }
        }
    }

    /// The columns that both sides have, in the source's order.
    fn subject<'t>(&self, source: &'t TableDefinition, target: &TableDefinition) -> Option<Subject<'t>> {
        let common: Vec<&str> = source
            .columns
            .iter()
            .map(|column| column.name.as_str())
            .filter(|name| target.column(name).is_some())
            .collect();
        let key: Option<Vec<usize>> =
            source.key.iter().map(|name| common.iter().position(|column| column == name)).collect();
        let layout = |of: &TableDefinition, key: Vec<usize>| {
            let field = |name: &&str| {
                of.column(name).map(|column| Field { name: column.name.clone(), base: column.base.clone() })
            };
            let fields: Option<Vec<Field>> = common.iter().map(field).collect();
            let partitioned = of.partitioned();
            let scan = Scan { sums: self.settings.levels.has(2), counts: self.settings.levels.has(4), sample: None };
            Some(Layout { table: of.table(), fields: fields?, key, partitioned, lane: self.hashes, scan })
        };
        let key = key?;
        if common.is_empty() {
            return None;
        }
        Some(Subject { definition: source, source: layout(source, key.clone())?, target: layout(target, key)? })
    }

    /// One worker: takes ranges until there are none.
    async fn ranges(
        &self,
        subject: &Subject<'_>,
        shared: &Mutex<Shared<'_>>,
        total: &Mutex<Total<'_>>,
        pair: &mut Option<Pair>,
    ) -> Result<(), Error> {
        loop {
            // The guard must not live through the comparison: the other workers take their ranges meanwhile.
            let next = shared.lock().await.next(self, subject).await?;
            let Some(range) = next else { return Ok(()) };
            self.rest(self.endpoints.0.take_busy()).await;
            let unsettled = match self.range(subject, &range, pair).await? {
                Ok(verified) => {
                    total.lock().await.add(verified);
                    continue;
                }
                Err(unsettled) => unsettled,
            };
            let mut shared = shared.lock().await;
            let busy = matches!(unsettled, Unsettled::TooManyInFlight(_));
            if !busy || !shared.split(self, subject, &range).await? {
                shared.stop = true;
                total.lock().await.report.inconclusive(unsettled.to_string());
                return Ok(());
            }
        }
    }

    /// Rests so long that the source has no more to do for us than it may.
    async fn rest(&self, busy: Duration) {
        let rest = busy.mul_f64((PAIRS as f64 / self.settings.max_source_load - 1.0).max(0.0));
        tokio::select! {
            () = tokio::time::sleep(rest) => {}
            () = self.shutdown.wait() => {}
        }
    }

    /// One range, tried until something can be said of it, within bounds.
    async fn range(
        &self,
        subject: &Subject<'_>,
        range: &Range,
        pair: &mut Option<Pair>,
    ) -> Result<Result<Verified, Unsettled>, Error> {
        let settle = if self.impatient.load(Ordering::Relaxed) { IMPATIENT } else { self.settings.settle };
        let deadline = Instant::now() + settle;
        let mut backoff = Backoff::new(BACKOFF_MAX);
        let table = subject.source.table.to_string();
        for attempt in 1.. {
            let outcome = self.attempt(subject, range, pair, deadline).await;
            let last = attempt >= ATTEMPTS_MAX || Instant::now() >= deadline || self.shutdown.begun();
            match outcome {
                Ok(Ok(verified)) => {
                    observe::chunk_verified(verified.rows_source, verified.settled_by_event);
                    return Ok(Ok(verified));
                }
                Ok(Err(unsettled)) => {
                    observe::unsettled(&table, &unsettled);
                    close(pair).await;
                    let cut = matches!(unsettled, Unsettled::TooManyInFlight(_)) && attempt >= 2;
                    let lane_behind = matches!(unsettled, Unsettled::Lag { .. });
                    if lane_behind || matches!(unsettled, Unsettled::NotExact(_)) || last || cut {
                        self.impatient.fetch_or(lane_behind, Ordering::Relaxed);
                        return Ok(Err(unsettled));
                    }
                }
                Err(error) if error.remedy() == Remedy::Again && !last => {
                    tracing::debug!(table, %error, "trying again with new sessions");
                    *pair = None;
                }
                Err(error) => return Err(error),
            }
            backoff.wait(self.shutdown).await;
        }
        Ok(Err(Unsettled::TailBehind))
    }

    async fn attempt(
        &self,
        subject: &Subject<'_>,
        range: &Range,
        pair: &mut Option<Pair>,
        deadline: Instant,
    ) -> Result<Result<Verified, Unsettled>, Error> {
        let mut held = match pair.take() {
            Some(held) => held,
            None => self.open().await?,
        };
        let outcome = attempt::compare(&mut held, self.online.as_ref(), subject, range, deadline).await;
        if outcome.is_ok() {
            *pair = Some(held);
        }
        outcome
    }
}

/// Ends the snapshots before a pause; sessions that do not answer are given up.
async fn close(pair: &mut Option<Pair>) {
    if let Some(held) = pair {
        let closed = held.source.end().await.is_ok() && held.target.end().await.is_ok();
        if !closed {
            *pair = None;
        }
    }
}

/// One table's result so far.
struct Total<'a> {
    report: &'a mut TableReport,
    through: Option<Lsn>,
    gathered: Gathered,
    levels: Levels,
}

impl Total<'_> {
    fn add(&mut self, mut verified: Verified) {
        self.report.chunks += 1;
        self.report.rows_settled_by_event += verified.settled_by_event;
        *self.report.rows_source.get_or_insert(0) += verified.rows_source;
        *self.report.rows_target.get_or_insert(0) += verified.rows_target;
        self.through = self.through.into_iter().chain(verified.through).min();
        self.gathered.add(&mut verified);
        for finding in verified.findings.into_iter().filter(|finding| self.levels.has(finding.level)) {
            self.report.find(finding);
        }
    }
}

/// What the workers of one table share: whoever asks gets the next range.
struct Shared<'a> {
    planner: Planner,
    session: &'a mut Option<Session>,
    stop: bool,
}

impl Shared<'_> {
    async fn next(&mut self, round: &Round<'_>, subject: &Subject<'_>) -> Result<Option<Range>, Error> {
        if self.stop {
            return Ok(None);
        }
        let session = open(self.session, round.endpoints.0).await?;
        self.planner.next(session, &subject.source).await
    }

    async fn split(&mut self, round: &Round<'_>, subject: &Subject<'_>, range: &Range) -> Result<bool, Error> {
        let session = open(self.session, round.endpoints.0).await?;
        self.planner.split(session, &subject.source, range).await
    }
}

async fn open<'s>(session: &'s mut Option<Session>, endpoint: &Endpoint) -> Result<&'s mut Session, Error> {
    match session {
        Some(open) => Ok(open),
        closed => Ok(closed.insert(endpoint.open().await?)),
    }
}
