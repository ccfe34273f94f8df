//! Every metric of the daemon: its name, its labels and its help, once (reliability contract §7).
//!
//! Labels are names from the configuration or from fixed lists, never an id, a URL or a secret.

use std::sync::{LazyLock, OnceLock};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::delivery::state::Priority;

/// Installs the recorder (once a process) and returns what renders it.
pub fn install() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE
        .get_or_init(|| {
            let recorder = PrometheusBuilder::new()
                .set_buckets_for_metric(
                    Matcher::Suffix("_seconds".to_owned()),
                    &[
                        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
                        60.0, 600.0,
                    ],
                )
                .and_then(|builder| {
                    builder.set_buckets_for_metric(
                        Matcher::Suffix("_records".to_owned()),
                        &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0],
                    )
                })
                .expect("the buckets are not empty")
                .build_recorder();
            let handle = recorder.handle();
            if metrics::set_global_recorder(recorder).is_err() {
                tracing::error!("another metrics recorder is installed; /metrics will be empty");
            }
            describe();
            handle
        })
        .clone()
}

/// Folds the samples gathered since the last time into the histograms. Without it they pile up in
/// memory until somebody asks for `/metrics`.
pub fn upkeep(handle: &PrometheusHandle) {
    handle.run_upkeep();
}

fn describe() {
    for (name, help) in COUNTERS {
        metrics::describe_counter!(*name, *help);
    }
    for (name, help) in GAUGES {
        metrics::describe_gauge!(*name, *help);
    }
    for (name, help) in HISTOGRAMS {
        metrics::describe_histogram!(*name, *help);
    }
    metrics_process::Collector::default().describe();
}

const COUNTERS: &[(&str, &str)] = &[
    (
        "dingd_callbacks_total",
        "Callbacks by result; the reason says why one was refused.",
    ),
    (
        "dingd_answers_total",
        "Clicks and messages by how the platform's answer came: in_time, pending (not in time), late, never, unusable.",
    ),
    (
        "dingd_admissions_total",
        "Messages offered by clients, by result.",
    ),
    ("dingd_http_requests_total", "HTTP requests answered."),
    (
        "dingd_http_rejected_total",
        "Connections and requests turned away before a handler saw them.",
    ),
    (
        "dingd_store_errors_total",
        "Failed operations of the journal.",
    ),
    (
        "dingd_store_quarantined_records_total",
        "Damaged records set aside.",
    ),
    (
        "dingd_keys_forgotten_early_total",
        "Keys of callbacks and requests that were forgotten before their time because there are too many.",
    ),
    (
        "dingd_delivery_attempts_total",
        "Attempts by destination and outcome.",
    ),
    (
        "dingd_messages_finished_total",
        "Messages and events that have ended.",
    ),
    (
        "dingd_messages_reordered_total",
        "Heads of a lane that stepped aside.",
    ),
    ("dingd_dead_letters_total", "Messages and events given up."),
    (
        "dingd_dead_letters_evicted_total",
        "Dead letters removed before their time because they took too much of the disk.",
    ),
    (
        "dingd_breaker_transitions_total",
        "Changes of a destination's breaker.",
    ),
    (
        "dingd_rate_limited_total",
        "Times a message had to wait for a limit, by limit.",
    ),
    (
        "dingd_token_refreshes_total",
        "Fetches of an app's access token.",
    ),
    ("dingd_verdicts_total", "What DingTalk's answers came to."),
    (
        "dingd_retry_budget_exhausted_total",
        "Repeats that had to wait because too many were under way to their host.",
    ),
    (
        "dingd_near_limit_total",
        "Calls that took one of the last fifth of a limit's places.",
    ),
    (
        "dingd_pauses_total",
        "Times DingTalk made us pause, by what and why.",
    ),
    (
        "dingd_digests_total",
        "Digests made of what had waited too long.",
    ),
    ("dingd_digest_messages_total", "Messages put into digests."),
    (
        "dingd_stream_frames_total",
        "Frames that came over Stream connections, by type and what became of them.",
    ),
    (
        "dingd_stream_opens_total",
        "Attempts to open a Stream connection.",
    ),
    (
        "dingd_stream_reconnects_total",
        "Times a Stream connection was replaced or lost, by reason.",
    ),
    (
        "dingd_stream_unconnected_seconds_total",
        "Time during which an app that should have a Stream connection had none.",
    ),
];

const GAUGES: &[(&str, &str)] = &[
    ("dingd_http_connections", "Open connections."),
    ("dingd_store_size_bytes", "Size of the journal's file."),
    (
        "dingd_store_free_bytes",
        "Free space where the journal lies.",
    ),
    ("dingd_store_writable", "1 while the journal takes writes."),
    (
        "dingd_store_conservation_mismatch",
        "Accepted minus terminal and queued; anything but 0 is a bug.",
    ),
    ("dingd_queue_messages", "Messages or events under way."),
    ("dingd_queue_bytes", "Bytes under way."),
    ("dingd_dead_letter_messages", "Dead letters kept."),
    (
        "dingd_dead_letter_bytes",
        "About how much of the disk dead letters take.",
    ),
    (
        "dingd_queue_oldest_timestamp_seconds",
        "When the oldest message under way was accepted; 0 = none.",
    ),
    (
        "dingd_dedup_entries",
        "Callbacks remembered to recognise repeats.",
    ),
    (
        "dingd_paused",
        "1 while DingTalk makes us pause: limit=\"egress\" is a ban of this machine's address.",
    ),
    ("dingd_breaker_state", "0 closed, 1 half open, 2 open."),
    (
        "dingd_token_expiry_timestamp_seconds",
        "When the app's token expires; 0 = none.",
    ),
    (
        "dingd_stream_connected",
        "1 while the app has a Stream connection.",
    ),
    (
        "dingd_quota_used",
        "Metered API calls or webhook messages of this month.",
    ),
    (
        "dingd_quota_limit",
        "How many of them there are a month; 0 = unlimited.",
    ),
    (
        "dingd_quota_exhausted",
        "1 while DingTalk says that there are no more.",
    ),
    (
        "dingd_clock_skew_seconds",
        "DingTalk's Date header minus this machine's clock.",
    ),
    (
        "dingd_tls_certificate_not_after_timestamp_seconds",
        "When the certificate expires.",
    ),
    (
        "dingd_config_last_reload_successful",
        "1 if the last reload was taken over.",
    ),
    (
        "dingd_config_last_reload_success_timestamp_seconds",
        "When the configuration was last taken over.",
    ),
    (
        "dingd_build_info",
        "Version and commit of the running binary.",
    ),
];

const HISTOGRAMS: &[(&str, &str)] = &[
    (
        "dingd_callback_ack_duration_seconds",
        "From the last byte of a callback to its answer.",
    ),
    (
        "dingd_stream_ack_duration_seconds",
        "From the arrival of a Stream frame to its answer, by type.",
    ),
    (
        "dingd_http_request_duration_seconds",
        "Time to answer a request.",
    ),
    (
        "dingd_store_commit_duration_seconds",
        "Time of one durable commit.",
    ),
    (
        "dingd_store_commit_records",
        "Batches written by one commit.",
    ),
    (
        "dingd_delivery_attempt_duration_seconds",
        "Time of one attempt.",
    ),
    (
        "dingd_delivery_latency_seconds",
        "From acceptance to the end.",
    ),
    (
        "dingd_rate_limit_wait_seconds",
        "Time a message waited for limits.",
    ),
];

#[expect(
    clippy::cast_precision_loss,
    reason = "metrics are floats; counts stay below 2^53"
)]
fn float(value: u64) -> f64 {
    value as f64
}

fn seconds(us: u64) -> f64 {
    float(us) / 1e6
}

macro_rules! emit {
    ($kind:ident, $name:literal $(, $label:literal => $value:expr)*) => {{
        #[expect(clippy::disallowed_macros, reason = "this is the one file that may")]
        let metric = metrics::$kind!($name $(, $label => $value)*);
        metric
    }};
}

/// A callback was answered: `accepted`, `duplicate`, `refused` or `failed`.
pub fn callback(result: &'static str, reason: &'static str, us: u64) {
    // What nearly all of them are: looked up once, not each time.
    static STORED: LazyLock<metrics::Counter> = LazyLock::new(
        || emit!(counter, "dingd_callbacks_total", "result" => "accepted", "reason" => "stored"),
    );
    if (result, reason) == ("accepted", "stored") {
        STORED.increment(1);
    } else {
        emit!(counter, "dingd_callbacks_total", "result" => result, "reason" => reason)
            .increment(1);
    }
    emit!(histogram, "dingd_callback_ack_duration_seconds").record(seconds(us));
}

/// How the platform's answer to a `click` or a `message` came: `in_time`, `pending`, `late`, `never` or
/// `unusable`.
pub fn answer(ask: &'static str, result: &'static str) {
    emit!(counter, "dingd_answers_total", "ask" => ask, "result" => result).increment(1);
}

/// A client offered a message; its priority is unknown when it could not be read.
pub fn admission(priority: Option<Priority>, result: &'static str, reason: &'static str) {
    let priority = priority.map_or("unknown", Priority::label);
    emit!(counter, "dingd_admissions_total", "priority" => priority, "result" => result, "reason" => reason)
        .increment(1);
}

/// A request was answered.
pub fn http_request(listener: &'static str, route: &'static str, code: u16, us: u64) {
    static EVENTS: LazyLock<(metrics::Counter, metrics::Histogram)> = LazyLock::new(|| {
        (
            emit!(counter, "dingd_http_requests_total", "listener" => "callbacks", "route" => "events", "code" => "2xx"),
            emit!(histogram, "dingd_http_request_duration_seconds", "listener" => "callbacks", "route" => "events"),
        )
    });
    let code = match code / 100 {
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    };
    if (listener, route, code) == ("callbacks", "events", "2xx") {
        EVENTS.0.increment(1);
        EVENTS.1.record(seconds(us));
        return;
    }
    emit!(counter, "dingd_http_requests_total", "listener" => listener, "route" => route, "code" => code)
        .increment(1);
    emit!(histogram, "dingd_http_request_duration_seconds", "listener" => listener, "route" => route)
        .record(seconds(us));
}

/// A connection or request was turned away.
pub fn http_rejected(listener: &'static str, reason: &'static str) {
    emit!(counter, "dingd_http_rejected_total", "listener" => listener, "reason" => reason)
        .increment(1);
}

/// A connection was opened (+1) or closed (-1).
pub fn http_connections(listener: &'static str, change: f64) {
    emit!(gauge, "dingd_http_connections", "listener" => listener).increment(change);
}

/// A commit ended.
pub fn store_commit(batches: usize, us: u64, good: bool) {
    emit!(histogram, "dingd_store_commit_duration_seconds").record(seconds(us));
    emit!(histogram, "dingd_store_commit_records").record(float(batches as u64));
    if !good {
        emit!(counter, "dingd_store_errors_total", "op" => "commit").increment(1);
        emit!(gauge, "dingd_store_writable").set(0.0);
    }
}

/// The store could not be read.
pub fn store_unreadable() {
    emit!(counter, "dingd_store_errors_total", "op" => "read").increment(1);
}

/// A damaged record was set aside.
pub fn store_quarantined() {
    emit!(counter, "dingd_store_quarantined_records_total").increment(1);
}

/// How the store stands.
pub fn store(size_bytes: u64, free_bytes: u64, writable: bool, mismatch: Option<u64>) {
    emit!(gauge, "dingd_store_size_bytes").set(float(size_bytes));
    emit!(gauge, "dingd_store_free_bytes").set(float(free_bytes));
    emit!(gauge, "dingd_store_writable").set(f64::from(u8::from(writable)));
    if let Some(mismatch) = mismatch {
        emit!(gauge, "dingd_store_conservation_mismatch").set(float(mismatch));
    }
}

/// How a queue stands.
pub fn queue(
    direction: &'static str,
    messages: [u64; Priority::COUNT],
    stirring: [[u64; 2]; Priority::COUNT],
    bytes: u64,
) {
    let stirring = messages.into_iter().zip(stirring);
    for (priority, (messages, [sending, retrying])) in Priority::ALL.into_iter().zip(stirring) {
        for (state, messages) in [
            ("queued", messages.saturating_sub(sending + retrying)),
            ("sending", sending),
            ("retrying", retrying),
        ] {
            emit!(gauge, "dingd_queue_messages", "direction" => direction, "priority" => priority.label(), "state" => state)
                .set(float(messages));
        }
    }
    emit!(gauge, "dingd_queue_bytes", "direction" => direction).set(float(bytes));
}

/// When the oldest entry of a queue was accepted; 0 = none.
pub fn queue_oldest(direction: &'static str, priority: Priority, wall_ms: u64) {
    emit!(gauge, "dingd_queue_oldest_timestamp_seconds", "direction" => direction, "priority" => priority.label())
        .set(float(wall_ms) / 1e3);
}

/// How many callbacks are remembered.
pub fn dedup_entries(entries: usize) {
    emit!(gauge, "dingd_dedup_entries").set(float(entries as u64));
}

/// Remembered keys had to go before their time, because there are too many.
pub fn forgotten_early(table: &'static str, keys: usize) {
    emit!(counter, "dingd_keys_forgotten_early_total", "table" => table).increment(keys as u64);
}

/// An attempt ended.
pub fn attempt(direction: &'static str, destination: &str, outcome: &'static str, us: u64) {
    emit!(counter, "dingd_delivery_attempts_total", "direction" => direction, "destination" => destination.to_owned(), "outcome" => outcome)
        .increment(1);
    emit!(histogram, "dingd_delivery_attempt_duration_seconds", "direction" => direction)
        .record(seconds(us));
}

/// A message or event ended.
pub fn finished(
    direction: &'static str,
    priority: Priority,
    state: &'static str,
    reason: &str,
    latency_ms: u64,
) {
    emit!(counter, "dingd_messages_finished_total", "direction" => direction, "state" => state, "reason" => reason.to_owned())
        .increment(1);
    emit!(histogram, "dingd_delivery_latency_seconds", "direction" => direction, "priority" => priority.label())
        .record(float(latency_ms) / 1e3);
}

/// A message or event became a dead letter.
pub fn dead_letter(direction: &'static str, reason: &str) {
    emit!(counter, "dingd_dead_letters_total", "direction" => direction, "reason" => reason.to_owned())
        .increment(1);
}

/// Dead letters were removed because they took too much of the disk.
pub fn dead_letters_evicted(direction: &'static str, letters: u64) {
    emit!(counter, "dingd_dead_letters_evicted_total", "direction" => direction).increment(letters);
}

/// How many dead letters there are, and about how much they take.
pub fn dead_letters(direction: &'static str, letters: usize, bytes: u64) {
    emit!(gauge, "dingd_dead_letter_messages", "direction" => direction).set(float(letters as u64));
    emit!(gauge, "dingd_dead_letter_bytes", "direction" => direction).set(float(bytes));
}

/// The head of a lane stepped aside.
pub fn reordered() {
    emit!(counter, "dingd_messages_reordered_total").increment(1);
}

/// A repeat had to wait for others to the same host.
pub fn retry_budget_exhausted(destination: &str) {
    emit!(counter, "dingd_retry_budget_exhausted_total", "destination" => destination.to_owned())
        .increment(1);
}

/// A call took one of the last places of a limit.
pub fn near_limit(limit: &'static str) {
    emit!(counter, "dingd_near_limit_total", "limit" => limit).increment(1);
}

/// DingTalk made us pause; `reason` is one of our slugs.
pub fn pause(limit: &'static str, reason: &str) {
    emit!(counter, "dingd_pauses_total", "limit" => limit, "reason" => reason.to_owned())
        .increment(1);
    paused(limit, true);
}

/// Whether something of this kind is paused.
pub fn paused(limit: &'static str, paused: bool) {
    emit!(gauge, "dingd_paused", "limit" => limit).set(f64::from(u8::from(paused)));
}

/// A digest was made.
pub fn digest(messages: usize) {
    emit!(counter, "dingd_digests_total").increment(1);
    emit!(counter, "dingd_digest_messages_total").increment(messages as u64);
}

/// A frame of a Stream connection was worked off.
pub fn stream_frame(kind: &'static str, result: &'static str) {
    emit!(counter, "dingd_stream_frames_total", "type" => kind, "result" => result).increment(1);
}

/// How long it took until an event, a click or a message was stored and its answer known.
pub fn stream_ack(kind: &'static str, us: u64) {
    emit!(histogram, "dingd_stream_ack_duration_seconds", "type" => kind).record(seconds(us));
}

/// A Stream connection was opened (`ok`), or why not.
pub fn stream_open(app: &str, result: &'static str) {
    emit!(counter, "dingd_stream_opens_total", "app" => app.to_owned(), "result" => result)
        .increment(1);
}

/// A Stream connection was replaced or lost.
pub fn stream_reconnect(app: &str, reason: &'static str) {
    emit!(counter, "dingd_stream_reconnects_total", "app" => app.to_owned(), "reason" => reason)
        .increment(1);
}

/// Whether an app has a Stream connection, and for how many more whole seconds it had none.
pub fn stream_connected(app: &str, connected: bool, unconnected_s: u64) {
    emit!(gauge, "dingd_stream_connected", "app" => app.to_owned())
        .set(f64::from(u8::from(connected)));
    emit!(counter, "dingd_stream_unconnected_seconds_total", "app" => app.to_owned())
        .increment(unconnected_s);
}

/// A breaker changed: 0 closed, 1 half open, 2 open.
pub fn breaker(destination: &str, state: u8) {
    emit!(gauge, "dingd_breaker_state", "destination" => destination.to_owned())
        .set(f64::from(state));
    breaker_of_many(destination, state);
}

/// As [`breaker`], of one of many destinations of a kind: no single state says how they stand.
pub fn breaker_of_many(destination: &str, state: u8) {
    let to = match state {
        0 => "closed",
        1 => "half_open",
        _ => "open",
    };
    emit!(counter, "dingd_breaker_transitions_total", "destination" => destination.to_owned(), "to" => to)
        .increment(1);
}

/// A message had to wait for a limit.
pub fn rate_limited(source: &'static str) {
    emit!(counter, "dingd_rate_limited_total", "source" => source).increment(1);
}

/// How long a message waited from when it was due until it was let go.
pub fn rate_limit_wait(ms: u64) {
    emit!(histogram, "dingd_rate_limit_wait_seconds").record(float(ms) / 1e3);
}

/// A token was fetched, or could not be.
pub fn token_refresh(app: &str, result: &'static str) {
    emit!(counter, "dingd_token_refreshes_total", "app" => app.to_owned(), "result" => result)
        .increment(1);
}

/// When an app's token expires; 0 = there is none.
pub fn token_expiry(app: &str, wall_ms: u64) {
    emit!(gauge, "dingd_token_expiry_timestamp_seconds", "app" => app.to_owned())
        .set(float(wall_ms) / 1e3);
}

/// How an organisation's month stands; it is called after its first app.
pub fn quota(organisation: &str, kind: &'static str, used: u64, limit: u64, exhausted: bool) {
    emit!(gauge, "dingd_quota_used", "organisation" => organisation.to_owned(), "kind" => kind)
        .set(float(used));
    emit!(gauge, "dingd_quota_limit", "organisation" => organisation.to_owned(), "kind" => kind)
        .set(float(limit));
    emit!(gauge, "dingd_quota_exhausted", "organisation" => organisation.to_owned(), "kind" => kind)
        .set(f64::from(u8::from(exhausted)));
}

/// What an answer came to.
pub fn verdict(api: &'static str, verdict: &'static str, code: &'static str) {
    emit!(counter, "dingd_verdicts_total", "api" => api, "verdict" => verdict, "code" => code)
        .increment(1);
}

/// DingTalk's clock minus ours.
pub fn clock_skew(seconds: f64) {
    emit!(gauge, "dingd_clock_skew_seconds").set(seconds);
}

/// When a door's certificate expires, in seconds since 1970.
pub fn certificate_expiry(role: &'static str, not_after_s: i64) {
    #[expect(
        clippy::cast_precision_loss,
        reason = "seconds since 1970 stay below 2^53"
    )]
    let not_after_s = not_after_s as f64;
    emit!(gauge, "dingd_tls_certificate_not_after_timestamp_seconds", "role" => role)
        .set(not_after_s);
}

/// The configuration was (or was not) taken over.
pub fn reloaded(good: bool, wall_ms: u64) {
    emit!(gauge, "dingd_config_last_reload_successful").set(f64::from(u8::from(good)));
    if good {
        emit!(gauge, "dingd_config_last_reload_success_timestamp_seconds")
            .set(float(wall_ms) / 1e3);
    }
}

/// Which binary this is.
pub fn build_info() {
    let commit = option_env!("DINGD_COMMIT").unwrap_or("unknown");
    emit!(gauge, "dingd_build_info", "version" => env!("CARGO_PKG_VERSION"), "commit" => commit)
        .set(1.0);
}

/// CPU, memory and descriptors of this process, read now.
pub fn process() {
    metrics_process::Collector::default().collect();
}
