//! Answers: JSON bodies, and RFC 9457 problem documents with the cure in both languages.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

use crate::delivery::verdict::Reason;
use crate::dingtalk::answer::VendorError;

/// A complete answer.
pub type Answer = Response<Full<Bytes>>;

/// A refusal. `slug` is stable and part of the API: `urn:dingd:problem:<slug>`.
#[derive(Debug, Clone)]
pub struct Problem {
    status: StatusCode,
    slug: &'static str,
    title: &'static str,
    detail: String,
    retry_after_s: Option<u64>,
    reason: Option<&'static str>,
    fix: Option<(String, String)>,
    dingtalk: Option<VendorError>,
}

impl Problem {
    /// A refusal with an HTTP status, a slug, a fixed title and what was seen.
    pub fn new(
        status: u16,
        slug: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            slug,
            title,
            detail: detail.into(),
            retry_after_s: None,
            reason: None,
            fix: None,
            dingtalk: None,
        }
    }

    /// 404 for a path that this door does not have.
    pub fn no_such_route() -> Self {
        Self::new(
            404,
            "not_found",
            "No such resource",
            "this door has no such path",
        )
    }

    /// 405.
    pub fn method_not_allowed(allowed: &str) -> Self {
        Self::new(
            405,
            "method_not_allowed",
            "Method not allowed",
            format!("use {allowed}"),
        )
    }

    /// 503 that a client should try again (reliability contract §6).
    pub fn unavailable(
        reason: &'static str,
        detail: impl Into<String>,
        retry_after_s: u64,
    ) -> Self {
        let mut problem = Self::new(503, reason, "Not accepted now", detail);
        problem.retry_after_s = Some(retry_after_s);
        problem.reason = Some(reason);
        problem
    }

    /// Says when to try again.
    #[must_use]
    pub fn retry_after_s(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// Says how to cure it.
    #[must_use]
    pub fn fix(mut self, zh: impl Into<String>, en: impl Into<String>) -> Self {
        self.fix = Some((zh.into(), en.into()));
        self
    }

    /// Says what DingTalk itself said.
    #[must_use]
    pub fn dingtalk(self, dingtalk: Option<VendorError>) -> Self {
        Self { dingtalk, ..self }
    }

    /// A refusal for a reason that messages can also end with.
    pub fn from_reason(
        status: u16,
        slug: &'static str,
        title: &'static str,
        reason: &Reason,
    ) -> Self {
        Self::new(status, slug, title, reason.detail.clone())
            .fix(reason.fix_zh.clone(), reason.fix_en.clone())
    }

    /// The slug, for metrics.
    pub fn slug(&self) -> &'static str {
        self.slug
    }

    /// What was seen.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// Whether the same may be taken later.
    pub fn is_retryable(&self) -> bool {
        self.retry_after_s.is_some()
    }

    /// The document as an answer.
    pub fn answer(&self) -> Answer {
        #[derive(Serialize)]
        struct Document<'a> {
            #[serde(rename = "type")]
            kind: String,
            title: &'a str,
            status: u16,
            detail: &'a str,
            retryable: bool,
            #[serde(skip_serializing_if = "Option::is_none")]
            retry_after_s: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            reason: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            fix_zh: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            fix_en: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            dingtalk: Option<&'a VendorError>,
        }
        let document = Document {
            kind: format!("urn:dingd:problem:{}", self.slug),
            title: self.title,
            status: self.status.as_u16(),
            detail: &self.detail,
            retryable: self.is_retryable(),
            retry_after_s: self.retry_after_s,
            reason: self.reason,
            fix_zh: self.fix.as_ref().map(|(zh, _)| zh.as_str()),
            fix_en: self.fix.as_ref().map(|(_, en)| en.as_str()),
            dingtalk: self.dingtalk.as_ref(),
        };
        let mut answer = json(self.status.as_u16(), &document);
        let headers = answer.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(seconds) = self.retry_after_s {
            headers.insert(hyper::header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        answer
    }
}

/// A JSON answer.
pub fn json(status: u16, value: &impl Serialize) -> Answer {
    let body = serde_json::to_vec(value).unwrap_or_default();
    with_body(status, "application/json", body)
}

/// An answer with any body.
pub fn with_body(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// An answer without a body.
pub fn empty(status: u16) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer
}

/// The same answer with one more header; a value that is not a header value is left out.
#[must_use]
pub fn with_header(mut answer: Answer, name: &'static str, value: &str) -> Answer {
    if let Ok(value) = HeaderValue::from_str(value) {
        answer
            .headers_mut()
            .insert(HeaderName::from_static(name), value);
    }
    answer
}
