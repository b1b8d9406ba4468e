//! What a controller is, and its limits.

use nvme_spec::register::Vs;
use serde_json::{Value, json};

use super::fact::{Answer, Place, Section};
use super::snapshot::Snapshot;
use crate::perf::units::show_size;
use crate::text::text_of;

/// Unit of CAP.TO in milliseconds.
const TIMEOUT_MS: u64 = 500;
/// Unit of the keep alive granularity in milliseconds.
const KEEP_ALIVE_MS: u64 = 100;

/// What it is.
pub(super) fn identity(snapshot: &Snapshot) -> Section {
    let identify = &snapshot.controller;
    let mut section =
        Section::new(format!("Controller {}", snapshot.address), Place::Object("controller"));
    let names = [
        ("model", "model", text_of(&identify.mn)),
        ("serial number", "serial_number", text_of(&identify.sn)),
        ("firmware", "firmware", text_of(&identify.fr)),
    ];
    for (label, key, name) in names {
        let text = if name.is_empty() { "not reported" } else { name.as_str() };
        section.fact(label, text, [(key, some_text(&name))]);
    }
    let version = version_text(snapshot.vs);
    section.fact("NVMe version", version.clone(), [("nvme_version", json!(version))]);
    section.fact(
        "type",
        identify.cntrltype.to_string(),
        [
            ("address", json!(snapshot.address)),
            ("type", json!(identify.cntrltype.to_string())),
            ("controller_id", json!(identify.cntlid.0)),
        ],
    );
    let nqn = text_of(&identify.subnqn);
    let subsystem = match nqn.as_str() {
        "" => format!("controller {}; its name is not reported", identify.cntlid),
        nqn => format!("{nqn}, controller {}", identify.cntlid),
    };
    section.fact("NVM subsystem", subsystem, [("subsystem_nqn", some_text(&nqn))]);
    section.fact(
        "PCI vendor",
        format!("{:04x}, of the subsystem {:04x}", identify.vid, identify.ssvid),
        [
            ("pci_vendor_id", json!(identify.vid)),
            ("pci_subsystem_vendor_id", json!(identify.ssvid)),
        ],
    );
    let [low, middle, high] = identify.ieee;
    let oui = match identify.ieee {
        [0, 0, 0] => String::new(),
        _ => format!("{high:02x}-{middle:02x}-{low:02x}"),
    };
    let text = if oui.is_empty() { "not reported" } else { oui.as_str() };
    section.fact("IEEE OUI", text, [("ieee_oui", some_text(&oui))]);
    capacity(&mut section, snapshot);
    section
}

/// What the whole subsystem holds, which only controllers with namespace management tell.
fn capacity(section: &mut Section, snapshot: &Snapshot) {
    let identify = &snapshot.controller;
    let (total, free) = (bytes(identify.tnvmcap.get()), bytes(identify.unvmcap.get()));
    let text = match total {
        0 => "not reported".to_owned(),
        _ => format!("{}, of which {} unallocated", size(total), size(free)),
    };
    section.fact(
        "total capacity",
        text,
        [
            ("total_capacity_bytes", some(total)),
            ("unallocated_capacity_bytes", if total == 0 { Value::Null } else { json!(free) }),
        ],
    );
}

/// Its limits.
pub(super) fn limits(snapshot: &Snapshot) -> Section {
    let identify = &snapshot.controller;
    let cap = snapshot.cap;
    let mut section = Section::new("Limits", Place::Object("limits"));
    let page = 4096_u64 << cap.mpsmin();
    let mdts = power_of_two(identify.mdts, page);
    let text = match mdts {
        Some(bytes) => format!("{} (MDTS {})", kibibytes(bytes), identify.mdts),
        None => "no limit".to_owned(),
    };
    section.fact("largest transfer", text, [("max_transfer_bytes", json!(mdts))]);
    let most = 4096_u64 << cap.mpsmax();
    let text = match page == most {
        true => size(page),
        false => format!("{} to {}", size(page), size(most)),
    };
    section.fact(
        "memory page size",
        text,
        [("min_page_bytes", json!(page)), ("max_page_bytes", json!(most))],
    );
    section.fact(
        "I/O queue pairs",
        snapshot.queue_pairs.to_string(),
        [("io_queue_pairs", json!(snapshot.queue_pairs))],
    );
    queues(&mut section, snapshot);
    let vectors = match snapshot.vectors {
        0 => "none: no MSI-X".to_owned(),
        vectors => vectors.to_string(),
    };
    section.fact("interrupt vectors", vectors, [("interrupt_vectors", json!(snapshot.vectors))]);
    let stride = 4_u64 << cap.dstrd();
    section.fact(
        "doorbell stride",
        format!("{stride} bytes"),
        [("doorbell_stride_bytes", json!(stride))],
    );
    let ready = u64::from(cap.to()) * TIMEOUT_MS;
    section.fact("ready within", milliseconds(ready), [("ready_timeout_ms", json!(ready))]);
    let text = match identify.rtd3e {
        0 => "not reported".to_owned(),
        micros => milliseconds(u64::from(micros) / 1000),
    };
    section.fact("shut down within", text, [("shutdown_timeout_us", some(identify.rtd3e.into()))]);
    admin(&mut section, snapshot);
    atomicity(&mut section, snapshot);
    commands(&mut section, snapshot, page);
    section
}

fn queues(section: &mut Section, snapshot: &Snapshot) {
    let (cap, identify) = (snapshot.cap, &snapshot.controller);
    let entries = u32::from(cap.mqes_z()) + 1;
    let contiguous = if cap.cqr() { "contiguous in memory" } else { "contiguous or not" };
    section.fact(
        "queue depth",
        format!("up to {entries} entries, {contiguous}"),
        [("max_queue_entries", json!(entries)), ("contiguous_queues_required", json!(cap.cqr()))],
    );
    let entry = |sizes: nvme_spec::identify::attributes::EntrySizes| {
        (1_u64 << sizes.required(), 1_u64 << sizes.maximum())
    };
    let (sq, cq) = (entry(identify.sqes), entry(identify.cqes));
    let range = |(least, most)| match least == most {
        true => format!("{least} bytes"),
        false => format!("{least} to {most} bytes"),
    };
    section.fact(
        "queue entries",
        format!("commands {}, completions {}", range(sq), range(cq)),
        [("submission_entry_bytes", json!(sq.0)), ("completion_entry_bytes", json!(cq.0))],
    );
    let maxcmd = u64::from(identify.maxcmd);
    let text = match maxcmd {
        0 => "as many as the queue holds".to_owned(),
        most => format!("{most} recommended for each queue"),
    };
    section.fact("outstanding commands", text, [("max_outstanding_commands", some(maxcmd))]);
}

fn admin(section: &mut Section, snapshot: &Snapshot) {
    let identify = &snapshot.controller;
    let (aborts, events) = (u16::from(identify.acl_z) + 1, u16::from(identify.aerl_z) + 1);
    section.fact("aborts at a time", aborts.to_string(), [("max_aborts", json!(aborts))]);
    section.fact(
        "event requests",
        format!("{events} outstanding"),
        [("max_event_requests", json!(events))],
    );
    section.fact(
        "namespaces",
        match identify.mnan {
            0 => format!("identifiers 1 to {}", identify.nn),
            most => format!("identifiers 1 to {}, at most {most} at a time", identify.nn),
        },
        [("max_nsid", json!(identify.nn)), ("max_namespaces", some(identify.mnan.into()))],
    );
    let keep_alive = u64::from(identify.kas) * KEEP_ALIVE_MS;
    let text = match keep_alive {
        0 => "not supported".to_owned(),
        ms => format!("in steps of {ms} ms"),
    };
    section.fact("keep alive", text, [("keep_alive_granularity_ms", some(keep_alive))]);
    let burst = power_of_two(identify.rab, 1);
    let text = match (identify.rab, burst) {
        (0, _) => "one command at a time recommended".to_owned(),
        (_, Some(burst)) => format!("bursts of {burst} commands recommended"),
        (_, None) => "bursts without limit recommended".to_owned(),
    };
    section.fact(
        "arbitration",
        text,
        [("recommended_burst_commands", json!(burst.or((identify.rab == 0).then_some(1))))],
    );
}

fn atomicity(section: &mut Section, snapshot: &Snapshot) {
    let identify = &snapshot.controller;
    let [normal, power, compare] = [identify.awun_z, identify.awupf_z, identify.acwu_z]
        .map(|blocks_z| u32::from(blocks_z) + 1);
    section.fact(
        "atomic writes",
        format!(
            "{} of every format; {power} if power fails; Compare and Write {compare}",
            blocks(normal.into())
        ),
        [
            ("atomic_write_blocks", json!(normal)),
            ("atomic_write_power_fail_blocks", json!(power)),
            ("atomic_compare_and_write_blocks", json!(compare)),
        ],
    );
}

/// Limits of single I/O commands (CNS 06h).
fn commands(section: &mut Section, snapshot: &Snapshot, page: u64) {
    let Answer::Given(nvm) = &snapshot.nvm else {
        // Controllers before version 2.0 have no place to tell them.
        section.fact("I/O command limits", "not reported", [("io_commands", Value::Null)]);
        return;
    };
    let verify = power_of_two(nvm.vsl, page);
    let zeroes = power_of_two(nvm.wzsl, page);
    let uncorrectable = power_of_two(nvm.wusl, page);
    let mut parts = Vec::new();
    for (name, bytes) in
        [("Verify", verify), ("Write Zeroes", zeroes), ("Write Uncorrectable", uncorrectable)]
    {
        if let Some(bytes) = bytes {
            parts.push(format!("{name} up to {}", size(bytes)));
        }
    }
    if nvm.dmrl != 0 {
        parts.push(format!("Dataset Management up to {} ranges", nvm.dmrl));
    }
    if nvm.dmrsl != 0 {
        parts.push(format!("a range of it up to {}", blocks(nvm.dmrsl.into())));
    }
    if nvm.dmsl != 0 {
        parts.push(format!("all its ranges up to {}", blocks(nvm.dmsl)));
    }
    if parts.is_empty() {
        parts.push("those of their own fields".to_owned());
    }
    section.fact(
        "I/O command limits",
        parts.join(", "),
        [(
            "io_commands",
            json!({
                "max_verify_bytes": verify,
                "max_write_zeroes_bytes": zeroes,
                "max_write_uncorrectable_bytes": uncorrectable,
                "max_dataset_management_ranges": some(nvm.dmrl.into()),
                "max_dataset_management_range_blocks": some(nvm.dmrsl.into()),
                "max_dataset_management_blocks": some(nvm.dmsl),
            }),
        )],
    );
}

/// A version as it is written: `2.0`, `1.2.1`.
fn version_text(vs: Vs) -> String {
    match (vs.mjr(), vs.mnr(), vs.ter()) {
        (0, 0, 0) => "not reported".to_owned(),
        (major, minor, 0) => format!("{major}.{minor}"),
        (major, minor, tertiary) => format!("{major}.{minor}.{tertiary}"),
    }
}

/// `unit << exponent`; `None` if the exponent is 0, which means no limit, or beyond what 64 bits hold, which is none.
fn power_of_two(exponent: u8, unit: u64) -> Option<u64> {
    let factor = 1_u64.checked_shl(exponent.into()).filter(|_| exponent != 0)?;
    unit.checked_mul(factor)
}

/// KiB, as transfers are told in, up to where nobody would.
fn kibibytes(bytes: u64) -> String {
    match bytes {
        ..0x1000_0000 => format!("{} KiB", bytes / 1024),
        _ => size(bytes),
    }
}

fn milliseconds(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        _ => format!("{} s", ms as f64 / 1000.0),
    }
}

pub(super) fn size(bytes: u64) -> String {
    show_size(bytes as f64)
}

/// "1 block", "2 blocks".
pub(super) fn blocks(count: u64) -> String {
    counted(count, "block")
}

/// A number of things: "1 command", "2 commands".
pub(super) fn counted(count: u64, thing: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {thing}{plural}")
}

/// A number of 128 bits as far as 64 hold it: 16 EiB.
pub(super) fn bytes(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// A number that is not reported if it is 0.
pub(super) fn some(value: u64) -> Value {
    if value == 0 { Value::Null } else { json!(value) }
}

/// A text that is not reported if it is empty.
pub(super) fn some_text(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { json!(text) }
}
