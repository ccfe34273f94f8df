//! What calls cost, on disk: written with the intent before the first byte leaves, dated when the
//! call ended, and read back at the start. So a crash loop cannot pass a limit.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::ledger::{KEEP_DAYS, Meter};
use super::limit::Key;
use super::month::Day;
use super::{Egress, Pause, Permit, Settled};
use crate::delivery::record;
use crate::delivery::verdict::Reason;
use crate::journal::{Batch, Order, ReadError, Table, View, number_of};

/// Charges stay this much longer than the longest window, in milliseconds.
const SLACK_MS: u64 = 60_000;

/// The longest pause that is believed after a start, in milliseconds.
const PAUSE_MS_MAX: u64 = 3_600_000;
/// So long after its end a pause still counts at a start, in milliseconds.
const CARE_MS: u64 = 600_000;

/// The charges on disk.
#[derive(Debug, Default)]
pub struct Charges {
    next: AtomicU64,
    /// Numbers of settled charges with their wall time, to be deleted when they are old.
    settled: Mutex<VecDeque<(u64, u64)>>,
}

/// A pause on disk, in wall time.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Paused {
    Growing {
        until_ms: u64,
        step_ms: u64,
        /// How long it was when this was written: it is no longer after a start, whatever the clock says.
        left_ms: u64,
    },
    /// As earlier builds wrote it.
    Until(u64),
}

/// The number of one charge.
#[derive(Debug, Clone, Copy)]
pub struct ChargeId(u64);

#[derive(Debug, Serialize, Deserialize)]
struct Charge {
    keys: Vec<Key>,
    /// Wall time of the end; `None` while the call is under way.
    ended_ms: Option<u64>,
    /// While it is under way: what it counts under in the ledger, from when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metered: Option<(Meter, u64)>,
}

impl Egress {
    /// Reads charges, pauses and the ledger back. What was under way when the process died counts as
    /// made and as ended now: `batch` says so once and for all. Damaged rows are put aside in it too.
    pub fn load(&self, view: &View<'_>, batch: &mut Batch) -> Result<(), ReadError> {
        self.load_ledger(view)?;
        self.load_charges(view, batch)?;
        self.ledger().loaded();
        self.review();
        self.load_pauses(view, batch)
    }

    fn load_ledger(&self, view: &View<'_>) -> Result<(), ReadError> {
        let mut ledger = self.ledger();
        view.walk(
            Table::Ledger,
            &[],
            &[],
            Order::Ascending,
            &mut |key, value| {
                ledger.read(key, number_of(value));
                true
            },
        )
    }

    fn load_charges(&self, view: &View<'_>, batch: &mut Batch) -> Result<(), ReadError> {
        let (mono_ms, wall_ms) = (self.clock.mono_ms(), self.clock.wall_ms());
        let mut limits = self.limits();
        let mut last = 0;
        view.walk(
            Table::Charges,
            &[],
            &[],
            Order::Ascending,
            &mut |key, value| {
                last = crate::journal::queue::seq_of(key);
                match record::decode::<Charge>(value) {
                    Ok(mut charge) => {
                        if let Some((meter, at_ms)) = charge.metered.take() {
                            self.ledger().count(&meter, 1, at_ms).write(batch);
                            charge.ended_ms = Some(wall_ms);
                            batch.put(Table::Charges, key, record::encode(&charge));
                        }
                        let ended_ms = charge.ended_ms.unwrap_or(wall_ms).min(wall_ms);
                        let mono_ms = mono_ms.saturating_sub(wall_ms - ended_ms);
                        for key in charge.keys {
                            limits.charge(key, mono_ms);
                        }
                        self.charges.settled().push_back((last, ended_ms));
                    }
                    Err(error) => batch.quarantine(Table::Charges, key, value, &error),
                }
                true
            },
        )?;
        self.charges
            .next
            .store(last.saturating_add(1), Ordering::Relaxed);
        Ok(())
    }

    fn load_pauses(&self, view: &View<'_>, batch: &mut Batch) -> Result<(), ReadError> {
        let (mono_ms, wall_ms) = (self.clock.mono_ms(), self.clock.wall_ms());
        let mut limits = self.limits();
        view.walk(
            Table::Pauses,
            &[],
            &[],
            Order::Ascending,
            &mut |key, value| {
                let (until_ms, step_ms, most_ms) = match record::decode::<Paused>(value) {
                    Ok(Paused::Growing {
                        until_ms,
                        step_ms,
                        left_ms,
                    }) => (until_ms, step_ms, left_ms),
                    Ok(Paused::Until(until_ms)) => (until_ms, 0, PAUSE_MS_MAX),
                    Err(error) => {
                        batch.quarantine(Table::Pauses, key, value, &error);
                        return true;
                    }
                };
                let found = Key::from_bytes(key);
                match found {
                    Some(key) if until_ms > wall_ms => {
                        let left_ms = (until_ms - wall_ms).min(most_ms).min(PAUSE_MS_MAX);
                        limits.resume_pause(key, mono_ms + left_ms, step_ms);
                        self.report_pause(key.kind, wall_ms + left_ms, &paused_before());
                    }
                    // Over, but not long: what comes again grows, and after a ban there is care.
                    Some(key) if until_ms + step_ms.max(CARE_MS) > wall_ms => {
                        let ended_ms = mono_ms.saturating_sub(wall_ms - until_ms);
                        limits.resume_pause(key, ended_ms, step_ms);
                    }
                    _ => batch.delete(Table::Pauses, key),
                }
                true
            },
        )
    }

    /// Puts the cost of a call into the batch that holds its intent.
    pub fn charge(&self, batch: &mut Batch, permit: &Permit) -> ChargeId {
        let id = self.charges.next.fetch_add(1, Ordering::Relaxed);
        let metered = permit.metered.as_ref();
        let charge = Charge {
            keys: permit.keys().to_vec(),
            ended_ms: None,
            metered: metered.map(|one| (Meter::clone(&one.meter), self.clock.wall_ms())),
        };
        batch.put(Table::Charges, id.to_be_bytes(), record::encode(&charge));
        ChargeId(id)
    }

    /// Dates the charge in the batch that holds the result, counts the call, writes the pause that came
    /// of it, and deletes what is too old to matter.
    pub fn charged(&self, batch: &mut Batch, id: ChargeId, settled: Settled) {
        let wall_ms = self.clock.wall_ms();
        let Settled {
            keys,
            pause,
            entries,
        } = settled;
        let charge = Charge {
            keys,
            ended_ms: Some(wall_ms),
            metered: None,
        };
        batch.put(Table::Charges, id.0.to_be_bytes(), record::encode(&charge));
        for entry in entries {
            entry.write(batch);
        }
        self.paused(batch, pause);
        let keep_ms = self.limits().longest_ms() + SLACK_MS;
        let mut settled = self.charges.settled();
        settled.push_back((id.0, wall_ms));
        while let Some(&(old, ended_ms)) = settled.front()
            && ended_ms + keep_ms < wall_ms
        {
            settled.pop_front();
            batch.delete(Table::Charges, old.to_be_bytes());
        }
    }
}

impl Egress {
    fn paused(&self, batch: &mut Batch, pause: Option<Pause>) {
        if let Some(pause) = pause {
            let left_ms = pause.until_ms.saturating_sub(self.clock.mono_ms());
            let until_ms = self.clock.wall_ms() + left_ms;
            let row = record::encode(&Paused::Growing {
                until_ms,
                step_ms: pause.step_ms,
                left_ms,
            });
            batch.put(Table::Pauses, pause.key.bytes(), row);
        }
    }

    /// Charges and counts a call for which no intent was written: one that shows people nothing, and that is
    /// forgotten only if the process dies while it is under way.
    pub fn counted(&self, settled: Settled) {
        let id = ChargeId(self.charges.next.fetch_add(1, Ordering::Relaxed));
        let mut batch = Batch::default();
        self.charged(&mut batch, id, settled);
        self.write(batch);
    }

    /// These pauses are over before their time.
    pub(super) fn unpaused(&self, keys: &[Key]) {
        let mut batch = Batch::default();
        for key in keys {
            batch.delete(Table::Pauses, key.bytes());
        }
        self.write(batch);
    }

    fn write(&self, batch: Batch) {
        if !batch.is_empty() {
            self.journal.submit(batch, |result| {
                if result.is_err() {
                    tracing::debug!("a call could not be counted; the process is about to end");
                }
            });
        }
    }

    /// Removes rows of the ledger that nobody asks for any more, once a day.
    pub async fn trim(&self) -> Result<(), ReadError> {
        let journal = &self.journal;
        let oldest = Day::at(self.clock.wall_ms()).before(KEEP_DAYS);
        if !self.ledger().forget(oldest) {
            return Ok(());
        }
        let end = oldest.text();
        let mut batch = Batch::default();
        let batch = journal.read(move |view| {
            view.walk(
                Table::Ledger,
                &[],
                end.as_bytes(),
                Order::Ascending,
                &mut |key, _| {
                    batch.delete(Table::Ledger, key);
                    true
                },
            )?;
            Ok(batch)
        });
        let batch = batch.await?;
        if !batch.is_empty() && journal.commit(batch).await.is_err() {
            tracing::warn!("old rows of the ledger could not be removed");
        }
        Ok(())
    }
}

impl Charges {
    fn settled(&self) -> std::sync::MutexGuard<'_, VecDeque<(u64, u64)>> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What can still be said of a pause that began before this start.
fn paused_before() -> Reason {
    Reason::new(
        "paused_before_start",
        "DingTalk made us pause before this start",
        "到时自动恢复；原因见启动前的日志（DingTalk made us pause）。",
        "It ends by itself; the log from before the start says why (DingTalk made us pause).",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows as they are on disk; what is written now must stay readable as well.
    #[test]
    fn a_pause_is_read_as_every_build_wrote_it() {
        let read = |body: &str| record::decode::<Paused>(&record::frame(body.as_bytes())).unwrap();
        assert!(matches!(
            read("1760000000000"),
            Paused::Until(1_760_000_000_000)
        ));
        let growing = r#"{"until_ms":1760000000000,"step_ms":60000,"left_ms":59000}"#;
        assert!(matches!(
            read(growing),
            Paused::Growing {
                until_ms: 1_760_000_000_000,
                step_ms: 60_000,
                left_ms: 59_000
            }
        ));
    }
}
