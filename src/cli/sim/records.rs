//! What happened, as JSON.

use serde_json::{Value, json};

use super::control::Control;
use crate::sim::dingtalk::{Card, CardCallback, Connection};

impl Control {
    /// The records of one kind, or nothing when there is no such kind.
    pub(super) fn records(&self, path: &str) -> Option<Value> {
        let box_ = &self.box_;
        let gateway = box_.gateway();
        Some(match path {
            "/delivered" => box_.delivered().iter().map(|d| json!({"at_ms": d.at_ms, "via": format!("{:?}", d.via), "target": d.target, "kind": d.kind, "text": d.text, "body": d.body, "msg_uuid": d.msg_uuid, "handle": d.handle})).collect(),
            "/requests" => box_.requests().iter().map(|r| json!({"at_ms": r.at_ms, "method": r.method, "path": r.path, "status": r.status, "code": r.code, "body": r.body})).collect(),
            "/penalties" => box_.penalties().iter().map(|p| json!({"at_ms": p.at_ms, "kind": p.kind, "key": p.key})).collect(),
            "/complaints" => json!(box_.complaints()),
            "/events" => self.platform.attempts().iter().map(|e| json!({"at_ms": e.at_ms, "id": e.id, "type": e.kind, "valid": e.valid, "answered": e.answered, "body": e.body})).collect(),
            "/cards" => box_.cards().iter().map(card).collect(),
            "/routes" => box_.card_routes().iter().map(|r| json!({"key": r.key, "url": r.url, "signed": r.secret.is_some()})).collect(),
            "/connections" => gateway.connections().iter().map(connection).collect(),
            "/frames" => gateway.sent().iter().map(|f| json!({"at_ms": f.at_ms, "connection": f.connection, "message_id": f.message_id, "topic": f.topic})).collect(),
            "/acks" => gateway.acks().iter().map(|a| json!({"at_ms": a.at_ms, "connection": a.connection, "message_id": a.message_id, "topic": a.topic, "code": a.code, "data": a.data, "done": a.done})).collect(),
            _ => return None,
        })
    }
}

fn card(card: &Card) -> Value {
    let callback = match &card.callback {
        CardCallback::None => "none",
        CardCallback::Stream => "STREAM",
        CardCallback::Http(_) => "HTTP",
    };
    json!({
        "out_track_id": card.out_track_id,
        "template": card.template,
        "callback": callback,
        "spaces": card.spaces.iter().map(|space| format!("{}.{}", space.kind, space.id)).collect::<Vec<_>>(),
        "data": card.public,
        "private_data": card.private,
        "states": card.history.len(),
    })
}

fn connection(one: &Connection) -> Value {
    json!({
        "id": one.id,
        "opened_ms": one.opened_ms,
        "left_ms": one.left_ms,
        "closed_ms": one.closed_ms,
        "why": one.why.as_ref().map(|why| format!("{why:?}")),
        "frames": one.frames,
    })
}
