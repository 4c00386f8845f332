//! One table on its way from a node that has it to one whose copy is damaged.
//!
//! Owns: both ends, and how long the receiver waits for the parts. Never: who is asked, and never a copy that is
//! called good although its length or hash is another.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mainstay_engine::fs::{File, OpenMode, read_exact_at};
use mainstay_engine::store::Store;
use mainstay_engine::table::TableFile;
use mainstay_engine::{Error, Result};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::super::outgoing::{Outgoing, Parts, outgoing};
use super::{PART_TIMEOUT, TransportError, blocking};

/// Read and sent at a time, in bytes.
const PART_BYTES: u64 = 1 << 20;
/// Who sends fewer bytes a second is not waited for.
const RATE_MIN: u64 = 64 << 10;

/// How long the parts of a transfer are waited for: for each, and for all of them. Who sends a byte now and then keeps
/// nobody waiting for ever.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    part: Duration,
    until: Instant,
}

impl Patience {
    /// For a transfer of so many bytes that begins now.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self::of(PART_TIMEOUT, PART_TIMEOUT + Duration::from_secs(bytes / RATE_MIN))
    }

    /// So long for each part, and for all.
    #[must_use]
    pub fn of(part: Duration, all: Duration) -> Self {
        Self { part, until: Instant::now() + all }
    }

    /// Waits for the next part.
    ///
    /// # Errors
    /// Why it is no longer waited for, in words.
    pub async fn wait<T>(&self, next: impl Future<Output = T>) -> std::result::Result<T, String> {
        let now = Instant::now();
        if now >= self.until {
            return Err("sends too slowly".to_owned());
        }
        match tokio::time::timeout_at(self.until.min(now + self.part), next).await {
            Ok(part) => Ok(part),
            Err(_) if now + self.part > self.until => Err("sends too slowly".to_owned()),
            Err(_) => Err(format!("sent nothing for {:?}", self.part)),
        }
    }
}

/// Writes the parts of a table to the new file, and syncs it. The inner error says in words why that is no copy.
///
/// # Errors
/// Those of the file.
pub(super) async fn receive(
    mut parts: mpsc::Receiver<std::result::Result<Vec<u8>, TransportError>>,
    patience: Patience,
    table: &TableFile,
    file: Arc<dyn File>,
    path: &Path,
) -> Result<std::result::Result<(), String>> {
    let (mut hash, mut at) = (blake3::Hasher::new(), 0);
    while at < table.bytes {
        let data = match patience.wait(parts.recv()).await {
            Ok(Some(Ok(data))) if data.is_empty() => return Ok(Err("sent a part with nothing in it".into())),
            Ok(Some(Ok(data))) if data.len() as u64 > table.bytes - at => {
                return Ok(Err("sent more than the table has".into()));
            }
            Ok(Some(Ok(data))) => data,
            Ok(Some(Err(e))) => return Ok(Err(e.what)),
            Ok(None) => return Ok(Err("broke off".into())),
            Err(why) => return Ok(Err(why)),
        };
        let (file, path) = (Arc::clone(&file), path.to_owned());
        (hash, at) = blocking(move || {
            hash.update(&data);
            file.write_all_at(&data, at).map_err(|e| Error::io("write", &path, e))?;
            Ok((hash, at + data.len() as u64))
        })
        .await?;
    }
    if *hash.finalize().as_bytes() != table.blake3 {
        return Ok(Err("sent a damaged copy".into()));
    }
    let path = path.to_owned();
    blocking(move || file.sync_data().map_err(|e| Error::failed_sync(&path, e))).await?;
    Ok(Ok(()))
}

/// Begins to send a table, in parts; a peer that takes none for that long is given up. Whether it is whole is for the receiver to see. `None` when there is no such table.
///
/// # Errors
/// When the node is stopping.
pub(super) async fn serve(
    store: Arc<Store>,
    id: u128,
    blake3: [u8; 32],
    patience: Duration,
) -> Result<Option<Parts<Vec<u8>>>> {
    // Whoever changes the manifest holds its lock while the disk syncs. Held to the end of the transfer: the file stays.
    let (store, pinned) = blocking(move || {
        let pinned = store.tree().pinned_tables();
        Ok((store, pinned))
    })
    .await?;
    let Some(table) = pinned.tables.iter().find(|t| t.id == id && t.blake3 == blake3).copied() else {
        return Ok(None);
    };
    let (fs, path) = (Arc::clone(&store.env().fs), store.tree().table_path(id));
    let (out, peer) = outgoing(patience, || ());
    tokio::task::spawn_blocking(move || {
        let _pinned = pinned;
        let file = fs.open(&path, OpenMode::Read).map_err(|e| Error::io("open", &path, e).to_string());
        let sent = file.and_then(|file| send(&store, &*file, &path, table.bytes, &out));
        out.end(sent);
    });
    Ok(Some(peer))
}

fn send(
    store: &Store,
    file: &dyn File,
    path: &Path,
    bytes: u64,
    out: &Outgoing<Vec<u8>>,
) -> std::result::Result<(), String> {
    let mut at = 0;
    while at < bytes {
        let mut buf = vec![0; usize::try_from(PART_BYTES.min(bytes - at)).unwrap_or_default()];
        read_exact_at(file, &mut buf, at).map_err(|e| {
            let met = Error::io("read", path, e);
            store.scrub_after(&met);
            met.to_string()
        })?;
        at += buf.len() as u64;
        out.hand(buf)?;
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the test has a disk that hangs under a thread of its own")]
mod tests {
    use mainstay_engine::batch::Batch;
    use mainstay_engine::clock::SimClock;
    use mainstay_engine::exec::Progress;
    use mainstay_engine::fs::Fs;
    use mainstay_engine::fs::sim::{FaultKind, OpClass, SimFs};
    use mainstay_engine::store::{Durability, Identity};
    use mainstay_engine::{CommitTs, Env, Options};

    use super::*;
    use crate::rule::NodeId;

    const LONG: Duration = Duration::from_secs(3600);
    const SHORT: Duration = Duration::from_millis(50);

    type Part = std::result::Result<Vec<u8>, TransportError>;

    /// What comes of a transfer of a table with so many zeros; an endless one ends the test.
    async fn received(bytes: u64, parts: mpsc::Receiver<Part>, patience: Patience) -> std::result::Result<(), String> {
        let (fs, path) = (SimFs::new(1), Path::new("/copy"));
        let file = fs.open(path, OpenMode::CreateNew).unwrap();
        let blake3 = *blake3::hash(&vec![0; usize::try_from(bytes.min(4096)).unwrap()]).as_bytes();
        let table = TableFile { id: 7, bytes, blake3, entries: 1 };
        let received = receive(parts, patience, &table, file, path);
        tokio::time::timeout(Duration::from_secs(60), received).await.expect("held up for ever").unwrap()
    }

    /// Sends the same part over and over.
    fn always(part: Vec<u8>) -> mpsc::Receiver<Part> {
        let (tx, rx) = mpsc::channel(1);
        tokio::spawn(async move { while tx.send(Ok(part.clone())).await.is_ok() {} });
        rx
    }

    #[tokio::test]
    async fn a_peer_that_sends_nothing_that_counts_is_given_up() {
        assert_eq!(received(4096, always(vec![0; 512]), Patience::of(LONG, LONG)).await, Ok(()));
        let empty = received(4096, always(Vec::new()), Patience::of(LONG, LONG)).await;
        assert_eq!(empty, Err("sent a part with nothing in it".to_owned()));
        let (_silent, rx) = mpsc::channel(1);
        assert_eq!(received(4096, rx, Patience::of(SHORT, LONG)).await, Err("sent nothing for 50ms".to_owned()));
        let (_silent, rx) = mpsc::channel(1);
        assert_eq!(received(4096, rx, Patience::of(LONG, SHORT)).await, Err("sends too slowly".to_owned()));
        // Each part comes in time, and the last one never would.
        let trickle = received(1 << 40, always(vec![0]), Patience::of(LONG, SHORT)).await;
        assert_eq!(trickle, Err("sends too slowly".to_owned()));
        // What was said before stays: an error of the peer, too much, an end too early, other bytes.
        let (tx, rx) = mpsc::channel(1);
        tx.send(Err(TransportError { node: NodeId(2), what: "gone".into() })).await.unwrap();
        assert_eq!(received(4096, rx, Patience::new(4096)).await, Err("gone".to_owned()));
        let more = received(4096, always(vec![0; 4097]), Patience::new(4096)).await;
        assert_eq!(more, Err("sent more than the table has".to_owned()));
        let (tx, rx) = mpsc::channel(1);
        drop(tx);
        assert_eq!(received(4096, rx, Patience::new(4096)).await, Err("broke off".to_owned()));
        let other = received(4096, always(vec![1; 4096]), Patience::new(4096)).await;
        assert_eq!(other, Err("sent a damaged copy".to_owned()));
    }

    #[test]
    fn the_time_for_a_transfer_grows_with_the_table() {
        let left = |bytes| Patience::new(bytes).until.duration_since(Instant::now()).as_secs();
        assert!((29..=30).contains(&left(0)) && (1053..=1054).contains(&left(64 << 20)), "{}", left(64 << 20));
    }

    /// A manifest's sync that hangs holds its lock; a runtime thread must not wait for it.
    #[tokio::test]
    async fn a_disk_that_hangs_holds_no_runtime_thread_up() {
        let (fs, dir) = (SimFs::new(2), Path::new("/data"));
        fs.prepare_dir(dir).unwrap();
        let (env, _) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1)), 2);
        let store = Arc::new(Store::create(env.clone(), dir, &Options::tiny(), Identity::random(&env)).unwrap());
        for key in [b"a", b"b"] {
            let mut batch = Batch::new();
            batch.put(key, b"v").unwrap();
            store.write(&batch, &[], Durability::Synced).unwrap();
            store.tree().flush_all().unwrap();
        }
        let table = store.tree().pinned_tables().tables[0];
        let stall = fs.stall_syncs();
        let moving = Arc::clone(&store);
        // A table of two that lie apart goes down as it is: that is an edit of the manifest and nothing else.
        let moved = std::thread::spawn(move || moving.tree().compact_step().unwrap());
        stall.wait_for(1);
        // Ends the hang for a runtime that waits for it, so that the test fails instead.
        let (done, over) = std::sync::mpsc::channel();
        let guard = std::thread::spawn(move || {
            let in_time = over.recv_timeout(Duration::from_secs(10)).is_ok();
            drop(stall);
            in_time
        });
        let sending = tokio::spawn(serve(Arc::clone(&store), table.id, table.blake3, LONG));
        tokio::task::yield_now().await;
        assert!(!sending.is_finished());
        done.send(()).unwrap();
        assert!(guard.join().unwrap(), "the runtime's thread waited for the disk");
        assert_eq!(moved.join().unwrap(), Progress::Worked);
        let mut parts = sending.await.unwrap().unwrap().expect("the table is there");
        let mut bytes = Vec::new();
        while let Some(part) = parts.recv().await {
            bytes.extend(part.unwrap());
        }
        assert_eq!(*blake3::hash(&bytes).as_bytes(), table.blake3);
        assert!(serve(Arc::clone(&store), table.id + 1, table.blake3, LONG).await.unwrap().is_none());
        // Sectors that the disk does not give are this node's own damage, whoever asked for them.
        for nth in 1..1000 {
            fs.fail_nth(OpClass::Read, nth, FaultKind::Eio);
        }
        let mut parts = serve(Arc::clone(&store), table.id, table.blake3, LONG).await.unwrap().expect("it is there");
        let why = parts.recv().await.unwrap().unwrap_err();
        fs.clear_faults();
        assert!(why.contains("cannot read"), "{why}");
        assert_eq!(store.tree().damaged_tables().iter().map(|t| t.file.id).collect::<Vec<_>>(), [table.id]);
    }
}
