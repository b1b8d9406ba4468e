//! What is in `deploy/otel`: that it names nothing that is not there, and passes its own tests.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use service::config::Config;
use telemetry::metrics::ALL;
use vireo_tests::target::run;

use super::metrics::{promtool, repository};

/// Names of series that rules make.
fn recorded(rules: &str) -> BTreeSet<String> {
    let lines = rules.lines().filter_map(|line| line.trim().strip_prefix("- record: "));
    lines.map(str::to_owned).collect()
}

/// Words in PromQL that look like series of ours.
fn series(expression: &str) -> BTreeSet<String> {
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':');
    let words = expression.split(word).filter(|word| word.contains("vireo_"));
    words.map(str::to_owned).collect()
}

fn known() -> BTreeSet<String> {
    ALL.iter().flat_map(|definition| definition.sample_names()).collect()
}

fn rules() -> String {
    fs::read_to_string(repository().join("deploy/otel/rules/vireo.yml")).expect("our rules")
}

#[test]
fn rules_name_only_metrics_that_are_there() {
    let text = rules();
    let known: BTreeSet<String> = known().union(&recorded(&text)).cloned().collect();
    let mut seen = 0;
    // Expressions stand on one line, or folded in the next ones; nothing else has such words.
    for name in text.lines().filter(|line| !line.trim().starts_with('#')).flat_map(series) {
        assert!(known.contains(&name), "{name}");
        seen += 1;
    }
    assert!(seen > 10, "{seen}");
}

#[test]
fn dashboards_name_only_metrics_that_are_there_and_together_show_all() {
    let mut known = known();
    let recorded = recorded(&rules());
    let mut shown: BTreeSet<String> = rules().lines().flat_map(series).collect();
    known.extend(recorded);
    let folder = repository().join("deploy/otel/grafana/dashboards");
    let mut uids = BTreeSet::new();
    for entry in fs::read_dir(folder).expect("our dashboards") {
        let path = entry.expect("an entry").path();
        let text = fs::read_to_string(&path).expect("a dashboard");
        let dashboard: Value = serde_json::from_str(&text).expect("JSON");
        let uid = dashboard["uid"].as_str().expect("a uid").to_owned();
        assert_eq!(path.file_stem().and_then(|stem| stem.to_str()), Some(&*uid));
        assert!(uids.insert(uid.clone()), "{uid} is there twice");
        let panels = dashboard["panels"].as_array().expect("panels");
        let mut ids = BTreeSet::new();
        for panel in panels {
            assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{uid}: ids differ");
            let at = &panel["gridPos"];
            let (x, w) = (at["x"].as_u64().expect("x"), at["w"].as_u64().expect("w"));
            assert!(x + w <= 24, "{uid}: {} fits into the grid", panel["title"]);
            for target in panel["targets"].as_array().expect("targets") {
                let source = target["datasource"]["uid"].as_str().expect("a data source");
                assert!(matches!(source, "vireo-prometheus" | "vireo-tempo"), "{source}");
                let query = target["expr"].as_str().or(target["query"].as_str()).expect("a query");
                if source == "vireo-prometheus" {
                    let names = series(query);
                    assert!(!names.is_empty(), "{uid}: {query}");
                    names.iter().for_each(|name| assert!(known.contains(name), "{uid}: {name}"));
                    shown.extend(names);
                }
            }
        }
        for variable in dashboard["templating"]["list"].as_array().expect("variables") {
            let query = variable["query"]["query"].as_str().unwrap_or_default();
            series(query).iter().for_each(|name| assert!(known.contains(name), "{uid}: {name}"));
        }
    }
    let expected = ["vireo-controller", "vireo-overview", "vireo-slow-io", "vireo-worker"];
    assert_eq!(uids.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    for definition in
        ALL.iter().filter(|definition| definition.name != "vireo_process_start_time_seconds")
    {
        let names = definition.sample_names();
        assert!(
            names.iter().any(|name| shown.contains(name)),
            "{} is shown nowhere",
            definition.name
        );
    }
}

/// A file of `deploy`.
fn yaml(path: &str) -> Value {
    let text = fs::read_to_string(repository().join("deploy").join(path)).expect("a file");
    serde_yaml_ng::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn names(list: &Value) -> Vec<&str> {
    let list = list.as_array().expect("a list").iter();
    list.map(|name| name.as_str().expect("a name")).collect()
}

#[test]
fn the_collector_hands_traces_and_metrics_to_who_listens() {
    let collector = yaml("otel/collector.yml");
    let pipelines = collector["service"]["pipelines"].as_object().expect("pipelines");
    let mut exporters = Vec::new();
    for (name, pipeline) in pipelines {
        for kind in ["receivers", "processors", "exporters"] {
            let parts = names(&pipeline[kind]);
            assert!(!parts.is_empty(), "{name}: {kind}");
            for part in parts {
                assert!(!collector[kind][part].is_null(), "{name}: {kind} {part}");
            }
        }
        assert_eq!(names(&pipeline["receivers"]), ["otlp"], "{name}");
        exporters.push((name.as_str(), names(&pipeline["exporters"])));
    }
    let expected = [("metrics", vec!["otlphttp/prometheus"]), ("traces", vec!["otlp/tempo"])];
    exporters.sort();
    assert_eq!(exporters, expected);
    let endpoint = |name: &str| collector["exporters"][name]["endpoint"].as_str().expect("one");
    let tempo = yaml("otel/tempo.yml");
    let receiver = &tempo["distributor"]["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"];
    assert_eq!(endpoint("otlp/tempo"), receiver.as_str().expect("an address"));

    let compose = yaml("otel/compose.otel.yaml");
    let command = names(&compose["services"]["prometheus"]["command"]);
    let address = command.iter().find_map(|word| word.strip_prefix("--web.listen-address="));
    let address = address.expect("an address");
    assert_eq!(endpoint("otlphttp/prometheus"), format!("http://{address}/api/v1/otlp"));
    assert!(command.contains(&"--web.enable-otlp-receiver"), "{command:?}");
    // What has Vireo send them gets through to it.
    let compose = fs::read_to_string(repository().join("deploy/compose/compose.yaml"));
    let variable = "VIREO__TELEMETRY__OTLP_METRICS";
    assert!(compose.expect("a file").contains(&format!("    {variable}:\n")));
    let read = |name: &str| {
        let path = repository().join("deploy/compose").join(name);
        fs::read_to_string(path).expect("a file")
    };
    let set = read("otel.env");
    // What is commented out is what may be chosen.
    let set = set.lines().map(|line| line.trim_start_matches("# "));
    let set: Vec<(String, String)> = set
        .filter(|line| line.starts_with("VIREO__"))
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    assert!(set.iter().any(|(key, _)| key == variable), "{set:?}");
    let config = Config::parse(&read("vireo.toml"), set);
    let telemetry = config.unwrap_or_else(|mistakes| panic!("{mistakes:?}")).telemetry;
    assert_eq!(telemetry.otlp_metrics, Some(Duration::from_secs(10)));
    assert_eq!(telemetry.otlp.as_deref(), Some("http://127.0.0.1:4317"));
}

#[test]
fn rules_and_configuration_pass_promtool() {
    promtool();
    for arguments in [
        &["check", "rules", "rules/vireo.yml"][..],
        &["test", "rules", "rules/vireo.test.yml"][..],
        &["check", "config", "prometheus.yml"][..],
    ] {
        let mut command = Command::new("promtool");
        command.args(arguments).current_dir(repository().join("deploy/otel"));
        let output = run(command);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text}");
    }
}
