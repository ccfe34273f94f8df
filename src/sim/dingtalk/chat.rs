//! People talk to the robot: what the app is told, and what its answer puts into the chat.

mod session;
mod words;

use std::time::Duration;

use serde_json::Value;

use super::DingTalk;
use super::gateway::Settled;
use super::push;
use super::records::{Via, Way};
use super::sign::Signed;
use super::world::World;
use crate::sim::clock;

pub(super) use self::session::{Sessions, send};
pub use self::words::{Part, Words};

/// Something said to the robot, and how the app is told.
#[derive(Debug, Clone)]
pub struct Speech {
    /// The group; a chat with the robot alone when absent.
    pub chat: Option<String>,
    /// Who speaks: a userid. Somebody whom the organisation does not know comes from outside.
    pub user: String,
    /// What is said.
    pub words: Words,
}

impl Speech {
    /// A line in a group, to the robot.
    pub fn in_group(chat: &str, user: &str, text: &str) -> Self {
        Self {
            chat: Some(chat.to_owned()),
            user: user.to_owned(),
            words: Words::Text(text.to_owned()),
        }
    }

    /// A line to the robot alone.
    pub fn alone(user: &str, text: &str) -> Self {
        Self {
            chat: None,
            user: user.to_owned(),
            words: Words::Text(text.to_owned()),
        }
    }

    /// The same with something else said.
    #[must_use]
    pub fn with(mut self, words: Words) -> Self {
        self.words = words;
        self
    }
}

/// What became of something said.
#[derive(Debug, Clone)]
pub struct Said {
    /// How the app was told.
    pub way: Way,
    /// What the app was told: over HTTP the body, over Stream the frame's data.
    pub body: String,
    /// The HTTP status or the code of the acknowledgement; 0 when none came.
    pub status: u16,
    /// Whether the app took it: HTTP 200, or an acknowledgement with code 200.
    pub acknowledged: bool,
    /// From before the call to after the answer.
    pub elapsed: Duration,
    /// The answer as text.
    pub answer: String,
    /// Whether the answer put a message into the chat.
    pub replied: bool,
    /// Why it was not taken, or why the answer is no message.
    pub error: Option<String>,
}

impl Said {
    /// A member of what the app was told.
    pub fn told(&self, name: &str) -> Value {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        body.get(name).cloned().unwrap_or_default()
    }
}

impl DingTalk {
    /// Sets where the console says that robot messages go: a URL, or Stream mode when absent.
    pub fn set_robot_url(&self, url: Option<&str>) {
        self.world().robot_url = url.map(str::to_owned);
    }

    /// Every reply address dies now, before its time.
    pub fn end_sessions(&self) {
        self.world().sessions.clear();
    }

    /// Somebody says something to the robot in a group.
    pub async fn say(&self, chat: &str, user: &str, text: &str) -> Said {
        self.speak(&Speech::in_group(chat, user, text)).await
    }

    /// Somebody says something to the robot alone.
    pub async fn tell(&self, user: &str, text: &str) -> Said {
        self.speak(&Speech::alone(user, text)).await
    }

    /// Somebody says something to the robot. Over Stream it returns with the acknowledgement, or
    /// when the message is given up.
    pub async fn speak(&self, speech: &Speech) -> Said {
        let body = self.worded(speech);
        self.pass_on(&body, Signed::Rightly).await
    }

    /// What the app is told about something said; each call makes a new message with a reply
    /// address of its own.
    pub fn worded(&self, speech: &Speech) -> String {
        words::body(&mut self.world(), speech)
    }

    /// Tells the app what [`Self::worded`] made: once more, or spoilt.
    pub async fn pass_on(&self, body: &str, signed: Signed) -> Said {
        let (url, secret) = {
            let world = self.world();
            let secret = world.settings.app.client_secret.clone();
            (world.robot_url.clone(), secret)
        };
        let Some(url) = url else {
            return self.pass_on_by_stream(body).await;
        };
        let start = clock::now();
        let headers = signed.robot(&secret);
        let returned = push::call(&url, &headers, body.to_owned(), push::PATIENCE).await;
        let elapsed = clock::now().duration_since(start);
        let (status, answer, failure) = match returned {
            Ok(returned) => (returned.status, returned.body, None),
            Err(error) => (0, String::new(), Some(error)),
        };
        let acknowledged = status == 200;
        let reply = match failure {
            Some(error) => Err(error),
            None if !acknowledged => Err(format!("answered with {status}")),
            None => reply(&mut self.world(), self.elapsed_ms(), body, &answer),
        };
        Said {
            way: Way::Http,
            body: body.to_owned(),
            status,
            acknowledged,
            elapsed,
            answer,
            replied: reply == Ok(true),
            error: reply.err(),
        }
    }

    async fn pass_on_by_stream(&self, body: &str) -> Said {
        let gateway = self.gateway();
        let id = gateway.send_robot_message(body);
        let outcome = gateway.settled(&id).await;
        let acknowledged = outcome.settled == Settled::Done;
        let (status, answer) = outcome
            .ack
            .map_or((0, String::new()), |ack| (ack.code, ack.data));
        Said {
            way: Way::Stream,
            body: body.to_owned(),
            status,
            acknowledged,
            elapsed: outcome.elapsed,
            answer,
            // Whatever it holds, DingTalk ignores it.
            replied: false,
            error: (!acknowledged).then(|| format!("{:?}", outcome.settled)),
        }
    }
}

/// Puts the answer to an HTTP callback into the chat; false when it is no message on purpose.
fn reply(world: &mut World, at_ms: u64, told: &str, answer: &str) -> Result<bool, String> {
    let told: Value = serde_json::from_str(told).unwrap_or_default();
    let member = |name: &str| told.get(name).and_then(Value::as_str).unwrap_or_default();
    let target = if member("conversationType") == "1" {
        member("senderStaffId")
    } else {
        member("conversationId")
    };
    if answer.trim().is_empty() {
        return Ok(false);
    }
    let answer: Value = serde_json::from_str(answer).map_err(|_| "the answer is not JSON")?;
    let answer = answer.as_object().ok_or("the answer is not an object")?;
    if answer.is_empty() {
        return Ok(false);
    }
    session::deliver(world, at_ms, "robot's answer", Via::Answer, target, answer)
        .map_err(|refusal| format!("the answer is no message: {}", refusal.body))
}
