//! Compaction: keeps the number of tables a read asks small and drops what no view can see.
//!
//! Owns: choosing (`choose`, pure) and doing (`run`). There are two levels: level 0 holds flushed
//! tables that overlap, level 1 sorted tables that do not.

mod choose;
mod run;
