//! Opening a log: which records are there, and is what is missing a torn tail or corruption \[I4\].
//!
//! At the first place that is no valid frame, the log ends, unless something proves that the record
//! expected there was durable: a later frame of this or another segment that says so, the header of
//! a later segment (written only after everything before it was synced), or the caller (manifest,
//! evidence file). Proof means corruption: nothing is changed and the place is named. No proof
//! means a torn tail: it is cut, and the rest of the segment is zeroed before anything is appended.
//! Owns: that decision. Never: repairs.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};

use super::frame::{FRAME_BYTES, Found, decode};
use super::segment::{FIRST_FRAME, Segment, SegmentHeader, path, sequence, zero};
use super::{Group, Log, State, truncate};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::fs::{OpenMode, read_exact_at};
use crate::limits::Options;
use crate::lsn::{Lsn, Position};
use crate::watermark::Watermark;

/// Largest segment file read at open, in bytes.
const SEGMENT_BYTES_MAX: u64 = 4 << 30;

/// What opening a log found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Records found.
    pub records: u64,
    /// Bytes behind the last whole record that were cut as a torn tail; 0 for a clean end.
    pub torn_bytes: u64,
    /// Where they were.
    pub torn_at: Option<(std::path::PathBuf, u64)>,
    /// The newest record.
    pub last: Position,
}

struct Scan {
    segment: Segment,
    /// The position after the segment's last whole record.
    last: Position,
    records: u64,
    /// End of the last whole frame.
    end: u64,
    /// What stands there instead of a frame; `None` for zeros.
    bad: Option<&'static str>,
    /// Whether everything behind `end` is zero.
    clean: bool,
    /// The highest LSN that any frame of the file says was durable.
    evidence: Lsn,
}

/// Reads one segment whole and follows its records from its base on.
fn scan(mut segment: Segment) -> Result<Scan> {
    let io = |e| Error::io("read", &segment.path, e);
    let len = usize::try_from(segment.len).unwrap_or(usize::MAX);
    let mut bytes = vec![0; len];
    read_exact_at(&*segment.file, &mut bytes, 0).map_err(io)?;
    let salt = segment.header.salt;
    let (mut last, mut records, mut evidence) = (segment.header.base, 0, Lsn::ZERO);
    let mut end = FIRST_FRAME as usize;
    let bad = loop {
        match decode(bytes.get(end..).unwrap_or_default(), salt) {
            Found::Frame(frame) => {
                if let Some(record) = frame.record {
                    if record.follows(&last).is_err() && !crate::fault::planted(crate::fault::Bug::IgnoreChain) {
                        break Some("the record does not continue the one before it");
                    }
                    last = record.position();
                    records += 1;
                    segment.note(last.lsn, end as u64);
                }
                evidence = evidence.max(frame.durable);
                end += frame.len;
            }
            Found::Nothing => break None,
            Found::Bad(why) => break Some(why),
        }
    };
    // Frames start at multiples of eight: whatever valid one lies behind the end bears witness.
    let rest = bytes.get(end..).unwrap_or_default();
    let clean = rest.iter().all(|b| *b == 0);
    if !clean {
        let mut at = 8;
        while at + FRAME_BYTES <= rest.len() {
            if let Found::Frame(frame) = decode(rest.get(at..).unwrap_or_default(), salt) {
                evidence = evidence.max(frame.durable);
            }
            at += 8;
        }
    }
    Ok(Scan { segment, last, records, end: end as u64, bad, clean, evidence })
}

/// All segment files with a whole header, in order; the others (prepared, or torn while being
/// prepared) are returned apart.
fn list(env: &Env, dir: &Path) -> Result<(Vec<Segment>, Vec<std::path::PathBuf>)> {
    let names = env.fs.list(dir).map_err(|e| Error::io("list", dir, e))?;
    let (mut segments, mut unused) = (Vec::new(), Vec::new());
    for number in names.iter().filter_map(|n| sequence(n)) {
        let path = path(dir, number);
        let file = env.fs.open(&path, OpenMode::Write).map_err(|e| Error::io("open", &path, e))?;
        let len = file.len().map_err(|e| Error::io("read", &path, e))?;
        if len > SEGMENT_BYTES_MAX {
            return Err(Error::corruption(&path, 0, None, format!("a segment of {len} bytes is over its bound")));
        }
        let mut head = vec![0u8; usize::try_from(len.min(FIRST_FRAME)).unwrap_or(0)];
        read_exact_at(&*file, &mut head, 0).map_err(|e| Error::io("read", &path, e))?;
        match SegmentHeader::decode(&path, &head)? {
            Some(header) if header.sequence == number => {
                segments.push(Segment { path, file, header, len, index: Vec::new() });
            }
            Some(_) => return Err(Error::corruption(&path, 0, None, "the segment has another one's number")),
            None => unused.push(path),
        }
    }
    Ok((segments, unused))
}

impl Log {
    /// Opens the log of the data directory `data`, recovering it, or makes one that starts after
    /// `base`. `known_durable` is what the caller knows to have been durable; `base` is the newest
    /// position that the caller has without the log.
    ///
    /// # Errors
    /// `Corruption` (nothing was changed), `Format`, or the operating system's.
    pub fn open(
        env: Env,
        data: &Path,
        options: &Options,
        known_durable: Lsn,
        base: Position,
    ) -> Result<(Self, Recovered)> {
        let dir = Self::dir_of(data);
        env.fs.create_dir_all(&dir).map_err(|e| Error::io("create", &dir, e))?;
        env.fs.sync_dir(data).map_err(|e| Error::io("sync", data, e))?;
        truncate::finish_interrupted(&env, data)?;
        let (segments, unused) = list(&env, &dir)?;
        let mut recovered = Recovered { last: base, ..Recovered::default() };
        let mut kept = Vec::new();
        let mut end = FIRST_FRAME;
        if segments.is_empty() {
            if known_durable > base.lsn {
                let what = format!("the log is missing, but records up to LSN {known_durable} were durable");
                return Err(Error::corruption(&dir, 0, Some(base.lsn.next()), what));
            }
        } else {
            let found = walk(segments, known_durable, &base)?;
            recovered.records = found.iter().map(|s| s.records).sum();
            (kept, end) = settle(&env, &dir, found, &mut recovered)?;
        }
        for path in unused {
            env.fs.remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
        }
        env.fs.sync_dir(&dir).map_err(|e| Error::io("sync", &dir, e))?;
        let log = Self::assemble(env, data, options, kept, end, recovered.last);
        if log.state().segments.is_empty() {
            let mut state = log.state();
            log.begin(&mut state)?;
        }
        Ok((log, recovered))
    }

    fn assemble(env: Env, data: &Path, options: &Options, segments: Vec<Segment>, end: u64, last: Position) -> Self {
        let state = State {
            segments,
            prepared: None,
            end,
            jobs: Vec::new(),
            buffer: Vec::new(),
            buffered_bytes: 0,
            last,
            written: last.lsn,
            tail: VecDeque::new(),
            tail_bytes: 0,
            evidenced: Lsn::ZERO,
            stopped: None,
        };
        Self {
            env,
            dir: data.to_owned(),
            options: options.clone(),
            state: Mutex::new(state),
            writer: Mutex::new(()),
            group: Mutex::new(Group::default()),
            group_changed: Condvar::new(),
            appended: Watermark::new(last.lsn),
            // What recovery read back is on the disk or will be cut by nobody; `settle` synced it.
            durable: Watermark::new(last.lsn),
            slots: std::sync::Arc::default(),
        }
    }

    /// For tests and repair: whether the log has stopped.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).stopped.is_some()
    }
}

/// Follows the records through the segments; refuses what is provably damaged.
fn walk(segments: Vec<Segment>, known_durable: Lsn, base: &Position) -> Result<Vec<Scan>> {
    let mut scans = Vec::new();
    for segment in segments {
        scans.push(scan(segment)?);
    }
    let Some(first) = scans.first() else { return Ok(scans) };
    if first.segment.header.base.lsn > base.lsn {
        let (path, missing) = (first.segment.path.clone(), base.lsn.next());
        let what =
            format!("the log starts at LSN {}, older segments are missing", first.segment.header.base.lsn.next());
        return Err(Error::corruption(&path, 0, Some(missing), what));
    }
    // Everything that anything says was durable.
    let proof =
        scans.iter().map(|s| s.evidence.max(s.segment.header.base.lsn)).max().unwrap_or_default().max(known_durable);
    for (i, s) in scans.iter().enumerate() {
        let next = scans.get(i + 1);
        let goes_on = next.is_some_and(|n| n.segment.header.base == s.last);
        if !goes_on && s.last.lsn < proof {
            let what = s.bad.unwrap_or("records are missing");
            let what = format!("{what}, but records up to LSN {proof} were durable");
            return Err(Error::corruption(&s.segment.path, s.end, Some(s.last.lsn.next()), what));
        }
        if next.is_some() && !goes_on {
            // The next header proves a record that this segment does not have.
            let what = "the segment ends before the next one begins";
            return Err(Error::corruption(&s.segment.path, s.end, Some(s.last.lsn.next()), what));
        }
    }
    Ok(scans)
}

/// Cuts a torn tail, syncs what was read, and returns the segments with the end of the last one.
fn settle(env: &Env, dir: &Path, scans: Vec<Scan>, recovered: &mut Recovered) -> Result<(Vec<Segment>, u64)> {
    let Some(last) = scans.last() else { return Ok((Vec::new(), FIRST_FRAME)) };
    let (path, file, end) = (last.segment.path.clone(), last.segment.file.clone(), last.end);
    recovered.last = last.last;
    if !last.clean {
        recovered.torn_bytes = last.segment.len - end;
        recovered.torn_at = Some((path.clone(), end));
        zero(&*file, end, last.segment.len).map_err(|e| Error::io("write", &path, e))?;
    }
    // Records read from the page cache after a kill may not be on the disk yet.
    let fatal = |e: std::io::Error| {
        (env.fatal)(&format!("cannot sync {}: {e}", path.display()));
        Error::Stopped(format!("cannot sync {}: {e}", path.display()))
    };
    for scan in &scans {
        scan.segment.file.sync_data().map_err(fatal)?;
    }
    env.fs.sync_dir(dir).map_err(|e| Error::io("sync", dir, e))?;
    Ok((scans.into_iter().map(|s| s.segment).collect(), end))
}
