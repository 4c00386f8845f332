//! The load: clients that write on a timetable, and a prober that reads on one.
//!
//! Owns: which keys and values are written (all from the seed and the write's id, so that every value
//! proves who wrote it), open-loop sending (an answer that is late delays no later write), and the
//! order ledger → send → ledger → count. Never: a second write after a delete of a key that must
//! stay deleted; never a call around the client library.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use mainstay_client::{Client, ErrorClass, Write, Written};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::ledger::{Change, Entry, Ledger, Told, fnv};
use super::measure::{Clock, Kind, Sample};

/// Longest time one write or probe may take; its retries are within.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Most calls in flight of one client; beyond, a planned write is counted as shed.
const IN_FLIGHT_MAX: usize = 128;
/// Time between two probes.
const PROBE_EVERY: Duration = Duration::from_millis(25);
/// Keys that are overwritten all the time.
const HOT_KEYS: u64 = 32;
/// Records of one write of the data set loaded first.
const PRELOAD_BATCH: u64 = 50;
/// With [`Workload::forget_some`]: every how many-th write the ledger does not hear of.
const FORGET_EVERY: u64 = 50;

fn dice(seed: u64) -> impl FnMut() -> u64 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// The value write `id` puts under `key`: its id in hex, then 200 to 800 letters.
pub(super) fn content(seed: u64, id: u64, key: &str) -> Vec<u8> {
    let mut next = dice(seed ^ id.rotate_left(32) ^ fnv(key.as_bytes()));
    let length = 200 + usize::try_from(next() % 600).unwrap_or(0);
    let mut out = format!("{id:016x} ").into_bytes();
    while out.len() < length {
        out.extend(next().to_le_bytes().map(|b| b'a' + b % 26));
    }
    out
}

/// The write that a value says it is from.
pub(super) fn writer_of(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value.get(..16)?).ok()?;
    u64::from_str_radix(text, 16).ok()
}

/// Key of the n-th record of the data set loaded first.
pub(super) fn preload_key(n: u64) -> String {
    format!("pre/{n:08}")
}

/// A change to be made.
#[derive(Clone, Debug)]
pub(super) enum Plan {
    Put(String),
    Delete(String),
    DeleteRange(String, String),
}

/// What all clients of a drill share.
#[derive(Debug)]
pub(super) struct Workload {
    pub(super) clock: Clock,
    pub(super) ledger: Ledger,
    seed: u64,
    records: u64,
    next_id: AtomicU64,
    samples: Mutex<Vec<Sample>>,
    /// Acknowledged keys that may be deleted, once.
    deletable: Mutex<VecDeque<String>>,
    failure: Mutex<Option<String>>,
    forget_some: AtomicBool,
}

impl Workload {
    pub(super) fn new(clock: Clock, ledger: Ledger, seed: u64, records: u64) -> Arc<Self> {
        Arc::new(Self {
            clock,
            ledger,
            seed,
            records,
            next_id: AtomicU64::new(1),
            samples: Mutex::default(),
            deletable: Mutex::default(),
            failure: Mutex::default(),
            forget_some: AtomicBool::new(false),
        })
    }

    /// Sabotage: from now on some writes are sent behind the ledger's back.
    pub(super) fn forget_some(&self) {
        self.forget_some.store(true, Relaxed);
    }

    pub(super) fn samples(&self) -> Vec<Sample> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What ended the observation, if anything did.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        match &*self.failure.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(why) => Err(anyhow::anyhow!("the observer itself failed: {why}")),
            None => Ok(()),
        }
    }

    fn fail(&self, e: &anyhow::Error) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("{e:#}"));
    }

    fn sample(&self, s: Sample) {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).push(s);
    }

    fn id(&self) -> u64 {
        self.next_id.fetch_add(1, Relaxed)
    }

    /// Ledger, send, ledger. `None`: refused or unknown.
    async fn attempt(&self, client: &Client, number: u32, id: u64, plan: &[Plan]) -> anyhow::Result<Option<Written>> {
        let (write, changes) = self.build(id, plan);
        let forgotten = self.forget_some.load(Relaxed) && id.is_multiple_of(FORGET_EVERY);
        if !forgotten {
            self.ledger.record(&Entry::Intent { id, client: number, at_us: self.clock.us(), changes }).await?;
        }
        let result = client.write(write).await;
        let at_us = self.clock.us();
        let outcome = match &result {
            Ok(w) => Told::Acked { epoch: w.epoch, lsn: w.lsn, level: w.level.clone(), commit_ts_us: w.commit_ts_us },
            Err(e) if e.class() == ErrorClass::Indeterminate => Told::Unknown { code: e.code().to_owned() },
            Err(e) => Told::Refused { code: e.code().to_owned() },
        };
        if !forgotten {
            self.ledger.record(&Entry::Outcome { id, at_us, outcome }).await?;
        }
        Ok(result.ok())
    }

    fn build(&self, id: u64, plan: &[Plan]) -> (Write, Vec<Change>) {
        let (mut write, mut changes) = (Write::new(), Vec::new());
        for one in plan.iter().cloned() {
            match one {
                Plan::Put(key) => {
                    let value = content(self.seed, id, &key);
                    changes.push(Change::Put { key: key.clone(), hash: fnv(&value), bytes: value.len() as u64 });
                    write = write.put(key, value);
                }
                Plan::Delete(key) => {
                    changes.push(Change::Delete { key: key.clone() });
                    write = write.delete(key);
                }
                Plan::DeleteRange(start, end) => {
                    changes.push(Change::DeleteRange { start: start.clone(), end: end.clone() });
                    write = write.delete_range(start, end);
                }
            }
        }
        (write, changes)
    }

    /// Loads the data set.
    ///
    /// # Errors
    /// A write that is not acknowledged: there is nothing to drill then.
    pub(super) async fn preload(&self, client: &Client) -> anyhow::Result<()> {
        let mut from = 0;
        while from < self.records {
            let to = (from + PRELOAD_BATCH).min(self.records);
            let plan: Vec<Plan> = (from..to).map(|n| Plan::Put(preload_key(n))).collect();
            let written = self.once(client, &plan).await?;
            written.context("the cluster does not take the data set; look at the nodes' logs")?;
            from = to;
        }
        Ok(())
    }

    /// A write outside of the timetable, by the drill itself. `None`: refused or unknown.
    ///
    /// # Errors
    /// The ledger failed.
    pub(super) async fn once(&self, client: &Client, plan: &[Plan]) -> anyhow::Result<Option<Written>> {
        self.attempt(client, 0, self.id(), plan).await
    }

    /// The mix: unique keys, hot keys, batches, deletes of what was acknowledged before.
    fn plan(&self, id: u64) -> Vec<Plan> {
        let mut next = dice(self.seed.rotate_left(17) ^ id);
        let unique = || Plan::Put(format!("uni/{id:010}"));
        match next() % 100 {
            0..65 => vec![unique()],
            65..80 => vec![Plan::Put(format!("hot/{:02}", next() % HOT_KEYS))],
            80..90 => (0..3).map(|part| Plan::Put(format!("bat/{id:010}/{part}"))).collect(),
            _ => {
                let mut deletable = self.deletable.lock().unwrap_or_else(PoisonError::into_inner);
                // Not the newest ones: what is deleted has been acknowledged for a while.
                let old = if deletable.len() > 20 { deletable.pop_front() } else { None };
                vec![old.map_or_else(unique, Plan::Delete)]
            }
        }
    }

    fn acknowledged(&self, id: u64, plan: &[Plan]) {
        if let [Plan::Put(key)] = plan
            && key.starts_with("uni/")
            && id.is_multiple_of(4)
        {
            let mut deletable = self.deletable.lock().unwrap_or_else(PoisonError::into_inner);
            if deletable.len() < 10_000 {
                deletable.push_back(key.clone());
            }
        }
    }

    async fn planned(&self, client: &Client, number: u32, intended_us: u64) {
        let id = self.id();
        let plan = self.plan(id);
        let sent_us = self.clock.us();
        match self.attempt(client, number, id, &plan).await {
            Ok(written) => {
                let epoch = written.as_ref().map(|w| w.epoch);
                if epoch.is_some() {
                    self.acknowledged(id, &plan);
                }
                self.sample(Sample { kind: Kind::Write, intended_us, sent_us, done_us: self.clock.us(), epoch });
            }
            Err(e) => self.fail(&e),
        }
    }

    async fn probe(&self, client: &Client, n: u64, intended_us: u64) {
        // From the far end: the mistake of an operator removes the near one.
        let key = preload_key(self.records.saturating_sub(1 + n % 100));
        let sent_us = self.clock.us();
        let read = client.get(key.clone()).await;
        let is_right = |value: &[u8]| writer_of(value).is_some_and(|id| content(self.seed, id, &key) == value);
        let right = read.is_ok_and(|e| e.is_some_and(|e| is_right(&e.value)));
        let epoch = right.then_some(0);
        self.sample(Sample { kind: Kind::Read, intended_us, sent_us, done_us: self.clock.us(), epoch });
    }
}

/// A running load.
#[derive(Debug)]
pub(super) struct Load {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Load {
    /// Starts `clients` writers, `per_second` writes together, and the prober.
    ///
    /// # Errors
    /// An endpoint that is none.
    pub(super) fn start(
        work: &Arc<Workload>,
        endpoints: &[String],
        clients: u32,
        per_second: u32,
    ) -> anyhow::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let clients = clients.max(1);
        let every = Duration::from_secs_f64(f64::from(clients) / f64::from(per_second.max(1)));
        for number in 0..clients {
            let client = connect(endpoints)?;
            let first = every.mul_f64(f64::from(number) / f64::from(clients));
            let timetable = Timetable { first, every, stopped: stopped.clone() };
            let caller = Arc::clone(work);
            tasks.spawn(timetable.run(Arc::clone(work), move |_, intended_us| {
                let (work, client) = (Arc::clone(&caller), client.clone());
                async move { work.planned(&client, number + 1, intended_us).await }
            }));
        }
        let client = connect(endpoints)?;
        let timetable = Timetable { first: Duration::ZERO, every: PROBE_EVERY, stopped };
        let caller = Arc::clone(work);
        tasks.spawn(timetable.run(Arc::clone(work), move |n, intended_us| {
            let (work, client) = (Arc::clone(&caller), client.clone());
            async move { work.probe(&client, n, intended_us).await }
        }));
        Ok(Self { stop, tasks })
    }

    /// Sends nothing more, waits for what is under way.
    pub(super) async fn stop(mut self) {
        let _ = self.stop.send(true);
        while self.tasks.join_next().await.is_some() {}
    }
}

/// A client with the drill's timeout.
///
/// # Errors
/// An endpoint that is none.
pub(super) fn connect(endpoints: &[String]) -> anyhow::Result<Client> {
    Ok(Client::builder().endpoints(endpoints.iter().cloned()).timeout(CALL_TIMEOUT).connect()?)
}

struct Timetable {
    first: Duration,
    every: Duration,
    stopped: watch::Receiver<bool>,
}

impl Timetable {
    /// Starts a call at each time of the table, whatever became of the ones before.
    async fn run<F>(mut self, work: Arc<Workload>, mut call: impl FnMut(u64, u64) -> F + Send)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let room = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
        let mut under_way = JoinSet::new();
        let begun = tokio::time::Instant::now() + self.first;
        for n in 0u32.. {
            let due = begun + self.every * n;
            tokio::select! {
                biased;
                _ = self.stopped.wait_for(|s| *s) => break,
                () = tokio::time::sleep_until(due) => {}
            }
            let intended_us = work.clock.us_at(due);
            while under_way.try_join_next().is_some() {}
            if let Ok(permit) = Arc::clone(&room).try_acquire_owned() {
                let calling = call(u64::from(n), intended_us);
                under_way.spawn(async move {
                    calling.await;
                    drop(permit);
                });
            } else {
                let now = work.clock.us();
                work.sample(Sample { kind: Kind::Shed, intended_us, sent_us: now, done_us: now, epoch: None });
            }
        }
        while under_way.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn values_prove_who_wrote_them() {
        let value = content(1, 0xabc, "k");
        assert_eq!(writer_of(&value), Some(0xabc));
        assert_eq!(value, content(1, 0xabc, "k"));
        assert!((200..=820).contains(&value.len()));
        let others = [content(2, 0xabc, "k"), content(1, 0xabd, "k"), content(1, 0xabc, "l")];
        assert!(others.iter().all(|o| *o != value));
        assert_eq!(writer_of(b"short"), None);
        assert_eq!(writer_of(b"not a number at all"), None);
    }

    #[tokio::test]
    async fn deleted_keys_are_never_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::create(&dir.path().join("l")).unwrap();
        let work = Workload::new(Clock::start(), ledger, 3, 0);
        let (mut deleted, mut puts) = (BTreeSet::new(), 0);
        for id in 1..5000 {
            let plan = work.plan(id);
            for one in &plan {
                match one {
                    Plan::Put(key) => {
                        puts += 1;
                        assert!(!deleted.contains(key), "{key}");
                    }
                    Plan::Delete(key) => assert!(deleted.insert(key.clone()), "{key} is deleted twice"),
                    Plan::DeleteRange(..) => panic!("no client removes ranges"),
                }
            }
            work.acknowledged(id, &plan);
        }
        assert!(deleted.len() > 300 && puts > 4000, "{} deletes, {puts} puts", deleted.len());
    }
}
