//! The enterprise robot: messages to groups and to people.

use serde_json::{Map, Value, json};

use super::ask::{Ask, error, ok, text};
use super::limits::{Limit, Pass};
use super::records::{Delivered, Via};
use super::templates::{readable, template};
use super::world::World;
use crate::sim::server::Answer;

/// Printed for the group call only; the box holds the other call to it as well.
const MSG_PARAM_BYTES_MAX: usize = 15_000;
const USER_IDS_MAX: usize = 20;

/// `POST /v1.0/robot/groupMessages/send`.
pub(super) fn group(world: &mut World, ask: &Ask) -> Answer {
    group_message(world, ask).unwrap_or_else(|refusal| refusal)
}

/// `POST /v1.0/robot/oToMessages/batchSend`.
pub(super) fn one_to_one(world: &mut World, ask: &Ask) -> Answer {
    people_message(world, ask).unwrap_or_else(|refusal| refusal)
}

fn group_message(world: &mut World, ask: &Ask) -> Result<Answer, Answer> {
    let body = object(ask)?;
    let known = [
        "robotCode",
        "openConversationId",
        "msgKey",
        "msgParam",
        "coolAppCode",
    ];
    world.judge(ask, "", &body, &known);
    own_robot(world, &body)?;
    let (kind, param) = message(world, ask, &body)?;
    let chat = text(&body, "openConversationId")
        .ok_or_else(|| error(400, "miss.openConversationId", "openConversationId不能为空"))?;
    may_send(world, chat, body.get("coolAppCode"))?;
    if world.limits.pass(Limit::Chat, chat, ask.at) != Pass::Free {
        world.penalise(ask, "chat_20_per_minute", chat);
        return Err(error(400, "send.too.fast", "发送过快"));
    }
    let handle = world.handle();
    let message = delivered(ask, Via::Group, chat, kind, &param, &handle);
    world.delivered.push(message);
    Ok(ok(&json!({"processQueryKey": handle})))
}

/// Whether the robot is in the group, and was called the way it got there.
fn may_send(world: &mut World, chat: &str, code: Option<&Value>) -> Result<(), Answer> {
    let expected = world.settings.app.cool_app_code.clone();
    let robot_left = world.left.iter().any(|left| left == chat);
    let group = world.group(chat).ok_or_else(|| {
        error(
            400,
            "invalid.openConversationId",
            "无效的openConversationId",
        )
    })?;
    if group.disbanded {
        return Err(error(400, "group.disbanded", "群已解散"));
    }
    let fits = match code {
        Some(code) => group.cool_app_installed && code.as_str() == Some(&expected),
        None => !group.cool_app_installed && !robot_left,
    };
    fits.then_some(())
        .ok_or_else(|| error(400, "resource.unavailable", "机器人已停用或酷应用未安装"))
}

fn people_message(world: &mut World, ask: &Ask) -> Result<Answer, Answer> {
    let body = object(ask)?;
    world.judge(
        ask,
        "",
        &body,
        &["robotCode", "userIds", "msgKey", "msgParam"],
    );
    own_robot(world, &body)?;
    let users = user_ids(&body)?;
    let (kind, param) = message(world, ask, &body)?;
    let handle = world.handle();
    let (mut invalid, mut throttled) = (Vec::new(), Vec::new());
    for (i, user) in users.iter().enumerate() {
        if users.iter().take(i).any(|earlier| earlier == user) {
            world.complain(ask, &format!("user {user} named twice"));
            continue;
        }
        let exists = world
            .settings
            .users
            .iter()
            .any(|known| known.userid == *user);
        if !exists || world.switches.invalid_users.contains(user) {
            invalid.push(user);
        } else if world.switches.throttled_users.contains(user) {
            throttled.push(user);
        } else {
            let message = delivered(ask, Via::Oto, user, kind, &param, &handle);
            world.delivered.push(message);
        }
    }
    Ok(ok(&json!({
        "processQueryKey": handle,
        "invalidStaffIdList": invalid,
        "flowControlledStaffIdList": throttled,
    })))
}

fn user_ids(body: &Map<String, Value>) -> Result<Vec<String>, Answer> {
    let empty = || error(400, "invalidParameter.userIds.empty", "userIds不能为空");
    let list = body
        .get("userIds")
        .and_then(Value::as_array)
        .ok_or_else(empty)?;
    let users: Option<Vec<String>> = list
        .iter()
        .map(|user| user.as_str().map(str::to_owned))
        .collect();
    let users = users.filter(|users| !users.is_empty()).ok_or_else(empty)?;
    if users.len() > USER_IDS_MAX {
        return Err(error(
            400,
            "invalidParameter.userIds.overMax",
            "userIds超过最大限制",
        ));
    }
    Ok(users)
}

fn object(ask: &Ask) -> Result<Map<String, Value>, Answer> {
    ask.object()
        .filter(|_| ask.is_json())
        .ok_or_else(|| error(400, "Missingbody", "body is mandatory for this action"))
}

fn own_robot(world: &World, body: &Map<String, Value>) -> Result<(), Answer> {
    match body.get("robotCode") {
        None => Err(error(
            400,
            "invalidParameter.robotCode.missing",
            "缺少robotCode",
        )),
        Some(Value::String(code)) if code.is_empty() => Err(error(
            400,
            "invalidParameter.robotCode.empty",
            "robotCode不能为空",
        )),
        Some(Value::String(code)) if *code == world.settings.app.robot_code => Ok(()),
        // The spelling is DingTalk's.
        Some(_) => Err(error(
            400,
            "invalidParameter.robotCode.notExsit",
            "robotCode不存在",
        )),
    }
}

/// The template's name and the parsed parameters, which must come as JSON inside a string.
fn message<'a>(
    world: &mut World,
    ask: &Ask,
    body: &'a Map<String, Value>,
) -> Result<(&'a str, Map<String, Value>), Answer> {
    let kind = text(body, "msgKey")
        .ok_or_else(|| error(400, "invalidParameter.msgKey.empty", "msgKey不能为空"))?;
    let template = template(kind)
        .ok_or_else(|| error(400, "invalidParameter.msgKey.invalid", "msgKey无效"))?;
    let invalid = || error(400, "invalidParameter.msgParam.invalid", "msgParam无效");
    let param = body
        .get("msgParam")
        .and_then(Value::as_str)
        .ok_or_else(invalid)?;
    if param.len() > MSG_PARAM_BYTES_MAX {
        return Err(error(
            400,
            "invalidParameter.msgParam.tooLong",
            "msgParam超长",
        ));
    }
    let param: Map<String, Value> = serde_json::from_str(param).map_err(|_| invalid())?;
    if !template
        .wanted
        .iter()
        .all(|name| text(&param, name).is_some())
    {
        return Err(invalid());
    }
    let mut known: Vec<&str> = template.wanted.iter().map(String::as_str).collect();
    known.extend(template.allowed);
    world.judge(ask, "msgParam.", &param, &known);
    Ok((kind, param))
}

fn delivered(
    ask: &Ask,
    via: Via,
    target: &str,
    kind: &str,
    param: &Map<String, Value>,
    handle: &str,
) -> Delivered {
    Delivered {
        at_ms: ask.at_ms,
        via,
        target: target.to_owned(),
        kind: kind.to_owned(),
        text: readable(param),
        body: Value::Object(param.clone()),
        msg_uuid: None,
        handle: Some(handle.to_owned()),
    }
}
