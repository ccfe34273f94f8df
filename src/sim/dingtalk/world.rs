//! The state of the box, behind one lock, and what every handler needs of it.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Map, Value};

use super::ask::Ask;
use super::cards::Cards;
use super::chat::Sessions;
use super::gateway::Switchboard;
use super::limits::Limits;
use super::records::{Delivered, Penalty, Request};
use super::settings::{Group, Settings};
use super::switches::Switches;
use super::tokens::Tokens;
use crate::sim::clock;

/// Everything that changes while the box runs.
#[derive(Debug)]
pub(super) struct World {
    /// The box's own base URL.
    pub(super) url: String,
    pub(super) settings: Settings,
    /// Where the console says that robot messages go.
    pub(super) robot_url: Option<String>,
    pub(super) sessions: Sessions,
    pub(super) switches: Switches,
    pub(super) tokens: Tokens,
    pub(super) limits: Limits,
    /// Groups that had the cool app and lost it: the robot went with it.
    pub(super) left: Vec<String>,
    /// (access token, msgUuid) → the body that was delivered under it.
    pub(super) uuids: HashMap<(String, String), Value>,
    pub(super) cards: Cards,
    pub(super) links: Switchboard,
    pub(super) delivered: Vec<Delivered>,
    pub(super) requests: Vec<Request>,
    pub(super) penalties: Vec<Penalty>,
    pub(super) complaints: Vec<String>,
    serial: u64,
    last_event_ms: u64,
}

impl World {
    pub(super) fn new(settings: Settings, url: String) -> Self {
        Self {
            url,
            robot_url: None,
            sessions: Sessions::new(),
            switches: Switches::default(),
            tokens: Tokens::new(settings.token_life_s),
            limits: Limits::new(settings.limits, settings.time_scale),
            left: Vec::new(),
            uuids: HashMap::new(),
            cards: Cards::default(),
            links: Switchboard::default(),
            delivered: Vec::new(),
            requests: Vec::new(),
            penalties: Vec::new(),
            complaints: Vec::new(),
            serial: 0,
            last_event_ms: 0,
            settings,
        }
    }

    /// Notes members that the pages do not know. DingTalk ignores them, which is how a typo in
    /// an option stays unseen for years.
    pub(super) fn judge(
        &mut self,
        ask: &Ask,
        inside: &str,
        object: &Map<String, Value>,
        known: &[&str],
    ) {
        for name in object.keys().filter(|name| !known.contains(&name.as_str())) {
            self.complain(ask, &format!("unknown member {inside}{name}"));
        }
    }

    /// Notes something that DingTalk would let pass and a careful client would not do.
    pub(super) fn complain(&mut self, ask: &Ask, what: &str) {
        self.complaints
            .push(format!("{} {}: {what}", ask.method, ask.path));
    }

    pub(super) fn penalise(&mut self, ask: &Ask, kind: &'static str, key: &str) {
        self.penalties.push(Penalty {
            kind,
            key: key.to_owned(),
            at_ms: ask.at_ms,
        });
    }

    pub(super) fn group(&mut self, id: &str) -> Option<&mut Group> {
        self.settings
            .groups
            .iter_mut()
            .find(|group| group.open_conversation_id == id)
    }

    /// A time of the pages as long as it lasts in this box.
    pub(super) fn scaled(&self, ms: u64) -> Duration {
        let scale = self.settings.time_scale;
        let sane = scale.is_finite() && scale > 0.0;
        Duration::from_millis(ms).div_f64(if sane { scale } else { 1.0 })
    }

    /// A new processQueryKey; like the real ones it needs escaping in a URL.
    pub(super) fn handle(&mut self) -> String {
        self.serial += 1;
        format!(
            "{}/{:06x}+box=",
            clock::hex(&clock::random::<6>()),
            self.serial
        )
    }

    /// The time of the next event: now, but never the same twice, so that events have an order.
    pub(super) fn event_ms(&mut self) -> u64 {
        self.last_event_ms = clock::wall_ms().max(self.last_event_ms + 1);
        self.last_event_ms
    }
}
