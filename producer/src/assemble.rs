//! Transaction assembly: pgoutput messages in stream order become the events of whole transactions.
//!
//! ```text
//!  Begin  Relation  Insert  Truncate{a,b}  Message  Commit        what the server sends
//!    │       │        │          │            │        │
//!    │   remembered  #0       #1 (a), #2 (b)  │        │          the ordinal
//!    ▼                ▼          ▼  ▼         ▼        ▼
//!  Begin           Change     Change Change  Marker  Commit       what comes out
//! ```
//!
//! Pure: no I/O, no clock, and no opinion on tables. It must never filter: the ordinal is a part of a change's identity
//! ([`changelog::Position`]), so it counts every insert, update and delete and every relation of a truncate that the server
//! sends, in order, whatever a caller does with them. A change of tables that the event trigger told counts too: it has its place
//! among the rows. Other logical messages do not.
//!
//! A restart makes a new assembler: the server sends from the beginning of a transaction, and each Relation message again.
//! A transaction is not held here, its events go out as they come; memory is the known relations.

use std::sync::Arc;

use bytes::Bytes;
use changelog::origin::MESSAGE_PREFIX;
use changelog::{Lsn, Position};
use foldhash::HashMap;

use crate::pgoutput::{Before, Begin, Commit, LogicalMessage, Message, Relation, Truncate, TupleData};

/// Prefix of what the source's event trigger emits ([`crate::source::schema_trigger`]).
pub const SCHEMA_PREFIX: &str = "dflux.schema";

/// Prefix of our markers (`pg_logical_emit_message(true, 'dflux.marker', …)`).
pub const MARKER_PREFIX: &str = "dflux.marker";

/// A table as the stream describes it. A new `Arc` stands for a new description: compare with [`Arc::ptr_eq`].
pub type RelationInfo = Relation;

/// One event, in stream order. Between a `Begin` and its `Commit` all events belong to that transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Assembled {
    Begin(Begin),
    /// The transaction was replayed on the server from `name`; before its changes.
    Origin {
        lsn: Lsn,
        name: String,
    },
    /// As `Origin`, said by a message of ours with [`MESSAGE_PREFIX`].
    OriginMessage {
        content: Bytes,
    },
    Change(Change),
    /// A transactional message with [`MARKER_PREFIX`].
    Marker {
        lsn: Lsn,
        content: Bytes,
    },
    /// Tables were changed: a message with [`SCHEMA_PREFIX`].
    Schema {
        ordinal: u64,
        content: Bytes,
    },
    Commit(Committed),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// 0-based place in the transaction, over every change that the server sent.
    pub ordinal: u64,
    pub relation: Arc<RelationInfo>,
    pub kind: ChangeKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeKind {
    Insert {
        after: TupleData,
    },
    Update {
        before: Before,
        after: TupleData,
    },
    Delete {
        before: Before,
    },
    /// One relation of a TRUNCATE.
    Truncate {
        cascade: bool,
        restart_identity: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    pub commit_lsn: Lsn,
    /// What is confirmed to the slot once all of the transaction is acknowledged.
    pub end_lsn: Lsn,
    /// Microseconds since the Unix epoch.
    pub commit_time_micros: i64,
    pub xid: u32,
    /// How many ordinals were given out; 0 for a transaction without changes.
    pub changes: u64,
}

/// The messages do not make transactions. None can be retried on the same connection: what was sent is lost to us.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssembleError {
    #[error("{message} message at {lsn} stands outside of a transaction")]
    OutsideTransaction { message: &'static str, lsn: Lsn },
    #[error(
        "transaction {xid} with commit LSN {lsn} begins inside of transaction {open_xid} with commit LSN {open_lsn}"
    )]
    NestedBegin { xid: u32, lsn: Lsn, open_xid: u32, open_lsn: Lsn },
    #[error(
        "transaction {xid} with commit LSN {lsn} follows one with commit LSN {previous}: the stream went backwards"
    )]
    NotAscending { xid: u32, lsn: Lsn, previous: Lsn },
    #[error("transaction {xid} began with commit LSN {announced} and commits with {commit_lsn}")]
    CommitMismatch { xid: u32, announced: Lsn, commit_lsn: Lsn },
    #[error("transaction {xid} with commit LSN {commit_lsn} has the end LSN {end_lsn}, which is not behind it")]
    EndBeforeCommit { xid: u32, commit_lsn: Lsn, end_lsn: Lsn },
    #[error("change at {position} names relation {relation_id}, which no Relation message described")]
    UnknownRelation { relation_id: u32, position: Position },
    #[error("change of {schema}.{table} at {position} has {found} columns, its Relation message {expected}")]
    ColumnCount { schema: String, table: String, position: Position, found: usize, expected: usize },
    #[error("transaction {xid} with commit LSN {lsn} has more changes than an ordinal can count")]
    TooManyChanges { xid: u32, lsn: Lsn },
}

impl AssembleError {
    /// What a person can do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::OutsideTransaction { .. }
            | Self::NestedBegin { .. }
            | Self::CommitMismatch { .. }
            | Self::EndBeforeCommit { .. }
            | Self::UnknownRelation { .. }
            | Self::ColumnCount { .. }
            | Self::TooManyChanges { .. } => {
                "start the producer again: the server then sends the transaction from its beginning; if the error comes \
                 back, report it with the server's version: SELECT version()"
            }
            Self::NotAscending { .. } => {
                "check that the url still leads to the same server and timeline: SELECT * FROM pg_control_checkpoint()"
            }
        }
    }
}

struct OpenTransaction {
    begin: Begin,
    /// The next ordinal, so also the number of changes so far.
    changes: u64,
}

impl OpenTransaction {
    /// Gives out the next ordinal.
    fn count(&mut self) -> Result<u64, AssembleError> {
        let ordinal = self.changes;
        let Begin { xid, final_lsn: lsn, .. } = self.begin;
        self.changes = ordinal.checked_add(1).ok_or(AssembleError::TooManyChanges { xid, lsn })?;
        Ok(ordinal)
    }
}

/// The state between messages: what was described, and what is open.
#[derive(Default)]
pub struct Assembler {
    relations: HashMap<u32, Arc<RelationInfo>>,
    open: Option<OpenTransaction>,
    last_commit: Option<Lsn>,
}

impl Assembler {
    pub fn new() -> Self {
        Self::default()
    }

    /// The transaction that is open now.
    pub fn open_transaction(&self) -> Option<Begin> {
        self.open.as_ref().map(|open| open.begin)
    }

    /// Takes the next message and appends what comes of it to `out`: nothing, one event, or one for each relation of a truncate.
    /// `lsn` is the frame's WAL start, for errors only.
    ///
    /// # Errors
    /// The message does not fit the state; then nothing was appended, and the assembler is of no more use.
    pub fn accept(&mut self, lsn: Lsn, message: Message, out: &mut Vec<Assembled>) -> Result<(), AssembleError> {
        match message {
            Message::Begin(begin) => out.push(self.begin(begin)?),
            Message::Commit(commit) => out.push(self.commit(lsn, commit)?),
            Message::Origin(origin) => {
                self.opened("Origin", lsn)?;
                out.push(Assembled::Origin { lsn: origin.lsn, name: origin.name });
            }
            Message::Relation(relation) => self.describe(relation),
            // Names the type of a column for readers without a catalog; we read the catalog.
            Message::Type(_) => {}
            Message::Insert { relation_id, after } => {
                let (ordinal, relation) = self.place("Insert", lsn, relation_id, &[after.len()])?;
                out.push(Assembled::Change(Change { ordinal, relation, kind: ChangeKind::Insert { after } }));
            }
            Message::Update { relation_id, before, after } => {
                let width_before = before.tuple().map_or(after.len(), TupleData::len);
                let (ordinal, relation) = self.place("Update", lsn, relation_id, &[width_before, after.len()])?;
                out.push(Assembled::Change(Change { ordinal, relation, kind: ChangeKind::Update { before, after } }));
            }
            Message::Delete { relation_id, before } => {
                let width: &[usize] = &before.tuple().map_or([0], |tuple| [tuple.len()]);
                let (ordinal, relation) = self.place("Delete", lsn, relation_id, width)?;
                out.push(Assembled::Change(Change { ordinal, relation, kind: ChangeKind::Delete { before } }));
            }
            Message::Truncate(truncate) => self.truncate(lsn, &truncate, out)?,
            Message::Logical(message) => out.extend(self.logical(lsn, message)?),
        }
        Ok(())
    }

    fn begin(&mut self, begin: Begin) -> Result<Assembled, AssembleError> {
        let (xid, lsn) = (begin.xid, begin.final_lsn);
        if let Some(open) = &self.open {
            return Err(AssembleError::NestedBegin {
                xid,
                lsn,
                open_xid: open.begin.xid,
                open_lsn: open.begin.final_lsn,
            });
        }
        if let Some(previous) = self.last_commit.filter(|previous| lsn <= *previous) {
            return Err(AssembleError::NotAscending { xid, lsn, previous });
        }
        self.open = Some(OpenTransaction { begin, changes: 0 });
        Ok(Assembled::Begin(begin))
    }

    fn commit(&mut self, lsn: Lsn, commit: Commit) -> Result<Assembled, AssembleError> {
        let open = self.open.take().ok_or(AssembleError::OutsideTransaction { message: "Commit", lsn })?;
        let Begin { xid, final_lsn: announced, .. } = open.begin;
        let Commit { commit_lsn, end_lsn, commit_time_micros, .. } = commit;
        if commit_lsn != announced {
            return Err(AssembleError::CommitMismatch { xid, announced, commit_lsn });
        }
        if end_lsn <= commit_lsn {
            return Err(AssembleError::EndBeforeCommit { xid, commit_lsn, end_lsn });
        }
        self.last_commit = Some(commit_lsn);
        Ok(Assembled::Commit(Committed { commit_lsn, end_lsn, commit_time_micros, xid, changes: open.changes }))
    }

    /// The server repeats a description after each invalidation of its cache. Often nothing that it says has changed; but a
    /// column may be another of the same name, so what a caller derived from it is derived again.
    fn describe(&mut self, relation: Relation) {
        self.relations.insert(relation.id, Arc::new(relation));
    }

    fn opened(&mut self, message: &'static str, lsn: Lsn) -> Result<&mut OpenTransaction, AssembleError> {
        self.open.as_mut().ok_or(AssembleError::OutsideTransaction { message, lsn })
    }

    /// Checks one change against its relation and gives it its ordinal. `widths`: the columns of each tuple it carries.
    fn place(
        &mut self,
        message: &'static str,
        lsn: Lsn,
        relation_id: u32,
        widths: &[usize],
    ) -> Result<(u64, Arc<RelationInfo>), AssembleError> {
        let open = self.open.as_mut().ok_or(AssembleError::OutsideTransaction { message, lsn })?;
        let position = Position::new(open.begin.final_lsn, open.changes);
        let relation =
            self.relations.get(&relation_id).ok_or(AssembleError::UnknownRelation { relation_id, position })?;
        let expected = relation.columns.len();
        if let Some(&found) = widths.iter().find(|found| **found != expected) {
            let (schema, table) = (relation.schema.clone(), relation.name.clone());
            return Err(AssembleError::ColumnCount { schema, table, position, found, expected });
        }
        let ordinal = open.count()?;
        Ok((ordinal, Arc::clone(relation)))
    }

    fn truncate(&mut self, lsn: Lsn, truncate: &Truncate, out: &mut Vec<Assembled>) -> Result<(), AssembleError> {
        self.opened("Truncate", lsn)?;
        let before = out.len();
        for &relation_id in &truncate.relation_ids {
            match self.place("Truncate", lsn, relation_id, &[]) {
                Ok((ordinal, relation)) => {
                    let Truncate { cascade, restart_identity, .. } = *truncate;
                    let kind = ChangeKind::Truncate { cascade, restart_identity };
                    out.push(Assembled::Change(Change { ordinal, relation, kind }));
                }
                Err(error) => {
                    out.truncate(before);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn logical(&mut self, lsn: Lsn, message: LogicalMessage) -> Result<Option<Assembled>, AssembleError> {
        // A message outside of transactions is sent when it is met in the WAL: it says nothing about what is before it.
        if !message.transactional {
            return Ok(None);
        }
        let open = self.opened("Message", lsn)?;
        Ok(match message.prefix.as_str() {
            SCHEMA_PREFIX => Some(Assembled::Schema { ordinal: open.count()?, content: message.content }),
            MARKER_PREFIX => Some(Assembled::Marker { lsn: message.lsn, content: message.content }),
            MESSAGE_PREFIX => Some(Assembled::OriginMessage { content: message.content }),
            _ => None,
        })
    }
}
