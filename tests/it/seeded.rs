//! The tests of the tests: each deliberate bug of `dingd::faults` must make the test fail that is said
//! to notice it. Debug builds only, as the bugs are.
#![cfg(debug_assertions)]

use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use dingd::faults::Bug;

const A_MAP: &str = "store::a_store_and_a_map_agree_after_every_clean_stop_and_every_kill";
const POWER: &str = "store::fifty_power_cuts_lose_nothing_that_was_answered";
const KILL: &str = "store::a_kill_at_any_call_of_the_disk_loses_nothing";
const ERROR: &str =
    "store::an_error_at_any_call_of_the_disk_ends_the_journal_and_is_never_taken_for_success";
const FULL: &str = "store::a_full_disk_at_any_call_is_waited_for_and_nothing_fails";

fn noticed_by(bug: Bug) -> &'static str {
    match bug {
        Bug::AnswerBeforeDurable | Bug::LogNotSynced | Bug::FrameUnchecked => POWER,
        Bug::LogRecycledEarly => KILL,
        Bug::SyncErrorIgnored => ERROR,
        Bug::FullTakenForDone => FULL,
        Bug::ReplayForgetsLast
        | Bug::ReplayTwice
        | Bug::LargeGroupNotSaved
        | Bug::FinishKeepsLive
        | Bug::AcceptedUncounted
        | Bug::NumberGivenAgain
        | Bug::DedupNotStored
        | Bug::LostWakeUp => A_MAP,
        Bug::DedupOnNonce => {
            "callbacks::an_event_that_is_encrypted_anew_is_recognised_by_its_id_or_else_by_its_text"
        }
        Bug::IntentNotWaitedFor | Bug::UnknownTakenForUnsent => {
            "disk::no_call_leaves_before_its_intent_is_on_disk"
        }
        Bug::ChargesForgotten => "limits::a_restart_knows_what_was_sent_before_it",
        Bug::LeaseTwice => "messages::people_are_called_in_twenties_and_each_has_an_outcome",
        Bug::DirectoryNotSynced => {
            "disk::a_first_start_syncs_each_file_before_and_its_directory_after_it_gets_its_name"
        }
        Bug::OutcomeNotTold => {
            "messages::every_kind_of_content_reaches_a_chat_a_person_and_a_robot"
        }
        Bug::WallClockTimers => {
            "simulation::a_wall_clock_that_is_set_forward_lets_no_limit_be_passed"
        }
        Bug::IdempotencyInMemory => {
            "messages::an_idempotency_key_gives_the_first_answer_again_even_after_a_crash"
        }
    }
}

/// A test that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(40);

#[test]
fn every_deliberate_bug_is_noticed() {
    let left = Mutex::new(Bug::ALL.to_vec());
    let missed = Mutex::new(vec![]);
    std::thread::scope(|threads| {
        for _ in 0..3 {
            threads.spawn(|| {
                while let Some(bug) = { left.lock().unwrap().pop() } {
                    if !notices(bug) {
                        missed.lock().unwrap().push(bug);
                    }
                }
            });
        }
    });
    assert_eq!(missed.into_inner().unwrap(), vec![], "nobody noticed");
}

/// The control: without a bug each of these tests passes under the very same conditions, so that none notices
/// by being slow. All of them run in every test run as well, with more patience.
#[test]
fn without_a_bug_nothing_is_noticed() {
    if !crate::support::long() {
        return;
    }
    let tests: std::collections::BTreeSet<_> = Bug::ALL.into_iter().map(noticed_by).collect();
    for test in tests {
        // Only where a bug shows by that, hanging counts.
        let patience = if test == noticed_by(Bug::LostWakeUp) {
            PATIENCE
        } else {
            10 * PATIENCE
        };
        let ended = ends(test, "none", patience);
        assert!(ended.is_some_and(|(good, _)| good), "{test} without a bug");
    }
}

fn notices(bug: Bug) -> bool {
    match ends(noticed_by(bug), &format!("{bug:?}"), PATIENCE) {
        Some((good, said)) => !good && said.contains("1 failed"),
        // This one shows by that; with any other bug a test must fail by itself.
        None => bug == Bug::LostWakeUp,
    }
}

/// Runs `test` with the bug of this name: whether it passed, and what it said; `None` if it hangs.
fn ends(test: &str, bug: &str, patience: Duration) -> Option<(bool, String)> {
    // A file: what a test says when it fails may be more than a pipe holds.
    let out = tempfile::NamedTempFile::new().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env("DINGD_BUG", bug)
        .env("DINGD_PATIENCE_S", "5")
        // A bug that shows once in a few lives must show in so many.
        .env("DINGD_LONG", "1")
        .stdout(out.reopen().unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if started.elapsed() > patience {
            child.kill().unwrap();
            child.wait().unwrap();
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let said = std::fs::read(out.path()).unwrap();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(said.contains("running 1 test"), "there is no test {test}");
    Some((status.success(), said))
}
