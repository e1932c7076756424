//! Arrays, as their output function prints them. Pure.

use super::{Cause, Kind, Text};
use crate::definition::BaseType;

/// The elements in order, and what is around them: bounds and braces.
struct Array {
    bounds: String,
    shape: String,
    elements: Vec<Option<String>>,
}

fn parse(text: &str) -> Option<Array> {
    let (bounds, body) = match text.split_once('=') {
        Some((bounds, body)) if text.starts_with('[') => (bounds, body),
        _ => ("", text),
    };
    let (mut shape, mut elements) = (String::new(), Vec::new());
    let mut characters = body.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '{' | '}' | ',' => shape.push(c),
            '"' => {
                let mut element = String::new();
                loop {
                    match characters.next()? {
                        '\\' => element.push(characters.next()?),
                        '"' => break,
                        c => element.push(c),
                    }
                }
                elements.push(Some(element));
            }
            c => {
                let mut element = String::from(c);
                while let Some(c) = characters.next_if(|c| !matches!(c, ',' | '}')) {
                    element.push(c);
                }
                elements.push((element != "NULL").then_some(element));
            }
        }
    }
    shape.starts_with('{').then(|| Array { bounds: bounds.to_owned(), shape, elements })
}

pub fn of(kind: Kind<'_>, source: &str, target: &str) -> Vec<Cause> {
    let (Some(a), Some(b)) = (parse(source), parse(target)) else { return Vec::new() };
    let mut causes = Vec::new();
    if b.elements.is_empty() && !a.elements.is_empty() {
        causes.push("array_emptied".into());
    }
    if a.elements == b.elements {
        causes.push(if a.shape != b.shape {
            "array_dimensions_changed".into()
        } else if a.bounds != b.bounds {
            "array_bounds_changed".into()
        } else {
            "array_quoting_changed".into()
        });
        return causes;
    }
    let known = |elements: &[Option<String>]| elements.iter().flatten().cloned().collect::<Vec<_>>();
    if known(&a.elements) == known(&b.elements) {
        causes.push("array_nulls_lost".into());
    }
    let named: Vec<String> = a.elements.iter().map(|e| e.clone().unwrap_or_else(|| "NULL".into())).collect();
    if a.elements.contains(&None) && named == known(&b.elements) {
        causes.push("array_null_became_text".into());
    }
    let sorted = |array: &Array| {
        let mut elements = array.elements.clone();
        elements.sort();
        elements
    };
    if sorted(&a) == sorted(&b) {
        causes.push("array_order_changed".into());
    }
    let unique = |array: &Array| {
        let mut elements = sorted(array);
        elements.dedup();
        elements
    };
    if a.elements.len() > b.elements.len() && unique(&a) == unique(&b) {
        causes.push("array_duplicates_lost".into());
    } else if a.elements.starts_with(&b.elements) && !b.elements.is_empty() {
        causes.push(Cause::with("array_truncated", "to ", b.elements.len() as i64, " elements"));
    } else if a.elements.len() == b.elements.len() {
        causes.push(Cause::saying("array_element_changed", element(kind, &a, &b)));
    }
    causes
}

/// What happened to the first element that differs.
fn element(kind: Kind<'_>, a: &Array, b: &Array) -> &'static str {
    let bare = |base: &BaseType| BaseType { name: base.name.trim_start_matches('_').to_owned(), ..base.clone() };
    let (source, target) = (bare(kind.source), bare(kind.target));
    let kind = Kind { source: &source, target: &target, labels: &[] };
    let differing = a.elements.iter().zip(&b.elements).find(|(a, b)| a != b);
    differing.map_or("", |(a, b)| {
        let causes = super::hypotheses(kind, a.as_deref().map(Text::whole), b.as_deref().map(Text::whole));
        causes[0].name
    })
}
