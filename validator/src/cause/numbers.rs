//! Numbers: what is left of them after a type that holds less. Decimals are compared as digits and never as floats. Pure.

use super::Cause;

/// A finite decimal without what only shows its scale.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decimal {
    negative: bool,
    /// Without zeros at either end; empty for zero.
    digits: String,
    /// The power of ten of the last digit.
    exponent: i32,
    /// Digits shown behind the point.
    scale: i32,
}

impl Decimal {
    /// None for NaN, infinity and what is no number.
    pub fn parse(text: &str) -> Option<Decimal> {
        let (negative, rest) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
            None => (rest, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = format!("{whole}{fraction}");
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let scale = i32::try_from(fraction.len()).ok()?;
        let exponent = exponent.checked_sub(scale)?;
        let kept = digits.trim_end_matches('0');
        let exponent = exponent.checked_add(i32::try_from(digits.len() - kept.len()).ok()?)?;
        let kept = kept.trim_start_matches('0');
        let exponent = if kept.is_empty() { 0 } else { exponent };
        Some(Decimal { negative, digits: kept.to_owned(), exponent, scale })
    }

    /// Sign, digits and exponent, which are those of an equal number of another scale.
    pub fn without_scale(self) -> (bool, String, i32) {
        (self.negative && !self.digits.is_empty(), self.digits, self.exponent)
    }

    fn same(&self, other: &Decimal) -> bool {
        (self.negative || self.digits.is_empty(), &self.digits, self.exponent)
            == (other.negative || other.digits.is_empty(), &other.digits, other.exponent)
    }

    /// Cut to a scale, towards zero, and the first digit that was cut.
    fn cut(&self, scale: i32) -> (Decimal, u8) {
        let surplus = usize::try_from((-scale).saturating_sub(self.exponent)).unwrap_or(0);
        let padded = format!("{}{}", "0".repeat(surplus.saturating_sub(self.digits.len())), self.digits);
        let (kept, cut) = padded.split_at(padded.len() - surplus.min(padded.len()));
        let first = cut.bytes().next().unwrap_or(b'0');
        let kept_digits = kept.trim_end_matches('0');
        let exponent = -scale + (kept.len() - kept_digits.len()) as i32;
        let digits = kept_digits.trim_start_matches('0').to_owned();
        let exponent = if digits.is_empty() { 0 } else { exponent };
        (Decimal { negative: self.negative, digits, exponent, scale }, first)
    }

    /// One more in the last place of a scale, away from zero.
    fn next(&self, scale: i32) -> Option<Decimal> {
        let zeros = usize::try_from(self.exponent.checked_add(scale)?).ok().filter(|zeros| *zeros < 1000)?;
        let digits =
            format!("{}{}", self.digits, if self.digits.is_empty() { String::new() } else { "0".repeat(zeros) });
        let mut bytes = format!("0{digits}").into_bytes();
        for byte in bytes.iter_mut().rev() {
            if *byte < b'9' {
                *byte += 1;
                break;
            }
            *byte = b'0';
        }
        let sign = if self.negative { "-" } else { "" };
        Decimal::parse(&format!("{sign}{}e-{scale}", String::from_utf8_lossy(&bytes)))
    }
}

pub fn of(name: &str, source: &str, target: &str) -> Vec<Cause> {
    let special = |text: &str| matches!(text, "NaN" | "Infinity" | "-Infinity");
    match source {
        "NaN" => return vec!["nan_lost".into()],
        "Infinity" | "-Infinity" => return vec!["infinity_lost".into()],
        _ if special(target) => return vec!["not_a_finite_number".into()],
        _ => {}
    }
    let (Some(a), Some(b)) = (Decimal::parse(source), Decimal::parse(target)) else { return Vec::new() };
    if a.same(&b) {
        return vec![match a.scale.cmp(&b.scale) {
            std::cmp::Ordering::Equal => "negative_zero".into(),
            std::cmp::Ordering::Greater if a.digits.is_empty() && a.negative != b.negative => "negative_zero".into(),
            std::cmp::Ordering::Greater => {
                Cause::with("scale_lost", "", i64::from(a.scale - b.scale), " zeros at the end")
            }
            std::cmp::Ordering::Less => {
                Cause::with("scale_added", "", i64::from(b.scale - a.scale), " zeros at the end")
            }
        }];
    }
    let mut causes = Vec::new();
    if a.digits == b.digits && a.exponent == b.exponent {
        causes.push("sign_changed".into());
    }
    if a.digits == b.digits && a.negative == b.negative && !a.digits.is_empty() {
        let power = i64::from(b.exponent - a.exponent);
        causes.push(Cause::with("multiplied", "by 10 to the power of ", power, ""));
    }
    of_floats(name, source, (&a, &b), &mut causes);
    of_bits(source, target, &mut causes);
    causes
}

fn of_floats(name: &str, source: &str, (a, b): (&Decimal, &Decimal), causes: &mut Vec<Cause>) {
    let lost = || {
        let common = a.digits.bytes().zip(b.digits.bytes()).take_while(|(a, b)| a == b).count();
        (a.digits.len().saturating_sub(common)).max(1) as i64
    };
    let is = |text: String| Decimal::parse(&text).is_some_and(|float| float.same(b));
    let digits = a.digits.len() as i32 + a.exponent.max(0);
    if let Ok(double) = source.parse::<f64>()
        && double.is_finite()
    {
        let fifteen = is(format!("{double:.14e}"));
        if name == "float8" && fifteen {
            causes.push("fifteen_digits".into());
        } else if digits > 15 && (fifteen || is(format!("{double}")) || is(format!("{double:.16e}"))) {
            let integer = a.exponent >= 0;
            let cause = if integer { "integer_through_double" } else { "decimal_through_float8" };
            causes.push(Cause::with(cause, "", lost(), " digits lost"));
        }
        let single = double as f32;
        let wide = f64::from(single);
        let through = [format!("{single}"), format!("{single:.5e}"), format!("{wide}"), format!("{wide:.14e}")];
        if digits > 6 && single.is_finite() && through.into_iter().any(is) {
            let cause = if name == "float8" { "double_through_float4" } else { "decimal_through_float4" };
            causes.push(Cause::with(cause, "", lost(), " digits lost"));
        }
        if name == "float4" && is(format!("{single:.5e}")) {
            causes.push("six_digits".into());
        }
    }
    // As many places as the target shows.
    let scale = b.scale.max(-b.exponent).min(b.scale.max(0));
    let (cut, first) = a.cut(scale);
    if a.exponent < -scale {
        let rounded = if first >= b'5' { cut.next(scale) } else { Some(cut.clone()) };
        if rounded.is_some_and(|rounded| rounded.same(b)) {
            causes.push(Cause::with("rounded", "to ", i64::from(scale), " places"));
        }
        if cut.same(b) {
            causes.push(Cause::with("places_cut_off", "behind ", i64::from(scale), " places"));
        }
    }
    if let (Ok(a), Ok(b)) = (number(a).parse::<f64>(), number(b).parse::<f64>())
        && (a - b).abs() <= a.abs().max(b.abs()) * 1e-6
    {
        causes.push("precision_lost".into());
    }
}

fn number(decimal: &Decimal) -> String {
    let sign = if decimal.negative { "-" } else { "" };
    let digits = if decimal.digits.is_empty() { "0" } else { &decimal.digits };
    format!("{sign}{digits}e{}", decimal.exponent)
}

/// Integers that did not fit.
fn of_bits(source: &str, target: &str, causes: &mut Vec<Cause>) {
    let (Ok(a), Ok(b)) = (source.parse::<i128>(), target.parse::<i128>()) else { return };
    for bits in [64_u32, 32, 16, 8] {
        let (modulus, half) = (1_i128 << bits, 1_i128 << (bits - 1));
        let fits = (-half..half).contains(&a);
        if !fits && (a - b) % modulus == 0 && (-half..modulus).contains(&b) {
            return causes.push(Cause::with("wrapped_around", "at ", i64::from(bits), " bits"));
        }
        if !fits && (b == half - 1 || b == -half || b == modulus - 1) {
            return causes.push(Cause::with("clamped", "to ", i64::from(bits), " bits"));
        }
    }
}

pub fn of_money(source: &str, target: &str) -> Vec<Cause> {
    let bare = |text: &str| text.chars().filter(|c| c.is_ascii_digit() || matches!(c, '.' | '-')).collect::<String>();
    of("numeric", &bare(source), &bare(target))
}
