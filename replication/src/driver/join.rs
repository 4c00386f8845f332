//! How a node comes by its data: opens it, creates the cluster, or is seeded from the primary.
//!
//! Owns: the start of a node's life. Never: creating a second cluster while a peer holds a first one.

use std::sync::Arc;

use mainstay_engine::store::{Identity, Store, final_if_sync};
use mainstay_engine::{ClusterId, Error, Lsn, Result};

use super::seed::NotSeeded;
use super::{Driver, RETRY, RoleName, SealReply, SealRequest, blocking, seed};
use crate::rule::NodeId;

impl Driver {
    /// Opens the node's store, or makes one; returns when there is one.
    ///
    /// # Errors
    /// A local error: damage, another process, another format.
    pub(super) async fn obtain_store(self: &Arc<Self>) -> Result<Arc<Store>> {
        let store = loop {
            let this = Arc::clone(self);
            let there = blocking(move || Identity::read(&this.env, &this.settings.dir)).await?;
            if let Some(own) = there {
                self.check_cluster(own.cluster).await?;
                let this = Arc::clone(self);
                break blocking(move || this.open_store()).await?;
            }
            if let Some(store) = self.create_or_seed().await? {
                break store;
            }
            tokio::time::sleep(RETRY).await;
        };
        let this = Arc::clone(self);
        // Before anything is acknowledged: whatever becomes of the data, this node has held some.
        blocking(move || this.hold()).await?;
        let store = Arc::new(store);
        let _ = self.store.set(Arc::clone(&store));
        self.set_trouble(None, None);
        self.publish_role();
        self.ready.send_replace(true);
        Ok(store)
    }

    fn open_store(&self) -> Result<Store> {
        let store = Store::open(self.env.clone(), &self.settings.dir, &self.settings.options)?;
        // Checkpoints that an earlier life was sending or uploading: their links would keep old tables for ever.
        let seeds = self.settings.dir.join("seeds");
        if self.env.fs.exists(&seeds).map_err(|e| Error::io("look for", &seeds, e))? {
            self.env.fs.remove_dir_all(&seeds).map_err(|e| Error::io("remove", &seeds, e))?;
        }
        if let Some(torn) = &store.recovered().torn {
            tracing::warn!(
                file = %torn.path.display(),
                offset = torn.offset,
                bytes = torn.bytes,
                lsn = torn.lsn.0,
                "cut unfinished writes behind the end of the log; none of them was acknowledged as durable"
            );
        }
        Ok(store)
    }

    /// Refuses data of another cluster than that of a majority: nothing good can come of opening it. One
    /// stranger among the peers must not keep the rightful nodes from starting.
    async fn check_cluster(self: &Arc<Self>, own: ClusterId) -> Result<()> {
        let clusters: Vec<_> = self.ask_all().await.into_iter().map(|(node, r)| (node, r.cluster)).collect();
        let mut strangers = clusters.iter().filter(|(_, c)| *c != own && *c != ClusterId(0)).peekable();
        let Some((node, theirs)) = strangers.peek().copied() else { return Ok(()) };
        let rule = &self.settings.rule;
        if !rule.is_majority(rule.set(strangers.map(|(node, _)| *node))) {
            return Ok(());
        }
        let what = format!(
            "holds data of cluster {own}, but node {node} belongs to cluster {theirs}; check --data and --peers, or \
             start with an empty directory to be seeded"
        );
        Err(Error::Directory { path: self.settings.dir.clone(), what })
    }

    /// One attempt; `None` when the peers must be asked again.
    async fn create_or_seed(self: &Arc<Self>) -> Result<Option<Store>> {
        let replies = self.ask_all().await;
        let holders: Vec<&(NodeId, SealReply)> = replies.iter().filter(|(_, r)| r.cluster != ClusterId(0)).collect();
        if let Some((_, newest)) = holders.iter().max_by_key(|(_, r)| r.epoch) {
            let sealed = self.promise().sealed;
            if newest.epoch < sealed {
                // Whoever leads there may not know yet that it was replaced, and lack what this node acknowledged since.
                let text = format!(
                    "this node has no data, and sealed for epoch {sealed}, but the newest that its peers know is epoch {}: its \
                     primary may have been replaced. If nobody leads epoch {sealed}, promote a node other than that \
                     primary, and this one will be seeded",
                    newest.epoch
                );
                self.waits_for_a_seed(text).await?;
                return Ok(None);
            }
            let primary = newest.primary.filter(|p| *p != self.settings.me);
            let Some(primary) = primary else {
                let text = format!(
                    "this node has no data, but its peers belong to cluster {}; promote one of them and it will be seeded",
                    newest.cluster
                );
                self.waits_for_a_seed(text).await?;
                return Ok(None);
            };
            return match self.seed_from(primary, newest.cluster).await {
                Ok(store) => Ok(Some(store)),
                // No further attempt: the disk may have lost what the next one finds in its place \[I3\].
                Err(NotSeeded::Own(e)) if e.is_failed_sync() => Err(final_if_sync(&self.env, e)),
                Err(NotSeeded::Own(e @ Error::Stopped(_))) => Err(e),
                Err(e) => {
                    let why = match e {
                        NotSeeded::Peer(why) => why,
                        NotSeeded::Own(e) => e.to_string(),
                    };
                    self.waits_for_a_seed(format!("seeding from node {primary}: {why}")).await?;
                    Ok(None)
                }
            };
        }
        let rule = &self.settings.rule;
        let empty = rule.set(replies.iter().map(|(n, _)| *n).chain([self.settings.me]));
        let may_create = self.settings.configured_primary == self.settings.me && rule.is_majority(empty);
        if !may_create {
            self.waits_for_a_seed("waiting for the primary to create the cluster".to_owned()).await?;
            return Ok(None);
        }
        let this = Arc::clone(self);
        let store = blocking(move || {
            let identity = Identity::random(&this.env);
            Store::create(this.env.clone(), &this.settings.dir, &this.settings.options, identity)
        })
        .await?;
        tracing::info!(cluster = %store.identity().cluster, "created the cluster");
        Ok(Some(store))
    }

    /// Says why there is no data yet, and how to get back to what was set aside, if that is what is missing: where nothing
    /// is owed, what was set aside is of before the data that is missing.
    pub(super) async fn waits_for_a_seed(self: &Arc<Self>, why: String) -> Result<()> {
        let (this, given_up) = (Arc::clone(self), self.life().owes > Lsn::ZERO);
        let way = move || if given_up { seed::way_back(&this.env, &this.settings.dir) } else { None };
        let back = blocking(move || Ok(way())).await?;
        let text = back.map_or_else(|| why.clone(), |back| format!("{why}; {back}"));
        self.set_trouble(Some(RoleName::Joining), Some(text));
        Ok(())
    }

    /// Asks every peer who is there; silent ones are left out.
    pub(super) async fn ask_all(&self) -> Vec<(NodeId, SealReply)> {
        let mut answers = self.ask_each(SealRequest::who_is_there(self.settings.me));
        let mut all = Vec::new();
        while let Some(answer) = answers.recv().await {
            all.push(answer);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use mainstay_engine::batch::Batch;
    use mainstay_engine::clock::SimClock;
    use mainstay_engine::env::SimFatal;
    use mainstay_engine::fs::sim::{FaultKind, OpClass, SimFs};
    use mainstay_engine::store::Durability;
    use mainstay_engine::{CommitTs, Env, Epoch, Options};
    use tokio::sync::mpsc;

    use super::super::fake::Nobody;
    use super::super::{CheckpointPart, Settings};
    use super::*;
    use crate::rule::{Mode, Rule};

    struct Node {
        fs: Arc<SimFs>,
        fatal: SimFatal,
        peers: Arc<Nobody>,
        driver: Arc<Driver>,
    }

    fn node(me: u64) -> Node {
        let (fs, dir) = (SimFs::new(me), Path::new("data"));
        fs.prepare_dir(dir).unwrap();
        let (env, fatal) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1)), me);
        let settings = Settings {
            me: NodeId(me),
            configured_primary: NodeId(1),
            rule: Rule::new(Mode::Quorum, [1, 2, 3].map(NodeId).to_vec(), NodeId(1), 1).unwrap(),
            dir: dir.to_owned(),
            options: Options::tiny(),
            client_addr: String::new(),
        };
        let peers = Arc::new(Nobody::default());
        let driver = Driver::new(env, settings, Arc::clone(&peers) as Arc<_>).unwrap();
        Node { fs, fatal, peers, driver }
    }

    /// Node 1 with the store of a cluster, which has a few tables.
    fn with_tables() -> (Node, Arc<Store>) {
        let node = node(1);
        let driver = &node.driver;
        let identity = Identity::random(&driver.env);
        let store =
            Store::create(driver.env.clone(), &driver.settings.dir, &driver.settings.options, identity).unwrap();
        for key in [b"a", b"b"] {
            let mut batch = Batch::new();
            batch.put(key, b"v").unwrap();
            store.write(&batch, &[], Durability::Synced).unwrap();
            store.tree().flush_all().unwrap();
        }
        (node, Arc::new(store))
    }

    /// All parts of a checkpoint, and its cluster.
    async fn checkpoint() -> (ClusterId, Vec<CheckpointPart>) {
        let (node, store) = with_tables();
        let mut sent = node.driver.send_checkpoint(Arc::clone(&store), NodeId(3), Duration::from_secs(60));
        let mut parts = Vec::new();
        while let Some(part) = sent.recv().await {
            parts.push(part.unwrap());
        }
        (store.identity().cluster, parts)
    }

    /// Lets `node` hear of a primary, node 1, in that epoch, and get these parts from it.
    fn offer(node: &Node, epoch: Epoch, cluster: ClusterId, parts: &[CheckpointPart]) {
        let reply = SealReply { epoch, cluster, primary: Some(NodeId(1)), ..SealReply::default() };
        node.peers.replies.lock().unwrap().push((NodeId(1), reply));
        let (tx, rx) = mpsc::channel(parts.len());
        for part in parts {
            tx.try_send(Ok(part.clone())).unwrap();
        }
        node.peers.checkpoints.lock().unwrap().push(rx);
    }

    /// Whatever sync of a seed fails, this process tries nothing more with that disk.
    #[tokio::test]
    async fn a_failed_sync_of_a_seed_is_final() {
        let (cluster, parts) = checkpoint().await;
        for (class, kind) in [
            (OpClass::SyncData, FaultKind::Eio),
            (OpClass::SyncDir, FaultKind::Eio),
            (OpClass::SyncData, FaultKind::NoSpace),
            (OpClass::SyncDir, FaultKind::NoSpace),
        ] {
            for nth in 1.. {
                let node = node(3);
                offer(&node, Epoch(1), cluster, &parts);
                node.fs.fail_nth(class, nth, kind);
                let ended = node.driver.create_or_seed().await;
                if matches!(ended, Ok(Some(_))) {
                    assert!(nth > 3, "{class:?} {kind:?}: {nth}");
                    break;
                }
                let trouble = node.driver.role().borrow().trouble.clone().unwrap_or_default();
                if ended.is_ok() && trouble.contains("disk full while writing data/log") {
                    // A new segment that found no room is made again, under another name.
                    continue;
                }
                assert!(ended.is_err(), "{class:?} {kind:?} {nth}: it tries again: {trouble}");
                let told = node.fatal.messages();
                assert!(told.len() == 1 && told[0].contains("cannot sync"), "{class:?} {kind:?} {nth}: {told:?}");
            }
        }
    }

    /// Else each attempt would end there, and nobody would know whose disk it was.
    #[tokio::test]
    async fn a_bad_sector_that_a_seed_comes_to_is_damage_of_the_primary() {
        let (node, store) = with_tables();
        for nth in 1..1000 {
            node.fs.fail_nth(OpClass::Read, nth, FaultKind::Eio);
        }
        let mut sent = node.driver.send_checkpoint(Arc::clone(&store), NodeId(3), Duration::from_secs(60));
        let why = loop {
            if let Err(why) = sent.recv().await.unwrap() {
                break why;
            }
        };
        node.fs.clear_faults();
        assert!(why.contains("cannot read data/tables/"), "{why}");
        assert_eq!(store.tree().damaged_tables().len(), 1);
    }

    /// The newest primary that is heard of was replaced in the epoch that this node promised for, and does not know it.
    #[tokio::test]
    async fn a_node_without_data_is_not_seeded_by_an_epoch_older_than_it_sealed() {
        let (cluster, parts) = checkpoint().await;
        let node = node(3);
        node.driver.hear_of(Epoch(5), Some(NodeId(2))).unwrap();
        offer(&node, Epoch(4), cluster, &parts);
        assert!(node.driver.create_or_seed().await.unwrap().is_none());
        let trouble = node.driver.role().borrow().trouble.clone().unwrap();
        assert!(trouble.contains("sealed for epoch 5") && trouble.contains("epoch 4"), "{trouble}");
        node.peers.replies.lock().unwrap().clear();
        offer(&node, Epoch(5), cluster, &parts);
        assert!(node.driver.create_or_seed().await.unwrap().is_some());
    }
}
