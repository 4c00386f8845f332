//! A running node: the one place where its parts are put together.
//!
//! Owns: assembly, the bulkheads (clients and peers have runtimes of their own), the order of
//! stopping, starting again empty when the node must be seeded. Never: what the parts do.

pub mod archive;
pub(crate) mod directory;
pub mod repair;
pub mod status;

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use mainstay_engine::Env;
use mainstay_engine::fs::LockGuard;
use mainstay_engine::store::Workers;
use mainstay_proto::v1::admin_server::AdminServer;
use mainstay_proto::v1::kv_server::KvServer;
use mainstay_proto::v1::peer_server::PeerServer;
use mainstay_replication::core::Promise;
use mainstay_replication::driver::{Driver, Ended, RoleName, Settings};
use mainstay_replication::rule::{NodeId, Rule};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::config::Config;
use crate::doors::MESSAGE_BYTES_MAX;
use crate::doors::admin::AdminDoor;
use crate::doors::kv::KvDoor;
use crate::peers::{GrpcTransport, PeerDoor};
use crate::service::Service;
use archive::{Archive, LogKept};
use repair::Repair;
use status::Looking;

/// How long an orderly stop may take before it is cut short.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// Runs a node until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps the node from starting or from going on, in a sentence for the operator.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let (stop_tx, stop) = watch::channel(false);
    tokio::spawn(async move {
        wait_for_signal().await;
        let _ = stop_tx.send(true);
    });
    // Held through re-seeding, too: between two lives the directory is still this process's.
    let mut claim = None;
    loop {
        match run_once(&config, &mut claim, stop.clone()).await? {
            Ended::Stopped => return Ok(()),
            Ended::Reseed => set_aside(&config)?,
        }
    }
}

async fn wait_for_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        // Without handlers the default action ends the process, which is what was asked for.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

/// Moves the data of the life that ended out of the way; nothing is deleted.
fn set_aside(config: &Config) -> anyhow::Result<()> {
    let aside = mainstay_replication::driver::set_aside(&Env::real(), &config.data)?;
    tracing::warn!(to = %aside.display(), "the data is kept aside; this node starts empty and is seeded anew");
    Ok(())
}

/// The rule of a cluster as configured.
///
/// # Errors
/// Peers and mode that do not fit together.
pub fn rule(config: &Config) -> anyhow::Result<Rule> {
    let voters: Vec<NodeId> = if config.peers.is_empty() {
        vec![NodeId(config.node_id)]
    } else {
        config.peers.keys().map(|id| NodeId(*id)).collect()
    };
    let primary = NodeId(if config.peers.is_empty() { config.node_id } else { config.primary });
    let min_in_sync = usize::try_from(config.min_in_sync).unwrap_or(usize::MAX);
    Ok(Rule::new(config.mode, voters, primary, min_in_sync)?)
}

struct Bound {
    client: TcpListener,
    peer: TcpListener,
    client_addr: SocketAddr,
    peer_addr: SocketAddr,
}

async fn bind(config: &Config) -> anyhow::Result<Bound> {
    let listen = |addr: SocketAddr| async move {
        TcpListener::bind(addr).await.with_context(|| format!("cannot listen on {addr}; choose another address"))
    };
    let (client, peer) = (listen(config.listen).await?, listen(config.peer_listen).await?);
    let (client_addr, peer_addr) = (client.local_addr()?, peer.local_addr()?);
    Ok(Bound { client, peer, client_addr, peer_addr })
}

/// The threads of replication. Dropped anywhere, with an error on its way up too, it waits for nothing.
struct PeersRuntime {
    runtime: Option<tokio::runtime::Runtime>,
    handle: tokio::runtime::Handle,
}

impl PeersRuntime {
    fn start() -> std::io::Result<Self> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).thread_name("peers").enable_all().build()?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }
}

impl Drop for PeersRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn run_once(
    config: &Config,
    claim: &mut Option<Box<dyn LockGuard>>,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<Ended> {
    let env = Env::real();
    let archive = Archive::new(config)?;
    // Who starts a node twice shall hear of the directory, not of the port. But nothing is made
    // before the ports are there.
    if directory::inhabited(&env, &config.data)? && claim.is_none() {
        *claim = Some(directory::claim(&env, &config.data)?);
    }
    let bound = bind(config).await?;
    if claim.is_none() {
        *claim = Some(directory::claim(&env, &config.data)?);
    }
    let rule = rule(config)?;
    let settings = Settings {
        me: NodeId(config.node_id),
        configured_primary: rule.primary(),
        rule,
        dir: config.data.clone(),
        options: config.engine_options(),
        client_addr: bound.client_addr.to_string(),
    };
    // Replication must not wait behind clients: it has threads of its own.
    let peers_runtime = PeersRuntime::start().context("cannot start threads")?;
    let entered = peers_runtime.handle.enter();
    let transport = Arc::new(GrpcTransport::new(&config.peers)?);
    drop(entered);
    let driver = Driver::new(env, settings, transport)?;
    alone_with_others_data(config, driver.promise())?;
    let service = Service::new(Arc::clone(&driver), archive.archived().clone(), archive.is_configured());

    let (end_tx, end) = watch::channel(false);
    let driving = peers_runtime.handle.spawn(Arc::clone(&driver).run(end.clone()));
    let repair = Repair::new(Arc::clone(&driver), archive.clone());
    let doors =
        Doors { service: service.clone(), archive: archive.clone(), repair, config, driver: Arc::clone(&driver) };
    let peer_server = peers_runtime.handle.spawn(doors.peer(bound.peer, end.clone()));
    let client_server = tokio::spawn(doors.client(bound.client, end.clone()));
    let keeping = archive.clone();
    let archiving = tokio::spawn(archive.supervise(Arc::clone(&driver), end));
    let announced = Announcement { config, client: bound.client_addr, peer: bound.peer_addr };

    let outcome = live(&driver, &keeping, announced, stop, driving).await;
    let _ = end_tx.send(true);
    let stopping = async {
        let _ = archiving.await;
        let _ = client_server.await;
        let _ = peer_server.await;
    };
    if tokio::time::timeout(STOP_TIMEOUT, stopping).await.is_err() {
        tracing::warn!("an orderly stop took too long; ending anyway");
    }
    drop(peers_runtime);
    let outcome = outcome?;
    if let Some(store) = driver.store() {
        let store = Arc::clone(store);
        tokio::task::spawn_blocking(move || store.close()).await??;
    }
    Ok(outcome)
}

/// A node alone that follows another one would wait for it for ever.
fn alone_with_others_data(config: &Config, promise: Promise) -> anyhow::Result<()> {
    match promise.primary {
        Some(primary) if config.peers.is_empty() && primary.0 != config.node_id => anyhow::bail!(
            "{} follows node {primary}, and this is node {} without peers; name all nodes with --peers, or give it \
             its own number with --node-id",
            config.data.display(),
            config.node_id
        ),
        _ => Ok(()),
    }
}

struct Announcement<'a> {
    config: &'a Config,
    client: SocketAddr,
    peer: SocketAddr,
}

impl Announcement<'_> {
    /// One line on standard output that tools can wait for.
    fn print(&self, driver: &Driver) {
        let role = driver.role().borrow().clone();
        let line = format!(
            "ready node={} client={} peer={} role={} epoch={}",
            self.config.node_id,
            self.client,
            self.peer,
            role.role.as_str(),
            role.epoch
        );
        let mut out = std::io::stdout().lock();
        // Nobody may be reading; that is no reason to stop.
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}

/// From the first step to the driver's end: starts the store's workers when there is a store.
async fn live(
    driver: &Arc<Driver>,
    archive: &Archive,
    announced: Announcement<'_>,
    mut stop: watch::Receiver<bool>,
    mut driving: tokio::task::JoinHandle<mainstay_engine::Result<Ended>>,
) -> anyhow::Result<Ended> {
    let mut ready = driver.ready();
    let mut workers: Option<(Workers, Option<LogKept>)> = None;
    let mut role = driver.role();
    let mut told = false;
    loop {
        let single = announced.config.peers.is_empty();
        if !told && (!single || role.borrow_and_update().role == RoleName::Primary) {
            announced.print(driver);
            told = true;
        }
        tokio::select! {
            ended = &mut driving => return Ok(ended.context("replication ended unexpectedly")??),
            _ = stop.wait_for(|s| *s) => {
                driving.abort();
                drop(workers);
                return Ok(Ended::Stopped);
            }
            is_ready = ready.wait_for(|r| *r), if workers.is_none() => {
                is_ready.context("replication ended unexpectedly")?;
                if let Some(store) = driver.store() {
                    // Before any of its log may go.
                    let kept = archive.keep_log(driver, store);
                    workers = Some((store.start_workers()?, kept));
                }
            }
            changed = role.changed(), if !told => { changed.context("replication ended unexpectedly")?; }
        }
    }
}

struct Doors<'a> {
    service: Service,
    archive: Archive,
    repair: Repair,
    config: &'a Config,
    driver: Arc<Driver>,
}

impl Doors<'_> {
    fn admin(&self) -> AdminServer<AdminDoor> {
        AdminServer::new(AdminDoor {
            service: self.service.clone(),
            archive: self.archive.clone(),
            repair: self.repair.clone(),
            looking: Looking::default(),
            peers: self.config.peers.clone(),
        })
    }

    fn client(&self, listener: TcpListener, end: watch::Receiver<bool>) -> impl Future<Output = ()> + Send + use<> {
        let kv = KvServer::new(KvDoor(self.service.clone()))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let admin = self.admin();
        serve(base().add_service(kv).add_service(admin), listener, end, "clients")
    }

    fn peer(&self, listener: TcpListener, end: watch::Receiver<bool>) -> impl Future<Output = ()> + Send + use<> {
        let door = PeerDoor { driver: Arc::clone(&self.driver), me: NodeId(self.config.node_id) };
        let peer = PeerServer::new(door)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let admin = self.admin();
        serve(base().add_service(peer).add_service(admin), listener, end, "peers")
    }
}

fn base() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(2)))
        .http2_keepalive_timeout(Some(Duration::from_secs(4)))
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .max_concurrent_streams(4096)
}

/// Serves until the end is told; then connections get a moment to finish and are dropped.
async fn serve(
    router: tonic::transport::server::Router,
    listener: TcpListener,
    mut end: watch::Receiver<bool>,
    what: &'static str,
) {
    let mut told = end.clone();
    let shutdown = async move {
        let _ = told.wait_for(|e| *e).await;
    };
    let grace = async {
        let _ = end.wait_for(|e| *e).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
    };
    // Without it every small answer waits for the peer's delayed acknowledgement.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::select! {
        served = router.serve_with_incoming_shutdown(incoming, shutdown) => {
            if let Err(e) = served {
                tracing::error!(error = %e, what, "stopped listening");
            }
        }
        () = grace => {}
    }
}
