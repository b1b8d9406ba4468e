//! Log pages in words.

use nvme_spec::command::{AdminOpcode, NvmOpcode};
use nvme_spec::log_page::LogPageId;
use nvme_spec::log_page::effects::{CommandEffects, Exclusion};
use nvme_spec::log_page::error::{ErrorEntry, ParameterErrorLocation};
use serde_json::{Map, Value, json};

use super::controller::some_text;
use super::fact::{Answer, Place, Section};
use super::snapshot::Snapshot;
use crate::text::text_of;

/// Error entries that the text shows; the JSON has all.
const ERRORS_SHOWN: usize = 8;
/// A queue or command that an error entry does not name.
const NO_ID: u16 = u16::MAX;

/// The log pages.
pub(super) fn logs(snapshot: &Snapshot) -> Section {
    let mut section = Section::new("Logs", Place::Object("logs"));
    pages(&mut section, snapshot);
    errors(&mut section, snapshot);
    firmware(&mut section, snapshot);
    changed(&mut section, snapshot);
    commands(&mut section, snapshot);
    section
}

fn pages(section: &mut Section, snapshot: &Snapshot) {
    let supported = &snapshot.logs.supported;
    let Answer::Given(pages) = supported else {
        let why = supported.why_not().unwrap_or_default();
        section.fact("list of pages", why, [("supported_pages", Value::Null)]);
        return;
    };
    let lids = pages.lids.iter().enumerate().filter(|(_, support)| support.lsupp());
    let lids: Vec<LogPageId> = lids.map(|(lid, _)| LogPageId(lid as u8)).collect();
    let names: Vec<_> = lids.iter().map(|lid| format!("{lid} ({:02x}h)", lid.0)).collect();
    let ids: Vec<_> = lids.iter().map(|lid| lid.0).collect();
    section.fact("pages", names.join(", "), [("supported_pages", json!(ids))]);
}

fn errors(section: &mut Section, snapshot: &Snapshot) {
    let room = u16::from(snapshot.controller.elpe_z) + 1;
    let entries = match &snapshot.logs.errors {
        Answer::Given(entries) => entries,
        other => {
            let why = other.why_not().unwrap_or_default();
            section.fact("errors", why, [("errors", Value::Null), ("max_errors", json!(room))]);
            return;
        }
    };
    let mut lines = match entries.len() {
        0 => vec![format!("none; the log has room for {room}")],
        1 => vec![format!("1 entry of {room}")],
        count => vec![format!("{count} entries of {room}, the newest first")],
    };
    lines.extend(entries.iter().take(ERRORS_SHOWN).map(error_text));
    if entries.len() > ERRORS_SHOWN {
        lines.push(format!("and {} older ones", entries.len() - ERRORS_SHOWN));
    }
    let list: Vec<_> = entries.iter().map(error_json).collect();
    section.fact(
        "errors",
        lines.join("\n"),
        [("errors", Value::Array(list)), ("max_errors", json!(room))],
    );
}

fn error_text(entry: &ErrorEntry) -> String {
    let mut text = format!("{}: {}", entry.error_count, entry.status.status().code());
    match (entry.sqid.0, entry.cid.0) {
        (NO_ID, _) => {}
        (0, cid) => text.push_str(&format!(", admin command {cid}")),
        (queue, cid) => text.push_str(&format!(", command {cid} of queue {queue}")),
    }
    if entry.nsid.is_specific() {
        text.push_str(&format!(", namespace {}, block {}", entry.nsid.0, entry.lba.0));
    }
    if let Some((byte, bit)) = location(entry) {
        text.push_str(&format!(", byte {byte} bit {bit} of the command"));
    }
    text
}

fn location(entry: &ErrorEntry) -> Option<(u8, u8)> {
    let location = entry.location;
    (location != ParameterErrorLocation::NONE).then(|| (location.byte(), location.bit()))
}

fn error_json(entry: &ErrorEntry) -> Value {
    let status = entry.status.status();
    let id = |id: u16| if id == NO_ID { Value::Null } else { json!(id) };
    json!({
        "error_count": entry.error_count,
        "queue_id": id(entry.sqid.0),
        "command_id": id(entry.cid.0),
        "status": status.code().to_string(),
        "status_code_type": status.sct().0,
        "status_code": status.sc(),
        "do_not_retry": status.dnr(),
        "nsid": if entry.nsid.is_specific() { json!(entry.nsid.0) } else { Value::Null },
        "lba": if entry.nsid.is_specific() { json!(entry.lba.0) } else { Value::Null },
        "command_byte": location(entry).map(|(byte, _)| byte),
        "command_bit": location(entry).map(|(_, bit)| bit),
    })
}

fn firmware(section: &mut Section, snapshot: &Snapshot) {
    let page = match &snapshot.logs.firmware {
        Answer::Given(page) => page,
        other => {
            let why = other.why_not().unwrap_or_default();
            section.fact("firmware slots", why, [("firmware_slots", Value::Null)]);
            return;
        }
    };
    let (active, next) = (page.afi.active(), page.afi.next());
    let mut lines = Vec::new();
    let mut list = Vec::new();
    for (slot, revision) in (1_u8..).zip(&page.frs) {
        let revision = text_of(revision);
        if revision.is_empty() && slot != active {
            continue;
        }
        let mut line = format!("{slot}: {revision}");
        if slot == active {
            line.push_str(", active");
        }
        if slot == next {
            line.push_str(", active after the next reset");
        }
        lines.push(line);
        list.push(json!({
            "slot": slot,
            "revision": some_text(&revision),
            "active": slot == active,
            "next": slot == next,
        }));
    }
    if lines.is_empty() {
        lines.push("all empty".to_owned());
    }
    section.fact("firmware slots", lines.join("\n"), [("firmware_slots", Value::Array(list))]);
}

fn changed(section: &mut Section, snapshot: &Snapshot) {
    let page = match &snapshot.logs.changed_namespaces {
        Answer::Given(page) => page,
        other => {
            let why = other.why_not().unwrap_or_default();
            section.fact("changed namespaces", why, [("changed_namespaces", Value::Null)]);
            return;
        }
    };
    let nsids: Vec<u32> = page.0.iter().map(|nsid| nsid.0).collect();
    let text = match nsids.as_slice() {
        [] => "none since the list was read last".to_owned(),
        [u32::MAX, ..] => "more than the list holds".to_owned(),
        nsids => nsids.iter().map(u32::to_string).collect::<Vec<_>>().join(", "),
    };
    section.fact("changed namespaces", text, [("changed_namespaces", json!(nsids))]);
}

fn commands(section: &mut Section, snapshot: &Snapshot) {
    let page = match &snapshot.logs.commands {
        Answer::Given(page) => page,
        other => {
            let why = other.why_not().unwrap_or_default();
            section.fact(
                "commands",
                why,
                [("admin_commands", Value::Null), ("io_commands", Value::Null)],
            );
            return;
        }
    };
    let admin = |opcode| AdminOpcode(opcode).name();
    let io = |opcode| NvmOpcode(opcode).name();
    command_table(section, "admin commands", "admin_commands", &page.acs, &admin);
    command_table(section, "I/O commands", "io_commands", &page.iocs, &io);
}

/// Commands without effects in one line, the others each with its own.
fn command_table(
    section: &mut Section,
    label: &str,
    key: &str,
    table: &[CommandEffects; 256],
    name: &dyn Fn(u8) -> Option<&'static str>,
) {
    let mut plain = Vec::new();
    let mut lines = Vec::new();
    let mut list = Vec::new();
    for (opcode, effects) in (0..=u8::MAX).zip(table).filter(|(_, effects)| effects.csupp()) {
        let name = match name(opcode) {
            Some(name) => name.to_owned(),
            None if opcode >= 0xC0 => format!("vendor specific {opcode:02x}h"),
            None if key == "io_commands" && opcode >= 0x80 => {
                format!("vendor specific {opcode:02x}h")
            }
            None => format!("opcode {opcode:02x}h"),
        };
        let words = effect_words(*effects);
        match words.as_str() {
            "" => plain.push(name.clone()),
            words => lines.push(format!("{name}: {words}")),
        }
        list.push(effect_json(opcode, &name, *effects));
    }
    if !plain.is_empty() {
        lines.insert(0, format!("without effects: {}", plain.join(", ")));
    }
    if lines.is_empty() {
        lines.push("none".to_owned());
    }
    section.fact(label, lines.join("\n"), [(key, Value::Array(list))]);
}

fn effect_words(effects: CommandEffects) -> String {
    let changes: Vec<_> = [
        ("data", effects.lbcc()),
        ("what namespaces can", effects.ncc()),
        ("which namespaces there are", effects.nic()),
        ("what the controller can", effects.ccc()),
    ]
    .into_iter()
    .filter(|change| change.1)
    .map(|change| change.0)
    .collect();
    let mut words = match changes.is_empty() {
        true => String::new(),
        false => format!("changes {}", changes.join(", ")),
    };
    let exclusion = match effects.cse() {
        Exclusion::NONE => "",
        Exclusion::NAMESPACE => "wants its namespace for itself",
        Exclusion::ALL => "wants all namespaces for itself",
        _ => "wants to be alone in a way that is not known here",
    };
    if !words.is_empty() && !exclusion.is_empty() {
        words.push_str("; ");
    }
    words + exclusion
}

fn effect_json(opcode: u8, name: &str, effects: CommandEffects) -> Value {
    let mut object = Map::new();
    for (key, value) in [
        ("opcode", json!(opcode)),
        ("name", json!(name)),
        ("changes_data", json!(effects.lbcc())),
        ("changes_namespace_capabilities", json!(effects.ncc())),
        ("changes_namespace_inventory", json!(effects.nic())),
        ("changes_controller_capabilities", json!(effects.ccc())),
        (
            "exclusive_of",
            match effects.cse() {
                Exclusion::NONE => Value::Null,
                Exclusion::NAMESPACE => json!("namespace"),
                _ => json!("all"),
            },
        ),
    ] {
        object.insert(key.to_owned(), value);
    }
    Value::Object(object)
}
