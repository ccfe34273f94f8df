//! From DingTalk to the platform: receive → verify → accept → apply → forward.
//!
//! [`receive`] the door · [`verify`] believed or refused, all refusals alike · [`accept`] once, on
//! disk, before the answer · [`apply`] what it changes in the directory · [`forward`] signed, in
//! order, until the platform has it.

pub mod accept;
pub mod apply;
pub mod forward;
pub mod receive;
pub mod verify;

use std::collections::HashMap;

use crate::delivery::event::Target;
use crate::dingtalk::envelope::{Freshness, Keys};
use crate::http::transport::Origin;

/// Callbacks are recognised as repeats for this long, in milliseconds.
pub const DEDUP_KEEP_MS: u64 = 7 * 86_400_000;

/// What the inbound side works by; replaced as a whole on reload.
#[derive(Debug)]
pub struct Settings {
    /// Apps by name.
    pub apps: HashMap<String, App>,
    /// How old or early a callback may be.
    pub freshness: Freshness,
    /// A callback not stored within this time is answered 503, in milliseconds.
    pub ack_timeout_ms: u64,
    /// Where events go.
    pub upstreams: Vec<Upstream>,
    /// Events under way; above it callbacks are answered 503.
    pub queue_events_max: u64,
    /// Events are given up after this, in milliseconds.
    pub lifetime_ms: u64,
}

/// An app whose callbacks arrive here.
#[derive(Debug)]
pub struct App {
    /// Its name.
    pub name: String,
    /// The organisation, for the event's source.
    pub corp_id: String,
    /// What its callbacks are checked with; `None`: it has no `[apps.callback]`.
    pub keys: Option<Keys>,
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
}

impl Settings {
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
