//! Many messages through a short queue.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use dingd::delivery::record;
use dingd::journal::Batch;
use dingd::journal::queue::Queue;
use dingd::outbound::Live;

use super::{daemon, fill, mib, ratio, target};

const DEPTH: u64 = 10_000;
const BATCH: u64 = 100;
const SYNCS: u64 = 300;
/// 10,000 messages a second, far more than DingTalk's limits let through.
const PACE: Duration = Duration::from_millis(10);
/// How much a percentile may differ between two tenths without having grown.
const NOISE: f64 = 1.25;

/// Passes `messages` through the queue and reports, without and with a pause between commits.
pub(crate) fn run(messages: u64) -> io::Result<()> {
    println!("{messages} messages of 1 KiB through a queue of {DEPTH}, {BATCH} a commit");
    println!(" one commit after the other");
    round(messages, Duration::ZERO)?;
    println!(" a commit every {PACE:?}");
    round(messages, PACE)
}

fn round(messages: u64, pace: Duration) -> io::Result<()> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let state_dir = daemon::state_dir(dir.path())?;
    let syncs_before_us = syncs_us(dir.path())?;
    let mut churn = Churn::default();
    let (commits_us, after_us) = churn.pass(&state_dir, messages, pace)?;
    let syncs_after_us = syncs_us(dir.path())?;
    for (tenth, times_us) in tenths(&commits_us).iter().enumerate() {
        println!(
            "  commits of tenth {:2}: p50 {:6.2} ms, p99 {:6.2} ms, tables then {:4.0} MiB",
            tenth + 1,
            percentile_ms(times_us, 50),
            percentile_ms(times_us, 99),
            mib(after_us.get(tenth).copied().unwrap_or_default()),
        );
    }
    for (when, times_us) in [("before", &syncs_before_us), ("after", &syncs_after_us)] {
        println!(
            "  one fdatasync, 4 KiB, {when}: p50 {:.2} ms, p99 {:.2} ms",
            percentile_ms(times_us, 50),
            percentile_ms(times_us, 99)
        );
    }
    let on_disk = daemon::allocated_bytes(&state_dir)?;
    let log = std::fs::metadata(state_dir.join("journal.log"))?.blocks() * 512;
    let tables = std::fs::metadata(state_dir.join("journal.redb"))?;
    println!(
        "  live {:.1} MiB; on disk {:.1} MiB: log {:.1} MiB, tables {:.1} MiB, taken ahead {:.1} MiB",
        mib(churn.live_bytes),
        mib(on_disk),
        mib(log),
        mib(tables.len()),
        mib((tables.blocks() * 512).saturating_sub(tables.len())),
    );
    println!(
        "  tables alone / live bytes: {:.2}",
        ratio(tables.len(), churn.live_bytes)
    );
    let all = ratio(on_disk, churn.live_bytes);
    target("on disk / live bytes", all, all <= 3.0, "≤ 3");
    let p99s: Vec<_> = tenths(&commits_us)
        .iter()
        .map(|times_us| percentile_ms(times_us, 99))
        .collect();
    let (first, last) = p99s.split_at(p99s.len() / 2);
    println!(
        "  median of the p99s of five tenths, last / first: {:.2}",
        middle(last) / middle(first)
    );
    let growth = p99s
        .last()
        .zip(p99s.first())
        .map_or(f64::NAN, |(last, first)| last / first);
    target("p99, last / first tenth", growth, growth <= NOISE, "≤ 1.25");
    println!();
    Ok(())
}

#[derive(Default)]
struct Churn {
    waiting: VecDeque<(u64, Live, u64)>,
    finished: Vec<(u64, u64)>,
    /// Of the records that are in the store.
    live_bytes: u64,
}

impl Churn {
    /// Returns how long after it was due each commit was durable, and the size of the tables at the end
    /// of each tenth.
    fn pass(
        &mut self,
        state_dir: &Path,
        messages: u64,
        pace: Duration,
    ) -> io::Result<(Vec<u32>, Vec<u64>)> {
        let (journal, queue) = fill::open(state_dir)?;
        let (mut commits_us, mut sizes) = (vec![], vec![]);
        let commits = messages / BATCH;
        let mut due = Instant::now();
        for n in 0..commits {
            let batch = self.next(&queue);
            due = if pace.is_zero() {
                Instant::now()
            } else {
                due + pace
            };
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            fill::commit(&journal, batch)?;
            commits_us.push(micros(due));
            if (n + 1).is_multiple_of((commits / 10).max(1)) {
                sizes.push(journal.size_bytes());
            }
        }
        journal.close();
        Ok((commits_us, sizes))
    }

    /// New messages, the end of the oldest, and the removal of what ended before.
    fn next(&mut self, queue: &Queue<Live>) -> Batch {
        let mut batch = Batch::default();
        for (seq, bytes) in self.finished.drain(..) {
            queue.purge(&mut batch, seq);
            self.live_bytes -= bytes;
        }
        let now_ms = fill::wall_ms();
        for _ in 0..BATCH {
            let seq = queue.reserve();
            let (payload, live) = fill::message(seq, fill::ROBOTS, now_ms);
            let state_bytes = record::encode(&live).len() as u64;
            let payload_bytes = payload.len() as u64;
            queue.append(&mut batch, seq, &payload, &live);
            self.live_bytes += payload_bytes + state_bytes;
            self.waiting.push_back((seq, live, state_bytes));
        }
        while self.waiting.len() as u64 > DEPTH
            && let Some((seq, live, was_bytes)) = self.waiting.pop_front()
        {
            let payload_bytes = live.bytes;
            let done = fill::sent(live);
            let state_bytes = record::encode(&done).len() as u64;
            queue.finish(&mut batch, seq, &done);
            self.live_bytes = self.live_bytes + state_bytes - was_bytes;
            self.finished.push((seq, payload_bytes + state_bytes));
        }
        batch
    }
}

fn tenths(times_us: &[u32]) -> Vec<Vec<u32>> {
    let size = times_us.len().div_ceil(10).max(1);
    times_us.chunks(size).map(<[u32]>::to_vec).collect()
}

fn middle(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn syncs_us(dir: &Path) -> io::Result<Vec<u32>> {
    const BLOCK: [u8; 4_096] = [7; 4_096];
    let path = dir.join("blocks");
    let file = File::create(&path)?;
    let mut times_us = vec![];
    for block in 0..SYNCS {
        file.write_all_at(&BLOCK, block * 4_096)?;
        let started = Instant::now();
        file.sync_data()?;
        times_us.push(micros(started));
    }
    std::fs::remove_file(path)?;
    Ok(times_us)
}

fn micros(started: Instant) -> u32 {
    u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX)
}

fn percentile_ms(times_us: &[u32], percent: usize) -> f64 {
    let mut sorted = times_us.to_vec();
    sorted.sort_unstable();
    let at = sorted.len().saturating_sub(1) * percent / 100;
    sorted.get(at).map_or(f64::NAN, |us| f64::from(*us) / 1e3)
}
