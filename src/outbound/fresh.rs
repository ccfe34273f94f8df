//! What was accepted a moment ago: its first attempt need not read it back, which costs two switches of
//! threads and hurries the tables.
//!
//! Only a shortcut. What is not here is read from disk, and what somebody else has a hand in is
//! forgotten here first.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Live, Message};

/// Of all messages kept, in bytes on disk; in memory they take about twice as much.
const BYTES_MAX: u64 = 8 << 20;
/// What waits longer than this waits for a limit, and gives way to what may go at once, in milliseconds.
const FRESH_MS: u64 = 2_000;

/// Messages on disk whose first attempt is to come.
#[derive(Debug, Default)]
pub struct Fresh(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    messages: HashMap<u64, (Message, Live)>,
    /// By age, with the monotonic time of acceptance; some are gone already.
    order: VecDeque<(u64, u64)>,
    bytes: u64,
}

impl Kept {
    fn take(&mut self, seq: u64) -> Option<(Message, Live)> {
        let taken = self.messages.remove(&seq)?;
        self.bytes -= taken.1.bytes;
        Some(taken)
    }
}

impl Fresh {
    /// Keeps a message that has become durable, if there is room.
    pub(super) fn keep(&self, seq: u64, message: Message, live: Live, now_ms: u64) {
        let mut kept = self.kept();
        while let Some((oldest, since_ms)) = kept.order.front().copied() {
            let gone = !kept.messages.contains_key(&oldest);
            if !gone && now_ms.saturating_sub(since_ms) < FRESH_MS {
                break;
            }
            kept.order.pop_front();
            drop(kept.take(oldest));
        }
        if kept.bytes + live.bytes <= BYTES_MAX {
            kept.bytes += live.bytes;
            kept.messages.insert(seq, (message, live));
            kept.order.push_back((seq, now_ms));
        }
    }

    /// Gives a message away, or makes sure that nobody gets it from here.
    pub(super) fn take(&self, seq: u64) -> Option<(Message, Live)> {
        self.kept().take(seq)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::state::State;
    use crate::outbound::To;
    use crate::outbound::dead::tests::dead;

    #[test]
    fn what_is_kept_is_bounded_and_gives_way_when_it_is_no_longer_fresh() {
        let fresh = Fresh::default();
        let keep = |seq, bytes, now_ms| {
            let (message, live) = dead(To::Robot("r".to_owned()), State::Unknown, "x");
            fresh.keep(seq, message, Live { bytes, ..live }, now_ms);
        };
        keep(1, BYTES_MAX - 10, 0);
        keep(2, 11, 1);
        assert!(fresh.take(2).is_none(), "no room");
        keep(3, 11, FRESH_MS);
        assert!(fresh.take(1).is_none() && fresh.take(3).is_some());
        assert_eq!(fresh.kept().bytes, 0);
        for seq in 4..1_000 {
            keep(seq, 1, FRESH_MS);
            fresh.take(seq);
        }
        assert!(fresh.kept().order.len() < 3, "what is gone is forgotten");
    }
}
