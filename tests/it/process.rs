//! The process: signals, reload, locks, secrets.

use std::time::Duration;

use dingd::sim::daemon::{Daemon, Signal};
use dingd::sim::dingtalk::{Casing, Switches};
use dingd::sim::platform::PlatformSwitches;
use serde_json::json;

use crate::support::{Stage, fast, free, program, robot, text_to, until};

#[tokio::test]
async fn sigterm_finishes_what_is_under_way_and_keeps_the_rest() {
    let stage = Stage::open().await;
    stage.box_.set(Switches {
        slow_ms: 700,
        ..Switches::default()
    });
    let mut ids = vec![];
    for number in 0..40 {
        ids.push(
            stage
                .send(&text_to(
                    &json!({"users": [format!("manager000{}", 1 + number % 2)]}),
                    &format!("m{number}"),
                ))
                .await,
        );
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let stage = stage
        .again(async |daemon, _| assert_eq!(daemon.terminate().await, Some(0)))
        .await;
    stage.box_.set(Switches::default());
    for id in &ids {
        stage.reaches(id, "sent").await;
    }
    assert_eq!(
        stage.box_.delivered().len(),
        ids.len(),
        "a drain repeats nothing"
    );
    stage.close().await;
}

#[tokio::test]
async fn a_reload_takes_over_all_or_nothing() {
    let stage = Stage::open().await;
    let file = stage.dir.path().join("config.toml");
    let body = text_to(&json!({"robot": "second"}), "x");
    assert_eq!(stage.post(&body).await.status, 422);
    std::fs::write(
        &file,
        format!(
            "{}[[robots]]\nname = \"second\"\naccess_token = 7\n",
            stage.config
        ),
    )
    .unwrap();
    stage.daemon.signal(Signal::Hangup);
    until("the fault is reported", async || {
        stage.ready().await["degraded"]
            .to_string()
            .contains("robots[1].access_token")
    })
    .await;
    let id = stage
        .send(&text_to(&robot(), "the old configuration stays"))
        .await;
    stage.reaches(&id, "sent").await;
    let second = "[[robots]]\nname = \"second\"\naccess_token = \"a-token-of-its-own\"\n";
    std::fs::write(&file, format!("{}{second}", stage.config)).unwrap();
    stage.daemon.signal(Signal::Hangup);
    until("the new robot is known", async || {
        stage.post(&body).await.status == 202
    })
    .await;
    assert_eq!(stage.ready().await["degraded"], json!([]));
    std::fs::write(
        &file,
        stage.config.replace(
            "[admin]\nlisten = \"127.0.0.1:0\"",
            "[admin]\nlisten = \"127.0.0.1:1\"",
        ),
    )
    .unwrap();
    stage.daemon.signal(Signal::Hangup);
    until("a restart is asked for", async || {
        stage.ready().await["degraded"]
            .to_string()
            .contains("restart")
    })
    .await;
    stage.close().await;
}

#[tokio::test]
async fn a_second_daemon_on_the_same_store_is_refused_with_a_clear_message() {
    let stage = Stage::open().await;
    let file = stage.dir.path().join("config.toml");
    let second = tokio::process::Command::new(program())
        .arg("run")
        .arg("--config")
        .arg(&file)
        .output()
        .await
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    let text = String::from_utf8(second.stderr).unwrap();
    assert!(text.contains("in use by another dingd"), "{text}");
    let id = stage.send(&text_to(&robot(), "the first goes on")).await;
    stage.reaches(&id, "sent").await;
    stage.close().await;
}

#[tokio::test]
async fn a_newer_store_is_refused_and_left_untouched() {
    let stage = Stage::open().await;
    let Stage {
        dir,
        daemon,
        config,
        ..
    } = stage;
    assert_eq!(daemon.terminate().await, Some(0));
    let state = dir.path().join("state");
    let store = state.join("journal.redb");
    std::fs::write(state.join("journal.format"), "99\n").unwrap();
    let before = std::fs::read(&store).unwrap();
    let error = Daemon::start(program(), dir.path(), &config)
        .await
        .unwrap_err();
    assert!(error.contains("format 99"), "{error}");
    assert!(std::fs::read(&store).unwrap() == before, "it was touched");
}

/// Everything that the daemon says anywhere, searched for every secret it was given.
#[tokio::test]
async fn no_secret_appears_in_any_output() {
    let edit = |config: String| format!("{config}[log]\nlevel = \"trace\"\n");
    let stage = Stage::with(fast(), edit).await;
    let event = stage
        .box_
        .install_cool_app(&stage.chat(), "manager0001", Casing::Lower);
    stage.push(&event).await;
    for to in [
        robot(),
        json!({"users": ["manager0001"]}),
        json!({"chat": stage.chat()}),
    ] {
        let id = stage.send(&text_to(&to, "x")).await;
        stage.reaches(&id, "sent").await;
    }
    stage.box_.set(Switches {
        refuse: true,
        ..Switches::default()
    });
    let id = stage.send(&text_to(&robot(), "x")).await;
    stage.reaches(&id, "retrying").await;
    let mut outputs = vec![
        stage.log(),
        stage.metrics().await,
        stage.ready().await.to_string(),
        stage.message(&id).await.to_string(),
    ];
    outputs.push(
        stage
            .daemon
            .socket("GET", "/v1/messages")
            .await
            .unwrap()
            .to_string(),
    );
    outputs.push(
        String::from_utf8_lossy(
            &std::fs::read(format!("/proc/{}/cmdline", stage.daemon.pid())).unwrap(),
        )
        .into_owned(),
    );
    let app = &stage.settings.app;
    let robot = &stage.settings.robots[0];
    let secrets = [
        app.client_secret.as_str(),
        &app.callback_token,
        &app.callback_aes_key,
        &robot.access_token,
        robot.secret.as_deref().unwrap(),
        dingd::sim::daemon::API_TOKEN,
        dingd::sim::daemon::PLATFORM_SECRET,
    ];
    use base64::Engine as _;
    for secret in secrets {
        let base64 = base64::engine::general_purpose::STANDARD_NO_PAD.encode(secret);
        let hex: String = secret.bytes().map(|b| format!("{b:02x}")).collect();
        let percent: String = secret.bytes().map(|b| format!("%{b:02X}")).collect();
        let reversed: String = secret.chars().rev().collect();
        for form in [secret.to_owned(), base64, hex, percent, reversed] {
            for output in &outputs {
                assert!(!output.contains(&form), "{secret} shows as {form}");
            }
        }
    }
    stage.box_.set(Switches::default());
    stage.close().await;
}

#[tokio::test]
async fn files_are_private_whatever_the_umask() {
    use std::os::unix::fs::PermissionsExt as _;
    let stage = Stage::open().await;
    let state = stage.dir.path().join("state");
    let mode =
        |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    for file in ["journal.redb", "admin.sock", "lock"] {
        assert_eq!(mode(&state.join(file)), 0o600, "{file}");
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", stage.daemon.pid()));
    if let Ok(limits) = limits {
        let core = limits
            .lines()
            .find(|line| line.starts_with("Max core file size"))
            .unwrap()
            .to_owned();
        assert!(core.split_whitespace().nth(4) == Some("0"), "{core}");
    }
    stage.close().await;
}

/// Runs a command of the operator; its exit code, and what it said.
pub async fn command(config: &std::path::Path, arguments: &[&str]) -> (Option<i32>, String) {
    command_with(config, arguments, &[]).await
}

/// As [`command`], with more in its environment.
async fn command_with(
    config: &std::path::Path,
    arguments: &[&str],
    env: &[(&str, &str)],
) -> (Option<i32>, String) {
    let out = tokio::process::Command::new(program())
        .args(arguments)
        .envs(env.iter().copied())
        .arg("--config")
        .arg(config)
        .output()
        .await
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap() + &String::from_utf8(out.stderr).unwrap();
    (out.status.code(), text)
}

#[tokio::test]
async fn the_command_line_shows_and_sends() {
    let stage = Stage::open().await;
    let config = stage.dir.path().join("config.toml");
    let run = async |arguments: &[&str]| command(&config, arguments).await;
    let (code, text) = run(&["status"]).await;
    assert_eq!(code, Some(0));
    assert!(text.contains("is ready"), "{text}");
    let (_, text) = run(&["chats"]).await;
    assert!(
        text.contains("安装") || text.contains("Install the cool app"),
        "{text}"
    );
    let (_, text) = run(&["chats", "no such title"]).await;
    assert!(text.contains("No such groups"), "{text}");
    let (code, text) = run(&["send", "--robot", "robot-0", "hello", "--json"]).await;
    assert_eq!(code, Some(0), "{text}");
    let id = serde_json::from_str::<serde_json::Value>(&text).unwrap()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    until("it is sent", async || {
        let shown = run(&["messages", "show", &id, "--json"]).await.1;
        shown.contains("\"sent\"")
    })
    .await;
    let log = stage.log();
    let audited = |line: &str| line.contains("dingd::audit") && line.contains("operator");
    assert!(log.lines().any(audited), "{log}");
    assert!(run(&["messages", "list"]).await.1.contains(&id));
    let newer = stage.send(&text_to(&robot(), "a second page")).await;
    let (_, page) = run(&["messages", "list", "--limit", "1"]).await;
    let cursor = page.trim().rsplit("more: --cursor ").next().unwrap();
    assert!(page.contains(&newer) && !page.contains(&id), "{page}");
    let (_, page) = run(&["messages", "list", "--limit", "1", "--cursor", cursor]).await;
    assert!(page.contains(&id) && !page.contains("more:"), "{page}");
    assert!(
        run(&["messages", "show", &id])
            .await
            .1
            .contains("\"hello\""),
        "the operator sees contents"
    );
    // Piped into something that has read enough.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut status = tokio::process::Command::new(program());
    status
        .args(["status", "--config"])
        .arg(&config)
        .stdout(writer);
    assert_eq!(status.status().await.unwrap().code(), Some(0));
    let (code, text) = run(&["messages", "cancel", &id]).await;
    assert_eq!(code, Some(1));
    assert!(text.contains("not_cancellable"), "{text}");
    assert_eq!(run(&["dead", "list"]).await.0, Some(0));
    let (code, text) = run(&["send", "--robot", "nope", "x"]).await;
    assert_eq!(code, Some(1));
    assert!(text.contains("[[robots]]"), "{text}");
    stage.close().await;
}

/// A daemon that tells the platform of no ending: the bug is one of `faults.rs`.
#[tokio::test]
async fn the_demo_shows_which_promise_is_broken_and_fails() {
    let out = tokio::process::Command::new(program())
        .args(["demo", "--json"])
        .env("DINGD_BUG", "OutcomeNotTold")
        .output()
        .await
        .unwrap();
    assert_eq!(out.status.code(), Some(1));
    let text = String::from_utf8(out.stdout).unwrap();
    let told: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(told["held"], false);
    let steps = told["steps"].as_array().unwrap().iter();
    let broken: Vec<_> = steps.filter(|step| step["held"] == false).collect();
    assert_eq!(broken.len(), 1, "{broken:#?}");
    let promise = broken[0]["promised"].as_str().unwrap();
    assert!(promise.contains("told how each of them ended"), "{promise}");
}

#[tokio::test]
async fn what_has_ended_is_removed_when_its_time_is_over_and_the_books_still_balance() {
    let edit =
        |config: String| format!("{config}[journal]\nkeep_finished_s = 1\nkeep_dead_s = 3600\n");
    let stage = Stage::with(fast(), edit).await;
    let sent = stage.send(&text_to(&robot(), "x")).await;
    stage.reaches(&sent, "sent").await;
    let dead = stage.send(&text_to(&json!({"accounts": ["a"]}), "x")).await;
    until("it is gone", async || {
        stage.get(&format!("/v1/messages/{sent}")).await.status == 404
    })
    .await;
    assert_eq!(stage.state(&dead).await, "dead", "dead letters stay longer");
    stage.close().await;
}

#[tokio::test]
async fn a_backup_is_made_while_it_runs_and_a_restore_brings_it_back() {
    let stage = Stage::open().await;
    let config = stage.dir.path().join("config.toml");
    let file = stage.dir.path().join("backup");
    let run = async |arguments: &[&str]| command(&config, arguments).await;
    let path = file.to_str().unwrap();
    let before = stage.send(&text_to(&robot(), "before")).await;
    stage.reaches(&before, "sent").await;
    let (code, text) = run(&["backup", path]).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("outbox_done") && text.contains("The books balance"),
        "{text}"
    );
    let (code, text) = run(&["backup", path]).await;
    assert_eq!(code, Some(1), "it is not written over: {text}");
    let after = stage.send(&text_to(&robot(), "after")).await;
    stage.reaches(&after, "sent").await;
    let (code, text) = run(&["restore", path]).await;
    assert_eq!(code, Some(1), "not under a running daemon: {text}");
    assert!(text.contains("in use by another dingd"), "{text}");
    let stage = stage
        .again(async |daemon, _| {
            assert_eq!(daemon.terminate().await, Some(0));
            let (code, text) = run(&["journal", "check"]).await;
            assert_eq!(code, Some(0), "{text}");
            let (code, text) = run(&["restore", path]).await;
            assert_eq!(code, Some(0), "{text}");
        })
        .await;
    assert_eq!(stage.state(&before).await, "sent");
    assert_eq!(stage.state(&after).await, "", "it came after the backup");
    // Once more: what was there the first time is not written over.
    let stage = stage
        .again(async |mut daemon, dir| {
            daemon.kill().await;
            let state = Daemon::state_dir(dir);
            let kept = std::fs::read(state.join("journal.redb.before-restore")).unwrap();
            let (code, text) = run(&["restore", path]).await;
            assert_eq!(code, Some(0), "{text}");
            assert_eq!(
                std::fs::read(state.join("journal.redb.before-restore")).unwrap(),
                kept
            );
            assert!(state.join("journal.redb.before-restore-2").exists());
        })
        .await;
    let again = stage.send(&text_to(&robot(), "again")).await;
    stage.reaches(&again, "sent").await;
    stage.close().await;
}

/// No start takes the half of it for a store: what is there is the old one, the backup, or refused.
#[tokio::test]
async fn a_restore_that_is_killed_at_any_step_leaves_no_half_of_a_store() {
    let mut stage = Stage::open().await;
    let config = stage.dir.path().join("config.toml");
    let path = stage.dir.path().join("backup");
    let path = path.to_str().unwrap();
    let old = stage.send(&text_to(&robot(), "old")).await;
    stage.reaches(&old, "sent").await;
    assert_eq!(command(&config, &["backup", path]).await.0, Some(0));
    let (mut kills, mut refusals) = (0, 0);
    loop {
        stage.daemon.kill().await;
        let at = format!("restore.step:{}", kills + 1);
        let restore = ["restore", path];
        let (code, text) = command_with(&config, &restore, &[("DINGD_DIE_AT", &at)]).await;
        let state = Daemon::state_dir(stage.dir.path());
        if state.join("journal.restoring").exists() {
            let refused = Daemon::start(program(), stage.dir.path(), &stage.config).await;
            let said = refused.err().unwrap();
            assert!(said.contains("dingd restore"), "{said}");
            refusals += 1;
            assert_eq!(command(&config, &restore).await.0, Some(0));
        }
        stage.daemon = Daemon::start(program(), stage.dir.path(), &stage.config)
            .await
            .unwrap();
        assert_eq!(stage.state(&old).await, "sent", "{at}");
        if code.is_some() {
            assert_eq!(code, Some(0), "{text}");
            break;
        }
        kills += 1;
    }
    assert_eq!((kills, refusals), (8, 6));
    stage.close().await;
}

/// Such as is left of a copy to a full disk.
#[tokio::test]
async fn an_empty_file_is_neither_a_store_nor_a_backup() {
    let mut stage = Stage::open().await;
    let config = stage.dir.path().join("config.toml");
    let state = Daemon::state_dir(stage.dir.path());
    let sent = stage.send(&text_to(&robot(), "x")).await;
    stage.reaches(&sent, "sent").await;
    // The daemon would take it for one that nobody fetched.
    let name = state.join("journal.backup-1");
    let (code, text) = command(&config, &["backup", name.to_str().unwrap()]).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("choose another name"), "{text}");
    assert_eq!(stage.daemon.terminate().await, Some(0));
    let empty = stage.dir.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    let (code, text) = command(&config, &["restore", empty.to_str().unwrap()]).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("it is empty"), "{text}");
    let left = |name: &str| state.join(name).exists();
    assert!(!left("journal.redb.before-restore") && !left("journal.redb.restored"));
    let whole = std::fs::read(state.join("journal.redb")).unwrap();
    std::fs::write(state.join("journal.redb"), "").unwrap();
    let refused = Daemon::start(program(), stage.dir.path(), &stage.config).await;
    let said = refused.err().unwrap();
    assert!(
        said.contains("journal.redb") && said.contains("it is empty"),
        "{said}"
    );
    std::fs::write(state.join("journal.redb"), whole).unwrap();
    stage.daemon = Daemon::start(program(), stage.dir.path(), &stage.config)
        .await
        .unwrap();
    assert_eq!(stage.state(&sent).await, "sent");
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_made_while_much_is_written_is_of_one_moment() {
    let stage = Stage::open().await;
    let config = stage.dir.path().join("config.toml");
    let body = text_to(&json!({"users": ["manager0001"]}), "x");
    let (mut ids, mut before) = (vec![], 0);
    let mut file = stage.dir.path().join("none");
    for n in 0..3 {
        file = stage.dir.path().join(format!("backup{n}"));
        before = ids.len();
        let path = file.to_str().unwrap();
        let arguments = ["backup", path];
        let mut backup = std::pin::pin!(command(&config, &arguments));
        let (code, text) = loop {
            tokio::select! {
                done = &mut backup => break done,
                id = stage.send(&body) => ids.push(id),
            }
        };
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("The books balance"), "{text}");
    }
    assert!(ids.len() > before, "nothing was written meanwhile");
    for id in &ids {
        stage.reaches(id, "sent").await;
    }
    let stage = stage
        .again(async |daemon, _| {
            assert_eq!(daemon.terminate().await, Some(0));
            let restored = command(&config, &["restore", file.to_str().unwrap()]).await;
            assert_eq!(restored.0, Some(0), "{}", restored.1);
        })
        .await;
    for id in &ids[..before] {
        stage.reaches(id, "sent").await;
    }
    // Of those that came meanwhile a first part is in it.
    let mut known = vec![];
    for id in &ids[before..] {
        known.push(!stage.state(id).await.is_empty());
    }
    assert!(known.is_sorted_by(|a, b| a >= b), "{known:?}");
    stage.close().await;
}

#[tokio::test]
async fn a_damaged_store_is_refused_with_the_cure_and_a_backup_cures_it() {
    let mut stage = Stage::open().await;
    let id = stage.send(&text_to(&robot(), "x")).await;
    stage.reaches(&id, "sent").await;
    let (config, file) = (
        stage.dir.path().join("config.toml"),
        stage.dir.path().join("backup"),
    );
    let run = async |arguments: &[&str]| command(&config, arguments).await.0;
    let path = file.to_str().unwrap();
    assert_eq!(run(&["backup", path]).await, Some(0));
    stage.daemon.kill().await;
    let store = Daemon::state_dir(stage.dir.path()).join("journal.redb");
    let sound = std::fs::read(&store).unwrap();
    let (mut headless, mut bytes) = (sound.clone(), sound.clone());
    headless[..9].fill(0);
    // Behind the header, over as many pages as matter.
    for page in bytes.chunks_mut(4_096).skip(1).take(40) {
        page[100] ^= 1;
    }
    for damaged in [&headless[..], &sound[..sound.len() / 2], &bytes] {
        std::fs::write(&store, damaged).unwrap();
        let refused = Daemon::start(program(), stage.dir.path(), &stage.config).await;
        let said = refused.err().unwrap();
        assert!(said.contains("dingd restore"), "{said}");
    }
    assert_eq!(run(&["restore", path]).await, Some(0));
    assert!(
        store.with_extension("redb.before-restore").exists(),
        "it is kept for whoever looks into it"
    );
    stage.daemon = Daemon::start(program(), stage.dir.path(), &stage.config)
        .await
        .unwrap();
    assert_eq!(stage.state(&id).await, "sent");
    stage.close().await;
}

#[tokio::test]
async fn a_damaged_record_is_set_aside_counted_and_shown_and_the_rest_goes_on() {
    use dingd::journal::{Batch, Journal, Order, Table};
    let stage = Stage::open().await;
    let ended = stage.send(&text_to(&robot(), "it has ended")).await;
    stage.reaches(&ended, "sent").await;
    stage.box_.set(Switches {
        down: true,
        ..Switches::default()
    });
    let mut ids = vec![];
    for n in 0..3 {
        ids.push(stage.send(&text_to(&robot(), &format!("m{n}"))).await);
    }
    let stage = stage
        .again(async |daemon, dir| {
            assert_eq!(daemon.terminate().await, Some(0));
            let journal = Journal::open(&Daemon::state_dir(dir)).unwrap();
            let mut batch = Batch::default();
            journal
                .read_blocking(|view| {
                    let mut nth = 0;
                    view.walk(
                        Table::OutboxLive,
                        &[],
                        &[],
                        Order::Ascending,
                        &mut |key, value| {
                            let mut value = value.to_vec();
                            *value.last_mut().unwrap() ^= 1;
                            nth += 1;
                            if nth == 2 {
                                batch.put(Table::OutboxLive, key, value);
                            }
                            true
                        },
                    )
                })
                .unwrap();
            journal
                .read_blocking(|view| {
                    let all = (&[][..], &[][..], Order::Ascending);
                    view.walk(Table::OutboxDone, all.0, all.1, all.2, &mut |key, value| {
                        batch.put(Table::OutboxDone, key, &value[..value.len() - 1]);
                        true
                    })
                })
                .unwrap();
            for (table, key) in [
                (Table::Chats, &b"oncall\0cidX"[..]),
                (Table::Charges, &[9; 8]),
                (Table::Pauses, &[1; 9]),
            ] {
                batch.put(table, key, b"no record");
            }
            journal.commit(batch).await.unwrap();
            free(journal, &Daemon::state_dir(dir)).await;
            let (code, text) = command(&dir.join("config.toml"), &["journal", "check"]).await;
            assert_eq!(code, Some(1), "{text}");
            assert!(text.contains("DAMAGED"), "{text}");
        })
        .await;
    stage.box_.set(Switches::default());
    for id in [&ids[0], &ids[2]] {
        stage.reaches(id, "sent").await;
    }
    until("what has ended was looked through", async || {
        let dead = stage.daemon.socket("GET", "/v1/dead").await.unwrap();
        dead["damaged_records"] == 5
    })
    .await;
    let dead = stage.daemon.socket("GET", "/v1/dead").await.unwrap();
    let damaged = dead["damaged"].as_array().unwrap();
    let tables: Vec<_> = damaged.iter().map(|row| &row["table"]).collect();
    assert_eq!(
        tables,
        ["charges", "chats", "outbox_done", "outbox_live", "pauses"]
    );
    let metrics = stage.metrics().await;
    assert!(
        metrics.contains("dingd_store_quarantined_records_total 5"),
        "they are counted"
    );
    stage.close().await;
}

/// What is to be sent, and not how far it is.
#[tokio::test]
async fn a_damaged_content_is_set_aside_in_both_directions_and_the_rest_goes_on() {
    use dingd::journal::{Batch, Journal, Order, Table};
    let stage = Stage::open().await;
    stage.box_.set(Switches {
        down: true,
        ..Switches::default()
    });
    stage.platform.set(PlatformSwitches {
        status: Some(503),
        ..PlatformSwitches::default()
    });
    let mut ids = vec![];
    for n in 0..3 {
        ids.push(stage.send(&text_to(&robot(), &format!("m{n}"))).await);
        assert!(
            stage
                .push(&crate::support::other_event(n))
                .await
                .acknowledged
        );
    }
    let stage = stage
        .again(async |daemon, dir| {
            assert_eq!(daemon.terminate().await, Some(0));
            let journal = Journal::open(&Daemon::state_dir(dir)).unwrap();
            let mut batch = Batch::default();
            for table in [Table::InboxPayload, Table::OutboxPayload] {
                let mut nth = 0;
                let damage = |key: &[u8], value: &[u8]| {
                    nth += 1;
                    if nth == 2 {
                        batch.put(table, key, &value[..value.len() - 1]);
                    }
                    true
                };
                let mut damage = damage;
                let all = |view: &dingd::journal::View<'_>| {
                    view.walk(table, &[], &[], Order::Ascending, &mut damage)
                };
                journal.read_blocking(all).unwrap();
            }
            journal.commit(batch).await.unwrap();
            free(journal, &Daemon::state_dir(dir)).await;
        })
        .await;
    stage.box_.set(Switches::default());
    stage.platform.set(PlatformSwitches::default());
    for id in [&ids[0], &ids[2]] {
        stage.reaches(id, "sent").await;
    }
    until("the others are forwarded", async || {
        stage.events("dingtalk.event.bpms_instance_change").len() == 2
    })
    .await;
    let tables = async || {
        let dead = stage.daemon.socket("GET", "/v1/dead").await.unwrap();
        let damaged = dead["damaged"].as_array().unwrap().clone();
        let tables = damaged
            .iter()
            .map(|row| row["table"].as_str().unwrap().to_owned());
        tables.collect::<Vec<_>>()
    };
    until("both are set aside", async || {
        tables().await == ["inbox_payload", "outbox_payload"]
    })
    .await;
    let metrics = stage.metrics().await;
    assert!(
        metrics.contains("dingd_store_quarantined_records_total 2"),
        "{metrics}"
    );
    stage.close().await;
}

#[tokio::test]
async fn a_log_that_was_cut_or_exchanged_is_noticed() {
    let mut stage = Stage::open().await;
    let log = Daemon::state_dir(stage.dir.path()).join("journal.log");
    for n in 0..4 {
        let id = stage.send(&text_to(&robot(), &format!("m{n}"))).await;
        stage.reaches(&id, "sent").await;
    }
    // Until the tables know how far the log was.
    tokio::time::sleep(Duration::from_millis(200)).await;
    stage.daemon.kill().await;
    let whole = std::fs::read(&log).unwrap();
    std::fs::write(&log, &whole[..whole.len() - 4_096]).unwrap();
    let refused = Daemon::start(program(), stage.dir.path(), &stage.config).await;
    let said = refused.err().unwrap();
    assert!(said.contains("journal.log"), "{said}");
    // An empty one of the right length: what it alone held cannot be known, and that is said.
    std::fs::write(&log, vec![0; whole.len()]).unwrap();
    let config = stage.dir.path().join("config.toml");
    let (code, text) = command(&config, &["journal", "check"]).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("set aside now"), "{text}");
    stage.daemon = Daemon::start(program(), stage.dir.path(), &stage.config)
        .await
        .unwrap();
    let dead = stage.daemon.socket("GET", "/v1/dead").await.unwrap();
    assert_eq!(dead["damaged"][0]["table"], "log", "{dead}");
    stage.close().await;
}
