//! Reads at older times, single keys at the newest position, and trees that are only read.

use super::*;
use crate::tree::ReadOnly;

/// A tree with some hundred records in memtables, level 0 and below, and each record's position.
fn grown(dir: &Path, seed: u64) -> (Tree, Vec<Position>) {
    let options = Options { history_window_us: 400, ..Options::tiny() };
    let tree = Tree::create(env(seed), dir, &options, Position::default()).unwrap();
    let (rng, mut head, mut positions) = (SeededRng::new(seed), Head::default(), Vec::new());
    for n in 0..300 {
        apply(&tree, &head.batch(1 + rng.below(9), &random_batch(&rng, head.0.ts.0)));
        positions.push(head.0);
        if n % 70 == 0 {
            settle(&tree);
        }
    }
    (tree, positions)
}

fn all(view: &View) -> Vec<Entry> {
    view.scan(Keyspace::USER, b"", b"", false).collect::<Result<_>>().unwrap()
}

#[test]
fn a_time_reads_as_the_newest_record_committed_by_then() {
    for seed in 1..5 {
        let dir = tempfile::tempdir().unwrap();
        let (tree, positions) = grown(dir.path(), seed);
        let floor = tree.history_floor();
        assert!(floor > Lsn(1), "seed {seed}: nothing fell out of the window");
        for (n, at) in positions.iter().enumerate().filter(|(_, p)| p.lsn >= floor) {
            let next = positions.get(n + 1).map_or(at.ts.0 + 50, |p| p.ts.0);
            for time in [at.ts.0, (at.ts.0 + next) / 2, next - 1] {
                let view = tree.view_at_time(CommitTs(time)).unwrap();
                assert_eq!((view.lsn(), view.ts()), (at.lsn, at.ts), "seed {seed}, time {time}");
            }
            if n % 20 == 0 {
                let (by_time, by_lsn) = (tree.view_at_time(at.ts).unwrap(), tree.view_at(at.lsn).unwrap());
                assert_eq!(all(&by_time), all(&by_lsn), "seed {seed}");
            }
        }
        let gone = tree.view_at_time(CommitTs(positions[floor.0 as usize - 1].ts.0 - 1));
        assert!(matches!(gone, Err(Error::HistoryGone { .. })), "seed {seed}");
    }
}

#[test]
fn one_key_reads_as_in_a_view() {
    for seed in 1..5 {
        let dir = tempfile::tempdir().unwrap();
        let (tree, _) = grown(dir.path(), seed);
        let view = tree.view();
        for n in 0..100 {
            let key = format!("{n:02}").into_bytes();
            let one = tree.get_with(Keyspace::USER, &key, |lsn, e| (lsn, e.to_vec())).unwrap();
            assert_eq!(one, view.get(Keyspace::USER, &key).unwrap().map(|f| (f.lsn, f.envelope)), "seed {seed}, {n}");
        }
        let keys: Vec<String> = (0..100).map(|n| format!("{n:02}")).collect();
        let several = view.multi_get(Keyspace::USER, &keys).unwrap();
        assert_eq!(several.iter().flatten().count(), all(&view).iter().filter(|e| e.key.len() == 2).count());
    }
}

/// Every file below a directory with its bytes.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut out = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            out.extend(contents(&path))
        } else {
            drop(out.insert(path.clone(), std::fs::read(&path).unwrap()))
        }
    }
    out
}

#[test]
fn a_checkpoint_is_read_in_place_and_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, positions) = grown(&dir.path().join("from"), 7);
    let to = dir.path().join("to");
    tree.checkpoint(&to).unwrap();
    let (want, floor) = (all(&tree.view()), tree.history_floor());
    let old = positions[floor.0 as usize + 3];
    let want_old = all(&tree.view_at(old.lsn).unwrap());
    drop(tree);
    std::fs::remove_dir_all(dir.path().join("from")).unwrap();
    // What a writer would remove or cut: a table that nobody names, and half an edit.
    std::fs::write(to.join("tables").join(table_name(9)), b"left over").unwrap();
    let manifest = to.join("manifest/0000000000000001.manifest");
    let mut bytes = std::fs::read(&manifest).unwrap();
    bytes.extend_from_slice(b"MSed half");
    std::fs::write(&manifest, bytes).unwrap();
    let before = contents(&to);
    let copy = ReadOnly::open(env(3), &to, &Options::tiny()).unwrap();
    assert_eq!((copy.position(), copy.history_floor()), (positions[positions.len() - 1], floor));
    assert_eq!(all(&copy.view()), want);
    assert_eq!(all(&copy.view_at(old.lsn).unwrap()), want_old);
    assert_eq!(all(&copy.view_at_time(old.ts).unwrap()), want_old);
    drop(copy);
    assert!(contents(&to) == before, "reading changed something");
}
