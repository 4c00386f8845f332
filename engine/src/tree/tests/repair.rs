//! A repair while a merge reads the damaged file.

use super::*;
use crate::inspect::TableView;

#[test]
fn a_merge_that_reads_the_damaged_file_ends_with_its_repair() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { memtable_bytes: 1 << 20, memory_limit: 8 << 20, history_window_us: 0, ..Options::tiny() };
    let (tree, mut head) = (Tree::create(env(8), dir.path(), &options, Position::default()).unwrap(), Head::default());
    for round in 0..3 {
        for n in 0..400 {
            put(&mut head, &tree, &format!("{n:06}"), &format!("value {n} of {round}"));
        }
        tree.flush_all().unwrap();
        // The first table goes down as it is; the others are merged with it.
        while round == 0 && tree.compact_step().unwrap() == Progress::Worked {}
    }
    let id = tree.pinned_tables().tables[0].id;
    let (path, good) = (tree.table_path(id), dir.path().join("good"));
    let mut bytes = std::fs::read(&path).unwrap();
    std::fs::write(&good, &bytes).unwrap();
    let last = TableView::open(&tree.env.fs, &path).unwrap().blocks().unwrap().last().unwrap().unwrap();
    bytes[last.offset as usize + 30] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    // A few entries of a merge, not yet up to the damage.
    while tree.stepped_bytes() == 0 {
        assert_eq!(tree.compact(false, 1).unwrap(), Progress::Worked);
    }
    assert_eq!(tree.stats().compactions, 0);
    tree.repair_table(id, &good).unwrap();
    while tree.compact_step().unwrap() == Progress::Worked {}
    let stats = tree.stats();
    assert!(stats.compactions == 1 && stats.damaged_tables == 0, "{stats:?}");
    assert_eq!(tree.damage(), Vec::<String>::new());
    assert_eq!(get(&tree.view(), "000399").as_deref(), Some("value 399 of 2"));
    assert_eq!(scan(&tree.view(), b"", b"", false).len(), 400);
}
