//! What a repository holds: timelines, fences, bases and log objects, and what follows from their
//! names alone (usable ranges, gaps, forks).
//!
//! Owns: the listing and the clipping rule: of epoch e only what lies before the next fence counts
//! \[I9\]. Never: reading log objects; deciding what to restore.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, TryStreamExt, stream};
use mainstay_engine::{ClusterId, Epoch, Lsn, TimelineId};
use serde::{Deserialize, Serialize};

use crate::base::BaseInfo;
use crate::error::{Error, Result};
use crate::plan::Missing;
use crate::repository::access::{Access, Listed};
use crate::repository::documents::{BaseDoc, Document, FenceDoc, RepoDoc, TimelineDoc, number, text};
use crate::repository::names::{Listing, ObjectName, WalName};
use crate::repository::{Repository, read_document};

const PARALLEL_READS: usize = 16;

/// A log object and the part of it that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Piece {
    /// The object.
    #[serde(with = "wal_name")]
    pub name: WalName,
    /// Its size as stored.
    pub bytes: u64,
    /// First LSN used.
    #[serde(with = "number")]
    pub from: Lsn,
    /// Last LSN used.
    #[serde(with = "number")]
    pub to: Lsn,
}

/// Serde form of a log object's name: the object name itself.
mod wal_name {
    use super::{ObjectName, WalName};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(name: &WalName, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(name)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<WalName, D::Error> {
        match ObjectName::parse(&String::deserialize(d)?) {
            Some(ObjectName::Wal(name)) => Ok(name),
            _ => Err(D::Error::custom("not the name of a log object")),
        }
    }
}

/// Bytes in the archive that are no part of history: a deposed primary wrote them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Fork {
    /// The timeline.
    #[serde(with = "text")]
    pub timeline: TimelineId,
    /// The deposed epoch.
    #[serde(with = "number")]
    pub epoch: Epoch,
    /// First LSN outside history.
    #[serde(with = "number")]
    pub first: Lsn,
    /// Last LSN outside history.
    #[serde(with = "number")]
    pub last: Lsn,
}

/// Fences and log objects of one timeline.
#[derive(Clone, Debug, Default)]
pub struct TimelineArchive {
    /// Fences by epoch.
    pub fences: BTreeMap<Epoch, FenceDoc>,
    /// Log objects with their stored sizes, in order of epoch and first LSN.
    pub objects: Vec<(WalName, u64)>,
}

impl TimelineArchive {
    /// Reads the listing of one timeline.
    ///
    /// # Errors
    /// The store's, or of a fence that is damaged or foreign.
    pub async fn load(access: &Access, cluster: ClusterId, timeline: TimelineId) -> Result<Self> {
        let (fences, _) = access.list(Listing::FencesOf(timeline)).await?;
        let (objects, _) = access.list(Listing::WalOf(timeline)).await?;
        let mut all = BTreeMap::new();
        place(&mut all, read_fences(access, cluster, fences).await?, objects);
        Ok(all.remove(&timeline).unwrap_or_default())
    }

    /// First LSN that no longer belongs to `epoch`: where the first later reign starts.
    #[must_use]
    pub fn clip(&self, epoch: Epoch) -> Lsn {
        self.fences.range(epoch.next()..).map(|(_, f)| f.start_lsn).min().unwrap_or(Lsn::MAX)
    }

    /// What of an object counts. An object without its epoch's fence was written against the rules
    /// and counts for nothing.
    fn usable(&self, &(name, bytes): &(WalName, u64)) -> Option<Piece> {
        let fence = self.fences.get(&name.epoch)?;
        let from = name.first.max(fence.start_lsn);
        let to = name.last.min(self.clip(name.epoch).prev());
        (from <= to).then_some(Piece { name, bytes, from, to })
    }

    /// The pieces that cover `from..=to` without overlap, and what is missing in between. With an
    /// open end (`Lsn::MAX`) nothing is missing after the last object.
    #[must_use]
    pub fn cover(&self, timeline: TimelineId, from: Lsn, to: Lsn) -> (Vec<Piece>, Vec<Missing>) {
        let mut usable: Vec<Piece> = self.objects.iter().filter_map(|o| self.usable(o)).collect();
        usable.sort_unstable_by_key(|p| (p.from, p.to));
        let (mut chosen, mut missing) = (Vec::new(), Vec::new());
        let mut next = from;
        let mut rest = usable.into_iter().peekable();
        while next <= to {
            // Of all objects that hold `next`, the one that reaches furthest.
            let mut best: Option<Piece> = None;
            while let Some(p) = rest.next_if(|p| p.from <= next) {
                if p.to >= next && best.is_none_or(|b| p.to > b.to) {
                    best = Some(p);
                }
            }
            if let Some(p) = best {
                let piece = Piece { from: next, to: p.to.min(to), ..p };
                chosen.push(piece);
                next = piece.to.next();
                continue;
            }
            let hole_end = rest.peek().map(|p| p.from.prev()).filter(|end| *end < to);
            match (hole_end, to) {
                (Some(last), _) => {
                    missing.push(Missing { timeline, first: next, last });
                    next = last.next();
                }
                (None, Lsn::MAX) => break,
                (None, last) => {
                    missing.push(Missing { timeline, first: next, last });
                    break;
                }
            }
        }
        (chosen, missing)
    }

    /// The last usable piece: where the archive of this timeline ends.
    #[must_use]
    pub fn last(&self) -> Option<Piece> {
        self.objects.iter().filter_map(|o| self.usable(o)).max_by_key(|p| (p.to, p.name.epoch))
    }

    fn forks(&self, timeline: TimelineId) -> impl Iterator<Item = Fork> {
        self.objects.iter().filter_map(move |(name, _)| {
            let clip = self.clip(name.epoch);
            let first = name.first.max(clip);
            (clip <= name.last).then_some(Fork { timeline, epoch: name.epoch, first, last: name.last })
        })
    }
}

async fn read_fences(access: &Access, cluster: ClusterId, listed: Vec<Listed>) -> Result<Vec<FenceDoc>> {
    let read = |l: Listed| async move {
        let doc: FenceDoc = read_document(access, &l.name).await?;
        if doc.cluster != cluster || ObjectName::Fence(doc.timeline, doc.epoch) != l.name {
            return Err(Error::damaged(l.name, "it names another cluster, timeline or epoch"));
        }
        Ok(doc)
    };
    stream::iter(listed).map(read).buffered(PARALLEL_READS).try_collect().await
}

fn place(all: &mut BTreeMap<TimelineId, TimelineArchive>, fences: Vec<FenceDoc>, objects: Vec<Listed>) {
    for fence in fences {
        all.entry(fence.timeline).or_default().fences.insert(fence.epoch, fence);
    }
    for l in objects {
        if let ObjectName::Wal(name) = l.name {
            all.entry(name.timeline).or_default().objects.push((name, l.bytes));
        }
    }
}

/// Everything in a repository that a restore can choose from.
#[derive(Clone, Debug)]
pub struct Catalog {
    /// The repository's URL.
    pub url: String,
    /// Its owner.
    pub repo: RepoDoc,
    /// Timelines with a document.
    pub timelines: BTreeMap<TimelineId, TimelineDoc>,
    /// Archives by timeline.
    pub archives: BTreeMap<TimelineId, TimelineArchive>,
    /// Bases, oldest name first.
    pub bases: Vec<BaseDoc>,
    /// What was left out, in words: damaged bases, foreign objects.
    pub problems: Vec<String>,
}

impl Catalog {
    /// Lists a repository and reads its documents.
    ///
    /// # Errors
    /// `NoRepository`, the store's, or of a damaged fence or timeline (a damaged base is only left out).
    pub async fn load(repository: &Repository) -> Result<Self> {
        let repo = repository.check(None).await?;
        let access = repository.access().await?;
        let (timelines, a) = access.list(Listing::Timelines).await?;
        let (fences, b) = access.list(Listing::Fences).await?;
        let (objects, c) = access.list(Listing::Wal).await?;
        let (bases, d) = access.list(Listing::Bases).await?;
        let mut problems = Vec::new();
        if a + b + c + d > 0 {
            problems.push(format!("{} objects have names that this program does not know", a + b + c + d));
        }
        let mut docs = BTreeMap::new();
        for l in timelines {
            let doc: TimelineDoc = read_document(&access, &l.name).await?;
            if doc.cluster != repo.cluster || ObjectName::Timeline(doc.timeline) != l.name {
                return Err(Error::damaged(l.name, "it names another cluster or timeline"));
            }
            docs.insert(doc.timeline, doc);
        }
        let mut archives = BTreeMap::new();
        place(&mut archives, read_fences(&access, repo.cluster, fences).await?, objects);
        let bases = read_bases(&access, repo.cluster, bases, &mut problems).await?;
        Ok(Self { url: repository.url().to_owned(), repo, timelines: docs, archives, bases, problems })
    }

    /// All timelines that anything is known of.
    #[must_use]
    pub fn known_timelines(&self) -> BTreeSet<TimelineId> {
        let based = self.bases.iter().map(|b| b.timeline);
        self.timelines.keys().copied().chain(self.archives.keys().copied()).chain(based).collect()
    }

    /// The archive of a timeline; empty when there is none.
    #[must_use]
    pub fn archive(&self, timeline: TimelineId) -> TimelineArchive {
        self.archives.get(&timeline).cloned().unwrap_or_default()
    }

    /// Ranges that deposed primaries archived outside history.
    #[must_use]
    pub fn forks(&self) -> Vec<Fork> {
        self.archives.iter().flat_map(|(t, a)| a.forks(*t)).collect()
    }

    /// The highest epoch that anything in the repository belongs to.
    #[must_use]
    pub fn highest_epoch(&self) -> Epoch {
        let fenced = self.archives.values().filter_map(|a| a.fences.keys().next_back().copied());
        let archived = self.archives.values().flat_map(|a| a.objects.iter().map(|(n, _)| n.epoch));
        fenced.chain(archived).chain(self.bases.iter().map(|b| b.at.epoch)).max().unwrap_or_default()
    }
}

async fn read_bases(
    access: &Access,
    cluster: ClusterId,
    listed: Vec<Listed>,
    problems: &mut Vec<String>,
) -> Result<Vec<BaseDoc>> {
    let read = |l: Listed| async move { (l.name, read_document::<BaseDoc>(access, &l.name).await) };
    let read: Vec<_> = stream::iter(listed).map(read).buffered(PARALLEL_READS).collect().await;
    let mut bases = Vec::new();
    for (name, result) in read {
        match result {
            Ok(doc) if doc.cluster == cluster && ObjectName::Base(doc.id) == name => bases.push(doc),
            Ok(_) => problems.push(format!("{name} names another cluster or base")),
            // One damaged base must not make the others unusable; it is named and left out.
            Err(e @ (Error::Damaged { .. } | Error::NewerFormat { .. })) => problems.push(e.to_string()),
            Err(e) => return Err(e),
        }
    }
    Ok(bases)
}

impl Repository {
    /// The base backups, oldest first.
    ///
    /// # Errors
    /// `NoRepository` or the store's. A damaged base is left out with a warning in the log.
    pub async fn bases(&self) -> Result<Vec<BaseInfo>> {
        let repo = self.check(None).await?;
        let access = self.access().await?;
        let (listed, _) = access.list(Listing::Bases).await?;
        let mut problems = Vec::new();
        let mut bases = read_bases(&access, repo.cluster, listed, &mut problems).await?;
        for problem in problems {
            tracing::warn!(%problem, "base left out");
        }
        bases.sort_by_key(|b| (b.created_us, b.id));
        Ok(bases.iter().map(BaseInfo::from).collect())
    }

    /// Whether an object reads back as a base; for `backup verify`.
    ///
    /// # Errors
    /// As decoding a document.
    pub fn decode_base(id: ulid::Ulid, bytes: &[u8]) -> Result<BaseDoc> {
        BaseDoc::decode(&ObjectName::Base(id), bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_engine::{CommitTs, Position};

    const T: TimelineId = TimelineId(7);

    fn fence(epoch: u64, start: u64) -> (Epoch, FenceDoc) {
        let prev =
            Position { epoch: Epoch(epoch - 1), lsn: Lsn(start - 1), ts: CommitTs(start), ..Position::default() };
        let doc = FenceDoc {
            format: 1,
            cluster: ClusterId(1),
            timeline: T,
            epoch: Epoch(epoch),
            start_lsn: Lsn(start),
            prev: prev.into(),
            node: 1,
            incarnation: 1,
            created_us: 0,
        };
        (Epoch(epoch), doc)
    }

    fn archive(fences: &[(u64, u64)], objects: &[(u64, u64, u64)]) -> TimelineArchive {
        let name =
            |&(e, first, last)| (WalName { timeline: T, epoch: Epoch(e), first: Lsn(first), last: Lsn(last) }, 100);
        TimelineArchive {
            fences: fences.iter().map(|&(e, s)| fence(e, s)).collect(),
            objects: objects.iter().map(name).collect(),
        }
    }

    fn ranges(pieces: &[Piece]) -> Vec<(u64, u64, u64)> {
        pieces.iter().map(|p| (p.name.epoch.0, p.from.0, p.to.0)).collect()
    }

    #[test]
    fn a_zombies_objects_are_clipped_at_the_next_fence_and_listed_as_forks() {
        let a = archive(&[(1, 1), (2, 21)], &[(1, 1, 10), (1, 11, 30), (1, 31, 40), (2, 21, 35)]);
        let (pieces, missing) = a.cover(T, Lsn(1), Lsn::MAX);
        assert_eq!(ranges(&pieces), [(1, 1, 10), (1, 11, 20), (2, 21, 35)]);
        assert_eq!(missing, []);
        assert_eq!(a.last().unwrap().to, Lsn(35));
        let forks: Vec<_> = a.forks(T).map(|f| (f.first.0, f.last.0)).collect();
        assert_eq!(forks, [(21, 30), (31, 40)]);
    }

    #[test]
    fn a_skipped_epoch_clips_too() {
        let a = archive(&[(1, 1), (3, 11)], &[(1, 1, 20), (3, 11, 12)]);
        assert_eq!(ranges(&a.cover(T, Lsn(1), Lsn::MAX).0), [(1, 1, 10), (3, 11, 12)]);
    }

    #[test]
    fn an_object_without_its_fence_counts_for_nothing() {
        let a = archive(&[(1, 1)], &[(1, 1, 10), (2, 11, 20)]);
        let (pieces, missing) = a.cover(T, Lsn(1), Lsn(20));
        assert_eq!(ranges(&pieces), [(1, 1, 10)]);
        assert_eq!(missing, [Missing { timeline: T, first: Lsn(11), last: Lsn(20) }]);
    }

    #[test]
    fn overlaps_are_used_once_and_every_hole_is_named() {
        let a = archive(&[(1, 1)], &[(1, 5, 10), (1, 5, 7), (1, 8, 14), (1, 20, 25), (1, 30, 31)]);
        let (pieces, missing) = a.cover(T, Lsn(3), Lsn(40));
        assert_eq!(ranges(&pieces), [(1, 5, 10), (1, 11, 14), (1, 20, 25), (1, 30, 31)]);
        let holes: Vec<_> = missing.iter().map(|m| (m.first.0, m.last.0)).collect();
        assert_eq!(holes, [(3, 4), (15, 19), (26, 29), (32, 40)]);
        assert_eq!(a.cover(T, Lsn(21), Lsn(22)).1, []);
    }
}
