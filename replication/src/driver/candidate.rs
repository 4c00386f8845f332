//! Becoming primary: seal the voters, let the core decide, start the epoch.
//!
//! Owns: the requests and the first records of a reign. Never: the decision.

use std::sync::Arc;
use std::time::Duration;

use mainstay_engine::limits::TIMELINE_LSN_JUMP;
use mainstay_engine::record::{Kind, TimelineStart};
use mainstay_engine::store::Store;
use mainstay_engine::{Epoch, Lsn, Result, TimelineId};

use super::{Driver, RETRY, RoleName, SealRequest, blocking};
use crate::core::{Effect, Event, NotPromoted, Sealed};
use crate::rule::{NodeId, Rule};

/// How long a candidate waits for voters that do not answer.
const SEAL_TIMEOUT: Duration = Duration::from_secs(1);

/// A promotion that came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promoted {
    /// The new epoch.
    pub epoch: Epoch,
    /// LSN of its `EpochStart` record.
    pub start: Lsn,
}

/// Whether nothing can have been committed on this log's timeline yet: it was just created, or just
/// restored, and holds no batch since.
fn is_fresh(store: &Store) -> Result<bool> {
    let last = store.log().last().lsn;
    let from = Lsn(last.0.saturating_sub(64)).max(store.log().oldest());
    let mut fresh = last == Lsn::ZERO;
    let mut reader = store.log().reader(from)?;
    while let Some(chunk) = reader.next(last, 1 << 20)? {
        for record in chunk.records() {
            match record?.header.kind {
                Kind::TimelineStart => fresh = true,
                Kind::Batch => fresh = false,
                Kind::EpochStart => {}
            }
        }
    }
    Ok(fresh)
}

impl Driver {
    /// Makes this node primary, if the voters that answer prove that nothing committed is missing
    /// (or the loss is accepted). Returns once the `EpochStart` record is in the log; it commits
    /// when the rule is met.
    ///
    /// # Errors
    /// The outer error is a local one after which the node must not go on; the inner one says why
    /// the node was not promoted.
    pub async fn promote(self: &Arc<Self>, accept_loss: bool) -> Result<std::result::Result<Promoted, NotPromoted>> {
        let _one = self.promoting.lock().await;
        let Some(store) = self.store().cloned() else {
            let missing = self.others().iter().map(|n| n.0).collect();
            return Ok(Err(NotPromoted::NotEnough { have: Vec::new(), missing }));
        };
        let this = Arc::clone(self);
        let effects = blocking(move || {
            let gate = this.gate();
            let (last, commit) = this.end_of_log();
            let effects = this.step(Event::Promote { last, commit, accept_loss })?;
            drop(gate);
            // What is counted is what stands when the promise is given, durable before anybody asks.
            this.sync_to(last.lsn)?;
            Ok(effects)
        })
        .await?;
        let mut epoch = None;
        for effect in effects {
            match effect {
                Effect::SendSeals { epoch: e } => epoch = Some(e),
                Effect::PromotionFailed(why) => return Ok(Err(why)),
                _ => {}
            }
        }
        let Some(epoch) = epoch else { return Ok(Err(NotPromoted::AlreadyPrimary(self.promise().sealed))) };
        if let Some(why) = self.collect_seals(epoch).await? {
            return Ok(Err(why));
        }
        let this = Arc::clone(self);
        blocking(move || this.decide(&store)).await
    }

    async fn collect_seals(self: &Arc<Self>, epoch: Epoch) -> Result<Option<NotPromoted>> {
        let store = self.store().cloned();
        let fresh = blocking(move || store.map_or(Ok(true), |s| is_fresh(&s))).await?;
        let request = SealRequest { cluster: self.identity().cluster, epoch, candidate: self.settings.me };
        let mut calls = tokio::task::JoinSet::new();
        for node in self.others() {
            let transport = Arc::clone(&self.transport);
            calls.spawn(async move { (node, tokio::time::timeout(SEAL_TIMEOUT, transport.seal(node, request)).await) });
        }
        while let Some(call) = calls.join_next().await {
            // A voter that cannot be reached simply does not count.
            let Ok((node, Ok(Ok(reply)))) = call else { continue };
            // A node that cannot say what it held counts only where nothing can have been committed.
            let mute = reply.cluster.0 == 0 && !fresh;
            let foreign = mute || (reply.cluster.0 != 0 && reply.cluster != request.cluster);
            let event = if reply.granted && !foreign {
                Event::SealGranted { epoch, sealed: Sealed { node, last: reply.last, commit: reply.commit } }
            } else if foreign {
                continue;
            } else {
                Event::SealRefused { epoch: reply.epoch, primary: reply.primary }
            };
            let this = Arc::clone(self);
            for effect in blocking(move || this.step(event)).await? {
                if let Effect::PromotionFailed(why) = effect {
                    return Ok(Some(why));
                }
            }
        }
        Ok(None)
    }

    fn decide(&self, store: &Arc<Store>) -> Result<std::result::Result<Promoted, NotPromoted>> {
        for effect in self.step(Event::SealsIn)? {
            match effect {
                Effect::StartEpoch { epoch, rule, lossy } => {
                    return self.start_epoch(store, epoch, rule, lossy).map(Ok);
                }
                Effect::PromotionFailed(why) => return Ok(Err(why)),
                _ => {}
            }
        }
        let epoch = self.promise().sealed;
        Ok(Err(NotPromoted::NewerEpoch { epoch, primary: self.promise().primary }))
    }

    fn start_epoch(&self, store: &Arc<Store>, epoch: Epoch, rule: Rule, lossy: bool) -> Result<Promoted> {
        self.core().set_rule(rule);
        let last = store.log().last();
        if lossy || last.lsn == Lsn::ZERO {
            let old = store.identity();
            let fresh = last.lsn == Lsn::ZERO;
            let timeline = if fresh { old.timeline } else { TimelineId(self.env.rng.next_u64()) };
            let parent = if fresh { TimelineId(0) } else { old.timeline };
            let start = TimelineStart { cluster: old.cluster, timeline, parent, fork: last.lsn };
            let lsn = if fresh { Lsn(1) } else { Lsn(last.lsn.0.saturating_add(TIMELINE_LSN_JUMP)) };
            store.append_timeline_start(epoch, start, lsn)?;
            if !fresh {
                store.set_timeline(timeline)?;
            }
        }
        let start = store.append_epoch_start(epoch)?.lsn;
        for node in self.others() {
            // Whoever is not there yet will ask for what it lacks.
            let _ = self.claim(store, node, store.log().oldest());
        }
        self.step(Event::EpochStarted { start })?;
        // The durable watermark may stand there already; the core has to hear it once.
        self.step(Event::Durable(store.durable().get()))?;
        Ok(Promoted { epoch, start })
    }

    /// The configured primary's attempt at start, and a promoted one's after a restart.
    pub(super) async fn try_to_lead(self: &Arc<Self>) -> Result<()> {
        // Whoever was promoted while this node was away leads: coming back is no reason to depose it.
        if self.yield_to_newer().await? {
            return Ok(());
        }
        match self.promote(false).await? {
            Ok(done) => {
                self.set_trouble(Some(RoleName::Primary), None);
                tracing::info!(epoch = done.epoch.0, start = done.start.0, "became primary");
                return Ok(());
            }
            Err(NotPromoted::Behind { node, last }) => {
                self.set_trouble(None, Some(format!("node {node} is ahead (LSN {}); asking it to lead", last.lsn)));
                self.hand_over(node).await;
            }
            Err(why) => self.set_trouble(None, Some(why.to_string())),
        }
        tokio::time::sleep(RETRY).await;
        Ok(())
    }

    /// Adopts the newest epoch that a peer knows to be led by another node.
    async fn yield_to_newer(self: &Arc<Self>) -> Result<bool> {
        let (sealed, cluster) = (self.promise().sealed, self.identity().cluster);
        let newest =
            self.ask_all().await.into_iter().map(|(_, r)| r).filter(|r| r.cluster == cluster).max_by_key(|r| r.epoch);
        let Some(reply) = newest.filter(|r| r.epoch >= sealed && r.primary.is_some_and(|p| p != self.settings.me))
        else {
            return Ok(false);
        };
        let this = Arc::clone(self);
        let event = Event::SealRefused { epoch: reply.epoch, primary: reply.primary };
        blocking(move || this.step(event)).await?;
        Ok(self.promise().primary != Some(self.settings.me))
    }

    async fn hand_over(&self, node: NodeId) {
        if let Err(e) = self.transport.promote(node).await {
            tracing::warn!(node = node.0, error = %e, "the node that is ahead did not take over");
        }
    }
}
