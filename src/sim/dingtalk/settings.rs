//! What the box is made of: one app, its robots, groups and people.

use super::cards::CardSettings;
use super::gateway::StreamSettings;

/// Everything that is fixed when the box starts.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The self-built app.
    pub app: App,
    /// Custom group robots (webhooks).
    pub robots: Vec<Robot>,
    /// Group chats that exist at the start.
    pub groups: Vec<Group>,
    /// The people of the organisation.
    pub users: Vec<User>,
    /// Divides every window and penalty: 1.0 is true to life, 20.0 is the demo. Token lives and
    /// the hour of a webhook signature are not scaled: the one is told to the client in seconds,
    /// the other is about clocks.
    pub time_scale: f64,
    /// Life of a token in seconds; 7200 in real life.
    pub token_life_s: u64,
    /// Whether limits are enforced at all.
    pub limits: bool,
    /// How long a reply address of the robot lives; not scaled, since the client is told when it ends.
    pub session_life_ms: u64,
    /// The base of reply addresses: the box itself when absent.
    pub session_url: Option<String>,
    /// How cards behave.
    pub cards: CardSettings,
    /// How the Stream gateway behaves.
    pub stream: StreamSettings,
}

impl Default for Settings {
    /// One app and a few invented groups, people and robots, true to life.
    fn default() -> Self {
        Self {
            app: App::default(),
            robots: vec![Robot {
                access_token: "c0ffee".repeat(10),
                secret: Some("SECbox0123456789abcdef".to_owned()),
                keyword: None,
            }],
            groups: vec![Group {
                open_conversation_id: "cidBox+on/Call7x5EeiodoA==".to_owned(),
                title: "值班告警群".to_owned(),
                cool_app_installed: false,
                disbanded: false,
            }],
            users: vec![
                User::named("manager0001", "张三", "13800000001"),
                User::named("manager0002", "李四", "13800000002"),
            ],
            time_scale: 1.0,
            token_life_s: 7200,
            limits: true,
            session_life_ms: 5_400_000,
            session_url: None,
            cards: CardSettings::default(),
            stream: StreamSettings::default(),
        }
    }
}

/// A self-built app as the developer console shows it.
#[derive(Debug, Clone)]
pub struct App {
    /// CorpId of the organisation.
    pub corp_id: String,
    /// Client ID, also called AppKey.
    pub client_id: String,
    /// Client Secret, also called AppSecret.
    pub client_secret: String,
    /// The app's robot; usually equal to the Client ID.
    pub robot_code: String,
    /// The app's cool app.
    pub cool_app_code: String,
    /// AgentId.
    pub agent_id: u64,
    /// Token of the event subscription.
    pub callback_token: String,
    /// The 43 characters of the event subscription's AES key.
    pub callback_aes_key: String,
    /// What stands at the end of each encrypted text: the Client ID for a self-built app.
    pub receive_id: String,
}

impl Default for App {
    fn default() -> Self {
        Self {
            corp_id: "dingboxcorp00000000000000000001".to_owned(),
            client_id: "dingboxapp0001".to_owned(),
            client_secret: "box-client-secret-not-a-real-one".to_owned(),
            robot_code: "dingboxapp0001".to_owned(),
            cool_app_code: "COOLAPP-1-10180000B0C50000".to_owned(),
            agent_id: 836_390_886,
            callback_token: "BoxToken01".to_owned(),
            // The last character carries unused bits that are not zero, as most real keys do.
            callback_aes_key: "bOxbOxbOxbOxbOxbOxbOxbOxbOxbOxbOxbOxbOxbOxb".to_owned(),
            receive_id: "dingboxapp0001".to_owned(),
        }
    }
}

/// A custom group robot.
#[derive(Debug, Clone)]
pub struct Robot {
    /// The token of its webhook URL.
    pub access_token: String,
    /// The `SEC…` string, when the robot wants signatures.
    pub secret: Option<String>,
    /// A word that each message must contain, when the robot wants one.
    pub keyword: Option<String>,
}

/// A group chat.
#[derive(Debug, Clone)]
pub struct Group {
    /// The `cid…` id.
    pub open_conversation_id: String,
    /// Its name.
    pub title: String,
    /// Whether the app's cool app is installed; sends then need the cool-app code.
    pub cool_app_installed: bool,
    /// Whether the group was dissolved.
    pub disbanded: bool,
}

/// A person of the organisation.
#[derive(Debug, Clone)]
pub struct User {
    /// The id inside the organisation.
    pub userid: String,
    /// The id across the apps of one developer.
    pub unionid: String,
    /// Display name.
    pub name: String,
    /// Mobile number, without a country code.
    pub mobile: String,
}

impl User {
    /// A person with a made-up union id.
    pub fn named(userid: &str, name: &str, mobile: &str) -> Self {
        Self {
            userid: userid.to_owned(),
            unionid: format!("union{userid}iEiE"),
            name: name.to_owned(),
            mobile: mobile.to_owned(),
        }
    }
}
