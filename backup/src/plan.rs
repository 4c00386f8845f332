//! Target + catalog → `RestorePlan`: which base, which log objects, where it lands. Printed by a
//! dry run, executed unchanged.
//!
//! Owns: choosing and proving: no plan leaves this module whose log has a hole, for any kind of
//! target. Never: writing anything; guessing between timelines; using the restore host's clock.

use std::collections::BTreeMap;
use std::fmt;

use mainstay_engine::{ClusterId, CommitTs, Epoch, Lsn, TimelineId};
use serde::{Deserialize, Serialize};

use crate::catalog::{Catalog, Piece};
use crate::error::{Error, Result, moment};
use crate::repository::Repository;
use crate::repository::access::Access;
use crate::repository::documents::{BaseDoc, number, text, text_option};
use crate::repository::names::{ContentHash, ObjectName, WalName};
use crate::timeline::{Stretch, lineage};
use crate::wal_object::{HEADER_BYTES, OBJECT_BYTES_MAX, WalHeader, WalObject};

/// Where a restore shall land.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The end of the archive.
    Latest,
    /// The last record with a commit timestamp at or before this.
    Time(CommitTs),
    /// Exactly this record.
    Lsn(Lsn),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Latest => f.write_str("latest"),
            Target::Time(ts) => f.write_str(&moment(*ts)),
            Target::Lsn(lsn) => write!(f, "LSN {lsn}"),
        }
    }
}

/// LSNs that no usable object holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// On which timeline.
    pub timeline: TimelineId,
    /// First LSN missing.
    pub first: Lsn,
    /// Last LSN missing.
    pub last: Lsn,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LSN {}-{} of timeline {}", self.first, self.last, self.timeline)
    }
}

/// What can be restored on a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The oldest base.
    pub from: (Lsn, CommitTs),
    /// The end of the archive; its time where a log object tells.
    pub to: (Lsn, CommitTs),
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((from, from_ts), (to, to_ts)) = (self.from, self.to);
        write!(f, "LSN {from} ({}) to LSN {to} ({})", moment(from_ts), moment(to_ts))
    }
}

/// How the landing position answers the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The record asked for; for a time, the record with exactly that commit timestamp.
    Exact,
    /// No record has that commit timestamp; the landing position is the last one before.
    Idle {
        /// Commit timestamp of the next record.
        #[serde(with = "number")]
        next_ts: CommitTs,
    },
    /// The end of the archive, as asked for.
    EndOfArchive,
}

/// A whole restore, decided. Nothing in it is looked up again while it is executed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestorePlan {
    /// The repository, without credentials.
    pub url: String,
    /// The cluster.
    #[serde(with = "text")]
    pub cluster: ClusterId,
    /// What was asked for, in words.
    pub target: String,
    /// The timeline whose history is restored.
    #[serde(with = "text")]
    pub timeline: TimelineId,
    /// The timeline that the landing position lies on: the parent of the new one.
    #[serde(with = "text")]
    pub landing_timeline: TimelineId,
    /// Where it lands.
    #[serde(with = "number")]
    pub landing_lsn: Lsn,
    /// Commit timestamp there.
    #[serde(with = "number")]
    pub landing_ts: CommitTs,
    /// How that answers the target.
    pub answer: Answer,
    /// The base to start from.
    pub base: BaseDoc,
    /// The log objects after it, in order, without hole or overlap.
    pub pieces: Vec<Piece>,
    /// Number of records to replay.
    pub records: u64,
    /// Epoch of the restored timeline's first record; above every epoch in the repository.
    #[serde(with = "number")]
    pub next_epoch: Epoch,
    /// Another timeline that was begun later than the chosen one, if any: worth a second look.
    #[serde(with = "text_option")]
    pub newer_timeline: Option<TimelineId>,
    /// What the catalog left out, in words.
    pub problems: Vec<String>,
}

impl RestorePlan {
    /// Bytes to fetch.
    #[must_use]
    pub fn fetch_bytes(&self) -> u64 {
        let base = self.base.tables.iter().map(|t| t.bytes).fold(self.base.manifest.bytes, u64::saturating_add);
        self.pieces.iter().map(|p| p.bytes).fold(base, u64::saturating_add)
    }

    /// Hash of the plan: names the attempt that a left-over directory belongs to.
    #[must_use]
    pub fn digest(&self) -> ContentHash {
        // A plan of plain data always serialises; a constant digest would only refuse a clean-up.
        ContentHash::of(&serde_json::to_vec(self).unwrap_or_default())
    }
}

impl fmt::Display for RestorePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "restore of cluster {} from {}", self.cluster, self.url)?;
        writeln!(f, "  target    {} on timeline {}", self.target, self.timeline)?;
        writeln!(f, "  base      {} at LSN {} ({})", self.base.id, self.base.at.lsn, moment(self.base.at.ts))?;
        writeln!(
            f,
            "  fetch     {} tables, {} log objects, {} bytes",
            self.base.tables.len(),
            self.pieces.len(),
            self.fetch_bytes()
        )?;
        writeln!(f, "  replay    {} records", self.records)?;
        write!(
            f,
            "  lands at  LSN {} ({}) on timeline {}",
            self.landing_lsn,
            moment(self.landing_ts),
            self.landing_timeline
        )?;
        match self.answer {
            Answer::Exact => f.write_str(", exactly")?,
            Answer::Idle { next_ts } => write!(f, ", the next record is of {}", moment(next_ts))?,
            Answer::EndOfArchive => f.write_str(", the end of the archive")?,
        }
        if let Some(newer) = self.newer_timeline {
            write!(f, "\n  note      timeline {newer} was begun later")?;
        }
        self.problems.iter().try_for_each(|p| write!(f, "\n  note      {p}"))
    }
}

/// Plans a restore.
///
/// # Errors
/// `Gap` naming every missing range, `NoBase`, `BeforeWindow`, `AfterArchive`, `InJump`,
/// `Ambiguous`, `UnknownTimeline`; and those of [`Catalog::load`].
pub async fn plan(repository: &Repository, target: Target, timeline: Option<TimelineId>) -> Result<RestorePlan> {
    let catalog = Catalog::load(repository).await?;
    let access = repository.access().await?;
    Planner { catalog: &catalog, access: &access }.plan(target, timeline).await
}

/// What can be restored on a timeline, and the holes in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreWindow {
    /// The timeline.
    pub timeline: TimelineId,
    /// From the oldest base to the end of the archive.
    pub window: Window,
    /// LSNs in between that no usable object holds: targets behind a hole need a base behind it.
    pub missing: Vec<Missing>,
}

/// The restore window of a timeline (default: as [`plan`] would choose).
///
/// # Errors
/// `NoBase`, `Ambiguous`, `UnknownTimeline`; and those of [`Catalog::load`].
pub async fn restore_window(repository: &Repository, timeline: Option<TimelineId>) -> Result<RestoreWindow> {
    let catalog = Catalog::load(repository).await?;
    let access = repository.access().await?;
    let timeline = choose_timeline(&catalog, timeline)?;
    let history = lineage(&catalog.timelines, timeline)?;
    let bases = bases(&catalog, &history);
    let (Some(oldest), Some(newest)) = (bases.first(), bases.last()) else { return Err(Error::NoBase { timeline }) };
    let window = Planner { catalog: &catalog, access: &access }.window(&history, oldest, newest).await?;
    let missing = cover(&catalog, &history, oldest.at.lsn, Lsn::MAX).missing;
    Ok(RestoreWindow { timeline, window, missing })
}

/// The timeline meant: the one named, or the one begun last.
///
/// # Errors
/// `UnknownTimeline`; `Ambiguous` when several may be the last.
pub fn choose_timeline(catalog: &Catalog, wanted: Option<TimelineId>) -> Result<TimelineId> {
    let known = catalog.known_timelines();
    let list = |ids: &mut dyn Iterator<Item = &TimelineId>| ids.map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if let Some(timeline) = wanted {
        if !known.contains(&timeline) {
            let known = if known.is_empty() { "none".to_owned() } else { list(&mut known.iter()) };
            return Err(Error::UnknownTimeline { timeline, known });
        }
        return Ok(timeline);
    }
    let undated: Vec<_> = known.iter().filter(|t| !catalog.timelines.contains_key(t)).collect();
    if known.len() > 1 && !undated.is_empty() {
        return Err(Error::Ambiguous(format!(
            "nothing tells when {} began, beside {}",
            list(&mut undated.into_iter()),
            list(&mut known.iter())
        )));
    }
    let mut by_age: Vec<_> = catalog.timelines.values().map(|d| (d.created_us, d.timeline)).collect();
    by_age.sort_unstable();
    match *by_age.as_slice() {
        [] => known.first().copied().ok_or(Error::NoBase { timeline: TimelineId(0) }),
        [.., (a, x), (b, y)] if a == b => Err(Error::Ambiguous(format!("{x} and {y} were begun at the same moment"))),
        [.., (_, newest)] => Ok(newest),
    }
}

/// Log objects of a history in order, with the holes between them.
#[derive(Clone, Debug, Default)]
struct Path {
    pieces: Vec<Piece>,
    missing: Vec<Missing>,
}

fn cover(catalog: &Catalog, history: &[Stretch], after: Lsn, upto: Lsn) -> Path {
    let mut path = Path::default();
    for s in history {
        let (from, to) = (s.from.max(after.next()), s.to.min(upto));
        if from <= to {
            let (pieces, missing) = catalog.archive(s.timeline).cover(s.timeline, from, to);
            path.pieces.extend(pieces);
            path.missing.extend(missing);
        }
    }
    path
}

/// Bases of a history, oldest cut first; a base of a deposed primary beyond its fence is none.
fn bases<'a>(catalog: &'a Catalog, history: &[Stretch]) -> Vec<&'a BaseDoc> {
    let belongs = |b: &&BaseDoc| {
        let within = history.iter().any(|s| s.timeline == b.timeline && b.at.lsn <= s.to && b.at.lsn.next() >= s.from);
        within && b.at.lsn < catalog.archive(b.timeline).clip(b.at.epoch)
    };
    let mut out: Vec<_> = catalog.bases.iter().filter(belongs).collect();
    out.sort_by_key(|b| (b.at.lsn, b.created_us, b.id));
    out
}

/// Where a time lies, and what it needs.
struct Landing {
    lsn: Lsn,
    ts: CommitTs,
    answer: Answer,
}

struct Planner<'a> {
    catalog: &'a Catalog,
    access: &'a Access,
}

impl Planner<'_> {
    async fn plan(&self, target: Target, wanted: Option<TimelineId>) -> Result<RestorePlan> {
        let timeline = choose_timeline(self.catalog, wanted)?;
        let history = lineage(&self.catalog.timelines, timeline)?;
        let bases = bases(self.catalog, &history);
        let (Some(oldest), Some(newest)) = (bases.first().copied(), bases.last().copied()) else {
            return Err(Error::NoBase { timeline });
        };
        let window = self.window(&history, oldest, newest).await?;
        let before = || Error::BeforeWindow { target: target.to_string(), window };
        let after = || Error::AfterArchive { target: target.to_string(), window };
        let (base, landing) = match target {
            Target::Latest => {
                whole(cover(self.catalog, &history, newest.at.lsn, Lsn::MAX))?;
                let landing = Landing { lsn: window.to.0, ts: window.to.1, answer: Answer::EndOfArchive };
                (newest, landing)
            }
            Target::Lsn(lsn) if lsn > window.to.0 => {
                return Err(jump(&history, lsn).unwrap_or_else(after));
            }
            Target::Lsn(lsn) => {
                let base = bases.iter().rfind(|b| b.at.lsn <= lsn).copied().ok_or_else(before)?;
                if let Some(error) = jump(&history, lsn) {
                    return Err(error);
                }
                let path = whole(cover(self.catalog, &history, base.at.lsn, lsn))?;
                let ts = match path.last() {
                    Some(piece) => self.end_ts(piece).await?,
                    None => base.at.ts,
                };
                (base, Landing { lsn, ts, answer: Answer::Exact })
            }
            Target::Time(ts) if ts > window.to.1 => return Err(after()),
            Target::Time(ts) => {
                let base = bases.iter().rfind(|b| b.at.ts <= ts).copied().ok_or_else(before)?;
                let next = bases.iter().find(|b| b.at.ts > ts).copied();
                (base, self.locate(&history, base, next, ts).await?)
            }
        };
        self.finish(target, timeline, &history, base, &landing)
    }

    fn finish(
        &self,
        target: Target,
        timeline: TimelineId,
        history: &[Stretch],
        base: &BaseDoc,
        landing: &Landing,
    ) -> Result<RestorePlan> {
        let pieces = whole(cover(self.catalog, history, base.at.lsn, landing.lsn))?;
        let landing_timeline = pieces.last().map_or(base.timeline, |p| p.name.timeline);
        let newest = self.catalog.timelines.values().max_by_key(|d| d.created_us).map(|d| d.timeline);
        Ok(RestorePlan {
            url: self.catalog.url.clone(),
            cluster: self.catalog.repo.cluster,
            target: target.to_string(),
            timeline,
            landing_timeline,
            landing_lsn: landing.lsn,
            landing_ts: landing.ts,
            answer: landing.answer,
            base: base.clone(),
            records: pieces.iter().map(|p| p.to.0 - p.from.0 + 1).sum(),
            pieces,
            next_epoch: self.catalog.highest_epoch().next(),
            newer_timeline: newest.filter(|n| *n != timeline),
            problems: self.catalog.problems.clone(),
        })
    }

    async fn window(&self, history: &[Stretch], oldest: &BaseDoc, newest: &BaseDoc) -> Result<Window> {
        let last = cover(self.catalog, history, oldest.at.lsn, Lsn::MAX).pieces.pop();
        let to = match last {
            Some(piece) if piece.to > newest.at.lsn => (piece.to, self.end_ts(&piece).await?),
            _ => (newest.at.lsn, newest.at.ts),
        };
        Ok(Window { from: (oldest.at.lsn, oldest.at.ts), to })
    }

    async fn header(&self, name: &WalName) -> Result<WalHeader> {
        let object = ObjectName::Wal(*name);
        let head = self.access.get_range(&object, 0..HEADER_BYTES as u64).await?;
        let header = WalHeader::decode(&head).map_err(|e| Error::damaged(object, e))?;
        if header.name != *name || header.cluster != self.catalog.repo.cluster {
            return Err(Error::damaged(object, "its header names another range or cluster"));
        }
        Ok(header)
    }

    /// LSN → commit timestamp of the used part of an object.
    async fn times(&self, piece: &Piece) -> Result<BTreeMap<Lsn, CommitTs>> {
        let object = fetch_object(self.access, &piece.name).await?;
        let mut times = BTreeMap::new();
        object.each::<Error>(|r| {
            if (piece.from..=piece.to).contains(&r.header.lsn) {
                times.insert(r.header.lsn, r.header.ts);
            }
            Ok(())
        })?;
        Ok(times)
    }

    /// Commit timestamp of the last record used of an object.
    async fn end_ts(&self, piece: &Piece) -> Result<CommitTs> {
        if piece.to == piece.name.last {
            return Ok(self.header(&piece.name).await?.max_ts);
        }
        let times = self.times(piece).await?;
        let ts = times.get(&piece.to).copied();
        ts.ok_or_else(|| Error::damaged(piece.name, format!("it does not hold LSN {}", piece.to)))
    }

    /// The last record at or before `ts`, which lies between `base` and the end of the archive. `next` is the first base
    /// behind that time.
    async fn locate(
        &self,
        history: &[Stretch],
        base: &BaseDoc,
        next: Option<&BaseDoc>,
        ts: CommitTs,
    ) -> Result<Landing> {
        let path = cover(self.catalog, history, base.at.lsn, Lsn::MAX);
        // Timestamps grow along a history: the first object that ends at or after `ts` decides.
        let (mut low, mut high) = (0, path.pieces.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let Some(piece) = path.pieces.get(middle) else { break };
            if self.end_ts(piece).await? < ts { low = middle + 1 } else { high = middle }
        }
        let before = match low.checked_sub(1).and_then(|i| path.pieces.get(i)) {
            Some(piece) => (piece.to, self.end_ts(piece).await?),
            None => (base.at.lsn, base.at.ts),
        };
        let Some(piece) = path.pieces.get(low) else {
            return self.behind_all(history, before, next, ts);
        };
        let times = self.times(piece).await?;
        let at = times.iter().rfind(|(_, t)| **t <= ts).map_or(before, |(l, t)| (*l, *t));
        // The record after the landing position must be known, too: else the true answer may lie in a hole.
        let next = times.iter().find(|(_, t)| **t > ts).map(|(l, t)| (*l, *t));
        if let Some((next_lsn, _)) = next {
            let hole = path.missing.iter().filter(|m| m.last < next_lsn);
            let missing: Vec<_> = hole.copied().collect();
            if !missing.is_empty() {
                return Err(Error::Gap { missing });
            }
        }
        let answer = match next {
            Some((_, next_ts)) if at.1 < ts => Answer::Idle { next_ts },
            _ => Answer::Exact,
        };
        Ok(Landing { lsn: at.0, ts: at.1, answer })
    }

    /// Where a time lies that all objects end before: at the end of them only if nothing can have come in between. A base
    /// that is newer tells that the log went on.
    fn behind_all(
        &self,
        history: &[Stretch],
        before: (Lsn, CommitTs),
        next: Option<&BaseDoc>,
        ts: CommitTs,
    ) -> Result<Landing> {
        let answer = match next {
            Some(next) if before.1 < ts => {
                whole(cover(self.catalog, history, before.0, next.at.lsn.prev()))?;
                Answer::Idle { next_ts: next.at.ts }
            }
            _ => Answer::Exact,
        };
        Ok(Landing { lsn: before.0, ts: before.1, answer })
    }
}

fn whole(path: Path) -> Result<Vec<Piece>> {
    if path.missing.is_empty() { Ok(path.pieces) } else { Err(Error::Gap { missing: path.missing }) }
}

/// The refusal for an LSN between the end of one stretch and the start of the next.
fn jump(history: &[Stretch], lsn: Lsn) -> Option<Error> {
    history.windows(2).find_map(|pair| match pair {
        [older, younger] if lsn > older.to && lsn < younger.from => {
            Some(Error::InJump { lsn, timeline: younger.timeline, fork: older.to, start: younger.from })
        }
        _ => None,
    })
}

/// Reads and checks a whole log object; its header must say what its name says.
pub(crate) async fn fetch_object(access: &Access, name: &WalName) -> Result<WalObject> {
    let object = ObjectName::Wal(*name);
    let bytes = access.get(&object, OBJECT_BYTES_MAX as u64).await?;
    let name = *name;
    crate::base::blocking(move || {
        let decoded = WalObject::decode(&bytes).map_err(|e| Error::damaged(object, e))?;
        if decoded.header.name != name {
            return Err(Error::damaged(object, "its header names another range"));
        }
        Ok(decoded)
    })
    .await
}
