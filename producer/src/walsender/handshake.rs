//! From an open socket to ReadyForQuery: startup message and authentication.
//!
//! postgres-protocol computes (SCRAM, md5); the order of the steps is kept here. The server must prove itself under SCRAM: an
//! AuthenticationOk before its final signature was checked is an error, not a success.

use std::collections::HashMap;

use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;
use tokio_postgres::config::ChannelBinding as Wanted;
use tokio_postgres::fallible_iterator::FallibleIterator;

use super::endpoint::{Address, Endpoint};
use super::error::{Doing, ServerError, WalsenderError};
use super::wire::{Received, Wire};

/// What the server told of itself and the session.
pub(super) struct Session {
    pub backend_pid: i32,
    pub parameters: HashMap<String, String>,
}

pub(super) async fn shake_hands(
    wire: &mut Wire,
    endpoint: &Endpoint,
    address: &Address,
    application_name: &str,
) -> Result<Session, WalsenderError> {
    let doing = Doing::Connect {
        endpoint: address.to_string(),
        user: endpoint.user.clone(),
        database: endpoint.database.clone(),
    };
    let mut steps = Handshake { wire, endpoint, address, doing, scram: None };
    steps.start(application_name).await?;
    steps.authenticate().await?;
    steps.settle().await
}

enum Scram {
    Running(ScramSha256),
    /// The server's signature was right.
    Proved,
}

struct Handshake<'a> {
    wire: &'a mut Wire,
    endpoint: &'a Endpoint,
    address: &'a Address,
    doing: Doing,
    scram: Option<Scram>,
}

impl Handshake<'_> {
    async fn start(&mut self, application_name: &str) -> Result<(), WalsenderError> {
        let options = self.endpoint.startup_options();
        let parameters = [
            ("user", self.endpoint.user.as_str()),
            ("database", self.endpoint.database.as_str()),
            ("replication", "database"),
            ("application_name", application_name),
            ("client_encoding", "UTF8"),
            ("options", options.as_str()),
        ];
        frontend::startup_message(parameters, &mut self.wire.output).map_err(|source| self.unsendable(&source))?;
        self.flush().await
    }

    async fn authenticate(&mut self) -> Result<(), WalsenderError> {
        loop {
            match self.receive().await? {
                Message::AuthenticationOk => return self.check_proof(),
                Message::AuthenticationCleartextPassword => {
                    let password = self.plain_password()?;
                    self.send_password(&password).await?;
                }
                Message::AuthenticationMd5Password(body) => {
                    let password = self.plain_password()?;
                    let hashed = md5_hash(self.endpoint.user.as_bytes(), &password, body.salt());
                    self.send_password(hashed.as_bytes()).await?;
                }
                Message::AuthenticationSasl(body) => self.begin_scram(&body).await?,
                Message::AuthenticationSaslContinue(body) => self.answer_scram(body.data()).await?,
                Message::AuthenticationSaslFinal(body) => {
                    let Some(Scram::Running(mut scram)) = self.scram.take() else { return Err(self.out_of_order()) };
                    scram.finish(body.data()).map_err(|error| self.failed(&error.to_string()))?;
                    self.scram = Some(Scram::Proved);
                }
                Message::AuthenticationGss | Message::AuthenticationSspi | Message::AuthenticationKerberosV5 => {
                    return Err(self.failed("the server asks for GSSAPI, SSPI or Kerberos, which dflux does not speak"));
                }
                _ => return Err(self.out_of_order()),
            }
        }
    }

    fn check_proof(&self) -> Result<(), WalsenderError> {
        match &self.scram {
            Some(Scram::Running(_)) => Err(self.failed("the server skipped its own proof of the password")),
            None if self.endpoint.channel_binding == Wanted::Require => {
                Err(self.failed("channel_binding=require, and the server did not authenticate with SCRAM-SHA-256-PLUS"))
            }
            None | Some(Scram::Proved) => Ok(()),
        }
    }

    /// For the methods that hand out the password or a hash of it: never under channel_binding=require.
    fn plain_password(&self) -> Result<Vec<u8>, WalsenderError> {
        if self.endpoint.channel_binding == Wanted::Require {
            return Err(
                self.failed("channel_binding=require, and the server asks for another method than SCRAM-SHA-256-PLUS")
            );
        }
        self.password()
    }

    fn password(&self) -> Result<Vec<u8>, WalsenderError> {
        let missing =
            || WalsenderError::PasswordMissing { endpoint: self.address.to_string(), user: self.endpoint.user.clone() };
        self.endpoint.password.clone().ok_or_else(missing)
    }

    async fn send_password(&mut self, password: &[u8]) -> Result<(), WalsenderError> {
        frontend::password_message(password, &mut self.wire.output).map_err(|source| self.unsendable(&source))?;
        self.flush().await
    }

    async fn begin_scram(&mut self, body: &AuthenticationSaslBody) -> Result<(), WalsenderError> {
        let (mut plain, mut plus) = (false, false);
        let mut mechanisms = body.mechanisms();
        while let Some(mechanism) = mechanisms.next().map_err(|error| self.failed(&error.to_string()))? {
            plain |= mechanism == SCRAM_SHA_256;
            plus |= mechanism == SCRAM_SHA_256_PLUS;
        }
        let wanted = self.endpoint.channel_binding;
        let end_point = self.wire.server_end_point.clone().filter(|_| wanted != Wanted::Disable);
        let (mechanism, binding) = match end_point {
            Some(hash) if plus => (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash)),
            _ if wanted == Wanted::Require => {
                return Err(self.failed(
                    "channel_binding=require, and this connection cannot bind (no TLS, or no usable certificate)",
                ));
            }
            // "We could bind, you did not offer it": the server refuses if it did, so nobody on the way can have taken it out.
            Some(_) if plain => (SCRAM_SHA_256, ChannelBinding::unrequested()),
            None if plain => (SCRAM_SHA_256, ChannelBinding::unsupported()),
            _ => return Err(self.failed("the server offers no SASL mechanism that dflux speaks (SCRAM-SHA-256)")),
        };
        let scram = ScramSha256::new(&self.password()?, binding);
        frontend::sasl_initial_response(mechanism, scram.message(), &mut self.wire.output)
            .map_err(|source| self.unsendable(&source))?;
        self.scram = Some(Scram::Running(scram));
        self.flush().await
    }

    async fn answer_scram(&mut self, data: &[u8]) -> Result<(), WalsenderError> {
        let Some(Scram::Running(mut scram)) = self.scram.take() else { return Err(self.out_of_order()) };
        scram.update(data).map_err(|error| self.failed(&error.to_string()))?;
        frontend::sasl_response(scram.message(), &mut self.wire.output).map_err(|source| self.unsendable(&source))?;
        self.scram = Some(Scram::Running(scram));
        self.flush().await
    }

    /// From AuthenticationOk to ReadyForQuery.
    async fn settle(&mut self) -> Result<Session, WalsenderError> {
        let mut session = Session { backend_pid: 0, parameters: HashMap::new() };
        loop {
            match self.receive().await? {
                Message::BackendKeyData(body) => session.backend_pid = body.process_id(),
                Message::ParameterStatus(body) => {
                    let (name, value) = (body.name(), body.value());
                    let (Ok(name), Ok(value)) = (name, value) else { return Err(self.out_of_order()) };
                    session.parameters.insert(name.to_owned(), value.to_owned());
                }
                Message::ReadyForQuery(_) => return Ok(session),
                _ => return Err(self.out_of_order()),
            }
        }
    }

    async fn flush(&mut self) -> Result<(), WalsenderError> {
        self.wire.flush().await.map_err(|source| WalsenderError::Io { doing: self.doing.clone(), source })
    }

    /// The next message that is neither a notice nor an error.
    async fn receive(&mut self) -> Result<Message, WalsenderError> {
        loop {
            match self.wire.receive().await {
                Ok(Received::Message(Message::NoticeResponse(_))) => {}
                Ok(Received::Message(Message::ErrorResponse(body))) => {
                    return Err(WalsenderError::refused(self.doing.clone(), ServerError::read(body.fields())));
                }
                Ok(Received::Message(message)) => return Ok(message),
                Ok(Received::CopyBoth) => return Err(self.out_of_order()),
                Err(source) => return Err(WalsenderError::Io { doing: self.doing.clone(), source }),
            }
        }
    }

    fn failed(&self, reason: &str) -> WalsenderError {
        WalsenderError::Authentication { endpoint: self.address.to_string(), reason: reason.to_owned() }
    }

    fn out_of_order(&self) -> WalsenderError {
        WalsenderError::Protocol {
            doing: self.doing.clone(),
            reason: "a message that has no place in the startup".to_owned(),
        }
    }

    /// A zero byte in a name or password.
    fn unsendable(&self, source: &std::io::Error) -> WalsenderError {
        WalsenderError::Url { reason: source.to_string() }
    }
}
