//! The gRPC door for data: `mainstay.v1.Kv`.
//!
//! Owns: conversion of messages. Never: a decision.

use std::time::Duration;

use mainstay_engine::Lsn;
use mainstay_engine::batch::{Condition, Expect, Keyspace};
use mainstay_proto::v1;
use mainstay_proto::v1::kv_server::Kv;
use mainstay_proto::v1::operation::Op;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::status;
use crate::service::{Ack, Change, Changed, Entry, Failure, Operation, Range, ReadAt, Service, Write};

/// Serves data calls.
#[derive(Clone, Debug)]
pub struct KvDoor(pub Service);

type Answer<T> = Result<Response<T>, Status>;
type BoxStream<T> = std::pin::Pin<Box<dyn futures::Stream<Item = Result<T, Status>> + Send>>;

fn bad(text: &str) -> Status {
    status(Failure::new(crate::service::Code::BadRequest, crate::service::Class::NeverRetry, text))
}

/// The time the caller gives the call, from its gRPC deadline.
fn deadline<T>(request: &Request<T>) -> Option<Duration> {
    let text = request.metadata().get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let n: u64 = number.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(n.saturating_mul(3600))),
        "M" => Some(Duration::from_secs(n.saturating_mul(60))),
        "S" => Some(Duration::from_secs(n)),
        "m" => Some(Duration::from_millis(n)),
        "u" => Some(Duration::from_micros(n)),
        "n" => Some(Duration::from_nanos(n)),
        _ => None,
    }
}

fn condition(c: v1::Condition) -> Result<Condition, Status> {
    let expect = match c.expect {
        Some(v1::condition::Expect::Exists(true)) => Expect::Exists,
        Some(v1::condition::Expect::Exists(false)) => Expect::Absent,
        Some(v1::condition::Expect::Version(v)) => Expect::Version(Lsn(v)),
        Some(v1::condition::Expect::Value(v)) => Expect::Value(v.to_vec()),
        None => return Err(bad("a condition without an expectation")),
    };
    Ok(Condition { keyspace: Keyspace::USER, key: c.key.to_vec(), expect })
}

fn read_at(consistency: i32, at_lsn: u64) -> Result<ReadAt, Status> {
    let consistency = v1::Consistency::try_from(consistency).map_err(|_| bad("unknown consistency"))?;
    let stale = consistency == v1::Consistency::Stale;
    Ok(ReadAt { stale, lsn: (at_lsn != 0).then_some(Lsn(at_lsn)) })
}

fn key_value(e: Entry) -> v1::KeyValue {
    v1::KeyValue { key: e.key.into(), value: e.value.into(), version: e.version.0, expiry_us: e.expiry_us }
}

fn event(c: Change) -> v1::WatchEvent {
    let operations = c.operations.into_iter().map(|o| {
        let op = match o {
            Changed::Put(key, value, expiry) => {
                let ttl_ms = expiry.map_or(0, |e| e.0.saturating_sub(c.ts.0) / 1000);
                Op::Put(v1::Put { key: key.into(), value: value.into(), ttl_ms })
            }
            Changed::Delete(key) => Op::Delete(v1::Delete { key: key.into() }),
            Changed::DeleteRange(start, end) => {
                Op::DeleteRange(v1::DeleteRange { start: start.into(), end: end.into() })
            }
        };
        v1::Operation { op: Some(op) }
    });
    v1::WatchEvent { lsn: c.lsn.0, epoch: c.epoch.0, commit_ts_us: c.ts.0, operations: operations.collect() }
}

#[tonic::async_trait]
impl Kv for KvDoor {
    type ScanStream = BoxStream<v1::ScanPage>;
    type WatchStream = BoxStream<v1::WatchEvent>;

    async fn write(&self, request: Request<v1::WriteRequest>) -> Answer<v1::WriteResponse> {
        let timeout = deadline(&request);
        let r = request.into_inner();
        let ack = match v1::Ack::try_from(r.ack).map_err(|_| bad("unknown acknowledgement level"))? {
            v1::Ack::Committed => Ack::Committed,
            v1::Ack::Local => Ack::Local,
            v1::Ack::Archived => Ack::Archived,
        };
        if r.session != 0 || r.sequence != 0 {
            return Err(bad("sessions are not supported by this version; leave session and sequence at 0"));
        }
        let conditions = r.conditions.into_iter().map(condition).collect::<Result<_, _>>()?;
        let mut write = Write::new(conditions, ack, timeout);
        let now = self.0.now();
        for operation in &r.operations {
            let op = match operation.op.as_ref().ok_or_else(|| bad("an empty operation"))? {
                Op::Put(p) => {
                    let ttl = (p.ttl_ms != 0).then(|| Duration::from_millis(p.ttl_ms));
                    Operation::Put(&p.key, &p.value, ttl)
                }
                Op::Delete(d) => Operation::Delete(&d.key),
                Op::DeleteRange(d) => Operation::DeleteRange(&d.start, &d.end),
            };
            write.add(op, now).map_err(status)?;
        }
        let w = self.0.write(write).await.map_err(status)?;
        Ok(Response::new(v1::WriteResponse {
            epoch: w.position.epoch.0,
            lsn: w.position.lsn.0,
            level: w.level.to_owned(),
            degraded: w.degraded,
            commit_ts_us: w.position.ts.0,
        }))
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Answer<v1::GetResponse> {
        let r = request.into_inner();
        let at = read_at(r.consistency, r.at_lsn)?;
        let (found, lsn, epoch) = self.0.get(&r.keys, at).await.map_err(status)?;
        let found = found.into_iter().map(key_value).collect();
        Ok(Response::new(v1::GetResponse { found, lsn: lsn.0, epoch: epoch.0 }))
    }

    async fn scan(&self, request: Request<v1::ScanRequest>) -> Answer<Self::ScanStream> {
        let r = request.into_inner();
        let at = read_at(r.consistency, r.at_lsn)?;
        let range = Range {
            start: r.start.to_vec(),
            end: r.end.to_vec(),
            limit: r.limit,
            reverse: r.reverse,
            keys_only: r.keys_only,
        };
        let (pages, lsn) = self.0.scan(range, at).await.map_err(status)?;
        let pages = ReceiverStream::new(pages).map(move |page| {
            let entries = page.map_err(status)?.into_iter().map(key_value).collect();
            Ok(v1::ScanPage { entries, lsn: lsn.0 })
        });
        Ok(Response::new(Box::pin(pages)))
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Answer<Self::WatchStream> {
        let r = request.into_inner();
        let changes = self.0.watch(Lsn(r.from_lsn), Lsn(r.to_lsn), r.prefix.to_vec()).map_err(status)?;
        let events = ReceiverStream::new(changes).map(|c| c.map(event).map_err(status));
        Ok(Response::new(Box::pin(events)))
    }
}
