//! Bulk load: tables written in key order, outside of any store, and a new store that begins with them.
//!
//! A [`TableWriter`] makes table files; [`load`] opens a new store on them. No log is written for what they hold:
//! it is the store's base, all at LSN 1, and its log begins behind it. Owns: that no table counts that was not read
//! whole (checksums, order, counts, LSNs, keys apart from those of the others), and the order in which the directory
//! becomes a store (identity last: before, it is none and can be loaded again). Never: a store that exists already,
//! which takes tables in through its log ([`Store::ingest`](crate::store::Store::ingest)).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_128;

use crate::batch::{Keyspace, LimitError};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::fs::{OpenMode, read_exact_at};
use crate::limits::{KEY_BYTES_MAX, METADATA_BYTES_MAX, Options, VALUE_BYTES_MAX};
use crate::lsn::{Chain, CommitTs, Epoch, Lsn, Position};
use crate::restore::Builder;
use crate::store::Identity;
use crate::table::builder::{BuildError, TableBuilder};
use crate::table::cache::BlockCache;
use crate::table::format::Origin;
use crate::table::reader::Table;
use crate::table::times::Times;
use crate::table::{EntryRef, TableFile, internal_key, table_name, verify_table};
use crate::tree::manifest_of;

/// The LSN of everything that a store begins with, and what entries carry until they are ingested.
const BASE: Lsn = Lsn(1);
/// Copied at once, in bytes.
const COPY_BYTES: usize = 1 << 20;

/// A finished table file that is no part of a store yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadyTable {
    /// Where it stands.
    pub path: PathBuf,
    /// What it is.
    pub file: TableFile,
}

/// Writes keys that come in ascending order to table files. Dropped before [`TableWriter::finish`], it leaves the
/// files that were full, and they may be removed.
#[derive(Debug)]
pub struct TableWriter {
    env: Env,
    dir: PathBuf,
    block_bytes: usize,
    table_bytes: u64,
    builder: Option<TableBuilder>,
    /// Keyspace and key of the last entry; empty before the first.
    last: Vec<u8>,
    envelope: Vec<u8>,
    done: Vec<ReadyTable>,
}

impl TableWriter {
    /// Writes files into the directory `dir`, which exists: of the sizes that `options` ask for, or there about.
    /// For hard links it must be on the file system of the store to be.
    #[must_use]
    pub fn new(env: Env, dir: &Path, options: &Options) -> Self {
        Self {
            env,
            dir: dir.to_owned(),
            block_bytes: options.block_bytes,
            table_bytes: options.table_bytes,
            builder: None,
            last: Vec::new(),
            envelope: Vec::new(),
            done: Vec::new(),
        }
    }

    /// Adds a key, which must be above the last one (by keyspace, then by key), with its value.
    ///
    /// # Errors
    /// `Limit` for a key or value too large, `Malformed` for one out of order: it is left out, others may follow.
    /// `DiskFull` and `Io` end the writer: its files are of no use.
    pub fn put(&mut self, keyspace: Keyspace, key: &[u8], value: &crate::value::Value<'_>) -> Result<()> {
        if key.len() > KEY_BYTES_MAX {
            return Err(LimitError::Key(key.len()).into());
        }
        if value.data.len() > VALUE_BYTES_MAX || value.metadata.len() > METADATA_BYTES_MAX {
            return Err(LimitError::Value(value.data.len().max(value.metadata.len())).into());
        }
        let key = internal_key(keyspace, key);
        if key <= self.last {
            return Err(crate::codec::Malformed("keys for a table must ascend").into());
        }
        if self.builder.as_ref().is_some_and(|b| b.bytes() >= self.table_bytes) {
            self.finish_table()?;
        }
        self.envelope.clear();
        value.encode(&mut self.envelope);
        let entry = EntryRef { key: &key, lsn: BASE, value: Some(&self.envelope) };
        let builder = match &mut self.builder {
            Some(builder) => builder,
            None => {
                let id = u128::from(self.env.rng.next_u64()) << 64 | u128::from(self.env.rng.next_u64());
                let made = TableBuilder::create(&self.env.fs, &self.dir, id, self.block_bytes, Origin::Compaction)?;
                self.builder.insert(made)
            }
        };
        builder.add(entry)?;
        self.last = key;
        Ok(())
    }

    fn finish_table(&mut self) -> Result<()> {
        let Some(builder) = self.builder.take() else { return Ok(()) };
        let file = builder.finish(&[], &Times::default(), self.env.clock.wall()).map_err(|e| match e {
            BuildError::Failed(e) => e,
            // No store depends on the file yet, so this ends the writer and not the process.
            BuildError::Sync(path, source) => Error::Io { action: "sync", path, source },
        })?;
        self.done.push(ReadyTable { path: self.dir.join(table_name(file.id)), file });
        Ok(())
    }

    /// Ends the last table and makes all of them durable.
    ///
    /// # Errors
    /// `DiskFull` and `Io`: the files are of no use then.
    pub fn finish(mut self) -> Result<Vec<ReadyTable>> {
        self.finish_table()?;
        let dir = &self.dir;
        self.env.fs.sync_dir(dir).map_err(|source| Error::Io { action: "sync", path: dir.clone(), source })?;
        Ok(self.done)
    }
}

/// How a table gets its place in a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// As a hard link: at once, on the same file system only. Nobody may write to the file afterwards; its other
    /// name may be removed.
    Link,
    /// As a copy.
    Copy,
}

/// What a store began with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Everything loaded is at or below.
    pub position: Position,
    /// Tables.
    pub tables: u64,
    /// Keys.
    pub entries: u64,
    /// Bytes of the tables.
    pub bytes: u64,
}

/// Makes a new store in `dir`, which must be absent or hold no store, that begins with `tables`: every file is read
/// and checked whole before it counts. The tables' keys must lie apart; their order does not matter. Open it with
/// [`Store::open_embedded`](crate::store::Store::open_embedded). After an error or a crash on the way, `dir` holds no
/// store and the same call may be made again; the tables are left as they are.
///
/// # Errors
/// `Directory` when there is a store, when a table stands inside of `dir`, or when a table may not be in a store's
/// base (made by a store and not by a [`TableWriter`], or across another one); `Corruption` naming a damaged one;
/// `InUse`, `Format`, `DiskFull`, `Io`; `Stopped` after a failed sync, which ends the process.
pub fn load(
    env: &Env,
    dir: &Path,
    options: &Options,
    identity: Identity,
    tables: &[PathBuf],
    place: Place,
) -> Result<Loaded> {
    // However it is spelled: what an earlier attempt left there is removed.
    let place_of = |path: &Path| env.fs.resolve(path).unwrap_or_else(|_| path.to_owned());
    let there = place_of(dir);
    if let Some(inside) = tables.iter().find(|t| t.starts_with(dir) || place_of(t).starts_with(&there)) {
        return Err(refused(inside, "stands in the directory that is to become the store; write tables elsewhere"));
    }
    load_into(env, dir, options, identity, tables, place).map_err(|e| crate::store::final_if_sync(env, e))
}

fn load_into(
    env: &Env,
    dir: &Path,
    options: &Options,
    identity: Identity,
    tables: &[PathBuf],
    place: Place,
) -> Result<Loaded> {
    crate::fs::create_dir_synced(&*env.fs, dir)?;
    let _lock = crate::store::lock_directory(env, dir)?;
    crate::store::begin_attempt(env, dir)?;
    let into = dir.join("tables");
    env.fs.create_dir_all(&into).map_err(|e| Error::io("create", &into, e))?;
    let mut checked = Vec::new();
    for from in tables {
        checked.push(take_in(env, from, &into, place)?);
    }
    check_apart(&mut checked)?;
    let sync =
        |dir: &Path| env.fs.sync_dir(dir).map_err(|source| Error::Io { action: "sync", path: dir.into(), source });
    sync(&into)?;
    sync(dir)?;
    let newest = checked.iter().map(|t| t.max_ts).max().unwrap_or_default();
    let ts = newest.max(env.clock.wall());
    let files: Vec<TableFile> = checked.iter().map(|t| t.file).collect();
    let position = Position { epoch: Epoch(0), lsn: BASE, ts, chain: base_chain(&files) };
    let builder = Builder::create(env.clone(), dir, options, Some(&manifest_of(&files, position)))?;
    builder.finish_seed(identity)?;
    crate::store::end_attempt(env, dir)?;
    let sum = |of: fn(&TableFile) -> u64| files.iter().map(of).sum();
    Ok(Loaded { position, tables: files.len() as u64, entries: sum(|f| f.entries), bytes: sum(|f| f.bytes) })
}

/// Stands for all that a base holds, as a record's chain for all before it: nodes that began with other tables are of
/// other histories. `files` come in the order of their keys.
fn base_chain(files: &[TableFile]) -> Chain {
    let mut content = b"mainstay base".to_vec();
    files.iter().for_each(|f| content.extend_from_slice(&f.blake3));
    Chain(xxh3_128(&content).to_le_bytes())
}

/// A table that has its place and was read whole.
pub(crate) struct Checked {
    from: PathBuf,
    pub(crate) file: TableFile,
    pub(crate) min_key: Vec<u8>,
    pub(crate) max_key: Vec<u8>,
    max_ts: CommitTs,
}

pub(crate) fn refused(path: &Path, what: impl Into<String>) -> Error {
    Error::Directory { path: path.to_owned(), what: what.into() }
}

/// Gives a table its place and proves what stands there then, whatever it was made from.
pub(crate) fn take_in(env: &Env, from: &Path, into: &Path, place: Place) -> Result<Checked> {
    let cache = Arc::new(BlockCache::new(0, 4096));
    let id = Table::open(&env.fs, from, &cache)?.id();
    let to = into.join(table_name(id));
    if env.fs.exists(&to).map_err(|e| Error::io("look for", &to, e))? {
        return Err(refused(from, "is given twice"));
    }
    match place {
        Place::Link => {
            env.fs.hard_link(from, &to).map_err(|e| Error::io("link", &to, e))?;
            // Whoever wrote it may not have synced it.
            let file = env.fs.open(&to, OpenMode::Read).map_err(|e| Error::io("open", &to, e))?;
            file.sync_data().map_err(|source| Error::Io { action: "sync", path: to.clone(), source })?;
        }
        Place::Copy => copy(env, from, &to)?,
    }
    let file = verify_table(&env.fs, &to)?;
    let table = Table::open(&env.fs, &to, &cache)?;
    let p = table.properties();
    if p.origin == Origin::History || !table.ranges().is_empty() || p.deletes > 0 || p.last_time.0 > Lsn::ZERO {
        return Err(refused(from, "was made by a store; only tables that a TableWriter wrote can be taken in"));
    }
    if p.min_lsn != BASE || p.max_lsn != BASE {
        return Err(refused(from, format!("holds LSNs up to {}, a store begins with LSN {BASE}", p.max_lsn)));
    }
    let (min_key, max_key, max_ts) = (p.min_key.clone(), p.max_key.clone(), p.max_ts);
    Ok(Checked { from: from.to_owned(), file, min_key, max_key, max_ts })
}

fn copy(env: &Env, from: &Path, to: &Path) -> Result<()> {
    let source = env.fs.open(from, OpenMode::Read).map_err(|e| Error::io("open", from, e))?;
    let target = env.fs.open(to, OpenMode::CreateNew).map_err(|e| Error::io("create", to, e))?;
    let len = source.len().map_err(|e| Error::io("measure", from, e))?;
    let (mut at, mut buffer) = (0, vec![0; COPY_BYTES]);
    while at < len {
        let n = usize::try_from(len - at).unwrap_or(COPY_BYTES).min(COPY_BYTES);
        let part = buffer.get_mut(..n).unwrap_or_default();
        read_exact_at(&*source, part, at).map_err(|e| Error::io("read", from, e))?;
        target.write_all_at(part, at).map_err(|e| Error::io("write", to, e))?;
        at += n as u64;
    }
    target.sync_data().map_err(|source| Error::Io { action: "sync", path: to.to_owned(), source })
}

/// Sorts tables by key: no key may be in two of them.
pub(crate) fn check_apart(tables: &mut [Checked]) -> Result<()> {
    tables.sort_by(|a, b| a.min_key.cmp(&b.min_key));
    for pair in tables.windows(2) {
        if let [a, b] = pair
            && b.min_key <= a.max_key
        {
            return Err(refused(&b.from, format!("has keys between those of {}", a.from.display())));
        }
    }
    Ok(())
}
