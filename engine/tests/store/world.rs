//! A store on a simulated disk beside its model: the list of all records ever appended.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mainstay_engine::batch::{Batch, Condition, Expect, Keyspace, Op, ops};
use mainstay_engine::bulk::{Place, TableWriter};
use mainstay_engine::clock::SimClock;
use mainstay_engine::env::SimFatal;
use mainstay_engine::exec::Progress;
use mainstay_engine::fs::sim::SimFs;
use mainstay_engine::store::{Durability, Identity, Store};
use mainstay_engine::tree::ReadOnly;
use mainstay_engine::value::Value;
use mainstay_engine::{ClusterId, CommitTs, Env, Error, Lsn, Options, Result, TimelineId};

use crate::reads::{Held, Read, read_spaces};
use crate::tails::{Tail, Upto};

pub(crate) const DIR: &str = "/data";
/// Where tables to be ingested are written.
const READY: &str = "/ready";

/// Keys of a keyspace with version and value as a reader sees them.
pub(crate) type State = BTreeMap<Vec<u8>, (Lsn, Vec<u8>)>;

/// That of each keyspace which holds something.
pub(crate) type Spaces = BTreeMap<Keyspace, State>;

/// What the model writes to: the first two keyspaces, which stand side by side, and the last one, behind which no key is.
pub(crate) const SPACES: [Keyspace; 3] = [Keyspace::SYSTEM, Keyspace::USER, Keyspace(u8::MAX)];

/// The kinds of condition.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Want {
    Exists,
    Absent,
    Version,
    Value,
}

/// A condition of a trace: on a key, and whether its right-hand side is what the model says or something else.
pub(crate) type If = (Want, Keyspace, u8, bool);

/// What a step of a trace does.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    Put(Keyspace, Vec<(u8, u16)>),
    Delete(Keyspace, u8),
    /// To the keyspace's end where the second key is the lowest there is.
    DeleteRange(Keyspace, u8, u8),
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
    /// An embedded write: commits itself, and everything before it.
    Write(Durability, Vec<(u8, u16)>, Option<If>),
    /// The same, submitted; there is no thread, so the call completes it.
    Submit(Durability, Vec<(u8, u16)>, Option<If>),
    /// An append under a condition, which is judged with everything appended before it.
    PutIf(Vec<(u8, u16)>, If),
    /// Ready tables, made of these puts and copied or linked: one record that commits itself, and everything before it.
    Ingest(Vec<(u8, u16)>, Place),
    /// One bounded piece of maintenance.
    Step,
    /// So many microseconds pass.
    Pass(u16),
    Read(Read),
    /// Holds the log from one of its records on, with a reader there.
    Slot(u16),
    /// One of the slots goes up to so many records below what its reader has.
    Advance(u8, u8),
    /// One of the readers goes on, by so many bytes.
    Tail(u8, Upto, usize),
    /// So many steps of the scrub, or all that are left of a pass.
    Scrub(Option<u8>),
}

impl Act {
    fn name(&self) -> &'static str {
        match self {
            Act::Put(Keyspace::USER, _) => "put",
            Act::Put(..) => "put elsewhere",
            Act::Delete(Keyspace::USER, _) => "delete",
            Act::Delete(..) => "delete elsewhere",
            Act::DeleteRange(Keyspace::USER, ..) => "delete range",
            Act::DeleteRange(..) => "delete range elsewhere",
            Act::Expiring(..) => "expiring",
            Act::Sync => "sync",
            Act::Commit => "commit",
            Act::Apply => "apply",
            Act::Maintain => "maintain",
            Act::Freeze => "freeze",
            Act::Cut(_) => "cut",
            Act::Checkpoint => "checkpoint",
            Act::Write(Durability::Synced, ..) => "write synced",
            Act::Write(Durability::Written, ..) => "write written",
            Act::Write(Durability::Buffered, ..) => "write buffered",
            Act::Submit(Durability::Synced, ..) => "submit synced",
            Act::Submit(Durability::Written, ..) => "submit written",
            Act::Submit(Durability::Buffered, ..) => "submit buffered",
            Act::PutIf(..) => "put if",
            Act::Ingest(..) => "ingest",
            Act::Step => "step",
            Act::Pass(_) => "pass",
            Act::Read(Read::Get(..)) => "get",
            Act::Read(Read::MultiGet(..)) => "multi-get",
            Act::Read(Read::Range { reverse: false, .. }) => "range",
            Act::Read(Read::Range { reverse: true, .. }) => "range reverse",
            Act::Read(Read::Prefix { reverse: false, .. }) => "prefix",
            Act::Read(Read::Prefix { reverse: true, .. }) => "prefix reverse",
            Act::Read(Read::AtLsn(_)) => "at LSN",
            Act::Read(Read::AtTime(_)) => "at time",
            Act::Read(Read::HoldScan { reverse: false, .. }) => "hold scan",
            Act::Read(Read::HoldScan { reverse: true, .. }) => "hold scan reverse",
            Act::Read(Read::FinishScan) => "finish scan",
            Act::Read(Read::HoldView) => "hold view",
            Act::Read(Read::CheckView) => "check view",
            Act::Slot(_) => "slot",
            Act::Advance(..) => "advance",
            Act::Tail(..) => "tail",
            Act::Scrub(_) => "scrub",
        }
    }
}

pub(crate) struct World {
    pub(crate) fs: Arc<SimFs>,
    pub(crate) env: Env,
    pub(crate) fatal: SimFatal,
    pub(crate) store: Option<Store>,
    pub(crate) options: Options,
    clock: Arc<SimClock>,
    /// Body and commit timestamp of record `i + 1`.
    pub(crate) records: Vec<(Vec<u8>, CommitTs)>,
    /// Acknowledged as durable: must survive anything.
    pub(crate) durable: usize,
    /// Handed to the operating system: must survive a kill.
    pub(crate) written: usize,
    /// Committed: must never be cut.
    pub(crate) committed: usize,
    checkpoints: u32,
    /// The highest commit timestamp ever given.
    pub(crate) newest_ts: CommitTs,
    pub(crate) held: Held,
    pub(crate) tails: Vec<Tail>,
    /// What was done, and what came of it.
    pub(crate) counts: BTreeMap<&'static str, u64>,
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
        fs.prepare_dir(Path::new(READY)).unwrap();
        let clock = SimClock::new(CommitTs(1_000_000));
        let (env, fatal) = Env::sim(Arc::clone(&fs), Arc::<SimClock>::clone(&clock), seed);
        Self {
            fs,
            env,
            fatal,
            store: None,
            options: Options::tiny(),
            clock,
            records: Vec::new(),
            durable: 0,
            written: 0,
            committed: 0,
            checkpoints: 0,
            newest_ts: CommitTs(0),
            held: Held::default(),
            tails: Vec::new(),
            counts: BTreeMap::new(),
        }
    }

    pub(crate) fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn append(&mut self, batch: &Batch) -> Result<()> {
        let epoch = self.store().log().last().epoch;
        self.store().append(epoch, batch, &[])?;
        self.note(batch);
        Ok(())
    }

    /// Takes the record over that was just appended.
    fn note(&mut self, batch: &Batch) {
        let last = self.store().log().last();
        assert_eq!(last.lsn, Lsn(self.records.len() as u64 + 1));
        let mut body = Vec::new();
        batch.encode(&mut body);
        self.newest_ts = self.newest_ts.max(last.ts);
        self.records.push((body, last.ts));
    }

    fn puts(space: Keyspace, pairs: &[(u8, u16)]) -> Result<Batch> {
        let mut batch = Batch::new();
        for (k, v) in pairs {
            batch.put_with(space, &key(*k), &Value::plain(&value(*k, *v)))?;
        }
        Ok(batch)
    }

    /// The condition, and whether it holds behind everything appended.
    fn condition(&mut self, (want, keyspace, k, as_it_is): If) -> (Condition, bool) {
        let key = key(k);
        // The time that the next record gets at the earliest; a look at the clock moves it on by one.
        let last = self.records.last().map_or(0, |r| r.1.0);
        let now = CommitTs(self.env.clock.wall().0.saturating_add(1).max(last + 1));
        let current = self.state(self.records.len(), now).get_mut(&keyspace).and_then(|s| s.remove(&key));
        let known = current.is_some();
        let (lsn, data) = current.unwrap_or_else(|| (Lsn(1), b"nothing".to_vec()));
        let expect = match want {
            Want::Exists => Expect::Exists,
            Want::Absent => Expect::Absent,
            Want::Version => Expect::Version(if as_it_is { lsn } else { lsn.next() }),
            Want::Value => Expect::Value(if as_it_is { data } else { b"something else".to_vec() }),
        };
        let holds = match want {
            Want::Exists => known,
            Want::Absent => !known,
            Want::Version | Want::Value => known && as_it_is,
        };
        self.count(match (want, holds) {
            (Want::Exists, true) => "exists: held",
            (Want::Exists, false) => "exists: refused",
            (Want::Absent, true) => "absent: held",
            (Want::Absent, false) => "absent: refused",
            (Want::Version, true) => "version: held",
            (Want::Version, false) => "version: refused",
            (Want::Value, true) => "value: held",
            (Want::Value, false) => "value: refused",
        });
        (Condition { keyspace, key, expect }, holds)
    }

    /// `put` must refuse if the condition does not hold, and nothing else may have happened then.
    fn under(
        &mut self,
        condition: Option<If>,
        batch: &Batch,
        put: impl FnOnce(&Store, &[Condition]) -> Result<()>,
    ) -> Result<bool> {
        let judged = condition.map(|c| self.condition(c));
        let conditions: Vec<Condition> = judged.iter().map(|(c, _)| c.clone()).collect();
        let holds = judged.is_none_or(|(_, holds)| holds);
        let done = put(self.store(), &conditions);
        let appended = self.store().log().last().lsn.0 as usize > self.records.len();
        match done {
            Err(Error::ConditionFailed(c)) => {
                assert!(!holds && !appended, "refused by {c:?}, appended: {appended}");
                Ok(false)
            }
            other => {
                assert!(holds, "not refused by {conditions:?}");
                if appended {
                    self.note(batch);
                }
                other.map(|()| true)
            }
        }
    }

    fn write(
        &mut self,
        durability: Durability,
        pairs: &[(u8, u16)],
        condition: Option<If>,
        write: impl FnOnce(&Store, &Batch, &[Condition]) -> Result<()>,
    ) -> Result<()> {
        let batch = Self::puts(Keyspace::USER, pairs)?;
        let done = self.under(condition, &batch, |s, c| write(s, &batch, c));
        // Weaker writes commit what came before also when they are refused themselves.
        self.committed = self.committed.max(self.store().committed().get().0 as usize);
        if done? {
            let all = self.records.len();
            (self.committed, self.written) = (all, if durability == Durability::Buffered { self.written } else { all });
            self.durable = if durability == Durability::Synced { all } else { self.durable };
            assert_eq!(self.store().view().lsn(), Lsn(all as u64), "visible on return");
        }
        Ok(())
    }

    fn ingest(&mut self, pairs: &[(u8, u16)], place: Place) -> Result<()> {
        let pairs: BTreeMap<Vec<u8>, (u8, u16)> = pairs.iter().map(|(k, v)| (key(*k), (*k, *v))).collect();
        let (mut batch, mut tables) = (Batch::new(), Vec::new());
        // A table of its own for each, so that several keys are several tables.
        for (key, (k, v)) in pairs {
            let expiry = (v % 5 == 0).then(|| CommitTs(self.newest_ts.0 + u64::from(v % 50)));
            let data = value(k, v);
            let value = Value { expiry, metadata: &[], data: &data };
            batch.put_with(Keyspace::USER, &key, &value)?;
            let mut writer = TableWriter::new(self.env.clone(), Path::new(READY), &self.options);
            writer.put(Keyspace::USER, &key, &value)?;
            // No store depends on the table yet: a sync that finds no room is a full disk like any other.
            let ready = writer.finish().map_err(|e| match e {
                Error::Io { action, path, source } => Error::io(action, &path, source),
                e => e,
            });
            tables.extend(ready?.into_iter().map(|t| t.path));
        }
        let done = self.store().ingest(&tables, place);
        self.committed = self.committed.max(self.store().committed().get().0 as usize);
        if self.store().log().last().lsn.0 as usize > self.records.len() {
            self.note(&batch);
        }
        done?;
        let all = self.records.len();
        (self.committed, self.written, self.durable) = (all, all, all);
        assert_eq!(self.store().view().lsn(), Lsn(all as u64), "visible on return");
        Ok(())
    }

    pub(crate) fn act(&mut self, act: &Act) -> Result<()> {
        self.count(act.name());
        let mut batch = Batch::new();
        match act {
            Act::Put(space, pairs) => self.append(&Self::puts(*space, pairs)?)?,
            Act::Delete(space, k) => {
                batch.delete_in(*space, &key(*k))?;
                self.append(&batch)?;
            }
            Act::DeleteRange(space, a, b) => {
                let (a, b) = (key(*a), key(*b));
                let end = if b == key(0) { &[][..] } else { &b };
                // A put before and one after: the order within a batch decides.
                batch.put_with(*space, &a, &Value::plain(b"gone"))?;
                if end.is_empty() || a < b {
                    batch.delete_range_in(*space, &a, end)?;
                }
                batch.put_with(*space, &b, &Value::plain(b"stays"))?;
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
                (self.durable, self.written) = (all, all);
            }
            Act::Commit => {
                self.store().set_committed(Lsn(self.durable as u64));
                self.committed = self.committed.max(self.durable);
            }
            Act::Apply => self.store().apply_committed()?,
            Act::Maintain => while self.store().maintain_step()? == Progress::Worked {},
            Act::Freeze => self.store().tree().freeze(),
            Act::Cut(n) => self.cut(usize::from(*n))?,
            Act::Checkpoint => self.checkpoint()?,
            Act::Write(durability, pairs, condition) => {
                self.write(*durability, pairs, *condition, |s, b, c| s.write(b, c, *durability).map(drop))?;
            }
            Act::Submit(durability, pairs, condition) => {
                self.write(*durability, pairs, *condition, |s, b, c| {
                    let completion = s.submit(b, c, *durability)?;
                    assert!(completion.outcome().is_some(), "nobody else would complete it");
                    completion.wait().map(drop)
                })?;
            }
            Act::PutIf(pairs, condition) => {
                let (batch, epoch) = (Self::puts(Keyspace::USER, pairs)?, self.store().log().last().epoch);
                self.under(Some(*condition), &batch, |s, c| s.append(epoch, &batch, c).map(drop))?;
            }
            Act::Ingest(pairs, place) => self.ingest(pairs, *place)?,
            Act::Step => drop(self.store().maintain_step()?),
            Act::Pass(us) => self.clock.advance(Duration::from_micros(u64::from(*us))),
            Act::Read(read) => self.read(read)?,
            Act::Slot(n) => self.slot(*n)?,
            Act::Advance(n, short) => self.advance(*n, *short),
            Act::Tail(n, upto, bytes) => self.tail(*n, *upto, *bytes)?,
            Act::Scrub(steps) => self.scrub(*steps),
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
                self.written = self.written.min(keep);
                self.tails.iter_mut().for_each(|t| t.note_cut(keep));
                Ok(())
            }
            Err(Error::BelowCommit { .. }) if keep < self.committed => Ok(()),
            Err(e) => {
                // Cut or not cut, either is legal from here on.
                self.tails.clear();
                self.durable = self.durable.min(keep);
                self.written = self.written.min(keep);
                Err(e)
            }
        }
    }

    fn checkpoint(&mut self) -> Result<()> {
        self.checkpoints += 1;
        let to = Path::new(DIR).join(format!("checkpoint-{}", self.checkpoints));
        let made = self.store().checkpoint(&to)?;
        let tree = ReadOnly::open(self.env.clone(), &to, &self.options)?;
        let at = usize::try_from(made.position.lsn.0).unwrap();
        assert_eq!(tree.position(), made.position);
        assert_eq!(read_spaces(&tree.view())?, self.at(at), "checkpoint at {at}");
        let floor = usize::try_from(tree.history_floor().0).unwrap();
        let older = floor + (at - floor) / 2;
        assert_eq!(
            read_spaces(&tree.view_at(Lsn(older as u64))?)?,
            self.at(older),
            "checkpoint at {at}, as of {older}"
        );
        // What is in it was made durable first.
        self.durable = self.durable.max(at);
        self.written = self.written.max(at);
        Ok(())
    }

    /// The model's state after `n` records.
    pub(crate) fn at(&self, n: usize) -> Spaces {
        self.state(n, if n == 0 { CommitTs(0) } else { self.records[n - 1].1 })
    }

    /// The model's state after `n` records as a read at the commit time `now` sees it.
    fn state(&self, n: usize, now: CommitTs) -> Spaces {
        let mut spaces = Spaces::new();
        for (lsn, (body, _)) in (1..).map(Lsn).zip(&self.records[..n]) {
            for op in ops(body) {
                let op = op.unwrap();
                let (Op::Put { keyspace, .. } | Op::Delete { keyspace, .. } | Op::DeleteRange { keyspace, .. }) = op;
                let state = spaces.entry(keyspace).or_default();
                match op {
                    Op::Put { key, envelope, .. } => drop(state.insert(key.to_vec(), (lsn, envelope.to_vec()))),
                    Op::Delete { key, .. } => drop(state.remove(key)),
                    Op::DeleteRange { start, end, .. } => {
                        state.retain(|k, _| k.as_slice() < start || (!end.is_empty() && k.as_slice() >= end));
                    }
                }
            }
        }
        let plain = |e: Vec<u8>| Value::decode(&e).ok().filter(|v| !v.expired_at(now)).map(|v| v.data.to_vec());
        for state in spaces.values_mut() {
            let all = std::mem::take(state).into_iter();
            *state = all.filter_map(|(k, (lsn, e))| plain(e).map(|v| (k, (lsn, v)))).collect();
        }
        spaces.retain(|_, state| !state.is_empty());
        spaces
    }

    /// What readers see must be the model's state at the applied LSN, which is committed [I2].
    pub(crate) fn check_visible(&self) {
        let view = self.store().view();
        let at = usize::try_from(view.lsn().0).unwrap();
        assert!(at <= self.committed, "LSN {at} is visible, only {} is committed", self.committed);
        assert_eq!(read_spaces(&view).unwrap(), self.at(at), "visible state at LSN {at}");
    }

    /// Opens the store after a crash; the log must end at one legal LSN, and the state be the model's there.
    pub(crate) fn reopen(&mut self) {
        self.reopen_with(self.durable);
    }

    /// As [`World::reopen`], when at least so many records must have survived.
    pub(crate) fn reopen_with(&mut self, kept: usize) {
        self.tails.clear();
        (self.store, self.held) = (None, Held::default());
        let store = match Store::open_embedded(self.env.clone(), Path::new(DIR), &self.options) {
            Ok(store) => store,
            Err(e) => panic!("the store does not open: {e}"),
        };
        let last = usize::try_from(store.log().last().lsn.0).unwrap();
        assert!(
            (kept..=self.records.len()).contains(&last),
            "recovered {last}, but {kept} must have survived and {} were appended",
            self.records.len()
        );
        if last < self.records.len() {
            self.count("lost a tail");
        }
        self.records.truncate(last);
        (self.durable, self.written, self.committed) = (last, last, last);
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
