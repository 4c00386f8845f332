//! Base and restore: landing exactly, verified, in one rename.

use std::sync::Arc;

use mainstay_engine::table::TableFile;
use mainstay_engine::{ClusterId, Lsn, Position};

use super::{archive_all, base, epoch};
use crate::base::create_base;
use crate::error::Error;
use crate::plan::{RestorePlan, Target, plan};
use crate::restore::{RestoreOptions, Restored, execute};
use crate::table_copy::copy_table;
use crate::testing::{
    CLUSTER, FaultStore, Faults, History, Replayed, T1, WRITER, checkpoint, damage, names, remove, repository, ts_of,
};

async fn archived() -> (Arc<FaultStore>, History) {
    let store = FaultStore::new(1);
    let history = History::new().epoch(1, 20).epoch(2, 10);
    archive_all(&store, &history, epoch(2), 400).await;
    base(&store, history.position(10), WRITER).await;
    (store, history)
}

async fn run(store: &Arc<FaultStore>, p: &RestorePlan, dir: &std::path::Path) -> (crate::Result<Restored>, Replayed) {
    let replayed = Replayed::default();
    let result = execute(&repository(store), p, dir, replayed.clone(), &RestoreOptions::default()).await;
    (result, replayed)
}

#[tokio::test]
async fn every_lsn_and_every_time_is_landed_at_exactly() {
    let (store, history) = archived().await;
    let root = tempfile::tempdir().unwrap();
    for lsn in 10..=30u64 {
        for (kind, target) in [("lsn", Target::Lsn(Lsn(lsn))), ("time", Target::Time(ts_of(lsn)))] {
            let p = plan(&repository(&store), target, None).await.unwrap();
            let dir = root.path().join(format!("{kind}-{lsn}"));
            let (restored, replayed) = run(&store, &p, &dir).await;
            let restored = restored.unwrap();
            let at = history.position(lsn);
            assert_eq!((restored.lsn, restored.ts, restored.epoch), (at.lsn, at.ts, at.epoch));
            assert_eq!(replayed.lsns(), (11..=lsn).collect::<Vec<_>>());
            assert_eq!((restored.records, restored.parent, restored.cluster), (lsn - 10, T1, CLUSTER));
            assert!(restored.first_lsn.0 >= lsn + (1 << 32) && restored.timeline != T1);
        }
    }
}

#[tokio::test]
async fn tables_arrive_under_their_ids_and_nothing_else_is_left() {
    let (store, _) = archived().await;
    let root = tempfile::tempdir().unwrap();
    let p = plan(&repository(&store), Target::Latest, None).await.unwrap();
    run(&store, &p, &root.path().join("data")).await.0.unwrap();
    let fs = mainstay_engine::Env::real().fs;
    assert_eq!(fs.list(root.path()).unwrap(), ["data"]);
    assert_eq!(fs.list(&root.path().join("data")).unwrap(), ["tables"]);
    let names: Vec<String> = [1, 2].iter().map(|id| format!("{id:032x}.table")).collect();
    assert_eq!(fs.list(&root.path().join("data/tables")).unwrap(), names);
}

#[tokio::test]
async fn existing_data_is_never_written_into() {
    let (store, _) = archived().await;
    let root = tempfile::tempdir().unwrap();
    let p = plan(&repository(&store), Target::Latest, None).await.unwrap();
    let dir = root.path().join("data");
    let fs = mainstay_engine::Env::real().fs;
    fs.create_dir_all(&dir).unwrap();
    run(&store, &p, &dir).await.0.unwrap();
    let error = run(&store, &p, &dir).await.0.unwrap_err();
    assert!(error.to_string().contains("is not empty"), "{error}");
}

#[tokio::test]
async fn a_leftover_is_replaced_by_the_same_plan_and_kept_from_another() {
    let (store, _) = archived().await;
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data");
    let p = plan(&repository(&store), Target::Lsn(Lsn(25)), None).await.unwrap();
    // An attempt that fails half way leaves its working directory, and no result.
    store.set(Faults { unavailable: 100, ..Faults::default() });
    let name = names(&store, "wal").await.pop().unwrap();
    assert!(run(&store, &p, &dir).await.0.is_err());
    store.set(Faults::default());
    let whole = plan(&repository(&store), Target::Latest, None).await.unwrap();
    damage(&store, &name, 230).await;
    assert!(matches!(run(&store, &whole, &dir).await.0, Err(Error::Damaged { .. })));
    damage(&store, &name, 230).await;
    let fs = mainstay_engine::Env::real().fs;
    assert!(!dir.exists() && fs.exists(&root.path().join("data.restoring")).unwrap());
    let error = run(&store, &p, &dir).await.0.unwrap_err();
    assert!(error.to_string().contains("left over from another restore"), "{error}");
    run(&store, &whole, &dir).await.0.unwrap();
    assert_eq!(fs.list(root.path()).unwrap(), ["data"]);
}

#[tokio::test]
async fn a_flipped_bit_or_a_lost_object_anywhere_is_found_before_the_restore_exists() {
    let (store, _) = archived().await;
    let root = tempfile::tempdir().unwrap();
    let p = plan(&repository(&store), Target::Latest, None).await.unwrap();
    let mut objects: Vec<String> = p.pieces.iter().map(|p| p.name.to_string()).collect();
    objects.extend(names(&store, "sst").await);
    objects.extend(names(&store, "manifest").await);
    for (i, name) in objects.iter().enumerate() {
        let dir = root.path().join(i.to_string());
        damage(&store, name, 4).await;
        let error = run(&store, &p, &dir).await.0.unwrap_err();
        assert!(error.to_string().contains(name.as_str()) && !dir.exists(), "{name}: {error}");
        damage(&store, name, 4).await;
    }
    for (i, name) in objects.iter().enumerate() {
        let (store, _) = archived().await;
        let p = plan(&repository(&store), Target::Latest, None).await.unwrap();
        remove(&store, name).await;
        let dir = root.path().join(format!("lost-{i}"));
        assert!(run(&store, &p, &dir).await.0.is_err() && !dir.exists(), "{name}");
    }
}

#[tokio::test]
async fn a_base_whose_document_lies_about_its_cut_is_refused() {
    let (store, history) = archived().await;
    let root = tempfile::tempdir().unwrap();
    let mut p = plan(&repository(&store), Target::Latest, None).await.unwrap();
    p.base.at = Position { chain: mainstay_engine::Chain([1; 16]), ..history.position(10) }.into();
    let error = run(&store, &p, &root.path().join("data")).await.0.unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    // A plan that was changed on the way lands elsewhere than it says.
    let mut p = plan(&repository(&store), Target::Latest, None).await.unwrap();
    p.pieces.pop();
    let error = run(&store, &p, &root.path().join("data2")).await.0.unwrap_err();
    assert!(matches!(error, Error::Unverified(_)), "{error}");
}

#[tokio::test]
async fn a_restore_that_ends_one_record_early_is_not_called_done() {
    let (store, _) = archived().await;
    let root = tempfile::tempdir().unwrap();
    let p = plan(&repository(&store), Target::Latest, None).await.unwrap();
    let _bug = mainstay_engine::fault::plant(mainstay_engine::fault::Bug::RestoreStopsEarly);
    let error = run(&store, &p, &root.path().join("data")).await.0.unwrap_err();
    assert!(matches!(error, Error::Unverified(_)) && !root.path().join("data").exists(), "{error}");
}

#[tokio::test]
async fn an_s3_bucket_serves_a_whole_round() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let Ok(url) = std::env::var("MAINSTAY_TEST_S3_URL") else {
        assert!(
            std::env::var_os("MAINSTAY_REQUIRE_S3").is_none(),
            "MAINSTAY_TEST_S3_URL must name an S3 server's bucket"
        );
        println!("absent: set MAINSTAY_TEST_S3_URL and AWS_* to run this test against an S3 server");
        return;
    };
    whole_round(&crate::Repository::open(&url).unwrap()).await;
    let (bucket, rest) = url.trim_start_matches("s3://").split_once('/').unwrap();
    let missing = format!("s3://{bucket}-missing/{rest}");
    let error = crate::Repository::open(&missing).unwrap().for_cluster(CLUSTER).await.unwrap_err().to_string();
    assert!(error.contains(&format!("{bucket}-missing")) && error.contains("NoSuchBucket"), "{error}");
    println!("{error}");
}

#[tokio::test]
async fn transient_faults_do_not_stop_a_backup_or_a_restore() {
    for seed in 0..10 {
        let store = FaultStore::new(seed);
        let history = History::new().epoch(1, 20);
        archive_all(&store, &history, WRITER, 400).await;
        store.set(Faults { unavailable: 20, lost_reply: 10, phantom_conflict: 5, ..Faults::default() });
        base(&store, history.position(10), WRITER).await;
        let p = plan(&repository(&store), Target::Latest, None).await.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let root = tempfile::tempdir().unwrap();
        let (restored, _) = run(&store, &p, &root.path().join("data")).await;
        assert_eq!(restored.unwrap_or_else(|e| panic!("seed {seed}: {e}")).lsn, Lsn(20), "seed {seed}");
    }
}

#[tokio::test]
async fn a_second_base_uploads_only_what_differs() {
    let (store, history) = archived().await;
    let second = base(&store, history.position(20), WRITER).await;
    assert_eq!((second.tables, second.uploaded_bytes), (2, b"table of 20".len() as u64));
    let bases = repository(&store).bases().await.unwrap();
    assert_eq!(bases.iter().map(|b| b.lsn.0).collect::<Vec<_>>(), [10, 20]);
}

#[tokio::test]
async fn a_table_that_is_not_what_the_checkpoint_says_makes_no_base() {
    let store = FaultStore::new(1);
    for size in [100, (20 << 20) + 5] {
        let dir = tempfile::tempdir().unwrap();
        let mut source = checkpoint(dir.path(), Position::default(), &[(5, vec![7; size])]);
        source.tables[0].blake3[0] ^= 1;
        let error = create_base(&repository(&store), &source, &WRITER, |_, _| ()).await.unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        assert!(names(&store, "base").await.is_empty() && names(&store, "sst").await.is_empty());
        source.tables[0].blake3[0] ^= 1;
        let (first, last) = (std::sync::atomic::AtomicU64::new(u64::MAX), std::sync::atomic::AtomicU64::new(0));
        let progress = |done, total| {
            first.fetch_min(done, std::sync::atomic::Ordering::Relaxed);
            last.fetch_max(done, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(total, size as u64 + 8);
        };
        create_base(&repository(&store), &source, &WRITER, progress).await.unwrap();
        assert_eq!((first.into_inner(), last.into_inner()), (0, size as u64 + 8));
        for name in [names(&store, "base").await, names(&store, "sst").await].concat() {
            remove(&store, &name).await;
        }
    }
}

#[tokio::test]
async fn a_directory_repository_serves_a_whole_round() {
    let root = tempfile::tempdir().unwrap();
    whole_round(&crate::Repository::open(&format!("file://{}", root.path().join("repo").display())).unwrap()).await;
}

async fn whole_round(repository: &crate::Repository) {
    let root = tempfile::tempdir().unwrap();
    let history = History::new().epoch(1, 20);
    let log = crate::testing::MemoryLog::new(&history);
    let committed = mainstay_engine::watermark::Watermark::new(Lsn(20));
    let archived = mainstay_engine::watermark::Watermark::default();
    let mut archiver = crate::Archiver::new(repository.clone(), WRITER, log, committed, archived, super::options(400));
    super::drain(&mut archiver).await.unwrap();
    let source =
        checkpoint(&root.path().join("cut"), history.position(7), &[(5, vec![7; 100]), (6, vec![8; 20 << 20])]);
    create_base(repository, &source, &WRITER, |_, _| ()).await.unwrap();
    let p = plan(repository, Target::Lsn(Lsn(13)), None).await.unwrap();
    let replayed = Replayed::default();
    let dir = root.path().join("data");
    let restored = execute(repository, &p, &dir, replayed.clone(), &RestoreOptions::default()).await.unwrap();
    assert_eq!((restored.lsn, replayed.lsns()), (Lsn(13), (8..=13).collect()));
}

/// For the repair of one table: found by its hash, checked against it, and nothing is fetched of another cluster's.
#[tokio::test]
async fn a_single_table_is_copied_out_by_its_hash_or_said_not_to_be_there() {
    let (store, _) = archived().await;
    let root = tempfile::tempdir().unwrap();
    let bytes = b"table one";
    let table = TableFile { id: 1, bytes: bytes.len() as u64, blake3: *blake3::hash(bytes).as_bytes(), entries: 0 };
    let to = |name: &str| root.path().join(name);
    assert!(copy_table(&repository(&store), CLUSTER, &table, &to("a"), |_| ()).await.unwrap());
    let fs = mainstay_engine::Env::real().fs;
    assert_eq!(mainstay_engine::fs::read_file(&*fs, &to("a"), 100).unwrap(), bytes);
    let other = TableFile { blake3: [7; 32], ..table };
    assert!(!copy_table(&repository(&store), CLUSTER, &other, &to("b"), |_| ()).await.unwrap());
    let foreign = copy_table(&repository(&store), ClusterId(77), &table, &to("c"), |_| ()).await;
    assert!(matches!(foreign, Err(Error::ForeignCluster { .. })), "{foreign:?}");
    let short = TableFile { bytes: 3, ..table };
    let refused = copy_table(&repository(&store), CLUSTER, &short, &to("d"), |_| ()).await;
    assert!(matches!(refused, Err(Error::Damaged { .. })), "{refused:?}");
    assert_eq!(fs.list(root.path()).unwrap(), ["a"]);
    let hash = crate::repository::names::ContentHash(table.blake3).to_string();
    let name = names(&store, "sst").await.into_iter().find(|n| n.contains(&hash)).unwrap();
    damage(&store, &name, 3).await;
    let refused = copy_table(&repository(&store), CLUSTER, &table, &to("e"), |_| ()).await;
    assert!(matches!(refused, Err(Error::Damaged { .. })), "{refused:?}");
}

/// Files of a disk that does not sync may read well: no restore is made of them, and a node that copies one goes no further.
#[tokio::test]
async fn a_failed_sync_is_no_full_disk_and_leaves_no_restore() {
    use mainstay_engine::clock::SimClock;
    use mainstay_engine::fs::sim::{FaultKind, OpClass, SimFs};
    use mainstay_engine::{CommitTs, Env};

    let (store, _) = archived().await;
    let p = plan(&repository(&store), Target::Latest, None).await.unwrap();
    let dir = std::path::Path::new("/here/data");
    for class in [OpClass::SyncData, OpClass::SyncDir] {
        for kind in [FaultKind::Eio, FaultKind::NoSpace] {
            for nth in 1.. {
                let fs = SimFs::new(nth);
                let (env, _) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1)), nth);
                fs.fail_nth(class, nth, kind);
                let repository = crate::testing::repository_in(&store, env.clone());
                let restored = execute(&repository, &p, dir, Replayed::default(), &RestoreOptions::default()).await;
                let Err(error) = restored else {
                    // The marker and two tables; the working directory twice, its tables, and where it becomes the store.
                    assert_eq!(nth, if class == OpClass::SyncData { 4 } else { 5 }, "{class:?} {kind:?}");
                    break;
                };
                assert!(matches!(error, Error::NotSynced { .. }), "{class:?} {kind:?} {nth}: {error}");
                assert!(!env.fs.exists(dir).unwrap(), "{class:?} {kind:?} {nth}: it looks like a restore");
            }
            let fs = SimFs::new(1);
            let (env, fatal) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1)), 1);
            let repository = crate::testing::repository_in(&store, env);
            let bytes = b"table one";
            let table =
                TableFile { id: 1, bytes: bytes.len() as u64, blake3: *blake3::hash(bytes).as_bytes(), entries: 0 };
            fs.fail_nth(OpClass::SyncData, 1, kind);
            let refused = copy_table(&repository, CLUSTER, &table, std::path::Path::new("/copy"), |_| ()).await;
            assert!(matches!(refused, Err(Error::Engine(mainstay_engine::Error::Stopped(_)))), "{refused:?}");
            let told = fatal.messages();
            assert!(told.len() == 1 && told[0].contains("cannot sync /copy"), "{told:?}");
        }
    }
}
