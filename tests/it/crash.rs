//! SIGKILL at any moment under load from both sides: every `success` and every 202 is accounted for,
//! and no limit is passed afterwards.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dingd::faults::POINTS;
use dingd::sim::daemon::Daemon;
use dingd::sim::dingtalk::Settings;
use serde_json::json;

use crate::support::{Dice, Stage, fast, long, other_event, patience, program, robot, until};

#[derive(Default)]
struct Acknowledged {
    events: BTreeSet<usize>,
    messages: Vec<Sent>,
}

struct Sent {
    id: String,
    text: String,
    /// Not to the robot, whose limit lets few through.
    to_people: bool,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_kills_under_load_from_both_sides_lose_nothing_and_pass_no_limit() {
    let cycles = if long() { 2_000 } else { 100 };
    let mut stage = Stage::with(
        Settings {
            limits: true,
            ..fast()
        },
        // On a busy machine the box looks late at what a dead daemon had sent.
        |config| soon_folded(&config).replace("margin_ms = 50\n", "margin_ms = 250\n"),
    )
    .await;
    let acknowledged = Arc::new(Mutex::new(Acknowledged::default()));
    let mut dice = Dice::new(20_261_122);
    for cycle in 0..cycles {
        let load = [
            event_load(&stage, &acknowledged, cycle),
            message_load(&stage, &acknowledged, cycle),
        ];
        // Every fourth life ends at any moment, the others in their work, however slow the machine is.
        if cycle % 4 > 0 {
            let before = counted(&acknowledged);
            until("one of each is acknowledged", async || {
                let now = counted(&acknowledged);
                now.0 > before.0 && now.1 > before.1
            })
            .await;
        }
        tokio::time::sleep(Duration::from_millis(dice.below(120))).await;
        stage = stage.crash().await;
        for task in load {
            task.abort();
        }
    }
    let acknowledged = std::mem::take(&mut *acknowledged.lock().unwrap());
    everything_is_accounted_for(&stage, &acknowledged).await;
    assert_eq!(stage.box_.penalties(), vec![], "no limit was passed");
    stage.close().await;
}

/// Events and messages.
fn counted(acknowledged: &Mutex<Acknowledged>) -> (usize, usize) {
    let acknowledged = acknowledged.lock().unwrap();
    (acknowledged.events.len(), acknowledged.messages.len())
}

/// Storms become digests at once, so that some are under way whenever it dies.
fn soon_folded(config: &str) -> String {
    format!("{config}[outbound.digest]\nafter_s = 0.5\n")
}

async fn everything_is_accounted_for(stage: &Stage, acknowledged: &Acknowledged) {
    let forwarded = || -> BTreeSet<usize> {
        let number = |e: &dingd::sim::platform::Received| {
            usize::try_from(e.body["data"]["raw"]["number"].as_u64()?).ok()
        };
        stage.platform.events().iter().filter_map(number).collect()
    };
    until("every acknowledged event is forwarded", async || {
        acknowledged.events.is_subset(&forwarded())
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
    // Where the retention is short it may be gone, but not before the platform was told its end.
    until("every message is known, or its end was told", async || {
        let told = stage.events("dingd.message.finished");
        let told: BTreeSet<_> = told
            .iter()
            .filter_map(|event| event.body["subject"].as_str())
            .collect();
        for Sent { id, .. } in &acknowledged.messages {
            if !told.contains(id.as_str()) && stage.state(id).await.is_empty() {
                return false;
            }
        }
        true
    })
    .await;
    until("everything for people is out", async || {
        for state in ["queued", "sending", "retrying"] {
            let path = format!("/v1/messages?state={state}&user=manager0001");
            if stage.get(&path).await.json()["messages"] != json!([]) {
                return false;
            }
        }
        true
    })
    .await;
    // What was for people has arrived, or is in a digest, or it is said that nobody knows.
    until(
        "everything for people has arrived or is told of",
        async || {
            let delivered = stage.box_.delivered();
            let arrived: BTreeSet<_> = delivered.iter().map(|one| one.text.as_str()).collect();
            let told = stage.events("dingd.message.finished");
            let elsewhere: BTreeSet<_> = told
                .iter()
                .filter(|event| {
                    let end = &event.body["data"];
                    end["state"] == "merged" && end["merged_into"].is_string()
                        || end["state"] == "unknown"
                })
                .filter_map(|event| event.body["subject"].as_str())
                .collect();
            let mut people = acknowledged.messages.iter().filter(|sent| sent.to_people);
            people.all(|sent| {
                arrived.contains(sent.text.as_str()) || elsewhere.contains(sent.id.as_str())
            })
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_before_and_after_every_step_loses_nothing() {
    let mut dice = Dice::new(3);
    let rounds = if long() { 20 } else { 2 };
    for point in POINTS
        .into_iter()
        // These have tests of their own, in `formats.rs`, `cards.rs`, `click_kills.rs` and `process.rs`.
        .filter(|point| {
            let elsewhere = ["migrate", "patch", "shown", "answer.", "late", "restore"];
            !elsewhere.iter().any(|start| point.starts_with(start))
        })
    {
        for round in 0..rounds {
            // The first time it is passed, and some way into the work. A start makes two files and replays
            // once; what has ended is removed twice a second.
            let times = match round {
                _ if point.starts_with("create") || point.starts_with("purge") => 1 + round % 2,
                _ if point.starts_with("replay") || point.starts_with("digest") => 1,
                0 => 1,
                _ => 2 + dice.below(20),
            };
            die_at(point, times).await;
        }
    }
}

async fn die_at(point: &str, times: u64) {
    let edit = |config: String| format!("{}[journal]\nkeep_finished_s = 1\n", soon_folded(&config));
    let mut stage = Stage::with(fast(), edit).await;
    let mut acknowledged = Arc::default();
    let die = format!("{point}:{times}");
    let env = [("DINGD_DIE_AT", die.as_str())];
    let mut lives = 0;
    loop {
        // Killed in its work, so that the next start has something to replay.
        load_for(&stage, &acknowledged, Duration::from_millis(50)).await;
        stage.daemon.kill().await;
        if point.starts_with("create") {
            std::fs::remove_dir_all(Daemon::state_dir(stage.dir.path())).unwrap();
            acknowledged = Arc::default();
        }
        let started = Daemon::start_with(program(), stage.dir.path(), &stage.config, &env).await;
        match started {
            Ok(daemon) => stage.daemon = daemon,
            Err(why) => {
                assert!(why.contains("signal: 9"), "{point}: {why}");
                break;
            }
        }
        if !point.starts_with("replay") {
            dies_under_load(&mut stage, &acknowledged, point).await;
            break;
        }
        // The tables had everything, this time.
        lives += 1;
        assert!(lives < 50, "nothing is ever replayed");
    }
    stage.daemon = Daemon::start(program(), stage.dir.path(), &stage.config)
        .await
        .unwrap();
    let acknowledged = std::mem::take(&mut *acknowledged.lock().unwrap());
    everything_is_accounted_for(&stage, &acknowledged).await;
    stage.close().await;
}

async fn load_for(stage: &Stage, acknowledged: &Arc<Mutex<Acknowledged>>, time: Duration) {
    let load = [
        event_load(stage, acknowledged, 0),
        message_load(stage, acknowledged, 0),
    ];
    tokio::time::sleep(time).await;
    for task in load {
        task.abort();
    }
}

async fn dies_under_load(stage: &mut Stage, acknowledged: &Arc<Mutex<Acknowledged>>, point: &str) {
    let load = [
        event_load(stage, acknowledged, 1),
        message_load(stage, acknowledged, 1),
    ];
    let ended = tokio::time::timeout(patience() * 2, stage.daemon.ended()).await;
    assert_eq!(
        ended.ok(),
        Some(None),
        "{point} is passed, and it dies by a signal"
    );
    for task in load {
        task.abort();
    }
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
            static NUMBER: AtomicUsize = AtomicUsize::new(0);
            let to_people = n % 8 != 0;
            let to = if to_people {
                json!({"users": ["manager0001"]})
            } else {
                robot()
            };
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let text = format!("{cycle}/{n}/{number}");
            let body = json!({"to": to, "content": {"text": {"content": text}}});
            let headers = [(
                "authorization",
                format!("Bearer {}", dingd::sim::daemon::API_TOKEN),
            )];
            let reply = dingd::sim::post::request("POST", &url, &headers, body.to_string()).await;
            if let Ok(reply) = reply
                && reply.status == 202
            {
                let id = reply.json()["id"].as_str().unwrap().to_owned();
                let sent = Sent {
                    id,
                    text,
                    to_people,
                };
                acknowledged.lock().unwrap().messages.push(sent);
            }
        }
    })
}
