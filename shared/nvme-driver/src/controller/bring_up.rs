//! Bringing a controller up, resetting it, shutting it down. NVMe Base 2.0c 3.5.1, 3.6, 3.7.2.

use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use ipc::event::EventFd;
use nvme_spec::command::admin::{IdentifyDword10, SetFeaturesDword10};
use nvme_spec::feature::event::AsyncEventConfiguration;
use nvme_spec::feature::{FeatureId, HostBehaviorSupport, NumberOfQueues};
use nvme_spec::identify::Cns;
use nvme_spec::identify::controller::IdentifyController;
use nvme_spec::log_page::smart::CriticalWarning;
use nvme_spec::register::{
    Cap, Cc, CommandSetSelected, Csts, NSSR_RESET, ShutdownNotification, ShutdownStatus, Vs, offset,
};
use nvme_spec::{AdminOpcode, Command, CommandId, Completion, Iova};
use zerocopy::{FromZeros, IntoBytes};

use super::admin::AdminData;
use super::admin_queue::AdminQueue;
use super::{Domain, Inner, ready};
use crate::error::Error;
use crate::memory::Registered;
use crate::options::{Options, ShadowDoorbells};
use crate::retry::RetryDelays;
use crate::transport::{DoorbellCost, Transport, TransportError};

/// Least time that a shutdown is given: RTD3E is often not reported.
const SHUTDOWN_MIN: Duration = Duration::from_secs(2);
/// Most time that a shutdown is given, whatever RTD3E says.
const SHUTDOWN_MAX: Duration = Duration::from_secs(10);
/// IOSQES and IOCQES: entries of 64 and 16 bytes.
const SQES: u8 = 6;
const CQES: u8 = 4;

/// Brings up the controller behind `transport`.
pub(super) fn start(
    transport: Arc<dyn Transport>,
    address: &str,
    options: &Options,
) -> Result<Inner, Error> {
    let cap = Cap::from_bits(transport.read_u64(offset::CAP)?);
    let vs = Vs::from_bits(transport.read_u32(offset::VS)?);
    if cap.into_bits() == u64::MAX {
        return Err(Error::Gone);
    }
    if !cap.css().nvm() && !cap.css().io_command_sets() {
        let found = format!("CAP.CSS {:#x}", cap.css().into_bits());
        return Err(Error::Unsupported { found, supported: "the nvm command set" });
    }
    if transport.is_inherited() {
        ready::take_over(&*transport, cap)?;
    }
    let page_shift = u32::from(cap.mpsmin()) + 12;
    let domain = Domain::new(Arc::clone(&transport), page_shift);
    let admin = AdminQueue::new(&transport, &domain, cap.dstrd(), page_shift)?;
    let mut inner = Inner {
        address: address.to_owned(),
        transport,
        domain,
        options: options.clone(),
        cap,
        vs,
        admin: Mutex::new(admin),
        identify: RwLock::new(Arc::new(IdentifyController::zeroed())),
        generation: AtomicU32::new(0),
        gone: AtomicBool::new(false),
        queues: Mutex::default(),
        vectors: Vec::new(),
        shadow: None,
    };
    let result = inner.first_start();
    if result.is_err() {
        // Whatever state it is in, it is not to be talked to again.
        inner.gone.store(true, std::sync::atomic::Ordering::Release);
    }
    result.map(|()| inner)
}

impl Inner {
    fn first_start(&mut self) -> Result<(), Error> {
        self.disable()?;
        {
            let mut admin = self.admin();
            admin.clear(self.doorbells_are_memory());
            self.enable(&mut admin)?;
        }
        self.shadow = self.shadow_memory()?;
        self.vectors = self.interrupt_events()?;
        let mut admin = self.admin();
        let granted = self.configure(&mut admin)?;
        *self.queues.lock().unwrap_or_else(PoisonError::into_inner) = vec![false; granted.into()];
        Ok(())
    }

    /// Resets the controller, unless that was done since `generation`.
    pub(crate) fn reset(&self, generation: u32) -> Result<(), Error> {
        let mut admin = self.admin();
        if self.is_gone() {
            return Err(Error::Gone);
        }
        if self.generation() != generation {
            return Ok(());
        }
        tracing::info!(controller = %self.address, "controller reset");
        let result = self.reset_now(&mut admin);
        if let Err(error) = &result {
            tracing::warn!(controller = %self.address, error = %crate::error::chain(error), "controller reset failed");
            self.give_up("it did not come back from a reset");
        }
        result
    }

    /// Resets the subsystem, then does what any reset does.
    pub(crate) fn reset_subsystem(&self) -> Result<(), Error> {
        if !self.cap.nssrs() {
            let found = "a controller without CAP.NSSRS".to_owned();
            return Err(Error::Unsupported { found, supported: "one with subsystem reset" });
        }
        let mut admin = self.admin();
        if self.is_gone() {
            return Err(Error::Gone);
        }
        tracing::info!(controller = %self.address, "nvm subsystem reset");
        let result = self.subsystem_reset_now().and_then(|()| self.reset_now(&mut admin));
        if let Err(error) = &result {
            tracing::warn!(controller = %self.address, error = %crate::error::chain(error), "nvm subsystem reset failed");
            self.give_up("it did not come back from a subsystem reset");
        }
        result
    }

    /// Writes NSSR, waits until CSTS.NSSRO says that it took place, and takes that back.
    fn subsystem_reset_now(&self) -> Result<(), Error> {
        self.transport.write_u32(offset::NSSR, NSSR_RESET)?;
        let timeout = self.ready_timeout();
        self.wait_for("resetting the nvm subsystem", timeout, |csts| csts.nssro() && !csts.rdy())?;
        self.transport.write_u32(offset::CSTS, Csts::new().with_nssro(true).into_bits())?;
        Ok(())
    }

    fn reset_now(&self, admin: &mut AdminQueue) -> Result<(), Error> {
        if self.disable().is_err() {
            if self.check_alive() {
                return Err(Error::Gone);
            }
            self.transport.reset()?;
            self.disable()?;
        }
        self.next_generation();
        admin.clear(self.doorbells_are_memory());
        self.enable(admin)?;
        self.configure(admin).map(drop)
    }

    /// Clears CC.EN and waits until the controller is not ready: then it does no DMA any more.
    fn disable(&self) -> Result<(), Error> {
        ready::disable(&*self.transport, self.cap)
    }

    /// Sets the admin queue up, sets CC.EN, waits for CSTS.RDY and reads Identify Controller.
    fn enable(&self, admin: &mut AdminQueue) -> Result<(), Error> {
        let (aqa, asq, acq) = admin.registers();
        self.transport.write_u32(offset::AQA, aqa.into_bits())?;
        self.transport.write_u64(offset::ASQ, asq.0)?;
        self.transport.write_u64(offset::ACQ, acq.0)?;
        let css = match self.cap.css().nvm() {
            true => CommandSetSelected::NVM,
            false => CommandSetSelected::ALL,
        };
        let cc = Cc::new().with_en(true).with_css(css).with_mps(self.cap.mpsmin());
        let cc = cc.with_iosqes(SQES).with_iocqes(CQES);
        self.transport.write_u32(offset::CC, cc.into_bits())?;
        self.wait_for("enabling the controller", self.ready_timeout(), |csts| csts.rdy())?;
        let mut identify = IdentifyController::new_zeroed();
        let mut command = Command::admin(AdminOpcode::IDENTIFY, CommandId(0));
        command.cdw10 = IdentifyDword10::new().with_cns(Cns::CONTROLLER).into_bits();
        self.command(admin, command, AdminData::In(identify.as_mut_bytes()))?;
        *self.identify.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(identify);
        Ok(())
    }

    /// Tells the controller what its host wants, and learns how many queues it grants.
    fn configure(&self, admin: &mut AdminQueue) -> Result<u16, Error> {
        let identify = self.identify();
        let wanted_z = self.options.queues.clamp(1, u16::MAX - 1) - 1;
        let wanted = NumberOfQueues::new().with_nsq_z(wanted_z).with_ncq_z(wanted_z);
        let command = set_feature(FeatureId::NUMBER_OF_QUEUES, wanted.into_bits());
        let granted = self.command(admin, command, AdminData::None)?.dw0;
        let granted = NumberOfQueues::from_bits(granted);
        let granted = granted.nsq_z().min(granted.ncq_z()).min(wanted_z).saturating_add(1);
        if RetryDelays::of(&identify).any() {
            let mut behavior = HostBehaviorSupport::zeroed();
            behavior.acre = 1;
            let command = set_feature(FeatureId::HOST_BEHAVIOR_SUPPORT, 0);
            // Without it no status has a delay, which is no loss.
            self.optional(admin, command, AdminData::Out(behavior.as_bytes()))?;
        }
        if let Some(shadow) = &self.shadow {
            shadow.host().fill(0);
            let page = 1 << self.page_shift();
            let command = Command::admin(AdminOpcode::DOORBELL_BUFFER_CONFIG, CommandId(0))
                .with_prps(Iova(shadow.iova()), Iova(shadow.iova() + page));
            self.command(admin, command, AdminData::None)?;
        }
        let oaes = identify.oaes;
        let events = AsyncEventConfiguration::new()
            .with_smart(CriticalWarning::from_bits(0x1F))
            .with_namespace_attribute(oaes.namespace_attribute())
            .with_firmware_activation(oaes.firmware_activation())
            .with_ana_change(oaes.ana_change());
        let command = set_feature(FeatureId::ASYNC_EVENT_CONFIGURATION, events.into_bits());
        self.optional(admin, command, AdminData::None)?;
        admin.request_events(identify.acl_z, identify.aerl_z);
        Ok(granted)
    }

    /// Runs a command whose refusal does not matter.
    fn optional(
        &self,
        admin: &mut AdminQueue,
        command: Command,
        data: AdminData<'_>,
    ) -> Result<(), Error> {
        match self.command(admin, command, data) {
            Ok(_) => Ok(()),
            Err(Error::Command { opcode, status }) => {
                tracing::debug!(controller = %self.address, %opcode, %status, "optional command refused");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Runs an admin command; a status other than success is an error.
    pub(super) fn command(
        &self,
        admin: &mut AdminQueue,
        command: Command,
        data: AdminData<'_>,
    ) -> Result<Completion, Error> {
        let completion = admin.run(self, command, data, self.options.admin_timeout)?;
        match completion.status() {
            status if status.is_success() => Ok(completion),
            status => Err(Error::Command { opcode: command.admin_opcode(), status }),
        }
    }

    /// Normal shutdown: CC.SHN, then CSTS.SHST says when it is complete; the controller is given up after it.
    pub(super) fn shutdown(&self) -> Result<(), Error> {
        let admin = self.admin();
        if self.is_gone() {
            return Err(Error::Gone);
        }
        let result = self.shutdown_now();
        drop(admin);
        // Not before the end of what it did: its queues lie in our memory.
        self.give_up("it was shut down");
        result
    }

    fn shutdown_now(&self) -> Result<(), Error> {
        let timeout = Duration::from_micros(self.identify().rtd3e.into());
        let timeout = timeout.clamp(SHUTDOWN_MIN, SHUTDOWN_MAX);
        let cc = Cc::from_bits(self.transport.read_u32(offset::CC)?);
        let notify = cc.with_shn(ShutdownNotification::NORMAL);
        self.transport.write_u32(offset::CC, notify.into_bits())?;
        let shut = self.wait_for("shutting the controller down", timeout, |csts| {
            csts.shst() == ShutdownStatus::COMPLETE
        });
        let disabled = self.disable();
        shut.and(disabled)
    }

    fn wait_for(
        &self,
        what: &'static str,
        timeout: Duration,
        done: impl FnMut(Csts) -> bool,
    ) -> Result<(), Error> {
        ready::wait_for(&*self.transport, what, timeout, done)
    }

    /// How long the controller may take to become ready or not ready.
    fn ready_timeout(&self) -> Duration {
        ready::timeout(&*self.transport, self.cap)
    }

    /// Memory of the shadow doorbells, if they are to be used.
    fn shadow_memory(&self) -> Result<Option<Registered>, Error> {
        let use_them = match self.options.shadow_doorbells {
            ShadowDoorbells::Auto => self.transport.doorbell_cost() != DoorbellCost::Memory,
            ShadowDoorbells::Offered => true,
            ShadowDoorbells::Never => false,
        };
        if !use_them || !self.identify().oacs.doorbell_buffer() {
            return Ok(None);
        }
        Ok(Some(Registered::allocate(&self.domain, 2 << self.page_shift())?))
    }

    /// Events of the interrupt vectors, one for each queue as far as there are vectors.
    fn interrupt_events(&self) -> Result<Vec<EventFd>, Error> {
        if !self.options.interrupts {
            return Ok(Vec::new());
        }
        let count = self.transport.vectors().min(self.options.queues.saturating_add(1));
        let events: Result<Vec<_>, _> = (0..count).map(|_| EventFd::create()).collect();
        let events = events.map_err(|error| TransportError::System {
            call: "eventfd",
            source: std::io::Error::other(error),
        })?;
        if !events.is_empty() {
            self.transport.set_vectors(&events)?;
        }
        Ok(events)
    }

    /// Whether doorbells are plain memory, which keeps a stale value until somebody clears it.
    pub(crate) fn doorbells_are_memory(&self) -> bool {
        self.transport.doorbell_cost() == DoorbellCost::Memory
    }
}

pub(super) fn set_feature(fid: FeatureId, value: u32) -> Command {
    let mut command = Command::admin(AdminOpcode::SET_FEATURES, CommandId(0));
    command.cdw10 = SetFeaturesDword10::new().with_fid(fid).into_bits();
    command.cdw11 = value;
    command
}
