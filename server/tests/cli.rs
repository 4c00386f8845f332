//! The binary's surface, without a server: usage errors, help, configuration, pipes.

#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "an outside observer, not the core")]

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

fn mainstay(args: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    c.args(args).stdin(Stdio::null()).env_remove("MAINSTAY_ENDPOINTS").env_remove("MAINSTAY_REPOSITORY");
    c
}

fn run(args: &[&str]) -> Output {
    mainstay(args).output().unwrap()
}

fn stderr(o: &Output) -> String {
    String::from_utf8(o.stderr.clone()).unwrap()
}

fn stdout(o: &Output) -> String {
    String::from_utf8(o.stdout.clone()).unwrap()
}

/// Asserts the exit code and that stderr has all of these.
fn fails(args: &[&str], code: i32, says: &[&str]) {
    check(&run(args), &format!("{args:?}"), code, says);
}

fn check(o: &Output, what: &str, code: i32, says: &[&str]) {
    let err = stderr(o);
    assert_eq!(o.status.code(), Some(code), "{what}: {err}");
    for s in says {
        assert!(err.contains(s), "{what} does not say {s:?}: {err}");
    }
    assert!(!err.contains("panicked") && !err.contains('\x1b'), "{what}: {err}");
}

/// A file that is removed with its directory.
struct File {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl File {
    fn new(name: &str, text: impl AsRef<[u8]>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        Self { _dir: dir, path }
    }

    fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

const LEAVES: &[&[&str]] = &[
    &[],
    &["server"],
    &["put"],
    &["get"],
    &["delete"],
    &["scan"],
    &["watch"],
    &["import"],
    &["export"],
    &["status"],
    &["backup"],
    &["backup", "create"],
    &["backup", "list"],
    &["restore"],
    &["cluster"],
    &["cluster", "promote"],
    &["config"],
    &["config", "print"],
    &["config", "check"],
    &["inspect"],
    &["inspect", "log"],
    &["inspect", "table"],
    &["inspect", "manifest"],
];

#[test]
fn every_help_has_examples() {
    for leaf in LEAVES {
        let o = run(&[leaf, &["--help"][..]].concat());
        assert_eq!(o.status.code(), Some(0));
        assert!(stdout(&o).contains("Examples:"), "{leaf:?}: {}", stdout(&o));
    }
}

#[test]
fn the_top_level_help_fits_a_screen() {
    let lines = stdout(&run(&["-h"])).lines().count();
    assert!(lines <= 50, "{lines} lines");
}

#[test]
fn a_misspelt_flag_or_command_is_usage_with_the_nearest_name() {
    fails(&["server", "--dat", "x"], 2, &["--data"]);
    fails(&["statsu"], 2, &["status"]);
    fails(&["put", "a", "b", "--if-absnt"], 2, &["--if-absent"]);
    fails(&["put", "a"], 2, &["<VALUE>"]);
    fails(&[], 2, &["Usage"]);
}

#[test]
fn an_unknown_configuration_key_is_usage_with_the_nearest_name() {
    let file = File::new("m.toml", "[storage]\nmemtabel_bytes = 1\n");
    let says = ["error: unknown key `storage.memtabel_bytes`", "m.toml", "did you mean `storage.memtable_bytes`?"];
    fails(&["config", "check", file.path()], 2, &says);
    fails(&["server", "--data", "/nonexistent/d", "--config", file.path()], 2, &says);
    fails(&["config", "print", "--set", "node.idd=1"], 2, &["did you mean `node.id`?"]);
    let o = mainstay(&["config", "print"]).env("MAINSTAY__NODE__DATAA", "x").output().unwrap();
    check(&o, "environment", 2, &["did you mean `MAINSTAY__NODE__DATA`?"]);
    fails(&["config", "check", "/nonexistent/m.toml"], 2, &["cannot read", "No such file"]);
    let broken = File::new("b.toml", "[node\n");
    fails(&["config", "check", broken.path()], 2, &["not valid TOML", "line 1"]);
}

/// Defaults < file < environment < flags, in all eight combinations, as the binary sees them.
#[test]
fn flags_win_over_environment_over_file_over_defaults() {
    let file = File::new("m.toml", "[node]\nid = 2\n");
    for bits in 0..8 {
        let (in_file, in_env, in_flag) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
        let mut c = mainstay(&["config", "print", "-o", "json"]);
        if in_file {
            c.args(["--config", file.path()]);
        }
        if in_env {
            c.env("MAINSTAY__NODE__ID", "3");
        }
        if in_flag {
            c.args(["--node-id", "4"]);
        }
        let (value, origin) = match (in_file, in_env, in_flag) {
            (_, _, true) => ("4", "flag --node-id".to_owned()),
            (_, true, _) => ("3", "environment MAINSTAY__NODE__ID".to_owned()),
            (true, ..) => ("2", format!("file {}", file.path())),
            _ => ("1", "default".to_owned()),
        };
        let o = c.output().unwrap();
        let v: serde_json::Value = serde_json::from_slice(&o.stdout).unwrap();
        assert_eq!(v["schema"], 1);
        let got = &v["values"]["node.id"];
        assert_eq!((got["value"].as_str(), got["origin"].as_str()), (Some(value), Some(origin.as_str())), "{bits:03b}");
    }
}

#[test]
fn the_printed_configuration_is_a_valid_file() {
    let printed = stdout(&run(&["config", "print", "--origin", "--data", "d", "--node-id", "2"]));
    assert!(printed.contains("id = 2  # flag --node-id"), "{printed}");
    let file = File::new("printed.toml", printed);
    let o = run(&["config", "check", file.path()]);
    assert_eq!(o.status.code(), Some(0), "{}", stderr(&o));
}

#[test]
fn a_server_that_cannot_make_sense_is_refused_before_it_starts() {
    let data = tempfile::tempdir().unwrap();
    let server = |more: &[&str], says: &[&str]| {
        fails(&[&["server", "--data", data.path().to_str().unwrap()], more].concat(), 2, says);
    };
    server(&["--listen", "0.0.0.0:7400"], &["listen.client", "neither TLS nor authentication", "--insecure"]);
    server(&["--peer-listen", "[::]:7401"], &["listen.peer", "--insecure"]);
    server(&["--peers", "2=127.0.0.1:1,3=127.0.0.1:2"], &["node.peers", "lacks this one, node 1"]);
    server(
        &["--peers", "1=127.0.0.1:1,2=127.0.0.1:2", "--mode", "semi-sync:2"],
        &["replication.mode", "needs 3 nodes"],
    );
    server(&["--mode", "eventual"], &["semi-sync:K"]);
    server(&["--repository", "/backups"], &["archive.repository", "file:///"]);
    assert_eq!(std::fs::read_dir(data.path()).unwrap().count(), 0, "a refused server left something behind");
    fails(&["server"], 2, &["--data DIR"]);
}

#[test]
fn arguments_are_checked_before_anything_is_sent() {
    // Nothing listens there: an error about the connection would mean that something was sent.
    let at = ["--endpoints", "127.0.0.1:1"];
    let key = "k".repeat(65_536);
    let with = |args: &[&str], code, says: &[&str]| fails(&[args, &at[..]].concat(), code, says);
    with(&["put", &key, "v"], 2, &["65536 bytes", "the limit is 65535"]);
    with(&["get", ""], 2, &["the key is empty"]);
    with(&["put", "a", "b", "--if-absent", "--if-version", "3"], 2, &["cannot be used with"]);
    with(&["put", "a", "b", "--ttl", "0s"], 2, &["longer than zero"]);
    with(&["put", "a", "b", "--ttl", "10"], 2, &["500ms"]);
    with(&["delete"], 2, &["<KEY|--prefix"]);
    with(&["delete", "--prefix", "a"], 2, &["--yes"]);
    with(&["delete", "--range", "b", "a", "--yes"], 2, &["not after"]);
    with(&["cluster", "promote", "--node", "127.0.0.1:1", "--accept-loss"], 2, &["--yes"]);
    let big = File::new("big", vec![b'x'; (16 << 20) + 1]);
    let stdin = std::fs::File::open(&big.path).unwrap();
    let o = mainstay(&["put", "a", "-", at[0], at[1]]).stdin(stdin).output().unwrap();
    check(&o, "big value", 2, &["the limit is 16777216 (16 MiB)"]);
    fails(&["get", "a", "--endpoints", ""], 2, &["no endpoint"]);
}

#[test]
fn a_time_needs_a_zone() {
    let restore = |time: &str, says: &[&str]| {
        fails(&["restore", "--repository", "file:///nonexistent", "--data", "d", "--to-time", time], 2, says);
    };
    restore("2026-11-23T10:00:00", &["append Z"]);
    restore("15m", &["-15m"]);
    restore("yesterday", &["10 minutes ago"]);
    fails(&["restore", "--repository", "file:///nonexistent", "--data", "d"], 2, &["--to-latest"]);
    fails(&["restore", "--data", "d", "--to-latest"], 2, &["--repository"]);
}

#[test]
fn no_node_and_no_repository_are_said_plainly() {
    // Port 1 of the loopback has no listener on any machine these tests run on.
    for args in [&["status"][..], &["backup", "create"], &["cluster", "promote"]] {
        let more = ["--endpoints", "127.0.0.1:1", "--timeout", "2s"];
        fails(&[args, &more[..]].concat(), 1, &["error: no node answers", "127.0.0.1:1", "next:"]);
    }
    fails(&["get", "a", "--endpoints", "127.0.0.1:1", "--timeout", "1s"], 1, &["error:"]);
    let dir = tempfile::tempdir().unwrap();
    let nowhere = format!("file://{}/absent", dir.path().display());
    fails(&["backup", "list", "--repository", &nowhere], 1, &["error:"]);
    fails(&["restore", "--repository", &nowhere, "--data", "d", "--to-latest"], 1, &["error:"]);
    assert!(!dir.path().join("absent").exists(), "a reader made the repository");
}

#[test]
fn a_bad_import_file_is_named_without_a_server() {
    let at = ["--endpoints", "127.0.0.1:1", "--timeout", "1s"];
    let bad = File::new("bad.jsonl", "{\"key\":\"a\",\"value\":\"1\"}\n{\"key\":\"b\"}\n");
    let says = ["line 2: no \"value\"", "the 0 records of the batches before it were imported"];
    fails(&[&["import", bad.path()][..], &at].concat(), 1, &says);
    fails(&[&["import", "/nonexistent.jsonl"][..], &at].concat(), 1, &["cannot open /nonexistent.jsonl"]);
    let empty = File::new("empty.jsonl", "");
    let o = run(&[&["import", empty.path(), "-o", "json"][..], &at].concat());
    let v: serde_json::Value = serde_json::from_slice(&o.stdout).unwrap();
    assert_eq!((o.status.code(), v["schema"].as_u64(), v["records"].as_u64()), (Some(0), Some(1), Some(0)));
}

#[test]
fn a_closed_pipe_ends_quietly() {
    for args in [&["config", "print"][..], &["--help"], &["server", "--help"]] {
        let mut child = mainstay(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        let status = child.wait().unwrap();
        assert_eq!((status.code(), err.as_str()), (Some(0), ""), "{args:?}");
    }
}
