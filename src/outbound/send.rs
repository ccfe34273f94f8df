//! One attempt: token → intent on disk → call → verdict → result on disk.
//!
//! The intent, with what the call is charged to, is durable before the first byte leaves. So a crash
//! never sends uncharged, and a message that was under way is known to be of unknown outcome. The
//! result joins the next group commit; losing one only repeats the call.

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use serde_json::{Value, json};

use super::cards::fly::{Boarded, Said};
use super::cards::{self, Cards, Held};
use super::fresh::Fresh;
use super::pool::{Grant, Leaning, SECURITY, is_doubtful, nobody_recognises_it};
use super::request::{app, cool_app_code};
use super::settle::Outcomes;
use super::{Live, Message, Route, Settings, To, dead, reply};
use crate::cache::token::Tokens;
use crate::clock::Clock;
use crate::delivery::id::MessageId;
use crate::delivery::retry::DINGTALK;
use crate::delivery::state::{Ambiguous, Next, State};
use crate::delivery::verdict::{Reason, Scope, Verdict};
use crate::delivery::{random, record};
use crate::dingtalk::answer::Api;
use crate::dingtalk::envelope::percent_encode;
use crate::dingtalk::message::{At, Unfit, a_card};
use crate::dingtalk::signature;
use crate::directory::chats::Chats;
use crate::egress::call::Request;
use crate::egress::charge::ChargeId;
use crate::egress::limit::Key;
use crate::egress::{Egress, Permit, Settled, app_key, app_keys, robot_keys};
use crate::faults::{Bug, bug, point};
use crate::journal::queue::Queue;
use crate::journal::{Batch, Journal, ReadError};
use crate::metrics;
use crate::secret::Secret;

/// A message whose token cannot be had is tried again after this, in milliseconds.
const NO_TOKEN_MS: u64 = 5_000;
/// Those whose token is being fetched look again after this, unless whoever waits for it has it earlier.
const FETCHING_MS: u64 = 200;
const ROBOT_UNKNOWN: &str = "robot_unknown";
/// At once is still a moment later, so that a limit that is checked twice cannot spin.
const AT_ONCE_MS: u64 = 5;

/// Makes attempts. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sender {
    /// What the outbound side works by.
    pub settings: Arc<ArcSwap<Settings>>,
    /// Where messages are kept.
    pub queue: Arc<Queue<Live>>,
    /// The store.
    pub journal: Journal,
    /// Access tokens.
    pub tokens: Arc<Tokens>,
    /// The way out.
    pub egress: Arc<Egress>,
    /// Tells the platform.
    pub outcomes: Outcomes,
    /// What was accepted a moment ago.
    pub fresh: Arc<Fresh>,
    /// What each card is to show.
    pub cards: Arc<Cards>,
    /// What is known of groups.
    pub chats: Arc<Chats>,
    /// The clock.
    pub clock: Clock,
}

/// How an attempt left its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Left {
    /// Terminal.
    Finished,
    /// Terminal; if it was a digest it came to nothing, and the messages in it wait again.
    Parts,
    /// Due again at a monotonic time; `failed` if the message is to blame.
    Again {
        /// Monotonic milliseconds.
        due_ms: u64,
        /// Whether this counts against the message.
        failed: bool,
        /// Whether part of it has arrived, or may have.
        tried: bool,
        /// Who may carry it now; `None` = nothing was learnt about that.
        leaning: Option<Leaning>,
    },
    /// Its turn comes behind another message.
    Behind(Ahead),
    /// It waits for its app's token, as all others of the app do, until a monotonic time.
    Tokenless {
        /// The app.
        app: Key,
        /// Monotonic milliseconds.
        due_ms: u64,
    },
}

/// The message that comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ahead {
    /// Its number.
    pub seq: u64,
    /// A call of it was under way; when that has ended one may not have to wait any more.
    pub called: bool,
}

/// Why the call of a message is not made now.
#[derive(Debug)]
pub(super) enum Unready {
    /// It never will be.
    Dead(Reason),
    /// Another message comes first.
    Behind(Ahead),
    /// Another message did what it was to do.
    Merged(MessageId),
    /// What it needs cannot be read now.
    Unreadable,
}

/// What came of an attempt.
struct Came<'a> {
    verdict: &'a Verdict,
    /// What the call was charged to; `None` if none was made.
    charged: Option<(ChargeId, Settled)>,
    /// Whether DingTalk recognises a repeat.
    keyed: bool,
    retry_after_s: Option<u64>,
    /// What it says of a card.
    card: Option<Said>,
}

impl Route {
    fn api(self) -> Api {
        match self {
            Self::Group => Api::GroupSend,
            Self::People => Api::OtoSend,
            Self::Webhook => Api::WebhookSend,
            Self::Card => Api::CardCreate,
            Self::CardUpdate => Api::CardUpdate,
            Self::LegacyCard => Api::LegacyCardCreate,
            Self::LegacyCardUpdate => Api::LegacyCardUpdate,
        }
    }
}

impl Live {
    /// Counts the end that has become durable.
    pub(super) fn report_end(&self) {
        let progress = &self.progress;
        let reason = progress.reason.as_ref().map_or("none", |r| r.code.as_ref());
        let ended_ms = progress.finished_ms.unwrap_or(self.accepted_ms);
        let latency_ms = ended_ms.saturating_sub(self.accepted_ms);
        let state = progress.state.label();
        metrics::finished("outbound", self.priority, state, reason, latency_ms);
    }

    /// The limits that cover its calls.
    pub fn limits(&self) -> Vec<Key> {
        limits(self.route, &self.app, &self.target)
    }
}

/// The limits that cover a call.
pub(super) fn limits(route: Route, app: &str, target: &str) -> Vec<Key> {
    match route {
        Route::Webhook => robot_keys(target),
        Route::Group | Route::Card | Route::LegacyCard if !target.is_empty() => {
            app_keys(app, route.api(), Some(target))
        }
        _ => app_keys(app, route.api(), None),
    }
}

impl Sender {
    /// Makes the next call of message `seq`, which `grant` lets go.
    pub async fn attempt(&self, seq: u64, grant: Grant, reordered: bool) -> Left {
        let Grant { permit, carrier } = grant;
        let read = match self.fresh.take(seq) {
            Some(both) => Ok(Some(both)),
            None => self.read(seq).await,
        };
        let (message, mut live) = match read {
            Ok(Some(both)) => both,
            Ok(None) => {
                self.egress.give_back(permit);
                return self.set_aside(seq).await;
            }
            Err(error) => {
                tracing::error!(%error, "a message cannot be read now; it is tried again");
                self.egress.give_back(permit);
                return self.again_in(NO_TOKEN_MS);
            }
        };
        live.progress.reordered |= reordered;
        let Some(index) = live.next_call() else {
            self.egress.give_back(permit);
            let batch = Batch::default();
            return self.conclude(seq, &message, live, batch, None).await;
        };
        if live.ambiguous != Ambiguous::Retry && is_doubtful(&live, index, carrier.as_deref()) {
            self.egress.give_back(permit);
            let verdict = Verdict::Unknown(nobody_recognises_it());
            return self.unmade(seq, &message, live, index, verdict).await;
        }
        let token = self.tokens.held(&live.app);
        let needs_token =
            live.route != Route::Webhook && self.by_session(&message, &live, index).is_none();
        if token.is_none() && needs_token {
            // Nobody waits for a token while holding a place in a limit: the fetch needs one itself,
            // and a breaker may have but one to give.
            self.egress.give_back(permit);
            return self.await_token(seq, &message, live, index).await;
        }
        let ready = self.ready(&message, &live, index, carrier.as_deref(), token.clone());
        let (request, boarded) = match ready.await {
            Ok(ready) => ready,
            Err(unready) => {
                self.egress.give_back(permit);
                let carried = carrier.is_some();
                return self.unready(seq, &message, live, unready, carried).await;
            }
        };
        live.progress.depart(index);
        live.progress.carried_by(carrier.as_deref());
        live.unkeyed = request.api == Api::CardDeliver;
        live.digest = None;
        let doubtful = boarded.as_ref().is_some_and(|boarded| boarded.doubtful);
        let (api, by_session) = (request.api, request.session.is_some());
        let Some(charge) = self.intend(seq, &live, &permit, boarded).await else {
            // The process is about to end; nothing left.
            self.egress.give_back(permit);
            return self.again_in(NO_TOKEN_MS);
        };
        point("call.before");
        let judged = self.egress.call(request).await;
        point("call.after");
        // The limits learn from what DingTalk said, not from what we make of it.
        let (learnt, verdict) = if by_session {
            let verdict = reply::after_session(&mut live, judged.verdict);
            (verdict.clone(), verdict)
        } else {
            self.means(&mut live, carrier.as_deref(), judged.verdict)
        };
        let verdict = cards::fly::resolved(verdict, doubtful);
        let settled = self.egress.settle(permit, &learnt);
        if let (Verdict::RefreshToken(_), Some(token)) = (&verdict, &token) {
            self.tokens.refused(&live.app, token);
        }
        let reply = judged.reply.as_ref();
        let came = Came {
            verdict: &verdict,
            charged: Some((charge, settled)),
            keyed: live.is_keyed(),
            retry_after_s: reply.and_then(|reply| reply.retry_after_s),
            card: Said::of(api, &verdict, reply),
        };
        self.settle(seq, &message, live, came).await
    }

    /// What the limits learn from DingTalk's `verdict` on the call of robot or app, and what it means for the
    /// message.
    fn means(
        &self,
        live: &mut Live,
        carrier: Option<&str>,
        verdict: Verdict,
    ) -> (Verdict, Verdict) {
        let (learnt, verdict) = self.pass_over(live, carrier, verdict);
        let last = live.progress.reason.as_ref().map(|last| last.code.as_ref());
        misconfigured(carrier.is_none(), learnt, second_chance(verdict, last))
    }

    /// Writes down that a call is about to be made and what it is charged to; `None` if that failed.
    async fn intend(
        &self,
        seq: u64,
        live: &Live,
        permit: &Permit,
        boarded: Option<Boarded>,
    ) -> Option<ChargeId> {
        let mut batch = Batch::default();
        self.queue.update(&mut batch, seq, live, live.tag());
        // In hand until it is on disk.
        let boarded = boarded.map(|mut boarded| {
            boarded.held.put(&mut batch, self.clock.wall_ms());
            boarded
        });
        let charge = self.egress.charge(&mut batch, permit);
        if bug(Bug::IntentNotWaitedFor) {
            self.journal.submit(batch, |_| ());
        } else {
            self.journal.commit(batch).await.ok()?;
        }
        drop(boarded);
        Some(charge)
    }

    /// What is to be sent.
    async fn ready(
        &self,
        message: &Message,
        live: &Live,
        index: usize,
        carrier: Option<&str>,
        token: Option<Secret>,
    ) -> Result<(Request, Option<Boarded>), Unready> {
        if message.content.is_card() {
            let (request, boarded) = self.board(message, live, index, token).await?;
            return Ok((request, Some(boarded)));
        }
        let request = self.request(message, live, index, carrier, token);
        Ok((request.map_err(Unready::Dead)?, None))
    }

    /// The next call of `message` is not made now.
    async fn unready(
        &self,
        seq: u64,
        message: &Message,
        live: Live,
        unready: Unready,
        carried: bool,
    ) -> Left {
        match unready {
            // It left its pool this very moment.
            Unready::Dead(reason) if carried && reason.code == ROBOT_UNKNOWN => {
                self.again_in(AT_ONCE_MS)
            }
            Unready::Dead(reason) => {
                let index = live.next_call().unwrap_or(0);
                let verdict = Verdict::Dead(reason);
                self.unmade(seq, message, live, index, verdict).await
            }
            Unready::Behind(ahead) => Left::Behind(ahead),
            Unready::Merged(into) => self.merge_update(seq, message, live, into).await,
            Unready::Unreadable => self.again_in(NO_TOKEN_MS),
        }
    }

    pub(super) fn again_in(&self, delay_ms: u64) -> Left {
        Left::Again {
            due_ms: self.clock.mono_ms() + delay_ms,
            failed: false,
            tried: false,
            leaning: None,
        }
    }

    /// Ends a message that is not under way: expired, cancelled, or parked after a restart.
    pub async fn end(&self, seq: u64, state: State, reason: Option<Reason>) -> Option<Left> {
        drop(self.fresh.take(seq));
        let left = match self.read(seq).await.ok()? {
            Some((message, mut live)) => {
                if live.progress.in_flight.is_some() {
                    // Read back at a start, where this was decided.
                    live.progress.recover(live.ambiguous, live.is_keyed());
                }
                live.progress.end(state, reason, self.clock.wall_ms());
                if !message.members.is_empty() {
                    // Even if one of several calls has arrived: what is in it waits already.
                    live.progress.state = state;
                }
                live.digest = None;
                let batch = Batch::default();
                self.conclude(seq, &message, live, batch, None).await
            }
            None => self.set_aside(seq).await,
        };
        // Behind it, so that endings are no more than a few at a time even if the disk is stuck.
        // Whoever asked for it is told only what is on disk.
        self.journal.commit(Batch::default()).await.ok()?;
        Some(left)
    }

    /// Reads a live message back; `None` if it is damaged.
    async fn read(&self, seq: u64) -> Result<Option<(Message, Live)>, ReadError> {
        let place = self.queue.place();
        let read = self.journal.read(move |view| {
            let key = seq.to_be_bytes();
            Ok((view.get(place.payload, &key)?, view.get(place.live, &key)?))
        });
        let (message, live) = read.await?;
        let message = message.and_then(|bytes| record::decode(&bytes).ok());
        Ok(message.zip(live.and_then(|bytes| record::decode(&bytes).ok())))
    }

    /// Waits for the app's token, then lets the messages of the app have their turn again, the most urgent
    /// first.
    async fn await_token(&self, seq: u64, message: &Message, mut live: Live, index: usize) -> Left {
        let app = app_key(&live.app);
        let tokenless = |delay_ms| Left::Tokenless {
            app,
            due_ms: self.clock.mono_ms() + delay_ms,
        };
        if self.tokens.is_fetching(&live.app) {
            // One waits for it, not all: each takes the place of a message that may need none.
            return tokenless(FETCHING_MS);
        }
        let Err(verdict) = self.tokens.get(&live.app).await else {
            return tokenless(AT_ONCE_MS);
        };
        if let Verdict::Dead(_) = verdict {
            return self.unmade(seq, message, live, index, verdict).await;
        }
        let code = |reason: Option<&Reason>| reason.map(|reason| reason.code.clone());
        if code(live.progress.reason.as_ref()) != code(verdict.reason()) {
            live.progress.reason = verdict.reason().cloned();
            let mut batch = Batch::default();
            self.queue.update(&mut batch, seq, &live, live.tag());
            self.durable(batch).await;
        }
        tokenless(NO_TOKEN_MS)
    }

    /// A call that is not made comes to `verdict` all the same.
    async fn unmade(
        &self,
        seq: u64,
        message: &Message,
        mut live: Live,
        index: usize,
        verdict: Verdict,
    ) -> Left {
        live.progress.depart(index);
        let came = Came {
            verdict: &verdict,
            charged: None,
            keyed: false,
            retry_after_s: None,
            card: None,
        };
        self.settle(seq, message, live, came).await
    }

    /// What the next attempt will read must be on disk before it starts.
    pub(super) async fn durable(&self, batch: Batch) {
        if self.journal.commit(batch).await.is_err() {
            tracing::debug!("a result could not be written; the process is about to end");
        }
    }

    fn request(
        &self,
        message: &Message,
        live: &Live,
        index: usize,
        carrier: Option<&str>,
        token: Option<Secret>,
    ) -> Result<Request, Reason> {
        if let Some(request) = self.by_session(message, live, index) {
            return Ok(request);
        }
        let (content, _) = message.part(index);
        let (path, body) = match &message.to {
            To::Robot(name) => self.webhook(message, carrier.unwrap_or(name), index)?,
            To::Chat(chat) => {
                let template = content.for_enterprise_robot().map_err(|e| unfit(&e))?;
                let mut body = json!({"msgKey": template.msg_key, "msgParam": template.msg_param,
                    "openConversationId": chat, "robotCode": self.robot_code(message)});
                if let (Some(code), Some(members)) =
                    (self.cool_app_code(message, chat), body.as_object_mut())
                {
                    members.insert("coolAppCode".to_owned(), json!(code));
                }
                ("/v1.0/robot/groupMessages/send".to_owned(), body)
            }
            To::Card(_) => return Err(unfit(&a_card())),
            // An account's id is not a DingTalk userid; sent there it might reach a stranger.
            To::Accounts(_) => return Err(not_linked()),
            To::Users(_) => {
                let template = content.for_enterprise_robot().map_err(|e| unfit(&e))?;
                let users = live
                    .progress
                    .calls
                    .get(index)
                    .map(crate::delivery::state::Call::waiting);
                let body = json!({"robotCode": self.robot_code(message), "userIds": users,
                    "msgKey": template.msg_key, "msgParam": template.msg_param});
                ("/v1.0/robot/oToMessages/batchSend".to_owned(), body)
            }
        };
        Ok(Request {
            api: live.route.api(),
            session: None,
            path,
            token,
            body: Bytes::from(body.to_string()),
        })
    }

    /// The code of the enterprise robot, as it is now: a message that was refused for the one that it was accepted
    /// with is replayed with another.
    pub(super) fn robot_code(&self, message: &Message) -> String {
        let settings = self.settings.load();
        let app = app(Some(&message.app), &settings);
        app.map_or_else(|_| message.robot_code.clone(), |app| app.robot_code.clone())
    }

    /// The same of the cool app in `chat`.
    fn cool_app_code(&self, message: &Message, chat: &str) -> Option<String> {
        let settings = self.settings.load();
        match app(Some(&message.app), &settings) {
            Ok(app) => cool_app_code(app, chat, &self.chats),
            Err(_) => message.cool_app_code.clone(),
        }
    }

    /// Signed at the moment of sending: the signature is worth an hour, a message may wait longer.
    fn webhook(
        &self,
        message: &Message,
        name: &str,
        index: usize,
    ) -> Result<(String, Value), Reason> {
        let settings = self.settings.load();
        let robot = settings.robots.get(name).ok_or_else(|| {
            Reason::new(
                ROBOT_UNKNOWN,
                "the message's robot is not configured any more",
                "在 config.toml 恢复该 [[robots]]，再用 dingd dead replay 重发。",
                "Restore it in [[robots]], then use dingd dead replay.",
            )
        })?;
        let mut path = format!(
            "/robot/send?access_token={}",
            percent_encode(robot.access_token.expose())
        );
        if let Some(secret) = &robot.secret {
            let now_ms = self.clock.wall_ms();
            let sign = signature::webhook(secret.expose(), now_ms);
            path.push_str(&format!(
                "&timestamp={now_ms}&sign={}",
                percent_encode(&sign)
            ));
        }
        let (content, part) = message.part(index);
        // Nobody is called twice for one message.
        let nobody = At::default();
        let at = if part == 0 { &message.at } else { &nobody };
        let mut body = content.for_webhook(at).map_err(|e| unfit(&e))?;
        body.insert("msgUuid".to_owned(), json!(message.id.msg_uuid(part)));
        Ok((path, Value::Object(body)))
    }

    async fn settle(&self, seq: u64, message: &Message, mut live: Live, came: Came<'_>) -> Left {
        let next = live
            .progress
            .settle(came.verdict, live.ambiguous, came.keyed);
        let mut batch = Batch::default();
        if let Some((id, settled)) = came.charged {
            self.egress.charged(&mut batch, id, settled);
        }
        let held = self.card_answered(message, came.card).await;
        let delay_ms = match next {
            Next::Finished => return self.conclude(seq, message, live, batch, held).await,
            Next::Soon => 0,
            Next::Scheduled { failures } => {
                DINGTALK.delay_after_ms(failures, random::share(), came.retry_after_s)
            }
        };
        live.progress.due_ms = if delay_ms == 0 {
            0
        } else {
            self.clock.wall_ms() + delay_ms
        };
        self.queue.update(&mut batch, seq, &live, live.tag());
        let held = held.map(|mut held| {
            held.put(&mut batch, self.clock.wall_ms());
            held
        });
        self.durable(batch).await;
        drop(held);
        Left::Again {
            due_ms: self.clock.mono_ms() + delay_ms.max(AT_ONCE_MS),
            failed: delay_ms > 0,
            tried: live.progress.attempts > 0,
            leaning: Some(Leaning::of(&live)),
        }
    }

    pub(super) async fn conclude(
        &self,
        seq: u64,
        message: &Message,
        mut live: Live,
        mut batch: Batch,
        held: Option<Box<Held>>,
    ) -> Left {
        live.progress.finished_ms = Some(self.clock.wall_ms());
        live.progress.due_ms = 0;
        if !message.members.is_empty() {
            return self.conclude_digest(seq, message, live, batch).await;
        }
        let held = self.card_ended(&mut batch, message, &live, held).await;
        self.queue.finish(&mut batch, seq, &live);
        let ended = self.outcomes.append(&mut batch, message, &live);
        let mono_ms = self.clock.mono_ms();
        let (queue, outcomes) = (self.queue.clone(), self.outcomes.clone());
        self.journal.submit(batch, move |result| {
            point("settle.after");
            drop(held);
            if result.is_ok() {
                queue.finished(seq, live.tag());
                dead::bury(&queue, seq, &live, mono_ms);
                outcomes.appended(ended);
                live.report_end();
            }
        });
        Left::Finished
    }

    /// A message of which a record cannot be read is put where it can be looked at.
    pub(super) async fn set_aside(&self, seq: u64) -> Left {
        let (place, key) = (self.queue.place(), seq.to_be_bytes());
        let read = self
            .journal
            .read(move |view| Ok((view.get(place.payload, &key)?, view.get(place.live, &key)?)));
        let (payload, live) = match read.await {
            Ok((payload, Some(live))) => (payload, live),
            // It was already.
            Ok((_, None)) => return Left::Parts,
            Err(error) => {
                tracing::error!(%error, "a message cannot be read now; it is tried again");
                return self.again_in(NO_TOKEN_MS);
            }
        };
        let mut batch = Batch::default();
        let state = record::decode::<Live>(&live);
        if let Err(why) = &state {
            batch.quarantine(place.live, &key, &live, why);
        } else {
            batch.delete(place.live, key);
            let payload = payload.unwrap_or_default();
            if let Err(why) = record::decode::<Message>(&payload) {
                batch.quarantine(place.payload, &key, &payload, &why);
            }
        }
        batch.add(place.quarantined, 1);
        let queue = self.queue.clone();
        self.journal.submit(batch, move |result| {
            if let (Ok(()), Ok(live)) = (result, state) {
                queue.finished(seq, live.tag());
            }
        });
        // If it was a digest, what was in it waits again.
        Left::Parts
    }
}

/// Why nobody got a message to accounts, until account linking exists.
pub fn not_linked() -> Reason {
    Reason::new(
        "recipient_not_linked",
        "the platform account is not linked to a DingTalk user",
        "请本人在钉钉 → 工作台 打开一次该应用完成账号关联；或改用 to.users 指定 userid。",
        "Have the person open the app once in DingTalk → Workplace to link the account; or address them by userid with to.users.",
    )
}

/// A refused signature may have been stale when it arrived: signed anew, it gets one more try
/// (outbound.md §7.4).
fn second_chance(verdict: Verdict, last: Option<&str>) -> Verdict {
    match verdict {
        Verdict::Dead(reason) if reason.code == SECURITY && last != Some(SECURITY) => {
            Verdict::Retry(reason)
        }
        verdict => verdict,
    }
}

/// A robot whose security settings refuse this host, and not this message for want of a keyword, is blocked:
/// what is for it waits for the cure (outbound.md §7.4). In a pool another one takes its place.
fn misconfigured(alone: bool, learnt: Verdict, verdict: Verdict) -> (Verdict, Verdict) {
    match verdict {
        Verdict::Dead(reason) if alone && is_about_this_host(&reason) => {
            let blocked = Verdict::Blocked {
                scope: Scope::Robot,
                reason,
            };
            (blocked.clone(), blocked)
        }
        verdict => (learnt, verdict),
    }
}

/// By DingTalk's words, the only thing that tells them apart (outbound.md §3.5).
fn is_about_this_host(refused: &Reason) -> bool {
    let says = |words: &[&str]| words.iter().any(|word| refused.detail.contains(word));
    refused.code == SECURITY
        && !says(&["关键词", "keyword"])
        && says(&["签名", "sign", "timestamp", "白名单", "whitelist"])
}

pub(super) fn unfit(unfit: &Unfit) -> Reason {
    Reason::new(
        "content_refused",
        unfit.to_string(),
        "修正消息内容后重新发送。",
        "Correct the content and send it again.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_signature_gets_one_more_try() {
        let refused = || Verdict::Dead(Reason::new("robot_security", "", "", ""));
        for last in [None, Some("dingtalk_busy")] {
            assert!(matches!(second_chance(refused(), last), Verdict::Retry(_)));
        }
        let again = second_chance(refused(), Some(SECURITY));
        assert!(matches!(again, Verdict::Dead(_)));
    }

    #[test]
    fn only_what_is_not_about_the_message_blocks_the_robot() {
        for (detail, alone, blocks) in [
            (
                "310000 description:机器人发送签名不匹配;solution:…",
                true,
                true,
            ),
            (
                "310000 description:机器人发送签名过期;solution:…",
                true,
                true,
            ),
            (
                "310000 description:发送ip不在白名单内;solution:…",
                true,
                true,
            ),
            // "description" has "ip" in it.
            ("310000 description:消息内容不合法;solution:…", true, false),
            ("310000 sign not match", true, true),
            ("310000 sign not match", false, false),
            (
                "310000 description:关键词不匹配;solution:请联系群管理员",
                true,
                false,
            ),
            ("310000 keywords not in content", true, false),
            ("310000", true, false),
        ] {
            let refused = Verdict::Dead(Reason::new(SECURITY, detail, "", ""));
            let (learnt, verdict) = misconfigured(alone, refused.clone(), refused);
            assert_eq!(
                matches!(verdict, Verdict::Blocked { .. }),
                blocks,
                "{detail}"
            );
            assert_eq!(learnt, verdict);
        }
    }
}
