//! The list of steps beside what the source's schema asks for now: what is to be written down, what is done without us, and
//! what the source has no more. Pure.
//!
//! A row is known by its object and its statement, which names the table: of a table that was renamed, the steps under the
//! old name are removed, and those under the new one written down, as done where their work is there. What is done is
//! neither run again nor removed.

use std::collections::{BTreeMap, HashMap, HashSet};

use changelog::TableName;

use super::steps::{Kind, Step, Yields};
use super::waiting::Obstacle;

/// One row of `dflux.schema_step`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub id: i64,
    pub kind: String,
    pub table: TableName,
    pub name: String,
    pub statement: String,
    /// Quoted names.
    pub needs: Vec<String>,
    pub done: bool,
}

/// What a step leaves in the target's catalog: table, name, and as what.
pub type Shown = (TableName, String, Yields);

/// How far the lane is, seen from the schema that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// There is none yet.
    Unborn,
    /// It may still have to apply what was before the schema was as it was read.
    Behind,
    /// It is exact, and has applied all of that.
    Level,
}

/// The target as the list has to fit it.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    pub rows: &'a [Row],
    pub present: &'a HashSet<Shown>,
    /// By quoted name, of the tables of all steps and rows; none for a table that has its rows and its key.
    pub obstacles: &'a BTreeMap<String, Obstacle>,
    pub reach: Reach,
    /// Whether the steps are of all tables: else none is known to be gone.
    pub whole: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Add {
        step: Step,
        done: bool,
    },
    /// Its work was done without it.
    Finish {
        id: i64,
    },
    /// What it needs has another name now, or it comes behind what is added.
    Renew {
        id: i64,
        needs: Vec<String>,
        last: bool,
    },
    Remove(Row),
}

/// In the order in which they must be made, so that the list stays in the order of the dump.
pub fn changes(steps: &[Step], seen: &Seen<'_>) -> Vec<Change> {
    let mut by_object: HashMap<(&TableName, &str), Vec<&Row>> = HashMap::new();
    for row in seen.rows {
        by_object.entry((&row.table, &row.name)).or_default().push(row);
    }
    let (mut changes, mut kept, mut added) = (Vec::new(), HashSet::new(), false);
    for step in steps {
        let rows = rows_of(&by_object, step);
        let late = rows.iter().all(|row| !row.done) && seen.comes_late(step);
        let replaced = late || rows.is_empty() && step.posts().any(|post| !rows_of(&by_object, &post).is_empty());
        let posts: Vec<Step> = if replaced { step.posts().collect() } else { vec![step.clone()] };
        for step in posts {
            let rows = rows_of(&by_object, &step);
            kept.extend(rows.iter().map(|row| row.id));
            match rows.first() {
                Some(row) if rows.iter().all(|row| !row.done) => changes.extend(seen.known(&step, row, added)),
                Some(_) => {}
                None => {
                    let new = seen.unknown(step);
                    // The consumer builds keys in an order of its own.
                    added |= matches!(&new, Some(Change::Add { step, done: false }) if step.kind != Kind::Key);
                    changes.extend(new);
                }
            }
        }
    }
    let gone = seen.rows.iter().filter(|row| !row.done && !kept.contains(&row.id) && seen.may_go(row));
    changes.extend(gone.cloned().map(Change::Remove));
    changes
}

fn rows_of<'a>(by_object: &HashMap<(&TableName, &str), Vec<&'a Row>>, step: &Step) -> Vec<&'a Row> {
    let of_object = by_object.get(&(&step.table, step.name.as_str())).into_iter().flatten().copied();
    of_object.filter(|row| row.kind == step.kind.name() && row.statement == step.statement).collect()
}

impl Seen<'_> {
    fn shows(&self, step: &Step) -> bool {
        self.present.contains(&(step.table.clone(), step.name.clone(), step.yields))
    }

    fn obstacle(&self, table: &TableName) -> Option<Obstacle> {
        self.obstacles.get(&table.quoted()).copied()
    }

    fn loaded(&self, table: &TableName) -> bool {
        matches!(self.obstacle(table), None | Some(Obstacle::NoKey))
    }

    /// A key that came when its table's rows were there: no load follows, behind which the consumer would build it.
    fn comes_late(&self, step: &Step) -> bool {
        let key = step.kind == Kind::Key && self.reach == Reach::Level;
        key && self.loaded(&step.table) && !self.shows(step)
    }

    /// A step that is written down and not done.
    fn known(&self, step: &Step, row: &Row, added: bool) -> Option<Change> {
        let key = step.kind == Kind::Key;
        if self.shows(step) && !(key && self.reach == Reach::Behind) {
            return Some(Change::Finish { id: row.id });
        }
        let needs: Vec<String> = step.needs.iter().map(TableName::quoted).collect();
        let last = added && !key;
        (last || needs != row.needs).then_some(Change::Renew { id: row.id, needs, last })
    }

    /// A step that is not written down.
    fn unknown(&self, step: Step) -> Option<Change> {
        let done = self.shows(&step);
        let absent = self.obstacle(&step.table) == Some(Obstacle::Absent);
        // The consumer would run it before the lane has brought the table under this name, or never.
        let early = step.kind == Kind::Key && self.reach == Reach::Behind && (absent || self.loaded(&step.table));
        let needless = early || done && step.within_table;
        (!needless).then_some(Change::Add { step, done })
    }

    /// The consumer may be about to build a key while a lane is behind, or its table is read.
    fn may_go(&self, row: &Row) -> bool {
        let key = row.kind == Kind::Key.name();
        let read = self.obstacle(&row.table) == Some(Obstacle::BeingRead);
        self.whole && !(key && (self.reach == Reach::Behind || read))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(kind: Kind, table: &str, name: &str, yields: Yields) -> Step {
        let table = TableName::new("public", table);
        Step {
            kind,
            name: name.into(),
            statement: format!("… {name} ON {table}"),
            needs: vec![table.clone()],
            table,
            yields,
            beside: Vec::new(),
            within_table: false,
            joins: None,
        }
    }

    fn row(id: i64, step: &Step, done: bool) -> Row {
        Row {
            id,
            kind: step.kind.name().into(),
            table: step.table.clone(),
            name: step.name.clone(),
            statement: step.statement.clone(),
            needs: step.needs.iter().map(TableName::quoted).collect(),
            done,
        }
    }

    fn shown(step: &Step) -> Shown {
        (step.table.clone(), step.name.clone(), step.yields)
    }

    /// What is made of a list: with `+`, `+done`, `done`, `last`, `-`.
    fn told(
        steps: &[Step],
        rows: &[Row],
        present: &[Shown],
        obstacles: &[(&str, Obstacle)],
        reach: Reach,
    ) -> Vec<String> {
        let present = present.iter().cloned().collect();
        let quoted = |(table, obstacle): &(&str, Obstacle)| (TableName::new("public", *table).quoted(), *obstacle);
        let obstacles = obstacles.iter().map(quoted).collect();
        let seen = Seen { rows, present: &present, obstacles: &obstacles, reach, whole: true };
        let tell = |change: Change| match change {
            Change::Add { step, done } => {
                format!("+{} {} {}", if done { "done" } else { "" }, step.kind.name(), step.statement)
            }
            Change::Finish { id } => format!("done {id}"),
            Change::Renew { id, last, .. } => format!("{} {id}", if last { "last" } else { "needs" }),
            Change::Remove(row) => format!("- {}", row.id),
        };
        changes(steps, &seen).into_iter().map(tell).collect()
    }

    #[test]
    fn a_list_that_is_up_to_date_is_left_alone() {
        let steps = [
            step(Kind::Key, "t", "t_pkey", Yields::Primary),
            step(Kind::Post, "t", "i", Yields::Index),
            step(Kind::Cutover, "t", "f", Yields::Constraint),
        ];
        let rows: Vec<Row> = steps.iter().enumerate().map(|(at, step)| row(at as i64, step, at == 0)).collect();
        for reach in [Reach::Unborn, Reach::Behind, Reach::Level] {
            assert_eq!(told(&steps, &rows, &[], &[], reach), Vec::<String>::new());
        }
    }

    #[test]
    fn steps_of_a_renamed_table_get_its_new_name_and_are_done_where_their_work_is_there() {
        let before = [step(Kind::Post, "old", "i", Yields::Index), step(Kind::Post, "old", "j", Yields::Index)];
        let after = [step(Kind::Post, "new", "i", Yields::Index), step(Kind::Post, "new", "j", Yields::Index)];
        let rows = [row(1, &before[0], true), row(2, &before[1], false)];
        let present = [shown(&after[0])];
        assert_eq!(
            told(&after, &rows, &present, &[], Reach::Level),
            ["+done post … i ON public.new", "+ post … j ON public.new", "- 2"]
        );
    }

    #[test]
    fn what_is_added_is_run_before_what_comes_behind_it_in_the_dump() {
        let steps = [
            step(Kind::Post, "t", "first", Yields::Index),
            step(Kind::Post, "t", "new", Yields::Index),
            step(Kind::Cutover, "t", "behind", Yields::Constraint),
        ];
        let rows = [row(1, &steps[0], false), row(2, &steps[2], false)];
        assert_eq!(told(&steps, &rows, &[], &[], Reach::Level), ["+ post … new ON public.t", "last 2"]);
        let moved = Step { needs: vec![TableName::new("public", "renamed")], ..steps[0].clone() };
        assert_eq!(told(&[moved], &rows[..1], &[], &[], Reach::Level), ["needs 1"]);
    }

    #[test]
    fn a_key_is_left_to_the_consumer_unless_the_rows_are_there_already() {
        let beside = vec![("concurrently".to_owned(), Yields::Index), ("using index".to_owned(), Yields::Primary)];
        let key = Step { beside, ..step(Kind::Key, "t", "t_pkey", Yields::Primary) };
        let steps = [key.clone()];
        for (obstacles, reach, wanted) in [
            (vec![], Reach::Unborn, vec!["+ key … t_pkey ON public.t"]),
            (vec![], Reach::Behind, vec![]),
            (vec![("t", Obstacle::NotCopied)], Reach::Behind, vec!["+ key … t_pkey ON public.t"]),
            (vec![("t", Obstacle::NotCopied)], Reach::Level, vec!["+ key … t_pkey ON public.t"]),
            (vec![("t", Obstacle::BeingRead)], Reach::Level, vec!["+ key … t_pkey ON public.t"]),
            (vec![], Reach::Level, vec!["+ post concurrently", "+ post using index"]),
            (vec![("t", Obstacle::Absent)], Reach::Behind, vec![]),
        ] {
            assert_eq!(told(&steps, &[], &[], &obstacles, reach), wanted, "{obstacles:?} {reach:?}");
        }
        // Half of it is done; then all of it.
        let posts: Vec<Step> = key.posts().collect();
        let rows = [row(1, &posts[0], true), row(2, &posts[1], false)];
        assert_eq!(told(&steps, &rows, &[], &[], Reach::Level), Vec::<String>::new());
        let done = [row(1, &posts[0], true), row(2, &posts[1], true)];
        assert_eq!(told(&steps, &done, &[shown(&key)], &[], Reach::Level), Vec::<String>::new());
        let late = ["+ post concurrently", "+ post using index", "- 3"];
        assert_eq!(told(&steps, &[row(3, &key, false)], &[], &[], Reach::Level), late);
        assert_eq!(told(&steps, &[row(3, &key, true)], &[], &[], Reach::Level), Vec::<String>::new());
        assert_eq!(told(&steps, &[row(3, &key, false)], &[shown(&key)], &[], Reach::Level), ["done 3"]);
        assert_eq!(told(&steps, &[row(3, &key, false)], &[shown(&key)], &[], Reach::Behind), Vec::<String>::new());
    }

    #[test]
    fn a_key_that_the_source_has_no_more_is_removed_only_where_the_consumer_is_not_about_to_build_it() {
        let rows = [row(1, &step(Kind::Key, "t", "t_pkey", Yields::Validated), false)];
        for (obstacle, reach, wanted) in [
            (Obstacle::NotCopied, Reach::Level, vec!["- 1"]),
            (Obstacle::NotCopied, Reach::Unborn, vec!["- 1"]),
            (Obstacle::BeingRead, Reach::Level, vec![]),
            (Obstacle::NotCopied, Reach::Behind, vec![]),
        ] {
            assert_eq!(told(&[], &rows, &[], &[("t", obstacle)], reach), wanted, "{obstacle:?} {reach:?}");
        }
        let done = [row(1, &step(Kind::Post, "t", "i", Yields::Index), true)];
        assert_eq!(told(&[], &done, &[], &[], Reach::Level), Vec::<String>::new());
        let (rows, none) = ([row(2, &step(Kind::Post, "t", "i", Yields::Index), false)], BTreeMap::new());
        let part = Seen { rows: &rows, present: &HashSet::new(), obstacles: &none, reach: Reach::Behind, whole: false };
        assert_eq!(changes(&[], &part), []);
    }

    #[test]
    fn a_check_is_written_down_only_where_the_table_lacks_it() {
        let added = Step { within_table: true, ..step(Kind::Post, "t", "c", Yields::Constraint) };
        let validated = Step { yields: Yields::Validated, statement: "validate".into(), ..added.clone() };
        let steps = [added.clone(), validated.clone()];
        let told = |rows: &[Row], present: &[Shown]| told(&steps, rows, present, &[], Reach::Level);
        assert_eq!(told(&[], &[shown(&added), shown(&validated)]), Vec::<String>::new());
        assert_eq!(told(&[], &[]), ["+ post … c ON public.t", "+ post validate"]);
        let rows = [row(1, &added, true), row(2, &validated, false)];
        assert_eq!(told(&rows, &[shown(&added)]), Vec::<String>::new());
    }
}
