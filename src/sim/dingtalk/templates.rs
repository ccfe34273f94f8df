//! The enterprise robot's message templates: which members a msgKey wants, and how it reads.

use serde_json::{Map, Value};

/// Members of one template's msgParam.
#[derive(Debug)]
pub(super) struct Template {
    /// Must be there, as text.
    pub(super) wanted: Vec<String>,
    /// May be there.
    pub(super) allowed: &'static [&'static str],
}

/// The template of a msgKey, if DingTalk has it.
pub(super) fn template(msg_key: &str) -> Option<Template> {
    let (wanted, allowed): (&[&str], &[&str]) = match msg_key {
        "sampleText" => (&["content"], &[]),
        "sampleMarkdown" => (&["title", "text"], &[]),
        "sampleImageMsg" => (&["photoURL"], &[]),
        // A link without a picture is an ordinary link.
        "sampleLink" => (&["title", "text", "messageUrl"], &["picUrl"]),
        "sampleActionCard" => (&["title", "text", "singleTitle", "singleURL"], &[]),
        "sampleActionCard2" => return Some(vertical(2)),
        "sampleActionCard3" => return Some(vertical(3)),
        "sampleActionCard4" => return Some(vertical(4)),
        "sampleActionCard5" => return Some(vertical(5)),
        "sampleActionCard6" => {
            let buttons: &[&str] = &[
                "title",
                "text",
                "buttonTitle1",
                "buttonUrl1",
                "buttonTitle2",
                "buttonUrl2",
            ];
            (buttons, &[])
        }
        "sampleAudio" => (&["mediaId", "duration"], &[]),
        "sampleFile" => (&["mediaId", "fileName", "fileType"], &[]),
        "sampleVideo" => (
            &["duration", "videoMediaId", "videoType", "picMediaId"],
            &["height", "width"],
        ),
        _ => return None,
    };
    Some(Template {
        wanted: wanted.iter().map(|name| (*name).to_owned()).collect(),
        allowed,
    })
}

fn vertical(buttons: u8) -> Template {
    let mut wanted = vec!["title".to_owned(), "text".to_owned()];
    for i in 1..=buttons {
        wanted.push(format!("actionTitle{i}"));
        wanted.push(format!("actionURL{i}"));
    }
    Template {
        wanted,
        allowed: &[],
    }
}

/// What a person sees: the title, if any, above the text.
pub(super) fn readable(param: &Map<String, Value>) -> String {
    let part = |name: &str| param.get(name).and_then(Value::as_str);
    let parts = ["title", "content", "text", "photoURL", "fileName"];
    parts
        .into_iter()
        .filter_map(part)
        .collect::<Vec<_>>()
        .join("\n")
}
