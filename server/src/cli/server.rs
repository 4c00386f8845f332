//! `mainstay server`: run a node.
//!
//! Owns: the flags of a node and how they become configuration layers; logging to stderr. Never:
//! wiring of parts (`node` does that).

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;
use tracing_subscriber::EnvFilter;

use super::failure::usage;
use crate::codes::Exit;
use crate::config::{Config, Layers, Origin};

/// Run a node
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mainstay server --data ./data
  mainstay server --data ./data --repository file:///var/backups/mainstay
  mainstay server --config /etc/mainstay.toml --node-id 2
  mainstay server --data ./n1 --node-id 1 --listen 127.0.0.1:7410 --peer-listen 127.0.0.1:7411 \\
      --peers 1=127.0.0.1:7411,2=127.0.0.1:7421,3=127.0.0.1:7431 --mode quorum

Every key of the configuration can also come from MAINSTAY__SECTION__KEY; flags win over the environment,
the environment over the file. `mainstay config print --origin` shows the outcome.")]
pub struct ServerArgs {
    /// The node's configuration.
    #[command(flatten)]
    pub config: NodeArgs,
}

/// The flags that make up a node's configuration.
#[derive(Clone, Debug, Default, Args)]
pub struct NodeArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Data directory
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Number of this node, unique in the cluster [default: 1]
    #[arg(long, value_name = "N")]
    node_id: Option<String>,
    /// Address for clients [default: 127.0.0.1:7400]
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<String>,
    /// Address for the other nodes [default: 127.0.0.1:7401]
    #[arg(long, value_name = "IP:PORT")]
    peer_listen: Option<String>,
    /// Peer addresses of all nodes, this one included: 1=HOST:PORT,2=HOST:PORT
    #[arg(long, value_name = "LIST")]
    peers: Option<String>,
    /// Node that is primary when the cluster is created [default: the lowest id]
    #[arg(long, value_name = "N")]
    primary: Option<String>,
    /// When a write is committed: sync, quorum, semi-sync:K, async [default: by number of nodes]
    #[arg(long, value_name = "MODE")]
    mode: Option<String>,
    /// Mode sync: fewest copies of an acknowledged write
    #[arg(long, value_name = "N")]
    min_in_sync: Option<String>,
    /// Repository for archive and backups: file:///DIR, s3://BUCKET/PREFIX, gs://…, az://…
    #[arg(long, value_name = "URL")]
    repository: Option<String>,
    /// Longest time a committed record waits for its archive object [default: 1000]
    #[arg(long, value_name = "MS")]
    archive_interval_ms: Option<String>,
    /// Listen beyond loopback although there is neither TLS nor authentication
    #[arg(long)]
    insecure: bool,
    /// Set any configuration key, such as storage.memtable_bytes=8MiB; may be repeated
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
}

impl NodeArgs {
    /// The layers: defaults, file, environment, these flags.
    ///
    /// # Errors
    /// Those of the layers; usage for a `--set` without `=`.
    pub fn layers(self) -> anyhow::Result<Layers> {
        let mut layers = Layers::defaults();
        if let Some(file) = &self.config {
            layers.add_file(file)?;
        }
        layers.add_environment(environment())?;
        for pair in &self.set {
            let shape = || usage(format!("--set {pair}: expected SECTION.KEY=VALUE"));
            let (key, value) = pair.split_once('=').ok_or_else(shape)?;
            layers.set(key.trim(), value.to_owned(), Origin::Flag("--set".to_owned()))?;
        }
        let flags = [
            ("node.data", "--data", self.data),
            ("node.id", "--node-id", self.node_id),
            ("listen.client", "--listen", self.listen),
            ("listen.peer", "--peer-listen", self.peer_listen),
            ("node.peers", "--peers", self.peers),
            ("node.primary", "--primary", self.primary),
            ("replication.mode", "--mode", self.mode),
            ("replication.min_in_sync", "--min-in-sync", self.min_in_sync),
            ("archive.repository", "--repository", self.repository),
            ("archive.interval_ms", "--archive-interval-ms", self.archive_interval_ms),
            ("listen.insecure", "--insecure", self.insecure.then(|| "true".to_owned())),
        ];
        for (key, flag, value) in flags {
            if let Some(value) = value {
                layers.set(key, value, Origin::Flag(flag.to_owned()))?;
            }
        }
        Ok(layers)
    }
}

/// The environment, without variables that are not UTF-8: no key has such a value.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
}

pub(super) async fn run(args: ServerArgs) -> anyhow::Result<Exit> {
    let config = Config::new(&args.config.layers()?)?;
    log_to_stderr();
    crate::node::run(config).await?;
    Ok(Exit::Ok)
}

/// Log lines on stderr; `MAINSTAY_LOG` takes a filter such as `debug` or `mainstay=trace,warn`.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("MAINSTAY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour);
    // A second logger in one process (tests) is refused; the first one stays.
    let _ = log.try_init();
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Just {
        #[command(flatten)]
        args: NodeArgs,
    }

    fn layers(flags: &[&str]) -> anyhow::Result<Layers> {
        Just::parse_from([&["x"], flags].concat()).args.layers()
    }

    #[test]
    fn every_flag_reaches_its_key() {
        for (flag, value, key) in [
            ("--data", "d", "node.data"),
            ("--node-id", "2", "node.id"),
            ("--listen", "127.0.0.1:1", "listen.client"),
            ("--peer-listen", "127.0.0.1:2", "listen.peer"),
            ("--peers", "1=a:1", "node.peers"),
            ("--primary", "3", "node.primary"),
            ("--mode", "sync", "replication.mode"),
            ("--min-in-sync", "2", "replication.min_in_sync"),
            ("--repository", "file:///r", "archive.repository"),
            ("--archive-interval-ms", "50", "archive.interval_ms"),
        ] {
            let l = layers(&[flag, value]).unwrap();
            let got = l.get(key).unwrap();
            assert_eq!((got.text.as_str(), &got.origin), (value, &Origin::Flag(flag.to_owned())));
        }
        let l = layers(&["--insecure", "--set", "storage.memory_limit=64MiB"]).unwrap();
        assert_eq!(l.get("listen.insecure").unwrap().text, "true");
        assert_eq!(l.get("storage.memory_limit").unwrap().text, "64MiB");
    }

    #[test]
    fn set_refuses_what_is_no_key() {
        assert!(layers(&["--set", "storage.memory"]).is_err());
        assert!(layers(&["--set", "storage.memory_limi=1"]).unwrap_err().to_string().contains("storage.memory_limit"));
    }
}
