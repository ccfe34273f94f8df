//! The story: each scene does something to the daemon and holds it to what it promises.
#![expect(
    clippy::indexing_slicing,
    reason = "indexing a JSON value gives null, it does not panic"
)]

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::timeline::Timeline;
use crate::clock::Clock;
use crate::sim::daemon::{self, Daemon, PLATFORM_SECRET};
use crate::sim::dingtalk::{Casing, DingTalk, Settings, Switches, Via};
use crate::sim::platform::{Platform, PlatformSwitches};

const SCALE: f64 = 20.0;
const STORM: usize = 200;
/// Longer than anything here should take.
const PATIENCE_MS: u64 = 50_000;
const NULL: Value = Value::Null;

/// Everybody on the stage.
pub(super) struct Stage {
    program: PathBuf,
    dir: PathBuf,
    box_: DingTalk,
    platform: Platform,
    daemon: Daemon,
    config: String,
    chat: String,
    clock: Clock,
}

/// How the alerts of the storm arrived.
#[derive(Default)]
struct Storm {
    single: usize,
    folded: usize,
    twice: usize,
    digests: Vec<String>,
}

/// How long something took, if it came at all.
struct Took(Option<u64>);

impl Took {
    fn came(&self) -> bool {
        self.0.is_some()
    }
}

impl std::fmt::Display for Took {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(ms) => write!(f, "{ms} ms"),
            None => write!(f, "NEVER (within {} s)", PATIENCE_MS / 1_000),
        }
    }
}

impl Stage {
    pub(super) async fn open(program: PathBuf, dir: &Path) -> Result<Self, String> {
        let listen = || async {
            TcpListener::bind("127.0.0.1:0")
                .await
                .map_err(|e| e.to_string())
        };
        let settings = Settings {
            time_scale: SCALE,
            ..Settings::default()
        };
        let chat = settings
            .groups
            .first()
            .map(|group| group.open_conversation_id.clone());
        let box_ = DingTalk::start(settings.clone(), listen().await?);
        let platform = Platform::start(PLATFORM_SECRET, listen().await?);
        let state_dir = Daemon::state_dir(dir);
        let config = daemon::config(&settings, &box_.url(), Some(&platform.url()), &state_dir);
        let config = format!("{config}[outbound.digest]\nafter_s = {:?}\n", 60.0 / SCALE);
        let daemon = Daemon::start(&program, dir, &config).await?;
        Ok(Self {
            program,
            dir: dir.to_owned(),
            box_,
            platform,
            daemon,
            config,
            chat: chat.unwrap_or_default(),
            clock: Clock::system(),
        })
    }

    pub(super) fn urls(&self) -> Vec<String> {
        let directory = self.dir.join("config.toml");
        vec![
            format!("simulated DingTalk   {}", self.box_.url()),
            format!("simulated platform   {}", self.platform.url()),
            format!(
                "API of dingd         {}/v1/messages   (Authorization: Bearer {})",
                self.daemon.api(),
                daemon::API_TOKEN
            ),
            format!(
                "health and metrics   {}/ready  /metrics",
                self.daemon.admin()
            ),
            format!(
                "commands             dingd status --config {}",
                directory.display()
            ),
        ]
    }

    pub(super) async fn close(mut self) {
        self.daemon.kill().await;
        self.platform.stop().await;
        self.box_.stop().await;
    }

    /// Waits until `done`.
    async fn until(&self, mut done: impl AsyncFnMut(&Self) -> bool) -> Took {
        let started_ms = self.clock.mono_ms();
        loop {
            if done(self).await {
                return Took(Some(self.clock.mono_ms() - started_ms));
            }
            if self.clock.mono_ms() - started_ms > PATIENCE_MS {
                return Took(None);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn send(&self, body: Value) -> Result<String, String> {
        let reply = self.daemon.request("POST", "/v1/messages", &body).await?;
        let id = reply.json()["id"].as_str().map(ToOwned::to_owned);
        id.filter(|_| reply.status == 202)
            .ok_or_else(|| format!("HTTP {}: {}", reply.status, reply.body))
    }

    async fn state(&self, id: &str) -> String {
        match self
            .daemon
            .request("GET", &format!("/v1/messages/{id}"), &NULL)
            .await
        {
            Ok(reply) => reply.json()["state"]
                .as_str()
                .unwrap_or("unknown to the daemon")
                .to_owned(),
            Err(error) => error,
        }
    }

    async fn title(&self) -> Option<String> {
        let reply = self.daemon.request("GET", "/v1/chats", &NULL).await.ok()?;
        reply.json()["chats"][0]["title"]
            .as_str()
            .map(ToOwned::to_owned)
    }

    fn saw(&self, kind: &str) -> bool {
        self.platform
            .events()
            .iter()
            .any(|event| event.kind == kind && event.valid.is_ok())
    }

    /// How the alerts of the storm arrived, by what the platform was told and what DingTalk shows.
    async fn storm_in_the_chat(&self, ids: &[String]) -> Storm {
        let delivered = self.box_.delivered().into_iter();
        let webhook = delivered.filter(|message| message.via == Via::Webhook);
        let texts: Vec<_> = webhook.map(|message| message.text).collect();
        let (digests, singles): (Vec<_>, Vec<_>) =
            texts.into_iter().partition(|text| text.contains("条告警"));
        let mut storm = Storm {
            twice: singles.len() - singles.iter().collect::<HashSet<_>>().len(),
            digests,
            ..Storm::default()
        };
        for (number, id) in ids.iter().enumerate() {
            let path = format!("/v1/messages/{id}");
            let Ok(reply) = self.daemon.request("GET", &path, &NULL).await else {
                continue;
            };
            let message = reply.json();
            let marker = format!("storm #{number}\n");
            let seen = singles
                .iter()
                .any(|text| format!("{text}\n").contains(&marker));
            storm.single += usize::from(seen && message["state"] == "sent");
            if let Some(digest) = message["merged_into"].as_str() {
                storm.folded += usize::from(self.state(digest).await == "sent");
                storm.twice += usize::from(seen);
            }
        }
        storm
    }

    fn finished_events(&self, ids: &[String]) -> usize {
        let mut seen: Vec<String> = self
            .platform
            .events()
            .iter()
            .filter(|e| e.kind == "dingd.message.finished")
            .filter_map(|e| e.body["data"]["id"].as_str().map(ToOwned::to_owned))
            .collect();
        seen.sort_unstable();
        seen.dedup();
        ids.iter()
            .filter(|id| seen.binary_search(id).is_ok())
            .count()
    }
}

/// Tells the whole story.
pub(super) async fn tell(stage: Stage, timeline: &mut Timeline) -> Result<Stage, String> {
    subscribe(&stage, timeline).await;
    install(&stage, timeline).await;
    rename(&stage, timeline).await;
    alert(&stage, timeline).await?;
    let ids = storm(&stage, timeline).await?;
    let stage = kill(stage, timeline).await?;
    token(&stage, timeline).await?;
    dingtalk_down(&stage, timeline).await?;
    platform_down(&stage, timeline).await?;
    settle(&stage, timeline, &ids).await;
    stop(stage, timeline).await
}

async fn subscribe(stage: &Stage, timeline: &mut Timeline) {
    timeline.scene("The operator saves the event URL in DingTalk's console");
    let check = stage.box_.check_url(&stage.daemon.callback_url()).await;
    timeline.promise(
        "the URL check is answered with an encrypted `success` within 1,000 ms",
        &format!(
            "HTTP {}, acknowledged: {}, {} ms",
            check.status, check.acknowledged, check.elapsed_ms
        ),
        check.acknowledged && check.elapsed_ms < 1_000,
    );
    let callback = stage
        .box_
        .sealed(r#"{"EventType":"check_url"}"#, stage.clock.wall_ms());
    let forged = crate::sim::dingtalk::Callback {
        query: callback.query.replace("nonce=", "nonce=x"),
        ..callback
    };
    let refused = stage
        .box_
        .push_sealed(&stage.daemon.callback_url(), &forged)
        .await;
    timeline.promise(
        "a forged callback is refused without a word",
        &format!("HTTP {}, body {:?}", refused.status, refused.body),
        refused.status == 403 && refused.body.is_empty(),
    );
}

async fn install(stage: &Stage, timeline: &mut Timeline) {
    timeline.scene("Somebody installs the cool app in the group 值班告警群");
    let event = stage
        .box_
        .install_cool_app(&stage.chat, "manager0001", Casing::Lower);
    let push = stage.box_.push(&stage.daemon.callback_url(), &event).await;
    timeline.promise(
        "the event is on disk before DingTalk gets its `success`",
        &format!(
            "acknowledged: {}, {} ms",
            push.acknowledged, push.elapsed_ms
        ),
        push.acknowledged,
    );
    let took = stage
        .until(async |stage| stage.title().await.is_some())
        .await;
    let title = stage.title().await.unwrap_or_default();
    timeline.promise(
        "the group appears in GET /v1/chats; its name, which the event lacks, is looked up",
        &format!("{title:?} after {took}"),
        title == "值班告警群",
    );
    let took = stage
        .until(async |stage| stage.saw("dingtalk.cool_app.installed"))
        .await;
    let again = stage.box_.push(&stage.daemon.callback_url(), &event).await;
    let seen = || {
        stage
            .platform
            .attempts()
            .iter()
            .filter(|e| e.kind == "dingtalk.cool_app.installed")
            .count()
    };
    timeline.promise(
        "the platform gets it once, signed; DingTalk's repeat is acknowledged and not forwarded",
        &format!(
            "forwarded after {took}, {} time(s); repeat acknowledged: {}",
            seen(),
            again.acknowledged
        ),
        took.came() && seen() == 1 && again.acknowledged,
    );
}

async fn rename(stage: &Stage, timeline: &mut Timeline) {
    timeline.scene("The group is renamed; the older event arrives last");
    let older = stage
        .box_
        .rename(&stage.chat, "旧群名", "manager0001", Casing::Pascal);
    tokio::time::sleep(Duration::from_millis(5)).await;
    let newer = stage
        .box_
        .rename(&stage.chat, "支付值班群", "manager0001", Casing::Lower);
    for event in [newer, older] {
        stage.box_.push(&stage.daemon.callback_url(), &event).await;
    }
    stage
        .until(async |stage| stage.saw("dingtalk.chat.renamed"))
        .await;
    let title = stage.title().await.unwrap_or_default();
    timeline.promise(
        "the event's own time decides, not the order of arrival",
        &format!("the group is called {title:?}"),
        title == "支付值班群",
    );
}

async fn alert(stage: &Stage, timeline: &mut Timeline) -> Result<(), String> {
    timeline.scene("An alert for the group and for a person (and one who does not exist)");
    let content =
        json!({"markdown": {"title": "P1 disk full", "text": "### P1 disk full  \n  host db-01"}});
    let group = stage
        .send(json!({"to": {"chat": stage.chat}, "content": content, "priority": "critical"}))
        .await?;
    let person = stage
        .send(json!({"to": {"users": ["manager0002", "nobody"]}, "content": content}))
        .await?;
    let took = stage
        .until(async |stage| {
            stage.state(&group).await == "sent" && stage.state(&person).await == "sent"
        })
        .await;
    timeline.promise(
        "202 with an id, then `sent` only when DingTalk's body says so",
        &format!(
            "group {}, person {} after {took}",
            stage.state(&group).await,
            stage.state(&person).await
        ),
        took.came(),
    );
    let reply = stage
        .daemon
        .request("GET", &format!("/v1/messages/{person}"), &NULL)
        .await?
        .json();
    let outcomes = reply["receipts"][0]["recipients"].to_string();
    timeline.promise(
        "each recipient has an outcome of their own",
        &outcomes,
        outcomes.contains("\"invalid_user\"") && outcomes.contains("\"sent\""),
    );
    Ok(())
}

async fn storm(stage: &Stage, timeline: &mut Timeline) -> Result<Vec<String>, String> {
    timeline.scene("A storm: 200 alerts at once for one custom robot that takes 20 a minute");
    let started_ms = stage.clock.mono_ms();
    let mut ids = vec![];
    for number in 0..STORM {
        let priority = if number % 4 == 0 {
            "critical"
        } else {
            "normal"
        };
        ids.push(stage.send(storm_alert(number, priority)).await?);
    }
    timeline.promise(
        "all are accepted, each on disk before its 202",
        &format!(
            "{} accepted in {} ms",
            ids.len(),
            stage.clock.mono_ms() - started_ms
        ),
        ids.len() == STORM,
    );
    Ok(ids)
}

/// Alert `number`: every host fires several times, some are well again at the end.
fn storm_alert(number: usize, priority: &str) -> Value {
    let host = format!("web-{:02}", number / 4 % 15);
    let resolved = number > 160 && (number / 4).is_multiple_of(3);
    let (status, title) = if resolved {
        ("resolved", format!("恢复：{host} 响应超时"))
    } else {
        ("firing", format!("P2 {host} 响应超时"))
    };
    let text = format!("### {title}  \n  p99 {} ms，storm #{number}", 900 + number);
    json!({"to": {"robot": "robot-0"}, "content": {"markdown": {"title": title, "text": text}},
        "priority": priority, "merge_key": host, "status": status})
}

async fn token(stage: &Stage, timeline: &mut Timeline) -> Result<(), String> {
    timeline.scene("Meanwhile DingTalk forgets the access token");
    let before = stage.box_.token_fetches();
    stage.box_.expire_tokens();
    let alert = |n: usize| json!({"to": {"chat": stage.chat}, "content": {"text": {"content": format!("after the token #{n}")}}});
    let mut ids = vec![];
    for n in 0..3 {
        ids.push(stage.send(alert(n)).await?);
    }
    let took = stage
        .until(async |stage| {
            for id in &ids {
                if stage.state(id).await != "sent" {
                    return false;
                }
            }
            true
        })
        .await;
    let fetched = stage.box_.token_fetches() - before;
    timeline.promise(
        "the refusal costs one fetch and no message",
        &format!("3 alerts sent after {took} with {fetched} fetch(es)"),
        took.came() && fetched == 1,
    );
    Ok(())
}

async fn dingtalk_down(stage: &Stage, timeline: &mut Timeline) -> Result<(), String> {
    timeline.scene("DingTalk is down for two seconds");
    let down = Switches {
        down: true,
        ..Switches::default()
    };
    stage.box_.set(down);
    let body = json!({"to": {"users": ["manager0001"]}, "content": {"text": {"content": "sent while DingTalk was down"}}, "priority": "critical"});
    let id = stage.send(body).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let ready = crate::sim::post::request(
        "GET",
        &format!("{}/ready", stage.daemon.admin()),
        &[],
        String::new(),
    )
    .await?;
    let meanwhile = stage.state(&id).await;
    stage.box_.set(Switches::default());
    timeline.promise(
        "messages are accepted and wait; the daemon stays ready",
        &format!("the alert is {meanwhile}, /ready answers {}", ready.status),
        meanwhile != "dead" && ready.status == 200,
    );
    let took = stage
        .until(async |stage| stage.state(&id).await == "sent")
        .await;
    timeline.promise(
        "it goes out when DingTalk is back",
        &format!("sent {took} later"),
        took.came(),
    );
    Ok(())
}

async fn platform_down(stage: &Stage, timeline: &mut Timeline) -> Result<(), String> {
    timeline.scene("The platform is down when a person leaves the company");
    stage.platform.set(PlatformSwitches {
        status: Some(503),
        ..PlatformSwitches::default()
    });
    let event = stage.box_.user_leaves("manager0002", Casing::Pascal);
    let push = stage.box_.push(&stage.daemon.callback_url(), &event).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    stage.platform.set(PlatformSwitches::default());
    let took = stage
        .until(async |stage| stage.saw("dingtalk.user.left"))
        .await;
    timeline.promise(
        "DingTalk gets its answer at once, the platform gets the event when it is back",
        &format!(
            "acknowledged in {} ms, forwarded {took} after the platform came back",
            push.elapsed_ms
        ),
        push.acknowledged && took.came(),
    );
    Ok(())
}

async fn kill(mut stage: Stage, timeline: &mut Timeline) -> Result<Stage, String> {
    timeline.scene("kill -9, in the middle of the storm");
    let delivered = stage.box_.delivered();
    let before = delivered
        .iter()
        .filter(|one| one.text.contains("storm #"))
        .count();
    stage.daemon.kill().await;
    let started_ms = stage.clock.mono_ms();
    let daemon = Daemon::start(&stage.program, &stage.dir, &stage.config).await?;
    let took = stage.clock.mono_ms() - started_ms;
    let stage = Stage { daemon, ..stage };
    let waiting = stage.daemon.status().await?["queued"]["outbound"].to_string();
    timeline.promise(
        "it is ready again within a second and goes on where it stopped",
        &format!("{before} of {STORM} were out; ready after {took} ms with {waiting} waiting"),
        took < 1_000,
    );
    Ok(stage)
}

async fn settle(stage: &Stage, timeline: &mut Timeline, ids: &[String]) {
    timeline.scene("The storm blows over");
    let took = stage
        .until(async |stage| stage.finished_events(ids) == STORM)
        .await;
    let storm = stage.storm_in_the_chat(ids).await;
    timeline.promise(
        "every alert of the storm is in the chat, across the kill: by itself, or in a digest if it could not go out in time",
        &format!(
            "{} by themselves, {} in {} digest(s), {} missing, {} twice; {took} later",
            storm.single,
            storm.folded,
            storm.digests.len(),
            STORM - storm.single - storm.folded,
            storm.twice
        ),
        storm.single + storm.folded == STORM && storm.twice == 0 && !storm.digests.is_empty(),
    );
    if let Some(digest) = storm.digests.first() {
        timeline.show(digest);
    }
    let finished = stage.finished_events(ids);
    timeline.promise(
        "the platform was told how each of them ended",
        &format!("{finished} of {STORM} outcomes arrived"),
        finished == STORM,
    );
    let penalties = stage.box_.penalties();
    timeline.promise(
        "no limit of DingTalk was passed, not even right after the restart",
        &format!("{} penalties", penalties.len()),
        penalties.is_empty(),
    );
    let complaints = stage.box_.complaints();
    timeline.promise(
        "DingTalk found nothing to object to in any request",
        &format!("{} complaints {complaints:?}", complaints.len()),
        complaints.is_empty(),
    );
    let mismatch = match stage.daemon.status().await {
        Ok(status) => status["conservation_mismatch"].to_string(),
        Err(error) => error,
    };
    timeline.promise(
        "the books balance: accepted = ended + waiting",
        &format!("mismatch {mismatch}"),
        mismatch == "0",
    );
}

async fn stop(stage: Stage, timeline: &mut Timeline) -> Result<Stage, String> {
    timeline.scene("SIGTERM");
    let started_ms = stage.clock.mono_ms();
    let code = stage.daemon.terminate().await;
    let took_ms = stage.clock.mono_ms() - started_ms;
    timeline.promise(
        "it finishes what is under way and exits with 0",
        &format!(
            "exit code {} after {took_ms} ms",
            code.map_or("none".to_owned(), |c| c.to_string())
        ),
        code == Some(0),
    );
    // For `--keep` there must be one to keep.
    let daemon = Daemon::start(&stage.program, &stage.dir, &stage.config).await?;
    Ok(Stage { daemon, ..stage })
}
