//! Once, and on disk, before the client gets its 202.

use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::cards::{self, Cards, Held};
use super::fresh::Fresh;
use super::request::Asked;
use super::send::not_linked;
use super::settle::Outcomes;
use super::{Live, Message, Route, Settings, To, dead};
use crate::clock::Clock;
use crate::delivery::id::{MessageId, digest, short_digest};
use crate::delivery::state::{
    Ambiguous, Call, CallOutcome, Priority, Progress, RecipientOutcome, State,
};
use crate::delivery::{random, record};
use crate::dingtalk::digest::Fold;
use crate::dingtalk::message::{Content, USERS_PER_CALL};
use crate::drain::Drain;
use crate::faults::point;
use crate::http::problem::Problem;
use crate::journal::aged::{Aged, Digest};
use crate::journal::queue::Queue;
use crate::journal::room::Room;
use crate::journal::{Batch, Journal};
use crate::metrics;

/// Requests with the same idempotency key wait for one another; different keys rarely do.
const STRIPES: usize = 1_024;

/// The accepting side of the outbox.
#[derive(Debug)]
pub struct Outbox {
    /// What the outbound side works by.
    pub settings: Arc<ArcSwap<Settings>>,
    /// Where messages are kept.
    pub queue: Arc<Queue<Live>>,
    /// The store.
    pub journal: Journal,
    /// Idempotency keys used.
    pub idempotency: Arc<Aged<Used, 1>>,
    /// Tells the platform of messages that end here.
    pub outcomes: Outcomes,
    /// Whether the disk has room.
    pub room: Room,
    /// To refuse new work while stopping.
    pub drain: Drain,
    /// The clock.
    pub clock: Clock,
    /// One lock a group of idempotency keys.
    pub stripes: Stripes,
    /// What was accepted a moment ago.
    pub fresh: Arc<Fresh>,
    /// What each card is to show.
    pub cards: Arc<Cards>,
}

/// Locks for what has a number: a group of numbers has one.
#[derive(Debug)]
pub struct Stripes(Vec<Arc<Mutex<()>>>);

impl Stripes {
    /// Waits until nobody else holds what has this number.
    pub async fn lock(&self, number: u64) -> OwnedMutexGuard<()> {
        let stripes = self.0.len().max(1) as u64;
        let index = usize::try_from(number % stripes).unwrap_or(0);
        let lock = self.0.get(index).cloned().unwrap_or_default();
        lock.lock_owned().await
    }
}

impl Default for Stripes {
    fn default() -> Self {
        Self((0..STRIPES).map(|_| Arc::default()).collect())
    }
}

/// The first use of an idempotency key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Used {
    body: Digest,
    answer: Accepted,
}

impl Used {
    pub(super) fn new(body: Digest, answer: Accepted) -> Self {
        Self { body, answer }
    }
}

/// The answer to an accepted message.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Accepted {
    /// Its id.
    pub id: MessageId,
    /// Normally `queued`.
    pub state: State,
    /// How many messages of its lane there are, with this one.
    pub position: u64,
    /// An estimate from the limits, in seconds.
    pub eta_s: f64,
    /// The name of the card that it makes or changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_track_id: Option<String>,
}

impl Outbox {
    /// Looks up an idempotency key, and holds it until the returned guard is dropped.
    pub async fn once(
        &self,
        client: &str,
        key: Option<&str>,
        body: &[u8],
    ) -> Result<Once, Problem> {
        let Some(key) = key else {
            return Ok(Once::Unkeyed);
        };
        let key = digest(&[client.as_bytes(), key.as_bytes()]);
        let body = digest(&[body]);
        let [first, second, ..] = key;
        let number = u16::from_be_bytes([first, second]);
        let guard = self.stripes.lock(number.into()).await;
        match self.idempotency.known(&key) {
            None => Ok(Once::First { key, body, guard }),
            Some(used) if used.body == body => Ok(Once::Replayed(used.answer)),
            Some(_) => Err(Problem::new(
                409,
                "idempotency_conflict",
                "Idempotency key used before",
                "the same Idempotency-Key came with another body; use a new key for a new message",
            )),
        }
    }

    /// Whether a message of this priority may come in now.
    pub fn admit(&self, priority: Priority) -> Result<(), Problem> {
        if self.drain.is_stopping() {
            return Err(Problem::unavailable(
                "draining",
                "the daemon is stopping",
                5,
            ));
        }
        if !self.room.has_room() {
            return Err(Problem::unavailable(
                "disk_low",
                "the disk of state_dir is nearly full",
                30,
            )
            .fix(
                "清理或扩容 state_dir 所在磁盘。",
                "Free or enlarge the disk of state_dir.",
            ));
        }
        let settings = self.settings.load();
        // Low priorities are refused first, so that the last places are for what matters.
        let share = match priority {
            Priority::Low => 80,
            Priority::Normal => 90,
            Priority::High => 95,
            Priority::Critical => 100,
        };
        let full = |used: u64, max: u64| used >= max.saturating_mul(share) / 100;
        if full(self.queue.messages(), settings.queue_messages_max)
            || full(self.queue.bytes(), settings.queue_bytes_max)
        {
            let detail = format!("the queue is filled to {share} %");
            return Err(Problem::unavailable("queue_full", detail, 10).fix(
                "查看 `dingd messages list` 与 /ready，处理积压原因；或调大 [outbound] queue_messages_max。",
                "See `dingd messages list` and /ready for the cause; or raise [outbound] queue_messages_max.",
            ));
        }
        Ok(())
    }

    /// Stores a message; it is durable when this returns `Ok`.
    pub async fn accept(&self, asked: Asked, once: Once) -> Result<Accepted, Problem> {
        let keyed = match once {
            Once::Replayed(answer) => return Ok(answer),
            Once::First { key, body, guard } => Some((key, body, guard)),
            Once::Unkeyed => None,
        };
        let wall_ms = self.clock.wall_ms();
        let seq = self.queue.reserve();
        let Asked {
            mut message,
            route,
            priority,
            ambiguous,
            lifetime_ms,
            is_reply,
        } = asked;
        message.id = new_id(wall_ms, seq);
        cards::accept::name(&mut message);
        let payload = record::encode(&message);
        let target = message.to.target().to_owned();
        let mut state = Live {
            id: message.id,
            app: message.app.clone(),
            lane: lane(&message.app, &message.to, priority),
            target,
            priority,
            accepted_ms: wall_ms,
            expires_ms: wall_ms + lifetime_ms,
            bytes: payload.len() as u64,
            ambiguous,
            route,
            progress: Progress::in_parts(calls(&message), message.parts.len()),
            fold: if is_reply {
                Fold::Never
            } else {
                fold(&message.content, priority, ambiguous)
            },
            digest: None,
            unkeyed: false,
            session_over: false,
        };
        let mut held = self.new_card(&message, &state).await?;
        let mut batch = Batch::default();
        let mut ended = None;
        if let To::Accounts(_) = message.to {
            // Nobody is linked until account linking exists: it ends here, with the cure.
            nobody_linked(&mut state, wall_ms);
            self.queue.append_done(&mut batch, seq, &payload, &state);
            ended = Some(self.outcomes.append(&mut batch, &message, &state));
            if let Some(held) = &mut held {
                held.ended(message.id, &state.progress, wall_ms);
            }
        } else {
            self.queue.append(&mut batch, seq, &payload, &state);
        }
        if let Some(held) = &mut held {
            held.put(&mut batch, wall_ms);
        }
        let answer = self.answer(&state, &message.content);
        if let Some((key, body, _)) = &keyed {
            let used = Used {
                body: *body,
                answer: answer.clone(),
            };
            self.idempotency.note(&mut batch, &[*key], &used, wall_ms);
        }
        point("message.before");
        let stored = self
            .submit(batch, message, state, ended, keyed, answer.clone(), held)
            .await;
        if stored {
            point("message.after");
            metrics::admission(Some(priority), "accepted", "stored");
            Ok(answer)
        } else {
            Err(not_stored())
        }
    }

    /// Writes the batch; what follows from its being durable happens even if the client is gone.
    #[expect(
        clippy::too_many_arguments,
        reason = "one caller; they all move into one closure"
    )]
    async fn submit(
        &self,
        batch: Batch,
        message: Message,
        state: Live,
        ended: Option<super::settle::Ended>,
        keyed: Option<(Digest, Digest, OwnedMutexGuard<()>)>,
        answer: Accepted,
        held: Option<Box<Held>>,
    ) -> bool {
        let (tell, told) = tokio::sync::oneshot::channel();
        let wall_ms = state.accepted_ms;
        let (seq, mono_ms) = (message.id.seq(), self.clock.mono_ms());
        let fresh = self.fresh.clone();
        let (queue, idempotency, outcomes) = (
            self.queue.clone(),
            self.idempotency.clone(),
            self.outcomes.clone(),
        );
        self.journal.submit(batch, move |result| {
            if result.is_ok() {
                // The guard goes with it: a client that hangs up and repeats waits for this commit.
                if let Some((key, body, _guard)) = keyed {
                    idempotency.remember([key], &Used { body, answer }, wall_ms);
                }
                if let Some(ended) = ended {
                    let reason = state.progress.reason.as_ref();
                    let reason = reason.map_or("none", |r| r.code.as_ref());
                    metrics::finished("outbound", state.priority, "dead", reason, 0);
                    dead::bury(&queue, seq, &state, mono_ms);
                    outcomes.appended(ended);
                } else {
                    fresh.keep(seq, message, state.clone(), mono_ms);
                    queue.appended(seq, state.tag(), state);
                }
            }
            drop(held);
            if tell.send(result.is_ok()).is_err() {
                tracing::debug!(
                    "the client left before its message was stored; it is sent all the same"
                );
            }
        });
        told.await.unwrap_or(false)
    }

    pub(super) fn answer(&self, state: &Live, content: &Content) -> Accepted {
        let position = self.queue.lane_messages(state.lane) + 1;
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let eta_s = match state.route {
            // The first windowful goes at once.
            Route::Webhook | Route::Group | Route::Card | Route::LegacyCard
                if !state.target.is_empty() =>
            {
                let settings = self.settings.load();
                let robot = (state.route == Route::Webhook).then_some(&state.target);
                let pool = robot.and_then(|robot| settings.pools.get(robot));
                let carriers = pool.map_or(1, Vec::len);
                let per_minute = settings.robot_per_minute.max(0.1) * carriers as f64;
                ((position as f64 - per_minute).max(0.0) / per_minute * 60.0).round()
            }
            _ => 0.0,
        };
        let out_track_id = content.out_track_id().map(ToOwned::to_owned);
        Accepted {
            id: state.id,
            state: state.progress.state,
            position,
            eta_s,
            out_track_id,
        }
    }
}

/// The id of message `seq`.
pub(super) fn new_id(wall_ms: u64, seq: u64) -> MessageId {
    let random = u16::try_from(random::number() & 0xffff).unwrap_or(0);
    MessageId::new(wall_ms, random, seq)
}

/// The journal did not take it.
pub(super) fn not_stored() -> Problem {
    Problem::unavailable("store_failed", "the message could not be stored", 5).fix(
        "查看日志与 state_dir 所在磁盘。",
        "See the log and check the disk of state_dir.",
    )
}

/// What an idempotency key says about a request.
#[derive(Debug)]
pub enum Once {
    /// The request has no key.
    Unkeyed,
    /// The key is new; nobody else can use it while this is held.
    First {
        /// Of client and key.
        key: Digest,
        /// Of the body.
        body: Digest,
        /// Held until the message is durable.
        guard: OwnedMutexGuard<()>,
    },
    /// The same request came before.
    Replayed(Accepted),
}

/// Messages of one lane keep their order: one target, one priority.
pub(super) fn lane(app: &str, to: &To, priority: Priority) -> u64 {
    let mut parts = vec![app.as_bytes(), priority.label().as_bytes()];
    match to {
        To::Chat(chat) => parts.extend([&b"chat"[..], chat.as_bytes()]),
        To::Robot(robot) => parts.extend([&b"robot"[..], robot.as_bytes()]),
        To::Card(card) => parts.extend([&b"card"[..], card.as_bytes()]),
        To::Users(people) | To::Accounts(people) => {
            parts.push(b"people");
            parts.extend(people.iter().map(String::as_bytes));
        }
    }
    short_digest(&parts)
}

/// What is critical is never folded; neither is what must not be sent twice, because a digest is sent
/// again like any alert.
fn fold(content: &Content, priority: Priority, ambiguous: Ambiguous) -> Fold {
    if priority == Priority::Critical || ambiguous != Ambiguous::Retry {
        Fold::Never
    } else {
        Fold::of(content)
    }
}

/// One call for a group, one for every twenty people; for each part one.
pub(super) fn calls(message: &Message) -> Vec<Call> {
    calls_in_parts(&message.to, message.calls_per_target())
}

fn calls_in_parts(to: &To, parts: usize) -> Vec<Call> {
    let each_part = |target: Vec<String>| vec![Call::to(target); parts];
    match to {
        To::Chat(_) | To::Robot(_) | To::Card(_) => each_part(vec![]),
        To::Users(people) | To::Accounts(people) => {
            // Named twice is meant once.
            let mut seen = std::collections::HashSet::new();
            let once: Vec<_> = people
                .iter()
                .filter(|id| seen.insert(id.as_str()))
                .cloned()
                .collect();
            once.chunks(USERS_PER_CALL)
                .flat_map(|chunk| each_part(chunk.to_vec()))
                .collect()
        }
    }
}

fn nobody_linked(state: &mut Live, wall_ms: u64) {
    for call in &mut state.progress.calls {
        call.outcome = CallOutcome::Dead;
        for recipient in &mut call.recipients {
            recipient.outcome = RecipientOutcome::NotLinked;
        }
    }
    state.progress.end(State::Dead, Some(not_linked()), wall_ms);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_split_into_calls_of_twenty_without_repeats() {
        let mut people: Vec<_> = (0..45).map(|n| format!("u{n}")).collect();
        people.push("u0".into());
        let sizes = |parts| -> Vec<_> {
            let calls = calls_in_parts(&To::Users(people.clone()), parts);
            calls.iter().map(|c| c.recipients.len()).collect()
        };
        assert_eq!(sizes(1), [20, 20, 5]);
        assert_eq!(sizes(2), [20, 20, 20, 20, 5, 5]);
    }

    #[test]
    fn a_lane_is_one_target_and_one_priority() {
        let chat = To::Chat("cid12".into());
        let robot = To::Robot("cid12".into());
        let lanes = [
            lane("a", &chat, Priority::Normal),
            lane("a", &chat, Priority::Critical),
            lane("b", &chat, Priority::Normal),
            lane("a", &robot, Priority::Normal),
            lane("a", &To::Users(vec!["ab".into()]), Priority::Normal),
            lane(
                "a",
                &To::Users(vec!["a".into(), "b".into()]),
                Priority::Normal,
            ),
        ];
        let distinct: std::collections::HashSet<_> = lanes.iter().collect();
        assert_eq!(distinct.len(), lanes.len());
    }
}
