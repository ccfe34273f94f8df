//! 200 alerts at once for a robot that takes 20 a minute, and where each of them ends.
#![expect(
    clippy::indexing_slicing,
    reason = "indexing a JSON value gives null, it does not panic"
)]

use std::collections::HashSet;

use serde_json::{Value, json};

use super::stage::{NULL, Stage};
use super::timeline::Timeline;
use crate::sim::dingtalk::Via;

pub(super) const STORM: usize = 200;

/// How the alerts of the storm arrived.
#[derive(Default)]
struct Storm {
    single: usize,
    folded: usize,
    twice: usize,
    digests: Vec<String>,
}

pub(super) async fn breaks_out(
    stage: &Stage,
    timeline: &mut Timeline,
) -> Result<Vec<String>, String> {
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

pub(super) async fn settles(stage: &Stage, timeline: &mut Timeline, ids: &[String]) {
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

impl Stage {
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
