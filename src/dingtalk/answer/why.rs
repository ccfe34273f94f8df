//! Every reason's slug and its cure, in Chinese and English, for somebody at 3 a.m.
//!
//! Pure. A slug is part of the API and never changes; a cure says what is wrong, names the console page
//! or the configuration key to go to, and ends with what dingd does meanwhile. Which code leads to which
//! slug is in `table` (outbound.md §7.4). Both READMEs list all of them; a test compares.

/// A stable slug with its cure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Why {
    pub(super) slug: &'static str,
    pub(super) zh: &'static str,
    pub(super) en: &'static str,
}

/// A cure with what dingd does meanwhile; `retried` ones say it in their own words.
macro_rules! cure {
    (zh dead $text:literal) => {
        concat!(
            $text,
            " 此消息不再自动重试；修复后可用 dingd dead replay 重发。"
        )
    };
    (en dead $text:literal) => {
        concat!(
            $text,
            " dingd does not retry it; after the cure use `dingd dead replay`."
        )
    };
    (zh ended $text:literal) => {
        concat!($text, " 此消息不再自动重试。")
    };
    (en ended $text:literal) => {
        concat!($text, " dingd does not retry it.")
    };
    (zh blocked $text:literal) => {
        concat!($text, " 其间消息排队等待，dingd 每 1 至 10 分钟探测一次。")
    };
    (en blocked $text:literal) => {
        concat!(
            $text,
            " Meanwhile messages wait and dingd probes every 1 to 10 minutes."
        )
    };
    (zh unknown $text:literal) => {
        concat!($text, " dingd 按 ambiguous 设置重试、搁置或放弃。")
    };
    (en unknown $text:literal) => {
        concat!(
            $text,
            " By the ambiguous setting dingd retries, holds or drops it."
        )
    };
    (zh paused $text:literal) => {
        concat!($text, " 其间消息排队等待，不计尝试次数。")
    };
    (en paused $text:literal) => {
        concat!($text, " Meanwhile messages wait; it costs no attempt.")
    };
    ($language:ident retried $text:literal) => {
        $text
    };
}

/// Defines the reasons, each as its name, what becomes of the message, its slug and its cures.
macro_rules! reasons {
    ($($name:ident $meanwhile:ident $slug:literal $zh:literal $en:literal;)+) => {
        $(pub(super) const $name: Why = Why {
            slug: $slug,
            zh: cure!(zh $meanwhile $zh),
            en: cure!(en $meanwhile $en),
        };)+

        /// All of them, in the order of this file.
        #[cfg(test)]
        pub(super) const ALL: &[Why] = &[$($name),+];
    };
}

reasons! {
    // Tokens, credentials, permissions.

    TOKEN_REFUSED retried "token_refused"
        "访问令牌被拒，dingd 自动换取新令牌；若反复出现，请在 开发者后台 → 应用 → 凭证与基础信息 \
         核对 [[apps]] client_id、client_secret。"
        "The access token was refused; dingd fetches a new one by itself. If this repeats, \
         compare [[apps]] client_id and client_secret with developer console → app → \
         Credentials.";

    CREDENTIALS_REFUSED blocked "credentials_refused"
        "应用凭证被拒。在 开发者后台 → 应用 → 凭证与基础信息 复制 Client ID 与 Client Secret，填\
         入 [[apps]] client_id、client_secret，确认应用已启用，再 SIGHUP。"
        "DingTalk refuses the app's credentials. Copy Client ID and Client Secret from developer \
         console → app → Credentials into [[apps]] client_id and client_secret, check that the \
         app is enabled, then SIGHUP.";

    PERMISSION_MISSING blocked "permission_missing"
        "应用缺少权限。在 开发者后台 → 应用 → 开发配置 → 权限管理 申请所缺权限（发消息需要 \
         qyapi_robot_sendmsg，查群需要 qyapi_chat_manage），然后发布新版本。"
        "The app lacks a permission. Apply for it under developer console → app → Development \
         configuration → Permissions (sending needs qyapi_robot_sendmsg, group look-ups \
         qyapi_chat_manage), then publish a version.";

    EGRESS_IP_NOT_ALLOWED blocked "egress_ip_not_allowed"
        "出口 IP 不在应用的白名单。把详情中的 IP 加到 开发者后台 → 应用 → 开发配置 → 安全设置 → \
         服务器出口 IP，并与 [egress] addresses 保持一致。"
        "The egress IP is not on the app's allow list. Add the IP of the detail to developer \
         console → app → Development configuration → Security settings → server egress IP, and \
         keep [egress] addresses equal.";

    ACCESS_DENIED blocked "access_denied"
        "钉钉拒绝此应用调用该接口。在 开发者后台 → 应用 核对：应用已启用并已发布（版本管理与发\
         布）、权限管理 中已有 qyapi_robot_sendmsg、机器人属于本应用。"
        "DingTalk denies the app this call. In developer console → app check that the app is \
         enabled and published, that Permissions holds qyapi_robot_sendmsg, and that the robot \
         belongs to this app.";

    FORBIDDEN blocked "forbidden"
        "应答为 HTTP 403，没有可识别的钉钉错误码。请检查到 [egress] api_url、oapi_url 之间的代理\
         与防火墙；Webhook 请再核对机器人的安全设置。"
        "HTTP 403 without a code of DingTalk that explains it. Check proxies and firewalls on \
         the way to [egress] api_url and oapi_url; for a webhook also the robot's security \
         settings.";

    // Throttles and quotas.

    API_THROTTLED paused "api_throttled"
        "应用调用该接口过快，自动放慢，无需处理。若长期出现，请调低 [limits.app_api] count，或在 \
         开发者后台 购买 API 调用扩容包。"
        "The app calls this API too often. dingd slows down by itself. If it lasts, lower \
         [limits.app_api] count or buy an API expansion pack in the developer console.";

    PLATFORM_THROTTLED paused "platform_throttled"
        "钉钉全平台限流，自动重试，无需处理；整点前后最常见。"
        "DingTalk throttles this API for everybody. dingd retries by itself; it is most common \
         around the full hour.";

    APP_THROTTLED paused "app_throttled"
        "钉钉暂时封禁了本应用或企业的调用。暂停后自动探测；若超过一小时，请带上 request id 在 开\
         发者后台 提交工单。"
        "DingTalk has banned this app's or organisation's calls for a while. dingd probes by \
         itself; after an hour open a ticket in the developer console with the request id.";

    MONTH_QUOTA_EXHAUSTED paused "month_quota_exhausted"
        "企业本月 API 调用额度用尽，dingd 每 10 分钟起探测一次。在 开发者后台 购买额度，立即生\
         效；在此之前请减少低优先级消息。"
        "The organisation's monthly API quota is used up; dingd probes every 10 minutes or more. \
         Buy quota in the developer console; it takes effect at once. Until then send fewer low \
         priority messages.";

    WEBHOOK_QUOTA_EXHAUSTED paused "webhook_quota_exhausted"
        "本月 Webhook 额度用尽，dingd 每 10 分钟起探测一次。请管理员在 开发者后台 增购，或调高该\
         机器人的月度上限。"
        "The monthly webhook allowance is used up; dingd probes every 10 minutes or more. An \
         admin can buy more in the developer console or raise this robot's monthly cap.";

    EGRESS_BANNED paused "egress_banned"
        "出口 IP 被钉钉封禁约 5 分钟（20 秒内超过 1 万次调用），自动恢复。请查同一出口 IP 上的其\
         他程序、[limits.egress]，以及是否有代理替换了应答。"
        "DingTalk bans this egress IP for about 5 minutes (over 10,000 calls in 20 s); it ends \
         by itself. Look for other programs behind the same IP, at [limits.egress], and for a \
         proxy that answers instead of DingTalk.";

    CHAT_THROTTLED paused "chat_throttled"
        "该群发送过快，自动等待。若经常出现，请调低 [limits.chat] count，或在平台侧合并告警。"
        "Too many messages to this chat; dingd waits by itself. If it is frequent, lower \
         [limits.chat] count or merge alerts in the platform.";

    FAN_OUT_THROTTLED paused "fan_out_throttled"
        "机器人同时发送的群或人太多，自动等待。若经常出现，请缩小接收范围。"
        "The robot reaches too many groups or people at once; dingd waits by itself. If it is \
         frequent, address fewer.";

    ROBOT_THROTTLED paused "robot_throttled"
        "该机器人一分钟超过 20 条，钉钉限流 10 分钟，自动恢复。请检查是否有其他程序共用此 \
         Webhook，或在群里再加一个机器人分流。"
        "This robot sent over 20 messages in a minute; DingTalk blocks it for 10 minutes. Check \
         whether another program shares the webhook, or add a second robot to the group.";

    NOTICE_THROTTLED paused "notice_throttled"
        "工作通知达到每分钟上限，自动等待，无需处理。"
        "The per-minute cap of work notifications is reached; dingd waits by itself.";

    // Busy, or nobody knows.

    DINGTALK_BUSY retried "dingtalk_busy"
        "钉钉系统繁忙，自动重试，无需处理。"
        "DingTalk is busy; dingd retries by itself.";

    DINGTALK_UNREACHABLE retried "dingtalk_unreachable"
        "请求没有完整发出，自动重试，不会重复。请在本机检查 DNS、防火墙与代理，以及 [egress] \
         api_url、oapi_url。"
        "The request did not leave in full; dingd retries, and nothing appears twice. On this \
         machine check DNS, firewall and proxy, and [egress] api_url and oapi_url.";

    ANSWER_MISSING retried "answer_missing"
        "请求已发出但没有应答，自动重试；若持续，请检查到 [egress] api_url、oapi_url 的网络。"
        "The request left but no answer came; dingd retries. If it lasts, check the network to \
         [egress] api_url and oapi_url.";

    OUTCOME_UNKNOWN unknown "outcome_unknown"
        "没有收到结果，消息可能已送达。请先在钉钉会话中查看，再决定是否重发。"
        "No result came, and the message may have arrived. Look into the chat before you send it \
         again.";

    ANSWER_UNREADABLE unknown "answer_unreadable"
        "应答不是钉钉约定的格式，消息可能已送达。请检查 [egress] api_url、oapi_url 是否正确，以\
         及中间代理是否改写应答；重发前先查看会话。"
        "The answer is not what DingTalk documents, and the message may have arrived. Check \
         [egress] api_url and oapi_url and any proxy between; look into the chat before you send \
         again.";

    CARD_DELIVERY_UNCERTAIN unknown "card_delivery_uncertain"
        "卡片已创建，但无法确认是否投放到群。请在群里查看；如未出现，请换一个新的 out_track_id \
         重发。"
        "The card exists, but nobody knows whether the chat shows it. Look there; if it is \
         missing, send it with a new out_track_id.";

    // The robot.

    ROBOT_SECURITY retried "robot_security"
        "机器人的安全设置拒绝了消息；dingd 会重新签名再试一次。在 钉钉群 → 群设置 → 机器人 → 安\
         全设置 核对：加签密钥等于 [[robots]] secret、关键词出现在消息里、IP 段包含本机出口；并\
         检查本机时钟。缺关键词的消息不再重试（dingd dead replay 可重发）；签名或 IP 不符时该机\
         器人的消息等待，每 1 至 10 分钟探测一次。"
        "The robot's security settings refused it; dingd signs anew and tries once more. In \
         DingTalk group → settings → robots → security check: the signing secret equals \
         [[robots]] secret, the keyword is in the text, the IP range holds this host; and check \
         this host's clock. A message without the keyword is not retried (`dingd dead replay` \
         sends it again); if signature or IP are wrong the robot's messages wait and dingd probes \
         every 1 to 10 minutes.";

    ROBOT_GONE dead "robot_gone"
        "机器人不存在或已被删除。在 钉钉群 → 群设置 → 机器人 重新添加，把新 Webhook 的 \
         access_token 填入 [[robots]]；企业机器人请核对 [[apps]] robot_code。"
        "The robot does not exist any more. Add it again in DingTalk group → settings → robots \
         and put the new webhook's access_token into [[robots]]; for an enterprise robot check \
         [[apps]] robot_code.";

    ROBOT_STOPPED dead "robot_stopped"
        "机器人已停用。群主可在 钉钉群 → 群设置 → 机器人 重新启用；企业机器人在 开发者后台 → 应\
         用 → 机器人 启用并发布。"
        "The robot is stopped. The group owner starts it in DingTalk group → settings → robots; \
         an enterprise robot in developer console → app → Robot, then publish.";

    ROBOT_NOT_IN_CHAT dead "robot_not_in_chat"
        "机器人不在该群。请在 钉钉群 → 群设置 → 机器人 添加它。"
        "The robot is not in this group. Add it in DingTalk group → settings → robots.";

    ROBOT_UNAVAILABLE dead "robot_unavailable"
        "机器人已停用，或群里没有安装酷应用。在 群设置 → 酷应用 安装，并在 开发者后台 → 应用 → \
         机器人 确认已发布。"
        "The robot is stopped or the cool app is not installed in the group. Install it in group \
         settings → cool apps and check developer console → app → Robot.";

    ROBOT_NOT_OWNED dead "robot_not_owned"
        "robot_code 不属于此应用。请在 开发者后台 → 应用 → 机器人 复制 RobotCode，填入同一 \
         [[apps]] 的 robot_code。"
        "This robot_code belongs to another app. Copy RobotCode from developer console → app → \
         Robot into robot_code of the same [[apps]].";

    ROBOT_CODE_REFUSED dead "robot_code_refused"
        "robot_code 无效。请在 开发者后台 → 应用 → 机器人 复制 RobotCode 填入 [[apps]] \
         robot_code，并确认机器人已发布。"
        "robot_code is not valid. Copy RobotCode from developer console → app → Robot into \
         [[apps]] robot_code and check that the robot is published.";

    ROBOT_FORBIDDEN dead "robot_forbidden"
        "该群禁止机器人发言。请群主在 钉钉群 → 群设置 → 群管理 解除禁言或允许机器人。"
        "This group forbids the robot to speak. The owner lifts it in DingTalk group → settings \
         → group management.";

    ROBOT_NOT_PROACTIVE dead "robot_not_proactive"
        "机器人未开通主动单聊。在 开发者后台 → 应用 → 机器人 开启单聊并发布新版本。"
        "The robot may not write to people first. Enable one-to-one chat in developer console → \
         app → Robot and publish a version.";

    // The conversation.

    CHAT_DISBANDED ended "chat_disbanded"
        "该群已解散。请在告警平台把通知改到其他群。"
        "The group was disbanded. Point the alert platform at another group.";

    CHAT_UNKNOWN ended "chat_unknown"
        "群 ID 不正确。用 dingd chats 查看可用的 openConversationId；不要使用 chatId 或其他应用\
         的群 ID。"
        "The chat id is wrong. `dingd chats` lists valid openConversationIds; do not use a \
         chatId or another app's id.";

    CHAT_OF_ANOTHER_ORGANISATION dead "chat_of_another_organisation"
        "该群不属于此应用的企业，或是外部群。请改用本企业内部群，或使用该企业自己的 [[apps]]。"
        "The group belongs to another organisation or is external. Use an internal group, or \
         that organisation's own [[apps]].";

    CHAT_NOT_VISIBLE dead "chat_not_visible"
        "群主不在应用可见范围内。在 开发者后台 → 应用 → 版本管理与发布 扩大可见范围。"
        "The group's owner is outside the app's visible scope. Widen it in developer console → \
         app → Version management and release.";

    COOL_APP_MISSING dead "cool_app_missing"
        "群里没有安装本应用的酷应用，或 cool_app_code 不符。在 群设置 → 酷应用 重新安装，并核对 \
         [[apps]] cool_app_code。"
        "This app's cool app is not installed in the group, or cool_app_code differs. Install it \
         again in group settings → cool apps and check [[apps]] cool_app_code.";

    SESSION_EXPIRED dead "session_expired"
        "会话已过期。请对方在钉钉里再给机器人发一条消息。"
        "The session has expired. Have the person write to the robot in DingTalk once more.";

    // The recipient.

    RECIPIENT_UNKNOWN ended "recipient_unknown"
        "企业通讯录里没有此人。请在 钉钉管理后台 → 通讯录 核对 userid 或手机号，可能已离职。"
        "The organisation has no such person. Check userid or mobile number in DingTalk admin \
         console → contacts; they may have left.";

    RECIPIENT_NOT_VISIBLE dead "recipient_not_visible"
        "此人不在应用的可见或授权范围内。在 开发者后台 → 应用 → 版本管理与发布 扩大可见范围，在 \
         权限管理 扩大通讯录授权范围。"
        "The person is outside the app's visible or authorised scope. Widen it in developer \
         console → app → Version management and release, and Permissions → contacts scope.";

    RECIPIENT_WITHOUT_CHAT dead "recipient_without_chat"
        "机器人与此人没有有效单聊。请此人在钉钉工作台打开一次应用，或先给机器人发一条消息。"
        "The robot has no valid chat with this person. Have them open the app in the workbench \
         once, or write to the robot first.";

    RECIPIENT_DAILY_CAP ended "recipient_daily_cap"
        "此人今日的工作通知已达上限，明天恢复。请改用群消息或减少通知。"
        "This person's work notifications of today are used up; it ends tomorrow. Use a group \
         message or notify less.";

    RECIPIENT_PROTECTED ended "recipient_protected"
        "此人受高管保护，应用不能给其发通知。请改用群消息，或请管理员在 钉钉管理后台 调整。"
        "The person is under executive protection, so apps may not notify them. Use a group \
         message, or ask an admin to change it in the DingTalk admin console.";

    CONTENT_REPEATED ended "content_repeated"
        "钉钉一天内不向同一人重复显示相同内容。请在正文加入时间或告警 ID。"
        "DingTalk shows equal content to a person once a day. Put the time or the alert id into \
         the text.";

    // The content, and our own requests.

    CONTENT_TOO_LARGE ended "content_too_large"
        "消息超过钉钉上限（机器人消息 15000 字节，Webhook 20000 字节）。请缩短内容或拆成多条。"
        "The message is over DingTalk's limit (15,000 bytes, webhook 20,000). Shorten it, or \
         send it as several messages.";

    CONTENT_REFUSED ended "content_refused"
        "内容未通过钉钉审核。请检查正文中的链接、图片与敏感词，修改后重发。"
        "DingTalk's content audit refused it. Check links, pictures and words of the text, then \
         send it again.";

    TEMPLATE_REFUSED ended "template_refused"
        "消息模板不存在或已停用。请核对 raw.msg_key，常用值为 sampleText、sampleMarkdown。"
        "The message template does not exist or is stopped. Check raw.msg_key; common values are \
         sampleText and sampleMarkdown.";

    CARD_TEMPLATE_REFUSED dead "card_template_refused"
        "卡片模板不存在或未发布。在 开发者后台 → 卡片平台 发布模板、关联本应用，并核对 \
         template_id。"
        "The card template does not exist or is not published. Publish it in developer console → \
         card platform, link it to this app, and check template_id.";

    CARD_UNKNOWN ended "card_unknown"
        "没有此 out_track_id 的卡片。请先创建卡片，并确认使用同一个应用。"
        "There is no card with this out_track_id. Create it first, and with the same app.";

    CARD_EXISTS ended "card_exists"
        "此 out_track_id 已经用过。请换一个新的 out_track_id；要改变已有的卡片，请用 PATCH \
         /v1/cards。"
        "This out_track_id was used before. Choose another one; to change the card that has it, \
         use PATCH /v1/cards.";

    CARD_ROUTE_EXISTS ended "card_route_exists"
        "此 route_key 已注册。用 dingd cards register --force 覆盖（影响使用它的所有卡片），或在 \
         [apps.cards] 换一个 route_key。"
        "This route_key is registered already. Overwrite it with `dingd cards register --force`, \
         which affects every card that uses it, or choose another route_key in [apps.cards].";

    CARD_NOT_DELIVERED retried "card_not_delivered"
        "卡片未投放成功；可能恢复时 dingd 自动重试，否则消息终止。请确认机器人在群内，且模板已在 \
         开发者后台 → 卡片平台 发布；修复后用新的 out_track_id 重发。"
        "No chat took the card; dingd retries where that may help, else the message is dead. \
         Check that the robot is in the group and the template is published in developer console \
         → card platform; then send it with a new out_track_id.";

    AT_ALL_FORBIDDEN dead "at_all_forbidden"
        "该群只有群主和管理员能 @所有人。请去掉 @所有人，或在 群设置 → 群管理 放开。"
        "Only admins may mention everybody in this group. Leave it out, or allow it in group \
         settings → group management.";

    MESSAGE_TYPE_UNSUPPORTED ended "message_type_unsupported"
        "该机器人不支持此消息类型。请改用 text 或 markdown，或核对 raw.msg_key、raw.msgtype。"
        "The robot does not support this message type. Use text or markdown, or check \
         raw.msg_key and raw.msgtype.";

    REQUEST_MALFORMED ended "request_malformed"
        "钉钉认为请求参数有误。若使用 raw 内容请核对字段；否则是 dingd 的缺陷，请附详情报告。"
        "DingTalk finds the request malformed. Check the fields of raw content; otherwise it is \
         a bug of dingd, please report the detail.";

    REDIRECT_REFUSED dead "redirect_refused"
        "应答是重定向，不会跟随。请把 [egress] api_url、oapi_url 改为最终的 https 地址，并检查代\
         理。"
        "The answer is a redirect, which is never followed. Set [egress] api_url and oapi_url to \
         the final https address and check any proxy.";

    API_UNKNOWN dead "api_unknown"
        "钉钉没有此接口。请检查 [egress] api_url、oapi_url 是否带了多余路径；否则是 dingd 的缺\
         陷，请报告。"
        "DingTalk has no such call. Check [egress] api_url and oapi_url for a stray path; \
         otherwise it is a bug of dingd, please report it.";

    REJECTED dead "rejected"
        "钉钉拒绝了请求，错误码见详情。请在钉钉开放平台文档的《全局错误码》中查询。"
        "DingTalk refused it; the code is in the detail. Look it up in DingTalk's list of global \
         error codes.";
}
