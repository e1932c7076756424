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
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep_until};

use super::error::{Doing, ServerError, WalsenderError};
use super::frame::{Frame, Status, Step, put_status, take};
use super::wire::{Reader, Wire, Writer};

/// Room made for each read: one system call takes what the kernel has, up to this.
const READ_BYTES: usize = 256 << 10;
/// Below this a new buffer is made; what is left of the old one stays with the frames that hold it.
const READ_BYTES_MIN: usize = 32 << 10;
/// The server sends each change by itself. Below this a read took so little that the next one lets more arrive first: else
/// both sides would be busy with waking each other, change by change.
const READ_BYTES_FEW: usize = 16 << 10;
const READ_INTERVAL: Duration = Duration::from_millis(1);
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
            reader: FrameReader { reader, input, slot: slot.to_owned(), read_next_at: None },
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
    /// Not before; none after a read that took much.
    read_next_at: Option<Instant>,
}

impl FrameReader {
    /// The next frame. Cancel-safe: what was read stays in the buffer.
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
            if self.input.capacity() - self.input.len() < READ_BYTES_MIN {
                self.input.reserve(READ_BYTES);
            }
            if let Some(at) = self.read_next_at {
                sleep_until(at).await;
            }
            match self.reader.read_buf(&mut self.input).await {
                Ok(0) => {
                    let source = io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection");
                    return Err(WalsenderError::Io { doing: self.doing(), source });
                }
                Ok(bytes) => {
                    self.read_next_at = (bytes < READ_BYTES_FEW).then(|| Instant::now() + READ_INTERVAL);
                }
                Err(source) => return Err(WalsenderError::Io { doing: self.doing(), source }),
            }
        }
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
