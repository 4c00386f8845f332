//! The replication transport's client end: one lazily connected channel per peer.
//!
//! Owns: connections, deadlines, keep-alives. Never: retries.

use std::collections::BTreeMap;
use std::time::Duration;

use mainstay_engine::ClusterId;
use mainstay_proto::v1;
use mainstay_proto::v1::admin_client::AdminClient;
use mainstay_proto::v1::peer_client::PeerClient;
use mainstay_replication::driver::{
    Ack, CheckpointPart, FromPrimary, Hello, SealReply, SealRequest, SeedOffer, SeedRequest, Transport, TransportError,
};
use mainstay_replication::rule::NodeId;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use super::wire;
use crate::doors::MESSAGE_BYTES_MAX;

/// Messages in flight between the wire and the driver.
const WINDOW: usize = 8;
/// Longest wait for a primary's word on a seed.
const OFFER_TIMEOUT: Duration = Duration::from_secs(5);

/// Channels to all peers.
#[derive(Debug)]
pub struct GrpcTransport {
    channels: BTreeMap<NodeId, Channel>,
}

impl GrpcTransport {
    /// Channels to these peer addresses; nothing connects yet.
    ///
    /// # Errors
    /// An address that is no host and port.
    pub fn new(peers: &BTreeMap<u64, String>) -> anyhow::Result<Self> {
        let mut channels = BTreeMap::new();
        for (id, addr) in peers {
            let endpoint = Endpoint::from_shared(format!("http://{addr}"))
                .map_err(|e| anyhow::anyhow!("peer {id}: {addr} is no HOST:PORT: {e}"))?
                .connect_timeout(Duration::from_secs(1))
                .http2_keep_alive_interval(Duration::from_secs(1))
                .keep_alive_timeout(Duration::from_secs(2))
                .keep_alive_while_idle(true)
                .tcp_nodelay(true)
                .initial_stream_window_size(4 << 20)
                .initial_connection_window_size(16 << 20);
            channels.insert(NodeId(*id), endpoint.connect_lazy());
        }
        Ok(Self { channels })
    }

    fn channel(&self, peer: NodeId) -> Result<Channel, TransportError> {
        let unknown = || TransportError { node: peer, what: "not among the configured peers".into() };
        self.channels.get(&peer).cloned().ok_or_else(unknown)
    }

    fn client(&self, peer: NodeId) -> Result<PeerClient<Channel>, TransportError> {
        Ok(PeerClient::new(self.channel(peer)?)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }
}

fn failed(node: NodeId) -> impl Fn(tonic::Status) -> TransportError {
    move |s| {
        let cause = std::error::Error::source(&s).map(|e| format!(": {e}")).unwrap_or_default();
        TransportError { node, what: format!("{}{cause}", s.message()) }
    }
}

/// Moves a wire stream into a bounded channel, decoded; ends with the first error.
fn pump<W, T, E>(
    node: NodeId,
    mut stream: tonic::Streaming<W>,
    decode: impl Fn(W) -> Result<T, E> + Send + 'static,
) -> mpsc::Receiver<Result<T, TransportError>>
where
    W: Send + 'static,
    T: Send + 'static,
    E: ToString,
{
    let (tx, rx) = mpsc::channel(WINDOW);
    tokio::spawn(async move {
        loop {
            let next = tokio::select! {
                next = stream.next() => next,
                () = tx.closed() => return,
            };
            let item = match next {
                Some(Ok(message)) => decode(message).map_err(|e| TransportError { node, what: e.to_string() }),
                Some(Err(status)) => Err(failed(node)(status)),
                None => return,
            };
            let last = item.is_err();
            if tx.send(item).await.is_err() || last {
                return;
            }
        }
    });
    rx
}

#[async_trait::async_trait]
impl Transport for GrpcTransport {
    async fn replicate(
        &self,
        peer: NodeId,
        hello: Hello,
    ) -> Result<(mpsc::Sender<Ack>, mpsc::Receiver<Result<FromPrimary, TransportError>>), TransportError> {
        use v1::replica_message::Message;
        let mut client = self.client(peer)?;
        let (tx, rx) = mpsc::channel::<Ack>(WINDOW);
        let hello = v1::ReplicaMessage { message: Some(Message::Hello(wire::from_hello(&hello))) };
        let acks =
            ReceiverStream::new(rx).map(|a| v1::ReplicaMessage { message: Some(Message::Ack(wire::from_ack(&a))) });
        let up = tokio_stream::once(hello).chain(acks);
        let down = client.replicate(up).await.map_err(failed(peer))?.into_inner();
        Ok((tx, pump(peer, down, wire::primary_message)))
    }

    async fn seal(&self, peer: NodeId, request: SealRequest) -> Result<SealReply, TransportError> {
        let mut request = tonic::Request::new(wire::from_seal_request(&request));
        request.set_timeout(Duration::from_secs(2));
        let reply = self.client(peer)?.seal(request).await.map_err(failed(peer))?.into_inner();
        if reply.node_id != peer.0 {
            let what = format!("node {} answers at the address of node {peer}; check --peers", reply.node_id);
            return Err(TransportError { node: peer, what });
        }
        wire::seal_reply(reply).map_err(|e| TransportError { node: peer, what: e.to_string() })
    }

    async fn promote(&self, peer: NodeId) -> Result<(), TransportError> {
        let mut request = tonic::Request::new(v1::PromoteRequest::default());
        request.set_timeout(Duration::from_secs(15));
        AdminClient::new(self.channel(peer)?).promote(request).await.map(drop).map_err(failed(peer))
    }

    async fn offer_seed(&self, peer: NodeId, request: SeedRequest) -> Result<SeedOffer, TransportError> {
        let mut request = tonic::Request::new(wire::from_seed_request(&request));
        request.set_timeout(OFFER_TIMEOUT);
        let offer = self.client(peer)?.offer_seed(request).await.map_err(failed(peer))?.into_inner();
        Ok(SeedOffer { bytes: offer.bytes })
    }

    async fn fetch_checkpoint(
        &self,
        peer: NodeId,
        cluster: ClusterId,
        me: NodeId,
    ) -> Result<mpsc::Receiver<Result<CheckpointPart, TransportError>>, TransportError> {
        let cluster_id = wire::cluster_bytes(cluster).into();
        let request = v1::FetchCheckpointRequest { cluster_id, epoch: 0, node_id: me.0 };
        let stream = self.client(peer)?.fetch_checkpoint(request).await.map_err(failed(peer))?.into_inner();
        Ok(pump(peer, stream, wire::part))
    }

    async fn fetch_table(
        &self,
        peer: NodeId,
        cluster: ClusterId,
        id: u128,
        blake3: [u8; 32],
    ) -> Result<mpsc::Receiver<Result<Vec<u8>, TransportError>>, TransportError> {
        let request = v1::FetchTableRequest {
            cluster_id: wire::cluster_bytes(cluster).into(),
            id: id.to_be_bytes().to_vec().into(),
            blake3: blake3.to_vec().into(),
        };
        let stream = self.client(peer)?.fetch_table(request).await.map_err(failed(peer))?.into_inner();
        Ok(pump(peer, stream, |chunk: v1::TableChunk| Ok::<_, std::convert::Infallible>(chunk.data.to_vec())))
    }
}
