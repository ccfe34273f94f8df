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
    /// and what waits, though older, would be shown in its place when it arrives.
    pub(super) fn shown(&mut self, patch: Patch, at_ms: u64) -> bool {
        self.base.apply(patch.clone());
        let wanted = self.wanted();
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

    /// Message `id` has ended in `state`; `spoilt` says that it is its own change that did not do.
    pub(super) fn ended(&mut self, id: MessageId, state: State, spoilt: bool) {
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
                State::Sent => self.base.apply(flight.shares.patch()),
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
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::delivery::record;
    use crate::outbound::To;
    use crate::outbound::dead::tests::dead;

    /// A card and its messages on disk, the call under way, and what DingTalk shows.
    struct World {
        dice: u64,
        card: Card,
        /// Under way: the maker, or an update.
        alive: BTreeMap<MessageId, Live>,
        call: Option<(MessageId, Making, Patch)>,
        shown: Option<Face>,
        /// What it shows at first, and what was accepted since, one after another.
        first: Face,
        accepted: Vec<Accepted>,
        next: u64,
        merged: BTreeSet<MessageId>,
    }

    /// A change that was accepted.
    struct Accepted {
        carrier: MessageId,
        patch: Patch,
        /// It is in the call under way.
        called: bool,
        /// DingTalk may have it.
        left: bool,
    }

    /// How a call ends.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Came {
        Done,
        /// DingTalk did it, and nobody heard.
        Unheard,
        /// It did not, and nobody knows.
        Lost,
        /// It said no, for now.
        Refused,
        /// It said no, for good.
        Dead,
    }

    impl World {
        fn new(seed: u64) -> Self {
            let base = Face {
                data: [("n".to_owned(), "0".to_owned())].into(),
                ..Face::default()
            };
            let mut world = Self {
                dice: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
                card: Card {
                    base: base.clone(),
                    ..Card::default()
                },
                alive: BTreeMap::new(),
                call: None,
                shown: None,
                first: base,
                accepted: vec![],
                next: 0,
                merged: BTreeSet::new(),
            };
            world.card.message = Some(world.message(Priority::Normal));
            world
        }

        fn below(&mut self, end: u64) -> u64 {
            self.dice ^= self.dice << 13;
            self.dice ^= self.dice >> 7;
            self.dice ^= self.dice << 17;
            self.dice % end
        }

        fn message(&mut self, priority: Priority) -> MessageId {
            self.next += 1;
            let id = MessageId::new(1, 0, self.next);
            let (_, live) = dead(To::Users(vec![]), State::Queued, "x");
            let live = Live {
                id,
                priority,
                expires_ms: 1_000,
                ..live
            };
            self.alive.insert(id, live);
            id
        }

        fn alive(&self) -> Alive {
            let live = |id: Option<MessageId>| {
                let mut live = self.alive.get(&id?).cloned()?;
                let call = self.call.as_ref().filter(|(called, ..)| *called == live.id);
                live.progress.in_flight = call.map(|_| 0);
                Some(live)
            };
            let flight = self.card.flight.as_ref().map(|flight| flight.message);
            Alive {
                message: live(self.card.message),
                flight: live(flight),
                carrier: live(self.card.carrier),
            }
        }

        fn patch(&mut self) {
            let (kind, n) = (self.below(5), self.below(1_000).to_string());
            let name = format!("k{}", self.below(3));
            let one: BTreeMap<_, _> = [(name, n)].into();
            let user = format!("u{}", self.below(2));
            let private = kind >= 3;
            let mut patch = Patch {
                whole_data: kind == 2,
                whole_private_data: kind == 4,
                data: if private {
                    BTreeMap::new()
                } else {
                    one.clone()
                },
                private_data: if private {
                    [(user, one)].into()
                } else {
                    BTreeMap::new()
                },
            };
            let alive = self.alive();
            if self.card.standing(&alive) == Standing::Dead {
                return;
            }
            patch.spell_out(&self.card.wanted());
            let priority = Priority::ALL[usize::try_from(self.below(4)).unwrap()];
            let carrier = self.card.carrier(&alive, priority, 500).map(|live| live.id);
            let carrier = carrier.unwrap_or_else(|| {
                let id = self.message(priority);
                self.card.carrier = Some(id);
                id
            });
            self.card.waiting.push(carrier, patch.clone());
            self.accepted.push(Accepted {
                carrier,
                patch,
                called: false,
                left: false,
            });
        }

        /// What is to be shown in the end.
        fn wanted(&self) -> Face {
            let mut face = self.first.clone();
            for one in &self.accepted {
                face.apply(one.patch.clone());
            }
            face
        }

        /// Somebody withdraws an update that waits, and of which nothing is on its way.
        fn withdraw(&mut self) {
            let called = self.call.as_ref().map(|(called, ..)| *called);
            let waits = |id: &&MessageId| {
                let flight = self.card.flight.as_ref();
                let flight = flight.filter(|flight| flight.message != **id);
                let by_others = flight.is_some_and(|flight| {
                    let shares = &flight.shares;
                    shares.clone().without(**id) != *shares
                });
                let is_update = self.card.message != Some(**id);
                is_update && called != Some(**id) && !by_others && !self.has_left(**id)
            };
            let Some(id) = self.alive.keys().find(waits).copied() else {
                return;
            };
            self.accepted.retain(|one| one.carrier != id);
            self.end(id, State::Cancelled);
        }

        fn has_left(&self, id: MessageId) -> bool {
            self.accepted
                .iter()
                .any(|one| one.carrier == id && one.left)
        }

        /// DingTalk does what the call asks for.
        fn arrives(&mut self, id: MessageId, making: Making, patch: Patch) {
            let makes = self.card.message == Some(id);
            match &mut self.shown {
                None if makes => self.shown = Some(self.card.base.clone()),
                Some(shown) if !makes => shown.apply(patch),
                // "It exists."
                Some(_) => assert!(making.doubtful, "made twice"),
                None => panic!("changed before it was made"),
            }
        }

        /// The turn of any message: calls of one card are one at a time but for a message that waits.
        fn turn(&mut self) {
            if self.call.is_some() || self.alive.is_empty() {
                return;
            }
            let index = usize::try_from(self.below(self.alive.len() as u64)).unwrap();
            let id = *self.alive.keys().nth(index).unwrap();
            if self.card.message == Some(id) {
                let joins = self.card.made == Made::No;
                let making = self.card.make(id);
                self.call = Some((id, making, Patch::default()));
                for one in &mut self.accepted {
                    one.left |= joins;
                }
                return;
            }
            let alive = self.alive();
            let mut card = self.card.clone();
            match card.update(id, &alive) {
                Turn::Carry(patch) => {
                    self.card = card;
                    for one in &mut self.accepted {
                        one.called = true;
                    }
                    let making = Making {
                        deliver: true,
                        doubtful: false,
                    };
                    self.call = Some((id, making, patch));
                }
                Turn::Behind(ahead) => {
                    assert!(
                        self.alive.keys().any(|id| id.seq() == ahead.seq),
                        "for ever"
                    );
                }
                Turn::Merged(_) => {
                    self.merged.insert(id);
                    self.end(id, State::Merged);
                }
                Turn::Nothing | Turn::NotSent => self.end(id, State::Dead),
            }
        }

        fn end(&mut self, id: MessageId, state: State) {
            self.alive.remove(&id);
            let spoilt = matches!(state, State::Dead | State::Cancelled);
            self.card.ended(id, state, spoilt);
        }

        fn comes(&mut self, came: Came) {
            let Some((id, making, patch)) = self.call.take() else {
                return;
            };
            let makes = self.card.message == Some(id);
            // What may have arrived before is not refused now.
            let came = match came {
                Came::Dead if makes || self.has_left(id) => Came::Refused,
                came => came,
            };
            if matches!(came, Came::Done | Came::Unheard) {
                self.arrives(id, making, patch);
            }
            let refused = matches!(came, Came::Refused | Came::Dead);
            for one in &mut self.accepted {
                one.left |= std::mem::take(&mut one.called) && !refused;
            }
            match came {
                Came::Done => {
                    self.card.answered(id, true, makes);
                    self.end(id, State::Sent);
                }
                Came::Dead => {
                    self.accepted.retain(|one| one.carrier != id);
                    self.card.answered(id, true, false);
                    self.end(id, State::Dead);
                }
                came => self.card.answered(id, came == Came::Refused, false),
            }
        }

        /// The process dies: nobody knows what became of the call, and the record is as it was written.
        fn crash(&mut self) {
            let arrives = self.below(2) == 0;
            if let Some((id, making, patch)) = self.call.take()
                && arrives
            {
                self.arrives(id, making, patch);
            }
            for one in &mut self.accepted {
                one.left |= std::mem::take(&mut one.called);
            }
            let bytes = record::encode(&self.card);
            self.card = record::decode(&bytes).unwrap();
        }
    }

    #[test]
    fn when_all_is_quiet_dingtalk_shows_what_was_accepted_whatever_happened_on_the_way() {
        for seed in 0..4_000 {
            let mut world = World::new(seed);
            for _ in 0..40 {
                match world.below(10) {
                    0..3 => world.patch(),
                    3..6 => world.turn(),
                    6 => world.comes(Came::Done),
                    7 => world.comes(Came::Unheard),
                    8 => {
                        let came = [Came::Lost, Came::Refused, Came::Dead];
                        let came = came[usize::try_from(world.below(3)).unwrap()];
                        world.comes(came);
                        if came == Came::Dead {
                            world.withdraw();
                        }
                    }
                    _ => world.crash(),
                }
            }
            let mut steps = 0;
            while !world.alive.is_empty() {
                world.turn();
                world.comes(Came::Done);
                steps += 1;
                assert!(steps < 10_000, "seed {seed}: it never ends");
            }
            let (shown, wanted) = (world.shown.clone().unwrap(), world.wanted());
            assert_eq!(shown, wanted, "seed {seed}");
            assert_eq!(world.card.wanted(), wanted, "seed {seed}");
            assert_eq!(world.card.base, wanted, "seed {seed}: nothing waits");
        }
    }

    #[test]
    fn a_change_that_is_refused_is_dropped_and_one_that_expired_goes_with_the_next() {
        for (state, next) in [(State::Dead, "2"), (State::Expired, "1")] {
            let mut world = World::new(1);
            let maker = world.card.message.unwrap();
            world.card.make(maker);
            world.card.answered(maker, true, true);
            world.end(maker, State::Sent);
            let patch = |name: &str, value: &str| Patch {
                data: [(name.to_owned(), value.to_owned())].into(),
                ..Patch::default()
            };
            let id = world.message(Priority::Normal);
            world.card.waiting.push(id, patch("a", "1"));
            let alive = world.alive();
            assert!(matches!(world.card.update(id, &alive), Turn::Carry(_)));
            world.end(id, state);
            let id = world.message(Priority::Normal);
            world.card.waiting.push(id, patch("b", "2"));
            let alive = world.alive();
            let Turn::Carry(patch) = world.card.update(id, &alive) else {
                panic!("it has something to carry");
            };
            assert_eq!(patch.data.values().next().map(String::as_str), Some(next));
        }
    }

    #[test]
    fn what_dingtalk_shows_by_an_answer_to_a_click_is_known_and_gives_way_to_what_is_newer() {
        let mut card = Card::default();
        let patch = |value: &str| Patch {
            data: [("status".to_owned(), value.to_owned())].into(),
            ..Patch::default()
        };
        assert!(!card.shown(patch("acked"), 10), "nothing waits");
        assert_eq!(card.wanted().data["status"], "acked");
        let id = MessageId::new(1, 0, 1);
        card.waiting.push(id, patch("resolved"));
        card.changed_ms = 20;
        assert!(!card.shown(patch("acked"), 20), "it may be older");
        assert!(card.shown(patch("acked"), 21), "it would be overwritten");
        assert!(!card.shown(patch("resolved"), 21), "with the same");
        assert_eq!(card.wanted().data["status"], "resolved");
    }

    #[test]
    fn a_change_waits_for_its_card_and_ends_with_it() {
        let mut world = World::new(1);
        let maker = world.card.message.unwrap();
        let id = world.message(Priority::Critical);
        world.card.make(maker);
        world.card.waiting.push(
            id,
            Patch {
                whole_data: true,
                ..Patch::default()
            },
        );
        let alive = world.alive();
        let ahead = Ahead {
            seq: maker.seq(),
            called: false,
        };
        assert_eq!(world.card.update(id, &alive), Turn::Behind(ahead));
        world.card.answered(maker, true, false);
        world.end(maker, State::Dead);
        let alive = world.alive();
        assert_eq!(world.card.update(id, &alive), Turn::NotSent);
        // Where nobody knows, DingTalk is asked: whether it was made, or, of one that was, whether it arrived.
        world.card.made = Made::Yes;
        world.end(maker, State::Unknown);
        assert_eq!(world.card.standing(&world.alive()), Standing::Unknown);
        world.card.made = Made::Doubtful;
        world.end(maker, State::Expired);
        let alive = world.alive();
        assert!(matches!(world.card.update(id, &alive), Turn::Carry(_)));
    }
}
