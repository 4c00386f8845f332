//! What `status` says of this node.
//!
//! Owns: gathering facts. Never: asking other nodes; one lone node must be able to answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mainstay_backup::ArchiveStatus;
use mainstay_backup::archive::ArchiverState;
use mainstay_engine::limits::records_between;
use mainstay_engine::store::Store;
use mainstay_engine::{CommitTs, Lsn};
use mainstay_proto::v1;
use mainstay_replication::driver::{PeerProgress, RoleName};
use mainstay_replication::rule::NodeId;
use tokio::sync::Semaphore;

use super::archive::Archive;
use crate::service::{Service, without_advice};

/// Longest wait for the disk.
const LOOK_TIMEOUT: Duration = Duration::from_millis(500);

/// One look at the disk at a time, and only for so long: a disk that hangs holds up neither the status nor one thread
/// more with each. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Looking(Arc<Semaphore>);

impl Default for Looking {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Looking {
    /// What is found in time.
    async fn find<T: Send + 'static>(&self, look: impl FnOnce() -> Option<T> + Send + 'static) -> Option<T> {
        let found = async {
            let one = Arc::clone(&self.0).acquire_owned().await.ok()?;
            let looked = tokio::task::spawn_blocking(move || {
                let _one = one;
                look()
            });
            looked.await.ok().flatten()
        };
        tokio::time::timeout(LOOK_TIMEOUT, found).await.ok().flatten()
    }
}

/// The node's status message.
pub async fn report(
    service: &Service,
    archive: &Archive,
    peers: &BTreeMap<u64, String>,
    looking: &Looking,
) -> v1::StatusResponse {
    let driver = service.driver();
    let role = driver.role().borrow().clone();
    let promise = driver.promise();
    let rule = driver.rule();
    let leads = role.role == RoleName::Primary;
    let mut out = v1::StatusResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node_id: driver.me().0,
        role: role.role.as_str().to_owned(),
        epoch: role.epoch.0,
        sealed_epoch: promise.sealed.0,
        primary_id: role.primary.map_or(0, |p| p.0),
        primary_addr: role.primary_client_addr.unwrap_or_default(),
        mode: rule.mode().to_string(),
        degraded: leads && rule.is_degraded(),
        trouble: role.trouble.unwrap_or_default(),
        incarnation: driver.incarnation(),
        ..Default::default()
    };
    let known = driver.peers();
    let archived = archive.status();
    let failing = archived.as_ref().is_some_and(|(_, s)| s.last_error.is_some());
    let (mut now_us, mut unarchived, mut needed) = (0, None, (0, 0));
    if let Some(store) = driver.store() {
        now_us = store.env().clock.wall().0;
        place_of(store, &mut out);
        out.archived_lsn = service.archived().get().0;
        unarchived = oldest_unarchived(store, service.archived().get(), failing, looking).await;
        if let Some((_, archiver)) = archived.as_ref().filter(|_| leads) {
            needed = needed_log(store, archiver, service.archived().get());
        }
        let damaged = store.damage();
        out.damaged_files = damaged.len() as u64;
        if out.trouble.is_empty() {
            out.trouble = trouble(store, &damaged).unwrap_or_default();
        }
        out.storage = Some(storage(store));
    }
    if leads {
        let up = known.iter().filter(|(_, p)| p.connected).map(|(n, _)| *n).chain([driver.me()]);
        out.tolerated_failures = u32::try_from(rule.tolerated_failures(rule.set(up))).unwrap_or(0);
        let rows = peers.iter().filter(|(id, _)| **id != driver.me().0);
        out.peers = rows
            .map(|(id, addr)| peer(*id, addr, known.get(&NodeId(*id)).cloned().unwrap_or_default(), out.appended_lsn))
            .collect();
    }
    out.archive = archived.map(|(repository, s)| v1::ArchiveStatus {
        repository,
        archived_lsn: service.archived().get().0,
        lag_ms: s.oldest_unarchived_ts.or(unarchived).map_or(0, |ts| now_us.saturating_sub(ts.0) / 1000),
        last_error: s.last_error.unwrap_or_default(),
        no_base: leads && archive.has_no_base(),
        needed_log_bytes: needed.0,
        needed_log_bytes_max: needed.1,
    });
    out
}

/// Which data this is, and how far its log has come.
fn place_of(store: &Store, out: &mut v1::StatusResponse) {
    let (identity, last) = (store.identity(), store.log().last());
    out.cluster_id = identity.cluster.to_string();
    out.timeline = identity.timeline.to_string();
    out.appended_lsn = last.lsn.0;
    out.last_epoch = last.epoch.0;
    out.commit_ts_us = last.ts.0;
    out.durable_lsn = store.durable().get().0;
    out.commit_lsn = store.committed().get().0;
    out.applied_lsn = store.applied().get().0;
}

fn storage(store: &Store) -> v1::StorageStatus {
    let tree = store.tree().stats();
    v1::StorageStatus {
        log_bytes: store.log().disk_usage().0,
        table_bytes: tree.table_bytes(),
        tables: tree.tables(),
        memtable_bytes: tree.memtable_bytes,
        oldest_log_lsn: store.log().oldest().0,
        history_floor_lsn: store.tree().history_floor().0,
    }
}

/// What is wrong with the store, the worst first, in one sentence.
fn trouble(store: &Store, damaged: &[String]) -> Option<String> {
    let unread = || {
        let first = store.scrub_unread().into_iter().next()?;
        Some(format!("the scrub could not read all files, the next pass tries again: {first}"))
    };
    damage(damaged).or_else(|| store.space().trouble()).or_else(|| store.open_files().trouble()).or_else(unread)
}

/// What reads, compaction and the scrub found, in one sentence.
fn damage(all: &[String]) -> Option<String> {
    let first = without_advice(all.first()?);
    let more = if all.len() > 1 { format!(" (and {} more files)", all.len() - 1) } else { String::new() };
    Some(format!(
        "damage on this node's disk: {first}{more}; reads that need the place fail; `mainstay repair` puts a good copy \
         in place, or says what else to do"
    ))
}

/// Commit timestamp of the oldest committed record that is not known to be archived, as the log has
/// it. None while the archiver still looks for the end of the archive.
async fn oldest_unarchived(store: &Arc<Store>, archived: Lsn, failing: bool, looking: &Looking) -> Option<CommitTs> {
    if archived >= store.committed().get() || (archived == Lsn::ZERO && !failing) {
        return None;
    }
    let next = archived.next().max(store.log().oldest());
    let store = Arc::clone(store);
    // A status without a lag is better than no status.
    looking.find(move || store.log().position_at(next).ok().flatten().map(|p| p.ts)).await
}

/// How much log the archiver of a primary still needs, and how much is kept for it at most, in bytes.
fn needed_log(store: &Store, archiver: &ArchiveStatus, archived: Lsn) -> (u64, u64) {
    let needed = match archiver.state {
        // Where the archive ends is known in a moment, unless the store is away.
        ArchiverState::Starting if archiver.last_error.is_none() => 0,
        // What it needs is gone.
        ArchiverState::AtGap => 0,
        _ => store.log().lag_bytes(archived),
    };
    (needed, store.log().lag_bytes_max())
}

fn peer(node_id: u64, addr: &str, p: PeerProgress, head: u64) -> v1::PeerStatus {
    let lag_records = records_between(p.durable.0, head);
    let state = match (p.connected, lag_records > 10_000) {
        (false, _) => "disconnected",
        (true, true) => "catching up",
        (true, false) => "streaming",
    };
    v1::PeerStatus {
        node_id,
        addr: if p.client_addr.is_empty() { addr.to_owned() } else { p.client_addr },
        connected: p.connected,
        durable_lsn: p.durable.0,
        lag_records,
        lag_ms: p.lag_ms,
        state: state.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_disk_that_hangs_costs_status_what_it_would_say_and_one_thread() {
        let looking = Looking::default();
        assert_eq!(looking.find(|| Some(7)).await, Some(7));
        let (over, hangs) = std::sync::mpsc::channel::<()>();
        let waits = looking.find(move || hangs.recv().ok().map(|()| 8));
        assert_eq!(tokio::time::timeout(Duration::from_secs(10), waits).await.expect("status hangs"), None);
        // Not begun while the first one hangs.
        assert_eq!(looking.find(|| -> Option<u8> { panic!("a second look") }).await, None);
        over.send(()).unwrap();
        assert_eq!(looking.find(|| Some(9)).await, Some(9));
    }
}
