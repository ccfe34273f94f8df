//! The engine below the journal. The only file that names redb.
//!
//! It is given a [`Disk`] for its file, so that what it writes passes through one place.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{
    Database, DatabaseError, Durability, ReadOnlyTable, ReadTransaction, ReadableDatabase as _,
    ReadableTable as _, ReadableTableMetadata as _, StorageBackend, StorageError, TableDefinition,
    TableError,
};

use super::disk::{Condition, Disk, Medium, Stuck};
use super::log::{HALF_BYTES, HALF_BYTES_BEFORE, Log};
use super::{Batch, CommitError, Counter, Order, ReadError, Table, View, Write, number_of};
use crate::faults::{Bug, bug, point};

/// The format that this release writes and reads.
const FORMAT: u64 = 3;
/// The oldest format that this release takes over.
const FORMAT_OLDEST: u64 = 1;
pub(super) const FORMAT_FILE: &str = "journal.format";
/// Stands while a restore is under way.
pub(super) const RESTORING_FILE: &str = "journal.restoring";
pub(super) const LOCK_FILE: &str = "lock";
pub(super) const FILE: &str = "journal.redb";
pub(super) const LOG_FILE: &str = "journal.log";
/// Its cache is most of the daemon's memory.
const CACHE_BYTES: usize = 8 << 20;

type Open = ReadOnlyTable<&'static [u8], &'static [u8]>;
type Writing<'t> = redb::Table<'t, &'static [u8], &'static [u8]>;
type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;

fn definition(table: Table) -> Definition {
    TableDefinition::new(table.name())
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
    #[error(
        "{path} cannot be opened ({detail}); put a backup in its place with `dingd restore <backup>`, which keeps the damaged files"
    )]
    Damaged {
        /// The store.
        path: PathBuf,
        /// What the engine said.
        detail: String,
    },
    /// A restore was interrupted.
    #[error("a restore in {0} did not come to its end; run `dingd restore <backup>` again")]
    Restoring(PathBuf),
    /// The directory cannot be used, or its disk fails.
    #[error(
        "{path}: {source}; check that state_dir exists, is writable and has space, and what the kernel says of its disk (dmesg): 检查 state_dir 是否存在、可写、有空间，并查看内核日志"
    )]
    Io {
        /// The path that failed.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl OpenError {
    /// Whether it is over as soon as the disk has space and takes writes.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Io { source, .. } if Stuck::of(source).is_some())
    }
}

/// What a transaction is, once it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Save {
    /// Seen by readers; a crash undoes it.
    Visible,
    /// Durable, with everything before.
    Durable,
}

#[derive(Debug)]
pub(super) struct Engine {
    db: Database,
    disk: Arc<Disk>,
    // Held for the life of the process; the operating system releases it, whatever happens.
    _lock: Option<File>,
}

impl Engine {
    /// Opens the store in `dir`, or makes one; and its log.
    pub(super) fn open(dir: &Path, condition: Condition) -> Result<(Self, File), OpenError> {
        let (path, log_path) = (dir.join(FILE), dir.join(LOG_FILE));
        let lock = lock(dir)?;
        if dir.join(RESTORING_FILE).exists() {
            return Err(OpenError::Restoring(dir.to_owned()));
        }
        refuse_newer(dir, &path)?;
        let exists = |path: &Path| path.try_exists().map_err(io_error(path));
        let made = exists(&path)?;
        if !exists(&log_path)? {
            if made {
                let detail = "it is missing, and with it what was accepted last";
                return Err(damaged(&log_path, detail));
            }
            create(dir, &log_path, |file, path| fill_log(&file, path))?;
        }
        let log = open_file(&log_path)?;
        let log_bytes = log.metadata().map_err(io_error(&log_path))?.len();
        if ![HALF_BYTES, HALF_BYTES_BEFORE]
            .map(|half| 2 * half as u64)
            .contains(&log_bytes)
        {
            let detail = format!("it has {log_bytes} bytes instead of {}", 2 * HALF_BYTES);
            return Err(damaged(&log_path, detail));
        }
        if !made {
            if !Log::is_unused(&log).map_err(io_error(&log_path))? {
                return Err(damaged(&path, "it is missing, and its log is not empty"));
            }
            create(dir, &path, |file, path| {
                let made = Self::on(Box::new(file), Condition::impatient(), None);
                made.map(drop).map_err(|failed| failed.at(path))
            })?;
        }
        if made {
            // Before anything in it changes: from here on an older release refuses the store. Synced each
            // time, as the last start may have been killed between the two.
            write_format(dir)?;
            sync(dir)?;
        }
        let file = open_file(&path)?;
        refuse_empty(&file, &path)?;
        let engine = Self::on(Box::new(file), condition, Some(lock));
        Ok((engine.map_err(|failed| failed.at(&path))?, log))
    }

    /// Opens the store on `medium`; formats it if it is empty.
    pub(super) fn on(
        medium: Box<dyn Medium>,
        condition: Condition,
        lock: Option<File>,
    ) -> Result<Self, Unopened> {
        let empty = medium.is_empty()?;
        let disk = Arc::new(Disk::new(medium, condition)?);
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        // Reads the whole file, about a second a gigabyte: a page that has changed since it was written
        // must be found here, not by whoever needs it, or never.
        builder.set_check_integrity_on_open(true);
        let db = builder.create_with_backend(Backend(disk.clone()))?;
        let engine = Self {
            db,
            disk,
            _lock: lock,
        };
        if empty {
            engine.format()?;
        }
        let format = engine.view(|view| view.counter(Counter::Format));
        match format.map_err(|error| Unopened::Damaged(error.to_string()))? {
            FORMAT => Ok(engine),
            FORMAT_OLDEST..FORMAT => engine.take_over().map(|()| engine),
            0 => Err(Unopened::Damaged("it has no format number".to_owned())),
            found => Err(Unopened::Newer(found)),
        }
    }

    fn format(&self) -> Result<(), Unopened> {
        let mut batch = Batch::default();
        batch.add(Counter::Format, FORMAT);
        Ok(self.try_write([&batch].into_iter(), 0, Save::Durable)?)
    }

    /// Makes the tables of an older format those of [`FORMAT`]. From 1 to 2 and from 2 to 3 only the number
    /// changes: the tables that came with 2 and 3 are made by their first rows.
    fn take_over(&self) -> Result<(), Unopened> {
        let mut batch = Batch::default();
        let key = Counter::Format.name().as_bytes();
        batch.put(Table::Meta, key, FORMAT.to_be_bytes());
        let group = self.group();
        let group = group.map_err(|error| Unopened::Damaged(error.to_string()))?;
        point("migrate.before");
        self.try_write([&batch].into_iter(), group, Save::Durable)?;
        point("migrate.after");
        Ok(())
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.disk.len().unwrap_or(0)
    }

    /// Takes blocks ahead if there were none to be had the last time.
    pub(super) fn take_room(&self) {
        self.disk.take_room_again();
    }

    pub(super) fn view<T>(
        &self,
        read: impl FnOnce(&View<'_>) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        let reading = Reading(self.db.begin_read().map_err(read_error)?);
        read(&View(&reading))
    }

    /// The last group that is in the tables.
    pub(super) fn group(&self) -> Result<u64, ReadError> {
        self.view(|view| view.counter(Counter::Group))
    }

    /// Puts the batches, up to group `number`, into the tables in one transaction.
    pub(super) fn write<'a>(
        &self,
        batches: impl Iterator<Item = &'a Batch>,
        number: u64,
        save: Save,
    ) -> Result<(), CommitError> {
        self.try_write(batches, number, save).map_err(|error| {
            tracing::error!(%error, "the journal's tables cannot be written");
            CommitError
        })
    }

    fn try_write<'a>(
        &self,
        batches: impl Iterator<Item = &'a Batch>,
        number: u64,
        save: Save,
    ) -> Result<(), redb::Error> {
        let mut transaction = self.db.begin_write()?;
        transaction.set_durability(match save {
            Save::Visible => Durability::None,
            Save::Durable => Durability::Immediate,
        })?;
        {
            // Opening a table costs a look-up in the root; open each once and keep the order of
            // writes within it.
            let mut by_table: BTreeMap<Table, Vec<Write<'_>>> = BTreeMap::new();
            let mut sums: BTreeMap<Counter, u64> = BTreeMap::new();
            for write in batches.flat_map(Batch::writes) {
                match write {
                    Write::Put(table, ..) | Write::Delete(table, _) | Write::AddTo(table, ..) => {
                        by_table.entry(table).or_default().push(write);
                    }
                    Write::Add(counter, amount) => *sums.entry(counter).or_default() += amount,
                }
            }
            for (table, writes) in by_table {
                let mut open = transaction.open_table(definition(table))?;
                for write in writes {
                    match write {
                        Write::Put(_, key, value) => {
                            open.insert(key, value)?;
                        }
                        Write::Delete(_, key) => {
                            open.remove(key)?;
                        }
                        Write::AddTo(_, key, amount) => add(&mut open, key, amount)?,
                        Write::Add(..) => {}
                    }
                }
            }
            let mut meta = transaction.open_table(definition(Table::Meta))?;
            for (counter, amount) in sums {
                add(&mut meta, counter.name().as_bytes(), amount)?;
            }
            let key = Counter::Group.name().as_bytes();
            meta.insert(key, number.to_be_bytes().as_slice())?;
        }
        transaction.commit()?;
        Ok(())
    }
}

fn add(open: &mut Writing<'_>, key: &[u8], amount: u64) -> Result<(), StorageError> {
    let old = open.get(key)?.map_or(0, |value| number_of(value.value()));
    let new = old.saturating_add(amount).to_be_bytes();
    open.insert(key, new.as_slice())?;
    Ok(())
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

fn io_error(path: &Path) -> impl Fn(io::Error) -> OpenError {
    move |source| OpenError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Why a medium could not be opened; the path is not known here.
#[derive(Debug)]
pub(super) enum Unopened {
    Newer(u64),
    Damaged(String),
    Io(io::Error),
}

impl Unopened {
    pub(super) fn at(self, path: &Path) -> OpenError {
        match self {
            Self::Newer(found) => OpenError::Newer {
                path: path.to_owned(),
                found,
            },
            Self::Damaged(detail) => damaged(path, detail),
            Self::Io(source) => io_error(path)(source),
        }
    }
}

impl From<io::Error> for Unopened {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<DatabaseError> for Unopened {
    fn from(error: DatabaseError) -> Self {
        Self::from(redb::Error::from(error))
    }
}

impl From<redb::Error> for Unopened {
    fn from(error: redb::Error) -> Self {
        match error {
            // These two kinds are about the content: it is no store, or it was cut.
            redb::Error::Io(source)
                if !matches!(
                    source.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                ) =>
            {
                Self::Io(source)
            }
            error => Self::Damaged(error.to_string()),
        }
    }
}

/// Hands the engine's reads and writes to the disk. The lock on the store is [`lock`].
#[derive(Debug)]
struct Backend(Arc<Disk>);

impl StorageBackend for Backend {
    fn len(&self) -> Result<u64, io::Error> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.0.write(offset, data)
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

/// The store's lock: released by the operating system when the process ends, whatever happens.
pub(super) fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join(LOCK_FILE);
    let io = |source| OpenError::Io {
        path: path.clone(),
        source,
    };
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(OpenError::InUse(dir.to_owned())),
        Err(std::fs::TryLockError::Error(source)) => Err(io(source)),
    }
}

fn open_file(path: &Path) -> Result<File, OpenError> {
    let file = File::options().read(true).write(true).open(path);
    file.map_err(io_error(path))
}

/// A store is never empty, not even one that was just made. Made anew without a word it would hide what is gone.
pub(super) fn refuse_empty(file: &File, path: &Path) -> Result<(), OpenError> {
    match file.metadata().map_err(io_error(path))?.len() {
        0 => Err(damaged(path, "it is empty")),
        _ => Ok(()),
    }
}

/// Makes a file under another name first: an engine killed while it formats its file may leave one
/// that it cannot open.
fn create(
    dir: &Path,
    path: &Path,
    fill: impl FnOnce(File, &Path) -> Result<(), OpenError>,
) -> Result<(), OpenError> {
    let draft = path.with_extension("new");
    remove(&draft)?;
    let file = new_file(&draft)?;
    fill(file, &draft)?;
    sync(&draft)?;
    point("create.filled");
    write_format(dir)?;
    put(dir, &draft, path)
}

/// Gives a file that is complete and synced its name, and makes that durable.
pub(super) fn put(dir: &Path, draft: &Path, path: &Path) -> Result<(), OpenError> {
    std::fs::rename(draft, path).map_err(io_error(path))?;
    point("create.renamed");
    if bug(Bug::DirectoryNotSynced) {
        return Ok(());
    }
    sync(dir)
}

/// Writes down which format the store has.
pub(super) fn write_format(dir: &Path) -> Result<(), OpenError> {
    let (path, draft) = (dir.join(FORMAT_FILE), dir.join("journal.format.new"));
    let text = format!("{FORMAT}\n");
    if std::fs::read_to_string(&path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    remove(&draft)?;
    let mut file = new_file(&draft)?;
    io::Write::write_all(&mut file, text.as_bytes()).map_err(io_error(&draft))?;
    // `dingd journal check` may be run by root; the daemon has to read it all the same.
    let owner = std::fs::metadata(dir).map_err(io_error(dir))?;
    if owner.uid() != rustix::process::geteuid().as_raw() {
        let (uid, gid) = (Some(owner.uid()), Some(owner.gid()));
        std::os::unix::fs::chown(&draft, uid, gid).map_err(io_error(&draft))?;
    }
    sync(&draft)?;
    std::fs::rename(&draft, &path).map_err(io_error(&path))
}

/// Removes a file, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), OpenError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Makes an empty log.
pub(super) fn fill_log(file: &File, path: &Path) -> Result<(), OpenError> {
    Log::create(file, HALF_BYTES).map_err(io_error(path))
}

/// A file that is not there yet, for nobody else to read.
pub(super) fn new_file(path: &Path) -> Result<File, OpenError> {
    File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(io_error(path))
}

/// Makes a file, or what a directory lists, durable.
pub(super) fn sync(path: &Path) -> Result<(), OpenError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(io_error(path))
}
