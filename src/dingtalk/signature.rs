//! How DingTalk and its clients sign.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha1::{Digest as _, Sha1};
use sha2::Sha256;

use crate::delivery::id::hex;

/// The signature of an event callback and of its reply: SHA-1 over the four texts in byte order,
/// without separators (inbound.md §1.3).
pub fn callback(token: &str, timestamp: &str, nonce: &str, encrypt: &str) -> String {
    let mut parts = [token, timestamp, nonce, encrypt];
    parts.sort_unstable();
    let mut hasher = Sha1::new();
    for part in parts {
        hasher.update(part.as_bytes());
    }
    hex(&hasher.finalize())
}

/// The `sign` parameter of a custom robot's URL, not yet percent-encoded (outbound.md §3.4). Valid
/// for an hour around `timestamp_ms`, so it is made at the moment of sending. With an app's client secret
/// it is the `sign` header of a message to the robot (inbound.md §3.1).
pub fn webhook(secret: &str, timestamp_ms: u64) -> String {
    STANDARD.encode(hmac_sha256(
        secret.as_bytes(),
        format!("{timestamp_ms}\n{secret}").as_bytes(),
    ))
}

/// The `x-ddpaas-signature` header of a card's callback (inbound.md §4.1).
pub fn card(secret: &str, timestamp_ms: u64) -> String {
    STANDARD.encode(hmac_sha256(
        secret.as_bytes(),
        timestamp_ms.to_string().as_bytes(),
    ))
}

/// HMAC-SHA256.
pub fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(message);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_webhook_signature_is_that_of_the_protocol_page() {
        let table = [
            (
                1_577_262_236_757,
                "this is secret",
                "hmPWwU+7lVdm3ZZz0r9tSfx0L4Q26jWOZr9+Gs6EZQM=",
            ),
            (
                1_700_000_000_000,
                "SEC0123456789abcdef",
                "TSZbRFUuvaSQaRKUpF970OPCb2/LcQAP3wOvwZIzBZk=",
            ),
        ];
        for (timestamp_ms, secret, sign) in table {
            assert_eq!(webhook(secret, timestamp_ms), sign);
        }
    }
}
