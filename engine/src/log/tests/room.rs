//! The room that the segment in the making claims is given back however its making ends.

use super::*;
use crate::clock::SimClock;
use crate::fs::sim::{FaultKind, OpClass, SimFs};

const DIR: &str = "/data";

struct World {
    fs: Arc<SimFs>,
    space: Arc<Space>,
    log: Log,
    kept_back: u64,
}

fn world(segment_bytes: u64) -> World {
    let fs = SimFs::new(1);
    fs.prepare_dir(Path::new(DIR)).unwrap();
    fs.set_capacity(64 << 20);
    let (env, _) = Env::sim(fs.clone(), SimClock::new(CommitTs(1)), 1);
    let options = Options { segment_bytes, ..Options::tiny() };
    let (log, _) = Log::open(&env, Path::new(DIR), &options, Lsn::ZERO, Position::default()).unwrap();
    let space = Arc::new(Space::new(&env.fs, Path::new(DIR), &options));
    log.set_space(Arc::clone(&space));
    World { fs, space, log, kept_back: segment_bytes + options.disk_reserve_bytes }
}

impl World {
    /// Whether a merge may have all that is free and not kept back.
    fn nothing_is_claimed(&self) -> bool {
        let free = crate::fs::Fs::free_bytes(&*self.fs, Path::new(DIR)).unwrap();
        self.space.for_merge(free - self.kept_back).is_ok()
    }
}

#[test]
fn a_segment_whose_file_cannot_be_made_claims_no_room() {
    for kind in [FaultKind::Eio, FaultKind::NoSpace] {
        let w = world(16 << 10);
        w.fs.fail_nth(OpClass::Name, 1, kind);
        assert!(w.log.prepare_step().is_err());
        assert!(w.nothing_is_claimed(), "{kind:?}");
        while w.log.prepare_step().unwrap() == Progress::Worked {}
        assert!(w.nothing_is_claimed());
    }
}

#[test]
fn a_segment_in_the_making_that_a_cut_drops_claims_no_room() {
    let w = world(3 << 20);
    put(&w.log, b"a").unwrap();
    put(&w.log, b"b").unwrap();
    // A megabyte of three.
    w.log.prepare_step().unwrap();
    assert!(!w.nothing_is_claimed(), "this tests nothing");
    assert!(w.log.truncate_above(Lsn(1), Lsn(0)).unwrap().is_some());
    assert!(w.nothing_is_claimed());
}
