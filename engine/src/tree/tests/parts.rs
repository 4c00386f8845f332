//! Several threads merge the parts of one merge, beside writes, flushes, and merges of everything.

use std::sync::atomic::AtomicBool;

use super::*;

fn run(seed: u64) {
    let what = format!("seed {seed}");
    let rng = SeededRng::new(seed);
    let dir = tempfile::tempdir().unwrap();
    let options = Options { merge_threads: 4, table_bytes: 300, level_base_bytes: 2_000, ..options(&rng) };
    let tree = Tree::create(env(seed), dir.path(), &options, Position::default()).unwrap();
    let (mut head, mut model, mut views) = (Head::default(), Model::default(), Vec::new());
    let over = AtomicBool::new(false);
    let repeat = |step: &dyn Fn(&Tree) -> Result<Progress>| {
        while !over.load(Ordering::Relaxed) {
            step(&tree).unwrap();
            std::thread::yield_now();
        }
    };
    std::thread::scope(|s| {
        s.spawn(|| repeat(&|t| t.compact(false, 700)));
        for _ in 0..3 {
            s.spawn(|| repeat(&Tree::help_step));
        }
        for _ in 0..400 {
            while tree.needs_flush() {
                tree.flush_step().unwrap();
            }
            let bytes = head.batch(1 + rng.below(100), &random_batch(&rng, head.0.ts.0));
            apply(&tree, &bytes);
            model.apply(&bytes);
            match rng.below(40) {
                0..6 => tree.flush_all().unwrap(),
                6 => drop(tree.compact_all().unwrap()),
                7 => views.push(tree.view()),
                _ => {}
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    while tree.merging().0 {
        tree.compact(false, 1 << 20).unwrap();
    }
    for lsn in tree.history_floor().0.max(1)..=tree.applied().lsn.0 {
        check_view(&tree.view_at(Lsn(lsn)).unwrap(), &model, &rng, &what);
    }
    views.iter().for_each(|v| check_view(v, &model, &rng, &what));
    drop(views);
    check_files(&tree, dir.path(), &what);
}

#[test]
fn threads_that_merge_parts_at_once_lose_nothing() {
    (0..8).for_each(run);
}
