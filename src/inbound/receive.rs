//! The callbacks door: one route for DingTalk's events.
//!
//! Every refusal has the same status and an empty body, so that nobody learns how far a forgery got;
//! the reason is in `dingd_callbacks_total` and, for a genuine-looking one, in the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::Method;

use super::accept::{Accepted, Inbox};
use super::{App, verify};
use crate::delivery::random;
use crate::dingtalk::envelope::Refused;
use crate::dingtalk::event::Detail;
use crate::drain::Drain;
use crate::http::listen::Request;
use crate::http::problem::{self, Answer, Problem};
use crate::journal::room::Room;
use crate::metrics;

/// The handler of the callbacks door.
#[derive(Debug, Clone)]
pub struct Door {
    /// Where accepted callbacks go.
    pub inbox: Arc<Inbox>,
    /// To refuse new work while stopping.
    pub drain: Drain,
    /// Whether the disk has room for more.
    pub room: Room,
    /// When a refusal was last logged, in monotonic milliseconds.
    pub complained_ms: Arc<AtomicU64>,
}

impl Door {
    /// Answers one request.
    pub async fn handle(self, request: Request) -> Answer {
        let started_us = self.inbox.clock.mono_us();
        let (route, answer) = self.route(request).await;
        let us = self.inbox.clock.mono_us() - started_us;
        metrics::http_request("callbacks", route, answer.status().as_u16(), us);
        answer
    }

    async fn route(&self, request: Request) -> (&'static str, Answer) {
        let path = request.head.uri.path();
        let mut segments = path.split('/').skip(1);
        let (Some("callback"), Some(name), Some("events"), None) = (
            segments.next(),
            segments.next(),
            segments.next(),
            segments.next(),
        ) else {
            return ("none", Problem::no_such_route().answer());
        };
        let settings = self.inbox.settings.load_full();
        let Some(app) = settings.apps.get(name).filter(|app| app.keys.is_some()) else {
            return ("none", Problem::no_such_route().answer());
        };
        if request.head.method != Method::POST {
            return (EVENTS, Problem::method_not_allowed("POST").answer());
        }
        (EVENTS, self.event(app, &request).await)
    }

    async fn event(&self, app: &App, request: &Request) -> Answer {
        let started_us = self.inbox.clock.mono_us();
        let (answer, result, reason) = match self.take(app, request).await {
            Ok(accepted) => self.reply(app, accepted),
            Err(refused) => {
                if self.may_complain() {
                    tracing::warn!(app = %app.name, reason = refused.label(), error = %refused, "a callback was refused");
                }
                (problem::empty(403), "refused", refused.label())
            }
        };
        metrics::callback(result, reason, self.inbox.clock.mono_us() - started_us);
        answer
    }

    /// Anybody can send forgeries as fast as they like; the log gets one line in ten seconds, the
    /// metrics count them all.
    fn may_complain(&self) -> bool {
        let now_ms = self.inbox.clock.mono_ms();
        let last_ms = self.complained_ms.load(Ordering::Relaxed);
        let due = now_ms.saturating_sub(last_ms) >= 10_000;
        if due {
            self.complained_ms.store(now_ms, Ordering::Relaxed);
        }
        due
    }

    async fn take(&self, app: &App, request: &Request) -> Result<Accepted, Refused> {
        let (fresh, ack_timeout_ms, events_max) = {
            let settings = self.inbox.settings.load();
            (
                settings.freshness,
                settings.ack_timeout_ms,
                settings.queue_events_max,
            )
        };
        let query = request.head.uri.query().unwrap_or_default();
        let signed = verify::signed(app, query, &request.body, self.inbox.clock.wall_ms(), fresh)?;
        let store = async {
            if let Some(accepted) = self.inbox.seen(&signed.same_bytes).await {
                return Ok(accepted);
            }
            let verified = verify::opened(app, signed)?;
            let to_store = verified.event.detail != Detail::CheckUrl;
            let full = self.inbox.queue.messages() >= events_max;
            if to_store && (full || self.drain.is_stopping() || !self.room.has_room()) {
                return Ok(Accepted::NotStored);
            }
            Ok(self.inbox.accept(app, verified).await)
        };
        // Dropping the future does not undo the write: what comes too late makes the repeat a
        // duplicate.
        tokio::time::timeout(Duration::from_millis(ack_timeout_ms), store)
            .await
            .unwrap_or(Ok(Accepted::NotStored))
    }

    fn reply(&self, app: &App, accepted: Accepted) -> (Answer, &'static str, &'static str) {
        let (result, reason) = match accepted {
            Accepted::New => ("accepted", "stored"),
            Accepted::Duplicate => ("duplicate", "stored"),
            Accepted::CheckUrl => ("accepted", "check_url"),
            Accepted::NotStored => {
                let problem =
                    Problem::unavailable("not_stored", "the callback could not be stored", 10);
                return (problem.answer(), "failed", "not_stored");
            }
        };
        let Some(keys) = &app.keys else {
            return (problem::empty(403), "refused", "signature");
        };
        let now_ms = self.inbox.clock.wall_ms();
        // One call to the operating system for both.
        let [first, nonce] = random::halves();
        let body = keys.seal_success(&first, &random::letters(&nonce), now_ms);
        (
            problem::with_body(200, "application/json", body),
            result,
            reason,
        )
    }
}

const EVENTS: &str = "events";
