//! Keys that are remembered for a while: callbacks seen, idempotency keys used.
//!
//! In memory for looking up, on disk in the order of time, so that forgetting the old ones is a walk
//! from the start of the table. A key on disk is `wall ms (8) ‖ digest (16)`.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Batch, Order, ReadError, Table, View};
use crate::delivery::record;

/// What identifies something: the start of a SHA-256.
pub type Digest = [u8; 16];

/// One step of forgetting removes at most this many keys, so that it never holds up a commit.
const FORGET_MAX: usize = 1_000;

/// Remembered keys with a small value each.
#[derive(Debug)]
pub struct Aged<V> {
    table: Table,
    keep_ms: u64,
    entries_max: usize,
    memory: Mutex<Memory<V>>,
}

#[derive(Debug)]
struct Memory<V> {
    known: HashMap<Digest, V>,
    by_age: VecDeque<(u64, Digest)>,
}

impl<V: Clone + Serialize + DeserializeOwned> Aged<V> {
    /// Nothing remembered yet. Keys older than `keep_ms` are forgotten, and the oldest ones above
    /// `entries_max`.
    pub fn new(table: Table, keep_ms: u64, entries_max: usize) -> Self {
        let memory = Mutex::new(Memory {
            known: HashMap::new(),
            by_age: VecDeque::new(),
        });
        Self {
            table,
            keep_ms,
            entries_max,
            memory,
        }
    }

    /// Reads back what is on disk.
    pub fn load(&self, view: &View<'_>) -> Result<(), ReadError> {
        let mut memory = self.memory();
        view.walk(self.table, &[], &[], Order::Ascending, &mut |key, value| {
            let at_ms = key
                .first_chunk::<8>()
                .map(|bytes| u64::from_be_bytes(*bytes));
            let digest = key.last_chunk::<16>().copied();
            if let (Some(at_ms), Some(digest), Ok(value)) = (at_ms, digest, record::decode(value)) {
                memory.known.insert(digest, value);
                memory.by_age.push_back((at_ms, digest));
            } else {
                // Losing one costs at most a duplicate.
                crate::metrics::store_quarantined();
            }
            true
        })
    }

    /// What is remembered under `key`.
    pub fn known(&self, key: &Digest) -> Option<V> {
        self.memory().known.get(key).cloned()
    }

    /// Adds the key to `batch`; when that is durable, call [`Self::remember`].
    pub fn note(&self, batch: &mut Batch, key: &Digest, value: &V, wall_ms: u64) {
        batch.put(
            self.table,
            disk_key(wall_ms, key),
            record::encode_about(value, 8),
        );
    }

    /// The key counts from now on.
    pub fn remember(&self, key: Digest, value: V, wall_ms: u64) {
        let mut memory = self.memory();
        memory.known.insert(key, value);
        memory.by_age.push_back((wall_ms, key));
    }

    /// How many keys are remembered.
    pub fn len(&self) -> usize {
        self.memory().known.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets a bounded number of keys that are too old or too many. Returns how many, with the
    /// deletions for the disk.
    pub fn forget(&self, wall_ms: u64) -> (usize, Batch) {
        let mut memory = self.memory();
        let mut batch = Batch::default();
        let mut count = 0;
        while count < FORGET_MAX
            && let Some(&(at_ms, key)) = memory.by_age.front()
            && (at_ms.saturating_add(self.keep_ms) < wall_ms
                || memory.by_age.len() > self.entries_max)
        {
            memory.by_age.pop_front();
            memory.known.remove(&key);
            batch.delete(self.table, disk_key(at_ms, &key));
            count += 1;
        }
        (count, batch)
    }

    fn memory(&self) -> MutexGuard<'_, Memory<V>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn disk_key(wall_ms: u64, digest: &Digest) -> Vec<u8> {
    let mut key = wall_ms.to_be_bytes().to_vec();
    key.extend_from_slice(digest);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_forgotten_by_age_and_above_the_cap_the_oldest_first() {
        let aged = Aged::<()>::new(Table::Dedup, 1_000, 2);
        for (n, at_ms) in [(1, 10), (2, 20), (3, 30)] {
            aged.remember([n; 16], (), at_ms);
        }
        assert_eq!(aged.forget(40).0, 1, "the cap");
        assert!(aged.known(&[1; 16]).is_none() && aged.known(&[2; 16]).is_some());
        assert_eq!(aged.forget(1_031).0, 2, "the age");
        assert!(aged.is_empty());
    }
}
