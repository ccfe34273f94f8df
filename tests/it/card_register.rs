//! `dingd cards`: where clicks go is registered, and what stands there is not overwritten unasked.

use dingd::sim::dingtalk::{CardCallback, CardSettings, Settings};
use serde_json::{Value, json};

use crate::cards::card_to;
use crate::process::command;
use crate::support::{Stage, fast};

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
    let (code, text) = command(&config, &[&["cards"], arguments].concat()).await;
    (code == Some(0), text)
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
