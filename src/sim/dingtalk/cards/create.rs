//! A new card, with or without its first delivery.

use serde_json::{Map, Value, json};

use super::deliver::{self, Target};
use super::{Card, CardCallback, Cause, Change, Repeated, data, object, param};
use crate::sim::dingtalk::ask::{Ask, ok, text};
use crate::sim::dingtalk::world::World;
use crate::sim::server::Answer;

/// What creation takes beside the members of delivery.
const KNOWN: [&str; 11] = [
    "cardTemplateId",
    "outTrackId",
    "cardData",
    "privateData",
    "callbackType",
    "callbackRouteKey",
    "cardAtUserIds",
    "userIdType",
    "openDynamicDataConfig",
    "userId",
    "openSpaceId",
];

/// `POST /v1.0/card/instances/createAndDeliver`.
pub(in crate::sim::dingtalk) fn create_and_deliver(world: &mut World, ask: &Ask) -> Answer {
    both(world, ask).unwrap_or_else(|refusal| refusal)
}

/// `POST /v1.0/card/instances`.
pub(in crate::sim::dingtalk) fn create(world: &mut World, ask: &Ask) -> Answer {
    alone(world, ask).unwrap_or_else(|refusal| refusal)
}

fn both(world: &mut World, ask: &Ask) -> Result<Answer, Answer> {
    let body = object(ask)?;
    let known: Vec<&str> = KNOWN.into_iter().chain(deliver::MODELS).collect();
    world.judge(ask, "", &body, &known);
    let targets = deliver::targets(world, ask, &body)?;
    deliver::models(world, ask, &body, &targets)?;
    let card = card(world, ask, &body)?;
    let id = card.out_track_id.clone();
    let results = if keep(world, card)? {
        deliver::all(world, ask, &id, &targets)
    } else {
        earlier(world, &id, &targets)
    };
    Ok(ok(&json!({
        "success": true,
        "result": {"outTrackId": id, "deliverResults": results},
    })))
}

fn alone(world: &mut World, ask: &Ask) -> Result<Answer, Answer> {
    let body = object(ask)?;
    let known: Vec<&str> = KNOWN.into_iter().chain(deliver::MODELS).collect();
    world.judge(ask, "", &body, &known);
    let card = card(world, ask, &body)?;
    let id = card.out_track_id.clone();
    keep(world, card)?;
    Ok(ok(&json!({"success": true, "result": id})))
}

/// Whether it is a new card; a known one is refused or left as it is.
fn keep(world: &mut World, card: Card) -> Result<bool, Answer> {
    if world.cards.get(&card.out_track_id).is_none() {
        world.cards.cards.push(card);
        return Ok(true);
    }
    match world.settings.cards.repeated {
        Repeated::Refused => Err(param("cardAlreadyExist", "卡片已存在")),
        Repeated::Ignored => Ok(false),
    }
}

/// What a repeated creation is told: where the card already is.
fn earlier(world: &mut World, id: &str, targets: &[Target]) -> Vec<Value> {
    let spaces = world
        .cards
        .get(id)
        .map(|card| card.spaces.clone())
        .unwrap_or_default();
    targets
        .iter()
        .map(|target| {
            let there = spaces
                .iter()
                .find(|space| space.kind == target.kind && space.id == target.id);
            target.result(there.map(|space| space.carrier.as_str()).ok_or("投放失败"))
        })
        .collect()
}

fn card(world: &mut World, ask: &Ask, body: &Map<String, Value>) -> Result<Card, Answer> {
    let id = data::out_track_id(world, ask, body)?;
    let template = template(world, body)?;
    let by_unionid = data::by_unionid(body)?;
    let public =
        data::public(world, ask, body)?.ok_or_else(|| param("invalid", "cardData is missing"))?;
    let private = data::private(world, ask, body, by_unionid)?;
    let callback = callback(world, ask, body)?;
    let mut card = Card {
        out_track_id: id,
        template,
        legacy: false,
        callback,
        by_unionid,
        spaces: Vec::new(),
        public: super::Data::new(),
        private: std::collections::BTreeMap::new(),
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

/// A template that exists and is published.
pub(super) fn template(world: &World, body: &Map<String, Value>) -> Result<String, Answer> {
    let template = text(body, "cardTemplateId")
        .ok_or_else(|| param("cardTemplateIdEmpty", "cardTemplateId不能为空"))?
        .to_owned();
    let settings = &world.settings.cards;
    if settings.unpublished.contains(&template) {
        return Err(param("templateUnpublished", "卡片模板未发布"));
    }
    if !settings.templates.is_empty() && !settings.templates.contains(&template) {
        return Err(param("templateNotExist", "卡片模板不存在"));
    }
    Ok(template)
}

/// DingTalk would take a key that nobody registered, and the clicks would then go nowhere.
fn callback(
    world: &mut World,
    ask: &Ask,
    body: &Map<String, Value>,
) -> Result<CardCallback, Answer> {
    let key = body.get("callbackRouteKey");
    match body.get("callbackType").map(Value::as_str) {
        None => {
            if key.is_some() {
                world.complain(ask, "callbackRouteKey has no effect without callbackType");
            }
            Ok(CardCallback::None)
        }
        Some(Some("STREAM")) => {
            if key.is_some() {
                world.complain(ask, "callbackRouteKey has no effect in Stream mode");
            }
            Ok(CardCallback::Stream)
        }
        Some(Some("HTTP")) => {
            let key = key
                .and_then(Value::as_str)
                .ok_or_else(|| param("invalid", "callbackRouteKey is missing"))?;
            world
                .cards
                .route(key)
                .ok_or_else(|| param("invalid", "callbackRouteKey is not registered"))?;
            Ok(CardCallback::Http(key.to_owned()))
        }
        Some(_) => Err(param("invalid", "callbackType is neither HTTP nor STREAM")),
    }
}
