//! The two steps to a connection: a ticket for the app's secret, and a WebSocket for the ticket.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Request as HttpRequest;
use hyper::body::Incoming;
use serde_json::{Map, Value, json};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::link;
use crate::sim::clock;
use crate::sim::dingtalk::Stage;
use crate::sim::dingtalk::ask::{Ask, error, ok, text, typed};
use crate::sim::dingtalk::records::Request;
use crate::sim::dingtalk::world::World;
use crate::sim::server::{self, Answer, Switch};

const PATH: &str = "/connect";

/// The right to one connection.
#[derive(Debug)]
pub(super) struct Ticket {
    until: Instant,
    subscriptions: Vec<(String, String)>,
}

/// `POST /v1.0/gateway/connections/open`.
pub(in crate::sim::dingtalk) fn open(world: &mut World, ask: &Ask) -> Answer {
    opened(world, ask).unwrap_or_else(|refusal| refusal)
}

fn opened(world: &mut World, ask: &Ask) -> Result<Answer, Answer> {
    match world.links.refusal {
        Some(401) => return Err(error(401, "authFailed", "鉴权失败")),
        Some(status) => return Err(error(status, "openConnectionFailed", "建立连接失败")),
        None => {}
    }
    let body = ask
        .object()
        .filter(|_| ask.is_json())
        .ok_or_else(|| error(400, "Missingbody", "body is mandatory for this action"))?;
    let known = ["clientId", "clientSecret", "ua", "localIp", "subscriptions"];
    world.judge(ask, "", &body, &known);
    let app = &world.settings.app;
    if text(&body, "clientId") != Some(&app.client_id)
        || text(&body, "clientSecret") != Some(&app.client_secret)
    {
        return Err(error(401, "authFailed", "鉴权失败"));
    }
    let subscriptions = subscriptions(&body)
        .ok_or_else(|| error(400, "invalidParameter.subscriptions", "subscriptions无效"))?;
    let until = ask.at + world.scaled(world.settings.stream.ticket_ms);
    // Like a real id it does not go into a URL as it is.
    let ticket = format!("{}+/{:x}=", clock::hex(&clock::random::<14>()), ask.at_ms);
    let endpoint = format!("{}{PATH}", world.url.replacen("http", "ws", 1));
    let answer = if ask.accept.as_deref().is_some_and(takes_json) {
        ok(&json!({"endpoint": endpoint, "ticket": ticket}))
    } else {
        let xml = format!(
            "<OpenConnectionResponse><endpoint>{endpoint}</endpoint><ticket>{ticket}</ticket>\
             </OpenConnectionResponse>"
        );
        typed(200, "application/xml", xml)
    };
    let right = Ticket {
        until,
        subscriptions,
    };
    world.links.tickets.insert(ticket, right);
    Ok(answer)
}

/// Anything else is answered in XML.
fn takes_json(accept: &str) -> bool {
    accept.contains("application/json")
}

fn subscriptions(body: &Map<String, Value>) -> Option<Vec<(String, String)>> {
    let list = body.get("subscriptions")?.as_array()?;
    let pairs: Option<Vec<(String, String)>> = list
        .iter()
        .map(|one| {
            let one = one.as_object()?;
            let kind = text(one, "type")?;
            let known = ["EVENT", "CALLBACK", "SYSTEM"].contains(&kind);
            known.then(|| Some((kind.to_owned(), text(one, "topic")?.to_owned())))?
        })
        .collect();
    pairs.filter(|pairs| !pairs.is_empty())
}

/// `GET /connect?ticket=…`, which turns the connection into a WebSocket.
pub(in crate::sim::dingtalk) async fn switch(
    stage: Arc<Stage>,
    request: &mut HttpRequest<Incoming>,
) -> Switch {
    if request.uri().path() != PATH {
        return Switch::No;
    }
    let (slow_ms, misbehaves) = {
        let world = stage.world();
        let switches = &world.switches;
        let concerned = switches.concern(PATH);
        let cut = switches.refuse || (concerned && (switches.cut_before || switches.cut_after));
        if cut {
            return Switch::Cut;
        }
        (
            if concerned { switches.slow_ms } else { 0 },
            concerned && switches.down,
        )
    };
    tokio::time::sleep(Duration::from_millis(slow_ms)).await;
    let ask = stage.ask(request);
    let key = server::header(request, "sec-websocket-key");
    let taken = if misbehaves {
        Err(error(503, "ServiceUnavailable", "try again later"))
    } else {
        take(&mut stage.world(), &ask, request)
    };
    let (status, answer) = match (&taken, key) {
        (Ok(_), Some(key)) => (101, switching(&key)),
        (Ok(_), None) => (400, error(400, "BadRequest", "no Sec-WebSocket-Key")),
        (Err(refusal), _) => (refusal.status, refusal.clone()),
    };
    stage.world().requests.push(Request {
        at_ms: ask.at_ms,
        method: ask.method.clone(),
        path: ask.shown_path(),
        status,
        body: String::new(),
        code: None,
    });
    match taken {
        Ok(subscriptions) if status == 101 => {
            let upgrade = hyper::upgrade::on(request);
            Switch::Onward(answer, Box::pin(link::run(stage, upgrade, subscriptions)))
        }
        _ => Switch::Answer(answer),
    }
}

/// Takes the ticket out of the world: it serves one connection.
fn take(
    world: &mut World,
    ask: &Ask,
    request: &HttpRequest<Incoming>,
) -> Result<Vec<(String, String)>, Answer> {
    let is = |name: &str, wanted: &str| {
        let value = server::header(request, name).unwrap_or_default();
        value.to_ascii_lowercase().contains(wanted)
    };
    if ask.method != "GET" || !is("upgrade", "websocket") || !is("connection", "upgrade") {
        return Err(error(400, "BadRequest", "not a WebSocket handshake"));
    }
    if !is("sec-websocket-version", "13") {
        return Err(error(426, "UpgradeRequired", "WebSocket version 13 only"));
    }
    let ticket = ask.parameter("ticket").unwrap_or_default();
    let right = world.links.tickets.remove(&ticket);
    let right = right.filter(|right| clock::now() < right.until);
    let refused = || error(401, "invalidTicket", "ticket无效");
    right.map(|right| right.subscriptions).ok_or_else(refused)
}

fn switching(key: &str) -> Answer {
    Answer {
        status: 101,
        content_type: String::new(),
        headers: vec![
            ("upgrade", "websocket".to_owned()),
            ("connection", "Upgrade".to_owned()),
            ("sec-websocket-accept", derive_accept_key(key.as_bytes())),
        ],
        body: String::new(),
    }
}
