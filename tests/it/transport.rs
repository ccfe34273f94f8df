//! Calls over real sockets to a peer that fails at each step: what is judged follows from when it failed.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dingd::clock::Clock;
use dingd::delivery::verdict::Verdict;
use dingd::dingtalk::answer::{Answer, Api, NoAnswer, judge, judge_no_answer};
use dingd::http::transport::{Call, Origin, Transport};
use hyper::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{listener, until};

const UNREACHABLE: &str = "retry dingtalk_unreachable";
const NO_ANSWER: &str = "unknown outcome_unknown";
const UNREADABLE: &str = "unknown answer_unreadable";
const SENT: &str = r#"{"processQueryKey":"k"}"#;
/// More than the buffers of both sockets hold.
const HUGE: usize = 32 << 20;

/// Somebody who takes connections, one after the other.
struct Peer {
    port: u16,
    connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Peer {
    async fn start<F: Future<Output = ()> + Send>(
        serve: impl Fn(TcpStream) -> F + Send + 'static,
    ) -> Self {
        let listener = listener().await;
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                serve(stream).await;
            }
        });
        Self {
            port,
            connections,
            task,
        }
    }

    /// Reads one request, writes `answer` and closes.
    async fn answering(answer: impl Into<Vec<u8>>) -> Self {
        let answer: Arc<[u8]> = answer.into().into();
        Self::start(move |mut stream| {
            let answer = answer.clone();
            async move {
                request(&mut stream).await;
                // The client may hang up when it has seen enough.
                drop(stream.write_all(&answer).await);
                drop(stream.shutdown().await);
            }
        })
        .await
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// Reads one whole request and returns it.
async fn request(stream: &mut TcpStream) -> String {
    let mut bytes = vec![];
    loop {
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return String::new();
        }
        let text = String::from_utf8_lossy(&bytes).to_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head.split_once("content-length: ").unwrap().1;
        let length = length.split("\r\n").next().unwrap();
        if body.len() >= length.parse().unwrap() {
            return text;
        }
    }
}

fn http(status: u16, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n{headers}\r\n");
    [head.as_bytes(), body].concat()
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::best());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// One call and its verdict, as label, scope of a pause, and slug.
async fn verdict(transport: &Transport, api: Api, url: &str, body_bytes: usize) -> String {
    verdict_within(10_000, transport, api, url, body_bytes).await
}

async fn verdict_within(
    timeout_ms: u64,
    transport: &Transport,
    api: Api,
    url: &str,
    body_bytes: usize,
) -> String {
    let (origin, path) = Origin::parse(url, true).unwrap();
    let call = Call {
        origin: &origin,
        method: Method::POST,
        path: &path,
        headers: &[("content-type", "application/json")],
        body: Bytes::from(vec![b' '; body_bytes]),
        timeout_ms,
    };
    let verdict = match transport.call(call).await {
        Ok(reply) => {
            let answer = Answer {
                status: reply.status,
                body: &reply.body,
                body_complete: reply.body_complete,
                retry_after_s: reply.retry_after_s,
            };
            judge(api, &answer)
        }
        Err(failure) => {
            let failure = NoAnswer {
                request_may_have_left: failure.request_may_have_left,
                detail: &failure.detail,
            };
            judge_no_answer(api, &failure)
        }
    };
    let slug = verdict.reason().map_or("", |reason| &reason.code);
    match &verdict {
        Verdict::Pause { scope, .. } => format!("pause {scope:?} {slug}"),
        _ => format!("{} {slug}", verdict.label()).trim_end().to_owned(),
    }
}

fn transport() -> Transport {
    Transport::new(Clock::system(), 2_000)
}

/// A send to a group over a connection of its own.
async fn send(url: &str) -> String {
    verdict(&transport(), Api::GroupSend, url, 300).await
}

#[tokio::test]
async fn without_a_connection_nothing_left() {
    let port = listener().await.local_addr().unwrap().port();
    assert_eq!(send(&format!("http://127.0.0.1:{port}")).await, UNREACHABLE);
    assert_eq!(send("http://nobody.invalid").await, UNREACHABLE);
    let full = Peer::start(|stream| async move {
        tokio::time::sleep(Duration::from_mins(1)).await;
        drop(stream);
    })
    .await;
    let silent = format!("https://127.0.0.1:{}", full.port);
    assert_eq!(send(&silent).await, UNREACHABLE, "no TLS handshake");
}

#[tokio::test]
async fn a_failed_handshake_is_no_request() {
    for words in [&b""[..], b"HTTP/1.1 400 Bad Request\r\n\r\n"] {
        let peer = Peer::start(move |mut stream| async move {
            let mut hello = [0; 64];
            drop(stream.read(&mut hello).await);
            drop(stream.write_all(words).await);
        })
        .await;
        let url = format!("https://127.0.0.1:{}", peer.port);
        assert_eq!(send(&url).await, UNREACHABLE, "{words:?}");
    }
}

#[tokio::test]
async fn a_request_that_left_only_in_part_is_safe_to_repeat() {
    let closing = Peer::start(|mut stream| async move {
        let mut some = [0; 1_024];
        stream.read_exact(&mut some).await.unwrap();
    })
    .await;
    let seen = verdict(&transport(), Api::GroupSend, &closing.url(), HUGE).await;
    assert_eq!(seen, UNREACHABLE, "closed half-way");
    let stuck = Peer::start(|stream| async move {
        tokio::time::sleep(Duration::from_mins(1)).await;
        drop(stream);
    })
    .await;
    let seen = verdict_within(1_500, &transport(), Api::GroupSend, &stuck.url(), HUGE).await;
    assert_eq!(seen, UNREACHABLE, "timed out half-way");
}

#[tokio::test]
async fn a_request_that_left_without_an_answer_is_of_unknown_outcome() {
    // Handed to the kernel, and nobody knows how far it came: it was not read at all.
    let unread = Peer::start(|stream| async move {
        stream.peek(&mut [0]).await.unwrap();
    })
    .await;
    assert_eq!(send(&unread.url()).await, NO_ANSWER);
    let silent = Peer::answering("").await;
    assert_eq!(send(&silent.url()).await, NO_ANSWER);
    let look_up = verdict(&transport(), Api::UserLookup, &silent.url(), 30).await;
    assert_eq!(look_up, "retry answer_missing");
    let slow = Peer::start(|mut stream| async move {
        request(&mut stream).await;
        tokio::time::sleep(Duration::from_mins(1)).await;
    })
    .await;
    let seen = verdict_within(1_500, &transport(), Api::GroupSend, &slow.url(), 300).await;
    assert_eq!(seen, NO_ANSWER);
}

#[tokio::test]
async fn an_answer_whose_head_is_broken_is_of_unknown_outcome() {
    for head in [
        "H",
        "HTTP/1.1 200 OK",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: two\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        "HTTP/1.1 abc OK\r\n\r\n{}",
        "SSH-2.0-OpenSSH_9.9\r\n",
        SENT,
    ] {
        let peer = Peer::answering(head).await;
        assert_eq!(send(&peer.url()).await, NO_ANSWER, "{head}");
    }
}

#[tokio::test]
async fn an_answer_whose_body_is_broken_is_never_success() {
    let ok = "HTTP/1.1 200 OK\r\n";
    let chunked = "transfer-encoding: chunked\r\n\r\n";
    for (answer, expected) in [
        (format!("{ok}content-length: 100\r\n\r\n{SENT}"), UNREADABLE),
        (format!("{ok}content-length: 9\r\n\r\n{SENT}"), UNREADABLE),
        (format!("{ok}content-length: 0\r\n\r\n{SENT}"), UNREADABLE),
        (format!("{ok}{chunked}17\r\n{SENT}\r\n"), UNREADABLE),
        (format!("{ok}{chunked}17\r\n{SENT}\r\nzz\r\n"), UNREADABLE),
        (format!("{ok}{chunked}!!\r\n{SENT}"), UNREADABLE),
        (format!("{ok}{chunked}17\r\n{SENT}\r\n0\r\n\r\n"), "sent"),
        (format!("{ok}\r\n{SENT}"), "sent"),
        (
            "HTTP/1.1 400 X\r\ncontent-length: 99\r\n\r\n{\"code\":\"unkn".to_owned(),
            UNREADABLE,
        ),
        (
            "HTTP/1.1 502 X\r\ncontent-length: 99\r\n\r\n{".to_owned(),
            NO_ANSWER,
        ),
        (
            "HTTP/1.1 403 X\r\ncontent-length: 99\r\n\r\n<html>".to_owned(),
            "pause Egress egress_banned",
        ),
    ] {
        let peer = Peer::answering(answer.clone()).await;
        assert_eq!(send(&peer.url()).await, expected, "{answer}");
    }
}

#[tokio::test]
async fn an_answer_over_a_mebibyte_is_of_unknown_outcome() {
    let padded = |bytes: usize| [SENT.as_bytes(), &vec![b' '; bytes - SENT.len()]].concat();
    for (bytes, expected) in [
        (1 << 20, "sent"),
        ((1 << 20) + 1, UNREADABLE),
        (9 << 20, UNREADABLE),
    ] {
        for status in [200, 400] {
            let peer = Peer::answering(http(status, "", &padded(bytes))).await;
            // A complete refusal without a code is a refusal.
            let refused = status == 400 && expected == "sent";
            let expected = if refused { "dead rejected" } else { expected };
            assert_eq!(send(&peer.url()).await, expected, "{status}, {bytes} bytes");
        }
    }
}

#[tokio::test]
async fn a_compressed_answer_is_read_and_a_bomb_is_not() {
    let sent = gzip(br#"{"errcode":0,"errmsg":"ok"}"#);
    let half = sent[..sent.len() / 2].to_vec();
    let bomb = gzip(&[br#"{"errcode":0}"#, &vec![b' '; 64 << 20][..]].concat());
    let throttled = gzip(br#"{"errcode":130101}"#);
    for (coding, body, expected) in [
        ("gzip", &sent, "sent"),
        ("X-GZIP", &sent, "sent"),
        ("gzip", &throttled, "pause Robot robot_throttled"),
        ("gzip", &half, UNREADABLE),
        ("gzip", &bomb, UNREADABLE),
        ("br", &sent, UNREADABLE),
        ("identity", &sent, UNREADABLE),
    ] {
        let headers = format!("content-encoding: {coding}\r\n");
        let peer = Peer::answering(http(200, &headers, body)).await;
        let seen = verdict(&transport(), Api::WebhookSend, &peer.url(), 300).await;
        assert_eq!(seen, expected, "{coding}");
    }
}

#[tokio::test]
async fn no_compression_is_asked_for() {
    let (tell, asked) = std::sync::mpsc::channel();
    let peer = Peer::start(move |mut stream| {
        let tell = tell.clone();
        async move {
            tell.send(request(&mut stream).await).unwrap();
            stream
                .write_all(&http(200, "", SENT.as_bytes()))
                .await
                .unwrap();
        }
    })
    .await;
    assert_eq!(send(&peer.url()).await, "sent");
    assert!(
        asked
            .recv()
            .unwrap()
            .contains("accept-encoding: identity\r\n")
    );
}

#[tokio::test]
async fn a_pooled_connection_that_the_peer_closed_is_not_used() {
    let peer = Peer::start(|mut stream| async move {
        request(&mut stream).await;
        stream
            .write_all(&http(200, "", SENT.as_bytes()))
            .await
            .unwrap();
    })
    .await;
    let transport = transport();
    for calls in 1..=5 {
        assert_eq!(
            verdict(&transport, Api::GroupSend, &peer.url(), 300).await,
            "sent"
        );
        assert_eq!(peer.connections.load(Ordering::SeqCst), calls);
        // Until the end of the connection has come through.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_pooled_connection_that_breaks_under_a_request_may_have_carried_it() {
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = requests.clone();
    let peer = Peer::start(move |mut stream| {
        let counted = counted.clone();
        async move {
            request(&mut stream).await;
            stream
                .write_all(&http(200, "", SENT.as_bytes()))
                .await
                .unwrap();
            request(&mut stream).await;
            counted.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let transport = transport();
    assert_eq!(
        verdict(&transport, Api::GroupSend, &peer.url(), 300).await,
        "sent"
    );
    assert_eq!(
        verdict(&transport, Api::GroupSend, &peer.url(), 300).await,
        NO_ANSWER
    );
    until("it was read", async || requests.load(Ordering::SeqCst) == 1).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let connections = peer.connections.load(Ordering::SeqCst);
    assert_eq!(connections, 1, "the transport repeats nothing by itself");
}
