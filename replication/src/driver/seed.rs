//! Seeding: a checkpoint goes from the primary to a node without data.
//!
//! Owns: both ends of the transfer, the check of every table against its hash, and moving aside what stood there before.
//! Never: a directory that looks like a store before all of it is there, nor removing what did not come from a seed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mainstay_engine::fs::OpenMode;
use mainstay_engine::restore::Builder;
use mainstay_engine::store::{Identity, Store, final_if_sync};
use mainstay_engine::{ClusterId, Env, Error, Lsn, Result};
use tokio::sync::mpsc;

use super::outgoing::{Outgoing, PATIENCE, Parts, outgoing};
use super::{CheckpointPart, Driver, Reason, Refusal, TransportError, blocking};
use crate::rule::NodeId;

/// Stands in the data directory from before the first part of a seed until the directory's next life begins: what is
/// there without an identity came from a seed that was not finished.
const SEEDING: &str = "SEEDING";
/// Begins the name of a directory of what was set aside; the time in microseconds follows.
const REPLACED: &str = "replaced-";
/// What makes up a store, the identity first: without it the rest is none, whatever happens next.
const PARTS: [&str; 5] = ["IDENTITY", "EVIDENCE", "log", "tables", "manifest"];
const PART_BYTES: usize = 1 << 20;
/// How long the log behind a checkpoint is kept for the node that fetched it.
const SEED_GRACE: Duration = Duration::from_secs(120);
/// Silence after which a transfer is given up.
const PART_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a node has no seed.
#[derive(Debug)]
pub(super) enum NotSeeded {
    /// The peer did not send it as it should. It may do so later.
    Peer(String),
    /// This node could not take it.
    Own(Error),
}

impl From<Error> for NotSeeded {
    fn from(e: Error) -> Self {
        Self::Own(e)
    }
}

/// A result of what a peer sends.
type Received<T> = std::result::Result<T, NotSeeded>;

fn peer<T>(what: impl Into<String>) -> Received<T> {
    Err(NotSeeded::Peer(what.into()))
}

impl Driver {
    pub(super) async fn seed_from(self: &Arc<Self>, primary: NodeId, cluster: ClusterId) -> Received<Store> {
        let failed = |e: TransportError| NotSeeded::Peer(e.to_string());
        let mut parts = self.transport.fetch_checkpoint(primary, cluster, self.settings.me).await.map_err(failed)?;
        let (tx, mut rx) = mpsc::channel(4);
        let (this, whole) = (Arc::clone(self), Arc::new(AtomicBool::new(false)));
        let all_came = Arc::clone(&whole);
        let receive = tokio::task::spawn_blocking(move || receive(&this, &mut rx, &all_came));
        let cut = loop {
            match tokio::time::timeout(PART_TIMEOUT, parts.recv()).await {
                Ok(Some(Ok(part))) => {
                    if tx.send(part).await.is_err() {
                        break None;
                    }
                }
                Ok(Some(Err(e))) => break Some(failed(e)),
                Ok(None) => {
                    whole.store(true, Ordering::Release);
                    break None;
                }
                Err(_) => break Some(NotSeeded::Peer("the peer stopped sending".into())),
            }
        };
        drop(tx);
        // Also after a cut: the next attempt must not find this one at work.
        let received = receive.await.map_err(|e| Error::Stopped(e.to_string()))?;
        match (received, cut) {
            // Of two reasons the one that ends this node.
            (Err(NotSeeded::Own(e)), _) => Err(e.into()),
            (_, Some(cut)) => Err(cut),
            (received, None) => received,
        }
    }

    /// Sends a checkpoint of this node to the peer `to`: parts, or at last why no more come.
    ///
    /// # Errors
    /// A refusal when this node is not the primary or belongs to another cluster.
    pub async fn serve_checkpoint(
        self: &Arc<Self>,
        cluster: ClusterId,
        to: NodeId,
    ) -> std::result::Result<mpsc::Receiver<std::result::Result<CheckpointPart, String>>, Refusal> {
        let refuse = |reason, text: String| {
            let p = self.promise();
            Refusal { reason, text, epoch: p.sealed, primary: p.primary }
        };
        let (Some(store), Some(_)) = (self.store().cloned(), self.core().leads()) else {
            return Err(refuse(Reason::NotPrimary, "not the primary; ask the primary for a checkpoint".into()));
        };
        let own = store.identity().cluster;
        if cluster != ClusterId(0) && cluster != own {
            return Err(refuse(Reason::OtherCluster, format!("this node belongs to cluster {own}, not {cluster}")));
        }
        Ok(self.send_checkpoint(store, to, PATIENCE))
    }

    pub(super) fn send_checkpoint(
        self: &Arc<Self>,
        store: Arc<Store>,
        to: NodeId,
        patience: Duration,
    ) -> Parts<CheckpointPart> {
        let sending = self.sending(to);
        let (out, peer) = outgoing(patience, move || sending.goes_on());
        let end = store.log().last().lsn;
        let name = format!("seed-{:016x}", self.env.rng.next_u64());
        tokio::spawn(async move {
            // Claimed before the cut, so that the log from the checkpoint on stays for the new node.
            let slot = store.log().slot(&name, store.applied().get());
            let dir = store.dir().join("seeds").join(&name);
            let from = Arc::clone(&store);
            let sent = blocking(move || {
                let sent = send(&from, &dir, end, &out);
                if let Err(why) = &sent {
                    tracing::warn!(node = to.0, why, "a seed was not sent to its end");
                }
                out.end(sent);
                let _ = from.env().fs.remove_dir_all(&dir);
                Ok(())
            });
            // After a panic the peer knows from what was dropped.
            let _ = sent.await;
            tokio::time::sleep(SEED_GRACE).await;
            drop(slot);
        });
        peer
    }
}

/// Sends all parts. Why not, in words.
fn send(store: &Store, dir: &Path, end: Lsn, out: &Outgoing<CheckpointPart>) -> std::result::Result<(), String> {
    let fs = &store.env().fs;
    let failed = |e: Error| e.to_string();
    if let Some(parent) = dir.parent() {
        fs.create_dir_all(parent).map_err(|e| failed(Error::io("create", parent, e)))?;
    }
    let checkpoint = store.checkpoint(dir).map_err(failed)?;
    let identity = store.identity();
    out.hand(CheckpointPart::Start {
        cluster: identity.cluster,
        timeline: identity.timeline,
        position: checkpoint.position,
        end,
        total_bytes: checkpoint.tables.iter().map(|t| t.bytes).sum(),
        manifest: checkpoint.manifest,
    })?;
    for table in &checkpoint.tables {
        out.hand(CheckpointPart::Table { id: table.id, bytes: table.bytes, blake3: table.blake3 })?;
        let path = dir.join("tables").join(format!("{:032x}.table", table.id));
        let file = fs.open(&path, OpenMode::Read).map_err(|e| failed(Error::io("open", &path, e)))?;
        let (mut at, mut hash) = (0, blake3::Hasher::new());
        while at < table.bytes {
            let want = PART_BYTES.min(usize::try_from(table.bytes - at).unwrap_or(PART_BYTES));
            let mut buf = vec![0; want];
            mainstay_engine::fs::read_exact_at(&*file, &mut buf, at).map_err(|e| {
                // By the name under which the store has it: this one goes.
                let met = Error::io("read", &store.tree().table_path(table.id), e);
                store.scrub_after(&met);
                failed(met)
            })?;
            at += want as u64;
            hash.update(&buf);
            out.hand(CheckpointPart::Data(buf))?;
        }
        if *hash.finalize().as_bytes() != table.blake3 {
            // The receiver would find out, and would not know whose disk it was.
            let _ = store.scrub_table(table.id);
            let what = "damaged, so this node can seed no other; repair the table, or promote another node";
            return Err(failed(Error::corruption(&store.tree().table_path(table.id), 0, None, what)));
        }
    }
    Ok(())
}

fn receive(driver: &Driver, parts: &mut mpsc::Receiver<CheckpointPart>, whole: &AtomicBool) -> Received<Store> {
    let (env, dir) = (&driver.env, &driver.settings.dir);
    let Some(CheckpointPart::Start { cluster, timeline, position, end, manifest, .. }) = parts.blocking_recv() else {
        return peer("the peer sent no checkpoint");
    };
    clear(env, dir)?;
    mark(env, dir)?;
    let tables = dir.join("tables");
    env.fs.create_dir_all(&tables).map_err(|e| Error::io("create", &tables, e))?;
    let mut open = None;
    while let Some(part) = parts.blocking_recv() {
        match part {
            CheckpointPart::Table { id, bytes, blake3 } => {
                finish_table(open.replace(Incoming::create(env, &tables, id, bytes, blake3)?))?;
            }
            CheckpointPart::Data(data) => match &mut open {
                Some(table) => table.write(&data)?,
                None => return peer("the peer sent data without a table"),
            },
            CheckpointPart::Start { .. } => return peer("the peer started twice"),
        }
    }
    if !whole.load(Ordering::Acquire) {
        return peer("the transfer ended early");
    }
    finish_table(open)?;
    env.fs.sync_dir(&tables).map_err(|e| Error::failed_sync(&tables, e))?;
    let options = &driver.settings.options;
    let builder = Builder::create(env.clone(), dir, options, Some(&manifest))?;
    if builder.position() != position {
        return peer("the checkpoint is not at the position it was announced for");
    }
    if !driver.never_held_data() {
        // Whatever this node acknowledged in an earlier life was in the primary's log when it was asked.
        driver.owe(end)?;
    }
    builder.finish_seed(Identity { cluster, timeline })?;
    Ok(Store::open(env.clone(), dir, options)?)
}

/// Moves the parts of a store aside, into a new directory beside them, whose path it gives; nothing is deleted. Called
/// again after a crash, it moves what was left, into another directory.
///
/// # Errors
/// The operating system's; what was moved by then stays where it went. `Stopped` after a failed sync, which ends the
/// process: what was moved may be in neither place.
pub fn set_aside(env: &Env, dir: &Path) -> Result<PathBuf> {
    move_aside(env, dir).map_err(|e| final_if_sync(env, e))
}

fn move_aside(env: &Env, dir: &Path) -> Result<PathBuf> {
    // From here on nothing here is of a seed that was not finished.
    let mark = dir.join(SEEDING);
    if env.fs.exists(&mark).map_err(|e| Error::io("look for", &mark, e))? {
        env.fs.remove_file(&mark).map_err(|e| Error::io("remove", &mark, e))?;
        env.fs.sync_dir(dir).map_err(|e| Error::failed_sync(dir, e))?;
    }
    let aside = dir.join(format!("{REPLACED}{}", env.clock.wall().0));
    env.fs.create_dir_all(&aside).map_err(|e| Error::io("create", &aside, e))?;
    for part in PARTS {
        let from = dir.join(part);
        if env.fs.exists(&from).map_err(|e| Error::io("look for", &from, e))? {
            env.fs.rename(&from, &aside.join(part)).map_err(|e| Error::io("move aside", &from, e))?;
            // There before it is gone here: it may be the only copy of something.
            env.fs.sync_dir(&aside).map_err(|e| Error::failed_sync(&aside, e))?;
        }
        env.fs.sync_dir(dir).map_err(|e| Error::failed_sync(dir, e))?;
    }
    Ok(aside)
}

/// How what was last set aside gets back into its place, in words for the operator of a node that waits for a seed;
/// nothing when nothing was.
pub(super) fn way_back(env: &Env, dir: &Path) -> Option<String> {
    let names = env.fs.list(dir).ok()?;
    let since = |name: &String| name.strip_prefix(REPLACED)?.parse::<u64>().ok();
    let mut aside: Vec<_> = names.iter().filter_map(|name| Some((since(name)?, dir.join(name)))).collect();
    aside.sort_unstable_by(|a, b| b.cmp(a));
    // After a crash amid the move the newest one has only what was left; the identity went first.
    let whole = aside.iter().position(|(_, path)| env.fs.exists(&path.join("IDENTITY")).unwrap_or(false))?;
    let from: Vec<_> = aside.iter().take(whole + 1).map(|(_, path)| path.display().to_string()).collect();
    // The mark may come between this word and the stop: whoever reads it has to look. Without it nothing there is a
    // seed's: after a crash amid the move it is the rest of the old data.
    Some(format!(
        "to go back to the data that was set aside, stop this node, and if its data directory has no IDENTITY by then: if \
         SEEDING is there, remove SEEDING, EVIDENCE, log, tables and manifest from there (if it is not, remove nothing); \
         move what is in {} to {}, IDENTITY last; start it",
        from.join(" and in "),
        dir.display()
    ))
}

/// Removes what an earlier seed left that was not finished. What came from no seed (a crash amid [`set_aside`] leaves
/// it here without its identity) is moved aside.
fn clear(env: &Env, dir: &Path) -> Result<()> {
    let exists = |path: &Path| env.fs.exists(path).map_err(|e| Error::io("look for", path, e));
    let mut left = Vec::new();
    for part in ["EVIDENCE", "log", "tables", "manifest"] {
        let path = dir.join(part);
        if exists(&path)? {
            left.push(path);
        }
    }
    if !left.is_empty() && !exists(&dir.join(SEEDING))? {
        return set_aside(env, dir).map(drop);
    }
    for path in &left {
        let is_file = path.ends_with("EVIDENCE");
        let removed = if is_file { env.fs.remove_file(path) } else { env.fs.remove_dir_all(path) };
        removed.map_err(|e| Error::io("remove", path, e))?;
    }
    Ok(())
}

fn mark(env: &Env, dir: &Path) -> Result<()> {
    let mark = dir.join(SEEDING);
    if !env.fs.exists(&mark).map_err(|e| Error::io("look for", &mark, e))? {
        env.fs.open(&mark, OpenMode::CreateNew).map_err(|e| Error::io("create", &mark, e))?;
    }
    env.fs.sync_dir(dir).map_err(|e| Error::failed_sync(dir, e))
}

fn finish_table(table: Option<Incoming>) -> Received<()> {
    table.map_or(Ok(()), Incoming::finish)
}

/// A table on its way in.
struct Incoming {
    path: PathBuf,
    file: Arc<dyn mainstay_engine::fs::File>,
    hash: blake3::Hasher,
    written: u64,
    bytes: u64,
    blake3: [u8; 32],
}

impl Incoming {
    fn create(env: &Env, tables: &Path, id: u128, bytes: u64, blake3: [u8; 32]) -> Result<Self> {
        let path = tables.join(format!("{id:032x}.table"));
        let file = env.fs.open(&path, OpenMode::CreateNew).map_err(|e| Error::io("create", &path, e))?;
        Ok(Self { path, file, hash: blake3::Hasher::new(), written: 0, bytes, blake3 })
    }

    fn write(&mut self, data: &[u8]) -> Received<()> {
        if self.written + data.len() as u64 > self.bytes {
            return peer("the peer sent more of a table than announced");
        }
        self.file.write_all_at(data, self.written).map_err(|e| Error::io("write", &self.path, e))?;
        self.hash.update(data);
        self.written += data.len() as u64;
        Ok(())
    }

    fn finish(self) -> Received<()> {
        if self.written != self.bytes || *self.hash.finalize().as_bytes() != self.blake3 {
            return peer(format!("{} did not arrive as announced", self.path.display()));
        }
        Ok(self.file.sync_data().map_err(|e| Error::failed_sync(&self.path, e))?)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the test lays real files out")]
mod tests {
    use mainstay_engine::CommitTs;
    use mainstay_engine::clock::SimClock;
    use mainstay_engine::fs::Fs;
    use mainstay_engine::fs::sim::{FaultKind, OpClass, SimFs};

    use super::*;

    fn write(path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, b"of an earlier life").unwrap();
    }

    fn kept(dir: &Path, name: &str) -> bool {
        let aside = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
        aside
            .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("replaced-")))
            .any(|p| p.join(name).exists())
    }

    #[test]
    fn the_way_back_names_all_that_was_set_aside_last() {
        let (env, scratch) = (Env::real(), tempfile::tempdir().unwrap());
        let dir = scratch.path();
        assert_eq!(way_back(&env, dir), None);
        write(&dir.join("replaced-5/IDENTITY"));
        // Moved in two goes, and not the newest by name.
        write(&dir.join("replaced-99/IDENTITY"));
        write(&dir.join("replaced-100/tables/1.table"));
        write(&dir.join("log/1.log"));
        let said = way_back(&env, dir).unwrap();
        let (first, second) = (dir.join("replaced-100"), dir.join("replaced-99"));
        assert!(said.contains(&format!("what is in {} and in {} to ", first.display(), second.display())), "{said}");
        // What stands here is old data, unless a seed has begun by the time that this is read.
        let only_then = "if SEEDING is there, remove SEEDING, EVIDENCE, log, tables and manifest from there (if it is not, \
                         remove nothing)";
        assert!(said.contains(only_then) && !said.contains("replaced-5"), "{said}");
        mark(&env, dir).unwrap();
        assert_eq!(way_back(&env, dir), Some(said), "it holds before and behind the mark");
    }

    /// What was moved may be in neither place after the next crash.
    #[test]
    fn a_failed_sync_while_data_is_set_aside_is_final() {
        for kind in [FaultKind::Eio, FaultKind::NoSpace] {
            for nth in 1.. {
                let (fs, dir) = (SimFs::new(nth), Path::new("data"));
                fs.prepare_dir(dir).unwrap();
                let (env, fatal) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1)), nth);
                for name in ["IDENTITY", "EVIDENCE", SEEDING] {
                    fs.open(&dir.join(name), OpenMode::CreateNew).unwrap();
                }
                fs.fail_nth(OpClass::SyncDir, nth, kind);
                let Err(e) = set_aside(&env, dir) else {
                    // Once for the mark, for each part, and twice for a part that is there.
                    assert_eq!(nth, 1 + 5 + 2 + 1);
                    break;
                };
                assert!(matches!(e, Error::Stopped(_)) && fatal.messages().len() == 1, "{kind:?} {nth}: {e}");
            }
        }
    }

    #[test]
    fn a_seed_removes_what_an_earlier_seed_left_and_keeps_what_a_crash_amid_the_move_left() {
        let (env, scratch) = (Env::real(), tempfile::tempdir().unwrap());
        let dir = scratch.path();
        // The identity had gone when the process ended.
        write(&dir.join("log/1.log"));
        write(&dir.join("tables/1.table"));
        clear(&env, dir).unwrap();
        assert!(kept(dir, "log/1.log") && kept(dir, "tables/1.table") && !dir.join("log").exists());
        // A seed that was not finished is worth nothing.
        mark(&env, dir).unwrap();
        write(&dir.join("tables/2.table"));
        clear(&env, dir).unwrap();
        assert!(!dir.join("tables").exists() && !kept(dir, "tables/2.table"));
        // One that was, and lived: from its being set aside on nothing counts as a seed's.
        write(&dir.join("IDENTITY"));
        write(&dir.join("log/3.log"));
        let aside = set_aside(&env, dir).unwrap();
        assert!(aside.join("IDENTITY").exists() && aside.join("log/3.log").exists());
        write(&dir.join("log/4.log"));
        clear(&env, dir).unwrap();
        assert!(kept(dir, "log/4.log"));
    }
}
