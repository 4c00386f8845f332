//! The gRPC door for operators: `mainstay.v1.Admin`.
//!
//! Owns: conversion of messages. Never: a decision.

use std::time::Duration;

use mainstay_proto::v1;
use mainstay_proto::v1::admin_server::Admin;
use mainstay_replication::core::{NotPromoted, Terms};
use mainstay_replication::rule::NodeId;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::status;
use crate::node::archive::Archive;
use crate::node::status::report;
use crate::service::{Class, Code, Failure, Service};

/// Serves operator calls.
#[derive(Clone, Debug)]
pub struct AdminDoor {
    /// The node's service.
    pub service: Service,
    /// The node's archive.
    pub archive: Archive,
    /// Addresses of the peers, for status.
    pub peers: std::collections::BTreeMap<u64, String>,
}

type BoxStream<T> = std::pin::Pin<Box<dyn futures::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Admin for AdminDoor {
    type CreateBackupStream = BoxStream<v1::CreateBackupProgress>;

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        Ok(Response::new(report(&self.service, &self.archive, &self.peers)))
    }

    async fn promote(&self, request: Request<v1::PromoteRequest>) -> Result<Response<v1::PromoteResponse>, Status> {
        let v1::PromoteRequest { accept_loss, destroyed } = request.into_inner();
        let driver = self.service.driver();
        let refused = |class, text| status(Failure::new(Code::NotPromoted, class, text));
        if driver.store().is_none() {
            let text = "this node is still opening its data, or has none; ask again shortly";
            return Err(status(Failure::new(Code::NotReady, Class::NotExecuted, text)));
        }
        let voters = driver.rule().voters().to_vec();
        if let Some(stranger) = destroyed.iter().find(|id| !voters.contains(&NodeId(**id)) || **id == driver.me().0) {
            let text = format!("node {stranger} is not another voter of this cluster; it cannot be named as destroyed");
            return Err(refused(Class::NeverRetry, text));
        }
        let terms = Terms { accept_loss, destroyed: destroyed.into_iter().map(NodeId).collect() };
        let promoted =
            driver.promote(terms).await.map_err(|e| refused(Class::Indeterminate, e.to_string()))?.map_err(|why| {
                let begun = matches!(why, NotPromoted::Unfinished { .. });
                refused(if begun { Class::Indeterminate } else { Class::NotExecuted }, why.to_string())
            })?;
        let committed = match driver.store() {
            // The reign counts once its first record is committed.
            Some(store) => {
                let wait = store.committed().reached(promoted.start);
                matches!(tokio::time::timeout(Duration::from_secs(3), wait).await, Ok(Ok(_)))
            }
            None => false,
        };
        Ok(Response::new(v1::PromoteResponse {
            epoch: promoted.epoch.0,
            start_lsn: promoted.start.0,
            sealed: driver.rule().in_sync().into_iter().map(|n| n.0).collect(),
            lossy: promoted.lossy,
            committed,
        }))
    }

    async fn create_backup(
        &self,
        _: Request<v1::CreateBackupRequest>,
    ) -> Result<Response<Self::CreateBackupStream>, Status> {
        let store = self
            .service
            .driver()
            .store()
            .cloned()
            .ok_or_else(|| status(Failure::new(Code::NotReady, Class::NotExecuted, "this node has no data yet")))?;
        let driver = self.service.driver();
        let progress = self.archive.create_base(driver, store).await.map_err(status)?;
        let stream = ReceiverStream::new(progress).map(|p| p.map_err(status));
        Ok(Response::new(Box::pin(stream)))
    }

    async fn wait_archived(
        &self,
        _: Request<v1::WaitArchivedRequest>,
    ) -> Result<Response<v1::WaitArchivedResponse>, Status> {
        let at = self.service.wait_archived(Duration::from_secs(30)).await.map_err(status)?;
        Ok(Response::new(v1::WaitArchivedResponse { archived_lsn: at.0 }))
    }
}
