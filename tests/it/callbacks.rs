//! DingTalk's events at the door: believed once, or refused without a word.

use std::collections::BTreeSet;

use dingd::sim::dingtalk::{Callback, Casing};
use serde_json::{Value, json};

use crate::support::{Dice, Stage, other_event, until};

fn now_ms() -> u64 {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

#[tokio::test]
async fn the_url_check_is_answered_and_neither_stored_nor_forwarded() {
    let stage = Stage::open().await;
    let check = stage.box_.check_url(&stage.daemon.callback_url()).await;
    assert!(check.acknowledged, "{check:?}");
    stage.push(&other_event(1)).await;
    until("the other event", async || {
        !stage.platform.events().is_empty()
    })
    .await;
    assert_eq!(stage.platform.events().len(), 1);
    stage.close().await;
}

#[tokio::test]
async fn an_event_reaches_the_platform_signed_with_its_text_unchanged() {
    let stage = Stage::open().await;
    let text = "{ \"EventType\" : \"some_event\", \"n\": 1.0, \"s\":\"\\u4e2d\\/\",\t\"x\":[{}] }";
    assert!(stage.push(text).await.acknowledged);
    until("the event", async || !stage.platform.events().is_empty()).await;
    let event = &stage.platform.events()[0];
    assert_eq!(event.valid, Ok(()));
    assert_eq!(event.kind, "dingtalk.event.some_event");
    let body = String::from_utf8(event.raw_body.clone()).unwrap();
    assert!(body.contains(&format!("\"raw\":{text}")), "{body}");
    assert_eq!(
        event.body["source"],
        format!("/dingtalk/{}/oncall", stage.settings.app.corp_id)
    );
    stage.close().await;
}

#[tokio::test]
async fn the_same_bytes_a_thousand_times_at_once_and_after_a_crash_are_one_event() {
    let stage = Stage::open().await;
    let callback = stage.box_.sealed(&other_event(7), now_ms());
    let url = stage.daemon.callback_url();
    let mut pushes = tokio::task::JoinSet::new();
    for _ in 0..1_000 {
        let (box_, url, callback) = (stage.box_.clone(), url.clone(), callback.clone());
        pushes.spawn(async move { box_.push_sealed(&url, &callback).await });
    }
    while let Some(push) = pushes.join_next().await {
        assert!(push.unwrap().acknowledged);
    }
    let stage = stage.crash().await;
    assert!(
        stage
            .box_
            .push_sealed(&stage.daemon.callback_url(), &callback)
            .await
            .acknowledged
    );
    stage.push(&other_event(8)).await;
    until("the later event", async || {
        stage
            .platform
            .events()
            .iter()
            .any(|e| e.body["data"]["raw"]["number"] == 8)
    })
    .await;
    let ids: BTreeSet<_> = stage
        .platform
        .attempts()
        .into_iter()
        .map(|e| e.id)
        .collect();
    assert_eq!(ids.len(), 2, "one for each event");
    stage.close().await;
}

#[tokio::test]
async fn an_event_that_is_encrypted_anew_is_recognised_by_its_id_or_else_by_its_text() {
    let stage = Stage::open().await;
    let with_id = r#"{"EventType":"a_event","eventId":"one","n":1}"#;
    let same_id = r#"{"EventType":"a_event","eventId":"one","n":2}"#;
    let without = r#"{"EventType":"b_event","n":1}"#;
    for event in [with_id, same_id, with_id, without, without] {
        assert!(stage.push(event).await.acknowledged);
    }
    stage.push(&other_event(1)).await;
    until("the last event", async || {
        stage.platform.events().len() >= 3
    })
    .await;
    assert_eq!(stage.events("dingtalk.event.a_event").len(), 1);
    assert_eq!(stage.events("dingtalk.event.b_event").len(), 1);
    stage.close().await;
}

#[tokio::test]
async fn modelled_events_carry_their_members_in_both_casings() {
    let stage = Stage::open().await;
    let chat = stage.chat();
    for casing in [Casing::Lower, Casing::Pascal] {
        for event in [
            stage.box_.install_cool_app(&chat, "manager0001", casing),
            stage
                .box_
                .rename(&chat, &format!("名字 {casing:?}"), "manager0001", casing),
            stage.box_.uninstall_cool_app(&chat, "manager0001", casing),
            stage.box_.user_leaves("manager0002", casing),
        ] {
            assert!(stage.push(&event).await.acknowledged, "{event}");
        }
    }
    until("eight events", async || stage.platform.events().len() >= 8).await;
    for kind in [
        "dingtalk.cool_app.installed",
        "dingtalk.chat.renamed",
        "dingtalk.cool_app.uninstalled",
    ] {
        let events = stage.events(kind);
        assert_eq!(events.len(), 2, "{kind}");
        for event in events {
            assert_eq!(event.body["data"]["chat"], json!(chat));
            assert_eq!(event.body["subject"], json!(chat));
        }
    }
    assert_eq!(
        stage.events("dingtalk.user.left")[1].body["data"]["users"],
        json!(["manager0002"])
    );
    stage.close().await;
}

/// At least 300 callbacks that are wrong in one way each: all get the same answer.
#[tokio::test]
async fn every_malformed_callback_is_refused_with_the_same_status_and_body() {
    let stage = Stage::open().await;
    let url = stage.daemon.callback_url();
    let mut refused = 0;
    for callback in malformed(&stage) {
        let push = stage.box_.push_sealed(&url, &callback).await;
        assert_eq!((push.status, push.body.as_str()), (403, ""), "{callback:?}");
        refused += 1;
    }
    assert!(refused >= 300, "{refused}");
    // Other vectors' keys: all are signed by somebody else for this daemon.
    for name in [
        "event-reject",
        "event-accept-public",
        "event-accept-synthetic",
    ] {
        let path = format!("{}/tests/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        for vector in file["vectors"].as_array().unwrap() {
            let Some(query) = vector["query"].as_object() else {
                continue;
            };
            let query: Vec<_> = query
                .iter()
                .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
                .collect();
            let callback = Callback {
                query: query.join("&"),
                body: json!({"encrypt": vector["encrypt"]}).to_string(),
            };
            let push = stage.box_.push_sealed(&url, &callback).await;
            assert_eq!((push.status, push.body.as_str()), (403, ""), "{callback:?}");
        }
    }
    assert!(stage.platform.attempts().is_empty());
    assert!(
        stage.push(&other_event(1)).await.acknowledged,
        "a good one still passes"
    );
    stage.close().await;
}

fn malformed(stage: &Stage) -> Vec<Callback> {
    let good = stage.box_.sealed(&other_event(1), now_ms());
    let with = |query: String, body: String| Callback { query, body };
    let mut list = vec![];
    for body in [
        "",
        "null",
        "[]",
        "{}",
        "1",
        "\"x\"",
        "{\"encrypt\":1}",
        "{\"encrypt\":null}",
        "{\"encrypt\":\"\"}",
        "{\"Encrypt\":\"AAAA\"}",
        "{",
        "{\"encrypt\":\"AAAA\"",
        "\u{0}",
    ] {
        list.push(with(good.query.clone(), body.to_owned()));
    }
    let encrypt = good.body.clone();
    list.push(with(
        good.query.clone(),
        encrypt.replace("\"encrypt\"", "\"encrypt\":\"x\",\"encrypt\""),
    ));
    for query in ["", "&", "=", "a=b", "signature", "timestamp=1&nonce=a"] {
        list.push(with(query.to_owned(), encrypt.clone()));
    }
    let parts: Vec<&str> = good.query.split('&').collect();
    for skip in 0..parts.len() {
        // One of the two signature names may be missing; anything else may not.
        if !parts[skip].contains("signature") {
            let rest: Vec<_> = parts
                .iter()
                .enumerate()
                .filter(|(i, _)| *i != skip)
                .map(|(_, p)| *p)
                .collect();
            list.push(with(rest.join("&"), encrypt.clone()));
        }
        list.push(with(
            format!("{}&{}", good.query, parts[skip]),
            encrypt.clone(),
        ));
    }
    // Stale and from the future.
    for at in [
        0,
        now_ms() - 90_000_000,
        now_ms() + 700_000,
        9_999_999_999_999,
    ] {
        list.push(stage.box_.sealed(&other_event(1), at));
    }
    // Signed and sealed well, but what is inside is no event.
    for text in [
        "",
        "x",
        "[]",
        "{}",
        "null",
        "{\"EventType\":1}",
        "{\"EventType\":\"\"}",
        "{\"EventType\":\"a\",\"EventType\":\"a\"}",
        "{\"EventType\":\"a\",\"eventType\":\"b\"}",
        "{\"EventType\":\"a b\"}",
    ] {
        list.push(stage.box_.sealed(text, now_ms()));
    }
    list.push(stage.box_.sealed(
        &format!(
            "{{\"EventType\":\"a\",\"x\":{}{}}}",
            "[".repeat(70),
            "]".repeat(70)
        ),
        now_ms(),
    ));
    let mut dice = Dice::new(1);
    while list.len() < 320 {
        // A byte changed within a value of the query or within the ciphertext.
        let (mut query, mut body) = (
            good.query.clone().into_bytes(),
            good.body.clone().into_bytes(),
        );
        let (target, lowest) = if dice.below(2) == 0 {
            (&mut query, 0)
        } else {
            (&mut body, 12)
        };
        let at = usize::try_from(lowest + dice.below(target.len() as u64 - 2 - lowest)).unwrap();
        let to =
            b"0123456789abcdefGHIJKLMNOPQRSTUVWXYZ-_+/"[usize::try_from(dice.below(40)).unwrap()];
        if target[at] == to || matches!(target[at], b'=' | b'&') {
            continue;
        }
        target[at] = to;
        let changed = with(
            String::from_utf8(query).unwrap(),
            String::from_utf8(body).unwrap(),
        );
        // Renaming one of the two signatures leaves the other, and a sound request.
        let names = |q: &str| {
            q.split('&')
                .filter(|p| p.starts_with("signature=") || p.starts_with("msg_signature="))
                .count()
        };
        if names(&changed.query) == names(&good.query) && changed.query.contains("timestamp=") {
            list.push(changed);
        }
    }
    list
}

#[tokio::test]
async fn an_oversize_callback_is_refused_before_it_is_read() {
    let stage = Stage::open().await;
    let callback = stage.box_.sealed(&other_event(1), now_ms());
    let body = format!("{}{}", " ".repeat(256 * 1_024), callback.body);
    let push = stage
        .box_
        .push_sealed(&stage.daemon.callback_url(), &Callback { body, ..callback })
        .await;
    assert_eq!(push.status, 413);
    stage.close().await;
}
