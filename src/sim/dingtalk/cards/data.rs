//! A card's variables as a request carries them: names and values, both text, both bounded.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Data, param, person};
use crate::sim::dingtalk::ask::Ask;
use crate::sim::dingtalk::world::World;
use crate::sim::server::Answer;

const KEY_BYTES_MAX: usize = 100;
/// Printed for the legacy API and for top boxes only; the box holds all calls to it.
const OUT_TRACK_ID_CHARS_MAX: usize = 100;
/// What the pages recommend.
const OUT_TRACK_ID_CHARS_WANTED: usize = 64;

/// The id of a card.
pub(super) fn out_track_id(
    world: &mut World,
    ask: &Ask,
    body: &Map<String, Value>,
) -> Result<String, Answer> {
    let id = match body.get("outTrackId") {
        Some(Value::String(id)) if !id.is_empty() => id.clone(),
        None | Some(Value::String(_)) => {
            return Err(param("outTrackIdEmpty", "outTrackId不能为空"));
        }
        Some(_) => return Err(param("invalid", "outTrackId is not a string")),
    };
    let length = id.chars().count();
    if length > OUT_TRACK_ID_CHARS_MAX {
        return Err(param("invalid", "outTrackId超长"));
    }
    if length > OUT_TRACK_ID_CHARS_WANTED {
        world.complain(ask, &format!("outTrackId of {length} characters"));
    }
    Ok(id)
}

/// The variables that everybody sees, when the request has them.
pub(super) fn public(
    world: &mut World,
    ask: &Ask,
    body: &Map<String, Value>,
) -> Result<Option<Data>, Answer> {
    body.get("cardData")
        .map(|holder| variables(world, ask, "cardData", holder))
        .transpose()
}

/// The variables of single people, by userid.
pub(super) fn private(
    world: &mut World,
    ask: &Ask,
    body: &Map<String, Value>,
    by_unionid: bool,
) -> Result<BTreeMap<String, Data>, Answer> {
    let mut people = BTreeMap::new();
    let Some(given) = body.get("privateData") else {
        return Ok(people);
    };
    let given = given
        .as_object()
        .ok_or_else(|| param("invalid", "privateData is not an object"))?;
    for (id, holder) in given {
        let user = person(world, id, by_unionid)
            .ok_or_else(|| param("userIdNotExist", &format!("用户不存在: {id}")))?;
        let data = variables(world, ask, "privateData", holder)?;
        people.insert(user, data);
    }
    Ok(people)
}

/// The `cardParamMap` of one holder.
fn variables(world: &mut World, ask: &Ask, name: &str, holder: &Value) -> Result<Data, Answer> {
    let holder = holder
        .as_object()
        .ok_or_else(|| param("invalid", &format!("{name} is not an object")))?;
    let known = ["cardParamMap", "cardMediaIdParamMap"];
    world.judge(ask, &format!("{name}."), holder, &known);
    let wrong = |what: String| param("invalid", &format!("{name}.{what}"));
    let map = match holder.get("cardParamMap") {
        Some(map) => map
            .as_object()
            .ok_or_else(|| wrong("cardParamMap is not an object".to_owned()))?,
        None if holder.contains_key("cardMediaIdParamMap") => return Ok(Data::new()),
        None => return Err(wrong("cardParamMap is missing".to_owned())),
    };
    let value_bytes_max = world.settings.cards.value_bytes_max;
    strings(map, value_bytes_max).map_err(wrong)
}

/// Names and values of a `cardParamMap`; the error says which one is wrong.
pub(super) fn strings(map: &Map<String, Value>, value_bytes_max: usize) -> Result<Data, String> {
    let mut data = Data::new();
    for (key, value) in map {
        if key.len() > KEY_BYTES_MAX {
            return Err(format!("cardParamMap: a key of {} bytes", key.len()));
        }
        let value = value
            .as_str()
            .ok_or_else(|| format!("cardParamMap.{key} is not a string"))?;
        if value.len() > value_bytes_max {
            return Err(format!("cardParamMap.{key} has {} bytes", value.len()));
        }
        data.insert(key.clone(), value.to_owned());
    }
    Ok(data)
}

/// Whether people are named by union id.
pub(super) fn by_unionid(body: &Map<String, Value>) -> Result<bool, Answer> {
    match body.get("userIdType").map(Value::as_u64) {
        None | Some(Some(1)) => Ok(false),
        Some(Some(2)) => Ok(true),
        Some(_) => Err(param("invalid", "userIdType is neither 1 nor 2")),
    }
}

/// Two switches, both off when absent, under the name that this API has for them.
pub(super) fn by_key(
    world: &mut World,
    ask: &Ask,
    body: &Map<String, Value>,
    name: &str,
) -> Result<(bool, bool), Answer> {
    let Some(options) = body.get(name) else {
        return Ok((false, false));
    };
    let options = options
        .as_object()
        .ok_or_else(|| param("invalid", &format!("{name} is not an object")))?;
    let known = ["updateCardDataByKey", "updatePrivateDataByKey"];
    world.judge(ask, &format!("{name}."), options, &known);
    let flag = |member: &str| match options.get(member) {
        None => Ok(false),
        Some(Value::Bool(on)) => Ok(*on),
        Some(_) => Err(param(
            "invalid",
            &format!("{name}.{member} is not a boolean"),
        )),
    };
    Ok((
        flag("updateCardDataByKey")?,
        flag("updatePrivateDataByKey")?,
    ))
}
