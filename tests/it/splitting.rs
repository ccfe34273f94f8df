//! What is too long for DingTalk goes in numbered parts, under one id.

use dingd::sim::dingtalk::{Casing, Switches, Wrong};
use serde_json::{Value, json};

use crate::support::{Stage, robot, text_to, until};

/// An alert with `hosts` hosts, a link each, and a trace.
fn long_alert(hosts: usize) -> String {
    let mut text = String::from("### P1 磁盘将满\n\n");
    for host in 0..hosts {
        text.push_str(&format!(
            "- 主机 db-{host:03} 剩余 3%，[查看详情](https://alerts.example/incidents/{host}?from=dingtalk)\n"
        ));
    }
    text.push_str("\n```text\n");
    for line in 0..hosts {
        text.push_str(&format!("at frame {line} in \"disk.rs\"\n"));
    }
    text.push_str("```\n");
    text
}

fn texts(stage: &Stage) -> Vec<String> {
    let delivered = stage.box_.delivered();
    let text = |body: &Value| {
        let text = body["text"].as_str().or(body["markdown"]["text"].as_str());
        text.or(body["content"].as_str())
            .or(body["text"]["content"].as_str())
            .map(ToOwned::to_owned)
    };
    delivered
        .iter()
        .map(|one| text(&one.body).unwrap())
        .collect()
}

/// timonwong/prometheus-webhook-dingtalk#30, feiyu563/PrometheusAlert#318: message too long, exceed 20000
/// bytes.
#[tokio::test]
async fn above_20000_bytes_a_message_arrives_whole_in_numbered_parts() {
    let stage = Stage::open().await;
    let event = stage
        .box_
        .install_cool_app(&stage.chat(), "manager0001", Casing::Lower);
    stage.push(&event).await;
    let text = long_alert(300);
    assert!(text.len() > 20_000);
    let targets = [
        json!({"chat": stage.chat()}),
        json!({"users": ["manager0001"]}),
        robot(),
    ];
    for to in targets {
        let before = texts(&stage).len();
        let id = stage
            .send(&json!({"to": to, "content": {"markdown": {"title": "P1", "text": text}}}))
            .await;
        let message = stage.reaches(&id, "sent").await;
        let parts = texts(&stage).split_off(before);
        assert!(parts.len() > 1, "{}", parts.len());
        assert_eq!(message["parts"], parts.len());
        assert_eq!(message["receipts"].as_array().unwrap().len(), parts.len());
        let mut whole = String::new();
        for (index, part) in parts.iter().enumerate() {
            let number = format!("({}/{})\n\n", index + 1, parts.len());
            let rest = part
                .strip_prefix(&number)
                .unwrap_or_else(|| panic!("{part}"));
            assert_eq!(
                rest.matches("```").count() % 2,
                0,
                "fences are closed: {rest}"
            );
            whole.push_str(rest);
        }
        for line in text.lines().filter(|line| !line.starts_with("```")) {
            assert!(whole.contains(line), "{line} is lost or cut");
        }
    }
    stage.close().await;
}

#[tokio::test]
async fn a_part_that_fails_is_repeated_before_the_next_one_goes() {
    let stage = Stage::open().await;
    let busy = || Wrong::json(500, r#"{"code":"system.busy","message":"x"}"#);
    stage.box_.set(Switches {
        fail_next: [busy()].into(),
        ..Switches::default()
    });
    let mut body = text_to(&robot(), &"一行告警。\n".repeat(3_000));
    body["at"] = json!({"mobiles": ["13800000000"]});
    let id = stage.send(&body).await;
    stage.reaches(&id, "sent").await;
    let parts = texts(&stage);
    assert_eq!(parts.len(), 3);
    for (index, part) in parts.iter().enumerate() {
        assert!(part.starts_with(&format!("({}/3) ", index + 1)), "{part}");
        assert_eq!(
            part.contains("@13800000000"),
            index == 0,
            "people are called once"
        );
    }
    let keys: std::collections::BTreeSet<_> = stage
        .box_
        .delivered()
        .into_iter()
        .map(|one| one.msg_uuid)
        .collect();
    assert_eq!(keys.len(), 3, "each part has a key of its own");
    stage.close().await;
}

#[tokio::test]
async fn the_parts_that_were_sent_before_a_kill_are_not_sent_again() {
    let mut stage = Stage::open().await;
    let id = stage
        .send(&text_to(&robot(), &"一行告警。\n".repeat(8_000)))
        .await;
    until("some parts are out", async || texts(&stage).len() >= 3).await;
    stage = stage.crash().await;
    stage.reaches(&id, "sent").await;
    let parts = texts(&stage);
    for (index, part) in parts.iter().enumerate() {
        assert!(
            part.starts_with(&format!("({}/{}) ", index + 1, parts.len())),
            "{part}"
        );
    }
    stage.close().await;
}

#[tokio::test]
async fn what_does_not_fit_into_ten_parts_is_refused() {
    let stage = Stage::open().await;
    let reply = stage.post(&text_to(&robot(), &"x".repeat(220_000))).await;
    assert_eq!(
        (reply.status, &reply.json()["type"]),
        (413, &json!("urn:dingd:problem:content_too_large"))
    );
    let link =
        json!({"link": {"title": "t", "text": "x".repeat(30_000), "url": "https://a.example"}});
    let reply = stage.post(&json!({"to": robot(), "content": link})).await;
    assert_eq!(reply.status, 413, "{}", reply.body);
    stage.close().await;
}
