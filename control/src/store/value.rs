//! The application's connection URL as a store holds it: opaque text with a password in it, and its version.
//!
//! The text leaves by [`Value::expose`] alone, which only what writes it to a store calls. Everything else shows it masked. It
//! is cut by hand and not by a URL parser, since applications write `jdbc:postgresql://…`, several hosts, and worse.

use std::fmt;

use ring::digest;

use super::Error;

/// The longest value. A connection URL has some hundred bytes; more is another file.
const BYTES_MAX: usize = 16 << 10;
const MASK: &str = "***";
/// Parameters of a URL that are secrets, in lower case.
const SECRET_PARAMETERS: [&str; 4] = ["password", "sslpassword", "pwd", "pass"];

/// A connection URL. `Debug` and `Display` show it without its password.
#[derive(Clone, PartialEq, Eq)]
pub struct Value(String);

impl Value {
    /// `place` is where it was found, for the error.
    ///
    /// # Errors
    /// `NotAValue` when it is empty, too long, or has more than one line.
    pub fn new(place: &str, text: impl Into<String>) -> Result<Value, Error> {
        let text = text.into();
        let reason = if text.is_empty() {
            "it is empty"
        } else if text.len() > BYTES_MAX {
            "it has more than 16 KiB"
        } else if text.chars().any(char::is_control) {
            "it has more than one line, or control characters"
        } else {
            return Ok(Value(text));
        };
        Err(Error::NotAValue { place: place.to_owned(), reason: reason.to_owned() })
    }

    /// As [`Value::new`], of bytes, without the white space around it: `echo URL > file` ends in a newline.
    ///
    /// # Errors
    /// `NotAValue`, also when it is not UTF-8.
    pub fn from_bytes(place: &str, bytes: &[u8]) -> Result<Value, Error> {
        let text = std::str::from_utf8(bytes)
            .map_err(|_| Error::NotAValue { place: place.to_owned(), reason: "it is not UTF-8".into() })?;
        Value::new(place, text.trim())
    }

    /// The whole text, password and all: for the store that writes it, and for nothing that prints.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// This URL with the hosts, ports and database of another: how an application that keeps its own user, password and
    /// parameters reaches the other side.
    ///
    /// # Errors
    /// `NotAValue` if either is no URL with a host.
    pub fn readdressed(&self, other: &Value) -> Result<Value, Error> {
        let (own, other) = (self.parts()?, other.parts()?);
        // An application that names no database gets that of its user's name, which is its own business.
        let path = if own.path.len() > 1 { other.path } else { own.path };
        Value::new("the new value", [own.scheme, own.user, other.hosts, path, own.parameters].concat())
    }

    fn parts(&self) -> Result<Parts<'_>, Error> {
        let malformed = || Error::NotAValue {
            place: "the connection URL".into(),
            reason: format!("{self} is not scheme://[user[:password]@]host[:port][/database][?parameters]"),
        };
        let (scheme, rest) = cut(&self.0, self.0.find("://").map(|at| at + 3).ok_or_else(malformed)?);
        let (head, parameters) = cut(rest, rest.find('?').unwrap_or(rest.len()));
        let (user, head) = cut(head, head.rfind('@').map_or(0, |at| at + 1));
        let (hosts, path) = cut(head, head.find('/').unwrap_or(head.len()));
        // An `@` among the parameters may be one of a password that holds a `?`: then nothing above is true.
        if hosts.is_empty() || (user.is_empty() && parameters.contains('@')) {
            return Err(malformed());
        }
        Ok(Parts { scheme, user, hosts, path, parameters })
    }

    /// Without what could be a password. Where the text is ambiguous, more is masked and not less.
    pub fn masked(&self) -> String {
        let text = &self.0;
        let Some(scheme) = text.find("://").map(|at| at + 3) else { return "(not a URL)".into() };
        let mut shown = String::new();
        let rest = match text.rfind('@').filter(|at| *at >= scheme) {
            Some(at) => {
                let (before, after) = cut(text, at);
                shown.push_str(match before[scheme..].find(':') {
                    Some(colon) => &before[..scheme + colon],
                    None => before,
                });
                if shown.len() < before.len() {
                    shown.push(':');
                    shown.push_str(MASK);
                }
                after
            }
            None => text,
        };
        mask_parameters(&mut shown, rest);
        shown
    }

    /// `text` without this value and its password, wherever they stand in it: for what another program said.
    pub fn scrub(&self, text: &str) -> String {
        let mut text = text.replace(&self.0, &self.masked());
        for secret in self.secrets().into_iter().filter(|secret| !secret.is_empty()) {
            text = text.replace(secret, MASK);
        }
        text
    }

    fn secrets(&self) -> Vec<&str> {
        let mut found = Vec::new();
        if let (Some(scheme), Some(at)) = (self.0.find("://"), self.0.rfind('@'))
            && let Some((_, password)) = self.0.get(scheme + 3..at).and_then(|user| user.split_once(':'))
        {
            found.push(password);
        }
        let parameters = self.0.split(['?', '&', ';']).filter_map(|pair| pair.split_once('='));
        found.extend(parameters.filter(|(name, _)| is_secret(name)).map(|(_, value)| value));
        found
    }

    /// Tells two values apart, but for their passwords: a hash of a password is one that can be guessed, and versions are
    /// written to journals and logs.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.masked())
    }
}

/// Of a text without secrets.
pub(super) fn fingerprint(text: &str) -> String {
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

struct Parts<'a> {
    /// With its `://`.
    scheme: &'a str,
    /// With its `@`; empty if there is none.
    user: &'a str,
    hosts: &'a str,
    /// With its `/`; empty if there is none.
    path: &'a str,
    /// With their `?`; empty if there are none.
    parameters: &'a str,
}

fn cut(text: &str, at: usize) -> (&str, &str) {
    text.split_at(at)
}

fn is_secret(name: &str) -> bool {
    SECRET_PARAMETERS.contains(&name.to_ascii_lowercase().as_str())
}

fn mask_parameters(shown: &mut String, text: &str) {
    for piece in text.split_inclusive(['?', '&', ';']) {
        let (pair, end) = match piece.find(['?', '&', ';']) {
            Some(at) => cut(piece, at),
            None => (piece, ""),
        };
        match pair.split_once('=') {
            Some((name, _)) if is_secret(name) => shown.extend([name, "=", MASK]),
            _ => shown.push_str(pair),
        }
        shown.push_str(end);
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Value({})", self.masked())
    }
}

impl fmt::Display for Value {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.masked())
    }
}

/// Tells one state of a store from every other. Each store makes it its own way; it holds no secret and may be journaled.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Version(pub String);

impl fmt::Display for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Value {
        Value::new("a test", text).unwrap()
    }

    #[test]
    fn a_password_is_never_shown_wherever_it_stands() {
        for (text, shown) in [
            ("postgresql://u:secret@h:5432/d", "postgresql://u:***@h:5432/d"),
            ("postgresql://u@h/d", "postgresql://u@h/d"),
            ("postgresql://h/d?sslmode=require", "postgresql://h/d?sslmode=require"),
            ("postgresql://u:secret@x@h/d", "postgresql://u:***@h/d"),
            ("postgresql://u:secret?y@h/d", "postgresql://u:***@h/d"),
            ("postgresql://u:secret/z:@h1,h2/d", "postgresql://u:***@h1,h2/d"),
            ("jdbc:postgresql://h/d?user=u&Password=secret&a=b", "jdbc:postgresql://h/d?user=u&Password=***&a=b"),
            ("jdbc:sqlserver://h;pwd=secret;a=b", "jdbc:sqlserver://h;pwd=***;a=b"),
            ("host=h password='secret'", "(not a URL)"),
        ] {
            let value = value(text);
            assert_eq!(value.to_string(), shown);
            assert!(!format!("{value:?} {}", value.fingerprint()).contains("secret"));
        }
    }

    #[test]
    fn what_another_program_said_is_shown_without_the_value_and_its_password() {
        let value = value("postgresql://u:secret@h/d?sslpassword=other");
        let said = format!("cannot connect to {}: password secret is wrong, and so is other", value.expose());
        assert_eq!(
            value.scrub(&said),
            "cannot connect to postgresql://u:***@h/d?sslpassword=***: password *** is wrong, and so is ***"
        );
    }

    #[test]
    fn an_application_keeps_its_user_and_parameters_on_the_other_side() {
        let other = value("postgresql://admin:x@target:6000/shop_new?sslmode=disable");
        for (own, moved) in [
            ("postgresql://app:p%40@source:5432/shop?pool=3", "postgresql://app:p%40@target:6000/shop_new?pool=3"),
            ("jdbc:postgresql://a:1,b:2/shop", "jdbc:postgresql://target:6000/shop_new"),
            ("postgresql://app@source", "postgresql://app@target:6000"),
        ] {
            assert_eq!(value(own).readdressed(&other).unwrap().expose(), moved);
        }
        for malformed in ["host=h", "postgresql:///shop", "postgresql://u:a?b@h/d"] {
            let error = value(malformed).readdressed(&other).unwrap_err().to_string();
            assert!(!error.contains("a?b"), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_a_url_is_refused_by_its_place() {
        for text in ["", "a\nb", &"x".repeat(BYTES_MAX + 1)] {
            assert!(Value::new("file /etc/app", text).unwrap_err().to_string().contains("/etc/app"));
        }
        assert_eq!(Value::from_bytes("f", b" url \n").unwrap(), value("url"));
        Value::from_bytes("f", b"\xff").unwrap_err();
    }
}
