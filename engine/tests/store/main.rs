//! The whole store on the simulated disk, against a model: whatever fails, the state after recovery
//! is the model's at one LSN between durable and appended.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking and observes real processes"
)]

mod bulk;
mod create;
mod embedded;
mod ended;
mod exhaustive;
mod faults;
mod full_disk;
mod ingest;
mod ingest_faults;
mod keyspaces;
mod log_life;
mod manifest_end;
mod model;
mod open_files;
mod options;
mod planted;
mod reads;
mod repair;
mod scrub;
mod stall;
mod submit;
mod sweep;
mod table_memory;
mod tails;
mod world;
