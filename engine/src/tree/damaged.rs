//! What is known of damaged tables, for who is to repair them.
//!
//! Owns: from what was noted to the facts of the table. Never: finding damage, and never a repair.

use std::path::PathBuf;

use super::{Tree, lock};
use crate::inspect::SpacedKey;
use crate::lsn::Lsn;
use crate::table::TableFile;
use crate::table::inspect::spaced;
use crate::tree::version::HISTORY;

/// A table of the tree that compaction, the scrub or a read found damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedTable {
    /// What the manifest says of it: a good copy has this id, length and hash.
    pub file: TableFile,
    /// Where the file stands.
    pub path: PathBuf,
    /// Its level; `None` for a history table, and for one that was ingested and waits for its level.
    pub level: Option<u8>,
    /// The first and the last key in it; `None` without entries. Reads outside do not need it.
    pub keys: Option<(SpacedKey, SpacedKey)>,
    /// Lowest and highest LSN in it.
    pub lsns: (Lsn, Lsn),
    /// What is wrong with it, with file and offset.
    pub what: String,
}

impl Tree {
    /// The damaged tables that the tree still has, by id.
    #[must_use]
    pub fn damaged_tables(&self) -> Vec<DamagedTable> {
        let noted = self.damaged.all();
        if noted.is_empty() {
            return Vec::new();
        }
        let (placed, version) = {
            let manifest = lock(&self.manifest);
            (manifest.state().tables.clone(), self.version())
        };
        let facts = |(id, what): (u128, String)| {
            let named =
                placed.iter().find(|p| p.file.id == id).map(|p| (p.file, (p.level != HISTORY).then_some(p.level)));
            let mut arriving = version.frozen.iter().flat_map(|f| f.over.files());
            let (file, level) = named.or_else(|| Some((arriving.find(|(file, _)| file.id == id)?.0, None)))?;
            let properties = version.known_tables().find(|t| t.id() == id)?.properties();
            Some(DamagedTable {
                file,
                path: self.table_path(id),
                level,
                keys: (properties.entries > 0).then(|| (spaced(&properties.min_key), spaced(&properties.max_key))),
                lsns: (properties.min_lsn, properties.max_lsn),
                what,
            })
        };
        noted.into_iter().filter_map(facts).collect()
    }
}
