//! Cores: which there are for this process, and pinning a thread to one.

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::collections::BTreeSet;

/// Why a thread could not be pinned.
#[derive(Debug, thiserror::Error)]
#[error("pin thread to core {core}")]
pub struct PinError {
    core: u32,
    #[source]
    source: Errno,
}

/// The cores that the calling thread may run on.
pub fn allowed_cores() -> Result<BTreeSet<u32>, Errno> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count())
        .filter(|&core| set.is_set(core) == Ok(true))
        .map(|c| c as u32)
        .collect())
}

/// Pins the calling thread.
///
/// # Errors
/// The core is not there for this process.
pub fn pin(core: u32) -> Result<(), PinError> {
    let failed = |source| PinError { core, source };
    let mut set = CpuSet::new();
    set.set(core as usize).map_err(failed)?;
    sched_setaffinity(Pid::from_raw(0), &set).map_err(failed)
}

/// Lets the calling thread run on the given cores: what a control thread does that a pinned one has started.
pub fn allow(cores: &BTreeSet<u32>) -> Result<(), Errno> {
    let mut set = CpuSet::new();
    for &core in cores {
        set.set(core as usize)?;
    }
    sched_setaffinity(Pid::from_raw(0), &set)
}

/// `0-3, 6`.
pub fn format_cores(cores: &BTreeSet<u32>) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &core in cores {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == core => *last = core,
            _ => runs.push((core, core)),
        }
    }
    let run = |&(first, last): &(u32, u32)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    runs.iter().map(run).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_runs_on_its_core_alone() {
        std::thread::spawn(|| {
            let before = allowed_cores().unwrap();
            let core = *before.last().unwrap();
            pin(core).unwrap();
            assert_eq!(allowed_cores().unwrap(), BTreeSet::from([core]));
            allow(&before).unwrap();
            assert_eq!(allowed_cores().unwrap(), before);
            assert!(pin(1023).is_err());
            assert!(pin(u32::MAX).is_err());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn cores_are_written_as_runs() {
        assert_eq!(format_cores(&BTreeSet::from([0, 1, 2, 5])), "0-2, 5");
        assert_eq!(format_cores(&BTreeSet::new()), "");
    }
}
