//! What a check found that is not as it was written.
//!
//! Owns: the way from an error to a finding. Never: deciding what to do about it.

use std::path::PathBuf;
use std::{fmt, io};

use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::lsn::Lsn;

/// A place on disk that does not hold what was written there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The file.
    pub path: PathBuf,
    /// Where in it, in bytes.
    pub offset: u64,
    /// Which record, where known.
    pub lsn: Option<Lsn>,
    /// What does not fit.
    pub what: String,
}

impl Finding {
    /// The finding in an error. Damage, bytes that the disk does not give and what is of no known format are
    /// findings; that the disk gave `offset` last is all that is known of an unreadable place.
    ///
    /// # Errors
    /// The error itself when it says nothing of the bytes: the file is gone, may not be read, or the process or the
    /// machine is short of something.
    pub(crate) fn of(error: Error, offset: u64) -> Result<Self> {
        match error {
            Error::Corruption { path, offset, lsn, what } => Ok(Self { path, offset, lsn, what }),
            Error::Format { path, found, known } => {
                Ok(Self { path, offset: 0, lsn: None, what: format!("of format {found}, this program knows {known}") })
            }
            Error::Directory { path, what } => Ok(Self { path, offset: 0, lsn: None, what }),
            Error::Io { path, source, .. } if bytes_are_lost(&source) => {
                Ok(Self { path, offset, lsn: None, what: format!("cannot be read: {source}") })
            }
            other => Err(other),
        }
    }
}

/// Whether the operating system says that it has not the bytes: the device or the file system failed, or the file is
/// short. What it refuses for any other reason, it may give the next time.
pub(crate) fn bytes_are_lost(e: &io::Error) -> bool {
    let lost = |e| matches!(e, Errno::IO | Errno::BADMSG | Errno::ILSEQ | Errno::NODATA | Errno::UCLEAN);
    e.kind() == io::ErrorKind::UnexpectedEof || Errno::from_io_error(e).is_some_and(lost)
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at offset {}", self.path.display(), self.offset)?;
        if let Some(lsn) = self.lsn {
            write!(f, " (LSN {lsn})")?;
        }
        write!(f, ": {}", self.what)
    }
}
