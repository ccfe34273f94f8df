//! The record of one card and the steps that it takes; nothing here waits, reads or writes.

use serde::{Deserialize, Serialize};

use super::KEEP_MS;
use super::share::Shares;
use crate::delivery::id::MessageId;
use crate::delivery::state::{Priority, State};
use crate::dingtalk::instance::{Face, Generation, Order, Patch};
use crate::outbound::send::Ahead;
use crate::outbound::{Live, Message, is_default};

/// What is known of one card.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    pub(super) app: String,
    pub(super) out_track_id: String,
    /// Who sent it; `None`: it was not sent through this daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) client: Option<String>,
    /// Its template, if it was sent through this daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) template_id: Option<String>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) generation: Generation,
    /// Of the card, and of changes that name none.
    pub(super) priority: Priority,
    /// The message that makes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) message: Option<MessageId>,
    /// How that message ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) end: Option<End>,
    /// Whether DingTalk has the card, whoever sees it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) made: Made,
    pub(super) base: Face,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) flight: Option<Flight>,
    #[serde(default, skip_serializing_if = "Shares::is_empty")]
    pub(super) waiting: Shares,
    /// The update whose turn is to come, and to which is added what comes now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) carrier: Option<MessageId>,
    /// The message that left last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) last: Option<MessageId>,
    pub(super) accepted_ms: u64,
    /// When the last change was accepted.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) changed_ms: u64,
    /// When it was noted that DingTalk took the last change.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) landed_ms: u64,
    pub(super) touched_ms: u64,
}

/// What an update took along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Flight {
    pub(super) message: MessageId,
    pub(super) shares: Shares,
    /// Its call is under way, or its process died; otherwise it waits for another one.
    pub(super) under_way: bool,
}

/// Whether DingTalk has a card.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Made {
    /// Surely not.
    #[default]
    No,
    /// The first call that makes it is under way, or its process died.
    Asked,
    /// Some call may have made it: a later one that was refused does not change that.
    Doubtful,
    /// It has.
    Yes,
}

/// How the message that makes a card ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum End {
    Made,
    NotMade,
    Unknown,
}

/// Whether there is a card to be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It is being made.
    Pending,
    /// It was made.
    Created,
    /// It was not, and will not be.
    Dead,
    /// Nobody knows; DingTalk will say.
    Unknown,
}

/// Which of a card's messages are under way, as the record names them.
#[derive(Debug, Default)]
pub struct Alive {
    pub(super) message: Option<Live>,
    pub(super) flight: Option<Live>,
    pub(super) carrier: Option<Live>,
}

/// What the call that makes a card is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Making {
    /// The card exists: it is only to be delivered.
    pub(super) deliver: bool,
    /// An earlier call may have made it.
    pub(super) doubtful: bool,
}

/// What an update finds when its turn comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Turn {
    /// This is to be sent.
    Carry(Patch),
    /// This message comes first.
    Behind(Ahead),
    /// Another one has taken everything along.
    Merged(MessageId),
    /// There is nothing to send.
    Nothing,
    /// There is no card.
    NotSent,
}

impl Card {
    pub(super) fn new(message: &Message, live: &Live, order: &Order) -> Self {
        Self {
            app: message.app.clone(),
            out_track_id: order.out_track_id.clone(),
            client: Some(message.client.clone()),
            template_id: Some(order.template_id.clone()),
            generation: order.generation,
            priority: live.priority,
            message: Some(message.id),
            base: order.face.clone(),
            accepted_ms: live.accepted_ms,
            touched_ms: live.accepted_ms,
            ..Self::default()
        }
    }

    /// A card that was not sent through this daemon.
    pub(super) fn of_others(
        app: &str,
        out_track_id: &str,
        generation: Generation,
        wall_ms: u64,
    ) -> Self {
        Self {
            app: app.to_owned(),
            out_track_id: out_track_id.to_owned(),
            generation,
            // Somebody has clicked and waits.
            priority: Priority::High,
            accepted_ms: wall_ms,
            touched_ms: wall_ms,
            ..Self::default()
        }
    }

    /// What it is to show when everything has arrived.
    pub(super) fn wanted(&self) -> Face {
        let mut face = self.base.clone();
        if let Some(flight) = &self.flight {
            face.apply(flight.shares.patch());
        }
        face.apply(self.waiting.patch());
        face
    }

    pub(super) fn standing(&self, alive: &Alive) -> Standing {
        match (self.message, self.end) {
            (Some(_), _) if alive.message.is_some() => Standing::Pending,
            (_, Some(End::Made)) => Standing::Created,
            (_, Some(End::NotMade)) => Standing::Dead,
            // Its message was set aside, or it was made by somebody else.
            (_, Some(End::Unknown) | None) => Standing::Unknown,
        }
    }

    /// The message under way that takes along what comes now, if it is as urgent as `priority` and lasts
    /// until `until_ms`.
    pub(super) fn carrier<'a>(
        &self,
        alive: &'a Alive,
        priority: Priority,
        until_ms: u64,
    ) -> Option<&'a Live> {
        // A card that has surely not been made is made as it is to be by then.
        let maker = alive.message.as_ref();
        if let Some(maker) = maker.filter(|_| self.made == Made::No) {
            return Some(maker);
        }
        let fits = |live: &&Live| live.priority <= priority && live.expires_ms >= until_ms;
        alive.carrier.as_ref().filter(fits)
    }

    /// Message `id`, which makes the card, has its turn.
    pub(super) fn make(&mut self, id: MessageId) -> Making {
        self.end = None;
        if self.made == Made::No {
            let waiting = std::mem::take(&mut self.waiting);
            self.base.apply(waiting.patch());
            self.last = Some(id);
        }
        self.made = match self.made {
            Made::No => Made::Asked,
            Made::Asked | Made::Doubtful => Made::Doubtful,
            Made::Yes => Made::Yes,
        };
        Making {
            deliver: self.made == Made::Yes,
            doubtful: self.made == Made::Doubtful,
        }
    }

    /// Update `id` has its turn: it takes along everything that is not at DingTalk.
    pub(super) fn update(&mut self, id: MessageId, alive: &Alive) -> Turn {
        match self.standing(alive) {
            // Those who have it already do not wait for those whom it has not reached.
            Standing::Pending if self.made == Made::Yes => {}
            Standing::Pending => {
                return Turn::Behind(Ahead {
                    seq: self.message.map_or(0, MessageId::seq),
                    called: is_called(alive.message.as_ref()),
                });
            }
            Standing::Dead => return Turn::NotSent,
            Standing::Created | Standing::Unknown => {}
        }
        let others = self.flight.as_ref().filter(|flight| {
            // A call whose process died is under way no more: its message waits for its turn like others.
            flight.message != id && flight.under_way && is_called(alive.flight.as_ref())
        });
        if let Some(flight) = others {
            return Turn::Behind(Ahead {
                seq: flight.message.seq(),
                called: true,
            });
        }
        let flight = self.flight.take().map(|flight| flight.shares);
        let mut shares = flight.unwrap_or_default();
        shares.then(std::mem::take(&mut self.waiting));
        self.carrier = self.carrier.filter(|carrier| *carrier != id);
        if shares.is_empty() {
            return match self.last.filter(|last| *last != id) {
                Some(last) => Turn::Merged(last),
                None => Turn::Nothing,
            };
        }
        let patch = shares.patch();
        self.last = Some(id);
        self.flight = Some(Flight {
            message: id,
            shares,
            under_way: true,
        });
        Turn::Carry(patch)
    }

    /// DingTalk shows `patch` since `at_ms`, which came to it without a message. Returns whether that is the newest
    /// and has to be sent once more: what waits, though older, will be shown in its place when it arrives, and what
    /// has landed since may be already.
    pub(super) fn shown(&mut self, patch: Patch, at_ms: u64) -> bool {
        let landed_since = (self.landed_ms >= at_ms).then(|| self.wanted());
        self.base.apply(patch.clone());
        let wanted = landed_since.unwrap_or_else(|| self.wanted());
        let mut newest = wanted.clone();
        newest.apply(patch);
        self.changed_ms < at_ms && newest != wanted
    }

    /// The call of message `id` was answered and it goes on. `known` says that the answer leaves no doubt
    /// whether it was done, `exists` that the card exists now.
    pub(super) fn answered(&mut self, id: MessageId, known: bool, exists: bool) {
        if self.message == Some(id) {
            self.made = match self.made {
                _ if exists => Made::Yes,
                Made::Asked if known => Made::No,
                Made::Asked => Made::Doubtful,
                made => made,
            };
        } else if let Some(flight) = self.flight.as_mut().filter(|f| f.message == id) {
            flight.under_way = false;
            // What comes while it waits goes along with it.
            self.carrier = self.carrier.or(Some(id));
        }
    }

    /// Message `id` has ended in `state`, as is known at `wall_ms`; `spoilt` says that it is its own change that did
    /// not do.
    pub(super) fn ended(&mut self, id: MessageId, state: State, spoilt: bool, wall_ms: u64) {
        if self.message == Some(id) {
            self.end = Some(match state {
                State::Sent => End::Made,
                State::Unknown => End::Unknown,
                _ if matches!(self.made, Made::Asked | Made::Doubtful) => End::Unknown,
                _ => End::NotMade,
            });
            if state == State::Sent {
                self.made = Made::Yes;
            }
            return;
        }
        self.carrier = self.carrier.filter(|carrier| *carrier != id);
        if let Some(flight) = self.flight.take_if(|flight| flight.message == id) {
            match state {
                State::Sent => {
                    self.base.apply(flight.shares.patch());
                    self.landed_ms = wall_ms;
                }
                // What comes later must not fail with it, nor what it took along of others.
                _ if spoilt => self.wait_first(flight.shares.without(id)),
                // The next one takes it along.
                _ => self.wait_first(flight.shares),
            }
        }
        if state == State::Cancelled {
            self.waiting = std::mem::take(&mut self.waiting).without(id);
        }
        self.waiting.release(id);
    }

    /// What was under way waits again, before all that came later.
    pub(super) fn wait_first(&mut self, shares: Shares) {
        let newer = std::mem::replace(&mut self.waiting, shares);
        self.waiting.then(newer);
    }

    pub(super) fn is_over(&self, wall_ms: u64) -> bool {
        self.touched_ms.saturating_add(KEEP_MS) < wall_ms
    }
}

/// Whether a call of a message is under way.
pub(super) fn is_called(live: Option<&Live>) -> bool {
    live.is_some_and(|live| live.progress.in_flight.is_some())
}

#[cfg(test)]
#[path = "card/tests.rs"]
mod tests;
