//! The month: what is counted, what a crash leaves of it, what is kept for critical, and DingTalk's word.

use dingd::sim::dingtalk::{Casing, Switches, Wrong};
use serde_json::{Value, json};

use crate::support::{Stage, fast, robot, text_to, until};

async fn quota(stage: &Stage) -> Value {
    let reply = stage.get("/v1/quota").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()["organisations"][0].clone()
}

async fn used(stage: &Stage) -> (u64, u64) {
    let quota = quota(stage).await;
    let used = |name: &str| quota[name]["used"].as_u64().unwrap();
    (used("api_calls"), used("webhook_messages"))
}

fn people() -> Value {
    json!({"users": ["manager0001"]})
}

async fn sent(stage: &Stage, to: &Value, times: usize) {
    for n in 0..times {
        let id = stage.send(&text_to(to, &format!("m{n}"))).await;
        stage.reaches(&id, "sent").await;
    }
}

/// How many metered calls the box has had, of apps and of robots.
fn arrived(stage: &Stage) -> (u64, u64) {
    let requests = stage.box_.requests();
    let count = |wanted: &dyn Fn(&str) -> bool| {
        let metered = requests.iter().filter(|request| wanted(&request.path));
        metered.count() as u64
    };
    let app = |path: &str| path.starts_with("/v1.0/robot/") || path.starts_with("/v1.0/im/");
    (count(&app), count(&|path| path.starts_with("/robot/send")))
}

fn month(text: &'static str) -> impl FnOnce(String) -> String {
    move |config| format!("{config}[limits.month]\n{text}\n")
}

#[tokio::test]
async fn calls_are_counted_by_app_and_api_and_tokens_are_not() {
    let stage = Stage::open().await;
    let chat = json!({"chat": stage.chat()});
    let install = stage
        .box_
        .install_cool_app(&stage.chat(), "manager0001", Casing::Lower);
    assert!(stage.push(&install).await.acknowledged);
    until("the group's name is looked up", async || {
        quota(&stage).await["api_calls"]["used"] == 1
    })
    .await;
    sent(&stage, &people(), 2).await;
    sent(&stage, &chat, 1).await;
    sent(&stage, &robot(), 3).await;
    let shown = quota(&stage).await;
    assert_eq!(
        shown["api_calls"],
        json!({"used": 4, "limit": 5000, "percent": 0, "enforced": false, "exhausted": false,
        "runs_out_on": shown["api_calls"]["runs_out_on"],
        "by": [
            {"app": "oncall", "api": "im.sceneGroups.query", "used": 1},
            {"app": "oncall", "api": "robot.groupMessages.send", "used": 1},
            {"app": "oncall", "api": "robot.oToMessages.batchSend", "used": 2},
        ]})
    );
    let webhooks = &shown["webhook_messages"];
    assert_eq!(
        (&webhooks["used"], &webhooks["limit"]),
        (&json!(3), &json!(3000))
    );
    assert_eq!(
        webhooks["by"],
        json!([{"robot": "robot-0", "api": "robot.send", "used": 3}])
    );
    assert_eq!(shown["corp_id"], stage.settings.app.corp_id);
    assert_eq!(arrived(&stage), (4, 3));
    let tokens = stage.box_.requests();
    assert!(tokens.iter().any(|request| request.path.contains("oauth2")));
    let metrics = stage.metrics().await;
    for line in [
        r#"dingd_quota_used{organisation="oncall",kind="api"} 4"#,
        r#"dingd_quota_used{organisation="oncall",kind="webhook"} 3"#,
        r#"dingd_quota_limit{organisation="oncall",kind="api"} 5000"#,
        r#"dingd_quota_exhausted{organisation="oncall",kind="api"} 0"#,
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    assert_eq!(stage.get("/v1/quota?x=1").await.status, 422);
    assert_eq!(
        stage
            .daemon
            .request("POST", "/v1/quota", &json!({}))
            .await
            .unwrap()
            .status,
        405
    );
    stage.close().await;
}

#[tokio::test]
async fn what_was_counted_survives_being_killed_again_and_again() {
    let mut stage = Stage::open().await;
    let mut ids = vec![];
    for round in 0..4 {
        for n in 0..6 {
            let to = [people(), robot()][n % 2].clone();
            ids.push(stage.send(&text_to(&to, &format!("{round}/{n}"))).await);
        }
        // Some are under way.
        tokio::time::sleep(std::time::Duration::from_millis(round * 7)).await;
        stage = stage.crash().await;
    }
    for id in &ids {
        stage.reaches(id, "sent").await;
    }
    let before = used(&stage).await;
    stage = stage.crash().await;
    assert_eq!(used(&stage).await, before, "all results were on disk");
    // A call that was killed before it left counts as made; none that arrived is missing.
    let (apps, robots) = arrived(&stage);
    assert!(
        before.0 >= apps && before.1 >= robots,
        "{before:?} {apps} {robots}"
    );
    assert!(before.0 <= apps + 4 * 6 && before.1 <= robots + 4 * 6);
    stage.close().await;
}

#[tokio::test]
async fn a_call_whose_result_was_lost_is_counted_exactly_once() {
    for point in ["call.before:1", "call.after:1"] {
        let stage = Stage::open().await;
        sent(&stage, &people(), 1).await;
        assert_eq!(stage.daemon.terminate().await, Some(0));
        let env = [("DINGD_DIE_AT", point)];
        let start = dingd::sim::daemon::Daemon::start_with;
        let program = crate::support::program();
        let mut daemon = start(program, stage.dir.path(), &stage.config, &env)
            .await
            .unwrap();
        let mut body = text_to(&people(), "x");
        body["ambiguous"] = json!("hold");
        let taken = daemon.request("POST", "/v1/messages", &body).await.unwrap();
        assert_eq!(taken.status, 202, "{}", taken.body);
        daemon.ended().await;
        let daemon = start(program, stage.dir.path(), &stage.config, &[])
            .await
            .unwrap();
        let mut stage = Stage { daemon, ..stage };
        for _ in 0..3 {
            assert_eq!(used(&stage).await, (2, 0), "{point}");
            stage = stage.crash().await;
        }
        stage.close().await;
    }
}

#[tokio::test]
async fn an_enforced_month_keeps_its_last_part_for_critical() {
    let edit = month("webhook_messages = 10\nenforce = true\nreserve_critical_percent = 20");
    let stage = Stage::with(fast(), edit).await;
    sent(&stage, &robot(), 8).await;
    let waits = stage.send(&text_to(&robot(), "waits")).await;
    let mut urgent = text_to(&robot(), "urgent");
    urgent["priority"] = json!("critical");
    for _ in 0..2 {
        let id = stage.send(&urgent).await;
        stage.reaches(&id, "sent").await;
    }
    let reply = stage.post(&urgent).await;
    let late = reply.json()["id"].as_str().unwrap().to_owned();
    let told = |name| reply.header(name).unwrap().to_owned();
    assert!(told("ratelimit-policy").contains(r#""organisation";q=10;w="#));
    assert!(told("ratelimit").contains(r#""organisation";r=0;t="#));
    // Another allowance goes on.
    sent(&stage, &people(), 1).await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(stage.state(&waits).await, "queued");
    assert_eq!(stage.state(&late).await, "queued");
    let webhooks = quota(&stage).await["webhook_messages"].clone();
    assert_eq!(webhooks["used"], 10);
    assert_eq!(webhooks["enforced"], true);
    assert!(webhooks["runs_out_on"].is_string(), "{webhooks}");
    let ready = stage.ready().await;
    let text = ready["degraded"].to_string();
    assert_eq!(ready["status"], "degraded");
    assert!(text.contains("10 of 10 webhook messages"), "{text}");
    assert!(text.contains("[limits.month] webhook_messages") && text.contains("开发者后台"));
    let log = stage.log();
    for level in ["level_percent=50", "level_percent=80", "level_percent=95"] {
        assert_eq!(log.matches(level).count(), 1, "{level}");
    }
    // A larger limit is taken over at once, and survives.
    let stage = reload(stage, "webhook_messages = 10", "webhook_messages = 100");
    stage.reaches(&waits, "sent").await;
    stage.reaches(&late, "sent").await;
    until("nothing is wrong", async || {
        stage.ready().await["status"] == "ready"
    })
    .await;
    stage.close().await;
}

fn reload(stage: Stage, old: &str, new: &str) -> Stage {
    let config = stage.config.replace(old, new);
    std::fs::write(stage.dir.path().join("config.toml"), &config).unwrap();
    stage.daemon.signal(dingd::sim::daemon::Signal::Hangup);
    Stage { config, ..stage }
}

#[tokio::test]
async fn dingtalks_word_corrects_the_ledger_and_a_success_takes_it_back() {
    let stage = Stage::open().await;
    sent(&stage, &people(), 2).await;
    let code = "Forbidden.AccessDenied.ApiCountLimitForOrg";
    let body = format!(r#"{{"code":"{code}","message":"本月调用量已用尽","requestid":"r"}}"#);
    let refusing = Switches {
        wrong: Some(Wrong::json(403, &body)),
        only: Some("/v1.0/robot/".to_owned()),
        ..Switches::default()
    };
    stage.box_.set(refusing);
    let id = stage.send(&text_to(&people(), "refused")).await;
    let exhausted = async || quota(&stage).await["api_calls"]["exhausted"] == true;
    until("it is exhausted", exhausted).await;
    let shown = quota(&stage).await;
    assert_eq!(shown["api_calls"]["used"], 5000, "{shown}");
    assert_eq!(
        shown["api_calls"]["by"][0],
        json!({"app": "oncall", "api": "robot.oToMessages.batchSend", "used": 2})
    );
    let degraded = stage.ready().await["degraded"].to_string();
    assert!(
        degraded.contains("DingTalk says that there are no more"),
        "{degraded}"
    );
    assert!(
        stage
            .metrics()
            .await
            .contains(r#"dingd_quota_exhausted{organisation="oncall",kind="api"} 1"#)
    );
    // The other allowance of the same organisation goes on.
    sent(&stage, &robot(), 1).await;
    let path = format!("/v1/messages/{id}");
    let cancelled = stage
        .daemon
        .request("DELETE", &path, &Value::Null)
        .await
        .unwrap();
    assert_eq!(cancelled.status, 200, "{}", cancelled.body);
    let stage = stage.crash().await;
    stage.box_.set(Switches::default());
    let shown = quota(&stage).await["api_calls"].clone();
    assert_eq!(
        (&shown["exhausted"], &shown["used"]),
        (&json!(true), &json!(5000))
    );
    let degraded = stage.ready().await["degraded"].to_string();
    assert!(degraded.contains("organisation until"), "{degraded}");
    // Quota was bought; else it would be tried within ten minutes.
    stage.daemon.signal(dingd::sim::daemon::Signal::Hangup);
    sent(&stage, &people(), 1).await;
    let stage = stage.crash().await;
    let shown = quota(&stage).await["api_calls"].clone();
    assert_eq!(
        (&shown["exhausted"], &shown["used"]),
        (&json!(false), &json!(3)),
        "our own count again"
    );
    stage.close().await;
}

#[tokio::test]
async fn a_refused_webhook_pauses_its_robot_and_nobody_else() {
    let stage = Stage::with(fast(), month("webhook_messages = 0")).await;
    let refusing = Switches {
        fail_next: [Wrong::json(
            200,
            r#"{"errcode":90030,"errmsg":"webhook over limit"}"#,
        )]
        .into(),
        ..Switches::default()
    };
    stage.box_.set(refusing);
    let id = stage.send(&text_to(&robot(), "refused")).await;
    until("the robot is paused", async || {
        stage.ready().await["degraded"]
            .to_string()
            .contains("robot until")
    })
    .await;
    let shown = quota(&stage).await["webhook_messages"].clone();
    assert_eq!((&shown["limit"], &shown["used"]), (&Value::Null, &json!(0)));
    assert_eq!(
        shown["exhausted"], false,
        "it may be the cap of that robot alone"
    );
    // It is reported a moment before the message's state is written.
    stage.reaches(&id, "queued").await;
    stage.close().await;
}

#[tokio::test]
async fn calls_that_were_throttled_or_never_left_cost_nothing() {
    let stage = Stage::open().await;
    let throttled = r#"{"code":"Forbidden.AccessDenied.QpsLimitForAppkeyAndApi","message":"m"}"#;
    let failing = Switches {
        fail_next: [
            Wrong::json(403, throttled),
            Wrong::json(503, r#"{"code":"ServiceUnavailable","message":"m"}"#),
        ]
        .into(),
        ..Switches::default()
    };
    stage.box_.set(failing);
    sent(&stage, &people(), 1).await;
    assert_eq!(arrived(&stage).0, 3);
    assert_eq!(used(&stage).await, (2, 0), "the other failure counts");
    stage.close().await;
}

#[tokio::test]
async fn the_command_prints_a_table_and_the_document() {
    let stage = Stage::open().await;
    sent(&stage, &robot(), 2).await;
    let run = |json: bool| {
        let socket = dingd::sim::daemon::Daemon::state_dir(stage.dir.path()).join("admin.sock");
        let mut command = std::process::Command::new(crate::support::program());
        command.arg("quota").arg("--socket").arg(socket);
        let out = command.args(json.then_some("--json")).output().unwrap();
        assert_eq!(out.status.code(), Some(0));
        String::from_utf8(out.stdout).unwrap()
    };
    let text = run(false);
    for part in [
        "(Asia/Shanghai)",
        "API calls: 0 of 5000 used (0 %); lasts for the month; counted, not enforced",
        "webhook messages: 2 of 3000 used",
        "APP OR ROBOT",
        "robot-0",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let document: Value = serde_json::from_str(&run(true)).unwrap();
    assert_eq!(document, stage.get("/v1/quota").await.json());
    stage.close().await;
}
