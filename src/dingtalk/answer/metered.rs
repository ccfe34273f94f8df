//! Which calls DingTalk counts towards the month (outbound.md §7.2).
//!
//! Pure. Access tokens and the address book are exempt. No page names the opening of a Stream connection
//! among what is counted; were it held back at the end of a month, nothing would come in any more. A call that was throttled or that never left is
//! not counted; every other one is, whatever came of it. Nor is one counted that was refused because the
//! month is used up: DingTalk has just said what its count is, and a slow probe would pass it.

use super::Api;
use super::why;
use crate::delivery::verdict::Verdict;

/// Refusals that cost nothing.
const FREE: [why::Why; 5] = [
    why::API_THROTTLED,
    why::PLATFORM_THROTTLED,
    why::DINGTALK_UNREACHABLE,
    why::MONTH_QUOTA_EXHAUSTED,
    why::WEBHOOK_QUOTA_EXHAUSTED,
];

impl Api {
    /// Those of apps that count.
    pub const METERED_OF_APPS: [Self; 9] = [
        Self::GroupSend,
        Self::OtoSend,
        Self::SceneGroup,
        Self::CardCreate,
        Self::CardDeliver,
        Self::CardUpdate,
        Self::LegacyCardCreate,
        Self::LegacyCardUpdate,
        Self::CardRegister,
    ];

    /// Whether its calls count towards the month.
    pub fn is_metered(self) -> bool {
        match self {
            Self::Token | Self::UserLookup | Self::StreamOpen => false,
            Self::GroupSend
            | Self::OtoSend
            | Self::WebhookSend
            | Self::SceneGroup
            | Self::CardCreate
            | Self::CardDeliver
            | Self::CardUpdate
            | Self::LegacyCardCreate
            | Self::LegacyCardUpdate
            | Self::CardRegister => true,
        }
    }
}

/// Whether a call of a metered API that came to this counts.
pub fn counts(verdict: &Verdict) -> bool {
    let reason = verdict.reason();
    reason.is_none_or(|reason| FREE.iter().all(|why| why.slug != reason.code))
}

/// Whether DingTalk says that the organisation's month is used up. A webhook's 90030 does not: it may be
/// the cap of that one robot, and little is known of it (outbound.md §3.5).
pub fn is_used_up(verdict: &Verdict) -> bool {
    verdict
        .reason()
        .is_some_and(|reason| reason.code == why::MONTH_QUOTA_EXHAUSTED.slug)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dingtalk::answer::{Answer, NoAnswer, judge, judge_no_answer};

    fn answered(api: Api, status: u16, body: &str) -> Verdict {
        let answer = Answer {
            status,
            body: body.as_bytes(),
            body_complete: true,
            retry_after_s: None,
        };
        judge(api, &answer)
    }

    #[test]
    fn throttled_and_quota_refusals_cost_nothing_and_everything_else_counts() {
        let denied = |code: &str| format!(r#"{{"code":"Forbidden.AccessDenied.{code}"}}"#);
        for (status, body, is_counted, used_up) in [
            (200, r#"{"processQueryKey":"k"}"#.to_owned(), true, false),
            (403, denied("QpsLimitForAppkeyAndApi"), false, false),
            (403, denied("QpmLimitForAppkeyAndApi"), false, false),
            (403, denied("QpsLimitForApi"), false, false),
            (403, denied("ApiCountLimitForOrg"), false, true),
            (403, denied("IpNotInWhiteList"), true, false),
            (400, r#"{"code":"send.too.fast"}"#.to_owned(), true, false),
            (400, r#"{"code":"group.disbanded"}"#.to_owned(), true, false),
            (
                400,
                r#"{"code":"InvalidAuthentication"}"#.to_owned(),
                true,
                false,
            ),
            (
                400,
                r#"{"code":"unknown.send.result"}"#.to_owned(),
                true,
                false,
            ),
            (
                503,
                r#"{"code":"ServiceUnavailable"}"#.to_owned(),
                true,
                false,
            ),
            (504, String::new(), true, false),
            (200, r#"{"status":1111,"wait":5}"#.to_owned(), true, false),
        ] {
            let verdict = answered(Api::GroupSend, status, &body);
            assert_eq!(counts(&verdict), is_counted, "{body}: {verdict:?}");
            assert_eq!(is_used_up(&verdict), used_up, "{body}: {verdict:?}");
        }
    }

    #[test]
    fn a_webhook_counts_unless_its_allowance_is_used_up() {
        for (code, is_counted) in [(0, true), (130_101, true), (310_000, true), (90_030, false)] {
            let body = format!(r#"{{"errcode":{code},"errmsg":"x"}}"#);
            let verdict = answered(Api::WebhookSend, 200, &body);
            assert_eq!(counts(&verdict), is_counted, "{code}: {verdict:?}");
            assert!(!is_used_up(&verdict), "it may be the cap of that robot");
        }
    }

    #[test]
    fn a_call_that_never_left_costs_nothing_and_one_without_an_answer_counts() {
        for left in [false, true] {
            let failure = NoAnswer {
                request_may_have_left: left,
                detail: "x",
            };
            for api in [Api::GroupSend, Api::SceneGroup] {
                assert_eq!(counts(&judge_no_answer(api, &failure)), left, "{api:?}");
            }
        }
    }

    #[test]
    fn tokens_and_the_address_book_are_exempt() {
        let exempt = [Api::Token, Api::UserLookup, Api::StreamOpen];
        assert!(exempt.iter().all(|api| !api.is_metered()));
        assert!(Api::METERED_OF_APPS.iter().all(|api| api.is_metered()));
        assert!(Api::WebhookSend.is_metered());
    }
}
