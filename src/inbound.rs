//! From DingTalk to the platform: receive → verify → accept → apply → forward → answer.
//!
//! [`receive`] the door, [`stream`] the connection that we open · [`verify`] believed or refused, all refusals
//! alike · [`take`] what is done with what was believed, however it came · [`asked`] clicks and messages, which
//! want an answer · [`accept`] once, on disk, before the answer · [`apply`] what it changes in the directory ·
//! [`forward`] in order, until the platform has it · `deliver` one attempt, signed · [`asking`] who waits for the
//! platform's [`answer`].

pub mod accept;
pub mod answer;
pub mod apply;
pub mod asked;
pub mod asking;
mod deliver;
pub mod forward;
pub mod receive;
pub mod stream;
pub mod take;
pub mod verify;

use std::collections::HashMap;

use crate::delivery::event::Target;
use crate::dingtalk::card::Variables;
use crate::dingtalk::envelope::{Freshness, Keys};
use crate::http::transport::Origin;
use crate::secret::Secret;

/// Callbacks are recognised as repeats for this long, in milliseconds.
pub const DEDUP_KEEP_MS: u64 = 7 * 86_400_000;

/// What the inbound side works by; replaced as a whole on reload.
#[derive(Debug)]
pub struct Settings {
    /// Apps by name.
    pub apps: HashMap<String, App>,
    /// How old or early a callback may be.
    pub freshness: Freshness,
    /// As that, on both sides, for clicks and messages, of which only the time is signed; in milliseconds.
    pub fresh_header_ms: u64,
    /// A callback not stored within this time is answered 503, in milliseconds.
    pub ack_timeout_ms: u64,
    /// Who clicked or spoke waits this long for the platform's answer, in milliseconds.
    pub answer_deadline_ms: u64,
    /// The same person doing the same on the same card within this time has clicked once, in milliseconds.
    pub click_window_ms: u64,
    /// Where the addresses for replies may lead that a message to the robot carries.
    pub session_origins: Vec<Origin>,
    /// Where events go.
    pub upstreams: Vec<Upstream>,
    /// Events under way; above it callbacks are answered 503.
    pub queue_events_max: u64,
    /// Events are given up after this, in milliseconds.
    pub lifetime_ms: u64,
}

/// An app whose callbacks arrive here.
#[derive(Debug, Default)]
pub struct App {
    /// Its name.
    pub name: String,
    /// The organisation, for the event's source.
    pub corp_id: String,
    /// What its callbacks are checked with; `None`: it has no `[apps.callback]`.
    pub keys: Option<Keys>,
    /// Client ID.
    pub client_id: String,
    /// Client Secret: signs messages to its robot.
    pub client_secret: Secret,
    /// The robot's code.
    pub robot_code: String,
    /// Whether messages to its robot are taken over HTTP.
    pub robot_by_http: bool,
    /// Signs clicks on its cards; `None`: none are taken over HTTP.
    pub card_secret: Option<Secret>,
    /// For the private data of somebody whose click is not answered yet.
    pub pending: Variables,
}

/// A platform that gets events.
#[derive(Debug)]
pub struct Upstream {
    /// Its name.
    pub name: String,
    /// Where.
    pub origin: Origin,
    /// Path with query.
    pub path: String,
    /// Signing keys; the first is the current one.
    pub secrets: Vec<zeroize::Zeroizing<Vec<u8>>>,
    /// Only these apps; empty = all.
    pub apps: Vec<String>,
    /// Only these types, by prefix; empty = all.
    pub events: Vec<String>,
    /// Of one attempt, in milliseconds.
    pub timeout_ms: u64,
    /// Attempts at a time.
    pub concurrency: u32,
    /// Whether its answers to clicks and messages count.
    pub answers: bool,
}

impl Settings {
    /// Whether an upstream's answers count.
    pub fn answers(&self, upstream: &str) -> bool {
        self.upstreams
            .iter()
            .any(|up| up.answers && up.name == upstream)
    }

    /// Who is to get an event.
    pub fn targets(&self, app: &str, kind: &str) -> Vec<Target> {
        self.upstreams
            .iter()
            .filter(|up| up.apps.is_empty() || up.apps.iter().any(|known| known == app))
            .filter(|up| {
                up.events.is_empty()
                    || up
                        .events
                        .iter()
                        .any(|prefix| kind.starts_with(prefix.as_str()))
            })
            .map(|up| Target::waiting(&up.name))
            .collect()
    }
}
