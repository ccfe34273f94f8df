//! Words for people, JSON for programs.

use std::io::Write as _;
use std::process::ExitCode;

use serde_json::Value;

/// Prints a line for whoever asked. Who has read enough (`| head`) misses nothing.
pub(super) fn say(line: &str) {
    drop(writeln!(std::io::stdout(), "{line}"));
}

/// Prints a line about what went wrong.
pub(super) fn complain(line: &str) {
    drop(writeln!(std::io::stderr(), "{line}"));
}

/// Prints JSON.
pub(super) fn say_json(value: &Value) {
    say(&serde_json::to_string_pretty(value).unwrap_or_default());
}

/// Prints rows under heads, aligned by the width of what is shown (a Chinese character is two wide).
pub(super) fn table(heads: &[&str], rows: &[Vec<String>]) {
    let mut widths: Vec<usize> = heads.iter().map(|head| width(head)).collect();
    for row in rows {
        for (cell, widest) in row.iter().zip(&mut widths) {
            *widest = (*widest).max(width(cell));
        }
    }
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).map(|(cell, widest)| {
            format!("{cell}{}", " ".repeat(widest.saturating_sub(width(cell))))
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    say(&line(
        &heads
            .iter()
            .map(|head| (*head).to_owned())
            .collect::<Vec<_>>(),
    ));
    for row in rows {
        say(&line(row));
    }
}

/// Columns on a terminal.
pub(super) fn width(text: &str) -> usize {
    text.chars().map(|c| if matches!(c, '\u{1100}'..='\u{115f}' | '\u{2e80}'..='\u{a4cf}' | '\u{ac00}'..='\u{d7a3}' | '\u{f900}'..='\u{faff}' | '\u{fe30}'..='\u{fe6f}' | '\u{ff00}'..='\u{ff60}') { 2 } else { 1 }).sum()
}

/// The items of a page.
pub(super) fn items<'a>(page: &'a Value, name: &str) -> &'a [Value] {
    page.get(name)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// A text from a JSON value, made safe for a terminal.
pub(super) fn cell(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => crate::secret::printable(text, 200),
        Some(other) => crate::secret::printable(&other.to_string(), 200),
    }
}

/// Says how to see what did not fit on this page of a list.
pub(super) fn say_more(page: &Value) {
    let cursor = cell(page, "/next_cursor");
    if cursor != "-" {
        say(&format!("more: --cursor {cursor}"));
    }
}

/// Prints the answer of the daemon, or its problem, and makes the exit code of it.
pub(super) fn finish(
    answer: Result<Value, String>,
    json: bool,
    show: impl FnOnce(&Value),
) -> ExitCode {
    match answer {
        Ok(value) if json => {
            say_json(&value);
            ExitCode::SUCCESS
        }
        Ok(value) => {
            show(&value);
            ExitCode::SUCCESS
        }
        Err(problem) => {
            complain(&problem);
            ExitCode::from(super::FAILED)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chinese_character_is_two_columns_wide() {
        assert_eq!(width("值班 A"), 6);
    }
}
