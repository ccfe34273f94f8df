//! Cards as the app makes and changes them: what is refused, and what each person then sees.

use super::*;

const CREATE: &str = "/v1.0/card/instances/createAndDeliver";
const CARDS: &str = "/v1.0/card/instances";
const REGISTER: &str = "/v1.0/card/callbacks/register";
const CHAT: &str = "cidBox+on/Call7x5EeiodoA==";

/// A card for the group and for one person.
pub(super) fn card(id: &str) -> Value {
    json!({
        "cardTemplateId": "alert.schema",
        "outTrackId": id,
        "callbackType": "STREAM",
        "cardData": {"cardParamMap": {"title": "P1", "status": "firing"}},
        "privateData": {"manager0001": {"cardParamMap": {"mine": "true"}}},
        "openSpaceId": format!("dtv1.card//IM_GROUP.{CHAT};IM_ROBOT.manager0001"),
        "imGroupOpenSpaceModel": {"supportForward": true},
        "imGroupOpenDeliverModel": {"robotCode": App::default().robot_code},
        "imRobotOpenDeliverModel": {"spaceType": "IM_ROBOT"},
        "userIdType": 1,
    })
}

/// The same with one member changed; null takes it out.
fn with(mut card: Value, pointer: &str, value: Value) -> Value {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let parent = card.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    if value.is_null() {
        parent.remove(name);
    } else {
        parent.insert(name.to_owned(), value);
    }
    card
}

fn data(pairs: &[(&str, &str)]) -> Data {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

#[tokio::test]
async fn a_card_goes_to_each_space_and_shows_each_person_their_own() {
    let ding = boxed(settings()).await;
    let token = token(&ding).await;
    let (status, answer) = call(&ding, CREATE, &token, &card("a")).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["result"]["outTrackId"], "a");
    let results = answer["result"]["deliverResults"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    assert_eq!(results[0]["spaceId"], CHAT);
    assert!(results.iter().all(|it| it["success"] == true));
    let card = ding.card("a").unwrap();
    assert_eq!(card.callback, CardCallback::Stream);
    assert_eq!(card.spaces[1].id, "manager0001");
    assert_eq!(card.public, data(&[("status", "firing"), ("title", "P1")]));
    assert_eq!(card.seen_by("manager0001")["mine"], "true");
    assert!(!card.seen_by("manager0002").contains_key("mine"));
    let via: Vec<Via> = ding.delivered().iter().map(|it| it.via).collect();
    assert_eq!(via, [Via::Card, Via::Card]);
    assert_eq!(ding.complaints(), Vec::<String>::new());
}

#[tokio::test]
async fn a_card_is_refused_for_each_thing_that_the_pages_demand() {
    let mut settings = settings();
    settings.limits = false;
    settings.cards.unpublished = vec!["draft".to_owned()];
    let ding = boxed(settings).await;
    let token = token(&ding).await;
    let map = "/cardData/cardParamMap/x";
    let cases = [
        ("/outTrackId", Value::Null, "param.outTrackIdEmpty"),
        ("/outTrackId", json!("x".repeat(101)), "param.invalid"),
        ("/cardTemplateId", json!(""), "param.cardTemplateIdEmpty"),
        (
            "/cardTemplateId",
            json!("draft"),
            "param.templateUnpublished",
        ),
        ("/openSpaceId", Value::Null, "param.openSpaceIdEmpty"),
        (
            "/openSpaceId",
            json!("IM_GROUP.cidx"),
            "param.openSpaceIdInvalid",
        ),
        (
            "/openSpaceId",
            json!("dtv1.card//IM_GROUP"),
            "param.openSpaceIdInvalid",
        ),
        (
            "/openSpaceId",
            json!("dtv1.card//OTHER.cidx"),
            "param.openSpaceIdInvalid",
        ),
        ("/cardData", Value::Null, "param.invalid"),
        (map, json!(1), "param.invalid"),
        (map, json!(true), "param.invalid"),
        (map, json!("x".repeat(1_025)), "param.invalid"),
        (
            "/privateData/nobody",
            json!({"cardParamMap": {}}),
            "param.userIdNotExist",
        ),
        ("/imGroupOpenSpaceModel", Value::Null, "param.invalid"),
        (
            "/imGroupOpenDeliverModel",
            Value::Null,
            "param.openDeliverModelEmpty",
        ),
        (
            "/imGroupOpenDeliverModel/robotCode",
            Value::Null,
            "param.openDeliverModelError",
        ),
        (
            "/imRobotOpenDeliverModel",
            Value::Null,
            "param.openDeliverModelEmpty",
        ),
        ("/callbackType", json!("stream"), "param.invalid"),
        ("/callbackType", json!("HTTP"), "param.invalid"),
        ("/userIdType", json!(3), "param.invalid"),
    ];
    for (pointer, value, code) in cases {
        let body = with(card("a"), pointer, value);
        let (status, answer) = call(&ding, CREATE, &token, &body).await;
        assert_eq!((status, &answer["code"]), (400, &json!(code)), "{pointer}");
    }
    assert!(ding.cards().is_empty() && ding.delivered().is_empty());
    assert_eq!(call(&ding, CREATE, "wrong", &card("a")).await.0, 400);
}

#[tokio::test]
async fn a_space_that_is_not_reached_does_not_fail_the_call() {
    let ding = boxed(settings()).await;
    let token = token(&ding).await;
    let body = with(
        card("a"),
        "/openSpaceId",
        json!("dtv1.card//IM_GROUP.cidElsewhere=="),
    );
    let (status, answer) = call(&ding, CREATE, &token, &body).await;
    assert_eq!((status, &answer["success"]), (200, &json!(true)));
    let result = &answer["result"]["deliverResults"][0];
    assert_eq!(result["success"], false);
    assert_ne!(result["errorMsg"], "");
    ding.set(Switches {
        undeliverable: vec![CHAT.to_owned()],
        ..Switches::default()
    });
    let (_, answer) = call(&ding, CREATE, &token, &card("b")).await;
    let success = |at: usize| answer["result"]["deliverResults"][at]["success"].clone();
    assert_eq!((success(0), success(1)), (json!(false), json!(true)));
    // The card exists all the same, so that only its delivery is missing.
    let (status, answer) = call(&ding, CREATE, &token, &card("b")).await;
    assert_eq!(
        (status, &answer["code"]),
        (400, &json!("param.cardAlreadyExist"))
    );
    ding.set(Switches::default());
    let deliver = json!({
        "outTrackId": "b",
        "openSpaceId": format!("dtv1.card//IM_GROUP.{CHAT}"),
        "imGroupOpenSpaceModel": {"supportForward": true},
        "imGroupOpenDeliverModel": {"robotCode": App::default().robot_code},
    });
    let (_, answer) = call(&ding, "/v1.0/card/instances/deliver", &token, &deliver).await;
    assert_eq!(answer["result"][0]["success"], true);
    assert_eq!(ding.card("b").unwrap().spaces.len(), 2);
}

#[tokio::test]
async fn an_update_overwrites_everything_unless_it_says_otherwise() {
    let ding = boxed(settings()).await;
    let token = token(&ding).await;
    call(&ding, CREATE, &token, &card("a")).await;
    let update = |by_key: Option<bool>, data: Value| {
        let mut body = json!({"outTrackId": "a", "cardData": {"cardParamMap": data}});
        if let Some(by_key) = by_key {
            body["cardUpdateOptions"] = json!({"updateCardDataByKey": by_key});
        }
        body
    };
    let body = update(Some(true), json!({"status": "acked"}));
    assert_eq!(
        put(&ding, CARDS, &token, &body).await,
        (200, json!({"success": true, "result": true}))
    );
    let seen = ding.card("a").unwrap().public;
    assert_eq!(seen, data(&[("status", "acked"), ("title", "P1")]));
    put(
        &ding,
        CARDS,
        &token,
        &update(None, json!({"status": "closed"})),
    )
    .await;
    assert_eq!(
        ding.card("a").unwrap().public,
        data(&[("status", "closed")])
    );
    assert_eq!(ding.card("a").unwrap().private.len(), 1);
    let causes: Vec<Cause> = ding
        .card("a")
        .unwrap()
        .history
        .into_iter()
        .map(|it| it.cause)
        .collect();
    assert_eq!(causes, [Cause::Created, Cause::Updated, Cause::Updated]);
    let nothing = json!({"outTrackId": "a"});
    let unknown = with(update(None, json!({})), "/outTrackId", json!("b"));
    for (body, code) in [
        (nothing, "param.cardDataAndPrivateDataBothEmpty"),
        (unknown, "param.cardNotExist"),
    ] {
        assert_eq!(put(&ding, CARDS, &token, &body).await.1["code"], code);
    }
}

#[tokio::test]
async fn private_data_of_others_survives_only_an_update_by_key() {
    let ding = boxed(settings()).await;
    let token = token(&ding).await;
    call(&ding, CREATE, &token, &card("a")).await;
    let update = |by_key: bool| {
        json!({
            "outTrackId": "a",
            "userIdType": 2,
            "privateData": {"unionmanager0002iEiE": {"cardParamMap": {"mine": "pending"}}},
            "cardUpdateOptions": {"updatePrivateDataByKey": by_key},
        })
    };
    put(&ding, CARDS, &token, &update(true)).await;
    let card = ding.card("a").unwrap();
    assert_eq!(card.seen_by("manager0001")["mine"], "true");
    assert_eq!(card.seen_by("manager0002")["mine"], "pending");
    put(&ding, CARDS, &token, &update(false)).await;
    let card = ding.card("a").unwrap();
    assert!(!card.seen_by("manager0001").contains_key("mine"));
    assert_eq!(card.seen_by("manager0002")["title"], "P1");
}

#[tokio::test]
async fn a_route_is_registered_once_and_overwritten_by_force() {
    let ding = boxed(settings()).await;
    let token = token(&ding).await;
    let route = |url: &str, force: bool| json!({"callbackRouteKey": "k", "callbackUrl": url, "apiSecret": "s", "forceUpdate": force});
    let (status, answer) = call(&ding, REGISTER, &token, &route("http://a", false)).await;
    assert_eq!(
        (status, &answer["result"]),
        (200, &json!({"callbackUrl": "http://a", "apiSecret": "s"}))
    );
    let (status, answer) = call(&ding, REGISTER, &token, &route("http://b", false)).await;
    assert_eq!(
        (status, &answer["code"]),
        (500, &json!("param.callbackRouteKeyExist"))
    );
    call(&ding, REGISTER, &token, &route("http://c", true)).await;
    assert_eq!(ding.card_routes().len(), 1);
    assert_eq!(ding.card_routes()[0].url, "http://c");
    let body = with(card("a"), "/callbackType", json!("HTTP"));
    let body = with(body, "/callbackRouteKey", json!("k"));
    assert_eq!(call(&ding, CREATE, &token, &body).await.0, 200);
    let callback = ding.card("a").unwrap().callback;
    assert_eq!(callback, CardCallback::Http("k".to_owned()));
}

#[tokio::test]
async fn an_old_card_is_sent_and_changed_by_its_own_calls() {
    let ding = boxed(settings()).await;
    let token = token(&ding).await;
    let body = json!({
        "cardTemplateId": "tpl", "outTrackId": "old", "conversationType": 1,
        "openConversationId": CHAT, "robotCode": App::default().robot_code,
        "cardData": {"cardParamMap": {"title": "P1", "status": "firing"}}, "userIdType": 1,
        "cardOptions": {"supportForward": true},
    });
    let (status, answer) = call(&ding, "/v1.0/im/interactiveCards/send", &token, &body).await;
    assert_eq!(status, 200, "{answer}");
    assert!(answer["result"]["processQueryKey"].is_string());
    let update = json!({
        "outTrackId": "old", "cardData": {"cardParamMap": {"status": "acked"}},
        "cardOptions": {"updateCardDataByKey": true},
    });
    let (status, _) = put(&ding, "/v1.0/im/interactiveCards", &token, &update).await;
    assert_eq!(status, 200);
    let card = ding.card("old").unwrap();
    assert!(card.legacy);
    assert_eq!(card.public, data(&[("status", "acked"), ("title", "P1")]));
    // The new API does not know old cards.
    let update = with(update, "/cardOptions", Value::Null);
    assert_eq!(put(&ding, CARDS, &token, &update).await.0, 400);
    ding.world().settings.cards.legacy = false;
    let (_, answer) = call(&ding, "/v1.0/im/interactiveCards/send", &token, &body).await;
    assert_eq!(answer["code"], "permission.checkFailed");
}
