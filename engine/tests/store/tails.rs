//! Readers of the log with the slots that hold it for them, and the scrub, beside the model: each reads every record once
//! and in order, is told when what it read was cut, and finds the log gone only when its slot lagged too far.
//!
//! Owns: slots, readers and the scrub of a trace. Never: changes of what is in the log.

use mainstay_engine::batch::Batch;
use mainstay_engine::exec::Progress;
use mainstay_engine::log::{Reader, Slot};
use mainstay_engine::record::Kind;
use mainstay_engine::{Error, Lsn, Result};

use crate::world::World;

/// How far a reader may read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Upto {
    Committed,
    Durable,
    /// What is only in memory, too.
    Appended,
}

/// A reader and its slot.
#[derive(Debug)]
pub(crate) struct Tail {
    slot: Slot,
    reader: Reader,
    /// The last record that was read, or the one before the first.
    read: usize,
    /// Where the slot stands.
    at: usize,
    /// Records that were read have been cut.
    cut: bool,
}

impl Tail {
    /// Of the log nothing above `keep` is left.
    pub(crate) fn note_cut(&mut self, keep: usize) {
        self.cut |= self.read > keep;
    }
}

/// Most readers at once. One more takes the place of the first, so that the log can go.
const TAILS_MAX: usize = 3;

/// What a pass of the scrub reads at once, in bytes: less than most files have.
const SCRUB_BYTES: u64 = 700;

impl World {
    /// A slot and a reader at the end of the log, or at any of the places where it can be read from.
    pub(crate) fn slot(&mut self, n: u16) -> Result<()> {
        if self.tails.len() == TAILS_MAX {
            self.tails.remove(0);
        }
        let log = self.store().log();
        let before = log.oldest().0 - 1;
        let last = log.last().lsn.0;
        let at = if n.is_multiple_of(2) { last } else { before + u64::from(n / 2) % (last + 1 - before) };
        let slot = log.slot("tail", Lsn(at));
        let reader = log.reader(Lsn(at + 1))?;
        let at = usize::try_from(at).unwrap();
        self.tails.push(Tail { slot, reader, read: at, at, cut: false });
        Ok(())
    }

    /// A slot goes up to so many records below what its reader has; back it goes never.
    pub(crate) fn advance(&mut self, n: u8, short: u8) {
        let Some(which) = self.tail_index(n) else { return };
        let tail = &mut self.tails[which];
        let to = tail.read.saturating_sub(usize::from(short));
        tail.slot.advance(Lsn(to as u64));
        if to > tail.at {
            tail.at = to;
            self.count("advanced a slot");
        }
    }

    fn tail_index(&self, n: u8) -> Option<usize> {
        usize::from(n).checked_rem(self.tails.len())
    }

    /// A reader goes on.
    pub(crate) fn tail(&mut self, n: u8, upto: Upto, bytes_most: usize) -> Result<()> {
        let Some(which) = self.tail_index(n) else { return Ok(()) };
        let end = match upto {
            Upto::Committed => self.store().committed().get(),
            Upto::Durable => self.store().durable().get(),
            Upto::Appended => Lsn::MAX,
        };
        let mut tail = self.tails.remove(which);
        let lost = tail.slot.lost();
        let ends_at = usize::try_from(end.0).unwrap_or(usize::MAX).min(self.records.len());
        let chunk = match tail.reader.next(end, bytes_most) {
            // The slot and the reader go with it.
            Err(Error::Record(_)) if tail.cut => {
                self.count("a reader was cut");
                return Ok(());
            }
            Err(Error::LogGone { oldest, .. }) => {
                assert!(
                    lost && oldest > Lsn(tail.at as u64),
                    "gone under a slot at {}: {oldest} is the oldest",
                    tail.at
                );
                self.count("a slot was lost");
                return Ok(());
            }
            read => read?,
        };
        assert!(!tail.cut, "records up to {} were read and cut, and the reader was not told", tail.read);
        let Some(chunk) = chunk else {
            assert!(tail.read >= ends_at, "nothing after {}, and {ends_at} can be read", tail.read);
            self.count("a reader at the end");
            self.tails.insert(which, tail);
            return Ok(());
        };
        assert_eq!((chunk.first, chunk.last >= chunk.first), (Lsn(tail.read as u64 + 1), true));
        for record in chunk.records() {
            let record = record?;
            tail.read += 1;
            assert!(tail.read <= ends_at, "record {} is above {ends_at}", tail.read);
            let (body, ts) = &self.records[tail.read - 1];
            assert_eq!((record.header.lsn, record.header.ts), (Lsn(tail.read as u64), *ts));
            match record.header.kind {
                Kind::Batch => assert_eq!(record.body, body, "record {}", tail.read),
                // The model has what its tables bring.
                Kind::Ingest => assert!(Batch::decode(body).is_ok_and(|b| !b.is_empty()), "record {}", tail.read),
                kind => panic!("record {} is a {kind:?}", tail.read),
            }
        }
        assert_eq!(chunk.last, Lsn(tail.read as u64));
        assert_eq!(tail.reader.next_lsn(), chunk.last.next());
        // One record may be larger than the bound.
        assert!(chunk.bytes.len() <= bytes_most || chunk.first == chunk.last, "{} bytes", chunk.bytes.len());
        self.count(if chunk.last.0 as usize == ends_at { "a reader came to the end" } else { "a reader went on" });
        self.tails.insert(which, tail);
        Ok(())
    }

    /// What a slot that is not lost holds is there.
    pub(crate) fn check_slots(&self) {
        let oldest = self.store().log().oldest();
        for tail in self.tails.iter().filter(|t| !t.slot.lost()) {
            assert!(oldest <= Lsn(tail.at as u64 + 1), "the slot is at {}, the log begins at {oldest}", tail.at);
        }
    }

    /// So many steps of the scrub, or all to the end of the pass. Nothing is damaged, whatever came and went meanwhile.
    pub(crate) fn scrub(&mut self, steps: Option<u8>) {
        let store = self.store();
        let step = || store.scrub_step(SCRUB_BYTES);
        let over = match steps {
            Some(n) => (0..n).any(|_| step() == Progress::Idle),
            None => {
                while step() == Progress::Worked {}
                true
            }
        };
        assert_eq!((store.scrub_findings(), store.scrub_unread()), (Vec::new(), Vec::new()));
        assert!(store.tree().damaged_tables().is_empty(), "{:?}", store.tree().damaged_tables());
        if over {
            self.count("the end of a scrub");
        }
    }
}
