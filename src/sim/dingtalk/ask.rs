//! A request as the box reads it, and the envelopes of both generations that it answers in.

use std::time::Instant;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::sim::clock;
use crate::sim::server::Answer;

/// A request that has arrived in full.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) at: Instant,
    pub(super) at_ms: u64,
    pub(super) method: String,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) content_type: Option<String>,
    pub(super) accept: Option<String>,
    pub(super) token: Option<String>,
    pub(super) body: Bytes,
}

/// Query parameters whose values are credentials.
const SECRET: [&str; 5] = ["access_token", "appsecret", "sign", "session", "ticket"];

impl Ask {
    /// Stands for something that is judged like a request and is none.
    pub(super) fn about(what: &str) -> Self {
        Self {
            at: clock::now(),
            at_ms: 0,
            method: "the".to_owned(),
            path: what.to_owned(),
            query: String::new(),
            content_type: None,
            accept: None,
            token: None,
            body: Bytes::new(),
        }
    }

    /// A query parameter, decoded once the way Java servers do it: a bare `+` is a space, which
    /// is how an unescaped signature gets refused.
    pub(super) fn parameter(&self, name: &str) -> Option<String> {
        self.query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key == name).then(|| decode(value))
        })
    }

    /// Path and query without credentials.
    pub(super) fn shown_path(&self) -> String {
        if self.query.is_empty() {
            return self.path.clone();
        }
        let pairs = self
            .query
            .split('&')
            .map(|pair| match pair.split_once('=') {
                Some((key, _)) if SECRET.contains(&key) => format!("{key}=***"),
                _ => pair.to_owned(),
            });
        format!("{}?{}", self.path, pairs.collect::<Vec<_>>().join("&"))
    }

    /// Whether the media type is JSON, with or without parameters.
    pub(super) fn is_json(&self) -> bool {
        self.content_type.as_deref().is_some_and(|value| {
            let media = value.split(';').next().unwrap_or_default();
            media.trim().eq_ignore_ascii_case("application/json")
        })
    }

    /// The body as a JSON object.
    pub(super) fn object(&self) -> Option<Map<String, Value>> {
        match serde_json::from_slice(&self.body) {
            Ok(Value::Object(object)) => Some(object),
            _ => None,
        }
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let mut ahead = rest.clone();
                if let (Some(high), Some(low)) = (digit(ahead.next()), digit(ahead.next())) {
                    bytes.push(u8::try_from(high * 16 + low).unwrap_or_default());
                    rest = ahead;
                } else {
                    bytes.push(byte);
                }
            }
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// HTTP 200 with JSON.
pub(super) fn ok(body: &Value) -> Answer {
    reply(200, body.to_string())
}

/// An error of the new generation.
pub(super) fn error(status: u16, code: &str, message: &str) -> Answer {
    reply(
        status,
        json!({"code": code, "requestid": request_id(), "message": message}).to_string(),
    )
}

/// An error of the legacy generation, which is an HTTP 200.
pub(super) fn errcode(code: i64, message: &str) -> Answer {
    reply(
        200,
        json!({"errcode": code, "errmsg": message, "request_id": request_id()}).to_string(),
    )
}

/// JSON with any status.
pub(super) fn reply(status: u16, body: String) -> Answer {
    typed(status, "application/json", body)
}

/// Any answer of the box.
pub(super) fn typed(status: u16, content_type: &str, body: String) -> Answer {
    Answer {
        status,
        content_type: content_type.to_owned(),
        headers: vec![
            ("server", "DingTalk/1.0.0".to_owned()),
            ("x-acs-request-id", request_id()),
        ],
        body,
    }
}

/// Five groups of upper-case digits, as in every published error.
pub(super) fn request_id() -> String {
    let digits = clock::hex(&clock::random::<16>()).to_uppercase();
    let mut id = String::with_capacity(36);
    for (i, digit) in digits.chars().enumerate() {
        if [8, 12, 16, 20].contains(&i) {
            id.push('-');
        }
        id.push(digit);
    }
    id
}

/// The `code` or `errcode` of an answer, as text.
pub(super) fn code_of(body: &str) -> Option<String> {
    let value: Value = serde_json::from_str(body).ok()?;
    match value.get("code").or_else(|| value.get("errcode"))? {
        Value::String(code) => Some(code.clone()),
        other => Some(other.to_string()),
    }
}

/// A member that is text and not empty.
pub(super) fn text<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    object
        .get(name)
        .and_then(Value::as_str)
        .filter(|text| !text.is_empty())
}
