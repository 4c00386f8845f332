//! Whole small clusters of cores under random schedules, and the refusals one by one.

use mainstay_engine::fault::{Bug, plant};
use mainstay_engine::rng::{Rng, SeededRng};
use mainstay_engine::{Chain, CommitTs};

use super::*;
use crate::rule::Mode;

fn pos(epoch: u64, lsn: u64) -> Position {
    Position { epoch: Epoch(epoch), lsn: Lsn(lsn), chain: Chain::default(), ts: CommitTs(lsn) }
}

fn rule(mode: Mode, n: u64) -> Rule {
    Rule::new(mode, (1..=n).map(NodeId).collect(), NodeId(1), 1).unwrap()
}

fn sealed(node: u64, epoch: u64, lsn: u64) -> Event {
    Event::SealGranted { epoch: Epoch(1), sealed: Sealed { node: NodeId(node), last: pos(epoch, lsn), commit: Lsn(0) } }
}

fn promote(lsn: u64) -> Event {
    Event::Promote { last: pos(0, lsn), commit: Lsn(0), accept_loss: false }
}

/// A primary of epoch 1 among three whose `EpochStart` is record 1.
fn primary(mode: Mode) -> Core {
    let mut core = Core::new(NodeId(1), rule(mode, 3), Promise::default());
    core.step(promote(0));
    core.step(sealed(2, 0, 0));
    core.step(sealed(3, 0, 0));
    let effects = core.step(Event::SealsIn);
    let [Effect::StartEpoch { rule, lossy: false, .. }] = &effects[..] else { panic!("{effects:?}") };
    core.set_rule(rule.clone());
    core.step(Event::EpochStarted { start: Lsn(1) });
    core
}

fn ack(node: u64, epoch: u64, lsn: u64) -> Event {
    Event::Ack { node: NodeId(node), epoch: Epoch(epoch), durable: Lsn(lsn) }
}

#[test]
fn a_record_commits_when_the_rule_is_met_and_not_before() {
    let mut q = primary(Mode::Quorum);
    assert_eq!(q.step(Event::Durable(Lsn(5))), []);
    assert_eq!(q.step(ack(2, 1, 3)), [Effect::Commit(Lsn(3))]);
    assert_eq!(q.step(ack(3, 1, 9)), [Effect::Commit(Lsn(5))]);
    let mut s = primary(Mode::Sync);
    s.step(Event::Durable(Lsn(5)));
    assert_eq!(s.step(ack(2, 1, 5)), []);
    assert_eq!(s.step(ack(3, 1, 4)), [Effect::Commit(Lsn(4))]);
    let mut k = primary(Mode::SemiSync { k: 1 });
    assert_eq!(k.step(ack(2, 1, 5)), []);
    assert_eq!(k.step(ack(3, 1, 5)), []);
    assert_eq!(k.step(Event::Durable(Lsn(4))), [Effect::Commit(Lsn(4))]);
    let mut a = primary(Mode::Async);
    assert_eq!(a.step(Event::Durable(Lsn(2))), [Effect::Commit(Lsn(2))]);
}

#[test]
fn nothing_commits_before_the_epoch_start_does() {
    let mut core = Core::new(NodeId(1), rule(Mode::Quorum, 3), Promise::default());
    core.step(promote(8));
    core.step(sealed(2, 0, 8));
    core.step(Event::SealsIn);
    core.step(Event::EpochStarted { start: Lsn(9) });
    core.step(ack(2, 1, 8));
    assert_eq!(core.step(Event::Durable(Lsn(8))), [], "records of an older epoch commit only through EpochStart");
    core.step(Event::Durable(Lsn(9)));
    assert_eq!(core.step(ack(2, 1, 9)), [Effect::Commit(Lsn(9))]);
}

#[test]
fn acks_of_another_epoch_do_not_count() {
    let mut q = primary(Mode::Quorum);
    q.step(Event::Durable(Lsn(5)));
    assert_eq!(q.step(ack(2, 0, 5)), []);
    assert_eq!(q.step(ack(2, 2, 5)), []);
}

#[test]
fn a_sealed_node_refuses_every_older_epoch() {
    let mut core = Core::new(NodeId(3), rule(Mode::Quorum, 3), Promise::default());
    let seal = |epoch, candidate| Event::SealRequest {
        epoch: Epoch(epoch),
        candidate: NodeId(candidate),
        last: pos(1, 4),
        commit: Lsn(4),
    };
    let from = |epoch, primary| Event::FromPrimary {
        epoch: Epoch(epoch),
        primary: NodeId(primary),
        commit: Lsn(9),
        last: Lsn(7),
    };
    assert_eq!(core.step(from(1, 1)).last(), Some(&Effect::Commit(Lsn(7))), "never beyond its own log");
    assert_eq!(core.step(seal(2, 2))[0], Effect::Persist(Promise { sealed: Epoch(2), primary: Some(NodeId(2)) }));
    assert_eq!(core.step(from(1, 1)), [Effect::Refuse { epoch: Epoch(2), primary: Some(NodeId(2)) }]);
    assert_eq!(
        core.step(from(2, 1)),
        [Effect::Refuse { epoch: Epoch(2), primary: Some(NodeId(2)) }],
        "one primary per epoch"
    );
    let refused = Effect::Answer(SealAnswer::Refused { epoch: Epoch(2), primary: Some(NodeId(2)) });
    assert_eq!(core.step(seal(2, 1)), std::slice::from_ref(&refused));
    assert_eq!(core.step(seal(1, 1)), [refused]);
    assert!(
        matches!(core.step(seal(2, 2))[..], [Effect::Answer(SealAnswer::Granted { .. })]),
        "a repeated question gets the same answer"
    );
    // The rule broken on purpose: the older epoch gets through.
    let _bug = plant(Bug::AcceptOlderEpoch);
    assert!(!matches!(core.step(from(1, 1))[..], [Effect::Refuse { .. }]));
}

#[test]
fn a_deposed_primary_steps_down() {
    let mut q = primary(Mode::Quorum);
    let effects = q.step(Event::SealRequest { epoch: Epoch(2), candidate: NodeId(2), last: pos(1, 5), commit: Lsn(5) });
    assert!(effects.contains(&Effect::RoleChanged) && q.leads().is_none());
    assert_eq!(q.step(ack(3, 1, 9)), [], "it commits nothing any more");
}

#[test]
fn promotion_needs_proof_that_nothing_committed_is_missing() {
    let failed = |effects: Vec<Effect>| match &effects[0] {
        Effect::PromotionFailed(why) => why.clone(),
        other => panic!("{other:?}"),
    };
    // Semi-sync 1 with the primary gone needs both survivors (CloudNativePG#8679).
    let mut core = Core::new(NodeId(2), rule(Mode::SemiSync { k: 1 }, 3), Promise::default());
    core.step(promote(5));
    assert_eq!(failed(core.step(Event::SealsIn)), NotPromoted::NotEnough { have: vec![2], missing: vec![1, 3] });
    // A newer log elsewhere wins.
    core.step(promote(5));
    core.step(Event::SealGranted {
        epoch: Epoch(2),
        sealed: Sealed { node: NodeId(3), last: pos(0, 6), commit: Lsn(0) },
    });
    assert_eq!(failed(core.step(Event::SealsIn)), NotPromoted::Behind { node: NodeId(3), last: pos(0, 6) });
    // Async never promotes without the primary unless told to accept the loss.
    let mut core = Core::new(NodeId(2), rule(Mode::Async, 3), Promise::default());
    core.step(promote(5));
    core.step(sealed(3, 0, 5));
    assert!(matches!(failed(core.step(Event::SealsIn)), NotPromoted::NotEnough { .. }));
    core.step(Event::Promote { last: pos(0, 5), commit: Lsn(0), accept_loss: true });
    assert!(matches!(core.step(Event::SealsIn)[..], [Effect::StartEpoch { lossy: true, .. }]));
    // A voter in a later epoch ends the candidacy and is followed.
    let effects = core.step(Event::SealRefused { epoch: Epoch(9), primary: Some(NodeId(3)) });
    assert_eq!(failed(effects), NotPromoted::NewerEpoch { epoch: Epoch(9), primary: Some(NodeId(3)) });
    assert_eq!(core.promise(), Promise { sealed: Epoch(9), primary: Some(NodeId(3)) });
}

/// A node of the random cluster: its core, and its log as the epochs of its records.
struct Node {
    core: Core,
    log: Vec<u64>,
    durable: usize,
    commit: usize,
    disk: Promise,
}

/// Random schedules of writes, shipping, syncs, crashes and promotions over three or five nodes.
/// Whatever was committed anywhere must be in the log of every later primary, at its place.
fn run(seed: u64, mode: Mode, n: u64) -> Result<(usize, usize), String> {
    let rng = SeededRng::new(seed);
    let pick = |bound: usize| rng.below(bound as u64) as usize;
    let mut nodes: Vec<Node> = (1..=n)
        .map(|id| Node {
            core: Core::new(NodeId(id), rule(mode, n), Promise::default()),
            log: vec![],
            durable: 0,
            commit: 0,
            disk: Promise::default(),
        })
        .collect();
    // (index, epoch of the record) of everything ever committed.
    let mut committed: Vec<u64> = Vec::new();
    let mut reigns = 0;
    for _ in 0..600 {
        let i = pick(nodes.len());
        match pick(12) {
            0..=2 => {
                if let Some(e) = nodes[i].core.leads() {
                    nodes[i].log.push(e.0);
                }
            }
            3..=5 => {
                let len = nodes[i].log.len();
                nodes[i].durable = len;
                let effects = nodes[i].core.step(Event::Durable(Lsn(len as u64)));
                settle(&mut nodes[i], effects, &mut committed)?;
            }
            6..=9 => ship(&mut nodes, i, pick(n as usize), &mut committed)?,
            10 => {
                // Power loss: the unsynced tail is gone, promises on disk are not.
                let node = &mut nodes[i];
                node.log.truncate(node.durable);
                node.commit = 0;
                node.core = Core::new(node.core.me(), rule(mode, n), node.disk);
            }
            _ => {
                let unreachable = pick(n as usize);
                reigns += usize::from(elect(&mut nodes, i, unreachable, &committed)?);
            }
        }
    }
    Ok((committed.len(), reigns))
}

fn settle(node: &mut Node, effects: Vec<Effect>, committed: &mut Vec<u64>) -> Result<(), String> {
    for e in effects {
        match e {
            Effect::Persist(p) => node.disk = p,
            Effect::Commit(Lsn(c)) => {
                let c = c as usize;
                node.commit = node.commit.max(c);
                for at in 0..c.min(node.log.len()) {
                    match committed.get(at) {
                        Some(e) if *e != node.log[at] => {
                            return Err(format!("record {at} committed twice, differently"));
                        }
                        Some(_) => {}
                        None => committed.push(node.log[at]),
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn ship(nodes: &mut [Node], from: usize, to: usize, committed: &mut Vec<u64>) -> Result<(), String> {
    let Role::Primary(reign) = nodes[from].core.role() else { return Ok(()) };
    let (epoch, commit) = (reign.epoch(), reign.commit());
    if from == to {
        return Ok(());
    }
    let (log, primary) = (nodes[from].log.clone(), nodes[from].core.me());
    let target = &mut nodes[to];
    let before = Event::FromPrimary { epoch, primary, commit: Lsn(0), last: Lsn(0) };
    let effects = target.core.step(before);
    let accepted = effects.contains(&Effect::Accept);
    settle(target, effects, committed)?;
    if !accepted {
        return Ok(());
    }
    // Joining: cut what differs, take what is missing; the real rules are in `lineage`.
    let common = target.log.iter().zip(&log).take_while(|(a, b)| a == b).count();
    if common < target.commit {
        return Err("asked to cut a committed record".into());
    }
    target.log.truncate(common);
    target.log.extend(&log[common..]);
    target.durable = target.log.len();
    let last = Lsn(target.log.len() as u64);
    let effects = target.core.step(Event::FromPrimary { epoch, primary, commit, last });
    settle(target, effects, committed)?;
    let node = target.core.me();
    let effects = nodes[from].core.step(Event::Ack { node, epoch, durable: last });
    settle(&mut nodes[from], effects, committed)
}

fn elect(nodes: &mut [Node], i: usize, unreachable: usize, committed: &[u64]) -> Result<bool, String> {
    let facts =
        |n: &Node| (pos(n.durable.checked_sub(1).map_or(0, |d| n.log[d]), n.durable as u64), Lsn(n.commit as u64));
    // A candidate syncs its log before it counts itself.
    nodes[i].durable = nodes[i].log.len();
    let (last, commit) = facts(&nodes[i]);
    let me = nodes[i].core.me();
    let effects = nodes[i].core.step(Event::Promote { last, commit, accept_loss: false });
    let Some(Effect::SendSeals { epoch }) = effects.last().cloned() else { return Ok(false) };
    settle(&mut nodes[i], effects, &mut Vec::new())?;
    for j in (0..nodes.len()).filter(|j| *j != i && *j != unreachable) {
        let (last, commit) = facts(&nodes[j]);
        let effects = nodes[j].core.step(Event::SealRequest { epoch, candidate: me, last, commit });
        let answer = effects.iter().find_map(|e| if let Effect::Answer(a) = e { Some(*a) } else { None });
        settle(&mut nodes[j], effects, &mut Vec::new())?;
        let event = match answer {
            Some(SealAnswer::Granted { last, commit }) => {
                Event::SealGranted { epoch, sealed: Sealed { node: nodes[j].core.me(), last, commit } }
            }
            Some(SealAnswer::Refused { epoch, primary }) => Event::SealRefused { epoch, primary },
            None => return Err("a seal request without an answer".into()),
        };
        let effects = nodes[i].core.step(event);
        settle(&mut nodes[i], effects, &mut Vec::new())?;
    }
    let effects = nodes[i].core.step(Event::SealsIn);
    let Some(Effect::StartEpoch { epoch, rule, .. }) = effects.first().cloned() else { return Ok(false) };
    for (at, e) in committed.iter().enumerate() {
        if nodes[i].log.get(at) != Some(e) {
            return Err(format!("the primary of epoch {epoch} lacks committed record {at}"));
        }
    }
    nodes[i].core.set_rule(rule);
    nodes[i].log.push(epoch.0);
    let start = Lsn(nodes[i].log.len() as u64);
    nodes[i].core.step(Event::EpochStarted { start });
    Ok(true)
}

#[test]
fn no_schedule_loses_a_committed_record() {
    let (mut records, mut reigns) = (0, 0);
    for seed in 0..300 {
        for (mode, n) in [
            (Mode::Quorum, 3),
            (Mode::Sync, 3),
            (Mode::SemiSync { k: 1 }, 3),
            (Mode::Quorum, 5),
            (Mode::SemiSync { k: 2 }, 5),
        ] {
            match run(seed, mode, n) {
                Ok((r, e)) => {
                    records += r;
                    reigns += e;
                }
                Err(why) => panic!("seed {seed}, {mode}, {n} nodes: {why}"),
            }
        }
    }
    assert!(records > 10_000 && reigns > 5_000, "the schedules did too little: {records} records, {reigns} reigns");
}

/// The same schedules with the epoch check taken out must lose something \[I5\].
#[test]
fn the_schedules_notice_a_missing_epoch_check() {
    let _bug = plant(Bug::AcceptOlderEpoch);
    assert!((0..300).any(|seed| run(seed, Mode::Quorum, 3).is_err()));
}
