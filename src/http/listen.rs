//! A door: accepts connections, speaks TLS if it should, reads whole bounded requests, hands them to
//! one async function, and ends gracefully.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;

use super::problem::{Answer, Problem};
use super::tls::Tls;
use super::waiting::{Guest, Waiting};
use crate::drain::Drain;
use crate::metrics;

/// What a door allows.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time; for another one whoever has been waited for longest is let go.
    pub connections_max: usize,
    /// From the accepted connection to the end of the TLS handshake, in milliseconds.
    pub handshake_timeout_ms: u64,
    /// From the first byte of a request (or an idle connection) to the end of its head.
    pub header_timeout_ms: u64,
    /// From the end of the head to the end of the body.
    pub body_timeout_ms: u64,
    /// While a client takes nothing of an answer.
    pub answer_timeout_ms: u64,
    /// Bytes of a request's body.
    pub body_bytes_max: usize,
}

impl Limits {
    /// Unless something else is configured.
    pub const USUAL: Self = Self {
        connections_max: 1_024,
        handshake_timeout_ms: 5_000,
        header_timeout_ms: 10_000,
        body_timeout_ms: 10_000,
        answer_timeout_ms: 10_000,
        body_bytes_max: 256 * 1_024,
    };
}

/// Room for the bodies of one door: however many connections it has, they fill no more memory than this and
/// what is free for each. The first bytes of a body are free, so that whatever comes of large ones, what
/// DingTalk sends has its place.
#[derive(Debug, Clone)]
struct Bodies(Arc<Semaphore>);

/// Of all bodies of a door together, beyond what is free, in KiB.
const BODIES_KIB: usize = 24 * 1_024;
/// Free for each body, in bytes.
const BODY_FREE_BYTES: usize = 16 * 1_024;

impl Default for Bodies {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(BODIES_KIB)))
    }
}

/// A bound door.
#[derive(Debug)]
pub struct Door {
    name: &'static str,
    listener: Listener,
    tls: Option<Arc<Tls>>,
    limits: Limits,
    bodies: Bodies,
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix { listener: UnixListener, uid: u32 },
}

/// One whole request.
#[derive(Debug)]
pub struct Request {
    /// Method, URI, headers.
    pub head: Parts,
    /// The body, complete.
    pub body: Bytes,
}

/// A door could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("[{door}] listen = \"{address}\": {source}; free the address or choose another")]
pub struct BindError {
    door: &'static str,
    address: String,
    source: io::Error,
}

impl Door {
    /// Binds a TCP door.
    pub async fn bind(
        name: &'static str,
        address: SocketAddr,
        tls: Option<Arc<Tls>>,
        limits: Limits,
    ) -> Result<Self, BindError> {
        let error = |source| BindError {
            door: name,
            address: address.to_string(),
            source,
        };
        let listener = TcpListener::bind(address).await.map_err(error)?;
        Ok(Self {
            name,
            listener: Listener::Tcp(listener),
            tls,
            limits,
            bodies: Bodies::default(),
        })
    }

    /// A door on a unix socket for `uid` and root.
    pub fn unix(name: &'static str, listener: UnixListener, uid: u32, limits: Limits) -> Self {
        Self {
            name,
            listener: Listener::Unix { listener, uid },
            tls: None,
            limits,
            bodies: Bodies::default(),
        }
    }

    /// Where it listens; `None` for a unix socket.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.listener {
            Listener::Tcp(listener) => listener.local_addr().ok(),
            Listener::Unix { .. } => None,
        }
    }

    /// Serves until `drain` says stop, then finishes the requests under way.
    pub async fn serve<F, Fut>(self, handle: F, drain: Drain)
    where
        F: Fn(Request) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Answer> + Send + 'static,
    {
        let permits = Arc::new(Semaphore::new(self.limits.connections_max));
        let waiting = Arc::new(Waiting::default());
        let graceful = GracefulShutdown::new();
        let mut connections = JoinSet::new();
        let mut pause_ms = 0;
        loop {
            let accepted = tokio::select! {
                accepted = self.accept() => accepted,
                () = drain.stopping() => break,
            };
            while connections.try_join_next().is_some() {}
            let stream = match accepted {
                Ok(stream) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: wait, do not spin.
                    pause_ms = (pause_ms * 2).clamp(10, 1_000);
                    tracing::warn!(%error, door = self.name, pause_ms, "cannot accept a connection");
                    metrics::http_rejected(self.name, "accept_error");
                    tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                    continue;
                }
            };
            pause_ms = 0;
            if permits.available_permits() == 0 && waiting.make_room() {
                metrics::http_rejected(self.name, "made_room");
            }
            // While all are being served, it and those behind it in the listen queue wait.
            let permit = tokio::select! {
                permit = permits.clone().acquire_owned() => permit,
                () = drain.stopping() => break,
            };
            let connection = Connection {
                name: self.name,
                limits: self.limits,
                tls: self.tls.clone(),
                bodies: self.bodies.clone(),
                guest: Arc::new(waiting.welcome()),
                watcher: graceful.watcher(),
            };
            let handle = handle.clone();
            connections.spawn(async move {
                metrics::http_connections(connection.name, 1.0);
                let (name, guest) = (connection.name, connection.guest.clone());
                tokio::select! {
                    () = connection.run(stream, handle) => {}
                    () = guest.asked_to_leave() => {}
                }
                metrics::http_connections(name, -1.0);
                drop(permit);
            });
        }
        drop(self.listener);
        graceful.shutdown().await;
        while connections.join_next().await.is_some() {}
    }

    async fn accept(&self) -> io::Result<Stream> {
        match &self.listener {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            Listener::Unix { listener, uid } => {
                let (stream, _) = listener.accept().await?;
                let peer = stream.peer_cred()?.uid();
                if peer != 0 && peer != *uid {
                    metrics::http_rejected(self.name, "peer");
                    return Err(io::Error::other(format!(
                        "uid {peer} may not use the admin socket"
                    )));
                }
                Ok(Stream::Unix(stream))
            }
        }
    }
}

enum Stream {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

struct Connection {
    name: &'static str,
    limits: Limits,
    tls: Option<Arc<Tls>>,
    bodies: Bodies,
    guest: Arc<Guest>,
    watcher: Watcher,
}

impl Connection {
    async fn run<F, Fut>(self, stream: Stream, handle: F)
    where
        F: Fn(Request) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Answer> + Send + 'static,
    {
        let limits = self.limits;
        match (stream, self.tls.clone()) {
            (Stream::Unix(stream), _) => self.talk(impatient(stream, limits), handle).await,
            (Stream::Tcp(stream), None) => self.talk(impatient(stream, limits), handle).await,
            (Stream::Tcp(stream), Some(tls)) => {
                let deadline = Duration::from_millis(limits.handshake_timeout_ms);
                let stream = impatient(stream, limits);
                match tokio::time::timeout(deadline, tls.acceptor().accept(stream)).await {
                    Ok(Ok(stream)) => self.talk(stream, handle).await,
                    Ok(Err(error)) => {
                        tracing::debug!(%error, door = self.name, "TLS handshake failed");
                        metrics::http_rejected(self.name, "handshake");
                    }
                    Err(_) => metrics::http_rejected(self.name, "handshake_timeout"),
                }
            }
        }
    }

    async fn talk<F, Fut>(self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, handle: F)
    where
        F: Fn(Request) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Answer> + Send + 'static,
    {
        let (name, limits) = (self.name, self.limits);
        let (bodies, guest) = (self.bodies, self.guest);
        let service = service_fn(move |request| {
            let (handle, bodies, guest) = (handle.clone(), bodies.clone(), guest.clone());
            async move {
                let mut room = None;
                let answer = match read(request, limits, &bodies, &mut room).await {
                    Ok(request) => {
                        guest.is_served();
                        let answer = handle(request).await;
                        guest.is_waited_for();
                        answer
                    }
                    Err(problem) => {
                        metrics::http_rejected(name, problem.slug());
                        problem.answer()
                    }
                };
                Ok::<_, std::convert::Infallible>(answer)
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_millis(limits.header_timeout_ms))
            .max_buf_size(64 * 1_024)
            .max_headers(64)
            .serve_connection(TokioIo::new(io), service);
        if let Err(error) = self.watcher.watch(connection).await {
            tracing::debug!(%error, door = name, "connection ended");
            metrics::http_rejected(
                name,
                if error.is_timeout() {
                    "header_timeout"
                } else {
                    "protocol"
                },
            );
        }
    }
}

/// Whoever takes nothing of an answer for so long is let go: hyper has no such limit.
fn impatient<S: AsyncRead + AsyncWrite>(stream: S, limits: Limits) -> Pin<Box<TimeoutStream<S>>> {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(Duration::from_millis(limits.answer_timeout_ms)));
    Box::pin(stream)
}

async fn read(
    request: hyper::Request<Incoming>,
    limits: Limits,
    bodies: &Bodies,
    room: &mut Option<OwnedSemaphorePermit>,
) -> Result<Request, Problem> {
    let (head, body) = request.into_parts();
    if head.headers.keys().any(|name| name.as_str().contains('_')) {
        // Proxies and applications disagree about what such a name means.
        return Err(Problem::new(
            400,
            "bad_header",
            "Bad header",
            "a header name contains `_`",
        ));
    }
    let deadline = Duration::from_millis(limits.body_timeout_ms);
    let whole = tokio::time::timeout(deadline, read_body(body, limits, bodies, room));
    let body = whole.await.unwrap_or_else(|_| {
        Err(Problem::new(
            408,
            "body_timeout",
            "Body too slow",
            "send the body faster",
        ))
    })?;
    Ok(Request { head, body })
}

/// Takes room as the bytes come, not as they are announced: announcing costs nothing. They are copied: a part,
/// however small, holds the whole buffer that it was read into.
async fn read_body(
    mut body: Incoming,
    limits: Limits,
    bodies: &Bodies,
    room: &mut Option<OwnedSemaphorePermit>,
) -> Result<Bytes, Problem> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let broken = |_| Problem::new(400, "bad_body", "Bad body", "the body broke off");
        let Ok(part) = frame.map_err(broken)?.into_data() else {
            continue;
        };
        let length = whole.len() + part.len();
        if length > limits.body_bytes_max {
            let detail = format!("the body may have at most {} bytes", limits.body_bytes_max);
            return Err(Problem::new(
                413,
                "body_too_large",
                "Body too large",
                detail,
            ));
        }
        let wanted = length.saturating_sub(BODY_FREE_BYTES).div_ceil(1_024);
        let held = room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if wanted > held {
            let more = u32::try_from(wanted - held).unwrap_or(u32::MAX);
            let more = bodies.0.clone().try_acquire_many_owned(more);
            let more = more.map_err(|_| {
                let detail = "too many large bodies are being sent at once";
                Problem::unavailable("busy", detail, 1).fix(
                    "稍后重试；若持续出现，检查是谁在发送大请求（dingd_http_rejected_total）。",
                    "Try again; if it lasts, find who sends large bodies (dingd_http_rejected_total).",
                )
            })?;
            match room {
                Some(room) => room.merge(more),
                None => *room = Some(more),
            }
        }
        whole.extend_from_slice(&part);
    }
    Ok(whole.freeze())
}
