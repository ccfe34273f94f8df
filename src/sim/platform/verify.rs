//! Whether an event is genuine (Standard Webhooks) and well shaped (CloudEvents 1.0).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::Value;
use sha2::Sha256;

const TOLERANCE_S: u64 = 300;

/// The key that platform and daemon share.
pub(super) struct Key(Vec<u8>);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// Reads `whsec_` and base64.
    pub(super) fn parse(secret: &str) -> Option<Self> {
        STANDARD
            .decode(secret.strip_prefix("whsec_")?)
            .ok()
            .map(Self)
    }

    fn signs(&self, id: &str, timestamp: &str, body: &[u8], signature: &[u8]) -> bool {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            mac.update(part);
        }
        mac.verify_slice(signature).is_ok()
    }
}

/// The parts of a request that say whether it is genuine.
#[derive(Debug)]
pub(super) struct Envelope {
    pub(super) method: String,
    pub(super) content_type: Option<String>,
    pub(super) id: Option<String>,
    pub(super) timestamp: Option<String>,
    pub(super) signature: Option<String>,
    pub(super) body: Bytes,
}

impl Envelope {
    /// The first thing that is wrong, if any.
    pub(super) fn verify(&self, key: Option<&Key>, now_s: u64) -> Result<(), String> {
        if self.method != "POST" {
            return Err(format!("method {}", self.method));
        }
        let id = self
            .id
            .as_deref()
            .filter(|id| !id.is_empty())
            .ok_or("no webhook-id")?;
        if id.contains('.') {
            // The signed text is joined by dots: an id with one could be read in two ways.
            return Err("webhook-id contains a dot".to_owned());
        }
        let timestamp = self.timestamp.as_deref().ok_or("no webhook-timestamp")?;
        let at: u64 = timestamp
            .parse()
            .map_err(|_| "webhook-timestamp is not whole seconds".to_owned())?;
        if now_s.abs_diff(at) > TOLERANCE_S {
            return Err("webhook-timestamp is more than 5 minutes off".to_owned());
        }
        let header = self.signature.as_deref().ok_or("no webhook-signature")?;
        let key = key.ok_or("the platform itself has no usable secret")?;
        let genuine = header
            .split(' ')
            .filter_map(|one| one.strip_prefix("v1,"))
            .any(|one| {
                STANDARD
                    .decode(one)
                    .is_ok_and(|sign| key.signs(id, timestamp, &self.body, &sign))
            });
        if !genuine {
            return Err("no webhook-signature fits".to_owned());
        }
        self.shape(id)
    }

    fn shape(&self, id: &str) -> Result<(), String> {
        let media = self.content_type.as_deref().unwrap_or_default();
        let media = media.split(';').next().unwrap_or_default().trim();
        if !media.eq_ignore_ascii_case("application/cloudevents+json") {
            return Err(format!("content type {media:?}"));
        }
        let event: Value =
            serde_json::from_slice(&self.body).map_err(|error| format!("json: {error}"))?;
        let member = |name: &str| {
            event
                .get(name)
                .and_then(Value::as_str)
                .filter(|text| !text.is_empty())
                .ok_or_else(|| format!("no {name}"))
        };
        if member("specversion")? != "1.0" {
            return Err("specversion is not 1.0".to_owned());
        }
        if member("id")? != id {
            return Err("id differs from webhook-id".to_owned());
        }
        for name in ["source", "type", "time"] {
            member(name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_760_000_000;
    const EVENT: &str = r#"{"specversion":"1.0","id":"evt_1","source":"/s","type":"t","time":"2026-11-22T08:00:00Z"}"#;

    fn key() -> Key {
        Key::parse("whsec_c2hhcmVkLXNlY3JldC1vZi10aGUtYm94").unwrap()
    }

    fn envelope(body: &str) -> Envelope {
        let mut mac = Hmac::<Sha256>::new_from_slice(b"shared-secret-of-the-box").unwrap();
        mac.update(format!("evt_1.{NOW}.{body}").as_bytes());
        let sign = STANDARD.encode(mac.finalize().into_bytes());
        Envelope {
            method: "POST".to_owned(),
            content_type: Some("application/cloudevents+json".to_owned()),
            id: Some("evt_1".to_owned()),
            timestamp: Some(NOW.to_string()),
            signature: Some(format!("v1,AAAA v1,{sign}")),
            body: Bytes::from(body.to_owned()),
        }
    }

    #[test]
    fn one_fitting_signature_among_several_is_enough() {
        assert_eq!(envelope(EVENT).verify(Some(&key()), NOW + 300), Ok(()));
    }

    #[test]
    fn a_stale_a_changed_and_a_misshapen_event_are_told_apart() {
        let stale = envelope(EVENT).verify(Some(&key()), NOW + 301);
        assert_eq!(
            stale,
            Err("webhook-timestamp is more than 5 minutes off".to_owned())
        );
        let mut changed = envelope(EVENT);
        changed.body = Bytes::from(format!("{EVENT} "));
        let changed = changed.verify(Some(&key()), NOW);
        assert_eq!(changed, Err("no webhook-signature fits".to_owned()));
        let misshapen = envelope(&EVENT.replace("evt_1", "evt_2")).verify(Some(&key()), NOW);
        assert_eq!(misshapen, Err("id differs from webhook-id".to_owned()));
    }
}
