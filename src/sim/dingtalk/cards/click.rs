//! Somebody clicks on a card: the call to the app, and what its answer does to the card.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{Card, CardCallback, answer};
use crate::sim::clock;
use crate::sim::dingtalk::records::Way;
use crate::sim::dingtalk::sign::Signed;
use crate::sim::dingtalk::world::World;
use crate::sim::dingtalk::{Ack, DingTalk, push};

/// The topic of clicks.
const TOPIC: &str = "/v1.0/card/instances/callback";

/// A click, and how it is told to the app.
#[derive(Debug, Clone)]
pub struct Click {
    /// The card.
    pub out_track_id: String,
    /// The userid of whoever clicks.
    pub user: String,
    /// The components that were clicked.
    pub action_ids: Vec<String>,
    /// The button's parameters; their values may be any JSON.
    pub params: Value,
    /// The signature of a click over HTTP.
    pub signed: Signed,
    /// The older shape: `params` beside `cardPrivateData` and not in it.
    pub params_beside: bool,
    /// The members that carry what was clicked.
    pub carriers: Carriers,
    /// Whether they are objects instead of strings holding JSON.
    pub as_object: bool,
    /// The frame's id over Stream, a new one when absent. Over HTTP a click has no id at all.
    pub message_id: Option<String>,
}

/// The members of the body that carry what was clicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carriers {
    /// As captured: `content` over HTTP, both over Stream.
    Usual,
    /// `content` alone.
    Content,
    /// `value` alone.
    Value,
    /// Both.
    Both,
}

impl Click {
    /// A click as DingTalk reports it.
    pub fn new(out_track_id: &str, user: &str, action_ids: &[&str], params: Value) -> Self {
        Self {
            out_track_id: out_track_id.to_owned(),
            user: user.to_owned(),
            action_ids: action_ids.iter().map(|&id| id.to_owned()).collect(),
            params,
            signed: Signed::Rightly,
            params_beside: false,
            carriers: Carriers::Usual,
            as_object: false,
            message_id: None,
        }
    }

    /// What was clicked.
    fn clicked(&self) -> Value {
        let mut clicked = json!({"cardPrivateData": {"actionIds": self.action_ids}});
        let at = if self.params_beside {
            Some(&mut clicked)
        } else {
            clicked.get_mut("cardPrivateData")
        };
        if let Some(members) = at.and_then(Value::as_object_mut) {
            members.insert("params".to_owned(), self.params.clone());
        }
        if self.as_object {
            clicked
        } else {
            Value::String(clicked.to_string())
        }
    }
}

/// What became of a click.
#[derive(Debug, Clone)]
pub struct Clicked {
    /// How the app was told; absent when it was not.
    pub way: Option<Way>,
    /// The HTTP status or the code of the acknowledgement; 0 when none came.
    pub status: u16,
    /// Whether the answer came within the limit.
    pub in_time: bool,
    /// Whether it was in time and well-formed, and so took effect.
    pub accepted: bool,
    /// From before the call to after the answer.
    pub elapsed: Duration,
    /// The answer as text; over Stream the `response` in it.
    pub body: String,
    /// Why it did not take effect.
    pub error: Option<String>,
}

/// An answer on its way back, from either side.
#[derive(Debug)]
pub(in crate::sim::dingtalk) struct Returned {
    pub(in crate::sim::dingtalk) status: u16,
    pub(in crate::sim::dingtalk) body: String,
}

/// What is known before the app is called.
struct Plan {
    card: Card,
    limit: Duration,
    patience: Duration,
    target: Target,
}

enum Target {
    Http { url: String, secret: Option<String> },
    Stream,
}

impl DingTalk {
    /// Somebody clicks; returns when the app has answered or has had its time.
    pub async fn click(
        &self,
        out_track_id: &str,
        user: &str,
        action_ids: &[&str],
        params: Value,
    ) -> Clicked {
        let click = Click::new(out_track_id, user, action_ids, params);
        self.click_with(&click).await
    }

    /// As [`Self::click`], for clicks that are not reported as they should be.
    pub async fn click_with(&self, click: &Click) -> Clicked {
        let plan = match plan(&mut self.world(), click) {
            Ok(plan) => plan,
            Err(error) => return never(&error),
        };
        let start = clock::now();
        let (way, returned) = match &plan.target {
            Target::Http { url, secret } => {
                let body = self.click_body(click).unwrap_or_default();
                let headers = click.signed.card(secret.as_deref());
                let call = push::call(url, &headers, body, plan.patience);
                (Way::Http, call.await)
            }
            Target::Stream => {
                let data = self.click_data(click).unwrap_or_default();
                let gateway = self.gateway();
                let call = gateway.callback(TOPIC, click.message_id.clone(), data, plan.patience);
                (Way::Stream, call.await.map(|ack| response(&ack)))
            }
        };
        let elapsed = clock::now().duration_since(start);
        self.settle(click, &plan, way, returned, elapsed)
    }

    /// The body that [`Self::click_with`] sends over HTTP, to be spoilt and posted by hand; `None`
    /// when there is no such card or person.
    pub fn click_body(&self, click: &Click) -> Option<String> {
        let mut world = self.world();
        let card = world.cards.get(&click.out_track_id)?.clone();
        let mut body = body(&world, &card, click)?;
        carry(&mut body, click, click.carriers == Carriers::Usual);
        Some(Value::Object(body).to_string())
    }

    /// The data of the frame that [`Self::click_with`] sends over Stream; `None` when there is no
    /// such card or person.
    pub fn click_data(&self, click: &Click) -> Option<String> {
        let mut world = self.world();
        let card = world.cards.get(&click.out_track_id)?.clone();
        let mut data = body(&world, &card, click)?;
        carry(&mut data, click, false);
        if let Some(space) = card.spaces.first() {
            data.insert("spaceId".to_owned(), json!(space.id));
            data.insert("spaceType".to_owned(), json!(space.kind));
        }
        let kind = if card.by_unionid { 2 } else { 1 };
        data.insert("userIdType".to_owned(), json!(kind));
        data.insert("extension".to_owned(), json!("{}"));
        Some(Value::Object(data).to_string())
    }

    /// Judges the answer and lets it change the card.
    fn settle(
        &self,
        click: &Click,
        plan: &Plan,
        way: Way,
        returned: Result<Returned, String>,
        elapsed: Duration,
    ) -> Clicked {
        let at_ms = self.elapsed_ms();
        let mut world = self.world();
        let in_time = returned.is_ok() && elapsed <= plan.limit;
        let (status, body, error) = match returned {
            Ok(returned) => (returned.status, returned.body, None),
            Err(error) => (0, String::new(), Some(error)),
        };
        let judged = match error {
            Some(error) => Err(error),
            None if !in_time => Err(format!("answered after {} ms", elapsed.as_millis())),
            None if status != 200 => Err(format!("answered with {status}")),
            None => answer::apply(&mut world, at_ms, &plan.card, &click.user, &body),
        };
        Clicked {
            way: Some(way),
            status,
            in_time,
            accepted: judged.is_ok(),
            elapsed,
            body,
            error: judged.err(),
        }
    }
}

/// The card's answer, out of the acknowledgement's data; nothing when it has none.
fn response(ack: &Ack) -> Returned {
    let data: Value = serde_json::from_str(&ack.data).unwrap_or_default();
    Returned {
        status: ack.code,
        body: data
            .get("response")
            .map_or_else(String::new, Value::to_string),
    }
}

fn never(error: &str) -> Clicked {
    Clicked {
        way: None,
        status: 0,
        in_time: false,
        accepted: false,
        elapsed: Duration::ZERO,
        body: String::new(),
        error: Some(error.to_owned()),
    }
}

fn plan(world: &mut World, click: &Click) -> Result<Plan, String> {
    let card = world.cards.get(&click.out_track_id).ok_or("no such card")?;
    let card = card.clone();
    let target = match &card.callback {
        CardCallback::None => return Err("the card has no callback".to_owned()),
        CardCallback::Stream => Target::Stream,
        CardCallback::Http(key) => {
            let route = world.cards.route(key).ok_or("the route is gone")?;
            Target::Http {
                url: route.url.clone(),
                secret: route.secret.clone(),
            }
        }
    };
    body(world, &card, click).ok_or("no such person")?;
    let limit = world.scaled(world.settings.cards.click_limit_ms);
    let patience = if world.settings.cards.hang_up {
        limit
    } else {
        push::PATIENCE
    };
    Ok(Plan {
        card,
        limit,
        patience,
        target,
    })
}

/// The members that a click has on either way, but for what was clicked.
fn body(world: &World, card: &Card, click: &Click) -> Option<Map<String, Value>> {
    let mut users = world.settings.users.iter();
    let user = users.find(|user| user.userid == click.user)?;
    let id = if card.by_unionid {
        &user.unionid
    } else {
        &user.userid
    };
    let mut body = Map::new();
    for (name, value) in [
        ("type", "actionCallback"),
        ("outTrackId", &card.out_track_id),
        ("corpId", &world.settings.app.corp_id),
        ("userId", id),
    ] {
        body.insert(name.to_owned(), json!(value));
    }
    Some(body)
}

/// Puts in what was clicked, where this click wants it.
fn carry(body: &mut Map<String, Value>, click: &Click, only_content: bool) {
    let (content, value) = match click.carriers {
        Carriers::Usual => (true, !only_content),
        Carriers::Content => (true, false),
        Carriers::Value => (false, true),
        Carriers::Both => (true, true),
    };
    for (name, wanted) in [("content", content), ("value", value)] {
        if wanted {
            body.insert(name.to_owned(), click.clicked());
        }
    }
}
