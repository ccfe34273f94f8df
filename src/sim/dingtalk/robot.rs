//! The custom group robot: its limit, its security settings, its message types.

use serde_json::{Map, Value, json};
use subtle::ConstantTimeEq as _;

use super::ask::{Ask, errcode, ok, text};
use super::limits::{Limit, Pass};
use super::records::{Delivered, Via};
use super::settings::Robot;
use super::sign;
use super::templates::readable;
use super::world::World;
use crate::sim::clock;
use crate::sim::server::Answer;

const BODY_BYTES_MAX: usize = 20_000;
const CLOCK_TOLERANCE_MS: u64 = 3_600_000;
const MENTIONS_MAX: usize = 50;

/// `POST /robot/send`.
pub(super) fn send(world: &mut World, ask: &Ask) -> Answer {
    message(world, ask).unwrap_or_else(|refusal| refusal)
}

fn message(world: &mut World, ask: &Ask) -> Result<Answer, Answer> {
    let token = ask.parameter("access_token").unwrap_or_default();
    let robot = world
        .settings
        .robots
        .iter()
        .find(|robot| robot.access_token == token)
        .cloned()
        .ok_or_else(|| errcode(300_005, "token is not exist"))?;
    // Every arrival counts, also one that is refused below: a client that hopes otherwise is
    // better surprised here.
    match world.limits.pass(Limit::Robot, &token, ask.at) {
        Pass::Free => {}
        pass => {
            if pass == Pass::Broken {
                world.penalise(ask, "robot_20_per_minute", &token);
            }
            return Err(errcode(
                130_101,
                "send too fast, exceed 20 times per minute",
            ));
        }
    }
    if !ask.is_json() {
        return Err(errcode(43004, "无效的HTTP HEADER Content-Type"));
    }
    if ask.body.len() > BODY_BYTES_MAX {
        let text = "description: body 大小不合法;solution:请保持大小在 20000bytes 以内;";
        return Err(errcode(460_101, text));
    }
    let body = ask
        .object()
        .ok_or_else(|| errcode(40035, "缺少参数 json"))?;
    signed(&robot, ask)?;
    let kind = well_formed(world, ask, &body)?;
    let content = readable_content(&kind, &body);
    if robot.keyword.is_some_and(|word| !content.contains(&word)) {
        return Err(insecure("关键词不匹配"));
    }
    judge_mentions(world, ask, &kind, &body, &content);
    let uuid = text(&body, "msgUuid").map(str::to_owned);
    let body = Value::Object(body);
    if let Some(uuid) = &uuid {
        let key = (token.clone(), uuid.clone());
        if let Some(earlier) = world.uuids.get(&key) {
            if *earlier != body {
                world.complain(
                    ask,
                    &format!("msgUuid {uuid} used again for another message"),
                );
            }
            return Ok(success());
        }
        world.uuids.insert(key, body.clone());
    }
    world.delivered.push(Delivered {
        at_ms: ask.at_ms,
        via: Via::Webhook,
        target: token,
        kind,
        text: content,
        body,
        msg_uuid: uuid,
        handle: None,
    });
    Ok(success())
}

fn success() -> Answer {
    ok(&json!({"errcode": 0, "errmsg": "ok"}))
}

fn insecure(reason: &str) -> Answer {
    errcode(
        310_000,
        &format!("description:{reason};solution:请检查安全设置;link:无;"),
    )
}

fn signed(robot: &Robot, ask: &Ask) -> Result<(), Answer> {
    let Some(secret) = &robot.secret else {
        return Ok(());
    };
    let timestamp = ask.parameter("timestamp").unwrap_or_default();
    let sign = ask.parameter("sign").unwrap_or_default();
    let fresh = timestamp
        .parse::<u64>()
        .is_ok_and(|at| clock::wall_ms().abs_diff(at) <= CLOCK_TOLERANCE_MS);
    if !fresh {
        return Err(insecure("机器人发送签名过期"));
    }
    let right = sign::robot(&timestamp, secret);
    bool::from(right.as_bytes().ct_eq(sign.as_bytes()))
        .then_some(())
        .ok_or_else(|| insecure("机器人发送签名不匹配"))
}

/// The members that each type must have as text, and those that it may have.
fn members(kind: &str) -> Option<(&'static [&'static str], &'static [&'static str])> {
    Some(match kind {
        "text" => (&["content"], &[]),
        "link" => (&["title", "text", "messageUrl"], &["picUrl"]),
        "markdown" => (&["title", "text"], &[]),
        "actionCard" => (
            &["title", "text"],
            &[
                "singleTitle",
                "singleURL",
                "btns",
                "btnOrientation",
                "hideAvatar",
            ],
        ),
        "feedCard" => (&[], &["links"]),
        _ => return None,
    })
}

/// The msgtype of a message that has everything it must have.
pub(super) fn well_formed(
    world: &mut World,
    ask: &Ask,
    body: &Map<String, Value>,
) -> Result<String, Answer> {
    let kind = text(body, "msgtype").unwrap_or_default().to_owned();
    let (wanted, allowed) = members(&kind).ok_or_else(|| errcode(400_105, "不支持的消息类型"))?;
    world.judge(ask, "", body, &["msgtype", "msgUuid", "at", &kind]);
    if body.get("msgUuid").is_some_and(|uuid| !uuid.is_string()) {
        world.complain(ask, "msgUuid is not a string");
    }
    let missing = |what: &str| errcode(40035, &format!("缺少参数 {what}"));
    let content = body
        .get(&kind)
        .and_then(Value::as_object)
        .ok_or_else(|| missing(&kind))?;
    if let Some(name) = wanted.iter().find(|name| text(content, name).is_none()) {
        return Err(missing(name));
    }
    let known: Vec<&str> = wanted.iter().chain(allowed).copied().collect();
    world.judge(ask, &format!("{kind}."), content, &known);
    match kind.as_str() {
        "actionCard" => buttons(world, ask, content)?,
        "feedCard" => {
            list(
                world,
                ask,
                content,
                "links",
                &["title", "messageURL"],
                &["picURL"],
            )?;
        }
        _ => {}
    }
    Ok(kind)
}

fn buttons(world: &mut World, ask: &Ask, card: &Map<String, Value>) -> Result<(), Answer> {
    let single = text(card, "singleTitle").is_some() && text(card, "singleURL").is_some();
    for name in ["btnOrientation", "hideAvatar"] {
        if card
            .get(name)
            .is_some_and(|flag| flag.as_str().is_none_or(|f| f != "0" && f != "1"))
        {
            world.complain(
                ask,
                &format!("actionCard.{name} is neither \"0\" nor \"1\""),
            );
        }
    }
    if !single {
        return list(world, ask, card, "btns", &["title", "actionURL"], &[]);
    }
    if card.contains_key("btns") {
        world.complain(ask, "actionCard.btns has no effect beside singleTitle");
    }
    Ok(())
}

fn list(
    world: &mut World,
    ask: &Ask,
    content: &Map<String, Value>,
    name: &str,
    wanted: &[&str],
    allowed: &[&str],
) -> Result<(), Answer> {
    let missing = || errcode(40035, &format!("缺少参数 {name}"));
    let items = content
        .get(name)
        .and_then(Value::as_array)
        .ok_or_else(missing)?;
    if items.is_empty() {
        return Err(missing());
    }
    let known: Vec<&str> = wanted.iter().chain(allowed).copied().collect();
    for item in items {
        let item = item.as_object().ok_or_else(missing)?;
        if wanted.iter().any(|member| text(item, member).is_none()) {
            return Err(missing());
        }
        world.judge(ask, &format!("{name}[]."), item, &known);
    }
    Ok(())
}

/// What a person reads.
pub(super) fn readable_content(kind: &str, body: &Map<String, Value>) -> String {
    let Some(content) = body.get(kind).and_then(Value::as_object) else {
        return String::new();
    };
    let links = content.get("links").and_then(Value::as_array);
    let titles = links
        .into_iter()
        .flatten()
        .filter_map(|link| link.get("title")?.as_str());
    let mut parts = vec![readable(content)];
    parts.extend(titles.map(str::to_owned));
    parts.retain(|part| !part.is_empty());
    parts.join("\n")
}

/// Mentions that DingTalk would silently not make.
pub(super) fn judge_mentions(
    world: &mut World,
    ask: &Ask,
    kind: &str,
    body: &Map<String, Value>,
    content: &str,
) {
    let Some(at) = body.get("at") else { return };
    let Some(at) = at.as_object() else {
        return world.complain(ask, "at is not an object");
    };
    world.judge(ask, "at.", at, &["atMobiles", "atUserIds", "isAtAll"]);
    if at.get("isAtAll").is_some_and(|all| !all.is_boolean()) {
        world.complain(ask, "at.isAtAll is not a boolean");
    }
    let mut mentions = 0;
    for name in ["atMobiles", "atUserIds"] {
        let Some(list) = at.get(name) else { continue };
        let Some(list) = list.as_array() else {
            world.complain(ask, &format!("at.{name} is not an array"));
            continue;
        };
        mentions += list.len();
        for who in list {
            match who.as_str() {
                Some(who) if content.contains(&format!("@{who}")) => {}
                Some(who) => world.complain(ask, &format!("@{who} is not in the text")),
                None => world.complain(ask, &format!("at.{name} holds something else than text")),
            }
        }
    }
    if mentions > MENTIONS_MAX {
        world.complain(
            ask,
            &format!("{mentions} mentions, {MENTIONS_MAX} are allowed"),
        );
    }
    let everybody = at.get("isAtAll") == Some(&Value::Bool(true));
    if matches!(kind, "link" | "feedCard") && (mentions > 0 || everybody) {
        world.complain(ask, &format!("{kind} cannot mention anybody"));
    }
}
