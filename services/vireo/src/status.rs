//! A host's status as a table or as JSON.

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::json;
use vireo_proto::handoff::{HostStatus, ProcessStatus};

/// A table for a person.
pub fn table(status: &HostStatus) -> String {
    let mut processes = Table::new();
    processes.load_preset(presets::UTF8_BORDERS_ONLY);
    processes.set_content_arrangement(ContentArrangement::Dynamic);
    processes.set_header(["process", "name", "pid", "ready", "version", "message"]);
    let mut objects = Table::new();
    objects.load_preset(presets::UTF8_BORDERS_ONLY);
    objects.set_content_arrangement(ContentArrangement::Dynamic);
    objects.set_header(["object", "name", "state", "in", "message"]);
    for process in &status.processes {
        let ready = if process.ready { "yes" } else { "no" };
        let pid = if process.pid == 0 { "-".to_owned() } else { process.pid.to_string() };
        processes.add_row([
            process.kind.as_str(),
            &process.name,
            &pid,
            ready,
            &process.version,
            &process.message,
        ]);
        let owner = format!("{} {}", process.kind, process.name);
        for item in &process.items {
            let mut state = item.state.clone();
            if item.paused {
                state.push_str(", paused");
            }
            objects.add_row([item.kind.as_str(), &item.name, &state, &owner, &item.message]);
        }
    }
    let mut text = format!("{processes}\n");
    if !objects.is_empty() {
        text.push_str(&format!("{objects}\n"));
    }
    for failure in &status.failures {
        text.push_str(&format!("missing: {failure}\n"));
    }
    text
}

/// One JSON object.
pub fn json(status: &HostStatus) -> serde_json::Value {
    json!({
        "ready": status.ready,
        "failures": status.failures,
        "processes": status.processes.iter().map(process).collect::<Vec<_>>(),
    })
}

fn process(process: &ProcessStatus) -> serde_json::Value {
    let items: Vec<_> = process
        .items
        .iter()
        .map(|item| {
            json!({
                "kind": item.kind,
                "name": item.name,
                "state": item.state,
                "message": item.message,
                "paused": item.paused,
            })
        })
        .collect();
    json!({
        "kind": process.kind,
        "name": process.name,
        "pid": process.pid,
        "ready": process.ready,
        "version": process.version,
        "message": process.message,
        "items": items,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use vireo_proto::handoff::StatusItem;

    #[test]
    fn both_forms_tell_everything() {
        let item = StatusItem {
            kind: "endpoint".into(),
            name: "vm0".into(),
            state: "connected".into(),
            message: "process 77".into(),
            paused: true,
        };
        let process = ProcessStatus {
            kind: "frontend".into(),
            name: "f0".into(),
            pid: 4711,
            version: "0.1.0".into(),
            ready: true,
            message: String::new(),
            items: vec![item],
        };
        let failures = vec!["bdev mem0: no memory".to_owned()];
        let status = HostStatus { ready: false, failures, processes: vec![process] };
        let table = table(&status);
        let words =
            ["frontend", "f0", "4711", "vm0", "connected, paused", "process 77", "no memory"];
        for word in words {
            assert!(table.contains(word), "{word} in\n{table}");
        }
        let json = json(&status);
        let item = &json["processes"][0]["items"][0];
        assert_eq!((&item["state"], &item["paused"]), (&json!("connected"), &json!(true)));
        assert_eq!(json["failures"][0], "bdev mem0: no memory");
    }
}
