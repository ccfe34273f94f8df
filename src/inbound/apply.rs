//! What an event means: for the platform (type, subject, members) and for the directory (a change).
//! Clicks and messages, which want an answer, are in [`super::asked`].

use serde::Serialize;
use serde_json::value::RawValue;

use crate::clock::rfc3339;
use crate::dingtalk::event::{ChatId, CoolApp, Detail, Event};
use crate::directory::chats::Change;

/// An event in the platform's terms (design §4).
#[derive(Debug)]
pub struct Meaning {
    /// Such as `dingtalk.chat.renamed`.
    pub kind: String,
    /// What it is about, whose order is kept: a conversation or a card.
    pub subject: Option<String>,
    /// The members of `data`, as JSON.
    pub data: Box<RawValue>,
    /// What it changes in which conversation.
    pub change: Option<(ChatId, Change)>,
}

#[derive(Default, Serialize)]
struct Data<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    chat: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cool_app_code: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    robot_code: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    users: Option<&'a [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    operator: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<String>,
    raw: Option<&'a RawValue>,
}

/// Reads the meaning of an event; `text` is its decrypted text.
pub fn meaning(event: &Event, text: &str) -> Meaning {
    let plain = Data {
        raw: serde_json::from_str(text).ok(),
        ..Data::default()
    };
    let (kind, chat, data, change) = match &event.detail {
        Detail::ChatRenamed {
            chat,
            title,
            operator,
            at_ms,
        } => (
            "dingtalk.chat.renamed".to_owned(),
            Some(chat),
            Data {
                chat: Some(chat.as_str()),
                title: Some(title),
                operator: operator.as_deref(),
                at: Some(rfc3339(*at_ms)),
                ..plain
            },
            Some(Change::Titled {
                title: title.clone(),
                at_ms: *at_ms,
            }),
        ),
        Detail::CoolAppInstalled(app) => (
            "dingtalk.cool_app.installed".to_owned(),
            Some(&app.chat),
            cool_app(app, plain.raw),
            Some(Change::Installed(app.clone())),
        ),
        Detail::CoolAppUninstalled(app) => (
            "dingtalk.cool_app.uninstalled".to_owned(),
            Some(&app.chat),
            cool_app(app, plain.raw),
            Some(Change::Uninstalled {
                at_ms: app.at_ms,
                disbanded: false,
            }),
        ),
        Detail::ChatDisbanded { chat, at_ms, .. } => (
            other(&event.kind),
            Some(chat),
            plain,
            Some(Change::Uninstalled {
                at_ms: *at_ms,
                disbanded: true,
            }),
        ),
        Detail::UserLeft { users, at_ms } => (
            "dingtalk.user.left".to_owned(),
            None,
            Data {
                users: Some(users),
                at: at_ms.map(rfc3339),
                ..plain
            },
            None,
        ),
        Detail::CheckUrl | Detail::Other => (other(&event.kind), None, plain, None),
    };
    let data =
        serde_json::value::to_raw_value(&data).expect("strings and JSON text always serialise");
    Meaning {
        kind,
        subject: chat.map(|chat| chat.as_str().to_owned()),
        data,
        change: chat.cloned().zip(change),
    }
}

/// The type of an event that is not modelled.
pub(super) fn other(kind: &str) -> String {
    format!("dingtalk.event.{kind}")
}

fn cool_app<'a>(app: &'a CoolApp, raw: Option<&'a RawValue>) -> Data<'a> {
    Data {
        chat: Some(app.chat.as_str()),
        cool_app_code: app.cool_app_code.as_deref(),
        robot_code: app.robot_code.as_deref(),
        operator: app.operator.as_deref(),
        at: Some(rfc3339(app.at_ms)),
        raw,
        ..Data::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dingtalk::event;

    #[test]
    fn a_rename_carries_its_members_beside_the_raw_text() {
        let text = r#"{"EventType":"chat_update_title","timeStamp":1760000000100,"title":"新群名","openConversationId":"cidAb+cd/Ef==","operator":"manager0001"}"#;
        let meaning = meaning(&event::parse(text).unwrap(), text);
        assert_eq!(meaning.kind, "dingtalk.chat.renamed");
        assert_eq!(
            meaning.data.get(),
            format!(
                r#"{{"chat":"cidAb+cd/Ef==","title":"新群名","operator":"manager0001","at":"2025-10-09T08:53:20.100Z","raw":{text}}}"#
            )
        );
    }

    #[test]
    fn an_unknown_event_is_forwarded_under_its_own_name() {
        let text = r#"{"EventType":"bpms_instance_change"}"#;
        let meaning = meaning(&event::parse(text).unwrap(), text);
        assert_eq!(meaning.kind, "dingtalk.event.bpms_instance_change");
        assert_eq!(meaning.data.get(), format!(r#"{{"raw":{text}}}"#));
    }
}
