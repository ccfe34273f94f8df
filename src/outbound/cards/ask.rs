//! What a client asks of a card, checked member by member before anything is stored.

use serde::Deserialize;

use crate::delivery::id::MessageId;
use crate::delivery::state::{Ambiguous, Priority};
use crate::dingtalk::card::Variables;
use crate::dingtalk::instance::{
    Clicks, Face, Generation, Order, Patch, PrivateVariables, check_at, check_variables,
};
use crate::dingtalk::message::{At, Content, USERS_PER_CALL};
use crate::directory::chats::Chats;
use crate::egress::{App, CardCallback};
use crate::http::problem::Problem;
use crate::outbound::request::{
    Asked, check_priority, invalid, lifetime_ms, read, route, unfit_problem,
};
use crate::outbound::{Client, Message, Route, Settings, To};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    app: Option<String>,
    template_id: String,
    out_track_id: Option<String>,
    to: To,
    data: Variables,
    #[serde(default)]
    private_data: PrivateVariables,
    #[serde(default)]
    at: At,
    #[serde(default)]
    priority: Priority,
    expires_in_s: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Changes {
    app: Option<String>,
    data: Option<Variables>,
    private_data: Option<PrivateVariables>,
    #[serde(default)]
    replace: bool,
    priority: Option<Priority>,
}

/// A change that a client asks for.
#[derive(Debug)]
pub struct Change {
    /// The app, if it is named.
    pub app: Option<String>,
    /// What changes.
    pub patch: Patch,
    /// How urgent; `None`: as the card.
    pub priority: Option<Priority>,
}

/// Reads and checks the body of `POST /v1/cards`. A card without a name gets that of its message.
pub fn card(
    body: &[u8],
    client: &Client,
    settings: &Settings,
    chats: &Chats,
) -> Result<Asked, Problem> {
    let body: Body = read(body)?;
    check_priority(body.priority, client)?;
    let lifetime_ms = lifetime_ms(body.priority, body.expires_in_s)?;
    if let To::Robot(_) = body.to {
        return Err(invalid(
            "to.robot: a custom robot sends no cards; use to.chat with an app whose robot is in the group",
        ));
    }
    let (_, app, cool_app_code) = route(&body.to, body.app.as_deref(), settings, chats)?;
    let Some(app) = app else {
        return Err(invalid("app: a card needs one"));
    };
    let in_chat = matches!(body.to, To::Chat(_));
    check_at(&body.at, in_chat).map_err(|unfit| unfit_problem(&unfit))?;
    let order = Order {
        template_id: body.template_id,
        out_track_id: body.out_track_id.clone().unwrap_or_default(),
        face: Face {
            data: body.data,
            private_data: body.private_data,
        },
        clicks: clicks(app),
        generation: generation(app),
    };
    let named = Order {
        // Any name of ours is sound.
        out_track_id: body.out_track_id.unwrap_or_else(|| "msg".to_owned()),
        ..order.clone()
    };
    named.check().map_err(|unfit| unfit_problem(&unfit))?;
    let route = match order.generation {
        Generation::Current => Route::Card,
        Generation::Legacy => Route::LegacyCard,
    };
    if let (Route::LegacyCard, To::Users(people) | To::Accounts(people)) = (route, &body.to)
        && people.len() > USERS_PER_CALL
    {
        return Err(invalid(format!(
            "to: the legacy card API takes {USERS_PER_CALL} people; send several cards, or use [apps.cards] api = \"current\""
        )));
    }
    let message = Message {
        id: MessageId::new(0, 0, 0),
        app: app.name.clone(),
        robot_code: app.robot_code.clone(),
        cool_app_code,
        to: body.to,
        content: Content::Card(Box::new(order)),
        at: body.at,
        merge_key: None,
        resolved: false,
        parts: vec![],
        members: vec![],
        session: None,
        client: client.name.clone(),
    };
    Ok(Asked {
        message,
        route,
        priority: body.priority,
        ambiguous: Ambiguous::Retry,
        lifetime_ms,
        is_reply: false,
    })
}

/// Reads and checks the body of `PATCH /v1/cards/{out_track_id}`.
pub fn change(body: &[u8], client: &Client) -> Result<Change, Problem> {
    let body: Changes = read(body)?;
    if let Some(priority) = body.priority {
        check_priority(priority, client)?;
    }
    let (data, private_data) = (&body.data, &body.private_data);
    if data.is_none() && private_data.is_none() {
        return Err(invalid(
            "data: is missing, and so is private_data; one is needed",
        ));
    }
    if data.as_ref().is_some_and(Variables::is_empty) {
        return Err(invalid("data: must not be empty; leave it out"));
    }
    if let Some(private_data) = private_data {
        let nothing = || invalid("private_data: must name people with variables; leave it out");
        if private_data.is_empty() || private_data.values().any(Variables::is_empty) {
            return Err(nothing());
        }
    }
    let patch = Patch {
        whole_data: body.replace && data.is_some(),
        whole_private_data: body.replace && private_data.is_some(),
        data: body.data.unwrap_or_default(),
        private_data: body.private_data.unwrap_or_default(),
    };
    check_variables(&patch.data, &patch.private_data).map_err(|unfit| unfit_problem(&unfit))?;
    Ok(Change {
        app: body.app,
        patch,
        priority: body.priority,
    })
}

/// By which API the cards of `app` go.
pub fn generation(app: &App) -> Generation {
    if app.cards.legacy {
        Generation::Legacy
    } else {
        Generation::Current
    }
}

fn clicks(app: &App) -> Clicks {
    match (app.cards.callback, &app.cards.route_key) {
        (CardCallback::Http, Some(route_key)) => Clicks::Http(route_key.clone()),
        (CardCallback::Stream, _) => Clicks::Stream,
        (CardCallback::None | CardCallback::Http, _) => Clicks::None,
    }
}
