//! The replication transport's server end: `mainstay.v1.Peer`.
//!
//! Owns: streams to driver calls. Never: a decision.

use std::sync::Arc;
use std::time::Duration;

use mainstay_proto::v1;
use mainstay_proto::v1::peer_server::Peer;
use mainstay_replication::driver::Driver;
use mainstay_replication::rule::NodeId;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::wire;

/// Serves peer calls.
#[derive(Clone, Debug)]
pub struct PeerDoor {
    /// The node's replication.
    pub driver: Arc<Driver>,
    /// This node.
    pub me: NodeId,
}

type BoxStream<T> = std::pin::Pin<Box<dyn futures::Stream<Item = Result<T, Status>> + Send>>;

fn malformed(e: impl ToString) -> Status {
    Status::invalid_argument(e.to_string())
}

#[tonic::async_trait]
impl Peer for PeerDoor {
    type ReplicateStream = BoxStream<v1::PrimaryMessage>;
    type FetchCheckpointStream = BoxStream<v1::CheckpointChunk>;
    type FetchTableStream = BoxStream<v1::TableChunk>;

    async fn replicate(
        &self,
        request: Request<Streaming<v1::ReplicaMessage>>,
    ) -> Result<Response<Self::ReplicateStream>, Status> {
        use v1::replica_message::Message;
        let mut up = request.into_inner();
        let first = tokio::time::timeout(Duration::from_secs(5), up.next()).await;
        let Ok(Some(Ok(v1::ReplicaMessage { message: Some(Message::Hello(hello)) }))) = first else {
            return Err(Status::invalid_argument("a replication stream begins with a hello"));
        };
        let hello = wire::hello(hello).map_err(malformed)?;
        let (tx, rx) = mpsc::channel(64);
        tokio::spawn(async move {
            // Ends when the replica hangs up, which also ends the driver's side of the stream.
            while let Some(Ok(message)) = up.next().await {
                let Some(Message::Ack(ack)) = message.message else { return };
                if tx.send(wire::ack(ack)).await.is_err() {
                    return;
                }
            }
        });
        let messages = self.driver.serve_replica(hello, rx).await;
        let down = ReceiverStream::new(messages).map(|m| Ok(wire::from_primary(m)));
        Ok(Response::new(Box::pin(down)))
    }

    async fn seal(&self, request: Request<v1::SealRequest>) -> Result<Response<v1::SealResponse>, Status> {
        let request = wire::seal_request(&request.into_inner()).map_err(malformed)?;
        let reply = self.driver.serve_seal(request).await.map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(wire::from_seal_reply(&reply, self.me)))
    }

    async fn fetch_checkpoint(
        &self,
        request: Request<v1::FetchCheckpointRequest>,
    ) -> Result<Response<Self::FetchCheckpointStream>, Status> {
        let request = request.into_inner();
        let cluster = wire::cluster(&request.cluster_id).map_err(malformed)?;
        let parts = self
            .driver
            .serve_checkpoint(cluster, NodeId(request.node_id))
            .await
            .map_err(|refusal| Status::failed_precondition(refusal.to_string()))?;
        let stream =
            ReceiverStream::new(parts).map(|p| p.map(wire::from_part).map_err(|e| Status::internal(e.to_string())));
        Ok(Response::new(Box::pin(stream)))
    }

    async fn fetch_table(
        &self,
        request: Request<v1::FetchTableRequest>,
    ) -> Result<Response<Self::FetchTableStream>, Status> {
        let r = request.into_inner();
        let cluster = wire::cluster(&r.cluster_id).map_err(malformed)?;
        let (id, blake3) = wire::table(&r.id, &r.blake3).map_err(malformed)?;
        let parts = self.driver.serve_table(cluster, id, blake3).await.map_err(Status::not_found)?;
        let stream = ReceiverStream::new(parts)
            .map(|p| p.map(|data| v1::TableChunk { data: data.into() }).map_err(|e| Status::internal(e.to_string())));
        Ok(Response::new(Box::pin(stream)))
    }

    async fn offer_seed(
        &self,
        request: Request<v1::OfferSeedRequest>,
    ) -> Result<Response<v1::OfferSeedResponse>, Status> {
        let request = wire::seed_request(&request.into_inner()).map_err(malformed)?;
        let offer = self.driver.offer_seed(request).await.map_err(Status::failed_precondition)?;
        Ok(Response::new(v1::OfferSeedResponse { bytes: offer.bytes }))
    }
}
