//! Chunks of memtables that are gone, for those to come: an allocator that gets them back and gives them out again
//! mixes them with small pieces, and the process grows beyond what it uses.
//!
//! Owns: how many are kept. Never: chunks of another size than the usual one.

use std::sync::{Arc, Mutex, PoisonError};

/// See the module. Clones share the chunks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spare {
    chunks: Arc<Mutex<Vec<Vec<u8>>>>,
    most: usize,
}

impl Spare {
    /// Keeps at most `bytes`, in chunks of `chunk` bytes.
    pub(super) fn of(bytes: usize, chunk: usize) -> Self {
        Self { chunks: Arc::default(), most: bytes / chunk }
    }

    /// An empty chunk, if one is kept.
    pub(super) fn take(&self) -> Option<Vec<u8>> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Keeps those of `chunks` that `usual` says are of the usual size, while there is room for them.
    pub(super) fn keep(&self, chunks: Vec<Vec<u8>>, usual: impl Fn(&Vec<u8>) -> bool) {
        let mut kept = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        for mut chunk in chunks.into_iter().filter(usual) {
            if kept.len() >= self.most {
                return;
            }
            chunk.clear();
            kept.push(chunk);
        }
    }
}
