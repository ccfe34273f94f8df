//! The way of a request through the box: bans, switches, credentials, frequency, handler.

use super::ask::{Ask, code_of, errcode, error, reply, typed};
use super::limits::{Limit, Pass};
use super::records::Request;
use super::world::World;
use super::{cards, chat, directory, gateway, messages, robot, tokens};
use crate::sim::server::Answer;

/// Far above what any answer of DingTalk needs.
const OVERSIZE_BYTES: usize = 8 << 20;

const BAN_PAGE: &str = "<!DOCTYPE html><html><head><title>访问被拒绝</title></head>\
    <body><h1>Sorry, your request was blocked.</h1></body></html>";

type Handler = fn(&mut World, &Ask) -> Answer;

/// Which credential and which envelope an API has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    /// Gives out tokens, new envelope.
    Token,
    /// Gives out tokens, legacy envelope.
    LegacyToken,
    /// Token in a header.
    New,
    /// Token in the query.
    Legacy,
    /// The robot's own token; no app involved.
    Webhook,
}

impl Door {
    fn is_legacy(self) -> bool {
        matches!(self, Self::LegacyToken | Self::Legacy | Self::Webhook)
    }
}

/// Works, records, and returns what to write; `None` closes the connection.
pub(super) fn handle(world: &mut World, ask: &Ask) -> Option<Answer> {
    let mut answer = answer(world, ask);
    let concerned = world.switches.concern(&ask.path);
    let cut = concerned && world.switches.cut_after;
    let code = code_of(&answer.body);
    let body = String::from_utf8_lossy(&ask.body).into_owned();
    let secret = &world.settings.app.client_secret;
    world.requests.push(Request {
        at_ms: ask.at_ms,
        method: ask.method.clone(),
        path: ask.shown_path(),
        status: if cut { 0 } else { answer.status },
        body: if secret.is_empty() {
            body
        } else {
            body.replace(secret.as_str(), "***")
        },
        code: if cut { None } else { code },
    });
    if concerned && world.switches.break_json {
        let half = answer.body.chars().count() / 2;
        answer.body = answer.body.chars().take(half).collect();
    }
    if concerned && world.switches.oversize_answer {
        answer.body.push_str(&" ".repeat(OVERSIZE_BYTES));
    }
    (!cut).then_some(answer)
}

fn answer(world: &mut World, ask: &Ask) -> Answer {
    match world.limits.pass(Limit::Egress, "ip", ask.at) {
        Pass::Free => {}
        Pass::Broken => {
            world.penalise(ask, "egress", "ip");
            return banned();
        }
        Pass::Shut => return banned(),
    }
    let found = find(ask);
    if world.switches.concern(&ask.path) {
        if world.switches.html {
            return typed(200, "text/html; charset=utf-8", BAN_PAGE.to_owned());
        }
        if world.switches.down {
            return down(found.is_some_and(|(door, _)| door.is_legacy()));
        }
        let scripted = is_send(&ask.path) || world.switches.only.is_some();
        if scripted
            && let Some(wrong) = world
                .switches
                .fail_next
                .pop_front()
                .or_else(|| world.switches.wrong.clone())
        {
            return typed(wrong.status, &wrong.content_type, wrong.body);
        }
    }
    if let Some(failing) = &world.switches.failing
        && is_send(&ask.path)
        && String::from_utf8_lossy(&ask.body).contains(failing.as_str())
    {
        return error(500, "system.error", "系统错误");
    }
    let Some((door, handler)) = found else {
        return error(404, "InvalidAction.NotFound", "Specified api is not found");
    };
    if let Some(refusal) = credential(world, ask, door).or_else(|| frequency(world, ask, door)) {
        return refusal;
    }
    handler(world, ask)
}

fn find(ask: &Ask) -> Option<(Door, Handler)> {
    Some(match (ask.method.as_str(), ask.path.as_str()) {
        ("POST", "/v1.0/oauth2/accessToken") => (Door::Token, tokens::internal),
        ("POST", path) if is_corp_token(path) => (Door::Token, tokens::unified),
        ("GET", "/gettoken") => (Door::LegacyToken, tokens::legacy),
        ("POST", "/v1.0/gateway/connections/open") => (Door::Token, gateway::open),
        ("POST", "/v1.0/robot/groupMessages/send") => (Door::New, messages::group),
        ("POST", "/v1.0/robot/oToMessages/batchSend") => (Door::New, messages::one_to_one),
        ("POST", "/v1.0/im/sceneGroups/query") => (Door::New, directory::scene_group),
        ("POST", "/v1.0/card/instances/createAndDeliver") => (Door::New, cards::create_and_deliver),
        ("POST", "/v1.0/card/instances") => (Door::New, cards::create),
        ("POST", "/v1.0/card/instances/deliver") => (Door::New, cards::deliver),
        ("PUT", "/v1.0/card/instances") => (Door::New, cards::update),
        ("POST", "/v1.0/card/callbacks/register") => (Door::New, cards::register),
        ("POST", "/v1.0/im/interactiveCards/send") => (Door::New, cards::send_legacy),
        ("PUT", "/v1.0/im/interactiveCards") => (Door::New, cards::update_legacy),
        ("POST", "/topapi/im/chat/scencegroup/interactivecard/callback/register") => {
            (Door::Legacy, cards::register_legacy)
        }
        ("POST", "/topapi/v2/user/getbymobile") => (Door::Legacy, directory::by_mobile),
        ("POST", "/topapi/v2/user/get") => (Door::Legacy, directory::by_userid),
        ("POST", "/topapi/user/getbyunionid") => (Door::Legacy, directory::by_unionid),
        ("POST", "/robot/send") => (Door::Webhook, robot::send),
        ("POST", "/robot/sendBySession") => (Door::Webhook, chat::send),
        _ => return None,
    })
}

fn is_corp_token(path: &str) -> bool {
    path.strip_prefix("/v1.0/oauth2/")
        .and_then(|rest| rest.strip_suffix("/token"))
        .is_some_and(|corp| !corp.is_empty() && !corp.contains('/'))
}

fn is_send(path: &str) -> bool {
    let sends = [
        "/v1.0/robot/groupMessages/send",
        "/v1.0/robot/oToMessages/batchSend",
        "/robot/send",
        "/robot/sendBySession",
    ];
    sends.contains(&path)
        || path.starts_with("/v1.0/card/")
        || path.starts_with("/v1.0/im/interactiveCards")
}

fn credential(world: &World, ask: &Ask, door: Door) -> Option<Answer> {
    match door {
        Door::New => {
            let token = ask.token.as_deref().unwrap_or_default();
            (!world.tokens.good(token, ask.at))
                .then(|| error(400, "InvalidAuthentication", "不合法的access_token"))
        }
        Door::Legacy => match ask.parameter("access_token") {
            None => Some(errcode(
                41001,
                "缺少access_token参数,请确认access_token在url上",
            )),
            Some(token) if !world.tokens.good_legacy(&token, ask.at) => {
                Some(errcode(40014, "不合法的access_token"))
            }
            Some(_) => None,
        },
        Door::Token | Door::LegacyToken | Door::Webhook => None,
    }
}

fn frequency(world: &mut World, ask: &Ask, door: Door) -> Option<Answer> {
    // Creating and changing a card are two APIs on one path.
    let api = match ask.method.as_str() {
        "PUT" => format!("PUT {}", ask.path),
        _ => ask.path.clone(),
    };
    if door == Door::Webhook || world.limits.pass(Limit::Api, &api, ask.at) == Pass::Free {
        return None;
    }
    world.penalise(ask, "qps", &api);
    Some(if door.is_legacy() {
        errcode(
            90018,
            "您的服务器调用钉钉开放平台当前接口的所有请求都被暂时禁用了",
        )
    } else {
        error(
            403,
            "Forbidden.AccessDenied.QpsLimitForAppkeyAndApi",
            "当前应用调用该接口的QPS超过限制",
        )
    })
}

/// The status of the punishment page is not documented; 200 is the one that a careless client
/// takes for success.
fn banned() -> Answer {
    let id = super::ask::request_id().to_lowercase().replace('-', "");
    reply(
        200,
        format!(r#"{{"status":1111,"wait":5,"source":"x5","punish":"deny","uuid":"{id}"}}"#),
    )
}

fn down(legacy: bool) -> Answer {
    if legacy {
        let mut answer = errcode(-1, "系统繁忙");
        answer.status = 503;
        answer
    } else {
        error(
            503,
            "ServiceUnavailable",
            "The request has failed due to a temporary failure",
        )
    }
}
