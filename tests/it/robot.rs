//! What people say to the robot: believed as far as it can be, told to the platform, answered.

use dingd::sim::dingtalk::{Part, Settings, Signed, Speech, Switches, Via, Words};
use dingd::sim::platform::{PlatformSwitches, Reaction, Reflex};
use serde_json::{Value, json};

use crate::support::{Stage, fast, until};

const MESSAGE: &str = "dingtalk.robot.message";

async fn stage_with(settings: Settings) -> Stage {
    stage_edited(settings, |config| config).await
}

async fn stage_edited(mut settings: Settings, edit: impl FnOnce(String) -> String) -> Stage {
    for group in &mut settings.groups {
        group.cool_app_installed = true;
    }
    let stage = Stage::with(settings, edit).await;
    let url = format!("{}/callback/oncall/robot", stage.daemon.callbacks());
    stage.box_.set_robot_url(Some(&url));
    stage
}

async fn stage() -> Stage {
    stage_with(fast()).await
}

/// Replies to what is said, so many milliseconds later.
fn replying(slow_ms: u64) -> PlatformSwitches {
    let reflex = Reflex::new(move |event| {
        (event["type"] == MESSAGE).then(|| {
            let text = event["data"]["text"].as_str().unwrap_or("nothing");
            Reaction {
                status: 200,
                body: json!({"reply": {"text": {"content": format!("you said {text}")}}}),
                slow_ms,
            }
        })
    });
    PlatformSwitches {
        reflex: Some(reflex),
        ..PlatformSwitches::default()
    }
}

fn delivered(stage: &Stage, via: Via) -> Vec<String> {
    let all = stage.box_.delivered();
    let some = all.into_iter().filter(|it| it.via == via);
    some.map(|it| it.text).collect()
}

async fn reply(stage: &Stage, body: &Value) -> dingd::sim::post::Reply {
    stage
        .daemon
        .request("POST", "/v1/replies", body)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_question_is_answered_in_the_answer_to_the_callback() {
    let stage = stage().await;
    stage.platform.set(replying(0));
    let said = stage.box_.say(&stage.chat(), "manager0001", "status").await;
    assert!(said.acknowledged && said.replied, "{said:?}");
    assert_eq!(delivered(&stage, Via::Answer), ["you said status"]);
    let event = stage.events(MESSAGE).pop().unwrap();
    let data = &event.body["data"];
    assert_eq!(event.body["subject"], stage.chat());
    assert_eq!(data["trust"], "low");
    assert_eq!(data["conversation"], "group");
    assert_eq!(data["chat"], stage.chat());
    assert_eq!(data["chat_title"], "值班告警群");
    assert_eq!(
        (&data["user"], &data["user_nick"]),
        (&json!("manager0001"), &json!("张三"))
    );
    assert_eq!(
        (&data["kind"], &data["text"]),
        (&json!("text"), &json!("status"))
    );
    assert_eq!(data["message_id"], said.told("msgId"));
    assert_eq!(data["raw"]["msgId"], said.told("msgId"));
    assert_eq!(data["raw"]["sessionWebhook"], "", "it is a secret");
    stage.close().await;
}

#[tokio::test]
async fn the_address_for_answers_appears_nowhere() {
    let stage = stage().await;
    let said = stage.box_.say(&stage.chat(), "manager0001", "status").await;
    let url = said.told("sessionWebhook").as_str().unwrap().to_owned();
    let key = url.split('=').next_back().unwrap();
    until("it is told", async || stage.events(MESSAGE).len() == 1).await;
    let told = String::from_utf8(stage.events(MESSAGE)[0].raw_body.clone()).unwrap();
    let mut seen = vec![told, stage.log(), stage.metrics().await];
    for name in ["journal.redb", "journal.log"] {
        let path = dingd::sim::daemon::Daemon::state_dir(stage.dir.path()).join(name);
        seen.extend(
            std::fs::read(path)
                .ok()
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
        );
    }
    assert!(seen.iter().all(|text| !text.contains(key)));
    stage.close().await;
}

#[tokio::test]
async fn a_late_answer_goes_by_the_session_and_after_its_end_by_the_robot() {
    for (life_ms, via) in [(5_400_000, Via::Session), (3_000, Via::Group)] {
        let stage = stage_with(Settings {
            session_life_ms: life_ms,
            ..fast()
        })
        .await;
        stage.platform.set(replying(1_500));
        let said = stage.box_.say(&stage.chat(), "manager0001", "status").await;
        assert!(said.acknowledged && !said.replied, "{said:?}");
        until("the reply is there", async || {
            delivered(&stage, via) == ["you said status"]
        })
        .await;
        assert_eq!(stage.box_.delivered().len(), 1);
        stage.close().await;
    }
}

#[tokio::test]
async fn a_reply_by_the_api_reaches_the_group_and_mentions_people() {
    let stage = stage().await;
    stage.box_.say(&stage.chat(), "manager0001", "status").await;
    until("it is told", async || stage.events(MESSAGE).len() == 1).await;
    let reply_to = stage.events(MESSAGE)[0].body["data"]["reply_to"].clone();
    let body = json!({"reply_to": reply_to, "content": {"markdown": {"title": "Status", "text": "### all is well"}},
        "at": {"users": ["manager0001"]}});
    let answer = reply(&stage, &body).await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    let message = stage.reaches(&id, "sent").await;
    assert_eq!(message["priority"], "high");
    assert_eq!(message["to"]["chat"], stage.chat());
    let session = stage.box_.delivered();
    assert_eq!((session.len(), session[0].via), (1, Via::Session));
    assert_eq!(session[0].body["at"]["atUserIds"], json!(["manager0001"]));
    stage.close().await;
}

/// Somebody waits for each of them.
#[tokio::test]
async fn replies_above_the_limit_wait_and_are_in_no_digest() {
    let soon = |config: String| format!("{config}[outbound.digest]\nafter_s = 1\n");
    let stage = stage_edited(fast(), soon).await;
    stage.box_.say(&stage.chat(), "manager0001", "status").await;
    until("it is told", async || stage.events(MESSAGE).len() == 1).await;
    let reply_to = stage.events(MESSAGE)[0].body["data"]["reply_to"].clone();
    let mut ids = vec![];
    for n in 0..30 {
        let body = json!({"reply_to": reply_to, "content": {"text": {"content": format!("r{n}")}}});
        let answer = reply(&stage, &body).await;
        ids.push(answer.json()["id"].as_str().unwrap().to_owned());
    }
    for id in ids {
        stage.reaches(&id, "sent").await;
    }
    assert_eq!(stage.box_.delivered().len(), 30);
    stage.close().await;
}

#[tokio::test]
async fn a_session_that_dies_early_does_not_take_the_reply_with_it() {
    let stage = stage().await;
    stage.box_.tell("manager0002", "help").await;
    until("it is told", async || stage.events(MESSAGE).len() == 1).await;
    let event = stage.events(MESSAGE).pop().unwrap();
    assert_eq!(event.body["data"]["conversation"], "single");
    let body = json!({"reply_to": event.body["data"]["reply_to"], "content": {"text": {"content": "coming"}}});
    stage.box_.end_sessions();
    let id = reply(&stage, &body).await.json()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let message = stage.reaches(&id, "sent").await;
    assert_eq!(message["attempts"], 1, "the refusal is not held against it");
    assert_eq!(delivered(&stage, Via::Oto), ["coming"]);
    stage.close().await;
}

#[tokio::test]
async fn an_address_for_replies_cannot_be_made_up() {
    let stage = stage().await;
    stage.box_.say(&stage.chat(), "manager0001", "status").await;
    until("it is told", async || stage.events(MESSAGE).len() == 1).await;
    let good = stage.events(MESSAGE)[0].body["data"]["reply_to"]
        .as_str()
        .unwrap()
        .to_owned();
    let content = json!({"text": {"content": "x"}});
    for bad in [
        String::new(),
        "oncall.".to_owned(),
        "x".repeat(9_000),
        good[..good.len() - 1].to_owned(),
        good.replace("oncall.", "other."),
    ] {
        let answer = reply(&stage, &json!({"reply_to": bad, "content": content})).await;
        assert_eq!(answer.status, 422, "{bad}: {}", answer.body);
        assert!(answer.body.contains("data.reply_to"), "{}", answer.body);
    }
    for (body, member) in [
        (json!({"reply_to": good}), "content"),
        (
            json!({"reply_to": good, "content": {"text": {"content": ""}}}),
            "content.text.content",
        ),
        (
            json!({"reply_to": good, "content": {"raw": {"msgtype": "text"}}}),
            "content.raw",
        ),
        (
            json!({"reply_to": good, "content": content, "to": {"chat": "cid12"}}),
            "to",
        ),
        (json!({"reply_to": 7, "content": content}), "reply_to"),
    ] {
        let answer = reply(&stage, &body).await;
        assert_eq!(answer.status, 422, "{}", answer.body);
        assert!(
            answer.json()["detail"].as_str().unwrap().contains(member),
            "{}",
            answer.body
        );
    }
    stage.close().await;
}

#[tokio::test]
async fn an_answer_is_never_posted_to_a_host_that_is_not_dingtalks() {
    let elsewhere = crate::support::listener().await;
    let stage = stage_with(Settings {
        session_url: Some(format!("http://{}", elsewhere.local_addr().unwrap())),
        ..fast()
    })
    .await;
    stage.platform.set(replying(1_500));
    stage.box_.say(&stage.chat(), "manager0001", "status").await;
    until("the robot says it", async || {
        delivered(&stage, Via::Group) == ["you said status"]
    })
    .await;
    let called =
        tokio::time::timeout(std::time::Duration::from_millis(1), elsewhere.accept()).await;
    assert!(called.is_err(), "somebody else was called");
    stage.close().await;
}

#[tokio::test]
async fn the_same_message_again_is_told_once_and_every_kind_is_told() {
    let stage = stage().await;
    let chat = stage.chat();
    let say = |words: Words| Speech::in_group(&chat, "manager0001", "").with(words);
    let kinds = [
        (Words::Text("hi".into()), "text", json!("hi")),
        (
            Words::RichText(vec![
                Part::Text("a".into()),
                Part::Picture,
                Part::Text("b".into()),
            ]),
            "richText",
            json!("ab"),
        ),
        (Words::Picture, "picture", json!(null)),
        (Words::Audio("all down".into()), "audio", json!("all down")),
        (Words::Video, "video", json!(null)),
        (Words::File("a.txt".into()), "file", json!(null)),
        (Words::Unknown, "unknownMsgType", json!(null)),
        (
            Words::OverQuota { short: true },
            "quota_exceeded",
            json!("调用量超过限制"),
        ),
        (
            Words::OverQuota { short: false },
            "quota_exceeded",
            json!("调用量超过限制"),
        ),
    ];
    let count = kinds.len();
    for (words, kind, text) in kinds {
        let body = stage.box_.worded(&say(words));
        for _ in 0..3 {
            let said = stage.box_.pass_on(&body, Signed::Rightly).await;
            assert!(said.acknowledged, "{said:?}");
        }
        let told = async || {
            let events = stage.events(MESSAGE);
            let last = events.last()?.body["data"].clone();
            (last["kind"] == kind && last["text"] == text).then_some(())
        };
        until(kind, async || told().await.is_some()).await;
    }
    assert_eq!(stage.events(MESSAGE).len(), count);
    // The body is not signed: who makes one up under a known id does not take the place of the message.
    let genuine = stage.box_.worded(&say(Words::Text("ack 123".into())));
    let forged = genuine.replace("ack 123", "nothing");
    assert_ne!(forged, genuine);
    for body in [&forged, &genuine, &genuine] {
        assert!(stage.box_.pass_on(body, Signed::Rightly).await.acknowledged);
    }
    until("both are told", async || {
        stage.events(MESSAGE).len() == count + 2
    })
    .await;
    let last = stage.events(MESSAGE).last().unwrap().body["data"].clone();
    assert_eq!(last["text"], "ack 123");
    stage.close().await;
}

#[tokio::test]
async fn what_is_not_signed_or_not_for_this_robot_is_refused_alike() {
    let stage = stage().await;
    let good = stage.box_.worded(&Speech::alone("manager0001", "hi"));
    for signed in [
        Signed::Not,
        Signed::Wrongly,
        Signed::Aged(3_700_000),
        Signed::Aged(-3_700_000),
    ] {
        let said = stage.box_.pass_on(&good, signed).await;
        assert_eq!((said.status, said.answer.as_str()), (403, ""), "{signed:?}");
    }
    let spoilt = |member: &str, value: Value| {
        let mut body: Value = serde_json::from_str(&good).unwrap();
        body[member] = value;
        body.to_string()
    };
    for body in [
        spoilt("robotCode", json!("dingother")),
        spoilt("chatbotCorpId", json!("dingother")),
        spoilt("msgId", json!(7)),
        spoilt("msgId", json!("")),
        spoilt("conversationType", json!("3")),
        spoilt("conversationType", json!(null)),
        "{}".to_owned(),
        "[]".to_owned(),
        String::new(),
        format!("{{\"a\":{}{}}}", "[".repeat(100), "]".repeat(100)),
    ] {
        let said = stage.box_.pass_on(&body, Signed::Rightly).await;
        assert_eq!((said.status, said.answer.as_str()), (403, ""), "{body}");
    }
    assert!(stage.events(MESSAGE).is_empty());
    stage.close().await;
}

/// Its body is not signed, so a door that nobody needs is closed.
#[tokio::test]
async fn with_stream_mode_and_no_events_page_the_robot_is_heard_over_stream_alone() {
    let stage = stage().await;
    let (before, callback) = stage.config.split_once("[apps.callback]").unwrap();
    let (_, after) = callback.split_once("[[robots]]").unwrap();
    let stream = "[apps.stream]\nenabled = true\n";
    let status = async || {
        let said = stage.box_.say(&stage.chat(), "manager0001", "hi").await;
        said.status
    };
    assert_eq!(status().await, 200);
    crate::support::reload(&stage, &format!("{before}{stream}[[robots]]{after}")).await;
    assert_eq!(status().await, 404);
    stage.close().await;
}

#[tokio::test]
async fn the_title_of_a_group_is_learned_from_what_is_said_in_it() {
    let stage = stage().await;
    assert!(
        stage.get("/v1/chats?state=all").await.json()["chats"]
            .as_array()
            .unwrap()
            .is_empty()
    );
    stage.box_.say(&stage.chat(), "manager0001", "hi").await;
    let chats = stage.get("/v1/chats?state=all").await.json();
    assert_eq!(chats["chats"][0]["title"], "值班告警群");
    stage.close().await;
}

/// A message of `stage` whose session is `url`, said by somebody who knows how to sign.
async fn said_with_session(stage: &Stage, url: &str) {
    let speech = Speech::in_group(&stage.chat(), "manager0001", "status");
    let mut body: Value = serde_json::from_str(&stage.box_.worded(&speech)).unwrap();
    body["sessionWebhook"] = json!(url);
    let said = stage.box_.pass_on(&body.to_string(), Signed::Rightly).await;
    assert!(said.acknowledged, "{said:?}");
}

/// Another robot's webhook is at DingTalk's host as well, and leads into a group of whoever owns it.
#[tokio::test]
async fn an_answer_is_posted_to_sessions_only_and_goes_by_the_robot_if_there_is_none() {
    let stage = stage().await;
    stage.platform.set(replying(1_500));
    let box_ = stage.box_.url();
    let token = &stage.settings.robots[0].access_token;
    let long = "x".repeat(4_000);
    for (n, url) in [
        format!("{box_}/robot/send?access_token={token}"),
        format!("{box_}/robot/sendBySession/../send?access_token={token}"),
        format!("{box_}/v1.0/oauth2/accessToken"),
        format!("{box_}/robot/sendBySession?session={long}"),
    ]
    .into_iter()
    .enumerate()
    {
        said_with_session(&stage, &url).await;
        until(&format!("the robot answers {url}"), async || {
            delivered(&stage, Via::Group).len() == n + 1
        })
        .await;
    }
    let requests = stage.box_.requests();
    let astray = |path: &str| path.starts_with("/robot/send");
    let astray: Vec<_> = requests.iter().filter(|it| astray(&it.path)).collect();
    assert!(astray.is_empty(), "{astray:?}");
    stage.close().await;
}

/// What is said is not signed: it names a group that has no name, and overrules nobody who knows better.
#[tokio::test]
async fn a_title_that_was_only_said_gives_way_to_one_that_was_signed() {
    let stage = stage().await;
    let chat = stage.chat();
    let say = async |title: &str| {
        let speech = Speech::in_group(&chat, "manager0001", "status");
        let mut body: Value = serde_json::from_str(&stage.box_.worded(&speech)).unwrap();
        body["conversationTitle"] = json!(title);
        let said = stage.box_.pass_on(&body.to_string(), Signed::Rightly).await;
        assert!(said.acknowledged, "{said:?}");
        let chats = stage.get("/v1/chats?state=all").await.json();
        chats["chats"][0]["title"].as_str().unwrap().to_owned()
    };
    assert_eq!(say("first").await, "first");
    assert_eq!(say("second").await, "second");
    assert_eq!(say(&"群".repeat(5_000)).await.chars().count(), 256);
    // Dated before what was said, as if the event had been slow.
    let renamed = json!({"EventType": "chat_update_title", "timeStamp": 1_760_000_000_100_u64,
        "title": "the true one", "openConversationId": chat, "operator": "manager0001"});
    assert_eq!(stage.push(&renamed.to_string()).await.status, 200);
    assert_eq!(say("forged").await, "the true one");
    let stage = stage.crash().await;
    let chats = stage.get("/v1/chats?state=all").await.json();
    assert_eq!(chats["chats"][0]["title"], "the true one");
    stage.close().await;
}

#[tokio::test]
async fn a_reply_by_the_session_needs_no_token() {
    let stage = stage().await;
    stage.box_.set(Switches {
        only: Some("/v1.0/oauth2".to_owned()),
        down: true,
        ..Switches::default()
    });
    stage.box_.say(&stage.chat(), "manager0001", "status").await;
    until("it is told", async || stage.events(MESSAGE).len() == 1).await;
    let reply_to = stage.events(MESSAGE)[0].body["data"]["reply_to"].clone();
    let body = json!({"reply_to": reply_to, "content": {"text": {"content": "all is well"}}});
    let id = reply(&stage, &body).await.json()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    stage.reaches(&id, "sent").await;
    assert_eq!(delivered(&stage, Via::Session), ["all is well"]);
    stage.close().await;
}
