//! A card goes into chats: each space has models of its own, and each may fail alone.

use serde_json::{Map, Value, json};

use super::{Space, data, object, param, person};
use crate::sim::dingtalk::ask::{Ask, ok, text};
use crate::sim::dingtalk::records::{Delivered, Via};
use crate::sim::dingtalk::world::World;
use crate::sim::server::Answer;

const PREFIX: &str = "dtv1.card//";

/// The members that describe spaces and deliveries.
pub(super) const MODELS: [&str; 8] = [
    "imGroupOpenSpaceModel",
    "imGroupOpenDeliverModel",
    "imRobotOpenSpaceModel",
    "imRobotOpenDeliverModel",
    "imSingleOpenSpaceModel",
    "imSingleOpenDeliverModel",
    "topOpenSpaceModel",
    "topOpenDeliverModel",
];

/// One space that a card is to go to.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) kind: &'static str,
    /// As it was asked for.
    pub(super) given: String,
    /// The openConversationId; for a person the userid, or what was given when nobody has it.
    pub(super) id: String,
}

impl Target {
    /// One element of `deliverResults`: the carrier, or what went wrong.
    pub(super) fn result(&self, outcome: Result<&str, &str>) -> Value {
        json!({
            "spaceType": self.kind,
            "spaceId": self.given,
            "success": outcome.is_ok(),
            "carrierId": outcome.unwrap_or_default(),
            "errorMsg": outcome.err().unwrap_or_default(),
        })
    }
}

/// `POST /v1.0/card/instances/deliver`.
pub(in crate::sim::dingtalk) fn deliver(world: &mut World, ask: &Ask) -> Answer {
    known_card(world, ask).unwrap_or_else(|refusal| refusal)
}

fn known_card(world: &mut World, ask: &Ask) -> Result<Answer, Answer> {
    let body = object(ask)?;
    let known: Vec<&str> = ["outTrackId", "openSpaceId", "userIdType"]
        .into_iter()
        .chain(MODELS)
        .collect();
    world.judge(ask, "", &body, &known);
    let id = data::out_track_id(world, ask, &body)?;
    let targets = targets(world, ask, &body)?;
    models(world, ask, &body, &targets)?;
    if world.cards.get(&id).is_none() {
        return Err(param("cardNotExist", "卡片不存在"));
    }
    let results = all(world, ask, &id, &targets);
    Ok(ok(&json!({"success": true, "result": results})))
}

/// The spaces of `openSpaceId`.
pub(super) fn targets(
    world: &mut World,
    ask: &Ask,
    body: &Map<String, Value>,
) -> Result<Vec<Target>, Answer> {
    let given = text(body, "openSpaceId")
        .ok_or_else(|| param("openSpaceIdEmpty", "openSpaceId不能为空"))?;
    let invalid = || param("openSpaceIdInvalid", "openSpaceId无效");
    let by_unionid = data::by_unionid(body)?;
    let mut targets = Vec::new();
    for space in given.strip_prefix(PREFIX).ok_or_else(invalid)?.split(';') {
        let (kind, id) = space.split_once('.').ok_or_else(invalid)?;
        let upper = kind.to_uppercase();
        if upper != kind {
            world.complain(ask, &format!("space type {kind} is not in upper case"));
        }
        let kind = ["IM_GROUP", "IM_ROBOT", "IM_SINGLE", "ONE_BOX"]
            .into_iter()
            .find(|known| *known == upper)
            .ok_or_else(invalid)?;
        let is_chat = kind != "IM_ROBOT";
        if id.is_empty() || (is_chat && !id.starts_with("cid")) {
            return Err(invalid());
        }
        let known = (!is_chat).then(|| person(world, id, by_unionid)).flatten();
        targets.push(Target {
            kind,
            given: id.to_owned(),
            id: known.unwrap_or_else(|| id.to_owned()),
        });
    }
    Ok(targets)
}

/// Checks the models that the spaces need.
pub(super) fn models(
    world: &mut World,
    ask: &Ask,
    body: &Map<String, Value>,
    targets: &[Target],
) -> Result<(), Answer> {
    for name in MODELS {
        if body.get(name).is_some_and(|model| !model.is_object()) {
            return Err(param("invalid", &format!("{name} is not an object")));
        }
    }
    for target in targets {
        match target.kind {
            "IM_GROUP" => group_models(world, ask, body)?,
            "IM_ROBOT" => robot_models(world, ask, body)?,
            "ONE_BOX" => top_models(world, ask, body)?,
            // The pages do not print the model of a chat between two people.
            _ => {}
        }
    }
    Ok(())
}

fn model<'a>(
    world: &mut World,
    ask: &Ask,
    body: &'a Map<String, Value>,
    name: &str,
    known: &[&str],
) -> Option<&'a Map<String, Value>> {
    let model = body.get(name)?.as_object()?;
    world.judge(ask, &format!("{name}."), model, known);
    Some(model)
}

const SPACE: [&str; 4] = [
    "supportForward",
    "lastMessageI18n",
    "searchSupport",
    "notification",
];

fn group_models(world: &mut World, ask: &Ask, body: &Map<String, Value>) -> Result<(), Answer> {
    let space = model(world, ask, body, "imGroupOpenSpaceModel", &SPACE)
        .ok_or_else(|| param("invalid", "imGroupOpenSpaceModel is missing"))?;
    if !space.get("supportForward").is_some_and(Value::is_boolean) {
        return Err(param(
            "invalid",
            "imGroupOpenSpaceModel.supportForward is not a boolean",
        ));
    }
    let known = ["robotCode", "atUserIds", "recipients", "extension"];
    let deliver = model(world, ask, body, "imGroupOpenDeliverModel", &known)
        .ok_or_else(|| param("openDeliverModelEmpty", "imGroupOpenDeliverModel不能为空"))?;
    own_robot(world, deliver)?;
    if let Some(at) = deliver.get("atUserIds") {
        let at = at
            .as_object()
            .filter(|at| at.values().all(Value::is_string))
            .ok_or_else(|| param("openDeliverModelError", "atUserIds is not a map of strings"))?;
        for id in at.keys().filter(|id| *id != "@ALL") {
            let known = |it: &super::super::User| it.userid == *id || it.unionid == *id;
            if !world.settings.users.iter().any(known) {
                world.complain(ask, &format!("atUserIds names {id}, whom nobody knows"));
            }
        }
    }
    let texts = |list: &Vec<Value>| list.iter().all(Value::is_string);
    if let Some(list) = deliver.get("recipients")
        && !list.as_array().is_some_and(texts)
    {
        return Err(param(
            "openDeliverModelError",
            "recipients is not a list of strings",
        ));
    }
    Ok(())
}

fn robot_models(world: &mut World, ask: &Ask, body: &Map<String, Value>) -> Result<(), Answer> {
    model(world, ask, body, "imRobotOpenSpaceModel", &SPACE);
    let known = ["spaceType", "robotCode", "extension"];
    let deliver = model(world, ask, body, "imRobotOpenDeliverModel", &known)
        .ok_or_else(|| param("openDeliverModelEmpty", "imRobotOpenDeliverModel不能为空"))?;
    if text(deliver, "spaceType") != Some("IM_ROBOT") {
        return Err(param("openDeliverModelError", "spaceType is not IM_ROBOT"));
    }
    if deliver.contains_key("robotCode") {
        own_robot(world, deliver)?;
    }
    Ok(())
}

fn top_models(world: &mut World, ask: &Ask, body: &Map<String, Value>) -> Result<(), Answer> {
    model(world, ask, body, "topOpenSpaceModel", &["spaceType"]);
    let known = ["expiredTimeMillis", "userIds", "platforms"];
    let deliver = model(world, ask, body, "topOpenDeliverModel", &known)
        .ok_or_else(|| param("openDeliverModelEmpty", "topOpenDeliverModel不能为空"))?;
    if !deliver.get("expiredTimeMillis").is_some_and(Value::is_u64) {
        return Err(param(
            "openDeliverModelError",
            "expiredTimeMillis is not a number",
        ));
    }
    Ok(())
}

fn own_robot(world: &World, model: &Map<String, Value>) -> Result<(), Answer> {
    (text(model, "robotCode") == Some(&world.settings.app.robot_code))
        .then_some(())
        .ok_or_else(|| param("openDeliverModelError", "robotCode无效"))
}

/// Delivers to each space and says for each what became of it.
pub(super) fn all(world: &mut World, ask: &Ask, id: &str, targets: &[Target]) -> Vec<Value> {
    let mut results = Vec::new();
    for target in targets {
        results.push(match fault(world, target) {
            Some(fault) => target.result(Err(fault)),
            None => target.result(Ok(&post(world, ask, id, target.kind, &target.id))),
        });
    }
    results
}

/// Why the space cannot be reached.
fn fault(world: &mut World, target: &Target) -> Option<&'static str> {
    let id = &target.id;
    if world.switches.undeliverable.contains(id) {
        return Some("投放失败");
    }
    match target.kind {
        "IM_ROBOT" => {
            let known = world.settings.users.iter().any(|user| user.userid == *id);
            let reachable = known && !world.switches.invalid_users.contains(id);
            (!reachable).then_some("用户不存在")
        }
        "IM_SINGLE" => None,
        _ => {
            let left = world.left.contains(id);
            match world.group(id) {
                None => Some("会话不存在"),
                Some(group) if group.disbanded => Some("群已解散"),
                Some(_) if left => Some("机器人不在群内"),
                Some(_) => None,
            }
        }
    }
}

/// The card appears in a chat; returns the message's handle.
pub(super) fn post(world: &mut World, ask: &Ask, id: &str, kind: &str, space: &str) -> String {
    let carrier = world.handle();
    let Some(card) = world.cards.get(id) else {
        return carrier;
    };
    card.spaces.push(Space {
        kind: kind.to_owned(),
        id: space.to_owned(),
        carrier: carrier.clone(),
    });
    let values: Vec<&str> = card.public.values().map(String::as_str).collect();
    let message = Delivered {
        at_ms: ask.at_ms,
        via: Via::Card,
        target: space.to_owned(),
        kind: id.to_owned(),
        text: values.join("\n"),
        body: json!(card.public),
        msg_uuid: None,
        handle: Some(carrier.clone()),
    };
    world.delivered.push(message);
    carrier
}
