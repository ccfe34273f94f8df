//! Messages as the API would have stored them, put into a store without the API.

use std::io;
use std::path::Path;

use dingd::delivery::id::{MessageId, short_digest};
use dingd::delivery::record;
use dingd::delivery::state::{Ambiguous, Call, Priority, Progress, State};
use dingd::dingtalk::digest::Fold;
use dingd::dingtalk::message::{At, Content, Text};
use dingd::journal::queue::{OUTBOX, Queue};
use dingd::journal::{Batch, Journal};
use dingd::outbound::{Live, Message, Route, To};

/// Bytes of a message's text.
pub(crate) const TEXT_BYTES: usize = 1_024;
/// The robots that messages are spread over.
pub(crate) const ROBOTS: u64 = 100;
const BATCH: u64 = 256;
const LIFETIME_MS: u64 = 24 * 3_600_000;

/// The name of a robot.
pub(crate) fn robot(n: u64) -> String {
    format!("robot-{:03}", n % ROBOTS)
}

/// A text of the size of all texts.
pub(crate) fn text() -> String {
    "0123456789abcdef"
        .chars()
        .cycle()
        .take(TEXT_BYTES)
        .collect()
}

/// The payload record and the state of message `seq`.
pub(crate) fn message(seq: u64, lanes: u64, wall_ms: u64) -> (Vec<u8>, Live) {
    let robot = robot(seq);
    let message = Message {
        id: MessageId::new(wall_ms, 7, seq),
        app: String::new(),
        to: To::Robot(robot.clone()),
        content: Content::Text(Text { content: text() }),
        at: At::default(),
        robot_code: String::new(),
        cool_app_code: None,
        merge_key: None,
        resolved: false,
        parts: vec![],
        members: vec![],
        session: None,
        client: "bench".to_owned(),
    };
    let payload = record::encode(&message);
    let live = Live {
        id: message.id,
        app: String::new(),
        lane: short_digest(&[&(seq % lanes).to_be_bytes()]),
        target: robot,
        priority: Priority::Critical,
        accepted_ms: wall_ms,
        expires_ms: wall_ms + LIFETIME_MS,
        bytes: payload.len() as u64,
        ambiguous: Ambiguous::default(),
        route: Route::Webhook,
        fold: Fold::Text,
        digest: None,
        unkeyed: false,
        session_over: false,
        progress: Progress::new(vec![Call::to(vec![])]),
    };
    (payload, live)
}

/// The state of a message that was sent.
pub(crate) fn sent(mut live: Live) -> Live {
    live.progress.end(State::Sent, None, live.accepted_ms);
    live
}

/// A store with an empty outbox.
pub(crate) fn open(state_dir: &Path) -> io::Result<(Journal, Queue<Live>)> {
    let journal = Journal::open(state_dir).map_err(io::Error::other)?;
    let opened = journal.read_blocking(|view| Queue::open(OUTBOX, view));
    let (queue, _entries) = opened.map_err(io::Error::other)?;
    Ok((journal, queue))
}

/// Writes a batch and waits for it.
pub(crate) fn commit(journal: &Journal, batch: Batch) -> io::Result<()> {
    let (tell, told) = std::sync::mpsc::channel();
    journal.submit(batch, move |result| {
        tell.send(result).expect("the one who waits is there");
    });
    told.recv()
        .map_err(io::Error::other)?
        .map_err(io::Error::other)
}

/// Milliseconds since 1970.
pub(crate) fn wall_ms() -> u64 {
    dingd::clock::Clock::system().wall_ms()
}

/// Fills the store in `state_dir` with messages that wait; returns the bytes of their records.
pub(crate) fn fill(state_dir: &Path, messages: u64, lanes: u64) -> io::Result<u64> {
    let (journal, queue) = open(state_dir)?;
    let mut bytes = 0;
    let mut left = messages;
    while left > 0 {
        let mut batch = Batch::default();
        let now_ms = wall_ms();
        for _ in 0..left.min(BATCH) {
            let seq = queue.reserve();
            let (payload, live) = message(seq, lanes, now_ms);
            bytes += (payload.len() + record::encode(&live).len()) as u64;
            queue.append(&mut batch, seq, &payload, &live);
        }
        left -= left.min(BATCH);
        commit(&journal, batch)?;
    }
    journal.close();
    Ok(bytes)
}
