//! Callbacks sealed as DingTalk seals them: from the protocol page, not with the daemon's own code.

use aes::Aes256;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cbc::cipher::block_padding::NoPadding;
use cbc::cipher::{BlockModeEncrypt as _, KeyIvInit as _};
use sha1::{Digest as _, Sha1};

/// `[apps.callback] token`.
pub(crate) const TOKEN: &str = "SynthToken01";
/// `[apps.callback] aes_key`.
pub(crate) const AES_KEY: &str = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFA";
/// `[apps.callback] receive_id`.
pub(crate) const RECEIVE_ID: &str = "dingbenchappkey0001";
/// Bytes of an event's text.
pub(crate) const TEXT_BYTES: usize = 600;
/// The groups that renames are spread over.
const CHATS: usize = 1_000;

/// One callback.
#[derive(Debug)]
pub(crate) struct Callback {
    /// What follows `?` in the request's target.
    pub(crate) query: String,
    /// The request's body.
    pub(crate) body: String,
}

/// The text of event number `n`, [`TEXT_BYTES`] long: every other one renames a group, the rest is of
/// a type that the daemon stores and forwards without modelling it.
pub(crate) fn event_text(n: usize, at_ms: u64) -> String {
    let own = if n.is_multiple_of(2) {
        let chat = n / 2 % CHATS;
        format!(
            r#""EventType":"chat_update_title","timeStamp":{at_ms},"title":"值班告警群 {n}","openConversationId":"cidBench+{chat:06}/Ef==","operator":"manager0001""#
        )
    } else {
        format!(
            r#""EventType":"bpms_instance_change","EventTime":{at_ms},"processInstanceId":"proc-{n:012}","type":"start","staffId":"manager0001""#
        )
    };
    let mut text =
        format!(r#"{{"eventId":"evbench{n:025}",{own},"corpId":"dingcorpbench0001","remark":""#);
    let room = TEXT_BYTES.saturating_sub(text.len() + 2);
    text.extend("0123456789abcdef".chars().cycle().take(room));
    text.push_str("\"}");
    text
}

/// Encrypts and signs `text` (inbound.md §1.3, §1.4).
pub(crate) fn seal(text: &str, nonce: &str, timestamp_ms: u64) -> Callback {
    let mut plain = b"0123456789abcdef".to_vec();
    let length = u32::try_from(text.len()).expect("an event is short");
    plain.extend_from_slice(&length.to_be_bytes());
    plain.extend_from_slice(text.as_bytes());
    plain.extend_from_slice(RECEIVE_ID.as_bytes());
    let pad = 32 - plain.len() % 32;
    plain.resize(
        plain.len() + pad,
        u8::try_from(pad).expect("at most a block"),
    );
    let key = STANDARD
        .decode(format!("{AES_KEY}="))
        .expect("the key is base64");
    let iv = key.get(..16).expect("the key has 32 bytes");
    let sealed = cbc::Encryptor::<Aes256>::new_from_slices(&key, iv)
        .expect("the key has 32 bytes")
        .encrypt_padded_vec::<NoPadding>(&plain);
    let encrypt = STANDARD.encode(sealed);
    let timestamp = timestamp_ms.to_string();
    let mut parts = [TOKEN, &timestamp, nonce, &encrypt];
    parts.sort_unstable();
    let digest = Sha1::digest(parts.concat());
    let signature = dingd::delivery::id::hex(&digest);
    Callback {
        query: format!(
            "signature={signature}&msg_signature={signature}&timestamp={timestamp}&nonce={nonce}"
        ),
        body: format!(r#"{{"encrypt":"{encrypt}"}}"#),
    }
}
