//! Memory pages larger than 4 KiB (CC.MPS), and guest memory of huge pages: what no guest of this machine can be asked for.

use std::fs;
use std::os::fd::OwnedFd;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use nvme_spec::{Iova, Lba, NvmOpcode};
use vireo_tests::host::driver::MEMORY_BASE;
use vireo_tests::host::{Attach, Host, HostMemory, VfioUser, commands};
use vireo_tests::target::Target;

use crate::{ENDPOINTS, MEMORY, RINGED, pattern, start};

/// Bytes of a huge page.
const HUGE: u64 = 2 << 20;
/// Bytes of huge guest memory.
const HUGE_MEMORY: u64 = 8 * HUGE;
/// How many huge pages there are, and are to be.
const HUGE_PAGES: &str = "/proc/sys/vm/nr_hugepages";

#[track_caller]
fn attach(target: &Target, endpoint: &str, mps: u8) -> Host {
    let mut host = Host::attach(target.socket(endpoint), &Attach::default());
    assert!(host.cap().mpsmax() >= mps);
    host.use_pages(mps);
    host.enable();
    if endpoint == "shadow" {
        host.use_shadow_doorbells();
    }
    host.create_queues(1, 64);
    host
}

/// Writes scattered pages, and reads them back to others. The data begins `offset` bytes into its first page, the list
/// of its other pages `skipped` entries before the end of a page, if it is not to begin with one.
#[track_caller]
fn round_trip(host: &mut Host, blocks: u32, offset: u64, skipped: Option<u64>) {
    let mark = host.memory.mark();
    let page = host.memory.page();
    let len = u64::from(blocks) * 512;
    let data = pattern(len as usize, u64::from(blocks) + offset);
    for (nsid, opcode) in [
        (MEMORY, NvmOpcode::WRITE),
        (MEMORY, NvmOpcode::READ),
        (RINGED, NvmOpcode::WRITE),
        (RINGED, NvmOpcode::READ),
    ] {
        let count = (offset + len).div_ceil(page);
        let memory = host.memory.allocate(count * page);
        host.memory.fill(memory, 0xEE);
        // In descending order: no two neighbours are neighbours in memory.
        let at = |index: u64| memory.iova.0 + (count - 1 - index) * page;
        let pieces: Vec<(Iova, u64)> = (0..count)
            .map(|index| {
                let within = if index == 0 { offset } else { 0 };
                let end = (offset + len - index * page).min(page);
                (Iova(at(index) + within), end - within)
            })
            .collect();
        if opcode == NvmOpcode::WRITE {
            let mut done = 0;
            for &(iova, len) in &pieces {
                host.memory.write(iova, &data[done..done + len as usize]);
                done += len as usize;
            }
        }
        let others: Vec<Iova> = pieces[1..].iter().map(|piece| piece.0).collect();
        let command = commands::io(opcode, nsid, Lba(8), blocks);
        let command = match skipped {
            Some(left) if others.len() > 1 => {
                let list = host.memory.prp_list_from(page / 8 - left, &others);
                command.with_prps(pieces[0].0, list)
            }
            _ => host.memory.with_pages(command, pieces[0].0, &others),
        };
        let status = host.io(0, command).status();
        assert!(status.is_success(), "{blocks} blocks at {offset:#x} of {page:#x}: {status}");
        let found: Vec<u8> =
            pieces.iter().flat_map(|&(at, len)| host.memory.read(at, len as usize)).collect();
        assert!(found == data, "{blocks} blocks at {offset:#x} of {page:#x} came back changed");
        // Nothing beside the data is touched.
        let before = host.memory.read(Iova(at(0)), offset as usize);
        assert!(before.iter().all(|&byte| byte == 0xEE));
        let (last, used) = pieces[count as usize - 1];
        let end = last.0 + used;
        let behind = host.memory.read(Iova(end), (end.next_multiple_of(page) - end) as usize);
        assert!(behind.iter().all(|&byte| byte == 0xEE));
    }
    host.memory.release(mark);
}

#[test]
fn pages_of_8_to_64_kib_take_lists_and_chains() {
    let target = start();
    for endpoint in ENDPOINTS {
        for mps in 1..=4 {
            let mut host = attach(&target, endpoint, mps);
            let page = host.memory.page();
            let per_page = (page / 512) as u32;
            for blocks in [1, per_page, per_page + 1, 2 * per_page, 2 * per_page + 1, 2048] {
                for offset in [0, 512, page - 4] {
                    round_trip(&mut host, blocks, offset, None);
                }
                // Lists of one, two and three entries at the end of their page, the last of which points on.
                for left in 1..=3 {
                    round_trip(&mut host, blocks, 512, Some(left));
                }
            }
            drop(host);
        }
    }
    assert!(target.stop().success());
}

/// Huge pages of the machine that are there for a test, as long as this lives.
struct HugePages {
    before: u64,
}

impl HugePages {
    /// Asks for them, or says why there are none.
    fn reserve() -> Result<Self, String> {
        let failed = |error| format!("{HUGE_PAGES}: {error}");
        let count =
            || fs::read_to_string(HUGE_PAGES).map_err(failed).map(|text| text.trim().parse());
        let before: u64 = count()?.unwrap_or(0);
        let wanted = before + HUGE_MEMORY / HUGE;
        fs::write(HUGE_PAGES, wanted.to_string()).map_err(failed)?;
        let pages = Self { before };
        match count()? {
            Ok(found) if found >= wanted => Ok(pages),
            found => Err(format!("{HUGE_PAGES}: {found:?} where {wanted} were asked for")),
        }
    }

    /// Memory of them.
    fn memory(&self) -> Result<OwnedFd, String> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
        memfd_create(c"vireo-test-huge", flags)
            .and_then(|fd| ftruncate(&fd, HUGE_MEMORY as i64).map(|()| fd))
            .map_err(|error| format!("a memfd of huge pages: {error}"))
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        fs::write(HUGE_PAGES, self.before.to_string()).ok();
    }
}

#[test]
fn guest_memory_of_huge_pages_is_served() {
    let reserved = HugePages::reserve().and_then(|pages| Ok((pages.memory()?, pages)));
    let (fd, _pages) = match reserved {
        Ok(reserved) => reserved,
        Err(reason) => return eprintln!("skipped: {reason}"),
    };
    let target = start();
    let memory = HostMemory::over(fd, MEMORY_BASE, HUGE_MEMORY);
    let how = Attach { memory: HUGE_MEMORY, ..Attach::default() };
    let transport = VfioUser::attach(&target.socket(ENDPOINTS[0]), &how, &memory).expect("attach");
    let mut host = Host::new(transport, memory);
    host.enable();
    host.create_queues(1, 64);
    for blocks in [1, 8, 9, 2048] {
        round_trip(&mut host, blocks, 512, None);
    }
    // Memory that goes away under a huge page is one fault for all of it.
    let read = commands::io(NvmOpcode::READ, MEMORY, Lba(0), 8);
    let buffer = host.memory.allocate(4096);
    let read = host.memory.with_prps(read, buffer);
    host.queues[0].push(&host.memory, read);
    ftruncate(host.memory.fd(), 0).expect("ftruncate");
    host.ring_tail(0);
    host.wait("CSTS.CFS", |host| host.csts().cfs().then_some(()));
    drop(host);
    assert!(target.stop().success());
}
