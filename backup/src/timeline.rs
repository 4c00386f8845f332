//! Lines of history: where a timeline comes from, which stretch of which timeline a history is made
//! of, and the create-only documents that say so.
//!
//! Owns: lineage (pure), writing of timeline and fence documents. Never: changing one that exists.

use std::collections::{BTreeMap, BTreeSet};

use mainstay_engine::{Chain, CommitTs, Epoch, Lsn, Position, TimelineId};

use crate::error::{Error, Result};
use crate::repository::access::Access;
use crate::repository::create_document;
pub use crate::repository::documents::Cause;
use crate::repository::documents::{FORMAT, FenceDoc, TimelineDoc};
use crate::repository::names::ObjectName;
use crate::wal_object::Writer;

/// How a timeline began, as the caller knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The timeline it continues; zero for none.
    pub parent: TimelineId,
    /// Last LSN of the parent in this history.
    pub fork_lsn: Lsn,
    /// Chain there, where known.
    pub fork_chain: Option<Chain>,
    /// First LSN of the timeline.
    pub start_lsn: Lsn,
    /// What began it.
    pub cause: Cause,
}

/// A part of one timeline that belongs to a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The timeline.
    pub timeline: TimelineId,
    /// First LSN of the timeline (1 where its document is missing).
    pub from: Lsn,
    /// Last LSN in this history; `Lsn::MAX` for the timeline that still grows.
    pub to: Lsn,
}

/// The stretches of a timeline's history, oldest first.
///
/// # Errors
/// `UnknownTimeline` when a parent's document is missing; `Damaged` when parents form a circle.
pub fn lineage(docs: &BTreeMap<TimelineId, TimelineDoc>, leaf: TimelineId) -> Result<Vec<Stretch>> {
    let (mut out, mut seen) = (Vec::new(), BTreeSet::new());
    let (mut timeline, mut to) = (leaf, Lsn::MAX);
    loop {
        if !seen.insert(timeline) {
            return Err(Error::damaged(ObjectName::Timeline(timeline), "timelines are their own ancestors"));
        }
        let Some(doc) = docs.get(&timeline) else {
            if timeline != leaf {
                let known = docs.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                return Err(Error::UnknownTimeline { timeline, known });
            }
            out.push(Stretch { timeline, from: Lsn(1), to });
            break;
        };
        // A fork below the parent's own start leaves the parent without a part in this history.
        if doc.start_lsn <= to {
            out.push(Stretch { timeline, from: doc.start_lsn, to });
        }
        if doc.parent == TimelineId(0) {
            break;
        }
        (timeline, to) = (doc.parent, doc.fork_lsn.min(to));
    }
    out.reverse();
    Ok(out)
}

/// Writes the timeline's document unless there is one; the first one written stays.
///
/// # Errors
/// The store's; `Damaged` when the document there is of another cluster or timeline.
pub async fn ensure_timeline(access: &Access, writer: &Writer, origin: &Origin, now: CommitTs) -> Result<TimelineDoc> {
    let name = ObjectName::Timeline(writer.timeline);
    let doc = TimelineDoc {
        format: FORMAT,
        cluster: writer.cluster,
        timeline: writer.timeline,
        parent: origin.parent,
        fork_lsn: origin.fork_lsn,
        fork_chain: origin.fork_chain,
        start_lsn: origin.start_lsn,
        created_us: now.0,
        cause: origin.cause,
    };
    let doc = create_document(access, &name, doc.clone()).await?.unwrap_or(doc);
    if (doc.cluster, doc.timeline) != (writer.cluster, writer.timeline) {
        return Err(Error::damaged(name, "it names another cluster or timeline"));
    }
    Ok(doc)
}

/// Writes the fence of `epoch` unless there is one that says the same.
///
/// # Errors
/// `Conflict` when the fence there puts the start of the epoch after `start`, or on another history.
pub async fn ensure_fence(
    access: &Access,
    writer: &Writer,
    epoch: Epoch,
    start: Lsn,
    prev: Position,
    now: CommitTs,
) -> Result<FenceDoc> {
    let name = ObjectName::Fence(writer.timeline, epoch);
    let doc = FenceDoc {
        format: FORMAT,
        cluster: writer.cluster,
        timeline: writer.timeline,
        epoch,
        start_lsn: start,
        prev: prev.into(),
        node: writer.node,
        incarnation: writer.incarnation,
        created_us: now.0,
    };
    let Some(found) = create_document(access, &name, doc.clone()).await? else { return Ok(doc) };
    // Another node may have fenced this epoch before, from further back in the log; never from later.
    let agrees = (found.cluster, found.timeline, found.epoch) == (doc.cluster, doc.timeline, doc.epoch)
        && (found.start_lsn < start
            || (found.start_lsn == start && (found.prev.lsn, found.prev.chain) == (doc.prev.lsn, doc.prev.chain)));
    if agrees { Ok(found) } else { Err(Error::Conflict { object: name.to_string(), url: access.url().to_owned() }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_engine::ClusterId;

    fn docs(list: &[(u64, u64, u64, u64)]) -> BTreeMap<TimelineId, TimelineDoc> {
        let doc = |&(id, parent, fork, start)| {
            let doc = TimelineDoc {
                format: FORMAT,
                cluster: ClusterId(1),
                timeline: TimelineId(id),
                parent: TimelineId(parent),
                fork_lsn: Lsn(fork),
                fork_chain: None,
                start_lsn: Lsn(start),
                created_us: id,
                cause: Cause::Restore,
            };
            (TimelineId(id), doc)
        };
        list.iter().map(doc).collect()
    }

    #[test]
    fn a_history_is_made_of_stretches_up_to_each_fork() {
        let docs = docs(&[(1, 0, 0, 1), (2, 1, 50, 1000), (3, 2, 1010, 2000), (4, 1, 20, 1000)]);
        let stretch = |t, from, to| Stretch { timeline: TimelineId(t), from: Lsn(from), to };
        let expected = [stretch(1, 1, Lsn(50)), stretch(2, 1000, Lsn(1010)), stretch(3, 2000, Lsn::MAX)];
        assert_eq!(lineage(&docs, TimelineId(3)).unwrap(), expected);
        assert_eq!(lineage(&docs, TimelineId(4)).unwrap(), [stretch(1, 1, Lsn(20)), stretch(4, 1000, Lsn::MAX)]);
    }

    #[test]
    fn a_fork_before_its_parent_began_leaves_the_parent_out() {
        let docs = docs(&[(1, 0, 0, 1), (2, 1, 50, 1000), (3, 2, 40, 2000)]);
        let stretch = |t, from, to| Stretch { timeline: TimelineId(t), from: Lsn(from), to };
        assert_eq!(lineage(&docs, TimelineId(3)).unwrap(), [stretch(1, 1, Lsn(40)), stretch(3, 2000, Lsn::MAX)]);
    }

    #[test]
    fn circles_and_missing_parents_are_refused() {
        assert!(matches!(lineage(&docs(&[(1, 2, 5, 9), (2, 1, 5, 9)]), TimelineId(1)), Err(Error::Damaged { .. })));
        assert!(matches!(lineage(&docs(&[(1, 2, 5, 9)]), TimelineId(1)), Err(Error::UnknownTimeline { .. })));
    }
}
