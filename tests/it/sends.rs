//! Millions of simulated sends with random latencies and crashes: DingTalk, which counts what arrives, never
//! sees more in a window than it allows.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, VecDeque};

use dingd::egress::breakers::Said;
use dingd::egress::limit::{Key, Kind, Limits, Rule, Rules};

use crate::support::{Dice, long};

const ROBOTS: u64 = 400;
const APPS: u64 = 4;
const CHATS: u64 = 20;
/// What all may send together in 20 s: DingTalk's own, filled by the first rush, and less than they ever want.
const ADDRESS: [u32; 2] = [8_000, 2_000];
/// What had left when the process died arrives this much later at the most, in milliseconds.
const STRAY_MS: u64 = 90;

/// DingTalk's own: calls, window in milliseconds; and our margin.
fn rule(kind: Kind, address: u32) -> (u32, u64, u64) {
    match kind {
        Kind::Robot | Kind::Chat => (20, 60_000, 1_000),
        Kind::AppApi => (20, 1_000, 100),
        _ => (address, 20_000, 1_000),
    }
}

fn rules(address: u32) -> Rules {
    let kinds = [Kind::Robot, Kind::Chat, Kind::AppApi, Kind::Egress];
    let one = |kind| {
        let (count, window_ms, margin_ms) = rule(kind, address);
        let rule = Rule {
            count,
            window_ms,
            reserve_critical: count / 4,
            margin_ms,
            shadow: false,
        };
        (kind, rule)
    };
    Rules(kinds.map(one).into())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Arrives,
    Ends,
}

struct World {
    dice: Dice,
    address: u32,
    now_ms: u64,
    limits: Limits,
    /// By time: what happens to which send.
    agenda: BinaryHeap<Reverse<(u64, What, u64)>>,
    in_flight: HashMap<u64, Vec<Key>>,
    /// Intents and results on disk: when it ended, if that is known.
    disk: VecDeque<(u64, Vec<Key>)>,
    seen: HashMap<Key, VecDeque<u64>>,
    /// Which limits held a send back.
    full: BTreeSet<Kind>,
    sent: u64,
    crashes: u64,
}

impl World {
    fn new(seed: u64, address: u32) -> Self {
        Self {
            dice: Dice::new(seed),
            address,
            now_ms: 86_400_000,
            limits: Limits::new(rules(address)),
            agenda: BinaryHeap::new(),
            in_flight: HashMap::new(),
            disk: VecDeque::new(),
            seen: HashMap::new(),
            full: BTreeSet::new(),
            sent: 0,
            crashes: 0,
        }
    }

    /// A webhook has its robot's limit, an app's call that of its app and API, to a group that of the group.
    fn keys(&mut self) -> Vec<Key> {
        let pick = self.dice.below(ROBOTS + 40);
        if pick < ROBOTS {
            return vec![Key::EGRESS, Key::new(Kind::Robot, pick)];
        }
        let mut keys = vec![Key::EGRESS, Key::new(Kind::AppApi, pick % APPS)];
        if pick.is_multiple_of(2) {
            keys.push(Key::new(Kind::Chat, self.dice.below(CHATS)));
        }
        keys
    }

    fn step(&mut self) {
        self.now_ms += self.dice.below(3);
        while let Some(Reverse((at_ms, what, send))) = self.agenda.peek().copied()
            && at_ms <= self.now_ms
        {
            self.agenda.pop();
            let Some(keys) = self.in_flight.get(&send).cloned() else {
                continue;
            };
            match what {
                What::Arrives => self.arrive(&keys, at_ms),
                What::Ends => {
                    self.in_flight.remove(&send);
                    self.limits.release(&keys, Said::Works, at_ms, 0.5);
                    self.disk.push_back((at_ms, keys));
                }
            }
        }
        let keys = self.keys();
        let critical = self.dice.below(5) == 0;
        let acquired = self.limits.acquire(&keys, critical, self.now_ms);
        if let Err(full) = acquired {
            self.full.insert(full.key.kind);
        } else {
            self.sent += 1;
            let slow = if self.dice.below(200) == 0 {
                30_000
            } else {
                400
            };
            let latency_ms = 1 + self.dice.below(slow);
            let arrives_ms = self.now_ms + self.dice.below(latency_ms + 1);
            let ends_ms = self.now_ms + latency_ms;
            self.in_flight.insert(self.sent, keys);
            self.agenda
                .push(Reverse((arrives_ms, What::Arrives, self.sent)));
            self.agenda.push(Reverse((ends_ms, What::Ends, self.sent)));
        }
        if self.dice.below(40_000) == 0 {
            self.crash();
        }
    }

    /// The process dies, and starts again from what is on disk.
    fn crash(&mut self) {
        self.crashes += 1;
        let died_ms = self.now_ms;
        // A process that is gone sends no more; what had left already arrives.
        let mut strays: Vec<_> = std::mem::take(&mut self.agenda)
            .into_iter()
            .filter(|Reverse((at_ms, what, _))| {
                *what == What::Arrives && *at_ms <= died_ms + STRAY_MS
            })
            .collect();
        strays.sort_unstable_by_key(|Reverse(stray)| *stray);
        for Reverse((at_ms, _, send)) in strays {
            let keys = self.in_flight[&send].clone();
            self.arrive(&keys, at_ms);
        }
        self.now_ms += self.dice.below(5_000);
        self.limits = Limits::new(rules(self.address));
        self.disk
            .retain(|(ended_ms, _)| ended_ms + 90_000 > died_ms);
        let unknown = std::mem::take(&mut self.in_flight).into_values();
        let unknown: Vec<_> = unknown.map(|keys| (self.now_ms, keys)).collect();
        self.disk.extend(unknown);
        for (ended_ms, keys) in &mut self.disk {
            // The result was still on its way to the disk.
            let lost = *ended_ms + 200 > died_ms && self.dice.below(2) == 0;
            if lost {
                *ended_ms = self.now_ms;
            }
            for key in keys {
                self.limits.charge(*key, *ended_ms);
            }
        }
    }

    fn arrive(&mut self, keys: &[Key], at_ms: u64) {
        for key in keys {
            let (count, window_ms, _) = rule(key.kind, self.address);
            let seen = self.seen.entry(*key).or_default();
            // Strays of a dead process may come out of order by a little.
            let place = seen.partition_point(|known| *known <= at_ms);
            seen.insert(place, at_ms);
            if seen.len() > count as usize {
                let first_ms = seen.pop_front().unwrap();
                let last_ms = seen.back().unwrap();
                assert!(
                    last_ms - first_ms >= window_ms,
                    "{} calls of {key:?} from {first_ms} to {last_ms} ms, after {} sends and {} crashes",
                    count + 1,
                    self.sent,
                    self.crashes
                );
            }
        }
    }
}

#[test]
fn no_limit_is_passed_in_millions_of_sends_with_random_crashes() {
    let sends = if long() { 10_000_000 } else { 200_000 };
    for (seed, address) in (20_261_125..).zip(ADDRESS) {
        let mut world = World::new(seed, address);
        while world.sent < sends / 2 {
            world.step();
        }
        eprintln!("{} sends, {} crashes", world.sent, world.crashes);
        assert!(world.crashes > 0);
        let all = [Kind::Robot, Kind::Chat, Kind::AppApi, Kind::Egress];
        assert_eq!(world.full, all.into(), "each limit was reached");
    }
}
