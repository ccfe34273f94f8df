//! Messages that were given up or whose outcome is unknown: another chance, or an end by decision.
//! [`filter`] which of them.

pub mod filter;

use serde::Deserialize;
use serde_json::{Value, json};

use filter::{Cursor, Filter};

use super::accept::Outbox;
use super::receive::unreadable;
use super::send::not_linked;
use super::{Live, Message, Route, To};
use crate::clock::rfc3339;
use crate::delivery::dead::{Letter, Mortal};
use crate::delivery::id::MessageId;
use crate::delivery::record;
use crate::delivery::state::{CallOutcome, Priority, RecipientOutcome, State};
use crate::delivery::verdict::Reason;
use crate::dingtalk::digest::Fold;
use crate::http::audit::Who;
use crate::http::problem::Problem;
use crate::journal::dead::{Looked, load, look};
use crate::journal::queue::Queue;
use crate::journal::{Batch, Order};
use crate::metrics;

/// Dead letters changed in one batch.
pub const STEP_MAX: usize = 200;

/// What became of a bulk operation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bulk {
    /// What the filter let through.
    pub matched: u64,
    /// What was changed.
    pub done: u64,
    /// Why it went no further.
    pub stopped: Option<&'static str>,
}

/// How a message of unknown outcome is resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resolution {
    /// It arrived.
    Sent,
    /// It did not arrive, and is not worth sending any more.
    Dead,
    /// It did not arrive: again, under its id.
    Retry,
}

/// The body of `POST /v1/messages/{id}/resolve`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Resolve {
    #[serde(rename = "as")]
    resolution: Resolution,
}

impl Bulk {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            matched: self.matched + other.matched,
            done: self.done + other.done,
            stopped: self.stopped.or(other.stopped),
        }
    }

    /// The answer; `done` is called after what was done.
    pub fn show(self, done: &str) -> Value {
        let mut shown = json!({"matched": self.matched, done: self.done});
        if let (Some(why), Some(members)) = (self.stopped, shown.as_object_mut()) {
            members.insert("stopped".to_owned(), json!(why));
        }
        shown
    }
}

impl Mortal for Live {
    fn dead_letter(&self) -> Option<Letter> {
        // What was in a digest is told of by itself.
        let dead = is_dead(self.progress.state) && self.fold != Fold::Digest;
        let ended_ms = self.progress.finished_ms.filter(|_| dead)?;
        let calls = &self.progress.calls;
        let recipients: usize = calls.iter().map(|call| call.recipients.len()).sum();
        let critical = self.priority == Priority::Critical;
        let parts = calls.len() + recipients;
        Some(Letter::new(ended_ms, self.bytes, parts, critical))
    }
}

/// Whether a message in this state is a dead letter.
pub fn is_dead(state: State) -> bool {
    matches!(state, State::Dead | State::Unknown | State::Expired)
}

/// The end of a message is durable: as a dead letter it is kept in mind, counted, and told of once an
/// hour for each destination.
pub fn bury(queue: &Queue<Live>, seq: u64, live: &Live, mono_ms: u64) {
    let Some(letter) = live.dead_letter() else {
        return;
    };
    queue.dead().add(seq, letter);
    let reason = live.progress.reason.as_ref();
    let (reason, detail) = reason.map_or(("none", ""), |r| (r.code.as_ref(), r.detail.as_str()));
    metrics::dead_letter("outbound", reason);
    let destination = match live.route {
        Route::Webhook => format!("robot/{}", live.target),
        Route::CardUpdate | Route::LegacyCardUpdate => format!("{}/cards", live.app),
        _ if live.target.is_empty() => format!("{}/people", live.app),
        _ => format!("{}/{}", live.app, live.target),
    };
    let state = live.progress.state.label();
    match queue.dead().alert(&destination, mono_ms) {
        Some(kept_back) => tracing::warn!(
            id = %live.id, destination, state, reason, detail, kept_back,
            "a message was not delivered; others to this destination are not told of for an hour, see `dingd dead list`"
        ),
        None => {
            tracing::debug!(id = %live.id, destination, state, reason, detail, "a message was not delivered");
        }
    }
}

/// A dead message as lists show it.
pub fn show_message(message: &Message, live: &Live) -> Value {
    json!({"direction": "outbound", "id": message.id, "state": live.progress.state,
        "app": message.app, "to": message.to, "priority": live.priority, "client": message.client,
        "reason": live.progress.reason, "accepted_at": rfc3339(live.accepted_ms),
        "attempts": live.progress.attempts,
        "finished_at": live.progress.finished_ms.map(rfc3339)})
}

impl Outbox {
    /// Dead messages of `who`, the newest first.
    pub async fn dead_messages(
        &self,
        filter: Filter,
        who: &Who,
        below: Option<Cursor>,
        limit: usize,
    ) -> Result<Looked<Value>, Problem> {
        let mut span = filter.span(Order::Descending);
        if let Some(cursor) = below {
            span.to = span.to.min(cursor.below(false));
        }
        load(&self.journal, &self.queue)
            .await
            .map_err(|error| unreadable(&error))?;
        let who = who.clone();
        let pick = move |message: Message, live: Live| {
            (who.owns(&message.client) && filter.takes(&message, &live))
                .then(|| show_message(&message, &live))
        };
        look(&self.journal, &self.queue, span, limit, pick)
            .await
            .map_err(|error| unreadable(&error))
    }

    /// One dead message, if `who` may see it.
    pub async fn dead_message(&self, id: &str, who: &Who) -> Result<(u64, Message, Live), Problem> {
        let ended = self.ended(id, who).await?;
        ended
            .filter(|(_, _, live)| live.dead_letter().is_some())
            .ok_or_else(no_such_letter)
    }

    /// One message that has ended.
    async fn ended(&self, id: &str, who: &Who) -> Result<Option<(u64, Message, Live)>, Problem> {
        let Ok(id) = id.parse::<MessageId>() else {
            return Ok(None);
        };
        let (place, seq) = (self.queue.place(), id.seq());
        let read = self.journal.read(move |view| {
            let key = seq.to_be_bytes();
            Ok((view.get(place.payload, &key)?, view.get(place.done, &key)?))
        });
        let (message, live) = read.await.map_err(|error| unreadable(&error))?;
        let message = message.and_then(|bytes| record::decode::<Message>(&bytes).ok());
        let live = live.and_then(|bytes| record::decode::<Live>(&bytes).ok());
        Ok(message
            .filter(|message| message.id == id && who.owns(&message.client))
            .zip(live)
            .map(|(message, live)| (seq, message, live)))
    }

    /// Takes a dead message up again under its id.
    pub async fn replay(&self, id: &str, who: &Who) -> Result<Value, Problem> {
        let _alone = self.queue.upkeep().await;
        let (seq, message, live) = self.dead_message(id, who).await?;
        self.replay_found(seq, &message, live).await?;
        Ok(json!({"id": id, "state": "queued"}))
    }

    async fn replay_found(&self, seq: u64, message: &Message, live: Live) -> Result<(), Problem> {
        if matches!(message.to, To::Accounts(_)) {
            let reason = not_linked();
            return Err(Problem::from_reason(
                409,
                "not_replayable",
                "Not replayable",
                &reason,
            ));
        }
        self.admit(live.priority)?;
        self.take_up(vec![(seq, live)]).await
    }

    /// Takes up again all that `filter` lets through, the oldest first, as long as there is room.
    pub async fn replay_all(&self, filter: &Filter) -> Result<Bulk, Problem> {
        load(&self.journal, &self.queue)
            .await
            .map_err(|error| unreadable(&error))?;
        let mut bulk = Bulk::default();
        let Some((newest_ms, seq)) = self.queue.dead().newest() else {
            return Ok(bulk);
        };
        let mut span = filter.span(Order::Ascending);
        // What dies again meanwhile is not taken up a second time.
        span.to = span.to.min((newest_ms, seq.saturating_add(1)));
        loop {
            let _alone = self.queue.upkeep().await;
            if let Err(problem) = self.admit(Priority::Normal) {
                bulk.stopped = Some(problem.slug());
                return Ok(bulk);
            }
            let filter = filter.clone();
            let pick = move |message: Message, live: Live| {
                let replayable = !matches!(message.to, To::Accounts(_));
                filter
                    .takes(&message, &live)
                    .then(|| replayable.then_some(live))
            };
            let looked = look(&self.journal, &self.queue, span, STEP_MAX, pick)
                .await
                .map_err(|error| unreadable(&error))?;
            bulk.matched += looked.found.len() as u64;
            let replayable = looked.found.into_iter();
            let mut again: Vec<_> = replayable
                .filter_map(|(key, live)| Some((key.1, live?)))
                .collect();
            again.sort_by_key(|(seq, _)| *seq);
            bulk.done += again.len() as u64;
            self.take_up(again).await?;
            match looked.on {
                Some(key) => span = span.behind(key),
                None => return Ok(bulk),
            }
        }
    }

    /// With the upkeep in hand.
    async fn take_up(&self, letters: Vec<(u64, Live)>) -> Result<(), Problem> {
        let wall_ms = self.clock.wall_ms();
        let mut batch = Batch::default();
        let mut again = vec![];
        for (seq, mut live) in letters {
            let ended_ms = live.progress.finished_ms.unwrap_or(0);
            reopen(&mut live, wall_ms);
            self.queue.reopen(&mut batch, seq, &live);
            again.push(((ended_ms, seq), live));
        }
        self.commit(batch).await?;
        for (key, live) in again {
            self.queue.dead().remove(key);
            self.queue.appended(key.1, live.tag(), live);
        }
        Ok(())
    }

    /// Decides what became of a message of unknown outcome, as the body of the request says.
    pub async fn resolve(&self, id: &str, body: &[u8], who: &Who) -> Result<Value, Problem> {
        let resolution = Resolution::read(body)?;
        let _alone = self.queue.upkeep().await;
        let missing = || {
            let detail = "no message that has ended has this id";
            Problem::new(404, "message_not_found", "No such message", detail)
        };
        let (seq, message, live) = match self.ended(id, who).await? {
            Some(ended) => ended,
            None if self.is_under_way(id, who).await? => return Err(not_unknown("under way")),
            None => return Err(missing()),
        };
        if live.fold == Fold::Digest {
            return Err(not_unknown("a digest; resolve the messages in it"));
        }
        if live.progress.state != State::Unknown {
            return Err(not_unknown(live.progress.state.label()));
        }
        let state = match resolution {
            Resolution::Retry => {
                self.replay_found(seq, &message, live).await?;
                State::Queued
            }
            Resolution::Sent => self.decide(seq, &message, live, State::Sent, who).await?,
            Resolution::Dead => self.decide(seq, &message, live, State::Dead, who).await?,
        };
        Ok(json!({"id": message.id, "state": state}))
    }

    async fn is_under_way(&self, id: &str, who: &Who) -> Result<bool, Problem> {
        let Ok(id) = id.parse::<MessageId>() else {
            return Ok(false);
        };
        let (place, seq) = (self.queue.place(), id.seq());
        let read = self.journal.read(move |view| {
            let live = view.get(place.live, &seq.to_be_bytes())?;
            Ok(live.and(view.get(place.payload, &seq.to_be_bytes())?))
        });
        let message = read.await.map_err(|error| unreadable(&error))?;
        let message = message.and_then(|bytes| record::decode::<Message>(&bytes).ok());
        Ok(message.is_some_and(|message| message.id == id && who.owns(&message.client)))
    }

    /// From one end to another: nothing is counted anew, and the platform is told once more.
    async fn decide(
        &self,
        seq: u64,
        message: &Message,
        mut live: Live,
        state: State,
        who: &Who,
    ) -> Result<State, Problem> {
        let old = (live.progress.finished_ms.unwrap_or(0), seq);
        resolve(&mut live, state, who.name(), self.clock.wall_ms());
        let mut batch = Batch::default();
        self.queue.amend(&mut batch, seq, &live);
        let ended = self.outcomes.append(&mut batch, message, &live);
        self.commit(batch).await?;
        self.queue.dead().remove(old);
        if let Some(letter) = live.dead_letter() {
            self.queue.dead().add(seq, letter);
        }
        self.outcomes.appended(ended);
        Ok(state)
    }

    async fn commit(&self, batch: Batch) -> Result<(), Problem> {
        let failed = |_| Problem::unavailable("store_failed", "the journal cannot be written", 5);
        self.journal.commit(batch).await.map_err(failed)
    }
}

impl Resolution {
    fn read(body: &[u8]) -> Result<Self, Problem> {
        // A list would pass for an object, member by member.
        let body = if body.trim_ascii_start().starts_with(b"{") {
            body
        } else {
            b"{}"
        };
        let read: Result<Resolve, _> = serde_json::from_slice(body);
        read.map(|body| body.resolution).map_err(|error| {
            let error = crate::secret::printable(&error.to_string(), 200);
            refused(&format!(
                "body: {error}; it is {{\"as\":\"sent\"}}, {{\"as\":\"dead\"}} or {{\"as\":\"retry\"}}"
            ))
        })
    }
}

/// As if it had just been accepted, but under its id and with what was delivered kept.
fn reopen(live: &mut Live, wall_ms: u64) {
    let progress = &mut live.progress;
    for call in progress
        .calls
        .iter_mut()
        .filter(|call| call.outcome != CallOutcome::Sent)
    {
        if call.outcome == CallOutcome::Dead {
            // That one has refused it: no reason to stay with it.
            call.carrier = None;
        }
        call.outcome = CallOutcome::Pending;
        call.attempts = 0;
        call.ambiguous = 0;
        for recipient in &mut call.recipients {
            if recipient.outcome != RecipientOutcome::Sent {
                recipient.outcome = RecipientOutcome::Pending;
            }
        }
    }
    progress.state = State::Queued;
    progress.failures = 0;
    progress.refused_by.clear();
    progress.due_ms = 0;
    progress.finished_ms = None;
    progress.generation += 1;
    // It was in no digest, or in one that nobody knows of: it goes by itself.
    live.digest = None;
    live.fold = Fold::Never;
    live.expires_ms = wall_ms + live.priority.lifetime_ms();
}

/// `state` by decision of `who`: another generation, because the platform is told of it once more.
fn resolve(live: &mut Live, state: State, who: &str, wall_ms: u64) {
    let outcome = if state == State::Sent {
        CallOutcome::Sent
    } else {
        CallOutcome::Dead
    };
    let progress = &mut live.progress;
    for call in progress
        .calls
        .iter_mut()
        .filter(|call| call.outcome == CallOutcome::Unknown)
    {
        call.outcome = outcome;
        for recipient in &mut call.recipients {
            if outcome == CallOutcome::Sent && recipient.outcome == RecipientOutcome::Pending {
                recipient.outcome = RecipientOutcome::Sent;
            }
        }
    }
    let detail = format!("resolved as {} by {who}", state.label());
    progress.state = state;
    progress.reason = Some(Reason::new("resolved_by_operator", detail, "", ""));
    progress.finished_ms = Some(wall_ms);
    progress.generation += 1;
}

/// No dead letter has the id that was asked for.
pub fn no_such_letter() -> Problem {
    let detail = "no dead letter has this id; see `dingd dead list`";
    Problem::new(404, "dead_letter_not_found", "No such dead letter", detail)
}

fn not_unknown(state: &str) -> Problem {
    let detail = format!("the message is {state}; only one of unknown outcome can be resolved");
    Problem::new(409, "not_unknown", "Nothing to resolve", detail)
}

pub(super) fn refused(detail: &str) -> Problem {
    Problem::new(422, "invalid_request", "Invalid request", detail)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::delivery::state::{Ambiguous, Call, Next, Progress};
    use crate::delivery::verdict::Verdict;
    use crate::dingtalk::message::{At, Content};

    pub(in crate::outbound) fn dead(to: To, state: State, code: &'static str) -> (Message, Live) {
        let id = MessageId::new(7, 0, 1);
        let content: Content = serde_json::from_str(r#"{"text":{"content":"x"}}"#).unwrap();
        let message = Message {
            id,
            app: "oncall".into(),
            to,
            content,
            at: At::default(),
            robot_code: String::new(),
            cool_app_code: None,
            merge_key: None,
            resolved: false,
            parts: vec![],
            members: vec![],
            session: None,
            client: "platform".into(),
        };
        let recipients = vec!["u1".to_owned(), "u2".to_owned()];
        let mut progress = Progress::new(vec![Call::to(recipients)]);
        progress.state = state;
        progress.reason = Some(Reason::new(code, "", "", ""));
        progress.finished_ms = Some(9);
        for call in &mut progress.calls {
            call.outcome = CallOutcome::Unknown;
        }
        let live = Live {
            id,
            app: "oncall".into(),
            target: String::new(),
            lane: 1,
            priority: Priority::Normal,
            accepted_ms: 7,
            expires_ms: 9,
            bytes: 100,
            ambiguous: Ambiguous::Hold,
            route: Route::People,
            fold: Fold::Never,
            digest: None,
            unkeyed: false,
            session_over: false,
            progress,
        };
        (message, live)
    }

    #[test]
    fn a_decision_ends_what_was_unknown_and_makes_another_generation() {
        for (state, recipient) in [
            (State::Sent, RecipientOutcome::Sent),
            (State::Dead, RecipientOutcome::Pending),
        ] {
            let (_, mut live) = dead(To::Users(vec![]), State::Unknown, "outcome_unknown");
            resolve(&mut live, state, "operator", 20);
            let progress = &live.progress;
            assert_eq!((progress.state, progress.generation), (state, 1));
            assert_eq!(progress.finished_ms, Some(20));
            assert_eq!(progress.calls[0].recipients[1].outcome, recipient);
            let reason = progress.reason.as_ref().unwrap();
            assert_eq!(reason.code, "resolved_by_operator");
            assert!(reason.detail.contains("operator"), "{}", reason.detail);
            assert_eq!(live.dead_letter().is_some(), state == State::Dead);
        }
    }

    /// It had used up its repeats, and was parked again at its first unknown outcome.
    #[test]
    fn what_is_replayed_has_its_repeats_again() {
        let (_, mut live) = dead(To::Users(vec![]), State::Unknown, "outcome_unknown");
        live.progress.calls[0].ambiguous = 2;
        reopen(&mut live, 20);
        assert_eq!(live.progress.calls[0].ambiguous, 0);
        live.progress.depart(0);
        let unknown = Verdict::Unknown(Reason::new("x", "", "", ""));
        let next = live.progress.settle(&unknown, Ambiguous::Retry, false);
        assert_eq!(next, Next::Scheduled { failures: 1 });
    }

    #[test]
    fn a_resolution_is_one_of_three_words() {
        assert_eq!(
            Resolution::read(br#"{"as":"retry"}"#).ok(),
            Some(Resolution::Retry)
        );
        for body in [
            &b""[..],
            b"{}",
            br#"{"as":"Sent"}"#,
            br#"{"as":"sent","by":"me"}"#,
            br#"{"as":null}"#,
            br#"["sent"]"#,
            b"\xff",
        ] {
            let refused = Resolution::read(body).map_err(|problem| problem.slug());
            assert_eq!(refused, Err("invalid_request"));
        }
    }
}
