//! Histories, a log in memory, a store with faults, and a store under construction, for the tests
//! of this crate.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use mainstay_engine::log::Chunk;
use mainstay_engine::record::{Header, Kind, Record, TimelineStart, encode};
use mainstay_engine::rng::{Rng, SeededRng};
use mainstay_engine::{Chain, ClusterId, CommitTs, Env, Epoch, Lsn, Position, TimelineId};
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};

use crate::archive::RecordSource;
use crate::repository::Repository;
use crate::repository::access::RetryPolicy;
use crate::restore::{ReplayBase, ReplayFactory, ReplayTarget};
use crate::wal_object::Writer;

pub(crate) const CLUSTER: ClusterId = ClusterId(0xc1);
pub(crate) const T1: TimelineId = TimelineId(0x71);
pub(crate) const WRITER: Writer = Writer { cluster: CLUSTER, timeline: T1, epoch: Epoch(1), node: 1, incarnation: 1 };

/// Commit timestamp of the n-th record of a history, counted from 1.
pub(crate) const fn ts_of(n: u64) -> CommitTs {
    CommitTs(1_000_000 + n * 10)
}

/// A log in memory: records, each with the position after it.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    start: Position,
    records: Vec<(Position, Vec<u8>)>,
}

impl History {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn end(&self) -> Position {
        self.records.last().map_or(self.start, |r| r.0)
    }

    fn push(&mut self, kind: Kind, epoch: Epoch, lsn: Lsn, body: &[u8]) {
        let prev = self.end();
        let ts = CommitTs(prev.ts.0.max(1_000_000) + 10);
        let mut bytes = Vec::new();
        let header = Header { kind, epoch, lsn, ts, session: 0, sequence: 0 };
        let chain = encode(&mut bytes, prev.chain, &header, |b| b.extend_from_slice(body));
        self.records.push((Position { epoch, lsn, chain, ts }, bytes));
    }

    /// Adds `n` records of epoch `e`; the first starts the epoch if it is a new one.
    pub(crate) fn epoch(mut self, e: u64, n: u64) -> Self {
        for i in 0..n {
            let kind = if i == 0 && self.end().epoch != Epoch(e) { Kind::EpochStart } else { Kind::Batch };
            let lsn = self.end().lsn.next();
            let body = if kind == Kind::Batch { format!("e{e} record {lsn}").into_bytes() } else { Vec::new() };
            self.push(kind, Epoch(e), lsn, &body);
        }
        self
    }

    /// As [`History::epoch`], with bodies that another writer made.
    pub(crate) fn other(mut self, e: u64, n: u64) -> Self {
        for _ in 0..n {
            let lsn = self.end().lsn.next();
            self.push(Kind::Batch, Epoch(e), lsn, b"a fork");
        }
        self
    }

    /// Adds a record that takes tables in, as an embedded store writes them.
    pub(crate) fn ingest(mut self) -> Self {
        let (epoch, lsn) = (self.end().epoch, self.end().lsn.next());
        self.push(Kind::Ingest, epoch, lsn, b"tables that only the writer has");
        self
    }

    /// The history up to `lsn`.
    pub(crate) fn cut(&self, lsn: u64) -> Self {
        let records = self.records.iter().filter(|r| r.0.lsn.0 <= lsn).cloned().collect();
        Self { start: self.start, records }
    }

    /// A log that begins after `lsn`.
    pub(crate) fn from(&self, lsn: u64) -> Self {
        let start = self.records.iter().rfind(|r| r.0.lsn.0 <= lsn).map_or(self.start, |r| r.0);
        let records = self.records.iter().filter(|r| r.0.lsn.0 > lsn).cloned().collect();
        Self { start, records }
    }

    /// Starts a new timeline at `at`.
    pub(crate) fn timeline(mut self, epoch: u64, timeline: TimelineId, parent: TimelineId, at: u64) -> Self {
        let start = TimelineStart { cluster: CLUSTER, timeline, parent, fork: self.end().lsn };
        self.push(Kind::TimelineStart, Epoch(epoch), Lsn(at), &start.encode());
        self
    }

    pub(crate) fn each_record(&self, from: Lsn, to: Lsn, mut f: impl FnMut(&Record<'_>)) {
        for (_, bytes) in self.records.iter().filter(|r| (from..=to).contains(&r.0.lsn)) {
            f(&Record::decode(bytes).unwrap());
        }
    }

    pub(crate) fn position(&self, lsn: u64) -> Position {
        self.records.iter().find(|r| r.0.lsn.0 == lsn).map_or(self.start, |r| r.0)
    }

    pub(crate) fn lsns(&self) -> Vec<u64> {
        self.records.iter().map(|r| r.0.lsn.0).collect()
    }
}

/// A log that can grow while it is read.
#[derive(Debug)]
pub(crate) struct MemoryLog {
    history: Mutex<History>,
    /// Gives records above the asked-for bound, as a broken log would.
    pub(crate) overshoot: AtomicBool,
}

impl MemoryLog {
    pub(crate) fn new(history: &History) -> Arc<Self> {
        Arc::new(Self { history: Mutex::new(history.clone()), overshoot: AtomicBool::new(false) })
    }

    pub(crate) fn set(&self, history: &History) {
        *self.history.lock().unwrap() = history.clone();
    }
}

impl RecordSource for MemoryLog {
    fn start(&self) -> mainstay_engine::Result<Position> {
        Ok(self.history.lock().unwrap().start)
    }

    fn read(&self, from: Lsn, upto: Lsn, max_bytes: usize) -> mainstay_engine::Result<Option<Chunk>> {
        let history = self.history.lock().unwrap();
        let start = history.start.lsn;
        if from <= start {
            return Err(mainstay_engine::Error::LogGone { asked: from, oldest: start.next() });
        }
        let upto = if self.overshoot.load(Ordering::Relaxed) { Lsn::MAX } else { upto };
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for (position, record) in history.records.iter().filter(|r| (from..=upto).contains(&r.0.lsn)) {
            if !ends.is_empty() && bytes.len() + record.len() > max_bytes {
                break;
            }
            bytes.extend_from_slice(record);
            ends.push(position.lsn);
        }
        let (Some(&first), Some(&last)) = (ends.first(), ends.last()) else { return Ok(None) };
        Ok(Some(Chunk { first, last, bytes }))
    }
}

/// What may go wrong, in percent of the calls.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// Puts and gets that fail without effect.
    pub(crate) unavailable: u64,
    /// Puts that take effect and then fail.
    pub(crate) lost_reply: u64,
    /// Creates that say "exists" although nothing landed.
    pub(crate) phantom_conflict: u64,
    /// Refuses the credentials of every put.
    pub(crate) denied: bool,
    /// Ignores `PutMode::Create`.
    pub(crate) overwrites: bool,
    /// Listings never show anything.
    pub(crate) blind_list: bool,
    /// Seconds before each name of a listing.
    pub(crate) slow_list: u64,
}

/// An [`InMemory`] store that fails by a seeded schedule.
pub(crate) struct FaultStore {
    inner: InMemory,
    faults: Mutex<Faults>,
    rng: SeededRng,
    /// Retries of the repositories made on this store.
    pub(crate) retries: AtomicUsize,
}

impl FaultStore {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        let (inner, faults) = (InMemory::new(), Mutex::new(Faults::default()));
        Arc::new(Self { inner, faults, rng: SeededRng::new(seed), retries: AtomicUsize::new(40) })
    }

    pub(crate) fn set(&self, faults: Faults) {
        *self.faults.lock().unwrap() = faults;
    }

    fn hit(&self, percent: u64) -> bool {
        self.rng.below(100) < percent
    }
}

fn unavailable() -> object_store::Error {
    object_store::Error::Generic { store: "fault", source: "503 Slow Down".into() }
}

impl fmt::Debug for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultStore")
    }
}

impl fmt::Display for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultStore")
    }
}

#[async_trait]
impl ObjectStore for FaultStore {
    async fn put_opts(
        &self,
        at: &ObjectPath,
        payload: PutPayload,
        mut o: PutOptions,
    ) -> object_store::Result<PutResult> {
        let f = *self.faults.lock().unwrap();
        if self.hit(f.unavailable) {
            return Err(unavailable());
        }
        if f.denied {
            return Err(object_store::Error::PermissionDenied { path: at.to_string(), source: "403".into() });
        }
        if o.mode == PutMode::Create && self.hit(f.phantom_conflict) {
            return Err(object_store::Error::AlreadyExists { path: at.to_string(), source: "409".into() });
        }
        if f.overwrites {
            o.mode = PutMode::Overwrite;
        }
        let result = self.inner.put_opts(at, payload, o).await;
        if result.is_ok() && self.hit(f.lost_reply) { Err(unavailable()) } else { result }
    }

    async fn put_multipart_opts(
        &self,
        at: &ObjectPath,
        o: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, o).await
    }

    async fn get_opts(&self, at: &ObjectPath, o: GetOptions) -> object_store::Result<GetResult> {
        let f = *self.faults.lock().unwrap();
        if self.hit(f.unavailable) { Err(unavailable()) } else { self.inner.get_opts(at, o).await }
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<ObjectPath>>,
    ) -> BoxStream<'static, object_store::Result<ObjectPath>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let f = *self.faults.lock().unwrap();
        if f.blind_list {
            return futures::stream::empty().boxed();
        }
        if self.hit(f.unavailable) {
            return futures::stream::iter([Err(unavailable())]).boxed();
        }
        let pause = Duration::from_secs(f.slow_list);
        let named = self.inner.list(prefix).then(move |name| async move {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            name
        });
        named.boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, o: CopyOptions) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, o).await
    }
}

/// A repository on `store`, with retries that do not wait.
pub(crate) fn repository(store: &Arc<FaultStore>) -> Repository {
    repository_in(store, Env::real())
}

/// The same in that world.
pub(crate) fn repository_in(store: &Arc<FaultStore>, env: Env) -> Repository {
    let policy = RetryPolicy {
        retries: store.retries.load(Ordering::Relaxed),
        min_delay: Duration::from_micros(1),
        max_delay: Duration::from_micros(2),
    };
    Repository::on_store(Arc::clone(store) as Arc<dyn ObjectStore>, "memory://test", env, policy)
}

/// What a restore replayed, kept outside so that tests can look at it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Replayed(pub(crate) Arc<Mutex<BTreeMap<u64, Vec<u8>>>>);

impl Replayed {
    pub(crate) fn lsns(&self) -> Vec<u64> {
        self.0.lock().unwrap().keys().copied().collect()
    }
}

struct FakeTarget {
    at: Position,
    out: Replayed,
}

impl ReplayFactory for Replayed {
    fn create(self, _: &Env, base: ReplayBase<'_>) -> mainstay_engine::Result<Box<dyn ReplayTarget>> {
        Ok(Box::new(FakeTarget { at: base.position, out: self }))
    }
}

impl ReplayTarget for FakeTarget {
    fn replay(&mut self, record: &Record<'_>) -> mainstay_engine::Result<()> {
        record.follows(&self.at)?;
        self.at = record.position();
        self.out.0.lock().unwrap().insert(record.header.lsn.0, record.bytes.to_vec());
        Ok(())
    }

    fn position(&self) -> Position {
        self.at
    }

    fn finish(self: Box<Self>, _: TimelineStart, epoch: Epoch, wall: CommitTs) -> mainstay_engine::Result<Position> {
        let lsn = Lsn(self.at.lsn.0 + mainstay_engine::limits::TIMELINE_LSN_JUMP);
        Ok(Position { epoch, lsn, chain: Chain::default(), ts: wall })
    }
}

/// Names of all objects under `prefix`.
pub(crate) async fn names(store: &FaultStore, prefix: &str) -> Vec<String> {
    let mut out: Vec<String> =
        store.inner.list(Some(&ObjectPath::from(prefix))).map(|m| m.unwrap().location.to_string()).collect().await;
    out.sort();
    out
}

/// The LSN range in a log object's name.
pub(crate) fn range_of(name: &str) -> RangeInclusive<u64> {
    let Some(crate::repository::names::ObjectName::Wal(w)) = crate::repository::names::ObjectName::parse(name) else {
        panic!("{name} is no log object")
    };
    w.first.0..=w.last.0
}

/// Removes an object behind everybody's back.
pub(crate) async fn remove(store: &FaultStore, name: &str) {
    use object_store::ObjectStoreExt;
    store.inner.delete(&ObjectPath::from(name)).await.unwrap();
}

/// Flips a bit of an object behind everybody's back.
pub(crate) async fn damage(store: &FaultStore, name: &str, at: usize) {
    use object_store::ObjectStoreExt;
    let path = ObjectPath::from(name);
    let mut bytes = store.inner.get(&path).await.unwrap().bytes().await.unwrap().to_vec();
    bytes[at] ^= 1;
    store.inner.put(&path, bytes.into()).await.unwrap();
}

/// A scratch directory with a checkpoint of opaque tables.
pub(crate) fn checkpoint(dir: &Path, position: Position, tables: &[(u128, Vec<u8>)]) -> crate::base::BaseSource {
    let env = Env::real();
    env.fs.create_dir_all(&dir.join("tables")).unwrap();
    let table = |(id, bytes): &(u128, Vec<u8>)| {
        mainstay_engine::fs::write_atomic(&*env.fs, &dir.join("tables"), &format!("{id:032x}.table"), bytes).unwrap();
        let blake3 = *blake3::hash(bytes).as_bytes();
        mainstay_engine::table::TableFile { id: *id, bytes: bytes.len() as u64, blake3, entries: 1 }
    };
    let tables = tables.iter().map(table).collect();
    crate::base::BaseSource { dir: dir.to_owned(), position, tables, manifest: b"manifest".to_vec() }
}
