//! Admin commands: Identify, features, log pages, formats, and any other.

use std::time::Duration;

use nvme_spec::command::admin::{
    FormatNvmDword10, GetFeaturesDword10, IdentifyDword10, IdentifyDword11, LogPageDword10,
    LogPageDword11, SetFeaturesDword10,
};
use nvme_spec::command::{Fuse, Psdt};
use nvme_spec::feature::{
    FeatureId, FeatureSelect, NamespaceWriteProtection, WriteProtectionState,
};
use nvme_spec::identify::descriptor::NamespaceIdentifiers;
use nvme_spec::identify::list::{NAMESPACES_MAX, NamespaceList};
use nvme_spec::identify::namespace::IdentifyNamespace;
use nvme_spec::identify::{Cns, CommandSet, IDENTIFY_SIZE};
use nvme_spec::log_page::LogPageId;
use nvme_spec::log_page::smart::SmartHealth;
use nvme_spec::{AdminOpcode, Command, CommandId, Completion, ControllerId, Nsid, Status};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::Controller;
use crate::error::Error;
use crate::namespace::Namespace;

/// Bytes of a log page that are asked for at a time: one memory page, which every controller takes.
const LOG_PIECE: usize = 4096;
/// Most active namespaces that are listed; more than any controller in use has.
const NAMESPACES_LISTED_MAX: usize = 64 * NAMESPACES_MAX;
/// Identifiers that an error message names.
const NAMED_MAX: usize = 16;

/// Data of an admin command, of at most one memory page (4096 bytes or more).
#[derive(Debug)]
pub enum AdminData<'a> {
    /// None.
    None,
    /// From the controller.
    In(&'a mut [u8]),
    /// To the controller.
    Out(&'a [u8]),
}

impl Controller {
    /// Sends an admin command, as it is but for its identifier and data pointer, and waits for its completion, whatever
    /// its status.
    ///
    /// # Errors
    /// [`Error`], if there is no completion. [`Error::Argument`] for what the driver keeps itself: Create and Delete I/O
    /// queue, Asynchronous Event Request ([`next_event`](Self::next_event)), Doorbell Buffer Config.
    pub fn admin(
        &self,
        command: Command,
        data: AdminData<'_>,
        timeout: Duration,
    ) -> Result<Completion, Error> {
        let command = callers(command)?;
        self.inner.admin().run(&self.inner, command, data, timeout)
    }

    /// As [`admin`](Self::admin) with the usual time-out; a status other than success is an error.
    ///
    /// # Errors
    /// [`Error`].
    pub fn admin_command(
        &self,
        command: Command,
        data: AdminData<'_>,
    ) -> Result<Completion, Error> {
        let command = callers(command)?;
        self.inner.command(&mut self.inner.admin(), command, data)
    }

    /// Identify: any structure of 4096 bytes.
    ///
    /// # Errors
    /// [`Error`].
    pub fn identify_as<T: FromBytes + IntoBytes>(
        &self,
        cns: Cns,
        nsid: Nsid,
        cntid: ControllerId,
        csi: CommandSet,
    ) -> Result<T, Error> {
        const { assert!(size_of::<T>() == IDENTIFY_SIZE) };
        let mut data = T::new_zeroed();
        let mut command = Command::admin(AdminOpcode::IDENTIFY, CommandId(0));
        command.nsid = nsid;
        command.cdw10 = IdentifyDword10::new().with_cns(cns).with_cntid(cntid).into_bits();
        command.cdw11 = IdentifyDword11::new().with_csi(csi).into_bits();
        self.admin_command(command, AdminData::In(data.as_mut_bytes()))?;
        Ok(data)
    }

    /// The active namespaces, ascending.
    ///
    /// # Errors
    /// [`Error`].
    pub fn active_namespaces(&self) -> Result<Vec<Nsid>, Error> {
        let mut nsids: Vec<Nsid> = Vec::new();
        loop {
            let after = nsids.last().copied().unwrap_or(Nsid::NONE);
            let list: NamespaceList =
                self.identify_as(Cns::ACTIVE_NAMESPACES, after, ControllerId(0), CommandSet::NVM)?;
            let found = nsids.len();
            // A list that does not ascend would never end.
            nsids.extend(list.iter().scan(after, |last, nsid| {
                let ascends = nsid > *last && nsid.is_specific();
                *last = nsid;
                ascends.then_some(nsid)
            }));
            if nsids.len() < found + NAMESPACES_MAX || nsids.len() >= NAMESPACES_LISTED_MAX {
                return Ok(nsids);
            }
        }
    }

    /// Identify Namespace (CNS 00h): all zeroes for one that is not active.
    ///
    /// # Errors
    /// [`Error`].
    pub fn identify_namespace(&self, nsid: Nsid) -> Result<IdentifyNamespace, Error> {
        self.identify_as(Cns::NAMESPACE, nsid, ControllerId(0), CommandSet::NVM)
    }

    /// A namespace for I/O.
    ///
    /// # Errors
    /// [`Error::NoNamespace`], with those there are, if it is not active.
    pub fn namespace(&self, nsid: Nsid) -> Result<Namespace, Error> {
        let identify = match self.identify_namespace(nsid) {
            Ok(identify) if identify.ncap.0 != 0 || identify.nsze.0 != 0 => identify,
            Ok(_) => return Err(self.no_namespace(nsid)),
            Err(Error::Command { status, .. })
                if [Status::INVALID_NAMESPACE_OR_FORMAT, Status::INVALID_FIELD]
                    .contains(&status.code()) =>
            {
                return Err(self.no_namespace(nsid));
            }
            Err(error) => return Err(error),
        };
        let list: Result<[u8; IDENTIFY_SIZE], Error> =
            self.identify_as(Cns::NAMESPACE_DESCRIPTORS, nsid, ControllerId(0), CommandSet::NVM);
        let identifiers = match list {
            Ok(list) => NamespaceIdentifiers::from_list(&list),
            // Controllers before version 1.3 do not have it.
            Err(Error::Command { .. }) => NamespaceIdentifiers::default(),
            Err(error) => return Err(error),
        };
        Namespace::new(nsid, identify, identifiers, self.inner.data_bytes())
    }

    fn no_namespace(&self, nsid: Nsid) -> Error {
        let active = match self.active_namespaces() {
            Ok(nsids) if nsids.is_empty() => "none".to_owned(),
            Ok(nsids) => {
                let mut names: Vec<_> =
                    nsids.iter().take(NAMED_MAX).map(|nsid| nsid.0.to_string()).collect();
                if nsids.len() > NAMED_MAX {
                    names.push(format!("and {} more", nsids.len() - NAMED_MAX));
                }
                names.join(", ")
            }
            Err(_) => "unknown".to_owned(),
        };
        Error::NoNamespace { nsid, active }
    }

    /// Fills `data` from the start of a log page, in pieces that every controller takes. Its length is a multiple of 4.
    ///
    /// # Errors
    /// [`Error`].
    pub fn log_page(&self, lid: LogPageId, nsid: Nsid, data: &mut [u8]) -> Result<(), Error> {
        if data.is_empty() || !data.len().is_multiple_of(4) {
            return Err(Error::Argument { what: "a log page is read in dwords" });
        }
        let last = data.len().div_ceil(LOG_PIECE) - 1;
        for (index, piece) in data.chunks_mut(LOG_PIECE).enumerate() {
            let offset = (index * LOG_PIECE) as u64;
            let dwords_z = (piece.len() / 4 - 1) as u32;
            let mut command = Command::admin(AdminOpcode::GET_LOG_PAGE, CommandId(0));
            command.nsid = nsid;
            // The event is cleared by the last piece, when all of the page was read.
            command.cdw10 = LogPageDword10::new()
                .with_lid(lid)
                .with_rae(index != last)
                .with_numdl(dwords_z as u16)
                .into_bits();
            command.cdw11 = LogPageDword11::new().with_numdu((dwords_z >> 16) as u16).into_bits();
            (command.cdw12, command.cdw13) = (offset as u32, (offset >> 32) as u32);
            self.admin_command(command, AdminData::In(piece))?;
        }
        Ok(())
    }

    /// SMART / Health Information of the controller.
    ///
    /// # Errors
    /// [`Error`].
    pub fn smart(&self) -> Result<SmartHealth, Error> {
        let mut page = SmartHealth::new_zeroed();
        self.log_page(LogPageId::SMART_HEALTH, Nsid::BROADCAST, page.as_mut_bytes())?;
        Ok(page)
    }

    /// Get Features: dword 0 of the completion; `data` is for the features that have a buffer.
    ///
    /// # Errors
    /// [`Error`].
    pub fn feature(
        &self,
        fid: FeatureId,
        select: FeatureSelect,
        nsid: Nsid,
        data: AdminData<'_>,
    ) -> Result<u32, Error> {
        let mut command = Command::admin(AdminOpcode::GET_FEATURES, CommandId(0));
        command.nsid = nsid;
        command.cdw10 = GetFeaturesDword10::new().with_fid(fid).with_sel(select).into_bits();
        Ok(self.admin_command(command, data)?.dw0)
    }

    /// Set Features: `value` is dword 11; `data` is for the features that have a buffer. With `save` it outlasts a
    /// reset. Returns dword 0 of the completion.
    ///
    /// # Errors
    /// [`Error`].
    pub fn set_feature(
        &self,
        fid: FeatureId,
        value: u32,
        nsid: Nsid,
        data: AdminData<'_>,
        save: bool,
    ) -> Result<u32, Error> {
        let mut command = super::bring_up::set_feature(fid, value);
        command.nsid = nsid;
        command.cdw10 = SetFeaturesDword10::from_bits(command.cdw10).with_sv(save).into_bits();
        Ok(self.admin_command(command, data)?.dw0)
    }

    /// Sets a namespace's write protection. Ask for the [`Namespace`] again afterwards.
    ///
    /// # Errors
    /// [`Error`].
    pub fn write_protect(&self, nsid: Nsid, state: WriteProtectionState) -> Result<(), Error> {
        let value = NamespaceWriteProtection::new().with_wps(state).into_bits();
        let fid = FeatureId::NAMESPACE_WRITE_PROTECTION;
        self.set_feature(fid, value, nsid, AdminData::None, false).map(drop)
    }

    /// Formats a namespace, or all of them with [`Nsid::BROADCAST`]: all its data is lost. Ask for the [`Namespace`]
    /// again afterwards.
    ///
    /// # Errors
    /// [`Error`].
    pub fn format(
        &self,
        nsid: Nsid,
        settings: FormatNvmDword10,
        timeout: Duration,
    ) -> Result<(), Error> {
        let mut command = Command::admin(AdminOpcode::FORMAT_NVM, CommandId(0));
        command.nsid = nsid;
        command.cdw10 = settings.into_bits();
        let status = self.admin(command, AdminData::None, timeout)?.status();
        match status.is_success() {
            true => Ok(()),
            false => Err(Error::Command { opcode: AdminOpcode::FORMAT_NVM, status }),
        }
    }
}

/// A caller's command, without the data pointer and the fuse that are not its to choose.
fn callers(command: Command) -> Result<Command, Error> {
    match command.admin_opcode() {
        AdminOpcode::CREATE_IO_SQ
        | AdminOpcode::CREATE_IO_CQ
        | AdminOpcode::DELETE_IO_SQ
        | AdminOpcode::DELETE_IO_CQ
        | AdminOpcode::ASYNC_EVENT_REQUEST
        | AdminOpcode::DOORBELL_BUFFER_CONFIG => Err(Error::Argument {
            what: "queues, events and doorbell buffers are the driver's own",
        }),
        _ => {
            let cdw0 = command.cdw0.with_psdt(Psdt::PRP).with_fuse(Fuse::NORMAL);
            Ok(Command { cdw0, mptr: 0, dptr: [0; 16], ..command })
        }
    }
}
