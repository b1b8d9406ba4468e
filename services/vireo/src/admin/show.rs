//! Answers as tables, JSON or YAML.

use super::arguments::Format;
use crate::perf::units::show_size;
use crate::text::print;
use anyhow::Context;
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;

/// A column: its heading, and where its value is in the resource's JSON.
pub(super) type Column = (&'static str, Show);

/// How a value of a resource is shown.
#[derive(Debug, Clone, Copy)]
pub(super) enum Show {
    /// As it is.
    Text(&'static str),
    /// The last part of a resource's name.
    Last(&'static str),
    /// All names of a list, their last parts.
    Names(&'static str),
    /// Bytes with a unit.
    Bytes(&'static str),
    /// An enum's value without its prefix, in small letters.
    Word(&'static str),
    /// `yes` or `no`.
    Truth(&'static str),
    /// What is computed of the whole resource.
    Made(fn(&Value) -> String),
}

/// Columns of volumes.
pub(super) const VOLUME: &[Column] = &[
    ("volume", Show::Last("name")),
    ("driver", Show::Made(driver)),
    ("size", Show::Bytes("capacity_bytes")),
    ("block", Show::Text("block_size")),
    ("namespaces", Show::Made(namespaces_of)),
    ("of", Show::Word("origin")),
    ("state", Show::Word("state")),
    ("message", Show::Text("state_message")),
];
/// Columns of subsystems.
pub(super) const SUBSYSTEM: &[Column] = &[
    ("subsystem", Show::Last("name")),
    ("nqn", Show::Text("nqn")),
    ("serial", Show::Text("serial")),
    ("model", Show::Text("model")),
    ("of", Show::Word("origin")),
    ("state", Show::Word("state")),
    ("message", Show::Text("state_message")),
];
/// Columns of namespaces.
pub(super) const NAMESPACE: &[Column] = &[
    ("namespace", Show::Made(|value| short_namespace(&text(&value["name"])))),
    ("volume", Show::Last("volume")),
    ("uuid", Show::Text("uuid")),
    ("limits", Show::Made(limits)),
    ("i/o", Show::Made(pause)),
    ("of", Show::Word("origin")),
    ("state", Show::Word("state")),
    ("message", Show::Text("state_message")),
];
/// Columns of controllers.
pub(super) const CONTROLLER: &[Column] = &[
    ("controller", Show::Last("name")),
    ("subsystem", Show::Last("subsystem")),
    ("socket directory", Show::Text("path")),
    ("doorbells", Show::Word("doorbells")),
    ("queues", Show::Text("queues")),
    ("client", Show::Made(client)),
    ("limits", Show::Made(limits)),
    ("i/o", Show::Made(pause)),
    ("of", Show::Word("origin")),
    ("state", Show::Word("state")),
    ("message", Show::Text("state_message")),
];
/// Columns of workers.
pub(super) const WORKER: &[Column] = &[
    ("worker", Show::Last("name")),
    ("core", Show::Text("core")),
    ("tenant", Show::Text("tenant")),
    ("running", Show::Truth("running")),
    ("pid", Show::Text("pid")),
    ("version", Show::Text("version")),
    ("controllers", Show::Names("controllers")),
];
/// Columns of trace policies.
pub(super) const TRACE_POLICY: &[Column] = &[
    ("worker", Show::Made(|value| text(&value["name"]).split('/').nth(1).unwrap_or("").to_owned())),
    ("sampled: one in", Show::Text("sample_interval")),
    ("slow from", Show::Text("slow_threshold")),
    ("not recorded", Show::Text("dropped_records")),
];
/// Columns of faults.
pub(super) const FAULT: &[Column] = &[
    (
        "fault",
        Show::Made(|value| text(&value["name"]).replace("volumes/", "").replace("faults/", "")),
    ),
    ("operations", Show::Made(operations)),
    ("from lba", Show::Text("first_lba")),
    ("blocks", Show::Text("lba_count")),
    ("hits", Show::Made(condition)),
    ("with", Show::Made(effect)),
    ("seen", Show::Text("seen_count")),
    ("injected", Show::Text("injected_count")),
];
/// Columns of processes.
pub(super) const PROCESS: &[Column] = &[
    ("process", Show::Word("kind")),
    ("name", Show::Text("process_name")),
    ("pid", Show::Text("pid")),
    ("running", Show::Truth("running")),
    ("ready", Show::Truth("ready")),
    ("version", Show::Text("version")),
    ("message", Show::Text("message")),
];

/// Prints one value in a format that programs read; tables are the caller's.
pub(super) fn structured(value: &Value, format: Format) -> anyhow::Result<()> {
    let text = match format {
        Format::Yaml => serde_yaml_ng::to_string(value).context("write yaml")?,
        Format::Json | Format::Table => format!("{value:#}\n"),
    };
    print(&text).context("write to standard output")
}

/// Prints resources.
pub(super) fn resources(list: &[Value], columns: &[Column], format: Format) -> anyhow::Result<()> {
    if format != Format::Table {
        return structured(&Value::Array(list.to_vec()), format);
    }
    print(&format!("{}\n", table(list, columns))).context("write to standard output")
}

/// Prints one resource.
pub(super) fn resource(value: &Value, columns: &[Column], format: Format) -> anyhow::Result<()> {
    if format != Format::Table {
        return structured(value, format);
    }
    resources(std::slice::from_ref(value), columns, format)
}

fn table(list: &[Value], columns: &[Column]) -> Table {
    // A column in which nobody has anything to say is left out.
    let rows: Vec<Vec<String>> = list
        .iter()
        .map(|value| columns.iter().map(|column| cell(value, column.1)).collect())
        .collect();
    let shown: Vec<usize> = (0..columns.len())
        .filter(|&column| list.is_empty() || rows.iter().any(|row| !row[column].is_empty()))
        .collect();
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(shown.iter().map(|&column| columns[column].0));
    for row in &rows {
        table.add_row(shown.iter().map(|&column| row[column].as_str()));
    }
    table
}

fn cell(value: &Value, show: Show) -> String {
    match show {
        Show::Text(key) => text(&value[key]),
        Show::Last(key) => last(&text(&value[key])),
        Show::Names(key) => {
            let names = value[key].as_array().map(Vec::as_slice).unwrap_or_default();
            names.iter().map(|name| last(&text(name))).collect::<Vec<_>>().join(", ")
        }
        Show::Bytes(key) => match text(&value[key]).parse::<u64>() {
            Ok(bytes) => show_size(bytes as f64),
            Err(_) => String::new(),
        },
        Show::Word(key) => word(&text(&value[key])),
        Show::Truth(key) => {
            if value[key].as_bool() == Some(true) { "yes" } else { "no" }.to_owned()
        }
        Show::Made(make) => make(value),
    }
}

/// A scalar as text; nothing is empty.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        // What guests and files are called comes from outside.
        Value::String(text) => text.chars().map(|c| if c.is_control() { '?' } else { c }).collect(),
        other => other.to_string(),
    }
}

fn last(name: &str) -> String {
    name.rsplit('/').next().unwrap_or(name).to_owned()
}

/// `STATE_READY` as `ready`: what follows the type's name. All enums here have types of one or two words.
pub(super) fn word(value: &str) -> String {
    let prefixes = [
        "DOORBELL_MODE_",
        "VOLUME_CHANNEL_",
        "PROCESS_KIND_",
        "EVENT_KIND_",
        "LATENCY_KIND_",
        "COMMAND_STAGE_",
        "FAULT_OPERATION_",
        "FAULT_STATUS_",
        "ORIGIN_",
        "PAUSE_STATE_",
        "STATE_",
    ];
    let rest = prefixes.iter().find_map(|prefix| value.strip_prefix(prefix)).unwrap_or(value);
    rest.to_lowercase()
}

fn driver(volume: &Value) -> String {
    let detail = |driver: &str| match driver {
        "file" => format!("file {}", text(&volume["file"]["path"])),
        "nvme" => format!("nvme {}", text(&volume["nvme"]["target"])),
        other => other.to_owned(),
    };
    ["null", "malloc", "file", "nvme"]
        .into_iter()
        .find(|driver| volume.get(driver).is_some())
        .map(detail)
        .unwrap_or_default()
}

fn namespaces_of(volume: &Value) -> String {
    let names = volume["namespaces"].as_array().map(Vec::as_slice).unwrap_or_default();
    names.iter().map(|name| short_namespace(&text(name))).collect::<Vec<_>>().join(", ")
}

/// `subsystems/s0/namespaces/1` as `s0/1`.
pub(super) fn short_namespace(name: &str) -> String {
    match name.split('/').collect::<Vec<_>>().as_slice() {
        ["subsystems", subsystem, "namespaces", nsid] => format!("{subsystem}/{nsid}"),
        _ => name.to_owned(),
    }
}

fn operations(fault: &Value) -> String {
    let operations = fault["operations"].as_array().map(Vec::as_slice).unwrap_or_default();
    let words: Vec<String> = operations.iter().map(|operation| word(&text(operation))).collect();
    if words.is_empty() { "all".to_owned() } else { words.join(", ") }
}

fn condition(fault: &Value) -> String {
    match ["per_million", "every", "next"].map(|key| text(&fault[key])) {
        [rate, ..] if !rate.is_empty() => format!("{rate} in a million"),
        [_, every, _] if every == "1" => "all".to_owned(),
        [_, every, _] if !every.is_empty() => format!("one in {every}"),
        [.., next] => format!("the next {next}"),
    }
}

fn effect(fault: &Value) -> String {
    match ["status", "delay", "hang"].map(|key| text(&fault[key])) {
        [status, ..] if !status.is_empty() => word(&status),
        [_, delay, _] if !delay.is_empty() => format!("delay of {delay}"),
        [.., hang] => format!("hang of {hang}"),
    }
}

/// `iops 5000, bandwidth 10 MiB`.
fn limits(of: &Value) -> String {
    let keys =
        ["iops", "read_iops", "write_iops", "bandwidth", "read_bandwidth", "write_bandwidth"];
    let shown = keys.into_iter().filter_map(|key| {
        let limit: u64 = text(&of["limits"][key]).parse().ok()?;
        let bytes = key.ends_with("bandwidth");
        Some(format!("{key} {}", if bytes { show_size(limit as f64) } else { limit.to_string() }))
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// Nothing for what runs.
fn pause(of: &Value) -> String {
    match word(&text(&of["pause_state"])).as_str() {
        "running" => String::new(),
        other => other.to_owned(),
    }
}

fn client(controller: &Value) -> String {
    let client = &controller["client"];
    if client.is_null() {
        return String::new();
    }
    let uid = client["uid"].as_u64().unwrap_or(0);
    match client["pid"].as_i64() {
        Some(pid) => format!("pid {pid}, uid {uid}"),
        None => format!("uid {uid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tables_leave_out_what_nobody_has() {
        let volumes = [json!({
            "name": "volumes/data", "malloc": {}, "capacity_bytes": "1073741824", "block_size": 512,
            "namespaces": ["subsystems/s0/namespaces/1"], "origin": "ORIGIN_API", "state": "STATE_READY",
        })];
        let text = table(&volumes, VOLUME).to_string();
        for part in ["data", "malloc", "1 GiB", "s0/1", "api", "ready"] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(!text.contains("message"), "{text}");
    }

    #[test]
    fn nothing_of_outside_reaches_the_terminal_as_a_command() {
        assert_eq!(text(&json!("a\u{1b}[2Jb")), "a?[2Jb");
    }
}
