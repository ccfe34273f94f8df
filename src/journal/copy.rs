//! Backup, restore, check.
//!
//! A backup is one file with all tables as they were at one moment; it needs no log. It is made from a
//! view of the running journal, row by row, and read back before anybody is told that it is there.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::disk::Condition;
use super::engine::{self, Engine, OpenError, Save};
use super::queue::{Books, INBOX, OUTBOX, Place};
use super::{Batch, Counter, Journal, Order, ReadError, Table, View};
use crate::delivery::record;
use crate::faults::point;

/// Rows are copied in transactions of about this size.
const STEP_BYTES: usize = 1 << 20;

/// Why there is no backup, or no restored store.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The store cannot be read, or the copy cannot be written.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A store cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The copy is not what was copied.
    #[error(
        "{0} was written but does not hold what the store holds; check the disk, make it again"
    )]
    Differs(PathBuf),
}

/// What a store holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The tables in the order of their numbers.
    pub tables: Vec<Rows>,
    /// Damaged rows that were set aside earlier.
    pub set_aside: u64,
    /// By how much the books do not balance; 0 unless something is lost or counted twice.
    pub mismatch: u64,
}

/// What a table holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rows {
    /// Its name.
    pub table: &'static str,
    /// How many there are.
    pub rows: u64,
    /// How many are damaged.
    pub damaged: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
}

impl Report {
    /// Damaged rows.
    pub fn damaged(&self) -> u64 {
        self.tables.iter().map(|rows| rows.damaged).sum()
    }
}

impl Journal {
    /// Reads every row of the store and checks it. Blocks.
    pub fn check(&self) -> Result<Report, ReadError> {
        self.read_blocking(check)
    }

    /// Writes all that the store holds now to the new file `path`, and reads it back. Blocks.
    pub fn backup(&self, path: &Path) -> Result<Report, CopyError> {
        let file = engine::new_file(path)?;
        let made = self.copy_to(file, path);
        if made.is_err() {
            engine::remove(path)?;
        }
        made
    }

    fn copy_to(&self, file: File, path: &Path) -> Result<Report, CopyError> {
        // Who waits here for space would hold up the daemon.
        let copy = Engine::on(Box::new(file), Condition::impatient(), None)
            .map_err(|failed| failed.at(path))?;
        let report = self.read_blocking(|view| {
            fill(&copy, view)?;
            check(view)
        })?;
        drop(copy);
        engine::sync(path)?;
        if check_backup(path)?.tables != report.tables {
            return Err(CopyError::Differs(path.to_owned()));
        }
        Ok(report)
    }
}

/// Reads every row of the backup `path` and checks it. Blocks.
pub fn check_backup(path: &Path) -> Result<Report, CopyError> {
    Ok(open(path)?.view(check)?)
}

/// Puts the backup `file` in the place of the store in `dir`, whose files are kept beside it as
/// `*.before-restore`. No daemon may run on it; while it is under way none can start.
pub fn restore(dir: &Path, file: &Path) -> Result<Report, CopyError> {
    let _lock = engine::lock(dir)?;
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| CopyError::Io { path, source }
    };
    // Everything that needs space comes before anything is moved.
    let tables = dir.join("journal.redb.restored");
    let log = dir.join("journal.log.restored");
    for draft in [&tables, &log] {
        engine::remove(draft)?;
    }
    let report = drafted(file, &tables, &log).inspect_err(|_| {
        // The daemon may need their space to start again.
        for draft in [&tables, &log] {
            drop(engine::remove(draft));
        }
    })?;
    point("restore.step");
    let marker = dir.join(engine::RESTORING_FILE);
    engine::remove(&marker)?;
    drop(engine::new_file(&marker)?);
    engine::sync(dir)?;
    point("restore.step");
    for name in [engine::FILE, engine::LOG_FILE] {
        keep_old(dir, name).map_err(io(&dir.join(name)))?;
        point("restore.step");
    }
    engine::put(dir, &log, &dir.join(engine::LOG_FILE))?;
    point("restore.step");
    engine::put(dir, &tables, &dir.join(engine::FILE))?;
    point("restore.step");
    engine::write_format(dir)?;
    // Restored by root, used by the daemon's user.
    let owner = std::fs::metadata(dir).map_err(io(dir))?;
    for name in [
        engine::FILE,
        engine::LOG_FILE,
        engine::FORMAT_FILE,
        engine::LOCK_FILE,
    ] {
        let path = dir.join(name);
        std::os::unix::fs::chown(&path, Some(owner.uid()), Some(owner.gid())).map_err(io(&path))?;
    }
    point("restore.step");
    engine::remove(&marker)?;
    engine::sync(dir)?;
    point("restore.step");
    Ok(report)
}

/// Makes what is to be put in the place of a store.
fn drafted(file: &Path, tables: &Path, log: &Path) -> Result<Report, CopyError> {
    let io = |source| CopyError::Io {
        path: file.to_owned(),
        source,
    };
    let mut backup = File::open(file).map_err(io)?;
    engine::refuse_empty(&backup, file)?;
    io::copy(&mut backup, &mut engine::new_file(tables)?).map_err(io)?;
    let report = check_backup(tables)?;
    engine::sync(tables)?;
    engine::fill_log(&engine::new_file(log)?, log)?;
    engine::sync(log)?;
    Ok(report)
}

/// Moves a file out of the way, under a name that nothing has yet.
fn keep_old(dir: &Path, name: &str) -> io::Result<()> {
    let kept = (1_u32..1_000)
        .map(|n| match n {
            1 => dir.join(format!("{name}.before-restore")),
            n => dir.join(format!("{name}.before-restore-{n}")),
        })
        .find(|kept| !kept.exists());
    match std::fs::rename(dir.join(name), kept.unwrap_or_default()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        moved => moved,
    }
}

fn open(path: &Path) -> Result<Engine, CopyError> {
    let file = File::options().read(true).write(true).open(path);
    let file = file.map_err(|source| CopyError::Io {
        path: path.to_owned(),
        source,
    })?;
    engine::refuse_empty(&file, path)?;
    // On a disk that is full nobody would end its waiting.
    let engine = Engine::on(Box::new(file), Condition::impatient(), None);
    Ok(engine.map_err(|failed| failed.at(path))?)
}

fn fill(copy: &Engine, view: &View<'_>) -> Result<(), ReadError> {
    let mut batch = Batch::default();
    let mut failed = false;
    for table in Table::ALL {
        view.walk(table, &[], &[], Order::Ascending, &mut |key, value| {
            // A copy goes with an empty log, whose groups are counted from 1.
            if table != Table::Meta || key != Counter::Group.name().as_bytes() {
                batch.put(table, key, value);
            }
            if batch.bytes() >= STEP_BYTES {
                let part = std::mem::take(&mut batch);
                failed = copy.write([&part].into_iter(), 0, Save::Visible).is_err();
            }
            !failed
        })?;
    }
    failed |= copy.write([&batch].into_iter(), 0, Save::Durable).is_err();
    if failed {
        return Err(ReadError(
            "the copy cannot be written; see the log".to_owned(),
        ));
    }
    Ok(())
}

fn check(view: &View<'_>) -> Result<Report, ReadError> {
    let mut tables = vec![];
    for table in Table::ALL {
        let mut rows = Rows {
            table: table.name(),
            rows: 0,
            damaged: 0,
            bytes: 0,
        };
        view.walk(table, &[], &[], Order::Ascending, &mut |key, value| {
            let group = table == Table::Meta && key == Counter::Group.name().as_bytes();
            if !group {
                rows.rows += 1;
                rows.bytes += (key.len() + value.len()) as u64;
                rows.damaged += u64::from(!is_sound(table, value));
            }
            true
        })?;
        tables.push(rows);
    }
    let mismatch = [INBOX, OUTBOX].into_iter().map(|place| books(view, place));
    Ok(Report {
        set_aside: view.len(Table::Quarantine)?,
        mismatch: mismatch.sum::<Result<u64, _>>()?,
        tables,
    })
}

fn is_sound(table: Table, value: &[u8]) -> bool {
    match table {
        Table::Quarantine => true,
        Table::Meta | Table::Ledger => value.len() == size_of::<u64>(),
        Table::Dedup | Table::Idempotency => {
            record::split_first(value).is_ok_and(|(record, _)| record::unframe(record).is_ok())
        }
        _ => {
            let mut rest = value;
            while let Ok((record, behind)) = record::split_first(rest) {
                if record::unframe(record).is_err() {
                    return false;
                }
                rest = behind;
            }
            rest.is_empty() && !value.is_empty()
        }
    }
}

fn books(view: &View<'_>, place: Place) -> Result<u64, ReadError> {
    Books::of(place, view).map(|books| books.mismatch())
}
