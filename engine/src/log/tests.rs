//! Tests of the log at its seam. Here: helpers, and what needs no simulated disk.

#![expect(clippy::disallowed_methods, reason = "tests look at and damage real files, and run real threads")]

use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::lsn::{ClusterId, TimelineId};
use crate::rng::{Rng, SeededRng};

mod basics;
#[cfg(feature = "sim")]
mod crash;
#[cfg(feature = "sim")]
mod damage;
mod reading;
#[cfg(feature = "sim")]
mod recycling;
#[cfg(feature = "sim")]
mod room;

/// An environment on real files whose fatal hook only counts.
fn real() -> (Env, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&count);
    let fatal: crate::env::FatalHook = Arc::new(move |_| {
        seen.fetch_add(1, Ordering::SeqCst);
    });
    (Env { fatal, ..Env::real() }, count)
}

fn open(env: &Env, dir: &Path) -> Result<(Log, Recovered)> {
    Log::open(env, dir, &Options::tiny(), Lsn::ZERO, Position::default())
}

fn put(log: &Log, body: &[u8]) -> Result<Position> {
    log.append(Kind::Batch, log.last().epoch.max(Epoch(1)), CommitTs(0), 0, 0, body)
}

/// A body of a length and content that follow from `n`.
fn body(n: u64) -> Vec<u8> {
    let r = SeededRng::new(n);
    let len = r.below(300);
    (0..len).map(|_| r.next_u64() as u8).collect()
}

fn fill(log: &Log, count: u64) -> Vec<Vec<u8>> {
    (0..count)
        .map(|_| {
            let b = body(log.last().lsn.0 + 1);
            put(log, &b).unwrap();
            b
        })
        .collect()
}

/// LSN and body of each record of a chunk; checks that its bounds are right.
fn records(chunk: &Chunk) -> Vec<(Lsn, Vec<u8>)> {
    let mut out = Vec::new();
    let mut rest = &chunk.bytes[..];
    while !rest.is_empty() {
        let r = Record::decode(rest).unwrap();
        out.push((r.header.lsn, r.body.to_vec()));
        rest = &rest[r.bytes.len()..];
    }
    assert_eq!((out[0].0, out[out.len() - 1].0), (chunk.first, chunk.last));
    out
}

/// Everything from `from` to the end.
fn read_all(log: &Log, from: Lsn) -> Result<Vec<(Lsn, Vec<u8>)>> {
    let mut reader = log.reader(from)?;
    let mut out = Vec::new();
    while let Some(c) = reader.next(Lsn::MAX, 1000)? {
        out.extend(records(&c));
    }
    Ok(out)
}

fn bodies(log: &Log) -> Vec<Vec<u8>> {
    read_all(log, log.oldest()).unwrap().into_iter().map(|(_, b)| b).collect()
}

const fn start(fork: Lsn) -> TimelineStart {
    TimelineStart { cluster: ClusterId(1), timeline: TimelineId(2), parent: TimelineId(1), fork }
}
