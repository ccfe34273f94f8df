//! A death at any moment between a click's arrival and its settled update: no click that was taken is lost,
//! and in the end the card tells the truth.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dingd::sim::daemon::{CARDS_OVER_HTTP, Daemon};
use dingd::sim::platform::{PlatformSwitches, Reaction, Reflex};
use serde_json::json;

use crate::support::{Dice, Stage, fast, long, patience, program, until};

const CLICKED: &str = "dingtalk.card.clicked";
const POINTS: [&str; 15] = [
    "callback.before",
    "callback.after",
    "event.before",
    "event.after",
    "answer.before",
    "answer.after",
    "late.before",
    "late.after",
    "patch.before",
    "patch.after",
    "shown.before",
    "shown.after",
    "call.before",
    "call.after",
    "settle.after",
];

/// What was clicked: each click has a number of its own.
type Clicks = Arc<Mutex<BTreeSet<u64>>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_anywhere_between_a_click_and_its_settled_update_loses_nothing() {
    let mut dice = Dice::new(5);
    let rounds = if long() { 20 } else { 1 };
    for round in 0..rounds {
        for (index, point) in POINTS.into_iter().enumerate() {
            // The first time it is passed, or some way into the work.
            let times = if (index + round).is_multiple_of(2) {
                1
            } else {
                2 + dice.below(3)
            };
            die_at(point, times).await;
        }
    }
}

async fn die_at(point: &str, times: u64) {
    let edit =
        |config: String| format!("{config}{CARDS_OVER_HTTP}[inbound]\nanswer_deadline_ms = 150\n");
    let mut stage = Stage::with(fast(), edit).await;
    stage.route_clicks().await;
    stage.foreign_card("alert-1").await;
    stage.platform.set(answering());
    stage.daemon.kill().await;
    let die = format!("{point}:{times}");
    let env = [("DINGD_DIE_AT", die.as_str())];
    stage.daemon = Daemon::start_with(program(), stage.dir.path(), &stage.config, &env)
        .await
        .unwrap();
    stage.route_clicks().await;
    let taken = Clicks::default();
    let people = ["manager0001", "manager0002"].map(|user| clicking(&stage, user, &taken));
    let ended = tokio::time::timeout(patience() * 2, stage.daemon.ended()).await;
    assert_eq!(ended.ok(), Some(None), "{point} is passed, and it dies");
    for person in people {
        person.abort();
    }
    stage.daemon = Daemon::start(program(), stage.dir.path(), &stage.config)
        .await
        .unwrap();
    let taken = taken.lock().unwrap().clone();
    until(
        &format!("{die}: every click that was taken is told"),
        async || {
            let events = stage.events(CLICKED);
            let told = events
                .iter()
                .filter_map(|it| it.body["data"]["params"]["n"].as_u64());
            taken.is_subset(&told.collect())
        },
    )
    .await;
    until(&format!("{die}: the card tells the truth"), async || {
        let told = !stage.events(CLICKED).is_empty();
        let card = stage.box_.card("alert-1").unwrap();
        let nobody_waits = ["manager0001", "manager0002"].iter().all(|user| {
            let seen = card.seen_by(user);
            seen.get("dingd_state").is_none_or(String::is_empty)
        });
        let status = card.public.get("status").map(String::as_str);
        !told || status == Some("acked") && nobody_waits
    })
    .await;
    let mut ids = std::collections::BTreeMap::new();
    for event in stage.platform.attempts() {
        if let Some(n) = event.body["data"]["params"]["n"].as_u64() {
            assert_eq!(*ids.entry(n).or_insert_with(|| event.id.clone()), event.id);
        }
    }
    stage.close().await;
}

/// Some answers come in time, others do not.
fn answering() -> PlatformSwitches {
    let reflex = Reflex::new(|event| {
        let n = event["data"]["params"]["n"].as_u64()?;
        Some(Reaction {
            status: 200,
            body: json!({"card": {"data": {"status": "acked"}}}),
            slow_ms: if is_slow(n) { 250 } else { 0 },
        })
    });
    PlatformSwitches {
        reflex: Some(reflex),
        ..PlatformSwitches::default()
    }
}

fn is_slow(n: u64) -> bool {
    n % 3 == 2
}

fn clicking(stage: &Stage, user: &'static str, taken: &Clicks) -> tokio::task::JoinHandle<()> {
    let (box_, taken) = (stage.box_.clone(), taken.clone());
    let first = u64::from(user.ends_with('2')) * 10_000;
    tokio::spawn(async move {
        for n in first.. {
            let clicked = box_.click("alert-1", user, &["ack"], json!({"n": n})).await;
            if clicked.status == 200 {
                taken.lock().unwrap().insert(n);
            }
            if is_slow(n) {
                // Clicks on one card are answered one behind the other; and as long as the late answer has not
                // left, nothing is noted of those in time, they go along.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    })
}
