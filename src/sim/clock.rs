//! The box's time and chance: the only place of the simulator that asks the system for either.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The moment that windows and penalties are measured by.
#[expect(clippy::disallowed_methods, reason = "the box has its own clock")]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// Milliseconds since 1970, as they stand in signatures and events.
#[expect(clippy::disallowed_methods, reason = "the box has its own clock")]
pub(super) fn wall_ms() -> u64 {
    millis(
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default(),
    )
}

/// A duration in whole milliseconds.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Random bytes. Without a source of chance they are constant: a box has no secrets to protect,
/// and whoever needs distinct values adds a serial number.
pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0_u8; N];
    if getrandom::fill(&mut bytes).is_err() {
        bytes.fill(0x5a);
    }
    bytes
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| {
        DIGITS
            .get(usize::from(nibble))
            .copied()
            .map_or('0', char::from)
    };
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 0x0f)])
        .collect()
}
