//! For tests of this module: peers that are not there, but for an answer to who asks for a seed.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use mainstay_engine::ClusterId;
use tokio::sync::mpsc;

use super::{
    Ack, CheckpointPart, FromPrimary, Hello, SealReply, SealRequest, SeedOffer, SeedRequest, Transport, TransportError,
};
use crate::rule::NodeId;

type Answer<T> = Result<T, TransportError>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Nobody {
    /// What the next requests for a seed are answered with, the last one first, and what was asked.
    pub offers: Mutex<Vec<Result<SeedOffer, String>>>,
    pub asked: Mutex<Vec<SeedRequest>>,
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
        gone(peer)
    }

    async fn promote(&self, peer: NodeId) -> Answer<()> {
        gone(peer)
    }

    async fn offer_seed(&self, node: NodeId, request: SeedRequest) -> Answer<SeedOffer> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(request);
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
        gone(peer)
    }

    async fn fetch_table(
        &self,
        peer: NodeId,
        _: ClusterId,
        _: u128,
        _: [u8; 32],
    ) -> Answer<mpsc::Receiver<Answer<Vec<u8>>>> {
        gone(peer)
    }
}
