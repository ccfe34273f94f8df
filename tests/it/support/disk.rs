//! A disk in memory. It knows what was synced: a power cut keeps that, and of the rest whatever chance
//! lets through, torn at the size of a sector.

use std::io;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use dingd::journal::disk::Medium;

const SECTOR_BYTES: usize = 512;

/// Of all disks of one machine. After the cut nothing works any more.
#[derive(Debug, Clone, Default)]
pub struct Power(Arc<AtomicI64>);

impl Power {
    /// Off after this many further writes and syncs; 0 is now.
    pub fn cut_after(&self, operations: u32) {
        self.0.store(i64::from(operations) + 1, Ordering::Relaxed);
        if operations == 0 {
            self.0.store(-1, Ordering::Relaxed);
        }
    }

    /// It will not go after all, if it has not yet.
    pub fn restore(&self) {
        if !self.is_off() {
            self.0.store(0, Ordering::Relaxed);
        }
    }

    pub fn is_off(&self) -> bool {
        self.0.load(Ordering::Relaxed) < 0
    }

    /// 0 is for ever.
    fn use_up(&self) -> io::Result<()> {
        let left = self.0.load(Ordering::Relaxed);
        if left > 0 {
            let next = if left == 1 { -1 } else { left - 1 };
            self.0.store(next, Ordering::Relaxed);
        }
        self.check()
    }

    fn check(&self) -> io::Result<()> {
        if self.is_off() {
            Err(io::Error::other("the power is off"))
        } else {
            Ok(())
        }
    }
}

/// A clone is the same disk.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk {
    power: Power,
    platter: Arc<Mutex<Platter>>,
}

#[derive(Debug, Default)]
struct Platter {
    /// What a reader sees.
    seen: Vec<u8>,
    synced: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl MemoryDisk {
    pub fn on(power: &Power) -> Self {
        Self {
            power: power.clone(),
            ..Self::default()
        }
    }

    /// What the next start finds, with new power. `chance` gives a number below its argument.
    pub fn after_cut(&self, power: &Power, chance: &mut dyn FnMut(usize) -> usize) -> Self {
        let mut platter = self.platter.lock().unwrap();
        let mut kept = std::mem::take(&mut platter.synced);
        for change in std::mem::take(&mut platter.unsynced) {
            match chance(3) {
                0 => {}
                1 => change.apply(&mut kept),
                _ => change.apply_torn(&mut kept, chance),
            }
        }
        let survivor = Platter {
            seen: kept.clone(),
            synced: kept,
            unsynced: vec![],
        };
        Self {
            power: power.clone(),
            platter: Arc::new(Mutex::new(survivor)),
        }
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Length(length) => bytes.resize(*length, 0),
            Self::Write(at, data) => write(bytes, *at, data),
        }
    }

    fn apply_torn(&self, bytes: &mut Vec<u8>, chance: &mut dyn FnMut(usize) -> usize) {
        let Self::Write(at, data) = self else {
            return self.apply(bytes);
        };
        let mut done = 0;
        for sector in data.chunks(SECTOR_BYTES) {
            if chance(2) == 0 {
                write(bytes, at + done, sector);
            }
            done += sector.len();
        }
    }
}

fn write(bytes: &mut Vec<u8>, at: usize, data: &[u8]) {
    let end = at + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[at..end].copy_from_slice(data);
}

impl Medium for MemoryDisk {
    fn len(&self) -> io::Result<u64> {
        self.power.check()?;
        Ok(self.platter.lock().unwrap().seen.len() as u64)
    }

    fn allocated(&self) -> io::Result<u64> {
        self.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.power.check()?;
        let platter = self.platter.lock().unwrap();
        let from = usize::try_from(offset).unwrap();
        let bytes = platter.seen.get(from..from + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.power.use_up()?;
        let change = Change::Write(usize::try_from(offset).unwrap(), data.to_vec());
        self.change(change);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.power.use_up()?;
        self.change(Change::Length(usize::try_from(len).unwrap()));
        Ok(())
    }

    fn allocate(&self, _: u64, _: u64) -> io::Result<()> {
        self.power.check()
    }

    fn sync(&self) -> io::Result<()> {
        self.power.use_up()?;
        let mut platter = self.platter.lock().unwrap();
        let Platter {
            synced, unsynced, ..
        } = &mut *platter;
        for change in unsynced.drain(..) {
            change.apply(synced);
        }
        Ok(())
    }
}

impl MemoryDisk {
    fn change(&self, change: Change) {
        let mut platter = self.platter.lock().unwrap();
        change.apply(&mut platter.seen);
        platter.unsynced.push(change);
    }
}

#[test]
fn a_cut_keeps_what_was_synced_and_nothing_works_after_it() {
    let power = Power::default();
    let disk = MemoryDisk::on(&power);
    disk.write(0, b"kept").unwrap();
    disk.sync().unwrap();
    power.cut_after(1);
    disk.write(0, b"lost").unwrap();
    assert!(disk.sync().is_err() && disk.len().is_err());
    let next = disk.after_cut(&Power::default(), &mut |_| 0);
    let mut bytes = [0; 4];
    next.read(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"kept");
}
