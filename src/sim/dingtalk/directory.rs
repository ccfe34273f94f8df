//! What the app may ask about groups and people.

use serde_json::{Map, Value, json};

use super::ask::{Ask, errcode, error, ok, request_id, text};
use super::settings::User;
use super::world::World;
use crate::sim::server::Answer;

/// `POST /v1.0/im/sceneGroups/query`.
pub(super) fn scene_group(world: &mut World, ask: &Ask) -> Answer {
    let Some(body) = ask.object().filter(|_| ask.is_json()) else {
        return error(400, "Missingbody", "body is mandatory for this action");
    };
    world.judge(ask, "", &body, &["openConversationId", "coolAppCode"]);
    let Some(id) = text(&body, "openConversationId") else {
        return error(400, "paramBlank", "openConversationId不能为空");
    };
    if !id.starts_with("cid") {
        return error(400, "cidEncryptError", "openConversationId解析失败");
    }
    let code = body.get("coolAppCode");
    if code.is_some_and(|code| code.as_str() != Some(&world.settings.app.cool_app_code)) {
        return error(400, "coolAppUnexist", "酷应用不存在");
    }
    let owner = world
        .settings
        .users
        .first()
        .map_or("", |user| &user.userid)
        .to_owned();
    // Neither an unknown group nor one without the cool app is the app's to look at.
    let Some(group) = world.group(id) else {
        return error(400, "groupPermissionDenied", "没有权限访问该群");
    };
    if code.is_none() {
        return error(400, "groupPermissionDenied", "没有权限访问该群");
    }
    if !group.cool_app_installed {
        return error(400, "coolAppUninstalled", "酷应用未安装");
    }
    ok(&json!({
        "success": true,
        "openConversationId": id,
        "templateId": "",
        "title": group.title,
        "ownerUserId": owner,
        "icon": "@box",
        "groupUrl": "",
        "status": if group.disbanded { 2 } else { 1 },
    }))
}

/// `POST /topapi/v2/user/getbymobile`.
pub(super) fn by_mobile(world: &mut World, ask: &Ask) -> Answer {
    lookup(world, ask, "mobile", |users, mobile| {
        let digits = mobile.trim_start_matches('+');
        if !digits
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'-')
        {
            return errcode(40104, "不合法的手机号");
        }
        match users.iter().find(|user| user.mobile == mobile) {
            // As text here and below, because the official samples show it so.
            Some(user) => found(json!("0"), &json!({"userid": user.userid})),
            None => errcode(60121, "找不到该用户"),
        }
    })
}

/// `POST /topapi/user/getbyunionid`.
pub(super) fn by_unionid(world: &mut World, ask: &Ask) -> Answer {
    lookup(world, ask, "unionid", |users, unionid| {
        match users.iter().find(|user| user.unionid == unionid) {
            Some(user) => found(
                json!("0"),
                &json!({"userid": user.userid, "contact_type": 0}),
            ),
            None => errcode(60121, "找不到该用户"),
        }
    })
}

/// `POST /topapi/v2/user/get`.
pub(super) fn by_userid(world: &mut World, ask: &Ask) -> Answer {
    lookup(world, ask, "userid", |users, userid| {
        match users.iter().find(|user| user.userid == userid) {
            Some(user) => {
                let details = json!({
                    "userid": user.userid,
                    "unionid": user.unionid,
                    "name": user.name,
                    "mobile": user.mobile,
                    "active": true,
                    "dept_id_list": [1],
                });
                found(json!(0), &details)
            }
            None => errcode(33012, "无效的USERID"),
        }
    })
}

fn lookup(
    world: &mut World,
    ask: &Ask,
    by: &str,
    find: impl FnOnce(&[User], &str) -> Answer,
) -> Answer {
    let body: Map<String, Value> = match ask.object() {
        Some(body) if ask.is_json() => body,
        _ => return errcode(400_002, "参数错误"),
    };
    let known: &[&str] = if by == "userid" {
        &["userid", "language"]
    } else {
        &[by]
    };
    world.judge(ask, "", &body, known);
    match text(&body, by) {
        Some(value) => find(&world.settings.users, value),
        None => errcode(400_002, "参数错误"),
    }
}

fn found(code: Value, result: &Value) -> Answer {
    let mut body = json!({"errmsg": "ok", "result": result, "request_id": request_id()});
    if let Some(members) = body.as_object_mut() {
        members.insert("errcode".to_owned(), code);
    }
    ok(&body)
}
