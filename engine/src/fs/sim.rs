//! A disk in memory that crashes, tears, fills up and fails on request, the same way for the same
//! seed and calls.
//!
//! Owns: the `Fs` and `File` of a simulation and the handles by which a test hurts them. Files in
//! this folder: `content` (bytes and their crash), `names` (directories and theirs), `faults`
//! (which call fails), `disk` (all under one lock), `dice` (chance).
//! Never: real files, real time, threads of its own.
//!
//! The crash model, for [`SimFs::crash`]:
//! - `sync_data` covers data and length of that file, not its name; `sync_dir` covers the names in
//!   that directory, not what they name, and not the directory's own name. What was covered
//!   survives.
//! - Any subset of the 512-byte sectors of unsynced writes survives, in any order. A file may have
//!   grown with, without, or with part of its new data; zeros or junk stand for the rest.
//! - Unsynced names appear or vanish independently of data and of each other. One rename is atomic,
//!   except that between directories a file may be seen under both names.
//! - A failed sync loses the unsynced data or names for good, and the next sync says all is well,
//!   as Linux does. Whether reads still show the lost data is by toss.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::{DIRECT_BYTES, File, Fs, LockGuard, OpenMode, Window};

mod content;
mod dice;
mod disk;
mod faults;
mod names;
#[cfg(test)]
mod tests;

pub use faults::{FaultKind, OpClass, SimError, is_simulated_crash};

use disk::Disk;
use faults::{Call, bad_handle};
use names::Ino;

#[derive(Clone)]
struct Shared(Arc<Machine>);

struct Machine {
    disk: Mutex<Disk>,
    stalls: Mutex<Stalls>,
    /// Told of every change of `stalls`.
    stalled: Condvar,
    /// See [`SimFs::set_room`].
    rooms: Mutex<BTreeMap<PathBuf, u64>>,
}

#[derive(Default)]
struct Stalls {
    /// How many [`Stall`]s live.
    living: u32,
    /// Calls that hang.
    hanging: u32,
}

impl Shared {
    fn disk(&self) -> MutexGuard<'_, Disk> {
        // A test that panicked in a call says so itself; the disk's state is whole between calls.
        self.0.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stalls(&self) -> MutexGuard<'_, Stalls> {
        self.0.stalls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rooms(&self) -> MutexGuard<'_, BTreeMap<PathBuf, u64>> {
        self.0.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when no stall lives. The disk is free meanwhile.
    fn wait_for_stalls(&self) {
        let mut stalls = self.stalls();
        stalls.hanging += 1;
        self.0.stalled.notify_all();
        let mut stalls = self.wait_while(stalls, |s| s.living > 0);
        stalls.hanging -= 1;
    }

    fn wait_while<'a>(&'a self, s: MutexGuard<'a, Stalls>, until: impl Fn(&Stalls) -> bool) -> MutexGuard<'a, Stalls> {
        self.0.stalled.wait_while(s, |s| until(s)).unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it lives every sync that begins waits, as on a disk that hangs; all other calls go on.
#[derive(Debug)]
pub struct Stall(Shared);

impl Stall {
    /// Returns when so many syncs hang.
    pub fn wait_for(&self, syncs: u32) {
        drop(self.0.wait_while(self.0.stalls(), |s| s.hanging < syncs));
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        self.0.stalls().living -= 1;
        self.0.0.stalled.notify_all();
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimDisk")
    }
}

/// A simulated disk. The root directory exists; relative paths start there.
#[derive(Debug)]
pub struct SimFs(Shared);

impl SimFs {
    /// An empty disk whose chance comes from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Arc<Self> {
        let (disk, stalls, stalled) = (Mutex::new(Disk::new(seed)), Mutex::default(), Condvar::new());
        Arc::new(Self(Shared(Arc::new(Machine { disk, stalls, stalled, rooms: Mutex::default() }))))
    }

    /// The power fails and comes back: unsynced changes survive by toss (see the module's text),
    /// handles die, locks drop.
    pub fn crash(&self) {
        self.0.disk().crash(true);
    }

    /// The harshest [`SimFs::crash`] without tears: nothing unsynced survives.
    pub fn crash_losing_unsynced(&self) {
        self.0.disk().crash(false);
    }

    /// The process dies and the machine lives: handles die, locks drop, all that was written is
    /// still there and still unsynced.
    pub fn kill(&self) {
        self.0.disk().end_process();
    }

    /// The disk is replaced by an empty one; the process is gone.
    pub fn wipe(&self) {
        self.0.disk().wipe();
    }

    /// Makes a directory and its parents with durable names, as an administrator did long ago.
    /// Counts no I/O.
    ///
    /// # Errors
    /// `NotADirectory` when a file is in the way.
    pub fn prepare_dir(&self, path: &Path) -> io::Result<()> {
        self.0.disk().prepare_dir(path)
    }

    /// The `n`-th call of this disk's life fails; the first is 1. Every call of [`Fs`] and [`File`]
    /// counts but `len`, `exists` and `free_bytes`; calls made while the power is off do not.
    pub fn fail_at_io(&self, n: u64, kind: FaultKind) {
        self.0.disk().faults.plan(n, kind);
    }

    /// The `nth` call of a class from now on fails; the next is 1.
    pub fn fail_nth(&self, class: OpClass, nth: u64, kind: FaultKind) {
        self.0.disk().faults.plan_class(class, nth, kind);
    }

    /// The next `sync_data` or `sync_dir` fails with `EIO`.
    pub fn fail_next_sync(&self) {
        self.0.disk().faults.plan_next_sync();
    }

    /// Syncs hang until the returned value is dropped: for tests whose syncs run on threads of their own.
    #[must_use]
    pub fn stall_syncs(&self) -> Stall {
        self.0.stalls().living += 1;
        Stall(self.0.clone())
    }

    /// Forgets faults that have not struck. A crash does not.
    pub fn clear_faults(&self) {
        self.0.disk().faults.clear();
    }

    /// How many calls were counted so far.
    #[must_use]
    pub fn io_count(&self) -> u64 {
        self.0.disk().faults.count()
    }

    /// How many of them were of this class.
    #[must_use]
    pub fn class_count(&self, class: OpClass) -> u64 {
        self.0.disk().faults.class_count(class)
    }

    /// Bytes that all reads returned so far, and that all writes wrote.
    #[must_use]
    pub fn transferred(&self) -> (u64, u64) {
        self.0.disk().transferred()
    }

    /// Whether a planned crash has struck and awaits [`SimFs::crash`] or [`SimFs::kill`].
    #[must_use]
    pub fn power_is_off(&self) -> bool {
        self.0.disk().is_dark()
    }

    /// Sets the disk's size in bytes. Writes that need more room than is left write what fits and
    /// fail with `StorageFull`. Room is taken by 512-byte sectors written (a hole made by `set_len`
    /// takes none) and returns when the last name and handle of a file are gone.
    pub fn set_capacity(&self, bytes: u64) {
        self.0.disk().set_capacity(bytes);
    }

    /// The directory `dir` and all below is on a disk of its own, which says that so many bytes are free there. That is all
    /// it does: writes are not held to it.
    pub fn set_room(&self, dir: &Path, bytes: u64) {
        self.0.rooms().insert(dir.to_owned(), bytes);
    }

    /// How many writes found less room than they needed, since the disk was made. Planned faults do not count.
    #[must_use]
    pub fn times_full(&self) -> u64 {
        self.0.disk().times_full()
    }

    /// Bytes taken by files.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        self.0.disk().allocated()
    }

    /// Without `on`, this file system has no writes past the page cache.
    pub fn set_direct(&self, on: bool) {
        self.0.disk().set_direct(on);
    }

    /// With `on`, about half of the reads return fewer bytes than they could (never 0).
    pub fn set_short_reads(&self, on: bool) {
        self.0.disk().set_short_reads(on);
    }

    /// With `on`, about a third of the reads are interrupted by a signal (`EINTR`): they read nothing and may be made
    /// again. Writes and syncs are made again below the seam.
    pub fn set_interruptions(&self, on: bool) {
        self.0.disk().set_interruptions(on);
    }

    /// No more than `max` files may be open at once from now on, locks and directories included: opening, making and
    /// locking a file, listing a directory, and syncing one that was not kept or synced a short while ago, need one more
    /// and fail with `EMFILE` otherwise. What is open stays open.
    pub fn set_open_files_max(&self, max: u64) {
        self.0.disk().set_open_files_max(max);
    }

    /// How many files are open, locks and the directories that stay open for their next sync included.
    #[must_use]
    pub fn open_files(&self) -> u64 {
        self.0.disk().open_files()
    }

    /// Flips bit `bit` (0-7) of the byte at `offset`, on the medium and in the cache.
    ///
    /// # Errors
    /// `NotFound`; `UnexpectedEof` when the file is not that long.
    pub fn flip_bit(&self, path: &Path, offset: u64, bit: u8) -> io::Result<()> {
        self.0.disk().flip(path, offset, bit)
    }

    /// All names of files, sorted. Counts no I/O and works without power, as do the next two.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        self.0.disk().files()
    }

    /// A file's bytes as readers see them.
    ///
    /// # Errors
    /// `NotFound` or `IsADirectory`.
    pub fn read_all(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.0.disk().read_all(path)
    }

    /// A hash of everything: bytes, names, unsynced changes, counts, planned faults.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.0.disk().digest()
    }
}

impl SimFs {
    fn handle(&self, path: &Path, mode: OpenMode) -> io::Result<SimFile> {
        let class = if mode == OpenMode::CreateNew { OpClass::Name } else { OpClass::Open };
        let mut disk = self.0.disk();
        let generation = disk.powered()?;
        let ino = disk.call_whole(Call::opening(class), |disk| disk.open(path, mode))?;
        let writable = mode != OpenMode::Read;
        Ok(SimFile(Arc::new(Handle { shared: self.0.clone(), ino, generation, writable })))
    }
}

/// An open simulated file, or a window on one. Clones are one handle.
#[derive(Clone, Debug)]
struct SimFile(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    shared: Shared,
    ino: Ino,
    generation: u64,
    writable: bool,
}

impl Handle {
    fn disk(&self, for_writing: bool) -> io::Result<MutexGuard<'_, Disk>> {
        let disk = self.shared.disk();
        disk.alive(self.generation)?;
        if for_writing && !self.writable {
            return Err(bad_handle());
        }
        Ok(disk)
    }
}

impl File for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.disk(false)?.call_whole(OpClass::Read, |disk| disk.read(self.0.ino, buf, offset))
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.disk(true)?.call(OpClass::Write, |disk, fault| disk.write(self.0.ino, buf, offset, fault))
    }

    fn len(&self) -> io::Result<u64> {
        self.0.disk(false)?.len(self.0.ino)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.disk(true)?.call_whole(OpClass::Write, |disk| disk.set_len(self.0.ino, len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.shared.wait_for_stalls();
        self.0.disk(false)?.call(OpClass::SyncData, |disk, fault| disk.sync_data(self.0.ino, fault))
    }

    fn window(&self, _: u64, _: usize) -> io::Result<Option<Box<dyn Window>>> {
        Ok(Some(Box::new(self.clone())))
    }
}

impl Window for SimFile {
    fn write_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(buf, offset)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.disk().close(self.ino, self.generation, false);
    }
}

/// A handle whose writes are durable when they return.
#[derive(Debug)]
struct Direct(SimFile);

impl File for Direct {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let aligned = |n: usize| n.is_multiple_of(DIRECT_BYTES);
        if !offset.is_multiple_of(DIRECT_BYTES as u64) || !aligned(buf.len()) || !aligned(buf.as_ptr().addr()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.0.write_all_at(buf, offset)?;
        let handle = &self.0.0;
        handle.shared.wait_for_stalls();
        handle.disk(true)?.call(OpClass::SyncData, |disk, fault| disk.sync_range(handle.ino, offset, buf.len(), fault))
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// A held simulated lock.
#[derive(Debug)]
struct SimLock {
    shared: Shared,
    ino: Ino,
    generation: u64,
}

impl LockGuard for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.shared.disk().close(self.ino, self.generation, true);
    }
}

impl Fs for SimFs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(self.handle(path, mode)?))
    }

    fn open_direct(&self, path: &Path) -> io::Result<Option<Arc<dyn File>>> {
        let direct = self.0.disk().has_direct();
        Ok(if direct { Some(Arc::new(Direct(self.handle(path, OpenMode::Write)?))) } else { None })
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.0.disk().call_whole(OpClass::Name, |disk| disk.make_dirs(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.disk().call_whole(OpClass::Name, |disk| disk.rename(from, to))
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.disk().call_whole(OpClass::Name, |disk| disk.hard_link(from, to))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.0.disk().call_whole(OpClass::Name, |disk| disk.remove_file(path))
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.0.disk().call_whole(OpClass::Name, |disk| disk.remove_dir_all(path))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.0.disk().call_whole(OpClass::Open, |disk| disk.list(path))
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let disk = self.0.disk();
        disk.powered()?;
        disk.exists(path)
    }

    fn keep_dir(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.0.disk();
        disk.powered()?;
        if disk.keeps(path)? {
            return Ok(());
        }
        disk.call_whole(OpClass::Open, |disk| disk.keep(path).map(drop))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.0.wait_for_stalls();
        self.0.disk().call(OpClass::SyncDir, |disk, fault| disk.sync_dir(path, fault))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        let mut disk = self.0.disk();
        let generation = disk.powered()?;
        let ino = disk.call_whole(OpClass::Open, |disk| disk.lock(path))?;
        Ok(Box::new(SimLock { shared: self.0.clone(), ino, generation }))
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let disk = self.0.disk();
        disk.powered()?;
        if !disk.exists(path)? {
            return Err(io::ErrorKind::NotFound.into());
        }
        let own = self.0.rooms().iter().find(|(dir, _)| path.starts_with(dir)).map(|(_, bytes)| *bytes);
        Ok(own.unwrap_or_else(|| disk.free()))
    }
}
