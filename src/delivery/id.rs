//! What a message and an event are called.
//!
//! A message's id is 128 bits written as 26 characters of Crockford's base 32, behind `msg_`:
//! 48 bits of acceptance time in milliseconds, 16 random bits, 64 bits of its sequence number. So ids
//! sort by age, cannot be guessed from one another, and lead to their record without an index.
//! An event's id is `evt_` and 32 hex digits of a digest, because an event that is re-sent must get
//! the same id again.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const DIGITS: usize = 26;

/// The id of an accepted message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct MessageId(u128);

/// Text that is not a message id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message id is `msg_` and 26 characters of 0-9 and A-Z without I, L, O and U")]
pub struct NotAnId;

impl MessageId {
    /// The id of the message with sequence number `seq`, accepted at `wall_ms`.
    pub fn new(wall_ms: u64, random: u16, seq: u64) -> Self {
        let ms = u128::from(wall_ms & 0xffff_ffff_ffff);
        Self(ms << 80 | u128::from(random) << 64 | u128::from(seq))
    }

    /// The sequence number: the key of its record.
    pub fn seq(self) -> u64 {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the lower 64 bits are the number"
        )]
        let seq = self.0 as u64;
        seq
    }

    /// A UUID-shaped name (32 hex digits) that never changes: DingTalk's `msgUuid` for part `part`.
    pub fn msg_uuid(self, part: usize) -> String {
        hex(&start(&Sha256::digest(format!("{self}/{part}")).into()))
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("msg_")?;
        for digit in (0..DIGITS).rev() {
            let index = usize::try_from(self.0 >> (digit * 5) & 31).unwrap_or_default();
            let symbol = ALPHABET.get(index).copied().unwrap_or(b'0');
            write!(f, "{}", char::from(symbol))?;
        }
        Ok(())
    }
}

impl From<MessageId> for String {
    fn from(id: MessageId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for MessageId {
    type Error = NotAnId;

    fn try_from(text: String) -> Result<Self, NotAnId> {
        text.parse()
    }
}

impl FromStr for MessageId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        let digits = text.strip_prefix("msg_").ok_or(NotAnId)?;
        if digits.len() != DIGITS || !digits.starts_with(|c: char| ('0'..='7').contains(&c)) {
            return Err(NotAnId);
        }
        let mut value = 0_u128;
        for symbol in digits.bytes() {
            let digit = ALPHABET
                .iter()
                .position(|known| *known == symbol)
                .ok_or(NotAnId)?;
            value = value << 5 | digit as u128;
        }
        Ok(Self(value))
    }
}

/// The id of an event: a digest of what makes it the same event.
pub fn event_id(key: &[u8; 16]) -> String {
    format!("evt_{}", hex(key))
}

/// The first 16 bytes of the SHA-256 of `parts`, each preceded by its length so that no two lists
/// of parts run together.
pub fn digest(parts: &[&[u8]]) -> [u8; 16] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    start(&hasher.finalize().into())
}

/// The first 8 bytes of [`digest`] as a number.
pub fn short_digest(parts: &[&[u8]]) -> u64 {
    digest(parts)
        .first_chunk::<8>()
        .map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

fn start(digest: &[u8; 32]) -> [u8; 16] {
    *digest.first_chunk::<16>().expect("32 bytes hold 16")
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
            for nibble in [byte >> 4, byte & 15] {
                out.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
            }
            out
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_back_and_leads_to_its_number() {
        let id = MessageId::new(1_763_798_400_120, 0xbeef, 42);
        let text = id.to_string();
        assert_eq!(text.len(), 30);
        assert_eq!(text.parse(), Ok(id));
        assert_eq!(id.seq(), 42);
    }

    #[test]
    fn later_ids_sort_behind_earlier_ones() {
        assert!(
            MessageId::new(1, 9, 9).to_string() < MessageId::new(2, 0, 1).to_string(),
            "time comes first"
        );
    }

    #[test]
    fn what_is_not_an_id_is_refused() {
        let good = MessageId::new(1_763_798_400_120, 0xbeef, u64::MAX).to_string();
        for bad in [
            "",
            "msg_",
            "evt_1",
            good.trim_end_matches(char::is_alphanumeric),
            &format!("{good}0"),
            &good.to_lowercase(),
        ] {
            assert_eq!(bad.parse::<MessageId>(), Err(NotAnId), "{bad}");
        }
        assert!(
            "msg_Z0000000000000000000000000"
                .parse::<MessageId>()
                .is_err(),
            "130 bits"
        );
    }

    #[test]
    fn parts_of_a_digest_do_not_run_together() {
        assert_ne!(digest(&[b"ab", b"c"]), digest(&[b"a", b"bc"]));
    }
}
