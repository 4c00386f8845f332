//! Which call of the simulated disk fails, and how.
//!
//! Owns: the count of calls and the planned faults. Never: what a failing call leaves behind; that
//! is the disk's.

use std::collections::BTreeMap;
use std::io;

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// `EIO`. A write leaves any prefix; a sync loses the unsynced data for good.
    Eio,
    /// `ENOSPC`, as [`FaultKind::Eio`] otherwise. Calls of [`OpClass::Read`] and [`OpClass::Open`]
    /// need no room and go through.
    NoSpace,
    /// The process has too many files open, or the machine too little memory: `EMFILE` for [`OpClass::Open`] and the
    /// making of a file, `ENOMEM` for [`OpClass::Read`]. Other calls go through, those of [`OpClass::Name`] that open
    /// nothing included.
    Refused,
    /// The power fails before the call has any effect. This and every later call fails (see
    /// [`is_simulated_crash`]) until [`super::SimFs::crash`] or [`super::SimFs::kill`].
    CrashBefore,
    /// The same after the call had its effect, which the caller never learns of.
    CrashAfter,
}

/// Kinds of calls, to aim a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OpClass {
    /// `open` of an existing file, `list`, `lock`.
    Open,
    /// `read_at`.
    Read,
    /// `write_all_at`, `set_len`.
    Write,
    /// `sync_data`.
    SyncData,
    /// `sync_dir`.
    SyncDir,
    /// `open` of a new file, `create_dir_all`, `rename`, `hard_link`, `remove_file`,
    /// `remove_dir_all`.
    Name,
}

/// An error that only a simulated disk gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SimError {
    /// The simulated machine has no power.
    #[error("simulated power failure")]
    Crashed,
    /// The handle belongs to a process that was killed or lost power.
    #[error("handle of a simulated process that is gone")]
    DeadHandle,
}

impl From<SimError> for io::Error {
    fn from(e: SimError) -> Self {
        io::Error::other(e)
    }
}

/// Whether an error says that the simulated process is gone, as opposed to a fault that a real disk
/// gives.
#[must_use]
pub fn is_simulated_crash(e: &io::Error) -> bool {
    e.get_ref().is_some_and(|inner| inner.is::<SimError>())
}

/// A call, to the faults.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    class: OpClass,
    /// It needs a file handle, for good or while it lasts.
    opens: bool,
}

impl Call {
    /// One that needs a file handle.
    pub(super) const fn opening(class: OpClass) -> Self {
        Self { class, opens: true }
    }
}

impl From<OpClass> for Call {
    fn from(class: OpClass) -> Self {
        Self { class, opens: class == OpClass::Open }
    }
}

/// What the disk has to do with a call.
#[derive(Debug)]
pub(super) enum Verdict {
    Go,
    Fail(io::Error),
    CrashBefore,
    CrashAfter,
}

/// Calls counted and faults planned.
#[derive(Debug, Default, Hash)]
pub(super) struct Faults {
    count: u64,
    by_class: BTreeMap<OpClass, u64>,
    at: BTreeMap<u64, FaultKind>,
    at_class: BTreeMap<(OpClass, u64), FaultKind>,
    next_sync: bool,
}

impl Faults {
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn class_count(&self, class: OpClass) -> u64 {
        self.by_class.get(&class).copied().unwrap_or(0)
    }

    pub(super) fn plan(&mut self, n: u64, kind: FaultKind) {
        self.at.insert(n, kind);
    }

    pub(super) fn plan_class(&mut self, class: OpClass, nth_from_now: u64, kind: FaultKind) {
        let n = self.class_count(class) + nth_from_now;
        self.at_class.insert((class, n), kind);
    }

    pub(super) fn plan_next_sync(&mut self) {
        self.next_sync = true;
    }

    pub(super) fn clear(&mut self) {
        self.at.clear();
        self.at_class.clear();
        self.next_sync = false;
    }

    /// Counts a call and decides.
    pub(super) fn decide(&mut self, Call { class, opens }: Call) -> Verdict {
        self.count += 1;
        let nth = self.by_class.entry(class).or_default();
        *nth += 1;
        let sync = matches!(class, OpClass::SyncData | OpClass::SyncDir);
        let planned = self.at.remove(&self.count).or(self.at_class.remove(&(class, *nth)));
        let planned = match planned {
            None if sync && std::mem::take(&mut self.next_sync) => Some(FaultKind::Eio),
            other => other,
        };
        match planned {
            None => Verdict::Go,
            Some(FaultKind::NoSpace) if matches!(class, OpClass::Open | OpClass::Read) => Verdict::Go,
            Some(FaultKind::NoSpace) => Verdict::Fail(no_space()),
            Some(FaultKind::Refused) => match class {
                OpClass::Open | OpClass::Name if opens => Verdict::Fail(too_many_files()),
                OpClass::Read => Verdict::Fail(io::Error::from_raw_os_error(12)),
                _ => Verdict::Go,
            },
            Some(FaultKind::Eio) => Verdict::Fail(eio()),
            Some(FaultKind::CrashBefore) => Verdict::CrashBefore,
            Some(FaultKind::CrashAfter) => Verdict::CrashAfter,
        }
    }
}

/// `EMFILE`, as Linux numbers it.
pub(super) fn too_many_files() -> io::Error {
    io::Error::from_raw_os_error(24)
}

/// `EIO`.
pub(super) fn eio() -> io::Error {
    io::Error::from_raw_os_error(5)
}

/// `EBADF`: a write through a handle opened for reading.
pub(super) fn bad_handle() -> io::Error {
    io::Error::from_raw_os_error(9)
}

/// `ENOSPC`.
pub(super) fn no_space() -> io::Error {
    io::Error::from_raw_os_error(28)
}
