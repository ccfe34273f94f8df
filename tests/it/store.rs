//! The journal on a disk that fails, against a plain map: after every end, whatever was answered is
//! there, in one piece, and nothing that was never written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dingd::delivery::state::{Priority, State, Tag};
use dingd::journal::aged::Aged;
use dingd::journal::disk::Condition;
use dingd::journal::queue::{INBOX, Queue};
use dingd::journal::retention::{Ended, Keep, Retention};
use dingd::journal::{Batch, Journal, Order, Table, number_of};

use crate::support::Dice;
use crate::support::faulty::{Machine, Plan};

const TABLES: usize = 0;
const LOG: usize = 1;
/// Small, so that the log is written over and over within a test.
const HALF_BYTES: usize = 32 << 10;
const STEPS: u64 = 60;
/// The tests do not look at what is counted in memory.
const QUEUED: Tag = Tag {
    lane: 0,
    priority: Priority::Normal,
    bytes: 0,
    accepted_ms: 0,
    state: State::Queued,
};

/// What is in a store, as far as it matters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Content {
    live: BTreeMap<u64, u64>,
    done: BTreeMap<u64, u64>,
    payload: BTreeMap<u64, Vec<u8>>,
    /// By time, as on disk.
    seen: BTreeSet<(u64, [u8; 16])>,
    sums: BTreeMap<u8, u64>,
    accepted: u64,
}

#[derive(Debug, Clone)]
enum Act {
    Append(u64, Vec<u8>),
    Settled(u64, Vec<u8>),
    Update(u64, u64),
    Finish(u64, u64),
    Reopen(u64, u64),
    Purge(u64),
    Seen(u64, [u8; 16]),
    Count(u8, u64),
    /// What is so old at this time is forgotten, or removed.
    Forget(u64),
    Expire(u64),
}

/// Keys are remembered this long, and what has ended stays: as times go here, one for each step.
const KEEP: u64 = 20;
/// What has ended with an odd state is a dead letter.
const RETAINED: Keep = Keep {
    finished_ms: KEEP,
    dead_ms: 2 * KEEP,
    dead_bytes_max: u64::MAX,
};

#[expect(
    clippy::trivially_copy_pass_by_ref,
    clippy::unnecessary_wraps,
    reason = "as retention asks it"
)]
fn ended(state: &u64) -> Option<Ended> {
    Some(Ended {
        at_ms: *state,
        dead: state % 2 == 1,
    })
}

fn is_over(state: u64, now: u64) -> bool {
    state + [KEEP, 2 * KEEP][usize::try_from(state % 2).unwrap()] < now
}

impl Content {
    fn apply(&mut self, act: &Act) {
        match act {
            Act::Append(seq, payload) => {
                self.live.insert(*seq, 0);
                self.payload.insert(*seq, payload.clone());
                self.accepted += 1;
            }
            Act::Settled(seq, _) => {
                self.done.insert(*seq, 0);
                self.accepted += 1;
            }
            Act::Update(seq, state) => drop(self.live.insert(*seq, *state)),
            Act::Finish(seq, state) => {
                self.live.remove(seq);
                self.done.insert(*seq, *state);
            }
            Act::Reopen(seq, state) => {
                self.done.remove(seq);
                self.live.insert(*seq, *state);
            }
            Act::Purge(seq) => {
                self.done.remove(seq);
                self.payload.remove(seq);
            }
            Act::Seen(now, key) => drop(self.seen.insert((*now, *key))),
            Act::Count(key, amount) => *self.sums.entry(*key).or_default() += amount,
            Act::Forget(now) => self.seen.retain(|(at, _)| at + KEEP >= *now),
            Act::Expire(now) => {
                let over = |(_, state): &(&u64, &u64)| is_over(**state, *now);
                let over: Vec<_> = self.done.iter().filter(over).map(|(seq, _)| *seq).collect();
                for seq in over {
                    self.apply(&Act::Purge(seq));
                }
            }
        }
    }
}

/// A store that is worked with.
struct Store {
    journal: Journal,
    queue: Queue<u64>,
    seen: Aged<(), 2>,
    retention: Retention,
}

impl Store {
    fn open(machine: &Machine) -> Result<Self, String> {
        let condition = Condition::retrying_after(Duration::from_millis(1));
        let (tables, log) = (machine.file(TABLES), machine.file(LOG));
        let journal =
            Journal::on(tables, log, HALF_BYTES, condition).map_err(|error| error.to_string())?;
        let seen = Aged::new(Table::Dedup, KEEP, 1_000);
        let mut aside = Batch::default();
        let (queue, _) = journal
            .read_blocking(|view| {
                seen.load(view, &mut aside)?;
                Queue::open(INBOX, view)
            })
            .map_err(|error| error.to_string())?;
        Ok(Self {
            journal,
            queue,
            seen,
            retention: Retention::default(),
        })
    }

    fn put(&self, batch: &mut Batch, act: &Act) {
        let queue = &self.queue;
        match act {
            Act::Append(seq, payload) => queue.append(batch, *seq, payload, &0),
            Act::Settled(seq, payload) => queue.append_settled(batch, *seq, payload, &0),
            Act::Update(seq, state) => queue.update(batch, *seq, state, QUEUED),
            Act::Finish(seq, state) => queue.finish(batch, *seq, state),
            Act::Reopen(seq, state) => queue.reopen(batch, *seq, state),
            Act::Purge(seq) => queue.purge(batch, *seq),
            Act::Seen(now, key) => {
                self.seen.note(batch, &[*key, *key], &(), *now);
                self.seen.remember([*key, *key], &(), *now);
            }
            Act::Forget(_) | Act::Expire(_) => unreachable!("{act:?} is a step of its own"),
            Act::Count(key, amount) => batch.add_to(Table::Ledger, [*key], *amount),
        }
    }

    /// Everything, read back and checked record by record.
    fn content(&self) -> Content {
        let read = self.journal.read_blocking(|view| {
            let mut content = Content::default();
            let states = |table, into: &mut BTreeMap<u64, u64>| {
                view.walk(table, &[], &[], Order::Ascending, &mut |key, value| {
                    let (state, _) = dingd::delivery::record::split_first(value).unwrap();
                    let state = dingd::delivery::record::decode(state).unwrap();
                    into.insert(u64::from_be_bytes(key.try_into().unwrap()), state);
                    true
                })
            };
            states(INBOX.live, &mut content.live)?;
            states(INBOX.done, &mut content.done)?;
            view.walk(
                INBOX.payload,
                &[],
                &[],
                Order::Ascending,
                &mut |key, value| {
                    let seq = u64::from_be_bytes(key.try_into().unwrap());
                    content.payload.insert(seq, value.to_vec());
                    true
                },
            )?;
            view.walk(Table::Dedup, &[], &[], Order::Ascending, &mut |key, _| {
                let (at, first) = key.split_at(8);
                let at = u64::from_be_bytes(at.try_into().unwrap());
                content.seen.insert((at, first.try_into().unwrap()));
                true
            })?;
            view.walk(
                Table::Ledger,
                &[],
                &[],
                Order::Ascending,
                &mut |key, sum| {
                    content.sums.insert(key[0], number_of(sum));
                    true
                },
            )?;
            content.accepted = view.counter(INBOX.accepted)?;
            let mut damaged = vec![];
            view.walk(
                Table::Quarantine,
                &[],
                &[],
                Order::Ascending,
                &mut |key, value| {
                    damaged.push((
                        String::from_utf8_lossy(key).into_owned(),
                        value.len(),
                        value.to_vec(),
                    ));
                    true
                },
            )?;
            assert!(damaged.is_empty(), "something is damaged: {damaged:?}");
            let books = self.queue.books(view)?;
            assert_eq!(books.mismatch(), 0, "{books:?}");
            Ok(content)
        });
        read.unwrap()
    }
}

/// What was asked for, in order, and how much of it was answered with yes.
#[derive(Default)]
struct History {
    acts: Vec<Vec<Act>>,
    answered: Arc<AtomicUsize>,
    /// A yes behind a no.
    broken: Arc<Mutex<bool>>,
}

impl History {
    fn submit(&mut self, store: &Store, batch: Batch, acts: Vec<Act>) {
        self.acts.push(acts);
        let answer = self.answer();
        store.journal.submit(batch, move |result| {
            if result.is_ok() {
                answer();
            }
        });
    }

    /// To be called when the last of the acts is known to be durable.
    fn answer(&self) -> impl FnOnce() + use<> {
        let (answered, broken) = (self.answered.clone(), self.broken.clone());
        let place = self.acts.len();
        move || {
            let before = answered.fetch_add(1, Ordering::SeqCst);
            *broken.lock().unwrap() |= before + 1 != place;
        }
    }

    /// What is old goes.
    fn expire(&mut self, store: &Store, model: &mut Content, now: u64) {
        let forgets = store.seen.forget(now).1;
        if !forgets.is_empty() {
            model.apply(&Act::Forget(now));
            self.submit(store, forgets, vec![Act::Forget(now)]);
        }
        if model.done.values().any(|state| is_over(*state, now)) {
            model.apply(&Act::Expire(now));
            self.acts.push(vec![Act::Expire(now)]);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap();
            let (journal, queue) = (&store.journal, &store.queue);
            let step = async {
                // Whoever purges or reopens an entry keeps retention out until that is durable.
                let _durable = journal.commit(Batch::default()).await;
                let step = store.retention.step(journal, queue, RETAINED, now, ended);
                step.await
            };
            let mut removed = runtime.block_on(step).removed;
            // While the disk is full nobody can look at what the tables do not have yet.
            while removed == 0 && !journal.has_failed() {
                let step = store.retention.step(journal, queue, RETAINED, now, ended);
                removed = runtime.block_on(step).removed;
            }
            if removed > 0 {
                self.answer()();
            }
        }
    }
}

/// Random work, always on what the model has.
fn work(store: &Store, model: &mut Content, dice: &mut Dice, steps: u64) -> History {
    let mut history = History::default();
    // Goes on where the life before it was.
    let seen = model.seen.iter().map(|(at, _)| at);
    let mut now = model.done.values().chain(seen).copied().max().unwrap_or(0);
    for _ in 0..steps {
        now += dice.below(3);
        if dice.below(6) == 0 {
            history.expire(store, model, now);
        }
        let mut acts = vec![];
        for _ in 0..=dice.below(3) {
            let act = choose(store, model, dice, now);
            model.apply(&act);
            acts.push(act);
        }
        let mut batch = Batch::default();
        for act in &acts {
            store.put(&mut batch, act);
        }
        history.submit(store, batch, acts);
        // Sometimes groups of one, sometimes of many.
        if dice.below(3) == 0 {
            drop(store.journal.read_blocking(|_| Ok(())));
        }
        if dice.below(8) == 0 {
            std::thread::sleep(Duration::from_millis(dice.below(3)));
        }
    }
    history
}

fn choose(store: &Store, model: &Content, dice: &mut Dice, now: u64) -> Act {
    let mut one = |map: &BTreeMap<u64, u64>| {
        let nth = dice.below(map.len().max(1) as u64);
        map.keys().nth(usize::try_from(nth).unwrap()).copied()
    };
    let (live, done) = (one(&model.live), one(&model.done));
    // Now and then more than the log can take.
    let size_max = [3_000, 60_000][usize::from(dice.below(20) == 0)];
    let size = 1 + usize::try_from(dice.below(size_max)).unwrap();
    let payload = vec![u8::try_from(dice.below(256)).unwrap(); size];
    if dice.below(4) == 0 {
        // A number whose entry is never submitted, or was not when the end came.
        store.queue.reserve();
    }
    match (dice.below(10), live, done) {
        (0, ..) => Act::Settled(store.queue.reserve(), payload),
        (8, ..) => Act::Count(u8::try_from(dice.below(3)).unwrap(), dice.below(9)),
        (1, ..) => Act::Seen(now, [u8::try_from(dice.below(256)).unwrap(); 16]),
        (2 | 3, Some(seq), _) => Act::Update(seq, dice.below(1_000)),
        (4 | 5, Some(seq), _) => Act::Finish(seq, now),
        (6, _, Some(seq)) if model.payload.contains_key(&seq) => {
            Act::Reopen(seq, dice.below(1_000))
        }
        (7, _, Some(seq)) => Act::Purge(seq),
        _ => Act::Append(store.queue.reserve(), payload),
    }
}

/// Compares what a store holds with the model: all that was answered, perhaps more of what was asked,
/// in order. Returns the model as it is now.
fn check(store: &Store, before: &Content, history: &History, seed: u64) -> Content {
    assert!(
        !*history.broken.lock().unwrap(),
        "answers out of order, seed {seed}"
    );
    let answered = history.answered.load(Ordering::SeqCst);
    let content = store.content();
    let mut model = before.clone();
    for (n, acts) in history.acts.iter().enumerate() {
        if n >= answered && model == content {
            return model;
        }
        for act in acts {
            model.apply(act);
        }
    }
    assert!(
        model == content,
        "{answered} of {} batches were answered, but the store holds something else; seed {seed}\nasked: {model:#?}\nfound: {content:#?}",
        history.acts.len()
    );
    model
}

/// One life after another on one machine, each with its plan.
fn lives(seed: u64, count: u64, plan: impl Fn(&mut Dice) -> Plan, power: bool) {
    let mut dice = Dice::new(seed);
    let (mut machine, mut model) = (made(), Content::default());
    for _ in 0..count {
        machine.plan(plan(&mut dice));
        let end = End {
            power,
            finish: false,
        };
        machine = life(&machine, &mut model, &mut dice, end, seed).machine;
    }
}

/// How a life ends: by a power cut or a kill, and whether surely not before its work is done.
#[derive(Clone, Copy)]
struct End {
    power: bool,
    finish: bool,
}

/// How a life was, when its journal was closed or left.
struct Past {
    /// The machine, with a store that was looked at.
    machine: Machine,
    failed: bool,
    /// Calls of the disk.
    calls: u64,
}

/// Work until the end that was planned, then look.
fn life(
    machine: &Machine,
    model: &mut Content,
    dice: &mut Dice,
    End { power, finish }: End,
    seed: u64,
) -> Past {
    let mut history = History::default();
    let (mut failed, mut calls) = (true, u64::MAX);
    // The end may come while it opens.
    if let Ok(store) = Store::open(machine) {
        history = work(&store, &mut model.clone(), dice, STEPS);
        if finish || dice.below(2) == 0 {
            store.journal.close();
        }
        (failed, calls) = (store.journal.has_failed(), machine.calls());
    }
    let machine = if power {
        machine.power_up(dice)
    } else {
        machine.restart()
    };
    let store = Store::open(&machine)
        .unwrap_or_else(|error| panic!("it does not open: {error}; seed {seed}"));
    *model = check(&store, model, &history, seed);
    store.journal.close();
    Past {
        machine: machine.restart(),
        failed,
        calls,
    }
}

/// A machine with an empty store; what may happen while it is made is a test of its own.
fn made() -> Machine {
    let machine = Machine::new();
    Store::open(&machine).unwrap().journal.close();
    machine.restart()
}

fn many(short: u64, long: u64) -> u64 {
    if crate::support::long() { long } else { short }
}

#[test]
fn a_store_and_a_map_agree_after_every_clean_stop_and_every_kill() {
    for seed in 1..=many(6, 60) {
        lives(seed, 5, |_| Plan::Nothing, false);
    }
}

/// Somewhere within a life's calls, so that most ends come while it works.
fn sometime(dice: &mut Dice) -> Plan {
    Plan::Dead {
        at: 1 + dice.below(150),
        after: dice.below(2) == 0,
    }
}

#[test]
fn fifty_power_cuts_lose_nothing_that_was_answered() {
    for seed in 1..=many(10, 100) {
        lives(seed, 5, sometime, true);
    }
}

#[test]
fn a_kill_at_any_call_of_the_disk_loses_nothing() {
    for after in [false, true] {
        each_call(20, |at| Plan::Dead { at, after }, |_| ());
    }
}

#[test]
fn a_power_cut_at_any_call_from_the_first_start_on_leaves_something_that_opens() {
    let mut dice = Dice::new(1);
    for at in 1.. {
        let machine = Machine::new();
        machine.plan(Plan::Dead { at, after: false });
        if let Ok(store) = Store::open(&machine) {
            store.journal.close();
            break;
        }
        // Files are renamed when they are complete, so one of them is whole or not there.
        let [mut tables, mut log] = [TABLES, LOG].map(|n| machine.power_up(&mut dice).bytes(n));
        tables.clear();
        if log.len() < 2 * HALF_BYTES {
            log.clear();
        }
        let store = Store::open(&Machine::holding([tables, log])).unwrap();
        store.journal.close();
    }
}

#[test]
fn an_error_at_any_call_of_the_disk_ends_the_journal_and_is_never_taken_for_success() {
    each_call(20, |at| Plan::Broken { at }, |failed| assert!(failed));
}

/// Whoever reads is told, or the journal ends; what was answered is there at the next start.
#[test]
fn a_read_that_fails_at_any_call_of_the_disk_loses_nothing() {
    each_call(5, |at| Plan::Unreadable { at }, |_| ());
}

#[test]
fn a_full_disk_at_any_call_is_waited_for_and_nothing_fails() {
    each_call(
        20,
        |from| Plan::Full { from, calls: 3 },
        |failed| assert!(!failed),
    );
}

/// A first start whose disk fails says so, and not that there is damage for which a backup were the cure.
#[test]
fn an_error_at_any_call_of_a_first_start_is_taken_for_no_damage() {
    for at in 1.. {
        let machine = Machine::new();
        machine.plan(Plan::Broken { at });
        match Store::open(&machine) {
            Ok(store) => {
                store.journal.close();
                assert!(at > 5, "only {at} calls");
                return;
            }
            Err(error) => {
                assert!(!error.contains("Damaged"), "call {at}: {error}");
            }
        }
    }
}

/// For every k: a life in which the plan strikes at the k-th call, until ten in a row end before that; the
/// plan must have struck at more than `least` calls.
fn each_call(least: u64, plan: impl Fn(u64) -> Plan, judge: impl Fn(bool)) {
    let step = many(3, 1).min(least.div_ceil(10));
    let (mut at, mut struck, mut missed) = (1, 0, 0);
    // Beside busy programs much gathers, and a life makes few calls; but not every life.
    while missed < 10 || at < 80 {
        let mut dice = Dice::new(at);
        let (mut model, machine) = (Content::default(), made());
        machine.plan(plan(at));
        let end = End {
            power: false,
            finish: true,
        };
        let past = life(&machine, &mut model, &mut dice, end, at);
        // How many calls a life makes depends on how much gathers while the disk works.
        if past.calls >= at {
            (struck, missed) = (struck + 1, 0);
            judge(past.failed);
        } else {
            missed += 1;
        }
        at += step;
    }
    assert!(struck * step > least, "only {struck} calls");
}

/// A clock that was a year ahead when they ended; it is right again.
#[test]
fn ends_in_the_future_do_not_hold_up_what_is_old() {
    let store = Store::open(&made()).unwrap();
    // More than are looked at in one step.
    for end in std::iter::repeat_n(1_000_000, 2_500).chain([0]) {
        let mut batch = Batch::default();
        let seq = store.queue.reserve();
        store.queue.append_settled(&mut batch, seq, b"x", &end);
        store.journal.submit(batch, |result| result.unwrap());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    // All of them are there before anybody looks.
    runtime
        .block_on(store.journal.commit(Batch::default()))
        .unwrap();
    let step = async || {
        let (journal, queue) = (&store.journal, &store.queue);
        store
            .retention
            .step(journal, queue, RETAINED, 100, ended)
            .await
    };
    let removed: usize = (0..3).map(|_| runtime.block_on(step()).removed).sum();
    assert_eq!(removed, 1, "the old one behind them");
    store.journal.close();
}

#[test]
fn damage_anywhere_is_noticed() {
    let mut dice = Dice::new(7);
    let (mut noticed, mut harmless) = (0, 0);
    for round in 0..many(30, 200) {
        let machine = Machine::new();
        let store = Store::open(&machine).unwrap();
        let mut model = Content::default();
        let history = work(&store, &mut model, &mut dice, STEPS);
        while history.answered.load(Ordering::SeqCst) < history.acts.len() {
            std::thread::yield_now();
        }
        if round % 2 == 0 {
            store.journal.close();
        } else {
            // The tables have it all, as they do after 20 ms.
            std::thread::sleep(Duration::from_millis(100));
        }
        let machine = machine.restart();
        for _ in 0..10 {
            let mut files = [TABLES, LOG].map(|n| machine.bytes(n));
            let which = usize::try_from(dice.below(2)).unwrap();
            let what = change(&mut files[which], &mut dice);
            let Ok(store) = Store::open(&Machine::holding(files)) else {
                noticed += 1;
                continue;
            };
            let aside = store
                .journal
                .read_blocking(|view| view.len(Table::Quarantine));
            if aside.unwrap() > 0 {
                noticed += 1;
            } else {
                let content = store.content();
                assert!(
                    content == model,
                    "silent loss, round {round}, file {which}, {what}: {model:#?} {content:#?}"
                );
                harmless += 1;
            }
            store.journal.close();
        }
    }
    assert!(noticed > 0 && harmless > 0, "{noticed} {harmless}");
}

/// What only the log has when the end comes, one group for each entry: damage costs the groups that it hit
/// and is said, or it hit the newest one, which looks like one that was torn by the end.
#[test]
fn damage_to_a_log_that_is_needed_costs_what_it_hit_and_is_said() {
    let mut dice = Dice::new(11);
    let (mut said, mut newest, mut harmless) = (0, 0, 0);
    for _ in 0..many(20, 100) {
        let machine = Machine::new();
        let store = Store::open(&machine).unwrap();
        let mut before = None;
        let written: BTreeSet<u64> = (0..6)
            .map(|_| {
                let seq = store.queue.reserve();
                let payload = vec![7; 1 + usize::try_from(dice.below(3_000)).unwrap()];
                let mut batch = Batch::default();
                store.queue.append(&mut batch, seq, &payload, &0);
                // Each goes on with the one before: if that is lost, it was accepted all the same.
                if let Some(before) = before.replace(seq) {
                    store.queue.finish(&mut batch, before, &1);
                }
                let (tell, told) = std::sync::mpsc::channel();
                store
                    .journal
                    .submit(batch, move |result| tell.send(result).unwrap());
                told.recv().unwrap().unwrap();
                seq
            })
            .collect();
        let machine = machine.restart();
        for _ in 0..20 {
            let mut files = [TABLES, LOG].map(|n| machine.bytes(n));
            // Where the frames are; further on there are zeros.
            let mut frames = files[LOG][..8 * 4_096].to_vec();
            let what = change(&mut frames, &mut dice);
            if what.starts_with("cut") {
                files[LOG] = frames;
            } else {
                files[LOG][..8 * 4_096].copy_from_slice(&frames);
            }
            let Ok(store) = Store::open(&Machine::holding(files)) else {
                said += 1;
                continue;
            };
            let (found, aside, books) = store
                .journal
                .read_blocking(|view| {
                    let mut found = BTreeSet::new();
                    let all = &mut |key: &[u8], _: &[u8]| {
                        found.insert(u64::from_be_bytes(key.try_into().unwrap()));
                        true
                    };
                    view.walk(INBOX.payload, &[], &[], Order::Ascending, all)?;
                    Ok((
                        found,
                        view.len(Table::Quarantine)?,
                        store.queue.books(view)?,
                    ))
                })
                .unwrap();
            store.journal.close();
            assert!(found.is_subset(&written) && books.mismatch() == 0, "{what}");
            let lost: Vec<_> = written.difference(&found).collect();
            if lost.is_empty() {
                harmless += 1;
            } else if aside > 0 {
                said += 1;
            } else {
                assert_eq!(lost, [written.last().unwrap()], "silent loss: {what}");
                newest += 1;
            }
            assert!(lost.len() <= 1, "{what} cost {lost:?}");
        }
    }
    assert!(
        said > 0 && newest > 0 && harmless > 0,
        "{said} {newest} {harmless}"
    );
}

/// Returns what it did.
fn change(file: &mut Vec<u8>, dice: &mut Dice) -> String {
    let len = file.len() as u64;
    let mut somewhere = |end: u64| usize::try_from(dice.below(end)).unwrap();
    match somewhere(4) {
        0 => {
            let at = somewhere(len);
            file[at] ^= 1 << somewhere(8);
            format!("a bit of byte {at}")
        }
        1 => {
            let start = somewhere(len / 512) * 512;
            file[start..start + 512].fill(0);
            format!("a sector of zeros at {start}")
        }
        2 => {
            let [from, to] = [0, 1].map(|_| somewhere(len / 4_096) * 4_096);
            file.copy_within(from..from + 4_096, to);
            format!("the block at {from} over that at {to}")
        }
        _ => {
            let end = somewhere(len);
            file.truncate(end);
            format!("cut at {end}")
        }
    }
}
