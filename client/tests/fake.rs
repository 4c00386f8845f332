//! The client against scripted nodes: routing, retries and what it says of a write.
//!
//! Owns: fake nodes that speak the real wire messages. Never: a real node's rules.

#![expect(clippy::disallowed_methods, reason = "an outside observer, not the simulated core")]
#![expect(clippy::unwrap_used, reason = "in helpers of a test, outside of its functions")]

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mainstay_client::{Client, ErrorClass, Scan};
use mainstay_proto::v1;
use mainstay_proto::v1::admin_server::{Admin, AdminServer};
use mainstay_proto::v1::kv_server::{Kv, KvServer};
use prost::Message;
use tokio::sync::Notify;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status};

type BoxStream<T> = std::pin::Pin<Box<dyn futures::Stream<Item = Result<T, Status>> + Send>>;

/// What a fake does with a data call.
#[derive(Clone, Debug)]
enum Act {
    Serve,
    /// Refuses with NOT_PRIMARY and a hint: address, epoch.
    Refuse(String, u64),
    /// Refuses with NOT_READY.
    NotReady,
    /// Refuses a write with NOT_READY, after as many milliseconds.
    Late(u64),
    /// Takes the call and never answers.
    Hang,
    /// Fails with this code and class.
    Fail(Code, &'static str, &'static str),
}

#[derive(Debug)]
struct Script {
    act: Mutex<Act>,
    /// Acts to use up before `act` counts.
    first: Mutex<Vec<Act>>,
    writes: AtomicU64,
    reads: AtomicU64,
    watched_from: Mutex<Vec<u64>>,
    arrived: Notify,
    status: Mutex<v1::StatusResponse>,
}

impl Script {
    fn act(&self) -> Result<bool, Status> {
        let act = self.first.lock().unwrap().pop().unwrap_or_else(|| self.act.lock().unwrap().clone());
        let refuse = |code: &str, primary: String, epoch| {
            let class = "not_executed".to_owned();
            let detail = v1::ErrorDetail { code: code.to_owned(), class, primary, epoch };
            Status::with_details(Code::Unavailable, "refused", detail.encode_to_vec().into())
        };
        match act {
            Act::Serve => Ok(true),
            Act::Hang => Ok(false),
            Act::Refuse(primary, epoch) => Err(refuse("NOT_PRIMARY", primary, epoch)),
            Act::NotReady | Act::Late(_) => Err(refuse("NOT_READY", String::new(), 0)),
            Act::Fail(grpc, code, class) => {
                let detail = v1::ErrorDetail { code: code.into(), class: class.into(), ..Default::default() };
                Err(Status::with_details(grpc, "failed", detail.encode_to_vec().into()))
            }
        }
    }
}

#[derive(Clone)]
struct Door(Arc<Script>);

#[tonic::async_trait]
impl Kv for Door {
    type ScanStream = BoxStream<v1::ScanPage>;
    type WatchStream = BoxStream<v1::WatchEvent>;

    async fn write(&self, _: Request<v1::WriteRequest>) -> Result<Response<v1::WriteResponse>, Status> {
        let n = self.0.writes.fetch_add(1, SeqCst) + 1;
        self.0.arrived.notify_one();
        let late = if let Act::Late(ms) = *self.0.act.lock().unwrap() { ms } else { 0 };
        tokio::time::sleep(Duration::from_millis(late)).await;
        if !self.0.act()? {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(v1::WriteResponse { epoch: 1, lsn: n, level: "committed".into(), ..Default::default() }))
    }

    async fn get(&self, r: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        self.0.reads.fetch_add(1, SeqCst);
        self.0.arrived.notify_one();
        if !self.0.act()? {
            std::future::pending::<()>().await;
        }
        let found = r.into_inner().keys.into_iter().map(|key| v1::KeyValue { key, ..Default::default() }).collect();
        Ok(Response::new(v1::GetResponse { found, lsn: 1, epoch: 1 }))
    }

    /// Three pages of two entries; the third of them never ends when told to hang.
    async fn scan(&self, _: Request<v1::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let whole = self.0.act()?;
        let pages = (0..3u8).map(move |p| {
            if p == 2 && !whole {
                return Err(Status::unavailable("the node goes away"));
            }
            let entry =
                |i: u8| v1::KeyValue { key: vec![p * 2 + i].into(), value: b"v"[..].into(), version: 1, expiry_us: 0 };
            Ok(v1::ScanPage { entries: vec![entry(0), entry(1)], lsn: 9 })
        });
        Ok(Response::new(Box::pin(futures::stream::iter(pages))))
    }

    /// Changes up to LSN 6; breaks off after three of them when told to hang.
    async fn watch(&self, r: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let whole = self.0.act()?;
        let from = r.into_inner().from_lsn;
        self.0.watched_from.lock().unwrap().push(from);
        let broken = (!whole).then(|| Err(Status::unavailable("the node goes away")));
        let end = if whole { 7 } else { from + 3 };
        let events = (from..end).map(|lsn| Ok(v1::WatchEvent { lsn, epoch: 1, ..Default::default() })).chain(broken);
        Ok(Response::new(Box::pin(futures::stream::iter(events.collect::<Vec<_>>()))))
    }
}

#[tonic::async_trait]
impl Admin for Door {
    type CreateBackupStream = BoxStream<v1::CreateBackupProgress>;

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        Ok(Response::new(self.0.status.lock().unwrap().clone()))
    }

    async fn promote(&self, _: Request<v1::PromoteRequest>) -> Result<Response<v1::PromoteResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn create_backup(
        &self,
        _: Request<v1::CreateBackupRequest>,
    ) -> Result<Response<Self::CreateBackupStream>, Status> {
        Err(Status::unimplemented(""))
    }

    type ScrubStream = BoxStream<v1::ScrubProgress>;

    async fn list_damage(&self, _: Request<v1::ListDamageRequest>) -> Result<Response<v1::ListDamageResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn scrub(&self, _: Request<v1::ScrubRequest>) -> Result<Response<Self::ScrubStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn repair_table(
        &self,
        _: Request<tonic::Streaming<v1::RepairTableRequest>>,
    ) -> Result<Response<v1::RepairTableResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn reseed(&self, _: Request<v1::ReseedRequest>) -> Result<Response<v1::ReseedResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn wait_archived(
        &self,
        _: Request<v1::WaitArchivedRequest>,
    ) -> Result<Response<v1::WaitArchivedResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// A node with a runtime of its own, so that it can die with all its connections.
struct Fake {
    addr: String,
    script: Arc<Script>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Fake {
    fn start(role: &str, epoch: u64, act: Act) -> Self {
        let status = v1::StatusResponse { role: role.into(), epoch, ..Default::default() };
        let script = Arc::new(Script {
            act: Mutex::new(act),
            first: Mutex::default(),
            writes: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            watched_from: Mutex::default(),
            arrived: Notify::new(),
            status: Mutex::new(status),
        });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let door = Door(Arc::clone(&script));
        runtime.spawn(async move {
            let incoming = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener).unwrap());
            let router = tonic::transport::Server::builder()
                .add_service(KvServer::new(door.clone()))
                .add_service(AdminServer::new(door));
            router.serve_with_incoming(incoming).await.unwrap();
        });
        Self { addr, script, runtime: Some(runtime) }
    }

    fn set(&self, act: Act) {
        *self.script.act.lock().unwrap() = act;
    }

    fn writes(&self) -> u64 {
        self.script.writes.load(SeqCst)
    }

    fn die(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.die();
    }
}

/// An address where nobody listens.
fn nobody() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn client(endpoints: &[&str], timeout_ms: u64) -> Client {
    let builder = Client::builder().endpoints(endpoints.iter().copied());
    builder.timeout(Duration::from_millis(timeout_ms)).connect().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hint_leads_to_the_primary_and_is_remembered() {
    let b = Fake::start("primary", 3, Act::Serve);
    let a = Fake::start("replica", 3, Act::Refuse(b.addr.clone(), 3));
    let c = client(&[&a.addr], 5000);
    c.put("k", "v").await.unwrap();
    c.put("k", "v").await.unwrap();
    assert_eq!((a.writes(), b.writes()), (1, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hint_of_an_older_epoch_is_ignored() {
    let old = Fake::start("primary", 2, Act::Serve);
    let b = Fake::start("primary", 3, Act::Serve);
    let a = Fake::start("replica", 3, Act::Refuse(b.addr.clone(), 3));
    let c = client(&[&a.addr, &b.addr, &old.addr], 5000);
    c.put("k", "v").await.unwrap();
    // A restarted node that has not heard yet points at the primary of its past.
    *b.script.first.lock().unwrap() = vec![Act::Refuse(old.addr.clone(), 2)];
    c.put("k", "v").await.unwrap();
    assert_eq!(old.writes(), 0, "a deposed primary was asked to write");
    assert_eq!(b.writes(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_nobody_answers_the_others_are_asked_who_leads() {
    let replica = Fake::start("replica", 1, Act::NotReady);
    let primary = Fake::start("primary", 2, Act::Serve);
    replica.script.status.lock().unwrap().primary_addr = nobody();
    let c = client(&[&nobody(), &replica.addr, &primary.addr], 5000);
    c.put("k", "v").await.unwrap();
    assert_eq!((replica.writes(), primary.writes()), (0, 1));
    let lone = client(&[&nobody()], 300);
    let e = lone.put("k", "v").await.unwrap_err();
    // A refused connection is proof that nothing was sent.
    assert_eq!((e.class(), e.code()), (ErrorClass::NotExecuted, "UNREACHABLE"), "{e}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_cut_off_is_indeterminate_and_never_sent_again() {
    let mut a = Fake::start("primary", 1, Act::Hang);
    let b = Fake::start("primary", 2, Act::Serve);
    let c = client(&[&a.addr, &b.addr], 10_000);
    let writing = tokio::spawn({
        let c = c.clone();
        async move { c.put("k", "v").await }
    });
    a.script.arrived.notified().await;
    a.die();
    let e = writing.await.unwrap().unwrap_err();
    assert_eq!(e.class(), ErrorClass::Indeterminate, "{e}");
    assert_eq!(b.writes(), 0);
    // The next one goes where the primary is.
    c.put("k", "v").await.unwrap();
    assert_eq!(b.writes(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_cut_off_is_repeated_elsewhere() {
    let mut a = Fake::start("primary", 1, Act::Hang);
    let b = Fake::start("primary", 2, Act::Serve);
    let c = client(&[&a.addr, &b.addr], 10_000);
    let reading = tokio::spawn(async move { c.get("k").await });
    a.script.arrived.notified().await;
    a.die();
    assert_eq!(reading.await.unwrap().unwrap().unwrap().key, b"k");
    assert_eq!(b.script.reads.load(SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_bounds_every_call() {
    let a = Fake::start("primary", 1, Act::Hang);
    let c = client(&[&a.addr], 300);
    let begun = Instant::now();
    let write = c.put("k", "v").await.unwrap_err();
    let read = c.get("k").await.unwrap_err();
    assert_eq!((write.class(), write.code()), (ErrorClass::Indeterminate, "TIMEOUT"));
    assert_eq!((read.class(), read.code()), (ErrorClass::NotExecuted, "TIMEOUT"));
    a.set(Act::NotReady);
    // Refused each time, so it is known that nothing happened, deadline or not.
    assert_eq!(c.put("k", "v").await.unwrap_err().class(), ErrorClass::NotExecuted);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    let stale = mainstay_client::ReadOptions { consistency: mainstay_client::Consistency::Stale, at_lsn: 0 };
    a.set(Act::Hang);
    let many = client(&[&a.addr, &a.addr, &a.addr, &a.addr], 300);
    let begun = Instant::now();
    assert_eq!(many.get_with("k", stale).await.unwrap_err().code(), "TIMEOUT");
    assert!(begun.elapsed() < Duration::from_millis(900), "one deadline for all nodes: {:?}", begun.elapsed());
}

/// A last attempt that the deadline cuts off could have been executed: better none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_refused_slowly_ends_as_not_executed() {
    let fake = Fake::start("primary", 1, Act::Late(200));
    let e = client(&[&fake.addr], 500).put("k", "v").await.unwrap_err();
    assert_eq!((e.class(), e.code()), (ErrorClass::NotExecuted, "NOT_READY"), "{e}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_hangs_after_a_refusal_says_what_the_refusal_was() {
    let fake = Fake::start("primary", 1, Act::Hang);
    fake.script.first.lock().unwrap().push(Act::NotReady);
    let e = client(&[&fake.addr], 500).put("k", "v").await.unwrap_err();
    assert_eq!((e.class(), e.code()), (ErrorClass::Indeterminate, "TIMEOUT"), "{e}");
    assert!(e.to_string().contains("the attempt before was refused: refused"), "{e}");
}

/// As the server sends them when its engine is full, and when its engine does not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overloaded_node_is_asked_again_and_one_that_does_not_know_is_not() {
    let fake = Fake::start("primary", 1, Act::Serve);
    let c = client(&[&fake.addr], 5000);
    fake.script.first.lock().unwrap().push(Act::Fail(Code::ResourceExhausted, "OVERLOADED", "not_executed"));
    c.put("k", "v").await.unwrap();
    assert_eq!(fake.writes(), 2);
    fake.script.first.lock().unwrap().push(Act::Fail(Code::Unknown, "INDETERMINATE", "indeterminate"));
    let e = c.put("k", "v").await.unwrap_err();
    assert_eq!((e.class(), e.code(), fake.writes()), (ErrorClass::Indeterminate, "INDETERMINATE", 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_stay_within_the_budget() {
    let a = Fake::start("replica", 1, Act::NotReady);
    let c = client(&[&a.addr], 1000);
    let begun = Instant::now();
    let calls = (0..500).map(|_| c.put("k", "v"));
    let refused = futures::future::join_all(calls).await;
    assert!(refused.iter().all(|r| r.as_ref().is_err_and(|e| e.class() == ErrorClass::NotExecuted)));
    let retries = a.writes() - 500;
    // A fifth of the calls, what was saved up, and ten a second.
    let most = 100 + 50 + begun.elapsed().as_secs() * 10 + 10;
    assert!(retries > 0 && retries <= most, "{retries} retries, {most} allowed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_goes_through_all_pages_or_says_that_it_did_not() {
    let a = Fake::start("primary", 1, Act::Serve);
    let c = client(&[&a.addr], 5000);
    let mut entries = c.scan(Scan::all()).await.unwrap();
    let mut keys = Vec::new();
    while let Some(e) = entries.next().await.unwrap() {
        keys.push(e.key[0]);
    }
    assert_eq!((keys, entries.lsn()), (vec![0, 1, 2, 3, 4, 5], 9));
    a.set(Act::Hang);
    let mut entries = c.scan(Scan::all()).await.unwrap();
    for _ in 0..4 {
        entries.next().await.unwrap().unwrap();
    }
    assert_eq!(entries.next().await.unwrap_err().class(), ErrorClass::NotExecuted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_broke_goes_on_after_the_last_lsn_seen() {
    let a = Fake::start("primary", 1, Act::Hang);
    let c = client(&[&a.addr], 5000);
    let mut seen = Vec::new();
    let mut next = 1;
    loop {
        let mut changes = c.watch(next, "", 0).await.unwrap();
        let ended = loop {
            match changes.next().await {
                Ok(Some(change)) => {
                    seen.push(change.lsn);
                    next = change.lsn + 1;
                }
                Ok(None) => break true,
                Err(e) => {
                    assert_eq!(e.class(), ErrorClass::NotExecuted);
                    break false;
                }
            }
        };
        if ended {
            break;
        }
        a.set(Act::Serve);
    }
    assert_eq!(seen, [1, 2, 3, 4, 5, 6]);
    assert_eq!(*a.script.watched_from.lock().unwrap(), [1, 4]);
}
