//! For the tests of the tests: moments to die at, and deliberate bugs that the suites must notice.
//!
//! Only in debug builds, chosen by the environment; in a release build every question here is answered
//! at compile time with no.

/// A bug that is not there, unless `DINGD_BUG` names it. What each does is said where it is asked for;
/// which test notices is in `tests/it/seeded.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Bug {
    AnswerBeforeDurable,
    LogNotSynced,
    LogRecycledEarly,
    ReplayForgetsLast,
    ReplayTwice,
    FrameUnchecked,
    LargeGroupNotSaved,
    SyncErrorIgnored,
    FullTakenForDone,
    FinishKeepsLive,
    AcceptedUncounted,
    NumberGivenAgain,
    DedupNotStored,
    DedupOnNonce,
    IntentNotWaitedFor,
    ChargesForgotten,
    LeaseTwice,
    LostWakeUp,
    DirectoryNotSynced,
    OutcomeNotTold,
    IdempotencyInMemory,
    UnknownTakenForUnsent,
    WallClockTimers,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 23] = [
        Self::AnswerBeforeDurable,
        Self::LogNotSynced,
        Self::LogRecycledEarly,
        Self::ReplayForgetsLast,
        Self::ReplayTwice,
        Self::FrameUnchecked,
        Self::LargeGroupNotSaved,
        Self::SyncErrorIgnored,
        Self::FullTakenForDone,
        Self::FinishKeepsLive,
        Self::AcceptedUncounted,
        Self::NumberGivenAgain,
        Self::DedupNotStored,
        Self::DedupOnNonce,
        Self::IntentNotWaitedFor,
        Self::ChargesForgotten,
        Self::LeaseTwice,
        Self::LostWakeUp,
        Self::DirectoryNotSynced,
        Self::OutcomeNotTold,
        Self::IdempotencyInMemory,
        Self::UnknownTakenForUnsent,
        Self::WallClockTimers,
    ];
}

/// Whether this process has the bug.
#[cfg(debug_assertions)]
pub fn bug(bug: Bug) -> bool {
    use std::sync::LazyLock;
    static NAME: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("DINGD_BUG").ok());
    NAME.as_ref()
        .is_some_and(|name| *name == format!("{bug:?}"))
}

/// Whether this process has the bug: never.
#[cfg(not(debug_assertions))]
pub const fn bug(_: Bug) -> bool {
    false
}

/// The moments at which a process can be made to die: right before and right after each step that
/// somebody outside, or the next start, relies on.
pub const POINTS: [&str; 33] = [
    "create.filled",
    "create.renamed",
    "migrate.before",
    "migrate.after",
    "log.before",
    "log.after",
    "answers.after",
    "tables.before",
    "tables.after",
    "replay.before",
    "replay.after",
    "callback.before",
    "callback.after",
    "event.before",
    "event.after",
    "answer.before",
    "answer.after",
    "late.before",
    "late.after",
    "message.before",
    "message.after",
    "patch.before",
    "patch.after",
    "shown.before",
    "shown.after",
    "digest.before",
    "digest.after",
    "call.before",
    "call.after",
    "settle.after",
    "purge.before",
    "purge.after",
    "restore.step",
];

/// Dies here by SIGKILL if `DINGD_DIE_AT` is this point's name, a colon, and how many times it was
/// passed.
#[cfg(debug_assertions)]
pub fn point(name: &str) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    static DIE_AT: LazyLock<Option<(String, AtomicU64)>> = LazyLock::new(|| {
        let text = std::env::var("DINGD_DIE_AT").ok()?;
        let (name, times) = text.split_once(':')?;
        Some((name.to_owned(), AtomicU64::new(times.parse().ok()?)))
    });
    debug_assert!(POINTS.contains(&name), "{name} is not in the list");
    if let Some((at, left)) = &*DIE_AT
        && at == name
        && left.fetch_sub(1, Ordering::SeqCst) == 1
    {
        let me = rustix::process::getpid();
        while rustix::process::kill_process(me, rustix::process::Signal::KILL).is_ok() {
            std::thread::park();
        }
    }
}

/// Nobody dies here.
#[cfg(not(debug_assertions))]
pub const fn point(_: &str) {}
