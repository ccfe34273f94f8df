//! Talks to the running daemon through its admin socket.

use std::path::PathBuf;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::Request;
use hyper_util::rt::TokioIo;
use serde_json::Value;

use super::Target;

const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Asks the daemon. An error is a text for the operator.
pub(super) fn ask(
    target: &Target,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, String> {
    let socket = socket(target)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(exchange(socket, method, path, body))
}

/// As [`ask`], from within a runtime and with a known socket.
pub(super) async fn exchange(
    socket: PathBuf,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, String> {
    let stream = tokio::net::UnixStream::connect(&socket).await.map_err(|error| {
        format!("{}: {error} — is dingd running (systemctl status dingd), and are you root or its user?", socket.display())
    })?;
    let text = |error: hyper::Error| format!("{}: {error}", socket.display());
    let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(text)?;
    let body = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "dingd")
        .body(Full::new(body))
        .map_err(|error| error.to_string())?;
    #[expect(clippy::disallowed_methods, reason = "the body is limited")]
    let exchange = async {
        let answer = send.send_request(request).await.map_err(text)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        let value: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        if status.is_success() {
            Ok(value)
        } else {
            Err(problem(status.as_u16(), &value))
        }
    };
    tokio::select! {
        answer = exchange => answer,
        ended = connection => Err(ended.err().map_or_else(|| "the daemon hung up".to_owned(), text)),
    }
}

fn problem(status: u16, value: &Value) -> String {
    let part = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    let slug = part("type").rsplit(':').next().unwrap_or_default();
    let mut text = format!("{} ({slug}, {status}): {}", part("title"), part("detail"));
    for fix in [part("fix_zh"), part("fix_en")]
        .into_iter()
        .filter(|fix| !fix.is_empty())
    {
        text.push_str("\n  → ");
        text.push_str(fix);
    }
    text
}

pub(super) fn socket(target: &Target) -> Result<PathBuf, String> {
    if let Some(socket) = &target.socket {
        return Ok(socket.clone());
    }
    let file = &target.config;
    let text = std::fs::read_to_string(file).map_err(|error| {
        format!(
            "{}: {error}; name the configuration with --config, or the socket with --socket",
            file.display()
        )
    })?;
    let table = crate::config::table(&text).map_err(|f| format!("{}: {f}", file.display()))?;
    let dir = table.get("state_dir").and_then(toml::Value::as_str);
    let dir = dir.ok_or_else(|| format!("{}: state_dir is missing", file.display()))?;
    Ok(PathBuf::from(dir).join("admin.sock"))
}

/// Percent-encodes one segment of a path or one value of a query.
pub(super) fn encoded(text: &str) -> String {
    crate::dingtalk::envelope::percent_encode(text)
}
