//! When a destination is left alone, and how it is taken up again.
//!
//! Closed → (5 failures in a row, or half of at least 20 within 30 s) → open for 5 s, doubling to
//! 300 s, ±20 % → one probe → three successes → closed with a concurrency of 1, 2, 4 … limit.
//! Only failures of the destination count; what is wrong with one message says nothing about it. That it
//! cannot be reached and that it fails are counted apart: each by itself opens the breaker.

const FAILURES_IN_A_ROW: u32 = 5;
const WINDOW_MS: u64 = 30_000;
const WINDOW_CALLS_MIN: u32 = 20;
const OPEN_FIRST_MS: u64 = 5_000;
const OPEN_MAX_MS: u64 = 300_000;
const SUCCESSES_TO_CLOSE: u32 = 3;

/// How a destination failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It was not reached: the request had not left as a whole.
    Connection,
    /// It was reached, and fails, or does not answer.
    Server,
}

#[derive(Debug, Clone, Copy, Default)]
struct Failures {
    connection: u32,
    server: u32,
}

impl Failures {
    fn of(&mut self, failure: Failure) -> &mut u32 {
        match failure {
            Failure::Connection => &mut self.connection,
            Failure::Server => &mut self.server,
        }
    }
}

/// How a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Calls pass.
    Closed,
    /// One probe at a time passes.
    HalfOpen,
    /// Nothing passes until this monotonic time.
    Open {
        /// Monotonic milliseconds.
        until_ms: u64,
    },
}

impl State {
    /// As a metric: 0 closed, 1 half open, 2 open.
    pub fn number(self) -> u8 {
        match self {
            Self::Closed => 0,
            Self::HalfOpen => 1,
            Self::Open { .. } => 2,
        }
    }
}

/// The breaker of one destination. `now_ms` is monotonic.
#[derive(Debug, Clone)]
pub struct Breaker {
    state: State,
    in_flight: u32,
    /// How many calls may be in flight; grows again after the breaker closed.
    allowed: u32,
    limit: u32,
    in_a_row: Failures,
    successes: u32,
    open_ms: u64,
    window_start_ms: u64,
    window_calls: u32,
    window_failures: Failures,
    /// When a call was last let through.
    touched_ms: u64,
}

impl Breaker {
    /// A closed breaker that lets at most `limit` calls be in flight.
    pub fn new(limit: u32) -> Self {
        Self::with(limit, 0)
    }

    /// As [`Self::new`], with calls that are in flight already.
    pub fn with(limit: u32, in_flight: u32) -> Self {
        Self {
            state: State::Closed,
            in_flight,
            allowed: limit,
            limit,
            in_a_row: Failures::default(),
            successes: 0,
            open_ms: OPEN_FIRST_MS,
            window_start_ms: 0,
            window_calls: 0,
            window_failures: Failures::default(),
            touched_ms: 0,
        }
    }

    /// From now on at most `limit` calls may be in flight.
    pub fn limit_to(&mut self, limit: u32) {
        let was_all = self.allowed == self.limit;
        self.limit = limit;
        self.allowed = if was_all {
            limit
        } else {
            self.allowed.min(limit)
        };
    }

    /// How it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// Asks for a call. `Err` names the time to ask again, or `None`: when a call in flight ends.
    pub fn acquire(&mut self, now_ms: u64) -> Result<(), Option<u64>> {
        if let State::Open { until_ms } = self.state {
            if now_ms < until_ms {
                return Err(Some(until_ms));
            }
            self.state = State::HalfOpen;
            self.successes = 0;
        }
        let allowed = if self.state == State::HalfOpen {
            1
        } else {
            self.allowed
        };
        if self.in_flight >= allowed {
            return Err(None);
        }
        self.in_flight += 1;
        self.touched_ms = now_ms;
        Ok(())
    }

    /// How many calls would pass now.
    pub fn capacity(&self, now_ms: u64) -> usize {
        let allowed = match self.state {
            State::Closed => self.allowed,
            State::Open { until_ms } if now_ms < until_ms => 0,
            State::HalfOpen | State::Open { .. } => 1,
        };
        allowed.saturating_sub(self.in_flight) as usize
    }

    /// A call ended without telling anything about the destination.
    pub fn release(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// A call reached the destination and it works.
    pub fn succeeded(&mut self, now_ms: u64) {
        self.release();
        self.in_a_row = Failures::default();
        self.count(now_ms);
        match self.state {
            State::HalfOpen => {
                self.successes += 1;
                if self.successes >= SUCCESSES_TO_CLOSE {
                    self.state = State::Closed;
                    self.open_ms = OPEN_FIRST_MS;
                    self.allowed = 1;
                }
            }
            // Slow start: each success admits one more, which doubles the concurrency each round.
            State::Closed => self.allowed = (self.allowed + 1).min(self.limit),
            State::Open { .. } => {}
        }
    }

    /// A call failed because of the destination. `jitter` is in 0..=1.
    pub fn failed(&mut self, failure: Failure, now_ms: u64, jitter: f64) {
        self.release();
        if failure == Failure::Server {
            // It was reached.
            self.in_a_row.connection = 0;
        }
        let in_a_row = self.in_a_row.of(failure);
        *in_a_row += 1;
        let many = *in_a_row >= FAILURES_IN_A_ROW;
        self.count(now_ms);
        *self.window_failures.of(failure) += 1;
        let Failures { connection, server } = self.window_failures;
        let half = connection.max(server) * 2 >= self.window_calls;
        let half = half && self.window_calls >= WINDOW_CALLS_MIN;
        match self.state {
            State::HalfOpen => self.open(now_ms, jitter),
            State::Closed if many || half => self.open(now_ms, jitter),
            State::Closed | State::Open { .. } => {}
        }
    }

    /// Whether what it knows is so old that it is worth nothing.
    pub fn is_forgotten(&self, now_ms: u64) -> bool {
        let last_ms = match self.state {
            State::Open { until_ms } => until_ms,
            State::HalfOpen | State::Closed => self.touched_ms.max(self.window_start_ms),
        };
        self.in_flight == 0 && last_ms + OPEN_MAX_MS < now_ms
    }

    /// A call reached the destination, which is to be left alone until `until_ms`.
    pub fn shut(&mut self, until_ms: u64) {
        self.release();
        self.state = State::Open { until_ms };
        self.in_a_row = Failures::default();
    }

    fn open(&mut self, now_ms: u64, jitter: f64) {
        let spread = self.open_ms * 2 / 5;
        let span = self.open_ms - spread / 2 + super::retry::scaled(spread, jitter);
        self.state = State::Open {
            until_ms: now_ms + span,
        };
        self.open_ms = (self.open_ms * 2).min(OPEN_MAX_MS);
        self.in_a_row = Failures::default();
        self.window_calls = 0;
        self.window_failures = Failures::default();
    }

    fn count(&mut self, now_ms: u64) {
        if now_ms.saturating_sub(self.window_start_ms) > WINDOW_MS {
            self.window_start_ms = now_ms;
            self.window_calls = 0;
            self.window_failures = Failures::default();
        }
        self.window_calls += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(breaker: &mut Breaker, times: u32, now_ms: u64) {
        for _ in 0..times {
            breaker.acquire(now_ms).unwrap();
            breaker.failed(Failure::Server, now_ms, 0.5);
        }
    }

    #[test]
    fn five_failures_in_a_row_open_it_and_one_probe_passes_later() {
        let mut breaker = Breaker::new(8);
        fail(&mut breaker, 5, 100);
        assert_eq!(breaker.acquire(101), Err(Some(5_100)));
        assert_eq!(breaker.acquire(5_100), Ok(()));
        assert_eq!(breaker.acquire(5_100), Err(None), "only one probe");
    }

    #[test]
    fn each_failed_probe_doubles_the_pause_up_to_five_minutes() {
        let mut breaker = Breaker::new(8);
        fail(&mut breaker, 5, 0);
        let mut spans = vec![];
        for _ in 0..9 {
            let State::Open { until_ms } = breaker.state() else {
                panic!("not open")
            };
            breaker.acquire(until_ms).unwrap();
            breaker.failed(Failure::Server, until_ms, 0.5);
            let State::Open { until_ms: next_ms } = breaker.state() else {
                panic!("not open")
            };
            spans.push((next_ms - until_ms) / 1_000);
        }
        assert_eq!(spans, [10, 20, 40, 80, 160, 300, 300, 300, 300]);
    }

    #[test]
    fn three_successes_close_it_and_concurrency_grows_from_one() {
        let mut breaker = Breaker::new(4);
        fail(&mut breaker, 5, 0);
        for _ in 0..3 {
            breaker.acquire(10_000).unwrap();
            breaker.succeeded(10_000);
        }
        assert_eq!(breaker.state(), State::Closed);
        breaker.acquire(10_000).unwrap();
        assert_eq!(breaker.acquire(10_000), Err(None));
        breaker.succeeded(10_000);
        breaker.acquire(10_000).unwrap();
        breaker.acquire(10_000).unwrap();
        assert_eq!(breaker.acquire(10_000), Err(None));
    }

    #[test]
    fn another_limit_holds_at_once_and_a_slow_start_goes_on() {
        let mut breaker = Breaker::new(2);
        breaker.limit_to(4);
        assert_eq!(breaker.capacity(0), 4);
        fail(&mut breaker, 5, 0);
        for _ in 0..3 {
            breaker.acquire(10_000).unwrap();
            breaker.succeeded(10_000);
        }
        breaker.limit_to(8);
        assert_eq!(breaker.capacity(10_000), 1);
    }

    #[test]
    fn half_of_twenty_calls_within_half_a_minute_open_it() {
        let mut breaker = Breaker::new(8);
        for i in 0..19 {
            breaker.acquire(i).unwrap();
            if i % 2 == 0 {
                breaker.failed(Failure::Server, i, 0.5);
            } else {
                breaker.succeeded(i);
            }
        }
        assert_eq!(breaker.state(), State::Closed);
        breaker.acquire(19).unwrap();
        breaker.failed(Failure::Server, 19, 0.5);
        assert!(matches!(breaker.state(), State::Open { .. }));
    }

    #[test]
    fn what_is_not_reached_and_what_fails_are_counted_apart() {
        let open_after = |failures: &mut dyn Iterator<Item = Failure>| {
            let mut breaker = Breaker::new(8);
            let is_open = |breaker: &Breaker| breaker.state() != State::Closed;
            failures.take(100).position(|failure| {
                breaker.acquire(0).unwrap();
                breaker.failed(failure, 0, 0.5);
                is_open(&breaker)
            })
        };
        let one = |failure| open_after(&mut std::iter::repeat(failure));
        assert_eq!(
            (one(Failure::Connection), one(Failure::Server)),
            (Some(4), Some(4))
        );
        let mut four_and_one = [[Failure::Connection; 4].as_slice(), &[Failure::Server]]
            .concat()
            .into_iter()
            .cycle();
        assert_eq!(
            open_after(&mut four_and_one),
            Some(19),
            "by their share alone"
        );
    }
}
