//! The ways in which the box can be made to misbehave.

use std::collections::VecDeque;

/// Misbehaviour, all off by default.
#[derive(Debug, Clone, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent switches, each with its own name"
)]
pub struct Switches {
    /// Only requests whose path starts with this are affected; everything when absent.
    /// [`Self::refuse`] works below the level of paths and is not narrowed.
    pub only: Option<String>,
    /// Answer 503 with a JSON code and do nothing.
    pub down: bool,
    /// Close each connection at accept, and each open one at its next request.
    pub refuse: bool,
    /// Do the work at once and answer this much later.
    pub slow_ms: u64,
    /// Close after the headers: nothing done, nothing recorded.
    pub cut_before: bool,
    /// Do everything, then close without an answer.
    pub cut_after: bool,
    /// Answer with the HTML page of a banned IP.
    pub html: bool,
    /// The answer to every send, or to every call of [`Self::only`]; nothing is done.
    pub wrong: Option<Wrong>,
    /// Answers to the next of those, one each, before [`Self::wrong`].
    pub fail_next: VecDeque<Wrong>,
    /// Sends whose body has this in it are answered with 500 and `system.error`; nothing is sent.
    pub failing: Option<String>,
    /// Userids that the robot reports as invalid, although they exist.
    pub invalid_users: Vec<String>,
    /// Userids that the robot reports as flow-controlled and does not reach.
    pub throttled_users: Vec<String>,
    /// openConversationIds and userids that cards are not delivered to, while the call succeeds.
    pub undeliverable: Vec<String>,
    /// Do the work, then answer with several megabytes.
    pub oversize_answer: bool,
    /// Do the work, then answer with half of the JSON.
    pub break_json: bool,
}

impl Switches {
    /// Whether a request to `path` is affected.
    pub(super) fn concern(&self, path: &str) -> bool {
        self.only
            .as_deref()
            .is_none_or(|prefix| path.starts_with(prefix))
    }
}

/// A scripted answer.
#[derive(Debug, Clone)]
pub struct Wrong {
    /// HTTP status.
    pub status: u16,
    /// The body as it goes out.
    pub body: String,
    /// Value of `Content-Type`.
    pub content_type: String,
}

impl Wrong {
    /// A JSON answer.
    pub fn json(status: u16, body: &str) -> Self {
        Self {
            status,
            body: body.to_owned(),
            content_type: "application/json".to_owned(),
        }
    }
}
