//! A repair while a merge or a scrub reads the damaged file.

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

/// A scrub came to its end with the damaged file before the repair, and tells of it afterwards.
#[test]
fn damage_that_is_told_after_the_repair_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let tree = Tree::create(env(9), dir.path(), &Options::tiny(), Position::default()).unwrap();
    let mut head = Head::default();
    put(&mut head, &tree, "key", "value");
    tree.flush_all().unwrap();
    let mut scrub = tree.tables_to_scrub().remove(0);
    let (path, good) = (scrub.path().to_owned(), dir.path().join("good"));
    let mut bytes = std::fs::read(&path).unwrap();
    std::fs::write(&good, &bytes).unwrap();
    bytes[30] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let found = loop {
        match scrub.step(&tree, 4096) {
            Scrubbed::Read(_) => {}
            Scrubbed::Whole(found) => break found,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(found.len(), 1);
    tree.repair_table(scrub.id(), &good).unwrap();
    tree.note_damage(&scrub, found[0].what.clone());
    assert_eq!((tree.damage(), tree.stats().damaged_tables), (vec![], 0));
}
