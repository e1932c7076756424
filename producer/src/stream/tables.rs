//! The tables that the stream meets: shape, schemas, topic and partitions of each, made at the first event and again when
//! the server describes the table anew.

use std::collections::HashMap;
use std::sync::Arc;

use changelog::{Column, Definition, EventEncoder, Identity, Position, TableChange, TableName, TableShape};
use tokio_postgres::Client;

use super::images::Columns;
use super::segment::PartitionIndex;
use crate::assemble::RelationInfo;
use crate::error::Error;
use crate::lane::Lane;
use crate::pgoutput::{self, ReplicaIdentity};
use crate::source::catalog::{self, Generated};
use crate::source::schema_trigger::{self, Changed};
use crate::tails::Place;
use crate::topics::{Made, Wanted};

/// One partition of one table's topic.
#[derive(Debug)]
pub struct PartitionState {
    pub topic: Arc<str>,
    pub partition: i32,
    /// Of key and value: an event that is larger goes in pieces.
    pub record_bytes_max: usize,
    /// The position of its last event: nothing at or below it is sent again.
    pub tail: Option<Position>,
}

/// A table as the events of now are written.
pub struct StreamTable {
    pub relation: Arc<RelationInfo>,
    pub encoder: EventEncoder,
    pub key: Vec<usize>,
    pub columns: Columns,
    /// Index of the topic's partition 0; the others follow.
    pub first_partition: PartitionIndex,
    pub partitions: i32,
}

/// Every table met in this session, by relation id.
pub struct StreamTables {
    lane: Arc<Lane>,
    by_relation: foldhash::HashMap<u32, StreamTable>,
    by_topic: HashMap<Arc<str>, (PartitionIndex, i32)>,
    pub partitions: Vec<PartitionState>,
    tails: HashMap<Place, Position>,
    /// The topics that were there at the start: for them Kafka is not asked again, it may be away.
    made: HashMap<String, Made>,
    /// By OID: as the event trigger described it in the stream, so as it is there.
    told: HashMap<u32, catalog::Table>,
    client: Option<Client>,
}

impl StreamTables {
    /// `tails` and `made`: of the topics that were there at the start.
    pub fn new(lane: Arc<Lane>, tails: HashMap<Place, Position>, made: HashMap<String, Made>) -> StreamTables {
        let (by_relation, by_topic, partitions) = (Default::default(), HashMap::new(), Vec::new());
        StreamTables { lane, by_relation, by_topic, partitions, tails, made, told: HashMap::new(), client: None }
    }

    /// Takes what the event trigger told, and says it as the lane does: of tables that are published, or were.
    ///
    /// # Errors
    /// The registry refuses a schema.
    pub async fn tell(&mut self, changes: Vec<Changed>, statement: &str) -> Result<Vec<TableChange>, Error> {
        let mut out = Vec::with_capacity(changes.len());
        for Changed { before, after, rewritten } in changes {
            let Some(before) = before else {
                out.extend(after.and_then(partition));
                continue;
            };
            let (previous_schema_id, _) = self.lane.register(&before.shape(&self.lane.database)).await?;
            let schema_id = match &after {
                Some(after) => Some(self.lane.register(&after.shape(&self.lane.database)).await?.0),
                None => None,
            };
            let rewritten = rewritten && !generated_alone(&before, after.as_ref(), statement);
            if schema_id == Some(previous_schema_id) && !rewritten {
                continue;
            }
            let table = after.as_ref().map_or_else(|| before.name.clone(), |after| after.name.clone());
            let previous_schema_id = Some(previous_schema_id);
            let previous = before.name;
            let partition_of = String::new();
            out.push(TableChange { table, previous, previous_schema_id, schema_id, rewritten, partition_of });
            self.told.extend(after.map(|after| (after.oid, after)));
        }
        Ok(out)
    }

    /// The table of a relation if it is known as it is described now.
    pub fn known(&mut self, relation: &Arc<RelationInfo>) -> Option<&mut StreamTable> {
        self.by_relation.get_mut(&relation.id).filter(|table| Arc::ptr_eq(&table.relation, relation))
    }

    /// Learns a table: reads the catalog, registers its schemas, makes its topic if needed. `xid`: of the transaction whose change
    /// asks for it.
    ///
    /// # Errors
    /// The catalog or Kafka does not answer, or the registry refuses the schema.
    pub async fn learn(&mut self, relation: &Arc<RelationInfo>, xid: u32) -> Result<(), Error> {
        let (shape, columns) = self.describe(relation, xid).await?;
        let topic: Arc<str> = self.lane.topics.table(&shape.table).into();
        let (first_partition, partitions) = self.place(&topic).await?;
        let (value_id, key_id) = self.lane.register(&shape).await?;
        tracing::info!(table = %shape.table, topic = &*topic, schema = value_id, columns = shape.columns.len(), "table described");
        let key = shape.key_columns();
        let encoder = EventEncoder::new(Arc::new(shape), self.lane.direction, value_id, key_id);
        let table = StreamTable { relation: relation.clone(), encoder, key, columns, first_partition, partitions };
        self.by_relation.insert(relation.id, table);
        Ok(())
    }

    /// Something has changed that was not told.
    pub fn forget_told(&mut self) {
        self.told.clear();
    }

    /// Whether the source's event trigger has emitted a message, and not just somebody who may write.
    ///
    /// # Errors
    /// The source does not answer.
    pub async fn knows(&mut self, secret: &str) -> Result<bool, Error> {
        let client = self.session().await?;
        let known = schema_trigger::secret(&client, &self.lane.config.migration.name).await?;
        self.client = Some(client);
        Ok(known.is_some_and(|known| known == secret))
    }

    async fn session(&mut self) -> Result<Client, Error> {
        match self.client.take().filter(|client| !client.is_closed()) {
            Some(client) => Ok(client),
            None => Ok(self.lane.source.connect(&self.lane.application_name()).await?),
        }
    }

    async fn describe(&mut self, relation: &RelationInfo, xid: u32) -> Result<(TableShape, Columns), Error> {
        if let Some(told) = self.told.get(&relation.id).filter(|told| describes(told, relation)) {
            let names = told.columns.iter().map(|column| (column.type_oid, column.type_name.clone())).collect();
            return Ok(shape_of(relation, Some(told), &names, self.by_relation.get(&relation.id), &self.lane.database));
        }
        let client = self.session().await?;
        catalog::ended(&client, xid).await?;
        let known = catalog::table(&client, relation.id).await?;
        let oids: Vec<u32> = relation.columns.iter().map(|column| column.type_oid).collect();
        let names = catalog::type_names(&client, &oids).await?;
        self.client = Some(client);
        let earlier = self.by_relation.get(&relation.id);
        Ok(shape_of(relation, known.as_deref(), &names, earlier, &self.lane.database))
    }

    async fn place(&mut self, topic: &Arc<str>) -> Result<(PartitionIndex, i32), Error> {
        if let Some(place) = self.by_topic.get(topic) {
            return Ok(*place);
        }
        let Made { partitions: count, record_bytes_max } = match self.made.get(&**topic) {
            Some(made) => *made,
            None => self.make_topic(topic).await?,
        };
        let places = (0..count).map(|at| (topic.to_string(), at as i32));
        let first = self.partitions.len() as PartitionIndex;
        self.partitions.extend(places.map(|place| PartitionState {
            topic: topic.clone(),
            partition: place.1,
            record_bytes_max,
            tail: self.tails.get(&place).copied(),
        }));
        self.by_topic.insert(topic.clone(), (first, count as i32));
        Ok((first, count as i32))
    }
}

impl StreamTables {
    /// A table that was renamed, or added to the publication by hand: its topic is made, or found as an earlier session left it.
    async fn make_topic(&mut self, topic: &str) -> Result<Made, Error> {
        let made_with = usize::try_from(self.lane.config.producer.partitions).unwrap_or(1);
        let mut present = self.lane.admin.ensure(&[Wanted::about(topic.to_owned(), made_with)]).await?;
        let lost = || Error::TopicLost { topic: topic.to_owned(), what: "it does not exist".into() };
        let made = present.remove(topic).ok_or_else(lost)?;
        let places: Vec<Place> = (0..made.partitions).map(|at| (topic.to_owned(), at as i32)).collect();
        self.tails.extend(self.lane.read_tails(places).await?);
        Ok(made)
    }
}

/// A partition that was made: its rows are its root's.
fn partition(made: catalog::Table) -> Option<TableChange> {
    let (table, partition_of) = (made.name.clone(), made.partition_of?);
    let (previous_schema_id, schema_id, rewritten) = (None, None, false);
    Some(TableChange { table, previous: made.name, previous_schema_id, schema_id, rewritten, partition_of })
}

/// Whether only the values of a generated column were computed anew: each side makes its own. Pure.
fn generated_alone(before: &catalog::Table, after: Option<&catalog::Table>, statement: &str) -> bool {
    let types = |table: &catalog::Table| -> Vec<(String, i32)> {
        let generated = table.columns.iter().filter(|column| column.generated != Generated::No);
        generated.map(|column| (column.type_name.clone(), column.typmod)).collect()
    };
    let changed = after.is_some_and(|after| types(after) != types(before));
    changed && !statement.is_empty() && !statement.to_lowercase().contains("using")
}

/// Whether the table was told to be what the stream says now: nothing happened in between that was not told. Pure.
fn describes(told: &catalog::Table, relation: &RelationInfo) -> bool {
    let plain = || told.columns.iter().filter(|column| column.generated == Generated::No);
    let sent = |column: &catalog::CatalogColumn| {
        relation.columns.iter().any(|sent| {
            (sent.name.as_str(), sent.type_oid, sent.type_modifier)
                == (column.name.as_str(), column.type_oid, column.typmod)
        })
    };
    (told.name.schema == relation.schema && told.name.name == relation.name)
        && relation.columns.iter().all(|sent| told.columns.iter().any(|column| column.name == sent.name))
        && plain().all(sent)
}

/// Puts together what the stream says (columns, types, identity: as of the change) and what only the catalog knows (the
/// primary key, names of types: as of now, perhaps later). Pure.
fn shape_of(
    relation: &RelationInfo,
    known: Option<&catalog::Table>,
    type_names: &HashMap<u32, String>,
    earlier: Option<&StreamTable>,
    database: &str,
) -> (TableShape, Columns) {
    let identity = match relation.replica_identity {
        ReplicaIdentity::Default => Identity::Default,
        ReplicaIdentity::Nothing => Identity::Nothing,
        ReplicaIdentity::Full => Identity::Full,
        ReplicaIdentity::Index => Identity::Index,
    };
    let generated = |name: &str| {
        let computed = |column: &catalog::CatalogColumn| column.name == name && column.generated != Generated::No;
        known.is_some_and(|table| table.columns.iter().any(computed))
    };
    let kept: Vec<bool> = relation.columns.iter().map(|column| !generated(&column.name)).collect();
    let key = key_of(relation, identity, known, earlier);
    let columns = relation.columns.iter().zip(&kept).filter(|(_, kept)| **kept).map(|(column, _)| Column {
        name: column.name.clone(),
        type_oid: column.type_oid,
        typmod: column.type_modifier,
        // A type that was dropped since: its values are text, and so is the cast.
        type_name: type_names.get(&column.type_oid).cloned().unwrap_or_else(|| "pg_catalog.text".into()),
        key: key.iter().position(|name| *name == column.name).and_then(|place| u16::try_from(place).ok()),
        definition: definition_of(column, known, earlier),
    });
    let table = TableName::new(relation.schema.clone(), relation.name.clone());
    let shape =
        TableShape { database: database.to_owned(), table, oid: relation.id, identity, columns: columns.collect() };
    let all = kept.iter().all(|kept| *kept);
    (shape, Columns { kept: if all { None } else { Some(kept) } })
}

/// What the catalog says of the column that the stream has; where it does not know it any more, what it said before.
fn definition_of(
    column: &pgoutput::RelationColumn,
    known: Option<&catalog::Table>,
    earlier: Option<&StreamTable>,
) -> Definition {
    let same = |candidate: &&catalog::CatalogColumn| {
        candidate.name == column.name
            && (candidate.type_oid, candidate.typmod) == (column.type_oid, column.type_modifier)
    };
    let known = known.and_then(|table| table.columns.iter().find(same)).map(|column| &column.definition);
    let earlier = || {
        let columns = earlier.map(|table| &table.encoder.shape().columns);
        columns.into_iter().flatten().find(|candidate| candidate.name == column.name).map(|column| &column.definition)
    };
    known.or_else(earlier).cloned().unwrap_or_default()
}

fn key_of(
    relation: &RelationInfo,
    identity: Identity,
    known: Option<&catalog::Table>,
    earlier: Option<&StreamTable>,
) -> Vec<String> {
    let has = |names: &[String]| names.iter().all(|name| relation.columns.iter().any(|column| column.name == *name));
    if let Some(table) = known.filter(|table| has(&table.key)) {
        // The catalog may be ahead: under an index identity only columns that the stream marks can be in a before image.
        let sent = |name: &String| relation.columns.iter().any(|column| column.key && column.name == *name);
        if identity == Identity::Full || table.key.iter().all(sent) {
            return table.key.clone();
        }
    }
    if identity != Identity::Full {
        return relation.columns.iter().filter(|column| column.key).map(|column| column.name.clone()).collect();
    }
    // Dropped since, or another key now: what it was when we met it before.
    let earlier = earlier.map(|table| {
        let shape = table.encoder.shape();
        shape.key_columns().into_iter().map(|at| shape.columns[at].name.clone()).collect::<Vec<String>>()
    });
    earlier.filter(|names| has(names)).unwrap_or_default()
}
