//! A DingTalk in a box: both hosts on one address, strict about requests, open about what it saw.
//!
//! It answers as the protocol pages say, counts limits by the time of arrival, and can be switched
//! into every kind of trouble. Requests are worked off one at a time under one lock: what a test
//! reads afterwards is then one history, and not one of several.

mod ask;
mod callback;
mod cards;
mod chat;
mod directory;
mod events;
mod gate;
mod gateway;
mod limits;
mod messages;
mod push;
mod records;
mod robot;
mod settings;
mod sign;
mod switches;
mod templates;
mod tokens;
mod world;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::Request as HttpRequest;
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;

pub use self::callback::Callback;
pub use self::cards::{
    Card, CardCallback, CardRoute, CardSettings, CardState, Carriers, Cause, Click, Clicked, Data,
    Repeated, Space,
};
pub use self::chat::{Part, Said, Speech, Words};
pub use self::events::Casing;
pub use self::gateway::{Ack, Connection, Gateway, Outcome, Sent, Settled, StreamSettings, Why};
pub use self::push::PushResult;
pub use self::records::{Delivered, Penalty, Request, Via, Way};
pub use self::settings::{App, Group, Robot, Settings, User};
pub use self::sign::Signed;
pub use self::switches::{Switches, Wrong};

use self::ask::Ask;
use self::callback::Seal;
use self::world::World;
use super::clock;
use super::server::{self, Answer, Server, Service, Switch};

/// A handle to a running box; clones share it, and it ends with the last of them.
#[derive(Debug, Clone)]
pub struct DingTalk {
    running: Arc<Running>,
}

#[derive(Debug)]
struct Running {
    stage: Arc<Stage>,
    server: Server,
    /// What the box does of its own accord; it ends with the box.
    couriers: Mutex<JoinSet<()>>,
}

impl Running {
    fn spawn(&self, courier: impl Future<Output = ()> + Send + 'static) {
        let mut couriers = self.couriers.lock().unwrap_or_else(PoisonError::into_inner);
        while couriers.try_join_next().is_some() {}
        couriers.spawn(courier);
    }
}

/// What the server's tasks see. It does not hold the server, so that the two cannot keep each
/// other alive.
#[derive(Debug)]
struct Stage {
    world: Mutex<World>,
    seal: Seal,
    started: Instant,
    /// A Stream connection has come up.
    arrived: Notify,
}

impl DingTalk {
    /// Starts to answer on the listener, for both hosts. Needs a tokio runtime.
    pub fn start(settings: Settings, listener: TcpListener) -> Self {
        let url = server::url(&listener);
        let stage = Arc::new(Stage {
            seal: Seal::of(&settings.app),
            world: Mutex::new(World::new(settings, url)),
            started: clock::now(),
            arrived: Notify::new(),
        });
        let server = Server::start(listener, Arc::clone(&stage));
        Self {
            running: Arc::new(Running {
                stage,
                server,
                couriers: Mutex::new(JoinSet::new()),
            }),
        }
    }

    /// The base URL of both hosts, without a slash at the end.
    pub fn url(&self) -> String {
        self.running.server.url()
    }

    /// Closes the listener and every connection; what was recorded can still be read.
    pub async fn stop(&self) {
        self.running.server.stop().await;
        let couriers = self.running.couriers.lock();
        couriers.unwrap_or_else(PoisonError::into_inner).abort_all();
    }

    /// The messages that reached a chat or a person, in order.
    pub fn delivered(&self) -> Vec<Delivered> {
        self.world().delivered.clone()
    }

    /// Every request that was read, in order of arrival.
    pub fn requests(&self) -> Vec<Request> {
        self.world().requests.clone()
    }

    /// Every limit that was passed.
    pub fn penalties(&self) -> Vec<Penalty> {
        self.world().penalties.clone()
    }

    /// What a careful client would not have sent, though DingTalk would let it pass: unknown
    /// members, mentions without effect, a msgUuid used for two messages.
    pub fn complaints(&self) -> Vec<String> {
        self.world().complaints.clone()
    }

    /// How often a token was asked for, on any of the three calls.
    pub fn token_fetches(&self) -> usize {
        self.world().tokens.fetches()
    }

    /// All tokens die now.
    pub fn expire_tokens(&self) {
        self.world().tokens.expire();
    }

    /// Replaces all switches.
    pub fn set(&self, switches: Switches) {
        self.world().switches = switches;
    }

    /// The switches as they stand; scripted answers that were given are gone from them.
    pub fn switches(&self) -> Switches {
        self.world().switches.clone()
    }

    /// The groups as they stand.
    pub fn groups(&self) -> Vec<Group> {
        self.world().settings.groups.clone()
    }

    /// Milliseconds since the start: the scale of all records.
    pub fn elapsed_ms(&self) -> u64 {
        self.running.stage.elapsed_ms()
    }

    /// Somebody installs the cool app in a group, which may be new; returns the event's text.
    pub fn install_cool_app(&self, chat: &str, operator: &str, casing: Casing) -> String {
        events::install(&mut self.world(), chat, operator, casing)
    }

    /// Somebody removes the cool app from a group; returns the event's text.
    pub fn uninstall_cool_app(&self, chat: &str, operator: &str, casing: Casing) -> String {
        events::uninstall(&mut self.world(), chat, operator, casing)
    }

    /// Somebody renames a group; returns the event's text.
    pub fn rename(&self, chat: &str, title: &str, operator: &str, casing: Casing) -> String {
        events::rename(&mut self.world(), chat, title, operator, casing)
    }

    /// Somebody dissolves a group; returns the event's text.
    pub fn disband(&self, chat: &str, operator: &str, casing: Casing) -> String {
        events::disband(&mut self.world(), chat, operator, casing)
    }

    /// A person leaves the organisation; returns the event's text.
    pub fn user_leaves(&self, userid: &str, casing: Casing) -> String {
        events::user_leaves(&mut self.world(), userid, casing)
    }

    /// Encrypts and signs an event's text.
    pub fn sealed(&self, plaintext: &str, timestamp_ms: u64) -> Callback {
        self.running.stage.seal.seal(plaintext, timestamp_ms)
    }

    /// Verifies and decrypts a reply to an event; the error says what is wrong with it.
    pub fn open_reply(&self, body: &str) -> Result<String, String> {
        self.running.stage.seal.open_reply(body)
    }

    /// Pushes an event once, over plain HTTP, and judges the reply as DingTalk does.
    pub async fn push(&self, callback_url: &str, event_json: &str) -> PushResult {
        self.push_sealed(callback_url, &self.sealed(event_json, clock::wall_ms()))
            .await
    }

    /// Pushes what was sealed before: the same bytes again, or spoilt ones.
    pub async fn push_sealed(&self, callback_url: &str, callback: &Callback) -> PushResult {
        push::event(&self.running.stage.seal, callback_url, callback).await
    }

    /// What the console does when the event URL is saved.
    pub async fn check_url(&self, callback_url: &str) -> PushResult {
        self.push(callback_url, r#"{"EventType":"check_url"}"#)
            .await
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.running.stage.world()
    }
}

impl Stage {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn elapsed_ms(&self) -> u64 {
        clock::millis(clock::now().duration_since(self.started))
    }

    /// A request as far as its head says.
    fn ask(&self, request: &HttpRequest<Incoming>) -> Ask {
        Ask {
            at: clock::now(),
            at_ms: self.elapsed_ms(),
            method: request.method().as_str().to_owned(),
            path: request.uri().path().to_owned(),
            query: request.uri().query().unwrap_or_default().to_owned(),
            content_type: server::header(request, "content-type"),
            accept: server::header(request, "accept"),
            token: server::header(request, "x-acs-dingtalk-access-token"),
            body: bytes::Bytes::new(),
        }
    }

    /// The one place where time is read for a request: under the lock, so that records, windows
    /// and order agree.
    fn work(&self, mut ask: Ask) -> Option<Answer> {
        let mut world = self.world();
        ask.at = clock::now();
        ask.at_ms = clock::millis(ask.at.duration_since(self.started));
        gate::handle(&mut world, &ask)
    }
}

impl Service for Stage {
    fn admits(&self) -> bool {
        !self.world().switches.refuse
    }

    async fn switch(self: Arc<Self>, request: &mut HttpRequest<Incoming>) -> Switch {
        gateway::switch(self, request).await
    }

    async fn serve(self: Arc<Self>, request: HttpRequest<Incoming>) -> Option<Answer> {
        let path = request.uri().path().to_owned();
        let slow_ms = {
            let world = self.world();
            let concerned = world.switches.concern(&path);
            if world.switches.refuse || (concerned && world.switches.cut_before) {
                return None;
            }
            if concerned { world.switches.slow_ms } else { 0 }
        };
        let mut ask = self.ask(&request);
        ask.body = server::body(request.into_body()).await?;
        let answer = self.work(ask);
        // After the work, because the nasty case is a message that arrives without its answer.
        tokio::time::sleep(Duration::from_millis(slow_ms)).await;
        answer
    }
}
