//! What the box remembers of what happened to it.

use serde_json::Value;

/// The way by which a message came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Via {
    /// A custom group robot, `/robot/send`.
    Webhook,
    /// The enterprise robot in a group.
    Group,
    /// The enterprise robot to one person.
    Oto,
    /// A card in one of its spaces.
    Card,
    /// A reply to the address that came with a robot message.
    Session,
    /// A reply in the answer to a robot message.
    Answer,
}

/// The two ways in which DingTalk tells the app about clicks and robot messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    /// A request to a URL of the app.
    Http,
    /// A frame on one of its Stream connections.
    Stream,
}

/// A message that reached a chat or a person.
#[derive(Debug, Clone)]
pub struct Delivered {
    /// Milliseconds since the box started.
    pub at_ms: u64,
    /// The way it took.
    pub via: Via,
    /// The robot's access token, the openConversationId, or the userid.
    pub target: String,
    /// The msgtype or msgKey; for a card its outTrackId.
    pub kind: String,
    /// What a person reads: the title, if any, and the text.
    pub text: String,
    /// The webhook's body, the parsed msgParam, or the card's public data at that moment.
    pub body: Value,
    /// The idempotency key of a webhook message.
    pub msg_uuid: Option<String>,
    /// The processQueryKey or carrierId that the sender got.
    pub handle: Option<String>,
}

/// A request as it was seen and answered.
#[derive(Debug, Clone)]
pub struct Request {
    /// Milliseconds since the box started.
    pub at_ms: u64,
    /// HTTP method.
    pub method: String,
    /// Path and query; the values of secret parameters are replaced by `***`.
    pub path: String,
    /// HTTP status answered; 0 when the connection was closed instead.
    pub status: u16,
    /// The body as text; the client secret is replaced by `***`.
    pub body: String,
    /// The `code` or `errcode` answered, if any.
    pub code: Option<String>,
}

/// A limit that was passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Penalty {
    /// `robot_20_per_minute`, `chat_20_per_minute`, `qps` or `egress`.
    pub kind: &'static str,
    /// The robot's access token, the openConversationId, the API, or `ip`.
    pub key: String,
    /// Milliseconds since the box started.
    pub at_ms: u64,
}
