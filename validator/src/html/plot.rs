//! The plot of a column's two distributions: the source's bars above the axis, the target's below it, so that the two are told
//! apart without colour. Pure.
//!
//! Drawn for a width of 340 units, and shown at 0.9 to 1.4 times that: its letters stay legible on a telephone.

use maud::{Markup, html};

use super::number::{self, Unit};
use super::text;
use crate::statistics::{Distribution, Histogram, Measure};

const WIDTH: f64 = 340.0;
const LEFT: f64 = 6.0;
const RIGHT: f64 = 334.0;
const HALF: f64 = 62.0;
const TOP: f64 = 18.0;
/// Categories drawn; the others are counted together.
const LABELS_MAX: usize = 12;
const ROW: f64 = 26.0;
const LABEL_CHARACTERS_MAX: usize = 18;

/// With its caption; none where there is nothing to draw.
pub fn distribution(column: &str, unit: Unit<'_>, found: &Distribution) -> Option<Markup> {
    let histogram = &found.histogram;
    let drawn =
        if histogram.labels.is_empty() { bars(column, unit, histogram)? } else { categories(column, histogram)? };
    let ks = found.ks.map(|ks| format!("KS distance {ks:.2}"));
    let psi = format!("PSI {:.2}", found.psi);
    let measures: Vec<String> = ks.into_iter().chain([psi]).collect();
    let moved = if found.ks.unwrap_or(0.0).max(found.psi) >= 0.1 { "shifted" } else { "stable" };
    Some(html! {
        figure {
            (drawn)
            figcaption { (measures.join(", ")) ": " (moved) ". Both from 0 (equal); KS is at most 1, and from 0.1 on they count as a shift." }
        }
    })
}

fn largest(histogram: &Histogram) -> u64 {
    histogram.source.iter().chain(&histogram.target).copied().max().unwrap_or(0)
}

fn sides(histogram: &Histogram) -> impl Iterator<Item = (u64, u64)> + '_ {
    histogram.source.iter().copied().zip(histogram.target.iter().copied())
}

/// What a reader of the screen hears.
fn description(column: &str, histogram: &Histogram, over: &str) -> (String, String) {
    let all = |side: &[u64]| number::counted(side.iter().sum(), "value", "values");
    let title = format!("Distribution of {}", text::shown(column));
    let told = format!(
        "{} of the source above, {} of the target below, over {over}; the highest bar has {}.",
        all(&histogram.source),
        all(&histogram.target),
        number::count(largest(histogram))
    );
    (title, told)
}

fn bars(column: &str, unit: Unit<'_>, histogram: &Histogram) -> Option<Markup> {
    let most = largest(histogram);
    let (first, last) = (*histogram.edges.first()?, *histogram.edges.last()?);
    // Edges of values near the largest float are infinite.
    if most == 0 || !(last - first).is_finite() {
        return None;
    }
    let bins = histogram.source.len();
    let step = (RIGHT - LEFT) / bins as f64;
    let axis = TOP + HALF;
    let width = (step - 1.5).min(80.0);
    let height = |count: u64| if count == 0 { 0.0 } else { (count as f64 / most as f64 * HALF).max(1.0) };
    let at = |bin: usize| LEFT + step * bin as f64;
    let (title, told) = description(column, histogram, unit.axis());
    // The outermost bins hold what lies beyond, too.
    let between = |bin: usize| {
        let edge = |at: usize| histogram.edges.get(at).map_or_else(String::new, |edge| unit.written(*edge));
        match bin {
            _ if bins == 1 => edge(0),
            0 => format!("up to {}", edge(1)),
            _ if bin + 1 == bins => format!("over {}", edge(bin)),
            _ => format!("{} to {}", edge(bin), edge(bin + 1)),
        }
    };
    let ticks = tick_edges(unit, first, last);
    let labels = unit.ticks(&ticks);
    let place = |value: f64| {
        if last > first { LEFT + (value - first) / (last - first) * (RIGHT - LEFT) } else { (LEFT + RIGHT) / 2.0 }
    };
    let bottom = axis + HALF;
    Some(html! {
        svg.plot viewBox=(format!("0 0 {WIDTH} {:.0}", bottom + 36.0)) role="img" {
            title { (title) }
            desc { (told) }
            text.side.source x=(LEFT) y="11" { "source" }
            text.most x=(RIGHT) y="11" text-anchor="end" { "highest bar: " (number::count(most)) }
            @for (bin, (source, target)) in sides(histogram).enumerate() {
                @let x = at(bin) + (step - width) / 2.0;
                g {
                    title { (between(bin)) ": source " (number::count(source)) ", target " (number::count(target)) }
                    rect.hit x=(short(at(bin))) y=(TOP) width=(short(step)) height=(2.0 * HALF) {}
                    @if source > 0 { rect.source x=(short(x)) y=(short(axis - height(source))) width=(short(width)) height=(short(height(source))) {} }
                    @if target > 0 { rect.target x=(short(x)) y=(axis) width=(short(width)) height=(short(height(target))) {} }
                }
            }
            line.axis x1=(LEFT) x2=(RIGHT) y1=(axis) y2=(axis) {}
            text.side.target x=(LEFT) y=(bottom + 31.0) { "target" }
            line.scale x1=(LEFT) x2=(RIGHT) y1=(bottom + 3.0) y2=(bottom + 3.0) {}
            @for (at, (value, label)) in ticks.iter().zip(&labels).enumerate() {
                @let anchor = match at { _ if ticks.len() == 1 => "middle", 0 => "start", _ if at + 1 == ticks.len() => "end", _ => "middle" };
                line.scale x1=(short(place(*value))) x2=(short(place(*value))) y1=(bottom + 3.0) y2=(bottom + 6.0) {}
                text.tick x=(short(place(*value))) y=(bottom + 17.0) text-anchor=(anchor) { (label) }
            }
            text.unit x=(RIGHT) y=(bottom + 31.0) text-anchor="end" { (unit.axis()) }
        }
    })
}

fn tick_edges(unit: Unit<'_>, first: f64, last: f64) -> Vec<f64> {
    if first >= last {
        return vec![first];
    }
    // Lengths are whole numbers.
    let near = |value: f64| if unit.measure == Measure::Length { value.round() } else { value };
    let of = |parts: u32| -> Vec<f64> {
        let all = (0..=parts).map(|part| near(first + (last - first) * (f64::from(part) / f64::from(parts))));
        let mut ticks: Vec<f64> = all.collect();
        ticks.dedup();
        ticks
    };
    // As many as there is room for.
    let fitting = [4, 2]
        .into_iter()
        .map(of)
        .find(|ticks| unit.ticks(ticks).iter().map(|label| label.chars().count() + 3).sum::<usize>() < 55);
    fitting.unwrap_or_else(|| vec![first, last])
}

fn categories(column: &str, histogram: &Histogram) -> Option<Markup> {
    let most = largest(histogram);
    if most == 0 {
        return None;
    }
    let mut rows: Vec<(String, (u64, u64))> =
        histogram.labels.iter().map(|label| text::brief(label, LABEL_CHARACTERS_MAX)).zip(sides(histogram)).collect();
    if rows.len() > LABELS_MAX {
        let beyond = rows.split_off(LABELS_MAX - 1);
        let all = beyond.iter().fold((0, 0), |sum, (_, counts)| (sum.0 + counts.0, sum.1 + counts.1));
        rows.push((format!("{} others", beyond.len()), all));
    }
    let most = rows.iter().map(|(_, (a, b))| *a.max(b)).max().unwrap_or(most);
    let (title, told) = description(column, histogram, "labels");
    let (bar_left, bar_right) = (112.0, 292.0);
    let width =
        |count: u64| if count == 0 { 0.0 } else { (count as f64 / most as f64 * (bar_right - bar_left)).max(1.0) };
    Some(html! {
        svg.plot viewBox=(format!("0 0 {WIDTH} {:.0}", 20.0 + ROW * rows.len() as f64)) role="img" {
            title { (title) }
            desc { (told.replace("above", "in the upper bars").replace("below", "in the lower bars")) }
            text.side.source x=(bar_left) y="11" { "source" }
            text.side.target x=(bar_left + 46.0) y="11" { "target" }
            @for (at, (label, (source, target))) in rows.iter().enumerate() {
                @let y = 18.0 + ROW * at as f64;
                text.label x="104" y=(y + 14.0) text-anchor="end" { (label) }
                @for (side, count, y) in [("source", *source, y), ("target", *target, y + 11.0)] {
                    rect class=(side) x=(bar_left) y=(y) width=(short(width(count))) height="10" {}
                    text.value x=(short(bar_left + width(count) + 4.0)) y=(y + 9.0) { (number::count(count)) }
                }
            }
            line.axis x1=(bar_left) x2=(bar_left) y1="16" y2=(18.0 + ROW * rows.len() as f64) {}
        }
    })
}

fn short(number: f64) -> String {
    format!("{number:.1}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(edges: &[f64], source: &[u64], target: &[u64]) -> Option<String> {
        let histogram =
            Histogram { edges: edges.to_vec(), labels: Vec::new(), source: source.to_vec(), target: target.to_vec() };
        let unit = Unit { measure: Measure::Length, type_name: "text" };
        bars("c", unit, &histogram).map(maud::PreEscaped::into_string)
    }

    #[test]
    fn a_bar_is_as_high_as_its_share_of_the_highest() {
        let plot = drawn(&[1.0, 2.5, 4.0], &[10, 5], &[0, 1]).unwrap();
        assert!(
            plot.contains("height=\"62.0\"") && plot.contains("height=\"31.0\"") && plot.contains("height=\"6.2\"")
        );
        assert_eq!(plot.matches("class=\"source\"").count() + plot.matches("class=\"target\"").count(), 3, "{plot}");
        assert!(plot.contains(">1</text>") && plot.contains(">4</text>") && !plot.contains(">2.5</text>"), "{plot}");
    }

    #[test]
    fn what_cannot_be_drawn_is_not_drawn() {
        assert!(drawn(&[], &[], &[]).is_none() && drawn(&[1.0, 1.0], &[0], &[0]).is_none());
        assert!(drawn(&[-1e308, f64::INFINITY, 1.7e308], &[1, 1], &[1, 1]).is_none());
        assert!(drawn(&[-1e308, 0.0, 7e307], &[1, 1], &[1, 1]).is_some_and(|plot| !plot.contains("=\"inf")));
        assert!(drawn(&[1.0, 1.0], &[3], &[3]).is_some_and(|plot| !plot.contains("NaN")));
    }
}
