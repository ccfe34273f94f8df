//! Disks that are slow, full, read-only or broken under the real daemon.

use std::time::Duration;

use dingd::sim::daemon::{API_TOKEN, Daemon};
use dingd::sim::dingtalk::{Settings, Switches, User};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::support::{Stage, fast, other_event, program, robot, text_to, until};

/// `disk.c`, made for `LD_PRELOAD`.
pub fn preloaded(dir: &std::path::Path) -> std::path::PathBuf {
    let library = dir.join("disk.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/disk.c");
    let made = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .args([source, "-ldl"])
        .status()
        .unwrap();
    assert!(made.success());
    library
}

/// The stage again, with a daemon whose disk does what `disk.c` says.
async fn on_disk(stage: Stage, sync_ms: u64) -> Stage {
    on_disk_with(stage, sync_ms, &[]).await
}

/// As [`on_disk`], with more environment variables.
async fn on_disk_with(mut stage: Stage, sync_ms: u64, more: &[(&str, &str)]) -> Stage {
    let library = preloaded(stage.dir.path());
    let fault = fault_file(&stage);
    stage.daemon.kill().await;
    let slow_us = (sync_ms * 1_000).to_string();
    let mut env = vec![
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("SLOW_US", &slow_us),
        ("FAULT_FILE", fault.to_str().unwrap()),
    ];
    env.extend(more);
    let daemon = Daemon::start_with(program(), stage.dir.path(), &stage.config, &env)
        .await
        .unwrap();
    Stage { daemon, ..stage }
}

fn fault_file(stage: &Stage) -> std::path::PathBuf {
    stage.dir.path().join("fault")
}

fn fault(stage: &Stage, word: &str) {
    std::fs::write(fault_file(stage), word).unwrap();
}

/// Whether a message can be accepted, and what is said if not.
async fn refusal(stage: &Stage) -> Option<Value> {
    let reply = stage.post(&text_to(&robot(), "?")).await;
    (reply.status != 202).then(|| {
        assert_eq!(reply.status, 503, "{}", reply.body);
        assert!(reply.header("retry-after").is_some());
        reply.json()
    })
}

async fn ready_status(stage: &Stage) -> u16 {
    let url = format!("{}/ready", stage.daemon.admin());
    dingd::sim::post::request("GET", &url, &[], String::new())
        .await
        .unwrap()
        .status
}

/// A file that was renamed is there after a power cut only if its directory was synced.
#[tokio::test]
async fn a_first_start_syncs_each_file_before_and_its_directory_after_it_gets_its_name() {
    let stage = Stage::open().await;
    std::fs::remove_dir_all(Daemon::state_dir(stage.dir.path())).unwrap();
    let stage = on_disk(stage, 0).await;
    let trace = std::fs::read_to_string(stage.dir.path().join("fault.trace")).unwrap();
    let calls: Vec<_> = trace.lines().collect();
    for file in ["journal.log", "journal.redb"] {
        let renamed = calls
            .iter()
            .position(|call| call.starts_with("rename") && call.ends_with(file))
            .unwrap_or_else(|| panic!("{file} gets its name at the end: {calls:#?}"));
        let draft = calls[renamed].split(' ').nth(1).unwrap();
        assert!(
            calls[..renamed].contains(&&*format!("sync {draft}")),
            "{file}: {calls:#?}"
        );
        let directory = std::path::Path::new(draft).parent().unwrap().display();
        assert!(
            calls[renamed..].contains(&&*format!("sync {directory}")),
            "{file}: {calls:#?}"
        );
    }
    stage.close().await;
}

/// A restart must know of every call that may have left, else it makes it again.
#[tokio::test]
async fn no_call_leaves_before_its_intent_is_on_disk() {
    let stage = on_disk(Stage::open().await, 0).await;
    // So that the one to die with need not wait for a token.
    let people = json!({"users": ["manager0001"]});
    let first = stage.send(&text_to(&people, "x")).await;
    stage.reaches(&first, "sent").await;
    let env = [("SLOW_LOG_US", "300000"), ("DINGD_DIE_AT", "call.after:1")];
    let mut stage = on_disk_with(stage, 0, &env).await;
    let mut body = text_to(&people, "once");
    body["ambiguous"] = json!("hold");
    let id = stage.send(&body).await;
    stage.daemon.ended().await;
    stage.daemon = Daemon::start(program(), stage.dir.path(), &stage.config)
        .await
        .unwrap();
    stage.reaches(&id, "unknown").await;
    assert_eq!(stage.box_.delivered().len(), 2, "each once");
    stage.close().await;
}

#[tokio::test]
async fn a_read_only_disk_makes_it_unready_and_it_comes_back_with_nothing_lost() {
    let stage = on_disk(Stage::open().await, 0).await;
    fault(&stage, "READONLY");
    // Found by the first write; its answer waits as long as the disk does.
    let waiting = {
        let (box_, url) = (stage.box_.clone(), stage.daemon.callback_url());
        tokio::spawn(async move { box_.push(&url, &other_event(1)).await })
    };
    until("it is unready", async || ready_status(&stage).await == 503).await;
    assert_eq!(refusal(&stage).await.unwrap()["reason"], "disk_low");
    assert_eq!(waiting.await.unwrap().status, 503, "after its deadline");
    fault(&stage, "");
    until("it is ready", async || ready_status(&stage).await == 200).await;
    until("it accepts", async || refusal(&stage).await.is_none()).await;
    // What was refused in time was written all the same: the repeat is a duplicate.
    assert!(stage.push(&other_event(1)).await.acknowledged);
    until("the event is forwarded once", async || {
        stage.events("dingtalk.event.bpms_instance_change").len() == 1
    })
    .await;
    stage.close().await;
}

/// Beyond the reserve: not even results can be written. Nobody needs to be root for this one.
#[tokio::test]
async fn a_disk_without_any_space_left_is_waited_for_and_holds_up_no_reader() {
    for word in ["FULL", "TABLES"] {
        let stage = on_disk(Stage::open().await, 0).await;
        let id = stage.send(&text_to(&robot(), "before")).await;
        stage.reaches(&id, "sent").await;
        fault(&stage, word);
        // Its answer may wait as long as the disk does.
        let last = {
            let url = format!("{}/v1/messages", stage.daemon.api());
            let headers = [("authorization", format!("Bearer {API_TOKEN}"))];
            let body = text_to(&robot(), "last").to_string();
            tokio::spawn(
                async move { dingd::sim::post::request("POST", &url, &headers, body).await },
            )
        };
        until("it is said", async || {
            stage.ready().await["degraded"].to_string().contains("disk")
        })
        .await;
        assert_eq!(refusal(&stage).await.unwrap()["reason"], "disk_low");
        assert_eq!(ready_status(&stage).await, 200, "{word}");
        let readers = (0..300).map(|_| stage.get("/v1/messages"));
        let answers = futures_util::future::join_all(readers).await;
        for answer in answers {
            assert!([200, 503].contains(&answer.status), "{}", answer.body);
        }
        fault(&stage, "");
        until("it accepts", async || refusal(&stage).await.is_none()).await;
        let last = last.await.unwrap().unwrap();
        if last.status == 202 {
            stage
                .reaches(last.json()["id"].as_str().unwrap(), "sent")
                .await;
        }
        assert_eq!(stage.state(&id).await, "sent");
        stage.close().await;
    }
}

/// It can neither be read nor written then.
#[tokio::test]
async fn what_expires_while_the_disk_is_full_has_ended_when_it_has_room_again() {
    let stage = on_disk(Stage::open().await, 0).await;
    stage.box_.set(Switches {
        down: true,
        ..Switches::default()
    });
    let mut body = text_to(&robot(), "not worth sending later");
    body["expires_in_s"] = json!(2);
    let id = stage.send(&body).await;
    fault(&stage, "TABLES");
    until("it is said", async || {
        stage.ready().await["degraded"].to_string().contains("disk")
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    fault(&stage, "");
    stage.reaches(&id, "expired").await;
    stage.close().await;
}

#[tokio::test]
async fn a_failed_sync_ends_the_daemon_with_74_and_the_next_start_has_what_was_answered() {
    let mut stage = on_disk(Stage::open().await, 0).await;
    let id = stage.send(&text_to(&robot(), "before")).await;
    stage.reaches(&id, "sent").await;
    fault(&stage, "BROKEN");
    let reply = stage
        .daemon
        .request("POST", "/v1/messages", &text_to(&robot(), "lost?"))
        .await;
    assert!(
        reply.is_err() || reply.is_ok_and(|reply| reply.status == 503),
        "not accepted"
    );
    assert_eq!(stage.daemon.ended().await, Some(74));
    for word in ["BROKEN", "UNREADABLE"] {
        fault(&stage, word);
        assert_eq!(
            start_on_a_broken_disk(stage.dir.path()).await,
            Some(74),
            "{word}"
        );
        let said = stage.log();
        assert!(
            said.contains("dmesg") && !said.contains("dingd restore"),
            "{said}"
        );
    }
    fault(&stage, "");
    let daemon = Daemon::start(program(), stage.dir.path(), &stage.config)
        .await
        .unwrap();
    let stage = Stage { daemon, ..stage };
    assert_eq!(stage.state(&id).await, "sent");
    stage.close().await;
}

#[tokio::test]
async fn a_first_start_on_a_failing_disk_ends_with_74_and_the_next_one_makes_the_store() {
    let stage = on_disk(Stage::open().await, 0).await;
    let stage = stage
        .again(async |daemon, dir| {
            assert_eq!(daemon.terminate().await, Some(0));
            for word in ["BROKEN", "NAMELESS"] {
                std::fs::remove_dir_all(Daemon::state_dir(dir)).unwrap();
                std::fs::write(dir.join("fault"), word).unwrap();
                assert_eq!(start_on_a_broken_disk(dir).await, Some(74), "{word}");
            }
        })
        .await;
    let id = stage.send(&text_to(&robot(), "x")).await;
    stage.reaches(&id, "sent").await;
    stage.close().await;
}

/// How a start ends whose disk fails; it is for the disk to be cured, not for the store to be given up.
async fn start_on_a_broken_disk(dir: &std::path::Path) -> Option<i32> {
    let mut start = tokio::process::Command::new(program());
    start.arg("run").arg("--config");
    start.arg(dir.join("config.toml"));
    start.env("LD_PRELOAD", dir.join("disk.so"));
    start.env("FAULT_FILE", dir.join("fault"));
    let log = dir.join("log");
    start.stderr(std::fs::File::options().append(true).open(log).unwrap());
    start.status().await.unwrap().code()
}

/// A file system of its own for the stage's state, as small as a full one is.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(path: &std::path::Path) -> Option<Self> {
        std::fs::create_dir_all(path).unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=96m,mode=0700", "tmpfs"])
            .arg(path)
            .status()
            .is_ok_and(|status| status.success());
        mounted.then(|| Self(path.to_owned()))
    }

    fn remount(&self, how: &str) {
        let remounted = std::process::Command::new("mount")
            .args(["-o", &format!("remount,{how}")])
            .arg(&self.0)
            .status();
        assert!(remounted.is_ok_and(|status| status.success()));
    }

    fn ballast(&self) -> std::path::PathBuf {
        self.0.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

/// The stage again, its state on a small disk; `None` if nobody may mount one.
async fn on_small_disk(stage: Stage) -> Option<(Stage, SmallDisk)> {
    let state = Daemon::state_dir(stage.dir.path());
    let mut small = None;
    let stage = stage
        .again(async |daemon, _| {
            daemon.terminate().await;
            std::fs::remove_dir_all(&state).unwrap();
            small = SmallDisk::mount(&state);
        })
        .await;
    let Some(small) = small else {
        eprintln!("skipped: only root can mount a small disk");
        stage.close().await;
        return None;
    };
    Some((stage, small))
}

/// To the last byte.
fn fill(ballast: &std::path::Path) {
    let mut file = std::fs::File::create(ballast).unwrap();
    for some in [1 << 16, 16] {
        let some = vec![0; some];
        while std::io::Write::write_all(&mut file, &some).is_ok() {}
    }
}

#[tokio::test]
async fn a_full_disk_refuses_new_work_records_results_starts_and_accepts_again() {
    let Some((mut stage, small)) = on_small_disk(Stage::open().await).await else {
        return;
    };
    // Two are on the way when the disk fills up.
    stage.box_.set(Switches {
        down: true,
        ..Default::default()
    });
    let before = [
        stage.send(&text_to(&robot(), "a")).await,
        stage
            .send(&text_to(&json!({"users": ["manager0001"]}), "b"))
            .await,
    ];
    fill(&small.ballast());
    until("new work is refused", async || {
        refusal(&stage).await.is_some()
    })
    .await;
    assert_eq!(refusal(&stage).await.unwrap()["reason"], "disk_low");
    assert_eq!(stage.push(&other_event(1)).await.status, 503);
    let no_copy = stage.daemon.socket("POST", "/v1/backup").await.unwrap_err();
    assert!(no_copy.contains("the copy may take"), "{no_copy}");
    // It also starts on the full disk, after a clean stop and after a crash, and the results of old work
    // are recorded there.
    stage = stage
        .again(async |daemon, _| assert_eq!(daemon.terminate().await, Some(0)))
        .await;
    stage = stage.crash().await;
    assert!(refusal(&stage).await.is_some());
    stage.box_.set(Switches::default());
    for id in &before {
        stage.reaches(id, "sent").await;
    }
    stage = stage.crash().await;
    for id in &before {
        assert_eq!(stage.state(id).await, "sent", "it was recorded");
    }
    std::fs::remove_file(small.ballast()).unwrap();
    let freed = std::time::Instant::now();
    until("it accepts", async || refusal(&stage).await.is_none()).await;
    assert!(freed.elapsed() < Duration::from_secs(10));
    assert!(stage.push(&other_event(1)).await.acknowledged);
    stage.close().await;
}

/// An address for the admin door, for those who ask before it is told, and the edit that sets it.
async fn at_known_admin() -> (String, impl FnOnce(String) -> String) {
    let address = crate::support::listener().await.local_addr();
    let admin = address.unwrap().to_string();
    let listen = |admin: &str| format!("[admin]\nlisten = \"{admin}\"");
    let (old, new) = (listen("127.0.0.1:0"), listen(&admin));
    (admin, move |config: String| config.replace(&old, &new))
}

async fn is_unready(admin: &str, words: &str) -> bool {
    let url = format!("http://{admin}/ready");
    let reply = dingd::sim::post::request("GET", &url, &[], String::new()).await;
    reply.is_ok_and(|reply| reply.status == 503 && reply.body.contains(words))
}

/// What only the log has must go into the tables first, and there is no room for it.
#[tokio::test]
async fn a_start_that_has_to_replay_waits_for_room_and_says_so() {
    let (admin, edit) = at_known_admin().await;
    let stage = Stage::with(fast(), edit).await;
    let mut stage = on_disk_with(stage, 0, &[("DINGD_DIE_AT", "tables.before:1")]).await;
    let id = stage.send(&text_to(&robot(), "in the log")).await;
    stage.daemon.ended().await;
    fault(&stage, "TABLES");
    let (library, fault_file) = (stage.dir.path().join("disk.so"), fault_file(&stage));
    let env = [
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("FAULT_FILE", fault_file.to_str().unwrap()),
    ];
    let start = Daemon::start_with(program(), stage.dir.path(), &stage.config, &env);
    let cured = async {
        let words = "the disk of state_dir is full";
        until(words, async || is_unready(&admin, words).await).await;
        fault(&stage, "");
    };
    let (started, ()) = tokio::join!(start, cured);
    stage.daemon = started.unwrap();
    stage.reaches(&id, "sent").await;
    stage.close().await;
}

/// A start over an older release's store has something to write.
fn fill_and_age(small: &SmallDisk) {
    std::fs::write(small.0.join("journal.format"), "2\n").unwrap();
    fill(&small.ballast());
}

#[tokio::test]
async fn a_start_waits_for_a_disk_that_is_read_only_or_too_full_for_it_and_says_so() {
    let (admin, edit) = at_known_admin().await;
    let stage = Stage::with(fast(), edit).await;
    let Some((mut stage, small)) = on_small_disk(stage).await else {
        return;
    };
    let id = stage.send(&text_to(&robot(), "before")).await;
    stage.reaches(&id, "sent").await;
    type Step = fn(&SmallDisk);
    let steps: [(&str, Step, Step); 2] = [
        (
            "Read-only file system",
            |small| small.remount("ro"),
            |small| small.remount("rw"),
        ),
        ("No space left on device", fill_and_age, |small| {
            std::fs::remove_file(small.ballast()).unwrap();
        }),
    ];
    for (words, spoil, cure) in steps {
        let start = stage.again(async |daemon, _| {
            assert_eq!(daemon.terminate().await, Some(0));
            spoil(&small);
        });
        let cured = async {
            until(words, async || is_unready(&admin, words).await).await;
            cure(&small);
        };
        (stage, ()) = tokio::join!(start, cured);
        assert_eq!(stage.state(&id).await, "sent");
    }
    stage.close().await;
}

/// The result of a call was read back from before its commit, and the call made again, for ever.
#[tokio::test]
async fn a_message_of_several_calls_makes_each_of_them_once() {
    let users: Vec<_> = (0..45)
        .map(|n| User::named(&format!("u{n}"), "n", "139"))
        .collect();
    let stage = Stage::with(Settings { users, ..fast() }, |config| config).await;
    let stage = on_disk(stage, 30).await;
    let users: Vec<_> = (0..45).map(|n| format!("u{n}")).collect();
    let id = stage.send(&text_to(&json!({"users": users}), "x")).await;
    assert_eq!(stage.reaches(&id, "sent").await["attempts"], 3);
    assert_eq!(stage.box_.delivered().len(), 45);
    stage.close().await;
}

/// The key was free again as soon as the client was gone, though its message was on the way to disk.
#[tokio::test]
async fn a_client_that_hangs_up_and_repeats_with_its_key_sends_one_message() {
    let stage = on_disk(Stage::open().await, 200).await;
    let address = stage.daemon.api().trim_start_matches("http://").to_owned();
    let body = text_to(&robot(), "once").to_string();
    for _ in 0..4 {
        let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
        let request = format!(
            "POST /v1/messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_TOKEN}\r\nIdempotency-Key: k\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let key = [("idempotency-key", "k")];
    let body: Value = serde_json::from_str(&body).unwrap();
    let last = stage
        .daemon
        .request_with("POST", "/v1/messages", &key, &body)
        .await
        .unwrap();
    assert_eq!(
        (last.status, last.header("idempotency-replayed")),
        (200, Some("true"))
    );
    stage
        .reaches(last.json()["id"].as_str().unwrap(), "sent")
        .await;
    assert_eq!(stage.box_.delivered().len(), 1);
    stage.close().await;
}

#[tokio::test]
async fn a_callback_is_answered_when_it_is_on_disk_and_refused_when_that_takes_too_long() {
    let stage = on_disk(Stage::open().await, 50).await;
    let push = stage.push(&other_event(1)).await;
    assert!(push.acknowledged && push.elapsed_ms >= 50, "{push:?}");
    let stage = on_disk(stage, 1_500).await;
    let late = stage.push(&other_event(2)).await;
    assert_eq!(late.status, 503, "{late:?}");
    until("the repeat is recognised", async || {
        stage.push(&other_event(2)).await.acknowledged
    })
    .await;
    // By their ids: the kill above may have repeated the first.
    until("both are forwarded", async || {
        let ids: std::collections::BTreeSet<_> =
            stage.platform.events().into_iter().map(|e| e.id).collect();
        ids.len() == 2
    })
    .await;
    let stage = stage.crash().await;
    stage.close().await;
}
