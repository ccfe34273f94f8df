//! What became of a message: written where it is, and told to the platform as an event.

use std::sync::Arc;

use super::show;
use super::{Live, Message};
use crate::clock::Clock;
use crate::delivery::event::{self, Event, Forwarding, Stored};
use crate::delivery::id::{digest, event_id, short_digest};
use crate::delivery::record;
use crate::faults::{Bug, bug};
use crate::journal::Batch;
use crate::journal::queue::Queue;

const KIND: &str = "dingd.message.finished";

/// Puts outcomes into the inbox, from where they go to the platform like any event.
#[derive(Debug, Clone)]
pub struct Outcomes {
    /// The inbox.
    pub inbox: Arc<Queue<Forwarding>>,
    /// The organisation of each app, for the event's source.
    pub corps: Arc<arc_swap::ArcSwap<std::collections::HashMap<String, String>>>,
    /// The clock.
    pub clock: Clock,
}

/// An outcome whose batch is under way.
#[derive(Debug)]
pub struct Ended {
    seq: u64,
    state: Forwarding,
}

impl Outcomes {
    /// Adds the outcome of a terminal message to the batch that makes it terminal. When that is
    /// durable, call [`Self::appended`].
    pub fn append(&self, batch: &mut Batch, message: &Message, live: &Live) -> Ended {
        let wall_ms = self.clock.wall_ms();
        let id = message.id.to_string();
        // A replayed message ends once more: another event.
        let generation = live.progress.generation.to_string();
        let key = digest(&[b"finished", id.as_bytes(), generation.as_bytes()]);
        let source = match self.corps.load().get(&message.app) {
            Some(corp) => format!("/dingtalk/{corp}/{}", message.app),
            None => format!("/dingtalk/robots/{}", live.target),
        };
        let data = serde_json::value::to_raw_value(&show::message(message, live))
            .expect("strings and numbers always serialise");
        let body = event::body(&Event {
            id: &event_id(&key),
            source: &source,
            kind: KIND,
            at_ms: wall_ms,
            subject: Some(&id),
            data: &data,
        });
        let stored = Stored {
            id: event_id(&key),
            app: message.app.clone(),
            kind: KIND.to_owned(),
            subject: Some(id.clone()),
            accepted_ms: wall_ms,
            body,
            ask: None,
        };
        let payload = record::encode(&stored);
        let state = Forwarding {
            app: message.app.clone(),
            kind: KIND.to_owned(),
            // Outcomes of one message keep their order.
            lane: short_digest(&[id.as_bytes()]),
            accepted_ms: wall_ms,
            bytes: payload.len() as u64,
            targets: None,
            finished_ms: None,
            generation: 0,
            asks: false,
        };
        let seq = self.inbox.reserve();
        self.inbox.append(batch, seq, &payload, &state);
        Ended { seq, state }
    }

    /// The outcome is durable.
    pub fn appended(&self, ended: Ended) {
        if !bug(Bug::OutcomeNotTold) {
            self.inbox
                .appended(ended.seq, ended.state.tag(), ended.state);
        }
    }
}
