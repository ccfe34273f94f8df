//! One token an app: fetched once for all who wait, kept across restarts, dropped on refusal.

use std::time::Duration;

use dingd::sim::dingtalk::{Settings, Switches, Wrong};
use serde_json::json;

use crate::support::{Stage, fast, text_to, until};

fn unlimited() -> Settings {
    Settings {
        limits: false,
        ..fast()
    }
}

#[tokio::test]
async fn two_hundred_who_wait_cost_one_fetch_and_so_does_an_expiry() {
    let users: Vec<_> = (0..200)
        .map(|n| dingd::sim::dingtalk::User::named(&format!("u{n}"), "n", "13900000000"))
        .collect();
    let edit =
        |config: String| config.replace("[limits.app_api]\n", "[limits.app_api]\ncount = 10000\n");
    let stage = Stage::with(
        Settings {
            users,
            ..unlimited()
        },
        edit,
    )
    .await;
    for round in 1..=2 {
        let mut ids = vec![];
        for n in 0..200 {
            ids.push(
                stage
                    .send(&text_to(&json!({"users": [format!("u{n}")]}), "x"))
                    .await,
            );
        }
        for id in &ids {
            let message = stage.reaches(id, "sent").await;
            assert_eq!(message["attempts"], 1, "a refused token costs no attempt");
        }
        assert_eq!(stage.box_.token_fetches(), round);
        stage.box_.expire_tokens();
    }
    stage.close().await;
}

/// They look again every 200 ms: without being woken, the urgent one would come last here.
#[tokio::test]
async fn when_the_token_is_there_the_most_urgent_of_those_that_wait_goes_first() {
    let users = |n| dingd::sim::dingtalk::User::named(&format!("u{n}"), "n", "13900000000");
    let settings = Settings {
        users: (0..16).map(users).collect(),
        ..unlimited()
    };
    let edit = |config: String| {
        config.replace("[limits.app_api]\n", "[limits.app_api]\ncount = 10000\n")
            + "[outbound]\nconcurrency = 2\n"
    };
    let stage = Stage::with(settings, edit).await;
    stage.box_.set(Switches {
        only: Some("/v1.0/oauth2/accessToken".into()),
        slow_ms: 2_950,
        ..Switches::default()
    });
    let mut ids = vec![];
    for n in 0..15 {
        let body = text_to(&json!({"users": [format!("u{n}")]}), "normal");
        ids.push(stage.send(&body).await);
    }
    tokio::time::sleep(Duration::from_millis(60)).await;
    let mut urgent = text_to(&json!({"users": ["u15"]}), "urgent");
    urgent["priority"] = json!("critical");
    ids.push(stage.send(&urgent).await);
    for id in &ids {
        stage.reaches(id, "sent").await;
    }
    let delivered = stage.box_.delivered();
    let place = delivered.iter().position(|one| one.text == "urgent");
    // One may be beside it, and with it the next.
    assert!(place.unwrap() < 4, "{delivered:?}");
    stage.close().await;
}

#[tokio::test]
async fn a_token_survives_a_restart_sealed_and_a_damaged_cache_costs_one_fetch() {
    let stage = Stage::with(unlimited(), |config| config).await;
    let send = async |stage: &Stage| {
        let id = stage
            .send(&text_to(&json!({"users": ["manager0001"]}), "x"))
            .await;
        stage.reaches(&id, "sent").await;
    };
    send(&stage).await;
    let cache = stage.dir.path().join("state/cache");
    until("the cache is written", async || cache.join("db").exists()).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let stage = stage.crash().await;
    send(&stage).await;
    assert_eq!(stage.box_.token_fetches(), 1, "it was kept");
    let mut stage = stage;
    for (fetches, content) in [(2, &b"garbage"[..]), (3, b"")] {
        stage = stage
            .again(async |daemon, _| {
                assert_eq!(daemon.terminate().await, Some(0));
                for file in std::fs::read_dir(&cache).unwrap() {
                    let path = file.unwrap().path();
                    if path.is_file() {
                        std::fs::write(&path, content).unwrap();
                    }
                }
            })
            .await;
        send(&stage).await;
        assert_eq!(stage.box_.token_fetches(), fetches);
    }
    let stage = stage
        .again(async |daemon, _| {
            assert_eq!(daemon.terminate().await, Some(0));
            std::fs::remove_dir_all(&cache).unwrap();
        })
        .await;
    send(&stage).await;
    assert_eq!(stage.box_.token_fetches(), 4, "so does a deleted one");
    stage.close().await;
}

#[tokio::test]
async fn wrong_credentials_block_the_app_and_name_the_console_page() {
    let stage = Stage::open().await;
    let config = stage
        .config
        .replace(&stage.settings.app.client_secret, "not-the-secret-at-all");
    std::fs::write(stage.dir.path().join("config.toml"), config).unwrap();
    stage.daemon.signal(dingd::sim::daemon::Signal::Hangup);
    until("it is taken over", async || {
        stage.log().contains("was taken over")
    })
    .await;
    let id = stage
        .send(&text_to(&json!({"users": ["manager0001"]}), "x"))
        .await;
    until("it is reported", async || {
        stage.ready().await["degraded"]
            .to_string()
            .contains("client_secret")
    })
    .await;
    let message = stage.message(&id).await;
    assert_eq!(
        (&message["state"], &message["attempts"]),
        (&json!("queued"), &json!(0)),
        "{message}"
    );
    std::fs::write(stage.dir.path().join("config.toml"), &stage.config).unwrap();
    stage.close().await;
}

#[tokio::test]
async fn fresh_tokens_that_are_refused_are_not_fetched_in_a_loop() {
    let stage = Stage::with(unlimited(), |config| config).await;
    let refused = Wrong::json(
        400,
        r#"{"code":"InvalidAuthentication","requestid":"r","message":"m"}"#,
    );
    stage.box_.set(Switches {
        wrong: Some(refused),
        ..Switches::default()
    });
    let id = stage
        .send(&text_to(&json!({"users": ["manager0001"]}), "x"))
        .await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(
        stage.box_.token_fetches() <= 2,
        "{} fetches",
        stage.box_.token_fetches()
    );
    assert_eq!(stage.message(&id).await["attempts"], 0);
    stage.box_.set(Switches::default());
    stage.reaches(&id, "sent").await;
    stage.close().await;
}

/// A probe that held the breaker's only place waited for a token whose fetch needed that place.
#[tokio::test]
async fn an_outage_in_which_the_token_dies_is_recovered_from() {
    let stage = Stage::with(unlimited(), |config| config).await;
    let send = async |text: &str| {
        stage
            .send(&text_to(&json!({"users": ["manager0001"]}), text))
            .await
    };
    let first = send("first").await;
    stage.reaches(&first, "sent").await;
    stage.box_.expire_tokens();
    stage.box_.set(Switches {
        down: true,
        ..Switches::default()
    });
    let chat = stage
        .send(&text_to(&json!({"chat": stage.chat()}), "x"))
        .await;
    let waiting = send("waiting").await;
    until("the breaker opens", async || {
        stage.ready().await["degraded"]
            .to_string()
            .contains("does not answer")
    })
    .await;
    stage.box_.set(Switches::default());
    stage.reaches(&waiting, "sent").await;
    until("the other has ended", async || {
        stage.state(&chat).await != "queued"
    })
    .await;
    stage.close().await;
}

#[tokio::test]
async fn a_refusal_in_the_words_of_the_old_generation_renews_the_token_as_well() {
    for refused in [
        r#"{"errcode":88,"sub_code":"40014","sub_msg":"不合法的access_token"}"#,
        r#"{"errcode":42001,"errmsg":"access_token expired"}"#,
    ] {
        let stage = Stage::with(unlimited(), |config| config).await;
        let send = async || {
            let body = text_to(&json!({"users": ["manager0001"]}), "x");
            let id = stage.send(&body).await;
            assert_eq!(stage.reaches(&id, "sent").await["attempts"], 1, "{refused}");
        };
        send().await;
        stage.box_.expire_tokens();
        stage.box_.set(Switches {
            fail_next: [Wrong::json(200, refused)].into(),
            ..Switches::default()
        });
        send().await;
        assert_eq!(stage.box_.token_fetches(), 2);
        stage.close().await;
    }
}

/// Looked at every 30 s, so this takes a minute.
#[tokio::test]
async fn a_token_is_renewed_before_it_expires_and_a_valid_one_stays_in_use_if_that_fails() {
    let settings = Settings {
        token_life_s: 70,
        ..unlimited()
    };
    let stage = Stage::with(settings, |config| config).await;
    let send = async |text: &str| {
        let id = stage
            .send(&text_to(&json!({"users": ["manager0001"]}), text))
            .await;
        assert_eq!(stage.reaches(&id, "sent").await["attempts"], 1);
    };
    send("fetches one").await;
    stage.box_.set(Switches {
        down: true,
        only: Some("/v1.0/oauth2".to_owned()),
        ..Switches::default()
    });
    let failed = r#"dingd_token_refreshes_total{app="oncall",result="failed"} 1"#;
    let started = std::time::Instant::now();
    while !stage.metrics().await.contains(failed) {
        assert!(started.elapsed().as_secs() < 69, "nobody tried to renew it");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(stage.box_.token_fetches(), 1);
    send("uses it still").await;
    stage.box_.set(Switches::default());
    stage.close().await;
}
