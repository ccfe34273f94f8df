//! Proofs of success, ban pages, statuses and what is told about them.

mod codes;
mod noise;

use std::collections::HashSet;

use super::*;
use Api::{
    CardCreate, CardDeliver, CardRegister, CardUpdate, GroupSend, LegacyCardCreate,
    LegacyCardUpdate, OtoSend, SceneGroup, StreamOpen, Token, UserLookup, WebhookSend,
};

const ALL: [Api; 13] = [
    Token,
    GroupSend,
    OtoSend,
    WebhookSend,
    SceneGroup,
    UserLookup,
    CardCreate,
    CardDeliver,
    CardUpdate,
    LegacyCardCreate,
    LegacyCardUpdate,
    CardRegister,
    StreamOpen,
];

fn answer(status: u16, body: &str) -> Answer<'_> {
    Answer {
        status,
        body: body.as_bytes(),
        body_complete: true,
        retry_after_s: None,
    }
}

/// The verdict in one line, e.g. `pause robot fixed 600000 robot_throttled`.
fn line(verdict: &Verdict) -> String {
    let slug = verdict.reason().map_or("", |reason| &reason.code);
    match verdict {
        Verdict::Sent { handle } => format!("sent {}", handle.as_deref().unwrap_or("-")),
        Verdict::SentInPart {
            handle,
            invalid,
            throttled,
        } => {
            let handle = handle.as_deref().unwrap_or("-");
            format!(
                "part {handle} {}|{}",
                invalid.join(","),
                throttled.join(",")
            )
        }
        Verdict::Pause { scope, wait, .. } => format!("pause {scope:?} {wait:?} {slug}"),
        Verdict::Blocked { scope, .. } => format!("blocked {scope:?} {slug}"),
        other => format!("{} {slug}", other.label()),
    }
}

fn seen(api: Api, status: u16, body: &str) -> String {
    let verdict = judge(api, &answer(status, body));
    if let Some(reason) = verdict.reason() {
        assert!(reason.detail.len() <= DETAIL_BYTES_MAX);
        assert!(
            !reason.fix_zh.is_empty() && !reason.fix_en.is_empty(),
            "{}",
            reason.code
        );
    }
    line(&verdict)
}

/// Checks lines of `body => verdict`, each with HTTP 200.
fn check(api: Api, rows: &str) {
    for row in rows.trim().lines() {
        let (body, expected) = row.trim().split_once(" => ").unwrap();
        assert_eq!(seen(api, 200, body), expected, "{api:?} {body}");
    }
}

#[test]
fn a_refused_token_means_refused_credentials_on_the_token_call_and_a_wrong_url_on_a_webhook() {
    for body in [
        r#"{"errcode":40001}"#,
        r#"{"code":"InvalidAuthentication"}"#,
    ] {
        assert_eq!(seen(Token, 200, body), "blocked App credentials_refused");
        assert_eq!(seen(WebhookSend, 200, body), "dead robot_gone");
        assert_eq!(seen(UserLookup, 200, body), "refresh_token token_refused");
    }
    assert_eq!(seen(Token, 401, ""), "blocked App credentials_refused");
    assert_eq!(seen(CardCreate, 401, "{}"), "refresh_token token_refused");
    assert_eq!(seen(WebhookSend, 401, "{}"), "dead rejected");
}

#[test]
fn each_call_has_its_own_proof_of_success() {
    let webhook = r#"
        {"errcode":0,"errmsg":"ok"} => sent -
        {"errcode":"0"} => sent -
        {"ErrCode":0.0} => sent -
        {"errcode":" 0 ","success":true} => sent -
        {"errcode":0,"success":false} => unknown answer_unreadable
        {"errcode":"00"} => dead rejected
        {"errmsg":"ok"} => unknown answer_unreadable
        {"errcode":null} => unknown answer_unreadable
        {"errcode":false} => unknown answer_unreadable"#;
    check(WebhookSend, webhook);
    let user = r#"
        {"errcode":"0","result":{"userid":"z"}} => sent -
        {"result":{"userid":"z"}} => retry answer_unreadable"#;
    check(UserLookup, user);
    let group = r#"
        {"processQueryKey":"k+/="} => sent k+/=
        {"processQueryKey":""} => unknown answer_unreadable
        {"processQueryKey":7} => unknown answer_unreadable
        {"errcode":0} => unknown answer_unreadable
        {"processQueryKey":"k","code":"x"} => unknown answer_unreadable
        {"processQueryKey":"k","success":false} => unknown answer_unreadable
        {"success":"false"} => unknown answer_unreadable
        {"code":"group.disbanded"} => dead chat_disbanded
        {"CODE":"Group.Disbanded","success":false} => dead chat_disbanded
        {"code":"never.heard.of"} => dead rejected
        {"code":0,"processQueryKey":"k"} => sent k"#;
    check(GroupSend, group);
    let scene = r#"
        {"success":true} => sent -
        {"title":"SRE"} => sent -
        {"openConversationId":"cid"} => sent -
        {"success":false,"title":"SRE"} => retry answer_unreadable"#;
    check(SceneGroup, scene);
    let token = r#"
        {"accessToken":"t","expireIn":7200} => sent -
        {"errcode":0,"access_token":"t"} => sent -
        {"accessToken":""} => retry answer_unreadable"#;
    check(Token, token);
    let stream = r#"
        {"endpoint":"wss://wss-open-connection.dingtalk.com:443/connect","ticket":"t"} => sent -
        {"endpoint":"wss://wss-open-connection.dingtalk.com:443/connect"} => retry answer_unreadable
        {"endpoint":"","ticket":"t"} => retry answer_unreadable
        {"ticket":7,"endpoint":"wss://x"} => retry answer_unreadable"#;
    check(StreamOpen, stream);
}

#[test]
fn what_the_stream_gateway_refuses_never_holds_back_messages() {
    let refused = "blocked AppApi credentials_refused";
    let body = r#"{"code":"authFailed","message":"鉴权失败"}"#;
    assert_eq!(seen(StreamOpen, 401, body), refused);
    assert_eq!(seen(StreamOpen, 401, ""), refused);
    assert_eq!(
        seen(StreamOpen, 400, r#"{"code":"invalidClientIdOrSecret"}"#),
        refused
    );
    for (status, body, expected) in [
        (503, "", "retry dingtalk_busy"),
        (
            503,
            r#"{"code":"ServiceUnavailable"}"#,
            "retry dingtalk_busy",
        ),
        (400, r#"{"code":"never.heard.of"}"#, "dead rejected"),
        (400, "<?xml version='1.0'?><Error/>", "dead rejected"),
        (200, "<OpenConnectionResponse/>", "retry answer_unreadable"),
        (401, "<?xml version='1.0'?><Error/>", refused),
        (
            405,
            "<!doctype html>",
            "pause Egress Fixed(300000) egress_banned",
        ),
        (
            403,
            r#"{"code":"Forbidden.AccessDenied.IpNotInWhiteList"}"#,
            "blocked AppApi egress_ip_not_allowed",
        ),
        (
            403,
            r#"{"code":"Forbidden.AccessDenied.QpsLimitForApi"}"#,
            "pause AppApi Growing(1000) platform_throttled",
        ),
        (429, "", "pause AppApi Fixed(60000) api_throttled"),
    ] {
        assert_eq!(seen(StreamOpen, status, body), expected, "{status} {body}");
    }
}

#[test]
fn a_card_is_sent_only_if_every_space_took_it() {
    let create = r#"
        {"success":true} => unknown card_delivery_uncertain
        {"success":true,"result":{"deliverResults":[]}} => unknown card_delivery_uncertain
        {"success":true,"result":{"deliverResults":[{}]}} => unknown card_delivery_uncertain
        {"success":false} => retry card_not_delivered
        {} => unknown answer_unreadable"#;
    check(CardCreate, create);
    let update = r#"
        {"success":true,"result":true} => sent -
        {"success":true,"result":false} => retry answer_unreadable
        {"success":false} => retry answer_unreadable
        {"success":false,"code":"param.cardNotExist"} => dead card_unknown
        {"code":"param.cardAlreadyExist"} => dead card_exists"#;
    check(CardUpdate, update);
    check(LegacyCardUpdate, update);
    let spaces = |spaces: &str| {
        let body = format!(r#"{{"success":true,"result":{{"deliverResults":[{spaces}]}}}}"#);
        seen(CardCreate, 200, &body)
    };
    let took = r#"{"success":true,"spaceId":"a","carrierId":"c"}"#;
    let refused = r#"{"success":"false","spaceId":"b","errorMsg":"oops"}"#;
    assert_eq!(spaces(took), "sent c");
    assert_eq!(spaces(&format!("{took},{refused}")), "part c b|");
    assert_eq!(spaces(refused), "dead card_not_delivered");
    assert_eq!(
        spaces(&refused.replace("oops", "system.busy")),
        "retry dingtalk_busy"
    );
}

#[test]
fn a_space_that_is_only_busy_gets_the_card_later() {
    let body = r#"{"success":true,"result":[
        {"success":true,"spaceId":"IM_ROBOT.a","carrierId":"c"},
        {"success":false,"spaceId":"IM_ROBOT.b","errorMsg":"system.busy"},
        {"success":false,"spaceId":"d","errorMsg":"param.userIdNotExist"}]}"#;
    assert_eq!(seen(CardDeliver, 200, body), "part c d|b");
}

#[test]
fn a_card_was_made_if_the_answer_tells_of_its_delivery() {
    let made = |status, body| card_was_made(&answer(status, body));
    let refused = r#"{"success":true,"result":{"deliverResults":[{"success":false}]}}"#;
    assert!(made(200, refused), "but nobody has it");
    assert!(!made(500, refused));
    for body in [
        "",
        "{}",
        r#"{"success":true}"#,
        r#"{"success":false,"result":{"deliverResults":[]}}"#,
        r#"{"success":true,"code":"x","result":{"deliverResults":[]}}"#,
    ] {
        assert!(!made(200, body), "{body}");
    }
}

#[test]
fn a_card_of_the_legacy_api_is_sent_if_there_is_a_key() {
    let rows = r#"
        {"success":true,"result":{"processQueryKey":"k"}} => sent k
        {"success":"true","result":{"processQueryKey":"k"}} => sent k
        {"success":true} => unknown card_delivery_uncertain
        {"success":false} => retry card_not_delivered
        {"code":"sendCardMessageFailed"} => retry card_not_delivered
        {"code":"cidParse.wrong"} => dead chat_unknown
        {"code":"chatbot.notFound"} => dead robot_gone
        {} => unknown answer_unreadable"#;
    check(LegacyCardCreate, rows);
}

#[test]
fn a_registration_names_the_url_that_holds_and_never_shows_the_secret() {
    let rows = r#"
        {"success":true,"result":{"callbackUrl":"https://a/b","apiSecret":"s"}} => sent https://a/b
        {"success":true,"result":{}} => retry answer_unreadable
        {"success":false} => retry answer_unreadable
        {"code":"param.callbackRouteKeyExist"} => dead card_route_exists"#;
    check(CardRegister, rows);
    let body = r#"{"success":true,"result":{"callbackUrl":"u","apiSecret":"theirs"}}"#;
    assert!(quotes_another_secret(&answer(200, body), "ours"));
    assert!(!quotes_another_secret(&answer(200, body), "theirs"));
    assert!(!quotes_another_secret(&answer(200, "{}"), "ours"));
}

#[test]
fn a_send_to_people_names_those_who_did_not_get_it() {
    let rows = r#"
        {"processQueryKey":"k","invalidStaffIdList":[]} => sent k
        {"processQueryKey":"k","invalidStaffIdList":null} => sent k
        {"processQueryKey":"k","invalidStaffIdList":["u2"]} => part k u2|
        {"processQueryKey":"k","filteredStaffIdList":["u2"]} => part k u2|
        {"processQueryKey":"k","flowControlledStaffIdList":["u1","u1"]} => part k |u1
        {"invalidstaffidlist":["u2",3],"flowControlledStaffIdList":["u2","u4"]} => part - u2,3|u4
        {"invalidStaffIdList":[]} => unknown answer_unreadable
        {"processQueryKey":"k","invalidStaffIdList":"u2"} => unknown answer_unreadable
        {"processQueryKey":"k","invalidStaffIdList":[{}]} => unknown answer_unreadable
        {"processQueryKey":"k","errcode":130101} => unknown answer_unreadable
        {"code":"x","flowControlledStaffIdList":["u1"]} => unknown answer_unreadable
        {"code":"x","invalidStaffIdList":7} => unknown answer_unreadable
        {"code":"x","flowControlledStaffIdList":[]} => dead rejected
        {"code":"send.too.fast","flowControlledStaffIdList":["u1"]} => pause Chat Growing(60000) chat_throttled
        {"invalidStaffIdList":["u1"],"success":false} => unknown answer_unreadable"#;
    check(OtoSend, rows);
    let refused = r#"{"code":"send.too.fast","flowControlledStaffIdList":["u1"]}"#;
    let expected = "pause Chat Growing(60000) chat_throttled";
    assert_eq!(seen(OtoSend, 400, refused), expected);
    let strange = r#"{"code":"x","flowControlledStaffIdList":["u1"]}"#;
    assert_eq!(seen(OtoSend, 400, strange), "dead rejected");
}

#[test]
fn a_body_that_cannot_be_read_is_unknown_for_sends_and_retried_otherwise() {
    for api in ALL {
        let expected = if api.is_send() {
            "unknown answer_unreadable"
        } else {
            "retry answer_unreadable"
        };
        for body in [
            "",
            " ",
            "[]",
            "0",
            "\"ok\"",
            "ok",
            "{",
            "{}",
            r#"{"errcode":"#,
            "nul",
        ] {
            assert_eq!(seen(api, 200, body), expected, "{api:?} {body}");
        }
        let cut = r#"{"errcode":0,"processQueryKey":"k","accessToken":"t","success":true}"#;
        let cut = Answer {
            body_complete: false,
            ..answer(200, cut)
        };
        assert_eq!(line(&judge(api, &cut)), expected, "{api:?}, cut");
    }
}

#[test]
fn a_ban_page_pauses_the_egress_address() {
    let five = "pause Egress Fixed(300000) egress_banned";
    for api in ALL {
        for status in [200, 400, 403, 405, 429] {
            assert_eq!(
                seen(api, status, "\u{feff} \n<!doctype html>…"),
                five,
                "{status}"
            );
        }
        for body in [
            r#"{"status":1111,"wait":5,"source":"x5","punish":"deny","uuid":"u"}"#,
            r#"{"status":"1111"}"#,
            r#"{"punish":"deny","wait":"3"}"#,
            r#"{"status":1111,"errcode":0}"#,
            r#"{"status":1111,"wait":-7}"#,
        ] {
            assert_eq!(seen(api, 200, body), five, "{body}");
        }
    }
    let long = r#"{"status":1111,"wait":7}"#;
    assert_eq!(
        seen(GroupSend, 200, long),
        "pause Egress Fixed(420000) egress_banned"
    );
    let absurd = r#"{"status":1111,"wait":18446744073709551615}"#;
    assert_eq!(
        seen(GroupSend, 200, absurd),
        "pause Egress Fixed(3600000) egress_banned"
    );
    let cut = Answer {
        body_complete: false,
        ..answer(200, "<html>")
    };
    assert_eq!(line(&judge(WebhookSend, &cut)), five);
}

#[test]
fn a_fused_ban_page_with_a_robot_code_pauses_only_the_robot() {
    let fused = r#"{"status":1111,"wait":5,"source":"x5","punish":"deny","uuid":"u",
        "errcode":130101,"errmsg":"send too fast, exceed 20 times per minute"}"#;
    assert_eq!(
        seen(WebhookSend, 200, fused),
        "pause Robot Fixed(600000) robot_throttled"
    );
    let strange = fused.replace("130101", "777");
    assert_eq!(
        seen(WebhookSend, 200, &strange),
        "pause Egress Fixed(300000) egress_banned"
    );
}

#[test]
fn a_gateways_error_page_is_no_ban() {
    for status in [500, 502, 503, 504, 520] {
        for body in [
            "<html>Bad Gateway</html>",
            "",
            "busy",
            "{}",
            r#"{"errcode":0}"#,
        ] {
            assert_eq!(seen(GroupSend, status, body), "unknown outcome_unknown");
            assert_eq!(seen(WebhookSend, status, body), "unknown outcome_unknown");
            assert_eq!(seen(UserLookup, status, body), "retry dingtalk_busy");
        }
    }
    assert_eq!(seen(GroupSend, 302, "<html>"), "dead redirect_refused");
    assert_eq!(seen(GroupSend, 404, "<html>"), "dead api_unknown");
    assert_eq!(seen(GroupSend, 413, "<html>"), "dead content_too_large");
    assert_eq!(seen(GroupSend, 408, "<html>"), "retry dingtalk_busy");
}

#[test]
fn without_a_code_the_status_decides() {
    let rows = [
        (301, "dead redirect_refused"),
        (400, "dead rejected"),
        (403, "blocked AppApi forbidden"),
        (404, "dead api_unknown"),
        (408, "retry dingtalk_busy"),
        (413, "dead content_too_large"),
        (418, "dead rejected"),
        (425, "retry dingtalk_busy"),
        (429, "pause AppApi Fixed(60000) api_throttled"),
        (100, "unknown answer_unreadable"),
        (0, "unknown answer_unreadable"),
        (999, "unknown answer_unreadable"),
    ];
    for (status, expected) in rows {
        for body in ["", "nope", "{}"] {
            assert_eq!(seen(GroupSend, status, body), expected, "{status}");
        }
    }
}

#[test]
fn a_refusal_that_did_not_arrive_whole_is_judged_by_what_its_status_proves() {
    let cut = |api, status| {
        let answer = Answer {
            body_complete: false,
            ..answer(status, r#"{"code":"unknown.send.re"#)
        };
        line(&judge(api, &answer))
    };
    for (status, send, look_up) in [
        (400, "unknown answer_unreadable", "retry answer_unreadable"),
        (
            401,
            "refresh_token token_refused",
            "refresh_token token_refused",
        ),
        (403, "blocked AppApi forbidden", "blocked AppApi forbidden"),
        (404, "dead api_unknown", "dead api_unknown"),
        (
            429,
            "pause AppApi Fixed(60000) api_throttled",
            "pause AppApi Fixed(60000) api_throttled",
        ),
        (500, "unknown outcome_unknown", "retry dingtalk_busy"),
    ] {
        assert_eq!(cut(OtoSend, status), send, "{status}");
        assert_eq!(cut(UserLookup, status), look_up, "{status}");
    }
}

#[test]
fn what_would_cover_an_app_covers_only_the_robot_of_a_webhook() {
    let rows = [
        (429, "", "pause Robot Fixed(60000) api_throttled"),
        (403, "", "blocked Robot forbidden"),
        (403, r#"{"code":"x"}"#, "blocked Robot forbidden"),
        (
            200,
            r#"{"errcode":90018}"#,
            "pause Robot Fixed(1000) api_throttled",
        ),
        (
            200,
            r#"{"errcode":60020}"#,
            "blocked Robot egress_ip_not_allowed",
        ),
        (
            200,
            r#"{"errcode":90002}"#,
            "pause Api Growing(1000) platform_throttled",
        ),
        (
            429,
            r#"{"errcode":130101}"#,
            "pause Robot Fixed(600000) robot_throttled",
        ),
    ];
    for (status, body, expected) in rows {
        assert_eq!(seen(WebhookSend, status, body), expected, "{status} {body}");
    }
}

#[test]
fn a_retry_after_lengthens_a_pause_but_never_beyond_an_hour() {
    let wait = |status, code: &str, after| {
        let body = format!(r#"{{"code":"{code}"}}"#);
        let answer = Answer {
            retry_after_s: Some(after),
            ..answer(status, &body)
        };
        line(&judge(GroupSend, &answer))
    };
    let qps = "Forbidden.AccessDenied.QpsLimitForAppkeyAndApi";
    let qpm = "Forbidden.AccessDenied.QpmLimitForAppkeyAndApi";
    assert_eq!(wait(429, "x", 5), "pause AppApi Fixed(60000) api_throttled");
    assert_eq!(
        wait(429, "x", 90),
        "pause AppApi Fixed(90000) api_throttled"
    );
    assert_eq!(
        wait(429, "x", u64::MAX),
        "pause AppApi Fixed(3600000) api_throttled"
    );
    assert_eq!(
        wait(429, "90002", 0),
        "pause Api Growing(60000) platform_throttled"
    );
    assert_eq!(wait(429, qpm, 0), "pause AppApi Fixed(60000) api_throttled");
    assert_eq!(wait(403, qpm, 0), "pause AppApi NextMinute api_throttled");
    assert_eq!(wait(403, qps, 7), "pause AppApi Fixed(7000) api_throttled");
}

#[test]
fn a_call_without_an_answer_is_ambiguous_only_if_it_may_have_left() {
    for api in ALL {
        let judged = |request_may_have_left| {
            line(&judge_no_answer(
                api,
                &NoAnswer {
                    request_may_have_left,
                    detail: "reset",
                },
            ))
        };
        assert_eq!(judged(false), "retry dingtalk_unreachable");
        let expected = if api.is_send() {
            "unknown outcome_unknown"
        } else {
            "retry answer_missing"
        };
        assert_eq!(judged(true), expected);
    }
    let detail = "POST https://x/robot/send?access_token=abc123&timestamp=1&sign=a%2Bb: reset";
    let verdict = judge_no_answer(
        WebhookSend,
        &NoAnswer {
            request_may_have_left: false,
            detail,
        },
    );
    assert_eq!(
        verdict.reason().unwrap().detail,
        "POST https://x/robot/send?access_token=***&timestamp=1&sign=***: reset"
    );
}

#[test]
fn a_missing_permission_is_named_in_the_detail_and_in_the_cure() {
    let listed = r#"{"code":"Forbidden.AccessDenied.AccessTokenPermissionDenied","requestid":"R",
        "message":"m","accessdenieddetail":{"requiredScopes":["qyapi_robot_sendmsg","<b>"]}}"#;
    let mentioned = r#"{"errcode":88,"sub_code":60011,"sub_msg":"缺少[qyapi_robot_sendmsg]",
        "request_id":"R"}"#;
    for body in [listed, mentioned] {
        let verdict = judge(GroupSend, &answer(403, body));
        let reason = verdict.reason().unwrap();
        assert!(
            reason
                .detail
                .ends_with("; request R; needs qyapi_robot_sendmsg"),
            "{reason:?}"
        );
        assert!(
            reason.fix_zh.ends_with("缺少：qyapi_robot_sendmsg。"),
            "{reason:?}"
        );
        assert!(
            reason.fix_en.ends_with("Missing: qyapi_robot_sendmsg."),
            "{reason:?}"
        );
    }
}

#[test]
fn a_detail_is_one_short_clean_line_without_the_body() {
    let body = format!(
        "{{\"errcode\":777,\"errmsg\":\"a\\u001b[31m\\nb\\u2028\\u202e{}\",\"access_token\":\"s3\",
        \"request_id\":\"r\"}}",
        "长".repeat(900)
    );
    let verdict = judge(GroupSend, &answer(200, &body));
    let detail = &verdict.reason().unwrap().detail;
    assert!(
        detail.starts_with("HTTP 200, 777: a [31m b  长长"),
        "{detail}"
    );
    assert!(detail.ends_with("长; request r"), "{detail}");
    assert!(detail.len() <= DETAIL_BYTES_MAX && !detail.contains("s3"));
    let code = format!(r#"{{"code":"{}"}}"#, "é".repeat(900));
    assert!(
        judge(GroupSend, &answer(400, &code))
            .reason()
            .unwrap()
            .detail
            .len()
            < 200
    );
}

#[test]
fn every_reason_has_a_stable_slug_and_a_cure_in_both_languages() {
    let is_chinese = |c: char| ('\u{4e00}'..='\u{9fff}').contains(&c);
    let mut seen = HashSet::new();
    for why in why::ALL {
        let slug = why.slug;
        assert!(seen.insert(slug), "{slug} stands twice");
        let is_slug = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        assert!(!slug.is_empty() && slug.chars().all(is_slug), "{slug}");
        assert!(
            why.zh.chars().filter(|c| is_chinese(*c)).count() >= 10,
            "{slug}: {}",
            why.zh
        );
        assert!(why.zh.ends_with('。'), "{slug}: {}", why.zh);
        assert!(
            !why.en.contains(is_chinese) && why.en.ends_with('.'),
            "{slug}: {}",
            why.en
        );
        assert!(why.en.split(' ').count() >= 6, "{slug}: {}", why.en);
        for text in [why.zh, why.en] {
            assert!(
                !text.contains("  ") && !text.contains(['|', '\n']),
                "{slug}: {text}"
            );
            let places = text.matches(['[', ']']).count();
            assert_eq!(places % 2, 0, "{slug}: {text}");
        }
        // Both send the reader to the same configuration keys and commands.
        for key in [
            "[[apps]]",
            "[[robots]]",
            "[egress]",
            "[limits.",
            "raw.",
            "dingd chats",
            "dead replay",
        ] {
            assert_eq!(why.zh.contains(key), why.en.contains(key), "{slug}: {key}");
        }
    }
}

#[test]
fn every_reason_of_the_table_is_listed_and_every_reason_stands_in_both_readmes() {
    assert!(table::ROWS.iter().all(|row| why::ALL.contains(&row.why)));
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, text_of) in [
        ("README.md", (|why| why.en) as fn(&Why) -> &'static str),
        ("README.zh-CN.md", |why| why.zh),
    ] {
        let readme = std::fs::read_to_string(root.join(name)).unwrap();
        for why in why::ALL {
            let row = format!("| `{}` | {} |", why.slug, text_of(why));
            assert!(readme.contains(&row), "{name} lacks this row:\n{row}");
        }
    }
}

#[test]
fn the_code_label_is_bounded() {
    let rows = [
        (200, r#"{"errcode":0}"#, "none"),
        (200, "", "none"),
        (200, r#"{"errcode":"130101"}"#, "130101"),
        (200, r#"{"errcode":88,"sub_code":"40014"}"#, "40014"),
        (400, r#"{"code":"SEND.too.fast"}"#, "send.too.fast"),
        (400, r#"{"code":"contain.notAllowed.text"}"#, "contain.*"),
        (400, r#"{"code":"made.up"}"#, "other"),
        (200, r#"{"status":1111}"#, "1111"),
        (200, r#"{"status":1111,"errcode":777}"#, "1111"),
        (200, r#"{"status":1111,"errcode":130101}"#, "130101"),
        (502, "<html>", "html"),
        (302, "", "http_3xx"),
        (418, "{}", "http_4xx"),
        (503, "", "http_5xx"),
        (0, "", "other"),
    ];
    for (status, body, expected) in rows {
        assert_eq!(
            code_label(&answer(status, body)),
            expected,
            "{status} {body}"
        );
    }
}

#[test]
fn the_vendors_error_is_given_as_code_message_and_request_id() {
    let error = |body| vendor_error(&answer(400, body));
    let told = |code: &str, message: &str, request_id: Option<&str>| {
        let request_id = request_id.map(str::to_owned);
        Some(VendorError {
            code: code.to_owned(),
            message: message.to_owned(),
            request_id,
        })
    };
    let both = r#"{"Code":"a.b","Message":"m","RequestId":"r"}"#;
    assert_eq!(error(both), told("a.b", "m", Some("r")));
    let wrapped = r#"{"errcode":88,"errmsg":"o","sub_code":40014,"sub_msg":"i","request_id":"r"}"#;
    assert_eq!(error(wrapped), told("40014", "i", Some("r")));
    assert_eq!(
        error(r#"{"errcode":88,"errmsg":"o"}"#),
        told("88", "o", None)
    );
    assert_eq!(
        error(r#"{"punish":"deny"}"#),
        told("1111", "punished, wait 0 min", None)
    );
    for body in ["", "<html>", "{}", r#"{"errcode":0,"errmsg":"ok"}"#] {
        assert_eq!(error(body), None, "{body}");
    }
}

#[test]
fn only_the_security_refusal_may_be_a_stale_signature() {
    for body in [r#"{"errcode":310000}"#, r#"{"errcode":"310000"}"#] {
        assert!(may_be_stale_signature(&answer(200, body)));
    }
    for body in [
        r#"{"errcode":0}"#,
        r#"{"errcode":130101}"#,
        "310000",
        "<html>",
    ] {
        assert!(!may_be_stale_signature(&answer(200, body)));
    }
}
