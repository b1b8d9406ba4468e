//! Faults that really happen.

use ipc::guest_memory::{Access, MemRange, Region, RegionId, RegionPolicy, RegionTable};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, ftruncate};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

fn shared(size: i64, flags: MFdFlags) -> Option<(OwnedFd, Arc<Region>)> {
    let fd = memfd_create(c"guest", flags | MFdFlags::MFD_CLOEXEC).ok()?;
    ftruncate(&fd, size).ok()?;
    let region = Region::map(fd.try_clone().ok()?, 1, &RegionPolicy::default()).ok()?;
    Some((fd, region))
}

fn memfd(size: i64) -> (OwnedFd, Arc<Region>) {
    shared(size, MFdFlags::empty()).unwrap()
}

#[test]
fn truncated_region_reads_zeroes_and_is_marked_and_no_other_is() {
    let ((client, lost), (_other_client, kept)) = (memfd(1 << 20), memfd(1 << 20));
    lost.whole().fill(1);
    kept.whole().fill(2);
    let mut table = RegionTable::new();
    table.insert(RegionId(3), Arc::clone(&lost)).unwrap();
    let mut healthy = RegionTable::new();
    healthy.insert(RegionId(3), Arc::clone(&kept)).unwrap();
    assert!(!table.failed() && !lost.failed());
    ftruncate(&client, 4096).unwrap();
    // What is left of the file is still there, until the rest is touched.
    assert_eq!(lost.whole().load_u32(0, Ordering::Relaxed), Some(0x0101_0101));
    assert!(!lost.failed());
    let range = MemRange { region: RegionId(3), len: 8192, offset: 0x8000 };
    let slice = table.host(range, Access::READ_WRITE).unwrap();
    let mut bytes = [9; 8192];
    assert_eq!(slice.copy_to(&mut bytes), 8192);
    assert_eq!(bytes, [0; 8192]);
    assert!(table.failed() && lost.failed());
    // The process goes on: writes and atomics go into memory that nobody else sees.
    slice.fill(7);
    assert!(slice.compare(&[7; 8192]));
    assert_eq!(lost.whole().load_u32(0, Ordering::Relaxed), Some(0));
    assert!(!healthy.failed() && !kept.failed());
    assert_eq!(kept.whole().load_u32(0x8000, Ordering::Relaxed), Some(0x0202_0202));
    // Another region in its place starts without a mark.
    drop(table);
    drop(lost);
    assert!(!memfd(4096).1.failed());
}

#[test]
fn threads_that_fault_at_once_all_go_on() {
    let (client, region) = memfd(16 << 20);
    region.whole().fill(1);
    ftruncate(&client, 0).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let region = &region;
            scope.spawn(move || {
                for page in 0..256 {
                    let at = thread * (4 << 20) + page * 16384;
                    assert!(region.whole().store_u32(at, 5, Ordering::Relaxed));
                }
            });
        }
    });
    assert!(region.failed());
}

#[test]
fn read_only_region_that_is_truncated_fails_alone() {
    let (client, _) = memfd(1 << 20);
    let path = format!("/proc/self/fd/{}", client.as_raw_fd());
    let weak = std::fs::File::open(path).unwrap();
    let region = Region::map(weak.into(), 1, &RegionPolicy::default()).unwrap();
    ftruncate(&client, 0).unwrap();
    assert_eq!(region.whole().load_u32(4096, Ordering::Relaxed), Some(0));
    assert!(region.failed());
}

#[test]
fn huge_page_region_is_replaced_whole() {
    const SIZE: i64 = 4 << 20;
    // A machine that has reserved no huge pages grants none; then there is nothing to see.
    let Some((client, region)) = shared(SIZE, MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB)
    else {
        eprintln!("no huge pages on this machine");
        return;
    };
    // Without reserved pages the first touch already is a fault that is caught.
    let first = region.whole().load_u32(0, Ordering::Relaxed);
    assert_eq!(first, Some(0));
    ftruncate(&client, 0).unwrap();
    assert_eq!(region.whole().load_u32(SIZE as usize - 4, Ordering::Relaxed), Some(0));
    assert!(region.failed());
    region.whole().fill(3);
}

/// Runs `act` in a child process and returns the signal that ended it.
fn signal_of(act: impl FnOnce()) -> Option<Signal> {
    // SAFETY: the child calls only what is safe after a fork of a process with threads: mmap and friends, and _exit.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            // SAFETY: no core file; ends the child without running anything of the test harness.
            unsafe {
                let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
                libc::setrlimit(libc::RLIMIT_CORE, &none);
                act();
                libc::_exit(0)
            }
        }
        ForkResult::Parent { child } => match waitpid(child, None).unwrap() {
            WaitStatus::Signaled(_, signal, _) => Some(signal),
            _ => None,
        },
    }
}

#[test]
fn fault_elsewhere_keeps_the_default_action() {
    ipc::sigbus::install().unwrap();
    let (client, guarded) = memfd(8192);
    // Mapped, but nobody guards it.
    // SAFETY: a fresh mapping, used only here; the file shrinks on purpose.
    let stray = unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let fd = client.as_raw_fd();
        libc::mmap(std::ptr::null_mut(), 8192, protection, libc::MAP_SHARED, fd, 0)
    };
    assert_ne!(stray, libc::MAP_FAILED);
    assert_eq!(signal_of(|| {}), None);
    ftruncate(&client, 0).unwrap();
    // SAFETY: the mapping exists; that reading it faults is the point.
    let signal = signal_of(|| unsafe {
        stray.cast::<u32>().read_volatile();
    });
    assert_eq!(signal, Some(Signal::SIGBUS));
    // Sent by somebody: no fault, no address.
    // SAFETY: raises a signal in the child.
    let signal = signal_of(|| unsafe {
        libc::raise(libc::SIGBUS);
    });
    assert_eq!(signal, Some(Signal::SIGBUS));
    assert!(!guarded.failed());
    // SAFETY: mapped above.
    unsafe { libc::munmap(stray, 8192) };
}
