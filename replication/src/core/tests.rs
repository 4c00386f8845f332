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

fn word(node: u64, epoch: u64, lsn: u64) -> Sealed {
    let (last, reigns) = (pos(epoch, lsn), Reigns::default());
    Sealed { node: NodeId(node), last, commit: Lsn(0), speaks: true, reigns }
}

fn sealed(node: u64, epoch: u64, lsn: u64) -> Event {
    Event::SealGranted { epoch: Epoch(1), sealed: word(node, epoch, lsn) }
}

fn promote_on(lsn: u64, terms: Terms) -> Event {
    Event::Promote { last: pos(0, lsn), commit: Lsn(0), speaks: true, terms }
}

fn promote(lsn: u64) -> Event {
    promote_on(lsn, Terms::default())
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
    core.step(Event::EpochStarted { epoch: Epoch(1), start: Lsn(1) });
    core
}

fn answer(node: u64, epoch: u64, lsn: u64, round: u64) -> Event {
    Event::Ack { node: NodeId(node), epoch: Epoch(epoch), durable: Lsn(lsn), round }
}

fn ack(node: u64, epoch: u64, lsn: u64) -> Event {
    answer(node, epoch, lsn, 0)
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
    core.step(Event::EpochStarted { epoch: Epoch(1), start: Lsn(9) });
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
    let effects = core.step(seal(2, 2));
    assert_eq!(effects[0], Effect::Persist(core.promise().clone()), "the promise comes first");
    assert_eq!((core.promise().sealed, core.promise().primary), (Epoch(2), Some(NodeId(2))));
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

fn failed(effects: Vec<Effect>) -> NotPromoted {
    match &effects[0] {
        Effect::PromotionFailed(why) => why.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn promotion_needs_proof_that_nothing_committed_is_missing() {
    // Semi-sync 1 with the primary gone needs both survivors (CloudNativePG#8679).
    let mut core = Core::new(NodeId(2), rule(Mode::SemiSync { k: 1 }, 3), Promise::default());
    core.step(promote(5));
    assert_eq!(failed(core.step(Event::SealsIn)), NotPromoted::NoMajority { have: vec![2], missing: vec![1, 3] });
    // A newer log elsewhere wins.
    core.step(promote(5));
    core.step(Event::SealGranted { epoch: Epoch(2), sealed: word(3, 0, 6) });
    assert_eq!(failed(core.step(Event::SealsIn)), NotPromoted::Behind { node: NodeId(3), last: pos(0, 6) });
    // A voter in a later epoch ends the candidacy and is followed.
    core.step(promote(5));
    let effects = core.step(Event::SealRefused { epoch: Epoch(9), primary: Some(NodeId(3)) });
    assert_eq!(failed(effects), NotPromoted::NewerEpoch { epoch: Epoch(9), primary: Some(NodeId(3)) });
    assert_eq!((core.promise().sealed, core.promise().primary), (Epoch(9), Some(NodeId(3))));
}

#[test]
fn a_promise_counts_where_the_word_does_not() {
    // Node 3 is a replaced disk: it seals, but what it held nobody knows.
    let mut core = Core::new(NodeId(2), rule(Mode::Quorum, 3), Promise::default());
    let mute = |epoch| Event::SealGranted { epoch: Epoch(epoch), sealed: Sealed { speaks: false, ..word(3, 0, 9) } };
    core.step(promote(5));
    core.step(mute(1));
    assert_eq!(failed(core.step(Event::SealsIn)), NotPromoted::NotProven { have: vec![2], missing: vec![1, 3] });
    core.step(promote_on(5, Terms { accept_loss: true, destroyed: vec![] }));
    core.step(mute(2));
    assert!(matches!(core.step(Event::SealsIn)[..], [Effect::StartEpoch { lossy: true, .. }]));
}

#[test]
fn accepting_a_loss_does_not_replace_the_promises_of_a_majority() {
    let mut core = Core::new(NodeId(2), rule(Mode::Quorum, 3), Promise::default());
    core.step(promote_on(5, Terms { accept_loss: true, destroyed: vec![] }));
    assert_eq!(failed(core.step(Event::SealsIn)), NotPromoted::NoMajority { have: vec![2], missing: vec![1, 3] });
    // Naming the destroyed voters does; that they held nothing else is still to be accepted.
    let destroyed = vec![NodeId(1), NodeId(3)];
    core.step(promote_on(5, Terms { accept_loss: false, destroyed: destroyed.clone() }));
    assert!(matches!(failed(core.step(Event::SealsIn)), NotPromoted::NotProven { .. }));
    core.step(promote_on(5, Terms { accept_loss: true, destroyed }));
    assert!(matches!(core.step(Event::SealsIn)[..], [Effect::StartEpoch { lossy: true, .. }]));
}

/// Async: whoever may have led must be among the sealed, also one that only this voter sealed for.
#[test]
fn an_async_promotion_without_loss_needs_everybody_who_may_have_led() {
    let granted =
        |epoch, node, reigns| Event::SealGranted { epoch: Epoch(epoch), sealed: Sealed { reigns, ..word(node, 0, 5) } };
    let mut core = Core::new(NodeId(1), rule(Mode::Async, 3), Promise::default());
    // Node 1 led by configuration; node 3 once sealed for node 2, which may have won.
    let sealed_for_2 = Reigns::from_parts(Epoch(1), [(NodeId(1), Epoch(1)), (NodeId(2), Epoch(2))]);
    core.step(promote(5));
    core.step(granted(1, 3, sealed_for_2));
    assert!(matches!(failed(core.step(Event::SealsIn)), NotPromoted::NotProven { .. }), "node 2 may have led");
    // With node 2 itself among them all is here.
    core.step(promote(5));
    core.step(granted(2, 2, Reigns::from_parts(Epoch(2), [(NodeId(2), Epoch(2))])));
    assert!(matches!(core.step(Event::SealsIn)[..], [Effect::StartEpoch { lossy: false, .. }]));
    // Without the configured primary, and nothing known of anybody else: not proven.
    let mut core = Core::new(NodeId(2), rule(Mode::Async, 3), Promise::default());
    core.step(promote(5));
    core.step(granted(1, 3, Reigns::default()));
    assert!(matches!(failed(core.step(Event::SealsIn)), NotPromoted::NotProven { .. }));
}

#[test]
fn who_led_is_remembered_from_its_first_message_on() {
    let mut core = Core::new(NodeId(3), rule(Mode::Async, 3), Promise::default());
    let seal = Event::SealRequest { epoch: Epoch(2), candidate: NodeId(2), last: pos(0, 1), commit: Lsn(0) };
    core.step(seal);
    assert_eq!(core.promise().reigns, Reigns::from_parts(Epoch(0), [(NodeId(2), Epoch(2))]));
    let message = || Event::FromPrimary { epoch: Epoch(2), primary: NodeId(2), commit: Lsn(0), last: Lsn(1) };
    let effects = core.step(message());
    assert_eq!(effects, [Effect::Persist(core.promise().clone()), Effect::Accept]);
    assert_eq!(core.promise().reigns, Reigns::from_parts(Epoch(2), [(NodeId(2), Epoch(2))]));
    assert_eq!(core.step(message()), [Effect::Accept], "persisted once");
}

#[test]
fn reads_are_confirmed_by_answers_of_this_epoch_only() {
    let mut q = primary(Mode::Quorum);
    assert_eq!(q.step(answer(2, 0, 1, 7)), [], "an answer of another epoch");
    assert_eq!(q.step(answer(2, 1, 0, 7)), [Effect::Confirmed(7)]);
    assert_eq!(q.step(answer(3, 1, 0, 6)), [], "an older round is no news");
    assert_eq!(q.step(answer(3, 1, 0, 8)), [Effect::Confirmed(8)]);
    q.step(Event::SealRequest { epoch: Epoch(2), candidate: NodeId(2), last: pos(1, 5), commit: Lsn(5) });
    assert_eq!(q.step(answer(3, 1, 0, 9)), [], "deposed");
    // Five nodes: two answers and the primary make a majority, one does not.
    let mut five = Core::new(NodeId(1), rule(Mode::Quorum, 5), Promise::default());
    five.step(promote(0));
    for node in 2..=5 {
        five.step(sealed(node, 0, 0));
    }
    five.step(Event::SealsIn);
    five.step(Event::EpochStarted { epoch: Epoch(1), start: Lsn(1) });
    assert_eq!(five.step(answer(4, 1, 0, 3)), []);
    assert_eq!(five.step(answer(5, 1, 0, 2)), [Effect::Confirmed(2)]);
}

#[test]
fn a_primary_that_cannot_commit_may_be_promoted_again_and_a_healthy_one_not() {
    let mut q = primary(Mode::Sync);
    for node in [2, 3] {
        q.step(ack(node, 1, 1));
    }
    assert_eq!(failed(q.step(promote(1))), NotPromoted::AlreadyPrimary(Epoch(1)));
    q.step(Event::Disconnected { node: NodeId(3) });
    q.step(promote(1));
    q.step(Event::SealGranted { epoch: Epoch(2), sealed: word(2, 0, 1) });
    let effects = q.step(Event::SealsIn);
    let [Effect::StartEpoch { rule, lossy: false, .. }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(rule.in_sync(), [NodeId(1), NodeId(2)]);
    assert!(rule.is_degraded());
}

#[test]
fn a_reign_that_was_overtaken_does_not_begin() {
    let mut core = Core::new(NodeId(1), rule(Mode::Quorum, 3), Promise::default());
    core.step(promote(0));
    core.step(sealed(2, 0, 0));
    assert!(matches!(core.step(Event::SealsIn)[..], [Effect::StartEpoch { .. }]));
    core.step(Event::SealRequest { epoch: Epoch(2), candidate: NodeId(2), last: pos(0, 0), commit: Lsn(0) });
    assert_eq!(core.step(Event::EpochStarted { epoch: Epoch(1), start: Lsn(1) }), []);
    assert_eq!(core.leads(), None);
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
                node.core = Core::new(node.core.me(), rule(mode, n), node.disk.clone());
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
    let effects = nodes[from].core.step(Event::Ack { node, epoch, durable: last, round: 0 });
    settle(&mut nodes[from], effects, committed)
}

fn elect(nodes: &mut [Node], i: usize, unreachable: usize, committed: &[u64]) -> Result<bool, String> {
    let facts =
        |n: &Node| (pos(n.durable.checked_sub(1).map_or(0, |d| n.log[d]), n.durable as u64), Lsn(n.commit as u64));
    // A candidate syncs its log before it counts itself.
    nodes[i].durable = nodes[i].log.len();
    let (last, commit) = facts(&nodes[i]);
    let me = nodes[i].core.me();
    let event = Event::Promote { last, commit, speaks: true, terms: Terms::default() };
    let effects = nodes[i].core.step(event);
    let Some(Effect::SendSeals { epoch }) = effects.last().cloned() else { return Ok(false) };
    settle(&mut nodes[i], effects, &mut Vec::new())?;
    for j in (0..nodes.len()).filter(|j| *j != i && *j != unreachable) {
        let (last, commit) = facts(&nodes[j]);
        let effects = nodes[j].core.step(Event::SealRequest { epoch, candidate: me, last, commit });
        let answer = effects.iter().find_map(|e| if let Effect::Answer(a) = e { Some(*a) } else { None });
        settle(&mut nodes[j], effects, &mut Vec::new())?;
        let event = match answer {
            Some(SealAnswer::Granted { last, commit }) => {
                let (node, reigns) = (nodes[j].core.me(), nodes[j].core.promise().reigns.clone());
                Event::SealGranted { epoch, sealed: Sealed { node, last, commit, speaks: true, reigns } }
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
    let effects = nodes[i].core.step(Event::EpochStarted { epoch, start });
    settle(&mut nodes[i], effects, &mut Vec::new())?;
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
            (Mode::Async, 3),
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
