//! What somebody said to the robot (inbound.md §3.2).

use std::borrow::Cow;

use super::event::ChatId;
use super::members::{Members, everywhere};

const ID_BYTES_MAX: usize = 256;
/// A longer title is cut: it is kept for as long as the group is known.
const TITLE_CHARS_MAX: usize = 256;

/// One message to the robot. The signature does not cover any of it: what it says is what somebody claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RobotMessage {
    /// `msgId`: the same when it comes again.
    pub id: String,
    /// The conversation: of a group it is the openConversationId.
    pub chat: Option<ChatId>,
    /// The group's title.
    pub title: Option<String>,
    /// Whether it was said in a group.
    pub group: bool,
    /// Who (userid); missing for people outside the organisation and before the robot is published.
    pub user: Option<String>,
    /// What that person is called.
    pub nick: Option<String>,
    /// `text`, `richText`, `picture`, `audio`, `video`, `file`, another word of DingTalk's, or
    /// `quota_exceeded`: then the words are DingTalk's, and what was said is lost.
    pub kind: String,
    /// The words, as far as it has any; of an audio what DingTalk heard.
    pub text: Option<String>,
    /// When it was said, in milliseconds, by DingTalk's clock.
    pub at_ms: Option<u64>,
    /// Where an answer may be posted.
    pub session: Option<Session>,
    /// Of the robot, if named.
    pub robot_code: Option<String>,
    /// Of the robot's organisation, else of the speaker's, if named.
    pub corp: Option<String>,
}

/// An address for answers that needs no token: a secret for as long as it lives.
#[derive(Clone, PartialEq, Eq)]
pub struct Session {
    /// The URL, unchecked.
    pub url: String,
    /// Wall time of its end, in milliseconds.
    pub expires_ms: u64,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("expires_ms", &self.expires_ms)
            .finish_non_exhaustive()
    }
}

impl RobotMessage {
    /// Reads the body of a message callback. The error says what is wrong with it.
    pub fn read(body: &str) -> Result<Self, &'static str> {
        let members = Members::read(body)?;
        let plain = |name| {
            let sound = |id: &String| {
                (1..=ID_BYTES_MAX).contains(&id.len()) && !id.chars().any(char::is_control)
            };
            members.text(name).filter(sound)
        };
        let id = plain("msgId").ok_or("no usable msgId")?;
        let chat = plain("conversationId").and_then(|id| ChatId::new(&id));
        // A number in some clients' models.
        let group = match members.millis("conversationType") {
            Some(1) => false,
            Some(2) => true,
            _ => return Err("no usable conversationType"),
        };
        let user = plain("senderStaffId");
        if chat.is_none() && user.is_none() {
            return Err("neither a conversation nor a sender");
        }
        let (kind, text) = said(&members, plain("msgtype"));
        let session = members
            .text("sessionWebhook")
            .filter(|url| !url.is_empty())
            .zip(members.millis("sessionWebhookExpiredTime"))
            .map(|(url, expires_ms)| Session { url, expires_ms });
        Ok(Self {
            id,
            chat,
            title: members
                .text("conversationTitle")
                .filter(|title| group && !title.is_empty())
                .map(|title| title.chars().take(TITLE_CHARS_MAX).collect()),
            group,
            user,
            nick: members.text("senderNick").filter(|nick| !nick.is_empty()),
            kind,
            text,
            at_ms: members.millis("createAt"),
            session,
            robot_code: plain("robotCode"),
            corp: plain("chatbotCorpId").or_else(|| plain("senderCorpId")),
        })
    }
}

/// The kind of a message and its words.
fn said(members: &Members<'_>, msgtype: Option<String>) -> (String, Option<String>) {
    let trimmed = |text: String| text.trim().to_owned();
    let inside = |name, member| {
        members
            .all(name)
            .find_map(|value| Members::read(value.get()).ok()?.text(member))
    };
    let kind = msgtype
        .filter(|kind| kind.bytes().all(|b| b.is_ascii_graphic()))
        .unwrap_or_else(|| "unknownMsgType".to_owned());
    let has_content = members.all("text").chain(members.all("content")).next();
    if has_content.is_none() {
        for (code, words) in [("errorCode", "errorMessage"), ("errCode", "errMsg")] {
            if members.millis(code) == Some(20_001) {
                return ("quota_exceeded".to_owned(), members.text(words));
            }
        }
    }
    // In front of the words stands the blank behind the removed mention.
    let text = match kind.as_str() {
        "text" => inside("text", "content").map(trimmed),
        "audio" => inside("content", "recognition").map(trimmed),
        "richText" => members.all("content").find_map(|value| {
            let content = Members::read(value.get()).ok()?;
            let parts = content.all("richText").next()?.get();
            let parts: Vec<&serde_json::value::RawValue> = serde_json::from_str(parts).ok()?;
            let texts = parts
                .iter()
                .filter_map(|part| Members::read(part.get()).ok()?.text("text"));
            Some(trimmed(texts.collect::<String>()))
        }),
        _ => None,
    };
    (kind, text)
}

/// The body without the address for answers, which is a secret; all else stays as it came. A quoted message
/// may have one as well.
pub fn without_session(body: &str) -> Cow<'_, str> {
    const NAME: &str = "sessionWebhook";
    let outermost = || Some(Members::read(body).ok()?.all(NAME).collect());
    let values = everywhere(body, NAME).or_else(outermost);
    let mut places: Vec<_> = values
        .unwrap_or_default()
        .into_iter()
        .filter_map(|value| {
            // The value is a part of the body.
            let at = (value.get().as_ptr() as usize).checked_sub(body.as_ptr() as usize)?;
            Some((at, value.get().len()))
        })
        .collect();
    if places.is_empty() {
        return Cow::Borrowed(body);
    }
    places.sort_unstable();
    let mut out = String::with_capacity(body.len());
    let mut from = 0;
    for (at, len) in places {
        out.push_str(body.get(from..at).unwrap_or_default());
        out.push_str("\"\"");
        from = at + len;
    }
    out.push_str(body.get(from..).unwrap_or_default());
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sample of inbound.md §3.2 with other members in the place of the text.
    fn sample(rest: &str) -> String {
        format!(
            r#"{{"conversationId":"cidAb+cd/Ef==","atUsers":[{{"dingtalkId":"$:LWCP_v1:$bot"}}],
            "chatbotCorpId":"dingcorp","msgId":"msgAb==","senderNick":"张三","isAdmin":false,
            "senderStaffId":"manager0001","sessionWebhookExpiredTime":1760005400000,"createAt":"1760000000000",
            "senderCorpId":"dingcorp","conversationType":"2","conversationTitle":"值班告警群",
            "sessionWebhook":"https://oapi.dingtalk.com/robot/sendBySession?session=0f",
            "robotCode":"dingappkey",{rest}}}"#
        )
    }

    #[test]
    fn a_message_in_a_group_is_read() {
        let body = sample(r#""text":{"content":" ack 123 "},"msgtype":"text""#);
        let message = RobotMessage::read(&body).unwrap();
        assert_eq!(
            message,
            RobotMessage {
                id: "msgAb==".into(),
                chat: ChatId::new("cidAb+cd/Ef=="),
                title: Some("值班告警群".into()),
                group: true,
                user: Some("manager0001".into()),
                nick: Some("张三".into()),
                kind: "text".into(),
                text: Some("ack 123".into()),
                at_ms: Some(1_760_000_000_000),
                session: Some(Session {
                    url: "https://oapi.dingtalk.com/robot/sendBySession?session=0f".into(),
                    expires_ms: 1_760_005_400_000,
                }),
                robot_code: Some("dingappkey".into()),
                corp: Some("dingcorp".into()),
            }
        );
    }

    #[test]
    fn the_words_of_every_kind_are_found() {
        for (rest, kind, text) in [
            (
                r#""msgtype":"text","text":{"content":" hi"}"#,
                "text",
                Some("hi"),
            ),
            (
                r#""msgtype":"richText","content":{"richText":[{"text":"a "},{"downloadCode":"x","type":"picture"},{"text":"b"}]}"#,
                "richText",
                Some("a b"),
            ),
            (
                r#""msgtype":"audio","content":{"duration":4000,"downloadCode":"x","recognition":"all down"}"#,
                "audio",
                Some("all down"),
            ),
            (
                r#""msgtype":"picture","content":{"downloadCode":"x"}"#,
                "picture",
                None,
            ),
            (
                r#""msgtype":"video","content":{"downloadCode":"x"}"#,
                "video",
                None,
            ),
            (
                r#""msgtype":"file","content":{"downloadCode":"x","fileName":"a"}"#,
                "file",
                None,
            ),
            (r#""msgtype":"unknownMsgType""#, "unknownMsgType", None),
            (r#""msgtype":"text","text":"no object""#, "text", None),
            (r#""msgtype":"text","text":{"content":7}"#, "text", None),
            (r#""msgtype":7"#, "unknownMsgType", None),
            (
                r#""msgtype":"text","errorCode":20001,"errorMessage":"used up""#,
                "quota_exceeded",
                Some("used up"),
            ),
            (
                r#""msgtype":"text","errCode":"20001","errMsg":"used up""#,
                "quota_exceeded",
                Some("used up"),
            ),
        ] {
            let message = RobotMessage::read(&sample(rest)).unwrap();
            assert_eq!(
                (message.kind.as_str(), message.text.as_deref()),
                (kind, text),
                "{rest}"
            );
        }
    }

    #[test]
    fn what_cannot_be_a_message_is_refused() {
        let good = r#"{"msgId":"m","conversationType":"1","senderStaffId":"u"}"#;
        assert!(RobotMessage::read(good).is_ok());
        for text in [
            "",
            "[]",
            "{}",
            r#"{"msgId":7,"conversationType":"1","senderStaffId":"u"}"#,
            r#"{"msgId":"","conversationType":"1","senderStaffId":"u"}"#,
            r#"{"msgId":"m","senderStaffId":"u"}"#,
            r#"{"msgId":"m","conversationType":"3","senderStaffId":"u"}"#,
            r#"{"msgId":"m","conversationType":"1"}"#,
            r#"{"msgId":"m","conversationType":"2","conversationId":"nonsense"}"#,
            r#"{"msgId":"m","msgId":"m","conversationType":"1","senderStaffId":"u"}"#,
        ] {
            assert!(RobotMessage::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_address_for_answers_is_taken_out_and_nothing_else() {
        let body = sample(r#""text":{"content":" hi"},"SessionWebhook":"https://other""#);
        let clean = without_session(&body);
        assert!(!clean.contains("sendBySession") && !clean.contains("https://other"));
        let expected = body
            .replace(
                "\"https://oapi.dingtalk.com/robot/sendBySession?session=0f\"",
                "\"\"",
            )
            .replace("\"https://other\"", "\"\"");
        assert_eq!(clean, expected);
        assert_eq!(without_session("{}"), "{}");
        // Of a quoted message as well, however it is spelt.
        let body = sample(
            r#""text":{"repliedMsg":{"sessionWebhook":"https://a","n":[1,-2.5e3,{"sessionWebhoo\u006b":{"url":"https://b"},"x":null}]}}"#,
        );
        let clean = without_session(&body);
        assert!(!clean.contains("https://"), "{clean}");
        assert!(clean.contains(r#""n":[1,-2.5e3,{"sessionWebhoo\u006b":"","x":null}]"#));
    }

    #[test]
    fn a_session_is_not_printed() {
        let body = sample(r#""msgtype":"text""#);
        let message = RobotMessage::read(&body).unwrap();
        assert!(!format!("{message:?}").contains("sendBySession"));
    }
}
