//! The Avro schemas of a table's change events: made from its shape, and read back into it.
//!
//! `schemas/change-event.avsc` documents the envelope with an example row; the fields here are the same, in the same
//! order (a test compares them). Columns are `["null", T]`. What PostgreSQL knows of a column travels as field properties
//! (`pg.type`, `pg.typmod`, `pg.oid`, `pg.key`, `pg.name`), so that a reader of the topic needs no connection to the source.
//!
//! Kafka Connect reads the same schemas. It has no types for microseconds, UUIDs and JSON but names that its connectors agree
//! on: those are in `connect.name`, and the envelope is called as Debezium's sinks know it. None of our programs looks at them.

use std::collections::HashSet;

use serde_json::{Map, Value as Json, json};

use crate::table::{Column, Definition, Identity, Kind, TableName, TableShape};
use crate::{Error, Op};

/// Field order of the envelope, which the codec relies on.
pub const ENVELOPE_FIELDS: [&str; 7] = ["op", "source", "unchanged", "exact", "before_exact", "before", "after"];

/// Field order of `source`.
pub const SOURCE_FIELDS: [&str; 11] =
    ["database", "schema", "table", "xid", "lsn", "commit_lsn", "ordinal", "part", "commit_time", "lane", "snapshot"];

/// A name that Avro takes (`[A-Za-z_][A-Za-z0-9_]*`); other characters become `_` and their code in hexadecimal.
pub fn avro_name(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for (at, character) in name.chars().enumerate() {
        if character.is_ascii_alphabetic() || character == '_' || (at > 0 && character.is_ascii_digit()) {
            escaped.push(character);
        } else {
            escaped.push_str(&format!("_{:x}_", u32::from(character)));
        }
    }
    if escaped.is_empty() { "_".into() } else { escaped }
}

/// Field names of the columns: Avro names, made unique where the escape folds two.
fn field_names(columns: &[&Column]) -> Vec<String> {
    // Names that need no escape are taken first, so that they always stand for themselves.
    let mut taken: HashSet<String> =
        columns.iter().filter(|c| avro_name(&c.name) == c.name).map(|c| c.name.clone()).collect();
    columns
        .iter()
        .map(|column| {
            let name = avro_name(&column.name);
            if name == column.name {
                return name;
            }
            let mut unique = name.clone();
            let mut suffix = 2;
            while !taken.insert(unique.clone()) {
                unique = format!("{name}_{suffix}");
                suffix += 1;
            }
            unique
        })
        .collect()
}

fn avro_type(kind: Kind) -> Json {
    match kind {
        Kind::Boolean => json!("boolean"),
        Kind::Int => json!("int"),
        Kind::Long => json!("long"),
        Kind::Float => json!("float"),
        Kind::Double => json!("double"),
        Kind::Decimal { precision, scale } => {
            json!({"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale})
        }
        Kind::Text => json!("string"),
        Kind::Bytes => json!("bytes"),
        Kind::Uuid => json!({"type": "string", "logicalType": "uuid"}),
        Kind::Date => json!({"type": "int", "logicalType": "date"}),
        Kind::Time => json!({"type": "long", "logicalType": "time-micros"}),
        Kind::TimestampTz => json!({"type": "long", "logicalType": "timestamp-micros"}),
        Kind::Timestamp => json!({"type": "long", "logicalType": "local-timestamp-micros"}),
    }
}

/// The names by which Kafka Connect's connectors know what a value means. Decimals and dates they know by the logical type,
/// under which no other name may stand. An instant has no name of its own in this form: it reads as its time in UTC.
fn connect_name(column: &Column, kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Time => Some("io.debezium.time.MicroTime"),
        Kind::Timestamp | Kind::TimestampTz => Some("io.debezium.time.MicroTimestamp"),
        Kind::Uuid => Some("io.debezium.data.Uuid"),
        Kind::Text => match column.type_oid {
            JSON | JSONB => Some("io.debezium.data.Json"),
            XML => Some("io.debezium.data.Xml"),
            _ => None,
        },
        Kind::Boolean | Kind::Int | Kind::Long | Kind::Float | Kind::Double | Kind::Decimal { .. } => None,
        Kind::Bytes | Kind::Date => None,
    }
}

const JSON: u32 = 114;
const XML: u32 = 142;
const JSONB: u32 = 3802;

/// The column's type with what Kafka Connect reads beside it: `meaning`, and the name where Avro does not take it.
fn with_connect(column: &Column, field: &str, kind: Kind, meaning: Option<&str>) -> Json {
    let mut parameters = Map::new();
    if field != column.name {
        parameters.insert("__debezium.source.column.name".into(), json!(column.name));
    }
    if meaning.is_some() && column.type_oid == JSONB {
        parameters.insert("__debezium.source.column.type".into(), json!("JSONB"));
    }
    let avro = avro_type(kind);
    if parameters.is_empty() && meaning.is_none() {
        return avro;
    }
    let mut properties = match avro {
        Json::Object(properties) => properties,
        plain => Map::from_iter([("type".to_owned(), plain)]),
    };
    if let Some(name) = meaning {
        properties.insert("connect.name".into(), json!(name));
        properties.insert("connect.version".into(), json!(1));
    }
    if !parameters.is_empty() {
        properties.insert("connect.parameters".into(), Json::Object(parameters));
    }
    Json::Object(properties)
}

/// The type without it.
fn without_connect(avro: &Json) -> Json {
    let Json::Object(properties) = avro else { return avro.clone() };
    let mut properties = properties.clone();
    properties.retain(|name, _| !name.starts_with("connect."));
    match properties.get("type") {
        Some(plain) if properties.len() == 1 => plain.clone(),
        _ => Json::Object(properties),
    }
}

fn column_field(column: &Column, name: &str, avro: Json) -> Map<String, Json> {
    let mut field = Map::new();
    field.insert("name".into(), json!(name));
    field.insert("type".into(), json!(["null", avro]));
    field.insert("pg.name".into(), json!(column.name));
    field.insert("pg.type".into(), json!(column.type_name));
    field.insert("pg.oid".into(), json!(column.type_oid));
    field.insert("pg.typmod".into(), json!(column.typmod));
    if let Some(place) = column.key {
        field.insert("pg.key".into(), json!(place));
    }
    field
}

/// What is known of the column beside its type; properties that say nothing are left out.
fn add_definition(field: &mut Map<String, Json>, definition: &Definition) {
    let Definition { attnum, not_null, default, missing, identity, collation } = definition;
    let properties = [
        ("pg.attnum", (*attnum != 0).then(|| json!(attnum))),
        ("pg.not_null", not_null.map(Json::from)),
        ("pg.default", default.as_deref().map(Json::from)),
        ("pg.missing", missing.as_deref().map(Json::from)),
        ("pg.identity", identity.map(|kind| json!(kind))),
        ("pg.collation", collation.as_deref().map(Json::from)),
    ];
    let known = properties.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    field.extend(known);
}

fn definition(field: &Json) -> Definition {
    let text = |name: &str| field[name].as_str().map(str::to_owned);
    Definition {
        attnum: field["pg.attnum"].as_i64().and_then(|number| i16::try_from(number).ok()).unwrap_or(0),
        not_null: field["pg.not_null"].as_bool(),
        default: text("pg.default"),
        missing: text("pg.missing"),
        identity: field["pg.identity"].as_str().and_then(|kind| kind.chars().next()),
        collation: text("pg.collation"),
    }
}

fn namespace(table: &TableName) -> String {
    format!("dflux.{}.{}", avro_name(&table.schema), avro_name(&table.name))
}

/// The schema of the topic's values.
pub fn value_schema(shape: &TableShape) -> String {
    let columns: Vec<&Column> = shape.columns.iter().collect();
    let fields: Vec<Json> = field_names(&columns)
        .iter()
        .zip(&columns)
        .map(|(name, column)| {
            let kind = column.kind();
            let avro = with_connect(column, name, kind, connect_name(column, kind));
            let mut field = column_field(column, name, avro);
            field.insert("default".into(), Json::Null);
            add_definition(&mut field, &column.definition);
            Json::Object(field)
        })
        .collect();
    let source: Vec<Json> = SOURCE_FIELDS
        .iter()
        .map(|name| {
            let avro = match *name {
                "database" | "schema" | "table" | "lane" => json!("string"),
                "part" => json!("int"),
                "commit_time" => json!({"type": "long", "logicalType": "timestamp-micros"}),
                "snapshot" => json!("boolean"),
                _ => json!("long"),
            };
            json!({"name": name, "type": avro})
        })
        .collect();
    let row = json!({"type": "record", "name": "Row", "fields": fields});
    let texts = json!({"type": "map", "values": "string"});
    json!({
        "type": "record",
        "name": "Envelope",
        "namespace": namespace(&shape.table),
        "pg.database": shape.database,
        "pg.schema": shape.table.schema,
        "pg.table": shape.table.name,
        "pg.table_oid": shape.oid,
        "pg.replica_identity": shape.identity.name(),
        "fields": [
            {"name": "op", "type": "string"},
            {"name": "source", "type": {"type": "record", "name": "Source", "fields": source}},
            {"name": "unchanged", "type": {"type": "array", "items": "string"}},
            {"name": "exact", "type": texts},
            {"name": "before_exact", "type": texts},
            {"name": "before", "type": ["null", row], "default": null},
            {"name": "after", "type": ["null", "Row"], "default": null},
        ],
    })
    .to_string()
}

/// The schema of the topic's keys; none for a keyless table.
pub fn key_schema(shape: &TableShape) -> Option<String> {
    if shape.keyless() {
        return None;
    }
    let columns: Vec<&Column> = shape.key_columns().into_iter().map(|at| &shape.columns[at]).collect();
    let fields: Vec<Json> = field_names(&columns)
        .iter()
        .zip(&columns)
        .map(|(name, column)| {
            let kind = column.kind();
            let kind = if kind.typed_in_key() { kind } else { Kind::Text };
            // What is text only here is compared as the column's type, not as what it means.
            let meaning = connect_name(column, kind).filter(|_| kind.typed_in_key());
            Json::Object(column_field(column, name, with_connect(column, name, kind, meaning)))
        })
        .collect();
    Some(json!({"type": "record", "name": "Key", "namespace": namespace(&shape.table), "fields": fields}).to_string())
}

/// The table's shape, from the schema that its events were written with.
///
/// # Errors
/// `ForeignSchema` if the schema was not made by [`value_schema`].
pub fn shape_of(schema: &str, id: u32) -> Result<TableShape, Error> {
    let foreign = |what: &str| Error::ForeignSchema { id, what: what.to_owned() };
    let schema: Json = serde_json::from_str(schema).map_err(|error| foreign(&error.to_string()))?;
    let text =
        |of: &Json, name: &str| of[name].as_str().map(str::to_owned).ok_or_else(|| foreign(&format!("no {name}")));
    let names: Vec<&str> =
        schema["fields"].as_array().into_iter().flatten().filter_map(|f| f["name"].as_str()).collect();
    if names != ENVELOPE_FIELDS {
        return Err(foreign("its fields are not those of a change event"));
    }
    let fields = schema["fields"][5]["type"][1]["fields"].as_array().ok_or_else(|| foreign("no row in before"))?;
    let mut columns = Vec::with_capacity(fields.len());
    for field in fields {
        let number = |name: &str| field[name].as_i64().ok_or_else(|| foreign(&format!("no {name}")));
        let column = Column {
            name: text(field, "pg.name")?,
            type_oid: u32::try_from(number("pg.oid")?).map_err(|_| foreign("pg.oid out of range"))?,
            typmod: i32::try_from(number("pg.typmod")?).map_err(|_| foreign("pg.typmod out of range"))?,
            type_name: text(field, "pg.type")?,
            key: field["pg.key"].as_u64().and_then(|place| u16::try_from(place).ok()),
            definition: definition(field),
        };
        if without_connect(&field["type"][1]) != avro_type(column.kind()) {
            return Err(foreign(&format!("column {} is not carried as this version does", column.name)));
        }
        columns.push(column);
    }
    let identity = text(&schema, "pg.replica_identity")?;
    Ok(TableShape {
        database: text(&schema, "pg.database")?,
        table: TableName::new(text(&schema, "pg.schema")?, text(&schema, "pg.table")?),
        // Of a version that did not say it.
        oid: schema["pg.table_oid"].as_u64().and_then(|oid| u32::try_from(oid).ok()).unwrap_or(0),
        identity: Identity::from_name(&identity).ok_or_else(|| foreign("unknown replica identity"))?,
        columns,
    })
}

/// Every op code, for the documentation's test.
pub const OPS: [Op; 6] = [Op::Create, Op::Update, Op::Delete, Op::Truncate, Op::Read, Op::Piece];
