//! Asks a store whether it keeps the promises that a repository stands on, before the first write.
//!
//! Owns: the questions and the sentence a failing store is refused with. Never: touching an object
//! that is not a probe's own.

use bytes::Bytes;
use futures::future::join_all;
use mainstay_engine::{Env, rng::Rng};
use object_store::{ObjectStore, PutMode, PutOptions, PutPayload};
use ulid::Ulid;

use super::access::{Access, kind_of};
use super::names::{Listing, ObjectName};
use crate::error::{Error, Result, StoreKind};

const RACERS: u8 = 4;
const ATTEMPTS: usize = 5;

/// A new random name, ordered by wall time.
pub(crate) fn new_ulid(env: &Env) -> Ulid {
    let random = u128::from(env.rng.next_u64()) << 64 | u128::from(env.rng.next_u64());
    Ulid::from_parts(env.clock.wall().0 / 1_000, random)
}

/// Runs the probe: exclusive create (four at once, then once more), read-back, range, list-after-put.
///
/// # Errors
/// `Probe` with what the store failed to do; the store's own errors as they are.
pub(crate) async fn probe(access: &Access, env: &Env) -> Result<()> {
    let name = ObjectName::Probe(new_ulid(env));
    let result = questions(access, &name, &*env.rng).await;
    access.discard(&name).await;
    result
}

async fn create(access: &Access, name: &ObjectName, body: Bytes) -> object_store::Result<()> {
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    access.store().put_opts(&name.path(), PutPayload::from(body), options).await.map(drop)
}

async fn questions(access: &Access, name: &ObjectName, rng: &dyn Rng) -> Result<()> {
    let refuse = |what: &str| Err(Error::Probe { url: access.url().to_owned(), what: what.to_owned() });
    let body = |n: u8| Bytes::from(format!("mainstay probe {n} {:016x}", rng.next_u64()));
    let bodies: Vec<Bytes> = (0..RACERS).map(body).collect();
    let mut landed = false;
    for _ in 0..ATTEMPTS {
        let results = join_all(bodies.iter().map(|b| create(access, name, b.clone()))).await;
        let created = results.iter().filter(|r| r.is_ok()).count();
        if created > 1 {
            return refuse(
                "it lets several writers create one name (conditional create is ignored), so an archive could be overwritten",
            );
        }
        // The answer to a create says why; the one to the look below has no body to say it in.
        let refused = results.into_iter().find(|r| r.as_ref().is_err_and(|e| is_final(kind_of(e))));
        if created == 0
            && let Some(Err(e)) = refused
        {
            return Err(access.error("create", name, &e));
        }
        landed = access.size(name).await?.is_some();
        if landed {
            break;
        }
    }
    if !landed {
        return refuse("it takes no object");
    }
    let found = access.get(name, 1 << 10).await?;
    if !bodies.contains(&found) {
        return refuse("it gives back other bytes than were written");
    }
    for attempt in 1..=ATTEMPTS {
        match create(access, name, body(RACERS)).await {
            Ok(()) => {
                return refuse(
                    "it overwrites an existing name on create (conditional create is ignored); use a store that honours If-None-Match",
                );
            }
            Err(e) if kind_of(&e) == StoreKind::AlreadyExists => break,
            Err(e) if is_final(kind_of(&e)) || attempt == ATTEMPTS => return Err(access.error("create", name, &e)),
            Err(_) => {}
        }
    }
    if access.get(name, 1 << 10).await? != found {
        return refuse("a refused create changed the object");
    }
    if access.get_range(name, 3..9).await? != found.slice(3..9) {
        return refuse("it does not answer range reads");
    }
    let (listed, _) = access.list(Listing::Probes).await?;
    if !listed.iter().any(|l| l.name == *name && l.bytes == found.len() as u64) {
        return refuse("a listing does not show an object that was just written");
    }
    Ok(())
}

const fn is_final(kind: StoreKind) -> bool {
    matches!(kind, StoreKind::NotFound | StoreKind::Denied | StoreKind::Unsupported)
}
