//! The operator's door: a unix socket that only root and the daemon's own user can use. It has the
//! routes of the API without a token, with contents shown, and the dead letters of both directions.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use hyper::Method;
use serde_json::{Value, json};

use super::dead::Dead;
use crate::delivery::state::Priority;
use crate::egress::Egress;
use crate::health::Health;
use crate::http::audit::{Who, audited, note};
use crate::http::listen::Request;
use crate::http::problem::{self, Answer, Problem};
use crate::inbound::accept::Inbox;
use crate::journal::Journal;
use crate::journal::queue::Queue;
use crate::journal::room::Room;
use crate::metrics;
use crate::outbound::cards::register::Registrar;
use crate::outbound::dead::filter::Filter;
use crate::outbound::receive::{Api, Query, bad_query, dead_query};
use crate::outbound::{Client, Live};
use crate::secret::Secret;

/// The handler of the admin socket.
#[derive(Debug, Clone)]
pub struct Socket {
    /// The API's routes.
    pub api: Api,
    /// Dead letters.
    pub dead: Arc<Dead>,
    /// Callbacks of cards.
    pub registrar: Registrar,
    /// Where the doors are.
    pub doors: Arc<BTreeMap<&'static str, SocketAddr>>,
    /// How the daemon is.
    pub health: Health,
    /// What is under way.
    pub books: Arc<Books>,
    /// Where backups are made.
    pub state_dir: Arc<Path>,
    /// One backup at a time; how many were made.
    pub backups: Arc<tokio::sync::Mutex<u64>>,
}

/// A backup in the state directory is called this and a number.
pub const BACKUP_PREFIX: &str = "journal.backup-";

/// Removes the copies in `dir` that nobody fetched.
pub fn remove_old_backups(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix(BACKUP_PREFIX));
        let is_copy = number.is_some_and(|number| number.parse::<u64>().is_ok());
        if is_copy && let Err(error) = std::fs::remove_file(entry.path()) {
            tracing::warn!(%error, ?name, "an old backup cannot be removed");
        }
    }
}

/// Where gauges come from.
#[derive(Debug)]
pub struct Books {
    /// The store.
    pub journal: Journal,
    /// Its disk.
    pub room: Room,
    /// Events.
    pub inbox: Arc<Inbox>,
    /// Messages.
    pub outbox: Arc<Queue<Live>>,
    /// The month.
    pub egress: Arc<Egress>,
}

impl Books {
    /// Brings the gauges up to date; returns by how much the books do not balance, `None` if they cannot be
    /// read: then nobody is told that they do.
    pub async fn measure(&self) -> Option<u64> {
        self.room.measure();
        // Whoever reads waits for the tables; while they wait for the disk nothing can be said.
        let mismatch = if self.journal.is_stuck() {
            None
        } else {
            self.mismatch().await
        };
        let (size, free) = (self.journal.size_bytes(), self.room.free_bytes());
        metrics::store(size, free, self.room.has_room(), mismatch);
        metrics::dedup_entries(self.inbox.dedup.len());
        report(&self.inbox.queue);
        report(&self.outbox);
        self.egress.review();
        mismatch
    }

    async fn mismatch(&self) -> Option<u64> {
        let (inbox, outbox) = (self.inbox.queue.clone(), self.outbox.clone());
        let read = self
            .journal
            .read(move |view| Ok((inbox.books(view)?, outbox.books(view)?)));
        match read.await {
            Ok((inbox, outbox)) => Some(inbox.mismatch() + outbox.mismatch()),
            Err(error) => {
                tracing::error!(%error, "the books cannot be read");
                metrics::store_unreadable();
                None
            }
        }
    }
}

fn report<S: serde::Serialize + serde::de::DeserializeOwned>(queue: &Queue<S>) {
    let direction = queue.place().direction;
    let (messages, stirring) = (queue.messages_by_priority(), queue.stirring_by_priority());
    metrics::queue(direction, messages, stirring, queue.bytes());
    metrics::dead_letters(direction, queue.dead().len(), queue.dead().bytes());
    for (priority, wall_ms) in Priority::ALL.into_iter().zip(queue.oldest_by_priority()) {
        metrics::queue_oldest(direction, priority, wall_ms);
    }
}

impl Socket {
    /// Answers one request.
    pub async fn handle(self, request: Request) -> Answer {
        let path = request.head.uri.path().to_owned();
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let result = match (&request.head.method, segments.as_slice()) {
            (&Method::GET, ["v1", "status"]) => Ok(self.status().await),
            (&Method::GET, ["v1", "dead"]) => self.list_dead(&request).await,
            (&Method::GET, ["v1", "dead", id]) => self.dead.show(id).await,
            (&Method::DELETE, ["v1", "dead", id]) => self.purge(id).await,
            (&Method::POST, ["v1", "dead", "replay"]) => self.bulk(&request, "replay").await,
            (&Method::POST, ["v1", "dead", "purge"]) => self.bulk(&request, "purge").await,
            (&Method::POST, ["v1", "dead", id, "replay"]) => self.replay(id).await,
            (&Method::POST, ["v1", "cards", "register"]) => self.register(&request).await,
            (&Method::POST, ["v1", "backup"]) => {
                let socket = self.clone();
                let work = async move { socket.back_up().await };
                audited(&Who::Operator, "backup", "", ToString::to_string, work).await
            }
            (_, ["v1", "dead" | "status" | "backup", ..]) => Err(Problem::method_not_allowed(
                "GET, DELETE, POST …/replay or POST …/purge",
            )),
            _ => {
                let operator = Client {
                    name: "operator".to_owned(),
                    token: Secret::new(""),
                    max_priority: Priority::Critical,
                    rate: None,
                };
                let (what, answer) = self.api.route(&request, &operator, true).await;
                // What changes or ends a message is noted where it is done.
                let is_new = matches!(what, "messages" | "cards" | "card" | "replies");
                if is_new && request.head.method != Method::GET {
                    let status = answer.status();
                    note(&Who::Operator, what, &path, status.as_str());
                }
                return answer;
            }
        };
        match result {
            Ok(value) => problem::json(200, &value),
            Err(problem) => problem.answer(),
        }
    }

    async fn list_dead(&self, request: &Request) -> Result<Value, Problem> {
        let (filter, cursor, limit) = dead_query(request)?;
        self.dead.list(filter, cursor, limit).await
    }

    async fn replay(&self, id: &str) -> Result<Value, Problem> {
        let (dead, wanted) = (self.dead.clone(), id.to_owned());
        let work = async move { dead.replay(&wanted).await };
        audited(&Who::Operator, "replay", id, ToString::to_string, work).await
    }

    async fn purge(&self, id: &str) -> Result<Value, Problem> {
        let (dead, wanted) = (self.dead.clone(), id.to_owned());
        let work = async move { dead.purge(&wanted).await };
        audited(&Who::Operator, "purge", id, ToString::to_string, work).await
    }

    async fn register(&self, request: &Request) -> Result<Value, Problem> {
        let query = Query::parse(request, &["app", "force"])?;
        let force = match query.get("force") {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return Err(bad_query("force")),
        };
        let (registrar, app) = (self.registrar.clone(), query.get("app").map(str::to_owned));
        let work = async move { registrar.register(app.as_deref(), force).await };
        let about = request.head.uri.query().unwrap_or_default();
        let show = ToString::to_string;
        audited(&Who::Operator, "register", about, show, work).await
    }

    async fn bulk(&self, request: &Request, what: &'static str) -> Result<Value, Problem> {
        let known = [&Filter::PARAMETERS[..], &["all"]].concat();
        let filter = Filter::of_bulk(&Query::parse(request, &known)?)?;
        let dead = self.dead.clone();
        let work = async move {
            match what {
                "purge" => dead.purge_all(filter).await,
                _ => dead.replay_all(filter).await,
            }
        };
        let about = request.head.uri.query().unwrap_or_default();
        audited(&Who::Operator, what, about, ToString::to_string, work).await
    }

    /// Makes a backup in the state directory, from where the command that asked fetches it.
    async fn back_up(&self) -> Result<Value, Problem> {
        let refused = |detail: String| {
            Problem::new(500, "backup_failed", "No backup was made", detail).fix(
                "检查 state_dir 所在磁盘的空间，再试一次。",
                "Check that the disk of state_dir has room for a copy, then try again.",
            )
        };
        let mut backups = self.backups.lock().await;
        // One that nobody fetched; whoever is fetching has it open.
        remove_old_backups(&self.state_dir);
        // A backup must not be what makes the disk too full for new work.
        let bytes = self.books.journal.size_bytes();
        if !self.books.room.has_room_for(bytes) {
            let free = self.books.room.free_bytes();
            let text = format!("the copy may take {bytes} bytes, {free} are free");
            return Err(refused(text));
        }
        *backups += 1;
        let file = self.state_dir.join(format!("{BACKUP_PREFIX}{backups}"));
        let journal = self.books.journal.clone();
        let made = tokio::task::spawn_blocking(move || {
            let report = journal.backup(&file).map_err(|error| error.to_string())?;
            let mut report = json!(report);
            if let Some(members) = report.as_object_mut() {
                members.insert("file".to_owned(), json!(file));
            }
            Ok(report)
        });
        let made = made.await.unwrap_or_else(|panic| Err(panic.to_string()));
        made.map_err(refused)
    }

    async fn status(&self) -> Value {
        let snapshot = self.health.snapshot();
        let mismatch = self.books.measure().await;
        json!({"version": env!("CARGO_PKG_VERSION"), "pid": std::process::id(),
            "doors": *self.doors, "ready": snapshot.is_ready(), "pending": snapshot.pending,
            "unready": snapshot.unready, "degraded": snapshot.degraded,
            "conservation_mismatch": mismatch,
            "queued": {"inbound": self.books.inbox.queue.messages(),
                "outbound": self.books.outbox.messages()},
            "dead": {"inbound": self.books.inbox.queue.dead().len(),
                "outbound": self.books.outbox.dead().len()}})
    }
}
