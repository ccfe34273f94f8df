//! DingTalk's codes and what each means: outbound.md §7.4 (and §1 to §6, §9) as one table.
//!
//! Pure. The first row that matches decides, so the narrow rows stand above the wide ones. A code
//! that ends in `*` stands for every code with that beginning. Codes are compared without case.

use super::why::{self, Why};
use crate::delivery::verdict::Scope::{self, Api, App, AppApi, Chat, Organisation, Robot};
use crate::delivery::verdict::Wait::{self, Fixed, Growing, NextMinute};

/// What kind of refusal a code is; the letters are the classes of outbound.md §7.4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// T: the token was refused.
    Token,
    /// P: throttled; nothing was sent.
    Pause(Scope, Wait),
    /// CFG of an app: an operator must act, the message waits.
    Block(Scope),
    /// R: busy; nothing was sent.
    Retry,
    /// ?: nobody knows.
    Unknown,
    /// X, and CFG of one robot, group or conversation: this message will never pass.
    Dead,
}
use Class::{Block, Dead, Pause, Retry, Token, Unknown};

/// Some codes that mean the same.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// In DingTalk's own spelling, typing errors included.
    pub(super) codes: &'static [&'static str],
    pub(super) class: Class,
    pub(super) why: Why,
}

const SECOND_MS: u64 = 1_000;
const MINUTE_MS: u64 = 60_000;
const TEN_MINUTES_MS: u64 = 600_000;

/// Writes a row as the page does: codes, class, reason.
macro_rules! rows {
    ($($($code:literal)+ => $class:expr, $why:ident;)+) => {
        &[$(Row { codes: &[$($code),+], class: $class, why: why::$why }),+]
    };
}

/// The table.
pub(super) const ROWS: &[Row] = rows! {
    // Tokens and credentials. 40001 on the token call itself means the credentials: `answer` knows.
    "InvalidAuthentication" "accesstoken.expired" => Token, TOKEN_REFUSED;
    "40014" "42001" "40001" "41001" => Token, TOKEN_REFUSED;
    "invalidParameter.token.invalid" "token.notExisted" => Token, TOKEN_REFUSED;
    "invalidClientIdOrSecret" "invalid.client" "unauthorized.client" "authFailed" "40089"
        => Block(App), CREDENTIALS_REFUSED;

    // Throttles of the gateway: 403 like a denial, so they stand above the denials (§7.1).
    "Forbidden.AccessDenied.QpsLimitForAppkeyAndApi" "90018" "90019"
        => Pause(AppApi, Fixed(SECOND_MS)), API_THROTTLED;
    "Forbidden.AccessDenied.QpmLimitForAppkeyAndApi" => Pause(AppApi, NextMinute), API_THROTTLED;
    "Forbidden.AccessDenied.QpsLimitForApi" "90002"
        => Pause(Api, Growing(SECOND_MS)), PLATFORM_THROTTLED;
    "Forbidden.AccessDenied.ApiCountLimit*" "90020"
        => Pause(Organisation, Growing(TEN_MINUTES_MS)), MONTH_QUOTA_EXHAUSTED;
    "Forbidden.AccessDenied.Qps*" => Pause(AppApi, Fixed(SECOND_MS)), API_THROTTLED;
    "Forbidden.AccessDenied.Qpm*" => Pause(AppApi, NextMinute), API_THROTTLED;
    "90001" "90003" "90004" "90005" "90006" "90007" "90008" "90009" "90010" "90011" "90012"
    "90013" "90014" "90017" => Pause(App, Growing(MINUTE_MS)), APP_THROTTLED;

    // Denials.
    "Forbidden.AccessDenied.IpNotInWhiteList" "60020" => Block(App), EGRESS_IP_NOT_ALLOWED;
    "Forbidden.AccessDenied.AccessTokenPermissionDenied" "60011"
        => Block(AppApi), PERMISSION_MISSING;
    "Forbidden.AccessDenied*" => Block(AppApi), ACCESS_DENIED;
    "unauthorized" "auth.error" => Block(AppApi), ACCESS_DENIED;

    // Throttles of the message service.
    "send.too.fast" "send.byToken.tooFast" => Pause(Chat, Growing(MINUTE_MS)), CHAT_THROTTLED;
    // Too many chats or people at once: to pause one chat would let the others go on.
    "too.many.group" "too.many.people" "toomuch.msg"
        => Pause(AppApi, Growing(MINUTE_MS)), FAN_OUT_THROTTLED;
    "130101" "410100" => Pause(Robot, Fixed(TEN_MINUTES_MS)), ROBOT_THROTTLED;
    "90030" => Pause(Robot, Growing(TEN_MINUTES_MS)), WEBHOOK_QUOTA_EXHAUSTED;
    "143103" "143104" "143203" "143204" "1430003" => Pause(AppApi, Fixed(MINUTE_MS)), NOTICE_THROTTLED;

    // Busy, or nobody knows.
    "-1" "system.error" "systemError" "system.busy" "systemBusy" "server.error"
    "660026" "system.updateCallbackFailed" => Retry, DINGTALK_BUSY;
    "unknown.send.result" "unknownError" => Unknown, OUTCOME_UNKNOWN;
    "sendCardMessageFailed" => Retry, CARD_NOT_DELIVERED;

    // The robot.
    "310000" => Dead, ROBOT_SECURITY;
    "300001" "300005" "400101" => Dead, ROBOT_GONE;
    "resource.not.found" "660014" "chatbot.notFound" => Dead, ROBOT_GONE;
    "400102" "bot.stopped" "660016" => Dead, ROBOT_STOPPED;
    "400106" => Dead, ROBOT_NOT_IN_CHAT;
    "resource.unavailable" => Dead, ROBOT_UNAVAILABLE;
    "invalidParameter.robotCode.auth" => Dead, ROBOT_NOT_OWNED;
    "invalidParameter.robotCode.coolApp" => Dead, COOL_APP_MISSING;
    "invalidParameter.robotCode.*" => Dead, ROBOT_CODE_REFUSED;
    "send.forbidden" "bot.forbidden.sendMessage" => Dead, ROBOT_FORBIDDEN;
    "chatbotId.notAllow.sendOTO" => Dead, ROBOT_NOT_PROACTIVE;

    // The conversation.
    "400013" "group.disbanded" => Dead, CHAT_DISBANDED;
    "invalid.openConversationId" "miss.openConversationId" "660015" "34013" => Dead, CHAT_UNKNOWN;
    "cidEncryptError" "cidParse.wrong" "invalideChatId" "param.openSpaceIdInvalid"
        => Dead, CHAT_UNKNOWN;
    "conversation.org.notMatch" "org.notOwn.group" => Dead, CHAT_OF_ANOTHER_ORGANISATION;
    "coolAppUninstalled" "coolAppUnexist" "coolAppPermissionDenied" "groupPermissionDenied"
    "groupTemplatePermissionDenied" "sceneGroup.checkFailed" => Dead, COOL_APP_MISSING;
    "permession.checkFailed" "permission.checkFailed" => Dead, CHAT_NOT_VISIBLE;
    "session.expired" => Dead, SESSION_EXPIRED;

    // The recipient.
    "33012" "60121" "40003" "40104" "staffId.notExisted" "param.userIdNotExist"
        => Dead, RECIPIENT_UNKNOWN;
    "50002" "50004" => Dead, RECIPIENT_NOT_VISIBLE;
    "robot.oto.notExist" => Dead, RECIPIENT_WITHOUT_CHAT;
    "143105" => Dead, RECIPIENT_DAILY_CAP;
    "1430004" => Dead, RECIPIENT_PROTECTED;
    "143106" => Dead, CONTENT_REPEATED;

    // The content.
    "invalidParameter.msgParam.tooLong" "460101" "101002" "34016" => Dead, CONTENT_TOO_LARGE;
    "contain.*" "430101" "430102" "430103" "430104" "param.contentUnsafe" "1430002"
        => Dead, CONTENT_REFUSED;
    "template.*" => Dead, TEMPLATE_REFUSED;
    "param.templateNotExist" "param.templateUnpublished" "param.cardTemplateIdEmpty"
        => Dead, CARD_TEMPLATE_REFUSED;
    "param.cardNotExist" => Dead, CARD_UNKNOWN;
    // What it means depends on what came before: see `outbound::cards`.
    "param.cardAlreadyExist" => Dead, CARD_EXISTS;
    "param.callbackRouteKeyExist" => Dead, CARD_ROUTE_EXISTS;
    "only.groupAdmin.canAtAll" => Dead, AT_ALL_FORBIDDEN;
    "400105" "401102" "invalidParameter.msg.unsupport" "invalidParameter.msgKey.*"
        => Dead, MESSAGE_TYPE_UNSUPPORTED;
    "40004" "40035" "43004" "400002" "Missingbody" "unsupported.grant.type"
    "outTrackId.exceed.limit" => Dead, REQUEST_MALFORMED;
    "invalidParameter.*" "param.*" "paramBlank" "paramIllegal" => Dead, REQUEST_MALFORMED;
};

/// The row of a code and the table's own spelling of it, which is a bounded metric label.
pub(super) fn find(code: &str) -> Option<(&'static str, &'static Row)> {
    ROWS.iter().find_map(|row| {
        let spelling = row.codes.iter().find(|pattern| matches(pattern, code))?;
        Some((*spelling, row))
    })
}

fn matches(pattern: &str, code: &str) -> bool {
    match pattern.strip_suffix('*') {
        None => code.eq_ignore_ascii_case(pattern),
        Some(start) => code
            .get(..start.len())
            .is_some_and(|head| head.eq_ignore_ascii_case(start)),
    }
}
