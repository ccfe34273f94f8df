//! SIGKILL at every step between a card's acceptance and its last change: afterwards DingTalk shows what was
//! accepted last, each card appears once, and no change came after a newer one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dingd::sim::daemon::{API_TOKEN, Daemon};
use dingd::sim::dingtalk::{Settings, Switches, Via};
use serde_json::{Value, json};

use crate::cards::card_to;
use crate::support::{Dice, Stage, fast, long, patience, program, until};

/// Of each card: the last change that was accepted, and the last that was asked for.
type Asked = Arc<Mutex<BTreeMap<String, (u32, u32)>>>;

/// DingTalk with nothing but its cards: a limit would only make this slow.
fn settings() -> Settings {
    Settings {
        limits: false,
        ..fast()
    }
}

fn without_limits(config: &str) -> String {
    config
        .replace("[limits.chat]\n", "[limits.chat]\ncount = 10000\n")
        .replace("[limits.app_api]\n", "[limits.app_api]\ncount = 10000\n")
}

async fn call(api: &str, method: &str, path: &str, body: &Value) -> Option<u16> {
    let bearer = [("authorization", format!("Bearer {API_TOKEN}"))];
    let url = format!("{api}{path}");
    let reply = dingd::sim::post::request(method, &url, &bearer, body.to_string());
    Some(reply.await.ok()?.status)
}

/// Makes cards named after `prefix` and changes each some times, until the daemon is gone.
async fn cards(api: String, chat: String, prefix: String, asked: Asked) {
    for number in 0.. {
        let name = format!("{prefix}-{number}");
        let to = if number % 2 == 0 {
            json!({"chat": chat})
        } else {
            json!({"users": ["manager0001", "manager0002"]})
        };
        match call(&api, "POST", "/v1/cards", &card_to(&to, &name)).await {
            Some(202) => asked.lock().unwrap().insert(name.clone(), (0, 0)),
            _ => return,
        };
        for change in 1..=6_u32 {
            asked.lock().unwrap().get_mut(&name).unwrap().1 = change;
            let body = json!({"data": {"n": change.to_string()},
                "private_data": {"manager0001": {"mine": change.to_string()}}});
            let path = format!("/v1/cards/{name}");
            match call(&api, "PATCH", &path, &body).await {
                Some(202) => asked.lock().unwrap().get_mut(&name).unwrap().0 = change,
                _ => return,
            }
            tokio::time::sleep(Duration::from_millis(u64::from(change))).await;
        }
    }
}

fn load(stage: &Stage, prefix: &str, asked: &Asked) -> Vec<tokio::task::JoinHandle<()>> {
    (0..3)
        .map(|task| {
            let prefix = format!("{prefix}-{task}");
            let api = stage.daemon.api().to_owned();
            tokio::spawn(cards(api, stage.chat(), prefix, asked.clone()))
        })
        .collect()
}

async fn everything_accepted_is_shown(stage: &Stage, asked: &Asked) {
    let asked = asked.lock().unwrap().clone();
    for (name, (accepted, wanted)) in asked {
        stage.agrees(&name).await;
        let card = stage.box_.card(&name).unwrap();
        let shown: u32 = card.public["n"].parse().unwrap();
        // A change whose answer was lost may have been accepted.
        assert!(
            (accepted..=wanted).contains(&shown),
            "{name}: {accepted} {shown} {wanted}"
        );
        let seen: Vec<u32> = card
            .history
            .iter()
            .map(|s| s.public["n"].parse().unwrap())
            .collect();
        assert!(seen.is_sorted(), "{name}: {seen:?}");
        let delivered = stage.box_.delivered();
        let appeared = |to: &str| {
            let one = delivered
                .iter()
                .filter(|one| one.via == Via::Card && one.kind == name);
            one.filter(|one| one.target == to).count()
        };
        for space in &card.spaces {
            assert_eq!(appeared(&space.id), 1, "{name} in {}", space.id);
        }
    }
    until("no message is under way", async || {
        let mut waiting = 0;
        for state in ["queued", "sending", "retrying"] {
            let page = stage
                .get(&format!("/v1/messages?state={state}"))
                .await
                .json();
            waiting += page["messages"].as_array().unwrap().len();
        }
        waiting == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_at_every_step_leaves_cards_as_they_were_accepted_last() {
    let mut dice = Dice::new(20_261_125);
    for point in [
        "message.before",
        "message.after",
        "patch.before",
        "patch.after",
        "call.before",
        "call.after",
        "settle.after",
    ] {
        for round in 0..if long() { 20 } else { 3 } {
            let times = 1 + round * dice.below(12);
            let stage = Stage::with(settings(), |config| without_limits(&config)).await;
            let asked = Asked::default();
            let stage = dies_at(stage, &asked, &format!("{point}:{times}")).await;
            everything_accepted_is_shown(&stage, &asked).await;
            stage.close().await;
        }
    }
}

async fn dies_at(mut stage: Stage, asked: &Asked, die_at: &str) -> Stage {
    stage.daemon.kill().await;
    let env = [("DINGD_DIE_AT", die_at)];
    let dir = stage.dir.path();
    stage.daemon = Daemon::start_with(program(), dir, &stage.config, &env)
        .await
        .unwrap();
    let tasks = load(&stage, "inc", asked);
    let ended = tokio::time::timeout(patience(), stage.daemon.ended()).await;
    assert_eq!(
        ended.ok(),
        Some(None),
        "{die_at} is passed, and it dies by a signal"
    );
    for task in tasks {
        task.await.unwrap();
    }
    let dir = stage.dir.path();
    stage.daemon = Daemon::start(program(), dir, &stage.config).await.unwrap();
    stage
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_at_random_moments_while_dingtalk_is_slow_and_cuts_answers_lose_no_change() {
    let mut stage = Stage::with(settings(), |config| without_limits(&config)).await;
    let (mut dice, asked) = (Dice::new(7), Asked::default());
    for cycle in 0..if long() { 200 } else { 12 } {
        stage.box_.set(Switches {
            only: Some("/v1.0/card".to_owned()),
            slow_ms: 10 + dice.below(60),
            cut_after: dice.below(3) == 0,
            ..Switches::default()
        });
        let tasks = load(&stage, &format!("c{cycle}"), &asked);
        tokio::time::sleep(Duration::from_millis(50 + dice.below(150))).await;
        stage = stage.crash().await;
        for task in tasks {
            task.await.unwrap();
        }
    }
    stage.box_.set(Switches::default());
    assert!(
        asked.lock().unwrap().len() > 30,
        "{:?}",
        asked.lock().unwrap()
    );
    everything_accepted_is_shown(&stage, &asked).await;
    stage.close().await;
}
