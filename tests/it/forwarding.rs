//! Events on their way to the platform: at least once, in order, until it has them.

use std::time::Duration;

use dingd::sim::dingtalk::Casing;
use dingd::sim::platform::{Platform, PlatformSwitches};
use serde_json::json;

use crate::support::{Stage, fast, listener, other_event, reload, until};

#[tokio::test]
async fn a_platform_that_is_down_gets_every_event_when_it_is_back_with_the_same_id_and_bytes() {
    let stage = Stage::open().await;
    stage.platform.set(PlatformSwitches {
        status: Some(503),
        ..PlatformSwitches::default()
    });
    for number in 0..20 {
        assert!(stage.push(&other_event(number)).await.acknowledged);
    }
    until("an attempt", async || stage.platform.attempts().len() > 3).await;
    let degraded = stage.ready().await["degraded"].to_string();
    assert!(degraded.contains("upstream platform"), "{degraded}");
    stage.platform.set(PlatformSwitches::default());
    until("all events", async || stage.platform.events().len() == 20).await;
    for event in stage.platform.events() {
        let same: Vec<_> = stage
            .platform
            .attempts()
            .into_iter()
            .filter(|a| a.id == event.id)
            .collect();
        assert!(
            same.iter()
                .all(|attempt| attempt.raw_body == event.raw_body)
        );
    }
    until("the trouble is over", async || {
        stage.ready().await["degraded"] == json!([])
    })
    .await;
    stage.close().await;
}

#[tokio::test]
async fn a_platform_that_dies_after_taking_an_event_gets_it_again_under_the_same_id() {
    let stage = Stage::open().await;
    stage.platform.set(PlatformSwitches {
        cut_after: true,
        ..PlatformSwitches::default()
    });
    stage.push(&other_event(1)).await;
    until("the first attempt", async || {
        !stage.platform.attempts().is_empty()
    })
    .await;
    stage.platform.set(PlatformSwitches::default());
    until("the second attempt", async || {
        !stage.platform.events().is_empty()
    })
    .await;
    let attempts = stage.platform.attempts();
    assert!(
        attempts
            .iter()
            .all(|a| a.id == attempts[0].id && a.valid.is_ok())
    );
    stage.close().await;
}

#[tokio::test]
async fn retry_after_is_respected() {
    let stage = Stage::open().await;
    let busy = PlatformSwitches {
        status: Some(429),
        retry_after_s: Some(4),
        ..PlatformSwitches::default()
    };
    stage.platform.set(busy);
    stage.push(&other_event(1)).await;
    until("the first attempt", async || {
        !stage.platform.attempts().is_empty()
    })
    .await;
    stage.platform.set(PlatformSwitches::default());
    until("the second attempt", async || {
        !stage.platform.events().is_empty()
    })
    .await;
    let at: Vec<_> = stage.platform.attempts().iter().map(|a| a.at_ms).collect();
    assert!(at[1] - at[0] >= 4_000, "{at:?}");
    stage.close().await;
}

#[tokio::test]
async fn events_of_one_chat_arrive_in_order_while_the_platform_flaps() {
    let stage = Stage::open().await;
    for number in 0..12 {
        let failing = PlatformSwitches {
            status: Some(500),
            ..PlatformSwitches::default()
        };
        stage.platform.set(if number % 4 == 1 {
            failing
        } else {
            PlatformSwitches::default()
        });
        let event = stage.box_.rename(
            &stage.chat(),
            &format!("{number:02}"),
            "manager0001",
            Casing::Lower,
        );
        assert!(stage.push(&event).await.acknowledged);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stage.platform.set(PlatformSwitches::default());
    until("all renames", async || {
        stage.events("dingtalk.chat.renamed").len() == 12
    })
    .await;
    let titles: Vec<_> = stage
        .events("dingtalk.chat.renamed")
        .iter()
        .map(|event| event.body["data"]["title"].as_str().unwrap().to_owned())
        .collect();
    assert!(titles.is_sorted(), "{titles:?}");
    stage.close().await;
}

#[tokio::test]
async fn each_platform_gets_what_its_filters_let_through_and_one_that_is_down_holds_up_no_other() {
    let second = Platform::start(dingd::sim::daemon::PLATFORM_SECRET, listener().await);
    let url = second.url();
    let edit = move |config: String| {
        format!(
            "{config}[[upstreams]]\nname = \"second\"\nurl = \"{url}/x\"\nsecret = \"{}\"\nevents = [\"dingtalk.chat.\"]\n",
            dingd::sim::daemon::PLATFORM_SECRET
        )
    };
    let stage = Stage::with(fast(), edit).await;
    stage.platform.set(PlatformSwitches {
        status: Some(500),
        ..PlatformSwitches::default()
    });
    let renamed = stage
        .box_
        .rename(&stage.chat(), "新", "manager0001", Casing::Lower);
    stage.push(&other_event(1)).await;
    stage.push(&renamed).await;
    until("the second platform", async || !second.events().is_empty()).await;
    assert!(stage.platform.events().is_empty());
    assert_eq!(second.events().len(), 1);
    assert_eq!(second.events()[0].kind, "dingtalk.chat.renamed");
    stage.platform.set(PlatformSwitches::default());
    until("the first platform", async || {
        stage.platform.events().len() == 2
    })
    .await;
    assert_eq!(second.attempts().len(), 1, "it is not bothered again");
    stage.close().await;
}

#[tokio::test]
async fn an_event_beyond_its_lifetime_is_a_dead_letter_that_can_be_replayed() {
    let edit = |config: String| format!("{config}[inbound]\nlifetime_s = 1\n");
    let stage = Stage::with(fast(), edit).await;
    stage.platform.set(PlatformSwitches {
        status: Some(500),
        ..PlatformSwitches::default()
    });
    stage.push(&other_event(1)).await;
    let dead = async || stage.daemon.socket("GET", "/v1/dead").await.unwrap()["dead"].clone();
    until("it is dead", async || {
        !dead().await.as_array().unwrap().is_empty()
    })
    .await;
    let letter = dead().await[0].clone();
    assert_eq!(
        letter["targets"][0]["reason"]["code"],
        "upstream_unreachable"
    );
    let id = letter["id"].as_str().unwrap().to_owned();
    let shown = stage
        .daemon
        .socket("GET", &format!("/v1/dead/{id}"))
        .await
        .unwrap();
    assert_eq!(shown["body"]["data"]["raw"]["number"], 1);
    stage.platform.set(PlatformSwitches::default());
    stage
        .daemon
        .socket("POST", &format!("/v1/dead/{id}/replay"))
        .await
        .unwrap();
    until("it is forwarded", async || {
        !stage.platform.events().is_empty()
    })
    .await;
    assert_eq!(stage.platform.events()[0].id, id);
    assert_eq!(dead().await, json!([]));
    stage.close().await;
}

/// Of those behind a breaker each needed a probe of its own, one in five minutes.
#[tokio::test]
async fn events_that_waited_behind_a_breaker_die_of_their_age_together() {
    let edit = |config: String| format!("{config}[inbound]\nlifetime_s = 1\n");
    let stage = Stage::with(fast(), edit).await;
    stage.platform.set(PlatformSwitches {
        status: Some(500),
        ..PlatformSwitches::default()
    });
    for number in 0..60 {
        assert!(stage.push(&other_event(number)).await.acknowledged);
    }
    until("all are dead", async || {
        let dead = stage.daemon.socket("GET", "/v1/dead?limit=200").await;
        dead.unwrap()["dead"].as_array().unwrap().len() == 60
    })
    .await;
    let dead = stage.daemon.socket("GET", "/v1/dead?limit=200").await;
    for letter in dead.unwrap()["dead"].as_array().unwrap() {
        let detail = letter["targets"][0]["reason"]["detail"].as_str().unwrap();
        assert!(detail.contains("HTTP 500"), "what others met: {detail}");
    }
    let attempts = stage.platform.attempts().len();
    assert!(attempts < 60, "{attempts}: the breaker was open");
    stage.close().await;
}

#[tokio::test]
async fn an_upstream_that_is_removed_leaves_no_trouble_behind() {
    let stage = Stage::open().await;
    stage.platform.set(PlatformSwitches {
        status: Some(500),
        ..PlatformSwitches::default()
    });
    for number in 0..8 {
        assert!(stage.push(&other_event(number)).await.acknowledged);
    }
    let metric = async |line: &str| stage.metrics().await.contains(line);
    let breaker = "dingd_breaker_state{destination=\"platform\"}";
    until("the breaker is open", async || {
        metric(&format!("{breaker} 2")).await
    })
    .await;
    let (before, platform) = stage.config.split_once("[[upstreams]]").unwrap();
    let (_, after) = platform.split_once("[limits").unwrap();
    reload(&stage, &format!("{before}[limits{after}")).await;
    until("nothing is wrong any more", async || {
        stage.ready().await["degraded"] == json!([]) && metric(&format!("{breaker} 0")).await
    })
    .await;
    until("its events are given up", async || {
        let dead = stage.daemon.socket("GET", "/v1/dead").await.unwrap();
        dead["dead"].as_array().unwrap().len() == 8
    })
    .await;
    stage.close().await;
}

#[tokio::test]
async fn an_upstream_that_is_gone_is_left_alone_and_reported_until_its_url_changes() {
    let stage = Stage::open().await;
    stage.platform.set(PlatformSwitches {
        status: Some(410),
        ..PlatformSwitches::default()
    });
    stage.push(&other_event(1)).await;
    until("it is reported", async || {
        stage.ready().await["degraded"].to_string().contains("410")
    })
    .await;
    // Nobody else is sent there either.
    stage.push(&other_event(2)).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(stage.platform.attempts().len(), 1);
    stage.platform.set(PlatformSwitches::default());
    let (old, new) = (
        stage.platform.url(),
        format!("{}/new", stage.platform.url()),
    );
    reload(&stage, &stage.config.replace(&old, &new)).await;
    until("all events are there", async || {
        stage.platform.events().len() == 2
    })
    .await;
    stage.close().await;
}
