//! The verdict: facts against what must hold and what was promised.
//!
//! Owns: the decision, as a pure function with reasons. Never: a pass for a check that was not made.

use serde::Serialize;

use super::compare::{Counts, Rpo};

/// How a drill ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Everything was checked and held.
    Pass,
    /// What was checked held, but something could not be checked.
    Partial,
    /// Something that must hold did not.
    Fail,
}

impl Verdict {
    /// The word in tables and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Partial => "partial",
            Verdict::Fail => "fail",
        }
    }
}

/// What may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Allowed {
    /// No acknowledged write.
    Nothing,
    /// The newest ones, up to the RPO objective.
    Tail,
}

/// The promises.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Objectives {
    pub(super) allowed_loss: Allowed,
    pub(super) rpo_seconds: f64,
    pub(super) rto_seconds: f64,
}

/// What was measured. Clocks are seconds from the fault; `None` where the scenario has no such clock.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) acked_before_fault: u64,
    pub(super) counts: Counts,
    pub(super) rpo: Rpo,
    pub(super) prefix_rule_holds: bool,
    /// The clock that counts against the objective; `None`: service did not come back in time.
    pub(super) rto_s: Option<f64>,
    /// What went wrong besides; each is a reason to fail.
    pub(super) broken: Vec<String>,
    /// What could not be checked.
    pub(super) skipped: Vec<String>,
}

/// The verdict and its reasons; a pass has none.
pub(super) fn judge(objectives: &Objectives, facts: &Facts) -> (Verdict, Vec<String>) {
    let Counts { phantom, torn, wrong, resurrected, .. } = facts.counts;
    let mut fail = facts.broken.clone();
    let mut must = |holds: bool, why: String| {
        if !holds {
            fail.push(why);
        }
    };
    let rpo = &facts.rpo;
    match objectives.allowed_loss {
        Allowed::Nothing => {
            must(rpo.writes == 0, format!("{} acknowledged writes are lost; none may be", rpo.writes));
            must(resurrected == 0, format!("{resurrected} deleted keys are back"));
        }
        Allowed::Tail => {
            let text =
                format!("lost {:.3} s of acknowledged writes, objective {} s", rpo.seconds, objectives.rpo_seconds);
            must(rpo.seconds <= objectives.rpo_seconds, text);
            must(rpo.after_fault == 0, format!("{} writes acknowledged after the fault are lost", rpo.after_fault));
        }
    }
    must(facts.prefix_rule_holds, "the prefix rule is broken: history has a hole".to_owned());
    must(phantom == 0, format!("{phantom} keys are there that nobody wrote or that must not be there"));
    must(torn == 0, format!("{torn} writes are there in part"));
    must(wrong == 0, format!("{wrong} values are not what was written"));
    match facts.rto_s {
        Some(s) => {
            let text = format!("service was back after {s:.3} s, objective {} s", objectives.rto_seconds);
            must(s <= objectives.rto_seconds, text);
        }
        None => must(false, "service did not come back in the time given".to_owned()),
    }
    if !fail.is_empty() {
        return (Verdict::Fail, fail);
    }
    let mut partial = facts.skipped.clone();
    if facts.acked_before_fault == 0 {
        partial.push("nothing was acknowledged before the fault, so nothing could be lost".to_owned());
    }
    if partial.is_empty() { (Verdict::Pass, partial) } else { (Verdict::Partial, partial) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        Facts { acked_before_fault: 100, prefix_rule_holds: true, rto_s: Some(2.0), ..Facts::default() }
    }

    fn verdict(allowed_loss: Allowed, change: impl Fn(&mut Facts)) -> Verdict {
        let mut facts = good();
        change(&mut facts);
        let (verdict, reasons) = judge(&Objectives { allowed_loss, rpo_seconds: 5.0, rto_seconds: 60.0 }, &facts);
        assert_eq!(reasons.is_empty(), verdict == Verdict::Pass, "{reasons:?}");
        verdict
    }

    #[test]
    fn each_broken_promise_fails() {
        for allowed in [Allowed::Nothing, Allowed::Tail] {
            assert_eq!(verdict(allowed, |_| {}), Verdict::Pass);
            assert_eq!(verdict(allowed, |f| f.counts.phantom = 1), Verdict::Fail);
            assert_eq!(verdict(allowed, |f| f.counts.torn = 1), Verdict::Fail);
            assert_eq!(verdict(allowed, |f| f.counts.wrong = 1), Verdict::Fail);
            assert_eq!(verdict(allowed, |f| f.prefix_rule_holds = false), Verdict::Fail);
            assert_eq!(verdict(allowed, |f| f.rto_s = None), Verdict::Fail);
            assert_eq!(verdict(allowed, |f| f.rto_s = Some(60.1)), Verdict::Fail);
            assert_eq!(
                verdict(allowed, |f| f.rpo.after_fault = 1).max(verdict(allowed, |f| f.rpo.writes = 1)),
                Verdict::Fail
            );
            assert_eq!(verdict(allowed, |f| f.broken.push("the node fell".into())), Verdict::Fail);
        }
    }

    #[test]
    fn loss_is_judged_by_what_is_allowed() {
        let lose = |seconds: f64| move |f: &mut Facts| (f.rpo.writes, f.rpo.seconds) = (3, seconds);
        assert_eq!(verdict(Allowed::Nothing, lose(0.0)), Verdict::Fail);
        assert_eq!(verdict(Allowed::Tail, lose(4.9)), Verdict::Pass);
        assert_eq!(verdict(Allowed::Tail, lose(5.1)), Verdict::Fail);
        assert_eq!(verdict(Allowed::Nothing, |f| f.counts.resurrected = 1), Verdict::Fail);
    }

    #[test]
    fn what_was_not_checked_is_no_pass() {
        assert_eq!(verdict(Allowed::Nothing, |f| f.skipped.push("no replicas".into())), Verdict::Partial);
        assert_eq!(verdict(Allowed::Nothing, |f| f.acked_before_fault = 0), Verdict::Partial);
        let both = |f: &mut Facts| {
            f.skipped.push("no replicas".into());
            f.counts.wrong = 1;
        };
        assert_eq!(verdict(Allowed::Nothing, both), Verdict::Fail, "a failure outranks what was skipped");
    }
}
