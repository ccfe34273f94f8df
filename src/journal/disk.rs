//! The bytes below the engine, and what happens when the disk is full or read-only.
//!
//! *Gathered.* What the engine writes between two syncs is kept and written in order of place, whole
//! runs at a time: a commit touches dozens of pages, most of them neighbours.
//!
//! *Room ahead.* Blocks are taken from the file system [`AHEAD_BYTES`] before they are needed. When no
//! more can be had, new work is refused (see [`super::room`]) while commits go on in what was taken
//! ahead; that is the reserve for completions, and with it a start works on a full disk.
//!
//! *Patience.* A write that finds no space or a read-only file system is repeated until it succeeds:
//! nobody was told anything yet, and the data is still here. A failed sync is never repeated: what
//! the operating system dropped, only reading can tell.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::faults::{Bug, bug};

/// Blocks taken before they are needed (reliability contract §2).
pub const AHEAD_BYTES: u64 = 16 << 20;
/// Blocks are taken in steps of this.
const STEP_BYTES: u64 = 1 << 20;
/// Less than this is not worth taking.
const LITTLE_BYTES: u64 = 64 << 10;
/// More than this is not kept until the next sync.
const GATHERED_BYTES_MAX: usize = 4 << 20;
/// How long to wait before a write is repeated.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Where the store's bytes are: a file, or what a test puts in its place.
pub trait Medium: Debug + Send + Sync + 'static {
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether it is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// How many bytes from its start have blocks on the disk, as far as one can tell.
    fn allocated(&self) -> io::Result<u64>;
    /// Reads exactly `out.len()` bytes.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// Writes all of `data`.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Cuts or extends it; new bytes are zero.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Takes blocks for `from..to`, beyond the end too, without changing its length.
    fn allocate(&self, from: u64, to: u64) -> io::Result<()>;
    /// Returns when what was written is durable.
    fn sync(&self) -> io::Result<()>;
    /// After a failed sync: what the operating system remembers of it may not be on the disk, so it is
    /// to be forgotten, and the next start reads the disk.
    fn distrust(&self) {}
}

fn is_unsupported(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let number = Errno::from_io_error(error);
    matches!(number, Some(Errno::OPNOTSUPP | Errno::NOSYS))
        || error.kind() == ErrorKind::Unsupported
}

impl Medium for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn allocated(&self) -> io::Result<u64> {
        // The unit of st_blocks is 512 bytes, whatever the file system's is.
        Ok(self.metadata()?.blocks() * 512)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(out, offset)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_all_at(data, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Self::set_len(self, len)
    }

    fn allocate(&self, from: u64, to: u64) -> io::Result<()> {
        let keep_size = rustix::fs::FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(self, keep_size, from, to - from).map_err(io::Error::from)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn distrust(&self) {
        if let Err(error) = rustix::fs::fadvise(self, 0, None, rustix::fs::Advice::DontNeed) {
            tracing::warn!(%error, "the cache of the journal's file cannot be dropped");
        }
    }
}

/// How the disk is, for the doors and `/ready`.
#[derive(Debug, Clone)]
pub struct Condition(Arc<Inner>);

impl Default for Condition {
    fn default() -> Self {
        Self::retrying_after(RETRY_AFTER)
    }
}

#[derive(Debug)]
struct Inner {
    retry_after: Duration,
    no_room_ahead: AtomicBool,
    /// Of each [`Part`].
    stuck: [AtomicU8; 2],
    given_up: Mutex<bool>,
    wake: Condvar,
}

/// Which of the two files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Log,
    Tables,
}

/// Why a write has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stuck {
    /// No space, not even in the reserve.
    Full,
    /// The file system is read-only.
    ReadOnly,
}

impl Stuck {
    /// What is wrong, and what to do.
    pub fn cure(self) -> &'static str {
        match self {
            Self::Full => "the disk of state_dir is full: 清理或扩容磁盘 / free or enlarge it",
            Self::ReadOnly => {
                "the file system of state_dir is read-only: 重新挂载为可写 / remount it read-write"
            }
        }
    }

    /// Whether it is for this that a write failed.
    pub(super) fn of(error: &io::Error) -> Option<Self> {
        match error.kind() {
            ErrorKind::ReadOnlyFilesystem => Some(Self::ReadOnly),
            _ if is_full(error) => Some(Self::Full),
            _ => None,
        }
    }
}

impl Condition {
    /// Of a disk whose stuck writes are repeated at this distance.
    pub fn retrying_after(retry_after: Duration) -> Self {
        Self(Arc::new(Inner {
            retry_after,
            no_room_ahead: AtomicBool::new(false),
            stuck: [AtomicU8::new(0), AtomicU8::new(0)],
            given_up: Mutex::new(false),
            wake: Condvar::new(),
        }))
    }

    /// Whether the reserve is being used up: no new work then.
    pub fn has_room_ahead(&self) -> bool {
        !self.0.no_room_ahead.load(Ordering::Relaxed)
    }

    /// Whether a write waits, and for what.
    pub fn stuck(&self) -> Option<Stuck> {
        let worst = |stuck: &AtomicU8| stuck.load(Ordering::Relaxed);
        match self.0.stuck.iter().map(worst).max() {
            Some(1) => Some(Stuck::Full),
            Some(2) => Some(Stuck::ReadOnly),
            _ => None,
        }
    }

    /// Of a disk for which nobody waits: a write that finds no space fails.
    pub(super) fn impatient() -> Self {
        let condition = Self::default();
        condition.give_up();
        condition
    }

    /// Nobody can wait any longer: a stuck write fails.
    pub fn give_up(&self) {
        *self.given_up() = true;
        self.0.wake.notify_all();
    }

    fn given_up(&self) -> MutexGuard<'_, bool> {
        self.0
            .given_up
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn set_stuck(&self, part: Part, stuck: Option<Stuck>) {
        let number = match stuck {
            None => 0,
            Some(Stuck::Full) => 1,
            Some(Stuck::ReadOnly) => 2,
        };
        let [log, tables] = &self.0.stuck;
        let place = match part {
            Part::Log => log,
            Part::Tables => tables,
        };
        if place.swap(number, Ordering::Relaxed) != number {
            if let Some(why) = stuck {
                tracing::error!(
                    ?part,
                    ?why,
                    "the journal cannot be written and waits: 清理或扩容 state_dir 所在磁盘，或重新挂载为可写 / free or enlarge the disk of state_dir, or remount it read-write"
                );
            } else {
                tracing::info!(?part, "the journal is written again");
            }
        }
    }

    fn set_room_ahead(&self, room: bool) {
        if self.0.no_room_ahead.swap(!room, Ordering::Relaxed) == room {
            if room {
                tracing::info!("there is room on the journal's disk again");
            } else {
                tracing::error!(
                    "the disk of state_dir is full: new work is refused, results are still written (清理或扩容磁盘 / free or enlarge it)"
                );
            }
        }
    }

    /// Repeats `write` as long as the disk is full or read-only.
    pub(super) fn patiently(
        &self,
        part: Part,
        write: impl Fn() -> io::Result<()>,
    ) -> io::Result<()> {
        loop {
            let (stuck, error) = match write() {
                Ok(()) => {
                    self.set_stuck(part, None);
                    return Ok(());
                }
                Err(error) if is_full(&error) && bug(Bug::FullTakenForDone) => return Ok(()),
                Err(error) => match Stuck::of(&error) {
                    Some(stuck) => (stuck, error),
                    None => return Err(error),
                },
            };
            self.set_stuck(part, Some(stuck));
            if !self.wait() {
                // Nobody can wait for it.
                return Err(error);
            }
        }
    }

    /// Waits a moment; `false` if nobody may wait any more.
    fn wait(&self) -> bool {
        let given_up = self.given_up();
        let (given_up, _) = self
            .0
            .wake
            .wait_timeout_while(given_up, self.0.retry_after, |given_up| !*given_up)
            .unwrap_or_else(PoisonError::into_inner);
        !*given_up
    }
}

/// A medium, with writes gathered and room taken ahead.
#[derive(Debug)]
pub(super) struct Disk {
    medium: Box<dyn Medium>,
    gathered: Mutex<Gathered>,
    /// One flush at a time: readers of the engine may write as well, and an older page must not be
    /// written over a newer one.
    flushing: Mutex<()>,
    room: Mutex<Room>,
    condition: Condition,
}

#[derive(Debug, Default)]
struct Gathered {
    /// No two overlap.
    runs: BTreeMap<u64, Arc<[u8]>>,
    bytes: usize,
}

#[derive(Debug)]
struct Room {
    /// The end of what was ever written.
    used: u64,
    /// The end of what has blocks.
    allocated: u64,
}

impl Disk {
    pub(super) fn new(medium: Box<dyn Medium>, condition: Condition) -> io::Result<Self> {
        let (allocated, len) = (medium.allocated()?, medium.len()?);
        // After a crash the file is longer than what has blocks, and the last of them were taken ahead.
        let used = if allocated < len {
            allocated.saturating_sub(AHEAD_BYTES + STEP_BYTES)
        } else {
            len
        };
        let disk = Self {
            medium,
            gathered: Mutex::default(),
            flushing: Mutex::default(),
            room: Mutex::new(Room { used, allocated }),
            condition,
        };
        disk.take_room(0);
        Ok(disk)
    }

    pub(super) fn len(&self) -> io::Result<u64> {
        self.medium.len()
    }

    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        // What is being written stays gathered until it is, so one of the two has it.
        let gathered = self.gathered();
        let end = offset + out.len() as u64;
        let over: Vec<_> = gathered
            .overlapping(offset, end)
            .map(|(at, run)| (at, run.clone()))
            .collect();
        drop(gathered);
        if let [(at, run)] = over.as_slice()
            && let Ok(from) = usize::try_from(offset.wrapping_sub(*at))
            && let Some(all) = run.get(from..).and_then(|run| run.get(..out.len()))
        {
            out.copy_from_slice(all);
            return Ok(());
        }
        self.medium.read(offset, out)?;
        for (at, run) in over {
            overlay(offset, out, at, &run);
        }
        Ok(())
    }

    pub(super) fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset + data.len() as u64;
        let mut gathered = self.gathered();
        let clash = gathered
            .overlapping(offset, end)
            .any(|(at, run)| at < offset || at + run.len() as u64 > end);
        if clash || gathered.bytes + data.len() > GATHERED_BYTES_MAX {
            drop(gathered);
            self.flush()?;
            gathered = self.gathered();
        }
        gathered.insert(offset, data);
        Ok(())
    }

    pub(super) fn set_len(&self, len: u64) -> io::Result<()> {
        self.flush()?;
        let shorter = len < self.medium.len()?;
        self.condition
            .patiently(Part::Tables, || self.medium.set_len(len))?;
        if shorter {
            // What was taken ahead went with it.
            let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
            room.used = room.used.min(len);
            if room.allocated != u64::MAX {
                room.allocated = room.allocated.min(len);
            }
            drop(room);
            self.take_room(0);
        }
        Ok(())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.flush()?;
        let synced = self.medium.sync();
        if synced.is_err() {
            self.medium.distrust();
        }
        synced
    }

    /// Writes what was gathered, neighbours together.
    fn flush(&self) -> io::Result<()> {
        let _alone = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        let runs: Vec<_> = self
            .gathered()
            .runs
            .iter()
            .map(|(at, run)| (*at, run.clone()))
            .collect();
        let mut rest = runs.as_slice();
        while let Some(((start, first), mut behind)) = rest.split_first() {
            let mut end = start + first.len() as u64;
            let mut joined = first.to_vec();
            while let Some(((at, run), more)) = behind.split_first()
                && *at == end
            {
                joined.extend_from_slice(run);
                end += run.len() as u64;
                behind = more;
            }
            rest = behind;
            self.take_room(end);
            self.condition
                .patiently(Part::Tables, || self.medium.write(*start, &joined))?;
        }
        let mut gathered = self.gathered();
        for (at, run) in &runs {
            // Unless it was written anew meanwhile.
            if gathered
                .runs
                .get(at)
                .is_some_and(|now| Arc::ptr_eq(now, run))
            {
                gathered.runs.remove(at);
                gathered.bytes -= run.len();
            }
        }
        Ok(())
    }

    /// Sees to it that the bytes up to `end` have blocks, and some more for later.
    fn take_room(&self, end: u64) {
        // Nobody waits for this file, so it needs no reserve: it is a copy, or nearly closed.
        if *self.condition.given_up() {
            return;
        }
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        room.used = room.used.max(end);
        if room.allocated >= room.used + AHEAD_BYTES {
            return;
        }
        let mut to = (room.used + AHEAD_BYTES).next_multiple_of(STEP_BYTES) + STEP_BYTES;
        loop {
            match self.medium.allocate(room.allocated, to) {
                Ok(()) => {
                    room.allocated = to;
                    break;
                }
                // What is left, if it is not all that is wanted: the last blocks count most.
                Err(error) if is_full(&error) => {
                    let half = to.saturating_sub(room.allocated) / 2;
                    if half < LITTLE_BYTES {
                        break;
                    }
                    to = room.allocated + half.next_multiple_of(LITTLE_BYTES);
                }
                // For a while: it is tried again.
                Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => break,
                // This file system cannot do it; the write itself says what is wrong.
                Err(error) if is_unsupported(&error) => {
                    tracing::debug!(%error, "no blocks can be taken ahead");
                    room.allocated = u64::MAX;
                    break;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // For a while, perhaps. Whether the disk fails, the next write or sync says.
                Err(error) => {
                    tracing::warn!(%error, "no blocks can be taken ahead now");
                    break;
                }
            }
        }
        let enough = room.allocated.saturating_sub(AHEAD_BYTES) >= room.used;
        self.condition.set_room_ahead(enough);
    }

    /// Tries once more to take room ahead, if there was none the last time. Somebody may have made
    /// some while nothing was written.
    pub(super) fn take_room_again(&self) {
        if !self.condition.has_room_ahead() {
            self.take_room(0);
        }
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gathered {
    fn overlapping(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, &Arc<[u8]>)> {
        // None overlaps another, so only the last one before `start` can reach into it.
        let before = self
            .runs
            .range(..start)
            .next_back()
            .filter(move |(at, run)| *at + run.len() as u64 > start);
        before
            .into_iter()
            .chain(self.runs.range(start..end))
            .map(|(at, run)| (*at, run))
    }

    /// Everything that it overlaps lies within it.
    fn insert(&mut self, offset: u64, data: &[u8]) {
        let end = offset + data.len() as u64;
        let covered: Vec<_> = self.runs.range(offset..end).map(|(at, _)| *at).collect();
        for at in covered {
            self.bytes -= self.runs.remove(&at).map_or(0, |run| run.len());
        }
        self.bytes += data.len();
        self.runs.insert(offset, data.into());
    }
}

fn overlay(offset: u64, out: &mut [u8], at: u64, run: &[u8]) {
    let start = at.max(offset);
    let end = (at + run.len() as u64).min(offset + out.len() as u64);
    let within = |place: u64, base: u64| usize::try_from(place - base).unwrap_or(usize::MAX);
    let from = run.get(within(start, at)..within(end, at));
    let to = out.get_mut(within(start, offset)..within(end, offset));
    if let (Some(from), Some(to)) = (from, to) {
        to.copy_from_slice(from);
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}
