//! Checks tables of a running tree, one by one, in steps.
//!
//! A check reads the file by a handle of its own, past every cache, and keeps nothing of the tree alive between two
//! steps: a table that is merged away meanwhile goes at once, and its check ends without a word. Owns: that. Never:
//! what becomes of damage.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use super::{Tree, lock};
use crate::error::Error;
use crate::inspect::{Finding, conclude};
use crate::table::TableFile;
use crate::table::reader::Table;
use crate::table::verify::TableCheck;

/// How a step of a check ended.
#[derive(Debug)]
pub(crate) enum Scrubbed {
    /// It read so many bytes, and there are more.
    Read(u64),
    /// All is read; this was found.
    Whole(Vec<Finding>),
    /// It could not be read, which says nothing of its bytes: the next step begins anew.
    Unread(Error),
    /// The file is no longer in use.
    Gone,
}

/// A table that is to be checked.
#[derive(Debug)]
pub(crate) struct TableScrub {
    table: Weak<Table>,
    path: PathBuf,
    file: TableFile,
    check: Option<TableCheck>,
}

impl TableScrub {
    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The handle that the tree had when the pass began, unless that is gone.
    pub(super) fn table(&self) -> Option<Arc<Table>> {
        self.table.upgrade()
    }

    /// Its table.
    pub(crate) const fn id(&self) -> u128 {
        self.file.id
    }

    /// Its length in bytes.
    pub(crate) const fn bytes(&self) -> u64 {
        self.file.bytes
    }

    /// Checks about so many bytes more.
    pub(crate) fn step(&mut self, tree: &Tree, bytes: u64) -> Scrubbed {
        // While it is held here, the file stays.
        let Some(table) = self.table.upgrade() else { return Scrubbed::Gone };
        let found = match &mut self.check {
            None => match TableCheck::open(&tree.env.fs, &self.path) {
                Ok(check) => {
                    self.check = Some(check);
                    return Scrubbed::Read(0);
                }
                Err(e) => Finding::of(e, 0).map(|f| vec![f]),
            },
            Some(check) => {
                if let Some(read) = check.step(bytes) {
                    return Scrubbed::Read(read);
                }
                let Some(check) = self.check.take() else { return Scrubbed::Gone };
                conclude(check, &self.path, Some(&self.file))
            }
        };
        // One that was replaced by a good copy, or merged away, proves nothing any more.
        if !tree.has_table(&table) {
            return Scrubbed::Gone;
        }
        found.map_or_else(Scrubbed::Unread, Scrubbed::Whole)
    }
}

impl Tree {
    /// All tables, as the manifest has them, and those that were ingested and wait for their level.
    pub(crate) fn tables_to_scrub(&self) -> Vec<TableScrub> {
        let (files, version) = {
            let manifest = lock(&self.manifest);
            (manifest.state().tables.clone(), self.version())
        };
        let of = |(file, t): (TableFile, &Arc<Table>)| TableScrub {
            table: Arc::downgrade(t),
            path: t.path().to_owned(),
            file,
            check: None,
        };
        let facts = |t: &Arc<Table>| files.iter().find(|p| p.file.id == t.id()).map(|p| p.file);
        let named = version.all_tables().filter_map(|t| Some((facts(t)?, t)));
        let arriving = version.frozen.iter().flat_map(|f| f.over.files());
        named.chain(arriving).map(of).collect()
    }

    /// One table, if the tree has it.
    pub(crate) fn table_to_scrub(&self, id: u128) -> Option<TableScrub> {
        self.tables_to_scrub().into_iter().find(|t| t.file.id == id)
    }

    /// Whether the tree reads from this very handle.
    pub(super) fn has_table(&self, table: &Arc<Table>) -> bool {
        self.published.with(|v| v.known_tables().any(|t| Arc::ptr_eq(t, table)))
    }
}
