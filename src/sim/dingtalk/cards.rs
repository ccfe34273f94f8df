//! Interactive cards: what each one shows, to everybody and to one person, and how it came to that.

mod answer;
mod click;
mod create;
mod data;
mod deliver;
mod legacy;
mod routes;
mod update;

use std::collections::BTreeMap;

use super::DingTalk;
use super::ask::{Ask, error};
use super::world::World;
use crate::sim::server::Answer;

pub(super) use self::click::Returned;
pub use self::click::{Carriers, Click, Clicked};
pub(super) use self::create::{create, create_and_deliver};
pub(super) use self::deliver::deliver;
pub(super) use self::legacy::update as update_legacy;
pub(super) use self::legacy::{register as register_legacy, send as send_legacy};
pub(super) use self::routes::register;
pub(super) use self::update::update;

/// The values of a card's variables; all of them are text.
pub type Data = BTreeMap<String, String>;

/// What is fixed about cards when the box starts.
#[derive(Debug, Clone)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "open questions of the pages, each with its own answer"
)]
pub struct CardSettings {
    /// The templates that exist; any does when the list is empty.
    pub templates: Vec<String>,
    /// Templates that exist and are not published.
    pub unpublished: Vec<String>,
    /// The longest value of a variable. Documented, but not known to be enforced.
    pub value_bytes_max: usize,
    /// What a second creation under the same id does; the pages leave it open.
    pub repeated: Repeated,
    /// Whether an update that overwrites one person's data drops everybody else's as well.
    pub overwrite_drops_others: bool,
    /// Whether a known route key that is not to be overwritten is an error, or just answered with
    /// what is registered; the pages say both.
    pub known_route_is_an_error: bool,
    /// Whether the app is old enough for the legacy cards.
    pub legacy: bool,
    /// How long a click waits for its answer, before the time scale.
    pub click_limit_ms: u64,
    /// Whether the box hangs up at that limit, or waits on only to see the late answer.
    pub hang_up: bool,
}

impl Default for CardSettings {
    fn default() -> Self {
        Self {
            templates: Vec::new(),
            unpublished: Vec::new(),
            value_bytes_max: 1_024,
            repeated: Repeated::Refused,
            overwrite_drops_others: true,
            known_route_is_an_error: true,
            legacy: true,
            click_limit_ms: 2_000,
            hang_up: true,
        }
    }
}

/// What DingTalk does when a card is created a second time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeated {
    /// `param.cardAlreadyExist`.
    Refused,
    /// Success, without a second card in any chat.
    Ignored,
}

/// A card as it stands.
#[derive(Debug, Clone)]
pub struct Card {
    /// The id that its creator chose.
    pub out_track_id: String,
    /// The template.
    pub template: String,
    /// Made by the legacy API.
    pub legacy: bool,
    /// Where clicks on it go.
    pub callback: CardCallback,
    /// Whether its creator names people by union id.
    pub by_unionid: bool,
    /// Where it was delivered, in order.
    pub spaces: Vec<Space>,
    /// What everybody sees.
    pub public: Data,
    /// What one person sees instead, by userid.
    pub private: BTreeMap<String, Data>,
    /// Every state it was in, the present one last.
    pub history: Vec<CardState>,
}

/// Where the clicks on a card go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CardCallback {
    /// Nowhere.
    None,
    /// To one of the app's Stream connections.
    Stream,
    /// To the URL registered under this key.
    Http(String),
}

/// A chat that shows the card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    /// `IM_GROUP`, `IM_ROBOT`, `IM_SINGLE` or `ONE_BOX`.
    pub kind: String,
    /// An openConversationId, or the userid for `IM_ROBOT`.
    pub id: String,
    /// The message's processQueryKey.
    pub carrier: String,
}

/// One state in the life of a card.
#[derive(Debug, Clone)]
pub struct CardState {
    /// Milliseconds since the box started.
    pub at_ms: u64,
    /// What brought it about.
    pub cause: Cause,
    /// What everybody saw.
    pub public: Data,
    /// What single people saw instead, by userid.
    pub private: BTreeMap<String, Data>,
}

/// What changed a card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// It was made.
    Created,
    /// A call of the app.
    Updated,
    /// The answer to the click of this person.
    Clicked(String),
}

/// A registered address for clicks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CardRoute {
    /// The name that cards refer to.
    pub key: String,
    /// Where clicks are posted.
    pub url: String,
    /// What signs them; without it they come unsigned.
    pub secret: Option<String>,
}

impl Card {
    /// What this person sees: the public data under their own.
    pub fn seen_by(&self, userid: &str) -> Data {
        let mut seen = self.public.clone();
        seen.extend(self.private.get(userid).cloned().unwrap_or_default());
        seen
    }

    /// Puts new data in, over what is there or in its place, and remembers the state.
    fn change(&mut self, at_ms: u64, cause: Cause, change: Change) {
        if let Some(public) = change.public {
            if !change.public_by_key {
                self.public.clear();
            }
            self.public.extend(public);
        }
        if !change.private.is_empty() && change.drops_others {
            self.private.clear();
        }
        for (user, data) in change.private {
            let own = self.private.entry(user).or_default();
            if !change.private_by_key {
                own.clear();
            }
            own.extend(data);
        }
        self.history.push(CardState {
            at_ms,
            cause,
            public: self.public.clone(),
            private: self.private.clone(),
        });
    }
}

/// New data for a card.
#[derive(Debug, Default)]
struct Change {
    public: Option<Data>,
    public_by_key: bool,
    private: BTreeMap<String, Data>,
    private_by_key: bool,
    drops_others: bool,
}

/// All cards and all addresses for their clicks.
#[derive(Debug, Default)]
pub(super) struct Cards {
    cards: Vec<Card>,
    routes: Vec<CardRoute>,
}

impl Cards {
    fn get(&mut self, id: &str) -> Option<&mut Card> {
        self.cards.iter_mut().find(|card| card.out_track_id == id)
    }

    fn route(&mut self, key: &str) -> Option<&mut CardRoute> {
        self.routes.iter_mut().find(|route| route.key == key)
    }
}

impl DingTalk {
    /// Every card, in order of creation.
    pub fn cards(&self) -> Vec<Card> {
        self.world().cards.cards.clone()
    }

    /// One card.
    pub fn card(&self, out_track_id: &str) -> Option<Card> {
        self.world().cards.get(out_track_id).cloned()
    }

    /// Every registered address for clicks.
    pub fn card_routes(&self) -> Vec<CardRoute> {
        self.world().cards.routes.clone()
    }
}

/// One of the `param.…` errors, which are all 400.
fn param(code: &str, message: &str) -> Answer {
    error(400, &format!("param.{code}"), message)
}

/// The body, which must be a JSON object.
fn object(ask: &Ask) -> Result<serde_json::Map<String, serde_json::Value>, Answer> {
    ask.object()
        .filter(|_| ask.is_json())
        .ok_or_else(|| error(400, "Missingbody", "body is mandatory for this action"))
}

/// The userid of a person who is named by one of the two kinds of id.
fn person(world: &World, id: &str, by_unionid: bool) -> Option<String> {
    let mut users = world.settings.users.iter();
    let found = users.find(|user| {
        let known = if by_unionid {
            &user.unionid
        } else {
            &user.userid
        };
        known == id
    });
    found.map(|user| user.userid.clone())
}
