//! Behaviour of the crate at its seams: archive, plan and restore against a store with faults.

mod archiving;
mod corpus;
mod engine;
mod planning;
mod probing;
mod restoring;

use std::sync::Arc;
use std::time::Duration;

use mainstay_engine::watermark::Watermark;
use mainstay_engine::{Epoch, Lsn, Position};

use crate::archive::{Archiver, ArchiverOptions, Step};
use crate::base::{BaseInfo, create_base};
use crate::error::Result;
use crate::testing::{FaultStore, History, MemoryLog, WRITER, checkpoint, repository};
use crate::wal_object::Writer;

/// Small objects, no pauses, fences looked at each time.
fn options(object_bytes: usize) -> ArchiverOptions {
    ArchiverOptions {
        interval: Duration::ZERO,
        object_bytes,
        fence_check: Duration::ZERO,
        ..ArchiverOptions::default()
    }
}

fn epoch(e: u64) -> Writer {
    Writer { epoch: Epoch(e), node: e, ..WRITER }
}

struct Rig {
    archiver: Archiver,
    committed: Watermark,
    archived: Watermark,
}

fn rig(store: &Arc<FaultStore>, log: &Arc<MemoryLog>, writer: Writer, committed: Lsn, options: ArchiverOptions) -> Rig {
    let (committed, archived) = (Watermark::new(committed), Watermark::default());
    let source = Arc::clone(log) as Arc<dyn crate::archive::RecordSource>;
    let archiver = Archiver::new(repository(store), writer, source, committed.clone(), archived.clone(), options);
    Rig { archiver, committed, archived }
}

async fn drain(archiver: &mut Archiver) -> Result<()> {
    while let Step::Archived(_) = archiver.step().await? {}
    Ok(())
}

/// Archives the whole history in objects of about `object_bytes`.
async fn archive_all(store: &Arc<FaultStore>, history: &History, writer: Writer, object_bytes: usize) {
    let log = MemoryLog::new(history);
    let mut r = rig(store, &log, writer, history.end().lsn, options(object_bytes));
    drain(&mut r.archiver).await.unwrap();
    assert_eq!(r.archived.get(), history.end().lsn);
}

/// A base at `position` with two opaque tables.
async fn base(store: &Arc<FaultStore>, position: Position, writer: Writer) -> BaseInfo {
    let dir = tempfile::tempdir().unwrap();
    let tables = [(1, b"table one".to_vec()), (2, format!("table of {}", position.lsn).into_bytes())];
    let source = checkpoint(dir.path(), position, &tables);
    create_base(&repository(store), &source, &writer, |_, _| ()).await.unwrap()
}

/// The server spawns these.
#[test]
fn the_futures_can_be_spawned() {
    const fn send<T: Send>(_: &T) {}
    let repository = repository(&FaultStore::new(1));
    let dir = std::path::Path::new("/nowhere");
    let source = crate::base::BaseSource {
        dir: dir.to_owned(),
        position: Position::default(),
        tables: Vec::new(),
        manifest: Vec::new(),
    };
    send(&create_base(&repository, &source, &WRITER, |_, _| ()));
    send(&crate::plan(&repository, crate::Target::Latest, None));
    send(&crate::restore_window(&repository, None));
    send(&repository.bases());
}

async fn restore_for_a_server(repository: crate::Repository, plan: crate::RestorePlan) -> Result<crate::Restored> {
    let options = crate::RestoreOptions::default();
    let factory = crate::testing::Replayed::default();
    crate::execute(&repository, &plan, std::path::Path::new("/nowhere"), factory, &options).await
}

#[test]
fn a_restore_can_be_spawned() {
    const fn spawnable<F: Future + Send>(_: fn(crate::Repository, crate::RestorePlan) -> F) {}
    spawnable(restore_for_a_server);
}
