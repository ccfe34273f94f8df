//! Dead letters: what is known of each without looking at the disk, and how often an operator is told.

use std::collections::HashMap;

use super::event::{Forwarding, TargetState};

/// Somebody is told of one destination's dead letters once in this time, in milliseconds.
pub const TOLD_EVERY_MS: u64 = 3_600_000;
/// Destinations that are told apart; more than these count as one.
const DESTINATIONS_MAX: usize = 4_096;
/// About what the row of a state takes on disk, beside the lists in it.
const STATE_BYTES: u64 = 512;

/// What is known of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Letter {
    /// Wall time of its end in milliseconds.
    pub ended_ms: u64,
    /// About how much of the disk it takes.
    pub bytes: u64,
    /// Whether it is critical: never removed to make room.
    pub critical: bool,
}

impl Letter {
    /// A letter whose payload has `payload_bytes` and whose state names `parts` things of a list.
    pub fn new(ended_ms: u64, payload_bytes: u64, parts: usize, critical: bool) -> Self {
        Self {
            ended_ms,
            bytes: payload_bytes + STATE_BYTES + 64 * parts as u64,
            critical,
        }
    }
}

/// A state that may be that of a dead letter.
pub trait Mortal {
    /// What is known of it, if it is one.
    fn dead_letter(&self) -> Option<Letter>;
}

impl Mortal for Forwarding {
    fn dead_letter(&self) -> Option<Letter> {
        let targets = self.targets.as_deref().unwrap_or_default();
        let dead = targets
            .iter()
            .any(|target| target.state == TargetState::Dead);
        let ended_ms = self.finished_ms.filter(|_| dead)?;
        // Events have no priority.
        Some(Letter::new(ended_ms, self.bytes, targets.len(), false))
    }
}

/// Who was told of which destination, and when.
#[derive(Debug, Default)]
pub struct Alerts(HashMap<String, Told>);

#[derive(Debug)]
struct Told {
    at_ms: u64,
    kept_back: u64,
}

impl Alerts {
    /// Another dead letter of `destination`. Whether to tell of it at `now_ms` (monotonic), and how many
    /// were kept back since the last time.
    pub fn another(&mut self, destination: &str, now_ms: u64) -> Option<u64> {
        let old = |told: &Told| now_ms.saturating_sub(told.at_ms) >= TOLD_EVERY_MS;
        if self.0.len() >= DESTINATIONS_MAX && !self.0.contains_key(destination) {
            self.0.retain(|_, told| !old(told));
        }
        let destination = if self.0.len() < DESTINATIONS_MAX || self.0.contains_key(destination) {
            destination
        } else {
            ""
        };
        match self.0.get_mut(destination) {
            Some(told) if !old(told) => {
                told.kept_back += 1;
                None
            }
            Some(told) => {
                told.at_ms = now_ms;
                Some(std::mem::take(&mut told.kept_back))
            }
            None => {
                let told = Told {
                    at_ms: now_ms,
                    kept_back: 0,
                };
                self.0.insert(destination.to_owned(), told);
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_told_of_once_an_hour_with_the_number_kept_back() {
        let mut alerts = Alerts::default();
        assert_eq!(alerts.another("robot/a", 5), Some(0));
        assert_eq!(alerts.another("robot/a", 6), None);
        assert_eq!(alerts.another("robot/b", 6), Some(0));
        assert_eq!(alerts.another("robot/a", 5 + TOLD_EVERY_MS - 1), None);
        assert_eq!(alerts.another("robot/a", 5 + TOLD_EVERY_MS), Some(2));
        assert_eq!(alerts.another("robot/a", 6 + TOLD_EVERY_MS), None);
    }

    #[test]
    fn more_destinations_than_can_be_told_apart_count_as_one() {
        let mut alerts = Alerts::default();
        for number in 0..DESTINATIONS_MAX {
            assert_eq!(alerts.another(&format!("chat/{number}"), 0), Some(0));
        }
        assert_eq!(alerts.another("chat/x", 1), Some(0));
        assert_eq!(alerts.another("chat/y", 1), None);
        assert_eq!(alerts.another("chat/0", 1), None);
        assert!(alerts.0.len() <= DESTINATIONS_MAX + 1);
        assert_eq!(alerts.another("chat/y", TOLD_EVERY_MS), Some(0));
    }
}
