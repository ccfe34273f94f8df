//! An alert card that two people acknowledge, the second while the platform is down.
#![expect(
    clippy::indexing_slicing,
    reason = "indexing a JSON value gives null, it does not panic"
)]

use std::time::Duration;

use serde_json::json;

use super::oncall::{self, CLICKED, THINKS_MS};
use super::stage::{LEAVER, LI, NULL, Stage, ZHANG};
use super::timeline::Timeline;
use crate::sim::daemon::{CARD_ROUTE, CARD_SECRET, CARDS_OVER_HTTP};
use crate::sim::dingtalk::{Card, CardCallback, CardRoute, Casing, Clicked};
use crate::sim::platform::PlatformSwitches;

const CARD: &str = "incident-42";
/// What a person's own data on a card says while their click is under way.
const STATE: &str = "dingd_state";

/// Tells DingTalk where clicks go.
pub(super) async fn register(stage: &mut Stage, timeline: &mut Timeline) -> Result<(), String> {
    timeline.scene("The operator sets up cards: [apps.cards], a reload, `dingd cards register`");
    let public_url = format!("public_url = \"{}\"", stage.daemon.callbacks());
    let config = stage
        .config
        .replace("tls = false", &format!("tls = false\n{public_url}"));
    stage.reload(config + CARDS_OVER_HTTP).await?;
    let (good, said) = stage.command(&["cards", "register"]).await?;
    let route = CardRoute {
        key: CARD_ROUTE.to_owned(),
        url: format!("{}/callback/oncall/cards", stage.daemon.callbacks()),
        secret: Some(CARD_SECRET.to_owned()),
    };
    timeline.promise(
        "one command tells DingTalk where clicks go, with a secret that signs them, and checks it",
        &said,
        good && stage.box_.card_routes() == [route],
    );
    Ok(())
}

/// The card appears.
pub(super) async fn send(stage: &Stage, timeline: &mut Timeline) -> Result<(), String> {
    timeline.scene("The platform sends an alert card with a button to the group");
    let body = json!({"template_id": "alert.schema", "out_track_id": CARD, "to": {"chat": stage.chat},
        "data": {"title": "P1 disk full", "host": "db-01", "status": "firing"}, "priority": "critical"});
    let id = stage.post("/v1/cards", body).await?;
    let took = stage.sent(&id).await;
    let card = stage.box_.card(CARD);
    let is_there = card.as_ref().is_some_and(|card| {
        card.callback == CardCallback::Http(CARD_ROUTE.to_owned())
            && card.spaces.iter().map(|space| &space.id).eq([&stage.chat])
    });
    timeline.promise(
        "202, then the card is in the group and its button leads to that URL",
        &format!("sent after {took}"),
        took.came() && is_there,
    );
    show(stage, timeline);
    Ok(())
}

/// The platform answers in time.
pub(super) async fn answered(stage: &Stage, timeline: &mut Timeline) {
    timeline.scene("张三 clicks on 认领 (acknowledge)");
    let clicked = click(stage, ZHANG).await;
    let card = stage.box_.card(CARD);
    let is_his = card.is_some_and(|card| {
        [ZHANG, LI].iter().all(|user| {
            card.seen_by(user)
                .get("ack_by")
                .is_some_and(|by| by == "张三")
        })
    });
    timeline.promise(
        "the platform's answer is the answer to the click, within DingTalk's 2,000 ms; everybody sees who has it",
        &format!(
            "{}, of which the platform thought for {THINKS_MS} ms: dingd and the wires added {} ms",
            told(&clicked),
            millis(&clicked).saturating_sub(THINKS_MS)
        ),
        clicked.accepted && is_his && taken(stage, ZHANG) == 1,
    );
    show(stage, timeline);
}

/// The platform is down for the second, and comes back.
pub(super) async fn platform_down(stage: &Stage, timeline: &mut Timeline) {
    timeline.scene("The platform goes down; 李四 clicks on 认领 too, and 王五 leaves the company");
    let before = stage.box_.card(CARD).map(|card| card.public);
    stage.platform.set(PlatformSwitches {
        status: Some(503),
        ..PlatformSwitches::default()
    });
    let clicked = click(stage, LI).await;
    let card = stage.box_.card(CARD);
    let who: Vec<_> = card.iter().flat_map(|card| under_way(card)).collect();
    timeline.promise(
        "李四 is not left waiting: she, and nobody else, sees at once that it is under way (处理中)",
        &told(&clicked),
        clicked.accepted && who == [LI] && card.as_ref().map(|card| &card.public) == before.as_ref(),
    );
    show(stage, timeline);
    let event = stage.box_.user_leaves(LEAVER, Casing::Pascal);
    let push = stage.box_.push(&stage.daemon.callback_url(), &event).await;
    timeline.promise(
        "what DingTalk tells meanwhile is stored and acknowledged at once",
        &format!(
            "acknowledged: {}, {} ms",
            push.acknowledged, push.elapsed_ms
        ),
        push.acknowledged && !stage.saw("dingtalk.user.left"),
    );
    tokio::time::sleep(Duration::from_millis(500)).await;

    timeline.scene("The platform is back");
    stage.platform.set(stage.oncall.clone());
    let took = stage
        .until(async |stage| taken(stage, LI) > 0 && stage.saw("dingtalk.user.left"))
        .await;
    timeline.promise(
        "it gets the click and the event that it missed, once each",
        &format!("{took} later; the click {} time(s)", taken(stage, LI)),
        took.came() && taken(stage, LI) == 1,
    );
    let took = stage
        .until(async |stage| {
            stage
                .box_
                .card(CARD)
                .is_some_and(|card| tells_the_truth(&card))
        })
        .await;
    timeline.promise(
        "its late answer is on the card, which tells the truth: 张三 was first, and nothing is under way",
        &format!("{took} later"),
        took.came(),
    );
    show(stage, timeline);
    let took = stage.until(async |stage| agrees(stage).await).await;
    timeline.promise(
        "GET /v1/cards/{id} knows what each of them sees, and that nothing waits",
        &format!("it does after {took}"),
        took.came(),
    );
}

async fn click(stage: &Stage, user: &str) -> Clicked {
    let params = json!({"action": "ack"});
    stage.box_.click(CARD, user, &["ack"], params).await
}

fn told(clicked: &Clicked) -> String {
    match &clicked.error {
        None => format!("answered after {} ms", millis(clicked)),
        Some(error) => format!("after {} ms: {error}", millis(clicked)),
    }
}

fn millis(clicked: &Clicked) -> u64 {
    u64::try_from(clicked.elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// How many clicks of a person the platform has taken.
fn taken(stage: &Stage, user: &str) -> usize {
    let events = stage.platform.events();
    let clicks = events
        .iter()
        .filter(|event| event.kind == CLICKED && event.valid.is_ok());
    clicks
        .filter(|event| event.body["data"]["user"] == user)
        .count()
}

/// Who sees that their click is under way.
fn under_way(card: &Card) -> Vec<&str> {
    let pending = card
        .private
        .iter()
        .filter(|(_, own)| own.get(STATE).is_some_and(|it| !it.is_empty()));
    pending.map(|(user, _)| user.as_str()).collect()
}

fn tells_the_truth(card: &Card) -> bool {
    let says = |user: &str, name: &str, value: &str| {
        card.seen_by(user).get(name).is_some_and(|it| it == value)
    };
    let notes = [(ZHANG, "归你处理"), (LI, "张三 比你先")];
    let is_true = |(user, note)| says(user, "ack_by", "张三") && says(user, "note", note);
    notes.into_iter().all(is_true) && under_way(card).is_empty()
}

/// Whether the daemon and DingTalk say the same of the card, and nothing waits.
async fn agrees(stage: &Stage) -> bool {
    let path = format!("/v1/cards/{CARD}");
    let Ok(reply) = stage.daemon.request("GET", &path, &NULL).await else {
        return false;
    };
    let ours = reply.json();
    stage.box_.card(CARD).is_some_and(|theirs| {
        ours["data"] == json!(theirs.public)
            && ours["private_data"] == json!(theirs.private)
            && ours["waiting"].is_null()
    })
}

/// The card as its template would show it to each of the two.
fn show(stage: &Stage, timeline: &Timeline) {
    let Some(card) = stage.box_.card(CARD) else {
        return;
    };
    for user in [ZHANG, LI] {
        let seen = card.seen_by(user);
        let value = |name: &str| seen.get(name).cloned().unwrap_or_default();
        let mut parts = vec![format!("{} {}", value("title"), value("host"))];
        parts.push(match &*value("status") {
            "acked" => format!("{} 已认领", value("ack_by")),
            _ => "告警中 [认领]".to_owned(),
        });
        parts.push(value("note"));
        parts.push(if value(STATE).is_empty() {
            String::new()
        } else {
            "处理中…".to_owned()
        });
        parts.retain(|part| !part.is_empty());
        timeline.show(&format!(
            "{} sees: {}",
            oncall::name(user),
            parts.join(" · ")
        ));
    }
}
