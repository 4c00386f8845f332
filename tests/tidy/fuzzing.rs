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

/// The names in the lists of decoders, which are in files of that name.
fn decoders(sources: &[(String, String)]) -> BTreeSet<String> {
    let lists = sources.iter().filter(|(file, _)| file.ends_with("/decoders.rs") && file.contains("/src/"));
    let entries = lists.flat_map(|(_, text)| text.split("Decoder::new(").skip(1));
    let name = |entry: &str| entry.trim_start().strip_prefix('"')?.split('"').next().map(str::to_owned);
    entries.map(|e| name(e).unwrap_or_else(|| panic!("a decoder whose name is not written out: {e}"))).collect()
}

/// What one side has and the other has not.
fn differences(decoders: &BTreeSet<String>, targets: &BTreeSet<String>) -> Vec<String> {
    let without = decoders.difference(targets).map(|d| format!("the decoder {d} has no fuzz target and corpus"));
    let left = targets.difference(decoders).map(|t| format!("the fuzz target and corpus {t} are of no decoder"));
    without.chain(left).collect()
}

#[test]
fn a_decoder_that_left_its_list_and_one_without_a_target_are_noticed() {
    let source = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    let found = decoders(&[
        source("engine/src/log/decoders.rs", "vec![Decoder::new(\"a\", run, || vec![]), Decoder::new(\n    \"b\","),
        source("backup/src/decoders.rs", "Decoder::new(\"c\", run, seeds)"),
        source("engine/tests/corpus.rs", "Decoder::new(\"no list\", run, seeds)"),
    ]);
    let names = |all: &[&str]| all.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(found, names(&["a", "b", "c"]));
    assert!(differences(&found, &found).is_empty());
    let wrong = differences(&found, &names(&["a", "b", "gone"]));
    assert_eq!(
        wrong,
        ["the decoder c has no fuzz target and corpus", "the fuzz target and corpus gone are of no decoder"]
    );
}

#[test]
fn every_decoder_has_a_fuzz_target_and_a_corpus() {
    let fuzz = crate::root().join("fuzz");
    let (targets, corpus) = (names(&fuzz.join("targets")), names(&fuzz.join("corpus")));
    assert_eq!(targets, corpus, "targets on the left, directories of the corpus on the right");
    let wrong = differences(&decoders(&crate::sources()), &targets);
    assert!(wrong.is_empty(), "{wrong:?}; see docs/testing.md");
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
