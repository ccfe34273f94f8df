//! What the gateway remembers of connections, frames and acknowledgements.

use std::time::Duration;

/// A connection, from its opening to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// The connectionId in the headers of its frames.
    pub id: String,
    /// When it came up, in milliseconds since the box started.
    pub opened_ms: u64,
    /// When it stopped being used: told to go, silent, cut or closed.
    pub left_ms: Option<u64>,
    /// When TCP ended.
    pub closed_ms: Option<u64>,
    /// Why it stopped being used.
    pub why: Option<Why>,
    /// How many frames were sent over it, without system frames.
    pub frames: u64,
}

/// Why a connection stopped being used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// The box cut it.
    Cut,
    /// The box sent `disconnect` with this reason.
    Disconnect(String),
    /// The box fell silent on it.
    Silent,
    /// A ping was not answered in time.
    PingUnanswered,
    /// The app closed it.
    ByApp,
    /// It broke.
    Broken(String),
    /// The box was stopped.
    Stopped,
}

/// A frame that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// Milliseconds since the box started.
    pub at_ms: u64,
    /// The connection it was sent over.
    pub connection: String,
    /// The same each time that it is sent.
    pub message_id: String,
    /// The frame's topic.
    pub topic: String,
}

/// An acknowledgement that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// Milliseconds since the box started.
    pub at_ms: u64,
    /// The connection it came over.
    pub connection: String,
    /// The frame that it is for.
    pub message_id: String,
    /// The topic of that frame.
    pub topic: String,
    /// Its code.
    pub code: u16,
    /// Its data: a string holding JSON.
    pub data: String,
    /// Since that frame was last sent.
    pub elapsed: Duration,
    /// Whether the frame needs not come again.
    pub done: bool,
}

/// What became of something that was sent over Stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The messageId of its frames.
    pub message_id: String,
    /// The eventId, for an event.
    pub event_id: Option<String>,
    /// How it ended.
    pub settled: Settled,
    /// How often it was sent.
    pub tries: u32,
    /// From the first sending, or the wish to, to the end.
    pub elapsed: Duration,
    /// The last acknowledgement.
    pub ack: Option<Ack>,
}

/// How something that was sent over Stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// Acknowledged.
    Done,
    /// Never acknowledged for as long as it is kept.
    GivenUp,
    /// Not sent, because no connection was there to take it.
    NoConnection,
}
