//! The table of configuration keys: section, name, default, meaning.
//!
//! Owns: which keys exist, and the nearest one to a misspelt one. Never: where values come from.

/// One configuration key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// `section.name`.
    pub path: &'static str,
    /// The default as text; `None` when it is derived from other values or must be given.
    pub default: Option<&'static str>,
    /// What it means, with its unit.
    pub help: &'static str,
}

impl Key {
    /// The section.
    #[must_use]
    pub fn section(&self) -> &'static str {
        self.path.split_once('.').map_or("", |(s, _)| s)
    }

    /// The name within the section.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.path.split_once('.').map_or(self.path, |(_, n)| n)
    }

    /// The environment variable that sets it.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}__{}", self.section().to_uppercase(), self.name().to_uppercase())
    }
}

/// Every variable with this prefix is a configuration key.
pub(super) const VARIABLE_PREFIX: &str = "MAINSTAY__";

const fn key(path: &'static str, default: Option<&'static str>, help: &'static str) -> Key {
    Key { path, default, help }
}

/// All keys, by section.
pub const KEYS: &[Key] = &[
    key("node.id", Some("1"), "number of this node, unique in the cluster, above 0"),
    key("node.data", None, "data directory; one process at a time"),
    key("node.peers", None, "peer addresses of all nodes including this one: 1=HOST:PORT,2=HOST:PORT"),
    key("node.primary", None, "node that is primary when the cluster is created; default the lowest id"),
    key("listen.client", Some("127.0.0.1:7400"), "address for clients, IP:PORT; port 0 picks a free one"),
    key("listen.peer", Some("127.0.0.1:7401"), "address for the other nodes, IP:PORT; port 0 picks a free one"),
    key("listen.insecure", Some("false"), "listen beyond loopback although there is neither TLS nor authentication"),
    key("replication.mode", None, "sync, quorum, semi-sync:K or async; default quorum, with 2 nodes sync, alone async"),
    key("replication.min_in_sync", None, "sync: fewest copies of an acknowledged write; default 2, alone 1"),
    key("archive.repository", None, "URL of the repository: file:///path, s3://bucket/prefix, gs://…, az://…"),
    key(
        "archive.interval_ms",
        Some("1000"),
        "longest time a committed record waits for its archive object, milliseconds",
    ),
    key("archive.object_bytes", Some("4MiB"), "size at which an archive object is cut, bytes"),
    key(
        "storage.memory_limit",
        Some("256MiB"),
        "memory of the store: memtables, log tail, table indexes, block cache; bytes",
    ),
    key("storage.memtable_bytes", None, "memtable size at which it is flushed, bytes; default 1/12 of the limit"),
    key("storage.segment_bytes", Some("24MiB"), "size of a log segment, bytes"),
    key("storage.retained_log_bytes", Some("1GiB"), "log kept on disk for replicas, archive and watches, bytes"),
    key("storage.compaction_rate", Some("0"), "bytes a second that compaction goes through at most; 0 for no bound"),
    key(
        "storage.disk_reserve",
        None,
        "bytes kept free on the disk: below, nothing is written but what gives room back; default 1/12 of the limit",
    ),
    key("storage.scrub_rate", Some("4MiB"), "bytes a second that the scrub reads, looking for damage; 0 for no scrub"),
    key("storage.scrub_interval_s", Some("86400"), "time from the beginning of one scrub to that of the next, seconds"),
    key("storage.history_window_s", Some("600"), "how long superseded versions stay readable, seconds"),
];

/// The key with this path.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.path == path)
}

/// The known path that looks most like `path`, if any comes close.
pub(super) fn nearest(path: &str) -> Option<String> {
    let name = path.rsplit('.').next().unwrap_or(path);
    let score = |k: &Key| {
        let whole = strsim::jaro_winkler(k.path, path);
        // A right name in a wrong section is the commonest mistake besides a typing error.
        if k.name() == name { whole.max(0.95) } else { whole.max(0.9 * strsim::jaro_winkler(k.name(), name)) }
    };
    let scored = KEYS.iter().map(|k| (score(k), k.path));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= 0.75).then(|| best.1.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_finds_its_neighbour() {
        for (wrong, right) in [
            ("storage.memtabel_bytes", "storage.memtable_bytes"),
            ("node.memtable_bytes", "storage.memtable_bytes"),
            ("replication.mod", "replication.mode"),
            ("listen.clients", "listen.client"),
            ("archive.repo", "archive.repository"),
        ] {
            assert_eq!(nearest(wrong).as_deref(), Some(right), "{wrong}");
        }
        assert_eq!(nearest("xyzzy"), None);
    }

    #[test]
    fn paths_are_unique_and_in_known_sections() {
        let mut paths: Vec<_> = KEYS.iter().map(|k| k.path).collect();
        paths.sort_unstable();
        paths.dedup();
        assert_eq!(paths.len(), KEYS.len());
        for k in KEYS {
            assert!(["node", "storage", "replication", "archive", "listen"].contains(&k.section()), "{}", k.path);
        }
    }
}
