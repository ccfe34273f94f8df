//! What is done with something that was believed, whether it came over HTTP or over Stream: stored in time,
//! and answered if somebody waits for an answer.

use std::sync::Arc;
use std::time::Duration;

use super::accept::{Accepted, Inbox};
use super::answer::{Answer, reply_body};
use super::apply::meaning;
use super::asking::{Told, Wait};
use super::verify::Verified;
use super::{App, asked};
use crate::delivery::random;
use crate::dingtalk::card::{Callback, CardAnswer};
use crate::dingtalk::event::Event;
use crate::dingtalk::robot::RobotMessage;
use crate::drain::Drain;
use crate::faults::point;
use crate::journal::aged::Digest;
use crate::journal::room::Room;
use crate::metrics;

/// What both doors do. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Taker {
    /// Where it goes.
    pub inbox: Arc<Inbox>,
    /// To refuse new work while stopping.
    pub drain: Drain,
    /// Whether the disk has room for more.
    pub room: Room,
}

/// Whether the robot can reply in the answer to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replies {
    /// The answer is shown in the chat (HTTP).
    InTheAnswer,
    /// DingTalk does not look at it (Stream, inbound.md §5.4).
    Apart,
}

/// Whether there is time for the platform's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// As much as is configured.
    Full,
    /// None: others wait behind this one. The answer comes late.
    Spent,
}

impl Taker {
    /// Takes an event.
    pub async fn event(
        &self,
        app: &App,
        event: &Event,
        text: &str,
        same_bytes: Digest,
        same_event: Digest,
    ) -> Accepted {
        let verified = Verified {
            meaning: meaning(event, text),
            ask: None,
            same_bytes,
            same_event,
        };
        self.store(app, verified, &[], None).await.0
    }

    /// Takes a click on a card. Returns the answer's body; `None`: it could not be stored. An error says
    /// why it is none.
    pub async fn click(
        &self,
        app: &App,
        text: &str,
        same_bytes: Digest,
        patience: Patience,
    ) -> Result<Option<String>, &'static str> {
        let callback = Callback::read(text)?;
        // A userid is somebody else's in another organisation.
        if callback
            .corp
            .as_deref()
            .is_some_and(|corp| corp != app.corp_id)
        {
            return Err("it is from another organisation: compare [[apps]] corp_id with corpId");
        }
        let Some(click) = callback.click else {
            let verified = asked::other_callback(app, &callback.kind, text, same_bytes);
            let (accepted, _) = self.store(app, verified, &[], None).await;
            return Ok((accepted != Accepted::NotStored).then(|| "{}".to_owned()));
        };
        let (window_ms, until_ms) = {
            let settings = self.inbox.settings.load();
            let started_ms = self.inbox.clock.mono_ms();
            let wait_ms = match patience {
                Patience::Full => settings.answer_deadline_ms,
                Patience::Spent => 0,
            };
            (settings.click_window_ms, started_ms + wait_ms)
        };
        let at_ms = self.inbox.clock.wall_ms();
        let slice = at_ms.checked_div(window_ms.div_ceil(SLICES));
        let slice = slice.unwrap_or_else(|| {
            // Each click is one of its own.
            same_bytes
                .first_chunk()
                .copied()
                .map_or(0, u64::from_be_bytes)
        });
        let earlier = |n| asked::same_click(app, &click, slice.wrapping_sub(n));
        let earlier: Vec<_> = (1..=SLICES).map(earlier).collect();
        let verified = asked::click(app, &click, text, same_bytes, slice, at_ms);
        let (accepted, wait) = self.store(app, verified, &earlier, Some(until_ms)).await;
        let answer = match accepted {
            Accepted::NotStored => return Ok(None),
            // Its original gets the answer.
            Accepted::Duplicate | Accepted::CheckUrl => CardAnswer::default(),
            Accepted::New => self.card_answer(app, wait, until_ms).await,
        };
        Ok(Some(answer.response()))
    }

    /// Takes a message to the robot. Returns the answer's body; `None`: it could not be stored. An error
    /// says why it is none, or not for this app's robot.
    pub async fn message(
        &self,
        app: &App,
        text: &str,
        same_bytes: Digest,
        replies: Replies,
    ) -> Result<Option<String>, &'static str> {
        let message = RobotMessage::read(text)?;
        check_addressee(app, &message)?;
        let (verified, until_ms) = {
            let settings = self.inbox.settings.load();
            let reply_to =
                asked::reply_to(app, &message, &settings.session_origins, random::bytes());
            let wall_ms = self.inbox.clock.wall_ms();
            let verified = asked::message(app, &message, text, same_bytes, wall_ms, reply_to);
            let until_ms = self.inbox.clock.mono_ms() + settings.answer_deadline_ms;
            (verified, until_ms)
        };
        let until_ms = (replies == Replies::InTheAnswer).then_some(until_ms);
        let (accepted, wait) = self.store(app, verified, &[], until_ms).await;
        Ok(match (accepted, wait, until_ms) {
            (Accepted::NotStored, ..) => None,
            (_, Some(wait), Some(until_ms)) => Some(self.reply(wait, until_ms).await),
            _ => Some(NO_REPLY.to_owned()),
        })
    }

    /// What became of the same bytes, if they came before; waits no longer than DingTalk does.
    pub(super) async fn seen(&self, key: &Digest) -> Option<Accepted> {
        let ack_timeout_ms = self.inbox.settings.load().ack_timeout_ms;
        let limit = Duration::from_millis(ack_timeout_ms);
        tokio::time::timeout(limit, self.inbox.seen(key))
            .await
            .unwrap_or(Some(Accepted::NotStored))
    }

    /// Stores what was not stored before, within the time that DingTalk allows. `also` are further keys
    /// under which it may be known. Who asks waits until `until_ms` (monotonic), if the platform answers.
    pub(super) async fn store(
        &self,
        app: &App,
        verified: Verified,
        also: &[Digest],
        until_ms: Option<u64>,
    ) -> (Accepted, Option<Wait>) {
        let (ack_timeout_ms, events_max) = {
            let settings = self.inbox.settings.load();
            (settings.ack_timeout_ms, settings.queue_events_max)
        };
        let store = async {
            for key in also.iter().chain([&verified.same_bytes]) {
                if let Some(accepted) = self.inbox.seen(key).await {
                    return (accepted, None);
                }
            }
            let full = self.inbox.queue.messages() >= events_max;
            if full || self.drain.is_stopping() || !self.room.has_room() {
                return (Accepted::NotStored, None);
            }
            self.inbox.accept_asking(app, verified, until_ms).await
        };
        // Dropping the future does not undo the write: what comes too late makes the repeat a
        // duplicate.
        tokio::time::timeout(Duration::from_millis(ack_timeout_ms), store)
            .await
            .unwrap_or((Accepted::NotStored, None))
    }

    /// The platform's answer to a click if it comes in time; else what shows that it is under way.
    async fn card_answer(&self, app: &App, wait: Option<Wait>, until_ms: u64) -> CardAnswer {
        let Some(wait) = wait else {
            // Nobody is asked.
            return CardAnswer::default();
        };
        let in_time = self.told(wait, until_ms, |answer| match answer {
            Answer::Card(card) => Some(card),
            Answer::Nothing => Some(CardAnswer::default()),
            Answer::Later | Answer::Reply(_) => None,
        });
        let (answer, result) = match in_time.await {
            Some(answer) => (answer, "in_time"),
            None => (pending(app), "pending"),
        };
        metrics::answer("click", result);
        answer
    }

    /// The platform's reply if it comes in time and DingTalk takes it as an answer.
    async fn reply(&self, wait: Wait, until_ms: u64) -> String {
        let in_time = self.told(wait, until_ms, |answer| match answer {
            Answer::Reply(reply) => reply_body(&reply),
            Answer::Nothing => Some(NO_REPLY.to_owned()),
            Answer::Later | Answer::Card(_) => None,
        });
        let (body, result) = match in_time.await {
            Some(body) => (body, "in_time"),
            None => (NO_REPLY.to_owned(), "pending"),
        };
        metrics::answer("message", result);
        body
    }

    /// What `wanted` makes of the answer, if that comes in time; only then has it been given.
    async fn told<T>(
        &self,
        mut wait: Wait,
        until_ms: u64,
        wanted: impl Fn(Answer) -> Option<T>,
    ) -> Option<T> {
        let left_ms = until_ms.saturating_sub(self.inbox.clock.mono_ms());
        let told = tokio::time::timeout(Duration::from_millis(left_ms), wait.told());
        let Ok(Told::Answer(answer, taken)) = told.await else {
            return None;
        };
        let is_later = answer == Answer::Later;
        let answer = wanted(answer);
        if answer.is_some() || is_later {
            point("answer.before");
            // If nobody hears it, the event comes to the platform again, and so does the answer.
            taken.send(()).ok()?;
        }
        answer
    }
}

/// The time within which the same click is one is told in slices of it: so a click is never taken for one that
/// is older by more than an eighth beyond that time.
const SLICES: u64 = 8;
/// Says nothing in the chat.
const NO_REPLY: &str = "{}";

fn pending(app: &App) -> CardAnswer {
    CardAnswer {
        private_data: app.pending.clone(),
        ..CardAnswer::default()
    }
}

/// Nothing of a message is signed; what it does say about whom it is for must at least be right.
fn check_addressee(app: &App, message: &RobotMessage) -> Result<(), &'static str> {
    let robot = message.robot_code.as_deref();
    if robot.is_some_and(|code| code != app.robot_code && code != app.client_id) {
        return Err("it is for another robot: compare [[apps]] robot_code with robotCode");
    }
    let corp = message.corp.as_deref();
    if corp.is_some_and(|corp| corp != app.corp_id) {
        return Err("it is from another organisation: compare [[apps]] corp_id with chatbotCorpId");
    }
    if robot.is_none() && corp.is_none() {
        return Err("it names neither robot nor organisation");
    }
    Ok(())
}
