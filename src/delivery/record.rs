//! The bytes of one record on disk: version, length, checksum, body.
//!
//! ```text
//! 0        version of the body's layout
//! 1..5     length of the body, big endian
//! 5..9     CRC-32 of the version and the body, big endian
//! 9..      body
//! ```
//! Engines check their own pages; this catches what they do not (a damaged page that still parses,
//! a value under the wrong key's length) and says which layout the body has.

/// The newest layout that this binary writes.
pub const VERSION: u8 = 1;
const HEAD_BYTES: usize = 9;

/// Why bytes are not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damaged {
    /// Shorter or longer than its head says.
    #[error("the record's length does not match")]
    Length,
    /// The checksum differs.
    #[error("the record's checksum does not match")]
    Checksum,
    /// Written by a newer release.
    #[error("the record has layout {0}, which this release does not know")]
    Version(u8),
    /// The frame is sound but the body is not what it should be.
    #[error("the record's body cannot be read")]
    Body,
}

/// Frames `body` for the disk.
pub fn frame(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_BYTES + body.len());
    out.extend_from_slice(&[0; HEAD_BYTES]);
    out.extend_from_slice(body);
    fill_head(&mut out);
    out
}

/// Writes the head of a record whose body is complete.
fn fill_head(record: &mut [u8]) {
    let Some((head, body)) = record.split_first_chunk_mut::<HEAD_BYTES>() else {
        return;
    };
    let [l0, l1, l2, l3] = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
    let [c0, c1, c2, c3] = checksum(VERSION, body).to_be_bytes();
    *head = [VERSION, l0, l1, l2, l3, c0, c1, c2, c3];
}

/// The body of a framed record.
pub fn unframe(bytes: &[u8]) -> Result<&[u8], Damaged> {
    let (head, body) = bytes.split_at_checked(HEAD_BYTES).ok_or(Damaged::Length)?;
    let [version, l0, l1, l2, l3, c0, c1, c2, c3] = *head else {
        return Err(Damaged::Length);
    };
    if u32::try_from(body.len()) != Ok(u32::from_be_bytes([l0, l1, l2, l3])) {
        return Err(Damaged::Length);
    }
    if checksum(version, body) != u32::from_be_bytes([c0, c1, c2, c3]) {
        return Err(Damaged::Checksum);
    }
    if version == VERSION {
        Ok(body)
    } else {
        Err(Damaged::Version(version))
    }
}

fn checksum(version: u8, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[version]);
    hasher.update(body);
    hasher.finalize()
}

/// Frames a value as JSON.
pub fn encode<T: serde::Serialize>(value: &T) -> Vec<u8> {
    encode_about(value, 247)
}

/// As [`encode`], with room for about `bytes` from the start.
pub fn encode_about<T: serde::Serialize>(value: &T, bytes: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_BYTES + bytes);
    out.extend_from_slice(&[0; HEAD_BYTES]);
    serde_json::to_writer(&mut out, value).expect("records have string keys and cannot fail");
    fill_head(&mut out);
    out
}

/// Reads what [`encode`] wrote.
pub fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Damaged> {
    serde_json::from_slice(unframe(bytes)?).map_err(|_| Damaged::Body)
}

/// The first of the records that stand one behind the other in `bytes`, and the rest.
pub fn split_first(bytes: &[u8]) -> Result<(&[u8], &[u8]), Damaged> {
    let length = bytes.get(1..5).and_then(|length| length.first_chunk());
    let length = u32::from_be_bytes(*length.ok_or(Damaged::Length)?);
    let end = usize::try_from(length)
        .ok()
        .and_then(|length| length.checked_add(HEAD_BYTES));
    end.and_then(|end| bytes.split_at_checked(end))
        .ok_or(Damaged::Length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back() {
        assert_eq!(unframe(&frame(b"")), Ok(&b""[..]));
        assert_eq!(decode::<Vec<u8>>(&encode(&vec![1, 2])), Ok(vec![1, 2]));
    }

    #[test]
    fn records_stand_one_behind_the_other() {
        let both = [frame(b"first"), frame(b"second")].concat();
        let (first, rest) = split_first(&both).unwrap();
        assert_eq!(
            (unframe(first), unframe(rest)),
            (Ok(&b"first"[..]), Ok(&b"second"[..]))
        );
        for cut in 0..first.len() {
            assert_eq!(
                split_first(&both[..cut]),
                Err(Damaged::Length),
                "cut at {cut}"
            );
        }
        let mut endless = frame(b"");
        endless[1..5].fill(0xff);
        assert_eq!(split_first(&endless), Err(Damaged::Length));
    }

    #[test]
    fn any_changed_or_missing_byte_is_noticed() {
        let good = frame(b"hello");
        for i in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[i] ^= 1 << bit;
                assert!(unframe(&bad).is_err(), "byte {i} bit {bit}");
            }
            assert!(unframe(&good[..i]).is_err(), "cut at {i}");
        }
    }

    #[test]
    fn a_newer_layout_is_named() {
        let mut newer = frame(b"x");
        newer[0] = 9;
        let sum = checksum(9, b"x").to_be_bytes();
        newer[5..9].copy_from_slice(&sum);
        assert_eq!(unframe(&newer), Err(Damaged::Version(9)));
    }
}
