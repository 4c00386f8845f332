//! Following a primary: its records go into the local log as they are, acknowledgements go back.
//!
//! Owns: one stream's life on the replica. Never: acknowledging what is not durable here \[I3\].

use std::sync::Arc;

use mainstay_engine::store::Store;
use mainstay_engine::{Epoch, Error, Lsn, Position, Result};
use tokio::sync::{mpsc, watch};

use super::{
    Ack, Driver, FromPrimary, Hello, Next, PROTOCOL, RETRY, Reason, Refusal, RoleName, SILENCE, Welcome, blocking,
};
use crate::core::{Effect, Event};
use crate::rule::NodeId;

/// Why a replica stopped following.
pub(super) enum Left {
    /// Look again who leads.
    TryAgain,
    /// The local log no longer connects to the primary's.
    Reseed,
}

/// What a welcome came to.
enum Joined {
    /// The logs agree up to here.
    At(Lsn),
    /// No stream follows.
    Not(Left),
}

/// What the acknowledging task needs from the receiving one.
#[derive(Clone, Copy, Default)]
struct Heard {
    epoch: Epoch,
    /// Last record that is known to be the primary's: nothing above it is acknowledged.
    last: Lsn,
    sent_at_us: u64,
    round: u64,
    messages: u64,
}

impl Driver {
    /// Follows `primary` until its stream ends or another one is to be followed.
    pub(super) async fn follow(self: &Arc<Self>, store: &Arc<Store>, primary: NodeId) -> Result<Left> {
        let identity = store.identity();
        let last = store.log().last();
        let hello = Hello {
            protocol: PROTOCOL,
            cluster: identity.cluster,
            timeline: identity.timeline,
            node: self.settings.me,
            incarnation: self.incarnation(),
            last,
            commit: store.committed().get(),
            sealed: self.promise().sealed,
            client_addr: self.settings.client_addr.clone(),
        };
        let left = match tokio::time::timeout(SILENCE, self.transport.replicate(primary, hello)).await {
            Ok(Ok((acks, mut messages))) => {
                // A role change (sealed for another, promoted) ends the stream at once.
                let mut role = self.role();
                let _ = role.borrow_and_update();
                let promised = self.promise();
                tokio::select! {
                    left = self.receive(store, primary, last, acks, &mut messages) => left?,
                    () = self.promise_changes(&mut role, promised.primary) => Left::TryAgain,
                }
            }
            Ok(Err(e)) => {
                self.set_trouble(None, Some(format!("no stream from the primary: {e}")));
                self.look_for_primary().await?;
                Left::TryAgain
            }
            Err(_) => Left::TryAgain,
        };
        if matches!(left, Left::TryAgain) {
            tokio::time::sleep(RETRY).await;
        }
        Ok(left)
    }

    async fn promise_changes(&self, role: &mut watch::Receiver<super::RoleView>, primary: Option<NodeId>) {
        loop {
            let now = self.promise();
            if (primary.is_some() && now.primary != primary) || role.borrow().role == RoleName::Candidate {
                return;
            }
            if role.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// The primary does not answer: perhaps a newer one is known elsewhere.
    async fn look_for_primary(self: &Arc<Self>) -> Result<()> {
        for (_, reply) in self.ask_all().await {
            if reply.epoch > self.promise().sealed && reply.cluster == self.identity().cluster {
                let this = Arc::clone(self);
                blocking(move || this.hear_of(reply.epoch, reply.primary)).await?;
            }
        }
        Ok(())
    }

    async fn receive(
        self: &Arc<Self>,
        store: &Arc<Store>,
        primary: NodeId,
        hello_last: Position,
        acks: mpsc::Sender<Ack>,
        messages: &mut mpsc::Receiver<std::result::Result<FromPrimary, super::TransportError>>,
    ) -> Result<Left> {
        let heard = watch::Sender::new(Heard::default());
        let mut shared = Lsn::ZERO;
        let acking = tokio::spawn(acknowledge(Arc::clone(store), heard.subscribe(), acks));
        let _abort = super::AbortOnDrop(acking.abort_handle());
        loop {
            let message = match tokio::time::timeout(SILENCE, messages.recv()).await {
                Ok(Some(Ok(m))) => m,
                Ok(Some(Err(e))) => {
                    self.set_trouble(None, Some(format!("the primary's stream broke: {e}")));
                    return Ok(Left::TryAgain);
                }
                Ok(None) | Err(_) => {
                    self.set_trouble(None, Some(format!("primary {primary} is silent")));
                    return Ok(Left::TryAgain);
                }
            };
            match message {
                FromPrimary::Welcome(welcome) => match self.on_welcome(store, primary, hello_last, welcome).await? {
                    Joined::At(last) => shared = last,
                    Joined::Not(left) => return Ok(left),
                },
                FromPrimary::Append { epoch, records, commit, sent_at_us, round } => {
                    match self.take_records(store, primary, epoch, records, commit, shared).await? {
                        Some(last) => shared = last,
                        None => return Ok(Left::TryAgain),
                    }
                    let more = |h: &Heard| h.messages + 1;
                    heard.send_modify(|h| {
                        *h = Heard { epoch, last: shared, sent_at_us, round, messages: more(h) };
                    });
                }
                FromPrimary::Refusal(refusal) => return self.on_refusal(refusal).await,
            }
        }
    }

    async fn on_welcome(
        self: &Arc<Self>,
        store: &Arc<Store>,
        primary: NodeId,
        hello_last: Position,
        w: Welcome,
    ) -> Result<Joined> {
        let this = Arc::clone(self);
        let event = Event::FromPrimary { epoch: w.epoch, primary, commit: Lsn::ZERO, last: Lsn::ZERO };
        let accepted = blocking(move || {
            let _gate = this.gate();
            Ok(this.step(event)?.contains(&Effect::Accept))
        });
        if !accepted.await? {
            return Ok(Joined::Not(Left::TryAgain));
        }
        self.set_primary_addr(w.client_addr);
        match w.next {
            Next::Stream(from) => {
                self.set_trouble(Some(RoleName::Replica), None);
                tracing::info!(primary = primary.0, epoch = w.epoch.0, from = from.0, "following");
                if w.timeline != store.identity().timeline {
                    // The welcome proved that this log is a prefix of the new timeline's.
                    let store = Arc::clone(store);
                    blocking(move || store.set_timeline(w.timeline)).await?;
                }
                Ok(Joined::At(from.prev()))
            }
            Next::Truncate(to) => self.cut(store, primary, w.epoch, hello_last, to).await,
            Next::Checkpoint => Ok(Joined::Not(Left::Reseed)),
        }
    }

    /// Cuts the uncommitted tail, if this is still the log that the primary judged, and still its word
    /// that counts: a cut goes on after its stream was given up.
    async fn cut(
        self: &Arc<Self>,
        store: &Arc<Store>,
        primary: NodeId,
        epoch: Epoch,
        hello_last: Position,
        to: Lsn,
    ) -> Result<Joined> {
        let (this, target) = (Arc::clone(self), Arc::clone(store));
        let cut = blocking(move || {
            let _gate = this.gate();
            let event = Event::FromPrimary { epoch, primary, commit: Lsn::ZERO, last: Lsn::ZERO };
            if target.log().last() != hello_last || !this.step(event)?.contains(&Effect::Accept) {
                return Ok(None);
            }
            target.truncate_above(to)
        });
        match cut.await {
            Ok(cut) => {
                if let Some(cut) = cut {
                    tracing::warn!(to = to.0, until = cut.to.0, "cut an uncommitted tail");
                }
                Ok(Joined::Not(Left::TryAgain))
            }
            Err(e @ Error::BelowCommit { .. }) => {
                self.set_trouble(Some(RoleName::Quarantined), Some(e.to_string()));
                Ok(Joined::Not(Left::TryAgain))
            }
            Err(e) => Err(e),
        }
    }

    async fn take_records(
        self: &Arc<Self>,
        store: &Arc<Store>,
        primary: NodeId,
        epoch: Epoch,
        records: Vec<u8>,
        commit: Lsn,
        shared: Lsn,
    ) -> Result<Option<Lsn>> {
        let (this, store) = (Arc::clone(self), Arc::clone(store));
        let work = move || {
            let _gate = this.gate();
            let check = Event::FromPrimary { epoch, primary, commit: Lsn::ZERO, last: Lsn::ZERO };
            if !this.step(check)?.contains(&Effect::Accept) {
                return Ok(None);
            }
            let last = match store.append_replicated(&records) {
                Ok(_) if records.is_empty() => shared,
                Ok(position) => position.lsn,
                Err(e) if e.is_shortage() || matches!(e, Error::Record(_) | Error::Malformed(_)) => {
                    this.set_trouble(None, Some(format!("cannot take records from node {primary}: {e}")));
                    return Ok(None);
                }
                Err(e) => return Err(e),
            };
            this.step(Event::FromPrimary { epoch, primary, commit, last })?;
            Ok(Some(last))
        };
        // Encoding into memory, with the odd wait for the disk when buffers are full: cheap enough
        // to do here, on the peers' own runtime.
        tokio::task::block_in_place(work)
    }

    async fn on_refusal(self: &Arc<Self>, refusal: Refusal) -> Result<Left> {
        let Refusal { reason, text, epoch, primary } = refusal;
        match reason {
            Reason::NotPrimary => {
                self.set_trouble(None, Some(text));
                if epoch > self.promise().sealed {
                    let this = Arc::clone(self);
                    blocking(move || this.hear_of(epoch, primary)).await?;
                }
            }
            Reason::OtherCluster | Reason::OtherTimeline | Reason::Diverged | Reason::Protocol => {
                self.set_trouble(Some(RoleName::Quarantined), Some(text));
            }
        }
        Ok(Left::TryAgain)
    }
}

/// Sends an acknowledgement whenever the durable LSN moves and for every message heard.
async fn acknowledge(store: Arc<Store>, mut heard: watch::Receiver<Heard>, acks: mpsc::Sender<Ack>) {
    let mut acked = Lsn::ZERO;
    loop {
        let moved = tokio::select! {
            at = store.durable().reached(acked.next()) => at.is_ok(),
            changed = heard.changed() => changed.is_ok(),
        };
        if !moved {
            return;
        }
        let h = *heard.borrow_and_update();
        if h.messages == 0 {
            // No message yet: the epoch to acknowledge under is not known.
            if heard.changed().await.is_err() {
                return;
            }
            heard.mark_changed();
            continue;
        }
        let on_disk = store.durable().get();
        let durable = on_disk.min(h.last);
        let ack = Ack {
            epoch: h.epoch,
            received: store.appended().get(),
            durable,
            applied: store.applied().get(),
            sent_at_us: h.sent_at_us,
            round: h.round,
        };
        acked = acked.max(on_disk);
        if acks.send(ack).await.is_err() {
            return;
        }
    }
}
