//! What all fuzz targets share. A target is the name of a decoder and nothing else, so that the fuzzer and the replay
//! of the corpus (`engine/tests/corpus.rs`, `backup/src/tests/corpus.rs`, `replication/src/decoders.rs`) run the same code.
//!
//! Owns: finding a decoder by its name. Never: what a decoder does or must hold to.

use mainstay_engine::decoders::{Decoder, run};

/// Every decoder that can be fuzzed.
#[must_use]
pub fn decoders() -> Vec<Decoder> {
    [mainstay_engine::decoders::all(), mainstay_backup::decoders::all(), mainstay_replication::decoders::all()].concat()
}

/// Runs one.
///
/// # Panics
/// When there is no such decoder, and when it finds a fault in itself.
pub fn decode(name: &str, bytes: &[u8]) {
    thread_local! {
        static ALL: Vec<Decoder> = decoders();
    }
    ALL.with(|all| run(all, name, bytes));
}

/// Makes a file the fuzz target of the decoder called `$name`.
#[macro_export]
macro_rules! target {
    ($name:literal) => {
        libfuzzer_sys::fuzz_target!(|bytes: &[u8]| $crate::decode($name, bytes));
    };
}
