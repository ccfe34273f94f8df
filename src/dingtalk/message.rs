//! What we send: one content, rendered for the enterprise robot (`msgKey`, `msgParam`) or for a
//! custom robot's webhook (`msgtype`).
//!
//! Sources: outbound.md §2.1, §2.4 (templates), §3.1–§3.3 (webhook, mentions, sizes).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::instance::{Change, Order};
use super::split;

/// DingTalk's limit for `msgParam` (outbound.md §2.1).
pub const MSG_PARAM_BYTES_MAX: usize = 15_000;
/// DingTalk's limit for a webhook's body (outbound.md §3.1).
pub const WEBHOOK_BODY_BYTES_MAX: usize = 20_000;
/// DingTalk's limit of people mentioned in one message (outbound.md §3.1).
pub const MENTIONS_MAX: usize = 50;
/// DingTalk's limit of people in one one-to-one call (outbound.md §2.2).
pub const USERS_PER_CALL: usize = 20;

/// What a message says; exactly one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Content {
    /// Plain text.
    Text(Text),
    /// DingTalk's subset of markdown.
    Markdown(Markdown),
    /// A link with a text and perhaps a picture.
    Link(Link),
    /// Markdown with buttons that open URLs.
    ActionCard(ActionCard),
    /// DingTalk's own members, passed through: `msg_key` and `msg_param`, or `msgtype` and more.
    Raw(Map<String, Value>),
    /// A card; has calls and doors of its own.
    Card(Box<Order>),
    /// A change of a card.
    CardUpdate(Change),
}

/// Plain text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Text {
    /// The text.
    pub content: String,
}

/// Markdown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Markdown {
    /// Shown in notifications and the chat list.
    pub title: String,
    /// The body.
    pub text: String,
}

/// A link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// The title.
    pub title: String,
    /// The text under it.
    pub text: String,
    /// Where it leads.
    pub url: String,
    /// A picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub picture_url: Option<String>,
}

/// Markdown with buttons.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionCard {
    /// The title.
    pub title: String,
    /// Markdown.
    pub text: String,
    /// At least one.
    pub buttons: Vec<Button>,
    /// One below the other; by default DingTalk's usual layout for that number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vertical: Option<bool>,
}

/// A button that opens a URL. What reacts on our side needs a card.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Button {
    /// Its label.
    pub title: String,
    /// Where it leads.
    pub url: String,
}

/// Whom to mention.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct At {
    /// userids.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<String>,
    /// Mobile numbers, `+<country>-<number>` abroad.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mobiles: Vec<String>,
    /// Everybody in the group.
    pub all: bool,
}

/// Why a content cannot be sent this way. The text names the member and the cure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{member}: {problem}")]
pub struct Unfit {
    /// Stable slug of the problem document.
    pub slug: &'static str,
    /// Path of the member.
    pub member: String,
    /// What is wrong and what to do.
    pub problem: String,
}

fn unfit(slug: &'static str, member: &str, problem: impl Into<String>) -> Unfit {
    Unfit {
        slug,
        member: member.to_owned(),
        problem: problem.into(),
    }
}

/// A card does not pass for a message.
pub fn a_card() -> Unfit {
    unfit(
        "invalid_content",
        "content",
        "a card is no message; send it with POST /v1/cards",
    )
}

/// What the enterprise robot is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// `sampleText` and so on.
    pub msg_key: String,
    /// JSON as text.
    pub msg_param: String,
}

impl At {
    /// Whether nobody is mentioned.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && self.mobiles.is_empty() && !self.all
    }
}

impl Content {
    /// The texts of the numbered parts in which the enterprise robot sends this; none if one message
    /// takes it as it is. An error if it cannot be sent at all.
    pub fn parts_for_enterprise_robot(&self) -> Result<Vec<String>, Unfit> {
        let bytes = |content: &Self| {
            let rendered = content.for_enterprise_robot()?;
            Ok(rendered.msg_param.len())
        };
        self.parts(MSG_PARAM_BYTES_MAX, bytes)
    }

    /// As [`Self::parts_for_enterprise_robot`], for a custom robot. Mentions go with the first part.
    pub fn parts_for_webhook(&self, at: &At) -> Result<Vec<String>, Unfit> {
        let bytes = |content: &Self| {
            let rendered = content.for_webhook(at)?;
            Ok(Value::Object(rendered).to_string().len() + MSG_UUID_MEMBER_BYTES)
        };
        self.parts(WEBHOOK_BODY_BYTES_MAX, bytes)
    }

    /// This with another text; only texts and markdown have one that may be cut.
    #[must_use]
    pub fn with_text(&self, text: &str) -> Self {
        let mut other = self.clone();
        match &mut other {
            Self::Text(content) => text.clone_into(&mut content.content),
            Self::Markdown(content) => text.clone_into(&mut content.text),
            Self::Link(_)
            | Self::ActionCard(_)
            | Self::Raw(_)
            | Self::Card(_)
            | Self::CardUpdate(_) => {}
        }
        other
    }

    fn parts(
        &self,
        bytes_max: usize,
        bytes: impl Fn(&Self) -> Result<usize, Unfit>,
    ) -> Result<Vec<String>, Unfit> {
        let too_large = match bytes(self) {
            Ok(_) => return Ok(vec![]),
            Err(unfit) if unfit.slug == TOO_LARGE => unfit,
            Err(unfit) => return Err(unfit),
        };
        let (kind, text) = match self {
            Self::Text(text) => (split::Kind::Text, &text.content),
            Self::Markdown(markdown) => (split::Kind::Markdown, &markdown.text),
            Self::Link(_)
            | Self::ActionCard(_)
            | Self::Raw(_)
            | Self::Card(_)
            | Self::CardUpdate(_) => return Err(too_large),
        };
        // All but the text, which is one byte here.
        let around = bytes(&self.with_text("x"))? - 1;
        let parts = split::split(text, kind, bytes_max.saturating_sub(around));
        parts.ok_or_else(|| Unfit {
            problem: format!(
                "does not fit into {} messages of DingTalk's size; shorten it",
                split::PARTS_MAX
            ),
            ..too_large
        })
    }

    /// The card that it makes or changes.
    pub fn out_track_id(&self) -> Option<&str> {
        match self {
            Self::Card(order) => Some(&order.out_track_id),
            Self::CardUpdate(change) => Some(&change.out_track_id),
            _ => None,
        }
    }

    /// Whether it makes or changes a card.
    pub fn is_card(&self) -> bool {
        self.out_track_id().is_some()
    }

    /// The name in digests and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Markdown(_) => "markdown",
            Self::Link(_) => "link",
            Self::ActionCard(_) => "action_card",
            Self::Raw(_) => "raw",
            Self::Card(_) => "card",
            Self::CardUpdate(_) => "card_update",
        }
    }

    /// As the enterprise robot sends it (outbound.md §2.4).
    pub fn for_enterprise_robot(&self) -> Result<Template, Unfit> {
        self.check_texts()?;
        let (msg_key, param) = match self {
            Self::Text(text) => ("sampleText".to_owned(), json!({"content": text.content})),
            Self::Markdown(markdown) => (
                "sampleMarkdown".to_owned(),
                json!({"title": markdown.title, "text": markdown.text}),
            ),
            Self::Link(link) => (
                "sampleLink".to_owned(),
                json!({"title": link.title, "text": link.text, "messageUrl": link.url,
                    "picUrl": link.picture_url.as_deref().unwrap_or_default()}),
            ),
            Self::ActionCard(card) => card_template(card)?,
            Self::Raw(raw) => return raw_template(raw),
            Self::Card(_) | Self::CardUpdate(_) => return Err(a_card()),
        };
        fitting(msg_key, param.to_string())
    }

    /// The body of a custom robot's webhook call (outbound.md §3.2), without `msgUuid`.
    pub fn for_webhook(&self, at: &At) -> Result<Map<String, Value>, Unfit> {
        self.check_texts()?;
        let (kind, mut inner, text_member) = match self {
            Self::Text(text) => ("text", json!({"content": text.content}), Some("content")),
            Self::Markdown(markdown) => (
                "markdown",
                json!({"title": markdown.title, "text": markdown.text}),
                Some("text"),
            ),
            Self::Link(link) => {
                let mut inner =
                    json!({"title": link.title, "text": link.text, "messageUrl": link.url});
                if let (Some(picture), Some(members)) = (&link.picture_url, inner.as_object_mut()) {
                    members.insert("picUrl".to_owned(), json!(picture));
                }
                ("link", inner, None)
            }
            Self::ActionCard(card) => ("actionCard", webhook_card(card)?, Some("text")),
            Self::Raw(raw) => return raw_webhook(raw, at),
            Self::Card(_) | Self::CardUpdate(_) => return Err(a_card()),
        };
        let mut body = Map::new();
        body.insert("msgtype".to_owned(), json!(kind));
        if !at.is_empty() {
            let text = text_member
                .and_then(|member| inner.get_mut(member))
                .ok_or_else(|| {
                    unfit(
                        "at_not_supported",
                        "at",
                        "a link cannot mention anybody; use markdown",
                    )
                })?;
            *text = json!(mentioning(text.as_str().unwrap_or_default(), at)?);
            body.insert(
                "at".to_owned(),
                json!({"atMobiles": at.mobiles, "atUserIds": at.users, "isAtAll": at.all}),
            );
        }
        body.insert(kind.to_owned(), inner);
        let bytes = Value::Object(body.clone()).to_string().len() + MSG_UUID_MEMBER_BYTES;
        if bytes > WEBHOOK_BODY_BYTES_MAX {
            return Err(too_large("content", bytes, WEBHOOK_BODY_BYTES_MAX));
        }
        Ok(body)
    }

    fn check_texts(&self) -> Result<(), Unfit> {
        let needed: &[(&str, &str)] = match self {
            Self::Text(text) => &[("content.text.content", &text.content)],
            Self::Markdown(m) => &[
                ("content.markdown.title", &m.title),
                ("content.markdown.text", &m.text),
            ],
            Self::Link(link) => &[
                ("content.link.title", &link.title),
                ("content.link.text", &link.text),
                ("content.link.url", &link.url),
            ],
            Self::ActionCard(card) => &[
                ("content.action_card.title", &card.title),
                ("content.action_card.text", &card.text),
            ],
            Self::Raw(_) | Self::Card(_) | Self::CardUpdate(_) => &[],
        };
        match needed.iter().find(|(_, text)| text.trim().is_empty()) {
            Some((member, _)) => Err(unfit("invalid_content", member, "must not be empty")),
            None => Ok(()),
        }
    }
}

/// `,"msgUuid":"<32 hex>"` is added at the moment of sending.
const MSG_UUID_MEMBER_BYTES: usize = 46;

fn card_template(card: &ActionCard) -> Result<(String, Value), Unfit> {
    let mut param = Map::new();
    param.insert("title".to_owned(), json!(card.title));
    param.insert("text".to_owned(), json!(card.text));
    let side_by_side = card.buttons.len() == 2 && card.vertical != Some(true);
    let msg_key = match card.buttons.as_slice() {
        [only] => {
            param.insert("singleTitle".to_owned(), json!(only.title));
            param.insert("singleURL".to_owned(), json!(only.url));
            "sampleActionCard".to_owned()
        }
        many @ ([_, _] | [_, _, _] | [_, _, _, _] | [_, _, _, _, _]) => {
            if many.len() > 2 && card.vertical == Some(false) {
                return Err(unfit(
                    "invalid_content",
                    "content.action_card.vertical",
                    "DingTalk puts at most two buttons side by side here; leave it out or use true",
                ));
            }
            // The template for two buttons side by side spells its members differently.
            let (title, url) = if side_by_side {
                ("buttonTitle", "buttonUrl")
            } else {
                ("actionTitle", "actionURL")
            };
            for (index, button) in many.iter().enumerate() {
                param.insert(format!("{title}{}", index + 1), json!(button.title));
                param.insert(format!("{url}{}", index + 1), json!(button.url));
            }
            if side_by_side {
                "sampleActionCard6".to_owned()
            } else {
                format!("sampleActionCard{}", many.len())
            }
        }
        other => {
            return Err(unfit(
                "invalid_content",
                "content.action_card.buttons",
                format!("needs 1 to 5 buttons, has {}", other.len()),
            ));
        }
    };
    Ok((msg_key, Value::Object(param)))
}

fn webhook_card(card: &ActionCard) -> Result<Value, Unfit> {
    let orientation = if card.vertical == Some(false) {
        "1"
    } else {
        "0"
    };
    match card.buttons.as_slice() {
        [] => Err(unfit(
            "invalid_content",
            "content.action_card.buttons",
            "needs at least one button",
        )),
        [only] => Ok(
            json!({"title": card.title, "text": card.text, "btnOrientation": orientation,
            "singleTitle": only.title, "singleURL": only.url}),
        ),
        many => {
            let buttons: Vec<_> = many
                .iter()
                .map(|button| json!({"title": button.title, "actionURL": button.url}))
                .collect();
            Ok(
                json!({"title": card.title, "text": card.text, "btnOrientation": orientation,
                "btns": buttons}),
            )
        }
    }
}

fn raw_template(raw: &Map<String, Value>) -> Result<Template, Unfit> {
    if let Some(name) = raw
        .keys()
        .find(|name| !matches!(name.as_str(), "msg_key" | "msg_param"))
    {
        return Err(unfit(
            "invalid_content",
            &format!("content.raw.{name}"),
            "unknown member; the enterprise robot takes msg_key and msg_param",
        ));
    }
    let msg_key = raw
        .get("msg_key")
        .and_then(Value::as_str)
        .filter(|key| !key.is_empty())
        .ok_or_else(|| {
            unfit(
                "invalid_content",
                "content.raw.msg_key",
                "must be a template's name such as sampleText",
            )
        })?;
    let msg_param = match raw.get("msg_param") {
        Some(Value::String(text)) => text.clone(),
        Some(object @ Value::Object(_)) => object.to_string(),
        _ => {
            return Err(unfit(
                "invalid_content",
                "content.raw.msg_param",
                "must be an object, or JSON as a string",
            ));
        }
    };
    fitting(msg_key.to_owned(), msg_param)
}

fn raw_webhook(raw: &Map<String, Value>, at: &At) -> Result<Map<String, Value>, Unfit> {
    if raw
        .get("msgtype")
        .and_then(Value::as_str)
        .is_none_or(str::is_empty)
    {
        return Err(unfit(
            "invalid_content",
            "content.raw.msgtype",
            "must name the kind of message",
        ));
    }
    if raw.contains_key("msgUuid") {
        return Err(unfit(
            "invalid_content",
            "content.raw.msgUuid",
            "is set by dingd; leave it out",
        ));
    }
    if !at.is_empty() {
        return Err(unfit(
            "at_not_supported",
            "at",
            "put DingTalk's own `at` into content.raw",
        ));
    }
    let bytes = Value::Object(raw.clone()).to_string().len() + MSG_UUID_MEMBER_BYTES;
    if bytes > WEBHOOK_BODY_BYTES_MAX {
        return Err(too_large("content.raw", bytes, WEBHOOK_BODY_BYTES_MAX));
    }
    Ok(raw.clone())
}

fn fitting(msg_key: String, msg_param: String) -> Result<Template, Unfit> {
    if msg_param.len() > MSG_PARAM_BYTES_MAX {
        return Err(too_large("content", msg_param.len(), MSG_PARAM_BYTES_MAX));
    }
    Ok(Template { msg_key, msg_param })
}

const TOO_LARGE: &str = "content_too_large";

fn too_large(member: &str, bytes: usize, bytes_max: usize) -> Unfit {
    unfit(
        TOO_LARGE,
        member,
        format!("{bytes} bytes for DingTalk, which takes at most {bytes_max}; shorten the text"),
    )
}

/// DingTalk notifies only those whose `@…` also stands in the text (outbound.md §3.3).
fn mentioning(text: &str, at: &At) -> Result<String, Unfit> {
    let names = at.users.iter().chain(&at.mobiles);
    if at.users.len() + at.mobiles.len() > MENTIONS_MAX {
        return Err(unfit(
            "invalid_request",
            "at",
            format!("mentions more than {MENTIONS_MAX} people"),
        ));
    }
    let mut text = text.to_owned();
    for name in names {
        let sound = !name.is_empty()
            && name.len() <= 128
            && name.chars().all(|c| {
                c.is_alphanumeric() || matches!(c, '+' | '-' | '_' | '.' | '@' | '$' | ':')
            });
        if !sound {
            return Err(unfit(
                "invalid_request",
                "at",
                "holds something that is neither a userid nor a number",
            ));
        }
        if !stands_in(&text, name) {
            text.push_str(" @");
            text.push_str(name);
        }
    }
    Ok(text)
}

/// Whether `@name` stands in the text and is not merely the start of a longer name.
fn stands_in(text: &str, name: &str) -> bool {
    let wanted = format!("@{name}");
    text.match_indices(&wanted).any(|(at, _)| {
        let next = text
            .get(at + wanted.len()..)
            .and_then(|rest| rest.chars().next());
        !next.is_some_and(|c| c.is_ascii_alphanumeric())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(value: Value) -> Content {
        serde_json::from_value(value).unwrap()
    }

    fn card(buttons: usize, vertical: Option<bool>) -> Content {
        let buttons = (1..=buttons).map(|i| Button {
            title: format!("t{i}"),
            url: format!("u{i}"),
        });
        Content::ActionCard(ActionCard {
            title: "T".into(),
            text: "x".into(),
            buttons: buttons.collect(),
            vertical,
        })
    }

    #[test]
    fn each_kind_becomes_its_template() {
        let table = [
            (
                content(json!({"text":{"content":"hi"}})),
                "sampleText",
                json!({"content":"hi"}),
            ),
            (
                content(json!({"markdown":{"title":"a","text":"b"}})),
                "sampleMarkdown",
                json!({"title":"a","text":"b"}),
            ),
            (
                content(json!({"link":{"title":"a","text":"b","url":"u"}})),
                "sampleLink",
                json!({"title":"a","text":"b","messageUrl":"u","picUrl":""}),
            ),
            (
                card(1, None),
                "sampleActionCard",
                json!({"title":"T","text":"x","singleTitle":"t1","singleURL":"u1"}),
            ),
            (
                card(2, None),
                "sampleActionCard6",
                json!({"title":"T","text":"x","buttonTitle1":"t1","buttonUrl1":"u1","buttonTitle2":"t2","buttonUrl2":"u2"}),
            ),
            (
                card(2, Some(true)),
                "sampleActionCard2",
                json!({"title":"T","text":"x","actionTitle1":"t1","actionURL1":"u1","actionTitle2":"t2","actionURL2":"u2"}),
            ),
            (
                content(json!({"raw":{"msg_key":"sampleAudio","msg_param":{"mediaId":"m"}}})),
                "sampleAudio",
                json!({"mediaId":"m"}),
            ),
        ];
        for (content, key, param) in table {
            let template = content.for_enterprise_robot().unwrap();
            assert_eq!(template.msg_key, key);
            assert_eq!(
                serde_json::from_str::<Value>(&template.msg_param).unwrap(),
                param
            );
        }
        assert_eq!(
            card(5, None).for_enterprise_robot().unwrap().msg_key,
            "sampleActionCard5"
        );
    }

    #[test]
    fn what_dingtalk_cannot_show_is_refused_with_the_member_named() {
        let table = [
            (card(0, None), "content.action_card.buttons"),
            (card(6, None), "content.action_card.buttons"),
            (card(3, Some(false)), "content.action_card.vertical"),
            (
                content(json!({"text":{"content":" "}})),
                "content.text.content",
            ),
            (
                content(json!({"raw":{"msg_key":"x","msg_param":1}})),
                "content.raw.msg_param",
            ),
            (
                content(json!({"raw":{"msgtype":"text"}})),
                "content.raw.msgtype",
            ),
            (
                content(json!({"text":{"content":"中".repeat(5_000)}})),
                "content",
            ),
        ];
        for (content, member) in table {
            assert_eq!(content.for_enterprise_robot().unwrap_err().member, member);
        }
    }

    #[test]
    fn a_mention_is_added_to_the_text_only_where_it_is_missing() {
        let at = At {
            users: vec!["u1".into()],
            mobiles: vec!["138".into()],
            all: false,
        };
        let table = [
            ("disk full", "disk full @u1 @138"),
            ("@138 disk full", "@138 disk full @u1"),
            ("@1380 disk full @u1", "@1380 disk full @u1 @138"),
            ("@u1@138", "@u1@138"),
        ];
        for (text, wanted) in table {
            let body = content(json!({"markdown":{"title":"t","text":text}}))
                .for_webhook(&at)
                .unwrap();
            assert_eq!(body["markdown"]["text"], wanted);
            assert_eq!(body["at"]["atMobiles"], json!(["138"]));
        }
        let link = content(json!({"link":{"title":"a","text":"b","url":"u"}}));
        assert_eq!(link.for_webhook(&at).unwrap_err().slug, "at_not_supported");
    }

    #[test]
    fn the_webhook_body_has_the_documented_members() {
        let none = At::default();
        let link = json!({"link":{"title":"a","text":"b","url":"u","picture_url":"p"}});
        let body = content(link).for_webhook(&none).unwrap();
        assert_eq!(
            Value::Object(body),
            json!({"msgtype":"link","link":{"title":"a","text":"b","messageUrl":"u","picUrl":"p"}})
        );
        let two = card(2, Some(false)).for_webhook(&none).unwrap();
        assert_eq!(
            two["actionCard"],
            json!({"title":"T","text":"x","btnOrientation":"1","btns":[{"title":"t1","actionURL":"u1"},{"title":"t2","actionURL":"u2"}]})
        );
    }

    #[test]
    fn a_body_above_dingtalks_limit_is_refused_before_it_is_stored() {
        let big = content(json!({"text":{"content":"x".repeat(20_000)}}));
        assert_eq!(
            big.for_webhook(&At::default()).unwrap_err().slug,
            "content_too_large"
        );
    }
}
