//! The connection that the daemon opens: nothing lost, nothing twice, and never a moment without one where
//! there was a choice.

use std::collections::BTreeMap;
use std::time::Duration;

use dingd::sim::daemon::Signal;
use dingd::sim::dingtalk::{
    Casing, Click, Connection, Gateway, Outcome, Settings, Settled, StreamSettings, Way, Why,
};
use dingd::sim::platform::PlatformSwitches;
use serde_json::{Value, json};

use crate::support::{Dice, Stage, fast, long, other_event, until};

const OTHER: &str = "dingtalk.event.bpms_instance_change";
const CLICKED: &str = "dingtalk.card.clicked";
const RENAMED: &str = "dingtalk.chat.renamed";

/// Short times, because tests do not live for hours.
const QUICK: &str = "retry_min_s = 0.01\nretry_max_s = 0.05\n";

/// The configuration with a Stream connection that has these keys beside [`QUICK`].
fn streaming(config: &str, keys: &str) -> String {
    let table = format!(
        "[apps.stream]\nenabled = true\n{QUICK}{keys}\n[apps.cards]\ncallback = \"stream\"\n\
         pending = {{ dingd_state = \"pending\" }}\n[apps.callback]"
    );
    let config = config.replace("[apps.callback]", &table);
    // The ticket would show in what is only told when asked for.
    format!("{config}[log]\nlevel = \"debug\"\n")
}

async fn stage(settings: Settings, keys: &str) -> Stage {
    let stage = Stage::with(settings, |config| streaming(&config, keys)).await;
    stage.box_.gateway().connected(1).await;
    stage
}

fn with_stream(stream: StreamSettings) -> Settings {
    Settings { stream, ..fast() }
}

/// How often the platform took each numbered event.
fn taken(stage: &Stage) -> BTreeMap<u64, usize> {
    let mut taken = BTreeMap::new();
    for event in stage.events(OTHER) {
        let number = event.body["data"]["raw"]["number"].as_u64().unwrap();
        *taken.entry(number).or_default() += 1;
    }
    taken
}

/// Waits until events 0 to `events` are with the platform, and fails if one came twice.
async fn each_once(stage: &Stage, events: u64) {
    until("all events are with the platform", async || {
        taken(stage).len() as u64 >= events
    })
    .await;
    let expected: BTreeMap<u64, usize> = (0..events).map(|number| (number, 1)).collect();
    assert_eq!(taken(stage), expected);
}

fn number(number: u64) -> String {
    other_event(usize::try_from(number).unwrap())
}

fn codes_and_status(gateway: &Gateway) -> Vec<(u16, String)> {
    let acks = gateway.acks();
    let status = |data: &str| {
        let data: Value = serde_json::from_str(data).unwrap_or_default();
        data["status"].as_str().unwrap_or_default().to_owned()
    };
    acks.iter()
        .map(|ack| (ack.code, status(&ack.data)))
        .collect()
}

async fn metric(stage: &Stage, line: &str) -> u64 {
    let metrics = stage.metrics().await;
    let found = metrics
        .lines()
        .find_map(|known| known.strip_prefix(line)?.trim().parse().ok());
    found.unwrap_or(0)
}

/// The end of a test, and what holds in all: neither the secret nor a ticket is in the log.
async fn close(stage: Stage) {
    let log = stage.log();
    assert!(log.contains("a Stream connection is open"));
    assert!(!log.contains(&stage.settings.app.client_secret));
    assert!(!log.contains("ticket="), "a ticket is in the log");
    stage.close().await;
}

#[tokio::test]
async fn events_are_acknowledged_when_they_are_stored_and_survive_a_kill() {
    let stage = stage(fast(), "").await;
    let gateway = stage.box_.gateway();
    stage.platform.set(PlatformSwitches {
        status: Some(503),
        ..PlatformSwitches::default()
    });
    let chat = stage.chat();
    let texts = [
        stage
            .box_
            .install_cool_app(&chat, "manager0001", Casing::Lower),
        stage
            .box_
            .rename(&chat, "新群名", "manager0001", Casing::Lower),
    ];
    for text in texts.iter().cloned().chain((0..50).map(number)) {
        let outcome = gateway.event(&text).await;
        assert_eq!((outcome.settled, outcome.tries), (Settled::Done, 1));
        assert_eq!(outcome.ack.unwrap().code, 200);
    }
    let stage = stage.crash().await;
    stage.platform.set(PlatformSwitches::default());
    each_once(&stage, 50).await;
    // The chat's own events wait for one another.
    until("the chat's events are with the platform", async || {
        !stage.events(RENAMED).is_empty()
    })
    .await;
    let renamed = stage.events(RENAMED);
    assert_eq!(renamed.len(), 1);
    assert_eq!(renamed[0].body["data"]["chat"], chat);
    assert_eq!(renamed[0].body["data"]["title"], "新群名");
    assert_eq!(stage.events("dingtalk.cool_app.installed").len(), 1);
    let chats = stage.get("/v1/chats").await.json();
    assert_eq!(chats["chats"][0]["title"], "新群名");
    close(stage).await;
}

#[tokio::test]
async fn the_same_event_over_both_ways_is_forwarded_once_under_one_id() {
    let stage = stage(fast(), "").await;
    let gateway = stage.box_.gateway();
    for n in 0..10 {
        let text = number(n);
        if n % 2 == 0 {
            assert!(stage.push(&text).await.acknowledged);
            assert_eq!(gateway.event(&text).await.settled, Settled::Done);
        } else {
            assert_eq!(gateway.event(&text).await.settled, Settled::Done);
            assert!(stage.push(&text).await.acknowledged);
        }
    }
    for n in 10..20 {
        let text = number(n);
        let (pushed, sent) = tokio::join!(stage.push(&text), gateway.event(&text));
        assert!(pushed.acknowledged && sent.settled == Settled::Done);
    }
    each_once(&stage, 20).await;
    let line = r#"dingd_stream_ack_duration_seconds_count{type="event"}"#;
    assert_eq!(metric(&stage, line).await, 20);
    let twice = metric(
        &stage,
        r#"dingd_stream_frames_total{type="event",result="duplicate"}"#,
    )
    .await;
    assert!(twice >= 5, "{twice}");
    close(stage).await;
}

#[tokio::test]
async fn what_comes_again_is_acknowledged_again_and_forwarded_once() {
    let settings = with_stream(StreamSettings {
        double_every: 1,
        ..StreamSettings::default()
    });
    let stage = stage(settings, "").await;
    let gateway = stage.box_.gateway();
    for n in 0..20 {
        assert_eq!(gateway.event(&number(n)).await.settled, Settled::Done);
    }
    until("each was acknowledged twice", async || {
        gateway.acks().len() == 40
    })
    .await;
    each_once(&stage, 20).await;
    close(stage).await;
}

#[tokio::test]
async fn what_cannot_be_stored_is_put_off_and_comes_again() {
    let settings = with_stream(StreamSettings {
        event_again_ms: 2_000,
        robot_again_ms: 2_000,
        ..StreamSettings::default()
    });
    let stage = Stage::with(settings, |config| {
        let config = streaming(&config, "");
        format!("{config}[inbound]\nqueue_events_max = 5\n")
    })
    .await;
    let gateway = stage.box_.gateway();
    gateway.connected(1).await;
    stage.platform.set(PlatformSwitches {
        status: Some(503),
        ..PlatformSwitches::default()
    });
    for n in 0..5 {
        assert_eq!(gateway.event(&number(n)).await.settled, Settled::Done);
    }
    let later: Vec<_> = (5..8).map(|n| gateway.send_event(&number(n))).collect();
    let said = stage.box_.worded(&dingd::sim::dingtalk::Speech::in_group(
        &stage.chat(),
        "manager0001",
        "ack 7",
    ));
    let said = gateway.send_robot_message(&said);
    until("each was put off twice", async || {
        let later = (200, "LATER".to_owned());
        let acks = codes_and_status(&gateway);
        acks.iter().filter(|ack| **ack == later).count() >= 6
    })
    .await;
    let tries = |id: &str| {
        gateway
            .sent()
            .iter()
            .filter(|sent| sent.message_id == id)
            .count()
    };
    until("the message was tried twice", async || tries(&said) >= 2).await;
    let answered = gateway.acks().iter().any(|ack| ack.message_id == said);
    assert!(!answered, "of a message that is not stored nothing is said");
    stage.platform.set(PlatformSwitches::default());
    for id in later.iter().chain([&said]) {
        assert_eq!(gateway.settled(id).await.settled, Settled::Done);
    }
    each_once(&stage, 8).await;
    until("the message is with the platform", async || {
        stage.events("dingtalk.robot.message").len() == 1
    })
    .await;
    close(stage).await;
}

#[tokio::test]
async fn messages_to_the_robot_come_over_stream_once() {
    let stage = stage(fast(), "").await;
    let chat = stage.chat();
    let said = stage.box_.say(&chat, "manager0001", "ack 123").await;
    assert!(said.acknowledged, "{said:?}");
    assert_eq!(said.answer, r#"{"response":null}"#);
    // The same ids in a frame of its own, as when the acknowledgement was lost.
    let gateway = stage.box_.gateway();
    let again = gateway.send_robot_message(&said.body);
    assert_eq!(gateway.settled(&again).await.settled, Settled::Done);
    until("it is with the platform", async || {
        !stage.events("dingtalk.robot.message").is_empty()
    })
    .await;
    let alone = stage.box_.tell("manager0001", "help").await;
    assert!(alone.acknowledged, "{alone:?}");
    until("both are with the platform", async || {
        stage.events("dingtalk.robot.message").len() == 2
    })
    .await;
    let events = stage.events("dingtalk.robot.message");
    assert_eq!(events[0].body["data"]["text"], "ack 123");
    assert_eq!(events[0].body["data"]["chat"], chat);
    assert_eq!(events[1].body["data"]["conversation"], "single");
    close(stage).await;
}

/// A card in the group whose clicks come over Stream.
async fn card(stage: &Stage, id: &str) {
    let body = json!({"cardTemplateId": "alert.schema", "outTrackId": id, "callbackType": "STREAM",
        "cardData": {"cardParamMap": {"title": "P1 disk full", "status": "firing"}},
        "openSpaceId": format!("dtv1.card//IM_GROUP.{}", stage.chat()),
        "imGroupOpenSpaceModel": {"supportForward": true},
        "imGroupOpenDeliverModel": {"robotCode": stage.settings.app.robot_code}});
    let path = "/v1.0/card/instances/createAndDeliver";
    let reply = stage.at_dingtalk(path, &body).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
}

fn answering(answer: &Value) -> PlatformSwitches {
    PlatformSwitches {
        answer: Some(answer.to_string()),
        ..PlatformSwitches::default()
    }
}

#[tokio::test]
async fn a_click_over_stream_changes_the_card_with_the_platforms_answer() {
    let stage = stage(fast(), "").await;
    card(&stage, "alert-1").await;
    let answer = json!({"card": {"data": {"status": "acked"}, "private_data": {"mine": "true"}}});
    stage.platform.set(answering(&answer));
    let click = Click {
        message_id: Some("click-1".to_owned()),
        ..Click::new("alert-1", "manager0001", &["ack"], json!({"action": "ack"}))
    };
    let clicked = stage.box_.click_with(&click).await;
    assert!(clicked.accepted, "{clicked:?}");
    assert_eq!(clicked.way, Some(Way::Stream));
    let shown = stage.box_.card("alert-1").unwrap();
    assert_eq!(shown.public["status"], "acked");
    assert_eq!(shown.public["title"], "P1 disk full", "the rest stays");
    assert_eq!(shown.seen_by("manager0001")["mine"], "true");
    // The same frame again is the same click.
    let again = stage.box_.click_with(&click).await;
    assert!(again.accepted, "{again:?}");
    let events = stage.events(CLICKED);
    assert_eq!(events.len(), 1);
    assert_eq!(
        events[0].body["data"]["chat"],
        stage.chat(),
        "over Stream it is named"
    );
    assert_eq!(events[0].body["data"]["actions"], json!(["ack"]));
    close(stage).await;
}

#[tokio::test]
async fn a_click_that_the_platform_does_not_answer_is_pending_and_survives_a_kill() {
    let stage = stage(fast(), "").await;
    card(&stage, "alert-1").await;
    stage.platform.set(PlatformSwitches {
        status: Some(503),
        ..PlatformSwitches::default()
    });
    let clicked = stage
        .box_
        .click("alert-1", "manager0001", &["ack"], json!({}))
        .await;
    assert!(clicked.accepted, "{clicked:?}");
    let shown = stage.box_.card("alert-1").unwrap();
    assert_eq!(shown.seen_by("manager0001")["dingd_state"], "pending");
    let stage = stage.crash().await;
    stage.platform.set(PlatformSwitches::default());
    until("it is with the platform", async || {
        stage.events(CLICKED).len() == 1
    })
    .await;
    close(stage).await;
}

#[tokio::test]
async fn a_click_that_cannot_be_stored_is_not_answered() {
    let stage = Stage::with(fast(), |config| {
        let config = streaming(&config, "");
        format!("{config}[inbound]\nqueue_events_max = 1\n")
    })
    .await;
    let gateway = stage.box_.gateway();
    gateway.connected(1).await;
    card(&stage, "alert-1").await;
    stage.platform.set(PlatformSwitches {
        status: Some(503),
        ..PlatformSwitches::default()
    });
    assert_eq!(gateway.event(&number(0)).await.settled, Settled::Done);
    let clicked = stage
        .box_
        .click("alert-1", "manager0001", &["ack"], json!({}))
        .await;
    assert!(!clicked.accepted && clicked.status == 0, "{clicked:?}");
    assert!(gateway.acks().len() == 1, "only of the event");
    stage.platform.set(PlatformSwitches::default());
    each_once(&stage, 1).await;
    assert_eq!(stage.events(CLICKED).len(), 0);
    close(stage).await;
}

#[tokio::test]
async fn events_of_one_conversation_keep_the_order_in_which_they_came() {
    // Once is enough, however slow the machine is.
    let settings = with_stream(StreamSettings {
        event_again_ms: 1_000_000,
        ..StreamSettings::default()
    });
    let stage = stage(settings, "").await;
    let gateway = stage.box_.gateway();
    let chat = stage.chat();
    let titles: BTreeMap<String, String> = (0..200)
        .map(|n| {
            let title = format!("title {n}");
            let text = stage
                .box_
                .rename(&chat, &title, "manager0001", Casing::Lower);
            (gateway.send_event(&text), title)
        })
        .collect();
    until("all are with the platform", async || {
        stage.events(RENAMED).len() >= 200
    })
    .await;
    let came: Vec<_> = gateway
        .sent()
        .iter()
        .map(|one| titles[&one.message_id].clone())
        .collect();
    let told: Vec<_> = stage
        .events(RENAMED)
        .iter()
        .map(|event| event.body["data"]["title"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(told, came);
    close(stage).await;
}

#[tokio::test]
async fn callbacks_that_cannot_be_read_are_told_so() {
    let stage = stage(fast(), "").await;
    let gateway = stage.box_.gateway();
    let wait = Duration::from_secs(2);
    let ack = gateway.callback("/v1.0/im/bot/messages/get", None, "{}".to_owned(), wait);
    assert_eq!(
        ack.await.unwrap().code,
        400,
        "a message without a word of it"
    );
    let ack = gateway.callback("/v1.0/card/instances/callback", None, "[".to_owned(), wait);
    assert_eq!(ack.await.unwrap().code, 400);
    close(stage).await;
}

#[tokio::test]
async fn topics_that_nobody_takes_are_told_so() {
    let stage = stage(fast(), "").await;
    let frame = json!({"type": "CALLBACK", "data": "{}",
        "headers": {"topic": "/v9.9/none", "messageId": "m"}});
    stage.box_.gateway().send_raw(&frame.to_string());
    let line = r#"dingd_stream_frames_total{type="callback",result="not_found"}"#;
    until("it was answered", async || metric(&stage, line).await > 0).await;
    let expected = "ack m: for a frame that was never sent";
    until("and heard", async || stage.box_.complaints() == [expected]).await;
    assert_eq!(stage.daemon.terminate().await, Some(0));
}

/// Events while something happens to the connections; returns when all are acknowledged.
async fn load_while(stage: &Stage, events: u64, happening: impl AsyncFnOnce()) -> Vec<Outcome> {
    let gateway = stage.box_.gateway();
    let load = async {
        let mut ids = vec![];
        for n in 0..events {
            ids.push(gateway.send_event(&number(n)));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        ids
    };
    let (ids, ()) = tokio::join!(load, happening());
    let mut outcomes = vec![];
    for id in ids {
        outcomes.push(gateway.settled(&id).await);
    }
    outcomes
}

fn reasons(connections: &[Connection]) -> Vec<Option<Why>> {
    connections.iter().map(|one| one.why.clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_announced_end_leaves_no_moment_without_a_connection() {
    // TCP lives on for ten real seconds, as DingTalk's does.
    let settings = with_stream(StreamSettings {
        leave_ms: 200_000,
        ..StreamSettings::default()
    });
    let stage = stage(settings, "").await;
    let gateway = stage.box_.gateway();
    let outcomes = load_while(&stage, 800, async || {
        for turn in 2..=20 {
            tokio::time::sleep(Duration::from_millis(70)).await;
            assert_eq!(gateway.disconnect("connection is expired"), 1);
            until("the next is there", async || {
                gateway.connections().len() == turn
            })
            .await;
        }
    })
    .await;
    assert!(
        outcomes
            .iter()
            .all(|outcome| outcome.settled == Settled::Done)
    );
    each_once(&stage, 800).await;
    assert_eq!(gateway.unconnected_ms(), 0);
    let unsent_ms = gateway.undeliverable_ms();
    assert!(
        unsent_ms < 19 * 1_000,
        "no longer than it takes to open one: {unsent_ms}"
    );
    let line = r#"dingd_stream_reconnects_total{app="oncall",reason="disconnect"}"#;
    assert_eq!(metric(&stage, line).await, 19);
    let line = r#"dingd_stream_unconnected_seconds_total{app="oncall"}"#;
    assert_eq!(metric(&stage, line).await, 0);
    close(stage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_old_or_silent_is_replaced_without_a_moment_between() {
    for (keys, ping_every_ms, reason) in [
        (
            "renew_s = 0.3\nsilence_s = 0.25\nping_s = 0.2",
            2_000,
            "age",
        ),
        ("silence_s = 0.3\nping_s = 0.1", 1_000_000, "silence"),
    ] {
        let settings = with_stream(StreamSettings {
            ping_every_ms,
            ..StreamSettings::default()
        });
        let stage = stage(settings, keys).await;
        let gateway = stage.box_.gateway();
        until("it was replaced five times", async || {
            gateway.connections().len() > 5
        })
        .await;
        assert_eq!(gateway.unconnected_ms(), 0, "{reason}");
        assert_eq!(gateway.undeliverable_ms(), 0, "{reason}");
        let line = format!(r#"dingd_stream_reconnects_total{{app="oncall",reason="{reason}"}}"#);
        assert!(metric(&stage, &line).await >= 5, "{reason}");
        for n in 0..10 {
            assert_eq!(gateway.event(&number(n)).await.settled, Settled::Done);
        }
        each_once(&stage, 10).await;
        close(stage).await;
    }
}

#[tokio::test]
async fn a_connection_whose_other_end_is_gone_is_found_and_replaced() {
    let stage = stage(fast(), "ping_s = 0.3\nsilence_s = 30").await;
    let gateway = stage.box_.gateway();
    assert_eq!(gateway.silence(), 1);
    let ids: Vec<_> = (0..5).map(|n| gateway.send_event(&number(n))).collect();
    let started = std::time::Instant::now();
    gateway.connected(1).await;
    let took = started.elapsed();
    assert!(
        took < Duration::from_secs(15),
        "ping_s and five seconds: {took:?}"
    );
    for id in ids {
        assert_eq!(gateway.settled(&id).await.settled, Settled::Done);
    }
    each_once(&stage, 5).await;
    let line = r#"dingd_stream_reconnects_total{app="oncall",reason="no_answer"}"#;
    assert_eq!(metric(&stage, line).await, 1);
    gateway.cut();
    close(stage).await;
}

#[tokio::test]
async fn a_gateway_that_refuses_is_tried_again_and_told_of_meanwhile() {
    let stage = stage(fast(), "").await;
    let gateway = stage.box_.gateway();
    gateway.refuse_opens(Some(503));
    gateway.cut();
    let ids: Vec<_> = (0..5).map(|n| gateway.send_event(&number(n))).collect();
    until("it is told", async || {
        let degraded = stage.ready().await["degraded"].to_string();
        degraded.contains("has no Stream connection")
    })
    .await;
    assert_eq!(
        metric(&stage, r#"dingd_stream_connected{app="oncall"}"#).await,
        0
    );
    // Meanwhile messages go out.
    let id = stage
        .send(&crate::support::text_to(
            &crate::support::robot(),
            "still there",
        ))
        .await;
    stage.reaches(&id, "sent").await;
    gateway.refuse_opens(None);
    gateway.connected(1).await;
    for id in ids {
        assert_eq!(gateway.settled(&id).await.settled, Settled::Done);
    }
    each_once(&stage, 5).await;
    assert_eq!(stage.ready().await["degraded"], json!([]));
    let line = r#"dingd_stream_unconnected_seconds_total{app="oncall"}"#;
    assert!(metric(&stage, line).await >= 4);
    close(stage).await;
}

#[tokio::test]
async fn refused_credentials_are_told_with_where_to_look_and_tried_again_after_a_reload() {
    let stage = stage(fast(), "").await;
    let gateway = stage.box_.gateway();
    gateway.refuse_opens(Some(401));
    gateway.cut();
    let told = async || stage.ready().await["degraded"].to_string();
    until("it is told", async || {
        told().await.contains("client_secret")
    })
    .await;
    let told = told().await;
    for word in [
        "authFailed",
        "[[apps]]",
        "oncall",
        "client_id",
        "请核对",
        "check client_id",
    ] {
        assert!(told.contains(word), "{word}: {told}");
    }
    let opens = async || {
        let asked = stage.box_.requests();
        asked
            .iter()
            .filter(|one| one.path.contains("connections/open"))
            .count()
    };
    let before = opens().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(
        opens().await <= before + 1,
        "credentials are not knocked with"
    );
    gateway.refuse_opens(None);
    stage.daemon.signal(Signal::Hangup);
    gateway.connected(1).await;
    until("it is told no more", async || {
        stage.ready().await["degraded"] == json!([])
    })
    .await;
    close(stage).await;
}

#[tokio::test]
async fn hostile_frames_are_refused_and_the_connection_lives() {
    let stage = stage(fast(), "").await;
    let gateway = stage.box_.gateway();
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let long = "x".repeat(900 << 10);
    for text in [
        "",
        "null",
        "[]",
        "{",
        "{}",
        "\u{0}",
        r#"{"type":"EVENT"}"#,
        r#"{"type":"EVENT","headers":{}}"#,
        r#"{"type":"EVENT","headers":{"messageId":7,"eventType":"a"},"data":"{}"}"#,
        r#"{"type":"EVENT","headers":{"messageId":"","eventType":"a"},"data":{}}"#,
        r#"{"type":"SYSTEM","headers":{"topic":"ping"},"data":"{}"}"#,
        r#"{"type":"SYSTEM","headers":{"topic":"KEEPALIVE"}}"#,
        r#"{"type":"NEW","headers":{"messageId":"a"}}"#,
        deep.as_str(),
        long.as_str(),
    ] {
        assert_eq!(gateway.send_raw(text), 1, "it is still there");
    }
    assert_eq!(gateway.send_binary(&[0xff, 0, 1]), 1);
    for n in 0..5 {
        assert_eq!(gateway.event(&number(n)).await.settled, Settled::Done);
    }
    each_once(&stage, 5).await;
    assert_eq!(gateway.connections().len(), 1, "the first one");
    let refused = r#"dingd_stream_frames_total{type="unreadable",result="refused"}"#;
    assert!(metric(&stage, refused).await >= 12);
    assert_eq!(
        stage
            .log()
            .matches("a Stream frame cannot be taken")
            .count(),
        1
    );
    close(stage).await;
}

#[tokio::test]
async fn a_frame_that_is_far_too_long_costs_the_connection_and_nothing_else() {
    let stage = stage(fast(), "").await;
    let gateway = stage.box_.gateway();
    gateway.send_raw(&"x".repeat(2 << 20));
    until("it was replaced", async || gateway.connections().len() == 2).await;
    gateway.connected(1).await;
    assert_eq!(gateway.event(&number(0)).await.settled, Settled::Done);
    each_once(&stage, 1).await;
    close(stage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_under_load_acknowledges_what_it_stored_and_leaves_the_rest_to_come_again() {
    let stage = stage(fast(), "").await;
    let gateway = stage.box_.gateway();
    let ids: Vec<_> = (0..500).map(|n| gateway.send_event(&number(n))).collect();
    let stage = stage
        .again(async |daemon, _| {
            let started = std::time::Instant::now();
            assert_eq!(daemon.terminate().await, Some(0));
            let took = started.elapsed();
            assert!(took < Duration::from_secs(10), "{took:?}");
        })
        .await;
    let left = gateway.connections()[0].why.clone();
    assert_eq!(left, Some(Why::ByApp), "it took leave");
    for id in ids {
        assert_eq!(gateway.settled(&id).await.settled, Settled::Done);
    }
    each_once(&stage, 500).await;
    close(stage).await;
}

#[tokio::test]
async fn a_reload_switches_the_connection_on_and_off_and_changes_it_without_a_gap() {
    let stage = Stage::open().await;
    let gateway = stage.box_.gateway();
    let file = stage.dir.path().join("config.toml");
    let reload = |config: &str| {
        std::fs::write(&file, config).unwrap();
        stage.daemon.signal(Signal::Hangup);
    };
    assert_eq!(gateway.live(), 0);
    reload(&streaming(&stage.config, ""));
    gateway.connected(1).await;
    assert_eq!(gateway.event(&number(0)).await.settled, Settled::Done);
    reload(&streaming(&stage.config, "ping_s = 11"));
    until("it was replaced", async || gateway.connections().len() == 2).await;
    assert_eq!(gateway.undeliverable_ms(), 0);
    reload(&streaming(&stage.config, "ping_s = 11"));
    reload(&stage.config);
    until("it was closed", async || gateway.live() == 0).await;
    let why = reasons(&gateway.connections());
    assert_eq!(why, [Some(Why::ByApp), Some(Why::ByApp)], "and not broken");
    assert_eq!(
        metric(&stage, r#"dingd_stream_connected{app="oncall"}"#).await,
        0
    );
    assert_eq!(stage.ready().await["degraded"], json!([]));
    let waiting = gateway.send_event(&number(1));
    reload(&streaming(&stage.config, ""));
    assert_eq!(gateway.settled(&waiting).await.settled, Settled::Done);
    each_once(&stage, 2).await;
    close(stage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cuts_at_random_moments_under_load_lose_nothing_and_double_nothing() {
    let cuts = if long() { 1_000 } else { 100 };
    let settings = with_stream(StreamSettings {
        event_again_ms: 4_000,
        double_every: 10,
        ..StreamSettings::default()
    });
    let stage = stage(settings, "").await;
    let gateway = stage.box_.gateway();
    let mut dice = Dice::new(20_261_125);
    let outcomes = load_while(&stage, cuts * 15, async || {
        for _ in 0..cuts {
            tokio::time::sleep(Duration::from_millis(dice.below(60))).await;
            gateway.connected(1).await;
            gateway.cut();
        }
    })
    .await;
    assert!(
        outcomes
            .iter()
            .all(|outcome| outcome.settled == Settled::Done)
    );
    let again = outcomes.iter().filter(|outcome| outcome.tries > 1).count();
    each_once(&stage, cuts * 15).await;
    let connections = gateway.connections().len();
    assert!(connections as u64 > cuts, "{connections}");
    eprintln!(
        "{cuts} cuts, {connections} connections, {} events, {again} sent more than once",
        outcomes.len()
    );
    gateway.connected(1).await;
    close(stage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_under_load_lose_nothing_and_give_no_event_a_second_id() {
    let kills = if long() { 200 } else { 15 };
    let events = kills * 40;
    let settings = with_stream(StreamSettings {
        event_again_ms: 4_000,
        ..StreamSettings::default()
    });
    let mut stage = stage(settings, "").await;
    let gateway = stage.box_.gateway();
    let load = tokio::spawn({
        let gateway = gateway.clone();
        async move {
            let mut ids = vec![];
            for n in 0..events {
                ids.push(gateway.send_event(&number(n)));
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            ids
        }
    });
    let mut dice = Dice::new(20_261_126);
    for _ in 0..kills {
        tokio::time::sleep(Duration::from_millis(10 + dice.below(100))).await;
        stage = stage.crash().await;
    }
    for id in load.await.unwrap() {
        assert_eq!(gateway.settled(&id).await.settled, Settled::Done);
    }
    until("all events are with the platform", async || {
        taken(&stage).len() as u64 >= events
    })
    .await;
    // A kill between the platform's answer and its record delivers again, under the same id.
    let ids: std::collections::BTreeSet<_> =
        stage.events(OTHER).into_iter().map(|one| one.id).collect();
    assert_eq!(ids.len() as u64, events);
    close(stage).await;
}

#[tokio::test]
async fn a_reply_to_a_message_that_came_over_stream_takes_the_way_of_late_ones() {
    let stage = stage(fast(), "").await;
    let answer = json!({"reply": {"text": {"content": "已确认"}}});
    stage.platform.set(answering(&answer));
    let said = stage.box_.say(&stage.chat(), "manager0001", "ack 7").await;
    assert!(said.acknowledged, "{said:?}");
    until("the reply is in the chat", async || {
        let delivered = stage.box_.delivered();
        delivered.iter().any(|one| one.text.contains("已确认"))
    })
    .await;
    close(stage).await;
}

/// People wait for the platform, but nobody else does for them, and not the gateway, which wants its ping answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clicks_that_wait_for_the_platform_hold_up_nothing_else() {
    // Three seconds of its time: a slow machine needs more than the half that it would be.
    let settings = with_stream(StreamSettings {
        ping_wait_ms: 60_000,
        ..StreamSettings::default()
    });
    let stage = stage(settings, "").await;
    let gateway = stage.box_.gateway();
    stage.platform.set(PlatformSwitches {
        slow_ms: 5_000,
        ..PlatformSwitches::default()
    });
    let clicks: Vec<_> = (0..600)
        .map(|n| {
            let gateway = gateway.clone();
            let click = json!({"type": "actionCallback", "outTrackId": format!("alert-{n}"),
                "userId": "manager0001", "content": r#"{"cardPrivateData":{"actionIds":["ack"]}}"#});
            let wait = Duration::from_secs(20);
            tokio::spawn(async move {
                let topic = "/v1.0/card/instances/callback";
                gateway.callback(topic, None, click.to_string(), wait).await
            })
        })
        .collect();
    until("they are under way", async || gateway.sent().len() == 600).await;
    assert_eq!(gateway.event(&number(0)).await.settled, Settled::Done);
    let wait = |clicks: &[tokio::task::JoinHandle<_>]| clicks.iter().any(|one| !one.is_finished());
    assert!(wait(&clicks), "it does not come behind the last of them");
    for click in clicks {
        let ack = click.await.unwrap().unwrap();
        assert!(
            ack.data.contains("dingd_state"),
            "it is pending: {}",
            ack.data
        );
    }
    stage.platform.set(PlatformSwitches::default());
    close(stage).await;
}
