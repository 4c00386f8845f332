//! Cutting an uncommitted tail: when another reign decided what stands above an LSN.
//!
//! The cut is a plan on disk before it begins (`log/CUT`), so that a crash in the middle is finished
//! at the next open instead of looking like corruption. What is cut is kept under `diverged/`.
//! Owns: that procedure. Never: cuts at or below the commit LSN \[I8\].

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use xxhash_rust::xxh3::xxh3_64;

use super::Log;
use super::frame::{Found, decode};
use super::segment::{FIRST_FRAME, SegmentHeader, path, sequence, zero};
use crate::codec::Cursor;
use crate::env::Env;
use crate::error::{Error, Result};
use crate::fault::{Bug, planted};
use crate::fs::{self, OpenMode, read_exact_at};
use crate::lsn::Lsn;

const PLAN: &str = "CUT";

/// What a cut removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutTail {
    /// First LSN cut; above `to` when nothing was.
    pub from: Lsn,
    /// Last LSN cut.
    pub to: Lsn,
    /// Where the cut records are kept, as whole records.
    pub kept: Option<PathBuf>,
}

fn encode_plan(lsn: Lsn) -> Vec<u8> {
    let mut out = lsn.0.to_le_bytes().to_vec();
    let sum = xxh3_64(&out);
    out.extend_from_slice(&sum.to_le_bytes());
    out
}

fn decode_plan(bytes: &[u8]) -> Option<Lsn> {
    let mut c = Cursor::new(bytes);
    let (lsn, sum) = (c.u64().ok()?, c.u64().ok()?);
    (c.is_empty() && sum == xxh3_64(bytes.get(..8)?)).then_some(Lsn(lsn))
}

/// Finishes a cut that a crash interrupted. A plan that is not whole was never begun.
pub(super) fn finish_interrupted(env: &Env, data: &Path) -> Result<()> {
    let dir = Log::dir_of(data);
    let plan = dir.join(PLAN);
    if !env.fs.exists(&plan).map_err(|e| Error::io("look for", &plan, e))? {
        return Ok(());
    }
    let bytes = fs::read_file(&*env.fs, &plan, 64).map_err(|e| Error::io("read", &plan, e))?;
    if let Some(lsn) = decode_plan(&bytes) {
        cut_files(env, &dir, lsn)?;
    }
    finish_plan(env, &dir)
}

fn finish_plan(env: &Env, dir: &Path) -> Result<()> {
    let plan = dir.join(PLAN);
    env.fs.remove_file(&plan).map_err(|e| Error::io("remove", &plan, e))?;
    env.fs.sync_dir(dir).map_err(|e| Error::io("sync", dir, e))
}

/// Removes every record above `lsn` from the files: later segments newest first, then the rest of
/// the segment that holds `lsn`. Idempotent.
fn cut_files(env: &Env, dir: &Path, lsn: Lsn) -> Result<()> {
    let names = env.fs.list(dir).map_err(|e| Error::io("list", dir, e))?;
    for number in names.iter().filter_map(|n| sequence(n)).rev() {
        let path = path(dir, number);
        let io = |e| Error::io("cut", &path, e);
        let file = env.fs.open(&path, OpenMode::Write).map_err(io)?;
        let len = file.len().map_err(io)?;
        let mut head = vec![0u8; usize::try_from(len.min(FIRST_FRAME)).unwrap_or(0)];
        read_exact_at(&*file, &mut head, 0).map_err(io)?;
        let header = SegmentHeader::decode(&path, &head)?;
        if header.is_none_or(|h| h.base.lsn > lsn) {
            env.fs.remove_file(&path).map_err(io)?;
            env.fs.sync_dir(dir).map_err(io)?;
            continue;
        }
        let Some(header) = header else { continue };
        let mut bytes = vec![0u8; usize::try_from(len).unwrap_or(0)];
        read_exact_at(&*file, &mut bytes, 0).map_err(io)?;
        let mut at = FIRST_FRAME as usize;
        while let Found::Frame(f) = decode(bytes.get(at..).unwrap_or_default(), header.salt) {
            if f.record.is_some_and(|r| r.header.lsn > lsn) {
                break;
            }
            at += f.len;
        }
        if !planted(Bug::SkipZeroAfterCut) {
            zero(&*file, at as u64, len).map_err(io)?;
        }
        return file.sync_data().map_err(io);
    }
    Ok(())
}

impl Log {
    /// Removes every record above `lsn`, after keeping them in a file. `committed` is the caller's
    /// commit LSN. Blocks writers; readers beyond the cut get `LogGone` or nothing.
    ///
    /// # Errors
    /// `BelowCommit` \[I8\]; any later error ends the log, and the next open finishes the cut.
    pub fn truncate_above(self: &Arc<Self>, lsn: Lsn, committed: Lsn) -> Result<CutTail> {
        if lsn < committed && !planted(Bug::CutBelowCommit) {
            return Err(Error::BelowCommit { asked: lsn, committed });
        }
        let last = self.last();
        if lsn >= last.lsn {
            return Ok(CutTail { from: lsn.next(), to: last.lsn, kept: None });
        }
        self.sync_to(last.lsn)?;
        let Some(keep) = self.position_at(lsn)? else {
            return Err(Error::LogGone { asked: lsn, oldest: self.oldest() });
        };
        let kept = self.keep(lsn.next(), last.lsn, last.epoch.0)?;
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.state();
        if let Some(why) = &state.stopped {
            return Err(Error::Stopped(why.clone()));
        }
        let dir = Self::dir_of(&self.dir);
        let cut = fs::write_atomic(&*self.env.fs, &dir, PLAN, &encode_plan(lsn))
            .map_err(|e| Error::io("write", &dir.join(PLAN), e))
            .and_then(|()| cut_files(&self.env, &dir, lsn))
            .and_then(|()| finish_plan(&self.env, &dir));
        if let Err(e) = cut {
            drop(state);
            return Err(self.stop(format!("a cut of the log was interrupted: {e}")));
        }
        state.prepared = None;
        state.jobs.clear();
        state.buffer.clear();
        state.buffered_bytes = 0;
        while state.segments.len() > 1 && state.segments.last().is_some_and(|s| s.header.base.lsn > lsn) {
            state.segments.pop();
        }
        state.tail.retain(|r| r.lsn <= lsn);
        state.tail_bytes = state.tail.iter().map(|r| r.bytes.len()).sum();
        if let Some(segment) = state.segments.last_mut() {
            segment.index.retain(|(l, _)| *l <= lsn);
        }
        state.last = keep;
        state.written = lsn;
        state.evidenced = Lsn::ZERO;
        drop(state);
        let end = self.find_end(lsn)?;
        self.state().end = end;
        self.appended.reset_after_truncation(lsn);
        self.durable.reset_after_truncation(lsn);
        Ok(CutTail { from: lsn.next(), to: last.lsn, kept: Some(kept) })
    }

    /// Where the next frame goes after a cut.
    fn find_end(&self, lsn: Lsn) -> Result<u64> {
        let state = self.state();
        let Some(s) = state.segments.last() else { return Ok(FIRST_FRAME) };
        let (file, path, salt, len) = (Arc::clone(&s.file), s.path.clone(), s.header.salt, s.len);
        let mut at = s.seek(lsn);
        drop(state);
        let mut bytes = vec![0u8; usize::try_from(len - at).unwrap_or(0)];
        read_exact_at(&*file, &mut bytes, at).map_err(|e| Error::io("read", &path, e))?;
        let mut rest = bytes.as_slice();
        while let Found::Frame(f) = decode(rest, salt) {
            if f.record.is_some_and(|r| r.header.lsn > lsn) {
                break;
            }
            at += f.len as u64;
            rest = rest.get(f.len..).unwrap_or_default();
        }
        Ok(at)
    }

    /// Copies records into `diverged/` before they are cut.
    fn keep(self: &Arc<Self>, from: Lsn, to: Lsn, epoch: u64) -> Result<PathBuf> {
        let dir = self.dir.join("diverged");
        let name = format!("{epoch:016x}-{:016x}-{:016x}.records", from.0, to.0);
        let path = dir.join(&name);
        let io = |e| Error::io("write", &path, e);
        self.env.fs.create_dir_all(&dir).map_err(io)?;
        self.env.fs.sync_dir(&self.dir).map_err(io)?;
        if self.env.fs.exists(&path).map_err(io)? {
            self.env.fs.remove_file(&path).map_err(io)?;
        }
        let file = self.env.fs.open(&path, OpenMode::CreateNew).map_err(io)?;
        let mut reader = self.reader(from)?;
        let mut at = 0;
        while let Some(chunk) = reader.next(to, 1 << 20)? {
            file.write_all_at(&chunk.bytes, at).map_err(io)?;
            at += chunk.bytes.len() as u64;
        }
        file.sync_data().map_err(io)?;
        self.env.fs.sync_dir(&dir).map_err(io)?;
        Ok(path)
    }
}
