//! DingTalk tells of groups: the event URL is checked, the cool app comes, a name changes.

use std::time::Duration;

use super::stage::Stage;
use super::timeline::Timeline;
use crate::sim::dingtalk::{Callback, Casing};

pub(super) async fn subscribe(stage: &Stage, timeline: &mut Timeline) {
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
    let forged = Callback {
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

pub(super) async fn install(stage: &Stage, timeline: &mut Timeline) {
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

pub(super) async fn rename(stage: &Stage, timeline: &mut Timeline) {
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
