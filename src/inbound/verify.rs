//! Believed or refused. The order of the checks is fixed (reliability contract §5) and every refusal
//! looks the same from outside; the reason goes to metrics and the log only.

use super::App;
use crate::delivery::id::digest;
use crate::dingtalk::envelope::{Freshness, Refused, encrypt_member};
use crate::dingtalk::event::{self, Event};
use crate::faults::{Bug, bug};
use crate::journal::aged::Digest;

/// A callback that DingTalk sent, meant for this app.
#[derive(Debug)]
pub struct Verified {
    /// What it says.
    pub event: Event,
    /// The decrypted text, unchanged.
    pub text: String,
    /// The same bytes again have the same key.
    pub same_bytes: Digest,
    /// The same event again, however it was encrypted, has the same key; its public id derives from it.
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

/// Decryption, owner, text, event.
pub fn opened(app: &App, signed: Signed) -> Result<Verified, Refused> {
    let keys = app.keys.as_ref().ok_or(Refused::Signature)?;
    let text = keys.open(signed.ciphertext)?;
    let event = event::parse(&text).map_err(Refused::Event)?;
    let same_event = match &event.id {
        _ if bug(Bug::DedupOnNonce) => signed.same_bytes,
        Some(id) => digest(&[b"event id", app.name.as_bytes(), id.as_bytes()]),
        None => digest(&[
            b"event text",
            app.name.as_bytes(),
            keys.receive_id().as_bytes(),
            text.as_bytes(),
        ]),
    };
    Ok(Verified {
        event,
        text,
        same_bytes: signed.same_bytes,
        same_event,
    })
}
