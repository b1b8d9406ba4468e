//! What the drive is given of a client's memory: its data as it lies, and never a list that the client could write. The
//! drive is a scripted controller that holds each command until it was looked at.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use ipc::guest_memory::{Access, Region, RegionPolicy};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::stat::fstat;
use nvme_spec::nvm::BlockIo;
use nvme_spec::sgl::SglDescriptor;
use nvme_spec::{Command, CommandId, Iova, NvmOpcode};
use vireo_tests::host::driver::MEMORY_BASE;
use vireo_tests::host::memory::{PAGE, memfd};
use vireo_tests::host::{Attach, Buffer, HostMemory, VfioUser, commands};

use super::*;
use crate::scripted::{Act, Engine, Held, Script, Scripted};

/// Bytes of the client's memory.
const MEMORY: u64 = 64 << 20;
/// Blocks of the scripted drive.
const MEDIUM: u64 = 16_384;
/// The backend's own queue, which it makes before any that it leases.
const BACKENDS: u16 = 1;
/// Bytes that one command of the drive carries at most, and so one request of the client's that is one command.
const COMMAND: u64 = 2 << 20;

/// A memory object, by device and inode.
type Object = (u64, u64);

/// Where something lies: in which object, and from which byte of it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    object: Object,
    at: u64,
}

/// What a command of the drive points to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Given {
    sqid: u16,
    list: Option<Place>,
    /// The pages of its data, with their bytes.
    pages: Vec<(Place, u64)>,
}

/// How a client points to its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pointer {
    Prps,
    /// The list begins so many entries before the end of its page, and goes on elsewhere.
    ChainedPrps(u64),
    Sgl,
    /// Data that begins at an odd address.
    OddSgl,
}

fn place(engine: &Engine, iova: u64, len: usize) -> Place {
    let found = engine.find(iova, len);
    let (mapping, at) = found.unwrap_or_else(|| panic!("{iova:#x} was not mapped for the drive"));
    let key = mapping.region.key();
    Place { object: (key.device, key.inode), at }
}

/// Looks at a command as the drive does. Its list, if it has one, is not where the client, whose memory is `guest`, could
/// write it.
fn look(engine: &Engine, held: &Held, guest: Object) -> Given {
    let Held { sqid, command, .. } = held;
    assert_eq!(command.psdt().0, 0, "no list of the client's kind is handed on");
    let len = BlockIo::parse(command).blocks.0 * 512;
    let first = PAGE - command.prp1().0 % PAGE;
    let list = (len > first + PAGE).then(|| place(engine, command.prp2().0, PAGE as usize));
    if let Some(list) = list {
        assert_ne!(list.object, guest, "the drive reads a list that the client can write");
    }
    let pages = engine.data(command, len as usize).expect("data that the drive reaches");
    let pages = pages.into_iter().map(|(iova, len)| (place(engine, iova, len), len as u64));
    Given { sqid: *sqid, list, pages: pages.collect() }
}

/// Puts neighbours together.
fn merge(pieces: impl IntoIterator<Item = (u64, u64)>) -> Vec<(u64, u64)> {
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for (at, len) in pieces {
        match merged.last_mut() {
            Some((start, sum)) if *start + *sum == at => *sum += len,
            _ => merged.push((at, len)),
        }
    }
    merged
}

/// A client of a namespace on the scripted drive.
struct Scene {
    // In the order in which they are to go.
    host: Host,
    _target: Target,
    drive: Scripted,
    /// The client's memory: the object, and another descriptor of it.
    guest: Object,
    memory: OwnedFd,
    /// Commands come by a queue pair that the worker has leased, not by the backend's.
    lease: bool,
    random: Random,
}

impl Scene {
    #[track_caller]
    fn start(channel: &str) -> Self {
        let io = Box::new(|_: &Command| Act::Hold);
        let drive = Scripted::start(Script { mdts: 9, blocks: MEDIUM, io, ..Script::default() });
        let of_bdev = format!("channel = \"{channel}\"\n");
        let configuration = on_drive(drive.endpoint(), &of_bdev) + "max_transfer = \"4MiB\"\n";
        let target = Target::start(&configuration);
        let fd = memfd(MEMORY);
        // What its owner could take away would go through buffers.
        fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).expect("seal");
        let status = fstat(&fd).expect("fstat");
        let (guest, second) = ((status.st_dev, status.st_ino), fd.try_clone().expect("dup"));
        let memory = HostMemory::over(fd, MEMORY_BASE, MEMORY);
        let how = Attach { memory: MEMORY, ..Attach::default() };
        let transport = VfioUser::attach(&target.socket("vm0"), &how, &memory).expect("attach");
        let mut host = Host::new(transport, memory);
        host.enable();
        host.create_queues(1, 64);
        let lease = channel == "lease";
        let random = Random::new(7);
        let mut scene = Self { host, _target: target, drive, guest, memory: second, lease, random };
        // The first commands go by the ring, until the drive is known to reach the memory.
        until("commands come the way that they are to", || {
            let given = scene.read_a_block();
            given.iter().all(|given| (given.sqid != BACKENDS) == lease)
        });
        scene
    }

    #[track_caller]
    fn read_a_block(&mut self) -> Vec<Given> {
        let mark = self.host.memory.mark();
        let buffer = self.host.memory.allocate(512);
        let command = commands::io(NvmOpcode::READ, NSID, Lba(0), 1);
        let command = self.host.memory.with_prps(command, buffer);
        let given = self.run(command);
        self.host.memory.release(mark);
        given
    }

    /// Has a command carried out; what the drive was given for it, in the order of its blocks.
    #[track_caller]
    fn run(&mut self, command: Command) -> Vec<Given> {
        let cid = self.host.submit(0, command);
        let mut given = BTreeMap::new();
        let Self { host, drive, guest, .. } = self;
        let completion = host.wait("a completion", |host| {
            let mut engine = drive.engine.lock().expect("a drive that works");
            for held in &engine.held {
                given.insert(held.command.slba(), look(&engine, held, *guest));
            }
            engine.serve_held();
            drop(engine);
            host.poll(0)
        });
        assert_eq!(completion.cid, cid);
        assert!(completion.status().is_success(), "{command:?}: {}", completion.status());
        given.into_values().collect()
    }

    /// Pages of the client's in descending order, no two of which are neighbours in memory, for `len` bytes that begin
    /// `offset` bytes into the first.
    #[track_caller]
    fn scattered(&mut self, offset: u64, len: u64) -> Vec<Buffer> {
        let count = (offset + len).div_ceil(PAGE);
        let memory = self.host.memory.allocate(count * PAGE);
        let piece = |index: u64| {
            let page = memory.part((count - 1 - index) * PAGE, PAGE);
            let start = if index == 0 { offset } else { 0 };
            page.part(start, (offset + len - index * PAGE).min(PAGE) - start)
        };
        (0..count).map(piece).collect()
    }

    /// A command with this data.
    #[track_caller]
    fn command(
        &mut self,
        opcode: NvmOpcode,
        lba: u64,
        pointer: Pointer,
        data: &[Buffer],
    ) -> Command {
        let len: u64 = data.iter().map(|piece| piece.len).sum();
        let command = commands::io(opcode, NSID, Lba(lba), (len / 512) as u32);
        let memory = &mut self.host.memory;
        let others: Vec<Iova> = data[1..].iter().map(|piece| piece.iova).collect();
        match pointer {
            Pointer::Prps => memory.with_pages(command, data[0].iova, &others),
            Pointer::ChainedPrps(left) => {
                let list = memory.prp_list_from(PAGE / 8 - left, &others);
                command.with_prps(data[0].iova, list)
            }
            Pointer::Sgl | Pointer::OddSgl => {
                let block =
                    |piece: &Buffer| SglDescriptor::data_block(piece.iova, piece.len as u32);
                let blocks: Vec<_> = data.iter().map(block).collect();
                let segment = memory.sgl_segment(&blocks);
                command.with_sgl(match blocks[..] {
                    [only] => only,
                    _ => SglDescriptor::last_segment(segment.iova, segment.len as u32),
                })
            }
        }
    }

    /// Writes data and reads it to other memory, and looks at what the drive is given for that.
    #[track_caller]
    fn exchange(&mut self, pointer: Pointer, offset: u64, len: u64) {
        let (lba, data) = (self.random.in_range(0..1000), self.random.bytes(len as usize));
        let what = format!("{len} bytes at {offset:#x} by {pointer:?}");
        for opcode in [NvmOpcode::WRITE, NvmOpcode::READ] {
            let mark = self.host.memory.mark();
            let pieces = match pointer {
                Pointer::OddSgl => {
                    let memory = self.host.memory.allocate(offset + 1 + len);
                    vec![memory.part(offset + 1, len)]
                }
                _ => self.scattered(offset, len),
            };
            let mut left = &data[..];
            for &piece in &pieces {
                let (own, rest) = left.split_at(piece.len as usize);
                match opcode {
                    NvmOpcode::WRITE => self.host.memory.write(piece.iova, own),
                    _ => self.host.memory.fill(piece, 0xEE),
                }
                left = rest;
            }
            let command = self.command(opcode, lba, pointer, &pieces);
            let given = self.run(command);
            for given in &given {
                assert_eq!(given.sqid != BACKENDS, self.lease, "{what}");
                assert_eq!(given.list.is_some(), given.pages.len() > 2, "{what}");
            }
            let pages = || given.iter().flat_map(|given| &given.pages);
            if pointer == Pointer::OddSgl {
                assert!(pages().all(|(place, _)| place.object != self.guest), "{what}");
            } else {
                assert!(pages().all(|(place, _)| place.object == self.guest), "{what}");
                let base = self.host.memory.base().0;
                let wanted = merge(pieces.iter().map(|piece| (piece.iova.0 - base, piece.len)));
                assert!(merge(pages().map(|(place, len)| (place.at, *len))) == wanted, "{what}");
            }
            let read = |piece: &Buffer| self.host.memory.read(piece.iova, piece.len as usize);
            let found: Vec<u8> = match opcode {
                NvmOpcode::READ => pieces.iter().flat_map(read).collect(),
                _ => self.medium(lba, len),
            };
            assert!(found == data, "{what}: {opcode} changed it");
            self.host.memory.release(mark);
        }
    }

    /// Bytes of the drive.
    fn medium(&self, lba: u64, len: u64) -> Vec<u8> {
        let start = lba as usize * 512;
        let engine = self.drive.engine.lock().expect("a drive that works");
        engine.media[start..start + len as usize].to_vec()
    }

    /// What the drive holds; `None` if that is nothing.
    fn held(&self) -> Option<Given> {
        let engine = self.drive.engine.lock().expect("a drive that works");
        engine.held.first().map(|held| look(&engine, held, self.guest))
    }

    /// Waits until the drive holds a command, or the client's is over.
    #[track_caller]
    fn await_either(&mut self, cid: CommandId) -> Option<Given> {
        let found = within(PATIENCE, || match (self.held(), self.host.poll(0)) {
            (Some(given), None) => Some(Some(given)),
            (_, Some(completion)) => {
                assert_eq!(completion.cid, cid);
                Some(None)
            }
            (None, None) => None,
        });
        found.expect("a command that comes to something")
    }

    fn serve(&self) {
        self.drive.engine.lock().expect("a drive that works").serve_held();
    }
}

#[test]
fn the_drive_gets_the_clients_pages_and_no_list_that_the_client_could_write() {
    for channel in ["lease", "ring"] {
        let mut scene = Scene::start(channel);
        for pointer in [Pointer::Prps, Pointer::Sgl] {
            for len in [PAGE, 2 * PAGE, 3 * PAGE, 128 << 10, COMMAND] {
                scene.exchange(pointer, 0, len);
            }
            for (offset, len) in
                [(512, PAGE), (4, 2 * PAGE), (2048, 128 << 10), (PAGE - 4, 9 * 512)]
            {
                scene.exchange(pointer, offset, len);
            }
        }
        // Several lists of the client's: one that chains early, and more than one holds.
        for left in 1..=3 {
            scene.exchange(Pointer::ChainedPrps(left), 512, 64 << 10);
        }
        scene.exchange(Pointer::Prps, 0, COMMAND + (64 << 10));
        scene.exchange(Pointer::Prps, 1024, 2 * COMMAND - 512);
        // All that in one mapping of the client's whole memory.
        let engine = scene.drive.engine.lock().expect("a drive that works");
        let own = engine.mappings.iter().filter(|mapping| {
            let key = mapping.region.key();
            (key.device, key.inode) == scene.guest
        });
        assert_eq!(own.map(|mapping| mapping.size).collect::<Vec<_>>(), [MEMORY]);
    }
}

#[test]
fn only_what_is_not_aligned_goes_through_buffers() {
    for channel in ["lease", "ring"] {
        let mut scene = Scene::start(channel);
        for len in [512, PAGE, 3 * PAGE, 300 << 10] {
            scene.exchange(Pointer::OddSgl, 0, len);
            scene.exchange(Pointer::Sgl, 4, len);
        }
    }
}

#[test]
fn what_a_client_makes_of_its_lists_once_it_has_rung_is_nothing_to_the_drive() {
    for channel in ["lease", "ring"] {
        let mut scene = Scene::start(channel);
        for (opcode, lba) in [(NvmOpcode::WRITE, 100), (NvmOpcode::READ, 1000)] {
            let len = 128 << 10;
            let (own, other) = (scene.scattered(512, len), scene.scattered(512, len));
            let fill = |scene: &Scene, pieces: &[Buffer], byte| {
                pieces.iter().for_each(|&piece| scene.host.memory.fill(piece, byte));
            };
            fill(&scene, &own, 0x11);
            fill(&scene, &other, 0x22);
            let addresses = |pieces: &[Buffer]| -> Vec<Iova> {
                pieces[1..].iter().map(|piece| piece.iova).collect()
            };
            let list = scene.host.memory.prp_list(&addresses(&own));
            let command = commands::io(opcode, NSID, Lba(lba), (len / 512) as u32);
            let cid = scene.host.submit(0, command.with_prps(own[0].iova, list));
            let before = scene.await_either(cid).expect("the drive holds it");
            // Both are the client's to write at any time: the list, and the command itself.
            let bytes: Vec<u8> =
                addresses(&other).iter().flat_map(|page| page.0.to_le_bytes()).collect();
            scene.host.memory.write(list, &bytes);
            let sq = scene.host.queues[0].sq;
            scene.host.memory.fill(sq, 0xFF);
            assert_eq!(scene.held().as_ref(), Some(&before), "over the {channel}");
            scene.serve();
            let completion = scene.host.next_completion(0);
            assert!(completion.cid == cid && completion.status().is_success());
            let all = |pieces: &[Buffer], byte: u8| {
                let read = |piece: &Buffer| scene.host.memory.read(piece.iova, piece.len as usize);
                pieces.iter().flat_map(read).all(|found| found == byte)
            };
            match opcode {
                NvmOpcode::WRITE => assert!(scene.medium(lba, len) == vec![0x11; len as usize]),
                _ => assert!(all(&own, 0), "the data went where it was to go"),
            }
            assert!(all(&other, 0x22), "nobody was to touch it");
        }
    }
}

/// Ends a thread whatever becomes of who waits for it.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Changes the entries of a list all the time, among those of `choices` and now and then to what is no address.
fn vary(list: &Region, at: u64, choices: [&[Iova]; 2], stop: &AtomicBool) {
    let list = list.slice(at, PAGE as usize, Access::READ_WRITE).expect("a page of its memory");
    let mut random = Random::new(11);
    while !stop.load(Ordering::Acquire) {
        for (index, pages) in choices[0].iter().zip(choices[1]).enumerate() {
            let good = if random.one_in(2) { pages.0.0 } else { pages.1.0 };
            let value = match random.in_range(0..2000) {
                // Where the drive has its queues, nowhere at all, and within a page.
                0 => 4 << 30,
                1 => u64::MAX - 4095,
                2 => good + 4,
                _ => good,
            };
            list.store_u64(index * 8, value, Ordering::Relaxed);
        }
    }
}

#[test]
fn a_list_that_changes_all_the_time_is_one_list_to_the_drive() {
    for channel in ["lease", "ring"] {
        let mut scene = Scene::start(channel);
        let len = 64 << 10;
        let (own, other) = (scene.scattered(0, len), scene.scattered(0, len));
        let [first, second]: [Vec<Iova>; 2] =
            [&own, &other].map(|pieces| pieces[1..].iter().map(|piece| piece.iova).collect());
        let list = scene.host.memory.prp_list(&first);
        let base = scene.host.memory.base().0;
        let fd = scene.memory.try_clone().expect("dup");
        let region = Region::map(fd, MEMORY, &RegionPolicy::default()).expect("map");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _stop = Stop(&stop);
            scope.spawn(|| vary(&region, list.0 - base, [&first, &second], &stop));
            let mut seen = 0;
            let started = Instant::now();
            while seen < 100 {
                assert!(started.elapsed() < PATIENCE, "{seen} commands came to the drive");
                let opcode = if seen % 2 == 0 { NvmOpcode::WRITE } else { NvmOpcode::READ };
                let command = commands::io(opcode, NSID, Lba(0), (len / 512) as u32);
                let cid = scene.host.submit(0, command.with_prps(own[0].iova, list));
                // An address that is none is the client's own fault, and no command of the drive's.
                let Some(given) = scene.await_either(cid) else { continue };
                seen += 1;
                for _ in 0..20 {
                    assert_eq!(scene.held().as_ref(), Some(&given), "over the {channel}");
                }
                for (index, (place, _)) in given.pages.iter().enumerate().skip(1) {
                    assert_eq!(place.object, scene.guest);
                    let at = Iova(place.at + base);
                    assert!([first[index - 1], second[index - 1]].contains(&at), "{given:?}");
                }
                scene.serve();
                let completion = scene.host.next_completion(0);
                assert!(completion.cid == cid && completion.status().is_success());
            }
        });
    }
}
