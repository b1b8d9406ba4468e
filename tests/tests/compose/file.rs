//! The files, as YAML and as compose understands them.

use super::{compose, compose_file, repository};
use serde_json::Value;
use service::config::{Config, Kind, MANAGER};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use vireo_tests::target::{program, run};

/// Services that are no process of Vireo.
const OTHERS: [&str; 2] = ["namespace", "guest"];
const DASHBOARDS: [&str; 4] = ["collector", "tempo", "prometheus", "grafana"];

/// A file with its merge keys carried out.
fn parsed(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).expect("a compose file");
    let mut yaml: serde_yaml_ng::Value = serde_yaml_ng::from_str(&text).expect("YAML");
    // One may bring another one along.
    for _ in 0..4 {
        yaml.apply_merge().expect("merge keys that can be merged");
    }
    serde_json::to_value(yaml).expect("keys that are texts")
}

fn services(file: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let services = file["services"].as_object().expect("services");
    services.iter().map(|(name, service)| (name.as_str(), service))
}

fn texts(value: &Value) -> Vec<&str> {
    let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().map(|text| text.as_str().expect("a text")).collect()
}

/// Services of Vireo itself: those of its image.
fn own(file: &Value) -> Vec<(&str, &Value)> {
    let is_own = |service: &Value| {
        service["image"].as_str().is_some_and(|image| image.starts_with("${VIREO_IMAGE"))
    };
    services(file).filter(|(name, service)| is_own(service) && !OTHERS.contains(name)).collect()
}

#[test]
fn no_container_has_more_rights_than_it_needs() {
    let otel = repository().join("deploy/otel/compose.otel.yaml");
    for path in [compose_file(), otel] {
        for (name, service) in services(&parsed(&path)) {
            if !service["extends"].is_null() {
                continue;
            }
            assert!(service["privileged"].is_null(), "{name}");
            assert_eq!(service["read_only"], true, "{name}");
            assert_eq!(texts(&service["cap_drop"]), ["ALL"], "{name}");
            assert!(service["cap_add"].is_null() && service["devices"].is_null(), "{name}");
            assert_eq!(texts(&service["security_opt"]), ["no-new-privileges:true"], "{name}");
            assert!(
                !texts(&service["volumes"]).iter().any(|v| v.contains("docker.sock")),
                "{name}"
            );
        }
    }
    let file = parsed(&compose_file());
    let ours = own(&file).into_iter().chain(services(&file).filter(|(n, _)| OTHERS.contains(n)));
    for (name, service) in ours {
        assert_eq!(service["user"], "65532:65532", "{name}");
        let network = service["network_mode"].as_str().unwrap_or_default();
        assert!(matches!(network, "none" | "${VIREO_NETWORK:-none}"), "{name}: {network}");
    }
}

#[test]
fn each_process_of_the_configuration_is_a_service_with_a_command_that_is_there() {
    let config = Config::read(&repository().join("deploy/compose/vireo.toml"));
    let config = config.unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let mut wanted: BTreeSet<(String, String)> = config
        .services()
        .into_iter()
        .map(|(kind, name)| (format!("vireo-{kind}"), name.to_owned()))
        .collect();
    let file = parsed(&compose_file());
    for (name, service) in own(&file) {
        let words = texts(&service["entrypoint"]);
        let words = [words, texts(&service["command"])].concat();
        let called = Path::new(words[0]).file_name().and_then(|n| n.to_str()).expect("a program");
        let mut command = Command::new(program(called));
        command.arg("--help");
        let help = String::from_utf8_lossy(&run(command).stdout).into_owned();
        for option in words.iter().filter(|word| word.starts_with("--")) {
            assert!(help.contains(*option), "{name}: {called} has no {option}:\n{help}");
        }
        let value = |option| words.windows(2).find(|pair| pair[0] == option).map(|pair| pair[1]);
        assert_eq!(value("--config"), Some("/etc/vireo/vireo.toml"), "{name}");
        let manager = called == format!("vireo-{}", Kind::Manager);
        let instance = if manager { Some(MANAGER) } else { value("--name") };
        let instance = instance.expect("--name").to_owned();
        assert!(
            wanted.remove(&(called.to_owned(), instance)),
            "{name} is of the configuration, once"
        );

        let test = texts(&service["healthcheck"]["test"]);
        assert_eq!(test[..2], ["CMD", "/usr/bin/vireo"], "{name}");
        let mut verb = Command::new(program("vireo"));
        verb.args(&test[2..]).arg("--help");
        assert!(run(verb).status.success(), "{name}: {test:?}");
    }
    assert!(wanted.is_empty(), "{wanted:?} have no service");
}

#[test]
fn what_is_mounted_is_there() {
    let otel = repository().join("deploy/otel/compose.otel.yaml");
    let mut seen = 0;
    for path in [compose_file(), otel] {
        let file = parsed(&path);
        let volumes = file["volumes"].as_object().expect("volumes");
        let beside = path.parent().expect("it lies in a directory");
        for (name, service) in services(&file) {
            for mount in texts(&service["volumes"]) {
                let (source, place) = mount.split_once(':').expect("a source and a place");
                assert!(place.starts_with('/'), "{name}: {mount}");
                if source.starts_with('.') {
                    assert!(beside.join(source).exists(), "{name}: {mount}");
                    assert!(place.ends_with(":ro"), "{name}: {mount} is of the tree");
                } else {
                    assert!(volumes.contains_key(source), "{name}: {mount}");
                }
                seen += 1;
            }
            for (key, place) in [("context", "."), ("dockerfile", "../..")] {
                let Some(value) = service["build"][key].as_str() else { continue };
                assert!(beside.join(place).join(value).exists(), "{name}: {key} {value}");
            }
            let needed = match &service["depends_on"] {
                Value::Array(_) => texts(&service["depends_on"]),
                Value::Object(names) => names.keys().map(String::as_str).collect(),
                _ => Vec::new(),
            };
            for needed in needed {
                assert!(file["services"][needed].is_object(), "{name} depends on {needed}");
            }
        }
    }
    assert!(seen > 20, "{seen}");
}

#[test]
fn dashboards_are_those_of_deploy_otel() {
    let file = parsed(&compose_file());
    let otel = parsed(&repository().join("deploy/otel/compose.otel.yaml"));
    let names: BTreeSet<&str> = services(&otel).map(|(name, _)| name).collect();
    assert_eq!(names, BTreeSet::from(DASHBOARDS));
    for name in names {
        let extends = &file["services"][name]["extends"];
        assert_eq!(extends["file"], "../otel/compose.otel.yaml", "{name}");
        assert_eq!(extends["service"], name);
        assert_eq!(texts(&otel["services"][name]["profiles"]), ["otel"], "{name}");
    }
    // What Vireo is told is where they listen.
    let set =
        std::fs::read_to_string(repository().join("deploy/compose/otel.env")).expect("a file");
    let value = |key: &str| {
        let mut lines = set.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        lines.next().unwrap_or_else(|| panic!("{key} in otel.env")).to_owned()
    };
    let otel = |name: &str| {
        std::fs::read_to_string(repository().join("deploy/otel").join(name)).expect("a file")
    };
    let metrics = value("VIREO__TELEMETRY__METRICS");
    assert!(otel("prometheus.yml").contains(&metrics), "{metrics}");
    let otlp = value("VIREO__TELEMETRY__OTLP");
    let port = otlp.rsplit(':').next().expect("a port");
    assert!(otel("collector.yml").contains(&format!(":{port}")), "{otlp}");
    let known = parsed(&compose_file())["services"]["manager"]["environment"].clone();
    for line in set.lines().filter(|line| line.starts_with("VIREO__")) {
        let key = line.split('=').next().expect("a key");
        assert!(known.as_object().is_some_and(|known| known.contains_key(key)), "{key}");
    }
}

#[test]
fn compose_itself_takes_the_files() {
    let Some(mut command) = compose() else {
        eprintln!("skipped: neither `docker compose` nor docker-compose is here");
        return;
    };
    let environment = repository().join("deploy/compose/otel.env");
    command.arg("--env-file").arg(&environment);
    command.arg("-f").arg(compose_file());
    command.args(["--profile", "otel", "--profile", "guest", "config"]);
    let output = run(command);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{error}");
    let yaml: serde_yaml_ng::Value = serde_yaml_ng::from_slice(&output.stdout).expect("YAML");
    let file = serde_json::to_value(yaml).expect("keys that are texts");
    let known: BTreeSet<&str> = services(&file).map(|(name, _)| name).collect();
    for name in DASHBOARDS.into_iter().chain(OTHERS).chain(["manager", "frontend", "worker-0"]) {
        assert!(known.contains(name), "{name} of {known:?}");
    }
    let manager = &file["services"]["manager"];
    assert_eq!(manager["network_mode"], "host", "{manager}");
    assert_eq!(manager["environment"]["VIREO__TELEMETRY__METRICS"], "127.0.0.1:9464", "{manager}");
    // Paths of deploy/otel are relative to it, though another file names its services.
    let sources: Vec<PathBuf> = sources(&file["services"]["collector"]["volumes"]);
    assert!(sources.iter().any(|path| path.ends_with("deploy/otel/collector.yml")), "{sources:?}");
    assert!(sources.iter().all(|path| path.exists()), "{sources:?}");
}

/// Where mounts come from: `/host:/place:ro`, or the long form.
fn sources(volumes: &Value) -> Vec<PathBuf> {
    let list = volumes.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter()
        .filter_map(|mount| match mount.as_str() {
            Some(text) => text.split(':').next(),
            None => mount["source"].as_str(),
        })
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .collect()
}
