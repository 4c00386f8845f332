//! The window behind the present one, made by another thread while the present one fills.
//!
//! Making a window of 256 KiB takes 100 µs and more, for the system gives each of its pages room; a writer of values of
//! 1 KiB needs one every 256 puts. Owns: the window made ahead, and whom to rouse for it. Never: a write; and after a cut
//! none that was made before it, for the file may be shorter.

use std::io;
use std::sync::{Arc, Mutex, OnceLock};

use super::lock;
use super::segment::Segment;
use crate::exec::Wake;
use crate::fs::Window;

/// A window on a stretch of a segment.
#[derive(Debug)]
pub(super) struct Open {
    segment: Arc<Segment>,
    from: u64,
    to: u64,
    window: Box<dyn Window>,
}

impl Open {
    /// `None` where the file system has no windows.
    pub(super) fn new(segment: &Arc<Segment>, from: u64, to: u64) -> io::Result<Option<Self>> {
        let len = usize::try_from(to.saturating_sub(from)).map_err(|_| io::ErrorKind::InvalidInput)?;
        let window = segment.file.window(from, len)?;
        Ok(window.map(|window| Self { segment: Arc::clone(segment), from, to, window }))
    }

    /// After a cut offsets begin lower again: both ends count.
    pub(super) fn holds(&self, segment: &Arc<Segment>, offset: u64, end: u64) -> bool {
        self.from <= offset && end <= self.to && Arc::ptr_eq(&self.segment, segment)
    }

    /// The end of the stretch in the file.
    pub(super) fn to(&self) -> u64 {
        self.to
    }

    pub(super) fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.window.write_at(bytes, offset)
    }
}

#[derive(Debug, Default)]
pub(super) struct Ahead {
    state: Mutex<State>,
    /// Rouses who calls [`Ahead::make`]. Without one nothing is made ahead.
    maker: OnceLock<Wake>,
}

#[derive(Debug, Default)]
struct State {
    wanted: Option<(Arc<Segment>, u64, u64)>,
    made: Option<Open>,
    /// To be unmapped by the one who makes the next: that too takes its time.
    used: Option<Open>,
    #[cfg(test)]
    taken: u32,
}

impl Ahead {
    /// From now on `wake` rouses who calls [`Ahead::make`]. The first call counts.
    pub(super) fn rouse(&self, wake: &Wake) {
        let _ = self.maker.set(wake.clone());
    }

    /// Asks for a window on `from..to` of `segment` in the place of any other, and takes over the one that is `used` up.
    pub(super) fn want(&self, segment: &Arc<Segment>, from: u64, to: u64, used: Option<Open>) {
        let Some(wake) = self.maker.get() else { return };
        let before = {
            let mut state = lock(&self.state);
            state.wanted = Some((Arc::clone(segment), from, to));
            (state.made.take(), std::mem::replace(&mut state.used, used))
        };
        drop(before);
        wake.wake();
    }

    /// The window that was made, if it holds `offset..end` of `segment`. Waits for one that is being made: another
    /// would not be there sooner.
    pub(super) fn take(&self, segment: &Arc<Segment>, offset: u64, end: u64) -> Option<Open> {
        let mut state = lock(&self.state);
        let made = state.made.take_if(|made| made.holds(segment, offset, end));
        if made.is_none() {
            // It comes too late: whoever asks makes one now.
            state.wanted = None;
        }
        #[cfg(test)]
        {
            state.taken += u32::from(made.is_some());
        }
        made
    }

    /// Makes what is wanted; false if nothing is. What fails is left to the writer, who makes a window itself then and
    /// hears what is wrong.
    pub(super) fn make(&self) -> bool {
        let mut state = lock(&self.state);
        let Some((segment, from, to)) = state.wanted.take() else { return false };
        // Under the lock: a cut waits, and finds it.
        state.made = Open::new(&segment, from, to).unwrap_or_default();
        let used = state.used.take();
        drop(state);
        drop(used);
        true
    }

    /// Forgets all windows.
    pub(super) fn clear(&self) {
        let mut state = lock(&self.state);
        let gone = (state.wanted.take(), state.made.take(), state.used.take());
        drop(state);
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Env;
    use crate::limits::Options;
    use crate::log::{Log, Progress};
    use crate::lsn::{CommitTs, Epoch, Lsn, Position};
    use crate::record::{Kind, Record};
    use crate::rng::{Rng, SeededRng};

    fn put(log: &Log, body: &[u8]) -> Lsn {
        log.append(Kind::Batch, Epoch(1), CommitTs(0), 0, 0, body).unwrap().lsn
    }

    fn bodies(log: &Log) -> Vec<Vec<u8>> {
        let (mut reader, mut out) = (log.reader(log.oldest()).unwrap(), Vec::new());
        while let Some(chunk) = reader.next(Lsn::MAX, 100_000).unwrap() {
            let mut rest = &chunk.bytes[..];
            while !rest.is_empty() {
                let record = Record::decode(rest).unwrap();
                out.push(record.body.to_vec());
                rest = &rest[record.bytes.len()..];
            }
        }
        out
    }

    /// Windows made ahead are used, and with groups of every kind, large records, cuts and new segments between them the
    /// file has what was appended.
    #[test]
    fn what_is_written_through_windows_made_ahead_is_in_the_file() {
        for seed in 1..=4 {
            println!("seed {seed}");
            let dir = tempfile::tempdir().unwrap();
            // Segments with several windows, and some that one window covers. Nothing is read from memory.
            let segment_bytes = if seed % 2 == 0 { 200 << 10 } else { 1 << 20 };
            let options = Options { segment_bytes, tail_memory_bytes: 0, ..Options::tiny() };
            let open = || Log::open(&Env::real(), dir.path(), &options, Lsn::ZERO, Position::default()).unwrap().0;
            let log = open();
            log.rouse_preparer(&Wake::new());
            let (rng, mut all, mut directs) = (SeededRng::new(seed), Vec::new(), 0);
            for n in 0..4000_u64 {
                let len = if rng.below(100) == 0 { 20_000 } else { rng.below(3000) };
                let body: Vec<u8> = (0..len).map(|at| (n ^ at) as u8).collect();
                let lsn = put(&log, &body);
                all.push(body);
                let nothing = || {
                    let state = lock(&log.shared.ahead.state);
                    state.wanted.is_none() && state.made.is_none()
                };
                match rng.below(200) {
                    0 => {
                        // So many in a row go past the page cache.
                        log.sync_to(lsn).unwrap();
                        for _ in 0..8 {
                            all.push(vec![n as u8; 100]);
                            log.sync_to(put(&log, &all[all.len() - 1])).unwrap();
                        }
                        let direct = lock(&log.shared.sink).is_direct();
                        assert!(!direct || nothing(), "seed {seed}: a window is ahead of direct writes");
                        directs += u32::from(direct);
                    }
                    1 => {
                        log.sync_to(lsn).unwrap();
                        let keep = Lsn(lsn.0 - rng.below(all.len().min(20) as u64));
                        log.truncate_above(keep, Lsn::ZERO).unwrap();
                        all.truncate(keep.0 as usize);
                        assert!(nothing(), "seed {seed}: a window is left of what was cut");
                    }
                    _ => log.write_to(lsn).unwrap(),
                }
                if rng.below(3) == 0 {
                    while log.prepare_step().unwrap() == Progress::Worked {}
                }
            }
            println!("{directs} times direct");
            let used = lock(&log.shared.ahead.state).taken;
            assert!(
                used > 8 || segment_bytes < 1 << 20 || cfg!(not(unix)),
                "seed {seed}: {used} windows made ahead were used"
            );
            assert!(bodies(&log) == all, "seed {seed}");
            log.close().unwrap();
            drop(log);
            assert!(bodies(&open()) == all, "seed {seed}: opened again");
        }
    }
}
