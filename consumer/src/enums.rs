//! An enum that got a value on the source: no description of a table says so, only a row that has it and is refused.

use sqlx::postgres::PgConnection;

use crate::error::{code, target};
use crate::target::run;
use crate::{Error, observe};

use changelog::table::quote_literal;

/// Type and value of an enum that the target refused. The server tells them only in its words: where they are not English,
/// there are none.
pub fn refused(error: &sqlx::Error) -> Option<(&str, &str)> {
    if code(error).as_deref() != Some("22P02") {
        return None;
    }
    let message = error.as_database_error()?.message().strip_prefix("invalid input value for enum ")?;
    let (type_name, value) = message.split_once(": \"")?;
    Some((type_name, value.strip_suffix('"')?))
}

/// Gives the target's type the values that the source's has more, each in its place. False if that does not help: the source's
/// has not this value either, or the target's has others.
///
/// # Errors
/// `Source`, `Target`.
pub async fn carry(
    source: &tokio_postgres::Client,
    connection: &mut PgConnection,
    (type_name, value): (&str, &str),
) -> Result<bool, Error> {
    let sql = "SELECT enumlabel::text FROM pg_catalog.pg_enum WHERE enumtypid = pg_catalog.to_regtype($1) ORDER BY enumsortorder";
    let rows = source.query(sql, &[&type_name]).await;
    let rows = rows.map_err(|source| Error::Source { what: format!("the values of {type_name}"), source })?;
    let wanted: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let what = || format!("the values of {type_name}");
    let present = sqlx::query_scalar::<_, String>(sql).bind(type_name).fetch_all(&mut *connection).await;
    let Some(statements) = additions(type_name, &wanted, &present.map_err(target(what()))?) else { return Ok(false) };
    if !wanted.iter().any(|label| label == value) {
        return Ok(false);
    }
    for statement in statements {
        run(connection, &statement).await.map_err(target(statement.clone()))?;
        observe::enum_altered(&statement);
    }
    Ok(true)
}

/// None if the target's values are not the source's with some left out. Pure.
fn additions(type_name: &str, wanted: &[String], present: &[String]) -> Option<Vec<String>> {
    let mut left = present.iter();
    let mut next = left.next();
    let mut out = Vec::new();
    for (at, label) in wanted.iter().enumerate() {
        if next == Some(label) {
            next = left.next();
            continue;
        }
        let place = match (at.checked_sub(1).map(|at| &wanted[at]), present.first()) {
            (Some(before), _) => format!(" AFTER {}", quote_literal(before)),
            (None, Some(first)) => format!(" BEFORE {}", quote_literal(first)),
            (None, None) => String::new(),
        };
        out.push(format!("ALTER TYPE {type_name} ADD VALUE IF NOT EXISTS {}{place}", quote_literal(label)));
    }
    next.is_none().then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_values_come_where_the_source_has_them() {
        let asked = |wanted: &str, present: &str| {
            let labels = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            let statements = additions("s.t", &labels(wanted), &labels(present))?;
            let short = |sql: &String| sql.replace("ALTER TYPE s.t ADD VALUE IF NOT EXISTS ", "");
            Some(statements.iter().map(short).collect::<Vec<_>>())
        };
        assert_eq!(asked("a b c", "a b c").unwrap(), [""; 0]);
        assert_eq!(asked("a b c d", "b c").unwrap(), ["'a' BEFORE 'b'", "'d' AFTER 'c'"]);
        assert_eq!(asked("a x y b", "a b").unwrap(), ["'x' AFTER 'a'", "'y' AFTER 'x'"]);
        assert_eq!(asked("a", "").unwrap(), ["'a'"]);
        // Another order, or a value of its own: not ours to mend.
        assert_eq!(asked("a b c", "b a"), None);
        assert_eq!(asked("a b", "a z"), None);
    }
}
