//! The two threads of the journal.
//!
//! *Writer*: takes what has gathered, makes it durable in the log, answers all. *Keeper*: puts the
//! groups into the tables, many at a time, and now and then makes the tables durable, so that the log
//! can be written again. A reader waits until the tables have what was answered before it asked.
//!
//! *In line*: the same two, without threads. Whoever submits or reads does their work meanwhile; for
//! simulations, in which nothing may depend on when a thread runs.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;

use super::engine::{Engine, Save};
use super::log::{Log, NotAppended};
use super::{Batch, CommitError};
use crate::clock::Clock;
use crate::faults::{Bug, bug, point};

const GROUP_BATCHES_MAX: usize = 256;
const GROUP_BYTES_MAX: usize = 1 << 20;
/// Whoever waits for the tables looks so often whether they are stuck.
const STUCK_LOOK: Duration = Duration::from_secs(1);
/// The tables are behind the log by no more than this many bytes, or, if nobody reads, this long. Little
/// at a time, because a sync of the log waits while the disk is busy with the tables.
const BEHIND_BYTES_MAX: usize = 1 << 20;
const BEHIND_TIME_US: u64 = 20_000;
pub(super) type Then = Box<dyn FnOnce(Result<(), CommitError>) + Send>;

/// How far the groups have come.
#[derive(Debug)]
pub(super) struct Progress {
    state: Mutex<State>,
    /// A number has grown.
    moved: Condvar,
    /// There is something for the keeper to do.
    work: Condvar,
    failed: watch::Sender<bool>,
}

/// The numbers only grow.
#[derive(Debug, Default)]
struct State {
    /// Durable in the log, and answered.
    answered: u64,
    /// Somebody waits until this is in the tables.
    wanted: u64,
    /// In the tables.
    kept: u64,
    /// Durable in the tables.
    durable: u64,
    /// What the keeper has to put into the tables.
    behind: Vec<Group>,
    behind_bytes: usize,
    closing: bool,
    failed: bool,
}

/// A group that is durable in the log.
#[derive(Debug)]
struct Group {
    number: u64,
    batches: Vec<Batch>,
}

impl Progress {
    /// Everything up to group `number` is durable in the tables.
    pub(super) fn at(number: u64, failed: watch::Sender<bool>) -> Self {
        let state = State {
            answered: number,
            kept: number,
            durable: number,
            ..State::default()
        };
        Self {
            state: Mutex::new(state),
            moved: Condvar::new(),
            work: Condvar::new(),
            failed,
        }
    }

    /// Waits until the tables have everything that was answered before this call; `false` if they cannot,
    /// because they are stuck.
    pub(super) fn wait_for_tables(&self, is_stuck: impl Fn() -> bool) -> Result<bool, CommitError> {
        let mut state = self.state();
        let answered = state.answered;
        if state.kept < answered && !bug(Bug::LostWakeUp) {
            state.wanted = state.wanted.max(answered);
            self.work.notify_one();
        }
        loop {
            if state.kept >= answered {
                return Ok(true);
            }
            if state.failed {
                return Err(CommitError);
            }
            if is_stuck() {
                return Ok(false);
            }
            let waited = self.moved.wait_timeout(state, STUCK_LOOK);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn wait(
        &self,
        state: MutexGuard<'_, State>,
        until: impl Fn(&State) -> bool,
    ) -> Result<(), CommitError> {
        let state = self
            .moved
            .wait_while(state, |state| !until(state) && !state.failed)
            .unwrap_or_else(PoisonError::into_inner);
        if until(&state) {
            Ok(())
        } else {
            Err(CommitError)
        }
    }

    /// Hands a group to the keeper.
    fn push(&self, group: Group, bytes: usize) {
        let mut state = self.state();
        state.behind_bytes += bytes;
        let wake = state.behind.is_empty() || state.behind_bytes >= BEHIND_BYTES_MAX;
        let wake = wake && !bug(Bug::LostWakeUp);
        state.behind.push(group);
        if wake {
            self.work.notify_one();
        }
    }

    fn fail(&self) {
        self.state().failed = true;
        self.moved.notify_all();
        self.failed.send_replace(true);
    }

    fn close(&self) {
        self.state().closing = true;
        self.work.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is queued here is bounded by those who wait: each connection, each call in flight and each
/// ending has few batches under way, and the forwarder starts nothing while the disk is stuck.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: Mutex<Option<Sender<Job>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Both, where there are no threads.
    in_line: Option<Mutex<Scribe>>,
}

struct Job {
    batch: Batch,
    then: Then,
}

impl Writer {
    pub(super) fn start(engine: Arc<Engine>, log: Log, progress: Arc<Progress>) -> Self {
        let (jobs, queue) = channel();
        let keeper = Keeper::new(engine, log.number(), progress.clone());
        let scribe = Scribe::new(log, progress.clone(), None);
        let threads = vec![
            thread("journal", Guard(progress.clone()), move || {
                scribe.run(&queue);
            }),
            thread("journal-tables", Guard(progress), move || keeper.run()),
        ];
        Self {
            jobs: Mutex::new(Some(jobs)),
            threads: Mutex::new(threads),
            in_line: None,
        }
    }

    /// As [`Self::start`], in line.
    pub(super) fn in_line(engine: Arc<Engine>, log: Log, progress: Arc<Progress>) -> Self {
        let keeper = Keeper::new(engine, log.number(), progress.clone());
        let scribe = Scribe::new(log, progress, Some(keeper));
        Self {
            jobs: Mutex::default(),
            threads: Mutex::default(),
            in_line: Some(Mutex::new(scribe)),
        }
    }

    pub(super) fn is_in_line(&self) -> bool {
        self.in_line.is_some()
    }

    /// Brings the tables up to what was answered, if no thread does that.
    pub(super) fn catch_up(&self) {
        if let Some(scribe) = &self.in_line {
            scribe
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .catch_up();
        }
    }

    pub(super) fn submit(&self, batch: Batch, then: Then) {
        if let Some(scribe) = &self.in_line {
            let bytes = batch.bytes();
            let mut scribe = scribe.lock().unwrap_or_else(PoisonError::into_inner);
            let result = scribe.commit(vec![batch], bytes);
            drop(scribe);
            then(result);
            return;
        }
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = match jobs.as_ref() {
            Some(jobs) => jobs
                .send(Job { batch, then })
                .err()
                .map(|refused| refused.0.then),
            None => Some(then),
        };
        drop(jobs);
        if let Some(then) = refused {
            then(Err(CommitError));
        }
    }

    /// Lets the threads finish their queues and waits for them.
    pub(super) fn stop(&self) {
        if let Some(scribe) = &self.in_line {
            let mut scribe = scribe.lock().unwrap_or_else(PoisonError::into_inner);
            scribe.progress.close();
            scribe.catch_up();
        }
        drop(
            self.jobs
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the journal panicked");
            }
        }
    }
}

/// Fails the journal if its thread panics: else everybody would wait for ever.
struct Guard(Arc<Progress>);

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail();
            self.0.close();
        }
    }
}

fn thread(name: &str, guard: Guard, run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let _guard = guard;
            run();
        })
        .expect("a process that cannot start a thread cannot work")
}

/// What has come meanwhile, without waiting for more: at most [`GROUP_BATCHES_MAX`], and no further one from
/// [`GROUP_BYTES_MAX`] on. With the bytes of all.
fn gather(first: Job, queue: &Receiver<Job>) -> (Vec<Batch>, Vec<Then>, usize) {
    let mut bytes = first.batch.bytes();
    let (mut batches, mut thens) = (vec![first.batch], vec![first.then]);
    while batches.len() < GROUP_BATCHES_MAX && bytes < GROUP_BYTES_MAX {
        let Ok(next) = queue.try_recv() else { break };
        bytes += next.batch.bytes();
        batches.push(next.batch);
        thens.push(next.then);
    }
    (batches, thens, bytes)
}

#[derive(Debug)]
struct Scribe {
    log: Log,
    progress: Arc<Progress>,
    clock: Clock,
    /// In line: whose work is done here as well.
    keeper: Option<Keeper>,
}

impl Scribe {
    fn new(log: Log, progress: Arc<Progress>, keeper: Option<Keeper>) -> Self {
        Self {
            log,
            progress,
            clock: Clock::system(),
            keeper,
        }
    }

    fn run(mut self, queue: &Receiver<Job>) {
        while let Ok(first) = queue.recv() {
            let (batches, mut thens, bytes) = gather(first, queue);
            if bug(Bug::AnswerBeforeDurable) {
                thens.drain(..).for_each(|then| then(Ok(())));
            }
            let started_us = self.clock.mono_us();
            let records = batches.len();
            let result = self.commit(batches, bytes);
            let us = self.clock.mono_us() - started_us;
            crate::metrics::store_commit(records, us, result.is_ok());
            for then in thens {
                then(result);
            }
            point("answers.after");
        }
        self.progress.close();
    }

    /// After a failure nothing more is written: what the disk has, only reading can tell.
    fn commit(&mut self, batches: Vec<Batch>, bytes: usize) -> Result<(), CommitError> {
        let number = if let Some(number) = self.append(&batches)? {
            self.progress.push(Group { number, batches }, bytes);
            number
        } else {
            // It must be durable in the tables before it is answered. The empty frame behind it is for
            // a store whose tables were damaged: it shows that there was something before.
            let number = self.log.skip();
            self.progress.push(Group { number, batches }, bytes);
            if !bug(Bug::LargeGroupNotSaved) {
                self.wait_until_durable(number)?;
            }
            let number = self.append(&[])?.unwrap_or(number);
            let batches = vec![];
            self.progress.push(Group { number, batches }, 0);
            number
        };
        self.progress.state().answered = number;
        Ok(())
    }

    /// Makes a group durable in the log; `None`: it is too large for that.
    fn append(&mut self, batches: &[Batch]) -> Result<Option<u64>, CommitError> {
        let state = self.progress.state();
        let (durable, failed) = (state.durable, state.failed);
        drop(state);
        if failed {
            return Err(CommitError);
        }
        let mut appended = self.log.append(batches.iter(), durable);
        if let Err(NotAppended::Until(number)) = appended {
            self.wait_until_durable(number)?;
            appended = self.log.append(batches.iter(), number);
        }
        match appended {
            Ok(number) => Ok(Some(number)),
            Err(NotAppended::TooLarge) => Ok(None),
            Err(NotAppended::Io(error)) => {
                tracing::error!(%error, "the journal's log cannot be written");
                self.progress.fail();
                Err(CommitError)
            }
            Err(NotAppended::Until(_)) => Err(CommitError),
        }
    }

    fn wait_until_durable(&mut self, number: u64) -> Result<(), CommitError> {
        let mut state = self.progress.state();
        state.behind_bytes += BEHIND_BYTES_MAX;
        self.progress.work.notify_one();
        if self.keeper.is_some() {
            drop(state);
            self.catch_up();
            state = self.progress.state();
        }
        self.progress.wait(state, |state| state.durable >= number)
    }

    /// Does what the keeper's thread would do now.
    fn catch_up(&mut self) {
        if let Some(keeper) = &mut self.keeper {
            let work = self.progress.state().take();
            keeper.round(work);
        }
    }
}

/// What the keeper is to do.
type Work = (Vec<Group>, usize, bool);

impl State {
    fn take(&mut self) -> Work {
        let bytes = std::mem::take(&mut self.behind_bytes);
        (std::mem::take(&mut self.behind), bytes, self.closing)
    }
}

#[derive(Debug)]
struct Keeper {
    engine: Arc<Engine>,
    progress: Arc<Progress>,
    clock: Clock,
    /// The last group in the tables.
    number: u64,
    /// Bytes in the tables that are not durable there, and since when at the longest.
    unsaved: usize,
    saved_us: u64,
}

impl Keeper {
    fn new(engine: Arc<Engine>, number: u64, progress: Arc<Progress>) -> Self {
        Self {
            engine,
            progress,
            clock: Clock::system(),
            number,
            unsaved: 0,
            saved_us: 0,
        }
    }

    fn run(mut self) {
        loop {
            let work = self.next();
            if !self.round(work) {
                return;
            }
        }
    }

    /// Puts the groups into the tables; none: makes durable what is there. Returns whether there is more
    /// to come.
    fn round(&mut self, (groups, bytes, closing): Work) -> bool {
        self.unsaved += bytes + groups.len();
        let now_us = self.clock.mono_us();
        let due = groups.is_empty()
            || closing
            || self.unsaved >= BEHIND_BYTES_MAX
            || now_us - self.saved_us >= BEHIND_TIME_US;
        let save = if due { Save::Durable } else { Save::Visible };
        if self.unsaved > 0 && !self.keep(&groups, save) {
            return false;
        }
        if due {
            self.unsaved = 0;
            self.saved_us = now_us;
        }
        !closing
    }

    /// Waits for groups; none: those that are in the tables should become durable.
    fn next(&self) -> Work {
        let idle = |state: &mut State| state.behind.is_empty() && !state.closing;
        let gathering = |state: &mut State| {
            state.wanted <= state.kept && state.behind_bytes < BEHIND_BYTES_MAX && !state.closing
        };
        let a_while = Duration::from_micros(BEHIND_TIME_US);
        let work = &self.progress.work;
        let mut state = self.progress.state();
        state = if self.unsaved == 0 {
            let waited = work.wait_while(state, idle);
            waited.unwrap_or_else(PoisonError::into_inner)
        } else {
            let waited = work.wait_timeout_while(state, a_while, idle);
            waited.unwrap_or_else(PoisonError::into_inner).0
        };
        if !state.behind.is_empty() {
            let waited = work.wait_timeout_while(state, a_while, gathering);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.take()
    }

    fn keep(&mut self, groups: &[Group], save: Save) -> bool {
        let number = groups.last().map_or(self.number, |group| group.number);
        let batches = groups.iter().flat_map(|group| &group.batches);
        point("tables.before");
        if self.engine.write(batches, number, save).is_err() {
            self.progress.fail();
            return false;
        }
        point("tables.after");
        self.number = number;
        let mut state = self.progress.state();
        state.kept = number;
        if save == Save::Durable {
            state.durable = number;
        }
        drop(state);
        self.progress.moved.notify_all();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Table;

    /// Groups of what waits, each with its batches and bytes, until nothing does.
    fn groups(batches: usize, value_bytes: usize) -> Vec<(usize, usize)> {
        let (send, queue) = channel();
        for n in 0..batches {
            let mut batch = Batch::default();
            batch.put(Table::Chats, n.to_be_bytes(), vec![0; value_bytes]);
            let then: Then = Box::new(|_| ());
            send.send(Job { batch, then }).unwrap();
        }
        let mut groups = vec![];
        while let Ok(first) = queue.try_recv() {
            let (batches, thens, bytes) = gather(first, &queue);
            assert_eq!(batches.len(), thens.len());
            groups.push((batches.len(), bytes));
        }
        groups
    }

    #[test]
    fn a_group_is_what_has_gathered_but_bounded_in_number_and_bytes() {
        let numbers = |batches, bytes| -> Vec<_> {
            let groups = groups(batches, bytes).into_iter();
            groups.map(|(number, _)| number).collect()
        };
        assert_eq!(numbers(1, 10), [1], "one does not wait for others");
        assert_eq!(numbers(600, 10), [256, 256, 88]);
        assert_eq!(numbers(10, 300_000), [4, 4, 2]);
        let most = groups(10, 300_000)
            .into_iter()
            .map(|(_, bytes)| bytes)
            .max();
        assert!(most < Some(GROUP_BYTES_MAX + 300_100), "{most:?}");
    }
}
