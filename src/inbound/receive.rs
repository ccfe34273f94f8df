//! The callbacks door: an app's events, clicks on its cards, messages to its robot.
//!
//! Every refusal has the same status and an empty body, so that nobody learns how far a forgery got;
//! the reason is in `dingd_callbacks_total` and, for a genuine-looking one, in the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hyper::Method;

use super::accept::Accepted;
use super::take::{Patience, Replies, Taker};
use super::{App, verify};
use crate::delivery::id::digest;
use crate::delivery::random;
use crate::dingtalk::envelope::Refused;
use crate::http::listen::Request;
use crate::http::problem::{self, Answer, Problem};
use crate::metrics;

/// The handler of the callbacks door.
#[derive(Debug, Clone)]
pub struct Door {
    /// What is done with what is believed.
    pub taker: Taker,
    /// When a refusal was last logged, in monotonic milliseconds.
    pub complained_ms: Arc<AtomicU64>,
}

/// What comes for an app.
#[derive(Debug, Clone, Copy)]
enum Route {
    Events,
    Cards,
    Robot,
}

/// The answer to a callback with its result and reason for the metrics.
type Done = (Answer, &'static str, &'static str);

impl Route {
    fn named(name: &str) -> Option<Self> {
        match name {
            "events" => Some(Self::Events),
            "cards" => Some(Self::Cards),
            "robot" => Some(Self::Robot),
            _ => None,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Cards => "cards",
            Self::Robot => "robot",
        }
    }

    /// Whether `app` is configured for it.
    fn is_open(self, app: &App) -> bool {
        match self {
            Self::Events => app.keys.is_some(),
            Self::Cards => app.card_secret.is_some(),
            Self::Robot => app.robot_by_http,
        }
    }
}

impl Door {
    /// Answers one request.
    pub async fn handle(self, request: Request) -> Answer {
        let started_us = self.taker.inbox.clock.mono_us();
        let (route, answer) = self.route(request).await;
        let us = self.taker.inbox.clock.mono_us() - started_us;
        metrics::http_request("callbacks", route, answer.status().as_u16(), us);
        answer
    }

    async fn route(&self, request: Request) -> (&'static str, Answer) {
        let path = request.head.uri.path();
        let mut segments = path.split('/').skip(1);
        let (Some("callback"), Some(name), Some(route), None) = (
            segments.next(),
            segments.next(),
            segments.next(),
            segments.next(),
        ) else {
            return ("none", Problem::no_such_route().answer());
        };
        let settings = self.taker.inbox.settings.load_full();
        let open = settings.apps.get(name).zip(Route::named(route));
        let Some((app, route)) = open.filter(|(app, route)| route.is_open(app)) else {
            return ("none", Problem::no_such_route().answer());
        };
        let label = route.label();
        if request.head.method != Method::POST {
            return (label, Problem::method_not_allowed("POST").answer());
        }
        (label, self.callback(app, route, &request).await)
    }

    async fn callback(&self, app: &App, route: Route, request: &Request) -> Answer {
        let started_us = self.taker.inbox.clock.mono_us();
        let done = match route {
            Route::Events => self.event(app, request).await,
            Route::Cards => self.click(app, request).await,
            Route::Robot => self.message(app, request).await,
        };
        let (answer, result, reason) = done.unwrap_or_else(|refused| {
            if self.may_complain() {
                tracing::warn!(app = %app.name, route = route.label(), reason = refused.label(), error = %refused, "a callback was refused");
            }
            (problem::empty(403), "refused", refused.label())
        });
        metrics::callback(
            result,
            reason,
            self.taker.inbox.clock.mono_us() - started_us,
        );
        answer
    }

    /// Anybody can send forgeries as fast as they like; the log gets one line in ten seconds, the
    /// metrics count them all.
    fn may_complain(&self) -> bool {
        let now_ms = self.taker.inbox.clock.mono_ms();
        let last_ms = self.complained_ms.load(Ordering::Relaxed);
        let due = now_ms.saturating_sub(last_ms) >= 10_000;
        if due {
            self.complained_ms.store(now_ms, Ordering::Relaxed);
        }
        due
    }

    async fn event(&self, app: &App, request: &Request) -> Result<Done, Refused> {
        let inbox = &self.taker.inbox;
        let fresh = inbox.settings.load().freshness;
        let query = request.head.uri.query().unwrap_or_default();
        let signed = verify::signed(app, query, &request.body, inbox.clock.wall_ms(), fresh)?;
        let same_bytes = signed.same_bytes;
        // A repeat is not decrypted again.
        if let Some(accepted) = self.taker.seen(&same_bytes).await {
            return self.reply(app, accepted);
        }
        let accepted = match verify::opened(app, signed)? {
            None => Accepted::CheckUrl,
            Some(verified) => self.taker.store(app, verified, &[], None).await.0,
        };
        self.reply(app, accepted)
    }

    fn reply(&self, app: &App, accepted: Accepted) -> Result<Done, Refused> {
        let (result, reason) = match accepted {
            Accepted::New => ("accepted", "stored"),
            Accepted::Duplicate => ("duplicate", "stored"),
            Accepted::CheckUrl => ("accepted", "check_url"),
            Accepted::NotStored => return Ok(not_stored()),
        };
        let keys = app.keys.as_ref().ok_or(Refused::Signature)?;
        let now_ms = self.taker.inbox.clock.wall_ms();
        // One call to the operating system for both.
        let [first, nonce] = random::halves();
        let body = keys.seal_success(&first, &random::letters(&nonce), now_ms);
        let answer = problem::with_body(200, "application/json", body);
        Ok((answer, result, reason))
    }

    async fn click(&self, app: &App, request: &Request) -> Result<Done, Refused> {
        let (now_ms, fresh_ms) = self.now_and_freshness();
        verify::card(app, &request.head, now_ms, fresh_ms)?;
        let text = utf8(&request.body)?;
        let same_bytes = Self::same_request(app, "x-ddpaas-signature-timestamp", request);
        let taken = self
            .taker
            .click(app, text, same_bytes, Patience::Full)
            .await;
        Ok(answered(taken.map_err(Refused::Event)?))
    }

    async fn message(&self, app: &App, request: &Request) -> Result<Done, Refused> {
        let (now_ms, fresh_ms) = self.now_and_freshness();
        verify::robot(app, &request.head, now_ms, fresh_ms)?;
        let text = utf8(&request.body)?;
        let same_bytes = Self::same_request(app, "timestamp", request);
        let taken = self
            .taker
            .message(app, text, same_bytes, Replies::InTheAnswer)
            .await;
        Ok(answered(taken.map_err(Refused::Event)?))
    }

    fn now_and_freshness(&self) -> (u64, u64) {
        let fresh_ms = self.taker.inbox.settings.load().fresh_header_ms;
        (self.taker.inbox.clock.wall_ms(), fresh_ms)
    }

    /// The key of a request that is sent again as it was.
    fn same_request(app: &App, time: &str, request: &Request) -> [u8; 16] {
        let time = request.head.headers.get(time);
        let time = time.map_or(&b""[..], hyper::header::HeaderValue::as_bytes);
        digest(&[b"request", app.name.as_bytes(), time, &request.body])
    }
}

fn utf8(body: &[u8]) -> Result<&str, Refused> {
    std::str::from_utf8(body).map_err(|_| Refused::Utf8)
}

fn answered(body: Option<String>) -> Done {
    match body {
        Some(body) => {
            let answer = problem::with_body(200, "application/json", body);
            (answer, "accepted", "stored")
        }
        None => not_stored(),
    }
}

fn not_stored() -> Done {
    let problem = Problem::unavailable("not_stored", "the callback could not be stored", 10);
    (problem.answer(), "failed", "not_stored")
}
