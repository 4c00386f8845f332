//! The engine's log as the archiver reads it.
//!
//! Owns: a cursor that is kept between reads as long as they follow each other. Never: a slot on the
//! log; whoever wires the archiver holds one and advances it with the `archived` watermark.

use std::sync::{Arc, Mutex, PoisonError};

use mainstay_engine::log::{Chunk, Log, Reader};
use mainstay_engine::{Lsn, Position, Result};

use crate::archive::RecordSource;

/// Reads a [`Log`].
#[derive(Debug)]
pub struct LogSource {
    log: Arc<Log>,
    cursor: Mutex<Option<Reader>>,
}

impl LogSource {
    /// A source on `log`.
    #[must_use]
    pub fn new(log: Arc<Log>) -> Self {
        Self { log, cursor: Mutex::new(None) }
    }
}

impl RecordSource for LogSource {
    fn start(&self) -> Result<Position> {
        Ok(self.log.start())
    }

    fn read(&self, from: Lsn, upto: Lsn, max_bytes: usize) -> Result<Option<Chunk>> {
        // A cursor left by a panic is only a place to read from; it is checked like any other.
        let mut cursor = self.cursor.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reader = match cursor.take() {
            Some(reader) if reader.next_lsn() == from => reader,
            _ => self.log.reader(from)?,
        };
        // After an error the cursor is dropped: the next read starts afresh.
        let chunk = reader.next(upto, max_bytes)?;
        *cursor = Some(reader);
        Ok(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_engine::record::{Kind, TimelineStart};
    use mainstay_engine::watermark::Watermark;
    use mainstay_engine::{CommitTs, Env, Epoch, Options, TimelineId};

    use crate::archive::{Archiver, ArchiverOptions, Step};
    use crate::catalog::Catalog;
    use crate::repository::documents::Cause;
    use crate::testing::{CLUSTER, FaultStore, T1, WRITER, repository};

    fn log(dir: &std::path::Path, records: u64) -> Arc<Log> {
        let (log, _) = Log::open(&Env::real(), dir, &Options::tiny(), Lsn::ZERO, Position::default()).unwrap();
        let start = TimelineStart { cluster: CLUSTER, timeline: T1, parent: TimelineId(0), fork: Lsn::ZERO };
        log.append_timeline(Epoch(1), CommitTs(1), &start, Lsn(1)).unwrap();
        for n in 2..=records {
            log.append(Kind::Batch, Epoch(1), CommitTs(n * 10), 0, 0, &[7; 300]).unwrap();
        }
        log.step().unwrap();
        Arc::new(log)
    }

    #[tokio::test]
    async fn the_engines_log_is_archived_across_its_segments() {
        let dir = tempfile::tempdir().unwrap();
        let log = log(dir.path(), 200);
        let store = FaultStore::new(1);
        let options = ArchiverOptions { object_bytes: 3000, ..ArchiverOptions::default() };
        let (committed, archived) = (Watermark::new(Lsn(150)), Watermark::default());
        let source = Arc::new(LogSource::new(log));
        let mut archiver =
            Archiver::new(repository(&store), WRITER, source, committed.clone(), archived.clone(), options);
        while let Step::Archived(_) = archiver.step().await.unwrap() {}
        assert_eq!(archived.get(), Lsn(150));
        committed.raise(Lsn(200));
        while let Step::Archived(_) = archiver.step().await.unwrap() {}
        let catalog = Catalog::load(&repository(&store)).await.unwrap();
        assert_eq!(catalog.archive(T1).cover(T1, Lsn(1), Lsn(200)).1, []);
        assert_eq!(catalog.timelines[&T1].cause, Cause::Created);
    }
}
