//! Limits: how many calls may end within a window, as DingTalk sees it; pauses; breakers.
//!
//! A window is exact and sliding. DingTalk counts when a call *arrives*, which is some time between
//! our sending it and its answer; so a call holds its place while it is in flight and ages from the
//! end of the attempt, and every window is longer than DingTalk's by a margin. Time is monotonic and
//! comes in as a value.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use super::breakers::{Breakers, Said, Whose};
use super::ends::Ends;
use super::pause::Pause;
use crate::delivery::breaker::State;
use crate::delivery::verdict::Wait;

/// Calls in flight to one host.
pub(super) const HOST_CALLS_MAX: u32 = 64;
/// When only calls in flight stand in the way: look again after this, in milliseconds.
const LOOK_AGAIN_MS: u64 = 50;
/// From this share of its places on, of those that the call may take, a limit is near, in percent.
const NEAR_PERCENT: usize = 80;

/// What a limit covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One custom robot.
    Robot,
    /// The enterprise robot in one conversation.
    Chat,
    /// One API of one app.
    AppApi,
    /// One app.
    App,
    /// One API for all apps.
    Api,
    /// The organisation.
    Organisation,
    /// Everything through this address.
    Egress,
    /// One host of DingTalk: a breaker, not a count.
    Host,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 8] = [
        Self::Robot,
        Self::Chat,
        Self::AppApi,
        Self::App,
        Self::Api,
        Self::Organisation,
        Self::Egress,
        Self::Host,
    ];

    /// The name in metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Robot => "robot",
            Self::Chat => "chat",
            Self::AppApi => "app_api",
            Self::App => "app",
            Self::Api => "api",
            Self::Organisation => "organisation",
            Self::Egress => "egress",
            Self::Host => "host",
        }
    }
}

/// One limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    /// What it covers.
    pub kind: Kind,
    /// Digest of which one.
    pub id: u64,
}

impl Key {
    /// The one address.
    pub const EGRESS: Self = Self {
        kind: Kind::Egress,
        id: 0,
    };

    /// A key.
    pub fn new(kind: Kind, id: u64) -> Self {
        Self { kind, id }
    }

    /// Whether calls under it are for one group or robot.
    pub fn is_conversation(self) -> bool {
        matches!(self.kind, Kind::Chat | Kind::Robot)
    }

    /// Nine bytes for the disk.
    pub fn bytes(self) -> Vec<u8> {
        let kind = Kind::ALL
            .iter()
            .position(|kind| *kind == self.kind)
            .unwrap_or_default();
        let mut bytes = vec![u8::try_from(kind).unwrap_or(u8::MAX)];
        bytes.extend_from_slice(&self.id.to_be_bytes());
        bytes
    }

    /// Reads [`Self::bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (kind, id) = bytes.split_first()?;
        let kind = *Kind::ALL.get(usize::from(*kind))?;
        Some(Self {
            kind,
            id: u64::from_be_bytes(id.try_into().ok()?),
        })
    }
}

/// How much one kind of limit allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Calls within the window.
    pub count: u32,
    /// The window as DingTalk has it, in milliseconds.
    pub window_ms: u64,
    /// Of `count`, only for critical messages.
    pub reserve_critical: u32,
    /// How much longer our window is, in milliseconds.
    pub margin_ms: u64,
    /// Count and report, but let pass.
    pub shadow: bool,
}

impl Rule {
    fn allows(&self, critical: bool) -> u32 {
        if critical {
            self.count
        } else {
            self.count.saturating_sub(self.reserve_critical)
        }
    }

    /// Our window.
    fn longest_ms(&self) -> u64 {
        self.window_ms + self.margin_ms
    }
}

/// All rules. A kind without one is only ever paused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules(pub BTreeMap<Kind, Rule>);

/// A call must wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full {
    /// For which limit.
    pub key: Key,
    /// When to ask again (monotonic milliseconds).
    pub until_ms: u64,
}

/// How a limit stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Which kind.
    pub kind: Kind,
    /// Calls that it allows within its window.
    pub count: u32,
    /// The window as DingTalk has it, in milliseconds.
    pub window_ms: u64,
    /// Calls that it allows now.
    pub left: u32,
    /// Until it allows as many as it ever does, in milliseconds.
    pub resets_in_ms: u64,
}

/// All limits. `now_ms` is monotonic everywhere.
#[derive(Debug)]
pub struct Limits {
    rules: Rules,
    gates: HashMap<Key, Gate>,
    pauses: HashMap<Key, Pause>,
    pub(super) breakers: Breakers,
}

#[derive(Debug, Default)]
struct Gate {
    /// Ends of calls within the window, oldest first.
    ended: Ends,
    in_flight: u32,
}

impl Limits {
    /// Nothing used.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            gates: HashMap::new(),
            pauses: HashMap::new(),
            breakers: Breakers::default(),
        }
    }

    /// Other rules from now on.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// The longest window with its margin, in milliseconds.
    pub fn longest_ms(&self) -> u64 {
        self.rules
            .0
            .values()
            .map(Rule::longest_ms)
            .max()
            .unwrap_or(0)
    }

    /// Takes a place in every limit of `keys`, or in none.
    pub fn acquire(&mut self, keys: &[Key], critical: bool, now_ms: u64) -> Result<(), Full> {
        for key in keys {
            let checked = self.check(*key, critical, now_ms);
            if checked.is_err() || self.is_over(*key, critical) {
                crate::metrics::rate_limited(key.kind.label());
            }
            checked?;
        }
        for key in keys {
            if let Err(until_ms) = self.breakers.acquire(*key, now_ms) {
                // Undo what was taken.
                let until_ms = until_ms.unwrap_or(now_ms + LOOK_AGAIN_MS);
                let taken: Vec<_> = keys.iter().copied().take_while(|k| k != key).collect();
                self.give_back(&taken);
                return Err(Full {
                    key: *key,
                    until_ms,
                });
            }
            if key.kind != Kind::Host {
                let gate = self.gates.entry(*key).or_default();
                gate.in_flight += 1;
                if let Some(rule) = self.rules.0.get(&key.kind)
                    && gate.used() * 100 >= rule.allows(critical) as usize * NEAR_PERCENT
                {
                    crate::metrics::near_limit(key.kind.label());
                }
            }
        }
        Ok(())
    }

    /// How the counted limits of `keys` stand for a message that is `critical` or not.
    pub fn standing(&mut self, keys: &[Key], critical: bool, now_ms: u64) -> Vec<Standing> {
        let mut all = vec![];
        for key in keys {
            let Some(rule) = self.rules.0.get(&key.kind).copied() else {
                continue;
            };
            let mut standing = Standing {
                kind: key.kind,
                count: rule.allows(critical),
                window_ms: rule.window_ms,
                left: rule.allows(critical),
                resets_in_ms: 0,
            };
            if let Some(gate) = self.gates.get_mut(key) {
                gate.age(rule, now_ms);
                let used = u32::try_from(gate.used()).unwrap_or(u32::MAX);
                standing.left = standing.count.saturating_sub(used);
                let last_ms = gate.ended.newest();
                let last_ms = if gate.in_flight > 0 {
                    Some(now_ms)
                } else {
                    last_ms
                };
                let aged_ms = last_ms.map_or(0, |end_ms| end_ms + rule.longest_ms());
                standing.resets_in_ms = aged_ms.saturating_sub(now_ms);
            }
            if let Some(pause) = self.pauses.get(key).filter(|pause| pause.holds(now_ms)) {
                let left_ms = pause.until_ms().saturating_sub(now_ms);
                standing.resets_in_ms = standing.resets_in_ms.max(left_ms);
                standing.left = 0;
            }
            all.push(standing);
        }
        all
    }

    fn check(&mut self, key: Key, critical: bool, now_ms: u64) -> Result<(), Full> {
        if let Some(until_ms) = self.paused_until(key, now_ms) {
            return Err(Full { key, until_ms });
        }
        let rule = self.rules.0.get(&key.kind).copied();
        let (Some(rule), Some(gate)) = (rule, self.gates.get_mut(&key)) else {
            return Ok(());
        };
        gate.age(rule, now_ms);
        let allowed = rule.allows(critical);
        let used = gate.used();
        if used < allowed as usize {
            return Ok(());
        }
        if rule.shadow {
            return Ok(());
        }
        // As many must age as are too many, plus one.
        let surplus = used - allowed as usize;
        let until_ms = gate
            .ended
            .get(surplus)
            .map_or(now_ms + LOOK_AGAIN_MS, |end_ms| end_ms + rule.longest_ms());
        Err(Full {
            key,
            until_ms: until_ms.max(now_ms + 1),
        })
    }

    /// Whether a limit that only counts would have made a call wait.
    fn is_over(&self, key: Key, critical: bool) -> bool {
        let shadow = self.rules.0.get(&key.kind).filter(|rule| rule.shadow);
        let full = |rule: &Rule| {
            let used = self.gates.get(&key).map_or(0, Gate::used);
            used >= rule.allows(critical) as usize
        };
        shadow.is_some_and(full)
    }

    /// A call ended: its place ages from now. `said` is what it says about the host and, if that was
    /// reached, about the conversation.
    pub fn release(&mut self, keys: &[Key], said: Said, now_ms: u64, jitter: f64) {
        self.release_of(None, keys, said, now_ms, jitter);
    }

    /// As [`Self::release`], of a call of `message`.
    pub(super) fn release_of(
        &mut self,
        message: Option<u64>,
        keys: &[Key],
        said: Said,
        now_ms: u64,
        jitter: f64,
    ) {
        let conversation = keys.iter().find(|key| key.is_conversation());
        let whose = conversation.map(|key| Whose::Conversation(*key));
        let whose = whose.or(message.map(Whose::Message));
        for key in keys {
            let in_flight = self.gates.get(key).map_or(0, |gate| gate.in_flight);
            self.breakers
                .teach(*key, whose, in_flight, said, (now_ms, jitter));
            if key.kind == Kind::Host {
                continue;
            }
            let counted = self.rules.0.contains_key(&key.kind);
            if let Some(gate) = self.gates.get_mut(key) {
                gate.in_flight = gate.in_flight.saturating_sub(1);
                if counted {
                    gate.ended.add(now_ms);
                }
            }
            if !matches!(said, Said::Failed(_))
                && let Some(pause) = self.pauses.get_mut(key)
            {
                pause.answered(now_ms);
            }
        }
    }

    /// A place was taken but no call was made.
    pub fn give_back(&mut self, keys: &[Key]) {
        for key in keys {
            self.breakers.give_back(*key);
            if let Some(gate) = self.gates.get_mut(key) {
                gate.in_flight = gate.in_flight.saturating_sub(1);
            }
        }
    }

    /// A call that ended at `end_ms`, before this process started.
    pub fn charge(&mut self, key: Key, end_ms: u64) {
        if self.rules.0.contains_key(&key.kind) {
            self.gates.entry(key).or_default().ended.add(end_ms);
        }
    }

    /// Stops everything under `key`. Returns until when, and what the next stop grows from.
    pub fn pause(&mut self, key: Key, wait: Wait, now_ms: u64, wall_ms: u64) -> (u64, u64) {
        let pause = self.stop(key);
        let until_ms = pause.begin(wait, now_ms, wall_ms);
        (until_ms, pause.step_ms())
    }

    /// As [`Self::pause`], until an operator has cured something: a reload may end it.
    pub fn block(&mut self, key: Key, wait: Wait, now_ms: u64, wall_ms: u64) -> (u64, u64) {
        let pause = self.stop(key);
        let until_ms = pause.block(wait, now_ms, wall_ms);
        (until_ms, pause.step_ms())
    }

    /// Lets those that were paused try again: of these kinds all, of others what can be cured. Returns which.
    pub fn clear_pauses(&mut self, kinds: &[Kind]) -> Vec<Key> {
        let mut cleared = vec![];
        for (key, pause) in &mut self.pauses {
            if kinds.contains(&key.kind) || pause.is_curable() {
                pause.clear();
                cleared.push(*key);
            }
        }
        cleared
    }

    /// Whether calls to this host are held back.
    pub fn is_open(&self, key: Key) -> bool {
        let state = self.breakers.state(key);
        state.is_some_and(|state| state != State::Closed)
    }

    /// A pause that was read back from disk goes on, with what [`Self::pause`] returned.
    pub fn resume_pause(&mut self, key: Key, until_ms: u64, step_ms: u64) {
        self.stop(key).resume(until_ms, step_ms);
    }

    /// How many calls `key` allows now.
    pub fn capacity(&mut self, key: Key, now_ms: u64) -> usize {
        let breaker = self.breakers.capacity(key, now_ms);
        if key.kind == Kind::Host || breaker == 0 {
            return breaker;
        }
        if self.check(key, true, now_ms).is_err() {
            return 0;
        }
        let rule = self.rules.0.get(&key.kind).filter(|rule| !rule.shadow);
        let (Some(rule), Some(gate)) = (rule, self.gates.get(&key)) else {
            return breaker;
        };
        let left = (rule.count as usize).saturating_sub(gate.used());
        let slow = self.pauses.get(&key).and_then(Pause::at_a_time);
        let slow = slow.map(|calls| calls.saturating_sub(gate.in_flight));
        left.min(slow.map_or(usize::MAX, |calls| calls as usize))
            .min(breaker)
    }

    /// When those who wait for `key` should try again; always later than now.
    pub fn free_at(&mut self, key: Key, critical: bool, now_ms: u64) -> u64 {
        if let Some(State::Open { until_ms }) = self.breakers.state(key)
            && until_ms > now_ms
        {
            return until_ms;
        }
        match self.check(key, critical, now_ms) {
            Ok(()) => now_ms + LOOK_AGAIN_MS,
            Err(full) => full.until_ms.max(now_ms + 1),
        }
    }

    /// Forgets what is idle; returns the kinds that are paused now.
    pub fn sweep(&mut self, now_ms: u64) -> BTreeSet<Kind> {
        let mut paused = self.breakers.sweep(now_ms);
        self.pauses.retain(|key, pause| {
            if pause.holds(now_ms) {
                paused.insert(key.kind);
            }
            !pause.is_over(now_ms)
        });
        let rules = &self.rules;
        self.gates.retain(|key, gate| {
            if let Some(rule) = rules.0.get(&key.kind) {
                gate.age(*rule, now_ms);
            }
            gate.in_flight > 0 || !gate.ended.is_empty()
        });
        paused
    }

    fn stop(&mut self, key: Key) -> &mut Pause {
        let pause = self.pauses.entry(key).or_default();
        if key.kind == Kind::Egress {
            pause.probe_after();
        }
        pause
    }

    /// When to ask again, if `key` is paused or its calls begin again with as many as are under way.
    fn paused_until(&self, key: Key, now_ms: u64) -> Option<u64> {
        let pause = self.pauses.get(&key)?;
        if pause.holds(now_ms) {
            return Some(pause.until_ms());
        }
        let calls = pause.at_a_time()?;
        let in_flight = self.gates.get(&key).map_or(0, |gate| gate.in_flight);
        (in_flight >= calls).then_some(now_ms + LOOK_AGAIN_MS)
    }
}

impl Gate {
    fn used(&self) -> usize {
        self.ended.len() + self.in_flight as usize
    }

    fn age(&mut self, rule: Rule, now_ms: u64) {
        while self
            .ended
            .get(0)
            .is_some_and(|end_ms| end_ms + rule.longest_ms() <= now_ms)
        {
            self.ended.forget_oldest();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::delivery::breaker::Failure;

    const ROBOT: Key = Key {
        kind: Kind::Robot,
        id: 1,
    };
    const NOW_MS: u64 = 1_000_000;

    fn limits(count: u32, reserve_critical: u32) -> Limits {
        let rule = Rule {
            count,
            window_ms: 60_000,
            reserve_critical,
            margin_ms: 1_000,
            shadow: false,
        };
        Limits::new(Rules([(Kind::Robot, rule)].into()))
    }

    fn call(limits: &mut Limits, critical: bool, now_ms: u64) -> Result<(), Full> {
        limits.acquire(&[ROBOT], critical, now_ms)?;
        limits.release(&[ROBOT], Said::Nothing, now_ms, 0.5);
        Ok(())
    }

    #[test]
    fn the_twenty_first_call_waits_until_the_first_has_aged() {
        let mut limits = limits(20, 0);
        for i in 0..20 {
            call(&mut limits, false, NOW_MS + i).unwrap();
        }
        let full = call(&mut limits, false, NOW_MS + 100).unwrap_err();
        assert_eq!(
            full,
            Full {
                key: ROBOT,
                until_ms: NOW_MS + 61_000
            }
        );
        assert!(call(&mut limits, false, full.until_ms - 1).is_err());
        assert!(call(&mut limits, false, full.until_ms).is_ok());
    }

    #[test]
    fn the_reserve_is_only_for_critical_messages() {
        let mut limits = limits(20, 5);
        for _ in 0..15 {
            call(&mut limits, false, NOW_MS).unwrap();
        }
        assert!(call(&mut limits, false, NOW_MS).is_err());
        for _ in 0..5 {
            call(&mut limits, true, NOW_MS).unwrap();
        }
        assert!(call(&mut limits, true, NOW_MS).is_err());
    }

    #[test]
    fn a_call_in_flight_holds_its_place_and_ages_from_its_end() {
        let mut limits = limits(1, 0);
        limits.acquire(&[ROBOT], false, NOW_MS).unwrap();
        assert!(limits.acquire(&[ROBOT], false, NOW_MS + 90_000).is_err());
        limits.release(&[ROBOT], Said::Nothing, NOW_MS + 90_000, 0.5);
        assert_eq!(
            limits
                .acquire(&[ROBOT], false, NOW_MS + 90_001)
                .unwrap_err()
                .until_ms,
            NOW_MS + 151_000
        );
    }

    #[test]
    fn charges_from_before_the_start_count() {
        let mut limits = limits(2, 0);
        limits.charge(ROBOT, NOW_MS - 10_000);
        limits.charge(ROBOT, NOW_MS - 50_000);
        assert_eq!(
            call(&mut limits, false, NOW_MS).unwrap_err().until_ms,
            NOW_MS + 11_000
        );
    }

    #[test]
    fn a_growing_pause_doubles_while_it_recurs() {
        let mut limits = limits(20, 0);
        let mut now_ms = NOW_MS;
        let mut spans = vec![];
        for _ in 0..3 {
            let (until_ms, _) = limits.pause(ROBOT, Wait::Growing(60_000), now_ms, 0);
            spans.push(until_ms - now_ms);
            assert_eq!(
                call(&mut limits, true, now_ms).unwrap_err().until_ms,
                until_ms
            );
            now_ms = until_ms;
        }
        assert_eq!(spans, [60_000, 120_000, 240_000]);
        let (later, _) = limits.pause(ROBOT, Wait::Growing(60_000), now_ms + 900_000, 0);
        assert_eq!(later, now_ms + 960_000, "a long quiet time starts over");
        // A restart knows how far it has grown.
        let mut limits = self::limits(20, 0);
        limits.resume_pause(ROBOT, now_ms, 240_000);
        let (until_ms, step_ms) = limits.pause(ROBOT, Wait::Growing(60_000), now_ms, 0);
        assert_eq!((until_ms - now_ms, step_ms), (480_000, 480_000));
    }

    #[test]
    fn many_answers_of_one_moment_pause_once() {
        let mut limits = limits(20, 0);
        for _ in 0..10 {
            limits.pause(ROBOT, Wait::Growing(1_000), NOW_MS, 0);
        }
        assert_eq!(
            call(&mut limits, true, NOW_MS).unwrap_err().until_ms,
            NOW_MS + 1_000
        );
        let (again, _) = limits.pause(ROBOT, Wait::Growing(1_000), NOW_MS + 1_000, 0);
        assert_eq!(
            again,
            NOW_MS + 3_000,
            "but again right after it, and it grows"
        );
    }

    #[test]
    fn after_a_ban_one_call_probes_and_then_twice_as_many() {
        let mut limits = Limits::new(Rules::default());
        let keys = [Key::EGRESS];
        limits.acquire(&keys, true, NOW_MS).unwrap();
        limits.release(&keys, Said::Nothing, NOW_MS, 0.5);
        limits.pause(Key::EGRESS, Wait::Fixed(300_000), NOW_MS, 0);
        assert!(limits.acquire(&keys, true, NOW_MS + 299_999).is_err());
        let mut now_ms = NOW_MS + 300_000;
        for expected in [1, 2, 4, 8, 16, 32] {
            let mut calls = 0;
            while limits.acquire(&keys, true, now_ms).is_ok() {
                calls += 1;
            }
            assert_eq!(calls, expected);
            now_ms += 100;
            (0..calls).for_each(|_| limits.release(&keys, Said::Works, now_ms, 0.5));
        }
        (0..200).for_each(|_| limits.acquire(&keys, true, now_ms).unwrap());
    }

    /// Many are under way when the first answer says that we are banned; those that were let through just
    /// before it are answered after it.
    #[test]
    fn after_a_ban_the_answers_of_calls_that_left_before_it_are_no_probe() {
        let mut limits = Limits::new(Rules::default());
        let keys = [Key::EGRESS];
        (0..100).for_each(|_| limits.acquire(&keys, true, NOW_MS).unwrap());
        limits.release(&keys, Said::Nothing, NOW_MS, 0.5);
        limits.pause(Key::EGRESS, Wait::Fixed(300_000), NOW_MS, 0);
        for _ in 1..100 {
            limits.release(&keys, Said::Works, NOW_MS + 1, 0.5);
        }
        limits.acquire(&keys, true, NOW_MS + 300_000).unwrap();
        assert!(limits.acquire(&keys, true, NOW_MS + 300_000).is_err());
    }

    #[test]
    fn after_a_ban_an_answer_that_does_not_come_is_no_proof() {
        let mut limits = Limits::new(Rules::default());
        let keys = [Key::EGRESS];
        limits.pause(Key::EGRESS, Wait::Fixed(1), NOW_MS, 0);
        for round in 1..5 {
            limits.acquire(&keys, true, NOW_MS + round).unwrap();
            assert!(limits.acquire(&keys, true, NOW_MS + round).is_err());
            limits.release(&keys, Said::Failed(Failure::Server), NOW_MS + round, 0.5);
        }
    }

    #[test]
    fn the_care_after_a_ban_outlasts_a_time_without_calls() {
        let mut limits = Limits::new(Rules::default());
        let keys = [Key::EGRESS];
        // Read back at a start.
        limits.resume_pause(Key::EGRESS, NOW_MS + 1_000, 1_000);
        limits.sweep(NOW_MS + 10_000);
        limits.acquire(&keys, true, NOW_MS + 10_000).unwrap();
        assert!(limits.acquire(&keys, true, NOW_MS + 10_000).is_err());
    }

    #[test]
    fn a_limit_tells_how_it_stands() {
        let mut limits = limits(20, 5);
        let standing = |limits: &mut Limits, critical, now_ms| {
            let standing = limits.standing(&[Key::EGRESS, ROBOT], critical, now_ms);
            let [one] = standing[..] else {
                panic!("only the robot's has a rule")
            };
            (one.count, one.left, one.resets_in_ms)
        };
        assert_eq!(standing(&mut limits, false, NOW_MS), (15, 15, 0));
        for i in 0..10 {
            call(&mut limits, false, NOW_MS + i).unwrap();
        }
        assert_eq!(standing(&mut limits, false, NOW_MS + 9), (15, 5, 61_000));
        assert_eq!(standing(&mut limits, true, NOW_MS + 60_999), (20, 10, 10));
        limits.pause(ROBOT, Wait::Fixed(600_000), NOW_MS, 0);
        assert_eq!(standing(&mut limits, true, NOW_MS + 9).1, 0);
    }

    #[test]
    fn a_limit_that_is_full_takes_nothing_from_the_others() {
        let other = Key {
            kind: Kind::Robot,
            id: 2,
        };
        let mut limits = limits(1, 0);
        call(&mut limits, false, NOW_MS).unwrap();
        assert!(limits.acquire(&[other, ROBOT], false, NOW_MS).is_err());
        assert!(limits.acquire(&[other], false, NOW_MS).is_ok());
    }

    #[test]
    fn a_shadow_limit_counts_but_lets_pass() {
        let mut limits = limits(1, 0);
        for rule in limits.rules.0.values_mut() {
            rule.shadow = true;
        }
        assert!((0..9).all(|_| call(&mut limits, false, NOW_MS).is_ok()));
    }

    #[test]
    fn a_key_survives_the_disk() {
        for kind in Kind::ALL {
            let key = Key::new(kind, 0xdead_beef);
            assert_eq!(Key::from_bytes(&key.bytes()), Some(key));
        }
        assert_eq!(Key::from_bytes(b"x"), None);
    }

    proptest! {
        /// As DingTalk sees it: each call arrives somewhere between its start and its end.
        #[test]
        fn no_window_holds_more_than_the_limit_whatever_the_latency(
            calls in proptest::collection::vec((0_u64..5_000, 0_u64..4_000, 0.0..1.0_f64), 1..400)
        ) {
            let mut limits = limits(20, 0);
            let mut arrivals = vec![];
            let mut pending: Vec<u64> = vec![];
            let mut now_ms = NOW_MS;
            for (gap_ms, latency_ms, share) in calls {
                now_ms += gap_ms;
                pending.sort_unstable();
                while let Some(end_ms) = pending.first().copied().filter(|end| *end <= now_ms) {
                    pending.remove(0);
                    limits.release(&[ROBOT], Said::Nothing, end_ms, 0.5);
                }
                if limits.acquire(&[ROBOT], false, now_ms).is_ok() {
                    arrivals.push(now_ms + crate::delivery::retry::scaled(latency_ms, share));
                    pending.push(now_ms + latency_ms);
                }
            }
            arrivals.sort_unstable();
            for window in arrivals.windows(21) {
                prop_assert!(window[20] - window[0] >= 60_000, "{window:?}");
            }
        }
    }
}
