//! The times of one connection: when to ask whether it lives, when to look for another, when to go.
//!
//! Monotonic milliseconds come in as values.

use super::Reason;
use crate::egress::Stream;

/// Who is asked whether he lives has this long to answer (inbound.md §5.5).
pub(super) const ANSWER_MS: u64 = 5_000;
/// A connection that was replaced is listened to for this long: about as long as DingTalk's end of it
/// lives on (inbound.md §5.3).
pub(super) const GRACE_MS: u64 = 10_000;

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing yet.
    Nothing,
    /// Ask whether the other end lives.
    Ping,
    /// Another connection should take its place.
    Leave(Reason),
    /// It did not answer.
    Dead,
    /// It was replaced, and its time is over.
    Over,
}

/// The times of one connection.
#[derive(Debug)]
pub(super) struct Pulse {
    stream: Stream,
    renew_at_ms: u64,
    /// When anything came, be it a pong.
    heard_ms: u64,
    /// When a frame came.
    spoken_ms: u64,
    asked_ms: Option<u64>,
    /// Whether another connection was called for already.
    leaving: bool,
    over_at_ms: Option<u64>,
}

impl Pulse {
    /// Of a connection that is open from `now_ms` on. Connections that were opened together are not to be
    /// renewed together, so `jitter` (0..=1) takes up to a tenth of the age away.
    pub(super) fn new(stream: Stream, now_ms: u64, jitter: f64) -> Self {
        let sooner_ms = crate::delivery::retry::scaled(stream.renew_ms / 10, jitter);
        Self {
            stream,
            renew_at_ms: now_ms + stream.renew_ms - sooner_ms,
            heard_ms: now_ms,
            spoken_ms: now_ms,
            asked_ms: None,
            leaving: false,
            over_at_ms: None,
        }
    }

    /// Something came.
    pub(super) fn heard(&mut self, now_ms: u64) {
        self.heard_ms = now_ms;
        self.asked_ms = None;
    }

    /// A frame came.
    pub(super) fn spoken(&mut self, now_ms: u64) {
        self.heard(now_ms);
        self.spoken_ms = now_ms;
    }

    /// Another connection was called for; false if it had been before.
    pub(super) fn leave(&mut self) -> bool {
        !std::mem::replace(&mut self.leaving, true)
    }

    /// Another connection has taken its place.
    pub(super) fn replaced(&mut self, now_ms: u64) {
        self.leaving = true;
        self.over_at_ms = Some(now_ms + GRACE_MS);
    }

    /// What is due now; it counts as done.
    pub(super) fn due(&mut self, now_ms: u64) -> Due {
        if self.over_at_ms.is_some_and(|at_ms| at_ms <= now_ms) {
            return Due::Over;
        }
        match self.asked_ms {
            Some(asked_ms) if asked_ms + ANSWER_MS <= now_ms => return Due::Dead,
            None if self.heard_ms + self.stream.ping_ms <= now_ms => {
                self.asked_ms = Some(now_ms);
                return Due::Ping;
            }
            _ => {}
        }
        let reason = if self.spoken_ms + self.stream.silence_ms <= now_ms {
            Reason::Silence
        } else if self.renew_at_ms <= now_ms {
            Reason::Age
        } else {
            return Due::Nothing;
        };
        if self.leave() {
            Due::Leave(reason)
        } else {
            Due::Nothing
        }
    }

    /// When to look again.
    pub(super) fn next_ms(&self) -> u64 {
        let ask_ms = self
            .asked_ms
            .map_or(self.heard_ms + self.stream.ping_ms, |at_ms| {
                at_ms + ANSWER_MS
            });
        let leave_ms = (self.spoken_ms + self.stream.silence_ms).min(self.renew_at_ms);
        let leave_ms = (!self.leaving).then_some(leave_ms);
        [Some(ask_ms), leave_ms, self.over_at_ms]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(ask_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START_MS: u64 = 1_000_000;

    fn pulse(jitter: f64) -> Pulse {
        let stream = Stream {
            renew_ms: 600_000,
            silence_ms: 60_000,
            ping_ms: 20_000,
            retry_min_ms: 1_000,
            retry_max_ms: 60_000,
        };
        Pulse::new(stream, START_MS, jitter)
    }

    /// Sleeps as the connection does, with a pong or a frame after each question where `alive`.
    fn course(mut pulse: Pulse, pong: bool, frame: bool, until_ms: u64) -> Vec<(u64, Due)> {
        let mut course = vec![];
        loop {
            let now_ms = pulse.next_ms();
            if now_ms > START_MS + until_ms {
                return course;
            }
            let due = pulse.due(now_ms);
            assert_ne!(due, Due::Nothing, "nobody wakes for nothing");
            course.push((now_ms - START_MS, due));
            match due {
                Due::Ping if frame => pulse.spoken(now_ms),
                Due::Ping if pong => pulse.heard(now_ms),
                Due::Dead | Due::Over => return course,
                _ => {}
            }
        }
    }

    #[test]
    fn an_end_that_does_not_answer_is_given_up_after_ping_and_five_seconds() {
        let course = course(pulse(0.0), false, false, 600_000);
        assert_eq!(course, [(20_000, Due::Ping), (25_000, Due::Dead)]);
    }

    #[test]
    fn an_end_that_answers_but_never_speaks_is_replaced_once() {
        let course = course(pulse(0.0), true, false, 100_000);
        let leave = (60_000, Due::Leave(Reason::Silence));
        assert!(course.contains(&leave), "{course:?}");
        let replaced = course.iter().filter(|(_, due)| *due != Due::Ping);
        assert_eq!(replaced.count(), 1);
    }

    #[test]
    fn age_is_told_with_jitter_though_frames_come() {
        for (jitter, at_ms) in [(0.0, 600_000), (1.0, 540_000)] {
            let course = course(pulse(jitter), true, true, 605_000);
            let leave = (at_ms, Due::Leave(Reason::Age));
            assert!(course.contains(&leave), "{course:?}");
        }
    }

    #[test]
    fn one_that_was_replaced_is_heard_for_ten_seconds_more() {
        let mut pulse = pulse(0.0);
        assert!(pulse.leave() && !pulse.leave());
        pulse.replaced(START_MS + 5_000);
        pulse.spoken(START_MS + 14_000);
        assert_eq!(pulse.next_ms(), START_MS + 15_000);
        assert_eq!(pulse.due(START_MS + 14_999), Due::Nothing);
        assert_eq!(pulse.due(START_MS + 15_000), Due::Over);
    }
}
