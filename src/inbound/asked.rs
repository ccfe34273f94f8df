//! Clicks on cards and messages to the robot in the platform's terms. They want an answer.
//!
//! Nothing that they say is signed (inbound.md §3.1, §4.1): they are what somebody claims, and never a proof.

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::App;
use super::apply::{Meaning, other};
use super::verify::Verified;
use crate::clock::rfc3339;
use crate::delivery::event::Ask;
use crate::delivery::id::digest;
use crate::dingtalk::card::Click;
use crate::dingtalk::event::ChatId;
use crate::dingtalk::reply::ReplyTo;
use crate::dingtalk::robot::{RobotMessage, Session, without_session};
use crate::directory::chats::Change;
use crate::http::transport::Origin;
use crate::journal::aged::Digest;
use crate::seal;

/// How the address of a session goes on behind the host (outbound.md §3.6).
const SESSION_PATH: &str = "/robot/sendBySession?session=";
/// A longer one would make an address for replies that nobody could open any more.
const SESSION_BYTES_MAX: usize = 1_024;

/// A click in the slice of time `slice`, which says the same again as one click.
pub fn click(
    app: &App,
    click: &Click,
    text: &str,
    same_bytes: Digest,
    slice: u64,
    at_ms: u64,
) -> Verified {
    #[derive(Serialize)]
    struct Data<'a> {
        card: &'a str,
        user: &'a str,
        actions: &'a [String],
        params: &'a RawValue,
        chat: Option<&'a str>,
        at: String,
        raw: Option<&'a RawValue>,
    }
    let data = Data {
        card: &click.card,
        user: &click.user,
        actions: &click.actions,
        params: &click.params,
        chat: click.chat.as_ref().map(ChatId::as_str),
        at: rfc3339(at_ms),
        raw: serde_json::from_str(text).ok(),
    };
    Verified {
        meaning: Meaning {
            kind: "dingtalk.card.clicked".to_owned(),
            subject: Some(click.card.clone()),
            data: to_raw_value(&data).expect("texts and JSON always serialise"),
            change: None,
        },
        ask: Some(Ask::Click {
            card: click.card.clone(),
            user: click.user.clone(),
        }),
        same_bytes,
        same_event: same_click(app, click, slice),
    }
}

/// The key of a click: the same person, card, buttons and values within one slice of time.
pub fn same_click(app: &App, click: &Click, slice: u64) -> Digest {
    let slice = slice.to_be_bytes();
    let mut parts = vec![
        &b"click"[..],
        app.name.as_bytes(),
        click.card.as_bytes(),
        click.user.as_bytes(),
        click.params.get().as_bytes(),
        &slice,
    ];
    parts.extend(click.actions.iter().map(String::as_bytes));
    digest(&parts)
}

/// Another kind of callback of a card: told to the platform, not answered.
pub fn other_callback(app: &App, kind: &str, text: &str, same_bytes: Digest) -> Verified {
    #[derive(Serialize)]
    struct Data<'a> {
        raw: Option<&'a RawValue>,
    }
    let data = Data {
        raw: serde_json::from_str(text).ok(),
    };
    Verified {
        meaning: Meaning {
            kind: other(kind),
            subject: None,
            data: to_raw_value(&data).expect("JSON always serialises"),
            change: None,
        },
        ask: None,
        same_bytes,
        same_event: digest(&[b"card callback", app.name.as_bytes(), &same_bytes]),
    }
}

/// The address for replies to a message. `origins` are the hosts that its session may lead to.
pub fn reply_to(
    app: &App,
    message: &RobotMessage,
    origins: &[Origin],
    nonce: [u8; seal::NONCE_BYTES],
) -> String {
    let session = message.session.as_ref();
    let session = session.filter(|session| is_allowed(session, origins));
    ReplyTo::of(message, session).seal(&app.name, app.client_secret.expose(), nonce)
}

/// A message to the robot. Replies go to `reply_to`.
pub fn message(
    app: &App,
    message: &RobotMessage,
    text: &str,
    same_bytes: Digest,
    wall_ms: u64,
    reply_to: String,
) -> Verified {
    #[derive(Serialize)]
    struct Data<'a> {
        chat: Option<&'a str>,
        chat_title: Option<&'a str>,
        conversation: &'static str,
        user: Option<&'a str>,
        user_nick: Option<&'a str>,
        kind: &'a str,
        text: Option<&'a str>,
        message_id: &'a str,
        at: String,
        trust: &'static str,
        reply_to: &'a str,
        raw: Option<&'a RawValue>,
    }
    let raw = without_session(text);
    // Whoever made it up could date it ahead of every later title.
    let at_ms = message.at_ms.map_or(wall_ms, |at_ms| at_ms.min(wall_ms));
    let data = Data {
        chat: message.chat.as_ref().map(ChatId::as_str),
        chat_title: message.title.as_deref(),
        conversation: if message.group { "group" } else { "single" },
        user: message.user.as_deref(),
        user_nick: message.nick.as_deref(),
        kind: &message.kind,
        text: message.text.as_deref(),
        message_id: &message.id,
        at: rfc3339(at_ms),
        trust: "low",
        reply_to: &reply_to,
        raw: serde_json::from_str(&raw).ok(),
    };
    let title = message.title.clone();
    let change = title.map(|title| Change::Said { title, at_ms });
    let group = message.chat.clone().filter(|_| message.group);
    Verified {
        meaning: Meaning {
            kind: "dingtalk.robot.message".to_owned(),
            subject: message.chat.as_ref().map(|chat| chat.as_str().to_owned()),
            data: to_raw_value(&data).expect("texts and JSON always serialise"),
            change: group.zip(change),
        },
        ask: Some(Ask::Message { reply_to }),
        same_bytes,
        same_event: same_message(app, message),
    }
}

/// The key of a message: DingTalk's id of it and what it says. Nothing but its time is signed, so that id alone
/// could be used up by whoever knows it. The session is not among it: over Stream it is another one.
fn same_message(app: &App, message: &RobotMessage) -> Digest {
    let chat = message.chat.as_ref().map_or("", |chat| chat.as_str());
    let said = [
        app.name.as_str(),
        &message.id,
        chat,
        message.user.as_deref().unwrap_or_default(),
        &message.kind,
        message.text.as_deref().unwrap_or_default(),
    ];
    let said = said.map(str::as_bytes);
    digest(&[&[b"robot message".as_slice()], &said[..]].concat())
}

/// Anybody who saw one signature can write any URL into a message: only sessions at DingTalk's hosts are
/// called. A webhook of whoever made it up is at those as well, and leads into a group of their own.
fn is_allowed(session: &Session, origins: &[Origin]) -> bool {
    let leads_to_one = |(origin, path): (Origin, String)| {
        origins.contains(&origin) && path.starts_with(SESSION_PATH)
    };
    session.url.len() <= SESSION_BYTES_MAX
        && Origin::parse(&session.url, false).is_ok_and(leads_to_one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dingtalk::card::Callback;
    use crate::secret::Secret;

    fn app() -> App {
        App {
            name: "oncall".into(),
            client_secret: Secret::new("client secret"),
            ..App::default()
        }
    }

    #[test]
    fn a_click_says_who_did_what_on_which_card() {
        let text = r#"{"type":"actionCallback","outTrackId":"alert-1","userId":"u1","content":"{\"cardPrivateData\":{\"actionIds\":[\"ack\"],\"params\":{\"n\":1}}}"}"#;
        let read = Callback::read(text).unwrap().click.unwrap();
        let verified = click(&app(), &read, text, [1; 16], 7, 1_760_000_000_100);
        assert_eq!(verified.meaning.kind, "dingtalk.card.clicked");
        assert_eq!(verified.meaning.subject.as_deref(), Some("alert-1"));
        assert_eq!(
            verified.meaning.data.get(),
            format!(
                r#"{{"card":"alert-1","user":"u1","actions":["ack"],"params":{{"n":1}},"chat":null,"at":"2025-10-09T08:53:20.100Z","raw":{text}}}"#
            )
        );
        let again = |slice| same_click(&app(), &read, slice);
        assert_eq!(verified.same_event, again(7));
        assert_ne!(verified.same_event, again(8));
    }

    #[test]
    fn a_message_has_low_trust_and_an_address_for_replies_but_not_its_secret() {
        let url = "https://oapi.dingtalk.com/robot/sendBySession?session=0f";
        let text = format!(
            r#"{{"msgId":"m1","conversationType":"2","conversationId":"cidAb","conversationTitle":"群","senderStaffId":"u1","createAt":99,"sessionWebhook":"{url}","sessionWebhookExpiredTime":1000,"msgtype":"text","text":{{"content":" hi"}}}}"#
        );
        let read = RobotMessage::read(&text).unwrap();
        let oapi = Origin::parse("https://oapi.dingtalk.com", false).unwrap().0;
        let verified = |origins: &[Origin]| {
            let reply_to = reply_to(&app(), &read, origins, [2; 12]);
            message(&app(), &read, &text, [1; 16], 50, reply_to)
        };
        let ours = verified(&[oapi]);
        assert!(!ours.meaning.data.get().contains("sendBySession"));
        assert!(ours.meaning.data.get().contains(r#""trust":"low""#));
        let at_ms = |change: Option<(ChatId, Change)>| match change {
            Some((_, Change::Said { at_ms, .. })) => at_ms,
            _ => panic!("no title"),
        };
        assert_eq!(at_ms(ours.meaning.change), 50, "not from the future");
        let session_of = |ask: Option<Ask>| match ask {
            Some(Ask::Message { reply_to }) => {
                ReplyTo::open(&reply_to, "client secret").unwrap().url
            }
            _ => panic!("no address"),
        };
        assert_eq!(session_of(ours.ask).as_deref(), Some(url));
        assert_eq!(session_of(verified(&[]).ask), None, "another host");
    }
}
