//! Open files: what waits because the process, or the machine, has as many open as it may.
//!
//! A flush, a merge and a new log segment each need a file more for a while. Who is refused one has done nothing yet, or
//! takes back what it has done, and is tried again as after a full disk: nothing that was acknowledged depends on it.
//! Syncs of directories need a handle: they are kept, one is in reserve, and else they wait (`crate::fs`), so a sync that
//! failed is final here as anywhere \[I3\].
//! Owns: the account of what waits. Never: counting files, or closing any to make place.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use crate::error::{Error, Result};

/// What waits for files to be closed, or for a higher limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFilesStats {
    /// A memtable waits for its flush.
    pub flush_waits: bool,
    /// A merge waits.
    pub merge_waits: bool,
    /// The next log segment waits to be made.
    pub segment_waits: bool,
    /// Writes that need another log segment, or a memtable, are refused. Reads go on.
    pub writes_refused: bool,
    /// Times that work was refused a file, since the store was opened.
    pub refusals: u64,
}

impl OpenFilesStats {
    /// What an operator should be told; `None` when nothing waits.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let what = match self {
            Self { writes_refused: true, .. } => {
                "writes that need another log segment or memtable are refused, reads go on"
            }
            Self { flush_waits: true, .. } => "flushes wait",
            Self { merge_waits: true, .. } => "compaction waits",
            _ => return None,
        };
        Some(format!(
            "too many files are open: {what}; raise the limit (`ulimit -n`, LimitNOFILE=), it goes on by itself when \
             some are closed"
        ))
    }
}

/// Whether one kind of work waits for a file.
#[derive(Debug, Default)]
pub(crate) struct FileWait {
    /// What the operating system said last; 0 when nothing waits.
    errno: AtomicI32,
    refusals: AtomicU64,
}

impl FileWait {
    /// How a piece of the work ended.
    pub(crate) fn note<T>(&self, ended: &Result<T>) {
        match ended {
            Ok(_) => self.clear(),
            Err(e) => self.refused(e),
        }
    }

    /// The work met an error.
    pub(crate) fn refused(&self, e: &Error) {
        if let Error::TooManyFiles { source, .. } = e {
            self.errno.store(source.raw_os_error().unwrap_or(-1), Ordering::Relaxed);
            self.refusals.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The work is done, or none is due.
    pub(crate) fn clear(&self) {
        // Mostly it does not wait: no cache line is taken from readers then.
        if self.waits() {
            self.errno.store(0, Ordering::Relaxed);
        }
    }

    pub(crate) fn waits(&self) -> bool {
        self.errno.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    /// Refuses a write that needs the work done, unless it was done meanwhile. `dir` is where the file was to be.
    pub(crate) fn refuse_write(&self, dir: &Path) -> Result<()> {
        match self.errno.load(Ordering::Relaxed) {
            0 => Ok(()),
            errno => {
                self.refusals.fetch_add(1, Ordering::Relaxed);
                let source = io::Error::from_raw_os_error(errno);
                Err(Error::TooManyFiles { action: "create", path: dir.join("*.table"), source })
            }
        }
    }
}
