//! The way of one letter: sent, waited for, sent again, until it is acknowledged or given up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::{Ack, Kind, Letter, Outcome, Settled, Waiting, post};
use crate::sim::clock;
use crate::sim::dingtalk::Stage;

/// How long a place on a connection is waited for before another one is looked for.
const ROOM_WAIT: Duration = Duration::from_secs(1);

/// How often and how long a letter is sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// From one sending to the next.
    pub(super) again: Duration,
    /// Until it is given up.
    pub(super) keep: Duration,
    /// Whether it waits for a connection when there is none.
    pub(super) waits: bool,
}

/// A letter whose acknowledgements are listened to. It ends with this.
pub(super) struct Courier {
    stage: Arc<Stage>,
    letter: Letter,
    event_id: Option<String>,
    verdicts: UnboundedReceiver<Ack>,
    start: Instant,
    tries: u32,
    last: Option<Ack>,
}

impl Courier {
    /// From here on the letter counts as being on its way.
    pub(super) fn new(stage: Arc<Stage>, letter: Letter, event_id: Option<String>) -> Self {
        let (sender, verdicts) = unbounded_channel();
        let start = clock::now();
        {
            let mut world = stage.world();
            let topics = &mut world.links.topics;
            topics.insert(letter.message_id.clone(), letter.topic.clone());
            let waiting = world.links.waiting.entry(letter.message_id.clone());
            let waiting = waiting.or_insert_with(|| Waiting {
                kind: letter.kind,
                sent: start,
                verdicts: Vec::new(),
                listeners: Vec::new(),
            });
            waiting.verdicts.push(sender);
        }
        Self {
            stage,
            letter,
            event_id,
            verdicts,
            start,
            tries: 0,
            last: None,
        }
    }

    /// Sends until it is done or given up.
    pub(super) async fn carry(mut self, patience: Patience) -> Outcome {
        let settled = self.deliver(patience).await;
        if settled == Settled::Done && self.doubles() {
            self.send().await;
        }
        self.settle(settled)
    }

    async fn deliver(&mut self, patience: Patience) -> Settled {
        loop {
            let left = patience.keep.saturating_sub(self.age());
            if left.is_zero() && self.tries > 0 {
                return Settled::GivenUp;
            }
            if !self.sent_or_arrived(patience.waits, left).await {
                return if self.tries == 0 {
                    Settled::NoConnection
                } else {
                    Settled::GivenUp
                };
            }
            if self.acknowledged(patience.again.min(left)).await {
                return Settled::Done;
            }
        }
    }

    /// Sends over a connection that is there, or that comes in time.
    async fn sent_or_arrived(&mut self, waits: bool, left: Duration) -> bool {
        let stage = Arc::clone(&self.stage);
        let sending = async {
            loop {
                let mut arrival = Box::pin(stage.arrived.notified());
                // Before the look, so that an arrival in between is not missed.
                arrival.as_mut().enable();
                if self.send().await {
                    return true;
                }
                if !waits {
                    return false;
                }
                arrival.await;
            }
        };
        tokio::time::timeout(left, sending).await == Ok(true)
    }

    /// Sends over one of the connections when there is a place on it; false if there is none.
    async fn send(&mut self) -> bool {
        loop {
            let chosen = {
                let world = self.stage.world();
                let link = world.links.choose(self.letter.kind, &self.letter.topic);
                link.map(|link| (link.record.id.clone(), Arc::clone(&link.room)))
            };
            let Some((connection, room)) = chosen else {
                return false;
            };
            // One that has fallen silent will have no place any more, but another one may.
            let place = tokio::time::timeout(ROOM_WAIT, room.acquire_owned());
            let Ok(Ok(place)) = place.await else {
                continue;
            };
            let at_ms = self.stage.elapsed_ms();
            let mut world = self.stage.world();
            if post(&mut world, &self.letter, &connection, place, at_ms) {
                self.tries += 1;
                return true;
            }
        }
    }

    /// Whether it is acknowledged within this time. A refusal does not shorten it.
    async fn acknowledged(&mut self, within: Duration) -> bool {
        let listen = async {
            while let Some(ack) = self.verdicts.recv().await {
                let done = ack.done;
                self.last = Some(ack);
                if done {
                    return true;
                }
            }
            false
        };
        tokio::time::timeout(within, listen).await == Ok(true)
    }

    fn doubles(&self) -> bool {
        let mut world = self.stage.world();
        let every = world.settings.stream.double_every;
        if self.letter.kind != Kind::Event || every == 0 {
            return false;
        }
        world.links.doubled += 1;
        world.links.doubled.is_multiple_of(every)
    }

    fn age(&self) -> Duration {
        clock::now().duration_since(self.start)
    }

    fn settle(mut self, settled: Settled) -> Outcome {
        let outcome = Outcome {
            message_id: self.letter.message_id.clone(),
            event_id: self.event_id.take(),
            settled,
            tries: self.tries,
            elapsed: self.age(),
            ack: self.last.take(),
        };
        // Before the look for others who carry the same letter.
        self.verdicts.close();
        let mut world = self.stage.world();
        let links = &mut world.links;
        let id = &outcome.message_id;
        links.settled.insert(id.clone(), links.outcomes.len());
        links.outcomes.push(outcome.clone());
        if let Some(waiting) = links.waiting.get_mut(id) {
            for listener in waiting.listeners.drain(..) {
                // Whoever asked may have lost patience.
                drop(listener.send(outcome.clone()));
            }
            waiting.verdicts.retain(|sender| !sender.is_closed());
            if waiting.verdicts.is_empty() {
                links.waiting.remove(id);
            }
        }
        drop(world);
        outcome
    }
}
