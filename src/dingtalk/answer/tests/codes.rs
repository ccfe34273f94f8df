//! A line for every code of outbound.md §7.4 and §3.5, in each of its spellings.

use super::*;

/// A refusal of the new generation.
fn new(status: u16, code: &str) -> String {
    let body = format!(r#"{{"code":"{code}","message":"m","requestid":"r"}}"#);
    let shouted = format!(r#"{{"Code":"{}","Message":"m"}}"#, code.to_uppercase());
    let line = seen(GroupSend, status, &body);
    assert_eq!(
        line,
        seen(GroupSend, status, &shouted),
        "{code}: case matters"
    );
    line
}

/// A refusal of the legacy generation: as number, as string, and wrapped in an 88.
fn old(code: &str) -> String {
    let line = seen(
        OtoSend,
        200,
        &format!(r#"{{"errcode":{code},"errmsg":"m"}}"#),
    );
    let spellings = [
        format!(r#"{{"errcode":"{code}","errmsg":"m"}}"#),
        format!(r#"{{"errcode":88,"sub_code":"{code}","sub_msg":"m"}}"#),
        format!(r#"{{"errcode":"88","sub_code":{code},"sub_msg":"m"}}"#),
        format!(r#"{{"ErrCode":88.0,"Sub_Code":" {code} ","errmsg":"m"}}"#),
        format!(r#"{{"errcode":88,"subCode":{code},"subMsg":"m"}}"#),
    ];
    for body in spellings {
        assert_eq!(line, seen(OtoSend, 200, &body), "{body}");
    }
    line
}

/// `verdict: status code code …`.
const NEW_CODES: &str = "
refresh_token token_refused: 400 InvalidAuthentication accesstoken.expired
refresh_token token_refused: 400 invalidParameter.token.invalid token.notExisted
refresh_token token_refused: 401 whatever
blocked App credentials_refused: 400 invalidClientIdOrSecret invalid.client
blocked App credentials_refused: 401 unauthorized.client authFailed
blocked App egress_ip_not_allowed: 403 Forbidden.AccessDenied.IpNotInWhiteList
blocked AppApi permission_missing: 403 Forbidden.AccessDenied.AccessTokenPermissionDenied
blocked AppApi access_denied: 403 Forbidden.AccessDenied.Whatever Forbidden.AccessDenied
blocked AppApi access_denied: 400 unauthorized auth.error
blocked AppApi access_denied: 403 never.heard.of
retry dingtalk_busy: 500 system.error system.busy server.error never.heard.of
retry dingtalk_busy: 503 systemBusy never.heard.of
unknown outcome_unknown: 504 system.busy
unknown outcome_unknown: 502 never.heard.of
unknown outcome_unknown: 400 unknown.send.result
unknown outcome_unknown: 500 unknownError
dead api_unknown: 404 InvalidAction.NotFound
dead robot_stopped: 400 bot.stopped
dead chat_disbanded: 400 group.disbanded
dead robot_gone: 400 resource.not.found chatbot.notFound
dead robot_gone: 404 resource.not.found
dead robot_unavailable: 400 resource.unavailable
dead robot_code_refused: 400 invalidParameter.robotCode.empty invalidParameter.robotCode.missing
dead robot_code_refused: 400 invalidParameter.robotCode.invalid invalidParameter.robotCode.notExsit
dead robot_not_owned: 400 invalidParameter.robotCode.auth
dead cool_app_missing: 400 invalidParameter.robotCode.coolApp groupPermissionDenied
dead cool_app_missing: 400 coolAppUninstalled coolAppUnexist coolAppPermissionDenied
dead cool_app_missing: 400 groupTemplatePermissionDenied sceneGroup.checkFailed
dead template_refused: 400 template.not.existed template.stopped
dead robot_forbidden: 400 send.forbidden bot.forbidden.sendMessage
dead chat_unknown: 400 invalid.openConversationId miss.openConversationId
dead chat_unknown: 400 cidEncryptError cidParse.wrong invalideChatId param.openSpaceIdInvalid
dead chat_of_another_organisation: 400 conversation.org.notMatch org.notOwn.group
dead content_too_large: 400 invalidParameter.msgParam.tooLong
dead content_refused: 400 contain.unsafe.url contain.notAllowed.text contain.notAllowed.picture
dead content_refused: 400 param.contentUnsafe contain.notAllowed.content
dead recipient_unknown: 400 staffId.notExisted param.userIdNotExist
dead robot_not_proactive: 400 chatbotId.notAllow.sendOTO
dead recipient_without_chat: 400 robot.oto.notExist
dead session_expired: 400 session.expired
dead message_type_unsupported: 400 invalidParameter.msgKey.invalid invalidParameter.msg.unsupport
dead message_type_unsupported: 400 invalidParameter.msgKey.empty
dead request_malformed: 400 invalidParameter.msgParam.invalid invalidParameter.userIds.overMax
dead request_malformed: 400 Missingbody param.outTrackIdEmpty param.openSpaceIdEmpty param.invalid
dead request_malformed: 400 param.openDeliverModelEmpty param.openDeliverModelError
dead request_malformed: 400 param.cardDataAndPrivateDataBothEmpty outTrackId.exceed.limit
dead request_malformed: 400 paramBlank paramIllegal unsupported.grant.type
dead at_all_forbidden: 400 only.groupAdmin.canAtAll
dead card_exists: 400 param.cardAlreadyExist
dead card_route_exists: 400 param.callbackRouteKeyExist
dead card_route_exists: 500 param.callbackRouteKeyExist
dead request_malformed: 400 param.callbackRouteKeyEmpty param.callbackUrlEmpty param.empty
dead request_malformed: 400 outTrackId.exceed.limit param.outTrackIdEmpty
retry dingtalk_busy: 500 system.updateCallbackFailed
dead card_unknown: 400 param.cardNotExist
dead card_template_refused: 400 param.templateNotExist param.templateUnpublished
dead card_template_refused: 400 param.cardTemplateIdEmpty
retry card_not_delivered: 400 sendCardMessageFailed
dead chat_not_visible: 400 permession.checkFailed permission.checkFailed
retry dingtalk_busy: 400 systemError
retry dingtalk_busy: 500 systemError systemBusy
dead rejected: 400 never.heard.of
retry dingtalk_busy: 408 never.heard.of
retry dingtalk_busy: 425 never.heard.of
";

#[test]
fn every_new_code_of_the_table_has_its_verdict() {
    for row in NEW_CODES.trim().lines() {
        let (expected, codes) = row.split_once(": ").unwrap();
        let (status, codes) = codes.split_once(' ').unwrap();
        for code in codes.split(' ') {
            assert_eq!(
                new(status.parse().unwrap(), code),
                expected,
                "{status} {code}"
            );
        }
    }
}

#[test]
fn every_new_throttle_pauses_what_it_covers() {
    const DENIED: &str = "Forbidden.AccessDenied.";
    let rows = [
        (
            "QpsLimitForAppkeyAndApi",
            "pause AppApi Fixed(1000) api_throttled",
        ),
        (
            "QpmLimitForAppkeyAndApi",
            "pause AppApi NextMinute api_throttled",
        ),
        (
            "QpsLimitForApi",
            "pause Api Growing(1000) platform_throttled",
        ),
        (
            "QpsLimitForSuitekeyAndOrgAndApi",
            "pause AppApi Fixed(1000) api_throttled",
        ),
        (
            "QpmLimitForSuitekeyAndOrgAndApi",
            "pause AppApi NextMinute api_throttled",
        ),
        (
            "ApiCountLimitForOrg",
            "pause Organisation Growing(600000) month_quota_exhausted",
        ),
    ];
    for (code, expected) in rows {
        assert_eq!(new(403, &format!("{DENIED}{code}")), expected, "{code}");
    }
    for code in ["send.too.fast", "send.byToken.tooFast"] {
        assert_eq!(new(400, code), "pause Chat Growing(60000) chat_throttled");
    }
    for code in ["too.many.group", "too.many.people", "toomuch.msg"] {
        assert_eq!(
            new(400, code),
            "pause AppApi Growing(60000) fan_out_throttled"
        );
    }
    for code in ["system.busy", "systemBusy", "never.heard.of"] {
        assert_eq!(new(429, code), "pause AppApi Fixed(60000) api_throttled");
    }
}

/// `verdict: code code …`.
const OLD_CODES: &str = "
refresh_token token_refused: 40014 42001 40001 41001
blocked App credentials_refused: 40089
pause AppApi Fixed(1000) api_throttled: 90018 90019
pause Api Growing(1000) platform_throttled: 90002
pause App Growing(60000) app_throttled: 90001 90003 90004 90005 90006 90007 90008
pause App Growing(60000) app_throttled: 90009 90010 90011 90012 90013 90014 90017
pause Organisation Growing(600000) month_quota_exhausted: 90020
blocked App egress_ip_not_allowed: 60020
blocked AppApi permission_missing: 60011
pause Robot Fixed(600000) robot_throttled: 130101 410100
pause Robot Growing(600000) webhook_quota_exhausted: 90030
pause AppApi Fixed(60000) notice_throttled: 143103 143104 143203 143204 1430003
retry dingtalk_busy: -1 660026
dead robot_security: 310000
dead robot_gone: 300001 300005 400101 660014
dead robot_stopped: 400102 660016
dead robot_not_in_chat: 400106
dead chat_disbanded: 400013
dead chat_unknown: 660015 34013
dead content_too_large: 460101 101002 34016
dead content_refused: 430101 430102 430103 430104 1430002
dead recipient_unknown: 33012 60121 40003 40104
dead recipient_not_visible: 50002 50004
dead recipient_daily_cap: 143105
dead recipient_protected: 1430004
dead content_repeated: 143106
dead message_type_unsupported: 400105 401102
dead request_malformed: 40004 40035 43004 400002
dead rejected: 987654 88
";

#[test]
fn every_legacy_code_of_the_table_has_its_verdict_in_every_type() {
    for row in OLD_CODES.trim().lines() {
        let (expected, codes) = row.split_once(": ").unwrap();
        for code in codes.split(' ') {
            assert_eq!(old(code), expected, "{code}");
        }
    }
}

#[test]
fn every_code_stands_once_and_is_reached_by_its_own_row() {
    for row in table::ROWS {
        for code in row.codes {
            let (spelling, found) = table::find(&code.replace('*', "x")).unwrap();
            assert_eq!((spelling, found.why.slug), (*code, row.why.slug));
        }
    }
}

#[test]
fn every_row_of_the_table_is_checked_above() {
    let listed: Vec<&str> = [NEW_CODES, OLD_CODES]
        .iter()
        .flat_map(|rows| rows.split_whitespace())
        .collect();
    let elsewhere = "Forbidden.AccessDenied. send. too.many. toomuch.";
    for code in table::ROWS.iter().flat_map(|row| row.codes) {
        let start = code.trim_end_matches('*');
        let is_listed = listed.iter().any(|seen| match code.strip_suffix('*') {
            Some(start) => seen.starts_with(start),
            None => seen == code,
        });
        // The throttles have a test of their own.
        let mut own = elsewhere.split(' ');
        assert!(
            is_listed || own.any(|other| start.starts_with(other)),
            "{code}"
        );
    }
}

#[test]
fn a_wrapped_code_decides_and_an_empty_wrapper_is_a_refusal() {
    let rows = r#"
        {"errcode":88,"sub_code":"90018"} => pause AppApi Fixed(1000) api_throttled
        {"errcode":88,"sub_code":90002} => pause Api Growing(1000) platform_throttled
        {"errcode":88,"sub_code":"90020"} => pause Organisation Growing(600000) month_quota_exhausted
        {"errcode":"88","sub_code":"60020"} => blocked App egress_ip_not_allowed
        {"errcode":88,"sub_code":"InvalidAuthentication"} => refresh_token token_refused
        {"errcode":88,"sub_code":"isv.never-heard-of"} => dead rejected
        {"errcode":88,"sub_code":"0"} => dead rejected
        {"errcode":88,"sub_code":null} => dead rejected
        {"errcode":0,"sub_code":"40014","processQueryKey":"k"} => sent k
        {"errcode":87,"sub_code":"40014"} => dead rejected"#;
    check(GroupSend, rows);
}
