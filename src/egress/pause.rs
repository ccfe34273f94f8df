//! A stop of everything under one key, and the care with which its calls begin again. Few keys have one, so it is
//! kept apart from the counts, of which every key has one.

use super::limit::HOST_CALLS_MAX;
use crate::delivery::verdict::Wait;

/// A pause that recurs grows to this, in milliseconds: so often is a cure noticed by itself.
const GROWS_TO_MS: u64 = 600_000;

/// All times are monotonic milliseconds, but for `wall_ms`.
#[derive(Debug, Default)]
pub(super) struct Pause {
    until_ms: u64,
    last_ms: u64,
    /// It ends with a cure, and not only with time.
    curable: bool,
    /// After a ban: calls at a time, until as many have been answered that all is well.
    slow: Option<u32>,
}

impl Pause {
    /// Begins, or goes on for longer. Returns until when.
    pub(super) fn begin(&mut self, wait: Wait, now_ms: u64, wall_ms: u64) -> u64 {
        let pause_ms = match wait {
            Wait::Fixed(ms) => ms,
            Wait::NextMinute => 60_000 - wall_ms % 60_000,
            // Others that were in flight say the same: that is no new offence.
            Wait::Growing(first_ms) if self.holds(now_ms) && first_ms <= self.last_ms => {
                self.until_ms - now_ms
            }
            // Paused again soon after the last pause: twice as long.
            Wait::Growing(first_ms) => {
                let again = self.last_ms > 0 && !self.is_forgotten(now_ms);
                if again && !self.holds(now_ms) {
                    (self.last_ms * 2).min(GROWS_TO_MS).max(first_ms)
                } else {
                    first_ms
                }
            }
        };
        if !self.holds(now_ms) || pause_ms > self.last_ms {
            self.last_ms = pause_ms;
        }
        self.curable = false;
        self.lasts_until(now_ms + pause_ms);
        self.until_ms
    }

    /// As [`Self::begin`], but an operator's cure may end it, unless DingTalk imposed one that still holds.
    pub(super) fn block(&mut self, wait: Wait, now_ms: u64, wall_ms: u64) -> u64 {
        let is_imposed = self.holds(now_ms) && !self.curable;
        self.begin(wait, now_ms, wall_ms);
        self.curable = !is_imposed;
        self.until_ms
    }

    pub(super) fn is_curable(&self) -> bool {
        self.curable
    }

    /// Goes on as it was before a restart: until `until_ms`, and growing from `step_ms` if it recurs.
    pub(super) fn resume(&mut self, until_ms: u64, step_ms: u64) {
        self.lasts_until(until_ms);
        self.last_ms = step_ms;
    }

    /// What the next one grows from, if it comes soon.
    pub(super) fn step_ms(&self) -> u64 {
        self.last_ms
    }

    fn lasts_until(&mut self, until_ms: u64) {
        self.until_ms = self.until_ms.max(until_ms);
    }

    /// When it is over, one call at a time, then one more with each that was answered: so each round has
    /// twice as many.
    pub(super) fn probe_after(&mut self) {
        self.slow = Some(1);
    }

    pub(super) fn holds(&self, now_ms: u64) -> bool {
        now_ms < self.until_ms
    }

    pub(super) fn until_ms(&self) -> u64 {
        self.until_ms
    }

    /// So many calls are allowed at a time; `None`: as many as may be.
    pub(super) fn at_a_time(&self) -> Option<u32> {
        self.slow
    }

    /// A call was answered. One that left before the pause began says nothing about its end.
    pub(super) fn answered(&mut self, now_ms: u64) {
        if !self.holds(now_ms) {
            let more = self.slow.map(|calls| calls + 1);
            self.slow = more.filter(|calls| *calls < HOST_CALLS_MAX);
        }
    }

    /// Those that are paused try again at once.
    pub(super) fn clear(&mut self) {
        self.until_ms = 0;
        self.last_ms = 0;
    }

    /// Whether it can be forgotten: if it came again, it would be a new one.
    pub(super) fn is_over(&self, now_ms: u64) -> bool {
        self.slow.is_none() && self.is_forgotten(now_ms)
    }

    fn is_forgotten(&self, now_ms: u64) -> bool {
        now_ms >= self.until_ms.saturating_add(self.last_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_growing_pause_is_never_shorter_than_what_is_asked_for() {
        let mut pause = Pause::default();
        assert_eq!(pause.begin(Wait::Fixed(1_000), 0, 0), 1_000);
        // Within a short one, and right after it.
        assert_eq!(pause.begin(Wait::Growing(60_000), 500, 0), 60_500);
        assert_eq!(
            pause.begin(Wait::Growing(60_000), 600, 0),
            60_500,
            "in flight"
        );
        assert_eq!(pause.begin(Wait::Growing(60_000), 60_500, 0), 180_500);
        let mut pause = Pause::default();
        pause.begin(Wait::Fixed(1_000), 0, 0);
        assert_eq!(pause.begin(Wait::Growing(60_000), 1_500, 0), 61_500);
        // Asked for by `Retry-After`, again and again.
        let mut pause = Pause::default();
        assert_eq!(pause.begin(Wait::Growing(1_800_000), 0, 0), 1_800_000);
        assert_eq!(
            pause.begin(Wait::Growing(1_800_000), 1_800_000, 0),
            3_600_000
        );
    }
}
