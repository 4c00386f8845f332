//! Regenerates `proto/src/generated` from `proto/proto` without protoc; the test fails when the committed
//! code is not what the generator makes.
//!
//! Owns: code generation. Never: part of a normal build.

#![expect(clippy::disallowed_methods, reason = "a tool of the build, outside the simulated core")]

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// Where the generated code belongs, and what it should be.
fn generate() -> anyhow::Result<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let files = ["kv", "admin", "peer"].map(|n| format!("mainstay/v1/{n}.proto"));
    let descriptors = protox::compile(files, [&root.join("proto")])?;
    let out = std::env::temp_dir().join(format!("mainstay-proto-gen-{}", std::process::id()));
    fs::create_dir_all(&out)?;
    tonic_prost_build::configure().bytes(".").out_dir(&out).compile_fds(descriptors)?;
    let name = "mainstay.v1.rs";
    let fresh = fs::read_to_string(out.join(name)).context("the generator wrote no file")?;
    fs::remove_dir_all(&out)?;
    Ok((root.join("src/generated").join(name), fresh))
}

fn main() -> anyhow::Result<()> {
    let (path, fresh) = generate()?;
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(&path, fresh)?;
    println!("wrote {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_committed_code_is_current() -> anyhow::Result<()> {
        let (path, fresh) = super::generate()?;
        let current = std::fs::read_to_string(&path)? == fresh;
        assert!(current, "{} is not current; run: cargo run -p mainstay-proto-gen", path.display());
        Ok(())
    }
}
