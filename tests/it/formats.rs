//! What a released version wrote is read for ever: the rows of a real store, kept as a file.
//!
//! `DINGD_WRITE_ROWS=<file>` makes such a file; a release adds one and never changes an old one.

use std::path::Path;

use dingd::journal::{Batch, Journal, Order, Table};
use dingd::sim::daemon::Daemon;
use dingd::sim::dingtalk::{Switches, Wrong};
use serde_json::{Value, json};

use crate::support::{
    Stage, fast, free, long, other_event, program, reload, robot, text_to, until,
};

const RENAMED: &str = r#"{"EventType":"chat_update_title","eventId":"e-rename","timeStamp":1760000000100,"title":"值班告警群","openConversationId":"cidAb+cd/Ef==","operator":"manager0001"}"#;

#[tokio::test]
async fn a_store_of_version_1_is_read() {
    let stage = Stage::open().await;
    let stage = stage
        .again(async |daemon, dir| {
            daemon.terminate().await;
            fill(dir, include_str!("../vectors/rows-v1.json"), "1").await;
        })
        .await;
    everything_is_there(&stage, 3).await;
    let month = stage.get("/v1/quota").await.json();
    let used = &month["organisations"][0]["api_calls"]["used"];
    assert_eq!(used, 0, "nobody counted: {month}");
    let state = Daemon::state_dir(stage.dir.path());
    let announced = std::fs::read_to_string(state.join(FORMAT_FILE)).unwrap();
    assert_eq!(announced, "3\n", "an older release refuses it");
    stage.close().await;
}

#[tokio::test]
async fn a_store_of_version_2_is_read() {
    let stage = Stage::open().await;
    let stage = stage
        .again(async |daemon, dir| {
            daemon.terminate().await;
            fill(dir, include_str!("../vectors/rows-v2.json"), "2").await;
            let journal = Journal::open(&Daemon::state_dir(dir)).unwrap();
            let rows = journal.check().unwrap().tables;
            let ledger = rows.iter().find(|rows| rows.table == "ledger").unwrap();
            assert!(ledger.rows > 0 && ledger.damaged == 0, "{ledger:?}");
            free(journal, &Daemon::state_dir(dir)).await;
        })
        .await;
    everything_is_there(&stage, 3).await;
    stage.close().await;
}

#[tokio::test]
async fn a_store_of_version_3_is_read() {
    if let Some(file) = std::env::var_os("DINGD_WRITE_ROWS") {
        std::fs::write(file, write_rows().await).unwrap();
    }
    // Whether they have expired by now or not, nothing becomes a digest.
    let edit = |config| format!("{config}[outbound.digest]\nenabled = false\n");
    let stage = Stage::with(fast(), edit).await;
    let box_ = stage.box_.clone();
    let stage = stage
        .again(async |daemon, dir| {
            daemon.terminate().await;
            fill(dir, include_str!("../vectors/rows-v3.json"), "3").await;
            // Nothing is to leave before it was looked at.
            box_.set(Switches {
                refuse: true,
                ..Switches::default()
            });
        })
        .await;
    let card = stage.get("/v1/cards/inc-kept").await.json();
    assert_eq!(card["state"], "created", "{card}");
    assert_eq!(card["data"], json!({"title": "kept", "n": "1"}), "{card}");
    assert_eq!(card["waiting"]["data"], json!({"n": "1"}), "{card}");
    stage.box_.set(Switches::default());
    everything_is_there(&stage, 6).await;
    stage.close().await;
}

/// Logs were twice as long once. One of any other length has been cut or is none.
#[tokio::test]
async fn a_log_keeps_the_length_that_it_was_made_with() {
    let stage = Stage::open().await;
    let log = Daemon::state_dir(stage.dir.path()).join("journal.log");
    let made = std::fs::metadata(&log).unwrap().len();
    let set_len = |len| {
        let file = std::fs::File::options().write(true).open(&log).unwrap();
        file.set_len(len).unwrap();
    };
    let stage = stage
        .again(async |daemon, dir| {
            daemon.terminate().await;
            set_len(made - 4_096);
            let config = std::fs::read_to_string(dir.join("config.toml")).unwrap();
            let refused = Daemon::start_with(program(), dir, &config, &[]).await;
            let refused = format!("{:?}", refused.unwrap_err());
            assert!(refused.contains("journal.log"), "{refused}");
            set_len(2 * made);
        })
        .await;
    stage.box_.set(Switches {
        down: true,
        ..Switches::default()
    });
    let id = stage.send(&text_to(&robot(), "kept")).await;
    let stage = stage.crash().await;
    assert_eq!(std::fs::metadata(&log).unwrap().len(), 2 * made);
    stage.box_.set(Switches::default());
    stage.reaches(&id, "sent").await;
    stage.close().await;
}

/// Killed at any moment, the store is of one version or the other; either way it opens here, and an older
/// release leaves it alone from the first moment on.
#[tokio::test]
async fn taking_an_older_store_over_may_be_killed_anywhere() {
    let (v1, v2) = (
        include_str!("../vectors/rows-v1.json"),
        include_str!("../vectors/rows-v2.json"),
    );
    let ways = [
        ("migrate.before:1", v1, "1"),
        ("migrate.after:1", v1, "1"),
        ("migrate.before:1", v2, "2"),
        ("migrate.after:1", v2, "2"),
    ];
    let rounds = if long() { 20 } else { 1 };
    for (point, rows, version) in std::iter::repeat_n(ways, rounds).flatten() {
        let stage = Stage::open().await;
        let stage = stage
            .again(async |daemon, dir| {
                daemon.terminate().await;
                fill(dir, rows, version).await;
                let config = std::fs::read_to_string(dir.join("config.toml")).unwrap();
                let env = [("DINGD_DIE_AT", point)];
                let died = Daemon::start_with(program(), dir, &config, &env).await;
                let died = died.err().unwrap_or_default();
                assert!(died.contains("signal: 9"), "{point}: {died}");
                let announced = std::fs::read_to_string(Daemon::state_dir(dir).join(FORMAT_FILE));
                assert_eq!(announced.unwrap(), "3\n", "before the tables change");
            })
            .await;
        everything_is_there(&stage, 3).await;
        stage.close().await;
    }
}

#[tokio::test]
async fn a_backup_of_version_1_is_restored() {
    let stage = Stage::open().await;
    let stage = stage
        .again(async |daemon, dir| {
            daemon.terminate().await;
            fill(dir, include_str!("../vectors/rows-v1.json"), "1").await;
            let state = Daemon::state_dir(dir);
            let copy = dir.join("copy");
            std::fs::rename(state.join("journal.redb"), &copy).unwrap();
            let restored = dingd::journal::copy::restore(&state, &copy).unwrap();
            assert_eq!(restored.damaged(), 0);
        })
        .await;
    everything_is_there(&stage, 3).await;
    stage.close().await;
}

const FORMAT_FILE: &str = "journal.format";

/// Puts rows into a store, which is of the version that they say, and so is the file beside it.
async fn fill(dir: &Path, rows: &str, version: &str) {
    let state = Daemon::state_dir(dir);
    let rows: Value = serde_json::from_str(rows).unwrap();
    let journal = Journal::open(&state).unwrap();
    let mut batch = Batch::default();
    for row in rows.as_array().unwrap() {
        let name = row["table"].as_str().unwrap();
        let table = Table::ALL.into_iter().find(|t| t.name() == name).unwrap();
        let bytes = |member: &str| unhex(row[member].as_str().unwrap());
        batch.put(table, bytes("key"), bytes("value"));
    }
    journal.commit(batch).await.unwrap();
    assert_eq!(journal.check().unwrap().damaged(), 0);
    free(journal, &state).await;
    std::fs::write(state.join(FORMAT_FILE), format!("{version}\n")).unwrap();
}

async fn everything_is_there(stage: &Stage, messages: usize) {
    let page = stage.get("/v1/messages").await.json();
    let states: Vec<_> = page["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| message["state"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(states.len(), messages, "{page}");
    assert!(states.contains(&"dead".to_owned()), "{page}");
    let chat = stage.get("/v1/chats/cidAb%2Bcd%2FEf%3D%3D").await.json();
    assert_eq!(chat["title"], "值班告警群", "{chat}");
    assert!(
        stage.push(&other_event(1)).await.acknowledged && stage.push(RENAMED).await.acknowledged
    );
    let again = [("idempotency-key", "kept")];
    let reply = stage
        .daemon
        .request_with("POST", "/v1/messages", &again, &text_to(&robot(), "keyed"))
        .await
        .unwrap();
    assert_eq!(
        reply.header("idempotency-replayed"),
        Some("true"),
        "{}",
        reply.body
    );
    // What waited in the old store goes on; by now it is too old to be sent.
    until("nothing waits any more", async || {
        let page = stage.get("/v1/messages").await.json();
        let messages = page["messages"].as_array().unwrap().clone();
        messages
            .iter()
            .all(|m| !["queued", "sending", "retrying"].contains(&m["state"].as_str().unwrap()))
    })
    .await;
}

/// One of each: sent, dead and waiting messages, a key, events, settled ones, a chat, charges, a pause, a card that is to be
/// changed.
async fn write_rows() -> String {
    let stage = Stage::open().await;
    let sent = stage
        .send(&text_to(&json!({"users": ["manager0001"]}), "sent"))
        .await;
    stage.reaches(&sent, "sent").await;
    let dead = stage
        .send(&text_to(&json!({"accounts": ["a"]}), "dead"))
        .await;
    stage.reaches(&dead, "dead").await;
    assert!(stage.push(&other_event(1)).await.acknowledged);
    assert!(stage.push(RENAMED).await.acknowledged);
    // Without a platform an event is settled when it is stored.
    let (before, platform) = stage.config.split_once("[[upstreams]]").unwrap();
    let (_, after) = platform.split_once("[limits").unwrap();
    reload(&stage, &format!("{before}[limits{after}")).await;
    assert!(stage.push(&other_event(2)).await.acknowledged);
    reload(&stage, &stage.config).await;
    let throttled = r#"{"errcode":130101,"errmsg":"send too fast, exceed 20 times per minute"}"#;
    stage.box_.set(Switches {
        fail_next: [Wrong::json(200, throttled)].into(),
        ..Switches::default()
    });
    let paused = stage.send(&text_to(&robot(), "paused")).await;
    until("the robot is paused", async || {
        let message = stage.get(&format!("/v1/messages/{paused}")).await;
        message.json()["reason"]["code"] == "robot_throttled"
    })
    .await;
    let card = json!({"template_id": "t.schema", "out_track_id": "inc-kept",
        "to": {"users": ["manager0001"]}, "data": {"title": "kept", "n": "0"}});
    let made = stage.daemon.request("POST", "/v1/cards", &card).await;
    let made = made.unwrap().json()["id"].as_str().unwrap().to_owned();
    stage.reaches(&made, "sent").await;
    stage.box_.set(Switches {
        down: true,
        ..Default::default()
    });
    let change = json!({"data": {"n": "1"}});
    let changed = stage
        .daemon
        .request("PATCH", "/v1/cards/inc-kept", &change)
        .await;
    let changed = changed.unwrap().json()["id"].as_str().unwrap().to_owned();
    stage.reaches(&changed, "retrying").await;
    let key = [("idempotency-key", "kept")];
    let body = text_to(&robot(), "keyed");
    let request = stage
        .daemon
        .request_with("POST", "/v1/messages", &key, &body);
    let id = request.await.unwrap().json()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    stage.reaches(&id, "queued").await;
    let state = Daemon::state_dir(stage.dir.path());
    stage.daemon.terminate().await;
    let journal = Journal::open(&state).unwrap();
    let mut rows = vec![];
    journal
        .read_blocking(|view| {
            for table in Table::ALL {
                view.walk(table, &[], &[], Order::Ascending, &mut |key, value| {
                    if key != b"group" {
                        rows.push(
                            json!({"table": table.name(), "key": hex(key), "value": hex(value)}),
                        );
                    }
                    true
                })?;
            }
            Ok(())
        })
        .unwrap();
    serde_json::to_string_pretty(&rows).unwrap() + "\n"
}

fn hex(bytes: &[u8]) -> String {
    dingd::delivery::id::hex(bytes)
}

fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}
