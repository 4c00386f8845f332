//! A tree that is only read, in place: a checkpoint, or the tables of a stopped store.
//!
//! Owns: that nothing on disk changes. Never: the log; what was not flushed is not seen.

use std::path::Path;

use super::{Tree, TreeStats, View};
use crate::env::Env;
use crate::error::Result;
use crate::limits::Options;
use crate::lsn::{CommitTs, Lsn, Position};

/// See the module. Table files are removed by their tree when they are merged: open a checkpoint, which has
/// links of its own, not the directory of a running store.
#[derive(Debug)]
pub struct ReadOnly(Tree);

impl ReadOnly {
    /// Opens the tree in the directory `dir` without changing anything there.
    ///
    /// # Errors
    /// As [`Tree::open`].
    pub fn open(env: Env, dir: &Path, options: &Options) -> Result<Self> {
        Tree::open_unchanged(env, dir, options).map(Self)
    }

    /// The last record it contains.
    #[must_use]
    pub fn position(&self) -> Position {
        self.0.flushed()
    }

    /// The oldest LSN that [`ReadOnly::view_at`] accepts.
    #[must_use]
    pub fn history_floor(&self) -> Lsn {
        self.0.history_floor()
    }

    /// A view of all of it.
    #[must_use]
    pub fn view(&self) -> View {
        self.0.view()
    }

    /// A view at an older LSN.
    ///
    /// # Errors
    /// As [`Tree::view_at`].
    pub fn view_at(&self, lsn: Lsn) -> Result<View> {
        self.0.view_at(lsn)
    }

    /// A view at an older time.
    ///
    /// # Errors
    /// As [`Tree::view_at_time`].
    pub fn view_at_time(&self, ts: CommitTs) -> Result<View> {
        self.0.view_at_time(ts)
    }

    /// Counts and sizes.
    #[must_use]
    pub fn stats(&self) -> TreeStats {
        self.0.stats()
    }
}
