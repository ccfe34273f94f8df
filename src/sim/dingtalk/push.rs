//! One push to the daemon's callback door, and what DingTalk would think of the reply.

use std::time::Duration;

use super::callback::{Callback, Seal};
use super::cards::Returned;
use crate::sim::clock;
use crate::sim::post::{self, Reply};

/// What became of a push.
#[derive(Debug, Clone)]
pub struct PushResult {
    /// HTTP status; 0 when no answer came.
    pub status: u16,
    /// Whether DingTalk would count the event as delivered: HTTP 200 and JSON with exactly the
    /// documented members as strings, rightly signed, that decrypts to `success`.
    pub acknowledged: bool,
    /// From before the connection to after the body. DingTalk gives up after 1.5 s or so; the
    /// box waits longer and leaves that judgement to the reader.
    pub elapsed_ms: u64,
    /// The reply as text.
    pub body: String,
    /// Why it was not acknowledged.
    pub error: Option<String>,
}

/// Posts a sealed event.
pub(super) async fn event(seal: &Seal, url: &str, callback: &Callback) -> PushResult {
    let mark = if url.contains('?') { '&' } else { '?' };
    let url = format!("{url}{mark}{}", callback.query);
    timed(&url, &[], &callback.body, |reply| judge(seal, reply)).await
}

/// Longer than any limit that DingTalk documents: a late answer is then still seen.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// One call that wants an answer; after `patience` the box hangs up.
pub(super) async fn call(
    url: &str,
    headers: &[(&'static str, String)],
    body: String,
    patience: Duration,
) -> Result<Returned, String> {
    let reply = tokio::time::timeout(patience, post::post(url, headers, body))
        .await
        .map_err(|_| format!("no answer within {} ms", patience.as_millis()))??;
    Ok(Returned {
        status: reply.status,
        body: reply.body,
    })
}

async fn timed(
    url: &str,
    headers: &[(&'static str, String)],
    body: &str,
    judge: impl FnOnce(&Reply) -> Result<(), String>,
) -> PushResult {
    let start = clock::now();
    let reply = post::post(url, headers, body.to_owned()).await;
    let elapsed_ms = clock::millis(clock::now().duration_since(start));
    match reply {
        Ok(reply) => {
            let error = judge(&reply).err();
            PushResult {
                status: reply.status,
                acknowledged: error.is_none(),
                elapsed_ms,
                body: reply.body,
                error,
            }
        }
        Err(error) => PushResult {
            status: 0,
            acknowledged: false,
            elapsed_ms,
            body: String::new(),
            error: Some(error),
        },
    }
}

fn is_200(reply: &Reply) -> Result<(), String> {
    if reply.status == 200 {
        Ok(())
    } else {
        Err(format!("status {}", reply.status))
    }
}

fn judge(seal: &Seal, reply: &Reply) -> Result<(), String> {
    is_200(reply)?;
    let media = reply
        .content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim();
    if !media.eq_ignore_ascii_case("application/json") {
        return Err(format!("content type {:?}", reply.content_type));
    }
    let text = seal.open_reply(&reply.body)?;
    if text == "success" {
        Ok(())
    } else {
        Err(format!("it says {text:?}"))
    }
}
