//! The driver and the controller against each other: any commands, typed and raw, resets and events, through the
//! driver's own interface.
//!
//! Namespace 1 has a model: what was written through typed requests is what is read, whatever else goes on. Namespace 2 is
//! for commands of any bytes. Every request ends exactly once; nothing waits for ever.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use nvme_driver::{
    AdminData, Completed, Controller, DataPointer, DmaBuffer, IoError, Namespace, Options,
    QueueOptions, QueuePair, Reason, Request,
};
use nvme_spec::nvm::{CopyRange, DatasetRange};
use nvme_spec::{AdminOpcode, BlockCount, Command, CommandId, Lba, Nsid, Status};

use super::input::Input;
use super::transport::Simulated;
use crate::simulated::Fate;

/// Actions of one input at most.
const ACTIONS: usize = 48;
/// Steps after which something that must end counts as hung.
const PATIENCE: usize = 20_000;
const BLOCK: usize = 512;
/// Blocks of the namespace with a model.
const BLOCKS: u64 = 512;
/// Bytes that typed requests and raw commands have each: more than any of them transfers.
const MEMORY: usize = 64 << 10;
/// The namespaces.
const MODELLED: Nsid = Nsid(1);
const ANYTHING: Nsid = Nsid(2);

struct Session {
    transport: Arc<Simulated>,
    controller: Controller,
    namespace: Namespace,
    queue: QueuePair,
    memory: DmaBuffer,
    model: Vec<u8>,
    /// For commands of any bytes; memory of its own, since a command may reach what lies beside its buffer.
    raw: Option<QueuePair>,
    raw_memory: DmaBuffer,
    /// Tokens of raw commands that have not ended.
    outstanding: BTreeSet<u64>,
    next: u64,
}

/// Does what the input says; then a reset must give a controller whose data is what it has to be.
///
/// # Panics
/// If a promise is broken.
pub fn driver(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.u8();
    let fate = Fate {
        by_ring: choice & 1 == 1,
        handover_steps: u64::from(choice & 2) * 8,
        ..Fate::default()
    };
    let namespaces = [(MODELLED, BLOCKS * BLOCK as u64, 9), (ANYTHING, 1 << 20, 9)];
    let transport = Arc::new(Simulated::new(1, choice & 4 == 0, fate, &namespaces));
    let pointers = [DataPointer::Auto, DataPointer::Prp, DataPointer::Sgl];
    let options = Options {
        // Long: what ends, ends by itself.
        io_timeout: Duration::from_secs(60),
        admin_timeout: Duration::from_secs(20),
        queues: 4,
        interrupts: choice & 8 == 8,
        data_pointer: pointers[usize::from(choice >> 4) % 3],
        ..Options::default()
    };
    let way: Arc<dyn nvme_driver::transport::Transport> = transport.clone();
    let controller = Controller::over(way, "simulated", &options).expect("it comes up");
    let mut session = Session::new(transport, controller);
    for _ in 0..ACTIONS {
        if input.is_empty() {
            break;
        }
        session.act(&mut input);
    }
    session.finish();
}

impl Session {
    fn new(transport: Arc<Simulated>, controller: Controller) -> Self {
        let queue = QueueOptions { depth: 8, interrupt: true };
        Self {
            transport,
            namespace: controller.namespace(MODELLED).expect("it is there"),
            queue: controller.queue_pair(&queue).expect("a queue pair"),
            raw: Some(controller.queue_pair(&queue).expect("a queue pair")),
            memory: controller.allocate(MEMORY).expect("memory"),
            raw_memory: controller.allocate(MEMORY).expect("memory"),
            controller,
            model: vec![0; BLOCKS as usize * BLOCK],
            outstanding: BTreeSet::new(),
            next: 0,
        }
    }

    fn act(&mut self, input: &mut Input<'_>) {
        match input.u8() % 32 {
            0..12 => self.typed(input),
            12..24 => self.raw(input),
            24..28 => self.admin(input),
            28 => self.again(input),
            29 => self.reset(input.u8().is_multiple_of(2)),
            30 => {
                self.controller.next_event(Duration::ZERO).expect("events can be asked for");
            }
            _ => self.transport.step(usize::from(input.u8())),
        }
        self.reap();
    }

    /// A typed request and what the model says of it.
    fn typed(&mut self, input: &mut Input<'_>) {
        let kind = input.u8() % 10;
        let blocks = 1 + u64::from(input.u8()) % 64;
        let lba = u64::from(input.u16()) % (BLOCKS + 8);
        let (namespace, at) = (self.namespace.clone(), lba as usize * BLOCK);
        let len = blocks as usize * BLOCK;
        let inside = lba + blocks <= BLOCKS;
        let expected = if inside { Ok(()) } else { Err(Status::LBA_OUT_OF_RANGE) };
        let mut buffer = self.buffer(len, input.u8());
        match kind {
            0..3 => {
                let data: Vec<u8> =
                    (0..len).map(|byte| (byte / 7) as u8 ^ place(lba, byte)).collect();
                buffer.copy_from(&data);
                let write = Request::write(&namespace, Lba(lba), buffer);
                let write = if blocks % 2 == 0 { write.with_fua() } else { write };
                assert_eq!(outcome(&self.run(write)), expected, "write of {blocks} at {lba}");
                if inside {
                    self.model[at..at + len].copy_from_slice(&data);
                }
            }
            3 | 4 => {
                let done = self.run(Request::read(&namespace, Lba(lba), buffer));
                assert_eq!(outcome(&done), expected, "read of {blocks} at {lba}");
                let read = done.buffer.expect("it comes back").to_vec();
                assert!(!inside || read == self.model[at..at + len], "read of {blocks} at {lba}");
            }
            5 => {
                let zeroes = Request::write_zeroes(
                    &namespace,
                    Lba(lba),
                    BlockCount(blocks),
                    blocks % 2 == 0,
                );
                assert_eq!(outcome(&self.run(zeroes)), expected, "zeroes of {blocks} at {lba}");
                if inside {
                    self.model[at..at + len].fill(0);
                }
            }
            6 => {
                let verify = Request::verify(&namespace, Lba(lba), BlockCount(blocks));
                assert_eq!(outcome(&self.run(verify)), expected, "verify of {blocks} at {lba}");
                assert_eq!(self.run(Request::flush(&namespace)).result, Ok(0));
            }
            7 => self.compare(lba, blocks, buffer),
            8 => self.ranges(lba % (BLOCKS / 2), blocks, input),
            _ => self.fused(lba % BLOCKS, input.u8().is_multiple_of(2)),
        }
    }

    fn compare(&mut self, lba: u64, blocks: u64, mut buffer: DmaBuffer) {
        if lba + blocks > BLOCKS {
            return;
        }
        let (at, len) = (lba as usize * BLOCK, blocks as usize * BLOCK);
        buffer.copy_from(&self.model[at..at + len]);
        let namespace = self.namespace.clone();
        let done = self.run(Request::compare(&namespace, Lba(lba), buffer));
        assert_eq!(done.result, Ok(0), "compare of {blocks} at {lba}");
        let mut buffer = done.buffer.expect("it comes back");
        let mut other = self.model[at..at + len].to_vec();
        other[len - 1] ^= 1;
        buffer.copy_from(&other);
        let done = self.run(Request::compare(&namespace, Lba(lba), buffer));
        assert_eq!(outcome(&done), Err(Status::COMPARE_FAILURE));
    }

    /// Dataset Management and Copy.
    fn ranges(&mut self, lba: u64, blocks: u64, input: &mut Input<'_>) {
        let namespace = self.namespace.clone();
        let (at, len) = (lba as usize * BLOCK, blocks as usize * BLOCK);
        let list = self.buffer(64, 0);
        if input.u8().is_multiple_of(2) {
            let range =
                DatasetRange { slba: Lba(lba), length: blocks as u32, ..DatasetRange::default() };
            let ranges = [range, DatasetRange::default()];
            let done = self.run(Request::deallocate(&namespace, &ranges, list));
            assert_eq!(done.result, Ok(0), "deallocate of {blocks} at {lba}");
            self.model[at..at + len].fill(0);
            return;
        }
        let first = 1 + blocks / 2;
        let source = |slba, count: u64| CopyRange {
            slba: Lba(slba),
            nlb_z: (count - 1) as u16,
            ..CopyRange::default()
        };
        let sources = [source(lba, first), source(lba + first, 3)];
        let total = first + 3;
        let to = u64::from(input.u16()) % (BLOCKS - total);
        let done = self.run(Request::copy(&namespace, &sources, Lba(to), list));
        let apart = to >= lba + total || lba >= to + total;
        assert_eq!(
            done.result.is_ok(),
            apart,
            "copy of {total} from {lba} to {to}: {:?}",
            done.result
        );
        if apart {
            let copied = self.model[at..at + total as usize * BLOCK].to_vec();
            let to = to as usize * BLOCK;
            self.model[to..to + copied.len()].copy_from_slice(&copied);
        }
    }

    /// Compare and Write of one block, which differs or not.
    fn fused(&mut self, lba: u64, equal: bool) {
        let namespace = self.namespace.clone();
        let at = lba as usize * BLOCK;
        let mut compare = self.buffer(BLOCK, 0);
        let mut write = self.memory.memory().buffer(4096, BLOCK).expect("within");
        let mut expected = self.model[at..at + BLOCK].to_vec();
        expected[0] ^= u8::from(!equal);
        compare.copy_from(&expected);
        write.copy_from(&[lba as u8; BLOCK]);
        let pair = self.queue.submit_fused(
            Request::compare(&namespace, Lba(lba), compare).with_token(1),
            Request::write(&namespace, Lba(lba), write).with_token(2),
        );
        assert!(pair.is_ok(), "{:?}", pair.err().map(|(rejected, _)| rejected.reason));
        let [first, second] = [self.complete(), self.complete()];
        assert_eq!((first.token, second.token), (1, 2));
        let outcomes = (outcome(&first), outcome(&second));
        if equal {
            assert_eq!(outcomes, (Ok(()), Ok(())));
            self.model[at..at + BLOCK].fill(lba as u8);
        } else {
            assert_eq!(outcomes, (Err(Status::COMPARE_FAILURE), Err(Status::ABORTED_FAILED_FUSED)));
        }
    }

    /// A command of any bytes to the other namespace.
    fn raw(&mut self, input: &mut Input<'_>) {
        let mut command = words(input);
        command.cdw0.set_opcode(match input.u8() % 4 {
            0 => input.u8(),
            _ => input.u8() % 0x1A,
        });
        if command.nsid == MODELLED || input.u8() & 1 == 0 {
            command.nsid = ANYTHING;
        }
        if input.u8() & 1 == 0 {
            command.cdw12 &= 0xFFFF_003F;
        }
        let len = 4 * (1 + usize::from(input.u16()) % (MEMORY / 4 - 1024));
        let offset = usize::from(input.u8()) * 4;
        let buffer = self.raw_memory.memory().buffer(offset, len).filter(|_| input.u8() & 3 != 0);
        let Some(queue) = &mut self.raw else { return };
        match queue.submit_command(command, buffer, self.next) {
            Ok(()) => {
                self.outstanding.insert(self.next);
                self.next += 1;
            }
            Err((reason, _)) => assert_eq!(reason, Reason::Full),
        }
    }

    /// An admin command of any bytes, but for what would take the model's namespace.
    fn admin(&mut self, input: &mut Input<'_>) {
        let mut command = words(input);
        command.cdw0.set_opcode(match input.u8() % 4 {
            0 => input.u8(),
            _ => [0x02, 0x06, 0x08, 0x09, 0x0A, 0x80][usize::from(input.u8()) % 6],
        });
        let opcode = command.admin_opcode();
        if matches!(opcode, AdminOpcode::SET_FEATURES | AdminOpcode::FORMAT_NVM) {
            command.nsid = ANYTHING;
        }
        if input.u8() & 1 == 0 {
            // Identifiers and selectors that exist.
            command.cdw10 &= 0x0003_001F;
        }
        let mut data = vec![0; usize::from(input.u16()) % 4097];
        let data = match input.u8() % 3 {
            0 => AdminData::None,
            1 => AdminData::In(&mut data),
            _ => AdminData::Out(&data),
        };
        match self.controller.admin(command, data, Duration::from_secs(20)) {
            Ok(_) | Err(nvme_driver::Error::Argument { .. }) => {}
            Err(error) => panic!("{command:?}: {error}"),
        }
    }

    /// The raw queue is deleted, with whatever is outstanding, and made again.
    fn again(&mut self, input: &mut Input<'_>) {
        self.raw = None;
        self.outstanding.clear();
        let depth = 1 + u16::from(input.u8() % 32);
        let options = QueueOptions { depth, interrupt: input.u8() & 1 == 1 };
        self.raw = Some(self.controller.queue_pair(&options).expect("a queue pair"));
    }

    /// A reset ends all that is outstanding, once, and changes no data.
    fn reset(&mut self, of_subsystem: bool) {
        let result = match of_subsystem {
            true => self.controller.reset_subsystem(),
            false => self.controller.reset(),
        };
        result.expect("it comes back");
        for _ in 0..PATIENCE {
            if self.outstanding.is_empty() {
                return;
            }
            self.reap();
        }
        panic!("{} commands outlived a reset", self.outstanding.len());
    }

    /// Takes what raw commands completed.
    fn reap(&mut self) {
        self.transport.step(1);
        let (Some(queue), outstanding) = (&mut self.raw, &mut self.outstanding) else { return };
        queue.poll(usize::MAX, |_, done| {
            assert!(outstanding.remove(&done.token), "command {} ended twice", done.token);
        });
    }

    /// Runs a typed request to its end.
    fn run(&mut self, request: Request) -> Completed {
        let submitted = self.queue.submit(request.with_token(7));
        assert!(submitted.is_ok(), "{:?}", submitted.err().map(|rejected| rejected.reason));
        let done = self.complete();
        assert_eq!(done.token, 7);
        done
    }

    /// The next completion of a typed request.
    fn complete(&mut self) -> Completed {
        for _ in 0..PATIENCE {
            self.queue.ring();
            if let Some(done) = self.queue.next_completion() {
                return done;
            }
            self.transport.step(1);
        }
        panic!("a request never ended: {:?}", self.queue);
    }

    /// A buffer of typed requests, somewhere in the first page.
    fn buffer(&self, len: usize, place: u8) -> DmaBuffer {
        let room = MEMORY - len;
        let offset = (usize::from(place) * 4).min(room);
        self.memory.memory().buffer(offset, len).expect("within")
    }

    /// Whatever came before: after a reset everything works, and the data is the model's.
    fn finish(mut self) {
        (0..32).for_each(|_| self.reap());
        self.reset(false);
        let namespace = self.namespace.clone();
        let step = (MEMORY / BLOCK) as u64;
        for lba in (0..BLOCKS).step_by(step as usize) {
            let buffer = self.buffer(MEMORY, 0);
            let done = self.run(Request::read(&namespace, Lba(lba), buffer));
            assert_eq!(done.result, Ok(0));
            let at = lba as usize * BLOCK;
            let read = done.buffer.expect("it comes back").to_vec();
            assert!(read == self.model[at..at + MEMORY], "the data from block {lba} on is another");
        }
        self.controller.shutdown().expect("it shuts down");
        assert!(self.queue.next_completion().is_none());
    }
}

/// How a request ended: well, or by this status.
fn outcome(done: &Completed) -> Result<(), Status> {
    match done.result {
        Ok(_) => Ok(()),
        Err(IoError::Status(status)) => Err(status.code()),
        Err(error) => panic!("a request ended by itself: {error}"),
    }
}

/// Bytes that differ from place to place.
fn place(lba: u64, byte: usize) -> u8 {
    (lba as u8).wrapping_mul(31).wrapping_add((byte / BLOCK) as u8)
}

/// A command of any bytes; its opcode and namespace come from the caller.
fn words(input: &mut Input<'_>) -> Command {
    let mut words = [0; 8];
    for word in &mut words {
        *word = input.number();
    }
    let mut command = Command::from_words(words);
    command.cdw0.set_cid(CommandId(0));
    command
}
