//! Dead letters and held messages: who sees them, another chance, an end by decision, and their quota.

use dingd::sim::daemon::API_TOKEN;
use dingd::sim::dingtalk::{Switches, Wrong};
use dingd::sim::platform::PlatformSwitches;
use dingd::sim::post::Reply;
use serde_json::{Value, json};

use crate::process::command;
use crate::support::{Stage, fast, other_event, reload, robot, text_to, until};

const OTHER_TOKEN: &str = "the-token-of-another-client";

/// A stage with a second client and with what `more` adds.
async fn stage(more: &str) -> Stage {
    let more = more.to_owned();
    Stage::with(fast(), move |config| {
        format!("{config}[[api.clients]]\nname = \"other\"\ntoken = \"{OTHER_TOKEN}\"\n{more}")
    })
    .await
}

async fn ask(stage: &Stage, token: &str, method: &str, path: &str, body: &Value) -> Reply {
    let headers = [("authorization", format!("Bearer {token}"))];
    let url = format!("{}{path}", stage.daemon.api());
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    dingd::sim::post::request(method, &url, &headers, body)
        .await
        .unwrap()
}

fn nobody() -> Value {
    json!({"users": ["nobody"]})
}

#[tokio::test]
async fn a_client_sees_only_what_it_sent() {
    let stage = stage("").await;
    let id = stage.send(&text_to(&robot(), "mine")).await;
    stage.reaches(&id, "sent").await;
    let path = format!("/v1/messages/{id}");
    let other = ask(&stage, OTHER_TOKEN, "GET", &path, &Value::Null).await;
    assert_eq!(other.status, 404, "{}", other.body);
    let list = ask(&stage, OTHER_TOKEN, "GET", "/v1/messages", &Value::Null).await;
    assert_eq!(list.json()["messages"], json!([]));
    let mine = stage.get("/v1/messages").await.json();
    assert_eq!(mine["messages"][0]["id"], id.as_str());
    stage.close().await;
}

/// A message that is dead because its robot is gone.
async fn gone(stage: &Stage, text: &str) -> String {
    let answer = r#"{"errcode":300005,"errmsg":"token is not exist"}"#;
    stage.box_.set(Switches {
        fail_next: [Wrong::json(200, answer)].into(),
        ..Switches::default()
    });
    let id = stage.send(&text_to(&robot(), text)).await;
    stage.reaches(&id, "dead").await;
    id
}

/// The cure that it is told with: correct the configuration, then replay.
#[tokio::test]
async fn what_a_wrong_robot_code_killed_is_replayed_with_the_right_one() {
    let code = fast().app.robot_code;
    let wrong = |config: String| {
        let code = format!("robot_code = \"{code}\"");
        config.replace(&code, "robot_code = \"ding-not-ours\"")
    };
    let stage = Stage::with(fast(), wrong).await;
    let id = stage
        .send(&text_to(&json!({"users": ["manager0001"]}), "x"))
        .await;
    stage.reaches(&id, "dead").await;
    let right = stage
        .config
        .replace("ding-not-ours", &fast().app.robot_code);
    assert_ne!(right, stage.config);
    reload(&stage, &right).await;
    let config = stage.dir.path().join("config.toml");
    let (code, text) = command(&config, &["dead", "replay", &id]).await;
    assert_eq!(code, Some(0), "{text}");
    stage.reaches(&id, "sent").await;
    stage.close().await;
}

/// A message to a person whose call DingTalk took without an answer, held.
async fn held(stage: &Stage, text: &str) -> String {
    stage.box_.set(Switches {
        cut_after: true,
        only: Some("/v1.0/robot".to_owned()),
        ..Switches::default()
    });
    let mut body = text_to(&json!({"users": ["manager0001"]}), text);
    body["ambiguous"] = json!("hold");
    let id = stage.send(&body).await;
    stage.reaches(&id, "unknown").await;
    stage.box_.set(Switches::default());
    id
}

fn ids(page: &Value) -> Vec<String> {
    let id = |letter: &Value| letter["id"].as_str().unwrap().to_owned();
    page["dead"].as_array().unwrap().iter().map(id).collect()
}

async fn listed(stage: &Stage, query: &str) -> Vec<String> {
    ids(&stage
        .daemon
        .socket("GET", &format!("/v1/dead?{query}"))
        .await
        .unwrap())
}

/// What the platform was told of one message, in its order.
fn outcomes(stage: &Stage, id: &str) -> Vec<(String, String)> {
    let told = stage.events("dingd.message.finished");
    told.iter()
        .filter(|event| event.body["data"]["id"] == id)
        .map(|event| {
            let data = &event.body["data"];
            let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
            (text(&data["state"]), text(&data["reason"]["code"]))
        })
        .collect()
}

fn events_only() -> PlatformSwitches {
    PlatformSwitches {
        status: Some(500),
        ..PlatformSwitches::default()
    }
}

#[tokio::test]
async fn a_client_sees_and_replays_only_what_it_sent_itself() {
    let stage = stage("").await;
    let mine = gone(&stage, "mine").await;
    let theirs = ask(
        &stage,
        OTHER_TOKEN,
        "POST",
        "/v1/messages",
        &text_to(&nobody(), "theirs"),
    )
    .await;
    let theirs = theirs.json()["id"].as_str().unwrap().to_owned();
    let get = async |token: &str, path: &str| ask(&stage, token, "GET", path, &Value::Null).await;
    until("theirs is dead", async || {
        let path = format!("/v1/messages/{theirs}");
        get(OTHER_TOKEN, &path).await.json()["state"] == "dead"
    })
    .await;
    assert_eq!(
        ids(&get(API_TOKEN, "/v1/dead").await.json()),
        std::slice::from_ref(&mine)
    );
    let page = get(OTHER_TOKEN, "/v1/dead").await.json();
    assert_eq!(ids(&page), std::slice::from_ref(&theirs));
    assert_eq!(page["dead"][0]["reason"]["code"], "recipient_unknown");
    assert_eq!(page["next_cursor"], Value::Null);
    assert!(
        page.get("damaged").is_none(),
        "damaged records are the operator's"
    );
    let shown = get(API_TOKEN, &format!("/v1/dead/{mine}")).await;
    assert_eq!(shown.json()["message"]["reason"]["code"], "robot_gone");
    assert!(shown.json()["message"].get("content").is_none());
    for (method, path) in [
        ("GET", format!("/v1/dead/{theirs}")),
        ("POST", format!("/v1/dead/{theirs}/replay")),
        ("GET", "/v1/dead/msg_00000000000000000000000000".to_owned()),
        ("POST", "/v1/dead/evt_0/replay".to_owned()),
    ] {
        let reply = ask(&stage, API_TOKEN, method, &path, &Value::Null).await;
        assert_eq!(reply.status, 404, "{path}");
        assert_eq!(
            reply.json()["type"],
            "urn:dingd:problem:dead_letter_not_found"
        );
    }
    for (method, path) in [
        ("DELETE", format!("/v1/dead/{mine}")),
        ("POST", "/v1/dead/replay?all=true".to_owned()),
        ("POST", "/v1/dead/purge?all=true".to_owned()),
    ] {
        let reply = ask(&stage, API_TOKEN, method, &path, &Value::Null).await;
        assert_eq!(reply.status, 405, "{path} is the operator's");
    }
    let replayed = ask(
        &stage,
        API_TOKEN,
        "POST",
        &format!("/v1/dead/{mine}/replay"),
        &Value::Null,
    )
    .await;
    assert_eq!(replayed.status, 200, "{}", replayed.body);
    stage.reaches(&mine, "sent").await;
    let again = format!("/v1/dead/{mine}/replay");
    assert_eq!(
        ask(&stage, API_TOKEN, "POST", &again, &Value::Null)
            .await
            .status,
        404
    );
    until("both ends are told", async || {
        outcomes(&stage, &mine)
            == [
                ("dead".into(), "robot_gone".into()),
                ("sent".into(), "-".into()),
            ]
    })
    .await;
    assert_eq!(listed(&stage, "").await, [theirs], "the operator sees all");
    let log = stage.log();
    let audit = |parts: &[&str]| {
        let audits = |line: &&str| line.contains("dingd::audit");
        log.lines()
            .filter(audits)
            .any(|line| parts.iter().all(|part| line.contains(part)))
    };
    assert!(audit(&["platform", "replay", &mine, "queued"]), "{log}");
    assert!(audit(&[
        "platform",
        "replay",
        "evt_0",
        "dead_letter_not_found"
    ]));
    stage.close().await;
}

#[tokio::test]
async fn a_replay_by_filter_takes_up_what_it_lets_through_and_nothing_else() {
    let stage = stage("[inbound]\nlifetime_s = 1\n").await;
    let config = stage.dir.path().join("config.toml");
    let run = async |arguments: &[&str]| command(&config, arguments).await;
    let mut robots = vec![];
    for number in 0..3 {
        robots.push(gone(&stage, &format!("robot {number}")).await);
    }
    let unlinked = stage
        .send(&text_to(&json!({"accounts": ["alice"]}), "x"))
        .await;
    let person = stage.send(&text_to(&nobody(), "x")).await;
    stage.reaches(&person, "dead").await;
    until("the outcomes are told", async || {
        stage.events("dingd.message.finished").len() == 5
    })
    .await;
    stage.platform.set(events_only());
    stage.push(&other_event(1)).await;
    until("the event is dead", async || {
        !listed(&stage, "direction=inbound&reason=upstream_unreachable")
            .await
            .is_empty()
    })
    .await;
    stage.platform.set(PlatformSwitches::default());
    let (code, text) = run(&["dead", "list", "--reason", "robot_gone"]).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(robots.iter().all(|id| text.contains(id)) && !text.contains(&person));
    // Nothing is meant by nothing.
    assert_eq!(run(&["dead", "replay"]).await.0, Some(2));
    assert_eq!(
        run(&["dead", "replay", &person, "--state", "dead"]).await.0,
        Some(2)
    );
    let (code, text) = run(&["dead", "replay", "--reason", "robot_gone", "--json"]).await;
    assert_eq!(code, Some(0), "{text}");
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(answer, json!({"matched": 3, "replayed": 3}));
    for id in &robots {
        stage.reaches(id, "sent").await;
    }
    let texts: Vec<_> = stage.box_.delivered().into_iter().map(|d| d.text).collect();
    assert_eq!(texts, ["robot 0", "robot 1", "robot 2"], "in their order");
    // An account that is not linked cannot be replayed: matched, and left.
    let answer = stage
        .daemon
        .socket("POST", "/v1/dead/replay?state=dead&direction=outbound")
        .await
        .unwrap();
    assert_eq!(answer, json!({"matched": 2, "replayed": 1}));
    until("it is dead once more", async || {
        outcomes(&stage, &person).len() == 2
    })
    .await;
    let (_, text) = run(&["dead", "replay", "--all"]).await;
    assert!(text.contains("2 of 3"), "{text}");
    until("the event arrives", async || {
        stage
            .platform
            .events()
            .iter()
            .any(|event| event.kind.contains("bpms_instance_change"))
    })
    .await;
    until("it is dead again", async || {
        outcomes(&stage, &person).len() == 3
    })
    .await;
    assert_eq!(listed(&stage, "").await, [person, unlinked]);
    let log = stage.log();
    assert!(
        log.lines().any(|line| line.contains("dingd::audit")
            && line.contains("operator")
            && line.contains("reason=robot_gone")
            && line.contains("matched")),
        "{log}"
    );
    stage.close().await;
}

#[tokio::test]
async fn a_purge_by_filter_wants_a_yes_and_the_books_still_balance() {
    let stage = stage("[inbound]\nlifetime_s = 1\n").await;
    let config = stage.dir.path().join("config.toml");
    let run = async |arguments: &[&str]| command(&config, arguments).await;
    let robot = gone(&stage, "x").await;
    let mut people = vec![];
    for _ in 0..3 {
        let id = stage.send(&text_to(&nobody(), "x")).await;
        stage.reaches(&id, "dead").await;
        people.push(id);
    }
    until("the outcomes are told", async || {
        stage.events("dingd.message.finished").len() == 4
    })
    .await;
    stage.platform.set(events_only());
    stage.push(&other_event(1)).await;
    until("the event is dead", async || {
        !listed(&stage, "direction=inbound&app=oncall")
            .await
            .is_empty()
    })
    .await;
    stage.platform.set(PlatformSwitches::default());
    let (code, text) = run(&["dead", "purge", "--user", "nobody"]).await;
    assert_eq!(code, Some(2));
    assert!(text.contains("--yes"), "{text}");
    assert_eq!(run(&["dead", "purge", "--yes"]).await.0, Some(2));
    assert_eq!(run(&["dead", "purge", &people[0]]).await.0, Some(0));
    let (code, text) = run(&["dead", "purge", "--user", "nobody", "--yes", "--json"]).await;
    assert_eq!(code, Some(0), "{text}");
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(answer, json!({"matched": 2, "purged": 2}));
    for id in &people {
        assert_eq!(stage.get(&format!("/v1/messages/{id}")).await.status, 404);
    }
    assert_eq!(stage.state(&robot).await, "dead");
    let all = stage.daemon.socket("POST", "/v1/dead/purge?all=true").await;
    assert_eq!(all.unwrap(), json!({"matched": 2, "purged": 2}));
    assert_eq!(listed(&stage, "").await, Vec::<String>::new());
    let metrics = stage.metrics().await;
    assert!(
        metrics.contains("dingd_dead_letter_messages{direction=\"outbound\"} 0"),
        "{metrics}"
    );
    let stage = stage.crash().await;
    assert_eq!(listed(&stage, "").await, Vec::<String>::new());
    stage.close().await;
}

#[tokio::test]
async fn a_held_message_is_resolved_as_sent_dead_or_retry_and_the_platform_is_told() {
    let stage = stage("").await;
    let config = stage.dir.path().join("config.toml");
    let [sent, dead, retry] = [
        held(&stage, "sent").await,
        held(&stage, "dead").await,
        held(&stage, "retry").await,
    ];
    let (_, text) = command(&config, &["messages", "list", "--state", "unknown"]).await;
    assert!(
        text.contains(&sent) && text.contains("messages resolve") && text.contains("核对"),
        "{text}"
    );
    assert_eq!(listed(&stage, "state=unknown").await.len(), 3);
    let resolve = async |token: &str, id: &str, body: Value| {
        let path = format!("/v1/messages/{id}/resolve");
        let reply = ask(&stage, token, "POST", &path, &body).await;
        let kind = reply.json()["type"].as_str().unwrap_or("-").to_owned();
        (reply.status, kind.rsplit(':').next().unwrap().to_owned())
    };
    let as_sent = || json!({"as": "sent"});
    assert_eq!(
        resolve(OTHER_TOKEN, &sent, as_sent()).await,
        (404, "message_not_found".into())
    );
    for body in [
        json!({}),
        json!({"as": "gone"}),
        json!(["sent"]),
        json!({"as": "sent", "why": "x"}),
    ] {
        assert_eq!(
            resolve(API_TOKEN, &sent, body).await,
            (422, "invalid_request".into())
        );
    }
    assert_eq!(resolve(API_TOKEN, &sent, as_sent()).await.0, 200);
    let message = stage.message(&sent).await;
    assert_eq!(message["state"], "sent");
    assert_eq!(message["reason"]["code"], "resolved_by_operator");
    assert!(
        message["reason"]["detail"]
            .as_str()
            .unwrap()
            .contains("platform")
    );
    assert_eq!(message["receipts"][0]["recipients"][0]["outcome"], "sent");
    let (code, text) = command(&config, &["messages", "resolve", &dead, "--as", "dead"]).await;
    assert_eq!(code, Some(0), "{text}");
    let detail = stage.message(&dead).await["reason"]["detail"].clone();
    assert_eq!(detail, "resolved as dead by operator");
    let (code, text) = command(&config, &["messages", "resolve", &retry, "--as", "retry"]).await;
    assert_eq!(code, Some(0), "{text}");
    stage.reaches(&retry, "sent").await;
    let texts: Vec<_> = stage.box_.delivered().into_iter().map(|d| d.text).collect();
    assert_eq!(texts, ["sent", "dead", "retry", "retry"]);
    let waiting = {
        stage.box_.set(Switches {
            down: true,
            ..Switches::default()
        });
        stage.send(&text_to(&robot(), "waits")).await
    };
    for id in [&sent, &dead, &retry, &waiting] {
        assert_eq!(
            resolve(API_TOKEN, id, as_sent()).await,
            (409, "not_unknown".into()),
            "{id}"
        );
    }
    assert_eq!(
        resolve(API_TOKEN, "msg_0", as_sent()).await,
        (404, "message_not_found".into())
    );
    let told = |id: &str, state: &str, code: &str| {
        outcomes(&stage, id)
            == [
                ("unknown".to_owned(), "outcome_unknown".to_owned()),
                (state.to_owned(), code.to_owned()),
            ]
    };
    until("the platform is told twice of each", async || {
        told(&sent, "sent", "resolved_by_operator")
            && told(&dead, "dead", "resolved_by_operator")
            && told(&retry, "sent", "-")
    })
    .await;
    let events = stage.events("dingd.message.finished");
    let distinct: std::collections::BTreeSet<_> = events.iter().map(|event| &event.id).collect();
    assert_eq!(distinct.len(), 6, "each end is an event of its own");
    assert_eq!(listed(&stage, "").await, std::slice::from_ref(&dead));
    stage.box_.set(Switches::default());
    let stage = stage.crash().await;
    assert_eq!(listed(&stage, "").await, [dead]);
    assert_eq!(stage.state(&sent).await, "sent");
    stage.reaches(&waiting, "sent").await;
    stage.close().await;
}

#[tokio::test]
async fn above_the_quota_the_oldest_go_and_critical_ones_stay() {
    let stage = stage("[journal]\ndead_bytes_max = 4000\n").await;
    let mut all = vec![];
    for number in 0..12 {
        let mut body = text_to(&nobody(), &format!("m{number}"));
        body["priority"] = json!(if number < 2 { "critical" } else { "normal" });
        let id = stage.send(&body).await;
        stage.reaches(&id, "dead").await;
        all.push(id);
    }
    let metric = async |name: &str| {
        let metrics = stage.metrics().await;
        let line = metrics.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let bytes = "dingd_dead_letter_bytes{direction=\"outbound\"}";
    until("they are within the quota", async || {
        metric(bytes).await <= 4_000
    })
    .await;
    let left = listed(&stage, "").await;
    let newest: Vec<_> = all.iter().rev().take(left.len() - 2).cloned().collect();
    let critical = [all[1].clone(), all[0].clone()];
    assert!((3..12).contains(&left.len()), "{left:?}");
    assert_eq!(left, [&newest[..], &critical[..]].concat());
    let gone = 12 - left.len() as u64;
    assert_eq!(
        metric("dingd_dead_letters_evicted_total{direction=\"outbound\"}").await,
        gone
    );
    // Critical ones alone are too many: they stay all the same.
    let edit = stage
        .config
        .replace("dead_bytes_max = 4000", "dead_bytes_max = 0");
    std::fs::write(stage.dir.path().join("config.toml"), edit).unwrap();
    stage.daemon.signal(dingd::sim::daemon::Signal::Hangup);
    until("the others are gone", async || {
        listed(&stage, "").await.len() == 2
    })
    .await;
    assert_eq!(listed(&stage, "").await, critical);
    let warned = stage
        .log()
        .matches("the oldest dead letters were removed")
        .count();
    assert_eq!(warned, 1, "once an hour");
    stage.close().await;
}

#[tokio::test]
async fn pages_of_both_directions_follow_one_another_while_more_die() {
    let stage = stage("[inbound]\nlifetime_s = 1\n").await;
    let mut mine = vec![];
    for number in 0..5 {
        let id = stage.send(&text_to(&nobody(), &format!("m{number}"))).await;
        stage.reaches(&id, "dead").await;
        mine.push(id);
    }
    until("the outcomes are told", async || {
        stage.events("dingd.message.finished").len() == 5
    })
    .await;
    stage.platform.set(events_only());
    for number in 0..3 {
        stage.push(&other_event(number)).await;
    }
    until("the events are dead", async || {
        listed(&stage, "direction=inbound").await.len() == 3
    })
    .await;
    let before = listed(&stage, "").await;
    assert_eq!(before.len(), 8);
    let page = async |query: &str| {
        let path = format!("/v1/dead?limit=3{query}");
        let page = stage.daemon.socket("GET", &path).await.unwrap();
        (
            ids(&page),
            page["next_cursor"].as_str().map(ToOwned::to_owned),
        )
    };
    let (mut seen, mut cursor) = page("").await;
    // One more dies between the pages, and one that was seen is taken away.
    let late = stage.send(&text_to(&nobody(), "late")).await;
    stage.reaches(&late, "dead").await;
    let first = format!("/v1/dead/{}", seen[0]);
    stage.daemon.socket("DELETE", &first).await.unwrap();
    while let Some(at) = cursor {
        let (more, next) = page(&format!("&cursor={at}")).await;
        assert!(more.len() <= 3);
        seen.extend(more);
        cursor = next;
    }
    assert_eq!(seen, before, "all of them, once, in their order");
    // The API's pages have one direction and the same cursors.
    let api = async |query: &str| stage.get(&format!("/v1/dead?limit=4{query}")).await.json();
    let first = api("").await;
    let at = first["next_cursor"].as_str().unwrap().to_owned();
    let second = api(&format!("&cursor={at}")).await;
    assert_eq!(second["next_cursor"], Value::Null);
    let newest: Vec<_> = std::iter::once(&late)
        .chain(mine.iter().rev())
        .cloned()
        .collect();
    assert_eq!([ids(&first), ids(&second)].concat(), newest);
    assert_eq!(ids(&api("&direction=inbound").await), Vec::<String>::new());
    // By time: from the third on, before the fourth.
    let ended = |id: &str| {
        let id = id.to_owned();
        let stage = &stage;
        async move {
            let message = stage.message(&id).await;
            message["finished_at"].as_str().unwrap().to_owned()
        }
    };
    let (since, until_) = (ended(&mine[2]).await, ended(&mine[3]).await);
    let found = ids(&api(&format!("&since={since}&until={until_}")).await);
    assert!(found.contains(&mine[2]) && !found.contains(&mine[3]) && !found.contains(&mine[1]));
    stage.close().await;
}

#[tokio::test]
async fn a_query_that_can_match_nothing_or_too_much_is_refused() {
    let stage = stage("").await;
    let dead = gone(&stage, "x").await;
    for query in [
        "direction=both",
        "state=sent",
        "state=dead&state=dead",
        "reason=Robot-Gone",
        "chat=%00",
        "chat=%zz",
        "user=",
        "robot=a%0d%0ab",
        "since=yesterday",
        "since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z",
        "limit=0",
        "limit=201",
        "limit=-1",
        "cursor=1",
        "cursor=1.in.x",
        "cursor=..%2f..%2fetc",
        "all=true",
        "colour=red",
        &format!("app={}", "x".repeat(300)),
    ] {
        let reply = stage.get(&format!("/v1/dead?{query}")).await;
        assert_eq!(reply.status, 422, "{query}: {}", reply.body);
        assert_eq!(reply.content_type, "application/problem+json");
    }
    for what in ["replay", "purge"] {
        for query in [
            "",
            "all=false",
            "all=true&state=dead",
            "state=sent",
            "limit=1",
        ] {
            let path = format!("/v1/dead/{what}?{query}");
            let refused = stage.daemon.socket("POST", &path).await.unwrap_err();
            assert!(refused.contains("\"status\":422"), "{path}: {refused}");
        }
    }
    assert_eq!(listed(&stage, "").await, [dead]);
    stage.close().await;
}

#[tokio::test]
async fn one_line_an_hour_tells_of_each_destination_and_ready_says_how_many() {
    let stage = stage("").await;
    for number in 0..3 {
        gone(&stage, &format!("x{number}")).await;
        let id = stage.send(&text_to(&nobody(), "x")).await;
        stage.reaches(&id, "dead").await;
    }
    until("it is reported", async || {
        stage.ready().await["degraded"]
            .to_string()
            .contains("6 dead letters in the last hour")
    })
    .await;
    assert_eq!(stage.ready().await["status"], "degraded");
    let log = stage.log();
    let told = log.matches("a message was not delivered").count();
    assert_eq!(told, 2, "{log}");
    assert!(log.contains("robot/robot-0") && log.contains("oncall/people"));
    let metrics = stage.metrics().await;
    for line in [
        "dingd_dead_letters_total{direction=\"outbound\",reason=\"robot_gone\"} 3",
        "dingd_dead_letters_total{direction=\"outbound\",reason=\"recipient_unknown\"} 3",
        "dingd_dead_letter_messages{direction=\"outbound\"} 6",
        "dingd_dead_letter_messages{direction=\"inbound\"} 0",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    let stage = stage.crash().await;
    assert_eq!(listed(&stage, "").await.len(), 6);
    until("it is counted again", async || {
        stage
            .metrics()
            .await
            .contains("dingd_dead_letter_messages{direction=\"outbound\"} 6")
    })
    .await;
    until("it is reported again", async || {
        stage.ready().await["degraded"]
            .to_string()
            .contains("过去一小时有 6 条死信")
    })
    .await;
    stage.close().await;
}
