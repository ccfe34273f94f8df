//! A storm becomes digests: nothing vanishes above 20 messages a minute, and people can read it.

use dingd::sim::dingtalk::{Settings, Switches, Wrong};
use serde_json::{Value, json};

use crate::support::{Stage, fast, robot, text_to, until};

/// A minute of DingTalk is three seconds here, and so is what people wait for a digest.
async fn stage() -> Stage {
    with(fast()).await
}

async fn with(settings: Settings) -> Stage {
    Stage::with(settings, |config| {
        format!("{config}[outbound.digest]\nafter_s = 3\n")
    })
    .await
}

fn alert(number: usize) -> Value {
    json!({
        "to": robot(),
        "content": {"markdown": {
            "title": format!("P2 host-{} 磁盘将满", number % 50),
            "text": format!("### P2 磁盘将满  \n  主机 host-{}，第 {number} 次", number % 50),
        }},
        "merge_key": format!("host-{}", number % 50),
        "status": "firing",
    })
}

async fn ended(stage: &Stage, ids: &[String]) -> Vec<Value> {
    let mut messages = vec![];
    for id in ids {
        until(&format!("{id} has ended"), async || {
            ["sent", "merged"].contains(&stage.state(id).await.as_str())
        })
        .await;
        messages.push(stage.message(id).await);
    }
    messages
}

fn count(messages: &[Value], state: &str) -> usize {
    messages.iter().filter(|m| m["state"] == state).count()
}

/// ccfos/nightingale#369, feiyu563/PrometheusAlert#395: above 20 a minute the rest is not sent.
#[tokio::test]
async fn two_hundred_alerts_in_a_second_arrive_as_some_messages_and_one_digest() {
    let stage = stage().await;
    let started = std::time::Instant::now();
    let mut ids = vec![];
    for number in 0..200 {
        ids.push(stage.send(&alert(number)).await);
    }
    let messages = ended(&stage, &ids).await;
    let (sent, merged) = (count(&messages, "sent"), count(&messages, "merged"));
    assert_eq!(sent + merged, 200);
    // Twenty a minute, which the box has every three seconds; a slow machine takes more of them.
    let minutes = started.elapsed().as_secs() / 3;
    assert!(
        (15..=20 * (minutes + 1)).contains(&(sent as u64)) && merged > 50,
        "{sent} by themselves in {minutes} minutes"
    );
    let delivered = stage.box_.delivered();
    assert!(delivered.len() <= sent + 3, "{} calls", delivered.len());
    let digest = messages.iter().find(|m| m["state"] == "merged").unwrap();
    let digest = digest["merged_into"].as_str().unwrap();
    let digest = stage.message(digest).await;
    assert_eq!(digest["state"], "sent");
    let members = digest["members"].as_array().unwrap().len();
    let text = delivered
        .iter()
        .map(|delivered| &delivered.text)
        .find(|text| text.contains(&format!("{members} 条告警")))
        .unwrap_or_else(|| panic!("no digest of {members} in {delivered:#?}"));
    assert!(text.contains("未恢复 50 项"), "{text}");
    assert!(
        text.contains("**P2 host-49 磁盘将满** ×"),
        "the newest first: {text}"
    );
    assert_eq!(stage.box_.penalties(), vec![]);
    until("each was told as it ended", async || {
        let told = stage.events("dingd.message.finished");
        let states = told.iter().map(|event| &event.body["data"]["state"]);
        told.len() == 200 && states.filter(|state| *state == "merged").count() == merged
    })
    .await;
    stage.close().await;
}

#[tokio::test]
async fn what_is_critical_or_must_not_be_repeated_goes_by_itself() {
    let stage = stage().await;
    let mut ids = vec![];
    for number in 0..60 {
        let mut body = alert(number);
        match number % 3 {
            0 => body["priority"] = json!("critical"),
            1 => body["ambiguous"] = json!("hold"),
            _ => {}
        }
        ids.push(stage.send(&body).await);
    }
    let messages = ended(&stage, &ids).await;
    for (number, message) in messages.iter().enumerate() {
        if number % 3 < 2 {
            assert_eq!(message["state"], "sent", "{message}");
        }
    }
    assert_eq!(stage.box_.penalties(), vec![]);
    stage.close().await;
}

#[tokio::test]
async fn a_digest_that_is_refused_returns_its_messages_to_their_lane() {
    let stage = stage().await;
    stage.box_.set(Switches {
        down: true,
        ..Default::default()
    });
    let mut ids = vec![];
    for number in 0..6 {
        ids.push(stage.send(&alert(number)).await);
    }
    tokio::time::sleep(std::time::Duration::from_millis(3_200)).await;
    // The first one was tried and goes by itself; the digest of the others is refused for its text.
    let content = json!({"errcode": 430_104, "errmsg": "content"}).to_string();
    let refused = Wrong::json(200, &content);
    stage.box_.set(Switches {
        wrong: Some(refused),
        ..Default::default()
    });
    let dead = async || -> Vec<Value> {
        let page = stage.get("/v1/messages?state=dead").await.json();
        let dead = page["messages"].as_array().unwrap().iter();
        dead.filter(|message| message["members"].is_array())
            .map(|message| message["id"].clone())
            .collect()
    };
    until("the digest is dead", async || !dead().await.is_empty()).await;
    stage.box_.set(Switches::default());
    for id in &ids {
        until("it has ended", async || {
            stage.message(id).await["finished_at"].is_string()
        })
        .await;
    }
    let dead = dead().await;
    for id in &ids {
        let message = stage.message(id).await;
        assert!(
            !dead.contains(&message["merged_into"]) && message["digest"].is_null(),
            "{message}"
        );
    }
    let told = || {
        let told = stage.events("dingd.message.finished");
        told.iter()
            .map(|event| event.body["subject"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    until("all are told", async || told().len() >= 6).await;
    let mut told = told();
    told.sort();
    let mut expected = ids.clone();
    expected.sort();
    assert_eq!(told, expected, "each once, and nothing of the digest");
    stage.close().await;
}

#[tokio::test]
async fn a_digest_survives_a_kill_and_is_seen_once() {
    let mut stage = stage().await;
    let mut ids = vec![];
    for number in 0..40 {
        ids.push(stage.send(&alert(number)).await);
    }
    // What leaves now is done and not answered: the digest is under way when the daemon dies.
    tokio::time::sleep(std::time::Duration::from_millis(2_800)).await;
    stage.box_.set(Switches {
        slow_ms: 2_000,
        ..Default::default()
    });
    until("the digest arrived", async || {
        stage
            .box_
            .delivered()
            .iter()
            .any(|delivered| delivered.text.contains("条告警："))
    })
    .await;
    stage = stage.crash().await;
    stage.box_.set(Switches::default());
    let messages = ended(&stage, &ids).await;
    assert!(count(&messages, "merged") >= 20, "{messages:#?}");
    let delivered = stage.box_.delivered();
    let digests = delivered.iter().filter(|one| one.text.contains("条告警："));
    assert_eq!(digests.count(), 1, "{delivered:#?}");
    assert_eq!(stage.box_.penalties(), vec![]);
    stage.close().await;
}

#[tokio::test]
async fn a_message_in_a_digest_cannot_be_withdrawn_and_says_where_it_is() {
    let stage = stage().await;
    stage.box_.set(Switches {
        only: Some("/robot/send".to_owned()),
        slow_ms: 9_000,
        ..Default::default()
    });
    let first = stage.send(&text_to(&robot(), "first")).await;
    let mut ids = vec![];
    for number in 0..3 {
        ids.push(stage.send(&text_to(&robot(), &format!("x{number}"))).await);
    }
    tokio::time::sleep(std::time::Duration::from_millis(3_200)).await;
    stage.box_.set(Switches {
        only: Some("/robot/send".to_owned()),
        slow_ms: 3_000,
        ..Default::default()
    });
    until("they are in a digest", async || {
        stage.message(&ids[0]).await["digest"].is_string()
    })
    .await;
    let path = format!("/v1/messages/{}", ids[0]);
    let reply = stage
        .daemon
        .request("DELETE", &path, &Value::Null)
        .await
        .unwrap();
    assert_eq!(reply.status, 409, "{}", reply.body);
    stage.box_.set(Switches::default());
    stage.reaches(&first, "sent").await;
    for id in &ids {
        stage.reaches(id, "merged").await;
    }
    stage.close().await;
}

#[tokio::test]
async fn a_status_without_a_merge_key_is_refused() {
    let stage = stage().await;
    let mut body = alert(1);
    body.as_object_mut().unwrap().remove("merge_key");
    let reply = stage.post(&body).await;
    assert_eq!(reply.status, 422);
    assert!(
        reply.json()["detail"]
            .as_str()
            .unwrap()
            .contains("merge_key"),
        "{}",
        reply.body
    );
    stage.close().await;
}

#[tokio::test]
async fn a_message_that_went_half_way_goes_the_rest_by_itself() {
    let stage = stage().await;
    let text = "一行告警。\n".repeat(9_000);
    let mut ids = vec![];
    for number in 0..4 {
        let mut body = alert(number);
        body["content"]["markdown"]["text"] = json!(text);
        ids.push(stage.send(&body).await);
    }
    let messages = ended(&stage, &ids).await;
    for message in &messages {
        if message["state"] == "sent" {
            let parts = usize::try_from(message["parts"].as_u64().unwrap()).unwrap();
            assert_eq!(message["receipts"].as_array().unwrap().len(), parts);
        }
    }
    assert_eq!(count(&messages, "sent") + count(&messages, "merged"), 4);
    assert!(count(&messages, "sent") >= 2, "15 calls begin the second");
    assert_eq!(stage.box_.penalties(), vec![]);
    stage.close().await;
}

#[tokio::test]
async fn nobody_withdraws_what_another_client_sent() {
    let edit = |config: String| {
        config.replace(
            "[admin]\n",
            "[[api.clients]]\nname = \"other\"\ntoken = \"another-token-0123456789\"\n[admin]\n",
        )
    };
    let stage = Stage::with(fast(), edit).await;
    stage.box_.set(Switches {
        down: true,
        ..Default::default()
    });
    let id = stage.send(&alert(1)).await;
    let url = format!("{}/v1/messages/{id}", stage.daemon.api());
    let other = [(
        "authorization",
        "Bearer another-token-0123456789".to_owned(),
    )];
    let reply = dingd::sim::post::request("DELETE", &url, &other, String::new()).await;
    assert_eq!(reply.unwrap().status, 404);
    stage.box_.set(Switches::default());
    stage.reaches(&id, "sent").await;
    stage.close().await;
}
