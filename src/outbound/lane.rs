//! Whose turn it is, under every limit. One task owns all that waits; it keeps a few words a message
//! in memory and leaves the rest on disk.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::Live;
use super::send::{Left, Sender};
use crate::delivery::lanes::{Landed, LaneId, Lanes};
use crate::delivery::retry::DINGTALK;
use crate::delivery::state::{Next, Priority, State};
use crate::delivery::verdict::Reason;
use crate::drain::Drain;
use crate::egress::limit::Key;
use crate::faults::{Bug, bug};
use crate::journal::queue::Appended;
use crate::journal::{Batch, CommitError};
use crate::metrics;

/// Decisions made at one go, so that the loop stays fair.
const STEP_MAX: usize = 256;
/// Messages that are being ended at a time: each reads and writes the disk.
const ENDINGS_MAX: usize = 64;

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
    lanes: Lanes<u64, u64, Key>,
    entries: HashMap<u64, Entry>,
    /// The limits of a lane are the same for all its messages.
    limits: HashMap<u64, Arc<[Key]>>,
    /// When to let those try that wait for a limit.
    gates: BTreeSet<(u64, Key)>,
    gated: HashMap<Key, u64>,
    expiries: BinaryHeap<Reverse<(u64, u64)>>,
    attempts: JoinSet<Landing>,
    /// Messages that end without an attempt: expired, cancelled, parked.
    endings: JoinSet<()>,
}

/// What is kept in memory of a waiting message. Times are monotonic.
struct Entry {
    lane: u64,
    priority: Priority,
    flying: bool,
    reordered: bool,
    limits: Arc<[Key]>,
    expires_ms: u64,
    /// Since when it waits for a limit; 0 = it does not.
    limited_since_ms: u64,
}

struct Landing {
    lane: LaneId,
    seq: u64,
    left: Left,
}

/// Works until `drain` says stop, then finishes the attempts under way. `recovered` is what was
/// waiting on disk at the start.
pub async fn run(
    sender: Sender,
    recovered: Vec<(u64, Live)>,
    mut appended: mpsc::UnboundedReceiver<Appended<Live>>,
    mut commands: mpsc::Receiver<Command>,
    drain: Drain,
) -> Result<(), CommitError> {
    let mut work = Work {
        lanes: Lanes::default(),
        entries: HashMap::new(),
        limits: HashMap::new(),
        gates: BTreeSet::new(),
        gated: HashMap::new(),
        expiries: BinaryHeap::new(),
        attempts: JoinSet::new(),
        endings: JoinSet::new(),
        sender,
    };
    work.recover(recovered).await?;
    let (clock, egress) = (work.sender.clock, work.sender.egress.clone());
    while !drain.is_stopping() {
        let wakes_ms = work.step();
        tokio::select! {
            entry = appended.recv() => {
                let Some(entry) = entry else { break };
                work.take_in(entry.seq, &entry.state);
                work.take_in_more(&mut appended);
            }
            Some(ended) = work.attempts.join_next() => work.land(ended),
            Some(command) = commands.recv() => {
                // What was accepted before the command was given must be known to it.
                work.take_in_more(&mut appended);
                work.obey(command);
            }
            Some(ended) = work.endings.join_next() => land_ending(ended),
            () = egress.cleared() => work.open_all_gates(),
            () = clock.sleep_until(wakes_ms) => {}
            () = drain.stopping() => {}
        }
    }
    while let Some(ended) = work.attempts.join_next().await {
        work.land(ended);
    }
    while let Some(ended) = work.endings.join_next().await {
        land_ending(ended);
    }
    Ok(())
}

fn land_ending(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        std::panic::resume_unwind(error.into_panic());
    }
}

impl Work {
    /// Takes in what was waiting at the start. A call that was under way has an unknown outcome; what
    /// follows from that is written before anything is sent.
    async fn recover(&mut self, recovered: Vec<(u64, Live)>) -> Result<(), CommitError> {
        let mut batch = Batch::default();
        for (seq, mut live) in recovered {
            if bug(Bug::UnknownTakenForUnsent) {
                live.progress.in_flight = None;
            }
            if live.progress.in_flight.is_some() {
                let keyed = live.is_keyed();
                match live.progress.recover(live.ambiguous, keyed) {
                    Next::Finished => {
                        let state = live.progress.state;
                        let reason = live.progress.reason.take();
                        self.end(seq, state, reason);
                        continue;
                    }
                    Next::Soon => live.progress.due_ms = 0,
                    Next::Scheduled { failures } => {
                        let delay_ms =
                            DINGTALK.delay_ms(failures, crate::delivery::random::share());
                        live.progress.due_ms = self.sender.clock.wall_ms() + delay_ms;
                    }
                }
                self.sender.queue.update(&mut batch, seq, &live);
            }
            self.take_in(seq, &live);
        }
        if batch.is_empty() {
            Ok(())
        } else {
            self.sender.journal.commit(batch).await
        }
    }

    fn take_in(&mut self, seq: u64, live: &Live) {
        let clock = self.sender.clock;
        let (wall_ms, mono_ms) = (clock.wall_ms(), clock.mono_ms());
        let limits = self
            .limits
            .entry(live.lane)
            .or_insert_with(|| live.limits().into())
            .clone();
        let expires_ms = mono_ms + live.expires_ms.saturating_sub(wall_ms);
        // No more than the schedule allows: the wall clock may have been set back meanwhile.
        let left_ms = live
            .progress
            .due_ms
            .saturating_sub(wall_ms)
            .min(DINGTALK.cap_ms);
        let due_ms = if left_ms == 0 { 0 } else { mono_ms + left_ms };
        let entry = Entry {
            lane: live.lane,
            priority: live.priority,
            flying: false,
            reordered: false,
            limits,
            expires_ms,
            limited_since_ms: 0,
        };
        self.entries.insert(seq, entry);
        self.expiries.push(Reverse((expires_ms, seq)));
        self.lanes.push(&live.lane, live.priority, seq, due_ms);
    }

    /// Starts what may start; returns when to look again.
    fn step(&mut self) -> u64 {
        let now_ms = self.sender.clock.mono_ms();
        self.expire(now_ms);
        self.open_gates(now_ms);
        let attempts_max = self.sender.settings.load().concurrency;
        let mut decided = 0;
        while self.attempts.len() < attempts_max && decided < STEP_MAX {
            let Some((lane, seq)) = self.lanes.next(now_ms) else {
                break;
            };
            decided += 1;
            self.start(lane, seq, now_ms);
        }
        if decided == STEP_MAX {
            return now_ms;
        }
        // With all places for endings taken, the next one that is free wakes the loop.
        let endable = self.endings.len() < ENDINGS_MAX;
        let expiry = self
            .expiries
            .peek()
            .filter(|_| endable)
            .map(|Reverse((expires_ms, _))| *expires_ms);
        let gate = self.gates.first().map(|(until_ms, _)| *until_ms);
        [self.lanes.wakes_at(), expiry, gate]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(now_ms + 60_000)
    }

    fn start(&mut self, lane: LaneId, seq: u64, now_ms: u64) {
        let Some(entry) = self.entries.get_mut(&seq) else {
            // Cancelled or expired while it waited.
            self.lanes.drop_head(lane);
            return;
        };
        let critical = entry.priority == Priority::Critical;
        match self.sender.egress.try_acquire(&entry.limits, critical) {
            Err(full) => {
                if entry.limited_since_ms == 0 {
                    entry.limited_since_ms = now_ms;
                }
                self.lanes.park(lane, full.key);
                self.gate(full.key, full.until_ms);
            }
            Ok(permit) => {
                if entry.limited_since_ms > 0 {
                    metrics::rate_limit_wait(now_ms - entry.limited_since_ms);
                    entry.limited_since_ms = 0;
                }
                entry.flying = true;
                let reordered = entry.reordered;
                self.lanes.fly(lane);
                let sender = self.sender.clone();
                if bug(Bug::LeaseTwice)
                    && let Ok(permit) = sender.egress.try_acquire(&entry.limits, critical)
                {
                    let sender = sender.clone();
                    self.endings.spawn(async move {
                        sender.attempt(seq, permit, reordered).await;
                    });
                }
                self.attempts.spawn(async move {
                    let left = sender.attempt(seq, permit, reordered).await;
                    Landing { lane, seq, left }
                });
            }
        }
    }

    fn open_gates(&mut self, now_ms: u64) {
        while let Some(&(until_ms, key)) = self.gates.first()
            && until_ms <= now_ms
        {
            self.gates.pop_first();
            self.gated.remove(&key);
            let capacity = self.sender.egress.capacity(key).max(1);
            if let Some(priority) = self.lanes.open(&key, capacity) {
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

    fn take_in_more(&mut self, appended: &mut mpsc::UnboundedReceiver<Appended<Live>>) {
        for _ in 0..STEP_MAX {
            let Ok(entry) = appended.try_recv() else {
                return;
            };
            self.take_in(entry.seq, &entry.state);
        }
    }

    fn land(&mut self, ended: Result<Landing, tokio::task::JoinError>) {
        let landing = match ended {
            Ok(landing) => landing,
            // Its lane would wait for ever: better to start over from the disk.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        let now_ms = self.sender.clock.mono_ms();
        match landing.left {
            Left::Finished => {
                self.forget(landing.seq);
                self.lanes.land(landing.lane, Landed::Settled, now_ms);
            }
            Left::Again { due_ms, failed } => {
                let landed = Landed::Again { due_ms, failed };
                let reordered = self.lanes.land(landing.lane, landed, now_ms);
                if let Some(entry) = self.entries.get_mut(&landing.seq) {
                    entry.flying = false;
                    entry.reordered |= reordered;
                }
                if reordered {
                    metrics::reordered();
                }
            }
        }
    }

    fn expire(&mut self, now_ms: u64) {
        while let Some(&Reverse((expires_ms, seq))) = self.expiries.peek()
            && expires_ms <= now_ms
            && self.endings.len() < ENDINGS_MAX
        {
            self.expiries.pop();
            match self.entries.get(&seq) {
                None => {}
                // Replayed since: it has a new lifetime.
                Some(entry) if entry.expires_ms > now_ms => {}
                // Its attempt decides; look again when that has ended at the latest.
                Some(entry) if entry.flying => self.expiries.push(Reverse((now_ms + 1_000, seq))),
                Some(_) => {
                    self.forget(seq);
                    let reason = Reason::new(
                        "expired",
                        "the message was not worth sending any more (expires_in_s or its priority's lifetime)",
                        "查看该消息此前的 reason；如常因限流过期，请提高优先级或分散机器人。",
                        "See what held it up; if limits did, raise its priority or spread it over more robots.",
                    );
                    self.end(seq, State::Expired, Some(reason));
                }
            }
        }
    }

    fn obey(&mut self, command: Command) {
        let Command::Cancel { seq, answer } = command;
        let in_time = self.entries.get(&seq).is_some_and(|entry| !entry.flying);
        if in_time {
            self.forget(seq);
            let sender = self.sender.clone();
            self.endings.spawn(async move {
                let ended = sender.end(seq, State::Cancelled, None).await.is_some();
                if answer.send(ended).is_err() {
                    tracing::debug!("nobody waits for the answer to a cancellation");
                }
            });
        } else if answer.send(false).is_err() {
            tracing::debug!("nobody waits for the answer to a cancellation");
        }
    }

    fn end(&mut self, seq: u64, state: State, reason: Option<Reason>) {
        let sender = self.sender.clone();
        self.endings.spawn(async move {
            if sender.end(seq, state, reason).await.is_none() {
                tracing::error!(seq, "a message that has ended cannot be read back");
            }
        });
    }

    fn forget(&mut self, seq: u64) {
        if let Some(entry) = self.entries.remove(&seq)
            // The map itself and nobody else.
            && Arc::strong_count(&entry.limits) <= 2
        {
            self.limits.remove(&entry.lane);
        }
    }
}
