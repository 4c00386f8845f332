//! The scratch cluster: child processes of this binary on loopback, in a directory of their own.
//!
//! Owns: processes, ports and directories; all of it is gone when the drill is. Never: anything
//! outside its scratch directory.

#![expect(clippy::disallowed_methods, reason = "an observer controls real processes and files")]

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};

/// A directory that is removed at the end.
#[derive(Debug)]
pub(super) struct Scratch {
    pub(super) path: PathBuf,
    keep: bool,
}

impl Scratch {
    pub(super) fn new(name: &str, keep: bool) -> anyhow::Result<Self> {
        let parent = std::env::temp_dir();
        for n in 0..1000 {
            let path = parent.join(format!("mainstay-drill-{name}-{}-{n}", std::process::id()));
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path, keep }),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e).with_context(|| format!("cannot make {}", path.display())),
            }
        }
        bail!("no free scratch directory in {}", parent.display())
    }

    pub(super) fn bucket(&self) -> String {
        format!("file://{}", self.path.join("bucket").display())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

fn free_addr() -> anyhow::Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0").context("no free port on loopback")?.local_addr()?.to_string())
}

/// One node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: u64,
    pub(super) client: String,
    peer: String,
    pub(super) data: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Node {
    fn new(scratch: &Path, id: u64) -> anyhow::Result<Self> {
        Ok(Self {
            id,
            client: free_addr()?,
            peer: free_addr()?,
            data: scratch.join(format!("node{id}")),
            log: scratch.join(format!("node{id}.log")),
            child: None,
        })
    }

    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Nodes that know each other.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) nodes: Vec<Node>,
    args: Vec<String>,
    alone: bool,
}

impl Cluster {
    /// Three nodes, or one, none of which runs yet.
    pub(super) fn new(scratch: &Path, n: u64, mode: &str, repository: Option<&str>) -> anyhow::Result<Self> {
        let nodes = (1..=n).map(|id| Node::new(scratch, id)).collect::<anyhow::Result<Vec<_>>>()?;
        let mut args = vec!["--mode".to_owned(), mode.to_owned()];
        if let Some(url) = repository {
            args.extend(["--repository".to_owned(), url.to_owned()]);
        }
        Ok(Self { nodes, args, alone: n == 1 })
    }

    pub(super) fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(|n| n.client.clone()).collect()
    }

    pub(super) fn start(&mut self, id: u64) -> anyhow::Result<()> {
        let peers = self.nodes.iter().map(|n| format!("{}={}", n.id, n.peer)).collect::<Vec<_>>().join(",");
        let node = self.nodes.iter_mut().find(|n| n.id == id).context("no such node")?;
        let log = std::fs::File::options().create(true).append(true).open(&node.log)?;
        let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
        command.args(["server", "--node-id", &id.to_string(), "--listen", &node.client, "--peer-listen", &node.peer]);
        command.arg("--data").arg(&node.data).args(&self.args);
        if !self.alone {
            command.args(["--peers", &peers]);
        }
        // What this process was configured with must not leak into the scratch cluster.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("MAINSTAY_") {
                command.env_remove(name);
            }
        }
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().context("cannot start a node")?;
        let out = child.stdout.take().context("a node without output")?;
        node.child = Some(child);
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line)?;
        if !line.starts_with("ready ") {
            let said = std::fs::read_to_string(&node.log).unwrap_or_default();
            bail!("node {id} did not start: {}", said.lines().last().unwrap_or("it said nothing"));
        }
        Ok(())
    }

    pub(super) fn start_all(&mut self) -> anyhow::Result<()> {
        (1..=self.nodes.len() as u64).try_for_each(|id| self.start(id))
    }

    pub(super) fn kill(&mut self, id: u64) {
        if let Some(node) = self.nodes.iter_mut().find(|n| n.id == id) {
            node.kill();
        }
    }

    /// All at once, as a region goes: first every signal, then the waiting.
    pub(super) fn kill_all(&mut self) {
        for node in &mut self.nodes {
            if let Some(child) = &mut node.child {
                let _ = child.kill();
            }
        }
        self.nodes.iter_mut().for_each(Node::kill);
    }
}

/// Runs a subcommand of this binary to its end; returns what it printed.
pub(super) async fn mainstay(args: &[&str]) -> anyhow::Result<String> {
    let out = tokio::process::Command::new(std::env::current_exe()?)
        .args(args)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("cannot run this program")?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        bail!("mainstay {} ended with {}: {}", args.first().unwrap_or(&""), out.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
