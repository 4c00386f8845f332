//! How a node comes by its data: opens it, creates the cluster, or is seeded from the primary.
//!
//! Owns: the start of a node's life. Never: creating a second cluster while a peer holds a first one.

use std::sync::Arc;

use mainstay_engine::store::{Identity, Store};
use mainstay_engine::{ClusterId, Error, Lsn, Result};

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
                Err(e) => {
                    let why = if let Error::Stopped(why) = e { why } else { e.to_string() };
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
