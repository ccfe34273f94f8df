//! The storm that the end-to-end test and the bench are about: alerts for five groups and three robots.

use dingd::sim::dingtalk::{Group, Robot, Settings};
use serde_json::{Value, json};

pub(crate) const TARGETS: usize = 8;
/// Windows and penalties are divided by this.
pub(crate) const SCALE: f64 = 20.0;
const HOSTS: usize = 40;

pub(crate) fn settings() -> Settings {
    let groups = (0..5).map(|n| Group {
        open_conversation_id: format!("cidStorm{n}+on/Call7x5EeiodoA=="),
        title: format!("值班群 {n}"),
        cool_app_installed: true,
        disbanded: false,
    });
    let robots = (0..3).map(|n| Robot {
        access_token: format!("{n:064}"),
        secret: None,
        keyword: None,
    });
    Settings {
        groups: groups.collect(),
        robots: robots.collect(),
        time_scale: SCALE,
        ..Settings::default()
    }
}

/// One of 25 for each target.
pub(crate) fn is_critical(number: usize) -> bool {
    (number / TARGETS).is_multiple_of(25)
}

/// Title and text of alert `number`.
pub(crate) fn text(number: usize) -> (String, String) {
    let title = format!("P2 web-{:02} 响应超时", number / TARGETS % HOSTS);
    let text = format!("### {title}  \n  p99 {number} ms，storm #{number}#");
    (title, text)
}

/// The number of the alert that a text is of.
pub(crate) fn number(text: &str) -> Option<usize> {
    text.rsplit('#').nth(1)?.parse().ok()
}

/// Alert `number` as a platform sends it.
pub(crate) fn alert(settings: &Settings, number: usize) -> Value {
    let target = number % TARGETS;
    let to = match settings.groups.get(target) {
        Some(group) => json!({"chat": group.open_conversation_id}),
        None => json!({"robot": format!("robot-{}", target - settings.groups.len())}),
    };
    let (title, text) = text(number);
    let priority = if is_critical(number) {
        "critical"
    } else {
        "normal"
    };
    json!({"to": to, "content": {"markdown": {"title": title, "text": text}},
        "priority": priority, "status": "firing",
        "merge_key": format!("web-{:02}", number / TARGETS % HOSTS)})
}
