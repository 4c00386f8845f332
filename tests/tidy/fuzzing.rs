//! The fuzz package and what it found stay together: a target and a corpus for each decoder. Owns: that comparison.
//! Never: running a decoder; `engine/tests/corpus.rs`, `backup/src/tests/corpus.rs` and `replication/src/decoders.rs` do.

use std::collections::BTreeSet;
use std::path::Path;

/// Largest corpus in bytes: it is a sample, read by every run of the tests.
const CORPUS_BYTES_MAX: u64 = 300 << 10;

fn names(dir: &Path) -> BTreeSet<String> {
    let name = |e: std::io::Result<std::fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
    std::fs::read_dir(dir).unwrap().map(name).map(|n| n.trim_end_matches(".rs").to_owned()).collect()
}

#[test]
fn every_decoder_has_a_fuzz_target_and_a_corpus() {
    let fuzz = crate::root().join("fuzz");
    let (targets, corpus) = (names(&fuzz.join("targets")), names(&fuzz.join("corpus")));
    assert_eq!(targets, corpus, "targets on the left, directories of the corpus on the right");
    let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    for name in &targets {
        assert!(manifest.contains(&format!("name = \"{name}\"\npath = \"targets/{name}.rs\"")), "no binary {name}");
        let text = std::fs::read_to_string(fuzz.join("targets").join(name).with_extension("rs")).unwrap();
        assert!(text.contains(&format!("target!(\"{name}\")")), "the target {name} runs another decoder");
    }
    assert_eq!(manifest.matches("[[bin]]").count(), targets.len());
    let bytes = |dir: &String| -> u64 {
        let files = std::fs::read_dir(fuzz.join("corpus").join(dir)).unwrap();
        files.map(|f| f.unwrap().metadata().unwrap().len()).sum()
    };
    let total: u64 = corpus.iter().map(bytes).sum();
    assert!(total <= CORPUS_BYTES_MAX, "the corpus has {total} bytes");
}
