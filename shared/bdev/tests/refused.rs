//! A kernel that refuses io_uring to this process, as the seccomp filters of containers do.

mod rig;

use bdev::channel::{AnyChannel, Channel};
use bdev::file::{FileDevice, FileOptions};
use bdev::request::{Op, Request};
use nix::errno::Errno;
use rig::{Rig, range};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use std::path::Path;

const SIZE: u64 = 1 << 20;

/// From here on this thread, and those that it starts, get `errno` from io_uring_setup.
fn refuse(errno: Errno) {
    let rules = [(nix::libc::SYS_io_uring_setup, Vec::new())].into();
    let refused = SeccompAction::Errno(errno as u32);
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, arch).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

fn options(path: &Path) -> FileOptions {
    FileOptions { size: SIZE, create: true, ..FileOptions::new(path) }
}

/// In a thread of its own: a filter cannot be taken off.
fn with_refusal(errno: Errno, test: impl FnOnce(&Path) + Send) {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = directory.path().join("disk");
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            refuse(errno);
            test(&path);
        });
        thread.join().unwrap();
    });
}

#[test]
fn threads_serve_a_file_where_io_uring_is_refused() {
    for errno in [Errno::EPERM, Errno::ENOSYS] {
        with_refusal(errno, |path| {
            let device = FileDevice::open(&options(path)).unwrap();
            assert_eq!(device.refusal(), Some(errno));
            let mut rig = Rig::over(AnyChannel::File(Box::new(device)), true);
            rig.write(4096, &[7; 8192]).unwrap();
            rig.run(&Request::new(Op::Flush, 0, 0, &[], 3)).unwrap();
            assert_eq!(rig.read(0, 16384)[4096..12288], [7; 8192]);
            rig.run(&Request::new(Op::Deallocate, 4096, 4096, &[], 4)).unwrap();
            assert_eq!(rig.read(4096, 8192), [vec![0; 4096], vec![7; 4096]].concat());
            // Its lock is given up with it.
            drop(rig);
            FileDevice::open(&options(path)).unwrap();
        });
    }
}

#[test]
fn any_other_failure_of_io_uring_is_told() {
    with_refusal(Errno::EMFILE, |path| {
        let error = FileDevice::open(&options(path)).err().unwrap();
        assert!(error.to_string().contains("io_uring"), "{error}");
    });
}

#[test]
fn nothing_is_refused_where_nothing_refuses() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let options = FileOptions { threads: true, ..options(&directory.path().join("disk")) };
    assert_eq!(FileDevice::open(&options).unwrap().refusal(), None);
}

/// More at a time than there are threads, and each ends once; whoever sleeps on the device's event is woken.
#[test]
fn threads_end_every_request_once_and_wake_whoever_sleeps() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let options = FileOptions { threads: true, ..options(&directory.path().join("disk")) };
    let mut rig = Rig::open(&options, false);
    for round in 0..20 {
        let ranges = range(0, 4096);
        for tag in 0..200_u32 {
            let op = if tag % 2 == 0 { Op::Read } else { Op::Write };
            let offset = u64::from(tag) * 4096;
            let submitted = rig.submit(&Request::new(op, offset, 4096, &ranges, tag));
            assert_eq!(submitted, bdev::channel::Submitted::Pending, "{round}");
        }
        let mut told = Vec::new();
        while told.len() < 200 {
            let event = rig.device.event().expect("an event");
            let mut fds = [nix::poll::PollFd::new(event, nix::poll::PollFlags::POLLIN)];
            assert_eq!(nix::poll::poll(&mut fds, 20_000_u16), Ok(1), "nobody wakes us");
            told.extend(rig.turn(0));
        }
        told.sort_unstable_by_key(|&(tag, _)| tag);
        let all: Vec<_> = (0..200).map(|tag| (tag, Ok(()))).collect();
        assert_eq!(told, all, "{round}");
        let event = rig.device.event().expect("an event");
        let mut fds = [nix::poll::PollFd::new(event, nix::poll::PollFlags::POLLIN)];
        assert_eq!(nix::poll::poll(&mut fds, 0_u16), Ok(0), "awake for nothing");
    }
}
