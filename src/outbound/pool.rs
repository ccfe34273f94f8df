//! A pool: robots of one group that carry its messages in turn, each within its own limit.
//!
//! Who carries a call is decided when its turn comes, from the settings of that moment, so that a reload
//! reaches what waits already. A pool has lanes of its own, and each has one call in flight: whoever
//! carries, the order is kept. DingTalk recognises a repeat only at the robot that had the call before;
//! so the robot is written down with the intent, and as long as nobody knows whether the call arrived, it
//! alone repeats it.

use std::collections::HashMap;

use super::backlog::Shared;
use super::send::Sender;
use super::{Live, Route};
use crate::delivery::id::short_digest;
use crate::delivery::state::Priority;
use crate::delivery::verdict::{Reason, Scope, Verdict, Wait};
use crate::egress::limit::{Full, Key, Kind};
use crate::egress::{Permit, robot_keys};

/// How the trouble of a robot of a pool is called in [`crate::health::Health`], before its name.
pub const TROUBLE: &str = "pool/";
/// A robot that carries nothing rests so long at first, in milliseconds.
const REST_MS: u64 = 60_000;
/// This refusal may be the message's fault (a keyword is missing), so the robot goes on.
pub(super) const SECURITY: &str = "robot_security";

/// A call may be made.
#[derive(Debug)]
pub struct Grant<P = Permit> {
    /// The place in each limit.
    pub permit: P,
    /// The robot of the pool that carries it; `None`: the message names who does.
    pub carrier: Option<String>,
}

/// What the calls of a message so far mean for who makes the next one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leaning {
    /// It may have carried that call already.
    only: Option<String>,
    /// It carried the part before.
    rather: Option<String>,
    /// They will not carry it.
    never: Vec<String>,
}

/// Whose turn it is in each pool.
#[derive(Debug, Default)]
pub(super) struct Pools {
    /// The robot that had the last call.
    last: HashMap<String, String>,
}

impl Leaning {
    /// Of a message that waits.
    pub fn of(live: &Live) -> Self {
        let (progress, calls) = (&live.progress, &live.progress.calls);
        // A webhook has one target: its calls are the parts.
        let next = progress.next_call();
        let (Route::Webhook, Some(index)) = (live.route, next) else {
            return Self::default();
        };
        let carrier = |index: usize| calls.get(index)?.carrier.clone();
        Self {
            only: carrier(index),
            rather: index.checked_sub(1).and_then(carrier),
            never: progress.refused_by.clone(),
        }
    }

    /// Whether any robot will do.
    pub fn is_free(&self) -> bool {
        *self == Self::default()
    }
}

impl Pools {
    /// Asks for the next call of a message: from the robots of its pool in turn, or from the limits that
    /// its lane has. If there is no permit, the answer says when the first of them is free.
    pub(super) fn acquire<P>(
        &mut self,
        pools: &HashMap<String, Vec<String>>,
        shared: &Shared,
        leaning: Option<&Leaning>,
        mut try_acquire: impl FnMut(&[Key], bool) -> Result<P, Full>,
    ) -> Result<Grant<P>, Full> {
        let critical = shared.priority == Priority::Critical;
        let pool = shared
            .robot
            .as_deref()
            .and_then(|name| pools.get_key_value(name));
        let Some((pool, robots)) = pool else {
            let permit = try_acquire(&shared.limits, critical)?;
            let carrier = None;
            return Ok(Grant { permit, carrier });
        };
        let mut until_ms = u64::MAX;
        for robot in order(robots, self.last.get(pool), leaning) {
            match try_acquire(&robot_keys(robot), critical) {
                Ok(permit) => {
                    self.last.insert(pool.clone(), robot.clone());
                    let carrier = Some(robot.clone());
                    return Ok(Grant { permit, carrier });
                }
                Err(full) => until_ms = until_ms.min(full.until_ms),
            }
        }
        // At a gate of the pool: whoever waits there is content with any of its robots.
        let id = short_digest(&[b"pool", pool.as_bytes()]);
        let key = Key::new(Kind::Robot, id);
        Err(Full { key, until_ms })
    }
}

/// In which order the robots of a pool are asked: the one after `last` first.
fn order<'a>(
    robots: &'a [String],
    last: Option<&String>,
    leaning: Option<&Leaning>,
) -> Vec<&'a String> {
    let after = last.and_then(|last| robots.iter().position(|robot| robot == last));
    let (before, behind) = robots.split_at(after.map_or(0, |at| at + 1));
    let all = behind.iter().chain(before);
    let Some(leaning) = leaning else {
        return all.collect();
    };
    let mut willing: Vec<_> = all
        .clone()
        .filter(|robot| !leaning.never.contains(robot))
        .collect();
    if willing.is_empty() {
        // The others have left the pool since: one that is asked again lets the message end.
        return all.collect();
    }
    if let Some(only) = willing
        .iter()
        .find(|robot| leaning.only.as_ref() == Some(**robot))
    {
        return vec![only];
    }
    willing.sort_by_key(|robot| leaning.rather.as_ref() != Some(*robot));
    willing
}

/// Whether call `index` may have arrived by a robot that is not `carrier`, which would not recognise it.
pub(super) fn is_doubtful(live: &Live, index: usize, carrier: Option<&str>) -> bool {
    let call = live.progress.calls.get(index);
    let before = call.and_then(|call| call.carrier.as_deref());
    before.is_some() && before != carrier
}

/// Why a message is not sent again, if a double post is not wanted.
pub(super) fn nobody_recognises_it() -> Reason {
    Reason::new(
        "outcome_unknown",
        "the robot that may have carried it carries no more for its pool, and another would not recognise the repeat",
        "原机器人已不可用，换机器人重发可能出现两遍：请在群内核对，再用 dingd messages resolve 处理。",
        "Another robot might post it twice: look into the chat, then use dingd messages resolve.",
    )
}

impl Sender {
    /// What the answer that a `robot` of a pool got means for its limits, and what for the message: one that
    /// refuses for good is passed over as long as there are others.
    pub(super) fn pass_over(
        &self,
        live: &mut Live,
        robot: Option<&str>,
        verdict: Verdict,
    ) -> (Verdict, Verdict) {
        let Some(robot) = robot else {
            return (verdict.clone(), verdict);
        };
        let health = self.egress.health();
        let trouble = format!("{TROUBLE}{robot}");
        let reason = match verdict {
            Verdict::Dead(reason) if reason.code.starts_with("robot_") => reason,
            verdict => {
                if matches!(verdict, Verdict::Sent { .. }) {
                    health.recovered(&trouble);
                }
                return (verdict.clone(), verdict);
            }
        };
        let text = format!(
            "robot {robot:?} of pool {:?} is passed over: {} — {} / {}",
            live.target, reason.detail, reason.fix_zh, reason.fix_en
        );
        if health.degraded(trouble, text) {
            tracing::warn!(
                robot, pool = %live.target, reason = %reason.code, detail = %reason.detail,
                fix_zh = %reason.fix_zh, fix_en = %reason.fix_en,
                "a robot of a pool is passed over"
            );
        }
        let refused_by = &mut live.progress.refused_by;
        if refused_by.iter().all(|known| known != robot) {
            refused_by.push(robot.to_owned());
        }
        let settings = self.settings.load();
        let robots = settings.pools.get(&live.target).into_iter().flatten();
        let others = robots.filter(|robot| !refused_by.contains(robot)).count();
        let learnt = if reason.code == SECURITY {
            Verdict::Dead(reason.clone())
        } else {
            // Somebody has to cure it; until then it is tried now and then.
            Verdict::Blocked {
                scope: Scope::Robot,
                reason: reason.clone(),
            }
        };
        let verdict = if others > 0 {
            Verdict::Pause {
                scope: Scope::Message,
                wait: Wait::Growing(REST_MS),
                reason,
            }
        } else {
            Verdict::Dead(reason)
        };
        (learnt, verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_000;

    fn pools() -> HashMap<String, Vec<String>> {
        let robots = ["a", "b", "c"].map(ToOwned::to_owned).to_vec();
        [("sre".to_owned(), robots)].into()
    }

    fn shared(robot: &str) -> Shared {
        Shared::new(
            Priority::Normal,
            robot_keys(robot).into(),
            Some(robot.into()),
        )
    }

    /// Whom a message to `robot` goes by, if each robot of `full` is free only at its time; empty
    /// if it names itself.
    fn carrier(
        turns: &mut Pools,
        robot: &str,
        leaning: &Leaning,
        full: &[(&str, u64)],
    ) -> Result<String, u64> {
        let is_full = |limits: &[Key], _| {
            let robot = full.iter().find(|(robot, _)| robot_keys(robot) == limits);
            let Some((_, until_ms)) = robot else {
                return Ok(());
            };
            Err(Full {
                key: Key::EGRESS,
                until_ms: *until_ms,
            })
        };
        let grant = turns.acquire(&pools(), &shared(robot), Some(leaning), is_full);
        grant
            .map(|grant| grant.carrier.unwrap_or_default())
            .map_err(|full| full.until_ms)
    }

    fn by(robot: &str) -> String {
        robot.to_owned()
    }

    #[test]
    fn the_robots_of_a_pool_have_their_turns_and_one_that_is_full_is_left_out() {
        let (mut turns, any) = (Pools::default(), Leaning::default());
        for expected in ["a", "b", "c", "a"] {
            assert_eq!(carrier(&mut turns, "sre", &any, &[]), Ok(by(expected)));
        }
        for expected in ["c", "a", "c"] {
            assert_eq!(
                carrier(&mut turns, "sre", &any, &[("b", NOW_MS)]),
                Ok(by(expected))
            );
        }
    }

    #[test]
    fn a_pool_that_is_full_waits_for_the_robot_that_is_free_first() {
        let full = [("a", NOW_MS + 9), ("b", NOW_MS + 5), ("c", NOW_MS + 7)];
        let (mut turns, any) = (Pools::default(), Leaning::default());
        assert_eq!(carrier(&mut turns, "sre", &any, &full), Err(NOW_MS + 5));
        assert_eq!(carrier(&mut turns, "sre", &any, &full[..2]), Ok(by("c")));
    }

    #[test]
    fn what_a_robot_may_have_carried_is_repeated_by_no_other() {
        let mut turns = Pools::default();
        let only = |robot: &str| Leaning {
            only: Some(robot.to_owned()),
            ..Leaning::default()
        };
        assert_eq!(carrier(&mut turns, "sre", &only("b"), &[]), Ok(by("b")));
        assert_eq!(
            carrier(&mut turns, "sre", &only("b"), &[("b", NOW_MS)]),
            Err(NOW_MS)
        );
        assert_eq!(
            carrier(&mut turns, "sre", &only("gone"), &[]),
            Ok(by("c")),
            "it left the pool"
        );
    }

    #[test]
    fn parts_stay_together_if_they_can_and_who_refused_is_not_asked_again() {
        let mut turns = Pools::default();
        let leaning = Leaning {
            rather: Some("b".to_owned()),
            never: vec!["a".to_owned()],
            ..Leaning::default()
        };
        assert_eq!(carrier(&mut turns, "sre", &leaning, &[]), Ok(by("b")));
        assert_eq!(
            carrier(&mut turns, "sre", &leaning, &[("b", NOW_MS)]),
            Ok(by("c"))
        );
        let all = Leaning {
            never: ["a", "b", "c"].map(ToOwned::to_owned).to_vec(),
            only: Some("b".to_owned()),
            ..Leaning::default()
        };
        assert_eq!(
            carrier(&mut turns, "sre", &all, &[]),
            Ok(by("a")),
            "so that the message ends"
        );
    }

    #[test]
    fn a_robot_of_a_pool_that_is_addressed_by_its_name_stands_for_itself() {
        let (mut turns, any) = (Pools::default(), Leaning::default());
        assert_eq!(carrier(&mut turns, "b", &any, &[]), Ok(by("")));
        assert_eq!(
            carrier(&mut turns, "b", &any, &[("b", NOW_MS)]),
            Err(NOW_MS)
        );
    }
}
