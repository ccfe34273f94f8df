//! The Stream gateway as a client of it meets it: tickets, frames, acknowledgements, trouble.

mod trouble;
mod vectors;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::cards::card;
use super::*;

const OPEN: &str = "/v1.0/gateway/connections/open";
const EVENT: &str = "*";
const ROBOT: &str = "/v1.0/im/bot/messages/get";
const CARD: &str = "/v1.0/card/instances/callback";
const CHAT: &str = "cidBox+on/Call7x5EeiodoA==";

/// What the app asks for.
fn wish(topics: &[&str]) -> Value {
    let app = App::default();
    let kind = |topic: &str| if topic == EVENT { "EVENT" } else { "CALLBACK" };
    let topics = topics
        .iter()
        .map(|&topic| json!({"type": kind(topic), "topic": topic}));
    json!({
        "clientId": app.client_id,
        "clientSecret": app.client_secret,
        "ua": "box/1",
        "subscriptions": topics.collect::<Vec<_>>(),
    })
}

async fn ask(ding: &DingTalk, wish: &Value) -> (u16, Value) {
    let url = format!("{}{OPEN}", ding.url());
    let headers = [("accept", "application/json".to_owned())];
    let reply = post(&url, &headers, wish.to_string()).await.unwrap();
    (reply.status, reply.json())
}

/// A client of the gateway.
struct Client {
    socket: WebSocketStream<TcpStream>,
}

impl Client {
    /// With a fresh ticket for these topics.
    async fn connect(ding: &DingTalk, topics: &[&str]) -> Self {
        let (status, right) = ask(ding, &wish(topics)).await;
        assert_eq!(status, 200, "{right}");
        let before = ding.gateway().live();
        let client = Self::with_ticket(&right).await.unwrap();
        ding.gateway().connected(before + 1).await;
        client
    }

    async fn with_ticket(right: &Value) -> Result<Self, Error> {
        let endpoint = right["endpoint"].as_str().unwrap();
        let ticket = right["ticket"].as_str().unwrap();
        let ticket = ticket
            .replace('+', "%2B")
            .replace('/', "%2F")
            .replace('=', "%3D");
        let host = endpoint.strip_prefix("ws://").unwrap().split('/').next();
        let stream = TcpStream::connect(host.unwrap()).await.unwrap();
        let url = format!("{endpoint}?ticket={ticket}");
        let (socket, _) = tokio_tungstenite::client_async(url, stream).await?;
        Ok(Self { socket })
    }

    /// The next frame.
    async fn frame(&mut self) -> Value {
        let frame = async {
            loop {
                match self.socket.next().await.unwrap().unwrap() {
                    Message::Text(text) => return serde_json::from_str(text.as_str()).unwrap(),
                    other => assert!(!other.is_close(), "closed"),
                }
            }
        };
        let patience = Duration::from_secs(5);
        tokio::time::timeout(patience, frame).await.unwrap()
    }

    /// Whether the connection comes to an end within this time, and whether by a reset.
    async fn ends_within(&mut self, ms: u64) -> Option<bool> {
        let end = async {
            loop {
                match self.socket.next().await {
                    None | Some(Ok(Message::Close(_))) => return false,
                    Some(Err(_)) => return true,
                    Some(Ok(_)) => {}
                }
            }
        };
        tokio::time::timeout(Duration::from_millis(ms), end)
            .await
            .ok()
    }

    async fn ack(&mut self, frame: &Value, code: u16, data: &Value) {
        let id = &frame["headers"]["messageId"];
        let ack = json!({
            "code": code, "message": "OK", "data": data.to_string(),
            "headers": {"contentType": "application/json", "messageId": id},
        });
        self.send(&ack.to_string()).await;
    }

    async fn success(&mut self, frame: &Value) {
        let data = json!({"status": "SUCCESS", "message": "ok"});
        self.ack(frame, 200, &data).await;
    }

    async fn send(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.unwrap();
    }
}

fn rename(ding: &DingTalk, title: &str) -> String {
    ding.rename(CHAT, title, "manager0001", Casing::Lower)
}

#[tokio::test]
async fn a_connection_needs_the_secret_and_a_ticket_that_serves_once() {
    let ding = boxed(settings()).await;
    let mut wrong = wish(&[EVENT]);
    wrong["clientSecret"] = json!("box-client-secret-not-a-real-one ");
    let (status, answer) = ask(&ding, &wrong).await;
    assert_eq!((status, &answer["code"]), (401, &json!("authFailed")));
    assert_eq!(ask(&ding, &wish(&[])).await.0, 400);
    let (_, right) = ask(&ding, &wish(&[EVENT])).await;
    let _first = Client::with_ticket(&right).await.unwrap();
    let Err(Error::Http(refusal)) = Client::with_ticket(&right).await else {
        panic!("a ticket served twice");
    };
    assert_eq!(refusal.status(), 401);
    // 90 seconds at a thousand times the speed.
    ding.world().settings.time_scale = 1_000.0;
    let (_, right) = ask(&ding, &wish(&[EVENT])).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(Client::with_ticket(&right).await.is_err());
    assert!(ding.requests().iter().all(|it| !it.path.contains("%3D")));
    let body = &ding.requests()[2].body;
    assert!(body.contains("***") && !body.contains("not-a-real-one"));
}

#[tokio::test]
async fn without_the_accept_header_the_answer_is_xml() {
    let ding = boxed(settings()).await;
    let url = format!("{}{OPEN}", ding.url());
    let reply = post(&url, &[], wish(&[EVENT]).to_string()).await.unwrap();
    assert_eq!(
        (reply.status, reply.content_type.as_str()),
        (200, "application/xml")
    );
}

#[tokio::test]
async fn an_event_comes_again_with_the_same_ids_until_it_is_acknowledged() {
    let mut settings = settings();
    settings.stream.event_again_ms = 2_000;
    let ding = boxed(settings).await;
    let gateway = ding.gateway();
    // It waits for a connection, as nobody is there.
    let id = gateway.send_event(&rename(&ding, "a"));
    assert_eq!((gateway.pending(), gateway.sent().len()), (1, 0));
    let mut client = Client::connect(&ding, &[EVENT]).await;
    let first = client.frame().await;
    let second = client.frame().await;
    let later = json!({"status": "LATER", "message": "not now"});
    client.ack(&second, 200, &later).await;
    let third = client.frame().await;
    for name in ["messageId", "eventId", "eventType", "eventBornTime"] {
        assert_eq!(first["headers"][name], third["headers"][name]);
        assert_eq!(first["headers"][name], second["headers"][name]);
    }
    assert_eq!(first["headers"]["messageId"], json!(id));
    assert_eq!(first["data"], third["data"]);
    client.success(&third).await;
    let outcome = gateway.settled(&id).await;
    assert_eq!((outcome.settled, outcome.tries), (Settled::Done, 3));
    assert_eq!(
        outcome.event_id.as_deref(),
        third["headers"]["eventId"].as_str()
    );
    let done: Vec<bool> = gateway.acks().iter().map(|it| it.done).collect();
    assert_eq!(done, [false, true]);
    assert_eq!((gateway.pending(), gateway.sent().len()), (0, 3));
    assert_eq!(ding.complaints(), Vec::<String>::new());
}

#[tokio::test]
async fn only_topics_that_were_subscribed_to_are_delivered() {
    let ding = boxed(settings()).await;
    let mut client = Client::connect(&ding, &[ROBOT]).await;
    ding.gateway().send_event(&rename(&ding, "a"));
    let body = ding.worded(&Speech::alone("manager0001", "x"));
    ding.gateway().send_robot_message(&body);
    let frame = client.frame().await;
    assert_eq!(
        (&frame["headers"]["topic"], frame["data"].as_str()),
        (&json!(ROBOT), Some(body.as_str()))
    );
    assert_eq!(ding.gateway().sent().len(), 1);
}

#[tokio::test]
async fn a_robot_message_is_lost_without_a_connection_and_comes_again_without_an_ack() {
    let mut settings = settings();
    settings.stream.robot_again_ms = 1_000;
    let ding = boxed(settings).await;
    let said = ding.say(CHAT, "manager0001", "x").await;
    assert_eq!((said.way, said.acknowledged), (Way::Stream, false));
    let mut client = Client::connect(&ding, &[ROBOT]).await;
    let saying = tokio::spawn({
        let ding = ding.clone();
        async move { ding.say(CHAT, "manager0001", "x").await }
    });
    let (first, second) = (client.frame().await, client.frame().await);
    assert_eq!(
        first["headers"]["messageId"],
        second["headers"]["messageId"]
    );
    assert_eq!(first["data"], second["data"]);
    client.ack(&second, 200, &json!({"response": null})).await;
    let said = saying.await.unwrap();
    assert!(said.acknowledged && said.error.is_none());
}

#[tokio::test]
async fn several_connections_share_the_frames_by_chance() {
    let ding = boxed(settings()).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(Client::connect(&ding, &[EVENT]).await);
    }
    for i in 0..60 {
        ding.gateway().send_event(&rename(&ding, &i.to_string()));
    }
    while ding.gateway().sent().len() < 60 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let frames: Vec<u64> = ding
        .gateway()
        .connections()
        .iter()
        .map(|it| it.frames)
        .collect();
    assert_eq!(frames.iter().sum::<u64>(), 60);
    assert!(frames.iter().all(|&count| count > 3), "{frames:?}");
}

#[tokio::test]
async fn an_acknowledged_event_may_come_once_more() {
    let mut settings = settings();
    settings.stream.double_every = 2;
    let ding = boxed(settings).await;
    let mut client = Client::connect(&ding, &[EVENT]).await;
    let mut ids = Vec::new();
    for i in 0..2 {
        ding.gateway().send_event(&rename(&ding, &i.to_string()));
        let frame = client.frame().await;
        client.success(&frame).await;
        ids.push(frame["headers"]["eventId"].clone());
    }
    assert_eq!(client.frame().await["headers"]["eventId"], ids[1]);
}

/// A change that spoils a good acknowledgement.
type Spoil = fn(&mut Value);

#[tokio::test]
async fn an_ack_in_the_wrong_form_is_noted() {
    let ding = boxed(settings()).await;
    let mut client = Client::connect(&ding, &[EVENT]).await;
    let cases: [(Spoil, &str); 10] = [
        (|it| *it = json!([]), "not a JSON object"),
        (|it| it["code"] = json!("200"), "code is none of"),
        (|it| it["code"] = json!(201), "code is none of"),
        (
            |it| it["headers"]["contentType"] = Value::Null,
            "contentType",
        ),
        (
            |it| it["headers"]["messageId"] = Value::Null,
            "no messageId",
        ),
        (
            |it| it["headers"]["messageId"] = json!("other"),
            "never sent",
        ),
        (
            |it| it["data"] = json!({"status": "LATER"}),
            "data is not a string",
        ),
        (|it| it["data"] = json!("ok"), "data does not hold JSON"),
        (|it| it["message"] = Value::Null, "message is not a string"),
        (|it| it["more"] = json!(1), "unknown member more"),
    ];
    for (spoil, complaint) in cases {
        ding.gateway().send_event(&rename(&ding, complaint));
        let frame = client.frame().await;
        let mut ack = json!({
            "code": 200, "message": "OK", "data": r#"{"status":"SUCCESS","message":"ok"}"#,
            "headers": {"contentType": "application/json",
                "messageId": frame["headers"]["messageId"]},
        });
        spoil(&mut ack);
        client.send(&ack.to_string()).await;
        let noted = || ding.complaints().iter().any(|it| it.contains(complaint));
        let start = clock::now();
        while !noted() {
            let waited = clock::now().duration_since(start);
            assert!(waited < Duration::from_secs(5), "{complaint}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

#[tokio::test]
async fn an_event_is_done_with_code_200_and_no_status_as_one_official_sdk_has_it() {
    let ding = boxed(settings()).await;
    let mut client = Client::connect(&ding, &[EVENT]).await;
    let id = ding.gateway().send_event(&rename(&ding, "a"));
    let frame = client.frame().await;
    client.ack(&frame, 200, &json!({"title": "a"})).await;
    let outcome = ding.gateway().settled(&id).await;
    assert_eq!((outcome.settled, outcome.tries), (Settled::Done, 1));
    assert!(ding.complaints()[0].contains("wants the status"));
    // Any other code means that it is to come again.
    let id = ding.gateway().send_event(&rename(&ding, "b"));
    for code in [500, 404] {
        let frame = client.frame().await;
        client.ack(&frame, code, &json!({})).await;
    }
    let frame = client.frame().await;
    client.success(&frame).await;
    assert_eq!(ding.gateway().settled(&id).await.tries, 3);
}
