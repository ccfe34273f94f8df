//! Robots of one group share its messages: each keeps its own limit, and the order is kept.

use std::collections::BTreeMap;

use dingd::sim::dingtalk::{Robot, Settings, Switches, Wrong};
use dingd::sim::post;
use serde_json::{Value, json};

use crate::support::{Stage, fast, reload, text_to, until};

/// The box's robots, all in the pool.
async fn pool(robots: usize) -> Stage {
    with(fast(), robots, |config| config).await
}

async fn with(settings: Settings, robots: usize, edit: impl FnOnce(String) -> String) -> Stage {
    let robots = (0..robots).map(|number| Robot {
        access_token: token(number),
        secret: None,
        keyword: None,
    });
    let settings = Settings {
        robots: robots.collect(),
        ..settings
    };
    Stage::with(settings, |config| edit(pooled(&config))).await
}

fn pooled(config: &str) -> String {
    config.replace("[[robots]]\n", "[[robots]]\npool = \"sre\"\n")
}

fn token(number: usize) -> String {
    format!("token-of-robot-{number}")
}

fn sre() -> Value {
    json!({"robot": "sre"})
}

fn critical(to: &Value, text: &str) -> Value {
    let mut body = text_to(to, text);
    body["priority"] = json!("critical");
    body
}

fn texts(stage: &Stage) -> Vec<String> {
    let delivered = stage.box_.delivered();
    delivered.into_iter().map(|one| one.text).collect()
}

/// How many messages came by each robot.
fn by_robot(stage: &Stage) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for one in stage.box_.delivered() {
        *counts.entry(one.target).or_default() += 1;
    }
    counts
}

fn answered(stage: &Stage, code: &str) -> usize {
    let requests = stage.box_.requests();
    let same = |request: &&dingd::sim::dingtalk::Request| request.code.as_deref() == Some(code);
    requests.iter().filter(same).count()
}

async fn says(stage: &Stage, what: &str) -> bool {
    stage.ready().await["degraded"].to_string().contains(what)
}

/// Somebody else uses a robot until DingTalk shuts it.
async fn shut(stage: &Stage, robot: usize) {
    let url = format!(
        "{}/robot/send?access_token={}",
        stage.box_.url(),
        token(robot)
    );
    let headers = [("content-type", "application/json".to_owned())];
    loop {
        let body = json!({"msgtype": "text", "text": {"content": "foreign"}}).to_string();
        let reply = post::request("POST", &url, &headers, body).await.unwrap();
        if reply.json()["errcode"] == 130_101 {
            return;
        }
    }
}

#[tokio::test]
async fn sixty_messages_to_three_robots_go_out_in_one_window_evenly_and_in_order() {
    let settings = Settings {
        time_scale: 2.0,
        ..fast()
    };
    let stage = with(settings, 3, |config| config).await;
    let mut ids = vec![];
    for number in 0..60 {
        let mut body = critical(&sre(), &format!("m{number}"));
        body["merge_key"] = json!(format!("host-{}", number % 7));
        ids.push(stage.send(&body).await);
    }
    for id in &ids {
        stage.reaches(id, "sent").await;
    }
    assert_eq!(stage.box_.penalties(), vec![]);
    let counts = by_robot(&stage);
    assert_eq!(counts.values().collect::<Vec<_>>(), [&20; 3], "{counts:?}");
    let expected: Vec<_> = (0..60).map(|number| format!("m{number}")).collect();
    assert_eq!(texts(&stage), expected);
    let delivered = stage.box_.delivered();
    let took_ms = delivered[59].at_ms - delivered[0].at_ms;
    assert!(took_ms < 30_000, "{took_ms}");
    let quota = stage.get("/v1/quota").await.json();
    let counted = quota["organisations"][0]["webhook_messages"]["by"]
        .as_array()
        .unwrap();
    assert_eq!(counted.len(), 3, "each robot has its own count");
    assert!(counted.iter().all(|one| one["used"] == 20), "{counted:?}");
    for (id, one) in ids.iter().zip(&delivered) {
        let message = stage.message(id).await;
        let robot = message["receipts"][0]["robot"].as_str().unwrap();
        assert_eq!(one.target, format!("token-of-{robot}"));
    }
    stage.close().await;
}

#[tokio::test]
async fn the_order_is_kept_whatever_becomes_of_single_calls() {
    let stage = pool(3).await;
    let busy = || Wrong::json(500, r#"{"errcode":-1,"errmsg":"busy"}"#);
    let shut = || Wrong::json(200, r#"{"errcode":130101,"errmsg":"send too fast"}"#);
    let gone = || Wrong::json(200, r#"{"errcode":400102,"errmsg":"stopped"}"#);
    stage.box_.set(Switches {
        fail_next: [busy(), shut(), gone(), busy()].into(),
        ..Switches::default()
    });
    let mut ids = vec![];
    for number in 0..12 {
        let mut body = text_to(&sre(), &format!("m{number}"));
        body["merge_key"] = json!(format!("host-{}", number % 2));
        ids.push(stage.send(&body).await);
    }
    for id in &ids {
        stage.reaches(id, "sent").await;
    }
    let expected: Vec<_> = (0..12).map(|number| format!("m{number}")).collect();
    assert_eq!(texts(&stage), expected);
    stage.close().await;
}

#[tokio::test]
async fn a_robot_that_dingtalk_shuts_is_left_out_while_the_others_go_on() {
    let stage = pool(3).await;
    shut(&stage, 1).await;
    let (before, refused) = (stage.box_.delivered().len(), answered(&stage, "130101"));
    for number in 0..12 {
        let id = stage.send(&critical(&sre(), &format!("m{number}"))).await;
        stage.reaches(&id, "sent").await;
    }
    let delivered = stage.box_.delivered().split_off(before);
    assert_eq!(delivered.len(), 12);
    assert!(delivered.iter().all(|one| one.target != token(1)));
    assert_eq!(answered(&stage, "130101"), refused + 1, "it was asked once");
    assert!(says(&stage, "robot until").await);
    assert_eq!(stage.box_.penalties().len(), 1, "the foreign one");
    stage.close().await;
}

#[tokio::test]
async fn a_robot_that_is_gone_is_replaced_and_each_message_arrives_once() {
    let stage = with(fast(), 3, |config| config.replace(&token(1), "of-nobody")).await;
    let mut ids = vec![];
    for number in 0..8 {
        ids.push(stage.send(&text_to(&sre(), &format!("m{number}"))).await);
    }
    for id in &ids {
        stage.reaches(id, "sent").await;
    }
    let expected: Vec<_> = (0..8).map(|number| format!("m{number}")).collect();
    assert_eq!(texts(&stage), expected);
    assert_eq!(by_robot(&stage).len(), 2);
    assert_eq!(answered(&stage, "300005"), 1, "then it rests");
    assert!(says(&stage, "\\\"robot-1\\\" of pool \\\"sre\\\" is passed over").await);
    reload(&stage, &stage.config.replace("of-nobody", &token(1))).await;
    assert!(!says(&stage, "passed over").await);
    // It was cured, so it does not rest on.
    for number in 8..12 {
        let id = stage.send(&text_to(&sre(), &format!("m{number}"))).await;
        stage.reaches(&id, "sent").await;
    }
    assert_eq!(by_robot(&stage).len(), 3);
    stage.close().await;
}

#[tokio::test]
async fn a_message_dies_when_every_robot_of_its_pool_has_refused_it_and_can_be_replayed() {
    let keyword = Some("告警".to_owned());
    let stage = Stage::with(
        Settings {
            robots: (0..2)
                .map(|number| Robot {
                    access_token: token(number),
                    secret: None,
                    keyword: keyword.clone(),
                })
                .collect(),
            ..fast()
        },
        |config| pooled(&config),
    )
    .await;
    let id = stage.send(&text_to(&sre(), "without the word")).await;
    let message = stage.reaches(&id, "dead").await;
    assert_eq!(message["reason"]["code"], "robot_security");
    // Their keyword is no reason to keep others waiting.
    for _ in 0..2 {
        let good = stage.send(&text_to(&sre(), "告警")).await;
        stage.reaches(&good, "sent").await;
    }
    assert_eq!(by_robot(&stage).len(), 2);
    assert!(!says(&stage, "passed over").await, "both have worked since");
    let path = format!("/v1/dead/{id}/replay");
    let reply = stage.daemon.request("POST", &path, &Value::Null).await;
    assert_eq!(reply.unwrap().status, 200);
    stage.reaches(&id, "dead").await;
    stage.close().await;
}

/// Two messages: so that it is not the turn of the robot that had the second one.
async fn with_one_cut_off(stage: &Stage, cut: Switches) -> String {
    one_cut_off(stage, cut, "retry").await
}

async fn one_cut_off(stage: &Stage, cut: Switches, ambiguous: &str) -> String {
    let first = stage.send(&text_to(&sre(), "first")).await;
    stage.reaches(&first, "sent").await;
    stage.box_.set(cut);
    let mut second = text_to(&sre(), "second");
    second["ambiguous"] = json!(ambiguous);
    let id = stage.send(&second).await;
    until("it arrived", async || stage.box_.delivered().len() == 2).await;
    id
}

async fn arrives_once_by_the_same(stage: &Stage, id: &str) {
    let calls = stage.box_.requests().len();
    stage.box_.set(Switches::default());
    let message = stage.reaches(id, "sent").await;
    assert!(stage.box_.requests().len() > calls, "it was repeated");
    let delivered = stage.box_.delivered();
    assert_eq!(delivered.len(), 2, "DingTalk knew it again");
    let robot = message["receipts"][0]["robot"].as_str().unwrap();
    assert_eq!(delivered[1].target, format!("token-of-{robot}"));
    assert_ne!(delivered[0].target, delivered[1].target);
}

fn answers_cut() -> Switches {
    Switches {
        cut_after: true,
        ..Switches::default()
    }
}

#[tokio::test]
async fn what_may_have_arrived_is_repeated_by_the_same_robot() {
    let stage = pool(3).await;
    let id = with_one_cut_off(&stage, answers_cut()).await;
    arrives_once_by_the_same(&stage, &id).await;
    stage.close().await;
}

#[tokio::test]
async fn what_may_have_arrived_is_repeated_by_the_same_robot_after_a_restart() {
    let mut stage = pool(3).await;
    let id = with_one_cut_off(&stage, answers_cut()).await;
    stage.reaches(&id, "retrying").await;
    stage = stage.crash().await;
    arrives_once_by_the_same(&stage, &id).await;
    stage.close().await;
}

#[tokio::test]
async fn a_call_under_way_at_a_kill_is_repeated_by_the_same_robot() {
    let mut stage = pool(3).await;
    let slow = Switches {
        slow_ms: 5_000,
        ..Switches::default()
    };
    let id = with_one_cut_off(&stage, slow).await;
    stage = stage.crash().await;
    arrives_once_by_the_same(&stage, &id).await;
    stage.close().await;
}

/// Takes the second of two robots out of the configuration.
async fn remove_second(stage: &Stage) {
    let robots: Vec<_> = stage.config.split("[[robots]]\n").collect();
    let (second, rest) = robots[2].split_once("[[upstreams]]").unwrap();
    assert!(second.contains("robot-1"));
    let left = [robots[0], "[[robots]]\n", robots[1], "[[upstreams]]", rest];
    reload(stage, &left.concat()).await;
    stage.box_.set(Switches::default());
}

#[tokio::test]
async fn what_a_robot_may_have_carried_goes_by_another_when_it_left_the_configuration() {
    let stage = pool(2).await;
    let id = with_one_cut_off(&stage, answers_cut()).await;
    remove_second(&stage).await;
    let message = stage.reaches(&id, "sent").await;
    assert_eq!(message["receipts"][0]["robot"], "robot-0");
    assert_eq!(by_robot(&stage)[&token(0)], 2);
    stage.close().await;
}

#[tokio::test]
async fn what_must_not_be_posted_twice_is_held_when_its_robot_left_the_configuration() {
    let stage = pool(2).await;
    let id = one_cut_off(&stage, answers_cut(), "hold").await;
    stage.reaches(&id, "retrying").await;
    remove_second(&stage).await;
    let message = stage.reaches(&id, "unknown").await;
    assert_eq!(message["reason"]["code"], "outcome_unknown");
    assert_eq!(stage.box_.delivered().len(), 2);
    stage.close().await;
}

#[tokio::test]
async fn a_robot_that_joins_the_pool_takes_what_waits_already() {
    let stage = with(fast(), 2, |config| {
        let (first, second) = config.rsplit_once("pool = \"sre\"\n").unwrap();
        format!("{first}{second}")
    })
    .await;
    shut(&stage, 0).await;
    let id = stage.send(&text_to(&sre(), "waits")).await;
    until("it waits", async || {
        says(&stage, "robot until").await && stage.state(&id).await == "queued"
    })
    .await;
    let config = stage.config.replace("pool = \"sre\"\n", "");
    reload(&stage, &pooled(&config)).await;
    let message = stage.reaches(&id, "sent").await;
    assert_eq!(message["receipts"][0]["robot"], "robot-1");
    stage.close().await;
}

#[tokio::test]
async fn a_robot_of_a_pool_has_one_limit_under_both_names() {
    let settings = Settings {
        time_scale: 2.0,
        ..fast()
    };
    let stage = with(settings, 2, |config| config).await;
    let mut ids = vec![];
    for _ in 0..20 {
        let body = critical(&json!({"robot": "robot-0"}), "by name");
        ids.push(stage.send(&body).await);
    }
    for id in &ids {
        let message = stage.reaches(id, "sent").await;
        assert_eq!(message["receipts"][0].get("robot"), None);
    }
    for _ in 0..20 {
        ids.push(stage.send(&critical(&sre(), "by pool")).await);
    }
    for id in &ids {
        stage.reaches(id, "sent").await;
    }
    assert_eq!(by_robot(&stage), [(token(0), 20), (token(1), 20)].into());
    assert_eq!(stage.box_.penalties(), vec![]);
    stage.close().await;
}

#[tokio::test]
async fn all_parts_of_a_long_message_go_by_one_robot() {
    let stage = pool(3).await;
    let id = stage
        .send(&text_to(&sre(), &"一行告警。\n".repeat(3_000)))
        .await;
    let message = stage.reaches(&id, "sent").await;
    assert_eq!(message["receipts"].as_array().unwrap().len(), 3);
    assert_eq!(by_robot(&stage).values().collect::<Vec<_>>(), [&3]);
    stage.close().await;
}

#[tokio::test]
async fn a_storm_at_a_pool_becomes_a_digest_by_one_of_its_robots() {
    let stage = with(fast(), 2, |config| {
        format!("{config}[outbound.digest]\nafter_s = 3\n")
    })
    .await;
    let mut ids = vec![];
    for number in 0..150 {
        ids.push(stage.send(&text_to(&sre(), &format!("m{number}"))).await);
    }
    let mut merged = vec![];
    for id in &ids {
        until(&format!("{id} has ended"), async || {
            ["sent", "merged"].contains(&stage.state(id).await.as_str())
        })
        .await;
        let message = stage.message(id).await;
        merged.extend(message["merged_into"].as_str().map(ToOwned::to_owned));
    }
    let alone = ids.len() - merged.len();
    assert!(alone >= 30 && !merged.is_empty(), "{alone} by themselves");
    let digest = stage.message(&merged[0]).await;
    let robot = digest["receipts"][0]["robot"].as_str().unwrap();
    assert!(robot.starts_with("robot-"));
    assert_eq!(stage.box_.penalties(), vec![]);
    stage.close().await;
}

#[tokio::test]
async fn a_pool_says_how_long_it_takes_with_all_its_robots() {
    let settings = Settings {
        time_scale: 1.0,
        ..fast()
    };
    let stage = with(settings, 2, |config| {
        config.replace("[limits.robot]\n", "[limits.robot]\ncount = 6\n")
    })
    .await;
    stage.box_.set(Switches {
        down: true,
        ..Switches::default()
    });
    for (to, eta_s) in [(sre(), 0.0), (json!({"robot": "robot-0"}), 20.0)] {
        let mut last = Value::Null;
        for _ in 0..8 {
            last = stage.post(&text_to(&to, "x")).await.json();
        }
        assert_eq!(last["position"], 8);
        assert_eq!(last["eta_s"], eta_s, "{to}");
    }
    stage.close().await;
}

#[tokio::test]
async fn a_name_that_is_neither_robot_nor_pool_is_refused_with_those_that_are() {
    let stage = pool(1).await;
    let reply = stage.post(&text_to(&json!({"robot": "sr"}), "x")).await;
    assert_eq!(reply.status, 422);
    assert!(reply.body.contains("robot-0") && reply.body.contains("sre"));
    stage.close().await;
}

#[tokio::test]
async fn what_a_pool_can_take_is_what_its_freest_robot_can() {
    // In DingTalk's own time, so that no call ages meanwhile.
    let stage = with(Settings::default(), 2, |config| config).await;
    for number in 0..6 {
        let id = stage
            .send(&text_to(&sre(), &format!("message {number}")))
            .await;
        stage.reaches(&id, "sent").await;
    }
    let carried = by_robot(&stage);
    assert_eq!(carried.len(), 2, "both carry: {carried:?}");
    let fewest = *carried.values().min().unwrap();
    let reply = stage.post(&text_to(&sre(), "one more")).await;
    let standing = reply.header("ratelimit").unwrap();
    // The message itself may be under way already.
    let expected = [15 - fewest, 14 - fewest].map(|left| format!("\"robot\";r={left};"));
    assert!(
        expected.iter().any(|left| standing.contains(left)),
        "{standing}, {carried:?}"
    );
    stage.close().await;
}
