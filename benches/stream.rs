//! Frames over one Stream connection, and what a connection holds that nothing happens on.
//!
//! `cargo bench --bench stream` takes about a minute. The gateway is a small one written from the protocol
//! page (inbound.md §5), in this process; it speaks TLS and shares the machine with the daemon, which has its
//! default settings and no upstream. Every frame is an event of its own, stored before it is acknowledged.
//!
//! *Closed*: 100 events are under way at a time, for 5 s; the acknowledgements that say `SUCCESS` are counted.
//! *Open*: 2,000 events a second are due at even distances for 5 s; a latency counts from when its event was
//! due. *Idle*: a daemon with 200 apps and as many connections against one with 200 apps and none.

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
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;

#[path = "stream/gateway.rs"]
mod gateway;
#[path = "load/measure.rs"]
#[expect(dead_code, reason = "other benches measure more")]
mod measure;

use gateway::{Certificate, Gateway, Socket};
use measure::{percentile, resident_mib};

const FOR: Duration = Duration::from_secs(5);
const UNDER_WAY: usize = 100;
const OPEN_RATE: u32 = 2_000;
const APPS: usize = 200;

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let dir = tempfile::tempdir()?;
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
    let program = Path::new(env!("CARGO_BIN_EXE_dingd"));
    let env = [("SSL_CERT_FILE", certificate.file())];
    Ok(Daemon::start_with(program, dir, &config, &env).await?)
}

async fn frames(gateway: &mut Gateway, certificate: &Certificate) -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let daemon = daemon(dir.path(), gateway, certificate, 1, 1).await?;
    let mut socket = gateway.next().await?;
    let done = closed(&mut socket).await?;
    let per_s = f64::from(u32::try_from(done)?) / FOR.as_secs_f64();
    println!("closed: {per_s:.0} events/s stored and acknowledged, {UNDER_WAY} under way");
    let mut latencies_us = open(&mut socket).await?;
    let mut at = |percent| percentile(&mut latencies_us, percent) / 1e3;
    let (p50, p99, slowest) = (at(50.0), at(99.0), at(100.0));
    println!(
        "open: {OPEN_RATE}/s, {} events: p50 {p50:.2} ms, p99 {p99:.2} ms, slowest {slowest:.2} ms",
        latencies_us.len()
    );
    drop(socket);
    drop(daemon);
    Ok(())
}

async fn closed(socket: &mut Socket) -> Result<usize, Error> {
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
        if started.elapsed() < FOR {
            socket.send(event(sent)).await?;
            sent += 1;
        }
    }
    Ok(done)
}

/// Sends at a fixed rate, reads meanwhile; the latencies in microseconds.
async fn open(socket: &mut Socket) -> Result<Vec<u32>, Error> {
    let every = Duration::from_secs(1) / OPEN_RATE;
    let all = OPEN_RATE * u32::try_from(FOR.as_secs())?;
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
    let mut mib = vec![];
    for streams in [0, APPS] {
        let dir = tempfile::tempdir()?;
        let daemon = daemon(dir.path(), gateway, certificate, APPS, streams).await?;
        let mut sockets = vec![];
        for _ in 0..streams {
            sockets.push(gateway.next().await?);
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        mib.push(resident_mib(daemon.pid()));
        drop(sockets);
    }
    let [without, with] = mib[..] else {
        return Err("two daemons".into());
    };
    let each_kib = (with - without) * 1_024.0 / f64::from(u32::try_from(APPS)?);
    println!(
        "idle: {without:.1} MiB without and {with:.1} MiB with {APPS} connections (TLS): {each_kib:.0} KiB each"
    );
    Ok(())
}
