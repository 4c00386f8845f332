//! Real nodes as child processes: started, waited for by their own word, killed, started again.
//!
//! Owns: processes and ports of a test. Never: knowledge of a node's inside.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]
#![allow(clippy::disallowed_methods, reason = "an outside observer, not the simulated core")]

pub mod stores;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_mainstay");

/// Longest wait for anything that must happen.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    mainstay::drill::ports::unused(1).unwrap()[0]
}

/// A directory for one test, removed at its end unless the test fails.
pub struct Scratch(Option<tempfile::TempDir>);

impl Scratch {
    pub fn new() -> Self {
        Self(Some(tempfile::tempdir().unwrap()))
    }

    pub fn path(&self) -> &Path {
        self.0.as_ref().unwrap().path()
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub fn bucket(&self) -> String {
        format!("file://{}", self.join("bucket").display())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("kept for inspection: {}", self.0.take().unwrap().keep().display());
        }
    }
}

/// One node: its settings, and its process while it runs.
pub struct Node {
    pub id: u64,
    pub client: String,
    pub peer: String,
    pub data: PathBuf,
    args: Vec<String>,
    /// Variables of its environment, beside the test's own.
    pub env: Vec<(String, String)>,
    /// A program and its arguments that end up being the node, such as `unshare -m`.
    pub under: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
    /// The line it printed when it was ready.
    pub ready: String,
}

impl Node {
    /// A node that does not run yet.
    pub fn new(scratch: &Scratch, id: u64, args: &[&str]) -> Self {
        Self {
            id,
            client: format!("127.0.0.1:{}", free_port()),
            peer: format!("127.0.0.1:{}", free_port()),
            data: scratch.join(&format!("node{id}")),
            args: args.iter().map(|a| (*a).to_owned()).collect(),
            env: Vec::new(),
            under: Vec::new(),
            log: scratch.join(&format!("node{id}.log")),
            child: None,
            ready: String::new(),
        }
    }

    pub fn command(&self) -> Command {
        let mut words = self.under.iter().map(String::as_str).chain([BINARY]);
        let mut c = Command::new(words.next().unwrap());
        c.args(words).envs(self.env.iter().cloned());
        c.args(["server", "--node-id", &self.id.to_string(), "--listen", &self.client, "--peer-listen", &self.peer]);
        c.arg("--data").arg(&self.data).args(&self.args);
        c
    }

    /// Starts the process and waits for its ready line.
    pub fn start(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(&self.log).unwrap();
        let mut child = self.command().stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("ready "), "node {} said {line:?}; its log:\n{}", self.id, self.log());
        self.ready = line;
        self.child = Some(child);
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGKILL, and the end of it.
    pub fn kill(&mut self) {
        if let Some(mut c) = self.child.take() {
            c.kill().unwrap();
            c.wait().unwrap();
        }
    }

    /// SIGTERM; panics unless the node ends well.
    pub fn stop(&mut self) {
        if let Some(mut c) = self.child.take() {
            let sent = Command::new("kill").arg(c.id().to_string()).status().unwrap();
            assert!(sent.success());
            let end = c.wait().unwrap();
            assert!(end.success(), "node {} ended with {end}; its log:\n{}", self.id, self.log());
        }
    }

    /// Waits for a process that ends by itself.
    pub fn ended(&mut self) -> std::process::ExitStatus {
        self.child.take().unwrap().wait().unwrap()
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut c) = self.child.take() {
            let _ = c.kill();
            let _ = c.wait();
        }
    }
}

/// Several nodes that know each other.
pub struct Cluster {
    pub nodes: Vec<Node>,
}

impl Cluster {
    /// `n` nodes, node 1 primary by configuration; none runs yet.
    pub fn new(scratch: &Scratch, n: u64, mode: &str, args: &[&str]) -> Self {
        let mut nodes: Vec<Node> = (1..=n).map(|id| Node::new(scratch, id, args)).collect();
        let peers = nodes.iter().map(|n| format!("{}={}", n.id, n.peer)).collect::<Vec<_>>().join(",");
        for node in &mut nodes {
            node.args.extend(["--peers".into(), peers.clone(), "--mode".into(), mode.to_owned()]);
        }
        Self { nodes }
    }

    pub fn start(&mut self) {
        for node in &mut self.nodes {
            node.start();
        }
        // A primary leads when a read is answered: found (0) or not (5).
        let (end, endpoints) = (Instant::now() + PATIENCE, self.endpoint_list());
        while !matches!(mainstay(&["get", "no-such-key", "--endpoints", &endpoints]).status.code(), Some(0 | 5)) {
            assert!(Instant::now() < end, "no primary leads");
        }
    }

    pub fn node(&mut self, id: u64) -> &mut Node {
        self.nodes.iter_mut().find(|n| n.id == id).unwrap()
    }

    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(|n| n.client.clone()).collect()
    }

    pub fn endpoint_list(&self) -> String {
        self.endpoints().join(",")
    }
}

/// Runs a subcommand to its end.
pub fn mainstay(args: &[&str]) -> Output {
    Command::new(BINARY).args(args).stdin(Stdio::null()).output().unwrap()
}

/// Asserts how a command ended, that stderr has one error and no more, and what it says.
pub fn check_refusal(out: &Output, what: &str, code: i32, says: &[&str]) {
    let err = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{what}: {err}");
    assert_eq!(err.lines().filter(|l| l.starts_with("error: ")).count(), 1, "{what}: {err}");
    assert!(!err.contains("<Error>") && !err.contains("<?xml"), "{what}: {err}");
    for s in says {
        assert!(err.contains(s), "{what} does not say {s:?}: {err}");
    }
    assert!(!err.contains("panicked") && !err.contains('\x1b'), "{what}: {err}");
}

/// Runs a subcommand that must succeed; returns its standard output.
pub fn succeed(args: &[&str]) -> String {
    let out = mainstay(args);
    assert!(out.status.success(), "{args:?} ended with {}:\n{}", out.status, String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// A subcommand's JSON; panics unless it ended with one of these codes.
pub fn json(args: &[&str], codes: &[i32]) -> serde_json::Value {
    let out = mainstay(&[args, &["-o", "json"]].concat());
    let code = out.status.code().unwrap();
    assert!(codes.contains(&code), "{args:?} ended with {code}:\n{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

/// Asks again until the answer satisfies; panics with what was last heard.
pub async fn until<T: std::fmt::Debug, F: Future<Output = T>>(
    what: &str,
    mut ask: impl FnMut() -> F,
    good: impl Fn(&T) -> bool,
) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        let heard = ask().await;
        if good(&heard) {
            return heard;
        }
        assert!(Instant::now() < end, "waited too long for {what}; last heard {heard:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Deterministic records in the shape of the package index.
pub fn sample(n: usize) -> BTreeMap<String, String> {
    (0..n)
        .map(|i| {
            let key = format!("debian/package-{:05}/1.{}-{}", i * 7 % n, i % 13, i % 3);
            let value = format!(
                "Package: package-{i}\nVersion: 1.{}\nDescription: sample \"record\" {i} with \\ and ünïcode\nDepends: {}\n",
                i % 13,
                (0..i % 40).map(|d| format!("lib{d}")).collect::<Vec<_>>().join(", ")
            );
            (key, value)
        })
        .collect()
}

/// Records as the import format has them.
pub fn write_jsonl(path: &Path, records: &BTreeMap<String, String>) {
    let mut out = String::new();
    for (key, value) in records {
        out.push_str(&serde_json::json!({ "key": key, "value": value }).to_string());
        out.push('\n');
    }
    std::fs::write(path, out).unwrap();
}

/// What `mainstay export` printed.
pub fn read_jsonl(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .map(|l| {
            let v: serde_json::Value = serde_json::from_str(l).unwrap();
            (v["key"].as_str().unwrap().to_owned(), v["value"].as_str().unwrap().to_owned())
        })
        .collect()
}

/// Fails with the first few differences instead of two whole data sets.
pub fn assert_same(expected: &BTreeMap<String, String>, found: &BTreeMap<String, String>) {
    let missing: Vec<_> = expected.keys().filter(|k| !found.contains_key(*k)).take(5).collect();
    let extra: Vec<_> = found.keys().filter(|k| !expected.contains_key(*k)).take(5).collect();
    let differ: Vec<_> =
        expected.iter().filter(|(k, v)| found.get(*k).is_some_and(|f| f != *v)).map(|(k, _)| k).take(5).collect();
    assert!(
        missing.is_empty() && extra.is_empty() && differ.is_empty(),
        "{} expected, {} found; missing {missing:?}, extra {extra:?}, different {differ:?}",
        expected.len(),
        found.len()
    );
}

/// A repository of its own on the S3 server that `MAINSTAY_TEST_S3_URL` names (a bucket and prefix, credentials in
/// `AWS_*`). Continuous integration requires it (`MAINSTAY_REQUIRE_S3=1`); elsewhere its absence is said.
pub fn s3_repository(name: &str) -> Option<String> {
    let Ok(url) = std::env::var("MAINSTAY_TEST_S3_URL") else {
        assert!(
            std::env::var_os("MAINSTAY_REQUIRE_S3").is_none(),
            "MAINSTAY_TEST_S3_URL must name an S3 server's bucket"
        );
        println!("absent: set MAINSTAY_TEST_S3_URL and AWS_* to run this test against an S3 server");
        return None;
    };
    let (place, query) = url.split_once('?').unwrap_or((&url, ""));
    Some(format!("{}/{name}-{}?{query}", place.trim_end_matches('/'), std::process::id()))
}
