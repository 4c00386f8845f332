//! Readers, and a file system that counts syncs and lets a test act within a read.

use super::*;
use crate::fs::os::OsFs;
use crate::fs::{File, Fs, LockGuard, OpenMode};
use std::io;

/// Real files; counts the data syncs.
#[derive(Debug, Default)]
pub(super) struct CountingFs {
    inner: OsFs,
    syncs: Arc<AtomicUsize>,
    before_read: BeforeRead,
    before_rename: BeforeRead,
}

/// What is to be done once, before the next call of a kind.
#[derive(Clone, Default)]
struct BeforeRead(Arc<Mutex<Option<Act>>>);

type Act = Box<dyn FnOnce() + Send>;

impl std::fmt::Debug for BeforeRead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BeforeRead")
    }
}

impl CountingFs {
    pub(super) fn syncs(&self) -> usize {
        self.syncs.load(Ordering::SeqCst)
    }

    pub(super) fn before_next_read(&self, what: impl FnOnce() + Send + 'static) {
        *lock(&self.before_read.0) = Some(Box::new(what));
    }

    fn before_next_rename(&self, what: impl FnOnce() + Send + 'static) {
        *lock(&self.before_rename.0) = Some(Box::new(what));
    }
}

#[derive(Debug)]
struct CountingFile(Arc<dyn File>, Arc<AtomicUsize>, BeforeRead);

impl File for CountingFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let act = lock(&self.2.0).take();
        if let Some(act) = act {
            act();
        }
        self.0.read_at(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(buf, offset)
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.sync_data()
    }
}

impl Fs for CountingFs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(CountingFile(self.inner.open(path, mode)?, Arc::clone(&self.syncs), self.before_read.clone())))
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.inner.create_dir_all(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let act = lock(&self.before_rename.0).take();
        if let Some(act) = act {
            act();
        }
        self.inner.rename(from, to)
    }
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.hard_link(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_file(path)
    }
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_dir_all(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.inner.list(path)
    }
    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.inner.exists(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.sync_dir(path)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        self.inner.lock(path)
    }
    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.inner.free_bytes(path)
    }
}

#[test]
fn readers_agree_from_memory_and_from_files_at_every_lsn() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 160 << 10, tail_memory_bytes: 70 << 10, ..Options::tiny() };
    let base = Position::default();
    let (log, _) = Log::open(&real().0, dir.path(), &options, Lsn::ZERO, base).unwrap();
    let all: Vec<Vec<u8>> = (1..=2500).map(body).collect();
    for (i, b) in all.iter().enumerate() {
        put(&log, b).unwrap();
        if i % 100 == 0 {
            log.step().unwrap();
        }
    }
    let check = |log: &Log| {
        for from in 1..=all.len() {
            let mut reader = log.reader(Lsn(from as u64)).unwrap();
            let chunk = reader.next(Lsn::MAX, 2000).unwrap().unwrap();
            assert!(chunk.bytes.len() <= 2000);
            let found = records(&chunk);
            assert_eq!(chunk.first, Lsn(from as u64));
            for (lsn, b) in found {
                assert_eq!(b, all[lsn.0 as usize - 1], "LSN {lsn} from {from}");
            }
            assert_eq!(reader.next(chunk.last, usize::MAX).unwrap(), None);
            let next = reader.next(Lsn::MAX, 1).unwrap();
            assert_eq!(next.map(|c| c.first), (chunk.last < Lsn(2500)).then(|| chunk.last.next()));
        }
        assert_eq!(bodies(log), all);
    };
    check(&log);
    log.close().unwrap();
    drop(log);
    let (log, _) = Log::open(&real().0, dir.path(), &options, Lsn(2500), base).unwrap();
    check(&log);
}

#[test]
fn a_reader_that_follows_the_head_sees_each_record_once() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(&real().0, dir.path()).unwrap();
    // Hardly any memory, so that the reader changes between memory and files often.
    std::thread::scope(|s| {
        let reader = s.spawn(|| {
            let mut reader = log.reader(Lsn(1)).unwrap();
            let mut seen = Vec::new();
            while seen.len() < 3000 {
                let upto = log.appended().get();
                match reader.next(upto, 700).unwrap() {
                    Some(c) => seen.extend(records(&c)),
                    None => assert!(log.appended().wait(upto.next(), std::time::Duration::from_secs(60)).unwrap()),
                }
            }
            seen
        });
        for n in 1..=3000 {
            put(&log, &body(n)).unwrap();
            if n % 7 == 0 {
                log.step().unwrap();
            }
        }
        let seen = reader.join().unwrap();
        assert!(seen.iter().enumerate().all(|(i, (lsn, b))| lsn.0 == i as u64 + 1 && *b == body(lsn.0)));
    });
}

/// A slot taken while a release is under way holds what the log still has at that moment.
#[test]
fn a_slot_taken_amid_a_release_keeps_what_is_still_there() {
    let dir = tempfile::tempdir().unwrap();
    let (mut env, _) = real();
    let fs = Arc::new(CountingFs::default());
    env.fs = fs.clone();
    let options = Options { retained_log_bytes: 1 << 20, ..Options::tiny() };
    let (log, _) = Log::open(&env, dir.path(), &options, Lsn::ZERO, Position::default()).unwrap();
    let log = Arc::new(log);
    fill(&log, 1000);
    log.sync_to(Lsn(1000)).unwrap();
    // Now memory lets go of what is written.
    fill(&log, 10);
    let held = Arc::new(Mutex::new(None));
    let (reader, keep) = (Arc::clone(&log), Arc::clone(&held));
    fs.before_next_rename(move || {
        let slot = reader.slot("late", Lsn(500));
        *lock(&keep) = Some((slot, reader.reader(Lsn(501)).unwrap()));
    });
    assert!(log.release(Lsn(1000)).unwrap() > 1);
    let (slot, mut reader) = lock(&held).take().expect("something was renamed");
    assert!(!slot.lost());
    let chunk = reader.next(Lsn::MAX, 1).unwrap().unwrap();
    assert_eq!(chunk.first, Lsn(501));
}
