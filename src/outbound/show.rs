//! How a message looks from outside: in the API, in events, on the command line.

use serde::Serialize;

use super::{Live, Message, To};
use crate::clock::rfc3339;
use crate::delivery::id::MessageId;
use crate::delivery::state::{CallOutcome, Priority, RecipientOutcome, State};
use crate::delivery::verdict::Reason;
use crate::dingtalk::message::Content;

/// `GET /v1/messages/{id}`.
#[derive(Debug, Serialize)]
pub struct Shown<'a> {
    id: MessageId,
    state: State,
    #[serde(skip_serializing_if = "str::is_empty")]
    app: &'a str,
    priority: Priority,
    to: &'a To,
    #[serde(skip_serializing_if = "Option::is_none")]
    out_track_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    merge_key: Option<&'a str>,
    client: &'a str,
    accepted_at: String,
    expires_at: String,
    finished_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_attempt_at: Option<String>,
    attempts: u32,
    reordered: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<MessageId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    merged_into: Option<MessageId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parts: Option<usize>,
    #[serde(skip_serializing_if = "<[MessageId]>::is_empty")]
    members: &'a [MessageId],
    reason: Option<&'a Reason>,
    receipts: Vec<Receipt<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a Content>,
}

#[derive(Debug, Serialize)]
struct Receipt<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    robot: Option<&'a str>,
    process_query_key: Option<&'a str>,
    recipients: Option<Vec<Outcome<'a>>>,
    outcome: CallOutcome,
}

#[derive(Debug, Serialize)]
struct Outcome<'a> {
    id: &'a str,
    outcome: RecipientOutcome,
}

/// A message without its content.
pub fn message<'a>(message: &'a Message, live: &'a Live) -> Shown<'a> {
    let progress = &live.progress;
    let receipts = progress
        .calls
        .iter()
        .filter(|call| call.outcome != CallOutcome::Pending || call.attempts > 0)
        .map(|call| Receipt {
            robot: call.carrier.as_deref(),
            process_query_key: call.handle.as_deref(),
            recipients: (!call.recipients.is_empty()).then(|| {
                call.recipients
                    .iter()
                    .map(|r| Outcome {
                        id: &r.id,
                        outcome: r.outcome,
                    })
                    .collect()
            }),
            outcome: call.outcome,
        })
        .collect();
    let merged = progress.state == State::Merged;
    Shown {
        id: message.id,
        state: progress.state,
        app: &message.app,
        priority: live.priority,
        to: &message.to,
        out_track_id: message.content.out_track_id(),
        merge_key: message.merge_key.as_deref(),
        client: &message.client,
        accepted_at: rfc3339(live.accepted_ms),
        expires_at: rfc3339(live.expires_ms),
        finished_at: progress.finished_ms.map(rfc3339),
        next_attempt_at: (!progress.state.is_terminal() && progress.due_ms > 0)
            .then(|| rfc3339(progress.due_ms)),
        attempts: progress.attempts,
        reordered: progress.reordered,
        digest: live.digest.filter(|_| !merged),
        merged_into: live.digest.filter(|_| merged),
        parts: (!message.parts.is_empty()).then_some(message.parts.len()),
        members: &message.members,
        reason: progress.reason.as_ref(),
        receipts,
        content: None,
    }
}

/// A message with its content, for the operator.
pub fn with_content<'a>(whole: &'a Message, live: &'a Live) -> Shown<'a> {
    Shown {
        content: Some(&whole.content),
        ..message(whole, live)
    }
}
