//! What an event callback says.
//!
//! DingTalk's own pages and captures disagree about the casing of members, so names are matched
//! without regard to ASCII case, after duplicates were refused (inbound.md §2.1–§2.2).

use super::frame::EventHead;
use super::members::{Members, string};

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// DingTalk's name for it, such as `chat_update_title`. Printable ASCII, at most 128 bytes.
    pub kind: String,
    /// DingTalk's id, if this event has one.
    pub id: Option<String>,
    /// What is modelled of it.
    pub detail: Detail,
}

/// The part that the daemon understands. A known event with unusable members is [`Detail::Other`]:
/// it is forwarded all the same, because its raw text is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detail {
    /// The console's test of the URL: answered, neither stored nor forwarded.
    CheckUrl,
    /// A group has a new title (inbound.md §2.3).
    ChatRenamed {
        /// openConversationId.
        chat: ChatId,
        /// The new title.
        title: String,
        /// Who did it (userid).
        operator: Option<String>,
        /// When, in milliseconds, by the payload.
        at_ms: u64,
    },
    /// The cool app was put into a group (§2.4).
    CoolAppInstalled(CoolApp),
    /// The cool app was taken out of a group (§2.4).
    CoolAppUninstalled(CoolApp),
    /// The group is gone (§2.5).
    ChatDisbanded {
        /// openConversationId.
        chat: ChatId,
        /// Who did it (userid).
        operator: Option<String>,
        /// When, in milliseconds, by the payload.
        at_ms: u64,
    },
    /// People left the organisation (§2.6).
    UserLeft {
        /// Their userids.
        users: Vec<String>,
        /// When, in milliseconds, by the payload.
        at_ms: Option<u64>,
    },
    /// Everything else.
    Other,
}

/// A cool app in a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoolApp {
    /// openConversationId.
    pub chat: ChatId,
    /// `COOLAPP-1-…`.
    pub cool_app_code: Option<String>,
    /// The robot that came with it.
    pub robot_code: Option<String>,
    /// Who did it (userid).
    pub operator: Option<String>,
    /// When, in milliseconds, by the payload.
    pub at_ms: u64,
}

/// An openConversationId: `cid` and base64 characters; `+`, `/` and `=` are part of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChatId(String);

impl ChatId {
    /// Checks the form; the length is not checked as base64 (design §4).
    pub fn new(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("cid")?;
        let core = rest.trim_end_matches('=');
        let sound = (2..=120).contains(&core.len())
            && rest.len() - core.len() <= 2
            && core
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/');
        sound.then(|| Self(text.to_owned()))
    }

    /// The id as DingTalk writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Reads the decrypted text of an event. The error says what is wrong with it.
pub fn parse(text: &str) -> Result<Event, &'static str> {
    let members = Members::read(text)?;
    let mut kinds = members.all("eventtype").map(string);
    let kind = kinds.next().flatten().ok_or("no event type")?;
    if kinds.any(|other| other.as_ref() != Some(&kind)) {
        return Err("two event types that differ");
    }
    event(kind, None, members.millis("EventTime"), &members)
}

/// Reads an event whose type, id and time stand outside of it, as in a Stream frame. They decide: a member
/// of the same name inside is the event's own business (inbound.md §2.5).
pub fn parse_typed(head: EventHead, text: &str) -> Result<Event, &'static str> {
    event(head.kind, head.id, head.born_ms, &Members::read(text)?)
}

fn event(
    kind: String,
    id: Option<String>,
    sent_ms: Option<u64>,
    members: &Members<'_>,
) -> Result<Event, &'static str> {
    if kind.is_empty() || kind.len() > 128 || !kind.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("an event type that is not printable");
    }
    let id = id
        .or_else(|| members.text("eventId"))
        .filter(|id| !id.is_empty() && id.len() <= 256);
    let detail = detail(&kind, sent_ms, members).unwrap_or(Detail::Other);
    Ok(Event { kind, id, detail })
}

fn detail(kind: &str, sent_ms: Option<u64>, members: &Members<'_>) -> Option<Detail> {
    let chat = || ChatId::new(&members.text("openConversationId")?);
    let operator = members.text("operator").filter(|o| !o.is_empty());
    let cool_app = || {
        Some(CoolApp {
            chat: chat()?,
            cool_app_code: members.text("coolAppCode").filter(|c| !c.is_empty()),
            robot_code: members.text("robotCode").filter(|c| !c.is_empty()),
            operator: operator.clone(),
            at_ms: members.millis("operateTime").or(sent_ms)?,
        })
    };
    let at_ms = || members.millis("timeStamp").or(sent_ms);
    match kind {
        "check_url" => Some(Detail::CheckUrl),
        "chat_update_title" => Some(Detail::ChatRenamed {
            chat: chat()?,
            title: members.text("title")?,
            operator: operator.clone(),
            at_ms: at_ms()?,
        }),
        "im_cool_app_install" => cool_app().map(Detail::CoolAppInstalled),
        "im_cool_app_uninstall" => cool_app().map(Detail::CoolAppUninstalled),
        "chat_disband" => Some(Detail::ChatDisbanded {
            chat: chat()?,
            operator: operator.clone(),
            at_ms: at_ms()?,
        }),
        "user_leave_org" => Some(Detail::UserLeft {
            users: members.list("userId")?,
            at_ms: at_ms(),
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn renamed(text: &str) -> Detail {
        parse(text).unwrap().detail
    }

    #[test]
    fn both_casings_of_a_rename_mean_the_same() {
        let lower = r#"{"EventType":"chat_update_title","EventTime":1,"CorpId":"a","eventId":"e","timeStamp":1760000000100,"corpId":"b","title":"值班告警群","openConversationId":"cidAb+cd/Ef==","operator":"manager0001"}"#;
        let pascal = r#"{"Operator":"manager0001","OpenConversationId":"cidAb+cd/Ef==","CorpId":"a","EventType":"chat_update_title","Title":"值班告警群","TimeStamp":"1760000000100","ChatId":"chat00"}"#;
        assert_eq!(renamed(lower), renamed(pascal));
        let Detail::ChatRenamed { title, at_ms, .. } = renamed(lower) else {
            panic!()
        };
        assert_eq!((title.as_str(), at_ms), ("值班告警群", 1_760_000_000_100));
    }

    #[test]
    fn what_stands_outside_of_an_event_decides_and_is_missed_by_nobody() {
        let head = |kind: &str| EventHead {
            id: Some("outer".into()),
            kind: kind.into(),
            corp: None,
            born_ms: Some(7),
        };
        let text = r#"{"eventId":"inner","eventType":"other","title":"t","openConversationId":"cidAb+cd/Ef=="}"#;
        let event = parse_typed(head("chat_update_title"), text).unwrap();
        assert_eq!(event.id.as_deref(), Some("outer"));
        let Detail::ChatRenamed { at_ms, .. } = event.detail else {
            panic!("{event:?}")
        };
        assert_eq!(at_ms, 7, "no other time was named");
        let nameless = EventHead {
            id: None,
            ..head("chat_update_title")
        };
        let event = parse_typed(nameless, text).unwrap();
        assert_eq!(event.id.as_deref(), Some("inner"));
        for (kind, text) in [("", "{}"), ("a b", "{}"), ("a", "[]"), ("a", "")] {
            assert!(parse_typed(head(kind), text).is_err(), "{kind} {text}");
        }
    }

    #[test]
    fn a_known_event_with_unusable_members_is_kept_as_other() {
        let text = r#"{"EventType":"chat_update_title","title":7,"openConversationId":"cid=="}"#;
        assert_eq!(renamed(text), Detail::Other);
    }

    #[test]
    fn what_is_ambiguous_or_hostile_is_refused() {
        for text in [
            "[]",
            "{}",
            r#"{"EventType":1}"#,
            r#"{"EventType":"a","EventType":"a"}"#,
            r#"{"EventType":"a","eventType":"b"}"#,
            r#"{"EventType":"a b\n"}"#,
            r#"{"EventType":""}"#,
            &format!(
                r#"{{"EventType":"a","x":{}{}}}"#,
                "[".repeat(64),
                "]".repeat(64)
            ),
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_chat_id_keeps_its_plus_slash_and_equals() {
        for good in ["cidAb+cd/Ef==", "cid12", "cidab="] {
            assert_eq!(ChatId::new(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            "cid",
            "cid=",
            "cidab===",
            "cida b==",
            "chat12",
            "cid../..",
            &format!("cid{}", "a".repeat(121)),
        ] {
            assert_eq!(ChatId::new(bad), None, "{bad}");
        }
    }

    #[test]
    fn users_come_as_a_list_or_as_one() {
        for text in [
            r#"{"EventType":"user_leave_org","userId":["a"],"timeStamp":"5"}"#,
            r#"{"EventType":"user_leave_org","UserId":"a","TimeStamp":5}"#,
        ] {
            assert_eq!(
                renamed(text),
                Detail::UserLeft {
                    users: vec!["a".into()],
                    at_ms: Some(5)
                }
            );
        }
    }
}
