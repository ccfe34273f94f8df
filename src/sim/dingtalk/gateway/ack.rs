//! Acknowledgements: strictly in the documented form, and what each one means for its frame.

use std::time::Duration;

use serde_json::{Map, Value};

use super::{Ack, Kind};
use crate::sim::clock;
use crate::sim::dingtalk::world::World;

/// Takes what the app sent over a connection.
pub(super) fn receive(world: &mut World, at_ms: u64, connection: &str, text: &str) {
    let mut notes = Vec::new();
    if let Some(ack) = parse(text, &mut notes) {
        let id = ack.message_id.clone();
        take(world, at_ms, connection, ack, &mut notes);
        for note in notes {
            world.complaints.push(format!("ack {id}: {note}"));
        }
        return;
    }
    for note in notes {
        world.complaints.push(format!("frame from the app: {note}"));
    }
}

/// What an acknowledgement says.
struct Parsed {
    message_id: String,
    code: u16,
    data: String,
    inside: Value,
}

fn parse(text: &str, notes: &mut Vec<String>) -> Option<Parsed> {
    let Ok(Value::Object(ack)) = serde_json::from_str::<Value>(text) else {
        notes.push("not a JSON object".to_owned());
        return None;
    };
    unknown("", &ack, &["code", "headers", "message", "data"], notes);
    let code = ack.get("code").and_then(Value::as_u64);
    let code = code.and_then(|code| u16::try_from(code).ok());
    if !matches!(code, Some(200 | 400 | 404 | 500)) {
        notes.push("code is none of 200, 400, 404 and 500".to_owned());
    }
    if !ack.get("message").is_some_and(Value::is_string) {
        notes.push("message is not a string".to_owned());
    }
    let headers = ack.get("headers").and_then(Value::as_object);
    let header = |name: &str| headers.and_then(|it| it.get(name)).and_then(Value::as_str);
    if header("contentType") != Some("application/json") {
        notes.push("contentType is not application/json".to_owned());
    }
    let id = header("messageId").map(str::to_owned);
    if id.is_none() {
        notes.push("no messageId".to_owned());
    }
    let data = ack.get("data").and_then(Value::as_str);
    if data.is_none() {
        notes.push("data is not a string".to_owned());
    }
    let data = data.unwrap_or_default().to_owned();
    let inside = serde_json::from_str(&data);
    // What stands in a refusal is free text.
    if inside.is_err() && code == Some(200) {
        notes.push("data does not hold JSON".to_owned());
    }
    Some(Parsed {
        message_id: id?,
        code: code?,
        data,
        inside: inside.unwrap_or_default(),
    })
}

fn unknown(inside: &str, object: &Map<String, Value>, known: &[&str], notes: &mut Vec<String>) {
    for name in object.keys().filter(|name| !known.contains(&name.as_str())) {
        notes.push(format!("unknown member {inside}{name}"));
    }
}

fn take(world: &mut World, at_ms: u64, connection: &str, parsed: Parsed, notes: &mut Vec<String>) {
    let counts = world.settings.stream.acks_while_leaving;
    let Some(link) = world.links.get(connection) else {
        return;
    };
    let left = link.record.left_ms.is_some();
    let pinged = link
        .ping
        .take_if(|(message_id, _)| *message_id == parsed.message_id);
    if let Some((_, data)) = pinged {
        if parsed.code != 200 || parsed.inside != data {
            notes.push("a ping wants code 200 and its own data".to_owned());
        }
        return;
    }
    if link.goodbye.as_ref() == Some(&parsed.message_id) {
        return;
    }
    let Some(topic) = world.links.topics.get(&parsed.message_id).cloned() else {
        notes.push("for a frame that was never sent".to_owned());
        return;
    };
    let waiting = world.links.waiting.get(&parsed.message_id);
    let sent = waiting.map(|waiting| waiting.sent);
    let done = waiting.is_some_and(|waiting| done(waiting.kind, &topic, &parsed, notes));
    let ack = Ack {
        at_ms,
        connection: connection.to_owned(),
        message_id: parsed.message_id,
        topic,
        code: parsed.code,
        data: parsed.data,
        elapsed: sent.map_or(Duration::ZERO, |sent| clock::now().duration_since(sent)),
        done,
    };
    world.links.acks.push(ack.clone());
    if (counts || !left)
        && let Some(waiting) = world.links.waiting.get(&ack.message_id)
    {
        for courier in &waiting.verdicts {
            // One that has just given up does not listen any more.
            drop(courier.send(ack.clone()));
        }
    }
}

/// Whether the frame needs not come again.
fn done(kind: Kind, topic: &str, ack: &Parsed, notes: &mut Vec<String>) -> bool {
    if kind == Kind::Callback {
        let card = topic.starts_with("/v1.0/card/");
        // Of a robot message the content of the answer is ignored, but it has a form.
        if ack.code == 200 && ack.inside.get("response").is_none() {
            notes.push("data has no response".to_owned());
        }
        return card || ack.code == 200;
    }
    match ack.inside.get("status").and_then(Value::as_str) {
        Some("SUCCESS") if ack.code == 200 => true,
        Some("SUCCESS") => {
            notes.push(format!("SUCCESS with code {}", ack.code));
            false
        }
        Some("LATER") => false,
        _ => {
            // One official SDK sends the event's own data back, and that does in production.
            if ack.code == 200 {
                notes.push("an event wants the status SUCCESS or LATER".to_owned());
            }
            ack.code == 200
        }
    }
}
