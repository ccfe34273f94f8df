//! Everything that can be said to a robot, in the members that its callback has for it.

use serde_json::{Map, Value, json};

use super::{Speech, session};
use crate::sim::clock;
use crate::sim::dingtalk::world::World;

/// What somebody says.
#[derive(Debug, Clone)]
pub enum Words {
    /// Text; in a group it keeps the blank that stood behind the mention.
    Text(String),
    /// Text and pictures.
    RichText(Vec<Part>),
    /// A picture.
    Picture,
    /// A recording, and the words that DingTalk heard in it.
    Audio(String),
    /// A film.
    Video,
    /// A file with this name.
    File(String),
    /// Something that robots are not shown.
    Unknown,
    /// A message that the organisation has no allowance left for: an error in place of the words.
    /// The pages spell its members in two ways, of which the short one is `errCode`.
    OverQuota {
        /// Whether the short spelling is used.
        short: bool,
    },
}

/// A piece of rich text.
#[derive(Debug, Clone)]
pub enum Part {
    /// Text.
    Text(String),
    /// A picture.
    Picture,
}

impl Words {
    /// `msgtype`, and the members that carry what was said.
    fn members(&self, in_group: bool) -> (&'static str, Value) {
        let (kind, content) = match self {
            Self::Text(text) => {
                let blank = if in_group { " " } else { "" };
                return (
                    "text",
                    json!({"text": {"content": format!("{blank}{text}")}}),
                );
            }
            Self::RichText(parts) => {
                let parts: Vec<Value> = parts.iter().map(Part::json).collect();
                ("richText", json!({"richText": parts}))
            }
            Self::Picture => ("picture", json!({"downloadCode": code()})),
            Self::Audio(heard) => (
                "audio",
                json!({"duration": 4_000, "downloadCode": code(), "recognition": heard}),
            ),
            Self::Video => (
                "video",
                json!({"duration": 4_000, "downloadCode": code(), "videoType": "mp4"}),
            ),
            Self::File(name) => ("file", json!({"downloadCode": code(), "fileName": name})),
            Self::Unknown => return ("unknownMsgType", json!({})),
            // Whether the code is a number or text is not printed either.
            Self::OverQuota { short: true } => {
                return ("text", json!({"errCode": 20_001, "errMsg": OVER_QUOTA}));
            }
            Self::OverQuota { short: false } => {
                return (
                    "text",
                    json!({"errorCode": "20001", "errorMessage": OVER_QUOTA}),
                );
            }
        };
        (kind, json!({"content": content}))
    }
}

const OVER_QUOTA: &str = "调用量超过限制";

impl Part {
    fn json(&self) -> Value {
        match self {
            Self::Text(text) => json!({"text": text}),
            Self::Picture => json!({"downloadCode": code(), "type": "picture"}),
        }
    }
}

fn code() -> String {
    format!("mIofN{}==", clock::hex(&clock::random::<16>()))
}

/// The callback's body, with a reply address of its own.
pub(super) fn body(world: &mut World, speech: &Speech) -> String {
    let at = world.event_ms();
    let until = at + world.settings.session_life_ms;
    let target = speech.chat.as_deref().unwrap_or(&speech.user);
    let webhook = session::open(world, target, until);
    let (kind, words) = speech.words.members(speech.chat.is_some());
    let app = &world.settings.app;
    let mut users = world.settings.users.iter();
    let user = users.find(|user| user.userid == speech.user);
    let mut body = json!({
        "chatbotCorpId": app.corp_id,
        "chatbotUserId": "$:LWCP_v1:$bot",
        "msgId": format!("msg{}==", clock::hex(&clock::random::<12>())),
        "senderNick": user.map_or(&speech.user, |user| &user.name),
        "isAdmin": false,
        "senderId": format!("$:LWCP_v1:${}", speech.user),
        "createAt": at,
        "sessionWebhookExpiredTime": until,
        "sessionWebhook": webhook,
        "robotCode": app.robot_code,
        "msgtype": kind,
    });
    let mut more = words.as_object().cloned().unwrap_or_default();
    // Somebody from outside has no id in the organisation.
    if user.is_some() {
        more.insert("senderStaffId".to_owned(), json!(speech.user));
        more.insert("senderCorpId".to_owned(), json!(app.corp_id));
    }
    match &speech.chat {
        Some(chat) => more.extend(in_group(chat)),
        None => more.extend(alone(&speech.user)),
    }
    if let Some(chat) = &speech.chat {
        let title = world
            .group(chat)
            .map_or("", |group| &group.title)
            .to_owned();
        more.insert("conversationTitle".to_owned(), json!(title));
    }
    if let Some(body) = body.as_object_mut() {
        body.extend(more);
    }
    body.to_string()
}

fn in_group(chat: &str) -> Map<String, Value> {
    members(&json!({
        "conversationType": "2",
        "conversationId": chat,
        "atUsers": [{"dingtalkId": "$:LWCP_v1:$bot", "staffId": "", "unionId": ""}],
        "isInAtList": true,
    }))
}

/// The chat of one person with the robot is always the same.
fn alone(user: &str) -> Map<String, Value> {
    members(&json!({
        "conversationType": "1",
        "conversationId": format!("cid{}==", clock::hex(user.as_bytes())),
    }))
}

fn members(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}
