//! Once, and on disk, before anybody is told.
//!
//! The event, its two dedup keys and what it changes in the directory are one batch. A repeat is
//! answered like the original, but only once the original is durable: until then it waits for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, SetOnce};

use super::Settings;
use super::asking::{Asking, Wait};
use super::verify::Verified;
use crate::clock::Clock;
use crate::delivery::event::{self, Event, Forwarding, Stored, Target};
use crate::delivery::id::{event_id, short_digest};
use crate::delivery::record;
use crate::dingtalk::event::ChatId;
use crate::directory::chats::{Change, Chats};
use crate::faults::point;
use crate::journal::aged::{Aged, Digest};
use crate::journal::queue::Queue;
use crate::journal::{Batch, CommitError, Journal};

/// The accepting side of the inbox.
#[derive(Debug)]
pub struct Inbox {
    /// What the inbound side works by.
    pub settings: Arc<ArcSwap<Settings>>,
    /// Where events are kept.
    pub queue: Arc<Queue<Forwarding>>,
    /// The store.
    pub journal: Journal,
    /// Callbacks seen.
    pub dedup: Arc<Aged<(), 2>>,
    /// Groups.
    pub chats: Arc<Chats>,
    /// Rung when a group without a name was installed.
    pub titles: Arc<Notify>,
    /// The clock.
    pub clock: Clock,
    /// Callbacks that are being stored.
    pub pending: Arc<Pending>,
    /// Who waits for an answer of the platform.
    pub asking: Arc<Asking>,
}

/// Callbacks that are being stored, by their keys.
#[derive(Debug, Default)]
pub struct Pending(Mutex<HashMap<Digest, Storing>>);

/// A callback that is being stored: `true` once it is durable, `false` if DingTalk must send it again.
/// Who waits has a deadline.
type Storing = Arc<SetOnce<bool>>;

/// What became of a callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// Stored now.
    New,
    /// Stored before.
    Duplicate,
    /// The console's test: nothing to store.
    CheckUrl,
    /// Not stored (in time).
    NotStored,
}

impl Inbox {
    /// Whether the same bytes were stored before, or are being stored: then that is the answer.
    pub async fn seen(&self, key: &Digest) -> Option<Accepted> {
        if self.dedup.known(key).is_some() {
            return Some(Accepted::Duplicate);
        }
        let waiting = self.pending.lock().get(key).cloned()?;
        Some(if *waiting.wait().await {
            Accepted::Duplicate
        } else {
            Accepted::NotStored
        })
    }

    /// Stores something unless it was stored before. The caller adds the deadline; giving up does
    /// not undo the write.
    pub async fn accept(&self, app: &super::App, verified: Verified) -> Accepted {
        self.accept_asking(app, verified, None).await.0
    }

    /// As [`Self::accept`], for somebody who waits until `until_ms` (monotonic) for the platform's answer.
    /// Without a wait nobody will answer.
    pub async fn accept_asking(
        &self,
        app: &super::App,
        verified: Verified,
        until_ms: Option<u64>,
    ) -> (Accepted, Option<Wait>) {
        let keys = [verified.same_bytes, verified.same_event];
        let (waiting, wait) = match self.store(app, verified, keys, until_ms) {
            Ok(stored) => stored,
            Err(key) => {
                let accepted = self.seen(&key).await;
                return (accepted.unwrap_or(Accepted::NotStored), None);
            }
        };
        if *waiting.wait().await {
            point("callback.after");
            (Accepted::New, wait)
        } else {
            (Accepted::NotStored, None)
        }
    }

    /// Submits the batch; `Err` names the key under which the event is known already.
    fn store(
        &self,
        app: &super::App,
        verified: Verified,
        keys: [Digest; 2],
        until_ms: Option<u64>,
    ) -> Result<(Storing, Option<Wait>), Digest> {
        let mut pending = self.pending.lock();
        for key in keys {
            if pending.contains_key(&key) || self.dedup.known(&key).is_some() {
                return Err(key);
            }
        }
        let storing = Storing::default();
        for key in keys {
            pending.insert(key, storing.clone());
        }
        drop(pending);
        let mut job = Job::new(self, app, verified, keys);
        // Before the forwarder hears of it.
        let wait = until_ms.zip(job.asked.take());
        let wait = wait.map(|(until_ms, event)| self.asking.wait(job.seq, event, until_ms));
        point("callback.before");
        job.submit(self, storing.clone());
        Ok((storing, wait))
    }
}

struct Job {
    batch: Batch,
    seq: u64,
    state: Forwarding,
    keys: [Digest; 2],
    wall_ms: u64,
    change: Option<(ChatId, Change)>,
    app: String,
    /// If somebody asks and an upstream answers: the event, which then need not be read back.
    asked: Option<Arc<Stored>>,
}

impl Job {
    fn new(inbox: &Inbox, app: &super::App, verified: Verified, keys: [Digest; 2]) -> Self {
        let wall_ms = inbox.clock.wall_ms();
        let Verified { meaning, ask, .. } = verified;
        let id = event_id(&verified.same_event);
        let subject = meaning.subject;
        let body = event::body(&Event {
            id: &id,
            source: &format!("/dingtalk/{}/{}", app.corp_id, app.name),
            kind: &meaning.kind,
            at_ms: wall_ms,
            subject: subject.as_deref(),
            data: &meaning.data,
        });
        let lane = subject.as_ref().map_or(0, |chat| {
            short_digest(&[app.name.as_bytes(), chat.as_bytes()])
        });
        let settings = inbox.settings.load();
        let targets = settings.targets(&app.name, &meaning.kind);
        let answers = |target: &Target| settings.answers(&target.upstream);
        let is_asked = ask.is_some() && targets.iter().any(answers);
        let stored = Stored {
            id,
            app: app.name.clone(),
            kind: meaning.kind.clone(),
            subject,
            accepted_ms: wall_ms,
            body,
            ask,
        };
        let payload = record::encode_about(&stored, stored.body.get().len() + 256);
        let nobody = targets.is_empty();
        let state = Forwarding {
            app: app.name.clone(),
            kind: meaning.kind.clone(),
            lane,
            accepted_ms: wall_ms,
            bytes: payload.len() as u64,
            targets: Some(targets),
            // With no upstream an event is settled as forwarded.
            finished_ms: nobody.then_some(wall_ms),
            generation: 0,
            asks: is_asked,
        };
        let seq = inbox.queue.reserve();
        let mut batch = Batch::default();
        if nobody {
            inbox
                .queue
                .append_settled(&mut batch, seq, &payload, &state);
        } else {
            inbox.queue.append(&mut batch, seq, &payload, &state);
        }
        inbox.dedup.note(&mut batch, &keys, &(), wall_ms);
        Self {
            batch,
            seq,
            state,
            keys,
            wall_ms,
            change: meaning.change,
            app: app.name.clone(),
            asked: is_asked.then(|| Arc::new(stored)),
        }
    }

    fn submit(self, inbox: &Inbox, storing: Storing) {
        let Self {
            mut batch,
            seq,
            state,
            keys,
            wall_ms,
            change,
            app,
            asked: _,
        } = self;
        let (queue, dedup) = (inbox.queue.clone(), inbox.dedup.clone());
        let (pending, titles) = (inbox.pending.clone(), inbox.titles.clone());
        let may_be_nameless = matches!(change, Some((_, Change::Installed(_))));
        let then = move |result: Result<(), CommitError>| {
            if result.is_ok() {
                dedup.remember(keys, &(), wall_ms);
                if state.finished_ms.is_none() {
                    queue.appended(seq, state.tag(), state);
                }
                if may_be_nameless {
                    titles.notify_one();
                }
            }
            let mut pending = pending.lock();
            for key in &keys {
                pending.remove(key);
            }
            drop(pending);
            if storing.set(result.is_ok()).is_err() {
                tracing::error!("a callback was stored twice");
            }
        };
        let journal = &inbox.journal;
        match &change {
            Some((chat, change)) => {
                inbox.chats.apply(&app, chat, change, &mut batch, |batch| {
                    journal.submit(std::mem::take(batch), then);
                });
            }
            None => journal.submit(batch, then),
        }
    }
}

impl Pending {
    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Storing>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
