//! Every request to the object store goes through here: outer retries, deadlines, bounds, and the
//! rule for create-only names (taken means: read it and compare) \[I10\].
//!
//! Owns: the retry policy, the meaning of a store's answer. Never: overwriting a named object;
//! making a name; an unbounded read.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use bytes::Bytes;
use futures::StreamExt;
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};

use super::names::{Listing, ObjectName};
use crate::error::{Error, Result, StoreKind, redact};

/// Most names one listing may return: a week of one-second objects is 604 800.
const LIST_MAX: usize = 8_000_000;
/// Deadline of one attempt, and of each name of a listing; above the store's own time-outs, so it only catches a store
/// that hangs.
const ATTEMPT: Duration = Duration::from_secs(60);

/// How often and how fast a request is repeated.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// Attempts after the first.
    pub retries: usize,
    /// Pause before the first repetition; doubles, with jitter.
    pub min_delay: Duration,
    /// Longest pause.
    pub max_delay: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { retries: 5, min_delay: Duration::from_millis(100), max_delay: Duration::from_secs(5) }
    }
}

/// What creating a name came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Created {
    /// The name is new, or it holds exactly these bytes already.
    Ours,
    /// The name holds other bytes.
    Taken(Bytes),
}

/// A name found by a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// The name.
    pub name: ObjectName,
    /// Size of the object in bytes.
    pub bytes: u64,
}

/// A store, its printable URL and the retry policy. Cheap to clone.
#[derive(Clone)]
pub struct Access {
    store: Arc<dyn ObjectStore>,
    url: Arc<str>,
    policy: RetryPolicy,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Access {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, url: Arc<str>, policy: RetryPolicy) -> Self {
        Self { store, url, policy }
    }

    /// The repository's URL, without credentials.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    pub(crate) fn error(&self, action: &'static str, object: impl ToString, e: &object_store::Error) -> Error {
        self.error_text(action, object, &full_text(e), kind_of(e))
    }

    fn error_text(&self, action: &'static str, object: impl ToString, text: &str, kind: StoreKind) -> Error {
        Error::Store { action, object: object.to_string(), url: self.url.to_string(), text: redact(text), kind }
    }

    /// Runs `attempt` until it succeeds in time, fails for good, or the policy is used up.
    async fn with_retries<T, F: Future<Output = object_store::Result<T>>>(
        &self,
        action: &'static str,
        object: impl ToString,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T> {
        self.retried(action, object, || in_time(attempt())).await
    }

    /// [`Access::with_retries`] for who looks at the time in the attempt.
    async fn retried<T, F: Future<Output = object_store::Result<T>>>(
        &self,
        action: &'static str,
        object: impl ToString,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T> {
        let object = object.to_string();
        let policy = ExponentialBuilder::default()
            .with_jitter()
            .with_min_delay(self.policy.min_delay)
            .with_max_delay(self.policy.max_delay)
            .with_max_times(self.policy.retries);
        let once = || {
            let future = attempt();
            async { future.await.map_err(|e| self.error(action, &object, &e)) }
        };
        once.retry(policy).when(Error::is_transient).await
    }

    /// Creates a name, never overwrites. A lost reply, a 503 after the fact and a 409 without an
    /// object all end in the right answer, because a taken name is read and compared.
    ///
    /// # Errors
    /// The store's, once the policy is used up.
    pub async fn create(&self, name: &ObjectName, bytes: Bytes) -> Result<Created> {
        let (path, max) = (name.path(), bytes.len() as u64);
        // Twice the policy: "taken" and then "absent" means that nothing landed, so try again.
        for _ in 0..=self.policy.retries {
            let put = self
                .with_retries("create", name, || {
                    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
                    self.store.put_opts(&path, PutPayload::from(bytes.clone()), options)
                })
                .await;
            match put {
                Ok(_) => return Ok(Created::Ours),
                Err(Error::Store { kind: StoreKind::AlreadyExists, .. }) => {}
                Err(e) => return Err(e),
            }
            match self.get(name, max.max(super::documents::DOCUMENT_BYTES_MAX as u64 * 2)).await {
                Ok(found) if found == bytes => return Ok(Created::Ours),
                Ok(found) => return Ok(Created::Taken(found)),
                Err(e) if e.is_not_found() => {}
                Err(e) => return Err(e),
            }
        }
        Err(self.error_text(
            "create",
            name,
            "the store says that the name is taken, and that it does not exist",
            StoreKind::Transient,
        ))
    }

    /// Writes a content-addressed object; overwriting it with itself is harmless.
    ///
    /// # Errors
    /// The store's.
    pub async fn put_content(&self, name: &ObjectName, bytes: Bytes) -> Result<()> {
        let path = name.path();
        self.with_retries("write", name, || self.store.put(&path, PutPayload::from(bytes.clone()))).await.map(drop)
    }

    /// Starts a multipart upload of a content-addressed object.
    ///
    /// # Errors
    /// The store's.
    pub async fn put_content_parts(&self, name: &ObjectName) -> Result<Box<dyn MultipartUpload>> {
        let path = name.path();
        self.with_retries("start writing", name, || self.store.put_multipart(&path)).await
    }

    /// The whole object, of at most `max` bytes.
    ///
    /// # Errors
    /// The store's; `Damaged` when it is larger.
    pub async fn get(&self, name: &ObjectName, max: u64) -> Result<Bytes> {
        let path = name.path();
        let read = self
            .with_retries("read", name, || async {
                let found = self.store.get_opts(&path, GetOptions::default()).await?;
                let size = found.meta.size;
                if size > max { Ok(Err(size)) } else { found.bytes().await.map(Ok) }
            })
            .await?;
        read.map_err(|size| Error::damaged(name, format!("{size} bytes are over the bound of {max}")))
    }

    /// Some bytes of an object; fewer when it is shorter.
    ///
    /// # Errors
    /// The store's.
    pub async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes> {
        let path = name.path();
        self.with_retries("read", name, || {
            let range = Some(GetRange::Bounded(range.clone()));
            async { self.store.get_opts(&path, GetOptions { range, ..GetOptions::default() }).await?.bytes().await }
        })
        .await
    }

    /// Size of an object; `None` when it does not exist.
    ///
    /// # Errors
    /// The store's.
    pub async fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        let path = name.path();
        match self.with_retries("look up", name, || self.store.head(&path)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All names of a group, sorted. Objects whose name this program did not make are left out;
    /// their number is the second part.
    ///
    /// # Errors
    /// The store's; `Damaged` when there are more than any archive has.
    pub async fn list(&self, what: Listing) -> Result<(Vec<Listed>, u64)> {
        let prefix: Path = what.path();
        let listed = self
            .retried("list", &prefix, || async {
                let (mut found, mut strange) = (Vec::new(), 0u64);
                let mut stream = self.store.list(Some(&prefix));
                // Of a large archive this takes minutes: a thousand names come with each answer.
                while let Some(meta) = in_time(async { stream.next().await.transpose() }).await? {
                    match ObjectName::parse(meta.location.as_ref()) {
                        Some(name) if found.len() < LIST_MAX => found.push(Listed { name, bytes: meta.size }),
                        Some(_) => return Ok(None),
                        None => strange += 1,
                    }
                }
                Ok(Some((found, strange)))
            })
            .await?;
        let (mut found, strange) = listed.ok_or_else(|| Error::damaged(&prefix, "more objects than an archive has"))?;
        // Local directories list in any order.
        found.sort_unstable();
        Ok((found, strange))
    }

    /// Removes a scratch object, as far as the store lets us.
    pub(crate) async fn discard(&self, name: &ObjectName) {
        if let Err(e) = self.store.delete(&name.path()).await {
            tracing::debug!(object = %name, error = %redact(&e.to_string()), "scratch object stays");
        }
    }
}

async fn in_time<T>(answer: impl Future<Output = object_store::Result<T>>) -> object_store::Result<T> {
    let late = |_| object_store::Error::Generic { store: "repository", source: "no answer within 60 s".into() };
    tokio::time::timeout(ATTEMPT, answer).await.map_err(late)?
}

/// What a store's error means to a caller.
pub(crate) fn kind_of(e: &object_store::Error) -> StoreKind {
    use object_store::Error as E;
    match e {
        E::NotFound { .. } => StoreKind::NotFound,
        E::AlreadyExists { .. } | E::Precondition { .. } => StoreKind::AlreadyExists,
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => StoreKind::Denied,
        E::InvalidPath { .. }
        | E::NotSupported { .. }
        | E::NotImplemented { .. }
        | E::UnknownConfigurationKey { .. } => StoreKind::Unsupported,
        _ => StoreKind::Transient,
    }
}

/// An error with all its causes: the reason (DNS, TLS, refused) sits at the bottom.
fn full_text(e: &object_store::Error) -> String {
    let mut text = e.to_string();
    let mut cause = std::error::Error::source(e);
    while let Some(c) = cause {
        let more = c.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = c.source();
    }
    without_markup(text)
}

/// A store's answer in XML, as its code and message: an error is one sentence.
fn without_markup(mut text: String) -> String {
    let Some(start) = text.find("<?xml").or_else(|| text.find("<Error>")) else { return text };
    let answer = text.split_off(start);
    let part = |name: &str| {
        let from = answer.split_once(&format!("<{name}>"))?.1;
        Some(from.split_once(&format!("</{name}>"))?.0.to_owned())
    };
    let parts: Vec<String> = ["Code", "Message"].into_iter().filter_map(part).collect();
    text.push_str(&if parts.is_empty() { answer } else { parts.join(": ") });
    text
}

#[cfg(test)]
mod tests {
    use mainstay_engine::{Epoch, TimelineId};

    use super::*;
    use crate::testing::{FaultStore, Faults};

    /// At a thousand names an answer, a fortnight's objects of a second each are a minute of answers.
    #[tokio::test(start_paused = true)]
    async fn a_listing_may_take_long_while_names_come() {
        let store = FaultStore::new(1);
        let policy = RetryPolicy { retries: 0, ..RetryPolicy::default() };
        let access = Access::new(Arc::clone(&store) as Arc<dyn ObjectStore>, "memory://test".into(), policy);
        for epoch in 0..100 {
            let name = ObjectName::Fence(TimelineId(1), Epoch(epoch));
            access.create(&name, Bytes::from_static(b"a fence")).await.unwrap();
        }
        store.set(Faults { slow_list: 59, ..Faults::default() });
        assert_eq!(access.list(Listing::Fences).await.unwrap().0.len(), 100);
        store.set(Faults { slow_list: 61, ..Faults::default() });
        let late = access.list(Listing::Fences).await.unwrap_err();
        assert!(late.is_transient() && late.to_string().contains("no answer within 60 s"), "{late}");
    }

    #[test]
    fn a_stores_xml_becomes_a_sentence() {
        let xml = "404 Not Found: <?xml version=\"1.0\"?>\n<Error><Code>NoSuchBucket</Code><Message>It does not exist</Message><RequestId>7</RequestId></Error>";
        assert_eq!(without_markup(xml.to_owned()), "404 Not Found: NoSuchBucket: It does not exist");
        let no_head = "403: <Error><Code>AccessDenied</Code></Error>";
        assert_eq!(without_markup(no_head.to_owned()), "403: AccessDenied");
        for same in ["connection refused", "<?xml nonsense", "500: <Error><Code>cut"] {
            assert_eq!(without_markup(same.to_owned()), same);
        }
    }
}
