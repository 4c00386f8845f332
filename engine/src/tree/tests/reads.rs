//! What reads count: exact numbers, reckoned beside.

use super::*;
use crate::table::filter::{Filter, key_hash};
use crate::table::internal_key;

/// Present keys have one byte, so that no separator is shorter than the last key of its block: each is in the block that
/// its separator says, and what stands behind one in the order is in the next block, if not in the same.
fn fill(head: &mut Head, tree: &Tree, keys: impl Iterator<Item = u8>) {
    for key in keys {
        let mut b = Batch::new();
        b.put(&[key], &[b'v'; 20]).unwrap();
        apply(tree, &head.batch(1, &b));
    }
    tree.flush_all().unwrap();
}

fn filter_of(keys: impl Iterator<Item = u8>) -> Filter {
    Filter::build(&keys.map(|k| key_hash(&internal_key(Keyspace::USER, &[k]))).collect::<Vec<_>>())
}

fn passes(filter: &Filter, key: &[u8]) -> bool {
    filter.may_contain(key_hash(&internal_key(Keyspace::USER, key)))
}

fn has(tree: &Tree, key: &[u8]) -> bool {
    tree.get_with(Keyspace::USER, key, |_, _| ()).unwrap().is_some()
}

/// Gets, tables and blocks of those; hits and misses; spared and wrong.
fn counts(tree: &Tree) -> [u64; 7] {
    let s = tree.stats();
    [s.gets, s.get_tables, s.get_blocks, s.cache_hits, s.cache_misses, s.filter_spared, s.filter_wrong]
}

#[test]
fn gets_count_tables_blocks_cache_and_filters_to_the_last_one() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { memtable_bytes: 1 << 20, memory_limit: 64 << 20, ..Options::tiny() };
    let tree = Tree::create(env(1), dir.path(), &options, Position::default()).unwrap();
    let mut head = Head::default();
    let even = || (0..=254u8).step_by(2);
    fill(&mut head, &tree, even());
    let blocks = tree.version().levels[0][0].properties().data_blocks;
    assert!(blocks > 5, "{blocks} blocks: this tests little");
    assert_eq!((counts(&tree), tree.stats().read_amplification()), ([0; 7], 0.0));

    // Present keys: one table, one block each, which is read from the file once.
    assert!(even().all(|k| has(&tree, &[k])));
    assert_eq!(counts(&tree), [128, 128, 128, 128 - blocks, blocks, 0, 0]);
    assert_eq!((tree.stats().read_amplification(), tree.stats().parts_loaded), (1.0, 2));

    // Absent keys between them: the filter spares the look, or is wrong and costs one block.
    let absent: Vec<[u8; 2]> = even().take(127).flat_map(|k| (0..8).map(move |n| [k, n])).collect();
    let filter = filter_of(even());
    let wrong = absent.iter().filter(|k| passes(&filter, *k)).count() as u64;
    assert!(wrong > 0 && absent.len() == 1016, "no key is taken for present: this tests little");
    assert!(!absent.iter().any(|k| has(&tree, k)));
    let (gets, looked) = (128 + 1016, 128 + wrong);
    assert_eq!(counts(&tree), [gets, looked, looked, looked - blocks, blocks, 1016 - wrong, wrong]);
    assert_eq!(tree.stats().read_amplification(), looked as f64 / gets as f64);

    // A scan is no get; its blocks count for the cache.
    assert_eq!(tree.view().scan(Keyspace::USER, b"", b"", false).count(), 128);
    assert_eq!(counts(&tree), [gets, looked, looked, looked, blocks, 1016 - wrong, wrong]);

    // What is in a memtable needs no table.
    put(&mut head, &tree, "\u{2}", "newer");
    assert!(has(&tree, &[2]));
    assert_eq!(counts(&tree), [gets + 1, looked, looked, looked, blocks, 1016 - wrong, wrong]);
}

#[test]
fn a_get_that_asks_two_tables_counts_both_and_so_does_one_of_many_keys() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { memtable_bytes: 1 << 20, memory_limit: 64 << 20, level0_tables: 9, ..Options::tiny() };
    let tree = Tree::create(env(2), dir.path(), &options, Position::default()).unwrap();
    let mut head = Head::default();
    let (even, odd) = (|| (0..=252u8).step_by(2), || (1..=255u8).step_by(2));
    fill(&mut head, &tree, even());
    fill(&mut head, &tree, odd());
    // Until its filter is pinned a table is asked for itself.
    let keys: Vec<[u8; 1]> = even().map(|k| [k]).collect();
    let view = tree.view();
    let asked = |filters: u64| {
        let before = counts(&tree);
        assert!(view.multi_get(Keyspace::USER, &keys).unwrap().iter().all(Option::is_some));
        let after = counts(&tree);
        let newer = filter_of(odd());
        let wrong = keys.iter().filter(|k| passes(&newer, *k)).count() as u64;
        assert!(wrong > 0, "no key is taken for present: this tests little");
        let new: Vec<u64> = after.iter().zip(before).map(|(a, b)| a - b).collect();
        assert_eq!(new[..3], [127, 127 + wrong, 127 + wrong]);
        assert_eq!((new[3] + new[4], new[5], new[6]), (127 + wrong, 127 - wrong, wrong));
        assert_eq!(tree.stats().parts_loaded, filters);
    };
    asked(4);
    asked(4);
}

#[test]
fn what_more_threads_count_than_there_are_places_is_all_counted() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { memtable_bytes: 1 << 20, memory_limit: 64 << 20, ..Options::tiny() };
    let tree = Tree::create(env(3), dir.path(), &options, Position::default()).unwrap();
    let mut head = Head::default();
    fill(&mut head, &tree, 0..=255);
    std::thread::scope(|s| {
        for _ in 0..40 {
            s.spawn(|| assert!((0..=255).all(|k| has(&tree, &[k]))));
        }
    });
    let stats = tree.stats();
    assert_eq!([stats.gets, stats.get_tables, stats.get_blocks], [40 * 256; 3]);
    assert_eq!(stats.cache_hits + stats.cache_misses, 40 * 256);
}
