//! From HTTP to Stream while events come in; the link is cut, and another is taken leave of.
#![expect(
    clippy::indexing_slicing,
    reason = "indexing a JSON value gives null, it does not panic"
)]

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use super::stage::{SCALE, Stage, Took};
use super::timeline::Timeline;
use crate::sim::dingtalk::{Connection, Gateway, Settled, Why};

const KIND: &str = "dingtalk.event.bpms_instance_change";
/// They come in handfuls.
const AT_ONCE: u64 = 20;
const APART: Duration = Duration::from_millis(80);
/// Pushed to the URL; the last of them come over Stream as well.
const OVER_HTTP: Range<u64> = 0..100;
const OVER_STREAM: Range<u64> = 80..300;
const CUT_AT: u64 = 219;
const GOODBYE: Range<u64> = 300..400;
const GOODBYE_AT: u64 = 350;
const UNCONNECTED: &str = r#"dingd_stream_unconnected_seconds_total{app="oncall"}"#;

/// The app gets its Stream connection and the link is cut in the middle of a burst.
pub(super) async fn moves_and_is_cut(
    stage: &mut Stage,
    timeline: &mut Timeline,
) -> Result<(), String> {
    timeline.scene("300 events begin to come in, over HTTP; the operator sets [apps.stream] enabled = true and reloads");
    let (box_, url) = (stage.box_.clone(), stage.daemon.callback_url());
    let gateway = stage.box_.gateway();
    let streaming = format!(
        "[apps.stream]\nenabled = true\nretry_min_s = {:?}\nretry_max_s = {:?}\n[apps.callback]",
        1.0 / f64::from(SCALE),
        60.0 / f64::from(SCALE)
    );
    let streaming = stage.config.replace("[apps.callback]", &streaming);
    let over_http = async {
        let mut acknowledged = 0;
        for number in OVER_HTTP {
            let push = box_.push(&url, &event(number)).await;
            acknowledged += u64::from(push.acknowledged);
            tokio::time::sleep(APART / 20).await;
        }
        acknowledged
    };
    let (acknowledged, reloaded) = tokio::join!(over_http, stage.reload(streaming));
    reloaded?;
    let up = stage.until(async |_| gateway.live() > 0).await;
    timeline.promise(
        "a Stream connection comes up; the URL goes on to answer",
        &format!(
            "Stream connections: {}; {acknowledged} of {} pushes acknowledged",
            gateway.live(),
            count(&OVER_HTTP)
        ),
        up.came() && acknowledged == count(&OVER_HTTP),
    );

    timeline.scene("DingTalk goes over to Stream, repeating the last 20; the link is cut in the middle of the burst");
    let mut ids = vec![];
    let mut lost = 0;
    for number in OVER_STREAM {
        ids.push(gateway.send_event(&event(number)));
        if number == CUT_AT {
            on_their_way(&gateway, ids.len()).await;
            lost = gateway.pending();
            gateway.cut();
        } else if number % AT_ONCE == 0 {
            tokio::time::sleep(APART).await;
        }
    }
    let sent = settled(stage, &gateway, &ids).await;
    let taken = taken(stage, OVER_STREAM.end).await;
    timeline.promise(
        "what was not acknowledged comes again over the next connection: every event reaches the platform exactly once",
        &format!(
            "{lost} events were under way at the cut, {} were sent again; {taken}",
            sent.again
        ),
        sent.held() && taken.held(),
    );
    Ok(())
}

/// DingTalk announces that it will close the connection.
pub(super) async fn taken_leave_of(stage: &Stage, timeline: &mut Timeline) -> Result<(), String> {
    timeline.scene("The gateway announces the end of the connection, in another burst");
    let gateway = stage.box_.gateway();
    let before = (gateway.unconnected_ms(), stage.metric(UNCONNECTED).await?);
    let mut ids = vec![];
    let mut told = 0;
    for number in GOODBYE {
        ids.push(gateway.send_event(&event(number)));
        if number == GOODBYE_AT {
            told = gateway.disconnect("connection is expired");
        } else if number % AT_ONCE == 0 {
            tokio::time::sleep(APART).await;
        }
    }
    let sent = settled(stage, &gateway, &ids).await;
    let taken = taken(stage, GOODBYE.end).await;
    let old_is_closed = async |_: &Stage| {
        gateway
            .connections()
            .iter()
            .rev()
            .skip(1)
            .all(|one| one.closed_ms.is_some())
    };
    let closed = stage.until(old_is_closed).await.came() && told == 1;
    let without_ms = gateway.unconnected_ms() - before.0;
    let without_s = stage.metric(UNCONNECTED).await? - before.1;
    timeline.promise(
        "the next connection is up before the old one is left: no moment without one, every event exactly once",
        &format!("{without_ms} ms without a connection as DingTalk saw it, {without_s:.3} s as dingd did; {taken}"),
        closed && without_ms == 0 && without_s <= 0.0 && sent.held() && taken.held(),
    );
    for (number, connection) in gateway.connections().iter().enumerate() {
        timeline.show(&history(number + 1, connection));
    }
    Ok(())
}

/// What became of what was sent over Stream.
struct Sent {
    count: usize,
    done: usize,
    again: usize,
}

/// How often the platform took each event of a range.
struct Taken {
    took: Took,
    count: usize,
    missing: usize,
    twice: usize,
}

impl Sent {
    fn held(&self) -> bool {
        self.done == self.count
    }
}

impl Taken {
    fn held(&self) -> bool {
        self.took.came() && self.missing + self.twice == 0
    }
}

impl std::fmt::Display for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let once = self.count - self.missing - self.twice;
        let Self { missing, twice, .. } = self;
        write!(
            f,
            "the platform has {once} once, {missing} never, {twice} twice"
        )
    }
}

fn event(number: u64) -> String {
    format!(
        r#"{{"EventType":"bpms_instance_change","eventId":"demo{number:028}","number":{number}}}"#
    )
}

fn count(range: &Range<u64>) -> u64 {
    range.end - range.start
}

/// Waits a moment until so many frames have been sent for the first time, acknowledged or not.
async fn on_their_way(gateway: &Gateway, count: usize) {
    let sent = async {
        while gateway.sent().len() < count {
            tokio::task::yield_now().await;
        }
    };
    // They are cut off all the same.
    drop(tokio::time::timeout(APART, sent).await);
}

/// Waits until DingTalk has nothing left to send again.
async fn settled(stage: &Stage, gateway: &Gateway, ids: &[String]) -> Sent {
    stage.until(async |_| gateway.pending() == 0).await;
    let mut outcomes = gateway.outcomes();
    outcomes.retain(|outcome| ids.contains(&outcome.message_id));
    let done = outcomes
        .iter()
        .filter(|outcome| outcome.settled == Settled::Done);
    Sent {
        count: ids.len(),
        done: done.count(),
        again: outcomes.iter().filter(|outcome| outcome.tries > 1).count(),
    }
}

/// Waits until the platform has each event below `end`.
async fn taken(stage: &Stage, end: u64) -> Taken {
    let times = || {
        let mut times: BTreeMap<u64, usize> = (0..end).map(|number| (number, 0)).collect();
        let events = stage.platform.events().into_iter();
        for one in events.filter(|one| one.kind == KIND && one.valid.is_ok()) {
            let number = one.body["data"]["raw"]["number"].as_u64();
            *times.entry(number.unwrap_or(u64::MAX)).or_default() += 1;
        }
        times
    };
    let took = stage
        .until(async |_| times().values().all(|times| *times > 0))
        .await;
    let times = times();
    let number = |fits: fn(usize) -> bool| times.values().filter(|times| fits(**times)).count();
    Taken {
        took,
        count: times.len(),
        missing: number(|times| times == 0),
        twice: number(|times| times > 1),
    }
}

/// The life of a connection in a line.
fn history(number: usize, connection: &Connection) -> String {
    let at = |ms: u64| format!("{}.{:03} s", ms / 1_000, ms % 1_000);
    let mut life = format!("connection {number}: up at {}", at(connection.opened_ms));
    if let (Some(why), Some(left_ms)) = (&connection.why, connection.left_ms) {
        let how = match why {
            Why::Cut => "cut",
            Why::Disconnect(_) => "told to go",
            _ => "ended",
        };
        life.push_str(&format!(", {how} at {}", at(left_ms)));
    }
    if let Some(closed_ms) = connection.closed_ms {
        life.push_str(&format!(", closed at {}", at(closed_ms)));
    }
    format!("{life}; {} frames", connection.frames)
}
