//! One answer weighed: its code first, then its proof of success, then its HTTP status.
//!
//! Pure. The codes stand in `table`; here is only what a code alone cannot say.

use std::borrow::Cow;
use std::collections::HashSet;

use super::body::{Body, Delivered, Object, Refusal, clean};
use super::table::{self, Class, Row};
use super::why::{self, Why};
use super::{Answer, Api, BAN_MS_MIN, DETAIL_BYTES_MAX, reason};
use crate::delivery::verdict::{Reason, Scope, Verdict, Wait};

/// A 429 pauses at least this long (reliability.md §4).
const TOO_MANY_MS_MIN: u64 = 60_000;
/// A `Retry-After` is believed up to this (reliability.md §4).
const RETRY_AFTER_S_MAX: u64 = 3_600;

/// Those whom a send to people did not reach (outbound.md §2.2).
const NOT_REACHED: [&str; 3] = [
    "invalidStaffIdList",
    "filteredStaffIdList",
    "flowControlledStaffIdList",
];

/// One answer while it is being judged.
pub(super) struct Case<'a> {
    pub(super) api: Api,
    pub(super) answer: &'a Answer<'a>,
    pub(super) body: &'a Body,
    pub(super) refusal: Option<Refusal>,
}

impl Case<'_> {
    /// The verdict.
    pub(super) fn judge(&self) -> Verdict {
        match self.body {
            Body::Object(object) => self.object(object),
            Body::Html => self.html(),
            Body::Unreadable(_) => self.by_status(),
        }
    }

    fn object(&self, object: &Object) -> Verdict {
        if let Some(refusal) = &self.refusal {
            if self.is_2xx() && self.api.is_send() && object.text("processQueryKey").is_some() {
                // A handle beside a code contradicts itself: somebody may have got the message.
                return self.uncertain(why::ANSWER_UNREADABLE);
            }
            if let Some((_, row)) = table::find(&refusal.code) {
                return self.row(row);
            }
        }
        match object.punishment_min() {
            Some(wait_min) => self.banned(wait_min),
            // A code that nobody knows beside a list of some: the others may have got it.
            None if self.is_2xx()
                && self.refusal.is_some()
                && self.api == Api::OtoSend
                && object.names_any(&NOT_REACHED) =>
            {
                self.uncertain(why::ANSWER_UNREADABLE)
            }
            None if self.is_2xx() && self.refusal.is_none() => self.claimed_success(object),
            None => self.by_status(),
        }
    }

    /// A page where JSON should be. These statuses are about one request (a wrong path, a body too
    /// large) or come from a gateway; to read them as a ban would silence every tenant.
    fn html(&self) -> Verdict {
        match self.answer.status {
            // The Stream gateway has been seen to tell its refusals in XML (inbound.md §5.1).
            _ if self.api == Api::StreamOpen && !self.is_page() => self.by_status(),
            300..=399 | 404 | 408 | 413 | 500..=599 => self.by_status(),
            _ => self.banned(0),
        }
    }

    /// A code of the table.
    fn row(&self, row: &Row) -> Verdict {
        let is_pause = matches!(row.class, Class::Pause(..));
        if self.answer.status == 429 && !is_pause {
            return self.by_status();
        }
        match row.class {
            Class::Token => self.token_refused(),
            Class::Pause(scope, wait) => Verdict::Pause {
                scope: self.scope(scope),
                wait: self.at_least(wait),
                reason: self.reason(row.why),
            },
            Class::Block(scope) => Verdict::Blocked {
                scope: self.scope(scope),
                reason: self.reason(row.why),
            },
            // A gateway that gave up quotes its own code; the service behind it may have gone on.
            Class::Retry if matches!(self.answer.status, 502 | 504) => self.by_status(),
            Class::Retry => Verdict::Retry(self.reason(row.why)),
            Class::Unknown => self.uncertain(row.why),
            Class::Dead => Verdict::Dead(self.reason(row.why)),
        }
    }

    /// No code decides, so the status does (reliability.md §3).
    fn by_status(&self) -> Verdict {
        let has_code = self.refusal.is_some();
        match self.answer.status {
            200..=299 if !has_code => self.uncertain(why::ANSWER_UNREADABLE),
            300..=399 => Verdict::Dead(self.reason(why::REDIRECT_REFUSED)),
            401 if self.api != Api::WebhookSend => self.token_refused(),
            403 => self.forbidden(),
            404 => Verdict::Dead(self.reason(why::API_UNKNOWN)),
            408 | 425 => Verdict::Retry(self.reason(why::DINGTALK_BUSY)),
            413 => Verdict::Dead(self.reason(why::CONTENT_TOO_LARGE)),
            429 => Verdict::Pause {
                scope: self.scope(Scope::AppApi),
                wait: self.at_least(Wait::Fixed(TOO_MANY_MS_MIN)),
                reason: self.reason(why::API_THROTTLED),
            },
            // The code that did not arrive may have been `unknown.send.result`.
            400..=499 if !self.answer.body_complete => self.uncertain(why::ANSWER_UNREADABLE),
            200..=299 | 400..=499 => Verdict::Dead(self.reason(why::REJECTED)),
            500 | 501 | 503 | 505..=599 if has_code => {
                Verdict::Retry(self.reason(why::DINGTALK_BUSY))
            }
            500..=599 if self.api.is_send() => Verdict::Unknown(self.reason(why::OUTCOME_UNKNOWN)),
            500..=599 => Verdict::Retry(self.reason(why::DINGTALK_BUSY)),
            _ => self.uncertain(why::ANSWER_UNREADABLE),
        }
    }

    /// A denial that no code explains is about the app or the way there, not about this message
    /// (reliability.md §3).
    fn forbidden(&self) -> Verdict {
        let why = if self.refusal.is_some() && self.api != Api::WebhookSend {
            why::ACCESS_DENIED
        } else {
            why::FORBIDDEN
        };
        Verdict::Blocked {
            scope: self.scope(Scope::AppApi),
            reason: self.reason(why),
        }
    }

    /// A webhook belongs to no app: what would cover the app covers the robot. What the Stream gateway
    /// refuses says nothing about messages: they go out by other calls, and must not wait for it.
    fn scope(&self, scope: Scope) -> Scope {
        match scope {
            Scope::App | Scope::Api if self.api == Api::StreamOpen => Scope::AppApi,
            Scope::App | Scope::AppApi | Scope::Chat if self.api == Api::WebhookSend => {
                Scope::Robot
            }
            scope => scope,
        }
    }

    /// 2xx, JSON, no code: each call has its own proof that it was done.
    fn claimed_success(&self, object: &Object) -> Verdict {
        let card = matches!(
            self.api,
            Api::CardCreate | Api::CardDeliver | Api::LegacyCardCreate
        );
        if object.says_failed() && !card {
            return self.uncertain(why::ANSWER_UNREADABLE);
        }
        let done = match self.api {
            Api::WebhookSend | Api::UserLookup => object.says_ok(),
            Api::GroupSend => return self.group_send(object),
            Api::OtoSend => return self.oto_send(object),
            Api::CardCreate | Api::CardDeliver => return self.card_create(object),
            Api::LegacyCardCreate => return self.legacy_card_create(object),
            Api::CardRegister => return self.card_register(object),
            Api::Token => ["accessToken", "access_token"]
                .iter()
                .any(|n| object.text(n).is_some()),
            Api::StreamOpen => ["endpoint", "ticket"]
                .iter()
                .all(|n| object.text(n).is_some()),
            Api::SceneGroup => object.flag("success").unwrap_or_else(|| {
                ["title", "openConversationId"]
                    .iter()
                    .any(|name| object.text(name).is_some())
            }),
            Api::CardUpdate | Api::LegacyCardUpdate => {
                object.flag("success") == Some(true) && object.flag("result") != Some(false)
            }
        };
        if done {
            Verdict::Sent { handle: None }
        } else {
            self.uncertain(why::ANSWER_UNREADABLE)
        }
    }

    fn group_send(&self, object: &Object) -> Verdict {
        match object.text("processQueryKey") {
            Some(handle) => Verdict::Sent {
                handle: Some(handle.to_owned()),
            },
            None => self.uncertain(why::ANSWER_UNREADABLE),
        }
    }

    /// A 200 names those who did not get it (outbound.md §2.2). What "filtered" means is nowhere
    /// documented; they did not get it, and nothing says that a later try would help.
    fn oto_send(&self, object: &Object) -> Verdict {
        let handle = object.text("processQueryKey").map(str::to_owned);
        let [Some(mut invalid), Some(filtered), Some(mut throttled)] =
            NOT_REACHED.map(|name| object.ids(name))
        else {
            return self.uncertain(why::ANSWER_UNREADABLE);
        };
        invalid.extend(filtered);
        let mut seen = HashSet::new();
        invalid.retain(|id| seen.insert(id.clone()));
        throttled.retain(|id| !seen.contains(id));
        match handle {
            Some(_) if invalid.is_empty() && throttled.is_empty() => Verdict::Sent { handle },
            None if invalid.is_empty() && throttled.is_empty() => {
                self.uncertain(why::ANSWER_UNREADABLE)
            }
            _ => Verdict::SentInPart {
                handle,
                invalid,
                throttled,
            },
        }
    }

    /// The outer `success` says nothing about the spaces (outbound.md §4.2).
    fn card_create(&self, object: &Object) -> Verdict {
        match object.flag("success") {
            Some(true) => {}
            Some(false) => return Verdict::Retry(self.reason(why::CARD_NOT_DELIVERED)),
            None => return self.uncertain(why::ANSWER_UNREADABLE),
        }
        let Some(deliveries) = object.deliveries().filter(|all| !all.is_empty()) else {
            return self.uncertain(why::CARD_DELIVERY_UNCERTAIN);
        };
        let (done, failed): (Vec<_>, Vec<_>) = deliveries.into_iter().partition(|one| one.success);
        let any_done = !done.is_empty();
        let handle = done.into_iter().find_map(|one| one.carrier_id);
        let Some(first) = failed.first() else {
            return Verdict::Sent { handle };
        };
        if any_done {
            let passes = |one: &Delivered| {
                let row = table::find(&one.error).map(|(_, row)| row.class);
                matches!(row, Some(Class::Retry | Class::Pause(..)))
            };
            let ids = |some: Vec<Delivered>| some.into_iter().map(|one| one.space_id).collect();
            let (throttled, invalid): (Vec<_>, Vec<_>) = failed.into_iter().partition(passes);
            return Verdict::SentInPart {
                handle,
                invalid: ids(invalid),
                throttled: ids(throttled),
            };
        }
        let refusal = Refusal {
            code: first.error.clone(),
            message: "no space took the card".to_owned(),
            ..Refusal::default()
        };
        let row = table::find(&refusal.code).map(|(_, row)| row);
        let case = Case {
            refusal: Some(refusal),
            ..*self
        };
        row.map_or_else(
            || Verdict::Dead(case.reason(why::CARD_NOT_DELIVERED)),
            |row| case.row(row),
        )
    }

    /// One space, so one key (outbound.md §4.6).
    fn legacy_card_create(&self, object: &Object) -> Verdict {
        match (object.flag("success"), object.in_result("processQueryKey")) {
            (Some(true), Some(handle)) => Verdict::Sent {
                handle: Some(handle.to_owned()),
            },
            (Some(false), _) => Verdict::Retry(self.reason(why::CARD_NOT_DELIVERED)),
            (Some(true), None) => self.uncertain(why::CARD_DELIVERY_UNCERTAIN),
            (None, _) => self.uncertain(why::ANSWER_UNREADABLE),
        }
    }

    /// The answer names the URL that is registered now; it may be an older one (inbound.md §4.1).
    fn card_register(&self, object: &Object) -> Verdict {
        match (object.flag("success"), object.in_result("callbackUrl")) {
            (Some(true), Some(url)) => Verdict::Sent {
                handle: Some(clean(url, DETAIL_BYTES_MAX)),
            },
            _ => self.uncertain(why::ANSWER_UNREADABLE),
        }
    }

    /// Where the credentials themselves are sent, a refused token means refused credentials; a webhook
    /// has no token that could be refreshed, its URL is wrong.
    fn token_refused(&self) -> Verdict {
        match self.api {
            Api::Token | Api::StreamOpen => Verdict::Blocked {
                scope: self.scope(Scope::App),
                reason: self.reason(why::CREDENTIALS_REFUSED),
            },
            Api::WebhookSend => Verdict::Dead(self.reason(why::ROBOT_GONE)),
            _ => Verdict::RefreshToken(self.reason(why::TOKEN_REFUSED)),
        }
    }

    fn banned(&self, wait_min: u64) -> Verdict {
        let wait_ms = wait_min.saturating_mul(60_000).max(BAN_MS_MIN);
        Verdict::Pause {
            scope: Scope::Egress,
            wait: self.at_least(Wait::Fixed(wait_ms)),
            reason: self.reason(why::EGRESS_BANNED),
        }
    }

    /// Not knowing matters only where a second try could be seen by people.
    fn uncertain(&self, why: Why) -> Verdict {
        let reason = self.reason(why);
        if self.api.is_send() {
            Verdict::Unknown(reason)
        } else {
            Verdict::Retry(reason)
        }
    }

    /// The table's wait, or longer if DingTalk asks for it.
    fn at_least(&self, wait: Wait) -> Wait {
        let asked_ms = self
            .answer
            .retry_after_s
            .unwrap_or(0)
            .min(RETRY_AFTER_S_MAX)
            * 1_000;
        let floor_ms = if self.answer.status == 429 {
            asked_ms.max(TOO_MANY_MS_MIN)
        } else {
            asked_ms
        };
        match wait {
            Wait::Fixed(ms) => Wait::Fixed(ms.max(floor_ms)),
            Wait::Growing(ms) => Wait::Growing(ms.max(floor_ms)),
            Wait::NextMinute if floor_ms > 0 => Wait::Fixed(floor_ms.max(60_000)),
            Wait::NextMinute => Wait::NextMinute,
        }
    }

    /// Whether the markup is a page for people.
    fn is_page(&self) -> bool {
        let body = self.answer.body;
        let head = String::from_utf8_lossy(body.get(..256).unwrap_or(body)).to_ascii_lowercase();
        head.contains("<!doctype html") || head.contains("<html")
    }

    fn is_2xx(&self) -> bool {
        (200..=299).contains(&self.answer.status)
    }

    fn reason(&self, why: Why) -> Reason {
        let scopes = self
            .refusal
            .as_ref()
            .map(|refusal| refusal.scopes.join(", "));
        let mut reason = reason(why, self.detail());
        if let Some(scopes) =
            scopes.filter(|list| why == why::PERMISSION_MISSING && !list.is_empty())
        {
            reason.fix_zh = Cow::Owned(format!("{} 缺少：{scopes}。", why.zh));
            reason.fix_en = Cow::Owned(format!("{} Missing: {scopes}.", why.en));
        }
        reason
    }

    /// What was seen. Only named fields are quoted, never the body: a body may hold a token.
    fn detail(&self) -> String {
        let status = self.answer.status;
        let Some(refusal) = &self.refusal else {
            let bytes = self.answer.body.len();
            return match self.body {
                Body::Html => format!("HTTP {status} with an HTML page of {bytes} bytes"),
                Body::Unreadable(what) => format!("HTTP {status} with {what} ({bytes} bytes)"),
                Body::Object(object) => match object.punishment_min() {
                    Some(wait) => format!("HTTP {status} with a punishment, wait {wait} min"),
                    None => format!("HTTP {status} with JSON that proves no success"),
                },
            };
        };
        let Refusal {
            code,
            wrapped,
            message,
            request_id,
            scopes,
        } = refusal;
        let mut detail = format!("HTTP {status}, {}{code}", if *wrapped { "88/" } else { "" });
        if !message.is_empty() {
            detail = format!("{detail}: {message}");
        }
        if let Some(request_id) = request_id {
            detail = format!("{detail}; request {request_id}");
        }
        if !scopes.is_empty() {
            detail = format!("{detail}; needs {}", scopes.join(", "));
        }
        clean(&detail, DETAIL_BYTES_MAX)
    }
}
