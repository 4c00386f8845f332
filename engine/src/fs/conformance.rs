//! What every file system must do, run against the real one and the simulated one, so that tests on
//! the latter speak of the former. Never: crashes and faults; those only the simulated one has.

use std::io::ErrorKind;
use std::path::Path;

use super::{Blocks, DIRECT_BYTES, File, Fs, OpenMode, read_exact_at, read_file, write_atomic};

#[test]
fn the_real_file_system_conforms() {
    let dir = tempfile::tempdir().unwrap();
    conform(&super::os::OsFs::new(), dir.path());
}

#[cfg(feature = "sim")]
#[test]
fn the_simulated_file_system_conforms() {
    for seed in 0..8 {
        let fs = super::sim::SimFs::new(seed);
        fs.set_short_reads(seed % 2 == 1);
        fs.create_dir_all(Path::new("/some/root")).unwrap();
        conform(&*fs, Path::new("/some/root"));
    }
}

fn conform(fs: &dyn Fs, root: &Path) {
    reads_and_writes(fs, &root.join("bytes"));
    windows(fs, &root.join("windows"));
    direct(fs, &root.join("direct"));
    opens(fs, &root.join("opens"));
    renames(fs, &root.join("renames"));
    links(fs, &root.join("links"));
    directories(fs, &root.join("dirs"));
    locks(fs, &root.join("locks"));
}

fn kind<T: std::fmt::Debug>(r: std::io::Result<T>) -> ErrorKind {
    r.unwrap_err().kind()
}

fn content(file: &dyn File) -> Vec<u8> {
    let mut buf = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    read_exact_at(file, &mut buf, 0).unwrap();
    buf
}

fn create(fs: &dyn Fs, path: &Path, bytes: &[u8]) {
    fs.open(path, OpenMode::CreateNew).unwrap().write_all_at(bytes, 0).unwrap();
}

fn read(fs: &dyn Fs, path: &Path) -> Vec<u8> {
    read_file(fs, path, 1 << 20).unwrap()
}

fn windows(fs: &dyn Fs, dir: &Path) {
    fs.create_dir_all(dir).unwrap();
    let f = fs.open(&dir.join("f"), OpenMode::CreateNew).unwrap();
    f.write_all_at(&[1; 200_000], 0).unwrap();
    let mut window = f.window(100_001, 50_000).unwrap().expect("this file system has windows");
    window.write_at(b"through", 100_001).unwrap();
    window.write_at(b"memory", 150_001 - 6).unwrap();
    f.write_all_at(b"beside", 120_000).unwrap();
    f.sync_data().unwrap();
    let mut model = vec![1; 200_000];
    for (at, bytes) in [(100_001, &b"through"[..]), (149_995, b"memory"), (120_000, b"beside")] {
        model[at..at + bytes.len()].copy_from_slice(bytes);
    }
    assert!(content(&*f) == model);
}

fn direct(fs: &dyn Fs, dir: &Path) {
    fs.create_dir_all(dir).unwrap();
    let path = dir.join("f");
    assert_eq!(kind(fs.open_direct(&path)), ErrorKind::NotFound);
    let f = fs.open(&path, OpenMode::CreateNew).unwrap();
    f.write_all_at(&[1; 3 * DIRECT_BYTES], 0).unwrap();
    let direct = fs.open_direct(&path).unwrap().expect("this file system writes past the page cache");
    let mut blocks = Blocks::default();
    blocks.push(b"whole block");
    blocks.pad();
    direct.write_all_at(blocks.as_slice(), DIRECT_BYTES as u64).unwrap();
    let mut model = vec![1; 3 * DIRECT_BYTES];
    model[DIRECT_BYTES..2 * DIRECT_BYTES].copy_from_slice(blocks.as_slice());
    assert!(content(&*f) == model);
    assert_eq!(kind(direct.write_all_at(&blocks.as_slice()[..100], 0)), ErrorKind::InvalidInput);
    assert!(content(&*f) == model);
}

fn reads_and_writes(fs: &dyn Fs, dir: &Path) {
    fs.create_dir_all(dir).unwrap();
    let f = fs.open(&dir.join("f"), OpenMode::CreateNew).unwrap();
    assert_eq!(f.len().unwrap(), 0);
    assert_eq!(f.read_at(&mut [0; 4], 0).unwrap(), 0);
    f.write_all_at(b"hello", 0).unwrap();
    f.write_all_at(b"J", 0).unwrap();
    f.write_all_at(b"!!", 8).unwrap();
    f.write_all_at(b"", 100).unwrap();
    assert_eq!(content(&*f), b"Jello\0\0\0!!", "a gap reads as zeros");
    assert_eq!(f.read_at(&mut [0; 4], 10).unwrap(), 0);
    assert_eq!(f.read_at(&mut [0; 4], 1 << 40).unwrap(), 0);
    assert_eq!(f.read_at(&mut [], 0).unwrap(), 0);
    assert_eq!(kind(read_exact_at(&*f, &mut [0; 4], 8)), ErrorKind::UnexpectedEof);
    f.set_len(3).unwrap();
    f.set_len(6).unwrap();
    assert_eq!(content(&*f), b"Jel\0\0\0", "growth after a cut reads as zeros");
    f.sync_data().unwrap();
    let again = fs.open(&dir.join("f"), OpenMode::Write).unwrap();
    again.write_all_at(b"x", 5).unwrap();
    assert_eq!(content(&*f), b"Jel\0\0x", "two handles see one file");
    assert_eq!(kind(read_file(fs, &dir.join("f"), 5)), ErrorKind::InvalidData);
}

fn opens(fs: &dyn Fs, dir: &Path) {
    fs.create_dir_all(dir).unwrap();
    let path = dir.join("f");
    assert_eq!(kind(fs.open(&path, OpenMode::Read)), ErrorKind::NotFound);
    assert_eq!(kind(fs.open(&path, OpenMode::Write)), ErrorKind::NotFound);
    assert_eq!(kind(fs.open(&dir.join("no/f"), OpenMode::CreateNew)), ErrorKind::NotFound);
    assert!(!fs.exists(&path).unwrap() && !fs.exists(&dir.join("no/f")).unwrap());
    create(fs, &path, b"kept");
    assert_eq!(kind(fs.open(&path, OpenMode::CreateNew)), ErrorKind::AlreadyExists);
    assert_eq!(kind(fs.open(&path.join("below"), OpenMode::Read)), ErrorKind::NotADirectory);
    assert!(fs.exists(&path).unwrap() && fs.exists(dir).unwrap());
    let reader = fs.open(&path, OpenMode::Read).unwrap();
    assert!(reader.write_all_at(b"lost", 0).is_err() && reader.set_len(0).is_err());
    reader.sync_data().unwrap();
    assert_eq!(read(fs, &path), b"kept");
    fs.remove_file(&path).unwrap();
    assert_eq!(content(&*reader), b"kept", "an open file outlives its name");
    assert_eq!(kind(fs.remove_file(&path)), ErrorKind::NotFound);
}

fn renames(fs: &dyn Fs, dir: &Path) {
    fs.create_dir_all(&dir.join("sub")).unwrap();
    create(fs, &dir.join("a"), b"A");
    create(fs, &dir.join("b"), b"B");
    let old = fs.open(&dir.join("b"), OpenMode::Read).unwrap();
    fs.rename(&dir.join("a"), &dir.join("b")).unwrap();
    assert_eq!((read(fs, &dir.join("b")), content(&*old)), (b"A".to_vec(), b"B".to_vec()));
    fs.rename(&dir.join("b"), &dir.join("b")).unwrap();
    fs.rename(&dir.join("b"), &dir.join("sub/c")).unwrap();
    assert_eq!(fs.list(dir).unwrap(), ["sub"]);
    assert_eq!(kind(fs.rename(&dir.join("b"), &dir.join("c"))), ErrorKind::NotFound);
    assert_eq!(kind(fs.rename(&dir.join("sub/c"), &dir.join("no/c"))), ErrorKind::NotFound);
    fs.create_dir_all(&dir.join("empty")).unwrap();
    assert_eq!(kind(fs.rename(&dir.join("empty"), &dir.join("sub"))), ErrorKind::DirectoryNotEmpty);
    assert_eq!(kind(fs.rename(&dir.join("sub/c"), &dir.join("empty"))), ErrorKind::IsADirectory);
    assert_eq!(kind(fs.rename(&dir.join("empty"), &dir.join("sub/c"))), ErrorKind::NotADirectory);
    assert_eq!(kind(fs.rename(&dir.join("sub"), &dir.join("sub/into"))), ErrorKind::InvalidInput);
    fs.rename(&dir.join("sub"), &dir.join("empty")).unwrap();
    assert_eq!(read(fs, &dir.join("empty/c")), b"A");
    write_atomic(fs, dir, "whole", b"one").unwrap();
    write_atomic(fs, dir, "whole", b"two").unwrap();
    assert_eq!(read(fs, &dir.join("whole")), b"two");
    assert_eq!(fs.list(dir).unwrap(), ["empty", "whole"]);
}

fn links(fs: &dyn Fs, dir: &Path) {
    fs.create_dir_all(dir).unwrap();
    let (a, b) = (dir.join("a"), dir.join("b"));
    create(fs, &a, b"one");
    fs.hard_link(&a, &b).unwrap();
    fs.open(&b, OpenMode::Write).unwrap().write_all_at(b"two", 0).unwrap();
    assert_eq!(read(fs, &a), b"two", "both names are one file");
    assert_eq!(kind(fs.hard_link(&a, &b)), ErrorKind::AlreadyExists);
    assert_eq!(kind(fs.hard_link(&dir.join("no"), &dir.join("c"))), ErrorKind::NotFound);
    fs.rename(&a, &b).unwrap();
    assert!(fs.exists(&a).unwrap(), "renaming one name of a file over another does nothing");
    fs.remove_file(&a).unwrap();
    assert_eq!(read(fs, &b), b"two");
}

fn directories(fs: &dyn Fs, dir: &Path) {
    assert_eq!(kind(fs.list(dir)), ErrorKind::NotFound);
    assert_eq!(kind(fs.sync_dir(dir)), ErrorKind::NotFound);
    assert_eq!(kind(fs.free_bytes(dir)), ErrorKind::NotFound);
    fs.create_dir_all(&dir.join("x/y")).unwrap();
    fs.create_dir_all(&dir.join("x/y")).unwrap();
    for name in ["b", "a", "c.d"] {
        create(fs, &dir.join("x").join(name), b"");
    }
    assert_eq!(fs.list(&dir.join("x")).unwrap(), ["a", "b", "c.d", "y"]);
    assert_eq!(kind(fs.list(&dir.join("x/a"))), ErrorKind::NotADirectory);
    fs.sync_dir(&dir.join("x")).unwrap();
    assert!(fs.free_bytes(dir).unwrap() > 0);
    fs.remove_dir_all(&dir.join("x")).unwrap();
    assert_eq!(fs.list(dir).unwrap(), Vec::<String>::new());
    assert_eq!(kind(fs.remove_dir_all(&dir.join("x"))), ErrorKind::NotFound);
}

fn locks(fs: &dyn Fs, dir: &Path) {
    fs.create_dir_all(dir).unwrap();
    let path = dir.join("lock");
    let held = fs.lock(&path).unwrap();
    assert_eq!(kind(fs.lock(&path)), ErrorKind::WouldBlock);
    let other = fs.lock(&dir.join("other")).unwrap();
    drop(held);
    let again = fs.lock(&path).unwrap();
    assert_eq!(fs.list(dir).unwrap(), ["lock", "other"]);
    drop((again, other));
    assert_eq!(kind(fs.lock(&dir.join("no/lock"))), ErrorKind::NotFound);
}
