//! What has ended is removed when its time is over, a few entries at a time, so that the disk stays
//! within bounds and no commit is held up.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Journal;
use super::queue::{Queue, walk_done};
use crate::faults::point;

/// Entries looked at in one step.
const STEP_MAX: usize = 2_000;

/// How long what has ended stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// What ended well, in milliseconds.
    pub finished_ms: u64,
    /// Dead letters, in milliseconds.
    pub dead_ms: u64,
    /// Dead letters may take this much of the disk; critical ones are kept all the same.
    pub dead_bytes_max: u64,
}

/// How an entry ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Wall time in milliseconds.
    pub at_ms: u64,
    /// Whether it is a dead letter.
    pub dead: bool,
}

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Step {
    /// Entries that are gone.
    pub removed: usize,
    /// Whether there may be old ones behind those that were looked at.
    pub goes_on: bool,
}

/// Walks through what has ended, again and again.
#[derive(Debug, Default)]
pub struct Retention {
    next: AtomicU64,
}

impl Retention {
    /// Looks at the next entries and removes those whose time is over.
    pub async fn step<S: Serialize + DeserializeOwned + Send + Sync + 'static>(
        &self,
        journal: &Journal,
        queue: &Queue<S>,
        keep: Keep,
        wall_ms: u64,
        ended: fn(&S) -> Option<Ended>,
    ) -> Step {
        let _alone = queue.upkeep().await;
        let (place, from) = (queue.place(), self.next.load(Ordering::Relaxed));
        let over = move |state: &S| {
            ended(state).is_some_and(|ended| {
                let keep_ms = if ended.dead {
                    keep.dead_ms
                } else {
                    keep.finished_ms
                };
                ended.at_ms.saturating_add(keep_ms) < wall_ms
            })
        };
        let looked = journal.read(move |view| {
            let (mut old, mut young) = (vec![], false);
            let walked = walk_done(view, place, from, STEP_MAX, &mut |seq, state: S| {
                if over(&state) {
                    old.push((seq, ended(&state)));
                }
                // Those behind were accepted later. The few that ended sooner than this one are found
                // when it is old itself.
                // What the clock dated in the future says nothing about those behind it.
                young = ended(&state).is_some_and(|ended| {
                    ended.at_ms <= wall_ms
                        && ended.at_ms.saturating_add(keep.finished_ms) >= wall_ms
                });
            })?;
            // At the end of the table, or where nothing is old yet: start over.
            Ok((
                old,
                walked.next.filter(|_| !young).unwrap_or(0),
                walked.aside,
            ))
        });
        let Ok((old, next, mut batch)) = looked.await else {
            return Step::default();
        };
        self.next.store(next, Ordering::Relaxed);
        for (seq, _) in &old {
            queue.purge(&mut batch, *seq);
        }
        if !batch.is_empty() {
            point("purge.before");
            if journal.commit(batch).await.is_err() {
                tracing::warn!("old entries could not be removed");
                return Step::default();
            }
            for (seq, ended) in &old {
                if let Some(Ended { at_ms, dead: true }) = ended {
                    queue.dead().remove((*at_ms, *seq));
                }
            }
            point("purge.after");
        }
        Step {
            removed: old.len(),
            goes_on: next > 0,
        }
    }
}
