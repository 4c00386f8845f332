//! The gRPC door for operators: `mainstay.v1.Admin`.
//!
//! Owns: conversion of messages. Never: a decision.

use std::time::Duration;

use mainstay_engine::inspect::SpacedKey;
use mainstay_engine::store::ScrubPass;
use mainstay_engine::tree::DamagedTable;
use mainstay_proto::v1;
use mainstay_proto::v1::admin_server::Admin;
use mainstay_replication::core::{NotPromoted, Terms};
use mainstay_replication::rule::NodeId;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::status;
use crate::node::archive::Archive;
use crate::node::repair::Repair;
use crate::node::status::{Looking, report};
use crate::service::{Class, Code, Failure, Service, without_advice};

/// Serves operator calls.
#[derive(Clone, Debug)]
pub struct AdminDoor {
    /// The node's service.
    pub service: Service,
    /// The node's archive.
    pub archive: Archive,
    /// Repair of its tables.
    pub repair: Repair,
    /// Held while status looks at the disk.
    pub looking: Looking,
    /// Addresses of the peers, for status.
    pub peers: std::collections::BTreeMap<u64, String>,
}

type BoxStream<T> = std::pin::Pin<Box<dyn futures::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Admin for AdminDoor {
    type CreateBackupStream = BoxStream<v1::CreateBackupProgress>;
    type ScrubStream = BoxStream<v1::ScrubProgress>;

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        Ok(Response::new(report(&self.service, &self.archive, &self.peers, &self.looking).await))
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
        request: Request<v1::CreateBackupRequest>,
    ) -> Result<Response<Self::CreateBackupStream>, Status> {
        let accept_gap = request.into_inner().accept_gap;
        let store = self
            .service
            .driver()
            .store()
            .cloned()
            .ok_or_else(|| status(Failure::new(Code::NotReady, Class::NotExecuted, "this node has no data yet")))?;
        let driver = self.service.driver();
        let progress = self.archive.create_base(driver, store, accept_gap).await.map_err(status)?;
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

    async fn list_damage(&self, _: Request<v1::ListDamageRequest>) -> Result<Response<v1::ListDamageResponse>, Status> {
        let (tables, log) = self.repair.damage().await.map_err(status)?;
        Ok(Response::new(v1::ListDamageResponse { tables: tables.into_iter().map(damaged_table).collect(), log }))
    }

    async fn scrub(&self, request: Request<v1::ScrubRequest>) -> Result<Response<Self::ScrubStream>, Status> {
        let progress = self.repair.scrub(request.into_inner().bytes_per_second).map_err(status)?;
        let stream = ReceiverStream::new(progress).map(|p| p.map(scrub_progress).map_err(status));
        Ok(Response::new(Box::pin(stream)))
    }

    async fn repair_table(
        &self,
        request: Request<Streaming<v1::RepairTableRequest>>,
    ) -> Result<Response<v1::RepairTableResponse>, Status> {
        use v1::repair_table_request::Message;
        let bad = |text: &str| status(Failure::bad(text));
        let mut messages = request.into_inner();
        let first = tokio::time::timeout(Duration::from_secs(5), messages.next()).await;
        let Ok(Some(Ok(v1::RepairTableRequest { message: Some(Message::Start(start)) }))) = first else {
            return Err(bad("a repair begins with the table that is to be repaired"));
        };
        let id = start.id.as_ref().try_into().map_err(|_| bad("a table's id has 16 bytes"))?;
        let id = u128::from_be_bytes(id);
        let done = match v1::CopyFrom::try_from(start.from).map_err(|_| bad("unknown source of a copy"))? {
            v1::CopyFrom::Elsewhere => self.repair.from_elsewhere(id).await,
            v1::CopyFrom::Caller => {
                let data = messages.map(|m| match m.map_err(|e| e.message().to_owned())?.message {
                    Some(Message::Data(data)) => Ok(data),
                    _ => Err("expected a part of the copy".to_owned()),
                });
                self.repair.from_caller(id, data).await
            }
        };
        let done = done.map_err(status)?;
        Ok(Response::new(v1::RepairTableResponse { source: done.source, bytes: done.bytes }))
    }

    async fn reseed(&self, request: Request<v1::ReseedRequest>) -> Result<Response<v1::ReseedResponse>, Status> {
        let driver = self.service.driver();
        let refused = |why| status(Failure::new(Code::NotReseeded, Class::NotExecuted, why));
        let primary = driver.reseed(request.into_inner().accept_fewer).await.map_err(refused)?;
        Ok(Response::new(v1::ReseedResponse { incarnation: driver.incarnation(), primary_id: primary.0 }))
    }
}

fn scrub_progress(p: ScrubPass) -> v1::ScrubProgress {
    v1::ScrubProgress {
        bytes_done: p.stats.bytes_done,
        bytes_total: p.stats.bytes_total,
        files_done: p.stats.files_done + p.stats.files_gone,
        files_gone: p.stats.files_gone,
        files_total: p.stats.files_total,
        unread_files: p.stats.unread_files,
        unread: p.unread,
    }
}

fn damaged_table(t: DamagedTable) -> v1::DamagedTable {
    let with_space = |k: SpacedKey| [&[k.keyspace.0][..], &k.key].concat().into();
    let (min_key, max_key) = t.keys.map(|(a, b)| (with_space(a), with_space(b))).unwrap_or_default();
    v1::DamagedTable {
        id: t.file.id.to_be_bytes().to_vec().into(),
        bytes: t.file.bytes,
        blake3: t.file.blake3.to_vec().into(),
        path: t.path.display().to_string(),
        level: t.level.map(u32::from),
        min_key,
        max_key,
        entries: t.file.entries,
        min_lsn: t.lsns.0.0,
        max_lsn: t.lsns.1.0,
        what: without_advice(&t.what).to_owned(),
    }
}
