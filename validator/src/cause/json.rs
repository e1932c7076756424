//! Documents: json and jsonb. Read here with their numbers as digits and their members in order, which serde_json's values
//! do not keep. Pure.

use super::Cause;
use super::numbers::Decimal;

/// Deeper documents are not explained.
const DEPTH_MAX: usize = 64;

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Word(String),
    Number(String),
    Text(String),
    List(Vec<Node>),
    Object(Vec<(String, Node)>),
}

pub fn of(source: &str, target: &str) -> Vec<Cause> {
    let (Some(a), Some(b)) = (parse(source), parse(target)) else { return Vec::new() };
    let mut causes: Vec<Cause> = Vec::new();
    if a == b {
        // Blanks, or another way to write the same characters.
        let bare = |text: &str| text.split_ascii_whitespace().collect::<String>();
        causes.push(if bare(source) == bare(target) {
            "json_reformatted".into()
        } else {
            "json_escapes_changed".into()
        });
        return causes;
    }
    if let Node::Text(inner) = &b
        && parse(inner).as_ref() == Some(&a)
    {
        causes.push("json_encoded_twice".into());
    }
    let ordered = |node: &Node| normal(node, false);
    if ordered(&a) == ordered(&b) {
        causes.push("json_key_order".into());
    } else if normal(&a, true) == normal(&b, true) {
        causes.push("json_duplicate_keys_lost".into());
    }
    let (a, b) = (normal(&a, true), normal(&b, true));
    let mut numbers = (0, 0);
    if without_numbers(&a) == without_numbers(&b) && a != b {
        differing(&a, &b, &mut numbers);
        let scale_only = numbers.1 == 0;
        causes.push(if scale_only { "json_number_scale".into() } else { "json_numbers_rounded".into() });
        if numbers.0 > 0 && !scale_only {
            causes.retain(|cause| cause.name != "json_numbers_rounded");
            causes.push("json_number_changed".into());
        }
    }
    if quoted_numbers(&a) == b {
        causes.push("json_number_became_text".into());
    }
    if without_nulls(&a) == b {
        causes.push("json_null_members_lost".into());
    }
    if sorted_lists(&a) == sorted_lists(&b) && a != b {
        causes.push("json_elements_reordered".into());
    }
    causes
}

/// Counts numbers that are not near each other, and those that are other numbers at all.
fn differing(a: &Node, b: &Node, found: &mut (u32, u32)) {
    match (a, b) {
        (Node::Number(a), Node::Number(b)) if a != b => {
            let values = (a.parse::<f64>(), b.parse::<f64>());
            let near = matches!(values, (Ok(a), Ok(b)) if (a - b).abs() <= a.abs().max(b.abs()) * 1e-6);
            found.0 += u32::from(!near);
            let scale = |text: &str| Decimal::parse(text).map(|d| d.without_scale());
            found.1 += u32::from(scale(a) != scale(b));
        }
        (Node::List(a), Node::List(b)) => a.iter().zip(b).for_each(|(a, b)| differing(a, b, found)),
        (Node::Object(a), Node::Object(b)) => a.iter().zip(b).for_each(|((_, a), (_, b))| differing(a, b, found)),
        _ => {}
    }
}

/// Members sorted by name; of several with one name only the last.
fn normal(node: &Node, unique: bool) -> Node {
    match node {
        Node::List(items) => Node::List(items.iter().map(|item| normal(item, unique)).collect()),
        Node::Object(members) => {
            let mut members: Vec<(String, Node)> =
                members.iter().map(|(name, value)| (name.clone(), normal(value, unique))).collect();
            members.sort_by(|(a, _), (b, _)| a.cmp(b));
            if unique {
                members.reverse();
                members.dedup_by(|(a, _), (b, _)| a == b);
                members.reverse();
            }
            Node::Object(members)
        }
        other => other.clone(),
    }
}

fn mapped(node: &Node, leaf: &dyn Fn(&Node) -> Node) -> Node {
    match node {
        Node::List(items) => Node::List(items.iter().map(|item| mapped(item, leaf)).collect()),
        Node::Object(members) => {
            Node::Object(members.iter().map(|(name, value)| (name.clone(), mapped(value, leaf))).collect())
        }
        other => leaf(other),
    }
}

fn without_numbers(node: &Node) -> Node {
    mapped(node, &|leaf| if matches!(leaf, Node::Number(_)) { Node::Number(String::new()) } else { leaf.clone() })
}

fn quoted_numbers(node: &Node) -> Node {
    mapped(node, &|leaf| if let Node::Number(text) = leaf { Node::Text(text.clone()) } else { leaf.clone() })
}

fn without_nulls(node: &Node) -> Node {
    match node {
        Node::List(items) => Node::List(items.iter().map(without_nulls).collect()),
        Node::Object(members) => {
            let kept = members.iter().filter(|(_, value)| *value != Node::Word("null".into()));
            Node::Object(kept.map(|(name, value)| (name.clone(), without_nulls(value))).collect())
        }
        other => other.clone(),
    }
}

fn sorted_lists(node: &Node) -> Node {
    match node {
        Node::List(items) => {
            let mut items: Vec<Node> = items.iter().map(sorted_lists).collect();
            items.sort_by_cached_key(|item| format!("{item:?}"));
            Node::List(items)
        }
        Node::Object(members) => {
            Node::Object(members.iter().map(|(name, value)| (name.clone(), sorted_lists(value))).collect())
        }
        other => other.clone(),
    }
}

fn parse(text: &str) -> Option<Node> {
    let mut reader = Reader { bytes: text.as_bytes(), at: 0 };
    let node = reader.node(0)?;
    reader.blanks();
    (reader.at == text.len()).then_some(node)
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn blanks(&mut self) {
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
    }

    /// Takes this byte if it is the next one.
    fn take(&mut self, byte: u8) -> bool {
        self.blanks();
        let found = self.bytes.get(self.at) == Some(&byte);
        self.at += usize::from(found);
        found
    }

    fn node(&mut self, depth: usize) -> Option<Node> {
        if depth > DEPTH_MAX {
            return None;
        }
        if self.take(b'[') {
            let mut items = Vec::new();
            while !self.take(b']') {
                if !items.is_empty() && !self.take(b',') {
                    return None;
                }
                items.push(self.node(depth + 1)?);
            }
            return Some(Node::List(items));
        }
        if self.take(b'{') {
            let mut members = Vec::new();
            while !self.take(b'}') {
                if !members.is_empty() && !self.take(b',') {
                    return None;
                }
                let Node::Text(name) = self.node(depth + 1)? else { return None };
                if !self.take(b':') {
                    return None;
                }
                members.push((name, self.node(depth + 1)?));
            }
            return Some(Node::Object(members));
        }
        self.blanks();
        if self.bytes.get(self.at) == Some(&b'"') { self.text() } else { self.word() }
    }

    /// A quoted text; its escapes are read by serde_json.
    fn text(&mut self) -> Option<Node> {
        let from = self.at;
        self.at += 1;
        while *self.bytes.get(self.at)? != b'"' {
            self.at += if self.bytes[self.at] == b'\\' { 2 } else { 1 };
        }
        self.at += 1;
        serde_json::from_slice(&self.bytes[from..self.at]).ok().map(Node::Text)
    }

    fn word(&mut self) -> Option<Node> {
        let from = self.at;
        while self.bytes.get(self.at).is_some_and(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte)) {
            self.at += 1;
        }
        let word = String::from_utf8_lossy(&self.bytes[from..self.at]).into_owned();
        match word.as_str() {
            "" => None,
            "null" | "true" | "false" => Some(Node::Word(word)),
            _ => Some(Node::Number(word)),
        }
    }
}
