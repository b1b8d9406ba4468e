//! Memory that is not what it seems.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::unistd::ftruncate;
use nvme_spec::log_page::LogPageId;
use nvme_spec::{Iova, Lba, Nsid, NvmOpcode, Status};
use vfio_user::Errno;
use vfio_user::client::ClientError;
use vfio_user::region::RegionIndex;
use vireo_tests::host::memory::{PAGE, memfd};
use vireo_tests::host::vfio_user::read_write;
use vireo_tests::host::{Buffer, Host, HostMemory, commands};

use crate::{MEMORY, SLOW, SLOW_MS, Stage};

/// Memory of a client's own beside its queues, at an address of its own.
fn extra(bytes: u64) -> HostMemory {
    HostMemory::new(Iova(0x90_0000_0000), bytes)
}

#[test]
fn truncated_memory_fails_that_controller_alone() {
    let stage = Stage::start();
    let mut host = stage.host();
    let memory = extra(1 << 20);
    host.transport.map(&memory, memory.whole()).unwrap();
    let write = commands::io(NvmOpcode::WRITE, MEMORY, Lba(0), 8).with_prps(memory.base(), Iova(0));
    assert!(host.io(0, write).status().is_success());
    ftruncate(memory.fd(), 0).unwrap();
    host.submit(0, write);
    host.wait("CSTS.CFS", |host| host.csts().cfs().then_some(()));
    stage.neighbour_goes_on();
    // Memory that is whole again is no way back: the mapping is gone for good.
    drop(host);
    stage.end();
}

#[test]
fn truncated_queues_fail_that_controller_alone() {
    let stage = Stage::start();
    let mut host = stage.host();
    ftruncate(host.memory.fd(), 0).unwrap();
    // The worker looks for commands in memory that is not there.
    let (doorbell, tail) = (host.queues[0].doorbell(), 5);
    vireo_tests::host::Transport::ring(&mut host.transport, doorbell, tail);
    host.wait("CSTS.CFS", |host| host.csts().cfs().then_some(()));
    stage.neighbour_goes_on();
    drop(host);
    stage.end();
}

#[test]
fn a_truncated_admin_queue_fails_that_controller_alone() {
    let stage = Stage::start();
    let mut host = stage.host();
    ftruncate(host.memory.fd(), 0).unwrap();
    vireo_tests::host::Transport::ring(&mut host.transport, 0, 7);
    host.wait("CSTS.CFS", |host| host.csts().cfs().then_some(()));
    stage.neighbour_goes_on();
    drop(host);
    stage.end();
}

#[test]
fn an_unmap_waits_for_what_touches_it_and_for_nothing_else() {
    let stage = Stage::start();
    let mut host = stage.host();
    let memory = extra(1 << 20);
    let (used, unused) =
        (memory.whole().part(0, 64 << 10), memory.whole().part(64 << 10, 64 << 10));
    host.transport.map(&memory, used).unwrap();
    host.transport.map(&memory, unused).unwrap();
    let read = commands::io(NvmOpcode::READ, SLOW, Lba(0), 8).with_prps(used.iova, Iova(0));
    let begun = Instant::now();
    host.submit(0, read);
    // The worker has it: a command behind it on the queue is done.
    let flush = commands::flush(MEMORY);
    let cid = host.submit(0, flush);
    assert_eq!(host.next_completion(0).cid, cid);

    host.transport.unmap(unused).unwrap();
    let early = begun.elapsed() < Duration::from_millis(SLOW_MS);
    assert!(!early || host.poll(0).is_none(), "the read is still in flight");
    stage.neighbour_goes_on();
    host.transport.unmap(used).unwrap();
    // The worker's clock is that of its last look at it, which on a busy machine was some time ago.
    let read_took = Duration::from_millis(SLOW_MS * 9 / 10);
    assert!(begun.elapsed() >= read_took, "the unmap waited for the read");
    assert!(host.poll(0).is_some(), "the read is complete before the unmap's reply");
    drop(host);
    stage.end();
}

#[test]
fn memory_is_gone_after_its_unmap() {
    let stage = Stage::start();
    let mut host = stage.host();
    let memory = extra(1 << 20);
    host.transport.map(&memory, memory.whole()).unwrap();
    let read = commands::io(NvmOpcode::READ, MEMORY, Lba(0), 8).with_prps(memory.base(), Iova(0));
    assert!(host.io(0, read).status().is_success());
    host.transport.unmap(memory.whole()).unwrap();
    assert_eq!(host.io(0, read).status().code(), Status::DATA_TRANSFER_ERROR);
    // Queues that are unmapped stop, and nothing is written there.
    let whole = host.memory.whole();
    host.transport.unmap(whole).unwrap();
    host.memory.fill(whole, 0xA5);
    vireo_tests::host::Transport::ring(&mut host.transport, 2, 9);
    vireo_tests::host::Transport::ring(&mut host.transport, 0, 9);
    stage.neighbour_goes_on();
    let bytes = host.memory.read(whole.iova, whole.len as usize);
    assert!(bytes.iter().all(|&byte| byte == 0xA5), "memory was written after its unmap");
    drop(host);
    stage.end();
}

#[test]
fn the_device_s_own_address_is_no_memory() {
    let stage = Stage::start();
    let mut host = stage.host();
    let bar = 0x8000_0000_u32;
    host.transport.client.region_write(RegionIndex::CONFIG, 0x10, &bar.to_le_bytes()).unwrap();
    for (opcode, at) in
        [(NvmOpcode::READ, bar + 0x1000), (NvmOpcode::WRITE, bar), (NvmOpcode::READ, bar + 0x3000)]
    {
        let command = commands::io(opcode, MEMORY, Lba(0), 1).with_prps(Iova(at.into()), Iova(0));
        assert_eq!(host.io(0, command).status().code(), Status::DATA_TRANSFER_ERROR);
    }
    drop(host);
    stage.end();
}

#[test]
fn access_follows_each_client_s_own_descriptor() {
    let stage = Stage::start();
    // The same memory object: from one client to read only, from the other to read and write.
    let memory = extra(1 << 20);
    let path = format!("/proc/self/fd/{}", memory.fd().as_raw_fd());
    let read_only: OwnedFd = File::open(path).unwrap().into();
    let iova = vfio_user::dma::Iova(memory.base().0);
    let read = commands::io(NvmOpcode::READ, MEMORY, Lba(0), 1).with_prps(memory.base(), Iova(0));
    let write = commands::io(NvmOpcode::WRITE, MEMORY, Lba(8), 1).with_prps(memory.base(), Iova(0));
    for _ in 0..2 {
        let mut host = stage.host();
        let map = Some((read_only.as_fd(), 0));
        host.transport.client.dma_map(iova, memory.len(), read_write(), map).unwrap();
        assert!(host.io(0, write).status().is_success(), "the device may read it");
        assert_eq!(host.io(0, read).status().code(), Status::DATA_TRANSFER_ERROR);
        drop(host);
        let mut host = stage.host();
        host.transport.map(&memory, memory.whole()).unwrap();
        assert!(host.io(0, read).status().is_success(), "the device may write it");
    }
    stage.end();
}

#[test]
fn files_and_giants_are_no_memory() {
    let stage = Stage::start();
    let mut host = stage.host();
    let mut map = |fd: OwnedFd, size: u64, what: &str| {
        let iova = vfio_user::dma::Iova(0xA0_0000_0000);
        let result = host.transport.client.dma_map(iova, size, read_write(), Some((fd.as_fd(), 0)));
        match result {
            Err(ClientError::Refused { source: Errno(1..), .. }) => {}
            other => panic!("{what}: {other:?}"),
        }
    };
    // Where a page fault waits for a disk, or for whoever serves the file system.
    let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    file.write_all(&[0; 8192]).unwrap();
    // Unless somebody builds in memory.
    if fstatfs(file.as_file()).unwrap().filesystem_type() != TMPFS_MAGIC {
        map(file.reopen().unwrap().into(), 4096, "a file on a disk");
    }
    map(File::open("/proc/self/cmdline").unwrap().into(), 4096, "a file of procfs");
    map(File::open("/dev/zero").unwrap().into(), 4096, "a device");
    map(memfd(1 << 60), 1 << 59, "an exabyte");
    map(memfd(4096), 8192, "less than is mapped");
    map(memfd(0), 4096, "nothing");
    let (pipe, _other) = nix::unistd::pipe().unwrap();
    map(pipe, 4096, "a pipe");
    drop(host);
    stage.end();
}

#[test]
fn memory_without_a_descriptor_is_there_and_fails() {
    let stage = Stage::start();
    let mut host = stage.host();
    let rom = vfio_user::dma::Iova(0xFFFC_0000);
    host.transport.client.dma_map(rom, 0x4_0000, read_write(), None).unwrap();
    let read = commands::io(NvmOpcode::READ, MEMORY, Lba(0), 1).with_prps(Iova(rom.0), Iova(0));
    assert_eq!(host.io(0, read).status().code(), Status::DATA_TRANSFER_ERROR);
    drop(host);
    stage.end();
}

#[test]
fn a_list_that_changes_under_the_walk_hits_nothing_else() {
    let stage = Stage::start();
    let mut host = stage.host();
    let data = host.memory.allocate(16 * PAGE);
    let bystander = host.memory.allocate(PAGE);
    host.memory.fill(bystander, 0xA5);
    host.write(MEMORY, Lba(0), &[0x11; 8 * 4096], 512).unwrap();
    let pages: Vec<Iova> = (1..8).map(|page| Iova(data.iova.0 + page * PAGE)).collect();
    let list = host.memory.prp_list(&pages);
    let read = commands::io(NvmOpcode::READ, MEMORY, Lba(0), 64).with_prps(data.iova, list);
    // Another thread of the guest flips an entry between memory and nonsense, and the command behind the doorbell too.
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    let fd = host.memory.fd().try_clone_to_owned().unwrap();
    let (entry, good) = (list.0 - host.memory.base().0 + 8, pages[1].0);
    let flipper = std::thread::spawn(move || {
        let policy = ipc::guest_memory::RegionPolicy::default();
        let region = ipc::guest_memory::Region::map(fd, 4096, &policy).unwrap();
        let mut flips = 0_u64;
        while !told.load(Ordering::Relaxed) {
            let bad = [!4095, 0xFFF, 0x8000_0000_0000, 0][flips as usize % 4];
            region.whole().store_u64(entry as usize, bad, Ordering::Relaxed);
            region.whole().store_u64(entry as usize, good, Ordering::Relaxed);
            flips += 1;
        }
    });
    let (mut succeeded, mut failed) = (0, 0);
    for _ in 0..2000 {
        let status = host.io(0, read).status();
        match status.code() {
            _ if status.is_success() => succeeded += 1,
            Status::DATA_TRANSFER_ERROR | Status::PRP_OFFSET_INVALID => failed += 1,
            other => panic!("{other}"),
        }
    }
    stop.store(true, Ordering::Relaxed);
    flipper.join().unwrap();
    assert!(succeeded > 0, "{succeeded} succeeded, {failed} failed");
    let untouched = host.memory.read(bystander.iova, PAGE as usize);
    assert!(untouched.iter().all(|&byte| byte == 0xA5), "memory of no command was written");
    stage.neighbour_goes_on();
    drop(host);
    stage.end();
}

#[test]
fn thousands_of_mappings_are_kept_and_found() {
    let stage = Stage::start();
    let mut host = stage.host();
    // One page each, as behind a guest's IOMMU; addresses in an order that no table likes.
    const PAGES: u64 = 20_000;
    let memory = extra(PAGES * PAGE);
    let scattered = |page: u64| Iova(0x90_0000_0000 + page.wrapping_mul(7919) % PAGES * 2 * PAGE);
    for page in 0..PAGES {
        let at = vfio_user::dma::Iova(scattered(page).0);
        let fd = Some((memory.fd(), page * PAGE));
        let posted = host.transport.client.post_dma_map(at, PAGE, read_write(), fd).unwrap();
        if page % 64 == 63 {
            host.transport.client.wait(posted).unwrap();
        }
    }
    for page in (0..PAGES).step_by(997) {
        host.write(MEMORY, Lba(0), &[page as u8; 4096], 512).unwrap();
        let read = commands::io(NvmOpcode::READ, MEMORY, Lba(0), 8);
        let read = read.with_prps(scattered(page), Iova(0));
        assert!(host.io(0, read).status().is_success(), "page {page}");
        let at = Buffer { iova: Iova(memory.base().0 + page * PAGE), len: PAGE };
        assert!(
            memory.read(at.iova, PAGE as usize) == vec![page as u8; PAGE as usize],
            "page {page}"
        );
    }
    drop(host);
    stage.end();
}

/// A file system of 64 KiB, for as long as this lives.
struct SmallFileSystem {
    holder: Child,
}

impl SmallFileSystem {
    /// Mounts one where nobody else sees it; `None` where that is not allowed.
    fn mount() -> Option<Self> {
        let script = "mount -t tmpfs -o size=64k tmpfs /mnt && echo mounted && exec sleep 120";
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]);
        let mut holder = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
        let mut line = String::new();
        BufReader::new(holder.stdout.take()?).read_line(&mut line).ok()?;
        let mounted = Self { holder };
        (line == "mounted\n").then_some(mounted)
    }

    /// A file on it, of so many bytes that are not there yet.
    fn file(&self, bytes: u64) -> Option<File> {
        let path = format!("/proc/{}/root/mnt/memory", self.holder.id());
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(path).ok()?;
        file.set_len(bytes).ok()?;
        Some(file)
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        self.holder.kill().ok();
        self.holder.wait().ok();
    }
}

#[test]
fn memory_of_a_full_file_system_fails_that_controller_alone() {
    let Some(small) = SmallFileSystem::mount() else {
        return eprintln!("skipped: no file system can be mounted here (unshare, tmpfs)");
    };
    let Some(file) = small.file(1 << 20) else {
        return eprintln!("skipped: the file system cannot be reached by way of /proc");
    };
    let stage = Stage::start();
    let mut host = stage.host();
    let iova = vfio_user::dma::Iova(0x90_0000_0000);
    let map = Some((file.as_fd(), 0));
    host.transport.client.dma_map(iova, 1 << 20, read_write(), map).unwrap();
    // More pages than there are: one of them is not to be had.
    let mut ended = 0;
    for part in 0..8_u64 {
        let at = Iova(iova.0 + part * (128 << 10));
        let read = commands::io(NvmOpcode::READ, MEMORY, Lba(0), 256);
        let pages: Vec<Iova> = (1..32).map(|page| Iova(at.0 + page * PAGE)).collect();
        let list = host.memory.prp_list(&pages);
        host.submit(0, read.with_prps(at, list));
        let bound = vireo_tests::wait::PATIENCE;
        let done = host.wait_for(bound, &mut |host| {
            if host.csts().cfs() { Some(false) } else { host.poll(0).map(|_| true) }
        });
        match done.expect("a completion, or CSTS.CFS") {
            true => ended += 1,
            false => break,
        }
    }
    assert!(ended < 8 && host.csts().cfs(), "memory that is not there was written");
    stage.neighbour_goes_on();
    drop(host);
    stage.end();
}

/// Another thread of the guest changes a command behind the doorbell, again and again.
fn flip(host: &Host, at: Iova, values: [u32; 2]) -> impl FnOnce() + use<> {
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    let fd = host.memory.fd().try_clone_to_owned().unwrap();
    let (bytes, offset) = (host.memory.len(), (at.0 - host.memory.base().0) as usize);
    let flipper = std::thread::spawn(move || {
        let policy = ipc::guest_memory::RegionPolicy::default();
        let region = ipc::guest_memory::Region::map(fd, bytes, &policy).unwrap();
        while !told.load(Ordering::Relaxed) {
            for value in values {
                region.whole().store_u32(offset, value, Ordering::Relaxed);
            }
        }
    });
    move || {
        stop.store(true, Ordering::Relaxed);
        flipper.join().unwrap();
    }
}

#[test]
fn a_command_that_changes_behind_the_doorbell_is_one_command_or_the_other() {
    let stage = Stage::start();
    let mut host = stage.host();
    let data = host.memory.allocate(PAGE);
    let bystander = host.memory.allocate(16 * PAGE);
    host.memory.fill(bystander, 0xA5);
    let untouched = |host: &Host| {
        let bytes = host.memory.read(bystander.iova, bystander.len as usize);
        assert!(bytes.iter().all(|&byte| byte == 0xA5), "memory of no command was written");
    };
    // The longer one has no second page.
    let either = |status: Status| {
        let refused = [Status::DATA_TRANSFER_ERROR, Status::PRP_OFFSET_INVALID];
        status.is_success() || refused.contains(&status.code())
    };
    // Entries of both queues are flipped in turn: 512 bytes or 128 KiB, into one page.
    let length_at = |queue: Buffer, slot: u64| Iova(queue.iova.0 + slot * 64);
    for slot in 0..8 {
        let log = commands::get_log_page(LogPageId::ERROR_INFORMATION, Nsid::BROADCAST, 0, 512);
        let long = commands::get_log_page(LogPageId::ERROR_INFORMATION, Nsid::BROADCAST, 0, 65_536);
        let tail = (u64::from(host.admin.tail) + slot) % u64::from(host.admin.entries);
        let at = Iova(length_at(host.admin.sq, tail).0 + 40);
        let stop = flip(&host, at, [log.cdw10, long.cdw10]);
        for _ in 0..host.admin.entries {
            let status = host.admin(log.with_prps(data.iova, Iova(0))).status();
            assert!(either(status), "{status}");
        }
        stop();
        untouched(&host);
    }
    for slot in 0..8 {
        let read = commands::io(NvmOpcode::READ, MEMORY, Lba(0), 1).with_prps(data.iova, Iova(0));
        let long = commands::io(NvmOpcode::READ, MEMORY, Lba(0), 256);
        let at = Iova(length_at(host.queues[0].sq, slot * 8).0 + 48);
        let stop = flip(&host, at, [read.cdw12, long.cdw12]);
        for _ in 0..2 * host.queues[0].entries {
            let status = host.io(0, read).status();
            assert!(either(status), "{status}");
        }
        stop();
        untouched(&host);
    }
    stage.neighbour_goes_on();
    drop(host);
    stage.end();
}
