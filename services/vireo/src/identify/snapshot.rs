//! Everything that is asked of a controller, as it came.
//!
//! What a controller says it does not have is not asked for: a refused command leaves an entry in its error log, which
//! another person would wonder about. Logs are read before features for the same reason.

use nvme_driver::{AdminData, Controller, Error};
use nvme_spec::command::admin::GetFeaturesDword10;
use nvme_spec::feature::{FeatureCapabilities, FeatureId, FeatureSelect};
use nvme_spec::identify::command_set::NvmController;
use nvme_spec::identify::controller::IdentifyController;
use nvme_spec::identify::descriptor::NamespaceIdentifiers;
use nvme_spec::identify::namespace::IdentifyNamespace;
use nvme_spec::identify::{Cns, CommandSet, IDENTIFY_SIZE};
use nvme_spec::log_page::effects::{CommandsSupported, FeaturesSupported, SupportedLogPages};
use nvme_spec::log_page::error::ErrorEntry;
use nvme_spec::log_page::smart::SmartHealth;
use nvme_spec::log_page::{ChangedNamespaces, FirmwareSlots, LogPageId};
use nvme_spec::register::{Cap, Vs};
use nvme_spec::{AdminOpcode, Command, CommandId, ControllerId, Nsid};
use zerocopy::{FromBytes, IntoBytes};

use super::fact::Answer;

/// Versions since which something is there.
const V1_3: (u16, u8) = (1, 3);
const V2_0: (u16, u8) = (2, 0);
/// Most interrupt vectors whose configuration is read.
const VECTORS_MAX: u16 = 256;

/// A controller as it was when it was asked.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Where it is.
    pub address: String,
    /// Controller Capabilities.
    pub cap: Cap,
    /// Version.
    pub vs: Vs,
    /// Interrupt vectors; 0 without MSI-X.
    pub vectors: u16,
    /// I/O queue pairs that it grants.
    pub queue_pairs: u16,
    /// Identify Controller (CNS 01h).
    pub controller: IdentifyController,
    /// Identify Controller of the NVM command set (CNS 06h).
    pub nvm: Answer<NvmController>,
    /// The namespaces, all active ones or the one asked for.
    pub namespaces: Vec<NamespaceSnapshot>,
    /// Features of the controller.
    pub features: Vec<FeatureSnapshot>,
    /// Log pages.
    pub logs: LogsSnapshot,
}

/// A namespace.
#[derive(Debug, Clone)]
pub struct NamespaceSnapshot {
    /// Namespace Identifier.
    pub nsid: Nsid,
    /// Identify Namespace (CNS 00h).
    pub identify: Answer<IdentifyNamespace>,
    /// Namespace Identification Descriptors (CNS 03h).
    pub identifiers: Answer<NamespaceIdentifiers>,
    /// Features of the namespace.
    pub features: Vec<FeatureSnapshot>,
}

/// A feature.
#[derive(Debug, Clone)]
pub struct FeatureSnapshot {
    /// Which.
    pub fid: FeatureId,
    /// Its current value.
    pub current: Answer<FeatureValue>,
    /// Its default, if the controller tells defaults and it is in dword 0.
    pub default: Option<u32>,
    /// What can be done with it, if the controller tells that.
    pub capabilities: Option<FeatureCapabilities>,
    /// Vectors for which Interrupt Vector Configuration has coalescing disabled.
    pub uncoalesced: Vec<u16>,
}

/// A feature's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeatureValue {
    /// Dword 0 of the completion.
    pub dw0: u32,
    /// The data structure, of the features that have one.
    pub data: Vec<u8>,
}

/// Log pages.
#[derive(Debug, Clone)]
pub struct LogsSnapshot {
    /// Supported Log Pages (00h).
    pub supported: Answer<SupportedLogPages>,
    /// Error Information (01h): the entries that are not empty, newest first.
    pub errors: Answer<Vec<ErrorEntry>>,
    /// SMART / Health Information (02h).
    pub smart: Answer<SmartHealth>,
    /// Firmware Slot Information (03h).
    pub firmware: Answer<FirmwareSlots>,
    /// Changed Namespace List (04h).
    pub changed_namespaces: Answer<ChangedNamespaces>,
    /// Commands Supported and Effects (05h).
    pub commands: Answer<CommandsSupported>,
    /// Feature Identifiers Supported and Effects (12h).
    pub features: Answer<FeaturesSupported>,
}

/// Features of the controller that are asked for, with the bytes of their data structure.
const CONTROLLER_FEATURES: [(FeatureId, usize); 19] = [
    (FeatureId::ARBITRATION, 0),
    (FeatureId::POWER_MANAGEMENT, 0),
    (FeatureId::TEMPERATURE_THRESHOLD, 0),
    (FeatureId::VOLATILE_WRITE_CACHE, 0),
    (FeatureId::NUMBER_OF_QUEUES, 0),
    (FeatureId::INTERRUPT_COALESCING, 0),
    (FeatureId::INTERRUPT_VECTOR_CONFIGURATION, 0),
    (FeatureId::WRITE_ATOMICITY_NORMAL, 0),
    (FeatureId::ASYNC_EVENT_CONFIGURATION, 0),
    (FeatureId::AUTONOMOUS_POWER_STATE_TRANSITION, 256),
    (FeatureId::HOST_MEMORY_BUFFER, 4096),
    (FeatureId::TIMESTAMP, 8),
    (FeatureId::KEEP_ALIVE_TIMER, 0),
    (FeatureId::HOST_CONTROLLED_THERMAL_MANAGEMENT, 0),
    (FeatureId::NON_OPERATIONAL_POWER_STATE, 0),
    (FeatureId::HOST_BEHAVIOR_SUPPORT, 512),
    (FeatureId::SANITIZE_CONFIG, 0),
    (FeatureId::COMMAND_SET_PROFILE, 0),
    (FeatureId::SOFTWARE_PROGRESS_MARKER, 0),
];

/// Features of a namespace that are asked for.
const NAMESPACE_FEATURES: [FeatureId; 2] =
    [FeatureId::ERROR_RECOVERY, FeatureId::NAMESPACE_WRITE_PROTECTION];

/// Whether a feature is one that is asked for.
pub(super) fn is_asked(fid: FeatureId) -> bool {
    CONTROLLER_FEATURES.iter().any(|(asked, _)| *asked == fid) || NAMESPACE_FEATURES.contains(&fid)
}

/// Asks for everything. `only`: of this namespace alone.
///
/// # Errors
/// [`Error`] if the controller does not answer, or `only` is not active.
pub fn take(controller: &Controller, only: Option<Nsid>) -> Result<Snapshot, Error> {
    let identify = controller.identify().as_ref().clone();
    let version = (controller.version().mjr(), controller.version().mnr());
    let nsids = match only {
        None => controller.active_namespaces()?,
        Some(nsid) => {
            let active = controller.active_namespaces()?;
            if !active.contains(&nsid) {
                let names: Vec<_> = active.iter().map(|nsid| nsid.0.to_string()).collect();
                let active = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                return Err(Error::NoNamespace { nsid, active });
            }
            vec![nsid]
        }
    };
    let nvm = match version >= V2_0 || controller.capabilities().css().io_command_sets() {
        true => identify_as(controller, Cns::COMMAND_SET_CONTROLLER, Nsid::NONE)?,
        false => Answer::Absent,
    };
    let mut namespaces = Vec::with_capacity(nsids.len());
    for &nsid in &nsids {
        namespaces.push(namespace(controller, nsid, version)?);
    }
    let logs = logs(controller, &identify)?;
    let asking = Asking {
        controller,
        identify: &identify,
        listed: logs.features.given(),
        version,
        select: identify.oncs.save_select(),
    };
    for namespace in &mut namespaces {
        for fid in NAMESPACE_FEATURES {
            namespace.features.push(asking.feature(fid, 0, namespace.nsid)?);
        }
    }
    let mut features = Vec::with_capacity(CONTROLLER_FEATURES.len());
    for (fid, bytes) in CONTROLLER_FEATURES {
        features.push(asking.feature(fid, bytes, Nsid::NONE)?);
    }
    Ok(Snapshot {
        address: controller.address().to_owned(),
        cap: controller.capabilities(),
        vs: controller.version(),
        vectors: controller.vectors(),
        queue_pairs: controller.granted_queues(),
        controller: identify,
        nvm,
        namespaces,
        features,
        logs,
    })
}

/// A refusal is an answer.
fn answer<T>(result: Result<T, Error>) -> Result<Answer<T>, Error> {
    match result {
        Ok(value) => Ok(Answer::Given(value)),
        Err(Error::Command { status, .. }) => Ok(Answer::Refused(status)),
        Err(error) => Err(error),
    }
}

fn identify_as<T: FromBytes + IntoBytes>(
    controller: &Controller,
    cns: Cns,
    nsid: Nsid,
) -> Result<Answer<T>, Error> {
    answer(controller.identify_as(cns, nsid, ControllerId(0), CommandSet::NVM))
}

fn namespace(
    controller: &Controller,
    nsid: Nsid,
    version: (u16, u8),
) -> Result<NamespaceSnapshot, Error> {
    let identify = identify_as(controller, Cns::NAMESPACE, nsid)?;
    let list: Answer<[u8; IDENTIFY_SIZE]> = match version >= V1_3 {
        true => identify_as(controller, Cns::NAMESPACE_DESCRIPTORS, nsid)?,
        false => Answer::Absent,
    };
    let identifiers = match list {
        Answer::Given(list) => Answer::Given(NamespaceIdentifiers::from_list(&list)),
        Answer::Refused(status) => Answer::Refused(status),
        Answer::Absent => Answer::Absent,
    };
    Ok(NamespaceSnapshot { nsid, identify, identifiers, features: Vec::new() })
}

fn logs(controller: &Controller, identify: &IdentifyController) -> Result<LogsSnapshot, Error> {
    let lpa = identify.lpa;
    let supported: Answer<SupportedLogPages> = match lpa.supported_pages() {
        true => log(controller, LogPageId::SUPPORTED_LOG_PAGES)?,
        false => Answer::Absent,
    };
    let listed = |lid: LogPageId| {
        let pages = supported.given()?;
        pages.lids.get(usize::from(lid.0)).map(|support| support.lsupp())
    };
    let there = |lid, otherwise: bool| listed(lid).unwrap_or(otherwise);
    let errors = match there(LogPageId::ERROR_INFORMATION, true) {
        true => error_log(controller, usize::from(identify.elpe_z) + 1)?,
        false => Answer::Absent,
    };
    Ok(LogsSnapshot {
        errors,
        smart: log_if(controller, LogPageId::SMART_HEALTH, there(LogPageId::SMART_HEALTH, true))?,
        firmware: log_if(
            controller,
            LogPageId::FIRMWARE_SLOT,
            there(LogPageId::FIRMWARE_SLOT, true),
        )?,
        changed_namespaces: log_if(
            controller,
            LogPageId::CHANGED_NAMESPACES,
            there(LogPageId::CHANGED_NAMESPACES, identify.oaes.namespace_attribute()),
        )?,
        commands: log_if(
            controller,
            LogPageId::COMMANDS_SUPPORTED_AND_EFFECTS,
            lpa.commands_effects(),
        )?,
        features: log_if(
            controller,
            LogPageId::FEATURES_SUPPORTED_AND_EFFECTS,
            there(LogPageId::FEATURES_SUPPORTED_AND_EFFECTS, false),
        )?,
        supported,
    })
}

fn log_if<T: FromBytes + IntoBytes>(
    controller: &Controller,
    lid: LogPageId,
    there: bool,
) -> Result<Answer<T>, Error> {
    if there { log(controller, lid) } else { Ok(Answer::Absent) }
}

fn log<T: FromBytes + IntoBytes>(
    controller: &Controller,
    lid: LogPageId,
) -> Result<Answer<T>, Error> {
    let mut page = T::new_zeroed();
    let result = controller.log_page(lid, Nsid::BROADCAST, page.as_mut_bytes());
    answer(result.map(|()| page))
}

fn error_log(controller: &Controller, entries: usize) -> Result<Answer<Vec<ErrorEntry>>, Error> {
    let mut list = vec![ErrorEntry::default(); entries];
    let result = controller.log_page(
        LogPageId::ERROR_INFORMATION,
        Nsid::BROADCAST,
        list.as_mut_slice().as_mut_bytes(),
    );
    list.retain(|entry| entry.error_count != 0);
    answer(result.map(|()| list))
}

/// What decides which features are asked for.
struct Asking<'a> {
    controller: &'a Controller,
    identify: &'a IdentifyController,
    listed: Option<&'a FeaturesSupported>,
    version: (u16, u8),
    select: bool,
}

impl Asking<'_> {
    /// Whether the controller has a feature, by what it said so far.
    fn has(&self, fid: FeatureId) -> bool {
        if let Some(listed) = self.listed {
            return listed.fids.get(usize::from(fid.0)).is_some_and(|feature| feature.fsupp());
        }
        let identify = self.identify;
        match fid {
            FeatureId::VOLATILE_WRITE_CACHE => identify.vwc.present(),
            FeatureId::AUTONOMOUS_POWER_STATE_TRANSITION => identify.apsta & 1 != 0,
            FeatureId::HOST_MEMORY_BUFFER => identify.hmpre != 0,
            FeatureId::TIMESTAMP => identify.oncs.timestamp(),
            FeatureId::KEEP_ALIVE_TIMER => identify.kas != 0,
            FeatureId::HOST_CONTROLLED_THERMAL_MANAGEMENT => identify.hctma.supported(),
            FeatureId::NON_OPERATIONAL_POWER_STATE => identify.ctratt.non_operational_permissive(),
            FeatureId::HOST_BEHAVIOR_SUPPORT => {
                identify.crdt1 != 0 || identify.ctratt.elbas() || identify.lpa.telemetry_area4()
            }
            FeatureId::SANITIZE_CONFIG => {
                let sanitize = identify.sanicap;
                self.version >= V1_3 && (sanitize.ces() || sanitize.bes() || sanitize.ows())
            }
            FeatureId::COMMAND_SET_PROFILE => {
                self.controller.capabilities().css().io_command_sets()
            }
            FeatureId::SOFTWARE_PROGRESS_MARKER => false,
            FeatureId::NAMESPACE_WRITE_PROTECTION => identify.nwpc.write_protect(),
            // Mandatory of an I/O controller.
            _ => true,
        }
    }

    fn feature(&self, fid: FeatureId, bytes: usize, nsid: Nsid) -> Result<FeatureSnapshot, Error> {
        let mut feature = FeatureSnapshot {
            fid,
            current: Answer::Absent,
            default: None,
            capabilities: None,
            uncoalesced: Vec::new(),
        };
        if !self.has(fid) {
            return Ok(feature);
        }
        feature.current = answer(self.value(fid, FeatureSelect::CURRENT, nsid, 0, bytes))?;
        if feature.current.given().is_none() {
            return Ok(feature);
        }
        if self.select {
            let select = FeatureSelect::SUPPORTED_CAPABILITIES;
            let capabilities = answer(self.value(fid, select, nsid, 0, bytes))?;
            feature.capabilities =
                capabilities.given().map(|value| FeatureCapabilities::from_bits(value.dw0));
            if bytes == 0 {
                let default = answer(self.value(fid, FeatureSelect::DEFAULT, nsid, 0, bytes))?;
                feature.default = default.given().map(|value| value.dw0);
            }
        }
        if fid == FeatureId::INTERRUPT_VECTOR_CONFIGURATION {
            for vector in 0..self.controller.vectors().min(VECTORS_MAX) {
                let value = self.value(fid, FeatureSelect::CURRENT, nsid, vector.into(), 0);
                // Vectors of no queue may be refused.
                if let Answer::Given(value) = answer(value)?
                    && super::feature::is_uncoalesced(value.dw0)
                {
                    feature.uncoalesced.push(vector);
                }
            }
        }
        Ok(feature)
    }

    fn value(
        &self,
        fid: FeatureId,
        select: FeatureSelect,
        nsid: Nsid,
        cdw11: u32,
        bytes: usize,
    ) -> Result<FeatureValue, Error> {
        let mut command = Command::admin(AdminOpcode::GET_FEATURES, CommandId(0));
        command.nsid = nsid;
        command.cdw10 = GetFeaturesDword10::new().with_fid(fid).with_sel(select).into_bits();
        command.cdw11 = cdw11;
        let mut data = vec![0; bytes];
        let buffer = match bytes {
            0 => AdminData::None,
            _ => AdminData::In(&mut data),
        };
        let dw0 = self.controller.admin_command(command, buffer)?.dw0;
        Ok(FeatureValue { dw0, data })
    }
}
