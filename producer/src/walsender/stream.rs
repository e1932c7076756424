//! The stream of a slot: frames one way, status updates the other, in two halves that two tasks can hold.
//!
//! ```text
//!   reader task: next().await, try_next_buffered() … ──> decode ──> output (may block)
//!   status task: every few seconds, and when asked  ──> send_status()
//! ```
//!
//! The halves share nothing that is held over an await, so that the server hears from us (and does not close after
//! wal_sender_timeout) also while the reader's side is blocked. The server takes any status as a sign of life.

use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::error::{Doing, ServerError, WalsenderError};
use super::frame::{Frame, Status, Step, put_status, take};
use super::wire::{Reader, Wire, Writer};

/// Room made for each read: one system call takes what the kernel has, up to this.
const READ_BYTES: usize = 256 << 10;
/// Below this a new buffer is made; what is left of the old one stays with the frames that hold it.
const READ_BYTES_MIN: usize = 32 << 10;
/// The server sends each change by itself, and who waits for the socket is woken by each: both sides are then busy with waking
/// and being woken, change by change. So the next read comes a while after the last one, and takes what has come together.
const READ_PAUSE: Duration = Duration::from_millis(1);
/// Behind, more is brought together, in slices that the kernel's buffer can hold: what is handed on at once makes fewer and
/// larger requests all the way down (Kafka's broker needs as long for a request as for a hundred records).
const GATHERING_SLICE: Duration = Duration::from_millis(4);
const GATHERING_SLICES: usize = 5;
const GATHERED_BYTES: usize = 256 << 10;
/// An ErrorResponse or a notice; frames have their own bound.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Both halves in one.
pub struct ReplicationStream {
    reader: FrameReader,
    writer: StatusWriter,
}

impl ReplicationStream {
    pub(super) fn new(wire: Wire, slot: &str) -> Self {
        let Wire { reader, writer, input, output, .. } = wire;
        Self {
            reader: FrameReader { reader, input, slot: slot.to_owned(), read_next_at: None, behind: false },
            writer: StatusWriter { writer, output, slot: slot.to_owned() },
        }
    }

    /// As [`FrameReader::next`].
    ///
    /// # Errors
    /// As there.
    pub async fn next(&mut self) -> Result<Frame, WalsenderError> {
        self.reader.next().await
    }

    /// As [`FrameReader::try_next_buffered`].
    ///
    /// # Errors
    /// As there.
    pub fn try_next_buffered(&mut self) -> Result<Option<Frame>, WalsenderError> {
        self.reader.try_next_buffered()
    }

    /// As [`StatusWriter::send_status`].
    ///
    /// # Errors
    /// As there.
    pub async fn send_status(&mut self, status: Status, reply_requested: bool) -> Result<(), WalsenderError> {
        self.writer.send_status(status, reply_requested).await
    }

    pub fn into_split(self) -> (FrameReader, StatusWriter) {
        (self.reader, self.writer)
    }
}

/// The receiving half.
pub struct FrameReader {
    reader: Reader,
    input: BytesMut,
    slot: String,
    /// Not before.
    read_next_at: Option<Instant>,
    behind: bool,
}

impl FrameReader {
    /// The next frame. Cancel-safe: what was read stays in the buffer.
    ///
    /// It may sleep for some milliseconds and hold its thread meanwhile. That is the point: a runtime that waited would wait for
    /// the socket too, and be woken by each change. So this belongs into a runtime of its own, where nothing is in a hurry.
    ///
    /// A frame shares the read buffer (256 KiB, or as long as its longest frame): copy what must be held for long.
    ///
    /// # Errors
    /// The stream is over: the server's own error, [`WalsenderError::StreamEnded`], or a broken connection.
    pub async fn next(&mut self) -> Result<Frame, WalsenderError> {
        loop {
            if let Some(frame) = self.try_next_buffered()? {
                return Ok(frame);
            }
            if let Some(at) = self.read_next_at.take() {
                std::thread::sleep(at.saturating_duration_since(Instant::now()));
            }
            self.make_room();
            let read = self.reader.read_buf(&mut self.input).await;
            self.took(read)?;
            if self.behind {
                self.gather().await;
            }
        }
    }

    /// What those who are in no hurry should know: the stream lies behind, and throughput counts more than promptness.
    pub fn set_behind(&mut self, behind: bool) {
        self.behind = behind;
    }

    async fn gather(&mut self) {
        for _slice in 0..GATHERING_SLICES {
            if self.read_next_at.take().is_none() || self.input.len() >= GATHERED_BYTES {
                break;
            }
            std::thread::sleep(GATHERING_SLICE);
            // The runtime learns only now what the socket has.
            tokio::task::yield_now().await;
            self.make_room();
            let read = tokio::select! {
                biased;
                read = self.reader.read_buf(&mut self.input) => read,
                () = std::future::ready(()) => break,
            };
            if self.took(read).is_err() {
                break; // the next read meets it again, behind what is here
            }
        }
    }

    fn make_room(&mut self) {
        if self.input.capacity() - self.input.len() < READ_BYTES_MIN {
            self.input.reserve(READ_BYTES);
        }
    }

    /// A read that took all that there was room for is followed by the next at once.
    fn took(&mut self, read: io::Result<usize>) -> Result<(), WalsenderError> {
        let error = match read {
            Ok(0) => io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"),
            Ok(_) => {
                let filled = self.input.len() == self.input.capacity();
                self.read_next_at = (!filled).then(|| Instant::now() + READ_PAUSE);
                return Ok(());
            }
            Err(error) => error,
        };
        Err(WalsenderError::Io { doing: self.doing(), source: error })
    }

    /// A frame that is already here whole; `None` says nothing about the socket.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub fn try_next_buffered(&mut self) -> Result<Option<Frame>, WalsenderError> {
        loop {
            let broken = |doing, reason| WalsenderError::Protocol { doing, reason };
            match take(&mut self.input).map_err(|reason| broken(self.doing(), reason))? {
                Step::Frame(frame) => return Ok(Some(frame)),
                Step::Incomplete => return Ok(None),
                Step::Other { tag, bytes } if bytes > MESSAGE_BYTES_MAX => {
                    return Err(broken(self.doing(), format!("a message of {bytes} bytes with tag {tag:#04x}")));
                }
                Step::Other { bytes, .. } if self.input.len() < bytes => return Ok(None),
                Step::Other { .. } => self.take_other()?,
            }
        }
    }

    /// A whole message that is not CopyData: passes over what means nothing, and ends the stream else.
    fn take_other(&mut self) -> Result<(), WalsenderError> {
        match Message::parse(&mut self.input) {
            Ok(Some(Message::NoticeResponse(body))) => {
                tracing::debug!(slot = self.slot, notice = %ServerError::read(body.fields()), "notice from the server");
                Ok(())
            }
            Ok(Some(Message::ParameterStatus(_) | Message::NotificationResponse(_))) => Ok(()),
            Ok(Some(Message::ErrorResponse(body))) => {
                Err(WalsenderError::refused(self.doing(), ServerError::read(body.fields())))
            }
            Ok(Some(Message::CopyDone | Message::CommandComplete(_) | Message::ReadyForQuery(_))) => {
                Err(WalsenderError::StreamEnded { slot: self.slot.clone() })
            }
            Ok(_) => {
                let reason = "a message that has no place in the stream".to_owned();
                Err(WalsenderError::Protocol { doing: self.doing(), reason })
            }
            Err(error) => Err(WalsenderError::Protocol { doing: self.doing(), reason: error.to_string() }),
        }
    }

    fn doing(&self) -> Doing {
        Doing::Stream { slot: self.slot.clone() }
    }
}

/// The sending half.
pub struct StatusWriter {
    writer: Writer,
    output: BytesMut,
    slot: String,
}

impl StatusWriter {
    /// Tells the server up to where we have got. Cancel-safe: what a cancelled call has not yet written goes out with the next.
    ///
    /// `reply_requested` asks for a keepalive in answer.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn send_status(&mut self, status: Status, reply_requested: bool) -> Result<(), WalsenderError> {
        // A caller that cancels again and again while the socket takes nothing must not grow this without bound. The socket
        // itself is given up by the kernel (TCP_USER_TIMEOUT).
        if self.output.len() < 4096 {
            put_status(status, now_unix_micros(), reply_requested, &mut self.output);
        }
        self.flush().await.map_err(|source| self.broken(source))
    }

    /// Ends the stream politely, so that the server frees the slot at once. The reader then gets an error.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn close(mut self) -> Result<(), WalsenderError> {
        frontend::copy_done(&mut self.output);
        frontend::terminate(&mut self.output);
        let closed = match self.flush().await {
            Ok(()) => self.writer.shutdown().await,
            Err(error) => Err(error),
        };
        closed.map_err(|source| self.broken(source))
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.writer.write_all_buf(&mut self.output).await?;
        self.writer.flush().await
    }

    fn broken(&self, source: io::Error) -> WalsenderError {
        WalsenderError::Io { doing: Doing::Stream { slot: self.slot.clone() }, source }
    }
}

fn now_unix_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
