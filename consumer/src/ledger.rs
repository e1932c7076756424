//! What the backfill's ledger says, folded: which tables are copied in how many chunks, and whether all are.

use std::collections::{HashMap, HashSet};

use changelog::block::ChunkId;
use changelog::ledger::{BackfillCompleted, Chunk, Plan, ResyncRefused, TableCopied};
use changelog::{LedgerRecord, Lsn, TableName};

/// The newest state of everything in the ledger. Records may come again and in any order of their keys.
#[derive(Debug, Default)]
pub struct Ledger {
    pub plans: HashMap<(TableName, u32), Plan>,
    pub chunks: HashMap<ChunkId, Chunk>,
    pub copied: HashMap<(TableName, u32), TableCopied>,
    pub completed: Option<BackfillCompleted>,
    /// Copies that the source cannot give, and why.
    pub refused: HashMap<(TableName, u32), String>,
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
            LedgerRecord::ResyncRefused(ResyncRefused { table, generation, reason }) => {
                self.refused.insert((table, generation), reason);
            }
            // The lane meets the marker with which it begins.
            LedgerRecord::ResyncRequested(_) => {}
        }
    }

    /// Whether nothing more comes of a copy.
    pub fn settled(&self, table: &TableName, generation: u32) -> bool {
        let copy = (table.clone(), generation);
        self.copied.contains_key(&copy) || self.refused.contains_key(&copy)
    }

    /// Chunks of one generation of a table that are not among `loaded`; `None` until the table is copied.
    pub fn missing(&self, table: &TableName, generation: u32, loaded: &HashSet<ChunkId>) -> Option<Vec<ChunkId>> {
        let copied = self.copied.get(&(table.clone(), generation))?;
        let ids = (0..copied.chunks).map(|chunk| ChunkId { table: table.clone(), generation, chunk });
        Some(ids.filter(|id| !loaded.contains(id)).collect())
    }

    /// What a load of everything takes. `loaded` is what the target has of it already.
    pub fn generations(&self, loaded: &HashSet<ChunkId>) -> Generations {
        let mut generations = Generations::default();
        for (table, generation) in self.copied.keys() {
            let newest = generations.0.entry(table.clone()).or_default();
            *newest = (*newest).max(*generation);
        }
        // What is begun is gone on with.
        generations.0.extend(loaded.iter().map(|id| (id.table.clone(), id.generation)));
        generations
    }

    /// Chunks of these copies that are not loaded; `None` until the backfill is complete.
    pub fn missing_of(&self, generations: &Generations, loaded: &HashSet<ChunkId>) -> Option<Vec<ChunkId>> {
        let completed = self.completed.as_ref()?;
        let tables: HashSet<&TableName> = completed.tables.iter().chain(generations.0.keys()).collect();
        let mut missing = Vec::new();
        for table in tables {
            missing.extend(self.missing(table, generations.of(table), loaded)?);
        }
        Some(missing)
    }

    /// From where on no table of these copies is ahead of another; `None` until the backfill is complete.
    pub fn exact_from(&self, generations: &Generations) -> Option<Lsn> {
        let copies =
            generations.0.iter().filter_map(|(table, generation)| self.copied.get(&(table.clone(), *generation)));
        let highest = copies.map(|copied| copied.snapshot_lsn).max().unwrap_or_default();
        self.completed.as_ref().map(|completed| completed.exact_from.max(highest))
    }

    /// The plans of these copies.
    pub fn plans_of(&self, generations: &Generations) -> Vec<&Plan> {
        self.plans.values().filter(|plan| plan.generation == generations.of(&plan.table)).collect()
    }
}

/// Which copy of each table a load takes: the one that is begun in the target, else the newest that is whole. A table that is not in it
/// has none yet, and is being copied for the first time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Generations(HashMap<TableName, u32>);

impl Generations {
    /// This copy of this table.
    pub fn only(table: &TableName, generation: u32) -> Generations {
        Generations(HashMap::from([(table.clone(), generation)]))
    }

    pub fn of(&self, table: &TableName) -> u32 {
        self.0.get(table).copied().unwrap_or(0)
    }

    /// Those that are not the first.
    pub fn repeated(&self) -> impl Iterator<Item = (&TableName, u32)> {
        self.0.iter().map(|(table, generation)| (table, *generation)).filter(|(_, generation)| *generation > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copied(table: &TableName, generation: u32, chunks: u32, snapshot_lsn: u64) -> LedgerRecord {
        let snapshot_lsn = Lsn(snapshot_lsn);
        LedgerRecord::TableCopied(TableCopied { table: table.clone(), generation, chunks, row_count: 9, snapshot_lsn })
    }

    #[test]
    fn the_backfill_is_complete_when_every_chunk_of_every_table_is_loaded() {
        let (table, mut ledger, mut loaded) = (TableName::new("s", "t"), Ledger::default(), HashSet::new());
        let missing =
            |ledger: &Ledger, loaded: &HashSet<ChunkId>| ledger.missing_of(&ledger.generations(loaded), loaded);
        assert_eq!(missing(&ledger, &loaded), None);
        ledger.accept(LedgerRecord::BackfillCompleted(BackfillCompleted {
            tables: vec![table.clone()],
            exact_from: Lsn(7),
        }));
        assert_eq!(missing(&ledger, &loaded), None, "the table's own record is awaited");
        ledger.accept(copied(&table, 0, 2, 7));
        let id = |chunk| ChunkId { table: table.clone(), generation: 0, chunk };
        assert_eq!(missing(&ledger, &loaded), Some(vec![id(0), id(1)]));
        loaded.insert(id(1));
        assert_eq!(missing(&ledger, &loaded), Some(vec![id(0)]));
        loaded.insert(id(0));
        assert_eq!(missing(&ledger, &loaded), Some(vec![]));
    }

    #[test]
    fn a_new_target_takes_the_newest_whole_copy_and_one_that_has_begun_goes_on_with_its_own() {
        let [first, again, later] = ["first", "again", "later"].map(|name| TableName::new("s", name));
        let mut ledger = Ledger::default();
        let tables = vec![first.clone(), again.clone()];
        ledger.accept(LedgerRecord::BackfillCompleted(BackfillCompleted { tables, exact_from: Lsn(7) }));
        for record in
            [copied(&first, 0, 1, 5), copied(&again, 0, 1, 6), copied(&again, 1, 1, 40), copied(&later, 1, 1, 30)]
        {
            ledger.accept(record);
        }
        let none = HashSet::new();
        let generations = ledger.generations(&none);
        assert_eq!([&first, &again, &later].map(|table| generations.of(table)), [0, 1, 1]);
        assert_eq!(ledger.exact_from(&generations), Some(Lsn(40)));
        assert_eq!(ledger.missing_of(&generations, &none).unwrap().len(), 3);
        assert_eq!(generations.repeated().count(), 2);
        let begun = HashSet::from([ChunkId { table: again.clone(), generation: 0, chunk: 0 }]);
        let generations = ledger.generations(&begun);
        assert_eq!(generations.of(&again), 0);
        assert_eq!(ledger.exact_from(&generations), Some(Lsn(30)));
        assert_eq!(ledger.missing_of(&generations, &begun).unwrap().len(), 2);
    }
}
