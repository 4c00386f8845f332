//! Becoming primary: seal the voters, let the core decide, start the epoch.
//!
//! Owns: the requests and the first records of a reign. Never: the decision.

use std::sync::Arc;
use std::time::Duration;

use mainstay_engine::limits::TIMELINE_LSN_JUMP;
use mainstay_engine::record::{Kind, TimelineStart};
use mainstay_engine::store::Store;
use mainstay_engine::{ClusterId, Epoch, Lsn, Result, TimelineId};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Driver, RETRY, SealReply, SealRequest, blocking};
use crate::core::{Candidacy, Effect, Event, NotPromoted, Role, Sealed, Terms};
use crate::rule::{NodeId, Rule};

/// How long a candidate waits for voters that do not answer.
const SEAL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long it waits for the rest when those that answered are enough.
const GRACE: Duration = Duration::from_millis(100);

/// A promotion that came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promoted {
    /// The new epoch.
    pub epoch: Epoch,
    /// LSN of its `EpochStart` record.
    pub start: Lsn,
    /// Whether committed records may be missing; then a new timeline has begun.
    pub lossy: bool,
}

/// What an answer says of a voter. A node that cannot say what it held counts where nothing can have
/// been committed.
fn sealed(node: NodeId, reply: &SealReply, fresh: bool) -> Sealed {
    let speaks = reply.speaks || fresh;
    Sealed { node, last: reply.last, commit: reply.commit, speaks, reigns: reply.reigns.clone() }
}

/// The next answer; `None` when all have come, or when those that came have been enough for a while.
async fn next_answer(
    answers: &mut mpsc::Receiver<(NodeId, SealReply)>,
    enough: &mut Option<Instant>,
) -> Option<(NodeId, SealReply)> {
    match *enough {
        None => answers.recv().await,
        Some(until) => tokio::time::timeout_at(until, answers.recv()).await.ok().flatten(),
    }
}

/// Whether nothing can have been committed on this log's timeline yet: it was just created, or just
/// restored, and no reign has begun since. Once one has, others may have committed what is not here.
fn is_fresh(store: &Store) -> Result<bool> {
    let last = store.log().last().lsn;
    let from = Lsn(last.0.saturating_sub(64)).max(store.log().oldest());
    let mut fresh = last == Lsn::ZERO;
    let mut reader = store.log().reader(from)?;
    while let Some(chunk) = reader.next(last, 1 << 20)? {
        for record in chunk.records() {
            match record?.header.kind {
                Kind::TimelineStart => fresh = true,
                Kind::Batch | Kind::EpochStart | Kind::Ingest => fresh = false,
            }
        }
    }
    Ok(fresh)
}

impl Driver {
    /// Makes this node primary, if the voters that answer prove that nothing committed is missing
    /// (or the loss is accepted). Returns once the `EpochStart` record is in the log; it commits
    /// when the rule is met. Asks first what would come of it: short of [`NotPromoted::Unfinished`]
    /// a failed promotion has changed nothing.
    ///
    /// # Errors
    /// The outer error is a local one after which the node must not go on; the inner one says why
    /// the node was not promoted.
    pub async fn promote(self: &Arc<Self>, terms: Terms) -> Result<std::result::Result<Promoted, NotPromoted>> {
        let _one = self.promoting.lock().await;
        // Data that is given up proves nothing.
        let Some(store) = self.store().filter(|_| !*self.giving_up.borrow()).cloned() else {
            let missing = self.settings.rule.voters().iter().map(|n| n.0).collect();
            return Ok(Err(NotPromoted::NotProven { have: Vec::new(), missing }));
        };
        let source = Arc::clone(&store);
        let fresh = blocking(move || is_fresh(&source)).await?;
        if let Some(why) = self.outlook(&terms, fresh).await? {
            return Ok(Err(why));
        }
        let this = Arc::clone(self);
        let effects = blocking(move || {
            let speaks = this.speaks()? || fresh;
            let gate = this.gate();
            let (last, commit) = this.end_of_log();
            let effects = this.step(Event::Promote { last, commit, speaks, terms })?;
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
        let decided = match self.collect_seals(epoch, fresh).await? {
            Some(why) => Err(why),
            None => {
                let this = Arc::clone(self);
                blocking(move || this.decide(&store)).await?
            }
        };
        Ok(decided.map_err(|why| match why {
            NotPromoted::NewerEpoch { .. } => why,
            why => NotPromoted::Unfinished { epoch, node: self.settings.me, why: Box::new(why) },
        }))
    }

    /// What stands against a promotion now, by what the voters say without being sealed.
    async fn outlook(self: &Arc<Self>, terms: &Terms, fresh: bool) -> Result<Option<NotPromoted>> {
        let leads = {
            let core = self.core();
            core.leads().filter(|_| core.can_commit())
        };
        if let Some(epoch) = leads {
            return Ok(Some(NotPromoted::AlreadyPrimary(epoch)));
        }
        let this = Arc::clone(self);
        let own = blocking(move || {
            let (last, commit) = this.end_of_log();
            let speaks = this.speaks()? || fresh;
            Ok(Sealed { node: this.settings.me, last, commit, speaks, reigns: this.promise().reigns })
        })
        .await?;
        let mut outlook = Candidacy::new(Epoch(0), terms.clone(), own);
        let cluster = self.identity().cluster;
        let mut newest = (self.promise().sealed, None);
        let mut answers = self.ask_each(SealRequest::who_is_there(self.settings.me));
        let mut enough = None;
        while let Some((node, reply)) = next_answer(&mut answers, &mut enough).await {
            if reply.cluster != cluster && reply.cluster != ClusterId(0) {
                continue;
            }
            newest = newest.max((reply.epoch, reply.primary));
            outlook.add(sealed(node, &reply, fresh));
            if self.core().judge(&outlook) == Ok(false) {
                enough.get_or_insert_with(|| Instant::now() + GRACE);
            }
        }
        let (epoch, primary) = newest;
        if epoch > self.promise().sealed {
            // The new epoch must be above every one that a voter has sealed for.
            let this = Arc::clone(self);
            blocking(move || this.hear_of(epoch, primary)).await?;
        }
        Ok(self.core().judge(&outlook).err())
    }

    async fn collect_seals(self: &Arc<Self>, epoch: Epoch, fresh: bool) -> Result<Option<NotPromoted>> {
        let cluster = self.identity().cluster;
        let request = SealRequest { cluster, epoch, candidate: self.settings.me, fresh };
        let mut answers = self.ask_each(request);
        let mut enough = None;
        while let Some((node, reply)) = next_answer(&mut answers, &mut enough).await {
            if reply.cluster != cluster && reply.cluster != ClusterId(0) {
                continue;
            }
            let event = if reply.granted {
                Event::SealGranted { epoch, sealed: sealed(node, &reply, fresh) }
            } else {
                Event::SealRefused { epoch: reply.epoch, primary: reply.primary }
            };
            let this = Arc::clone(self);
            let effects = blocking(move || {
                let _gate = this.gate();
                this.step(event)
            });
            for effect in effects.await? {
                if let Effect::PromotionFailed(why) = effect {
                    return Ok(Some(why));
                }
            }
            let core = self.core();
            if let Role::Candidate(c) = core.role()
                && core.judge(c) == Ok(false)
            {
                enough.get_or_insert_with(|| Instant::now() + GRACE);
            }
        }
        Ok(None)
    }

    /// Sends a request to every other voter; the calls come to their end even when nobody waits for
    /// the answers any more.
    pub(super) fn ask_each(&self, request: SealRequest) -> mpsc::Receiver<(NodeId, SealReply)> {
        let (tx, rx) = mpsc::channel(self.settings.rule.voters().len());
        for node in self.others() {
            let (transport, tx) = (Arc::clone(&self.transport), tx.clone());
            tokio::spawn(async move {
                // A voter that cannot be reached simply does not count.
                if let Ok(Ok(reply)) = tokio::time::timeout(SEAL_TIMEOUT, transport.seal(node, request)).await {
                    let _ = tx.send((node, reply)).await;
                }
            });
        }
        rx
    }

    /// Nothing that changes a promise comes between the decision and the first record of the reign.
    fn decide(&self, store: &Arc<Store>) -> Result<std::result::Result<Promoted, NotPromoted>> {
        let _gate = self.gate();
        for effect in self.step(Event::SealsIn)? {
            match effect {
                Effect::StartEpoch { epoch, rule, lossy } => return self.start_epoch(store, epoch, rule, lossy),
                Effect::PromotionFailed(why) => return Ok(Err(why)),
                _ => {}
            }
        }
        Ok(Err(self.newer_epoch()))
    }

    fn newer_epoch(&self) -> NotPromoted {
        let promise = self.promise();
        NotPromoted::NewerEpoch { epoch: promise.sealed, primary: promise.primary }
    }

    fn start_epoch(
        &self,
        store: &Arc<Store>,
        epoch: Epoch,
        rule: Rule,
        lossy: bool,
    ) -> Result<std::result::Result<Promoted, NotPromoted>> {
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
                // The directory must not name a timeline that its log never had.
                store.log().sync_to(lsn)?;
                store.set_timeline(timeline)?;
            }
        }
        let start = store.append_epoch_start(epoch)?.lsn;
        for node in self.others() {
            // Whoever is not there yet will ask for what it lacks.
            let _ = self.claim(store, node, store.log().oldest());
        }
        self.step(Event::EpochStarted { epoch, start })?;
        if self.core().leads() != Some(epoch) {
            return Ok(Err(self.newer_epoch()));
        }
        // The durable watermark may stand there already; the core has to hear it once.
        self.step(Event::Durable(store.durable().get()))?;
        Ok(Ok(Promoted { epoch, start, lossy }))
    }

    /// The configured primary's attempt at start, and a promoted one's after a restart.
    pub(super) async fn try_to_lead(self: &Arc<Self>) -> Result<()> {
        // Whoever was promoted while this node was away leads: coming back is no reason to depose it.
        if self.yield_to_newer().await? {
            return Ok(());
        }
        match self.promote(Terms::default()).await? {
            Ok(done) => {
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
    pub(super) async fn yield_to_newer(self: &Arc<Self>) -> Result<bool> {
        let (sealed, cluster) = (self.promise().sealed, self.identity().cluster);
        let newest =
            self.ask_all().await.into_iter().map(|(_, r)| r).filter(|r| r.cluster == cluster).max_by_key(|r| r.epoch);
        let Some(reply) = newest.filter(|r| r.epoch >= sealed && r.primary.is_some_and(|p| p != self.settings.me))
        else {
            return Ok(false);
        };
        let this = Arc::clone(self);
        blocking(move || this.hear_of(reply.epoch, reply.primary)).await?;
        Ok(self.promise().primary != Some(self.settings.me))
    }

    async fn hand_over(&self, node: NodeId) {
        if let Err(e) = self.transport.promote(node).await {
            tracing::warn!(node = node.0, error = %e, "the node that is ahead did not take over");
        }
    }
}
