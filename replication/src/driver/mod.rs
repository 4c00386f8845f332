//! The drivers: they carry out the core's effects with a store, a transport and timers.
//!
//! Owns: one node's part in replication, from an empty directory to primary or replica. Never: a
//! decision about epochs, commits or promotion (the core's), nor a wire format (the transport's).

mod candidate;
#[cfg(test)]
mod fake;
mod grant;
mod join;
mod mend;
mod offer;
mod outgoing;
mod promise_file;
mod reads;
mod replica;
mod seed;
mod ship;
mod transport;
mod voter;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use mainstay_engine::log::Slot;
use mainstay_engine::store::{Identity, Store};
use mainstay_engine::{ClusterId, Env, Epoch, Lsn, Options, Position, Result, TimelineId};
use tokio::sync::watch;

pub use candidate::Promoted;
pub use mend::Patience;
#[cfg(any(test, feature = "sim"))]
pub(crate) use promise_file::{decode_promise, promise_seeds};
pub use seed::set_aside;
pub use transport::{
    Ack, CheckpointPart, FromPrimary, Hello, Next, PROTOCOL, Reason, Refusal, SealReply, SealRequest, SeedOffer,
    SeedRequest, Transport, TransportError, Welcome,
};

use crate::core::{Core, Effect, Event, NotPromoted, Promise, Role};
use crate::rule::{NodeId, Rule};
use grant::Seeds;
use promise_file::Life;
use reads::Rounds;

/// Time between a primary's messages when there is nothing to say.
const HEARTBEAT: Duration = Duration::from_millis(100);
/// Silence after which a stream is given up.
const SILENCE: Duration = Duration::from_millis(1500);
/// Pause before the next attempt at anything that failed.
const RETRY: Duration = Duration::from_millis(200);

/// What a driver is told at start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node.
    pub me: NodeId,
    /// The primary by configuration, used until a promise says otherwise.
    pub configured_primary: NodeId,
    /// Mode and voters.
    pub rule: Rule,
    /// Data directory.
    pub dir: PathBuf,
    /// Engine sizes.
    pub options: Options,
    /// Where this node answers clients.
    pub client_addr: String,
}

/// What a node is, for doors and status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoleView {
    /// In a word.
    pub role: RoleName,
    /// The epoch it leads or follows.
    pub epoch: Epoch,
    /// First LSN of the reign, when primary; reads wait until it is applied.
    pub epoch_start: Lsn,
    /// Who leads, as far as known.
    pub primary: Option<NodeId>,
    /// Where the primary answers clients, as far as known.
    pub primary_client_addr: Option<String>,
    /// Why the node cannot do its part.
    pub trouble: Option<String>,
}

/// The roles, in the words of `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RoleName {
    /// No data yet.
    #[default]
    Joining,
    /// Follows.
    Replica,
    /// Collects seals.
    Candidate,
    /// Orders writes.
    Primary,
    /// Has data that the cluster's history does not; needs an operator.
    Quarantined,
}

impl RoleName {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            RoleName::Joining => "joining",
            RoleName::Replica => "replica",
            RoleName::Candidate => "candidate",
            RoleName::Primary => "primary",
            RoleName::Quarantined => "quarantined",
        }
    }
}

/// What the primary knows of one replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerProgress {
    /// Its stream is up.
    pub connected: bool,
    /// On its disk.
    pub durable: Lsn,
    /// Visible there.
    pub applied: Lsn,
    /// Age of the newest message it has acknowledged, milliseconds.
    pub lag_ms: u64,
    /// Where it answers clients.
    pub client_addr: String,
}

/// Why [`Driver::run`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to.
    Stopped,
    /// The local data no longer connects to the cluster's log, or was given up ([`Driver::reseed`]): set it aside and
    /// start again empty.
    Reseed,
}

/// One node's replication.
#[derive(Debug)]
pub struct Driver {
    env: Env,
    settings: Settings,
    transport: Arc<dyn Transport>,
    core: Mutex<Core>,
    life: Mutex<Life>,
    store: OnceLock<Arc<Store>>,
    ready: watch::Sender<bool>,
    role: watch::Sender<RoleView>,
    peers: Mutex<BTreeMap<NodeId, PeerProgress>>,
    promoting: tokio::sync::Mutex<()>,
    /// Held while records of a primary are checked and appended, and while a promise is given and
    /// the log's end is read: what a seal reports includes everything accepted before it.
    gate: Mutex<()>,
    /// Whose data was in the directory when this life began, opened or not yet.
    found: Option<Identity>,
    /// What each replica still needs of the log, connected or not, up to the retained bytes.
    slots: Mutex<BTreeMap<NodeId, Arc<Slot>>>,
    rounds: Rounds,
    seeds: Mutex<Seeds>,
    /// Becomes true when this node's data is to be replaced by a seed.
    giving_up: watch::Sender<bool>,
}

impl Driver {
    /// Reads the node's promise and begins a new life. Nothing runs yet.
    ///
    /// # Errors
    /// A damaged promise, or the operating system's.
    pub fn new(env: Env, settings: Settings, transport: Arc<dyn Transport>) -> Result<Arc<Self>> {
        mainstay_engine::fs::create_dir_synced(&*env.fs, &settings.dir).map_err(mainstay_engine::Error::from)?;
        let (promise, mut life) = promise_file::read(&env, &settings.dir)?;
        life.incarnation += 1;
        promise_file::write(&env, &settings.dir, &promise, life)?;
        let found = Identity::read(&env, &settings.dir)?;
        let core = Mutex::new(Core::new(settings.me, settings.rule.clone(), promise));
        let driver = Self {
            env,
            transport,
            core,
            life: Mutex::new(life),
            store: OnceLock::new(),
            ready: watch::Sender::new(false),
            role: watch::Sender::new(RoleView::default()),
            peers: Mutex::default(),
            promoting: tokio::sync::Mutex::new(()),
            gate: Mutex::default(),
            found,
            slots: Mutex::default(),
            rounds: Rounds::new(),
            seeds: Mutex::default(),
            giving_up: watch::Sender::new(false),
            settings,
        };
        driver.publish_role();
        Ok(Arc::new(driver))
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        // A panic inside the core aborts the release binary; in tests the state is still whole.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store, once the node has data.
    #[must_use]
    pub fn store(&self) -> Option<&Arc<Store>> {
        self.store.get()
    }

    /// Becomes true when the node has data.
    #[must_use]
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// The node's role, as it changes.
    #[must_use]
    pub fn role(&self) -> watch::Receiver<RoleView> {
        self.role.subscribe()
    }

    /// This node.
    #[must_use]
    pub const fn me(&self) -> NodeId {
        self.settings.me
    }

    /// The rule in force.
    #[must_use]
    pub fn rule(&self) -> Rule {
        self.core().rule().clone()
    }

    /// What this node promised as a voter.
    #[must_use]
    pub fn promise(&self) -> Promise {
        self.core().promise().clone()
    }

    /// Number of this life of the node.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.life().incarnation
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a primary knows of its replicas.
    #[must_use]
    pub fn peers(&self) -> BTreeMap<NodeId, PeerProgress> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn others(&self) -> Vec<NodeId> {
        self.settings.rule.voters().iter().copied().filter(|n| *n != self.settings.me).collect()
    }

    fn identity(&self) -> Identity {
        let nobody = Identity { cluster: ClusterId(0), timeline: TimelineId(0) };
        self.store().map_or_else(|| self.found.unwrap_or(nobody), |s| s.identity())
    }

    /// The newest record and the commit LSN. The caller syncs before it tells anybody.
    fn end_of_log(&self) -> (Position, Lsn) {
        self.store().map_or_else(Default::default, |s| (s.log().last(), s.committed().get()))
    }

    /// Makes everything up to `lsn` durable. Blocks on the disk.
    fn sync_to(&self, lsn: Lsn) -> Result<()> {
        self.store().map_or(Ok(()), |s| s.log().sync_to(lsn))
    }

    fn gate(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the core an event and carries out the local effects; returns those that only the
    /// caller can carry out. Blocks on the disk when a promise changes.
    fn step(&self, event: Event) -> Result<Vec<Effect>> {
        let mut core = self.core();
        let mut left = Vec::new();
        for effect in core.step(event) {
            match effect {
                Effect::Persist(promise) => {
                    // The lock is held: no later event may act on a promise that is not durable.
                    promise_file::write(&self.env, &self.settings.dir, &promise, *self.life()).inspect_err(|e| {
                        (self.env.fatal)(&format!("cannot make a promise durable: {e}"));
                    })?;
                }
                Effect::Commit(lsn) => {
                    if let Some(store) = self.store() {
                        store.set_committed(lsn);
                    }
                }
                Effect::Confirmed(round) => self.rounds.confirm(round),
                Effect::RoleChanged => {}
                other => left.push(other),
            }
        }
        drop(core);
        self.publish_role();
        Ok(left)
    }

    /// Word of an epoch from somewhere else: a newer one is adopted. Blocks on the disk then.
    fn hear_of(&self, epoch: Epoch, primary: Option<NodeId>) -> Result<()> {
        let _gate = self.gate();
        self.step(Event::SealRefused { epoch, primary }).map(drop)
    }

    /// Publishes the role if it changed.
    fn publish_role(&self) {
        let core = self.core();
        let promise = core.promise();
        let has_data = self.store().is_some();
        let (role, epoch_start) = match core.role() {
            Role::Primary(reign) => (RoleName::Primary, reign.start()),
            Role::Candidate(_) => (RoleName::Candidate, Lsn::ZERO),
            Role::Replica if has_data => (RoleName::Replica, Lsn::ZERO),
            Role::Replica => (RoleName::Joining, Lsn::ZERO),
        };
        let me = core.me();
        self.role.send_if_modified(|view| {
            let mut new = view.clone();
            new.role = if view.role == RoleName::Quarantined && role == RoleName::Replica { view.role } else { role };
            new.epoch = promise.sealed;
            new.epoch_start = epoch_start;
            new.primary = promise.primary;
            if role == RoleName::Primary && view.role != RoleName::Primary {
                // What kept it from following or leading is over.
                new.trouble = None;
            }
            if promise.primary == Some(me) {
                new.primary_client_addr = Some(self.settings.client_addr.clone());
            } else if view.primary != promise.primary {
                new.primary_client_addr = None;
            }
            let changed = new != *view;
            if changed && (new.role != view.role || new.epoch != view.epoch) {
                tracing::info!(role = new.role.as_str(), epoch = new.epoch.0, primary = ?new.primary.map(|p| p.0), "role");
            }
            *view = new;
            changed
        });
    }

    fn set_trouble(&self, role: Option<RoleName>, trouble: Option<String>) {
        self.role.send_if_modified(|view| {
            if view.trouble == trouble && role.is_none_or(|r| r == view.role) {
                return false;
            }
            if let Some(text) = &trouble {
                tracing::warn!(trouble = %text, "trouble");
            }
            view.trouble = trouble;
            if let Some(role) = role {
                view.role = role;
            }
            true
        });
    }

    fn set_primary_addr(&self, addr: String) {
        self.role.send_if_modified(|view| {
            let changed = view.primary_client_addr.as_ref() != Some(&addr);
            view.primary_client_addr = Some(addr);
            changed
        });
    }

    /// Takes part in replication until `stop` becomes true.
    ///
    /// # Errors
    /// A local error after which the node must not go on.
    pub async fn run(self: Arc<Self>, mut stop: watch::Receiver<bool>) -> Result<Ended> {
        let mut giving_up = self.giving_up.subscribe();
        let ended = tokio::select! {
            ended = self.clone().take_part() => ended,
            _ = giving_up.wait_for(|g| *g) => Ok(Ended::Reseed),
            _ = stop.wait_for(|s| *s) => Ok(Ended::Stopped),
        };
        if let Some(store) = self.store() {
            // Waiters of this node learn that no answer will come.
            store.committed().close();
            store.applied().close();
        }
        if let Ok(Ended::Reseed) = ended {
            // Whatever comes in place of this data: its word does not count before it has reached as far. From here on
            // nothing here pays that.
            self.giving_up.send_replace(true);
            let this = Arc::clone(&self);
            blocking(move || this.owe(this.end_of_log().0.lsn)).await?;
        }
        ended
    }

    async fn take_part(self: Arc<Self>) -> Result<Ended> {
        let store = self.obtain_store().await?;
        let watcher = tokio::spawn(Arc::clone(&self).watch_durable(Arc::clone(&store)));
        let _abort = AbortOnDrop(watcher.abort_handle());
        loop {
            let promise = self.promise();
            let me = self.settings.me;
            let primary = promise.primary.unwrap_or(self.settings.configured_primary);
            if self.core().leads().is_some() {
                // Until the role changes doors and sessions drive it; here it only doubts itself.
                let mut role = self.role();
                let _ = tokio::time::timeout(SILENCE, role.wait_for(|r| r.role != RoleName::Primary)).await;
                if self.misses_a_voter() {
                    self.yield_to_newer().await?;
                }
            } else if primary == me {
                self.try_to_lead().await?;
            } else if let replica::Left::Reseed = self.follow(&store, primary).await? {
                return Ok(Ended::Reseed);
            }
        }
    }

    /// Whether a voter is not connected to this primary: it may follow another one.
    fn misses_a_voter(&self) -> bool {
        let core = self.core();
        let connected = |n: &NodeId| core.progress().get(n).is_some_and(|p| p.connected);
        core.leads().is_some() && !self.others().iter().all(connected)
    }

    /// Tells the core about every advance of the local durable LSN.
    async fn watch_durable(self: Arc<Self>, store: Arc<Store>) {
        let mut seen = Lsn::ZERO;
        loop {
            // A cut lowers the watermark; looking again from time to time finds that.
            let moved = tokio::time::timeout(HEARTBEAT, store.durable().reached(seen.next())).await;
            if matches!(moved, Ok(Err(_))) {
                return;
            }
            let at = store.durable().get();
            if at != seen && self.step(Event::Durable(at)).is_err() {
                return;
            }
            seen = at;
        }
    }
}

/// Runs blocking work off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(e) => Err(mainstay_engine::Error::Stopped(format!("background work ended: {e}"))),
    }
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl From<NotPromoted> for Refusal {
    fn from(why: NotPromoted) -> Self {
        Refusal { reason: Reason::NotPrimary, text: why.to_string(), epoch: Epoch(0), primary: None }
    }
}
