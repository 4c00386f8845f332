//! Backup, continuous archive and restore of a Mainstay cluster.
//!
//! Owns: the repository's layout (`repository`), base backups, the archiver, the catalog of what
//! exists, restore planning (pure) and restore execution. Never: reads the log above the commit
//! LSN \[I9\], overwrites a named object \[I10\], calls a restore done before it was verified \[I11\].

pub mod archive;
pub mod base;
pub mod catalog;
#[cfg(any(test, feature = "sim"))]
pub mod decoders;
pub mod engine_target;
pub mod error;
pub mod log_source;
pub mod plan;
pub mod repository;
pub mod restore;
pub mod table_copy;
pub mod timeline;
pub mod wal_object;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use archive::{ArchiveStatus, Archiver, ArchiverHandle, ArchiverOptions, RecordSource, archived_upto};
pub use base::{BaseInfo, BaseSource, create_base};
pub use catalog::Catalog;
pub use engine_target::EngineFactory;
pub use error::{Error, Result, StoreKind};
pub use log_source::LogSource;
pub use plan::{RestorePlan, RestoreWindow, Target, plan, restore_window};
pub use repository::Repository;
pub use restore::{ReplayFactory, ReplayTarget, RestoreOptions, Restored, execute};
pub use table_copy::copy_table;
pub use wal_object::Writer;
