//! Frames of a Stream connection, and what is said back (inbound.md §5.2–§5.4).
//!
//! Every frame is one JSON object in a WebSocket text. What is asked of DingTalk is asked strictly; what its
//! pages disagree about (numbers or strings, `header` or `headers`, casing) is read either way.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::value::RawValue;

use super::members::{Members, string};

/// A longer frame is refused: no client of DingTalk's own reads longer ones (inbound.md §5.2).
pub const BYTES_MAX: usize = 256 << 10;

/// The topic of messages to the robot.
pub const ROBOT: &str = "/v1.0/im/bot/messages/get";
/// The topic of clicks on cards.
pub const CARDS: &str = "/v1.0/card/instances/callback";

const ID_BYTES_MAX: usize = 512;
const TOPIC_BYTES_MAX: usize = 256;
const REASON_BYTES_MAX: usize = 256;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// `messageId`: the answer quotes it.
    pub message_id: String,
    /// What it is.
    pub kind: Kind,
}

/// What a frame is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The gateway asks whether we are alive; it wants the data back.
    Ping {
        /// Not ours to understand.
        data: String,
    },
    /// Nothing more comes on this connection.
    Disconnect {
        /// DingTalk's words.
        reason: String,
    },
    /// Another message of the gateway; those that are known need nothing.
    System,
    /// An event, as it would come to the events callback.
    Event {
        /// What the headers say of it.
        head: EventHead,
        /// The event's members as JSON text.
        data: String,
    },
    /// Something that is to be answered: see [`ROBOT`] and [`CARDS`].
    Callback {
        /// What is called back.
        topic: String,
        /// JSON text.
        data: String,
    },
    /// A kind of which the pages know nothing.
    Unknown,
}

/// What stands in the headers of an event, and not in it as in the events callback (inbound.md §2.1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventHead {
    /// DingTalk's id, the same when the event comes again.
    pub id: Option<String>,
    /// Such as `chat_update_title`.
    pub kind: String,
    /// The organisation.
    pub corp: Option<String>,
    /// When it happened, in milliseconds.
    pub born_ms: Option<u64>,
}

/// A frame that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct Unreadable {
    /// Whom to tell, if that much could be read.
    pub message_id: Option<String>,
    /// What is wrong.
    pub problem: &'static str,
}

impl Frame {
    /// Reads a frame.
    pub fn read(text: &str) -> Result<Self, Unreadable> {
        let nobody = |problem| Unreadable {
            message_id: None,
            problem,
        };
        let members = Members::read(text).map_err(nobody)?;
        let headers = ["headers", "header"]
            .iter()
            .find_map(|name| members.all(name).next())
            .ok_or(nobody("no headers"))?;
        let headers: Members<'_> = serde_json::from_str(headers.get())
            .map_err(|_| nobody("headers that are not an object, or one comes twice"))?;
        let message_id = headers
            .text("messageId")
            .filter(|id| !id.is_empty() && id.len() <= ID_BYTES_MAX);
        let refused = |problem| Unreadable {
            message_id: message_id.clone(),
            problem,
        };
        if text.len() > BYTES_MAX {
            return Err(refused("longer than 256 KiB"));
        }
        let kind = kind(&members, &headers).map_err(refused)?;
        let must_answer = match kind {
            Kind::Ping { .. } | Kind::Event { .. } | Kind::Callback { .. } => true,
            Kind::Disconnect { .. } | Kind::System | Kind::Unknown => false,
        };
        match message_id {
            None if must_answer => Err(nobody("no messageId")),
            message_id => Ok(Self {
                message_id: message_id.unwrap_or_default(),
                kind,
            }),
        }
    }
}

fn kind(members: &Members<'_>, headers: &Members<'_>) -> Result<Kind, &'static str> {
    let kind = members.text("type").ok_or("no type")?;
    let topic = headers.text("topic");
    match kind.as_str() {
        "SYSTEM" => Ok(system(topic.as_deref(), members)),
        "EVENT" => Ok(Kind::Event {
            head: event_head(headers)?,
            data: data(members)?,
        }),
        "CALLBACK" => Ok(Kind::Callback {
            topic: topic
                .filter(|topic| (1..=TOPIC_BYTES_MAX).contains(&topic.len()))
                .ok_or("no topic, or one that is too long")?,
            data: data(members)?,
        }),
        _ => Ok(Kind::Unknown),
    }
}

fn system(topic: Option<&str>, members: &Members<'_>) -> Kind {
    let data = members.text("data").unwrap_or_default();
    match topic {
        Some("ping") => Kind::Ping { data },
        Some("disconnect") => Kind::Disconnect {
            reason: Members::read(&data)
                .ok()
                .and_then(|data| data.text("reason"))
                .filter(|reason| reason.len() <= REASON_BYTES_MAX)
                .unwrap_or_default(),
        },
        _ => Kind::System,
    }
}

fn event_head(headers: &Members<'_>) -> Result<EventHead, &'static str> {
    let some = |name| headers.text(name).filter(|text| !text.is_empty());
    Ok(EventHead {
        id: some("eventId").filter(|id| id.len() <= ID_BYTES_MAX),
        kind: some("eventType").ok_or("no event type")?,
        corp: some("eventCorpId"),
        born_ms: headers.millis("eventBornTime"),
    })
}

fn data(members: &Members<'_>) -> Result<String, &'static str> {
    let data = members.all("data").next().ok_or("no data")?;
    string(data).ok_or("data that is not a string")
}

/// What is said back to a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// To a ping: its data.
    Pong(String),
    /// The event is stored.
    Stored,
    /// The event cannot be stored now and is to come again. The code is 200: of the clients that DingTalk
    /// publishes two say so and one says 500 (inbound.md §5.4).
    Later,
    /// To a callback: JSON text, or nothing.
    Response(Option<String>),
    /// Nobody here takes this topic.
    NotFound,
    /// It cannot be read; again it would be no better.
    BadFrame(&'static str),
}

impl Reply {
    /// The frame to send, to the message `message_id`.
    pub fn render(&self, message_id: &str) -> String {
        #[derive(Serialize)]
        struct Ack<'a> {
            code: u16,
            headers: Headers<'a>,
            message: &'a str,
            data: &'a str,
        }
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Headers<'a> {
            content_type: &'static str,
            message_id: &'a str,
        }
        let (code, message) = match self {
            Self::NotFound => (404, "not found"),
            Self::BadFrame(problem) => (400, *problem),
            _ => (200, "OK"),
        };
        let ack = Ack {
            code,
            headers: Headers {
                content_type: "application/json",
                message_id,
            },
            message,
            data: &self.data(),
        };
        serde_json::to_string(&ack).expect("strings and numbers always serialise")
    }

    fn data(&self) -> Cow<'_, str> {
        match self {
            Self::Pong(data) => Cow::Borrowed(data),
            Self::Stored => Cow::Borrowed(r#"{"status":"SUCCESS","message":"ok"}"#),
            Self::Later => Cow::Borrowed(r#"{"status":"LATER","message":"retry later"}"#),
            Self::Response(Some(body)) if is_json(body) => {
                Cow::Owned(format!(r#"{{"response":{body}}}"#))
            }
            Self::Response(_) => Cow::Borrowed(r#"{"response":null}"#),
            Self::NotFound | Self::BadFrame(_) => Cow::Borrowed("{}"),
        }
    }
}

/// So that nothing that is not JSON can break out of the answer.
fn is_json(body: &str) -> bool {
    serde_json::from_str::<&RawValue>(body).is_ok()
}

#[cfg(test)]
mod tests;
