//! A storm through a naive sender and through dingd: 10,000 alerts within one of DingTalk's minutes for five
//! groups and three robots, on the simulated DingTalk with its true limits and penalties, every window
//! and penalty at a twentieth.
//!
//! `cargo bench --bench storm` takes about two minutes. The naive sender does what the usual adapters do:
//! one call an alert as it comes, none repeated. dingd is killed with SIGKILL after a third of the
//! alerts, and DingTalk bans the address after two thirds for five of its minutes; the naive sender is
//! spared both. Times are given as DingTalk's own, twenty times what was measured.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a bench measures time and reports on its output; a JSON value is indexed safely"
)]

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dingd::sim::daemon::{self, API_TOKEN, Daemon};
use dingd::sim::dingtalk::{DingTalk, Settings, Switches, Via};
use dingd::sim::post::request;
use serde_json::{Value, json};
use tokio::net::TcpListener;

#[path = "support/storm.rs"]
mod alerts;

use alerts::{SCALE, TARGETS, alert, is_critical, number, settings, text};

const ALERTS: usize = 10_000;

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        println!("{ALERTS} alerts at once, {TARGETS} targets; windows and penalties at 1/{SCALE}");
        naive().await?;
        through_dingd().await
    })
}

async fn listener() -> std::io::Result<TcpListener> {
    TcpListener::bind("127.0.0.1:0").await
}

/// One call an alert, and on to the next.
async fn naive() -> Result<(), Error> {
    let settings = settings();
    let box_ = DingTalk::start(settings.clone(), listener().await?);
    let url = box_.url();
    let app = json!({"appKey": settings.app.client_id, "appSecret": settings.app.client_secret});
    let token = request(
        "POST",
        &format!("{url}/v1.0/oauth2/accessToken"),
        &[],
        app.to_string(),
    )
    .await?;
    let token = token.json()["accessToken"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let senders: Vec<_> = (0..TARGETS)
        .map(|share| {
            let (settings, url, token) = (settings.clone(), url.clone(), token.clone());
            tokio::spawn(async move {
                for number in (share..ALERTS).step_by(TARGETS) {
                    let (title, text) = text(number);
                    let (path, body) = call(&settings, share, &title, &text);
                    let headers = [("x-acs-dingtalk-access-token", token.clone())];
                    // Whatever comes of it.
                    drop(request("POST", &format!("{url}{path}"), &headers, body).await);
                }
            })
        })
        .collect();
    for sender in senders {
        sender.await?;
    }
    let delivered = box_.delivered().len();
    println!(
        "naive sender: {delivered} delivered, {} lost, {} penalties",
        ALERTS - delivered,
        box_.penalties().len()
    );
    box_.stop().await;
    Ok(())
}

fn call(settings: &Settings, share: usize, title: &str, text: &str) -> (String, String) {
    if let Some(group) = settings.groups.get(share) {
        let param = json!({"title": title, "text": text}).to_string();
        let body = json!({"msgKey": "sampleMarkdown", "msgParam": param,
            "openConversationId": group.open_conversation_id,
            "robotCode": settings.app.robot_code, "coolAppCode": settings.app.cool_app_code});
        (
            "/v1.0/robot/groupMessages/send".to_owned(),
            body.to_string(),
        )
    } else {
        let robot = settings.robots.get(share - settings.groups.len());
        let token = robot.map_or("", |robot| robot.access_token.as_str());
        let body = json!({"msgtype": "markdown", "markdown": {"title": title, "text": text}});
        (
            format!("/robot/send?access_token={token}"),
            body.to_string(),
        )
    }
}

/// When each alert was accepted, and under which id.
type Accepted = Arc<Mutex<BTreeMap<usize, (Duration, String)>>>;

async fn through_dingd() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let settings = settings();
    let started = Instant::now();
    let box_ = DingTalk::start(settings.clone(), listener().await?);
    let state = Daemon::state_dir(dir.path());
    let config = daemon::config(&settings, &box_.url(), None, &state);
    let config = format!("{config}[outbound.digest]\nafter_s = {:?}\n", 60.0 / SCALE);
    let program = Path::new(env!("CARGO_BIN_EXE_dingd"));
    let mut daemon = Daemon::start(program, dir.path(), &config).await?;
    let api = Arc::new(Mutex::new(daemon.api().to_owned()));
    let accepted = Accepted::default();
    let senders: Vec<_> = (0..TARGETS)
        .map(|share| {
            let task = platform(
                share,
                started,
                api.clone(),
                settings.clone(),
                accepted.clone(),
            );
            tokio::spawn(task)
        })
        .collect();
    let reach = async |alerts| {
        while accepted.lock().map_or(0, |accepted| accepted.len()) < alerts {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    reach(ALERTS / 3).await;
    daemon.kill().await;
    daemon = Daemon::start(program, dir.path(), &config).await?;
    if let Ok(mut api) = api.lock() {
        daemon.api().clone_into(&mut api);
    }
    reach(ALERTS * 2 / 3).await;
    box_.set(Switches {
        html: true,
        ..Switches::default()
    });
    tokio::time::sleep(Duration::from_secs_f64(300.0 / SCALE)).await;
    box_.set(Switches::default());
    for sender in senders {
        sender.await?;
    }
    while daemon.status().await?["queued"]["outbound"] != 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let took = started.elapsed();
    report(&daemon, &box_, &accepted, took).await
}

async fn platform(
    share: usize,
    started: Instant,
    api: Arc<Mutex<String>>,
    settings: Settings,
    accepted: Accepted,
) {
    for number in (share..ALERTS).step_by(TARGETS) {
        let body = alert(&settings, number).to_string();
        let headers = [
            ("authorization", format!("Bearer {API_TOKEN}")),
            ("idempotency-key", format!("storm-{number}")),
        ];
        loop {
            let url = api.lock().map_or_else(|_| String::new(), |api| api.clone());
            let url = format!("{url}/v1/messages");
            let reply = request("POST", &url, &headers, body.clone()).await;
            if let Ok(reply) = reply
                && matches!(reply.status, 200 | 202)
            {
                let id = reply.json()["id"].as_str().unwrap_or_default().to_owned();
                if let Ok(mut accepted) = accepted.lock() {
                    accepted.insert(number, (started.elapsed(), id));
                }
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn report(
    daemon: &Daemon,
    box_: &DingTalk,
    accepted: &Accepted,
    took: Duration,
) -> Result<(), Error> {
    let accepted = accepted.lock().map_err(|error| error.to_string())?.clone();
    let delivered = box_.delivered();
    let mut arrived: HashMap<usize, u64> = HashMap::new();
    let mut digests = 0;
    for one in &delivered {
        if one.text.contains("条告警") {
            digests += 1;
        } else if let Some(number) = number(&one.text) {
            arrived.entry(number).or_insert(one.at_ms);
        }
    }
    let mut states: BTreeMap<String, usize> = BTreeMap::new();
    for (_, id) in accepted.values() {
        let path = format!("/v1/messages/{id}");
        let reply = daemon.request("GET", &path, &Value::Null).await?;
        let state = reply.json()["state"].as_str().unwrap_or("lost").to_owned();
        *states.entry(state).or_default() += 1;
    }
    let mut waits: Vec<f64> = accepted
        .iter()
        .filter(|(number, _)| is_critical(**number))
        .filter_map(|(number, (at, _))| {
            let at_ms = u64::try_from(at.as_millis()).ok()?;
            let wait = Duration::from_millis(arrived.get(number)?.saturating_sub(at_ms));
            Some(wait.as_secs_f64() * SCALE)
        })
        .collect();
    waits.sort_by(f64::total_cmp);
    let at = |percent: usize| {
        waits
            .get(waits.len() * percent / 100)
            .copied()
            .unwrap_or(f64::NAN)
    };
    let webhooks = delivered
        .iter()
        .filter(|one| one.via == Via::Webhook)
        .count();
    println!(
        "dingd, with a kill and a ban: {} accepted, {states:?}, {} penalties",
        accepted.len(),
        box_.penalties().len()
    );
    println!(
        "  people see {} messages ({webhooks} by webhook), {digests} of them digests; all is out after {:.1} of DingTalk's minutes",
        delivered.len(),
        took.as_secs_f64() * SCALE / 60.0
    );
    println!(
        "  {} critical ones: p50 {:.0} s, p99 {:.0} s of DingTalk's, in a queue of {} a target under 20 a minute",
        waits.len(),
        at(50),
        at(99),
        waits.len() / TARGETS
    );
    Ok(())
}
