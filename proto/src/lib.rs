//! Mainstay's wire messages and services, generated from `proto/proto/mainstay/v1/*.proto`.
//!
//! Owns: the `.proto` files and the committed code made from them. Never: logic. Regenerate with
//! `cargo run -p mainstay-proto-gen`; `--check` says whether the code is current.

/// Version 1 of the protocol.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
#[rustfmt::skip]
pub mod v1 {
    include!("generated/mainstay.v1.rs");
}
