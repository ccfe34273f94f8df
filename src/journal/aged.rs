//! Keys that are remembered for a while: callbacks seen, idempotency keys used.
//!
//! In memory for looking up, on disk in the order of time, so that forgetting the old ones is a walk
//! from the start of the table. `N` keys that came together are one row: its key is `wall ms (8) ‖`
//! the first digest (16), its value the record of what they stand for, behind it the other digests.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Batch, Order, ReadError, Table, View};
use crate::delivery::record;
use crate::faults::{Bug, bug};

/// What identifies something: the start of a SHA-256.
pub type Digest = [u8; 16];

/// One step of forgetting removes at most this many rows, so that it never holds up a commit.
const FORGET_MAX: usize = 1_000;

/// Remembered keys, `N` at a time, with a small value.
#[derive(Debug)]
pub struct Aged<V, const N: usize> {
    table: Table,
    keep_ms: u64,
    entries_max: usize,
    memory: Mutex<Memory<V, N>>,
}

#[derive(Debug)]
struct Memory<V, const N: usize> {
    known: HashMap<Digest, V>,
    by_age: VecDeque<(u64, [Digest; N])>,
}

impl<V: Clone + Serialize + DeserializeOwned, const N: usize> Aged<V, N> {
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

    /// Reads back what is on disk. Damaged rows are put into `aside`: losing one costs at most a
    /// duplicate.
    pub fn load(&self, view: &View<'_>, aside: &mut Batch) -> Result<(), ReadError> {
        let mut memory = self.memory();
        view.walk(self.table, &[], &[], Order::Ascending, &mut |key, value| {
            match read_row(key, value) {
                Ok((at_ms, keys, value)) => memory.remember(keys, &value, at_ms),
                Err(error) => aside.quarantine(self.table, key, value, &error),
            }
            true
        })
    }

    /// What is remembered under `key`.
    pub fn known(&self, key: &Digest) -> Option<V> {
        self.memory().known.get(key).cloned()
    }

    /// Adds the keys to `batch`; when that is durable, call [`Self::remember`].
    pub fn note(&self, batch: &mut Batch, keys: &[Digest; N], value: &V, wall_ms: u64) {
        let lost = match self.table {
            Table::Idempotency => Bug::IdempotencyInMemory,
            _ => Bug::DedupNotStored,
        };
        if bug(lost) {
            return;
        }
        let mut row = record::encode_about(value, 8 + 16 * N);
        row.extend(keys.iter().skip(1).flatten());
        batch.put(self.table, disk_key(wall_ms, keys), row);
    }

    /// The keys count from now on.
    pub fn remember(&self, keys: [Digest; N], value: &V, wall_ms: u64) {
        self.memory().remember(keys, value, wall_ms);
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
        let mut rows = 0;
        while rows < FORGET_MAX
            && let Some(&(at_ms, keys)) = memory.by_age.front()
        {
            let is_old = at_ms.saturating_add(self.keep_ms) < wall_ms;
            if !is_old && memory.by_age.len() * N <= self.entries_max {
                break;
            }
            if !is_old {
                crate::metrics::forgotten_early(self.table.name(), N);
            }
            memory.by_age.pop_front();
            for key in &keys {
                memory.known.remove(key);
            }
            batch.delete(self.table, disk_key(at_ms, &keys));
            rows += 1;
        }
        (rows * N, batch)
    }

    fn memory(&self) -> MutexGuard<'_, Memory<V, N>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<V: Clone, const N: usize> Memory<V, N> {
    fn remember(&mut self, keys: [Digest; N], value: &V, wall_ms: u64) {
        for key in keys {
            self.known.insert(key, value.clone());
        }
        self.by_age.push_back((wall_ms, keys));
    }
}

fn disk_key<const N: usize>(wall_ms: u64, keys: &[Digest; N]) -> Vec<u8> {
    let mut key = wall_ms.to_be_bytes().to_vec();
    key.extend(keys.iter().take(1).flatten());
    key
}

fn read_row<V: DeserializeOwned, const N: usize>(
    key: &[u8],
    value: &[u8],
) -> Result<(u64, [Digest; N], V), record::Damaged> {
    let (at_ms, first) = key
        .split_first_chunk::<8>()
        .ok_or(record::Damaged::Length)?;
    let (value, others) = record::split_first(value)?;
    let mut keys = [[0; 16]; N];
    let bytes = [first, others].concat();
    let (digests, rest) = bytes.as_chunks::<16>();
    if digests.len() != N || !rest.is_empty() {
        return Err(record::Damaged::Length);
    }
    keys.copy_from_slice(digests);
    Ok((u64::from_be_bytes(*at_ms), keys, record::decode(value)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_forgotten_by_age_and_above_the_cap_the_oldest_first() {
        let aged = Aged::<(), 1>::new(Table::Dedup, 1_000, 2);
        for (n, at_ms) in [(1, 10), (2, 20), (3, 30)] {
            aged.remember([[n; 16]], &(), at_ms);
        }
        assert_eq!(aged.forget(40).0, 1, "the cap");
        assert!(aged.known(&[1; 16]).is_none() && aged.known(&[2; 16]).is_some());
        assert_eq!(aged.forget(1_031).0, 2, "the age");
        assert!(aged.is_empty());
    }
}
