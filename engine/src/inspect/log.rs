//! Whether the log in a directory is whole, by the rules of recovery \[I4\].
//!
//! Owns: what follows from one segment for the next, and the verdict on the end: torn tail or damage. Recovery stops
//! at the first thing that does not fit; here every segment is looked into. Never: repair.

use std::path::{Path, PathBuf};

use super::Finding;
use crate::error::{Error, Result};
use crate::fs::Fs;
use crate::log::inspect::{
    CutTailFile, Intended, LogFile, SegmentHeader, SegmentState, SegmentWalk, Unfinished, cut_tails, find_evidence,
    headerless_damage, log_files, read_cut_intent,
};
use crate::lsn::{Chain, Lsn, Position};

/// Followed at a time, in bytes.
const STEP_BYTES: u64 = 1 << 20;
/// A place that a running writer may be writing is looked at again at most so often.
const LOOKS_MAX: u32 = 100;

/// What is known of the log from elsewhere; read it before the log, which may grow meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// An LSN that was durable here, by the file `EVIDENCE`.
    pub durable: Lsn,
    /// Where the tables end, by the manifest: the log must reach back to it and agree with it.
    pub base: Option<Position>,
}

/// A segment whose header could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedSegment {
    /// The file.
    pub file: LogFile,
    /// Records in it that continue the log.
    pub records: u64,
    /// The log's position behind them.
    pub end: Position,
    /// Where they end, in bytes.
    pub end_offset: u64,
}

/// What a check of the log found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogCheck {
    /// The segments of the log, in order.
    pub segments: Vec<CheckedSegment>,
    /// Files without a header: made ahead, or damaged (then there is a finding).
    pub blank: Vec<LogFile>,
    /// A torn tail, or a write in progress.
    pub unfinished: Option<Unfinished>,
    /// A cut is in progress: the next start ends the log here.
    pub cut: Option<Position>,
    /// Cut tails that are kept, each with the number of its records.
    pub tails: Vec<(CutTailFile, u64)>,
    /// Damage.
    pub findings: Vec<Finding>,
}

impl LogCheck {
    /// Records that continue the log.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.segments.iter().map(|s| s.records).sum()
    }

    /// Where the log ends; `None` without a segment.
    #[must_use]
    pub fn end(&self) -> Option<Position> {
        self.segments.last().map(|s| s.end)
    }
}

/// Checks `dir/log` and `dir/diverged`.
///
/// # Errors
/// `Io` when the directory cannot be listed or a file not be opened. Bytes that cannot be read are a finding.
pub fn check_log(fs: &dyn Fs, dir: &Path, known: Known) -> Result<LogCheck> {
    let log_dir = dir.join("log");
    let mut check = Check { fs, log_dir, known, cut: None, out: LogCheck::default(), last: None, missing: None };
    match read_cut_intent(fs, &check.log_dir)? {
        Intended::None => {}
        Intended::Cut(end, first) => check.cut = Some((end, first)),
        Intended::Damaged(f) => check.out.findings.push(f),
    }
    for file in log_files(fs, &check.log_dir)? {
        check.file(file)?;
        if check.out.cut.is_some() {
            break;
        }
    }
    check.judge()?;
    let mut out = check.out;
    for tail in cut_tails(fs, dir)? {
        let (records, finding) = tail.check(fs)?;
        out.findings.extend(finding);
        out.tails.push((tail, records));
    }
    Ok(out)
}

/// Checks one segment by itself, from the position that its header gives.
///
/// # Errors
/// As [`check_log`], and `Directory` when the file is not named like a segment.
pub fn check_segment(fs: &dyn Fs, path: &Path) -> Result<LogCheck> {
    let (log_dir, known, out) = (path.to_owned(), Known::default(), LogCheck::default());
    let mut check = Check { fs, log_dir, known, cut: None, out, last: None, missing: None };
    check.file(LogFile::read(fs, path)?)?;
    check.judge()?;
    Ok(check.out)
}

struct Check<'a> {
    fs: &'a dyn Fs,
    log_dir: PathBuf,
    known: Known,
    cut: Option<(Position, Chain)>,
    out: LogCheck,
    /// The walk through the last of `out.segments`.
    last: Option<SegmentWalk>,
    /// A number that no file has.
    missing: Option<u64>,
}

impl Check<'_> {
    fn fail(&mut self, path: &Path, offset: u64, lsn: Option<Lsn>, what: String) {
        self.out.findings.push(Finding { path: path.to_owned(), offset, lsn, what });
    }

    fn end(&self) -> Lsn {
        self.out.end().map_or(Lsn::ZERO, |p| p.lsn)
    }

    fn base(&self) -> Lsn {
        self.known.base.map_or(Lsn::ZERO, |p| p.lsn)
    }

    fn file(&mut self, file: LogFile) -> Result<()> {
        let before = self.out.segments.last().map(|s| &s.file).into_iter().chain(self.out.blank.last());
        if let Some(expected) = before.map(|f| f.sequence + 1).max().filter(|e| *e != file.sequence) {
            self.missing.get_or_insert(expected);
            // Removing the segments above a cut had begun.
            if self.at_intended_end() {
                self.out.cut = self.out.end();
                return Ok(());
            }
        }
        match file.state {
            SegmentState::Newer(v) => {
                self.fail(&file.path, 0, None, format!("of format {v}, which this program does not know"));
                Ok(())
            }
            SegmentState::Used(header) => self.segment(file, header),
            SegmentState::Blank => {
                let before = self.out.segments.last().and_then(|s| s.file.header()).map(|h| (h.sequence, h.salt));
                let end = self.out.end().map_or(self.base(), |p| p.lsn);
                let Some(what) = headerless_damage(self.fs, &file.path, file.sequence, end, before)? else {
                    self.out.blank.push(file);
                    return Ok(());
                };
                // The header is written before the first frame: one that is there now came meanwhile.
                let again = LogFile::read(self.fs, &file.path)?;
                if let Some(header) = again.header() {
                    return self.segment(again, header);
                }
                if self.at_intended_end() {
                    self.out.cut = self.out.end();
                    return Ok(());
                }
                self.fail(&file.path, 0, Some(self.end().next()), what);
                Ok(())
            }
        }
    }

    fn segment(&mut self, file: LogFile, header: SegmentHeader) -> Result<()> {
        let after_hole = self.hole(&header);
        if header.sequence != file.sequence || header.bytes != file.bytes {
            let (seq, bytes) = (header.sequence, header.bytes);
            let what = format!("the header speaks of segment {seq:016x} of {bytes} bytes, the file has {}", file.bytes);
            self.fail(&file.path, 0, None, what);
        }
        if let Some(blank) = self.out.blank.first().cloned() {
            let what = "the header is damaged or missing, and a later segment has one".to_owned();
            self.fail(&blank.path, 0, Some(self.end().next()), what);
            self.out.blank.clear();
        }
        match self.out.segments.last().cloned() {
            None if self.known.base.is_some() && header.base.lsn > self.base() => {
                let (starts, tables) = (header.base.lsn, self.base());
                let what =
                    format!("the log starts after LSN {starts}, the tables end at {tables}: records are missing");
                self.fail(&file.path, 0, Some(tables.next()), what);
            }
            None => {}
            Some(_) if after_hole => {}
            Some(before) if before.end != header.base => {
                if self.at_intended_end() {
                    self.out.cut = self.out.end();
                    return Ok(());
                }
                self.breach_before(&before, &header)?;
            }
            Some(_) => {}
        }
        let mut walk = SegmentWalk::open(self.fs, &file.path, header, self.base(), self.cut)?;
        self.walk(&mut walk, &file)?;
        let (records, end, end_offset) = (walk.records, walk.end, walk.breach().offset);
        self.out.segments.push(CheckedSegment { file, records, end, end_offset });
        if walk.at_cut {
            self.out.cut = Some(walk.end);
        }
        self.last = Some(walk);
        Ok(())
    }

    /// Follows a segment to where its frames end; bytes that cannot be read are a finding.
    fn walk(&mut self, walk: &mut SegmentWalk, file: &LogFile) -> Result<()> {
        loop {
            match walk.step(STEP_BYTES) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(e) => {
                    let finding = Finding::of(e, walk.breach().offset)?;
                    self.fail(&file.path, finding.offset, Some(walk.end.lsn.next()), finding.what);
                    break;
                }
            }
        }
        if let Some((met, base)) = walk.met.zip(self.known.base)
            && met != base
        {
            let what = format!("the log and the tables differ at LSN {}: they are of different histories", base.lsn);
            self.fail(&file.path, 0, Some(base.lsn), what);
        }
        Ok(())
    }

    /// Files were missing before this segment; whether that is damage.
    fn hole(&mut self, header: &SegmentHeader) -> bool {
        let Some(missing) = self.missing.take() else { return false };
        if header.base.lsn <= self.base() {
            // All before is in the tables: letting it go was under way.
            self.out.segments.clear();
            self.out.blank.clear();
            self.last = None;
            return false;
        }
        let path = self.log_dir.join(format!("{missing:016x}.log"));
        self.fail(&path, 0, Some(self.end().next()), "the segment is missing".into());
        true
    }

    /// The segment `before` ends elsewhere than the next one begins, which was written when all of it was durable.
    fn breach_before(&mut self, before: &CheckedSegment, header: &SegmentHeader) -> Result<()> {
        // A segment that was let go, or is in use for something else by now, proves nothing.
        match LogFile::read(self.fs, &before.file.path) {
            Ok(again) if again.state == before.file.state => {}
            Err(Error::Io { source, .. }) if source.kind() != std::io::ErrorKind::NotFound => {}
            Ok(_) | Err(_) => return Ok(()),
        }
        if self.out.findings.iter().any(|f| f.path == before.file.path && f.offset == before.end_offset) {
            return Ok(());
        }
        let why = self.last.as_ref().and_then(|w| w.breach().what).unwrap_or_else(|| "no record here".into());
        let what = format!("{why}; records up to LSN {} were durable, the next segment says", header.base.lsn);
        self.fail(&before.file.path, before.end_offset, Some(before.end.lsn.next()), what);
        Ok(())
    }

    /// Whether the log walked so far ends where it was being cut.
    fn at_intended_end(&self) -> bool {
        self.cut.is_some_and(|(end, _)| self.out.end() == Some(end))
    }

    /// The end of the log: torn tail or damage.
    fn judge(&mut self) -> Result<()> {
        if self.out.cut.is_none() && self.at_intended_end() {
            self.out.cut = self.out.end();
        }
        if self.out.cut.is_some() {
            self.out.findings.retain(|f| f.lsn.is_none_or(|l| Some(l) <= self.out.cut.map(|c| c.lsn)));
            return Ok(());
        }
        if let Some((end, _)) = self.cut.filter(|(end, _)| end.lsn >= self.end()) {
            let what = format!("the log ends at LSN {}, before the place where it was being cut", self.end());
            self.fail(&self.log_dir.join("cut"), 0, Some(end.lsn), what);
        }
        let Some(mut walk) = self.last.take() else {
            let durable = self.known.durable.max(self.base());
            if durable > Lsn::ZERO && self.out.findings.is_empty() {
                let what = format!("there is no log, but LSN {durable} is known to have been durable");
                self.fail(&self.log_dir.clone(), 0, Some(durable), what);
            }
            return Ok(());
        };
        let Some(mut last) = self.out.segments.pop() else { return Ok(()) };
        let path = last.file.path.clone();
        let mut looks = 0;
        let (evidence, dirty) = loop {
            let at = walk.breach().offset;
            let next = walk.end.lsn.next();
            let (evidence, dirty) = find_evidence(self.fs, &path, walk.header.salt, at, next)?;
            looks += 1;
            // Somebody may have written here between the two looks.
            if dirty == 0 || looks > LOOKS_MAX || !walk.look_again()? {
                break (evidence, dirty);
            }
            self.walk(&mut walk, &last.file)?;
        };
        (last.records, last.end, last.end_offset) = (walk.records, walk.end, walk.breach().offset);
        let (end, offset) = (last.end, last.end_offset);
        self.out.segments.push(last);
        self.judge_end(&walk, (path, offset), end, (evidence, dirty));
        Ok(())
    }

    fn judge_end(
        &mut self,
        walk: &SegmentWalk,
        (path, offset): (PathBuf, u64),
        end: Position,
        (evidence, dirty): (Option<(u64, Lsn)>, u64),
    ) {
        if self.out.findings.iter().any(|f| f.path == path && f.offset == offset) {
            return;
        }
        let next = end.lsn.next();
        let why = walk.breach().what.map(|w| format!("{w}; ")).unwrap_or_default();
        let known = self.known.durable.max(walk.evidence).max(self.base());
        if let Some((at, durable)) = evidence {
            let what =
                format!("{why}no valid record here, but the frame at offset {at} says LSN {durable} was durable");
            self.fail(&path, offset, Some(next), what);
        } else if end.lsn < known {
            let what = format!("{why}the log ends at LSN {}, but LSN {known} is known to have been durable", end.lsn);
            self.fail(&path, offset, Some(next), what);
        } else if dirty > 0 {
            self.out.unfinished = Some(Unfinished { path, offset, bytes: dirty, lsn: next });
        }
    }
}
