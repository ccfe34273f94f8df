//! At least 200 API requests that are wrong in one way each: a clear error with a stable slug, nothing
//! stored, no panic.

use dingd::sim::daemon::API_TOKEN;
use dingd::sim::post::request;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

use crate::support::{Stage, text_to};

#[tokio::test]
async fn every_malformed_request_is_refused_with_a_slug_and_nothing_is_stored() {
    let stage = Stage::open().await;
    let url = format!("{}/v1/messages", stage.daemon.api());
    let headers = [("authorization", format!("Bearer {API_TOKEN}"))];
    let mut refused = 0;
    for body in listed().into_iter().chain(generated(200)) {
        let reply = request("POST", &url, &headers, body.clone()).await.unwrap();
        let kind = reply.json()["type"].as_str().unwrap_or_default().to_owned();
        assert!(
            (400..500).contains(&reply.status),
            "{body}: {} {}",
            reply.status,
            reply.body
        );
        assert!(
            kind.starts_with("urn:dingd:problem:"),
            "{body}: {}",
            reply.body
        );
        assert!(
            !reply.json()["detail"]
                .as_str()
                .unwrap_or_default()
                .is_empty(),
            "{body}"
        );
        refused += 1;
    }
    assert!(refused >= 260, "{refused}");
    assert_eq!(
        stage.get("/v1/messages").await.json()["messages"],
        json!([])
    );
    for (method, path, status) in [
        ("GET", "/v1/messages/msg_x", 404),
        ("GET", "/v1/messages/..%2f..", 404),
        ("GET", "/v1/messages?limit=0", 422),
        ("GET", "/v1/messages?limit=201", 422),
        ("GET", "/v1/messages?limit=1&limit=2", 422),
        ("GET", "/v1/messages?state=nope", 422),
        ("GET", "/v1/messages?since=yesterday", 422),
        ("GET", "/v1/messages?cursor=x", 422),
        ("GET", "/v1/messages?%00=1", 422),
        ("GET", "/v1/chats?state=x", 422),
        ("GET", "/v1/chats/%ff", 422),
        ("GET", "/v1/chats/cidnope", 404),
        ("PUT", "/v1/messages", 405),
        ("POST", "/v1/chats", 405),
        ("POST", "/v2/messages", 404),
    ] {
        let reply = stage
            .daemon
            .request(method, path, &Value::Null)
            .await
            .unwrap();
        assert_eq!(reply.status, status, "{method} {path}: {}", reply.body);
    }
    for key in ["", "\"\"", &"k".repeat(256), "a\u{e9}"] {
        let body = text_to(&json!({"robot": "robot-0"}), "x");
        let reply = stage
            .daemon
            .request_with("POST", "/v1/messages", &[("idempotency-key", key)], &body)
            .await;
        assert_eq!(reply.unwrap().status, 422, "{key:?}");
    }
    let big = text_to(&json!({"robot": "robot-0"}), &"x".repeat(300_000));
    assert_eq!(stage.post(&big).await.status, 413);
    stage.close().await;
}

/// So that a typo never passes for an option.
#[tokio::test]
async fn an_unknown_member_is_named_by_its_path() {
    let stage = Stage::open().await;
    for (path, body) in [
        ("prioritty", json!({"prioritty": "high"})),
        ("to.robott", json!({"to": {"robott": "robot-0"}})),
        (
            "content.text.conntent",
            json!({"content": {"text": {"conntent": "x"}}}),
        ),
        ("at.user", json!({"at": {"user": []}})),
    ] {
        let mut whole = text_to(&json!({"robot": "robot-0"}), "x");
        for (member, value) in body.as_object().unwrap() {
            whole[member] = value.clone();
        }
        let reply = stage.post(&whole).await;
        assert_eq!(reply.status, 422, "{path}: {}", reply.body);
        let detail = reply.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.starts_with(&format!("{path}: ")), "{path}: {detail}");
    }
    stage.close().await;
}

fn listed() -> Vec<String> {
    let good = json!({"to": {"robot": "robot-0"}, "content": {"text": {"content": "x"}}});
    let mut list: Vec<String> = [
        "",
        "{",
        "[]",
        "null",
        "1",
        "\"x\"",
        "{} {}",
        "\u{feff}{}",
        "{\"to\":{}}",
    ]
    .map(Into::into)
    .into();
    list.push(good.to_string() + "x");
    list.push("{\"a\":".repeat(100) + &"}".repeat(100));
    list.push(
        r#"{"to":{"robot":"robot-0"},"to":{"robot":"robot-0"},"content":{"text":{"content":"x"}}}"#
            .into(),
    );
    let members = [
        (
            "to",
            vec![
                json!(null),
                json!({}),
                json!("x"),
                json!({"robot": "nope"}),
                json!({"robot": 1}),
                json!({"robot": "robot-0", "chat": "cidaa"}),
                json!({"chat": "x"}),
                json!({"chat": "cid"}),
                json!({"chat": "cid a=="}),
                json!({"users": []}),
                json!({"users": [""]}),
                json!({"users": [1]}),
                json!({"users": ["a b"]}),
                json!({"users": vec!["u"; 1_001]}),
                json!({"accounts": []}),
                json!({"nobody": 1}),
            ],
        ),
        (
            "content",
            vec![
                json!(null),
                json!({}),
                json!({"text": {}}),
                json!({"text": {"content": ""}}),
                json!({"text": {"content": "x", "y": 1}}),
                json!({"text": {"content": "x"}, "markdown": {"title": "a", "text": "b"}}),
                json!({"markdown": {"title": "", "text": "b"}}),
                json!({"markdown": {"title": "a"}}),
                json!({"link": {"title": "a", "text": "b"}}),
                json!({"action_card": {"title": "a", "text": "b", "buttons": []}}),
                json!({"raw": {}}),
                json!({"raw": {"msg_key": "sampleText", "msg_param": {}}}),
                json!({"raw": {"msgtype": "text", "msgUuid": "mine"}}),
                json!({"video": {}}),
                json!({"text": {"content": "x".repeat(220_000)}}),
            ],
        ),
        (
            "at",
            vec![
                json!(1),
                json!({"users": "x"}),
                json!({"users": [""]}),
                json!({"who": []}),
                json!({"users": vec!["u"; 51]}),
                json!({"mobiles": ["\n"]}),
            ],
        ),
        (
            "priority",
            vec![json!("urgent"), json!(1), json!(null), json!("CRITICAL")],
        ),
        ("ambiguous", vec![json!("maybe"), json!(true)]),
        (
            "expires_in_s",
            vec![json!(0), json!(-1), json!(1.5), json!("1"), json!(1e40)],
        ),
        (
            "merge_key",
            vec![json!(""), json!(1), json!("k".repeat(257))],
        ),
        ("app", vec![json!("nope"), json!(1), json!("oncall")]),
        ("unknown", vec![json!(1)]),
        ("Priority", vec![json!("high")]),
    ];
    for (member, values) in members {
        for value in values {
            let mut body = good.clone();
            body[member] = value;
            list.push(body.to_string());
        }
    }
    // Mentions where DingTalk cannot mention.
    list.push(
        json!({"to": {"users": ["u"]}, "content": {"text": {"content": "x"}}, "at": {"all": true}})
            .to_string(),
    );
    list.push(json!({"to": {"robot": "robot-0"}, "content": {"link": {"title": "a", "text": "b", "url": "u"}}, "at": {"all": true}}).to_string());
    list
}

/// Random JSON, and random bytes; none of it is a message.
fn generated(count: usize) -> Vec<String> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
    ];
    let name = prop_oneof![
        Just("to".to_owned()),
        Just("content".to_owned()),
        Just("at".to_owned()),
        Just("text".to_owned()),
        "[a-z]{1,6}"
    ];
    let tree = leaf.prop_recursive(6, 40, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::btree_map(name.clone(), inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    });
    let text = prop_oneof![tree.prop_map(|value| value.to_string()), ".{0,200}"];
    let mut runner = TestRunner::deterministic();
    (0..count)
        .map(|_| text.new_tree(&mut runner).unwrap().current())
        .collect()
}
