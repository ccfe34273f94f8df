//! A durable queue: append, update, finish, recover. The inbox and the outbox are one each.
//!
//! A queue knows nothing of what it carries but a number, a lane and a size. Every change is put into
//! the caller's [`Batch`], so that it becomes durable together with what belongs to it; what is
//! counted in memory changes when the batch is durable.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use super::dead::Index;
use super::{Batch, Counter, Order, ReadError, Table, View};
use crate::delivery::record;
use crate::delivery::state::{Priority, State, Tag};
use crate::faults::{Bug, bug};

/// The tables and counters of one queue.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// `inbound` or `outbound`, for metrics.
    pub direction: &'static str,
    /// What was accepted.
    pub payload: Table,
    /// States of what is under way.
    pub live: Table,
    /// States of what has ended.
    pub done: Table,
    /// Counts what was ever accepted.
    pub accepted: Counter,
    /// Counts what was set aside as damaged.
    pub quarantined: Counter,
    /// Counts what was removed after its time.
    pub purged: Counter,
}

/// From DingTalk to the platform.
pub const INBOX: Place = Place {
    direction: "inbound",
    payload: Table::InboxPayload,
    live: Table::InboxLive,
    done: Table::InboxDone,
    accepted: Counter::InboxAccepted,
    quarantined: Counter::InboxQuarantined,
    purged: Counter::InboxPurged,
};

/// From the platform to DingTalk.
pub const OUTBOX: Place = Place {
    direction: "outbound",
    payload: Table::OutboxPayload,
    live: Table::OutboxLive,
    done: Table::OutboxDone,
    accepted: Counter::OutboxAccepted,
    quarantined: Counter::OutboxQuarantined,
    purged: Counter::OutboxPurged,
};

/// An entry whose append has become durable.
#[derive(Debug)]
pub struct Appended<S> {
    /// Its number.
    pub seq: u64,
    /// Its first state.
    pub state: S,
}

/// One queue of entries whose state is an `S`.
#[derive(Debug)]
pub struct Queue<S> {
    place: Place,
    next_seq: AtomicU64,
    worker: mpsc::UnboundedSender<Appended<S>>,
    counts: Mutex<Counts>,
    upkeep: tokio::sync::Mutex<()>,
    dead: Index,
}

#[derive(Debug, Default)]
struct Counts {
    lanes: HashMap<u64, u64>,
    by_priority: [Ages; Priority::COUNT],
    bytes: u64,
    /// Those that do not just wait: being sent, or to be repeated.
    stirring: HashMap<u64, (Priority, State)>,
}

impl Counts {
    fn moved(&mut self, seq: u64, tag: Tag) {
        if tag.state == State::Queued {
            self.stirring.remove(&seq);
        } else {
            self.stirring.insert(seq, (tag.priority, tag.state));
        }
    }
}

/// How many there are and how old they are, by the second, so that what this takes does not grow with
/// how many come in a second.
#[derive(Debug, Default)]
struct Ages {
    messages: u64,
    seconds: BTreeMap<u64, Second>,
}

/// What was accepted in one second and is still under way.
#[derive(Debug)]
struct Second {
    messages: u64,
    /// Of the first of them, which may have ended meanwhile.
    first_ms: u64,
}

impl Ages {
    fn add(&mut self, accepted_ms: u64) {
        let second = self.seconds.entry(accepted_ms / 1_000).or_insert(Second {
            messages: 0,
            first_ms: accepted_ms,
        });
        second.messages += 1;
        second.first_ms = second.first_ms.min(accepted_ms);
        self.messages += 1;
    }

    fn remove(&mut self, accepted_ms: u64) {
        let at = accepted_ms / 1_000;
        if let Some(second) = self.seconds.get_mut(&at) {
            second.messages -= 1;
            if second.messages == 0 {
                self.seconds.remove(&at);
            }
            self.messages -= 1;
        }
    }

    fn oldest_ms(&self) -> u64 {
        let first = self.seconds.first_key_value();
        first.map_or(0, |(_, second)| second.first_ms)
    }
}

/// accepted = live + done + purged + quarantined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Books {
    /// Ever accepted.
    pub accepted: u64,
    /// Under way.
    pub live: u64,
    /// Ended and still shown.
    pub done: u64,
    /// Ended and removed.
    pub purged: u64,
    /// Damaged and set aside.
    pub quarantined: u64,
}

impl Books {
    /// The books of the queue at `place`.
    pub fn of(place: Place, view: &View<'_>) -> Result<Self, ReadError> {
        Ok(Self {
            accepted: view.counter(place.accepted)?,
            live: view.len(place.live)?,
            done: view.len(place.done)?,
            purged: view.counter(place.purged)?,
            quarantined: view.counter(place.quarantined)?,
        })
    }

    /// Makes them balance after part of the log was set aside: what it accepted and others went on with was
    /// accepted, what it ended and nobody can find is set aside.
    pub(super) fn balance(&self, place: Place, batch: &mut Batch) {
        let found = self.live + self.done + self.purged + self.quarantined;
        if found > self.accepted {
            batch.add(place.accepted, found - self.accepted);
        } else if self.accepted > found {
            batch.add(place.quarantined, self.accepted - found);
        }
    }

    /// By how much they do not balance; 0 unless something is lost or counted twice.
    pub fn mismatch(&self) -> u64 {
        self.accepted
            .abs_diff(self.live + self.done + self.purged + self.quarantined)
    }
}

impl<S: Serialize + DeserializeOwned> Queue<S> {
    /// Opens the queue at `place`; its worker receives every entry that is appended from now on.
    /// What is already there comes from [`Self::recover`].
    pub fn open(
        place: Place,
        view: &View<'_>,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Appended<S>>), ReadError> {
        let mut last = 0;
        for table in [place.payload, place.live, place.done] {
            if bug(Bug::NumberGivenAgain) && table != place.payload {
                continue;
            }
            view.walk(table, &[], &[], Order::Descending, &mut |key, _| {
                last = last.max(seq_of(key));
                false
            })?;
        }
        // Numbers that were purged are not given out again, but for those behind some that were reserved and
        // never used; ids differ all the same, by their time.
        let next = last.max(view.counter(place.accepted)?) + 1;
        let (worker, entries) = mpsc::unbounded_channel();
        let queue = Self {
            place,
            next_seq: AtomicU64::new(next),
            worker,
            counts: Mutex::new(Counts::default()),
            upkeep: tokio::sync::Mutex::new(()),
            dead: Index::default(),
        };
        Ok((queue, entries))
    }

    /// A number for an entry to be appended. Later calls give larger ones.
    pub fn reserve(&self) -> u64 {
        self.next_seq.fetch_add(1, Ordering::Relaxed)
    }

    /// Adds an entry to `batch`. When that is durable, call [`Self::appended`].
    pub fn append(&self, batch: &mut Batch, seq: u64, payload: &[u8], state: &S) {
        batch.put(self.place.payload, seq.to_be_bytes(), payload);
        batch.put(self.place.live, seq.to_be_bytes(), record::encode(state));
        if !bug(Bug::AcceptedUncounted) {
            batch.add(self.place.accepted, 1);
        }
    }

    /// Adds an entry that needs no work: accepted and done in one.
    pub fn append_done(&self, batch: &mut Batch, seq: u64, payload: &[u8], state: &S) {
        batch.put(self.place.payload, seq.to_be_bytes(), payload);
        batch.put(self.place.done, seq.to_be_bytes(), record::encode(state));
        batch.add(self.place.accepted, 1);
    }

    /// As [`Self::append_done`], for an entry that nobody will ask for: it is one row, the payload
    /// behind the state, because a row costs more than its bytes.
    pub fn append_settled(&self, batch: &mut Batch, seq: u64, payload: &[u8], state: &S) {
        let mut row = record::encode_about(state, 247 + payload.len());
        row.extend_from_slice(payload);
        batch.put(self.place.done, seq.to_be_bytes(), row);
        batch.add(self.place.accepted, 1);
    }

    /// The entry is durable: it counts, and the worker gets it.
    pub fn appended(&self, seq: u64, tag: Tag, state: S) {
        self.count(seq, tag);
        if self.worker.send(Appended { seq, state }).is_err() {
            // The worker has stopped (drain); the entry is read back at the next start.
            tracing::debug!(
                seq,
                direction = self.place.direction,
                "appended while stopping"
            );
        }
    }

    /// Counts an entry that [`Self::recover`] brought back.
    pub fn count(&self, seq: u64, tag: Tag) {
        let mut counts = self.counts();
        counts.moved(seq, tag);
        *counts.lanes.entry(tag.lane).or_default() += 1;
        if let Some(ages) = counts.by_priority.get_mut(tag.priority.index()) {
            ages.add(tag.accepted_ms);
        }
        counts.bytes += tag.bytes;
    }

    /// Replaces the state of a live entry, which is `tag` from now on.
    pub fn update(&self, batch: &mut Batch, seq: u64, state: &S, tag: Tag) {
        batch.put(self.place.live, seq.to_be_bytes(), record::encode(state));
        self.moved(seq, tag);
    }

    /// How far a live entry is.
    pub fn moved(&self, seq: u64, tag: Tag) {
        self.counts().moved(seq, tag);
    }

    /// Ends an entry with `state`. When that is durable, call [`Self::finished`].
    pub fn finish(&self, batch: &mut Batch, seq: u64, state: &S) {
        if !bug(Bug::FinishKeepsLive) {
            batch.delete(self.place.live, seq.to_be_bytes());
        }
        batch.put(self.place.done, seq.to_be_bytes(), record::encode(state));
    }

    /// The end of an entry is durable.
    pub fn finished(&self, seq: u64, tag: Tag) {
        let mut counts = self.counts();
        counts.stirring.remove(&seq);
        if let Some(lane) = counts.lanes.get_mut(&tag.lane) {
            *lane = lane.saturating_sub(1);
            if *lane == 0 {
                counts.lanes.remove(&tag.lane);
            }
        }
        if let Some(ages) = counts.by_priority.get_mut(tag.priority.index()) {
            ages.remove(tag.accepted_ms);
        }
        counts.bytes = counts.bytes.saturating_sub(tag.bytes);
    }

    /// Held by whoever replays or purges finished entries, from looking until it is durable: so that
    /// nothing is removed that was just taken up again.
    pub async fn upkeep(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.upkeep.lock().await
    }

    /// Takes a finished entry up again. When that is durable, call [`Self::appended`].
    pub fn reopen(&self, batch: &mut Batch, seq: u64, state: &S) {
        batch.delete(self.place.done, seq.to_be_bytes());
        batch.put(self.place.live, seq.to_be_bytes(), record::encode(state));
    }

    /// Replaces the state of a finished entry that stays finished. Nothing is counted anew.
    pub fn amend(&self, batch: &mut Batch, seq: u64, state: &S) {
        batch.put(self.place.done, seq.to_be_bytes(), record::encode(state));
    }

    /// Which finished entries are dead letters.
    pub fn dead(&self) -> &Index {
        &self.dead
    }

    /// Removes a finished entry for good. Only for entries that are surely finished.
    pub fn purge(&self, batch: &mut Batch, seq: u64) {
        batch.delete(self.place.done, seq.to_be_bytes());
        batch.delete(self.place.payload, seq.to_be_bytes());
        batch.add(self.place.purged, 1);
    }

    /// Reads back every live entry, oldest first. Damaged ones are put into `aside`.
    pub fn recover(
        &self,
        view: &View<'_>,
        aside: &mut Batch,
        visit: &mut dyn FnMut(u64, S),
    ) -> Result<(), ReadError> {
        view.walk(
            self.place.live,
            &[],
            &[],
            Order::Ascending,
            &mut |key, value| {
                match record::decode(value) {
                    Ok(state) => visit(seq_of(key), state),
                    Err(error) => {
                        aside.quarantine(self.place.live, key, value, &error);
                        aside.add(self.place.quarantined, 1);
                    }
                }
                true
            },
        )
    }

    /// The tables and counters.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Entries under way.
    pub fn messages(&self) -> u64 {
        self.messages_by_priority().iter().sum()
    }

    /// Entries under way by urgency.
    pub fn messages_by_priority(&self) -> [u64; Priority::COUNT] {
        let counts = self.counts();
        counts.by_priority.each_ref().map(|ages| ages.messages)
    }

    /// Entries under way that are being sent, and that wait to be repeated, by urgency.
    pub fn stirring_by_priority(&self) -> [[u64; 2]; Priority::COUNT] {
        let mut out = [[0; 2]; Priority::COUNT];
        for (priority, state) in self.counts().stirring.values() {
            if let Some([sending, retrying]) = out.get_mut(priority.index()) {
                *(if *state == State::Sending {
                    sending
                } else {
                    retrying
                }) += 1;
            }
        }
        out
    }

    /// Wall time in milliseconds at which the oldest of each urgency was accepted, right to the second;
    /// 0 = none.
    pub fn oldest_by_priority(&self) -> [u64; Priority::COUNT] {
        self.counts().by_priority.each_ref().map(Ages::oldest_ms)
    }

    /// Bytes under way.
    pub fn bytes(&self) -> u64 {
        self.counts().bytes
    }

    /// Entries under way in one lane.
    pub fn lane_messages(&self, lane: u64) -> u64 {
        self.counts().lanes.get(&lane).copied().unwrap_or(0)
    }

    /// The books as they are on disk.
    pub fn books(&self, view: &View<'_>) -> Result<Books, ReadError> {
        Books::of(self.place, view)
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a walk through ended entries came to.
pub(super) struct Walked {
    /// From where to go on; `None` at the end.
    pub next: Option<u64>,
    /// Takes out what cannot be read.
    pub aside: Batch,
}

/// Shows up to `rows_max` entries of `place` that have ended, from number `from` on, oldest first.
pub(super) fn walk_done<S: DeserializeOwned>(
    view: &View<'_>,
    place: Place,
    from: u64,
    rows_max: usize,
    visit: &mut dyn FnMut(u64, S),
) -> Result<Walked, ReadError> {
    let (mut rows, mut next, mut aside) = (0, None, Batch::default());
    view.walk(
        place.done,
        &from.to_be_bytes(),
        &[],
        Order::Ascending,
        &mut |key, value| {
            rows += 1;
            let seq = seq_of(key);
            let state = record::split_first(value).and_then(|(state, _)| record::decode(state));
            match state {
                Ok(state) => visit(seq, state),
                Err(error) => {
                    aside.quarantine(place.done, key, value, &error);
                    aside.add(place.quarantined, 1);
                }
            }
            next = (rows == rows_max).then_some(seq + 1);
            rows < rows_max
        },
    )?;
    Ok(Walked { next, aside })
}

/// The number in an 8-byte key.
pub fn seq_of(key: &[u8]) -> u64 {
    key.first_chunk::<8>()
        .map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_known_to_the_second_and_what_has_ended_is_not_counted() {
        let mut ages = Ages::default();
        for accepted_ms in [5_900, 5_100, 7_000] {
            ages.add(accepted_ms);
        }
        assert_eq!((ages.messages, ages.oldest_ms()), (3, 5_100));
        ages.remove(5_100);
        assert_eq!(ages.oldest_ms() / 1_000, 5, "another of that second");
        ages.remove(5_900);
        assert_eq!((ages.messages, ages.oldest_ms()), (1, 7_000));
        ages.remove(7_000);
        ages.remove(7_000);
        assert_eq!((ages.messages, ages.oldest_ms()), (0, 0));
    }
}
