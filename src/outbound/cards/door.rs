//! The routes of cards.

use hyper::Method;
use serde::Serialize;

use super::accept::{Patching, change_route, no_such_card};
use super::card::Made;
use super::{Alive, Card, Standing, ask};
use crate::clock::rfc3339;
use crate::delivery::id::MessageId;
use crate::delivery::state::Priority;
use crate::dingtalk::envelope::percent_decode;
use crate::dingtalk::instance::{Generation, Patch};
use crate::dingtalk::message::Unfit;
use crate::http::audit::Who;
use crate::http::listen::Request;
use crate::http::problem::{self, Answer, Problem};
use crate::metrics;
use crate::outbound::Client;
use crate::outbound::accept::Once;
use crate::outbound::receive::{Api, Query, accepted, idempotency_key, unreadable};
use crate::outbound::request::unfit_problem;
use crate::outbound::standing::{self, Place};

/// `GET /v1/cards/{out_track_id}`.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    out_track_id: &'a str,
    app: &'a str,
    state: Standing,
    template_id: Option<&'a str>,
    api: Generation,
    message: Option<MessageId>,
    client: Option<&'a str>,
    accepted_at: String,
    changed_at: String,
    data: serde_json::Value,
    private_data: serde_json::Value,
    waiting: Option<Patch>,
    carried_by: Option<MessageId>,
}

impl Api {
    /// Answers a request about cards; `rest` is the path behind `/v1/cards`.
    pub(in crate::outbound) async fn cards(
        &self,
        rest: &[&str],
        request: &Request,
        client: &Client,
        who: &Who,
    ) -> (&'static str, Result<Answer, Problem>) {
        match (rest, &request.head.method) {
            ([], &Method::POST) => ("cards", self.post(request, client, ask::card).await),
            ([], _) => ("cards", Err(Problem::method_not_allowed("POST"))),
            ([id], &Method::GET) => ("card", self.get_card(id, request, who).await),
            ([id], &Method::PATCH) => ("card", self.patch_card(id, request, client, who).await),
            ([_], _) => ("card", Err(Problem::method_not_allowed("GET or PATCH"))),
            _ => ("none", Err(Problem::no_such_route())),
        }
    }

    async fn get_card(&self, id: &str, request: &Request, who: &Who) -> Result<Answer, Problem> {
        let query = Query::parse(request, &["app"])?;
        let id = name(id)?;
        let (card, alive) = self.card(query.get("app"), &id, who).await?;
        Ok(problem::json(200, &Shown::of(&card, &alive)))
    }

    async fn patch_card(
        &self,
        id: &str,
        request: &Request,
        client: &Client,
        who: &Who,
    ) -> Result<Answer, Problem> {
        let refuse = |problem: Problem| {
            metrics::admission(None, "refused", problem.slug());
            problem
        };
        Query::parse(request, &[]).map_err(refuse)?;
        let id = name(id).map_err(refuse)?;
        let key = idempotency_key(request).map_err(refuse)?;
        // The same change of another card is another request.
        let whole = [id.as_bytes(), &[0], &request.body].concat();
        let once = self.outbox.once(&client.name, key.as_deref(), &whole).await;
        let once = once.map_err(refuse)?;
        let change = ask::change(&request.body, client);
        let found = match &change {
            Ok(change) => self.card(change.app.as_deref(), &id, who).await,
            Err(problem) => Err(problem.clone()),
        };
        let priority = change.as_ref().ok().and_then(|change| change.priority);
        // Without its own it is as urgent as the card, as far as the client may go.
        let as_card = found
            .as_ref()
            .map_or(Priority::Normal, |(card, _)| card.priority);
        let priority = priority.unwrap_or(as_card.max(client.max_priority));
        let settings = self.outbox.settings.load_full();
        let tell = |answer| match &found {
            Ok((card, _)) => {
                let route = change_route(card.generation);
                let place = Place::of_change(route, &card.app, priority);
                standing::tell(answer, &place.standing(&self.egress, &settings))
            }
            Err(_) => answer,
        };
        // The first answer again, even if the request would not be taken now.
        if let Once::Replayed(answer) = once {
            return Ok(tell(accepted(200, &answer, true)));
        }
        let change = change.map_err(refuse)?;
        let (card, _) = found.as_ref().map_err(|problem| refuse(problem.clone()))?;
        let refused = |problem: Problem| {
            metrics::admission(Some(priority), "refused", problem.slug());
            tell(problem.answer())
        };
        if let Err(problem) = self.outbox.admit(priority) {
            return Ok(refused(problem));
        }
        let patching = Patching {
            app: &card.app,
            out_track_id: &id,
            patch: change.patch,
            priority: change.priority,
            most_urgent: client.max_priority,
            who: Some(who),
            not_before_ms: 0,
        };
        Ok(match self.outbox.patch(patching, once).await {
            Ok(answer) => tell(accepted(202, &answer, false)),
            Err(problem) => refused(problem),
        })
    }

    /// One card that `who` may see.
    async fn card(&self, app: Option<&str>, id: &str, who: &Who) -> Result<(Card, Alive), Problem> {
        let settings = self.outbox.settings.load_full();
        let apps = settings.apps.iter().map(|app| app.name.as_str());
        let apps: Vec<&str> = app.map_or_else(|| apps.collect(), |app| vec![app]);
        let mut found = vec![];
        for app in apps {
            let card = self.outbox.cards.read(app, id).await;
            let card = card.map_err(|error| unreadable(&error))?;
            found.extend(card.filter(|(card, _)| card.is_for(who)));
        }
        match (found.pop(), found.is_empty()) {
            (Some(card), true) => Ok(card),
            (Some(_), false) => Err(Problem::new(
                409,
                "card_ambiguous",
                "Card known to several apps",
                "several apps have a card of this name; name the app",
            )),
            (None, _) => Err(no_such_card()),
        }
    }
}

impl<'a> Shown<'a> {
    fn of(card: &'a Card, alive: &Alive) -> Self {
        let wanted = card.wanted();
        let flight = card.flight.as_ref().map(|flight| flight.shares.patch());
        let mut waiting = flight.unwrap_or_default();
        waiting.then(card.waiting.patch());
        let state = card.standing(alive);
        // It takes nothing along that comes after the card is made.
        let makes = state == Standing::Pending && card.made != Made::Yes;
        let maker = card.message.filter(|_| makes);
        let flight = card.flight.as_ref().filter(|_| alive.flight.is_some());
        let carrier = card.carrier.filter(|_| alive.carrier.is_some());
        Self {
            out_track_id: &card.out_track_id,
            app: &card.app,
            state,
            template_id: card.template_id.as_deref(),
            api: card.generation,
            message: card.message,
            client: card.client.as_deref(),
            accepted_at: rfc3339(card.accepted_ms),
            changed_at: rfc3339(card.touched_ms),
            data: serde_json::json!(wanted.data),
            private_data: serde_json::json!(wanted.private_data),
            waiting: Some(waiting).filter(|patch| !patch.is_empty()),
            // The one that is to arrive first.
            carried_by: maker.or(flight.map(|flight| flight.message)).or(carrier),
        }
    }
}

/// The card's name in a path.
fn name(segment: &str) -> Result<String, Problem> {
    let decoded = percent_decode(segment).ok_or_else(|| {
        unfit_problem(&Unfit {
            slug: "invalid_request",
            member: "out_track_id".to_owned(),
            problem: "is not percent-encoded text".to_owned(),
        })
    })?;
    Ok(decoded.into_owned())
}
