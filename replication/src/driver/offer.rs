//! The primary's word to a replica that is to give its data up: whether a seed is to be had, and how large.
//!
//! Owns: what must hold at the primary. Never: the transfer (`seed`), what must hold at the replica (`mend`), nor who is
//! being seeded (`grant`).

use std::sync::Arc;

use super::grant::NOT_PRIMARY;
use super::{Driver, SeedOffer, SeedRequest, blocking};

impl Driver {
    /// What a seed for that replica would be now; if it asks for it, from then on nobody else is granted one until it is
    /// back.
    ///
    /// # Errors
    /// In words, with what to do: this node is not the primary, or cannot tell, or not ready, or of another cluster, or has damaged
    /// tables; another replica is being seeded; too few nodes would be left that hold what is committed.
    pub async fn offer_seed(self: &Arc<Self>, request: SeedRequest) -> Result<SeedOffer, String> {
        let leads = self.core().leads();
        let (Some(store), Some(epoch)) = (self.store().cloned(), leads) else {
            return Err(NOT_PRIMARY.into());
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
        let from = Arc::clone(&store);
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
        // Last, and with nothing to wait for behind it: a grant stands on what holds now.
        self.can_spare(&request, &store, epoch).await?;
        if request.grant {
            self.grant(&request, store.committed().get())?;
        }
        Ok(SeedOffer { bytes })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use mainstay_engine::batch::Batch;
    use mainstay_engine::clock::SimClock;
    use mainstay_engine::fs::sim::SimFs;
    use mainstay_engine::store::{Durability, Identity, Store};
    use mainstay_engine::{CommitTs, Env, Epoch, Lsn, Options};
    use tokio::sync::watch;

    use super::super::fake::Nobody;
    use super::super::{PeerProgress, Settings};
    use super::*;
    use crate::core::{Effect, Event, Reigns, Sealed, Terms};
    use crate::rule::{Mode, NodeId, Rule};

    const REPLICAS: [NodeId; 2] = [NodeId(2), NodeId(3)];

    /// The primary of three with some data, all of which both replicas have acknowledged; their streams are up.
    fn primary(mode: Mode) -> (Arc<Driver>, Epoch) {
        let (fs, dir) = (SimFs::new(1), Path::new("data"));
        fs.prepare_dir(dir).unwrap();
        let (env, _) = Env::sim(fs, SimClock::new(CommitTs(1)), 1);
        let options = Options::tiny();
        let store = Arc::new(Store::create(env.clone(), dir, &options, Identity::random(&env)).unwrap());
        let mut batch = Batch::new();
        batch.put(b"k", b"v").unwrap();
        store.write(&batch, &[], Durability::Synced).unwrap();
        let settings = Settings {
            me: NodeId(1),
            configured_primary: NodeId(1),
            rule: Rule::new(mode, [1, 2, 3].map(NodeId).to_vec(), NodeId(1), 1).unwrap(),
            dir: dir.to_owned(),
            options,
            client_addr: String::new(),
        };
        let node = Driver::new(env, settings, Arc::new(Nobody::default())).unwrap();
        node.store.set(Arc::clone(&store)).unwrap();
        let (last, commit) = node.end_of_log();
        let step = |event| node.step(event).unwrap();
        step(Event::Promote { last, commit, speaks: true, terms: Terms::default() });
        let epoch = node.promise().sealed;
        for replica in REPLICAS {
            let sealed = Sealed { node: replica, last, commit, speaks: true, reigns: Reigns::default() };
            step(Event::SealGranted { epoch, sealed });
        }
        let Some(Effect::StartEpoch { rule, .. }) = step(Event::SealsIn).pop() else { panic!("not promoted") };
        node.core().set_rule(rule);
        let start = store.append_epoch_start(epoch).unwrap().lsn;
        store.log().sync_to(start).unwrap();
        step(Event::EpochStarted { epoch, start });
        step(Event::Durable(start));
        for replica in REPLICAS {
            step(Event::Ack { node: replica, epoch, durable: start, round: 0 });
            let progress = PeerProgress { connected: true, durable: start, ..PeerProgress::default() };
            node.peers.lock().unwrap().insert(replica, progress);
        }
        store.apply_committed().unwrap();
        assert_eq!(store.applied().get(), start);
        (node, epoch)
    }

    /// These replicas answer rounds from now on, until the answer is dropped.
    fn answering(node: &Arc<Driver>, epoch: Epoch, who: &'static [NodeId]) -> super::super::AbortOnDrop {
        let (node, mut asked): (_, watch::Receiver<u64>) = (Arc::clone(node), node.rounds.asked.subscribe());
        let answers = tokio::spawn(async move {
            while asked.changed().await.is_ok() {
                let round = *asked.borrow_and_update();
                for replica in who {
                    node.step(Event::Ack { node: *replica, epoch, durable: Lsn(1), round }).unwrap();
                }
            }
        });
        super::super::AbortOnDrop(answers.abort_handle())
    }

    fn asks(node: &Driver, accept_fewer: bool) -> SeedRequest {
        let cluster = node.identity().cluster;
        SeedRequest { cluster, node: NodeId(3), incarnation: 4, grant: true, accept_fewer }
    }

    /// Its power is gone, and its stream looks well for some seconds more.
    #[tokio::test(start_paused = true)]
    async fn a_copy_counts_only_where_it_answers_now() {
        for mode in [Mode::Quorum, Mode::Async] {
            let (node, epoch) = primary(mode);
            let only_who_asks = answering(&node, epoch, &[NodeId(3)]);
            let refused = node.offer_seed(asks(&node, false)).await.unwrap_err();
            assert!(refused.contains("node 1 alone would hold"), "{mode}: {refused}");
            assert!(node.one_at_a_time(NodeId(2)).is_ok(), "{mode}: nothing was granted");
            node.offer_seed(asks(&node, true)).await.unwrap();
            drop(only_who_asks);
            let _both = answering(&node, epoch, &REPLICAS);
            node.offer_seed(asks(&node, false)).await.unwrap();
            assert!(node.one_at_a_time(NodeId(2)).is_err(), "{mode}");
        }
    }

    /// Nobody answers: perhaps they follow another one by now, who would have to do with fewer copies than it counts on.
    #[tokio::test(start_paused = true)]
    async fn a_primary_that_cannot_tell_whether_it_leads_grants_nothing() {
        let (node, _) = primary(Mode::Quorum);
        for accept_fewer in [false, true] {
            let refused = node.offer_seed(asks(&node, accept_fewer)).await.unwrap_err();
            assert!(refused.contains("cannot tell whether it is still the primary"), "{refused}");
        }
        assert!(node.one_at_a_time(NodeId(2)).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_primary_that_is_deposed_while_it_looks_grants_nothing() {
        let (node, epoch) = primary(Mode::Quorum);
        let mut asked = node.rounds.asked.subscribe();
        let this = Arc::clone(&node);
        tokio::spawn(async move {
            asked.changed().await.unwrap();
            this.hear_of(epoch.next(), Some(NodeId(2))).unwrap();
        });
        let refused = node.offer_seed(asks(&node, true)).await.unwrap_err();
        assert!(refused.contains("not the primary any more"), "{refused}");
        assert!(node.one_at_a_time(NodeId(2)).is_ok());
    }
}
