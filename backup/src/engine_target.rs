//! The engine as the target of a restore.
//!
//! Owns: handing verified tables, manifest and records to `engine::restore`. Never: a check of its
//! own; the caller has made them, and the engine makes its own.

use mainstay_engine::record::{Record, TimelineStart};
use mainstay_engine::restore::Builder;
use mainstay_engine::store::Identity;
use mainstay_engine::{CommitTs, Env, Epoch, Error, Options, Position, Result};

use crate::restore::{ReplayBase, ReplayFactory, ReplayTarget};

/// Builds an engine store.
#[derive(Clone, Debug, Default)]
pub struct EngineFactory {
    /// Sizes of the store to be built.
    pub options: Options,
}

struct EngineTarget(Builder);

impl ReplayFactory for EngineFactory {
    fn create(self, env: &Env, base: ReplayBase<'_>) -> Result<Box<dyn ReplayTarget>> {
        let builder = Builder::create(env.clone(), base.dir, &self.options, Some(base.manifest))?;
        Ok(Box::new(EngineTarget(builder)))
    }
}

impl ReplayTarget for EngineTarget {
    fn replay(&mut self, record: &Record<'_>) -> Result<()> {
        self.0.replay(record)
    }

    fn position(&self) -> Position {
        self.0.position()
    }

    fn finish(self: Box<Self>, start: TimelineStart, epoch: Epoch, _wall: CommitTs) -> Result<Position> {
        let identity = Identity { cluster: start.cluster, timeline: start.timeline };
        let (landed, first) = self.0.finish(identity, start.parent, epoch)?;
        if landed.lsn == start.fork {
            Ok(first)
        } else {
            Err(Error::Stopped(format!("the store ended at LSN {}, the restore at {}", landed.lsn, start.fork)))
        }
    }
}
