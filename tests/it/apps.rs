//! Several apps of an organisation in one daemon.

use dingd::sim::dingtalk::{App, Casing, DingTalk, Settings};
use serde_json::json;

use crate::support::{Stage, fast, listener, other_event, text_to, until};

/// An app that DingTalk's console shows beside the box's own.
fn second() -> App {
    App {
        client_id: "dingboxapp0002".to_owned(),
        client_secret: "second-client-secret-not-a-real-one".to_owned(),
        robot_code: "dingboxapp0002".to_owned(),
        cool_app_code: "COOLAPP-1-10180000B0C50002".to_owned(),
        callback_token: "BoxToken02".to_owned(),
        callback_aes_key: "sEcOnDsEcOnDsEcOnDsEcOnDsEcOnDsEcOnDsEcOnDs".to_owned(),
        receive_id: "dingboxapp0002".to_owned(),
        ..App::default()
    }
}

fn with_both(config: &str) -> String {
    let app = second();
    format!(
        r#"{config}[[apps]]
name = "second"
corp_id = "{}"
client_id = "{}"
client_secret = "{}"
cool_app_code = "{}"
[apps.callback]
token = "{}"
aes_key = "{}"
"#,
        app.corp_id,
        app.client_id,
        app.client_secret,
        app.cool_app_code,
        app.callback_token,
        app.callback_aes_key,
    )
}

#[tokio::test]
async fn each_app_has_its_own_callbacks_groups_and_token() {
    let stage = Stage::with(fast(), |config| with_both(&config)).await;
    let settings = Settings {
        app: second(),
        ..fast()
    };
    let pusher = DingTalk::start(settings, listener().await);
    let url = |app: &str| format!("{}/callback/{app}/events", stage.daemon.callbacks());

    assert!(
        pusher
            .push(&url("second"), &other_event(1))
            .await
            .acknowledged
    );
    assert!(stage.push(&other_event(2)).await.acknowledged);
    // Neither can speak for the other.
    for (box_, app) in [(&pusher, "oncall"), (&stage.box_, "second")] {
        assert_eq!(box_.push(&url(app), &other_event(3)).await.status, 403);
    }
    until("both are forwarded", async || {
        stage.platform.events().len() == 2
    })
    .await;
    let mut sources: Vec<_> = stage.platform.events();
    sources.sort_by_key(|event| event.body["data"]["raw"].to_string());
    let sources: Vec<_> = sources.iter().map(|event| &event.body["source"]).collect();
    let corp = second().corp_id;
    assert_eq!(
        sources,
        [
            &json!(format!("/dingtalk/{corp}/second")),
            &json!(format!("/dingtalk/{corp}/oncall"))
        ]
    );

    // One group, both apps in it: who asks says which is meant.
    let chat = stage.chat();
    for (box_, app) in [(&pusher, "second"), (&stage.box_, "oncall")] {
        let event = box_.install_cool_app(&chat, "manager0001", Casing::Lower);
        assert!(box_.push(&url(app), &event).await.acknowledged);
    }
    let id = chat
        .replace('+', "%2B")
        .replace('/', "%2F")
        .replace('=', "%3D");
    until("both know the group", async || {
        stage.get(&format!("/v1/chats/{id}")).await.status == 409
    })
    .await;
    let asked = stage.get(&format!("/v1/chats/{id}")).await.json();
    assert!(
        asked["type"].to_string().contains("chat_ambiguous"),
        "{asked}"
    );
    let of_second = stage.get(&format!("/v1/chats/{id}?app=second")).await;
    assert_eq!(of_second.json()["app"], "second", "{}", of_second.body);
    let listed = stage.get("/v1/chats?app=second").await.json();
    assert_eq!(listed["chats"].as_array().unwrap().len(), 1, "{listed}");

    let first = stage.get("/v1/chats?limit=1").await.json();
    let cursor = first["next_cursor"].as_str().unwrap();
    let rest = stage
        .get(&format!("/v1/chats?cursor={cursor}"))
        .await
        .json();
    let apps = [&first, &rest].map(|page| page["chats"][0]["app"].clone());
    assert!(
        apps.contains(&json!("oncall")) && apps.contains(&json!("second")),
        "{apps:?}"
    );
    assert_eq!(rest["next_cursor"], json!(null));

    let mut body = text_to(&json!({"chat": chat}), "to whom?");
    body.as_object_mut().unwrap().remove("app");
    let refused = stage.post(&body).await;
    assert_eq!(refused.status, 422, "{}", refused.body);
    assert!(refused.body.contains("second"), "{}", refused.body);
    // DingTalk here knows nothing of the second app: its token is its own affair, and holds up nobody else.
    body["app"] = json!("second");
    let held = stage.send(&body).await;
    body["app"] = json!("oncall");
    let id = stage.send(&body).await;
    stage.reaches(&id, "sent").await;
    assert_ne!(stage.state(&held).await, "sent");
    stage.close().await;
}
