//! Who makes room when a door has all the connections that it may have: whoever has been waited for longest.
//!
//! A connection is waited for until its request is there as a whole, and again when it is answered. Without
//! this, as many connections as a door may have that send nothing would keep DingTalk out until they time out.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The connections of a door that are waited for.
#[derive(Debug, Default)]
pub(super) struct Waiting(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    by_age: BTreeMap<u64, Arc<Notify>>,
}

/// A connection of a door.
#[derive(Debug)]
pub(super) struct Guest {
    waiting: Arc<Waiting>,
    /// Its key among those that are waited for; 0 is nobody's. Changed only while the queue is locked.
    place: AtomicU64,
    asked_to_leave: Arc<Notify>,
}

impl Waiting {
    /// Asks whoever has been waited for longest to leave; `false` if nobody is waited for.
    pub(super) fn make_room(&self) -> bool {
        let oldest = self.queue().by_age.pop_first();
        oldest.map(|(_, guest)| guest.notify_one()).is_some()
    }

    /// A connection has come, and is waited for.
    pub(super) fn welcome(self: &Arc<Self>) -> Guest {
        let guest = Guest {
            waiting: self.clone(),
            place: AtomicU64::default(),
            asked_to_leave: Arc::default(),
        };
        guest.is_waited_for();
        guest
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guest {
    /// Its next request is waited for.
    pub(super) fn is_waited_for(&self) {
        let mut queue = self.waiting.queue();
        queue.next += 1;
        let place = queue.next;
        queue.by_age.insert(place, self.asked_to_leave.clone());
        self.place.store(place, Ordering::Relaxed);
    }

    /// Its request is there, and worked on.
    pub(super) fn is_served(&self) {
        let mut queue = self.waiting.queue();
        queue.by_age.remove(&self.place.swap(0, Ordering::Relaxed));
    }

    /// Returns when it is to make room.
    pub(super) async fn asked_to_leave(&self) {
        self.asked_to_leave.notified().await;
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.is_served();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_one_waited_for_longest_makes_room_and_nobody_who_is_served() {
        let waiting = Arc::new(Waiting::default());
        let [first, second, third] = [(); 3].map(|()| waiting.welcome());
        first.is_served();
        first.is_waited_for();
        second.is_served();
        assert!(waiting.make_room());
        third.asked_to_leave().await;
        assert!(waiting.make_room());
        first.asked_to_leave().await;
        assert!(!waiting.make_room(), "the second is served");
        second.is_waited_for();
        drop(second);
        assert!(!waiting.make_room(), "it is gone");
    }
}
