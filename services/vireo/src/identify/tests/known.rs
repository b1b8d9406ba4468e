//! The known controllers.

use nvme_spec::command::{AdminOpcode, NvmOpcode};
use nvme_spec::completion::StatusAndPhase;
use nvme_spec::feature::{
    FeatureCapabilities, FeatureId, Timestamp, TimestampAttributes, TimestampOrigin,
};
use nvme_spec::identify::CommandSet;
use nvme_spec::identify::attributes::{
    Cmic, ControllerType, Ctratt, EntrySizes, FlushBroadcast, Fna, Frmw, Fuses, Lpa, Nwpc, Oacs,
    Oaes, Ocfs, Oncs, Sanicap, SglSupport, Sgls, Vwc,
};
use nvme_spec::identify::command_set::NvmController;
use nvme_spec::identify::controller::{IdentifyController, set_ascii};
use nvme_spec::identify::descriptor::NamespaceIdentifiers;
use nvme_spec::identify::namespace::{
    DeallocatedRead, Dlfeat, Flbas, IdentifyNamespace, LbaFormat, Nmic, Nsattr, Nsfeat,
};
use nvme_spec::identify::power::{ActivePower, IdlePowerScale, PowerState, PowerStateFlags};
use nvme_spec::ids::{Eui64, Nguid, Uuid};
use nvme_spec::log_page::effects::{
    CommandEffects, CommandsSupported, Exclusion, FeatureEffects, FeaturesSupported,
    LogPageSupport, SupportedLogPages,
};
use nvme_spec::log_page::error::{ErrorEntry, ParameterErrorLocation};
use nvme_spec::log_page::smart::{CriticalWarning, SmartHealth};
use nvme_spec::log_page::{ActiveFirmware, ChangedNamespaces, FirmwareSlots, LogPageId};
use nvme_spec::register::{Cap, CapCss, Vs};
use nvme_spec::{BlockCount, CommandId, ControllerId, Lba, Nsid, QueueId, Status};
use zerocopy::IntoBytes;

use super::super::fact::Answer;
use super::super::snapshot::{
    FeatureSnapshot, FeatureValue, LogsSnapshot, NamespaceSnapshot, Snapshot,
};

fn feature(fid: FeatureId, dw0: u32, data: &[u8]) -> FeatureSnapshot {
    FeatureSnapshot {
        fid,
        current: Answer::Given(FeatureValue { dw0, data: data.to_vec() }),
        default: Some(dw0),
        capabilities: Some(FeatureCapabilities::new().with_changeable(true)),
        uncoalesced: Vec::new(),
    }
}

fn absent(fid: FeatureId) -> FeatureSnapshot {
    FeatureSnapshot { current: Answer::Absent, ..feature(fid, 0, &[]) }
}

/// One that supports much of what there is.
pub(super) fn rich() -> Snapshot {
    let mut commands = CommandsSupported::zeroed();
    let plain = CommandEffects::new().with_csupp(true);
    commands.set_admin(AdminOpcode::IDENTIFY, plain);
    commands.set_admin(AdminOpcode::GET_LOG_PAGE, plain);
    let format = plain.with_lbcc(true).with_ncc(true).with_cse(Exclusion::NAMESPACE);
    commands.set_admin(AdminOpcode::FORMAT_NVM, format);
    commands.set_admin(AdminOpcode(0xC1), plain);
    commands.set_nvm(NvmOpcode::READ, plain);
    commands.set_nvm(NvmOpcode::WRITE, plain.with_lbcc(true));
    let mut features = FeaturesSupported::zeroed();
    for fid in [FeatureId::ARBITRATION, FeatureId::TIMESTAMP, FeatureId::HOST_IDENTIFIER] {
        features.set(fid, FeatureEffects::new().with_fsupp(true));
    }
    let mut pages = SupportedLogPages::zeroed();
    for lid in [LogPageId::SUPPORTED_LOG_PAGES, LogPageId::SMART_HEALTH] {
        pages.set(lid, LogPageSupport::new().with_lsupp(true));
    }
    let mut nvm = NvmController::zeroed();
    (nvm.vsl, nvm.dmrl, nvm.dmrsl) = (9, 16, 8192);
    Snapshot {
        address: "vfio-user:/run/vireo/vm0".to_owned(),
        cap: Cap::new()
            .with_mqes_z(4095)
            .with_cqr(true)
            .with_to(60)
            .with_css(CapCss::new().with_nvm(true).with_io_command_sets(true))
            .with_mpsmax(4)
            .with_nssrs(true),
        vs: Vs::V2_0,
        vectors: 65,
        queue_pairs: 64,
        controller: rich_controller(),
        nvm: Answer::Given(nvm),
        namespaces: vec![rich_namespace(1), rich_namespace(7)],
        features: rich_features(),
        logs: LogsSnapshot {
            supported: Answer::Given(pages),
            errors: Answer::Given(errors()),
            smart: Answer::Given(health()),
            firmware: Answer::Given(slots()),
            changed_namespaces: Answer::Given(ChangedNamespaces::new([Nsid(7)])),
            commands: Answer::Given(commands),
            features: Answer::Given(features),
        },
    }
}

fn rich_controller() -> IdentifyController {
    let mut identify = IdentifyController {
        vid: 0x1af4,
        ssvid: 0x1af4,
        rab: 3,
        ieee: [0x45, 0x23, 0x01],
        cmic: Cmic::new().with_multi_controller(true),
        mdts: 8,
        cntlid: ControllerId(3),
        ver: Vs::V2_0,
        rtd3e: 30_000_000,
        oaes: Oaes::new().with_namespace_attribute(true),
        ctratt: Ctratt::new().with_host_id_128(true),
        cntrltype: ControllerType::IO,
        oacs: Oacs::new().with_format_nvm(true).with_doorbell_buffer(true),
        acl_z: 3,
        aerl_z: 3,
        frmw: Frmw::new().with_slot1_read_only(true).with_slots(2),
        lpa: Lpa::new()
            .with_commands_effects(true)
            .with_extended_data(true)
            .with_supported_pages(true),
        elpe_z: 63,
        npss_z: 1,
        wctemp: 343,
        cctemp: 353,
        kas: 10,
        sanicap: Sanicap::new().with_bes(true),
        sqes: EntrySizes::new().with_required(6).with_maximum(6),
        cqes: EntrySizes::new().with_required(4).with_maximum(4),
        nn: 256,
        mnan: 256,
        oncs: Oncs::new()
            .with_compare(true)
            .with_dataset_management(true)
            .with_write_zeroes(true)
            .with_save_select(true)
            .with_timestamp(true)
            .with_verify(true)
            .with_copy(true),
        fuses: Fuses::new().with_compare_and_write(true),
        fna: Fna::new().with_no_broadcast(true),
        vwc: Vwc::new().with_present(true).with_flush_broadcast(FlushBroadcast::SUPPORTED),
        nwpc: Nwpc::new().with_write_protect(true),
        ocfs: Ocfs::new().with_format0(true),
        sgls: Sgls::new().with_support(SglSupport::ANY_ALIGNMENT).with_bit_bucket(true),
        ..IdentifyController::zeroed()
    };
    identify.tnvmcap.set(1 << 40);
    identify.unvmcap.set(1 << 38);
    set_ascii(&mut identify.sn, "VIREO0001");
    set_ascii(&mut identify.mn, "Vireo NVMe Controller");
    set_ascii(&mut identify.fr, "0.1.0");
    let nqn = b"nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555";
    identify.subnqn[..nqn.len()].copy_from_slice(nqn);
    identify.psd[0] = PowerState {
        mp: 2500,
        idlp: 500,
        idle_scale: IdlePowerScale::new().with_ips(2),
        actp: 9000,
        active: ActivePower::new().with_aps(1),
        ..PowerState::default()
    };
    identify.psd[1] = PowerState {
        mp: 50,
        flags: PowerStateFlags::new().with_mxps(true).with_nops(true),
        enlat: 5000,
        exlat: 10_000,
        ..PowerState::default()
    };
    identify
}

fn rich_namespace(nsid: u32) -> NamespaceSnapshot {
    let mut identify = IdentifyNamespace {
        nsze: BlockCount(1 << 24),
        ncap: BlockCount(1 << 24),
        nuse: BlockCount(if nsid == 1 { 1 << 24 } else { 1 << 20 }),
        nsfeat: Nsfeat::new().with_nsabp(true).with_optperf(true).with_thinp(nsid != 1),
        nlbaf_z: 1,
        flbas: Flbas::new().with_index_low(1),
        nmic: Nmic::new().with_shared(true),
        dlfeat: Dlfeat::new().with_read(DeallocatedRead::ZEROES).with_write_zeroes(true),
        nacwu_z: 255,
        noiob: if nsid == 1 { 0 } else { 256 },
        mssrl: 2048,
        mcl: 8192,
        msrc_z: 127,
        nsattr: Nsattr::new().with_write_protected(nsid != 1),
        nguid: Nguid(std::array::from_fn(|i| i as u8 + 1)),
        eui64: Eui64([0; 8]),
        ..IdentifyNamespace::zeroed()
    };
    identify.lbaf[0] = LbaFormat::new().with_lbads(9).with_rp(2);
    identify.lbaf[1] = LbaFormat::new().with_lbads(12);
    let identifiers = NamespaceIdentifiers {
        uuid: Some(Uuid(std::array::from_fn(|i| 0xF0 + i as u8))),
        csi: Some(CommandSet::NVM),
        ..NamespaceIdentifiers::default()
    };
    NamespaceSnapshot {
        nsid: Nsid(nsid),
        identify: Answer::Given(identify),
        identifiers: Answer::Given(identifiers),
        features: vec![
            feature(FeatureId::ERROR_RECOVERY, 0, &[]),
            feature(FeatureId::NAMESPACE_WRITE_PROTECTION, u32::from(nsid != 1), &[]),
        ],
    }
}

fn rich_features() -> Vec<FeatureSnapshot> {
    let stamp = TimestampAttributes::new().with_origin(TimestampOrigin::SET);
    let stamp = Timestamp::new(1_700_000_000_000, stamp);
    let mut changed = feature(FeatureId::INTERRUPT_COALESCING, 0x0507, &[]);
    changed.default = Some(0);
    let mut vectors = feature(FeatureId::INTERRUPT_VECTOR_CONFIGURATION, 1 << 16, &[]);
    vectors.uncoalesced = vec![0];
    let mut fixed = feature(FeatureId::NUMBER_OF_QUEUES, 0x003F_003F, &[]);
    fixed.capabilities = Some(FeatureCapabilities::new());
    vec![
        feature(FeatureId::ARBITRATION, 0x0000_0003, &[]),
        feature(FeatureId::POWER_MANAGEMENT, 0, &[]),
        feature(FeatureId::TEMPERATURE_THRESHOLD, 0xFFFF, &[]),
        feature(FeatureId::VOLATILE_WRITE_CACHE, 1, &[]),
        fixed,
        changed,
        vectors,
        feature(FeatureId::ASYNC_EVENT_CONFIGURATION, 0x11F, &[]),
        feature(FeatureId::TIMESTAMP, 0, stamp.as_bytes()),
        feature(FeatureId::HOST_BEHAVIOR_SUPPORT, 0, &[0; 512]),
        absent(FeatureId::AUTONOMOUS_POWER_STATE_TRANSITION),
        FeatureSnapshot {
            current: Answer::Refused(Status::INTERNAL_ERROR),
            ..absent(FeatureId::SANITIZE_CONFIG)
        },
    ]
}

fn errors() -> Vec<ErrorEntry> {
    let io = ErrorEntry {
        error_count: 12,
        sqid: QueueId(2),
        cid: CommandId(77),
        status: StatusAndPhase::new().with_status(Status::LBA_OUT_OF_RANGE.with_dnr()),
        location: ParameterErrorLocation::new().with_byte(40).with_bit(0),
        lba: Lba(99_999_999),
        nsid: Nsid(1),
        ..ErrorEntry::default()
    };
    let admin = |error_count| ErrorEntry {
        error_count,
        status: StatusAndPhase::new().with_status(Status::INVALID_FIELD.with_dnr()),
        cid: CommandId(5),
        location: ParameterErrorLocation::NONE,
        ..ErrorEntry::default()
    };
    std::iter::once(io).chain((1..12).rev().map(admin)).collect()
}

fn health() -> SmartHealth {
    let mut smart = SmartHealth::zeroed();
    smart.critical_warning = CriticalWarning::new().with_temperature(true);
    smart.composite_temperature.set(345);
    smart.available_spare = 100;
    smart.available_spare_threshold = 10;
    smart.percentage_used = 3;
    smart.data_units_read.set(3_000);
    smart.data_units_written.set(1);
    smart.host_read_commands.set(123_456);
    smart.host_write_commands.set(7);
    smart.power_cycles.set(2);
    smart.power_on_hours.set(1000);
    smart.error_log_entries.set(12);
    smart.warning_temperature_time = 4;
    smart.temperature_sensors[1] = 340;
    smart
}

fn slots() -> FirmwareSlots {
    let mut page = FirmwareSlots::zeroed();
    page.afi = ActiveFirmware::new().with_active(1).with_next(2);
    set_ascii(&mut page.frs[0], "0.1.0");
    set_ascii(&mut page.frs[1], "0.2.0");
    page
}

/// One of version 1.2 that supports nothing that is optional, without namespaces.
pub(super) fn plain() -> Snapshot {
    let mut controller = IdentifyController {
        vid: 0x1b36,
        ssvid: 0x1af4,
        sqes: EntrySizes::new().with_required(6).with_maximum(6),
        cqes: EntrySizes::new().with_required(4).with_maximum(4),
        nn: 1,
        ..IdentifyController::zeroed()
    };
    set_ascii(&mut controller.mn, "Plain");
    Snapshot {
        address: "pcie:0000:01:00.0".to_owned(),
        cap: Cap::new().with_mqes_z(63).with_to(1).with_css(CapCss::new().with_nvm(true)),
        vs: Vs::new().with_mjr(1).with_mnr(2).with_ter(1),
        vectors: 0,
        queue_pairs: 1,
        controller,
        nvm: Answer::Absent,
        namespaces: Vec::new(),
        features: vec![
            feature(FeatureId::ARBITRATION, 7, &[]),
            absent(FeatureId::VOLATILE_WRITE_CACHE),
            absent(FeatureId::TIMESTAMP),
        ],
        logs: LogsSnapshot {
            supported: Answer::Absent,
            errors: Answer::Given(Vec::new()),
            smart: Answer::Refused(Status::INVALID_LOG_PAGE.with_dnr()),
            firmware: Answer::Given(FirmwareSlots::zeroed()),
            changed_namespaces: Answer::Absent,
            commands: Answer::Absent,
            features: Answer::Absent,
        },
    }
}
