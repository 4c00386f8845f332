//! Everything that fuzzing found in this crate's decoders, again.

use std::path::Path;

use mainstay_engine::decoders::{replay_corpus, write_seeds};

use crate::decoders::all;

#[test]
fn every_decoder_takes_its_corpus_without_a_panic() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    if std::env::var_os("MAINSTAY_WRITE_CORPUS").is_some() {
        write_seeds(&all(), &corpus).unwrap();
    }
    replay_corpus(&all(), &corpus, 200).unwrap();
}
