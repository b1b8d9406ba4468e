//! A namespace in words.

use nvme_spec::Nsid;
use nvme_spec::identify::CommandSet;
use nvme_spec::identify::descriptor::NamespaceIdentifiers;
use nvme_spec::identify::namespace::{DeallocatedRead, IdentifyNamespace, LbaFormat};
use serde_json::{Value, json};

use super::controller::{blocks, bytes, counted, size, some};
use super::fact::{Answer, Place, Section};
use super::feature;
use super::snapshot::{NamespaceSnapshot, Snapshot};

/// A namespace.
pub(super) fn namespace(snapshot: &Snapshot, namespace: &NamespaceSnapshot) -> Section {
    let Nsid(nsid) = namespace.nsid;
    let mut section = Section::new(format!("Namespace {nsid}"), Place::Element("namespaces"));
    let identifiers = namespace.identifiers.given().copied().unwrap_or_default();
    let set = identifiers.csi.unwrap_or(CommandSet::NVM);
    section.fact(
        "command set",
        set.to_string(),
        [("nsid", json!(nsid)), ("command_set", json!(set.to_string()))],
    );
    match &namespace.identify {
        Answer::Given(identify) => {
            sizes(&mut section, identify);
            formats(&mut section, identify);
            names(&mut section, identify, &identifiers);
            abilities(&mut section, snapshot, identify);
            layout(&mut section, identify);
        }
        Answer::Refused(_) | Answer::Absent => {
            let why = namespace.identify.why_not().unwrap_or_default();
            section.fact("structure", why, [("structure", Value::Null)]);
        }
    }
    for value in &namespace.features {
        feature::describe(&mut section, snapshot, value);
    }
    section
}

/// A controller without a namespace.
pub(super) fn none() -> Section {
    let mut section = Section::new("Namespaces", Place::Empty("namespaces"));
    section.fact("active", "none", []);
    section
}

/// How many formats the list has.
fn format_count(identify: &IdentifyNamespace) -> usize {
    let count = usize::from(identify.nlbaf_z) + 1 + usize::from(identify.nulbaf);
    count.min(identify.lbaf.len())
}

/// The format in use.
fn format(identify: &IdentifyNamespace) -> LbaFormat {
    let index = identify.flbas.index(format_count(identify));
    identify.lbaf.get(index).copied().unwrap_or_default()
}

/// Bytes of a block of a format; `None` if the format is not available.
fn block_bytes(format: LbaFormat) -> Option<u64> {
    // No format has blocks of 2^40 bytes or more.
    (1..40).contains(&format.lbads()).then(|| 1 << format.lbads())
}

fn sizes(section: &mut Section, identify: &IdentifyNamespace) {
    let block = block_bytes(format(identify)).unwrap_or(0);
    let in_bytes = |count: u64| count.saturating_mul(block);
    let (nsze, ncap, nuse) = (identify.nsze.0, identify.ncap.0, identify.nuse.0);
    section.fact(
        "size",
        format!("{}: {} of {block} bytes", size(in_bytes(nsze)), blocks(nsze)),
        [
            ("size_bytes", json!(in_bytes(nsze))),
            ("size_blocks", json!(nsze)),
            ("block_bytes", json!(block)),
        ],
    );
    let text = match (ncap == nsze, nuse == nsze) {
        (true, true) => "all of it".to_owned(),
        _ => format!("{} in use, {} may be", size(in_bytes(nuse)), size(in_bytes(ncap))),
    };
    section.fact(
        "capacity",
        text,
        [
            ("capacity_bytes", json!(in_bytes(ncap))),
            ("used_bytes", json!(in_bytes(nuse))),
            ("thin_provisioned", json!(identify.nsfeat.thinp())),
        ],
    );
    let nvmcap = bytes(identify.nvmcap.get());
    if nvmcap != 0 {
        section.fact("allocated for it", size(nvmcap), [("nvm_capacity_bytes", json!(nvmcap))]);
    }
}

fn formats(section: &mut Section, identify: &IdentifyNamespace) {
    let count = format_count(identify);
    let in_use = identify.flbas.index(count);
    let mut lines = Vec::new();
    let mut list = Vec::new();
    for (index, format) in identify.lbaf.iter().take(count).enumerate() {
        let Some(block) = block_bytes(*format) else { continue };
        let mut line = format!("{index}: {block} bytes");
        if format.ms() != 0 {
            line.push_str(&format!(" and {} of metadata", format.ms()));
        }
        line.push_str(match format.rp() {
            0 => "",
            1 => ", better performance",
            2 => ", good performance",
            _ => ", degraded performance",
        });
        if index == in_use {
            line.push_str(", in use");
        }
        lines.push(line);
        list.push(json!({
            "index": index,
            "block_bytes": block,
            "metadata_bytes": format.ms(),
            "relative_performance": format.rp(),
            "in_use": index == in_use,
        }));
    }
    section.fact("formats", lines.join("\n"), [("formats", Value::Array(list))]);
    let dps = identify.dps.pi_type();
    let text = match dps {
        0 if identify.dpc.into_bits() == 0 => "not supported".to_owned(),
        0 => "off".to_owned(),
        kind => format!("type {kind}"),
    };
    section.fact("protection information", text, [("protection_information_type", json!(dps))]);
}

fn names(section: &mut Section, identify: &IdentifyNamespace, ids: &NamespaceIdentifiers) {
    let nguid = ids.nguid.unwrap_or(identify.nguid).0;
    let eui64 = ids.eui64.unwrap_or(identify.eui64).0;
    let text = |bytes: &[u8], name: &str| match bytes.iter().all(|&byte| byte == 0) {
        true => (format!("no {name}"), Value::Null),
        false => {
            let hex = hex(bytes);
            (format!("{name} {hex}"), json!(hex))
        }
    };
    let uuid = ids.uuid.map_or_else(
        || ("no UUID".to_owned(), Value::Null),
        |uuid| {
            let hex = hex(&uuid.0);
            let text =
                [&hex[0..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..32]].join("-");
            (format!("UUID {text}"), json!(text))
        },
    );
    let (nguid, eui64) = (text(&nguid, "NGUID"), text(&eui64, "EUI64"));
    section.fact(
        "identifiers",
        format!("{}\n{}\n{}", uuid.0, nguid.0, eui64.0),
        [
            ("uuid", uuid.1),
            ("nguid", nguid.1),
            ("eui64", eui64.1),
            ("identifiers_never_reused", json!(identify.nsfeat.uidreuse())),
        ],
    );
}

fn abilities(section: &mut Section, snapshot: &Snapshot, identify: &IdentifyNamespace) {
    let oncs = snapshot.controller.oncs;
    let read = match identify.dlfeat.read() {
        DeallocatedRead::ZEROES => "deallocated blocks read as zeroes",
        DeallocatedRead::ONES => "deallocated blocks read as ones",
        _ => "what deallocated blocks read as is not reported",
    };
    let text = match oncs.dataset_management() {
        true => format!("supported; {read}"),
        false => "not supported".to_owned(),
    };
    section.fact(
        "deallocate",
        text,
        [
            ("deallocate", json!(oncs.dataset_management())),
            (
                "deallocated_reads_as",
                match identify.dlfeat.read() {
                    DeallocatedRead::ZEROES => json!("zeroes"),
                    DeallocatedRead::ONES => json!("ones"),
                    _ => Value::Null,
                },
            ),
        ],
    );
    let deallocates = oncs.write_zeroes() && identify.dlfeat.write_zeroes();
    let text = match (oncs.write_zeroes(), deallocates) {
        (false, _) => "not supported",
        (true, true) => "supported, also with deallocation",
        (true, false) => "supported, without deallocation",
    };
    section.fact(
        "write zeroes",
        text,
        [
            ("write_zeroes", json!(oncs.write_zeroes())),
            ("write_zeroes_deallocates", json!(deallocates)),
        ],
    );
    let protected = identify.nsattr.write_protected();
    section.fact(
        "writable",
        if protected { "no: write protected" } else { "yes" },
        [("write_protected", json!(protected))],
    );
    let shared = identify.nmic.shared();
    let text = if shared { "by several controllers" } else { "by this controller alone" };
    section.fact("can be used", text, [("shared", json!(shared))]);
    let reservations = identify.rescap.into_bits() != 0;
    let text = if reservations { "supported" } else { "not supported" };
    section.fact("reservations", text, [("reservations", json!(reservations))]);
    if oncs.copy() {
        let (ranges, range, all) = (u16::from(identify.msrc_z) + 1, identify.mssrl, identify.mcl);
        let text = match (range, all) {
            (0, _) | (_, 0) => "supported; its limits are not reported".to_owned(),
            _ => format!(
                "up to {} of {} each, {} in all",
                counted(ranges.into(), "range"),
                blocks(range.into()),
                blocks(all.into())
            ),
        };
        section.fact(
            "copy",
            text,
            [
                ("copy_max_ranges", json!(ranges)),
                ("copy_max_range_blocks", json!(range)),
                ("copy_max_blocks", json!(all)),
            ],
        );
    }
    if identify.fpi.supported() && identify.fpi.remaining() != 0 {
        let remaining = identify.fpi.remaining();
        section.fact(
            "being formatted",
            format!("{remaining} % remain"),
            [("format_remaining_percent", json!(remaining))],
        );
    }
}

/// What suits it best.
fn layout(section: &mut Section, identify: &IdentifyNamespace) {
    let one_based = |blocks_z: u16| u64::from(blocks_z) + 1;
    match identify.nsfeat.optperf() {
        true => {
            let (write, align) = (one_based(identify.npwg_z), one_based(identify.npwa_z));
            let (deallocate, optimal) = (one_based(identify.npdg_z), one_based(identify.nows_z));
            section.fact(
                "preferred I/O",
                format!(
                    "writes of {} aligned to {align}, deallocation of {deallocate}, best {optimal}",
                    blocks(write)
                ),
                [
                    ("preferred_write_blocks", json!(write)),
                    ("preferred_write_alignment_blocks", json!(align)),
                    ("preferred_deallocate_blocks", json!(deallocate)),
                    ("optimal_write_blocks", json!(optimal)),
                ],
            );
        }
        false => {
            section.fact("preferred I/O", "not reported", [("preferred_write_blocks", Value::Null)])
        }
    }
    let boundary = u64::from(identify.noiob);
    let text = match boundary {
        0 => "not reported".to_owned(),
        count => format!("{}: I/O across it is slower", blocks(count)),
    };
    section.fact("optimal boundary", text, [("optimal_io_boundary_blocks", some(boundary))]);
    match identify.nsfeat.nsabp() {
        true => {
            let [normal, power, compare] =
                [identify.nawun_z, identify.nawupf_z, identify.nacwu_z].map(one_based);
            section.fact(
                "atomic writes",
                format!("{}; {power} if power fails; Compare and Write {compare}", blocks(normal)),
                [
                    ("atomic_write_blocks", json!(normal)),
                    ("atomic_write_power_fail_blocks", json!(power)),
                    ("atomic_compare_and_write_blocks", json!(compare)),
                ],
            );
        }
        false => section.fact(
            "atomic writes",
            "as the controller's",
            [("atomic_write_blocks", Value::Null)],
        ),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
