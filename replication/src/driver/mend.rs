//! What a node with a damaged disk asks of the others: one table, or to be seeded anew.
//!
//! Owns: both ends of a table's transfer, and when a replica may give its data up. Never: a table whose hash does not
//! match, and never data given up by a primary, or by a replica that nobody could seed or that has no room for a seed.

mod transfer;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mainstay_engine::fs::OpenMode;
use mainstay_engine::store::final_if_sync;
use mainstay_engine::table::TableFile;
use mainstay_engine::{ClusterId, Error, Result};
use tokio::sync::mpsc;

use super::outgoing::PATIENCE;
use super::{Driver, RoleName, SeedOffer, SeedRequest, TransportError, blocking};
use crate::core::Promise;
use crate::rule::NodeId;

pub use transfer::Patience;

/// Silence after which a transfer is given up.
const PART_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for the primary's word on a seed.
const OFFER_TIMEOUT: Duration = Duration::from_secs(5);

impl Driver {
    /// Fetches a table with the same bytes from whichever peer has it into the new file `to`, synced. The peer it came
    /// from, or why each of them did not give it; then there is no file.
    ///
    /// # Errors
    /// Those of writing `to`; `Stopped` after a failed sync, which ends the process.
    pub async fn fetch_table(
        self: &Arc<Self>,
        table: &TableFile,
        to: &Path,
    ) -> Result<std::result::Result<NodeId, Vec<TransportError>>> {
        let mut refused = Vec::new();
        for peer in self.others() {
            match self.fetch_table_from(peer, table, to).await {
                Ok(Ok(())) => return Ok(Ok(peer)),
                Ok(Err(e)) => {
                    refused.push(e);
                    self.remove(to).await?;
                }
                Err(e) => {
                    let e = final_if_sync(&self.env, e);
                    self.remove(to).await?;
                    return Err(e);
                }
            }
        }
        Ok(Err(refused))
    }

    async fn remove(self: &Arc<Self>, path: &Path) -> Result<()> {
        let (this, path) = (Arc::clone(self), path.to_owned());
        blocking(move || {
            let there = this.env.fs.exists(&path).map_err(|e| Error::io("look for", &path, e))?;
            if there { this.env.fs.remove_file(&path).map_err(|e| Error::io("remove", &path, e)) } else { Ok(()) }
        })
        .await
    }

    async fn fetch_table_from(
        self: &Arc<Self>,
        peer: NodeId,
        table: &TableFile,
        to: &Path,
    ) -> Result<std::result::Result<(), TransportError>> {
        let cluster = self.identity().cluster;
        let failed = |what: &str| Ok(Err(TransportError { node: peer, what: what.to_owned() }));
        let asked = self.transport.fetch_table(peer, cluster, table.id, table.blake3);
        let parts = match tokio::time::timeout(PART_TIMEOUT, asked).await {
            Ok(Ok(parts)) => parts,
            Ok(Err(e)) => return Ok(Err(e)),
            Err(_) => return failed("no answer in time"),
        };
        let (this, path) = (Arc::clone(self), to.to_owned());
        let file =
            blocking(move || this.env.fs.open(&path, OpenMode::CreateNew).map_err(|e| Error::io("create", &path, e)))
                .await?;
        let patience = Patience::new(table.bytes);
        match transfer::receive(parts, patience, table, file, to).await? {
            Ok(()) => Ok(Ok(())),
            Err(why) => failed(&why),
        }
    }

    /// Sends a table of this node to a peer: parts, or at last why no more come. Whether it is whole is for the receiver to see.
    ///
    /// # Errors
    /// In words, when this node has no such table or belongs to another cluster.
    pub async fn serve_table(
        self: &Arc<Self>,
        cluster: ClusterId,
        id: u128,
        blake3: [u8; 32],
    ) -> std::result::Result<mpsc::Receiver<std::result::Result<Vec<u8>, String>>, String> {
        let store = self.store().ok_or("has no data")?;
        if store.identity().cluster != cluster {
            return Err(format!("belongs to cluster {}, not {cluster}", store.identity().cluster));
        }
        let served = transfer::serve(Arc::clone(store), id, blake3, PATIENCE).await.map_err(|e| e.to_string())?;
        served.ok_or_else(|| "has no such table".to_owned())
    }

    /// Gives this node's data up, so that its next life is seeded by the primary: [`Driver::run`] ends with
    /// `Ended::Reseed`. Returns the primary. With `accept_fewer` also when without this node too few hold what is committed.
    ///
    /// # Errors
    /// In words, when this node is no replica that follows a primary, when that would give no seed, or when there is no
    /// room for one. Nothing was changed then.
    pub async fn reseed(self: &Arc<Self>, accept_fewer: bool) -> std::result::Result<NodeId, String> {
        // No promotion begins meanwhile, nor afterwards.
        let _one = self.promoting.lock().await;
        let promised = self.promise();
        let view = self.role().borrow().clone();
        match (view.role, view.trouble) {
            (RoleName::Primary, _) => {
                return Err("this node is the primary; promote another one first, then it can be seeded anew".into());
            }
            (RoleName::Replica, None) => {}
            (RoleName::Replica, Some(trouble)) => return Err(format!("this node follows no primary: {trouble}")),
            (role, _) => return Err(format!("this node is {}, not a replica that follows a primary", role.as_str())),
        }
        let primary = view.primary.ok_or("this node knows no primary that could seed it")?;
        // Word of the primary itself, now: what is set aside must be had from somebody, and there must be room for it.
        let request = SeedRequest {
            cluster: self.identity().cluster,
            node: self.settings.me,
            incarnation: self.incarnation(),
            grant: false,
            accept_fewer,
        };
        let offer = self.ask_for_seed(primary, request).await?;
        self.has_room(offer).await?;
        // From this answer on nobody else gets one.
        self.ask_for_seed(primary, SeedRequest { grant: true, ..request }).await?;
        self.give_up(primary, promised).await?;
        Ok(primary)
    }

    /// Gives the data up, unless something else was promised since: then whoever was promised it may count on this
    /// data, and the primary that granted the seed may be none.
    async fn give_up(self: &Arc<Self>, primary: NodeId, promised: Promise) -> std::result::Result<(), String> {
        let this = Arc::clone(self);
        let same = blocking(move || {
            // No promise comes between.
            let _gate = this.gate();
            let now = this.promise();
            let same = (now.sealed, now.primary) == (promised.sealed, promised.primary);
            if same {
                tracing::warn!(primary = primary.0, "this node's data is given up on request; it will be seeded anew");
                this.giving_up.send_replace(true);
            }
            Ok(same)
        });
        if same.await.map_err(|e| e.to_string())? {
            return Ok(());
        }
        Err(format!(
            "another promotion began while node {primary}, the primary, was asked for a seed; nothing was given up. See \
             with `mainstay status` who leads, then try again"
        ))
    }

    async fn ask_for_seed(
        self: &Arc<Self>,
        primary: NodeId,
        request: SeedRequest,
    ) -> std::result::Result<SeedOffer, String> {
        match tokio::time::timeout(OFFER_TIMEOUT, self.transport.offer_seed(primary, request)).await {
            Ok(Ok(offer)) => Ok(offer),
            Ok(Err(e)) => Err(format!("node {primary}, the primary, gives no seed: {}", e.what)),
            Err(_) => {
                Err(format!("node {primary}, the primary, does not answer; without it nobody can seed this node"))
            }
        }
    }

    /// Whether a seed has room beside what is set aside, and the store can then go on.
    async fn has_room(self: &Arc<Self>, offer: SeedOffer) -> std::result::Result<(), String> {
        let this = Arc::clone(self);
        // As elsewhere, a file system that does not tell is taken to have room.
        let free = blocking(move || Ok(this.env.fs.free_bytes(&this.settings.dir).unwrap_or(u64::MAX)));
        let free = free.await.map_err(|e| e.to_string())?;
        let (options, mib) = (&self.settings.options, |bytes: u64| bytes.div_ceil(1 << 20));
        let beside = options.disk_reserve_bytes.saturating_add(options.segment_bytes);
        if free >= offer.bytes.saturating_add(beside) {
            return Ok(());
        }
        Err(format!(
            "a seed has {} MiB and {} MiB are kept free, but {} has only {} MiB left, and what is there now is kept: make \
             room, or stop the node, move its data (all but PROMISE) to another disk yourself, and start it",
            mib(offer.bytes),
            mib(beside),
            self.settings.dir.display(),
            free >> 20
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use mainstay_engine::batch::Batch;
    use mainstay_engine::clock::SimClock;
    use mainstay_engine::fs::sim::{FaultKind, OpClass, SimFs};
    use mainstay_engine::store::{Durability, Identity, Store};
    use mainstay_engine::{CommitTs, Env, Epoch, Options};

    use super::super::fake::Nobody;
    use super::super::{Ended, RoleView, Settings, promise_file};
    use super::*;
    use crate::rule::{Mode, Rule};

    const MIB: u64 = 1 << 20;

    /// A replica with data, on a disk with so many bytes free, and what its primary answers.
    fn replica(free: u64, answer: std::result::Result<SeedOffer, String>) -> (Arc<Driver>, Arc<Nobody>) {
        let (fs, dir) = (SimFs::new(1), Path::new("data"));
        fs.prepare_dir(dir).unwrap();
        let (env, _) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1)), 1);
        let options = Options { segment_bytes: MIB, disk_reserve_bytes: 2 * MIB, ..Options::tiny() };
        let store = Store::create(env.clone(), dir, &options, Identity::random(&env)).unwrap();
        let mut batch = Batch::new();
        batch.put(b"k", b"v").unwrap();
        store.write(&batch, &[], Durability::Synced).unwrap();
        let settings = Settings {
            me: NodeId(3),
            configured_primary: NodeId(1),
            rule: Rule::new(Mode::Quorum, [1, 2, 3].map(NodeId).to_vec(), NodeId(1), 1).unwrap(),
            dir: dir.to_owned(),
            options,
            client_addr: String::new(),
        };
        let peers = Arc::new(Nobody::default());
        peers.offers.lock().unwrap().extend([answer.clone(), answer]);
        let driver = Driver::new(env, settings, Arc::clone(&peers) as Arc<_>).unwrap();
        driver.store.set(Arc::new(store)).unwrap();
        driver.role.send_replace(RoleView { role: RoleName::Replica, primary: Some(NodeId(1)), ..RoleView::default() });
        fs.set_capacity(fs.allocated() + free);
        (driver, peers)
    }

    #[tokio::test]
    async fn data_is_given_up_only_for_a_seed_that_the_primary_offers_and_that_has_room() {
        let offer = |bytes| Ok(SeedOffer { bytes });
        // Three MiB are kept free for a segment and the reserve.
        for (free, answer, says) in [
            (u64::MAX >> 1, Err("its table 7 is damaged".to_owned()), Some("gives no seed: its table 7 is damaged")),
            (
                13 * MIB - 1,
                offer(10 * MIB),
                Some("a seed has 10 MiB and 3 MiB are kept free, but data has only 12 MiB"),
            ),
            (13 * MIB, offer(10 * MIB), None),
            (13 * MIB, offer(u64::MAX), Some("make room")),
        ] {
            let (node, peers) = replica(free, answer.clone());
            let got = node.reseed(false).await;
            assert_eq!(got.is_ok(), says.is_none(), "{answer:?}: {got:?}");
            assert_eq!(*node.giving_up.borrow(), says.is_none(), "{answer:?}");
            if let Some(says) = says {
                let why = got.unwrap_err();
                assert!(why.contains(says), "{why}");
            }
            let asked: Vec<_> = peers.asked.lock().unwrap().iter().map(|r| (r.node, r.grant)).collect();
            let only_asks = [(NodeId(3), false)];
            // Granted is what has room: who is refused must not keep others from a seed.
            let grants = [(NodeId(3), false), (NodeId(3), true)];
            assert_eq!(asked, if says.is_none() { &grants[..] } else { &only_asks[..] }, "{answer:?}");
        }
    }

    /// Another peer's copy would go to the same disk.
    #[tokio::test]
    async fn a_failed_sync_of_a_fetched_table_is_final() {
        for kind in [FaultKind::Eio, FaultKind::NoSpace] {
            let (fs, dir) = (SimFs::new(1), Path::new("data"));
            fs.prepare_dir(dir).unwrap();
            let (env, fatal) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1)), 1);
            let settings = Settings {
                me: NodeId(1),
                configured_primary: NodeId(1),
                rule: Rule::new(Mode::Quorum, [1, 2, 3].map(NodeId).to_vec(), NodeId(1), 1).unwrap(),
                dir: dir.to_owned(),
                options: Options::tiny(),
                client_addr: String::new(),
            };
            let peers = Arc::new(Nobody::default());
            let driver = Driver::new(env, settings, Arc::clone(&peers) as Arc<_>).unwrap();
            for _ in 0..2 {
                let (tx, rx) = mpsc::channel(1);
                tx.try_send(Ok(b"a table".to_vec())).unwrap();
                peers.tables.lock().unwrap().push(rx);
            }
            let table = TableFile { id: 7, bytes: 7, blake3: *blake3::hash(b"a table").as_bytes(), entries: 1 };
            fs.fail_nth(OpClass::SyncData, 1, kind);
            let fetched = driver.fetch_table(&table, Path::new("data/copy")).await;
            assert!(matches!(fetched, Err(Error::Stopped(_))), "{fetched:?}");
            let told = fatal.messages();
            assert!(told.len() == 1 && told[0].contains("cannot sync data/copy"), "{told:?}");
            assert_eq!(peers.tables.lock().unwrap().len(), 1, "nobody else was asked");
        }
    }

    /// Whoever was promised counts on what is here.
    #[tokio::test]
    async fn data_is_not_given_up_when_another_promotion_began_meanwhile() {
        for primary in [2, 1] {
            let (node, peers) = replica(u64::MAX >> 1, Ok(SeedOffer::default()));
            peers.may_answer.forget_permits(usize::MAX);
            peers.may_answer.add_permits(1);
            let reseeding = tokio::spawn({
                let node = Arc::clone(&node);
                async move { node.reseed(false).await }
            });
            while peers.asked.lock().unwrap().last().is_none_or(|r| !r.grant) {
                tokio::task::yield_now().await;
            }
            node.hear_of(Epoch(7), Some(NodeId(primary))).unwrap();
            peers.may_answer.add_permits(1);
            let refused = reseeding.await.unwrap().unwrap_err();
            assert!(refused.contains("another promotion began"), "{refused}");
            assert!(!*node.giving_up.borrow());
        }
    }

    /// Older data, moved back by mistake, must not testify that there was nothing newer.
    #[tokio::test]
    async fn what_was_given_up_is_owed_by_whatever_takes_its_place() {
        let (node, _) = replica(u64::MAX >> 1, Ok(SeedOffer::default()));
        let end = node.end_of_log().0.lsn;
        assert!(end > mainstay_engine::Lsn::ZERO);
        node.reseed(false).await.unwrap();
        let (_stop, told) = tokio::sync::watch::channel(false);
        assert_eq!(Arc::clone(&node).run(told).await.unwrap(), Ended::Reseed);
        // The doors are still open: the data that goes must not pay for what comes.
        assert!(node.speaks().unwrap());
        let (_, life) = promise_file::read(&node.env, &node.settings.dir).unwrap();
        assert_eq!(life.owes, end);
    }
}
