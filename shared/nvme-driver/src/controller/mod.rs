//! A controller: brought up, asked, reset, shut down.

mod admin;
mod admin_queue;
mod bring_up;
mod connect;
mod event;
mod queue;
mod ready;

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use ipc::event::EventFd;
use nvme_spec::QueueId;
use nvme_spec::identify::controller::IdentifyController;
use nvme_spec::register::{Cap, Csts, Vs, offset};

use crate::address::Address;
use crate::error::{ConnectError, Error};
use crate::memory::{DmaBuffer, Domain, Registered};
use crate::options::{Options, QueueOptions};
use crate::queue_pair::QueuePair;
use crate::transport::vfio::{Keeper, Keeping};
use crate::transport::{DoorbellCost, Transport};

pub use admin::AdminData;
pub(crate) use admin_queue::AdminQueue;
pub use event::Event;
pub(crate) use queue::QueueMemory;
pub(crate) use ready::retire;

/// A controller that is up. Clones are handles of the same one; the last to go (queue pairs hold one too) shuts it down.
#[derive(Clone)]
pub struct Controller {
    pub(crate) inner: Arc<Inner>,
}

/// What all handles and queue pairs share.
pub(crate) struct Inner {
    pub(crate) address: String,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) domain: Arc<Domain>,
    pub(crate) options: Options,
    pub(crate) cap: Cap,
    pub(crate) vs: Vs,
    pub(crate) admin: Mutex<AdminQueue>,
    pub(crate) identify: RwLock<Arc<IdentifyController>>,
    /// Raised when the controller was disabled or given up: whatever was outstanding before is over.
    generation: AtomicU32,
    gone: AtomicBool,
    /// I/O queue pairs granted, and which of them are in use (index 0 is queue 1).
    pub(crate) queues: Mutex<Vec<bool>>,
    pub(crate) vectors: Vec<EventFd>,
    /// Shadow doorbells and event indexes, a page each, if they are used.
    pub(crate) shadow: Option<Registered>,
}

impl Controller {
    /// Connects to `vfio-user:PATH` or `pcie:DDDD:BB:DD.F` and brings the controller up.
    ///
    /// # Errors
    /// [`ConnectError`]: one line, with what to do about it. Nothing takes much longer than
    /// [`Options::connect_timeout`] and the controller's own time-out (CAP.TO).
    pub fn connect(address: &str) -> Result<Self, ConnectError> {
        Self::connect_with(address, &Options::default())
    }

    /// As [`connect`](Self::connect), with options.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub fn connect_with(address: &str, options: &Options) -> Result<Self, ConnectError> {
        Self::connect_kept(address, options, None)
    }

    /// As [`connect_with`](Self::connect_with), of a PCI function that is kept for this process's successor from before it is
    /// enabled until it was disabled. If a predecessor had it kept, its descriptors are taken over: the controller is disabled,
    /// or reset if it does not obey; then what the predecessor had mapped is taken back; then it is brought up. That waits for
    /// nobody but the controller. Workers that the predecessor had lent queue pairs to may still ring their doorbells:
    /// [`keeping`](Self::keeping) has a list of them, whose identifiers are to be [reserved](Self::reserve_queue) before a
    /// queue pair is made.
    ///
    /// Of a vfio-user target nothing is kept: its server resets the controller when the connection ends.
    ///
    /// # Errors
    /// [`ConnectError`]. What was kept and is of no use is told in the log, and the function is opened as without.
    pub fn connect_kept(
        address: &str,
        options: &Options,
        keeper: Option<&Arc<dyn Keeper>>,
    ) -> Result<Self, ConnectError> {
        let parsed: Address = address.parse()?;
        if let (Address::Pcie(pci), Some(keeper)) = (&parsed, keeper)
            && let Some(controller) = connect::take_over(*pci, address, options, keeper)
        {
            return Ok(controller);
        }
        let transport = connect::reach(&parsed, options, keeper)?;
        Self::over(transport, address, options)
    }

    /// Brings up the controller behind a transport of the caller's; `address` is what messages call it.
    ///
    /// # Errors
    /// [`ConnectError::Start`].
    pub fn over(
        transport: Arc<dyn Transport>,
        address: &str,
        options: &Options,
    ) -> Result<Self, ConnectError> {
        let start = |source| ConnectError::Start { address: address.to_owned(), source };
        let inner = bring_up::start(transport, address, options).map_err(start)?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What the messages of this controller call it.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.inner.address
    }

    /// Controller Capabilities (CAP).
    #[must_use]
    pub fn capabilities(&self) -> Cap {
        self.inner.cap
    }

    /// Version (VS).
    #[must_use]
    pub fn version(&self) -> Vs {
        self.inner.vs
    }

    /// Controller Status (CSTS), read now.
    ///
    /// # Errors
    /// [`Error`].
    pub fn status(&self) -> Result<Csts, Error> {
        self.inner.csts()
    }

    /// What Identify Controller said when the controller came up last.
    #[must_use]
    pub fn identify(&self) -> Arc<IdentifyController> {
        self.inner.identify()
    }

    /// I/O queue pairs that the controller grants.
    #[must_use]
    pub fn granted_queues(&self) -> u16 {
        self.inner.granted()
    }

    /// Interrupt vectors (MSI-X) of the controller; 0 if it has none.
    #[must_use]
    pub fn vectors(&self) -> u16 {
        self.inner.transport.vectors()
    }

    /// Most bytes of one I/O command's data; larger requests are split.
    #[must_use]
    pub fn max_transfer(&self) -> u64 {
        self.inner.data_bytes()
    }

    /// Whether shadow doorbells are in use.
    #[must_use]
    pub fn uses_shadow_doorbells(&self) -> bool {
        self.inner.shadow.is_some()
    }

    /// What a doorbell write costs here.
    #[must_use]
    pub fn doorbell_cost(&self) -> DoorbellCost {
        self.inner.transport.doorbell_cost()
    }

    /// New zeroed memory that the controller may read and write, of at least one page. Allocate once and cut it up
    /// ([`DmaBuffer::into_chunks`]): each call is one registration.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn allocate(&self, len: usize) -> Result<DmaBuffer, Error> {
        let memory = Registered::allocate(&self.inner.domain, len)?;
        memory.buffer(0, len).ok_or(Error::Argument { what: "a buffer holds at least one byte" })
    }

    /// Registers the whole of a memory object (a memfd, a file on tmpfs or hugetlbfs), such as a guest's memory.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn register(&self, memory: OwnedFd) -> Result<Registered, Error> {
        Ok(Registered::register(&self.inner.domain, memory)?)
    }

    /// A queue pair for the calling thread.
    ///
    /// # Errors
    /// [`Error::NoQueue`] if all that were granted are in use, others as the controller answers.
    pub fn queue_pair(&self, options: &QueueOptions) -> Result<QueuePair, Error> {
        QueuePair::create(&self.inner, options)
    }

    /// What is kept of the controller for this process's successor; `None` if nothing is.
    #[must_use]
    pub fn keeping(&self) -> Option<&Keeping> {
        self.inner.transport.keeping()
    }

    /// Keeps a queue identifier from being used until it is [released](Self::release_queue). `false` if it is in use or was not
    /// granted.
    pub fn reserve_queue(&self, qid: QueueId) -> bool {
        self.inner.reserve_queue_id(qid)
    }

    /// Lets a reserved queue identifier be used.
    pub fn release_queue(&self, qid: QueueId) {
        self.inner.give_queue_id_back(qid);
    }

    /// Resets the controller and brings it up again. Outstanding requests of every queue pair end with
    /// [`crate::IoError::Reset`]; the queue pairs come back by themselves at their next poll.
    ///
    /// # Errors
    /// [`Error`]; the controller is gone then.
    pub fn reset(&self) -> Result<(), Error> {
        self.inner.reset(self.inner.generation())
    }

    /// Resets the whole NVM subsystem (NSSR), every controller of it, and brings this one up again, as
    /// [`reset`](Self::reset) does. NVMe Base 2.0c 3.7.1. A PCI function may need to be found anew after it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the controller has no such reset (CAP.NSSRS); with any other the controller is gone.
    pub fn reset_subsystem(&self) -> Result<(), Error> {
        self.inner.reset_subsystem()
    }

    /// Shuts the controller down (CC.SHN) and waits until it says that it is. Handles and queue pairs are of no use
    /// after it: outstanding requests end with [`crate::IoError::Gone`].
    ///
    /// # Errors
    /// [`Error`].
    pub fn shutdown(&self) -> Result<(), Error> {
        self.inner.shutdown()
    }

    /// Whether the controller still is there and in use.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.inner.is_gone() && self.inner.transport.alive()
    }
}

impl Inner {
    /// What was outstanding in another generation is over.
    #[inline]
    pub(crate) fn generation(&self) -> u32 {
        // Acquire: pairs with the Release in `next_generation`.
        self.generation.load(Ordering::Acquire)
    }

    /// Whether the controller was given up.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    fn next_generation(&self) {
        // Release: pairs with the Acquire in `generation`; the controller was disabled before.
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Gives the controller up: nothing is sent to it any more, and everything outstanding ends.
    pub(crate) fn give_up(&self, why: &'static str) {
        if !self.gone.swap(true, Ordering::AcqRel) {
            tracing::warn!(controller = %self.address, why, "controller given up");
            self.transport.sever();
            self.next_generation();
        }
    }

    /// Gives the controller up if its target ended. `true` if it is gone.
    pub(crate) fn check_alive(&self) -> bool {
        if !self.is_gone() && !self.transport.alive() {
            self.give_up("the target ended");
        }
        self.is_gone()
    }

    pub(crate) fn identify(&self) -> Arc<IdentifyController> {
        Arc::clone(&self.identify.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn granted(&self) -> u16 {
        // At most 65,535: what was granted is 16 bits.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner).len() as u16
    }

    pub(crate) fn admin(&self) -> MutexGuard<'_, AdminQueue> {
        self.admin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Base two logarithm of the memory page size in use: the smallest that the controller offers.
    pub(crate) fn page_shift(&self) -> u32 {
        u32::from(self.cap.mpsmin()) + 12
    }

    /// Most bytes of one command's data: MDTS, and what one PRP list reaches.
    pub(crate) fn data_bytes(&self) -> u64 {
        let shift = self.page_shift();
        let reach = crate::prp::Lists::reach(shift);
        match u32::from(self.identify().mdts) {
            0 => reach,
            mdts if mdts + shift >= u64::BITS => reach,
            mdts => reach.min(1 << (mdts + shift)),
        }
    }

    pub(crate) fn csts(&self) -> Result<Csts, Error> {
        if self.is_gone() {
            return Err(Error::Gone);
        }
        Ok(Csts::from_bits(self.transport.read_u32(offset::CSTS)?))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if !self.is_gone()
            && let Err(error) = self.shutdown()
        {
            tracing::debug!(controller = %self.address, %error, "shutdown failed");
        }
        self.transport.sever();
    }
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Controller({})", self.inner.address)
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Inner({})", self.address)
    }
}
