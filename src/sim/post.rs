//! One POST over plain HTTP, a new connection each time: how the box reaches the daemon.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

/// Longer than any time limit that DingTalk documents: a late answer is still seen, and judged
/// by whoever asked.
const PATIENCE: Duration = Duration::from_secs(10);
const REPLY_BYTES_MAX: usize = 1 << 20;

/// What came back.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) content_type: String,
    pub(super) body: String,
}

/// Posts JSON; the error text says at which step it failed.
pub(super) async fn post(
    url: &str,
    headers: &[(&'static str, String)],
    body: String,
) -> Result<Reply, String> {
    tokio::time::timeout(PATIENCE, exchange(url, headers, body))
        .await
        .map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))?
}

async fn exchange(
    url: &str,
    headers: &[(&'static str, String)],
    body: String,
) -> Result<Reply, String> {
    let uri: Uri = url.parse().map_err(|error| format!("url: {error}"))?;
    if uri.scheme_str() != Some("http") {
        return Err("url: the box speaks plain http only".to_owned());
    }
    let authority = uri.authority().ok_or("url: no host")?;
    let port = authority.port_u16().unwrap_or(80);
    let stream = TcpStream::connect((authority.host().trim_matches(['[', ']']), port))
        .await
        .map_err(|error| format!("connect: {error}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| format!("handshake: {error}"))?;
    let _driver = Driver(tokio::spawn(async move { drop(connection.await) }).abort_handle());
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    // A URL may put its query right behind the host; a request line may not.
    let target = if target.starts_with('/') {
        target.to_owned()
    } else {
        format!("/{target}")
    };
    let mut request = Request::post(target)
        .header(HOST, authority.as_str())
        .header(CONTENT_TYPE, "application/json");
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    let request = request
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| format!("request: {error}"))?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| format!("send: {error}"))?;
    let status = response.status().as_u16();
    let content_type = response
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    let bytes = Limited::new(response.into_body(), REPLY_BYTES_MAX)
        .collect()
        .await
        .map_err(|error| format!("body: {error}"))?
        .to_bytes();
    Ok(Reply {
        status,
        content_type,
        body: String::from_utf8_lossy(&bytes).into_owned(),
    })
}

/// Ends the connection's task with the exchange, also when that is given up half-way.
struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}
