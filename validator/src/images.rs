//! Change events in flight, read as texts by column: what the newest event of each key says its row must be.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use changelog::text::format_value;
use changelog::{EventDecoder, Op, Value};
use service::registry::RegistryClient;

use crate::Error;
use crate::canonical::Layout;
use crate::definition::TableDefinition;
use crate::settle::Unsettled;
use crate::window::Change;

/// One value of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    Text(String),
    Null,
    /// Not sent, or not in the events at all (a generated column): cannot be compared.
    Unknown,
}

impl Cell {
    fn text(&self) -> Option<String> {
        match self {
            Cell::Text(text) => Some(text.clone()),
            Cell::Null | Cell::Unknown => None,
        }
    }
}

/// The newest event of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub key: Vec<String>,
    /// Whether the row exists after the event.
    pub present: bool,
    /// Whether the row was only updated since the snapshot of the source: it is in it, with the values that were not sent.
    pub updated: bool,
    /// One per field of the layout.
    pub cells: Vec<Cell>,
}

impl Image {
    /// One text or null per field.
    pub fn texts(&self) -> Vec<Option<String>> {
        self.cells.iter().map(Cell::text).collect()
    }

    /// Places among the summed columns of values that no event in flight has. A generated one is not among them: each side makes it of
    /// the others, by an expression that level 0 compares.
    pub fn unsent(&self, layout: &Layout, source: &TableDefinition) -> Vec<usize> {
        let sent = |name: &str| source.column(name).is_none_or(|column| column.generated.is_empty());
        let unsent = |at: &usize| self.cells.get(*at) == Some(&Cell::Unknown) && sent(&layout.fields[*at].name);
        let summed = layout.summed().into_iter().enumerate();
        if self.present { summed.filter(|(_, at)| unsent(at)).map(|(nth, _)| nth).collect() } else { Vec::new() }
    }

    /// For each summed column, `=` where it is to be compared.
    pub fn flags(&self, layout: &Layout) -> String {
        let flag =
            |at: usize| if !self.present || self.cells.get(at).is_none_or(|c| *c == Cell::Unknown) { 'u' } else { '=' };
        layout.summed().into_iter().map(flag).collect()
    }
}

/// Rows that changes in flight add to and take from a keyless table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    pub added: Vec<Vec<Option<String>>>,
    pub removed: Vec<Vec<Option<String>>>,
}

/// Decoders by schema id. Ids never change their meaning.
#[derive(Debug)]
pub struct Decoders {
    registry: RegistryClient,
    by_id: HashMap<u32, Arc<EventDecoder>>,
}

impl Decoders {
    pub fn new(registry: RegistryClient) -> Decoders {
        Decoders { registry, by_id: HashMap::new() }
    }

    /// Fetches the schemas of these changes that are not known yet.
    ///
    /// # Errors
    /// `Registry`, `RegistryRefused`, `Event`.
    pub async fn prepare(&mut self, table: &str, changes: &[Change]) -> Result<(), Error> {
        for change in changes {
            let unreadable = |source| unreadable(table, change, source);
            let id = EventDecoder::head(&change.payload).map_err(unreadable)?.schema_id;
            if !self.by_id.contains_key(&id) {
                let schema = self.registry.schema(id).await?;
                self.by_id.insert(id, Arc::new(EventDecoder::new(id, &schema).map_err(unreadable)?));
            }
        }
        Ok(())
    }

    fn decode(&self, table: &str, change: &Change) -> Result<Decoded, Error> {
        let unreadable = |source| unreadable(table, change, source);
        let id = EventDecoder::head(&change.payload).map_err(unreadable)?.schema_id;
        let corrupt = changelog::Error::Corrupt { at: 0, what: "its schema was not fetched" };
        let decoder = self.by_id.get(&id).ok_or(corrupt).map_err(unreadable)?;
        let event = decoder.event(&change.payload).map_err(unreadable)?;
        let (mut before, mut after) = (Vec::new(), Vec::new());
        let (has_before, has_after) = decoder.images(&event, &mut before, &mut after).map_err(unreadable)?;
        let named = |values: &[Value<'_>]| {
            let columns = &decoder.shape().columns;
            columns
                .iter()
                .zip(values)
                .map(|(column, value)| (column.name.clone(), cell(value, column.kind())))
                .collect()
        };
        Ok(Decoded {
            op: event.header.op,
            before: has_before.then(|| named(&before)),
            after: has_after.then(|| named(&after)),
        })
    }
}

fn unreadable(table: &str, change: &Change, source: changelog::Error) -> Error {
    Error::Event { table: table.to_owned(), position: change.position.to_string(), source: Box::new(source) }
}

fn cell(value: &Value<'_>, kind: changelog::Kind) -> Cell {
    if matches!(value, Value::Unchanged) {
        return Cell::Unknown;
    }
    let mut text = String::new();
    if format_value(value, kind, &mut text) { Cell::Text(text) } else { Cell::Null }
}

struct Decoded {
    op: Op,
    before: Option<HashMap<String, Cell>>,
    after: Option<HashMap<String, Cell>>,
}

/// A row image in the order of the layout's fields.
fn ordered(image: &HashMap<String, Cell>, layout: &Layout, source: &TableDefinition) -> Result<Vec<Cell>, Unsettled> {
    if let Some(stranger) = image.keys().find(|name| source.column(name).is_none()) {
        return Err(Unsettled::SchemaChanged(format!("an event has column {stranger}")));
    }
    let of_field = |name: &str| match image.get(name) {
        Some(cell) => Ok(cell.clone()),
        None if source.column(name).is_some_and(|column| !column.generated.is_empty()) => Ok(Cell::Unknown),
        None => Err(Unsettled::SchemaChanged(format!("an event lacks column {name}"))),
    };
    layout.fields.iter().map(|field| of_field(&field.name)).collect()
}

/// The newest image of each key, in the order of their newest events. `changes` are in source order.
///
/// # Errors
/// Inner: `SchemaChanged`, `TooManyInFlight`. Outer: `Event`.
pub fn newest(
    decoders: &Decoders,
    changes: &[Change],
    layout: &Layout,
    source: &TableDefinition,
) -> Result<Result<Vec<Image>, Unsettled>, Error> {
    let table = layout.table.to_string();
    let mut newest: HashMap<Vec<String>, Image> = HashMap::new();
    for change in changes {
        let decoded = decoders.decode(&table, change)?;
        let present = decoded.op != Op::Delete;
        let image = if present { decoded.after } else { decoded.before };
        let Some(image) = image else {
            return Ok(Err(Unsettled::SchemaChanged("an event has no row image".into())));
        };
        let mut cells = if present {
            match ordered(&image, layout, source) {
                Ok(cells) => cells,
                Err(unsettled) => return Ok(Err(unsettled)),
            }
        } else {
            // A delete may carry only its key.
            layout.fields.iter().map(|field| image.get(&field.name).cloned().unwrap_or(Cell::Unknown)).collect()
        };
        let key: Option<Vec<String>> = layout.key.iter().map(|at| cells.get(*at).and_then(Cell::text)).collect();
        let Some(key) = key else {
            return Ok(Err(Unsettled::SchemaChanged("an event lacks its key".into())));
        };
        let prior = newest.get(&key);
        let updated = decoded.op == Op::Update && prior.is_none_or(|prior| prior.updated);
        if decoded.op == Op::Update
            && let Some(prior) = prior
        {
            // What an update does not send is as the change before left it.
            let unsent = cells.iter_mut().zip(&prior.cells).filter(|(cell, _)| **cell == Cell::Unknown);
            unsent.for_each(|(cell, prior)| *cell = prior.clone());
        }
        newest.insert(key.clone(), Image { key, present, updated, cells });
        if newest.len() > crate::config::IN_FLIGHT_MAX {
            return Ok(Err(Unsettled::TooManyInFlight(newest.len())));
        }
    }
    Ok(Ok(newest.into_values().collect()))
}

/// The keys that the changes are of; none if that is not said of each of them.
///
/// # Errors
/// `Event`.
pub fn keys(decoders: &Decoders, changes: &[Change], layout: &Layout) -> Result<Option<BTreeSet<Vec<String>>>, Error> {
    let table = layout.table.to_string();
    let mut keys = BTreeSet::new();
    for change in changes {
        if change.op == Op::Truncate {
            return Ok(None);
        }
        let decoded = decoders.decode(&table, change)?;
        let image = if decoded.op == Op::Delete { decoded.before } else { decoded.after };
        let text = |at: &usize| image.as_ref()?.get(&layout.fields[*at].name)?.text();
        let Some(key) = layout.key.iter().map(text).collect::<Option<Vec<String>>>() else { return Ok(None) };
        keys.insert(key);
    }
    Ok(Some(keys))
}

/// What the changes do to a keyless table, whole rows only.
///
/// # Errors
/// Inner: `BusyKeyless` where an image is not whole. Outer: `Event`.
pub fn delta(
    decoders: &Decoders,
    changes: &[Change],
    layout: &Layout,
    source: &TableDefinition,
) -> Result<Result<Delta, Unsettled>, Error> {
    if changes.len() > crate::config::IN_FLIGHT_MAX {
        return Ok(Err(Unsettled::TooManyInFlight(changes.len())));
    }
    let table = layout.table.to_string();
    let mut delta = Delta::default();
    for change in changes {
        let decoded = decoders.decode(&table, change)?;
        let whole = |image: Option<&HashMap<String, Cell>>| {
            let cells = ordered(image.ok_or(Unsettled::BusyKeyless)?, layout, source)?;
            if cells.contains(&Cell::Unknown) {
                return Err(Unsettled::BusyKeyless);
            }
            Ok(cells.iter().map(Cell::text).collect::<Vec<_>>())
        };
        let parts = || {
            let added = (decoded.op != Op::Delete).then(|| whole(decoded.after.as_ref())).transpose()?;
            let removed = (decoded.op != Op::Create).then(|| whole(decoded.before.as_ref())).transpose()?;
            Ok((added, removed))
        };
        match parts() {
            Ok((added, removed)) => {
                delta.added.extend(added);
                delta.removed.extend(removed);
            }
            Err(unsettled) => return Ok(Err(unsettled)),
        }
    }
    Ok(Ok(delta))
}

#[cfg(test)]
mod tests {
    use changelog::encode::{Cell as Sent, EventEncoder};
    use changelog::schema::value_schema;
    use changelog::{Column, Header, Identity, Lane, Lsn, Position, TableName, TableShape};

    use super::*;
    use crate::canonical::{Field, HashLane};
    use crate::definition::{BaseType, ColumnDefinition};

    const ROW: [(&str, u32, &str); 3] = [("id", 20, "int8"), ("v", 25, "text"), ("f", 701, "float8")];

    struct Table {
        encoder: EventEncoder,
        decoders: Decoders,
        layout: Layout,
        definition: TableDefinition,
    }

    fn table(key: Vec<usize>) -> Table {
        let column = |(at, (name, type_oid, kind)): (usize, &(&str, u32, &str))| Column {
            name: (*name).into(),
            type_oid: *type_oid,
            typmod: -1,
            type_name: format!("pg_catalog.{kind}"),
            key: key.iter().position(|place| *place == at).map(|place| place as u16),
            definition: changelog::Definition::default(),
        };
        let shape = Arc::new(TableShape {
            database: "d".into(),
            table: TableName::new("public", "t"),
            oid: 0,
            identity: Identity::Full,
            columns: ROW.iter().enumerate().map(column).collect(),
        });
        let mut decoders = Decoders::new(RegistryClient::new("http://127.0.0.1:1"));
        decoders.by_id.insert(7, Arc::new(EventDecoder::new(7, &value_schema(&shape)).unwrap()));
        let base = |kind: &str| BaseType { schema: "pg_catalog".into(), name: kind.into(), ..BaseType::default() };
        let layout = Layout {
            table: shape.table.clone(),
            fields: ROW.iter().map(|(name, _, kind)| Field { name: (*name).into(), base: base(kind) }).collect(),
            key,
            partitioned: false,
            lane: HashLane::Extended,
            scan: crate::canonical::Scan { sums: true, counts: false, sample: None },
        };
        let defined = |(name, _, kind): &(&str, u32, &str)| ColumnDefinition {
            name: (*name).into(),
            base: base(kind),
            ..ColumnDefinition::default()
        };
        let definition = TableDefinition {
            schema: "public".into(),
            name: "t".into(),
            kind: "r".into(),
            persistence: "p".into(),
            columns: ROW.iter().map(defined).collect(),
            ..TableDefinition::default()
        };
        Table { encoder: EventEncoder::new(shape, Lane::Forward, 7, 8), decoders, layout, definition }
    }

    type Tuple<'a> = [Sent<'a>; 3];

    fn text(value: &str) -> Sent<'_> {
        Sent::Text(value.as_bytes())
    }

    impl Table {
        fn change(&mut self, lsn: u64, op: Op, before: Option<Tuple<'_>>, after: Option<Tuple<'_>>) -> Change {
            let position = Position::new(Lsn(lsn), 0);
            let header = Header { op, xid: 3, lsn: Lsn(lsn), position, commit_time_micros: 0 };
            let mut payload = Vec::new();
            let (before, after) = (before.as_ref().map(|row| &row[..]), after.as_ref().map(|row| &row[..]));
            self.encoder.value(&mut payload, &header, before, after).unwrap();
            Change { position, xid: 3, op, payload: payload.into() }
        }
    }

    #[test]
    fn the_newest_event_of_each_key_says_what_its_row_must_be() {
        let mut table = table(vec![0]);
        let changes = [
            table.change(1, Op::Create, None, Some([text("1"), text("a"), text("0.5")])),
            table.change(2, Op::Update, None, Some([text("1"), Sent::Unchanged, Sent::Null])),
            table.change(3, Op::Create, None, Some([text("2"), text("b"), text("1e+300")])),
            table.change(4, Op::Delete, Some([text("2"), Sent::Null, Sent::Null]), None),
        ];
        let mut images = newest(&table.decoders, &changes, &table.layout, &table.definition).unwrap().unwrap();
        images.sort_by(|a, b| a.key.cmp(&b.key));
        assert_eq!((images[0].key.as_slice(), images[0].present), (&["1".to_owned()][..], true));
        assert_eq!(images[0].cells, [Cell::Text("1".into()), Cell::Text("a".into()), Cell::Null]);
        assert_eq!(images[0].flags(&table.layout), "==");
        assert_eq!((images[1].present, images[1].flags(&table.layout).as_str()), (false, "uu"));
    }

    #[test]
    fn a_value_that_no_event_has_is_the_snapshots_if_the_row_was_only_updated_since() {
        let mut table = table(vec![0]);
        let unsent = [text("1"), Sent::Unchanged, Sent::Null];
        let changes = [
            table.change(1, Op::Update, None, Some(unsent)),
            table.change(2, Op::Update, None, Some(unsent)),
            // Its key was changed: the row is another's in the snapshot, or in none.
            table.change(3, Op::Create, None, Some([text("2"), Sent::Unchanged, Sent::Null])),
            table.change(4, Op::Update, None, Some([text("2"), Sent::Unchanged, Sent::Null])),
        ];
        let mut images = newest(&table.decoders, &changes, &table.layout, &table.definition).unwrap().unwrap();
        images.sort_by(|a, b| a.key.cmp(&b.key));
        let told: Vec<_> =
            images.iter().map(|image| (image.updated, image.unsent(&table.layout, &table.definition))).collect();
        assert_eq!(told, [(true, vec![0]), (false, vec![0])]);
        table.definition.columns[1].generated = "s".into();
        assert!(images[1].unsent(&table.layout, &table.definition).is_empty());
    }

    #[test]
    fn changes_of_a_keyless_table_add_and_take_whole_rows_only() {
        let mut table = table(Vec::new());
        let (old, new) = ([text("1"), text("a"), Sent::Null], [text("1"), text("b"), Sent::Null]);
        let changes = [
            table.change(1, Op::Create, None, Some(old)),
            table.change(2, Op::Update, Some(old), Some(new)),
            table.change(3, Op::Delete, Some(new), None),
        ];
        let delta_of = |table: &Table, changes: &[Change]| {
            delta(&table.decoders, changes, &table.layout, &table.definition).unwrap()
        };
        let delta = delta_of(&table, &changes).unwrap();
        assert_eq!((delta.added.len(), delta.removed.len()), (2, 2));
        assert_eq!(delta.added[1][1].as_deref(), Some("b"));
        let partial = [table.change(4, Op::Update, Some(old), Some([text("1"), Sent::Unchanged, Sent::Null]))];
        assert_eq!(delta_of(&table, &partial), Err(Unsettled::BusyKeyless));
        let blind = [table.change(5, Op::Delete, None, None)];
        assert_eq!(delta_of(&table, &blind), Err(Unsettled::BusyKeyless));
    }

    #[test]
    fn an_event_of_another_shape_settles_nothing() {
        let mut table = table(vec![0]);
        let changes = [table.change(1, Op::Create, None, Some([text("1"), text("a"), Sent::Null]))];
        let of = |table: &Table| newest(&table.decoders, &changes, &table.layout, &table.definition).unwrap();
        table.definition.columns.pop();
        assert!(matches!(of(&table), Err(Unsettled::SchemaChanged(_))));
    }
}
