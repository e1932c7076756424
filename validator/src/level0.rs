//! Level 0: are the two tables the same thing? Columns, types, nullability, collations, defaults, keys, and what hangs on
//! them. Pure.
//!
//! While a lane runs, secondary indexes, foreign keys and triggers may be built later (pg_dump's post-data); then their
//! absence is a note. Without such a plan it is a difference.

use crate::definition::{Attached, ColumnDefinition, DatabaseDefinition, TableDefinition};
use crate::report::Finding;

/// What the judgement depends on beside the two tables.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances<'a> {
    pub source: &'a DatabaseDefinition,
    pub target: &'a DatabaseDefinition,
    /// `dflux prepare` has still to build post-data.
    pub post_data_pending: bool,
    /// The key of the target is built after its load.
    pub key_pending: bool,
    /// A lane runs between the two: row security is switched on at the cutover.
    pub lane: bool,
}

/// All findings for a table that both sides have.
pub fn compare(source: &TableDefinition, target: &TableDefinition, circumstances: Circumstances<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if source.kind != target.kind {
        let finding = Finding::schema(None, "kind_differs", differs(&source.kind, &target.kind));
        // Divided into partitions on one side alone, a table holds the same rows.
        let tables = [&source.kind, &target.kind].iter().all(|kind| matches!(kind.as_str(), "r" | "p"));
        findings.push(if tables { finding.as_note() } else { finding });
    }
    if source.persistence != target.persistence {
        let shown = |table: &TableDefinition| if table.persistence == "u" { "unlogged" } else { "logged" };
        findings.push(Finding::schema(None, "persistence_differs", differs(shown(source), shown(target))));
    }
    if source.row_security != target.row_security {
        let finding =
            Finding::schema(None, "row_security_differs", differs(&source.row_security, &target.row_security));
        findings.push(if circumstances.lane { finding.as_note() } else { finding });
    }
    if source.comment != target.comment {
        findings.push(Finding::schema(None, "comment_differs", "of the table").as_note());
    }
    for column in &source.columns {
        match target.column(&column.name) {
            None => findings.push(Finding::schema(Some(&column.name), "column_missing", &column.type_name)),
            Some(twin) => compare_columns(column, twin, &mut findings),
        }
    }
    for column in target.columns.iter().filter(|column| source.column(&column.name).is_none()) {
        findings.push(Finding::schema(Some(&column.name), "column_extra", &column.type_name));
    }
    let texts = source.columns.iter().any(|column| column.order.as_deref() != Some(""));
    if texts && circumstances.source.encoding != circumstances.target.encoding {
        let detail = differs(&circumstances.source.encoding, &circumstances.target.encoding);
        findings.push(Finding::schema(None, "encoding_differs", detail));
    }
    compare_keys(source, target, circumstances, &mut findings);
    let kinds = [
        ("index", &source.indexes, &target.indexes),
        ("constraint", &source.constraints, &target.constraints),
        ("trigger", &source.triggers, &target.triggers),
        ("policy", &source.policies, &target.policies),
    ];
    for (kind, of_source, of_target) in kinds {
        compare_attached(kind, of_source, of_target, circumstances, &mut findings);
    }
    findings
}

fn differs(source: &str, target: &str) -> String {
    format!("source {source}, target {target}")
}

fn compare_columns(source: &ColumnDefinition, target: &ColumnDefinition, findings: &mut Vec<Finding>) {
    let name = Some(source.name.as_str());
    let shown = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".into());
    let nullable = |not_null: bool| if not_null { "NOT NULL" } else { "NULL" };
    if source.type_name != target.type_name {
        // The same type with another length, precision or scale.
        let same = without_modifier(&source.type_name) == without_modifier(&target.type_name);
        let cause = if same { "type_modifier_differs" } else { "type_differs" };
        findings.push(Finding::schema(name, cause, differs(&source.type_name, &target.type_name)));
    }
    if source.not_null != target.not_null {
        let detail = differs(nullable(source.not_null), nullable(target.not_null));
        findings.push(Finding::schema(name, "nullability_differs", detail));
    }
    if source.collation != target.collation {
        findings.push(Finding::schema(name, "collation_differs", differs(&source.collation, &target.collation)));
    } else if source.type_name == target.type_name && source.order != target.order {
        // The databases' defaults: every value is the same, only the order of texts is not.
        let detail = differs(&shown(&source.order), &shown(&target.order));
        findings.push(Finding::schema(name, "default_collation_differs", detail).as_note());
    }
    if source.generated != target.generated || source.identity != target.identity {
        let kind = |column: &ColumnDefinition| format!("'{}' '{}'", column.generated, column.identity);
        let cause = match (source.identity.as_str(), target.identity.as_str(), source.generated.as_str()) {
            (a, "", _) if !a.is_empty() => "identity_lost",
            (_, _, generated) if !generated.is_empty() && target.generated.is_empty() => "generated_column_lost",
            _ => "generation_differs",
        };
        findings.push(Finding::schema(name, cause, differs(&kind(source), &kind(target))));
    }
    // The expression of a generated column is in the catalog as its default.
    if source.default != target.default && source.generated == target.generated {
        findings.push(Finding::schema(
            name,
            if target.default.is_none() { "default_lost" } else { "default_differs" },
            differs(&shown(&source.default), &shown(&target.default)),
        ));
    }
    if source.labels != target.labels {
        let detail = differs(&source.labels.join(","), &target.labels.join(","));
        let sorted = |column: &ColumnDefinition| {
            let mut labels = column.labels.clone();
            labels.sort();
            labels
        };
        let cause = if sorted(source) == sorted(target) { "enum_order_differs" } else { "enum_labels_differ" };
        findings.push(Finding::schema(name, cause, detail));
    }
    if source.comment != target.comment {
        findings.push(Finding::schema(name, "comment_differs", "of the column").as_note());
    }
}

/// A type's name without length, precision and scale.
fn without_modifier(type_name: &str) -> String {
    match (type_name.find('('), type_name.find(')')) {
        (Some(from), Some(to)) if from < to => format!("{}{}", &type_name[..from], &type_name[to + 1..]),
        _ => type_name.to_owned(),
    }
}

fn compare_keys(
    source: &TableDefinition,
    target: &TableDefinition,
    circumstances: Circumstances<'_>,
    findings: &mut Vec<Finding>,
) {
    if source.primary == target.primary {
        return;
    }
    let shown = |key: &[String]| if key.is_empty() { "none".to_owned() } else { key.join(", ") };
    let finding =
        Finding::schema(None, "primary_key_differs", differs(&shown(&source.primary), &shown(&target.primary)));
    let later = circumstances.key_pending && target.primary.is_empty();
    findings.push(if later { finding.as_note() } else { finding });
}

/// Checks and keys are made with the table; foreign keys, indexes and triggers are post-data.
fn compare_attached(
    kind: &'static str,
    source: &[Attached],
    target: &[Attached],
    circumstances: Circumstances<'_>,
    findings: &mut Vec<Finding>,
) {
    let pending = circumstances.post_data_pending;
    let other_version = circumstances.source.major() != circumstances.target.major();
    let is_key = |object: &Attached| object.definition.starts_with("PRIMARY KEY");
    let all = kind;
    for object in source.iter().filter(|object| !is_key(object)) {
        let kind = kind_of(all, object);
        let finding = match target.iter().find(|twin| twin.name == object.name) {
            None => {
                let finding = Finding::schema(None, &format!("{kind}_missing"), described(object));
                // Row security comes at the cutover.
                let later = (pending && kind != "check") || (circumstances.lane && kind == "policy");
                if later { post_data(finding) } else { finding }
            }
            Some(twin) if bare(&twin.definition) != bare(&object.definition) => {
                let detail = format!("{}: {}", object.name, differs(&object.definition, &twin.definition));
                let finding = Finding::schema(None, &format!("{kind}_differs"), detail);
                // Two versions print one definition in two ways.
                if other_version { finding.as_note() } else { finding }
            }
            Some(twin) if twin.active != object.active => {
                let detail = format!("{}: source {}, target {}", object.name, object.active, twin.active);
                let cause = match kind {
                    "index" => "index_invalid".to_owned(),
                    "trigger" => "trigger_enabled_differs".to_owned(),
                    _ => format!("{kind}_not_validated"),
                };
                let finding = Finding::schema(None, &cause, detail);
                // A lane runs with the target's triggers silent and its foreign keys not yet validated.
                if (kind == "trigger" && circumstances.lane) || pending { post_data(finding) } else { finding }
            }
            Some(_) => continue,
        };
        findings.push(finding);
    }
    for object in target.iter().filter(|object| !is_key(object)) {
        if !source.iter().any(|twin| twin.name == object.name) {
            findings.push(Finding::schema(None, &format!("{}_extra", kind_of(all, object)), described(object)));
        }
    }
}

/// Constraints by what they demand.
fn kind_of(kind: &'static str, object: &Attached) -> &'static str {
    match object.definition.split([' ', '(']).next() {
        _ if kind != "constraint" => kind,
        Some("CHECK") => "check",
        Some("FOREIGN") => "foreign_key",
        Some("UNIQUE") => "unique",
        Some("EXCLUDE") => "exclusion",
        _ => kind,
    }
}

fn described(object: &Attached) -> String {
    format!("{}: {}", object.name, object.definition)
}

fn bare(definition: &str) -> &str {
    definition.strip_suffix(" NOT VALID").unwrap_or(definition)
}

fn post_data(mut finding: Finding) -> Finding {
    finding.detail = finding.detail.map(|detail| format!("post_data_pending: {detail}"));
    finding.as_note()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::BaseType;

    fn column(name: &str, type_name: &str) -> ColumnDefinition {
        let base = BaseType { schema: "pg_catalog".into(), name: type_name.into(), ..BaseType::default() };
        ColumnDefinition {
            name: name.into(),
            type_name: type_name.into(),
            base,
            order: Some(String::new()),
            ..ColumnDefinition::default()
        }
    }

    fn table(columns: Vec<ColumnDefinition>) -> TableDefinition {
        TableDefinition {
            schema: "public".into(),
            name: "t".into(),
            kind: "r".into(),
            persistence: "p".into(),
            columns,
            key: vec!["id".into()],
            primary: vec!["id".into()],
            ..TableDefinition::default()
        }
    }

    fn judged(source: &TableDefinition, target: &TableDefinition, post_data_pending: bool) -> Vec<(String, bool)> {
        let database = DatabaseDefinition { version: 150_000, encoding: "UTF8".into(), tables: Vec::new() };
        let circumstances =
            Circumstances { source: &database, target: &database, post_data_pending, key_pending: false, lane: false };
        compare(source, target, circumstances).into_iter().map(|finding| (finding.cause, finding.note)).collect()
    }

    #[test]
    fn equal_tables_have_no_findings_whatever_the_order_of_their_columns() {
        let source = table(vec![column("id", "bigint"), column("v", "text")]);
        let target = table(vec![column("v", "text"), column("id", "bigint")]);
        assert_eq!(judged(&source, &target, false), []);
    }

    #[test]
    fn a_type_that_was_mapped_wrongly_is_a_mismatch() {
        for (wanted, found) in [
            ("numeric", "double precision"),
            ("timestamp with time zone", "timestamp without time zone"),
            ("text", "character varying(100)"),
        ] {
            let findings = judged(&table(vec![column("v", wanted)]), &table(vec![column("v", found)]), true);
            assert_eq!(findings, [("type_differs".to_owned(), false)], "{wanted} {found}");
        }
        let findings =
            judged(&table(vec![column("v", "numeric(10,2)")]), &table(vec![column("v", "numeric(10,1)")]), true);
        assert_eq!(findings, [("type_modifier_differs".to_owned(), false)]);
    }

    #[test]
    fn a_collation_that_was_chosen_must_be_the_same_and_a_default_only_be_noted() {
        let mut source = column("v", "text");
        let mut target = source.clone();
        (source.order, target.order) = (Some("C".into()), Some("c:en_US.UTF-8:2.36".into()));
        assert_eq!(
            judged(&table(vec![source.clone()]), &table(vec![target.clone()]), false),
            [("default_collation_differs".to_owned(), true)]
        );
        source.collation = "pg_catalog.C".into();
        assert_eq!(
            judged(&table(vec![source]), &table(vec![target]), false),
            [("collation_differs".to_owned(), false)]
        );
    }

    #[test]
    fn what_is_built_after_the_load_is_noted_only_while_it_is_planned() {
        let mut source = table(vec![column("id", "bigint")]);
        let target = source.clone();
        let object =
            |name: &str, definition: &str| Attached { name: name.into(), definition: definition.into(), active: true };
        source.indexes.push(object("i", "CREATE INDEX i ON public.t USING btree (v)"));
        source.constraints.push(object("f", "FOREIGN KEY (a) REFERENCES b(a)"));
        source.constraints.push(object("c", "CHECK ((v > 0))"));
        let causes = |pending| {
            judged(&source, &target, pending)
                .into_iter()
                .map(|(cause, note)| format!("{cause} {note}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(causes(true), ["index_missing true", "foreign_key_missing true", "check_missing false"]);
        assert_eq!(causes(false), ["index_missing false", "foreign_key_missing false", "check_missing false"]);
    }

    #[test]
    fn a_column_or_key_that_only_one_side_has_is_a_mismatch() {
        let source = table(vec![column("id", "bigint"), column("a", "text")]);
        let mut target = table(vec![column("id", "bigint"), column("b", "text")]);
        target.primary.clear();
        let causes: Vec<String> = judged(&source, &target, false).into_iter().map(|(cause, _)| cause).collect();
        assert_eq!(causes, ["column_missing", "column_extra", "primary_key_differs"]);
    }
}
