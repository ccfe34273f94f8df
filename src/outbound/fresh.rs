//! What was accepted a moment ago: its first attempt need not read it back, which costs two switches of
//! threads and hurries the tables.
//!
//! Only a shortcut. What is not here is read from disk, and what somebody else has a hand in is
//! forgotten here first.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Live, Message};

/// Messages kept; more wait for a limit, and by then reading them costs nothing that matters.
const MESSAGES_MAX: usize = 1_024;
/// Larger ones are not kept, in bytes: so this takes 4 MiB at the most.
const BYTES_MAX: u64 = 4_096;

/// Messages on disk whose first attempt is to come.
#[derive(Debug, Default)]
pub struct Fresh(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    messages: HashMap<u64, (Message, Live)>,
    /// By age; some are gone already.
    order: VecDeque<u64>,
}

impl Fresh {
    /// Keeps a message that has become durable.
    pub(super) fn keep(&self, seq: u64, message: Message, live: Live) {
        if live.bytes > BYTES_MAX {
            return;
        }
        let mut kept = self.kept();
        kept.messages.insert(seq, (message, live));
        kept.order.push_back(seq);
        while kept.order.len() > MESSAGES_MAX
            && let Some(oldest) = kept.order.pop_front()
        {
            kept.messages.remove(&oldest);
        }
    }

    /// Gives a message away, or makes sure that nobody gets it from here.
    pub(super) fn take(&self, seq: u64) -> Option<(Message, Live)> {
        self.kept().messages.remove(&seq)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
