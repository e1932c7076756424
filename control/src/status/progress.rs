//! The backfill's progress: the ledger says what is planned and copied to Kafka, the target what is loaded. Pure.

use std::collections::BTreeMap;

use changelog::{LedgerRecord, TableName};
use serde::Serialize;

/// One table of the backfill, its newest generation.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TableProgress {
    pub table: String,
    pub generation: u32,
    pub chunks_planned: u32,
    pub chunks_copied: u32,
    pub chunks_loaded: u32,
    pub rows_estimated: u64,
    pub rows_copied: u64,
    pub rows_loaded: u64,
    pub bytes_estimated: u64,
    pub bytes_copied: u64,
    /// `live`, `requested`, `resyncing`, `rejoining`, `gone`; empty where the target has not said.
    pub state: String,
    /// Why it is not built, and what to do; it is tried again.
    pub error: Option<String>,
}

impl TableProgress {
    /// Planned rows, or those that were really there once all is copied.
    pub fn rows_expected(&self) -> u64 {
        if self.chunks_planned > 0 && self.chunks_copied >= self.chunks_planned {
            self.rows_copied
        } else {
            self.rows_estimated.max(self.rows_copied)
        }
    }

    pub fn loaded(&self) -> bool {
        self.chunks_planned > 0 && self.chunks_loaded >= self.chunks_planned
    }
}

/// All tables together.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Backfill {
    pub completed: bool,
    pub chunks_planned: u32,
    pub chunks_copied: u32,
    pub chunks_loaded: u32,
    pub rows_expected: u64,
    pub rows_copied: u64,
    pub rows_loaded: u64,
    pub bytes_copied: u64,
    /// Over the life of the load, or since the last look in `--watch`.
    pub rows_per_second: Option<f64>,
    pub eta_seconds: Option<u64>,
    pub tables: Vec<TableProgress>,
}

/// What the target has loaded of one table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loaded {
    pub generation: u32,
    pub chunks: u32,
    pub rows: u64,
    pub state: String,
    pub error: Option<String>,
}

/// Puts ledger and target side by side. Records of older generations count for nothing.
pub fn fold(ledger: &[LedgerRecord], loaded: &BTreeMap<TableName, Vec<Loaded>>) -> Backfill {
    let mut tables: BTreeMap<TableName, TableProgress> = BTreeMap::new();
    let mut backfill = Backfill::default();
    for record in ledger {
        match record {
            LedgerRecord::Plan(plan) => {
                let table = newest(&mut tables, &plan.table, plan.generation);
                if let Some(table) = table {
                    table.chunks_planned = plan.chunks();
                    table.rows_estimated = plan.estimated_rows;
                    table.bytes_estimated = plan.estimated_bytes;
                }
            }
            LedgerRecord::ResyncRequested(request) => {
                newest(&mut tables, &request.table, request.generation);
            }
            LedgerRecord::BackfillCompleted(_) => backfill.completed = true,
            LedgerRecord::Chunk(_) | LedgerRecord::TableCopied(_) | LedgerRecord::ResyncRefused(_) => {}
        }
    }
    // Of a chunk that was written down twice only the last state counts, as compaction would leave it.
    let mut chunks = BTreeMap::new();
    for record in ledger {
        if let LedgerRecord::Chunk(chunk) = record {
            chunks.insert((&chunk.id.table, chunk.id.generation, chunk.id.chunk), (chunk.row_count, chunk.bytes));
        }
    }
    for ((name, generation, _), (rows, bytes)) in chunks {
        if let Some(table) = tables.get_mut(name).filter(|table| table.generation == generation) {
            table.chunks_copied += 1;
            table.rows_copied += rows;
            table.bytes_copied += bytes;
        }
    }
    for (name, table) in &mut tables {
        for held in loaded.get(name).into_iter().flatten() {
            if held.generation == table.generation {
                (table.chunks_loaded, table.rows_loaded) = (held.chunks, held.rows);
            }
            if !held.state.is_empty() {
                table.state.clone_from(&held.state);
                table.error.clone_from(&held.error);
            }
        }
        table.table = name.to_string();
        backfill.chunks_planned += table.chunks_planned;
        backfill.chunks_copied += table.chunks_copied;
        backfill.chunks_loaded += table.chunks_loaded;
        backfill.rows_expected += table.rows_expected();
        backfill.rows_copied += table.rows_copied;
        backfill.rows_loaded += table.rows_loaded;
        backfill.bytes_copied += table.bytes_copied;
    }
    backfill.tables = tables.into_values().collect();
    backfill
}

/// The table's progress if `generation` is its newest so far; a newer one starts anew.
fn newest<'a>(
    tables: &'a mut BTreeMap<TableName, TableProgress>,
    name: &TableName,
    generation: u32,
) -> Option<&'a mut TableProgress> {
    let table = tables.entry(name.clone()).or_insert_with(|| TableProgress { generation, ..TableProgress::default() });
    if generation > table.generation {
        *table = TableProgress { generation, ..TableProgress::default() };
    }
    (table.generation == generation).then_some(table)
}

/// Seconds that are left at this rate.
pub fn eta_seconds(done: u64, expected: u64, per_second: Option<f64>) -> Option<u64> {
    let rate = per_second.filter(|rate| *rate > 0.0)?;
    Some((expected.saturating_sub(done) as f64 / rate).ceil() as u64)
}

#[cfg(test)]
mod tests {
    use changelog::Lsn;
    use changelog::block::ChunkId;
    use changelog::ledger::{BackfillCompleted, Chunk, Plan};

    use super::*;

    fn plan(table: &TableName, generation: u32, chunks: usize) -> LedgerRecord {
        LedgerRecord::Plan(Plan {
            table: table.clone(),
            generation,
            oid: 0,
            key: vec!["id".into()],
            bounds: vec![vec!["1".into()]; chunks - 1],
            estimated_rows: 1000,
            estimated_bytes: 5000,
            definition: Vec::new(),
        })
    }

    fn chunk(table: &TableName, generation: u32, chunk: u32, rows: u64) -> LedgerRecord {
        LedgerRecord::Chunk(Chunk {
            id: ChunkId { table: table.clone(), generation, chunk },
            attempt: 0,
            snapshot_lsn: Lsn::ZERO,
            exact_snapshot: true,
            row_count: rows,
            bytes: rows * 10,
            partition: 0,
            first_offset: 0,
            last_offset: 0,
        })
    }

    #[test]
    fn progress_counts_each_chunk_once_and_only_the_newest_generation() {
        let table = TableName::new("public", "t");
        let ledger = [
            plan(&table, 0, 2),
            chunk(&table, 0, 0, 400),
            chunk(&table, 0, 0, 400),
            chunk(&table, 0, 1, 500),
            LedgerRecord::BackfillCompleted(BackfillCompleted { tables: vec![table.clone()], exact_from: Lsn(1) }),
        ];
        let loaded = BTreeMap::from([(
            table.clone(),
            vec![Loaded { generation: 0, chunks: 1, rows: 400, ..Loaded::default() }],
        )]);
        let backfill = fold(&ledger, &loaded);
        assert!(backfill.completed);
        assert_eq!((backfill.chunks_planned, backfill.chunks_copied, backfill.chunks_loaded), (2, 2, 1));
        assert_eq!((backfill.rows_expected, backfill.rows_loaded), (900, 400));
        assert!(!backfill.tables[0].loaded());

        let again = [&ledger[..], &[plan(&table, 1, 3), chunk(&table, 1, 0, 300)]].concat();
        let backfill = fold(&again, &loaded);
        assert_eq!((backfill.chunks_planned, backfill.chunks_copied, backfill.chunks_loaded), (3, 1, 0));
        assert_eq!(backfill.rows_expected, 1000);
    }

    #[test]
    fn what_is_left_is_told_only_where_something_moves() {
        assert_eq!(eta_seconds(100, 600, Some(100.0)), Some(5));
        assert_eq!(eta_seconds(100, 600, Some(0.0)), None);
        assert_eq!(eta_seconds(700, 600, Some(1.0)), Some(0));
        assert_eq!(eta_seconds(1, 2, None), None);
    }
}
