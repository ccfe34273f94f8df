//! The old interactive cards: closed to new apps, still used by those that had them.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::create::template;
use super::{
    Card, CardCallback, Cause, Change, Data, data, deliver, object, param, routes, update as new,
};
use crate::sim::dingtalk::ask::{Ask, errcode, error, ok, text};
use crate::sim::dingtalk::world::World;
use crate::sim::server::Answer;

const RECEIVERS_MAX: usize = 20;
const DATA_BYTES_MAX: usize = 100 << 10;

/// `POST /v1.0/im/interactiveCards/send`.
pub(in crate::sim::dingtalk) fn send(world: &mut World, ask: &Ask) -> Answer {
    sent(world, ask).unwrap_or_else(|refusal| refusal)
}

/// `PUT /v1.0/im/interactiveCards`.
pub(in crate::sim::dingtalk) fn update(world: &mut World, ask: &Ask) -> Answer {
    let changed = open(world).and_then(|()| new::change(world, ask, "cardOptions", true));
    changed.map_or_else(|refusal| refusal, |()| ok(&json!({"success": true})))
}

/// `POST /topapi/im/chat/scencegroup/interactivecard/callback/register`; the spelling is DingTalk's.
pub(in crate::sim::dingtalk) fn register(world: &mut World, ask: &Ask) -> Answer {
    let Some(body) = ask.object().filter(|_| ask.is_json()) else {
        return errcode(400_002, "参数错误");
    };
    let known = [
        "callback_url",
        "api_secret",
        "callbackRouteKey",
        "forceUpdate",
    ];
    world.judge(ask, "", &body, &known);
    let Some(url) = text(&body, "callback_url").filter(|url| !url.contains('?')) else {
        return errcode(400_002, "参数错误 callback_url");
    };
    // Without a name it is the app's own.
    let key = text(&body, "callbackRouteKey")
        .unwrap_or(&world.settings.app.client_id)
        .to_owned();
    let force = body.get("forceUpdate") == Some(&Value::Bool(true));
    let secret = text(&body, "api_secret").map(str::to_owned);
    match routes::put(world, &key, url, secret, force) {
        Some(route) => ok(&json!({
            "errcode": 0,
            "errmsg": "ok",
            "success": true,
            "result": {"callback_url": route.url, "api_secret": route.secret},
        })),
        None => errcode(400_002, "callbackRouteKey已存在"),
    }
}

fn open(world: &World) -> Result<(), Answer> {
    let closed = || error(400, "permission.checkFailed", "该接口不再对新应用开放");
    world.settings.cards.legacy.then_some(()).ok_or_else(closed)
}

fn sent(world: &mut World, ask: &Ask) -> Result<Answer, Answer> {
    open(world)?;
    let body = object(ask)?;
    let known = [
        "cardTemplateId",
        "outTrackId",
        "conversationType",
        "openConversationId",
        "receiverUserIdList",
        "robotCode",
        "callbackRouteKey",
        "cardData",
        "privateData",
        "atOpenIds",
        "cardOptions",
        "userIdType",
        "pullStrategy",
    ];
    world.judge(ask, "", &body, &known);
    if ask.body.len() > DATA_BYTES_MAX {
        return Err(param("invalid", "cardData and privateData are too large"));
    }
    let by_unionid = data::by_unionid(&body)?;
    let spaces = spaces(world, &body, by_unionid)?;
    let card = card(world, ask, &body, by_unionid)?;
    let id = card.out_track_id.clone();
    // Whether a second send under one id shows a second message is not documented.
    if world.cards.get(&id).is_none() {
        world.cards.cards.push(card);
    } else {
        world.complain(ask, &format!("outTrackId {id} sent again"));
    }
    let carriers: Vec<String> = spaces
        .iter()
        .map(|(kind, space)| deliver::post(world, ask, &id, kind, space))
        .collect();
    let key = carriers.first().map_or("", String::as_str);
    Ok(ok(
        &json!({"success": true, "result": {"processQueryKey": key}}),
    ))
}

fn card(
    world: &mut World,
    ask: &Ask,
    body: &Map<String, Value>,
    by_unionid: bool,
) -> Result<Card, Answer> {
    if text(body, "outTrackId").is_some_and(|id| id.chars().count() > 100) {
        return Err(error(400, "outTrackId.exceed.limit", "outTrackId超长"));
    }
    let id = data::out_track_id(world, ask, body)?;
    let template = template(world, body)?;
    let public =
        data::public(world, ask, body)?.ok_or_else(|| param("invalid", "cardData is missing"))?;
    let private = data::private(world, ask, body, by_unionid)?;
    let callback = match text(body, "callbackRouteKey") {
        None => CardCallback::None,
        Some(key) if world.cards.route(key).is_some() => CardCallback::Http(key.to_owned()),
        Some(_) => return Err(param("invalid", "callbackRouteKey is not registered")),
    };
    let mut card = Card {
        out_track_id: id,
        template,
        legacy: true,
        callback,
        by_unionid,
        spaces: Vec::new(),
        public: Data::new(),
        private: BTreeMap::new(),
        history: Vec::new(),
    };
    let change = Change {
        public: Some(public),
        private,
        ..Change::default()
    };
    card.change(ask.at_ms, Cause::Created, change);
    Ok(card)
}

/// The group, or the people, that the card goes to.
fn spaces(
    world: &mut World,
    body: &Map<String, Value>,
    by_unionid: bool,
) -> Result<Vec<(&'static str, String)>, Answer> {
    if text(body, "robotCode").is_some_and(|code| code != world.settings.app.robot_code) {
        return Err(error(400, "chatbot.notFound", "机器人不存在"));
    }
    match body.get("conversationType").and_then(Value::as_u64) {
        Some(1) => {
            let chat = text(body, "openConversationId")
                .ok_or_else(|| param("invalid", "openConversationId is missing"))?;
            if !chat.starts_with("cid") {
                return Err(error(400, "cidParse.wrong", "openConversationId解析失败"));
            }
            let left = world.left.iter().any(|left| left == chat);
            let group = world
                .group(chat)
                .ok_or_else(|| error(400, "org.notOwn.group", "群不属于该企业"))?;
            if group.disbanded || left {
                return Err(error(400, "sceneGroup.checkFailed", "群校验失败"));
            }
            Ok(vec![("IM_GROUP", chat.to_owned())])
        }
        Some(0) => {
            let list = body
                .get("receiverUserIdList")
                .and_then(Value::as_array)
                .filter(|list| (1..=RECEIVERS_MAX).contains(&list.len()))
                .ok_or_else(|| param("invalid", "receiverUserIdList"))?;
            list.iter()
                .map(|id| {
                    id.as_str()
                        .and_then(|id| super::person(world, id, by_unionid))
                        .map(|user| ("IM_ROBOT", user))
                        .ok_or_else(|| param("userIdNotExist", "用户不存在"))
                })
                .collect()
        }
        _ => Err(param("invalid", "conversationType is neither 0 nor 1")),
    }
}
