//! DingTalk at its worst: each answer leads where the contract says, and nothing is lost.

use std::time::Duration;

use dingd::sim::dingtalk::{Casing, Group, Settings, Switches, User, Wrong};
use serde_json::{Value, json};

use crate::support::{Stage, fast, reload, robot, text_to, until};

fn people() -> Value {
    json!({"users": ["manager0001"]})
}

#[tokio::test]
async fn http_200_with_an_errcode_is_not_success() {
    let stage = Stage::open().await;
    for (answer, code) in [
        (
            r#"{"errcode":300005,"errmsg":"token is not exist"}"#,
            "robot_gone",
        ),
        (
            r#"{"errcode":"400102","errmsg":"stopped"}"#,
            "robot_stopped",
        ),
        (
            r#"{"errcode":460101,"errmsg":"message too long"}"#,
            "content_too_large",
        ),
        (
            r#"{"errcode":430104,"errmsg":"content"}"#,
            "content_refused",
        ),
    ] {
        stage.box_.set(Switches {
            fail_next: [Wrong::json(200, answer)].into(),
            ..Switches::default()
        });
        let id = stage.send(&text_to(&robot(), "x")).await;
        let message = stage.reaches(&id, "dead").await;
        assert_eq!(message["reason"]["code"], code, "{message}");
        assert!(!message["reason"]["fix_zh"].as_str().unwrap().is_empty());
    }
    assert!(stage.box_.delivered().is_empty());
    stage.close().await;
}

#[tokio::test]
async fn a_refused_signature_is_signed_anew_once_then_the_robot_waits_for_the_cure() {
    let stage = Stage::open().await;
    let refused = || Wrong::json(200, r#"{"errcode":310000,"errmsg":"sign not match"}"#);
    stage.box_.set(Switches {
        fail_next: [refused()].into(),
        ..Switches::default()
    });
    let id = stage.send(&text_to(&robot(), "x")).await;
    stage.reaches(&id, "sent").await;
    stage.box_.set(Switches {
        fail_next: [refused(), refused()].into(),
        ..Switches::default()
    });
    let id = stage.send(&text_to(&robot(), "x")).await;
    until("the robot is blocked", async || {
        let degraded = stage.ready().await["degraded"].to_string();
        degraded.contains("robot until") && degraded.contains("310000")
    })
    .await;
    let message = stage.reaches(&id, "queued").await;
    assert_eq!(message["reason"]["code"], "robot_security");
    // The secret is put right.
    reload(&stage, &stage.config).await;
    stage.reaches(&id, "sent").await;
    let keyword = r#"{"errcode":310000,"errmsg":"description:关键词不匹配;solution:…"}"#;
    let keyword = || Wrong::json(200, keyword);
    stage.box_.set(Switches {
        fail_next: [keyword(), keyword()].into(),
        ..Switches::default()
    });
    let id = stage.send(&text_to(&robot(), "without the keyword")).await;
    let dead = stage.reaches(&id, "dead").await;
    assert_eq!(dead["reason"]["code"], "robot_security");
    stage.close().await;
}

#[tokio::test]
async fn a_robot_that_is_throttled_waits_and_says_so_and_the_pause_survives_a_crash() {
    let stage = Stage::open().await;
    let throttled = Wrong::json(
        200,
        r#"{"errcode":130101,"errmsg":"send too fast, exceed 20 times per minute"}"#,
    );
    stage.box_.set(Switches {
        fail_next: [throttled].into(),
        ..Switches::default()
    });
    let id = stage.send(&text_to(&robot(), "x")).await;
    until("it is reported", async || {
        stage.ready().await["degraded"]
            .to_string()
            .contains("130101")
    })
    .await;
    let message = stage.reaches(&id, "queued").await;
    assert_eq!(
        (&message["reason"]["code"], &message["attempts"]),
        (&json!("robot_throttled"), &json!(0))
    );
    let stage = stage.crash().await;
    let degraded = stage.ready().await["degraded"].to_string();
    assert!(degraded.contains("robot until"), "{degraded}");
    let other = stage.send(&text_to(&people(), "others go on")).await;
    stage.reaches(&other, "sent").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(stage.state(&id).await, "queued", "ten minutes are not over");
    stage.close().await;
}

#[tokio::test]
async fn a_pause_of_one_api_of_an_app_is_waited_out_over_a_crash_and_a_reload() {
    let stage = Stage::open().await;
    let first = stage.send(&text_to(&people(), "with a token")).await;
    stage.reaches(&first, "sent").await;
    let body = r#"{"code":"Forbidden.AccessDenied.QpmLimitForAppkeyAndApi","message":"m"}"#;
    stage.box_.set(Switches {
        fail_next: [Wrong::json(429, body)].into(),
        ..Switches::default()
    });
    let id = stage.send(&text_to(&people(), "x")).await;
    let paused = async |stage: &Stage| {
        let degraded = stage.ready().await["degraded"].to_string();
        degraded.contains("app_api until")
    };
    until("it is reported", async || paused(&stage).await).await;
    stage.reaches(&id, "queued").await;
    let stage = stage.crash().await;
    assert!(paused(&stage).await, "the minute is not over");
    let other = stage.send(&text_to(&robot(), "others go on")).await;
    stage.reaches(&other, "sent").await;
    assert_eq!(stage.state(&id).await, "queued");
    // There is nothing to cure.
    reload(&stage, &stage.config).await;
    assert!(paused(&stage).await);
    assert_eq!(stage.state(&id).await, "queued");
    stage.close().await;
}

#[tokio::test]
async fn a_host_that_hangs_leaves_places_for_what_is_critical() {
    let edit = |config: String| format!("{config}[outbound]\nconcurrency = 2\n");
    let users = ["u1", "u2"].map(|id| User::named(id, "n", "13900000000"));
    let settings = Settings {
        users: users.into(),
        ..fast()
    };
    let stage = Stage::with(settings, edit).await;
    let slow = |slow_ms| Switches {
        only: Some("/v1.0/robot".to_owned()),
        slow_ms,
        ..Switches::default()
    };
    stage.box_.set(slow(8_000));
    let mut hanging = vec![];
    for user in ["u1", "u2"] {
        hanging.push(stage.send(&text_to(&json!({"users": [user]}), "x")).await);
    }
    until("they are under way", async || {
        stage.box_.delivered().len() == 2
    })
    .await;
    let mut critical = text_to(&robot(), "critical");
    critical["priority"] = json!("critical");
    let critical = stage.send(&critical).await;
    stage.reaches(&critical, "sent").await;
    for id in &hanging {
        assert_ne!(stage.state(id).await, "sent", "it went beside them");
    }
    stage.box_.set(Switches::default());
    stage.close().await;
}

#[tokio::test]
async fn a_group_whose_calls_fail_waits_and_holds_up_nobody_else() {
    let group = |id: &str| Group {
        open_conversation_id: id.to_owned(),
        title: "值班群".to_owned(),
        cool_app_installed: true,
        disbanded: false,
    };
    let groups = ["cidBroken+one=", "cidSound+one="].map(group);
    let settings = Settings {
        groups: groups.into(),
        ..fast()
    };
    let stage = Stage::with(settings, |config| config).await;
    stage.box_.set(Switches {
        failing: Some("cidBroken".to_owned()),
        ..Switches::default()
    });
    let mut waiting = vec![];
    for priority in ["critical", "high", "normal", "low"] {
        let mut body = text_to(&json!({"chat": "cidBroken+one="}), priority);
        body["priority"] = json!(priority);
        waiting.push(stage.send(&body).await);
    }
    let opened = r#"dingd_breaker_transitions_total{destination="chat",to="open"} 1"#;
    until("its breaker is open", async || {
        stage.metrics().await.contains(opened)
    })
    .await;
    let degraded = stage.ready().await["degraded"].to_string();
    assert!(degraded.contains("a group or a robot fail"), "{degraded}");
    for n in 0..3 {
        let other = stage
            .send(&text_to(
                &json!({"chat": "cidSound+one="}),
                &format!("m{n}"),
            ))
            .await;
        assert_eq!(stage.reaches(&other, "sent").await["attempts"], 1);
    }
    let metrics = stage.metrics().await;
    assert!(!metrics.contains(r#"dingd_breaker_state{destination="api"} 2"#));
    let calls = stage.box_.requests().len();
    stage.box_.set(Switches::default());
    for id in &waiting {
        stage.reaches(id, "sent").await;
    }
    assert_eq!(
        stage.box_.requests().len(),
        calls + waiting.len(),
        "while it was open nothing was tried"
    );
    until("nothing is wrong", async || {
        stage.ready().await["status"] == "ready"
    })
    .await;
    stage.close().await;
}

/// DingTalk speaks of a conversation, and the call has none: what is paused instead is told until it is over.
#[tokio::test]
async fn a_pause_is_told_by_what_is_paused() {
    let stage = Stage::open().await;
    let body = r#"{"code":"send.too.fast","message":"发送过快"}"#;
    stage.box_.set(Switches {
        fail_next: [Wrong::json(400, body)].into(),
        ..Switches::default()
    });
    let id = stage.send(&text_to(&people(), "x")).await;
    until("it is reported", async || {
        let degraded = stage.ready().await["degraded"].to_string();
        degraded.contains("app_api until") && !degraded.contains("chat until")
    })
    .await;
    let metrics = stage.metrics().await;
    assert!(
        metrics.contains(r#"dingd_pauses_total{limit="app_api","#),
        "{metrics}"
    );
    stage.reaches(&id, "queued").await;
    stage.close().await;
}

/// A token's fetch is charged to no message; what DingTalk imposed at it is known all the same.
#[tokio::test]
async fn a_ban_that_a_token_fetch_met_survives_a_crash() {
    let stage = Stage::open().await;
    stage.box_.set(Switches {
        html: true,
        only: Some("/v1.0/oauth2".to_owned()),
        ..Switches::default()
    });
    let id = stage.send(&text_to(&people(), "needs a token")).await;
    let banned = async |stage: &Stage| {
        let degraded = stage.ready().await["degraded"].to_string();
        degraded.contains("egress until")
    };
    until("it is reported", async || banned(&stage).await).await;
    // It is written when it is reported: it is on disk with what is acknowledged after that.
    stage.send(&text_to(&people(), "later")).await;
    let stage = stage.crash().await;
    assert!(banned(&stage).await, "the ban is not over");
    assert_eq!(stage.message(&id).await["attempts"], 0);
    stage.close().await;
}

#[tokio::test]
async fn a_ban_of_the_address_stops_everything_over_a_crash_and_charges_no_message() {
    let stage = Stage::open().await;
    stage.box_.set(Switches {
        html: true,
        ..Switches::default()
    });
    let id = stage.send(&text_to(&robot(), "x")).await;
    until("it is reported", async || {
        stage.ready().await["degraded"]
            .to_string()
            .contains("egress")
    })
    .await;
    let before = stage.box_.requests().len();
    let other = stage.send(&text_to(&people(), "x")).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(stage.box_.requests().len(), before, "nothing leaves");
    let stage = stage.crash().await;
    let degraded = stage.ready().await["degraded"].to_string();
    assert!(degraded.contains("egress until"), "{degraded}");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(stage.box_.requests().len(), before, "nothing leaves now");
    for id in [id, other] {
        assert_eq!(stage.message(&id).await["attempts"], 0);
    }
    stage.close().await;
}

#[tokio::test]
async fn a_missing_permission_blocks_the_call_and_names_the_scope() {
    let stage = Stage::open().await;
    let denied = r#"{"code":"Forbidden.AccessDenied.AccessTokenPermissionDenied","requestid":"r","message":"m","accessdenieddetail":{"requiredScopes":["qyapi_robot_sendmsg"]}}"#;
    stage.box_.set(Switches {
        wrong: Some(Wrong::json(403, denied)),
        ..Switches::default()
    });
    let id = stage.send(&text_to(&people(), "x")).await;
    until("it is reported", async || {
        stage.ready().await["degraded"]
            .to_string()
            .contains("qyapi_robot_sendmsg")
    })
    .await;
    // It is reported a moment before the message's state is written.
    let message = stage.reaches(&id, "queued").await;
    assert_eq!(
        (&message["state"], &message["attempts"]),
        (&json!("queued"), &json!(0))
    );
    let mut urgent = text_to(&robot(), "robots go on");
    urgent["priority"] = json!("critical");
    stage.box_.set(Switches::default());
    let robot = stage.send(&urgent).await;
    stage.reaches(&robot, "sent").await;
    stage.close().await;
}

#[tokio::test]
async fn a_denial_without_a_code_costs_no_message_and_covers_a_robot_alone() {
    let stage = Stage::open().await;
    stage.box_.set(Switches {
        fail_next: [Wrong::json(403, "{}")].into(),
        ..Switches::default()
    });
    let id = stage.send(&text_to(&robot(), "x")).await;
    until("it is reported", async || {
        stage.ready().await["degraded"]
            .to_string()
            .contains("HTTP 403")
    })
    .await;
    let message = stage.reaches(&id, "queued").await;
    assert_eq!(
        (&message["reason"]["code"], &message["attempts"]),
        (&json!("forbidden"), &json!(0))
    );
    let other = stage.send(&text_to(&people(), "others go on")).await;
    stage.reaches(&other, "sent").await;
    let counted = r#"dingd_verdicts_total{api="robot.send",verdict="blocked",code="http_4xx"} 1"#;
    let metrics = stage.metrics().await;
    assert!(metrics.contains(counted), "{metrics}");
    stage.close().await;
}

#[tokio::test]
async fn an_unknown_outcome_is_repeated_with_the_same_key_so_a_robot_posts_once() {
    let stage = Stage::open().await;
    stage.box_.set(Switches {
        cut_after: true,
        ..Switches::default()
    });
    let id = stage.send(&text_to(&robot(), "once")).await;
    until("it was taken", async || !stage.box_.delivered().is_empty()).await;
    stage.box_.set(Switches::default());
    let message = stage.reaches(&id, "sent").await;
    assert!(message["attempts"].as_u64().unwrap() >= 2, "{message}");
    assert_eq!(stage.box_.delivered().len(), 1);
    stage.close().await;
}

#[tokio::test]
async fn without_a_key_the_policy_decides_retry_hold_or_drop() {
    // What a message does not say its app decides.
    let edit =
        |config: String| config.replacen("[[apps]]\n", "[[apps]]\nambiguous = \"hold\"\n", 1);
    let stage = Stage::with(fast(), edit).await;
    let only = Some("/v1.0/robot".to_owned());
    for (policy, state, copies) in [
        ("retry", "sent", 2),
        ("hold", "unknown", 1),
        ("drop", "dead", 1),
    ] {
        stage.box_.set(Switches {
            cut_after: true,
            only: only.clone(),
            ..Switches::default()
        });
        let mut body = text_to(&people(), policy);
        if policy != "hold" {
            body["ambiguous"] = json!(policy);
        }
        let id = stage.send(&body).await;
        let mine = || {
            stage
                .box_
                .delivered()
                .into_iter()
                .filter(|d| d.text == policy)
                .count()
        };
        until("it was taken", async || mine() == 1).await;
        stage.box_.set(Switches::default());
        let message = stage.reaches(&id, state).await;
        assert_eq!(mine(), copies, "{policy}");
        if policy != "retry" {
            assert_eq!(message["reason"]["code"], "outcome_unknown", "{message}");
        }
    }
    let held = stage.get("/v1/messages?state=unknown").await.json()["messages"][0]["id"].clone();
    let replay = format!("/v1/dead/{}/replay", held.as_str().unwrap());
    stage.daemon.socket("POST", &replay).await.unwrap();
    stage.reaches(held.as_str().unwrap(), "sent").await;
    stage.close().await;
}

#[tokio::test]
async fn a_request_that_surely_did_not_arrive_is_repeated_under_every_policy() {
    let stage = Stage::open().await;
    let warm = stage.send(&text_to(&people(), "fetch a token first")).await;
    stage.reaches(&warm, "sent").await;
    stage.box_.stop().await;
    let mut body = text_to(&people(), "x");
    body["ambiguous"] = json!("hold");
    let id = stage.send(&body).await;
    let message = stage.reaches(&id, "retrying").await;
    assert_eq!(
        message["reason"]["code"], "dingtalk_unreachable",
        "{message}"
    );
    let books = &stage.daemon.status().await.unwrap()["conservation_mismatch"];
    assert_eq!(*books, 0);
    assert_eq!(stage.daemon.terminate().await, Some(0));
}

#[tokio::test]
async fn garbled_answers_are_unknown_outcomes_and_never_success() {
    let stage = Stage::open().await;
    for switches in [
        Switches {
            break_json: true,
            ..Switches::default()
        },
        Switches {
            oversize_answer: true,
            ..Switches::default()
        },
        Switches {
            wrong: Some(Wrong::json(200, "")),
            ..Switches::default()
        },
        Switches {
            wrong: Some(Wrong::json(200, "[]")),
            ..Switches::default()
        },
        Switches {
            wrong: Some(Wrong::json(502, "<html>bad gateway</html>")),
            ..Switches::default()
        },
        Switches {
            wrong: Some(Wrong::json(200, "{\"errcode\":{}}")),
            ..Switches::default()
        },
    ] {
        let only = Some("/v1.0/robot".to_owned());
        stage.box_.set(Switches {
            only,
            ..switches.clone()
        });
        let mut body = text_to(&people(), "x");
        body["ambiguous"] = json!("hold");
        let id = stage.send(&body).await;
        let message = stage.reaches(&id, "unknown").await;
        assert_eq!(message["attempts"], 1, "{switches:?}");
        stage.box_.set(Switches::default());
        // Each counts against the host; a success keeps its breaker closed.
        let good = stage.send(&text_to(&people(), "good")).await;
        stage.reaches(&good, "sent").await;
    }
    stage.close().await;
}

#[tokio::test]
async fn dingtalk_down_and_back_costs_no_message_and_few_calls() {
    let stage = Stage::open().await;
    let event = stage
        .box_
        .install_cool_app(&stage.chat(), "manager0001", Casing::Lower);
    stage.push(&event).await;
    stage.box_.set(Switches {
        down: true,
        ..Switches::default()
    });
    let mut ids = vec![];
    for number in 0..30 {
        let to = if number % 2 == 0 {
            people()
        } else {
            json!({"chat": stage.chat()})
        };
        ids.push(stage.send(&text_to(&to, &format!("m{number}"))).await);
    }
    tokio::time::sleep(Duration::from_secs(4)).await;
    let calls = stage.box_.requests().len();
    assert!(calls < 40, "{calls} calls while it was down");
    stage.box_.set(Switches::default());
    for id in &ids {
        stage.reaches(id, "sent").await;
    }
    assert_eq!(stage.box_.delivered().len(), ids.len());
    stage.close().await;
}
