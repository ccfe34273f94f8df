//! Every vector of the protocol pages, and bytes that nobody would send on purpose.

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::dingtalk::event;

const ANY_TIME: Freshness = Freshness {
    past_ms: u64::MAX,
    future_ms: u64::MAX,
};

fn vectors(name: &str) -> Value {
    let path = format!("{}/tests/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value
        .pointer(path)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn keys(vector: &Value, seconds_allowed: bool) -> Keys {
    let part = |name| Secret::new(text(vector, &format!("/config/{name}")));
    let filler = Secret::new("a".repeat(43));
    let aes_key = part("aes_key");
    let aes_key = if aes_key.expose().is_empty() {
        filler
    } else {
        aes_key
    };
    Keys::new(
        part("token"),
        &aes_key,
        text(vector, "/config/receive_id"),
        seconds_allowed,
    )
    .unwrap()
}

fn query(vector: &Value) -> String {
    let members = vector["query"].as_object().unwrap();
    let given = members
        .iter()
        .filter_map(|(k, v)| Some(format!("{k}={}", v.as_str()?)));
    given.collect::<Vec<_>>().join("&")
}

/// What a receiver does, in the contract's order.
fn receive(keys: &Keys, query: &str, encrypt: &str) -> Result<String, Refused> {
    let query = keys.query(query)?;
    let ciphertext = keys.verify(&query, encrypt, 0, ANY_TIME)?;
    keys.open(ciphertext)
}

fn receive_event(keys: &Keys, query: &str, encrypt: &str) -> Result<(), Refused> {
    let message = receive(keys, query, encrypt)?;
    event::parse(&message).map(|_| ()).map_err(Refused::Event)
}

#[test]
fn every_accepted_vector_opens_to_its_plaintext() {
    let mut full = 0;
    for file in ["event-accept-public", "event-accept-synthetic"] {
        for vector in vectors(file)["vectors"].as_array().unwrap() {
            let id = text(vector, "/id");
            let encrypt = text(vector, "/encrypt");
            let seconds = text(vector, "/query/timestamp").len() == 10;
            let keys = keys(vector, seconds);
            match text(vector, "/mode") {
                "signature_only" => {
                    let query = query(vector);
                    let query = keys.query(&query).unwrap();
                    let verified = keys.verify(&query, encrypt, 0, ANY_TIME);
                    // Its ciphertext was shortened by whoever published it, after signing or not.
                    assert_ne!(verified.err(), Some(Refused::Signature), "{id}");
                }
                "decrypt_only" => {
                    let opened = keys.open(STANDARD.decode(encrypt).unwrap());
                    assert_eq!(
                        opened.as_deref(),
                        Ok(text(vector, "/expect/plaintext")),
                        "{id}"
                    );
                }
                _ => {
                    let opened = receive(&keys, &query(vector), encrypt);
                    assert_eq!(
                        opened.as_deref(),
                        Ok(text(vector, "/expect/plaintext")),
                        "{id}"
                    );
                    full += 1;
                }
            }
        }
    }
    assert_eq!(full, 15, "4 public and 11 synthetic vectors");
}

#[test]
fn every_rejected_vector_is_refused_at_its_stage_or_earlier() {
    let order = [
        "format",
        "base64",
        "ciphertext",
        "signature",
        "padding",
        "length",
        "owner",
        "utf8",
        "event",
    ];
    let rank = |stage: &str| order.iter().position(|known| *known == stage).unwrap();
    let all = vectors("event-reject");
    let all = all["vectors"].as_array().unwrap();
    assert_eq!(all.len(), 47);
    for vector in all {
        let id = text(vector, "/id");
        let refused = receive_event(
            &keys(vector, false),
            &query(vector),
            text(vector, "/encrypt"),
        )
        .expect_err(id);
        let wanted = match text(vector, "/expect/stage") {
            "receive_id" | "padding_or_later" => "owner",
            "json" => "event",
            stage => stage,
        };
        assert!(
            rank(refused.label()) <= rank(wanted),
            "{id}: {refused:?}, wanted {wanted}"
        );
        // What was signed well must not be refused as badly signed, and the other way round.
        if rank(wanted) > rank("signature") && id != "rej-pad-longer-than-data" {
            assert!(
                rank(refused.label()) > rank("signature"),
                "{id}: {refused:?}"
            );
        }
    }
}

#[test]
fn every_raw_body_is_taken_or_refused_as_the_vectors_say() {
    let file = vectors("event-http-body");
    let keys = keys(&file, false);
    for vector in file["vectors"].as_array().unwrap() {
        let body = text(vector, "/body").as_bytes();
        let got =
            encrypt_member(body).and_then(|encrypt| receive_event(&keys, &query(&file), &encrypt));
        let wanted = text(vector, "/expect/result") == "accept";
        assert_eq!(got.is_ok(), wanted, "{}: {got:?}", text(vector, "/id"));
    }
}

#[test]
fn the_reply_is_byte_for_byte_the_vector() {
    let file = vectors("event-reply");
    let vector = &file["vectors"][0];
    let random = text(vector, "/random").as_bytes().try_into().unwrap();
    let now_ms = text(vector, "/timeStamp").parse().unwrap();
    let reply = keys(vector, false).seal_success(random, text(vector, "/nonce"), now_ms);
    assert_eq!(
        serde_json::from_str::<Value>(&reply).unwrap(),
        vector["body"]
    );
}

#[test]
fn stale_and_future_timestamps_are_refused_after_the_form_and_before_the_signature() {
    let fresh = Freshness {
        past_ms: 86_400_000,
        future_ms: 600_000,
    };
    for (at, now, allowed) in [
        (1_000_000_000_000, 1_000_086_400_000, true),
        (1_000_000_000_000, 1_000_086_400_001, false),
        (1_000_000_600_000, 1_000_000_000_000, true),
        (1_000_000_600_001, 1_000_000_000_000, false),
    ] {
        assert_eq!(fresh.allows(at, now), allowed);
    }
}

#[test]
fn a_key_must_be_43_letters_and_digits() {
    for bad in [
        "",
        &"a".repeat(42),
        &"a".repeat(44),
        &format!("{}+", "a".repeat(42)),
    ] {
        let made = Keys::new(Secret::new("t"), &Secret::new(bad), "id", false);
        assert_eq!(made.err(), Some(NotAnAesKey), "{bad}");
    }
}

#[test]
fn a_webhook_signature_is_percent_encoded_as_the_protocol_page_shows() {
    let encoded = "hmPWwU%2B7lVdm3ZZz0r9tSfx0L4Q26jWOZr9%2BGs6EZQM%3D";
    assert_eq!(
        percent_encode("hmPWwU+7lVdm3ZZz0r9tSfx0L4Q26jWOZr9+Gs6EZQM="),
        encoded
    );
    assert_eq!(
        percent_decode(encoded).unwrap(),
        "hmPWwU+7lVdm3ZZz0r9tSfx0L4Q26jWOZr9+Gs6EZQM="
    );
}

fn known() -> (Keys, Value) {
    let file = vectors("event-accept-synthetic");
    let vector = file["vectors"][0].clone();
    (keys(&vector, false), vector)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_ciphertext_with_a_right_signature_never_panics_and_is_never_believed(
        bytes in proptest::collection::vec(any::<u8>(), 0..400)
    ) {
        let (keys, vector) = known();
        let encrypt = STANDARD.encode(&bytes);
        let signature = signature::callback(text(&vector, "/config/token"), "1760000000123", "n", &encrypt);
        let query = format!("signature={signature}&timestamp=1760000000123&nonce=n");
        prop_assert!(receive_event(&keys, &query, &encrypt).is_err());
    }

    #[test]
    fn a_changed_byte_anywhere_in_the_request_is_refused(at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let (keys, vector) = known();
        let whole = format!("{}\n{}", query(&vector), text(&vector, "/encrypt"));
        let mut bytes = whole.into_bytes();
        let at = at.index(bytes.len());
        prop_assume!(bytes[at] != to && bytes[at] != b'\n');
        bytes[at] = to;
        let changed = String::from_utf8_lossy(&bytes).into_owned();
        let (query, encrypt) = changed.split_once('\n').unwrap_or((&changed, ""));
        // Renaming one of the two signature parameters leaves the other: still the same request.
        prop_assume!(query.contains("timestamp=") && query.contains("nonce="));
        if let Ok(opened) = receive(&keys, query, encrypt) {
            prop_assert!(query.matches("signature=50b2").count() == 1 || query.contains("&signature=50b2"), "{opened} from {query}");
        }
    }

    #[test]
    fn any_query_and_body_are_read_without_a_panic(query in ".{0,200}", body in proptest::collection::vec(any::<u8>(), 0..300)) {
        let (keys, _) = known();
        let member = encrypt_member(&body);
        if let (Ok(query), Ok(encrypt)) = (keys.query(&query), member) {
            prop_assert!(keys.verify(&query, &encrypt, 0, ANY_TIME).is_err());
        }
    }
}
