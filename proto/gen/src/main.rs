//! Regenerates `proto/src/generated` from `proto/proto` without protoc. `--check` changes nothing
//! and fails when the committed code is not what the generator makes.
//!
//! Owns: code generation. Never: part of a normal build.

#![expect(clippy::disallowed_methods, reason = "a tool of the build, outside the simulated core")]

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};

fn main() -> anyhow::Result<()> {
    let check = std::env::args().nth(1).as_deref() == Some("--check");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let protos = root.join("proto");
    let target = root.join("src/generated");
    let files = ["kv", "admin", "peer"].map(|n| format!("mainstay/v1/{n}.proto"));
    let descriptors = protox::compile(files, [&protos])?;
    let out = std::env::temp_dir().join(format!("mainstay-proto-gen-{}", std::process::id()));
    fs::create_dir_all(&out)?;
    tonic_prost_build::configure().bytes(".").out_dir(&out).compile_fds(descriptors)?;
    let name = "mainstay.v1.rs";
    let fresh = fs::read_to_string(out.join(name)).context("the generator wrote no file")?;
    fs::remove_dir_all(&out)?;
    let committed = target.join(name);
    if check {
        if fs::read_to_string(&committed).unwrap_or_default() != fresh {
            bail!("{name} is not current; run: cargo run -p mainstay-proto-gen");
        }
        println!("{name} is current");
    } else {
        fs::create_dir_all(&target)?;
        fs::write(&committed, fresh)?;
        println!("wrote {name}");
    }
    Ok(())
}
