//! The app changes what a card shows.

use serde_json::json;

use super::{Cause, Change, data, object, param};
use crate::sim::dingtalk::ask::{Ask, ok};
use crate::sim::dingtalk::world::World;
use crate::sim::server::Answer;

/// `PUT /v1.0/card/instances`.
pub(in crate::sim::dingtalk) fn update(world: &mut World, ask: &Ask) -> Answer {
    let changed = change(world, ask, "cardUpdateOptions", false);
    changed.map_or_else(
        |refusal| refusal,
        |()| ok(&json!({"success": true, "result": true})),
    )
}

/// Changes a card of one of the two generations; the options have another name in the old one.
pub(super) fn change(
    world: &mut World,
    ask: &Ask,
    options: &str,
    legacy: bool,
) -> Result<(), Answer> {
    let body = object(ask)?;
    let known = [
        "outTrackId",
        "cardData",
        "privateData",
        "userIdType",
        options,
    ];
    world.judge(ask, "", &body, &known);
    let id = data::out_track_id(world, ask, &body)?;
    let by_unionid = data::by_unionid(&body)?;
    let public = data::public(world, ask, &body)?;
    let private = data::private(world, ask, &body, by_unionid)?;
    let (public_by_key, private_by_key) = data::by_key(world, ask, &body, options)?;
    if public.is_none() && private.is_empty() {
        return Err(param(
            "cardDataAndPrivateDataBothEmpty",
            "cardData和privateData不能同时为空",
        ));
    }
    let drops_others = !private_by_key && world.settings.cards.overwrite_drops_others;
    let card = world
        .cards
        .get(&id)
        .filter(|card| card.legacy == legacy)
        .ok_or_else(|| param("cardNotExist", "卡片不存在"))?;
    let change = Change {
        public,
        public_by_key,
        private,
        private_by_key,
        drops_others,
    };
    card.change(ask.at_ms, Cause::Updated, change);
    Ok(())
}
