//! Replies to messages to the robot: by their session while it lives, by the robot's own call after that.
//!
//! A reply is a message of its own, with the lanes, limits and ends of all others. It is charged like the
//! robot's own call from the start, because it may have to become one.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::request::{
    Asked, app, check_priority, invalid, lifetime_ms, read, route, unfit_problem,
};
use super::send::Sender;
use super::{Client, Live, Message, Settings, To};
use crate::delivery::id::MessageId;
use crate::delivery::state::{Ambiguous, Priority};
use crate::delivery::verdict::{Scope, Verdict, Wait};
use crate::dingtalk::answer::Api;
use crate::dingtalk::message::{At, Content};
use crate::dingtalk::reply::ReplyTo;
use crate::directory::chats::Chats;
use crate::egress::call::Request;
use crate::http::problem::Problem;
use crate::http::transport::Origin;

/// A session with less life left than this is not used any more, in milliseconds.
const LEFT_MS_MIN: u64 = 2_000;
/// Who sends what the daemon sends of itself.
const CLIENT: &str = "dingd";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    reply_to: String,
    content: Content,
    #[serde(default)]
    at: At,
    /// By default high: somebody waits for it.
    priority: Option<Priority>,
    /// By default that of the app.
    ambiguous: Option<Ambiguous>,
    expires_in_s: Option<u64>,
}

/// Reads and checks the body of `POST /v1/replies`.
pub fn parse(
    body: &[u8],
    client: &Client,
    settings: &Settings,
    chats: &Chats,
) -> Result<Asked, Problem> {
    let body: Body = read(body)?;
    let priority = body
        .priority
        .unwrap_or(Priority::High.max(client.max_priority));
    check_priority(priority, client)?;
    check(body, priority, &client.name, settings, chats)
}

/// The reply that the platform gave as an answer.
pub fn answer(
    reply_to: &str,
    content: Content,
    settings: &Settings,
    chats: &Chats,
) -> Result<Asked, Problem> {
    let body = Body {
        reply_to: reply_to.to_owned(),
        content,
        at: At::default(),
        priority: None,
        ambiguous: None,
        expires_in_s: None,
    };
    check(body, Priority::High, CLIENT, settings, chats)
}

fn check(
    body: Body,
    priority: Priority,
    client: &str,
    settings: &Settings,
    chats: &Chats,
) -> Result<Asked, Problem> {
    let lifetime_ms = lifetime_ms(priority, body.expires_in_s)?;
    let named = ReplyTo::app(&body.reply_to).and_then(|name| app(Some(name), settings).ok());
    let opened = named.and_then(|app| ReplyTo::open(&body.reply_to, app.client_secret.expose()));
    let (Some(app), Some(reply_to)) = (named, opened) else {
        return Err(invalid(
            "reply_to: is not data.reply_to of a dingtalk.robot.message of this daemon",
        )
        .fix(
            "原样使用事件 data.reply_to 的值；若应用的 client_secret 已更换，旧值不再有效。",
            "Use data.reply_to of the event as it came; after a change of the app's client_secret old ones are void.",
        ));
    };
    if let Content::Raw(_) = body.content {
        return Err(invalid(
            "content.raw: a reply goes by two calls of different form; use text, markdown, link or action_card",
        ));
    }
    let to = match (reply_to.chat, reply_to.user) {
        (Some(chat), _) => To::Chat(chat),
        (None, Some(user)) => To::Users(vec![user]),
        (None, None) => return Err(invalid("reply_to: names nobody")),
    };
    let (route, _, cool_app_code) = match route(&to, Some(&app.name), settings, chats) {
        Ok(routed) => routed,
        // The session may still do.
        Err(problem) if reply_to.url.is_none() => return Err(problem),
        Err(_) => (to.robots_route(), None, None),
    };
    let session = reply_to.url.is_some().then_some(body.reply_to);
    if session.is_none() && !body.at.is_empty() {
        return Err(invalid(
            "at: only a session can mention people, and this message brought none",
        ));
    }
    if session.is_some() {
        // The larger of the two forms decides.
        let rendered = body.content.for_webhook(&body.at);
        if let Err(unfit) = rendered
            && unfit.slug != "content_too_large"
        {
            return Err(unfit_problem(&unfit));
        }
    }
    let parts = body.content.parts_for_enterprise_robot();
    let parts = parts.map_err(|unfit| unfit_problem(&unfit))?;
    let message = Message {
        id: MessageId::new(0, 0, 0),
        app: app.name.clone(),
        robot_code: app.robot_code.clone(),
        cool_app_code,
        to,
        content: body.content,
        at: body.at,
        merge_key: None,
        resolved: false,
        parts,
        members: vec![],
        session,
        client: client.to_owned(),
    };
    Ok(Asked {
        message,
        route,
        priority,
        ambiguous: body.ambiguous.unwrap_or(app.ambiguous),
        lifetime_ms,
        is_reply: true,
    })
}

impl Sender {
    /// The call that carries part `index` of a reply by its session; `None` if that is over, or if the
    /// message has none.
    pub(super) fn by_session(
        &self,
        message: &Message,
        live: &Live,
        index: usize,
    ) -> Option<Request> {
        let sealed = message.session.as_ref().filter(|_| !live.session_over)?;
        let settings = self.settings.load();
        let app = settings.apps.iter().find(|app| app.name == message.app)?;
        let reply_to = ReplyTo::open(sealed, app.client_secret.expose())?;
        if reply_to.expires_ms < self.clock.wall_ms() + LEFT_MS_MIN {
            return None;
        }
        let (origin, path) = Origin::parse(&reply_to.url?, false).ok()?;
        // Checked when it came; the hosts may have been configured anew since.
        if !self.egress.is_dingtalk(&origin) {
            return None;
        }
        let (content, part) = message.part(index);
        let nobody = At::default();
        let at = if part == 0 { &message.at } else { &nobody };
        let body = content.for_webhook(at).ok()?;
        Some(Request {
            api: Api::WebhookSend,
            session: Some(origin),
            path,
            token: None,
            body: Bytes::from(Value::Object(body).to_string()),
        })
    }
}

/// What a refusal by the session comes to: the robot's own call is next, and nothing is held against the
/// message. Whatever the session had against it, that call says it as well.
pub(super) fn after_session(live: &mut Live, verdict: Verdict) -> Verdict {
    let refused = match &verdict {
        Verdict::Dead(_) => true,
        Verdict::Blocked { scope, .. } | Verdict::Pause { scope, .. } => *scope != Scope::Egress,
        _ => false,
    };
    match verdict.reason().cloned().filter(|_| refused) {
        Some(reason) => {
            live.session_over = true;
            Verdict::Pause {
                scope: Scope::Message,
                wait: Wait::Fixed(0),
                reason,
            }
        }
        None => verdict,
    }
}
