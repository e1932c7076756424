//! Many new rows of one table go by COPY: the server then fills whole pages and logs them as such, where an INSERT places and
//! logs row by row. Values are as exact as there: binary where the types are the same, else text for the target's own
//! input function.

use changelog::Value;
use changelog::text::format_value;

use super::Parameters;
use crate::Error;
use crate::array::{Carrier, put_element};

/// Below this an INSERT with arrays costs less: COPY takes more round trips.
pub const ROWS_MIN: usize = 200;

const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";

/// What COPY reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    pub bytes: Vec<u8>,
    pub binary: bool,
}

impl Rows {
    pub fn format(&self) -> &'static str {
        if self.binary { "binary" } else { "text" }
    }
}

/// Whether COPY's input gives what a cast of the parameter gives: the very type, or text.
pub fn fits(parameters: &Parameters<'_>) -> bool {
    let same = |at: usize| {
        let carrier = parameters.carriers[at];
        carrier == Carrier::Text || carrier.element_oid() == parameters.target(at).type_oid
    };
    !parameters.columns.is_empty() && (0..parameters.columns.len()).all(same)
}

/// Types whose binary form is their text: text, varchar, bpchar.
fn is_text(type_oid: u32) -> bool {
    matches!(type_oid, 25 | 1043 | 1042)
}

/// `rows` gives the same rows each time, one value per parameter.
///
/// # Errors
/// Those of `rows`.
pub fn rows(
    parameters: &Parameters<'_>,
    mut rows: impl FnMut(&mut dyn FnMut(&[Value<'_>])) -> Result<(), Error>,
) -> Result<Rows, Error> {
    let as_text = |at: usize| parameters.carriers[at] == Carrier::Text && !is_text(parameters.target(at).type_oid);
    if !(0..parameters.columns.len()).any(as_text)
        && let Some(bytes) = binary(parameters, &mut rows)?
    {
        return Ok(Rows { bytes, binary: true });
    }
    Ok(Rows { bytes: text(parameters, &mut rows)?, binary: false })
}

type Source<'s> = &'s mut dyn FnMut(&mut dyn FnMut(&[Value<'_>])) -> Result<(), Error>;

/// `None` if a value has no binary form of ours.
fn binary(parameters: &Parameters<'_>, rows: Source<'_>) -> Result<Option<Vec<u8>>, Error> {
    let shape = parameters.relation.shape();
    let mut bytes = Vec::new();
    let mut scratch = String::new();
    let mut fits = true;
    bytes.extend_from_slice(SIGNATURE);
    bytes.extend_from_slice(&[0; 8]); // no flags, no extension
    let columns = (parameters.columns.len() as i16).to_be_bytes();
    rows(&mut |values| {
        bytes.extend_from_slice(&columns);
        for ((carrier, column), value) in parameters.carriers.iter().zip(&parameters.columns).zip(values) {
            fits &= put_element(*carrier, value, &shape.columns[*column], &mut bytes, &mut scratch).is_ok();
        }
    })?;
    bytes.extend_from_slice(&(-1_i16).to_be_bytes());
    Ok(fits.then_some(bytes))
}

fn text(parameters: &Parameters<'_>, rows: Source<'_>) -> Result<Vec<u8>, Error> {
    let shape = parameters.relation.shape();
    let mut bytes = Vec::new();
    let mut scratch = String::new();
    rows(&mut |values| {
        for (at, (column, value)) in parameters.columns.iter().zip(values).enumerate() {
            if at > 0 {
                bytes.push(b'\t');
            }
            scratch.clear();
            if format_value(value, shape.columns[*column].kind(), &mut scratch) {
                put_escaped(&mut bytes, scratch.as_bytes());
            } else {
                bytes.extend_from_slice(b"\\N");
            }
        }
        bytes.push(b'\n');
    })?;
    Ok(bytes)
}

fn put_escaped(out: &mut Vec<u8>, text: &[u8]) {
    for part in text.split_inclusive(|byte| matches!(byte, b'\\' | b'\t' | b'\n' | b'\r')) {
        let Some((last, plain)) = part.split_last() else { continue };
        let escape = match last {
            b'\\' => b'\\',
            b'\t' => b't',
            b'\n' => b'n',
            b'\r' => b'r',
            _ => {
                out.extend_from_slice(part);
                continue;
            }
        };
        out.extend_from_slice(plain);
        out.extend_from_slice(&[b'\\', escape]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_end_a_field_is_escaped() {
        let mut out = Vec::new();
        for text in ["", "plain", "a\tb\nc\rd\\N", "\\", "ä\u{b}"] {
            put_escaped(&mut out, text.as_bytes());
            out.push(b'|');
        }
        assert_eq!(String::from_utf8(out).unwrap(), "|plain|a\\tb\\nc\\rd\\\\N|\\\\|ä\u{b}|");
    }
}
