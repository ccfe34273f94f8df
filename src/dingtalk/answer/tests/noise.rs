//! Bodies that try to hurt: raw bytes, broken JSON, our field names with values of any type.

use std::collections::HashSet;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Deterministic noise (xorshift64): the same bodies in every run.
struct Noise(u64);

impl Noise {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(end).unwrap()).unwrap()
    }

    /// Raw bytes, or pieces of JSON in any order.
    fn body(&mut self) -> Vec<u8> {
        const PIECES: &str = r#"{ } [ ] : , "errcode" "code" "sub_code" 88 -1 1e999 "status" 1111
            "wait" "\u202e" "\ud800" null true < 长 "result" "accessdenieddetail" "message""#;
        let pieces: Vec<&str> = PIECES.split_whitespace().collect();
        let raw = self.below(2) == 0;
        let mut body = Vec::new();
        for _ in 0..self.below(40) {
            if raw {
                body.push(u8::try_from(self.below(256)).unwrap());
            } else {
                body.extend_from_slice(pieces[self.below(pieces.len())].as_bytes());
            }
        }
        body
    }

    /// An object with our field names and values of any type.
    fn object(&mut self) -> Vec<u8> {
        const NAMES: &str = "errcode code sub_code status wait punish errmsg message requestid \
            accessdenieddetail requiredScopes success result deliverResults errorMsg \
            processQueryKey invalidStaffIdList flowControlledStaffIdList accessToken";
        const VALUES: &str = r#"0 88 -1 130101 -0.0 1e300 "" "0" "a" "qyapi_x" "\u0000" "é" true
            false null [] {} [[]] ["a"] [{}] {"requiredScopes":["a",1]} [{"success":false}]
            {"deliverResults":[{"success":true}]} {"deliverResults":[1]}"#;
        let names: Vec<&str> = NAMES.split_whitespace().collect();
        let values: Vec<&str> = VALUES.split_whitespace().collect();
        let fields: Vec<String> = (0..self.below(6))
            .map(|_| {
                let name = names[self.below(names.len())];
                format!("\"{name}\":{}", values[self.below(values.len())])
            })
            .collect();
        format!("{{{}}}", fields.join(",")).into_bytes()
    }
}

#[test]
fn no_body_panics() {
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let mut bodies = vec![b"[".repeat(100_000), b"{\"a\":".repeat(100_000)];
    bodies.extend((0..2_000).map(|_| noise.body()));
    bodies.extend((0..4_000).map(|_| noise.object()));
    for body in &bodies {
        let status = [200, 200, 302, 400, 403, 429, 500, 504][noise.below(8)];
        let body_complete = noise.below(8) > 0;
        let answer = Answer {
            status,
            body,
            body_complete,
            retry_after_s: Some(u64::MAX),
        };
        for api in ALL {
            let verdict = judge(api, &answer);
            let detail = verdict.reason().map_or("", |reason| &reason.detail);
            assert!(detail.len() <= DETAIL_BYTES_MAX, "{detail}");
            assert!(
                !detail.contains(|c: char| c.is_control() || c == '\u{202e}'),
                "{detail}"
            );
        }
        assert!(!code_label(&answer).is_empty());
        assert!(vendor_error(&answer).is_none_or(|error| !error.code.is_empty()));
        assert!(
            !may_be_stale_signature(&answer),
            "310000 is not among the values"
        );
    }
}

/// Every label there may be.
fn labels() -> HashSet<&'static str> {
    let fixed = "other 1111 html none http_1xx http_3xx http_4xx http_5xx";
    let of_table = table::ROWS.iter().flat_map(|row| row.codes.iter().copied());
    fixed.split(' ').chain(of_table).collect()
}

proptest! {
    #[test]
    fn the_code_label_of_any_bytes_is_one_of_a_finite_set(
        body in vec(any::<u8>(), 0..200),
        status: u16,
        body_complete: bool,
    ) {
        let answer = Answer { status, body: &body, body_complete, retry_after_s: None };
        prop_assert!(labels().contains(code_label(&answer)));
    }

    #[test]
    fn a_code_that_somebody_made_up_never_becomes_a_label(
        code in "\\PC{0,120}|[a-zA-Z.]{1,30}|(contain|template|param)\\.[a-z]{0,20}|[0-9]{1,9}",
        name in "errcode|code|Code|ERRCODE",
        wrapped: bool,
        status in 100_u16..600,
    ) {
        let mut body = serde_json::json!({ name: code });
        if wrapped {
            body = serde_json::json!({ "errcode": 88, "sub_code": code });
        }
        let label = code_label(&answer(status, &body.to_string()));
        prop_assert!(labels().contains(label));
        // If it looks like the code, it is the table's own spelling of it.
        if label.eq_ignore_ascii_case(code.trim()) && !labels().contains(code.trim()) {
            prop_assert!(table::find(&code).is_some());
        }
    }
}
