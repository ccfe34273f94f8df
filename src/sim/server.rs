//! A plain HTTP/1.1 server that can also misbehave: refuse at accept, or close without an answer.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

/// More than any request of the protocol; what is longer is cut off, not collected.
const BODY_BYTES_MAX: usize = 1 << 20;

/// An answer to be written out.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    /// HTTP status.
    pub(super) status: u16,
    /// Value of `Content-Type`.
    pub(super) content_type: String,
    /// Further headers.
    pub(super) headers: Vec<(&'static str, String)>,
    /// The body as it goes out.
    pub(super) body: String,
}

/// What goes on with a connection after its last HTTP answer.
pub(super) type Onward = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What becomes of a request that may be the last one of its connection.
pub(super) enum Switch {
    /// It is a request like any other.
    No,
    /// The connection is closed without a byte.
    Cut,
    /// This is the answer, and HTTP goes on.
    Answer(Answer),
    /// This is the last answer.
    Onward(Answer, Onward),
}

/// One side of the wire: what happens to a request.
pub(super) trait Service: Send + Sync + 'static {
    /// Whether a new connection is served at all.
    fn admits(&self) -> bool;

    /// Whether the connection is to become something else than HTTP.
    fn switch(
        self: Arc<Self>,
        _request: &mut Request<Incoming>,
    ) -> impl Future<Output = Switch> + Send {
        async { Switch::No }
    }

    /// Answers; `None` closes the connection without a byte.
    fn serve(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Option<Answer>> + Send;
}

/// Where a client on this machine reaches what will be served here.
pub(super) fn url(listener: &TcpListener) -> String {
    reached_at(address(listener))
}

fn address(listener: &TcpListener) -> SocketAddr {
    listener
        .local_addr()
        .unwrap_or_else(|_| SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
}

fn reached_at(address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        format!("http://127.0.0.1:{}", address.port())
    } else {
        format!("http://{address}")
    }
}

/// A running server. Dropping it ends every task that it started.
#[derive(Debug)]
pub(super) struct Server {
    address: SocketAddr,
    halt: Arc<Notify>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Server {
    /// Serves until [`Self::stop`] or drop.
    pub(super) fn start<S: Service>(listener: TcpListener, service: Arc<S>) -> Self {
        let address = address(&listener);
        let halt = Arc::new(Notify::new());
        let task = tokio::spawn(accept(listener, service, Arc::clone(&halt)));
        Self {
            address,
            halt,
            task: Mutex::new(Some(task)),
        }
    }

    /// Where a client on this machine reaches the server.
    pub(super) fn url(&self) -> String {
        reached_at(self.address)
    }

    /// Closes the listener and every connection, and returns when that is done.
    pub(super) async fn stop(&self) {
        let task = self
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(task) = task {
            // A permit is kept for a task that is not waiting at this moment.
            self.halt.notify_one();
            // An error here means that the task is already gone, which is what was wanted.
            drop(task.await);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(task) = self
            .task
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            task.abort();
        }
    }
}

async fn accept<S: Service>(listener: TcpListener, service: Arc<S>, halt: Arc<Notify>) {
    // Owned by this task, so that aborting it takes the connections along.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = halt.notified() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if service.admits() => {
                    connections.spawn(connection(stream, Arc::clone(&service)));
                }
                Ok((stream, _)) => drop(stream),
                // Out of file descriptors, mostly: a short rest instead of a busy loop.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
    drop(listener);
    connections.shutdown().await;
}

async fn connection<S: Service>(stream: TcpStream, service: Arc<S>) {
    // Small answers must not wait for an acknowledgement of the other side.
    drop(stream.set_nodelay(true));
    let onward = Arc::new(Mutex::new(None));
    let handler = service_fn(|mut request| {
        let (service, onward) = (Arc::clone(&service), Arc::clone(&onward));
        async move {
            // An error makes hyper drop the connection without writing anything.
            match Arc::clone(&service).switch(&mut request).await {
                Switch::No => service.serve(request).await.map(response).ok_or(Cut),
                Switch::Cut => Err(Cut),
                Switch::Answer(answer) => Ok(response(answer)),
                Switch::Onward(answer, then) => {
                    *onward.lock().unwrap_or_else(PoisonError::into_inner) = Some(then);
                    Ok(response(answer))
                }
            }
        }
    });
    // A failed connection is the client's affair, or one that we cut on purpose.
    drop(
        hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), handler)
            .with_upgrades()
            .await,
    );
    let then = onward.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(then) = then {
        then.await;
    }
}

fn response(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() =
        StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Ok(value) = HeaderValue::try_from(answer.content_type)
        && !value.is_empty()
    {
        response.headers_mut().insert(CONTENT_TYPE, value);
    }
    for (name, value) in answer.headers {
        if let Ok(value) = HeaderValue::try_from(value) {
            response
                .headers_mut()
                .insert(HeaderName::from_static(name), value);
        }
    }
    response
}

/// The whole body, or `None` when it was too long or did not arrive.
pub(super) async fn body(incoming: Incoming) -> Option<Bytes> {
    #[expect(clippy::disallowed_methods, reason = "the body is limited")]
    Limited::new(incoming, BODY_BYTES_MAX)
        .collect()
        .await
        .ok()
        .map(http_body_util::Collected::to_bytes)
}

/// The text of a header, when it has one.
pub(super) fn header(request: &Request<Incoming>, name: &str) -> Option<String> {
    request
        .headers()
        .get(name)?
        .to_str()
        .ok()
        .map(str::to_owned)
}

/// Says to hyper that the connection ends here.
#[derive(Debug)]
struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the box closes the connection")
    }
}

impl std::error::Error for Cut {}
