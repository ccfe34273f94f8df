//! Somebody asks the robot, is answered at once, and told more later.
#![expect(
    clippy::indexing_slicing,
    reason = "indexing a JSON value gives null, it does not panic"
)]

use serde_json::{Value, json};

use super::oncall::{ASKED, THINKS_MS};
use super::stage::{LI, Stage};
use super::timeline::Timeline;
use crate::sim::dingtalk::{Delivered, Via};

const LATER: &str = "db-01 已扩容，P1 disk full 恢复";

/// What the platform answers comes back in the answer to the question.
pub(super) async fn asked(stage: &Stage, timeline: &mut Timeline) {
    timeline.scene("The console points the robot at dingd; 李四 asks it in the group");
    let url = format!("{}/callback/oncall/robot", stage.daemon.callbacks());
    stage.box_.set_robot_url(Some(&url));
    let said = stage.box_.say(&stage.chat, LI, "status?").await;
    timeline.show("李四: @值班机器人 status?");
    let answer = spoken(stage, Via::Answer);
    for one in &answer {
        timeline.show(&format!("值班机器人: {}", one.text));
    }
    let is_answer =
        matches!(&*answer, [one] if one.target == stage.chat && one.text.contains("张三 已认领"));
    timeline.promise(
        "the platform's answer is the robot's answer, in the same exchange",
        &format!(
            "answered after {} ms, of which the platform thought for {THINKS_MS} ms{}",
            said.elapsed.as_millis(),
            said.error
                .map_or_else(String::new, |error| format!(": {error}"))
        ),
        said.acknowledged && said.replied && is_answer,
    );
}

/// The platform says more when it knows more.
pub(super) async fn told_later(stage: &Stage, timeline: &mut Timeline) -> Result<(), String> {
    timeline.scene(
        "Later the platform knows more: POST /v1/replies with the `reply_to` of the question",
    );
    let body = json!({"reply_to": reply_to(stage), "content": {"text": {"content": LATER}}});
    let id = stage.post("/v1/replies", body).await?;
    let took = stage.sent(&id).await;
    let reply = spoken(stage, Via::Session);
    for one in &reply {
        timeline.show(&format!("值班机器人: {}", one.text));
    }
    timeline.promise(
        "it reaches the conversation of the question, by the address that came with it",
        &format!("sent after {took}"),
        took.came() && matches!(&*reply, [one] if one.target == stage.chat && one.text == LATER),
    );
    Ok(())
}

fn reply_to(stage: &Stage) -> Value {
    let mut events = stage.platform.events().into_iter();
    let question = events.find(|event| event.kind == ASKED && event.valid.is_ok());
    question.map_or(Value::Null, |event| event.body["data"]["reply_to"].clone())
}

fn spoken(stage: &Stage, via: Via) -> Vec<Delivered> {
    let mut delivered = stage.box_.delivered();
    delivered.retain(|one| one.via == via);
    delivered
}
