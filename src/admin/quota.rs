//! Dead letters within their quota, and a word about new ones: the oldest go first, critical ones never.

use std::sync::{Arc, Mutex, PoisonError};

use super::dead::remove;
use crate::clock::Clock;
use crate::delivery::dead::TOLD_EVERY_MS;
use crate::delivery::event::Forwarding;
use crate::health::Health;
use crate::journal::dead::{Key, load};
use crate::journal::queue::Queue;
use crate::journal::room::Room;
use crate::journal::{Journal, ReadError};
use crate::metrics;
use crate::outbound::Live;
use crate::outbound::dead::STEP_MAX;

/// New ones are not counted further than this.
const COUNTED_MAX: usize = 10_000;
/// In `/ready` and how it is withdrawn.
const TROUBLE: &str = "dead_letters";
/// Steps of one round, so that it ends.
const STEPS_MAX: usize = 1_000;

/// Keeps dead letters within their quota.
#[derive(Debug)]
pub struct Quota {
    /// The store.
    pub journal: Journal,
    /// Events.
    pub inbox: Arc<Queue<Forwarding>>,
    /// Messages.
    pub outbox: Arc<Queue<Live>>,
    /// The disk, of which dead letters get a tenth at most.
    pub room: Room,
    /// The clock.
    pub clock: Clock,
    /// What was said when.
    pub said: Mutex<Said>,
}

/// When somebody was told of what was removed, and how much was since.
#[derive(Debug, Default)]
pub struct Said {
    at_ms: Option<u64>,
    removed: u64,
}

impl Quota {
    /// Brings to mind what dead letters there are.
    pub async fn load(&self) -> Result<(), ReadError> {
        load(&self.journal, &self.outbox).await?;
        load(&self.journal, &self.inbox).await
    }

    /// Removes the oldest dead letters while all of them take more than `bytes_max` or a tenth of the disk.
    pub async fn enforce(&self, bytes_max: u64) {
        if let Err(error) = self.load().await {
            tracing::warn!(%error, "dead letters cannot be counted now");
            return;
        }
        let bytes_max = effective(bytes_max, self.room.total_bytes());
        let mut removed = 0;
        for _ in 0..STEPS_MAX {
            match self.step(bytes_max).await {
                0 => break,
                letters => removed += letters,
            }
        }
        self.say(removed, bytes_max);
    }

    async fn step(&self, bytes_max: u64) -> u64 {
        let over =
            || (self.inbox.dead().bytes() + self.outbox.dead().bytes()).saturating_sub(bytes_max);
        if over() == 0 {
            return 0;
        }
        let _alone = (self.outbox.upkeep().await, self.inbox.upkeep().await);
        let (events, messages) = oldest(
            self.inbox.dead().oldest(STEP_MAX),
            self.outbox.dead().oldest(STEP_MAX),
            over(),
        );
        let mut removed = 0;
        if !messages.is_empty() && remove(&self.journal, &self.outbox, &messages).await.is_ok() {
            metrics::dead_letters_evicted("outbound", messages.len() as u64);
            removed += messages.len() as u64;
        }
        if !events.is_empty() && remove(&self.journal, &self.inbox, &events).await.is_ok() {
            metrics::dead_letters_evicted("inbound", events.len() as u64);
            removed += events.len() as u64;
        }
        removed
    }

    fn say(&self, removed: u64, bytes_max: u64) {
        let now_ms = self.clock.mono_ms();
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.removed += removed;
        let lately = |at_ms: u64| now_ms.saturating_sub(at_ms) < TOLD_EVERY_MS;
        if said.removed > 0 && !said.at_ms.is_some_and(lately) {
            tracing::warn!(
                removed = said.removed,
                bytes_max,
                "the oldest dead letters were removed: all of them took more than [journal] dead_bytes_max or 10 % of the disk"
            );
            *said = Said {
                at_ms: Some(now_ms),
                removed: 0,
            };
        }
    }

    /// Says in `/ready` whether there are dead letters of the last hour.
    pub fn report(&self, health: &Health) {
        let since_ms = self.clock.wall_ms().saturating_sub(TOLD_EVERY_MS);
        let new = self.inbox.dead().count_since(since_ms, COUNTED_MAX)
            + self.outbox.dead().count_since(since_ms, COUNTED_MAX);
        if new == 0 {
            health.recovered(TROUBLE);
            return;
        }
        let more = if new >= COUNTED_MAX { "+" } else { "" };
        let new = new.min(COUNTED_MAX);
        health.degraded(
            TROUBLE,
            format!(
                "dead_letters: 过去一小时有 {new}{more} 条死信，用 dingd dead list 查看 / {new}{more} dead letters in the last hour; dingd dead list"
            ),
        );
    }
}

/// The smaller of what is configured and a tenth of the disk. A disk that says nothing of its size sets no
/// quota.
fn effective(bytes_max: u64, disk_bytes: u64) -> u64 {
    match disk_bytes / 10 {
        0 => bytes_max,
        tenth => bytes_max.min(tenth),
    }
}

/// Of the oldest of both directions so many, by age, that they take `over` bytes; but not more than a step.
fn oldest(events: Vec<(Key, u64)>, messages: Vec<(Key, u64)>, over: u64) -> (Vec<Key>, Vec<Key>) {
    let events = events.into_iter().map(|(key, bytes)| (key, bytes, true));
    let messages = messages.into_iter().map(|(key, bytes)| (key, bytes, false));
    let mut all: Vec<_> = events.chain(messages).collect();
    all.sort_by_key(|(key, ..)| key.0);
    all.truncate(STEP_MAX);
    let mut freed = 0;
    let (mut old_events, mut old_messages) = (vec![], vec![]);
    for (key, bytes, inbound) in all {
        if freed >= over {
            break;
        }
        freed += bytes;
        if inbound {
            old_events.push(key);
        } else {
            old_messages.push(key);
        }
    }
    (old_events, old_messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quota_is_the_smaller_of_the_configured_one_and_a_tenth_of_the_disk() {
        assert_eq!(effective(1 << 30, 1 << 40), 1 << 30);
        assert_eq!(effective(1 << 30, 5_000), 500);
        assert_eq!(effective(7, 0), 7);
    }

    #[test]
    fn the_oldest_of_both_directions_go_until_enough_is_free() {
        let events = vec![((2, 1), 10), ((9, 2), 10)];
        let messages = vec![((1, 1), 10), ((3, 2), 10)];
        let take = |over| oldest(events.clone(), messages.clone(), over);
        assert_eq!(take(0), (vec![], vec![]));
        assert_eq!(take(11), (vec![(2, 1)], vec![(1, 1)]));
        assert_eq!(take(1_000), (vec![(2, 1), (9, 2)], vec![(1, 1), (3, 2)]));
    }
}
