//! The socket and its framing up to the moment the stream begins: open, encrypt, send a message, receive a message.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::backend::{Header, Message};
use postgres_protocol::message::frontend;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::endpoint::{Address, Endpoint, TlsMode};
use super::error::WalsenderError;
use super::tls;

/// CopyBothResponse, which postgres-protocol does not know.
const COPY_BOTH_RESPONSE_TAG: u8 = b'W';

/// Results of our commands and errors are short; a longer length is not PostgreSQL.
const MESSAGE_BYTES_MAX: i32 = 16 << 20;

/// A server that is gone without a word is noticed by then. It also keeps an idle connection alive in firewalls.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// What the server may send while we are busy. The kernel's own choice begins at a tenth of it, and then a WAL sender that
/// finds it full waits after each change.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(60);

pub(super) type Reader = Box<dyn AsyncRead + Send + Unpin>;
pub(super) type Writer = Box<dyn AsyncWrite + Send + Unpin>;

pub(super) struct Wire {
    pub reader: Reader,
    pub writer: Writer,
    /// Received and not yet parsed.
    pub input: BytesMut,
    /// Written here first, so that a send that is cancelled goes on with the next one.
    pub output: BytesMut,
    pub encrypted: bool,
    /// Hash of the server's certificate, where one is defined.
    pub server_end_point: Option<Vec<u8>>,
}

pub(super) enum Received {
    Message(Message),
    CopyBoth,
}

impl Wire {
    /// Opens the socket and, as `mode` says, encrypts it.
    pub(super) async fn open(endpoint: &Endpoint, address: &Address, mode: TlsMode) -> Result<Self, WalsenderError> {
        let connect_error = |source| WalsenderError::Connect { endpoint: address.to_string(), source };
        match address {
            Address::Unix(path) => {
                // As libpq: no TLS on a unix socket, whatever sslmode says.
                let (reader, writer) = UnixStream::connect(path).await.map_err(connect_error)?.into_split();
                Ok(Self::new(Box::new(reader), Box::new(writer)))
            }
            Address::Tcp { host, connect, port } => {
                let mut socket = TcpStream::connect((connect.as_str(), *port)).await.map_err(connect_error)?;
                tune(&socket).map_err(connect_error)?;
                if mode == TlsMode::Disable || !demand_tls(endpoint, address, mode, &mut socket).await? {
                    let (reader, writer) = socket.into_split();
                    return Ok(Self::new(Box::new(reader), Box::new(writer)));
                }
                Self::encrypt(endpoint, address, host, socket).await
            }
        }
    }

    async fn encrypt(
        endpoint: &Endpoint,
        address: &Address,
        host: &str,
        socket: TcpStream,
    ) -> Result<Self, WalsenderError> {
        let tls_error = |source| WalsenderError::Tls { endpoint: address.to_string(), source };
        let connector = tls::connector(endpoint)?;
        let name = ServerName::try_from(host.to_owned()).map_err(|error| tls_error(io::Error::other(error)))?;
        let stream = connector.connect(name, socket).await.map_err(tls_error)?;
        let certificates = stream.get_ref().1.peer_certificates();
        let server_end_point = certificates.and_then(<[_]>::first).and_then(tls::server_end_point);
        // tokio's split holds its lock only while one half polls, so a waiting reader never holds up the writer.
        let (reader, writer) = tokio::io::split(stream);
        Ok(Self { encrypted: true, server_end_point, ..Self::new(Box::new(reader), Box::new(writer)) })
    }

    fn new(reader: Reader, writer: Writer) -> Self {
        let (input, output) = (BytesMut::new(), BytesMut::new());
        Self { reader, writer, input, output, encrypted: false, server_end_point: None }
    }

    /// Writes what stands in `output`.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        self.writer.write_all_buf(&mut self.output).await?;
        self.writer.flush().await
    }

    pub(super) async fn receive(&mut self) -> io::Result<Received> {
        loop {
            if let Some(header) = Header::parse(&self.input)? {
                if header.len() > MESSAGE_BYTES_MAX {
                    let text = format!("a message of {} bytes with tag {:#04x}", header.len(), header.tag());
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                }
                let total = usize::try_from(header.len()).unwrap_or(0) + 1;
                if header.tag() != COPY_BOTH_RESPONSE_TAG {
                    if let Some(message) = Message::parse(&mut self.input)? {
                        return Ok(Received::Message(message));
                    }
                } else if self.input.len() >= total {
                    // Its column formats mean nothing here: the plugin's frames follow.
                    drop(self.input.split_to(total));
                    return Ok(Received::CopyBoth);
                }
            }
            if self.reader.read_buf(&mut self.input).await? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"));
            }
        }
    }
}

fn tune(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let options = SockRef::from(socket);
    options.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    options.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL))?;
    #[cfg(target_os = "linux")]
    options.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
    Ok(())
}

/// Whether the TLS handshake follows. Exactly one byte is read before it: more would be bytes that someone on the way put
/// in front of the encrypted ones (CVE-2021-23222).
async fn demand_tls(
    endpoint: &Endpoint,
    address: &Address,
    mode: TlsMode,
    socket: &mut TcpStream,
) -> Result<bool, WalsenderError> {
    if endpoint.tls_direct {
        return Ok(true);
    }
    let connect_error = |source| WalsenderError::Connect { endpoint: address.to_string(), source };
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    socket.write_all(&request).await.map_err(connect_error)?;
    match socket.read_u8().await.map_err(connect_error)? {
        b'S' => Ok(true),
        b'N' if mode == TlsMode::Prefer => Ok(false),
        b'N' => Err(WalsenderError::TlsRefused { endpoint: address.to_string(), sslmode: mode.name() }),
        other => Err(connect_error(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("it answered the request for TLS with byte {other:#04x}: not a PostgreSQL server"),
        ))),
    }
}
