//! Frames over one Stream connection, and what a connection holds that nothing happens on.
//!
//! `cargo bench --bench stream` takes about a minute. The gateway is a small one written from the protocol
//! page (inbound.md §5), in this process; it speaks TLS and shares the machine with the daemon, which has its
//! default settings, no upstream, and its store on the disk that the build lies on. Every frame is an event of
//! its own, stored before it is acknowledged.
//!
//! *Closed*: 100 events are under way at a time, for 3 s; the acknowledgements that say `SUCCESS` are counted,
//! and the daemon's own count of events stored must be theirs. The daemon takes turns with a bare client, a
//! process that reads each frame from the same library and sends one and the same acknowledgement: as much as
//! the gateway and the wire allow. *Open*: 2,000 events a second are due at even distances for 5 s; a latency
//! counts from when its event was due. *Idle*: a daemon with 200 apps and as many connections against one with
//! 200 apps and none, each after 8 s in which pooled connections have ended; then each connection carries one
//! frame of 200 KiB, which is answered and not stored, and is idle again.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::indexing_slicing,
    reason = "a bench measures time and reports on its output; a JSON value is indexed safely"
)]

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use dingd::sim::daemon::Daemon;
use dingd::sim::post::request;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;

#[path = "stream/bare.rs"]
mod bare;
#[path = "stream/gateway.rs"]
mod gateway;
#[path = "load/measure.rs"]
#[expect(dead_code, reason = "other benches measure more")]
mod measure;

use gateway::{Certificate, Gateway, Socket};
use measure::{cpu_us, median, percentile, resident_mib};

/// With this argument the program is the bare client of a gateway's port, with a certificate's file.
const BARE: &str = "--bare-client";
const ROUNDS: usize = 5;
const CLOSED_FOR: Duration = Duration::from_secs(3);
const OPEN_FOR: Duration = Duration::from_secs(5);
const IDLE_FOR: Duration = Duration::from_secs(8);
const UNDER_WAY: usize = 100;
const OPEN_RATE: u32 = 2_000;
const APPS: usize = 200;

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == BARE) {
        let [port, file] = [1, 2].map(|n| arguments.get(at + n).cloned().unwrap_or_default());
        return runtime.block_on(bare::client(&port, Path::new(&file)));
    }
    runtime.block_on(async {
        let dir = tempdir()?;
        let certificate = Certificate::make(dir.path())?;
        let mut gateway = Gateway::start(&certificate).await?;
        frames(&mut gateway, &certificate).await?;
        idle(&mut gateway, &certificate).await
    })
}

/// A daemon with so many apps, of which the first `streams` have a connection.
async fn daemon(
    dir: &Path,
    gateway: &Gateway,
    certificate: &Certificate,
    apps: usize,
    streams: usize,
) -> Result<Daemon, Error> {
    let mut config = format!(
        "state_dir = \"{}\"\n[callbacks]\nlisten = \"127.0.0.1:0\"\ntls = false\n\
         [api]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [egress]\napi_url = \"{}\"\n[log]\nlevel = \"warn\"\n",
        Daemon::state_dir(dir).display(),
        gateway.url()
    );
    for app in 0..apps {
        config.push_str(&format!(
            "[[apps]]\nname = \"app-{app}\"\ncorp_id = \"corp\"\nclient_id = \"client-{app}\"\n\
             client_secret = \"secret\"\n[apps.stream]\nenabled = {}\n",
            app < streams
        ));
    }
    let program = std::env::var_os("DINGD_OTHER");
    let program = program.unwrap_or_else(|| env!("CARGO_BIN_EXE_dingd").into());
    let env = [("SSL_CERT_FILE", certificate.file())];
    Ok(Daemon::start_with(Path::new(&program), dir, &config, &env).await?)
}

fn tempdir() -> std::io::Result<tempfile::TempDir> {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))
}

async fn frames(gateway: &mut Gateway, certificate: &Certificate) -> Result<(), Error> {
    let (mut rates, mut bare_rates, mut costs_us) = (vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        let dir = tempdir()?;
        let mut daemon = daemon(dir.path(), gateway, certificate, 1, 1).await?;
        let mut socket = gateway.next().await?;
        let before_us = cpu_us(daemon.pid());
        let (done, rate) = closed(&mut socket).await?;
        costs_us.push((cpu_us(daemon.pid()) - before_us) / f64::from(done));
        rates.push(rate);
        check(&daemon, done).await?;
        let mut client = gateway.bare_client(certificate)?;
        bare_rates.push(closed(&mut gateway.next().await?).await?.1);
        client.kill().await?;
        // Before its connection ends: it would open another.
        daemon.kill().await;
    }
    let of_bare = rates
        .iter()
        .zip(&bare_rates)
        .map(|(rate, bare)| rate / bare);
    let of_bare = median(of_bare.collect());
    let (rate, bare_rate) = (median(rates), median(bare_rates));
    println!("closed, {UNDER_WAY} events under way, medians of {ROUNDS} rounds in turns");
    println!("  a bare client that acknowledges what it has not read: {bare_rate:.0} frames/s");
    println!(
        "  dingd, stored and acknowledged: {rate:.0} frames/s, {of_bare:.2} of bare, {:.1} µs of CPU each",
        median(costs_us)
    );
    let goal = f64::from(OPEN_RATE);
    target("frames/s on one connection", rate, rate >= goal, "≥ 2,000");
    let dir = tempdir()?;
    let mut daemon = daemon(dir.path(), gateway, certificate, 1, 1).await?;
    let mut socket = gateway.next().await?;
    let mut latencies_us = open(&mut socket).await?;
    check(&daemon, u32::try_from(latencies_us.len())?).await?;
    daemon.kill().await;
    let mut at = |percent| percentile(&mut latencies_us, percent) / 1e3;
    let (p50, p99, slowest) = (at(50.0), at(99.0), at(100.0));
    println!("open, {OPEN_RATE} events a second for {OPEN_FOR:?}, all stored");
    println!("  due to acknowledged: p50 {p50:.2} ms, p99 {p99:.2} ms, slowest {slowest:.2} ms");
    Ok(())
}

/// Compares the daemon's own count of events stored with that of the acknowledgements.
async fn check(daemon: &Daemon, done: u32) -> Result<(), Error> {
    let url = format!("{}/metrics", daemon.admin());
    let metrics = request("GET", &url, &[], String::new()).await?.body;
    let counter = r#"dingd_stream_frames_total{type="event",result="stored"}"#;
    let counted = metrics
        .lines()
        .find_map(|line| line.strip_prefix(counter)?.trim().parse::<u32>().ok());
    if counted == Some(done) {
        return Ok(());
    }
    Err(format!("{done} acknowledged and {counted:?} counted as stored").into())
}

fn target(name: &str, value: f64, reached: bool, bound: &str) {
    let verdict = if reached { "reached" } else { "MISSED" };
    println!("  target: {name}: {value:.0} ({bound}) {verdict}");
}

/// How many were acknowledged, and how many of them a second.
async fn closed(socket: &mut Socket) -> Result<(u32, f64), Error> {
    let started = Instant::now();
    let mut sent = 0;
    for _ in 0..UNDER_WAY {
        socket.feed(event(sent)).await?;
        sent += 1;
    }
    socket.flush().await?;
    let mut done = 0;
    while done < sent {
        stored(socket).await?;
        done += 1;
        if started.elapsed() < CLOSED_FOR {
            socket.send(event(sent)).await?;
            sent += 1;
        }
    }
    let done = u32::try_from(done)?;
    Ok((done, f64::from(done) / started.elapsed().as_secs_f64()))
}

/// Sends at a fixed rate, reads meanwhile; the latencies in microseconds.
async fn open(socket: &mut Socket) -> Result<Vec<u32>, Error> {
    let every = Duration::from_secs(1) / OPEN_RATE;
    let all = OPEN_RATE * u32::try_from(OPEN_FOR.as_secs())?;
    let started = Instant::now();
    let mut due_at = HashMap::new();
    let mut latencies_us = vec![];
    let mut sent = 0;
    while latencies_us.len() < all as usize {
        let due = started + every * sent;
        tokio::select! {
            () = tokio::time::sleep_until(due.into()), if sent < all => {
                // Timers are coarse: everything that is due by now.
                while sent < all && started + every * sent <= Instant::now() {
                    // Not those of the closed part.
                    let number = 1 << 32 | sent as usize;
                    due_at.insert(id(number), started + every * sent);
                    socket.feed(event(number)).await?;
                    sent += 1;
                }
                socket.flush().await?;
            }
            id = stored(socket) => {
                if let Some(due) = due_at.remove(&id?) {
                    latencies_us.push(u32::try_from(due.elapsed().as_micros())?);
                }
            }
        }
    }
    Ok(latencies_us)
}

fn id(number: usize) -> String {
    format!("m-{number}")
}

fn event(number: usize) -> Message {
    let text = "0123456789abcdef".repeat(24);
    let frame = format!(
        r#"{{"specVersion":"1.0","type":"EVENT","headers":{{"topic":"*","messageId":"m-{number}","contentType":"application/json","time":"1760000000231","eventId":"e{number:031}","eventType":"bpms_instance_change","eventCorpId":"corp","eventBornTime":"1760000000102"}},"data":"{{\"number\":{number},\"text\":\"{text}\"}}"}}"#
    );
    Message::text(frame)
}

/// A frame of 200 KiB that is answered and not stored: nobody takes its topic.
fn long(number: usize) -> Message {
    let text = "0123456789abcdef".repeat(12_800);
    let frame = format!(
        r#"{{"specVersion":"1.0","type":"CALLBACK","headers":{{"topic":"/v1.0/none","messageId":"m-{number}"}},"data":"{text}"}}"#
    );
    Message::text(frame)
}

/// The next acknowledgement: which frame it is for.
async fn stored(socket: &mut Socket) -> Result<String, Error> {
    loop {
        let message = socket.next().await.ok_or("the daemon hung up")??;
        let Message::Text(text) = message else {
            continue;
        };
        let ack: Value = serde_json::from_str(text.as_str())?;
        if ack["code"] != 200 || !ack["data"].to_string().contains("SUCCESS") {
            return Err(format!("not stored: {text}").into());
        }
        return Ok(ack["headers"]["messageId"]
            .as_str()
            .unwrap_or_default()
            .to_owned());
    }
}

async fn idle(gateway: &mut Gateway, certificate: &Certificate) -> Result<(), Error> {
    let (mut mib, mut used_mib) = (vec![], f64::NAN);
    for streams in [0, APPS] {
        let dir = tempdir()?;
        let mut daemon = daemon(dir.path(), gateway, certificate, APPS, streams).await?;
        let mut sockets = vec![];
        for _ in 0..streams {
            sockets.push(gateway.next().await?);
        }
        tokio::time::sleep(IDLE_FOR).await;
        mib.push(resident_mib(daemon.pid()));
        for (number, socket) in sockets.iter_mut().enumerate() {
            socket.send(long(number)).await?;
            socket.next().await.ok_or("the daemon hung up")??;
        }
        tokio::time::sleep(IDLE_FOR).await;
        used_mib = resident_mib(daemon.pid());
        daemon.kill().await;
    }
    let [without, with] = mib[..] else {
        return Err("two daemons".into());
    };
    let each_kib = |mib| (mib - without) * 1_024.0 / f64::from(u32::try_from(APPS).unwrap_or(1));
    println!(
        "idle, {APPS} apps: {without:.1} MiB resident without a connection, {with:.1} with {APPS} over TLS"
    );
    let each = each_kib(with);
    target("KiB per connection", each, each <= 200.0, "≤ 200");
    println!(
        "  one that has carried a frame of 200 KiB keeps a buffer for it: {:.0} KiB",
        each_kib(used_mib)
    );
    Ok(())
}
