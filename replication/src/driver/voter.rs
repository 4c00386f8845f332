//! The voter's side: what a node answers a candidate, and whether its word about its log counts.
//!
//! Owns: the order of promise, reading the log's end, and syncing it. Never: a word for data that was
//! replaced, is not open yet, or was seeded and has not caught up with what the node may have held.

use std::sync::Arc;

use mainstay_engine::{ClusterId, Epoch, Lsn, Result};

use super::{Driver, SealReply, SealRequest, blocking, promise_file};
use crate::core::{Effect, Event, SealAnswer};

impl Driver {
    /// Whether a node without data never held any: a wiped disk, or data set aside, may have held the
    /// one copy that counts, and then the candidate must do without this node's word.
    pub(super) fn never_held_data(&self) -> bool {
        // A promise on this disk means that the disk was not replaced since the node sealed.
        self.promise().sealed > Epoch(0) && !self.life().held
    }

    /// Writes down that this node has data, or may have had. Blocks on the disk the first time.
    pub(super) fn hold(&self) -> Result<()> {
        self.change_life(|life| life.held = true)
    }

    fn change_life(&self, change: impl FnOnce(&mut promise_file::Life)) -> Result<()> {
        let core = self.core();
        let mut life = self.life();
        let mut new = *life;
        change(&mut new);
        if new != *life {
            promise_file::write(&self.env, &self.settings.dir, core.promise(), new)?;
            *life = new;
        }
        Ok(())
    }

    /// Whether this node's word about its log counts. Blocks on the disk the first time a seed has
    /// caught up.
    pub(super) fn speaks(&self) -> Result<bool> {
        let Some(store) = self.store() else {
            // Data that is not open yet cannot be spoken for.
            return Ok(self.found.is_none() && self.never_held_data());
        };
        let durable = store.durable().get();
        if self.life().owes > durable {
            return Ok(false);
        }
        self.change_life(|life| {
            // Data that is being given up pays nothing any more: what takes its place owes it.
            if life.owes <= durable && !*self.giving_up.borrow() {
                life.owes = Lsn::ZERO;
            }
        })?;
        Ok(true)
    }

    /// Before other data takes a store's place, and before a seed's looks like one: its word counts from `lsn` on, and not
    /// before what is owed already, to whomever.
    pub(super) fn owe(&self, lsn: Lsn) -> Result<()> {
        self.change_life(|life| life.owes = life.owes.max(lsn))
    }

    /// Answers a candidate. With epoch zero it only says who is here.
    ///
    /// # Errors
    /// A local disk error; the promise was not given then.
    pub async fn serve_seal(self: &Arc<Self>, request: SealRequest) -> Result<SealReply> {
        let this = Arc::clone(self);
        blocking(move || this.answer(request)).await
    }

    fn answer(&self, request: SealRequest) -> Result<SealReply> {
        let identity = self.identity();
        let promise = self.promise();
        let mut reply = SealReply {
            epoch: promise.sealed,
            primary: promise.primary,
            cluster: identity.cluster,
            timeline: identity.timeline,
            ..SealReply::default()
        };
        let foreign =
            request.cluster != ClusterId(0) && identity.cluster != ClusterId(0) && request.cluster != identity.cluster;
        let opening = self.found.is_some() && self.store().is_none();
        let votes = self.settings.rule.voters().contains(&request.candidate);
        if foreign || request.epoch == Epoch(0) || !votes || opening {
            (reply.last, reply.commit) = self.end_of_log();
            self.sync_to(reply.last.lsn)?;
            reply.speaks = !foreign && self.speaks()?;
            reply.reigns = promise.reigns;
            return Ok(reply);
        }
        // Asked before the promise is given: afterwards even a replaced disk has one.
        let speaks = self.speaks()?;
        if self.store().is_none() && !speaks && !request.fresh {
            // The promise below must not pass for one that was given before data was ever held.
            self.hold()?;
        }
        let gate = self.gate();
        let (last, commit) = self.end_of_log();
        let event = Event::SealRequest { epoch: request.epoch, candidate: request.candidate, last, commit };
        let effects = self.step(event)?;
        // Read again behind the promise: a primary's own writers do not pass the gate.
        (reply.last, reply.commit) = self.end_of_log();
        reply.reigns = self.promise().reigns;
        drop(gate);
        self.sync_to(reply.last.lsn)?;
        reply.speaks = speaks;
        for effect in effects {
            if let Effect::Answer(answer) = effect {
                match answer {
                    SealAnswer::Granted { .. } => (reply.granted, reply.epoch) = (true, request.epoch),
                    SealAnswer::Refused { epoch, primary } => (reply.epoch, reply.primary) = (epoch, primary),
                }
            }
        }
        Ok(reply)
    }
}

#[cfg(test)]
mod tests {
    use mainstay_engine::Env;

    use super::super::Settings;
    use super::super::fake::Nobody;
    use super::*;
    use crate::rule::{Mode, NodeId, Rule};

    fn driver(dir: &std::path::Path) -> Arc<Driver> {
        let rule = Rule::new(Mode::Quorum, [1, 2, 3].map(NodeId).to_vec(), NodeId(1), 1).unwrap();
        let settings = Settings {
            me: NodeId(3),
            configured_primary: NodeId(1),
            rule,
            dir: dir.to_owned(),
            options: mainstay_engine::Options::default(),
            client_addr: String::new(),
        };
        Driver::new(Env::real(), settings, Arc::new(Nobody::default())).unwrap()
    }

    fn seal(epoch: u64, candidate: u64, fresh: bool) -> SealRequest {
        SealRequest { cluster: ClusterId(7), epoch: Epoch(epoch), candidate: NodeId(candidate), fresh }
    }

    /// A replaced disk seals, and never says that it held nothing: not when asked again, not after a
    /// restart, although by then its promise is on the disk.
    #[test]
    fn a_replaced_disk_promises_but_does_not_speak() {
        let dir = tempfile::tempdir().unwrap();
        for (epoch, restart) in [(5, false), (5, false), (6, true), (7, false)] {
            let node = driver(dir.path());
            let reply = node.answer(seal(epoch, 2, false)).unwrap();
            assert!(reply.granted && !reply.speaks, "epoch {epoch}, restart {restart}: {reply:?}");
            let asked = node.answer(SealRequest::who_is_there(NodeId(1))).unwrap();
            assert!(!asked.speaks, "{asked:?}");
        }
    }

    /// A node that sealed while a cluster was created, and was never seeded, held nothing.
    #[test]
    fn a_voter_of_a_fresh_cluster_speaks_later_on() {
        let dir = tempfile::tempdir().unwrap();
        assert!(driver(dir.path()).answer(seal(1, 1, true)).unwrap().granted);
        let reply = driver(dir.path()).answer(seal(2, 2, false)).unwrap();
        assert!(reply.granted && reply.speaks, "{reply:?}");
        // Once it had data, its absence says nothing, in this life and later ones.
        driver(dir.path()).hold().unwrap();
        assert!(!driver(dir.path()).answer(seal(3, 2, false)).unwrap().speaks);
    }

    /// A seed owes what it may have held before, and speaks again when it has caught up.
    #[test]
    fn a_seed_speaks_when_its_log_has_reached_what_it_owes() {
        use mainstay_engine::batch::Batch;
        use mainstay_engine::store::{Durability, Identity, Store};

        let dir = tempfile::tempdir().unwrap();
        let (env, options) = (Env::real(), mainstay_engine::Options::default());
        let store = Arc::new(Store::create(env.clone(), dir.path(), &options, Identity::random(&env)).unwrap());
        let node = driver(dir.path());
        node.owe(Lsn(2)).unwrap();
        node.store.set(Arc::clone(&store)).unwrap();
        for _ in 0..2 {
            assert!(!node.speaks().unwrap());
            let mut batch = Batch::new();
            batch.put(b"k", b"v").unwrap();
            store.write(&batch, &[], Durability::Synced).unwrap();
        }
        assert!(node.speaks().unwrap());
        let (_, life) = promise_file::read(&node.env, dir.path()).unwrap();
        assert_eq!(life.owes, Lsn::ZERO, "paid, and not asked for again");
    }

    /// A primary that does not know of its end yet may seed a node that acknowledged more to its successor.
    #[test]
    fn a_seed_of_an_older_primary_owes_what_the_data_before_it_held() {
        let dir = tempfile::tempdir().unwrap();
        let node = driver(dir.path());
        node.owe(Lsn(50)).unwrap();
        node.owe(Lsn(7)).unwrap();
        let (_, life) = promise_file::read(&node.env, dir.path()).unwrap();
        assert_eq!(life.owes, Lsn(50));
    }

    /// What was set aside before the data that is missing now would be taken for that.
    #[tokio::test]
    async fn only_data_for_which_something_is_owed_is_named_as_the_way_back() {
        let dir = tempfile::tempdir().unwrap();
        let (env, aside) = (Env::real(), dir.path().join("replaced-5"));
        env.fs.create_dir_all(&aside).unwrap();
        mainstay_engine::fs::write_atomic(&*env.fs, &aside, "IDENTITY", b"of an earlier life").unwrap();
        let node = driver(dir.path());
        let told = || node.role().borrow().trouble.clone().unwrap();
        node.waits_for_a_seed("nobody is there".to_owned()).await.unwrap();
        assert_eq!(told(), "nobody is there");
        node.owe(Lsn(7)).unwrap();
        node.waits_for_a_seed("nobody is there".to_owned()).await.unwrap();
        assert!(told().contains("replaced-5"), "{}", told());
    }
}
