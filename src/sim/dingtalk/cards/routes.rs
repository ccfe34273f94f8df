//! Addresses for clicks, registered under names that cards refer to.

use serde_json::{Value, json};

use super::{CardRoute, object, param};
use crate::sim::dingtalk::ask::{Ask, error, ok, text};
use crate::sim::dingtalk::world::World;
use crate::sim::server::Answer;

/// `POST /v1.0/card/callbacks/register`.
pub(in crate::sim::dingtalk) fn register(world: &mut World, ask: &Ask) -> Answer {
    registered(world, ask).unwrap_or_else(|refusal| refusal)
}

fn registered(world: &mut World, ask: &Ask) -> Result<Answer, Answer> {
    let body = object(ask)?;
    if body.is_empty() {
        return Err(param("empty", "参数为空"));
    }
    let known = [
        "callbackRouteKey",
        "callbackUrl",
        "apiSecret",
        "forceUpdate",
    ];
    world.judge(ask, "", &body, &known);
    let key = text(&body, "callbackRouteKey")
        .ok_or_else(|| param("callbackRouteKeyEmpty", "callbackRouteKey不能为空"))?;
    let url = text(&body, "callbackUrl")
        .ok_or_else(|| param("callbackUrlEmpty", "callbackUrl不能为空"))?;
    let force = match body.get("forceUpdate") {
        None => false,
        Some(Value::Bool(force)) => *force,
        Some(_) => return Err(param("invalid", "forceUpdate is not a boolean")),
    };
    if body
        .get("apiSecret")
        .is_some_and(|secret| !secret.is_string())
    {
        return Err(param("invalid", "apiSecret is not a string"));
    }
    let secret = text(&body, "apiSecret").map(str::to_owned);
    if secret.is_none() {
        world.complain(ask, "without apiSecret the clicks come unsigned");
    }
    let route = put(world, key, url, secret, force)
        .ok_or_else(|| error(500, "param.callbackRouteKeyExist", "callbackRouteKey已存在"))?;
    Ok(ok(&json!({
        "success": true,
        "result": {"callbackUrl": route.url, "apiSecret": route.secret},
    })))
}

/// The registration that holds afterwards; `None` when the name is taken and that is an error.
pub(super) fn put(
    world: &mut World,
    key: &str,
    url: &str,
    secret: Option<String>,
    force: bool,
) -> Option<CardRoute> {
    let is_error = world.settings.cards.known_route_is_an_error;
    let new = CardRoute {
        key: key.to_owned(),
        url: url.to_owned(),
        secret,
    };
    match world.cards.route(key) {
        Some(known) if force => {
            *known = new;
            Some(known.clone())
        }
        Some(_) if is_error => None,
        Some(known) => Some(known.clone()),
        None => {
            world.cards.routes.push(new.clone());
            Some(new)
        }
    }
}
