//! From texts to a configuration that makes sense as a whole.
//!
//! Owns: parsing and cross-checking of values; every refusal names the key and its origin. Never:
//! opening the data directory, a socket or the repository.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use mainstay_engine::limits::{BATCH_BYTES_MAX, Options, SEGMENT_BYTES_MAX};
use mainstay_replication::rule::{Mode, NodeId, Rule};

use super::{ConfigError, Layers, Origin};

/// The configuration of one node, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Number of this node, above 0.
    pub node_id: u64,
    /// Data directory.
    pub data: PathBuf,
    /// Where clients are answered; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Where peers are answered; port 0 picks a free one.
    pub peer_listen: SocketAddr,
    /// Peer addresses `HOST:PORT` of all nodes, this one included; empty for a node alone.
    pub peers: BTreeMap<u64, String>,
    /// The node that is primary when the cluster is created.
    pub primary: u64,
    /// When a write is committed.
    pub mode: Mode,
    /// Mode sync: fewest copies of a committed record.
    pub min_in_sync: u32,
    /// URL of the repository, if there is one.
    pub repository: Option<String>,
    /// Longest time a committed record waits for its archive object, in milliseconds.
    pub archive_interval_ms: u64,
    /// Size at which an archive object is cut, in bytes.
    pub archive_object_bytes: u64,
    /// Memory of the store, in bytes.
    pub memory_limit: u64,
    /// Memtable size at which it is flushed, in bytes.
    pub memtable_bytes: u64,
    /// Bytes a second that compaction goes through at most; 0 for no bound.
    pub compaction_rate: u64,
    /// Bytes a second that the scrub reads; 0 for no scrub.
    pub scrub_rate: u64,
    /// Time from the beginning of one scrub to that of the next, in seconds.
    pub scrub_interval_s: u64,
    /// Size of a log segment, in bytes.
    pub segment_bytes: u64,
    /// Log kept on disk for slots, in bytes.
    pub retained_log_bytes: u64,
    /// Room kept free on the disk, in bytes.
    pub disk_reserve: u64,
    /// How long superseded versions stay readable, in seconds.
    pub history_window_s: u64,
    /// Listening beyond loopback is allowed although there is neither TLS nor authentication.
    pub insecure: bool,
}

const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;

impl Config {
    /// Checks the layers.
    ///
    /// # Errors
    /// `Invalid` with the key and its origin; `Missing` without a data directory.
    pub fn new(layers: &Layers) -> Result<Self, ConfigError> {
        if text(layers, "node.data").is_none() {
            let what = "no data directory: give --data DIR, or set node.data in the configuration file";
            return Err(ConfigError::Missing(what.to_owned()));
        }
        Self::without_data(layers)
    }

    /// Checks the layers; the data directory may be missing (it is then empty).
    ///
    /// # Errors
    /// `Invalid` with the key and its origin.
    pub fn without_data(layers: &Layers) -> Result<Self, ConfigError> {
        let l = layers;
        let node_id = number(l, "node.id", 1..=u64::MAX)?;
        let (listen, peer_listen) = (parse(l, "listen.client")?, parse(l, "listen.peer")?);
        let insecure = parse(l, "listen.insecure")?;
        for (path, address) in [("listen.client", listen), ("listen.peer", peer_listen)] {
            loopback_only(address, insecure).map_err(|what| invalid(l, path, what))?;
        }
        if listen == peer_listen && listen.port() != 0 {
            return Err(invalid(l, "listen.peer", "clients and peers need two addresses; this is also listen.client"));
        }
        let peers = peers(l, node_id)?;
        let memory_limit = bytes(l, "storage.memory_limit", 16 << 20..=1024 * GIB)?;
        let memtable_bytes = match text(l, "storage.memtable_bytes") {
            Some(_) => bytes(l, "storage.memtable_bytes", 64 * KIB..=4 * GIB)?,
            None => Options::with_memory_limit(memory_limit).memtable_bytes as u64,
        };
        let disk_reserve = match text(l, "storage.disk_reserve") {
            Some(_) => bytes(l, "storage.disk_reserve", 0..=1024 * GIB)?,
            None => Options::with_memory_limit(memory_limit).disk_reserve_bytes,
        };
        let segment_min = BATCH_BYTES_MAX as u64 + 64 * KIB;
        let mut config = Self {
            node_id,
            data: PathBuf::from(text(l, "node.data").unwrap_or_default()),
            listen,
            peer_listen,
            primary: node_id,
            mode: Mode::Async,
            min_in_sync: 1,
            repository: repository(l)?,
            archive_interval_ms: number(l, "archive.interval_ms", 10..=3_600_000)?,
            archive_object_bytes: bytes(l, "archive.object_bytes", 4 * KIB..=64 << 20)?,
            memory_limit,
            memtable_bytes,
            compaction_rate: bytes(l, "storage.compaction_rate", 0..=1024 * GIB)?,
            scrub_rate: bytes(l, "storage.scrub_rate", 0..=1024 * GIB)?,
            scrub_interval_s: number(l, "storage.scrub_interval_s", 1..=366 * 86_400)?,
            segment_bytes: bytes(l, "storage.segment_bytes", segment_min..=SEGMENT_BYTES_MAX)?,
            retained_log_bytes: bytes(l, "storage.retained_log_bytes", 0..=1024 * 1024 * GIB)?,
            disk_reserve,
            history_window_s: number(l, "storage.history_window_s", 0..=366 * 86_400)?,
            insecure,
            peers,
        };
        config.replicate(l)?;
        Ok(config)
    }

    /// The values that depend on who the nodes are.
    fn replicate(&mut self, l: &Layers) -> Result<(), ConfigError> {
        let nodes = self.peers.len().max(1);
        self.primary = match text(l, "node.primary") {
            Some(_) => number(l, "node.primary", 1..=u64::MAX)?,
            None => self.peers.keys().next().copied().unwrap_or(self.node_id),
        };
        let mut voters: Vec<_> = self.peers.keys().map(|n| NodeId(*n)).collect();
        if voters.is_empty() {
            voters.push(NodeId(self.node_id));
        }
        if !voters.contains(&NodeId(self.primary)) {
            return Err(invalid(l, "node.primary", format!("node {} is not among the peers", self.primary)));
        }
        self.mode = match text(l, "replication.mode") {
            Some(_) => parse(l, "replication.mode")?,
            None => match nodes {
                1 => Mode::Async,
                2 => Mode::Sync,
                _ => Mode::Quorum,
            },
        };
        self.min_in_sync = match text(l, "replication.min_in_sync") {
            Some(_) => number(l, "replication.min_in_sync", 1..=u64::from(u32::MAX))? as u32,
            None => nodes.min(2) as u32,
        };
        let rule = Rule::new(self.mode, voters, NodeId(self.primary), self.min_in_sync as usize);
        let Err(e) = rule else { return Ok(()) };
        let path = if text(l, "replication.mode").is_some() { "replication.mode" } else { "replication.min_in_sync" };
        let path = if matches!(e, mainstay_replication::rule::RuleError::Voters(_)) { "node.peers" } else { path };
        Err(invalid(l, path, e.to_string()))
    }

    /// The sizes the engine is opened with.
    #[must_use]
    pub fn engine_options(&self) -> Options {
        // Sizes are bounded by the checks above; a smaller machine word only bounds them further.
        let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        Options {
            segment_bytes: self.segment_bytes,
            retained_log_bytes: self.retained_log_bytes,
            memtable_bytes: size(self.memtable_bytes),
            level_base_bytes: Options::level_base_of(self.memtable_bytes),
            compaction_bytes_per_second: self.compaction_rate,
            scrub_bytes_per_second: self.scrub_rate,
            scrub_interval: Duration::from_secs(self.scrub_interval_s),
            history_window_us: self.history_window_s * 1_000_000,
            disk_reserve_bytes: self.disk_reserve,
            ..Options::with_memory_limit(self.memory_limit)
        }
    }

    /// The value of a key as text, derived values included.
    #[must_use]
    pub fn text(&self, path: &str) -> Option<String> {
        Some(match path {
            "node.id" => self.node_id.to_string(),
            "node.data" if self.data.as_os_str().is_empty() => return None,
            "node.data" => self.data.display().to_string(),
            "node.peers" if self.peers.is_empty() => return None,
            "node.peers" => self.peers.iter().map(|(n, a)| format!("{n}={a}")).collect::<Vec<_>>().join(","),
            "node.primary" => self.primary.to_string(),
            "listen.client" => self.listen.to_string(),
            "listen.peer" => self.peer_listen.to_string(),
            "listen.insecure" => self.insecure.to_string(),
            "replication.mode" => self.mode.to_string(),
            "replication.min_in_sync" => self.min_in_sync.to_string(),
            "archive.repository" => without_secrets(self.repository.as_deref()?),
            "archive.interval_ms" => self.archive_interval_ms.to_string(),
            "archive.object_bytes" => self.archive_object_bytes.to_string(),
            "storage.memtable_bytes" => self.memtable_bytes.to_string(),
            "storage.compaction_rate" => self.compaction_rate.to_string(),
            "storage.scrub_rate" => self.scrub_rate.to_string(),
            "storage.scrub_interval_s" => self.scrub_interval_s.to_string(),
            "storage.segment_bytes" => self.segment_bytes.to_string(),
            "storage.memory_limit" => self.memory_limit.to_string(),
            "storage.retained_log_bytes" => self.retained_log_bytes.to_string(),
            "storage.disk_reserve" => self.disk_reserve.to_string(),
            "storage.history_window_s" => self.history_window_s.to_string(),
            _ => return None,
        })
    }
}

/// Refuses an address that others can reach.
///
/// # Errors
/// What to do instead.
pub fn loopback_only(address: SocketAddr, insecure: bool) -> Result<(), String> {
    if insecure || address.ip().is_loopback() {
        return Ok(());
    }
    Err("this address is reachable from other machines, and this version has neither TLS nor authentication; \
         listen on 127.0.0.1, or pass --insecure on a network you trust"
        .to_owned())
}

fn text<'a>(l: &'a Layers, path: &str) -> Option<&'a str> {
    l.get(path).map(|v| v.text.trim()).filter(|t| !t.is_empty())
}

fn invalid(l: &Layers, path: &str, what: impl Into<String>) -> ConfigError {
    let value = l.get(path);
    ConfigError::Invalid {
        key: path.to_owned(),
        text: value.map_or_else(String::new, |v| without_secrets(&v.text)),
        origin: value.map_or(Origin::Default, |v| v.origin.clone()),
        what: what.into(),
    }
}

fn parse<T: FromStr>(l: &Layers, path: &str) -> Result<T, ConfigError>
where
    T::Err: std::fmt::Display,
{
    let shape = if path.starts_with("listen.") && path != "listen.insecure" { " (expected IP:PORT)" } else { "" };
    text(l, path).unwrap_or_default().parse().map_err(|e: T::Err| invalid(l, path, format!("{e}{shape}")))
}

fn number(l: &Layers, path: &str, range: RangeInclusive<u64>) -> Result<u64, ConfigError> {
    let n: u64 = parse(l, path)?;
    if range.contains(&n) {
        return Ok(n);
    }
    let what = if *range.end() == u64::MAX {
        format!("must be at least {}", range.start())
    } else {
        format!("must be {} to {}", range.start(), range.end())
    };
    Err(invalid(l, path, what))
}

fn bytes(l: &Layers, path: &str, range: RangeInclusive<u64>) -> Result<u64, ConfigError> {
    let wrong = || invalid(l, path, "expected a number of bytes, such as 67108864, 64MiB or 1GiB");
    let n = parse_bytes(text(l, path).unwrap_or_default()).ok_or_else(wrong)?;
    if range.contains(&n) {
        return Ok(n);
    }
    let (from, to) = (range.start(), range.end());
    let shown = |n: &u64| indicatif::BinaryBytes(*n);
    Err(invalid(l, path, format!("must be {from} ({}) to {to} ({}) bytes", shown(from), shown(to))))
}

/// `123`, `64KiB`, `64 MiB`, `1GiB`, and the decimal `kB`, `MB`, `GB`.
fn parse_bytes(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at_checked(split)?;
    let factor = match unit.trim() {
        "" | "B" => 1,
        "KiB" | "K" => KIB,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => GIB,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

fn peers(l: &Layers, node_id: u64) -> Result<BTreeMap<u64, String>, ConfigError> {
    let path = "node.peers";
    let mut all = BTreeMap::new();
    let Some(list) = text(l, path) else { return Ok(all) };
    for item in list.split(',').map(str::trim).filter(|i| !i.is_empty()) {
        let shape = || invalid(l, path, format!("{item:?} is not of the form ID=HOST:PORT"));
        let (id, address) = item.split_once('=').ok_or_else(shape)?;
        let id: u64 = id.trim().parse().map_err(|_| shape())?;
        let (host, port) = address.trim().rsplit_once(':').ok_or_else(shape)?;
        if id == 0 || host.is_empty() || port.parse::<u16>().map_or(true, |p| p == 0) {
            return Err(shape());
        }
        if all.insert(id, address.trim().to_owned()).is_some() {
            return Err(invalid(l, path, format!("node {id} is named twice")));
        }
    }
    let mut addresses: Vec<_> = all.values().collect();
    addresses.sort_unstable();
    if let Some(twice) = addresses.windows(2).find(|w| w.first() == w.last()).and_then(|w| w.first()) {
        return Err(invalid(l, path, format!("{twice} is the address of two nodes")));
    }
    if !all.contains_key(&node_id) {
        let what = format!("the list must name all nodes and lacks this one, node {node_id}; set --node-id or add it");
        return Err(invalid(l, path, what));
    }
    Ok(all)
}

fn repository(l: &Layers) -> Result<Option<String>, ConfigError> {
    let path = "archive.repository";
    let Some(given) = text(l, path) else { return Ok(None) };
    let url = url::Url::parse(given)
        .map_err(|e| invalid(l, path, format!("{e}; expected a URL such as file:///var/backups/mainstay")))?;
    if !["file", "s3", "gs", "az"].contains(&url.scheme()) {
        return Err(invalid(l, path, format!("unknown scheme {}; use file, s3, gs or az", url.scheme())));
    }
    Ok(Some(given.to_owned()))
}

/// A URL without user, password and query; other texts stay as they are.
fn without_secrets(text: &str) -> String {
    match url::Url::parse(text) {
        Ok(mut url) if text.contains("://") && (url.query().is_some() || url.password().is_some()) => {
            let (_, _) = (url.set_username(""), url.set_password(None));
            url.set_query(None);
            url.to_string()
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(toml: &str) -> Result<Config, String> {
        let mut l = Layers::defaults();
        l.add_toml(toml, "f.toml").map_err(|e| e.to_string())?;
        Config::without_data(&l).map_err(|e| e.to_string())
    }

    #[test]
    fn one_node_needs_nothing_but_a_directory() {
        let mut l = Layers::defaults();
        assert!(Config::new(&l).unwrap_err().to_string().contains("--data"));
        l.set("node.data", "./data".to_owned(), Origin::Flag("--data".to_owned())).unwrap();
        let c = Config::new(&l).unwrap();
        assert_eq!((c.node_id, c.primary, c.mode, c.min_in_sync), (1, 1, Mode::Async, 1));
        assert!(c.peers.is_empty());
        assert_eq!(c.segment_bytes, 24 << 20);
    }

    #[test]
    fn the_mode_follows_the_number_of_nodes() {
        let two = config("[node]\npeers = '1=a:1,2=b:1'").unwrap();
        assert_eq!((two.mode, two.min_in_sync, two.primary), (Mode::Sync, 2, 1));
        let three = config("[node]\nid = 2\npeers = '1=a:1,2=b:1,3=c:1'\nprimary = 3").unwrap();
        assert_eq!((three.mode, three.primary), (Mode::Quorum, 3));
        let semi = config("[node]\npeers = '1=a:1,2=b:1,3=c:1'\n[replication]\nmode = 'semi-sync:1'").unwrap();
        assert_eq!(semi.mode, Mode::SemiSync { k: 1 });
    }

    #[test]
    fn nonsense_is_refused_with_key_and_reason() {
        for (toml, key, reason) in [
            ("[node]\nid = 0", "node.id", "at least 1"),
            ("[node]\nid = 4\npeers = '1=a:1,2=b:1'", "node.peers", "lacks this one, node 4"),
            ("[node]\npeers = '1=a:1,1=b:1'", "node.peers", "named twice"),
            ("[node]\npeers = '1=a:1,2=a:1'", "node.peers", "address of two nodes"),
            ("[node]\npeers = '1=a'", "node.peers", "ID=HOST:PORT"),
            ("[node]\npeers = '1=a:0'", "node.peers", "ID=HOST:PORT"),
            ("[node]\nprimary = 7", "node.primary", "not among the peers"),
            ("[replication]\nmode = 'raft'", "replication.mode", "semi-sync:K"),
            ("[replication]\nmode = 'semi-sync:1'", "replication.mode", "needs 2 nodes"),
            ("[replication]\nmin_in_sync = 2\nmode = 'sync'", "replication.mode", "needs 2 nodes"),
            ("[listen]\nclient = '0.0.0.0:7400'", "listen.client", "--insecure"),
            ("[listen]\nclient = 'localhost'", "listen.client", "IP:PORT"),
            ("[listen]\nclient = '127.0.0.1:7401'", "listen.peer", "two addresses"),
            ("[storage]\nsegment_bytes = '1MiB'", "storage.segment_bytes", "must be"),
            ("[storage]\nsegment_bytes = 1073741825", "storage.segment_bytes", "to 1073741824 (1.00 GiB) bytes"),
            ("[storage]\nsegment_bytes = '2GiB'", "storage.segment_bytes", "to 1073741824 (1.00 GiB) bytes"),
            ("[storage]\nmemory_limit = 'lots'", "storage.memory_limit", "64MiB"),
            ("[storage]\nmemory_limit = -1", "storage.memory_limit", "64MiB"),
            ("[archive]\nrepository = '/tmp/x'", "archive.repository", "file:///"),
            ("[archive]\nrepository = 'ftp://x/y'", "archive.repository", "unknown scheme"),
        ] {
            let e = config(toml).unwrap_err();
            assert!(e.contains(key) && e.contains(reason), "{toml:?}: {e}");
        }
        assert!(config("[listen]\nclient = '0.0.0.0:7400'\ninsecure = true").is_ok());
        assert_eq!(config("[storage]\nsegment_bytes = '1GiB'").unwrap().segment_bytes, 1 << 30);
    }

    #[test]
    fn sizes_take_units_and_never_overflow() {
        for (text, n) in
            [("7", Some(7)), ("64KiB", Some(64 << 10)), ("2 MiB", Some(2 << 20)), ("1GB", Some(1_000_000_000))]
        {
            assert_eq!(parse_bytes(text), n, "{text}");
        }
        for text in ["", "MiB", "1.5MiB", "99999999999999999999", "18446744073709551615GiB", "1 parsec", "é"] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
    }

    #[test]
    fn every_key_prints() {
        let c = config("[archive]\nrepository = 's3://user:pw@bucket/p?token=x'").unwrap();
        for key in super::super::KEYS.iter().filter(|k| !["node.data", "node.peers"].contains(&k.path)) {
            assert!(c.text(key.path).is_some(), "{}", key.path);
        }
        assert_eq!(c.text("archive.repository").unwrap(), "s3://bucket/p");
    }
}
