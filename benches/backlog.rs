//! A long queue of messages: what it takes in memory, at a start and on disk; and whether the store
//! stays as it is while many messages pass through it.
//!
//! `cargo bench --bench backlog` runs both parts in some minutes; `-- held`, `-- churn` run one.
//! `DINGD_MESSAGES=<n>` takes another number than 1,000,000, for a quick try; `DINGD_LANES=<n>` spreads
//! the held ones over another number of lanes than 100; `DINGD_OTHER=<path of another build>` starts
//! that binary. Everything lies on the disk that the build lies on, and syncs are real.
//!
//! *Held*: the library's own journal and queue are filled with messages of 1 KiB of text to 100 custom
//! robots, a lane each, in batches of 256, and closed. The daemon of this build is started on that store as a
//! process of its own, with a DingTalk that refuses every connection; it tries, fails and waits as it
//! would. *Ready* is from exec to the first 200 of /ready, *resident* is VmRSS 5 s after that, *peak*
//! is VmHWM by then. The first start follows the library's clean close and is only reported; the ones
//! with targets follow a stop by SIGTERM, a SIGKILL of the idle daemon, and a SIGKILL while eight
//! clients are sending it more messages. *On disk* is what the file system has allocated for all of
//! `state_dir`, against the bytes of the payload and state records in it (those sent while busy count
//! like the others).
//!
//! *Churn*: messages of the same size are appended in batches of 100, one commit at a time; each batch
//! also finishes the oldest 100 beyond a depth of 10,000 and purges the 100 that the batch before
//! finished. On disk as above, and what it consists of: log and blocks taken ahead are of fixed size. The
//! 99th percentile of the commits of the last tenth is compared with that of the first. This is done
//! twice: as fast as it goes, where the percentile is how long the log waits for the tables, and with
//! a commit due every 10 ms, where a time counts from when it was due. Single fdatasyncs of 4 KiB are
//! measured right before and after, because the disk may have become slower meanwhile.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a bench measures time and reports on its output"
)]

use std::io;
use std::time::Duration;

#[path = "backlog/churn.rs"]
mod churn;
#[path = "backlog/daemon.rs"]
mod daemon;
#[path = "backlog/fill.rs"]
mod fill;

use daemon::Daemon;

const MESSAGES: u64 = 1_000_000;
/// After it is ready.
const SETTLE: Duration = Duration::from_secs(5);
const MIB: f64 = 1_048_576.0;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let parts: Vec<_> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|named| *named == part);
    let messages = number("DINGD_MESSAGES").unwrap_or(MESSAGES);
    if wanted("held") {
        held(messages, number("DINGD_LANES").unwrap_or(fill::ROBOTS))?;
    }
    if wanted("churn") {
        churn::run(messages)?;
    }
    Ok(())
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn held(messages: u64, lanes: u64) -> io::Result<()> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let state_dir = daemon::state_dir(dir.path())?;
    let filled_bytes = fill::fill(&state_dir, messages, lanes)?;
    println!(
        "{messages} messages held in {lanes} lanes, {:.0} MiB of records",
        mib(filled_bytes)
    );
    let start = |how: &str| {
        let daemon = Daemon::start(dir.path())?;
        std::thread::sleep(SETTLE);
        println!(
            "  {how}: ready {:.2} s, resident {:.1} MiB, peak {:.1} MiB, on disk {:.0} MiB",
            daemon.ready_after.as_secs_f64(),
            daemon.resident_mib(),
            daemon.peak_mib(),
            mib(daemon::allocated_bytes(&state_dir)?),
        );
        io::Result::Ok(daemon)
    };
    let judged = |how: &str, live_bytes: u64| {
        let daemon = start(how)?;
        let ready_s = daemon.ready_after.as_secs_f64();
        target("exec to ready, s", ready_s, ready_s <= 5.0, "≤ 5");
        let resident = daemon.resident_mib();
        target("resident, MiB", resident, resident <= 160.0, "≤ 160");
        let ratio = ratio(daemon::allocated_bytes(&state_dir)?, live_bytes);
        target("on disk / live bytes", ratio, ratio <= 1.6, "≤ 1.6");
        io::Result::Ok(daemon)
    };
    start("after the library's close")?.stop()?;
    judged("after a clean stop", filled_bytes)?.kill()?;
    let daemon = judged("after SIGKILL when idle", filled_bytes)?;
    let sent = daemon.kill_while_sending()?;
    println!("  {sent} more were accepted until it was killed");
    let live_bytes = filled_bytes + sent * (filled_bytes / messages);
    judged("after SIGKILL when busy", live_bytes)?.stop()?;
    println!();
    Ok(())
}

fn target(name: &str, value: f64, reached: bool, bound: &str) {
    let verdict = if reached { "reached" } else { "MISSED" };
    println!("    target: {name}: {value:.2} ({bound}) {verdict}");
}

#[expect(clippy::cast_precision_loss, reason = "shown with a few digits")]
fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b as f64
}

#[expect(clippy::cast_precision_loss, reason = "shown with a few digits")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB
}
