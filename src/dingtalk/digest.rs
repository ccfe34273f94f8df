//! Many messages in one, for a reader who has just been woken: how many, how urgent, the newest state of
//! each thing they are about, and what has mended itself meanwhile.
//!
//! Pure. Which messages are folded is decided in [`crate::outbound`]; here they become one content.
//! DingTalk itself advises monitoring systems to merge alerts into a digest (outbound.md §3.1).

use std::collections::HashMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::message::{ActionCard, Content, Link, Markdown, Text};
use crate::delivery::state::Priority;

/// Things listed with the line under their headline: a phone shows about ten without scrolling. Further
/// ones are headlines only, as many as fit.
const TOLD_MAX: usize = 30;
/// Characters of a text that a digest may need.
const TEXT_CHARS_MAX: usize = 1_000;
/// Characters of a headline and of the line under it.
const HEADLINE_CHARS_MAX: usize = 60;
const LINE_CHARS_MAX: usize = 100;
/// The longest digest in bytes as JSON: leaves room for mentions below DingTalk's 15,000 and 20,000
/// (outbound.md §2.1, §3.1).
const BYTES_MAX: usize = 12_000;
/// Longer addresses are left out, in bytes.
const URL_BYTES_MAX: usize = 500;
/// Names of what has mended itself, in one line.
const RESOLVED_BYTES_MAX: usize = 1_500;
/// DingTalk's clocks and readers are at UTC+8, which has no summer time.
const UTC_8_MS: u64 = 8 * 3_600_000;

/// The language of a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Language {
    /// Chinese.
    #[default]
    Zh,
    /// English.
    En,
}

/// Which kind of content messages are folded into; only those of one kind are folded together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fold {
    /// Sent by itself.
    #[default]
    Never,
    /// Plain text.
    Text,
    /// Markdown, and what has a title, a text and a link.
    Markdown,
    /// Is a digest itself.
    Digest,
}

impl Fold {
    /// How a content can be folded.
    pub fn of(content: &Content) -> Self {
        match content {
            Content::Text(_) => Self::Text,
            Content::Markdown(_) | Content::Link(_) | Content::ActionCard(_) => Self::Markdown,
            Content::Raw(_) | Content::Card(_) | Content::CardUpdate(_) => Self::Never,
        }
    }
}

/// One of the messages.
#[derive(Debug, Clone, Copy)]
pub struct Item<'a> {
    /// Wall time of acceptance in milliseconds.
    pub accepted_ms: u64,
    /// How urgent it is.
    pub priority: Priority,
    /// Who sent it: two platforms may use the same names for different things.
    pub client: &'a str,
    /// What it is about; without one it stands for itself.
    pub merge_key: Option<&'a str>,
    /// Whether it says that this is over.
    pub resolved: bool,
    /// What it says.
    pub content: &'a Content,
}

/// What a digest may need of a content.
pub fn shortened(content: &Content) -> Content {
    match content {
        Content::Text(text) => Content::Text(Text {
            content: start(&text.content, TEXT_CHARS_MAX).to_owned(),
        }),
        Content::Markdown(markdown) => Content::Markdown(Markdown {
            title: start(&markdown.title, TEXT_CHARS_MAX).to_owned(),
            text: start(&markdown.text, TEXT_CHARS_MAX).to_owned(),
        }),
        Content::Link(link) => Content::Link(Link {
            title: start(&link.title, TEXT_CHARS_MAX).to_owned(),
            text: start(&link.text, TEXT_CHARS_MAX).to_owned(),
            url: link.url.clone(),
            picture_url: None,
        }),
        Content::ActionCard(card) => Content::ActionCard(ActionCard {
            title: start(&card.title, TEXT_CHARS_MAX).to_owned(),
            text: start(&card.text, TEXT_CHARS_MAX).to_owned(),
            buttons: card.buttons.iter().take(1).cloned().collect(),
            vertical: None,
        }),
        Content::Raw(_) | Content::Card(_) | Content::CardUpdate(_) => content.clone(),
    }
}

fn start(text: &str, chars_max: usize) -> &str {
    let end = text.char_indices().nth(chars_max);
    let end = end.map_or(text.len(), |(at, _)| at);
    text.get(..end).unwrap_or(text)
}

/// All messages about one thing.
struct Topic<'a> {
    newest: &'a Item<'a>,
    urgency: Priority,
    times: usize,
}

/// The digest of `items`, which are in the order of acceptance.
pub fn digest(items: &[Item<'_>], fold: Fold, language: Language) -> Content {
    let topics = topics(items);
    let (over, standing): (Vec<_>, Vec<_>) =
        topics.into_iter().partition(|topic| topic.newest.resolved);
    let words = Words(language);
    let marks = fold != Fold::Text;
    let title = title(items.len(), &standing, words);
    let mut text = head(items, &title, words, marks);
    let tail = mended(&over, words, marks);
    let room = BYTES_MAX.saturating_sub(escaped_bytes(&tail));
    list(&mut text, &standing, room, words, marks);
    text.push_str(&tail);
    if marks {
        Content::Markdown(Markdown { title, text })
    } else {
        Content::Text(Text { content: text })
    }
}

/// What the messages are about, the most urgent and newest first.
fn topics<'a>(items: &'a [Item<'a>]) -> Vec<Topic<'a>> {
    let mut by_key = HashMap::new();
    let mut topics: Vec<Topic<'_>> = vec![];
    for item in items {
        let key = item.merge_key.map(|key| (item.client, key));
        let known = key.and_then(|key| by_key.get(&key).copied());
        if let Some(topic) = known.and_then(|index: usize| topics.get_mut(index)) {
            topic.newest = item;
            topic.urgency = topic.urgency.min(item.priority);
            topic.times += 1;
            continue;
        }
        if let Some(key) = key {
            by_key.insert(key, topics.len());
        }
        topics.push(Topic {
            newest: item,
            urgency: item.priority,
            times: 1,
        });
    }
    topics.sort_by_key(|topic| {
        let newest_first = std::cmp::Reverse(topic.newest.accepted_ms);
        (topic.urgency, newest_first)
    });
    topics
}

/// What notifications and the list of chats show.
fn title(messages: usize, standing: &[Topic<'_>], words: Words) -> String {
    match standing.first() {
        Some(first) => words.title(messages, &headline(first.newest)),
        None => words.all_over(messages),
    }
}

fn head(items: &[Item<'_>], title: &str, words: Words, marks: bool) -> String {
    let mut text = String::new();
    if marks {
        write(&mut text, format_args!("### {title}\n\n"));
    } else {
        write(&mut text, format_args!("{title}\n"));
    }
    let times = items.iter().map(|item| item.accepted_ms);
    let first = times.clone().min().unwrap_or(0);
    let last = times.max().unwrap_or(0);
    let counts: Vec<_> = Priority::ALL
        .into_iter()
        .filter_map(|priority| {
            let count = items.iter().filter(|i| i.priority == priority).count();
            (count > 0).then(|| format!("{} {count}", words.priority(priority)))
        })
        .collect();
    let span = words.span(&clock(first), &clock(last));
    write(&mut text, format_args!("{span}{}", line_end(marks)));
    write(&mut text, format_args!("{}\n", counts.join(" · ")));
    text
}

/// What still stands, as far as it fits.
fn list(text: &mut String, standing: &[Topic<'_>], bytes_max: usize, words: Words, marks: bool) {
    if standing.is_empty() {
        return;
    }
    let title = words.standing(standing.len());
    write(text, format_args!("\n{}\n", bold(&title, marks)));
    if marks {
        text.push('\n');
    }
    // Room for the line that says how many are left out.
    let mut room = bytes_max.saturating_sub(escaped_bytes(text) + 200);
    for (listed, topic) in standing.iter().enumerate() {
        let entry = entry(topic, listed < TOLD_MAX, marks);
        let bytes = escaped_bytes(&entry);
        if bytes > room {
            let more = words.more(standing.len() - listed);
            write(text, format_args!("\n{more}\n"));
            return;
        }
        room -= bytes;
        text.push_str(&entry);
    }
}

fn entry(topic: &Topic<'_>, told: bool, marks: bool) -> String {
    let mut entry = String::from(if marks { "- " } else { "· " });
    entry.push_str(&bold(&headline(topic.newest), marks));
    if topic.times > 1 {
        write(&mut entry, format_args!(" ×{}", topic.times));
    }
    write(
        &mut entry,
        format_args!(" {}", clock(topic.newest.accepted_ms)),
    );
    if let Some(url) = more_at(topic.newest.content).filter(|_| marks && told) {
        write(&mut entry, format_args!(" [↗]({url})"));
    }
    if let Some(line) = second_line(topic.newest).filter(|_| told) {
        write(&mut entry, format_args!("{}  {line}", line_end(marks)));
    }
    entry.push('\n');
    entry
}

/// What is over, in a line: names only, because nobody has to do anything.
fn mended(over: &[Topic<'_>], words: Words, marks: bool) -> String {
    if over.is_empty() {
        return String::new();
    }
    let mut names = String::new();
    for (named, topic) in over.iter().enumerate() {
        let name = match topic.newest.merge_key {
            Some(key) => cut(&plain(key), HEADLINE_CHARS_MAX),
            None => headline(topic.newest),
        };
        if escaped_bytes(&names) + escaped_bytes(&name) > RESOLVED_BYTES_MAX {
            names.push_str(&words.and_more(over.len() - named));
            break;
        }
        if named > 0 {
            names.push_str(words.comma());
        }
        names.push_str(&name);
    }
    let title = words.over(over.len());
    format!("\n{}{}{names}\n", bold(&title, marks), line_end(marks))
}

/// The title, or the first line of a plain text.
fn headline(item: &Item<'_>) -> String {
    let line = match item.content {
        Content::Markdown(markdown) => Some(markdown.title.as_str()),
        Content::Text(text) => lines(&text.content).next(),
        Content::Link(link) => Some(link.title.as_str()),
        Content::ActionCard(card) => Some(card.title.as_str()),
        Content::Raw(_) | Content::Card(_) | Content::CardUpdate(_) => None,
    };
    cut(&plain(line.unwrap_or("…")), HEADLINE_CHARS_MAX)
}

/// Where one reads more: of several buttons the first.
fn more_at(content: &Content) -> Option<String> {
    let url = match content {
        Content::Link(link) => &link.url,
        Content::ActionCard(card) => &card.buttons.first()?.url,
        Content::Text(_)
        | Content::Markdown(_)
        | Content::Raw(_)
        | Content::Card(_)
        | Content::CardUpdate(_) => return None,
    };
    // What would end a link in markdown.
    let url = url.replace('(', "%28").replace(')', "%29");
    let is_whole = url.len() <= URL_BYTES_MAX && !url.contains(char::is_whitespace);
    is_whole.then_some(url)
}

/// The first line that says something new.
fn second_line(item: &Item<'_>) -> Option<String> {
    let headline = headline(item);
    let text = match item.content {
        Content::Markdown(markdown) => &markdown.text,
        Content::Text(text) => &text.content,
        Content::Link(link) => &link.text,
        Content::ActionCard(card) => &card.text,
        Content::Raw(_) | Content::Card(_) | Content::CardUpdate(_) => return None,
    };
    let line = lines(text)
        .map(|line| cut(&plain(line), LINE_CHARS_MAX))
        .find(|line| !line.is_empty() && *line != headline)?;
    Some(line)
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty())
}

/// A line without what would break out of its place: headings, lists, quotes, emphasis, code; a link
/// becomes its text.
fn plain(line: &str) -> String {
    let line = line.trim_start_matches(|c: char| c.is_whitespace() || "#>-*+".contains(c));
    let mut plain = String::new();
    // No more than could be shown, so that hostile brackets cost little.
    let mut rest = start(line, 4 * LINE_CHARS_MAX);
    while let Some(c) = rest.chars().next() {
        if let Some((text, after)) = link(rest) {
            plain.push_str(text);
            rest = after;
            continue;
        }
        rest = rest.get(c.len_utf8()..).unwrap_or_default();
        match c {
            '*' | '`' | '~' => {}
            c if c.is_control() || c.is_whitespace() => plain.push(' '),
            c => plain.push(c),
        }
    }
    let plain = plain.split_whitespace().collect::<Vec<_>>().join(" ");
    // What could still be read as a link, an image or a tag.
    plain.replace("](", "] (").replace('<', "＜")
}

/// `[text](url)` or `![text](url)` at the start: its text and what follows.
fn link(text: &str) -> Option<(&str, &str)> {
    let inner = text.strip_prefix("![").or_else(|| text.strip_prefix('['))?;
    let (label, rest) = inner.split_once("](")?;
    let (_, after) = rest.split_once(')')?;
    (!label.contains(['[', ']'])).then_some((label, after))
}

fn cut(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default().trim_end()),
    }
}

fn bold(text: &str, marks: bool) -> String {
    if marks {
        format!("**{text}**")
    } else {
        text.to_owned()
    }
}

/// DingTalk breaks a line of markdown at two spaces before the end (outbound.md §2.4).
fn line_end(marks: bool) -> &'static str {
    if marks { "  \n" } else { "\n" }
}

/// `14:05`.
fn clock(wall_ms: u64) -> String {
    let minutes = (wall_ms + UTC_8_MS) / 60_000;
    format!("{:02}:{:02}", minutes / 60 % 24, minutes % 60)
}

/// What a text takes inside a JSON string.
fn escaped_bytes(text: &str) -> usize {
    text.bytes()
        .map(|byte| match byte {
            b'"' | b'\\' | b'\n' => 2,
            0..=0x1f => 6,
            _ => 1,
        })
        .sum()
}

fn write(text: &mut String, what: std::fmt::Arguments<'_>) {
    text.write_fmt(what)
        .expect("a string takes whatever is written");
}

/// All words of a digest.
#[derive(Debug, Clone, Copy)]
struct Words(Language);

impl Words {
    fn title(self, messages: usize, headline: &str) -> String {
        match self.0 {
            Language::Zh => format!("{messages} 条告警：{headline} 等"),
            Language::En => format!("{messages} alerts: {headline} and more"),
        }
    }

    fn all_over(self, messages: usize) -> String {
        match self.0 {
            Language::Zh => format!("{messages} 条告警，均已恢复"),
            Language::En => format!("{messages} alerts, all resolved"),
        }
    }

    fn span(self, first: &str, last: &str) -> String {
        let span = if first == last {
            first.to_owned()
        } else {
            format!("{first}–{last}")
        };
        match self.0 {
            Language::Zh => format!("{span} 钉钉限流期间合并"),
            Language::En => format!("{span} (UTC+8), merged while DingTalk's limits held them up"),
        }
    }

    fn priority(self, priority: Priority) -> &'static str {
        match (self.0, priority) {
            (Language::Zh, Priority::Critical) => "严重",
            (Language::Zh, Priority::High) => "高",
            (Language::Zh, Priority::Normal) => "普通",
            (Language::Zh, Priority::Low) => "低",
            (Language::En, priority) => priority.label(),
        }
    }

    fn standing(self, topics: usize) -> String {
        match self.0 {
            Language::Zh => format!("未恢复 {topics} 项"),
            Language::En => format!("{topics} open"),
        }
    }

    fn over(self, topics: usize) -> String {
        match self.0 {
            Language::Zh => format!("已恢复 {topics} 项"),
            Language::En => format!("{topics} resolved"),
        }
    }

    fn more(self, topics: usize) -> String {
        match self.0 {
            Language::Zh => format!("另有 {topics} 项未列出，请到告警平台查看"),
            Language::En => format!("{topics} more are not listed; see the alert platform"),
        }
    }

    fn and_more(self, topics: usize) -> String {
        match self.0 {
            Language::Zh => format!("，等另外 {topics} 项"),
            Language::En => format!(" and {topics} more"),
        }
    }

    fn comma(self) -> &'static str {
        match self.0 {
            Language::Zh => "、",
            Language::En => ", ",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dingtalk::message::Button;

    /// 14:02 at UTC+8.
    const AT_MS: u64 = 1_796_018_520_000;

    fn markdown(title: &str, text: &str) -> Content {
        Content::Markdown(Markdown {
            title: title.to_owned(),
            text: text.to_owned(),
        })
    }

    fn item<'a>(
        minute: u64,
        key: Option<&'a str>,
        resolved: bool,
        content: &'a Content,
    ) -> Item<'a> {
        Item {
            accepted_ms: AT_MS + minute * 60_000,
            priority: Priority::Normal,
            client: "platform",
            merge_key: key,
            resolved,
            content,
        }
    }

    fn text_of(content: &Content) -> &str {
        match content {
            Content::Markdown(markdown) => &markdown.text,
            Content::Text(text) => &text.content,
            _ => panic!("neither text nor markdown"),
        }
    }

    /// As Grafana and Alertmanager send them: title, text, a button.
    #[test]
    fn what_has_a_button_keeps_its_first_link() {
        let card = Content::ActionCard(ActionCard {
            title: "P1 磁盘将满".to_owned(),
            text: "主机 db-01".to_owned(),
            buttons: ["https://g.example/d(1)", "https://g.example/silence"]
                .map(|url| Button {
                    title: "查看".to_owned(),
                    url: url.to_owned(),
                })
                .to_vec(),
            vertical: None,
        });
        let card = shortened(&card);
        assert_eq!(Fold::of(&card), Fold::Markdown);
        let items = [item(0, None, false, &card), item(1, None, false, &card)];
        let digest = digest(&items, Fold::Markdown, Language::Zh);
        let text = text_of(&digest);
        assert!(
            text.contains(
                "- **P1 磁盘将满** 14:02 [↗](https://g.example/d%281%29)  \n  主机 db-01"
            ),
            "{text}"
        );
    }

    #[test]
    fn a_digest_reads_well_in_chinese() {
        let disk = markdown(
            "P1 磁盘将满",
            "### P1 磁盘将满  \n  主机 **db-01**，剩余 `3%`\n\n[查看](https://e.example/1)",
        );
        let cpu = markdown("P2 CPU 高", "> 主机 web-07");
        let ok = markdown("恢复：网关 5xx", "已恢复");
        let items = [
            item(0, Some("host/db-01"), false, &disk),
            item(1, None, false, &cpu),
            item(2, Some("gw"), false, &cpu),
            item(3, Some("host/db-01"), false, &disk),
            Item {
                priority: Priority::High,
                ..item(4, Some("gw"), true, &ok)
            },
        ];
        let digest = digest(&items, Fold::Markdown, Language::Zh);
        assert_eq!(
            text_of(&digest),
            "### 5 条告警：P1 磁盘将满 等\n\n\
             14:02–14:06 钉钉限流期间合并  \n高 1 · 普通 4\n\n\
             **未恢复 2 项**\n\n\
             - **P1 磁盘将满** ×2 14:05  \n  主机 db-01，剩余 3%\n\
             - **P2 CPU 高** 14:03  \n  主机 web-07\n\n\
             **已恢复 1 项**  \ngw\n"
        );
        let Content::Markdown(Markdown { title, .. }) = digest else {
            panic!()
        };
        assert_eq!(title, "5 条告警：P1 磁盘将满 等");
    }

    #[test]
    fn a_digest_of_texts_is_plain_text() {
        let content = Content::Text(Text {
            content: "disk full\nhost db-01".to_owned(),
        });
        let items = [
            item(0, None, false, &content),
            item(0, None, false, &content),
        ];
        assert_eq!(
            text_of(&digest(&items, Fold::Text, Language::En)),
            "2 alerts: disk full and more\n\
             14:02 (UTC+8), merged while DingTalk's limits held them up\nnormal 2\n\n\
             2 open\n· disk full 14:02\n  host db-01\n· disk full 14:02\n  host db-01\n"
        );
    }

    #[test]
    fn what_came_and_went_is_named_but_not_told() {
        let content = markdown("P3", "x");
        let items = [
            item(0, Some("a"), false, &content),
            item(1, Some("a"), true, &content),
        ];
        let digest = digest(&items, Fold::Markdown, Language::Zh);
        assert!(text_of(&digest).starts_with("### 2 条告警，均已恢复"));
        assert!(text_of(&digest).ends_with("**已恢复 1 项**  \na\n"));
    }

    #[test]
    fn two_platforms_with_one_name_for_two_things_are_two_things() {
        let content = markdown("P1", "x");
        let mut items = [
            item(0, Some("db"), false, &content),
            item(1, Some("db"), true, &content),
        ];
        items[1].client = "another";
        let digest = digest(&items, Fold::Markdown, Language::En);
        assert!(
            text_of(&digest).contains("**1 open**"),
            "{}",
            text_of(&digest)
        );
    }

    #[test]
    fn a_thousand_are_counted_and_the_most_urgent_are_listed() {
        let low = markdown("low", "x");
        let high = markdown("high", "y");
        let mut items: Vec<_> = (0..999).map(|n| item(n, None, false, &low)).collect();
        items.insert(
            500,
            Item {
                priority: Priority::High,
                ..item(7, None, false, &high)
            },
        );
        let digest = digest(&items, Fold::Markdown, Language::Zh);
        let text = text_of(&digest);
        assert!(text.starts_with("### 1000 条告警：high 等"), "{text}");
        assert!(text.contains("高 1 · 普通 999"));
        let listed = text.matches("\n- ").count();
        assert!(listed > 200, "{listed}");
        assert!(
            text.contains(&format!("另有 {} 项未列出", 1_000 - listed)),
            "{text}"
        );
    }

    #[test]
    fn a_line_keeps_its_words_and_loses_its_marks() {
        for (line, expected) in [
            ("## a **b** `c`", "a b c"),
            ("- [see here](https://x/?a=(1) b) more", "see here b) more"),
            ("![chart](u) x", "chart x"),
            ("a [b] c", "a [b] c"),
            ("\u{1b}[31mred", "[31mred"),
            ("[[x]](http://evil)", "[[x]] (http://evil)"),
            ("<font color=red>a<!--", "＜font color=red>a＜!--"),
        ] {
            assert_eq!(plain(line), expected);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn a_digest_always_fits(
            texts in proptest::collection::vec(("\\PC{0,20}", "(\\PC|\n){0,20}", 0_usize..40, proptest::option::of("[a-c]"), any::<bool>()), 1..40),
            plain in any::<bool>(),
        ) {
            let contents: Vec<_> = texts
                .iter()
                .map(|(title, text, times, ..)| markdown(&title.repeat(*times), &text.repeat(*times)))
                .collect();
            let items: Vec<_> = texts.iter().zip(&contents)
                .map(|((.., key, resolved), content)| item(0, key.as_deref(), *resolved, content))
                .collect();
            let fold = if plain { Fold::Text } else { Fold::Markdown };
            let digest = digest(&items, fold, Language::Zh);
            prop_assert!(escaped_bytes(text_of(&digest)) <= BYTES_MAX);
        }
    }
}
