//! The names of the simulated disk: directories as they are seen and as they are on the medium.
//!
//! Owns: the naming half of the crash model. Invariants: a name that a directory sync covered
//! survives every crash; a rename never loses the file (the old name goes no earlier than the new
//! one comes); a directory has one name. Never: the bytes of files.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem;
use std::path::{Component, Path, PathBuf};

use super::dice::Fate;

/// An inode's number; never used twice.
pub(super) type Ino = u64;

/// The root directory.
pub(super) const ROOT: Ino = 0;

#[derive(Debug, Default, Hash)]
struct Dir {
    current: BTreeMap<String, Ino>,
    durable: BTreeMap<String, Ino>,
}

/// A name set or removed in one directory.
#[derive(Debug, Hash)]
struct Edit {
    dir: Ino,
    name: String,
    to: Option<Ino>,
    /// The directory was synced since. Only the removal half of a rename between directories waits
    /// after that, for its other half.
    synced: bool,
}

/// The edits of one call; they survive a power cut together.
#[derive(Debug, Hash)]
struct Op(Vec<Edit>);

/// All directories.
#[derive(Debug, Hash)]
pub(super) struct Names {
    dirs: BTreeMap<Ino, Dir>,
    /// Not durable yet, oldest first.
    ops: Vec<Op>,
    next: Ino,
}

impl Names {
    pub(super) fn new() -> Self {
        Self { dirs: BTreeMap::from([(ROOT, Dir::default())]), ops: Vec::new(), next: ROOT + 1 }
    }

    /// The inode that a path names.
    pub(super) fn resolve(&self, path: &Path) -> io::Result<Ino> {
        let mut at = ROOT;
        for name in components(path)? {
            at = self.lookup(at, &name)?.ok_or(io::ErrorKind::NotFound)?;
        }
        Ok(at)
    }

    /// The directory that a path lies in and its last name.
    pub(super) fn resolve_parent(&self, path: &Path) -> io::Result<(Ino, String)> {
        let mut names = components(path)?;
        let last = names.pop().ok_or(io::ErrorKind::InvalidInput)?;
        let mut at = ROOT;
        for name in names {
            at = self.lookup(at, &name)?.ok_or(io::ErrorKind::NotFound)?;
        }
        self.dir(at)?;
        Ok((at, last))
    }

    pub(super) fn lookup(&self, dir: Ino, name: &str) -> io::Result<Option<Ino>> {
        Ok(self.dir(dir)?.current.get(name).copied())
    }

    pub(super) fn is_dir(&self, ino: Ino) -> bool {
        self.dirs.contains_key(&ino)
    }

    pub(super) fn list(&self, dir: Ino) -> io::Result<Vec<String>> {
        Ok(self.dir(dir)?.current.keys().cloned().collect())
    }

    /// A new inode number.
    pub(super) fn allot(&mut self) -> Ino {
        let ino = self.next;
        self.next += 1;
        ino
    }

    /// Makes all missing directories of a path; the last one's inode.
    pub(super) fn make_dirs(&mut self, path: &Path) -> io::Result<Ino> {
        let mut at = ROOT;
        for name in components(path)? {
            at = match self.lookup(at, &name)? {
                Some(ino) => ino,
                None => {
                    let ino = self.allot();
                    self.dirs.insert(ino, Dir::default());
                    self.set(at, name, ino);
                    ino
                }
            };
        }
        self.dir(at)?;
        Ok(at)
    }

    /// Points a name at an inode.
    pub(super) fn set(&mut self, dir: Ino, name: String, ino: Ino) {
        self.apply(vec![edit(dir, name, Some(ino))]);
    }

    /// Removes a name.
    pub(super) fn unset(&mut self, dir: Ino, name: String) {
        self.apply(vec![edit(dir, name, None)]);
    }

    /// Renames, as `rename(2)`.
    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let (from_dir, from_name) = self.resolve_parent(from)?;
        let ino = self.lookup(from_dir, &from_name)?.ok_or(io::ErrorKind::NotFound)?;
        let (to_dir, to_name) = self.resolve_parent(to)?;
        if let Some(old) = self.lookup(to_dir, &to_name)? {
            match (self.is_dir(ino), self.is_dir(old)) {
                // Two names of one file: POSIX does nothing.
                _ if old == ino => return Ok(()),
                (true, false) => return Err(io::ErrorKind::NotADirectory.into()),
                (false, true) => return Err(io::ErrorKind::IsADirectory.into()),
                (true, true) if !self.list(old)?.is_empty() => return Err(io::ErrorKind::DirectoryNotEmpty.into()),
                _ => {}
            }
        }
        if self.is_dir(ino) && self.reachable_from(ino, false).contains(&to_dir) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.apply(vec![edit(to_dir, to_name, Some(ino)), edit(from_dir, from_name, None)]);
        Ok(())
    }

    /// Removes all names below and in a directory; a power cut may leave any part.
    pub(super) fn empty(&mut self, dir: Ino) -> io::Result<()> {
        for name in self.list(dir)? {
            if let Some(ino) = self.lookup(dir, &name)?
                && self.is_dir(ino)
            {
                self.empty(ino)?;
            }
            self.unset(dir, name);
        }
        Ok(())
    }

    /// A directory sync that succeeds.
    pub(super) fn sync(&mut self, dir: Ino) {
        let mut waiting: Vec<Op> = Vec::new();
        for Op(mut edits) in mem::take(&mut self.ops) {
            for e in edits.iter_mut().filter(|e| e.dir == dir) {
                e.synced = true;
            }
            let target_waits = edits.iter().any(|e| e.to.is_some() && !e.synced);
            let (done, rest): (Vec<_>, Vec<_>) =
                edits.into_iter().partition(|e| e.synced && (e.to.is_some() || !target_waits));
            for e in done {
                // What is durable now must not be undone by an older change that still waits.
                let moved_dir = e.to.filter(|ino| self.is_dir(*ino));
                for Op(older) in &mut waiting {
                    older
                        .retain(|o| (o.dir, &o.name) != (e.dir, &e.name) && (moved_dir.is_none() || o.to != moved_dir));
                }
                self.make_durable(e);
            }
            waiting.push(Op(rest));
        }
        waiting.retain(|Op(edits)| !edits.is_empty());
        self.ops = waiting;
    }

    /// A directory sync that fails: the cache shows the names, the medium will never have them.
    pub(super) fn lose_dirty(&mut self, dir: Ino) {
        self.ops.retain(|Op(edits)| edits.iter().all(|e| e.dir != dir));
    }

    /// A power cut.
    pub(super) fn crash(&mut self, fate: &mut Fate) {
        for Op(edits) in mem::take(&mut self.ops) {
            if !fate.survives() {
                continue;
            }
            // A file moved between directories may be seen in both.
            let across = edits.first().zip(edits.get(1)).is_some_and(|(a, b)| a.dir != b.dir);
            let both = across && fate.coin();
            for e in edits {
                if e.to.is_some() || !both {
                    self.make_durable(e);
                }
            }
        }
        for d in self.dirs.values_mut() {
            d.current = d.durable.clone();
        }
    }

    /// Every inode that is seen.
    pub(super) fn visible(&self) -> BTreeSet<Ino> {
        self.reachable_from(ROOT, false)
    }

    /// Forgets directories that nothing can bring back, and gives every inode that something can.
    pub(super) fn sweep(&mut self) -> BTreeSet<Ino> {
        let live = self.reachable_from(ROOT, true);
        self.dirs.retain(|ino, _| live.contains(ino));
        for Op(edits) in &mut self.ops {
            edits.retain(|e| live.contains(&e.dir));
        }
        self.ops.retain(|Op(edits)| !edits.is_empty());
        live
    }

    /// All names of files, as seen, sorted.
    pub(super) fn files(&self) -> Vec<(PathBuf, Ino)> {
        let mut found = Vec::new();
        let mut todo = vec![(PathBuf::from("/"), ROOT)];
        while let Some((path, ino)) = todo.pop() {
            match self.dirs.get(&ino) {
                Some(d) => todo.extend(d.current.iter().map(|(name, ino)| (path.join(name), *ino))),
                None => found.push((path, ino)),
            }
        }
        found.sort_unstable();
        found
    }

    fn dir(&self, ino: Ino) -> io::Result<&Dir> {
        self.dirs.get(&ino).ok_or_else(|| io::ErrorKind::NotADirectory.into())
    }

    fn apply(&mut self, edits: Vec<Edit>) {
        for e in &edits {
            if let Some(d) = self.dirs.get_mut(&e.dir) {
                match e.to {
                    Some(ino) => d.current.insert(e.name.clone(), ino),
                    None => d.current.remove(&e.name),
                };
            }
        }
        self.ops.push(Op(edits));
    }

    fn make_durable(&mut self, e: Edit) {
        if let Some(ino) = e.to
            && self.is_dir(ino)
        {
            // Lost renames in a chain must not leave a directory with two names.
            for d in self.dirs.values_mut() {
                d.durable.retain(|_, other| *other != ino);
            }
        }
        if let Some(d) = self.dirs.get_mut(&e.dir) {
            match e.to {
                Some(ino) => d.durable.insert(e.name, ino),
                None => d.durable.remove(&e.name),
            };
        }
    }

    /// Inodes below `start`, with it; with `ever`, also through names that a crash can bring back.
    fn reachable_from(&self, start: Ino, ever: bool) -> BTreeSet<Ino> {
        let mut seen = BTreeSet::new();
        let mut todo = vec![start];
        while let Some(ino) = todo.pop() {
            if !seen.insert(ino) {
                continue;
            }
            let Some(d) = self.dirs.get(&ino) else { continue };
            todo.extend(d.current.values());
            if ever {
                todo.extend(d.durable.values());
                let edits = self.ops.iter().flat_map(|op| &op.0);
                todo.extend(edits.filter(|e| e.dir == ino).filter_map(|e| e.to));
            }
        }
        seen
    }
}

fn edit(dir: Ino, name: String, to: Option<Ino>) -> Edit {
    Edit { dir, name, to, synced: false }
}

/// The names in a path. Relative paths start at the root.
fn components(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for c in path.components() {
        match c {
            Component::Prefix(_) | Component::RootDir | Component::CurDir => {}
            Component::ParentDir => {
                names.pop();
            }
            Component::Normal(name) => {
                names.push(name.to_str().ok_or(io::ErrorKind::InvalidInput)?.to_owned());
            }
        }
    }
    Ok(names)
}
