//! Replication's decoders of files for fuzzing, see [`mainstay_engine::decoders`].
//!
//! Owns: the list. Never: part of a build without feature `sim`.

use mainstay_engine::decoders::Decoder;

use crate::driver::{decode_promise, promise_seeds};

/// All decoders of this crate.
#[must_use]
pub fn all() -> Vec<Decoder> {
    vec![Decoder::new("promise", decode_promise, promise_seeds)]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use mainstay_engine::decoders::{replay_corpus, write_seeds};

    use super::all;

    #[test]
    fn every_decoder_takes_its_corpus_without_a_panic() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
        if std::env::var_os("MAINSTAY_WRITE_CORPUS").is_some() {
            write_seeds(&all(), &corpus).unwrap();
        }
        replay_corpus(&all(), &corpus, 200).unwrap();
    }
}
