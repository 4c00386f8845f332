//! One repository: where it is, whose it is, and the way to its objects.
//!
//! Owns: opening, the writer's claim (`repo.json`, after the probe), the reader's check. Never:
//! creating anything on behalf of a reader.

pub mod access;
pub mod documents;
pub mod names;
mod probe;
mod url;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use mainstay_engine::{ClusterId, Env};
use object_store::ObjectStore;
use tokio::sync::OnceCell;

use crate::error::{Error, Result};
use access::{Access, Created, RetryPolicy};
use documents::{DOCUMENT_BYTES_MAX, Document, FORMAT, RepoDoc};
use names::ObjectName;
pub(crate) use probe::new_ulid;

#[derive(Debug)]
struct Inner {
    location: url::Location,
    url: Arc<str>,
    policy: RetryPolicy,
    env: Env,
    access: OnceCell<Access>,
    claimed: OnceCell<RepoDoc>,
}

/// A repository. Cheap to clone; opening does no I/O.
#[derive(Clone, Debug)]
pub struct Repository {
    inner: Arc<Inner>,
}

impl Repository {
    /// Opens `file:///dir`, `s3://bucket/prefix[?endpoint=…&region=…]`, `gs://…` or `az://…`.
    /// Credentials come from the environment. Stores other than `file` need a process-wide rustls
    /// provider.
    ///
    /// # Errors
    /// `Url` when the text cannot be one.
    pub fn open(url: &str) -> Result<Self> {
        Self::open_with(url, Env::real(), RetryPolicy::default())
    }

    /// As [`Repository::open`], with the caller's clock, files and retries.
    ///
    /// # Errors
    /// `Url` when the text cannot be one.
    pub fn open_with(url: &str, env: Env, policy: RetryPolicy) -> Result<Self> {
        let (location, shown) = url::parse(url)?;
        Ok(Self::make(location, shown, env, policy))
    }

    /// A repository on any store; `label` is what messages call it.
    #[must_use]
    pub fn on_store(store: Arc<dyn ObjectStore>, label: &str, env: Env, policy: RetryPolicy) -> Self {
        Self::make(url::Location::Store(store), label.to_owned(), env, policy)
    }

    fn make(location: url::Location, url: String, env: Env, policy: RetryPolicy) -> Self {
        let (access, claimed) = (OnceCell::new(), OnceCell::new());
        Self { inner: Arc::new(Inner { location, url: url.into(), policy, env, access, claimed }) }
    }

    /// The URL without credentials.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.inner.url
    }

    pub(crate) fn env(&self) -> &Env {
        &self.inner.env
    }

    /// The store, for readers: nothing is created.
    ///
    /// # Errors
    /// `NoRepository` when a directory does not exist.
    pub async fn access(&self) -> Result<Access> {
        self.access_for(false).await
    }

    async fn access_for(&self, write: bool) -> Result<Access> {
        let make = || async {
            let store = match &self.inner.location {
                url::Location::Store(store) => Arc::clone(store),
                url::Location::Directory(dir) => self.directory(dir.clone(), write).await?,
            };
            Ok(Access::new(store, Arc::clone(&self.inner.url), self.inner.policy))
        };
        self.inner.access.get_or_try_init(make).await.cloned()
    }

    async fn directory(&self, dir: PathBuf, write: bool) -> Result<Arc<dyn ObjectStore>> {
        let (fs, url) = (Arc::clone(&self.inner.env.fs), self.inner.url.to_string());
        tokio::task::spawn_blocking(move || {
            if write {
                fs.create_dir_all(&dir).map_err(|e| mainstay_engine::Error::io("create", &dir, e))?;
            } else if !fs.exists(&dir).map_err(|e| mainstay_engine::Error::io("look up", &dir, e))? {
                return Err(Error::NoRepository(url));
            }
            url::directory(&dir).map_err(|e| Error::Url { url, what: e.to_string() })
        })
        .await?
    }

    /// Takes the repository for writing: probes the store once, creates `repo.json` or checks that
    /// it names `cluster`.
    ///
    /// # Errors
    /// `Probe`, `ForeignCluster`, `NewerFormat`, or the store's.
    pub async fn for_cluster(&self, cluster: ClusterId) -> Result<RepoDoc> {
        let access = self.access_for(true).await?;
        let doc = self.inner.claimed.get_or_try_init(|| async {
            probe::probe(&access, &self.inner.env).await?;
            let created_us = self.inner.env.clock.wall().0;
            let doc = RepoDoc { format: FORMAT, cluster, created_us, hash: "blake3".into() };
            let found = create_document(&access, &ObjectName::Repo, doc.clone()).await?;
            Ok::<_, Error>(found.unwrap_or(doc))
        });
        let doc = doc.await?.clone();
        self.check_owner(&doc, Some(cluster))?;
        Ok(doc)
    }

    /// Reads `repo.json` and compares the owner, where the caller knows it.
    ///
    /// # Errors
    /// `NoRepository`, `ForeignCluster`, `NewerFormat`, `Damaged`, or the store's.
    pub async fn check(&self, cluster: Option<ClusterId>) -> Result<RepoDoc> {
        let access = self.access().await?;
        let doc: RepoDoc = match read_document(&access, &ObjectName::Repo).await {
            // A bucket that does not exist is another mistake than a wrong prefix: keep the store's words.
            Err(Error::Store { text, kind, .. })
                if kind == crate::error::StoreKind::NotFound && !text.contains("ucket") =>
            {
                return Err(Error::NoRepository(self.url().to_owned()));
            }
            other => other?,
        };
        self.check_owner(&doc, cluster)?;
        Ok(doc)
    }

    fn check_owner(&self, doc: &RepoDoc, cluster: Option<ClusterId>) -> Result<()> {
        match cluster {
            Some(expected) if expected != doc.cluster => {
                Err(Error::ForeignCluster { url: self.url().to_owned(), found: doc.cluster, expected })
            }
            _ if doc.hash != "blake3" => {
                Err(Error::damaged(ObjectName::Repo, format!("hash {:?} is not known", doc.hash)))
            }
            _ => Ok(()),
        }
    }
}

/// Reads a document.
pub(crate) async fn read_document<D: Document>(access: &Access, name: &ObjectName) -> Result<D> {
    D::decode(name, &access.get(name, DOCUMENT_BYTES_MAX as u64).await?)
}

/// Creates a document; when the name is taken, returns what is there.
pub(crate) async fn create_document<D: Document>(access: &Access, name: &ObjectName, doc: D) -> Result<Option<D>> {
    match access.create(name, Bytes::from(doc.encode(name)?)).await? {
        Created::Ours => Ok(None),
        Created::Taken(bytes) => D::decode(name, &bytes).map(Some),
    }
}
