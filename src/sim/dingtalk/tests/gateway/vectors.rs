//! The shared vectors: frames have their members, and their acknowledgements are good ones.

use super::*;

/// The names in an object, sorted.
fn names(object: &Value) -> Vec<&str> {
    object
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

#[tokio::test]
async fn frames_have_the_members_of_the_shared_vectors() {
    let file = include_str!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/vectors/stream-frames.json"
    ));
    let file: Value = serde_json::from_str(file).unwrap();
    let vector = |id: &str| {
        let mut all = file["vectors"].as_array().unwrap().iter();
        all.find(|it| it["id"] == id).unwrap()["frame"].clone()
    };
    let inside =
        |frame: &Value| -> Value { serde_json::from_str(frame["data"].as_str().unwrap()).unwrap() };
    let ding = boxed(settings()).await;
    let token = token(&ding).await;
    let path = "/v1.0/card/instances/createAndDeliver";
    call(&ding, path, &token, &card("alert-0001")).await;
    let mut client = Client::connect(&ding, &[EVENT, ROBOT, CARD]).await;
    ding.gateway().send_event(&rename(&ding, "值班"));
    let install = ding.install_cool_app(CHAT, "manager0001", Casing::Lower);
    ding.gateway().send_event(&install);
    let left = ding.user_leaves("manager0002", Casing::Lower);
    ding.gateway().send_event(&left);
    let body = ding.worded(&Speech::in_group(CHAT, "manager0001", "你好"));
    ding.gateway().send_robot_message(&body);
    let click = Click::new(
        "alert-0001",
        "manager0001",
        &["ack"],
        json!({"action": "ack"}),
    );
    let clicking = tokio::spawn({
        let ding = ding.clone();
        async move { ding.click_with(&click).await }
    });
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.push(client.frame().await);
    }
    let with = |topic: &str, kind: Value| {
        let mut frames = seen.iter();
        let fits =
            |it: &&Value| it["headers"]["topic"] == topic && it["headers"]["eventType"] == kind;
        frames.find(fits).unwrap().clone()
    };
    for (id, topic, kind) in [
        (
            "stream-event-chat-update-title",
            EVENT,
            json!("chat_update_title"),
        ),
        (
            "stream-event-cool-app-install",
            EVENT,
            json!("im_cool_app_install"),
        ),
        ("stream-event-later", EVENT, json!("user_leave_org")),
        ("stream-robot", ROBOT, Value::Null),
        ("stream-card", CARD, Value::Null),
    ] {
        let (own, shared) = (with(topic, kind), vector(id));
        assert_eq!(names(&own), names(&shared), "{id}");
        assert_eq!(own["type"], shared["type"], "{id}");
        for name in names(&shared["headers"]) {
            assert!(own["headers"][name].is_string(), "{id}: {name}");
        }
        let (own, shared) = (inside(&own), inside(&shared));
        assert_eq!(names(&own), names(&shared), "{id}");
        for name in names(&shared) {
            let same = std::mem::discriminant(&own[name]) == std::mem::discriminant(&shared[name]);
            assert!(same, "{id}: {name}");
        }
    }
    let frame = with(CARD, Value::Null);
    let answer = json!({"response": {"cardUpdateOptions": {"updateCardDataByKey": true},
        "cardData": {"cardParamMap": {"status": "acked"}}}});
    client.ack(&frame, 200, &answer).await;
    let clicked = clicking.await.unwrap();
    assert!(clicked.accepted, "{clicked:?}");
    assert_eq!(clicked.way, Some(Way::Stream));
    assert_eq!(ding.card("alert-0001").unwrap().public["status"], "acked");
    assert_eq!(ding.complaints(), Vec::<String>::new());
}

#[tokio::test]
async fn the_acks_of_the_shared_vectors_are_taken_without_complaint() {
    let file = include_str!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/vectors/stream-frames.json"
    ));
    let file: Value = serde_json::from_str(file).unwrap();
    let ding = boxed(settings()).await;
    let gateway = ding.gateway();
    let topic = |it: &Value| it["frame"]["headers"]["topic"].as_str().unwrap().to_owned();
    let mut client = Client::connect(&ding, &[ROBOT, CARD, "/v9.9/none"]).await;
    for vector in file["vectors"].as_array().unwrap() {
        if vector["frame"]["type"] != "CALLBACK" {
            continue;
        }
        let id = vector["frame"]["headers"]["messageId"].as_str().unwrap();
        let data = vector["frame"]["data"].as_str().unwrap().to_owned();
        let (topic, wait) = (topic(vector), Duration::from_secs(5));
        let answer = async {
            client.frame().await;
            client.send(&vector["ack"].to_string()).await;
        };
        let call = gateway.callback(&topic, Some(id.to_owned()), data, wait);
        if vector["ack"]["code"] == 200 {
            let (ack, ()) = tokio::join!(call, answer);
            assert_eq!(ack.unwrap().data, vector["ack"]["data"].as_str().unwrap());
        } else {
            let refused = tokio::join!(
                tokio::time::timeout(Duration::from_millis(200), call),
                answer
            );
            assert!(refused.0.is_err());
            assert_eq!(gateway.acks().last().unwrap().code, 404);
        }
    }
    assert_eq!(ding.complaints(), Vec::<String>::new());
}
