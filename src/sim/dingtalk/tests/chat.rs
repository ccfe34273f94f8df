//! People talk to the robot over HTTP, and it talks back.

use super::app::Callee;
use super::*;

const CHAT: &str = "cidBox+on/Call7x5EeiodoA==";

async fn stage(settings: Settings) -> (DingTalk, Callee) {
    let (ding, app) = (boxed(settings).await, Callee::start().await);
    ding.set_robot_url(Some(&app.url()));
    (ding, app)
}

fn text(words: &str) -> Value {
    json!({"msgtype": "text", "text": {"content": words}})
}

#[tokio::test]
async fn a_line_in_a_group_has_the_documented_members_and_signature() {
    let (ding, app) = stage(settings()).await;
    app.answers(200, "", 0);
    let said = ding.say(CHAT, "manager0001", "ack 123").await;
    assert!(said.acknowledged && !said.replied && said.error.is_none());
    let told = app.told().remove(0);
    assert_eq!(told.body["text"]["content"], " ack 123");
    assert_eq!(told.body["conversationId"], CHAT);
    assert_eq!(told.body["conversationTitle"], "值班告警群");
    assert_eq!(told.body["senderStaffId"], "manager0001");
    let life = told.body["sessionWebhookExpiredTime"].as_u64().unwrap()
        - told.body["createAt"].as_u64().unwrap();
    assert_eq!(life, 5_400_000);
    let timestamp = told.header("timestamp").unwrap();
    let right = sign::robot(&timestamp, &App::default().client_secret);
    assert_eq!(told.header("sign").unwrap(), right);
    // The very same message once more, and one that is forged.
    ding.pass_on(&said.body, Signed::Rightly).await;
    ding.pass_on(&said.body, Signed::Not).await;
    let told = app.told();
    assert_eq!(told[1].body, told[0].body);
    assert_eq!(told[2].header("sign"), None);
}

#[tokio::test]
async fn every_kind_of_message_can_be_said() {
    let (ding, app) = stage(settings()).await;
    app.answers(200, "{}", 0);
    let kinds = [
        (
            Words::RichText(vec![Part::Text("a".to_owned()), Part::Picture]),
            "richText",
        ),
        (Words::Picture, "picture"),
        (Words::Audio("重启".to_owned()), "audio"),
        (Words::Video, "video"),
        (Words::File("a.log".to_owned()), "file"),
        (Words::Unknown, "unknownMsgType"),
        (Words::OverQuota { short: true }, "text"),
        (Words::OverQuota { short: false }, "text"),
    ];
    for (words, kind) in kinds {
        let speech = Speech::alone("manager0001", "").with(words);
        assert_eq!(ding.speak(&speech).await.told("msgtype"), kind);
    }
    let told = app.told();
    assert_eq!(told[0].body["content"]["richText"][0]["text"], "a");
    assert_eq!(told[2].body["content"]["recognition"], "重启");
    assert_eq!(told[4].body["content"]["fileName"], "a.log");
    assert_eq!(told[6].body["errCode"], 20_001);
    assert!(told[7].body.get("text").is_none() && told[7].body["errorCode"] == "20001");
    assert!(told.iter().all(|it| it.body["conversationType"] == "1"));
    // Alone with the robot nobody is mentioned, and somebody from outside has no userid.
    assert_eq!(
        ding.tell("manager0001", "x").await.told("text")["content"],
        "x"
    );
    assert!(
        ding.tell("stranger", "x")
            .await
            .told("senderStaffId")
            .is_null()
    );
}

#[tokio::test]
async fn an_answer_can_be_a_message_and_a_wrong_one_is_none() {
    let (ding, app) = stage(settings()).await;
    app.answers(200, &text("收到").to_string(), 0);
    assert!(ding.say(CHAT, "manager0001", "x").await.replied);
    let reply = ding.delivered().remove(0);
    assert_eq!((reply.via, reply.target.as_str()), (Via::Answer, CHAT));
    assert_eq!(reply.text, "收到");
    ding.tell("manager0001", "x").await;
    assert_eq!(ding.delivered()[1].target, "manager0001");
    let link = json!({"msgtype": "link", "link": {"title": "a", "text": "b", "messageUrl": "c"}});
    for (body, wrong) in [
        (json!({"msgtype": "empty"}).to_string(), false),
        ("{}".to_owned(), false),
        (link.to_string(), true),
        (json!({"msgtype": "text"}).to_string(), true),
        ("ok".to_owned(), true),
    ] {
        app.answers(200, &body, 0);
        let said = ding.say(CHAT, "manager0001", "x").await;
        assert_eq!(
            (said.replied, said.error.is_some()),
            (false, wrong),
            "{body}"
        );
    }
    assert_eq!(ding.delivered().len(), 2);
}

#[tokio::test]
async fn a_reply_address_lives_for_its_time_and_only_for_messages() {
    let (ding, app) = stage(settings()).await;
    app.answers(200, "", 0);
    let url = |said: &Said| said.told("sessionWebhook").as_str().unwrap().to_owned();
    let address = url(&ding.say(CHAT, "manager0001", "x").await);
    let send = async |url: &str, body: &Value| {
        let reply = post(url, &[], body.to_string()).await.unwrap();
        reply.json()["errcode"].as_i64().unwrap()
    };
    let mention = json!({
        "msgtype": "markdown", "markdown": {"title": "t", "text": "@manager0001 done"},
        "at": {"atUserIds": ["manager0001"]},
    });
    assert_eq!(send(&address, &mention).await, 0);
    assert_eq!(send(&address, &json!({"msgtype": "empty"})).await, 0);
    assert_eq!(send(&address, &json!({"msgtype": "file"})).await, 401_102);
    assert_eq!(send(&format!("{address}0"), &mention).await, 300_001);
    let delivered = ding.delivered();
    assert_eq!(delivered.len(), 1);
    assert_eq!(
        (delivered[0].via, delivered[0].target.as_str()),
        (Via::Session, CHAT)
    );
    assert!(
        ding.requests()
            .iter()
            .all(|it| it.path.ends_with("session=***"))
    );
    ding.world().settings.session_life_ms = 0;
    let address = url(&ding.tell("manager0001", "x").await);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(send(&address, &mention).await, 300_001);
}
