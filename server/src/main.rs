//! The `mainstay` binary: installs the TLS provider, then hands over to the command line.
//!
//! Owns: the process start. Never: logic.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Everything that speaks TLS takes the process default, so there is exactly one provider. It
    // fails only if one is installed already, which is what is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
    mainstay::cli::main()
}
