//! Randomness for jitter and names; not for secrets.

use std::cell::Cell;

thread_local! {
    static SEEDED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From now on the numbers of this thread follow from `seed`, so that a simulation can be repeated.
/// Only tests call this; without it the operating system gives the numbers.
pub fn seed_this_thread(seed: u64) {
    SEEDED.set(Some(seed));
}

/// A number in 0..=1.
pub fn share() -> f64 {
    f64::from(number()) / f64::from(u32::MAX)
}

/// Thirty-two random bits.
pub fn number() -> u32 {
    match SEEDED.get() {
        None => getrandom::u32().unwrap_or_default(),
        Some(state) => {
            let (next, number) = step(state);
            SEEDED.set(Some(next));
            number
        }
    }
}

/// SplitMix64: short, and good enough to scatter delays.
fn step(state: u64) -> (u64, u32) {
    let next = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = (next ^ next >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    let [high, low] = [mixed >> 32, mixed & 0xffff_ffff];
    (next, u32::try_from(high ^ low).unwrap_or_default())
}

/// `N` random bytes as letters and digits.
pub fn letters<const N: usize>(bytes: &[u8; N]) -> String {
    const SYMBOLS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    bytes
        .iter()
        .map(|byte| char::from(SYMBOLS.get(usize::from(byte % 62)).copied().unwrap_or(b'0')))
        .collect()
}

/// Twice sixteen random bytes.
pub fn halves() -> [[u8; 16]; 2] {
    let bytes = bytes::<32>();
    let (first, second) = bytes.split_at(16);
    [first, second].map(|half| half.try_into().unwrap_or_default())
}

/// `N` random bytes.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    if getrandom::fill(&mut bytes).is_err() {
        tracing::error!("the operating system gives no randomness");
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_numbers() {
        let numbers = |seed| {
            seed_this_thread(seed);
            [number(), number(), number()]
        };
        assert_eq!(numbers(7), numbers(7));
        assert_ne!(numbers(7), numbers(8));
    }
}
