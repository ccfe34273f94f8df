//! What waits, in a few words a message; the rest is on disk. Times are monotonic.
//!
//! A million messages may wait, so a message has only what differs from its neighbours: its number in
//! its lane, its lane, and when it expires. What all messages of a lane share is kept once, and what
//! few messages are (under way, reordered) is a set of those few.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};

use super::pool::Leaning;
use super::send::{Ahead, Left};
use super::{Live, Route};
use crate::clock::Clock;
use crate::delivery::id::{MessageId, short_digest};
use crate::delivery::lanes::{HEAD_BLOCKS_MAX_MS, Landed, LaneId, Lanes};
use crate::delivery::random;
use crate::delivery::retry::DINGTALK;
use crate::delivery::state::{Next, Priority, State};
use crate::delivery::verdict::Reason;
use crate::dingtalk::digest::Fold;
use crate::egress::limit::{Key, Kind};
use crate::faults::{Bug, bug};
use crate::journal::Batch;
use crate::journal::queue::Queue;
use crate::metrics;

/// The moments of messages that have ended may be this many more than those of the others.
const EXPIRED_ENDED_MAX: usize = 1_024;
/// Messages in one digest, as a power of two: what a commit takes without holding up the others.
const MEMBERS_MAX_LOG2: u8 = 9;

/// All messages under way.
#[derive(Debug)]
pub(super) struct Backlog {
    pub(super) lanes: Lanes<u64, u64, Key>,
    clock: Clock,
    /// By number, which grows: an ordered map is filled without being built anew.
    entries: BTreeMap<u64, Entry>,
    shared: HashMap<u64, Shared>,
    flying: HashSet<u64>,
    /// What is in the digests under way.
    folded: HashMap<u64, Vec<(u64, Entry)>>,
    /// Others of their lane went first.
    reordered: HashSet<u64>,
    /// Their last attempt failed.
    failed: HashSet<u64>,
    /// Which robots of its pool a message may go by, where that is not any.
    leanings: HashMap<u64, Leaning>,
    expiries: BinaryHeap<Reverse<(u64, u64)>>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    lane: u64,
    expires_ms: u64,
    /// Monotonic time of acceptance: in seconds, for room.
    accepted_s: u32,
    fold: Fold,
    /// It goes into no digest of more messages than this power of two.
    members_max_log2: u8,
}

/// How what was in a digest goes on when that came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// As before: nothing was wrong with it.
    Folded,
    /// In digests half as large, down to one message each: what is wrong with one of them must not
    /// hold up the others one by one.
    Halved,
}

/// What the messages of a lane have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) priority: Priority,
    pub(super) limits: Box<[Key]>,
    /// The custom robot or the pool that it is for.
    pub(super) robot: Option<Box<str>>,
    messages: u64,
    /// The one that waits for a limit, and since when: only the head of a lane does.
    limited: Option<(u64, u64)>,
}

impl Shared {
    pub(super) fn new(priority: Priority, limits: Box<[Key]>, robot: Option<Box<str>>) -> Self {
        Self {
            priority,
            limits,
            robot,
            messages: 0,
            limited: None,
        }
    }

    /// Message `seq` waits for a limit, perhaps for a while already.
    pub(super) fn limit(&mut self, seq: u64, now_ms: u64) {
        if self.limited.is_none_or(|(limited, _)| limited != seq) {
            self.limited = Some((seq, now_ms));
        }
    }

    /// Message `seq` waits for no limit any more; since when it did.
    pub(super) fn unlimit(&mut self, seq: u64) -> Option<u64> {
        let (limited, since_ms) = self.limited.take()?;
        (limited == seq).then_some(since_ms)
    }
}

impl Backlog {
    fn new(clock: Clock) -> Self {
        Self {
            lanes: Lanes::default(),
            clock,
            entries: BTreeMap::new(),
            shared: HashMap::new(),
            flying: HashSet::new(),
            folded: HashMap::new(),
            reordered: HashSet::new(),
            failed: HashSet::new(),
            leanings: HashMap::new(),
            expiries: BinaryHeap::new(),
        }
    }

    /// Takes in a message that is on disk, the last of its lane.
    pub(super) fn take_in(&mut self, seq: u64, live: &Live) {
        let (wall_ms, mono_ms) = (self.clock.wall_ms(), self.clock.mono_ms());
        let lane = live.lane;
        self.lean(seq, Leaning::of(live));
        let entry = self.entry(live);
        let shared = self.join(lane, live);
        shared.messages += 1;
        if self.entries.insert(seq, entry).is_some() {
            self.leave(lane);
        }
        if live.progress.failures > 0 {
            self.failed.insert(seq);
        }
        self.expiries.push(Reverse((entry.expires_ms, seq)));
        // No more than the schedule allows: the wall clock may have been set back meanwhile.
        let left_ms = live
            .progress
            .due_ms
            .saturating_sub(wall_ms)
            .min(DINGTALK.cap_ms);
        let due_ms = if left_ms == 0 { 0 } else { mono_ms + left_ms };
        if let Some(head) = self.lanes.push(&lane, live.priority, seq, due_ms) {
            self.stepped_aside(head);
            metrics::reordered();
        }
        // Read back at a start: as before it, nothing waits for one that fails and is far from its turn.
        let progress = &live.progress;
        let is_far = left_ms >= HEAD_BLOCKS_MAX_MS || progress.reordered && left_ms > 0;
        if progress.failures > 0 && is_far {
            self.lanes.let_pass(&lane, seq);
        }
    }

    /// Takes in a message that is on disk as part of `digest`.
    fn take_in_folded(&mut self, seq: u64, live: &Live, digest: MessageId) {
        let entry = self.entry(live);
        self.join(live.lane, live).messages += 1;
        let parts = self.folded.entry(digest.seq()).or_default();
        parts.push((seq, entry));
    }

    fn entry(&self, live: &Live) -> Entry {
        let (wall_ms, mono_ms) = (self.clock.wall_ms(), self.clock.mono_ms());
        let age_ms = wall_ms.saturating_sub(live.accepted_ms);
        let accepted_s = mono_ms.saturating_sub(age_ms) / 1_000;
        // What was tried may have arrived: it is not told a second time under another name.
        let tried = live.progress.attempts > 0;
        // Even if the clock has been set back since it was accepted.
        let lifetime_ms = live.expires_ms.saturating_sub(live.accepted_ms);
        let left_ms = live.expires_ms.saturating_sub(wall_ms).min(lifetime_ms);
        Entry {
            lane: live.lane,
            expires_ms: mono_ms + left_ms,
            accepted_s: u32::try_from(accepted_s).unwrap_or(u32::MAX),
            fold: if tried { Fold::Never } else { live.fold },
            members_max_log2: MEMBERS_MAX_LOG2,
        }
    }

    fn join(&mut self, lane: u64, live: &Live) -> &mut Shared {
        self.shared.entry(lane).or_insert_with(|| {
            let robot = (live.route == Route::Webhook).then(|| live.target.as_str().into());
            Shared::new(live.priority, live.limits().into(), robot)
        })
    }

    /// One message of `lane` has ended.
    fn leave(&mut self, lane: u64) {
        let Some(shared) = self.shared.get_mut(&lane) else {
            return;
        };
        shared.messages -= 1;
        if shared.messages == 0 {
            self.shared.remove(&lane);
        }
    }

    /// What goes out together with `head`, whose turn it is, if that has waited for `after_ms`: it and
    /// those behind it that are of its kind. They leave the lane. Empty if it goes by itself.
    pub(super) fn fold(&mut self, lane: LaneId, head: u64, now_ms: u64, after_ms: u64) -> Vec<u64> {
        let Some(first) = self.entries.get(&head).copied() else {
            return vec![];
        };
        let age_ms = now_ms.saturating_sub(u64::from(first.accepted_s) * 1_000);
        if matches!(first.fold, Fold::Never | Fold::Digest) || age_ms < after_ms {
            return vec![];
        }
        let (entries, mut taken, mut log2) = (&self.entries, 0_u64, first.members_max_log2);
        let mut parts = self.lanes.take_while(&first.lane, |seq| {
            let Some(entry) = entries.get(&seq).filter(|entry| entry.expires_ms > now_ms) else {
                // Cancelled or expired while it waited.
                return true;
            };
            log2 = log2.min(entry.members_max_log2);
            let wanted = entry.fold == first.fold && taken < 1 << log2;
            taken += u64::from(wanted);
            wanted
        });
        parts.retain(|seq| {
            entries
                .get(seq)
                .is_some_and(|entry| entry.expires_ms > now_ms)
        });
        if parts.len() < 2 {
            self.lanes.put_before_head(lane, head);
            return vec![];
        }
        parts
    }

    /// Digest `seq` of `parts` flies in their place.
    pub(super) fn fly_digest(&mut self, lane: LaneId, seq: u64, parts: &[u64]) {
        let parts: Vec<_> = parts
            .iter()
            .filter_map(|part| Some((*part, self.entries.remove(part)?)))
            .collect();
        // With the first of them, which then is told of; the others wait again.
        let first = parts.iter().min_by_key(|(_, part)| part.expires_ms);
        if let Some((_, first)) = first {
            let entry = Entry {
                fold: Fold::Digest,
                ..*first
            };
            if let Some(shared) = self.shared.get_mut(&entry.lane) {
                shared.messages += 1;
            }
            self.entries.insert(seq, entry);
            self.expiries.push(Reverse((entry.expires_ms, seq)));
        }
        self.folded.insert(seq, parts);
        self.lanes.put_before_head(lane, seq);
        self.fly(lane, seq);
    }

    /// `seq`, which may be a digest, has ended and left this.
    pub(super) fn settle_digest(&mut self, seq: u64, left: &Left) {
        match left {
            Left::Parts => self.unfold(seq, Again::Halved),
            Left::Finished | Left::Again { .. } | Left::Behind(_) | Left::Tokenless { .. } => {
                self.merge(seq);
            }
        }
    }

    /// A digest that was read back stands where its messages stood.
    fn put_first(&mut self, seq: u64) {
        let Some(entry) = self.entries.get(&seq) else {
            return;
        };
        if let Some(shared) = self.shared.get(&entry.lane) {
            self.lanes.take_out(&entry.lane, seq);
            self.lanes.put_first(&entry.lane, shared.priority, &[seq]);
        }
    }

    /// What was in digest `seq` has ended with it.
    fn merge(&mut self, seq: u64) {
        for (seq, part) in self.folded.remove(&seq).unwrap_or_default() {
            self.reordered.remove(&seq);
            self.leanings.remove(&seq);
            self.leave(part.lane);
        }
    }

    /// What was in digest `seq` waits again, before all that came later.
    pub(super) fn unfold(&mut self, seq: u64, again: Again) {
        let parts = self.folded.remove(&seq).unwrap_or_default();
        let Some(lane) = parts.first().map(|(_, part)| part.lane) else {
            return;
        };
        let halved_log2 = u8::try_from(parts.len().ilog2())
            .unwrap_or(0)
            .saturating_sub(1);
        let mut back = vec![];
        for (part, mut entry) in parts {
            if again == Again::Halved {
                entry.members_max_log2 = entry.members_max_log2.min(halved_log2);
            }
            self.expiries.push(Reverse((entry.expires_ms, part)));
            self.entries.insert(part, entry);
            back.push(part);
        }
        if let Some(shared) = self.shared.get(&lane) {
            self.lanes.put_first(&lane, shared.priority, &back);
        }
    }

    /// What message `seq` shares with its lane, and what is its own; `None` if it has ended.
    pub(super) fn head(&mut self, seq: u64) -> Option<(&mut Shared, Option<&Leaning>)> {
        let entry = self.entries.get(&seq)?;
        let shared = self.shared.get_mut(&entry.lane)?;
        Some((shared, self.leanings.get(&seq)))
    }

    /// The next call of `seq` goes as its last ones say.
    pub(super) fn lean(&mut self, seq: u64, leaning: Leaning) {
        if leaning.is_free() {
            self.leanings.remove(&seq);
        } else {
            self.leanings.insert(seq, leaning);
        }
    }

    /// Whether `seq` is not worth sending any more.
    pub(super) fn is_expired(&self, seq: u64, now_ms: u64) -> bool {
        let entry = self.entries.get(&seq);
        entry.is_some_and(|entry| entry.expires_ms <= now_ms)
    }

    /// Heads that stepped aside for one that came back count as overtaken.
    pub(super) fn note_displaced(&mut self) {
        for head in self.lanes.displaced() {
            self.stepped_aside(head);
            metrics::reordered();
        }
    }

    /// Whether the next attempt of `seq` repeats one that failed.
    pub(super) fn repeats(&self, seq: u64) -> bool {
        self.failed.contains(&seq)
    }

    /// The attempt of `seq`, the head of `lane`, starts. Returns whether others went before it.
    pub(super) fn fly(&mut self, lane: LaneId, seq: u64) -> bool {
        self.lanes.fly(lane);
        self.flying.insert(seq);
        self.reordered.contains(&seq)
    }

    /// The attempt of `seq` has ended, and it goes on waiting.
    pub(super) fn land(&mut self, seq: u64, failed: bool, tried: bool, reordered: bool) {
        self.flying.remove(&seq);
        // They may not have to wait for its end: its next attempt may be far, and they more urgent.
        self.wake_those_behind(seq);
        if failed {
            self.failed.insert(seq);
        }
        // What has arrived, or may have, is not told a second time under another name.
        if tried
            && let Some(entry) = self.entries.get_mut(&seq)
            && entry.fold != Fold::Digest
        {
            entry.fold = Fold::Never;
        }
        if reordered {
            self.stepped_aside(seq);
        }
    }

    /// A head, with what is in it, is not in its order any more.
    fn stepped_aside(&mut self, seq: u64) {
        self.reordered.insert(seq);
        let parts = self.folded.get(&seq).into_iter().flatten();
        self.reordered.extend(parts.map(|(part, _)| *part));
    }

    /// Whether `seq` waits and is not under way.
    pub(super) fn is_waiting(&self, seq: u64) -> bool {
        self.entries.contains_key(&seq) && !self.flying.contains(&seq)
    }

    /// When the next message expires.
    pub(super) fn expires_at(&self) -> Option<u64> {
        self.expiries
            .peek()
            .map(|Reverse((expires_ms, _))| *expires_ms)
    }

    /// Forgets a message whose time is over, and returns which.
    pub(super) fn pop_expired(&mut self, now_ms: u64) -> Option<u64> {
        while let Some(&Reverse((expires_ms, seq))) = self.expiries.peek()
            && expires_ms <= now_ms
        {
            self.expiries.pop();
            match self.entries.get(&seq) {
                None => {}
                // Replayed since: it has a new lifetime.
                Some(entry) if entry.expires_ms > now_ms => {}
                // Its attempt decides; look again when that has ended at the latest.
                Some(_) if self.flying.contains(&seq) => {
                    self.expiries.push(Reverse((now_ms + 1_000, seq)));
                }
                Some(_) => {
                    self.forget(seq);
                    return Some(seq);
                }
            }
        }
        None
    }

    /// The attempt of `seq`, the head of `lane`, ended because another message comes first: when that has ended, or
    /// an attempt of it, `seq` has its turn again. `due_ms` is when to look again if that has happened already.
    pub(super) fn wait_behind(&mut self, lane: LaneId, seq: u64, ahead: Ahead, due_ms: u64) {
        self.flying.remove(&seq);
        let is_as_seen = !ahead.called || self.flying.contains(&ahead.seq);
        if is_as_seen && self.entries.contains_key(&ahead.seq) {
            self.lanes.park(lane, end_of(ahead.seq));
        } else {
            let failed = false;
            let later = Landed::Again { due_ms, failed };
            self.lanes.land(lane, later, self.clock.mono_ms());
        }
    }

    /// The attempt of `seq` came to nothing; its lane waits until `gate` is opened.
    pub(super) fn wait_for(&mut self, lane: LaneId, seq: u64, gate: Key) {
        self.flying.remove(&seq);
        self.wake_those_behind(seq);
        self.lanes.park(lane, gate);
    }

    fn wake_those_behind(&mut self, seq: u64) {
        let waiting = self.lanes.open(&end_of(seq), usize::MAX);
        debug_assert_eq!(waiting, None, "all that wait for it have their turn");
    }

    /// Message `seq` has ended. Its lane learns of it when it is the head's turn.
    pub(super) fn forget(&mut self, seq: u64) {
        let Some(entry) = self.entries.remove(&seq) else {
            return;
        };
        self.lanes.wake_behind(&entry.lane, |head| head == seq);
        self.wake_those_behind(seq);
        self.flying.remove(&seq);
        self.reordered.remove(&seq);
        self.failed.remove(&seq);
        self.leanings.remove(&seq);
        self.leave(entry.lane);
        // Most end long before they would expire.
        if self.expiries.len() > 2 * self.entries.len() + EXPIRED_ENDED_MAX {
            let entries = &self.entries;
            self.expiries
                .retain(|Reverse((_, seq))| entries.contains_key(seq));
            self.expiries.shrink_to(2 * entries.len());
        }
    }
}

/// The gate at which those wait whose turn comes when message `seq` has ended, or its attempt.
fn end_of(seq: u64) -> Key {
    Key::new(Kind::Chat, short_digest(&[b"end", &seq.to_be_bytes()]))
}

/// The gate at which repeats to `host` wait for a place in its budget.
pub(super) fn budget_of(host: Key) -> Key {
    Key::new(Kind::Host, short_digest(&[b"budget", &host.bytes()]))
}

/// What was waiting on disk at the start, taken in one by one so that no state is kept as a whole.
#[derive(Debug)]
pub struct Recovery {
    pub(super) backlog: Backlog,
    /// To be written before anything is sent.
    pub(super) batch: Batch,
    /// What ends without another attempt.
    pub(super) ended: Vec<(u64, State, Option<Reason>)>,
}

impl Recovery {
    /// Nothing yet.
    pub fn new(clock: Clock) -> Self {
        Self {
            backlog: Backlog::new(clock),
            batch: Batch::default(),
            ended: vec![],
        }
    }

    /// Takes in a live message of `queue`, in the order of numbers. A call that was under way has an
    /// unknown outcome.
    pub fn take_in(&mut self, queue: &Queue<Live>, seq: u64, mut live: Live) {
        if bug(Bug::UnknownTakenForUnsent) {
            live.progress.in_flight = None;
        }
        if live.progress.in_flight.is_some() {
            let keyed = live.is_keyed();
            live.progress.due_ms = match live.progress.recover(live.ambiguous, keyed) {
                Next::Finished => {
                    let reason = live.progress.reason.take();
                    self.ended.push((seq, live.progress.state, reason));
                    return;
                }
                Next::Soon => 0,
                Next::Scheduled { failures } => {
                    self.backlog.clock.wall_ms() + DINGTALK.delay_ms(failures, random::share())
                }
            };
            queue.update(&mut self.batch, seq, &live, live.tag());
        }
        match live.digest {
            Some(digest) => self.backlog.take_in_folded(seq, &live, digest),
            None => self.backlog.take_in(seq, &live),
        }
    }

    /// Everything was taken in: what is in a digest that is not there waits by itself.
    pub(super) fn settle(&mut self) {
        self.backlog.lanes.all_are_backlog();
        let digests: Vec<_> = self.backlog.folded.keys().copied().collect();
        for digest in digests {
            let waits = self.backlog.entries.contains_key(&digest);
            let ends =
                |(seq, state, _): &(u64, State, _)| *seq == digest && *state == State::Unknown;
            if !waits && !self.ended.iter().any(ends) {
                self.backlog.unfold(digest, Again::Folded);
            } else if waits {
                self.backlog.put_first(digest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::state::{Ambiguous, Call, Progress};

    const EPOCH_MS: u64 = 1_000_000;

    fn live(clock: Clock, seq: u64, lifetime_ms: u64) -> Live {
        Live {
            id: MessageId::new(EPOCH_MS, 0, seq),
            app: String::new(),
            target: "robot".to_owned(),
            lane: 7,
            priority: Priority::Normal,
            accepted_ms: clock.wall_ms(),
            expires_ms: clock.wall_ms() + lifetime_ms,
            bytes: 1,
            ambiguous: Ambiguous::default(),
            route: Route::Webhook,
            progress: Progress::new(vec![Call::to(vec![])]),
            fold: Fold::Markdown,
            digest: None,
            unkeyed: false,
            session_over: false,
        }
    }

    fn backlog(lifetimes_ms: &[u64]) -> Backlog {
        let clock = Clock::starting_at(EPOCH_MS);
        let mut backlog = Backlog::new(clock);
        for (seq, lifetime_ms) in (1..).zip(lifetimes_ms) {
            backlog.take_in(seq, &live(clock, seq, *lifetime_ms));
        }
        backlog
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_ended_or_is_under_way_does_not_expire() {
        let mut backlog = backlog(&[10, 10, 10]);
        let now_ms = backlog.clock.mono_ms();
        let (lane, head) = backlog.lanes.next(now_ms).unwrap();
        assert!(!backlog.fly(lane, head));
        backlog.forget(2);
        assert_eq!(backlog.pop_expired(now_ms + 9), None);
        assert_eq!(backlog.pop_expired(now_ms + 10), Some(3));
        assert_eq!(backlog.pop_expired(now_ms + 10), None);
        backlog.land(head, true, true, true);
        assert_eq!(backlog.pop_expired(now_ms + 1_010), Some(head));
        assert!(backlog.shared.is_empty() && backlog.reordered.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_replayed_message_does_not_expire_with_its_first_life() {
        let mut backlog = backlog(&[10]);
        let now_ms = backlog.clock.mono_ms();
        backlog.forget(1);
        let again = live(backlog.clock, 1, 100);
        backlog.take_in(1, &again);
        assert_eq!(backlog.pop_expired(now_ms + 10), None);
        assert_eq!(backlog.pop_expired(now_ms + 100), Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_behind_another_looks_again_after_each_attempt_of_it() {
        let mut backlog = backlog(&[1_000]);
        let other = Live {
            lane: 8,
            ..live(backlog.clock, 2, 1_000)
        };
        backlog.take_in(2, &other);
        let now_ms = backlog.clock.mono_ms();
        let (first, _) = backlog.lanes.next(now_ms).unwrap();
        backlog.fly(first, 1);
        let (second, _) = backlog.lanes.next(now_ms).unwrap();
        backlog.fly(second, 2);
        let ahead = Ahead {
            seq: 1,
            called: true,
        };
        backlog.wait_behind(second, 2, ahead, now_ms + 50);
        assert_eq!(backlog.lanes.next(now_ms + 50), None);
        // It failed, and is due in an hour.
        let due_ms = now_ms + 3_600_000;
        let later = Landed::Again {
            due_ms,
            failed: true,
        };
        backlog.lanes.land(first, later, now_ms);
        backlog.land(1, true, true, false);
        assert_eq!(backlog.lanes.next(now_ms), Some((second, 2)));
        // What it saw may be over by now.
        backlog.fly(second, 2);
        backlog.wait_behind(second, 2, ahead, now_ms + 50);
        assert_eq!(backlog.lanes.next(now_ms + 50), Some((second, 2)));
    }

    /// All that wait, in the order of their turns, each by itself or as a digest of how many.
    fn turns(backlog: &mut Backlog, now_ms: u64) -> Vec<Vec<u64>> {
        let mut turns = vec![];
        while let Some((lane, head)) = backlog.lanes.next(now_ms) {
            let parts = backlog.fold(lane, head, now_ms, 0);
            let seq = 1_000 + turns.len() as u64;
            if parts.is_empty() {
                backlog.fly(lane, head);
                backlog.forget(head);
                turns.push(vec![head]);
            } else {
                backlog.fly_digest(lane, seq, &parts);
                backlog.forget(seq);
                backlog.settle_digest(seq, &Left::Finished);
                turns.push(parts);
            }
            backlog.lanes.land(lane, Landed::Settled, now_ms);
        }
        turns
    }

    #[tokio::test(start_paused = true)]
    async fn what_waited_too_long_is_folded_with_what_stands_behind_it_and_is_of_its_kind() {
        let mut backlog = backlog(&[60_000, 50_000, 60_000]);
        let clock = backlog.clock;
        let text = |seq| Live {
            fold: Fold::Text,
            ..live(clock, seq, 60_000)
        };
        backlog.take_in(4, &text(4));
        backlog.take_in(5, &live(clock, 5, 60_000));
        backlog.take_in(6, &live(clock, 6, 60_000));
        backlog.forget(2);
        let now_ms = clock.mono_ms() + 2_000;
        let (lane, head) = backlog.lanes.next(now_ms).unwrap();
        assert!(
            backlog.fold(lane, head, now_ms, 3_000).is_empty(),
            "too young"
        );
        // Its turn was taken and not used: it has another.
        backlog.lanes.put_first(&7, Priority::Normal, &[]);
        assert_eq!(
            turns(&mut backlog, now_ms),
            [vec![1, 3], vec![4], vec![5, 6]]
        );
        assert!(backlog.shared.is_empty() && backlog.folded.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_wrong_with_one_of_many_is_found_by_halves() {
        let mut backlog = backlog(&[60_000; 8]);
        let now_ms = backlog.clock.mono_ms();
        let poison = 6;
        let mut attempts = vec![];
        while let Some((lane, head)) = backlog.lanes.next(now_ms) {
            let parts = backlog.fold(lane, head, now_ms, 0);
            let seq = 100 + attempts.len() as u64;
            if parts.is_empty() {
                attempts.push(vec![head]);
                backlog.fly(lane, head);
                backlog.forget(head);
            } else {
                attempts.push(parts.clone());
                backlog.fly_digest(lane, seq, &parts);
                backlog.forget(seq);
                let died = parts.contains(&poison);
                let left = if died { Left::Parts } else { Left::Finished };
                backlog.settle_digest(seq, &left);
            }
            backlog.lanes.land(lane, Landed::Settled, now_ms);
        }
        let expected: [&[u64]; 7] = [
            &[1, 2, 3, 4, 5, 6, 7, 8],
            &[1, 2, 3, 4],
            &[5, 6, 7, 8],
            &[5, 6],
            &[5],
            &[6],
            &[7, 8],
        ];
        assert_eq!(attempts, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_half_sent_is_not_folded() {
        let mut backlog = backlog(&[60_000; 3]);
        let now_ms = backlog.clock.mono_ms();
        let (lane, head) = backlog.lanes.next(now_ms).unwrap();
        backlog.fly(lane, head);
        let again = Landed::Again {
            due_ms: now_ms,
            failed: false,
        };
        backlog.lanes.land(lane, again, now_ms);
        backlog.land(head, false, true, false);
        assert_eq!(turns(&mut backlog, now_ms), [vec![1], vec![2, 3]]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_digest_that_is_read_back_stands_where_its_messages_stood() {
        let clock = Clock::starting_at(EPOCH_MS);
        let mut recovery = Recovery::new(clock);
        for seq in [1, 2] {
            let digest = MessageId::new(EPOCH_MS, 0, 4);
            let part = Live {
                digest: Some(digest),
                ..live(clock, seq, 60_000)
            };
            recovery.backlog.take_in_folded(seq, &part, digest);
        }
        recovery.backlog.take_in(3, &live(clock, 3, 60_000));
        let digest = Live {
            fold: Fold::Digest,
            ..live(clock, 4, 60_000)
        };
        recovery.backlog.take_in(4, &digest);
        recovery.settle();
        let now_ms = clock.mono_ms();
        let (lane, seq) = recovery.backlog.lanes.next(now_ms).unwrap();
        assert_eq!(seq, 4);
        recovery.backlog.lanes.drop_head(lane);
        assert_eq!(recovery.backlog.lanes.next(now_ms).unwrap().1, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_in_a_digest_that_expired_is_folded_again_and_overtakes_nobody() {
        let mut backlog = backlog(&[10_000, 60_000, 60_000, 60_000]);
        backlog.entries.get_mut(&4).unwrap().fold = Fold::Never;
        let now_ms = backlog.clock.mono_ms();
        let (lane, head) = backlog.lanes.next(now_ms).unwrap();
        let parts = backlog.fold(lane, head, now_ms, 0);
        assert_eq!(parts, [1, 2, 3]);
        backlog.fly_digest(lane, 5, &parts);
        assert!(!backlog.is_waiting(1));
        assert_eq!(
            backlog.pop_expired(now_ms + 10_000),
            None,
            "it is under way"
        );
        let again = Landed::Again {
            due_ms: now_ms + 600_000,
            failed: true,
        };
        backlog.lanes.land(lane, again, now_ms);
        backlog.land(5, true, true, false);
        backlog.forget(5);
        backlog.unfold(5, Again::Folded);
        assert_eq!(turns(&mut backlog, now_ms), [vec![1, 2, 3], vec![4]]);
    }

    /// More than can be ended at once have expired: none of them is told of any more.
    #[tokio::test(start_paused = true)]
    async fn what_has_expired_goes_into_no_digest() {
        let mut backlog = backlog(&[10_000, 10_000, 60_000, 10_000, 60_000]);
        let now_ms = backlog.clock.mono_ms() + 10_000;
        assert!(backlog.is_expired(1, now_ms) && !backlog.is_expired(3, now_ms));
        for seq in [1, 2] {
            let (lane, head) = backlog.lanes.next(now_ms).unwrap();
            assert_eq!(head, seq);
            backlog.lanes.drop_head(lane);
        }
        let (lane, head) = backlog.lanes.next(now_ms).unwrap();
        assert_eq!(backlog.fold(lane, head, now_ms, 0), [3, 5]);
        let mut ended = std::iter::from_fn(|| backlog.pop_expired(now_ms)).collect::<Vec<_>>();
        ended.sort_unstable();
        assert_eq!(ended, [1, 2, 4]);
    }

    /// A start made a lane wait again for a head that had stepped aside.
    #[tokio::test(start_paused = true)]
    async fn nothing_waits_after_a_start_for_one_that_had_stepped_aside() {
        let clock = Clock::starting_at(EPOCH_MS);
        let mut recovery = Recovery::new(clock);
        let mut far = live(clock, 1, 3_600_000);
        far.progress.failures = 10;
        far.progress.due_ms = clock.wall_ms() + 590_000;
        recovery.backlog.take_in(1, &far);
        recovery.backlog.take_in(2, &live(clock, 2, 3_600_000));
        recovery.settle();
        let now_ms = clock.mono_ms();
        assert_eq!(recovery.backlog.lanes.next(now_ms).unwrap().1, 2);
        assert!(recovery.backlog.reordered.contains(&1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_moments_of_what_has_ended_do_not_pile_up() {
        let mut backlog = backlog(&vec![60_000; 5_000]);
        for seq in 1..=4_999 {
            backlog.forget(seq);
        }
        assert!(backlog.expiries.len() <= 2 + EXPIRED_ENDED_MAX);
        assert_eq!(
            backlog.head(5_000).map(|(shared, _)| shared.messages),
            Some(1)
        );
        assert!(backlog.head(4_999).is_none());
        let now_ms = backlog.clock.mono_ms();
        assert_eq!(backlog.pop_expired(now_ms + 60_000), Some(5_000));
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_one_that_waited_for_a_limit_is_told_since_when() {
        let mut backlog = backlog(&[10, 10]);
        let (shared, _) = backlog.head(1).unwrap();
        shared.limit(1, 5);
        shared.limit(1, 6);
        assert_eq!(shared.unlimit(1), Some(5));
        shared.limit(1, 7);
        assert_eq!(shared.unlimit(2), None);
    }
}
