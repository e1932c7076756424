//! Post-data as steps: what the consumer must build before it applies changes (`key`), what waits until after the catch-up
//! (`post`), and what may stand beside a running lane only where the lane's role keeps it from firing (`cutover`). Each
//! statement is in the form that disturbs a running lane least. Pure.

use std::collections::{HashMap, HashSet};

use changelog::TableName;
use changelog::table::quote_identifier;

use super::archive::Entry;
use super::checks;

pub const PG_CONSTRAINT: u32 = 2606;
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

/// A statement, and what shows that it was run.
pub type Work = (String, Yields);

/// One row of `dflux.schema_step`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub kind: Kind,
    pub table: TableName,
    pub name: String,
    pub statement: String,
    /// Every table that must have its rows and its key before the step is run: its own, one that it refers to, those under a view.
    pub needs: Vec<TableName>,
    pub yields: Yields,
    /// Of a `key` step, what is run in its place beside a table whose rows are there already: the consumer builds keys only
    /// behind a load.
    pub beside: Vec<Work>,
    /// The table's CREATE makes it too: the step is for a table that is older than it.
    pub within_table: bool,
    /// Of a partition's index, the index of the partitioned table that it belongs to: one by another name may be in its place.
    pub joins: Option<TableName>,
}

impl Step {
    /// The steps of kind `post` that take its place.
    pub fn posts(&self) -> impl Iterator<Item = Step> {
        self.beside.iter().map(|(statement, yields)| Step {
            kind: Kind::Post,
            statement: statement.clone(),
            yields: *yields,
            beside: Vec::new(),
            ..self.clone()
        })
    }

    /// `public.orders orders_customer`, for messages.
    pub fn title(&self) -> String {
        title(&self.table, &self.name)
    }
}

pub fn title(table: &TableName, name: &str) -> String {
    format!("{}.{} {name}", table.schema, table.name)
}

/// What is in the target's catalog under the step's table and name once the step is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Yields {
    Index,
    /// A primary key, whatever its name: there is no second one.
    Primary,
    Constraint,
    /// A constraint that all rows were checked against.
    Validated,
    Trigger,
    /// An index that belongs to its parent's.
    Attached,
    /// Nothing that shows it.
    Unseen,
}

impl Yields {
    pub fn name(self) -> &'static str {
        match self {
            Yields::Index => "index",
            Yields::Primary => "primary",
            Yields::Constraint => "constraint",
            Yields::Validated => "validated",
            Yields::Trigger => "trigger",
            Yields::Attached => "attached",
            Yields::Unseen => "",
        }
    }
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
    pub validated: bool,
    pub partitioned: bool,
    /// WITHOUT OVERLAPS (18): its index cannot be built apart.
    pub period: bool,
    /// Its index is the table's replica identity, by which its rows are found then.
    pub identity: bool,
    /// `pg_get_indexdef` of its index, for a primary key or a unique constraint.
    pub index_definition: String,
    /// `pg_get_constraintdef` of a CHECK that is the table's own, not one that it inherits.
    pub check: Option<String>,
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

/// Entries that change or refuse rows while changes are applied.
const FIRES: [&str; 4] = ["TRIGGER", "RULE", "FK CONSTRAINT", "ROW SECURITY"];

/// The steps of all post-data entries in their order; a `key` step never depends on a `post` step, nor these on a `cutover`
/// step. `pre` are the entries that they may depend on.
pub fn split(entries: &[Entry], pre: &[Entry], catalog: &Catalog) -> Vec<Step> {
    let world = World::new(entries, pre, catalog);
    let (mut key_entries, mut cutover_entries) = (HashSet::new(), HashSet::new());
    let mut steps = Vec::new();
    for entry in entries {
        let (constraint, index) = (catalog.constraint(entry), catalog.index(entry));
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
        let table = world.table(entry);
        let beside = match constraint {
            Some(constraint) if of_key => of_constraint(entry, constraint),
            _ if of_key => vec![(entry.sql.clone(), index.map_or(of_kind(entry), |_| Yields::Index))],
            _ => Vec::new(),
        };
        let statements = match (constraint, index) {
            (Some(constraint), _) if of_key => vec![(entry.sql.clone(), constraint.yields())],
            (Some(constraint), _) => of_constraint(entry, constraint),
            (None, Some(_)) if of_key => vec![(entry.sql.clone(), Yields::Index)],
            (None, Some(index)) => vec![(of_index(entry, index), Yields::Index)],
            (None, None) => vec![(entry.sql.clone(), of_kind(entry))],
        };
        let name = constraint.map(|c| c.name.clone()).or_else(|| index.map(|i| i.name.clone()));
        let name = name.unwrap_or_else(|| own_name(entry, &table));
        let needs = world.needs(entry);
        steps.extend(statements.into_iter().map(|(statement, yields)| Step {
            kind,
            table: table.clone(),
            name: name.clone(),
            statement,
            needs: needs.clone(),
            yields,
            beside: beside.clone(),
            within_table: false,
            joins: world.joins(entry),
        }));
    }
    steps.extend(checks::steps(entries, pre, catalog));
    steps
}

/// Without its check of all rows a constraint is added in a moment; validating it lets writes through.
pub fn in_two(added: &str, constraint: &Constraint) -> Vec<Work> {
    let added = added.trim_end().trim_end_matches(';').to_owned() + " NOT VALID;";
    let (table, name) = (constraint.table.quoted(), quote_identifier(&constraint.name));
    let validate = format!("ALTER TABLE {table} VALIDATE CONSTRAINT {name};");
    vec![(added, Yields::Constraint), (validate, Yields::Validated)]
}

impl Catalog {
    fn constraint(&self, entry: &Entry) -> Option<&Constraint> {
        (entry.class == PG_CONSTRAINT).then(|| self.constraints.get(&entry.oid)).flatten()
    }

    fn index(&self, entry: &Entry) -> Option<&Index> {
        (entry.class == PG_CLASS).then(|| self.indexes.get(&entry.oid)).flatten()
    }
}

/// What the entries say of each other.
struct World<'a> {
    entries: HashMap<u32, &'a Entry>,
    /// Of each relation, constraint and index: its table. A view stands for itself.
    tables: HashMap<u32, TableName>,
    /// What attaches a partition's index, by the index of either side.
    attached: HashMap<u32, Vec<&'a Entry>>,
}

impl<'a> World<'a> {
    fn new(entries: &'a [Entry], pre: &'a [Entry], catalog: &Catalog) -> World<'a> {
        let all = || pre.iter().chain(entries);
        let table = |entry: &Entry| match entry.kind.as_str() {
            "TABLE" | "MATERIALIZED VIEW" | "VIEW" => Some(TableName::new(entry.schema.clone(), entry.name.clone())),
            _ => {
                let constraint = catalog.constraint(entry).map(|constraint| constraint.table.clone());
                constraint.or_else(|| catalog.index(entry).map(|index| index.table.clone()))
            }
        };
        let tables = all().filter_map(|entry| Some((entry.id, table(entry)?))).collect();
        let mut attached: HashMap<u32, Vec<&Entry>> = HashMap::new();
        for entry in entries.iter().filter(|entry| entry.kind == "INDEX ATTACH") {
            entry.depends_on.iter().for_each(|id| attached.entry(*id).or_default().push(entry));
        }
        World { entries: all().map(|entry| (entry.id, entry)).collect(), tables, attached }
    }

    /// The index of a partitioned table to which this one of a partition, or what attaches it, belongs.
    fn joins(&self, entry: &Entry) -> Option<TableName> {
        let (name, table) = (own_name(entry, &self.table(entry)), self.table(entry));
        let of_it = |attach: &&&Entry| attach.name == name && attach.schema == table.schema;
        let attach = match entry.kind.as_str() {
            "INDEX ATTACH" => entry,
            "INDEX" | "CONSTRAINT" => self.attached.get(&entry.id)?.iter().find(of_it)?,
            _ => return None,
        };
        let above = attach.depends_on.iter().filter(|id| self.tables.get(id).is_some_and(|of| *of != table));
        let index = above
            .filter_map(|id| self.entries.get(id))
            .find(|other| matches!(other.kind.as_str(), "INDEX" | "CONSTRAINT"))?;
        Some(TableName::new(index.schema.clone(), own_name(index, &self.table(index))))
    }

    /// The table that an entry belongs to; one without a name where it belongs to none.
    fn table(&self, entry: &Entry) -> TableName {
        let own = self.tables.get(&entry.id).cloned();
        // An index is attached by the partition that has it, and the entry has its name.
        let joins = |id: &&u32| {
            entry.kind == "INDEX ATTACH"
                && self.entries.get(id).is_some_and(|other| own_name(other, &self.table(other)) == entry.name)
                && self.tables.get(id).is_some_and(|table| table.schema == entry.schema)
        };
        let joined = || entry.depends_on.iter().find(joins).and_then(|id| self.tables.get(id).cloned());
        let first = || entry.depends_on.iter().find_map(|id| self.tables.get(id).cloned());
        own.or_else(joined).or_else(first).unwrap_or_else(|| TableName::new(entry.schema.clone(), ""))
    }

    /// The tables that it depends on, however far away.
    fn needs(&self, entry: &Entry) -> Vec<TableName> {
        let (mut open, mut seen, mut needs) = (vec![entry.id], HashSet::new(), Vec::new());
        while let Some(entry) = open.pop().and_then(|id| self.entries.get(&id)) {
            if entry.kind == "TABLE" {
                needs.push(TableName::new(entry.schema.clone(), entry.name.clone()));
            } else {
                open.extend(entry.depends_on.iter().filter(|id| self.entries.contains_key(id) && seen.insert(**id)));
            }
        }
        needs.sort();
        needs
    }
}

fn of_kind(entry: &Entry) -> Yields {
    match entry.kind.as_str() {
        "INDEX ATTACH" => Yields::Attached,
        "TRIGGER" => Yields::Trigger,
        _ => Yields::Unseen,
    }
}

fn fires(entry: &Entry) -> bool {
    // The rule of this name is a view itself, which pg_dump could not write before what it needs.
    FIRES.contains(&entry.kind.as_str()) && !entry.name.ends_with(" _RETURN")
}

/// pg_dump names a constraint, a trigger, a rule or a policy `table object`.
fn own_name(entry: &Entry, table: &TableName) -> String {
    let prefix = format!("{} ", table.name);
    let compound = matches!(entry.kind.as_str(), "CONSTRAINT" | "TRIGGER" | "RULE" | "POLICY");
    entry.name.strip_prefix(&prefix).filter(|_| compound).unwrap_or(&entry.name).to_owned()
}

impl Constraint {
    fn yields(&self) -> Yields {
        match self.kind {
            'p' => Yields::Primary,
            _ if self.validated => Yields::Validated,
            _ => Yields::Constraint,
        }
    }
}

fn of_constraint(entry: &Entry, constraint: &Constraint) -> Vec<Work> {
    let (table, name) = (constraint.table.quoted(), quote_identifier(&constraint.name));
    match constraint.kind {
        // One that the source has not checked either (NOT VALID, NOT ENFORCED) stays as it is.
        'f' if !constraint.partitioned && constraint.validated => in_two(&entry.sql, constraint),
        'c' if constraint.validated => in_two(&entry.sql, constraint),
        'u' | 'p'
            if !constraint.partitioned
                && !constraint.period
                && !constraint.index_definition.is_empty()
                && !entry.sql.trim_end().trim_end_matches(';').contains(";\n") =>
        {
            let deferred = match (constraint.deferrable, constraint.deferred) {
                (true, true) => " DEFERRABLE INITIALLY DEFERRED",
                (true, false) => " DEFERRABLE",
                (false, _) => "",
            };
            // ONLY, or the key would make its children by inheritance NOT NULL.
            let (only, what) = if constraint.kind == 'p' { ("ONLY ", "PRIMARY KEY") } else { ("", "UNIQUE") };
            let add = format!("ALTER TABLE {only}{table} ADD CONSTRAINT {name} {what} USING INDEX {name}{deferred};");
            let index = concurrently(&format!("{};", constraint.index_definition));
            let yields = if constraint.kind == 'p' { Yields::Primary } else { Yields::Constraint };
            vec![(index, Yields::Index), (add, yields)]
        }
        _ => vec![(entry.sql.clone(), constraint.yields())],
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

/// Whether it hides rows from the table's owner too, where that is forced.
pub fn enables_row_security(statement: &str) -> bool {
    statement.trim_end().ends_with(" ENABLE ROW LEVEL SECURITY;")
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
            validated: true,
            partitioned: false,
            period: false,
            identity: false,
            index_definition: format!("CREATE UNIQUE INDEX {name} ON public.t USING btree (a)"),
            check: None,
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
                (102, Constraint { validated: false, ..constraint("f", 'f') }),
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

    #[test]
    fn a_step_needs_its_own_table_and_every_one_that_it_reaches_and_belongs_to_whom_it_changes() {
        let relation = |id, kind: &str, name: &str, depends_on: &[u32]| Entry {
            name: name.into(),
            ..entry(id, PG_CLASS, kind, depends_on, "")
        };
        let pre = [
            relation(1, "TABLE", "t", &[]),
            relation(2, "TABLE", "u", &[]),
            relation(3, "TABLE", "part", &[1]),
            relation(4, "VIEW", "v", &[]),
            relation(5, "MATERIALIZED VIEW", "m", &[2]),
        ];
        let named = |name: &str, entry: Entry| Entry { name: name.into(), ..entry };
        let post = [
            named("u u_pkey", entry(10, PG_CONSTRAINT, "CONSTRAINT", &[2], "…")),
            entry(11, PG_CONSTRAINT, "FK CONSTRAINT", &[1, 10], "ALTER TABLE ONLY public.t …;"),
            named("v _RETURN", entry(12, 2618, "RULE", &[10, 4], "CREATE OR REPLACE VIEW v …;")),
            named("m", entry(13, 0, "MATERIALIZED VIEW DATA", &[5], "REFRESH MATERIALIZED VIEW m;")),
            named("i", entry(14, PG_CLASS, "INDEX", &[1], "CREATE INDEX i ON ONLY public.t …;")),
            named("part_i", entry(15, PG_CLASS, "INDEX", &[14, 3], "CREATE INDEX part_i ON public.part …;")),
            named("part_i", entry(16, 0, "INDEX ATTACH", &[14, 15, 3, 1], "ALTER INDEX i ATTACH PARTITION part_i;")),
        ];
        let of_part = Index { table: TableName::new("public", "part"), ..index("part_i", false, false) };
        let catalog = Catalog {
            constraints: HashMap::from([
                (110, Constraint { table: TableName::new("public", "u"), ..constraint("u_pkey", 'p') }),
                (111, Constraint { validated: false, ..constraint("f", 'f') }),
            ]),
            indexes: HashMap::from([(114, index("i", true, false)), (115, of_part)]),
        };
        let steps = split(&post, &pre, &catalog);
        let short = |step: &Step| {
            let needs: Vec<&str> = step.needs.iter().map(|table| table.name.as_str()).collect();
            (step.table.name.clone(), needs.join(" "), step.yields)
        };
        let found: Vec<(String, String, Yields)> = steps.iter().map(short).collect();
        let wanted = [
            ("u", "u", Yields::Primary),
            ("t", "t u", Yields::Constraint),
            ("u", "u", Yields::Unseen),
            ("m", "u", Yields::Unseen),
            ("t", "t", Yields::Index),
            ("part", "part t", Yields::Index),
            ("part", "part t", Yields::Attached),
        ];
        let wanted: Vec<_> =
            wanted.iter().map(|(table, needs, yields)| ((*table).into(), (*needs).into(), *yields)).collect();
        assert_eq!(found, wanted);
        let joins: Vec<Option<&str>> =
            steps.iter().map(|step| step.joins.as_ref().map(|of| of.name.as_str())).collect();
        assert_eq!(joins, [None, None, None, None, None, Some("i"), Some("i")]);
    }
}
