//! What an attempt takes along of a card, and what comes of it.

use bytes::Bytes;
use serde_json::{Map, Value};

use super::card::Turn;
use super::{Card, Held, Lock};
use crate::delivery::id::MessageId;
use crate::delivery::state::State;
use crate::delivery::verdict::{Reason, Verdict};
use crate::dingtalk::answer::{self, Answer, Api, CARD_NOT_DELIVERED};
use crate::dingtalk::instance::{Change, Generation, Order, Spaces};
use crate::dingtalk::message::{Content, a_card};
use crate::egress::call::Request;
use crate::http::transport::Reply;
use crate::journal::{Batch, ReadError};
use crate::outbound::send::{Left, Sender, Unready, not_linked, unfit};
use crate::outbound::{Live, Message, To};
use crate::secret::Secret;

/// Of a card that was there already.
const EXISTS: &str = "card_exists";
/// Of a card that is not there.
pub(super) const UNKNOWN: &str = "card_unknown";

/// A call that is about to be made, with its card in hand until that is on disk.
#[derive(Debug)]
pub struct Boarded {
    /// The card.
    pub held: Box<Held>,
    /// An earlier call may have made it.
    pub doubtful: bool,
}

/// What an answer says of a card.
#[derive(Debug, Clone, Copy)]
pub struct Said {
    /// There is no doubt whether the call was done.
    known: bool,
    /// The card exists.
    exists: bool,
}

impl Said {
    /// `None` if the call is about no card.
    pub fn of(api: Api, verdict: &Verdict, reply: Option<&Reply>) -> Option<Self> {
        let makes = match api {
            Api::CardCreate | Api::LegacyCardCreate => true,
            Api::CardDeliver | Api::CardUpdate | Api::LegacyCardUpdate => false,
            _ => return None,
        };
        let vague = verdict
            .reason()
            .is_some_and(|reason| reason.code == CARD_NOT_DELIVERED);
        let made = reply.is_some_and(|reply| {
            answer::card_was_made(&Answer {
                status: reply.status,
                body: &reply.body,
                body_complete: reply.body_complete,
                retry_after_s: None,
            })
        });
        let sent = matches!(verdict, Verdict::Sent { .. } | Verdict::SentInPart { .. });
        Some(Self {
            known: !matches!(verdict, Verdict::Unknown(_)) && !vague,
            exists: makes && (sent || api == Api::CardCreate && made),
        })
    }
}

/// That there is such a card is the success of a repeat whose first call may have made it, and of no other.
pub(in crate::outbound) fn resolved(verdict: Verdict, doubtful: bool) -> Verdict {
    match verdict {
        Verdict::Dead(reason) if doubtful && reason.code == EXISTS => {
            Verdict::Sent { handle: None }
        }
        verdict => verdict,
    }
}

/// Why a card that is not there is not changed.
pub(super) fn not_sent() -> Reason {
    Reason::new(
        "card_not_sent",
        "the card to be changed was not sent: its own message ended without that",
        "先查看创建该卡片的消息为何失败（dingd cards show），用 dingd dead replay 重发它，再更新卡片。",
        "See why the message that makes the card ended (dingd cards show), replay that one with dingd dead replay, then change the card.",
    )
}

/// Why an update has nothing to do.
fn nothing_to_send() -> Reason {
    Reason::new(
        "card_change_dropped",
        "what this update carried was refused or withdrawn before",
        "请用 PATCH /v1/cards/{out_track_id} 重新提交修改。",
        "Ask for the change once more with PATCH /v1/cards/{out_track_id}.",
    )
}

impl Sender {
    /// The next call of a message that makes or changes a card, with what it takes along.
    pub(in crate::outbound) async fn board(
        &self,
        message: &Message,
        live: &Live,
        index: usize,
        token: Option<Secret>,
    ) -> Result<(Request, Boarded), Unready> {
        match &message.content {
            Content::Card(order) => self.board_order(message, order, live, index, token).await,
            Content::CardUpdate(change) => self.board_change(message, change, token).await,
            _ => Err(Unready::Dead(unfit(&a_card()))),
        }
    }

    async fn board_order(
        &self,
        message: &Message,
        order: &Order,
        live: &Live,
        index: usize,
        token: Option<Secret>,
    ) -> Result<(Request, Boarded), Unready> {
        let users = live.progress.calls.get(index).map(|call| call.waiting());
        let users = users.unwrap_or_default();
        let spaces = match &message.to {
            To::Chat(chat) => Spaces::Chat(chat),
            To::Users(_) => Spaces::People(&users),
            // An account's id is not a DingTalk userid; sent there it might reach a stranger.
            To::Accounts(_) => return Err(Unready::Dead(not_linked())),
            To::Robot(_) | To::Card(_) => return Err(Unready::Dead(unfit(&a_card()))),
        };
        let lock = self.cards.hold(&message.app, &order.out_track_id).await;
        let lock = lock.map_err(|error| unreadable(&error))?;
        // A record that was damaged and set aside is made anew.
        let mut held = lock.or(|| Card::new(message, live, order));
        let making = held.card.make(message.id);
        let robot = self.robot_code(message);
        let (face, robot, at) = (&held.card.base, robot.as_str(), &message.at);
        let (api, path, body) = match order.generation {
            Generation::Current if making.deliver => (
                Api::CardDeliver,
                "/v1.0/card/instances/deliver",
                order.to_deliver(spaces, robot, at),
            ),
            Generation::Current => (
                Api::CardCreate,
                "/v1.0/card/instances/createAndDeliver",
                order.to_create(face, spaces, robot, at),
            ),
            Generation::Legacy => (
                Api::LegacyCardCreate,
                "/v1.0/im/interactiveCards/send",
                order.to_send_legacy(face, spaces, robot, at),
            ),
        };
        let doubtful = making.doubtful;
        Ok((request(api, path, token, body), Boarded { held, doubtful }))
    }

    async fn board_change(
        &self,
        message: &Message,
        change: &Change,
        token: Option<Secret>,
    ) -> Result<(Request, Boarded), Unready> {
        let lock = self.cards.hold(&message.app, &change.out_track_id).await;
        let Lock::Known(mut held) = lock.map_err(|error| unreadable(&error))? else {
            return Err(Unready::Dead(nothing_to_send()));
        };
        let patch = match held.card.update(message.id, &held.alive) {
            Turn::Carry(patch) => patch,
            Turn::Behind(ahead) => return Err(Unready::Behind(ahead)),
            Turn::Merged(into) => return Err(Unready::Merged(into)),
            Turn::Nothing => return Err(Unready::Dead(nothing_to_send())),
            Turn::NotSent => return Err(Unready::Dead(not_sent())),
        };
        let (api, path) = match change.generation {
            Generation::Current => (Api::CardUpdate, "/v1.0/card/instances"),
            Generation::Legacy => (Api::LegacyCardUpdate, "/v1.0/im/interactiveCards"),
        };
        let doubtful = false;
        Ok((
            request(api, path, token, change.to_update(&patch)),
            Boarded { held, doubtful },
        ))
    }

    /// Notes what an answer says of a card; the result is to be written with that of the call.
    pub(in crate::outbound) async fn card_answered(
        &self,
        message: &Message,
        said: Option<Said>,
    ) -> Option<Box<Held>> {
        let said = said?;
        let mut held = self.card_in_hand(message).await?;
        held.card.answered(message.id, said.known, said.exists);
        Some(held)
    }

    /// Adds to `batch` what the end of a message means for its card. The card must stay in hand until that is
    /// durable.
    pub(in crate::outbound) async fn card_ended(
        &self,
        batch: &mut Batch,
        message: &Message,
        live: &Live,
        held: Option<Box<Held>>,
    ) -> Option<Box<Held>> {
        let mut held = match held {
            Some(held) => held,
            None => self.card_in_hand(message).await?,
        };
        let wall_ms = self.clock.wall_ms();
        held.ended(message.id, &live.progress, wall_ms);
        held.put(batch, wall_ms);
        Some(held)
    }

    /// The card of a message; `None` if it has none, or if it cannot be read: the next message finds that
    /// this one is under way no more.
    async fn card_in_hand(&self, message: &Message) -> Option<Box<Held>> {
        let out_track_id = message.content.out_track_id()?;
        match self.cards.hold(&message.app, out_track_id).await {
            Ok(Lock::Known(held)) => Some(held),
            Ok(Lock::New(_)) => None,
            Err(error) => {
                tracing::error!(%error, "what became of a card cannot be noted now");
                None
            }
        }
    }

    /// Ends an update whose changes message `into` has taken along.
    pub(in crate::outbound) async fn merge_update(
        &self,
        seq: u64,
        message: &Message,
        mut live: Live,
        into: MessageId,
    ) -> Left {
        live.progress.end(State::Merged, None, self.clock.wall_ms());
        live.progress.reason = None;
        live.digest = Some(into);
        self.conclude(seq, message, live, Batch::default(), None)
            .await
    }
}

fn request(
    api: Api,
    path: &'static str,
    token: Option<Secret>,
    body: Map<String, Value>,
) -> Request {
    Request {
        api,
        session: None,
        path: path.to_owned(),
        token,
        body: Bytes::from(Value::Object(body).to_string()),
    }
}

fn unreadable(error: &ReadError) -> Unready {
    tracing::error!(%error, "a card cannot be read now; its message is tried again");
    Unready::Unreadable
}
