//! What the benchmarks share: real nodes as child processes, and the figures' format.
//!
//! Owns: starting nodes, one JSON object a figure. Never: a verdict; a benchmark gates nothing.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};

/// Nodes that die with this value.
#[derive(Debug)]
pub struct Nodes {
    children: Vec<Child>,
    /// Where they answer clients.
    pub endpoints: Vec<String>,
    _dir: tempfile::TempDir,
}

fn free_addr() -> anyhow::Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

impl Nodes {
    /// Starts `n` nodes of `binary` in `mode` on loopback and waits until each is ready.
    ///
    /// # Errors
    /// A node that does not start.
    pub fn start(binary: &Path, n: usize, mode: &str) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let addrs = (0..n).map(|_| Ok((free_addr()?, free_addr()?))).collect::<anyhow::Result<Vec<_>>>()?;
        let peers: Vec<String> = addrs.iter().enumerate().map(|(i, (_, p))| format!("{}={p}", i + 1)).collect();
        let mut nodes = Self { children: Vec::new(), endpoints: Vec::new(), _dir: dir };
        for (i, (client, peer)) in addrs.iter().enumerate() {
            let id = (i + 1).to_string();
            let mut command = Command::new(binary);
            command.args(["server", "--node-id", &id, "--listen", client, "--peer-listen", peer, "--mode", mode]);
            command.arg("--data").arg(nodes._dir.path().join(&id));
            if n > 1 {
                command.args(["--peers", &peers.join(",")]);
            }
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("starting a node")?;
            let out = child.stdout.take().context("no output")?;
            nodes.children.push(child);
            nodes.endpoints.push(client.clone());
            let mut line = String::new();
            BufReader::new(out).read_line(&mut line)?;
            if !line.starts_with("ready ") {
                bail!("node {id} did not start");
            }
        }
        Ok(nodes)
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for c in &mut self.children {
            let _ = c.kill();
            let _ = c.wait();
        }
    }
}

/// Prints a figure, and appends it to a file of JSON lines if one is named.
///
/// # Errors
/// The file's.
pub fn figure(file: Option<&Path>, workload: &str, system: &str, value: f64, unit: &str) -> anyhow::Result<()> {
    println!("{system:<22} {workload:<16} {value:>12.1} {unit}");
    if let Some(path) = file {
        let line = serde_json::json!({
            "bench": "cluster", "workload": workload, "system": system, "value": value, "unit": unit,
            "ratio_to_best_peer": null,
        });
        let mut f = std::fs::File::options().create(true).append(true).open(path)?;
        writeln!(f, "{line}")?;
    }
    Ok(())
}
