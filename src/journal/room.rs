//! Whether the disk has room for new work. Below the floor new work is refused with a reason, while
//! results of old work are still written.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::disk::{Condition, Stuck};

/// The floor is the smaller of this and 5 % of the file system (reliability contract §6).
const FLOOR_BYTES: u64 = 256 << 20;

fn floor_bytes(total_bytes: u64) -> u64 {
    FLOOR_BYTES.min(total_bytes / 20)
}

/// Shared by the doors; measured by a task.
#[derive(Debug, Clone)]
pub struct Room(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    condition: Condition,
    enough: AtomicBool,
    writable: AtomicBool,
    free_bytes: AtomicU64,
    total_bytes: AtomicU64,
}

impl Room {
    /// The room for what lies in `dir`, beside what the journal itself met with.
    pub fn new(dir: PathBuf, condition: Condition) -> Self {
        let yes = || AtomicBool::new(true);
        let inner = Inner {
            dir,
            condition,
            enough: yes(),
            writable: yes(),
            free_bytes: AtomicU64::new(0),
            total_bytes: AtomicU64::new(0),
        };
        let room = Self(Arc::new(inner));
        room.measure();
        room
    }

    /// Whether new work may be taken.
    pub fn has_room(&self) -> bool {
        self.0.enough.load(Ordering::Relaxed)
            && self.0.condition.has_room_ahead()
            && self.0.condition.stuck().is_none()
    }

    /// Whether `bytes` more leave as much free as new work wants.
    pub fn has_room_for(&self, bytes: u64) -> bool {
        self.measure();
        self.free_bytes() >= floor_bytes(self.total_bytes()).saturating_add(bytes)
    }

    /// Whether the file system takes writes at all.
    pub fn is_writable(&self) -> bool {
        self.0.writable.load(Ordering::Relaxed) && self.0.condition.stuck() != Some(Stuck::ReadOnly)
    }

    /// Free bytes at the last measurement.
    pub fn free_bytes(&self) -> u64 {
        self.0.free_bytes.load(Ordering::Relaxed)
    }

    /// Size of the file system at the last measurement.
    pub fn total_bytes(&self) -> u64 {
        self.0.total_bytes.load(Ordering::Relaxed)
    }

    /// Measures; a system call, quick enough for anywhere.
    pub fn measure(&self) {
        match rustix::fs::statvfs(&self.0.dir) {
            Ok(stat) => {
                let free = stat.f_bavail.saturating_mul(stat.f_frsize);
                let total = stat.f_blocks.saturating_mul(stat.f_frsize);
                let writable = !stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY);
                self.0.writable.store(writable, Ordering::Relaxed);
                self.0.free_bytes.store(free, Ordering::Relaxed);
                self.0.total_bytes.store(total, Ordering::Relaxed);
                let enough = writable && free >= floor_bytes(total);
                if self.0.enough.swap(enough, Ordering::Relaxed) != enough {
                    tracing::warn!(
                        enough,
                        free_bytes = free,
                        writable,
                        "room on the journal's disk changed"
                    );
                }
            }
            Err(error) => tracing::warn!(%error, "cannot measure the journal's disk"),
        }
    }
}
