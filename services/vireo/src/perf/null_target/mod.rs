//! A target within this process: enough of a controller for the driver to come up, and I/O commands that are completed
//! in the very call that rings their doorbell. With [`NullMedium`] what remains is the cost of `vireo perf` and its
//! driver.
//!
//! It trusts its driver: it is not a target that others could connect to.

mod admin;
mod queue;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use ipc::event::EventFd;
use ipc::guest_memory::{Access, Region};
use nvme_driver::transport::{Doorbell, DoorbellCost, Transport, TransportError};
use nvme_spec::register::{
    Cap, CapCss, Cc, Csts, DoorbellKind, ShutdownNotification, ShutdownStatus, Vs, doorbell_at,
    offset,
};
use nvme_spec::{Command, Status};

pub use queue::Memory;
use queue::Queues;

/// I/O queue pairs at most.
const QUEUES_MAX: usize = 1024;
/// Most commands of a queue, 0's based.
const MQES_Z: u16 = 32_767;

/// Finds `len` bytes that the driver mapped at an address.
pub type Find<'a> = &'a dyn Fn(u64, usize) -> Option<Memory>;

/// What the I/O commands act on.
///
/// Contract: `execute` returns soon and never panics; it may be called from several threads at a time.
pub trait Medium: fmt::Debug + Send + Sync {
    /// Logical blocks of the one namespace, and base two logarithm of their size.
    fn size(&self) -> (u64, u8);

    /// Whether the namespace is write protected.
    fn is_write_protected(&self) -> bool {
        false
    }

    /// Carries an I/O command out; `None`: it stays outstanding. `find` finds the memory that it points to.
    fn execute(&self, command: &Command, find: Find<'_>) -> Option<Status>;
}

/// Nothing is read or written: everything succeeds.
#[derive(Debug, Clone, Copy, Default)]
pub struct NullMedium;

/// Size of the null namespace: 1 TiB of 512 bytes.
const NULL_SIZE: (u64, u8) = (1 << 31, 9);

impl Medium for NullMedium {
    fn size(&self) -> (u64, u8) {
        NULL_SIZE
    }

    #[inline]
    fn execute(&self, _: &Command, _: Find<'_>) -> Option<Status> {
        Some(Status::SUCCESS)
    }
}

/// The controller.
#[derive(Debug)]
pub struct NullTarget<M> {
    medium: M,
    cc: AtomicU32,
    shut_down: AtomicBool,
    aqa: AtomicU32,
    asq: AtomicU64,
    acq: AtomicU64,
    memory: RwLock<Vec<(u64, Arc<Region>)>>,
    /// The admin queue pair, then the others.
    queues: Box<[Mutex<Queues>]>,
    events: RwLock<Vec<Option<EventFd>>>,
    severed: AtomicBool,
}

impl<M: Medium> NullTarget<M> {
    /// A controller that is disabled.
    pub fn new(medium: M) -> Self {
        Self {
            medium,
            cc: AtomicU32::new(0),
            shut_down: AtomicBool::new(false),
            aqa: AtomicU32::new(0),
            asq: AtomicU64::new(0),
            acq: AtomicU64::new(0),
            memory: RwLock::default(),
            queues: (0..=QUEUES_MAX).map(|_| Mutex::default()).collect(),
            events: RwLock::default(),
            severed: AtomicBool::new(false),
        }
    }

    /// What the I/O commands act on.
    pub fn medium(&self) -> &M {
        &self.medium
    }

    fn cap() -> Cap {
        Cap::new()
            .with_mqes_z(MQES_Z)
            .with_cqr(true)
            .with_to(1)
            .with_css(CapCss::new().with_nvm(true))
    }

    fn queue(&self, qid: u16) -> Option<MutexGuard<'_, Queues>> {
        let queue = self.queues.get(usize::from(qid))?;
        Some(queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The memory at an address that the driver mapped.
    fn find(&self, iova: u64, len: usize) -> Option<Memory> {
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        memory.iter().find_map(|(first, region)| {
            let offset = iova.checked_sub(*first)?;
            region.slice(offset, len, Access::READ_WRITE)?;
            Some(Memory { region: Arc::clone(region), offset, len })
        })
    }

    fn enable(&self, value: u32) {
        let (old, new) =
            (Cc::from_bits(self.cc.swap(value, Ordering::AcqRel)), Cc::from_bits(value));
        self.shut_down.store(new.shn() != ShutdownNotification::NONE, Ordering::Release);
        if old.en() == new.en() {
            return;
        }
        for queue in &self.queues {
            *queue.lock().unwrap_or_else(PoisonError::into_inner) = Queues::default();
        }
        if new.en() {
            self.create_admin_queues();
        }
    }

    fn csts(&self) -> Csts {
        let enabled = Cc::from_bits(self.cc.load(Ordering::Acquire)).en();
        let shst = match self.shut_down.load(Ordering::Acquire) {
            true => ShutdownStatus::COMPLETE,
            false => ShutdownStatus::NORMAL_OPERATION,
        };
        Csts::new().with_rdy(enabled).with_shst(shst)
    }

    /// A doorbell rang: what is new is done before this returns.
    fn ring(&self, offset: u64, value: u32) {
        match doorbell_at(0, offset) {
            Some((qid, DoorbellKind::SubmissionTail)) if qid.0 == 0 => self.run_admin(value),
            Some((qid, DoorbellKind::SubmissionTail)) => self.run_io(qid.0, value),
            // Completion queues are twice as long as what can be outstanding: they are never full.
            Some((_, DoorbellKind::CompletionHead)) | None => {}
        }
    }

    fn run_io(&self, qid: u16, tail: u32) {
        let Some(mut queue) = self.queue(qid) else { return };
        let queue = &mut *queue;
        queue.run(tail, |command| {
            let status = self.medium.execute(command, &|iova, len| self.find(iova, len));
            status.map(|status| (status, 0))
        });
        if let Some(vector) = queue.interrupt() {
            let events = self.events.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(Some(event)) = events.get(usize::from(vector)) {
                // It is not full: nobody signals it 2^64 times.
                event.signal().ok();
            }
        }
    }

    fn check(&self) -> Result<(), TransportError> {
        if self.severed.load(Ordering::Acquire) { Err(TransportError::Gone) } else { Ok(()) }
    }
}

impl<M: Medium> Transport for NullTarget<M> {
    fn read_u32(&self, at: u64) -> Result<u32, TransportError> {
        self.check()?;
        Ok(match at {
            offset::VS => Vs::V2_0.into_bits(),
            offset::CC => self.cc.load(Ordering::Acquire),
            offset::CSTS => self.csts().into_bits(),
            _ => 0,
        })
    }

    fn read_u64(&self, at: u64) -> Result<u64, TransportError> {
        self.check()?;
        Ok(if at == offset::CAP { Self::cap().into_bits() } else { 0 })
    }

    fn write_u32(&self, at: u64, value: u32) -> Result<(), TransportError> {
        self.post_u32(at, value)
    }

    fn write_u64(&self, at: u64, value: u64) -> Result<(), TransportError> {
        self.check()?;
        match at {
            offset::ASQ => self.asq.store(value, Ordering::Release),
            offset::ACQ => self.acq.store(value, Ordering::Release),
            _ => {}
        }
        Ok(())
    }

    #[inline]
    fn post_u32(&self, at: u64, value: u32) -> Result<(), TransportError> {
        self.check()?;
        match at {
            offset::DOORBELLS.. => self.ring(at, value),
            offset::CC => self.enable(value),
            offset::AQA => self.aqa.store(value, Ordering::Release),
            _ => {}
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
        let mut all = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        all.push((iova, Arc::clone(memory)));
        Ok(())
    }

    fn dma_unmap(&self, iova: u64, _: u64) -> Result<(), TransportError> {
        let mut all = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(first, _)| *first != iova);
        Ok(())
    }

    fn vectors(&self) -> u16 {
        QUEUES_MAX as u16 + 1
    }

    fn set_vectors(&self, events: &[EventFd]) -> Result<(), TransportError> {
        let clones = events.iter().map(|event| event.try_clone().ok()).collect();
        *self.events.write().unwrap_or_else(PoisonError::into_inner) = clones;
        Ok(())
    }

    fn reset(&self) -> Result<(), TransportError> {
        self.enable(0);
        Ok(())
    }

    fn alive(&self) -> bool {
        !self.severed.load(Ordering::Acquire)
    }

    fn sever(&self) {
        self.severed.store(true, Ordering::Release);
    }
}
