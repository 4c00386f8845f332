//! The client: channels to the nodes, who is primary, and the loop around every call.
//!
//! Owns: routing (highest epoch seen wins, older hints are ignored) and retries. Never: decoding of
//! a particular call.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mainstay_proto::v1::StatusRequest;
use mainstay_proto::v1::admin_client::AdminClient;
use mainstay_proto::v1::kv_client::KvClient;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

use crate::error::{Error, ErrorClass, Result};
use crate::retry::Budget;

/// Most bytes of one message, both ways.
pub(crate) const MESSAGE_BYTES_MAX: usize = 24 << 20;
/// How long one node may take to say who leads.
const ASK_TIMEOUT: Duration = Duration::from_millis(700);

/// Settings of a [`Client`].
#[derive(Clone, Debug)]
pub struct Builder {
    endpoints: Vec<String>,
    timeout: Duration,
    retries: bool,
}

impl Builder {
    /// Client addresses of the cluster's nodes, `HOST:PORT`; one that answers is enough.
    #[must_use]
    pub fn endpoints<S: Into<String>>(mut self, endpoints: impl IntoIterator<Item = S>) -> Self {
        self.endpoints = endpoints.into_iter().map(Into::into).collect();
        self
    }

    /// Deadline of a call, its retries included; 30 s by default.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// One attempt a call.
    #[must_use]
    pub const fn no_retries(mut self) -> Self {
        self.retries = false;
        self
    }

    /// The client. Connects on first use; must be called on a tokio runtime.
    ///
    /// # Errors
    /// No endpoint, or one that is no `HOST:PORT`.
    pub fn connect(self) -> Result<Client> {
        let bad = |text: String| Error::new(ErrorClass::NeverRetry, "BAD_REQUEST", text);
        let mut channels = BTreeMap::new();
        for e in &self.endpoints {
            channels.insert(plain(e), channel(e).map_err(bad)?);
        }
        let Some(first) = self.endpoints.first() else { return Err(bad("no endpoint given".into())) };
        let route = Route { primary: plain(first), epoch: 0, channels };
        let seeds = self.endpoints.iter().map(|e| plain(e)).collect();
        let inner = Inner {
            seeds,
            timeout: self.timeout,
            retries: self.retries,
            route: Mutex::new(route),
            budget: Budget::new(),
        };
        Ok(Client { inner: Arc::new(inner) })
    }
}

fn plain(endpoint: &str) -> String {
    endpoint.trim().trim_start_matches("http://").trim_end_matches('/').to_owned()
}

fn channel(endpoint: &str) -> std::result::Result<Channel, String> {
    let addr = plain(endpoint);
    let has_port = addr.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if !has_port {
        return Err(format!("endpoint {endpoint:?} is no HOST:PORT"));
    }
    let endpoint =
        Endpoint::from_shared(format!("http://{addr}")).map_err(|e| format!("endpoint {endpoint:?}: {e}"))?;
    Ok(endpoint
        .connect_timeout(Duration::from_secs(1))
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(4))
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .connect_lazy())
}

#[derive(Debug)]
struct Route {
    primary: String,
    epoch: u64,
    channels: BTreeMap<String, Channel>,
}

#[derive(Debug)]
struct Inner {
    seeds: Vec<String>,
    timeout: Duration,
    retries: bool,
    route: Mutex<Route>,
    budget: Budget,
}

/// A client of one cluster. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

/// One attempt of a call.
pub(crate) struct Attempt {
    pub(crate) endpoint: String,
    pub(crate) channel: Channel,
    pub(crate) left: Duration,
}

impl Attempt {
    pub(crate) fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel.clone())
    }

    /// A message with the attempt's deadline.
    pub(crate) fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.set_timeout(self.left);
        request
    }
}

impl Client {
    /// A client with default settings.
    ///
    /// # Errors
    /// As [`Builder::connect`].
    pub fn connect<S: Into<String>>(endpoints: impl IntoIterator<Item = S>) -> Result<Self> {
        Self::builder().endpoints(endpoints).connect()
    }

    /// Settings to change before connecting.
    #[must_use]
    pub const fn builder() -> Builder {
        Builder { endpoints: Vec::new(), timeout: Duration::from_secs(30), retries: true }
    }

    pub(crate) fn endpoints(&self) -> &[String] {
        &self.inner.seeds
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.inner.timeout
    }

    fn route(&self) -> MutexGuard<'_, Route> {
        self.inner.route.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A channel to `endpoint`, made if there is none.
    pub(crate) fn channel_to(&self, endpoint: &str) -> Result<Channel> {
        let addr = plain(endpoint);
        let mut route = self.route();
        if let Some(c) = route.channels.get(&addr) {
            return Ok(c.clone());
        }
        let made = channel(&addr).map_err(|e| Error::new(ErrorClass::NeverRetry, "BAD_REQUEST", e))?;
        route.channels.insert(addr, made.clone());
        Ok(made)
    }

    fn follow_hint(&self, addr: &str, epoch: u64) {
        let mut route = self.route();
        // A hint of an older epoch is the memory of a node that has not heard yet.
        if epoch >= route.epoch {
            (route.primary, route.epoch) = (plain(addr), epoch);
        }
    }

    /// Asks all nodes who leads; the answer of the highest epoch wins. Returns what is wrong when no
    /// node that answers leads.
    async fn ask_who_leads(&self) -> Option<Error> {
        let mut known: Vec<String> = self.inner.seeds.clone();
        known.extend(self.route().channels.keys().cloned());
        known.sort_unstable();
        known.dedup();
        let all = known.len();
        let asked = known.into_iter().map(|endpoint| async move {
            let channel = self.channel_to(&endpoint).ok()?;
            let mut admin = AdminClient::new(channel);
            let call = admin.status(StatusRequest {});
            let answer = tokio::time::timeout(ASK_TIMEOUT, call).await.ok()?.ok()?.into_inner();
            let leads = answer.role == "primary";
            let addr = if leads { endpoint } else { answer.primary_addr };
            Some((answer.epoch, leads, addr))
        });
        let answers: Vec<_> = futures::future::join_all(asked).await.into_iter().flatten().collect();
        if let Some((epoch, _, addr)) = answers.iter().filter(|(_, _, addr)| !addr.is_empty()).max() {
            self.follow_hint(addr, *epoch);
        }
        let up = answers.len();
        let none = up > 0 && !answers.iter().any(|(_, leads, _)| *leads);
        let text = || format!("no primary: {up} of {all} nodes answer, and none of them leads");
        none.then(|| Error::new(ErrorClass::NotExecuted, "NOT_PRIMARY", text()))
    }

    /// Runs a call at the primary, following hints and repeating what was not executed.
    pub(crate) async fn at_primary<T, F>(&self, writes: bool, call: impl Fn(Attempt) -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<T, tonic::Status>>,
    {
        let end = Instant::now() + self.inner.timeout;
        self.inner.budget.earn();
        let mut last: Option<Error> = None;
        let mut longest = Duration::ZERO;
        for n in 1.. {
            let begun = Instant::now();
            let left = end.saturating_duration_since(begun);
            // An attempt cut short would turn a certain "not executed" into "perhaps executed".
            if left <= longest * 2 {
                return Err(Error::timeout(writes, last.as_ref()));
            }
            let endpoint = self.route().primary.clone();
            let channel = self.channel_to(&endpoint)?;
            let attempt = Attempt { endpoint: endpoint.clone(), channel, left };
            let status = match tokio::time::timeout(left, call(attempt)).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(status)) => status,
                Err(_) => return Err(Error::timeout(writes, None).after(last.as_ref())),
            };
            let error = Error::from_status(&endpoint, &status, writes);
            // The same node would come to the same place on its disk.
            if error.class() != ErrorClass::NotExecuted || error.code() == "READ_FAILED" {
                return Err(error.after(last.as_ref()));
            }
            longest = longest.max(begun.elapsed());
            let hint = error.hint().map(|(addr, epoch)| (addr.to_owned(), epoch));
            let redirected = hint.as_ref().is_some_and(|(addr, _)| plain(addr) != endpoint);
            if let Some((addr, epoch)) = hint {
                self.follow_hint(&addr, epoch);
            }
            // Following a hint once is routing, not a retry.
            if redirected && n == 1 {
                last = Some(error);
                continue;
            }
            if !self.inner.retries || !self.inner.budget.take() {
                return Err(error);
            }
            last = Some(error);
            tokio::time::sleep(self.inner.budget.pause(n)).await;
            let leaderless = self.ask_who_leads().await;
            if last.as_ref().is_some_and(|e| e.code() == "UNREACHABLE") {
                // That one node is away says less than that nobody leads.
                last = leaderless.or(last);
            }
        }
        Err(Error::timeout(writes, last.as_ref()))
    }

    /// Runs a call at one node, whatever its role, once.
    pub(crate) async fn at<T, F>(
        &self,
        endpoint: &str,
        writes: bool,
        timeout: Duration,
        call: impl FnOnce(Attempt) -> F,
    ) -> Result<T>
    where
        F: Future<Output = std::result::Result<T, tonic::Status>>,
    {
        let channel = self.channel_to(endpoint)?;
        let attempt = Attempt { endpoint: plain(endpoint), channel, left: timeout };
        match tokio::time::timeout(timeout, call(attempt)).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(status)) => Err(Error::from_status(endpoint, &status, writes)),
            Err(_) => {
                let class = if writes { ErrorClass::Indeterminate } else { ErrorClass::NotExecuted };
                Err(Error::new(class, "TIMEOUT", format!("{endpoint} did not answer in time")))
            }
        }
    }

    /// Runs a read at any node that answers.
    pub(crate) async fn at_any<T, F>(&self, call: impl Fn(Attempt) -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<T, tonic::Status>>,
    {
        let end = Instant::now() + self.inner.timeout;
        let mut last = Error::timeout(false, None);
        for (i, endpoint) in self.inner.seeds.iter().enumerate() {
            // One deadline for all: a node that is silent leaves the others their share.
            let left = end.saturating_duration_since(Instant::now());
            let share = u32::try_from(self.inner.seeds.len() - i).map_or(left, |n| left / n);
            match self.at(endpoint, false, share, &call).await {
                Ok(done) => return Ok(done),
                Err(e) if e.class() == ErrorClass::NotExecuted => last = e,
                Err(e) => return Err(e),
            }
        }
        Err(last)
    }
}
