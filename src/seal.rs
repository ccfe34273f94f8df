//! Values that only who knows a secret can read or make: ChaCha20-Poly1305 under a key derived from it.

use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{ChaCha20Poly1305, KeyInit as _};
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

/// Random bytes that each value needs.
pub const NONCE_BYTES: usize = 12;

/// Seals `value`; `purpose` keeps the keys of different uses apart, `name` is what it can be opened under.
pub fn seal(
    secret: &str,
    purpose: &str,
    name: &str,
    nonce: [u8; NONCE_BYTES],
    value: &[u8],
) -> Vec<u8> {
    let payload = Payload {
        msg: value,
        aad: name.as_bytes(),
    };
    let sealed = cipher(secret, purpose)
        .encrypt(&nonce.into(), payload)
        .expect("a value in memory is shorter than the cipher's limit of 256 GiB");
    [&nonce[..], &sealed].concat()
}

/// Opens what [`seal`] made with the same secret, purpose and name.
pub fn open(secret: &str, purpose: &str, name: &str, bytes: &[u8]) -> Option<Vec<u8>> {
    let (nonce, sealed) = bytes.split_first_chunk::<NONCE_BYTES>()?;
    let payload = Payload {
        msg: sealed,
        aad: name.as_bytes(),
    };
    cipher(secret, purpose).decrypt(nonce.into(), payload).ok()
}

fn cipher(secret: &str, purpose: &str) -> ChaCha20Poly1305 {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(purpose.as_bytes());
    ChaCha20Poly1305::new(&mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_opens_only_with_its_secret_purpose_and_name_and_unchanged() {
        let sealed = seal("secret", "purpose", "name", [7; 12], b"value");
        let opened = |secret, purpose, name, bytes: &[u8]| open(secret, purpose, name, bytes);
        assert_eq!(
            opened("secret", "purpose", "name", &sealed).as_deref(),
            Some(&b"value"[..])
        );
        assert_eq!(opened("other", "purpose", "name", &sealed), None);
        assert_eq!(opened("secret", "other", "name", &sealed), None);
        assert_eq!(opened("secret", "purpose", "other", &sealed), None);
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(opened("secret", "purpose", "name", &changed), None, "{at}");
            assert_eq!(opened("secret", "purpose", "name", &sealed[..at]), None);
        }
    }
}
