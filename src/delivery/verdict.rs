//! What an attempt came to: the only thing that the rest of the daemon knows about DingTalk's answers.
//!
//! Pure. The table that makes verdicts from DingTalk's answers is [`crate::dingtalk::answer`]; what
//! follows from a verdict for the message is [`crate::delivery::state`].

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// Why something happened, in a form that a program (`code`) and an operator (the rest) can act on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Stable slug such as `robot_throttled`; part of the API.
    pub code: Cow<'static, str>,
    /// What was seen, e.g. DingTalk's own code and message. Never holds a secret; at most 512 bytes.
    pub detail: String,
    /// The cure in Chinese, naming the console page or key; empty when there is nothing to do.
    pub fix_zh: Cow<'static, str>,
    /// The cure in English.
    pub fix_en: Cow<'static, str>,
}

impl Reason {
    /// A reason of our own, with its cure in both languages.
    pub fn new(
        code: &'static str,
        detail: impl Into<String>,
        fix_zh: &'static str,
        fix_en: &'static str,
    ) -> Self {
        Self {
            code: Cow::Borrowed(code),
            detail: detail.into(),
            fix_zh: Cow::Borrowed(fix_zh),
            fix_en: Cow::Borrowed(fix_en),
        }
    }
}

/// What a pause or a broken configuration covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// This message alone.
    Message,
    /// The custom robot (webhook) that was called.
    Robot,
    /// The enterprise robot in this one conversation (or for these recipients).
    Chat,
    /// This API of this app.
    AppApi,
    /// This API for every app (platform-wide throttle).
    Api,
    /// Every call of this app.
    App,
    /// Every metered call of the organisation (monthly quota).
    Organisation,
    /// Everything that leaves through this machine's address.
    Egress,
}

/// How long a pause lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Exactly this long, in milliseconds.
    Fixed(u64),
    /// At first this long, in milliseconds, doubling while the same scope is paused again at once.
    Growing(u64),
    /// Until the next full minute of the wall clock.
    NextMinute,
}

/// What one answer (or the lack of one) means for the message that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// DingTalk took it for everybody it was meant for.
    Sent {
        /// `processQueryKey`, where the API gives one.
        handle: Option<String>,
    },
    /// DingTalk took it for some; the lists name the others.
    SentInPart {
        /// `processQueryKey`, where the API gives one.
        handle: Option<String>,
        /// Recipients that DingTalk does not know: permanent.
        invalid: Vec<String>,
        /// Recipients that were throttled and did not get it: try again later.
        throttled: Vec<String>,
    },
    /// The token was refused: drop it, fetch once, try again. Costs no attempt.
    RefreshToken(Reason),
    /// Nothing was sent because `scope` is throttled. Costs no attempt.
    Pause {
        /// What to pause.
        scope: Scope,
        /// For how long.
        wait: Wait,
        /// Why.
        reason: Reason,
    },
    /// Nothing was sent until an operator repairs something that covers more than this message
    /// (credentials, permission, whitelist). The message waits; probes are slow. Costs no attempt.
    Blocked {
        /// What is blocked.
        scope: Scope,
        /// Why, with the cure.
        reason: Reason,
    },
    /// Rejected for now, surely not sent: try again by the schedule.
    Retry(Reason),
    /// Nobody can know whether it was sent: the message's `ambiguous` policy decides.
    Unknown(Reason),
    /// It will never be sent as it is.
    Dead(Reason),
}

impl Verdict {
    /// The verdict's name as a metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Sent { .. } => "sent",
            Self::SentInPart { .. } => "sent_in_part",
            Self::RefreshToken(_) => "refresh_token",
            Self::Pause { .. } => "pause",
            Self::Blocked { .. } => "blocked",
            Self::Retry(_) => "retry",
            Self::Unknown(_) => "unknown",
            Self::Dead(_) => "dead",
        }
    }

    /// The reason, unless it was sent in full.
    pub fn reason(&self) -> Option<&Reason> {
        match self {
            Self::Sent { .. } | Self::SentInPart { .. } => None,
            Self::Pause { reason, .. }
            | Self::Blocked { reason, .. }
            | Self::RefreshToken(reason)
            | Self::Retry(reason)
            | Self::Unknown(reason)
            | Self::Dead(reason) => Some(reason),
        }
    }
}
