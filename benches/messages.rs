//! Messages end to end with limits off: accepted, stored, sent to the simulated DingTalk and settled, by the
//! daemon in a process of its own; generator and DingTalk share the machine's cores with it.
//!
//! `cargo bench --bench messages` takes about a minute. 64 keep-alive connections send markdown messages for
//! 500 groups, each its next one when it has its 202; the clock stops when nothing waits any more. CPU of
//! the daemon is set beside that of a bare hyper client that makes the same calls, and of the journal alone
//! doing the same commits: one accepting, one before the call, one with the result.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a bench measures time and reports on its output; a JSON value is indexed safely"
)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dingd::journal::{Batch, Journal, Table};
use dingd::sim::daemon::{self, API_TOKEN, Daemon};
use dingd::sim::dingtalk::{DingTalk, Group, Settings};
use dingd::sim::post::request;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

#[expect(dead_code, reason = "shared with another bench, which uses more of it")]
#[path = "load/measure.rs"]
mod measure;

use measure::{cpu_us, median};

const MESSAGES: usize = 30_000;
const CONNECTIONS: usize = 64;
const GROUPS: usize = 500;
const ROUNDS: usize = 3;
const CLIENT: &str = "--client";

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    if let Some(at) = arguments.iter().position(|argument| argument == CLIENT) {
        let [url, token] = [1, 2].map(|n| arguments.get(at + n).cloned().unwrap_or_default());
        return runtime.block_on(client(&url, &token));
    }
    let (mut rates, mut ratios) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        let (rate, daemon_us) = runtime.block_on(end_to_end())?;
        let client_us = runtime.block_on(bare_client())?;
        let journal_us = runtime.block_on(journal_alone())?;
        let ratio = daemon_us / (client_us + journal_us);
        println!(
            "{rate:.0} messages/s; CPU a message: daemon {daemon_us:.0} µs, bare client {client_us:.0} µs, journal alone {journal_us:.0} µs, ratio {ratio:.2}"
        );
        rates.push(rate);
        ratios.push(ratio);
    }
    println!(
        "median: {:.0} messages/s, ratio {:.2}",
        median(rates),
        median(ratios)
    );
    Ok(())
}

fn settings() -> Settings {
    let group = |n| Group {
        open_conversation_id: format!("cidBench{n:03}+on/Call7x5EeiodoA=="),
        title: format!("group {n}"),
        cool_app_installed: true,
        disbanded: false,
    };
    Settings {
        groups: (0..GROUPS).map(group).collect(),
        limits: false,
        ..Settings::default()
    }
}

async fn dingtalk() -> Result<(Settings, DingTalk), Error> {
    let settings = settings();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let box_ = DingTalk::start(settings.clone(), listener);
    Ok((settings, box_))
}

/// Messages a second, and the daemon's CPU for each in microseconds.
async fn end_to_end() -> Result<(f64, f64), Error> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let (settings, box_) = dingtalk().await?;
    let state = Daemon::state_dir(dir.path());
    let mut config = daemon::config(&settings, &box_.url(), None, &state);
    for limit in ["robot", "chat", "app_api", "egress"] {
        let table = format!("[limits.{limit}]\n");
        config = config.replace(
            &table,
            &format!("{table}count = 1000000\nreserve_critical = 0\n"),
        );
    }
    config.push_str("[outbound.digest]\nenabled = false\n[log]\nlevel = \"warn\"\n");
    let program = Path::new(env!("CARGO_BIN_EXE_dingd"));
    let daemon = Daemon::start(program, dir.path(), &config).await?;
    let address = daemon.api().trim_start_matches("http://").to_owned();
    let before_us = cpu_us(daemon.pid());
    let started = Instant::now();
    let next = Arc::new(AtomicUsize::new(0));
    let mut connections = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (address, next, settings) = (address.clone(), next.clone(), settings.clone());
        connections.spawn(async move {
            let body = |n: usize| {
                let chat = &settings.groups[n % GROUPS].open_conversation_id;
                json!({"app": "oncall", "to": {"chat": chat}, "content": content(n)}).to_string()
            };
            let bearer = format!("Bearer {API_TOKEN}");
            post_all(
                &address,
                "/v1/messages",
                ("authorization", &bearer),
                &next,
                body,
                202,
            )
            .await
        });
    }
    while let Some(done) = connections.join_next().await {
        done??;
    }
    while daemon.status().await?["queued"]["outbound"] != 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let took = started.elapsed();
    let used_us = cpu_us(daemon.pid()) - before_us;
    let delivered = box_.delivered().len();
    if delivered != MESSAGES {
        return Err(format!("{delivered} of {MESSAGES} messages arrived").into());
    }
    Ok((per_second(took), used_us / messages()))
}

fn content(n: usize) -> Value {
    json!({"markdown": {"title": format!("P2 host-{n} disk full"),
        "text": format!("### P2 host-{n}  \n  {}", "disk full, 3 % left. ".repeat(20))}})
}

/// CPU of a bare hyper client for one of the calls that the daemon makes, in microseconds.
async fn bare_client() -> Result<f64, Error> {
    let (settings, box_) = dingtalk().await?;
    let app = json!({"appKey": settings.app.client_id, "appSecret": settings.app.client_secret});
    let url = format!("{}/v1.0/oauth2/accessToken", box_.url());
    let token = request("POST", &url, &[], app.to_string()).await?;
    let token = token.json()["accessToken"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let output = tokio::process::Command::new(std::env::current_exe()?)
        .args([CLIENT, &box_.url(), &token])
        .output()
        .await?;
    let text = String::from_utf8(output.stdout)?;
    if box_.delivered().len() != MESSAGES {
        return Err(format!("the bare client: {text}").into());
    }
    Ok(text.trim().parse()?)
}

async fn client(url: &str, token: &str) -> Result<(), Error> {
    let address = url.trim_start_matches("http://").to_owned();
    let settings = settings();
    let before_us = cpu_us(std::process::id());
    let next = Arc::new(AtomicUsize::new(0));
    let mut connections = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (address, token, next) = (address.clone(), token.to_owned(), next.clone());
        let settings = settings.clone();
        connections.spawn(async move {
            let body = |n: usize| {
                let markdown = content(n)["markdown"].to_string();
                json!({"msgKey": "sampleMarkdown", "msgParam": markdown,
                    "openConversationId": settings.groups[n % GROUPS].open_conversation_id,
                    "robotCode": settings.app.robot_code, "coolAppCode": settings.app.cool_app_code})
                .to_string()
            };
            let header = ("x-acs-dingtalk-access-token", token.as_str());
            post_all(&address, "/v1.0/robot/groupMessages/send", header, &next, body, 200).await
        });
    }
    while let Some(done) = connections.join_next().await {
        done??;
    }
    println!("{}", (cpu_us(std::process::id()) - before_us) / messages());
    Ok(())
}

/// Posts on one connection until all are posted.
async fn post_all(
    address: &str,
    path: &str,
    (name, value): (&str, &str),
    next: &AtomicUsize,
    body: impl Fn(usize) -> String,
    expected: u16,
) -> Result<(), Error> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (mut send, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    loop {
        let n = next.fetch_add(1, Ordering::Relaxed);
        if n >= MESSAGES {
            return Ok(());
        }
        let request = Request::post(path)
            .header("host", address)
            .header("content-type", "application/json")
            .header(name, value)
            .body(Full::new(Bytes::from(body(n))))?;
        let answer = send.send_request(request).await?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await?.to_bytes();
        if status != expected {
            return Err(format!("HTTP {status}: {}", String::from_utf8_lossy(&body)).into());
        }
    }
}

/// CPU of the journal alone for the commits of one message, in microseconds.
async fn journal_alone() -> Result<f64, Error> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let journal = Journal::open(dir.path()).map_err(|error| error.to_string())?;
    let before_us = cpu_us(std::process::id());
    let next = Arc::new(AtomicUsize::new(0));
    let mut writers = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (journal, next) = (journal.clone(), next.clone());
        writers.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= MESSAGES {
                    return;
                }
                let key = (n as u64).to_be_bytes();
                let (payload, state, charge) = (vec![b'x'; 900], vec![b'x'; 500], vec![b'x'; 250]);
                let mut accepted = Batch::default();
                accepted.put(Table::OutboxPayload, key, payload);
                accepted.put(Table::OutboxLive, key, state.clone());
                let mut intent = Batch::default();
                intent.put(Table::OutboxLive, key, state.clone());
                intent.put(Table::Charges, key, charge.clone());
                let mut result = Batch::default();
                result.delete(Table::OutboxLive, key);
                result.put(Table::OutboxDone, key, state);
                result.put(Table::Charges, key, charge);
                for batch in [accepted, intent, result] {
                    if journal.commit(batch).await.is_err() {
                        return;
                    }
                }
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done?;
    }
    // While its threads live: those that have ended are not counted.
    let used_us = cpu_us(std::process::id()) - before_us;
    journal.close();
    Ok(used_us / messages())
}

fn per_second(took: Duration) -> f64 {
    messages() / took.as_secs_f64()
}

fn messages() -> f64 {
    f64::from(u32::try_from(MESSAGES).unwrap_or(u32::MAX))
}
