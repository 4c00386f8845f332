//! The manifest on disk: `manifest/{n:016x}.manifest` and `manifest/CURRENT`, which names it.
//!
//! Owns: the order of writes and syncs that makes an edit count, rotation, the switch of `CURRENT`.
//! Never: what an edit means (`manifest`). A new file is synced, then its directory, then `CURRENT`
//! is renamed into place and the directory synced again \[I3\].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::fs::{File, Fs, OpenMode, read_file};
use crate::lsn::Chain;

use super::manifest::{Edit, MANIFEST_BYTES_MAX, State, put_edit, put_header, replay};
use super::stop::Stop;

const CURRENT: &str = "CURRENT";
const CURRENT_TMP: &str = "CURRENT.tmp";

pub(super) fn manifest_name(number: u64) -> String {
    format!("{number:016x}.manifest")
}

pub(super) fn parse_manifest_name(name: &str) -> Option<u64> {
    let number = u64::from_str_radix(name.strip_suffix(".manifest")?, 16).ok()?;
    (manifest_name(number) == name).then_some(number)
}

/// Whether `dir` holds a manifest that counts.
pub(crate) fn exists(fs: &dyn Fs, dir: &Path) -> Result<bool> {
    let path = dir.join(CURRENT);
    fs.exists(&path).map_err(|e| Error::io("look for", &path, e))
}

#[derive(Debug)]
pub(crate) struct Manifest {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    number: u64,
    file: Arc<dyn File>,
    version: u32,
    len: u64,
    state_bytes: u64,
    chain: Chain,
    state: State,
    /// See [`Options::manifest_bytes`](crate::Options::manifest_bytes).
    rotate_bytes: u64,
    /// What was read, if it may be in the page cache only (see [`Manifest::settle`]).
    unproven: Option<Vec<u8>>,
    /// The file that was read ends in an edit that is not whole.
    torn: bool,
}

impl Manifest {
    /// Starts the manifest of a new tree in an existing directory without one.
    pub(crate) fn create(fs: &Arc<dyn Fs>, dir: &Path, state: State, stop: &Stop) -> Result<Self> {
        write_file(fs, dir, 1, state, stop)
    }

    /// Reads the manifest that `CURRENT` names, and changes nothing: see [`Manifest::settle`].
    pub(crate) fn open(fs: &Arc<dyn Fs>, dir: &Path) -> Result<Self> {
        let number = read_current(fs, dir)?;
        let path = dir.join(manifest_name(number));
        let mut bytes = read_file(&**fs, &path, MANIFEST_BYTES_MAX).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                Error::corruption(&path, 0, None, "the manifest named by CURRENT is missing")
            }
            std::io::ErrorKind::InvalidData => Error::corruption(&path, 0, None, "the manifest is over its bound"),
            _ => Error::io("read", &path, e),
        })?;
        let r = replay(&path, &bytes)?;
        // To be written to it is opened again: what is only looked at may be on a disk that takes no writes.
        let file = fs.open(&path, OpenMode::Read).map_err(|e| Error::io("open", &path, e))?;
        let torn = r.len < bytes.len() as u64;
        bytes.truncate(usize::try_from(r.len).unwrap_or(usize::MAX));
        let (fs, dir) = (Arc::clone(fs), dir.to_owned());
        let (version, len, state_bytes, chain, state) = (r.version, r.len, r.state_bytes, r.chain, r.state);
        let (rotate_bytes, unproven) = (u64::MAX, Some(bytes));
        Ok(Self { fs, dir, number, file, version, len, state_bytes, chain, state, rotate_bytes, unproven, torn })
    }

    /// A new file takes this one's place at the first edit above so many bytes.
    pub(crate) const fn set_rotate_bytes(&mut self, bytes: u64) {
        self.rotate_bytes = bytes;
    }

    /// Makes what [`Manifest::open`] read durable: the last process may have ended before its sync, or
    /// because of it, and log is released by what the manifest says. Cuts off a torn last edit.
    pub(crate) fn settle(&mut self, stop: &Stop) -> Result<()> {
        let Some(bytes) = self.unproven.take() else { return Ok(()) };
        let path = self.dir.join(manifest_name(self.number));
        self.file = self.fs.open(&path, OpenMode::Write).map_err(|e| Error::io("open", &path, e))?;
        if self.file.len().map_err(|e| Error::io("measure", &path, e))? > self.len {
            self.file.set_len(self.len).map_err(|e| Error::io("cut", &path, e))?;
        }
        self.file.write_all_at(&bytes, 0).map_err(|e| Error::io("write", &path, e))?;
        self.file.sync_data().map_err(|e| stop.fatal("sync", &path, &e))?;
        self.fs.sync_dir(&self.dir).map_err(|e| stop.fatal("sync", &self.dir, &e))
    }

    /// Adds to an error that what this manifest says does not fit the rest: a last edit that is not whole may be to blame.
    /// Files are removed and log is released by edits that are durable, so one that is missed so was not torn by a crash.
    pub(crate) fn explain(&self, e: Error) -> Error {
        let (at, manifest) = (self.len, self.dir.join(manifest_name(self.number)));
        let blamed = |what: String| {
            let manifest = manifest.display();
            format!(
                "{what}; the manifest's last edit, at offset {at} of {manifest}, is not whole and may be what is damaged"
            )
        };
        match e {
            Error::Corruption { path, offset, lsn, what } if self.torn => {
                Error::Corruption { path, offset, lsn, what: blamed(what) }
            }
            Error::Directory { path, what } if self.torn => Error::Directory { path, what: blamed(what) },
            e => e,
        }
    }

    pub(crate) const fn state(&self) -> &State {
        &self.state
    }

    /// Makes an edit durable. After `DiskFull` the manifest is as before and the edit may be tried
    /// again; any other failure stops the tree.
    pub(crate) fn append(&mut self, edit: &Edit, stop: &Stop) -> Result<()> {
        stop.check()?;
        let mut state = self.state.clone();
        state.apply(edit)?;
        // A file whose version does not speak of ingested tables gets none.
        if self.len > self.rotate_bytes.max(4 * self.state_bytes).min(MANIFEST_BYTES_MAX / 2)
            || self.version < state.version()
        {
            let old = self.dir.join(manifest_name(self.number));
            let rotate_bytes = self.rotate_bytes;
            *self = write_file(&self.fs, &self.dir, self.number + 1, state, stop)?;
            self.rotate_bytes = rotate_bytes;
            // A file that stays is removed at the next open.
            let _ = self.fs.remove_file(&old);
            return Ok(());
        }
        let mut bytes = Vec::new();
        let chain = put_edit(&mut bytes, self.chain, edit);
        let path = self.dir.join(manifest_name(self.number));
        if let Err(e) = self.file.write_all_at(&bytes, self.len) {
            return Err(self.undo(&path, e, stop));
        }
        self.file.sync_data().map_err(|e| stop.fatal("sync", &path, &e))?;
        self.len += bytes.len() as u64;
        self.chain = chain;
        self.state = state;
        Ok(())
    }

    /// Takes a partly written edit back. It must be gone for good before the caller removes the
    /// tables it names, else a crash could leave an edit that names missing files.
    fn undo(&self, path: &Path, e: std::io::Error, stop: &Stop) -> Error {
        let full = Error::io("write", path, e);
        match full {
            Error::DiskFull { .. } => match self.file.set_len(self.len).and_then(|()| self.file.sync_data()) {
                Ok(()) => full,
                Err(e) => stop.fatal("cut", path, &e),
            },
            Error::Io { source, .. } => stop.fatal("write", path, &source),
            other => other,
        }
    }

    /// Removes every file of the directory that is not this manifest.
    pub(crate) fn remove_others(&self) -> Result<()> {
        let names = self.fs.list(&self.dir).map_err(|e| Error::io("list", &self.dir, e))?;
        for name in names {
            let other = parse_manifest_name(&name).is_some_and(|n| n != self.number);
            if other || name == CURRENT_TMP {
                let path = self.dir.join(&name);
                self.fs.remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
            }
        }
        Ok(())
    }
}

/// The number of the manifest that `CURRENT` names.
pub(super) fn read_current(fs: &Arc<dyn Fs>, dir: &Path) -> Result<u64> {
    let path = dir.join(CURRENT);
    let bytes = read_file(&**fs, &path, 64).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            Error::Directory { path: dir.to_owned(), what: "no tree here; create one or restore a backup".into() }
        }
        std::io::ErrorKind::InvalidData => Error::corruption(&path, 0, None, "CURRENT does not name a manifest"),
        _ => Error::io("read", &path, e),
    })?;
    let name = std::str::from_utf8(&bytes).ok().and_then(|s| s.strip_suffix('\n'));
    let number = name.and_then(parse_manifest_name);
    number.ok_or_else(|| Error::corruption(&path, 0, None, "CURRENT does not name a manifest"))
}

/// The bytes of a fresh manifest file, and the chain at its end.
pub(crate) fn state_bytes(state: &State) -> (Vec<u8>, Chain) {
    let mut bytes = Vec::new();
    put_header(&mut bytes, state.version());
    let chain = put_edit(&mut bytes, Chain::default(), &state.whole_edit());
    (bytes, chain)
}

/// Writes a whole manifest file and makes it the current one.
fn write_file(fs: &Arc<dyn Fs>, dir: &Path, number: u64, state: State, stop: &Stop) -> Result<Manifest> {
    let (bytes, chain) = state_bytes(&state);
    let name = manifest_name(number);
    let path = dir.join(&name);
    let file = put_file(fs, &path, &bytes, stop)?;
    fs.sync_dir(dir).map_err(|e| stop.fatal("sync", dir, &e))?;
    let tmp = dir.join(CURRENT_TMP);
    if let Err(e) = put_file(fs, &tmp, format!("{name}\n").as_bytes(), stop) {
        let _ = fs.remove_file(&path);
        return Err(e);
    }
    let current = dir.join(CURRENT);
    if let Err(e) = fs.rename(&tmp, &current) {
        return Err(match Error::io("rename", &tmp, e) {
            // A rename is all or nothing; without room for the new name there is none.
            full @ Error::DiskFull { .. } => {
                let _ = fs.remove_file(&tmp).and_then(|()| fs.remove_file(&path));
                full
            }
            Error::Io { source, .. } => stop.fatal("rename", &tmp, &source),
            other => other,
        });
    }
    // From here on nobody knows which manifest a crash would find: failing is final.
    fs.sync_dir(dir).map_err(|e| stop.fatal("sync", dir, &e))?;
    let (version, len) = (state.version(), bytes.len() as u64);
    let (fs, dir) = (Arc::clone(fs), dir.to_owned());
    Ok(Manifest {
        fs,
        dir,
        number,
        file,
        version,
        len,
        state_bytes: len,
        chain,
        state,
        rotate_bytes: u64::MAX,
        unproven: None,
        torn: false,
    })
}

/// Writes and syncs a new file in place of a leftover; a failed write leaves none.
fn put_file(fs: &Arc<dyn Fs>, path: &Path, bytes: &[u8], stop: &Stop) -> Result<Arc<dyn File>> {
    if fs.exists(path).map_err(|e| Error::io("look for", path, e))? {
        fs.remove_file(path).map_err(|e| Error::io("remove", path, e))?;
    }
    let file = fs.open(path, OpenMode::CreateNew).map_err(|e| Error::io("create", path, e))?;
    if let Err(e) = file.write_all_at(bytes, 0) {
        let _ = fs.remove_file(path);
        return Err(Error::io("write", path, e));
    }
    file.sync_data().map_err(|e| stop.fatal("sync", path, &e))?;
    Ok(file)
}
