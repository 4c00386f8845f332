//! The client that the commands share, and the limits checked before anything is sent.
//!
//! Owns: endpoint and timeout from the global flags; size checks. Never: a retry (the client does).

use std::io::Read;

use anyhow::Context;
use mainstay_client::{Client, Consistency, ReadOptions};
use mainstay_engine::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

use super::Global;
use super::failure::usage;
use super::get::ReadArgs;

/// A client for the cluster named by the global flags. Connects on first use.
pub(super) fn client(global: &Global) -> anyhow::Result<Client> {
    let endpoints: Vec<String> =
        global.endpoints.iter().map(|e| e.trim().to_owned()).filter(|e| !e.is_empty()).collect();
    if endpoints.is_empty() {
        return Err(usage("no endpoint: give --endpoints HOST:PORT or set MAINSTAY_ENDPOINTS"));
    }
    Client::builder().endpoints(endpoints).timeout(global.timeout).connect().context("bad --endpoints")
}

/// The client's read options for the flags.
pub(super) fn read_options(args: ReadArgs) -> ReadOptions {
    let consistency = if args.stale { Consistency::Stale } else { Consistency::Primary };
    ReadOptions { consistency, at_lsn: args.at.unwrap_or(0) }
}

/// Refuses a key that no server would take.
///
/// # Errors
/// Usage, with the limit.
pub(super) fn check_key(key: &[u8]) -> Result<(), String> {
    match key.len() {
        0 => Err("the key is empty".to_owned()),
        n if n > KEY_BYTES_MAX => Err(format!("the key has {n} bytes; the limit is {KEY_BYTES_MAX}")),
        _ => Ok(()),
    }
}

/// Refuses a value that no server would take.
///
/// # Errors
/// The size and the limit.
pub(super) fn check_value(value: &[u8]) -> Result<(), String> {
    let n = value.len();
    if n > VALUE_BYTES_MAX {
        return Err(format!("the value has {n} bytes; the limit is {VALUE_BYTES_MAX} (16 MiB)"));
    }
    Ok(())
}

/// A key from the command line.
pub(super) fn key(text: &str) -> anyhow::Result<&[u8]> {
    check_key(text.as_bytes()).map_err(usage)?;
    Ok(text.as_bytes())
}

/// A value from the command line; `-` reads stdin, which is not read beyond the limit.
pub(super) fn value(text: String) -> anyhow::Result<Vec<u8>> {
    let bytes = if text == "-" {
        let mut bytes = Vec::new();
        let bound = VALUE_BYTES_MAX as u64 + 1;
        std::io::stdin().lock().take(bound).read_to_end(&mut bytes).context("cannot read the value from stdin")?;
        bytes
    } else {
        text.into_bytes()
    };
    check_value(&bytes).map_err(usage)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_named() {
        assert!(check_key(b"").is_err());
        assert!(check_key(&vec![0; KEY_BYTES_MAX]).is_ok());
        assert!(check_key(&vec![0; KEY_BYTES_MAX + 1]).unwrap_err().contains("65535"));
        assert!(check_value(&vec![0; VALUE_BYTES_MAX + 1]).unwrap_err().contains("16 MiB"));
    }
}
