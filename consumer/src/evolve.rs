//! A table that the source has changed: what makes the target's like it, or why that is left to a person. Pure.
//!
//! ```text
//!  prior (id 1, a 2, b 3)    next (id 1, z 2, c 4)      dropped b, renamed a to z, added c
//!        └── the target is as this says ──┘ statements ┘
//! ```
//! A column is the same if its `attnum` is: a name may pass from one to another. What cannot be known from the catalogs is
//! never guessed: which values a rewritten table got, and whether a column of the target is the one that is missing.

use std::collections::{HashMap, HashSet};

use changelog::table::{quote_identifier, quote_literal};
use changelog::{Column, TableShape};

use crate::relation::TargetTable;

/// Everything that the decision rests on.
#[derive(Debug)]
pub struct Evolution<'a> {
    /// What the target's table was like so far; none for a table that is met for the first time.
    pub prior: Option<&'a TableShape>,
    pub next: &'a TableShape,
    pub target: &'a TargetTable,
    /// The types of the next columns as the target writes them, with their modifiers; without those that it does not have.
    pub declared: &'a HashMap<String, String>,
    /// Columns whose values the target's own cast makes what the source's made of them, whatever the settings of the session.
    pub plain: &'a HashSet<String>,
    /// The statement that the source ran, where it was told with the change.
    pub statement: Option<&'a str>,
    /// Values of the rows were computed anew for the type of a column, which may be as it was: the statement by which a person says
    /// that the target's rows have them.
    pub rewritten: Option<&'a str>,
}

/// Why the lane stops before the change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub what: String,
    /// To be run in the target.
    pub statement: String,
    /// Rows that were there have values that no event tells.
    pub copy_again: bool,
    /// Instead of the copy, where a person has given the rows these values: to be run in the target.
    pub said: Option<String>,
}

impl Evolution<'_> {
    /// Statements for the target, in order; none if it is as the events need it.
    ///
    /// # Errors
    /// Why a person is needed, and what to run.
    pub fn statements(&self) -> Result<Vec<String>, Refusal> {
        let mut out = match self.prior {
            Some(prior) => self.structure(prior)?,
            None => self.first()?,
        };
        if let Some(said) = self.rewritten.filter(|_| !self.cast_alone()) {
            return Err(self.computed(said, out));
        }
        for column in &self.next.columns {
            self.definition(column, &mut out)?;
        }
        Ok(out)
    }

    /// Whether values were computed anew by the target's own casts to other types, and by nothing else.
    fn cast_alone(&self) -> bool {
        let changed = |column: &&Column| {
            let old = self.prior.and_then(|prior| same(prior, column));
            old.is_some_and(|old| retyped(old, column))
        };
        let mut changed = self.next.columns.iter().filter(changed).peekable();
        self.statement.is_some_and(casts_plainly)
            && changed.peek().is_some()
            && changed.all(|column| self.plain.contains(&column.name))
    }

    /// The copy comes in a table that is like the source's: first what `structure` says, and the columns' types.
    fn computed(&self, said: &str, mut structure: Vec<String>) -> Refusal {
        for column in &self.next.columns {
            let prior = self.prior.and_then(|prior| same(prior, column)).unwrap_or(column);
            let target =
                self.target.columns.iter().find(|target| target.name == column.name || target.name == prior.name);
            let (Some(target), Some(declared)) = (target, self.declared.get(&column.name)) else { continue };
            if target.declared != *declared {
                let name = quote_identifier(&column.name);
                structure.push(format!(
                    "ALTER TABLE {} ALTER COLUMN {name} TYPE {declared} USING …, as the source did",
                    self.table()
                ));
            }
        }
        let by = self.statement.filter(|statement| !statement.is_empty());
        let by = by.map(|statement| format!(", by: {statement}")).unwrap_or_default();
        let what = format!("has had values of all its rows computed anew{by}");
        Refusal { what, statement: structure.join("; "), copy_again: true, said: Some(said.to_owned()) }
    }

    fn table(&self) -> String {
        self.next.table.quoted()
    }

    fn refuse(&self, what: String, statement: &str) -> Refusal {
        let statement = format!("ALTER TABLE {} {statement}", self.table());
        Refusal { what, statement, copy_again: false, said: None }
    }

    fn has(&self, name: &str) -> bool {
        self.target.columns.iter().any(|column| column.name == name)
    }

    /// Nothing is known of the time before: a column that is missing is new, unless it may be one of another name.
    fn first(&self) -> Result<Vec<String>, Refusal> {
        let missing: Vec<&Column> = self.next.columns.iter().filter(|column| !self.has(&column.name)).collect();
        let Some(first) = missing.first() else { return Ok(Vec::new()) };
        let known = |name: &str| self.next.columns.iter().any(|column| column.name == name);
        let strange = self.target.columns.iter().find(|column| !column.generated && !known(&column.name));
        if let Some(strange) = strange {
            let (from, to) = (quote_identifier(&strange.name), quote_identifier(&first.name));
            let what = format!(
                "has column {}, and not the target's {}: whether it was renamed is not known",
                first.name, strange.name
            );
            return Err(self.refuse(what, &format!("RENAME COLUMN {from} TO {to}")));
        }
        let mut out = Vec::new();
        for column in missing {
            self.add(column, &mut out)?;
        }
        Ok(out)
    }

    /// Columns dropped, renamed and added since `prior`.
    fn structure(&self, prior: &TableShape) -> Result<Vec<String>, Refusal> {
        let before = |column: &Column| same(prior, column);
        let dropped: Vec<&Column> =
            prior.columns.iter().filter(|old| !self.next.columns.iter().any(|new| before(new) == Some(*old))).collect();
        let renamed: Vec<(&str, &str)> = self
            .next
            .columns
            .iter()
            .filter_map(|new| Some((before(new)?.name.as_str(), new.name.as_str())))
            .filter(|(old, new)| old != new)
            .collect();
        // One that the source had before and the target never got was not told of when it came.
        let untold =
            |new: &Column, old: &Column| self.statement.is_some() && !self.has(&old.name) && !self.has(&new.name);
        let added: Vec<&Column> =
            self.next.columns.iter().filter(|new| before(new).is_none_or(|old| untold(new, old))).collect();
        let mut out = Vec::new();
        let names = |shape: &TableShape| -> HashSet<String> {
            shape.columns.iter().map(|column| column.name.clone()).collect()
        };
        let (old, new) = (names(prior), names(self.next));
        let there: HashSet<String> = old.union(&new).filter(|name| self.has(name)).cloned().collect();
        if there == new && old != new && added.iter().all(|column| !column.rewritten()) {
            return Ok(out); // a person was faster
        }
        for column in &dropped {
            if let Some(again) = added.iter().find(|new| new.name == column.name)
                && self.statement.is_none()
            {
                let what = format!("has dropped column {} and made another of the same name", again.name);
                return Err(Refusal { what, statement: String::new(), copy_again: true, said: None });
            }
            if self.has(&column.name) {
                out.push(format!("ALTER TABLE {} DROP COLUMN {}", self.table(), quote_identifier(&column.name)));
            }
        }
        self.rename(&renamed, &dropped, &mut out)?;
        for column in added {
            let vacated = dropped.iter().any(|old| old.name == column.name)
                || renamed.iter().any(|(from, _)| *from == column.name);
            if vacated || !self.has(&column.name) || column.rewritten() {
                self.add(column, &mut out)?;
            }
        }
        Ok(out)
    }

    /// Names may be exchanged: then each first gets one that nobody has.
    fn rename(&self, renamed: &[(&str, &str)], dropped: &[&Column], out: &mut Vec<String>) -> Result<(), Refusal> {
        let renamed: Vec<&(&str, &str)> = renamed.iter().filter(|(from, _)| self.has(from)).collect();
        let table = self.table();
        let statement = |from: &str, to: &str| {
            format!("ALTER TABLE {table} RENAME COLUMN {} TO {}", quote_identifier(from), quote_identifier(to))
        };
        let vacated = |name: &str| {
            renamed.iter().any(|(from, _)| *from == name) || dropped.iter().any(|column| column.name == name)
        };
        for (from, to) in &renamed {
            if self.has(to) && !vacated(to) {
                let what = format!("has renamed column {from} to {to}, and the target has both");
                let statement = format!("RENAME COLUMN {} TO {}", quote_identifier(from), quote_identifier(to));
                return Err(self.refuse(what, &statement));
            }
        }
        let exchanged = renamed.iter().any(|(_, to)| renamed.iter().any(|(from, _)| from == to));
        if !exchanged {
            out.extend(renamed.iter().map(|(from, to)| statement(from, to)));
            return Ok(());
        }
        let between = |at: usize| format!("dflux_renamed_{at}");
        out.extend(renamed.iter().enumerate().map(|(at, (from, _))| statement(from, &between(at))));
        out.extend(renamed.iter().enumerate().map(|(at, (_, to))| statement(&between(at), to)));
        Ok(())
    }

    /// With the value that the rows have which were there: the default of that time, evaluated once.
    fn add(&self, column: &Column, out: &mut Vec<String>) -> Result<(), Refusal> {
        let (table, name) = (self.table(), quote_identifier(&column.name));
        let definition = &column.definition;
        let Some(declared) = self.declared.get(&column.name) else {
            let what = format!("has column {} of type {}, which the target lacks", column.name, column.type_name);
            return Err(self.refuse(what, &format!("ADD COLUMN {name} {}", column.type_name)));
        };
        if definition.attnum == 0 {
            let what = format!(
                "has got column {}, which was renamed or dropped by the time that it was described",
                column.name
            );
            return Err(Refusal { copy_again: true, ..self.refuse(what, &format!("ADD COLUMN {name} {declared}")) });
        }
        if column.rewritten() {
            let default = definition.default.as_deref();
            let what = match default {
                Some(default) => format!("has column {} with DEFAULT {default}, which may differ by row", column.name),
                None => format!("has identity column {}, with a number of its own for each row", column.name),
            };
            let filled = match default {
                Some(default) => format!("DEFAULT {default}"),
                None => "GENERATED BY DEFAULT AS IDENTITY".to_owned(),
            };
            let refusal = self.refuse(what, &format!("ADD COLUMN {name} {declared} {filled}"));
            return Err(Refusal { copy_again: true, ..refusal });
        }
        let collation =
            definition.collation.as_ref().map(|collation| format!(" COLLATE {collation}")).unwrap_or_default();
        let missing = definition.missing.as_ref();
        let value = missing.map(|text| format!(" DEFAULT {}::{declared}", quote_literal(text))).unwrap_or_default();
        out.push(format!("ALTER TABLE {table} ADD COLUMN {name} {declared}{collation}{value}"));
        match &definition.default {
            Some(default) => out.push(format!("ALTER TABLE {table} ALTER COLUMN {name} SET DEFAULT {default}")),
            None if missing.is_some() => out.push(format!("ALTER TABLE {table} ALTER COLUMN {name} DROP DEFAULT")),
            None => {}
        }
        if definition.not_null == Some(true) {
            out.push(format!("ALTER TABLE {table} ALTER COLUMN {name} SET NOT NULL"));
        }
        Ok(())
    }

    /// Type, default and NOT NULL of a column that was there.
    fn definition(&self, column: &Column, out: &mut Vec<String>) -> Result<(), Refusal> {
        let Some(old) = self.prior.and_then(|prior| same(prior, column)) else { return Ok(()) };
        let (table, name) = (self.table(), quote_identifier(&column.name));
        let target = |name: &str| self.target.columns.iter().find(|candidate| candidate.name == name);
        let Some(target) = target(&old.name).or_else(|| target(&column.name)) else { return Ok(()) };
        if retyped(old, column) {
            let declared = self.declared.get(&column.name);
            if declared != Some(&target.declared) {
                let declared = declared.unwrap_or(&column.type_name);
                let statement = format!("ALTER COLUMN {name} TYPE {declared}");
                let told = self.statement.is_some_and(casts_plainly);
                if !told || !self.plain.contains(&column.name) {
                    let by = match self.statement {
                        Some(_) if told => ", by a cast that depends on the session's settings",
                        _ => ", perhaps USING an expression, which must be given too",
                    };
                    let what = format!("has changed the type of column {} to {declared}{by}", column.name);
                    return Err(Refusal { copy_again: told, ..self.refuse(what, &statement) });
                }
                out.push(format!("ALTER TABLE {table} {statement}"));
            }
        }
        if (old.definition.attnum, column.definition.attnum) != (0, 0)
            && old.definition.default != column.definition.default
        {
            out.push(match &column.definition.default {
                Some(default) => format!("ALTER TABLE {table} ALTER COLUMN {name} SET DEFAULT {default}"),
                None => format!("ALTER TABLE {table} ALTER COLUMN {name} DROP DEFAULT"),
            });
        }
        match column.definition.not_null {
            Some(true) if !target.not_null => out.push(format!("ALTER TABLE {table} ALTER COLUMN {name} SET NOT NULL")),
            Some(false) if target.not_null && column.key.is_none() => {
                out.push(format!("ALTER TABLE {table} ALTER COLUMN {name} DROP NOT NULL"));
            }
            _ => {}
        }
        Ok(())
    }
}

trait Rewritten {
    /// Whether rows that were there before the column may each have a value of their own.
    fn rewritten(&self) -> bool;
}

impl Rewritten for Column {
    fn rewritten(&self) -> bool {
        self.definition.identity.is_some() || (self.definition.default.is_some() && self.definition.missing.is_none())
    }
}

/// Whether the column has another type, or another modifier of it.
pub fn retyped(old: &Column, new: &Column) -> bool {
    (&old.type_name, old.typmod) != (&new.type_name, new.typmod)
}

/// The column as an earlier shape has it.
pub fn same<'a>(shape: &'a TableShape, column: &Column) -> Option<&'a Column> {
    let attnum = column.definition.attnum;
    let by_attnum = || shape.columns.iter().find(|old| old.definition.attnum == attnum);
    let by_name = || shape.columns.iter().find(|old| old.name == column.name);
    match attnum {
        0 => by_name(),
        _ => by_attnum().or_else(|| by_name().filter(|old| old.definition.attnum == 0)),
    }
}

/// Whether a statement that changed a type gave no expression for the values: then the target's own cast gives the same.
fn casts_plainly(statement: &str) -> bool {
    let statement = statement.to_lowercase();
    let word = |word: &str| statement.split(|c: char| !c.is_alphanumeric() && c != '_').any(|found| found == word);
    word("alter") && word("type") && !word("using") && !word("execute") && !word("do")
}

#[cfg(test)]
#[path = "evolve_tests.rs"]
mod tests;
