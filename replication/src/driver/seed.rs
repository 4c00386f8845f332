//! Seeding: a checkpoint goes from the primary to a node without data.
//!
//! Owns: both ends of the transfer, and the check of every table against its hash. Never: a
//! directory that looks like a store before all of it is there.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mainstay_engine::fs::OpenMode;
use mainstay_engine::restore::Builder;
use mainstay_engine::store::{Identity, Store};
use mainstay_engine::{ClusterId, Env, Error, Lsn, Result};
use tokio::sync::mpsc;

use super::{CheckpointPart, Driver, Reason, Refusal, TransportError, blocking};
use crate::rule::NodeId;

const PART_BYTES: usize = 1 << 20;
/// How long the log behind a checkpoint is kept for the node that fetched it.
const SEED_GRACE: Duration = Duration::from_secs(120);
/// Silence after which a transfer is given up.
const PART_TIMEOUT: Duration = Duration::from_secs(30);

impl Driver {
    pub(super) async fn seed_from(self: &Arc<Self>, primary: NodeId, cluster: ClusterId) -> Result<Store> {
        let failed = |e: TransportError| Error::Stopped(e.to_string());
        let mut parts = self.transport.fetch_checkpoint(primary, cluster).await.map_err(failed)?;
        let (tx, mut rx) = mpsc::channel(4);
        let this = Arc::clone(self);
        let receive = tokio::task::spawn_blocking(move || receive(&this, &mut rx));
        loop {
            match tokio::time::timeout(PART_TIMEOUT, parts.recv()).await {
                Ok(Some(Ok(part))) => {
                    if tx.send(part).await.is_err() {
                        break;
                    }
                }
                Ok(Some(Err(e))) => return Err(failed(e)),
                Ok(None) => break,
                Err(_) => return Err(Error::Stopped("the peer stopped sending".into())),
            }
        }
        drop(tx);
        receive.await.map_err(|e| Error::Stopped(e.to_string()))?
    }

    /// Sends a checkpoint of this node to a peer.
    ///
    /// # Errors
    /// A refusal when this node is not the primary or belongs to another cluster.
    pub async fn serve_checkpoint(
        self: &Arc<Self>,
        cluster: ClusterId,
    ) -> std::result::Result<mpsc::Receiver<Result<CheckpointPart>>, Refusal> {
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
        let (tx, rx) = mpsc::channel(4);
        let end = store.log().last().lsn;
        let name = format!("seed-{:016x}", self.env.rng.next_u64());
        tokio::spawn(async move {
            // Claimed before the cut, so that the log from the checkpoint on stays for the new node.
            let slot = store.log().slot(&name, store.applied().get());
            let dir = store.dir().join("seeds").join(&name);
            let sender = tx.clone();
            let (from, at) = (Arc::clone(&store), dir.clone());
            let sent = blocking(move || send(&from, &at, end, &sender)).await;
            if let Err(e) = sent {
                let _ = tx.send(Err(e)).await;
            }
            drop(tx);
            let _ = store.env().fs.remove_dir_all(&dir);
            tokio::time::sleep(SEED_GRACE).await;
            drop(slot);
        });
        Ok(rx)
    }
}

/// A peer that hangs up ends the transfer; that is its business.
fn hand(tx: &mpsc::Sender<Result<CheckpointPart>>, part: CheckpointPart) -> Result<()> {
    tx.blocking_send(Ok(part)).map_err(|_| Error::Stopped("the peer hung up".into()))
}

fn send(store: &Store, dir: &Path, end: Lsn, tx: &mpsc::Sender<Result<CheckpointPart>>) -> Result<()> {
    let fs = &store.env().fs;
    if let Some(parent) = dir.parent() {
        fs.create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
    }
    let checkpoint = store.checkpoint(dir)?;
    let identity = store.identity();
    hand(
        tx,
        CheckpointPart::Start {
            cluster: identity.cluster,
            timeline: identity.timeline,
            position: checkpoint.position,
            end,
            total_bytes: checkpoint.tables.iter().map(|t| t.bytes).sum(),
            manifest: checkpoint.manifest,
        },
    )?;
    for table in &checkpoint.tables {
        hand(tx, CheckpointPart::Table { id: table.id, bytes: table.bytes, blake3: table.blake3 })?;
        let path = dir.join("tables").join(format!("{:032x}.table", table.id));
        let file = fs.open(&path, OpenMode::Read).map_err(|e| Error::io("open", &path, e))?;
        let (mut at, mut hash) = (0, blake3::Hasher::new());
        while at < table.bytes {
            let want = PART_BYTES.min(usize::try_from(table.bytes - at).unwrap_or(PART_BYTES));
            let mut buf = vec![0; want];
            mainstay_engine::fs::read_exact_at(&*file, &mut buf, at).map_err(|e| Error::io("read", &path, e))?;
            at += want as u64;
            hash.update(&buf);
            hand(tx, CheckpointPart::Data(buf))?;
        }
        if *hash.finalize().as_bytes() != table.blake3 {
            // The receiver would find out, and would not know whose disk it was.
            let _ = store.scrub_table(table.id);
            let what = "damaged, so this node can seed no other; repair the table, or promote another node";
            return Err(Error::corruption(&store.tree().table_path(table.id), 0, None, what));
        }
    }
    Ok(())
}

fn receive(driver: &Driver, parts: &mut mpsc::Receiver<CheckpointPart>) -> Result<Store> {
    let (env, dir) = (&driver.env, &driver.settings.dir);
    let Some(CheckpointPart::Start { cluster, timeline, position, end, manifest, .. }) = parts.blocking_recv() else {
        return Err(Error::Stopped("the peer sent no checkpoint".into()));
    };
    clear(env, dir)?;
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
                None => return Err(Error::Stopped("the peer sent data without a table".into())),
            },
            CheckpointPart::Start { .. } => return Err(Error::Stopped("the peer started twice".into())),
        }
    }
    finish_table(open)?;
    env.fs.sync_dir(&tables).map_err(|e| Error::io("sync", &tables, e))?;
    let options = &driver.settings.options;
    let builder = Builder::create(env.clone(), dir, options, Some(&manifest))?;
    if builder.position() != position {
        return Err(Error::Stopped("the checkpoint is not at the position it was announced for".into()));
    }
    if !driver.never_held_data() {
        // Whatever this node acknowledged in an earlier life was in the primary's log when it was asked.
        driver.owe(end)?;
    }
    builder.finish_seed(Identity { cluster, timeline })?;
    Store::open(env.clone(), dir, options)
}

/// Removes what an earlier attempt left; there is no identity, so it is no store.
fn clear(env: &Env, dir: &Path) -> Result<()> {
    for part in ["log", "tables", "manifest"] {
        let path = dir.join(part);
        if env.fs.exists(&path).map_err(|e| Error::io("look for", &path, e))? {
            env.fs.remove_dir_all(&path).map_err(|e| Error::io("remove", &path, e))?;
        }
    }
    Ok(())
}

fn finish_table(table: Option<Incoming>) -> Result<()> {
    table.map_or(Ok(()), Incoming::finish)
}

/// A table on its way in.
struct Incoming {
    path: std::path::PathBuf,
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

    fn write(&mut self, data: &[u8]) -> Result<()> {
        if self.written + data.len() as u64 > self.bytes {
            return Err(Error::Stopped("the peer sent more of a table than announced".into()));
        }
        self.file.write_all_at(data, self.written).map_err(|e| Error::io("write", &self.path, e))?;
        self.hash.update(data);
        self.written += data.len() as u64;
        Ok(())
    }

    fn finish(self) -> Result<()> {
        if self.written != self.bytes || *self.hash.finalize().as_bytes() != self.blake3 {
            return Err(Error::corruption(&self.path, self.written, None, "the table did not arrive as announced"));
        }
        self.file.sync_data().map_err(|e| Error::io("sync", &self.path, e))
    }
}
