//! The driver's way to a simulated target. The target lives in a thread of its own, since it is made for one, and goes
//! on only while somebody waits for it: equal inputs give equal runs.

use std::fmt;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use ipc::event::EventFd;
use ipc::guest_memory::{Access, Region};
use nvme_driver::transport::{Doorbell, DoorbellCost, Transport, TransportError};
use nvme_spec::Nsid;
use nvme_spec::register::offset;
use vfio_user::Command;
use vfio_user::message::{DmaMapBody, DmaUnmapBody, DmaUnmapFlags};
use zerocopy::IntoBytes;

use crate::host::Transport as _;
use crate::host::vfio_user::read_write;
use crate::simulated::{Fate, SharedWorld, SimulatedClient, World};

/// Steps within which most admin commands complete.
const ADMIN_STEPS: usize = 24;
/// Steps that a look at whether the target lives is worth: whoever waits looks again and again.
const ALIVE_STEPS: usize = 64;
/// Steps that a register read is worth: it may be waited for.
const READ_STEPS: usize = 4;
/// Bytes of the admin completion queue that are watched: the driver's has 32 entries.
const ADMIN_CQ: usize = 512;

type Job = Box<dyn FnOnce(&mut Target) + Send>;

/// What lives in the thread; it has the world.
struct Target {
    client: SimulatedClient,
}

/// A client's connection to a simulated controller, for any thread.
pub struct Simulated {
    jobs: Mutex<Option<Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    memory: Mutex<Vec<(u64, Arc<Region>)>>,
    acq: AtomicU64,
    severed: AtomicBool,
}

impl Simulated {
    /// Connects to the one controller of a new world with these namespaces: identifier, bytes, base two logarithm of the
    /// block size. Doorbells are messages; where the worker polls their page (`mapped`) no shadow doorbells are offered.
    pub fn new(seed: u64, mapped: bool, fate: Fate, namespaces: &[(Nsid, u64, u32)]) -> Self {
        let (jobs, todo) = channel::<Job>();
        let namespaces = namespaces.to_vec();
        let thread = std::thread::spawn(move || {
            let mut world = World::new(seed, 1, mapped, fate);
            for (nsid, bytes, block_shift) in namespaces {
                world.add_namespace(nsid, bytes, block_shift);
            }
            let world = SharedWorld::new(world);
            let client = world.client(0, false);
            let mut target = Target { client };
            for job in todo {
                job(&mut target);
            }
            // Not before nothing is in flight.
            target.client.disconnect();
        });
        Self {
            jobs: Mutex::new(Some(jobs)),
            thread: Mutex::new(Some(thread)),
            memory: Mutex::default(),
            acq: AtomicU64::new(0),
            severed: AtomicBool::new(false),
        }
    }

    /// The target goes on so many steps.
    pub fn step(&self, steps: usize) {
        // A target that was given up goes on without us.
        self.ask(move |target| (0..steps).for_each(|_| target.client.relax())).ok();
    }

    /// Has the target's thread do something.
    fn ask<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Target) -> T + Send + 'static,
    ) -> Result<T, TransportError> {
        let (done, answer) = channel();
        let job: Job = Box::new(move |target| _ = done.send(act(target)));
        match self.jobs.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(jobs) => jobs.send(job).expect("the target's thread panicked"),
            None => return Err(TransportError::Gone),
        }
        Ok(answer.recv().expect("the target's thread panicked"))
    }

    /// What the admin completion queue holds.
    fn admin_completions(&self) -> Option<Vec<u8>> {
        let acq = self.acq.load(Ordering::Relaxed);
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.iter().find_map(|(first, region)| {
            let slice = region.slice(acq.checked_sub(*first)?, ADMIN_CQ, Access::READ)?;
            let mut bytes = vec![0; ADMIN_CQ];
            slice.copy_to(&mut bytes);
            Some(bytes)
        })
    }

    /// The target goes on until it completed an admin command, or for some steps if it does not.
    fn step_admin(&self) {
        let before = self.admin_completions();
        for _ in 0..ADMIN_STEPS {
            self.step(1);
            if self.admin_completions() != before {
                break;
            }
        }
    }
}

impl Transport for Simulated {
    fn read_u32(&self, offset: u64) -> Result<u32, TransportError> {
        self.ask(move |target| {
            (0..READ_STEPS).for_each(|_| target.client.relax());
            let mut bytes = [0; 4];
            target.client.read_register(offset, &mut bytes);
            u32::from_le_bytes(bytes)
        })
    }

    fn read_u64(&self, offset: u64) -> Result<u64, TransportError> {
        self.ask(move |target| {
            let mut bytes = [0; 8];
            target.client.read_register(offset, &mut bytes);
            u64::from_le_bytes(bytes)
        })
    }

    fn write_u32(&self, offset: u64, value: u32) -> Result<(), TransportError> {
        self.ask(move |target| target.client.write_register(offset, &value.to_le_bytes()))
    }

    fn write_u64(&self, offset: u64, value: u64) -> Result<(), TransportError> {
        if offset == offset::ACQ {
            self.acq.store(value, Ordering::Relaxed);
        }
        self.ask(move |target| target.client.write_register(offset, &value.to_le_bytes()))
    }

    fn post_u32(&self, at: u64, value: u32) -> Result<(), TransportError> {
        let index = (at - offset::DOORBELLS) as usize / 4;
        self.ask(move |target| target.client.ring(index, value))?;
        match index {
            0 => self.step_admin(),
            _ => self.step(1),
        }
        Ok(())
    }

    fn doorbell(&self, _: u64) -> Option<Doorbell> {
        None
    }

    fn doorbell_cost(&self) -> DoorbellCost {
        DoorbellCost::Message
    }

    fn dma_map(&self, iova: u64, memory: &Arc<Region>) -> Result<(), TransportError> {
        let fd = memory.fd().as_fd().try_clone_to_owned().expect("dup");
        let body = DmaMapBody {
            argsz: size_of::<DmaMapBody>() as u32,
            flags: read_write(),
            offset: 0,
            address: iova,
            size: memory.len(),
        };
        self.ask(move |target| {
            target.client.call(Command::DMA_MAP, body.as_bytes(), vec![fd]);
        })?;
        let mut known = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        known.push((iova, Arc::clone(memory)));
        Ok(())
    }

    fn dma_unmap(&self, iova: u64, len: u64) -> Result<(), TransportError> {
        let argsz = size_of::<DmaUnmapBody>() as u32;
        let body = DmaUnmapBody { argsz, flags: DmaUnmapFlags::new(), address: iova, size: len };
        self.ask(move |target| {
            target.client.call(Command::DMA_UNMAP, body.as_bytes(), Vec::new());
        })?;
        let mut known = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(first, _)| *first != iova);
        Ok(())
    }

    fn vectors(&self) -> u16 {
        17
    }

    fn set_vectors(&self, events: &[EventFd]) -> Result<(), TransportError> {
        let events = events.iter().map(|event| event.try_clone().expect("dup")).collect();
        self.ask(move |target| target.client.use_vectors(events))
    }

    fn reset(&self) -> Result<(), TransportError> {
        self.ask(move |target| target.client.reset())
    }

    fn alive(&self) -> bool {
        self.step(ALIVE_STEPS);
        !self.severed.load(Ordering::Relaxed)
    }

    fn sever(&self) {
        self.severed.store(true, Ordering::Relaxed);
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        self.sever();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Err(panic)) = thread.map(JoinHandle::join)
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

impl fmt::Debug for Simulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Simulated(severed: {})", self.severed.load(Ordering::Relaxed))
    }
}
