//! The whole store on the simulated disk, against a model: whatever fails, the state after recovery
//! is the model's at one LSN between durable and appended.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking and observes real processes"
)]

mod embedded;
mod exhaustive;
mod faults;
mod model;
mod planted;
mod repair;
mod scrub;
mod stall;
mod sweep;
mod world;
