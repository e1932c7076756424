//! What a table's events look like and what the table in the target looks like, matched column by column.

use std::sync::Arc;

use changelog::table::quote_identifier;
use changelog::{EventDecoder, TableName, TableShape};

use crate::Error;
use crate::evolve::same;

/// A column of the target's table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetColumn {
    pub name: String,
    /// The column's type (of a domain: its base type) without a modifier, as SQL names it: a cast to it never truncates.
    pub type_name: String,
    pub type_oid: u32,
    /// Schema of the type's `=`, for types of extensions.
    pub equals_schema: String,
    /// Computed by the target: never written.
    pub generated: bool,
    /// GENERATED ALWAYS AS IDENTITY: an insert may write it, an update may not.
    pub identity_always: bool,
    /// Has a default or an identity: a row that does not name it gets a value.
    pub filled: bool,
    pub not_null: bool,
    /// The type as it was declared, with its modifier.
    pub declared: String,
}

/// OID of `regclass`.
const REGCLASS: u32 = 2205;

impl TargetColumn {
    /// Of a column that the source has dropped since the event: nothing is written.
    fn dropped(name: &str) -> TargetColumn {
        TargetColumn {
            name: name.to_owned(),
            type_name: "pg_catalog.text".into(),
            equals_schema: "pg_catalog".into(),
            generated: true,
            ..TargetColumn::default()
        }
    }

    /// An expression of type text as a value of the column's type, read by its own input function. A cast does that, but for
    /// regclass, where it takes names alone and not what regclass prints of a table that is gone or of none.
    pub fn input(&self, text: &str) -> String {
        if self.type_oid == REGCLASS {
            return format!("pg_catalog.regclassin(pg_catalog.textout({text}))");
        }
        format!("{text}::{}", self.type_name)
    }

    /// The type's own `=`: the sessions have no search_path.
    pub fn equals(&self) -> String {
        if self.equals_schema == "pg_catalog" {
            return "=".to_owned();
        }
        format!("OPERATOR({}.=)", quote_identifier(&self.equals_schema))
    }
}

/// An expression as its type's output function prints it. A cast to text prints some types otherwise: boolean, inet, char(n).
pub fn printed(expression: &str) -> String {
    format!("pg_catalog.format('%s', {expression})")
}

/// A table of the target, as its catalog has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetTable {
    pub columns: Vec<TargetColumn>,
    pub partitioned: bool,
    /// The session's role is `replica`: no trigger and no foreign key fires.
    pub replica_role: bool,
}

impl TargetTable {
    pub fn rows_of(&self, name: &TableName) -> String {
        rows_of(name, self.partitioned)
    }
}

/// A table where its rows are read, changed or removed: without those of tables that inherit from it, which are tables of
/// their own. A partitioned table has no others than its partitions'. INSERT and COPY take the bare name.
pub fn rows_of(name: &TableName, partitioned: bool) -> String {
    if partitioned { name.quoted() } else { format!("ONLY {}", name.quoted()) }
}

/// One schema of one table's events, matched with the target.
#[derive(Debug)]
pub struct Relation {
    /// Index of the schema among those that the lane has met.
    pub id: usize,
    /// Index of the table; several schemas of one table share it.
    pub table: usize,
    pub decoder: EventDecoder,
    /// For each column of the events the target's, in the events' order.
    pub columns: Vec<TargetColumn>,
    /// Indexes of the key's columns, in key order; empty for a keyless table.
    pub key: Vec<usize>,
    /// See [`rows_of`].
    pub rows: String,
    /// Writable columns of the target that the events do not have.
    pub others: Vec<TargetColumn>,
    pub replica_role: bool,
}

impl Relation {
    /// `now`: what the target's table is like where that is not what these events say, which are older.
    ///
    /// # Errors
    /// `ColumnMissing`, `TableUnfit` if a key column is computed by the target.
    pub fn new(
        id: usize,
        table: usize,
        decoder: EventDecoder,
        target: &TargetTable,
        now: Option<&TableShape>,
    ) -> Result<Relation, Error> {
        let shape = decoder.shape().clone();
        let name = shape.table.to_string();
        let mut columns = Vec::with_capacity(shape.columns.len());
        for column in &shape.columns {
            let called = match now.map(|now| same(now, column)) {
                Some(None) => {
                    columns.push(TargetColumn::dropped(&column.name));
                    continue;
                }
                Some(Some(now)) => &now.name,
                None => &column.name,
            };
            let found = target.columns.iter().find(|candidate| candidate.name == *called);
            let found =
                found.ok_or_else(|| Error::ColumnMissing { table: name.clone(), column: column.name.clone() })?;
            if found.generated && column.key.is_some() {
                let what = format!("its key column {} is generated there and not in the source", column.name);
                return Err(Error::TableUnfit { table: name, what });
            }
            columns.push(found.clone());
        }
        let other = |column: &&TargetColumn| {
            !column.generated && !columns.iter().any(|candidate| candidate.name == column.name)
        };
        let others = target.columns.iter().filter(other).cloned().collect();
        let rows = target.rows_of(&shape.table);
        let replica_role = target.replica_role;
        Ok(Relation { id, table, key: shape.key_columns(), columns, decoder, rows, others, replica_role })
    }

    pub fn shape(&self) -> &Arc<TableShape> {
        self.decoder.shape()
    }

    pub fn name(&self) -> &TableName {
        &self.decoder.shape().table
    }

    pub fn keyless(&self) -> bool {
        self.key.is_empty()
    }

    /// Columns of the target that stay empty in every new row: the source may have dropped them.
    pub fn unfilled(&self) -> impl Iterator<Item = &str> {
        self.others.iter().filter(|column| !column.filled).map(|column| column.name.as_str())
    }

    /// Columns that can be written.
    pub fn writable(&self) -> impl Iterator<Item = usize> {
        (0..self.columns.len()).filter(|at| !self.columns[*at].generated)
    }
}
