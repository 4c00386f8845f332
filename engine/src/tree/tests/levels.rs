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
    assert_eq!((stats.history.tables, stats.forgotten > 0), (0, true), "{stats:?}");
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
