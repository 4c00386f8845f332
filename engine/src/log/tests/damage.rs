//! Bytes on disk that are not what was written: never silent, never a panic.

use super::*;
use crate::clock::SimClock;
use crate::fs::sim::SimFs;
use proptest::prelude::*;

const FIRST: &str = "/data/log/0000000000000001.log";

fn options() -> Options {
    Options { segment_bytes: 8 << 10, ..Options::tiny() }
}

fn world() -> (Arc<SimFs>, Env) {
    let fs = SimFs::new(1);
    fs.prepare_dir(Path::new("/data")).unwrap();
    let (env, _) = Env::sim(fs.clone(), SimClock::new(CommitTs(1)), 1);
    (fs, env)
}

fn open_with(env: &Env, known: u64) -> Result<(Log, Recovered)> {
    Log::open(env, Path::new("/data"), &options(), Lsn(known), Position::default())
}

pub(super) fn overwrite(fs: &SimFs, path: &str, offset: u64, bytes: &[u8]) {
    let f = crate::fs::Fs::open(fs, Path::new(path), crate::fs::OpenMode::Write).unwrap();
    f.write_all_at(bytes, offset).unwrap();
    f.sync_data().unwrap();
}

/// Flips each byte of the first segment in turn. Records up to `proven` are proven durable.
fn flip_everywhere(make: impl Fn(&Log) -> Vec<Vec<u8>>, proven: usize) -> (usize, usize) {
    let (mut refused, mut cut) = (0, 0);
    for offset in 0..(8 << 10) {
        let (fs, env) = world();
        let (log, _) = open_with(&env, 0).unwrap();
        let all = make(&log);
        drop(log);
        fs.flip_bit(Path::new(FIRST), offset, (offset % 8) as u8).unwrap();
        let before = fs.read_all(Path::new(FIRST)).unwrap();
        match open_with(&env, 0) {
            Err(Error::Corruption { path, offset: at, .. }) => {
                assert_eq!(path, Path::new(FIRST), "offset {offset}");
                assert!(at <= offset, "byte {offset} reported at {at}");
                assert_eq!(fs.read_all(Path::new(FIRST)).unwrap(), before, "changed after corruption");
                refused += 1;
            }
            Err(e) => panic!("offset {offset}: {e}"),
            Ok((log, r)) => {
                let now = bodies(&log);
                assert_eq!(now, all[..now.len()], "offset {offset}");
                assert!(now.len() >= proven, "offset {offset}: {} records left without a word", now.len());
                assert!(now.len() == all.len() || r.torn.is_some(), "offset {offset}: cut and not told");
                cut += usize::from(now.len() < all.len());
            }
        }
    }
    (refused, cut)
}

fn synced_one_by_one(log: &Log, count: u64) -> Vec<Vec<u8>> {
    (1..=count)
        .map(|n| {
            put(log, &[n as u8; 50]).unwrap();
            log.sync_to(Lsn(n)).unwrap();
            vec![n as u8; 50]
        })
        .collect()
}

#[test]
fn a_flipped_bit_below_durable_is_refused_and_above_is_cut() {
    // Each record says that the one before was durable; nothing says it of the last.
    let (refused, cut) = flip_everywhere(|log| synced_one_by_one(log, 10), 9);
    assert!(refused > 9 * 100 && (100..200).contains(&cut), "{refused} {cut}");
}

#[test]
fn after_a_close_damage_to_the_last_record_is_refused_too() {
    let make = |log: &Log| {
        let all = synced_one_by_one(log, 5);
        log.close().unwrap();
        all
    };
    let (refused, cut) = flip_everywhere(make, 5);
    assert!(refused > 5 * 100 && cut == 0, "{refused} {cut}");
}

#[test]
fn frames_of_an_older_use_of_the_file_do_not_count() {
    let (fs, env) = world();
    let (log, _) = open_with(&env, 0).unwrap();
    let all = synced_one_by_one(&log, 5);
    let end = lock(&log.shared.head).offset;
    // The record that would follow, whole, with its checksum and chain right, and evidence.
    put(&log, b"stale").unwrap();
    let mut stale = vec![0; frame::HEADER_BYTES];
    stale.extend_from_slice(&log.reader(Lsn(6)).unwrap().next(Lsn::MAX, 1).unwrap().unwrap().bytes);
    let salt = log.shared.segment_for(Lsn(1)).unwrap().salt;
    drop(log);
    frame::seal(&mut stale, 0, salt ^ 1, Lsn(6));
    overwrite(&fs, FIRST, end, &stale);
    let planted = crate::fault::plant(crate::fault::Bug::IgnoreSalt);
    assert_eq!(open_with(&env, 5).unwrap().1.records, 6, "the rule stands elsewhere too");
    drop(planted);
    overwrite(&fs, FIRST, end, &stale);
    let (log, r) = open_with(&env, 5).unwrap();
    assert_eq!((bodies(&log), r.torn.map(|t| t.offset)), (all, Some(end)));
    drop(log);
    assert_eq!(open_with(&env, 5).unwrap().1.torn, None, "told twice");
    // Behind the zeros that end the log it may stay.
    overwrite(&fs, FIRST, end + 24, &stale);
    assert_eq!(open_with(&env, 5).unwrap().1.torn, None);
}

#[test]
fn a_whole_record_of_another_history_does_not_continue_the_log() {
    let (fs, env) = world();
    let (log, _) = open_with(&env, 0).unwrap();
    let all = synced_one_by_one(&log, 5);
    let end = lock(&log.shared.head).offset;
    let last = log.last();
    let salt = log.shared.segment_for(Lsn(1)).unwrap().salt;
    drop(log);
    let mut other = vec![0; frame::HEADER_BYTES];
    let (epoch, lsn, ts) = (last.epoch, Lsn(6), CommitTs(last.ts.0 + 1));
    let header = crate::record::Header { kind: Kind::Batch, epoch, lsn, ts, session: 0, sequence: 0 };
    crate::record::encode(&mut other, crate::lsn::Chain([5; 16]), &header, |b| b.push(1));
    frame::seal(&mut other, 0, salt, Lsn(5));
    overwrite(&fs, FIRST, end, &other);
    let planted = crate::fault::plant(crate::fault::Bug::IgnoreChain);
    assert_eq!(open_with(&env, 5).unwrap().1.records, 6, "the rule stands elsewhere too");
    drop(planted);
    overwrite(&fs, FIRST, end, &other);
    let (log, r) = open_with(&env, 5).unwrap();
    assert_eq!((bodies(&log), r.torn.map(|t| t.lsn)), (all, Some(Lsn(6))));
}

#[test]
fn an_empty_or_half_made_newest_segment_is_dropped() {
    for len in [0, 1, 100, 4096, 5000, 8192] {
        let (fs, env) = world();
        let (log, _) = open_with(&env, 0).unwrap();
        let all = fill(&log, 60);
        log.close().unwrap();
        let newest = log.shared.segments.lock().unwrap().back().unwrap().seq;
        drop(log);
        for seq in [newest + 1, newest + 2] {
            let path = segment::path(Path::new("/data/log"), seq);
            crate::fs::Fs::open(&*fs, &path, crate::fs::OpenMode::CreateNew).unwrap().set_len(len).unwrap();
        }
        let (log, r) = open_with(&env, 60).unwrap();
        assert_eq!((bodies(&log), r.torn), (all, None));
        fill(&log, 60);
        log.close().unwrap();
        assert_eq!(open_with(&env, 120).unwrap().1.records, 120);
    }
}

#[test]
fn a_file_with_the_highest_number_there_is_is_named_and_refused() {
    let (fs, env) = world();
    let (log, _) = open_with(&env, 0).unwrap();
    fill(&log, 60);
    log.close().unwrap();
    drop(log);
    let path = segment::path(Path::new("/data/log"), u64::MAX);
    crate::fs::Fs::open(&*fs, &path, crate::fs::OpenMode::CreateNew).unwrap();
    match open_with(&env, 60) {
        Err(Error::Directory { path: at, what }) => {
            assert!(at == path && what.contains("move it away"), "{at:?}: {what}")
        }
        other => panic!("{:?}", other.map(|(_, r)| r)),
    }
}

#[test]
fn a_newest_segment_without_its_header_but_with_records_is_refused() {
    let (fs, env) = world();
    let (log, _) = open_with(&env, 0).unwrap();
    fill(&log, 200);
    log.step().unwrap();
    let newest = log.shared.segments.lock().unwrap().back().unwrap().path.clone();
    drop(log);
    for wipe in [1, 88] {
        overwrite(&fs, newest.to_str().unwrap(), 0, &vec![0xff; wipe]);
        match open_with(&env, 0) {
            Err(Error::Corruption { path, .. }) => assert_eq!(path, newest),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_hole_at_the_end_of_a_sealed_segment_is_refused() {
    let (fs, env) = world();
    let (log, _) = open_with(&env, 0).unwrap();
    fill(&log, 100);
    log.step().unwrap();
    drop(log);
    overwrite(&fs, FIRST, 7000, &[0; 1192]);
    match open_with(&env, 0) {
        Err(Error::Corruption { path, offset, lsn, .. }) => {
            assert_eq!(path, Path::new(FIRST));
            assert!(offset <= 7000 && lsn.is_some());
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_torn_first_record_of_a_new_segment_is_cut() {
    let (fs, env) = world();
    let (log, _) = open_with(&env, 0).unwrap();
    let all = fill(&log, 60);
    log.close().unwrap();
    // Up to the first record of the next segment.
    let segments = log.disk_usage().1;
    while log.disk_usage().1 == segments {
        put(&log, &[9; 400]).unwrap();
    }
    let last = log.last().lsn;
    log.step().unwrap();
    let newest = log.shared.segments.lock().unwrap().back().unwrap().path.clone();
    drop(log);
    fs.flip_bit(&newest, 4096 + 100, 0).unwrap();
    let (log, r) = open_with(&env, 0).unwrap();
    assert_eq!((r.end.lsn, r.torn.map(|t| (t.offset, t.lsn))), (last.prev(), Some((4096, last))));
    assert_eq!(bodies(&log)[..60], all);
    put(&log, b"on").unwrap();
    log.close().unwrap();
    assert_eq!(open_with(&env, last.0).unwrap().1.end.lsn, last);
}

#[test]
fn a_file_cut_short_is_refused() {
    let (fs, env) = world();
    let (log, _) = open_with(&env, 0).unwrap();
    fill(&log, 5);
    log.step().unwrap();
    drop(log);
    let f = crate::fs::Fs::open(&*fs, Path::new(FIRST), crate::fs::OpenMode::Write).unwrap();
    f.set_len(6000).unwrap();
    assert!(matches!(open_with(&env, 0), Err(Error::Corruption { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn arbitrary_bytes_anywhere_never_panic(
        pieces in proptest::collection::vec((0_u64..9000, proptest::collection::vec(any::<u8>(), 0..200)), 0..6),
        second in any::<bool>(),
    ) {
        let (fs, env) = world();
        let (log, _) = open_with(&env, 0).unwrap();
        let all = fill(&log, 60);
        log.step().unwrap();
        drop(log);
        let path = if second { "/data/log/0000000000000002.log" } else { FIRST };
        pieces.iter().for_each(|(at, b)| overwrite(&fs, path, *at, b));
        if let Ok((log, _)) = open_with(&env, 0) {
            let now = bodies(&log);
            prop_assert_eq!(&now[..], &all[..now.len()]);
        }
    }
}

/// A log of a program that gave each segment a random salt: what a damaged header hides is not judged by the salt that
/// would be next today.
#[test]
fn a_damaged_header_is_noticed_whatever_salt_its_segment_had() {
    let (fs, env) = world();
    let (log, _) = open_with(&env, 0).unwrap();
    fill(&log, 60);
    log.step().unwrap();
    let newest = log.shared.segments.lock().unwrap().back().unwrap().path.clone();
    drop(log);
    let mut bytes = fs.read_all(&newest).unwrap();
    let (mut at, mut count) = (segment::FRAMES_AT as usize, 0);
    while let Ok(f) = frame::decode(&bytes[at..], None) {
        let (durable, len) = (f.durable, f.len);
        let mut again = [&[0; frame::HEADER_BYTES], f.record].concat();
        frame::seal(&mut again, 0, 0x5a5a_5a5a, durable);
        bytes[at..at + len].copy_from_slice(&again);
        (at, count) = (at + len, count + 1);
    }
    assert!(count > 1, "this tests nothing");
    bytes[..88].fill(0);
    overwrite(&fs, newest.to_str().unwrap(), 0, &bytes);
    let check = crate::inspect::check_log(&*fs, Path::new("/data"), crate::inspect::Known::default()).unwrap();
    let opened = open_with(&env, 0);
    assert!(matches!(opened, Err(Error::Corruption { ref path, .. }) if *path == newest), "{opened:?}");
    assert_eq!(check.findings.len(), 1, "{:?}", check.findings);
}
