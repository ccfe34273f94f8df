//! What DingTalk's answer to a call means for the message: bytes in, one [`Verdict`] out.
//!
//! Pure. HTTP 200 alone is never success (outbound.md §0): each call has its own proof of success.
//! A refusal is looked up in `table` (outbound.md §7.4); `why` holds the slugs and their cures.
//! Where no code decides, the HTTP status does (reliability.md §3).

mod body;
mod case;
pub mod metered;
mod table;
#[cfg(test)]
mod tests;
mod why;

use std::borrow::Cow;

use serde::Serialize;

use self::body::{Body, Refusal, clean};
use self::case::Case;
use self::why::Why;
use crate::delivery::verdict::{Reason, Verdict};

/// The slug of a call that surely did not arrive.
pub const UNREACHABLE: &str = why::DINGTALK_UNREACHABLE.slug;
/// The code of the reason why a card is not where it was to go.
pub const CARD_NOT_DELIVERED: &str = why::CARD_NOT_DELIVERED.slug;

/// An IP ban lasts at least this long, in milliseconds (outbound.md §7.3).
pub const BAN_MS_MIN: u64 = 300_000;

/// The longest detail of a reason, in bytes.
const DETAIL_BYTES_MAX: usize = 512;

/// Which call of DingTalk was made (decides how an answer is read).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Api {
    /// An app's access token (outbound.md §1.1).
    Token,
    /// The enterprise robot to a group (outbound.md §2.1).
    GroupSend,
    /// The enterprise robot to people (outbound.md §2.2).
    OtoSend,
    /// A custom robot's webhook (outbound.md §3).
    WebhookSend,
    /// The brief of a scene or cool-app group (outbound.md §6.2).
    SceneGroup,
    /// A look-up in the address book (outbound.md §6.2).
    UserLookup,
    /// `createAndDeliver` of a card (outbound.md §4.2).
    CardCreate,
    /// A card that exists, in more chats (outbound.md §4.2).
    CardDeliver,
    /// An update of a card (outbound.md §4.3).
    CardUpdate,
    /// A card by the API that new apps may not use (outbound.md §4.6).
    LegacyCardCreate,
    /// An update of such a card.
    LegacyCardUpdate,
    /// The URL to which clicks go (inbound.md §4.1).
    CardRegister,
    /// The opening of a Stream connection (inbound.md §5.1).
    StreamOpen,
}

impl Api {
    /// The call's name as a metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Token => "oauth2.accessToken",
            Self::GroupSend => "robot.groupMessages.send",
            Self::OtoSend => "robot.oToMessages.batchSend",
            Self::WebhookSend => "robot.send",
            Self::SceneGroup => "im.sceneGroups.query",
            Self::UserLookup => "topapi.user.get",
            Self::CardCreate => "card.instances.createAndDeliver",
            Self::CardDeliver => "card.instances.deliver",
            Self::CardUpdate => "card.instances.update",
            Self::LegacyCardCreate => "im.interactiveCards.send",
            Self::LegacyCardUpdate => "im.interactiveCards.update",
            Self::CardRegister => "card.callbacks.register",
            Self::StreamOpen => "gateway.connections.open",
        }
    }

    /// Whether repeating a call of unknown outcome may show people something twice. An update of a
    /// card is not one: it carries the full state and may be repeated (outbound.md §8).
    pub fn is_send(self) -> bool {
        match self {
            Self::GroupSend
            | Self::OtoSend
            | Self::WebhookSend
            | Self::CardCreate
            | Self::CardDeliver
            | Self::LegacyCardCreate => true,
            Self::Token
            | Self::SceneGroup
            | Self::UserLookup
            | Self::CardUpdate
            | Self::LegacyCardUpdate
            | Self::CardRegister
            | Self::StreamOpen => false,
        }
    }
}

/// One HTTP answer, as it came.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// The HTTP status.
    pub status: u16,
    /// At most the first 1 MiB of the body.
    pub body: &'a [u8],
    /// False when the body was longer, or when the connection broke within it.
    pub body_complete: bool,
    /// The `Retry-After` header in seconds; DingTalk does not document one.
    pub retry_after_s: Option<u64>,
}

/// A call that brought no answer.
#[derive(Debug, Clone, Copy)]
pub struct NoAnswer<'a> {
    /// Whether the last byte of the request may have left.
    pub request_may_have_left: bool,
    /// What the transport said, without secrets.
    pub detail: &'a str,
}

/// The vendor's error for the API problem document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VendorError {
    /// DingTalk's own code; of an `errcode` 88 the `sub_code` that it wraps.
    pub code: String,
    /// DingTalk's own words, shortened and without control characters.
    pub message: String,
    /// What DingTalk's support asks for.
    pub request_id: Option<String>,
}

/// What an answer means.
pub fn judge(api: Api, answer: &Answer<'_>) -> Verdict {
    let body = Body::read(answer.body, answer.body_complete);
    Case {
        api,
        answer,
        body: &body,
        refusal: body.refusal(),
    }
    .judge()
}

/// What the lack of an answer means: harmless if the request never left, else a guess
/// (reliability.md §3).
pub fn judge_no_answer(api: Api, failure: &NoAnswer<'_>) -> Verdict {
    let reason = |why: Why| reason(why, clean(failure.detail, DETAIL_BYTES_MAX));
    if !failure.request_may_have_left {
        Verdict::Retry(reason(why::DINGTALK_UNREACHABLE))
    } else if api.is_send() {
        Verdict::Unknown(reason(why::OUTCOME_UNKNOWN))
    } else {
        Verdict::Retry(reason(why::ANSWER_MISSING))
    }
}

/// DingTalk's own code in an answer as a bounded metric label: a code of the table in the table's
/// spelling, else `other`, `1111`, `html`, `http_<class>` or `none`.
pub fn code_label(answer: &Answer<'_>) -> &'static str {
    let body = Body::read(answer.body, answer.body_complete);
    let refusal = body.refusal();
    if let Some((spelling, _)) = refusal
        .as_ref()
        .and_then(|refusal| table::find(&refusal.code))
    {
        return spelling;
    }
    match (&body, answer.status) {
        (Body::Html, _) => "html",
        (Body::Object(object), _) if object.punishment_min().is_some() => "1111",
        _ if refusal.is_some() => "other",
        (_, 200..=299) => "none",
        (_, 100..=199) => "http_1xx",
        (_, 300..=399) => "http_3xx",
        (_, 400..=499) => "http_4xx",
        (_, 500..=599) => "http_5xx",
        _ => "other",
    }
}

/// DingTalk's own error, for the API; `None` if the answer carries none.
pub fn vendor_error(answer: &Answer<'_>) -> Option<VendorError> {
    let Body::Object(object) = Body::read(answer.body, answer.body_complete) else {
        return None;
    };
    let Some(refusal) = object.refusal() else {
        return object.punishment_min().map(|wait_min| VendorError {
            code: "1111".to_owned(),
            message: format!("punished, wait {wait_min} min"),
            request_id: object.text("uuid").map(|uuid| clean(uuid, 64)),
        });
    };
    let Refusal {
        code,
        message,
        request_id,
        ..
    } = refusal;
    Some(VendorError {
        code,
        message,
        request_id,
    })
}

/// Whether a card exists after this answer to the call that makes it, whatever became of its delivery.
pub fn card_was_made(answer: &Answer<'_>) -> bool {
    let Body::Object(object) = Body::read(answer.body, answer.body_complete) else {
        return false;
    };
    let took = (200..=299).contains(&answer.status) && object.refusal().is_none();
    took && object.flag("success") == Some(true) && object.deliveries().is_some()
}

/// Whether the answer to a registration quotes another secret than `secret`: then the old one holds.
pub fn quotes_another_secret(answer: &Answer<'_>, secret: &str) -> bool {
    let Body::Object(object) = Body::read(answer.body, answer.body_complete) else {
        return false;
    };
    let quoted = object.in_result("apiSecret");
    quoted.is_some_and(|quoted| quoted != secret)
}

/// Whether a webhook refused the security check (310000). The code covers keyword, IP, timestamp
/// and signature alike, so one attempt with a fresh signature is worth it (outbound.md §3.5).
pub fn may_be_stale_signature(answer: &Answer<'_>) -> bool {
    let body = Body::read(answer.body, answer.body_complete);
    body.refusal()
        .is_some_and(|refusal| refusal.code == "310000")
}

fn reason(why: Why, detail: String) -> Reason {
    Reason {
        code: Cow::Borrowed(why.slug),
        detail,
        fix_zh: Cow::Borrowed(why.zh),
        fix_en: Cow::Borrowed(why.en),
    }
}
