//! The reader: one pass over the bytes, every read checked.

use bytes::Bytes;
use changelog::Lsn;

use super::{
    Before, Begin, Commit, DecodeError, LogicalMessage, Message, Origin, POSTGRES_EPOCH_UNIX_MICROS, Relation,
    RelationColumn, ReplicaIdentity, Truncate, TupleData, TypeName,
};

/// Decodes one message, the data of one XLogData frame.
///
/// # Errors
/// [`DecodeError`] on anything that protocol version 1 does not say, bytes after the end included.
pub fn decode(message: Bytes) -> Result<Message, DecodeError> {
    let Some(&tag) = message.first() else { return Err(DecodeError::Empty) };
    let name = match tag {
        b'B' => "Begin",
        b'C' => "Commit",
        b'O' => "Origin",
        b'R' => "Relation",
        b'Y' => "Type",
        b'I' => "Insert",
        b'U' => "Update",
        b'D' => "Delete",
        b'T' => "Truncate",
        b'M' => "Message",
        _ => return Err(DecodeError::UnknownTag { tag }),
    };
    let mut reader = Reader { message: &message, name, offset: 1 };
    let decoded = match tag {
        b'B' => Message::Begin(Begin {
            final_lsn: reader.lsn("final LSN")?,
            commit_time_micros: reader.time("commit time")?,
            xid: reader.u32("xid")?,
        }),
        b'C' => Message::Commit(Commit {
            flags: reader.u8("flags")?,
            commit_lsn: reader.lsn("commit LSN")?,
            end_lsn: reader.lsn("end LSN")?,
            commit_time_micros: reader.time("commit time")?,
        }),
        b'O' => Message::Origin(Origin { lsn: reader.lsn("origin LSN")?, name: reader.text("origin name")? }),
        b'R' => Message::Relation(relation(&mut reader)?),
        b'Y' => Message::Type(TypeName {
            oid: reader.u32("type oid")?,
            schema: reader.schema()?,
            name: reader.text("type name")?,
        }),
        b'I' => {
            let relation_id = reader.u32("relation id")?;
            reader.tag("kind of tuple", b'N')?;
            Message::Insert { relation_id, after: reader.tuple()? }
        }
        b'U' => update(&mut reader)?,
        b'D' => {
            let relation_id = reader.u32("relation id")?;
            let before = match reader.u8("kind of tuple")? {
                b'K' => Before::Key(reader.tuple()?),
                b'O' => Before::Row(reader.tuple()?),
                other => return Err(reader.invalid("kind of tuple", 1, other.into())),
            };
            Message::Delete { relation_id, before }
        }
        b'T' => Message::Truncate(truncate(&mut reader)?),
        _ => Message::Logical(logical(&mut reader)?),
    };
    reader.finish()?;
    Ok(decoded)
}

fn relation(reader: &mut Reader<'_>) -> Result<Relation, DecodeError> {
    let id = reader.u32("relation id")?;
    let schema = reader.schema()?;
    let name = reader.text("relation name")?;
    let replica_identity = match reader.u8("replica identity")? {
        b'd' => ReplicaIdentity::Default,
        b'n' => ReplicaIdentity::Nothing,
        b'f' => ReplicaIdentity::Full,
        b'i' => ReplicaIdentity::Index,
        other => return Err(reader.invalid("replica identity", 1, other.into())),
    };
    let count = usize::from(reader.count_u16("number of columns")?);
    // A column takes at least ten bytes: what is left bounds the allocation.
    let mut columns = Vec::with_capacity(count.min(reader.left() / 10));
    for _ in 0..count {
        let flags = reader.u8("column flags")?;
        if flags > 1 {
            return Err(reader.invalid("column flags", 1, flags.into()));
        }
        columns.push(RelationColumn {
            key: flags == 1,
            name: reader.text("column name")?,
            type_oid: reader.u32("column type")?,
            type_modifier: reader.i32("column type modifier")?,
        });
    }
    Ok(Relation { id, schema, name, replica_identity, columns })
}

fn update(reader: &mut Reader<'_>) -> Result<Message, DecodeError> {
    let relation_id = reader.u32("relation id")?;
    let before = match reader.u8("kind of tuple")? {
        b'N' => return Ok(Message::Update { relation_id, before: Before::Absent, after: reader.tuple()? }),
        b'K' => Before::Key(reader.tuple()?),
        b'O' => Before::Row(reader.tuple()?),
        other => return Err(reader.invalid("kind of tuple", 1, other.into())),
    };
    reader.tag("kind of tuple", b'N')?;
    Ok(Message::Update { relation_id, before, after: reader.tuple()? })
}

fn truncate(reader: &mut Reader<'_>) -> Result<Truncate, DecodeError> {
    let count = reader.count_u32("number of relations")?;
    let flags = reader.u8("flags")?;
    if flags > 3 {
        return Err(reader.invalid("flags", 1, flags.into()));
    }
    // Before allocating: each relation is four bytes and all of them must be there.
    if reader.left() / 4 < count {
        return Err(reader.truncated("relation ids", count.saturating_mul(4)));
    }
    let mut relation_ids = Vec::with_capacity(count);
    for _ in 0..count {
        relation_ids.push(reader.u32("relation id")?);
    }
    Ok(Truncate { cascade: flags & 1 != 0, restart_identity: flags & 2 != 0, relation_ids })
}

fn logical(reader: &mut Reader<'_>) -> Result<LogicalMessage, DecodeError> {
    let flags = reader.u8("flags")?;
    if flags > 1 {
        return Err(reader.invalid("flags", 1, flags.into()));
    }
    let lsn = reader.lsn("LSN")?;
    let prefix = reader.text("prefix")?;
    let length = reader.count_u32("content length")?;
    let start = reader.offset;
    reader.take("content", length)?;
    let content = reader.message.slice(start..reader.offset);
    Ok(LogicalMessage { transactional: flags == 1, lsn, prefix, content })
}

struct Reader<'a> {
    message: &'a Bytes,
    name: &'static str,
    /// Next byte to read; never past the end.
    offset: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a [u8] {
        self.message.get(self.offset..).unwrap_or(&[])
    }

    fn left(&self) -> usize {
        self.rest().len()
    }

    #[cold]
    fn truncated(&self, what: &'static str, needed: usize) -> DecodeError {
        DecodeError::Truncated { message: self.name, what, offset: self.offset, needed }
    }

    /// `width`: how many bytes back the wrong value began.
    #[cold]
    fn invalid(&self, what: &'static str, width: usize, value: i64) -> DecodeError {
        DecodeError::Invalid { message: self.name, what, offset: self.offset.saturating_sub(width), value }
    }

    #[inline]
    fn take(&mut self, what: &'static str, length: usize) -> Result<&'a [u8], DecodeError> {
        let taken = self.rest().get(..length).ok_or_else(|| self.truncated(what, length))?;
        self.offset += length;
        Ok(taken)
    }

    #[inline]
    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let taken = *self.rest().first_chunk::<N>().ok_or_else(|| self.truncated(what, N))?;
        self.offset += N;
        Ok(taken)
    }

    #[inline]
    fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        Ok(u8::from_be_bytes(self.array(what)?))
    }

    #[inline]
    fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array(what)?))
    }

    #[inline]
    fn i32(&mut self, what: &'static str) -> Result<i32, DecodeError> {
        Ok(i32::from_be_bytes(self.array(what)?))
    }

    fn lsn(&mut self, what: &'static str) -> Result<Lsn, DecodeError> {
        Ok(Lsn(u64::from_be_bytes(self.array(what)?)))
    }

    fn time(&mut self, what: &'static str) -> Result<i64, DecodeError> {
        let micros = i64::from_be_bytes(self.array(what)?);
        micros.checked_add(POSTGRES_EPOCH_UNIX_MICROS).ok_or_else(|| self.invalid(what, 8, micros))
    }

    fn tag(&mut self, what: &'static str, expected: u8) -> Result<(), DecodeError> {
        let tag = self.u8(what)?;
        if tag == expected { Ok(()) } else { Err(self.invalid(what, 1, tag.into())) }
    }

    /// A signed count on the wire; negative is an error.
    #[inline]
    fn count_u16(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        let count = i16::from_be_bytes(self.array(what)?);
        u16::try_from(count).map_err(|_| self.invalid(what, 2, count.into()))
    }

    #[inline]
    fn count_u32(&mut self, what: &'static str) -> Result<usize, DecodeError> {
        let count = self.i32(what)?;
        usize::try_from(count).map_err(|_| self.invalid(what, 4, count.into()))
    }

    /// A null-terminated string.
    fn text(&mut self, what: &'static str) -> Result<String, DecodeError> {
        let rest = self.rest();
        let length = rest.iter().position(|byte| *byte == 0).ok_or_else(|| self.truncated(what, rest.len() + 1))?;
        let text = std::str::from_utf8(rest.get(..length).unwrap_or(&[])).map_err(|_| DecodeError::NotUtf8 {
            message: self.name,
            what,
            offset: self.offset,
        })?;
        self.offset += length + 1;
        Ok(text.to_owned())
    }

    /// The server writes the empty string for `pg_catalog` (proto.c, `logicalrep_write_namespace`).
    fn schema(&mut self) -> Result<String, DecodeError> {
        let schema = self.text("schema name")?;
        Ok(if schema.is_empty() { "pg_catalog".to_owned() } else { schema })
    }

    #[inline]
    fn tuple(&mut self) -> Result<TupleData, DecodeError> {
        let columns = self.count_u16("number of columns")?;
        let start = self.offset;
        for _ in 0..columns {
            match self.u8("kind of column")? {
                b'n' | b'u' => {}
                b't' | b'b' => {
                    let length = self.count_u32("column length")?;
                    self.take("column value", length)?;
                }
                other => return Err(self.invalid("kind of column", 1, other.into())),
            }
        }
        let (Ok(start), Ok(end)) = (u32::try_from(start), u32::try_from(self.offset)) else {
            return Err(self.invalid("length", 0, i64::try_from(self.offset).unwrap_or(i64::MAX)));
        };
        Ok(TupleData::checked(self.message.clone(), start, end, columns))
    }

    fn finish(self) -> Result<(), DecodeError> {
        match self.left() {
            0 => Ok(()),
            count => Err(DecodeError::TrailingBytes { message: self.name, offset: self.offset, count }),
        }
    }
}
