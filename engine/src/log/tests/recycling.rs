//! Segments used again: what an older use left in a file is never taken for the log, and a crash at any call of it
//! loses nothing.

use std::collections::BTreeSet;

use super::*;
use crate::clock::SimClock;
use crate::env::SimFatal;
use crate::fault::{Bug, plant};
use crate::fs::sim::{FaultKind, SimFs};

const DIR: &str = "/data";

/// A log whose records a tree takes in now and then.
struct World {
    fs: Arc<SimFs>,
    env: Env,
    fatal: SimFatal,
    options: Options,
    /// Bodies of all records.
    all: Vec<Vec<u8>>,
    durable: Lsn,
    base: Position,
}

impl World {
    fn new(seed: u64, segment_bytes: u64) -> Self {
        let fs = SimFs::new(seed);
        // A write of whole blocks would cover the old frames that these tests are about.
        fs.set_direct(false);
        fs.prepare_dir(Path::new(DIR)).unwrap();
        let (env, fatal) = Env::sim(fs.clone(), SimClock::new(CommitTs(1)), seed);
        let options = Options { segment_bytes, ..Options::tiny() };
        Self { fs, env, fatal, options, all: Vec::new(), durable: Lsn::ZERO, base: Position::default() }
    }

    fn open(&self) -> Result<(Log, Recovered)> {
        Log::open(&self.env, Path::new(DIR), &self.options, self.durable, self.base)
    }

    /// Appends `count` records of `len` bytes and syncs after each fourth.
    fn write(&mut self, log: &Log, count: usize, len: usize) -> Result<()> {
        for _ in 0..count {
            let n = self.all.len() as u64 + 1;
            self.all.push(vec![n as u8; len]);
            let written = put(log, &self.all[n as usize - 1])
                .and_then(|p| if n.is_multiple_of(4) { log.sync_to(p.lsn) } else { Ok(()) });
            self.durable = log.durable().get();
            if let Err(e) = written {
                self.all.truncate(log.appended().get().0 as usize);
                return Err(e);
            }
        }
        Ok(())
    }

    /// The tree takes in all that is durable, and its log is let go.
    fn flush(&mut self, log: &Log) -> Result<()> {
        self.base = log.position_at(log.durable().get())?.unwrap_or(self.base);
        log.release(self.base.lsn)?;
        while log.prepare_step()? == Progress::Worked {}
        Ok(())
    }

    /// What is found after a crash or damage: all that was durable, and nothing that was not written.
    fn check(&self, log: &Log, what: &str) {
        let (from, to) = (log.start().lsn.0 as usize, log.last().lsn.0 as usize);
        assert!(from as u64 <= self.base.lsn.0 && to as u64 >= self.durable.0, "{what}: {from} to {to}");
        assert!(bodies(log) == self.all[from..to], "{what}: other records");
    }

    fn names(&self, suffix: &str) -> BTreeSet<String> {
        let names = self.fs.files().into_iter().map(|p| p.display().to_string());
        names.filter(|n| n.ends_with(suffix)).collect()
    }
}

fn newest(log: &Log) -> Arc<Segment> {
    Arc::clone(lock(&log.shared.segments).back().unwrap())
}

/// Where the next frame goes.
fn end_of(log: &Log) -> u64 {
    lock(&log.shared.head).offset
}

/// A log in its first life with recycled segments only; the newest is about half full, and whole old frames follow.
fn recycled(segment_bytes: u64) -> (World, Log) {
    let mut w = World::new(1, segment_bytes);
    let (log, _) = w.open().unwrap();
    for _ in 0..10 {
        let at = newest(&log).seq;
        while newest(&log).seq < at + 2 {
            w.write(&log, 4, 64).unwrap();
        }
        w.flush(&log).unwrap();
    }
    let at = newest(&log).seq;
    while newest(&log).seq == at || end_of(&log) < segment_bytes * 3 / 4 {
        w.write(&log, 4, 64).unwrap();
    }
    let before = w.fs.read_all(&newest(&log).path).unwrap();
    let end = end_of(&log) as usize;
    assert!(find_frames(&before[end..]) > 3, "no old frames behind the end");
    (w, log)
}

/// How many whole frames of any salt there are.
fn find_frames(bytes: &[u8]) -> usize {
    (0..bytes.len()).step_by(8).filter(|at| frame::decode(&bytes[*at..], None).is_ok()).count()
}

#[test]
fn in_steady_state_no_file_is_made_filled_or_deleted() {
    let mut w = World::new(3, 16 << 10);
    let (log, _) = w.open().unwrap();
    let (mut warm, mut room) = (None, 0);
    for round in 0..200 {
        w.write(&log, 40, 300).unwrap();
        w.flush(&log).unwrap();
        if round == 10 {
            warm = Some(log.stats());
            room = w.fs.allocated();
        }
        assert!(w.names(".spare").len() <= 2 && log.disk_usage().1 <= 2, "{:?}", w.fs.files());
    }
    let (warm, now) = (warm.unwrap(), log.stats());
    assert_eq!((now.segments_made, now.segments_removed), (warm.segments_made, warm.segments_removed));
    assert!(now.segments_recycled > warm.segments_recycled + 100, "{now:?}");
    assert_eq!(w.fs.allocated(), room);
    // And over a restart.
    log.close().unwrap();
    drop(log);
    let (log, r) = w.open().unwrap();
    assert_eq!(r.torn, None);
    w.check(&log, "after a restart");
    for _ in 0..20 {
        w.write(&log, 40, 300).unwrap();
        w.flush(&log).unwrap();
    }
    assert!(log.stats().segments_made <= 4 && log.stats().segments_removed == 0, "{:?}", log.stats());
}

#[test]
fn a_burst_of_released_segments_leaves_no_more_than_a_few_and_a_full_disk_gets_them_back() {
    let mut w = World::new(4, 16 << 10);
    let (log, _) = w.open().unwrap();
    w.write(&log, 400, 300).unwrap();
    assert!(log.disk_usage().1 > 6);
    w.flush(&log).unwrap();
    w.write(&log, 40, 300).unwrap();
    w.flush(&log).unwrap();
    let spares = w.names(".spare").len();
    assert!((1..=2).contains(&spares), "{:?}", w.fs.files());
    let before = w.fs.allocated();
    assert_eq!(log.remove_spares().unwrap(), spares);
    assert_eq!(before - w.fs.allocated(), spares as u64 * (16 << 10));
    assert_eq!((log.remove_spares().unwrap(), w.names(".spare").len()), (0, 0));
    w.write(&log, 100, 300).unwrap();
    drop(log);
    w.check(&w.open().unwrap().0, "without the spares");
}

#[test]
fn values_that_look_like_frames_do_not_keep_a_log_from_opening() {
    let mut w = World::new(9, 16 << 10);
    let (log, _) = w.open().unwrap();
    let mut forged = vec![0; frame::HEADER_BYTES];
    let (epoch, lsn, ts) = (Epoch(1), Lsn(1 << 60), CommitTs(9));
    let header = crate::record::Header { kind: Kind::EpochStart, epoch, lsn, ts, session: 0, sequence: 0 };
    crate::record::encode(&mut forged, log.last().chain, &header, |_| ());
    frame::seal(&mut forged, 0, 77, Lsn::ZERO);
    let body = forged.repeat((11 << 10) / forged.len());
    for _ in 0..6 {
        put(&log, &body).unwrap();
        w.all.push(body.clone());
        log.step().unwrap();
        w.durable = log.durable().get();
    }
    w.flush(&log).unwrap();
    // The segment made ahead is one of those, behind its first blocks.
    let ahead = lock(&log.shared.prepare).blank.as_ref().map(|b| b.name().to_owned()).unwrap();
    assert!(find_frames(&w.fs.read_all(&ahead).unwrap()) > 10, "this tests nothing");
    log.close().unwrap();
    drop(log);
    let known = crate::inspect::Known { durable: w.durable, base: Some(w.base) };
    let check = crate::inspect::check_log(&*w.fs, Path::new(DIR), known).unwrap();
    assert_eq!(check.findings, [], "what recovery takes is called damage");
    w.check(&w.open().unwrap().0, "after values like frames");
}

#[test]
fn a_damaged_header_is_noticed_however_many_records_in_front_are_in_the_tables() {
    let mut w = World::new(10, 1 << 20);
    let (log, _) = w.open().unwrap();
    w.write(&log, 3_000, 20).unwrap();
    w.flush(&log).unwrap();
    w.write(&log, 40, 20).unwrap();
    assert_eq!(newest(&log).seq, 1, "all in the first segment");
    let path = newest(&log).path.clone();
    drop(log);
    // What was said to be durable is not known any more: only the records themselves tell.
    w.durable = w.base.lsn;
    w.fs.flip_bit(&path, 40, 3).unwrap();
    let known = crate::inspect::Known { durable: w.durable, base: Some(w.base) };
    let check = crate::inspect::check_log(&*w.fs, Path::new(DIR), known).unwrap();
    assert_eq!(check.findings.len(), 1, "a check does not see what recovery refuses");
    assert!(matches!(w.open(), Err(Error::Corruption { .. })), "durable records given up in silence");
}

/// So much that looks like frames of any salt that nobody can say whether a record is lost: the check says what the
/// refusal to open says.
#[test]
fn a_check_calls_unclear_what_recovery_refuses_as_unclear() {
    let w = World::new(11, 1 << 20);
    let (log, _) = w.open().unwrap();
    let path = newest(&log).path.clone();
    drop(log);
    let mut frame = vec![0; frame::HEADER_BYTES];
    frame.extend_from_slice(&[7; 40]);
    frame::seal(&mut frame, 0, 9, Lsn(0));
    damage::overwrite(&w.fs, path.to_str().unwrap(), 0, &[0xff; 88]);
    for (count, findings) in [(1000, 0), (1100, 1)] {
        damage::overwrite(&w.fs, path.to_str().unwrap(), segment::FRAMES_AT, &frame.repeat(count));
        let check = crate::inspect::check_log(&*w.fs, Path::new(DIR), crate::inspect::Known::default()).unwrap();
        assert_eq!(check.findings.len(), findings, "{count}: {:?}", check.findings);
        assert_eq!(w.open().is_err(), findings > 0);
        // A log that opened made its first segment anew.
        damage::overwrite(&w.fs, path.to_str().unwrap(), 0, &[0xff; 88]);
    }
}

#[test]
fn spares_of_an_earlier_life_are_deleted_whatever_their_size_and_number() {
    let (mut w, log) = recycled(16 << 10);
    w.flush(&log).unwrap();
    log.close().unwrap();
    drop(log);
    w.options.segment_bytes = 24 << 10;
    for n in 0x100..0x105 {
        let path = segment::spare_path(Path::new("/data/log"), n);
        let file = crate::fs::Fs::open(&*w.fs, &path, crate::fs::OpenMode::CreateNew).unwrap();
        segment::write_zeros(&*file, 0, 24 << 10).unwrap();
    }
    let (log, _) = w.open().unwrap();
    assert!(w.names(".spare").is_empty(), "{:?}", w.fs.files());
    w.write(&log, 300, 300).unwrap();
    assert!(newest(&log).bytes == 24 << 10, "{:?}", w.fs.files());
    w.flush(&log).unwrap();
    drop(log);
    w.check(&w.open().unwrap().0, "with segments of two sizes");
}

/// Everything that recycling does, with the k-th call failing, for every k.
fn every_call(kind: FaultKind) -> bool {
    for k in 1.. {
        let what = format!("{kind:?} at call {k}");
        let mut w = World::new(k, 8 << 10);
        let (log, _) = w.open().unwrap();
        w.write(&log, 60, 200).unwrap();
        w.fs.fail_at_io(w.fs.io_count() + k, kind);
        let ended = (0..3).try_for_each(|_| {
            w.flush(&log)?;
            w.write(&log, 40, 200)
        });
        let full = matches!(&ended, Err(Error::DiskFull { .. }));
        if full {
            // Nothing of the call was kept, and the log goes on.
            w.flush(&log).unwrap_or_else(|e| panic!("{what}: {e}"));
            w.write(&log, 60, 200).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(w.fatal.take().is_empty(), "{what}");
        }
        w.durable = log.durable().get();
        drop(log);
        w.fs.clear_faults();
        w.fs.crash();
        let (log, _) = w.open().unwrap_or_else(|e| panic!("{what}: {e}"));
        w.check(&log, &what);
        w.all.truncate(log.last().lsn.0 as usize);
        // And it goes on, through the segments that this life finds.
        w.write(&log, 60, 200).unwrap();
        w.flush(&log).unwrap();
        w.write(&log, 60, 200).unwrap();
        drop(log);
        w.fs.crash();
        w.check(&w.open().unwrap_or_else(|e| panic!("{what}, then power loss: {e}")).0, &what);
        assert!(w.names(".spare").len() <= 2, "{what}: {:?}", w.fs.files());
        if ended.is_ok() {
            return true;
        }
    }
    false
}

#[test]
fn a_fault_at_every_call_of_recycling_loses_nothing() {
    for kind in [FaultKind::CrashBefore, FaultKind::CrashAfter, FaultKind::Eio, FaultKind::NoSpace] {
        assert!(every_call(kind));
    }
}

#[test]
fn recycling_with_the_old_header_in_place_is_noticed() {
    let broken = std::panic::catch_unwind(|| {
        let _planted = plant(Bug::KeepOldHeader);
        every_call(FaultKind::CrashAfter)
    });
    assert!(broken.is_err());
}

/// The newest segment begins with a frame that an older use of the file left: whole, of the right length, and its
/// record the very one that would come next. Only its salt is another segment's.
#[test]
fn a_record_of_an_older_use_is_not_taken_for_the_next_one() {
    let outcome = |believe: bool| {
        let (w, log) = recycled(12 << 10);
        let (segment, end) = (newest(&log), end_of(&log));
        log.sync_to(log.last().lsn).unwrap();
        let last = log.last();
        drop(log);
        let mut old = vec![0; frame::HEADER_BYTES];
        let (epoch, lsn, ts) = (last.epoch, last.lsn.next(), CommitTs(last.ts.0 + 1));
        let header = crate::record::Header { kind: Kind::Batch, epoch, lsn, ts, session: 0, sequence: 0 };
        crate::record::encode(&mut old, last.chain, &header, |b| b.extend_from_slice(&[9; 60]));
        frame::seal(&mut old, 0, segment.salt - 2, last.lsn);
        damage::overwrite(&w.fs, segment.path.to_str().unwrap(), end, &old);
        let _planted = believe.then(|| plant(Bug::IgnoreSalt));
        w.open().unwrap().1.end == last
    };
    assert!(outcome(false), "an old record was believed");
    assert!(!outcome(true), "the rule stands elsewhere too");
}

#[test]
fn any_flipped_bit_of_a_recycled_segment_is_refused_cut_and_told_or_without_effect() {
    let (mut refused, mut cut, mut none) = (0, 0, 0);
    let (w, log) = recycled(12 << 10);
    log.sync_to(log.last().lsn).unwrap();
    let (path, end, last) = (newest(&log).path.clone(), end_of(&log), log.last().lsn);
    drop(log);
    // Durable before the last sync, as the frames of the last group say.
    let proven = Lsn(last.0 / 4 * 4 - 4);
    let before = w.fs.read_all(&path).unwrap();
    for offset in 0..before.len() as u64 {
        damage::overwrite(&w.fs, path.to_str().unwrap(), 0, &before);
        w.fs.flip_bit(&path, offset, (offset % 8) as u8).unwrap();
        match Log::open(&w.env, Path::new(DIR), &w.options, Lsn::ZERO, w.base) {
            Err(Error::Corruption { path: named, .. }) => {
                assert_eq!(named, path, "byte {offset}");
                refused += 1;
            }
            Err(e) => panic!("byte {offset}: {e}"),
            Ok((log, r)) => {
                let (from, to) = (log.start().lsn.0 as usize, log.last().lsn);
                assert!(to >= proven, "byte {offset}: LSN {to} is the last, {proven} was durable");
                assert!(bodies(&log) == w.all[from..to.0 as usize], "byte {offset}");
                assert!(to == last || r.torn.is_some(), "byte {offset}: cut and not told");
                // The header's block has room to spare; behind the end are zeros, then old bytes.
                assert!(to < last || offset < 4096 || offset >= end, "byte {offset} is not covered");
                cut += usize::from(to < last);
                none += usize::from(r.torn.is_none());
            }
        }
    }
    assert!(refused > 1000 && cut > 100 && none > 1000, "{refused} {cut} {none}");
}

/// Two segments in use again, and the end of the first is what stood there before.
#[test]
fn a_lost_end_of_a_recycled_segment_is_no_hole() {
    let (mut w, log) = recycled(12 << 10);
    let first = newest(&log);
    let from = end_of(&log);
    let old = w.fs.read_all(&first.path).unwrap();
    while newest(&log).seq == first.seq {
        w.write(&log, 1, 60).unwrap();
    }
    log.step().unwrap();
    w.durable = Lsn::ZERO;
    drop(log);
    damage::overwrite(&w.fs, first.path.to_str().unwrap(), from, &old[from as usize..]);
    match w.open() {
        Err(Error::Corruption { path, offset, lsn, .. }) => {
            assert_eq!((path, offset <= from), (first.path.clone(), true));
            assert!(lsn.is_some());
        }
        other => panic!("{other:?}"),
    }
}

/// The segments above the cut are given their numbers and salts anew, and have old frames in them.
#[test]
fn a_crash_at_every_call_of_a_cut_in_recycled_segments_leaves_the_old_log_or_the_cut_one() {
    let mut outcomes = BTreeSet::new();
    for kind in [FaultKind::CrashBefore, FaultKind::CrashAfter] {
        for call in 1.. {
            let what = format!("{kind:?} at call {call}");
            let (mut w, log) = recycled(12 << 10);
            let (at, keep) = (newest(&log).seq, w.all.len() - 3);
            while newest(&log).seq < at + 2 {
                w.write(&log, 4, 64).unwrap();
            }
            log.close().unwrap();
            let all = w.all.len();
            w.fs.fail_at_io(w.fs.io_count() + call, kind);
            let cut = log.truncate_above(Lsn(keep as u64), w.base.lsn);
            drop(log);
            if cut.is_ok() {
                break;
            }
            w.fs.crash();
            w.durable = Lsn(keep as u64);
            let (log, _) = w.open().unwrap_or_else(|e| panic!("{what}: {e}"));
            let now = log.last().lsn.0 as usize;
            assert!(now == keep || now == all, "{what}: {now} records");
            w.check(&log, &what);
            outcomes.insert(now == keep);
            w.all.truncate(now);
            // Other records take the place of those cut, and go further.
            w.write(&log, 200, 72).unwrap();
            log.close().unwrap();
            drop(log);
            w.fs.crash();
            w.check(&w.open().unwrap_or_else(|e| panic!("{what}, then more: {e}")).0, &what);
        }
    }
    assert_eq!(outcomes.len(), 2, "only one outcome");
}

#[test]
fn a_recycled_segment_whose_header_is_gone_is_dropped_only_if_nothing_new_is_in_it() {
    let (mut w, log) = recycled(12 << 10);
    let at = newest(&log).seq;
    while newest(&log).seq == at {
        w.write(&log, 1, 60).unwrap();
    }
    log.close().unwrap();
    w.flush(&log).unwrap();
    // Not in the tables.
    w.write(&log, 4, 64).unwrap();
    log.close().unwrap();
    let (newest, last) = (newest(&log), log.last().lsn);
    drop(log);
    // The blank one behind it is full of old frames.
    let blank = segment::path(Path::new("/data/log"), newest.seq + 1);
    assert!(find_frames(&w.fs.read_all(&blank).unwrap()) > 3);
    assert_eq!(w.open().unwrap().1.end.lsn, last);
    let whole = w.fs.read_all(&newest.path).unwrap();
    damage::overwrite(&w.fs, newest.path.to_str().unwrap(), 0, &[0; 88]);
    match w.open() {
        Err(Error::Corruption { path, .. }) => assert_eq!(path, newest.path),
        other => panic!("{other:?}"),
    }
    damage::overwrite(&w.fs, newest.path.to_str().unwrap(), 0, &whole);
    assert_eq!(w.open().unwrap().1.end.lsn, last);
}

#[test]
fn the_first_record_of_a_recycled_segment_may_be_torn() {
    let (mut w, log) = recycled(12 << 10);
    let at = newest(&log).seq;
    log.sync_to(log.last().lsn).unwrap();
    let old = {
        while log.prepare_step().unwrap() == Progress::Worked {}
        w.fs.read_all(&segment::path(Path::new("/data/log"), at + 1)).unwrap()
    };
    while newest(&log).seq == at {
        log.sync_to(log.last().lsn).unwrap();
        w.write(&log, 1, 600).unwrap();
    }
    log.step().unwrap();
    let (segment, last) = (newest(&log), log.last().lsn);
    drop(log);
    let whole = w.fs.read_all(&segment.path).unwrap();
    let frame = frame::decode(&whole[4096..], Some(segment.salt)).unwrap();
    w.durable = last.prev();
    // Of its sectors any subset got to the disk.
    for landed in 0..3_u8 {
        let mut torn = old.clone();
        torn[..4096].copy_from_slice(&whole[..4096]);
        assert_eq!(torn[4096..8192], [0; 4096]);
        (0..2).filter(|n| landed & 1 << n != 0).for_each(|n| {
            let sector = 4096 + n * 512..4096 + (n + 1) * 512;
            torn[sector.clone()].copy_from_slice(&whole[sector]);
        });
        assert!(frame.len > 512 && frame.len < 1024);
        damage::overwrite(&w.fs, segment.path.to_str().unwrap(), 0, &torn);
        let (log, r) = w.open().unwrap();
        assert_eq!((r.end.lsn, r.torn.is_some()), (last.prev(), landed & 1 != 0), "{landed}");
        put(&log, b"on").unwrap();
        log.close().unwrap();
        drop(log);
        assert_eq!(w.open().unwrap().1.end.lsn, last, "{landed}");
    }
}

#[test]
fn a_reader_whose_segment_is_used_again_learns_that_the_log_is_gone() {
    let mut w = World::new(9, 8 << 10);
    let (log, _) = w.open().unwrap();
    w.write(&log, 1000, 60).unwrap();
    // Each stands in the middle of a file, one with bytes read ahead and one with a place only.
    let mut ahead = log.reader(Lsn(1)).unwrap();
    assert_eq!(ahead.next(Lsn::MAX, 500).unwrap().unwrap().first, Lsn(1));
    let mut place = log.reader(ahead.next_lsn()).unwrap();
    let mut slow = log.reader(Lsn(1)).unwrap();
    let first = lock(&log.shared.segments).front().unwrap().path.clone();
    for _ in 0..4 {
        w.flush(&log).unwrap();
        w.write(&log, 60, 60).unwrap();
    }
    assert!(!w.names(".log").contains(&first.display().to_string()));
    for reader in [&mut ahead, &mut place, &mut slow] {
        match reader.next(Lsn::MAX, usize::MAX) {
            Err(Error::LogGone { .. }) => {}
            other => panic!("{:?}", other.map(|c| c.map(|c| (c.first, c.last)))),
        }
    }
    assert!(matches!(log.position_at(Lsn(3)), Err(Error::LogGone { .. })));
}

/// The same at the worst moment: the reader has found its segment, and reads it when it is used again.
#[test]
fn a_segment_used_again_within_a_read_is_not_taken_for_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (mut env, _) = real();
    let fs = Arc::new(reading::CountingFs::default());
    env.fs = fs.clone();
    let (log, _) = open(&env, dir.path()).unwrap();
    let log = Arc::new(log);
    fill(&log, 1000);
    log.sync_to(Lsn(1000)).unwrap();
    // Now memory lets go of what is written.
    fill(&log, 10);
    let mut reader = log.reader(Lsn(20)).unwrap();
    let writer = Arc::clone(&log);
    fs.before_next_read(move || {
        writer.release(Lsn(1000)).unwrap();
        while writer.stats().segments_recycled < 2 || lock(&writer.shared.segments).len() < 4 {
            fill(&writer, 10);
            writer.step().unwrap();
        }
    });
    match reader.next(Lsn::MAX, 1000) {
        Err(Error::LogGone { oldest, .. }) => assert_eq!(oldest, log.oldest()),
        other => panic!("{:?}", other.map(|c| c.map(|c| (c.first, c.last)))),
    }
}

/// A slow reader and one that keeps up, while segments are released and used again under them: whatever they read is
/// right, in order, and the only other end is to be told that the log is gone.
#[test]
fn readers_cross_files_and_memory_while_segments_are_recycled_under_them() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { retained_log_bytes: 1 << 30, ..Options::tiny() };
    let (log, _) = Log::open(&real().0, dir.path(), &options, Lsn::ZERO, Position::default()).unwrap();
    const ALL: u64 = 12_000;
    let seen = Watermark::default();
    let done = std::sync::atomic::AtomicBool::new(false);
    let (slotted, gone) = (log.slot("keeps up", Lsn::ZERO), AtomicUsize::new(0));
    std::thread::scope(|s| {
        s.spawn(|| {
            let mut reader = log.reader(Lsn(1)).unwrap();
            let mut next = 1;
            while next <= ALL {
                let upto = log.appended().get();
                match reader.next(upto, 900).unwrap() {
                    Some(c) => {
                        for (lsn, b) in records(&c) {
                            assert_eq!((lsn, b), (Lsn(next), body(next)));
                            next += 1;
                        }
                        slotted.advance(c.last);
                        seen.raise(c.last);
                    }
                    None => drop(log.appended().wait(upto.next(), std::time::Duration::from_secs(60))),
                }
            }
        });
        for _ in 0..2 {
            s.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    let Ok(mut reader) = log.reader(log.oldest()) else { continue };
                    let mut next = reader.next_lsn().0;
                    loop {
                        match reader.next(Lsn::MAX, 300) {
                            Ok(Some(c)) => {
                                for (lsn, b) in records(&c) {
                                    assert_eq!((lsn, b), (Lsn(next), body(next)));
                                    next += 1;
                                }
                            }
                            Ok(None) => break,
                            Err(Error::LogGone { .. }) => {
                                gone.fetch_add(1, Ordering::Relaxed);
                                break;
                            }
                            Err(e) => panic!("{e}"),
                        }
                    }
                }
            });
        }
        for n in 1..=ALL {
            put(&log, &body(n)).unwrap();
            if n % 10 == 0 {
                log.write_to(Lsn(n)).unwrap();
                log.release(log.appended().get()).unwrap();
            }
            if n % 50 == 0 {
                log.sync_to(Lsn(n)).unwrap();
                while log.prepare_step().unwrap() == Progress::Worked {}
                // Or the slot would hold all of it.
                let behind = Lsn(n.saturating_sub(500));
                assert!(seen.wait(behind, std::time::Duration::from_secs(60)).unwrap());
            }
        }
        done.store(true, Ordering::Release);
    });
    assert!(log.stats().segments_recycled > 50, "{:?}", log.stats());
}
