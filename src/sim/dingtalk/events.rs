//! What happens in groups: it changes the box, and makes the text that DingTalk would push.

use serde_json::{Value, json};

use super::settings::Group;
use super::world::World;
use crate::sim::clock;

/// The two shapes in which HTTP events are documented or were seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Casing {
    /// Today's documentation: an envelope with an event id, business members in lowerCamel.
    Lower,
    /// Older documentation and captures: PascalCase throughout, no event id.
    Pascal,
}

/// The cool app enters a group; a group that the box does not know is made, without a title.
pub(super) fn install(world: &mut World, chat: &str, operator: &str, casing: Casing) -> String {
    world.left.retain(|left| left != chat);
    if let Some(group) = world.group(chat) {
        group.cool_app_installed = true;
    } else {
        world.settings.groups.push(Group {
            open_conversation_id: chat.to_owned(),
            title: String::new(),
            cool_app_installed: true,
            disbanded: false,
        });
    }
    cool_app(world, "im_cool_app_install", chat, operator, casing)
}

/// The cool app leaves a group, and its robot with it.
pub(super) fn uninstall(world: &mut World, chat: &str, operator: &str, casing: Casing) -> String {
    if let Some(group) = world.group(chat) {
        group.cool_app_installed = false;
    }
    if !world.left.iter().any(|left| left == chat) {
        world.left.push(chat.to_owned());
    }
    cool_app(world, "im_cool_app_uninstall", chat, operator, casing)
}

fn cool_app(world: &mut World, kind: &str, chat: &str, operator: &str, casing: Casing) -> String {
    let at = world.event_ms();
    let app = &world.settings.app;
    let event = match casing {
        Casing::Lower => json!({
            "coolAppCode": app.cool_app_code,
            // Text here, a number in the events of chats: so they are documented.
            "operateTime": at.to_string(),
            "openConversationCorpId": app.corp_id,
            "robotCode": app.robot_code,
            "openConversationId": chat,
            "operator": operator,
        }),
        Casing::Pascal => json!({
            "CoolAppCode": app.cool_app_code,
            "OperateTime": at.to_string(),
            "OpenConversationCorpId": app.corp_id,
            "RobotCode": app.robot_code,
            "OpenConversationId": chat,
            "Operator": operator,
        }),
    };
    enveloped(event, kind, &app.corp_id, at, casing)
}

/// A group gets a new name.
pub(super) fn rename(
    world: &mut World,
    chat: &str,
    title: &str,
    operator: &str,
    casing: Casing,
) -> String {
    if let Some(group) = world.group(chat) {
        title.clone_into(&mut group.title);
    }
    let mut event = chat_event(world, chat, operator, casing);
    let name = if casing == Casing::Lower {
        "title"
    } else {
        "Title"
    };
    insert(&mut event.0, name, json!(title));
    enveloped(
        event.0,
        "chat_update_title",
        &world.settings.app.corp_id,
        event.1,
        casing,
    )
}

/// A group is dissolved.
pub(super) fn disband(world: &mut World, chat: &str, operator: &str, casing: Casing) -> String {
    if let Some(group) = world.group(chat) {
        group.disbanded = true;
    }
    let event = chat_event(world, chat, operator, casing);
    enveloped(
        event.0,
        "chat_disband",
        &world.settings.app.corp_id,
        event.1,
        casing,
    )
}

/// The members that all events of chats have, and their time.
fn chat_event(world: &mut World, chat: &str, operator: &str, casing: Casing) -> (Value, u64) {
    let at = world.event_ms();
    let union = world
        .settings
        .users
        .iter()
        .find(|user| user.userid == operator);
    let union = union.map_or_else(
        || "unknownUnionIdiEiE".to_owned(),
        |user| user.unionid.clone(),
    );
    // The old kind of id: any stable 32 digits will do.
    let digits = clock::hex(chat.as_bytes());
    let old = format!(
        "chat{:0<32}",
        digits.chars().rev().take(32).collect::<String>()
    );
    let event = match casing {
        Casing::Lower => json!({
            "timeStamp": at,
            "chatId": old,
            "corpId": world.settings.app.corp_id,
            "operatorUnionId": union,
            "openConversationId": chat,
            "operator": operator,
        }),
        Casing::Pascal => json!({
            "TimeStamp": at,
            "ChatId": old,
            "OperatorUnionId": union,
            "OpenConversationId": chat,
            "Operator": operator,
        }),
    };
    (event, at)
}

/// A person leaves the organisation.
pub(super) fn user_leaves(world: &mut World, userid: &str, casing: Casing) -> String {
    world.settings.users.retain(|user| user.userid != userid);
    let at = world.event_ms();
    // The time is text in directory events.
    let event = match casing {
        Casing::Lower => json!({"timeStamp": at.to_string(), "userId": [userid]}),
        Casing::Pascal => json!({"TimeStamp": at.to_string(), "UserId": [userid]}),
    };
    enveloped(
        event,
        "user_leave_org",
        &world.settings.app.corp_id,
        at,
        casing,
    )
}

fn enveloped(mut event: Value, kind: &str, corp_id: &str, at: u64, casing: Casing) -> String {
    insert(&mut event, "EventType", json!(kind));
    insert(&mut event, "CorpId", json!(corp_id));
    if casing == Casing::Lower {
        insert(&mut event, "EventTime", json!(at + 3));
        insert(&mut event, "BizId", json!(at.to_string()));
        insert(
            &mut event,
            "eventId",
            json!(clock::hex(&clock::random::<16>())),
        );
    }
    event.to_string()
}

fn insert(event: &mut Value, name: &str, value: Value) {
    if let Some(members) = event.as_object_mut() {
        members.insert(name.to_owned(), value);
    }
}
