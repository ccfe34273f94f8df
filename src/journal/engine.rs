//! The engine below the journal. The only file that names redb.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use redb::{
    Database, Durability, ReadOnlyTable, ReadTransaction, ReadableDatabase as _,
    ReadableTable as _, ReadableTableMetadata as _, TableDefinition, TableError,
};

use super::{Batch, CommitError, Order, ReadError, Table, View, Write};

/// The format that this release writes and reads.
const FORMAT: u64 = 1;
const FORMAT_KEY: &str = "format";
const FORMAT_FILE: &str = "journal.format";
const FILE: &str = "journal.redb";
/// Its cache is most of the daemon's memory.
const CACHE_BYTES: usize = 8 << 20;

type Open = ReadOnlyTable<&'static [u8], &'static [u8]>;
type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;

fn definition(table: Table) -> Definition {
    TableDefinition::new(match table {
        Table::InboxPayload => "inbox_payload",
        Table::InboxLive => "inbox_live",
        Table::InboxDone => "inbox_done",
        Table::OutboxPayload => "outbox_payload",
        Table::OutboxLive => "outbox_live",
        Table::OutboxDone => "outbox_done",
        Table::Dedup => "dedup",
        Table::Idempotency => "idempotency",
        Table::Chats => "chats",
        Table::Charges => "charges",
        Table::Pauses => "pauses",
        Table::Meta => "meta",
        Table::Quarantine => "quarantine",
    })
}

/// Why the journal could not be opened. Every text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("{0} is in use by another dingd; stop that one first (systemctl status dingd)")]
    InUse(PathBuf),
    /// It was written by a later release.
    #[error(
        "{path} has format {found}, this release knows {FORMAT}; run the newer dingd, or restore a backup"
    )]
    Newer {
        /// The store.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// The file is not a journal or is damaged beyond the engine's repair.
    #[error("{path} cannot be opened ({detail}); keep the file, restore a backup or move it away")]
    Damaged {
        /// The store.
        path: PathBuf,
        /// What the engine said.
        detail: String,
    },
    /// The directory cannot be used.
    #[error("{path}: {source}; check that state_dir exists, is writable and has space")]
    Io {
        /// The path that failed.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

#[derive(Debug)]
pub(super) struct Engine {
    db: Database,
    path: PathBuf,
    // Held for the life of the process; the operating system releases it, whatever happens.
    _lock: File,
}

impl Engine {
    pub(super) fn open(dir: &Path) -> Result<Self, OpenError> {
        let path = dir.join(FILE);
        let lock = lock(dir)?;
        refuse_newer(dir, &path)?;
        if !path.try_exists().map_err(|source| OpenError::Io {
            path: path.clone(),
            source,
        })? {
            create(dir, &path)?;
        }
        let db = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .open(&path)
            .map_err(|error| damaged(&path, error))?;
        let engine = Self {
            db,
            path,
            _lock: lock,
        };
        engine.check_format()?;
        Ok(engine)
    }

    fn check_format(&self) -> Result<(), OpenError> {
        let found = self
            .view(|view| view.counter(FORMAT_KEY))
            .map_err(|error| damaged(&self.path, error))?;
        match found {
            FORMAT => Ok(()),
            0 => Err(damaged(&self.path, "it has no format number")),
            found => Err(OpenError::Newer {
                path: self.path.clone(),
                found,
            }),
        }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |meta| meta.len())
    }

    pub(super) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, ReadError> {
        self.view(|view| view.get(table, key))
    }

    pub(super) fn view<T>(
        &self,
        read: impl FnOnce(&View<'_>) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        let reading = Reading(self.db.begin_read().map_err(read_error)?);
        read(&View(&reading))
    }

    /// Writes all batches in one durable transaction.
    pub(super) fn write<'a>(
        &self,
        batches: impl Iterator<Item = &'a Batch>,
    ) -> Result<(), CommitError> {
        self.try_write(batches).map_err(|error| {
            tracing::error!(%error, "the journal cannot be written");
            CommitError
        })
    }

    fn try_write<'a>(&self, batches: impl Iterator<Item = &'a Batch>) -> Result<(), redb::Error> {
        let mut transaction = self.db.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        {
            // Opening a table costs a look-up in the root; open each once and keep the order of
            // writes within it.
            let mut by_table: BTreeMap<Table, Vec<&Write>> = BTreeMap::new();
            let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
            for write in batches.flat_map(|batch| &batch.writes) {
                match write {
                    Write::Put(table, ..) | Write::Delete(table, _) => {
                        by_table.entry(*table).or_default().push(write);
                    }
                    Write::Add(name, amount) => *sums.entry(name).or_default() += amount,
                }
            }
            for (table, writes) in by_table {
                let mut open = transaction.open_table(definition(table))?;
                for write in writes {
                    match write {
                        Write::Put(_, key, value) => {
                            open.insert(key.as_slice(), value.as_slice())?;
                        }
                        Write::Delete(_, key) => {
                            open.remove(key.as_slice())?;
                        }
                        Write::Add(..) => {}
                    }
                }
            }
            let mut meta = transaction.open_table(definition(Table::Meta))?;
            for (name, amount) in sums {
                let old = meta
                    .get(name.as_bytes())?
                    .and_then(|value| value.value().try_into().ok())
                    .map_or(0, u64::from_be_bytes);
                meta.insert(
                    name.as_bytes(),
                    old.saturating_add(amount).to_be_bytes().as_slice(),
                )?;
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct Reading(ReadTransaction);

impl Reading {
    fn table(&self, table: Table) -> Result<Option<Open>, ReadError> {
        match self.0.open_table(definition(table)) {
            Ok(open) => Ok(Some(open)),
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(read_error(error)),
        }
    }

    pub(super) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, ReadError> {
        let Some(open) = self.table(table)? else {
            return Ok(None);
        };
        let value = open.get(key).map_err(read_error)?;
        Ok(value.map(|value| value.value().to_vec()))
    }

    pub(super) fn walk(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        order: Order,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), ReadError> {
        let Some(open) = self.table(table)? else {
            return Ok(());
        };
        let mut range = if to.is_empty() {
            open.range(from..)
        } else {
            open.range(from..to)
        }
        .map_err(read_error)?;
        loop {
            let entry = match order {
                Order::Ascending => range.next(),
                Order::Descending => range.next_back(),
            };
            let Some(entry) = entry else { return Ok(()) };
            let (key, value) = entry.map_err(read_error)?;
            if !visit(key.value(), value.value()) {
                return Ok(());
            }
        }
    }

    pub(super) fn len(&self, table: Table) -> Result<u64, ReadError> {
        self.table(table)?
            .map_or(Ok(0), |open| open.len().map_err(read_error))
    }
}

fn read_error(error: impl std::fmt::Display) -> ReadError {
    ReadError(error.to_string())
}

fn damaged(path: &Path, error: impl std::fmt::Display) -> OpenError {
    OpenError::Damaged {
        path: path.to_owned(),
        detail: error.to_string(),
    }
}

/// The engine repairs what it opens, so whether a store is newer is read from a file beside it first:
/// an older release leaves a newer store untouched. A release that changes the format writes the new
/// number here before it changes anything else.
fn refuse_newer(dir: &Path, path: &Path) -> Result<(), OpenError> {
    let file = dir.join(FORMAT_FILE);
    match std::fs::read_to_string(&file) {
        Ok(text) => match text.trim().parse() {
            Ok(found) if found > FORMAT => Err(OpenError::Newer {
                path: path.to_owned(),
                found,
            }),
            Ok(_) => Ok(()),
            Err(_) => Err(damaged(&file, "it holds no number")),
        },
        // Killed between the two steps of the first start: the number is in the store as well.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(OpenError::Io { path: file, source }),
    }
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let io = |source| OpenError::Io {
        path: path.clone(),
        source,
    };
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(OpenError::InUse(dir.to_owned())),
        Err(std::fs::TryLockError::Error(source)) => Err(io(source)),
    }
}

/// Makes the file under another name first: an engine killed while it formats its file may leave one
/// that it cannot open.
fn create(dir: &Path, path: &Path) -> Result<(), OpenError> {
    let draft = dir.join("journal.redb.new");
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io { path, source }
    };
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(&draft)(error)),
        Ok(()) | Err(_) => {}
    }
    let made = || -> Result<(), redb::Error> {
        let db = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(&draft)?;
        let mut transaction = db.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        transaction
            .open_table(definition(Table::Meta))?
            .insert(FORMAT_KEY.as_bytes(), FORMAT.to_be_bytes().as_slice())?;
        transaction.commit()?;
        Ok(())
    };
    made().map_err(|error| damaged(&draft, error))?;
    File::open(&draft)
        .and_then(|file| file.sync_all())
        .map_err(io(&draft))?;
    let format = dir.join(FORMAT_FILE);
    std::fs::write(&format, format!("{FORMAT}\n")).map_err(io(&format))?;
    File::open(&format)
        .and_then(|file| file.sync_all())
        .map_err(io(&format))?;
    std::fs::rename(&draft, path).map_err(io(path))?;
    File::open(dir)
        .and_then(|file| file.sync_all())
        .map_err(io(dir))
}
