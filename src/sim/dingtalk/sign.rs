//! Signatures under what the box sends of its own accord: right ones, and spoilt ones.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::sim::clock;

/// How a click or a robot message is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Signed {
    /// As DingTalk does it.
    #[default]
    Rightly,
    /// Not at all: the headers are missing.
    Not,
    /// With another secret.
    Wrongly,
    /// Rightly, so many milliseconds ago; a negative number lies ahead.
    Aged(i64),
}

type Headers = Vec<(&'static str, String)>;

impl Signed {
    fn timestamp(self) -> u64 {
        let now = clock::wall_ms();
        match self {
            Self::Aged(ms) if ms >= 0 => now.saturating_sub(ms.unsigned_abs()),
            Self::Aged(ms) => now.saturating_add(ms.unsigned_abs()),
            _ => now,
        }
    }

    fn secret(self, secret: &str) -> String {
        if self == Self::Wrongly {
            format!("not-{secret}")
        } else {
            secret.to_owned()
        }
    }

    /// The headers of a robot message, signed with the Client Secret.
    pub fn robot(self, client_secret: &str) -> Headers {
        if self == Self::Not {
            return Headers::new();
        }
        let timestamp = self.timestamp().to_string();
        let sign = robot(&timestamp, &self.secret(client_secret));
        vec![("timestamp", timestamp), ("sign", sign)]
    }

    /// The headers of a click; a route without a secret gets none.
    pub fn card(self, api_secret: Option<&str>) -> Headers {
        let (Some(secret), false) = (api_secret, self == Self::Not) else {
            return Headers::new();
        };
        let timestamp = self.timestamp().to_string();
        let signature = card(&timestamp, &self.secret(secret));
        vec![
            ("x-ddpaas-signature-timestamp", timestamp),
            ("x-ddpaas-signature", signature),
        ]
    }
}

/// Base64 of HMAC-SHA256 over `timestamp LF secret`, keyed with the secret. The same scheme signs
/// what goes to a custom robot and what comes from the app's robot.
pub(super) fn robot(timestamp: &str, secret: &str) -> String {
    hmac(secret, &format!("{timestamp}\n{secret}"))
}

/// Base64 of HMAC-SHA256 over the timestamp alone: a card's scheme.
pub(super) fn card(timestamp: &str, secret: &str) -> String {
    hmac(secret, timestamp)
}

fn hmac(key: &str, message: &str) -> String {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(message.as_bytes());
    STANDARD.encode(mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn vectors(text: &str) -> Vec<Value> {
        let file: Value = serde_json::from_str(text).unwrap();
        file["vectors"].as_array().unwrap().clone()
    }

    #[test]
    fn the_published_signatures_come_out() {
        assert_eq!(
            robot("1577262236757", "this is secret"),
            "hmPWwU+7lVdm3ZZz0r9tSfx0L4Q26jWOZr9+Gs6EZQM="
        );
        assert_eq!(
            robot("1700000000000", "SEC0123456789abcdef"),
            "TSZbRFUuvaSQaRKUpF970OPCb2/LcQAP3wOvwZIzBZk="
        );
    }

    /// A vector may be refused for its age alone; then its signature is the right one.
    #[test]
    fn the_shared_robot_vectors_are_signed_as_the_box_signs() {
        let file = include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/vectors/robot-sign.json"
        ));
        let by_age = ["robot-stale", "robot-future", "robot-seconds"];
        for vector in vectors(file) {
            let id = vector["id"].as_str().unwrap();
            let header = |name: &str| vector["headers"][name].as_str().unwrap();
            let own = robot(header("timestamp"), vector["app_secret"].as_str().unwrap());
            let right = vector["expect"]["result"] == "accept" || by_age.contains(&id);
            assert_eq!(own == header("sign"), right, "{id}");
        }
    }

    #[test]
    fn the_shared_card_vectors_are_signed_as_the_box_signs() {
        let file = include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/vectors/card-sign.json"
        ));
        for vector in vectors(file) {
            let id = vector["id"].as_str().unwrap();
            let header = |name: &str| vector["headers"][name].as_str().unwrap();
            let timestamp = header("x-ddpaas-signature-timestamp");
            let own = card(timestamp, vector["api_secret"].as_str().unwrap());
            let right = vector["expect"]["result"] == "accept";
            assert_eq!(own == header("x-ddpaas-signature"), right, "{id}");
        }
    }
}
