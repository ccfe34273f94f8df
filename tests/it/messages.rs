//! Messages from the platform to chats, people and robots.

use std::time::Duration;

use dingd::sim::dingtalk::{Casing, Settings, Switches, User, Via};
use serde_json::{Value, json};

use crate::support::{Stage, fast, robot, text_to, until};

fn contents() -> Vec<Value> {
    let buttons = |n: usize| {
        (1..=n)
            .map(|i| json!({"title": format!("b{i}"), "url": "https://a.example"}))
            .collect::<Vec<_>>()
    };
    let card =
        |n: usize| json!({"action_card": {"title": "t", "text": "x", "buttons": buttons(n)}});
    let mut all = vec![
        json!({"text": {"content": "disk full"}}),
        json!({"markdown": {"title": "P1", "text": "### P1  \n  host db-01"}}),
        json!({"link": {"title": "P1", "text": "x", "url": "https://a.example"}}),
        json!({"link": {"title": "P1", "text": "x", "url": "https://a.example", "picture_url": "https://a.example/p"}}),
    ];
    all.extend((1..=5).map(card));
    all
}

#[tokio::test]
async fn every_kind_of_content_reaches_a_chat_a_person_and_a_robot() {
    let stage = Stage::with(
        Settings {
            limits: false,
            ..fast()
        },
        |config| {
            format!("{config}\n")
                .replace("[limits.robot]\n", "[limits.robot]\ncount = 1000\n")
                .replace("[limits.chat]\n", "[limits.chat]\ncount = 1000\n")
        },
    )
    .await;
    let event = stage
        .box_
        .install_cool_app(&stage.chat(), "manager0001", Casing::Lower);
    stage.push(&event).await;
    let mut ids = vec![];
    for to in [
        json!({"chat": stage.chat()}),
        json!({"users": ["manager0001"]}),
        robot(),
    ] {
        for content in contents() {
            ids.push(stage.send(&json!({"to": to, "content": content})).await);
        }
    }
    ids.push(stage.send(&json!({"to": {"users": ["manager0001"]}, "content": {"raw": {"msg_key": "sampleText", "msg_param": {"content": "raw"}}}})).await);
    ids.push(stage.send(&json!({"to": robot(), "content": {"raw": {"msgtype": "text", "text": {"content": "raw"}}}})).await);
    for id in &ids {
        let message = stage.reaches(id, "sent").await;
        assert_eq!(message["attempts"], 1, "{message}");
        assert_eq!(message["reason"], Value::Null);
    }
    assert_eq!(stage.box_.delivered().len(), ids.len());
    until("the outcomes", async || {
        stage.events("dingd.message.finished").len() == ids.len()
    })
    .await;
    let outcome = &stage.events("dingd.message.finished")[0];
    let id = outcome.body["data"]["id"].as_str().unwrap();
    assert_eq!(
        outcome.body["data"],
        stage.message(id).await,
        "the event says what GET says"
    );
    stage.close().await;
}

#[tokio::test]
async fn a_mention_stands_in_the_text_and_in_the_list() {
    let stage = Stage::open().await;
    let body = json!({"to": robot(), "content": {"markdown": {"title": "t", "text": "disk full"}},
        "at": {"mobiles": ["13800000001"], "all": false}});
    let id = stage.send(&body).await;
    stage.reaches(&id, "sent").await;
    let delivered = &stage.box_.delivered()[0];
    assert!(delivered.text.contains("@13800000001"), "{delivered:?}");
    assert_eq!(delivered.msg_uuid.as_ref().map(String::len), Some(32));
    stage.close().await;
}

#[tokio::test]
async fn people_are_called_in_twenties_and_each_has_an_outcome() {
    let people: Vec<_> = (0..45)
        .map(|n| User::named(&format!("u{n}"), "n", "13900000000"))
        .collect();
    let stage = Stage::with(
        Settings {
            users: people,
            ..fast()
        },
        |config| config,
    )
    .await;
    stage.box_.set(Switches {
        throttled_users: vec!["u3".into()],
        ..Switches::default()
    });
    let mut users: Vec<_> = (0..45).map(|n| format!("u{n}")).collect();
    users.push("nobody".into());
    let id = stage.send(&text_to(&json!({"users": users}), "x")).await;
    let waiting = stage.reaches(&id, "retrying").await;
    assert_eq!(
        waiting["reason"]["code"], "recipients_throttled",
        "{waiting}"
    );
    stage.box_.set(Switches::default());
    let message = stage.reaches(&id, "sent").await;
    let receipts = message["receipts"].as_array().unwrap();
    let sizes: Vec<_> = receipts
        .iter()
        .map(|r| r["recipients"].as_array().unwrap().len())
        .collect();
    assert_eq!(sizes, [20, 20, 6]);
    let outcomes = message["receipts"].to_string();
    assert_eq!(outcomes.matches("\"sent\"").count(), 45 + 3, "{outcomes}");
    assert_eq!(outcomes.matches("invalid_user").count(), 1);
    let mut reached: Vec<_> = stage
        .box_
        .delivered()
        .into_iter()
        .map(|d| d.target)
        .collect();
    reached.sort();
    reached.dedup();
    assert_eq!(reached.len(), 45);
    assert_eq!(stage.box_.delivered().len(), 45, "nobody got it twice");
    stage.close().await;
}

#[tokio::test]
async fn a_message_to_nobody_that_dingtalk_knows_is_dead_with_the_cure() {
    let stage = Stage::open().await;
    let id = stage
        .send(&text_to(&json!({"users": ["nobody"]}), "x"))
        .await;
    let message = stage.reaches(&id, "dead").await;
    assert_eq!(message["reason"]["code"], "recipient_unknown");
    assert!(
        message["reason"]["fix_zh"]
            .as_str()
            .unwrap()
            .contains("可见范围")
    );
    stage.close().await;
}

#[tokio::test]
async fn an_account_that_is_not_linked_says_so_and_how_to_cure_it() {
    let stage = Stage::open().await;
    let reply = stage
        .post(&text_to(&json!({"accounts": ["alice", "bob"]}), "x"))
        .await;
    assert_eq!(reply.status, 202);
    let id = reply.json()["id"].as_str().unwrap().to_owned();
    let message = stage.message(&id).await;
    assert_eq!(message["state"], "dead");
    assert_eq!(message["reason"]["code"], "recipient_not_linked");
    assert!(
        message["reason"]["fix_en"]
            .as_str()
            .unwrap()
            .contains("open the app once")
    );
    assert_eq!(
        message["receipts"][0]["recipients"][1]["outcome"],
        "not_linked"
    );
    until("the platform is told", async || {
        !stage.events("dingd.message.finished").is_empty()
    })
    .await;
    stage.close().await;
}

#[tokio::test]
async fn a_lane_keeps_its_order_and_critical_overtakes_what_waits_for_the_limit() {
    let stage = Stage::open().await;
    let mut ids = vec![];
    for number in 0..20 {
        ids.push(
            stage
                .send(&text_to(&robot(), &format!("n{number:02}")))
                .await,
        );
    }
    until("the first fifteen are out", async || {
        stage.box_.delivered().len() == 15
    })
    .await;
    let mut urgent = text_to(&robot(), "urgent");
    urgent["priority"] = json!("critical");
    ids.push(stage.send(&urgent).await);
    for id in &ids {
        stage.reaches(id, "sent").await;
    }
    let texts: Vec<_> = stage.box_.delivered().into_iter().map(|d| d.text).collect();
    assert_eq!(texts[15], "urgent", "{texts:?}");
    let normal: Vec<_> = texts.iter().filter(|text| *text != "urgent").collect();
    assert!(normal.is_sorted(), "{texts:?}");
    stage.close().await;
}

#[tokio::test]
async fn an_idempotency_key_gives_the_first_answer_again_even_after_a_crash() {
    let stage = Stage::open().await;
    let body = text_to(&robot(), "once");
    let ask = async |stage: &Stage, key: &str, body: &Value| {
        stage
            .daemon
            .request_with("POST", "/v1/messages", &[("idempotency-key", key)], body)
            .await
            .unwrap()
    };
    let mut same = tokio::task::JoinSet::new();
    let first = ask(&stage, "\"k1\"", &body).await;
    assert_eq!(first.status, 202);
    for _ in 0..20 {
        let url = format!("{}/v1/messages", stage.daemon.api());
        let headers = [
            (
                "authorization",
                format!("Bearer {}", dingd::sim::daemon::API_TOKEN),
            ),
            ("idempotency-key", "k2".to_owned()),
        ];
        let body = body.to_string();
        same.spawn(async move {
            dingd::sim::post::request("POST", &url, &headers, body)
                .await
                .unwrap()
        });
    }
    let mut statuses = vec![];
    let mut ids = std::collections::BTreeSet::new();
    while let Some(reply) = same.join_next().await {
        let reply = reply.unwrap();
        statuses.push(reply.status);
        ids.insert(reply.json()["id"].to_string());
    }
    assert_eq!(ids.len(), 1, "twenty at once are one message");
    assert_eq!(statuses.iter().filter(|status| **status == 202).count(), 1);
    let stage = stage.crash().await;
    let replayed = ask(&stage, "k1", &body).await;
    assert_eq!(replayed.status, 200);
    assert_eq!(replayed.header("idempotency-replayed"), Some("true"));
    assert_eq!(replayed.body, first.body);
    let other = ask(&stage, "k1", &text_to(&robot(), "other")).await;
    assert_eq!(
        (other.status, &other.json()["type"]),
        (409, &json!("urn:dingd:problem:idempotency_conflict"))
    );
    until("two messages", async || stage.box_.delivered().len() == 2).await;
    stage.close().await;
}

#[tokio::test]
async fn a_waiting_message_can_be_withdrawn_and_a_sent_one_cannot() {
    let stage = Stage::open().await;
    stage.box_.set(Switches {
        down: true,
        ..Switches::default()
    });
    let first = stage.send(&text_to(&robot(), "first")).await;
    let second = stage.send(&text_to(&robot(), "second")).await;
    let delete = async |id: &str| {
        stage
            .daemon
            .request("DELETE", &format!("/v1/messages/{id}"), &Value::Null)
            .await
            .unwrap()
    };
    let gone = delete(&second).await;
    assert_eq!(
        (gone.status, &gone.json()["state"]),
        (200, &json!("cancelled")),
        "{}",
        gone.body
    );
    stage.box_.set(Switches::default());
    stage.reaches(&first, "sent").await;
    assert_eq!(delete(&first).await.status, 409);
    assert_eq!(delete(&second).await.status, 409);
    assert_eq!(delete("msg_00000000000000000000000000").await.status, 404);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(stage.box_.delivered().len(), 1);
    stage.close().await;
}

#[tokio::test]
async fn a_message_that_is_not_worth_sending_any_more_expires() {
    let stage = Stage::open().await;
    stage.box_.set(Switches {
        down: true,
        ..Switches::default()
    });
    let mut body = text_to(&robot(), "late");
    body["expires_in_s"] = json!(1);
    let id = stage.send(&body).await;
    let behind = stage.send(&text_to(&robot(), "behind it")).await;
    let message = stage.reaches(&id, "expired").await;
    assert_eq!(message["reason"]["code"], "expired");
    stage.box_.set(Switches::default());
    stage.reaches(&behind, "sent").await;
    assert_eq!(stage.box_.delivered().len(), 1);
    stage.close().await;
}

#[tokio::test]
async fn messages_are_listed_newest_first_with_filters_and_a_cursor() {
    let stage = Stage::open().await;
    let mut ids = vec![];
    for number in 0..6 {
        let to = if number % 2 == 0 {
            robot()
        } else {
            json!({"users": ["manager0001"]})
        };
        ids.push(stage.send(&text_to(&to, &format!("{number}"))).await);
    }
    for id in &ids {
        stage.reaches(id, "sent").await;
    }
    let list = async |query: &str| -> (Vec<String>, Value) {
        let page = stage.get(&format!("/v1/messages?{query}")).await.json();
        let id = |m: &Value| m["id"].as_str().unwrap().to_owned();
        (
            page["messages"]
                .as_array()
                .unwrap()
                .iter()
                .map(id)
                .collect(),
            page["next_cursor"].clone(),
        )
    };
    let newest: Vec<_> = ids.iter().rev().cloned().collect();
    assert_eq!(list("").await.0, newest);
    assert_eq!(list("robot=robot-0").await.0.len(), 3);
    assert_eq!(list("user=manager0001&state=sent").await.0.len(), 3);
    assert_eq!(list("state=dead").await.0.len(), 0);
    let (page, cursor) = list("limit=4").await;
    assert_eq!(page, newest[..4]);
    let (rest, end) = list(&format!("limit=4&cursor={}", cursor.as_str().unwrap())).await;
    assert_eq!((rest, end), (newest[4..].to_vec(), Value::Null));
    stage.close().await;
}

#[tokio::test]
async fn the_enterprise_robot_in_a_cool_app_group_gets_the_cool_app_code() {
    let stage = Stage::open().await;
    let event = stage
        .box_
        .install_cool_app(&stage.chat(), "manager0001", Casing::Lower);
    stage.push(&event).await;
    let id = stage
        .send(&text_to(&json!({"chat": stage.chat()}), "x"))
        .await;
    stage.reaches(&id, "sent").await;
    assert_eq!(stage.box_.delivered()[0].via, Via::Group);
    stage.close().await;
}
