//! What must not be lost: the inbox, the outbox, and everything durable beside them.
//!
//! # Invariants
//!
//! 1. A [`Batch`] is on disk as a whole or not at all. `Ok` from a commit means: written, checksummed
//!    and synced. Nobody outside is told "accepted" before that.
//! 2. One thread writes. It takes what has gathered (at most 256 batches or 1 MiB), commits once,
//!    then answers all, in the order of submission. When idle it waits for nothing.
//! 3. A batch that was submitted is written even if the submitter went away.
//! 4. After a failed commit nothing more is written: the journal reports itself failed, the process
//!    exits with 74 and recovers by reading. A sync is never tried twice.
//! 5. A message is *live* (its state is in the live table) or *done* (its state is in the done
//!    table), never both: the move is one batch. Accepted = live + done + purged, always.
//! 6. A damaged record is set aside under its own key, counted and named; the rest goes on.
//!
//! # Format
//!
//! One file, `journal.redb`. Keys are big-endian so that they sort by number or time; every value is
//! framed by [`crate::delivery::record`].
//!
//! | table | key | value |
//! |---|---|---|
//! | `*_payload` | seq (8) | what was accepted, never changed |
//! | `*_live`, `*_done` | seq (8) | where it is |
//! | `dedup`, `idempotency` | wall ms (8) ‖ digest (16) | see [`aged`] |
//! | `chats` | app ‖ 0 ‖ chat id | what is known of a chat |
//! | `charges` | seq of charge (8) | what a call was charged to and when |
//! | `pauses` | limit key (9) | wall ms until which a limit is paused |
//! | `meta` | name | format number, counters (8, big-endian) |
//! | `quarantine` | table ‖ 0 ‖ key | damaged bytes as they were found |
//!
//! # First start
//!
//! Its format's number also stands in `journal.format` beside it, to be read before the engine
//! touches anything. The file is made under a temporary name, committed, synced, renamed, and its directory synced, so
//! that a first start killed at any point leaves nothing or a file that opens.

pub mod aged;
mod engine;
pub mod queue;
pub mod retention;
pub mod room;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{oneshot, watch};

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
}

/// Changes that happen together or not at all.
#[derive(Debug, Default)]
pub struct Batch {
    writes: Vec<Write>,
    bytes: usize,
}

#[derive(Debug)]
enum Write {
    Put(Table, Vec<u8>, Vec<u8>),
    Delete(Table, Vec<u8>),
    /// Adds to a counter in `meta`, so that concurrent batches need not know its value.
    Add(&'static str, u64),
}

impl Batch {
    /// Writes `value` under `key`, replacing what is there.
    pub fn put(&mut self, table: Table, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        let (key, value) = (key.into(), value.into());
        self.bytes += key.len() + value.len();
        self.writes.push(Write::Put(table, key, value));
    }

    /// Removes `key`.
    pub fn delete(&mut self, table: Table, key: impl Into<Vec<u8>>) {
        let key = key.into();
        self.bytes += key.len();
        self.writes.push(Write::Delete(table, key));
    }

    /// Adds to the counter `name`.
    pub fn add(&mut self, name: &'static str, amount: u64) {
        self.writes.push(Write::Add(name, amount));
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
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
    closed: AtomicBool,
}

impl Journal {
    /// Opens the journal in `dir`, or makes one. Takes the store's lock; blocks.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let engine = Arc::new(engine::Engine::open(dir)?);
        let (failed_at, failed) = watch::channel(false);
        let writer = writer::Writer::start(engine.clone(), failed_at);
        Ok(Self(Arc::new(Inner {
            engine,
            writer,
            failed,
            closed: AtomicBool::new(false),
        })))
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
        let engine = self.0.engine.clone();
        tokio::task::spawn_blocking(move || engine.get(table, &key))
            .await
            .unwrap_or_else(|panic| Err(ReadError(panic.to_string())))
    }

    /// Runs `read` with a consistent view, off the runtime's threads.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&View<'_>) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let engine = self.0.engine.clone();
        tokio::task::spawn_blocking(move || engine.view(read))
            .await
            .unwrap_or_else(|panic| Err(ReadError(panic.to_string())))
    }

    /// As [`Self::read`], on this thread: for the start, before there is anything to disturb.
    pub fn read_blocking<T>(
        &self,
        read: impl FnOnce(&View<'_>) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        self.0.engine.view(read)
    }

    /// Bytes of the store's file.
    pub fn size_bytes(&self) -> u64 {
        self.0.engine.size_bytes()
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

    /// The counter `name`, 0 if it was never added to.
    pub fn counter(&self, name: &str) -> Result<u64, ReadError> {
        Ok(self
            .get(Table::Meta, name.as_bytes())?
            .and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?)))
            .unwrap_or(0))
    }
}
