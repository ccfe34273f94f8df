//! What a client asks for, checked member by member before anything is stored.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Client, Message, Route, Settings, To};
use crate::delivery::id::MessageId;
use crate::delivery::state::{Ambiguous, Priority};
use crate::dingtalk::event::ChatId;
use crate::dingtalk::members::depth;
use crate::dingtalk::message::{At, Content, Unfit, a_card};
use crate::directory::chats::{ChatState, Chats};
use crate::egress::App;
use crate::http::problem::Problem;

const DEPTH_MAX: usize = 32;
const PEOPLE_MAX: usize = 1_000;

/// A request that can be carried out.
#[derive(Debug)]
pub struct Asked {
    /// What to store; its id is not the final one yet.
    pub message: Message,
    /// Which call carries it.
    pub route: Route,
    /// How urgent.
    pub priority: Priority,
    /// What to do when nobody can know.
    pub ambiguous: Ambiguous,
    /// Worth sending for this long, in milliseconds.
    pub lifetime_ms: u64,
    /// It answers somebody, so it never goes in a digest.
    pub is_reply: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    app: Option<String>,
    to: To,
    content: Content,
    #[serde(default)]
    at: At,
    #[serde(default)]
    priority: Priority,
    /// By default that of the app.
    ambiguous: Option<Ambiguous>,
    expires_in_s: Option<u64>,
    merge_key: Option<String>,
    status: Option<Status>,
}

/// How the thing of `merge_key` is: the words of Alertmanager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Firing,
    Resolved,
}

/// Reads and checks the body of `POST /v1/messages`.
pub fn parse(
    body: &[u8],
    client: &Client,
    settings: &Settings,
    chats: &Chats,
) -> Result<Asked, Problem> {
    check(read(body)?, client, settings, chats)
}

/// Reads the JSON of a request; an error names the member.
pub(super) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    if depth(body) > DEPTH_MAX {
        return Err(invalid("the JSON is nested deeper than 32"));
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let read = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        if path.starts_with("content.card") {
            return unfit_problem(&a_card());
        }
        let inner = crate::secret::printable(&error.inner().to_string(), 300);
        if error.inner().is_data() {
            // These are a choice of members; elsewhere it is a value that is none of the known ones.
            let none_of = inner.strip_prefix("unknown variant `");
            let member = none_of.and_then(|rest| rest.split('`').next());
            invalid(match (path.as_str(), member) {
                (".", _) => inner,
                ("to" | "content", Some(member)) => format!("{path}.{member}: {inner}"),
                (path, _) => format!("{path}: {inner}"),
            })
        } else {
            Problem::new(400, "invalid_json", "Not JSON", inner)
        }
    })?;
    if json.end().is_err() {
        return Err(Problem::new(
            400,
            "invalid_json",
            "Not JSON",
            "something follows the JSON value",
        ));
    }
    Ok(read)
}

/// Whether `client` may use `priority`.
pub(super) fn check_priority(priority: Priority, client: &Client) -> Result<(), Problem> {
    if priority >= client.max_priority {
        return Ok(());
    }
    let detail = format!(
        "client {:?} may use {} at most",
        client.name,
        client.max_priority.label()
    );
    let problem = Problem::new(403, "priority_not_allowed", "Priority not allowed", detail);
    Err(problem.fix(
        "调整 config.toml 中 [[api.clients]] 的 max_priority。",
        "Change max_priority in [[api.clients]] of config.toml.",
    ))
}

/// How long a message is worth sending, in milliseconds.
pub(super) fn lifetime_ms(priority: Priority, expires_in_s: Option<u64>) -> Result<u64, Problem> {
    let longest_ms = priority.lifetime_ms();
    match expires_in_s {
        Some(0) => Err(invalid("expires_in_s: must be at least 1")),
        Some(seconds) => Ok(seconds.saturating_mul(1_000).min(longest_ms)),
        None => Ok(longest_ms),
    }
}

fn check(
    body: Body,
    client: &Client,
    settings: &Settings,
    chats: &Chats,
) -> Result<Asked, Problem> {
    check_priority(body.priority, client)?;
    if body
        .merge_key
        .as_ref()
        .is_some_and(|key| key.is_empty() || key.len() > 256)
    {
        return Err(invalid("merge_key: must have 1 to 256 bytes"));
    }
    if body.status.is_some() && body.merge_key.is_none() {
        return Err(invalid(
            "status: needs merge_key, which says what is firing or resolved",
        ));
    }
    let lifetime_ms = lifetime_ms(body.priority, body.expires_in_s)?;
    let (route, app, cool_app_code) = route(&body.to, body.app.as_deref(), settings, chats)?;
    let ambiguous = body.ambiguous.or(app.map(|app| app.ambiguous));
    let mut message = Message {
        id: MessageId::new(0, 0, 0),
        app: app.map_or_else(String::new, |app| app.name.clone()),
        robot_code: app.map_or_else(String::new, |app| app.robot_code.clone()),
        cool_app_code,
        to: body.to,
        content: body.content,
        at: body.at,
        merge_key: body.merge_key,
        resolved: body.status == Some(Status::Resolved),
        parts: vec![],
        members: vec![],
        session: None,
        client: client.name.clone(),
    };
    // What cannot be rendered now never can be.
    let parts = match route {
        Route::Webhook => message.content.parts_for_webhook(&message.at),
        Route::Group | Route::People if !message.at.is_empty() => {
            return Err(Problem::new(
                422,
                "at_not_supported",
                "Mentions not supported here",
                "at: DingTalk's enterprise robot cannot mention anybody in a message",
            )
            .fix(
                "改用自定义机器人（to.robot）或互动卡片来 @ 人。",
                "Use a custom robot (to.robot) or a card to mention people.",
            ));
        }
        _ => message.content.parts_for_enterprise_robot(),
    };
    message.parts = parts.map_err(|unfit| unfit_problem(&unfit))?;
    Ok(Asked {
        message,
        route,
        priority: body.priority,
        ambiguous: ambiguous.unwrap_or_default(),
        lifetime_ms,
        is_reply: false,
    })
}

/// Which call carries a message to `to`, the app and the cool app that it goes by.
pub(super) fn route<'a>(
    to: &To,
    app_name: Option<&str>,
    settings: &'a Settings,
    chats: &Chats,
) -> Result<(Route, Option<&'a App>, Option<String>), Problem> {
    match to {
        To::Robot(name) => {
            if app_name.is_some() {
                return Err(invalid(
                    "app: a custom robot belongs to no app; leave it out",
                ));
            }
            if !settings.robots.contains_key(name) && !settings.pools.contains_key(name) {
                let known = settings.robots.keys().chain(settings.pools.keys());
                let known: Vec<_> = known.map(String::as_str).collect();
                let detail = format!("to.robot: unknown; configured are {known:?}");
                return Err(
                    Problem::new(422, "robot_unknown", "No such robot", detail).fix(
                        "在 config.toml 增加 [[robots]]，然后 systemctl reload dingd。",
                        "Add it as [[robots]] in config.toml, then systemctl reload dingd.",
                    ),
                );
            }
            Ok((Route::Webhook, None, None))
        }
        To::Users(people) => {
            check_people("to.users", people)?;
            Ok((Route::People, Some(app(app_name, settings)?), None))
        }
        To::Accounts(people) => {
            check_people("to.accounts", people)?;
            Ok((Route::People, Some(app(app_name, settings)?), None))
        }
        To::Card(_) => Err(invalid(
            "to.card: a card is changed with PATCH /v1/cards/{out_track_id}",
        )),
        To::Chat(id) => {
            let app = app(app_name, settings)?;
            if ChatId::new(id).is_none() {
                return Err(invalid(
                    "to.chat: is not an openConversationId (cid…); do not decode + / = in it",
                ));
            }
            let chat = chats.get(&app.name, id);
            match chat.as_ref().and_then(|chat| chat.state) {
                Some(ChatState::Uninstalled) => Err(uninstalled(chat.is_some_and(|c| c.disbanded))),
                None if settings.known_chats_only => Err(Problem::new(
                    422,
                    "chat_unknown",
                    "Chat not known",
                    "to.chat: no install event told of this chat, and [outbound] known_chats_only is on",
                )
                .fix(
                    "在该群安装酷应用（群设置 → 酷应用），或关闭 known_chats_only。",
                    "Install the cool app in that group (group settings → cool apps), or switch known_chats_only off.",
                )),
                _ => Ok((Route::Group, Some(app), cool_app_code(app, id, chats))),
            }
        }
    }
}

/// The code of the cool app that `app` has in a group: the one that was installed there, else the configured one.
pub(super) fn cool_app_code(app: &App, chat: &str, chats: &Chats) -> Option<String> {
    let installed = chats
        .get(&app.name, chat)
        .and_then(|chat| chat.cool_app_code);
    installed.or_else(|| app.cool_app_code.clone())
}

/// The app of that name, or the only one.
pub(super) fn app<'a>(name: Option<&str>, settings: &'a Settings) -> Result<&'a App, Problem> {
    let names = || {
        settings
            .apps
            .iter()
            .map(|app| app.name.as_str())
            .collect::<Vec<_>>()
    };
    match name {
        Some(name) => settings
            .apps
            .iter()
            .find(|app| app.name == name)
            .ok_or_else(|| {
                Problem::new(
                    422,
                    "app_unknown",
                    "No such app",
                    format!("app: unknown; configured are {:?}", names()),
                )
            }),
        None => match settings.apps.as_slice() {
            [only] => Ok(only),
            [] => Err(Problem::new(
                422,
                "app_unknown",
                "No app",
                "no [[apps]] is configured",
            )),
            _ => Err(invalid(format!("app: name one of {:?}", names()))),
        },
    }
}

fn check_people(member: &str, people: &[String]) -> Result<(), Problem> {
    if people.is_empty() || people.len() > PEOPLE_MAX {
        return Err(invalid(format!(
            "{member}: must name 1 to {PEOPLE_MAX} people"
        )));
    }
    let sound = |id: &String| {
        (1..=128).contains(&id.len()) && !id.chars().any(|c| c.is_control() || c.is_whitespace())
    };
    if let Some(index) = people.iter().position(|id| !sound(id)) {
        return Err(invalid(format!("{member}[{index}]: is not an id")));
    }
    Ok(())
}

fn uninstalled(disbanded: bool) -> Problem {
    let (detail, zh, en) = if disbanded {
        (
            "to.chat: the group was disbanded",
            "该群已解散，请在告警平台的通知策略里换一个群。",
            "The group was disbanded; choose another one in the platform's notification policy.",
        )
    } else {
        (
            "to.chat: the cool app was removed from this group",
            "在该群重新安装酷应用：群设置 → 酷应用。",
            "Install the cool app in that group again: group settings → cool apps.",
        )
    };
    Problem::new(422, "chat_uninstalled", "Chat not reachable", detail).fix(zh, en)
}

pub(super) fn unfit_problem(unfit: &Unfit) -> Problem {
    let status = if unfit.slug == "content_too_large" {
        413
    } else {
        422
    };
    Problem::new(
        status,
        unfit.slug,
        "Content not sendable",
        unfit.to_string(),
    )
}

pub(super) fn invalid(detail: impl Into<String>) -> Problem {
    Problem::new(422, "invalid_request", "Invalid request", detail)
}
