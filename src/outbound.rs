//! From the platform to DingTalk: receive → accept → lane → send → settle.
//!
//! [`receive`] the API door · [`request`] what a client asks, checked · [`accept`] once, on disk,
//! before the 202 · [`cards`] what each card is to show, [`reply`] what the robot answers · [`backlog`] what waits, [`fresh`] what need not be read back · [`lane`] whose turn it
//! is, under every limit · [`pool`] which robot carries it · [`fold`] a storm becomes a digest · [`send`]
//! one attempt · [`settle`] what became of it · [`dead`] what was given up, and another chance · [`show`]
//! how a message looks from outside, `standing` how the limits of its target stand.

pub mod accept;
pub mod backlog;
pub mod cards;
pub mod dead;
pub mod fold;
pub mod fresh;
pub mod lane;
pub mod pool;
pub mod receive;
pub mod reply;
pub mod request;
pub mod send;
pub mod settle;
pub mod show;
mod standing;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::delivery::id::MessageId;
use crate::delivery::state::{Ambiguous, Call, CallOutcome, Priority, Progress, Tag};
use crate::dingtalk::digest::{Fold, Language};
use crate::dingtalk::message::{At, Content};
use crate::egress::App;
use crate::secret::Secret;

/// What the outbound side works by; replaced as a whole on reload.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Who may call the API.
    pub clients: Vec<Client>,
    /// Apps by name, in the order of the configuration.
    pub apps: Vec<App>,
    /// Custom robots by name.
    pub robots: HashMap<String, Robot>,
    /// Pools by name, which no robot has: the names of their robots, in the order of the configuration.
    pub pools: HashMap<String, Vec<String>>,
    /// Refuse chats that no event told us about.
    pub known_chats_only: bool,
    /// Messages under way.
    pub queue_messages_max: u64,
    /// Bytes under way.
    pub queue_bytes_max: u64,
    /// Attempts at a time.
    pub concurrency: usize,
    /// When a storm becomes a digest; `None` = never.
    pub digest: Option<Digests>,
    /// What DingTalk sees of the callbacks' door.
    pub public_url: Option<String>,
    /// How many robot sends a minute the limits allow, for estimates only.
    pub robot_per_minute: f64,
}

/// How storms are folded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digests {
    /// A lane whose head has waited this long is folded, in milliseconds.
    pub after_ms: u64,
    /// The words around the messages.
    pub language: Language,
}

/// A caller of the API.
#[derive(Debug, Clone)]
pub struct Client {
    /// Its name, for metrics and records.
    pub name: String,
    /// Its bearer token.
    pub token: Secret,
    /// The most urgent priority it may use.
    pub max_priority: Priority,
    /// Requests per second; `None` = as many as the queue takes.
    pub rate: Option<Arc<Rate>>,
}

/// How fast a client may call.
pub type Rate = governor::DefaultDirectRateLimiter;

/// A custom robot in one group.
#[derive(Debug, Clone)]
pub struct Robot {
    /// Its name.
    pub name: String,
    /// The token of its webhook URL.
    pub access_token: Secret,
    /// `SEC…`, if its security setting is a signature.
    pub secret: Option<Secret>,
}

/// For whom a message is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum To {
    /// A group (openConversationId).
    Chat(String),
    /// People (userids).
    Users(Vec<String>),
    /// People (the platform's account ids).
    Accounts(Vec<String>),
    /// The group of a custom robot or of a pool of them.
    Robot(String),
    /// Whoever sees a card (outTrackId).
    Card(String),
}

impl To {
    /// The call of the enterprise robot that reaches it.
    fn robots_route(&self) -> Route {
        match self {
            Self::Chat(_) => Route::Group,
            _ => Route::People,
        }
    }

    /// The chat, robot or card; empty for people.
    pub fn target(&self) -> &str {
        match self {
            Self::Chat(target) | Self::Robot(target) | Self::Card(target) => target,
            Self::Users(_) | Self::Accounts(_) => "",
        }
    }
}

/// For whom a message must be to be listed; what is not named lets everything through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Whom {
    /// A group (openConversationId).
    pub chat: Option<String>,
    /// One of the people (userid).
    pub user: Option<String>,
    /// A custom robot.
    pub robot: Option<String>,
}

impl Whom {
    /// Whether it lets through what is for `to`.
    pub fn takes(&self, to: &To) -> bool {
        let wanted =
            |name: &Option<String>, is_it: &dyn Fn(&str) -> bool| name.as_deref().is_none_or(is_it);
        wanted(&self.chat, &|id| matches!(to, To::Chat(chat) if chat == id))
            && wanted(
                &self.user,
                &|id| matches!(to, To::Users(users) if users.iter().any(|user| user == id)),
            )
            && wanted(
                &self.robot,
                &|name| matches!(to, To::Robot(robot) if robot == name),
            )
    }
}

/// What was accepted; never changed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Message {
    /// Its id.
    pub id: MessageId,
    /// The app; empty for a custom robot.
    pub app: String,
    /// For whom.
    pub to: To,
    /// What it says.
    pub content: Content,
    /// Whom to mention.
    #[serde(default, skip_serializing_if = "At::is_empty")]
    pub at: At,
    /// Of the enterprise robot, as configured when it was accepted; what is configured when it is sent counts.
    pub robot_code: String,
    /// Of the cool app in that group, as it was then.
    pub cool_app_code: Option<String>,
    /// What it is about: the newest of a key stands for all in a digest.
    pub merge_key: Option<String>,
    /// Whether it says that what it is about is over.
    #[serde(default, skip_serializing_if = "is_default")]
    pub resolved: bool,
    /// The texts in which it is sent, if its own is too large for one call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<String>,
    /// Of a digest: the messages that are in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MessageId>,
    /// The address of whoever it replies to, sealed, if that has a session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Who sent it.
    pub client: String,
}

/// Where it is; replaced by each attempt.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Live {
    /// Its id.
    pub id: MessageId,
    /// The app; empty for a custom robot.
    pub app: String,
    /// The chat, robot, pool or card it is for; empty for people.
    pub target: String,
    /// What its lane is called.
    pub lane: u64,
    /// How urgent it is.
    pub priority: Priority,
    /// Wall time in milliseconds.
    pub accepted_ms: u64,
    /// Wall time in milliseconds.
    pub expires_ms: u64,
    /// Size on disk.
    pub bytes: u64,
    /// What to do when nobody can know.
    pub ambiguous: Ambiguous,
    /// Which limits cover it.
    pub route: Route,
    /// How far it got.
    pub progress: Progress,
    /// Whether and with which others it can be folded into a digest.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fold: Fold,
    /// The digest that it is in: under way, or sent when the state is `merged`. Of an update of a card that is
    /// `merged`: the message that took its changes along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<MessageId>,
    /// The call under way is one that DingTalk would do a second time, though others of its route are not.
    #[serde(default, skip_serializing_if = "is_default")]
    pub unkeyed: bool,
    /// Of a reply: its session does not take it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub session_over: bool,
}

/// Which call carries a message, and so which limits cover it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// The enterprise robot to a group.
    Group,
    /// The enterprise robot to people.
    People,
    /// A custom robot's webhook.
    Webhook,
    /// A card to a group or to people.
    Card,
    /// A change of a card.
    CardUpdate,
    /// A card by the legacy API.
    LegacyCard,
    /// A change of such a card.
    LegacyCardUpdate,
}

impl Message {
    /// Calls for one target: one, or one for each part.
    pub fn calls_per_target(&self) -> usize {
        self.parts.len().max(1)
    }

    /// What call `index` says, and which part of the whole that is.
    pub fn part(&self, index: usize) -> (Cow<'_, Content>, usize) {
        let part = index % self.calls_per_target();
        match self.parts.get(part) {
            Some(text) => (Cow::Owned(self.content.with_text(text)), part),
            None => (Cow::Borrowed(&self.content), part),
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Live {
    /// What its queue counts it by.
    pub fn tag(&self) -> Tag {
        Tag {
            lane: self.lane,
            priority: self.priority,
            bytes: self.bytes,
            accepted_ms: self.accepted_ms,
            state: self.progress.state,
        }
    }

    /// Whether DingTalk recognises a repeat (outbound.md §8).
    pub fn is_keyed(&self) -> bool {
        match self.route {
            Route::Group | Route::People => false,
            Route::Webhook | Route::CardUpdate => true,
            Route::Card | Route::LegacyCard | Route::LegacyCardUpdate => !self.unkeyed,
        }
    }

    /// The call to make next. The one that makes a card comes before those that only deliver it, and nothing
    /// else is tried as long as nobody knows what came of it.
    pub fn next_call(&self) -> Option<usize> {
        if self.route == Route::Card {
            let pending = |call: &Call| call.outcome == CallOutcome::Pending;
            self.progress.calls.iter().position(pending)
        } else {
            self.progress.next_call()
        }
    }
}
