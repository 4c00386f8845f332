//! Scratch nodes: real processes of this very binary, on loopback, in a directory of the drill's own.
//!
//! Owns: the scratch directory, ports, starting, killing, asking for status. Never: a live data
//! directory, and never a node that outlives the drill.

#![expect(clippy::disallowed_methods, reason = "the drill is an outside observer with a directory of its own")]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use mainstay_client::{Client, StatusResponse};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::Instant;

/// Longest time a process may take to say that it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// Time between two looks at a condition that is waited for.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Exit code of a subcommand that did its work and warns.
const EXIT_WARNINGS: i32 = 3;

/// A directory that is removed with all in it when the drill ends.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
    keep: bool,
}

impl Scratch {
    /// A new directory below `parent`.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub(super) fn new(parent: &Path, keep: bool) -> anyhow::Result<Self> {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        let parent = parent.canonicalize().with_context(|| format!("cannot find {}", parent.display()))?;
        for n in 0..1000 {
            let path = parent.join(format!("mainstay-drill-{}-{n}", std::process::id()));
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path, keep }),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e).with_context(|| format!("cannot make {}", path.display())),
            }
        }
        bail!("{} is full of scratch directories of old drills; remove them", parent.display())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(super) fn bucket(&self) -> PathBuf {
        self.join("bucket")
    }

    pub(super) fn repository(&self) -> anyhow::Result<String> {
        let url = url::Url::from_directory_path(self.bucket());
        let url = url.map_err(|()| anyhow::anyhow!("{} is no absolute path", self.bucket().display()))?;
        Ok(url.as_str().trim_end_matches('/').to_owned())
    }

    /// Copies the ledger and the logs of all nodes to `to`, for whoever has to find out why.
    ///
    /// # Errors
    /// A file cannot be copied.
    pub(super) fn save_evidence(&self, to: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
        for entry in std::fs::read_dir(&self.path)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default();
            if path.is_file() {
                std::fs::copy(&path, to.join(name)).with_context(|| format!("cannot copy {}", path.display()))?;
            }
        }
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep {
            // What cannot be removed now is named after the process and left to the operator.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// This binary with a clean environment: settings of the operator's shell are not the drill's.
fn this_binary() -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this binary")?);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MAINSTAY_") && name != "MAINSTAY_LOG" {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    Ok(command)
}

/// Runs a subcommand with `-o json`; returns what it printed, and whether it ended with a warning.
///
/// # Errors
/// It failed; with its own words.
pub(super) async fn run_json(args: &[&str]) -> anyhow::Result<(serde_json::Value, bool)> {
    let verb = args.iter().take_while(|a| !a.starts_with('-')).copied().collect::<Vec<_>>().join(" ");
    let out = this_binary()?.args(args).args(["-o", "json", "--timeout", "60s"]).output().await;
    let out = out.with_context(|| format!("cannot run `mainstay {verb}`"))?;
    let warned = out.status.code() == Some(EXIT_WARNINGS);
    if !out.status.success() && !warned {
        bail!("`mainstay {verb}` ended with {}: {}", out.status, String::from_utf8_lossy(&out.stderr).trim());
    }
    let said = serde_json::from_slice(&out.stdout).with_context(|| format!("`mainstay {verb}` printed no JSON"))?;
    Ok((said, warned))
}

/// How the nodes of a cluster are started.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    /// Name of the directories and logs.
    pub(super) name: String,
    pub(super) nodes: u32,
    /// `None`: the server's default.
    pub(super) mode: Option<String>,
    pub(super) repository: Option<String>,
    pub(super) archive_interval_ms: u64,
}

/// One node: its settings, and its process while it runs.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: u32,
    pub(super) client: String,
    pub(super) data: PathBuf,
    args: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Node {
    /// Starts the process and waits until it says that it is ready.
    ///
    /// # Errors
    /// It does not; with the end of its log.
    pub(super) async fn start(&mut self) -> anyhow::Result<()> {
        let log = std::fs::File::options().create(true).append(true).open(&self.log)?;
        let mut child = this_binary()?.args(&self.args).stdout(Stdio::piped()).stderr(log).spawn()?;
        let stdout = child.stdout.take().context("no standard output")?;
        self.child = Some(child);
        let mut lines = BufReader::new(stdout).lines();
        let ready = tokio::time::timeout(READY_TIMEOUT, lines.next_line()).await;
        match ready {
            Ok(Ok(Some(line))) if line.starts_with("ready ") => {
                // Its pipe stays open to the end of the node.
                tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
                Ok(())
            }
            _ => bail!("node {} does not start; its log ends with:\n{}", self.id, self.log_end()),
        }
    }

    fn log_end(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines.get(lines.len().saturating_sub(8)..).unwrap_or_default().join("\n")
    }

    /// SIGKILL, and waits until the process is gone.
    ///
    /// # Errors
    /// It did not run.
    pub(super) async fn kill(&mut self) -> anyhow::Result<()> {
        let mut child = self.child.take().with_context(|| format!("node {} does not run", self.id))?;
        child.kill().await.with_context(|| format!("cannot kill node {}", self.id))
    }

    fn fell(&mut self) -> bool {
        self.child.as_mut().is_some_and(|c| !matches!(c.try_wait(), Ok(None)))
    }
}

/// Nodes that know each other.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) nodes: Vec<Node>,
}

impl Cluster {
    /// Nodes 1 to n with free ports. `first_data`: node 1 starts on this directory.
    ///
    /// # Errors
    /// No ports.
    pub(super) fn new(scratch: &Scratch, shape: &Shape, first_data: Option<PathBuf>) -> anyhow::Result<Self> {
        let count = usize::try_from(shape.nodes)?;
        let ports = super::ports::unused(2 * count)?;
        let (clients, peers) = ports.split_at(count);
        let numbered = || (1..=shape.nodes).zip(clients.iter().zip(peers));
        let peer_list = numbered().map(|(id, (_, p))| format!("{id}=127.0.0.1:{p}")).collect::<Vec<_>>().join(",");
        let node = |(id, (client, peer)): (u32, (&u16, &u16))| {
            let name = format!("{}{id}", shape.name);
            let data = first_data.clone().filter(|_| id == 1).unwrap_or_else(|| scratch.join(&name));
            let client = format!("127.0.0.1:{client}");
            let mut args = vec!["server".to_owned()];
            let mut flag = |name: &str, value: String| args.extend([name.to_owned(), value]);
            flag("--data", data.display().to_string());
            flag("--node-id", id.to_string());
            flag("--listen", client.clone());
            flag("--peer-listen", format!("127.0.0.1:{peer}"));
            if shape.nodes > 1 {
                flag("--peers", peer_list.clone());
            }
            if let Some(mode) = &shape.mode {
                flag("--mode", mode.clone());
            }
            if let Some(repository) = &shape.repository {
                flag("--repository", repository.clone());
                flag("--archive-interval-ms", shape.archive_interval_ms.to_string());
            }
            Node { id, client, data, args, log: scratch.join(&format!("{name}.log")), child: None }
        };
        Ok(Self { nodes: numbered().map(node).collect() })
    }

    /// Starts all nodes.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub(super) async fn start(&mut self) -> anyhow::Result<()> {
        futures::future::try_join_all(self.nodes.iter_mut().map(Node::start)).await.map(drop)
    }

    pub(super) fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(|n| n.client.clone()).collect()
    }

    pub(super) fn node(&mut self, id: u32) -> anyhow::Result<&mut Node> {
        self.nodes.iter_mut().find(|n| n.id == id).with_context(|| format!("there is no node {id}"))
    }

    /// Nodes whose process ended although nobody killed it.
    pub(super) fn fallen(&mut self) -> Vec<u32> {
        self.nodes.iter_mut().filter_map(|n| n.fell().then_some(n.id)).collect()
    }
}

/// Looks again until there is an answer.
///
/// # Errors
/// None came within `patience`; says what was waited for.
pub(super) async fn until<T, F>(what: &str, patience: Duration, mut look: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = Option<T>>,
{
    let end = Instant::now() + patience;
    loop {
        if let Some(seen) = look().await {
            return Ok(seen);
        }
        if Instant::now() >= end {
            bail!("waited {} s for {what}, in vain", patience.as_secs());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Waits for full strength: one node leads, and all others (and the archive, if asked for) have
/// everything that was committed when the wait began.
///
/// # Errors
/// That state does not come.
pub(super) async fn full_strength(
    client: &Client,
    nodes: u32,
    archived: bool,
    patience: Duration,
) -> anyhow::Result<()> {
    let peers = usize::try_from(nodes)?.saturating_sub(1);
    let (_, begin) = until("a primary", patience, || primary(client)).await?;
    // Load goes on meanwhile: what counts is that all have caught up with where it was.
    let goal = begin.commit_lsn;
    let full = || async { primary(client).await.filter(|(_, s)| is_full(s, peers, archived, goal)).map(drop) };
    until("all nodes (and the archive) to catch up", patience, full).await
}

/// The node that leads in the highest epoch, of those that answer.
pub(super) async fn primary(client: &Client) -> Option<(String, StatusResponse)> {
    let answers = client.status_all().await.into_iter().filter_map(|(e, s)| Some((e, s.ok()?)));
    answers.filter(|(_, s)| s.role == "primary").max_by_key(|(_, s)| s.epoch)
}

fn is_full(s: &StatusResponse, peers: usize, archived: bool, goal: u64) -> bool {
    let streaming = s.peers.iter().filter(|p| p.connected && p.durable_lsn >= goal).count();
    streaming >= peers && (!archived || s.archive.as_ref().is_some_and(|a| a.archived_lsn >= goal))
}
