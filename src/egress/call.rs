//! One request to DingTalk, one verdict.

use bytes::Bytes;
use hyper::Method;

use super::Egress;
use crate::clock::parse_http_date_s;
use crate::delivery::verdict::Verdict;
use crate::dingtalk::answer::{self, Answer, Api, NoAnswer};
use crate::http::transport::{Call, Origin, Reply};
use crate::secret::Secret;

/// A request to DingTalk.
#[derive(Debug)]
pub struct Request {
    /// Which call.
    pub api: Api,
    /// The host of a session of the robot, if it goes by one: a webhook that lives for an hour and a half.
    pub session: Option<Origin>,
    /// Path with query; may hold a secret.
    pub path: String,
    /// The access token, for the new generation.
    pub token: Option<Secret>,
    /// JSON.
    pub body: Bytes,
}

/// What came of it.
#[derive(Debug)]
pub struct Judged {
    /// For the message.
    pub verdict: Verdict,
    /// The answer, if there was one.
    pub reply: Option<Reply>,
}

impl Egress {
    /// Makes the call, which must hold a permit, and judges it.
    pub async fn call(&self, request: Request) -> Judged {
        let settings = self.settings.load_full();
        let own = match request.api {
            Api::WebhookSend | Api::UserLookup => &settings.oapi,
            _ => &settings.api,
        };
        let origin = request.session.as_ref().unwrap_or(own);
        let mut headers = vec![
            ("content-type", "application/json"),
            ("accept", "application/json"),
        ];
        if let Some(token) = &request.token {
            headers.push(("x-acs-dingtalk-access-token", token.expose()));
        }
        let method = match request.api {
            Api::CardUpdate | Api::LegacyCardUpdate => Method::PUT,
            _ => Method::POST,
        };
        let started_us = self.clock.mono_us();
        let result = self
            .transport
            .call(Call {
                origin,
                method,
                path: &request.path,
                headers: &headers,
                body: request.body.clone(),
                timeout_ms: settings.timeout_ms,
            })
            .await;
        let (verdict, code, reply) = match result {
            Ok(reply) => {
                let answer = Answer {
                    status: reply.status,
                    body: &reply.body,
                    body_complete: reply.body_complete,
                    retry_after_s: reply.retry_after_s,
                };
                self.note_skew(&reply);
                (
                    answer::judge(request.api, &answer),
                    answer::code_label(&answer),
                    Some(reply),
                )
            }
            Err(failure) => {
                let failure = NoAnswer {
                    request_may_have_left: failure.request_may_have_left,
                    detail: &failure.detail,
                };
                (answer::judge_no_answer(request.api, &failure), "none", None)
            }
        };
        let label = match &request.session {
            Some(_) => "robot.sendBySession",
            None => request.api.label(),
        };
        crate::metrics::verdict(label, verdict.label(), code);
        let us = self.clock.mono_us() - started_us;
        crate::metrics::attempt("outbound", label, verdict.label(), us);
        Judged { verdict, reply }
    }

    /// Whether `origin` is one of DingTalk's hosts.
    pub fn is_dingtalk(&self, origin: &Origin) -> bool {
        let settings = self.settings.load();
        *origin == settings.api || *origin == settings.oapi
    }

    fn note_skew(&self, reply: &Reply) {
        if let Some(theirs_s) = reply.date.as_deref().and_then(parse_http_date_s) {
            let ours_s = self.clock.wall_ms() / 1_000;
            #[expect(clippy::cast_precision_loss, reason = "exact for 200 million years")]
            let skew_s = theirs_s as f64 - ours_s as f64;
            crate::metrics::clock_skew(skew_s);
            if skew_s.abs() > 300.0 {
                let text = format!(
                    "clock is {skew_s} s off DingTalk's; 校时后恢复 (chrony/ntpd) / set this machine's clock (chrony, ntpd)"
                );
                self.health.degraded("clock_skew", text);
            } else {
                self.health.recovered("clock_skew");
            }
        }
    }
}
