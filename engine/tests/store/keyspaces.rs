//! Keyspaces stand beside each other: what is done to one leaves the others as they are, at every age of the keys.

use std::collections::BTreeMap;

use mainstay_engine::Lsn;
use mainstay_engine::batch::{Batch, Keyspace};
use mainstay_engine::store::Durability;
use mainstay_engine::tree::View;
use mainstay_engine::value::Value;

use crate::world::{Act, World};

/// The first, neighbours, and the last two.
const SPACES: [Keyspace; 5] = [Keyspace::SYSTEM, Keyspace::USER, Keyspace(2), Keyspace(0xfe), Keyspace(0xff)];

/// Lowest and highest keys there are, and what lies between.
const KEYS: [&[u8]; 7] = [&[], &[0], &[0, 0xff], b"a", b"b", &[0xff], &[0xff, 0xff, 0xff]];

type Found = BTreeMap<(Keyspace, Vec<u8>), u8>;

/// Every value, by scans that agree with reads of each key.
fn found(view: &View) -> Found {
    let mut out = Found::new();
    for space in SPACES {
        for entry in view.scan(space, b"", b"", false).map(Result::unwrap) {
            out.insert((space, entry.key), Value::decode(&entry.envelope).unwrap().data[0]);
        }
        for key in KEYS {
            let one = view.get(space, key).unwrap().map(|f| Value::decode(&f.envelope).unwrap().data[0]);
            assert_eq!(one.as_ref(), out.get(&(space, key.to_vec())), "{space:?} {key:02x?}");
        }
    }
    out
}

fn write(world: &World, batch: &Batch) -> Lsn {
    world.store().write(batch, &[], Durability::Synced).unwrap().position.lsn
}

/// Writes every key to every keyspace, acts on one of them, and looks at all at each age of both; what is `left` in that
/// one must be there, and everything in the others.
fn at_each_age(act: impl Fn(Keyspace, &mut Batch), left: impl Fn(&[u8]) -> bool) {
    for acted in SPACES {
        for flushed in [false, true] {
            let mut world = World::new(8);
            let mut batch = Batch::new();
            for (space, key) in SPACES.iter().flat_map(|s| KEYS.iter().map(move |k| (*s, *k))) {
                batch.put_with(space, key, &Value::plain(&[space.0])).unwrap();
            }
            let before = write(&world, &batch);
            let all = found(&world.store().view());
            assert_eq!(all.len(), SPACES.len() * KEYS.len());
            if flushed {
                world.store().tree().flush_all().unwrap();
            }
            let mut batch = Batch::new();
            act(acted, &mut batch);
            write(&world, &batch);
            let mut expected = all.clone();
            expected.retain(|(space, key), _| *space != acted || left(key));
            let check = |world: &World, age: &str| {
                let what = format!("{acted:?}, flushed before: {flushed}, {age}");
                assert_eq!(found(&world.store().view()), expected, "{what}");
                assert_eq!(found(&world.store().view_at(before).unwrap()), all, "{what}, as it was before");
            };
            check(&world, "in a memtable");
            world.store().tree().flush_all().unwrap();
            check(&world, "in tables");
            world.store().tree().compact_all().unwrap();
            check(&world, "merged");
            // What is written now stands above what was deleted.
            let mut batch = Batch::new();
            KEYS.iter().for_each(|k| _ = batch.put_with(acted, k, &Value::plain(&[acted.0])).unwrap());
            write(&world, &batch);
            assert_eq!(found(&world.store().view()), all, "{acted:?}");
            world.act(&Act::Maintain).unwrap();
            assert_eq!(found(&world.store().view()), all, "{acted:?}");
        }
    }
}

#[test]
fn a_key_is_deleted_in_its_keyspace_and_no_other() {
    for doomed in KEYS {
        at_each_age(|space, batch| _ = batch.delete_in(space, doomed).unwrap(), |key| key != doomed);
    }
}

#[test]
fn a_range_delete_ends_with_its_keyspace() {
    // All of it, from a key on, up to a key, between two.
    let ranges: [(&[u8], &[u8]); 5] =
        [(b"", b""), (b"b", b""), (&[0xff, 0xff], b""), (b"", &[0xff, 0xff, 0xff, 0xff]), (b"a", b"b")];
    for (start, end) in ranges {
        at_each_age(
            |space, batch| _ = batch.delete_range_in(space, start, end).unwrap(),
            |key| key < start || (!end.is_empty() && key >= end),
        );
    }
}
