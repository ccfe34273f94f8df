//! When the calls of one limit ended, in order: four bytes each, because every key keeps a whole window of
//! them.

use std::collections::VecDeque;

/// Times in milliseconds, the oldest first, none of them further than 49 days from the newest.
#[derive(Debug, Default)]
pub(super) struct Ends {
    base_ms: u64,
    after_ms: VecDeque<u32>,
}

impl Ends {
    pub(super) fn len(&self) -> usize {
        self.after_ms.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.after_ms.is_empty()
    }

    /// Time number `index`, counted from the oldest.
    pub(super) fn get(&self, index: usize) -> Option<u64> {
        let after_ms = self.after_ms.get(index)?;
        Some(self.base_ms + u64::from(*after_ms))
    }

    pub(super) fn newest(&self) -> Option<u64> {
        self.get(self.len().checked_sub(1)?)
    }

    pub(super) fn forget_oldest(&mut self) {
        self.after_ms.pop_front();
    }

    /// Puts a time where it belongs.
    pub(super) fn add(&mut self, end_ms: u64) {
        if self.is_empty() {
            self.base_ms = end_ms;
        }
        let after_ms = end_ms
            .checked_sub(self.base_ms)
            .and_then(|after_ms| u32::try_from(after_ms).ok());
        let after_ms = after_ms.unwrap_or_else(|| self.rebase(end_ms));
        let at = self.after_ms.partition_point(|known| *known <= after_ms);
        let len = self.after_ms.len();
        if len == self.after_ms.capacity() {
            // By a quarter: what doubles would hold nearly twice a window for every key.
            self.after_ms.reserve_exact((len / 4).max(4));
        }
        self.after_ms.insert(at, after_ms);
    }

    /// Counts from another time, so that `end_ms` can be written; returns how. What is too old for that
    /// counts as younger than it is: a place is then free later, never earlier.
    fn rebase(&mut self, end_ms: u64) -> u32 {
        let newest_ms = self.newest().unwrap_or(end_ms).max(end_ms);
        let oldest_ms = self.get(0).unwrap_or(end_ms).min(end_ms);
        let base_ms = oldest_ms.max(newest_ms.saturating_sub(u64::from(u32::MAX)));
        let from_base = |ms: u64| u32::try_from(ms.saturating_sub(base_ms)).unwrap_or(u32::MAX);
        for after_ms in &mut self.after_ms {
            *after_ms = from_base(self.base_ms + u64::from(*after_ms));
        }
        self.base_ms = base_ms;
        from_base(end_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(ends: &Ends) -> Vec<u64> {
        (0..ends.len())
            .filter_map(|index| ends.get(index))
            .collect()
    }

    #[test]
    fn times_are_kept_in_order_however_they_come() {
        let mut ends = Ends::default();
        for ms in [5_000, 7_000, 6_000, 1_000, 7_000] {
            ends.add(ms);
        }
        assert_eq!(all(&ends), [1_000, 5_000, 6_000, 7_000, 7_000]);
        ends.forget_oldest();
        assert_eq!((ends.get(0), ends.newest()), (Some(5_000), Some(7_000)));
    }

    #[test]
    fn a_limit_that_is_never_idle_counts_right_for_years() {
        const MONTH_MS: u64 = 30 * 86_400_000;
        let mut ends = Ends::default();
        for month in 0..60 {
            ends.add(month * MONTH_MS);
            ends.add(month * MONTH_MS + 1);
            let expected = [month * MONTH_MS, month * MONTH_MS + 1];
            assert!(all(&ends).ends_with(&expected), "{:?}", all(&ends));
            while ends.len() > 3 {
                ends.forget_oldest();
            }
        }
    }

    #[test]
    fn what_is_too_old_to_be_written_counts_as_younger() {
        let mut ends = Ends::default();
        ends.add(0);
        let end_ms = u64::from(u32::MAX) + 500;
        ends.add(end_ms);
        assert_eq!(all(&ends), [500, end_ms]);
    }
}
