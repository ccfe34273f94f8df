//! What a limit costs with 100,000 of them in use: time of one call, memory of one key.
//!
//! Memory is the growth of the resident set while the keys come into being, so allocator and map
//! overhead are in it.

#![expect(clippy::print_stdout, reason = "a bench reports on its output")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dingd::egress::breakers::Said;
use dingd::egress::limit::{Key, Kind, Limits, Rule, Rules};

const KEYS: u64 = 100_000;
const WINDOW_MS: u64 = 60_000;
const COUNT: u32 = 20;

fn limits() -> Limits {
    let rule = |count, window_ms| Rule {
        count,
        window_ms,
        reserve_critical: 0,
        margin_ms: 1_000,
        shadow: false,
    };
    Limits::new(Rules(
        [
            (Kind::Chat, rule(COUNT, WINDOW_MS)),
            (Kind::AppApi, rule(u32::MAX, 1_000)),
        ]
        .into(),
    ))
}

fn chat(n: u64) -> Key {
    // Spread as digests are.
    Key::new(Kind::Chat, n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn call(limits: &mut Limits, keys: &[Key], now_ms: u64) -> bool {
    let free = limits.acquire(keys, false, now_ms).is_ok();
    if free {
        limits.release(keys, Said::Nothing, now_ms, 0.5);
    }
    free
}

fn speed(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("limits_100k_keys");
    group.throughput(Throughput::Elements(1));
    // Calls to one key in a window: none (it has aged), or nearly as many as are allowed.
    for (name, per_window) in [("aged", 0), ("busy", u64::from(COUNT) - 1)] {
        let mut limits = limits();
        let per_ms = (KEYS * per_window / WINDOW_MS).max(1);
        let mut turn = 0_u64;
        let mut step = || {
            turn += 1;
            call(
                &mut limits,
                &[chat(turn % KEYS)],
                WINDOW_MS * 2 + turn / per_ms,
            )
        };
        for _ in 0..KEYS * per_window.max(1) {
            step();
        }
        group.bench_function(format!("acquire_release/{name}"), |bencher| {
            bencher.iter(|| black_box(step()));
        });
    }
    let mut full = limits();
    for turn in 0..KEYS * u64::from(COUNT) {
        call(&mut full, &[chat(turn % KEYS)], WINDOW_MS);
    }
    let mut turn = 0_u64;
    group.bench_function("refused", |bencher| {
        bencher.iter(|| {
            turn += 1;
            full.acquire(&[chat(turn % KEYS)], false, WINDOW_MS)
                .expect_err("full")
        });
    });
    group.finish();
}

fn memory(_: &mut Criterion) {
    for (name, calls) in [("after 1 call", 1), ("with a full window", COUNT)] {
        let before = resident_bytes();
        let mut limits = limits();
        for n in 0..KEYS {
            for _ in 0..calls {
                call(&mut limits, &[chat(n)], WINDOW_MS);
            }
        }
        let grown = resident_bytes().saturating_sub(before);
        println!("limits: {} bytes a key {name}", grown / KEYS);
        black_box(limits);
    }
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
        .map_or(0, |kib| kib * 1_024)
}

criterion_group!(benches, memory, speed);
criterion_main!(benches);
