//! The body that the platform gets: a CloudEvent whose bytes are fixed when the event is stored.

use serde::Serialize;
use serde_json::value::RawValue;

use super::state::{Priority, State, Tag};

/// One event for the platform (design §4).
#[derive(Debug)]
pub struct Event<'a> {
    /// Stable id, the same however often the event comes.
    pub id: &'a str,
    /// `/dingtalk/<corp>/<app>`.
    pub source: &'a str,
    /// Such as `dingtalk.chat.renamed`.
    pub kind: &'a str,
    /// Wall time in milliseconds.
    pub at_ms: u64,
    /// What it is about: a chat, a card, a message; may be absent.
    pub subject: Option<&'a str>,
    /// The event's own members, as JSON.
    pub data: &'a RawValue,
}

/// The bytes of a CloudEvents 1.0 structured-mode body.
pub fn body(event: &Event<'_>) -> Box<RawValue> {
    #[derive(Serialize)]
    struct Body<'a> {
        specversion: &'static str,
        id: &'a str,
        source: &'a str,
        #[serde(rename = "type")]
        kind: &'a str,
        time: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        subject: Option<&'a str>,
        data: &'a RawValue,
    }
    serde_json::value::to_raw_value(&Body {
        specversion: "1.0",
        id: event.id,
        source: event.source,
        kind: event.kind,
        time: crate::clock::rfc3339(event.at_ms),
        subject: event.subject,
        data: event.data,
    })
    .expect("strings and JSON text always serialise")
}

/// What the inbox keeps of one event.
#[derive(Debug, Serialize, serde::Deserialize)]
pub struct Stored {
    /// Stable id.
    pub id: String,
    /// The app it came to; empty for a custom robot's outcome.
    pub app: String,
    /// The event's type.
    pub kind: String,
    /// The conversation whose order is kept, if it has one.
    pub subject: Option<String>,
    /// Wall time of acceptance in milliseconds.
    pub accepted_ms: u64,
    /// The request body for the platform, byte for byte.
    pub body: Box<RawValue>,
    /// What somebody waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask: Option<Ask>,
}

/// An event that somebody wants an answer to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Somebody clicked on a card, which is to change.
    Click {
        /// `outTrackId`.
        card: String,
        /// Who clicked.
        user: String,
    },
    /// Somebody spoke to the robot, which is to reply.
    Message {
        /// Where a reply goes, sealed.
        reply_to: String,
    },
}

/// The changing part of an event in the inbox.
#[derive(Debug, Clone, Serialize, serde::Deserialize)]
pub struct Forwarding {
    /// The app it came to.
    pub app: String,
    /// The event's type, to choose upstreams by.
    pub kind: String,
    /// Digest of the conversation; 0 = it has none, and no order to keep.
    pub lane: u64,
    /// Wall time of acceptance in milliseconds.
    pub accepted_ms: u64,
    /// Size on disk.
    pub bytes: u64,
    /// Where it goes; `None` until the forwarder has looked at the configuration.
    pub targets: Option<Vec<Target>>,
    /// Wall time of the end in milliseconds.
    pub finished_ms: Option<u64>,
    /// How often it was replayed.
    #[serde(default)]
    pub generation: u32,
    /// Somebody asks, and nobody who is to answer has taken it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub asks: bool,
}

/// One upstream of one event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Target {
    /// The upstream's name.
    pub upstream: String,
    /// How it stands.
    pub state: TargetState,
    /// Attempts so far.
    pub attempts: u32,
    /// Wall time of the next attempt in milliseconds; 0 = at once.
    pub due_ms: u64,
    /// Why the last attempt failed.
    pub reason: Option<super::verdict::Reason>,
}

/// How one upstream of one event stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetState {
    /// To be delivered.
    Waiting,
    /// Delivered.
    Forwarded,
    /// Given up.
    Dead,
}

impl Ask {
    /// The name in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Click { .. } => "click",
            Self::Message { .. } => "message",
        }
    }
}

impl Forwarding {
    /// Whether every upstream has it or was given up.
    pub fn is_settled(&self) -> bool {
        let waiting = |target: &Target| target.state == TargetState::Waiting;
        self.targets
            .as_ref()
            .is_some_and(|targets| !targets.iter().any(waiting))
    }

    /// The state as people see it.
    pub fn label(&self) -> &'static str {
        let any = |state| {
            self.targets
                .iter()
                .flatten()
                .any(|target| target.state == state)
        };
        if any(TargetState::Dead) {
            "dead"
        } else if self.finished_ms.is_some() {
            "forwarded"
        } else {
            "waiting"
        }
    }

    /// What its queue counts it by.
    pub fn tag(&self) -> Tag {
        Tag {
            lane: self.lane,
            priority: Priority::Normal,
            bytes: self.bytes,
            accepted_ms: self.accepted_ms,
            state: if self.targets.iter().flatten().any(Target::is_repeated) {
                State::Retrying
            } else {
                State::Queued
            },
        }
    }
}

impl Target {
    /// An upstream that is still to get it.
    pub fn waiting(upstream: &str) -> Self {
        Self {
            upstream: upstream.to_owned(),
            state: TargetState::Waiting,
            attempts: 0,
            due_ms: 0,
            reason: None,
        }
    }

    fn is_repeated(&self) -> bool {
        self.state == TargetState::Waiting && self.attempts > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_raw_text_is_embedded_unchanged() {
        let raw = RawValue::from_string(r#"{ "b" : 1.0,"a":"\u4e2d" }"#.to_owned()).unwrap();
        let event = Event {
            id: "evt_1",
            source: "/dingtalk/corp/app",
            kind: "dingtalk.event.x",
            at_ms: 0,
            subject: None,
            data: &raw,
        };
        assert_eq!(
            body(&event).get(),
            r#"{"specversion":"1.0","id":"evt_1","source":"/dingtalk/corp/app","type":"dingtalk.event.x","time":"1970-01-01T00:00:00.000Z","data":{ "b" : 1.0,"a":"\u4e2d" }}"#
        );
    }
}
