//! Repair of this node's tables while it runs: where a good copy comes from, and a scrub on request.
//!
//! Owns: the order of the sources (the repository, the other nodes, the caller), the copy on its way. Never: a decision
//! whether a copy is good (the engine reads it whole before anything is changed), and never a table for which no copy
//! has its hash: then it says so.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use mainstay_backup::{Repository, copy_table};
use mainstay_engine::Error;
use mainstay_engine::exec::Progress;
use mainstay_engine::fs::{File, OpenMode};
use mainstay_engine::store::{ScrubPass, Store};
use mainstay_engine::table::TableFile;
use mainstay_engine::tree::DamagedTable;
use mainstay_replication::driver::{Driver, Patience};
use tokio::sync::mpsc;

use super::archive::Archive;
use crate::service::{Class, Code, Failure};

/// Read in one step of a scrub, in bytes.
const SCRUB_STEP: u64 = 4 << 20;
/// Time between two messages of a scrub's progress.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// A table that is whole again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// Where the copy came from.
    pub source: String,
    /// Its length.
    pub bytes: u64,
}

/// Repairs tables of this node, one at a time. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Repair {
    driver: Arc<Driver>,
    archive: Archive,
    one: Arc<tokio::sync::Mutex<()>>,
}

impl Repair {
    /// Repair of the node that this driver is of.
    #[must_use]
    pub fn new(driver: Arc<Driver>, archive: Archive) -> Self {
        Self { driver, archive, one: Arc::default() }
    }

    /// The node's store.
    ///
    /// # Errors
    /// `NotReady` while there is none.
    pub fn store(&self) -> Result<Arc<Store>, Failure> {
        let none = || Failure::new(Code::NotReady, Class::NotExecuted, "this node has no open data yet");
        self.driver.store().cloned().ok_or_else(none)
    }

    /// The damaged tables that are known, and the damage of the log as text.
    ///
    /// # Errors
    /// `NotReady`.
    pub async fn damage(&self) -> Result<(Vec<DamagedTable>, Vec<String>), Failure> {
        let store = self.store()?;
        blocking(move || Ok((store.tree().damaged_tables(), store.damaged_log()))).await
    }

    /// Replaces table `id` by a copy out of the repository, or from another node that has the very same table.
    ///
    /// # Errors
    /// `NoCopy` with what each source said; `BadRequest` for a table that the node does not have; `Overloaded` beside
    /// another repair; the engine's. The table is as it was then.
    pub async fn from_elsewhere(&self, id: u128) -> Result<Repaired, Failure> {
        let _one = self.begin()?;
        let (store, table) = self.table(id).await?;
        let copy = Scratch::new(&store).await?;
        let mut tried = Vec::new();
        match self.archive.repository() {
            None => tried.push("no repository is configured".to_owned()),
            Some(repository) => match out_of(repository, &store, &table, &copy.path).await? {
                Ok(()) => return put(&store, &table, copy, repository.url().to_owned()).await,
                Err(why) => tried.push(why),
            },
        }
        match self.driver.fetch_table(&table, &copy.path).await? {
            Ok(node) => return put(&store, &table, copy, format!("node {node}")).await,
            Err(refused) => tried.extend(refused.into_iter().map(|e| format!("node {}: {}", e.node, e.what))),
        }
        let text = format!("no good copy of table {id:032x} is to be had: {}", tried.join("; "));
        Err(Failure::new(Code::NoCopy, Class::NotExecuted, text))
    }

    /// Replaces table `id` by the copy that the caller sends. One that does not send keeps others waiting for a while only.
    ///
    /// # Errors
    /// As [`Repair::from_elsewhere`]; `BadRequest` when the copy is damaged, or whole and another table, or when it does
    /// not come.
    pub async fn from_caller<S, E>(&self, id: u128, data: S) -> Result<Repaired, Failure>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin + Send,
        E: ToString,
    {
        let _one = self.begin()?;
        let (store, table) = self.table(id).await?;
        let copy = Scratch::new(&store).await?;
        receive(data, Patience::new(table.bytes), table.bytes, copy.create().await?, &copy.path).await?;
        put(&store, &table, copy, "the file given".to_owned()).await
    }

    /// Reads everything at rest on this node once, at about so many bytes a second (zero: as fast as it goes). The
    /// receiver gets the progress, and at last the pass; dropping it ends the scrub.
    ///
    /// # Errors
    /// `NotReady`; through the receiver `Stopped` when the pass ended early.
    pub fn scrub(&self, rate: u64) -> Result<mpsc::Receiver<Result<ScrubPass, Failure>>, Failure> {
        let store = self.store()?;
        let (tx, rx) = mpsc::channel(4);
        tokio::spawn(scrub_for(store, rate, tx));
        Ok(rx)
    }

    fn begin(&self) -> Result<tokio::sync::OwnedMutexGuard<()>, Failure> {
        let busy = "another repair is under way on this node; wait for it, then try again";
        Arc::clone(&self.one).try_lock_owned().map_err(|_| Failure::new(Code::Overloaded, Class::NotExecuted, busy))
    }

    /// The store, and what its manifest says of a table.
    async fn table(&self, id: u128) -> Result<(Arc<Store>, TableFile), Failure> {
        let store = self.store()?;
        let at = Arc::clone(&store);
        let tables = blocking(move || Ok(at.tree().pinned_tables().tables)).await?;
        let table = tables.into_iter().find(|t| t.id == id).ok_or_else(|| {
            Failure::bad(format!("this node has no table {id:032x}; it may be merged away, see `mainstay scrub`"))
        })?;
        Ok((store, table))
    }
}

/// A pass for who asked for it. One that ends early is given up: else the next who asks would take it for one under way.
async fn scrub_for(store: Arc<Store>, rate: u64, tx: mpsc::Sender<Result<ScrubPass, Failure>>) {
    let ended = scrub_all(&store, rate, &tx).await;
    if !matches!(ended, Ok(Some(_))) {
        // It waits for a step under way, so for the disk.
        let _ = tokio::task::spawn_blocking(move || store.scrub_give_up()).await;
    }
    if let Some(last) = ended.transpose() {
        let _ = tx.send(last).await;
    }
}

/// A pass from its beginning to its end, with its progress to who asked for it; `None` when nobody asks any more.
async fn scrub_all(
    store: &Arc<Store>,
    rate: u64,
    tx: &mpsc::Sender<Result<ScrubPass, Failure>>,
) -> Result<Option<ScrubPass>, Failure> {
    let before = store.scrub_stats();
    // A pass that is under way has read files already: then the next one is what was asked for.
    let passes = before.passes + if before.running { 2 } else { 1 };
    let clock = Arc::clone(&store.env().clock);
    let mut told = clock.monotonic();
    loop {
        let begun = clock.monotonic();
        let step = if rate == 0 { SCRUB_STEP } else { SCRUB_STEP.min(rate) };
        let stepping = Arc::clone(store);
        let stepped = tokio::task::spawn_blocking(move || stepping.scrub_step(step)).await;
        let progress = stepped.map_err(|e| {
            let text = format!(
                "the scrub ended before everything was read ({e}); the node's log has the cause, the node goes on"
            );
            Failure::new(Code::Stopped, Class::NotExecuted, text)
        })?;
        // Another pass may have begun by now.
        if let Some(pass) = store.last_scrub().filter(|p| p.stats.passes >= passes) {
            return Ok(Some(pass));
        }
        if clock.monotonic().saturating_sub(told) >= TELL_EVERY {
            told = clock.monotonic();
            let so_far = ScrubPass { stats: store.scrub_stats(), unread: Vec::new() };
            if tx.send(Ok(so_far)).await.is_err() {
                return Ok(None);
            }
        }
        if rate > 0 && progress == Progress::Worked {
            let due = Duration::from_secs_f64(step as f64 / rate as f64);
            tokio::time::sleep(due.saturating_sub(clock.monotonic().saturating_sub(begun))).await;
        }
    }
}

/// Writes to a file what the caller sends, at most so many bytes.
async fn receive<S, E>(
    mut data: S,
    patience: Patience,
    bytes: u64,
    file: Arc<dyn File>,
    path: &Path,
) -> Result<(), Failure>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin + Send,
    E: ToString,
{
    let broken = |why: &str| {
        let text = format!("the copy broke off: {why}; nothing was changed");
        Failure::new(Code::BadRequest, Class::NotExecuted, text)
    };
    let mut at = 0;
    loop {
        let part = match patience.wait(data.next()).await {
            Ok(None) => return Ok(()),
            Ok(Some(part)) => part.map_err(|e| broken(&e.to_string()))?,
            Err(why) => return Err(broken(&format!("the client {why}"))),
        };
        if part.is_empty() {
            return Err(broken("the client sent a part with nothing in it"));
        }
        let end = at + part.len() as u64;
        if end > bytes {
            return Err(Failure::bad(format!("the copy is no copy of this table: it is longer than {bytes} bytes")));
        }
        let (file, path) = (Arc::clone(&file), path.to_owned());
        blocking(move || file.write_all_at(&part, at).map_err(|e| Error::io("write", &path, e))).await?;
        at = end;
    }
}

/// A copy out of the repository; the inner error says why there is none, and another source may have one.
async fn out_of(
    repository: &Repository,
    store: &Store,
    table: &TableFile,
    to: &Path,
) -> Result<Result<(), String>, Failure> {
    match copy_table(repository, store.identity().cluster, table, to, |_| {}).await {
        Ok(true) => Ok(Ok(())),
        Ok(false) => Ok(Err(format!("no base backup in {} has it", repository.url()))),
        Err(mainstay_backup::Error::Engine(e)) => Err(e.into()),
        Err(e) => {
            // What was written of it must not be in the way of the next source.
            let (fs, path) = (Arc::clone(&store.env().fs), to.to_owned());
            blocking(move || {
                if fs.exists(&path).unwrap_or(false) {
                    fs.remove_file(&path).map_err(|e| Error::io("remove", &path, e))
                } else {
                    Ok(())
                }
            })
            .await?;
            Ok(Err(format!("repository {}: {e}", repository.url())))
        }
    }
}

/// Has the engine verify the copy and put it in place.
async fn put(store: &Arc<Store>, table: &TableFile, copy: Scratch, source: String) -> Result<Repaired, Failure> {
    let (at, id, path) = (Arc::clone(store), table.id, copy.path.clone());
    let done = tokio::task::spawn_blocking(move || at.repair_table(id, &path)).await;
    let done = done.unwrap_or_else(|e| Err(Error::Stopped(format!("the repair ended: {e}"))));
    match done {
        Ok(()) => {
            tracing::warn!(table = %format!("{id:032x}"), %source, "a damaged table was replaced by a good copy");
            Ok(Repaired { source, bytes: table.bytes })
        }
        Err(Error::Corruption { path, offset, what, .. }) if path == copy.path => Err(Failure::bad(format!(
            "the copy from {source} is not good: {what} (offset {offset}); nothing was changed"
        ))),
        Err(e) => Err(e.into()),
    }
}

/// A copy on its way, beside what the next start clears away. Removed when it is dropped.
#[derive(Debug)]
struct Scratch {
    path: PathBuf,
    fs: Arc<dyn mainstay_engine::fs::Fs>,
}

impl Scratch {
    async fn new(store: &Arc<Store>) -> Result<Self, Failure> {
        let dir = store.dir().join("seeds");
        let path = dir.join(format!("repair-{:016x}.table", store.env().rng.next_u64()));
        let fs = Arc::clone(&store.env().fs);
        let making = Arc::clone(&fs);
        blocking(move || making.create_dir_all(&dir).map_err(|e| Error::io("create", &dir, e))).await?;
        Ok(Self { path, fs })
    }

    async fn create(&self) -> Result<Arc<dyn File>, Failure> {
        let (fs, path) = (Arc::clone(&self.fs), self.path.clone());
        blocking(move || fs.open(&path, OpenMode::CreateNew).map_err(|e| Error::io("create", &path, e))).await
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays goes with the next start.
        let _ = self.fs.remove_file(&self.path);
    }
}

/// Off the runtime's threads: whoever changes the manifest holds its lock while the disk syncs, and a disk may hang.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> mainstay_engine::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.unwrap_or_else(|e| Err(Error::Stopped(format!("background work ended: {e}"))))?)
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use mainstay_engine::batch::Batch;
    use mainstay_engine::fs::Fs;
    use mainstay_engine::fs::os::OsFs;
    use mainstay_engine::store::{Durability, Identity};
    use mainstay_engine::{ClusterId, Env, Options, TimelineId};

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);
    const SHORT: Duration = Duration::from_millis(50);

    type Part = Result<Bytes, String>;

    /// What comes of a copy of so many bytes; an endless one ends the test.
    async fn received<S: Stream<Item = Part> + Unpin + Send>(bytes: u64, data: S, patience: Patience) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("copy");
        let file = OsFs::new().open(&path, OpenMode::CreateNew).unwrap();
        let received = receive(data, patience, bytes, Arc::clone(&file), &path);
        let received = tokio::time::timeout(Duration::from_secs(60), received).await.expect("held up for ever");
        received.map_or_else(
            |f| {
                assert_ne!(f.class, Class::Indeterminate, "{f}");
                f.message
            },
            |()| format!("{} bytes", file.len().unwrap()),
        )
    }

    #[tokio::test]
    async fn a_client_that_sends_nothing_that_counts_is_given_up() {
        let part = |bytes: usize| Ok(Bytes::from(vec![7; bytes]));
        assert_eq!(received(9, stream::iter([part(4), part(5)]), Patience::of(LONG, LONG)).await, "9 bytes");
        let over = received(9, stream::iter([part(4), part(6)]), Patience::of(LONG, LONG)).await;
        assert!(over.contains("longer than 9 bytes"), "{over}");
        let empty = received(9, stream::repeat_with(|| part(0)), Patience::of(LONG, LONG)).await;
        assert!(empty.contains("the client sent a part with nothing in it"), "{empty}");
        let silent = received(9, stream::pending(), Patience::of(SHORT, LONG)).await;
        assert!(silent.contains("the client sent nothing for 50ms"), "{silent}");
        let trickle = received(u64::MAX, stream::repeat_with(|| part(1)), Patience::of(LONG, SHORT)).await;
        assert!(trickle.contains("the client sends too slowly"), "{trickle}");
    }

    #[tokio::test]
    async fn a_scrub_that_nobody_waits_for_any_more_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity { cluster: ClusterId(1), timeline: TimelineId(1) };
        let store = Store::create(Env::real(), dir.path(), &Options::default(), identity).unwrap();
        let mut batch = Batch::new();
        batch.put(b"k", b"v").unwrap();
        store.write(&batch, &[], Durability::Synced).unwrap();
        store.tree().flush_all().unwrap();
        let store = Arc::new(store);
        let (tx, rx) = mpsc::channel(4);
        drop(rx);
        scrub_for(Arc::clone(&store), 1, tx).await;
        let stats = store.scrub_stats();
        assert!(stats.files_total > 0 && !stats.running && stats.passes == 0, "{stats:?}");
        let (tx, mut asked) = mpsc::channel(4);
        scrub_for(Arc::clone(&store), 0, tx).await;
        let pass = asked.recv().await.unwrap().unwrap();
        assert!(pass.is_whole() && pass.stats.passes == 1 && !store.scrub_stats().running, "{pass:?}");
    }
}
