//! Confirming a reign for reads, and who is there: rounds that ride on the messages to the replicas.
//!
//! Owns: the numbers of the rounds. A round that began after a read arrived, and that enough replicas
//! answered in the present epoch, proves that nobody else was promoted before the read arrived (the
//! read index of Raft, dissertation §6.4). Never: a clock.

use mainstay_engine::Epoch;
use tokio::sync::watch;

use super::Driver;

/// The rounds of one node's life; the numbers only grow.
#[derive(Debug)]
pub(super) struct Rounds {
    /// The newest round that a read waits for.
    pub(super) asked: watch::Sender<u64>,
    /// The newest round that is confirmed.
    confirmed: watch::Sender<u64>,
}

impl Rounds {
    pub(super) fn new() -> Self {
        Self { asked: watch::Sender::new(0), confirmed: watch::Sender::new(0) }
    }

    pub(super) fn confirm(&self, round: u64) {
        self.confirmed.send_if_modified(|r| {
            let news = round > *r;
            *r = round.max(*r);
            news
        });
    }

    /// Ends when a round is wanted that is newer than `sent`, and `sent` was answered: one round is
    /// in flight on a stream, and the next one serves all reads that came meanwhile.
    pub(super) async fn wanted(&self, sent: u64, answered: &watch::Sender<u64>) {
        let done = answered.subscribe().wait_for(|r| *r >= sent).await.is_ok();
        if !done || self.asked.subscribe().wait_for(|r| *r > sent).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Driver {
    /// Begins a round: whoever answers it was there after this was called.
    pub(super) fn begin_round(&self) -> u64 {
        let mut mine = 0;
        self.rounds.asked.send_modify(|r| {
            *r += 1;
            mine = *r;
        });
        mine
    }

    /// Waits until it is proved that no other node had been promoted when this was called; false when
    /// this node does not lead `epoch`. Waits for ever while too few replicas answer.
    pub async fn confirm_reign(&self, epoch: Epoch) -> bool {
        let mut confirmed = self.rounds.confirmed.subscribe();
        let alone = {
            let core = self.core();
            core.leads() == Some(epoch) && core.rule().confirms_reads(core.rule().set([core.me()]))
        };
        if alone {
            return true;
        }
        let mine = self.begin_round();
        confirmed.wait_for(|r| *r >= mine).await.is_ok() && self.core().leads() == Some(epoch)
    }
}
