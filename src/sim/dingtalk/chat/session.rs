//! Reply addresses: each message to the robot brings one, and it dies after an hour and a half.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::sim::clock;
use crate::sim::dingtalk::ask::{Ask, errcode, ok, text};
use crate::sim::dingtalk::records::{Delivered, Via};
use crate::sim::dingtalk::robot;
use crate::sim::dingtalk::world::World;
use crate::sim::server::Answer;

/// Who replies where, and until when.
pub(in crate::sim::dingtalk) type Sessions = HashMap<String, Session>;

/// One reply address.
#[derive(Debug)]
pub(in crate::sim::dingtalk) struct Session {
    /// The group, or the person.
    target: String,
    until_ms: u64,
}

/// Opens a reply address and returns its URL.
pub(super) fn open(world: &mut World, target: &str, until_ms: u64) -> String {
    let key = clock::hex(&clock::random::<16>());
    let base = world.settings.session_url.clone();
    let base = base.unwrap_or_else(|| world.url.clone());
    let session = Session {
        target: target.to_owned(),
        until_ms,
    };
    let url = format!("{base}/robot/sendBySession?session={key}");
    world.sessions.insert(key, session);
    url
}

/// `POST /robot/sendBySession`.
pub(in crate::sim::dingtalk) fn send(world: &mut World, ask: &Ask) -> Answer {
    let key = ask.parameter("session").unwrap_or_default();
    let live = world.sessions.get(&key);
    let live = live.filter(|session| clock::wall_ms() < session.until_ms);
    let Some(target) = live.map(|session| session.target.clone()) else {
        return errcode(300_001, "session 不存在");
    };
    if !ask.is_json() {
        return errcode(43004, "无效的HTTP HEADER Content-Type");
    }
    let Some(body) = ask.object() else {
        return errcode(40035, "缺少参数 json");
    };
    match deliver(world, ask.at_ms, "reply", Via::Session, &target, &body) {
        Ok(_) => ok(&json!({"errcode": 0, "errmsg": "ok"})),
        Err(refusal) => refusal,
    }
}

/// Puts a reply into the chat; false when it says that there is none.
pub(super) fn deliver(
    world: &mut World,
    at_ms: u64,
    what: &str,
    via: Via,
    target: &str,
    body: &Map<String, Value>,
) -> Result<bool, Answer> {
    let about = Ask::about(what);
    match text(body, "msgtype") {
        Some("empty") => return Ok(false),
        Some("link") if via == Via::Answer => {
            return Err(errcode(400_105, "不支持的消息类型"));
        }
        Some("file" | "audio" | "video") => return Err(errcode(401_102, "不支持的消息类型")),
        _ => {}
    }
    let kind = robot::well_formed(world, &about, body)?;
    let content = robot::readable_content(&kind, body);
    robot::judge_mentions(world, &about, &kind, body, &content);
    world.delivered.push(Delivered {
        at_ms,
        via,
        target: target.to_owned(),
        kind,
        text: content,
        body: Value::Object(body.clone()),
        msg_uuid: text(body, "msgUuid").map(str::to_owned),
        handle: None,
    });
    Ok(true)
}
