//! What is too long for one message, cut into numbered parts at the places where it hurts least.
//!
//! Every place where the text may be cut gets a rank. A part then takes as much as fits and ends
//! at the best place, so that what a reader sees as one thing stays whole if it fits a part at all.
//!
//! Sources: outbound.md §2.1, §3.1 (sizes), §2.4 (the markdown DingTalk knows).

use std::iter::once;
use std::ops::Range;

/// Parts one message may be cut into.
pub const PARTS_MAX: usize = 10;
/// Beside the number: below this the lines of a fence (half of it) leave no room for any character.
const ROOM_MIN: usize = 20;
/// A longer line opens or closes no fence: it would be repeated in every part, and nobody means it so.
const FENCE_BYTES_MAX: usize = 100;

/// What kind of text is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Plain text.
    Text,
    /// DingTalk's subset of markdown.
    Markdown,
}

/// Cuts `text` into parts, none of which takes more than `bytes_max` bytes inside a JSON string.
///
/// One part, unchanged, if it fits as it is. `None` if it would need more than [`PARTS_MAX`], if
/// `bytes_max` is too small to hold anything sensible, or if there is too much and all of it blank.
pub fn split(text: &str, kind: Kind, bytes_max: usize) -> Option<Vec<String>> {
    if bytes(text) <= bytes_max {
        return Some(vec![text.to_owned()]);
    }
    let after_number = match kind {
        Kind::Text => " ",
        Kind::Markdown => "\n\n",
    };
    let number_max = bytes(after_number) + format!("({PARTS_MAX}/{PARTS_MAX})").len();
    let room = bytes_max.checked_sub(number_max)?;
    let needed: usize = text.split_whitespace().map(bytes).sum();
    if room < ROOM_MIN || needed > PARTS_MAX.saturating_mul(room) {
        return None;
    }
    let cuts = cuts(text, kind, room);
    // Ugly cuts are better than a message refused. A link stays whole even then.
    let parts = [Rank::Block, Rank::Line, Rank::Character]
        .into_iter()
        .find_map(|best| parts(text, &cuts, room, best))?;
    let number = |index| format!("({}/{}){after_number}", index + 1, parts.len());
    let numbered = parts.iter().enumerate();
    Some(numbered.map(|(i, part)| number(i) + part).collect())
}

/// Bytes inside a JSON string, as serde_json escapes it.
fn bytes(text: &str) -> usize {
    let escaped = |c: char| match c {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        control if control < ' ' => 6,
        other => other.len_utf8(),
    };
    text.chars().map(escaped).sum()
}

/// How well a place is suited for a cut, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Inside what is seen as one character.
    Inside,
    /// Inside a link, an image or a URL.
    Link,
    Character,
    Space,
    Sentence,
    Line,
    /// Below a heading, which would be left alone.
    Heading,
    Block,
}

const RANKS: [Rank; 8] = [
    Rank::Block,
    Rank::Heading,
    Rank::Line,
    Rank::Sentence,
    Rank::Space,
    Rank::Character,
    Rank::Link,
    Rank::Inside,
];

/// A position, and the bytes in JSON of everything before it: two of them measure what is between.
#[derive(Debug, Clone, Copy)]
struct At {
    byte: usize,
    cost: usize,
}

/// A place where a part may end and the next may start. The whitespace between is left out.
#[derive(Debug)]
struct Cut<'a> {
    end: At,
    start: At,
    rank: Rank,
    /// The fence that is open here.
    fence: Option<Fence<'a>>,
}

impl Cut<'_> {
    /// Bytes of the part from here to `to`, with the lines of reopened and closed fences.
    fn taken(&self, to: &Self) -> usize {
        let reopened = self
            .fence
            .map_or(0, |fence| bytes(fence.opener) + bytes("\n"));
        let closed = to.fence.map_or(0, |fence| bytes("\n") + fence.marks.len());
        reopened + self.between(to) + closed
    }

    fn between(&self, to: &Self) -> usize {
        to.end.cost - self.start.cost
    }
}

/// The parts without their numbers; `None` if they are too many. Ranks above `best` are not sought.
fn parts(text: &str, cuts: &[Cut<'_>], room: usize, best: Rank) -> Option<Vec<String>> {
    let mut parts = Vec::new();
    let mut cuts = cuts;
    while cuts.len() > 1 {
        if parts.len() == PARTS_MAX {
            return None;
        }
        let next = end_of_part(cuts, room, best)?;
        let (from, to) = (cuts.first()?, cuts.get(next)?);
        let mut part = String::new();
        if let Some(fence) = from.fence {
            part = format!("{}\n", fence.opener);
        }
        part.push_str(text.get(from.start.byte..to.end.byte)?);
        if let Some(fence) = to.fence {
            if !part.ends_with('\n') {
                part.push('\n');
            }
            part.push_str(fence.marks);
        }
        parts.push(part);
        cuts = cuts.get(next..)?;
    }
    (!parts.is_empty()).then_some(parts)
}

/// Where the part that starts at the first of `cuts` ends: at the last border of the best rank that
/// leaves whole what follows it. If that would not fit a part anyhow, it may as well be cut here,
/// at a lower rank, unless this part is well filled already.
fn end_of_part(cuts: &[Cut<'_>], room: usize, best: Rank) -> Option<usize> {
    let (from, later) = cuts.split_first()?;
    if from.taken(later.last()?) <= room {
        return Some(later.len());
    }
    let near = later.partition_point(|to| from.between(to) <= room);
    let mut found = None;
    for rank in RANKS.iter().filter(|rank| **rank <= best) {
        let fits = |to: &Cut<'_>| to.rank >= *rank && from.taken(to) <= room;
        let Some(at) = later.get(..near)?.iter().rposition(fits) else {
            continue;
        };
        found = Some(at + 1);
        let (cut, rest) = later.get(at..)?.split_first()?;
        let mut in_reach = rest.iter().take_while(|to| cut.between(to) <= room);
        let next = in_reach.find(|to| to.rank >= *rank);
        let stays_whole = next.is_some_and(|next| cut.taken(next) <= room);
        if stays_whole || from.taken(cut) >= room / 4 * 3 {
            break;
        }
    }
    found
}

/// All places where `text` may be cut, from its start to its end.
fn cuts<'a>(text: &'a str, kind: Kind, room: usize) -> Vec<Cut<'a>> {
    let mut at = At { byte: 0, cost: 0 };
    let mut walk_to = |byte| {
        at.cost += text.get(at.byte..byte).map_or(0, bytes);
        at.byte = byte;
        at
    };
    let cut = |end, start, rank, fence| Cut {
        end,
        start,
        rank,
        fence,
    };
    let mut cuts: Vec<Cut<'a>> = Vec::new();
    let mut end = None;
    for line in lines(text, kind, FENCE_BYTES_MAX.min(room / 4)) {
        let (rank, fence, first) = (line.rank, line.fence, line.range.start);
        let start = walk_to(first);
        cuts.push(cut(end.unwrap_or(start), start, rank, fence));
        let mut gap = None;
        for (byte, c, rank) in characters(text.get(line.range.clone()).unwrap_or_default(), kind) {
            if line.whole || byte == 0 {
                continue;
            }
            let start = walk_to(first + byte);
            // In code all whitespace counts; elsewhere a run of it is one place.
            if c.is_whitespace() && fence.is_none() {
                gap.get_or_insert(start);
                continue;
            }
            cuts.push(cut(gap.take().unwrap_or(start), start, rank, fence));
        }
        end = Some(walk_to(line.range.end));
    }
    cuts.extend(end.map(|end| cut(end, end, Rank::Block, None)));
    cuts
}

/// The characters of a line, each with the rank of a cut before it.
fn characters(line: &str, kind: Kind) -> impl Iterator<Item = (usize, char, Rank)> {
    let mut links = links_and_urls(line, kind).into_iter().peekable();
    let mut before = ' ';
    // The mark that ended a sentence, if only closing quotes, brackets and whitespace came since.
    let mut mark: Option<char> = None;
    line.char_indices().map(move |(at, c)| {
        while links.next_if(|link| link.end <= at).is_some() {}
        let ends = "。！？.!?".contains(c);
        let closes = "”’」』）】》)]".contains(c);
        let spaced = before.is_whitespace();
        let rank = if joined(before, c) {
            Rank::Inside
        } else if links.peek().is_some_and(|link| link.start < at) {
            Rank::Link
        } else if !ends && !closes && mark.is_some_and(|m| !m.is_ascii() || spaced || is_cjk(c)) {
            Rank::Sentence
        } else if spaced {
            Rank::Space
        } else {
            Rank::Character
        };
        if ends {
            mark = Some(c);
        } else if !closes && !c.is_whitespace() {
            mark = None;
        }
        before = c;
        (at, c, rank)
    })
}

fn is_cjk(c: char) -> bool {
    c >= '\u{2e80}'
}

/// Whether two characters are seen as one. Not all of Unicode's rules; those that alerts meet.
fn joined(before: char, c: char) -> bool {
    const JOINER: char = '\u{200d}';
    let flag = |c| matches!(c, '\u{1f1e6}'..='\u{1f1ff}');
    let extends = matches!(c, '\u{300}'..='\u{36f}' | '\u{1ab0}'..='\u{1aff}' | '\u{1dc0}'..='\u{1dff}'
        | '\u{20d0}'..='\u{20ff}' | '\u{3099}'..='\u{309a}' | '\u{fe00}'..='\u{fe0f}'
        | '\u{fe20}'..='\u{fe2f}' | '\u{1f3fb}'..='\u{1f3ff}' | '\u{e0020}'..='\u{e01ef}');
    extends || before == JOINER || c == JOINER || (flag(before) && flag(c))
}

/// Links, images and bare URLs of a line, in order and apart from each other.
fn links_and_urls(line: &str, kind: Kind) -> Vec<Range<usize>> {
    let links = match kind {
        Kind::Text => Vec::new(),
        Kind::Markdown => links(line),
    };
    let mut found = Vec::new();
    let mut done = 0;
    for link in links.into_iter().chain(once(line.len()..line.len())) {
        let between = line.get(done..link.start).unwrap_or_default();
        found.extend(urls(between).map(|url| done + url.start..done + url.end));
        done = link.end;
        found.push(link);
    }
    found
}

/// Each `[text](url)` and `![text](url)`; of those inside another only the outer one.
fn links(line: &str) -> Vec<Range<usize>> {
    let mut links: Vec<Range<usize>> = Vec::new();
    let mut opened = Vec::new();
    let mut done = 0;
    for (at, c) in line.char_indices().filter(|(_, c)| matches!(c, '[' | ']')) {
        if at < done {
            continue;
        }
        if c == '[' {
            opened.push(at);
            continue;
        }
        let after = line.get(at + 1..).unwrap_or_default();
        let Some(bracket) = opened.pop().filter(|_| after.starts_with('(')) else {
            continue;
        };
        // Without one there is no further link either: not to be looked for again and again.
        let Some(closing) = after.find(')') else {
            break;
        };
        // A URL may hold brackets itself.
        let rest = after.bytes().skip(closing);
        let more = rest.take_while(|b| *b == b')').count();
        done = at + 1 + closing + more;
        let image = line.get(..bracket).is_some_and(|text| text.ends_with('!'));
        let start = bracket - usize::from(image);
        while links.pop_if(|inner| inner.start >= start).is_some() {}
        links.push(start..done);
    }
    links
}

fn urls(text: &str) -> impl Iterator<Item = Range<usize>> {
    let mut done = 0;
    text.match_indices("://").filter_map(move |(at, _)| {
        let before = text.get(done..at)?;
        let start = done
            + before
                .trim_end_matches(|c: char| c.is_ascii_alphanumeric())
                .len();
        if start == at {
            return None;
        }
        let is_url = |b: &u8| b.is_ascii_graphic() && !matches!(b, b'<' | b'>' | b'"' | b'`');
        done = at + text.bytes().skip(at).take_while(is_url).count();
        Some(start..done)
    })
}

/// The marks around a block of code.
#[derive(Debug, Clone, Copy)]
struct Fence<'a> {
    /// The line that opens it, with what it says of the code.
    opener: &'a str,
    /// The marks alone, which close it.
    marks: &'a str,
}

impl<'a> Fence<'a> {
    fn opened_by(line: &'a str) -> Option<Self> {
        let mark = line.chars().next().filter(|c| matches!(c, '`' | '~'))?;
        let info = line.trim_start_matches(mark);
        let marks = line.strip_suffix(info)?;
        // Backticks further on make it code within a line.
        let opens = marks.len() >= 3 && !(mark == '`' && info.contains('`'));
        opens.then_some(Self {
            opener: line,
            marks,
        })
    }

    fn closed_by(self, line: &str) -> bool {
        line.starts_with(self.marks) && line.chars().all(|c| self.marks.starts_with(c))
    }
}

/// A line that is not blank, or any line of code.
struct Line<'a> {
    range: Range<usize>,
    /// Of a cut before it.
    rank: Rank,
    /// The fence that is open before it and inside it.
    fence: Option<Fence<'a>>,
    /// Not to be cut: it opens or closes a fence.
    whole: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Paragraph,
    Heading,
    Quote,
    Item,
    Code,
}

impl Shape {
    /// What a line is, without its indentation. Code starts with a fence, not with spaces: DingTalk
    /// wants two spaces before each line.
    fn of(line: &str) -> Self {
        let after_hashes = line.trim_start_matches('#');
        let hashes = line.len() - after_hashes.len();
        let after_number = line.trim_start_matches(|c: char| c.is_ascii_digit());
        let bullet: &[char] = if after_number.len() < line.len() {
            &['.', ')']
        } else {
            &['-', '*', '+']
        };
        let item = after_number.strip_prefix(bullet);
        if (1..=6).contains(&hashes) && (after_hashes.is_empty() || after_hashes.starts_with(' ')) {
            Self::Heading
        } else if line.starts_with('>') {
            Self::Quote
        } else if item.is_some_and(|text| text.starts_with([' ', '\t'])) {
            Self::Item
        } else {
            Self::Paragraph
        }
    }
}

/// The lines of `text`, where no line that takes more than `fence_max` opens or closes a fence.
fn lines(text: &str, kind: Kind, fence_max: usize) -> Vec<Line<'_>> {
    let mut lines = Vec::new();
    let mut next = 0;
    let mut open: Option<Fence<'_>> = None;
    let (mut before, mut blank, mut item) = (Shape::Paragraph, false, None);
    let mut opened = false;
    for raw in text.split_inclusive('\n') {
        let (line, start) = (raw.trim(), next);
        next += raw.len();
        if let Some(fence) = open {
            let closes = line.len() <= fence_max && fence.closed_by(line);
            // Fences with nothing between them say nothing.
            let alone = closes || opened;
            let rank = if alone { Rank::Space } else { Rank::Line };
            let ended = if closes { raw.trim_end() } else { raw };
            lines.push(Line {
                range: start..start + ended.len(),
                rank,
                fence: open,
                whole: closes,
            });
            (open, opened) = (open.filter(|_| !closes), false);
            continue;
        }
        if line.is_empty() {
            blank = true;
            continue;
        }
        let blanks = raw.chars().take_while(|c| c.is_whitespace());
        let indent: usize = blanks.map(|c| if c == '\t' { 4 } else { 1 }).sum();
        let fence = Fence::opened_by(line).filter(|fence| bytes(fence.opener) <= fence_max);
        let (shape, fence) = match kind {
            Kind::Text => (Shape::Paragraph, None),
            Kind::Markdown if fence.is_some() => (Shape::Code, fence),
            Kind::Markdown => (Shape::of(line), None),
        };
        let of_item = shape != Shape::Heading && item.is_some_and(|item| indent >= item + 2);
        let starts = matches!(shape, Shape::Heading | Shape::Item | Shape::Code);
        let rank = if before == Shape::Heading {
            Rank::Heading
        } else if !of_item && (starts || blank || shape != before) {
            Rank::Block
        } else {
            Rank::Line
        };
        if !of_item {
            (before, item) = (shape, (shape == Shape::Item).then_some(indent));
        }
        (open, opened, blank) = (fence, fence.is_some(), false);
        let first = start + raw.len() - raw.trim_start().len();
        let end = if opened { next } else { first + line.len() };
        lines.push(Line {
            range: first..end,
            rank,
            fence: None,
            whole: opened,
        });
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn solid(text: &str) -> String {
        text.split_whitespace().collect()
    }

    /// The parts without their numbers, which are checked, as is that each part fits.
    fn unnumbered(parts: &[String], kind: Kind, bytes_max: usize) -> Vec<String> {
        let after = if kind == Kind::Text { " " } else { "\n\n" };
        let unnumbered = parts.iter().enumerate().map(|(index, part)| {
            assert!(bytes(part) <= bytes_max, "{part:?} is too large");
            let number = format!("({}/{}){after}", index + 1, parts.len());
            part.strip_prefix(&number).unwrap().to_owned()
        });
        unnumbered.collect()
    }

    /// Each table's text is cut where `¦` stands.
    fn check(kind: Kind, bytes_max: usize, table: &[&str]) {
        for marked in table {
            let wanted: Vec<_> = marked.split('¦').collect();
            let parts = split(&marked.replace('¦', ""), kind, bytes_max).unwrap();
            let parts = unnumbered(&parts, kind, bytes_max);
            let trimmed: Vec<_> = wanted.iter().map(|part| part.trim()).collect();
            assert_eq!(parts, trimmed);
        }
    }

    #[test]
    fn what_fits_is_left_as_it_is() {
        for text in ["", " \n", "磁盘满了\n\n```\n", &"x".repeat(64)] {
            for kind in [Kind::Text, Kind::Markdown] {
                assert_eq!(split(text, kind, 64).unwrap(), [text]);
            }
        }
    }

    #[test]
    fn what_needs_too_many_parts_or_has_no_room_is_not_cut() {
        let full = "x".repeat(10 * (64 - 8));
        assert_eq!(split(&full, Kind::Text, 64).unwrap().len(), PARTS_MAX);
        assert_eq!(split(&(full + "x"), Kind::Text, 64), None);
        assert_eq!(split(&"x".repeat(28), Kind::Text, 27), None);
        assert_eq!(split(&" ".repeat(65), Kind::Text, 64), None);
        // Whole lines would need twenty parts.
        let lines = format!("{}\n", "x".repeat(29)).repeat(18);
        assert_eq!(split(&lines, Kind::Text, 64).unwrap().len(), PARTS_MAX);
    }

    #[test]
    fn text_is_cut_at_the_best_border_that_fits() {
        check(
            Kind::Text,
            40,
            &[
                "one paragraph\nof two\n\n¦another one\nof two lines",
                "a line of words\n¦a line of more words\n¦and the last of them",
                "Disk is full. Host is db-01. ¦See page 3.5 of it. ¦Call somebody at once.",
                "磁盘已满。主机离线！¦数据库？请尽快处理。",
                "磁盘（已满。）¦主机离线数据库请处理",
                "many words and no end of the ¦sentence in sight",
                "磁盘已满主机离线数据¦库请尽快处理",
                "0123456789012345¦👨‍👩‍👧 is one family",
                "012345678901234567890123456789e¦e\u{301} is one too",
                "磁盘已满请看¦https://example.com/alerts/1",
            ],
        );
    }

    #[test]
    fn markdown_is_cut_between_blocks() {
        check(
            Kind::Markdown,
            48,
            &[
                "first paragraph\nof two lines\n\n¦second paragraph\n\nof the text",
                "# Disk\nfull on db-01\n¦## Host\ndb-01 in Hangzhou, rack 12",
                "some text\n\n# Host\n\n¦paragraph that fits without its head",
                "- one  \n  more\n\n  still one\n¦- two\n  - below two\n- three",
                "before the quote\n¦> quoted text\n> and more of it\n¦after it",
                "- a\n- b\n- c\n- d\n- e\n- f\n- g\n¦1. one\n2. two\n3. three",
                "a paragraph,\nand a line that is too ¦long, whatever is done to it",
            ],
        );
    }

    #[test]
    fn a_link_is_cut_only_if_it_does_not_fit_a_part() {
        check(
            Kind::Markdown,
            48,
            &[
                "see the page for that ¦[open. the page](https://x.cn/a_(b))",
                "看图就知道了¦![图 一](https://example.com/a.png)",
                "[![图](https://x.cn/a)](/b)¦[a](https://x.cn/cdefghi)",
                "详情请看：¦https://example.com/alerts?id=1。¦谢谢您了",
                "[[[ a (bracket) that opens no ]( link¦ at all, not one",
                "https://example.com/01234567890123456¦7890123456789012",
            ],
        );
    }

    #[test]
    fn a_fence_is_closed_at_the_end_of_a_part_and_opened_again_in_the_next() {
        let text =
            "Log:\n\n~~~rust\nfn main() {\n    one();\n\n    two();\n    three();\n}\n~~~\nend";
        let parts = split(text, Kind::Markdown, 64).unwrap();
        let wanted = [
            "Log:\n\n~~~rust\nfn main() {\n    one();\n\n~~~",
            "~~~rust\n    two();\n    three();\n}\n~~~\nend",
        ];
        assert_eq!(unnumbered(&parts, Kind::Markdown, 64), wanted);
    }

    #[test]
    fn an_alert_is_cut_where_a_person_would_cut_it() {
        let alert = "### P1 磁盘已满\n\n> 主机 db-01，分区 /data 使用率 98%。\n\n\
            - 开始：10:31\n- 负责人：@138\n  备份：@139\n\n\
            #### 处理\n\n请看[处理手册](https://wiki.example.com/disk)。若无法处理，请联系值班。\n\n\
            ```text\n/dev/sda1 98% /data\n/dev/sdb1 12% /\n```\n";
        let parts = split(alert, Kind::Markdown, 160).unwrap();
        let wanted = [
            "### P1 磁盘已满\n\n> 主机 db-01，分区 /data 使用率 98%。\n\n\
                - 开始：10:31\n- 负责人：@138\n  备份：@139",
            "#### 处理\n\n请看[处理手册](https://wiki.example.com/disk)。若无法处理，请联系值班。",
            "```text\n/dev/sda1 98% /data\n/dev/sdb1 12% /\n```",
        ];
        assert_eq!(unnumbered(&parts, Kind::Markdown, 160), wanted);
    }

    #[test]
    fn what_is_hostile_takes_no_longer_than_the_rest() {
        let seeds = [
            "[", "[](", "](", "![a](b)", "`", "```\n", "\n", " ", "- ", "#\n", "1", "😀",
            "\u{301}", "a://", "://", "。", "\u{1}",
        ];
        for seed in seeds {
            for (kind, before) in [
                (Kind::Text, ""),
                (Kind::Markdown, ""),
                (Kind::Markdown, "```\n"),
            ] {
                let text = before.to_owned() + &seed.repeat((256 << 10) / seed.len());
                if let Some(parts) = split(&text, kind, 30_000) {
                    unnumbered(&parts, kind, 30_000);
                }
            }
        }
    }

    fn kinds() -> impl Strategy<Value = Kind> {
        prop_oneof![Just(Kind::Text), Just(Kind::Markdown)]
    }

    /// Words, marks and characters as markdown has them, without fences.
    const PIECE: &str = "[a-z]{1,9}|[ \n#>*.!?\\[\\]()\"\\\\-]|\n\n|\n(- |1\\. |> |## |  )|https://[a-z]{3,20}\
        |!?\\[[a-z ]{1,9}\\]\\([a-z:/]{1,20}\\)|[。！？中文字“”]|[😀👍🏽🇨🇳]|👨‍👩‍👧|[\u{1}\t\u{301}\u{fe0f}]";

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn size_is_counted_as_serde_json_writes_it(text in any::<String>()) {
            prop_assert_eq!(bytes(&text) + 2, serde_json::to_string(&text).unwrap().len());
        }

        #[test]
        fn nothing_is_lost_or_repeated_but_whitespace_and_fences(
            pieces in prop::collection::vec(prop_oneof![9 => PIECE, 1 => "\n(```|~~~~)\n"], 1..150),
            kind in kinds(),
            bytes_max in 64_usize..2000,
        ) {
            let text = pieces.concat();
            let whole = bytes(&text) <= bytes_max;
            match split(&text, kind, bytes_max) {
                Some(parts) if whole => prop_assert_eq!(parts, [text]),
                Some(parts) => {
                    prop_assert!(parts.len() <= PARTS_MAX);
                    let said = unnumbered(&parts, kind, bytes_max).concat();
                    let unfenced = |text: &str| solid(text).replace(['`', '~'], "");
                    prop_assert_eq!(unfenced(&said), unfenced(&text));
                }
                None => prop_assert!(bytes(&text) > PARTS_MAX * (bytes_max - 11) / 6),
            }
        }

        #[test]
        fn whatever_it_is_given_each_part_fits(
            text in prop_oneof![
                any::<String>(),
                "([`~]{1,5}|[a-z ]{0,9}|\n|[中😀。\\[\\](){}<>#*_|\\\\\"'!.:/-]|\\PC){0,600}",
            ],
            kind in kinds(),
            bytes_max in 64_usize..2000,
        ) {
            if let Some(parts) = split(&text, kind, bytes_max).filter(|parts| parts.len() > 1) {
                unnumbered(&parts, kind, bytes_max);
            }
        }
    }
}
