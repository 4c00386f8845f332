//! Shipping: the primary's side of a replica's stream.
//!
//! Owns: the welcome, the records in order, heartbeats, and the acknowledgements' way to the core.
//! Records are sent as soon as they are appended, before the local sync: a commit then takes
//! max(local sync, round trip + remote sync). Never: waiting for a slow replica; its slot is dropped.

use std::sync::{Arc, PoisonError};

use mainstay_engine::log::Slot;
use mainstay_engine::store::Store;
use mainstay_engine::{Epoch, Error, Lsn, Position, Result};
use tokio::sync::{mpsc, watch};

use super::{
    Ack, Driver, FromPrimary, HEARTBEAT, Hello, Next, PROTOCOL, PeerProgress, Reason, Refusal, Welcome, blocking,
};
use crate::core::Event;
use crate::lineage::{Join, LogFacts, join};
use crate::rule::NodeId;

/// Most bytes of records in one message.
const MESSAGE_BYTES: usize = 1 << 20;
/// Messages in flight to one replica before shipping waits for it.
const WINDOW: usize = 8;

struct Facts<'a> {
    store: &'a Store,
    epochs: Vec<(Epoch, Lsn)>,
}

impl LogFacts for Facts<'_> {
    fn last(&self) -> Position {
        self.store.log().last()
    }
    fn oldest(&self) -> Lsn {
        self.store.log().oldest()
    }
    fn position_at(&self, lsn: Lsn) -> Result<Option<Position>> {
        match self.store.log().position_at(lsn) {
            // Released: the oldest record tells.
            Err(Error::LogGone { .. }) => Ok(None),
            found => found,
        }
    }
    fn epochs(&self) -> Vec<(Epoch, Lsn)> {
        self.epochs.clone()
    }
}

impl Driver {
    /// Serves a replica that said hello: returns the messages for it. Ends when either side hangs up
    /// or this node's reign is over.
    pub async fn serve_replica(
        self: &Arc<Self>,
        hello: Hello,
        acks: mpsc::Receiver<Ack>,
    ) -> mpsc::Receiver<FromPrimary> {
        let (tx, rx) = mpsc::channel(WINDOW);
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let node = hello.node;
            match this.admit(&hello).await {
                Ok((epoch, store, welcome, from)) => {
                    let go_on = matches!(welcome.next, Next::Stream(_));
                    if tx.send(FromPrimary::Welcome(welcome)).await.is_ok() && go_on {
                        let slot = this.claim(&store, node, from);
                        this.stream(&store, epoch, (node, hello.incarnation), from, slot, acks, &tx).await;
                    }
                }
                Err(refusal) => {
                    let _ = tx.send(FromPrimary::Refusal(refusal)).await;
                }
            }
        });
        rx
    }

    async fn admit(self: &Arc<Self>, hello: &Hello) -> std::result::Result<(Epoch, Arc<Store>, Welcome, Lsn), Refusal> {
        let refuse = |reason, text: String| {
            let p = self.promise();
            Refusal { reason, text, epoch: p.sealed, primary: p.primary }
        };
        if hello.protocol != PROTOCOL {
            let text = format!("peer protocol {} is not spoken here (this is {PROTOCOL})", hello.protocol);
            return Err(refuse(Reason::Protocol, text));
        }
        // Before anything else it says is believed: another cluster's epochs mean nothing here.
        if let Some(own) = self.store().map(|s| s.identity().cluster)
            && hello.cluster != own
        {
            let text = format!(
                "node {} belongs to cluster {own}, the data of node {} to cluster {}; keep that directory, and start \
                 the node with another data directory (with an empty one it will be seeded)",
                self.settings.me, hello.node, hello.cluster
            );
            return Err(refuse(Reason::OtherCluster, text));
        }
        if hello.sealed > self.promise().sealed {
            // A newer epoch exists: whatever this node was, it is not the primary.
            let (this, epoch) = (Arc::clone(self), hello.sealed);
            let _ = blocking(move || this.hear_of(epoch, None)).await;
        }
        let leads = self.core().leads();
        let (Some(store), Some(epoch)) = (self.store().cloned(), leads) else {
            return Err(refuse(Reason::NotPrimary, format!("node {} is not the primary", self.settings.me)));
        };
        let own = store.identity();
        let (facts, last, commit) = (Arc::clone(&store), hello.last, hello.commit);
        let decided = blocking(move || {
            let epochs = facts.epochs()?;
            join(&Facts { store: &facts, epochs }, last, commit)
        });
        let decided = decided.await.map_err(|e| refuse(Reason::NotPrimary, e.to_string()))?;
        let other_history = hello.timeline != own.timeline;
        let next = match decided {
            Join::Stream { from } => Next::Stream(from),
            Join::Checkpoint if !other_history => Next::Checkpoint,
            Join::Truncate { to } if !other_history => Next::Truncate(to),
            Join::Diverged | Join::Checkpoint | Join::Truncate { .. } => {
                let text = format!(
                    "node {} has records (up to LSN {}) that are not in this history; keep its directory as \
                     evidence, then start it with an empty one and it will be seeded",
                    hello.node, hello.last.lsn
                );
                return Err(refuse(if other_history { Reason::OtherTimeline } else { Reason::Diverged }, text));
            }
        };
        let from = if let Next::Stream(from) = next { from } else { Lsn::ZERO };
        let client_addr = self.settings.client_addr.clone();
        self.note_peer(hello.node, |p| {
            p.client_addr.clone_from(&hello.client_addr);
        });
        Ok((epoch, store, Welcome { epoch, cluster: own.cluster, timeline: own.timeline, client_addr, next }, from))
    }

    /// The replica's claim on the log, which outlives its stream: one that is away for a while finds
    /// its records when it comes back, up to the retained bytes.
    pub(super) fn claim(&self, store: &Store, node: NodeId, from: Lsn) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || Arc::new(store.log().slot(&format!("replica-{node}"), from.prev()));
        let slot = slots.entry(node).or_insert_with(fresh);
        if slot.lost() {
            *slot = fresh();
        }
        Arc::clone(slot)
    }

    fn note_peer(&self, node: NodeId, change: impl FnOnce(&mut PeerProgress)) {
        change(self.peers.lock().unwrap_or_else(PoisonError::into_inner).entry(node).or_default());
    }

    #[expect(clippy::too_many_arguments, reason = "one stream's parts, used only here")]
    async fn stream(
        self: &Arc<Self>,
        store: &Arc<Store>,
        epoch: Epoch,
        (node, incarnation): (NodeId, u64),
        from: Lsn,
        slot: Arc<Slot>,
        acks: mpsc::Receiver<Ack>,
        tx: &mpsc::Sender<FromPrimary>,
    ) {
        // What an earlier life had durable may have been replaced since.
        self.note_peer(node, |p| (p.connected, p.durable) = (true, Lsn::ZERO));
        tracing::info!(node = node.0, from = from.0, "replica connected");
        let answered = watch::Sender::new(0);
        let why = tokio::select! {
            () = self.take_acks((node, incarnation), epoch, acks, slot, &answered) => "its stream ended".to_owned(),
            sent = self.send_records(store, epoch, from, tx, &answered) => match sent {
                Ok(()) => "the stream is over".to_owned(),
                Err(e) => e.to_string(),
            },
        };
        tracing::info!(node = node.0, why, "replica disconnected");
        self.note_peer(node, |p| p.connected = false);
        let _ = self.step(Event::Disconnected { node });
    }

    async fn take_acks(
        &self,
        (node, incarnation): (NodeId, u64),
        epoch: Epoch,
        mut acks: mpsc::Receiver<Ack>,
        slot: Arc<Slot>,
        answered: &watch::Sender<u64>,
    ) {
        while let Some(ack) = acks.recv().await {
            // An acknowledgement under another epoch is dropped by the core [I5].
            let event = Event::Ack { node, epoch: ack.epoch, durable: ack.durable, round: ack.round };
            if self.step(event).is_err() {
                return;
            }
            answered.send_replace(ack.round);
            if ack.epoch == epoch {
                slot.advance(ack.durable);
                self.heard_of_seed(node, incarnation, ack.durable);
            }
            let lag_ms = self.env.clock.wall().0.saturating_sub(ack.sent_at_us) / 1000;
            self.note_peer(node, |p| {
                p.durable = p.durable.max(ack.durable);
                p.applied = p.applied.max(ack.applied);
                p.lag_ms = lag_ms;
            });
        }
    }

    async fn send_records(
        &self,
        store: &Arc<Store>,
        epoch: Epoch,
        from: Lsn,
        tx: &mpsc::Sender<FromPrimary>,
        answered: &watch::Sender<u64>,
    ) -> Result<()> {
        let mut reader = store.log().reader(from)?;
        let mut sent = from.prev();
        let mut told = Lsn::ZERO;
        loop {
            if self.core().leads() != Some(epoch) {
                return Ok(());
            }
            let head = store.appended().get();
            let records = if head > sent {
                match tokio::task::block_in_place(|| reader.next(head, MESSAGE_BYTES))? {
                    Some(chunk) => {
                        sent = chunk.last;
                        chunk.bytes
                    }
                    None => Vec::new(),
                }
            } else {
                Vec::new()
            };
            let commit = store.committed().get();
            told = told.max(commit);
            let sent_at_us = self.env.clock.wall().0;
            let round = *self.rounds.asked.borrow();
            let message = FromPrimary::Append { epoch, records, commit, sent_at_us, round };
            if tx.send(message).await.is_err() {
                return Ok(());
            }
            let gone = |_| Error::Stopped("the store has stopped".into());
            tokio::select! {
                at = store.appended().reached(sent.next()) => { at.map_err(gone)?; }
                () = tell_commit(store, told) => {}
                () = self.rounds.wanted(round, answered) => {}
                () = tokio::time::sleep(HEARTBEAT) => {}
                () = tx.closed() => return Ok(()),
            }
        }
    }
}

/// Ends a moment after the commit LSN has moved past what the replica was told: long enough for
/// the next records to carry it for free, short enough for fresh reads there.
async fn tell_commit(store: &Store, told: Lsn) {
    if store.committed().reached(told.next()).await.is_ok() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    } else {
        std::future::pending::<()>().await;
    }
}
