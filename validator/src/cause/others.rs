//! Booleans, enums, uuids, addresses, bits, ranges. Pure.

use super::Cause;

pub fn of_booleans(source: &str, target: &str) -> Vec<Cause> {
    let truth = |text: &str| match text.to_ascii_lowercase().as_str() {
        "t" | "true" | "1" | "y" | "yes" | "on" => Some(true),
        "f" | "false" | "0" | "n" | "no" | "off" => Some(false),
        _ => None,
    };
    match (truth(source), truth(target)) {
        (Some(a), Some(b)) if a == b => vec!["boolean_as_text".into()],
        (Some(_), Some(_)) => vec!["boolean_inverted".into()],
        _ => Vec::new(),
    }
}

pub fn of_enums(labels: &[String], source: &str, target: &str) -> Vec<Cause> {
    let place = |label: &str| labels.iter().position(|known| known == label).map(|at| at as i64);
    match (place(source), place(target)) {
        (Some(a), Some(b)) if (a - b).abs() == 1 => {
            vec![Cause::with("enum_label_moved", "by ", b - a, " in the order of the labels")]
        }
        (Some(_), Some(0)) => vec![Cause::saying("enum_label_changed", "to the first label")],
        (Some(_), Some(_)) => vec!["enum_label_changed".into()],
        (_, None) if source.eq_ignore_ascii_case(target) => vec!["case_changed".into()],
        _ => Vec::new(),
    }
}

pub fn of_uuids(source: &str, target: &str) -> Vec<Cause> {
    let bare = |text: &str| -> Vec<char> {
        text.chars().filter(char::is_ascii_hexdigit).map(|c| c.to_ascii_lowercase()).collect()
    };
    let (a, b) = (bare(source), bare(target));
    if a.len() != 32 || b.len() != 32 {
        return Vec::new();
    }
    if a == b {
        return vec!["uuid_notation".into()];
    }
    // The first three groups of a GUID are little-endian.
    let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    let guid: Vec<char> = order.iter().flat_map(|at| [a[at * 2], a[at * 2 + 1]]).collect();
    let reversed: Vec<char> = (0..16).rev().flat_map(|at| [a[at * 2], a[at * 2 + 1]]).collect();
    if guid == b {
        return vec![Cause::saying("uuid_byte_order", "the first three groups, as in a GUID")];
    }
    if reversed == b {
        return vec![Cause::saying("uuid_byte_order", "reversed")];
    }
    if b.iter().all(|c| *c == '0') {
        return vec!["uuid_zeroed".into()];
    }
    Vec::new()
}

pub fn of_addresses(source: &str, target: &str) -> Vec<Cause> {
    let split = |text: &str| {
        let (address, mask) = text.split_once('/').unwrap_or((text, ""));
        // The mask of a single host may be printed or not.
        let host = if address.contains(':') { "128" } else { "32" };
        (address.to_owned(), if mask == host { String::new() } else { mask.to_owned() })
    };
    let ((address, mask), (other, other_mask)) = (split(source), split(target));
    let mapped = |v4: &str, v6: &str| v6.to_ascii_lowercase() == format!("::ffff:{v4}");
    match () {
        () if address == other && other_mask.is_empty() => vec!["inet_mask_lost".into()],
        () if address == other => vec!["inet_mask_changed".into()],
        () if mask == other_mask && !mask.is_empty() => vec!["inet_host_bits_lost".into()],
        () if mapped(&address, &other) || mapped(&other, &address) => vec!["inet_family_changed".into()],
        () => Vec::new(),
    }
}

pub fn of_bits(source: &str, target: &str) -> Vec<Cause> {
    let difference = target.len() as i64 - source.len() as i64;
    let zero = |text: &str| text.bytes().all(|bit| bit == b'0');
    match () {
        () if difference > 0 && target.starts_with(source) && zero(&target[source.len()..]) => {
            vec![Cause::with("bits_padded", "on the right with ", difference, " zeros")]
        }
        () if difference > 0 && target.ends_with(source) && zero(&target[..difference as usize]) => {
            vec![Cause::with("bits_padded", "on the left with ", difference, " zeros")]
        }
        () if difference < 0 && source.starts_with(target) => {
            vec![Cause::with("truncated", "to ", target.len() as i64, " bits")]
        }
        () if difference < 0 && source.ends_with(target) => {
            vec![Cause::with("leading_bits_lost", "", -difference, " bits")]
        }
        () if difference == 0 && source.bytes().rev().eq(target.bytes()) => vec!["bit_order_changed".into()],
        () => Vec::new(),
    }
}

pub fn of_ranges(source: &str, target: &str) -> Vec<Cause> {
    let bare = |text: &str| text.replace(['(', '[', ']', ')'], "|");
    if target == "empty" {
        return vec!["range_emptied".into()];
    }
    if bare(source) == bare(target) {
        return vec!["range_bounds_changed".into()];
    }
    let unbounded = |text: &str| text.contains("(,") || text.contains(",)");
    if unbounded(source) != unbounded(target) {
        return vec![if unbounded(source) { "range_end_added".into() } else { "range_end_lost".into() }];
    }
    vec!["range_moved".into()]
}
