//! The storm: 10,000 alerts within one of DingTalk's minutes for five groups and three robots, a kill and a
//! ban of the address in its midst, under DingTalk's true limits and penalties.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dingd::sim::daemon::API_TOKEN;
use dingd::sim::dingtalk::{Delivered, DingTalk, Settings, Switches};

use crate::support::{Stage, long, patience, until};

#[path = "../../benches/support/storm.rs"]
mod alerts;

use alerts::{TARGETS, alert, is_critical, number, settings};

/// As many as a machine under test takes in a reasonable time; all by `tests/run --long`.
fn alerts() -> usize {
    if long() { 10_000 } else { 2_000 }
}

/// What DingTalk calls the target of alert `number`.
fn target(settings: &Settings, number: usize) -> &str {
    let target = number % TARGETS;
    match settings.groups.get(target) {
        Some(group) => &group.open_conversation_id,
        None => &settings.robots[target - settings.groups.len()].access_token,
    }
}

/// What was acknowledged: number, id, and of the urgent ones how much had been delivered by then.
type Accepted = Arc<Mutex<BTreeMap<usize, (String, usize)>>>;

/// Sends its share of the alerts, again and again until each has its 202, wherever the daemon is.
async fn platform(
    share: usize,
    api: Arc<Mutex<String>>,
    box_: DingTalk,
    settings: Settings,
    accepted: Accepted,
) {
    for number in (share..alerts()).step_by(8) {
        let body = alert(&settings, number).to_string();
        let headers = [
            ("authorization", format!("Bearer {API_TOKEN}")),
            ("idempotency-key", format!("storm-{number}")),
        ];
        loop {
            let url = format!("{}/v1/messages", api.lock().unwrap());
            let reply = dingd::sim::post::request("POST", &url, &headers, body.clone()).await;
            if let Ok(reply) = reply
                && matches!(reply.status, 200 | 202)
            {
                let id = reply.json()["id"].as_str().unwrap().to_owned();
                let delivered = if is_critical(number) {
                    box_.delivered().len()
                } else {
                    0
                };
                accepted.lock().unwrap().insert(number, (id, delivered));
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn numbers(delivered: &[Delivered]) -> BTreeSet<usize> {
    let alone = delivered.iter().filter(|one| !one.text.contains("条告警"));
    alone.filter_map(|one| number(&one.text)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_storm_with_a_kill_and_a_ban_no_alert_is_unaccounted_for_and_no_penalty_is_earned() {
    let settings = settings();
    // A minute of DingTalk is three seconds here.
    let edit = |config: String| format!("{config}[outbound.digest]\nafter_s = 3\n");
    let mut stage = Stage::with(settings.clone(), edit).await;
    let api = Arc::new(Mutex::new(stage.daemon.api().to_owned()));
    let accepted = Accepted::default();
    let senders: Vec<_> = (0..8)
        .map(|share| {
            let (box_, settings) = (stage.box_.clone(), settings.clone());
            tokio::spawn(platform(
                share,
                api.clone(),
                box_,
                settings,
                accepted.clone(),
            ))
        })
        .collect();
    let count = || accepted.lock().unwrap().len();
    until("a third is accepted", async || count() > alerts() / 3).await;
    stage = stage.crash().await;
    *api.lock().unwrap() = stage.daemon.api().to_owned();
    until("two thirds are accepted", async || {
        count() > alerts() * 2 / 3
    })
    .await;
    // DingTalk bans the address for as long as five of its minutes.
    stage.box_.set(Switches {
        html: true,
        ..Switches::default()
    });
    until("the ban is noticed", async || {
        stage.ready().await["degraded"]
            .to_string()
            .contains("egress until")
    })
    .await;
    let metrics = stage.metrics().await;
    assert!(
        metrics.contains(r#"dingd_paused{limit="egress"} 1"#),
        "{metrics}"
    );
    let tried = stage.box_.requests().len();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(
        stage.box_.requests().len(),
        tried,
        "nothing is tried during the ban"
    );
    stage.box_.set(Switches::default());
    for sender in senders {
        sender.await.unwrap();
    }
    let accepted = std::mem::take(&mut *accepted.lock().unwrap());
    assert_eq!(accepted.len(), alerts());
    let deadline = patience() * 4;
    let waits = async || stage.daemon.status().await.unwrap()["queued"]["outbound"] != 0;
    tokio::time::timeout(deadline, async {
        while waits().await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("the storm blows over");
    let delivered = stage.box_.delivered();
    let alone = numbers(&delivered);
    let mut tally: BTreeMap<String, usize> = BTreeMap::new();
    for (number, (id, _)) in &accepted {
        let message = stage.message(id).await;
        let state = message["state"].as_str().unwrap().to_owned();
        match state.as_str() {
            "sent" => assert!(alone.contains(number), "{message}"),
            "merged" => {
                let digest = message["merged_into"].as_str().unwrap();
                assert_eq!(stage.state(digest).await, "sent");
                assert!(
                    !alone.contains(number) && !is_critical(*number),
                    "{message}"
                );
            }
            _ => panic!("{number}: {message}"),
        }
        *tally.entry(state).or_default() += 1;
    }
    assert_eq!(stage.box_.penalties(), vec![], "none was earned by us");
    let digests: Vec<_> = delivered
        .iter()
        .filter(|one| one.text.contains("条告警"))
        .collect();
    assert!(
        !digests.is_empty() && digests.len() < alerts() / 50,
        "{}",
        digests.len()
    );
    eprintln!(
        "{} alerts: {tally:?}, {} calls, {} digests such as\n{}",
        alerts(),
        delivered.len(),
        digests.len(),
        digests[0]
            .text
            .lines()
            .take(12)
            .collect::<Vec<_>>()
            .join("\n")
    );
    urgent_first(&settings, &accepted, &delivered);
    stage.close().await;
}

/// An urgent alert waits for nothing but its own limit: once it is accepted, only what is in flight to its
/// target still goes before it, and one call that leaves in that very moment, before the lanes know of it. Few
/// wait for more, where a machine under load has a call that was prepared later arrive earlier. A window would let
/// fifteen go. As each is accepted in turn, they arrive in their order, one at a time: beside each urgent one
/// before it, another may have gone.
fn urgent_first(
    settings: &Settings,
    accepted: &BTreeMap<usize, (String, usize)>,
    delivered: &[Delivered],
) {
    let mut before = vec![];
    for (number, (_, known)) in accepted.iter().filter(|(number, _)| is_critical(**number)) {
        let target = target(settings, *number);
        let of = |one: &Delivered| (one.target == target).then(|| self::number(&one.text));
        let is_urgent = |one: &Delivered| of(one).flatten().is_some_and(is_critical);
        let place = delivered
            .iter()
            .position(|one| of(one).flatten() == Some(*number) && !one.text.contains("条告警"));
        let between = delivered.get(*known..place.unwrap()).unwrap_or_default();
        let others = between
            .iter()
            .filter(|one| of(one).is_some() && !is_urgent(one));
        let urgent = between.iter().filter(|one| is_urgent(one));
        before.push(others.count().saturating_sub(urgent.count()));
    }
    before.sort_unstable();
    let (p95, most) = (before[before.len() * 95 / 100], before[before.len() - 1]);
    eprintln!(
        "{} urgent alerts; others that went before one, beyond those beside urgent ones: p95 {p95}, most {most}",
        before.len(),
    );
    assert!(p95 <= 2 && most < 8, "{before:?}");
    for first in 0..TARGETS {
        let target = target(settings, first);
        let urgent: Vec<usize> = delivered
            .iter()
            .filter(|one| one.target == target && !one.text.contains("条告警"))
            .filter_map(|one| number(&one.text))
            .filter(|number| is_critical(*number))
            .collect();
        let mut sorted = urgent.clone();
        sorted.sort_unstable();
        sorted.dedup();
        let mut once = urgent.clone();
        once.dedup();
        assert_eq!(once, sorted, "in the order of acceptance");
    }
}
