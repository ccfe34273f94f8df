//! What the platform answers to a click or a message: the body of its 2xx.

use serde::Deserialize;
use tokio::sync::oneshot;

use crate::delivery::event::Ask;
use crate::dingtalk::card::{CardAnswer, Variables};
use crate::dingtalk::message::{At, Content};
use crate::secret::printable;

/// The platform's answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// It has taken note; there is nothing to show.
    Nothing,
    /// It has taken note and answers later, by the API (202).
    Later,
    /// The card changes.
    Card(CardAnswer),
    /// The robot says this.
    Reply(Content),
}

/// An answer of which the outbound side must know: nobody waits for it any more, and it goes out like a
/// request of the platform; or it was given in time.
#[derive(Debug)]
pub struct Late {
    /// The app that was asked.
    pub app: String,
    /// What was asked.
    pub ask: Ask,
    /// [`Answer::Card`] or [`Answer::Reply`].
    pub answer: Answer,
    /// Whether somebody got it.
    pub given: Given,
    /// Told `true` once it is certain to go out, or can never.
    pub done: oneshot::Sender<bool>,
}

/// Whether an answer was given to whoever waited. Wall times in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given {
    /// It was: DingTalk shows it.
    InTime {
        /// Since then.
        since_ms: u64,
    },
    /// It was not.
    Late {
        /// Until then DingTalk may still be taking what was shown instead, which must not overtake it.
        not_before_ms: u64,
    },
}

impl Answer {
    /// What is left to do when nobody waits any more; `None`: nothing. Somebody who clicked was shown that
    /// it is under way, which must come to an end.
    pub fn when_late(self, ask: &Ask, pending: &Variables) -> Option<Self> {
        match (ask, self) {
            // The platform ends it by the API.
            (_, Self::Later) => None,
            (Ask::Click { .. }, answer) => {
                let mut card = match answer {
                    Self::Card(card) => card,
                    _ => CardAnswer::default(),
                };
                for name in pending.keys() {
                    card.private_data.entry(name.clone()).or_default();
                }
                (!card.is_empty()).then_some(Self::Card(card))
            }
            (Ask::Message { .. }, answer @ Self::Reply(_)) => Some(answer),
            (Ask::Message { .. }, _) => None,
        }
    }

    /// Reads the body of a 2xx. A platform that does not answer may say what it likes, such as `ok`; an
    /// answer that cannot be used is an error that names the member.
    pub fn read(ask: &Ask, status: u16, body: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Body {
            card: Option<CardAnswer>,
            reply: Option<Content>,
        }
        if status == 202 {
            return Ok(Self::Later);
        }
        if !body.trim_ascii_start().starts_with(b"{") {
            return Ok(Self::Nothing);
        }
        let mut json = serde_json::Deserializer::from_slice(body);
        let body: Body = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let inner = printable(&error.inner().to_string(), 300);
            format!("{}: {inner}", printable(&error.path().to_string(), 300))
        })?;
        match (ask, body.card, body.reply) {
            (_, None, None) => Ok(Self::Nothing),
            (Ask::Click { .. }, Some(card), None) => match card.fault() {
                None => Ok(Self::Card(card)),
                Some(fault) => Err(fault),
            },
            (Ask::Message { .. }, None, Some(reply)) => {
                // What cannot be sent at all is better said to the platform now.
                reply
                    .parts_for_webhook(&At::default())
                    .map_err(|unfit| format!("reply: {unfit}"))?;
                Ok(Self::Reply(reply))
            }
            (Ask::Click { .. }, _, Some(_)) => Err("reply: a click is answered with `card`".into()),
            (Ask::Message { .. }, Some(_), _) => {
                Err("card: a message is answered with `reply`".into())
            }
        }
    }
}

/// A reply as the body of the answer to a message callback (inbound.md §3.3); `None` if it is of a kind or
/// size that such an answer cannot have.
pub fn reply_body(reply: &Content) -> Option<String> {
    match reply {
        Content::Text(_) | Content::Markdown(_) | Content::ActionCard(_) => {
            let body = reply.for_webhook(&At::default()).ok()?;
            Some(serde_json::Value::Object(body).to_string())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn click() -> Ask {
        Ask::Click {
            card: "c".into(),
            user: "u".into(),
        }
    }

    fn message() -> Ask {
        Ask::Message {
            reply_to: "r".into(),
        }
    }

    #[test]
    fn an_answer_is_what_was_asked_for_or_nothing_or_an_error() {
        for nothing in ["", "ok", "{}", r#"{"status":"received"}"#, "<html>", "[]"] {
            let read = Answer::read(&click(), 200, nothing.as_bytes());
            assert_eq!(read, Ok(Answer::Nothing), "{nothing}");
        }
        assert_eq!(Answer::read(&click(), 202, b"{}"), Ok(Answer::Later));
        let card = br#"{"card":{"data":{"status":"acked"},"private_data":{"mine":"1"}}}"#;
        let Ok(Answer::Card(answer)) = Answer::read(&click(), 200, card) else {
            panic!()
        };
        assert_eq!(answer.data["status"], "acked");
        assert_eq!(answer.private_data["mine"], "1");
        let reply = br#"{"reply":{"text":{"content":"all is well"}}}"#;
        let Ok(Answer::Reply(answer)) = Answer::read(&message(), 200, reply) else {
            panic!()
        };
        assert_eq!(
            reply_body(&answer).as_deref(),
            Some(r#"{"msgtype":"text","text":{"content":"all is well"}}"#)
        );
        let error = |ask: &Ask, body: &str| Answer::read(ask, 200, body.as_bytes()).unwrap_err();
        assert!(error(&click(), r#"{"card":{"data":{"n":1}}}"#).starts_with("card.data.n: "));
        assert!(error(&click(), r#"{"card":{"date":{}}}"#).starts_with("card"));
        assert!(error(&click(), r#"{"reply":{"text":{"content":"x"}}}"#).starts_with("reply: "));
        assert!(error(&message(), r#"{"card":{}}"#).starts_with("card: "));
        assert!(error(&message(), r#"{"reply":{"text":{"content":" "}}}"#).starts_with("reply: "));
        assert!(error(&click(), r#"{"card":"#).contains("EOF"));
        // It goes into the log.
        let long = "\u{202e}".repeat(500);
        for value in ["7", "\"x\""] {
            let told = error(
                &click(),
                &format!(r#"{{"card":{{"data":{{"{long}":{value}}}}}}}"#),
            );
            assert!(told.len() < 1_000 && !told.contains('\u{202e}'), "{told}");
        }
        let much: Vec<_> = (0..200)
            .map(|n| format!(r#""k{n}":"{}""#, "x".repeat(1_000)))
            .collect();
        let much = format!(r#"{{"card":{{"data":{{{}}}}}}}"#, much.join(","));
        assert!(error(&click(), &much).starts_with("card: "));
    }

    #[test]
    fn a_late_answer_ends_what_was_pending() {
        let pending: Variables = [("dingd_state".to_owned(), "pending".to_owned())].into();
        let private = |answer: Option<Answer>| match answer {
            Some(Answer::Card(card)) => card.private_data,
            other => panic!("{other:?}"),
        };
        let late = Answer::Nothing.when_late(&click(), &pending);
        assert_eq!(private(late)["dingd_state"], "");
        let mut own = CardAnswer::default();
        own.private_data.insert("dingd_state".into(), "done".into());
        let late = Answer::Card(own).when_late(&click(), &pending);
        assert_eq!(private(late)["dingd_state"], "done");
        assert_eq!(Answer::Nothing.when_late(&click(), &Variables::new()), None);
        assert_eq!(Answer::Later.when_late(&click(), &pending), None);
        assert_eq!(Answer::Nothing.when_late(&message(), &pending), None);
    }

    #[test]
    fn a_link_is_no_answer_to_a_callback() {
        let link = br#"{"reply":{"link":{"title":"t","text":"x","url":"https://e"}}}"#;
        let Ok(Answer::Reply(link)) = Answer::read(&message(), 200, link) else {
            panic!()
        };
        assert_eq!(reply_body(&link), None);
    }
}
