//! Randomness for jitter and names; not for secrets.

/// A number in 0..=1.
pub fn share() -> f64 {
    f64::from(number()) / f64::from(u32::MAX)
}

/// Thirty-two random bits.
pub fn number() -> u32 {
    getrandom::u32().unwrap_or_default()
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
