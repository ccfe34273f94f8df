//! A disk whose syncs take their time: nothing may be decided by what is not on it yet.

use std::time::Duration;

use dingd::sim::daemon::{API_TOKEN, Daemon};
use dingd::sim::dingtalk::{Settings, User};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::support::{Stage, fast, other_event, program, robot, text_to, until};

/// The stage again, with a daemon whose disk is slow.
async fn slowed(stage: Stage, sync_ms: u64) -> Stage {
    let library = stage.dir.path().join("slow_disk.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/slow_disk.c");
    let made = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .args([source, "-ldl"])
        .status()
        .unwrap();
    assert!(made.success());
    stage.daemon.kill().await;
    let env = [
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("SLOW_US", &(sync_ms * 1_000).to_string()),
    ];
    let daemon = Daemon::start_with(program(), stage.dir.path(), &stage.config, &env)
        .await
        .unwrap();
    Stage { daemon, ..stage }
}

/// The result of a call was read back from before its commit, and the call made again, for ever.
#[tokio::test]
async fn a_message_of_several_calls_makes_each_of_them_once() {
    let users: Vec<_> = (0..45)
        .map(|n| User::named(&format!("u{n}"), "n", "139"))
        .collect();
    let stage = Stage::with(Settings { users, ..fast() }, |config| config).await;
    let stage = slowed(stage, 30).await;
    let users: Vec<_> = (0..45).map(|n| format!("u{n}")).collect();
    let id = stage.send(&text_to(&json!({"users": users}), "x")).await;
    assert_eq!(stage.reaches(&id, "sent").await["attempts"], 3);
    assert_eq!(stage.box_.delivered().len(), 45);
    stage.close().await;
}

/// The key was free again as soon as the client was gone, though its message was on the way to disk.
#[tokio::test]
async fn a_client_that_hangs_up_and_repeats_with_its_key_sends_one_message() {
    let stage = slowed(Stage::open().await, 200).await;
    let address = stage.daemon.api().trim_start_matches("http://").to_owned();
    let body = text_to(&robot(), "once").to_string();
    for _ in 0..4 {
        let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
        let request = format!(
            "POST /v1/messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_TOKEN}\r\nIdempotency-Key: k\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let key = [("idempotency-key", "k")];
    let body: Value = serde_json::from_str(&body).unwrap();
    let last = stage
        .daemon
        .request_with("POST", "/v1/messages", &key, &body)
        .await
        .unwrap();
    assert_eq!(
        (last.status, last.header("idempotency-replayed")),
        (200, Some("true"))
    );
    stage
        .reaches(last.json()["id"].as_str().unwrap(), "sent")
        .await;
    assert_eq!(stage.box_.delivered().len(), 1);
    stage.close().await;
}

#[tokio::test]
async fn a_callback_is_answered_when_it_is_on_disk_and_refused_when_that_takes_too_long() {
    let stage = slowed(Stage::open().await, 50).await;
    let push = stage.push(&other_event(1)).await;
    assert!(push.acknowledged && push.elapsed_ms >= 50, "{push:?}");
    let stage = slowed(stage, 1_500).await;
    let late = stage.push(&other_event(2)).await;
    assert_eq!(late.status, 503, "{late:?}");
    until("the repeat is recognised", async || {
        stage.push(&other_event(2)).await.acknowledged
    })
    .await;
    // By their ids: the kill above may have repeated the first.
    until("both are forwarded", async || {
        let ids: std::collections::BTreeSet<_> =
            stage.platform.events().into_iter().map(|e| e.id).collect();
        ids.len() == 2
    })
    .await;
    let stage = stage.crash().await;
    stage.close().await;
}
