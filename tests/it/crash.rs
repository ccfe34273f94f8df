//! SIGKILL at any moment under load from both sides: every `success` and every 202 is accounted for,
//! and no limit is passed afterwards.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dingd::sim::dingtalk::Settings;
use serde_json::json;

use crate::support::{Dice, Stage, fast, other_event, robot, until};

const CYCLES: u64 = 100;

#[derive(Default)]
struct Acknowledged {
    events: BTreeSet<usize>,
    messages: Vec<String>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_kills_under_load_from_both_sides_lose_nothing_and_pass_no_limit() {
    let mut stage = Stage::with(
        Settings {
            limits: true,
            ..fast()
        },
        |config| config,
    )
    .await;
    let acknowledged = Arc::new(Mutex::new(Acknowledged::default()));
    let mut dice = Dice::new(20_261_122);
    for cycle in 0..CYCLES {
        let load = [
            event_load(&stage, &acknowledged, cycle),
            message_load(&stage, &acknowledged, cycle),
        ];
        tokio::time::sleep(Duration::from_millis(20 + dice.below(120))).await;
        stage = stage.crash().await;
        for task in load {
            task.abort();
        }
    }
    let (events, messages) = {
        let acknowledged = acknowledged.lock().unwrap();
        (acknowledged.events.clone(), acknowledged.messages.clone())
    };
    assert!(
        events.len() > 300 && messages.len() > 300,
        "{} {}",
        events.len(),
        messages.len()
    );
    let forwarded = || -> BTreeSet<usize> {
        let number = |e: &dingd::sim::platform::Received| {
            usize::try_from(e.body["data"]["raw"]["number"].as_u64()?).ok()
        };
        stage.platform.events().iter().filter_map(number).collect()
    };
    until("every acknowledged event is forwarded", async || {
        events.is_subset(&forwarded())
    })
    .await;
    // One event has one id, however often it was delivered.
    let mut ids = std::collections::BTreeMap::new();
    for event in stage.platform.attempts() {
        if let Some(number) = event.body["data"]["raw"]["number"].as_u64() {
            assert_eq!(
                *ids.entry(number).or_insert_with(|| event.id.clone()),
                event.id
            );
        }
    }
    for id in &messages {
        until(&format!("{id} is known"), async || {
            !stage.state(id).await.is_empty()
        })
        .await;
    }
    until("everything for people is out", async || {
        let page = stage
            .get("/v1/messages?state=queued&user=manager0001")
            .await
            .json();
        page["messages"].as_array().is_some_and(Vec::is_empty)
    })
    .await;
    assert_eq!(stage.box_.penalties(), vec![], "no limit was passed");
    stage.close().await;
}

fn event_load(
    stage: &Stage,
    acknowledged: &Arc<Mutex<Acknowledged>>,
    cycle: u64,
) -> tokio::task::JoinHandle<()> {
    let (box_, url, acknowledged) = (
        stage.box_.clone(),
        stage.daemon.callback_url(),
        acknowledged.clone(),
    );
    tokio::spawn(async move {
        for n in 0.. {
            let number = usize::try_from(cycle).unwrap() * 10_000 + n;
            if box_.push(&url, &other_event(number)).await.acknowledged {
                acknowledged.lock().unwrap().events.insert(number);
            }
        }
    })
}

fn message_load(
    stage: &Stage,
    acknowledged: &Arc<Mutex<Acknowledged>>,
    cycle: u64,
) -> tokio::task::JoinHandle<()> {
    let url = format!("{}/v1/messages", stage.daemon.api());
    let acknowledged = acknowledged.clone();
    tokio::spawn(async move {
        for n in 0.. {
            let to = if n % 8 == 0 {
                robot()
            } else {
                json!({"users": ["manager0001"]})
            };
            let body = json!({"to": to, "content": {"text": {"content": format!("{cycle}/{n}")}}});
            let headers = [(
                "authorization",
                format!("Bearer {}", dingd::sim::daemon::API_TOKEN),
            )];
            let reply = dingd::sim::post::request("POST", &url, &headers, body.to_string()).await;
            if let Ok(reply) = reply
                && reply.status == 202
            {
                let id = reply.json()["id"].as_str().unwrap().to_owned();
                acknowledged.lock().unwrap().messages.push(id);
            }
        }
    })
}
