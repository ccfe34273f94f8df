//! What a card shows, and the calls that make one, deliver it and change it.
//!
//! Sources: outbound.md §4.2 (make, deliver), §4.3 (change), §4.6 (the API that new apps may not use).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::card::{KEY_BYTES_MAX, VALUE_BYTES_MAX, VARIABLES_BYTES_MAX, Variables};
use super::message::{At, MENTIONS_MAX, Unfit};
use crate::secret::printable;

/// The longest `outTrackId`, in characters (outbound.md §4.6; the current API names no cap).
pub const OUT_TRACK_ID_CHARS_MAX: usize = 100;

const TEMPLATE_ID_BYTES_MAX: usize = 256;
const USER_BYTES_MAX: usize = 128;
/// What the chat list shows of a card is cut here.
const PREVIEW_CHARS_MAX: usize = 100;

/// What single people see, by userid.
pub type PrivateVariables = BTreeMap<String, Variables>;

/// What a card shows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Face {
    /// To everybody.
    pub data: Variables,
    /// To single people.
    pub private_data: PrivateVariables,
}

/// A change of what a card shows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Patch {
    /// For everybody.
    pub data: Variables,
    /// For single people.
    pub private_data: PrivateVariables,
    /// `data` is all that there is, not only what changes.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub whole_data: bool,
    /// So is `private_data`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub whole_private_data: bool,
}

/// How clicks on a card come; fixed when it is made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clicks {
    /// Not at all.
    #[default]
    None,
    /// To the URL that is registered under this name.
    Http(String),
    /// Over the app's Stream connection.
    Stream,
}

/// Which generation of the API a card lives in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Generation {
    /// The one of today.
    #[default]
    Current,
    /// The one that new apps may not use.
    Legacy,
}

/// A card to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The template, from DingTalk's card builder.
    pub template_id: String,
    /// Its name, chosen by whoever sends it.
    pub out_track_id: String,
    /// What it shows at first.
    #[serde(flatten)]
    pub face: Face,
    /// How clicks come.
    #[serde(default)]
    pub clicks: Clicks,
    /// By which API.
    #[serde(default)]
    pub generation: Generation,
}

/// A card to be changed to what it is to show by then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Which.
    pub out_track_id: String,
    /// By which API.
    #[serde(default)]
    pub generation: Generation,
}

/// Where a card is to appear.
#[derive(Debug, Clone, Copy)]
pub enum Spaces<'a> {
    /// In a group.
    Chat(&'a str),
    /// In the robot's chats with people (userids).
    People(&'a [&'a str]),
}

impl Face {
    /// After `patch`.
    pub fn apply(&mut self, patch: Patch) {
        if patch.whole_data {
            self.data.clear();
        }
        self.data.extend(patch.data);
        if patch.whole_private_data {
            self.private_data.clear();
        }
        for (user, variables) in patch.private_data {
            self.private_data.entry(user).or_default().extend(variables);
        }
        self.private_data
            .retain(|_, variables| !variables.is_empty());
    }

    /// Names and values, in bytes.
    pub fn bytes(&self) -> usize {
        let of = |variables: &Variables| -> usize {
            let pairs = variables.iter();
            pairs.map(|(name, value)| name.len() + value.len()).sum()
        };
        let private = self.private_data.iter();
        of(&self.data)
            + private
                .map(|(user, own)| user.len() + of(own))
                .sum::<usize>()
    }
}

impl Patch {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// This and then `newer`.
    pub fn then(&mut self, newer: Self) {
        if newer.whole_data {
            self.whole_data = true;
            self.data.clear();
        }
        self.data.extend(newer.data);
        if newer.whole_private_data {
            self.whole_private_data = true;
            self.private_data.clear();
        }
        for (user, variables) in newer.private_data {
            self.private_data.entry(user).or_default().extend(variables);
        }
    }

    /// Names those who lose what they saw: whether DingTalk takes "all that there is" for all people or for
    /// each that is named is not documented.
    pub fn spell_out(&mut self, before: &Face) {
        if self.whole_private_data {
            for user in before.private_data.keys() {
                self.private_data.entry(user.clone()).or_default();
            }
        }
    }
}

impl Order {
    /// Checks it member by member.
    pub fn check(&self) -> Result<(), Unfit> {
        let id = &self.template_id;
        if id.is_empty() || id.len() > TEMPLATE_ID_BYTES_MAX || !id.chars().all(is_printable) {
            return Err(invalid("template_id", "is not the id of a card template"));
        }
        check_out_track_id(&self.out_track_id)?;
        check_variables(&self.face.data, &self.face.private_data)?;
        check_size(&self.face)
    }

    /// The body of `createAndDeliver`: the card with `face`, in `spaces`.
    pub fn to_create(
        &self,
        face: &Face,
        spaces: Spaces<'_>,
        robot_code: &str,
        at: &At,
    ) -> Map<String, Value> {
        let mut body = self.to_deliver(spaces, robot_code, at);
        put(&mut body, "cardTemplateId", json!(self.template_id));
        put(&mut body, "cardData", json!({"cardParamMap": face.data}));
        put_private(&mut body, &face.private_data);
        match &self.clicks {
            Clicks::None => {}
            Clicks::Stream => put(&mut body, "callbackType", json!("STREAM")),
            Clicks::Http(route_key) => {
                put(&mut body, "callbackType", json!("HTTP"));
                put(&mut body, "callbackRouteKey", json!(route_key));
            }
        }
        let mut space = Map::new();
        put(&mut space, "supportForward", json!(true));
        if let Some(preview) = preview(face) {
            let both = json!({"ZH_CN": preview, "EN_US": preview});
            put(&mut space, "lastMessageI18n", both);
        }
        let model = match spaces {
            Spaces::Chat(_) => "imGroupOpenSpaceModel",
            Spaces::People(_) => "imRobotOpenSpaceModel",
        };
        put(&mut body, model, Value::Object(space));
        if !at.users.is_empty() {
            put(&mut body, "cardAtUserIds", json!(at.users));
        }
        body
    }

    /// The body of `deliver`: a card that exists already, in more spaces.
    pub fn to_deliver(&self, spaces: Spaces<'_>, robot_code: &str, at: &At) -> Map<String, Value> {
        let mut body = Map::new();
        put(&mut body, "outTrackId", json!(self.out_track_id));
        put(&mut body, "userIdType", json!(1));
        match spaces {
            Spaces::Chat(chat) => {
                let space = format!("dtv1.card//IM_GROUP.{chat}");
                put(&mut body, "openSpaceId", json!(space));
                let mut model = Map::new();
                put(&mut model, "robotCode", json!(robot_code));
                let mentioned = mentioned(at);
                if !mentioned.is_empty() {
                    put(&mut model, "atUserIds", Value::Object(mentioned));
                }
                put(&mut body, "imGroupOpenDeliverModel", Value::Object(model));
            }
            Spaces::People(users) => {
                let spaces: Vec<_> = users
                    .iter()
                    .map(|user| format!("IM_ROBOT.{user}"))
                    .collect();
                let spaces = format!("dtv1.card//{}", spaces.join(";"));
                put(&mut body, "openSpaceId", json!(spaces));
                let model = json!({"spaceType": "IM_ROBOT", "robotCode": robot_code});
                put(&mut body, "imRobotOpenDeliverModel", model);
            }
        }
        body
    }

    /// The body of the legacy API's `send`.
    pub fn to_send_legacy(
        &self,
        face: &Face,
        spaces: Spaces<'_>,
        robot_code: &str,
        at: &At,
    ) -> Map<String, Value> {
        let mut body = Map::new();
        put(&mut body, "cardTemplateId", json!(self.template_id));
        put(&mut body, "outTrackId", json!(self.out_track_id));
        put(&mut body, "robotCode", json!(robot_code));
        put(&mut body, "userIdType", json!(1));
        match spaces {
            Spaces::Chat(chat) => {
                put(&mut body, "conversationType", json!(1));
                put(&mut body, "openConversationId", json!(chat));
            }
            Spaces::People(users) => {
                put(&mut body, "conversationType", json!(0));
                put(&mut body, "receiverUserIdList", json!(users));
            }
        }
        put(&mut body, "cardData", json!({"cardParamMap": face.data}));
        put_private(&mut body, &face.private_data);
        if let Clicks::Http(route_key) = &self.clicks {
            put(&mut body, "callbackRouteKey", json!(route_key));
        }
        put(&mut body, "cardOptions", json!({"supportForward": true}));
        let mentioned = mentioned(at);
        if !mentioned.is_empty() {
            put(&mut body, "atOpenIds", Value::Object(mentioned));
        }
        body
    }
}

impl Change {
    /// The body of an update that carries `patch`. By key unless it says otherwise: without that everything
    /// else on the card would go.
    pub fn to_update(&self, patch: &Patch) -> Map<String, Value> {
        let mut body = Map::new();
        put(&mut body, "outTrackId", json!(self.out_track_id));
        put(&mut body, "userIdType", json!(1));
        let options = json!({"updateCardDataByKey": !patch.whole_data,
            "updatePrivateDataByKey": !patch.whole_private_data});
        let name = match self.generation {
            Generation::Current => "cardUpdateOptions",
            Generation::Legacy => "cardOptions",
        };
        put(&mut body, name, options);
        if !patch.data.is_empty() || patch.whole_data {
            put(&mut body, "cardData", json!({"cardParamMap": patch.data}));
        }
        put_private(&mut body, &patch.private_data);
        body
    }
}

/// Checks an `outTrackId` that somebody chose.
pub fn check_out_track_id(id: &str) -> Result<(), Unfit> {
    let chars = id.chars().count();
    if (1..=OUT_TRACK_ID_CHARS_MAX).contains(&chars) && id.chars().all(is_printable) {
        Ok(())
    } else {
        let problem =
            format!("must have 1 to {OUT_TRACK_ID_CHARS_MAX} printable characters without spaces");
        Err(invalid("out_track_id", problem))
    }
}

/// Checks names and values, and for whom they are.
pub fn check_variables(data: &Variables, private_data: &PrivateVariables) -> Result<(), Unfit> {
    check_each("data", data)?;
    for (user, variables) in private_data {
        let path = format!("private_data.{}", printable(user, 64));
        if !(1..=USER_BYTES_MAX).contains(&user.len()) || !user.chars().all(is_printable) {
            return Err(invalid(&path, "is not a userid"));
        }
        check_each(&path, variables)?;
    }
    Ok(())
}

/// Checks the size of what a card is to show.
pub fn check_size(face: &Face) -> Result<(), Unfit> {
    let bytes = face.bytes();
    if bytes <= VARIABLES_BYTES_MAX {
        return Ok(());
    }
    let problem = format!(
        "has {bytes} bytes together with private_data, DingTalk takes {VARIABLES_BYTES_MAX}"
    );
    Err(invalid("data", problem))
}

/// Checks whom a card to a chat mentions.
pub fn check_at(at: &At, in_chat: bool) -> Result<(), Unfit> {
    let refused = |member: &str, problem: &str| Unfit {
        slug: "at_not_supported",
        member: member.to_owned(),
        problem: problem.to_owned(),
    };
    if !at.mobiles.is_empty() {
        return Err(refused(
            "at.mobiles",
            "a card mentions people by userid (at.users)",
        ));
    }
    if !at.is_empty() && !in_chat {
        return Err(refused(
            "at",
            "a card in a chat with one person mentions nobody",
        ));
    }
    if at.users.len() > MENTIONS_MAX {
        let problem = format!("names more than {MENTIONS_MAX} people");
        return Err(invalid("at.users", problem));
    }
    let sound = |user: &String| {
        (1..=USER_BYTES_MAX).contains(&user.len()) && user.chars().all(is_printable)
    };
    match at.users.iter().position(|user| !sound(user)) {
        Some(index) => Err(invalid(&format!("at.users[{index}]"), "is not a userid")),
        None => Ok(()),
    }
}

fn check_each(path: &str, variables: &Variables) -> Result<(), Unfit> {
    for (name, value) in variables {
        let member = || format!("{path}.{}", printable(name, 64));
        if !(1..=KEY_BYTES_MAX).contains(&name.len()) {
            let problem = format!("a name has 1 to {KEY_BYTES_MAX} bytes");
            return Err(invalid(&member(), problem));
        }
        if value.len() > VALUE_BYTES_MAX {
            let problem = format!(
                "has {} bytes, DingTalk takes {VALUE_BYTES_MAX}",
                value.len()
            );
            return Err(invalid(&member(), problem));
        }
    }
    Ok(())
}

/// Neither a control character nor a space nor one that cannot be seen: ids are looked up, logged and put
/// into URLs.
fn is_printable(c: char) -> bool {
    let unseen = matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{2069}' | '\u{feff}');
    !c.is_control() && !c.is_whitespace() && !unseen
}

/// As the chat list and a phone's notification show it: by convention the variable `title`.
fn preview(face: &Face) -> Option<String> {
    let title = face.data.get("title")?.trim();
    (!title.is_empty()).then(|| title.chars().take(PREVIEW_CHARS_MAX).collect())
}

/// Userids with the names that DingTalk shows for them; it finds the names itself.
fn mentioned(at: &At) -> Map<String, Value> {
    let all = at.all.then_some(EVERYBODY);
    let users = at.users.iter().map(String::as_str).chain(all);
    users.map(|user| (user.to_owned(), json!(user))).collect()
}

/// DingTalk's word for all members of a group.
const EVERYBODY: &str = "@ALL";

fn put(body: &mut Map<String, Value>, name: &str, value: Value) {
    body.insert(name.to_owned(), value);
}

fn put_private(body: &mut Map<String, Value>, private_data: &PrivateVariables) {
    if private_data.is_empty() {
        return;
    }
    let each = |(user, variables): (&String, &Variables)| {
        (user.clone(), json!({"cardParamMap": variables}))
    };
    let all = private_data.iter().map(each).collect();
    put(body, "privateData", Value::Object(all));
}

fn invalid(member: &str, problem: impl Into<String>) -> Unfit {
    Unfit {
        slug: "invalid_request",
        member: member.to_owned(),
        problem: problem.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Variables {
        let pairs = pairs.iter();
        pairs
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    fn by_key(pairs: &[(&str, &str)]) -> Patch {
        Patch {
            data: variables(pairs),
            ..Patch::default()
        }
    }

    fn whole(pairs: &[(&str, &str)]) -> Patch {
        Patch {
            whole_data: true,
            ..by_key(pairs)
        }
    }

    fn private(user: &str, pairs: &[(&str, &str)], whole: bool) -> Patch {
        Patch {
            private_data: [(user.to_owned(), variables(pairs))].into(),
            whole_private_data: whole,
            ..Patch::default()
        }
    }

    fn order() -> Order {
        Order {
            template_id: "t.schema".into(),
            out_track_id: "inc-1".into(),
            face: Face {
                data: variables(&[("title", "P1 disk full"), ("showAck", "true")]),
                private_data: PrivateVariables::default(),
            },
            clicks: Clicks::Stream,
            generation: Generation::Current,
        }
    }

    /// One patch after another comes to the same as all of them in one.
    #[test]
    fn patches_that_are_joined_come_to_the_same_as_one_after_another() {
        let patches = [
            by_key(&[("a", "1"), ("b", "1")]),
            by_key(&[("b", "2")]),
            whole(&[("c", "3")]),
            private("u", &[("mine", "1")], false),
            private("v", &[("mine", "2")], true),
            private("u", &[("mine", "3")], false),
        ];
        let start = Face {
            data: variables(&[("z", "0"), ("a", "0")]),
            private_data: [("w".to_owned(), variables(&[("mine", "0")]))].into(),
        };
        for first in 0..patches.len() {
            for second in 0..patches.len() {
                for third in 0..patches.len() {
                    let (mut one_by_one, mut joined) = (start.clone(), Patch::default());
                    for index in [first, second, third] {
                        let mut patch = patches[index].clone();
                        patch.spell_out(&one_by_one);
                        one_by_one.apply(patch.clone());
                        joined.then(patch);
                    }
                    let mut at_once = start.clone();
                    at_once.apply(joined);
                    assert_eq!(at_once, one_by_one, "{first} {second} {third}");
                }
            }
        }
    }

    #[test]
    fn a_card_for_a_group_is_made_as_the_page_shows_it() {
        let at = At {
            users: vec!["manager0001".into()],
            all: true,
            ..At::default()
        };
        let order = order();
        let body = order.to_create(&order.face, Spaces::Chat("cid1=="), "ding1", &at);
        assert_eq!(
            Value::Object(body),
            json!({"cardTemplateId": "t.schema", "outTrackId": "inc-1", "callbackType": "STREAM",
                "cardData": {"cardParamMap": {"title": "P1 disk full", "showAck": "true"}},
                "openSpaceId": "dtv1.card//IM_GROUP.cid1==",
                "imGroupOpenSpaceModel": {"supportForward": true,
                    "lastMessageI18n": {"ZH_CN": "P1 disk full", "EN_US": "P1 disk full"}},
                "imGroupOpenDeliverModel": {"robotCode": "ding1",
                    "atUserIds": {"manager0001": "manager0001", "@ALL": "@ALL"}},
                "cardAtUserIds": ["manager0001"], "userIdType": 1})
        );
    }

    #[test]
    fn a_card_for_people_has_a_space_for_each_and_names_its_route() {
        let order = Order {
            clicks: Clicks::Http("dingd".into()),
            ..order()
        };
        let body = order.to_create(
            &order.face,
            Spaces::People(&["a", "b"]),
            "r",
            &At::default(),
        );
        assert_eq!(body["openSpaceId"], "dtv1.card//IM_ROBOT.a;IM_ROBOT.b");
        assert_eq!(body["callbackType"], "HTTP");
        assert_eq!(body["callbackRouteKey"], "dingd");
        assert_eq!(
            body["imRobotOpenDeliverModel"],
            json!({"spaceType": "IM_ROBOT", "robotCode": "r"})
        );
        let more = order.to_deliver(Spaces::People(&["c"]), "r", &At::default());
        assert_eq!(
            Value::Object(more),
            json!({"outTrackId": "inc-1", "userIdType": 1, "openSpaceId": "dtv1.card//IM_ROBOT.c",
                "imRobotOpenDeliverModel": {"spaceType": "IM_ROBOT", "robotCode": "r"}})
        );
    }

    #[test]
    fn the_legacy_api_has_names_of_its_own() {
        let order = Order {
            clicks: Clicks::Http("dingd".into()),
            generation: Generation::Legacy,
            ..order()
        };
        let at = At {
            all: true,
            ..At::default()
        };
        let body = order.to_send_legacy(&order.face, Spaces::Chat("cid1=="), "r", &at);
        assert_eq!(
            Value::Object(body),
            json!({"cardTemplateId": "t.schema", "outTrackId": "inc-1", "robotCode": "r",
                "conversationType": 1, "openConversationId": "cid1==", "userIdType": 1,
                "cardData": {"cardParamMap": {"title": "P1 disk full", "showAck": "true"}},
                "callbackRouteKey": "dingd", "cardOptions": {"supportForward": true},
                "atOpenIds": {"@ALL": "@ALL"}})
        );
        let single = order.to_send_legacy(&order.face, Spaces::People(&["a"]), "r", &At::default());
        assert_eq!(single["conversationType"], 0);
        assert_eq!(single["receiverUserIdList"], json!(["a"]));
    }

    #[test]
    fn an_update_is_by_key_unless_it_is_all_that_there_is() {
        let change = |generation| Change {
            out_track_id: "inc-1".into(),
            generation,
        };
        let body = change(Generation::Current).to_update(&by_key(&[("status", "acked")]));
        assert_eq!(
            Value::Object(body),
            json!({"outTrackId": "inc-1", "userIdType": 1,
                "cardData": {"cardParamMap": {"status": "acked"}},
                "cardUpdateOptions": {"updateCardDataByKey": true, "updatePrivateDataByKey": true}})
        );
        let body = change(Generation::Legacy).to_update(&private("u", &[("mine", "1")], true));
        assert_eq!(
            Value::Object(body),
            json!({"outTrackId": "inc-1", "userIdType": 1,
                "privateData": {"u": {"cardParamMap": {"mine": "1"}}},
                "cardOptions": {"updateCardDataByKey": true, "updatePrivateDataByKey": false}})
        );
    }

    #[test]
    fn what_dingtalk_would_not_take_is_named_with_its_path() {
        let with = |face: Face| Order { face, ..order() }.check().unwrap_err().member;
        let data = |name: &str, value: &str| Face {
            data: variables(&[(name, value)]),
            ..Face::default()
        };
        assert_eq!(with(data("", "x")), "data.");
        assert_eq!(
            with(data(&"k".repeat(101), "x")),
            format!("data.{}", "k".repeat(64))
        );
        assert_eq!(with(data("k", &"v".repeat(1_025))), "data.k");
        let private = |user: &str, name: &str| Face {
            private_data: [(user.to_owned(), variables(&[(name, "x")]))].into(),
            ..Face::default()
        };
        assert_eq!(with(private("u", "")), "private_data.u.");
        assert_eq!(with(private("", "k")), "private_data.");
        let many = (0..101).map(|n| (format!("k{n}"), "v".repeat(1_024)));
        let face = Face {
            data: many.collect(),
            ..Face::default()
        };
        assert_eq!(with(face), "data");
        for id in ["", " ", "a b", "a\u{0}", "a\u{202e}b", &"x".repeat(101)] {
            assert!(check_out_track_id(id).is_err(), "{id:?}");
        }
        assert!(check_out_track_id(&"值".repeat(100)).is_ok());
    }

    #[test]
    fn mentions_that_a_card_cannot_express_are_refused() {
        let at = |users: usize, mobiles: usize| At {
            users: vec!["u".into(); users],
            mobiles: vec!["1".into(); mobiles],
            all: false,
        };
        assert!(check_at(&at(50, 0), true).is_ok());
        assert!(check_at(&at(0, 0), false).is_ok());
        for (at, in_chat) in [(at(51, 0), true), (at(0, 1), true), (at(1, 0), false)] {
            assert!(check_at(&at, in_chat).is_err(), "{at:?}");
        }
    }
}
