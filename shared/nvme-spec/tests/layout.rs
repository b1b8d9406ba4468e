//! Every structure lies as the specification's byte offsets say.

use std::mem::offset_of;

use nvme_spec::command::Command;
use nvme_spec::completion::Completion;
use nvme_spec::feature::{HostBehaviorSupport, Timestamp};
use nvme_spec::identify::command_set::{CommandSets, NvmController, NvmNamespace};
use nvme_spec::identify::controller::IdentifyController;
use nvme_spec::identify::descriptor::DescriptorHeader;
use nvme_spec::identify::list::{ControllerList, NamespaceList};
use nvme_spec::identify::namespace::{IdentifyIndependentNamespace, IdentifyNamespace};
use nvme_spec::identify::power::PowerState;
use nvme_spec::log_page::effects::{CommandsSupported, FeaturesSupported, SupportedLogPages};
use nvme_spec::log_page::error::ErrorEntry;
use nvme_spec::log_page::smart::SmartHealth;
use nvme_spec::log_page::{ChangedNamespaces, FirmwareSlots};
use nvme_spec::nvm::{CopyRange, DatasetRange};
use nvme_spec::sgl::{KeyedSglDescriptor, SglDescriptor};

macro_rules! assert_layout {
    ($type:ty, $size:literal, { $($field:tt: $offset:literal),* $(,)? }) => {
        assert_eq!(size_of::<$type>(), $size, "size of {}", stringify!($type));
        $(assert_eq!(offset_of!($type, $field), $offset, "{}.{}", stringify!($type), stringify!($field));)*
    };
}

#[test]
fn queue_entries_lie_as_specified() {
    assert_layout!(Command, 64, {
        cdw0: 0, nsid: 4, cdw2: 8, cdw3: 12, mptr: 16, dptr: 24, cdw10: 40, cdw11: 44, cdw12: 48, cdw13: 52,
        cdw14: 56, cdw15: 60,
    });
    assert_layout!(Completion, 16, { dw0: 0, dw1: 4, sqhd: 8, sqid: 10, cid: 12, status_phase: 14 });
    assert_layout!(SglDescriptor, 16, { address: 0, length: 8, reserved: 12, identifier: 15 });
    assert_layout!(KeyedSglDescriptor, 16, { address: 0, attributes: 8 });
    assert_layout!(DatasetRange, 16, { attributes: 0, length: 4, slba: 8 });
    assert_layout!(CopyRange, 32, {
        reserved0: 0, slba: 8, nlb_z: 16, reserved18: 18, eilbrt: 24, elbat: 28, elbatm: 30,
    });
}

#[test]
fn identify_controller_lies_as_specified() {
    assert_layout!(IdentifyController, 4096, {
        vid: 0, ssvid: 2, sn: 4, mn: 24, fr: 64, rab: 72, ieee: 73, cmic: 76, mdts: 77, cntlid: 78, ver: 80,
        rtd3r: 84, rtd3e: 88, oaes: 92, ctratt: 96, rrls: 100, reserved102: 102, cntrltype: 111, fguid: 112,
        crdt1: 128, crdt2: 130, crdt3: 132, reserved134: 134, nvmsr: 253, vwci: 254, mec: 255, oacs: 256,
        acl_z: 258, aerl_z: 259, frmw: 260, lpa: 261, elpe_z: 262, npss_z: 263, avscc: 264, apsta: 265,
        wctemp: 266, cctemp: 268, mtfa: 270, hmpre: 272, hmmin: 276, tnvmcap: 280, unvmcap: 296, rpmbs: 312,
        edstt: 316, dsto: 318, fwug: 319, kas: 320, hctma: 322, mntmt: 324, mxtmt: 326, sanicap: 328, hmminds: 332,
        hmmaxd: 336, nsetidmax: 338, endgidmax: 340, anatt: 342, anacap: 343, anagrpmax: 344, nanagrpid: 348,
        pels: 352, domain_id: 356, reserved358: 358, megcap: 368, reserved384: 384, sqes: 512, cqes: 513,
        maxcmd: 514, nn: 516, oncs: 520, fuses: 522, fna: 524, vwc: 525, awun_z: 526, awupf_z: 528, icsvscc: 530,
        nwpc: 531, acwu_z: 532, ocfs: 534, sgls: 536, mnan: 540, maxdna: 544, maxcna: 560, reserved564: 564,
        subnqn: 768, reserved1024: 1024, ioccsz: 1792, iorcsz: 1796, icdoff: 1800, fcatt: 1802, msdbd: 1803,
        ofcs: 1804, reserved1806: 1806, psd: 2048, vendor_specific: 3072,
    });
    assert_layout!(PowerState, 32, {
        mp: 0, flags: 3, enlat: 4, exlat: 8, rrt: 12, rrl: 13, rwt: 14, rwl: 15, idlp: 16, idle_scale: 18, actp: 20,
        active: 22,
    });
    assert_layout!(NvmController, 4096, { vsl: 0, wzsl: 1, wusl: 2, dmrl: 3, dmrsl: 4, dmsl: 8, reserved16: 16 });
    assert_layout!(CommandSets, 4096, { combinations: 0 });
    assert_layout!(ControllerList, 4096, { count: 0, cntlids: 2 });
}

#[test]
fn identify_namespace_lies_as_specified() {
    assert_layout!(IdentifyNamespace, 4096, {
        nsze: 0, ncap: 8, nuse: 16, nsfeat: 24, nlbaf_z: 25, flbas: 26, mc: 27, dpc: 28, dps: 29, nmic: 30,
        rescap: 31, fpi: 32, dlfeat: 33, nawun_z: 34, nawupf_z: 36, nacwu_z: 38, nabsn_z: 40, nabo: 42,
        nabspf_z: 44, noiob: 46, nvmcap: 48, npwg_z: 64, npwa_z: 66, npdg_z: 68, npda_z: 70, nows_z: 72, mssrl: 74,
        mcl: 76, msrc_z: 80, nulbaf: 82, anagrpid: 92, nsattr: 99, nvmsetid: 100, endgid: 102, nguid: 104,
        eui64: 120, lbaf: 128, vendor_specific: 384,
    });
    assert_layout!(IdentifyIndependentNamespace, 4096, {
        nsfeat: 0, nmic: 1, rescap: 2, fpi: 3, anagrpid: 4, nsattr: 8, nvmsetid: 10, endgid: 12, nstat: 14,
    });
    assert_layout!(NvmNamespace, 4096, { lbstm: 0, pic: 8, elbaf: 12, reserved268: 268 });
    assert_layout!(NamespaceList, 4096, { nsids: 0 });
    assert_layout!(DescriptorHeader, 4, { nidt: 0, nidl: 1, reserved2: 2 });
}

#[test]
fn log_pages_lie_as_specified() {
    assert_layout!(SupportedLogPages, 1024, { lids: 0 });
    assert_layout!(ErrorEntry, 64, {
        error_count: 0, sqid: 8, cid: 10, status: 12, location: 14, lba: 16, nsid: 24, vendor_log_page: 28,
        trtype: 29, command_specific: 32, transport_specific: 40, reserved42: 42,
    });
    assert_layout!(SmartHealth, 512, {
        critical_warning: 0, composite_temperature: 1, available_spare: 3, available_spare_threshold: 4,
        percentage_used: 5, endurance_group_warning: 6, data_units_read: 32, data_units_written: 48,
        host_read_commands: 64, host_write_commands: 80, controller_busy_time: 96, power_cycles: 112,
        power_on_hours: 128, unsafe_shutdowns: 144, media_errors: 160, error_log_entries: 176,
        warning_temperature_time: 192, critical_temperature_time: 196, temperature_sensors: 200,
        thermal_transitions_1: 216, thermal_transitions_2: 220, thermal_time_1: 224, thermal_time_2: 228,
        reserved232: 232,
    });
    assert_layout!(FirmwareSlots, 512, { afi: 0, frs: 8, reserved64: 64 });
    assert_layout!(ChangedNamespaces, 4096, { 0: 0 });
    assert_layout!(CommandsSupported, 4096, { acs: 0, iocs: 1024, reserved2048: 2048 });
    assert_layout!(FeaturesSupported, 1024, { fids: 0 });
    assert_layout!(HostBehaviorSupport, 512, { acre: 0, etdas: 1, lbafee: 2, reserved3: 3 });
    assert_layout!(Timestamp, 8, { milliseconds: 0, attributes: 6, reserved7: 7 });
}
