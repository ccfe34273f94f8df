//! Which of the finished entries are dead letters: an index in memory, by the time of their end, so that
//! nobody walks through all that has ended to find, count or remove them.
//!
//! It is made anew after each start, in steps beside the work. What ends meanwhile is added at once;
//! adding twice is adding once. What takes an entry away holds [`Queue::upkeep`], and so do the steps:
//! a step never adds what was taken away.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::queue::{Queue, walk_done};
use super::{Journal, Order, ReadError};
use crate::delivery::dead::{Alerts, Letter, Mortal};
use crate::delivery::record;

/// Entries looked at in one step of making the index.
const LOAD_MAX: usize = 20_000;
/// Dead letters looked at in one step of looking for some.
const LOOK_MAX: usize = 20_000;

/// When a dead letter ended (wall time in milliseconds), and its number.
pub type Key = (u64, u64);

/// The dead letters of one queue.
#[derive(Debug, Default)]
pub struct Index {
    inner: Mutex<Inner>,
    loading: tokio::sync::Mutex<()>,
    loaded: AtomicBool,
}

#[derive(Debug, Default)]
struct Inner {
    letters: BTreeMap<Key, Kept>,
    bytes: u64,
    alerts: Alerts,
}

#[derive(Debug, Clone, Copy)]
struct Kept {
    bytes: u32,
    critical: bool,
}

/// A part of an index, and the way to go through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The first.
    pub from: Key,
    /// The first that is beyond.
    pub to: Key,
    /// Which way.
    pub order: Order,
}

impl Span {
    /// What is left of it behind `key`.
    #[must_use]
    pub fn behind(self, key: Key) -> Self {
        match self.order {
            Order::Descending => Self { to: key, ..self },
            Order::Ascending => Self {
                from: (key.0, key.1.saturating_add(1)),
                ..self
            },
        }
    }
}

/// What one look found.
#[derive(Debug)]
pub struct Looked<T> {
    /// What was picked, in the order of the span.
    pub found: Vec<(Key, T)>,
    /// The last that was looked at, if there are more behind it.
    pub on: Option<Key>,
}

impl Index {
    /// Adds a dead letter.
    pub fn add(&self, seq: u64, letter: Letter) {
        let kept = Kept {
            bytes: u32::try_from(letter.bytes).unwrap_or(u32::MAX),
            critical: letter.critical,
        };
        let mut inner = self.lock();
        let old = inner.letters.insert((letter.ended_ms, seq), kept);
        inner.bytes += u64::from(kept.bytes);
        inner.bytes -= old.map_or(0, |old| u64::from(old.bytes));
    }

    /// It is a dead letter no more.
    pub fn remove(&self, key: Key) {
        let mut inner = self.lock();
        if let Some(kept) = inner.letters.remove(&key) {
            inner.bytes -= u64::from(kept.bytes);
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lock().letters.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// About how much of the disk they take.
    pub fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// How many ended at `wall_ms` or later; not counted further than `max`.
    pub fn count_since(&self, wall_ms: u64, max: usize) -> usize {
        let inner = self.lock();
        inner.letters.range((wall_ms, 0)..).take(max).count()
    }

    /// The oldest ones that may be removed to make room, with how much they take.
    pub fn oldest(&self, max: usize) -> Vec<(Key, u64)> {
        let inner = self.lock();
        let removable = inner.letters.iter().filter(|(_, kept)| !kept.critical);
        removable
            .take(max)
            .map(|(key, kept)| (*key, u64::from(kept.bytes)))
            .collect()
    }

    /// The end of the newest.
    pub fn newest(&self) -> Option<Key> {
        self.lock().letters.last_key_value().map(|(key, _)| *key)
    }

    /// Another dead letter of `destination`: whether to tell of it, and how many were kept back since the
    /// last time.
    pub fn alert(&self, destination: &str, mono_ms: u64) -> Option<u64> {
        self.lock().alerts.another(destination, mono_ms)
    }

    fn keys(&self, span: Span, max: usize) -> Vec<Key> {
        if span.from >= span.to {
            return vec![];
        }
        let inner = self.lock();
        let keys = inner.letters.range(span.from..span.to).map(|(key, _)| *key);
        match span.order {
            Order::Ascending => keys.take(max).collect(),
            Order::Descending => keys.rev().take(max).collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the index of `queue` if it is not there yet. Not with the queue's upkeep in hand: it takes that
/// itself.
pub async fn load<S>(journal: &Journal, queue: &Queue<S>) -> Result<(), ReadError>
where
    S: Serialize + DeserializeOwned + Mortal,
{
    let index = queue.dead();
    if index.loaded.load(Ordering::Acquire) {
        return Ok(());
    }
    let _one = index.loading.lock().await;
    let mut next = (!index.loaded.load(Ordering::Acquire)).then_some(0);
    while let Some(from) = next {
        let _alone = queue.upkeep().await;
        let place = queue.place();
        let read = journal.read(move |view| {
            let mut letters = vec![];
            let walked = walk_done(view, place, from, LOAD_MAX, &mut |seq, state: S| {
                letters.extend(state.dead_letter().map(|letter| (seq, letter)));
            })?;
            Ok((letters, walked))
        });
        let (letters, walked) = read.await?;
        for (seq, letter) in letters {
            index.add(seq, letter);
        }
        // With the upkeep in hand, so that nobody sets the same rows aside again.
        if !walked.aside.is_empty() && journal.commit(walked.aside).await.is_err() {
            tracing::debug!("damaged rows could not be set aside; the process is about to end");
        }
        next = walked.next;
    }
    index.loaded.store(true, Ordering::Release);
    Ok(())
}

/// Looks through `span` until `pick` has taken `limit` dead letters, or for a bounded time. The index must
/// be there (see [`load`]).
pub async fn look<P, S, T>(
    journal: &Journal,
    queue: &Queue<S>,
    span: Span,
    limit: usize,
    pick: impl Fn(P, S) -> Option<T> + Send + 'static,
) -> Result<Looked<T>, ReadError>
where
    P: DeserializeOwned,
    S: Serialize + DeserializeOwned + Mortal,
    T: Send + 'static,
{
    let keys = queue.dead().keys(span, LOOK_MAX);
    let place = queue.place();
    let read = journal.read(move |view| {
        let (mut found, mut gone, mut on) = (vec![], vec![], None);
        for (at, key) in keys.iter().enumerate() {
            let row = key.1.to_be_bytes();
            let state = view.get(place.done, &row)?;
            let state = state.map(|state| record::decode::<S>(&state));
            let is_it =
                |state: &S| state.dead_letter().map(|letter| letter.ended_ms) == Some(key.0);
            match state {
                Some(Ok(state)) if is_it(&state) => {
                    let payload = view.get(place.payload, &row)?;
                    match payload.and_then(|payload| record::decode::<P>(&payload).ok()) {
                        Some(payload) => {
                            found.extend(pick(payload, state).map(|picked| (*key, picked)));
                        }
                        // It was set aside: it is listed among the damaged records.
                        None => gone.push(*key),
                    }
                }
                // Taken up or removed since.
                _ => gone.push(*key),
            }
            let is_last = at + 1 == keys.len() && keys.len() < LOOK_MAX;
            if found.len() == limit || at + 1 == keys.len() {
                on = Some(*key).filter(|_| !is_last);
                break;
            }
        }
        Ok((Looked { found, on }, gone))
    });
    let (looked, gone) = read.await?;
    for key in gone {
        queue.dead().remove(key);
    }
    Ok(looked)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(ended_ms: u64, bytes: u64, critical: bool) -> Letter {
        Letter {
            ended_ms,
            bytes,
            critical,
        }
    }

    #[test]
    fn adding_twice_is_adding_once_and_removing_leaves_nothing() {
        let index = Index::default();
        index.add(1, letter(5, 10, false));
        index.add(1, letter(5, 12, false));
        assert_eq!((index.len(), index.bytes()), (1, 12));
        index.remove((5, 2));
        index.remove((5, 1));
        index.remove((5, 1));
        assert!(index.is_empty() && index.bytes() == 0);
    }

    #[test]
    fn the_oldest_may_go_but_no_critical_one() {
        let index = Index::default();
        index.add(1, letter(5, 10, true));
        index.add(3, letter(6, 20, false));
        index.add(2, letter(7, 30, false));
        assert_eq!(index.oldest(1), [((6, 3), 20)]);
        assert_eq!(index.oldest(9), [((6, 3), 20), ((7, 2), 30)]);
        assert_eq!(index.count_since(6, 9), 2);
        assert_eq!(index.count_since(0, 2), 2);
    }

    #[test]
    fn a_span_is_gone_through_both_ways_and_goes_on_behind_a_key() {
        let index = Index::default();
        for seq in 1..=4 {
            index.add(seq, letter(seq / 2, 1, false));
        }
        let all = Span {
            from: (0, 0),
            to: (2, 4),
            order: Order::Descending,
        };
        assert_eq!(index.keys(all, 9), [(1, 3), (1, 2), (0, 1)]);
        assert_eq!(index.keys(all.behind((1, 3)), 1), [(1, 2)]);
        let up = Span {
            order: Order::Ascending,
            ..all
        };
        assert_eq!(index.keys(up.behind((0, 1)), 9), [(1, 2), (1, 3)]);
        let none = Span {
            from: (9, 9),
            ..all
        };
        assert!(index.keys(none, 9).is_empty());
    }
}
