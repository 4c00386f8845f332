//! The store probe and the claim on a repository.

use std::sync::Arc;

use mainstay_engine::ClusterId;

use crate::Repository;
use crate::error::Error;
use crate::testing::{CLUSTER, FaultStore, Faults, names, repository};

#[tokio::test]
async fn a_store_that_ignores_conditional_create_is_refused_before_anything_is_written() {
    let store = FaultStore::new(1);
    store.set(Faults { overwrites: true, ..Faults::default() });
    let error = repository(&store).for_cluster(CLUSTER).await.unwrap_err();
    assert!(matches!(&error, Error::Probe { what, .. } if what.contains("conditional create is ignored")), "{error}");
    assert!(names(&store, "repo.json").await.is_empty() && names(&store, "probe").await.is_empty());
}

#[tokio::test]
async fn a_store_whose_listing_lags_is_refused() {
    let store = FaultStore::new(1);
    store.set(Faults { blind_list: true, ..Faults::default() });
    let error = repository(&store).for_cluster(CLUSTER).await.unwrap_err();
    assert!(error.to_string().contains("listing"), "{error}");
}

#[tokio::test]
async fn a_store_that_only_fails_now_and_then_passes() {
    for seed in 0..50 {
        let store = FaultStore::new(seed);
        store.set(Faults { unavailable: 10, lost_reply: 10, ..Faults::default() });
        repository(&store).for_cluster(CLUSTER).await.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

#[tokio::test]
async fn a_foreign_cluster_is_refused_with_both_ids() {
    let store = FaultStore::new(1);
    repository(&store).for_cluster(CLUSTER).await.unwrap();
    repository(&store).for_cluster(CLUSTER).await.unwrap();
    let text = repository(&store).for_cluster(ClusterId(0xdd)).await.unwrap_err().to_string();
    assert!(text.contains(&CLUSTER.to_string()) && text.contains(&ClusterId(0xdd).to_string()), "{text}");
    let text = repository(&store).check(Some(ClusterId(0xdd))).await.unwrap_err().to_string();
    assert!(text.contains("belongs to cluster"), "{text}");
}

#[tokio::test]
async fn a_directory_is_made_by_writers_only() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("new/repository");
    let url = format!("file://{}", dir.display());
    let error = Repository::open(&url).unwrap().check(None).await.unwrap_err();
    assert!(matches!(error, Error::NoRepository(_)) && !dir.exists(), "{error}");
    let repository = Repository::open(&url).unwrap();
    repository.for_cluster(CLUSTER).await.unwrap();
    assert_eq!(Repository::open(&url).unwrap().check(Some(CLUSTER)).await.unwrap().cluster, CLUSTER);
    let empty = format!("file://{}", root.path().display());
    assert!(matches!(Repository::open(&empty).unwrap().check(None).await, Err(Error::NoRepository(_))));
}

#[tokio::test]
async fn a_newer_repository_is_refused() {
    use object_store::ObjectStoreExt;
    let store = FaultStore::new(1);
    let path = object_store::path::Path::from("repo.json");
    Arc::clone(&store).put(&path, br#"{"format": 9}"#.to_vec().into()).await.unwrap();
    let error = repository(&store).for_cluster(CLUSTER).await.unwrap_err();
    assert!(matches!(error, Error::NewerFormat { found: 9, .. }), "{error}");
}
