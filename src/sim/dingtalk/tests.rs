//! The box over its own wire: sends, limits, misbehaviour and pushes, as a client meets them.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::sim::post::{self, post};

mod app;
mod cards;
mod chat;
mod clicks;
mod gateway;

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

async fn boxed(settings: Settings) -> DingTalk {
    DingTalk::start(settings, listener().await)
}

/// Default settings with a robot `r` that wants nothing, beside the one that wants signatures.
fn settings() -> Settings {
    let mut settings = Settings {
        time_scale: 20.0,
        ..Settings::default()
    };
    let open = Robot {
        access_token: "r".to_owned(),
        secret: None,
        keyword: None,
    };
    settings.robots.push(open);
    // Five seconds: a busy machine is not what is tested here.
    settings.cards.click_limit_ms = 100_000;
    settings
}

async fn call(ding: &DingTalk, path: &str, token: &str, body: &Value) -> (u16, Value) {
    let headers = [("x-acs-dingtalk-access-token", token.to_owned())];
    let reply = post(&format!("{}{path}", ding.url()), &headers, body.to_string())
        .await
        .unwrap();
    (reply.status, serde_json::from_str(&reply.body).unwrap())
}

async fn put(ding: &DingTalk, path: &str, token: &str, body: &Value) -> (u16, Value) {
    let headers = [("x-acs-dingtalk-access-token", token.to_owned())];
    let url = format!("{}{path}", ding.url());
    let reply = post::request("PUT", &url, &headers, body.to_string()).await;
    let reply = reply.unwrap();
    (reply.status, reply.json())
}

async fn token(ding: &DingTalk) -> String {
    let app = App::default();
    let body = json!({"appKey": app.client_id, "appSecret": app.client_secret});
    let (_, answer) = call(ding, "/v1.0/oauth2/accessToken", "", &body).await;
    answer["accessToken"].as_str().unwrap().to_owned()
}

fn markdown(uuid: &str) -> Value {
    json!({"msgtype": "markdown", "msgUuid": uuid, "markdown": {"title": "P1", "text": "disk"}})
}

fn group_message() -> Value {
    json!({
        "robotCode": App::default().robot_code,
        "openConversationId": "cidBox+on/Call7x5EeiodoA==",
        "msgKey": "sampleMarkdown",
        "msgParam": r#"{"title":"P1","text":"disk full"}"#,
    })
}

#[tokio::test]
async fn a_msg_uuid_makes_one_message_however_often_it_comes() {
    let ding = boxed(settings()).await;
    for _ in 0..3 {
        let (status, answer) =
            call(&ding, "/robot/send?access_token=r", "", &markdown("one")).await;
        assert_eq!((status, &answer["errcode"]), (200, &json!(0)));
    }
    call(&ding, "/robot/send?access_token=r", "", &markdown("two")).await;
    let uuids: Vec<_> = ding
        .delivered()
        .into_iter()
        .map(|it| it.msg_uuid.unwrap())
        .collect();
    assert_eq!(uuids, ["one", "two"]);
    assert_eq!(ding.delivered()[0].text, "P1\ndisk");
    assert_eq!(ding.requests()[0].path, "/robot/send?access_token=***");
    assert_eq!(ding.complaints(), Vec::<String>::new());
}

#[tokio::test]
async fn a_robot_above_its_limit_is_shut_and_the_penalty_is_on_record_once() {
    let ding = boxed(settings()).await;
    let mut codes = Vec::new();
    for i in 0..23 {
        let body = markdown(&i.to_string());
        codes.push(call(&ding, "/robot/send?access_token=r", "", &body).await.1["errcode"].clone());
    }
    assert!(codes[..20].iter().all(|code| *code == 0));
    assert!(codes[20..].iter().all(|code| *code == 130_101));
    assert_eq!(ding.delivered().len(), 20);
    let penalties = ding.penalties();
    assert_eq!(penalties.len(), 1);
    assert_eq!(
        (penalties[0].kind, penalties[0].key.as_str()),
        ("robot_20_per_minute", "r")
    );
}

#[tokio::test]
async fn a_robot_with_a_secret_wants_its_signature_percent_encoded() {
    let ding = boxed(settings()).await;
    let robot = Settings::default().robots.remove(0);
    let mut codes = Vec::new();
    // Of many times one has a `+` in its signature, and left bare that must not pass.
    let now = clock::wall_ms();
    let (at, sign) = (0..1000)
        .map(|i| (now - i).to_string())
        .map(|at| {
            (
                at.clone(),
                sign::robot(&at, robot.secret.as_deref().unwrap()),
            )
        })
        .find(|(_, sign)| sign.contains('+'))
        .unwrap();
    let encoded = sign
        .replace('+', "%2B")
        .replace('/', "%2F")
        .replace('=', "%3D");
    for sign in [encoded.as_str(), sign.as_str(), ""] {
        let token = &robot.access_token;
        let path = format!("/robot/send?access_token={token}&timestamp={at}&sign={sign}");
        codes.push(
            call(&ding, &path, "", &markdown(&codes.len().to_string()))
                .await
                .1,
        );
    }
    let codes: Vec<_> = codes
        .iter()
        .map(|it| it["errcode"].as_i64().unwrap())
        .collect();
    assert_eq!(codes, [0, 310_000, 310_000]);
}

#[tokio::test]
async fn tokens_stay_the_same_until_they_die_and_both_hosts_check_them() {
    let ding = boxed(settings()).await;
    let first = token(&ding).await;
    assert_eq!(token(&ding).await, first);
    assert_eq!(
        call(
            &ding,
            "/v1.0/robot/groupMessages/send",
            &first,
            &group_message()
        )
        .await
        .0,
        200
    );
    let path = format!("/topapi/v2/user/getbymobile?access_token={first}");
    let (_, found) = call(&ding, &path, "", &json!({"mobile": "13800000001"})).await;
    assert_eq!(
        (&found["errcode"], &found["result"]["userid"]),
        (&json!("0"), &json!("manager0001"))
    );
    ding.expire_tokens();
    let (status, refused) = call(
        &ding,
        "/v1.0/robot/groupMessages/send",
        &first,
        &group_message(),
    )
    .await;
    assert_eq!(
        (status, &refused["code"]),
        (400, &json!("InvalidAuthentication"))
    );
    let (status, refused) = call(&ding, &path, "", &json!({"mobile": "13800000001"})).await;
    assert_eq!((status, &refused["errcode"]), (200, &json!(40014)));
    assert_ne!(token(&ding).await, first);
    assert_eq!(ding.token_fetches(), 3);
    assert!(
        ding.requests()
            .iter()
            .all(|it| !it.body.contains("box-client-secret"))
    );
}

#[tokio::test]
async fn a_group_with_the_cool_app_wants_its_code_and_a_left_group_takes_nothing() {
    let ding = boxed(settings()).await;
    let token = token(&ding).await;
    let send = "/v1.0/robot/groupMessages/send";
    let mut with_code = group_message();
    with_code["coolAppCode"] = json!(App::default().cool_app_code);
    let chat = "cidBox+on/Call7x5EeiodoA==";
    assert_eq!(
        call(&ding, send, &token, &with_code).await.1["code"],
        "resource.unavailable"
    );
    let event = ding.install_cool_app(chat, "manager0001", Casing::Lower);
    assert!(event.contains(r#""EventType":"im_cool_app_install""#));
    assert_eq!(call(&ding, send, &token, &with_code).await.0, 200);
    assert_eq!(
        call(&ding, send, &token, &group_message()).await.1["code"],
        "resource.unavailable"
    );
    let query = json!({"openConversationId": chat, "coolAppCode": App::default().cool_app_code});
    ding.rename(chat, "新群名", "manager0001", Casing::Pascal);
    let (_, group) = call(&ding, "/v1.0/im/sceneGroups/query", &token, &query).await;
    assert_eq!(
        (&group["title"], &group["status"]),
        (&json!("新群名"), &json!(1))
    );
    ding.uninstall_cool_app(chat, "manager0001", Casing::Lower);
    for body in [&with_code, &group_message()] {
        assert_eq!(
            call(&ding, send, &token, body).await.1["code"],
            "resource.unavailable"
        );
    }
}

#[tokio::test]
async fn a_wrong_case_is_refused_where_it_matters_and_noted_everywhere() {
    let ding = boxed(settings()).await;
    let token = token(&ding).await;
    let send = "/v1.0/robot/groupMessages/send";
    let mut object = group_message();
    object["msgParam"] = json!({"title": "P1", "text": "disk full"});
    let mut small = group_message();
    small["msgParam"] = json!(r#"{"Title":"P1","text":"disk full"}"#);
    for body in [&object, &small] {
        let code = call(&ding, send, &token, body).await.1["code"].clone();
        assert_eq!(code, "invalidParameter.msgParam.invalid");
    }
    let mut extra = group_message();
    extra["CoolAppCode"] = json!("x");
    assert_eq!(call(&ding, send, &token, &extra).await.0, 200);
    let complaints = ding.complaints();
    assert_eq!(
        complaints,
        [format!("POST {send}: unknown member CoolAppCode")]
    );
}

#[tokio::test]
async fn people_are_reached_one_by_one_and_the_others_are_named() {
    let ding = boxed(settings()).await;
    let token = token(&ding).await;
    ding.set(Switches {
        throttled_users: vec!["manager0002".to_owned()],
        ..Switches::default()
    });
    let body = json!({
        "robotCode": App::default().robot_code,
        "userIds": ["manager0001", "manager0002", "nobody"],
        "msgKey": "sampleText",
        "msgParam": r#"{"content":"hi"}"#,
    });
    let (_, answer) = call(&ding, "/v1.0/robot/oToMessages/batchSend", &token, &body).await;
    assert_eq!(answer["invalidStaffIdList"], json!(["nobody"]));
    assert_eq!(answer["flowControlledStaffIdList"], json!(["manager0002"]));
    let targets: Vec<_> = ding
        .delivered()
        .into_iter()
        .map(|it| (it.via, it.target))
        .collect();
    assert_eq!(targets, [(Via::Oto, "manager0001".to_owned())]);
}

#[tokio::test]
async fn the_twenty_first_call_of_a_second_is_too_many_for_the_app() {
    let mut slow = settings();
    slow.time_scale = 0.1;
    let ding = boxed(slow).await;
    let token = token(&ding).await;
    let path = "/v1.0/im/sceneGroups/query";
    for _ in 0..20 {
        assert_eq!(call(&ding, path, &token, &json!({})).await.0, 400);
    }
    let (status, refused) = call(&ding, path, &token, &json!({})).await;
    assert_eq!(status, 403);
    assert_eq!(
        refused["code"],
        "Forbidden.AccessDenied.QpsLimitForAppkeyAndApi"
    );
    assert_eq!(ding.penalties()[0].kind, "qps");
}

#[tokio::test]
async fn a_message_can_arrive_without_its_answer_and_an_answer_without_its_message() {
    let ding = boxed(settings()).await;
    let url = format!("{}/robot/send?access_token=r", ding.url());
    ding.set(Switches {
        cut_after: true,
        ..Switches::default()
    });
    assert!(post(&url, &[], markdown("a").to_string()).await.is_err());
    assert_eq!((ding.delivered().len(), ding.requests()[0].status), (1, 0));
    ding.set(Switches {
        cut_before: true,
        ..Switches::default()
    });
    assert!(post(&url, &[], markdown("b").to_string()).await.is_err());
    assert_eq!((ding.delivered().len(), ding.requests().len()), (1, 1));
    let fail_next = [Wrong::json(500, r#"{"code":"system.error"}"#)].into();
    ding.set(Switches {
        fail_next,
        ..Switches::default()
    });
    let (status, _) = call(&ding, "/robot/send?access_token=r", "", &markdown("c")).await;
    assert_eq!((status, ding.delivered().len()), (500, 1));
    let (status, _) = call(&ding, "/robot/send?access_token=r", "", &markdown("c")).await;
    assert_eq!((status, ding.delivered().len()), (200, 2));
}

#[tokio::test]
async fn switches_can_be_narrowed_to_a_path() {
    let ding = boxed(settings()).await;
    ding.set(Switches {
        down: true,
        only: Some("/robot/".to_owned()),
        ..Switches::default()
    });
    let (status, answer) = call(&ding, "/robot/send?access_token=r", "", &markdown("a")).await;
    assert_eq!((status, &answer["errcode"]), (503, &json!(-1)));
    assert!(!token(&ding).await.is_empty());
}

#[tokio::test]
async fn the_legacy_token_call_answers_to_get_and_not_to_post() {
    let ding = boxed(settings()).await;
    let app = App::default();
    let path = format!(
        "/gettoken?appkey={}&appsecret={}",
        app.client_id, app.client_secret
    );
    let host = ding.url().replace("http://", "");
    let mut stream = TcpStream::connect(&host).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains(r#""errcode":0"#) && answer.contains(r#""access_token":""#));
    assert_eq!(call(&ding, &path, "", &json!({})).await.0, 404);
}

#[tokio::test]
async fn a_stopped_or_forgotten_box_refuses_connections() {
    let ding = boxed(settings()).await;
    let host = ding.url().replace("http://", "");
    ding.stop().await;
    ding.stop().await;
    assert!(TcpStream::connect(&host).await.is_err());
    let ding = boxed(settings()).await;
    let host = ding.url().replace("http://", "");
    drop(ding);
    // The runtime drops the aborted task at its next turn.
    tokio::task::yield_now().await;
    assert!(TcpStream::connect(&host).await.is_err());
}

/// Opens what is pushed to it, and answers well or, at other paths, badly.
struct Toy {
    seal: Seal,
    seen: Mutex<Vec<String>>,
}

impl Service for Toy {
    fn admits(&self) -> bool {
        true
    }

    async fn serve(self: Arc<Self>, request: HttpRequest<Incoming>) -> Option<Answer> {
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default().to_owned();
        let body: Value = serde_json::from_slice(&server::body(request.into_body()).await?).ok()?;
        // A callback has a reply's parts, only under other names and in other places.
        let pairs: std::collections::HashMap<_, _> = query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .collect();
        let as_reply = json!({
            "msg_signature": pairs["msg_signature"],
            "timeStamp": pairs["timestamp"],
            "nonce": pairs["nonce"],
            "encrypt": body["encrypt"],
        });
        self.seen
            .lock()
            .unwrap()
            .push(self.seal.open_reply(&as_reply.to_string()).unwrap());
        let word = if path == "/wrong-word" {
            "failure"
        } else {
            "success"
        };
        let sealed: Value = serde_json::from_str(&self.seal.seal(word, 1).body).unwrap();
        let encrypt = sealed["encrypt"].as_str().unwrap();
        let signature = self.seal.signature("1", "n", encrypt);
        let mut reply =
            json!({"msg_signature": signature, "timeStamp": "1", "nonce": "n", "encrypt": encrypt});
        if path == "/number" {
            reply["timeStamp"] = json!(1);
        }
        Some(ask::ok(&reply))
    }
}

#[tokio::test]
async fn a_push_is_acknowledged_only_by_a_reply_that_is_right_in_every_part() {
    let ding = boxed(settings()).await;
    let toy = Toy {
        seal: Seal::of(&App::default()),
        seen: Mutex::default(),
    };
    let toy = Arc::new(toy);
    let server = Server::start(listener().await, Arc::clone(&toy));
    let good = ding.check_url(&server.url()).await;
    assert!(good.acknowledged, "{good:?}");
    assert_eq!(ding.open_reply(&good.body).as_deref(), Ok("success"));
    for path in ["/wrong-word", "/number"] {
        let bad = ding.push(&format!("{}{path}", server.url()), "{}").await;
        assert!(bad.status == 200 && !bad.acknowledged, "{bad:?}");
    }
    assert_eq!(
        *toy.seen.lock().unwrap(),
        [r#"{"EventType":"check_url"}"#, "{}", "{}"]
    );
    server.stop().await;
    assert_eq!(ding.push(&server.url(), "{}").await.status, 0);
}
