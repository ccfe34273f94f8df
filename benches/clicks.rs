//! Clicks on cards: from the click to the platform's answer, and how many are verified and stored.
//!
//! `cargo bench --bench clicks` runs both in about two minutes; `-- one` and `-- many` run a part. The daemon,
//! the platform and a bare hyper server are processes of their own, the daemon with its default settings and an
//! empty store on the disk that the build lies on; whoever clicks shares the machine with them. A click has the
//! shape of the captures (inbound.md §4.1), is signed, and is one of its own; connections are kept alive.
//!
//! *One at a time*, with a pause before each in which all that the last one left is settled, in turns: the
//! commit alone (what the batch of a click holds, by the journal's own code in this process); the request sent
//! to the platform itself; a click where nobody is asked; clicks that a platform answers at once and after 5 ms.
//! The platform tells in its answer how long it had the event, and that is taken off each click. What is left
//! is what the daemon adds: the way through it and back, two more exchanges on loopback, and the commit. The
//! commit is not taken off, since no other measures just that one; what it takes alone is printed beside it.
//!
//! *Many*: 64 connections, each sending its next click when it has its answer; after a warm-up the answers of a
//! fixed time are counted. The servers take turns, and a ratio is the median of the ratios of the rounds. The
//! daemon's own count of callbacks stored must be that of the 200s, and where the platform answers, every click
//! must have had its answer.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a bench measures time and reports on its output"
)]

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

#[path = "support/bare.rs"]
mod bare;
#[path = "support/closed.rs"]
mod closed;
#[path = "load/measure.rs"]
#[expect(dead_code, reason = "other benches measure more")]
mod measure;
#[path = "clicks/one.rs"]
mod one;
#[path = "clicks/servers.rs"]
mod servers;

use closed::{Requests, Round};
use measure::median;
use servers::{Kind, Server};

/// With this argument the program is a bare server that answers "ok".
const SERVE_OK: &str = "--serve-ok";
/// With this argument it is a platform that answers after so many milliseconds.
const PLATFORM: &str = "--platform";
const ROUNDS: usize = 5;
/// More than a round can use up on any machine of today; the round ends early if it does.
const CLICKS: usize = 150_000;
const ADDED_MS: f64 = 2.0;
const RATE: f64 = 5_000.0;

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == SERVE_OK) {
        return Ok(bare::serve(None, async || Bytes::from_static(b"ok"))?);
    }
    if let Some(at) = arguments.iter().position(|argument| argument == PLATFORM) {
        let delay_ms = arguments.get(at + 1).ok_or("after how long?")?.parse()?;
        return Ok(platform(Duration::from_millis(delay_ms))?);
    }
    let parts: Vec<_> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|named| *named == part);
    if wanted("one") {
        one_at_a_time()?;
    }
    if wanted("many") {
        many()?;
    }
    Ok(())
}

/// Answers every event after `delay`, with how long it has had it in microseconds.
fn platform(delay: Duration) -> io::Result<()> {
    bare::serve(None, move || async move {
        let started = Instant::now();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let us = measure::micros(started);
        Bytes::from(format!(
            r#"{{"card":{{"data":{{"status":"acked","{}":"{us}"}},"private_data":{{"mine":"true"}}}}}}"#,
            one::OWN
        ))
    })
}

fn one_at_a_time() -> Result<(), Error> {
    let mut courses = one::Courses::default();
    for _ in 0..ROUNDS {
        courses.round()?;
    }
    let at = |name: &str, times_us: &mut Vec<u32>| {
        let [p50, p99] = [50.0, 99.0].map(|share| measure::percentile(times_us, share) / 1e3);
        println!("  {name:46} p50 {p50:6.3} ms, p99 {p99:6.2} ms");
        p50
    };
    println!(
        "one click at a time, {ROUNDS} rounds of {} each",
        one::CLICKS
    );
    at("the commit alone", &mut courses.commit_us);
    at("the platform, asked directly", &mut courses.direct_us);
    at("a click, nobody is asked", &mut courses.unasked_us);
    for course in &mut courses.asked {
        let delay_ms = course.delay_ms;
        at(
            &format!("a click, the platform takes {delay_ms} ms"),
            &mut course.whole_us,
        );
        at("  of which the platform's own time", &mut course.own_us);
        let p50 = at("  less that, with the commit", &mut course.added_us);
        target(
            "added, the commit included, p50, ms",
            p50,
            p50 <= ADDED_MS,
            "≤ 2",
        );
    }
    println!();
    Ok(())
}

fn many() -> Result<(), Error> {
    let clicks = Arc::new(servers::clicks(CLICKS));
    let mut table = Table(
        [Kind::Bare, Kind::Alone, Kind::Told, Kind::Answered]
            .map(|kind| (kind, vec![]))
            .into(),
    );
    for _ in 0..ROUNDS {
        for (kind, rounds) in &mut table.0 {
            rounds.push(one_round(*kind, &clicks)?);
        }
    }
    println!("many clicks at a time, 64 connections, medians of {ROUNDS} rounds in turns");
    table.print();
    for (name, kind) in [
        ("clicks/s, nobody is asked", Kind::Alone),
        ("clicks/s, the platform answers", Kind::Answered),
    ] {
        let rate = table.of(kind, |round| round.rate);
        target(name, rate, rate >= RATE, "≥ 5,000");
    }
    println!();
    Ok(())
}

fn one_round(kind: Kind, clicks: &Arc<Requests>) -> Result<Round, Error> {
    let server = Server::start(kind, 0)?;
    let round = closed::closed_loop(server.target(), None, clicks, kind == Kind::Bare)?;
    server.check(round.answered)?;
    Ok(round)
}

/// What the rounds of each server came to.
struct Table(Vec<(Kind, Vec<Round>)>);

impl Table {
    fn rounds(&self, which: Kind) -> &[Round] {
        let found = self.0.iter().find(|(kind, _)| *kind == which);
        found.map_or(&[], |(_, rounds)| rounds)
    }

    fn of(&self, which: Kind, value: fn(&Round) -> f64) -> f64 {
        median(self.rounds(which).iter().map(value).collect())
    }

    /// The median of the ratios of rounds that followed each other.
    fn of_bare(&self, which: Kind) -> f64 {
        let pairs = self.rounds(which).iter().zip(self.rounds(Kind::Bare));
        median(pairs.map(|(a, b)| a.rate / b.rate).collect())
    }

    fn print(&self) {
        println!(
            "                                answers/s  of bare   p50 ms   p99 ms  server CPU us  MiB after"
        );
        for (kind, _) in &self.0 {
            println!(
                "{:31} {:9.0} {:8.3} {:8.2} {:8.2} {:14.1} {:10.1}",
                kind.name(),
                self.of(*kind, |round| round.rate),
                self.of_bare(*kind),
                self.of(*kind, |round| round.p50_ms),
                self.of(*kind, |round| round.p99_ms),
                self.of(*kind, |round| round.cpu_us),
                self.of(*kind, |round| round.resident_mib),
            );
        }
    }
}

fn target(name: &str, value: f64, reached: bool, bound: &str) {
    let verdict = if reached { "reached" } else { "MISSED" };
    println!("  target: {name}: {value:.2} ({bound}) {verdict}");
}
