//! For tests of this module: peers that are not there, but for answers that the test has laid ready.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use mainstay_engine::ClusterId;
use tokio::sync::{Semaphore, mpsc};

use super::{
    Ack, CheckpointPart, FromPrimary, Hello, SealReply, SealRequest, SeedOffer, SeedRequest, Transport, TransportError,
};
use crate::rule::NodeId;

type Answer<T> = Result<T, TransportError>;

/// See the module.
#[derive(Debug)]
pub(super) struct Nobody {
    /// What the next requests for a seed are answered with, the last one first, and what was asked.
    pub offers: Mutex<Vec<Result<SeedOffer, String>>>,
    pub asked: Mutex<Vec<SeedRequest>>,
    /// Each answer takes one away, and comes when there is one.
    pub may_answer: Semaphore,
    /// Who answers a candidate, and who asks who is there, and what.
    pub replies: Mutex<Vec<(NodeId, SealReply)>>,
    /// What the next requests for a checkpoint get, the last one first.
    pub checkpoints: Mutex<Vec<mpsc::Receiver<Answer<CheckpointPart>>>>,
    /// What the next requests for a table get, the last one first.
    pub tables: Mutex<Vec<mpsc::Receiver<Answer<Vec<u8>>>>>,
}

impl Default for Nobody {
    fn default() -> Self {
        Self {
            offers: Mutex::default(),
            asked: Mutex::default(),
            may_answer: Semaphore::new(Semaphore::MAX_PERMITS),
            replies: Mutex::default(),
            checkpoints: Mutex::default(),
            tables: Mutex::default(),
        }
    }
}

fn gone<T>(node: NodeId) -> Answer<T> {
    Err(TransportError { node, what: "nobody is there".into() })
}

#[async_trait]
impl Transport for Nobody {
    async fn replicate(
        &self,
        peer: NodeId,
        _: Hello,
    ) -> Answer<(mpsc::Sender<Ack>, mpsc::Receiver<Answer<FromPrimary>>)> {
        gone(peer)
    }

    async fn seal(&self, peer: NodeId, _: SealRequest) -> Answer<SealReply> {
        let replies = self.replies.lock().unwrap_or_else(PoisonError::into_inner);
        replies.iter().find(|(node, _)| *node == peer).map_or_else(|| gone(peer), |(_, reply)| Ok(reply.clone()))
    }

    async fn promote(&self, peer: NodeId) -> Answer<()> {
        gone(peer)
    }

    async fn offer_seed(&self, node: NodeId, request: SeedRequest) -> Answer<SeedOffer> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        if let Ok(permit) = self.may_answer.acquire().await {
            permit.forget();
        }
        match self.offers.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            Some(answer) => answer.map_err(|what| TransportError { node, what }),
            None => gone(node),
        }
    }

    async fn fetch_checkpoint(
        &self,
        peer: NodeId,
        _: ClusterId,
        _: NodeId,
    ) -> Answer<mpsc::Receiver<Answer<CheckpointPart>>> {
        self.checkpoints.lock().unwrap_or_else(PoisonError::into_inner).pop().map_or_else(|| gone(peer), Ok)
    }

    async fn fetch_table(
        &self,
        peer: NodeId,
        _: ClusterId,
        _: u128,
        _: [u8; 32],
    ) -> Answer<mpsc::Receiver<Answer<Vec<u8>>>> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner).pop().map_or_else(|| gone(peer), Ok)
    }
}
