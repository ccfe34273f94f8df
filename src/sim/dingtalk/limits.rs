//! DingTalk's limits as DingTalk counts them: sliding windows over the time of arrival.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// The limits that DingTalk is known to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Limit {
    /// Messages of one custom robot; above it the robot is shut for a while.
    Robot,
    /// Messages of the enterprise robot in one group. Not published by DingTalk.
    Chat,
    /// Calls of one API by the app.
    Api,
    /// All requests of one IP; above it the IP is banned for a while.
    Egress,
}

impl Limit {
    /// So many in so long, and how long the penalty lasts.
    fn numbers(self) -> (usize, Duration, Duration) {
        match self {
            Self::Robot => (20, Duration::from_mins(1), Duration::from_mins(10)),
            Self::Chat => (20, Duration::from_mins(1), Duration::ZERO),
            Self::Api => (20, Duration::from_secs(1), Duration::ZERO),
            Self::Egress => (10_000, Duration::from_secs(20), Duration::from_mins(5)),
        }
    }
}

/// What a limit says to one arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    /// Within the limit.
    Free,
    /// This arrival broke the limit.
    Broken,
    /// An earlier one did, and the penalty still runs.
    Shut,
}

/// All windows of the box.
#[derive(Debug)]
pub(super) struct Limits {
    enforced: bool,
    scale: f64,
    gates: HashMap<(Limit, String), Gate>,
}

impl Limits {
    /// Windows and penalties are divided by `scale`; a scale that makes no sense counts as 1.
    pub(super) fn new(enforced: bool, scale: f64) -> Self {
        let scale = if scale.is_finite() && scale > 0.0 {
            scale
        } else {
            1.0
        };
        Self {
            enforced,
            scale,
            gates: HashMap::new(),
        }
    }

    /// One arrival at the limit for this key.
    pub(super) fn pass(&mut self, limit: Limit, key: &str, at: Instant) -> Pass {
        if !self.enforced {
            return Pass::Free;
        }
        let scale = self.scale;
        let gate = self.gates.entry((limit, key.to_owned()));
        gate.or_insert_with(|| Gate::new(limit, scale)).pass(at)
    }
}

/// One window with its penalty. Refused arrivals are not counted: a penalty has a fixed length.
#[derive(Debug)]
struct Gate {
    count: usize,
    window: Duration,
    shut: Duration,
    shut_until: Option<Instant>,
    arrivals: VecDeque<Instant>,
}

impl Gate {
    fn new(limit: Limit, scale: f64) -> Self {
        let (count, window, shut) = limit.numbers();
        Self {
            count,
            window: window.div_f64(scale),
            shut: shut.div_f64(scale),
            shut_until: None,
            arrivals: VecDeque::new(),
        }
    }

    fn pass(&mut self, at: Instant) -> Pass {
        if self.shut_until.is_some_and(|until| at < until) {
            return Pass::Shut;
        }
        self.shut_until = None;
        while self
            .arrivals
            .front()
            .is_some_and(|first| at.duration_since(*first) >= self.window)
        {
            self.arrivals.pop_front();
        }
        if self.arrivals.len() < self.count {
            self.arrivals.push_back(at);
            return Pass::Free;
        }
        if !self.shut.is_zero() {
            self.shut_until = Some(at + self.shut);
        }
        Pass::Broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_twenty_first_message_within_a_minute_shuts_a_robot_for_ten() {
        let mut limits = Limits::new(true, 1.0);
        let start = crate::sim::clock::now();
        for i in 0..20 {
            assert_eq!(
                limits.pass(Limit::Robot, "r", start + Duration::from_secs(i)),
                Pass::Free
            );
        }
        let broken = start + Duration::from_millis(59_999);
        assert_eq!(limits.pass(Limit::Robot, "other", broken), Pass::Free);
        assert_eq!(limits.pass(Limit::Robot, "r", broken), Pass::Broken);
        assert_eq!(
            limits.pass(Limit::Robot, "r", broken + Duration::from_secs(599)),
            Pass::Shut
        );
        assert_eq!(
            limits.pass(Limit::Robot, "r", broken + Duration::from_mins(10)),
            Pass::Free
        );
    }

    #[test]
    fn a_window_slides_and_is_exact_to_its_end() {
        let mut limits = Limits::new(true, 20.0);
        let start = crate::sim::clock::now();
        for _ in 0..20 {
            assert_eq!(limits.pass(Limit::Chat, "c", start), Pass::Free);
        }
        assert_eq!(
            limits.pass(Limit::Chat, "c", start + Duration::from_millis(2_999)),
            Pass::Broken
        );
        assert_eq!(
            limits.pass(Limit::Chat, "c", start + Duration::from_secs(3)),
            Pass::Free
        );
    }

    #[test]
    fn a_box_without_limits_never_refuses() {
        let mut limits = Limits::new(false, 1.0);
        let at = crate::sim::clock::now();
        assert!((0..100).all(|_| limits.pass(Limit::Api, "a", at) == Pass::Free));
    }
}
