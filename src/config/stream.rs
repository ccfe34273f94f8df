//! `[apps.stream]`: whether an app has a Stream connection, and when it is renewed.

use super::read::Section;
use crate::egress::Stream;

/// Reads the table; `None`: it is not enabled.
pub(super) fn stream(section: &Section<'_>) -> Option<Stream> {
    let enabled = section.flag("enabled", false);
    let stream = Stream {
        renew_ms: section.seconds_ms("renew_s", 6 * 3_600_000),
        silence_ms: section.seconds_ms("silence_s", 60_000),
        ping_ms: section.seconds_ms("ping_s", 20_000),
        retry_min_ms: section.seconds_ms("retry_min_s", 1_000),
        retry_max_ms: section.seconds_ms("retry_max_s", 60_000),
    };
    if stream.ping_ms >= stream.silence_ms {
        section.fault(
            "ping_s",
            "is not shorter than silence_s: a dead connection would pass for a silent one",
            "make it shorter",
        );
    }
    if stream.silence_ms >= stream.renew_ms {
        section.fault(
            "renew_s",
            "is not longer than silence_s",
            "make it longer: hours, such as 21600",
        );
    }
    if stream.retry_min_ms > stream.retry_max_ms {
        section.fault(
            "retry_min_s",
            "is longer than retry_max_s",
            "make it shorter",
        );
    }
    section.finish();
    enabled.then_some(stream)
}
