//! The envelope of an event callback: opened with every check, sealed for the reply.
//!
//! Source: inbound.md §1.2–§1.5; the order of the checks is that of the reliability contract §5.
//! Nothing is decrypted before the signature holds, and no length is believed before it was compared
//! with the bytes that are there.

use std::borrow::Cow;

use aes::Aes256;
use base64::Engine as _;
use base64::alphabet::STANDARD as ALPHABET;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use cbc::cipher::block_padding::NoPadding;
use cbc::cipher::{BlockModeDecrypt as _, BlockModeEncrypt as _, KeyIvInit as _};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::signature;
use crate::secret::Secret;

const BLOCK_BYTES: usize = 16;
/// DingTalk pads to blocks of 32, not of AES's 16 (inbound.md §1.4).
const PAD_BYTES: usize = 32;
const RANDOM_BYTES: usize = 16;
const FRAME_BYTES: usize = RANDOM_BYTES + 4;

/// What one app's callbacks are checked with.
#[derive(Debug, Clone)]
pub struct Keys {
    token: Secret,
    aes_key: AesKey,
    receive_id: String,
    seconds_allowed: bool,
}

#[derive(Clone)]
struct AesKey(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for AesKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}

/// An `aes_key` that is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the aes_key must be exactly 43 letters and digits")]
pub struct NotAnAesKey;

/// Why a callback was refused. The caller learns only that it was; this goes to metrics and the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The body is not a JSON object with one string member `encrypt`.
    #[error("the body is not a JSON object with a string member `encrypt`")]
    Body,
    /// A query value is missing, doubled or malformed.
    #[error("the query lacks a well-formed signature, timestamp or nonce")]
    Format,
    /// `encrypt` is not strict standard base64.
    #[error("`encrypt` is not standard base64")]
    Base64,
    /// The ciphertext is not a whole number of blocks, or too short.
    #[error("the ciphertext has an impossible length")]
    Ciphertext,
    /// The timestamp is too old or too far ahead.
    #[error("the timestamp is stale or in the future: check this machine's clock")]
    Stale,
    /// The signature does not hold.
    #[error("the signature does not hold: compare [apps.callback] token with the console")]
    Signature,
    /// The padding is wrong, typically because the AES key is.
    #[error("the padding is wrong: compare [apps.callback] aes_key with the console")]
    Padding,
    /// The length field does not fit.
    #[error("the length field does not fit: compare [apps.callback] aes_key with the console")]
    Length,
    /// Encrypted well, but for somebody else.
    #[error(
        "the callback was meant for {0:?}: set [apps.callback] receive_id to it if that is yours"
    )]
    Owner(String),
    /// The text is not UTF-8.
    #[error("the message is not UTF-8")]
    Utf8,
    /// The text is not an event.
    #[error("the message is not an event: {0}")]
    Event(&'static str),
}

impl Refused {
    /// The name in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Body => "body",
            Self::Format => "format",
            Self::Base64 => "base64",
            Self::Ciphertext => "ciphertext",
            Self::Stale => "stale",
            Self::Signature => "signature",
            Self::Padding => "padding",
            Self::Length => "length",
            Self::Owner(_) => "owner",
            Self::Utf8 => "utf8",
            Self::Event(_) => "event",
        }
    }
}

/// The query of a callback, in its right form but not yet believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query<'a> {
    signature: Cow<'a, str>,
    timestamp: Cow<'a, str>,
    nonce: Cow<'a, str>,
}

impl Keys {
    /// Checks the key's form: 43 characters that are base64 of 32 bytes but for the last character's
    /// two spare bits, which the console leaves at random (inbound.md §1.4).
    pub fn new(
        token: Secret,
        aes_key: &Secret,
        receive_id: impl Into<String>,
        seconds_allowed: bool,
    ) -> Result<Self, NotAnAesKey> {
        let lenient = GeneralPurpose::new(
            &ALPHABET,
            GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
        );
        let text = aes_key.expose();
        if text.len() != 43 || !text.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(NotAnAesKey);
        }
        let padded = Zeroizing::new(format!("{text}="));
        let bytes = Zeroizing::new(lenient.decode(padded.as_bytes()).map_err(|_| NotAnAesKey)?);
        let key = <[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| NotAnAesKey)?;
        Ok(Self {
            token,
            aes_key: AesKey(Zeroizing::new(key)),
            receive_id: receive_id.into(),
            seconds_allowed,
        })
    }

    /// The id that callbacks must be encrypted for.
    pub fn receive_id(&self) -> &str {
        &self.receive_id
    }

    /// Reads the query and checks the form of its values. Both names of the signature may come; they
    /// must agree.
    pub fn query<'a>(&self, query: &'a str) -> Result<Query<'a>, Refused> {
        let mut values: [Option<Cow<'_, str>>; 4] = [const { None }; 4];
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let slot = match name {
                "msg_signature" => 0,
                "signature" => 1,
                "timestamp" => 2,
                "nonce" => 3,
                _ => continue,
            };
            let value = percent_decode(value).ok_or(Refused::Format)?;
            match values.get_mut(slot) {
                Some(free @ None) => *free = Some(value),
                _ => return Err(Refused::Format),
            }
        }
        let [new, old, timestamp, nonce] = values;
        let signature = match (new, old) {
            (Some(new), Some(old)) if new != old => return Err(Refused::Signature),
            (Some(one), _) | (None, Some(one)) => one,
            (None, None) => return Err(Refused::Signature),
        };
        if signature.len() != 40
            || !signature
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        {
            return Err(Refused::Signature);
        }
        let timestamp = timestamp.ok_or(Refused::Format)?;
        let digits = timestamp.bytes().all(|b| b.is_ascii_digit());
        // Ten digits re-open a shift of digits between timestamp and nonce (inbound.md §1.3).
        let length = timestamp.len() == 13 || self.seconds_allowed && timestamp.len() == 10;
        let nonce = nonce.ok_or(Refused::Format)?;
        let plain = nonce.bytes().all(|b| b.is_ascii_alphanumeric());
        if !digits || !length || !plain || !(1..=64).contains(&nonce.len()) {
            return Err(Refused::Format);
        }
        Ok(Query {
            signature,
            timestamp,
            nonce,
        })
    }

    /// The checks up to the signature. Returns the ciphertext; nothing was decrypted.
    pub fn verify(
        &self,
        query: &Query<'_>,
        encrypt: &str,
        now_ms: u64,
        fresh: Freshness,
    ) -> Result<Vec<u8>, Refused> {
        let ciphertext = STANDARD.decode(encrypt).map_err(|_| Refused::Base64)?;
        if ciphertext.len() < 2 * BLOCK_BYTES || !ciphertext.len().is_multiple_of(BLOCK_BYTES) {
            return Err(Refused::Ciphertext);
        }
        if !fresh.allows(query.timestamp_ms(), now_ms) {
            return Err(Refused::Stale);
        }
        let right =
            signature::callback(self.token.expose(), &query.timestamp, &query.nonce, encrypt);
        if bool::from(right.as_bytes().ct_eq(query.signature.as_bytes())) {
            Ok(ciphertext)
        } else {
            Err(Refused::Signature)
        }
    }

    /// Decrypts what [`Self::verify`] returned: padding, length, owner, UTF-8.
    pub fn open(&self, mut ciphertext: Vec<u8>) -> Result<String, Refused> {
        let text = self.plain(&mut ciphertext)?;
        String::from_utf8(text.to_vec()).map_err(|_| Refused::Utf8)
    }

    fn plain<'a>(&self, ciphertext: &'a mut [u8]) -> Result<&'a [u8], Refused> {
        let key = &*self.aes_key.0;
        let plain = cbc::Decryptor::<Aes256>::new(
            key.into(),
            key.first_chunk::<16>().expect("32 bytes").into(),
        )
        .decrypt_padded::<NoPadding>(ciphertext)
        .map_err(|_| Refused::Ciphertext)?;
        let pad = usize::from(*plain.last().ok_or(Refused::Padding)?);
        if !(1..=PAD_BYTES).contains(&pad) || pad > plain.len() {
            return Err(Refused::Padding);
        }
        let (framed, padding) = plain.split_at(plain.len() - pad);
        if padding.iter().any(|byte| usize::from(*byte) != pad) {
            return Err(Refused::Padding);
        }
        let (head, rest) = framed
            .split_at_checked(FRAME_BYTES)
            .ok_or(Refused::Length)?;
        let length = head
            .last_chunk::<4>()
            .map(|b| u32::from_be_bytes(*b))
            .ok_or(Refused::Length)?;
        let length = usize::try_from(length).map_err(|_| Refused::Length)?;
        let (text, owner) = rest.split_at_checked(length).ok_or(Refused::Length)?;
        if !bool::from(owner.ct_eq(self.receive_id.as_bytes())) {
            let shown = String::from_utf8_lossy(owner);
            return Err(Refused::Owner(crate::secret::printable(&shown, 64)));
        }
        Ok(text)
    }

    /// The reply that counts as delivered (inbound.md §1.5): `success`, sealed, with every member a
    /// string. `random` fills the envelope's first bytes, `nonce` is 16 letters and digits.
    pub fn seal_success(&self, random: &[u8; RANDOM_BYTES], nonce: &str, now_ms: u64) -> String {
        #[derive(Serialize)]
        struct Reply<'a> {
            msg_signature: String,
            #[serde(rename = "timeStamp")]
            timestamp: &'a str,
            nonce: &'a str,
            encrypt: &'a str,
        }
        let encrypt = self.seal(random, b"success");
        let timestamp = now_ms.to_string();
        let reply = Reply {
            msg_signature: signature::callback(self.token.expose(), &timestamp, nonce, &encrypt),
            timestamp: &timestamp,
            nonce,
            encrypt: &encrypt,
        };
        serde_json::to_string(&reply).expect("strings always serialise")
    }

    fn seal(&self, random: &[u8; RANDOM_BYTES], text: &[u8]) -> String {
        let mut plain =
            Vec::with_capacity(FRAME_BYTES + text.len() + self.receive_id.len() + PAD_BYTES);
        plain.extend_from_slice(random);
        plain.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
        plain.extend_from_slice(text);
        plain.extend_from_slice(self.receive_id.as_bytes());
        let pad = PAD_BYTES - plain.len() % PAD_BYTES;
        let filled = plain.len() + pad;
        plain.resize(filled, u8::try_from(pad).unwrap_or(0));
        let key = &*self.aes_key.0;
        let sealed = cbc::Encryptor::<Aes256>::new(
            key.into(),
            key.first_chunk::<16>().expect("32 bytes").into(),
        )
        .encrypt_padded_vec::<NoPadding>(&plain);
        STANDARD.encode(sealed)
    }
}

impl Query<'_> {
    /// When DingTalk says it sent this, in milliseconds.
    pub fn timestamp_ms(&self) -> u64 {
        let value = self.timestamp.parse::<u64>().unwrap_or(0);
        if self.timestamp.len() == 10 {
            value * 1_000
        } else {
            value
        }
    }
}

/// How far a timestamp may lie from now. DingTalk documents no tolerance for events, so it is wide.
#[derive(Debug, Clone, Copy)]
pub struct Freshness {
    /// Older ones are refused, in milliseconds.
    pub past_ms: u64,
    /// Ones further ahead are refused, in milliseconds.
    pub future_ms: u64,
}

impl Freshness {
    /// Whether `at_ms` is near enough to `now_ms`.
    pub fn allows(self, at_ms: u64, now_ms: u64) -> bool {
        at_ms.saturating_add(self.past_ms) >= now_ms
            && at_ms <= now_ms.saturating_add(self.future_ms)
    }
}

/// The `encrypt` member of a callback's body.
pub fn encrypt_member(body: &[u8]) -> Result<Cow<'_, str>, Refused> {
    #[derive(Deserialize)]
    struct Body<'a> {
        #[serde(borrow)]
        encrypt: Cow<'a, str>,
    }
    // serde reads an array as a struct as well; DingTalk never sends one.
    if body.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'{') {
        return Err(Refused::Body);
    }
    serde_json::from_slice::<Body<'_>>(body)
        .map(|body| body.encrypt)
        .map_err(|_| Refused::Body)
}

/// Decodes `%XX` once; `None` if that is malformed or not UTF-8. `+` stays `+`: it is part of ids.
pub fn percent_decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digit = |b: Option<u8>| char::from(b?).to_digit(16);
            let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
            out.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok().map(Cow::Owned)
}

/// Encodes everything but letters, digits and `-._~`.
pub fn percent_encode(text: &str) -> String {
    text.bytes()
        .fold(String::with_capacity(text.len()), |mut out, byte| {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
                out.push(char::from(byte));
            } else {
                out.push('%');
                out.push_str(&crate::delivery::id::hex(&[byte]).to_uppercase());
            }
            out
        })
}

#[cfg(test)]
#[path = "envelope/tests.rs"]
mod tests;
