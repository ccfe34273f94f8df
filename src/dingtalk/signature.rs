//! How DingTalk and its clients sign.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha1::{Digest as _, Sha1};
use sha2::Sha256;

use super::envelope::percent_decode;
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

/// The `signature` of a page's `dd.config` (inbound.md §6): over the page's URL without its fragment and with
/// its query decoded. For pages of our own only, never for a URL that somebody asks for.
pub fn jsapi(ticket: &str, nonce: &str, timestamp_s: &str, url: &str) -> String {
    let page = url.split('#').next().unwrap_or_default();
    let page = match page.split_once('?') {
        Some((path, query)) => match percent_decode(query) {
            Some(query) => format!("{path}?{query}"),
            None => page.to_owned(),
        },
        None => page.to_owned(),
    };
    let text = format!("jsapi_ticket={ticket}&noncestr={nonce}&timestamp={timestamp_s}&url={page}");
    hex(&Sha256::digest(text.as_bytes()))
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

    #[test]
    fn the_signature_of_a_page_is_that_of_the_vectors() {
        let file = include_str!("../../tests/vectors/jsapi-sign.json");
        let file: serde_json::Value = serde_json::from_str(file).unwrap();
        let vectors = file["vectors"].as_array().unwrap();
        assert_eq!(vectors.len(), 3);
        for vector in vectors {
            let text = |name: &str| vector[name].as_str().unwrap().to_owned();
            let signed = |url: &str| {
                let (ticket, nonce) = (text("jsapi_ticket"), text("nonceStr"));
                jsapi(&ticket, &nonce, &text("timeStamp"), url)
            };
            let (url, expected) = (text("url"), text("sha256"));
            assert_eq!(signed(&url), expected);
            let as_sent = url.replace("值班", "%E5%80%BC%E7%8F%AD") + "#top";
            assert_eq!(signed(&as_sent), expected);
        }
    }
}
