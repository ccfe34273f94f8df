//! An alert platform in a box: receives events, verifies them, and keeps every attempt.

mod verify;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::Request;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use self::verify::{Envelope, Key};
use super::clock;
use super::server::{self, Answer, Server, Service};

/// How the platform can be made to misbehave, all off by default.
#[derive(Debug, Clone, Default)]
pub struct PlatformSwitches {
    /// Answer every event with this status, whatever it is worth.
    pub status: Option<u16>,
    /// Take the event at once and answer this much later.
    pub slow_ms: u64,
    /// Close after the headers: nothing recorded.
    pub cut_before: bool,
    /// Record, then close without an answer.
    pub cut_after: bool,
    /// Send a `Retry-After` header with each answer.
    pub retry_after_s: Option<u64>,
    /// The body of an answer of 2xx; `{}` when absent.
    pub answer: Option<String>,
    /// Decides by the event, if it wants to; else the other switches do.
    pub reflex: Option<Reflex>,
}

/// What somebody at the platform would do about an event: from the event to a reaction.
#[derive(Clone)]
pub struct Reflex(Arc<Act>);

type Act = dyn Fn(&Value) -> Option<Reaction> + Send + Sync;

/// An answer to an event.
#[derive(Debug, Clone)]
pub struct Reaction {
    /// HTTP status.
    pub status: u16,
    /// The body.
    pub body: Value,
    /// How much later than the event it goes out, in milliseconds.
    pub slow_ms: u64,
}

impl Reflex {
    /// Acts as `act` says.
    pub fn new(act: impl Fn(&Value) -> Option<Reaction> + Send + Sync + 'static) -> Self {
        Self(Arc::new(act))
    }
}

impl std::fmt::Debug for Reflex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reflex")
    }
}

impl Reaction {
    /// At once and with 200.
    pub fn now(body: Value) -> Self {
        Self {
            status: 200,
            body,
            slow_ms: 0,
        }
    }
}

/// One attempt to deliver an event.
#[derive(Debug, Clone)]
pub struct Received {
    /// Milliseconds since the platform started.
    pub at_ms: u64,
    /// Path and query.
    pub path: String,
    /// The `webhook-id` header, or empty.
    pub id: String,
    /// The event's `type`, or empty.
    pub kind: String,
    /// The body as JSON, or null.
    pub body: Value,
    /// The body byte for byte.
    pub raw_body: Vec<u8>,
    /// The `webhook-timestamp` header, or empty.
    pub attempt_headers_timestamp: String,
    /// The `dingd-deadline-ms` header, if any.
    pub deadline_ms: Option<String>,
    /// Whether signature, time and shape are right, and what is wrong first.
    pub valid: Result<(), String>,
    /// HTTP status answered; 0 when the connection was closed instead.
    pub answered: u16,
}

/// A handle to a running platform; clones share it, and it ends with the last of them.
#[derive(Debug, Clone)]
pub struct Platform {
    running: Arc<Running>,
}

#[derive(Debug)]
struct Running {
    stage: Arc<Stage>,
    server: Server,
}

#[derive(Debug)]
struct Stage {
    key: Option<Key>,
    started: Instant,
    desk: Mutex<Desk>,
}

#[derive(Debug, Default)]
struct Desk {
    switches: PlatformSwitches,
    attempts: Vec<Received>,
}

impl Platform {
    /// Receives at any path. With a secret that is not `whsec_` and base64, nothing verifies.
    /// Needs a tokio runtime.
    pub fn start(secret: &str, listener: TcpListener) -> Self {
        let stage = Arc::new(Stage {
            key: Key::parse(secret),
            started: clock::now(),
            desk: Mutex::default(),
        });
        let server = Server::start(listener, Arc::clone(&stage));
        Self {
            running: Arc::new(Running { stage, server }),
        }
    }

    /// The base URL, without a slash at the end.
    pub fn url(&self) -> String {
        self.running.server.url()
    }

    /// Closes the listener and every connection; what was recorded can still be read.
    pub async fn stop(&self) {
        self.running.server.stop().await;
    }

    /// Replaces all switches.
    pub fn set(&self, switches: PlatformSwitches) {
        self.running.stage.desk().switches = switches;
    }

    /// The events that were answered with 2xx, in order, each attempt of its own.
    pub fn events(&self) -> Vec<Received> {
        let desk = self.running.stage.desk();
        desk.attempts
            .iter()
            .filter(|it| (200..300).contains(&it.answered))
            .cloned()
            .collect()
    }

    /// Every attempt, in order of arrival.
    pub fn attempts(&self) -> Vec<Received> {
        self.running.stage.desk().attempts.clone()
    }
}

impl Stage {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(
        &self,
        path: String,
        deadline_ms: Option<String>,
        envelope: Envelope,
    ) -> (Option<Answer>, u64) {
        let valid = envelope.verify(self.key.as_ref(), clock::wall_ms() / 1000);
        let body: Value = serde_json::from_slice(&envelope.body).unwrap_or_default();
        let mut desk = self.desk();
        let reflex = desk.switches.reflex.clone().filter(|_| valid.is_ok());
        let reaction = reflex.and_then(|reflex| (reflex.0)(&body));
        let status = desk
            .switches
            .status
            .unwrap_or(if valid.is_ok() { 200 } else { 400 });
        let status = reaction.as_ref().map_or(status, |act| act.status);
        let slow_ms = reaction
            .as_ref()
            .map_or(desk.switches.slow_ms, |act| act.slow_ms);
        let cut = desk.switches.cut_after;
        let text = match &valid {
            _ if reaction.is_some() => reaction.map(|act| act.body.to_string()).unwrap_or_default(),
            _ if (200..300).contains(&status) => desk
                .switches
                .answer
                .clone()
                .unwrap_or_else(|| "{}".to_owned()),
            Ok(()) => json!({"error": "switched to fail"}).to_string(),
            Err(error) => json!({"error": error}).to_string(),
        };
        let retry_after = desk.switches.retry_after_s;
        desk.attempts.push(Received {
            at_ms: clock::millis(clock::now().duration_since(self.started)),
            path,
            id: envelope.id.unwrap_or_default(),
            kind: body
                .get("type")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned(),
            body,
            raw_body: envelope.body.to_vec(),
            attempt_headers_timestamp: envelope.timestamp.unwrap_or_default(),
            deadline_ms,
            valid,
            answered: if cut { 0 } else { status },
        });
        let answer = (!cut).then(|| Answer {
            status,
            content_type: "application/json".to_owned(),
            headers: retry_after
                .map(|s| ("retry-after", s.to_string()))
                .into_iter()
                .collect(),
            body: text,
        });
        (answer, slow_ms)
    }
}

impl Service for Stage {
    fn admits(&self) -> bool {
        true
    }

    async fn serve(self: Arc<Self>, request: Request<Incoming>) -> Option<Answer> {
        if self.desk().switches.cut_before {
            return None;
        }
        let path = request
            .uri()
            .path_and_query()
            .map_or_else(String::new, ToString::to_string);
        let deadline = server::header(&request, "dingd-deadline-ms");
        let mut envelope = Envelope {
            method: request.method().as_str().to_owned(),
            content_type: server::header(&request, "content-type"),
            id: server::header(&request, "webhook-id"),
            timestamp: server::header(&request, "webhook-timestamp"),
            signature: server::header(&request, "webhook-signature"),
            body: bytes::Bytes::new(),
        };
        envelope.body = server::body(request.into_body()).await?;
        let (answer, slow_ms) = self.answer(path, deadline, envelope);
        tokio::time::sleep(Duration::from_millis(slow_ms)).await;
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::post::post;

    #[tokio::test]
    async fn an_unsigned_event_is_kept_as_an_attempt_and_not_as_an_event() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let platform = Platform::start("whsec_c2VjcmV0", listener);
        let url = format!("{}/events?x=1", platform.url());
        let reply = post(&url, &[], "{}".to_owned()).await.unwrap();
        assert_eq!(reply.status, 400);
        assert!(platform.events().is_empty());
        let attempts = platform.attempts();
        assert_eq!(attempts[0].valid, Err("no webhook-id".to_owned()));
        assert_eq!(
            (attempts[0].path.as_str(), attempts[0].answered),
            ("/events?x=1", 400)
        );
        platform.set(PlatformSwitches {
            cut_after: true,
            ..PlatformSwitches::default()
        });
        assert!(post(&url, &[], "{}".to_owned()).await.is_err());
        assert_eq!(platform.attempts()[1].answered, 0);
    }
}
