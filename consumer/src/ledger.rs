//! What the backfill's ledger says, folded: which tables are copied in how many chunks, and whether all are.

use std::collections::{HashMap, HashSet};

use changelog::block::ChunkId;
use changelog::ledger::{BackfillCompleted, Chunk, Plan, ResyncRequested, TableCopied};
use changelog::{LedgerRecord, TableName};

/// The newest state of everything in the ledger. Records may come again and in any order of their keys.
#[derive(Debug, Default)]
pub struct Ledger {
    pub plans: HashMap<(TableName, u32), Plan>,
    pub chunks: HashMap<ChunkId, Chunk>,
    pub copied: HashMap<(TableName, u32), TableCopied>,
    pub completed: Option<BackfillCompleted>,
    /// Highest generation asked for, by table.
    pub resyncs: HashMap<TableName, u32>,
}

impl Ledger {
    pub fn accept(&mut self, record: LedgerRecord) {
        match record {
            LedgerRecord::Plan(plan) => {
                self.plans.insert((plan.table.clone(), plan.generation), plan);
            }
            LedgerRecord::Chunk(chunk) => {
                self.chunks.insert(chunk.id.clone(), chunk);
            }
            LedgerRecord::TableCopied(copied) => {
                self.copied.insert((copied.table.clone(), copied.generation), copied);
            }
            LedgerRecord::BackfillCompleted(completed) => self.completed = Some(completed),
            LedgerRecord::ResyncRequested(ResyncRequested { table, generation }) => {
                let highest = self.resyncs.entry(table).or_default();
                *highest = (*highest).max(generation);
            }
        }
    }

    /// Chunks of one generation of a table that are not among `loaded`; `None` until the table is copied.
    pub fn missing(&self, table: &TableName, generation: u32, loaded: &HashSet<ChunkId>) -> Option<Vec<ChunkId>> {
        let copied = self.copied.get(&(table.clone(), generation))?;
        let ids = (0..copied.chunks).map(|chunk| ChunkId { table: table.clone(), generation, chunk });
        Some(ids.filter(|id| !loaded.contains(id)).collect())
    }

    /// Chunks of the initial backfill that are not loaded; `None` until the backfill is complete.
    pub fn missing_of_backfill(&self, loaded: &HashSet<ChunkId>) -> Option<Vec<ChunkId>> {
        let completed = self.completed.as_ref()?;
        let mut missing = Vec::new();
        for table in &completed.tables {
            missing.extend(self.missing(table, 0, loaded)?);
        }
        Some(missing)
    }

    /// Rows planned for the initial backfill, for progress.
    pub fn rows_estimated(&self) -> u64 {
        self.plans.values().filter(|plan| plan.generation == 0).map(|plan| plan.estimated_rows).sum()
    }
}

#[cfg(test)]
mod tests {
    use changelog::Lsn;

    use super::*;

    #[test]
    fn the_backfill_is_complete_when_every_chunk_of_every_table_is_loaded() {
        let (table, mut ledger, mut loaded) = (TableName::new("s", "t"), Ledger::default(), HashSet::new());
        assert_eq!(ledger.missing_of_backfill(&loaded), None);
        ledger.accept(LedgerRecord::BackfillCompleted(BackfillCompleted {
            tables: vec![table.clone()],
            exact_from: Lsn(7),
        }));
        assert_eq!(ledger.missing_of_backfill(&loaded), None, "the table's own record is awaited");
        ledger.accept(LedgerRecord::TableCopied(TableCopied {
            table: table.clone(),
            generation: 0,
            chunks: 2,
            row_count: 9,
            snapshot_lsn: Lsn(7),
        }));
        let id = |chunk| ChunkId { table: table.clone(), generation: 0, chunk };
        assert_eq!(ledger.missing_of_backfill(&loaded), Some(vec![id(0), id(1)]));
        loaded.insert(id(1));
        assert_eq!(ledger.missing_of_backfill(&loaded), Some(vec![id(0)]));
        loaded.insert(id(0));
        assert_eq!(ledger.missing_of_backfill(&loaded), Some(vec![]));
    }
}
