//! One attempt: an event as it is stored, signed, posted, and what came of it. An answer to somebody who waits
//! is passed on before the event counts as delivered.

use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::Method;
use tokio::sync::{mpsc, oneshot};

use super::answer::{Answer, Given, Late};
use super::asking::Asking;
use super::{Settings, Upstream};
use crate::clock::Clock;
use crate::delivery::breaker::Failure;
use crate::delivery::event::{Ask, Forwarding, Stored};
use crate::delivery::record;
use crate::delivery::verdict::Reason;
use crate::dingtalk::signature::hmac_sha256;
use crate::faults::point;
use crate::http::transport::{Call, Reply, Transport};
use crate::journal::queue::Queue;
use crate::journal::{Batch, Journal};
use crate::metrics;

/// DingTalk has taken what we answered to a callback this long after we did, in milliseconds.
const SHOWN_MS: u64 = 500;

/// What came of an attempt.
#[derive(Debug)]
pub(super) enum Outcome {
    Delivered {
        /// To the one who answers.
        answered: bool,
    },
    Failed {
        reason: Reason,
        retry_after_s: Option<u64>,
        /// How the upstream is in trouble; `None`: only this event is.
        upstream: Option<Failure>,
    },
    Gone,
    /// The event cannot be read back.
    Damaged,
}

/// Where an attempt finds what it needs.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) settings: Arc<ArcSwap<Settings>>,
    pub(super) journal: Journal,
    pub(super) queue: Arc<Queue<Forwarding>>,
    pub(super) transport: Arc<Transport>,
    pub(super) clock: Clock,
    pub(super) asking: Arc<Asking>,
    pub(super) late: mpsc::Sender<Late>,
}

impl Delivery {
    /// Posts event `seq` to the upstream `name`.
    pub(super) async fn deliver(&self, name: &str, seq: u64) -> Outcome {
        let settings = self.settings.load_full();
        let Some(upstream) = settings.upstreams.iter().find(|up| up.name == name) else {
            return failed("the upstream was removed".to_owned(), None, None);
        };
        let stored = match self.event(seq).await {
            Ok(stored) => stored,
            Err(outcome) => return outcome,
        };
        let started_us = self.clock.mono_us();
        let ask = stored.ask.as_ref().filter(|_| upstream.answers);
        let outcome = self.post(upstream, seq, &stored, ask).await;
        if ask.is_some() && !matches!(outcome, Outcome::Delivered { .. }) {
            self.asking.not_now(seq);
        }
        let label = match &outcome {
            Outcome::Delivered { .. } => "delivered",
            Outcome::Gone => "gone",
            Outcome::Failed { .. } | Outcome::Damaged => "failed",
        };
        metrics::attempt("inbound", name, label, self.clock.mono_us() - started_us);
        outcome
    }

    /// The event: of one that somebody waits for what was stored, of others what is on disk, which costs a
    /// wait for the tables.
    async fn event(&self, seq: u64) -> Result<Arc<Stored>, Outcome> {
        if let Some(stored) = self.asking.event(seq) {
            return Ok(stored);
        }
        let key = seq.to_be_bytes().to_vec();
        let payload = match self.journal.get(self.queue.place().payload, key).await {
            Ok(payload) => payload,
            Err(error) => {
                tracing::error!(%error, "an event cannot be read now; it is tried again");
                return Err(failed(error.to_string(), None, None));
            }
        };
        match payload.map(|bytes| (record::decode(&bytes), bytes)) {
            Some((Ok(stored), _)) => Ok(Arc::new(stored)),
            Some((Err(why), bytes)) => {
                let mut batch = Batch::default();
                let table = self.queue.place().payload;
                batch.quarantine(table, &seq.to_be_bytes(), &bytes, &why);
                self.journal.submit(batch, |_| ());
                Err(Outcome::Damaged)
            }
            // Another upstream was first.
            None => Err(Outcome::Damaged),
        }
    }

    /// Gives the answer to whoever waits for it. If nobody does any more, it goes out by itself; the
    /// event is not settled before that is certain to happen.
    async fn pass_on(&self, seq: u64, stored: &Stored, ask: &Ask, answer: Answer) -> Outcome {
        let (told, since_ms) = (answer.clone(), self.clock.wall_ms());
        let certain = match (self.asking.answer(seq, answer).await, ask, told) {
            (Err(answer), ..) => self.send_on(stored, ask, answer, "late").await,
            (Ok(()), Ask::Click { .. }, card @ Answer::Card(_)) => {
                point("answer.after");
                // Should this be cut off, the event and its answer come again, and the card is changed once more.
                self.hand_over(stored, ask, card, Given::InTime { since_ms })
                    .await
            }
            (Ok(()), ..) => {
                point("answer.after");
                true
            }
        };
        if certain {
            Outcome::Delivered { answered: true }
        } else {
            failed("the answer could not be stored".to_owned(), None, None)
        }
    }

    /// Sends on what there is to say when nobody waits any more. Returns whether it is certain to go out.
    async fn send_on(
        &self,
        stored: &Stored,
        ask: &Ask,
        answer: Answer,
        result: &'static str,
    ) -> bool {
        let settings = self.settings.load_full();
        let app = settings.apps.get(&stored.app);
        let Some(answer) = app.and_then(|app| answer.when_late(ask, &app.pending)) else {
            return true;
        };
        metrics::answer(ask.label(), result);
        // The wall clock may have been set back since.
        let accepted_ms = stored.accepted_ms.min(self.clock.wall_ms());
        let given = Given::Late {
            not_before_ms: accepted_ms + settings.answer_deadline_ms + SHOWN_MS,
        };
        point("late.before");
        let certain = self.hand_over(stored, ask, answer, given).await;
        if certain {
            point("late.after");
        }
        certain
    }

    /// Lets the outbound side have an answer; the event is not settled before that is on disk.
    async fn hand_over(&self, stored: &Stored, ask: &Ask, answer: Answer, given: Given) -> bool {
        let (done, is_done) = oneshot::channel();
        let late = Late {
            app: stored.app.clone(),
            ask: ask.clone(),
            answer,
            given,
            done,
        };
        self.late.send(late).await.is_ok() && is_done.await.unwrap_or(false)
    }

    /// Event `seq` is settled, and nobody answers. Returns whether whoever asked is certain not to go on
    /// waiting.
    pub(super) async fn unanswered(&self, seq: u64) -> bool {
        let key = seq.to_be_bytes().to_vec();
        let Ok(payload) = self.journal.get(self.queue.place().payload, key).await else {
            return false;
        };
        let stored = payload.and_then(|bytes| record::decode::<Stored>(&bytes).ok());
        let asked = stored
            .as_ref()
            .and_then(|stored| Some((stored, stored.ask.as_ref()?)));
        match asked {
            Some((stored, ask)) => self.send_on(stored, ask, Answer::Nothing, "never").await,
            None => true,
        }
    }

    async fn post(
        &self,
        upstream: &Upstream,
        seq: u64,
        stored: &Stored,
        ask: Option<&Ask>,
    ) -> Outcome {
        let timestamp = (self.clock.wall_ms() / 1_000).to_string();
        let body = stored.body.get();
        let signature = signature(upstream, &stored.id, &timestamp, body);
        let mut headers = vec![
            (
                "content-type",
                "application/cloudevents+json; charset=utf-8",
            ),
            ("webhook-id", stored.id.as_str()),
            ("webhook-timestamp", timestamp.as_str()),
            ("webhook-signature", signature.as_str()),
            ("user-agent", concat!("dingd/", env!("CARGO_PKG_VERSION"))),
        ];
        let left_ms = ask.and_then(|_| self.asking.left_ms(seq, self.clock.mono_ms()));
        let left_ms = left_ms.map(|left_ms| left_ms.to_string());
        if let Some(left_ms) = &left_ms {
            headers.push(("dingd-deadline-ms", left_ms));
        }
        let call = Call {
            origin: &upstream.origin,
            method: Method::POST,
            path: &upstream.path,
            headers: &headers,
            body: Bytes::copy_from_slice(body.as_bytes()),
            timeout_ms: upstream.timeout_ms,
        };
        point("event.before");
        let answer = self.transport.call(call).await;
        point("event.after");
        match answer {
            Ok(reply) if (200..300).contains(&reply.status) => match ask {
                Some(ask) => {
                    let answer = read_answer(upstream, ask, &reply);
                    self.pass_on(seq, stored, ask, answer).await
                }
                None => Outcome::Delivered { answered: false },
            },
            Ok(reply) if reply.status == 410 => Outcome::Gone,
            Ok(reply) => {
                // A 4xx is about this event, but for those that ask for patience.
                let patience = matches!(reply.status, 408 | 425 | 429);
                let down = patience || !(400..500).contains(&reply.status);
                let down = down.then_some(Failure::Server);
                failed(format!("HTTP {}", reply.status), reply.retry_after_s, down)
            }
            Err(failure) => {
                let kind = if failure.request_may_have_left {
                    Failure::Server
                } else {
                    Failure::Connection
                };
                failed(failure.detail, None, Some(kind))
            }
        }
    }
}

/// An answer that cannot be used is none: the event was taken, and sending it again would change nothing.
fn read_answer(upstream: &Upstream, ask: &Ask, reply: &Reply) -> Answer {
    if !reply.body_complete {
        tracing::warn!(upstream = %upstream.name, "the answer was cut off or too long");
        metrics::answer(ask.label(), "unusable");
        return Answer::Nothing;
    }
    Answer::read(ask, reply.status, &reply.body).unwrap_or_else(|fault| {
        tracing::warn!(upstream = %upstream.name, fault, "the upstream's answer cannot be used; the event counts as taken");
        metrics::answer(ask.label(), "unusable");
        Answer::Nothing
    })
}

fn failed(detail: String, retry_after_s: Option<u64>, upstream: Option<Failure>) -> Outcome {
    let reason = Reason::new(
        "upstream_failed",
        detail,
        "检查告警平台是否在线、[[upstreams]] 的 url 与 secret 是否正确；恢复后自动补发。",
        "Check that the platform is up and that url and secret in [[upstreams]] are right; events follow when it is back.",
    );
    Outcome::Failed {
        reason,
        retry_after_s,
        upstream,
    }
}

/// Standard Webhooks: every current key signs, so that keys can be rotated without a gap.
fn signature(upstream: &Upstream, id: &str, timestamp: &str, body: &str) -> String {
    let message = format!("{id}.{timestamp}.{body}");
    let signatures: Vec<_> = upstream
        .secrets
        .iter()
        .map(|key| {
            format!(
                "v1,{}",
                STANDARD.encode(hmac_sha256(key, message.as_bytes()))
            )
        })
        .collect();
    signatures.join(" ")
}
