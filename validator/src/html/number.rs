//! Numbers, times and sizes as the page writes them. Pure.

use crate::statistics::Measure;
use changelog::text::civil_from_days;

/// Between groups of three digits: narrow, and no line breaks there.
const GROUP: char = '\u{202f}';

/// `1 234 567`.
pub fn count(number: u64) -> String {
    grouped(&number.to_string())
}

pub fn known(number: Option<u64>) -> String {
    number.map_or_else(|| "–".to_owned(), count)
}

/// `1 row`, `2 rows`.
pub fn counted(number: u64, one: &str, several: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { several })
}

/// Digits, perhaps with a sign in front and places behind.
fn grouped(text: &str) -> String {
    let (whole, places) = text.split_once('.').map_or((text, None), |(whole, places)| (whole, Some(places)));
    let digits = whole.trim_start_matches('-');
    let mut written = String::from(if whole.starts_with('-') { "−" } else { "" });
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) && digits.len() > 4 {
            written.push(GROUP);
        }
        written.push(digit);
    }
    if let Some(places) = places {
        written.push('.');
        written.push_str(places);
    }
    written
}

/// With so many significant digits, without zeros at the end.
pub fn significant(number: f64, digits: usize) -> String {
    if number == 0.0 || !number.is_finite() {
        return if number == 0.0 { "0".into() } else { number.to_string() };
    }
    let magnitude = number.abs().log10().floor() as i32;
    let digits = digits.max(1) as i32;
    if !(-5..18).contains(&magnitude) {
        let text = format!("{number:.*e}", (digits - 1) as usize);
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        return format!("{}e{exponent}", trimmed(mantissa).replace('-', "−"));
    }
    if magnitude + 1 > digits {
        let unit = 10_f64.powi(magnitude + 1 - digits);
        return grouped(&format!("{:.0}", (number / unit).round() * unit));
    }
    grouped(trimmed(&format!("{number:.*}", (digits - 1 - magnitude).clamp(0, 20) as usize)))
}

fn trimmed(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

/// How a statistic of a column is written.
#[derive(Clone, Copy, Debug)]
pub struct Unit<'a> {
    pub measure: Measure,
    pub type_name: &'a str,
}

impl Unit<'_> {
    fn is_of_the_day(self) -> bool {
        self.type_name.starts_with("time") && !self.type_name.starts_with("timestamp")
    }

    fn is_date(self) -> bool {
        self.type_name.starts_with("date")
    }

    /// What the axis of a plot is called.
    pub fn axis(self) -> &'static str {
        match self.measure {
            Measure::Number => "value",
            Measure::Seconds if self.is_of_the_day() => "time of day",
            Measure::Seconds if self.is_date() => "date",
            Measure::Seconds => "time (UTC)",
            Measure::Category => "label",
            Measure::Length => "length in characters",
        }
    }

    pub fn written(self, value: f64) -> String {
        match self.measure {
            Measure::Seconds if self.is_of_the_day() => clock(value),
            Measure::Seconds if self.is_date() => date(value),
            Measure::Seconds => format!("{} {}", date(value), clock(value.rem_euclid(86_400.0))),
            Measure::Number | Measure::Category | Measure::Length => significant(value, 7),
        }
    }

    /// Labels of these values, as short as tells them apart.
    pub fn ticks(self, values: &[f64]) -> Vec<String> {
        let all = |write: &dyn Fn(f64) -> String| values.iter().map(|value| write(*value)).collect::<Vec<String>>();
        if self.measure != Measure::Seconds {
            let distinct = |labels: &Vec<String>| labels.windows(2).all(|pair| pair[0] != pair[1]);
            let tries = (3..=17).map(|digits| all(&|value| significant(value, digits)));
            return tries.into_iter().find(distinct).unwrap_or_else(|| all(&|value| significant(value, 17)));
        }
        let span = values.last().zip(values.first()).map_or(0.0, |(last, first)| last - first);
        if self.is_of_the_day() {
            return all(&clock);
        }
        if span >= 3.0 * 86_400.0 || self.is_date() {
            return all(&date);
        }
        all(&|value| format!("{} {}", &date(value)[5..], &clock(value.rem_euclid(86_400.0))[..5]))
    }
}

/// `2026-11-28`, of seconds since 1970.
pub fn date(seconds: f64) -> String {
    let (year, month, day) = civil_from_days((seconds / 86_400.0).floor() as i64);
    if year > 0 { format!("{year:04}-{month:02}-{day:02}") } else { format!("{:04}-{month:02}-{day:02} BC", 1 - year) }
}

fn clock(seconds: f64) -> String {
    let whole = seconds.floor();
    let (of_day, fraction) = (whole as i64, seconds - whole);
    let mut text = format!("{:02}:{:02}:{:02}", of_day / 3600, of_day / 60 % 60, of_day % 60);
    if fraction >= 0.0005 {
        text.push_str(trimmed(&format!("{fraction:.3}")).trim_start_matches('0'));
    }
    text
}

/// `2026-11-28 09:21:50 UTC`, of microseconds since 1970.
pub fn instant(micros: i64) -> String {
    let seconds = micros.div_euclid(1_000_000);
    format!("{} {} UTC", date(seconds as f64), clock(seconds.rem_euclid(86_400) as f64))
}

/// `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match seconds {
        _ if seconds < 10.0 => format!("{seconds:.1} s"),
        _ if whole < 120 => format!("{whole} s"),
        _ if whole < 7_200 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole / 60 % 60),
    }
}

pub fn milliseconds(milliseconds: f64) -> String {
    match milliseconds {
        _ if milliseconds < 10.0 => format!("{milliseconds:.1} ms"),
        _ if milliseconds < 1000.0 => format!("{milliseconds:.0} ms"),
        _ => duration(milliseconds / 1000.0),
    }
}

pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "kB", "MB", "GB", "TB"];
    let mut size = bytes as f64;
    let mut unit = 0;
    while size >= 1000.0 && unit + 1 < UNITS.len() {
        size /= 1000.0;
        unit += 1;
    }
    format!("{} {}", significant(size, 3), UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_reading() {
        let plain = |text: String| text.replace(GROUP, " ");
        for (number, digits, written) in [
            (0.0, 3, "0"),
            (1234567.0, 7, "1 234 567"),
            (1234567.0, 3, "1 230 000"),
            (-1234.5678, 6, "−1234.57"),
            (0.1, 3, "0.1"),
            (0.000012345, 3, "0.0000123"),
            (1.5e30, 3, "1.5e30"),
            (-1e308, 3, "−1e308"),
            (1e-20, 3, "1e-20"),
        ] {
            assert_eq!(plain(significant(number, digits)), written, "{number}");
        }
        assert_eq!((plain(count(1000)), plain(count(12_345_678))), ("1000".into(), "12 345 678".into()));
        assert_eq!((bytes(0), bytes(999), bytes(1_500_000)), ("0 bytes".into(), "999 bytes".into(), "1.5 MB".into()));
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(instant(1_795_857_710_000_000), "2026-11-28 09:21:50 UTC");
        assert_eq!((date(-86_400.0), date(951_782_400.0)), ("1969-12-31".into(), "2000-02-29".into()));
        assert_eq!(date(-63_517_824_000.0), "0044-03-15 BC");
        assert_eq!(
            (duration(0.44), duration(75.2), duration(200.0)),
            ("0.4 s".into(), "75 s".into(), "3 min 20 s".into())
        );
        assert_eq!(clock(45_000.25), "12:30:00.25");
    }

    #[test]
    fn ticks_are_told_apart() {
        let number = Unit { measure: Measure::Number, type_name: "bigint" };
        assert_eq!(number.ticks(&[1.0, 1.5, 2.0]), ["1", "1.5", "2"]);
        let labels = number.ticks(&[9_007_199_254_740_000.0, 9_007_199_254_741_000.0]);
        assert_ne!(labels[0], labels[1]);
        let times = Unit { measure: Measure::Seconds, type_name: "timestamp with time zone" };
        assert_eq!(times.ticks(&[0.0, 3600.0]), ["01-01 00:00", "01-01 01:00"]);
        assert_eq!(times.ticks(&[0.0, 864_000.0]), ["1970-01-01", "1970-01-11"]);
        assert_eq!(
            Unit { measure: Measure::Seconds, type_name: "time without time zone" }.ticks(&[60.0]),
            ["00:01:00"]
        );
    }
}
