//! A table file as values, for who looks into one: properties, blocks, entries.
//!
//! Owns: the public picture of a table. Never: the block cache of a tree, more memory than index, filter and
//! a read-ahead, and never a write.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::batch::Keyspace;
use crate::error::Result;
use crate::fs::Fs;
use crate::lsn::{CommitTs, Lsn};

use super::cache::BlockCache;
use super::cursor::TableCursor;
use super::format::{FOOTER_BYTES, FRAME_BYTES, Origin, Place, VERSION};
use super::reader::{Caching, Table};
use super::superseded::Superseded;
use super::{Bounds, internal_end, internal_key};

/// What made a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableOrigin {
    /// A flush of a memtable.
    Flush,
    /// A merge.
    Compaction,
    /// Versions that newer ones superseded.
    History,
}

/// What a table says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableProperties {
    /// Format of the file.
    pub format: u32,
    /// Its name.
    pub id: u128,
    /// Its length in bytes.
    pub bytes: u64,
    /// What made it.
    pub origin: TableOrigin,
    /// Versions of keys, deletes included.
    pub entries: u64,
    /// Deletes among them.
    pub deletes: u64,
    /// Entries that expire.
    pub expiring: u64,
    /// Range deletes, which are no entries.
    pub range_deletes: u64,
    /// Data blocks.
    pub data_blocks: u64,
    /// Payload of the data blocks before compression, in bytes.
    pub raw_bytes: u64,
    /// Lowest and highest key, each with its keyspace; `None` without entries.
    pub keys: Option<(SpacedKey, SpacedKey)>,
    /// Lowest and highest LSN of entries and range deletes.
    pub lsns: (Lsn, Lsn),
    /// Commit time of the newest record it stems from.
    pub newest: CommitTs,
    /// Earliest and latest expiry, microseconds of commit time; zero without any.
    pub expiry: (u64, u64),
    /// Of a history table, the highest superseding LSN.
    pub superseded: Lsn,
    /// Where its parts stand, in the order of the file.
    pub sections: Vec<Section>,
}

/// A key with its keyspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpacedKey {
    /// Space of the key.
    pub keyspace: Keyspace,
    /// The key.
    pub key: Vec<u8>,
}

/// A part of a table file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// Which.
    pub name: &'static str,
    /// Where it begins.
    pub offset: u64,
    /// Its length; an empty section has no bytes.
    pub bytes: u64,
}

/// A data block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockView {
    /// Its number, from 0.
    pub number: u64,
    /// Where it stands.
    pub offset: u64,
    /// Bytes in the file, frame included.
    pub bytes: u64,
    /// Bytes of its payload before compression.
    pub raw_bytes: u64,
    /// Whether it is compressed.
    pub packed: bool,
    /// Entries in it.
    pub entries: u64,
    /// Its separator in the index: at or above all its keys.
    pub separator: SpacedKey,
}

/// An entry, borrowed from where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryView<'a> {
    /// Space of the key.
    pub keyspace: Keyspace,
    /// The key.
    pub key: &'a [u8],
    /// Its version.
    pub lsn: Lsn,
    /// The value's envelope; `None` for a delete.
    pub envelope: Option<&'a [u8]>,
    /// Of a history table: reads at this LSN and above do not see the version.
    pub superseded_by: Option<Lsn>,
}

/// A range delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeView {
    /// First key removed.
    pub start: SpacedKey,
    /// First key kept; `None` for no bound.
    pub end: Option<SpacedKey>,
    /// Versions below this are removed.
    pub lsn: Lsn,
}

pub(crate) fn spaced(internal: &[u8]) -> SpacedKey {
    let (space, key) = internal.split_first().map_or((0, &[][..]), |(space, key)| (*space, key));
    SpacedKey { keyspace: Keyspace(space), key: key.to_vec() }
}

/// An opened table file. Its footer, properties and range deletes hold.
#[derive(Debug)]
pub struct TableView(Arc<Table>);

impl TableView {
    /// Opens a table file.
    ///
    /// # Errors
    /// `Corruption` naming file and offset, `Format` for another format, `Io`.
    pub fn open(fs: &Arc<dyn Fs>, path: &Path) -> Result<Self> {
        Ok(Self(Arc::new(Table::open(fs, path, &Arc::new(BlockCache::new(0, 4096)))?)))
    }

    /// What the table says of itself.
    #[must_use]
    pub fn properties(&self) -> TableProperties {
        let (table, p) = (&*self.0, self.0.properties());
        let part = |name, at: Place| Section { name, offset: at.offset, bytes: at.len };
        let footer = FOOTER_BYTES as u64;
        TableProperties {
            format: VERSION,
            id: table.id(),
            bytes: table.bytes(),
            origin: match p.origin {
                Origin::Flush => TableOrigin::Flush,
                Origin::Compaction => TableOrigin::Compaction,
                Origin::History => TableOrigin::History,
            },
            entries: p.entries,
            deletes: p.deletes,
            expiring: p.expiring,
            range_deletes: p.range_deletes,
            data_blocks: p.data_blocks,
            raw_bytes: p.raw_bytes,
            keys: (p.entries > 0).then(|| (spaced(&p.min_key), spaced(&p.max_key))),
            lsns: (p.min_lsn, p.max_lsn),
            newest: p.max_ts,
            expiry: p.expiry,
            superseded: p.superseded,
            sections: vec![
                Section { name: "data", offset: 0, bytes: p.ranges.offset },
                part("ranges", p.ranges),
                part("times", p.times),
                part("filter", p.filter),
                part("index", p.index),
                part("properties", table.properties_at),
                Section { name: "footer", offset: table.bytes().saturating_sub(footer), bytes: footer },
            ],
        }
    }

    /// The range deletes, in the order of the file.
    #[must_use]
    pub fn ranges(&self) -> Vec<RangeView> {
        let view = |r: &super::RangeDelete| RangeView {
            start: spaced(&r.start),
            end: (!r.end.is_empty()).then(|| spaced(&r.end)),
            lsn: r.lsn,
        };
        self.0.ranges().iter().map(view).collect()
    }

    /// LSN and commit time of the records that the table stems from, as far as it keeps them.
    ///
    /// # Errors
    /// `Corruption`, `Io`.
    pub fn times(&self) -> Result<Vec<(Lsn, CommitTs)>> {
        Ok(self.0.times()?.iter().collect())
    }

    /// The data blocks in order. One that is damaged is an error in its place; the next ones follow.
    ///
    /// # Errors
    /// `Corruption` when the index is damaged, `Io`.
    pub fn blocks(&self) -> Result<impl Iterator<Item = Result<BlockView>> + '_> {
        let count = self.0.index()?.len();
        Ok((0..count).map(|number| self.block(number)))
    }

    fn block(&self, number: usize) -> Result<BlockView> {
        let (table, index) = (&self.0, self.0.index()?);
        let at = index.place(number).unwrap_or_default();
        let block = table.block(at, Caching::Bypass)?;
        let frame = table.read_raw(Place { len: FRAME_BYTES as u64, ..at })?;
        let raw = frame.get(8..12).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b));
        Ok(BlockView {
            number: number as u64,
            offset: at.offset,
            bytes: at.len,
            raw_bytes: u64::from(raw),
            packed: frame.get(1).is_some_and(|codec| *codec != 0),
            entries: block.len() as u64,
            separator: spaced(&index.separator(number)),
        })
    }

    /// The entries with keys in `range` of a keyspace (an empty end: to the end of the keyspace); all of the
    /// table's without a range.
    #[must_use]
    pub fn entries(&self, range: Option<(Keyspace, Range<&[u8]>)>) -> Entries {
        let bounds = match range {
            Some((space, r)) => Bounds::new(internal_key(space, r.start), internal_end(space, r.end)),
            None => Bounds::all(),
        };
        let history = self.0.properties().origin == Origin::History;
        Entries { cursor: TableCursor::new(Arc::clone(&self.0), bounds, false, Caching::Bypass), history }
    }
}

/// Entries in the order of the file: by key, newest version first.
#[derive(Debug)]
pub struct Entries {
    cursor: TableCursor,
    history: bool,
}

impl Entries {
    /// The next entry; `None` at the end. An error ends it.
    ///
    /// # Errors
    /// `Corruption` naming the damaged block, `Io`.
    #[expect(clippy::should_implement_trait, reason = "it lends what it stands on")]
    pub fn next(&mut self) -> Result<Option<EntryView<'_>>> {
        if !self.cursor.advance()? {
            return Ok(None);
        }
        let Some(entry) = self.cursor.entry() else { return Ok(None) };
        let (space, key) = entry.key.split_first().map_or((0, &[][..]), |(space, key)| (*space, key));
        let view =
            EntryView { keyspace: Keyspace(space), key, lsn: entry.lsn, envelope: entry.value, superseded_by: None };
        if !self.history {
            return Ok(Some(view));
        }
        let bytes = entry.value.unwrap_or_default();
        let s = Superseded::decode(bytes)?;
        let envelope = s.put.then(|| bytes.get(s.envelope_at..).unwrap_or_default());
        Ok(Some(EntryView { envelope, superseded_by: Some(s.by), ..view }))
    }
}
