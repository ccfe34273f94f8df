//! A model of DingTalk, the messages and the process that dies, and a card that goes through all of it.

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
        self.card.ended(id, state, spoilt, 0);
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

/// Its call was under way when the answer to the click was given: nobody knows which of both came second.
#[test]
fn a_change_that_landed_after_an_answer_to_a_click_may_have_undone_it() {
    let patch = |value: &str| Patch {
        data: [("status".to_owned(), value.to_owned())].into(),
        ..Patch::default()
    };
    for (landed_ms, value, again) in [
        (20, "acked", true),
        (19, "acked", false),
        (20, "firing", false),
    ] {
        let mut card = Card::default();
        let id = MessageId::new(1, 0, 1);
        let mut shares = Shares::default();
        shares.push(id, patch("firing"));
        card.flight = Some(Flight {
            message: id,
            shares,
            under_way: true,
        });
        card.changed_ms = 10;
        card.ended(id, State::Sent, false, landed_ms);
        assert_eq!(card.shown(patch(value), 20), again, "{landed_ms} {value}");
        assert_eq!(card.wanted().data["status"], value);
    }
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
