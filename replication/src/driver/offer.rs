//! The primary's word to a replica that is to give its data up: whether a seed is to be had, and how large.
//!
//! Owns: what must hold at the primary. Never: the transfer (`seed`), what must hold at the replica (`mend`), nor who is
//! being seeded (`grant`).

use std::sync::Arc;

use super::{Driver, SeedOffer, SeedRequest, blocking};

impl Driver {
    /// What a seed for that replica would be now; if it asks for it, from then on nobody else is granted one until it is
    /// back.
    ///
    /// # Errors
    /// In words, with what to do: this node is not the primary, or not ready, or of another cluster, or has damaged
    /// tables; another replica is being seeded; too few nodes would be left that hold what is committed.
    pub async fn offer_seed(self: &Arc<Self>, request: SeedRequest) -> Result<SeedOffer, String> {
        let (Some(store), Some(_)) = (self.store().cloned(), self.core().leads()) else {
            return Err("it is not the primary any more; `mainstay status` shows who is".into());
        };
        let own = store.identity().cluster;
        if request.cluster != own {
            return Err(format!("it belongs to cluster {own}, not {}; check --peers", request.cluster));
        }
        if !self.settings.rule.voters().contains(&request.node) {
            return Err(format!("node {} is not among its peers; check --peers", request.node));
        }
        let begun = self.role().borrow().epoch_start;
        if store.applied().get() < begun {
            return Err(
                "it is not ready: too few nodes are there to commit; `mainstay status` shows who is away".into()
            );
        }
        self.one_at_a_time(request.node)?;
        let (from, committed) = (Arc::clone(&store), store.committed().get());
        // A table's facts may wait for the disk.
        let facts = blocking(move || {
            let tree = from.tree();
            let tables: u64 = tree.pinned_tables().tables.iter().map(|t| t.bytes).sum();
            Ok((tree.damaged_tables(), tables + tree.stats().memtable_bytes))
        });
        let (damaged, bytes) = facts.await.map_err(|e| e.to_string())?;
        if let Some(table) = damaged.first() {
            let others = match damaged.len() {
                1 => String::new(),
                n => format!(" (and {} more)", n - 1),
            };
            return Err(format!(
                "its table {:032x} is damaged{others}, and a seed has all tables: repair it first (`mainstay repair --node \
                 {}`), or promote a node that is whole",
                table.file.id, self.settings.client_addr
            ));
        }
        if !request.accept_fewer {
            self.enough_without(request.node, &store).await?;
        }
        if request.grant {
            self.grant(&request, committed)?;
        }
        Ok(SeedOffer { bytes })
    }
}
