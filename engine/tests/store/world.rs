//! A store on a simulated disk beside its model: the list of all records ever appended.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use mainstay_engine::batch::{Batch, Keyspace, Op, ops};
use mainstay_engine::clock::SimClock;
use mainstay_engine::env::SimFatal;
use mainstay_engine::exec::Progress;
use mainstay_engine::fs::sim::SimFs;
use mainstay_engine::store::{Identity, Store};
use mainstay_engine::tree::View;
use mainstay_engine::value::Value;
use mainstay_engine::{ClusterId, CommitTs, Env, Error, Lsn, Options, Result, TimelineId};

pub(crate) const DIR: &str = "/data";

/// Keys and values as a reader sees them.
pub(crate) type State = BTreeMap<Vec<u8>, Vec<u8>>;

/// What a step of a trace does.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    Put(Vec<(u8, u16)>),
    Delete(u8),
    DeleteRange(u8, u8),
    Expiring(u8, u16),
    Sync,
    /// Commits everything durable.
    Commit,
    Apply,
    Maintain,
    Freeze,
    /// Cuts this many uncommitted records.
    Cut(u8),
    Checkpoint,
}

pub(crate) struct World {
    pub(crate) fs: Arc<SimFs>,
    pub(crate) env: Env,
    pub(crate) fatal: SimFatal,
    pub(crate) store: Option<Store>,
    options: Options,
    /// Body and commit timestamp of record `i + 1`.
    pub(crate) records: Vec<(Vec<u8>, CommitTs)>,
    /// Acknowledged as durable: must survive anything.
    pub(crate) durable: usize,
    /// Committed: must never be cut.
    pub(crate) committed: usize,
    checkpoints: u32,
}

pub(crate) fn key(k: u8) -> Vec<u8> {
    format!("key-{:03}", k % 24).into_bytes()
}

fn value(k: u8, v: u16) -> Vec<u8> {
    let mut out = format!("value-{k}-{v}-").into_bytes();
    out.resize(out.len() + usize::from(v % 200), b'v');
    out
}

impl World {
    /// An empty store.
    pub(crate) fn new(seed: u64) -> Self {
        Self::with_options(seed, Options::tiny())
    }

    /// An empty store of other sizes.
    pub(crate) fn with_options(seed: u64, options: Options) -> Self {
        let mut world = Self { options, ..Self::without_store(seed) };
        let identity = Identity { cluster: ClusterId(7), timeline: TimelineId(9) };
        world.store = Some(Store::create(world.env.clone(), Path::new(DIR), &world.options, identity).unwrap());
        world
    }

    /// A disk on which no store was made yet.
    pub(crate) fn without_store(seed: u64) -> Self {
        let fs = SimFs::new(seed);
        fs.prepare_dir(Path::new(DIR)).unwrap();
        let (env, fatal) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1_000_000)), seed);
        let options = Options::tiny();
        Self { fs, env, fatal, store: None, options, records: vec![], durable: 0, committed: 0, checkpoints: 0 }
    }

    pub(crate) fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn append(&mut self, batch: &Batch) -> Result<()> {
        let epoch = self.store().log().last().epoch;
        let position = self.store().append(epoch, batch, &[])?;
        assert_eq!(position.lsn, Lsn(self.records.len() as u64 + 1));
        let mut body = Vec::new();
        batch.encode(&mut body);
        self.records.push((body, position.ts));
        Ok(())
    }

    pub(crate) fn act(&mut self, act: &Act) -> Result<()> {
        let mut batch = Batch::new();
        match act {
            Act::Put(pairs) => {
                for (k, v) in pairs {
                    batch.put(&key(*k), &value(*k, *v))?;
                }
                self.append(&batch)?;
            }
            Act::Delete(k) => {
                batch.delete(&key(*k))?;
                self.append(&batch)?;
            }
            Act::DeleteRange(a, b) => {
                let (a, b) = (key(*a), key(*b));
                // A put before and one after: the order within a batch decides.
                batch.put(&a, b"gone")?;
                if a < b {
                    batch.delete_range(&a, &b)?;
                }
                batch.put(&b, b"stays")?;
                self.append(&batch)?;
            }
            Act::Expiring(k, v) => {
                let at = self.records.last().map_or(1_000_000, |r| r.1.0) + u64::from(v % 50);
                batch.put_expiring(&key(*k), &value(*k, *v), CommitTs(at))?;
                self.append(&batch)?;
            }
            Act::Sync => {
                let all = self.records.len();
                self.store().log().sync_to(Lsn(all as u64))?;
                self.durable = all;
            }
            Act::Commit => {
                self.store().set_committed(Lsn(self.durable as u64));
                self.committed = self.durable;
            }
            Act::Apply => self.store().apply_committed()?,
            Act::Maintain => while self.store().maintain_step()? == Progress::Worked {},
            Act::Freeze => self.store().tree().freeze(),
            Act::Cut(n) => self.cut(usize::from(*n))?,
            Act::Checkpoint => self.checkpoint()?,
        }
        Ok(())
    }

    fn cut(&mut self, n: usize) -> Result<()> {
        let keep = self.records.len().saturating_sub(n);
        match self.store().truncate_above(Lsn(keep as u64)) {
            Ok(_) => {
                assert!(keep >= self.committed, "cut {keep} below the commit LSN {}", self.committed);
                self.records.truncate(keep);
                self.durable = self.durable.min(keep);
                Ok(())
            }
            Err(Error::BelowCommit { .. }) if keep < self.committed => Ok(()),
            Err(e) => {
                // Cut or not cut, either is legal from here on.
                self.durable = self.durable.min(keep);
                Err(e)
            }
        }
    }

    fn checkpoint(&mut self) -> Result<()> {
        self.checkpoints += 1;
        let to = Path::new(DIR).join(format!("checkpoint-{}", self.checkpoints));
        let made = self.store().checkpoint(&to)?;
        let tree = mainstay_engine::tree::Tree::open(self.env.clone(), &to, &self.options)?;
        let at = usize::try_from(made.position.lsn.0).unwrap();
        assert_eq!(read(&tree.view())?, self.at(at), "checkpoint at {at}");
        Ok(())
    }

    /// The model's state after `n` records.
    pub(crate) fn at(&self, n: usize) -> State {
        let mut state: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        for (body, _) in &self.records[..n] {
            for op in ops(body) {
                match op.unwrap() {
                    Op::Put { key, envelope, .. } => drop(state.insert(key.to_vec(), envelope.to_vec())),
                    Op::Delete { key, .. } => drop(state.remove(key)),
                    Op::DeleteRange { start, end, .. } => {
                        state.retain(|k, _| k.as_slice() < start || (!end.is_empty() && k.as_slice() >= end));
                    }
                }
            }
        }
        let now = if n == 0 { CommitTs(0) } else { self.records[n - 1].1 };
        let plain = |e: Vec<u8>| Value::decode(&e).ok().filter(|v| !v.expired_at(now)).map(|v| v.data.to_vec());
        state.into_iter().filter_map(|(k, e)| plain(e).map(|v| (k, v))).collect()
    }

    /// What readers see must be the model's state at the applied LSN, which is committed [I2].
    pub(crate) fn check_visible(&self) {
        let view = self.store().view();
        let at = usize::try_from(view.lsn().0).unwrap();
        assert!(at <= self.committed, "LSN {at} is visible, only {} is committed", self.committed);
        assert_eq!(read(&view).unwrap(), self.at(at), "visible state at LSN {at}");
    }

    /// Opens the store after a crash or kill; the log must end at one legal LSN, and the state be
    /// the model's there.
    pub(crate) fn reopen(&mut self) {
        self.store = None;
        let store = match Store::open(self.env.clone(), Path::new(DIR), &self.options) {
            Ok(store) => store,
            Err(e) => panic!("the store does not open: {e}"),
        };
        let last = usize::try_from(store.log().last().lsn.0).unwrap();
        assert!(
            (self.durable..=self.records.len()).contains(&last),
            "recovered {last}, but {} was durable and {} appended",
            self.durable,
            self.records.len()
        );
        self.records.truncate(last);
        (self.durable, self.committed) = (last, last);
        store.set_committed(Lsn(last as u64));
        store.apply_committed().unwrap();
        self.store = Some(store);
        assert_eq!(self.store().view().lsn(), Lsn(last as u64));
        self.check_visible();
    }

    /// After a failed call: power off, power on, recovery.
    pub(crate) fn recover_from(&mut self, what: &dyn std::fmt::Display) {
        let _ = what;
        self.store = None;
        self.fs.clear_faults();
        self.fs.crash();
        let _ = self.fatal.take();
        self.reopen();
    }
}

pub(crate) fn read(view: &View) -> Result<State> {
    let forward: Vec<(Vec<u8>, Vec<u8>)> = collect(view, false)?;
    let mut backward = collect(view, true)?;
    backward.reverse();
    assert_eq!(forward, backward, "the two directions of a scan differ");
    for (k, v) in &forward {
        let found = view.get(Keyspace::USER, k)?.expect("a scanned key is found by get");
        assert_eq!(Value::decode(&found.envelope)?.data, v);
    }
    Ok(forward.into_iter().collect())
}

fn collect(view: &View, reverse: bool) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    view.scan(Keyspace::USER, &[], &[], reverse)
        .map(|e| e.and_then(|e| Ok((e.key.clone(), Value::decode(&e.envelope)?.data.to_vec()))))
        .collect()
}
