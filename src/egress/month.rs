//! Days and months as DingTalk counts quotas (outbound.md §7.2), and when one will be used up.
//!
//! Pure. A natural month in China: UTC+8 all year since 1991, so no time zone database is needed.

use jiff::civil::Date;
use jiff::{Timestamp, ToSpan as _, tz::Offset};

/// The time zone, for people.
pub const TIME_ZONE: &str = "Asia/Shanghai";
const DAY_MS: u64 = 86_400_000;
const SHANGHAI: Offset = jiff::tz::offset(8);
const SHANGHAI_MS: u64 = 8 * 3_600_000;
/// The trend of a first hour says nothing: less time than this counts as this much.
const TREND_MS_MIN: u64 = 3_600_000;
/// The days that make the trend, with today.
const TREND_DAYS: u64 = 7;

/// A day in Shanghai.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Day(Date);

/// A natural month in Shanghai.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Month(Date);

impl Day {
    /// The day of a wall time.
    pub fn at(wall_ms: u64) -> Self {
        let at = i64::try_from(wall_ms)
            .ok()
            .and_then(|ms| Timestamp::from_millisecond(ms).ok())
            .unwrap_or(Timestamp::MAX);
        Self(SHANGHAI.to_datetime(at).date())
    }

    /// Reads [`Self::text`].
    pub fn parse(text: &str) -> Option<Self> {
        let number: u32 = text.parse().ok().filter(|_| text.len() == 8)?;
        let part = |number: u32| i8::try_from(number % 100).ok();
        let year = i16::try_from(number / 10_000).ok()?;
        let date = Date::new(year, part(number / 100)?, part(number)?);
        date.ok().map(Self)
    }

    /// `20261119`, which sorts by time.
    pub fn text(self) -> String {
        let Self(date) = self;
        format!("{:04}{:02}{:02}", date.year(), date.month(), date.day())
    }

    /// `2026-11-19`.
    pub fn shown(self) -> String {
        self.0.to_string()
    }

    /// The month that it is in.
    pub fn month(self) -> Month {
        Month(self.0.first_of_month())
    }

    /// So many days earlier.
    #[must_use]
    pub fn before(self, days: u64) -> Self {
        let days = i64::try_from(days).unwrap_or(i64::MAX);
        Self(self.0.checked_sub(days.days()).unwrap_or(Date::MIN))
    }

    /// How many days later `other` is.
    fn days_until(self, other: Self) -> u64 {
        let days = self.0.until(other.0).map_or(0, |span| span.get_days());
        u64::try_from(days).unwrap_or(0)
    }
}

impl Month {
    /// `2026-11`.
    pub fn shown(self) -> String {
        let Self(date) = self;
        format!("{:04}-{:02}", date.year(), date.month())
    }

    /// Its first day.
    pub fn first(self) -> Day {
        Day(self.0)
    }

    /// How long it is, in milliseconds.
    pub fn length_ms(self) -> u64 {
        u64::try_from(self.0.days_in_month()).unwrap_or(0) * DAY_MS
    }

    /// The wall time at which the next one begins.
    pub fn end_ms(self) -> u64 {
        let next = self.0.checked_add(1.month()).unwrap_or(Date::MAX);
        let at = SHANGHAI.to_timestamp(next.to_datetime(jiff::civil::Time::midnight()));
        at.map_or(u64::MAX, |at| {
            u64::try_from(at.as_millisecond()).unwrap_or(0)
        })
    }
}

/// The first day of the trend that ends at `wall_ms`.
pub fn trend_from(wall_ms: u64) -> Day {
    Day::at(wall_ms).before(TREND_DAYS - 1)
}

/// On which day `limit` is reached if it goes on as in the days of the trend: `recent` calls since
/// `since`, its first day, or a later one if there was nothing before. `None`: not in this month.
pub fn runs_out_on(wall_ms: u64, used: u64, limit: u64, since: Day, recent: u64) -> Option<Day> {
    let today = Day::at(wall_ms);
    let left = limit.saturating_sub(used);
    if left == 0 {
        return Some(today);
    }
    let since = since.max(trend_from(wall_ms));
    let today_ms = (wall_ms + SHANGHAI_MS) % DAY_MS;
    let took_ms = (since.days_until(today) * DAY_MS + today_ms).max(TREND_MS_MIN);
    let wait_ms = (u128::from(left) * u128::from(took_ms)).checked_div(u128::from(recent))?;
    let day = Day::at(wall_ms.saturating_add(u64::try_from(wait_ms).ok()?));
    (day.month() == today.month()).then_some(day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> u64 {
        crate::clock::parse_rfc3339(text).unwrap()
    }

    #[test]
    fn a_day_begins_at_16_hours_utc() {
        for (time, day, month) in [
            ("2026-11-18T15:59:59.999Z", "20261118", "2026-11"),
            ("2026-11-18T16:00:00.000Z", "20261119", "2026-11"),
            ("2026-11-30T15:59:59.999Z", "20261130", "2026-11"),
            ("2026-11-30T16:00:00.000Z", "20261201", "2026-12"),
            ("2026-12-31T15:59:59.999Z", "20261231", "2026-12"),
            ("2026-12-31T16:00:00.000Z", "20270101", "2027-01"),
            ("2028-02-28T16:00:00.000Z", "20280229", "2028-02"),
        ] {
            let found = Day::at(at(time));
            assert_eq!(found.text(), day, "{time}");
            assert_eq!(found.month().shown(), month, "{time}");
            assert_eq!(Day::parse(day), Some(found));
        }
    }

    #[test]
    fn a_month_ends_where_the_next_begins() {
        for (time, end) in [
            ("2026-11-19T00:00:00.000Z", "2026-11-30T16:00:00.000Z"),
            ("2026-11-30T16:00:00.000Z", "2026-12-31T16:00:00.000Z"),
            ("2028-02-10T00:00:00.000Z", "2028-02-29T16:00:00.000Z"),
        ] {
            let month = Day::at(at(time)).month();
            assert_eq!(crate::clock::rfc3339(month.end_ms()), end, "{time}");
            assert!(month < Day::at(month.end_ms()).month());
        }
        assert_eq!(
            Day::at(at("2026-03-01T00:00:00Z")).before(1).text(),
            "20260228"
        );
    }

    #[test]
    fn what_is_no_day_is_not_read() {
        for text in ["", "2026", "20261301", "20260230", "2026-1-1", "202611190"] {
            assert_eq!(Day::parse(text), None, "{text}");
        }
    }

    #[test]
    fn it_runs_out_on_the_day_that_the_trend_says() {
        // Noon in Shanghai on the 11th: the trend has six days and a half.
        let noon = "2026-11-11T04:00:00Z";
        let early = "20261001";
        for (now, used, limit, since, recent, expected) in [
            // 100 a day, 750 left: seven days and a half.
            (noon, 4_250, 5_000, early, 650, Some("2026-11-19")),
            (noon, 4_250, 5_000, early, 325, Some("2026-11-26")),
            // Beyond the month, or never.
            (noon, 1_000, 5_000, early, 650, None),
            (noon, 4_250, 5_000, early, 0, None),
            // Used up already.
            (noon, 5_000, 5_000, early, 650, Some("2026-11-11")),
            (noon, 6_000, 5_000, early, 0, Some("2026-11-11")),
            // Younger than the trend: two days and a half, 100 a day.
            (noon, 250, 1_000, "20261109", 250, Some("2026-11-19")),
            // The first half hour counts as an hour: 10 an hour.
            (
                "2026-11-10T16:30:00Z",
                10,
                250,
                "20261111",
                10,
                Some("2026-11-12"),
            ),
            // The last moments of the month.
            ("2026-11-30T15:59:00Z", 4_999, 5_000, early, 700, None),
            (
                "2026-11-30T15:00:00Z",
                4_999,
                5_000,
                early,
                700,
                Some("2026-11-30"),
            ),
        ] {
            let since = Day::parse(since).unwrap();
            let found = runs_out_on(at(now), used, limit, since, recent).map(Day::shown);
            assert_eq!(
                found.as_deref(),
                expected,
                "{now} {used} {since:?} {recent}"
            );
        }
    }
}
