//! Markers: a small transactional message in the source's WAL, a few times a second.
//!
//! It passes through slot, producer, Kafka and consumer like any transaction, so it measures each hop, moves an idle slot
//! (an unrelated database's WAL would pile up behind it), and proves a drain. Transactional, because others are not flushed.

use std::sync::Arc;
use std::time::Duration;

use changelog::table::quote_literal;
use tokio::time::MissedTickBehavior;

use crate::assemble::MARKER_PREFIX;
use crate::error::Error;
use crate::kept_session::KeptSession;
use crate::lane::Lane;

/// The statement that emits a marker with a text of the caller's: the source's clock in microseconds, a space, the text.
/// It returns the message's LSN.
pub fn emit_sql(content: &str) -> String {
    format!(
        "SELECT pg_catalog.pg_logical_emit_message(true, '{MARKER_PREFIX}', \
         (extract(epoch from pg_catalog.clock_timestamp()) * 1000000)::pg_catalog.int8 || ' ' || {})",
        quote_literal(content)
    )
}

/// The emitter's clock in microseconds, if it is there, and the text.
pub fn parse(content: &str) -> (Option<i64>, &str) {
    let (head, tail) = content.split_once(' ').unwrap_or((content, ""));
    match head.parse() {
        Ok(micros) => (Some(micros), tail),
        Err(_) => (None, content),
    }
}

/// Emits one every `marker_interval_ms`, for ever. A session that breaks is made again.
///
/// # Errors
/// What trying again does not mend: a server that no longer lets us in.
pub async fn run(lane: Arc<Lane>) -> Result<(), Error> {
    let mut timer = tokio::time::interval(Duration::from_millis(lane.config.producer.marker_interval_ms));
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut session = KeptSession::new(lane, "marker", Duration::from_secs(2));
    let sql = emit_sql("");
    loop {
        timer.tick().await;
        let outcome = match session.client().await {
            Ok(client) => client.batch_execute(&sql).await.map_err(Error::source("emit a marker")),
            Err(error) => Err(error),
        };
        if let Some(pause) = session.judge(outcome)? {
            tokio::time::sleep(pause).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_marker_without_a_clock_is_all_text() {
        assert_eq!(parse("1700000000000000 barrier 7"), (Some(1_700_000_000_000_000), "barrier 7"));
        assert_eq!(parse("1700000000000000 "), (Some(1_700_000_000_000_000), ""));
        assert_eq!(parse("barrier 7"), (None, "barrier 7"));
        assert_eq!(parse(""), (None, ""));
    }
}
