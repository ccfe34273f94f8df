//! No limit of DingTalk is passed, as DingTalk itself counts.

use dingd::sim::dingtalk::Settings;
use serde_json::json;

use crate::support::{Stage, fast, robot, text_to, until};

#[tokio::test]
async fn a_burst_to_a_robot_is_spread_and_nobody_in_its_queue_is_forgotten() {
    let stage = Stage::open().await;
    let mut ids = vec![];
    for number in 0..60 {
        let mut body = text_to(&robot(), &format!("m{number}"));
        body["priority"] = json!(["critical", "high", "normal", "low"][number % 4]);
        ids.push(stage.send(&body).await);
    }
    for id in &ids {
        stage.reaches(id, "sent").await;
    }
    assert_eq!(stage.box_.penalties(), vec![]);
    stage.close().await;
}

#[tokio::test]
async fn a_crash_loop_passes_no_limit() {
    let mut stage = Stage::open().await;
    let mut ids = vec![];
    for _ in 0..6 {
        for number in 0..12 {
            ids.push(stage.send(&text_to(&robot(), &format!("m{number}"))).await);
        }
        stage = stage.crash().await;
    }
    for id in &ids {
        stage.reaches(id, "sent").await;
    }
    assert_eq!(stage.box_.penalties(), vec![]);
    assert_eq!(
        stage.box_.delivered().len(),
        ids.len(),
        "each once, by its key"
    );
    stage.close().await;
}

/// In DingTalk's own windows, so that no machine is too slow for one.
#[tokio::test]
async fn a_restart_knows_what_was_sent_before_it() {
    let stage = Stage::with(Settings::default(), |config| config).await;
    // As many as one window takes that are not critical.
    for number in 0..15 {
        let id = stage.send(&text_to(&robot(), &number.to_string())).await;
        stage.reaches(&id, "sent").await;
    }
    let stage = stage.crash().await;
    let reply = stage.post(&text_to(&robot(), "one too many")).await;
    let told = reply.header("ratelimit").unwrap();
    assert!(told.contains(r#""robot";r=0;t="#), "{told}");
    let id = reply.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(stage.state(&id).await, "queued");
    assert_eq!(stage.box_.delivered().len(), 15);
    stage.close().await;
}

/// Calls that carry no message count as well: tokens and look-ups.
#[tokio::test]
async fn a_restart_knows_the_token_that_was_fetched_before_it() {
    let edit = |config: String| {
        let window = "[limits.egress]\nwindow_s = 1.0\n";
        assert!(config.contains(window));
        config.replace(window, "[limits.egress]\nwindow_s = 600\n")
    };
    let stage = Stage::with(fast(), edit).await;
    let id = stage
        .send(&text_to(&json!({"users": ["manager0001"]}), "x"))
        .await;
    stage.reaches(&id, "sent").await;
    let used = stage.box_.requests().len();
    assert_eq!(used, 2, "the token and the message");
    let stage = stage.crash().await;
    stage.box_.set(dingd::sim::dingtalk::Switches {
        refuse: true,
        ..Default::default()
    });
    let reply = stage.post(&text_to(&robot(), "x")).await;
    let told = reply.header("ratelimit").unwrap().to_owned();
    let left = told.split("\"egress\";r=").nth(1).unwrap();
    let left: usize = left.split(';').next().unwrap().parse().unwrap();
    assert!((7_996..=7_998).contains(&left), "{told}");
    stage.box_.set(dingd::sim::dingtalk::Switches::default());
    stage.close().await;
}

#[tokio::test]
async fn calls_of_one_api_stay_below_its_rate() {
    let users: Vec<_> = (0..120)
        .map(|n| dingd::sim::dingtalk::User::named(&format!("u{n}"), "n", "13900000000"))
        .collect();
    let stage = Stage::with(Settings { users, ..fast() }, |config| config).await;
    let mut ids = vec![];
    for n in 0..120 {
        ids.push(
            stage
                .send(&text_to(&json!({"users": [format!("u{n}")]}), "x"))
                .await,
        );
    }
    for id in &ids {
        stage.reaches(id, "sent").await;
    }
    assert_eq!(stage.box_.penalties(), vec![]);
    stage.close().await;
}

#[tokio::test]
async fn a_queue_that_is_full_refuses_the_less_urgent_first() {
    let edit = |config: String| format!("{config}[outbound]\nqueue_messages_max = 20\n");
    let stage = Stage::with(fast(), edit).await;
    stage.box_.set(dingd::sim::dingtalk::Switches {
        down: true,
        ..Default::default()
    });
    let mut taken = std::collections::BTreeMap::new();
    for priority in ["low", "normal", "high", "critical"] {
        let mut body = text_to(&robot(), "x");
        body["priority"] = json!(priority);
        let refused = loop {
            let reply = stage.post(&body).await;
            if reply.status != 202 {
                break reply;
            }
            *taken.entry(priority).or_insert(0) += 1;
        };
        assert_eq!(refused.status, 503);
        assert_eq!(refused.json()["reason"], "queue_full", "{}", refused.body);
        assert!(refused.header("ratelimit").unwrap().contains("robot"));
        assert!(refused.header("retry-after").is_some());
    }
    assert_eq!(
        taken,
        [("low", 16), ("normal", 2), ("high", 1), ("critical", 1)].into()
    );
    stage.box_.set(dingd::sim::dingtalk::Switches::default());
    until("all are out", async || stage.box_.delivered().len() == 20).await;
    stage.close().await;
}

#[tokio::test]
async fn the_queue_is_counted_by_urgency_and_by_how_far_each_is() {
    let stage = Stage::open().await;
    let switches = |slow_ms, down| dingd::sim::dingtalk::Switches {
        slow_ms,
        down,
        ..Default::default()
    };
    let count = async |state: &str| {
        let series = format!(
            r#"dingd_queue_messages{{direction="outbound",priority="high",state="{state}"}} "#
        );
        let metrics = stage.metrics().await;
        let line = metrics.lines().find(|line| line.starts_with(&series));
        line.unwrap_or_else(|| panic!("{metrics}"))[series.len()..].to_owned()
    };
    let send = async |text| {
        let mut body = text_to(&robot(), text);
        body["priority"] = json!("high");
        stage.send(&body).await
    };
    stage.box_.set(switches(2_000, false));
    let slow = send("one is under way").await;
    let mut ids = vec![slow.clone()];
    for _ in 0..3 {
        ids.push(send("the others wait for it").await);
    }
    until("one is sent", async || count("sending").await == "1").await;
    assert_eq!(count("queued").await, "3");
    stage.box_.set(switches(0, true));
    until("the next one failed", async || {
        count("retrying").await == "1"
    })
    .await;
    assert_eq!(
        (count("queued").await, count("sending").await),
        ("2".into(), "0".into())
    );
    // What was counted is on disk.
    let stage = stage.crash().await;
    let metrics = stage.metrics().await;
    assert!(
        metrics.contains(r#"priority="high",state="retrying"} 1"#),
        "{metrics}"
    );
    stage.box_.set(switches(0, false));
    for id in &ids {
        stage.reaches(id, "sent").await;
    }
    assert!(
        stage
            .metrics()
            .await
            .contains(r#"direction="outbound",priority="high",state="queued"} 0"#)
    );
    stage.close().await;
}

#[tokio::test]
async fn an_answer_tells_how_the_limits_of_its_target_stand() {
    let stage = Stage::open().await;
    let reply = stage.post(&text_to(&robot(), "x")).await;
    let header = |name| reply.header(name).unwrap().to_owned();
    // A twentieth of a minute, in whole seconds.
    assert_eq!(
        header("ratelimit-policy"),
        r#""egress";q=8000;w=1, "robot";q=15;w=3"#
    );
    let left = header("ratelimit");
    assert!(left.contains(r#""robot";r=15;t=0"#) || left.contains(r#""robot";r=14;t="#));
    for _ in 0..20 {
        stage.send(&text_to(&robot(), "x")).await;
    }
    until("the robot's places are used up", async || {
        let reply = stage.post(&text_to(&robot(), "x")).await;
        reply
            .header("ratelimit")
            .unwrap()
            .contains(r#""robot";r=0;t="#)
    })
    .await;
    let mut urgent = text_to(&robot(), "x");
    urgent["priority"] = json!("critical");
    let reply = stage.post(&urgent).await;
    assert!(
        reply.header("ratelimit-policy").unwrap().contains("q=20"),
        "with the reserve"
    );
    // A replay tells it as well.
    let with_key = async || {
        let key = [("idempotency-key", "k")];
        let body = text_to(&robot(), "once");
        let daemon = &stage.daemon;
        daemon
            .request_with("POST", "/v1/messages", &key, &body)
            .await
    };
    for status in [202, 200] {
        let reply = with_key().await.unwrap();
        assert_eq!(reply.status, status);
        assert!(reply.header("ratelimit").unwrap().contains(r#""robot";r="#));
    }
    let metrics = stage.metrics().await;
    assert!(
        metrics.contains(r#"dingd_near_limit_total{limit="robot"}"#),
        "{metrics}"
    );
    assert_eq!(stage.box_.penalties(), vec![]);
    stage.close().await;
}
