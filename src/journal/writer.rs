//! The one writing thread: takes what has gathered, commits once, answers all.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::watch;

use super::engine::Engine;
use super::{Batch, CommitError};

const GROUP_BATCHES_MAX: usize = 256;
const GROUP_BYTES_MAX: usize = 1 << 20;

type Then = Box<dyn FnOnce(Result<(), CommitError>) + Send>;

/// What is queued here is bounded by those who wait: each connection and each call in flight has at
/// most one batch under way.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: Mutex<Option<Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Job {
    batch: Batch,
    then: Then,
}

impl Writer {
    pub(super) fn start(engine: Arc<Engine>, failed: watch::Sender<bool>) -> Self {
        let (jobs, queue) = channel();
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || run(&engine, &queue, &failed))
            .expect("a process that cannot start one thread cannot work");
        Self {
            jobs: Mutex::new(Some(jobs)),
            thread: Mutex::new(Some(thread)),
        }
    }

    pub(super) fn submit(&self, batch: Batch, then: Then) {
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

    /// Lets the thread finish its queue and waits for it.
    pub(super) fn stop(&self) {
        drop(
            self.jobs
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the journal's thread panicked");
        }
    }
}

fn run(engine: &Engine, queue: &Receiver<Job>, failed: &watch::Sender<bool>) {
    let clock = crate::clock::Clock::system();
    let mut broken = false;
    while let Ok(first) = queue.recv() {
        let mut bytes = first.batch.bytes;
        let mut group = vec![first];
        while group.len() < GROUP_BATCHES_MAX && bytes < GROUP_BYTES_MAX {
            let Ok(next) = queue.try_recv() else { break };
            bytes += next.batch.bytes;
            group.push(next);
        }
        let started_ms = clock.mono_us();
        let result = if broken {
            Err(CommitError)
        } else {
            engine.write(group.iter().map(|job| &job.batch))
        };
        crate::metrics::store_commit(group.len(), clock.mono_us() - started_ms, result.is_ok());
        if result.is_err() && !broken {
            broken = true;
            failed.send_replace(true);
        }
        for job in group {
            (job.then)(result);
        }
    }
}
