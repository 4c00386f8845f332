//! A manifest file as values: the state it builds and the edits that build it.
//!
//! Owns: the public picture of a manifest. Never: a write, and no more memory than the file's bound.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::fs::{Fs, read_file};
use crate::inspect::Finding;
use crate::lsn::{CommitTs, Epoch, Lsn, Position};
use crate::record::TimelineStart;
use crate::table::TableFile;

use super::manifest::{Edit, Event, FRAME_BYTES, MANIFEST_BYTES_MAX, Placed, Replayed, State, replay_into};
use super::manifest_file::{manifest_name, read_current};
use super::version::HISTORY;

/// A table and where the tree has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedTable {
    /// Its level; `None` for a history table.
    pub level: Option<u8>,
    /// The file.
    pub file: TableFile,
    /// Of an ingested table: the LSN that its entries have, whatever the file says.
    pub ingested: Option<Lsn>,
}

impl From<&Placed> for PlacedTable {
    fn from(p: &Placed) -> Self {
        Self { level: (p.level != HISTORY).then_some(p.level), file: p.file, ingested: p.ingested }
    }
}

/// What a manifest says of its tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TreeState {
    /// All records at or below are in the tables.
    pub flushed: Position,
    /// The oldest LSN that can be read at, with its commit time.
    pub floor: (Lsn, CommitTs),
    /// First record of each epoch.
    pub epochs: Vec<(Epoch, Lsn, CommitTs)>,
    /// The first record of the timeline, if the tree took one in.
    pub timeline: Option<TimelineStart>,
    /// The tables, in the order in which they were added.
    pub tables: Vec<PlacedTable>,
}

impl From<&State> for TreeState {
    fn from(s: &State) -> Self {
        Self {
            flushed: s.flushed,
            floor: s.floor,
            epochs: s.epochs.iter().map(|e| (e.epoch, e.lsn, e.ts)).collect(),
            timeline: s.timeline,
            tables: s.tables.iter().map(PlacedTable::from).collect(),
        }
    }
}

/// One edit of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestEdit {
    /// Where it begins in the file.
    pub offset: u64,
    /// Its length, frame included.
    pub bytes: u64,
    /// Tables added.
    pub added: Vec<PlacedTable>,
    /// Ids of tables removed.
    pub removed: Vec<u128>,
    /// The new flushed position.
    pub flushed: Option<Position>,
    /// Epochs that began.
    pub epochs: Vec<(Epoch, Lsn, CommitTs)>,
    /// Timeline that began.
    pub timeline: Option<TimelineStart>,
    /// The new history floor.
    pub floor: Option<(Lsn, CommitTs)>,
}

impl ManifestEdit {
    fn of(offset: u64, edit: &Edit, body: &[u8]) -> Self {
        let mut out = Self {
            offset,
            bytes: (FRAME_BYTES + body.len()) as u64,
            added: edit.added.iter().map(PlacedTable::from).collect(),
            removed: edit.removed.clone(),
            flushed: edit.flushed,
            epochs: Vec::new(),
            timeline: None,
            floor: edit.floor,
        };
        for event in &edit.events {
            match event {
                Event::Epoch(e) => out.epochs.push((e.epoch, e.lsn, e.ts)),
                Event::Timeline(t) => out.timeline = Some(*t),
            }
        }
        out
    }
}

/// A manifest file that was read.
#[derive(Clone, Debug)]
pub struct ManifestView {
    /// The file.
    pub path: PathBuf,
    /// Format of the file; zero if its header did not hold.
    pub format: u32,
    /// Its length in bytes.
    pub bytes: u64,
    /// Number of whole edits, the first state included.
    pub edits: u64,
    /// The state after them.
    pub state: TreeState,
    /// Where an unfinished last edit begins: one that was never acknowledged, or whose bytes are damaged.
    /// Opening leaves it out.
    pub torn: Option<u64>,
    /// What does not fit; nothing behind it was read.
    pub finding: Option<Finding>,
}

/// The path of the manifest in force in a directory `manifest/`.
///
/// # Errors
/// `Directory` without one, `Corruption` when `CURRENT` names none, `Io`.
pub fn current_manifest(fs: &Arc<dyn Fs>, manifest_dir: &Path) -> Result<PathBuf> {
    Ok(manifest_dir.join(manifest_name(read_current(fs, manifest_dir)?)))
}

/// Reads a manifest file and shows each of its edits to `see`. Damage is told in the result.
///
/// # Errors
/// `Corruption` for a file over the bound, `Format` for another format, `Io`.
pub fn read_manifest(fs: &Arc<dyn Fs>, path: &Path, mut see: impl FnMut(ManifestEdit)) -> Result<ManifestView> {
    let bytes = read_file(&**fs, path, MANIFEST_BYTES_MAX).map_err(|e| match e.kind() {
        std::io::ErrorKind::InvalidData => Error::corruption(path, 0, None, "the manifest is over its bound"),
        std::io::ErrorKind::NotFound => Error::corruption(path, 0, None, "the manifest named by CURRENT is missing"),
        _ => Error::io("read", path, e),
    })?;
    let (mut out, mut edits) = (Replayed::default(), 0);
    let replayed = replay_into(&mut out, path, &bytes, |offset, edit, body| {
        edits += 1;
        see(ManifestEdit::of(offset, edit, body));
    });
    let finding = match replayed {
        Ok(()) => None,
        Err(e @ Error::Format { .. }) => return Err(e),
        Err(e) => Some(Finding::of(e, out.len)?),
    };
    let whole = bytes.len() as u64;
    Ok(ManifestView {
        path: path.to_owned(),
        format: out.version,
        bytes: whole,
        edits,
        state: TreeState::from(&out.state),
        torn: Some(out.len).filter(|len| finding.is_none() && *len < whole),
        finding,
    })
}
