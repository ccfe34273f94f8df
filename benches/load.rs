//! The daemon under load, beside a bare hyper server (the ceiling) and qhook with SQLite (the nearest peer).
//!
//! `cargo bench --bench load` runs all of it in about two minutes; `-- start`, `-- closed`, `-- open`
//! run a part. Every server is a process of its own, started afresh for every round with an empty
//! store on the disk that the build lies on; the generator shares the machine with it.
//!
//! *Closed loop*: 64 keep-alive connections, each sending its next request when it has its answer;
//! after a warm-up the answers of a fixed time are counted. The servers take turns, and a ratio is the
//! median of the ratios of the rounds. The bare server reads the same bodies and answers "ok". dingd
//! has its default settings and no upstream; every callback is distinct and really sealed, and at the
//! end the daemon's own count of callbacks stored must be that of the 200s. qhook verifies an HMAC over
//! the same texts and stores them in SQLite, in a queue that nobody pulls; its count must agree too.
//! `DINGD_OTHER=<path of another build>` adds that binary to the turns.
//!
//! *Open loop*: 5,000 callbacks a second are due at even distances for 10 s, whatever the answers do;
//! a latency counts from the instant at which its callback was due. Single fdatasyncs of 4 KiB, in
//! place and appended, are measured on the same disk right before and after.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a bench measures time and reports on its output"
)]

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

#[path = "support/bare.rs"]
mod bare;
#[path = "support/callback.rs"]
mod callback;
#[path = "support/closed.rs"]
mod closed;
#[path = "load/generate.rs"]
mod generate;
#[path = "load/measure.rs"]
mod measure;
#[path = "load/servers.rs"]
mod servers;

use closed::{Requests, Round};
use measure::{Syncs, median, percentile};
use servers::{Certificate, Kind, Server};

const ROUNDS: usize = 5;
/// More than a round can use up on any machine of today; the round ends early if it does.
const CALLBACKS: usize = 200_000;
const OPEN_RATE: u32 = 5_000;
const OPEN_FOR: Duration = Duration::from_secs(10);
const STARTS: usize = 10;
const SYNCS: u64 = 300;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(at) = arguments.iter().position(|a| a == servers::SERVE_OK) {
        return servers::serve_ok(arguments.get(at + 1).map(Path::new));
    }
    let parts: Vec<_> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|named| *named == part);
    let certificate = Certificate::make()?;
    if wanted("start") {
        start(&certificate)?;
    }
    if wanted("closed") {
        closed_loop(&certificate);
    }
    if wanted("open") {
        open(&certificate)?;
    }
    Ok(())
}

fn start(certificate: &Certificate) -> io::Result<()> {
    let mut ready_ms = vec![];
    for _ in 0..STARTS {
        let server = Server::start(&Kind::Dingd { tls: true }, certificate)?;
        ready_ms.push(server.ready_after.as_secs_f64() * 1e3);
    }
    let server = Server::start(&Kind::Dingd { tls: true }, certificate)?;
    std::thread::sleep(Duration::from_secs(3));
    let idle_mib = measure::resident_mib(server.pid());
    let ready_ms = median(ready_ms);
    println!("start on an empty store, median of {STARTS}; resident 3 s later");
    target("exec to ready, ms", ready_ms, ready_ms <= 100.0, "≤ 100");
    target("idle resident, MiB", idle_mib, idle_mib <= 20.0, "≤ 20");
    println!();
    Ok(())
}

fn closed_loop(certificate: &Certificate) {
    let callbacks = Arc::new(generate::callbacks(CALLBACKS));
    let webhooks = Arc::new(generate::webhooks(CALLBACKS / 4));
    let other = std::env::var_os("DINGD_OTHER").map(PathBuf::from);
    let mut table = Table::default();
    for tls in [false, true] {
        table.add(Kind::Bare { tls });
        table.add(Kind::Dingd { tls });
        if let Some(path) = other.clone() {
            table.add(Kind::Other { path, tls });
        }
    }
    match servers::qhook() {
        Ok(path) => table.add(Kind::Qhook { path }),
        Err(error) => println!("qhook is not measured: {error}"),
    }
    for _ in 0..ROUNDS {
        for (kind, rounds) in &mut table.0 {
            let requests = match kind {
                Kind::Qhook { .. } => &webhooks,
                _ => &callbacks,
            };
            match one_round(kind, certificate, requests) {
                Ok(round) => rounds.push(round),
                Err(error) => println!("{}: {error}", kind.name()),
            }
        }
    }
    println!("closed loop, 64 connections, medians of {ROUNDS} rounds in turns");
    table.print();
    let dingd = |tls| move |kind: &Kind| *kind == Kind::Dingd { tls };
    for (name, tls) in [("dingd/bare, plain", false), ("dingd/bare, TLS", true)] {
        let share = table.ratio(dingd(tls), |kind| *kind == Kind::Bare { tls });
        target(name, share, share >= 0.30, "≥ 0.30");
    }
    let times = table.ratio(dingd(false), |kind| matches!(kind, Kind::Qhook { .. }));
    target("dingd/qhook", times, times >= 40.0, "≥ 40");
    println!();
}

/// What the rounds of each server came to.
#[derive(Default)]
struct Table(Vec<(Kind, Vec<Round>)>);

impl Table {
    fn add(&mut self, kind: Kind) {
        self.0.push((kind, vec![]));
    }

    fn rounds(&self, which: impl Fn(&Kind) -> bool) -> &[Round] {
        let found = self.0.iter().find(|(kind, _)| which(kind));
        found.map_or(&[], |(_, rounds)| rounds)
    }

    /// The median of the ratios of rounds that followed each other.
    fn ratio(&self, of: impl Fn(&Kind) -> bool, to: impl Fn(&Kind) -> bool) -> f64 {
        let pairs = self.rounds(of).iter().zip(self.rounds(to));
        median(pairs.map(|(a, b)| a.rate / b.rate).collect())
    }

    fn print(&self) {
        println!(
            "                       answers/s  of bare   p50 ms   p99 ms  server CPU us  MiB after"
        );
        for (kind, rounds) in &self.0 {
            let of = |value: fn(&Round) -> f64| median(rounds.iter().map(value).collect());
            println!(
                "{:22} {:9.0} {:8.3} {:8.2} {:8.2} {:14.1} {:10.1}",
                kind.name(),
                of(|round| round.rate),
                self.ratio(|k| k == kind, |k| *k == Kind::Bare { tls: kind.tls() }),
                of(|round| round.p50_ms),
                of(|round| round.p99_ms),
                of(|round| round.cpu_us),
                of(|round| round.resident_mib),
            );
        }
    }
}

fn one_round(
    kind: &Kind,
    certificate: &Certificate,
    requests: &Arc<Requests>,
) -> io::Result<Round> {
    let server = Server::start(kind, certificate)?;
    let tls = kind.tls().then(|| certificate.client());
    let again = matches!(kind, Kind::Bare { .. });
    let round = closed::closed_loop(server.target(), tls, requests, again)?;
    server.check(round.answered)?;
    Ok(round)
}

fn open(certificate: &Certificate) -> io::Result<()> {
    let total = OPEN_RATE as usize * usize::try_from(OPEN_FOR.as_secs()).unwrap_or(0);
    let callbacks = generate::callbacks(total);
    let server = Server::start(&Kind::Dingd { tls: false }, certificate)?;
    let mut syncs = Syncs::default();
    syncs.measure(SYNCS)?;
    let open = generate::open_loop(&server, &callbacks, OPEN_RATE)?;
    server.check(open.latencies_us.len())?;
    syncs.measure(SYNCS)?;
    let millis = |name: &str, mut times_us: Vec<u32>| {
        let [p50, p99, p999] =
            [50.0, 99.0, 99.9].map(|percent| percentile(&mut times_us, percent) / 1e3);
        println!("  {name:32} p50 {p50:6.2} ms, p99 {p99:6.2} ms, p99.9 {p999:6.2} ms");
        (p50, p99)
    };
    println!("open loop, {OPEN_RATE} callbacks a second for {OPEN_FOR:?}, all stored");
    let (_, p99) = millis("due to answered", open.latencies_us);
    millis("of which the generator was late", open.late_us);
    let (in_place, _) = millis("one fdatasync, 4 KiB in place", syncs.in_place_us);
    let (appended, _) = millis("one fdatasync, 4 KiB appended", syncs.appended_us);
    for (name, p50) in [
        ("p99 / fdatasync p50, in place", in_place),
        ("p99 / fdatasync p50, appended", appended),
    ] {
        target(name, p99 / p50, p99 / p50 <= 10.0, "≤ 10");
    }
    println!();
    Ok(())
}

fn target(name: &str, value: f64, reached: bool, bound: &str) {
    let verdict = if reached { "reached" } else { "MISSED" };
    println!("  target: {name}: {value:.2} ({bound}) {verdict}");
}
