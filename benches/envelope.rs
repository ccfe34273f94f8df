//! What one callback costs before it is stored: opened with every check, its reply sealed.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dingd::dingtalk::envelope::{Freshness, Keys, encrypt_member};
use dingd::dingtalk::event;
use dingd::inbound::{App, verify};
use dingd::secret::Secret;

#[path = "support/callback.rs"]
mod callback;

const NOW_MS: u64 = 1_760_000_000_123;
const FRESH: Freshness = Freshness {
    past_ms: 86_400_000,
    future_ms: 600_000,
};

fn keys() -> Keys {
    Keys::new(
        Secret::new(callback::TOKEN),
        &Secret::new(callback::AES_KEY),
        callback::RECEIVE_ID,
        false,
    )
    .expect("the key is well formed")
}

fn envelope(criterion: &mut Criterion) {
    let keys = keys();
    let app = App {
        name: "bench".to_owned(),
        corp_id: "dingcorpbench0001".to_owned(),
        keys: Some(keys.clone()),
        ..App::default()
    };
    let mut group = criterion.benchmark_group("envelope");
    group.throughput(Throughput::Elements(1));
    for (name, n) in [("rename", 0), ("other", 1)] {
        let text = callback::event_text(n, NOW_MS);
        assert_eq!(text.len(), callback::TEXT_BYTES);
        let sealed = callback::seal(&text, "Ab3dEf9H", NOW_MS);
        group.bench_function(format!("open/{name}"), |bencher| {
            bencher.iter(|| {
                let encrypt = encrypt_member(sealed.body.as_bytes()).expect("a body");
                let query = keys.query(black_box(&sealed.query)).expect("a query");
                let ciphertext = keys
                    .verify(&query, &encrypt, NOW_MS, FRESH)
                    .expect("signed");
                let text = keys.open(ciphertext).expect("ours");
                event::parse(&text).expect("an event")
            });
        });
        // The same as the door does it: with both keys by which a repeat is recognised.
        group.bench_function(format!("verify/{name}"), |bencher| {
            bencher.iter(|| {
                let body = black_box(sealed.body.as_bytes());
                let signed =
                    verify::signed(&app, &sealed.query, body, NOW_MS, FRESH).expect("signed");
                verify::opened(&app, signed).expect("ours")
            });
        });
    }
    group.bench_function("seal_success", |bencher| {
        bencher.iter(|| keys.seal_success(black_box(&[7; 16]), "Ab3dEf9HAb3dEf9H", NOW_MS));
    });
    group.finish();
}

criterion_group!(benches, envelope);
criterion_main!(benches);
