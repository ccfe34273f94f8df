//! What the platform does of its own accord: whoever acknowledges first has the alert.
#![expect(
    clippy::indexing_slicing,
    reason = "indexing a JSON value gives null, it does not panic"
)]

use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::stage::{LI, ZHANG};
use crate::sim::platform::{PlatformSwitches, Reaction, Reflex};

pub(super) const ASKED: &str = "dingtalk.robot.message";
pub(super) const CLICKED: &str = "dingtalk.card.clicked";
/// How long it thinks about a click or a question.
pub(super) const THINKS_MS: u64 = 200;

/// The platform when it is up. What it knows outlives its being down.
pub(super) fn rules() -> PlatformSwitches {
    let owner = Mutex::new(None::<String>);
    let reflex = Reflex::new(move |event| {
        let mut owner = owner.lock().unwrap_or_else(PoisonError::into_inner);
        let body = match event["type"].as_str() {
            Some(CLICKED) => acknowledged(&mut owner, event),
            Some(ASKED) => asked(owner.as_deref(), event),
            _ => return None,
        };
        Some(Reaction {
            slow_ms: THINKS_MS,
            ..Reaction::now(body)
        })
    });
    PlatformSwitches {
        reflex: Some(reflex),
        ..PlatformSwitches::default()
    }
}

fn acknowledged(owner: &mut Option<String>, event: &Value) -> Value {
    let who = name(event["data"]["user"].as_str().unwrap_or_default()).to_owned();
    let first = owner.get_or_insert_with(|| who.clone());
    let note = if *first == who {
        "归你处理".to_owned()
    } else {
        format!("{first} 比你先")
    };
    json!({"card": {"data": {"status": "acked", "ack_by": first}, "private_data": {"note": note}}})
}

fn asked(owner: Option<&str>, event: &Value) -> Value {
    let whom = event["data"]["user_nick"].as_str().unwrap_or_default();
    let state = owner.map_or_else(|| "无人认领".to_owned(), |owner| format!("{owner} 已认领"));
    json!({"reply": {"text": {"content": format!("{whom}：1 个告警，P1 disk full db-01（{state}）")}}})
}

/// Whom the platform knows under a userid.
pub(super) fn name(userid: &str) -> &str {
    match userid {
        ZHANG => "张三",
        LI => "李四",
        other => other,
    }
}
