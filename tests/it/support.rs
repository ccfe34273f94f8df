//! A stage for one test: box, platform, daemon, and the questions that tests ask.

pub mod disk;
pub mod faulty;

use std::path::Path;
use std::time::{Duration, Instant};

use dingd::sim::daemon::{self, Daemon, PLATFORM_SECRET, Signal};
use dingd::sim::dingtalk::{DingTalk, Settings};
use dingd::sim::platform::{Platform, Received};
use dingd::sim::post::Reply;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;

/// How long a test waits for what must happen. Less where it is expected not to (`seeded.rs`).
pub fn patience() -> Duration {
    let seconds = std::env::var("DINGD_PATIENCE_S").ok();
    // After two thousand kills there is more to catch up with.
    let usual = if long() { 300 } else { 30 };
    Duration::from_secs(seconds.and_then(|text| text.parse().ok()).unwrap_or(usual))
}

pub struct Stage {
    /// First, because it reads in the directory that goes next.
    pub _tell_tale: TellTale,
    pub dir: TempDir,
    pub settings: Settings,
    pub box_: DingTalk,
    pub platform: Platform,
    pub daemon: Daemon,
    pub config: String,
}

/// Shows the daemon's log when the test fails.
pub struct TellTale(std::path::PathBuf);

impl Drop for TellTale {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.0).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let tail = lines.len().saturating_sub(40);
            eprintln!("the daemon's log ends with:\n{}", lines[tail..].join("\n"));
        }
    }
}

pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_dingd"))
}

pub async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

/// Settings whose windows are a twentieth of DingTalk's.
pub fn fast() -> Settings {
    let mut settings = Settings {
        time_scale: 20.0,
        ..Settings::default()
    };
    // People are as slow as ever.
    settings.cards.click_limit_ms *= 20;
    settings
}

impl Stage {
    pub async fn open() -> Self {
        Self::with(fast(), |config| config).await
    }

    /// With other settings of the box, and the configuration changed by `edit`.
    pub async fn with(settings: Settings, edit: impl FnOnce(String) -> String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tell_tale = TellTale(dir.path().join("log"));
        let box_ = DingTalk::start(settings.clone(), listener().await);
        let platform = Platform::start(PLATFORM_SECRET, listener().await);
        let state = Daemon::state_dir(dir.path());
        let config = daemon::config(&settings, &box_.url(), Some(&platform.url()), &state);
        let config = edit(config);
        let daemon = Daemon::start(program(), dir.path(), &config).await.unwrap();
        Self {
            _tell_tale: tell_tale,
            dir,
            settings,
            box_,
            platform,
            daemon,
            config,
        }
    }

    /// SIGKILL and start again.
    pub async fn crash(self) -> Self {
        self.again(async |mut daemon, _| daemon.kill().await).await
    }

    /// Ends the daemon as `end` does and starts it again.
    pub async fn again(self, end: impl AsyncFnOnce(Daemon, &Path)) -> Self {
        end(self.daemon, self.dir.path()).await;
        let daemon = Daemon::start(program(), self.dir.path(), &self.config)
            .await
            .unwrap();
        Self { daemon, ..self }
    }

    /// The end of every test: the books balance, DingTalk had nothing to object to, exit code 0.
    pub async fn close(self) {
        let status = self.daemon.status().await.unwrap();
        assert_eq!(
            status["conservation_mismatch"], 0,
            "the books do not balance"
        );
        assert_eq!(self.box_.complaints(), Vec::<String>::new());
        assert_eq!(
            self.daemon.terminate().await,
            Some(0),
            "{}",
            self.dir.path().display()
        );
    }

    pub fn chat(&self) -> String {
        self.settings.groups[0].open_conversation_id.clone()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    pub async fn post(&self, body: &Value) -> Reply {
        self.daemon
            .request("POST", "/v1/messages", body)
            .await
            .unwrap()
    }

    pub async fn send(&self, body: &Value) -> String {
        let reply = self.post(body).await;
        assert_eq!(reply.status, 202, "{}", reply.body);
        reply.json()["id"].as_str().unwrap().to_owned()
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.daemon
            .request("GET", path, &Value::Null)
            .await
            .unwrap()
    }

    pub async fn message(&self, id: &str) -> Value {
        self.get(&format!("/v1/messages/{id}")).await.json()
    }

    pub async fn state(&self, id: &str) -> String {
        self.message(id).await["state"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// Waits until the message is in `state`, and returns it.
    pub async fn reaches(&self, id: &str, state: &str) -> Value {
        until(&format!("{id} is {state}"), async || {
            self.state(id).await == state
        })
        .await;
        self.message(id).await
    }

    pub async fn ready(&self) -> Value {
        let url = format!("{}/ready", self.daemon.admin());
        let reply = dingd::sim::post::request("GET", &url, &[], String::new())
            .await
            .unwrap();
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.json()
    }

    pub async fn metrics(&self) -> String {
        let url = format!("{}/metrics", self.daemon.admin());
        dingd::sim::post::request("GET", &url, &[], String::new())
            .await
            .unwrap()
            .body
    }

    /// What the platform accepted of one type.
    pub fn events(&self, kind: &str) -> Vec<Received> {
        self.platform
            .events()
            .into_iter()
            .filter(|event| event.kind == kind)
            .collect()
    }

    pub async fn push(&self, event: &str) -> dingd::sim::dingtalk::PushResult {
        self.box_.push(&self.daemon.callback_url(), event).await
    }
}

/// Asks until the answer is yes; fails the test after a while.
pub async fn until(what: &str, mut asked: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !asked().await {
        assert!(started.elapsed() < patience(), "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn text_to(to: &Value, text: &str) -> Value {
    json!({"to": to, "content": {"text": {"content": text}}})
}

pub fn robot() -> Value {
    json!({"robot": "robot-0"})
}

/// Closes a store that this process opened. What other tests start at this moment has a copy of its lock until
/// it has become a program of its own.
pub async fn free(journal: dingd::journal::Journal, state: &Path) {
    journal.close();
    drop(journal);
    let lock = std::fs::File::open(state.join("lock")).unwrap();
    until("the store is free", async || lock.try_lock_shared().is_ok()).await;
}

/// Writes another configuration and waits until the daemon has taken it over.
pub async fn reload(stage: &Stage, config: &str) {
    let taken = |log: &str| log.matches("the configuration was taken over").count();
    let before = taken(&stage.log());
    std::fs::write(stage.dir.path().join("config.toml"), config).unwrap();
    stage.daemon.signal(Signal::Hangup);
    until("the configuration is taken over", async || {
        taken(&stage.log()) > before
    })
    .await;
}

/// An event as DingTalk sends those that nobody models.
pub fn other_event(number: usize) -> String {
    format!(r#"{{"EventType":"bpms_instance_change","eventId":"e{number:031}","number":{number}}}"#)
}

/// A small generator for tests that want variety and a seed to repeat it by.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Whether the long tests were asked for (`tests/run --long`).
pub fn long() -> bool {
    std::env::var_os("DINGD_LONG").is_some()
}

/// What DingTalk's console and another program of the app would do: calls past the daemon.
impl Stage {
    /// A call of the new API generation with a token of the app.
    pub async fn at_dingtalk(&self, path: &str, body: &Value) -> Reply {
        let app = &self.settings.app;
        let credentials = json!({"appKey": app.client_id, "appSecret": app.client_secret});
        let json_type = ("content-type", "application/json".to_owned());
        let post = async |path: &str, headers: &[(&'static str, String)], body: &Value| {
            let url = format!("{}{path}", self.box_.url());
            dingd::sim::post::request("POST", &url, headers, body.to_string())
                .await
                .unwrap()
        };
        let token = post(
            "/v1.0/oauth2/accessToken",
            std::slice::from_ref(&json_type),
            &credentials,
        )
        .await;
        let token = token.json()["accessToken"].as_str().unwrap().to_owned();
        post(
            path,
            &[json_type, ("x-acs-dingtalk-access-token", token)],
            body,
        )
        .await
    }

    /// Clicks go to where the daemon listens now.
    pub async fn route_clicks(&self) {
        let url = format!("{}/callback/oncall/cards", self.daemon.callbacks());
        let body = json!({"callbackRouteKey": daemon::CARD_ROUTE, "callbackUrl": url,
            "apiSecret": daemon::CARD_SECRET, "forceUpdate": true});
        let reply = self
            .at_dingtalk("/v1.0/card/callbacks/register", &body)
            .await;
        assert_eq!(reply.status, 200, "{}", reply.body);
    }

    /// A card in the group that the daemon did not send.
    pub async fn foreign_card(&self, id: &str) {
        let robot_code = &self.settings.app.robot_code;
        let body = json!({"cardTemplateId": "alert.schema", "outTrackId": id,
            "callbackType": "HTTP", "callbackRouteKey": daemon::CARD_ROUTE,
            "cardData": {"cardParamMap": {"title": "P1 disk full", "status": "firing"}},
            "openSpaceId": format!("dtv1.card//IM_GROUP.{}", self.chat()),
            "imGroupOpenSpaceModel": {"supportForward": true},
            "imGroupOpenDeliverModel": {"robotCode": robot_code}});
        let reply = self
            .at_dingtalk("/v1.0/card/instances/createAndDeliver", &body)
            .await;
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
}
