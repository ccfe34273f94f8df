//! Who is left alone because calls to them fail: each host, and each group or robot.
//!
//! A host always has a breaker; a conversation has one from its first failure until it has long been as before, so
//! that a conversation that works costs nothing.

use std::collections::{BTreeSet, HashMap};

use super::limit::{HOST_CALLS_MAX, Key, Kind};
use crate::delivery::breaker::{Breaker, Failure, State};

/// What a call says about the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// It works, whatever it thinks of the message.
    Works,
    /// It does not.
    Failed(Failure),
    /// Nothing.
    Nothing,
}

/// Whose call it was: the conversation's, or, of calls that are for none, the message's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// A group's or a robot's.
    Conversation(Key),
    /// A message's to people, or a change of a card.
    Message(u64),
}

/// All breakers. `now_ms` is monotonic everywhere.
#[derive(Debug, Default)]
pub(super) struct Breakers {
    by_key: HashMap<Key, Breaker>,
    /// Whose call each host failed last: one that fails again and again says no more about the host.
    failed_last: HashMap<Key, Whose>,
}

impl Breakers {
    /// Asks for a call. `Err` names the time to ask again, or `None`: when a call in flight ends.
    pub(super) fn acquire(&mut self, key: Key, now_ms: u64) -> Result<(), Option<u64>> {
        if key.kind == Kind::Host {
            self.by_key
                .entry(key)
                .or_insert_with(|| Breaker::new(HOST_CALLS_MAX));
        }
        let Some(breaker) = self.by_key.get_mut(&key) else {
            return Ok(());
        };
        let was = breaker.state();
        breaker.acquire(now_ms)?;
        report(key, was, breaker.state());
        Ok(())
    }

    /// A call that was asked for was not made.
    pub(super) fn give_back(&mut self, key: Key) {
        if let Some(breaker) = self.by_key.get_mut(&key) {
            breaker.release();
        }
    }

    /// A call ended under `key`, which has `in_flight` calls, this one among them.
    pub(super) fn teach(
        &mut self,
        key: Key,
        whose: Option<Whose>,
        in_flight: u32,
        said: Said,
        (now_ms, jitter): (u64, f64),
    ) {
        let said = match said {
            said if key.kind == Kind::Host => self.of_host(key, whose, said),
            // Nothing came to the conversation.
            Said::Failed(Failure::Connection) => Said::Nothing,
            said => said,
        };
        if key.is_conversation() && matches!(said, Said::Failed(_)) {
            self.by_key
                .entry(key)
                .or_insert_with(|| Breaker::with(HOST_CALLS_MAX, in_flight));
        }
        let Some(breaker) = self.by_key.get_mut(&key) else {
            return;
        };
        let was = breaker.state();
        match said {
            Said::Works => breaker.succeeded(now_ms),
            Said::Failed(failure) => breaker.failed(failure, now_ms, jitter),
            Said::Nothing => breaker.release(),
        }
        report(key, was, breaker.state());
    }

    /// What a call says of its host: whose failed last and fails again, nothing new.
    fn of_host(&mut self, host: Key, whose: Option<Whose>, said: Said) -> Said {
        match (said, whose) {
            (Said::Failed(Failure::Server), Some(whose)) => {
                match self.failed_last.insert(host, whose) {
                    Some(last) if last == whose => Said::Nothing,
                    _ => said,
                }
            }
            (Said::Works, _) => {
                self.failed_last.remove(&host);
                said
            }
            _ => said,
        }
    }

    pub(super) fn state(&self, key: Key) -> Option<State> {
        self.by_key.get(&key).map(Breaker::state)
    }

    /// How many calls would pass now.
    pub(super) fn capacity(&self, key: Key, now_ms: u64) -> usize {
        let breaker = self.by_key.get(&key);
        breaker.map_or(HOST_CALLS_MAX as usize, |one| one.capacity(now_ms))
    }

    /// Forgets conversations that nobody has written to for long; returns the kinds that are held back now.
    pub(super) fn sweep(&mut self, now_ms: u64) -> BTreeSet<Kind> {
        let mut held = BTreeSet::new();
        self.by_key.retain(|key, breaker| {
            if breaker.state() != State::Closed {
                held.insert(key.kind);
            }
            key.kind == Kind::Host || !breaker.is_forgotten(now_ms)
        });
        held
    }
}

fn report(key: Key, was: State, is: State) {
    if was.number() == is.number() {
        return;
    }
    if key.kind == Kind::Host {
        crate::metrics::breaker(super::host_name(key), is.number());
    } else {
        crate::metrics::breaker_of_many(key.kind.label(), is.number());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::limit::{Limits, Rules};

    const NOW_MS: u64 = 1_000_000;
    const ROBOT: Key = Key {
        kind: Kind::Robot,
        id: 1,
    };

    fn fails(limits: &mut Limits, keys: &[Key], failure: Failure, now_ms: u64) {
        limits.acquire(keys, true, now_ms).unwrap();
        limits.release(keys, Said::Failed(failure), now_ms, 0.5);
    }

    #[test]
    fn a_conversation_that_fails_five_times_waits_alone() {
        let mut limits = Limits::new(Rules::default());
        let host = Key::new(Kind::Host, 1);
        let [broken, sound] = [1, 2].map(|n| [host, Key::new(Kind::Chat, n)]);
        for _ in 0..5 {
            fails(&mut limits, &broken, Failure::Server, NOW_MS);
            limits.acquire(&sound, true, NOW_MS).unwrap();
            limits.release(&sound, Said::Works, NOW_MS, 0.5);
        }
        let full = limits.acquire(&broken, true, NOW_MS).unwrap_err();
        assert_eq!((full.key, full.until_ms), (broken[1], NOW_MS + 5_000));
        assert_eq!(limits.capacity(broken[1], NOW_MS), 0);
        assert_eq!(limits.free_at(broken[1], true, NOW_MS), NOW_MS + 5_000);
        assert!(limits.sweep(NOW_MS).contains(&Kind::Chat));
        limits.acquire(&sound, true, NOW_MS).unwrap();
        // One probe at a time; after three that passed it is as it was.
        for _ in 0..3 {
            limits.acquire(&broken, true, NOW_MS + 5_000).unwrap();
            assert!(limits.acquire(&broken, true, NOW_MS + 5_000).is_err());
            limits.release(&broken, Said::Works, NOW_MS + 5_000, 0.5);
        }
        assert!(limits.sweep(NOW_MS + 5_000).is_empty());
        let sweep_ms = NOW_MS + 400_000;
        assert!(limits.sweep(sweep_ms).is_empty());
        assert_eq!(limits.breakers.by_key.len(), 1, "the host's");
    }

    #[test]
    fn a_conversation_that_fails_alone_does_not_take_the_host_with_it() {
        let mut limits = Limits::new(Rules::default());
        let host = Key::new(Kind::Host, 1);
        let [broken, sound] = [1, 2].map(|n| [host, Key::new(Kind::Chat, n)]);
        let mut now_ms = NOW_MS;
        for _ in 0..20 {
            now_ms = limits.free_at(broken[1], true, now_ms);
            fails(&mut limits, &broken, Failure::Server, now_ms);
        }
        assert!(limits.is_open(broken[1]) && !limits.is_open(host));
        limits.acquire(&sound, true, now_ms).unwrap();
        // Two that fail in turn are the host's trouble.
        let mut limits = Limits::new(Rules::default());
        for n in 0..5 {
            let other = [host, Key::new(Kind::Chat, n)];
            fails(&mut limits, &other, Failure::Server, NOW_MS);
        }
        assert!(limits.is_open(host));
    }

    /// Or a change of a card: neither is for a conversation.
    #[test]
    fn a_message_to_people_that_fails_alone_does_not_open_the_host() {
        let mut limits = Limits::new(Rules::default());
        let host = [Key::new(Kind::Host, 1)];
        let said = Said::Failed(Failure::Server);
        for _ in 0..20 {
            limits.acquire(&host, true, NOW_MS).unwrap();
            limits.release_of(Some(7), &host, said, NOW_MS, 0.5);
        }
        assert!(!limits.is_open(host[0]));
        for seq in 0..4 {
            limits.acquire(&host, true, NOW_MS).unwrap();
            limits.release_of(Some(seq), &host, said, NOW_MS, 0.5);
        }
        assert!(limits.is_open(host[0]));
    }

    #[test]
    fn a_conversation_that_fails_half_of_the_time_waits_as_well() {
        let mut limits = Limits::new(Rules::default());
        let keys = [Key::new(Kind::Host, 1), Key::new(Kind::Chat, 1)];
        for n in 0..20 {
            if n % 2 == 0 {
                fails(&mut limits, &keys, Failure::Server, NOW_MS + n);
            } else {
                limits.acquire(&keys, true, NOW_MS + n).unwrap();
                limits.release(&keys, Said::Works, NOW_MS + n, 0.5);
            }
        }
        fails(&mut limits, &keys, Failure::Server, NOW_MS + 20);
        assert!(limits.is_open(keys[1]));
    }

    #[test]
    fn a_host_that_is_not_reached_says_nothing_of_a_conversation() {
        let mut limits = Limits::new(Rules::default());
        let keys = [Key::new(Kind::Host, 1), ROBOT];
        for _ in 0..5 {
            fails(&mut limits, &keys, Failure::Connection, NOW_MS);
        }
        assert!(limits.is_open(keys[0]) && !limits.is_open(ROBOT));
    }
}
