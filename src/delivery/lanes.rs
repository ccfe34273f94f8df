//! Who is next: first in, first out within a lane, one in flight a lane, urgent lanes first, and
//! lanes of equal urgency in turn.
//!
//! A lane waits for exactly one thing at a time: its turn, a moment, a gate (a limit that is used
//! up), or the end of its own attempt. So the cost of a decision does not grow with what waits.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::Hash;

use super::queues::{Items, Queue};
use super::state::Priority;

/// A failing head blocks its lane no longer than this, in milliseconds; then it steps aside.
pub const HEAD_BLOCKS_MAX_MS: u64 = 300_000;

/// A lane's place in [`Lanes`]. Reused after the lane ran empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId(usize);

/// All lanes of one direction. `K` identifies a lane, `T` is an item, `G` a gate.
#[derive(Debug)]
pub struct Lanes<K, T, G> {
    slots: Vec<Lane<K>>,
    items: Items<T>,
    free: Vec<LaneId>,
    by_key: HashMap<K, LaneId>,
    ready: [Turns; Priority::COUNT],
    sleeping: BTreeSet<(u64, LaneId)>,
    parked: HashMap<G, [Turns; Priority::COUNT]>,
    /// Heads that stepped aside, due at a monotonic time.
    aside: BTreeSet<(u64, u64)>,
    aside_items: HashMap<u64, (K, Priority, T)>,
    next_aside: u64,
    /// Stepped aside for one that came back.
    displaced: Vec<T>,
}

/// Lanes of equal urgency in the order of their turns. Those with a backlog and the others alternate, so
/// that who writes one message now does not wait for all that came before.
#[derive(Debug, Default)]
struct Turns {
    fresh: VecDeque<LaneId>,
    backlog: VecDeque<LaneId>,
    fresh_is_next: bool,
}

impl Turns {
    fn push<K>(&mut self, id: LaneId, lane: &Lane<K>) {
        if lane.has_backlog {
            self.backlog.push_back(id);
        } else {
            self.fresh.push_back(id);
        }
    }

    fn pop(&mut self) -> Option<LaneId> {
        self.fresh_is_next = !self.fresh_is_next;
        let (first, second) = if self.fresh_is_next {
            (&mut self.fresh, &mut self.backlog)
        } else {
            (&mut self.backlog, &mut self.fresh)
        };
        first.pop_front().or_else(|| second.pop_front())
    }

    fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.backlog.is_empty()
    }
}

#[derive(Debug)]
struct Lane<K> {
    key: Option<K>,
    priority: Priority,
    queue: Queue,
    head_failing_since_ms: Option<u64>,
    /// Its head would block it for too long.
    steps_aside: bool,
    /// It once held several items, or was there at the start, and has not been empty since.
    has_backlog: bool,
    waits: Waits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waits {
    Nothing,
    Turn,
    /// Until this monotonic time.
    Moment(u64),
    Gate,
    Flight,
}

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Landed {
    /// The head is settled; the next one moves up.
    Settled,
    /// The head stays and is due again at this monotonic time. `failed` is false where the item
    /// itself is not to blame (a limit, a token), so that it does not have to step aside.
    Again {
        /// Monotonic milliseconds.
        due_ms: u64,
        /// Whether this was a failure of the item.
        failed: bool,
    },
}

impl<K, T, G> Default for Lanes<K, T, G> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            items: Items::default(),
            free: Vec::new(),
            by_key: HashMap::new(),
            ready: Default::default(),
            sleeping: BTreeSet::new(),
            parked: HashMap::new(),
            aside: BTreeSet::new(),
            aside_items: HashMap::new(),
            next_aside: 0,
            displaced: Vec::new(),
        }
    }
}

impl<K: Clone + Eq + Hash, T: Copy, G: Clone + Eq + Hash> Lanes<K, T, G> {
    /// Puts `item` at the end of its lane. If the lane was empty the item is due at `due_ms`
    /// (monotonic; 0 = now). Returns the head, if it fails and stepped aside for it.
    pub fn push(&mut self, key: &K, priority: Priority, item: T, due_ms: u64) -> Option<T> {
        let id = self.lane(key, priority);
        let lane = self.slots.get_mut(id.0)?;
        self.items.push_back(&mut lane.queue, item);
        lane.has_backlog |= lane.queue.len() > 1;
        match lane.waits {
            Waits::Nothing => self.sleep(id, due_ms),
            Waits::Moment(head_due_ms) if lane.steps_aside => {
                self.sleeping.remove(&(head_due_ms, id));
                let head = self.items.front(&lane.queue);
                return head.filter(|_| self.step_aside(id, head_due_ms));
            }
            _ => {}
        }
        None
    }

    /// The head of a lane, if it is `item`, steps aside for whatever comes behind it.
    pub fn let_pass(&mut self, key: &K, item: T)
    where
        T: PartialEq,
    {
        let lane = self.by_key.get(key).and_then(|id| self.slots.get_mut(id.0));
        if let Some(lane) = lane {
            lane.steps_aside = matches!(lane.waits, Waits::Moment(_))
                && self.items.front(&lane.queue) == Some(item);
        }
    }

    /// Heads that stepped aside for one that came back, since this was last asked.
    pub fn displaced(&mut self) -> Vec<T> {
        std::mem::take(&mut self.displaced)
    }

    /// Whether a lane's head waits for a time that has not come: it failed, and what comes behind it waits
    /// as well.
    pub fn is_held(&self, key: &K, now_ms: u64) -> bool {
        let lane = self.by_key.get(key).and_then(|id| self.slots.get(id.0));
        lane.is_some_and(|lane| matches!(lane.waits, Waits::Moment(due_ms) if due_ms > now_ms))
    }

    /// What is there now was read back at a start: it is a backlog.
    pub fn all_are_backlog(&mut self) {
        for lane in &mut self.slots {
            lane.has_backlog = true;
        }
        for turns in &mut self.ready {
            turns.backlog.append(&mut turns.fresh);
        }
    }

    /// The next lane whose head is due, with the head. The caller must answer with
    /// [`Self::fly`], [`Self::park`] or [`Self::drop_head`].
    pub fn next(&mut self, now_ms: u64) -> Option<(LaneId, T)> {
        self.next_of(Priority::Low, now_ms)
    }

    /// As [`Self::next`], of those that are at least as urgent as this.
    pub fn next_of(&mut self, least: Priority, now_ms: u64) -> Option<(LaneId, T)> {
        self.wake(now_ms);
        for turns in self.ready.iter_mut().take(least.index() + 1) {
            while let Some(id) = turns.pop() {
                let Some(lane) = self.slots.get_mut(id.0) else {
                    continue;
                };
                lane.waits = Waits::Nothing;
                if let Some(item) = self.items.front(&lane.queue) {
                    return Some((id, item));
                }
                // All of it was taken away while it waited.
                if let Some(key) = lane.key.take() {
                    self.by_key.remove(&key);
                    self.free.push(id);
                }
            }
        }
        None
    }

    /// The head's attempt starts.
    pub fn fly(&mut self, id: LaneId) {
        if let Some(lane) = self.slots.get_mut(id.0) {
            lane.waits = Waits::Flight;
        }
    }

    /// The lane waits until `gate` is opened by [`Self::open`].
    pub fn park(&mut self, id: LaneId, gate: G) {
        let Some(lane) = self.slots.get_mut(id.0) else {
            return;
        };
        lane.waits = Waits::Gate;
        let turns = self.parked.entry(gate).or_default();
        if let Some(turns) = turns.get_mut(lane.priority.index()) {
            turns.push(id, lane);
        }
    }

    /// Takes away from the head of a lane that is not in flight as long as they are `wanted`.
    pub fn take_while(&mut self, key: &K, mut wanted: impl FnMut(T) -> bool) -> Vec<T> {
        let lane = self.by_key.get(key).and_then(|id| self.slots.get_mut(id.0));
        let mut taken = vec![];
        if let Some(lane) = lane.filter(|lane| lane.waits != Waits::Flight) {
            while let Some(item) = self.items.front(&lane.queue).filter(|item| wanted(*item)) {
                self.items.pop_front(&mut lane.queue);
                taken.push(item);
                lane.head_failing_since_ms = None;
                lane.steps_aside = false;
            }
        }
        taken
    }

    /// Puts items before all that wait in their lane; one in flight stays the head.
    pub fn put_first(&mut self, key: &K, priority: Priority, items: &[T]) {
        let id = self.lane(key, priority);
        if let Some(lane) = self.slots.get_mut(id.0) {
            let is_flying = lane.waits == Waits::Flight;
            let flying = is_flying.then(|| self.items.pop_front(&mut lane.queue));
            for item in items.iter().rev().chain(flying.flatten().iter()) {
                self.items.push_front(&mut lane.queue, *item);
            }
            if lane.waits == Waits::Nothing {
                self.sleep(id, 0);
            }
            self.wake_lane(id);
        }
    }

    /// Takes one item out of its lane, wherever it is.
    pub fn take_out(&mut self, key: &K, item: T)
    where
        T: PartialEq,
    {
        let lane = self.by_key.get(key).and_then(|id| self.slots.get_mut(id.0));
        if let Some(lane) = lane {
            if self.items.front(&lane.queue) == Some(item) {
                lane.head_failing_since_ms = None;
                lane.steps_aside = false;
            }
            self.items.retain(&mut lane.queue, |other| other != item);
        }
    }

    /// A lane whose head is due later has its turn now, if the head `is_gone`.
    pub fn wake_behind(&mut self, key: &K, is_gone: impl Fn(T) -> bool) {
        if let Some(id) = self.by_key.get(key).copied()
            && let Some(lane) = self.slots.get(id.0)
            && self.items.front(&lane.queue).is_some_and(is_gone)
        {
            self.wake_lane(id);
        }
    }

    fn wake_lane(&mut self, id: LaneId) {
        if let Some(lane) = self.slots.get(id.0)
            && let Waits::Moment(due_ms) = lane.waits
        {
            self.sleeping.remove(&(due_ms, id));
            self.sleep(id, 0);
        }
    }

    /// Puts an item before the head of a lane that has its turn.
    pub fn put_before_head(&mut self, id: LaneId, item: T) {
        if let Some(lane) = self.slots.get_mut(id.0) {
            self.items.push_front(&mut lane.queue, item);
        }
    }

    /// The head needs no attempt (it was cancelled or has expired).
    pub fn drop_head(&mut self, id: LaneId) {
        self.advance(id);
    }

    /// Lets up to `count` lanes that wait for `gate` have their turn, the urgent ones first. Returns
    /// how urgent the first is that still waits: the gate must be opened again for it.
    #[must_use]
    pub fn open(&mut self, gate: &G, count: usize) -> Option<Priority> {
        let queues = self.parked.get_mut(gate)?;
        let mut left = count;
        for (queue, ready) in queues.iter_mut().zip(&mut self.ready) {
            while left > 0
                && let Some(id) = queue.pop()
            {
                if let Some(lane) = self.slots.get_mut(id.0) {
                    lane.waits = Waits::Turn;
                    ready.push(id, lane);
                    left -= 1;
                }
            }
        }
        let waits = |(turns, priority): (&Turns, Priority)| (!turns.is_empty()).then_some(priority);
        let waiting = queues.iter().zip(Priority::ALL).find_map(waits);
        if waiting.is_none() {
            self.parked.remove(gate);
        }
        waiting
    }

    /// An attempt that [`Self::fly`] began has ended. Returns whether the head stepped aside.
    pub fn land(&mut self, id: LaneId, landed: Landed, now_ms: u64) -> bool {
        let Landed::Again { due_ms, failed } = landed else {
            self.advance(id);
            return false;
        };
        let Some(lane) = self.slots.get_mut(id.0) else {
            return false;
        };
        // A head that waited for a limit or a token is as good as one that was not tried.
        let since_ms = if failed {
            *lane.head_failing_since_ms.get_or_insert(now_ms)
        } else {
            now_ms
        };
        // Its order is lost anyway if it will not be due before the time is over.
        let blocks_ms = due_ms.max(now_ms).saturating_sub(since_ms);
        lane.steps_aside = failed && blocks_ms >= HEAD_BLOCKS_MAX_MS;
        if lane.steps_aside && self.step_aside(id, due_ms) {
            return true;
        }
        self.sleep(id, due_ms);
        false
    }

    /// The head waits beside its lane, if anything waits behind it.
    fn step_aside(&mut self, id: LaneId, due_ms: u64) -> bool {
        if let Some(lane) = self.slots.get(id.0)
            && lane.queue.len() > 1
            && let (Some(item), Some(key)) = (self.items.front(&lane.queue), lane.key.clone())
        {
            let priority = lane.priority;
            self.next_aside += 1;
            self.aside.insert((due_ms, self.next_aside));
            self.aside_items
                .insert(self.next_aside, (key, priority, item));
            self.advance(id);
            return true;
        }
        false
    }

    /// When [`Self::next`] may have something that it does not have now.
    pub fn wakes_at(&self) -> Option<u64> {
        let sleeper = self.sleeping.first().map(|(due_ms, _)| *due_ms);
        let aside = self.aside.first().map(|(due_ms, _)| *due_ms);
        [sleeper, aside].into_iter().flatten().min()
    }

    /// Whether some lane has its turn now.
    pub fn has_ready(&self) -> bool {
        self.ready.iter().any(|turns| !turns.is_empty())
    }

    fn lane(&mut self, key: &K, priority: Priority) -> LaneId {
        if let Some(id) = self.by_key.get(key) {
            return *id;
        }
        let lane = Lane {
            key: Some(key.clone()),
            priority,
            queue: Queue::EMPTY,
            head_failing_since_ms: None,
            steps_aside: false,
            has_backlog: false,
            waits: Waits::Nothing,
        };
        let id = if let Some(id) = self.free.pop() {
            if let Some(slot) = self.slots.get_mut(id.0) {
                *slot = lane;
            }
            id
        } else {
            self.slots.push(lane);
            LaneId(self.slots.len() - 1)
        };
        self.by_key.insert(key.clone(), id);
        id
    }

    /// Takes the head away; the lane goes on with the next one, or goes away.
    fn advance(&mut self, id: LaneId) {
        let Some(lane) = self.slots.get_mut(id.0) else {
            return;
        };
        self.items.pop_front(&mut lane.queue);
        lane.head_failing_since_ms = None;
        lane.steps_aside = false;
        if lane.queue.is_empty() {
            lane.waits = Waits::Nothing;
            if let Some(key) = lane.key.take() {
                self.by_key.remove(&key);
                self.free.push(id);
            }
        } else {
            self.sleep(id, 0);
        }
    }

    fn sleep(&mut self, id: LaneId, due_ms: u64) {
        let Some(lane) = self.slots.get_mut(id.0) else {
            return;
        };
        if due_ms == 0 {
            lane.waits = Waits::Turn;
            if let Some(ready) = self.ready.get_mut(lane.priority.index()) {
                ready.push(id, lane);
            }
        } else {
            lane.waits = Waits::Moment(due_ms);
            self.sleeping.insert((due_ms, id));
        }
    }

    fn wake(&mut self, now_ms: u64) {
        while let Some(&(due_ms, id)) = self.sleeping.first()
            && due_ms <= now_ms
        {
            self.sleeping.pop_first();
            self.sleep(id, 0);
        }
        while let Some(&(due_ms, aside)) = self.aside.first()
            && due_ms <= now_ms
        {
            self.aside.pop_first();
            if let Some((key, priority, item)) = self.aside_items.remove(&aside) {
                let displaced = self.push(&key, priority, item, 0);
                self.displaced.extend(displaced);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Test = Lanes<&'static str, u32, &'static str>;

    fn take(lanes: &mut Test, now_ms: u64) -> Option<(LaneId, u32)> {
        let (id, item) = lanes.next(now_ms)?;
        lanes.fly(id);
        Some((id, item))
    }

    #[test]
    fn a_lane_is_first_in_first_out_with_one_in_flight() {
        let mut lanes = Test::default();
        lanes.push(&"a", Priority::Normal, 1, 0);
        lanes.push(&"a", Priority::Normal, 2, 0);
        let (id, item) = take(&mut lanes, 0).unwrap();
        assert_eq!(item, 1);
        assert!(lanes.next(0).is_none());
        lanes.land(id, Landed::Settled, 0);
        assert_eq!(take(&mut lanes, 0).unwrap().1, 2);
    }

    #[test]
    fn urgent_lanes_overtake_and_equal_lanes_take_turns() {
        let mut lanes = Test::default();
        for (key, priority, items) in [
            ("b", Priority::Normal, [0, 1, 2]),
            ("c", Priority::Normal, [10, 11, 12]),
            ("a", Priority::Critical, [20, 21, 22]),
        ] {
            for item in items {
                lanes.push(&key, priority, item, 0);
            }
        }
        let mut order = vec![];
        while let Some((id, item)) = take(&mut lanes, 0) {
            order.push(item);
            lanes.land(id, Landed::Settled, 0);
        }
        // Whose first message was new may go twice at first; from then on they alternate.
        assert_eq!(order, [20, 21, 22, 0, 1, 10, 2, 11, 12]);
    }

    /// The second to step aside was not known to have been overtaken.
    #[test]
    fn a_head_that_makes_way_for_one_that_comes_back_is_told_of() {
        let mut lanes = Test::default();
        let later = |due_ms| Landed::Again {
            due_ms,
            failed: true,
        };
        lanes.push(&"a", Priority::Normal, 1, 0);
        lanes.push(&"a", Priority::Normal, 2, 0);
        let (id, _) = take(&mut lanes, 0).unwrap();
        assert!(lanes.land(id, later(HEAD_BLOCKS_MAX_MS), 0));
        let (id, item) = take(&mut lanes, 0).unwrap();
        assert!(item == 2 && !lanes.land(id, later(2 * HEAD_BLOCKS_MAX_MS), 0));
        assert_eq!(take(&mut lanes, HEAD_BLOCKS_MAX_MS).unwrap().1, 1);
        assert_eq!(lanes.displaced(), [2]);
        assert!(lanes.displaced().is_empty());
    }

    #[test]
    fn a_parked_lane_waits_for_its_gate_and_the_urgent_one_goes_first() {
        let mut lanes = Test::default();
        lanes.push(&"n", Priority::Normal, 1, 0);
        lanes.push(&"c", Priority::Critical, 2, 0);
        while let Some((id, _)) = lanes.next(0) {
            lanes.park(id, "robot");
        }
        assert_eq!(
            lanes.open(&"robot", 1),
            Some(Priority::Normal),
            "one still waits"
        );
        assert_eq!(take(&mut lanes, 0).unwrap().1, 2);
        assert!(lanes.next(0).is_none());
        assert_eq!(lanes.open(&"robot", 9), None);
        assert_eq!(take(&mut lanes, 0).unwrap().1, 1);
    }

    #[test]
    fn a_head_that_fails_for_five_minutes_steps_aside_and_comes_back() {
        let mut lanes = Test::default();
        lanes.push(&"a", Priority::Normal, 1, 0);
        lanes.push(&"a", Priority::Normal, 2, 0);
        let again = |due_ms| Landed::Again {
            due_ms,
            failed: true,
        };
        let (id, _) = take(&mut lanes, 0).unwrap();
        assert!(!lanes.land(id, again(299_000), 0));
        let (id, item) = take(&mut lanes, 299_000).unwrap();
        assert_eq!(item, 1);
        assert!(lanes.next(299_000).is_none(), "the head still blocks");
        assert!(lanes.land(id, again(400_000), 300_000));
        let (id, item) = take(&mut lanes, 300_000).unwrap();
        assert_eq!(item, 2);
        lanes.land(id, Landed::Settled, 300_000);
        assert_eq!(lanes.wakes_at(), Some(400_000));
        assert_eq!(take(&mut lanes, 400_000).unwrap().1, 1);
    }

    #[test]
    fn a_head_that_would_block_for_longer_than_five_minutes_steps_aside_at_once() {
        let again = |due_ms| Landed::Again {
            due_ms,
            failed: true,
        };
        let mut lanes = Test::default();
        lanes.push(&"a", Priority::Normal, 1, 0);
        lanes.push(&"a", Priority::Normal, 2, 0);
        let (id, _) = take(&mut lanes, 0).unwrap();
        assert!(
            lanes.land(id, again(3_600_000), 0),
            "DingTalk named the time"
        );
        assert_eq!(take(&mut lanes, 0).unwrap().1, 2);
        // Alone it has nobody to make room for, until somebody comes.
        let mut lanes = Test::default();
        lanes.push(&"a", Priority::Normal, 1, 0);
        let (id, _) = take(&mut lanes, 0).unwrap();
        assert!(!lanes.land(id, again(3_600_000), 0));
        assert!(lanes.next(60_000).is_none());
        assert_eq!(lanes.push(&"a", Priority::Normal, 2, 0), Some(1));
        let (id, item) = take(&mut lanes, 60_000).unwrap();
        assert_eq!(item, 2);
        let aside = lanes.push(&"a", Priority::Normal, 3, 0);
        assert_eq!(aside, None, "it does not fail");
        lanes.land(id, Landed::Settled, 60_000);
        let (id, item) = take(&mut lanes, 60_000).unwrap();
        assert_eq!(item, 3);
        lanes.land(id, Landed::Settled, 60_000);
        assert_eq!(take(&mut lanes, 3_600_000).unwrap().1, 1);
    }

    #[test]
    fn a_head_that_was_held_up_by_a_limit_does_not_step_aside_at_its_first_failure() {
        let mut lanes = Test::default();
        lanes.push(&"a", Priority::Normal, 1, 0);
        lanes.push(&"a", Priority::Normal, 2, 0);
        let again = |due_ms, failed| Landed::Again { due_ms, failed };
        let (id, _) = take(&mut lanes, 0).unwrap();
        assert!(!lanes.land(id, again(600_000, false), 0));
        let (id, item) = take(&mut lanes, 600_000).unwrap();
        assert_eq!(item, 1);
        assert!(!lanes.land(id, again(601_000, true), 600_000));
        assert_eq!(take(&mut lanes, 601_000).unwrap().1, 1);
    }

    #[test]
    fn what_is_taken_away_and_put_back_keeps_its_order() {
        let mut lanes = Test::default();
        for item in 1..=5 {
            lanes.push(&"a", Priority::Normal, item, 0);
        }
        assert_eq!(lanes.take_while(&"a", |item| item < 4), [1, 2, 3]);
        lanes.put_first(&"a", Priority::Normal, &[9]);
        let (id, item) = take(&mut lanes, 0).unwrap();
        assert_eq!(item, 9);
        assert!(
            lanes.take_while(&"a", |_| true).is_empty(),
            "9 is in flight"
        );
        lanes.put_first(&"a", Priority::Normal, &[1, 2, 3]);
        let mut order = vec![];
        lanes.land(id, Landed::Settled, 0);
        while let Some((id, item)) = take(&mut lanes, 0) {
            order.push(item);
            lanes.land(id, Landed::Settled, 0);
        }
        assert_eq!(order, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_lane_does_not_sleep_for_a_head_that_is_gone() {
        let mut lanes = Test::default();
        lanes.push(&"a", Priority::Normal, 1, 0);
        lanes.push(&"a", Priority::Normal, 2, 0);
        let (id, _) = take(&mut lanes, 0).unwrap();
        let again = Landed::Again {
            due_ms: 200_000,
            failed: true,
        };
        lanes.land(id, again, 0);
        lanes.wake_behind(&"a", |head| head == 2);
        assert!(lanes.next(0).is_none(), "its head still waits");
        lanes.wake_behind(&"a", |head| head == 1);
        let (id, _) = lanes.next(0).unwrap();
        lanes.drop_head(id);
        assert_eq!(take(&mut lanes, 0).unwrap().1, 2);
        assert_eq!(lanes.wakes_at(), None);
    }

    #[test]
    fn a_lane_that_was_emptied_while_it_waited_goes_away() {
        let mut lanes = Test::default();
        lanes.push(&"a", Priority::Normal, 1, 0);
        let (id, _) = lanes.next(0).unwrap();
        lanes.park(id, "robot");
        assert_eq!(lanes.take_while(&"a", |_| true), [1]);
        assert_eq!(lanes.open(&"robot", 1), None);
        assert!(lanes.next(0).is_none());
        lanes.push(&"b", Priority::Normal, 2, 0);
        assert_eq!(take(&mut lanes, 0).unwrap().1, 2);
        assert_eq!(lanes.slots.len(), 1, "its slot is used again");
    }

    #[test]
    fn who_writes_now_does_not_wait_for_all_of_a_backlog() {
        let mut lanes: Lanes<u32, u32, ()> = Lanes::default();
        for lane in 0..1_000 {
            lanes.push(&lane, Priority::Normal, lane, 0);
        }
        lanes.all_are_backlog();
        lanes.push(&9_999, Priority::Normal, 9_999, 0);
        let turns = (1..9).find(|_| lanes.next(0).unwrap().1 == 9_999);
        assert!(turns <= Some(2), "{turns:?}");
        // Behind a limit as well.
        while let Some((id, _)) = lanes.next(0) {
            lanes.park(id, ());
        }
        lanes.push(&9_998, Priority::Normal, 9_998, 0);
        let (id, _) = lanes.next(0).unwrap();
        lanes.park(id, ());
        assert_eq!(lanes.open(&(), 2), Some(Priority::Normal));
        let next = [lanes.next(0).unwrap().1, lanes.next(0).unwrap().1];
        assert!(next.contains(&9_998), "{next:?}");
    }

    #[test]
    fn fifty_thousand_that_wait_do_not_delay_an_urgent_one() {
        let mut lanes: Lanes<u32, u32, ()> = Lanes::default();
        for item in 0..50_000 {
            lanes.push(&(item % 500), Priority::Normal, item, 0);
        }
        while let Some((id, _)) = lanes.next(0) {
            lanes.park(id, ());
        }
        lanes.push(&9_999, Priority::Critical, 50_000, 0);
        let (id, item) = lanes.next(0).unwrap();
        assert_eq!(item, 50_000, "it has its turn at once");
        lanes.park(id, ());
        // And the first place at the limit for which all of them wait.
        assert_eq!(lanes.open(&(), 1), Some(Priority::Normal));
        assert_eq!(lanes.next(0).unwrap().1, 50_000);
    }

    #[test]
    fn a_slot_is_used_again_after_its_lane_ran_empty() {
        let mut lanes = Test::default();
        for round in 0..100 {
            lanes.push(&"a", Priority::Low, round, 0);
            let (id, _) = take(&mut lanes, 0).unwrap();
            lanes.land(id, Landed::Settled, 0);
        }
        assert_eq!(lanes.slots.len(), 1);
    }
}
