//! The cache's file. The only file that names sled.
//!
//! sled 0.34 may lose what it acknowledged, and opens some damaged files without a word. That is fine
//! here: every value is sealed with an AEAD whose tag is its checksum, and whatever cannot be opened
//! is set aside and started afresh.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::delivery::random;
use crate::seal;
use crate::secret::Secret;

const PURPOSE: &str = "dingd cache, sealed tokens, version 1";
const SEGMENT_BYTES: usize = 2 << 20;
const CACHE_BYTES: u64 = 2 << 20;

/// A handle to the cache. Without a file behind it (it could not be opened even afresh) it forgets
/// everything, and the daemon works all the same.
#[derive(Debug, Clone)]
pub struct Store(Option<Arc<sled::Db>>);

impl Store {
    /// Opens `dir`; blocks. What is damaged is set aside as `<dir>.damaged`, the newest only.
    pub fn open(dir: &Path) -> Self {
        match try_open(dir) {
            Ok(db) => Self(Some(Arc::new(db))),
            Err(Unopened::Disk(error)) => {
                tracing::error!(
                    %error,
                    "the cache cannot be opened; tokens are fetched at every start: 检查 state_dir/cache 的权限与磁盘 / check the rights and the disk of state_dir/cache"
                );
                Self(None)
            }
            Err(Unopened::Damaged(error)) => {
                tracing::warn!(%error, "the cache is damaged; starting an empty one");
                let fresh = set_aside(dir)
                    .map_err(Unopened::Disk)
                    .and_then(|()| try_open(dir));
                if let Err(error) = &fresh {
                    tracing::error!(
                        ?error,
                        "cannot make a cache; tokens are fetched at every start"
                    );
                }
                Self(fresh.ok().map(Arc::new))
            }
        }
    }

    /// A store that keeps nothing.
    pub fn none() -> Self {
        Self(None)
    }

    /// Keeps `value` under `name`, sealed with a key made of `secret`.
    pub async fn put(&self, name: String, secret: Secret, value: Vec<u8>) {
        let Some(db) = self.0.clone() else { return };
        let put = move || {
            let sealed = seal::seal(secret.expose(), PURPOSE, &name, random::bytes(), &value);
            db.insert(name, sealed)
                .and_then(|_| db.flush())
                .map_err(|e| e.to_string())
        };
        match tokio::task::spawn_blocking(put).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot write the cache"),
            Err(error) => tracing::error!(%error, "the cache panicked"),
        }
    }

    /// What is kept under `name`, if it is whole and was sealed with the same secret. What is not goes.
    pub async fn get(&self, name: String, secret: Secret) -> Option<Vec<u8>> {
        let db = self.0.clone()?;
        let get = move || {
            let bytes = db.get(&name).ok()??;
            let value = seal::open(secret.expose(), PURPOSE, &name, &bytes);
            if value.is_none() {
                tracing::info!(
                    name,
                    "what is cached was sealed with another secret or is damaged; it is fetched anew"
                );
                drop(db.remove(&name));
            }
            value
        };
        tokio::task::spawn_blocking(get).await.ok().flatten()
    }
}

/// Why a cache could not be opened.
#[derive(Debug)]
enum Unopened {
    /// The disk or its rights: the cache may be as good as ever.
    Disk(io::Error),
    Damaged(String),
}

fn try_open(dir: &Path) -> Result<sled::Db, Unopened> {
    remove_unfinished_snapshots(dir).map_err(Unopened::Disk)?;
    let config = sled::Config::new()
        .path(dir)
        .mode(sled::Mode::LowSpace)
        .segment_size(SEGMENT_BYTES)
        .cache_capacity(CACHE_BYTES)
        .flush_every_ms(None);
    // Some damage makes it panic instead of failing.
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| config.open())) {
        Ok(Err(sled::Error::Io(error))) if is_of_the_disk(&error) => Err(Unopened::Disk(error)),
        Ok(opened) => opened.map_err(|e| Unopened::Damaged(e.to_string())),
        Err(_) => Err(Unopened::Damaged("opening it panicked".to_owned())),
    }
}

/// sled reports damage as errors of input and output as well.
fn is_of_the_disk(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
    )
}

/// A kill during the start leaves a half-written snapshot, with which every later open fails.
fn remove_unfinished_snapshots(dir: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn set_aside(dir: &Path) -> io::Result<()> {
    let mut name = dir.as_os_str().to_owned();
    name.push(".damaged");
    let aside = PathBuf::from(name);
    match std::fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => std::fs::rename(dir, &aside),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(text)
    }

    #[tokio::test]
    async fn a_value_comes_back_only_with_the_secret_that_sealed_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("cache"));
        store
            .put("token/a".into(), secret("s1"), b"hello".to_vec())
            .await;
        assert_eq!(
            store.get("token/a".into(), secret("s1")).await.as_deref(),
            Some(&b"hello"[..])
        );
        assert_eq!(store.get("token/a".into(), secret("s2")).await, None);
        assert_eq!(store.get("token/b".into(), secret("s1")).await, None);
    }

    #[test]
    fn what_the_disk_refuses_is_no_damage() {
        use io::ErrorKind::*;
        for (kind, of_the_disk) in [
            (StorageFull, true),
            (ReadOnlyFilesystem, true),
            (PermissionDenied, true),
            (InvalidData, false),
            (UnexpectedEof, false),
        ] {
            assert_eq!(is_of_the_disk(&kind.into()), of_the_disk, "{kind}");
        }
    }

    #[tokio::test]
    async fn the_file_alone_gives_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path());
        store
            .put("t".into(), secret("s1"), b"canary-token-value".to_vec())
            .await;
        drop(store);
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap_or_default();
            assert!(!bytes.windows(12).any(|window| window == b"canary-token"));
        }
    }

    #[tokio::test]
    async fn a_damaged_cache_is_set_aside_and_started_afresh() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache");
        drop(Store::open(&path));
        for entry in std::fs::read_dir(&path).unwrap() {
            let file = entry.unwrap().path();
            if file.is_file() {
                std::fs::write(&file, b"not a database").unwrap();
            }
        }
        let store = Store::open(&path);
        store.put("t".into(), secret("s"), b"v".to_vec()).await;
        assert!(store.get("t".into(), secret("s")).await.is_some());
    }
}
