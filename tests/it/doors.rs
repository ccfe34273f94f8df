//! Three doors, each with its own routes and its own manners.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use dingd::sim::daemon::API_TOKEN;
use dingd::sim::post::request;
use serde_json::json;

use crate::support::{Stage, fast, robot, text_to};

#[tokio::test]
async fn a_route_of_one_door_is_404_on_the_others() {
    let stage = Stage::open().await;
    let auth = [("authorization", format!("Bearer {API_TOKEN}"))];
    let doors = [
        stage.daemon.callbacks(),
        stage.daemon.api(),
        stage.daemon.admin(),
    ];
    for (home, path) in [
        (0, "/callback/oncall/events"),
        (1, "/v1/messages"),
        (1, "/v1/chats"),
        (2, "/live"),
        (2, "/ready"),
        (2, "/metrics"),
        (9, "/v1/status"),
        (1, "/v1/dead"),
        (9, "/"),
        (9, "/callback/other/events"),
    ] {
        for (index, door) in doors.iter().enumerate() {
            let reply = request("GET", &format!("{door}{path}"), &auth, String::new())
                .await
                .unwrap();
            assert_eq!(
                reply.status == 404,
                index != home,
                "{path} at {door}: {}",
                reply.status
            );
        }
    }
    stage.close().await;
}

#[tokio::test]
async fn the_api_wants_a_known_token() {
    let stage = Stage::open().await;
    let url = format!("{}/v1/chats", stage.daemon.api());
    let long = "x".repeat(5_000);
    for token in [
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Basic eDp5",
        API_TOKEN,
        &long,
    ] {
        let headers = [("authorization", token.to_owned())];
        let reply = request("GET", &url, &headers, String::new()).await.unwrap();
        assert_eq!(reply.status, 401, "{token}");
        assert_eq!(reply.content_type, "application/problem+json");
    }
    stage.close().await;
}

#[tokio::test]
async fn a_client_has_a_ceiling_and_a_rate() {
    let edit = |config: String| {
        config.replace(
            "name = \"platform\"\ntoken",
            "name = \"platform\"\nmax_priority = \"high\"\nrate_per_s = 5\ntoken",
        )
    };
    let stage = Stage::with(fast(), edit).await;
    let mut body = text_to(&robot(), "x");
    body["priority"] = json!("critical");
    let refused = stage.post(&body).await;
    assert_eq!(
        (refused.status, &refused.json()["type"]),
        (403, &json!("urn:dingd:problem:priority_not_allowed"))
    );
    let mut limited = None;
    for _ in 0..20 {
        let reply = stage.get("/v1/chats").await;
        if reply.status == 429 {
            limited = Some(reply);
        }
    }
    let limited = limited.unwrap();
    assert_eq!(limited.header("retry-after"), Some("1"));
    assert_eq!(
        limited.header("ratelimit-policy"),
        Some(r#""client";q=5;w=1"#)
    );
    assert_eq!(limited.header("ratelimit"), Some(r#""client";r=0;t=1"#));
    stage.close().await;
}

fn raw(door: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(door.trim_start_matches("http://")).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream.write_all(bytes).unwrap();
    let mut out = vec![];
    let mut buf = [0; 4096];
    while let Ok(n) = stream.read(&mut buf) {
        out.extend_from_slice(&buf[..n]);
        if n == 0 || out.windows(4).any(|w| w == b"\r\n\r\n") {
            break;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_proxies_read_differently_are_refused() {
    let stage = Stage::open().await;
    let auth = format!("Host: x\r\nAuthorization: Bearer {API_TOKEN}\r\n");
    for head in [
        "POST /v1/messages HTTP/1.1\r\n{auth}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        "POST /v1/messages HTTP/1.1\r\n{auth}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET /v1/chats HTTP/1.1\r\n{auth}X-A: a\r\n b\r\n\r\n",
        "GET /v1/chats HTTP/1.1\r\n{auth}X_A: a\r\n\r\n",
        "GET /v1/chats HTTP/1.1\r\n{auth}X A: a\r\n\r\n",
        "GET /v1/chats HTTP/9.9\r\n{auth}\r\n",
        "GET  /v1/chats HTTP/1.1\r\n{auth}\r\n",
        "\u{0}\u{1}\u{2}\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let answer = raw(stage.daemon.api(), head.replace("{auth}", &auth).as_bytes());
        let status = answer.split(' ').nth(1).unwrap_or("closed");
        assert!(!status.starts_with('2'), "{head:?}: {answer}");
    }
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_are_let_go_and_disturb_nobody() {
    let edit = |config: String| {
        config.replacen(
            "[api]\n",
            "[api]\nheader_timeout_ms = 500\nbody_timeout_ms = 500\n",
            1,
        )
    };
    let stage = Stage::with(fast(), edit).await;
    let address = stage.daemon.api().trim_start_matches("http://").to_owned();
    let mut slow = vec![];
    for n in 0..100 {
        let mut stream = TcpStream::connect(&address).unwrap();
        let head = if n % 2 == 0 {
            "GET /v1/chats HTT".to_owned()
        } else {
            format!(
                "POST /v1/messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_TOKEN}\r\nContent-Length: 100\r\n\r\n{{"
            )
        };
        stream.write_all(head.as_bytes()).unwrap();
        slow.push(stream);
    }
    let id = stage.send(&text_to(&robot(), "genuine")).await;
    stage.reaches(&id, "sent").await;
    let started = Instant::now();
    for mut stream in slow {
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let mut out = vec![];
        drop(stream.read_to_end(&mut out));
    }
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "they were not let go"
    );
    stage.close().await;
}

/// As many as a door may have would keep everybody out until they time out, and DingTalk waits for 1.5 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_bring_no_request_make_room_for_those_that_do() {
    let edit = |config: String| {
        let limits = "connections_max = 16\nheader_timeout_ms = 60000\nbody_timeout_ms = 60000\n";
        config.replacen("[api]\n", &format!("[api]\n{limits}"), 1)
    };
    let stage = Stage::with(fast(), edit).await;
    let address = stage.daemon.api().trim_start_matches("http://").to_owned();
    let slow: Vec<_> = (0..100)
        .map(|n| {
            let mut stream = TcpStream::connect(&address).unwrap();
            let body = "POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{";
            let part = if n % 2 == 0 {
                "GET /v1/chats HTT"
            } else {
                body
            };
            drop(stream.write_all(part.as_bytes()));
            stream
        })
        .collect();
    let id = stage.send(&text_to(&robot(), "genuine")).await;
    stage.reaches(&id, "sent").await;
    let metrics = stage.metrics().await;
    let made = r#"dingd_http_rejected_total{listener="api",reason="made_room"}"#;
    assert!(metrics.contains(made), "{metrics}");
    drop(slow);
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_reads_is_let_go() {
    let edit = |config: String| {
        let door = "[callbacks]\n";
        config.replacen(door, &format!("{door}answer_timeout_ms = 500\n"), 1)
    };
    let stage = Stage::with(fast(), edit).await;
    let address = stage.daemon.callbacks().trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_write_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let many = "GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1_000);
    let ended = std::thread::spawn(move || {
        // Nobody reads; so the pipe fills up in both directions, and then the door closes it.
        (0..10_000).find_map(|_| stream.write_all(many.as_bytes()).err())
    });
    let error = tokio::task::spawn_blocking(|| ended.join().unwrap());
    let kind = error.await.unwrap().expect("it is closed").kind();
    assert!(
        [
            std::io::ErrorKind::ConnectionReset,
            std::io::ErrorKind::BrokenPipe
        ]
        .contains(&kind),
        "{kind}"
    );
    stage.close().await;
}

fn rss_kib(stage: &Stage) -> u64 {
    let status = format!("/proc/{}/status", stage.daemon.pid());
    let status = std::fs::read_to_string(status).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    let number = line.unwrap().split_whitespace().nth(1).unwrap();
    number.parse().unwrap()
}

/// A part of a body takes its own bytes, not those of the buffer that it came in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_come_byte_by_byte_take_no_more_memory_than_others() {
    let stage = Stage::open().await;
    let address = stage.daemon.callbacks().trim_start_matches("http://");
    let before_kib = rss_kib(&stage);
    let head =
        "POST /callback/oncall/events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let part = [head, &"1\r\n \r\n".repeat(15_000)].concat();
    let streams: Vec<_> = (0..100)
        .map(|_| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(part.as_bytes()).unwrap();
            stream
        })
        .collect();
    // Behind all that they sent.
    let id = stage.send(&text_to(&robot(), "genuine")).await;
    stage.reaches(&id, "sent").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let grown_kib = rss_kib(&stage) - before_kib;
    assert!(
        grown_kib < 24 * 1_024,
        "1.5 MB were sent, it grew by {grown_kib} KiB"
    );
    drop(streams);
    stage.close().await;
}

/// Bodies that are large and never end: as many as there may be connections, they fill no more memory than
/// there is room for, and small requests have theirs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_that_never_end_fill_bounded_memory_and_disturb_nobody() {
    let stage = Stage::open().await;
    let address = stage.daemon.api().trim_start_matches("http://").to_owned();
    let before_kib = rss_kib(&stage);
    let head = format!(
        "POST /v1/messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_TOKEN}\r\nContent-Length: 260000\r\n\r\n"
    );
    let part = [head.as_bytes(), &vec![b' '; 250_000]].concat();
    let stalled = tokio::task::spawn_blocking(move || {
        let mut stalled = vec![];
        for _ in 0..600 {
            let mut stream = TcpStream::connect(&address).unwrap();
            // Those for whom there is no room are told so and let go.
            drop(stream.write_all(&part));
            stalled.push(stream);
        }
        stalled
    });
    let stalled = stalled.await.unwrap();
    let id = stage.send(&text_to(&robot(), "genuine")).await;
    stage.reaches(&id, "sent").await;
    let grown_kib = rss_kib(&stage) - before_kib;
    assert!(
        grown_kib < 100 * 1_024,
        "150 MB were sent, it grew by {grown_kib} KiB"
    );
    let metrics = stage.metrics().await;
    let refused = r#"dingd_http_rejected_total{listener="api",reason="busy"}"#;
    assert!(metrics.contains(refused), "{metrics}");
    drop(stalled);
    stage.close().await;
}
