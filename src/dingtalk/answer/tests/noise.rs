//! Bodies that try to hurt: raw bytes, broken JSON, our field names with values of any type.

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
