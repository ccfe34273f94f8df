//! The event subscription's seal: encryption, signature, and the judgement of a reply.

use aes::Aes256;
use aes::cipher::block_padding::NoPadding;
use aes::cipher::{BlockModeDecrypt as _, BlockModeEncrypt as _, KeyIvInit as _};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Value, json};
use sha1::{Digest as _, Sha1};
use subtle::ConstantTimeEq as _;

use super::settings::App;
use crate::sim::clock;

/// Its own, not AES's: the padding may be longer than a cipher block.
const PAD_BLOCK: usize = 32;
const RANDOM_BYTES: usize = 16;
const LENGTH_BYTES: usize = 4;

/// The 43rd character of a key holds two bits that belong to no byte and are rarely zero.
const KEY_BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// A callback, ready to be posted: the query belongs behind the URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Callback {
    /// `signature=…&msg_signature=…&timestamp=…&nonce=…`, without the question mark.
    pub query: String,
    /// `{"encrypt":"…"}`.
    pub body: String,
}

/// What one subscription needs to seal and to open.
#[derive(Debug, Clone)]
pub(super) struct Seal {
    token: String,
    key: [u8; 32],
    receive_id: String,
}

impl Seal {
    /// A key that is not 43 base64 characters is replaced by zeros: the box then still starts,
    /// and every exchange fails, as it does at DingTalk with the wrong key.
    pub(super) fn of(app: &App) -> Self {
        let key = KEY_BASE64
            .decode(format!("{}=", app.callback_aes_key))
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .unwrap_or([0; 32]);
        Self {
            token: app.callback_token.clone(),
            key,
            receive_id: app.receive_id.clone(),
        }
    }

    /// A callback carrying `plaintext`.
    pub(super) fn seal(&self, plaintext: &str, timestamp_ms: u64) -> Callback {
        let encrypt = self.encrypt(plaintext, clock::random());
        let nonce = clock::hex(&clock::random::<4>());
        let timestamp = timestamp_ms.to_string();
        let signature = self.signature(&timestamp, &nonce, &encrypt);
        Callback {
            query: format!(
                "signature={signature}&msg_signature={signature}&timestamp={timestamp}&nonce={nonce}"
            ),
            body: json!({"encrypt": encrypt}).to_string(),
        }
    }

    /// Hex of SHA-1 over the four strings, sorted by bytes and joined without a separator.
    pub(super) fn signature(&self, timestamp: &str, nonce: &str, encrypt: &str) -> String {
        let mut parts = [self.token.as_str(), timestamp, nonce, encrypt];
        parts.sort_unstable();
        clock::hex(&Sha1::digest(parts.concat()))
    }

    /// The text of a reply, if everything about it is right.
    pub(super) fn open_reply(&self, body: &str) -> Result<String, String> {
        let reply: Value = serde_json::from_str(body).map_err(|error| format!("json: {error}"))?;
        let reply = reply.as_object().ok_or("not an object")?;
        let names = ["msg_signature", "timeStamp", "nonce", "encrypt"];
        if let Some(name) = reply.keys().find(|name| !names.contains(&name.as_str())) {
            return Err(format!("unknown member {name}"));
        }
        let member = |name: &str| {
            reply
                .get(name)
                .ok_or_else(|| format!("no {name}"))?
                .as_str()
                .ok_or_else(|| format!("{name} is not a string"))
        };
        let encrypt = member("encrypt")?;
        let time = member("timeStamp")?;
        if time.is_empty() || !time.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err("timeStamp is not a decimal number".to_owned());
        }
        let right = self.signature(time, member("nonce")?, encrypt);
        if !bool::from(right.as_bytes().ct_eq(member("msg_signature")?.as_bytes())) {
            return Err("msg_signature does not fit".to_owned());
        }
        self.decrypt(encrypt)
    }

    fn encrypt(&self, plaintext: &str, random: [u8; RANDOM_BYTES]) -> String {
        let length = u32::try_from(plaintext.len()).unwrap_or(u32::MAX);
        let mut plain = Vec::with_capacity(plaintext.len() + 2 * PAD_BLOCK);
        plain.extend_from_slice(&random);
        plain.extend_from_slice(&length.to_be_bytes());
        plain.extend_from_slice(plaintext.as_bytes());
        plain.extend_from_slice(self.receive_id.as_bytes());
        let pad = PAD_BLOCK - plain.len() % PAD_BLOCK;
        plain.resize(plain.len() + pad, u8::try_from(pad).unwrap_or_default());
        let cipher = cbc::Encryptor::<Aes256>::new(&self.key.into(), &self.iv().into());
        STANDARD.encode(cipher.encrypt_padded_vec::<NoPadding>(&plain))
    }

    /// Accepts padding to 16 and to 32 bytes, as DingTalk does with replies.
    fn decrypt(&self, encrypt: &str) -> Result<String, String> {
        let sealed = STANDARD
            .decode(encrypt)
            .map_err(|error| format!("base64: {error}"))?;
        let cipher = cbc::Decryptor::<Aes256>::new(&self.key.into(), &self.iv().into());
        let plain = cipher
            .decrypt_padded_vec::<NoPadding>(&sealed)
            .map_err(|_| "not whole blocks".to_owned())?;
        let pad = usize::from(plain.last().copied().ok_or("nothing encrypted")?);
        let body = plain
            .len()
            .checked_sub(pad)
            .ok_or("padding longer than the text")?;
        let (plain, padding) = plain.split_at(body);
        if !(1..=PAD_BLOCK).contains(&pad) || padding.iter().any(|byte| usize::from(*byte) != pad) {
            return Err("bad padding".to_owned());
        }
        let rest = plain.get(RANDOM_BYTES..).ok_or("too short")?;
        let (length, rest) = rest
            .split_first_chunk::<LENGTH_BYTES>()
            .ok_or("too short")?;
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        let (text, receive_id) = rest
            .split_at_checked(length)
            .ok_or("length beyond the end")?;
        if receive_id != self.receive_id.as_bytes() {
            return Err(format!("for {}", String::from_utf8_lossy(receive_id)));
        }
        String::from_utf8(text.to_vec()).map_err(|_| "not utf-8".to_owned())
    }

    /// The first half of the key.
    fn iv(&self) -> [u8; 16] {
        self.key.first_chunk().copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vectors(text: &str) -> Vec<Value> {
        let file: Value = serde_json::from_str(text).unwrap();
        file["vectors"].as_array().unwrap().clone()
    }

    fn seal_of(config: &Value) -> Seal {
        let part = |name: &str| config[name].as_str().unwrap().to_owned();
        Seal::of(&App {
            callback_token: part("token"),
            callback_aes_key: part("aes_key"),
            receive_id: part("receive_id"),
            ..App::default()
        })
    }

    #[test]
    fn the_shared_event_vectors_verify_open_and_seal_to_the_same_bytes() {
        let file = include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/vectors/event-accept-synthetic.json"
        ));
        for vector in vectors(file) {
            let id = vector["id"].as_str().unwrap();
            let seal = seal_of(&vector["config"]);
            let encrypt = vector["encrypt"].as_str().unwrap();
            let query = |name: &str| vector["query"][name].as_str().unwrap();
            let signature = seal.signature(query("timestamp"), query("nonce"), encrypt);
            assert_eq!(signature, query("signature"), "{id}");
            let plaintext = vector["expect"]["plaintext"].as_str().unwrap();
            assert_eq!(seal.decrypt(encrypt).as_deref(), Ok(plaintext), "{id}");
            if id != "syn-pad-16" {
                let random = opening_block(&seal, encrypt);
                assert_eq!(seal.encrypt(plaintext, random), encrypt, "{id}");
            }
        }
    }

    fn opening_block(seal: &Seal, encrypt: &str) -> [u8; 16] {
        let cipher = cbc::Decryptor::<Aes256>::new(&seal.key.into(), &seal.iv().into());
        let sealed = STANDARD.decode(encrypt).unwrap();
        let plain = cipher.decrypt_padded_vec::<NoPadding>(&sealed).unwrap();
        plain[..16].try_into().unwrap()
    }

    #[test]
    fn the_shared_reply_opens_and_a_changed_one_does_not() {
        let file = include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/vectors/event-reply.json"
        ));
        for vector in vectors(file) {
            let seal = seal_of(&vector["config"]);
            let body = vector["body"].to_string();
            assert_eq!(seal.open_reply(&body).as_deref(), Ok("success"));
            let number = body.replace("\"1760000000456\"", "1760000000456");
            assert!(seal.open_reply(&number).is_err());
            assert!(
                seal.open_reply(&body.replace("timeStamp", "timestamp"))
                    .is_err()
            );
            assert!(
                seal.open_reply(&body.replace("ReplyNonce012345", "x"))
                    .is_err()
            );
        }
    }

    #[test]
    fn a_sealed_text_opens_and_is_meant_for_one_receiver_only() {
        let seal = Seal::of(&App::default());
        let sealed = seal.encrypt("值班 😀", clock::random());
        assert_eq!(seal.decrypt(&sealed).as_deref(), Ok("值班 😀"));
        let other = Seal::of(&App {
            receive_id: "someone-else".to_owned(),
            ..App::default()
        });
        assert_eq!(other.decrypt(&sealed), Err("for dingboxapp0001".to_owned()));
    }
}
