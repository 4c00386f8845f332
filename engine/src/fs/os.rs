//! The real file system. The only module of the engine that touches the operating system's files.
//!
//! Owns: positional reads and writes, `fdatasync`, directory sync and the handles it needs, advisory locks. Never:
//! retrying a failed sync \[I3\], reading through mapped files (an I/O error must come back as a value; see `window`).

#![expect(clippy::disallowed_methods, reason = "this is the file-system seam")]

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::too_many_files;

use super::window::Mapped;
use super::{File, Fs, LockGuard, OpenMode, Window};

/// Directories whose handles are kept for their next sync. A store syncs four of them again and again.
const DIRS_KEPT: usize = 16;

/// How often, and after which pause, a directory is opened for its sync again while too many files are open.
const OPEN_TRIES: u32 = 1000;
const OPEN_PAUSE: Duration = Duration::from_millis(10);

/// The operating system's files. Directories are made with mode 0700, files with 0600.
#[derive(Debug, Default)]
pub struct OsFs {
    dirs: Mutex<Dirs>,
}

#[derive(Debug, Default)]
struct Dirs {
    /// The one synced last is at the end.
    open: Vec<Arc<OpenDir>>,
    /// Given up for a directory that has to be opened when no more files may be: its sync must not fail for that.
    spare: Option<fs::File>,
}

impl Dirs {
    /// Opens a directory, with the spare handle if there is no other.
    fn open(&mut self, path: &Path) -> io::Result<OpenDir> {
        let opened = match OpenDir::open(path) {
            Err(e) if too_many_files(&e) && self.spare.take().is_some() => OpenDir::open(path),
            other => other,
        };
        if self.spare.is_none() && opened.is_ok() {
            self.spare = fs::File::open("/dev/null").ok();
        }
        opened
    }

    /// Makes place for one more. A directory whose sync failed stays: anew it would be told of no failure.
    fn evict(&mut self) {
        while self.open.len() >= DIRS_KEPT
            && let Some(at) = self.open.iter().position(|d| lock(&d.failed).is_none())
        {
            drop(self.open.remove(at));
        }
    }
}

/// A directory that stays open: when no more files may be opened its names can still be made durable, and a sync that
/// fails is the disk's failure.
#[derive(Debug)]
struct OpenDir {
    path: PathBuf,
    /// Device and inode: another directory may come to stand under the name. As long as the handle is open nothing else
    /// has this number.
    id: (u64, u64),
    file: fs::File,
    /// The system tells of a failure once for each handle; all who share this one have to hear of it \[I3\].
    failed: Mutex<Option<String>>,
}

impl OpenDir {
    fn open(path: &Path) -> io::Result<Self> {
        let file = fs::File::open(path)?;
        let meta = file.metadata()?;
        Ok(Self { path: path.to_owned(), id: (meta.dev(), meta.ino()), file, failed: Mutex::default() })
    }

    fn sync(&self) -> io::Result<()> {
        let mut failed = lock(&self.failed);
        match &*failed {
            Some(why) => Err(io::Error::other(format!("an earlier sync of it failed: {why}"))),
            None => self.file.sync_all().inspect_err(|e| *failed = Some(e.to_string())),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing behind these locks is ever half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl OsFs {
    /// The real file system.
    #[must_use]
    pub const fn new() -> Self {
        Self { dirs: Mutex::new(Dirs { open: Vec::new(), spare: None }) }
    }

    /// A handle on the directory that has this name now, the one that is open if there is one.
    fn dir(&self, path: &Path) -> io::Result<Arc<OpenDir>> {
        let meta = fs::metadata(path)?;
        let id = (meta.dev(), meta.ino());
        let mut dirs = lock(&self.dirs);
        let dir = match dirs.open.iter().position(|d| d.path == path) {
            Some(at) if dirs.open.get(at).is_some_and(|d| d.id == id) => dirs.open.remove(at),
            Some(at) => {
                drop(dirs.open.remove(at));
                Arc::new(dirs.open(path)?)
            }
            None => {
                dirs.evict();
                Arc::new(dirs.open(path)?)
            }
        };
        dirs.open.push(Arc::clone(&dir));
        Ok(dir)
    }
}

#[derive(Debug)]
struct OsFile(fs::File);

impl File for OsFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(buf, offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn window(&self, from: u64, len: usize) -> io::Result<Option<Box<dyn Window>>> {
        Ok(Mapped::new(&self.0, from, len)?.map(|m| Box::new(m) as Box<dyn Window>))
    }
}

#[derive(Debug)]
struct OsLock(#[expect(dead_code, reason = "held for its lock, released on drop")] fs::File);

impl LockGuard for OsLock {}

impl Fs for OsFs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let mut options = fs::OpenOptions::new();
        options.read(true).mode(0o600);
        match mode {
            OpenMode::Read => {}
            OpenMode::Write => {
                options.write(true);
            }
            OpenMode::CreateNew => {
                options.write(true).create_new(true);
            }
        }
        Ok(Arc::new(OsFile(options.open(path)?)))
    }

    #[cfg(target_os = "linux")]
    fn open_direct(&self, path: &Path) -> io::Result<Option<Arc<dyn File>>> {
        use rustix::fs::OFlags;
        let flags = (OFlags::DIRECT | OFlags::DSYNC).bits();
        let flags = i32::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
        match fs::OpenOptions::new().read(true).write(true).custom_flags(flags).open(path) {
            Ok(file) => Ok(Some(Arc::new(OsFile(file)))),
            // The file system has no writes of this kind.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = fs::read_dir(path)?
            .map(|e| Ok(e?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort_unstable();
        Ok(names)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn keep_dir(&self, path: &Path) -> io::Result<()> {
        self.dir(path).map(drop)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut tries = 0;
        loop {
            match self.dir(path) {
                // Nothing is lost yet, and whoever asks takes an error for a sync that failed.
                Err(e) if too_many_files(&e) && tries < OPEN_TRIES => std::thread::sleep(OPEN_PAUSE),
                opened => return opened?.sync(),
            }
            tries += 1;
        }
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        let file = fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(OsLock(file))),
            Err(fs::TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(fs::TryLockError::Error(e)) => Err(e),
        }
    }

    fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        fs::canonicalize(path)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let s = rustix::fs::statvfs(path)?;
        if s.f_blocks == 0 {
            // A file system without a size does not count what is free either.
            return Ok(u64::MAX);
        }
        Ok(s.f_bavail.saturating_mul(s.f_frsize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_came_to_stand_under_a_name_is_synced_itself() {
        let root = tempfile::tempdir().unwrap();
        let (dir, away) = (root.path().join("dir"), root.path().join("away"));
        let fs = OsFs::new();
        fs.create_dir_all(&dir).unwrap();
        fs.sync_dir(&dir).unwrap();
        let first = fs.dir(&dir).unwrap();
        assert!(Arc::ptr_eq(&first, &fs.dir(&dir).unwrap()), "opened again");
        fs.rename(&dir, &away).unwrap();
        assert_eq!(fs.sync_dir(&dir).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs.create_dir_all(&dir).unwrap();
        let second = fs.dir(&dir).unwrap();
        assert_ne!(first.id, second.id);
        assert_eq!(first.id, fs.dir(&away).unwrap().id);
    }

    #[test]
    fn a_sync_that_failed_fails_for_all_who_share_the_handle() {
        let root = tempfile::tempdir().unwrap();
        let fs = OsFs::new();
        *lock(&fs.dir(root.path()).unwrap().failed) = Some("the disk is gone".into());
        let told = fs.sync_dir(root.path()).unwrap_err().to_string();
        assert!(told.contains("the disk is gone"), "{told}");
    }

    #[test]
    fn only_so_many_directories_stay_open() {
        let root = tempfile::tempdir().unwrap();
        let fs = OsFs::new();
        for n in 0..2 * DIRS_KEPT {
            let dir = root.path().join(n.to_string());
            fs.create_dir_all(&dir).unwrap();
            fs.sync_dir(&dir).unwrap();
            // One that is synced all the time stays.
            fs.sync_dir(root.path()).unwrap();
        }
        let dirs = lock(&fs.dirs);
        assert_eq!(dirs.open.len(), DIRS_KEPT);
        assert!(dirs.open.iter().any(|d| d.path == root.path()));
    }
}
