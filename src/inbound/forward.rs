//! In order within a conversation, again and again until the platform has it.
//!
//! One task owns all that waits. Each upstream has its own lanes and its own breaker, so that one
//! that is down holds up nobody else. Retries follow the platform's schedule without a limit of
//! attempts, until the event's lifetime is over (reliability contract §3, §4).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use super::Settings;
use super::answer::Late;
use super::asking::Asking;
use super::deliver::{Delivery, Outcome};
use crate::clock::Clock;
use crate::delivery::breaker::{Breaker, State};
use crate::delivery::dead::Mortal as _;
use crate::delivery::event::{Forwarding, TargetState};
use crate::delivery::id::short_digest;
use crate::delivery::lanes::{Landed, LaneId, Lanes};
use crate::delivery::random;
use crate::delivery::retry::{Budget, PLATFORM, no_room_ms};
use crate::delivery::state::{self, Priority};
use crate::delivery::verdict::Reason;
use crate::drain::Drain;
use crate::health::Health;
use crate::http::transport::Transport;
use crate::journal::queue::{Appended, Queue};
use crate::journal::{Batch, Journal};
use crate::metrics;

/// An upstream that says "gone" (410) is left alone for this long, in milliseconds, or until its URL changes.
const GONE_PAUSE_MS: u64 = 600_000;
/// What an upstream did not take from others for so long it would not have taken either, in milliseconds.
const TRIED_MS: u64 = 3_600_000;
/// What cannot be stored now is tried again after this, in milliseconds.
const AGAIN_MS: u64 = 5_000;
/// Events settled or taken in at one go, so that the loop stays fair.
const STEP_MAX: usize = 256;

/// The forwarding side of the inbox.
#[derive(Debug)]
pub struct Forwarder {
    /// What the inbound side works by.
    pub settings: Arc<ArcSwap<Settings>>,
    /// Where events are kept.
    pub queue: Arc<Queue<Forwarding>>,
    /// The store.
    pub journal: Journal,
    /// Calls out.
    pub transport: Arc<Transport>,
    /// The clock.
    pub clock: Clock,
    /// Told about upstreams in trouble.
    pub health: Health,
    /// Who waits for an answer.
    pub asking: Arc<Asking>,
    /// Where answers go that come too late for those who waited.
    pub late: mpsc::Sender<Late>,
    /// Rung when the settings have changed.
    pub reloaded: Arc<Notify>,
}

/// A lane: the events of one conversation for one upstream, or one event that has no order to keep.
type Lane = (u64, u64);
type Item = (u64, usize);

struct Work {
    forwarder: Forwarder,
    lanes: Lanes<Lane, Item, String>,
    entries: HashMap<u64, Forwarding>,
    breakers: BTreeMap<String, Breaker>,
    budgets: HashMap<String, Budget>,
    /// Since when nothing came through to an upstream that was tried, and what it said last.
    failing: HashMap<String, (u64, String)>,
    /// Those that the breakers were made by.
    settings: Arc<Settings>,
    attempts: JoinSet<Attempt>,
    /// Of events that are settled: those who asked are told, as far as they can be, that nobody will answer.
    /// Ends with the event's number, or with nothing if we stop before that.
    unanswered: JoinSet<Option<u64>>,
    drain: Drain,
}

struct Attempt {
    lane: LaneId,
    item: Item,
    upstream: String,
    repeats: bool,
    outcome: Outcome,
}

impl Forwarder {
    /// Works until `drain` says stop, then finishes the attempts under way. `recovered` is what was
    /// waiting on disk at the start.
    pub async fn run(
        self,
        recovered: Vec<(u64, Forwarding)>,
        mut appended: mpsc::UnboundedReceiver<Appended<Forwarding>>,
        drain: Drain,
    ) {
        let mut work = Work {
            settings: self.settings.load_full(),
            forwarder: self,
            lanes: Lanes::default(),
            entries: HashMap::new(),
            breakers: BTreeMap::new(),
            budgets: HashMap::new(),
            failing: HashMap::new(),
            attempts: JoinSet::new(),
            unanswered: JoinSet::new(),
            drain: drain.clone(),
        };
        for (seq, state) in recovered {
            work.take_in(seq, state);
        }
        work.lanes.all_are_backlog();
        let (clock, reloaded) = (work.forwarder.clock, work.forwarder.reloaded.clone());
        while !drain.is_stopping() {
            work.start_attempts();
            let wakes_ms = work.wakes_at(clock.mono_ms());
            // In this order, so that a simulation can be repeated: attempts are few and free places,
            // and whatever came, new entries are taken in beside it.
            tokio::select! {
                biased;
                () = drain.stopping() => {}
                Some(ended) = work.attempts.join_next() => {
                    work.land(ended);
                    work.take_in_more(&mut appended);
                }
                Some(ended) = work.unanswered.join_next() => work.told(ended),
                () = reloaded.notified() => {}
                entry = appended.recv() => {
                    let Some(entry) = entry else { break };
                    work.take_in(entry.seq, entry.state);
                    work.take_in_more(&mut appended);
                }
                () = clock.sleep_until(wakes_ms) => {}
            }
        }
        while let Some(ended) = work.attempts.join_next().await {
            work.land(ended);
        }
        while let Some(ended) = work.unanswered.join_next().await {
            work.told(ended);
        }
    }
}

impl Work {
    fn take_in(&mut self, seq: u64, mut state: Forwarding) {
        let settings = self.forwarder.settings.load_full();
        let targets = state
            .targets
            .get_or_insert_with(|| settings.targets(&state.app, &state.kind));
        let (wall_ms, mono_ms) = (
            self.forwarder.clock.wall_ms(),
            self.forwarder.clock.mono_ms(),
        );
        for (index, target) in targets.iter().enumerate() {
            if target.state == TargetState::Waiting {
                let order = if state.lane == 0 {
                    short_digest(&[&seq.to_be_bytes()])
                } else {
                    state.lane
                };
                let lane = (short_digest(&[target.upstream.as_bytes()]), order);
                // What is left of the delay, but no more than the schedule allows: the wall clock may
                // have been set back while nobody looked.
                let left_ms = target.due_ms.saturating_sub(wall_ms).min(PLATFORM.cap_ms);
                let due_ms = if left_ms == 0 { 0 } else { mono_ms + left_ms };
                let breaker = self.breakers.get(&target.upstream).map(Breaker::state);
                let is_down = matches!(breaker, Some(State::Open { .. }));
                if settings.answers(&target.upstream)
                    && (is_down || self.lanes.is_held(&lane, mono_ms))
                {
                    self.forwarder.asking.not_now(seq);
                }
                let item = (seq, index);
                let aside = self.lanes.push(&lane, Priority::Normal, item, due_ms);
                if aside.is_some() {
                    metrics::reordered();
                }
            }
        }
        let settled = state.is_settled();
        self.entries.insert(seq, state);
        if settled {
            self.finish(seq);
        }
    }

    fn take_in_more(&mut self, appended: &mut mpsc::UnboundedReceiver<Appended<Forwarding>>) {
        for _ in 0..STEP_MAX {
            let Ok(entry) = appended.try_recv() else {
                return;
            };
            self.take_in(entry.seq, entry.state);
        }
    }

    /// Nothing while the disk is stuck: results could not be written, and would pile up.
    fn start_attempts(&mut self) {
        if self.forwarder.journal.is_stuck() {
            return;
        }
        let settings = self.forwarder.settings.load_full();
        let now_ms = self.forwarder.clock.mono_ms();
        self.adopt(&settings);
        self.open_gates(now_ms);
        for _ in self.lanes.displaced() {
            metrics::reordered();
        }
        for _ in 0..STEP_MAX {
            if let Some((lane, item)) = self.lanes.next(now_ms) {
                self.start(&settings, lane, item, now_ms);
            } else {
                // A place may be left because somebody who was let through needed none.
                self.open_gates(now_ms);
                if !self.lanes.has_ready() {
                    return;
                }
            }
        }
    }

    /// An upstream with another URL is another one: what was learnt of the old one does not hold.
    fn adopt(&mut self, settings: &Arc<Settings>) {
        let before = std::mem::replace(&mut self.settings, settings.clone());
        if Arc::ptr_eq(&before, settings) {
            return;
        }
        for old in &before.upstreams {
            let now = settings.upstreams.iter().find(|up| up.name == old.name);
            let Some(upstream) = now else {
                self.forget(&old.name);
                continue;
            };
            let is_moved = (&old.origin, &old.path) != (&upstream.origin, &upstream.path);
            if let Some(breaker) = self.breakers.get_mut(&upstream.name) {
                let was = breaker.state();
                breaker.limit_to(upstream.concurrency);
                if is_moved {
                    *breaker = Breaker::new(upstream.concurrency);
                    self.failing.remove(&upstream.name);
                }
                report(&upstream.name, was, breaker.state());
            }
        }
    }

    /// The upstream is not configured any more: what waits for it comes forth to be given up.
    fn forget(&mut self, upstream: &str) {
        if let Some(breaker) = self.breakers.remove(upstream) {
            report(upstream, breaker.state(), State::Closed);
        }
        self.budgets.remove(upstream);
        self.failing.remove(upstream);
        self.forwarder.health.recovered(&trouble(upstream));
        while self.lanes.open(&upstream.to_owned(), STEP_MAX).is_some() {}
    }

    /// Lets as many try as their upstream has places for.
    fn open_gates(&mut self, now_ms: u64) {
        for (upstream, breaker) in &self.breakers {
            let places = breaker.capacity(now_ms);
            if places > 0 && self.lanes.open(upstream, places).is_some() {
                tracing::trace!(upstream, "more wait for this upstream");
            }
        }
    }

    /// When something may happen that no message tells of.
    fn wakes_at(&self, now_ms: u64) -> u64 {
        if self.forwarder.journal.is_stuck() {
            return now_ms + 1_000;
        }
        if self.lanes.has_ready() {
            return now_ms;
        }
        let breaker = self
            .breakers
            .values()
            .filter_map(|breaker| opens_at(breaker.state(), now_ms));
        // Far away: nothing sleeps; something else will wake the loop.
        let far_ms = now_ms + 60_000;
        breaker
            .chain(self.lanes.wakes_at())
            .min()
            .unwrap_or(far_ms)
            .max(now_ms + 1)
    }

    fn start(&mut self, settings: &Settings, lane: LaneId, item: Item, now_ms: u64) {
        let (seq, index) = item;
        let Some(target) = self
            .entries
            .get(&seq)
            .and_then(|e| e.targets.as_ref()?.get(index))
        else {
            self.lanes.drop_head(lane);
            return;
        };
        let Some(upstream) = settings
            .upstreams
            .iter()
            .find(|up| up.name == target.upstream)
        else {
            let reason = Reason::new(
                "upstream_removed",
                "the upstream is not configured any more",
                "在 config.toml 恢复该 [[upstreams]] 后用 dingd dead replay 重发。",
                "Restore it in [[upstreams]], then use dingd dead replay.",
            );
            self.give_up(lane, item, reason);
            return;
        };
        let entry_age_ms = self.entries.get(&seq).map_or(0, |entry| {
            self.forwarder
                .clock
                .cautious_ms()
                .saturating_sub(entry.accepted_ms)
        });
        // Each is tried once, unless others were for long enough in its place.
        let failing = self.failing.get(&upstream.name);
        let failing_ms = failing.map_or(0, |(since_ms, _)| now_ms.saturating_sub(*since_ms));
        let was_tried =
            target.attempts > 0 || failing_ms >= TRIED_MS.min(settings.lifetime_ms).max(1);
        if entry_age_ms > settings.lifetime_ms && was_tried {
            let own = target.reason.as_ref().map(|reason| reason.detail.as_str());
            let detail = own.or(failing.map(|(_, said)| said.as_str()));
            let detail = detail.unwrap_or_default();
            let reason = Reason::new(
                "upstream_unreachable",
                format!("the upstream took nothing within the event's lifetime; last: {detail}"),
                "修复告警平台的接收地址后用 dingd dead replay 重发。",
                "Repair the platform's receiver, then use dingd dead replay.",
            );
            self.give_up(lane, item, reason);
            return;
        }
        let repeats = target.attempts > 0;
        let budget = self.budgets.entry(upstream.name.clone()).or_default();
        if !budget.take(repeats) {
            metrics::retry_budget_exhausted(&upstream.name);
            let due_ms = now_ms + no_room_ms(random::share());
            let failed = false;
            let later = Landed::Again { due_ms, failed };
            self.lanes.land(lane, later, now_ms);
            return;
        }
        let breaker = self
            .breakers
            .entry(upstream.name.clone())
            .or_insert_with(|| Breaker::new(upstream.concurrency));
        let was = breaker.state();
        if breaker.acquire(now_ms).is_err() {
            budget.give_back(repeats);
            if upstream.answers && matches!(was, State::Open { .. }) {
                self.forwarder.asking.not_now(seq);
            }
            self.lanes.park(lane, upstream.name.clone());
            return;
        }
        report(&upstream.name, was, breaker.state());
        let name = upstream.name.clone();
        self.fly(lane, item, name, repeats);
    }

    fn fly(&mut self, lane: LaneId, item: Item, upstream: String, repeats: bool) {
        self.lanes.fly(lane);
        let (seq, _) = item;
        if let Some(entry) = self.entries.get(&seq) {
            let state = state::State::Sending;
            let tag = entry.tag();
            self.forwarder.queue.moved(seq, state::Tag { state, ..tag });
        }
        let call = self.delivery();
        self.attempts.spawn(async move {
            let outcome = call.deliver(&upstream, seq).await;
            Attempt {
                lane,
                item,
                upstream,
                repeats,
                outcome,
            }
        });
    }

    fn delivery(&self) -> Delivery {
        Delivery {
            settings: self.forwarder.settings.clone(),
            journal: self.forwarder.journal.clone(),
            queue: self.forwarder.queue.clone(),
            transport: self.forwarder.transport.clone(),
            clock: self.forwarder.clock,
            asking: self.forwarder.asking.clone(),
            late: self.forwarder.late.clone(),
        }
    }

    fn give_up(&mut self, lane: LaneId, (seq, index): Item, reason: Reason) {
        self.lanes.drop_head(lane);
        let target = self
            .entries
            .get_mut(&seq)
            .and_then(|e| e.targets.as_mut()?.get_mut(index));
        if let Some(target) = target {
            target.state = TargetState::Dead;
            target.reason = Some(reason);
        }
        self.progress(seq);
    }

    fn land(&mut self, ended: Result<Attempt, tokio::task::JoinError>) {
        let attempt = match ended {
            Ok(attempt) => attempt,
            // Its lane would wait for ever: better to start over from the disk.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        let (mono_ms, wall_ms) = (
            self.forwarder.clock.mono_ms(),
            self.forwarder.clock.wall_ms(),
        );
        let (seq, index) = attempt.item;
        self.teach_breaker(&attempt, mono_ms);
        if let Some(budget) = self.budgets.get_mut(&attempt.upstream) {
            budget.give_back(attempt.repeats);
        }
        let target = self
            .entries
            .get_mut(&seq)
            .and_then(|e| e.targets.as_mut()?.get_mut(index));
        let Some(target) = target else {
            self.lanes.land(attempt.lane, Landed::Settled, mono_ms);
            return;
        };
        target.attempts = target.attempts.saturating_add(1);
        let (reason, delay_ms) = match attempt.outcome {
            Outcome::Delivered { answered } => {
                target.state = TargetState::Forwarded;
                target.reason = None;
                self.failing.remove(&attempt.upstream);
                self.taken(seq, answered);
                let trouble = trouble(&attempt.upstream);
                if self.forwarder.health.recovered(&trouble) {
                    tracing::info!(upstream = %attempt.upstream, "the upstream takes events again");
                }
                self.lanes.land(attempt.lane, Landed::Settled, mono_ms);
                self.progress(seq);
                return;
            }
            Outcome::Damaged => {
                target.state = TargetState::Dead;
                target.reason = Some(Reason::new(
                    "record_damaged",
                    "the stored event cannot be read",
                    "检查磁盘；必要时从备份恢复。",
                    "Check the disk; restore a backup if needed.",
                ));
                self.lanes.land(attempt.lane, Landed::Settled, mono_ms);
                self.progress(seq);
                return;
            }
            Outcome::Failed {
                reason,
                retry_after_s,
                ..
            } => {
                let delay =
                    PLATFORM.delay_after_ms(target.attempts, random::share(), retry_after_s);
                (reason, delay)
            }
            // When the upstream is tried again.
            Outcome::Gone => (gone(), 0),
        };
        target.reason = Some(reason.clone());
        target.due_ms = wall_ms + delay_ms;
        self.stumbles(&attempt.upstream, &reason, mono_ms);
        let landed = Landed::Again {
            due_ms: mono_ms + delay_ms,
            failed: delay_ms > 0,
        };
        if self.lanes.land(attempt.lane, landed, mono_ms) {
            metrics::reordered();
        }
        self.progress(seq);
    }

    /// The upstream did not take an event.
    fn stumbles(&mut self, upstream: &str, reason: &Reason, now_ms: u64) {
        if self.settings.upstreams.iter().all(|up| up.name != upstream) {
            return;
        }
        let failing = self.failing.entry(upstream.to_owned());
        failing
            .or_insert((now_ms, String::new()))
            .1
            .clone_from(&reason.detail);
        let text = format!(
            "upstream {upstream}: {} — {} / {}",
            reason.detail, reason.fix_zh, reason.fix_en
        );
        if self.forwarder.health.degraded(trouble(upstream), text) {
            tracing::warn!(upstream, detail = %reason.detail, "the upstream does not take events; they wait");
        }
    }

    /// Whoever asked needs nobody else if it was the one who answers that took the event.
    fn taken(&mut self, seq: u64, answered: bool) {
        if let Some(entry) = self.entries.get_mut(&seq) {
            entry.asks &= !answered;
        }
    }

    fn teach_breaker(&mut self, attempt: &Attempt, mono_ms: u64) {
        let Some(breaker) = self.breakers.get_mut(&attempt.upstream) else {
            return;
        };
        let was = breaker.state();
        match &attempt.outcome {
            Outcome::Delivered { .. } => breaker.succeeded(mono_ms),
            Outcome::Failed {
                upstream: Some(failure),
                ..
            } => {
                breaker.failed(*failure, mono_ms, random::share());
            }
            Outcome::Gone => breaker.shut(mono_ms + GONE_PAUSE_MS),
            Outcome::Failed { .. } | Outcome::Damaged => breaker.release(),
        }
        report(&attempt.upstream, was, breaker.state());
    }

    /// Writes where an event is. A result joins the next group commit; losing one repeats an event
    /// under the same id.
    fn progress(&mut self, seq: u64) {
        let Some(entry) = self.entries.get(&seq) else {
            return;
        };
        if entry.is_settled() {
            if entry.asks {
                self.tell(seq);
            } else {
                self.finish(seq);
            }
            return;
        }
        let mut batch = Batch::default();
        self.forwarder
            .queue
            .update(&mut batch, seq, entry, entry.tag());
        self.forwarder.journal.submit(batch, |_| ());
    }

    /// Nobody will answer: before the event is settled it is certain that whoever asked does not go on
    /// waiting.
    fn tell(&mut self, seq: u64) {
        self.forwarder.asking.not_now(seq);
        let (call, drain) = (self.delivery(), self.drain.clone());
        self.unanswered.spawn(async move {
            while !call.unanswered(seq).await {
                tokio::select! {
                    biased;
                    () = drain.stopping() => return None,
                    () = call.clock.sleep_until(call.clock.mono_ms() + AGAIN_MS) => {}
                }
            }
            Some(seq)
        });
    }

    fn told(&mut self, ended: Result<Option<u64>, tokio::task::JoinError>) {
        match ended {
            Ok(Some(seq)) => self.finish(seq),
            // At the next start.
            Ok(None) => {}
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    fn finish(&mut self, seq: u64) {
        let Some(mut entry) = self.entries.remove(&seq) else {
            return;
        };
        let wall_ms = self.forwarder.clock.wall_ms();
        entry.finished_ms = Some(wall_ms);
        let mut batch = Batch::default();
        self.forwarder.queue.finish(&mut batch, seq, &entry);
        let queue = self.forwarder.queue.clone();
        let mono_ms = self.forwarder.clock.mono_ms();
        self.forwarder.journal.submit(batch, move |result| {
            if result.is_ok() {
                queue.finished(seq, entry.tag());
                bury(&queue, seq, &entry, mono_ms);
                let reason = entry
                    .targets
                    .iter()
                    .flatten()
                    .find_map(|t| t.reason.as_ref());
                let reason = reason.map_or("none", |reason| reason.code.as_ref());
                let latency_ms = wall_ms.saturating_sub(entry.accepted_ms);
                metrics::finished(
                    "inbound",
                    Priority::Normal,
                    entry.label(),
                    reason,
                    latency_ms,
                );
            }
        });
    }
}

/// An upstream does not take events.
fn trouble(upstream: &str) -> String {
    format!("upstream/{upstream}")
}

/// The end of an event is durable: as a dead letter it is kept in mind, counted, and told of once an hour
/// for each upstream.
fn bury(queue: &Queue<Forwarding>, seq: u64, entry: &Forwarding, mono_ms: u64) {
    let Some(letter) = entry.dead_letter() else {
        return;
    };
    queue.dead().add(seq, letter);
    let targets = entry.targets.iter().flatten();
    let dead = targets.filter(|target| target.state == TargetState::Dead);
    for (index, target) in dead.enumerate() {
        let reason = target.reason.as_ref();
        let (reason, detail) =
            reason.map_or(("none", ""), |r| (r.code.as_ref(), r.detail.as_str()));
        if index == 0 {
            metrics::dead_letter("inbound", reason);
        }
        let upstream = &target.upstream;
        match queue.dead().alert(upstream, mono_ms) {
            Some(kept_back) => tracing::warn!(
                upstream,
                kind = entry.kind,
                reason,
                detail,
                kept_back,
                "an event was given up; others for this upstream are not told of for an hour, see `dingd dead list`"
            ),
            None => {
                tracing::debug!(
                    upstream,
                    kind = entry.kind,
                    reason,
                    detail,
                    "an event was given up"
                );
            }
        }
    }
}

fn gone() -> Reason {
    Reason::new(
        "upstream_gone",
        "the upstream answered 410 Gone",
        "告警平台已停用该接收地址；更新 [[upstreams]] url 后 systemctl reload dingd。",
        "The platform retired this URL; update [[upstreams]] url, then systemctl reload dingd.",
    )
}

/// When a breaker lets somebody try. One whose time has come waits for somebody to come, not for time.
fn opens_at(state: State, now_ms: u64) -> Option<u64> {
    match state {
        State::Open { until_ms } => Some(until_ms).filter(|until_ms| *until_ms > now_ms),
        State::Closed | State::HalfOpen => None,
    }
}

fn report(upstream: &str, was: State, is: State) {
    if was.number() != is.number() {
        metrics::breaker(upstream, is.number());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A breaker whose time had come while its only event slept made the loop wake every millisecond
    /// until that event was due: up to five minutes of spinning, again and again while a platform is
    /// down.
    #[test]
    fn nobody_wakes_for_a_breaker_whose_time_has_come() {
        let open = State::Open { until_ms: 5_000 };
        assert_eq!(opens_at(open, 4_999), Some(5_000));
        assert_eq!(opens_at(open, 5_000), None);
        assert_eq!(opens_at(State::HalfOpen, 5_000), None);
    }
}
