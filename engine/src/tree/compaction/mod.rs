//! Compaction: keeps the number of tables a read asks small and drops what no view can see.
//!
//! `shape` are the tables as facts, `choose` the pure choice of what to do, `rule` what becomes of each version,
//! `job` a merge, `part` a stretch of its keys in steps, `outputs` its files, `run` the carrying out, `place` the level of tables from outside. A table whose bytes turn out to be damaged
//! is left where it is; everything that does not need it goes on. Owns: the history floor's advance. Never: more
//! than one job at a time, whose parts may be merged at the same time.

mod choose;
pub(super) mod job;
pub(super) mod outputs;
mod part;
pub(super) mod place;
pub(super) mod rule;
mod run;
pub(super) mod shape;
#[cfg(test)]
mod tests;

pub(super) use run::Compacting;
