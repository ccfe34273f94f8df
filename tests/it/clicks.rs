//! Clicks on cards: believed, kept, offered to the platform, answered in the time that there is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dingd::sim::daemon::{CARDS_OVER_HTTP, Signal};
use dingd::sim::dingtalk::{Carriers, Click, Clicked, Signed, Switches};
use dingd::sim::platform::{PlatformSwitches, Reaction, Reflex};
use serde_json::{Value, json};

use crate::support::{Stage, fast, until};

const CLICKED: &str = "dingtalk.card.clicked";

async fn stage() -> Stage {
    stage_with("").await
}

/// Clicks come over HTTP; a card stands in the chat; `config` is added to the daemon's.
async fn stage_with(config: &str) -> Stage {
    let stage = Stage::with(fast(), |usual| usual + CARDS_OVER_HTTP + config).await;
    stage.route_clicks().await;
    stage.foreign_card("alert-1").await;
    stage
}

/// Somebody clicks "acknowledge", and the click is taken.
async fn click(stage: &Stage, card: &str, user: &str, params: Value) -> Clicked {
    let clicked = stage.box_.click(card, user, &["ack"], params).await;
    assert!(clicked.accepted, "{clicked:?}");
    clicked
}

/// The first to click has it, and everybody is told who that is.
fn first_come() -> Reflex {
    let first = std::sync::Mutex::new(None::<String>);
    Reflex::new(move |event| {
        (event["type"] == CLICKED).then(|| {
            let user = event["data"]["user"].as_str().unwrap().to_owned();
            let mut first = first.lock().unwrap();
            let owner = first.get_or_insert_with(|| user.clone()).clone();
            let mine = (owner == user).to_string();
            Reaction::now(json!({"card": {
                "data": {"status": "acked", "ack_by": owner},
                "private_data": {"mine": mine}}}))
        })
    })
}

fn reflex(reflex: Reflex) -> PlatformSwitches {
    PlatformSwitches {
        reflex: Some(reflex),
        ..PlatformSwitches::default()
    }
}

fn down() -> PlatformSwitches {
    PlatformSwitches {
        status: Some(503),
        ..PlatformSwitches::default()
    }
}

/// A platform that takes so long to say that the alert is acknowledged.
fn acking_after(slow_ms: u64) -> PlatformSwitches {
    PlatformSwitches {
        slow_ms,
        answer: Some(r#"{"card":{"data":{"status":"acked"}}}"#.to_owned()),
        ..PlatformSwitches::default()
    }
}

fn ack() -> Value {
    json!({"action": "ack"})
}

#[tokio::test]
async fn a_click_changes_the_card_at_once_with_the_platforms_answer() {
    let stage = stage().await;
    stage.platform.set(reflex(first_come()));
    click(&stage, "alert-1", "manager0001", ack()).await;
    let card = stage.box_.card("alert-1").unwrap();
    assert_eq!(card.public["status"], "acked");
    assert_eq!(card.public["title"], "P1 disk full", "the rest stays");
    assert_eq!(card.seen_by("manager0001")["mine"], "true");
    assert_eq!(card.seen_by("manager0002").get("mine"), None);
    let events = stage.events(CLICKED);
    assert_eq!(events.len(), 1);
    let event = &events[0];
    assert_eq!(event.body["subject"], "alert-1");
    assert_eq!(event.body["data"]["actions"], json!(["ack"]));
    assert_eq!(event.body["data"]["params"], ack());
    assert_eq!(event.body["data"]["user"], "manager0001");
    let left_ms: u64 = event.deadline_ms.as_ref().unwrap().parse().unwrap();
    assert!((1..=1_200).contains(&left_ms), "{left_ms}");
    stage.close().await;
}

#[tokio::test]
async fn two_people_who_click_within_a_second_both_see_the_truth() {
    let stage = stage().await;
    stage.platform.set(reflex(first_come()));
    let (first, second) = tokio::join!(
        stage.box_.click("alert-1", "manager0001", &["ack"], ack()),
        stage.box_.click("alert-1", "manager0002", &["ack"], ack()),
    );
    assert!(first.accepted && second.accepted, "{first:?} {second:?}");
    let card = stage.box_.card("alert-1").unwrap();
    let owner = card.public["ack_by"].clone();
    for user in ["manager0001", "manager0002"] {
        assert_eq!(card.seen_by(user)["mine"], (owner == user).to_string());
    }
    assert_eq!(stage.events(CLICKED).len(), 2);
    stage.close().await;
}

#[tokio::test]
async fn the_same_click_again_is_one_click() {
    let stage = stage().await;
    stage.platform.set(reflex(first_come()));
    for _ in 0..3 {
        click(&stage, "alert-1", "manager0001", ack()).await;
    }
    for other in [json!({"action": "ack", "again": 1}), json!({})] {
        stage
            .box_
            .click("alert-1", "manager0001", &["ack"], other)
            .await;
    }
    stage
        .box_
        .click("alert-1", "manager0001", &["close"], ack())
        .await;
    until("four different clicks are told", async || {
        stage.events(CLICKED).len() == 4
    })
    .await;
    stage.close().await;
}

#[tokio::test]
async fn all_shapes_of_a_click_mean_the_same() {
    let stage = stage().await;
    stage.platform.set(reflex(first_come()));
    let mut n = 0;
    for carriers in [Carriers::Content, Carriers::Value, Carriers::Both] {
        for (params_beside, as_object) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            n += 1;
            let click = Click {
                carriers,
                params_beside,
                as_object,
                ..Click::new("alert-1", "manager0001", &["ack"], json!({"n": n}))
            };
            let clicked = stage.box_.click_with(&click).await;
            assert!(clicked.accepted, "{click:?} {clicked:?}");
            let event = stage.events(CLICKED).pop().unwrap();
            assert_eq!(event.body["data"]["params"], json!({"n": n}), "{click:?}");
            assert_eq!(event.body["data"]["actions"], json!(["ack"]), "{click:?}");
        }
    }
    stage.close().await;
}

#[tokio::test]
async fn a_click_that_is_not_signed_as_it_should_be_is_refused_and_not_told() {
    let stage = stage().await;
    for signed in [
        Signed::Not,
        Signed::Wrongly,
        Signed::Aged(3_700_000),
        Signed::Aged(-3_700_000),
    ] {
        let click = Click {
            signed,
            ..Click::new("alert-1", "manager0001", &["ack"], ack())
        };
        let clicked = stage.box_.click_with(&click).await;
        assert_eq!(
            (clicked.status, clicked.body.as_str()),
            (403, ""),
            "{signed:?}"
        );
    }
    let metrics = stage.metrics().await;
    assert!(metrics.contains(r#"dingd_callbacks_total{result="refused",reason="stale"} 2"#));
    assert!(stage.events(CLICKED).is_empty());
    stage.close().await;
}

#[tokio::test]
async fn whoever_clicks_while_the_platform_is_slow_sees_that_it_is_under_way() {
    let stage = stage().await;
    stage.platform.set(acking_after(1_500));
    click(&stage, "alert-1", "manager0001", ack()).await;
    let card = stage.box_.card("alert-1").unwrap();
    assert_eq!(card.seen_by("manager0001")["dingd_state"], "pending");
    assert_eq!(card.seen_by("manager0002").get("dingd_state"), None);
    assert_eq!(card.public["status"], "firing");
    until(
        "the late answer is on the card, and nothing is under way",
        async || {
            let card = stage.box_.card("alert-1").unwrap();
            card.public["status"] == "acked"
                && card.seen_by("manager0001")["dingd_state"].is_empty()
        },
    )
    .await;
    stage.close().await;
}

#[tokio::test]
async fn whoever_clicks_while_the_platform_is_down_is_told_at_once() {
    let stage = stage().await;
    stage.platform.set(down());
    for n in 0..3 {
        let clicked = click(&stage, "alert-1", "manager0001", json!({"n": n})).await;
        // Not asserted as a time: it is far from the second and more that a slow platform takes.
        assert!(clicked.elapsed.as_millis() < 1_000, "{clicked:?}");
        let card = stage.box_.card("alert-1").unwrap();
        assert_eq!(card.seen_by("manager0001")["dingd_state"], "pending");
    }
    stage.platform.set(reflex(first_come()));
    until("all are told, and the card tells the truth", async || {
        let card = stage.box_.card("alert-1").unwrap();
        let seen = card.seen_by("manager0001");
        stage.events(CLICKED).len() == 3
            && seen["dingd_state"].is_empty()
            && seen.get("ack_by").is_some_and(|by| by == "manager0001")
    })
    .await;
    stage.close().await;
}

#[tokio::test]
async fn an_answer_of_the_wrong_shape_counts_as_taken_and_is_told_in_the_log() {
    let stage = stage().await;
    stage.platform.set(PlatformSwitches {
        answer: Some(r#"{"card":{"data":{"status":7}}}"#.to_owned()),
        ..PlatformSwitches::default()
    });
    click(&stage, "alert-1", "manager0001", ack()).await;
    assert_eq!(
        stage.box_.card("alert-1").unwrap().public["status"],
        "firing"
    );
    assert!(stage.log().contains("card.data.status"));
    assert_eq!(stage.events(CLICKED).len(), 1);
    stage.close().await;
}

#[tokio::test]
async fn without_an_upstream_that_answers_a_click_is_told_and_changes_nothing() {
    let stage = Stage::with(fast(), |config| {
        config.replace("answers = true\n", "") + CARDS_OVER_HTTP
    })
    .await;
    stage.route_clicks().await;
    stage.foreign_card("alert-1").await;
    stage.platform.set(reflex(first_come()));
    click(&stage, "alert-1", "manager0001", ack()).await;
    let card = stage.box_.card("alert-1").unwrap();
    assert_eq!(card.seen_by("manager0001").get("dingd_state"), None);
    assert_eq!(card.public["status"], "firing");
    until("it is told", async || stage.events(CLICKED).len() == 1).await;
    assert_eq!(stage.events(CLICKED)[0].deadline_ms, None);
    stage.close().await;
}

#[tokio::test]
async fn hostile_clicks_are_refused_alike_and_kill_nobody() {
    let stage = stage().await;
    let click = Click::new("alert-1", "manager0001", &["ack"], ack());
    let good: Value = serde_json::from_str(&stage.box_.click_body(&click).unwrap()).unwrap();
    let url = format!("{}/callback/oncall/cards", stage.daemon.callbacks());
    let refused = Arc::new(AtomicUsize::new(0));
    let post = async |body: String, status: u16| {
        let headers = Signed::Rightly.card(Some(dingd::sim::daemon::CARD_SECRET));
        let reply = dingd::sim::post::request("POST", &url, &headers, body.clone())
            .await
            .unwrap();
        assert_eq!(reply.status, status, "{}", body.get(..300).unwrap_or(&body));
        if status == 403 {
            assert_eq!(reply.body, "");
            refused.fetch_add(1, Ordering::Relaxed);
        }
    };
    for member in ["outTrackId", "userId"] {
        for bad in [
            json!(null),
            json!(7),
            json!(""),
            json!([]),
            json!({}),
            json!("a\u{0}b"),
            json!("x".repeat(300)),
        ] {
            let mut body = good.clone();
            body[member] = bad;
            post(body.to_string(), 403).await;
        }
        let mut body = good.clone();
        body.as_object_mut().unwrap().remove(member);
        post(body.to_string(), 403).await;
    }
    // Without them it is a click all the same, of nothing in particular.
    for (n, bad) in [
        json!(null),
        json!(7),
        json!(""),
        json!([]),
        json!("[[["),
        json!({"cardPrivateData": 7}),
    ]
    .into_iter()
    .enumerate()
    {
        let mut body = good.clone();
        body["content"] = bad;
        body["userId"] = json!(format!("user-{n}"));
        post(body.to_string(), 200).await;
    }
    for body in [
        String::new(),
        "[]".to_owned(),
        "{".to_owned(),
        good.to_string().replace("\"type\"", "\"outTrackId\""),
        format!(
            r#"{{"outTrackId":"a","userId":"u","content":{}{}}}"#,
            "[".repeat(100),
            "]".repeat(100)
        ),
    ] {
        post(body, 403).await;
    }
    post(
        format!(
            r#"{{"outTrackId":"a","userId":"u","x":"{}"}}"#,
            "x".repeat(300_000)
        ),
        413,
    )
    .await;
    assert_eq!(refused.load(Ordering::Relaxed), 2 * 8 + 5);
    // Another case of the names is as good.
    let body = good
        .to_string()
        .replace("outTrackId", "OutTrackId")
        .replace("userId", "UserId");
    post(body, 200).await;
    stage.close().await;
}

/// What the click changed is on the card already; whoever asks for the card, or changes it, must know.
#[tokio::test]
async fn what_a_click_has_changed_is_known_of_the_card() {
    let stage = Stage::with(fast(), |config| config + CARDS_OVER_HTTP).await;
    stage.route_clicks().await;
    let to = json!({"chat": stage.chat()});
    stage.send_card(&crate::cards::card_to(&to, "inc-1")).await;
    stage.agrees("inc-1").await;
    stage.platform.set(reflex(first_come()));
    click(&stage, "inc-1", "manager0001", ack()).await;
    until("what the click changed is known", async || {
        stage.card("inc-1").await["data"]["status"] == "acked"
    })
    .await;
    stage.agrees("inc-1").await;
    // All private data goes, and so does what came by the click.
    let whole = json!({"private_data": {"manager0002": {"mine": "x"}}, "replace": true});
    stage.change("inc-1", &whole).await;
    stage.agrees("inc-1").await;
    let shown = stage.card("inc-1").await;
    assert_eq!(shown["private_data"], json!({"manager0002": {"mine": "x"}}));
    stage.close().await;
}

/// A change that was asked for before the click would otherwise arrive behind the answer and undo it.
#[tokio::test]
async fn an_answer_to_a_click_is_not_undone_by_an_older_change_that_is_under_way() {
    let stage = stage().await;
    stage.platform.set(reflex(first_come()));
    let card = json!({"template_id": "alert.schema", "out_track_id": "alert-2",
        "to": {"users": ["manager0001"]}, "data": {"title": "t", "status": "firing"}});
    let request = async |method: &str, path: &str, body: &Value| {
        let reply = stage.daemon.request(method, path, body).await.unwrap();
        assert_eq!(reply.status, 202, "{}", reply.body);
        reply.json()["id"].as_str().unwrap().to_owned()
    };
    let id = request("POST", "/v1/cards", &card).await;
    stage.reaches(&id, "sent").await;
    stage.box_.set(Switches {
        only: Some("/v1.0/card/instances".to_owned()),
        down: true,
        ..Switches::default()
    });
    let change = json!({"data": {"status": "investigating"}});
    request("PATCH", "/v1/cards/alert-2", &change).await;
    click(&stage, "alert-2", "manager0001", ack()).await;
    stage.box_.set(Switches::default());
    // The change may arrive before it is noted what the click was answered with.
    until("the answer is shown and nothing waits", async || {
        let known = stage.get("/v1/cards/alert-2").await.json();
        let shown = stage.box_.card("alert-2").unwrap().public["status"].clone();
        known["waiting"].is_null() && known["data"]["status"] == "acked" && shown == "acked"
    })
    .await;
    stage.close().await;
}

/// A userid is somebody else's in another organisation.
#[tokio::test]
async fn somebody_of_another_organisation_clicks_for_nobody() {
    let stage = stage().await;
    let click = Click::new("alert-1", "manager0001", &["ack"], ack());
    let mut body: Value = serde_json::from_str(&stage.box_.click_body(&click).unwrap()).unwrap();
    let url = format!("{}/callback/oncall/cards", stage.daemon.callbacks());
    let post = async |body: &Value| {
        let headers = Signed::Rightly.card(Some(dingd::sim::daemon::CARD_SECRET));
        let reply = dingd::sim::post::request("POST", &url, &headers, body.to_string());
        reply.await.unwrap().status
    };
    body["corpId"] = json!("dingothercorp");
    assert_eq!(post(&body).await, 403);
    body.as_object_mut().unwrap().remove("corpId");
    assert_eq!(post(&body).await, 200, "not every client names it");
    until("one is told", async || stage.events(CLICKED).len() == 1).await;
    stage.close().await;
}

#[tokio::test]
async fn whoever_does_the_same_again_after_the_time_has_clicked_again() {
    let stage = stage_with("[inbound]\nclick_window_ms = 400\n").await;
    stage.platform.set(reflex(first_come()));
    // At any moment of any window.
    let stage = &stage;
    let clicks = (0..8).map(|n| async move {
        tokio::time::sleep(Duration::from_millis(50 * n)).await;
        for _ in 0..2 {
            let n = json!({"n": n});
            stage
                .box_
                .click("alert-1", "manager0001", &["ack"], n)
                .await;
            tokio::time::sleep(Duration::from_millis(600)).await;
        }
    });
    futures_util::future::join_all(clicks).await;
    until("all are told", async || stage.events(CLICKED).len() == 16).await;
}

/// Cards of others have names that ours cannot have.
#[tokio::test]
async fn a_late_answer_finds_a_card_of_whatever_name() {
    let stage = stage().await;
    let name = "alert no. 1";
    stage.foreign_card(name).await;
    stage.platform.set(acking_after(1_500));
    click(&stage, name, "manager0001", ack()).await;
    until("the answer is on the card", async || {
        let card = stage.box_.card(name).unwrap();
        card.public["status"] == "acked" && card.seen_by("manager0001")["dingd_state"].is_empty()
    })
    .await;
    stage.close().await;
}

/// DingTalk is still taking the answer to the click when a late one is there: sent at once, it could be
/// overtaken, and the person would go on waiting.
#[tokio::test]
async fn a_late_answer_leaves_after_the_pending_state_has_arrived() {
    let stage = stage().await;
    stage.platform.set(acking_after(1_250));
    click(&stage, "alert-1", "manager0001", ack()).await;
    let shown = std::time::Instant::now();
    until("the answer is on the card", async || {
        stage.box_.card("alert-1").unwrap().public["status"] == "acked"
    })
    .await;
    assert!(shown.elapsed() >= Duration::from_millis(400), "{shown:?}");
    stage.close().await;
}

#[tokio::test]
async fn a_click_that_is_given_up_is_not_under_way_any_more() {
    let stage = stage_with("[inbound]\nlifetime_s = 0.5\n").await;
    stage.platform.set(down());
    click(&stage, "alert-1", "manager0001", ack()).await;
    let state =
        || stage.box_.card("alert-1").unwrap().seen_by("manager0001")["dingd_state"].clone();
    assert_eq!(state(), "pending");
    until("nothing is under way", async || state().is_empty()).await;
    assert_eq!(
        stage.box_.card("alert-1").unwrap().public["status"],
        "firing"
    );
    // What is taken up again is answered as ever.
    stage.platform.set(reflex(first_come()));
    let all = "/v1/dead?direction=inbound";
    until("it is a dead letter", async || {
        let dead = stage.daemon.socket("GET", all).await.unwrap();
        dead["dead"].as_array().unwrap().len() == 1
    })
    .await;
    let id = stage.daemon.socket("GET", all).await.unwrap()["dead"][0]["id"].clone();
    let replay = format!("/v1/dead/{}/replay", id.as_str().unwrap());
    stage.daemon.socket("POST", &replay).await.unwrap();
    until("the answer is on the card", async || {
        stage.box_.card("alert-1").unwrap().public["status"] == "acked"
    })
    .await;
    stage.close().await;
}

#[tokio::test]
async fn a_click_that_nobody_answers_any_more_is_not_under_way_when_it_is_told() {
    let stage = stage().await;
    stage.platform.set(down());
    stage
        .box_
        .click("alert-1", "manager0001", &["ack"], ack())
        .await;
    let state =
        || stage.box_.card("alert-1").unwrap().seen_by("manager0001")["dingd_state"].clone();
    assert_eq!(state(), "pending");
    let config = stage.config.replace("answers = true\n", "");
    std::fs::write(stage.dir.path().join("config.toml"), config).unwrap();
    stage.daemon.signal(Signal::Hangup);
    until("the configuration is taken over", async || {
        stage.log().contains("the configuration was taken over")
    })
    .await;
    stage.platform.set(reflex(first_come()));
    until("it is told, and nothing is under way", async || {
        stage.events(CLICKED).len() == 1 && state().is_empty()
    })
    .await;
    assert_eq!(
        stage.box_.card("alert-1").unwrap().public["status"],
        "firing"
    );
    stage.close().await;
}

/// That a late answer leaves a little later is nothing to those who click behind it.
#[tokio::test]
async fn whoever_clicks_behind_a_late_answer_is_answered_in_time() {
    let stage = stage_with("[inbound]\nanswer_deadline_ms = 300\n").await;
    let slow = Reflex::new(|event| {
        let user = event["data"]["user"].as_str()?;
        Some(Reaction {
            status: 200,
            body: json!({"card": {"private_data": {"mine": "true"}}}),
            slow_ms: if user == "manager0001" { 350 } else { 0 },
        })
    });
    stage.platform.set(reflex(slow));
    let seen = |user: &str| stage.box_.card("alert-1").unwrap().seen_by(user);
    let click = async |user: &str| {
        click(&stage, "alert-1", user, ack()).await;
    };
    click("manager0001").await;
    assert_eq!(seen("manager0001")["dingd_state"], "pending");
    tokio::time::sleep(Duration::from_millis(100)).await;
    click("manager0002").await;
    assert_eq!(seen("manager0002")["mine"], "true");
    until("the late answer is on the card", async || {
        seen("manager0001")["dingd_state"].is_empty()
    })
    .await;
    stage.close().await;
}
