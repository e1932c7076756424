//! Reads Rust source far enough to check it: code without comments, literals and unit tests, the paths that it uses, the
//! bodies of its functions, the variants of its enums. No parser: what it cannot read it leaves alone.

/// The code with comments, the contents of string and character literals, and inline test modules blanked; lines keep
/// their numbers.
pub fn code(text: &str) -> String {
    let bytes: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let end = at + literal_or_comment(rest, at > 0 && is_word(bytes[at - 1]));
        if end == at {
            out.push(bytes[at]);
            at += 1;
            continue;
        }
        out.extend(bytes[at..end].iter().map(|letter| if *letter == '\n' { '\n' } else { ' ' }));
        at = end;
    }
    match out.find("#[cfg(test)]\nmod ") {
        Some(tests) => out[..tests].to_owned(),
        None => out,
    }
}

/// How many characters a comment or literal at the start of `rest` takes; 0 if there is none.
fn literal_or_comment(rest: &[char], in_word: bool) -> usize {
    let starts = |with: &str| with.chars().enumerate().all(|(index, letter)| rest.get(index) == Some(&letter));
    let until = |from: usize, end: &str| {
        let end: Vec<char> = end.chars().collect();
        let found = (from..rest.len()).find(|at| rest[*at..].starts_with(&end));
        found.map_or(rest.len(), |at| at + end.len())
    };
    if starts("//") {
        return rest.iter().position(|letter| *letter == '\n').unwrap_or(rest.len());
    }
    if starts("/*") {
        return until(2, "*/");
    }
    if starts("\"") {
        return quoted(rest, '"');
    }
    if !in_word && starts("r") {
        let hashes = rest[1..].iter().take_while(|letter| **letter == '#').count();
        if rest.get(1 + hashes) == Some(&'"') {
            return until(2 + hashes, &format!("\"{}", "#".repeat(hashes)));
        }
    }
    // A lifetime has no closing quote two places on.
    if starts("'") && (rest.get(1) == Some(&'\\') || rest.get(2) == Some(&'\'')) {
        return quoted(rest, '\'');
    }
    0
}

fn quoted(rest: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// All paths in the code, `use` groups taken apart: `use std::{fmt, net::TcpStream}` gives `std::fmt` and
/// `std::net::TcpStream`. With each its line, counted from 1.
pub fn paths(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    // The path before each open brace of a group; an empty one for a brace that opens no group.
    let mut groups: Vec<String> = Vec::new();
    let mut path = String::new();
    let mut line = 1;
    let letters: Vec<char> = code.chars().collect();
    for (at, letter) in letters.iter().enumerate() {
        match letter {
            letter if is_word(*letter) || *letter == ':' => path.push(*letter),
            '{' => groups.push(if path.ends_with("::") { format!("{}{path}", prefix(&groups)) } else { String::new() }),
            _ => {}
        }
        let goes_on = letters.get(at + 1).is_some_and(|next| is_word(*next) || *next == ':' || *next == '{');
        if !goes_on || !(is_word(*letter) || *letter == ':') {
            let path = std::mem::take(&mut path);
            if path.chars().any(is_word) {
                found.push((line, format!("{}{}", prefix(&groups), path.trim_start_matches(':'))));
            }
        } else if letters.get(at + 1) == Some(&'{') && !path.ends_with("::") {
            found.push((line, std::mem::take(&mut path)));
        }
        if *letter == '}' {
            groups.pop();
        }
        if *letter == '\n' {
            line += 1;
        }
    }
    found
}

fn prefix(groups: &[String]) -> &str {
    groups.last().map_or("", String::as_str)
}

/// The bodies of all functions of a name, their braces included.
pub fn bodies(code: &str, function: &str) -> String {
    let mut found = String::new();
    for (at, _) in code.match_indices(&format!("fn {function}(")) {
        let Some(open) = code[at..].find(['{', ';']).map(|offset| at + offset) else { continue };
        found.push_str(block(&code[open..]));
    }
    found
}

/// The block in braces that `text` begins with; empty if it begins with no brace.
fn block(text: &str) -> &str {
    let mut depth = 0;
    for (at, letter) in text.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &text[..at];
        }
    }
    ""
}

/// The variants of all enums whose variants carry an `#[error(…)]`.
pub fn error_variants(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("#[error") {
        let after = code[at..].find(']').map_or("", |end| &code[at + end + 1..]);
        let name: String = after.trim_start().chars().take_while(|letter| is_word(*letter)).collect();
        // On a struct the attribute stands before `pub struct` or `struct`.
        if name.starts_with(char::is_uppercase) {
            found.push(name);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_literals_and_unit_tests_are_no_code() {
        let text =
            "let a = \"x // y\"; // z\nlet b = r#\"q\"#; let c = '\"'; /* w */ fn f<'a>() {}\n#[cfg(test)]\nmod t {}";
        let read = code(text);
        for gone in ["x", "y", "z", "q", "w", "mod"] {
            assert!(!read.contains(gone), "{gone} in {read}");
        }
        assert!(read.contains("let c =") && read.contains("fn f<'a>()"), "{read}");
    }

    #[test]
    fn groups_are_taken_apart() {
        let read: Vec<String> =
            paths("use std::{fmt, net::{A, B}};\nfn f() { g::h(1) }").into_iter().map(|(_, path)| path).collect();
        for path in ["std::fmt", "std::net::A", "std::net::B", "g::h"] {
            assert!(read.iter().any(|found| found == path), "{path} not in {read:?}");
        }
    }
}
