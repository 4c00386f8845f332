//! What a node and the commands say to a bad directory, a damaged log, a full disk and a bucket that is not
//! there: one clear sentence, an exit code, and nothing changed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking and observes real processes"
)]

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Output;

use support::{Cluster, Node, Scratch, mainstay, s3_repository, succeed};

/// Asserts the exit code and that stderr has all of these, in few lines and without a panic.
fn check(o: &Output, code: i32, says: &[&str]) {
    let err = String::from_utf8_lossy(&o.stderr).into_owned();
    assert_eq!(o.status.code(), Some(code), "{err}");
    for s in says {
        assert!(err.contains(s), "it does not say {s:?}: {err}");
    }
    assert!(!err.contains("panicked"), "{err}");
    let sentences = err.lines().filter(|l| l.starts_with("error:")).count();
    assert_eq!(sentences, 1, "one sentence: {err}");
}

/// Every file below a directory with its content.
fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { out.extend(contents(&path)) } else { out.push((path.clone(), std::fs::read(path).unwrap())) }
    }
    out.sort();
    out
}

/// A single node with some durable records, stopped.
fn stopped(scratch: &Scratch) -> Node {
    let mut node = Node::new(scratch, 1, &[]);
    node.start();
    for i in 0..5 {
        succeed(&["put", &format!("key-{i}"), "a value of some length", "--endpoints", &node.client]);
    }
    node.stop();
    node
}

fn segment(node: &Node) -> PathBuf {
    let mut all: Vec<_> = std::fs::read_dir(node.data.join("log")).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    all.into_iter().find(|p| p.extension().is_some_and(|e| e == "log")).unwrap()
}

#[test]
fn a_damaged_record_below_the_durable_lsn_is_refused_with_file_and_offset() {
    let scratch = Scratch::new();
    let node = stopped(&scratch);
    let path = segment(&node);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(5).position(|w| w == b"key-1").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let promised = |(p, _): &(PathBuf, Vec<u8>)| !p.ends_with("PROMISE");
    let before: Vec<_> = contents(&node.data).into_iter().filter(promised).collect();
    check(&node.command().output().unwrap(), 1, &["error:", path.to_str().unwrap(), "offset"]);
    let after: Vec<_> = contents(&node.data).into_iter().filter(promised).collect();
    assert!(before == after, "the damaged directory was changed");
}

#[test]
fn unfinished_writes_behind_the_end_are_cut_and_told() {
    let scratch = Scratch::new();
    let mut node = stopped(&scratch);
    let path = segment(&node);
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.iter().rposition(|b| *b != 0).unwrap() / 8 * 8 + 16;
    bytes[end..end + 100].fill(0x5a);
    std::fs::write(&path, &bytes).unwrap();
    node.start();
    let log = node.log();
    assert!(log.contains("cut unfinished writes") && log.contains(path.to_str().unwrap()), "{log}");
    assert_eq!(succeed(&["get", "key-4", "--endpoints", &node.client]).trim_end(), "a value of some length");
    node.stop();
}

#[test]
fn data_of_another_cluster_is_refused() {
    let scratch = Scratch::new();
    let elsewhere = Scratch::new();
    let foreign = stopped(&elsewhere);
    let mut cluster = Cluster::new(&scratch, 3, "quorum", &[]);
    cluster.start();
    for id in [3, 1] {
        cluster.node(id).kill();
        let own = std::mem::replace(&mut cluster.node(id).data, foreign.data.clone());
        let before = contents(&foreign.data.join("log"));
        let out = cluster.node(id).command().output().unwrap();
        check(&out, 1, &["holds data of cluster", "belongs to cluster", foreign.data.to_str().unwrap()]);
        assert!(contents(&foreign.data.join("log")) == before);
        cluster.node(id).data = own;
        cluster.node(id).start();
    }
}

#[test]
fn a_directory_that_cannot_be_read_is_refused() {
    let scratch = Scratch::new();
    let node = stopped(&scratch);
    // Permissions do not stop an administrator, a directory in a file's place does.
    let identity = node.data.join("IDENTITY");
    std::fs::remove_file(&identity).unwrap();
    std::fs::create_dir(&identity).unwrap();
    check(&node.command().output().unwrap(), 1, &["error:", identity.to_str().unwrap()]);
}

/// A small file system of its own, where the machine lets us make one.
struct Small(PathBuf);

impl Small {
    fn mount(scratch: &Scratch, megabytes: u32) -> Option<Self> {
        let at = scratch.join("small");
        std::fs::create_dir(&at).unwrap();
        let size = format!("size={megabytes}m");
        let done = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&at).output();
        if done.is_ok_and(|o| o.status.success()) {
            return Some(Self(at));
        }
        println!("absent: this machine does not let the test mount a small file system");
        None
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn a_full_disk_is_refused_at_the_start_and_survived_later() {
    let scratch = Scratch::new();
    let Some(small) = Small::mount(&scratch, 100) else { return };
    let mut node = Node::new(&scratch, 1, &[]);
    node.data = small.0.join("data");
    let filler = small.0.join("filler");
    std::fs::write(&filler, vec![1; 90 << 20]).unwrap();
    check(&node.command().output().unwrap(), 1, &["error:", "disk", node.data.to_str().unwrap()]);
    std::fs::remove_file(&filler).unwrap();
    node.start();
    // Nothing that a table could compress.
    let mut state = 1u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    let value: Vec<u8> = (0..1 << 20).map(|_| noise()).collect();
    let at = ["--endpoints", node.client.as_str(), "--timeout", "20s"];
    let file = scratch.join("value");
    std::fs::write(&file, &value).unwrap();
    let put = |i: usize| {
        let mut c = std::process::Command::new(support::BINARY);
        c.args(["put", &format!("big-{i}"), "-"]).args(at).stdin(std::fs::File::open(&file).unwrap());
        c.output().unwrap()
    };
    let refused = (0..200).map(put).enumerate().find(|(_, o)| !o.status.success());
    let (acked, out) = refused.expect("the disk never filled up");
    check(&out, 1, &["error:", "next:"]);
    let last = format!("big-{}", acked - 1);
    let found = mainstay(&["get", &last, at[0], at[1]]);
    assert!(found.status.success() && found.stdout.len() >= value.len(), "what was acknowledged is served");
    node.kill();
}

fn serve(scratch: &Scratch, repository: &str) -> Node {
    let mut node = Node::new(scratch, 1, &["--repository", repository]);
    node.start();
    succeed(&["put", "a", "1", "--endpoints", &node.client]);
    node
}

/// The commands that read or write a repository all say what the store said, with the URL; the node takes
/// writes all the same, and `status` tells.
fn a_bucket_that_refuses(repository: &str, says: &[&str]) {
    let scratch = Scratch::new();
    let mut node = serve(&scratch, repository);
    let data = scratch.join("restored");
    let data = data.to_str().unwrap();
    for args in [
        &["backup", "list", "--repository", repository][..],
        &["restore", "--repository", repository, "--data", data, "--to-latest"],
        &["backup", "create", "--endpoints", &node.client],
    ] {
        let more = ["--timeout", "60s"];
        check(&mainstay(&[args, &more].concat()), 1, says);
    }
    assert!(!Path::new(data).exists());
    succeed(&["put", "b", "2", "--endpoints", &node.client]);
    let status = mainstay(&["status", "--endpoints", &node.client]);
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    assert_eq!(status.status.code(), Some(3), "{text}");
    assert!(text.contains("attention: archive:"), "{text}");
    node.stop();
}

#[test]
fn a_missing_bucket_is_named() {
    let Some(url) = s3_repository("missing") else { return };
    let (bucket, rest) = url.trim_start_matches("s3://").split_once('/').unwrap();
    let missing = format!("s3://{bucket}-missing/{rest}");
    a_bucket_that_refuses(&missing, &["error:", &format!("{bucket}-missing"), "NoSuchBucket"]);
}

/// Answers every request like a bucket whose policy forbids it.
fn forbidding_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            let body =
                "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>";
            let _ = write!(
                stream,
                "HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    port
}

#[test]
fn a_forbidden_bucket_is_named() {
    // Only the server is a stand-in; the credentials are those of the S3 tests.
    if s3_repository("forbidden").is_none() {
        return;
    }
    let url = format!("s3://locked/repo?endpoint=http://127.0.0.1:{}&region=us-east-1", forbidding_server());
    a_bucket_that_refuses(&url, &["error:", "s3://locked/repo"]);
}
