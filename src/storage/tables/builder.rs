//! Builds a whole store from rows in the order of their keys, as a snapshot brings them: one run,
//! written directly, without a memory table and without merging.
//!
//! Nothing is a store before [`TableStoreBuilder::finish`] has written the manifest: what an
//! interrupted construction leaves are files that no manifest names.
//!
//! What it leaves out: which directory it is, and removing what was there before.

use std::sync::Arc;

use super::TablesOptions;
use super::background::{OutputFiles, StoreParts};
use super::cache::TableCache;
use super::directory::{Expendable, TableDirectory};
use super::levels::{Change, Levels, LongValues};
use super::manifest::TableManifest;
use crate::storage::engine::{EngineError, StoreBuilder};
use crate::storage::files::Directory;

/// A store under construction in a directory of its own.
pub struct TableStoreBuilder {
    parts: StoreParts,
    output: OutputFiles,
    rows: u64,
}

impl TableStoreBuilder {
    /// Begins a store in a directory without files.
    pub fn new(directory: Arc<dyn Directory>, options: TablesOptions) -> TableStoreBuilder {
        let options = options.fitting(&*directory);
        let store = Arc::new(TableDirectory::new(directory, options.open_files_max));
        let cache = Arc::new(TableCache::new(0));
        let parts = StoreParts { store, cache, options };
        // The sender has what is written here, so it does not use the reserve of a full disk.
        let output = OutputFiles::new(&parts, Expendable::Yes);
        TableStoreBuilder { parts, output, rows: 0 }
    }
}

impl StoreBuilder for TableStoreBuilder {
    fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        self.rows += 1;
        self.output.add_value(&self.parts, key, value)
    }

    fn finish(self: Box<Self>) -> Result<(), EngineError> {
        let TableStoreBuilder { parts, output, rows } = *self;
        let StoreParts { store, cache, .. } = &parts;
        let blank = Levels::open(store, cache, TableManifest::default())?;
        let change = Change::Move { seal: 1, rows, long_values: LongValues::default() };
        blank.change(store, cache, &change, output.finish()?).map(drop)
    }
}
