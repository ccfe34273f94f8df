//! Where a message is, and how a verdict moves it on (reliability contract §3).

use serde::{Deserialize, Serialize};

use super::verdict::{Reason, Verdict};

/// How urgent a message is.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Overtakes everything and may use the reserved part of a limit.
    Critical,
    /// Before normal.
    High,
    /// The default.
    #[default]
    Normal,
    /// After everything else.
    Low,
}

impl Priority {
    /// How many there are.
    pub const COUNT: usize = 4;
    /// All, the most urgent first.
    pub const ALL: [Self; Self::COUNT] = [Self::Critical, Self::High, Self::Normal, Self::Low];

    /// 0 is the most urgent.
    pub fn index(self) -> usize {
        self as usize
    }

    /// The name in the API and in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }

    /// How long a message is worth sending, in milliseconds.
    pub fn lifetime_ms(self) -> u64 {
        let hours = match self {
            Self::Critical => 24,
            Self::High => 12,
            Self::Normal => 4,
            Self::Low => 1,
        };
        hours * 3_600_000
    }
}

/// What a queue counts an entry by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    /// Digest of its lane.
    pub lane: u64,
    /// Its urgency.
    pub priority: Priority,
    /// Its size on disk.
    pub bytes: u64,
    /// Wall time of acceptance in milliseconds.
    pub accepted_ms: u64,
    /// How far it is.
    pub state: State,
}

/// The state of a message as the API shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waiting for its turn or for a limit.
    Queued,
    /// A call is under way.
    Sending,
    /// A call failed; the next one is scheduled.
    Retrying,
    /// At least one recipient has it.
    Sent,
    /// Part of a digest that was sent.
    Merged,
    /// Nobody can know; parked until an operator decides.
    Unknown,
    /// It will not be sent.
    Dead,
    /// It was not worth sending any more.
    Expired,
    /// Withdrawn by the client in time.
    Cancelled,
}

impl State {
    /// Whether nothing more happens by itself.
    pub fn is_terminal(self) -> bool {
        !matches!(self, Self::Queued | Self::Sending | Self::Retrying)
    }

    /// The name in the API and in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Sending => "sending",
            Self::Retrying => "retrying",
            Self::Sent => "sent",
            Self::Merged => "merged",
            Self::Unknown => "unknown",
            Self::Dead => "dead",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }

    /// The state of that name.
    pub fn named(name: &str) -> Option<Self> {
        [
            Self::Queued,
            Self::Sending,
            Self::Retrying,
            Self::Sent,
            Self::Merged,
            Self::Unknown,
            Self::Dead,
            Self::Expired,
            Self::Cancelled,
        ]
        .into_iter()
        .find(|state| state.label() == name)
    }
}

/// What to do when nobody can know whether DingTalk took a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Ambiguous {
    /// Send again, at most twice: for an alert a rare duplicate beats silence.
    #[default]
    Retry,
    /// Park it as `unknown` for an operator.
    Hold,
    /// Give it up.
    Drop,
}

/// After this many repeats whose outcome is unknown as well, a call is not made again.
const AMBIGUOUS_RETRIES_MAX: u8 = 2;

/// What became of one recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecipientOutcome {
    /// Not sent yet.
    Pending,
    /// Has it.
    Sent,
    /// DingTalk does not know this user.
    InvalidUser,
    /// DingTalk throttled it; tried again later.
    Throttled,
    /// The account is linked to no DingTalk user.
    NotLinked,
}

/// One person that a message is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipient {
    /// DingTalk userid, or the platform's account id where it is not linked.
    pub id: String,
    /// What became of it.
    pub outcome: RecipientOutcome,
}

/// What became of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallOutcome {
    /// To be made, or to be made again.
    Pending,
    /// DingTalk took it (for at least one of its recipients).
    Sent,
    /// Given up.
    Dead,
    /// Nobody can know.
    Unknown,
}

/// One call of DingTalk: a message needs several when it has many recipients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// For whom; empty for a group or a custom robot.
    pub recipients: Vec<Recipient>,
    /// DingTalk's `processQueryKey`.
    pub handle: Option<String>,
    /// What became of it.
    pub outcome: CallOutcome,
    /// How often it was made.
    pub attempts: u32,
    /// Of a pool: the robot that has it in hand or took it. While the call is pending, that robot alone
    /// recognises a repeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carrier: Option<String>,
    /// Repeats after an unknown outcome.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub ambiguous: u8,
}

impl Call {
    /// A call that has not been made.
    pub fn to(recipients: Vec<String>) -> Self {
        let recipients = recipients
            .into_iter()
            .map(|id| Recipient {
                id,
                outcome: RecipientOutcome::Pending,
            })
            .collect();
        Self {
            recipients,
            handle: None,
            outcome: CallOutcome::Pending,
            attempts: 0,
            carrier: None,
            ambiguous: 0,
        }
    }

    /// Lets another robot carry it after an answer that says that it was not taken. `doubtful` says that
    /// an earlier call may have been: then only a pause is worth the risk of a double post, and only where
    /// that is accepted.
    fn release(&mut self, verdict: &Verdict, doubtful: bool, policy: Ambiguous) {
        let free = match verdict {
            Verdict::Retry(_) => !doubtful,
            Verdict::Pause { .. } | Verdict::Blocked { .. } => {
                !doubtful || policy == Ambiguous::Retry
            }
            _ => false,
        };
        if free {
            self.carrier = None;
        }
    }

    /// What remains of an answer that names those who did not get it but proves nothing for the others: they
    /// may have it or not.
    fn unproven(&mut self, verdict: &Verdict) -> Option<Verdict> {
        let Verdict::SentInPart {
            handle: None,
            invalid,
            throttled,
        } = verdict
        else {
            return None;
        };
        let is_named = |id: &str| {
            [invalid, throttled]
                .iter()
                .any(|ids| ids.iter().any(|it| it == id))
        };
        if self.waiting().into_iter().all(is_named) {
            return None;
        }
        for recipient in &mut self.recipients {
            if invalid.contains(&recipient.id) {
                recipient.outcome = RecipientOutcome::InvalidUser;
            }
        }
        Some(Verdict::Unknown(Reason::new(
            "outcome_unknown",
            "DingTalk named some who did not get it, and no key for the others",
            "在钉钉中核对其余的人是否收到，再用 dingd messages resolve 说明。",
            "Check in DingTalk whether the others got it, then say so with dingd messages resolve.",
        )))
    }

    /// Whom the next attempt is for.
    pub fn waiting(&self) -> Vec<&str> {
        let waits = |r: &&Recipient| {
            matches!(
                r.outcome,
                RecipientOutcome::Pending | RecipientOutcome::Throttled
            )
        };
        self.recipients
            .iter()
            .filter(waits)
            .map(|r| r.id.as_str())
            .collect()
    }
}

/// The changing part of an accepted message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Where it is.
    pub state: State,
    /// Calls that cost an attempt, over all calls.
    pub attempts: u32,
    /// Failures since the last success or replay: the exponent of the schedule.
    pub failures: u32,
    /// Wall time of the next attempt, in milliseconds; 0 = at once.
    pub due_ms: u64,
    /// The call that is under way: an intent, committed before the first byte leaves.
    pub in_flight: Option<usize>,
    /// The calls, those for one target behind each other.
    pub calls: Vec<Call>,
    /// Calls that one target needs to have the whole message; 0 = one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub parts: usize,
    /// Why it is where it is.
    pub reason: Option<Reason>,
    /// Wall time of the end, in milliseconds.
    pub finished_ms: Option<u64>,
    /// How often it was reopened by replay.
    pub generation: u32,
    /// A later message of the same lane went first.
    pub reordered: bool,
    /// Robots of a pool that will not carry it, whatever it takes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused_by: Vec<String>,
}

/// What follows from a verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Terminal.
    Finished,
    /// Due again as soon as limits allow: nothing was held against the message.
    Soon,
    /// Due again by the schedule after this many failures.
    Scheduled {
        /// The exponent of the schedule.
        failures: u32,
    },
}

impl Progress {
    /// A message that was just accepted.
    pub fn new(calls: Vec<Call>) -> Self {
        Self::in_parts(calls, 0)
    }

    /// As [`Self::new`], of a message that each target gets in `parts` calls.
    pub fn in_parts(calls: Vec<Call>, parts: usize) -> Self {
        Self {
            parts,
            state: State::Queued,
            attempts: 0,
            failures: 0,
            due_ms: 0,
            in_flight: None,
            calls,
            reason: None,
            finished_ms: None,
            generation: 0,
            reordered: false,
            refused_by: vec![],
        }
    }

    /// Calls for one target.
    fn per_target(&self) -> usize {
        self.parts.max(1)
    }

    /// Whether some target has the whole message.
    fn somebody_has_it(&self) -> bool {
        let mut targets = self.calls.chunks(self.per_target());
        targets.any(|calls| calls.iter().all(|call| call.outcome == CallOutcome::Sent))
    }

    /// The call to make next: the pending one that was tried least, the parts for one target in their order.
    pub fn next_call(&self) -> Option<usize> {
        let parts = self.per_target();
        let is_pending = |call: &Call| call.outcome == CallOutcome::Pending;
        let follows_pending = |index: usize| {
            let before = index
                .checked_sub(1)
                .and_then(|before| self.calls.get(before));
            !index.is_multiple_of(parts) && before.is_some_and(is_pending)
        };
        self.calls
            .iter()
            .enumerate()
            .filter(|(index, call)| is_pending(call) && !follows_pending(*index))
            .min_by_key(|(_, call)| call.attempts)
            .map(|(index, _)| index)
    }

    /// Notes the intent to make call `index`. Must be on disk before the first byte leaves.
    pub fn depart(&mut self, index: usize) {
        self.state = State::Sending;
        self.in_flight = Some(index);
    }

    /// Notes which robot of a pool makes the call in flight. Belongs to the intent.
    pub fn carried_by(&mut self, robot: Option<&str>) {
        let call = self.in_flight.and_then(|index| self.calls.get_mut(index));
        if let Some(call) = call {
            call.carrier = robot.map(ToOwned::to_owned);
        }
    }

    /// Moves the message on after the call in flight brought `verdict`. `keyed` says that DingTalk
    /// recognises a repeat of this call, so that an unknown outcome is no reason not to repeat it.
    pub fn settle(&mut self, verdict: &Verdict, policy: Ambiguous, keyed: bool) -> Next {
        let index = self.in_flight.take();
        let Some(call) = index.and_then(|index| self.calls.get_mut(index)) else {
            return self.conclude();
        };
        call.attempts += 1;
        call.release(verdict, call.ambiguous > 0, policy);
        let unproven = call.unproven(verdict);
        let scheduled = match unproven.as_ref().unwrap_or(verdict) {
            Verdict::Sent { handle } => {
                settle_in_full(call, handle.as_deref());
                self.attempts += 1;
                self.failures = 0;
                None
            }
            Verdict::SentInPart {
                handle,
                invalid,
                throttled,
            } => {
                if handle.is_some() {
                    call.handle.clone_from(handle);
                }
                settle_in_part(call, invalid, throttled);
                self.attempts += 1;
                let waits = call.outcome == CallOutcome::Pending;
                if waits {
                    self.reason = Some(throttled_reason(throttled.len()));
                }
                waits.then(|| bump(&mut self.failures))
            }
            Verdict::Dead(reason) => {
                call.outcome = CallOutcome::Dead;
                self.attempts += 1;
                self.reason = Some(reason.clone());
                self.give_up_parts_after(index.unwrap_or(0));
                None
            }
            Verdict::Retry(reason) => {
                self.attempts += 1;
                self.reason = Some(reason.clone());
                Some(bump(&mut self.failures))
            }
            Verdict::RefreshToken(reason)
            | Verdict::Pause { reason, .. }
            | Verdict::Blocked { reason, .. } => {
                self.reason = Some(reason.clone());
                self.state = State::Queued;
                return Next::Soon;
            }
            Verdict::Unknown(reason) => {
                self.attempts += 1;
                self.reason = Some(reason.clone());
                let again =
                    keyed || policy == Ambiguous::Retry && call.ambiguous < AMBIGUOUS_RETRIES_MAX;
                if again {
                    call.ambiguous = call.ambiguous.saturating_add(1);
                    Some(bump(&mut self.failures))
                } else {
                    call.outcome = match policy {
                        Ambiguous::Drop => CallOutcome::Dead,
                        Ambiguous::Retry | Ambiguous::Hold => CallOutcome::Unknown,
                    };
                    None
                }
            }
        };
        match scheduled {
            Some(failures) => {
                self.state = State::Retrying;
                Next::Scheduled { failures }
            }
            None => self.conclude(),
        }
    }

    /// A message that was read back at start: a call that was under way when the process died has an
    /// unknown outcome.
    pub fn recover(&mut self, policy: Ambiguous, keyed: bool) -> Next {
        if self.in_flight.is_none() {
            return Next::Soon;
        }
        let reason = Reason::new(
            "outcome_unknown",
            "the daemon stopped while the call was under way",
            "重启前该请求已发出但结果未知；在群内核对是否收到，再用 dingd dead replay 重发。",
            "The daemon stopped after the request left; check the chat before replaying it.",
        );
        self.settle(&Verdict::Unknown(reason), policy, keyed)
    }

    /// Ends the message in `state`; as `sent` if somebody has it already.
    pub fn end(&mut self, state: State, reason: Option<Reason>, wall_ms: u64) {
        // Somebody has it: that is what it is, whatever ended the rest.
        let sent = self.somebody_has_it();
        self.state = if sent { State::Sent } else { state };
        self.in_flight = None;
        if reason.is_some() {
            self.reason = reason;
        }
        self.finished_ms = Some(wall_ms);
    }

    /// Without one part the later ones are of no use to their target.
    fn give_up_parts_after(&mut self, index: usize) {
        let parts = self.per_target();
        let later = parts - 1 - index % parts;
        for call in self.calls.iter_mut().skip(index + 1).take(later) {
            if call.outcome == CallOutcome::Pending {
                call.outcome = CallOutcome::Dead;
            }
        }
    }

    fn conclude(&mut self) -> Next {
        let any = |outcome| self.calls.iter().any(|call| call.outcome == outcome);
        if any(CallOutcome::Pending) {
            self.state = State::Queued;
            return Next::Soon;
        }
        self.state = if self.somebody_has_it() {
            State::Sent
        } else if any(CallOutcome::Unknown) {
            State::Unknown
        } else {
            State::Dead
        };
        if self.state == State::Dead && self.reason.is_none() {
            self.reason = self.calls.iter().find_map(nobody_known);
        }
        if self.state == State::Sent && !any(CallOutcome::Dead) && !any(CallOutcome::Unknown) {
            self.reason = None;
        }
        Next::Finished
    }
}

fn is_zero<N: Default + PartialEq>(number: &N) -> bool {
    *number == N::default()
}

fn bump(failures: &mut u32) -> u32 {
    *failures = failures.saturating_add(1);
    *failures
}

fn settle_in_full(call: &mut Call, handle: Option<&str>) {
    call.outcome = CallOutcome::Sent;
    if let Some(handle) = handle {
        call.handle = Some(handle.to_owned());
    }
    for recipient in &mut call.recipients {
        if recipient.outcome != RecipientOutcome::InvalidUser {
            recipient.outcome = RecipientOutcome::Sent;
        }
    }
}

fn settle_in_part(call: &mut Call, invalid: &[String], throttled: &[String]) {
    for recipient in &mut call.recipients {
        let waits = matches!(
            recipient.outcome,
            RecipientOutcome::Pending | RecipientOutcome::Throttled
        );
        if waits {
            recipient.outcome = if invalid.contains(&recipient.id) {
                RecipientOutcome::InvalidUser
            } else if throttled.contains(&recipient.id) {
                RecipientOutcome::Throttled
            } else {
                RecipientOutcome::Sent
            };
        }
    }
    let any = |outcome| call.recipients.iter().any(|r| r.outcome == outcome);
    call.outcome = if any(RecipientOutcome::Throttled) {
        CallOutcome::Pending
    } else if any(RecipientOutcome::Sent) {
        CallOutcome::Sent
    } else {
        CallOutcome::Dead
    };
}

fn throttled_reason(count: usize) -> Reason {
    Reason::new(
        "recipients_throttled",
        format!("DingTalk throttled {count} recipient(s) (flowControlledStaffIdList)"),
        "这些人暂时收不到，稍后自动重试；如反复出现，请减少单聊推送或提升钉钉配额。",
        "They are tried again later; if it recurs, send fewer one-to-one messages or buy more quota.",
    )
}

/// Why a call to people ended with nobody having got it.
fn nobody_known(call: &Call) -> Option<Reason> {
    let all_invalid = !call.recipients.is_empty()
        && call
            .recipients
            .iter()
            .all(|r| r.outcome == RecipientOutcome::InvalidUser);
    all_invalid.then(|| {
        Reason::new(
            "recipient_unknown",
            "DingTalk knows none of the recipients (invalidStaffIdList)",
            "检查 userid 是否正确、是否已离职、是否在应用可见范围内（开发者后台 → 应用 → 版本管理与发布 → 可见范围）。",
            "Check the userids, and that these people are in the app's visible scope (developer console → app → version management → visible scope).",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::verdict::{Scope, Wait};

    fn reason() -> Reason {
        Reason::new("x", "", "", "")
    }

    fn departed(recipients: &[&str]) -> Progress {
        let recipients = recipients.iter().map(|id| (*id).to_owned()).collect();
        let mut progress = Progress::new(vec![Call::to(recipients)]);
        progress.depart(0);
        progress
    }

    /// The third call of a message was given up after one try, because the first two had been repeated.
    #[test]
    fn each_call_has_its_own_repeats_after_unknown_outcomes() {
        let calls = ["a", "b", "c"].map(|id| Call::to(vec![id.to_owned()]));
        let mut progress = Progress::new(calls.to_vec());
        let unknown = Verdict::Unknown(reason());
        for index in [0, 1, 2, 0, 1, 2] {
            progress.depart(index);
            let next = progress.settle(&unknown, Ambiguous::Retry, false);
            assert!(matches!(next, Next::Scheduled { .. }), "{index}");
        }
        progress.depart(0);
        progress.settle(&Verdict::Sent { handle: None }, Ambiguous::Retry, false);
        progress.depart(1);
        progress.settle(&unknown, Ambiguous::Retry, false);
        let outcomes = progress.calls.iter().map(|call| call.outcome);
        let expected = [
            CallOutcome::Sent,
            CallOutcome::Unknown,
            CallOutcome::Pending,
        ];
        assert_eq!(outcomes.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn whom_an_answer_without_a_key_does_not_name_may_have_it_or_not() {
        let in_part = |throttled: &[&str]| Verdict::SentInPart {
            handle: None,
            invalid: vec!["b".to_owned()],
            throttled: throttled.iter().map(|id| (*id).to_owned()).collect(),
        };
        let mut progress = departed(&["a", "b"]);
        progress.settle(&in_part(&[]), Ambiguous::Hold, false);
        assert_eq!(progress.state, State::Unknown);
        let outcomes = progress.calls[0].recipients.iter().map(|r| r.outcome);
        assert_eq!(
            outcomes.collect::<Vec<_>>(),
            [RecipientOutcome::Pending, RecipientOutcome::InvalidUser]
        );
        let mut progress = departed(&["a", "b"]);
        progress.settle(&in_part(&["a"]), Ambiguous::Hold, false);
        assert_eq!(progress.state, State::Retrying, "all are named");
    }

    #[test]
    fn a_call_that_may_have_arrived_stays_with_its_robot() {
        let pause = || Verdict::Pause {
            scope: Scope::Robot,
            wait: Wait::Fixed(1),
            reason: reason(),
        };
        let carried = |policy, verdicts: &[Verdict]| {
            let mut progress = departed(&[]);
            for verdict in verdicts {
                progress.depart(0);
                progress.carried_by(Some("a"));
                progress.settle(verdict, policy, true);
            }
            progress.calls[0].carrier.is_some()
        };
        let (unknown, retry) = (Verdict::Unknown(reason()), Verdict::Retry(reason()));
        let sent = Verdict::Sent { handle: None };
        for (verdicts, retried, held) in [
            (vec![sent], true, true),
            (vec![retry.clone()], false, false),
            (vec![pause()], false, false),
            (vec![unknown.clone()], true, true),
            (vec![unknown.clone(), retry], true, true),
            // It may take ten minutes: a rare double post beats that, unless somebody says otherwise.
            (vec![unknown, pause()], false, true),
        ] {
            assert_eq!(
                carried(Ambiguous::Retry, &verdicts),
                retried,
                "{verdicts:?}"
            );
            assert_eq!(carried(Ambiguous::Hold, &verdicts), held, "{verdicts:?}");
        }
    }

    #[test]
    fn each_verdict_leads_where_the_contract_says() {
        let sent = Verdict::Sent { handle: None };
        let pause = Verdict::Pause {
            scope: Scope::Robot,
            wait: Wait::Fixed(1),
            reason: reason(),
        };
        let blocked = Verdict::Blocked {
            scope: Scope::App,
            reason: reason(),
        };
        let table = [
            (sent, Next::Finished, State::Sent, 1),
            (Verdict::Dead(reason()), Next::Finished, State::Dead, 1),
            (
                Verdict::Retry(reason()),
                Next::Scheduled { failures: 1 },
                State::Retrying,
                1,
            ),
            (
                Verdict::RefreshToken(reason()),
                Next::Soon,
                State::Queued,
                0,
            ),
            (pause, Next::Soon, State::Queued, 0),
            (blocked, Next::Soon, State::Queued, 0),
            (
                Verdict::Unknown(reason()),
                Next::Scheduled { failures: 1 },
                State::Retrying,
                1,
            ),
        ];
        for (verdict, next, state, attempts) in table {
            let mut progress = departed(&[]);
            assert_eq!(
                progress.settle(&verdict, Ambiguous::Retry, false),
                next,
                "{verdict:?}"
            );
            assert_eq!(
                (progress.state, progress.attempts),
                (state, attempts),
                "{verdict:?}"
            );
        }
    }

    #[test]
    fn an_unknown_outcome_is_repeated_twice_then_parked_unless_dingtalk_recognises_repeats() {
        let unknown = Verdict::Unknown(reason());
        for (policy, keyed, repeats, end) in [
            (Ambiguous::Retry, false, 2, Some(State::Unknown)),
            (Ambiguous::Hold, false, 0, Some(State::Unknown)),
            (Ambiguous::Drop, false, 0, Some(State::Dead)),
            (Ambiguous::Hold, true, 9, None),
        ] {
            let mut progress = departed(&[]);
            for _ in 0..repeats {
                let next = progress.settle(&unknown, policy, keyed);
                assert!(matches!(next, Next::Scheduled { .. }));
                progress.depart(0);
            }
            if let Some(end) = end {
                assert_eq!(progress.settle(&unknown, policy, keyed), Next::Finished);
                assert_eq!(progress.state, end);
            }
        }
    }

    #[test]
    fn recipients_have_their_own_outcomes() {
        let mut progress = departed(&["a", "b", "c"]);
        let part = Verdict::SentInPart {
            handle: Some("k".into()),
            invalid: vec!["b".into()],
            throttled: vec!["c".into()],
        };
        assert_eq!(
            progress.settle(&part, Ambiguous::Retry, false),
            Next::Scheduled { failures: 1 }
        );
        assert_eq!(progress.calls[0].waiting(), ["c"]);
        progress.depart(0);
        let sent = Verdict::Sent { handle: None };
        assert_eq!(
            progress.settle(&sent, Ambiguous::Retry, false),
            Next::Finished
        );
        let outcomes: Vec<_> = progress.calls[0]
            .recipients
            .iter()
            .map(|r| r.outcome)
            .collect();
        assert_eq!(
            outcomes,
            [
                RecipientOutcome::Sent,
                RecipientOutcome::InvalidUser,
                RecipientOutcome::Sent
            ]
        );
        assert_eq!(progress.state, State::Sent);
    }

    #[test]
    fn the_parts_of_a_message_go_in_their_order_to_each_target() {
        let mut progress = Progress::in_parts(vec![Call::to(vec![]); 4], 2);
        let sent = Verdict::Sent { handle: None };
        let mut order = vec![];
        while let Some(index) = progress.next_call() {
            order.push(index);
            progress.depart(index);
            let first = order.len() == 1;
            let busy = Verdict::Retry(reason());
            progress.settle(if first { &busy } else { &sent }, Ambiguous::Retry, false);
        }
        assert_eq!(order, [0, 2, 3, 0, 1], "the second target need not wait");
    }

    #[test]
    fn a_message_in_parts_is_sent_when_all_parts_were() {
        let sent = Verdict::Sent { handle: None };
        let dead = Verdict::Dead(reason());
        let unknown = Verdict::Unknown(reason());
        for (verdicts, state) in [
            (vec![&sent, &sent], State::Sent),
            (vec![&sent, &dead], State::Dead),
            (vec![&dead], State::Dead),
            (vec![&unknown, &sent], State::Unknown),
        ] {
            let mut progress = Progress::in_parts(vec![Call::to(vec![]); 2], 2);
            for verdict in &verdicts {
                let index = progress.next_call().unwrap();
                progress.depart(index);
                progress.settle(verdict, Ambiguous::Hold, false);
            }
            assert_eq!(progress.next_call(), None, "{verdicts:?}");
            assert_eq!(progress.state, state, "{verdicts:?}");
        }
        let mut progress = Progress::in_parts(vec![Call::to(vec![]); 2], 2);
        progress.depart(0);
        progress.settle(&sent, Ambiguous::Retry, false);
        progress.end(State::Expired, Some(reason()), 1);
        assert_eq!(progress.state, State::Expired, "half of it is not it");
    }

    #[test]
    fn a_message_is_sent_when_one_of_its_calls_was() {
        let mut progress =
            Progress::new(vec![Call::to(vec!["a".into()]), Call::to(vec!["b".into()])]);
        progress.depart(0);
        assert_eq!(
            progress.settle(&Verdict::Dead(reason()), Ambiguous::Retry, false),
            Next::Soon
        );
        assert_eq!(progress.next_call(), Some(1));
        progress.depart(1);
        let sent = Verdict::Sent { handle: None };
        assert_eq!(
            progress.settle(&sent, Ambiguous::Retry, false),
            Next::Finished
        );
        assert_eq!(progress.state, State::Sent);
        assert!(
            progress.reason.is_some(),
            "the failure of the other call stays visible"
        );
    }
}
