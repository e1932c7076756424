//! The frames inside of CopyBoth mode. Pure: bytes in, frames out; a status update in, bytes out.
//!
//! Format: PostgreSQL manual, "Streaming Replication Protocol".

use bytes::{Buf, BufMut, Bytes, BytesMut};
use changelog::Lsn;

use crate::pgoutput::POSTGRES_EPOCH_UNIX_MICROS;

/// Tag and length of a protocol message.
const ENVELOPE_BYTES: usize = 5;
const XLOG_DATA_HEADER_BYTES: usize = 25;
const KEEPALIVE_BYTES: usize = 18;

/// PostgreSQL makes no message above MaxAllocSize (1 GiB - 1).
const FRAME_BYTES_MAX: usize = 1 << 30;

/// What the server sends. Times are microseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    XLogData {
        /// Where the message lies in the WAL; 0/0 for Begin-less ones such as Relation.
        wal_start: Lsn,
        wal_end: Lsn,
        server_time_micros: i64,
        /// One pgoutput message; shares the read buffer.
        data: Bytes,
    },
    Keepalive {
        /// Up to where the server has sent, which is not up to where we have stored: never confirm it.
        wal_end: Lsn,
        server_time_micros: i64,
        /// Answer with a status at once, or the server closes after wal_sender_timeout.
        reply_requested: bool,
    },
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Frame(Frame),
    /// Whole or not, what stands first is not CopyData.
    Other {
        tag: u8,
        bytes: usize,
    },
    /// Not all of it is here.
    Incomplete,
}

/// Takes the next frame off the front of `input`; leaves any other message there.
pub(super) fn take(input: &mut BytesMut) -> Result<Step, String> {
    let Some((&tag, rest)) = input.split_first() else { return Ok(Step::Incomplete) };
    let Some(length) = rest.first_chunk::<4>() else { return Ok(Step::Incomplete) };
    let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
    if !(4..=FRAME_BYTES_MAX).contains(&length) {
        return Err(format!("a message with tag {tag:#04x} and a length of {length} bytes"));
    }
    let total = length + 1;
    if tag != b'd' {
        return Ok(Step::Other { tag, bytes: total });
    }
    if input.len() < total {
        return Ok(Step::Incomplete);
    }
    let mut payload = input.split_to(total).freeze();
    payload.advance(ENVELOPE_BYTES);
    match payload.first() {
        Some(b'w') if payload.len() >= XLOG_DATA_HEADER_BYTES => {
            payload.advance(1);
            Ok(Step::Frame(Frame::XLogData {
                wal_start: Lsn(payload.get_u64()),
                wal_end: Lsn(payload.get_u64()),
                server_time_micros: unix_micros(payload.get_i64()),
                data: payload,
            }))
        }
        Some(b'k') if payload.len() == KEEPALIVE_BYTES => {
            payload.advance(1);
            Ok(Step::Frame(Frame::Keepalive {
                wal_end: Lsn(payload.get_u64()),
                server_time_micros: unix_micros(payload.get_i64()),
                reply_requested: payload.get_u8() != 0,
            }))
        }
        Some(tag) => Err(format!("a replication frame with tag {tag:#04x} and {} bytes", payload.len())),
        None => Err("an empty replication frame".to_owned()),
    }
}

/// A clock, for lag only: a time beyond all sense is cut, not an error.
fn unix_micros(postgres_micros: i64) -> i64 {
    postgres_micros.saturating_add(POSTGRES_EPOCH_UNIX_MICROS)
}

/// Up to where this side has got; each must not go back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Status {
    /// Received. Only shown in pg_stat_replication.
    pub written: Lsn,
    /// Safe: the server may forget everything before it. It becomes `confirmed_flush_lsn`.
    pub flushed: Lsn,
    /// Visible. Only shown, unless the server waits for us as a synchronous standby.
    pub applied: Lsn,
}

impl Status {
    /// All three the same.
    pub fn at(lsn: Lsn) -> Self {
        Self { written: lsn, flushed: lsn, applied: lsn }
    }
}

/// Appends a standby status update.
pub(super) fn put_status(status: Status, now_unix_micros: i64, reply_requested: bool, output: &mut BytesMut) {
    output.put_u8(b'd');
    output.put_i32(4 + 34);
    output.put_u8(b'r');
    output.put_u64(status.written.0);
    output.put_u64(status.flushed.0);
    output.put_u64(status.applied.0);
    output.put_i64(now_unix_micros.saturating_sub(POSTGRES_EPOCH_UNIX_MICROS));
    output.put_u8(u8::from(reply_requested));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn put_copy_data(payload: &[u8], out: &mut BytesMut) {
        out.put_u8(b'd');
        out.put_i32(i32::try_from(payload.len() + 4).unwrap());
        out.put_slice(payload);
    }

    fn xlog_data(start: u64, data: &[u8]) -> Vec<u8> {
        let mut payload = vec![b'w'];
        payload.put_u64(start);
        payload.put_u64(start + 1);
        payload.put_i64(5);
        payload.extend_from_slice(data);
        payload
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn frames_come_out_whole_however_the_bytes_are_cut(
            rows in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 1..20),
            cuts in proptest::collection::vec(1_usize..40, 1..50),
        ) {
            let mut wire = BytesMut::new();
            for (number, row) in rows.iter().enumerate() {
                put_copy_data(&xlog_data(number as u64, row), &mut wire);
            }
            let (mut input, mut got, mut cuts) = (BytesMut::new(), Vec::new(), cuts.into_iter().cycle());
            while !wire.is_empty() {
                let piece = wire.split_to(cuts.next().unwrap().min(wire.len()));
                input.extend_from_slice(&piece);
                while let Step::Frame(Frame::XLogData { data, wal_start, .. }) = take(&mut input).unwrap() {
                    prop_assert_eq!(wal_start, Lsn(got.len() as u64));
                    got.push(data.to_vec());
                }
            }
            prop_assert_eq!(got, rows);
        }

        #[test]
        fn any_bytes_are_frames_or_an_error_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut input = BytesMut::from(bytes.as_slice());
            while let Ok(Step::Frame(_)) = take(&mut input) {}
            let mut payload = BytesMut::new();
            put_copy_data(&bytes, &mut payload);
            let _ = take(&mut payload);
        }
    }

    #[test]
    fn a_keepalive_tells_whether_it_wants_an_answer() {
        let mut payload = vec![b'k'];
        payload.put_u64(0x16_B374_D848);
        payload.put_i64(0);
        payload.put_u8(1);
        let mut input = BytesMut::new();
        put_copy_data(&payload, &mut input);
        let expected = Frame::Keepalive {
            wal_end: Lsn(0x16_B374_D848),
            server_time_micros: POSTGRES_EPOCH_UNIX_MICROS,
            reply_requested: true,
        };
        assert_eq!(take(&mut input), Ok(Step::Frame(expected)));
        assert_eq!(take(&mut input), Ok(Step::Incomplete));
    }

    #[test]
    fn lengths_that_no_server_sends_are_refused() {
        for length in [-1_i32, 0, 3, i32::MAX] {
            let mut input = BytesMut::new();
            input.put_u8(b'd');
            input.put_i32(length);
            assert!(take(&mut input).is_err(), "{length}");
        }
    }

    #[test]
    fn a_status_update_is_34_bytes_in_the_manuals_order() {
        let mut output = BytesMut::new();
        let status = Status { written: Lsn(3), flushed: Lsn(2), applied: Lsn(1) };
        put_status(status, POSTGRES_EPOCH_UNIX_MICROS + 7, true, &mut output);
        let mut expected = vec![b'd', 0, 0, 0, 38, b'r'];
        for number in [3_u64, 2, 1, 7] {
            expected.put_u64(number);
        }
        expected.push(1);
        assert_eq!(output, expected);
    }
}
