//! What the service manager hears and sees: notifications, exit codes, the log, and a start that takes time.

use std::os::unix::net::UnixDatagram;
use std::path::Path;

use dingd::sim::daemon::{API_TOKEN, Daemon, Signal};
use dingd::sim::dingtalk::Switches;
use dingd::sim::post::request;
use serde_json::{Value, json};

use crate::disk::preloaded;
use crate::support::{Stage, fast, program, text_to, until};

/// Where systemd would listen.
struct Manager(UnixDatagram);

impl Manager {
    fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        let patience = crate::support::patience();
        socket.set_read_timeout(Some(patience)).unwrap();
        Self(socket)
    }

    /// The next thing that it is told.
    fn hears(&self) -> String {
        let mut text = [0; 512];
        let length = self.0.recv(&mut text).unwrap();
        String::from_utf8(text[..length].to_vec()).unwrap()
    }

    /// Whatever is told until this is.
    fn waits_for(&self, wanted: &str) -> Vec<String> {
        let mut heard = vec![];
        while heard
            .last()
            .is_none_or(|last: &String| !last.contains(wanted))
        {
            heard.push(self.hears());
        }
        heard
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn systemd_is_told_of_the_start_each_second_each_reload_and_the_end() {
    let stage = Stage::open().await;
    let path = stage.dir.path().join("notify");
    let manager = Manager::at(&path);
    let stage = stage
        .again(async |daemon, _| assert_eq!(daemon.terminate().await, Some(0)))
        .await;
    drop(stage.daemon);
    let env = [("NOTIFY_SOCKET", path.to_str().unwrap())];
    let daemon = Daemon::start_with(program(), stage.dir.path(), &stage.config, &env)
        .await
        .unwrap();
    // First of all, but that a start that takes its time says so.
    let told = manager.waits_for("READY=1");
    let early = told.iter().filter(|told| !told.contains("READY=1"));
    assert!(
        early
            .clone()
            .all(|told| told.contains("EXTEND_TIMEOUT_USEC=")),
        "{told:?}"
    );
    for _ in 0..2 {
        assert!(manager.hears().contains("WATCHDOG=1"));
    }
    daemon.signal(Signal::Hangup);
    manager.waits_for("RELOADING=1");
    assert!(
        manager.hears().contains("READY=1"),
        "right after the reload"
    );
    let ended = tokio::spawn(daemon.terminate());
    manager.waits_for("STOPPING=1");
    assert_eq!(ended.await.unwrap(), Some(0));
}

#[tokio::test]
async fn a_daemon_that_drains_says_so_and_ends_with_75_if_the_time_is_not_enough() {
    let edit = |config: String| config.replacen("[egress]\n", "[egress]\ntimeout_ms = 60000\n", 1);
    let stage = Stage::with(fast(), edit).await;
    stage.box_.set(Switches {
        slow_ms: 50_000,
        ..Switches::default()
    });
    let id = stage
        .send(&text_to(&json!({"robot": "robot-0"}), "slow"))
        .await;
    stage.reaches(&id, "sending").await;
    // A connection that is open already is served until the end.
    let address = stage.daemon.api().trim_start_matches("http://").to_owned();
    let mut open = tokio::net::TcpStream::connect(&address).await.unwrap();
    let body = text_to(&json!({"robot": "robot-0"}), "late").to_string();
    let head = format!(
        "POST /v1/messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_TOKEN}\r\nContent-Length: {}\r\nExpect: 100-continue\r\n\r\n",
        body.len()
    );
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    open.write_all(head.as_bytes()).await.unwrap();
    let mut goes_on = [0; 25];
    open.read_exact(&mut goes_on).await.unwrap();
    assert_eq!(goes_on, *b"HTTP/1.1 100 Continue\r\n\r\n");
    stage.daemon.signal(Signal::Terminate);
    until("it says that it stops", async || {
        stage.log().contains("stopping")
    })
    .await;
    open.write_all(body.as_bytes()).await.unwrap();
    let mut answer = vec![];
    open.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("retry-after: "), "{answer}");
    let problem: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(problem["type"], "urn:dingd:problem:draining");
    let stage = stage
        .again(async |mut daemon, _| assert_eq!(daemon.ended().await, Some(75)))
        .await;
    stage.box_.set(Switches::default());
    stage.reaches(&id, "sent").await;
    stage.close().await;
}

#[tokio::test]
async fn the_log_is_one_json_object_a_line_if_wanted() {
    let edit = |config: String| format!("{config}[log]\nformat = \"json\"\n");
    let stage = Stage::with(fast(), edit).await;
    let log = stage.log();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let ready = lines
        .iter()
        .find(|line| line["fields"]["message"] == "ready");
    let ready = ready.unwrap();
    assert_eq!(ready["level"], "INFO");
    assert!(ready["timestamp"].is_string() && ready["fields"]["version"].is_string());
    stage.close().await;
}

#[tokio::test]
async fn while_the_journal_is_read_ready_names_who_is_pending() {
    let stage = Stage::open().await;
    // A port that was free a moment ago.
    let port = crate::support::listener()
        .await
        .local_addr()
        .unwrap()
        .port();
    let admin = format!("127.0.0.1:{port}");
    let config = stage.config.replace(
        "[admin]\nlisten = \"127.0.0.1:0\"",
        &format!("[admin]\nlisten = \"{admin}\""),
    );
    let library = preloaded(stage.dir.path());
    let dir = tempfile::tempdir().unwrap();
    let state = |dir| Daemon::state_dir(dir).display().to_string();
    let config = config.replace(&state(stage.dir.path()), &state(dir.path()));
    let env = [
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("SLOW_US", "300000"),
    ];
    let starting = Daemon::start_with(program(), dir.path(), &config, &env);
    let ask = async |path: &str| {
        request("GET", &format!("http://{admin}{path}"), &[], String::new()).await
    };
    let watching = async {
        until("it is starting", async || ask("/ready").await.is_ok()).await;
        let reply = ask("/ready").await.unwrap();
        assert_eq!(reply.status, 503, "{}", reply.body);
        assert_eq!(reply.json()["pending"], json!(["journal", "doors"]));
        assert_eq!(ask("/live").await.unwrap().status, 200);
        assert_eq!(ask("/metrics").await.unwrap().status, 200);
    };
    let (daemon, ()) = tokio::join!(starting, watching);
    let daemon = daemon.unwrap();
    let reply = ask("/ready").await.unwrap();
    assert_eq!((reply.status, &reply.json()["pending"]), (200, &json!([])));
    assert_eq!(daemon.terminate().await, Some(0));
    stage.close().await;
}
