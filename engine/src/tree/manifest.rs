//! What the manifest says, as data and as bytes: the state of the tree and edits of it.
//!
//! ```text
//! header   0 magic u64 | 8 format version u32 | 12 reserved u32 = 0 | 16 xxh3-64 of bytes 0..16
//! edit     0 magic u32 | 4 body length u32 | 8 checksum u64 | 16 chain [16] | 32 body
//! ```
//! As in the log, `chain = xxh3-128(previous chain, hash of the body)` and the checksum covers hash
//! and chain. A file's first edit is a state: it builds the whole state from nothing. A body is
//! a run of tagged fields. Owns: encode, decode, replay and the rule of the torn end. Never: files
//! (`manifest_file`).

use std::path::Path;

use xxhash_rust::xxh3::{xxh3_64, xxh3_128, xxh3_128_with_seed};

use crate::codec::{Cursor, Malformed, put_slice, put_varint};
use crate::error::{Error, Result};
use crate::lsn::{Chain, CommitTs, Epoch, Lsn, Position};
use crate::record::TimelineStart;
use crate::table::TableFile;

use super::version::HISTORY;

/// Newest format version this program reads. It writes a manifest that names ingested tables.
pub(crate) const VERSION: u32 = 4;
/// Format version of a manifest without such tables: what programs before [`VERSION`] read as well.
const VERSION_PLAIN: u32 = 3;
pub(super) const FRAME_BYTES: usize = 32;
const MAGIC: u64 = u64::from_le_bytes(*b"MSMANIF\x01");
const EDIT_MAGIC: [u8; 4] = *b"MSed";
const HEADER_BYTES: usize = 24;
/// Largest manifest file in bytes: half a million tables.
pub(crate) const MANIFEST_BYTES_MAX: u64 = 64 << 20;

const TAG_ADD: u8 = 1;
const TAG_REMOVE: u8 = 2;
const TAG_FLUSHED: u8 = 3;
const TAG_EPOCH: u8 = 4;
const TAG_TIMELINE: u8 = 5;
const TAG_FLOOR: u8 = 6;
const TAG_ADD_INGESTED: u8 = 7;

/// The first record of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EpochStart {
    pub(crate) epoch: Epoch,
    pub(crate) lsn: Lsn,
    pub(crate) ts: CommitTs,
}

/// A record that changes the history the tree stands in, not its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Epoch(EpochStart),
    Timeline(TimelineStart),
}

/// A table and the level it is in; [`HISTORY`] for a history table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) level: u8,
    pub(crate) file: TableFile,
    /// Of an ingested table: the LSN that takes the place of the one its entries carry.
    pub(crate) ingested: Option<Lsn>,
}

impl Placed {
    /// A table of the tree's own making.
    pub(crate) const fn own(level: u8, file: TableFile) -> Self {
        Self { level, file, ingested: None }
    }
}

/// Everything the manifest knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// In the order of their adding: level 0 from old to new.
    pub(crate) tables: Vec<Placed>,
    pub(crate) flushed: Position,
    pub(crate) epochs: Vec<EpochStart>,
    pub(crate) timeline: Option<TimelineStart>,
    pub(crate) floor: (Lsn, CommitTs),
}

/// One change of the state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Edit {
    pub(crate) removed: Vec<u128>,
    pub(crate) added: Vec<Placed>,
    pub(crate) flushed: Option<Position>,
    pub(crate) events: Vec<Event>,
    pub(crate) floor: Option<(Lsn, CommitTs)>,
}

impl State {
    /// Carries out an edit.
    pub(crate) fn apply(&mut self, edit: &Edit) -> std::result::Result<(), Malformed> {
        for id in &edit.removed {
            let at = self.tables.iter().position(|t| t.file.id == *id);
            self.tables.remove(at.ok_or(Malformed("edit removes a table that is not there"))?);
        }
        for table in &edit.added {
            if self.tables.iter().any(|t| t.file.id == table.file.id) {
                return Err(Malformed("edit adds a table twice"));
            }
            self.tables.push(*table);
        }
        if let Some(flushed) = edit.flushed {
            if flushed.lsn < self.flushed.lsn {
                return Err(Malformed("flushed position goes back"));
            }
            self.flushed = flushed;
        }
        for event in &edit.events {
            match event {
                Event::Epoch(e) => self.epochs.push(*e),
                Event::Timeline(t) => self.timeline = Some(*t),
            }
        }
        if let Some(floor) = edit.floor {
            if floor.0 < self.floor.0 {
                return Err(Malformed("history floor goes back"));
            }
            self.floor = floor;
        }
        Ok(())
    }

    /// The format version that a manifest of this state has at least.
    pub(crate) fn version(&self) -> u32 {
        if self.tables.iter().any(|t| t.ingested.is_some()) { VERSION } else { VERSION_PLAIN }
    }

    /// The edit that builds this state from nothing.
    pub(crate) fn whole_edit(&self) -> Edit {
        let epochs = self.epochs.iter().map(|e| Event::Epoch(*e));
        Edit {
            removed: Vec::new(),
            added: self.tables.clone(),
            flushed: Some(self.flushed),
            events: epochs.chain(self.timeline.map(Event::Timeline)).collect(),
            floor: Some(self.floor),
        }
    }
}

impl Edit {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for id in &self.removed {
            out.push(TAG_REMOVE);
            out.extend_from_slice(&id.to_le_bytes());
        }
        for t in &self.added {
            match t.ingested {
                None => out.push(TAG_ADD),
                Some(lsn) => {
                    out.push(TAG_ADD_INGESTED);
                    put_varint(&mut out, lsn.0);
                }
            }
            out.push(t.level);
            out.extend_from_slice(&t.file.id.to_le_bytes());
            put_varint(&mut out, t.file.bytes);
            out.extend_from_slice(&t.file.blake3);
            put_varint(&mut out, t.file.entries);
        }
        if let Some(p) = &self.flushed {
            out.push(TAG_FLUSHED);
            [p.epoch.0, p.lsn.0, p.ts.0].into_iter().for_each(|n| put_varint(&mut out, n));
            out.extend_from_slice(&p.chain.0);
        }
        for event in &self.events {
            match event {
                Event::Epoch(e) => {
                    out.push(TAG_EPOCH);
                    [e.epoch.0, e.lsn.0, e.ts.0].into_iter().for_each(|n| put_varint(&mut out, n));
                }
                Event::Timeline(t) => {
                    out.push(TAG_TIMELINE);
                    put_slice(&mut out, &t.encode());
                }
            }
        }
        if let Some((lsn, ts)) = self.floor {
            out.push(TAG_FLOOR);
            [lsn.0, ts.0].into_iter().for_each(|n| put_varint(&mut out, n));
        }
        out
    }

    pub(super) fn decode(body: &[u8]) -> std::result::Result<Self, Malformed> {
        let mut c = Cursor::new(body);
        let mut out = Self::default();
        while !c.is_empty() {
            match c.u8()? {
                TAG_REMOVE => out.removed.push(c.u128()?),
                TAG_ADD => out.added.push(decode_placed(&mut c, None)?),
                TAG_ADD_INGESTED => {
                    let lsn = Lsn(c.varint()?);
                    out.added.push(decode_placed(&mut c, Some(lsn))?);
                }
                TAG_FLUSHED => {
                    let (epoch, lsn, ts) = (Epoch(c.varint()?), Lsn(c.varint()?), CommitTs(c.varint()?));
                    out.flushed = Some(Position { epoch, lsn, ts, chain: Chain(c.array()?) });
                }
                TAG_EPOCH => {
                    let (epoch, lsn, ts) = (Epoch(c.varint()?), Lsn(c.varint()?), CommitTs(c.varint()?));
                    out.events.push(Event::Epoch(EpochStart { epoch, lsn, ts }));
                }
                TAG_TIMELINE => out.events.push(Event::Timeline(TimelineStart::decode(c.slice(64)?)?)),
                TAG_FLOOR => out.floor = Some((Lsn(c.varint()?), CommitTs(c.varint()?))),
                _ => return Err(Malformed("manifest field of a newer format")),
            }
        }
        Ok(out)
    }
}

fn decode_placed(c: &mut Cursor<'_>, ingested: Option<Lsn>) -> std::result::Result<Placed, Malformed> {
    let level = c.u8()?;
    if level > HISTORY {
        return Err(Malformed("level over bound"));
    }
    let file = TableFile { id: c.u128()?, bytes: c.varint()?, blake3: c.array()?, entries: c.varint()? };
    Ok(Placed { level, file, ingested })
}

fn chain_after(prev: Chain, hash: u128) -> Chain {
    let mut input = [0u8; 32];
    input[..16].copy_from_slice(&prev.0);
    input[16..].copy_from_slice(&hash.to_le_bytes());
    Chain(xxh3_128(&input).to_le_bytes())
}

fn checksum(hash: u128, chain: Chain) -> u64 {
    let mut input = [0u8; 32];
    input[..16].copy_from_slice(&hash.to_le_bytes());
    input[16..].copy_from_slice(&chain.0);
    xxh3_64(&input)
}

/// Appends the header of a manifest file of this format version.
pub(crate) fn put_header(out: &mut Vec<u8>, version: u32) {
    let mut covered = MAGIC.to_le_bytes().to_vec();
    covered.extend_from_slice(&version.to_le_bytes());
    covered.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&covered);
    out.extend_from_slice(&xxh3_64(&covered).to_le_bytes());
}

/// Appends an edit; returns the chain after it.
pub(crate) fn put_edit(out: &mut Vec<u8>, prev: Chain, edit: &Edit) -> Chain {
    framed(out, prev, &edit.encode())
}

/// Appends an edit's body in its frame; returns the chain after it.
pub(super) fn framed(out: &mut Vec<u8>, prev: Chain, body: &[u8]) -> Chain {
    let hash = xxh3_128_with_seed(body, body.len() as u64);
    let chain = chain_after(prev, hash);
    out.extend_from_slice(&EDIT_MAGIC);
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(&checksum(hash, chain).to_le_bytes());
    out.extend_from_slice(&chain.0);
    out.extend_from_slice(body);
    chain
}

/// An edit that is whole in itself: its body, hash and chain.
fn take_edit<'a>(c: &mut Cursor<'a>) -> std::result::Result<(&'a [u8], u128, Chain), Malformed> {
    if c.array()? != EDIT_MAGIC {
        return Err(Malformed("no edit starts here"));
    }
    let len = c.u32()? as usize;
    let (sum, chain) = (c.u64()?, Chain(c.array()?));
    let body = c.bytes(len)?;
    let hash = xxh3_128_with_seed(body, body.len() as u64);
    if sum != checksum(hash, chain) {
        return Err(Malformed("edit checksum does not match its bytes"));
    }
    Ok((body, hash, chain))
}

/// A manifest file that was read.
#[derive(Debug, Default)]
pub(crate) struct Replayed {
    /// Of the file, by its header.
    pub(crate) version: u32,
    pub(crate) state: State,
    pub(crate) chain: Chain,
    /// Bytes that hold; what follows is a torn edit.
    pub(crate) len: u64,
    pub(crate) state_bytes: u64,
}

/// Reads a manifest file. An edit counts once it is synced, so an end that no whole edit follows
/// was never acknowledged and is left out; damage before a whole edit, or to the header or the
/// state (synced before `CURRENT` named the file), is corruption \[I4\].
pub(crate) fn replay(path: &Path, bytes: &[u8]) -> Result<Replayed> {
    let mut out = Replayed::default();
    replay_into(&mut out, path, bytes, |_, _, _| ())?;
    Ok(out)
}

/// [`replay`] that shows each edit with its place and leaves in `out` what held before an error.
pub(super) fn replay_into(
    out: &mut Replayed,
    path: &Path,
    bytes: &[u8],
    mut see: impl FnMut(u64, &Edit, &[u8]),
) -> Result<()> {
    let damaged = |at: usize, m: Malformed| Error::corruption(path, at as u64, None, m.0);
    out.version = check_header(path, bytes)?;
    let mut at = HEADER_BYTES;
    while let Some(rest) = bytes.get(at..).filter(|r| !r.is_empty() || out.len == 0) {
        let mut c = Cursor::new(rest);
        let (body, hash, chain) = match take_edit(&mut c) {
            Ok(edit) => edit,
            Err(m) if out.len == 0 || edit_follows(rest) => return Err(damaged(at, m)),
            Err(_) => break,
        };
        if chain != chain_after(out.chain, hash) {
            return Err(damaged(at, Malformed("edit does not continue the manifest")));
        }
        let edit = Edit::decode(body).map_err(|m| damaged(at, m))?;
        if out.version < VERSION && edit.added.iter().any(|t| t.ingested.is_some()) {
            return Err(damaged(at, Malformed("an ingested table in a manifest of an older format")));
        }
        out.state.apply(&edit).map_err(|m| damaged(at, m))?;
        see(at as u64, &edit, body);
        out.chain = chain;
        at += FRAME_BYTES + body.len();
        if out.len == 0 {
            out.state_bytes = at as u64;
        }
        out.len = at as u64;
    }
    Ok(())
}

fn check_header(path: &Path, bytes: &[u8]) -> Result<u32> {
    let fail = |m: Malformed| Error::corruption(path, 0, None, m.0);
    let mut c = Cursor::new(bytes);
    let covered = c.bytes(16).map_err(fail)?;
    let sum = c.u64().map_err(fail)?;
    let mut f = Cursor::new(covered);
    let (magic, version) = (f.u64().map_err(fail)?, f.u32().map_err(fail)?);
    if magic != MAGIC || sum != xxh3_64(covered) {
        return Err(fail(Malformed("not a manifest, or its header is damaged")));
    }
    if !(VERSION_PLAIN..=VERSION).contains(&version) {
        return Err(Error::Format { path: path.to_owned(), found: version, known: VERSION });
    }
    Ok(version)
}

/// Whether a whole edit stands anywhere behind the first byte of `rest`.
fn edit_follows(rest: &[u8]) -> bool {
    let starts = rest.windows(EDIT_MAGIC.len()).enumerate().skip(1).filter(|(_, w)| **w == EDIT_MAGIC);
    starts.into_iter().any(|(at, _)| rest.get(at..).is_some_and(|r| take_edit(&mut Cursor::new(r)).is_ok()))
}

/// What a manifest says about a tree, for a restore that has only its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestSummary {
    /// All at or below is in the tables.
    pub position: Position,
    /// The tables, in the manifest's order.
    pub tables: Vec<TableFile>,
    /// First LSN of each epoch.
    pub epoch_history: Vec<(Epoch, Lsn)>,
    /// The timeline's first record; `None` when the tree never saw one.
    pub timeline: Option<TimelineStart>,
    /// The oldest LSN that can be read at.
    pub history_floor: Lsn,
}

/// The state in the bytes of a checkpoint's manifest, which must end with a whole edit.
pub(crate) fn whole_state(bytes: &[u8]) -> Result<State> {
    let path = Path::new("manifest");
    let replayed = replay(path, bytes)?;
    if replayed.len == bytes.len() as u64 {
        Ok(replayed.state)
    } else {
        Err(Error::corruption(path, replayed.len, None, "the manifest ends in a torn edit"))
    }
}

/// Reads the bytes of a checkpoint's manifest.
///
/// # Errors
/// `Corruption` when they are damaged or torn, `Format` for a newer format.
pub fn manifest_tables(bytes: &[u8]) -> Result<ManifestSummary> {
    let s = whole_state(bytes)?;
    Ok(ManifestSummary {
        position: s.flushed,
        tables: s.tables.iter().map(|t| t.file).collect(),
        epoch_history: s.epochs.iter().map(|e| (e.epoch, e.lsn)).collect(),
        timeline: s.timeline,
        history_floor: s.floor.0,
    })
}
