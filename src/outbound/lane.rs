//! Whose turn it is, under every limit. One task owns all that waits (see [`super::backlog`]).

use std::collections::{BTreeSet, HashMap};

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::Live;
use super::backlog::{Again, Backlog, Recovery, Shared, budget_of};
use super::pool::{Grant, Pools};
use super::send::{Left, Sender};
use crate::delivery::lanes::{Landed, LaneId};
use crate::delivery::random;
use crate::delivery::retry::{Budget, no_room_ms};
use crate::delivery::state::{Priority, State};
use crate::delivery::verdict::Reason;
use crate::drain::Drain;
use crate::egress::host_name;
use crate::egress::limit::{Key, Kind};
use crate::faults::{Bug, bug};
use crate::journal::queue::Appended;
use crate::journal::{Batch, CommitError};
use crate::metrics;

/// Decisions made at one go, so that the loop stays fair.
const STEP_MAX: usize = 256;
/// Messages that are being ended at a time: each reads and writes the disk.
const ENDINGS_MAX: usize = 64;
/// A message whose turn comes behind one that has just ended, or its call, looks again after this, in milliseconds.
const BEHIND_AGAIN_MS: u64 = 50;
/// Attempts of critical messages beyond `concurrency`: a host that hangs may have all others.
const CRITICAL_PLACES: usize = 8;
/// The end of a message that cannot be read or written is tried again after this, in milliseconds.
const END_AGAIN_MS: u64 = 2_000;

/// A wish of the API or the operator.
#[derive(Debug)]
pub enum Command {
    /// Withdraw a message; answers whether it was in time.
    Cancel {
        /// The message.
        seq: u64,
        /// Whether it was in time.
        answer: oneshot::Sender<bool>,
    },
}

struct Work {
    sender: Sender,
    backlog: Backlog,
    pools: Pools,
    /// When to let those try that wait for a limit.
    gates: BTreeSet<(u64, Key)>,
    gated: HashMap<Key, u64>,
    attempts: JoinSet<Landing>,
    /// Of each host.
    budgets: HashMap<Key, Budget>,
    /// Messages that end without an attempt: expired, cancelled, parked.
    endings: JoinSet<(u64, Option<Left>)>,
    drain: Drain,
}

struct Landing {
    lane: LaneId,
    seq: u64,
    left: Left,
    place: Place,
}

/// A place in a host's budget.
#[derive(Debug, Clone, Copy)]
struct Place {
    host: Key,
    repeats: bool,
}

/// Works until `drain` says stop, then finishes the attempts under way. `recovered` is what was
/// waiting on disk at the start.
pub async fn run(
    sender: Sender,
    mut recovered: Recovery,
    mut appended: mpsc::UnboundedReceiver<Appended<Live>>,
    mut commands: mpsc::Receiver<Command>,
    drain: Drain,
) -> Result<(), CommitError> {
    recovered.settle();
    let mut work = Work {
        backlog: recovered.backlog,
        pools: Pools::default(),
        gates: BTreeSet::new(),
        gated: HashMap::new(),
        attempts: JoinSet::new(),
        budgets: HashMap::new(),
        endings: JoinSet::new(),
        drain: drain.clone(),
        sender,
    };
    work.recover(recovered.batch, recovered.ended).await?;
    let (clock, egress) = (work.sender.clock, work.sender.egress.clone());
    while !drain.is_stopping() {
        let wakes_ms = work.step();
        // In this order, so that a simulation can be repeated: attempts are few and free places, and
        // whatever came, new entries are taken in beside it.
        tokio::select! {
            biased;
            () = drain.stopping() => {}
            Some(ended) = work.attempts.join_next() => {
                work.land(ended);
                work.take_in_more(&mut appended);
            }
            Some(ended) = work.endings.join_next() => {
                work.land_ending(ended);
                work.take_in_more(&mut appended);
            }
            Some(command) = commands.recv() => {
                // What was accepted before the command was given must be known to it.
                while work.take_in_more(&mut appended) {}
                work.obey(command);
            }
            () = egress.cleared() => work.open_all_gates(),
            entry = appended.recv() => {
                let Some(entry) = entry else { break };
                work.backlog.take_in(entry.seq, &entry.state);
                work.take_in_more(&mut appended);
            }
            () = clock.sleep_until(wakes_ms) => {}
        }
    }
    while let Some(ended) = work.attempts.join_next().await {
        work.land(ended);
    }
    while let Some(ended) = work.endings.join_next().await {
        work.land_ending(ended);
    }
    Ok(())
}

impl Work {
    /// What follows from calls that were under way at the last stop is written before anything is sent.
    async fn recover(
        &mut self,
        batch: Batch,
        ended: Vec<(u64, State, Option<Reason>)>,
    ) -> Result<(), CommitError> {
        for (seq, state, reason) in ended {
            self.end(seq, state, reason);
        }
        if batch.is_empty() {
            Ok(())
        } else {
            self.sender.journal.commit(batch).await
        }
    }

    /// Starts what may start; returns when to look again.
    fn step(&mut self) -> u64 {
        let now_ms = self.sender.clock.mono_ms();
        self.expire(now_ms);
        self.open_gates(now_ms);
        let attempts_max = self.sender.settings.load().concurrency;
        let mut decided = 0;
        while decided < STEP_MAX {
            let least = match self.attempts.len() {
                under_way if under_way < attempts_max => Priority::Low,
                under_way if under_way < attempts_max + CRITICAL_PLACES => Priority::Critical,
                _ => break,
            };
            let Some((lane, seq)) = self.backlog.lanes.next_of(least, now_ms) else {
                break;
            };
            decided += 1;
            self.start(lane, seq, now_ms);
        }
        self.backlog.note_displaced();
        if decided == STEP_MAX {
            return now_ms;
        }
        // With all places for endings taken, the next one that is free wakes the loop.
        let endable = self.endings.len() < ENDINGS_MAX;
        let expiry = self.backlog.expires_at().filter(|_| endable);
        let gate = self.gates.first().map(|(until_ms, _)| *until_ms);
        // The same with all places for attempts.
        let startable = self.attempts.len() < attempts_max + CRITICAL_PLACES;
        let due = self.backlog.lanes.wakes_at().filter(|_| startable);
        [due, expiry, gate]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(now_ms + 60_000)
    }

    fn start(&mut self, lane: LaneId, seq: u64, now_ms: u64) {
        // It may wait for a place among those that are being ended; it is not sent meanwhile.
        let is_over = self.backlog.is_expired(seq, now_ms);
        let Some(place) = self.place(seq).filter(|_| !is_over) else {
            // Cancelled or expired while it waited.
            self.backlog.lanes.drop_head(lane);
            return;
        };
        if !self
            .budgets
            .entry(place.host)
            .or_default()
            .take(place.repeats)
        {
            metrics::retry_budget_exhausted(host_name(place.host));
            // Whoever is let in when a place is free may not need it: so all look again after a while.
            let gate = budget_of(place.host);
            self.backlog.lanes.park(lane, gate);
            self.gate(gate, now_ms + no_room_ms(random::share()));
            return;
        }
        let Some((shared, leaning)) = self.backlog.head(seq) else {
            return;
        };
        let settings = self.sender.settings.load();
        let mut acquire = |shared: &Shared| {
            let egress = &self.sender.egress;
            self.pools
                .acquire(&settings.pools, shared, leaning, |limits, critical| {
                    egress.try_acquire(limits, critical)
                })
        };
        match acquire(shared) {
            Err(full) => {
                shared.limit(seq, now_ms);
                self.give_back(place);
                self.backlog.lanes.park(lane, full.key);
                self.gate(full.key, full.until_ms);
            }
            Ok(mut grant) => {
                grant.permit.for_message(seq);
                if let Some(since_ms) = shared.unlimit(seq) {
                    metrics::rate_limit_wait(now_ms - since_ms);
                }
                if bug(Bug::LeaseTwice) {
                    let (twice, sender) = (acquire(shared), self.sender.clone());
                    self.endings.spawn(async move {
                        let Ok(grant) = twice else { return (seq, None) };
                        (seq, Some(sender.attempt(seq, grant, false).await))
                    });
                }
                self.launch(lane, seq, grant, place);
            }
        }
    }

    /// The attempt of a message that has all it needs: by itself, or with all that wait behind it.
    fn launch(&mut self, lane: LaneId, head: u64, grant: Grant, place: Place) {
        let now_ms = self.sender.clock.mono_ms();
        let digest = self.sender.settings.load().digest;
        let parts = digest.map_or_else(Vec::new, |digest| {
            self.backlog.fold(lane, head, now_ms, digest.after_ms)
        });
        let sender = self.sender.clone();
        if parts.is_empty() {
            let reordered = self.backlog.fly(lane, head);
            self.attempts.spawn(async move {
                let left = sender.attempt(head, grant, reordered).await;
                Landing {
                    lane,
                    seq: head,
                    left,
                    place,
                }
            });
        } else {
            let seq = sender.queue.reserve();
            self.backlog.fly_digest(lane, seq, &parts);
            self.attempts.spawn(async move {
                let left = sender.attempt_digest(seq, parts, grant).await;
                Landing {
                    lane,
                    seq,
                    left,
                    place,
                }
            });
        }
    }

    /// The place that an attempt of `seq` takes; `None` if it has ended.
    fn place(&mut self, seq: u64) -> Option<Place> {
        let repeats = self.backlog.repeats(seq);
        let (shared, _) = self.backlog.head(seq)?;
        let host = shared.limits.iter().find(|key| key.kind == Kind::Host)?;
        let host = *host;
        Some(Place { host, repeats })
    }

    fn give_back(&mut self, place: Place) {
        let budget = self.budgets.entry(place.host).or_default();
        budget.give_back(place.repeats);
        if place.repeats {
            // Whoever still waits there has the next one.
            let _others = self.backlog.lanes.open(&budget_of(place.host), 1);
        }
    }

    fn open_gates(&mut self, now_ms: u64) {
        while let Some(&(until_ms, key)) = self.gates.first()
            && until_ms <= now_ms
        {
            self.gates.pop_first();
            self.gated.remove(&key);
            let capacity = self.sender.egress.capacity(key).max(1);
            if let Some(priority) = self.backlog.lanes.open(&key, capacity) {
                // Those that still wait are nobody else's business: come back for them.
                let critical = priority == Priority::Critical;
                self.gate(key, self.sender.egress.free_at(key, critical));
            }
        }
    }

    /// Lets those who wait for `key` try at `until_ms`, or earlier if somebody may go earlier.
    fn gate(&mut self, key: Key, until_ms: u64) {
        let known = self.gated.get(&key).copied();
        if known.is_none_or(|known_ms| until_ms < known_ms) {
            if let Some(known_ms) = known {
                self.gates.remove(&(known_ms, key));
            }
            self.gated.insert(key, until_ms);
            self.gates.insert((until_ms, key));
        }
    }

    /// Pauses were cleared: everybody tries now.
    fn open_all_gates(&mut self) {
        let now_ms = self.sender.clock.mono_ms();
        let keys: Vec<_> = self.gated.keys().copied().collect();
        for key in keys {
            self.gate(key, now_ms);
        }
    }

    /// Whether there may be more.
    fn take_in_more(&mut self, appended: &mut mpsc::UnboundedReceiver<Appended<Live>>) -> bool {
        for _ in 0..STEP_MAX {
            let Ok(entry) = appended.try_recv() else {
                return false;
            };
            self.backlog.take_in(entry.seq, &entry.state);
        }
        true
    }

    fn land(&mut self, ended: Result<Landing, tokio::task::JoinError>) {
        let landing = match ended {
            Ok(landing) => landing,
            // Its lane would wait for ever: better to start over from the disk.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        let now_ms = self.sender.clock.mono_ms();
        self.give_back(landing.place);
        // Its place is for the most urgent of those that wait for one, not for whoever comes first.
        for key in [landing.place.host, Key::EGRESS] {
            if self.gated.contains_key(&key) {
                self.gate(key, now_ms);
            }
        }
        match landing.left {
            Left::Finished | Left::Parts => {
                self.backlog.forget(landing.seq);
                self.backlog.settle_digest(landing.seq, &landing.left);
                self.backlog
                    .lanes
                    .land(landing.lane, Landed::Settled, now_ms);
            }
            Left::Behind(ahead) => {
                let due_ms = now_ms + BEHIND_AGAIN_MS;
                self.backlog
                    .wait_behind(landing.lane, landing.seq, ahead, due_ms);
            }
            Left::Tokenless { app, due_ms } => {
                self.backlog.wait_for(landing.lane, landing.seq, app);
                self.gate(app, due_ms);
            }
            Left::Again {
                due_ms,
                failed,
                tried,
                leaning,
            } => {
                if let Some(leaning) = leaning {
                    self.backlog.lean(landing.seq, leaning);
                }
                let landed = Landed::Again { due_ms, failed };
                let reordered = self.backlog.lanes.land(landing.lane, landed, now_ms);
                self.backlog.land(landing.seq, failed, tried, reordered);
                if reordered {
                    metrics::reordered();
                }
            }
        }
    }

    fn land_ending(&mut self, ended: Result<(u64, Option<Left>), tokio::task::JoinError>) {
        match ended {
            Ok((seq, Some(left))) => self.backlog.settle_digest(seq, &left),
            // It stops before that could be written; at the next start it is looked at again.
            Ok((_, None)) => {}
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    fn expire(&mut self, now_ms: u64) {
        while self.endings.len() < ENDINGS_MAX
            && let Some(seq) = self.backlog.pop_expired(now_ms)
        {
            let reason = Reason::new(
                "expired",
                "the message was not worth sending any more (expires_in_s or its priority's lifetime)",
                "查看该消息此前的 reason；如常因限流过期，请提高优先级或分散机器人。",
                "See what held it up; if limits did, raise its priority or spread it over more robots.",
            );
            self.backlog.unfold(seq, Again::Folded);
            self.end(seq, State::Expired, Some(reason));
        }
    }

    fn obey(&mut self, command: Command) {
        let Command::Cancel { seq, answer } = command;
        if self.backlog.is_waiting(seq) {
            self.backlog.forget(seq);
            self.backlog.unfold(seq, Again::Folded);
            let (sender, drain) = (self.sender.clone(), self.drain.clone());
            self.endings.spawn(async move {
                let ended = ended(&sender, &drain, seq, State::Cancelled, None).await;
                if answer.send(ended.is_some()).is_err() {
                    tracing::debug!("nobody waits for the answer to a cancellation");
                }
                (seq, ended)
            });
        } else if answer.send(false).is_err() {
            tracing::debug!("nobody waits for the answer to a cancellation");
        }
    }

    fn end(&mut self, seq: u64, state: State, reason: Option<Reason>) {
        let (sender, drain) = (self.sender.clone(), self.drain.clone());
        let ended = async move { (seq, ended(&sender, &drain, seq, state, reason).await) };
        self.endings.spawn(ended);
    }
}

/// Ends a message, however long the disk is full: nothing waits for it any more but its place on disk. `None` if
/// the daemon stops before.
async fn ended(
    sender: &Sender,
    drain: &Drain,
    seq: u64,
    state: State,
    reason: Option<Reason>,
) -> Option<Left> {
    loop {
        let left = sender.end(seq, state, reason.clone()).await;
        if left.is_some() {
            return left;
        }
        tracing::error!(
            seq,
            "the end of a message cannot be read or written now; it is tried again"
        );
        tokio::select! {
            biased;
            () = drain.stopping() => return None,
            () = sender.clock.sleep_until(sender.clock.mono_ms() + END_AGAIN_MS) => {}
        }
    }
}
