//! One request over plain HTTP, a new connection each time: how the box reaches the daemon.

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
#[derive(Debug, Clone)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Value of `Content-Type`, or empty.
    pub content_type: String,
    /// All headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body as text.
    pub body: String,
}

impl Reply {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as JSON, or null.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }
}

/// Posts JSON; the error text says at which step it failed.
pub(super) async fn post(
    url: &str,
    headers: &[(&'static str, String)],
    body: String,
) -> Result<Reply, String> {
    request("POST", url, headers, body).await
}

/// Sends any request; the error text says at which step it failed.
pub async fn request(
    method: &str,
    url: &str,
    headers: &[(&'static str, String)],
    body: String,
) -> Result<Reply, String> {
    tokio::time::timeout(PATIENCE, exchange(method, url, headers, body))
        .await
        .map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))?
}

async fn exchange(
    method: &str,
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
    let mut request = Request::builder()
        .method(method)
        .uri(target)
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
    let headers = response
        .headers()
        .iter()
        .map(|(name, value)| {
            (
                name.as_str().to_owned(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            )
        })
        .collect();
    #[expect(
        clippy::disallowed_methods,
        reason = "the body is limited and has a deadline"
    )]
    let bytes = Limited::new(response.into_body(), REPLY_BYTES_MAX)
        .collect()
        .await
        .map_err(|error| format!("body: {error}"))?
        .to_bytes();
    Ok(Reply {
        status,
        content_type,
        headers,
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
