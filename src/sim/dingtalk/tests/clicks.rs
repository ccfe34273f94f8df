//! Clicks over HTTP: what the app is told, and what its answer does.

use super::app::Callee;
use super::cards::card;
use super::*;

/// A box with one card that is called back over HTTP, and the app behind it.
async fn stage(settings: Settings, secret: Option<&str>) -> (DingTalk, Callee) {
    let (ding, app) = (boxed(settings).await, Callee::start().await);
    let token = token(&ding).await;
    let mut route = json!({"callbackRouteKey": "k", "callbackUrl": app.url()});
    if let Some(secret) = secret {
        route["apiSecret"] = json!(secret);
    }
    let path = "/v1.0/card/callbacks/register";
    assert_eq!(call(&ding, path, &token, &route).await.0, 200);
    let mut body = card("a");
    body["callbackType"] = json!("HTTP");
    body["callbackRouteKey"] = json!("k");
    let path = "/v1.0/card/instances/createAndDeliver";
    assert_eq!(call(&ding, path, &token, &body).await.0, 200);
    (ding, app)
}

/// What an app answers that takes note of a click.
fn noted() -> String {
    json!({
        "cardUpdateOptions": {"updateCardDataByKey": true, "updatePrivateDataByKey": true},
        "cardData": {"cardParamMap": {"status": "acked"}},
        "userPrivateData": {"cardParamMap": {"done": "true"}},
    })
    .to_string()
}

#[tokio::test]
async fn a_click_has_the_captured_form_and_its_answer_changes_the_card() {
    let (ding, app) = stage(settings(), Some("s")).await;
    app.answers(200, &noted(), 0);
    let clicked = ding
        .click(
            "a",
            "manager0002",
            &["ack"],
            json!({"action": "ack", "n": [1]}),
        )
        .await;
    assert!(clicked.accepted && clicked.in_time, "{clicked:?}");
    let told = app.told().remove(0);
    let content =
        json!({"cardPrivateData": {"actionIds": ["ack"], "params": {"action": "ack", "n": [1]}}});
    let expected = json!({
        "type": "actionCallback", "outTrackId": "a", "corpId": App::default().corp_id,
        "userId": "manager0002", "content": content.to_string(),
    });
    assert_eq!(told.body, expected);
    let timestamp = told.header("x-ddpaas-signature-timestamp").unwrap();
    let signature = told.header("x-ddpaas-signature").unwrap();
    assert_eq!(signature, sign::card(&timestamp, "s"));
    let card = ding.card("a").unwrap();
    assert_eq!(card.public["status"], "acked");
    assert_eq!(card.public["title"], "P1");
    assert_eq!(card.seen_by("manager0002")["done"], "true");
    assert!(!card.seen_by("manager0001").contains_key("done"));
    assert_eq!(card.seen_by("manager0001")["mine"], "true");
    let last = card.history.last().unwrap();
    assert_eq!(last.cause, Cause::Clicked("manager0002".to_owned()));
    let known = ["without apiSecret"];
    assert!(!ding.complaints().iter().any(|it| it.contains(known[0])));
}

#[tokio::test]
async fn a_click_can_be_reported_in_every_form_that_was_seen() {
    let (ding, app) = stage(settings(), Some("s")).await;
    app.answers(200, "{}", 0);
    let click = Click::new("a", "manager0001", &["ack"], json!({"x": "1"}));
    let forms = [
        Click {
            signed: Signed::Not,
            ..click.clone()
        },
        Click {
            signed: Signed::Wrongly,
            ..click.clone()
        },
        Click {
            signed: Signed::Aged(7_200_000),
            ..click.clone()
        },
        Click {
            params_beside: true,
            ..click.clone()
        },
        Click {
            carriers: Carriers::Value,
            ..click.clone()
        },
        Click {
            carriers: Carriers::Both,
            as_object: true,
            ..click.clone()
        },
    ];
    for form in &forms {
        assert!(ding.click_with(form).await.accepted);
    }
    let told = app.told();
    assert_eq!(told[0].header("x-ddpaas-signature"), None);
    let signed = |at: usize| {
        let header = |name: &str| told[at].header(name).unwrap();
        let timestamp = header("x-ddpaas-signature-timestamp");
        let right = header("x-ddpaas-signature") == sign::card(&timestamp, "s");
        (right, clock::wall_ms() - timestamp.parse::<u64>().unwrap())
    };
    assert!(!signed(1).0);
    assert!(signed(2).0 && signed(2).1 >= 7_200_000);
    let beside = json!({"cardPrivateData": {"actionIds": ["ack"]}, "params": {"x": "1"}});
    assert_eq!(told[3].body["content"], beside.to_string());
    assert!(told[4].body.get("content").is_none() && told[4].body["value"].is_string());
    assert_eq!(
        told[5].body["content"]["cardPrivateData"]["params"]["x"],
        "1"
    );
    assert_eq!(told[5].body["content"], told[5].body["value"]);
}

#[tokio::test]
async fn an_answer_after_the_limit_changes_nothing() {
    // Two seconds at twenty times the speed.
    let mut settings = settings();
    settings.cards.click_limit_ms = 2_000;
    let (ding, app) = stage(settings, Some("s")).await;
    app.answers(200, &noted(), 300);
    let clicked = ding.click("a", "manager0001", &["ack"], json!({})).await;
    assert!(!clicked.in_time && !clicked.accepted);
    assert_eq!(clicked.status, 0);
    ding.world().settings.cards.hang_up = false;
    let clicked = ding.click("a", "manager0001", &["ack"], json!({})).await;
    assert!(!clicked.in_time && !clicked.accepted);
    assert_eq!((clicked.status, clicked.body), (200, noted()));
    assert_eq!(ding.card("a").unwrap().public["status"], "firing");
}

#[tokio::test]
async fn an_answer_in_the_wrong_form_is_noted_and_dropped() {
    let (ding, app) = stage(settings(), Some("s")).await;
    let bad = [
        "",
        "[]",
        r#"{"cardData":{"cardParamMap":{"status":1}}}"#,
        r#"{"cardData":{"status":"acked"}}"#,
        r#"{"cardData":null}"#,
        r#"{"cardUpdateOptions":{"updateCardDataByKey":"true"}}"#,
        r#"{"userPrivateData":{"manager0001":{"cardParamMap":{"a":"b"}}}}"#,
    ];
    for body in bad {
        app.answers(200, body, 0);
        let clicked = ding.click("a", "manager0001", &["ack"], json!({})).await;
        assert!(clicked.in_time && !clicked.accepted, "{body}");
    }
    assert!(ding.complaints().len() >= bad.len());
    assert_eq!(ding.card("a").unwrap().history.len(), 1);
    // What is only unknown is noted and passed over.
    app.answers(
        200,
        r#"{"more":1,"cardData":{"cardParamMap":{"status":"acked"}}}"#,
        0,
    );
    assert!(
        ding.click("a", "manager0001", &["ack"], json!({}))
            .await
            .accepted
    );
    assert!(
        ding.complaints()
            .last()
            .unwrap()
            .contains("unknown member more")
    );
    // Without the option to go by key, the title is gone.
    assert_eq!(ding.card("a").unwrap().public.len(), 1);
}

#[tokio::test]
async fn a_route_without_a_secret_sends_unsigned_clicks_and_a_failing_app_changes_nothing() {
    let (ding, app) = stage(settings(), None).await;
    app.answers(500, "{}", 0);
    let clicked = ding.click("a", "manager0001", &["ack"], json!({})).await;
    assert_eq!((clicked.status, clicked.accepted), (500, false));
    assert_eq!(app.told()[0].header("x-ddpaas-signature"), None);
    for (card, user) in [("b", "manager0001"), ("a", "nobody")] {
        let clicked = ding.click(card, user, &["ack"], json!({})).await;
        assert_eq!(clicked.way, None);
    }
}
