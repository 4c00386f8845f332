//! The simulated disk: inodes, names, locks and faults under one lock.
//!
//! Owns: what each call does to the state, in full, in part, or not at all. Never: paths and modes
//! beyond what a call passes; the trait is answered in `super`.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use super::content::Content;
use super::dice::{Dice, Fate};
use super::faults::{Call, Faults, SimError, Verdict, no_space, too_many_files};
use super::names::{Ino, Names};
use crate::fs::OpenMode;

/// Longest file, in bytes: a length read from damaged bytes must fail here, not in the allocator.
const MAX_FILE: u64 = 1 << 32;

/// Directories that stay open for their next sync, as the real file system has it.
const DIRS_KEPT: usize = 16;

/// The size of a disk that no test has sized, in bytes.
const UNSIZED: u64 = 1 << 40;

#[derive(Debug, Default, Hash)]
struct Inode {
    content: Content,
    handles: u64,
}

/// All of it.
#[derive(Debug, Hash)]
pub(super) struct Disk {
    seed: u64,
    names: Names,
    files: BTreeMap<Ino, Inode>,
    locks: BTreeSet<Ino>,
    /// Directories that this process has open, the one synced last at the end.
    kept: Vec<Ino>,
    /// A handle that is given up for a directory when no more may be open.
    spare: bool,
    /// Handles of an older generation are dead.
    generation: u64,
    crashes: u64,
    capacity: u64,
    /// Writes that found too little room.
    full: u64,
    short_reads: bool,
    direct: bool,
    interruptions: bool,
    /// See `SimFs::set_open_files_max`.
    open_files_max: u64,
    read_bytes: u64,
    written_bytes: u64,
    /// A planned crash has struck; nothing works before `crash` or `kill`.
    dark: bool,
    pub(super) faults: Faults,
}

impl Disk {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            names: Names::new(),
            files: BTreeMap::new(),
            locks: BTreeSet::new(),
            kept: Vec::new(),
            spare: false,
            generation: 0,
            crashes: 0,
            capacity: UNSIZED,
            full: 0,
            short_reads: false,
            direct: true,
            interruptions: false,
            open_files_max: u64::MAX,
            read_bytes: 0,
            written_bytes: 0,
            dark: false,
            faults: Faults::default(),
        }
    }

    /// The present generation; fails while the power is off.
    pub(super) fn powered(&self) -> io::Result<u64> {
        if self.dark { Err(SimError::Crashed.into()) } else { Ok(self.generation) }
    }

    /// Fails on a handle of an earlier process and while the power is off.
    pub(super) fn alive(&self, generation: u64) -> io::Result<()> {
        if self.powered()? == generation { Ok(()) } else { Err(SimError::DeadHandle.into()) }
    }

    pub(super) fn is_dark(&self) -> bool {
        self.dark
    }

    /// Counts one call, and runs it unless a fault strikes. `work` gets the error that it must
    /// return after leaving what such a failure leaves.
    pub(super) fn call<T>(
        &mut self,
        call: impl Into<Call>,
        work: impl FnOnce(&mut Self, Option<io::Error>) -> io::Result<T>,
    ) -> io::Result<T> {
        self.powered()?;
        match self.faults.decide(call.into()) {
            Verdict::Go => work(self, None),
            Verdict::Fail(e) => work(self, Some(e)),
            Verdict::CrashBefore => {
                self.dark = true;
                Err(SimError::Crashed.into())
            }
            Verdict::CrashAfter => {
                // Its result is what the caller never learns.
                let _ = work(self, None);
                self.dark = true;
                Err(SimError::Crashed.into())
            }
        }
    }

    /// A call that has no effect when it fails.
    pub(super) fn call_whole<T>(
        &mut self,
        call: impl Into<Call>,
        work: impl FnOnce(&mut Self) -> io::Result<T>,
    ) -> io::Result<T> {
        self.call(call, |disk, fault| fault.map_or_else(|| work(disk), Err))
    }

    /// Handles that are open, those of locks and of directories included.
    pub(super) fn open_files(&self) -> u64 {
        self.files.values().map(|f| f.handles).sum::<u64>() + self.kept.len() as u64 + u64::from(self.spare)
    }

    pub(super) fn set_open_files_max(&mut self, max: u64) {
        self.open_files_max = max;
    }

    /// A call that needs another handle comes first to this.
    fn another_handle(&self) -> io::Result<()> {
        let refused = self.open_files_max < u64::MAX && self.open_files() >= self.open_files_max;
        if refused { Err(too_many_files()) } else { Ok(()) }
    }

    // Names.

    pub(super) fn open(&mut self, path: &Path, mode: OpenMode) -> io::Result<Ino> {
        self.another_handle()?;
        let (dir, name) = self.names.resolve_parent(path)?;
        let ino = match (self.names.lookup(dir, &name)?, mode) {
            (Some(_), OpenMode::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(ino), _) if self.names.is_dir(ino) => return Err(io::ErrorKind::IsADirectory.into()),
            (Some(ino), _) => ino,
            (None, OpenMode::CreateNew) => self.create(dir, name),
            (None, _) => return Err(io::ErrorKind::NotFound.into()),
        };
        self.inode(ino)?.handles += 1;
        Ok(ino)
    }

    pub(super) fn lock(&mut self, path: &Path) -> io::Result<Ino> {
        self.another_handle()?;
        let (dir, name) = self.names.resolve_parent(path)?;
        let ino = match self.names.lookup(dir, &name)? {
            Some(ino) if self.names.is_dir(ino) => return Err(io::ErrorKind::IsADirectory.into()),
            Some(ino) => ino,
            None => self.create(dir, name),
        };
        if !self.locks.insert(ino) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.inode(ino)?.handles += 1;
        Ok(ino)
    }

    pub(super) fn make_dirs(&mut self, path: &Path) -> io::Result<()> {
        self.names.make_dirs(path).map(|_| ())
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.names.rename(from, to)?;
        self.sweep();
        Ok(())
    }

    pub(super) fn hard_link(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let ino = self.names.resolve(from)?;
        if self.names.is_dir(ino) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let (dir, name) = self.names.resolve_parent(to)?;
        if self.names.lookup(dir, &name)?.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.names.set(dir, name, ino);
        Ok(())
    }

    pub(super) fn remove_file(&mut self, path: &Path) -> io::Result<()> {
        let (dir, name) = self.names.resolve_parent(path)?;
        let ino = self.names.lookup(dir, &name)?.ok_or(io::ErrorKind::NotFound)?;
        if self.names.is_dir(ino) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        self.names.unset(dir, name);
        self.sweep();
        Ok(())
    }

    pub(super) fn remove_dir_all(&mut self, path: &Path) -> io::Result<()> {
        let (dir, name) = self.names.resolve_parent(path)?;
        let ino = self.names.lookup(dir, &name)?.ok_or(io::ErrorKind::NotFound)?;
        self.names.empty(ino)?;
        self.names.unset(dir, name);
        self.sweep();
        Ok(())
    }

    pub(super) fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.another_handle()?;
        self.names.list(self.names.resolve(path)?)
    }

    pub(super) fn exists(&self, path: &Path) -> io::Result<bool> {
        match self.names.resolve(path) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Whether a directory is open for its next sync.
    pub(super) fn keeps(&self, path: &Path) -> io::Result<bool> {
        Ok(self.kept.contains(&self.names.resolve(path)?))
    }

    /// Opens a directory for its next sync, unless it is open.
    pub(super) fn keep(&mut self, path: &Path) -> io::Result<Ino> {
        let dir = self.names.resolve(path)?;
        if !self.names.is_dir(dir) {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        match self.kept.iter().position(|k| *k == dir) {
            Some(at) => drop(self.kept.remove(at)),
            None => {
                if self.kept.len() >= DIRS_KEPT {
                    self.kept.remove(0);
                }
                if let Err(e) = self.another_handle()
                    && !std::mem::take(&mut self.spare)
                {
                    return Err(e);
                }
            }
        }
        self.kept.push(dir);
        self.spare |= self.another_handle().is_ok();
        Ok(dir)
    }

    pub(super) fn sync_dir(&mut self, path: &Path, fault: Option<io::Error>) -> io::Result<()> {
        let dir = self.keep(path)?;
        match fault {
            Some(e) => {
                self.names.lose_dirty(dir);
                self.sweep();
                Err(e)
            }
            None => {
                self.names.sync(dir);
                self.sweep();
                Ok(())
            }
        }
    }

    /// Makes a directory and its parents, all names durable at once, counting no call.
    pub(super) fn prepare_dir(&mut self, path: &Path) -> io::Result<()> {
        self.names.make_dirs(path)?;
        for dir in path.ancestors() {
            self.names.sync(self.names.resolve(dir)?);
        }
        Ok(())
    }

    // Files.

    pub(super) fn len(&mut self, ino: Ino) -> io::Result<u64> {
        Ok(self.inode(ino)?.content.len() as u64)
    }

    pub(super) fn read(&mut self, ino: Ino, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let dice = Dice::new(self.seed, "read", self.faults.count(), ino);
        if self.interruptions && dice.below(3) == 0 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let short = self.short_reads && buf.len() > 1 && dice.coin();
        let content = self.inode(ino)?.content.bytes();
        let Some(rest) = usize::try_from(offset).ok().and_then(|at| content.get(at..)) else { return Ok(0) };
        let mut n = rest.len().min(buf.len());
        if short && n > 1 {
            n = 1 + dice.below(n - 1);
        }
        for (to, from) in buf.iter_mut().zip(&rest[..n]) {
            *to = *from;
        }
        self.read_bytes += n as u64;
        Ok(n)
    }

    pub(super) fn write(&mut self, ino: Ino, bytes: &[u8], offset: u64, fault: Option<io::Error>) -> io::Result<()> {
        let at = position(offset.checked_add(bytes.len() as u64)).map(|end| end - bytes.len())?;
        let room = self.free();
        let partial = Dice::new(self.seed, "write", self.faults.count(), ino).below(bytes.len() + 1);
        let fits = self.inode(ino)?.content.fitting(at, bytes.len(), room);
        self.full += u64::from(fits < bytes.len());
        let content = &mut self.inode(ino)?.content;
        let (n, result) = match fault {
            Some(e) => (partial.min(fits), Err(e)),
            None if fits < bytes.len() => (fits, Err(no_space())),
            None => (bytes.len(), Ok(())),
        };
        content.write(at, &bytes[..n]);
        self.written_bytes += n as u64;
        result
    }

    pub(super) fn set_len(&mut self, ino: Ino, len: u64) -> io::Result<()> {
        let len = position(Some(len))?;
        self.inode(ino)?.content.set_len(len);
        Ok(())
    }

    pub(super) fn sync_data(&mut self, ino: Ino, fault: Option<io::Error>) -> io::Result<()> {
        let evict = Dice::new(self.seed, "failed sync", self.faults.count(), ino).coin();
        let content = &mut self.inode(ino)?.content;
        match fault {
            Some(e) => {
                content.lose_dirty(evict);
                Err(e)
            }
            None => {
                content.sync();
                Ok(())
            }
        }
    }

    /// The second half of a write past the page cache: that range alone gets to the medium. When it fails the range is
    /// lost, and with it, as of any failed sync, all else that is not synced.
    pub(super) fn sync_range(&mut self, ino: Ino, at: u64, len: usize, fault: Option<io::Error>) -> io::Result<()> {
        if fault.is_some() {
            return self.sync_data(ino, fault);
        }
        let end = position(at.checked_add(len as u64))?;
        self.inode(ino)?.content.sync_range(end - len..end);
        Ok(())
    }

    /// A handle or lock goes; those of an earlier process went with it.
    pub(super) fn close(&mut self, ino: Ino, generation: u64, locked: bool) {
        if generation != self.generation {
            return;
        }
        if locked {
            self.locks.remove(&ino);
        }
        if let Some(inode) = self.files.get_mut(&ino) {
            inode.handles = inode.handles.saturating_sub(1);
            if inode.handles == 0 {
                self.sweep();
            }
        }
    }

    // The test's side.

    /// The process ends: its handles die and its locks drop.
    pub(super) fn end_process(&mut self) {
        self.generation += 1;
        self.dark = false;
        self.locks.clear();
        (self.kept, self.spare) = (Vec::new(), false);
        for inode in self.files.values_mut() {
            inode.handles = 0;
        }
        self.sweep();
    }

    /// The power fails. With `tossed`, unsynced changes survive by toss; otherwise none does.
    pub(super) fn crash(&mut self, tossed: bool) {
        self.crashes += 1;
        let (seed, moment) = (self.seed, self.crashes);
        let fate = |purpose, ino| {
            if tossed { Fate::toss(Dice::new(seed, purpose, moment, ino)) } else { Fate::Nothing }
        };
        self.names.crash(&mut fate("names", 0));
        for (ino, inode) in &mut self.files {
            inode.content.crash(&mut fate("data", *ino));
        }
        self.end_process();
    }

    /// An empty disk; the process is gone with the old one.
    pub(super) fn wipe(&mut self) {
        self.names = Names::new();
        self.files.clear();
        self.end_process();
    }

    pub(super) fn set_capacity(&mut self, bytes: u64) {
        self.capacity = bytes;
    }

    pub(super) const fn has_direct(&self) -> bool {
        self.direct
    }

    pub(super) const fn set_direct(&mut self, on: bool) {
        self.direct = on;
    }

    pub(super) fn set_short_reads(&mut self, on: bool) {
        self.short_reads = on;
    }

    pub(super) fn set_interruptions(&mut self, on: bool) {
        self.interruptions = on;
    }

    pub(super) fn transferred(&self) -> (u64, u64) {
        (self.read_bytes, self.written_bytes)
    }

    pub(super) fn flip(&mut self, path: &Path, offset: u64, bit: u8) -> io::Result<()> {
        let ino = self.names.resolve(path)?;
        let at = position(Some(offset))?;
        if self.inode(ino)?.content.flip(at, bit) { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    pub(super) fn files(&self) -> Vec<PathBuf> {
        self.names.files().into_iter().map(|(path, _)| path).collect()
    }

    pub(super) fn read_all(&mut self, path: &Path) -> io::Result<Vec<u8>> {
        let ino = self.names.resolve(path)?;
        Ok(self.inode(ino)?.content.bytes().to_vec())
    }

    /// Bytes taken by files that are seen or open.
    pub(super) fn allocated(&self) -> u64 {
        let visible = self.names.visible();
        let counted = self.files.iter().filter(|(ino, inode)| inode.handles > 0 || visible.contains(ino));
        counted.map(|(_, inode)| inode.content.allocated()).sum()
    }

    pub(super) const fn times_full(&self) -> u64 {
        self.full
    }

    pub(super) fn free(&self) -> u64 {
        if self.capacity == UNSIZED {
            // Counting costs time in proportion to the disk.
            return UNSIZED;
        }
        self.capacity.saturating_sub(self.allocated())
    }

    pub(super) fn digest(&self) -> u64 {
        let mut h = Xxh3::new();
        self.hash(&mut h);
        h.finish()
    }

    fn create(&mut self, dir: Ino, name: String) -> Ino {
        let ino = self.names.allot();
        self.files.insert(ino, Inode::default());
        self.names.set(dir, name, ino);
        ino
    }

    fn inode(&mut self, ino: Ino) -> io::Result<&mut Inode> {
        self.files.get_mut(&ino).ok_or_else(|| io::ErrorKind::IsADirectory.into())
    }

    /// Frees what no name can bring back and no handle holds.
    fn sweep(&mut self) {
        let live = self.names.sweep();
        self.files.retain(|ino, inode| inode.handles > 0 || live.contains(ino));
    }
}

fn position(at: Option<u64>) -> io::Result<usize> {
    let at = at.filter(|at| *at <= MAX_FILE).ok_or(io::ErrorKind::FileTooLarge)?;
    usize::try_from(at).map_err(|_| io::ErrorKind::FileTooLarge.into())
}
