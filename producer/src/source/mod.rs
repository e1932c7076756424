//! The source database beside the stream: its catalog, what must be changed on it, its slot. I/O, thin.

pub mod catalog;
pub mod definition;
pub mod description;
pub mod identity;
pub mod publication;
pub mod schema_trigger;
pub mod sequences;
pub mod slot;

use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use crate::error::Error;

/// Rows of a statement as text. The simple protocol: values come as PostgreSQL prints them, poolers need no prepared statement.
///
/// # Errors
/// `Source` with `doing`.
pub async fn rows(client: &Client, doing: &str, sql: &str) -> Result<Vec<SimpleQueryRow>, Error> {
    let messages = client.simple_query(sql).await.map_err(Error::source(doing))?;
    Ok(messages
        .into_iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        })
        .collect())
}

/// A column that is there and not null, parsed.
///
/// # Errors
/// `Answer`.
pub fn field<T: std::str::FromStr>(row: &SimpleQueryRow, at: usize, doing: &str) -> Result<T, Error> {
    let text = row.try_get(at).ok().flatten();
    text.and_then(|text| text.parse().ok()).ok_or_else(|| Error::Answer {
        doing: doing.to_owned(),
        what: format!("column {at} is {}", if text.is_some() { "malformed" } else { "null" }),
    })
}

/// A list of OIDs as an SQL array.
fn oid_array(oids: impl IntoIterator<Item = u32>) -> String {
    let list: Vec<String> = oids.into_iter().map(|oid| oid.to_string()).collect();
    format!("'{{{}}}'::pg_catalog.oid[]", list.join(","))
}
