//! What operators ask of nodes.
//!
//! Owns: sending to one node or to all. Never: choosing a primary.

use std::time::Duration;

use mainstay_proto::v1::{
    CreateBackupProgress, CreateBackupRequest, PromoteRequest, PromoteResponse, StatusRequest, StatusResponse,
    WaitArchivedRequest,
};
use tonic::Streaming;

use crate::error::{Error, Result};
use crate::session::Client;

/// How long a node may take to answer a status call.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

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

    /// Takes a base backup at a node, into the node's repository.
    ///
    /// # Errors
    /// `NO_REPOSITORY`, or the node does not answer; later ones come through the progress.
    pub async fn create_backup(&self, endpoint: &str) -> Result<BackupProgress> {
        self.at(endpoint, true, self.timeout(), |a| async move {
            let messages = a.admin().create_backup(CreateBackupRequest {}).await?.into_inner();
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
}
