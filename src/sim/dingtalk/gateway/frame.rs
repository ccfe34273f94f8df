//! Frames as text: the letters of the app and the gateway's own system frames.

use serde_json::{Map, Value, json};

use super::{Kind, Letter};
use crate::sim::clock;

/// Any id in the shape of the captures.
pub(super) fn message_id() -> String {
    let digits = clock::hex(&clock::random::<12>());
    let (head, tail) = digits.split_at(7);
    let (middle, tail) = tail.split_at(4);
    format!("{head}_{middle}_{tail}")
}

/// A connectionId.
pub(super) fn connection_id() -> String {
    uuid(&clock::hex(&clock::random::<16>()))
}

fn uuid(digits: &str) -> String {
    let mut id = String::with_capacity(36);
    for (i, digit) in digits.chars().enumerate() {
        if [8, 12, 16, 20].contains(&i) {
            id.push('-');
        }
        id.push(digit);
    }
    id
}

/// The app's id in frames is another one than its Client ID, and always the same.
fn app_id(client_id: &str) -> String {
    let digits = clock::hex(client_id.as_bytes());
    uuid(
        &format!("{digits:0<32}")
            .chars()
            .take(32)
            .collect::<String>(),
    )
}

/// The frame of a letter, for this connection and this moment.
pub(super) fn letter(
    letter: &Letter,
    client_id: &str,
    connection: &str,
    time_is_number: bool,
) -> String {
    let now = clock::wall_ms();
    let mut headers = letter.headers.clone();
    if letter.kind == Kind::Event {
        headers.insert("eventUnifiedAppId".to_owned(), json!(app_id(client_id)));
    }
    let time = if time_is_number {
        json!(now)
    } else {
        json!(now.to_string())
    };
    for (name, value) in [
        ("appId", json!(app_id(client_id))),
        ("connectionId", json!(connection)),
        ("contentType", json!("application/json")),
        ("messageId", json!(letter.message_id)),
        ("time", time),
        ("topic", json!(letter.topic)),
    ] {
        headers.insert(name.to_owned(), value);
    }
    whole(letter.kind.name(), &Value::Object(headers), &letter.data)
}

/// A system frame.
pub(super) fn system(topic: &str, message_id: &str, data: &Value) -> String {
    let headers = json!({
        "contentType": "application/json",
        "messageId": message_id,
        "time": clock::wall_ms().to_string(),
        "topic": topic,
    });
    whole("SYSTEM", &headers, &data.to_string())
}

fn whole(kind: &str, headers: &Value, data: &str) -> String {
    json!({"specVersion": "1.0", "type": kind, "headers": headers, "data": data}).to_string()
}

/// An event's letter, from the text that HTTP would carry: the envelope becomes headers, and of it
/// only the id is repeated inside.
pub(super) fn event(text: &str) -> (Letter, String) {
    let mut members: Map<String, Value> = serde_json::from_str(text).unwrap_or_default();
    let mut take = |name: &str| match members.remove(name) {
        Some(Value::String(text)) => Some(text),
        Some(Value::Null) | None => None,
        Some(other) => Some(other.to_string()),
    };
    let kind = take("EventType").unwrap_or_default();
    let corp = take("CorpId").unwrap_or_default();
    let born = take("EventTime").unwrap_or_else(|| clock::wall_ms().to_string());
    take("BizId");
    let id = take("eventId").unwrap_or_else(|| clock::hex(&clock::random::<16>()));
    // The group's corp is listed in the pages and missing in every capture.
    if members.contains_key("openConversationId") {
        members.remove("corpId");
        members.insert("eventId".to_owned(), json!(id));
    }
    let headers = json!({
        "eventBornTime": born,
        "eventCorpId": corp,
        "eventId": id,
        "eventType": kind,
    });
    let letter = Letter {
        kind: Kind::Event,
        topic: "*".to_owned(),
        message_id: message_id(),
        headers: headers.as_object().cloned().unwrap_or_default(),
        data: Value::Object(members).to_string(),
    };
    (letter, id)
}

/// The letter of a callback.
pub(super) fn callback(topic: &str, message_id: Option<String>, data: String) -> Letter {
    Letter {
        kind: Kind::Callback,
        topic: topic.to_owned(),
        message_id: message_id.unwrap_or_else(self::message_id),
        headers: Map::new(),
        data,
    }
}
