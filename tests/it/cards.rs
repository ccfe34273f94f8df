//! Cards out: made once, changed in order, each change in as few calls as DingTalk's pace allows.

use std::time::Duration;

use dingd::sim::dingtalk::{
    CardCallback, CardSettings, Cause, Repeated, Settings, Switches, User, Via, Wrong,
};
use dingd::sim::post::Reply;
use serde_json::{Value, json};

use crate::support::{Stage, fast, program, until};

const CREATE: &str = "/v1.0/card/instances/createAndDeliver";
const DELIVER: &str = "/v1.0/card/instances/deliver";
const UPDATE: &str = "/v1.0/card/instances";

pub fn card_to(to: &Value, id: &str) -> Value {
    json!({"template_id": "t.schema", "out_track_id": id, "to": to,
        "data": {"title": "P1 disk full", "n": "0"}})
}

impl Stage {
    pub async fn post_card(&self, body: &Value) -> Reply {
        let reply = self.daemon.request("POST", "/v1/cards", body).await;
        reply.unwrap()
    }

    pub async fn send_card(&self, body: &Value) -> String {
        let reply = self.post_card(body).await;
        assert_eq!(reply.status, 202, "{}", reply.body);
        reply.json()["id"].as_str().unwrap().to_owned()
    }

    pub async fn patch_card(&self, id: &str, body: &Value) -> Reply {
        let path = format!("/v1/cards/{id}");
        self.daemon.request("PATCH", &path, body).await.unwrap()
    }

    /// A change that is accepted; the id of the message that takes it along.
    pub async fn change(&self, id: &str, body: &Value) -> String {
        let reply = self.patch_card(id, body).await;
        assert_eq!(reply.status, 202, "{}", reply.body);
        reply.json()["id"].as_str().unwrap().to_owned()
    }

    pub async fn card(&self, id: &str) -> Value {
        self.get(&format!("/v1/cards/{id}")).await.json()
    }

    /// Waits until nothing of the card is missing at DingTalk, and both agree what it shows.
    pub async fn agrees(&self, id: &str) {
        until(&format!("nothing of {id} waits"), async || {
            let card = self.card(id).await;
            card["state"] == "created" && card["waiting"].is_null()
        })
        .await;
        let (ours, theirs) = (self.card(id).await, self.box_.card(id).unwrap());
        assert_eq!(ours["data"], json!(theirs.public), "{id}");
        let mut private = theirs.private;
        private.retain(|_, own| !own.is_empty());
        assert_eq!(ours["private_data"], json!(private), "{id}");
    }

    /// Calls of the box by path, those that it answered with success.
    pub fn calls(&self, method: &str, path: &str) -> usize {
        let requests = self.box_.requests();
        let calls = requests
            .iter()
            .filter(|one| one.method == method && one.path == path && one.status == 200);
        calls.count()
    }

    pub fn to_chat(&self) -> Value {
        json!({"chat": self.chat()})
    }
}

fn people(count: usize) -> (Settings, Vec<String>) {
    let ids: Vec<_> = (0..count).map(|n| format!("user{n:03}")).collect();
    let users = ids.iter().map(|id| User::named(id, id, "13800000009"));
    let settings = Settings {
        users: users.collect(),
        ..fast()
    };
    (settings, ids)
}

fn refused(code: &str) -> Wrong {
    Wrong::json(400, &format!(r#"{{"code":"{code}","message":"m"}}"#))
}

#[tokio::test]
async fn a_card_appears_in_the_chat_and_can_be_changed_by_key_and_as_a_whole() {
    let stage = Stage::open().await;
    let mut body = card_to(&stage.to_chat(), "inc-1");
    body["private_data"] = json!({"manager0001": {"mine": "no"}, "manager0002": {"mine": "no"}});
    body["at"] = json!({"users": ["manager0001"], "all": true});
    let reply = stage.post_card(&body).await;
    assert_eq!(reply.status, 202, "{}", reply.body);
    assert_eq!(reply.json()["out_track_id"], "inc-1");
    assert!(reply.header("ratelimit").is_some());
    let id = reply.json()["id"].as_str().unwrap().to_owned();
    let sent = stage.reaches(&id, "sent").await;
    stage.agrees("inc-1").await;
    let shown = stage.box_.card("inc-1").unwrap();
    assert_eq!(shown.callback, CardCallback::None);
    assert_eq!(shown.spaces.len(), 1);
    let handle = &sent["receipts"][0]["process_query_key"];
    assert_eq!(*handle, json!(shown.spaces[0].carrier));
    stage
        .change(
            "inc-1",
            &json!({"data": {"n": "1"}, "private_data": {"manager0001": {"mine": "yes"}}}),
        )
        .await;
    stage.agrees("inc-1").await;
    let card = stage.box_.card("inc-1").unwrap();
    assert_eq!(card.public["title"], "P1 disk full");
    assert_eq!(card.seen_by("manager0001")["mine"], "yes");
    assert_eq!(card.seen_by("manager0002")["mine"], "no");
    let whole = json!({"data": {"n": "2"}, "private_data": {"manager0001": {"other": "x"}},
        "replace": true});
    let update = stage.change("inc-1", &whole).await;
    stage.agrees("inc-1").await;
    let card = stage.card("inc-1").await;
    assert_eq!(card["data"], json!({"n": "2"}));
    assert_eq!(card["private_data"], json!({"manager0001": {"other": "x"}}));
    let message = stage.reaches(&update, "sent").await;
    assert_eq!(message["to"], json!({"card": "inc-1"}));
    assert_eq!(message["client"], "platform");
    assert_eq!(sent["out_track_id"], "inc-1");
    until("the platform is told of all three", async || {
        stage.events("dingd.message.finished").len() == 3
    })
    .await;
    stage.close().await;
}

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
async fn a_card_without_a_name_gets_that_of_its_message() {
    let stage = Stage::open().await;
    let mut body = card_to(&json!({"users": ["manager0001"]}), "x");
    body.as_object_mut().unwrap().remove("out_track_id");
    let reply = stage.post_card(&body).await.json();
    assert_eq!(reply["out_track_id"], reply["id"]);
    let name = reply["id"].as_str().unwrap();
    stage.agrees(name).await;
    assert_eq!(stage.box_.card(name).unwrap().spaces[0].id, "manager0001");
    stage.close().await;
}

/// One card, not three: who clicks on it changes it for all.
#[tokio::test]
async fn a_card_to_many_people_is_made_once_and_delivered_in_calls_of_twenty() {
    let (settings, ids) = people(45);
    let stage = Stage::with(settings, |config| config).await;
    let id = stage
        .send_card(&card_to(&json!({"users": ids}), "inc-1"))
        .await;
    let sent = stage.reaches(&id, "sent").await;
    assert_eq!(sent["receipts"].as_array().unwrap().len(), 3);
    assert_eq!(
        (stage.calls("POST", CREATE), stage.calls("POST", DELIVER)),
        (1, 2)
    );
    let mut reached: Vec<_> = stage
        .box_
        .card("inc-1")
        .unwrap()
        .spaces
        .iter()
        .map(|s| s.id.clone())
        .collect();
    reached.sort_unstable();
    assert_eq!(reached, ids);
    stage.change("inc-1", &json!({"data": {"n": "1"}})).await;
    stage.agrees("inc-1").await;
    assert_eq!(stage.calls("PUT", UPDATE), 1);
    stage.close().await;
}

#[tokio::test]
async fn the_spaces_decide_and_not_the_outer_flag() {
    let (settings, ids) = people(3);
    let stage = Stage::with(settings, |config| config).await;
    let chat = stage.chat();
    stage.box_.set(Switches {
        undeliverable: vec![chat, ids[1].clone()],
        ..Switches::default()
    });
    let id = stage.send_card(&card_to(&stage.to_chat(), "c")).await;
    let dead = stage.reaches(&id, "dead").await;
    assert_eq!(dead["reason"]["code"], "card_not_delivered");
    let alone = json!({"users": [ids[1]]});
    let id = stage.send_card(&card_to(&alone, "a")).await;
    let dead = stage.reaches(&id, "dead").await;
    assert_eq!(dead["reason"]["code"], "card_not_delivered");
    let id = stage.send_card(&card_to(&json!({"users": ids}), "b")).await;
    let sent = stage.reaches(&id, "sent").await;
    let outcomes: Vec<_> = sent["receipts"][0]["recipients"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["outcome"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(outcomes, ["sent", "invalid_user", "sent"]);
    // What was made and reached nobody is only delivered when it is tried again.
    stage.box_.set(Switches::default());
    let dead_id = dead["id"].as_str().unwrap();
    let replayed = stage
        .daemon
        .request("POST", &format!("/v1/dead/{dead_id}/replay"), &Value::Null)
        .await
        .unwrap();
    assert_eq!(replayed.status, 200, "{}", replayed.body);
    stage.reaches(dead_id, "sent").await;
    assert_eq!(stage.box_.card("a").unwrap().spaces.len(), 1);
    assert_eq!(stage.calls("POST", DELIVER), 1);
    stage.agrees("a").await;
    stage.close().await;
}

/// The first call made it, and its answer was lost.
#[tokio::test]
async fn a_repeat_after_a_lost_answer_finds_the_card_and_is_a_success() {
    for repeated in [Repeated::Refused, Repeated::Ignored] {
        let cards = CardSettings {
            repeated,
            ..CardSettings::default()
        };
        let stage = Stage::with(Settings { cards, ..fast() }, |config| config).await;
        stage.box_.set(Switches {
            only: Some(CREATE.to_owned()),
            cut_after: true,
            ..Switches::default()
        });
        let id = stage.send_card(&card_to(&stage.to_chat(), "inc-1")).await;
        stage.reaches(&id, "retrying").await;
        // It may be there already, so it is not made as it is to be now, but changed afterwards.
        let update = stage.change("inc-1", &json!({"data": {"n": "1"}})).await;
        assert_ne!(update, id);
        stage.box_.set(Switches::default());
        stage.reaches(&id, "sent").await;
        stage.agrees("inc-1").await;
        assert_eq!(stage.state(&update).await, "sent");
        let shown = stage.box_.delivered();
        assert_eq!(shown.iter().filter(|one| one.via == Via::Card).count(), 1);
        stage.close().await;
    }
}

#[tokio::test]
async fn a_card_that_somebody_else_made_is_no_success() {
    let stage = Stage::open().await;
    stage.box_.set(Switches {
        fail_next: [refused("param.cardAlreadyExist")].into(),
        ..Switches::default()
    });
    let id = stage.send_card(&card_to(&stage.to_chat(), "inc-1")).await;
    let dead = stage.reaches(&id, "dead").await;
    assert_eq!(dead["reason"]["code"], "card_exists");
    let reply = stage
        .patch_card("inc-1", &json!({"data": {"n": "1"}}))
        .await;
    assert_eq!(reply.status, 409);
    assert!(
        reply.json()["type"]
            .as_str()
            .unwrap()
            .ends_with("card_not_sent"),
        "{}",
        reply.body
    );
    assert_eq!(stage.card("inc-1").await["state"], "dead");
    stage.close().await;
}

#[tokio::test]
async fn a_name_is_used_once_and_a_key_answers_again() {
    let stage = Stage::open().await;
    let body = card_to(&stage.to_chat(), "inc-1");
    let key = [("idempotency-key", "k1")];
    let post = async |path: &str, method: &str, body: &Value| {
        let request = stage.daemon.request_with(method, path, &key, body);
        request.await.unwrap()
    };
    let first = post("/v1/cards", "POST", &body).await;
    assert_eq!(first.status, 202, "{}", first.body);
    let again = post("/v1/cards", "POST", &body).await;
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!((again.status, again.body), (200, first.body));

    let other = stage.post_card(&body).await;
    assert_eq!(other.status, 409);
    assert!(
        other.json()["type"]
            .as_str()
            .unwrap()
            .ends_with("card_exists"),
        "{}",
        other.body
    );
    // The same change of another card is another request.
    stage.agrees("inc-1").await;
    stage.send_card(&card_to(&stage.to_chat(), "inc-2")).await;
    stage.agrees("inc-2").await;
    let key = [("idempotency-key", "k2")];
    let change = json!({"data": {"n": "1"}});
    for (card, status) in [("inc-1", 202), ("inc-1", 200), ("inc-2", 409)] {
        let path = format!("/v1/cards/{card}");
        let reply = stage
            .daemon
            .request_with("PATCH", &path, &key, &change)
            .await;
        assert_eq!(reply.unwrap().status, status, "{card}");
    }
    stage.agrees("inc-1").await;
    assert_eq!(stage.calls("PUT", UPDATE), 1);
    stage.close().await;
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
    let mut ids = vec![];
    for n in 1..=60 {
        // An urgent one among them must not be overtaken by those before it either.
        let priority = if n % 7 == 0 { "critical" } else { "normal" };
        let change =
            json!({"data": {"n": n.to_string(), format!("k{n}"): "x"}, "priority": priority});
        ids.push(stage.change("inc-1", &change).await);
        tokio::time::sleep(Duration::from_millis(8)).await;
    }
    stage.agrees("inc-1").await;
    let card = stage.box_.card("inc-1").unwrap();
    assert_eq!(card.public["n"], "60");
    let seen: Vec<u32> = card
        .history
        .iter()
        .map(|s| s.public["n"].parse().unwrap())
        .collect();
    assert!(seen.is_sorted(), "{seen:?}");
    let updates = stage.calls("PUT", UPDATE);
    assert!(
        (2..=12).contains(&updates),
        "{updates} calls for 60 changes"
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

#[tokio::test]
async fn cards_and_changes_pass_no_limit() {
    let settings = Settings {
        limits: true,
        ..fast()
    };
    let stage = Stage::with(settings, |config| config).await;
    for n in 0..30 {
        let name = format!("inc-{n}");
        stage.send_card(&card_to(&stage.to_chat(), &name)).await;
        stage.change(&name, &json!({"data": {"n": "1"}})).await;
    }
    for n in 0..30 {
        stage.agrees(&format!("inc-{n}")).await;
    }
    assert_eq!(stage.box_.penalties(), vec![]);
    stage.close().await;
}

#[tokio::test]
async fn the_legacy_api_makes_and_changes_cards_by_configuration() {
    let (settings, ids) = people(21);
    let stage = Stage::with(settings, |config| {
        format!("{config}[apps.cards]\napi = \"legacy\"\n")
    })
    .await;
    stage.send_card(&card_to(&stage.to_chat(), "a")).await;
    let id = stage
        .send_card(&card_to(&json!({"users": ids[..20]}), "b"))
        .await;
    let sent = stage.reaches(&id, "sent").await;
    assert!(
        sent["receipts"][0]["process_query_key"].is_string(),
        "{sent}"
    );
    for name in ["a", "b"] {
        stage
            .change(
                name,
                &json!({"data": {"n": "1"}, "private_data": {&ids[0]: {"mine": "1"}}}),
            )
            .await;
        stage.agrees(name).await;
        assert!(stage.box_.card(name).unwrap().legacy);
    }
    let reply = stage.post_card(&card_to(&json!({"users": ids}), "c")).await;
    assert_eq!(reply.status, 422, "{}", reply.body);
    assert_eq!(stage.calls("POST", CREATE), 0);
    stage.close().await;
}

/// `[apps.cards]` for clicks over HTTP.
fn by_http(config: &str) -> String {
    let config = config.replace(
        "[callbacks]\n",
        "[callbacks]\npublic_url = \"https://alerts.example.com/\"\n",
    );
    format!(
        "{config}[apps.cards]\ncallback = \"http\"\nroute_key = \"dingd-oncall\"\nsecret = \"0123456789abcdef-cards\"\n"
    )
}

async fn cards_command(stage: &Stage, arguments: &[&str]) -> (bool, String) {
    let config = stage.dir.path().join("config.toml");
    let out = tokio::process::Command::new(program())
        .arg("cards")
        .args(arguments)
        .arg("--config")
        .arg(config)
        .output()
        .await
        .unwrap();
    let text = [out.stdout, out.stderr].concat();
    (out.status.success(), String::from_utf8(text).unwrap())
}

#[tokio::test]
async fn the_callback_is_registered_once_and_what_is_there_is_not_overwritten_unasked() {
    const URL: &str = "https://alerts.example.com/callback/oncall/cards";
    for known_route_is_an_error in [true, false] {
        let cards = CardSettings {
            known_route_is_an_error,
            ..CardSettings::default()
        };
        let stage = Stage::with(Settings { cards, ..fast() }, |config| by_http(&config)).await;
        let (done, text) = cards_command(&stage, &["register"]).await;
        assert!(done && text.contains(URL), "{text}");
        let route = stage.box_.card_routes().pop().unwrap();
        assert_eq!(
            (route.key.as_str(), route.url.as_str()),
            ("dingd-oncall", URL)
        );
        assert_eq!(route.secret.as_deref(), Some("0123456789abcdef-cards"));
        // Again: where DingTalk says what is registered, that is ours.
        let (done, text) = cards_command(&stage, &["register", "--json"]).await;
        assert_eq!(done, !known_route_is_an_error, "{text}");
        // Somebody else has the name.
        stage
            .register_by_hand("https://other.example/x", "another-secret-01")
            .await;
        let (done, text) = cards_command(&stage, &["register"]).await;
        assert!(!done && text.contains("--force"), "{text}");
        let shown = text.contains("https://other.example/x");
        assert_eq!(shown, !known_route_is_an_error, "{text}");
        // The URL is ours, the secret is not: clicks would be refused.
        stage.register_by_hand(URL, "another-secret-01").await;
        let (done, text) = cards_command(&stage, &["register"]).await;
        assert!(!done && text.contains("--force"), "{text}");
        let (done, text) = cards_command(&stage, &["register", "--force", "--app", "oncall"]).await;
        assert!(done, "{text}");
        assert_eq!(stage.box_.card_routes().pop().unwrap().url, URL);
        let log = stage.log();
        for secret in ["0123456789abcdef-cards", "another-secret-01"] {
            assert!(!text.contains(secret) && !log.contains(secret));
        }
        // A card made now calls back there.
        stage.send_card(&card_to(&stage.to_chat(), "inc-1")).await;
        stage.agrees("inc-1").await;
        let callback = stage.box_.card("inc-1").unwrap().callback;
        assert_eq!(callback, CardCallback::Http("dingd-oncall".into()));
        let (done, text) = cards_command(&stage, &["show", "inc-1"]).await;
        assert!(
            done && text.contains("state: created") && text.contains("n = 0"),
            "{text}"
        );
        let (done, text) =
            cards_command(&stage, &["show", "inc-1", "--json", "--app", "oncall"]).await;
        let shown: Value = serde_json::from_str(&text).unwrap();
        assert!(done && shown["data"]["title"] == "P1 disk full", "{text}");
        let (done, text) = cards_command(&stage, &["show", "inc-9"]).await;
        assert!(!done && text.contains("card_not_found"), "{text}");
        stage.close().await;
    }
}

impl Stage {
    /// Registers another address under the daemon's name, as somebody else with its credentials would.
    async fn register_by_hand(&self, url: &str, secret: &str) {
        let app = &self.settings.app;
        let token = dingd::sim::post::request(
            "POST",
            &format!("{}/v1.0/oauth2/accessToken", self.box_.url()),
            &[],
            json!({"appKey": app.client_id, "appSecret": app.client_secret}).to_string(),
        )
        .await
        .unwrap()
        .json()["accessToken"]
            .as_str()
            .unwrap()
            .to_owned();
        let reply = dingd::sim::post::request(
            "POST",
            &format!("{}/v1.0/card/callbacks/register", self.box_.url()),
            &[("x-acs-dingtalk-access-token", token)],
            json!({"callbackRouteKey": "dingd-oncall", "callbackUrl": url, "apiSecret": secret,
                "forceUpdate": true})
            .to_string(),
        )
        .await
        .unwrap();
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
}

#[tokio::test]
async fn without_a_callback_over_http_there_is_nothing_to_register() {
    let stage = Stage::with(fast(), |config| {
        format!("{config}[apps.cards]\ncallback = \"stream\"\n[apps.stream]\nenabled = true\n")
    })
    .await;
    let (done, text) = cards_command(&stage, &["register"]).await;
    assert!(!done && text.contains("cards_not_http"), "{text}");
    stage.send_card(&card_to(&stage.to_chat(), "inc-1")).await;
    stage.agrees("inc-1").await;
    assert_eq!(
        stage.box_.card("inc-1").unwrap().callback,
        CardCallback::Stream
    );
    stage.close().await;
}

#[tokio::test]
async fn a_card_is_shown_to_whoever_sent_it_and_to_the_operator() {
    let stage = Stage::with(fast(), |config| {
        format!("{config}[[api.clients]]\nname = \"other\"\ntoken = \"other-token-0123456789\"\n")
    })
    .await;
    stage.send_card(&card_to(&stage.to_chat(), "inc-1")).await;
    stage.agrees("inc-1").await;
    let url = format!("{}/v1/cards/inc-1", stage.daemon.api());
    let other = [("authorization", "Bearer other-token-0123456789".to_owned())];
    for (method, body) in [("GET", Value::Null), ("PATCH", json!({"data": {"n": "9"}}))] {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let reply = dingd::sim::post::request(method, &url, &other, body)
            .await
            .unwrap();
        assert_eq!(reply.status, 404, "{method}: {}", reply.body);
    }
    let operator = stage.daemon.socket("GET", "/v1/cards/inc-1").await.unwrap();
    assert_eq!(operator["data"]["n"], "0");
    stage.close().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_card_is_named_and_nothing_is_stored() {
    let stage = Stage::open().await;
    let good = card_to(&stage.to_chat(), "inc-1");
    let with = |name: &str, value: Value| {
        let mut body = good.clone();
        body[name] = value;
        body
    };
    let without = |name: &str| {
        let mut body = good.clone();
        body.as_object_mut().unwrap().remove(name);
        body
    };
    let many: serde_json::Map<_, _> = (0..101)
        .map(|n| (format!("k{n}"), json!("v".repeat(1_024))))
        .collect();
    let (user, long) = (json!({"users": ["manager0001"]}), "v".repeat(1_025));
    for (body, member) in [
        (without("template_id"), "template_id"),
        (without("to"), "to"),
        (without("data"), "data"),
        (with("template_id", json!("")), "template_id"),
        (with("template_id", json!("a b")), "template_id"),
        (with("template_id", json!(7)), "template_id"),
        (with("out_track_id", json!("")), "out_track_id"),
        (with("out_track_id", json!("a b")), "out_track_id"),
        (with("out_track_id", json!("x".repeat(101))), "out_track_id"),
        (with("out_track_id", json!("a\u{0}")), "out_track_id"),
        (with("data", json!({"n": 1})), "data.n"),
        (with("data", json!({"n": null})), "data.n"),
        (with("data", json!({"n": {"x": "y"}})), "data.n"),
        (with("data", json!({"": "x"})), "data."),
        (with("data", json!({"k".repeat(101): "x"})), "data.kk"),
        (with("data", json!({"n": long})), "data.n"),
        (with("data", json!([])), "data"),
        (with("data", Value::Object(many)), "data"),
        (
            with("private_data", json!({"": {"n": "1"}})),
            "private_data.",
        ),
        (
            with("private_data", json!({"u": {"n": 1}})),
            "private_data.u.n",
        ),
        (with("private_data", json!({"u": "x"})), "private_data.u"),
        (with("to", json!({"robot": "robot-0"})), "to.robot"),
        (with("to", json!({"card": "inc-0"})), "to.card"),
        (with("to", json!({"chat": "nope"})), "to.chat"),
        (with("to", json!({"users": []})), "to.users"),
        (
            with("at", json!({"mobiles": ["13800000000"]})),
            "at.mobiles",
        ),
        (with("at", json!({"users": [""]})), "at.users[0]"),
        (with("at", json!({"users": vec!["u"; 51]})), "at.users"),
        (with("at", json!({"everybody": true})), "at.everybody"),
        (with("priority", json!("urgent")), "priority"),
        (with("expires_in_s", json!(0)), "expires_in_s"),
        (with("content", json!({})), "content"),
        (with("app", json!("nobody")), "app"),
        (
            json!({"template_id": "t", "to": user, "data": {}, "at": {"all": true}}),
            "at",
        ),
    ] {
        let reply = stage.post_card(&body).await;
        let detail = reply.json()["detail"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        assert_eq!(reply.status, 422, "{body}: {}", reply.body);
        assert!(detail.contains(member), "{member}: {detail}");
    }
    stage.send_card(&good).await;
    for (body, member) in [
        (json!({}), "data"),
        (json!({"replace": true}), "data"),
        (json!({"data": {}}), "data"),
        (json!({"private_data": {}}), "private_data"),
        (json!({"private_data": {"u": {}}}), "private_data"),
        (json!({"data": {"n": 1}}), "data.n"),
        (json!({"data": {"n": long}}), "data.n"),
        (json!({"data": {"n": "1"}, "replace": "yes"}), "replace"),
        (json!({"data": {"n": "1"}, "to": {}}), "to"),
        (
            json!({"data": {"n": "1"}, "priority": "urgent"}),
            "priority",
        ),
        (json!([]), "length"),
    ] {
        let reply = stage.patch_card("inc-1", &body).await;
        let detail = reply.json()["detail"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        assert_eq!(reply.status, 422, "{body}: {}", reply.body);
        assert!(detail.contains(member), "{member}: {detail}");
    }
    let reply = stage
        .patch_card("inc-1", &json!({"data": {"n": "1"}, "app": "nobody"}))
        .await;
    assert_eq!(reply.status, 404, "{}", reply.body);
    assert_eq!(
        stage
            .patch_card("inc-2", &json!({"data": {"n": "1"}}))
            .await
            .status,
        404
    );
    assert_eq!(
        stage
            .patch_card("%ff", &json!({"data": {"n": "1"}}))
            .await
            .status,
        422
    );
    assert_eq!(stage.get("/v1/cards").await.status, 405);
    assert_eq!(stage.get("/v1/cards/inc-1/x").await.status, 404);
    for content in [
        json!({"card": {}}),
        json!({"card_update": {"out_track_id": "inc-1"}}),
    ] {
        let body = json!({"to": stage.to_chat(), "content": content});
        let reply = stage.post(&body).await;
        assert_eq!(reply.status, 422, "{}", reply.body);
        assert!(reply.body.contains("/v1/cards"), "{}", reply.body);
    }
    stage.agrees("inc-1").await;
    assert_eq!(stage.box_.cards().len(), 1);
    stage.close().await;
}

/// Unknown, then surely refused, then "exists": the first call made it.
#[tokio::test]
async fn a_refusal_after_a_lost_answer_leaves_the_doubt() {
    let stage = Stage::open().await;
    stage.box_.set(Switches {
        only: Some(CREATE.to_owned()),
        cut_after: true,
        ..Switches::default()
    });
    let id = stage.send_card(&card_to(&stage.to_chat(), "inc-1")).await;
    stage.reaches(&id, "retrying").await;
    stage.box_.set(Switches {
        fail_next: [Wrong::json(500, r#"{"code":"system.busy"}"#)].into(),
        ..Switches::default()
    });
    stage.reaches(&id, "sent").await;
    assert_eq!(stage.message(&id).await["attempts"], 3);
    stage.agrees("inc-1").await;
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
    assert_eq!(stage.card("inc-1").await["carried_by"], json!(change));
    stage.reaches(&change, "sent").await;
    assert_eq!(stage.box_.card("inc-1").unwrap().public["n"], "1");
    assert_eq!(stage.state(&id).await, "retrying");
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
