//! Cut tails under `diverged/`, and the intent of a cut in progress.
//!
//! Owns: reading them. Never: a cut.

use std::path::{Path, PathBuf};

use super::super::truncate::{DIVERGED, INTENT, Intent, cut_tail_name};
use super::Window;
use crate::error::{Error, Result};
use crate::fs::{Fs, read_file};
use crate::inspect::Finding;
use crate::lsn::{Chain, Epoch, Lsn, Position};
use crate::record::{HEADER_BYTES, RECORD_BYTES_MAX, Record, RecordError};

/// The intent of a cut as its file says it.
pub(crate) enum Intended {
    /// No cut is in progress.
    None,
    /// Where the log is to end, and the chain of the first record that goes.
    Cut(Position, Chain),
    /// The file is damaged.
    Damaged(Finding),
}

/// Reads `log/cut`.
pub(crate) fn read_cut_intent(fs: &dyn Fs, log_dir: &Path) -> Result<Intended> {
    let path = log_dir.join(INTENT);
    match read_file(fs, &path, 4096) {
        Ok(bytes) => Ok(match Intent::decode(&bytes) {
            Ok(i) => Intended::Cut(i.end, i.first_cut),
            Err(e) => Intended::Damaged(Finding { path, offset: 0, lsn: None, what: e.0.into() }),
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Intended::None),
        Err(e) => Err(Error::io("read", &path, e)),
    }
}

/// A file of records that were cut off the log, by what its name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutTailFile {
    /// The file.
    pub path: PathBuf,
    /// Epoch of the last record in it.
    pub epoch: Epoch,
    /// LSN of the first record.
    pub from: Lsn,
    /// LSN of the last record.
    pub to: Lsn,
    /// Its length in bytes.
    pub bytes: u64,
}

impl CutTailFile {
    /// Looks at a file of `diverged/`; `None` when its name is not that of a cut tail.
    ///
    /// # Errors
    /// `Io`.
    pub fn read(fs: &dyn Fs, path: &Path) -> Result<Option<Self>> {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let Some((epoch, from, to)) = parse_cut_tail_name(name) else { return Ok(None) };
        let bytes = Window::open(fs, path)?.end;
        Ok(Some(Self { path: path.to_owned(), epoch: Epoch(epoch), from: Lsn(from), to: Lsn(to), bytes }))
    }

    /// Reads the whole file: every record, that they follow each other, and that they are what the name says.
    /// How many there are, and what does not fit.
    ///
    /// # Errors
    /// `Io`.
    pub fn check(&self, fs: &dyn Fs) -> Result<(u64, Option<Finding>)> {
        let mut records = RecordFile::open(fs, &self.path)?;
        let (mut count, mut first, mut last) = (0, None, None::<Position>);
        let damaged = |offset, lsn, what: String| Finding { path: self.path.clone(), offset, lsn, what };
        loop {
            let offset = records.offset();
            let wanted = last.map_or(self.from, |p| p.lsn.next());
            match records.next() {
                Err(Error::Corruption { what, .. }) => return Ok((count, Some(damaged(offset, Some(wanted), what)))),
                Err(e) => return Err(e),
                Ok(None) => break,
                Ok(Some(r)) => {
                    if let Some(e) = last.and_then(|p| r.follows(&p).err()) {
                        return Ok((count, Some(damaged(offset, Some(wanted), e.to_string()))));
                    }
                    first.get_or_insert(r.header.lsn);
                    last = Some(r.position());
                    count += 1;
                }
            }
        }
        let said = (Some(self.from), Some((self.epoch, self.to)));
        if (first, last.map(|p| (p.epoch, p.lsn))) == said {
            return Ok((count, None));
        }
        let what = "the records are not those that the file's name says".to_owned();
        Ok((count, Some(damaged(records.offset(), last.map(|p| p.lsn), what))))
    }
}

/// Epoch of the last record, and the LSNs of the first and the last one.
pub(crate) fn parse_cut_tail_name(name: &str) -> Option<(u64, u64, u64)> {
    let hex = name.strip_suffix(".records")?;
    let mut numbers = hex.split('-').map(|n| u64::from_str_radix(n, 16).ok());
    let (epoch, from, to) = (numbers.next()??, numbers.next()??, numbers.next()??);
    (cut_tail_name(epoch, from, to) == name).then_some((epoch, from, to))
}

/// The cut tails of a data directory, in the order of their names.
///
/// # Errors
/// `Io`.
pub fn cut_tails(fs: &dyn Fs, dir: &Path) -> Result<Vec<CutTailFile>> {
    let dir = dir.join(DIVERGED);
    let names = match fs.list(&dir) {
        Ok(names) => names,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("list", &dir, e)),
    };
    let files = names.iter().map(|n| CutTailFile::read(fs, &dir.join(n)));
    files.filter_map(Result::transpose).collect()
}

/// Goes through a file of records that stand one after another.
#[derive(Debug)]
pub struct RecordFile {
    window: Window,
    at: u64,
}

impl RecordFile {
    /// Stands before the first record.
    ///
    /// # Errors
    /// `Io`.
    pub fn open(fs: &dyn Fs, path: &Path) -> Result<Self> {
        Ok(Self { window: Window::open(fs, path)?, at: 0 })
    }

    /// Where the next record begins.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.at
    }

    /// The next record, checked against its checksum; `None` at the end of the file.
    ///
    /// # Errors
    /// `Corruption` where no whole record stands, `Io`.
    #[expect(clippy::should_implement_trait, reason = "it lends from its window")]
    pub fn next(&mut self) -> Result<Option<Record<'_>>> {
        let at = self.at;
        let head = self.window.from(at, HEADER_BYTES)?;
        if head.is_empty() {
            return Ok(None);
        }
        let body = head.get(24..28).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b) as usize);
        let path = self.window.path().to_owned();
        let fail = |e: RecordError| Error::corruption(&path, at, None, e.to_string());
        // A length over the bound is refused by the decoder before anything is read for it.
        let len = (HEADER_BYTES + body).min(RECORD_BYTES_MAX);
        let record = Record::decode(self.window.from(at, len)?).map_err(fail)?;
        self.at = at + record.bytes.len() as u64;
        Ok(Some(record))
    }
}
