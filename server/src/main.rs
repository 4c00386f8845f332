//! The `mainstay` binary: installs the TLS provider, then hands over to the command line.
//!
//! Owns: the process start. Never: logic.

mod allocator;

use std::process::ExitCode;

fn main() -> ExitCode {
    allocator::keep_little();
    // Everything that speaks TLS takes the process default, so there is exactly one provider. It
    // fails only if one is installed already, which is what is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
    raise_open_files();
    mainstay::cli::main()
}

/// Each table of a store is an open file, as is each connection; the soft limit that most systems begin with, 1024, is
/// there for programs that use `select`. Without it being raised a node goes on as far as it reaches.
#[cfg(unix)]
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let now = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, ..now });
}

#[cfg(not(unix))]
fn raise_open_files() {}
