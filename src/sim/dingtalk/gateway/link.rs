//! One WebSocket: what is written, what is read, the pings, and the ways in which it ends.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::{Connection, Control, Link, Order, Switchboard, Why, ack, frame};
use crate::sim::dingtalk::Stage;

/// Letters that wait to be written.
const ROOM: usize = 256;
/// How long a closing handshake may take.
const CLOSE: Duration = Duration::from_secs(1);

type Socket = WebSocketStream<TcpStream>;

/// Serves a connection from its upgrade to its end.
pub(in crate::sim::dingtalk) async fn run(
    stage: Arc<Stage>,
    upgrade: OnUpgrade,
    subscriptions: Vec<(String, String)>,
) {
    let Some(socket) = socket(upgrade).await else {
        return;
    };
    let (frames, orders) = unbounded_channel();
    let (control, controls) = unbounded_channel();
    let id = frame::connection_id();
    {
        let opened_ms = stage.elapsed_ms();
        let mut world = stage.world();
        let links = &mut world.links;
        links.links.push(Link {
            number: links.ended.len() + links.links.len(),
            subscriptions,
            frames,
            room: Arc::new(Semaphore::new(ROOM)),
            control,
            chosen: true,
            ping: None,
            goodbye: None,
            record: Connection {
                id: id.clone(),
                opened_ms,
                left_ms: None,
                closed_ms: None,
                why: None,
                frames: 0,
            },
        });
    }
    stage.arrived.notify_waiters();
    let served = Served { stage, id };
    served.serve(socket, orders, controls).await;
}

async fn socket(upgrade: OnUpgrade) -> Option<Socket> {
    let parts = upgrade.await.ok()?.downcast::<TokioIo<TcpStream>>().ok()?;
    let read = parts.read_buf.to_vec();
    let stream = parts.io.into_inner();
    Some(WebSocketStream::from_partially_read(stream, read, Role::Server, None).await)
}

/// A connection that is on record; its end is noted even when the box stops under it.
struct Served {
    stage: Arc<Stage>,
    id: String,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.left(&Why::Stopped);
        let at_ms = self.stage.elapsed_ms();
        let mut world = self.stage.world();
        let Switchboard { links, ended, .. } = &mut world.links;
        if let Some(at) = links.iter().position(|link| link.record.id == self.id) {
            let mut link = links.remove(at);
            link.record.closed_ms = Some(at_ms);
            ended.insert(link.number, link.record);
        }
    }
}

/// How serving came to its end.
enum End {
    Cut,
    Silence,
    /// Closed by us, after a warning.
    Close(Why),
    /// The other side has gone.
    Gone(Why),
}

impl Served {
    async fn serve(
        self,
        socket: Socket,
        mut orders: UnboundedReceiver<Order>,
        mut controls: UnboundedReceiver<Control>,
    ) {
        let (mut sink, mut source) = socket.split();
        let end = tokio::select! {
            biased;
            end = told(&mut controls) => end,
            end = self.read(&mut source) => end,
            end = self.write(&mut sink, &mut orders) => end,
            end = self.ping() => end,
            end = self.age() => end,
        };
        let Ok(mut socket) = sink.reunite(source) else {
            return;
        };
        match end {
            End::Cut => {
                self.left(&Why::Cut);
                // A reset in place of an orderly end; without it the client just reads on longer.
                drop(socket.get_ref().set_zero_linger());
            }
            End::Silence => {
                self.left(&Why::Silent);
                self.hold(&mut controls).await;
                drop(socket.get_ref().set_zero_linger());
            }
            End::Close(why) => {
                self.left(&why);
                drop(tokio::time::timeout(CLOSE, socket.close(None)).await);
            }
            End::Gone(why) => self.left(&why),
        }
    }

    /// Keeps TCP up and does nothing with it. The gateway chooses such a connection until a ping
    /// would have shown that it is dead.
    async fn hold(&self, controls: &mut UnboundedReceiver<Control>) {
        let blind = {
            let world = self.stage.world();
            let stream = &world.settings.stream;
            world.scaled(stream.ping_every_ms + stream.ping_wait_ms)
        };
        let noticed = tokio::time::sleep(blind);
        tokio::pin!(noticed);
        let mut dead = false;
        loop {
            tokio::select! {
                control = controls.recv() => match control {
                    Some(Control::Silence) => {}
                    Some(Control::Cut) | None => return,
                },
                () = &mut noticed, if !dead => {
                    dead = true;
                    if let Some(link) = self.stage.world().links.get(&self.id) {
                        link.chosen = false;
                    }
                }
            }
        }
    }

    async fn read(&self, source: &mut SplitStream<Socket>) -> End {
        while let Some(message) = source.next().await {
            let at_ms = self.stage.elapsed_ms();
            match message {
                Ok(Message::Text(text)) => {
                    ack::receive(&mut self.stage.world(), at_ms, &self.id, text.as_str());
                }
                Ok(Message::Binary(_)) => {
                    let complaint = "frame from the app: binary".to_owned();
                    self.stage.world().complaints.push(complaint);
                }
                Ok(_) => {}
                Err(Error::ConnectionClosed) => break,
                Err(error) => return End::Gone(Why::Broken(error.to_string())),
            }
        }
        End::Gone(Why::ByApp)
    }

    async fn write(
        &self,
        sink: &mut SplitSink<Socket, Message>,
        orders: &mut UnboundedReceiver<Order>,
    ) -> End {
        // So far away that it never comes.
        let end = tokio::time::sleep(Duration::from_hours(24 * 365));
        tokio::pin!(end);
        let mut leaving = None;
        loop {
            let order = tokio::select! {
                order = orders.recv() => order,
                () = &mut end => None,
            };
            let delay = self.stage.world().links.delay;
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            let mut place = None;
            let message = match order {
                None => return End::Close(leaving.unwrap_or(Why::Stopped)),
                Some(Order::Letter(text, its)) => {
                    place = Some(its);
                    Message::text(text)
                }
                Some(Order::Text(text)) => Message::text(text),
                Some(Order::Binary(bytes)) => Message::binary(bytes),
                Some(Order::Disconnect(reason)) => {
                    let leave = {
                        let world = self.stage.world();
                        world.scaled(world.settings.stream.leave_ms)
                    };
                    end.set(tokio::time::sleep(leave));
                    let data = json!({"reason": reason});
                    leaving = Some(Why::Disconnect(reason));
                    let id = frame::message_id();
                    let text = frame::system("disconnect", &id, &data);
                    if let Some(link) = self.stage.world().links.get(&self.id) {
                        link.goodbye = Some(id);
                    }
                    Message::text(text)
                }
            };
            if let Err(error) = sink.send(message).await {
                return End::Gone(Why::Broken(error.to_string()));
            }
            drop(place);
        }
    }

    /// Pings, and ends when an answer does not come.
    async fn ping(&self) -> End {
        let (every, wait) = {
            let world = self.stage.world();
            let stream = &world.settings.stream;
            (
                world.scaled(stream.ping_every_ms),
                world.scaled(stream.ping_wait_ms),
            )
        };
        loop {
            tokio::time::sleep(every).await;
            let id = frame::message_id();
            let data = json!({"opaque": frame::message_id()});
            let text = frame::system("ping", &id, &data);
            if let Some(link) = self.stage.world().links.get(&self.id) {
                link.ping = Some((id, data));
                // The writer lives as long as this does.
                drop(link.frames.send(Order::Text(text)));
            }
            tokio::time::sleep(wait).await;
            let unanswered = |link: &mut Link| link.ping.is_some();
            if self
                .stage
                .world()
                .links
                .get(&self.id)
                .is_some_and(unanswered)
            {
                return End::Close(Why::PingUnanswered);
            }
        }
    }

    /// Announces the end when the connection has its age; does not return.
    async fn age(&self) -> End {
        let life = {
            let world = self.stage.world();
            world.settings.stream.life_ms.map(|life| world.scaled(life))
        };
        if let Some(life) = life {
            tokio::time::sleep(life).await;
            self.stage.disconnect(&self.id, "connection is expired");
        }
        std::future::pending().await
    }

    fn left(&self, why: &Why) {
        let at_ms = self.stage.elapsed_ms();
        self.stage.world().links.leave(&self.id, at_ms, why);
    }
}

async fn told(controls: &mut UnboundedReceiver<Control>) -> End {
    match controls.recv().await {
        Some(Control::Silence) => End::Silence,
        Some(Control::Cut) | None => End::Cut,
    }
}
