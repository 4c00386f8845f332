//! Trees of many levels: what compaction drops, moves, keeps for history, and what it leaves alone.

use super::*;

/// Many small tables in several levels.
fn many_levels(history_window_us: u64) -> Options {
    Options { history_window_us, level_base_bytes: 3_000, table_bytes: 1_000, memory_limit: 1 << 20, ..Options::tiny() }
}

fn drain(tree: &Tree) {
    while tree.compact_step().unwrap() == Progress::Worked {}
}

fn numbered(n: u64) -> String {
    format!("{n:06}")
}

fn flush(tree: &Tree) {
    tree.flush_all().unwrap();
}

/// Overwrites random keys of 1500 until several levels are full; returns the newest value of each.
fn grow(tree: &Tree, head: &mut Head, rng: &dyn Rng) -> BTreeMap<String, String> {
    let mut now = BTreeMap::new();
    for n in 0..6_000u64 {
        let (key, value) = (numbered(rng.below(1_500)), format!("{n}-{}", rng.next_u64()));
        put(head, tree, &key, &value);
        now.insert(key, value);
        if tree.has_frozen() {
            tree.flush_step().unwrap();
            drain(tree);
        }
    }
    now
}

#[test]
fn levels_grow_stay_apart_and_hold_each_key_about_once() {
    let dir = tempfile::tempdir().unwrap();
    let tree = Tree::create(env(3), dir.path(), &many_levels(0), Position::default()).unwrap();
    let (rng, mut head) = (SeededRng::new(3), Head::default());
    let now = grow(&tree, &mut head, &rng);
    flush(&tree);
    drain(&tree);
    let stats = tree.stats();
    let used = stats.levels.iter().skip(1).filter(|l| l.tables > 0).count();
    assert!(used >= 2 && stats.levels[6].tables > 10, "{stats:?}");
    while tree.settle_step().unwrap() == Progress::Worked {}
    let stats = tree.stats();
    assert!(stats.space_amplification() <= 1.25, "{} of {stats:?}", stats.space_amplification());
    for level in tree.version().levels.iter().skip(1) {
        for pair in level.windows(2) {
            assert!(pair[0].properties().max_key < pair[1].properties().min_key, "tables of a level overlap");
        }
    }
    let view = tree.view();
    for (key, value) in &now {
        assert_eq!(get(&view, key).as_ref(), Some(value), "{key}");
    }
    assert_eq!(scan(&view, b"", b"", false).len(), now.len());
}

#[test]
fn ascending_keys_are_written_once() {
    let dir = tempfile::tempdir().unwrap();
    let tree = Tree::create(env(4), dir.path(), &many_levels(0), Position::default()).unwrap();
    let mut head = Head::default();
    for n in 0..2_000 {
        put(&mut head, &tree, &numbered(n), "value");
        if tree.has_frozen() {
            tree.flush_step().unwrap();
            drain(&tree);
        }
    }
    let stats = tree.stats();
    assert!(stats.moved_tables > 10 && stats.compactions == 0, "{stats:?}");
    assert!(stats.write_amplification() < 1.01, "{stats:?}");
}

#[test]
fn superseded_versions_leave_the_main_tables_and_go_when_their_time_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let tree = Tree::create(env(5), dir.path(), &many_levels(1_000), Position::default()).unwrap();
    let mut head = Head::default();
    let lsns: Vec<Lsn> = (0..40).map(|n| put(&mut head, &tree, "k", &n.to_string())).collect();
    flush(&tree);
    let stats = tree.stats();
    assert_eq!((stats.levels[0].entries, stats.history.entries), (1, 39));
    let mut b = Batch::new();
    b.delete(b"k").unwrap();
    apply(&tree, &head.batch(1, &b));
    let deleted = head.0.lsn;
    put(&mut head, &tree, "k", "again");
    flush(&tree);
    drain(&tree);
    for (n, lsn) in lsns.iter().enumerate() {
        assert_eq!(get(&tree.view_at(*lsn).unwrap(), "k"), Some(n.to_string()));
    }
    assert_eq!(get(&tree.view_at(deleted).unwrap(), "k"), None, "a delete is history as well");
    assert_eq!(get(&tree.view(), "k").as_deref(), Some("again"));
    for _ in 0..4 {
        apply(&tree, &head.batch(1_000, &Batch::new()));
        flush(&tree);
        drain(&tree);
    }
    let stats = tree.stats();
    // What is left is the commit time of the last record.
    assert_eq!((stats.history.tables, stats.history.entries, stats.forgotten > 0), (1, 0, true), "{stats:?}");
    assert_eq!(get(&tree.view(), "k").as_deref(), Some("again"));
}

/// A key is written, brought to the bottom, deleted; the delete goes down one level only.
fn hidden_by_a_delete(tree: &Tree) -> Option<String> {
    let (rng, mut head) = (SeededRng::new(6), Head::default());
    put(&mut head, tree, "000700", "old");
    grow(tree, &mut head, &rng);
    flush(tree);
    tree.compact_all().unwrap();
    let mut b = Batch::new();
    b.delete(b"000700").unwrap();
    apply(tree, &head.batch(1, &b));
    for n in 0..300 {
        put(&mut head, tree, &numbered(n * 5 + 1), "new");
        if tree.has_frozen() {
            tree.flush_step().unwrap();
            tree.compact(false, 1 << 20).unwrap();
        }
    }
    get(&tree.view(), "000700")
}

#[test]
fn a_delete_stays_as_long_as_it_hides_something() {
    let dir = tempfile::tempdir().unwrap();
    let tree = Tree::create(env(6), dir.path(), &many_levels(0), Position::default()).unwrap();
    assert_eq!(hidden_by_a_delete(&tree), None);
}

#[cfg(feature = "sim")]
#[test]
fn planted_bugs_in_compaction_are_noticed() {
    use crate::fault::{Bug, plant};

    let dir = tempfile::tempdir().unwrap();
    let mut seen = false;
    {
        let _planted = plant(Bug::DropHidingDeletes);
        for seed in 0..20 {
            let path = dir.path().join(seed.to_string());
            std::fs::create_dir(&path).unwrap();
            let tree = Tree::create(env(seed), &path, &many_levels(0), Position::default()).unwrap();
            if hidden_by_a_delete(&tree).is_some() {
                seen = true;
                break;
            }
        }
    }
    assert!(seen, "a delete that was dropped too early went unnoticed");
    let tree = Tree::create(env(7), dir.path(), &many_levels(0), Position::default()).unwrap();
    let mut head = Head::default();
    put(&mut head, &tree, "a", "1");
    flush(&tree);
    let _planted = plant(Bug::LoseInCompaction);
    let lost = tree.compact_all().unwrap_err();
    assert!(lost.to_string().contains("compaction lost count: 1 entries expected, 1 read, 0 written"), "{lost}");
}

#[test]
fn expired_values_go_without_any_write_near_them() {
    let dir = tempfile::tempdir().unwrap();
    let tree = Tree::create(env(8), dir.path(), &many_levels(100), Position::default()).unwrap();
    let mut head = Head::default();
    for n in 0..200 {
        let mut b = Batch::new();
        b.put_expiring(numbered(n).as_bytes(), b"a value", CommitTs(2_000)).unwrap();
        apply(&tree, &head.batch(1, &b));
    }
    flush(&tree);
    tree.compact_all().unwrap();
    assert_eq!(tree.stats().levels[6].entries, 200);
    for _ in 0..4 {
        let mut b = Batch::new();
        b.put(b"zzz", b"elsewhere").unwrap();
        apply(&tree, &head.batch(2_000, &b));
        flush(&tree);
        drain(&tree);
    }
    assert!(tree.stats().levels.iter().map(|l| l.entries).sum::<u64>() <= 4, "{:?}", tree.stats());
}

#[test]
fn a_thousand_range_deletes_are_found_by_key() {
    let dir = tempfile::tempdir().unwrap();
    let tree = Tree::create(env(9), dir.path(), &many_levels(1_000_000), Position::default()).unwrap();
    let mut head = Head::default();
    for n in 0..3_000 {
        put(&mut head, &tree, &numbered(n), "v");
    }
    for n in 0..1_000 {
        let mut b = Batch::new();
        b.delete_range(numbered(n * 3).as_bytes(), numbered(n * 3 + 1).as_bytes()).unwrap();
        apply(&tree, &head.batch(1, &b));
        if n == 500 {
            flush(&tree);
        }
    }
    let view = tree.view();
    for n in 0..3_000 {
        assert_eq!(get(&view, &numbered(n)).is_some(), n % 3 != 0, "{n}");
    }
    assert_eq!(scan(&view, b"", b"", false).len(), 2_000);
    let before = tree.view_at(Lsn(3_000 + 10)).unwrap();
    assert_eq!(scan(&before, b"", b"", false).len(), 2_990);
}

/// Writes `n` keys, one per record of a thousand, brings them to the bottom, and deletes all but the last.
fn deleted_but_one(tree: &Tree, head: &mut Head, n: u64) {
    for delete in [false, true] {
        for first in (0..n).step_by(1_000) {
            let mut b = Batch::new();
            for key in first..first + 1_000 {
                let key = numbered(key);
                if !delete {
                    b.put(key.as_bytes(), b"v").unwrap();
                } else if key != numbered(n - 1) {
                    b.delete(key.as_bytes()).unwrap();
                }
            }
            while tree.needs_flush() {
                tree.flush_step().unwrap();
            }
            apply(tree, &head.batch(1, &b));
        }
        if !delete {
            flush(tree);
            tree.compact_all().unwrap();
        }
    }
}

/// The first key, and how many entries stood before it.
fn seek(view: &View, reverse: bool) -> (Option<String>, u64) {
    let mut scan = view.scan(Keyspace::USER, b"", numbered(99_999).as_bytes(), reverse);
    let key = scan.next_entry().unwrap().map(|e| String::from_utf8(e.key.to_vec()).unwrap());
    (key, scan.passed_over())
}

#[test]
fn a_seek_across_a_hundred_thousand_deletes_is_slow_only_until_compaction_has_heard_of_it() {
    for reverse in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        // The deletes are far younger than the history window, and fill no level.
        let options = Options { memtable_bytes: 64 << 20, memory_limit: 1 << 30, ..many_levels(u64::MAX) };
        let options = Options { level_base_bytes: 1 << 30, table_bytes: 1 << 20, level0_tables: 4, ..options };
        let tree = Tree::create(env(10), dir.path(), &options, Position::default()).unwrap();
        let mut head = Head::default();
        deleted_but_one(&tree, &mut head, 101_000);
        let before = tree.view();
        assert_eq!(seek(&before, reverse).0, None, "all keys below the bound are deleted");
        assert!(seek(&before, reverse).1 > 100_000);
        for round in 0.. {
            assert!(round < 4, "compaction does not take care of it: {:?}", tree.stats());
            tree.freeze_crowded();
            flush(&tree);
            drain(&tree);
            let (key, passed) = seek(&tree.view(), reverse);
            assert_eq!(key, None);
            if passed <= 1_024 {
                break;
            }
        }
        let stats = tree.stats();
        assert_eq!((stats.dropped.deletes, stats.crowded_tables), (100_999, 0), "{stats:?}");
        // What the deletes hid is history still, and a reader of the past sees it.
        assert_eq!(scan(&tree.view_at(Lsn(101)).unwrap(), b"", b"", false).len(), 101_000);
        assert_eq!(scan(&before, b"", b"", reverse).len(), 1);
        // Compaction has nothing left to do: no scan drives it round and round.
        seek(&tree.view(), reverse);
        assert_eq!(tree.compact_step().unwrap(), Progress::Idle);
    }
}

/// What a scan passed over in tables and in frozen memtables is no reason to flush one that hardly holds anything.
#[test]
fn a_memtable_is_not_crowded_by_what_a_scan_passed_over_elsewhere() {
    for reverse in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { memtable_bytes: 64 << 20, memory_limit: 1 << 30, ..many_levels(u64::MAX) };
        let tree = Tree::create(env(11), dir.path(), &options, Position::default()).unwrap();
        let mut head = Head::default();
        let mut expiring = Batch::new();
        for n in 0..3_000 {
            expiring.put_expiring(numbered(n).as_bytes(), b"v", CommitTs(2)).unwrap();
        }
        apply(&tree, &head.batch(1, &expiring));
        flush(&tree);
        let mut deletes = Batch::new();
        deletes
            .delete(b"")
            .unwrap()
            .delete(numbered(1_500).as_bytes())
            .unwrap()
            .delete(numbered(3_500).as_bytes())
            .unwrap();
        apply(&tree, &head.batch(10, &deletes));
        assert_eq!(seek(&tree.view(), reverse), (None, 3_003));
        tree.freeze_crowded();
        assert!(!tree.has_frozen(), "a memtable of three entries was frozen");
        // A thousand in a frozen one, whichever way they are met, and then sixty.
        let [mut frozen, mut active] = [Batch::new(), Batch::new()];
        for n in (0..1_000).chain(2_000..3_000) {
            frozen.delete(numbered(n).as_bytes()).unwrap();
        }
        for n in 1_200..1_260 {
            active.delete(numbered(n).as_bytes()).unwrap();
        }
        apply(&tree, &head.batch(1, &frozen));
        tree.freeze();
        apply(&tree, &head.batch(1, &active));
        assert_eq!(seek(&tree.view(), reverse).0, None);
        tree.freeze_crowded();
        assert_eq!(tree.stats().frozen_memtables, 1, "a memtable of sixty entries was frozen");
    }
}

/// The newest tables of level 0 become one where a damaged table is in the way; a delete among them hides what an
/// older table of level 0 holds.
#[test]
fn a_delete_stays_while_an_older_table_of_its_level_holds_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let tree = Tree::create(env(11), dir.path(), &many_levels(0), Position::default()).unwrap();
    let mut head = Head::default();
    let writes = |head: &mut Head, keys: &[&str]| {
        for key in keys {
            put(head, &tree, key, "a value that is read in full");
        }
        flush(&tree);
    };
    // What is damaged must meet something below, or it would be moved there unread; its key "k" meets nothing.
    writes(&mut head, &["l", "zz"]);
    tree.compact_all().unwrap();
    writes(&mut head, &["k", "m", "z"]);
    let damaged = tree.table_path(tree.version().levels[0][0].id());
    let mut bytes = std::fs::read(&damaged).unwrap();
    bytes[40] ^= 8;
    std::fs::write(&damaged, &bytes).unwrap();
    for round in 0..8 {
        let mut b = Batch::new();
        b.delete(b"k").unwrap().put(b"y", &[round]).unwrap();
        apply(&tree, &head.batch(1, &b));
        flush(&tree);
        drain(&tree);
    }
    let stats = tree.stats();
    assert!(stats.damaged_tables == 1 && stats.compactions > 0 && stats.levels[0].deletes > 0, "{stats:?}");
    assert_eq!(get(&tree.view(), "k"), None);
}

#[test]
fn every_dropped_entry_has_a_reason_and_a_covered_table_is_dropped_unread() {
    let dir = tempfile::tempdir().unwrap();
    let tree = Tree::create(env(12), dir.path(), &many_levels(10), Position::default()).unwrap();
    let mut head = Head::default();
    for n in 0..200 {
        put(&mut head, &tree, &numbered(n), "v");
    }
    flush(&tree);
    tree.compact_all().unwrap();
    let covered = tree.pinned_tables().tables;
    for file in &covered {
        // Nobody can read these any more.
        let path = tree.table_path(file.id);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, vec![0xee; bytes.len()]).unwrap();
    }
    let mut b = Batch::new();
    b.delete_range(b"0", b"1").unwrap().put(b"expires", b"v").unwrap();
    b.put_expiring(b"expired", b"v", CommitTs(300)).unwrap().put(b"twice", b"1").unwrap();
    apply(&tree, &head.batch(1, &b));
    put(&mut head, &tree, "twice", "2");
    for _ in 0..6 {
        apply(&tree, &head.batch(1_000, &Batch::new()));
        flush(&tree);
        drain(&tree);
    }
    tree.compact_all().unwrap();
    let stats = tree.stats();
    assert_eq!(stats.damaged_tables, 0, "{stats:?}");
    let d = stats.dropped;
    assert_eq!((d.range_deleted, d.history, d.expired, d.superseded, d.deletes), (200, 1, 1, 0, 0), "{stats:?}");
    assert_eq!(stats.levels.iter().map(|l| l.entries).sum::<u64>(), 2, "{stats:?}");
}

#[test]
fn ten_thousand_range_deletes_cost_a_read_one_search_for_each_part_that_has_some() {
    use crate::tree::range_index::tests::SEARCHES;

    let cost = |ranges: u64| {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { memtable_bytes: 64 << 20, memory_limit: 1 << 30, ..many_levels(u64::MAX) };
        let tree = Tree::create(env(13), dir.path(), &options, Position::default()).unwrap();
        let mut head = Head::default();
        for first in (0..20_000).step_by(1_000) {
            let mut b = Batch::new();
            for n in first..first + 1_000 {
                b.put(numbered(n).as_bytes(), b"v").unwrap();
            }
            apply(&tree, &head.batch(1, &b));
        }
        flush(&tree);
        for n in 0..ranges {
            let mut b = Batch::new();
            b.delete_range(numbered(2 * n).as_bytes(), numbered(2 * n + 1).as_bytes()).unwrap();
            apply(&tree, &head.batch(1, &b));
            if n == ranges / 2 {
                flush(&tree);
            }
        }
        let view = tree.view();
        let blocks = |tree: &Tree| tree.stats().cache_hits + tree.stats().cache_misses;
        let (before, searches) = (blocks(&tree), SEARCHES.get());
        let iterators: Vec<_> =
            (0..100).map(|n| view.scan(Keyspace::USER, numbered(n).as_bytes(), b"", false)).collect();
        assert_eq!((blocks(&tree), SEARCHES.get()), (before, searches), "making an iterator looks at nothing");
        drop(iterators);
        for n in 0..1_000 {
            assert_eq!(get(&view, &numbered(n * 20 + 1)).as_deref(), Some("v"));
        }
        (blocks(&tree) - before, SEARCHES.get() - searches)
    };
    let (none, one, many) = (cost(0), cost(4), cost(10_000));
    assert_eq!((none.1, one.1), (0, 2_000), "one search in the tables' range deletes, one in the memtable's");
    assert_eq!(many.1, one.1);
    assert!(many.0 < 2 * none.0, "{many:?} and {none:?}");
}
