//! Typed names ↔ object names. The only place where names of a repository are made or parsed.
//!
//! Names carry every fact that a catalog needs to prove gaplessness (timeline, epoch, LSN range).
//! Numbers are fixed-width hex, so that a listing is in numeric order. Owns: the name grammar.
//! Never: I/O; a second spelling of a name (what parses is exactly what is printed).

use std::fmt;

use mainstay_engine::{Epoch, Lsn, TimelineId};
use object_store::path::Path;
use ulid::Ulid;

/// BLAKE3 of some content; names tables and manifests.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash(pub [u8; 32]);

impl ContentHash {
    /// The hash of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Reads 64 lower-case hex digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Some(Self(hex_bytes(text)?))
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentHash({self})")
    }
}

/// Exactly `N` bytes from `2 N` lower-case hex digits.
pub(crate) fn hex_bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let mut out = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (o, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let &[high, low] = pair else { return None };
        *o = digit(high)? << 4 | digit(low)?;
    }
    Some(out)
}

fn hex_u64(text: &str) -> Option<u64> {
    hex_bytes::<8>(text).map(u64::from_be_bytes)
}

/// A log object's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalName {
    /// Timeline of all its records.
    pub timeline: TimelineId,
    /// Epoch of all its records.
    pub epoch: Epoch,
    /// LSN of its first record.
    pub first: Lsn,
    /// LSN of its last record.
    pub last: Lsn,
}

impl fmt::Display for WalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wal/{}/{:016x}/{:016x}-{:016x}.wal", self.timeline, self.epoch.0, self.first.0, self.last.0)
    }
}

/// Any object of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectName {
    /// Which cluster this repository belongs to.
    Repo,
    /// Parentage of a timeline.
    Timeline(TimelineId),
    /// Start of an epoch on a timeline; never deleted.
    Fence(TimelineId, Epoch),
    /// A range of the log.
    Wal(WalName),
    /// A table file.
    Table(ContentHash),
    /// The engine's manifest of a base.
    Manifest(ContentHash),
    /// A base backup; its creation is the moment the base exists.
    Base(Ulid),
    /// A scratch object of the store probe.
    Probe(Ulid),
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ObjectName::Repo => f.write_str("repo.json"),
            ObjectName::Timeline(t) => write!(f, "timeline/{t}.json"),
            ObjectName::Fence(t, e) => write!(f, "fence/{t}/{:016x}.json", e.0),
            ObjectName::Wal(w) => w.fmt(f),
            ObjectName::Table(h) => write!(f, "sst/{:02x}/{h}.table", h.0[0]),
            ObjectName::Manifest(h) => write!(f, "manifest/{h}"),
            ObjectName::Base(id) => write!(f, "base/{id}.json"),
            ObjectName::Probe(id) => write!(f, "probe/{id}"),
        }
    }
}

impl ObjectName {
    /// Reads a name. `None` for anything that this program did not print.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.splitn(5, '/').collect();
        let name = match *parts.as_slice() {
            ["repo.json"] => ObjectName::Repo,
            ["timeline", t] => ObjectName::Timeline(TimelineId(hex_u64(t.strip_suffix(".json")?)?)),
            ["fence", t, e] => ObjectName::Fence(TimelineId(hex_u64(t)?), Epoch(hex_u64(e.strip_suffix(".json")?)?)),
            ["wal", t, e, range] => {
                let (first, last) = range.strip_suffix(".wal")?.split_once('-')?;
                let name = WalName {
                    timeline: TimelineId(hex_u64(t)?),
                    epoch: Epoch(hex_u64(e)?),
                    first: Lsn(hex_u64(first)?),
                    last: Lsn(hex_u64(last)?),
                };
                if name.first == Lsn::ZERO || name.first > name.last {
                    return None;
                }
                ObjectName::Wal(name)
            }
            ["sst", _, hash] => ObjectName::Table(ContentHash::parse(hash.strip_suffix(".table")?)?),
            ["manifest", hash] => ObjectName::Manifest(ContentHash::parse(hash)?),
            ["base", id] => ObjectName::Base(Ulid::from_string(id.strip_suffix(".json")?).ok()?),
            ["probe", id] => ObjectName::Probe(Ulid::from_string(id).ok()?),
            _ => return None,
        };
        // One spelling each: hash prefixes that disagree, lower-case ulids and the like are not names.
        (name.to_string() == text).then_some(name)
    }

    /// The name as the object store wants it.
    #[must_use]
    pub fn path(&self) -> Path {
        Path::from(self.to_string())
    }
}

/// A group of names that can be listed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// All timelines.
    Timelines,
    /// All fences.
    Fences,
    /// The fences of one timeline.
    FencesOf(TimelineId),
    /// All log objects.
    Wal,
    /// The log objects of one timeline.
    WalOf(TimelineId),
    /// All tables.
    Tables,
    /// All bases.
    Bases,
    /// Left-over probe objects.
    Probes,
}

impl Listing {
    /// The prefix, without a trailing slash.
    #[must_use]
    pub fn path(&self) -> Path {
        Path::from(match self {
            Listing::Timelines => "timeline".to_owned(),
            Listing::Fences => "fence".to_owned(),
            Listing::FencesOf(t) => format!("fence/{t}"),
            Listing::Wal => "wal".to_owned(),
            Listing::WalOf(t) => format!("wal/{t}"),
            Listing::Tables => "sst".to_owned(),
            Listing::Bases => "base".to_owned(),
            Listing::Probes => "probe".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_name() -> impl Strategy<Value = ObjectName> {
        let hash = any::<[u8; 32]>().prop_map(ContentHash);
        prop_oneof![
            Just(ObjectName::Repo),
            any::<u64>().prop_map(|t| ObjectName::Timeline(TimelineId(t))),
            any::<(u64, u64)>().prop_map(|(t, e)| ObjectName::Fence(TimelineId(t), Epoch(e))),
            (any::<u64>(), any::<u64>(), 1..u64::MAX, any::<u32>()).prop_map(|(t, e, first, n)| {
                let last = Lsn(first.saturating_add(u64::from(n)));
                ObjectName::Wal(WalName { timeline: TimelineId(t), epoch: Epoch(e), first: Lsn(first), last })
            }),
            hash.clone().prop_map(ObjectName::Table),
            hash.prop_map(ObjectName::Manifest),
            any::<u128>().prop_map(|u| ObjectName::Base(Ulid(u))),
            any::<u128>().prop_map(|u| ObjectName::Probe(Ulid(u))),
        ]
    }

    proptest! {
        #[test]
        fn every_name_parses_back(name in any_name()) {
            prop_assert_eq!(ObjectName::parse(&name.to_string()), Some(name));
            prop_assert_eq!(name.path().to_string(), name.to_string());
        }

        #[test]
        fn what_parses_is_what_is_printed(text in "(repo|timeline|fence|wal|sst|base|probe|manifest)?[/a-f0-9A-Z.-]{0,60}(json|wal|table)?") {
            if let Some(name) = ObjectName::parse(&text) {
                prop_assert_eq!(name.to_string(), text);
            }
        }

        #[test]
        fn one_changed_byte_is_another_name_or_none(name in any_name(), at: prop::sample::Index, byte in 0u8..128) {
            let mut text = name.to_string().into_bytes();
            let i = at.index(text.len());
            prop_assume!(text[i] != byte);
            text[i] = byte;
            let text = String::from_utf8(text).unwrap();
            prop_assert_ne!(ObjectName::parse(&text), Some(name));
        }
    }

    #[test]
    fn a_listing_is_in_order_of_lsn() {
        let name =
            |first, last| WalName { timeline: TimelineId(1), epoch: Epoch(1), first: Lsn(first), last: Lsn(last) };
        let mut texts: Vec<_> =
            [name(0x100, 0x1ff), name(2, 0xff), name(1, 1)].iter().map(ToString::to_string).collect();
        texts.sort();
        assert!(texts[0].ends_with("01-0000000000000001.wal") && texts[2].ends_with("ff.wal"), "{texts:?}");
    }

    #[test]
    fn a_range_that_ends_before_it_starts_is_no_name() {
        let text = "wal/0000000000000001/0000000000000001/0000000000000005-0000000000000004.wal";
        assert_eq!(ObjectName::parse(text), None);
    }
}
