//! Everything that fuzzing found in this crate's decoders, again, and small variations of it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use mainstay_engine::decoders::{Decoder, all, replay_corpus, write_seeds};

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus")
}

#[test]
fn every_decoder_takes_its_corpus_without_a_panic() {
    if std::env::var_os("MAINSTAY_WRITE_CORPUS").is_some() {
        write_seeds(&all(), &corpus()).unwrap();
    }
    replay_corpus(&all(), &corpus(), 200).unwrap();
}

#[test]
fn a_panic_a_decoder_without_corpus_and_one_that_takes_nothing_are_noticed() {
    let replay = |name, run| replay_corpus(&[Decoder::new(name, run, Vec::new)], &corpus(), 200);
    assert!(replay("no_such_decoder", |_| true).unwrap_err().contains("has no corpus"));
    assert!(replay("record", |_| false).unwrap_err().contains("accepts nothing"));
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let panicked = replay("record", |bytes| bytes[79] < 200 || bytes[80] > 0);
    std::panic::set_hook(hook);
    assert!(panicked.unwrap_err().contains("made it panic; the bytes are ["));
}
