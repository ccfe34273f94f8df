//! A new connection: a place and a ticket from the gateway, then TCP, TLS and the WebSocket.
//!
//! The secret goes out in the first and the ticket in the second; neither is in any error, so neither is in
//! any log.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::clock::rfc3339;
use crate::delivery::verdict::Verdict;
use crate::dingtalk::answer::Api;
use crate::dingtalk::envelope::percent_encode;
use crate::dingtalk::frame::{BYTES_MAX, CARDS, ROBOT};
use crate::egress::call::Request;
use crate::egress::{App, Egress, stream_keys};
use crate::http::transport::{Origin, Transport, Wire};
use crate::secret::{Secret, printable};

/// A WebSocket of ours.
pub(super) type Socket = WebSocketStream<Wire>;

/// Whoever took our connection has this long to make it a WebSocket.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// What a connection holds in each direction to begin with; it grows to the longest frame that it has carried
/// and stays so.
const BUFFER_BYTES: usize = 16 << 10;
/// A longer message ends the connection. It is more than what is taken ([`BYTES_MAX`]), because a frame
/// that is only a little too long can still be answered, and would else come again and again.
const MESSAGE_BYTES_MAX: usize = 4 * BYTES_MAX;
/// Answers that the other end does not read. A ping comes back whole.
const UNSENT_BYTES_MAX: usize = 2 * MESSAGE_BYTES_MAX;
const TICKET_BYTES_MAX: usize = 4_096;

/// What opens connections.
#[derive(Debug, Clone)]
pub(super) struct Opener {
    pub(super) egress: Arc<Egress>,
    pub(super) transport: Arc<Transport>,
}

/// No connection.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    /// As a metric label.
    pub(super) label: &'static str,
    /// What, and what to do about it in both languages.
    pub(super) text: String,
    /// Whether only somebody who acts can help.
    pub(super) needs_hand: bool,
    /// Not to be tried again before this (monotonic milliseconds).
    pub(super) not_before_ms: u64,
}

impl Trouble {
    fn new(label: &'static str, text: String) -> Self {
        Self {
            label,
            text,
            needs_hand: false,
            not_before_ms: 0,
        }
    }
}

/// What the gateway gives.
struct Place {
    endpoint: String,
    ticket: Secret,
}

impl Opener {
    /// Opens a connection with a fresh ticket: one serves for one.
    pub(super) async fn open(&self, app: &App) -> Result<Socket, Trouble> {
        let place = self.ask(app).await?;
        let (origin, url) = url(&place, &self.egress.api_host()).map_err(|problem| {
            let text = format!(
                "the gateway named {:?}, which {problem}: 若非代理或劫持所致，请升级 dingd / unless a proxy \
                 or somebody else answers for DingTalk, dingd needs an update",
                printable(&place.endpoint, 128)
            );
            Trouble {
                needs_hand: true,
                ..Trouble::new("endpoint", text)
            }
        })?;
        let no_link = |what: String| {
            let text = format!(
                "{}: {what}; 请放行到 *.dingtalk.com:443 的出站连接 / let this machine reach *.dingtalk.com:443",
                origin.host()
            );
            Trouble::new("connect", printable(&text, 512))
        };
        let wire = self.transport.connect(&origin).await.map_err(no_link)?;
        // The URL holds the ticket, so what is wrong with it is not told.
        let request = url
            .expose()
            .into_client_request()
            .map_err(|_| no_link("it cannot be asked".to_owned()))?;
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER_BYTES)
            .write_buffer_size(BUFFER_BYTES)
            .max_write_buffer_size(UNSENT_BYTES_MAX)
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let handshake = client_async_with_config(request, wire, Some(config));
        match tokio::time::timeout(HANDSHAKE, handshake).await {
            Ok(Ok((socket, _))) => Ok(socket),
            Ok(Err(error)) => Err(no_link(format!("it is no WebSocket ({error})"))),
            Err(_) => Err(no_link("no WebSocket within 5 s".to_owned())),
        }
    }

    async fn ask(&self, app: &App) -> Result<Place, Trouble> {
        let keys = stream_keys(&app.name);
        let permit = self.egress.try_acquire(&keys, true).map_err(|full| {
            let clock = self.egress.clock();
            let wait_ms = full.until_ms.saturating_sub(clock.mono_ms());
            let text = format!(
                "{} is held back until {}",
                full.key.kind.label(),
                rfc3339(clock.wall_ms() + wait_ms)
            );
            Trouble {
                not_before_ms: full.until_ms,
                ..Trouble::new("held_back", text)
            }
        })?;
        let judged = self
            .egress
            .call(Request {
                api: Api::StreamOpen,
                session: None,
                path: "/v1.0/gateway/connections/open".to_owned(),
                token: None,
                body: body(app),
            })
            .await;
        let settled = self.egress.settle(permit, &judged.verdict);
        self.egress.counted(settled);
        let place = match &judged.verdict {
            Verdict::Sent { .. } => judged.reply.and_then(|reply| place(&reply.body)),
            _ => None,
        };
        place.ok_or_else(|| refused(app, &judged.verdict))
    }
}

fn refused(app: &App, verdict: &Verdict) -> Trouble {
    let Some(reason) = verdict.reason() else {
        let text = "the gateway's answer holds no usable endpoint and ticket".to_owned();
        return Trouble::new("refused", text);
    };
    let needs_hand = matches!(verdict, Verdict::Blocked { .. });
    let text = if reason.code == "credentials_refused" {
        format!(
            "{}; 请核对 config.toml 中 name = {:?} 的 [[apps]] 的 client_id 与 client_secret（与开发者后台 → 应用 → \
             凭证与基础信息 一致，前后无空白），再 SIGHUP / check client_id and client_secret of the [[apps]] with \
             name = {:?} in config.toml against developer console → app → Credentials (no blanks around them), then \
             SIGHUP",
            reason.detail, app.name, app.name
        )
    } else {
        // The cures of the table speak of messages, and none is concerned.
        format!(
            "{}; dingd 自动重试；若持续，请检查 开发者后台 → 应用 → 事件订阅 是否已选 Stream 模式、应用是否已启用 / dingd tries \
             again by itself; if it lasts, check that developer console → app → event subscription has Stream mode \
             and that the app is enabled",
            reason.detail
        )
    };
    Trouble {
        needs_hand,
        ..Trouble::new("refused", text)
    }
}

fn body(app: &App) -> Bytes {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body<'a> {
        client_id: &'a str,
        client_secret: &'a str,
        ua: &'static str,
        subscriptions: [Subscription; 3],
    }
    #[derive(Serialize)]
    struct Subscription {
        r#type: &'static str,
        topic: &'static str,
    }
    let subscribe = |kind, topic| Subscription {
        r#type: kind,
        topic,
    };
    let body = Body {
        client_id: &app.client_id,
        client_secret: app.client_secret.expose(),
        ua: concat!("dingd/", env!("CARGO_PKG_VERSION")),
        subscriptions: [
            subscribe("EVENT", "*"),
            subscribe("CALLBACK", ROBOT),
            subscribe("CALLBACK", CARDS),
        ],
    };
    Bytes::from(serde_json::to_vec(&body).unwrap_or_default())
}

fn place(body: &[u8]) -> Option<Place> {
    #[derive(Deserialize)]
    struct Body {
        endpoint: String,
        ticket: String,
    }
    let body: Body = serde_json::from_slice(body).ok()?;
    let usable = (1..=TICKET_BYTES_MAX).contains(&body.ticket.len())
        && body.ticket.bytes().all(|b| b.is_ascii_graphic());
    usable.then(|| Place {
        endpoint: body.endpoint,
        ticket: Secret::new(body.ticket),
    })
}

/// Where to connect, and the URL with the ticket. Only DingTalk's own hosts, with TLS; and, for a DingTalk
/// on this machine, this machine. The error follows "the endpoint".
fn url(place: &Place, api: &Origin) -> Result<(Origin, Secret), &'static str> {
    let (tls, rest) = match place.endpoint.split_once("://") {
        Some(("wss", rest)) => (true, rest),
        Some(("ws", rest)) => (false, rest),
        _ => return Err("is no wss:// URL"),
    };
    let form = "is no URL that can be used";
    let as_http = format!("{}://{rest}", if tls { "https" } else { "http" });
    let (origin, path) = Origin::parse(&as_http, true).map_err(|_| form)?;
    let ours = api.is_loopback() && origin.host() == api.host();
    if !tls && !ours {
        return Err("is not encrypted");
    }
    if !ours && !is_dingtalk(origin.host(), api.host()) {
        return Err("is no host of DingTalk's");
    }
    let url = format!(
        "{}://{}{path}{}ticket={}",
        if tls { "wss" } else { "ws" },
        origin.authority(),
        if path.contains('?') { '&' } else { '?' },
        percent_encode(place.ticket.expose())
    );
    Ok((origin, Secret::new(url)))
}

/// Below `dingtalk.com`; for the international edition also where its API is.
fn is_dingtalk(host: &str, api: &str) -> bool {
    let below = |host: &str, domain: &str| {
        let host = host.to_ascii_lowercase();
        host.strip_suffix(domain)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    below(host, "dingtalk.com") || below(api, "dingtalk.io") && below(host, "dingtalk.io")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(endpoint: &str, api: &str) -> Result<String, &'static str> {
        let (api, _) = Origin::parse(api, false).unwrap();
        let place = Place {
            endpoint: endpoint.to_owned(),
            ticket: Secret::new("a+b/c=="),
        };
        url(&place, &api).map(|(_, url)| url.expose().to_owned())
    }

    #[test]
    fn the_ticket_is_percent_encoded_behind_the_endpoint() {
        let api = "https://api.dingtalk.com";
        for (endpoint, url) in [
            (
                "wss://wss-open-connection.dingtalk.com:443/connect",
                "wss://wss-open-connection.dingtalk.com/connect?ticket=a%2Bb%2Fc%3D%3D",
            ),
            (
                "wss://wss-open-connection-union.dingtalk.com/connect?a=b",
                "wss://wss-open-connection-union.dingtalk.com/connect?a=b&ticket=a%2Bb%2Fc%3D%3D",
            ),
            (
                "wss://dingtalk.com:8443",
                "wss://dingtalk.com:8443/?ticket=a%2Bb%2Fc%3D%3D",
            ),
        ] {
            assert_eq!(asked(endpoint, api).as_deref(), Ok(url));
        }
    }

    #[test]
    fn only_dingtalks_hosts_are_connected_to_and_never_without_tls() {
        let api = "https://api.dingtalk.com";
        for endpoint in [
            "",
            "wss://",
            "https://wss-open-connection.dingtalk.com/connect",
            "ws://wss-open-connection.dingtalk.com/connect",
            "wss://dingtalk.com.example.org/connect",
            "wss://evildingtalk.com/connect",
            "wss://wss.dingtalk.io/connect",
            "wss://user@wss-open-connection.dingtalk.com/connect",
            "wss://dingtalk.com@example.org/connect",
            "wss://example.org#.dingtalk.com/connect",
            "wss://example.org\\.dingtalk.com/connect",
            "wss://127.0.0.1:443/connect",
            "ws://127.0.0.1:80/connect",
            "ws://localhost/connect",
            "wss://[::1]/connect",
            "wss://.example/ .dingtalk.com",
        ] {
            assert!(asked(endpoint, api).is_err(), "{endpoint}");
        }
        let international = "https://api.dingtalk.io";
        assert!(asked("wss://wss.dingtalk.io/connect", international).is_ok());
        assert!(asked("wss://dingtalk.io.example/connect", international).is_err());
    }

    #[test]
    fn a_dingtalk_on_this_machine_may_name_this_machine_and_nothing_else() {
        let api = "http://127.0.0.1:8600";
        assert!(asked("ws://127.0.0.1:8600/connect", api).is_ok());
        assert!(asked("ws://127.0.0.1:9000/connect", api).is_ok());
        for endpoint in [
            "ws://127.0.0.2/connect",
            "ws://localhost/connect",
            "ws://10.0.0.1/connect",
        ] {
            assert!(asked(endpoint, api).is_err(), "{endpoint}");
        }
    }

    #[test]
    fn an_answer_without_a_usable_ticket_gives_no_place() {
        for body in [
            r"{}",
            r#"{"endpoint":"wss://x","ticket":""}"#,
            r#"{"endpoint":"wss://x","ticket":"a b"}"#,
            r#"{"endpoint":"wss://x","ticket":"a\r\nb"}"#,
            r#"{"endpoint":7,"ticket":"a"}"#,
            &format!(r#"{{"endpoint":"x","ticket":"{}"}}"#, "a".repeat(4_097)),
        ] {
            assert!(place(body.as_bytes()).is_none(), "{body}");
        }
        assert!(place(br#"{"endpoint":"wss://x","ticket":"a","more":1}"#).is_some());
    }
}
