//! What is read off the machine: a process's memory and CPU, the disk's fdatasync; percentiles.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::time::Instant;

/// Resident memory of a process.
pub(crate) fn resident_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok())
        .map_or(f64::NAN, |kib| kib / 1_024.0)
}

/// CPU time of all living threads of a process, in microseconds.
pub(crate) fn cpu_us(pid: u32) -> f64 {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return f64::NAN;
    };
    tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|line| line.split(' ').next()?.parse::<f64>().ok())
        .map(|ns| ns / 1e3)
        .sum()
}

/// Times of single fdatasyncs of 4 KiB, on the disk that the build lies on.
#[derive(Debug, Default)]
pub(crate) struct Syncs {
    /// Written over what is there: nothing but data.
    pub(crate) in_place_us: Vec<u32>,
    /// Written at the end, as a log is: the file's new size as well.
    pub(crate) appended_us: Vec<u32>,
}

impl Syncs {
    /// Takes `n` more of each.
    pub(crate) fn measure(&mut self, n: u64) -> io::Result<()> {
        const BLOCK: [u8; 4_096] = [7; 4_096];
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let file = File::create(dir.path().join("blocks"))?;
        for block in 0..n {
            file.write_all_at(&BLOCK, block * 4_096)?;
            let started = Instant::now();
            file.sync_data()?;
            self.appended_us.push(micros(started));
        }
        for block in 0..n {
            // Not one after the other: the disk gets them scattered too.
            file.write_all_at(&BLOCK, block * 7 % n * 4_096)?;
            let started = Instant::now();
            file.sync_data()?;
            self.in_place_us.push(micros(started));
        }
        Ok(())
    }
}

/// Microseconds since `started`.
pub(crate) fn micros(started: Instant) -> u32 {
    u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX)
}

/// The value below which `percent` of them lie.
pub(crate) fn percentile(values: &mut [u32], percent: f64) -> f64 {
    values.sort_unstable();
    let last = f64::from(u32::try_from(values.len().saturating_sub(1)).unwrap_or(u32::MAX));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index within the list"
    )]
    let at = (last * percent / 100.0).round() as usize;
    values.get(at).map_or(f64::NAN, |value| f64::from(*value))
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
