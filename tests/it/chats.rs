//! The directory of groups: filled by events, ordered by DingTalk's own time.

use dingd::sim::dingtalk::{Casing, Switches, Wrong};
use serde_json::json;

use crate::support::{Stage, reload, text_to, until};

async fn titles(stage: &Stage, state: &str) -> Vec<String> {
    let page = stage.get(&format!("/v1/chats?state={state}")).await.json();
    let title = |chat: &serde_json::Value| chat["title"].as_str().map(ToOwned::to_owned);
    page["chats"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(title)
        .collect()
}

#[tokio::test]
async fn an_install_event_fills_the_list_and_the_name_is_looked_up() {
    let stage = Stage::open().await;
    let event = stage
        .box_
        .install_cool_app(&stage.chat(), "manager0001", Casing::Lower);
    assert!(stage.push(&event).await.acknowledged);
    until("the name", async || {
        titles(&stage, "installed").await == ["值班告警群"]
    })
    .await;
    let id = stage
        .chat()
        .replace('+', "%2B")
        .replace('/', "%2F")
        .replace('=', "%3D");
    let chat = stage.get(&format!("/v1/chats/{id}")).await;
    assert_eq!(chat.json()["id"], json!(stage.chat()), "{}", chat.body);
    assert_eq!(chat.json()["installed_by"], "manager0001");
    let found = stage.get("/v1/chats?q=%E5%80%BC%E7%8F%AD").await.json();
    assert_eq!(found["chats"].as_array().unwrap().len(), 1);
    stage.close().await;
}

#[tokio::test]
async fn a_name_that_cannot_be_looked_up_at_first_is_looked_up_again() {
    let stage = Stage::open().await;
    stage.box_.set(Switches {
        only: Some("/v1.0/im/sceneGroups".into()),
        down: true,
        ..Switches::default()
    });
    let event = stage
        .box_
        .install_cool_app(&stage.chat(), "manager0001", Casing::Pascal);
    stage.push(&event).await;
    until("trouble is reported", async || {
        stage.ready().await["degraded"]
            .to_string()
            .contains("names of groups")
    })
    .await;
    stage.box_.set(Switches::default());
    until("the name", async || {
        titles(&stage, "installed").await == ["值班告警群"]
    })
    .await;
    assert_eq!(stage.ready().await["degraded"], json!([]));
    stage.close().await;
}

/// Each call counts against the organisation's month, and what DingTalk refuses today it refuses tomorrow.
#[tokio::test]
async fn a_name_that_is_refused_is_asked_again_after_a_reload() {
    let stage = Stage::open().await;
    let refused = r#"{"code":"permession.checkFailed","message":"no permission"}"#;
    stage.box_.set(Switches {
        only: Some("/v1.0/im/sceneGroups".into()),
        fail_next: [Wrong::json(400, refused)].into(),
        ..Switches::default()
    });
    let event = stage
        .box_
        .install_cool_app(&stage.chat(), "manager0001", Casing::Lower);
    stage.push(&event).await;
    until("trouble is reported", async || {
        let degraded = stage.ready().await["degraded"].to_string();
        degraded.contains("names of groups")
    })
    .await;
    reload(&stage, &stage.config).await;
    until("the name", async || {
        titles(&stage, "installed").await == ["值班告警群"]
    })
    .await;
    assert_eq!(stage.ready().await["degraded"], json!([]));
    stage.close().await;
}

#[tokio::test]
async fn a_new_install_repairs_a_name_that_has_changed_meanwhile() {
    let stage = Stage::open().await;
    let chat = stage.chat();
    let old_name = stage.box_.rename(&chat, "旧", "manager0001", Casing::Lower);
    std::thread::sleep(std::time::Duration::from_millis(3));
    // Of this nobody hears.
    drop(stage.box_.rename(&chat, "新", "manager0001", Casing::Lower));
    let install = stage
        .box_
        .install_cool_app(&chat, "manager0001", Casing::Lower);
    for event in [&old_name, &install] {
        assert!(stage.push(event).await.acknowledged);
    }
    until("the true name", async || {
        titles(&stage, "installed").await == ["新"]
    })
    .await;
    stage.close().await;
}

#[tokio::test]
async fn late_events_do_not_undo_newer_ones_and_all_survives_a_crash() {
    let stage = Stage::open().await;
    let chat = stage.chat();
    let pause = || std::thread::sleep(std::time::Duration::from_millis(3));
    let first = stage
        .box_
        .install_cool_app(&chat, "manager0001", Casing::Lower);
    pause();
    let removed = stage
        .box_
        .uninstall_cool_app(&chat, "manager0001", Casing::Lower);
    pause();
    let old_name = stage.box_.rename(&chat, "旧", "manager0001", Casing::Lower);
    pause();
    let again = stage
        .box_
        .install_cool_app(&chat, "manager0001", Casing::Pascal);
    let new_name = stage
        .box_
        .rename(&chat, "新", "manager0001", Casing::Pascal);
    for event in [&again, &new_name, &removed, &old_name, &first] {
        assert!(stage.push(event).await.acknowledged);
    }
    assert_eq!(titles(&stage, "installed").await, ["新"]);
    let stage = stage.crash().await;
    assert_eq!(titles(&stage, "installed").await, ["新"]);
    stage.close().await;
}

#[tokio::test]
async fn a_message_to_a_group_without_the_cool_app_is_refused_with_the_cure() {
    let stage = Stage::open().await;
    let chat = stage.chat();
    for event in [
        stage
            .box_
            .install_cool_app(&chat, "manager0001", Casing::Lower),
        stage
            .box_
            .uninstall_cool_app(&chat, "manager0001", Casing::Lower),
    ] {
        std::thread::sleep(std::time::Duration::from_millis(3));
        stage.push(&event).await;
    }
    let refused = stage.post(&text_to(&json!({"chat": chat}), "x")).await;
    assert_eq!(refused.status, 422);
    assert_eq!(refused.json()["type"], "urn:dingd:problem:chat_uninstalled");
    assert!(
        refused.json()["fix_zh"]
            .as_str()
            .unwrap()
            .contains("重新安装酷应用")
    );
    assert_eq!(titles(&stage, "installed").await, Vec::<String>::new());
    assert_eq!(
        stage.get("/v1/chats?state=uninstalled").await.json()["chats"][0]["state"],
        "uninstalled"
    );
    let disband = stage.box_.disband(&chat, "manager0001", Casing::Lower);
    stage.push(&disband).await;
    let refused = stage
        .post(&text_to(&json!({"chat": chat}), "x"))
        .await
        .json();
    assert!(
        refused["detail"].as_str().unwrap().contains("disbanded"),
        "{refused}"
    );
    stage.close().await;
}

#[tokio::test]
async fn known_chats_only_refuses_a_chat_that_no_event_told_of() {
    let edit = |config: String| format!("{config}[outbound]\nknown_chats_only = true\n");
    let stage = Stage::with(crate::support::fast(), edit).await;
    let body = text_to(&json!({"chat": stage.chat()}), "x");
    assert_eq!(
        stage.post(&body).await.json()["type"],
        "urn:dingd:problem:chat_unknown"
    );
    let event = stage
        .box_
        .install_cool_app(&stage.chat(), "manager0001", Casing::Lower);
    stage.push(&event).await;
    let id = stage.send(&body).await;
    stage.reaches(&id, "sent").await;
    stage.close().await;
}

#[tokio::test]
async fn a_group_that_dingtalk_calls_gone_ends_the_message_with_the_reason() {
    let stage = Stage::open().await;
    let gone = Wrong::json(
        400,
        r#"{"code":"group.disbanded","requestid":"r","message":"gone"}"#,
    );
    stage.box_.set(Switches {
        fail_next: [gone].into(),
        ..Switches::default()
    });
    let id = stage
        .send(&text_to(&json!({"chat": stage.chat()}), "x"))
        .await;
    let message = stage.reaches(&id, "dead").await;
    assert_eq!(message["reason"]["code"], "chat_disbanded", "{message}");
    stage.close().await;
}
