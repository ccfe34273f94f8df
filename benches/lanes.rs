//! What a turn costs with much or little waiting: a decision, its end, and a new message in its place.
//!
//! `cargo bench --bench lanes`. Messages wait in a thousand lanes, so that a turn finds the next one
//! due; the two sizes take turns in one run, and the median of their ratios is printed.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a bench measures time and reports on its output"
)]

use std::hint::black_box;
use std::time::Instant;

use dingd::delivery::lanes::{Landed, Lanes};
use dingd::delivery::state::Priority;

const LANES: u64 = 1_000;
const TURNS: u64 = 300_000;
const ROUNDS: usize = 7;

fn main() {
    let (mut few, mut many) = (filled(1_000), filled(1_000_000));
    let mut ratios = vec![];
    for _ in 0..ROUNDS {
        let (few_ns, many_ns) = (turns_ns(&mut few), turns_ns(&mut many));
        println!("a turn with 1,000 waiting {few_ns:.0} ns, with 1,000,000 {many_ns:.0} ns");
        ratios.push(many_ns / few_ns);
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios.get(ROUNDS / 2).copied().unwrap_or(f64::NAN);
    println!("median ratio {median:.2}");
}

fn filled(waiting: u64) -> Lanes<u64, u64, u64> {
    let mut lanes = Lanes::default();
    for item in 0..waiting {
        lanes.push(&(item % LANES), Priority::Normal, item, 0);
    }
    lanes
}

fn turns_ns(lanes: &mut Lanes<u64, u64, u64>) -> f64 {
    let started = Instant::now();
    for _ in 0..TURNS {
        let Some((id, item)) = lanes.next(0) else {
            return f64::NAN;
        };
        lanes.fly(id);
        lanes.push(&(item % LANES), Priority::Normal, item, 0);
        lanes.land(id, Landed::Settled, 0);
        black_box(item);
    }
    started.elapsed().as_secs_f64() * 1e9 / f64::from(u32::try_from(TURNS).unwrap_or(u32::MAX))
}
