//! Where a reply to a robot message goes: an address that the platform can hold but neither read nor make.
//!
//! It carries what the message said about its sender, so that nothing has to be kept for replies that may
//! never come, and the session's URL, which is a secret. Its form is `<app>.<base64url>`.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::event::ChatId;
use super::robot::{RobotMessage, Session};
use crate::seal;

const PURPOSE: &str = "dingd address for replies, version 1";
/// Longer text is not an address.
const BYTES_MAX: usize = 4_096;

/// An address for replies.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyTo {
    /// The group it was said in; `None`: to the robot alone.
    pub chat: Option<String>,
    /// Who said it (userid), if known.
    pub user: Option<String>,
    /// The session's URL, whose host was checked.
    pub url: Option<String>,
    /// Wall time until which the URL works, in milliseconds.
    pub expires_ms: u64,
}

impl std::fmt::Debug for ReplyTo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplyTo").finish_non_exhaustive()
    }
}

impl ReplyTo {
    /// The address of whoever said `message`; `session` is its session if that may be used.
    pub fn of(message: &RobotMessage, session: Option<&Session>) -> Self {
        // Of somebody whom nobody can address, the conversation is all that is known.
        let named = |_: &&ChatId| message.group || message.user.is_none();
        let chat = message.chat.as_ref().filter(named);
        Self {
            chat: chat.map(ChatId::as_str).map(ToOwned::to_owned),
            user: message.user.clone(),
            url: session.map(|session| session.url.clone()),
            expires_ms: session.map_or(0, |session| session.expires_ms),
        }
    }

    /// As the platform gets it.
    pub fn seal(&self, app: &str, secret: &str, nonce: [u8; seal::NONCE_BYTES]) -> String {
        let value = serde_json::to_vec(self).expect("texts and numbers always serialise");
        let sealed = seal::seal(secret, PURPOSE, app, nonce, &value);
        format!("{app}.{}", URL_SAFE_NO_PAD.encode(sealed))
    }

    /// The app that an address names; whether it is true shows when it is opened.
    pub fn app(text: &str) -> Option<&str> {
        text.split_once('.').map(|(app, _)| app)
    }

    /// Reads an address that [`Self::seal`] made with the same secret.
    pub fn open(text: &str, secret: &str) -> Option<Self> {
        if text.len() > BYTES_MAX {
            return None;
        }
        let (app, sealed) = text.split_once('.')?;
        let sealed = URL_SAFE_NO_PAD.decode(sealed).ok()?;
        let value = seal::open(secret, PURPOSE, app, &sealed)?;
        serde_json::from_slice(&value).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_opened_by_its_app_alone_and_shows_nothing() {
        let reply_to = ReplyTo {
            chat: Some("cidAb+cd/Ef==".into()),
            user: Some("manager0001".into()),
            url: Some("https://oapi.dingtalk.com/robot/sendBySession?session=0f".into()),
            expires_ms: 1_760_005_400_000,
        };
        let text = reply_to.seal("oncall", "secret", [1; 12]);
        assert_eq!(ReplyTo::app(&text), Some("oncall"));
        assert_eq!(ReplyTo::open(&text, "secret").as_ref(), Some(&reply_to));
        assert_eq!(ReplyTo::open(&text, "other"), None);
        assert_eq!(
            ReplyTo::open(&text.replace("oncall", "other"), "secret"),
            None
        );
        assert!(!format!("{reply_to:?}").contains("session"));
        for bad in ["", ".", "oncall.", "oncall.!!", &"x".repeat(5_000)] {
            assert_eq!(ReplyTo::open(bad, "secret"), None);
        }
    }
}
