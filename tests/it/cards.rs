//! Cards out: made once, for everybody who is to see them. How they change is in `card_changes`.

use dingd::sim::dingtalk::{
    CardCallback, CardSettings, Repeated, Settings, Switches, User, Via, Wrong,
};
use dingd::sim::post::Reply;
use serde_json::{Value, json};

use crate::support::{Stage, fast, robot, text_to, until};

pub const CREATE: &str = "/v1.0/card/instances/createAndDeliver";
pub const DELIVER: &str = "/v1.0/card/instances/deliver";
pub const UPDATE: &str = "/v1.0/card/instances";

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

pub fn people(count: usize) -> (Settings, Vec<String>) {
    let ids: Vec<_> = (0..count).map(|n| format!("user{n:03}")).collect();
    let users = ids.iter().map(|id| User::named(id, id, "13800000009"));
    let settings = Settings {
        users: users.collect(),
        ..fast()
    };
    (settings, ids)
}

pub fn refused(code: &str) -> Wrong {
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

#[tokio::test]
async fn a_change_of_a_critical_card_is_taken_as_long_as_critical_messages_are() {
    let edit = |config: String| format!("{config}[outbound]\nqueue_messages_max = 10\n");
    let stage = Stage::with(fast(), edit).await;
    let mut body = card_to(&stage.to_chat(), "inc-1");
    body["priority"] = json!("critical");
    let id = stage.send_card(&body).await;
    stage.reaches(&id, "sent").await;
    stage.box_.set(Switches {
        down: true,
        ..Switches::default()
    });
    for n in 0..9 {
        stage.send(&text_to(&robot(), &format!("m{n}"))).await;
    }
    let change = json!({"data": {"n": "1"}});
    let reply = stage.patch_card("inc-1", &change).await;
    assert_eq!(reply.status, 202, "{}", reply.body);
    stage.box_.set(Switches::default());
    stage.agrees("inc-1").await;
    stage.close().await;
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
        let reply = reply.unwrap();
        assert_eq!(reply.status, status, "{card}");
        let standing = reply.header("ratelimit").unwrap_or_default();
        assert_eq!(standing.contains("app_api"), status != 409, "{standing}");
    }
    stage.agrees("inc-1").await;
    assert_eq!(stage.calls("PUT", UPDATE), 1);
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
