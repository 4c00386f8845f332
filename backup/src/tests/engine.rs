//! The whole way with the real engine: write, checkpoint, archive, restore, open, archive again.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use mainstay_engine::batch::{Batch, Keyspace};
use mainstay_engine::store::{Durability, Identity, Store};
use mainstay_engine::value::Value;
use mainstay_engine::watermark::Watermark;
use mainstay_engine::{Env, Epoch, Lsn, Options};

use crate::plan::{Target, plan};
use crate::testing::{CLUSTER, FaultStore, T1, WRITER, repository};
use crate::{Archiver, BaseSource, EngineFactory, LogSource, RestoreOptions, Writer, create_base, execute};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn write(store: &Store, models: &mut BTreeMap<Lsn, Model>, n: u32) {
    for i in 0..n {
        let mut model = models.last_key_value().map(|(_, m)| m.clone()).unwrap_or_default();
        let (key, value) =
            (format!("key {:02}", i * 7 % 31).into_bytes(), format!("{i} {}", "v".repeat(50)).into_bytes());
        let mut batch = Batch::new();
        if i % 5 == 4 {
            batch.delete(&key).unwrap();
            model.remove(&key);
        } else {
            batch.put(&key, &value).unwrap();
            model.insert(key, value);
        }
        let at = store.write(&batch, &[], Durability::Synced).unwrap().position.lsn;
        models.insert(at, model);
    }
}

fn content(store: &Store) -> Model {
    let view = store.view();
    let get = |i: u32| {
        let key = format!("key {i:02}").into_bytes();
        let found = view.get(Keyspace::USER, &key).unwrap()?;
        Some((key, Value::decode(&found.envelope).unwrap().data.to_vec()))
    };
    (0..31).filter_map(get).collect()
}

async fn archive(bucket: &Arc<FaultStore>, store: &Store, epoch: Epoch) {
    let writer = Writer { timeline: store.identity().timeline, epoch, ..WRITER };
    let (committed, archived) = (Watermark::new(store.log().last().lsn), Watermark::default());
    let source = Arc::new(LogSource::new(Arc::clone(store.log())));
    let mut archiver =
        Archiver::new(repository(bucket), writer, source, committed.clone(), archived, super::options(2000));
    super::drain(&mut archiver).await.unwrap();
    assert_eq!(archiver.handle().status().archived, committed.get());
}

async fn restore(bucket: &Arc<FaultStore>, target: Target, dir: &Path) -> crate::Restored {
    let p = plan(&repository(bucket), target, None).await.unwrap();
    let factory = EngineFactory { options: Options::tiny() };
    execute(&repository(bucket), &p, dir, factory, &RestoreOptions::default()).await.unwrap()
}

#[tokio::test]
async fn a_store_comes_back_as_it_was_at_every_target_and_can_be_archived_and_restored_again() {
    let root = tempfile::tempdir().unwrap();
    let bucket = FaultStore::new(1);
    let identity = Identity { cluster: CLUSTER, timeline: T1 };
    let store = Store::create(Env::real(), &root.path().join("a"), &Options::tiny(), identity).unwrap();
    let _slot = store.log().slot("archive", Lsn(1));
    let mut models = BTreeMap::new();
    write(&store, &mut models, 60);
    let cut = root.path().join("cut");
    let checkpoint = store.checkpoint(&cut).unwrap();
    create_base(&repository(&bucket), &BaseSource::new(&cut, checkpoint), &WRITER, |_, _| ()).await.unwrap();
    write(&store, &mut models, 120);
    archive(&bucket, &store, store.log().last().epoch).await;

    for lsn in models.keys().skip(60).step_by(13).copied() {
        let dir = root.path().join(format!("lsn-{lsn}"));
        let restored = restore(&bucket, Target::Lsn(lsn), &dir).await;
        assert_eq!(restored.lsn, lsn);
        let opened = Store::open(Env::real(), &dir, &Options::tiny()).unwrap();
        assert_eq!(content(&opened), models[&lsn], "restored to {lsn}");
        assert_eq!(opened.identity(), Identity { cluster: CLUSTER, timeline: restored.timeline });
    }

    // The restored cluster goes on in the same bucket, on its own timeline, and restores from there.
    let fork = *models.keys().nth(100).unwrap();
    let dir = root.path().join("b");
    let restored = restore(&bucket, Target::Lsn(fork), &dir).await;
    let second = Store::open(Env::real(), &dir, &Options::tiny()).unwrap();
    let mut models: BTreeMap<_, _> = [(restored.first_lsn, models[&fork].clone())].into();
    write(&second, &mut models, 40);
    archive(&bucket, &second, second.log().last().epoch).await;
    let again = restore(&bucket, Target::Latest, &root.path().join("c")).await;
    assert_eq!((again.parent, again.lsn), (restored.timeline, second.log().last().lsn));
    let third = Store::open(Env::real(), &root.path().join("c"), &Options::tiny()).unwrap();
    assert_eq!(content(&third), *models.last_key_value().unwrap().1);
}
