//! Copies beside the running lane: those that are asked for in the ledger, and those of tables that are new. What is wrong with a table
//! is said of it in the ledger, and stops nothing else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use changelog::ledger::{self as records, ResyncRefused, ResyncRequested};
use changelog::{LedgerRecord, TableName};
use service::Hint as _;
use tokio::sync::mpsc;
use tokio_postgres::Client;

use super::copy::Under;
use super::snapshot::Snapshot;
use super::{Backfill, target_types};
use crate::error::Error;
use crate::lane::Lane;
use crate::markers;
use crate::source::catalog::{self, Selection, Table};
use crate::source::{identity, publication, schema_trigger};
use crate::topics::Wanted;

/// A new table that was refused is asked for again after this time.
const ASKED_AGAIN_AFTER: Duration = Duration::from_secs(300);
/// A table that is changed while it is copied is copied again so often.
const COPIED_AGAIN_MAX: u32 = 3;

impl Backfill {
    /// Open ones first, then as they are asked for, and as tables come; those that are there at once are copied together.
    pub(super) async fn resyncs(
        &mut self,
        mut requests: mpsc::UnboundedReceiver<ResyncRequested>,
        mut new: mpsc::Receiver<Vec<TableName>>,
    ) -> Result<(), Error> {
        let mut asked = self.ledger.open_resyncs();
        loop {
            self.resync(asked).await?;
            asked = tokio::select! {
                request = requests.recv() => {
                    let first = request.ok_or_else(|| Error::Task { what: "reading the ledger ended".into() })?;
                    let mut asked = vec![first];
                    while let Ok(request) = requests.try_recv() {
                        asked.push(request);
                    }
                    asked.iter().for_each(|request| self.ledger.take(LedgerRecord::ResyncRequested(request.clone())));
                    asked.retain(|request| self.ledger.is_open(request));
                    asked
                }
                Some(tables) = new.recv() => self.join(&tables).await?,
            };
        }
    }

    /// Asks for the copies of new tables. The ledger has the requests before anything else speaks of the tables.
    async fn join(&mut self, tables: &[TableName]) -> Result<Vec<ResyncRequested>, Error> {
        if tables.iter().all(|table| self.waits(table)) {
            return Ok(Vec::new());
        }
        let client = self.lane.source.connect(&self.lane.application_name()).await?;
        let selection = catalog::select(&catalog::all_tables(&client).await?, &self.lane.config.migration);
        let published = publication::published(&client, &self.lane.publication).await?.unwrap_or_default();
        // Without its event trigger the source does not tell in the stream that a table has another name now.
        let renamed = published.iter().any(|table| !self.ledger.knows(table))
            && !schema_trigger::told_all(&client, &self.lane.config.migration.name).await?;
        let new = selection.published.iter().filter(|table| tables.contains(&table.name));
        let new: Vec<&Arc<Table>> = new.filter(|table| !published.contains(&table.name)).collect();
        let foreign = catalog::not_ours(&client, new.iter().map(|table| table.oid)).await?;
        let mut asked = Vec::new();
        for table in new {
            let name = &table.name;
            if self.waits(name) {
                continue;
            }
            let reason = if renamed && self.ledger.knows(name) {
                "it has a name that another table had before: rename that on the target as on the source, then dflux resync it"
            } else if foreign.contains(&table.oid) {
                "the role in [source] url may not read it, or publish it as its owner: grant that, or name it in [migration] exclude"
            } else {
                asked.push(self.request(table).await?);
                continue;
            };
            self.refused.insert(name.clone(), Instant::now());
            tracing::warn!(table = %name, reason, "a new table does not join");
        }
        Ok(asked)
    }

    fn waits(&self, table: &TableName) -> bool {
        self.refused.get(table).is_some_and(|at| at.elapsed() < ASKED_AGAIN_AFTER)
    }

    async fn request(&mut self, table: &Table) -> Result<ResyncRequested, Error> {
        let (generation, token) = (self.ledger.next_generation(), uuid::Uuid::new_v4().simple().to_string());
        tracing::info!(table = %table.name, generation, "a new table joins");
        let request = ResyncRequested { table: table.name.clone(), generation, oid: table.oid, token };
        self.record(LedgerRecord::ResyncRequested(request.clone())).await?;
        Ok(request)
    }

    /// As [`refuse`](Self::refuse), and does not ask again at once.
    async fn refuse_for(&mut self, request: &ResyncRequested, error: &Error) -> Result<(), Error> {
        self.refused.insert(request.table.clone(), Instant::now());
        self.refuse(request, service::report(error, error.hint())).await
    }

    async fn refuse(&mut self, request: &ResyncRequested, reason: String) -> Result<(), Error> {
        let ResyncRequested { table, generation, .. } = request;
        tracing::error!(%table, generation, reason, "the table cannot be copied");
        let refused = ResyncRefused { table: table.clone(), generation: *generation, reason };
        self.record(LedgerRecord::ResyncRefused(refused)).await
    }

    /// The tables are copied under a slot's snapshot taken after they were published: exact, so their events below that point are
    /// skipped. What is wrong with one of them is refused and stops nothing else.
    async fn resync(&mut self, mut requests: Vec<ResyncRequested>) -> Result<(), Error> {
        for attempt in 1..=COPIED_AGAIN_MAX {
            if requests.is_empty() {
                return Ok(());
            }
            for ResyncRequested { table, generation, .. } in &requests {
                tracing::info!(%table, generation, "re-sync begins");
            }
            requests = self.publish(requests).await?;
            if requests.is_empty() {
                return Ok(());
            }
            self.target = target_types(&self.lane).await;
            let snapshot = Snapshot::take_exact(&self.lane).await?;
            // Those of tables that are new to the target were told before it had them.
            self.lane.sequences_wanted.notify_one();
            // The tables may be others since they were published: the wait for the snapshot may have been long.
            let client = self.lane.source.connect(&self.lane.application_name()).await?;
            let selection = catalog::select(&catalog::all_tables(&client).await?, &self.lane.config.migration);
            let copy = |request: &ResyncRequested| {
                let table = selection.published.iter().find(|table| table.name == request.table)?;
                Some((table.clone(), request.generation, Under::Fixed(snapshot.clone())))
            };
            let copies: Vec<_> = requests.iter().filter_map(copy).collect();
            match self.copy(copies, &selection.leaves).await {
                Err(error) if of_table(&error) => {
                    tracing::warn!(error = service::report(&error, None), attempt, "a copy failed");
                    if attempt == COPIED_AGAIN_MAX {
                        return Box::pin(self.singly(requests, error)).await;
                    }
                }
                copied => copied?,
            }
            requests.retain(|request| self.ledger.is_open(request));
        }
        Ok(())
    }

    /// Of several tables one is at fault: it is refused, and the others are copied.
    async fn singly(&mut self, requests: Vec<ResyncRequested>, error: Error) -> Result<(), Error> {
        let open: Vec<ResyncRequested> = requests.into_iter().filter(|request| self.ledger.is_open(request)).collect();
        if let [request] = open.as_slice() {
            return self.refuse_for(request, &error).await;
        }
        for request in open {
            self.resync(vec![request]).await?;
        }
        Ok(())
    }

    /// Makes sure that tables are published, each with its topic there before its first event. Those that are.
    async fn publish(&mut self, requests: Vec<ResyncRequested>) -> Result<Vec<ResyncRequested>, Error> {
        let lane = self.lane.clone();
        let client = lane.source.connect(&lane.application_name()).await?;
        let selection = catalog::select(&catalog::all_tables(&client).await?, &lane.config.migration);
        let present = publication::published(&client, &lane.publication).await?.unwrap_or_default();
        let mut published = Vec::new();
        for request in requests {
            let named = selection.published.iter().find(|table| table.name == request.table);
            let (request, table) = match named {
                Some(table) => (request, table),
                None => {
                    let Some(table) = selection.published.iter().find(|table| table.oid == request.oid) else {
                        let left_out = selection.left_out.iter().find(|(name, _)| *name == request.table);
                        let unknown = "the source does not have it, or it does not match";
                        self.refuse(&request, left_out.map_or(unknown, |(_, reason)| reason).to_owned()).await?;
                        continue;
                    };
                    // Events come under its new name, and are to find its rows.
                    let under_new_name = self.request(table).await?;
                    self.refuse(&request, "it has another name now".to_owned()).await?;
                    (under_new_name, table)
                }
            };
            match publish_table(&lane, &client, (&selection, table), &request, &present).await {
                Err(error) if of_table(&error) => self.refuse_for(&request, &error).await?,
                done => {
                    done?;
                    published.push(request);
                }
            }
        }
        Ok(published)
    }
}

/// Whether an error is one of a single table: the server answered, and another table, or the same one later, may pass.
fn of_table(error: &Error) -> bool {
    match error {
        Error::Source { source, .. } => {
            source.code().is_some_and(|code| !code.code().starts_with("08") && !code.code().starts_with("57P"))
        }
        Error::IdentityLocked { .. }
        | Error::RewrittenTooOften { .. }
        | Error::NoRoom { .. }
        | Error::TableMissing { .. } => true,
        _ => false,
    }
}

async fn publish_table(
    lane: &Lane,
    client: &Client,
    (selection, table): (&Selection, &Arc<Table>),
    request: &ResyncRequested,
    present: &[TableName],
) -> Result<(), Error> {
    // A transaction of its own: it commits before the table is published.
    let sql = markers::emit_sql(&records::begins(&request.token));
    client.batch_execute(&sql).await.map_err(Error::source("emit a marker"))?;
    if present.contains(&table.name) {
        return Ok(());
    }
    let leaves = selection.leaves.get(&table.oid).cloned().unwrap_or_default();
    for weak in selection.need_full.iter().filter(|weak| weak.oid == table.oid || leaves.contains(&weak.oid)) {
        identity::set_full(client, weak).await?;
    }
    let made_with = usize::try_from(lane.config.producer.partitions).unwrap_or(1);
    lane.admin.ensure(&[Wanted::about(lane.topics.table(&table.name), made_with)]).await?;
    publication::add(client, &lane.publication, std::slice::from_ref(table)).await
}
