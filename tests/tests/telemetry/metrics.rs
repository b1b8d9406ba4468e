//! `/metrics` of running processes.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nvme_spec::{Lba, Nsid};
use telemetry::metrics::ALL;
use vireo_tests::host::Host;
use vireo_tests::target::{Target, configuration, one_memory_namespace};
use vireo_tests::wait::{until, within};

use super::collector::Collector;
use super::page::{OPEN_METRICS, PLAIN, Page, scrape};

const NSID: Nsid = Nsid(1);

/// A target whose commands are all timed.
fn all_timed(more: &str) -> String {
    format!("{}[telemetry]\nsample = 1\n{more}", one_memory_namespace(&["vm0"]))
}

#[test]
fn a_scrape_tells_what_a_host_did() {
    let target = Target::start(&all_timed(""));
    let before = scrape(&target, PLAIN);
    assert_eq!(before.sum("vireo_client_connected", &[("endpoint", "vm0")]), 0.0);
    let read = [("endpoint", "vm0"), ("nsid", "1"), ("op", "read")];
    assert!(before.has("vireo_io_operations_total", &read), "also before the first command");
    let mut host = Host::connect(target.socket("vm0"));
    for block in 0..10 {
        host.write(NSID, Lba(block * 8), &[7; 4096], 512).expect("write");
    }
    for block in 0..5 {
        assert!(host.read(NSID, Lba(block * 8), 8, 512).expect("read") == [7; 4096]);
    }
    assert!(host.read(NSID, Lba(1 << 40), 8, 512).is_err(), "past the end");
    let page = scrape(&target, PLAIN);
    assert_eq!(page.sum("vireo_client_connected", &[("endpoint", "vm0")]), 1.0);
    assert_eq!(page.sum("vireo_io_operations_total", &read), 5.0);
    assert_eq!(page.sum("vireo_io_bytes_total", &read), 5.0 * 4096.0);
    let written = [("endpoint", "vm0"), ("worker", "w0"), ("op", "write")];
    assert_eq!(page.sum("vireo_io_operations_total", &written), 10.0);
    assert_eq!(page.sum("vireo_io_errors_total", &[("kind", "other")]), 1.0);
    assert_eq!(page.sum("vireo_io_errors_total", &[("kind", "media")]), 0.0);
    assert!(page.sum("vireo_io_queue_commands_total", &[("endpoint", "vm0")]) >= 16.0);
    assert_eq!(page.sum("vireo_ready", &[]), 1.0);
    for (kind, name) in [("frontend", "f0"), ("worker", "w0"), ("backend", "b0")] {
        let process = [("kind", kind), ("name", name)];
        assert_eq!(page.sum("vireo_process_up", &process), 1.0);
        let resident = page.sum("vireo_process_resident_memory_bytes", &process);
        assert!((1e6..1e9).contains(&resident), "{kind}: {resident}");
    }
}

#[test]
fn the_poll_thread_s_time_adds_up() {
    let target = Target::start(&all_timed(""));
    let _host = Host::connect(target.socket("vm0"));
    let seconds = |page: &Page| page.sum("vireo_worker_seconds_total", &[]);
    let time = std::time::Instant::now();
    let first = scrape(&target, PLAIN);
    until("half a second of it", || seconds(&scrape(&target, PLAIN)) - seconds(&first) > 0.5);
    let (spent, passed) =
        (seconds(&scrape(&target, PLAIN)) - seconds(&first), time.elapsed().as_secs_f64());
    assert!(spent < passed + 1.0, "{spent} s of {passed} s");
    let page = scrape(&target, PLAIN);
    assert!(page.sum("vireo_worker_seconds_total", &[("mode", "sleep")]) > 0.0);
    assert!(page.sum("vireo_worker_polls_total", &[("worker", "w0")]) > 0.0);
}

#[test]
fn sampled_commands_have_latencies_and_examples() {
    let collector = Collector::start();
    let target = Target::start(&all_timed(&format!("otlp = \"{}\"\n", collector.endpoint())));
    let mut host = Host::connect(target.socket("vm0"));
    for block in 0..100 {
        host.write(NSID, Lba(block * 8), &[7; 4096], 512).expect("write");
    }
    let mut page = scrape(&target, OPEN_METRICS);
    let has_example =
        |page: &Page| page.0.lines().any(|l| l.contains("_bucket") && l.contains("trace_id"));
    until("an example", || {
        page = scrape(&target, OPEN_METRICS);
        has_example(&page)
    });
    let write = [("endpoint", "vm0"), ("op", "write")];
    let count = page.sum("vireo_io_duration_seconds_count", &write);
    assert_eq!(count, 100.0, "every one is sampled");
    let mean = page.sum("vireo_io_duration_seconds_sum", &write) / count;
    assert!((1e-8..1.0).contains(&mean), "{mean}");
    let bucket =
        |le| page.sum("vireo_io_duration_seconds_bucket", &[write[0], write[1], ("le", le)]);
    assert_eq!(bucket("+Inf"), 100.0);
    let example = page.0.lines().find(|line| line.contains("_bucket") && line.contains("trace_id"));
    assert!(example.is_some_and(|line| line.contains("op=\"write\"")), "{}", page.0);
    assert!(page.0.ends_with("# EOF\n"));
    let id = example.and_then(|line| line.split("trace_id=\"").nth(1)).map(|rest| &rest[..32]);
    let id = id.expect("an id").to_owned();
    collector.await_trace("the example's trace", |trace| {
        let bytes = trace.first().map(|one| one.span.trace_id.clone()).unwrap_or_default();
        bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() == id
    });
}

#[test]
fn one_command_in_so_many_is_sampled() {
    let tables = format!("{}[telemetry]\nsample = 10\n", one_memory_namespace(&["vm0"]));
    let target = Target::start(&tables);
    let mut host = Host::connect(target.socket("vm0"));
    for block in 0..100 {
        host.write(NSID, Lba(block * 8), &[7; 4096], 512).expect("write");
    }
    let page = scrape(&target, PLAIN);
    assert_eq!(page.sum("vireo_io_operations_total", &[("op", "write")]), 100.0);
    assert_eq!(page.sum("vireo_io_duration_seconds_count", &[("op", "write")]), 10.0);
}

#[test]
fn an_address_that_is_taken_costs_the_metrics_alone() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its address").port();
    let target = Target::start(&all_timed(&format!("metrics = \"127.0.0.1:{port}\"\n")));
    let mut host = Host::connect(target.socket("vm0"));
    host.write(NSID, Lba(0), &[7; 4096], 512).expect("write");
    until("the log names the key", || target.log().contains("telemetry.metrics"));
}

#[test]
fn a_process_that_was_replaced_is_counted() {
    let target = Target::start(&all_timed(""));
    let worker = [("kind", "worker"), ("name", "w0")];
    let page = scrape(&target, PLAIN);
    assert_eq!(page.sum("vireo_process_restarts_total", &worker), 0.0);
    let start = page.sum("vireo_process_start_time_seconds", &worker);
    target.kill_and_await_successor("w0");
    until("the successor answers", || {
        scrape(&target, PLAIN).sum("vireo_process_up", &worker) == 1.0
            && scrape(&target, PLAIN).sum("vireo_process_start_time_seconds", &worker) > start
    });
    let page = scrape(&target, PLAIN);
    assert_eq!(page.sum("vireo_process_restarts_total", &worker), 1.0);
    assert_eq!(page.sum("vireo_process_restarts_total", &[("kind", "backend")]), 0.0);
}

#[test]
fn without_an_address_there_is_no_page() {
    let target = Target::start(&all_timed("metrics = \"off\"\n"));
    assert!(!target.site().run_dir().join("metrics.sock").exists());
}

#[test]
fn every_metric_is_on_a_page_and_promtool_finds_no_fault() {
    let target = Target::start(&all_timed(""));
    let mut host = Host::connect(target.socket("vm0"));
    host.write(NSID, Lba(0), &[7; 4096], 512).expect("write");
    let page = scrape(&target, PLAIN);
    for name in ALL.iter().flat_map(|definition| definition.sample_names()) {
        assert!(page.has(&name, &[]), "{name} is missing in\n{}", page.0);
    }
    promtool();
    let mut check = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool");
    std::io::Write::write_all(&mut check.stdin.take().expect("its input"), page.0.as_bytes())
        .expect("hand it the page");
    let output = check.wait_with_output().expect("its end");
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success() && text.trim().is_empty(), "{text}");
}

/// A running Prometheus, killed when dropped.
struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn prometheus_scrapes_it_and_evaluates_our_rules() {
    promtool();
    let [metrics, own] = [free_port(), free_port()];
    let tables = all_timed(&format!("metrics = \"127.0.0.1:{metrics}\"\n"));
    let target = Target::start(&tables);
    let directory = target.site().directory().join("prometheus");
    std::fs::create_dir(&directory).expect("create a directory");
    let rules = repository().join("deploy/otel/rules/vireo.yml");
    let text = std::fs::read_to_string(repository().join("deploy/otel/prometheus.yml"))
        .expect("our configuration")
        .replace("127.0.0.1:9464", &format!("127.0.0.1:{metrics}"))
        .replace("rules/vireo.yml", rules.to_str().expect("a path in UTF-8"))
        .replace("5s", "1s")
        .replace("15s", "1s");
    std::fs::write(directory.join("prometheus.yml"), text).expect("write it");
    let child = Command::new("prometheus")
        .arg(format!("--config.file={}/prometheus.yml", directory.display()))
        .arg(format!("--storage.tsdb.path={}/data", directory.display()))
        .arg(format!("--web.listen-address=127.0.0.1:{own}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start Prometheus");
    let _prometheus = Prometheus(child);
    let mut host = Host::connect(target.socket("vm0"));
    let query = |query: &str| {
        let mut command = Command::new("promtool");
        command.args(["query", "instant", &format!("http://127.0.0.1:{own}"), query]);
        let output = vireo_tests::target::run(command);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    until("every process is up, says Prometheus", || {
        query("sum(vireo_process_up)").contains("=> 3 @")
    });
    let found = within(vireo_tests::wait::PATIENCE, || {
        for block in 0..50 {
            host.write(NSID, Lba(block * 8), &[7; 4096], 512).expect("write");
        }
        let answer = query("endpoint_op:vireo_io_operations:rate1m{op=\"write\"} > 0");
        answer.contains("endpoint=\"vm0\"").then_some(answer)
    });
    assert!(found.is_some(), "no rate: {}", query("vireo_io_operations_total"));
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").port()
}

/// The folder of the whole tree.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests is a folder of it").to_owned()
}

/// Installs Debian's Prometheus if it is not there.
pub fn promtool() {
    let there = Command::new("promtool").arg("--version").output().is_ok();
    if !there {
        let install = Command::new("bash")
            .arg(repository().join(".ci/apt"))
            .arg("prometheus")
            .status()
            .expect("run .ci/apt");
        assert!(install.success(), "Debian's prometheus is needed for this test");
    }
}

#[test]
fn an_address_that_the_network_could_read_is_refused() {
    let site =
        vireo_tests::target::Site::new(&configuration("[telemetry]\nmetrics = \"0.0.0.0:9464\"\n"));
    let output = site.vireo(&["check"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("telemetry.metrics") && text.lines().count() == 1, "{text}");
}
