//! The file-system seam: the few calls that the engine makes on files, and who answers them.
//!
//! Owns: the traits and small helpers on them. `os` is the only module of the workspace's core
//! that touches real files; `sim` (feature `sim`) is a disk that crashes, tears, stalls and lies.
//! Never: caching, retrying, or deciding what an error means.

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod blocks;
#[cfg(test)]
mod conformance;
pub mod os;
#[cfg(feature = "sim")]
pub mod sim;
mod window;

pub use blocks::Blocks;

/// Unit, in bytes, of what [`Fs::open_direct`] takes: no disk of today has larger blocks.
pub const DIRECT_BYTES: usize = 4096;

/// How to open a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Existing file, reads only.
    Read,
    /// Existing file, reads and writes.
    Write,
    /// New file, reads and writes; an existing name is an error.
    CreateNew,
}

#[expect(clippy::len_without_is_empty, reason = "emptiness of a file is never asked")]
/// An open file. All calls are positional and may be made from several threads.
pub trait File: Send + Sync + Debug {
    /// Reads up to `buf.len()` bytes at `offset`; 0 at the end of the file.
    ///
    /// # Errors
    /// The operating system's.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `buf` at `offset`, growing the file if needed. Not durable before
    /// [`File::sync_data`]; after an error any part of it may have been written.
    ///
    /// # Errors
    /// The operating system's.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Length in bytes.
    ///
    /// # Errors
    /// The operating system's.
    fn len(&self) -> io::Result<u64>;

    /// Cuts or grows (with zeros) the file.
    ///
    /// # Errors
    /// The operating system's.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes data and length durable (`fdatasync`). An error means that data may be lost for good:
    /// the caller must not retry and must not go on \[I3\].
    ///
    /// # Errors
    /// The operating system's.
    fn sync_data(&self) -> io::Result<()>;

    /// A window on `from..from + len`, which must lie inside the file; `None` where there is no such thing, and the
    /// caller writes as usual.
    ///
    /// # Errors
    /// The operating system's: the bytes there cannot be read or written.
    fn window(&self, from: u64, len: usize) -> io::Result<Option<Box<dyn Window>>> {
        let _ = (from, len);
        Ok(None)
    }
}

/// A stretch of a file that takes small writes without a call to the operating system for each. What is written
/// survives the process at once, shows in reads of the file at once, and is durable after [`File::sync_data`],
/// as with [`File::write_all_at`].
pub trait Window: Send + Debug {
    /// Writes all of `buf` at `offset` of the file.
    ///
    /// # Errors
    /// `InvalidInput` outside the window.
    fn write_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()>;
}

/// A held lock on a directory; released on drop or when the process ends.
pub trait LockGuard: Send + Sync + Debug {}

/// A file system.
pub trait Fs: Send + Sync + Debug {
    /// Opens a file.
    ///
    /// # Errors
    /// `NotFound`, `AlreadyExists`, or the operating system's.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>>;

    /// A second handle on an existing file, whose writes bypass the page cache and are durable when they return; they
    /// cover whole blocks of [`DIRECT_BYTES`], from memory aligned alike ([`Blocks`]). What other handles wrote
    /// is not made durable by it. `None` where there is no such thing.
    ///
    /// # Errors
    /// `NotFound`, or the operating system's.
    fn open_direct(&self, path: &Path) -> io::Result<Option<Arc<dyn File>>> {
        let _ = path;
        Ok(None)
    }

    /// Creates a directory and its parents; existing ones are fine.
    ///
    /// # Errors
    /// The operating system's.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;

    /// Renames a file or directory over `to`. Durable only after `sync_dir` of both parents.
    ///
    /// # Errors
    /// The operating system's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives a file a second name; an existing `to` is an error.
    ///
    /// # Errors
    /// The operating system's.
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file's name.
    ///
    /// # Errors
    /// The operating system's.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes a directory and all in it.
    ///
    /// # Errors
    /// The operating system's.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;

    /// Names in a directory, sorted.
    ///
    /// # Errors
    /// `NotFound`, or the operating system's.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;

    /// Whether a name exists.
    ///
    /// # Errors
    /// The operating system's.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Has at hand what [`Fs::sync_dir`] of an existing directory needs, so that it does not fail for want of a handle.
    ///
    /// # Errors
    /// The operating system's.
    fn keep_dir(&self, path: &Path) -> io::Result<()> {
        let _ = path;
        Ok(())
    }

    /// Makes the names in a directory durable. Needs no other open file where [`Fs::keep_dir`] was called before, or
    /// itself a short while ago.
    ///
    /// # Errors
    /// The operating system's; as final as a failed `sync_data`.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Takes an exclusive lock on `path` (a lock file, created if absent), without waiting.
    ///
    /// # Errors
    /// `WouldBlock` when another process holds it, or the operating system's.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>>;

    /// Where an existing `path` leads: absolute, without links and `..`, so that two names of one place are equal.
    ///
    /// # Errors
    /// `NotFound`, or the operating system's.
    fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        Ok(path.to_owned())
    }

    /// Bytes free for this user on the file system of `path`.
    ///
    /// # Errors
    /// The operating system's.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
}

/// Creates a directory and its parents, and makes their names durable: what is synced inside is no
/// safer than they are. An existing one may be of an attempt that ended before this was done.
///
/// # Errors
/// The operating system's, and what it answered to: nothing is to be built on a directory whose sync failed.
pub fn create_dir_synced(fs: &dyn Fs, path: &Path) -> Result<(), NotReplaced> {
    let failed = |source| NotReplaced::Create { path: path.to_owned(), source };
    let mut parents = Vec::new();
    for parent in path.ancestors().skip(1) {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        parents.push(parent);
        if fs.exists(parent).map_err(failed)? {
            break;
        }
    }
    let there = fs.exists(path).map_err(failed)?;
    fs.create_dir_all(path).map_err(failed)?;
    for parent in parents {
        match fs.sync_dir(parent) {
            // Somebody else made the directory, where this process may not look.
            Err(e) if there && e.kind() == io::ErrorKind::PermissionDenied => {}
            other => other.map_err(|source| NotReplaced::Sync { path: parent.to_owned(), source })?,
        }
    }
    Ok(())
}

/// Fills `buf` from `offset`.
///
/// # Errors
/// `UnexpectedEof` when the file ends before, or the operating system's.
pub fn read_exact_at(file: &dyn File, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match file.read_at(buf, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                buf = buf.get_mut(n..).unwrap_or_default();
                offset += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Reads a whole file of at most `max` bytes.
///
/// # Errors
/// `InvalidData` when it is longer, or the operating system's.
pub fn read_file(fs: &dyn Fs, path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let file = fs.open(path, OpenMode::Read)?;
    let len = file.len()?;
    if len > max {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("file of {len} bytes is over the bound of {max}"),
        ));
    }
    let mut buf = vec![0; usize::try_from(len).map_err(|_| io::ErrorKind::InvalidData)?];
    read_exact_at(&*file, &mut buf, 0)?;
    Ok(buf)
}

/// Replaces `dir/name` so that a crash leaves the old or the new content, whole: temporary file,
/// sync, rename, directory sync \[I3\].
///
/// # Errors
/// The operating system's, and what it answered to.
pub fn write_atomic(fs: &dyn Fs, dir: &Path, name: &str, bytes: &[u8]) -> Result<(), NotReplaced> {
    let tmp = dir.join(format!("{name}.tmp"));
    let path = dir.join(name);
    let failed = |source| NotReplaced::Write { path: path.clone(), source };
    if fs.exists(&tmp).map_err(failed)? {
        fs.remove_file(&tmp).map_err(failed)?;
    }
    let created = fs.open(&tmp, OpenMode::CreateNew);
    let file = created.map_err(|source| NotReplaced::Create { path: tmp.clone(), source })?;
    file.write_all_at(bytes, 0).map_err(failed)?;
    file.sync_data().map_err(|source| NotReplaced::Sync { path: tmp.clone(), source })?;
    fs.rename(&tmp, &path).map_err(failed)?;
    fs.sync_dir(dir).map_err(|source| NotReplaced::Sync { path: dir.to_owned(), source })
}

/// Why [`write_atomic`] failed, or [`create_dir_synced`].
#[derive(Debug, thiserror::Error)]
pub enum NotReplaced {
    /// The temporary file, or the directory, could not be made; nothing was done.
    #[error("cannot create {}: {source}", path.display())]
    Create {
        /// File or directory.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// It could not be written; the old content stays.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// What was to be replaced.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A sync failed, which is final whatever the reason \[I3\]: the content may be either.
    #[error("cannot sync {}: {source}", path.display())]
    Sync {
        /// File or directory.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
}

impl From<NotReplaced> for io::Error {
    fn from(e: NotReplaced) -> Self {
        match e {
            NotReplaced::Create { source, .. }
            | NotReplaced::Write { source, .. }
            | NotReplaced::Sync { source, .. } => source,
        }
    }
}
