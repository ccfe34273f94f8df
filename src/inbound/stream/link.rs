//! One connection: its frames are worked off side by side and answered in whatever order they are done.
//!
//! They are begun in the order in which they came, and the inbox numbers them as they are begun, so events
//! of one conversation keep their order. Only so many are under way at a time; then nothing more is read,
//! and the gateway has to wait.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, SplitSink, SplitStream};
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

use super::desk::{Desk, Done};
use super::open::Socket;
use super::pulse::{Due, Pulse};
use super::{Plan, Reason};
use crate::clock::Clock;
use crate::delivery::random;
use crate::dingtalk::frame::{Frame, Kind, Reply};
use crate::drain::Drain;
use crate::inbound::take::Patience;
use crate::metrics;

/// Frames under way on one connection (SDK-go takes as many, inbound.md §5.5).
const UNDER_WAY_MAX: usize = 100;
/// With this many under way a click does not wait for the platform any more: it is answered as pending, so that
/// frames are read as fast as they are stored. Not reading pings for ten seconds costs the connection.
const PATIENT_MAX: usize = 80;
/// What is under way when the connection is to end has this long.
const FINISH: Duration = Duration::from_secs(5);
/// Whoever does not read our answers for this long is gone.
const WRITE: Duration = Duration::from_secs(5);
/// For the last words.
const CLOSE: Duration = Duration::from_secs(1);

/// One connection.
#[derive(Debug)]
pub(super) struct Link {
    /// Among those of its keeper.
    pub(super) id: u64,
    pub(super) plan: Arc<Plan>,
    pub(super) desk: Arc<Desk>,
    pub(super) clock: Clock,
    /// Where the wish for another connection goes.
    pub(super) wishes: mpsc::UnboundedSender<(u64, Reason)>,
}

/// The end of a connection.
#[derive(Debug)]
pub(super) struct Over {
    pub(super) id: u64,
    /// `None`: we ended it.
    pub(super) reason: Option<Reason>,
}

/// The writing half.
struct Pen(SplitSink<Socket, Message>);

impl Link {
    /// Reads and answers until the connection ends, until `replaced` is told and its grace is over, or
    /// until stopped.
    pub(super) async fn run(
        self,
        socket: Socket,
        replaced: oneshot::Receiver<()>,
        drain: Drain,
    ) -> Over {
        let id = self.id;
        let (pen, mut frames) = socket.split();
        let mut pen = Pen(pen);
        let reason = self.talk(&mut pen, &mut frames, replaced, drain).await;
        if reason != Err(Reason::NoAnswer) {
            pen.close(&mut frames).await;
        }
        let reason = reason.err();
        Over { id, reason }
    }

    async fn talk(
        &self,
        pen: &mut Pen,
        frames: &mut SplitStream<Socket>,
        mut replaced: oneshot::Receiver<()>,
        drain: Drain,
    ) -> Result<(), Reason> {
        let mut pulse = Pulse::new(self.plan.stream, self.clock.mono_ms(), random::share());
        let mut work = FuturesUnordered::new();
        let mut is_replaced = false;
        let stopping = drain.stopping();
        tokio::pin!(stopping);
        loop {
            let has_room = work.len() < UNDER_WAY_MAX;
            tokio::select! {
                biased;
                () = &mut stopping => break,
                told = &mut replaced, if !is_replaced => {
                    is_replaced = true;
                    // Without a keeper nobody would end it.
                    if told.is_err() {
                        break;
                    }
                    pulse.replaced(self.clock.mono_ms());
                }
                Some(done) = work.next(), if !work.is_empty() => {
                    if !has_room {
                        // What came meanwhile was not read: silence was ours.
                        pulse.heard(self.clock.mono_ms());
                    }
                    pen.answer(done).await?;
                    while let Some(Some(done)) = work.next().now_or_never() {
                        pen.answer(done).await?;
                    }
                    pen.flush().await?;
                }
                message = frames.next(), if has_room => {
                    let Some(text) = self.read(message, &mut pulse)? else {
                        continue;
                    };
                    match Frame::read(&text) {
                        Ok(frame) => match self.at_once(frame, &mut pulse) {
                            Ok(done) => {
                                pen.answer(done).await?;
                                pen.flush().await?;
                            }
                            Err((message_id, kind)) => {
                                let patience = if work.len() < PATIENT_MAX {
                                    Patience::Full
                                } else {
                                    Patience::Spent
                                };
                                let name = &self.plan.app.name;
                                work.push(self.desk.work(name, message_id, kind, patience));
                            }
                        },
                        Err(unreadable) => {
                            pen.answer(self.desk.unreadable(&self.plan.app.name, unreadable)).await?;
                            pen.flush().await?;
                        }
                    }
                }
                // After what came: it may be the sign of life that would be missed.
                () = self.clock.sleep_until(pulse.next_ms()) => {
                    match pulse.due(self.clock.mono_ms()) {
                        Due::Nothing => {}
                        Due::Ping => pen.ping().await?,
                        Due::Leave(reason) => self.leave(reason),
                        Due::Dead => return Err(Reason::NoAnswer),
                        Due::Over => break,
                    }
                }
            }
        }
        // Nothing more is read; what was begun is finished and answered.
        let finish = async {
            while let Some(done) = work.next().await {
                pen.answer(done).await?;
                pen.flush().await?;
            }
            Ok(())
        };
        tokio::time::timeout(FINISH, finish).await.unwrap_or(Ok(()))
    }

    /// The text of a message; `None` is nothing to work on.
    fn read(
        &self,
        message: Option<Result<Message, Error>>,
        pulse: &mut Pulse,
    ) -> Result<Option<Utf8Bytes>, Reason> {
        let now_ms = self.clock.mono_ms();
        match message {
            Some(Ok(Message::Text(text))) => {
                pulse.spoken(now_ms);
                Ok(Some(text))
            }
            Some(Ok(Message::Binary(_))) => {
                pulse.spoken(now_ms);
                metrics::stream_frame("unreadable", "ignored");
                Ok(None)
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {
                pulse.heard(now_ms);
                Ok(None)
            }
            Some(Ok(Message::Close(_))) | None => Err(Reason::Closed),
            Some(Err(error)) => {
                tracing::debug!(app = %self.plan.app.name, %error, "a Stream connection broke");
                let closed = matches!(error, Error::ConnectionClosed | Error::AlreadyClosed);
                Err(if closed {
                    Reason::Closed
                } else {
                    Reason::Broken
                })
            }
        }
    }

    /// What the gateway says for itself is done at once; the rest is work.
    fn at_once(&self, frame: Frame, pulse: &mut Pulse) -> Result<Done, (String, Kind)> {
        let Frame { message_id, kind } = frame;
        let (kind, result, reply) = match kind {
            Kind::Ping { data } => ("ping", "answered", Some(Reply::Pong(data))),
            Kind::Disconnect { reason } => {
                let app = &self.plan.app.name;
                let reason = crate::secret::printable(&reason, 128);
                tracing::debug!(
                    app,
                    reason,
                    message_id,
                    "the gateway ends a Stream connection"
                );
                if pulse.leave() {
                    self.leave(Reason::Disconnect);
                }
                ("disconnect", "answered", None)
            }
            Kind::System => ("system", "ignored", None),
            Kind::Unknown => ("unknown", "ignored", None),
            work @ (Kind::Event { .. } | Kind::Callback { .. }) => return Err((message_id, work)),
        };
        Ok(Done {
            message_id,
            reply,
            kind,
            result,
        })
    }

    fn leave(&self, reason: Reason) {
        if self.wishes.send((self.id, reason)).is_err() {
            tracing::debug!("nobody keeps this Stream connection any more");
        }
    }
}

impl Pen {
    /// Answers, if there is something to say; it is on its way only after [`Self::flush`].
    async fn answer(&mut self, done: Done) -> Result<(), Reason> {
        metrics::stream_frame(done.kind, done.result);
        let Some(reply) = done.reply else {
            return Ok(());
        };
        let text = reply.render(&done.message_id);
        within(WRITE, self.0.feed(Message::text(text))).await
    }

    async fn flush(&mut self) -> Result<(), Reason> {
        within(WRITE, self.0.flush()).await
    }

    async fn ping(&mut self) -> Result<(), Reason> {
        within(WRITE, self.0.send(Message::Ping(Bytes::new()))).await
    }

    /// Takes leave, as far as the other end still listens. What it has sent meanwhile is read, though not
    /// worked off: closing over unread bytes resets the connection, and our last answers could be lost.
    async fn close(&mut self, frames: &mut SplitStream<Socket>) {
        let farewell = async {
            self.0.close().await?;
            while let Some(message) = frames.next().await {
                message?;
            }
            Ok(())
        };
        if within(CLOSE, farewell).await.is_err() {
            tracing::debug!("a Stream connection ended without a farewell");
        }
    }
}

async fn within(
    time: Duration,
    write: impl Future<Output = Result<(), Error>>,
) -> Result<(), Reason> {
    match tokio::time::timeout(time, write).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(Error::ConnectionClosed | Error::AlreadyClosed)) => Err(Reason::Closed),
        Ok(Err(_)) | Err(_) => Err(Reason::Broken),
    }
}
