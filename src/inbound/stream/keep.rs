//! Keeps one connection of an app up. Where there is a choice the next one is open before the last is left.
//!
//! One connection is *current*. It may ask to be replaced (the gateway said so, it is old, it is silent), or
//! be lost. A replaced one is listened to for a while yet: what DingTalk sent on it is still answered.

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};

use super::desk::Desk;
use super::link::{Link, Over};
use super::open::{Opener, Socket, Trouble};
use super::{Plan, Reason};
use crate::clock::Clock;
use crate::delivery::random;
use crate::delivery::retry::scaled;
use crate::drain::Drain;
use crate::egress::Stream;
use crate::health::Health;
use crate::metrics;

/// Being without a connection for this long is trouble that the operator should hear of.
const TOLD_AFTER_MS: u64 = 5_000;
/// How often the time without a connection is brought into the metric.
const COUNTED_EVERY_MS: u64 = 1_000;
/// When there is nothing to wait for but connections.
const IDLE_MS: u64 = 3_600_000;

/// The keeper of an app's connection.
#[derive(Debug)]
pub(super) struct Keeper {
    name: String,
    opener: Opener,
    desk: Arc<Desk>,
    clock: Clock,
    health: Health,
    links: JoinSet<Over>,
    current: Option<Current>,
    last_id: u64,
    retry: Retry,
    gap: Gap,
    trouble: Option<Trouble>,
}

/// The connection that is in use.
#[derive(Debug)]
struct Current {
    id: u64,
    plan: Arc<Plan>,
    opened_ms: u64,
    /// Whether another is to take its place.
    leaving: bool,
    replaced: oneshot::Sender<()>,
}

/// A connection that is being opened.
struct Opening {
    plan: Arc<Plan>,
    course: Pin<Box<dyn Future<Output = Result<Socket, Trouble>> + Send>>,
}

/// What a keeper is to do; `None` ends it.
pub(super) type Plans = watch::Receiver<Option<Arc<Plan>>>;

impl Keeper {
    /// The keeper of the app `name`.
    pub(super) fn new(name: &str, opener: Opener, desk: Arc<Desk>) -> Self {
        let clock = opener.egress.clock();
        Self {
            name: name.to_owned(),
            health: opener.egress.health().clone(),
            opener,
            desk,
            clock,
            links: JoinSet::new(),
            current: None,
            last_id: 0,
            retry: Retry::default(),
            gap: Gap::new(clock.mono_ms()),
            trouble: None,
        }
    }

    /// Keeps a connection up until the plan is withdrawn or the daemon stops.
    pub(super) async fn run(mut self, mut plans: Plans, drain: Drain) {
        let (wishes, mut wished) = mpsc::unbounded_channel();
        let mut opening: Option<Opening> = None;
        let stopping = drain.stopping();
        tokio::pin!(stopping);
        let mut plan = plans.borrow_and_update().clone();
        while let Some(wanted) = &plan {
            let now_ms = self.clock.mono_ms();
            if opening.is_none() && self.wants_another() && self.retry.at_ms <= now_ms {
                opening = Some(self.opening(wanted.clone()));
            }
            self.report(now_ms);
            let wake_ms = self.wake_ms(now_ms, opening.is_some());
            tokio::select! {
                () = &mut stopping => break,
                changed = plans.changed() => {
                    plan = changed.ok().and_then(|()| plans.borrow_and_update().clone());
                    self.replan(plan.as_deref(), &mut opening);
                }
                (plan, result) = outcome(&mut opening) => {
                    opening = None;
                    match result {
                        Ok(socket) => {
                            let link = self.link(plan.clone(), wishes.clone());
                            self.opened(link, socket, plan, &drain);
                        }
                        Err(trouble) => self.failed(trouble, plan.stream),
                    }
                }
                Some((id, reason)) = wished.recv() => self.wished(id, reason),
                Some(over) = self.links.join_next(), if !self.links.is_empty() => self.over(over),
                () = self.clock.sleep_until(wake_ms) => {}
            }
        }
        self.end().await;
    }

    /// Whether there is no connection, or one that asks to be replaced.
    fn wants_another(&self) -> bool {
        self.current.as_ref().is_none_or(|current| current.leaving)
    }

    fn opening(&self, plan: Arc<Plan>) -> Opening {
        let (opener, wanted) = (self.opener.clone(), plan.clone());
        let course = Box::pin(async move { opener.open(&wanted.app).await });
        Opening { plan, course }
    }

    fn wake_ms(&self, now_ms: u64, is_opening: bool) -> u64 {
        let retry_ms = (self.wants_another() && !is_opening).then_some(self.retry.at_ms);
        let count_ms = self.links.is_empty().then_some(now_ms + COUNTED_EVERY_MS);
        let soonest_ms = retry_ms.into_iter().chain(count_ms).min();
        soonest_ms.unwrap_or(now_ms + IDLE_MS)
    }

    /// The configuration was taken over: whoever waits may try at once, it usually follows a cure.
    fn replan(&mut self, plan: Option<&Plan>, opening: &mut Option<Opening>) {
        let Some(plan) = plan else { return };
        self.retry = Retry::default();
        if opening.as_ref().is_some_and(|one| !one.plan.is_like(plan)) {
            *opening = None;
        }
        if let Some(current) = &self.current
            && !current.plan.is_like(plan)
        {
            self.wished(current.id, Reason::Settings);
        }
    }

    fn link(&mut self, plan: Arc<Plan>, wishes: mpsc::UnboundedSender<(u64, Reason)>) -> Link {
        self.last_id += 1;
        Link {
            id: self.last_id,
            plan,
            desk: self.desk.clone(),
            clock: self.clock,
            wishes,
        }
    }

    fn opened(&mut self, link: Link, socket: Socket, plan: Arc<Plan>, drain: &Drain) {
        let (replaced, told) = oneshot::channel();
        let next = Current {
            id: link.id,
            plan,
            opened_ms: self.clock.mono_ms(),
            leaving: false,
            replaced,
        };
        self.links.spawn(link.run(socket, told, drain.clone()));
        let last = self.current.replace(next);
        let is_first = last.is_none();
        if let Some(last) = last
            && last.replaced.send(()).is_err()
        {
            tracing::debug!(
                app = self.name,
                "the last Stream connection was gone already"
            );
        }
        self.trouble = None;
        self.retry.opened();
        self.health.recovered(&self.key());
        metrics::stream_open(&self.name, "ok");
        let without_ms = self.gap.without_ms(self.clock.mono_ms());
        tracing::info!(
            app = self.name,
            is_first,
            without_ms,
            "a Stream connection is open"
        );
    }

    fn failed(&mut self, trouble: Trouble, stream: Stream) {
        metrics::stream_open(&self.name, trouble.label);
        tracing::debug!(
            app = self.name,
            reason = trouble.label,
            detail = trouble.text,
            "no Stream connection yet"
        );
        let now_ms = self.clock.mono_ms();
        self.retry.failed(now_ms, stream, random::share());
        self.retry.at_ms = self.retry.at_ms.max(trouble.not_before_ms);
        // That we are held back says less than why we are.
        if self.trouble.is_none() || trouble.label != "held_back" {
            self.trouble = Some(trouble);
        }
    }

    /// A connection asks to be replaced.
    fn wished(&mut self, id: u64, reason: Reason) {
        if let Some(current) = &mut self.current
            && current.id == id
            && !std::mem::replace(&mut current.leaving, true)
        {
            let now_ms = self.clock.mono_ms();
            let lived_ms = now_ms - current.opened_ms;
            let stream = current.plan.stream;
            self.retry.left(now_ms, lived_ms, stream, random::share());
            if reason == Reason::Disconnect {
                self.retry.announced(now_ms, lived_ms, stream);
            }
            metrics::stream_reconnect(&self.name, reason.label());
            tracing::info!(
                app = self.name,
                reason = reason.label(),
                lived_ms,
                "a Stream connection is to be replaced"
            );
        }
    }

    /// A connection ended.
    fn over(&mut self, over: Result<Over, JoinError>) {
        let over = over.unwrap_or_else(|error| {
            tracing::error!(app = self.name, %error, "a Stream connection failed");
            let gone = self
                .current
                .as_ref()
                .filter(|current| current.replaced.is_closed());
            Over {
                id: gone.map_or(0, |current| current.id),
                reason: Some(Reason::Broken),
            }
        });
        let Some(current) = self.current.take_if(|current| current.id == over.id) else {
            return;
        };
        if current.leaving {
            return;
        }
        let lived_ms = self.clock.mono_ms() - current.opened_ms;
        self.retry.left(
            self.clock.mono_ms(),
            lived_ms,
            current.plan.stream,
            random::share(),
        );
        let reason = over.reason.map_or("closed", Reason::label);
        metrics::stream_reconnect(&self.name, reason);
        tracing::info!(
            app = self.name,
            reason,
            lived_ms,
            "a Stream connection was lost"
        );
    }

    /// Brings up to date what is told of the connection.
    fn report(&mut self, now_ms: u64) {
        let connected = !self.links.is_empty();
        let more_s = self.gap.count(connected, now_ms);
        metrics::stream_connected(&self.name, connected, more_s);
        let without_ms = self.gap.without_ms(now_ms);
        let needs_hand = self
            .trouble
            .as_ref()
            .is_some_and(|trouble| trouble.needs_hand);
        if !needs_hand && without_ms < TOLD_AFTER_MS {
            return;
        }
        let what = match &self.trouble {
            Some(trouble) => trouble.text.as_str(),
            None => "none could be opened yet",
        };
        let text = if connected {
            format!(
                "app {:?} cannot renew its Stream connection: {what}",
                self.name
            )
        } else {
            format!(
                "app {:?} has no Stream connection, nothing comes in over it: {what}",
                self.name
            )
        };
        if self.health.degraded(self.key(), text.as_str()) {
            tracing::warn!(
                app = self.name,
                without_ms,
                detail = text,
                "no Stream connection"
            );
        }
    }

    fn key(&self) -> String {
        format!("stream/{}", self.name)
    }

    /// Nothing is told of this app any more; its connections finish what they have.
    async fn end(mut self) {
        self.health.recovered(&self.key());
        metrics::stream_connected(&self.name, false, 0);
        // A connection whose keeper lets go of it ends.
        self.current = None;
        while self.links.join_next().await.is_some() {}
    }
}

/// The result of the opening, if there is one.
async fn outcome(opening: &mut Option<Opening>) -> (Arc<Plan>, Result<Socket, Trouble>) {
    match opening {
        Some(opening) => {
            let result = opening.course.as_mut().await;
            (opening.plan.clone(), result)
        }
        None => std::future::pending().await,
    }
}

/// When a connection is tried next.
#[derive(Debug, Default)]
struct Retry {
    /// Openings that failed, one after another.
    failures: u32,
    /// Connections that hardly lived, one after another.
    short_lives: u32,
    at_ms: u64,
}

impl Retry {
    /// A connection is open: what went wrong before it says nothing of the next one.
    fn opened(&mut self) {
        self.failures = 0;
    }

    /// A connection could not be opened.
    fn failed(&mut self, now_ms: u64, stream: Stream, jitter: f64) {
        self.failures = self.failures.saturating_add(1);
        self.at_ms = now_ms + delay_ms(self.failures, stream, jitter);
    }

    /// A connection was lost or is to be replaced: the next one at once, unless that happens again and
    /// again to connections that hardly lived.
    fn left(&mut self, now_ms: u64, lived_ms: u64, stream: Stream, jitter: f64) {
        if lived_ms >= stream.retry_max_ms {
            self.short_lives = 0;
        }
        let wait_ms = match self.short_lives {
            0 => 0,
            short_lives => delay_ms(short_lives, stream, jitter),
        };
        self.short_lives = self.short_lives.saturating_add(1);
        self.at_ms = now_ms + wait_ms;
    }

    /// DingTalk stops telling us anything on a connection whose end it announces, and closes it ten seconds
    /// later (inbound.md §5.3). However often that happens, the next one is tried in time.
    fn announced(&mut self, now_ms: u64, lived_ms: u64, stream: Stream) {
        let wait_ms = stream.retry_min_ms.saturating_sub(lived_ms);
        self.at_ms = self.at_ms.min(now_ms + wait_ms);
    }
}

/// Uniform between the shortest delay and one that doubles with each failure up to the longest.
fn delay_ms(failures: u32, stream: Stream, jitter: f64) -> u64 {
    let ceiling_ms = stream
        .retry_min_ms
        .saturating_mul(1 << failures.min(20))
        .min(stream.retry_max_ms);
    stream.retry_min_ms + scaled(ceiling_ms.saturating_sub(stream.retry_min_ms), jitter)
}

/// The time without a connection.
#[derive(Debug)]
struct Gap {
    /// Since when there is none, in monotonic milliseconds.
    since: Option<u64>,
    /// Counted up to here, in monotonic milliseconds.
    counted: u64,
    /// Milliseconds that are less than a second, and in no count yet.
    rest: u64,
}

impl Gap {
    /// There is none at `now_ms`.
    fn new(now_ms: u64) -> Self {
        Self {
            since: Some(now_ms),
            counted: now_ms,
            rest: 0,
        }
    }

    /// How long there has been none.
    fn without_ms(&self, now_ms: u64) -> u64 {
        self.since.map_or(0, |since_ms| now_ms - since_ms)
    }

    /// Whole seconds without one that were not counted yet.
    fn count(&mut self, connected: bool, now_ms: u64) -> u64 {
        if self.since.is_some() {
            self.rest += now_ms - self.counted;
        }
        self.counted = now_ms;
        self.since = match (connected, self.since) {
            (true, _) => None,
            (false, since_ms) => since_ms.or(Some(now_ms)),
        };
        let seconds = self.rest / 1_000;
        self.rest %= 1_000;
        seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: Stream = Stream {
        renew_ms: 21_600_000,
        silence_ms: 60_000,
        ping_ms: 20_000,
        retry_min_ms: 1_000,
        retry_max_ms: 60_000,
    };

    #[test]
    fn attempts_grow_from_a_second_to_a_minute_with_jitter() {
        let mut retry = Retry::default();
        let mut longest = vec![];
        for _ in 0..8 {
            retry.failed(0, STREAM, 1.0);
            longest.push(retry.at_ms);
        }
        let expected = [2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000];
        assert_eq!(longest, expected);
        retry.failed(0, STREAM, 0.0);
        assert_eq!(retry.at_ms, 1_000);
        retry.failures = u32::MAX;
        retry.failed(0, STREAM, 1.0);
        assert_eq!(retry.at_ms, 60_000);
    }

    #[test]
    fn a_connection_that_lived_is_followed_at_once_and_one_that_did_not_only_once() {
        let mut retry = Retry::default();
        retry.left(5, 10, STREAM, 1.0);
        assert_eq!(retry.at_ms, 5, "the first time may be bad luck");
        retry.left(5, 10, STREAM, 1.0);
        assert_eq!(retry.at_ms, 5 + 2_000);
        retry.left(5, 59_999, STREAM, 1.0);
        assert_eq!(retry.at_ms, 5 + 4_000);
        retry.left(5, 60_000, STREAM, 1.0);
        assert_eq!(retry.at_ms, 5);
    }

    /// The gateway was away for an hour, and then says once that it closes a connection.
    #[test]
    fn what_failed_before_a_connection_was_open_does_not_hold_up_the_next_one() {
        let mut retry = Retry::default();
        for _ in 0..60 {
            retry.failed(0, STREAM, 1.0);
        }
        retry.opened();
        retry.left(5, 10, STREAM, 1.0);
        assert_eq!(retry.at_ms, 5);
        retry.failed(5, STREAM, 1.0);
        assert_eq!(retry.at_ms, 5 + 2_000);
        retry.opened();
        retry.left(5, 10, STREAM, 1.0);
        assert_eq!(retry.at_ms, 5 + 2_000, "this one hardly lived either");
    }

    #[test]
    fn an_announced_end_is_followed_in_time_however_often_it_comes() {
        let mut retry = Retry::default();
        for _ in 0..10 {
            retry.left(5_000, 2_000, STREAM, 1.0);
            retry.announced(5_000, 2_000, STREAM);
            assert_eq!(retry.at_ms, 5_000);
        }
        retry.left(5_000, 100, STREAM, 1.0);
        retry.announced(5_000, 100, STREAM);
        assert_eq!(retry.at_ms, 5_900, "but no more than one a second");
    }

    #[test]
    fn short_gaps_add_up_to_seconds() {
        let mut gap = Gap::new(0);
        assert_eq!(gap.count(true, 400), 0);
        assert_eq!(gap.without_ms(9_000), 0);
        assert_eq!(gap.count(false, 10_000), 0, "it was up until now");
        assert_eq!(gap.without_ms(10_300), 300);
        assert_eq!(gap.count(true, 10_700), 1);
        assert_eq!(gap.count(false, 20_000), 0);
        assert_eq!(gap.count(false, 22_950), 3);
        assert_eq!(gap.without_ms(22_950), 2_950);
    }
}
