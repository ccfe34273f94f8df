//! The API door: who calls, what they want, and answers that a program can act on.

use std::sync::Arc;

use hyper::Method;
use hyper::header::AUTHORIZATION;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use super::accept::{Accepted, Once, Outbox};
use super::dead::filter::{Cursor, Filter as DeadFilter};
use super::lane::Command;
use super::request::Asked;
use super::standing::{self, Place};
use super::{Client, Live, Message, Settings, Whom, fold, reply, request, show};
use crate::clock::{parse_rfc3339, rfc3339};
use crate::delivery::id::MessageId;
use crate::delivery::record;
use crate::delivery::state::State;
use crate::dingtalk::envelope::percent_decode;
use crate::directory::chats::{Chat, ChatState, Chats, Filter};
use crate::egress::Egress;
use crate::http::audit::{Who, audited};
use crate::http::listen::Request;
use crate::http::problem::{self, Answer, Problem};
use crate::journal::queue::seq_of;
use crate::journal::{Order, ReadError, View};
use crate::metrics;

const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
const LIST_DEFAULT: usize = 50;
const LIST_MAX: usize = 200;
/// One page looks at this many records at the most; the cursor goes on from there.
const LIST_LOOKED_AT_MAX: usize = 20_000;

/// The handler of the API door.
#[derive(Debug, Clone)]
pub struct Api {
    /// Where messages go.
    pub outbox: Arc<Outbox>,
    /// Groups.
    pub chats: Arc<Chats>,
    /// The month.
    pub egress: Arc<Egress>,
    /// To the task that owns what waits.
    pub commands: mpsc::Sender<Command>,
}

/// The parameters of a query.
#[derive(Debug)]
pub struct Query(Vec<(String, String)>);

impl Api {
    /// Answers one request of a client.
    pub async fn handle(self, request: Request) -> Answer {
        let started_us = self.outbox.clock.mono_us();
        let (route, answer) = match self.client(&request) {
            Ok(client) => self.route(&request, &client, false).await,
            Err(refusal) => ("none", *refusal),
        };
        let us = self.outbox.clock.mono_us() - started_us;
        metrics::http_request("api", route, answer.status().as_u16(), us);
        answer
    }

    fn client(&self, request: &Request) -> Result<Client, Box<Answer>> {
        let given = request
            .head
            .headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .unwrap_or_default();
        let settings = self.outbox.settings.load();
        // All are compared, so that the time taken does not tell which one is near.
        let mut matching = settings
            .clients
            .iter()
            .filter(|client| client.token.matches(given));
        let client = matching.next_back().cloned().ok_or_else(|| {
            let problem = Problem::new(
                401,
                "unauthorized",
                "Unauthorized",
                "no client has this bearer token",
            )
            .fix(
                "检查 Authorization: Bearer … 是否与 config.toml 的 [[api.clients]] token 一致。",
                "Compare Authorization: Bearer … with token in [[api.clients]] of config.toml.",
            );
            Box::new(problem.answer())
        })?;
        if let Some(Err(used_up)) = client.rate.as_ref().map(|rate| rate.check()) {
            let problem = Problem::new(
                429,
                "rate_limited",
                "Too many requests",
                "this client's rate_per_s is used up",
            );
            let answer = problem.retry_after_s(1).answer();
            let per_s = used_up.quota().burst_size().get();
            return Err(Box::new(standing::client_used_up(answer, per_s)));
        }
        Ok(client)
    }

    /// Answers a request of `client`. The operator sees contents.
    pub async fn route(
        &self,
        request: &Request,
        client: &Client,
        operator: bool,
    ) -> (&'static str, Answer) {
        let path = request.head.uri.path();
        let method = &request.head.method;
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let who = if operator {
            Who::Operator
        } else {
            Who::Client(client.name.clone())
        };
        let (route, result) = match segments.as_slice() {
            ["v1", "messages"] => match *method {
                Method::POST => ("messages", self.post(request, client, request::parse).await),
                Method::GET => ("messages", self.list_messages(request, &who).await),
                _ => ("messages", Err(Problem::method_not_allowed("GET or POST"))),
            },
            ["v1", "messages", id] => match *method {
                Method::GET => ("message", self.get_message(id, &who).await),
                Method::DELETE => ("message", self.cancel(id, &who).await),
                _ => ("message", Err(Problem::method_not_allowed("GET or DELETE"))),
            },
            ["v1", "messages", id, "resolve"] if method == Method::POST => {
                ("resolve", self.resolve(id, request, &who).await)
            }
            ["v1", "dead"] if method == Method::GET => {
                ("dead", self.list_dead(request, &who).await)
            }
            ["v1", "dead", id] if method == Method::GET => ("dead", self.get_dead(id, &who).await),
            ["v1", "dead", id, "replay"] if method == Method::POST => {
                ("replay", self.replay(id, &who).await)
            }
            ["v1", "dead"] | ["v1", "dead", _] => ("dead", Err(Problem::method_not_allowed("GET"))),
            ["v1", "dead", _, "replay"] | ["v1", "messages", _, "resolve"] => {
                ("dead", Err(Problem::method_not_allowed("POST")))
            }
            ["v1", "chats"] if method == Method::GET => ("chats", self.list_chats(request)),
            ["v1", "chats", id] if method == Method::GET => ("chat", self.get_chat(id, request)),
            ["v1", "chats"] | ["v1", "chats", _] => {
                ("chats", Err(Problem::method_not_allowed("GET")))
            }
            ["v1", "replies"] if method == Method::POST => {
                ("replies", self.post(request, client, reply::parse).await)
            }
            ["v1", "replies"] => ("replies", Err(Problem::method_not_allowed("POST"))),
            ["v1", "cards", rest @ ..] => self.cards(rest, request, client, &who).await,
            ["v1", "quota"] if method == Method::GET => ("quota", self.get_quota(request)),
            ["v1", "quota"] => ("quota", Err(Problem::method_not_allowed("GET"))),
            _ => ("none", Err(Problem::no_such_route())),
        };
        (route, result.unwrap_or_else(|problem| problem.answer()))
    }

    /// Takes in what `parse` makes of the request.
    pub(super) async fn post(
        &self,
        request: &Request,
        client: &Client,
        parse: fn(&[u8], &Client, &Settings, &Chats) -> Result<Asked, Problem>,
    ) -> Result<Answer, Problem> {
        let refuse = |problem: Problem| {
            metrics::admission(None, "refused", problem.slug());
            problem
        };
        let key = idempotency_key(request).map_err(refuse)?;
        let once = self
            .outbox
            .once(&client.name, key.as_deref(), &request.body)
            .await
            .map_err(refuse)?;
        let settings = self.outbox.settings.load_full();
        let asked = parse(&request.body, client, &settings, &self.chats);
        let place = asked.as_ref().ok().map(Place::of);
        let tell = |answer| match &place {
            Some(place) => standing::tell(answer, &place.standing(&self.egress, &settings)),
            None => answer,
        };
        // The first answer again, even if the request would not be taken now.
        if let Once::Replayed(answer) = once {
            return Ok(tell(accepted(200, &answer, true)));
        }
        let asked = asked.map_err(refuse)?;
        let priority = asked.priority;
        if let Err(problem) = self.outbox.admit(priority) {
            metrics::admission(Some(priority), "refused", problem.slug());
            return Ok(tell(problem.answer()));
        }
        Ok(tell(match self.outbox.accept(asked, once).await {
            Ok(answer) => accepted(202, &answer, false),
            Err(problem) => problem.answer(),
        }))
    }

    async fn get_message(&self, id: &str, who: &Who) -> Result<Answer, Problem> {
        let (message, live) = self.find(id).await?;
        if !may_see(who, &message) {
            return Err(no_such_message());
        }
        Ok(if *who == Who::Operator {
            problem::json(200, &show::with_content(&message, &live))
        } else {
            problem::json(200, &show::message(&message, &live))
        })
    }

    async fn cancel(&self, id: &str, who: &Who) -> Result<Answer, Problem> {
        let (api, wanted) = (self.clone(), id.to_owned());
        let by = who.clone();
        let work = async move { api.delete_message(&wanted, &by).await };
        audited(who, "cancel", id, |_| "cancelled".to_owned(), work).await
    }

    async fn resolve(&self, id: &str, request: &Request, who: &Who) -> Result<Answer, Problem> {
        let (outbox, by) = (self.outbox.clone(), who.clone());
        let (wanted, body) = (id.to_owned(), request.body.clone());
        let work = async move { outbox.resolve(&wanted, &body, &by).await };
        let done = audited(who, "resolve", id, ToString::to_string, work).await?;
        Ok(problem::json(200, &done))
    }

    async fn replay(&self, id: &str, who: &Who) -> Result<Answer, Problem> {
        let (outbox, by, wanted) = (self.outbox.clone(), who.clone(), id.to_owned());
        let work = async move { outbox.replay(&wanted, &by).await };
        let done = audited(who, "replay", id, ToString::to_string, work).await?;
        Ok(problem::json(200, &done))
    }

    async fn get_dead(&self, id: &str, who: &Who) -> Result<Answer, Problem> {
        let (_, message, live) = self.outbox.dead_message(id, who).await?;
        let shown = show::message(&message, &live);
        Ok(problem::json(
            200,
            &serde_json::json!({"direction": "outbound", "message": shown}),
        ))
    }

    /// What the client sent itself; events are the operator's.
    async fn list_dead(&self, request: &Request, who: &Who) -> Result<Answer, Problem> {
        let (filter, cursor, limit) = dead_query(request)?;
        let looked = self
            .outbox
            .dead_messages(filter, who, cursor, limit)
            .await?;
        let next_cursor = looked.on.map(|(ended_ms, seq)| {
            let cursor = Cursor {
                ended_ms,
                inbound: false,
                seq,
            };
            cursor.to_string()
        });
        let dead: Vec<_> = looked.found.into_iter().map(|(_, shown)| shown).collect();
        let page = serde_json::json!({"dead": dead, "next_cursor": next_cursor});
        Ok(problem::json(200, &page))
    }

    async fn delete_message(&self, id: &str, who: &Who) -> Result<Answer, Problem> {
        let (message, live) = self.find(id).await?;
        if !who.owns(&message.client) {
            return Err(no_such_message());
        }
        let late = |state: State| {
            let detail = format!("the message is {}", state.label());
            Problem::new(409, "not_cancellable", "Too late", detail)
        };
        if live.progress.state.is_terminal() {
            return Err(late(live.progress.state));
        }
        let (answer, told) = oneshot::channel();
        let command = Command::Cancel {
            seq: message.id.seq(),
            answer,
        };
        if self.commands.send(command).await.is_err() {
            return Err(Problem::unavailable(
                "draining",
                "the daemon is stopping",
                5,
            ));
        }
        if told.await.unwrap_or(false) {
            // What is written now is in the same queue as the cancellation, behind it.
            self.settled().await?;
            self.get_message(id, who).await
        } else {
            let (_, live) = self.find(id).await?;
            Err(match live.digest {
                _ if live.progress.state.is_terminal() => late(live.progress.state),
                Some(digest) => Problem::new(
                    409,
                    "not_cancellable",
                    "Too late",
                    format!("the message is in digest {digest}, which is under way"),
                ),
                None => late(State::Sending),
            })
        }
    }

    /// Waits until everything that was submitted before is durable.
    async fn settled(&self) -> Result<(), Problem> {
        let done = self
            .outbox
            .journal
            .commit(crate::journal::Batch::default())
            .await;
        done.map_err(|_| Problem::unavailable("store_failed", "the journal cannot be written", 5))
    }

    async fn find(&self, id: &str) -> Result<(Message, Live), Problem> {
        let id: MessageId = id.parse().map_err(|_| no_such_message())?;
        let place = self.outbox.queue.place();
        let read = self.outbox.journal.read(move |view| {
            let key = id.seq().to_be_bytes();
            let live = match view.get(place.live, &key)? {
                Some(live) => Some(live),
                None => view.get(place.done, &key)?,
            };
            Ok((view.get(place.payload, &key)?, live))
        });
        let (message, live) = read.await.map_err(|error| unreadable(&error))?;
        let (Some(message), Some(live)) = (message, live) else {
            return Err(no_such_message());
        };
        let damaged = |_| {
            Problem::new(
                500,
                "record_damaged",
                "Record damaged",
                "the stored message cannot be read",
            )
        };
        let message: Message = record::decode(&message).map_err(damaged)?;
        let live: Live = record::decode(&live).map_err(damaged)?;
        if message.id == id {
            Ok((message, live))
        } else {
            Err(no_such_message())
        }
    }

    async fn list_messages(&self, request: &Request, who: &Who) -> Result<Answer, Problem> {
        let query = Query::parse(
            request,
            &["state", "chat", "user", "robot", "since", "limit", "cursor"],
        )?;
        let wanted = Wanted::from_query(&query)?;
        let limit = query.limit()?;
        let before: u64 = match query.get("cursor") {
            Some(cursor) => cursor.parse().map_err(|_| bad_query("cursor"))?,
            None => u64::MAX,
        };
        let (place, who) = (self.outbox.queue.place(), who.clone());
        let takes = move |live: &Live, message: &Message| {
            wanted.takes(live, message) && may_see(&who, message)
        };
        let page = self
            .outbox
            .journal
            .read(move |view| page(view, place, &takes, before, limit))
            .await
            .map_err(|error| unreadable(&error))?;
        Ok(problem::json(200, &page))
    }

    fn get_quota(&self, request: &Request) -> Result<Answer, Problem> {
        Query::parse(request, &[])?;
        Ok(problem::json(200, &self.egress.quota()))
    }

    fn list_chats(&self, request: &Request) -> Result<Answer, Problem> {
        #[derive(Serialize)]
        struct Page<'a> {
            chats: Vec<ShownChat<'a>>,
            next_cursor: Option<String>,
        }
        let query = Query::parse(request, &["q", "app", "state", "limit", "cursor"])?;
        let state = match query.get("state") {
            None | Some("installed") => Some(ChatState::Installed),
            Some("uninstalled") => Some(ChatState::Uninstalled),
            Some("all") => None,
            Some(_) => return Err(bad_query("state")),
        };
        let filter = Filter {
            q: query.get("q").map(Into::into),
            app: query.get("app").map(Into::into),
            state,
        };
        let limit = query.limit()?;
        let skip: usize = match query.get("cursor") {
            Some(cursor) => cursor.parse().map_err(|_| bad_query("cursor"))?,
            None => 0,
        };
        let all = self.chats.list(&filter);
        let chats: Vec<_> = all
            .iter()
            .skip(skip)
            .take(limit)
            .map(ShownChat::from)
            .collect();
        let next = skip.saturating_add(chats.len());
        let next_cursor = (next < all.len()).then(|| next.to_string());
        Ok(problem::json(200, &Page { chats, next_cursor }))
    }

    fn get_chat(&self, id: &str, request: &Request) -> Result<Answer, Problem> {
        let query = Query::parse(request, &["app"])?;
        let id = percent_decode(id).ok_or_else(|| bad_query("id"))?;
        let mut found = match query.get("app") {
            Some(app) => self.chats.get(app, &id).into_iter().collect(),
            None => self.chats.of_any_app(&id),
        };
        match (found.pop(), found.is_empty()) {
            (Some(chat), true) => Ok(problem::json(200, &ShownChat::from(&chat))),
            (Some(_), false) => Err(Problem::new(
                409,
                "chat_ambiguous",
                "Chat known to several apps",
                "several apps are in this chat; add ?app=",
            )),
            (None, _) => Err(Problem::new(
                404,
                "chat_not_found",
                "No such chat",
                "no event told of this chat",
            )
            .fix(
                "在该群（重新）安装酷应用即可出现；也请确认已订阅安装事件。",
                "(Re)install the cool app in that group; check that install events are subscribed.",
            )),
        }
    }
}

#[derive(Debug, Serialize)]
struct ShownChat<'a> {
    id: &'a str,
    app: &'a str,
    title: Option<&'a str>,
    state: Option<ChatState>,
    cool_app_code: Option<&'a str>,
    robot_code: Option<&'a str>,
    installed_at: Option<String>,
    installed_by: Option<&'a str>,
    title_at: Option<String>,
    disbanded: bool,
}

impl<'a> From<&'a Chat> for ShownChat<'a> {
    fn from(chat: &'a Chat) -> Self {
        Self {
            id: &chat.id,
            app: &chat.app,
            title: chat.title.as_deref(),
            state: chat.state,
            cool_app_code: chat.cool_app_code.as_deref(),
            robot_code: chat.robot_code.as_deref(),
            installed_at: chat.installed_at_ms.map(rfc3339),
            installed_by: chat.installed_by.as_deref(),
            title_at: (chat.title_at_ms > 0).then(|| rfc3339(chat.title_at_ms)),
            disbanded: chat.disbanded,
        }
    }
}

/// Which messages to list.
#[derive(Debug, Default)]
struct Wanted {
    state: Option<State>,
    whom: Whom,
    since_ms: u64,
}

impl Wanted {
    fn from_query(query: &Query) -> Result<Self, Problem> {
        let state = match query.get("state") {
            Some(name) => Some(State::named(name).ok_or_else(|| bad_query("state"))?),
            None => None,
        };
        let since_ms = match query.get("since") {
            Some(since) => parse_rfc3339(since).ok_or_else(|| bad_query("since"))?,
            None => 0,
        };
        let text = |name| query.get(name).map(ToOwned::to_owned);
        Ok(Self {
            state,
            whom: Whom {
                chat: text("chat"),
                user: text("user"),
                robot: text("robot"),
            },
            since_ms,
        })
    }

    fn takes(&self, live: &Live, message: &Message) -> bool {
        self.state.is_none_or(|state| state == live.progress.state)
            && live.accepted_ms >= self.since_ms
            && self.whom.takes(&message.to)
    }
}

#[derive(Debug, Serialize)]
struct Page {
    messages: Vec<serde_json::Value>,
    next_cursor: Option<String>,
}

/// A client sees what it sent, and the digests that it may have gone into; their contents it does not.
fn may_see(who: &Who, message: &Message) -> bool {
    who.owns(&message.client) || message.client == fold::CLIENT
}

/// Newest first, from both tables at once.
fn page(
    view: &View<'_>,
    place: crate::journal::queue::Place,
    takes: &dyn Fn(&Live, &Message) -> bool,
    before: u64,
    limit: usize,
) -> Result<Page, ReadError> {
    let mut messages = vec![];
    let mut looked_at = 0;
    let mut next_cursor = None;
    let end = before.to_be_bytes();
    view.walk(
        place.payload,
        &[],
        &end,
        Order::Descending,
        &mut |key, payload| {
            looked_at += 1;
            if messages.len() >= limit || looked_at > LIST_LOOKED_AT_MAX {
                // The cursor is exclusive: go on below the one that was taken last.
                next_cursor = Some((seq_of(key) + 1).to_string());
                return false;
            }
            let live = match view.get(place.live, key) {
                Ok(Some(live)) => Some(live),
                _ => view.get(place.done, key).ok().flatten(),
            };
            if let (Ok(message), Some(Ok(live))) = (
                record::decode::<Message>(payload),
                live.map(|live| record::decode::<Live>(&live)),
            ) && takes(&live, &message)
            {
                messages.extend(serde_json::to_value(show::message(&message, &live)));
            }
            true
        },
    )?;
    Ok(Page {
        messages,
        next_cursor,
    })
}

impl Query {
    /// Reads the query; parameters that are not `known` are refused, so that a typo never passes.
    pub fn parse(request: &Request, known: &[&str]) -> Result<Self, Problem> {
        Self::of(request.head.uri.query().unwrap_or_default(), known)
    }

    /// As [`Self::parse`], from the text behind the question mark.
    pub fn of(text: &str, known: &[&str]) -> Result<Self, Problem> {
        let mut pairs = vec![];
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if !known.contains(&name) || pairs.iter().any(|(seen, _)| seen == name) {
                let name = crate::secret::printable(name, 64);
                let detail =
                    format!("query: {name:?} is unknown here or comes twice; known are {known:?}");
                return Err(Problem::new(
                    422,
                    "invalid_request",
                    "Invalid request",
                    detail,
                ));
            }
            let value = percent_decode(value).ok_or_else(|| bad_query(name))?;
            pairs.push((name.to_owned(), value.into_owned()));
        }
        Ok(Self(pairs))
    }

    /// The value of `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// How many rows a page has.
    pub fn limit(&self) -> Result<usize, Problem> {
        match self.get("limit") {
            None => Ok(LIST_DEFAULT),
            Some(limit) => match limit.parse() {
                Ok(limit @ 1..=LIST_MAX) => Ok(limit),
                _ => Err(bad_query("limit")),
            },
        }
    }
}

/// Reads the query of a list of dead letters.
pub fn dead_query(request: &Request) -> Result<(DeadFilter, Option<Cursor>, usize), Problem> {
    let known = [&DeadFilter::PARAMETERS[..], &["limit", "cursor"]].concat();
    let query = Query::parse(request, &known)?;
    Ok((
        DeadFilter::from_query(&query)?,
        Cursor::from_query(&query)?,
        query.limit()?,
    ))
}

pub(super) fn accepted(status: u16, accepted: &Accepted, replayed: bool) -> Answer {
    let answer = problem::json(status, accepted);
    let place = format!("/v1/messages/{}", accepted.id);
    let answer = problem::with_header(answer, "location", &place);
    if replayed {
        problem::with_header(answer, "idempotency-replayed", "true")
    } else {
        answer
    }
}

pub(super) fn idempotency_key(request: &Request) -> Result<Option<String>, Problem> {
    let bad = || {
        let detail =
            "Idempotency-Key: must have 1 to 255 printable ASCII characters, and come once";
        Problem::new(422, "invalid_request", "Invalid request", detail)
    };
    let mut values = request.head.headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(bad());
    }
    let text = value.to_str().map_err(|_| bad())?;
    // Quoted or bare.
    let text = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
        .unwrap_or(text);
    if (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&text.len()) {
        Ok(Some(text.to_owned()))
    } else {
        Err(bad())
    }
}

fn no_such_message() -> Problem {
    let detail = "no message has this id";
    Problem::new(404, "message_not_found", "No such message", detail)
}

/// A parameter whose value is none.
pub(crate) fn bad_query(name: &str) -> Problem {
    let name = crate::secret::printable(name, 64);
    Problem::new(
        422,
        "invalid_request",
        "Invalid request",
        format!("query: {name} has no valid value"),
    )
}

/// The store could not be read.
pub(crate) fn unreadable(error: &ReadError) -> Problem {
    tracing::error!(%error, "the journal cannot be read");
    Problem::unavailable("store_failed", "the journal cannot be read", 5)
}
