//! What a node with a damaged disk asks of the others: one table, or to be seeded anew.
//!
//! Owns: both ends of a table's transfer, and when a replica may give its data up. Never: a table whose hash does not
//! match, and never data given up by a primary, or by a replica that nobody could seed.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mainstay_engine::fs::{File, OpenMode, read_exact_at};
use mainstay_engine::table::TableFile;
use mainstay_engine::{ClusterId, Error, Result};
use tokio::sync::mpsc;

use super::{Driver, RoleName, TransportError, blocking};
use crate::rule::NodeId;

/// Read and sent at a time, in bytes.
const PART_BYTES: u64 = 1 << 20;
/// Silence after which a transfer is given up.
const PART_TIMEOUT: Duration = Duration::from_secs(30);

impl Driver {
    /// Fetches a table with the same bytes from whichever peer has it into the new file `to`, synced. The peer it came
    /// from, or why each of them did not give it; then there is no file.
    ///
    /// # Errors
    /// Those of writing `to`.
    pub async fn fetch_table(
        self: &Arc<Self>,
        table: &TableFile,
        to: &Path,
    ) -> Result<std::result::Result<NodeId, Vec<TransportError>>> {
        let mut refused = Vec::new();
        for peer in self.others() {
            match self.fetch_table_from(peer, table, to).await {
                Ok(Ok(())) => return Ok(Ok(peer)),
                Ok(Err(e)) => {
                    refused.push(e);
                    self.remove(to).await?;
                }
                Err(e) => {
                    self.remove(to).await?;
                    return Err(e);
                }
            }
        }
        Ok(Err(refused))
    }

    async fn remove(self: &Arc<Self>, path: &Path) -> Result<()> {
        let (this, path) = (Arc::clone(self), path.to_owned());
        blocking(move || {
            let there = this.env.fs.exists(&path).map_err(|e| Error::io("look for", &path, e))?;
            if there { this.env.fs.remove_file(&path).map_err(|e| Error::io("remove", &path, e)) } else { Ok(()) }
        })
        .await
    }

    async fn fetch_table_from(
        self: &Arc<Self>,
        peer: NodeId,
        table: &TableFile,
        to: &Path,
    ) -> Result<std::result::Result<(), TransportError>> {
        let cluster = self.identity().cluster;
        let failed = |what: &str| Ok(Err(TransportError { node: peer, what: what.to_owned() }));
        let asked = self.transport.fetch_table(peer, cluster, table.id, table.blake3);
        let mut parts = match tokio::time::timeout(PART_TIMEOUT, asked).await {
            Ok(Ok(parts)) => parts,
            Ok(Err(e)) => return Ok(Err(e)),
            Err(_) => return failed("no answer in time"),
        };
        let (this, path) = (Arc::clone(self), to.to_owned());
        let file =
            blocking(move || this.env.fs.open(&path, OpenMode::CreateNew).map_err(|e| Error::io("create", &path, e)))
                .await?;
        let (mut hash, mut at) = (blake3::Hasher::new(), 0);
        while at < table.bytes {
            let data = match tokio::time::timeout(PART_TIMEOUT, parts.recv()).await {
                Ok(Some(Ok(data))) if data.len() as u64 <= table.bytes - at => data,
                Ok(Some(Ok(_))) => return failed("sent more than the table has"),
                Ok(Some(Err(e))) => return Ok(Err(e)),
                Ok(None) => return failed("broke off"),
                Err(_) => return failed("stopped sending"),
            };
            let (file, path) = (Arc::clone(&file), to.to_owned());
            (hash, at) = blocking(move || {
                hash.update(&data);
                file.write_all_at(&data, at).map_err(|e| Error::io("write", &path, e))?;
                Ok((hash, at + data.len() as u64))
            })
            .await?;
        }
        if *hash.finalize().as_bytes() != table.blake3 {
            return failed("sent a damaged copy");
        }
        let path = to.to_owned();
        blocking(move || file.sync_data().map_err(|e| Error::io("sync", &path, e))).await?;
        Ok(Ok(()))
    }

    /// Sends a table of this node to a peer. Whether it is whole is for the receiver to see.
    ///
    /// # Errors
    /// In words, when this node has no such table or belongs to another cluster.
    pub fn serve_table(
        self: &Arc<Self>,
        cluster: ClusterId,
        id: u128,
        blake3: [u8; 32],
    ) -> std::result::Result<mpsc::Receiver<Result<Vec<u8>>>, String> {
        let store = self.store().ok_or("has no data")?;
        if store.identity().cluster != cluster {
            return Err(format!("belongs to cluster {}, not {cluster}", store.identity().cluster));
        }
        // Held to the end of the transfer: the file stays.
        let pinned = store.tree().pinned_tables();
        let table = pinned.tables.iter().find(|t| t.id == id && t.blake3 == blake3).copied();
        let table = table.ok_or("has no such table")?;
        let (fs, path) = (Arc::clone(&self.env.fs), store.tree().table_path(id));
        let (tx, rx) = mpsc::channel(4);
        tokio::task::spawn_blocking(move || {
            let _pinned = pinned;
            let sent = fs
                .open(&path, OpenMode::Read)
                .map_err(|e| Error::io("open", &path, e))
                .and_then(|file| send(&*file, &path, table.bytes, &tx));
            if let Err(e) = sent {
                let _ = tx.blocking_send(Err(e));
            }
        });
        Ok(rx)
    }

    /// Gives this node's data up, so that its next life is seeded by the primary: [`Driver::run`] ends with
    /// `Ended::Reseed`. Returns the primary.
    ///
    /// # Errors
    /// In words, when this node is no replica that follows a primary which answers.
    pub async fn reseed(self: &Arc<Self>) -> std::result::Result<NodeId, String> {
        // No promotion begins meanwhile, nor afterwards.
        let _one = self.promoting.lock().await;
        let view = self.role().borrow().clone();
        match (view.role, view.trouble) {
            (RoleName::Primary, _) => {
                return Err("this node is the primary; promote another one first, then it can be seeded anew".into());
            }
            (RoleName::Replica, None) => {}
            (RoleName::Replica, Some(trouble)) => return Err(format!("this node follows no primary: {trouble}")),
            (role, _) => return Err(format!("this node is {}, not a replica that follows a primary", role.as_str())),
        }
        let primary = view.primary.ok_or("this node knows no primary that could seed it")?;
        // Word of the primary itself, now: what is set aside must be had from somebody.
        let answers = self.ask_all().await;
        let leads = |(node, reply): &(NodeId, super::SealReply)| {
            *node == primary && reply.primary == Some(primary) && reply.cluster == self.identity().cluster
        };
        if !answers.iter().any(leads) {
            return Err(format!("node {primary}, the primary, does not answer; without it nobody can seed this node"));
        }
        tracing::warn!(primary = primary.0, "this node's data is given up on request; it will be seeded anew");
        self.giving_up.send_replace(true);
        Ok(primary)
    }
}

/// A peer that hangs up ends the transfer; that is its business.
fn send(file: &dyn File, path: &Path, bytes: u64, tx: &mpsc::Sender<Result<Vec<u8>>>) -> Result<()> {
    let mut at = 0;
    while at < bytes {
        let mut buf = vec![0; usize::try_from(PART_BYTES.min(bytes - at)).unwrap_or_default()];
        read_exact_at(file, &mut buf, at).map_err(|e| Error::io("read", path, e))?;
        at += buf.len() as u64;
        if tx.blocking_send(Ok(buf)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}
