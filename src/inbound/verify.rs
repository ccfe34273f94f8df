//! Believed or refused. The order of the checks is fixed (reliability contract §5) and every refusal
//! looks the same from outside; the reason goes to metrics and the log only.

use hyper::http::request::Parts;
use subtle::ConstantTimeEq as _;

use super::App;
use super::apply::{Meaning, meaning};
use crate::delivery::event::Ask;
use crate::delivery::id::digest;
use crate::dingtalk::envelope::{Freshness, Refused, encrypt_member};
use crate::dingtalk::event::{self, Detail};
use crate::dingtalk::signature;
use crate::faults::{Bug, bug};
use crate::journal::aged::Digest;

/// Something that DingTalk sent, meant for this app.
#[derive(Debug)]
pub struct Verified {
    /// What it means.
    pub meaning: Meaning,
    /// Whether somebody waits for an answer.
    pub ask: Option<Ask>,
    /// The same bytes again have the same key.
    pub same_bytes: Digest,
    /// The same event again, however it came, has the same key; its public id derives from it.
    pub same_event: Digest,
}

/// What could be told before anything was decrypted.
#[derive(Debug)]
pub struct Signed {
    ciphertext: Vec<u8>,
    /// See [`Verified::same_bytes`].
    pub same_bytes: Digest,
}

/// Form, freshness, signature. Nothing is decrypted yet.
pub fn signed(
    app: &App,
    query: &str,
    body: &[u8],
    now_ms: u64,
    fresh: Freshness,
) -> Result<Signed, Refused> {
    let keys = app.keys.as_ref().ok_or(Refused::Signature)?;
    let encrypt = encrypt_member(body)?;
    let signed = keys.query(query)?;
    let ciphertext = keys.verify(&signed, &encrypt, now_ms, fresh)?;
    let mut same_bytes = digest(&[app.name.as_bytes(), &ciphertext]);
    if bug(Bug::DedupOnNonce) {
        same_bytes = digest(&[query.as_bytes()]);
    }
    Ok(Signed {
        ciphertext,
        same_bytes,
    })
}

/// Decryption, owner, text, event; `None` is the console's test of the URL.
pub fn opened(app: &App, signed: Signed) -> Result<Option<Verified>, Refused> {
    let keys = app.keys.as_ref().ok_or(Refused::Signature)?;
    let text = keys.open(signed.ciphertext)?;
    let event = event::parse(&text).map_err(Refused::Event)?;
    if event.detail == Detail::CheckUrl {
        return Ok(None);
    }
    let same_event = match &event.id {
        _ if bug(Bug::DedupOnNonce) => signed.same_bytes,
        Some(id) => same_event(app, id),
        None => digest(&[
            b"event text",
            app.name.as_bytes(),
            keys.receive_id().as_bytes(),
            text.as_bytes(),
        ]),
    };
    Ok(Some(Verified {
        meaning: meaning(&event, &text),
        ask: None,
        same_bytes: signed.same_bytes,
        same_event,
    }))
}

/// The key of an event that has an id of DingTalk's, by whichever way it comes.
pub fn same_event(app: &App, id: &str) -> Digest {
    digest(&[b"event id", app.name.as_bytes(), id.as_bytes()])
}

/// A click on a card: only the time is signed, nothing of what it says (inbound.md §4.1).
pub fn card(app: &App, head: &Parts, now_ms: u64, fresh_ms: u64) -> Result<(), Refused> {
    let secret = app.card_secret.as_ref().ok_or(Refused::Signature)?;
    let names = ["x-ddpaas-signature-timestamp", "x-ddpaas-signature"];
    timely(head, names, now_ms, fresh_ms, |at_ms| {
        signature::card(secret.expose(), at_ms)
    })
}

/// A message to the robot: only the time is signed, nothing of what it says (inbound.md §3.1).
pub fn robot(app: &App, head: &Parts, now_ms: u64, fresh_ms: u64) -> Result<(), Refused> {
    timely(head, ["timestamp", "sign"], now_ms, fresh_ms, |at_ms| {
        signature::webhook(app.client_secret.expose(), at_ms)
    })
}

/// A time in the header that is fresh on both sides, and its signature.
fn timely(
    head: &Parts,
    [time, sign]: [&str; 2],
    now_ms: u64,
    fresh_ms: u64,
    right: impl Fn(u64) -> String,
) -> Result<(), Refused> {
    let one = |name| {
        let mut values = head.headers.get_all(name).iter();
        let value = values.next().and_then(|value| value.to_str().ok());
        value.filter(|_| values.next().is_none())
    };
    let (Some(time), Some(sign)) = (one(time), one(sign)) else {
        return Err(Refused::Format);
    };
    // What is signed is the decimal form, so there must be only one.
    let is_plain = time.len() == 13
        && !time.starts_with('0')
        && time.bytes().all(|digit| digit.is_ascii_digit());
    let at_ms = time
        .parse()
        .ok()
        .filter(|_| is_plain)
        .ok_or(Refused::Format)?;
    let fresh = Freshness {
        past_ms: fresh_ms,
        future_ms: fresh_ms,
    };
    if !fresh.allows(at_ms, now_ms) {
        return Err(Refused::Stale);
    }
    if right(at_ms).as_bytes().ct_eq(sign.as_bytes()).into() {
        Ok(())
    } else {
        Err(Refused::Signature)
    }
}

#[cfg(test)]
mod tests {
    use hyper::http::request::Builder;
    use serde::Deserialize;

    use super::*;
    use crate::secret::Secret;

    #[derive(Deserialize)]
    struct Vectors {
        vectors: Vec<Vector>,
    }

    #[derive(Deserialize)]
    struct Vector {
        id: String,
        #[serde(alias = "app_secret", alias = "api_secret")]
        secret: String,
        headers: std::collections::BTreeMap<String, String>,
        now_ms: Option<u64>,
        tolerance_ms: Option<u64>,
        expect: Expect,
    }

    #[derive(Deserialize)]
    struct Expect {
        result: String,
    }

    type Check = fn(&App, &Parts, u64, u64) -> Result<(), Refused>;

    fn check_all(file: &str, check: Check) {
        let path = format!("{}/tests/vectors/{file}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let file: Vectors = serde_json::from_str(&text).unwrap();
        assert!(file.vectors.len() > 5);
        for vector in file.vectors {
            let app = App {
                client_secret: Secret::new(&*vector.secret),
                card_secret: Some(Secret::new(&*vector.secret)),
                ..App::default()
            };
            let mut request = Builder::new().uri("/");
            for (name, value) in &vector.headers {
                request = request.header(name, value);
            }
            let (head, ()) = request.body(()).unwrap().into_parts();
            // Those of cards name no time: theirs.
            let now_ms = vector.now_ms.unwrap_or(1_595_925_864_847);
            let fresh_ms = vector.tolerance_ms.unwrap_or(3_600_000);
            let accepted = check(&app, &head, now_ms, fresh_ms).is_ok();
            assert_eq!(accepted, vector.expect.result == "accept", "{}", vector.id);
        }
    }

    #[test]
    fn every_robot_vector_is_judged_as_it_says() {
        check_all("robot-sign.json", robot);
    }

    #[test]
    fn every_card_vector_is_judged_as_it_says() {
        check_all("card-sign.json", card);
    }

    #[test]
    fn a_click_is_refused_without_a_header_or_with_one_twice_or_without_a_secret() {
        let at_ms = 1_595_925_864_847;
        let app = |secret| App {
            card_secret: secret,
            ..App::default()
        };
        let ours = app(Some(Secret::new("synthetic-api-secret-0001")));
        let (time, sign) = (
            at_ms.to_string(),
            signature::card("synthetic-api-secret-0001", at_ms),
        );
        let head = |headers: &[(&str, &str)]| {
            let mut request = Builder::new().uri("/");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            request.body(()).unwrap().into_parts().0
        };
        let time = ("x-ddpaas-signature-timestamp", time.as_str());
        let sign = ("x-ddpaas-signature", sign.as_str());
        let check = |app: &App, headers: &[_]| card(app, &head(headers), at_ms, 1_000);
        assert_eq!(check(&ours, &[time, sign]), Ok(()));
        assert_eq!(check(&ours, &[time]), Err(Refused::Format));
        assert_eq!(check(&ours, &[sign]), Err(Refused::Format));
        assert_eq!(check(&ours, &[time, sign, sign]), Err(Refused::Format));
        assert_eq!(check(&ours, &[time, time, sign]), Err(Refused::Format));
        assert_eq!(check(&app(None), &[time, sign]), Err(Refused::Signature));
        let late = card(&ours, &head(&[time, sign]), at_ms + 1_001, 1_000);
        assert_eq!(late, Err(Refused::Stale));
        let early = card(&ours, &head(&[time, sign]), at_ms - 1_001, 1_000);
        assert_eq!(early, Err(Refused::Stale));
    }
}
