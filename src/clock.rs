//! The one place where time is read.
//!
//! Two times on purpose. *Monotonic* time ([`Clock::mono_ms`]) drives every timer, limit and breaker,
//! so that a stepped wall clock causes neither a storm nor a stall. *Wall* time ([`Clock::wall_ms`])
//! is for signatures, expiry dates, records on disk and people.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::faults::{Bug, bug};

/// Monotonic readings start here, a day above zero, so that "a window ago" can be told at the start.
const BASE_MS: u64 = 86_400_000;

/// A clock that is handed to whoever needs time. Copying it is free; copies agree.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    anchor: Instant,
    wall: Wall,
    /// What the wall clock said at the anchor.
    started_ms: u64,
}

#[derive(Debug, Clone, Copy)]
enum Wall {
    System,
    Simulated {
        epoch_ms: u64,
        /// By how much somebody has set the clock since, in milliseconds.
        set_by_ms: &'static AtomicI64,
    },
}

impl Clock {
    /// The machine's clocks.
    pub fn system() -> Self {
        Self::started(Wall::System)
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one place that may")]
    fn started(wall: Wall) -> Self {
        let mut clock = Self {
            anchor: Instant::now(),
            wall,
            started_ms: 0,
        };
        clock.started_ms = clock.wall_ms();
        clock
    }

    /// A clock whose wall time starts at `epoch_ms` and advances with (paused) tokio time.
    pub fn starting_at(epoch_ms: u64) -> Self {
        static NEVER_SET: AtomicI64 = AtomicI64::new(0);
        Self::set_by(epoch_ms, &NEVER_SET)
    }

    /// As [`Self::starting_at`], of a machine whose wall clock is also set: it is ahead by as many
    /// milliseconds as `set_by_ms` says at the moment. Monotonic time knows nothing of that.
    pub fn set_by(epoch_ms: u64, set_by_ms: &'static AtomicI64) -> Self {
        Self::started(Wall::Simulated {
            epoch_ms,
            set_by_ms,
        })
    }

    /// Milliseconds of monotonic time. Only differences mean anything.
    pub fn mono_ms(&self) -> u64 {
        match self.wall {
            Wall::Simulated { set_by_ms, .. } if bug(Bug::WallClockTimers) => self
                .since_start_ms()
                .saturating_add_signed(set_by_ms.load(Ordering::Relaxed)),
            _ => self.since_start_ms(),
        }
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one place that may")]
    fn since_start_ms(&self) -> u64 {
        BASE_MS + millis(Instant::now().saturating_duration_since(self.anchor))
    }

    /// Microseconds of monotonic time since this clock was made: for measuring, not for timers.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that may")]
    pub fn mono_us(&self) -> u64 {
        let since = Instant::now().saturating_duration_since(self.anchor);
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }

    /// Milliseconds since 1970 by the wall clock.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that may")]
    pub fn wall_ms(&self) -> u64 {
        match self.wall {
            Wall::System => millis(
                SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or(Duration::ZERO),
            ),
            Wall::Simulated {
                epoch_ms,
                set_by_ms,
            } => (epoch_ms + (self.since_start_ms() - BASE_MS))
                .saturating_add_signed(set_by_ms.load(Ordering::Relaxed)),
        }
    }

    /// Wall time for deciding that something on record is old: no further than monotonic time has come
    /// since the start, so that a clock that is set forward makes nothing old.
    pub fn cautious_ms(&self) -> u64 {
        let come_ms = self.started_ms + (self.mono_ms() - BASE_MS);
        self.wall_ms().min(come_ms)
    }

    /// Sleeps until monotonic time `due_ms`.
    pub async fn sleep_until(&self, due_ms: u64) {
        tokio::time::sleep_until(
            self.anchor + Duration::from_millis(due_ms.saturating_sub(BASE_MS)),
        )
        .await;
    }
}

/// A duration in whole milliseconds, saturating.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// `2026-11-22T08:00:00.120Z`; an empty string for a time outside year 9999.
pub fn rfc3339(wall_ms: u64) -> String {
    i64::try_from(wall_ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(String::new, |at| format!("{at:.3}"))
}

/// The milliseconds of an RFC 3339 time; `None` when it is not one or lies before 1970.
pub fn parse_rfc3339(text: &str) -> Option<u64> {
    let at: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(at.as_millisecond()).ok()
}

/// The seconds since 1970 of an HTTP date (`Sat, 28 Nov 2026 08:00:00 GMT`, RFC 9110 §5.6.7); `None` when it is
/// not one or lies before 1970.
pub fn parse_http_date_s(text: &str) -> Option<u64> {
    let parsed = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text);
    u64::try_from(parsed.ok()?.as_second()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_with_milliseconds_and_read_back() {
        assert_eq!(rfc3339(1_763_798_400_120), "2025-11-22T08:00:00.120Z");
        assert_eq!(
            parse_rfc3339("2025-11-22T08:00:00.120Z"),
            Some(1_763_798_400_120)
        );
        assert_eq!(parse_rfc3339("yesterday"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_makes_nothing_old() {
        static SET_BY_MS: AtomicI64 = AtomicI64::new(0);
        let clock = Clock::set_by(1_000_000, &SET_BY_MS);
        tokio::time::advance(Duration::from_secs(5)).await;
        for (set_by_ms, cautious_ms) in
            [(0, 1_005_000), (9_999_999, 1_005_000), (-500_000, 505_000)]
        {
            SET_BY_MS.store(set_by_ms, Ordering::Relaxed);
            assert_eq!(clock.cautious_ms(), cautious_ms);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_simulated_clock_follows_paused_time() {
        let clock = Clock::starting_at(1_000);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!((clock.mono_ms() - BASE_MS, clock.wall_ms()), (5_000, 6_000));
    }
}
