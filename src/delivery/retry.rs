//! When the next attempt is due.

/// The least delay between two attempts, in milliseconds (fixed; reliability contract §4).
pub const DELAY_MIN_MS: u64 = 1_000;

/// An exponential schedule with full jitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// No delay is longer than this, in milliseconds.
    pub cap_ms: u64,
}

/// Attempts at the alert platform.
pub const PLATFORM: Schedule = Schedule { cap_ms: 300_000 };
/// Attempts at DingTalk.
pub const DINGTALK: Schedule = Schedule { cap_ms: 600_000 };
/// `Retry-After` is never followed beyond this, in milliseconds.
pub const RETRY_AFTER_MAX_MS: u64 = 3_600_000;

impl Schedule {
    /// The delay after the `failures`-th failure (1 = the first): uniform in
    /// [1 s, min(cap, 1 s · 2^failures)]. `jitter` is in 0..=1.
    pub fn delay_ms(self, failures: u32, jitter: f64) -> u64 {
        let ceiling = DELAY_MIN_MS
            .checked_shl(failures.min(30))
            .unwrap_or(u64::MAX)
            .clamp(DELAY_MIN_MS, self.cap_ms.max(DELAY_MIN_MS));
        DELAY_MIN_MS + scaled(ceiling - DELAY_MIN_MS, jitter)
    }

    /// As [`Self::delay_ms`], but a server's wish for a longer pause is respected up to an hour.
    pub fn delay_after_ms(self, failures: u32, jitter: f64, retry_after_s: Option<u64>) -> u64 {
        let computed = self.delay_ms(failures, jitter);
        retry_after_s.map_or(computed, |wish_s| {
            wish_s
                .saturating_mul(1_000)
                .clamp(computed, RETRY_AFTER_MAX_MS.max(computed))
        })
    }
}

/// `span · share`, for a share in 0..=1.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "span is below 2^53 and share is clamped to 0..=1"
)]
pub fn scaled(span: u64, share: f64) -> u64 {
    (span as f64 * share.clamp(0.0, 1.0)) as u64
}

/// Attempts of one destination that are under way, and how many of them repeat a failed one: when a
/// destination is in trouble, repeats must not crowd out what may succeed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Budget {
    in_flight: u32,
    repeats: u32,
}

/// A repeat for which there is no room has its turn again after this, in milliseconds; `share` in 0..=1 spreads
/// them.
pub fn no_room_ms(share: f64) -> u64 {
    200 + scaled(256, share)
}

/// So many repeats may always be under way.
const REPEATS_MIN: u32 = 3;
/// Of all that is under way, repeats may be this part, in percent.
const REPEATS_PERCENT: u32 = 20;

impl Budget {
    /// Takes a place; false if it is a repeat and there are too many (reliability contract §4).
    pub fn take(&mut self, repeats: bool) -> bool {
        let allowed = REPEATS_MIN.max((self.in_flight + 1) * REPEATS_PERCENT / 100);
        if repeats && self.repeats >= allowed {
            return false;
        }
        self.in_flight += 1;
        self.repeats += u32::from(repeats);
        true
    }

    /// Gives a place back.
    pub fn give_back(&mut self, repeats: bool) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.repeats = self.repeats.saturating_sub(u32::from(repeats));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_three_or_a_fifth_of_what_is_under_way() {
        let mut budget = Budget::default();
        assert_eq!((0..9).filter(|_| budget.take(true)).count(), 3);
        assert!((0..17).all(|_| budget.take(false)));
        assert!(budget.take(true), "one of twenty-one is the fourth");
        assert!(!budget.take(true));
        budget.give_back(true);
        assert!(budget.take(true));
    }

    #[test]
    fn delays_grow_to_the_cap_and_never_fall_below_a_second() {
        let table = [
            (1, 2_000),
            (2, 4_000),
            (5, 32_000),
            (9, 300_000),
            (40, 300_000),
        ];
        for (failures, longest) in table {
            assert_eq!(
                PLATFORM.delay_ms(failures, 1.0),
                longest,
                "after {failures}"
            );
            assert_eq!(PLATFORM.delay_ms(failures, 0.0), DELAY_MIN_MS);
        }
        assert_eq!(DINGTALK.delay_ms(32, 1.0), 600_000);
    }

    #[test]
    fn retry_after_is_followed_between_our_own_delay_and_an_hour() {
        assert_eq!(PLATFORM.delay_after_ms(1, 1.0, Some(0)), 2_000);
        assert_eq!(PLATFORM.delay_after_ms(1, 1.0, Some(90)), 90_000);
        assert_eq!(
            PLATFORM.delay_after_ms(1, 1.0, Some(u64::MAX)),
            RETRY_AFTER_MAX_MS
        );
    }
}
