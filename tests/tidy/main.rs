//! What a machine can check of the layout: direction of dependency, banned crates, headers, lengths,
//! leftovers. Each rule is shown a violation, so that none is a test that cannot fail.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking and reads the source tree itself"
)]

mod documents;
mod functions;
mod fuzzing;
mod words;

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn files(dir: &Path, ending: &str, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !name.starts_with('.') && name != "target" && name != "generated" {
                files(&path, ending, out);
            }
        } else if name.ends_with(ending) {
            out.push(path);
        }
    }
}

fn sources() -> Vec<(String, String)> {
    let mut all = Vec::new();
    files(&root(), ".rs", &mut all);
    all.into_iter()
        .map(|p| {
            let name = p.strip_prefix(root()).unwrap().display().to_string();
            (name, std::fs::read_to_string(p).unwrap())
        })
        .collect()
}

/// Crates that a member must not name in its manifest's normal dependencies.
const FORBIDDEN: [(&str, &[&str]); 5] = [
    ("engine", &["mainstay-", "tokio", "tonic", "object_store", "openraft", "futures"]),
    ("replication", &["mainstay-backup", "mainstay-proto", "mainstay-client", "tonic", "object_store"]),
    ("backup", &["mainstay-replication", "mainstay-proto", "mainstay-client", "tonic", "openraft"]),
    ("client", &["mainstay-engine", "mainstay-replication", "mainstay-backup", "object_store", "openraft"]),
    ("proto", &["mainstay-", "tokio", "object_store"]),
];

fn wrong_dependencies(manifest: &str, forbidden: &[&str]) -> Vec<String> {
    let section = manifest.split("[dependencies]").nth(1).unwrap_or_default();
    let section = section.split("\n[").next().unwrap_or_default();
    section.lines().filter(|l| forbidden.iter().any(|f| l.starts_with(f))).map(str::to_owned).collect()
}

#[test]
fn dependencies_point_one_way() {
    for (member, forbidden) in FORBIDDEN {
        let manifest = std::fs::read_to_string(root().join(member).join("Cargo.toml")).unwrap();
        let wrong = wrong_dependencies(&manifest, forbidden);
        assert!(wrong.is_empty(), "{member} must not depend on {wrong:?}");
    }
    assert_eq!(wrong_dependencies("[dependencies]\ntokio.workspace = true\n[x]\n", &["tokio"]).len(), 1);
}

fn lock_violations(lock: &str) -> Vec<String> {
    let mut out = Vec::new();
    for banned in ["openssl", "openssl-sys", "aws-lc-sys", "aws-lc-rs", "native-tls", "cmake", "bindgen"] {
        if lock.contains(&format!("name = \"{banned}\"\n")) {
            out.push(format!("{banned} is in the graph"));
        }
    }
    for single in ["tonic", "prost", "rustls"] {
        let n = lock.matches(&format!("name = \"{single}\"\n")).count();
        if n != 1 {
            out.push(format!("{n} versions of {single}"));
        }
    }
    if lock.contains("source = \"git+") {
        out.push("a git dependency".into());
    }
    out
}

#[test]
fn the_graph_has_one_crypto_provider_and_no_build_tools() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    assert_eq!(lock_violations(&lock), Vec::<String>::new());
    assert_eq!(lock_violations("name = \"cmake\"\nsource = \"git+x\"").len(), 5);
}

/// The one file of the product that the compiler's checks of memory do not cover whole.
const RAW_MEMORY: &str = "engine/src/fs/window.rs";
/// Hands two numbers to the C library, and touches no memory.
const ALLOCATOR: &str = "server/src/allocator.rs";
/// A test's allocator that counts: what it does, it hands on.
const COUNTING: &str = "engine/tests/allocations.rs";

fn source_violations(name: &str, text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if !text.starts_with("//!") {
        out.push(format!("{name}: no module header"));
    }
    let crate_root = name.ends_with("src/lib.rs");
    if crate_root && !(text.contains("Owns") && text.contains("Never")) && !name.starts_with("server") {
        out.push(format!("{name}: the crate's header says not what it owns and never does"));
    }
    let lines = text.lines().count();
    if lines > 1000 {
        out.push(format!("{name}: {lines} lines"));
    }
    let leftovers = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("db", "g!("), concat!("to", "do!(")];
    let raw = concat!("uns", "afe {");
    let machine = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];
    for (i, line) in text.lines().enumerate() {
        let at = i + 1;
        // String literals may be longer than the formatter can break.
        if line.chars().count() > 200 {
            out.push(format!("{name}:{at}: line of {} characters", line.chars().count()));
        }
        let may = [RAW_MEMORY, ALLOCATOR, COUNTING].contains(&name) || name.starts_with("benches/engine/");
        if line.contains(raw) && !may {
            out.push(format!("{name}:{at}: only {RAW_MEMORY} may work on raw memory"));
        }
        if leftovers.iter().chain(&machine).any(|l| line.contains(l)) {
            out.push(format!("{name}:{at}: {}", line.trim()));
        }
    }
    out
}

#[test]
fn sources_have_headers_and_no_leftovers() {
    let wrong: Vec<String> = sources().iter().flat_map(|(name, text)| source_violations(name, text)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(source_violations("x.rs", concat!("fn f() {} // TO", "DO\n")).len(), 2);
    assert_eq!(source_violations("x.rs", concat!("//! X\nuns", "afe { f() }\n")).len(), 1);
}

#[test]
fn invariants_are_named_in_the_code() {
    let all: String = sources().into_iter().map(|(_, text)| text).collect();
    for i in [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12] {
        assert!(all.contains(&format!("[I{i}]")) || all.contains(&format!("\\[I{i}\\]")), "I{i} is named nowhere");
    }
}

fn broken_links(dir: &Path, text: &str) -> Vec<String> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let relative = targets.filter(|t| !t.contains("://") && !t.starts_with('#') && !t.is_empty());
    relative.filter(|t| !dir.join(t.split('#').next().unwrap_or_default()).exists()).map(str::to_owned).collect()
}

#[test]
fn links_in_documents_resolve() {
    let mut documents = Vec::new();
    files(&root(), ".md", &mut documents);
    assert!(!documents.is_empty());
    for path in documents {
        let wrong = broken_links(path.parent().unwrap(), &std::fs::read_to_string(&path).unwrap());
        assert!(wrong.is_empty(), "{}: {wrong:?}", path.display());
    }
    assert_eq!(broken_links(&root(), "[x](no/such.md)"), ["no/such.md"]);
}
