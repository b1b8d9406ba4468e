//! Metrics as they are sent to a collector.

use nvme_spec::{Lba, Nsid};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use telemetry::metrics::{ALL, Definition, Kind};
use vireo_tests::host::Host;
use vireo_tests::target::{Target, one_memory_namespace};
use vireo_tests::wait::until;

use super::collector::Collector;
use super::page::{PLAIN, scrape};

#[test]
fn a_collector_gets_what_a_scraper_reads() {
    let collector = Collector::start();
    let keys = format!("otlp = \"{}\"\notlp_metrics = \"1s\"\nsample = 1\n", collector.endpoint());
    let target = Target::start(&format!("{}[telemetry]\n{keys}", one_memory_namespace(&["vm0"])));
    let mut host = Host::connect(target.socket("vm0"));
    for block in 0..7 {
        host.write(Nsid(1), Lba(block * 8), &[7; 4096], 512).expect("write");
    }
    let written = |unit: &str, data: &Data| {
        let Data::Sum(sum) = data else { panic!("a counter: {data:?}") };
        assert!(sum.is_monotonic && unit.is_empty());
        let of_writes = sum.data_points.iter().filter(|point| {
            point.attributes.iter().any(|one| {
                let value = one.value.as_ref().and_then(|value| value.value.as_ref());
                one.key == "op" && format!("{value:?}").contains("\"write\"")
            })
        });
        of_writes
            .map(|point| match point.value {
                Some(Value::AsInt(count)) => count,
                other => panic!("a whole number: {other:?}"),
            })
            .sum::<i64>()
    };
    until("the collector has seen the writes", || {
        let metrics = collector.metrics();
        metrics.get("vireo_io_operations").is_some_and(|(unit, data)| written(unit, data) == 7)
    });
    let mut odd = Vec::new();
    // What was missing when it was last sent, or scraped, is there the next time.
    until("both tell the same", || {
        let (metrics, page) = (collector.metrics(), scrape(&target, PLAIN));
        let is_told_once = |definition: &&Definition| {
            let name = match definition.kind {
                Kind::Info => format!("{}_info", definition.name),
                Kind::Counter | Kind::Gauge | Kind::Histogram => definition.name.to_owned(),
            };
            let on_page = definition.sample_names().iter().any(|name| page.has(name, &[]));
            metrics.contains_key(&name) != on_page
        };
        let found: Vec<&str> =
            ALL.iter().copied().filter(is_told_once).map(|one| one.name).collect();
        if odd != found {
            eprintln!("told by one of them: {found:?}");
            odd = found;
        }
        odd.is_empty()
    });
    until("latencies, and examples along with them", || {
        let metrics = collector.metrics();
        let (unit, duration) = &metrics["vireo_io_duration_seconds"];
        let Data::Histogram(duration) = duration else { panic!("a histogram: {duration:?}") };
        assert_eq!(unit, "s");
        let count: u64 = duration.data_points.iter().map(|point| point.count).sum();
        count >= 7 && duration.data_points.iter().any(|point| !point.exemplars.is_empty())
    });
    let metrics = collector.metrics();
    assert_eq!(metrics["vireo_process_resident_memory_bytes"].0, "By");
}
