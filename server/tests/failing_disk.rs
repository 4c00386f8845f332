//! A disk whose sync fails, for real: ext4 in a file on a small tmpfs. When the tmpfs is full the kernel cannot write
//! its cached pages back, tells the next sync, forgets them, and calls the sync after that a success. Whoever goes on
//! then loses what was acknowledged. The process has to end at the first failure \[I3\]; once there is room again,
//! nothing acknowledged may be missing, neither in the page cache nor on the disk.
//!
//! Needs root and loop devices. Where they are missing the tests say so and pass, unless `MAINSTAY_REQUIRE_MOUNT` is
//! set. Each runs in a mount namespace of its own, so that nothing stays mounted.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking and observes real processes"
)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use mainstay_client::Client;
use mainstay_engine::batch::{Batch, Keyspace};
use mainstay_engine::store::{Durability, Identity, Store};
use mainstay_engine::value::Value;
use mainstay_engine::{ClusterId, Env, Error, Options, TimelineId};

use support::{Node, Scratch};

const INSIDE: &str = "MAINSTAY_TEST_INSIDE";
const CHILD: &str = "MAINSTAY_TEST_CHILD";
/// Exit code of a test that could not have its disk.
const NO_DISK: i32 = 77;
const ABORTED: Option<i32> = Some(6);

fn run(words: &[&str]) -> bool {
    Command::new(words[0]).args(&words[1..]).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

/// A file system whose backing store can be full.
struct Disk {
    backing: PathBuf,
    mounted: PathBuf,
}

impl Disk {
    fn new(scratch: &Scratch, mib: u32) -> Option<Self> {
        let (backing, mounted) = (scratch.join("backing"), scratch.join("disk"));
        fs::create_dir(&backing).unwrap();
        fs::create_dir(&mounted).unwrap();
        let disk = Self { backing, mounted };
        let size = format!("size={mib}m");
        let made = run(&["mount", "-t", "tmpfs", "-o", &size, "none", disk.backing.to_str().unwrap()])
            && fs::File::create(disk.image()).and_then(|f| f.set_len(1 << 30)).is_ok()
            // A journal would have to be written back as well: it failing first is another test.
            && run(&["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-N", "512", disk.image().to_str().unwrap()])
            && disk.mount();
        made.then_some(disk)
    }

    fn image(&self) -> PathBuf {
        self.backing.join("image")
    }

    /// The loop driver calls a write done of which the backing file took only a part: with requests of one page each
    /// is taken or is not.
    fn mount(&self) -> bool {
        let mounted = self.mounted.to_str().unwrap();
        let device = || {
            let out = Command::new("findmnt").args(["-n", "-o", "SOURCE", mounted]).output().ok()?;
            String::from_utf8(out.stdout).ok()?.trim().strip_prefix("/dev/").map(str::to_owned)
        };
        run(&["mount", "-o", "loop,noatime", self.image().to_str().unwrap(), mounted])
            && device().is_some_and(|d| fs::write(format!("/sys/block/{d}/queue/max_sectors_kb"), "4").is_ok())
    }

    /// What only the page cache held is gone after this.
    fn remount(&self) {
        assert!(run(&["umount", self.mounted.to_str().unwrap()]), "the disk is still in use");
        assert!(self.mount());
    }

    /// From now on nothing is written back where zeros stood before. Nobody may write meanwhile.
    fn fill(&self) {
        assert!(run(&["sync", "-f", self.mounted.to_str().unwrap()]));
        assert!(run(&["fallocate", "--dig-holes", self.image().to_str().unwrap()]));
        let mut ballast = fs::File::create(self.backing.join("ballast")).unwrap();
        for piece in [1 << 20, 64 << 10, 4 << 10] {
            while ballast.write_all(&vec![1; piece]).is_ok() {}
        }
    }

    fn make_room(&self) {
        fs::remove_file(self.backing.join("ballast")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for dir in [&self.mounted, &self.backing] {
            run(&["umount", "--lazy", dir.to_str().unwrap()]);
        }
    }
}

/// Runs the rest of the calling test in a namespace of its own; `None` in the process outside of it.
fn inside(test: &str, mib: u32) -> Option<(Scratch, Disk)> {
    if std::env::var_os(INSIDE).is_some() {
        let scratch = Scratch::new();
        let Some(disk) = Disk::new(&scratch, mib) else { std::process::exit(NO_DISK) };
        return Some((scratch, disk));
    }
    let test_binary = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--"]).arg(test_binary).args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
    let ended = command.stdin(Stdio::null()).status().ok().and_then(|s| s.code());
    match ended {
        Some(0) => {}
        Some(101) => panic!("{test} failed in its namespace"),
        other => {
            println!("skipped {test}: this machine lets the test mount no disk (ended with {other:?})");
            let required = std::env::var_os("MAINSTAY_REQUIRE_MOUNT").is_some();
            assert!(!required, "MAINSTAY_REQUIRE_MOUNT is set: run as root where loop devices can be mounted");
        }
    }
    None
}

fn options() -> Options {
    Options { segment_bytes: 1 << 20, memtable_bytes: 256 << 10, ..Options::with_memory_limit(16 << 20) }
}

fn value(n: u64) -> Vec<u8> {
    (0..500).map(|i| (n + i) as u8 | 1).collect()
}

/// Not a test by itself: the process that the others watch. It says what it was promised, when it was.
#[test]
fn the_writer_that_is_watched() {
    let Ok(what) = std::env::var(CHILD) else { return };
    let dir = PathBuf::from(std::env::var("MAINSTAY_TEST_DIR").unwrap());
    if what == "read" {
        let store = Store::open_embedded(Env::real(), &dir, &options()).unwrap();
        for found in store.view().scan(Keyspace::USER, b"", b"", false) {
            let found = found.unwrap();
            let n = u64::from_be_bytes(found.key.try_into().unwrap());
            assert_eq!(Value::decode(&found.envelope).unwrap().data, value(n));
            println!("has {n}");
        }
        return;
    }
    let durability = if what == "Synced" { Durability::Synced } else { Durability::Buffered };
    let identity = Identity { cluster: ClusterId(1), timeline: TimelineId(1) };
    let store = std::sync::Arc::new(Store::create(Env::real(), &dir, &options(), identity).unwrap());
    let _threads = store.start_background().unwrap();
    for n in 1..200_000u64 {
        let durability = if n == 100 { Durability::Synced } else { durability };
        let mut batch = Batch::new();
        batch.put(&n.to_be_bytes(), &value(n)).unwrap();
        match store.write(&batch, &[], durability) {
            Ok(_) if durability == Durability::Synced => println!("synced {n}"),
            Ok(_) => {}
            // No room for a new segment: refused, and true.
            Err(Error::DiskFull { .. }) => std::process::exit(3),
            Err(e) => panic!("{e}"),
        }
        if n == 100 {
            _ = std::io::stdin().read(&mut [0]).unwrap();
        }
    }
    println!("never failed");
}

fn child(what: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "the_writer_that_is_watched", "--nocapture", "--test-threads=1"]);
    command.env(CHILD, what).env("MAINSTAY_TEST_DIR", dir).stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// Every record up to one that is at least `synced` is there, and none behind it.
fn check(dir: &Path, synced: u64, what: &str) {
    let out = child("read", dir).stdin(Stdio::null()).output().unwrap();
    assert!(out.status.success(), "{what}: {}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).unwrap();
    // The first line is behind the harness's own words.
    let found: Vec<u64> = text.lines().filter_map(|l| l.rsplit_once("has ")?.1.parse().ok()).collect();
    let last = found.len() as u64;
    assert_eq!(found, (1..=last).collect::<Vec<_>>(), "{what}: not the beginning of what was written");
    assert!(last >= synced, "{what}: {last} are there, {synced} were acknowledged as synced");
}

/// What goes past the page cache fails when it is written, everything else when it is synced.
fn names_the_failure(said: &str) -> bool {
    ["fatal: cannot sync ", "fatal: cannot write "].iter().any(|why| said.contains(why))
}

fn an_embedded_store_ends(durability: &str, disk: &Disk) {
    let dir = disk.mounted.join("store");
    let mut writer = child(durability, &dir).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(writer.stdout.take().unwrap()).lines().map(Result::unwrap);
    let number = |line: &str| line.rsplit_once("synced ").and_then(|(_, n)| n.parse::<u64>().ok());
    let mut synced = said.by_ref().filter_map(|l| number(&l)).find(|n| *n == 100).unwrap();
    disk.fill();
    writer.stdin.take().unwrap().write_all(b"go").unwrap();
    for line in said {
        assert!(!line.contains("never failed"), "no sync failed");
        synced = number(&line).unwrap_or(synced);
    }
    let out = writer.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&out.stderr).into_owned();
    println!("{durability}: {synced} acknowledged as synced, then: {}", err.trim());
    assert_eq!(out.status.signal(), ABORTED, "{durability}: {} and {err}", out.status);
    assert!(names_the_failure(&err), "{durability}: {err}");
    disk.make_room();
    check(&dir, synced, "with the page cache");
    disk.remount();
    check(&dir, synced, "from the disk alone");
}

#[test]
fn an_embedded_store_ends_at_the_first_failed_sync_and_keeps_what_it_acknowledged() {
    let name = "an_embedded_store_ends_at_the_first_failed_sync_and_keeps_what_it_acknowledged";
    let Some((_scratch, disk)) = inside(name, 48) else { return };
    an_embedded_store_ends("Synced", &disk);
}

#[test]
fn buffered_writes_end_with_the_sync_that_fails_behind_them() {
    let Some((_scratch, disk)) = inside("buffered_writes_end_with_the_sync_that_fails_behind_them", 48) else { return };
    an_embedded_store_ends("Buffered", &disk);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_ends_at_the_first_failed_sync_and_keeps_what_it_acknowledged() {
    let name = "a_node_ends_at_the_first_failed_sync_and_keeps_what_it_acknowledged";
    let Some((scratch, disk)) = inside(name, 128) else { return };
    let mut node = Node::new(&scratch, 1, &[]);
    node.data = disk.mounted.join("node");
    node.start();
    let client = Client::builder().endpoints([node.client.clone()]).no_retries().connect().unwrap();
    let mut acked = 0;
    for n in 0..10_000u64 {
        if n == 50 {
            node.signal("-STOP");
            disk.fill();
            node.signal("-CONT");
        }
        match client.put(n.to_be_bytes(), value(n)).await {
            Ok(_) => acked = n + 1,
            Err(_) => break,
        }
    }
    assert!((50..10_000).contains(&acked), "{acked}");
    let ended = node.ended();
    println!("{acked} acknowledged, then {ended}");
    assert_eq!(ended.signal(), ABORTED, "{}", node.log());
    assert!(names_the_failure(&node.log()), "{}", node.log());
    disk.make_room();
    for from_disk in [false, true] {
        if from_disk {
            disk.remount();
        }
        node.start();
        let client = Client::connect([node.client.clone()]).unwrap();
        for n in 0..acked {
            let found = client.get(n.to_be_bytes()).await.unwrap();
            assert!(found.is_some_and(|f| f.value == value(n)), "{n} is missing, from the disk alone: {from_disk}");
        }
        node.stop();
    }
}
