//! What a click on a card says, and what DingTalk takes for an answer to it.
//!
//! Sources: inbound.md §4.1 (HTTP) and §4.3 (Stream). Pages, captures and clients disagree about where the
//! buttons' values stand (`content` or `value`, text or object, inside `cardPrivateData` or beside it), so
//! all of it is read.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::event::ChatId;
use super::members::{Members, string};
use crate::secret::printable;

/// The longest name of a card's variable, in bytes (outbound.md §4.2).
pub const KEY_BYTES_MAX: usize = 100;
/// The longest value of a card's variable, in bytes (outbound.md §4.2).
pub const VALUE_BYTES_MAX: usize = 1_024;
/// Names and values of a card together, in bytes (outbound.md §4.6).
pub const VARIABLES_BYTES_MAX: usize = 100 * 1_024;

const CARD_BYTES_MAX: usize = 256;
const USER_BYTES_MAX: usize = 128;
const ACTIONS_MAX: usize = 64;

/// A card calls back.
#[derive(Debug)]
pub struct Callback {
    /// DingTalk's word for the kind: `actionCallback` for a click.
    pub kind: String,
    /// The organisation of the person, if it is named.
    pub corp: Option<String>,
    /// The click; `None` for other kinds.
    pub click: Option<Click>,
}

/// Somebody clicked on a card.
#[derive(Debug)]
pub struct Click {
    /// The card's `outTrackId`.
    pub card: String,
    /// Who (userid, or unionid if the card says so).
    pub user: String,
    /// Ids of the buttons.
    pub actions: Vec<String>,
    /// What the buttons carry, a JSON object. Everybody who sees the card can read it: it proves nothing.
    pub params: Box<RawValue>,
    /// The group, where DingTalk names it (over Stream only).
    pub chat: Option<ChatId>,
}

/// The variables of a card: all are texts.
pub type Variables = BTreeMap<String, String>;

/// What the platform makes of a click.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CardAnswer {
    /// For everybody who sees the card.
    pub data: Variables,
    /// For the person who clicked.
    pub private_data: Variables,
}

impl Callback {
    /// Reads the body of a callback. The error says what is wrong with it.
    pub fn read(text: &str) -> Result<Self, &'static str> {
        let members = Members::read(text)?;
        let kind = members
            .text("type")
            .unwrap_or_else(|| ACTION_CALLBACK.to_owned());
        if kind.is_empty() || kind.len() > 128 || !kind.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("a type that is not printable");
        }
        let click = (kind == ACTION_CALLBACK).then(|| click(&members));
        Ok(Self {
            kind,
            corp: members.text("corpId").filter(|corp| !corp.is_empty()),
            click: click.transpose()?,
        })
    }
}

const ACTION_CALLBACK: &str = "actionCallback";

fn click(members: &Members<'_>) -> Result<Click, &'static str> {
    let id = |name, bytes_max, missing| {
        let sound =
            |id: &String| (1..=bytes_max).contains(&id.len()) && !id.chars().any(char::is_control);
        members.text(name).filter(sound).ok_or(missing)
    };
    let card = id("outTrackId", CARD_BYTES_MAX, "no usable outTrackId")?;
    let user = id("userId", USER_BYTES_MAX, "no usable userId")?;
    let mut actions = None;
    let mut params = None;
    for name in ["content", "value"] {
        for value in members.all(name) {
            // A text that holds JSON, or the JSON itself.
            let inner = string(value).map_or(Cow::Borrowed(value.get()), Cow::Owned);
            let Ok(content) = Members::read(&inner) else {
                continue;
            };
            let private = content.all("cardPrivateData").find_map(|v| {
                let owned = string(v).unwrap_or_else(|| v.get().to_owned());
                Members::read(&owned).ok()?;
                Some(owned)
            });
            let private = private.as_deref().and_then(|text| Members::read(text).ok());
            let inside = private.iter().chain([&content]);
            for place in inside {
                actions = actions.or_else(|| place.list("actionIds"));
                params = params.or_else(|| object(place));
            }
        }
    }
    let actions = actions.unwrap_or_default();
    if actions.len() > ACTIONS_MAX || actions.iter().any(|id| id.len() > CARD_BYTES_MAX) {
        return Err("too many actions, or too long ones");
    }
    let in_group = members
        .text("spaceType")
        .is_some_and(|kind| kind.eq_ignore_ascii_case("IM_GROUP"));
    let chat = members.text("spaceId").filter(|_| in_group);
    Ok(Click {
        card,
        user,
        actions,
        params: params.unwrap_or_else(nothing),
        chat: chat.and_then(|id| ChatId::new(&id)),
    })
}

/// The `params` of one place, if they are an object.
fn object(place: &Members<'_>) -> Option<Box<RawValue>> {
    place
        .all("params")
        .find(|value| value.get().starts_with('{'))
        .map(ToOwned::to_owned)
}

fn nothing() -> Box<RawValue> {
    RawValue::from_string("{}".to_owned()).expect("an empty object is JSON")
}

impl CardAnswer {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty() && self.private_data.is_empty()
    }

    /// What DingTalk would not take, with the reason.
    pub fn fault(&self) -> Option<String> {
        let variables = self.data.iter().chain(&self.private_data);
        let bytes: usize = variables
            .map(|(name, value)| name.len() + value.len())
            .sum();
        if bytes > VARIABLES_BYTES_MAX {
            return Some(format!(
                "card: has {bytes} bytes, DingTalk takes {VARIABLES_BYTES_MAX}"
            ));
        }
        let of = |place: &str, variables: &Variables| {
            fault(variables).map(|fault| format!("card.{place}.{fault}"))
        };
        of("data", &self.data).or_else(|| of("private_data", &self.private_data))
    }

    /// The body that answers the callback (inbound.md §4.1). By key, because without saying so everything
    /// else on the card would go.
    pub fn response(&self) -> String {
        let mut body = Map::new();
        body.insert(
            "cardUpdateOptions".to_owned(),
            json!({"updateCardDataByKey": true, "updatePrivateDataByKey": true}),
        );
        for (name, variables) in [
            ("cardData", &self.data),
            ("userPrivateData", &self.private_data),
        ] {
            if !variables.is_empty() {
                body.insert(name.to_owned(), json!({"cardParamMap": variables}));
            }
        }
        Value::Object(body).to_string()
    }
}

/// The first variable that DingTalk would not take: its name, and what is wrong with it.
pub fn fault(variables: &Variables) -> Option<String> {
    variables.iter().find_map(|(name, value)| {
        let shown = printable(name, 64);
        if name.is_empty() || name.len() > KEY_BYTES_MAX {
            Some(format!("{shown}: a name has 1 to {KEY_BYTES_MAX} bytes"))
        } else if value.len() > VALUE_BYTES_MAX {
            Some(format!(
                "{shown}: has {} bytes, DingTalk takes {VALUE_BYTES_MAX}",
                value.len()
            ))
        } else {
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Click {
        Callback::read(text).unwrap().click.unwrap()
    }

    /// The capture of inbound.md §4.1 and the shapes that other clients were seen to read.
    #[test]
    fn the_buttons_values_are_found_wherever_they_stand() {
        let inner =
            r#"{"cardPrivateData":{"actionIds":["ack"],"params":{"action":"ack","n":[1]}}}"#;
        let beside =
            r#"{"cardPrivateData":{"actionIds":["ack"]},"params":{"action":"ack","n":[1]}}"#;
        let quoted = |text: &str| serde_json::to_string(text).unwrap();
        for content in [
            format!(r#""content":{}"#, quoted(inner)),
            format!(r#""content":{inner}"#),
            format!(r#""value":{}"#, quoted(inner)),
            format!(r#""value":{inner},"content":"""#),
            format!(r#""content":{}"#, quoted(beside)),
            format!(r#""content":"{{}}","value":{}"#, quoted(beside)),
        ] {
            let text = format!(
                r#"{{"type":"actionCallback","outTrackId":"alert-0001","corpId":"dingcorp","userId":"manager0001",{content}}}"#
            );
            let click = read(&text);
            assert_eq!(click.card, "alert-0001");
            assert_eq!(click.user, "manager0001");
            assert_eq!(click.actions, ["ack"], "{text}");
            assert_eq!(click.params.get(), r#"{"action":"ack","n":[1]}"#, "{text}");
            assert_eq!(click.chat, None);
        }
    }

    #[test]
    fn the_group_is_named_over_stream() {
        let text =
            r#"{"outTrackId":"a","userId":"u","spaceType":"IM_GROUP","spaceId":"cidAb+cd/Ef=="}"#;
        assert_eq!(read(text).chat, ChatId::new("cidAb+cd/Ef=="));
        let text =
            r#"{"outTrackId":"a","userId":"u","spaceType":"IM_ROBOT","spaceId":"cidAb+cd/Ef=="}"#;
        assert_eq!(read(text).chat, None);
    }

    #[test]
    fn what_cannot_be_a_click_is_refused() {
        let deep = format!(
            r#"{{"outTrackId":"a","userId":"u","content":{}{}}}"#,
            "[".repeat(64),
            "]".repeat(64)
        );
        for text in [
            "",
            "[]",
            "{}",
            r#"{"outTrackId":"a"}"#,
            r#"{"userId":"u"}"#,
            r#"{"outTrackId":7,"userId":"u"}"#,
            r#"{"outTrackId":"","userId":"u"}"#,
            r#"{"outTrackId":"a\u0000","userId":"u"}"#,
            r#"{"outTrackId":"a","userId":"u","userId":"v"}"#,
            r#"{"type":"a b","outTrackId":"a","userId":"u"}"#,
            &format!(r#"{{"outTrackId":"{}","userId":"u"}}"#, "a".repeat(257)),
            &deep,
        ] {
            assert!(Callback::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn members_of_another_type_are_as_good_as_missing() {
        for content in [
            "7",
            "null",
            "\"not json\"",
            "[]",
            r#"{"cardPrivateData":7}"#,
        ] {
            let text = format!(r#"{{"outTrackId":"a","userId":"u","content":{content}}}"#);
            let click = read(&text);
            assert_eq!(
                (click.actions.len(), click.params.get()),
                (0, "{}"),
                "{text}"
            );
        }
    }

    #[test]
    fn another_kind_of_callback_is_no_click() {
        let callback = Callback::read(r#"{"type":"dynamicDataCallback","corpId":"c"}"#).unwrap();
        assert!(callback.click.is_none());
        assert_eq!(callback.corp.as_deref(), Some("c"));
    }

    #[test]
    fn an_answer_changes_only_the_variables_that_it_names() {
        let mut answer = CardAnswer::default();
        assert_eq!(
            answer.response(),
            r#"{"cardUpdateOptions":{"updateCardDataByKey":true,"updatePrivateDataByKey":true}}"#
        );
        answer.data.insert("status".into(), "acked".into());
        answer.private_data.insert("mine".into(), "true".into());
        assert_eq!(
            serde_json::from_str::<Value>(&answer.response()).unwrap(),
            json!({"cardUpdateOptions":{"updateCardDataByKey":true,"updatePrivateDataByKey":true},
                "cardData":{"cardParamMap":{"status":"acked"}},
                "userPrivateData":{"cardParamMap":{"mine":"true"}}})
        );
        assert_eq!(answer.fault(), None);
        answer.data.insert("long".into(), "x".repeat(1_025));
        assert!(answer.fault().unwrap().starts_with("card.data.long: "));
    }
}
