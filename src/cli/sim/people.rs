//! People who talk to the robot and click on cards, and the Stream connections that carry it.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::control::Control;
use crate::sim::dingtalk::{Click, Gateway, Said, Signed, Speech};

/// For longer nobody waits at the door; the box goes on sending.
const PATIENCE: Duration = Duration::from_secs(5);

/// Somebody says something.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Say {
    text: String,
    user: Option<String>,
    chat: Option<String>,
    #[serde(default)]
    alone: bool,
    url: Option<String>,
}

/// Somebody clicks.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Clicking {
    card: String,
    user: Option<String>,
    #[serde(default)]
    actions: Vec<String>,
    #[serde(default)]
    params: serde_json::Map<String, Value>,
}

/// Trouble for every connection.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Trouble {
    #[serde(rename = "do")]
    what: What,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum What {
    Cut,
    Silence,
    Disconnect,
}

/// The person who is meant when none is named.
fn person(named: Option<String>) -> String {
    named.unwrap_or_else(|| "manager0001".to_owned())
}

impl Control {
    pub(super) async fn say(&self, words: Say) -> Value {
        let user = person(words.user);
        let chat = words.chat.as_deref().unwrap_or(&self.chat);
        let speech = if words.alone {
            Speech::alone(&user, &words.text)
        } else {
            Speech::in_group(chat, &user, &words.text)
        };
        let body = self.box_.worded(&speech);
        if words.url.is_none() {
            let gateway = self.box_.gateway();
            let id = gateway.send_robot_message(&body);
            return outcome(&gateway, &id).await;
        }
        self.box_.set_robot_url(words.url.as_deref());
        said(&self.box_.pass_on(&body, Signed::Rightly).await)
    }

    pub(super) async fn click(&self, click: Clicking) -> Value {
        let user = person(click.user);
        let mut clicking = Click::new(&click.card, &user, &[], Value::Object(click.params));
        clicking.action_ids = click.actions;
        let clicked = self.box_.click_with(&clicking).await;
        json!({
            "way": clicked.way.map(|way| format!("{way:?}")),
            "status": clicked.status,
            "accepted": clicked.accepted,
            "elapsed_ms": clicked.elapsed.as_millis(),
            "answer": clicked.body,
            "error": clicked.error,
        })
    }

    pub(super) async fn push_by_stream(&self, event: &str) -> Value {
        let gateway = self.box_.gateway();
        let id = gateway.send_event(event);
        outcome(&gateway, &id).await
    }

    pub(super) fn stream(&self, trouble: &Trouble) -> Value {
        let gateway = self.box_.gateway();
        let connections = match trouble.what {
            What::Cut => gateway.cut(),
            What::Silence => gateway.silence(),
            What::Disconnect => gateway.disconnect("persistent connection is timeout"),
        };
        json!({"connections": connections})
    }
}

async fn outcome(gateway: &Gateway, id: &str) -> Value {
    let settled = tokio::time::timeout(PATIENCE, gateway.settled(id)).await;
    match settled {
        Ok(outcome) => json!({
            "message_id": id,
            "settled": format!("{:?}", outcome.settled),
            "tries": outcome.tries,
            "elapsed_ms": outcome.elapsed.as_millis(),
            "code": outcome.ack.as_ref().map(|ack| ack.code),
            "data": outcome.ack.as_ref().map(|ack| &ack.data),
        }),
        Err(_) => json!({"message_id": id, "settled": null}),
    }
}

fn said(said: &Said) -> Value {
    json!({
        "status": said.status,
        "acknowledged": said.acknowledged,
        "elapsed_ms": said.elapsed.as_millis(),
        "replied": said.replied,
        "answer": said.answer,
        "error": said.error,
    })
}
