//! Dates, times and intervals, as PostgreSQL prints them under ISO style. Pure.

use super::Cause;

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;

/// A point in time; what the type does not have is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    pub year: i64,
    pub month: i64,
    pub day: i64,
    /// Since midnight, in microseconds, as shown.
    pub time: i64,
    /// Seconds east of UTC, if shown.
    pub zone: Option<i64>,
}

impl Moment {
    /// None for infinity and what is no date or time.
    pub fn parse(text: &str) -> Option<Moment> {
        let (text, bc) = text.strip_suffix(" BC").map_or((text, false), |text| (text, true));
        let (date, time) = match text.split_once(' ') {
            Some((date, time)) => (date, time),
            None if text.contains(':') => ("", text),
            None => (text, ""),
        };
        let (mut year, mut month, mut day) = (1970, 1, 1);
        if !date.is_empty() {
            let mut parts = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
            (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
            if bc {
                year = 1 - year;
            }
        }
        let at = time.rfind(['+', '-']);
        let (clock, zone) = at.map_or((time, None), |at| (&time[..at], Some(&time[at..])));
        let zone = match zone {
            Some(zone) => Some(clock_micros(&zone[1..])? / SECOND * if zone.starts_with('-') { -1 } else { 1 }),
            None => None,
        };
        let time = if clock.is_empty() { 0 } else { clock_micros(clock)? };
        Some(Moment { year, month, day, time, zone })
    }

    /// Microseconds since 1970-01-01 UTC.
    pub fn micros(&self) -> Option<i64> {
        // Days of the civil calendar, years from March on.
        let (year, month) = if self.month > 2 { (self.year, self.month - 3) } else { (self.year - 1, self.month + 9) };
        let era = year.div_euclid(400);
        let of_era = year.rem_euclid(400);
        let days =
            era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + (153 * month + 2) / 5 + self.day - 1 - 719_468;
        days.checked_mul(DAY)?.checked_add(self.time)?.checked_sub(self.zone.unwrap_or(0) * SECOND)
    }

    /// Whether clocks of the northern temperate zones may be put forward on this day, and whether they are for certain.
    pub fn summer(&self) -> (bool, bool) {
        let day = self.month * 100 + self.day;
        ((308..=1107).contains(&day), (401..=1024).contains(&day))
    }
}

/// `hh`, `hh:mm`, `hh:mm:ss.ffffff` in microseconds.
fn clock_micros(text: &str) -> Option<i64> {
    let mut parts = text.split(':');
    let hours: i64 = parts.next()?.parse().ok()?;
    let minutes: i64 = parts.next().map_or(Some(0), |part| part.parse().ok())?;
    let seconds = parts.next().unwrap_or("0");
    let (whole, fraction) = seconds.split_once('.').unwrap_or((seconds, ""));
    let fraction: i64 = format!("{fraction:0<6}").get(..6)?.parse().ok()?;
    Some(((hours * 60 + minutes) * 60 + whole.parse::<i64>().ok()?) * SECOND + fraction)
}

/// Microseconds since 1970-01-01 UTC of a date or time; none for infinity.
pub fn micros(text: &str) -> Option<i64> {
    Moment::parse(text)?.micros()
}

/// Microseconds that the target is later by.
pub fn shift(source: &str, target: &str) -> Option<i64> {
    micros(target)?.checked_sub(micros(source)?)
}

pub fn of(name: &str, source: &str, target: &str) -> Vec<Cause> {
    if source.ends_with("infinity") {
        return vec!["infinity_lost".into()];
    }
    if target.ends_with("infinity") {
        return vec!["date_became_infinity".into()];
    }
    let (Some(a), Some(b)) = (Moment::parse(source), Moment::parse(target)) else { return Vec::new() };
    let mut causes = Vec::new();
    if a.year <= 0 && b.year > 0 && (1 - a.year == b.year || -a.year == b.year) {
        causes.push("bc_lost".into());
    }
    let shown = (a.year, a.month, a.day, a.time) == (b.year, b.month, b.day, b.time);
    if a.zone.is_some() && shown {
        causes.push(if b.zone.is_none() { "time_zone_dropped".into() } else { "time_zone_changed".into() });
    }
    if (a.month, a.day, a.time) == (b.month, b.day, b.time) && a.year != b.year && a.year > 0 && b.year > 0 {
        let century = a.year.rem_euclid(100) == b.year.rem_euclid(100);
        causes.push(if century { "century_changed".into() } else { "year_changed".into() });
    }
    if (a.year, a.month, a.day, a.time) == (b.year, b.day, b.month, b.time) && a.month != a.day {
        causes.push("day_and_month_swapped".into());
    }
    let (Some(from), Some(to)) = (a.micros(), b.micros()) else { return causes };
    if name == "timetz" && from == to && !shown {
        causes.push("time_zone_normalised".into());
    }
    if to == 0 && from.abs() > 2 * DAY {
        causes.push("became_1970".into());
    }
    causes.extend(precision(from, to));
    let shift = to - from;
    if shift != 0 && shift % DAY == 0 && shift.abs() <= 31 * DAY {
        causes.push(Cause::with("day_shifted", "by ", shift / DAY, " days"));
    } else if shift != 0 && shift % (900 * SECOND) == 0 && shift.abs() <= DAY + 2 * 3600 * SECOND {
        causes.push(Cause::with("time_shifted", "by ", shift / SECOND, " s"));
    }
    causes
}

/// What coarser units have left. Of one value several may fit, and cut and rounded be the same; of many they do not.
fn precision(from: i64, to: i64) -> Vec<Cause> {
    let units = [(1_000, "to milliseconds"), (SECOND, "to seconds"), (60 * SECOND, "to minutes"), (DAY, "to days")];
    let cut = |unit: i64| from.div_euclid(unit) * unit == to || from / unit * unit == to;
    let fitting = units.into_iter().filter(|(unit, _)| from % unit != 0).flat_map(|(unit, words)| {
        let both = [("time_truncated", cut(unit)), ("time_rounded", rounded(from, unit) == to)];
        both.into_iter().filter(|(_, fits)| *fits).map(move |(name, _)| Cause::saying(name, words))
    });
    fitting.collect()
}

fn rounded(micros: i64, unit: i64) -> i64 {
    (micros + unit / 2).div_euclid(unit) * unit
}

/// Months, days, microseconds of PostgreSQL's own style, as in `1 year 2 mons -3 days +04:05:06.7`.
fn interval(text: &str) -> Option<(i64, i64, i64)> {
    let (mut months, mut days, mut micros) = (0, 0, 0);
    let mut words = text.split(' ');
    while let Some(word) = words.next() {
        if word.contains(':') {
            let (sign, clock) = word.strip_prefix('-').map_or((1, word.trim_start_matches('+')), |clock| (-1, clock));
            micros = sign * clock_micros(clock)?;
            continue;
        }
        let number: i64 = word.parse().ok()?;
        match words.next()? {
            "year" | "years" => months += 12 * number,
            "mon" | "mons" => months += number,
            "day" | "days" => days += number,
            _ => return None,
        }
    }
    Some((months, days, micros))
}

pub fn of_intervals(source: &str, target: &str) -> Vec<Cause> {
    let (Some(a), Some(b)) = (interval(source), interval(target)) else { return Vec::new() };
    let micros = |(months, days, micros): (i64, i64, i64)| (months * 30 + days).checked_mul(DAY)?.checked_add(micros);
    let mut causes = Vec::new();
    if micros(a).is_some() && micros(a) == micros(b) {
        causes.push(if a.0 == b.0 {
            Cause::saying("interval_normalised", "24 hours and days")
        } else {
            Cause::saying("interval_normalised", "months and days")
        });
    }
    if (a.0, a.1) == (b.0, b.1) {
        causes.extend(precision(a.2, b.2));
    }
    if a == (-b.0, -b.1, -b.2) {
        causes.push("sign_changed".into());
    }
    causes
}
