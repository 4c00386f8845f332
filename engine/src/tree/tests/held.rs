//! What views and scans hold of states that were replaced: it is reported, and freed after them.

use std::time::Duration;

use super::*;
use crate::clock::SimClock;
use crate::fs::sim::SimFs;

fn overwrite(tree: &Tree, head: &mut Head, value: &str) {
    for n in 0..300 {
        while tree.needs_flush() {
            tree.flush_step().unwrap();
        }
        put(head, tree, &format!("{n:06}"), value);
    }
}

#[test]
fn what_a_long_view_holds_is_reported_and_freed_after_it() {
    let fs = SimFs::new(1);
    fs.prepare_dir(Path::new("data")).unwrap();
    let clock = SimClock::new(CommitTs(1));
    let (env, _) = Env::sim(Arc::clone(&fs), Arc::clone(&clock), 1);
    let options = Options { history_window_us: 0, ..Options::tiny() };
    let tree = Tree::create(env, Path::new("data"), &options, Position::default()).unwrap();
    let mut head = Head::default();
    overwrite(&tree, &mut head, "the first value");
    settle(&tree);
    put(&mut head, &tree, "000001", "in the memtable of the view");
    assert_eq!(tree.stats().held, HeldStats::default(), "nobody reads");
    let view = tree.view();
    assert_eq!(tree.stats().held, HeldStats::default(), "a view of the present holds nothing more");
    let space = fs.allocated();
    let tables = tree.stats().table_bytes();
    for round in 0..3 {
        overwrite(&tree, &mut head, &format!("value {round}"));
        settle(&tree);
        clock.advance(Duration::from_secs(1));
    }
    let held = tree.stats().held;
    assert_eq!(tree.held_memtable_bytes(), held.memtable_bytes);
    assert!((1..=2).contains(&held.versions), "{held:?}: versions between are not held by anybody");
    assert!(held.table_bytes >= tables && held.memtable_bytes > 0, "{held:?}");
    assert!((3_000_000..4_000_000).contains(&held.oldest_us), "{held:?}");
    assert!(fs.allocated() > space + tables / 2, "the files are there");
    assert_eq!(get(&view, "000001").as_deref(), Some("in the memtable of the view"));
    // A scan holds as much as the view that it comes from.
    let mut scan = view.scan(Keyspace::USER, b"", b"", false);
    drop(view);
    assert_eq!(tree.stats().held, held);
    assert_eq!(scan.by_ref().count(), 300);
    drop(scan);
    assert_eq!(tree.stats().held, HeldStats::default());
    assert!(
        fs.files().iter().filter(|f| f.extension().is_some_and(|e| e == "table")).count() as u64
            == tree.stats().tables()
    );
}
