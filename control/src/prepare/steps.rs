//! Post-data as steps: what the consumer must build before it applies changes (`key`), what waits until after the catch-up
//! (`post`), and what may stand beside a running lane only where the lane's role keeps it from firing (`cutover`). Each
//! statement is in the form that disturbs a running lane least. Pure.

use std::collections::{HashMap, HashSet};

use changelog::TableName;
use changelog::table::quote_identifier;

use super::archive::Entry;

const PG_CONSTRAINT: u32 = 2606;
const PG_CLASS: u32 = 1259;

/// Who runs a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The consumer, after the load and before the first change: the primary key or replica identity index.
    Key,
    /// A later `dflux prepare`, while the lane runs.
    Post,
    /// The same where the target's user may set `session_replication_role`; else it waits for the cutover. A trigger or a
    /// rule would do again what it did on the source, and a foreign key would delete rows before their events arrive.
    Cutover,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Key => "key",
            Kind::Post => "post",
            Kind::Cutover => "cutover",
        }
    }
}

/// One row of `dflux.schema_step`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub kind: Kind,
    pub table: TableName,
    pub name: String,
    pub statement: String,
}

/// A constraint of the source, by OID.
#[derive(Clone, Debug)]
pub struct Constraint {
    pub table: TableName,
    pub name: String,
    /// `pg_constraint.contype`.
    pub kind: char,
    pub deferrable: bool,
    pub deferred: bool,
    pub partitioned: bool,
    /// WITHOUT OVERLAPS (18): its index cannot be built apart.
    pub period: bool,
    /// Its index is the table's replica identity, by which its rows are found then.
    pub identity: bool,
    /// `pg_get_indexdef` of its index, for a unique constraint.
    pub index_definition: String,
}

/// An index of the source that belongs to no constraint, by OID.
#[derive(Clone, Debug)]
pub struct Index {
    pub table: TableName,
    pub name: String,
    pub partitioned: bool,
    /// It is the table's replica identity, by which its rows are found then.
    pub identity: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Catalog {
    pub constraints: HashMap<u32, Constraint>,
    pub indexes: HashMap<u32, Index>,
}

/// Entries that change or refuse rows while changes are applied. Row security filters them where it is forced on the owner.
const FIRES: [&str; 4] = ["TRIGGER", "RULE", "FK CONSTRAINT", "ROW SECURITY"];

/// The steps of all post-data entries in their order; a `key` step never depends on a `post` step, nor these on a `cutover`
/// step. `pre` are the entries that they may depend on.
pub fn split(entries: &[Entry], pre: &[Entry], catalog: &Catalog) -> Vec<Step> {
    let (mut key_entries, mut cutover_entries) = (HashSet::new(), HashSet::new());
    let relation = |entry: &&Entry| matches!(entry.kind.as_str(), "TABLE" | "MATERIALIZED VIEW" | "VIEW");
    let named = |entry: &Entry| (entry.id, TableName::new(entry.schema.clone(), entry.name.clone()));
    let mut tables: HashMap<u32, TableName> = pre.iter().filter(relation).map(named).collect();
    let mut steps = Vec::new();
    for entry in entries {
        let constraint = (entry.class == PG_CONSTRAINT).then(|| catalog.constraints.get(&entry.oid)).flatten();
        let index = (entry.class == PG_CLASS).then(|| catalog.indexes.get(&entry.oid)).flatten();
        let of_key = match (constraint, index) {
            (Some(constraint), _) => constraint.kind == 'p' || constraint.identity,
            (None, Some(index)) => index.identity,
            // A partition's key is attached to its parent's once both are there. Comments on keys can wait.
            (None, None) => entry.kind == "INDEX ATTACH" && entry.depends_on.iter().any(|id| key_entries.contains(id)),
        };
        // The comment on a trigger, say.
        let follows = entry.depends_on.iter().any(|id| cutover_entries.contains(id));
        let kind = if of_key {
            key_entries.insert(entry.id);
            Kind::Key
        } else if fires(entry) || follows {
            cutover_entries.insert(entry.id);
            Kind::Cutover
        } else {
            Kind::Post
        };
        let table = constraint.map(|c| c.table.clone()).or_else(|| index.map(|i| i.table.clone()));
        let table = table.or_else(|| entry.depends_on.iter().find_map(|id| tables.get(id).cloned()));
        let table = table.unwrap_or_else(|| TableName::new(entry.schema.clone(), ""));
        tables.insert(entry.id, table.clone());
        let statements = match (constraint, index) {
            _ if of_key => vec![entry.sql.clone()],
            (Some(constraint), _) => of_constraint(entry, constraint),
            (None, Some(index)) => vec![of_index(entry, index)],
            (None, None) => vec![entry.sql.clone()],
        };
        let name = constraint.map(|c| c.name.clone()).or_else(|| index.map(|i| i.name.clone()));
        let name = name.unwrap_or_else(|| own_name(entry, &table));
        steps.extend(statements.into_iter().map(|statement| Step {
            kind,
            table: table.clone(),
            name: name.clone(),
            statement,
        }));
    }
    steps
}

fn fires(entry: &Entry) -> bool {
    // The rule of this name is a view itself, which pg_dump could not write before what it needs.
    FIRES.contains(&entry.kind.as_str()) && !entry.name.ends_with(" _RETURN")
}

/// pg_dump names a trigger, a rule or a policy `table object`.
fn own_name(entry: &Entry, table: &TableName) -> String {
    let prefix = format!("{} ", table.name);
    let compound = matches!(entry.kind.as_str(), "TRIGGER" | "RULE" | "POLICY");
    entry.name.strip_prefix(&prefix).filter(|_| compound).unwrap_or(&entry.name).to_owned()
}

fn of_constraint(entry: &Entry, constraint: &Constraint) -> Vec<String> {
    let (table, name) = (constraint.table.quoted(), quote_identifier(&constraint.name));
    match constraint.kind {
        // Without its check of all rows a foreign key is added in a moment; validating it lets writes through.
        'f' if !constraint.partitioned && !entry.sql.contains(" NOT VALID") => {
            let added = entry.sql.trim_end().trim_end_matches(';').to_owned() + " NOT VALID;";
            vec![added, format!("ALTER TABLE {table} VALIDATE CONSTRAINT {name};")]
        }
        'u' if !constraint.partitioned && !constraint.period && !constraint.index_definition.is_empty() => {
            let deferred = match (constraint.deferrable, constraint.deferred) {
                (true, true) => " DEFERRABLE INITIALLY DEFERRED",
                (true, false) => " DEFERRABLE",
                (false, _) => "",
            };
            let add = format!("ALTER TABLE {table} ADD CONSTRAINT {name} UNIQUE USING INDEX {name}{deferred};");
            vec![concurrently(&format!("{};", constraint.index_definition)), add]
        }
        _ => vec![entry.sql.clone()],
    }
}

fn of_index(entry: &Entry, index: &Index) -> String {
    // The index of a partitioned table is made ON ONLY it, empty, in a moment; its parts are built on the partitions.
    if index.partitioned { entry.sql.clone() } else { concurrently(&entry.sql) }
}

/// `CREATE [UNIQUE] INDEX` with CONCURRENTLY: its only statement, because it may not run in a transaction.
fn concurrently(sql: &str) -> String {
    for start in ["CREATE INDEX ", "CREATE UNIQUE INDEX "] {
        // More than one statement (a replica identity, a CLUSTER mark, statistics targets) stays as it is.
        if let Some(rest) = sql.strip_prefix(start)
            && !rest.trim_end().trim_end_matches(';').contains(";\n")
        {
            return format!("{start}CONCURRENTLY {rest}");
        }
    }
    sql.to_owned()
}

/// Whether a statement must run outside of a transaction.
pub fn runs_alone(statement: &str) -> bool {
    statement.starts_with("CREATE INDEX CONCURRENTLY ") || statement.starts_with("CREATE UNIQUE INDEX CONCURRENTLY ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: u32, class: u32, kind: &str, depends_on: &[u32], sql: &str) -> Entry {
        Entry {
            id,
            class,
            oid: 100 + id,
            depends_on: depends_on.to_vec(),
            name: format!("entry {id}"),
            kind: kind.into(),
            schema: "public".into(),
            sql: sql.into(),
        }
    }

    fn constraint(name: &str, kind: char) -> Constraint {
        Constraint {
            table: TableName::new("public", "t"),
            name: name.into(),
            kind,
            deferrable: false,
            deferred: false,
            partitioned: false,
            period: false,
            identity: false,
            index_definition: format!("CREATE UNIQUE INDEX {name} ON public.t USING btree (a)"),
        }
    }

    fn index(name: &str, partitioned: bool, identity: bool) -> Index {
        Index { table: TableName::new("public", "t"), name: name.into(), partitioned, identity }
    }

    #[test]
    fn the_key_goes_to_the_consumer_and_the_rest_waits_in_forms_that_let_writes_through() {
        let entries = [
            entry(
                1,
                PG_CONSTRAINT,
                "CONSTRAINT",
                &[],
                "ALTER TABLE ONLY public.t\n    ADD CONSTRAINT t_pkey PRIMARY KEY (id);",
            ),
            entry(2, PG_CONSTRAINT, "CONSTRAINT", &[], "ALTER TABLE ONLY public.t\n    ADD CONSTRAINT t_a UNIQUE (a);"),
            entry(3, PG_CLASS, "INDEX", &[], "CREATE INDEX i ON public.t USING btree (a);"),
            entry(
                4,
                PG_CONSTRAINT,
                "FK CONSTRAINT",
                &[1],
                "ALTER TABLE ONLY public.t\n    ADD CONSTRAINT f FOREIGN KEY (a) REFERENCES public.u(id);",
            ),
            entry(5, 2620, "TRIGGER", &[1], "CREATE TRIGGER x …;"),
            entry(6, 0, "INDEX ATTACH", &[1], "ALTER INDEX public.p ATTACH PARTITION public.t_pkey;"),
            entry(7, 0, "INDEX ATTACH", &[3], "ALTER INDEX public.q ATTACH PARTITION public.i;"),
        ];
        let catalog = Catalog {
            constraints: HashMap::from([
                (101, constraint("t_pkey", 'p')),
                (102, Constraint { deferrable: true, deferred: true, ..constraint("t_a", 'u') }),
                (104, constraint("f", 'f')),
            ]),
            indexes: HashMap::from([(103, index("i", false, false))]),
        };
        let steps = split(&entries, &[], &catalog);
        let keys: Vec<&str> = steps.iter().filter(|s| s.kind == Kind::Key).map(|s| s.name.as_str()).collect();
        assert_eq!(keys, ["t_pkey", "entry 6"]);
        let posts: Vec<&str> = steps.iter().filter(|s| s.kind != Kind::Key).map(|s| s.statement.as_str()).collect();
        assert_eq!(
            posts,
            [
                "CREATE UNIQUE INDEX CONCURRENTLY t_a ON public.t USING btree (a);",
                "ALTER TABLE \"public\".\"t\" ADD CONSTRAINT \"t_a\" UNIQUE USING INDEX \"t_a\" DEFERRABLE INITIALLY DEFERRED;",
                "CREATE INDEX CONCURRENTLY i ON public.t USING btree (a);",
                "ALTER TABLE ONLY public.t\n    ADD CONSTRAINT f FOREIGN KEY (a) REFERENCES public.u(id) NOT VALID;",
                "ALTER TABLE \"public\".\"t\" VALIDATE CONSTRAINT \"f\";",
                "CREATE TRIGGER x …;",
                "ALTER INDEX public.q ATTACH PARTITION public.i;",
            ]
        );
        assert!(steps.iter().all(|step| step.table.name == "t"));
    }

    #[test]
    fn what_cannot_be_built_beside_a_running_lane_stays_as_pg_dump_wrote_it() {
        let plain = "ALTER TABLE ONLY public.t ADD CONSTRAINT u UNIQUE (a);";
        let unvalidated =
            "ALTER TABLE ONLY public.t ADD CONSTRAINT f FOREIGN KEY (a) REFERENCES public.u(id) NOT VALID;";
        let only = "CREATE INDEX i ON ONLY public.t USING btree (a);";
        let two = "CREATE INDEX i ON public.t USING btree (a);\n\nALTER TABLE public.t CLUSTER ON i;";
        let entries = [
            entry(1, PG_CONSTRAINT, "CONSTRAINT", &[], plain),
            entry(2, PG_CONSTRAINT, "FK CONSTRAINT", &[], unvalidated),
            entry(3, PG_CLASS, "INDEX", &[], only),
            entry(4, PG_CLASS, "INDEX", &[], two),
        ];
        let catalog = Catalog {
            constraints: HashMap::from([
                (101, Constraint { partitioned: true, ..constraint("u", 'u') }),
                (102, constraint("f", 'f')),
            ]),
            indexes: HashMap::from([(103, index("i", true, false)), (104, index("i", false, false))]),
        };
        let statements: Vec<String> = split(&entries, &[], &catalog).into_iter().map(|step| step.statement).collect();
        assert_eq!(statements, [plain, unvalidated, only, two]);
        assert!(!statements.iter().any(|statement| runs_alone(statement)));
    }

    #[test]
    fn a_trigger_belongs_to_its_table_under_its_own_name() {
        let table = Entry { name: "t".into(), ..entry(1, PG_CLASS, "TABLE", &[], "") };
        let trigger =
            Entry { name: "t audit".into(), ..entry(2, 2620, "TRIGGER", &[9, 1], "CREATE TRIGGER audit …;") };
        let steps = split(&[trigger], &[table], &Catalog::default());
        assert_eq!((steps[0].table.name.as_str(), steps[0].name.as_str()), ("t", "audit"));
    }

    #[test]
    fn what_would_fire_on_applied_rows_waits_with_all_that_depends_on_it() {
        let entries = [
            entry(1, 2620, "TRIGGER", &[], "CREATE TRIGGER x …;"),
            entry(2, 0, "COMMENT", &[1], "COMMENT ON TRIGGER x …;"),
            entry(3, 2618, "RULE", &[], "CREATE RULE r …;"),
            entry(
                4,
                PG_CONSTRAINT,
                "FK CONSTRAINT",
                &[],
                "ALTER TABLE ONLY public.t ADD CONSTRAINT f FOREIGN KEY (a) …;",
            ),
            entry(5, PG_CLASS, "INDEX", &[], "CREATE INDEX i ON public.t USING btree (a);"),
            entry(6, 0, "COMMENT", &[5], "COMMENT ON INDEX i …;"),
            Entry { name: "v _RETURN".into(), ..entry(7, 2618, "RULE", &[], "CREATE OR REPLACE VIEW v …;") },
        ];
        let kinds: Vec<Kind> = split(&entries, &[], &Catalog::default()).into_iter().map(|step| step.kind).collect();
        let (post, cutover) = (Kind::Post, Kind::Cutover);
        assert_eq!(kinds, [cutover, cutover, cutover, cutover, post, post, post]);
    }

    #[test]
    fn without_a_primary_key_the_replica_identity_is_the_key() {
        let sql = "CREATE UNIQUE INDEX a ON public.t USING btree (a);\n\nALTER TABLE ONLY public.t REPLICA IDENTITY USING INDEX a;";
        let catalog = Catalog { indexes: HashMap::from([(101, index("a", false, true))]), ..Catalog::default() };
        let steps = split(&[entry(1, PG_CLASS, "INDEX", &[], sql)], &[], &catalog);
        assert_eq!((steps[0].kind, steps[0].statement.as_str()), (Kind::Key, sql));
    }
}
