//! What concerns a table as a whole, in the lane's order: a copy of it begins or ends, it is altered, renamed or dropped.

use std::sync::atomic::Ordering;
use std::time::Duration;

use changelog::ledger::ResyncRequested;
use changelog::{Position, SchemaChange, TableChange, TableName};

use super::{Pipeline, left};
use crate::catalog::Told;
use crate::execute::Applier;
use crate::resync::{self, Request, State};
use crate::rule::Rule;
use crate::target::now_micros;
use crate::{Error, catalog, identity, observe};

impl Pipeline<'_> {
    /// Between two transactions: what a re-sync needs the lane to do or to wait for.
    pub(super) async fn serve(&mut self, request: Request) -> Result<(), Error> {
        self.drain().await?;
        match request {
            Request::Suspend { table, generation, anew, done } => {
                self.applier().await?.suspend(&table, generation, anew).await?;
                self.suspended(table);
                let _ = done.send(());
            }
            // Tolerant again, from where it is, up to the point that the rows will be of.
            Request::Reread => self.exact = false,
            Request::Gone { table } => {
                self.rules.insert(table, Rule::GONE);
            }
            Request::Rejoin { table, rule, at, rejoined } => {
                // Dropped meanwhile, or renamed.
                if !self.rules.get(&table).is_some_and(|rule| rule.suspended) || at.send(self.applied).is_err() {
                    return Ok(());
                }
                // The last stretch, between the position that the table has reached and the lane's: short by then.
                match tokio::time::timeout(resync::REJOIN_WITHIN, rejoined).await {
                    Ok(Ok(false)) => {}
                    Ok(Ok(true)) if self.superseded.contains(&table) => {}
                    Ok(Ok(true)) => {
                        self.relations.forget(&table);
                        // The lane may still be below the copy's snapshot: what is in the copy is not applied again.
                        self.rules.insert(table, rule);
                    }
                    _ => return Err(Error::Thread { what: "replays a table" }),
                }
            }
        }
        Ok(())
    }

    /// A copy of a table begins here: what the lane has of the table from here on is left to it. Where the marker is met again after a
    /// restart, this is done already.
    pub(super) async fn begins(&mut self, token: &str) -> Result<(), Error> {
        let Some(ResyncRequested { table, generation, oid, .. }) = self.asked.of(token).await? else {
            observe::unasked();
            return Ok(());
        };
        self.drain().await?;
        let another_copy = self.rules.get(&table).is_some_and(|rule| rule.suspended);
        let known = self.state(&table).await?;
        if known.is_some_and(|state| state.state != "gone" && state.newest() >= generation) {
            return Ok(());
        }
        let applier = self.applier().await?;
        if another_copy {
            let lane = applier.lane().to_owned();
            // Another copy of it is being loaded: who does that goes on with this one.
            resync::supersede(&mut applier.connection, &lane, &table, generation).await?;
            self.superseded.insert(table);
            return Ok(());
        }
        applier.suspend(&table, generation, Some(oid)).await?;
        self.suspended(table);
        Ok(())
    }

    fn suspended(&mut self, table: TableName) {
        self.relations.forget(&table);
        self.superseded.remove(&table);
        self.rules.insert(table, Rule::SUSPENDED);
    }

    /// Tables of the source were changed: the target's are in the transaction of the rows around it.
    pub(super) async fn schema(&mut self, change: &SchemaChange, offset: i64) -> Result<(), Error> {
        for changed in change.tables.iter().filter(|changed| renames(changed)) {
            self.unsuspended(&changed.previous).await?;
        }
        self.inside = true;
        self.at = change.position.commit_lsn;
        let mut dropped = Vec::new();
        for changed in &change.tables {
            let rule = self.rules.get(&changed.previous);
            let unbuilt = rule.is_some_and(Rule::unbuilt);
            // What is copied anew comes as it is then, unless it is another table then.
            let suspended = rule.is_some_and(|rule| rule.suspended);
            if rule.is_some_and(|rule| left(rule, self.at)) && !(unbuilt && (drops(changed) || renames(changed))) {
                if changed.rewritten && suspended {
                    // Its copy may be of before.
                    let at = self.at;
                    let applier = self.whole_table().await?;
                    let lane = applier.lane().to_owned();
                    resync::rewritten(&mut applier.connection, &lane, &changed.table, at).await?;
                }
                continue;
            }
            if drops(changed) {
                dropped.push(&changed.table);
            } else {
                self.table_changed(changed, change).await?;
            }
        }
        if !dropped.is_empty() {
            self.whole_table().await?.drop_tables(&dropped, change).await?;
            for table in dropped {
                self.relations.forget(table);
                self.rules.remove(table);
            }
        }
        if change.last { self.ended(change.position, offset).await } else { Ok(()) }
    }

    /// A table that is copied anew is known by its name to who copies it: that ends first.
    async fn unsuspended(&mut self, from: &TableName) -> Result<(), Error> {
        if !self.rules.get(from).is_some_and(|rule| rule.suspended) {
            return Ok(());
        }
        if !self.inside {
            return self.hold(from).await;
        }
        match self.failed(from).await? {
            true => Ok(()),
            false => Err(Error::Held { table: from.clone() }),
        }
    }

    /// An event shows that its table has another name on the source since: so has the target's then. What has that name there
    /// has lost it as well, and gets its own with its next event. False: as [`Pipeline::rename`].
    pub(super) async fn renamed(
        &mut self,
        (from, to): (&TableName, &TableName),
        taken: Option<u32>,
        at: Position,
    ) -> Result<bool, Error> {
        for table in [Some(from), taken.map(|_| to)].into_iter().flatten() {
            self.unsuspended(table).await?;
        }
        if let Some(oid) = taken {
            let aside = identity::aside(to, oid);
            tracing::warn!(table = %to, %aside, "the source has given this table's name to another; its next event tells its own");
            self.rename((to, &aside), at).await?;
        }
        self.rename((from, to), at).await
    }

    /// The target's table and what is known of it gets another name, in the lane's order. False: a copy of it is awaited.
    async fn rename(&mut self, (from, to): (&TableName, &TableName), at: Position) -> Result<bool, Error> {
        let rule = self.rules.get(from).copied();
        let built = !rule.is_some_and(|rule| rule.unbuilt());
        self.whole_table().await?.rename_table((from, built), to, at).await?;
        self.relations.renamed(from, to);
        self.rules.remove(from);
        self.rules.remove(to);
        if built {
            self.rules.extend(rule.map(|rule| (to.clone(), rule)));
        } else {
            // Its events wait for a copy under its new name.
            self.suspended(to.clone());
        }
        Ok(built)
    }

    /// Whether a table could not be built so far: nothing waits for it.
    async fn failed(&mut self, table: &TableName) -> Result<bool, Error> {
        Ok(self.state(table).await?.is_some_and(|state| state.failed))
    }

    async fn state(&mut self, table: &TableName) -> Result<Option<State>, Error> {
        let applier = self.applier().await?;
        let lane = applier.lane().to_owned();
        let states = resync::states(&mut applier.connection, &lane).await?;
        Ok(states.into_iter().find(|state| state.table == *table))
    }

    /// Between two transactions: waits until the table is the lane's again, or cannot be.
    ///
    /// # Errors
    /// What a re-sync that ends meets.
    pub async fn hold(&mut self, table: &TableName) -> Result<(), Error> {
        while self.rules.get(table).is_some_and(|rule| rule.suspended) {
            self.pulse.store(now_micros(), Ordering::Relaxed);
            match tokio::time::timeout(Duration::from_millis(500), self.requests.recv()).await {
                Ok(Some(request)) => self.serve(request).await?,
                Ok(None) => return Err(Error::Thread { what: "copies a table anew" }),
                Err(_) if self.failed(table).await? => return Ok(()),
                Err(_) => {}
            }
            if self.shutdown.begun() {
                return Err(Error::Thread { what: "copies a table anew" });
            }
        }
        Ok(())
    }

    async fn table_changed(&mut self, changed: &TableChange, change: &SchemaChange) -> Result<(), Error> {
        let TableChange { table, previous, previous_schema_id, schema_id, rewritten, partition_of } = changed;
        if !partition_of.is_empty() {
            return self.whole_table().await?.add_partition(table, partition_of, change).await;
        }
        let Some(schema_id) = *schema_id else { return Ok(()) };
        if table != previous {
            let connection = &mut self.whole_table().await?.connection;
            // One that has had yet another name, of which nothing was told, gets this one as it is met.
            let known = catalog::exists(connection, previous).await? || catalog::exists(connection, table).await?;
            if known && !self.rename((previous, table), change.position).await? {
                return Ok(());
            }
        }
        let told =
            Told { previous_schema_id: *previous_schema_id, statement: &change.statement, rewritten: *rewritten };
        self.meet(schema_id, change.position, Some(told)).await.map(|_| ())
    }

    /// The session for what concerns a table as a whole, behind all that is pending and in the same transaction.
    pub(super) async fn whole_table(&mut self) -> Result<&mut Applier, Error> {
        self.uncommitted = true;
        self.flush(false).await?;
        self.applier().await
    }
}

fn renames(changed: &TableChange) -> bool {
    !drops(changed) && changed.partition_of.is_empty() && changed.table != changed.previous
}

fn drops(changed: &TableChange) -> bool {
    changed.schema_id.is_none() && changed.partition_of.is_empty()
}
