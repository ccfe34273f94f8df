//! The gateway in the hands of a test: pushes, trouble, and what was seen.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::courier::{Courier, Patience};
use super::{Ack, Connection, Control, Letter, Link, Order, Outcome, Sent, Settled, Why, frame};
use crate::sim::dingtalk::{DingTalk, Stage};

/// The topic of robot messages.
const ROBOT: &str = "/v1.0/im/bot/messages/get";

/// A handle to the gateway of a box.
#[derive(Debug, Clone)]
pub struct Gateway {
    box_: DingTalk,
}

impl DingTalk {
    /// The Stream gateway.
    pub fn gateway(&self) -> Gateway {
        Gateway { box_: self.clone() }
    }
}

impl Gateway {
    /// Pushes an event, in the text that [`DingTalk::push`] takes, and returns when it is settled.
    pub async fn event(&self, event_json: &str) -> Outcome {
        let id = self.send_event(event_json);
        self.settled(&id).await
    }

    /// Begins to push an event, and returns the messageId of its frames.
    pub fn send_event(&self, event_json: &str) -> String {
        let (letter, event_id) = frame::event(event_json);
        let patience = {
            let world = self.box_.world();
            let stream = &world.settings.stream;
            Patience {
                again: world.scaled(stream.event_again_ms),
                keep: world.scaled(stream.event_keep_ms),
                waits: true,
            }
        };
        self.send(letter, Some(event_id), patience)
    }

    /// Begins to push a robot message, in the text that [`DingTalk::worded`] makes.
    pub fn send_robot_message(&self, body: &str) -> String {
        let patience = {
            let world = self.box_.world();
            let stream = &world.settings.stream;
            Patience {
                again: world.scaled(stream.robot_again_ms),
                keep: world.scaled(stream.robot_keep_ms),
                waits: stream.robot_waits,
            }
        };
        let letter = frame::callback(ROBOT, None, body.to_owned());
        self.send(letter, None, patience)
    }

    /// Sends a callback of any topic once and waits so long for its acknowledgement; the error
    /// says why there is none.
    pub async fn callback(
        &self,
        topic: &str,
        message_id: Option<String>,
        data: String,
        wait: Duration,
    ) -> Result<Ack, String> {
        let letter = frame::callback(topic, message_id, data);
        let once = Patience {
            again: wait,
            keep: wait,
            waits: false,
        };
        let courier = Courier::new(self.stage(), letter, None);
        let outcome = courier.carry(once).await;
        let silent = || format!("no answer within {} ms", wait.as_millis());
        match outcome.ack {
            Some(ack) => Ok(ack),
            None if outcome.tries == 0 => Err("no Stream connection".to_owned()),
            None => Err(silent()),
        }
    }

    /// Returns when this message is settled; one that was never sent is given up.
    pub async fn settled(&self, message_id: &str) -> Outcome {
        let (sender, outcome) = oneshot::channel();
        {
            let mut world = self.box_.world();
            let links = &mut world.links;
            let at = links.settled.get(message_id).copied();
            if let Some(outcome) = at.and_then(|at| links.outcomes.get(at)) {
                return outcome.clone();
            }
            if let Some(waiting) = links.waiting.get_mut(message_id) {
                waiting.listeners.push(sender);
            }
        }
        outcome.await.unwrap_or_else(|_| Outcome {
            message_id: message_id.to_owned(),
            event_id: None,
            settled: Settled::GivenUp,
            tries: 0,
            elapsed: Duration::ZERO,
            ack: None,
        })
    }

    /// Returns when so many connections are up.
    pub async fn connected(&self, at_least: usize) {
        let stage = self.stage();
        loop {
            let mut arrived = Box::pin(stage.arrived.notified());
            arrived.as_mut().enable();
            if self.live() >= at_least {
                return;
            }
            arrived.await;
        }
    }

    /// How many messages are on their way: sent or waiting, neither done nor given up.
    pub fn pending(&self) -> usize {
        self.box_.world().links.waiting.len()
    }

    /// What became of messages, in the order in which they were settled.
    pub fn outcomes(&self) -> Vec<Outcome> {
        self.box_.world().links.outcomes.clone()
    }

    /// Every frame that was sent, without system frames.
    pub fn sent(&self) -> Vec<Sent> {
        self.box_.world().links.sent.clone()
    }

    /// Every acknowledgement that arrived, without those of pings.
    pub fn acks(&self) -> Vec<Ack> {
        self.box_.world().links.acks.clone()
    }

    /// Every connection that there was, in order.
    pub fn connections(&self) -> Vec<Connection> {
        let world = self.box_.world();
        let mut all = world.links.ended.clone();
        let links = world.links.links.iter();
        all.extend(links.map(|link| (link.number, link.record.clone())));
        all.into_values().collect()
    }

    /// How many connections are up and not told to go.
    pub fn live(&self) -> usize {
        self.box_.world().links.live().count()
    }

    /// For how long there was no TCP connection at all, since the first one.
    pub fn unconnected_ms(&self) -> u64 {
        let spans = self.connections();
        uncovered(&spans, self.box_.elapsed_ms(), |it| it.closed_ms)
    }

    /// For how long frames could not be sent, since the first connection. A connection that is told
    /// to go takes none, although it is still there.
    pub fn undeliverable_ms(&self) -> u64 {
        let spans = self.connections();
        uncovered(&spans, self.box_.elapsed_ms(), |it| it.left_ms)
    }

    /// Resets every connection, silent ones too; returns how many.
    pub fn cut(&self) -> usize {
        self.control(Control::Cut, |_| true)
    }

    /// Resets one connection.
    pub fn cut_one(&self, id: &str) -> bool {
        self.control(Control::Cut, |link| link.record.id == id) > 0
    }

    /// Falls silent on every connection: TCP stays, nothing is read, written or answered.
    pub fn silence(&self) -> usize {
        self.control(Control::Silence, |link| link.record.left_ms.is_none())
    }

    /// Falls silent on one connection.
    pub fn silence_one(&self, id: &str) -> bool {
        self.control(Control::Silence, |link| link.record.id == id) > 0
    }

    /// Tells every connection to go; nothing more is sent over them from now on.
    pub fn disconnect(&self, reason: &str) -> usize {
        let live: Vec<String> = {
            let world = self.box_.world();
            world.links.live().map(|it| it.record.id.clone()).collect()
        };
        let stage = self.stage();
        live.iter()
            .filter(|id| stage.disconnect(id, reason))
            .count()
    }

    /// Tells one connection to go.
    pub fn disconnect_one(&self, id: &str, reason: &str) -> bool {
        self.stage().disconnect(id, reason)
    }

    /// Answers each wish for a connection with this status from now on; 401 is `authFailed`.
    pub fn refuse_opens(&self, status: Option<u16>) {
        self.box_.world().links.refusal = status;
    }

    /// Waits so long before each frame that is written.
    pub fn delay(&self, delay: Duration) {
        self.box_.world().links.delay = delay;
    }

    /// Sends a text as it is over every connection: frames that DingTalk would not make.
    pub fn send_raw(&self, text: &str) -> usize {
        self.order(|| Order::Text(text.to_owned()))
    }

    /// Sends bytes over every connection.
    pub fn send_binary(&self, bytes: &[u8]) -> usize {
        self.order(|| Order::Binary(bytes.to_owned()))
    }

    fn order(&self, order: impl Fn() -> Order) -> usize {
        let world = self.box_.world();
        let live = world.links.live();
        live.filter(|link| link.frames.send(order()).is_ok())
            .count()
    }

    fn control(&self, control: Control, concerns: impl Fn(&Link) -> bool) -> usize {
        let at_ms = self.box_.elapsed_ms();
        let mut world = self.box_.world();
        let links = &mut world.links;
        let fit = links.links.iter().filter(|link| concerns(link));
        let told = fit.filter(|link| link.control.send(control).is_ok());
        let told: Vec<String> = told.map(|link| link.record.id.clone()).collect();
        let why = match control {
            Control::Cut => Why::Cut,
            Control::Silence => Why::Silent,
        };
        // At once, so that nothing is sent over it until its task gets the word.
        for id in &told {
            links.leave(id, at_ms, &why);
        }
        told.len()
    }

    fn send(&self, letter: Letter, event_id: Option<String>, patience: Patience) -> String {
        let id = letter.message_id.clone();
        let courier = Courier::new(self.stage(), letter, event_id);
        self.box_.running.spawn(async move {
            // The outcome is on record.
            drop(courier.carry(patience).await);
        });
        id
    }

    fn stage(&self) -> Arc<Stage> {
        Arc::clone(&self.box_.running.stage)
    }
}

impl Stage {
    /// Tells a connection to go; false when it was told before or is gone.
    pub(super) fn disconnect(&self, id: &str, reason: &str) -> bool {
        let at_ms = self.elapsed_ms();
        let mut world = self.world();
        let Some(link) = world.links.get(id) else {
            return false;
        };
        if link.record.left_ms.is_some() {
            return false;
        }
        let told = link
            .frames
            .send(Order::Disconnect(reason.to_owned()))
            .is_ok();
        let why = Why::Disconnect(reason.to_owned());
        world.links.leave(id, at_ms, &why);
        told
    }
}

/// The time from the first opening to now that lies in no connection's span.
fn uncovered(spans: &[Connection], now_ms: u64, end: impl Fn(&Connection) -> Option<u64>) -> u64 {
    let mut bare = 0;
    let mut covered = spans.first().map_or(now_ms, |first| first.opened_ms);
    // They are in order of opening.
    for span in spans {
        bare += span.opened_ms.saturating_sub(covered);
        covered = covered.max(end(span).unwrap_or(now_ms));
    }
    bare + now_ms.saturating_sub(covered)
}
