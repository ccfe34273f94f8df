//! All vectors, and everything that a hostile gateway could send.

use serde_json::{Value, json};

use super::*;

fn vectors() -> Vec<Value> {
    let path = format!(
        "{}/tests/vectors/stream-frames.json",
        env!("CARGO_MANIFEST_DIR")
    );
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    file["vectors"].as_array().unwrap().clone()
}

fn vector(id: &str) -> Value {
    let mut vectors = vectors().into_iter();
    vectors.find(|vector| vector["id"] == id).unwrap()["frame"].clone()
}

fn read(frame: &Value) -> Result<Frame, Unreadable> {
    Frame::read(&frame.to_string())
}

#[test]
fn every_vector_is_read_and_answered_as_it_says() {
    let vectors = vectors();
    assert_eq!(vectors.len(), 8);
    for vector in vectors {
        let id = vector["id"].as_str().unwrap();
        let frame = read(&vector["frame"]).unwrap();
        assert_eq!(
            frame.message_id, vector["frame"]["headers"]["messageId"],
            "{id}"
        );
        let card = || {
            let data = vector["ack"]["data"].as_str().unwrap();
            let response = data.strip_prefix(r#"{"response":"#).unwrap();
            Some(response.strip_suffix('}').unwrap().to_owned())
        };
        let reply = match (id, frame.kind) {
            ("stream-ping", Kind::Ping { data }) => Reply::Pong(data),
            ("stream-disconnect", Kind::Disconnect { reason }) => {
                assert_eq!(reason, "persistent connection is timeout");
                assert_eq!(vector["ack"], Value::Null);
                continue;
            }
            ("stream-event-later", Kind::Event { .. }) => Reply::Later,
            (_, Kind::Event { head, data }) => {
                assert_eq!(
                    head.corp.as_deref(),
                    Some("dingsynthcorp0000000000000000001")
                );
                assert_eq!(head.born_ms, Some(1_760_000_000_102));
                assert_eq!(data, vector["frame"]["data"].as_str().unwrap());
                Reply::Stored
            }
            ("stream-robot", Kind::Callback { topic, .. }) if topic == ROBOT => {
                Reply::Response(None)
            }
            ("stream-card", Kind::Callback { topic, .. }) if topic == CARDS => {
                Reply::Response(card())
            }
            ("stream-unknown-topic", Kind::Callback { .. }) => Reply::NotFound,
            (_, other) => panic!("{id}: {other:?}"),
        };
        let ack: Value = serde_json::from_str(&reply.render(&frame.message_id)).unwrap();
        assert_eq!(ack, vector["ack"], "{id}");
    }
}

#[test]
fn what_the_pages_disagree_about_is_read_either_way() {
    let frame = vector("stream-event-chat-update-title");
    let usual = read(&frame).unwrap();
    let mut singular = frame.clone();
    let headers = singular.as_object_mut().unwrap().remove("headers").unwrap();
    singular["header"] = headers;
    assert_eq!(read(&singular).unwrap(), usual);

    let mut numbers = frame.clone();
    numbers["headers"]["time"] = json!(1_760_000_000_231_u64);
    numbers["headers"]["eventBornTime"] = json!(1_760_000_000_102_u64);
    assert_eq!(read(&numbers).unwrap(), usual);

    let mut cased = json!({"Type": "EVENT", "Data": frame["data"], "Headers": {}});
    for (name, value) in frame["headers"].as_object().unwrap() {
        cased["Headers"][name.to_uppercase()] = value.clone();
    }
    assert_eq!(read(&cased).unwrap(), usual);

    let mut more = frame;
    more["extension"] = json!({"a": [1, {"b": null}]});
    more["headers"]["new"] = json!("x");
    more["specVersion"] = json!(2);
    assert_eq!(read(&more).unwrap(), usual);
}

#[test]
fn a_frame_of_an_unknown_kind_and_system_messages_need_nothing() {
    for topic in ["CONNECTED", "REGISTERED", "KEEPALIVE", "new"] {
        let frame = json!({"type": "SYSTEM", "headers": {"topic": topic}});
        assert_eq!(read(&frame).unwrap().kind, Kind::System);
    }
    let frame = json!({"type": "SYSTEM", "headers": {}, "data": 7});
    assert_eq!(read(&frame).unwrap().kind, Kind::System);
    let frame = json!({"type": "LETTER", "headers": {}});
    assert_eq!(read(&frame).unwrap().kind, Kind::Unknown);
}

#[test]
fn a_disconnect_without_a_reason_is_one_all_the_same() {
    for data in [
        json!("{}"),
        json!("x"),
        json!(null),
        json!(r#"{"reason":7}"#),
    ] {
        let frame = json!({"type": "SYSTEM", "headers": {"topic": "disconnect"}, "data": data});
        let reason = String::new();
        assert_eq!(read(&frame).unwrap().kind, Kind::Disconnect { reason });
    }
}

/// Each member left out, and each of every other type.
#[test]
fn no_member_that_is_missing_or_of_another_type_brings_anything_down() {
    let strange = [
        json!(null),
        json!(true),
        json!(7),
        json!(-1.5e300),
        json!(""),
        json!([]),
        json!({}),
        json!("\u{0}\r\n\u{202e}"),
        json!("x".repeat(100_000)),
    ];
    let needed = ["type", "headers", "data", "messageId", "eventType", "topic"];
    for vector in vectors() {
        let frame = &vector["frame"];
        let id = vector["id"].as_str().unwrap();
        let names = frame.as_object().unwrap().keys();
        let headers = frame["headers"].as_object().unwrap().keys();
        let at: Vec<(bool, &String)> = names
            .map(|name| (false, name))
            .chain(headers.map(|name| (true, name)))
            .collect();
        for (in_headers, name) in at {
            let change = |to: Option<&Value>| {
                let mut changed = frame.clone();
                let object = if in_headers {
                    &mut changed["headers"]
                } else {
                    &mut changed
                };
                match to {
                    Some(value) => object[name.as_str()] = value.clone(),
                    None => drop(object.as_object_mut().unwrap().remove(name)),
                }
                read(&changed)
            };
            for value in &strange {
                // Whatever comes of it, it is told or taken, and an answer can be made.
                match change(Some(value)) {
                    Ok(frame) => drop(Reply::Stored.render(&frame.message_id)),
                    Err(unreadable) => assert!(!unreadable.problem.is_empty()),
                }
            }
            let without = change(None);
            if !needed.contains(&name.as_str()) {
                assert!(without.is_ok(), "{id} without {name}: {without:?}");
            }
        }
    }
}

#[test]
fn what_is_needed_is_missed_by_name_and_told_to_whom_it_concerns() {
    let mut event = vector("stream-event-chat-update-title");
    event["headers"]
        .as_object_mut()
        .unwrap()
        .remove("eventType");
    let unreadable = read(&event).unwrap_err();
    assert_eq!(unreadable.problem, "no event type");
    assert_eq!(unreadable.message_id.as_deref(), Some("m-ev-1"));

    let mut event = vector("stream-event-chat-update-title");
    event["data"] = json!({"title": "x"});
    assert_eq!(
        read(&event).unwrap_err().problem,
        "data that is not a string"
    );

    let mut robot = vector("stream-robot");
    robot["headers"].as_object_mut().unwrap().remove("topic");
    assert_eq!(
        read(&robot).unwrap_err().problem,
        "no topic, or one that is too long"
    );

    let mut ping = vector("stream-ping");
    ping["headers"].as_object_mut().unwrap().remove("messageId");
    assert_eq!(read(&ping).unwrap_err().problem, "no messageId");
}

#[test]
fn hostile_texts_are_refused() {
    let deep = format!(
        r#"{{"type":"EVENT","headers":{{"messageId":"m"}},"data":{}{}}}"#,
        "[".repeat(64),
        "]".repeat(64)
    );
    for (text, problem) in [
        ("", "not a JSON object, or a member comes twice"),
        ("[]", "not a JSON object, or a member comes twice"),
        ("{", "not a JSON object, or a member comes twice"),
        ("\u{0}", "not a JSON object, or a member comes twice"),
        (
            r#"{"type":"EVENT","type":"EVENT"}"#,
            "not a JSON object, or a member comes twice",
        ),
        (deep.as_str(), "nested too deep"),
        ("{}", "no headers"),
        (
            r#"{"headers":[]}"#,
            "headers that are not an object, or one comes twice",
        ),
        (
            r#"{"headers":{"topic":"ping","topic":"ping"}}"#,
            "headers that are not an object, or one comes twice",
        ),
        (r#"{"headers":{}}"#, "no type"),
    ] {
        assert_eq!(Frame::read(text).unwrap_err().problem, problem, "{text}");
    }
}

#[test]
fn a_frame_that_is_too_long_is_refused_and_the_sender_told() {
    let mut event = vector("stream-event-chat-update-title");
    let room = BYTES_MAX - event.to_string().len();
    let data = event["data"].as_str().unwrap().to_owned();
    event["data"] = json!(format!("{data}{}", " ".repeat(room)));
    assert_eq!(event.to_string().len(), BYTES_MAX);
    assert!(read(&event).is_ok());
    event["data"] = json!(format!("{data}{}", " ".repeat(room + 1)));
    let unreadable = read(&event).unwrap_err();
    assert_eq!(unreadable.problem, "longer than 256 KiB");
    assert_eq!(unreadable.message_id.as_deref(), Some("m-ev-1"));
}

#[test]
fn nothing_breaks_out_of_an_answer() {
    let ack = Reply::Pong("\"}\u{0}{".into()).render("m\"}\r\n");
    let ack: Value = serde_json::from_str(&ack).unwrap();
    assert_eq!(ack["headers"]["messageId"], "m\"}\r\n");
    assert_eq!(ack["data"], "\"}\u{0}{");
    for body in ["", "{", "}{", r#"{} , "x":1"#] {
        let ack: Value =
            serde_json::from_str(&Reply::Response(Some(body.into())).render("m")).unwrap();
        assert_eq!(ack["data"], r#"{"response":null}"#, "{body}");
    }
}
