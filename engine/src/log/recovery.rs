//! Recovery: what of the log survived, and whether what did not was a torn tail or damage \[I4\].
//!
//! Owns: the one decision that matters after a crash. A record that fails its checks at LSN x is a
//! torn tail only if nothing says that x was durable: no later frame, no header of a later segment,
//! not the caller. Otherwise it is corruption, and nothing on disk is changed. Never: guessing,
//! skipping a record.
//!
//! Of segments that hold nothing but what is in the tables only the headers are read: opening takes as long as the
//! log behind the tables is, and not longer because readers hold older log. Behind the end of the newest segment
//! there may be frames of an older use of its file: their salt says so. A group is written with a few zeros behind
//! it, so whatever else stands at the end is a write that did not come to its own.
//!
//! Everything that only the page cache may hold (after a failed sync ended the last process) is
//! written again before it is called durable.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, OnceLock};

use super::ahead::Ahead;
use super::files::{Candidate, expected_salt, find, find_record, read_first, torn_len};
use super::gate::Gate;
use super::segment::{self, Blank, FRAMES_AT, Found, Header, Segment};
use super::sink::Sink;
use super::slots::Slots;
use super::tail::Tail;
use super::truncate::{self, INTENT, Intent};
use super::writer::{Head, Prepare, new_salt};
use super::{Log, Shared, frame};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::fault::{Bug, planted};
use crate::fs::File;
use crate::limits::{Options, SEGMENT_BYTES_MAX};
use crate::lsn::{Lsn, Position};
use crate::open_files::FileWait;
use crate::record::Record;
use crate::watermark::Watermark;

/// What recovery found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Where the log ends; all of it is durable now.
    pub end: Position,
    /// The lowest LSN that can be read.
    pub oldest: Lsn,
    /// Records read: those behind the tables, and those before them in the same segment.
    pub records: u64,
    /// Bytes of unfinished writes behind the end, if there were any.
    pub torn: Option<TornTail>,
    /// A cut that a crash had interrupted was finished.
    pub finished_cut: bool,
    /// There was no log: the first segment was made.
    pub created: bool,
}

/// Bytes of unfinished writes, now zeroed. Nothing in them was ever acknowledged as durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The segment.
    pub path: PathBuf,
    /// Where the log ends in it, in bytes.
    pub offset: u64,
    /// Bytes from there to the end of the last frame of this segment, or of what stands where its end should be.
    pub bytes: u64,
    /// The LSN that the first record lost would have had.
    pub lsn: Lsn,
}

pub(super) fn open(
    env: &Env,
    dir: &Path,
    options: &Options,
    known_durable: Lsn,
    base: Position,
) -> Result<(Log, Recovered)> {
    let log_dir = dir.join("log");
    env.fs.create_dir_all(&log_dir).map_err(|e| Error::io("create", &log_dir, e))?;
    env.fs.sync_dir(dir).map_err(|source| Error::Io { action: "sync", path: dir.to_owned(), source })?;
    let names = env.fs.list(&log_dir).map_err(|e| Error::io("list", &log_dir, e))?;
    let found = find(env, &log_dir, &names)?;
    let mut walk = Walk::new(env, &log_dir, base, read_intent(env, &log_dir)?);
    walk.segments(found)?;
    walk.judge(known_durable.max(base.lsn))?;
    walk.spares = names.iter().filter(|n| segment::is_spare_name(n)).map(|n| log_dir.join(n)).collect();
    walk.repair(options, dir)
}

/// Most released segments kept to be used again: so many as a flush lets go at once, for a record may take twice as
/// much room in the log as in a memtable. Not fewer than two, not more than eight.
fn spares_max(options: &Options, segment_bytes: u64) -> usize {
    let flushed = (options.memtable_bytes as u64).saturating_mul(2).div_ceil(segment_bytes.max(1));
    usize::try_from(flushed).unwrap_or(usize::MAX).clamp(2, 8)
}

/// A log that is longer behind the tables than so many memtables, or segments, holds much that fills no memtable.
const LONG_MEMTABLES: u64 = 4;

fn read_intent(env: &Env, log_dir: &Path) -> Result<Option<Intent>> {
    let path = log_dir.join(INTENT);
    if !env.fs.exists(&path).map_err(|e| Error::io("look for", &path, e))? {
        return Ok(None);
    }
    let bytes = crate::fs::read_file(&*env.fs, &path, 4096).map_err(|e| Error::io("read", &path, e))?;
    // It was synced before it got its name.
    Intent::decode(&bytes).map(Some).map_err(|e| Error::corruption(&path, 0, None, e.to_string()))
}

/// A segment with a readable header.
struct Walked {
    path: PathBuf,
    file: Arc<dyn File>,
    header: Header,
    index: Vec<(Lsn, u64)>,
    /// Where the frames that continue the log end.
    end: u64,
    /// Its frames were not looked at.
    by_header: bool,
}

struct Walk<'a> {
    env: &'a Env,
    log_dir: &'a Path,
    base: Position,
    intent: Option<Intent>,
    /// Where the intent's position was met: segment (by its place in `walked`) and offset.
    cut_at: Option<(usize, u64)>,
    cut_is_live: bool,
    walked: Vec<Walked>,
    /// First number missing between files. Fine if no segment of the log is behind it: removals of
    /// unused ones may get to the disk in any order.
    missing: Option<u64>,
    /// Segments whose header was never written, and those above a cut.
    unused: Vec<PathBuf>,
    /// Segments before a hole that releasing the log left.
    released: Vec<PathBuf>,
    /// Released segments that wait to be used again.
    spares: Vec<PathBuf>,
    /// Bytes of the last of `walked`.
    last_bytes: Vec<u8>,
    end: Position,
    records: u64,
    /// The highest LSN that something in the log says was durable.
    evidence: Lsn,
    /// Frames of the last segment above `evidence`: LSN and offset.
    unproven: VecDeque<(Lsn, u64)>,
    /// The log's position at `base.lsn` was met and is another one.
    other_history: bool,
}

/// What a frame holds.
enum After {
    Record(Position),
    /// A mark.
    Mark,
    /// The first record that was being cut.
    Cut,
}

impl<'a> Walk<'a> {
    fn new(env: &'a Env, log_dir: &'a Path, base: Position, intent: Option<Intent>) -> Self {
        Self {
            env,
            log_dir,
            base,
            intent,
            cut_at: None,
            cut_is_live: false,
            walked: Vec::new(),
            missing: None,
            unused: Vec::new(),
            released: Vec::new(),
            spares: Vec::new(),
            last_bytes: Vec::new(),
            end: base,
            records: 0,
            evidence: Lsn::ZERO,
            unproven: VecDeque::new(),
            other_history: false,
        }
    }

    fn segments(&mut self, found: Vec<Candidate>) -> Result<()> {
        // The segment that the tables end in: those before it are in the tables, record for record.
        let base = self.base.lsn;
        let is_older = |c: &Candidate| matches!(c.header, Found::Header(h) if h.base.lsn <= base);
        let needed = found.iter().rev().find(|c| is_older(c)).map_or(0, |c| c.seq);
        let mut expected = None;
        for candidate in found {
            let seq = candidate.seq;
            if self.missing.is_none() && expected.is_some_and(|e| e != seq) {
                self.missing = expected;
                // Removing the segments above a cut had begun.
                self.cut_is_live |= self.at_cut();
            }
            let Some(next) = seq.checked_add(1) else {
                let what = "no log gets as far as this number: the file is not this node's; move it away";
                return Err(Error::Directory { path: candidate.path, what: what.into() });
            };
            expected = Some(next);
            if self.cut_is_live {
                self.unused.push(candidate.path);
                continue;
            }
            let path = candidate.path.clone();
            match self.segment(candidate, seq < needed) {
                // A cut was decided and begun: what does not fit behind it is its doing.
                Err(Error::Corruption { .. }) if self.at_cut() => {
                    self.cut_is_live = true;
                    if self.walked.last().is_none_or(|w| w.header.seq != seq) {
                        self.unused.push(path);
                    }
                }
                other => other?,
            }
        }
        // No record behind the intent's position at all: the cut was begun and not finished.
        self.cut_is_live |= self.at_cut();
        Ok(())
    }

    /// Whether the log walked so far ends where the intent says it was to be cut.
    fn at_cut(&self) -> bool {
        self.cut_at.is_some() && self.intent.is_some_and(|i| i.end == self.end)
    }

    /// Takes one more segment; with `by_header` all its records are in the tables, and its header is enough.
    fn segment(&mut self, candidate: Candidate, by_header: bool) -> Result<()> {
        let Candidate { seq, path, file, bytes: len, header } = candidate;
        let header = match header {
            Found::Newer(found) => return Err(Error::Format { path, found, known: 1 }),
            Found::Nothing => return self.headerless(seq, &read_first(&*file, &path, len)?, path),
            Found::Header(h) => h,
        };
        if self.missing.is_some() && header.base.lsn <= self.base.lsn {
            // All before the hole is in the tables: its removal was under way, and names went in any order.
            self.forget_released();
        }
        if let Some(missing) = self.missing {
            let what =
                format!("log segment {missing:016x}.log is missing; restore this node from a replica or a backup");
            return Err(Error::Directory { path: self.log_dir.to_owned(), what });
        }
        if header.seq != seq || header.bytes != len {
            let what = format!(
                "the header speaks of segment {:016x} of {} bytes, the file has {len}",
                header.seq, header.bytes
            );
            return Err(Error::corruption(&path, 0, None, what));
        }
        if let Some(unused) = self.unused.first() {
            let what = "the header is damaged or missing, and a later segment has one";
            return Err(Error::corruption(unused, 0, Some(self.end.lsn.next()), what));
        }
        match self.walked.last() {
            None => self.start(&header)?,
            // Only its header was looked at. This one's says where it ended, within the tables.
            Some(before) if before.by_header && header.base.lsn >= before.header.base.lsn => self.end = header.base,
            // The writer had synced all up to this base before it wrote the header.
            Some(before) if header.base != self.end => {
                let what = format!("records up to LSN {} were durable, the next segment says", header.base.lsn);
                return Err(Error::corruption(&before.path, before.end, Some(self.end.lsn.next()), what));
            }
            Some(_) => {}
        }
        self.evidence = self.evidence.max(header.base.lsn);
        self.unproven.clear();
        if !by_header {
            self.last_bytes = read_first(&*file, &path, len)?;
        }
        self.walked.push(Walked { path, file, header, index: Vec::new(), end: FRAMES_AT, by_header });
        if !by_header {
            self.meet(self.end, FRAMES_AT);
            self.frames();
        }
        Ok(())
    }

    /// Starts again behind a hole: the segments so far are to be removed like those that are gone.
    fn forget_released(&mut self) {
        self.released.append(&mut self.unused);
        self.released.extend(self.walked.drain(..).map(|w| w.path));
        (self.missing, self.cut_at, self.other_history) = (None, None, false);
        (self.records, self.end) = (0, self.base);
    }

    fn start(&mut self, header: &Header) -> Result<()> {
        if header.base.lsn > self.base.lsn {
            let what = format!(
                "the log starts after LSN {}, the tables end at {}: records between are missing; restore this node \
                 from a replica or a backup",
                header.base.lsn, self.base.lsn
            );
            return Err(Error::Directory { path: self.log_dir.to_owned(), what });
        }
        self.end = header.base;
        Ok(())
    }

    /// A file without a header is a segment made ahead, whole or not, and has no frames: the header
    /// is synced before the first one.
    /// (Frames of an older use have records that the log holds or held: it goes on above them.)
    fn headerless(&mut self, seq: u64, mut bytes: &[u8], path: PathBuf) -> Result<()> {
        let before = self.walked.last().map(|w| (w.header.seq, w.header.salt));
        match find_record(&mut bytes, self.end.lsn, expected_salt(before, seq))?.damage() {
            None => {
                self.unused.push(path);
                Ok(())
            }
            Some(what) => Err(Error::corruption(&path, 0, Some(self.end.lsn.next()), what)),
        }
    }

    /// The log stands at `position`, whose next frame is at `offset` of the last segment.
    fn meet(&mut self, position: Position, offset: u64) {
        if self.intent.is_some_and(|i| i.end == position) {
            self.cut_at = self.walked.len().checked_sub(1).map(|i| (i, offset));
        }
        self.other_history |= position.lsn == self.base.lsn && position != self.base;
    }

    /// Follows the frames of the last segment.
    fn frames(&mut self) {
        let bytes = std::mem::take(&mut self.last_bytes);
        let mut at = FRAMES_AT;
        while let Some((next, after)) = self.frame(&bytes, at) {
            match after {
                After::Record(position) => {
                    self.unproven.push_back((position.lsn, at));
                    if let Some(w) = self.walked.last_mut() {
                        segment::index_push(&mut w.index, position.lsn, at);
                    }
                    self.end = position;
                    self.records += 1;
                    self.meet(position, next);
                }
                After::Cut => {
                    self.cut_is_live = true;
                    break;
                }
                After::Mark => {}
            }
            while self.unproven.front().is_some_and(|(lsn, _)| *lsn <= self.evidence) {
                self.unproven.pop_front();
            }
            at = next;
        }
        if let Some(w) = self.walked.last_mut() {
            w.end = at;
        }
        self.last_bytes = bytes;
    }

    /// Checks the frame at `at`. None when it is none, or its record does not continue the log.
    fn frame(&mut self, bytes: &[u8], at: u64) -> Option<(u64, After)> {
        let salt = self.walked.last()?.header.salt;
        let f = frame::decode(bytes.get(usize::try_from(at).ok()?..)?, Some(salt)).ok()?;
        let next = at + f.len as u64;
        if next > bytes.len() as u64 {
            return None;
        }
        if f.record.is_empty() {
            self.evidence = self.evidence.max(f.durable);
            return Some((next, After::Mark));
        }
        let record = Record::decode(f.record).ok()?;
        if record.bytes.len() != f.record.len() || (record.follows(&self.end).is_err() && !planted(Bug::IgnoreChain)) {
            return None;
        }
        if self.at_cut() && self.intent.is_some_and(|i| i.first_cut == record.chain) {
            return Some((at, After::Cut));
        }
        self.evidence = self.evidence.max(f.durable);
        Some((next, After::Record(record.position())))
    }

    /// Torn tail or corruption.
    fn judge(&mut self, known_durable: Lsn) -> Result<()> {
        if self.other_history {
            let what = format!(
                "the log and the tables differ at LSN {}: they are of different histories; restore this node from a \
                 replica or a backup",
                self.base.lsn
            );
            return Err(Error::Directory { path: self.log_dir.to_owned(), what });
        }
        if self.cut_is_live {
            return Ok(());
        }
        if let Some(i) = self.intent
            && self.cut_at.is_none()
            && i.end.lsn >= self.end.lsn
        {
            let what = format!("the log ends at LSN {}, before the place where it was being cut", self.end.lsn);
            return Err(Error::corruption(&self.log_dir.join(INTENT), 0, Some(i.end.lsn), what));
        }
        let Some(last) = self.walked.last() else {
            // Nothing was ever written: `base` may be all there is, but not less than is known.
            return self.check_known(known_durable, &segment::path(self.log_dir, 1), 0);
        };
        let x = self.end.lsn.next();
        let rest = usize::try_from(last.end).ok().and_then(|at| self.last_bytes.get(at..)).unwrap_or_default();
        for at in frame::places(rest, last.header.salt) {
            let found = rest.get(at..).unwrap_or_default();
            if let Some(durable) = frame::evidence(found, last.header.salt)
                && durable >= x
            {
                let offset = last.end + at as u64;
                let what =
                    format!("no valid record here, but the frame at offset {offset} says LSN {durable} was durable");
                return Err(Error::corruption(&last.path, last.end, Some(x), what));
            }
        }
        self.check_known(known_durable.max(self.evidence), &last.path, last.end)
    }

    fn check_known(&self, known: Lsn, path: &Path, offset: u64) -> Result<()> {
        if self.end.lsn >= known {
            return Ok(());
        }
        let what = format!("the log ends at LSN {}, but LSN {known} is known to have been durable", self.end.lsn);
        Err(Error::corruption(path, offset, Some(self.end.lsn.next()), what))
    }

    /// Brings the disk to what was decided and makes it durable, before anything is appended.
    fn repair(mut self, options: &Options, dir: &Path) -> Result<(Log, Recovered)> {
        let finished_cut = self.cut_is_live;
        self.unused.splice(0..0, std::mem::take(&mut self.released));
        if let Some((i, offset)) = self.cut_at.filter(|_| finished_cut) {
            self.unused.splice(0..0, self.walked.split_off(i + 1).into_iter().map(|w| w.path));
            if let Some(w) = self.walked.last_mut() {
                w.end = offset;
                self.last_bytes = read_first(&*w.file, &w.path, w.header.bytes)?;
            }
        }
        let created = self.walked.is_empty();
        // If the last life ended by a failed sync, the disk may still know a spare by its name as a segment, whatever the
        // cache shows: to wipe its header would make damage of a file that is whole.
        for spare in std::mem::take(&mut self.spares) {
            self.env.fs.remove_file(&spare).map_err(|e| Error::io("remove", &spare, e))?;
        }
        let torn = match self.walked.last() {
            Some(last) => self.clean(last)?,
            None => None,
        };
        if created {
            let made = self.create(segment_bytes(options))?;
            self.walked.push(made);
        }
        let recovered = Recovered {
            end: self.end,
            oldest: self.walked.first().map_or(Lsn::MAX, |w| w.header.base.lsn.next()),
            records: self.records,
            torn: torn.filter(|_| !finished_cut),
            finished_cut,
            created,
        };
        Ok((self.into_log(options, dir), recovered))
    }

    /// Removes unused segments and zeroes what stands behind the end; writes again what may be in
    /// the page cache only.
    fn clean(&self, last: &Walked) -> Result<Option<TornTail>> {
        let io = |action, e| Error::io(action, &last.path, e);
        let start = usize::try_from(last.end).unwrap_or(usize::MAX);
        let rest = self.last_bytes.get(start..).unwrap_or_default();
        let dirty = torn_len(rest, last.header.salt);
        last.file.write_all_at(&last.header.encode(), 0).map_err(|e| io("write", e))?;
        if let Some((_, from)) = self.unproven.front()
            && let Some(bytes) = usize::try_from(*from).ok().and_then(|from| self.last_bytes.get(from..start))
        {
            last.file.write_all_at(bytes, *from).map_err(|e| io("write", e))?;
        }
        let place = (&*last.file, last.path.as_path());
        // Zeros of a cut whose sync failed may be in the page cache only, and look like done.
        let to = if self.cut_is_live { last.header.bytes } else { last.end + dirty as u64 };
        let range = (last.end, to);
        truncate::finish(self.env, self.log_dir, self.unused.clone().into_iter(), place, range)?;
        let (path, offset, lsn) = (last.path.clone(), last.end, self.end.lsn.next());
        Ok((dirty > 0).then_some(TornTail { path, offset, bytes: dirty as u64, lsn }))
    }

    /// Makes the first segment.
    fn create(&self, bytes: u64) -> Result<Walked> {
        for path in self.unused.iter().rev() {
            self.env.fs.remove_file(path).map_err(|e| Error::io("remove", path, e))?;
        }
        let mut blank = Blank::create(self.env, self.log_dir, 1, bytes)?;
        while !blank.fill(self.env, self.log_dir)? {}
        let made = blank.into_segment(new_salt(self.env), self.base);
        let header = made.header();
        made.file.write_all_at(&header.encode(), 0).map_err(|e| Error::io("write the header of", &made.path, e))?;
        made.file.sync_data().map_err(|source| Error::Io { action: "sync", path: made.path.clone(), source })?;
        Ok(Walked { path: made.path, file: made.file, header, index: Vec::new(), end: FRAMES_AT, by_header: false })
    }

    fn into_log(self, options: &Options, dir: &Path) -> Log {
        let offset = self.walked.last().map_or(FRAMES_AT, |w| w.end);
        let recovered = |w: Walked| Arc::new(Segment::recovered(w.path, w.file, &w.header, w.index));
        let segments: VecDeque<Arc<Segment>> = self.walked.into_iter().map(recovered).collect();
        #[expect(clippy::expect_used, reason = "`repair` makes a segment when there is none")]
        let newest = Arc::clone(segments.back().expect("a log has a segment"));
        let end = self.end.lsn;
        let next_seq = newest.seq + 1;
        newest.forget_above(end);
        let ahead = Arc::new(Ahead::default());
        let shared = Shared {
            env: self.env.clone(),
            dir: dir.to_owned(),
            log_dir: self.log_dir.to_owned(),
            segment_bytes: segment_bytes(options),
            retained_bytes: options.retained_log_bytes,
            spares_max: spares_max(options, segment_bytes(options)),
            long_bytes: segment_bytes(options).max(options.memtable_bytes as u64).saturating_mul(LONG_MEMTABLES),
            head: Mutex::new(Head::new(self.end, self.evidence, newest, offset)),
            prepare: Mutex::new(Prepare::new(next_seq, VecDeque::new())),
            segments: Mutex::new(segments),
            tail: Mutex::new(Tail::new(end, options.tail_memory_bytes)),
            gate: Gate::of(options),
            slots: Slots::default(),
            releasing: Mutex::default(),
            space: OnceLock::new(),
            segment_file: FileWait::default(),
            appended: Watermark::new(end),
            durable: Watermark::new(end),
            written: AtomicU64::new(end.0),
            pending_bytes: AtomicUsize::new(0),
            cuts: AtomicU64::new(0),
            sink: Mutex::new(Sink::new(&ahead)),
            ahead,
            counters: super::stats::Counters::default(),
            taken: OnceLock::new(),
            stopped: OnceLock::new(),
        };
        Log { shared: Arc::new(shared) }
    }
}

fn segment_bytes(options: &Options) -> u64 {
    options.segment_bytes.min(SEGMENT_BYTES_MAX)
}
