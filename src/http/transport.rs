//! Calls out. What matters to the callers is not only that a call failed but whether the other side
//! may have seen it: a request whose last byte surely never left can be repeated without a thought.
//!
//! So this counts the bytes that went out on each connection instead of using a pooled client. No
//! redirects, no proxies from the environment, every answer bounded.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::SendRequest;
use hyper::header::{
    ACCEPT_ENCODING, CONTENT_LENGTH, DATE, HOST, HeaderName, HeaderValue, RETRY_AFTER,
};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::tls::provider;
use super::{address, answer};
use crate::clock::{Clock, parse_http_date_s};
use crate::secret::printable;

/// What `Retry-After` says, in seconds or as a moment, which is seen from the sender's own clock if that is
/// told (RFC 9110 §10.2.3).
fn retry_after_s(text: &str, date: Option<&str>, wall_ms: u64) -> Option<u64> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(seconds);
    }
    let now_s = date.and_then(parse_http_date_s).unwrap_or(wall_ms / 1_000);
    Some(parse_http_date_s(text)?.saturating_sub(now_s))
}

/// A pooled connection is used again only within this time (reliability contract §4).
const IDLE_MAX_MS: u64 = 5_000;
const IDLE_CONNECTIONS_MAX: usize = 64;
/// Set in a connection's count of bytes when its call was given up: nothing leaves any more.
const SEALED: u64 = 1 << 63;

/// Where calls go: `https://host[:port]`, without a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    tls: bool,
    host: String,
    port: u16,
}

/// A URL that calls may not go to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    /// It is not an absolute http(s) URL.
    #[error("is not an absolute http:// or https:// URL")]
    Form,
    /// Credentials in a URL end up in logs.
    #[error("must not contain a user name or password")]
    UserInfo,
    /// Plain HTTP beyond this machine.
    #[error(
        "uses http:// beyond this machine; use https://, or set allow_insecure = true beside it"
    )]
    Insecure,
}

impl Origin {
    /// Splits a URL into its origin and its path with query. `http://` is accepted for loopback
    /// addresses, or if `insecure` is allowed.
    pub fn parse(url: &str, insecure: bool) -> Result<(Self, String), BadUrl> {
        let uri: Uri = url.parse().map_err(|_| BadUrl::Form)?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(BadUrl::Form),
        };
        let authority = uri.authority().ok_or(BadUrl::Form)?;
        if authority.as_str().contains('@') {
            return Err(BadUrl::UserInfo);
        }
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        if host.is_empty() {
            return Err(BadUrl::Form);
        }
        if !tls && !is_loopback(&host) && !insecure {
            return Err(BadUrl::Insecure);
        }
        let port = match authority.port_u16() {
            Some(port) => port,
            // What stands there is no port.
            None if authority.as_str() != authority.host() => return Err(BadUrl::Form),
            None if tls => 443,
            None => 80,
        };
        let path = uri
            .path_and_query()
            .map_or("/", |path| path.as_str())
            .to_owned();
        Ok((Self { tls, host, port }, path))
    }

    /// The host name.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Whether the host is this machine, by its name.
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.host)
    }

    /// Host and port as the `Host` header names them.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

/// One call.
#[derive(Debug)]
pub struct Call<'a> {
    /// To whom.
    pub origin: &'a Origin,
    /// GET, POST, PUT.
    pub method: Method,
    /// Path with query. May hold a secret, so it is never logged here.
    pub path: &'a str,
    /// Headers beside Host and Content-Length.
    pub headers: &'a [(&'static str, &'a str)],
    /// The body.
    pub body: Bytes,
    /// Of the whole call, in milliseconds.
    pub timeout_ms: u64,
}

/// What came back.
#[derive(Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// At most 1 MiB, decompressed.
    pub body: Bytes,
    /// False if the body was longer, broke off, or could not be decompressed; `body` is what there is.
    pub body_complete: bool,
    /// `Retry-After` in seconds, if it was a number.
    pub retry_after_s: Option<u64>,
    /// `Date`, as it came.
    pub date: Option<String>,
}

/// Nothing came back.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{detail}")]
pub struct Failure {
    /// Whether the last byte of the request may have left: then nobody can know what happened.
    pub request_may_have_left: bool,
    /// What went wrong; holds neither path nor secret.
    pub detail: String,
}

/// Answers calls in place of the network: for tests that have neither sockets nor real time.
pub trait Script: std::fmt::Debug + Send + Sync {
    /// What comes of `call`, and when; its timeout is the script's business.
    fn play(&self, call: &Call<'_>) -> Played;
}

/// The course of one scripted call.
pub type Played = Pin<Box<dyn Future<Output = Result<Reply, Failure>> + Send>>;

/// The one client of this process.
#[derive(Debug)]
pub struct Transport {
    script: Option<Box<dyn Script>>,
    clock: Clock,
    connect_timeout: Duration,
    tls: OnceLock<Arc<ClientConfig>>,
    idle: Mutex<HashMap<Origin, Vec<Idle>>>,
}

#[derive(Debug)]
struct Idle {
    send: SendRequest<Full<Bytes>>,
    written: Arc<AtomicU64>,
    since_ms: u64,
}

impl Transport {
    /// Connects within `connect_timeout_ms`.
    pub fn new(clock: Clock, connect_timeout_ms: u64) -> Self {
        Self {
            script: None,
            clock,
            connect_timeout: Duration::from_millis(connect_timeout_ms),
            tls: OnceLock::new(),
            idle: Mutex::new(HashMap::new()),
        }
    }

    /// Leads nowhere: `script` answers.
    pub fn scripted(clock: Clock, script: Box<dyn Script>) -> Self {
        Self {
            script: Some(script),
            ..Self::new(clock, 0)
        }
    }

    /// Makes one call, once.
    pub async fn call(&self, call: Call<'_>) -> Result<Reply, Failure> {
        let unsent = |detail: String| Failure {
            request_may_have_left: false,
            detail,
        };
        let request = request(&call).map_err(unsent)?;
        if let Some(script) = &self.script {
            return script.play(&call).await;
        }
        let body_bytes = call.body.len() as u64;
        let deadline = Duration::from_millis(call.timeout_ms);
        let progress = Arc::new(OnceLock::new());
        let talk = self.talk(call.origin, request, progress.clone());
        let result = tokio::time::timeout(deadline, talk)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {} ms", call.timeout_ms)));
        result.map_err(|detail| {
            // The body comes last: as long as fewer bytes than it has went out, it is not complete.
            // Sealed, because the connection's task may be about to write at this very moment.
            let request_may_have_left =
                progress
                    .get()
                    .is_some_and(|(written, before): &(Arc<AtomicU64>, u64)| {
                        let written = written.fetch_or(SEALED, Ordering::AcqRel) & !SEALED;
                        written.saturating_sub(*before) > body_bytes
                    });
            let detail = printable(&format!("{}: {detail}", call.origin.host), 256);
            Failure {
                request_may_have_left,
                detail,
            }
        })
    }

    async fn talk(
        &self,
        origin: &Origin,
        request: Request<Full<Bytes>>,
        progress: Arc<OnceLock<(Arc<AtomicU64>, u64)>>,
    ) -> Result<Reply, String> {
        let Idle {
            mut send, written, ..
        } = if let Some(idle) = self.pooled(origin) {
            idle
        } else {
            let connect = async { self.handshake(self.dial(origin).await?).await };
            tokio::time::timeout(self.connect_timeout, connect)
                .await
                .map_err(|_| self.not_connected())??
        };
        send.ready().await.map_err(|e| e.to_string())?;
        let before = written.load(Ordering::Acquire);
        progress.get_or_init(|| (written.clone(), before));
        let (head, body) = send
            .send_request(request)
            .await
            .map_err(|e| cause(&e))?
            .into_parts();
        let body = answer::collect(body).await;
        // Behind an answer that was not read to its end comes the rest of it.
        if body.complete {
            self.pool(
                origin,
                Idle {
                    send,
                    written,
                    since_ms: self.clock.mono_ms(),
                },
            );
        }
        let header = |name| {
            head.headers
                .get(name)
                .and_then(|v: &HeaderValue| v.to_str().ok())
        };
        let body = answer::decode(&head.headers, body);
        Ok(Reply {
            status: head.status.as_u16(),
            body: body.bytes,
            body_complete: body.complete,
            retry_after_s: header(RETRY_AFTER)
                .and_then(|text| retry_after_s(text, header(DATE), self.clock.wall_ms())),
            date: header(DATE).map(ToOwned::to_owned),
        })
    }

    fn pooled(&self, origin: &Origin) -> Option<Idle> {
        let now_ms = self.clock.mono_ms();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let connections = idle.get_mut(origin)?;
        while let Some(candidate) = connections.pop() {
            // The connection's task reads ahead, so an end of file shows as closed.
            if is_fresh(candidate.since_ms, now_ms) && !candidate.send.is_closed() {
                return Some(candidate);
            }
        }
        None
    }

    fn pool(&self, origin: &Origin, connection: Idle) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let connections = idle.entry(origin.clone()).or_default();
        if connections.len() < IDLE_CONNECTIONS_MAX && !connection.send.is_closed() {
            connections.push(connection);
        }
    }

    /// Lets go of connections that were idle for too long.
    pub fn sweep(&self) {
        let now_ms = self.clock.mono_ms();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|_, connections| {
            connections.retain(|c| is_fresh(c.since_ms, now_ms) && !c.send.is_closed());
            !connections.is_empty()
        });
    }

    /// A connection of one's own, for what is not calls. The error holds no secret.
    pub async fn connect(&self, origin: &Origin) -> Result<Wire, String> {
        if self.script.is_some() {
            return Err("there is no network here".to_owned());
        }
        tokio::time::timeout(self.connect_timeout, self.dial(origin))
            .await
            .map_err(|_| self.not_connected())?
    }

    fn not_connected(&self) -> String {
        let waited_ms = self.connect_timeout.as_millis();
        format!("no connection within {waited_ms} ms")
    }

    async fn dial(&self, origin: &Origin) -> Result<Wire, String> {
        let addresses = addresses(origin).await?;
        let stream = TcpStream::connect(addresses.as_slice())
            .await
            .map_err(|e| format!("cannot connect ({e})"))?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        if !origin.tls {
            return Ok(Wire::Plain(stream));
        }
        let name = ServerName::try_from(origin.host.clone()).map_err(|e| e.to_string())?;
        let connector = TlsConnector::from(self.tls.get_or_init(client_config).clone());
        let stream = connector
            .connect(name, stream)
            .await
            .map_err(|e| format!("TLS failed ({e})"))?;
        Ok(Wire::Tls(Box::new(stream)))
    }

    async fn handshake(&self, stream: Wire) -> Result<Idle, String> {
        let written = Arc::new(AtomicU64::new(0));
        let counted = Counted {
            stream,
            written: written.clone(),
        };
        let (send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(counted))
            .await
            .map_err(|e| e.to_string())?;
        // Ends when its `SendRequest` is dropped: with the call, or with the pool.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "outgoing connection ended");
            }
        });
        Ok(Idle {
            send,
            written,
            since_ms: self.clock.mono_ms(),
        })
    }
}

/// Where the host is; an address that stands in the configuration was the operator's choice.
async fn addresses(origin: &Origin) -> Result<Vec<SocketAddr>, String> {
    let found = tokio::net::lookup_host((origin.host.as_str(), origin.port)).await;
    let found = found.map_err(|e| format!("cannot connect ({e})"))?;
    let stays_here = !origin.tls && origin.is_loopback();
    let chosen = origin.host.parse::<std::net::IpAddr>().is_ok();
    let mut good = vec![];
    for place in found {
        match address::refusal(place.ip(), stays_here).filter(|_| !chosen) {
            None => good.push(place),
            Some(why) => {
                return Err(format!(
                    "its name leads to {}: {why}; see DNS and /etc/hosts",
                    place.ip()
                ));
            }
        }
    }
    Ok(good)
}

fn is_loopback(host: &str) -> bool {
    let address = host.parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Another thread may have put the connection back after `now_ms` was read.
fn is_fresh(since_ms: u64, now_ms: u64) -> bool {
    now_ms.saturating_sub(since_ms) < IDLE_MAX_MS
}

fn request(call: &Call<'_>) -> Result<Request<Full<Bytes>>, String> {
    let mut request = Request::new(Full::new(call.body.clone()));
    *request.method_mut() = call.method.clone();
    *request.uri_mut() = call
        .path
        .parse()
        .map_err(|_| "the path is not valid".to_owned())?;
    let headers = request.headers_mut();
    let host = HeaderValue::from_str(&call.origin.authority()).map_err(|e| e.to_string())?;
    headers.insert(HOST, host);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(call.body.len()));
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    for (name, value) in call.headers {
        let mut value = HeaderValue::from_str(value)
            .map_err(|_| format!("the value of header {name} is not valid"))?;
        value.set_sensitive(true);
        headers.insert(HeaderName::from_static(name), value);
    }
    Ok(request)
}

/// The innermost message: hyper's own only says where it was noticed.
fn cause(error: &hyper::Error) -> String {
    std::error::Error::source(error)
        .map_or_else(|| error.to_string(), |inner| format!("{error} ({inner})"))
}

/// The machine's roots; the bundled ones where there are none.
fn client_config() -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::warn!(%error, "cannot read a root certificate");
    }
    roots.add_parsable_certificates(native.certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring supports the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

/// A connection, with or without TLS.
#[derive(Debug)]
pub enum Wire {
    /// On this machine, or where it was allowed.
    Plain(TcpStream),
    /// Everywhere else.
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Counts what was written. A write is announced before it is made, so that the count is never below
/// the truth, and refused once the count is sealed.
struct Counted<S> {
    stream: S,
    written: Arc<AtomicU64>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let announced = buf.len() as u64;
        let before = self.written.fetch_add(announced, Ordering::AcqRel);
        if before & SEALED != 0 {
            self.written.fetch_sub(announced, Ordering::AcqRel);
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        let wrote = match polled {
            Poll::Ready(Ok(bytes)) => bytes as u64,
            _ => 0,
        };
        self.written.fetch_sub(announced - wrote, Ordering::AcqRel);
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_was_put_back_a_moment_later_is_fresh() {
        for (since_ms, now_ms, fresh) in [(10, 9, true), (0, 4_999, true), (0, 5_000, false)] {
            assert_eq!(is_fresh(since_ms, now_ms), fresh);
        }
    }

    #[tokio::test]
    async fn a_call_that_was_given_up_writes_nothing_more() {
        use tokio::io::AsyncWriteExt as _;
        let (stream, _far) = tokio::io::duplex(4);
        let written = Arc::new(AtomicU64::new(0));
        let mut counted = Counted {
            stream,
            written: written.clone(),
        };
        assert_eq!(
            counted.write(b"123456").await.unwrap(),
            4,
            "as much as fits"
        );
        assert_eq!(written.load(Ordering::Acquire), 4);
        let full = tokio::time::timeout(Duration::from_millis(1), counted.write(b"5")).await;
        assert!(full.is_err(), "no room");
        assert_eq!(written.fetch_or(SEALED, Ordering::AcqRel), 4);
        let error = counted.write(b"5").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(written.load(Ordering::Acquire), SEALED | 4);
    }

    #[test]
    fn a_wish_to_wait_is_seconds_or_a_moment() {
        let now = Some("Wed, 21 Oct 2026 07:28:00 GMT");
        let later = "Wed, 21 Oct 2026 07:30:00 GMT";
        let wall_ms = 1_792_567_680_000 + 60_000;
        assert_eq!(retry_after_s(" 7 ", now, wall_ms), Some(7));
        assert_eq!(
            retry_after_s(later, now, wall_ms),
            Some(120),
            "by their clock"
        );
        assert_eq!(retry_after_s(later, None, wall_ms), Some(60), "by ours");
        assert_eq!(retry_after_s(later, Some(later), wall_ms), Some(0));
        assert_eq!(retry_after_s("soon", now, wall_ms), None);
    }

    #[test]
    fn an_origin_is_secure_or_local_and_names_nobody() {
        let (origin, path) = Origin::parse("https://a.example:8443/x?y=1", false).unwrap();
        assert_eq!(
            (origin.authority().as_str(), path.as_str()),
            ("a.example:8443", "/x?y=1")
        );
        assert_eq!(
            Origin::parse("http://127.0.0.1:1/", false)
                .unwrap()
                .0
                .authority(),
            "127.0.0.1:1"
        );
        assert_eq!(
            Origin::parse("http://[::1]:1/", false)
                .unwrap()
                .0
                .authority(),
            "[::1]:1"
        );
        for (url, insecure, error) in [
            ("http://a.example/", false, BadUrl::Insecure),
            ("https://u:p@a.example/", false, BadUrl::UserInfo),
            ("ftp://a.example/", true, BadUrl::Form),
            ("/only/a/path", true, BadUrl::Form),
        ] {
            assert_eq!(Origin::parse(url, insecure).unwrap_err(), error, "{url}");
        }
        assert!(Origin::parse("http://a.example/", true).is_ok());
    }
}
