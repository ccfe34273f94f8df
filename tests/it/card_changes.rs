//! Changes of cards: in order, each in as few calls as DingTalk's pace allows, and none lost with another.

use std::time::Duration;

use dingd::sim::dingtalk::{CardSettings, Cause, Settings, Switches};
use serde_json::{Value, json};

use crate::cards::{CREATE, DELIVER, UPDATE, card_to, people, refused};
use crate::support::{Stage, fast, until};

/// Whether an update "of everything" drops the private data of those it does not name is not documented.
#[tokio::test]
async fn what_is_replaced_is_gone_for_everybody_whatever_dingtalk_takes_everything_for() {
    for overwrite_drops_others in [false, true] {
        let cards = CardSettings {
            overwrite_drops_others,
            ..CardSettings::default()
        };
        let settings = Settings { cards, ..fast() };
        let stage = Stage::with(settings, |config| config).await;
        let mut body = card_to(&stage.to_chat(), "inc-1");
        body["private_data"] = json!({"manager0001": {"mine": "1"}, "manager0002": {"mine": "2"}});
        stage.send_card(&body).await;
        stage.agrees("inc-1").await;
        let whole = json!({"private_data": {"manager0001": {"other": "x"}}, "replace": true});
        stage.change("inc-1", &whole).await;
        stage.agrees("inc-1").await;
        let card = stage.card("inc-1").await;
        assert_eq!(card["private_data"], json!({"manager0001": {"other": "x"}}));
        assert_eq!(card["data"]["n"], "0", "data was not named");
        stage.close().await;
    }
}

#[tokio::test]
async fn changes_that_come_while_dingtalk_is_slow_are_few_calls_and_never_out_of_order() {
    let stage = Stage::open().await;
    stage.send_card(&card_to(&stage.to_chat(), "inc-1")).await;
    stage.agrees("inc-1").await;
    stage.box_.set(Switches {
        slow_ms: 150,
        ..Switches::default()
    });
    let began = std::time::Instant::now();
    let mut ids = vec![];
    for n in 1..=60 {
        // An urgent one among them must not be overtaken by those before it either.
        let priority = if n % 7 == 0 { "critical" } else { "normal" };
        let change =
            json!({"data": {"n": n.to_string(), format!("k{n}"): "x"}, "priority": priority});
        ids.push(stage.change("inc-1", &change).await);
        tokio::time::sleep(Duration::from_millis(8)).await;
    }
    let asking_ms = began.elapsed().as_millis();
    stage.agrees("inc-1").await;
    let card = stage.box_.card("inc-1").unwrap();
    assert_eq!(card.public["n"], "60");
    let seen: Vec<u32> = card
        .history
        .iter()
        .map(|s| s.public["n"].parse().unwrap())
        .collect();
    assert!(seen.is_sorted(), "{seen:?}");
    // One after another while they are asked for, however long a busy machine takes for that; then one for
    // the rest, and two for what crossed with it.
    let updates = stage.calls("PUT", UPDATE);
    let most = asking_ms / 150 + 3;
    assert!(
        (2..=most).contains(&(updates as u128)),
        "{updates} calls for 60 changes in {asking_ms} ms"
    );
    for id in ids {
        until("every change has ended", async || {
            matches!(&*stage.state(&id).await, "sent" | "merged")
        })
        .await;
        let message = stage.message(&id).await;
        let merged = message["state"] == "merged";
        assert_eq!(merged, message["merged_into"].is_string(), "{message}");
    }
    stage.close().await;
}

#[tokio::test]
async fn a_change_before_the_card_has_left_joins_it_and_one_after_follows_it() {
    let stage = Stage::open().await;
    stage.box_.set(Switches {
        down: true,
        only: Some("/v1.0/card".to_owned()),
        ..Switches::default()
    });
    let id = stage.send_card(&card_to(&stage.to_chat(), "inc-1")).await;
    stage.reaches(&id, "retrying").await;
    assert_eq!(stage.card("inc-1").await["state"], "pending");
    for n in ["1", "2"] {
        let joined = stage.change("inc-1", &json!({"data": {"n": n}})).await;
        assert_eq!(joined, id);
    }
    stage.box_.set(Switches {
        slow_ms: 400,
        ..Switches::default()
    });
    until("the card is on its way", async || {
        stage.state(&id).await == "sending" && stage.box_.card("inc-1").is_some()
    })
    .await;
    let behind = stage
        .change(
            "inc-1",
            &json!({"data": {"n": "3"}, "priority": "critical"}),
        )
        .await;
    assert_ne!(behind, id, "it has left");
    assert_eq!(stage.card("inc-1").await["carried_by"], json!(id));
    stage.agrees("inc-1").await;
    let card = stage.box_.card("inc-1").unwrap();
    let seen: Vec<_> = card
        .history
        .iter()
        .map(|s| (s.cause.clone(), s.public["n"].clone()))
        .collect();
    assert_eq!(
        seen,
        [
            (Cause::Created, "2".to_owned()),
            (Cause::Updated, "3".to_owned())
        ]
    );
    stage.close().await;
}

#[tokio::test]
async fn a_change_of_a_card_that_was_not_sent_ends_with_it() {
    let stage = Stage::open().await;
    stage.box_.set(Switches {
        slow_ms: 400,
        fail_next: [refused("param.templateNotExist")].into(),
        ..Switches::default()
    });
    let id = stage.send_card(&card_to(&stage.to_chat(), "inc-1")).await;
    until("the card is on its way", async || {
        stage.state(&id).await == "sending"
    })
    .await;
    let behind = stage.change("inc-1", &json!({"data": {"n": "1"}})).await;
    let dead = stage.reaches(&behind, "dead").await;
    assert_eq!(dead["reason"]["code"], "card_not_sent");
    assert_eq!(
        stage.message(&id).await["reason"]["code"],
        "card_template_refused"
    );
    // The template is published: the card is made as it was to be by then.
    stage.box_.set(Switches::default());
    let replay = format!("/v1/dead/{id}/replay");
    let replayed = stage
        .daemon
        .request("POST", &replay, &Value::Null)
        .await
        .unwrap();
    assert_eq!(replayed.status, 200, "{}", replayed.body);
    stage.agrees("inc-1").await;
    assert_eq!(stage.box_.card("inc-1").unwrap().public["n"], "1");
    // And the change that had died has nothing more to do.
    let replay = format!("/v1/dead/{behind}/replay");
    stage
        .daemon
        .request("POST", &replay, &Value::Null)
        .await
        .unwrap();
    let merged = stage.reaches(&behind, "merged").await;
    assert_eq!(merged["merged_into"], json!(id));
    assert_eq!(stage.calls("PUT", UPDATE), 0);
    stage.close().await;
}

#[tokio::test]
async fn a_change_that_is_refused_does_not_take_later_ones_with_it() {
    let stage = Stage::open().await;
    stage.send_card(&card_to(&stage.to_chat(), "inc-1")).await;
    stage.agrees("inc-1").await;
    stage.box_.set(Switches {
        fail_next: [refused("param.contentUnsafe")].into(),
        ..Switches::default()
    });
    let bad = stage
        .change("inc-1", &json!({"data": {"text": "bad"}}))
        .await;
    let dead = stage.reaches(&bad, "dead").await;
    assert_eq!(dead["reason"]["code"], "content_refused");
    let good = stage.change("inc-1", &json!({"data": {"n": "1"}})).await;
    stage.reaches(&good, "sent").await;
    stage.agrees("inc-1").await;
    assert!(
        !stage
            .box_
            .card("inc-1")
            .unwrap()
            .public
            .contains_key("text")
    );
    stage.close().await;
}

#[tokio::test]
async fn a_change_that_is_withdrawn_is_not_made() {
    let stage = Stage::open().await;
    stage.send_card(&card_to(&stage.to_chat(), "inc-1")).await;
    stage.agrees("inc-1").await;
    stage.box_.set(Switches {
        down: true,
        ..Switches::default()
    });
    let id = stage.change("inc-1", &json!({"data": {"n": "1"}})).await;
    stage.reaches(&id, "retrying").await;
    let path = format!("/v1/messages/{id}");
    let reply = stage
        .daemon
        .request("DELETE", &path, &Value::Null)
        .await
        .unwrap();
    assert_eq!(reply.status, 200, "{}", reply.body);
    stage.box_.set(Switches::default());
    stage.agrees("inc-1").await;
    assert_eq!(stage.card("inc-1").await["data"]["n"], "0");
    stage.close().await;
}

/// The change under way is slow, and what comes behind it waits: first a normal one, then an urgent one that
/// would take it along.
async fn an_urgent_change_before_a_normal_one(stage: &Stage) -> (String, String) {
    stage.send_card(&card_to(&stage.to_chat(), "inc-1")).await;
    stage.agrees("inc-1").await;
    stage.box_.set(Switches {
        slow_ms: 1_500,
        ..Switches::default()
    });
    let first = stage.change("inc-1", &json!({"data": {"n": "1"}})).await;
    until("the first is on its way", async || {
        stage.box_.card("inc-1").unwrap().public["n"] == "1"
    })
    .await;
    let normal = stage.change("inc-1", &json!({"data": {"n": "2"}})).await;
    let urgent = json!({"data": {"text": "x"}, "priority": "critical"});
    let urgent = stage.change("inc-1", &urgent).await;
    assert!(first != normal && normal != urgent);
    (normal, urgent)
}

#[tokio::test]
async fn a_change_that_is_withdrawn_takes_none_of_the_others_with_it() {
    let stage = Stage::open().await;
    let (normal, urgent) = an_urgent_change_before_a_normal_one(&stage).await;
    let path = format!("/v1/messages/{urgent}");
    // Not while it finds out that its turn has not come.
    until("it is withdrawn", async || {
        let reply = stage.daemon.request("DELETE", &path, &Value::Null).await;
        reply.unwrap().status == 200
    })
    .await;
    stage.reaches(&normal, "sent").await;
    stage.agrees("inc-1").await;
    let shown = stage.box_.card("inc-1").unwrap().public;
    assert_eq!(shown["n"], "2", "accepted, and nobody withdrew it");
    assert!(!shown.contains_key("text"), "{shown:?}");
    stage.close().await;
}

#[tokio::test]
async fn a_change_that_is_refused_takes_none_of_the_others_with_it() {
    let stage = Stage::open().await;
    let (normal, urgent) = an_urgent_change_before_a_normal_one(&stage).await;
    // Whichever comes first takes both along.
    stage.box_.set(Switches {
        fail_next: [refused("param.contentUnsafe")].into(),
        ..Switches::default()
    });
    let mut states = vec![];
    for id in [&normal, &urgent] {
        until("it has ended", async || {
            let state = stage.state(id).await;
            !matches!(&*state, "queued" | "sending" | "retrying")
        })
        .await;
        states.push(stage.state(id).await);
    }
    stage.agrees("inc-1").await;
    let shown = stage.box_.card("inc-1").unwrap().public;
    // The one that was refused is dead, the other was sent: not merged into a dead one.
    let normal_is_dead = states == ["dead", "sent"];
    assert!(normal_is_dead || states == ["sent", "dead"], "{states:?}");
    let n = if normal_is_dead { "1" } else { "2" };
    assert_eq!(shown["n"], n);
    assert_eq!(shown.contains_key("text"), normal_is_dead, "{shown:?}");
    stage.close().await;
}

/// What was delivered to some shows them an old state as long as the others are waited for.
#[tokio::test]
async fn a_card_that_was_made_is_changed_while_it_is_still_being_delivered() {
    let (settings, ids) = people(25);
    let stage = Stage::with(settings, |config| config).await;
    stage.box_.set(Switches {
        only: Some(DELIVER.to_owned()),
        down: true,
        ..Switches::default()
    });
    let id = stage
        .send_card(&card_to(&json!({"users": ids}), "inc-1"))
        .await;
    stage.reaches(&id, "retrying").await;
    let change = stage.change("inc-1", &json!({"data": {"n": "1"}})).await;
    // It may have been carried before anybody can ask.
    let carried_by = stage.card("inc-1").await["carried_by"].clone();
    let is_sent = stage.state(&change).await == "sent";
    assert!(carried_by == json!(change) || is_sent, "{carried_by}");
    stage.reaches(&change, "sent").await;
    assert_eq!(stage.box_.card("inc-1").unwrap().public["n"], "1");
    stage.reaches(&id, "retrying").await;
    stage.box_.set(Switches::default());
    stage.reaches(&id, "sent").await;
    stage.agrees("inc-1").await;
    assert_eq!(stage.box_.card("inc-1").unwrap().spaces.len(), 25);
    stage.close().await;
}

/// Nobody knew whether the card was made; the change found that it was not.
#[tokio::test]
async fn a_change_for_which_there_was_no_card_yet_can_be_replayed_behind_it() {
    let stage = Stage::open().await;
    stage.box_.set(Switches {
        only: Some(CREATE.to_owned()),
        cut_before: true,
        ..Switches::default()
    });
    let mut body = card_to(&stage.to_chat(), "inc-1");
    body["expires_in_s"] = json!(2);
    let id = stage.send_card(&body).await;
    stage.reaches(&id, "expired").await;
    assert_eq!(stage.card("inc-1").await["state"], "unknown");
    let change = stage.change("inc-1", &json!({"data": {"n": "1"}})).await;
    let dead = stage.reaches(&change, "dead").await;
    assert_eq!(dead["reason"]["code"], "card_unknown");
    stage.box_.set(Switches::default());
    for id in [&id, &change] {
        let replay = format!("/v1/dead/{id}/replay");
        let replayed = stage.daemon.request("POST", &replay, &Value::Null).await;
        assert_eq!(replayed.unwrap().status, 200);
        stage.reaches(id, "sent").await;
    }
    stage.agrees("inc-1").await;
    assert_eq!(stage.box_.card("inc-1").unwrap().public["n"], "1");
    stage.close().await;
}
