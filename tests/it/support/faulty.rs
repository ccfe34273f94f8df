//! A machine whose disk fails on demand: at the k-th call it is killed, loses its power, reports an
//! error or is full. It remembers what was synced, so that after a power cut only that is certain.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use dingd::journal::disk::Medium;

use super::Dice;

/// Disks lose what was not synced in units of this.
const SECTOR: usize = 512;

/// What goes wrong, counted in calls that change something: write, resize, allocate, sync.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Plan {
    #[default]
    Nothing,
    /// The end comes at this call, before or after it took effect.
    Dead { at: u64, after: bool },
    /// This call fails with EIO, later ones do not.
    Broken { at: u64 },
    /// This call that reads fails with EIO, later ones do not.
    Unreadable { at: u64 },
    /// There is no space for this many calls, but for syncs. Some file systems need space even to
    /// write over what is there.
    Full { from: u64, calls: u64 },
}

/// Two files on one disk.
#[derive(Debug, Clone)]
pub struct Machine(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    files: [Content; 2],
    calls: u64,
    reads: u64,
    plan: Plan,
    dead: bool,
}

#[derive(Debug, Clone, Default)]
struct Content {
    synced: Vec<u8>,
    now: Vec<u8>,
    since: Vec<Change>,
}

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Resize(usize),
}

#[derive(Debug)]
struct Handle(Machine, usize);

impl Machine {
    pub fn new() -> Self {
        Self(Arc::default())
    }

    pub fn plan(&self, plan: Plan) {
        let mut state = self.state();
        (state.calls, state.reads, state.plan) = (0, 0, plan);
    }

    /// Calls since the plan was made, of the kind that it is about.
    pub fn calls(&self) -> u64 {
        let state = self.state();
        match state.plan {
            Plan::Unreadable { .. } => state.reads,
            _ => state.calls,
        }
    }

    pub fn file(&self, index: usize) -> Box<dyn Medium> {
        Box::new(Handle(self.clone(), index))
    }

    pub fn bytes(&self, index: usize) -> Vec<u8> {
        self.state().files[index].now.clone()
    }

    /// After the process was killed: the operating system has what was written.
    pub fn restart(&self) -> Self {
        Self::holding(self.stop().map(|content| content.now))
    }

    /// Nothing changes any more; threads that still run get errors.
    fn stop(&self) -> [Content; 2] {
        let mut state = self.state();
        state.dead = true;
        state.files.clone()
    }

    /// After the power was cut: each sector written since the last sync is there or not.
    pub fn power_up(&self, dice: &mut Dice) -> Self {
        Self::holding(self.stop().map(|content| {
            let mut bytes = content.synced;
            for change in &content.since {
                match change {
                    Change::Resize(len) if dice.below(2) == 0 => bytes.resize(*len, 0),
                    Change::Resize(_) => {}
                    Change::Write(at, data) => lose_some(&mut bytes, *at, data, dice),
                }
            }
            bytes
        }))
    }

    /// A machine with these files, all of it synced.
    pub fn holding(files: [Vec<u8>; 2]) -> Self {
        let files = files.map(|bytes| Content {
            synced: bytes.clone(),
            now: bytes,
            since: vec![],
        });
        Self(Arc::new(Mutex::new(State {
            files,
            ..State::default()
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl State {
    /// One call: `effect` happens to the file unless the plan is against it.
    fn call(
        &mut self,
        index: usize,
        takes_space: bool,
        effect: impl FnOnce(&mut Content),
    ) -> io::Result<()> {
        let off = || Err(io::Error::other("the machine is off"));
        if self.dead {
            return off();
        }
        self.calls += 1;
        match self.plan {
            Plan::Dead { at, after } if self.calls == at => {
                self.dead = true;
                if after {
                    effect(&mut self.files[index]);
                }
                return off();
            }
            Plan::Broken { at } if self.calls == at => return Err(io::Error::other("EIO")),
            Plan::Full { from, calls }
                if takes_space && (from..from + calls).contains(&self.calls) =>
            {
                return Err(io::ErrorKind::StorageFull.into());
            }
            _ => {}
        }
        effect(&mut self.files[index]);
        Ok(())
    }
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Resize(len) => bytes.resize(*len, 0),
        Change::Write(at, data) => {
            let end = at + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*at..end].copy_from_slice(data);
        }
    }
}

/// A write survives whole, not at all, or sector by sector.
fn lose_some(bytes: &mut Vec<u8>, at: usize, data: &[u8], dice: &mut Dice) {
    let fate = dice.below(4);
    for (n, sector) in data.chunks(SECTOR).enumerate() {
        let survives = match fate {
            0 => true,
            1 => false,
            _ => dice.below(2) == 0,
        };
        if survives {
            apply(bytes, &Change::Write(at + n * SECTOR, sector.to_vec()));
        }
    }
}

impl Handle {
    fn change(&self, takes_space: bool, change: Change) -> io::Result<()> {
        self.0.state().call(self.1, takes_space, |content| {
            apply(&mut content.now, &change);
            content.since.push(change);
        })
    }

    fn now(&self) -> u64 {
        self.0.state().files[self.1].now.len() as u64
    }
}

impl Medium for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.now())
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.now())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.0.state();
        state.reads += 1;
        if matches!(state.plan, Plan::Unreadable { at } if at == state.reads) {
            return Err(io::Error::other("EIO"));
        }
        let start = usize::try_from(offset).unwrap();
        let bytes = state.files[self.1].now.get(start..start + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        self.change(true, Change::Write(at, data.to_vec()))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(
            len > self.now(),
            Change::Resize(usize::try_from(len).unwrap()),
        )
    }

    fn allocate(&self, _: u64, _: u64) -> io::Result<()> {
        let mut state = self.0.state();
        if matches!(state.plan, Plan::Broken { .. }) {
            // Who cannot take room ahead goes on without; the error is for a call that matters.
            return Ok(());
        }
        state.call(self.1, true, |_| ())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.state().call(self.1, false, |content| {
            for change in std::mem::take(&mut content.since) {
                apply(&mut content.synced, &change);
            }
        })
    }
}
