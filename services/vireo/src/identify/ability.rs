//! What a controller can do, and what it cannot.

use nvme_spec::identify::attributes::{FlushBroadcast, SglSupport};
use nvme_spec::register::PowerScope;
use serde_json::json;

use super::controller::{size, some};
use super::fact::{Place, Section};
use super::snapshot::Snapshot;

/// What it supports.
pub(super) fn abilities(snapshot: &Snapshot) -> Section {
    let mut section = Section::new("What it supports", Place::Object("supports"));
    commands(&mut section, snapshot);
    data(&mut section, snapshot);
    registers(&mut section, snapshot);
    told(&mut section, snapshot);
    section.flags("attributes", "attributes", &attributes(snapshot));
    namespaces(&mut section, snapshot);
    upkeep(&mut section, snapshot);
    section
}

fn commands(section: &mut Section, snapshot: &Snapshot) {
    let identify = &snapshot.controller;
    let oacs = identify.oacs;
    section.flags(
        "admin commands",
        "admin_commands",
        &[
            ("Security Send and Receive", "security", oacs.security()),
            ("Format NVM", "format_nvm", oacs.format_nvm()),
            ("Firmware Download and Commit", "firmware", oacs.firmware()),
            ("Namespace Management", "namespace_management", oacs.namespace_management()),
            ("Device Self-test", "self_test", oacs.self_test()),
            ("Directives", "directives", oacs.directives()),
            ("NVMe-MI Send and Receive", "nvme_mi", oacs.nvme_mi()),
            ("Virtualization Management", "virtualization", oacs.virtualization()),
            ("Doorbell Buffer Config", "doorbell_buffer", oacs.doorbell_buffer()),
            ("Get LBA Status", "get_lba_status", oacs.get_lba_status()),
            ("Lockdown", "lockdown", oacs.lockdown()),
        ],
    );
    let oncs = identify.oncs;
    section.flags(
        "I/O commands",
        "io_commands",
        &[
            ("Compare", "compare", oncs.compare()),
            ("fused Compare and Write", "compare_and_write", identify.fuses.compare_and_write()),
            ("Write Zeroes", "write_zeroes", oncs.write_zeroes()),
            ("Dataset Management (deallocate)", "dataset_management", oncs.dataset_management()),
            ("Verify", "verify", oncs.verify()),
            ("Copy", "copy", oncs.copy()),
            ("Write Uncorrectable", "write_uncorrectable", oncs.write_uncorrectable()),
            ("Reservations", "reservations", oncs.reservations()),
        ],
    );
    if oncs.copy() {
        section.flags(
            "Copy formats",
            "copy_formats",
            &[
                ("0", "format_0", identify.ocfs.format0()),
                ("1 (with protection information)", "format_1", identify.ocfs.format1()),
            ],
        );
    }
}

fn data(section: &mut Section, snapshot: &Snapshot) {
    let identify = &snapshot.controller;
    let sgls = identify.sgls;
    let aligned = match sgls.support() {
        SglSupport::NONE => "PRPs\nnot supported: SGLs",
        SglSupport::ANY_ALIGNMENT => "PRPs; SGLs of any alignment",
        SglSupport::DWORD_ALIGNED => "PRPs; SGLs aligned to 4 bytes",
        _ => "PRPs; SGLs in a way that is not known here",
    };
    let mut text = aligned.to_owned();
    if sgls.support() != SglSupport::NONE {
        let extras = [
            ("bit buckets", sgls.bit_bucket()),
            ("SGLs longer than the data", sgls.oversize()),
            ("offsets as addresses", sgls.offset()),
        ];
        for (there, words) in [(true, ", with "), (false, "\nnot supported: ")] {
            let names: Vec<_> =
                extras.iter().filter(|extra| extra.1 == there).map(|extra| extra.0).collect();
            if !names.is_empty() {
                text.push_str(words);
                text.push_str(&names.join(", "));
            }
        }
    }
    section.fact(
        "data pointers",
        text,
        [(
            "data_pointers",
            json!({
                "prp": true,
                "sgl": sgls.support() != SglSupport::NONE,
                "sgl_any_alignment": sgls.support() == SglSupport::ANY_ALIGNMENT,
                "sgl_bit_bucket": sgls.bit_bucket(),
                "sgl_oversize": sgls.oversize(),
            }),
        )],
    );
    let broadcast = match identify.vwc.flush_broadcast() {
        FlushBroadcast::SUPPORTED => "Flush of all namespaces at once",
        FlushBroadcast::NOT_SUPPORTED => "Flush of one namespace at a time",
        _ => "whether Flush does all namespaces at once is not reported",
    };
    let text = match identify.vwc.present() {
        true => format!("yes: what is written lasts after a Flush or with FUA; {broadcast}"),
        false => "no: what is completed lasts".to_owned(),
    };
    section.fact(
        "volatile write cache",
        text,
        [(
            "volatile_write_cache",
            json!({
                "present": identify.vwc.present(),
                "flush_all_namespaces": identify.vwc.flush_broadcast() == FlushBroadcast::SUPPORTED,
            }),
        )],
    );
    let cap = snapshot.cap;
    section.flags(
        "memory",
        "memory",
        &[
            ("controller memory buffer", "controller_memory_buffer", cap.cmbs()),
            ("persistent memory region", "persistent_memory_region", cap.pmrs()),
            ("host memory buffer", "host_memory_buffer", identify.hmpre != 0),
            ("boot partitions", "boot_partitions", cap.bps()),
        ],
    );
    if identify.hmpre != 0 {
        const UNIT: u64 = 4096;
        let (wanted, least) = (u64::from(identify.hmpre) * UNIT, u64::from(identify.hmmin) * UNIT);
        section.fact(
            "host memory buffer",
            format!("{} wanted, {} at least", size(wanted), size(least)),
            [
                ("host_memory_buffer_bytes", json!(wanted)),
                ("host_memory_buffer_min_bytes", json!(least)),
            ],
        );
    }
}

fn registers(section: &mut Section, snapshot: &Snapshot) {
    let cap = snapshot.cap;
    let scope = match cap.cps() {
        PowerScope::NOT_REPORTED => String::new(),
        scope => format!("; power scope: {scope}"),
    };
    section.flags(
        "resets and registers",
        "registers",
        &[
            ("NVM subsystem reset", "subsystem_reset", cap.nssrs()),
            ("NVM subsystem shutdown", "subsystem_shutdown", cap.nsss()),
            ("weighted round robin", "weighted_round_robin", cap.ams().weighted_round_robin()),
            ("ready without media", "ready_independent_of_media", cap.crms().crims()),
        ],
    );
    if let Some(fact) = section.facts.last_mut() {
        fact.text.push_str(&scope);
    }
    section.flags(
        "command sets",
        "command_sets",
        &[
            ("NVM", "nvm", cap.css().nvm()),
            ("choice of several (CC.CSS 110b)", "several", cap.css().io_command_sets()),
            ("admin commands alone", "admin_only", cap.css().no_io_command_set()),
        ],
    );
}

/// What it tells by itself or in logs.
fn told(section: &mut Section, snapshot: &Snapshot) {
    let identify = &snapshot.controller;
    let oaes = identify.oaes;
    section.flags(
        "events",
        "events",
        &[
            ("namespace changes", "namespace_attribute", oaes.namespace_attribute()),
            ("firmware activation", "firmware_activation", oaes.firmware_activation()),
            ("ANA changes", "ana_change", oaes.ana_change()),
            ("predictable latency", "predictable_latency", oaes.predictable_latency()),
            ("LBA status", "lba_status", oaes.lba_status()),
            ("endurance groups", "endurance_group", oaes.endurance_group()),
            ("subsystem shutdown", "normal_shutdown", oaes.normal_shutdown()),
        ],
    );
    let lpa = identify.lpa;
    section.flags(
        "logs",
        "log_attributes",
        &[
            ("parts of pages by offset", "extended_data", lpa.extended_data()),
            ("which pages there are", "supported_pages", lpa.supported_pages()),
            ("commands and their effects", "commands_effects", lpa.commands_effects()),
            ("SMART of a namespace", "smart_per_namespace", lpa.smart_per_namespace()),
            ("telemetry", "telemetry", lpa.telemetry()),
            ("persistent events", "persistent_event", lpa.persistent_event()),
        ],
    );
    section.flags(
        "features",
        "feature_attributes",
        &[
            (
                "choice of default, saved and current value",
                "save_and_select",
                identify.oncs.save_select(),
            ),
            ("timestamp", "timestamp", identify.oncs.timestamp()),
        ],
    );
}

fn attributes(snapshot: &Snapshot) -> [(&'static str, &'static str, bool); 16] {
    let ctratt = snapshot.controller.ctratt;
    [
        ("128-bit host identifiers", "host_id_128", ctratt.host_id_128()),
        (
            "work in non-operational power states",
            "non_operational_permissive",
            ctratt.non_operational_permissive(),
        ),
        ("NVM sets", "nvm_sets", ctratt.nvm_sets()),
        ("read recovery levels", "read_recovery_levels", ctratt.read_recovery_levels()),
        ("endurance groups", "endurance_groups", ctratt.endurance_groups()),
        ("predictable latency", "predictable_latency", ctratt.predictable_latency()),
        ("keep alive by traffic", "traffic_based_keep_alive", ctratt.tbkas()),
        ("namespace granularity", "namespace_granularity", ctratt.namespace_granularity()),
        ("submission queues of NVM sets", "sq_associations", ctratt.sq_associations()),
        ("UUID list", "uuid_list", ctratt.uuid_list()),
        ("domains", "domains", ctratt.mds()),
        ("fixed capacity management", "fixed_capacity", ctratt.fixed_capacity()),
        ("variable capacity management", "variable_capacity", ctratt.variable_capacity()),
        ("deletion of endurance groups", "delete_endurance_group", ctratt.delete_endurance_group()),
        ("deletion of NVM sets", "delete_nvm_set", ctratt.delete_nvm_set()),
        ("extended LBA formats", "extended_lba_formats", ctratt.elbas()),
    ]
}

fn namespaces(section: &mut Section, snapshot: &Snapshot) {
    let identify = &snapshot.controller;
    let nwpc = identify.nwpc;
    section.flags(
        "write protection",
        "write_protection",
        &[
            ("until it is lifted", "write_protect", nwpc.write_protect()),
            ("until power is cycled", "until_power_cycle", nwpc.until_power_cycle()),
            ("for ever", "permanent", nwpc.permanent()),
        ],
    );
    if identify.oacs.format_nvm() {
        let fna = identify.fna;
        let of = |all: bool| if all { "all namespaces" } else { "one namespace" };
        let crypto = if fna.crypto_erase() { "yes" } else { "no" };
        let broadcast = if fna.no_broadcast() { "no" } else { "yes" };
        section.fact(
            "Format NVM",
            format!(
                "formats {}, erases {}; all at once by the broadcast identifier: {broadcast}; cryptographic erase: {crypto}",
                of(fna.format_all()),
                of(fna.erase_all())
            ),
            [(
                "format_nvm",
                json!({
                    "formats_all_namespaces": fna.format_all(),
                    "erases_all_namespaces": fna.erase_all(),
                    "cryptographic_erase": fna.crypto_erase(),
                    "broadcast_nsid": !fna.no_broadcast(),
                }),
            )],
        );
    }
    let cmic = identify.cmic;
    section.flags(
        "several paths",
        "multi_path",
        &[
            (
                "several controllers in the subsystem",
                "several_controllers",
                cmic.multi_controller(),
            ),
            ("several ports", "several_ports", cmic.multi_port()),
            ("asymmetric namespace access", "asymmetric_namespace_access", cmic.ana()),
            ("SR-IOV virtual function", "sriov_virtual_function", cmic.sriov()),
        ],
    );
}

/// What keeps a drive alive: firmware, erasing, temperature.
fn upkeep(section: &mut Section, snapshot: &Snapshot) {
    let identify = &snapshot.controller;
    let frmw = identify.frmw;
    let slots = frmw.slots();
    let mut text = match slots {
        0 => "not reported".to_owned(),
        1 => "1 slot".to_owned(),
        slots => format!("{slots} slots"),
    };
    if frmw.slot1_read_only() {
        text.push_str(", the first read only");
    }
    if frmw.activate_without_reset() {
        text.push_str(", activated without a reset");
    }
    if !identify.oacs.firmware() {
        text.push_str("; it cannot be updated by NVMe");
    }
    section.fact(
        "firmware slots",
        text,
        [(
            "firmware",
            json!({
                "slots": slots,
                "first_slot_read_only": frmw.slot1_read_only(),
                "activates_without_reset": frmw.activate_without_reset(),
            }),
        )],
    );
    let sanitize = identify.sanicap;
    section.flags(
        "sanitize",
        "sanitize",
        &[
            ("cryptographic erase", "crypto_erase", sanitize.ces()),
            ("block erase", "block_erase", sanitize.bes()),
            ("overwrite", "overwrite", sanitize.ows()),
        ],
    );
    section.flags(
        "heat and power",
        "thermal_and_power",
        &[
            (
                "autonomous power state transitions",
                "autonomous_power_states",
                identify.apsta & 1 != 0,
            ),
            (
                "thermal management by the host",
                "host_thermal_management",
                identify.hctma.supported(),
            ),
        ],
    );
    let edstt = u64::from(identify.edstt);
    if identify.oacs.self_test() {
        section.fact(
            "extended self-test",
            format!("takes {edstt} minutes"),
            [("extended_self_test_minutes", some(edstt))],
        );
    }
}
