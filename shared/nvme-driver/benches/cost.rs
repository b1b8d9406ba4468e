//! What the driver itself costs: a 4 KiB read at depth 128, against a controller in this process that does nothing but
//! complete. `cargo bench -p nvme-driver` prints nanoseconds; `instructions.sh` beside this file counts instructions.

use std::fmt;
use std::hint::black_box;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ipc::doorbell::DOORBELL_PAGE_SIZE;
use ipc::event::EventFd;
use ipc::guest_memory::{Access, HostSlice, Region, RegionPolicy};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nvme_driver::transport::{Doorbell, DoorbellCost, Transport, TransportError};
use nvme_driver::{Controller, DmaBuffer, Namespace, Options, QueueOptions, QueuePair, Request};
use nvme_spec::command::admin::{CreateQueueDword10, IdentifyDword10};
use nvme_spec::identify::Cns;
use nvme_spec::identify::controller::IdentifyController;
use nvme_spec::identify::namespace::{IdentifyNamespace, LbaFormat};
use nvme_spec::register::{Cap, CapCss, Csts, ShutdownStatus, offset};
use nvme_spec::{
    AdminOpcode, BlockCount, Command, CommandId, Completion, Lba, Nsid, QueueId, Status,
};
use zerocopy::IntoBytes;

const DEPTH: usize = 128;
const WARM: usize = 200;

fn main() {
    let null = Arc::new(Null::new());
    let transport: Arc<dyn Transport> = Arc::<Null>::clone(&null);
    let controller = Controller::over(transport, "null", &Options::default()).expect("it comes up");
    let namespace = controller.namespace(Nsid(1)).expect("it has one");
    let options = QueueOptions { depth: DEPTH as u16, interrupt: false };
    let mut queue = controller.queue_pair(&options).expect("it grants one");
    let memory = controller.allocate(DEPTH * 4096).expect("memory");
    let mut buffers = memory.into_chunks(4096);
    let counted = std::env::args().any(|argument| argument == "--count");
    let (mut submit, mut complete) = (Duration::MAX, Duration::MAX);
    for _ in 0..if counted { 20 } else { 20 * WARM } {
        let started = Instant::now();
        submit_burst(&mut queue, &namespace, &mut buffers);
        let submitted = Instant::now();
        null.complete(&queue);
        let completed = Instant::now();
        complete_burst(&mut queue, &mut buffers);
        submit = submit.min(submitted - started);
        complete = complete.min(completed.elapsed());
    }
    assert_eq!(buffers.len(), DEPTH);
    if !counted {
        let each = |time: Duration| time.as_nanos() as f64 / DEPTH as f64;
        println!("4 KiB read at depth {DEPTH}, best of {}:", 20 * WARM);
        println!("submit   {:6.1} ns", each(submit));
        println!("complete {:6.1} ns", each(complete));
    }
}

/// 128 submissions and the doorbell. Instructions are counted within.
#[inline(never)]
fn submit_burst(queue: &mut QueuePair, namespace: &Namespace, buffers: &mut Vec<DmaBuffer>) {
    let mut lba = 0;
    while let Some(buffer) = buffers.pop() {
        let request = Request::read(namespace, Lba(lba), buffer).with_token(lba);
        assert!(queue.submit(request).is_ok());
        lba += 8;
    }
    queue.ring();
}

/// 128 completions. Instructions are counted within.
#[inline(never)]
fn complete_burst(queue: &mut QueuePair, buffers: &mut Vec<DmaBuffer>) {
    let taken = queue.poll(DEPTH, |_, done| {
        assert!(done.result.is_ok());
        black_box(done.token);
        buffers.extend(done.buffer);
    });
    assert_eq!(taken, DEPTH);
}

/// A controller that completes whatever comes.
struct Null {
    doorbells: Arc<Region>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    memory: Vec<(u64, Arc<Region>)>,
    cc: u32,
    asq: u64,
    acq: u64,
    admin_head: u32,
    admin_posted: u32,
    /// Base, size, position and phase of the I/O completion queue; base and size of the submission queue.
    cq: (u64, u32, u32, bool),
    sq: (u64, u32),
    sq_head: u32,
}

impl State {
    fn host(&self, iova: u64, len: usize) -> HostSlice<'_> {
        let at = |(first, region): &(u64, Arc<Region>)| {
            iova.checked_sub(*first).filter(|at| at + len as u64 <= region.len())
        };
        let found = self.memory.iter().find(|entry| at(entry).is_some()).expect("registered");
        found.1.slice(iova - found.0, len, Access::READ_WRITE).expect("within")
    }

    fn post(&self, at: u64, completion: Completion) {
        let [low, high] = completion.into_halves();
        let entry = self.host(at, 16);
        entry.store_u64(0, low, Ordering::Relaxed);
        entry.store_u64(8, high, Ordering::Release);
    }

    /// Runs the admin queue up to `tail`; its rings have 32 entries.
    fn admin(&mut self, tail: u32) {
        while self.admin_head != tail {
            let words = self.host(self.asq + u64::from(self.admin_head) * 64, 64).load_words(0);
            let command = Command::from_words(words.expect("aligned"));
            self.admin_head = (self.admin_head + 1) % 32;
            let Some(dw0) = self.command(&command) else { continue };
            let (turn, index) = (self.admin_posted / 32, self.admin_posted % 32);
            self.admin_posted += 1;
            let completion = Completion::new(
                QueueId::ADMIN,
                command.cid(),
                self.admin_head as u16,
                Status::SUCCESS,
            );
            let completion = completion.with_dw0(dw0).with_phase(turn % 2 == 0);
            self.post(self.acq + u64::from(index) * 16, completion);
        }
    }

    fn command(&mut self, command: &Command) -> Option<u32> {
        let cdw10 = CreateQueueDword10::from_bits(command.cdw10);
        let size = u32::from(cdw10.qsize_z()) + 1;
        match command.admin_opcode() {
            AdminOpcode::ASYNC_EVENT_REQUEST => return None,
            AdminOpcode::CREATE_IO_CQ => self.cq = (command.prp1().0, size, 0, true),
            AdminOpcode::CREATE_IO_SQ => self.sq = (command.prp1().0, size),
            AdminOpcode::IDENTIFY => self.identify(command),
            _ => {}
        }
        Some(0)
    }

    fn identify(&self, command: &Command) {
        let page = self.host(command.prp1().0, 4096);
        let cns = IdentifyDword10::from_bits(command.cdw10).cns();
        if cns == Cns::CONTROLLER {
            page.copy_from(
                IdentifyController { mdts: 8, nn: 1, ..IdentifyController::zeroed() }.as_bytes(),
            );
        } else if cns == Cns::NAMESPACE {
            let mut identify = IdentifyNamespace::zeroed();
            (identify.nsze, identify.ncap) = (BlockCount(1 << 40), BlockCount(1 << 40));
            identify.lbaf[0] = LbaFormat::new().with_lbads(9);
            page.copy_from(identify.as_bytes());
        }
    }
}

impl Null {
    fn new() -> Self {
        let fd = memfd_create(c"doorbells", MFdFlags::MFD_CLOEXEC).expect("memfd");
        nix::unistd::ftruncate(&fd, DOORBELL_PAGE_SIZE as i64).expect("ftruncate");
        let doorbells = Region::map(fd, 1, &RegionPolicy::default()).expect("map");
        Self { doorbells, state: Mutex::default() }
    }

    /// Completes everything that was submitted, in order.
    fn complete(&self, queue: &QueuePair) {
        let mut state = self.state.lock().expect("one thread");
        let tail =
            self.doorbells.whole().load_u32(usize::from(queue.id().0) * 8, Ordering::Acquire);
        let tail = tail.expect("in the page");
        while state.sq_head != tail {
            let (sq, entries) = state.sq;
            let word =
                state.host(sq + u64::from(state.sq_head) * 64, 4).load_u32(0, Ordering::Relaxed);
            let cid = CommandId((word.expect("aligned") >> 16) as u16);
            state.sq_head = (state.sq_head + 1) % entries;
            let (base, size, at, phase) = state.cq;
            let completion =
                Completion::new(queue.id(), cid, state.sq_head as u16, Status::SUCCESS);
            state.post(base + u64::from(at) * 16, completion.with_phase(phase));
            state.cq = match at + 1 == size {
                true => (base, size, 0, !phase),
                false => (base, size, at + 1, phase),
            };
        }
    }
}

impl Transport for Null {
    fn read_u32(&self, at: u64) -> Result<u32, TransportError> {
        let cc = self.state.lock().expect("one thread").cc;
        Ok(match at {
            offset::CC => cc,
            offset::CSTS => {
                Csts::new().with_rdy(cc & 1 == 1).with_shst(ShutdownStatus::COMPLETE).into_bits()
            }
            _ => 0,
        })
    }

    fn read_u64(&self, _: u64) -> Result<u64, TransportError> {
        Ok(Cap::new().with_mqes_z(1023).with_css(CapCss::new().with_nvm(true)).into_bits())
    }

    fn write_u32(&self, at: u64, value: u32) -> Result<(), TransportError> {
        if at == offset::CC {
            self.state.lock().expect("one thread").cc = value;
        }
        Ok(())
    }

    fn write_u64(&self, at: u64, value: u64) -> Result<(), TransportError> {
        let mut state = self.state.lock().expect("one thread");
        match at {
            offset::ASQ => state.asq = value,
            _ => state.acq = value,
        }
        Ok(())
    }

    fn post_u32(&self, at: u64, value: u32) -> Result<(), TransportError> {
        if at == offset::DOORBELLS {
            self.state.lock().expect("one thread").admin(value);
        }
        Ok(())
    }

    fn doorbell(&self, at: u64) -> Option<Doorbell> {
        let within = at.checked_sub(offset::DOORBELLS)?;
        (within >= 8).then(|| Doorbell::in_region(&self.doorbells, within)).flatten()
    }

    fn doorbell_cost(&self) -> DoorbellCost {
        DoorbellCost::Memory
    }

    fn dma_map(&self, iova: u64, memory: &Arc<Region>) -> Result<(), TransportError> {
        self.state.lock().expect("one thread").memory.push((iova, Arc::clone(memory)));
        Ok(())
    }

    fn dma_unmap(&self, iova: u64, _: u64) -> Result<(), TransportError> {
        self.state.lock().expect("one thread").memory.retain(|(first, _)| *first != iova);
        Ok(())
    }

    fn vectors(&self) -> u16 {
        0
    }

    fn set_vectors(&self, _: &[EventFd]) -> Result<(), TransportError> {
        Ok(())
    }

    fn reset(&self) -> Result<(), TransportError> {
        Ok(())
    }

    fn alive(&self) -> bool {
        true
    }

    fn sever(&self) {}
}

impl fmt::Debug for Null {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Null")
    }
}
