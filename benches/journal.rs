//! What durability costs: one 1 KiB record appended and committed, at 1, 16 and 128 writers.
//!
//! Beside the journal runs the least that could do the same, a thread that groups what has gathered
//! into one redb transaction on one table. Both sync for real, on the disk that the build lies on. At
//! the end both are run in turns, and the medians of their rates and of the ratios are printed.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a bench measures time and reports on its output"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dingd::journal::{Batch, Journal, Table};
use redb::{Database, Durability, TableDefinition};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

const RECORD_BYTES: usize = 1_024;
const WRITERS: [u64; 3] = [1, 16, 128];
/// As the journal has it.
const GROUP_MAX: usize = 256;
const CACHE_BYTES: usize = 8 << 20;
const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_millis(400);

const RECORDS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("records");

struct Job {
    key: [u8; 8],
    value: Vec<u8>,
    done: oneshot::Sender<()>,
}

#[derive(Clone)]
enum Store {
    Journal(Journal),
    Bare(std::sync::mpsc::Sender<Job>),
}

struct Bench {
    store: Store,
    seq: Arc<AtomicU64>,
    _dir: TempDir,
}

impl Bench {
    fn journal() -> Self {
        let dir = dir();
        let journal = Journal::open(dir.path()).expect("the journal opens");
        Self::new(Store::Journal(journal), dir)
    }

    fn bare() -> Self {
        let dir = dir();
        let db = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(dir.path().join("bare.redb"))
            .expect("the file opens");
        let (jobs, queue) = std::sync::mpsc::channel();
        std::thread::spawn(move || group_commits(&db, &queue));
        Self::new(Store::Bare(jobs), dir)
    }

    fn new(store: Store, dir: TempDir) -> Self {
        Self {
            store,
            seq: Arc::default(),
            _dir: dir,
        }
    }

    /// Runs `writers` at a time, each appending until `next` says no; returns how long that took.
    fn run(
        &self,
        runtime: &Runtime,
        writers: u64,
        next: impl Fn(u64) -> bool + Clone + Send + 'static,
    ) -> Duration {
        let started = Instant::now();
        let tasks: Vec<_> = (0..writers)
            .map(|_| {
                let (store, seq, next) = (self.store.clone(), self.seq.clone(), next.clone());
                runtime.spawn(async move {
                    let mut done = 0;
                    while next(done) {
                        append(&store, seq.fetch_add(1, Ordering::Relaxed)).await;
                        done += 1;
                    }
                })
            })
            .collect();
        for task in tasks {
            runtime.block_on(task).expect("a writer panicked");
        }
        started.elapsed()
    }

    /// Records a second over one round.
    fn rate(&self, runtime: &Runtime, writers: u64) -> f64 {
        let before = self.seq.load(Ordering::Relaxed);
        let until = Instant::now() + ROUND;
        let took = self.run(runtime, writers, move |_| Instant::now() < until);
        let records = self.seq.load(Ordering::Relaxed) - before;
        f64::from(u32::try_from(records).unwrap_or(u32::MAX)) / took.as_secs_f64()
    }
}

async fn append(store: &Store, seq: u64) {
    let (key, value) = (seq.to_be_bytes(), vec![b'x'; RECORD_BYTES]);
    match store {
        Store::Journal(journal) => {
            let mut batch = Batch::default();
            batch.put(Table::InboxPayload, key, value);
            journal.commit(batch).await.expect("the disk takes it");
        }
        Store::Bare(jobs) => {
            let (done, told) = oneshot::channel();
            jobs.send(Job { key, value, done })
                .expect("the thread lives");
            told.await.expect("the disk takes it");
        }
    }
}

fn group_commits(db: &Database, queue: &std::sync::mpsc::Receiver<Job>) {
    while let Ok(first) = queue.recv() {
        let mut group = vec![first];
        group.extend(queue.try_iter().take(GROUP_MAX - 1));
        commit(db, &group).expect("the disk takes it");
        for job in group {
            job.done.send(()).expect("the writer waits");
        }
    }
}

fn commit(db: &Database, group: &[Job]) -> Result<(), redb::Error> {
    let mut transaction = db.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    {
        let mut table = transaction.open_table(RECORDS)?;
        for job in group {
            table.insert(job.key.as_slice(), job.value.as_slice())?;
        }
    }
    transaction.commit()?;
    Ok(())
}

/// On the disk of the build, because the system's temporary directory may lie in memory.
fn dir() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory")
}

fn append_and_commit(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let mut group = criterion.benchmark_group("append_commit_1KiB");
    group
        .throughput(Throughput::Elements(1))
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    for writers in WRITERS {
        for (name, bench) in [("journal", Bench::journal()), ("bare_redb", Bench::bare())] {
            group.bench_function(BenchmarkId::new(name, writers), |bencher| {
                bencher.iter_custom(|records| {
                    // Each writer does its part, and the time counts for that many records.
                    let each = records.div_ceil(writers);
                    let took = bench.run(&runtime, writers, move |done| done < each);
                    let share = f64::from(u32::try_from(records).unwrap_or(u32::MAX))
                        / f64::from(u32::try_from(each * writers).unwrap_or(u32::MAX));
                    took.mul_f64(share)
                });
            });
        }
    }
    group.finish();
}

fn ratio(_: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    println!("records/s, medians of {ROUNDS} rounds in turns");
    println!("writers   journal  bare redb  ratio");
    for writers in WRITERS {
        let (journal, bare) = (Bench::journal(), Bench::bare());
        let rounds: Vec<_> = (0..ROUNDS)
            .map(|_| {
                (
                    journal.rate(&runtime, writers),
                    bare.rate(&runtime, writers),
                )
            })
            .collect();
        println!(
            "{writers:7} {:9.0} {:10.0} {:6.2}",
            median(rounds.iter().map(|round| round.0)),
            median(rounds.iter().map(|round| round.1)),
            median(rounds.iter().map(|round| round.0 / round.1)),
        );
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

criterion_group!(benches, append_and_commit, ratio);
criterion_main!(benches);
