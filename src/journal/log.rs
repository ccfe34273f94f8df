//! The log before the tables: what makes a group durable in one write and one sync.
//!
//! A file of fixed size in two halves, made of zeros at the first start, so that a sync has nothing
//! to write but data and a full disk does not stop it. A *frame* is one group of batches:
//!
//! ```text
//! 0..4     "dLog"
//! 4        version of the body's layout: 2; 1, which had no additions to a table, is still read
//! 5..8     0
//! 8..16    number of the group, big endian: that of the group before plus 1
//! 16..20   length of the body, big endian
//! 20..24   CRC-32 of bytes 4..20 and the body, big endian
//! 24..     the writes of the group, see `encode`
//! ```
//!
//! Frames begin at multiples of 4 KiB and do not cross into the other half. A half is written again
//! from its start only once the tables have durably all that is in it, so a frame of an earlier lap
//! has a number that the tables have passed. One frame is under way at a time: one that does not
//! check out is the torn end if no later one exists, and damage if one does. A start goes on in the half
//! that does not hold the newest frame: that one is there until a newer one is, whatever is torn.

use std::collections::BTreeMap;
use std::io;

use super::disk::{Condition, Medium, Part};
use super::{Batch, Counter, Table, Write};
use crate::faults::{Bug, bug, point};

/// Frames begin at multiples of this, so that a reader finds the next one behind a damaged one.
const BLOCK_BYTES: usize = 4_096;
/// Of a log on disk that is made now.
pub(super) const HALF_BYTES: usize = 4 << 20;
/// Of one that was made by an earlier release: it stays as it is.
pub(super) const HALF_BYTES_BEFORE: usize = 8 << 20;
const MAGIC: [u8; 4] = *b"dLog";
const VERSION: u8 = 2;
/// The oldest version that is read: 2 only has a kind of write more.
const VERSION_OLDEST: u8 = 1;
const HEAD_BYTES: usize = 24;

/// Where the next frame goes.
#[derive(Debug)]
pub(super) struct Log {
    medium: Box<dyn Medium>,
    condition: Condition,
    half_bytes: usize,
    /// Number of the last group.
    number: u64,
    /// The half that is being written, the end of its last frame, and its last group.
    half: usize,
    end: usize,
    last: u64,
    /// The last group in the other half.
    last_of_other: u64,
    /// The end came between a group too large for the log and the empty frame behind it.
    lacks_frame: bool,
}

/// Why a group cannot be appended.
#[derive(Debug)]
pub(super) enum NotAppended {
    /// The other half is still needed, until the tables are durable up to this group.
    Until(u64),
    /// It does not fit into a half.
    TooLarge,
    /// The disk failed.
    Io(io::Error),
}

/// What a log holds beyond what the tables have.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Groups in order.
    pub(super) groups: Vec<(u64, Batch)>,
    /// The first of damaged or missing groups, with the bytes that lie in their place.
    pub(super) damaged: Vec<(u64, Vec<u8>)>,
}

impl Log {
    /// Makes an empty log with halves of `half_bytes`, a multiple of 4 KiB.
    pub(super) fn create(medium: &dyn Medium, half_bytes: usize) -> io::Result<()> {
        let zeros = vec![0; half_bytes.min(1 << 20)];
        for at in (0..2 * half_bytes).step_by(zeros.len()) {
            medium.write(at as u64, &zeros)?;
        }
        medium.sync()
    }

    /// Whether no group was ever written to `medium`.
    pub(super) fn is_unused(medium: &dyn Medium) -> io::Result<bool> {
        let mut first = [0; HEAD_BYTES];
        medium.read(0, &mut first)?;
        Ok(first == [0; HEAD_BYTES])
    }

    /// Reads what `medium` holds beyond group `applied`. Until the tables are durable up to what was
    /// found, nothing may be appended.
    pub(super) fn open(
        medium: Box<dyn Medium>,
        applied: u64,
        condition: Condition,
    ) -> io::Result<(Self, Found)> {
        let half_bytes = usize::try_from(medium.len()? / 2).map_err(io::Error::other)?;
        let mut frames = BTreeMap::new();
        let (mut newest, mut free) = (0, 0);
        // One buffer for both: a second large one would stay with the allocator.
        let mut bytes = vec![0; half_bytes];
        for half in 0..2 {
            medium.read((half * half_bytes) as u64, &mut bytes)?;
            let mut end = 0;
            scan(&bytes, &mut |at, number, body| {
                if number > newest {
                    (newest, free) = (number, 1 - half);
                }
                if number > applied {
                    let before = bytes.get(end..at).unwrap_or_default().to_vec();
                    frames.insert(number, (before, decode(body)));
                    end = at + occupied(body.len());
                }
            });
        }
        let mut found = Found::default();
        let mut number = applied;
        // A log never forgets the newest groups. Only one too large for it leaves it one behind.
        if newest + 1 < applied {
            found.damaged.push((applied + 1, vec![]));
        }
        for (this, (before, group)) in frames {
            if number + 1 < this || group.is_none() {
                found.damaged.push((number + 1, before));
            }
            if let Some(group) = group {
                found.groups.push((this, group));
            }
            number = this;
        }
        let log = Self {
            medium,
            condition,
            half_bytes,
            number,
            half: free,
            end: 0,
            last: 0,
            last_of_other: 0,
            lacks_frame: newest < applied,
        };
        Ok((log, found))
    }

    /// Its length on the disk, whatever it holds.
    pub(super) fn len_bytes(&self) -> u64 {
        2 * self.half_bytes as u64
    }

    /// The number of the last group.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Once the tables are durable up to what was found: writes the frame that a large group lacks, so that
    /// a second one does not leave the log two groups behind, which would look like damage.
    pub(super) fn complete(&mut self) -> io::Result<()> {
        if !self.lacks_frame {
            return Ok(());
        }
        let durable = self.number;
        self.lacks_frame = false;
        match self.append(std::iter::empty(), durable) {
            Err(NotAppended::Io(error)) => Err(error),
            Ok(_) | Err(NotAppended::Until(_) | NotAppended::TooLarge) => Ok(()),
        }
    }

    /// Gives a number to a group that goes into the tables without a frame.
    pub(super) fn skip(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    /// Makes a group durable and returns its number. The tables are durable up to group `durable`.
    pub(super) fn append<'a>(
        &mut self,
        group: impl Iterator<Item = &'a Batch>,
        durable: u64,
    ) -> Result<u64, NotAppended> {
        let frame = encode(self.number + 1, group);
        if frame.len() > self.half_bytes {
            return Err(NotAppended::TooLarge);
        }
        if self.end + frame.len() > self.half_bytes {
            if self.last_of_other > durable && !bug(Bug::LogRecycledEarly) {
                return Err(NotAppended::Until(self.last_of_other));
            }
            self.last_of_other = self.last;
            self.half = 1 - self.half;
            self.end = 0;
        }
        let at = self.half * self.half_bytes + self.end;
        point("log.before");
        self.condition
            .patiently(Part::Log, || self.medium.write(at as u64, &frame))
            .and_then(|()| self.sync())
            .map_err(NotAppended::Io)?;
        point("log.after");
        self.number += 1;
        self.last = self.number;
        self.end += frame.len().next_multiple_of(BLOCK_BYTES);
        Ok(self.number)
    }

    fn sync(&self) -> io::Result<()> {
        if bug(Bug::LogNotSynced) {
            return Ok(());
        }
        let synced = self.medium.sync();
        if synced.is_err() {
            self.medium.distrust();
        }
        if bug(Bug::SyncErrorIgnored) {
            return Ok(());
        }
        synced
    }
}

/// The bytes that a frame takes up.
fn occupied(body_bytes: usize) -> usize {
    (HEAD_BYTES + body_bytes).next_multiple_of(BLOCK_BYTES)
}

fn scan(half: &[u8], visit: &mut dyn FnMut(usize, u64, &[u8])) {
    let mut at = 0;
    while let Some(rest) = half.get(at..).filter(|rest| !rest.is_empty()) {
        at += match read_frame(rest) {
            Some((number, body)) => {
                visit(at, number, body);
                occupied(body.len())
            }
            None => BLOCK_BYTES,
        };
    }
}

/// The frame at the start of `bytes`.
fn read_frame(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>()?;
    let (covered, sum) = head.strip_prefix(&MAGIC)?.split_last_chunk::<4>()?;
    let (about, length) = covered.split_last_chunk::<4>()?;
    let (version, number) = about.split_last_chunk::<8>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let body = rest.get(..length)?;
    let (version, zeros) = version.split_first()?;
    let good = (VERSION_OLDEST..=VERSION).contains(version)
        && zeros == [0; 3]
        && (checksum(covered, body) == u32::from_be_bytes(*sum) || bug(Bug::FrameUnchecked));
    good.then_some((u64::from_be_bytes(*number), body))
}

fn checksum(covered: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(covered);
    hasher.update(body);
    hasher.finalize()
}

const PUT: u8 = 1;
const DELETE: u8 = 2;
const ADD: u8 = 3;
const ADD_TO: u8 = 4;
/// Room for the small writes beside a large one.
const SPARE_BYTES: usize = 512;

/// In a body each write is a kind, the number of a table or counter, and for a put the key and the value,
/// for a deletion the key, each behind its length (4, big endian), for an addition the amount (8, big
/// endian), for an addition to a table the key and the amount.
impl Batch {
    pub(super) fn push(&mut self, write: Write<'_>) {
        let out = &mut self.body;
        match write {
            Write::Put(table, key, value) => {
                if out.is_empty() {
                    out.reserve(key.len() + value.len() + SPARE_BYTES);
                }
                out.extend_from_slice(&[PUT, table.number()]);
                put_bytes(out, key);
                put_bytes(out, value);
            }
            Write::Delete(table, key) => {
                out.extend_from_slice(&[DELETE, table.number()]);
                put_bytes(out, key);
            }
            Write::Add(counter, amount) => {
                out.extend_from_slice(&[ADD, counter.number()]);
                out.extend_from_slice(&amount.to_be_bytes());
            }
            Write::AddTo(table, key, amount) => {
                out.extend_from_slice(&[ADD_TO, table.number()]);
                put_bytes(out, key);
                out.extend_from_slice(&amount.to_be_bytes());
            }
        }
    }

    /// What it writes, in order.
    pub(super) fn writes(&self) -> impl Iterator<Item = Write<'_>> {
        let mut rest = self.body.as_slice();
        std::iter::from_fn(move || take_write(&mut rest))
    }

    /// How much that is.
    pub(super) fn bytes(&self) -> usize {
        self.body.len()
    }
}

/// A frame.
fn encode<'a>(number: u64, group: impl Iterator<Item = &'a Batch>) -> Vec<u8> {
    let mut out = Vec::with_capacity(BLOCK_BYTES);
    out.extend_from_slice(&[0; HEAD_BYTES]);
    for batch in group {
        out.extend_from_slice(&batch.body);
    }
    if let Some((head, body)) = out.split_first_chunk_mut::<HEAD_BYTES>() {
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
        let covered = [&[VERSION, 0, 0, 0][..], &number.to_be_bytes(), &length].concat();
        let sum = checksum(&covered, body).to_be_bytes();
        head.copy_from_slice(&[&MAGIC[..], &covered, &sum].concat());
    }
    out
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes);
}

/// The writes of a body; `None` if it is not one that this release writes.
fn decode(body: &[u8]) -> Option<Batch> {
    let mut rest = body;
    while !rest.is_empty() {
        take_write(&mut rest)?;
    }
    Some(Batch {
        body: body.to_vec(),
    })
}

fn take_write<'a>(body: &mut &'a [u8]) -> Option<Write<'a>> {
    let (&[kind, number], rest) = body.split_first_chunk::<2>()?;
    *body = rest;
    Some(match kind {
        PUT => Write::Put(
            Table::numbered(number)?,
            take_bytes(body)?,
            take_bytes(body)?,
        ),
        DELETE => Write::Delete(Table::numbered(number)?, take_bytes(body)?),
        ADD => Write::Add(Counter::numbered(number)?, take_number(body)?),
        ADD_TO => Write::AddTo(
            Table::numbered(number)?,
            take_bytes(body)?,
            take_number(body)?,
        ),
        _ => return None,
    })
}

fn take_number(body: &mut &[u8]) -> Option<u64> {
    let (number, rest) = body.split_first_chunk::<8>()?;
    *body = rest;
    Some(u64::from_be_bytes(*number))
}

fn take_bytes<'a>(body: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = body.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (bytes, rest) = rest.split_at_checked(length)?;
    *body = rest;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    const HALF: usize = 4 * BLOCK_BYTES;

    #[derive(Debug, Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Medium for Memory {
        fn len(&self) -> io::Result<u64> {
            Ok(self.0.lock().unwrap().len() as u64)
        }

        fn allocated(&self) -> io::Result<u64> {
            self.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            let start = usize::try_from(offset).unwrap();
            out.copy_from_slice(&self.0.lock().unwrap()[start..start + out.len()]);
            Ok(())
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            let start = usize::try_from(offset).unwrap();
            let mut bytes = self.0.lock().unwrap();
            let end = bytes.len().max(start + data.len());
            bytes.resize(end, 0);
            bytes[start..start + data.len()].copy_from_slice(data);
            Ok(())
        }

        fn set_len(&self, _: u64) -> io::Result<()> {
            Ok(())
        }

        fn allocate(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }

        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn made() -> (Memory, Log) {
        let memory = Memory::default();
        Log::create(&memory, HALF).unwrap();
        let log = open(&memory, 0).0;
        (memory, log)
    }

    fn open(memory: &Memory, applied: u64) -> (Log, Found) {
        Log::open(Box::new(memory.clone()), applied, Condition::default()).unwrap()
    }

    fn batch(n: u8) -> Batch {
        let mut batch = Batch::default();
        batch.put(Table::Chats, [n], vec![n; 100]);
        batch.delete(Table::InboxLive, [n]);
        batch.add(Counter::InboxAccepted, 1);
        batch
    }

    fn append(log: &mut Log, n: u8, durable: u64) -> Result<u64, NotAppended> {
        log.append([&batch(n)].into_iter(), durable)
    }

    fn numbers(found: &Found) -> Vec<u64> {
        found.groups.iter().map(|(number, _)| *number).collect()
    }

    #[test]
    fn what_was_appended_is_found_in_order_and_what_the_tables_have_is_not() {
        let (memory, mut log) = made();
        for n in 1..=3 {
            assert_eq!(append(&mut log, n, 0).unwrap(), u64::from(n));
        }
        let (log, found) = open(&memory, 1);
        assert_eq!((numbers(&found), log.number()), (vec![2, 3], 3));
        assert_eq!(
            format!("{:?}", found.groups[0].1),
            format!("{:?}", batch(2))
        );
        assert!(found.damaged.is_empty());
    }

    #[test]
    fn a_half_is_not_written_again_before_the_tables_have_it_and_old_laps_are_not_read() {
        let (memory, mut log) = made();
        for n in 1..=8 {
            append(&mut log, n, 0).unwrap();
        }
        let full = append(&mut log, 9, 3);
        assert!(matches!(full, Err(NotAppended::Until(4))), "{full:?}");
        append(&mut log, 9, 4).unwrap();
        // 9 is where 1 was; 2 to 4 are of the lap before.
        let (_, found) = open(&memory, 4);
        assert_eq!(numbers(&found), [5, 6, 7, 8, 9]);
        assert!(found.damaged.is_empty());
    }

    #[test]
    fn two_lives_that_end_right_after_a_large_group_look_like_no_damage() {
        let (memory, mut log) = made();
        append(&mut log, 1, 0).unwrap();
        for applied in [2, 4] {
            // The tables have it, and the end comes before the empty frame.
            assert_eq!(log.skip(), applied);
            let (again, found) = open(&memory, applied);
            assert_eq!(found.damaged, [], "after {applied}");
            log = again;
            log.complete().unwrap();
            log.complete().unwrap();
        }
        assert_eq!(log.number(), 5, "one frame each");
    }

    #[test]
    fn a_torn_end_is_cut_and_damage_before_a_sound_group_is_named() {
        let (memory, mut log) = made();
        for n in 1..=3 {
            append(&mut log, n, 0).unwrap();
        }
        let flip = |block: usize| memory.0.lock().unwrap()[block * BLOCK_BYTES + 50] ^= 1;
        flip(2);
        let (_, found) = open(&memory, 0);
        assert_eq!((numbers(&found), found.damaged.len()), (vec![1, 2], 0));
        flip(2);
        flip(1);
        let (log, found) = open(&memory, 0);
        assert_eq!((numbers(&found), log.number()), (vec![1, 3], 3));
        assert_eq!(found.damaged[0].0, 2);
        assert_eq!(found.damaged[0].1.len(), BLOCK_BYTES, "its bytes are kept");
    }

    /// The frames of the life before are few and at the start of a half; the torn one is larger than they are.
    #[test]
    fn a_torn_first_group_of_a_life_looks_like_no_damage() {
        for torn in 0..3 {
            let (memory, mut log) = made();
            for n in 1..=2 {
                append(&mut log, n, 0).unwrap();
            }
            let (mut log, _) = open(&memory, 2);
            let before = memory.0.lock().unwrap().clone();
            let mut large = Batch::default();
            large.put(Table::Chats, [3], vec![3; 2 * BLOCK_BYTES]);
            log.append([&large].into_iter(), 2).unwrap();
            let mut bytes = memory.0.lock().unwrap();
            let after = bytes.clone();
            let written = (0..2 * HALF).find(|at| after[*at] != before[*at]).unwrap();
            let lost = (written / BLOCK_BYTES + torn) * BLOCK_BYTES;
            bytes[lost..lost + BLOCK_BYTES].copy_from_slice(&before[lost..lost + BLOCK_BYTES]);
            drop(bytes);
            let (_, found) = open(&memory, 2);
            assert_eq!((numbers(&found), found.damaged), (vec![], vec![]));
        }
    }

    #[test]
    fn a_log_that_lacks_what_the_tables_have_seen_is_noticed() {
        let (memory, _) = made();
        assert!(
            open(&memory, 1).1.damaged.is_empty(),
            "one too large for it"
        );
        assert_eq!(open(&memory, 7).1.damaged[0].0, 8);
    }

    #[test]
    fn what_does_not_fit_into_a_half_is_too_large() {
        let (_, mut log) = made();
        let mut large = Batch::default();
        large.put(Table::Chats, [1], vec![0; HALF]);
        let refused = log.append([&large].into_iter(), 0);
        assert!(matches!(refused, Err(NotAppended::TooLarge)));
    }

    /// The bytes of a released format are read for ever.
    #[test]
    fn frames_of_each_version_are_read_and_those_of_the_newest_written_as_they_were() {
        let old = include_bytes!("../../tests/vectors/log-frame-v1.bin");
        let new = include_bytes!("../../tests/vectors/log-frame-v2.bin");
        let mut with_ledger = batch(5);
        with_ledger.add_to(Table::Ledger, [5], 9);
        for (bytes, written) in [(&old[..], &batch(5)), (new, &with_ledger)] {
            let (number, body) = read_frame(bytes).unwrap();
            assert_eq!(number, 7);
            let read = decode(body).unwrap();
            assert_eq!(format!("{read:?}"), format!("{written:?}"));
        }
        assert_eq!(encode(7, [&with_ledger].into_iter()), new);
    }

    #[test]
    fn a_frame_of_a_later_version_is_not_read() {
        let mut frame = encode(7, [&batch(5)].into_iter());
        frame[4] = VERSION + 1;
        assert!(read_frame(&frame).is_none());
    }
}
