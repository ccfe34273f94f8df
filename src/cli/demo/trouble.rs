//! What goes wrong beside the storm: `kill -9`, a dead token, DingTalk down.
#![expect(
    clippy::indexing_slicing,
    reason = "indexing a JSON value gives null, it does not panic"
)]

use std::time::Duration;

use serde_json::json;

use super::stage::Stage;
use super::storm::STORM;
use super::timeline::Timeline;
use crate::sim::daemon::Daemon;
use crate::sim::dingtalk::Switches;
use crate::sim::post;

pub(super) async fn kill(mut stage: Stage, timeline: &mut Timeline) -> Result<Stage, String> {
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

pub(super) async fn token(stage: &Stage, timeline: &mut Timeline) -> Result<(), String> {
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

pub(super) async fn dingtalk_down(stage: &Stage, timeline: &mut Timeline) -> Result<(), String> {
    timeline.scene("DingTalk is down for two seconds");
    let down = Switches {
        down: true,
        ..Switches::default()
    };
    stage.box_.set(down);
    let body = json!({"to": {"users": ["manager0001"]}, "content": {"text": {"content": "sent while DingTalk was down"}}, "priority": "critical"});
    let id = stage.send(body).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let ready = post::request(
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
