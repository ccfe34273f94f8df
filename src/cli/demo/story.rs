//! The story: each scene does something to the daemon and holds it to what it promises.
#![expect(
    clippy::indexing_slicing,
    reason = "indexing a JSON value gives null, it does not panic"
)]

use serde_json::json;

use super::stage::{NULL, Stage};
use super::timeline::Timeline;
use super::{cards, groups, robot, storm, stream, trouble};
use crate::sim::daemon::Daemon;

/// Tells the whole story.
pub(super) async fn tell(mut stage: Stage, timeline: &mut Timeline) -> Result<Stage, String> {
    groups::subscribe(&stage, timeline).await;
    groups::install(&stage, timeline).await;
    groups::rename(&stage, timeline).await;
    alert(&stage, timeline).await?;
    let ids = storm::breaks_out(&stage, timeline).await?;
    stage = trouble::kill(stage, timeline).await?;
    trouble::token(&stage, timeline).await?;
    trouble::dingtalk_down(&stage, timeline).await?;
    cards::register(&mut stage, timeline).await?;
    cards::send(&stage, timeline).await?;
    cards::answered(&stage, timeline).await;
    cards::platform_down(&stage, timeline).await;
    robot::asked(&stage, timeline).await;
    robot::told_later(&stage, timeline).await?;
    stream::moves_and_is_cut(&mut stage, timeline).await?;
    stream::taken_leave_of(&stage, timeline).await?;
    storm::settles(&stage, timeline, &ids).await;
    stop(stage, timeline).await
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
