//! Keys of a table, evenly spaced: how its bytes lie among all keys.
//!
//! Owns: the choice, out of the index. Never: data blocks.

use crate::error::Result;

use super::reader::{Caching, Table};

impl Table {
    /// Up to `count` keys, ascending, each with the bytes of data that lie between it and the one before, about. A key
    /// is one between two blocks: it need not be in the table.
    ///
    /// # Errors
    /// `Corruption` of the index, `Io`.
    pub(crate) fn sample_keys(&self, count: usize) -> Result<Vec<(Vec<u8>, u64)>> {
        let index = self.index_for(Caching::Bypass)?;
        let (blocks, count) = (index.len(), count.min(index.len()));
        let share = self.bytes.checked_div(count as u64).unwrap_or_default();
        Ok((1..=count).map(|n| (index.separator(n * blocks / count - 1), share)).collect())
    }
}
