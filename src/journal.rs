//! What must not be lost: the inbox, the outbox, and everything durable beside them.
//!
//! # Invariants
//!
//! 1. A [`Batch`] is on disk as a whole or not at all. `Ok` from a commit means: written with its
//!    checksum and synced. Nobody outside is told "accepted" before that.
//! 2. One thread writes the log. It takes what has gathered (at most 256 batches, none more from 1 MiB on), makes it
//!    durable with one write and one sync, then answers all, in the order of submission. It waits for the
//!    tables only where the log has no room without them: for a half that they do not have yet, and for a group
//!    larger than a half, which is made durable in the tables instead.
//! 3. A batch that was submitted is written even if the submitter went away.
//! 4. A batch is in force when it was answered: whoever reads then sees it, and after a crash it is
//!    there with everything that was answered before it.
//! 5. After a failed write or sync nothing more is answered, and what failed is not tried again: the journal
//!    reports itself failed, the process exits with 74 and recovers by reading. What was answered before may
//!    still go from the log into the tables. A full or read-only disk is no failure: the write waits ([`disk`]).
//! 6. A message is *live* (its state is in the live table) or *done* (its state is in the done
//!    table), never both: the move is one batch. Accepted = live + done + purged + quarantined, always.
//! 7. A damaged record is moved aside under its table and key, counted and named; the rest goes on. A page of the
//!    tables that has changed is no record: it may hold many, and the store is refused (see *Opening*).
//! 8. Whoever reads waits for the tables, but not for a disk that is full: then reading fails.
//!
//! # Two files
//!
//! The *log* makes batches durable, cheaply: it is of fixed size and written over and over. The
//! *tables* are what is read. A second thread, the keeper, brings the tables up to the log, many
//! groups at a time: at once when a reader waits, else within 20 ms or 1 MiB. It makes the tables
//! durable as often, after which the log may forget.
//!
//! Opening: every page of the tables is checked, so that a changed one is found before it is believed;
//! the store is refused then. The tables say up to which group they have the log (`meta`, `group`); later groups are read
//! from the log and put into the tables, in order. The group's number and its writes are one
//! transaction, so no group is applied twice. The torn end of the log was never answered and is cut (a newest
//! group that was damaged after it was answered cannot be told from it); a damaged group before a sound one is
//! set aside.
//!
//! # Format
//!
//! `journal.log`: see the page of `journal/log.rs`. `journal.redb`: keys are big-endian so that they
//! sort by number or time; values are framed by [`crate::delivery::record`]: version, length, checksum.
//! Every batch names tables and counters by their numbers, which are never given anew.
//!
//! | n | table | key | value |
//! |---|---|---|---|
//! | 0, 3 | `inbox_payload`, `outbox_payload` | seq (8) | what was accepted, never changed |
//! | 1, 4 | `inbox_live`, `outbox_live` | seq (8) | where it is |
//! | 2, 5 | `inbox_done`, `outbox_done` | seq (8) | how it ended; an event that nobody gets has its payload behind |
//! | 6, 7 | `dedup`, `idempotency` | wall ms (8) ‖ digest (16) | see [`aged`] |
//! | 8 | `chats` | app ‖ 0 ‖ chat id | what is known of a chat |
//! | 9 | `charges` | seq of charge (8) | what a call was charged to and when |
//! | 10 | `pauses` | limit key (9) | wall ms until which a limit is paused, what the next pause grows from, how long it was when written; before: the wall ms alone |
//! | 11 | `meta` | name of a [`Counter`] | a number (8) |
//! | 12 | `quarantine` | table ‖ 0 ‖ key | damaged bytes as they were found |
//! | 13 | `ledger` | see [`crate::egress::ledger`] | a number (8), of calls or a mark |
//! | 14 | `cards` | app ‖ 0 ‖ outTrackId | what a card is to show, and what of that waits |
//!
//! A batch may put a value, delete a key, add to a counter, or add to a number in a table: an addition
//! names the amount, so that concurrent batches need not know the sum. It happens exactly once, because
//! the group it is in is applied once (see *Opening*).
//!
//! # Operations
//!
//! What a batch does to an entry of a [`queue`], whose number the queue gives:
//!
//! | operation | payload | live | done | counters |
//! |---|---|---|---|---|
//! | append | put | put | | accepted + 1 |
//! | append done, settled | put, or behind the state | | put | accepted + 1 |
//! | update | | put | | |
//! | finish | | delete | put | |
//! | amend | | | put | |
//! | reopen | | put | delete | |
//! | purge | delete | | delete | purged + 1 |
//! | set aside | moved, if it is what is damaged | moved | moved | quarantined + 1 |
//!
//! Values are JSON of the type that the module at hand names (`Message` and `Live`, `Stored` and `Forwarding`,
//! `Card`, `Chat` …) in the frame of [`crate::delivery::record`].
//!
//! A *backup* ([`copy`]) is a store of its own in one file, made of a view, with group 0: it needs no log. A
//! *restore* puts it in the place of the tables, with an empty log; while that is under way `journal.restoring`
//! stands in the directory, and nobody opens it.
//!
//! | format | since | what changed |
//! |---|---|---|
//! | 1 | the first | |
//! | 2 | the ledger | table 13; additions to numbers in a table, and with them frames of version 2 |
//! | 3 | cards | table 14; messages that are cards or change one |
//!
//! A store of an older format is taken over when it is opened: the new number is made durable in
//! `journal.format` first, so that an older release refuses the store from then on, then in the tables.
//! Killed between the two, the next start does it again. Frames of version 1 are read like those of 2.
//!
//! A release that changes a value's layout gives it a new version and reads the old one; the bytes of
//! every released version are test files. A release that changes this page raises the format number.
//!
//! # First start
//!
//! Each file is made under a temporary name, filled, synced, renamed, and its directory synced, the
//! log first: so that a first start killed at any point leaves something that opens. The format's
//! number also stands in `journal.format`, to be read before the engine touches anything: a newer
//! store is refused untouched.

pub mod aged;
pub mod copy;
pub mod dead;
pub mod disk;
mod engine;
mod log;
pub mod queue;
pub mod retention;
pub mod room;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{oneshot, watch};

use crate::delivery::id::hex;
use crate::delivery::record;
use crate::faults::{Bug, bug, point};

pub use engine::OpenError;

/// The tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(
    missing_docs,
    reason = "the table of the module page says what each holds"
)]
pub enum Table {
    InboxPayload,
    InboxLive,
    InboxDone,
    OutboxPayload,
    OutboxLive,
    OutboxDone,
    Dedup,
    Idempotency,
    Chats,
    Charges,
    Pauses,
    Meta,
    Quarantine,
    Ledger,
    Cards,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::InboxPayload,
        Self::InboxLive,
        Self::InboxDone,
        Self::OutboxPayload,
        Self::OutboxLive,
        Self::OutboxDone,
        Self::Dedup,
        Self::Idempotency,
        Self::Chats,
        Self::Charges,
        Self::Pauses,
        Self::Meta,
        Self::Quarantine,
        Self::Ledger,
        Self::Cards,
    ];

    /// Its number in the log, counted from 0 in the order above; never reused.
    fn number(self) -> u8 {
        self as u8
    }

    fn numbered(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Its name in the store.
    pub fn name(self) -> &'static str {
        match self {
            Self::InboxPayload => "inbox_payload",
            Self::InboxLive => "inbox_live",
            Self::InboxDone => "inbox_done",
            Self::OutboxPayload => "outbox_payload",
            Self::OutboxLive => "outbox_live",
            Self::OutboxDone => "outbox_done",
            Self::Dedup => "dedup",
            Self::Idempotency => "idempotency",
            Self::Chats => "chats",
            Self::Charges => "charges",
            Self::Pauses => "pauses",
            Self::Meta => "meta",
            Self::Quarantine => "quarantine",
            Self::Ledger => "ledger",
            Self::Cards => "cards",
        }
    }
}

/// What is counted in the table `meta`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(
    missing_docs,
    reason = "the module page and the queues say what each counts"
)]
pub enum Counter {
    Format,
    Group,
    InboxAccepted,
    InboxPurged,
    InboxQuarantined,
    OutboxAccepted,
    OutboxPurged,
    OutboxQuarantined,
}

impl Counter {
    const ALL: [Self; 8] = [
        Self::Format,
        Self::Group,
        Self::InboxAccepted,
        Self::InboxPurged,
        Self::InboxQuarantined,
        Self::OutboxAccepted,
        Self::OutboxPurged,
        Self::OutboxQuarantined,
    ];

    /// Its number in the log, counted from 0 in the order above; never reused.
    fn number(self) -> u8 {
        self as u8
    }

    fn numbered(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    fn name(self) -> &'static str {
        match self {
            Self::Format => "format",
            Self::Group => "group",
            Self::InboxAccepted => "inbox_accepted",
            Self::InboxPurged => "inbox_purged",
            Self::InboxQuarantined => "inbox_quarantined",
            Self::OutboxAccepted => "outbox_accepted",
            Self::OutboxPurged => "outbox_purged",
            Self::OutboxQuarantined => "outbox_quarantined",
        }
    }
}

/// Changes that happen together or not at all.
///
/// They are kept as they will stand in the log, in one piece: a batch is made on one thread, written by a
/// second and freed by a third.
#[derive(Debug, Default)]
pub struct Batch {
    body: Vec<u8>,
}

/// One change of a batch.
#[derive(Debug, Clone, Copy)]
enum Write<'a> {
    Put(Table, &'a [u8], &'a [u8]),
    Delete(Table, &'a [u8]),
    /// Adds to a counter in `meta`, so that concurrent batches need not know its value.
    Add(Counter, u64),
    /// Adds to a number in a table, which is 0 if it is not there.
    AddTo(Table, &'a [u8], u64),
}

impl Batch {
    /// Writes `value` under `key`, replacing what is there.
    pub fn put(&mut self, table: Table, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.push(Write::Put(table, key.as_ref(), value.as_ref()));
    }

    /// Removes `key`.
    pub fn delete(&mut self, table: Table, key: impl AsRef<[u8]>) {
        self.push(Write::Delete(table, key.as_ref()));
    }

    /// Adds to a counter.
    pub fn add(&mut self, counter: Counter, amount: u64) {
        self.push(Write::Add(counter, amount));
    }

    /// Adds to the number under `key`, which is 0 if it is not there: so that concurrent batches need
    /// not know it. What is there and is no number of eight bytes is replaced.
    pub fn add_to(&mut self, table: Table, key: impl AsRef<[u8]>, amount: u64) {
        self.push(Write::AddTo(table, key.as_ref(), amount));
    }

    /// Sets a damaged row aside: it is moved into the quarantine under its table and key, counted and
    /// named in the log.
    pub fn quarantine(&mut self, table: Table, key: &[u8], value: &[u8], why: &record::Damaged) {
        tracing::error!(?table, key = %hex(key), %why, "a damaged record was set aside; see `dingd dead list`");
        crate::metrics::store_quarantined();
        let mut name = table.name().as_bytes().to_vec();
        name.push(0);
        name.extend_from_slice(key);
        self.put(Table::Quarantine, name, value);
        self.delete(table, key);
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.body.is_empty()
    }
}

/// The journal did not take a batch. Nothing of it is on disk as far as anybody was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the journal cannot be written; see the log, free or repair the disk of state_dir, restart"
)]
pub struct CommitError;

/// The journal could not be read.
#[derive(Debug, thiserror::Error)]
#[error("the journal cannot be read: {0}")]
pub struct ReadError(String);

/// A handle to the one journal of this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Journal(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    engine: Arc<engine::Engine>,
    writer: writer::Writer,
    failed: watch::Receiver<bool>,
    progress: Arc<writer::Progress>,
    log_bytes: u64,
    closed: AtomicBool,
    condition: disk::Condition,
    /// Damaged or missing groups of the log, found when it was opened.
    damaged_groups: usize,
}

impl Journal {
    /// How many damaged or missing groups of the log were set aside when it was opened.
    pub fn damaged_groups(&self) -> usize {
        self.0.damaged_groups
    }

    /// Whether `dir` holds a journal. Only looks.
    pub fn is_in(dir: &Path) -> bool {
        dir.join(engine::FILE).exists()
    }

    /// Opens the journal in `dir`, or makes one. Takes the store's lock; blocks. A disk that is full is an
    /// error here: nobody would end the waiting.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        Self::open_under(dir, disk::Condition::impatient())
    }

    /// As [`Self::open`], on a disk whose `condition` others look at meanwhile.
    pub fn open_under(dir: &Path, condition: disk::Condition) -> Result<Self, OpenError> {
        let (engine, log) = engine::Engine::open(dir, condition.clone())?;
        let threads = writer::Writer::start;
        let started = start(Arc::new(engine), Box::new(log), condition, threads);
        // What can be wrong with the content was looked at before; this is the disk.
        started.map_err(|error| OpenError::Io {
            path: dir.to_owned(),
            source: std::io::Error::other(error.to_string()),
        })
    }

    /// Opens a store on media other than files, or makes one where they are empty; the halves of its log
    /// have `half_bytes`, a multiple of 4 KiB.
    pub fn on(
        tables: Box<dyn disk::Medium>,
        log: Box<dyn disk::Medium>,
        half_bytes: usize,
        condition: disk::Condition,
    ) -> Result<Self, ReadError> {
        Self::made_on(tables, log, half_bytes, condition, writer::Writer::start)
    }

    /// As [`Self::on`], without threads: whoever submits or reads does the work meanwhile. For
    /// simulations, in which time stands still while anybody works.
    pub fn in_line(
        tables: Box<dyn disk::Medium>,
        log: Box<dyn disk::Medium>,
        half_bytes: usize,
        condition: disk::Condition,
    ) -> Result<Self, ReadError> {
        Self::made_on(tables, log, half_bytes, condition, writer::Writer::in_line)
    }

    fn made_on(
        tables: Box<dyn disk::Medium>,
        log: Box<dyn disk::Medium>,
        half_bytes: usize,
        condition: disk::Condition,
        writer: MakeWriter,
    ) -> Result<Self, ReadError> {
        let text = |error: std::io::Error| ReadError(error.to_string());
        if log.is_empty().map_err(text)? {
            log::Log::create(&*log, half_bytes).map_err(text)?;
        }
        if log.len().map_err(text)? != 2 * half_bytes as u64 {
            return Err(ReadError("the log was cut".to_owned()));
        }
        let engine = engine::Engine::on(tables, condition.clone(), None)
            .map_err(|error| ReadError(format!("{error:?}")))?;
        start(Arc::new(engine), log, condition, writer)
    }

    /// How the disk is.
    pub fn condition(&self) -> &disk::Condition {
        &self.0.condition
    }

    /// Whether a write waits for the disk, which is full or read-only.
    pub fn is_stuck(&self) -> bool {
        self.0.condition.stuck().is_some()
    }

    /// Sees whether the disk has room again. Blocks for a moment.
    pub fn take_room(&self) {
        self.0.engine.take_room();
    }

    /// Hands over `batch`; `then` runs on the writer's thread when it is durable or has failed, and
    /// must be quick. Returns at once. Batches are written in the order of these calls.
    pub fn submit(
        &self,
        batch: Batch,
        then: impl FnOnce(Result<(), CommitError>) + Send + 'static,
    ) {
        if self.0.closed.load(Ordering::Acquire) {
            then(Err(CommitError));
        } else {
            self.0.writer.submit(batch, Box::new(then));
        }
    }

    /// Writes `batch` and waits until it is durable. Dropping the future does not undo the write.
    pub async fn commit(&self, batch: Batch) -> Result<(), CommitError> {
        let (tell, told) = oneshot::channel();
        self.submit(batch, move |result| {
            if tell.send(result).is_err() {
                tracing::trace!("nobody waits for this commit any more");
            }
        });
        told.await.unwrap_or(Err(CommitError))
    }

    /// Reads one value, off the runtime's threads.
    pub async fn get(&self, table: Table, key: Vec<u8>) -> Result<Option<Vec<u8>>, ReadError> {
        self.read(move |view| view.get(table, &key)).await
    }

    /// Runs `read` with a consistent view, off the runtime's threads.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&View<'_>) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        if self.0.writer.is_in_line() {
            return self.read_blocking(read);
        }
        let journal = self.clone();
        tokio::task::spawn_blocking(move || journal.read_blocking(read))
            .await
            .unwrap_or_else(|panic| Err(ReadError(panic.to_string())))
    }

    /// As [`Self::read`], on this thread: for threads that may wait for the disk.
    pub fn read_blocking<T>(
        &self,
        read: impl FnOnce(&View<'_>) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        self.0.writer.catch_up();
        // Whoever reads waits for the tables, but not for a disk that may be full for days: each would hold a
        // thread.
        let caught_up = self.0.progress.wait_for_tables(|| self.is_stuck());
        if caught_up.map_err(|error| ReadError(error.to_string()))? {
            self.0.engine.view(read)
        } else {
            let why = "what was accepted last is in the log only: the disk of state_dir is full or read-only";
            Err(ReadError(why.to_owned()))
        }
    }

    /// Bytes of the store's files.
    pub fn size_bytes(&self) -> u64 {
        self.0.engine.size_bytes() + self.0.log_bytes
    }

    /// Whether a commit has failed. Then the process must end (exit 74).
    pub fn has_failed(&self) -> bool {
        *self.0.failed.borrow()
    }

    /// Returns when a commit has failed. Then the process must end (exit 74).
    pub async fn failed(&self) {
        let mut failed = self.0.failed.clone();
        if failed.wait_for(|failed| *failed).await.is_err() {
            tracing::debug!("the journal's writer has ended");
        }
    }

    /// Writes what was submitted, then closes; later batches are refused. Blocks.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
        self.0.writer.stop();
    }
}

type MakeWriter = fn(Arc<engine::Engine>, log::Log, Arc<writer::Progress>) -> writer::Writer;

/// Brings the tables up to the log, then starts the threads.
fn start(
    engine: Arc<engine::Engine>,
    medium: Box<dyn disk::Medium>,
    condition: disk::Condition,
    writer: MakeWriter,
) -> Result<Journal, ReadError> {
    let (mut log, found) = log::Log::open(medium, engine.group()?, condition.clone())
        .map_err(|error| ReadError(format!("journal.log: {error}")))?;
    let mut aside = Batch::default();
    for (number, bytes) in &found.damaged {
        tracing::error!(
            group = number,
            "groups of the log from this one on are damaged or missing: what was accepted in the last moments before the end may be lost; see `dingd dead list`"
        );
        crate::metrics::store_quarantined();
        let name = [b"log\0", &number.to_be_bytes()[..]].concat();
        aside.put(Table::Quarantine, name, bytes.as_slice());
    }
    let groups = found.groups.iter().map(|(_, group)| group);
    let forgotten = usize::from(bug(Bug::ReplayForgetsLast));
    let groups = groups.take(found.groups.len().saturating_sub(forgotten));
    let again = usize::from(bug(Bug::ReplayTwice)) * found.groups.len();
    let groups = groups.chain(found.groups.iter().map(|(_, group)| group).take(again));
    if log.number() > engine.group()? || !aside.is_empty() {
        point("replay.before");
        replay(&engine, groups, aside, log.number())?;
        point("replay.after");
    }
    log.complete()
        .map_err(|error| ReadError(format!("journal.log: {error}")))?;
    let (failed_at, failed) = watch::channel(false);
    let progress = Arc::new(writer::Progress::at(log.number(), failed_at));
    let log_bytes = log.len_bytes();
    let writer = writer(engine.clone(), log, progress.clone());
    Ok(Journal(Arc::new(Inner {
        engine,
        writer,
        failed,
        progress,
        log_bytes,
        damaged_groups: found.damaged.len(),
        closed: AtomicBool::new(false),
        condition,
    })))
}

/// Puts what the log has into the tables in one transaction; or, where something of it is set `aside`, in two of
/// which only the second is durable: what the lost groups would have counted is known when the others are in.
fn replay<'a>(
    engine: &engine::Engine,
    groups: impl Iterator<Item = &'a Batch>,
    mut aside: Batch,
    number: u64,
) -> Result<(), ReadError> {
    let text = |error: CommitError| ReadError(error.to_string());
    if aside.is_empty() {
        return engine
            .write(groups, number, engine::Save::Durable)
            .map_err(text);
    }
    engine
        .write(groups, number, engine::Save::Visible)
        .map_err(text)?;
    for place in [queue::INBOX, queue::OUTBOX] {
        let books = engine.view(|view| queue::Books::of(place, view))?;
        books.balance(place, &mut aside);
    }
    engine
        .write([&aside].into_iter(), number, engine::Save::Durable)
        .map_err(text)
}

/// A consistent view of the tables.
#[derive(Debug)]
pub struct View<'a>(&'a engine::Reading);

/// Which way to walk a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Smallest key first.
    Ascending,
    /// Largest key first.
    Descending,
}

impl View<'_> {
    /// The value under `key`.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, ReadError> {
        self.0.get(table, key)
    }

    /// Walks the entries with `from <= key < to` (`to` empty: no end) until `visit` returns `false`.
    pub fn walk(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        order: Order,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), ReadError> {
        self.0.walk(table, from, to, order, visit)
    }

    /// How many entries `table` has.
    pub fn len(&self, table: Table) -> Result<u64, ReadError> {
        self.0.len(table)
    }

    /// A counter, 0 if it was never added to.
    pub fn counter(&self, counter: Counter) -> Result<u64, ReadError> {
        Ok(self
            .get(Table::Meta, counter.name().as_bytes())?
            .map_or(0, |bytes| number_of(&bytes)))
    }
}

/// A number as a table holds it.
pub fn number_of(value: &[u8]) -> u64 {
    value.try_into().map_or(0, u64::from_be_bytes)
}
