//! Looking inside: what the engine's files hold, and whether they hold what was written.
//!
//! Everything here only reads. It takes no lock, opens nothing for writing and needs no store, so it works
//! on a stopped store, a checkpoint, a single file, and beside a running server: what that changes meanwhile
//! is left out, never called damage. Owns: the public readers of log, tables and manifest, and the checks that
//! tell damage from the marks of a crash. Never: repair.

mod finding;
mod log;
mod state;
mod tables;

pub use finding::Finding;
pub(crate) use finding::bytes_are_lost;
pub use log::{CheckedSegment, Known, LogCheck, check_log, check_segment};
pub use state::{ManifestCheck, StateFiles, check_manifest, read_state, state_files};
pub(crate) use tables::conclude;
pub use tables::{TablesCheck, check_table, check_tables};

pub use crate::log::inspect::{
    CutTailFile, FrameView, LogFile, RecordFile, SegmentHeader, SegmentReader, SegmentState, Unfinished, cut_tails,
    log_files,
};
pub use crate::table::inspect::{
    BlockView, Entries, EntryView, RangeView, Section, SpacedKey, TableOrigin, TableProperties, TableView,
};
pub use crate::tree::inspect::{ManifestEdit, ManifestView, PlacedTable, TreeState, current_manifest, read_manifest};
