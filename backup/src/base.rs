//! Base backups: a checkpoint's tables by content, its manifest, and last the document whose
//! creation is the moment the base exists.
//!
//! Owns: the order of uploads and the check that what is uploaded is what the checkpoint named.
//! Never: changing the checkpoint; a document that names a table which is not there.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use mainstay_engine::fs::{File, Fs, OpenMode, read_exact_at};
use mainstay_engine::table::TableFile;
use mainstay_engine::tree::Checkpoint;
use mainstay_engine::{CommitTs, Epoch, Lsn, Position, TimelineId};
use object_store::MultipartUpload;
use serde::Serialize;
use ulid::Ulid;

use crate::error::{Error, Result};
use crate::repository::access::{Access, Created};
use crate::repository::documents::{BaseDoc, BlobRef, Document, FORMAT, TableId, TableRef, number, text};
use crate::repository::names::{ContentHash, ObjectName};
use crate::repository::{Repository, new_ulid};
use crate::wal_object::Writer;

const PARALLEL_TABLES: usize = 4;
/// Size of a part, and of a read from disk. Parts are equal, as some stores demand.
pub(crate) const PART_BYTES: usize = 8 << 20;
/// Tables up to this size go up in one request.
const SINGLE_PUT_BYTES: u64 = 2 * PART_BYTES as u64;
/// Bound of an engine manifest.
pub(crate) const MANIFEST_BYTES_MAX: u64 = 256 << 20;

/// A checkpoint to upload.
#[derive(Clone, Debug)]
pub struct BaseSource {
    /// The directory that holds `tables/`.
    pub dir: PathBuf,
    /// The cut.
    pub position: Position,
    /// The tables.
    pub tables: Vec<TableFile>,
    /// The engine's manifest.
    pub manifest: Vec<u8>,
}

impl BaseSource {
    /// The checkpoint that `Store::checkpoint` made in `dir`.
    #[must_use]
    pub fn new(dir: &Path, checkpoint: Checkpoint) -> Self {
        let Checkpoint { position, tables, manifest } = checkpoint;
        Self { dir: dir.to_owned(), position, tables, manifest }
    }
}

/// A base backup, without its list of tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BaseInfo {
    /// Its name.
    #[serde(with = "text")]
    pub id: Ulid,
    /// The timeline it was taken on.
    #[serde(with = "text")]
    pub timeline: TimelineId,
    /// Epoch of the cut.
    #[serde(with = "number")]
    pub epoch: Epoch,
    /// LSN of the cut.
    #[serde(with = "number")]
    pub lsn: Lsn,
    /// Commit timestamp of the cut.
    #[serde(with = "number")]
    pub ts: CommitTs,
    /// Size of tables and manifest in bytes.
    pub bytes: u64,
    /// Number of tables.
    pub tables: u64,
    /// Bytes uploaded for it; the rest was there from earlier bases. Zero when listed.
    pub uploaded_bytes: u64,
    /// When it was written, microseconds since the Unix epoch.
    pub created_us: u64,
}

impl From<&BaseDoc> for BaseInfo {
    fn from(d: &BaseDoc) -> Self {
        Self {
            id: d.id,
            timeline: d.timeline,
            epoch: d.at.epoch,
            lsn: d.at.lsn,
            ts: d.at.ts,
            bytes: d.tables.iter().map(|t| t.bytes).fold(d.manifest.bytes, u64::saturating_add),
            tables: d.tables.len() as u64,
            uploaded_bytes: 0,
            created_us: d.created_us,
        }
    }
}

/// The path of a table file in a checkpoint or data directory.
pub(crate) fn table_path(dir: &Path, id: u128) -> PathBuf {
    dir.join("tables").join(format!("{id:032x}.table"))
}

/// Uploads a checkpoint: the tables that the repository lacks, the manifest, then the document.
/// `progress` gets (bytes done, bytes in all); tables that were there count as done.
///
/// # Errors
/// `Damaged` when a table file is not what the checkpoint says; `ForeignCluster`, `Probe`, or the
/// store's. Without success no base exists, only tables that the next attempt finds in place.
pub async fn create_base(
    repository: &Repository,
    source: &BaseSource,
    writer: &Writer,
    progress: impl Fn(u64, u64) + Send + Sync,
) -> Result<BaseInfo> {
    repository.for_cluster(writer.cluster).await?;
    let access = repository.access().await?;
    let manifest = BlobRef { blake3: ContentHash::of(&source.manifest), bytes: source.manifest.len() as u64 };
    let total = source.tables.iter().map(|t| t.bytes).fold(manifest.bytes, u64::saturating_add);
    let (done, uploaded) = (AtomicU64::new(0), AtomicU64::new(0));
    let advance = |bytes: u64| progress(done.fetch_add(bytes, Ordering::Relaxed) + bytes, total);
    progress(0, total);
    let upload = |table: &TableFile| {
        let (table, access, fs) = (*table, access.clone(), Arc::clone(&repository.env().fs));
        let (advance, uploaded) = (&advance, &uploaded);
        async move {
            let name = ObjectName::Table(ContentHash(table.blake3));
            if access.size(&name).await? == Some(table.bytes) {
                advance(table.bytes);
            } else {
                upload_table(&access, fs, table_path(&source.dir, table.id), &name, &table, advance).await?;
                uploaded.fetch_add(table.bytes, Ordering::Relaxed);
            }
            Ok::<_, Error>(())
        }
    };
    let uploads: Vec<_> = source.tables.iter().map(upload).collect();
    stream::iter(uploads).buffer_unordered(PARALLEL_TABLES).try_collect::<()>().await?;
    let name = ObjectName::Manifest(manifest.blake3);
    if access.size(&name).await? != Some(manifest.bytes) {
        access.put_content(&name, Bytes::from(source.manifest.clone())).await?;
        uploaded.fetch_add(manifest.bytes, Ordering::Relaxed);
    }
    advance(manifest.bytes);
    let table_ref = |t: &TableFile| TableRef {
        id: TableId(t.id),
        bytes: t.bytes,
        blake3: ContentHash(t.blake3),
        entries: t.entries,
    };
    let env = repository.env();
    let doc = BaseDoc {
        format: FORMAT,
        id: new_ulid(env),
        cluster: writer.cluster,
        timeline: writer.timeline,
        at: source.position.into(),
        manifest,
        tables: source.tables.iter().map(table_ref).collect(),
        node: writer.node,
        tool: concat!("mainstay ", env!("CARGO_PKG_VERSION")).to_owned(),
        created_us: env.clock.wall().0,
    };
    commit(&access, &doc).await?;
    Ok(BaseInfo { uploaded_bytes: uploaded.into_inner(), ..BaseInfo::from(&doc) })
}

/// Creates the document. Only now does the base exist.
async fn commit(access: &Access, doc: &BaseDoc) -> Result<()> {
    let name = ObjectName::Base(doc.id);
    match access.create(&name, Bytes::from(doc.encode(&name)?)).await? {
        Created::Ours => Ok(()),
        Created::Taken(_) => Err(Error::Conflict { object: name.to_string(), url: access.url().to_owned() }),
    }
}

async fn upload_table(
    access: &Access,
    fs: Arc<dyn Fs>,
    path: PathBuf,
    name: &ObjectName,
    table: &TableFile,
    advance: impl Fn(u64),
) -> Result<()> {
    let file = blocking({
        let path = path.clone();
        move || fs.open(&path, OpenMode::Read).map_err(|e| mainstay_engine::Error::io("open", &path, e).into())
    })
    .await?;
    let mut parts = if table.bytes > SINGLE_PUT_BYTES { Some(access.put_content_parts(name).await?) } else { None };
    let result = send_parts(access, file, &path, name, table, parts.as_mut(), advance).await;
    if let (Err(_), Some(upload)) = (&result, &mut parts)
        && let Err(e) = upload.abort().await
    {
        tracing::debug!(object = %name, error = %crate::error::redact(&e.to_string()), "parts of an upload stay");
    }
    result
}

async fn send_parts(
    access: &Access,
    file: Arc<dyn File>,
    path: &Path,
    name: &ObjectName,
    table: &TableFile,
    mut parts: Option<&mut Box<dyn MultipartUpload>>,
    advance: impl Fn(u64),
) -> Result<()> {
    let mut hash = blake3::Hasher::new();
    let mut whole = Vec::new();
    let mut offset = 0;
    while offset < table.bytes {
        let want = (table.bytes - offset).min(PART_BYTES as u64) as usize;
        let (file, owned_path) = (Arc::clone(&file), path.to_owned());
        let part = blocking(move || {
            let mut buf = vec![0; want];
            read_exact_at(&*file, &mut buf, offset).map_err(|e| mainstay_engine::Error::io("read", &owned_path, e))?;
            Ok(buf)
        })
        .await?;
        hash.update(&part);
        offset += want as u64;
        // The last part waits for the hash, so that a damaged file never becomes an object.
        if offset == table.bytes && hash.finalize() != table.blake3 {
            break;
        }
        match &mut parts {
            Some(upload) => upload.put_part(part.into()).await.map_err(|e| access.error("write", name, &e))?,
            None => whole.extend_from_slice(&part),
        }
        advance(want as u64);
    }
    if hash.finalize() != table.blake3 {
        return Err(Error::damaged(
            path.display(),
            "the table file does not have the hash that the checkpoint gives it",
        ));
    }
    match parts {
        Some(upload) => upload.complete().await.map(drop).map_err(|e| access.error("finish writing", name, &e)),
        None => access.put_content(name, whole.into()).await,
    }
}

/// Runs file work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await?
}
