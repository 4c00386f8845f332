//! What operators ask of nodes.
//!
//! Owns: sending to one node or to all. Never: choosing a primary.

use std::time::Duration;

use futures::{Stream, StreamExt};
use mainstay_proto::v1::{
    CopyFrom, CreateBackupProgress, CreateBackupRequest, ListDamageRequest, ListDamageResponse, PromoteRequest,
    PromoteResponse, RepairTableRequest, RepairTableResponse, RepairTableStart, ReseedRequest, ReseedResponse,
    ScrubProgress, ScrubRequest, StatusRequest, StatusResponse, WaitArchivedRequest, repair_table_request,
};
use tonic::Streaming;

use crate::error::{Error, Result};
use crate::session::Client;

/// How long a node may take to answer a status call.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the repair of one table may take, its transfer included; keep-alives notice earlier that a node is gone.
const REPAIR_TIMEOUT: Duration = Duration::from_secs(6 * 3600);

/// The progress of a base backup; the last message has the base's id.
#[derive(Debug)]
pub struct BackupProgress {
    messages: Streaming<CreateBackupProgress>,
    endpoint: String,
}

impl BackupProgress {
    /// The next message; `None` after the last.
    ///
    /// # Errors
    /// The server's, or a broken connection: then there may or may not be a base.
    pub async fn next(&mut self) -> Result<Option<CreateBackupProgress>> {
        let next = self.messages.message().await;
        next.map_err(|status| Error::from_status(&self.endpoint, &status, true))
    }
}

/// The progress of a scrub; it is over when there is no next message.
#[derive(Debug)]
pub struct Scrubbing {
    messages: Streaming<ScrubProgress>,
    endpoint: String,
}

impl Scrubbing {
    /// The next message; `None` after the last.
    ///
    /// # Errors
    /// A broken connection: then the scrub has ended, too.
    pub async fn next(&mut self) -> Result<Option<ScrubProgress>> {
        let next = self.messages.message().await;
        next.map_err(|status| Error::from_status(&self.endpoint, &status, false))
    }
}

impl Client {
    /// What one node says of itself.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn status(&self, endpoint: &str) -> Result<StatusResponse> {
        let answer = self
            .at(endpoint, false, STATUS_TIMEOUT.min(self.timeout()), |a| async move {
                a.admin().status(a.request(StatusRequest {})).await
            })
            .await?;
        Ok(answer.into_inner())
    }

    /// What every endpoint says of itself, in the order given.
    pub async fn status_all(&self) -> Vec<(String, Result<StatusResponse>)> {
        let asked = self.endpoints().iter().map(|e| async move { (e.clone(), self.status(e).await) });
        futures::future::join_all(asked).await
    }

    /// Makes a node the primary of a new epoch. With `accept_loss` also when committed records may be
    /// missing; `destroyed` names nodes that will never come back with what they had.
    ///
    /// # Errors
    /// `NOT_PROMOTED` with the reason.
    pub async fn promote(&self, endpoint: &str, accept_loss: bool, destroyed: &[u64]) -> Result<PromoteResponse> {
        let request = PromoteRequest { accept_loss, destroyed: destroyed.to_vec() };
        let answer = self
            .at(endpoint, true, self.timeout(), |a| {
                let request = request.clone();
                async move { a.admin().promote(a.request(request)).await }
            })
            .await?;
        Ok(answer.into_inner())
    }

    /// Takes a base backup at a node, into the node's repository. With `accept_gap` the archiver, which ended at a gap,
    /// goes on behind it.
    ///
    /// # Errors
    /// `NO_REPOSITORY`, or the node does not answer; with `accept_gap` `NOT_PRIMARY`, and `BAD_REQUEST` where there is
    /// no gap; later ones come through the progress.
    pub async fn create_backup(&self, endpoint: &str, accept_gap: bool) -> Result<BackupProgress> {
        self.at(endpoint, true, self.timeout(), |a| async move {
            let messages = a.admin().create_backup(CreateBackupRequest { accept_gap }).await?.into_inner();
            Ok(BackupProgress { messages, endpoint: a.endpoint })
        })
        .await
    }

    /// Waits until everything committed now is in the archive; returns the LSN archived.
    ///
    /// # Errors
    /// `NO_REPOSITORY`, or the archive does not get there in time.
    pub async fn wait_archived(&self) -> Result<u64> {
        let answer = self
            .at_primary(false, |a| async move { a.admin().wait_archived(a.request(WaitArchivedRequest {})).await })
            .await?;
        Ok(answer.into_inner().archived_lsn)
    }

    /// What is known to be damaged on a node's disk.
    ///
    /// # Errors
    /// It does not answer, or has no data.
    pub async fn damage(&self, endpoint: &str) -> Result<ListDamageResponse> {
        let answer = self
            .at(endpoint, false, self.timeout(), |a| async move {
                a.admin().list_damage(a.request(ListDamageRequest {})).await
            })
            .await?;
        Ok(answer.into_inner())
    }

    /// Has a node read all that is at rest on its disk, at so many bytes a second (zero: as fast as it goes).
    /// [`Client::damage`] says afterwards what was found.
    ///
    /// # Errors
    /// It does not answer, or has no data; later ones come through the progress.
    pub async fn scrub(&self, endpoint: &str, bytes_per_second: u64) -> Result<Scrubbing> {
        self.at(endpoint, false, self.timeout(), |a| async move {
            let messages = a.admin().scrub(ScrubRequest { bytes_per_second }).await?.into_inner();
            Ok(Scrubbing { messages, endpoint: a.endpoint })
        })
        .await
    }

    /// Has a node replace one of its tables by a good copy: by `copy` if there is one, part by part, else by one out of
    /// the node's repository or from another node. Takes as long as the transfer does.
    ///
    /// # Errors
    /// `NO_COPY` when nobody has one, `BAD_REQUEST` when `copy` is none; the table is as it was then.
    pub async fn repair_table<S>(&self, endpoint: &str, id: u128, copy: Option<S>) -> Result<RepairTableResponse>
    where
        S: Stream<Item = Vec<u8>> + Send + 'static,
    {
        use repair_table_request::Message;
        let from = if copy.is_some() { CopyFrom::Caller } else { CopyFrom::Elsewhere };
        let start = RepairTableStart { id: id.to_be_bytes().to_vec().into(), from: from.into() };
        let start = futures::stream::once(std::future::ready(Message::Start(start)));
        let data = futures::stream::iter(copy).flatten().map(|part| Message::Data(part.into()));
        let messages = start.chain(data).map(|m| RepairTableRequest { message: Some(m) });
        let answer =
            self.at(endpoint, true, REPAIR_TIMEOUT, |a| async move { a.admin().repair_table(messages).await }).await?;
        Ok(answer.into_inner())
    }

    /// Has a replica set its data aside and be seeded anew by the primary; returns before that begins. With `accept_fewer`
    /// also when meanwhile writes would wait, or the primary alone would hold what is committed.
    ///
    /// # Errors
    /// `NOT_RESEEDED` with the reason; then nothing was changed.
    pub async fn reseed(&self, endpoint: &str, accept_fewer: bool) -> Result<ReseedResponse> {
        let request = ReseedRequest { accept_fewer };
        let answer = self
            .at(endpoint, true, self.timeout(), |a| async move { a.admin().reseed(a.request(request)).await })
            .await?;
        Ok(answer.into_inner())
    }
}
