//! The answer to a click: strictly the documented members, all values text, for the clicker.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Card, Cause, Change, Data, data};
use crate::sim::dingtalk::world::World;

/// Judges the answer and changes the card by it; the error says what is wrong with it. DingTalk
/// says nothing when it drops an answer, so whatever is wrong is noted as well.
pub(super) fn apply(
    world: &mut World,
    at_ms: u64,
    card: &Card,
    clicker: &str,
    body: &str,
) -> Result<(), String> {
    let mut notes = Vec::new();
    let value_bytes_max = world.settings.cards.value_bytes_max;
    let judged = judge(card, clicker, body, value_bytes_max, &mut notes);
    notes.extend(judged.as_ref().err().cloned());
    for note in notes {
        let id = &card.out_track_id;
        world.complaints.push(format!("click on {id}: {note}"));
    }
    let change = judged?;
    let empty = change.public.is_none() && change.private.is_empty();
    if let Some(card) = world.cards.get(&card.out_track_id)
        && !empty
    {
        card.change(at_ms, Cause::Clicked(clicker.to_owned()), change);
    }
    Ok(())
}

fn judge(
    card: &Card,
    clicker: &str,
    body: &str,
    value_bytes_max: usize,
    notes: &mut Vec<String>,
) -> Result<Change, String> {
    let answer: Value = serde_json::from_str(body).map_err(|_| "the answer is not JSON")?;
    let answer = match &answer {
        Value::Object(answer) => answer,
        // Over Stream nothing at all is `"response":null`.
        Value::Null => return Ok(Change::default()),
        _ => return Err("the answer is not an object".to_owned()),
    };
    let mut known = vec!["cardUpdateOptions", "cardData", "userPrivateData"];
    if card.legacy {
        known.extend(["cardOptions", "outTrackId", "cardTemplateId"]);
    }
    unknown("", answer, &known, notes);
    let options = if card.legacy && answer.contains_key("cardOptions") {
        "cardOptions"
    } else {
        "cardUpdateOptions"
    };
    let by_key = |member: &str| match answer.get(options).map(|it| it.get(member)) {
        None | Some(None) => Ok(false),
        Some(Some(Value::Bool(on))) => Ok(*on),
        Some(Some(_)) => Err(format!("{options}.{member} is not a boolean")),
    };
    if let Some(options) = answer.get(options) {
        let options = options.as_object().ok_or("the options are not an object")?;
        let known = ["updateCardDataByKey", "updatePrivateDataByKey"];
        unknown("cardUpdateOptions.", options, &known, notes);
    }
    let mut variables = |name: &str| -> Result<Option<Data>, String> {
        let Some(holder) = answer.get(name) else {
            return Ok(None);
        };
        let wrong = || format!("{name} is not an object");
        let holder = holder.as_object().ok_or_else(wrong)?;
        let known = ["cardParamMap", "cardMediaIdParamMap"];
        unknown(&format!("{name}."), holder, &known, notes);
        let map = holder.get("cardParamMap").and_then(Value::as_object);
        let map = map.ok_or_else(|| format!("{name} has no cardParamMap"))?;
        let data = data::strings(map, value_bytes_max);
        data.map(Some).map_err(|what| format!("{name}.{what}"))
    };
    let public = variables("cardData")?;
    let own = variables("userPrivateData")?;
    Ok(Change {
        public,
        public_by_key: by_key("updateCardDataByKey")?,
        private: own
            .map(|data| BTreeMap::from([(clicker.to_owned(), data)]))
            .unwrap_or_default(),
        private_by_key: by_key("updatePrivateDataByKey")?,
        drops_others: false,
    })
}

fn unknown(inside: &str, object: &Map<String, Value>, known: &[&str], notes: &mut Vec<String>) {
    for name in object.keys().filter(|name| !known.contains(&name.as_str())) {
        notes.push(format!("unknown member {inside}{name}"));
    }
}
