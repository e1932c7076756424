//! What a catalog says of a database and its tables. Pure values; `catalog` reads them.

use changelog::table::{TableName, quote_identifier};
use serde::Deserialize;

/// The type under a column's domains.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct BaseType {
    pub schema: String,
    pub name: String,
    /// The output function, as SQL calls it.
    pub output: String,
    /// `pg_type.typtype`: b, e (enum), c (composite), r (range) …
    pub kind: String,
}

impl BaseType {
    /// For a cast. Quoted, because the bare words `bit` and `char` mean one of length 1.
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote_identifier(&self.schema), quote_identifier(&self.name))
    }

    /// Whether its comparison operators are found with an empty search_path.
    pub fn compares_without_search_path(&self) -> bool {
        self.schema == "pg_catalog" || self.kind == "e"
    }
}

/// One column, in all that must be equal on both sides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ColumnDefinition {
    pub name: String,
    /// As `format_type` prints it, with its modifier.
    pub type_name: String,
    pub base: BaseType,
    pub not_null: bool,
    /// The collation if it is not the type's default, else empty.
    pub collation: String,
    /// What decides the order of this column's texts: provider, locale, version. Empty for a type without collation,
    /// `C` for byte order, none if it cannot be told.
    pub order: Option<String>,
    pub default: Option<String>,
    /// `pg_attribute.attidentity`
    pub identity: String,
    /// `pg_attribute.attgenerated`
    pub generated: String,
    /// Labels of an enum in their order.
    pub labels: Vec<String>,
    pub comment: Option<String>,
}

/// An index, constraint, trigger or policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Attached {
    pub name: String,
    pub definition: String,
    /// Valid index, validated constraint, enabled trigger.
    pub active: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct TableDefinition {
    pub schema: String,
    pub name: String,
    /// `pg_class.relkind`: r, or p for a partitioned table, which has no rows of its own.
    pub kind: String,
    /// `pg_class.relpersistence`
    pub persistence: String,
    /// The planner's estimate; -1 if never analysed.
    pub rows_estimate: f64,
    pub columns: Vec<ColumnDefinition>,
    /// Column names of the primary key, else of the replica identity index, else empty.
    pub key: Vec<String>,
    /// Columns of the primary key.
    pub primary: Vec<String>,
    pub indexes: Vec<Attached>,
    pub constraints: Vec<Attached>,
    pub triggers: Vec<Attached>,
    pub policies: Vec<Attached>,
    /// Row security: off, on, forced.
    pub row_security: String,
    pub comment: Option<String>,
    /// Schema and name of the partitioned table that it is a direct part of.
    pub parent: Option<(String, String)>,
    /// The publication of the migration names it.
    pub published: bool,
    /// It has an index by which a publication could tell its rows: valid, immediate, of all rows, of stored columns.
    pub identified: bool,
}

impl TableDefinition {
    pub fn table(&self) -> TableName {
        TableName::new(&self.schema, &self.name)
    }

    pub fn partitioned(&self) -> bool {
        self.kind == "p"
    }

    pub fn column(&self, name: &str) -> Option<&ColumnDefinition> {
        self.columns.iter().find(|column| column.name == name)
    }
}

/// One database with all its tables: which of them are compared, `selection` says.
#[derive(Clone, Debug, PartialEq)]
pub struct DatabaseDefinition {
    pub version: i32,
    pub encoding: String,
    pub tables: Vec<TableDefinition>,
}

impl DatabaseDefinition {
    pub fn major(&self) -> i32 {
        self.version / 10_000
    }

    pub fn table(&self, table: &TableName) -> Option<&TableDefinition> {
        self.tables.iter().find(|known| known.schema == table.schema && known.name == table.name)
    }
}
