//! The gateway's bad days: pings, cuts, silence, goodbyes and refusals.

use super::*;

#[tokio::test]
async fn a_ping_wants_its_own_data_back_and_silence_ends_the_connection() {
    let mut settings = settings();
    settings.stream.ping_every_ms = 2_000;
    settings.stream.ping_wait_ms = 4_000;
    let ding = boxed(settings).await;
    let mut client = Client::connect(&ding, &[EVENT]).await;
    for _ in 0..2 {
        let ping = client.frame().await;
        assert_eq!(
            (&ping["type"], &ping["headers"]["topic"]),
            (&json!("SYSTEM"), &json!("ping"))
        );
        let data: Value = serde_json::from_str(ping["data"].as_str().unwrap()).unwrap();
        assert!(data["opaque"].is_string());
        client.ack(&ping, 200, &data).await;
    }
    assert_eq!(ding.complaints(), Vec::<String>::new());
    assert_eq!(client.ends_within(3_000).await, Some(false));
    assert_eq!(
        ding.gateway().connections()[0].why,
        Some(Why::PingUnanswered)
    );
    assert_eq!(ding.gateway().live(), 0);
}

#[tokio::test]
async fn a_cut_is_a_reset_and_what_was_unacknowledged_comes_over_the_next_connection() {
    let mut settings = settings();
    settings.stream.event_again_ms = 4_000;
    let ding = boxed(settings).await;
    let gateway = ding.gateway();
    let mut client = Client::connect(&ding, &[EVENT]).await;
    let id = gateway.send_event(&rename(&ding, "a"));
    let first = client.frame().await;
    assert_eq!(gateway.cut(), 1);
    assert_eq!(gateway.live(), 0);
    assert_eq!(client.ends_within(2_000).await, Some(true));
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut client = Client::connect(&ding, &[EVENT]).await;
    let again = client.frame().await;
    assert_eq!(again["headers"]["eventId"], first["headers"]["eventId"]);
    assert_ne!(
        again["headers"]["connectionId"],
        first["headers"]["connectionId"]
    );
    client.success(&again).await;
    assert_eq!(gateway.settled(&id).await.tries, 2);
    let connections = gateway.connections();
    assert_eq!(connections[0].why, Some(Why::Cut));
    assert!(connections[0].closed_ms.is_some() && connections[1].closed_ms.is_none());
    assert!(
        gateway.unconnected_ms() >= 40,
        "{}",
        gateway.unconnected_ms()
    );
    let unconnected = gateway.unconnected_ms();
    assert!(gateway.undeliverable_ms() >= unconnected);
}

#[tokio::test]
async fn a_goodbye_ends_the_delivery_at_once_and_tcp_later() {
    let mut settings = settings();
    settings.stream.leave_ms = 10_000;
    let ding = boxed(settings).await;
    let gateway = ding.gateway();
    let mut old = Client::connect(&ding, &[EVENT]).await;
    let id = gateway.send_event(&rename(&ding, "before"));
    let pending = old.frame().await;
    assert_eq!(gateway.disconnect("persistent connection is timeout"), 1);
    assert_eq!(gateway.live(), 0);
    let bye = old.frame().await;
    assert_eq!(bye["headers"]["topic"], "disconnect");
    assert_eq!(
        bye["data"],
        r#"{"reason":"persistent connection is timeout"}"#
    );
    // What is sent now waits for the next connection.
    gateway.send_event(&rename(&ding, "after"));
    let mut new = Client::connect(&ding, &[EVENT]).await;
    let frame = new.frame().await;
    assert!(frame["data"].as_str().unwrap().contains("after"));
    new.success(&frame).await;
    // An acknowledgement still counts.
    old.success(&pending).await;
    assert_eq!(gateway.settled(&id).await.tries, 1);
    // Ten seconds at twenty times the speed.
    assert_eq!(old.ends_within(300).await, None);
    assert_eq!(old.ends_within(2_000).await, Some(false));
    assert_eq!(gateway.unconnected_ms(), 0);
    let why = gateway.connections()[0].why.clone();
    assert_eq!(
        why,
        Some(Why::Disconnect(
            "persistent connection is timeout".to_owned()
        ))
    );
}

#[tokio::test]
async fn a_silent_connection_swallows_frames_until_it_would_have_been_noticed() {
    let mut settings = settings();
    settings.stream.event_again_ms = 1_000;
    settings.stream.ping_every_ms = 2_000;
    settings.stream.ping_wait_ms = 2_000;
    let ding = boxed(settings).await;
    let gateway = ding.gateway();
    let mut client = Client::connect(&ding, &[EVENT]).await;
    assert_eq!(gateway.silence(), 1);
    assert_eq!(gateway.live(), 0);
    let id = gateway.send_event(&rename(&ding, "a"));
    assert_eq!(client.ends_within(500).await, None);
    let swallowed = gateway.sent().len();
    assert!((2..=6).contains(&swallowed), "{swallowed}");
    let mut other = Client::connect(&ding, &[EVENT]).await;
    let frame = other.frame().await;
    other.success(&frame).await;
    gateway.settled(&id).await;
    let connections = gateway.connections();
    assert_eq!(connections[0].why, Some(Why::Silent));
    assert_eq!(connections[0].closed_ms, None);
    gateway.cut();
    assert_eq!(client.ends_within(2_000).await, Some(true));
}

/// Without a bound the box was busy for ever with letters that came again faster than it could write them.
#[tokio::test]
async fn a_connection_takes_no_more_letters_than_it_has_places_for() {
    let mut settings = settings();
    settings.stream.event_again_ms = 1_000;
    let ding = boxed(settings).await;
    let gateway = ding.gateway();
    let _deaf = Client::connect(&ding, &[EVENT]).await;
    gateway.silence();
    let letters = (0..300).map(|n| rename(&ding, &n.to_string()));
    let ids: Vec<_> = letters.map(|text| gateway.send_event(&text)).collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(gateway.connections()[0].frames, 256);
    let client = tokio::spawn(faithful(ding.clone()));
    for id in ids {
        assert_eq!(gateway.settled(&id).await.settled, Settled::Done);
    }
    client.abort();
}

#[tokio::test]
async fn letters_that_wait_for_a_place_do_not_go_over_a_connection_that_was_told_to_go() {
    let ding = boxed(settings()).await;
    let gateway = ding.gateway();
    let _client = Client::connect(&ding, &[EVENT]).await;
    gateway.delay(Duration::from_millis(20));
    for n in 0..300 {
        gateway.send_event(&rename(&ding, &n.to_string()));
    }
    // So many may be without an answer; the rest waits.
    let frames = || gateway.connections()[0].frames;
    for _ in 0..500 {
        if frames() >= 256 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(gateway.disconnect("connection is expired"), 1);
    let sent = frames();
    assert!((256..300).contains(&sent), "some wait: {sent}");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(gateway.connections()[0].frames, sent);
}

#[tokio::test]
async fn a_connection_has_an_age_when_it_is_given_one() {
    let mut settings = settings();
    settings.stream.life_ms = Some(2_000);
    settings.stream.leave_ms = 1_000;
    let ding = boxed(settings).await;
    let mut client = Client::connect(&ding, &[EVENT]).await;
    let bye = client.frame().await;
    assert_eq!(bye["data"], r#"{"reason":"connection is expired"}"#);
    assert_eq!(client.ends_within(2_000).await, Some(false));
}

#[tokio::test]
async fn opening_can_be_refused_and_misbehave_like_any_other_call() {
    let ding = boxed(settings()).await;
    for (status, code) in [
        (503, "openConnectionFailed"),
        (401, "authFailed"),
        (400, "openConnectionFailed"),
    ] {
        ding.gateway().refuse_opens(Some(status));
        let (answered, body) = ask(&ding, &wish(&[EVENT])).await;
        assert_eq!((answered, &body["code"]), (status, &json!(code)));
    }
    ding.gateway().refuse_opens(None);
    let (_, right) = ask(&ding, &wish(&[EVENT])).await;
    ding.set(Switches {
        only: Some("/connect".to_owned()),
        down: true,
        ..Switches::default()
    });
    assert!(Client::with_ticket(&right).await.is_err());
    ding.set(Switches::default());
    // The ticket was not used up by that.
    assert!(Client::with_ticket(&right).await.is_ok());
}

#[tokio::test]
async fn frames_can_be_late_or_nonsense_and_a_stopped_box_ends_every_connection() {
    let ding = boxed(settings()).await;
    let gateway = ding.gateway();
    let mut client = Client::connect(&ding, &[EVENT]).await;
    gateway.delay(Duration::from_millis(100));
    let start = clock::now();
    assert_eq!(gateway.send_raw(r#"{"nonsense":true}"#), 1);
    assert_eq!(client.frame().await["nonsense"], true);
    assert!(clock::now().duration_since(start) >= Duration::from_millis(100));
    gateway.delay(Duration::ZERO);
    assert_eq!(gateway.send_binary(&[1, 2, 3]), 1);
    let Message::Binary(bytes) = client.socket.next().await.unwrap().unwrap() else {
        panic!("not binary");
    };
    assert_eq!(bytes.as_ref(), [1, 2, 3]);
    ding.stop().await;
    assert!(client.ends_within(2_000).await.is_some());
    assert_eq!(gateway.connections()[0].why, Some(Why::Stopped));
}

#[tokio::test]
async fn a_click_that_is_reported_twice_is_answered_twice() {
    let ding = boxed(settings()).await;
    let token = token(&ding).await;
    let path = "/v1.0/card/instances/createAndDeliver";
    call(&ding, path, &token, &card("a")).await;
    let mut client = Client::connect(&ding, &[CARD]).await;
    let mut click = Click::new("a", "manager0001", &["ack"], json!({}));
    click.message_id = Some("m-1".to_owned());
    let answer = async {
        let frames = [client.frame().await, client.frame().await];
        for frame in &frames {
            client.ack(frame, 200, &json!({"response": {}})).await;
        }
        frames
    };
    let twice = async { tokio::join!(ding.click_with(&click), ding.click_with(&click)) };
    let ((one, two), frames) = tokio::join!(twice, answer);
    assert!(one.accepted && two.accepted, "{one:?} {two:?}");
    let id = |at: usize| frames[at]["headers"]["messageId"].clone();
    assert_eq!((id(0), id(1)), (json!("m-1"), json!("m-1")));
}

/// Reconnects for as long as it may and acknowledges whatever it is told.
async fn faithful(ding: DingTalk) {
    loop {
        let (status, right) = ask(&ding, &wish(&[EVENT])).await;
        if status != 200 {
            continue;
        }
        let Ok(mut client) = Client::with_ticket(&right).await else {
            continue;
        };
        while let Some(Ok(message)) = client.socket.next().await {
            let Message::Text(text) = message else {
                continue;
            };
            let frame: Value = serde_json::from_str(text.as_str()).unwrap();
            let ack = json!({
                "code": 200, "message": "OK", "data": r#"{"status":"SUCCESS","message":""}"#,
                "headers": {"contentType": "application/json",
                    "messageId": frame["headers"]["messageId"]},
            });
            if client
                .socket
                .send(Message::text(ack.to_string()))
                .await
                .is_err()
            {
                break;
            }
        }
    }
}

#[tokio::test]
async fn two_hundred_cuts_lose_no_event_for_a_client_that_comes_back() {
    let mut settings = settings();
    settings.stream.event_again_ms = 1_000;
    settings.limits = false;
    let ding = boxed(settings).await;
    let gateway = ding.gateway();
    let client = tokio::spawn(faithful(ding.clone()));
    for i in 0..200 {
        gateway.connected(1).await;
        for j in 0..5 {
            gateway.send_event(&rename(&ding, &format!("{i}-{j}")));
        }
        // At any moment of the exchange.
        tokio::time::sleep(Duration::from_micros(i * 37 % 2_000)).await;
        gateway.cut();
    }
    let start = clock::now();
    while gateway.pending() > 0 {
        assert!(clock::now().duration_since(start) < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let outcomes = gateway.outcomes();
    assert_eq!(outcomes.len(), 1_000);
    assert!(outcomes.iter().all(|it| it.settled == Settled::Done));
    assert!(outcomes.iter().any(|it| it.tries > 1));
    let connections = gateway.connections();
    assert!(connections.len() > 200);
    client.abort();
}
