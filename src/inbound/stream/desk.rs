//! One frame: stored, then answered.
//!
//! What cannot be stored now comes again. An event does because we say so. A callback has no such word: of
//! an unanswered message to the robot it is known that it comes again with the same ids, about a minute later
//! (inbound.md §5.6), of one that was answered with an error it is not; and an unanswered click shows the
//! person that it failed, which is the truth. So to those nothing is said.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::delivery::id::digest;
use crate::dingtalk::event::{self, Detail};
use crate::dingtalk::frame::{CARDS, EventHead, Kind, ROBOT, Reply, Unreadable};
use crate::inbound::App;
use crate::inbound::accept::Accepted;
use crate::inbound::take::{Patience, Replies, Taker};
use crate::inbound::verify;
use crate::journal::aged::Digest;
use crate::metrics;

/// Where frames are worked off.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) taker: Taker,
    /// When something unreadable was last logged, in monotonic milliseconds.
    pub(super) complained_ms: AtomicU64,
}

/// What became of a frame.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) message_id: String,
    /// `None`: nothing is said.
    pub(super) reply: Option<Reply>,
    /// For the metrics.
    pub(super) kind: &'static str,
    pub(super) result: &'static str,
}

/// What is said, and what became of it.
type Outcome = (Option<Reply>, &'static str);

const LATER: Outcome = (Some(Reply::Later), "later");
const UNANSWERED: Outcome = (None, "unanswered");

impl Desk {
    /// Works off an event or a callback for the app `name`.
    pub(super) async fn work(
        &self,
        name: &str,
        message_id: String,
        kind: Kind,
        patience: Patience,
    ) -> Done {
        let clock = self.taker.inbox.clock;
        let started_us = clock.mono_us();
        let settings = self.taker.inbox.settings.load_full();
        // Missing only while a reload takes it away.
        let app = settings.apps.get(name);
        let (kind, (reply, result)) = match kind {
            Kind::Event { head, data } => {
                let outcome = match app {
                    Some(app) => self.event(app, head, &data).await,
                    None => LATER,
                };
                ("event", outcome)
            }
            Kind::Callback { topic, data } if topic == ROBOT => {
                let outcome = match app {
                    Some(app) => self.message(app, &message_id, &data).await,
                    None => UNANSWERED,
                };
                ("message", outcome)
            }
            Kind::Callback { topic, data } if topic == CARDS => {
                let outcome = match app {
                    Some(app) => self.click(app, &message_id, &data, patience).await,
                    None => UNANSWERED,
                };
                ("click", outcome)
            }
            Kind::Callback { .. } => ("callback", (Some(Reply::NotFound), "not_found")),
            Kind::Ping { .. } | Kind::Disconnect { .. } | Kind::System | Kind::Unknown => {
                ("system", (None, "ignored"))
            }
        };
        if reply.is_some() {
            metrics::stream_ack(kind, clock.mono_us() - started_us);
        }
        Done {
            message_id,
            reply,
            kind,
            result,
        }
    }

    async fn event(&self, app: &App, head: EventHead, data: &str) -> Outcome {
        // Without an id of its own an event is told from others by everything that is known of it: the
        // data of some is `{}`.
        let same_bytes = digest(&[
            b"stream event",
            app.name.as_bytes(),
            head.id.as_deref().unwrap_or_default().as_bytes(),
            head.kind.as_bytes(),
            head.corp.as_deref().unwrap_or_default().as_bytes(),
            &head.born_ms.unwrap_or_default().to_be_bytes(),
            data.as_bytes(),
        ]);
        let event = match event::parse_typed(head, data) {
            Ok(event) => event,
            Err(problem) => return self.refused(app, problem),
        };
        if event.detail == Detail::CheckUrl {
            return (Some(Reply::Stored), "check_url");
        }
        let same_event = event
            .id
            .as_ref()
            .map_or(same_bytes, |id| verify::same_event(app, id));
        let taken = self
            .taker
            .event(app, &event, data, same_bytes, same_event)
            .await;
        match taken {
            Accepted::New | Accepted::CheckUrl => (Some(Reply::Stored), "stored"),
            Accepted::Duplicate => (Some(Reply::Stored), "duplicate"),
            Accepted::NotStored => LATER,
        }
    }

    async fn message(&self, app: &App, message_id: &str, data: &str) -> Outcome {
        let same_bytes = same_bytes(app, message_id, data);
        let taken = self
            .taker
            .message(app, data, same_bytes, Replies::Apart)
            .await;
        match taken {
            Ok(Some(_)) => (Some(Reply::Response(None)), "stored"),
            Ok(None) => UNANSWERED,
            Err(problem) => self.refused(app, problem),
        }
    }

    async fn click(&self, app: &App, message_id: &str, data: &str, patience: Patience) -> Outcome {
        let same_bytes = same_bytes(app, message_id, data);
        match self.taker.click(app, data, same_bytes, patience).await {
            Ok(Some(body)) => (Some(Reply::Response(Some(body))), "stored"),
            Ok(None) => UNANSWERED,
            Err(problem) => self.refused(app, problem),
        }
    }

    /// What is said of a frame that cannot be read.
    pub(super) fn unreadable(&self, name: &str, unreadable: Unreadable) -> Done {
        let Unreadable {
            message_id,
            problem,
        } = unreadable;
        self.complain(name, problem);
        Done {
            reply: message_id.is_some().then_some(Reply::BadFrame(problem)),
            message_id: message_id.unwrap_or_default(),
            kind: "unreadable",
            result: "refused",
        }
    }

    /// It could be read no better if it came again.
    fn refused(&self, app: &App, problem: &'static str) -> Outcome {
        self.complain(&app.name, problem);
        (Some(Reply::BadFrame(problem)), "refused")
    }

    /// Whoever sends one bad frame sends more: the log gets one line in ten seconds, the metrics count them
    /// all.
    fn complain(&self, app: &str, problem: &'static str) {
        let now_ms = self.taker.inbox.clock.mono_ms();
        let last_ms = self.complained_ms.load(Ordering::Relaxed);
        if now_ms.saturating_sub(last_ms) >= 10_000 {
            self.complained_ms.store(now_ms, Ordering::Relaxed);
            tracing::warn!(app, problem, "a Stream frame cannot be taken");
        }
    }
}

/// The key of a callback that comes again; a person who says or does the same twice is not that.
fn same_bytes(app: &App, message_id: &str, data: &str) -> Digest {
    digest(&[
        b"stream callback",
        app.name.as_bytes(),
        message_id.as_bytes(),
        data.as_bytes(),
    ])
}
