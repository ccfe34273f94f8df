//! The Stream gateway: connections that the app opens, and frames that go over one of them.
//!
//! Several connections share the load; each frame goes over one, chosen at random, and comes again
//! with the same ids when nobody acknowledges it.

mod ack;
mod courier;
mod frame;
mod handle;
mod link;
mod open;
mod records;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::world::World;
use crate::sim::clock;

pub use self::handle::Gateway;
pub(super) use self::open::{open, switch};
pub use self::records::{Ack, Connection, Outcome, Sent, Settled, Why};

use self::open::Ticket;

/// What is fixed about Stream mode when the box starts. Times are milliseconds before the time
/// scale.
#[derive(Debug, Clone)]
pub struct StreamSettings {
    /// How long a ticket can be used.
    pub ticket_ms: u64,
    /// How often the gateway pings.
    pub ping_every_ms: u64,
    /// How long it waits for the answer before it closes.
    pub ping_wait_ms: u64,
    /// How long TCP lives on after `disconnect`.
    pub leave_ms: u64,
    /// The age at which a connection gets `disconnect`; never when absent.
    pub life_ms: Option<u64>,
    /// After how long an event comes again. Not documented.
    pub event_again_ms: u64,
    /// For how long it does. Not documented.
    pub event_keep_ms: u64,
    /// After how long a robot message comes again.
    pub robot_again_ms: u64,
    /// For how long it does.
    pub robot_keep_ms: u64,
    /// Whether a robot message waits for a connection when there is none; it is lost otherwise.
    pub robot_waits: bool,
    /// Every so many acknowledged events, one comes once more all the same; 0 is never.
    pub double_every: u64,
    /// Whether acknowledgements still count on a connection that was told to go.
    pub acks_while_leaving: bool,
    /// Whether the header `time` is a number, as one table says, or text, as every capture shows.
    pub time_is_number: bool,
}

impl Default for StreamSettings {
    fn default() -> Self {
        Self {
            ticket_ms: 90_000,
            ping_every_ms: 25_000,
            ping_wait_ms: 10_000,
            leave_ms: 10_000,
            life_ms: None,
            event_again_ms: 10_000,
            event_keep_ms: 86_400_000,
            robot_again_ms: 60_000,
            robot_keep_ms: 600_000,
            robot_waits: false,
            double_every: 0,
            acks_while_leaving: true,
            time_is_number: false,
        }
    }
}

/// The two types of frames that carry something for the app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Event,
    Callback,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Event => "EVENT",
            Self::Callback => "CALLBACK",
        }
    }
}

/// What goes into a frame whenever it is sent.
#[derive(Debug, Clone)]
struct Letter {
    kind: Kind,
    topic: String,
    message_id: String,
    /// Headers that only events have.
    headers: Map<String, Value>,
    data: String,
}

/// A letter on its way. Two couriers may carry the same one: a click that is reported twice.
#[derive(Debug)]
struct Waiting {
    kind: Kind,
    sent: Instant,
    verdicts: Vec<UnboundedSender<Ack>>,
    listeners: Vec<oneshot::Sender<Outcome>>,
}

/// One connection, from the gateway's side.
#[derive(Debug)]
struct Link {
    /// Among all that there ever were, from 0.
    number: usize,
    subscriptions: Vec<(String, String)>,
    frames: UnboundedSender<Order>,
    /// Places for letters that are not written yet. Without a bound, an app that is slower than letters
    /// come again would never be told the end of them.
    room: Arc<Semaphore>,
    control: UnboundedSender<Control>,
    /// Whether frames are still sent over it. That holds for a while after it fell silent.
    chosen: bool,
    /// The ping that is not answered yet, and its data.
    ping: Option<(String, Value)>,
    /// The goodbye that was sent. It needs no acknowledgement; some clients send one.
    goodbye: Option<String>,
    record: Connection,
}

/// What a connection writes, in order.
#[derive(Debug)]
enum Order {
    Letter(String, OwnedSemaphorePermit),
    Text(String),
    Binary(Vec<u8>),
    Disconnect(String),
}

/// What happens to a connection at once, whatever is still to be written.
#[derive(Debug, Clone, Copy)]
enum Control {
    Cut,
    Silence,
}

/// Everything that the gateway knows.
#[derive(Debug, Default)]
pub(super) struct Switchboard {
    tickets: HashMap<String, Ticket>,
    /// Those that are there, in the order of their opening.
    links: Vec<Link>,
    /// Those that were, by their numbers.
    ended: BTreeMap<usize, Connection>,
    waiting: HashMap<String, Waiting>,
    outcomes: Vec<Outcome>,
    /// Where the outcome of a message stands.
    settled: HashMap<String, usize>,
    acks: Vec<Ack>,
    sent: Vec<Sent>,
    /// The topic of each message that there ever was: an acknowledgement may come long after its message is
    /// settled.
    topics: HashMap<String, String>,
    refusal: Option<u16>,
    delay: Duration,
    doubled: u64,
}

impl Switchboard {
    /// Connections that are up and not told to go.
    fn live(&self) -> impl Iterator<Item = &Link> {
        self.links
            .iter()
            .filter(|link| link.record.left_ms.is_none())
    }

    /// One of the connections that frames of this topic may go over, chosen at random.
    fn choose(&self, kind: Kind, topic: &str) -> Option<&Link> {
        let takes = |link: &Link| {
            let mut wanted = link.subscriptions.iter();
            link.chosen && wanted.any(|(its, name)| its == kind.name() && name == topic)
        };
        let fit: Vec<&Link> = self.links.iter().filter(|link| takes(link)).collect();
        let chance = u64::from_le_bytes(clock::random::<8>());
        let count = u64::try_from(fit.len()).unwrap_or(u64::MAX).max(1);
        let at = usize::try_from(chance % count).unwrap_or_default();
        fit.get(at).copied()
    }

    fn get(&mut self, id: &str) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.record.id == id)
    }

    /// The connection is no longer used, for this reason; the first one stands.
    fn leave(&mut self, id: &str, at_ms: u64, why: &Why) {
        if let Some(link) = self.get(id)
            && link.record.left_ms.is_none()
        {
            link.chosen = link.chosen && *why == Why::Silent;
            link.record.left_ms = Some(at_ms);
            link.record.why = Some(why.clone());
        }
    }
}

/// Sends a letter over this connection, on which it has a place; false when the connection has ended or was
/// told to go while the letter waited for that.
fn post(
    world: &mut World,
    letter: &Letter,
    connection: &str,
    place: OwnedSemaphorePermit,
    at_ms: u64,
) -> bool {
    let as_number = world.settings.stream.time_is_number;
    let app = world.settings.app.client_id.clone();
    let Some(link) = world.links.get(connection).filter(|link| link.chosen) else {
        return false;
    };
    let text = frame::letter(letter, &app, connection, as_number);
    link.record.frames += 1;
    // A connection that ends at this moment loses the frame, as a real one does.
    drop(link.frames.send(Order::Letter(text, place)));
    if let Some(waiting) = world.links.waiting.get_mut(&letter.message_id) {
        waiting.sent = clock::now();
    }
    world.links.sent.push(Sent {
        at_ms,
        connection: connection.to_owned(),
        message_id: letter.message_id.clone(),
        topic: letter.topic.clone(),
    });
    true
}
