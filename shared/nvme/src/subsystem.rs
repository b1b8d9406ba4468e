//! An NVM subsystem: its names, its namespaces, and which controllers it has. One value, shared by the controllers of
//! one frontend; it does not know the controllers themselves.
//!
//! Every change of a namespace takes a change number. A controller that is told that the subsystem changed compares
//! the numbers with those it has seen, rewrites the rows that are behind and announces them to its host.

use crate::namespace::{Identity, LBA_FORMATS, Namespace, NamespaceConfig, Protection, index_of};
use ipc::layout::MAX_NAMESPACES;
use nvme_spec::{ControllerId, Nsid};
use std::collections::BTreeSet;

/// Most controllers of one subsystem: far more than one host has guests, few enough to list.
pub const MAX_CONTROLLERS: usize = 1024;
/// Longest NVMe Qualified Name in bytes. NVMe Base 2.0c 4.5.
const MAX_NQN: usize = 223;

/// The names of a subsystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubsystemConfig {
    /// NVMe Qualified Name (SUBNQN), `nqn.yyyy-mm.reverse.domain:name` or `nqn.2014-08.org.nvmexpress:uuid:...`.
    pub nqn: String,
    /// Serial Number (SN), at most 20 ASCII characters.
    pub serial: String,
    /// Model Number (MN), at most 40 ASCII characters.
    pub model: String,
    /// Firmware Revision (FR), at most 8 ASCII characters.
    pub firmware: String,
    /// The subsystem may have several controllers, whose hosts share the namespaces (CMIC, NMIC).
    pub shared: bool,
}

/// Why a subsystem or a namespace is not possible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubsystemError {
    /// The qualified name is none.
    #[error("nqn {nqn:?} is not an nvme qualified name of at most {MAX_NQN} bytes")]
    Nqn {
        /// The name.
        nqn: String,
    },
    /// A text does not fit its field.
    #[error("{field} {text:?} is not printable ascii of at most {limit} characters")]
    Text {
        /// The field.
        field: &'static str,
        /// What was to stand there.
        text: String,
        /// Its size.
        limit: usize,
    },
    /// No namespace can have this identifier.
    #[error("nsid {0} is not in 1 to {MAX_NAMESPACES}")]
    Nsid(u32),
    /// The identifier is taken.
    #[error("nsid {0} is in use")]
    Exists(u32),
    /// There is no such namespace.
    #[error("nsid {0} has no namespace")]
    Missing(u32),
    /// The namespace is being formatted.
    #[error("nsid {0} is being formatted")]
    Formatting(u32),
    /// The logical block size is none of those on offer, or larger than the device.
    #[error("nsid {nsid} cannot have {size} bytes in blocks of two to the power of {block_shift}")]
    Size {
        /// The namespace.
        nsid: u32,
        /// Bytes of the block device.
        size: u64,
        /// Logical block size as a shift.
        block_shift: u32,
    },
}

/// A subsystem.
#[derive(Debug)]
pub struct Subsystem {
    config: SubsystemConfig,
    namespaces: Vec<Option<Namespace>>,
    /// Change number of every table index, kept when the namespace goes.
    changes: Vec<u64>,
    controllers: BTreeSet<ControllerId>,
    connected: BTreeSet<ControllerId>,
    change: u64,
    generation: u32,
    /// Pauses of namespaces so far.
    pauses: u64,
}

impl Subsystem {
    /// A subsystem without namespaces and controllers.
    ///
    /// # Errors
    /// A name that does not fit its field.
    pub fn new(config: SubsystemConfig) -> Result<Self, SubsystemError> {
        let printable = |text: &str| text.chars().all(|c| matches!(c, ' '..='~'));
        if !config.nqn.starts_with("nqn.") || config.nqn.len() > MAX_NQN || !printable(&config.nqn)
        {
            return Err(SubsystemError::Nqn { nqn: config.nqn });
        }
        for (field, text, limit) in [
            ("serial", &config.serial, 20),
            ("model", &config.model, 40),
            ("firmware", &config.firmware, 8),
        ] {
            if text.len() > limit || !printable(text) {
                return Err(SubsystemError::Text { field, text: text.clone(), limit });
            }
        }
        Ok(Self {
            config,
            namespaces: (0..MAX_NAMESPACES).map(|_| None).collect(),
            changes: vec![0; MAX_NAMESPACES],
            controllers: BTreeSet::new(),
            connected: BTreeSet::new(),
            change: 0,
            generation: 0,
            pauses: 0,
        })
    }

    /// The names.
    pub fn config(&self) -> &SubsystemConfig {
        &self.config
    }

    /// Says whether the subsystem may have several controllers; hosts see it at their next Identify.
    pub fn set_shared(&mut self, shared: bool) {
        self.config.shared = shared;
    }

    /// Takes the lowest controller identifier that is free; `None` if there are [`MAX_CONTROLLERS`].
    pub fn add_controller(&mut self) -> Option<ControllerId> {
        let free = (1..=MAX_CONTROLLERS as u16)
            .map(ControllerId)
            .find(|id| !self.controllers.contains(id))?;
        self.controllers.insert(free);
        Some(free)
    }

    /// Gives a controller identifier back. Nothing of the controller is in flight any more.
    pub fn remove_controller(&mut self, id: ControllerId) {
        self.controllers.remove(&id);
        self.disconnected(id);
        for namespace in self.namespaces.iter_mut().flatten() {
            if let Some(waiting) = &mut namespace.formatting {
                waiting.remove(&id);
            }
        }
    }

    /// Whether the subsystem has this controller.
    pub fn has_controller(&self, id: ControllerId) -> bool {
        self.controllers.contains(&id)
    }

    /// Whether the subsystem has no more than one controller.
    pub fn is_alone(&self) -> bool {
        self.controllers.len() <= 1
    }

    /// The namespace, if there is one.
    pub fn namespace(&self, nsid: Nsid) -> Option<&Namespace> {
        self.namespaces.get(index_of(nsid)?)?.as_ref()
    }

    /// All namespaces with their identifiers, ascending.
    pub fn namespaces(&self) -> impl Iterator<Item = (Nsid, &Namespace)> {
        (1..).map(Nsid).zip(&self.namespaces).filter_map(|(id, slot)| Some((id, slot.as_ref()?)))
    }

    /// Adds a namespace. Afterwards every controller is told ([`crate::Controller::subsystem_changed`]).
    ///
    /// # Errors
    /// An identifier that is taken or out of range, a block size that is not on offer, names that are too long.
    pub fn add_namespace(&mut self, config: NamespaceConfig) -> Result<(), SubsystemError> {
        let nsid = config.nsid;
        let index = index_of(nsid).ok_or(SubsystemError::Nsid(nsid.0))?;
        check_size(nsid, config.size, config.block_shift)?;
        for (field, text, limit) in [("backend", &config.backend, 32), ("bdev", &config.bdev, 64)] {
            if text.len() > limit {
                return Err(SubsystemError::Text { field, text: text.clone(), limit });
            }
        }
        if self.namespaces.get(index).is_some_and(Option::is_some) {
            return Err(SubsystemError::Exists(nsid.0));
        }
        let identity = Identity::derive(&self.config.nqn, nsid, &config.bdev);
        self.generation = self.generation.wrapping_add(1).max(1);
        let namespace = Namespace::new(config, identity, self.generation);
        if let Some(slot) = self.namespaces.get_mut(index) {
            *slot = Some(namespace);
        }
        self.touch(nsid);
        Ok(())
    }

    /// Notes where in which trace a namespace was asked for, for whoever does something for its sake: the trace id, high
    /// half first, and the span id. To be said before a controller sees the namespace.
    pub fn note_trace(&mut self, nsid: Nsid, asked_in: [u64; 3]) {
        if let Some(namespace) = self.namespace_mut(nsid) {
            namespace.asked_in = asked_in;
        }
    }

    /// Changes a namespace's size, in bytes. Afterwards every controller is told.
    ///
    /// # Errors
    /// No such namespace, or a size below one block.
    pub fn resize_namespace(&mut self, nsid: Nsid, size: u64) -> Result<(), SubsystemError> {
        let namespace = self.namespace_mut(nsid).ok_or(SubsystemError::Missing(nsid.0))?;
        check_size(nsid, size, namespace.config().block_shift)?;
        if namespace.config().size != size {
            namespace.config_mut().size = size;
            self.touch(nsid);
        }
        Ok(())
    }

    /// Removes a namespace. Afterwards every controller is told; its block device may go when all are settled
    /// ([`crate::Controller::is_settled`]).
    ///
    /// # Errors
    /// No such namespace, or one that is being formatted.
    pub fn remove_namespace(&mut self, nsid: Nsid) -> Result<(), SubsystemError> {
        let namespace = self.namespace(nsid).ok_or(SubsystemError::Missing(nsid.0))?;
        if namespace.formatting.is_some() {
            return Err(SubsystemError::Formatting(nsid.0));
        }
        if let Some(slot) = index_of(nsid).and_then(|index| self.namespaces.get_mut(index)) {
            *slot = None;
        }
        self.touch(nsid);
        Ok(())
    }

    /// Pauses a namespace: its commands are held, and no format of it begins, until [`Subsystem::resume_namespace`].
    /// Afterwards every controller is told; it is still when all say so ([`crate::Controller::is_namespace_still`]). One
    /// that is paused already stays so.
    ///
    /// # Errors
    /// No such namespace.
    pub fn pause_namespace(&mut self, nsid: Nsid) -> Result<(), SubsystemError> {
        let number = self.pauses + 1;
        let namespace = self.namespace_mut(nsid).ok_or(SubsystemError::Missing(nsid.0))?;
        if namespace.pause == 0 {
            namespace.pause = number;
            self.pauses = number;
            self.touch(nsid);
        }
        Ok(())
    }

    /// Goes on with a namespace that is paused; nothing happens to any other. Afterwards every controller is told.
    pub fn resume_namespace(&mut self, nsid: Nsid) {
        if let Some(namespace) = self.namespace_mut(nsid).filter(|namespace| namespace.pause != 0) {
            namespace.pause = 0;
            self.touch(nsid);
        }
    }

    /// The number of a namespace's pause; `None` if it is not paused.
    pub(crate) fn pause_of(&self, nsid: Nsid) -> Option<u64> {
        self.namespace(nsid).map(|namespace| namespace.pause).filter(|&number| number != 0)
    }

    /// A client came to a controller.
    pub(crate) fn connected(&mut self, id: ControllerId) {
        self.connected.insert(id);
    }

    /// A client left. When the last one is gone, the subsystem is without power: protection until then ends.
    pub(crate) fn disconnected(&mut self, id: ControllerId) -> bool {
        if !self.connected.remove(&id) || !self.connected.is_empty() {
            return false;
        }
        let protected: Vec<Nsid> = self
            .namespaces()
            .filter(|(_, space)| space.config().protection == Protection::UntilPowerCycle)
            .map(|(nsid, _)| nsid)
            .collect();
        protected.iter().for_each(|&nsid| self.set_protection(nsid, Protection::None));
        !protected.is_empty()
    }

    pub(crate) fn set_protection(&mut self, nsid: Nsid, protection: Protection) {
        if let Some(namespace) = self.namespace_mut(nsid) {
            namespace.config_mut().protection = protection;
            self.touch(nsid);
        }
    }

    /// Starts a format: every controller that has a client has to drain the namespace first.
    pub(crate) fn begin_format(&mut self, nsid: Nsid) {
        let waiting = self.connected.clone();
        if let Some(namespace) = self.namespace_mut(nsid) {
            namespace.formatting = Some(waiting);
            self.touch(nsid);
        }
    }

    /// Controller `id` has nothing in flight to the namespace. True if it is drained everywhere.
    pub(crate) fn drained(&mut self, nsid: Nsid, id: ControllerId) -> bool {
        let Some(waiting) = self.namespace_mut(nsid).and_then(|space| space.formatting.as_mut())
        else {
            return true;
        };
        waiting.remove(&id);
        waiting.is_empty()
    }

    /// Whether no controller has anything in flight to a namespace that is being formatted.
    pub(crate) fn is_drained(&self, nsid: Nsid) -> bool {
        let waiting = self.namespace(nsid).and_then(|space| space.formatting.as_ref());
        waiting.is_none_or(BTreeSet::is_empty)
    }

    /// Ends a format, with the new block size if it succeeded.
    pub(crate) fn end_format(&mut self, nsid: Nsid, block_shift: Option<u32>) {
        if let Some(namespace) = self.namespace_mut(nsid) {
            namespace.formatting = None;
            if let Some(block_shift) = block_shift {
                namespace.config_mut().block_shift = block_shift;
            }
            self.touch(nsid);
        }
    }

    /// The change number of a table index.
    pub(crate) fn change_of(&self, index: usize) -> u64 {
        self.changes.get(index).copied().unwrap_or(0)
    }

    fn namespace_mut(&mut self, nsid: Nsid) -> Option<&mut Namespace> {
        self.namespaces.get_mut(index_of(nsid)?)?.as_mut()
    }

    fn touch(&mut self, nsid: Nsid) {
        self.change += 1;
        if let Some(slot) = index_of(nsid).and_then(|index| self.changes.get_mut(index)) {
            *slot = self.change;
        }
    }
}

fn check_size(nsid: Nsid, size: u64, block_shift: u32) -> Result<(), SubsystemError> {
    let fits = LBA_FORMATS.contains(&block_shift) && size >> block_shift > 0;
    if fits { Ok(()) } else { Err(SubsystemError::Size { nsid: nsid.0, size, block_shift }) }
}
