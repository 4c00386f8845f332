//! What cross-crate tests share.
//!
//! Owns: nothing yet; the suites live beside the binary in `server/tests`. Never: production code.
