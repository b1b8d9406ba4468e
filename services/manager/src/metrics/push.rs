//! Metrics to a collector by OTLP, for those who do not scrape: the page of `/metrics`, at an interval. Names are the
//! families' (`vireo_io_operations`), units are UCUM's; a collector that turns them into Prometheus's has the same series.

use super::Metrics;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, InstrumentationScope, KeyValue, any_value::Value as AnyText,
};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Exemplar, Gauge, Histogram, HistogramDataPoint, Metric,
    NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, exemplar, metric::Data,
    number_data_point::Value as Number,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use service::config::{Kind, Telemetry};
use std::time::{Duration, SystemTime};
use telemetry::limit::Limit;
use telemetry::metrics::{self as page, ALL, Definition, Labels, Page, Value};
use tokio::time::MissedTickBehavior;
use tonic::transport::Endpoint;

/// Where the collector is if the configuration does not say: OpenTelemetry's variables.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
/// How long the collector may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Sends all metrics at the configured interval, for ever; does nothing if there is none.
pub async fn run(metrics: &Metrics, config: &Telemetry, name: &str) {
    let Some(interval) = config.otlp_metrics else { return std::future::pending().await };
    let from_environment = || {
        ENDPOINTS.into_iter().find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()))
    };
    let Some(endpoint) = config.otlp.clone().or_else(from_environment) else {
        tracing::warn!(
            key = "telemetry.otlp_metrics",
            "no metrics leave: telemetry.otlp is not set"
        );
        return std::future::pending().await;
    };
    let channel = match Endpoint::from_shared(endpoint.clone()) {
        Ok(address) => address.connect_timeout(TIMEOUT).timeout(TIMEOUT).connect_lazy(),
        Err(error) => {
            tracing::warn!(endpoint, %error, "no metrics leave");
            return std::future::pending().await;
        }
    };
    tracing::info!(endpoint, "metrics leave by OTLP");
    let mut client = MetricsServiceClient::new(channel);
    let resource = resource(name);
    let limit = Limit::new(1, Duration::from_secs(60));
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let request = request(&metrics.page().await, &resource, SystemTime::now());
        // Twice the client's own time-out: it is there for a peer that keeps that from firing.
        let sent = tokio::time::timeout(2 * TIMEOUT, client.export(request)).await;
        let failure = match sent {
            Ok(Ok(_)) => continue,
            Ok(Err(status)) => status.message().to_owned(),
            Err(_) => "no answer".to_owned(),
        };
        if let Some(suppressed) = limit.pass() {
            tracing::warn!(endpoint, reason = failure, suppressed, "metrics not sent");
        }
    }
}

fn resource(name: &str) -> Resource {
    let kind = Kind::Manager;
    let attributes = [
        ("service.name", std::env::var("OTEL_SERVICE_NAME").unwrap_or_else(|_| "vireo".to_owned())),
        ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("service.instance.id", format!("{kind}-{name}")),
    ];
    let attributes = attributes.map(|(key, value)| text(key, &value)).into();
    Resource { attributes, ..Resource::default() }
}

/// A page as a message.
fn request(page: &Page, resource: &Resource, now: SystemTime) -> ExportMetricsServiceRequest {
    let time = service::observe::nanoseconds_since_1970(now);
    let metrics = ALL.iter().filter_map(|definition| metric(page, definition, time)).collect();
    let scope = InstrumentationScope {
        name: "vireo".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    let scope = ScopeMetrics { scope: Some(scope), metrics, ..ScopeMetrics::default() };
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(resource.clone()),
            scope_metrics: vec![scope],
            ..ResourceMetrics::default()
        }],
    }
}

/// A metric; `None` without a sample.
fn metric(page: &Page, definition: &'static Definition, time: u64) -> Option<Metric> {
    let (mut numbers, mut distributions) = (Vec::new(), Vec::new());
    for (labels, value) in page.of(definition) {
        match value {
            Value::Count(count) => {
                let number = i64::try_from(*count).unwrap_or(i64::MAX);
                numbers.push(point(labels, Number::AsInt(number), time));
            }
            Value::Nanoseconds(ns) => {
                numbers.push(point(labels, Number::AsDouble(seconds(*ns)), time));
            }
            Value::Histogram(histogram) => {
                distributions.push(distribution(labels, histogram, time))
            }
        }
    }
    let temporality = AggregationTemporality::Cumulative.into();
    let (name, data) = match definition.kind {
        _ if numbers.is_empty() && distributions.is_empty() => return None,
        page::Kind::Counter => {
            let sum = Sum {
                data_points: numbers,
                aggregation_temporality: temporality,
                is_monotonic: true,
            };
            (definition.name.to_owned(), Data::Sum(sum))
        }
        page::Kind::Gauge => {
            (definition.name.to_owned(), Data::Gauge(Gauge { data_points: numbers }))
        }
        page::Kind::Info => {
            (format!("{}_info", definition.name), Data::Gauge(Gauge { data_points: numbers }))
        }
        page::Kind::Histogram => {
            let histogram =
                Histogram { data_points: distributions, aggregation_temporality: temporality };
            (definition.name.to_owned(), Data::Histogram(histogram))
        }
    };
    let unit = match definition.unit() {
        Some("seconds") => "s",
        Some("bytes") => "By",
        Some(_) | None => "",
    };
    let (description, unit) = (definition.help.to_owned(), unit.to_owned());
    Some(Metric { name, description, unit, data: Some(data), ..Metric::default() })
}

fn point(labels: &Labels, value: Number, time: u64) -> NumberDataPoint {
    NumberDataPoint {
        attributes: attributes(labels),
        time_unix_nano: time,
        value: Some(value),
        ..NumberDataPoint::default()
    }
}

fn distribution(labels: &Labels, histogram: &page::Histogram, time: u64) -> HistogramDataPoint {
    let mut below = 0;
    let mut bucket_counts = Vec::with_capacity(histogram.buckets.len() + 1);
    for (_, upto, _) in &histogram.buckets {
        // On the page a bucket holds those of lower bounds, too; counters were read one after the other.
        bucket_counts.push(upto.saturating_sub(below));
        below = *upto;
    }
    bucket_counts.push(histogram.count.saturating_sub(below));
    let examples = histogram.buckets.iter().map(|(.., example)| example);
    let examples = examples.chain([&histogram.beyond]).flatten();
    HistogramDataPoint {
        attributes: attributes(labels),
        time_unix_nano: time,
        count: bucket_counts.iter().sum(),
        sum: Some(seconds(histogram.sum)),
        bucket_counts,
        explicit_bounds: histogram.buckets.iter().map(|(bound, ..)| seconds(*bound)).collect(),
        exemplars: examples.filter_map(example).collect(),
        ..HistogramDataPoint::default()
    }
}

fn example(example: &page::Exemplar) -> Option<Exemplar> {
    let trace = u128::from_str_radix(&example.trace_id, 16).ok()?;
    Some(Exemplar {
        time_unix_nano: example.time,
        trace_id: trace.to_be_bytes().into(),
        value: Some(exemplar::Value::AsDouble(seconds(example.nanoseconds))),
        ..Exemplar::default()
    })
}

fn attributes(labels: &Labels) -> Vec<KeyValue> {
    labels.iter().map(|(name, value)| text(name, value)).collect()
}

fn text(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(AnyText::StringValue(value.to_owned())) };
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;
    use telemetry::metrics::definition as metric;

    #[test]
    fn a_page_is_a_message_of_the_same_names_and_values() {
        let mut page = Page::default();
        page.count(&metric::IO_BYTES, vec![("op", "read".to_owned())], 4096);
        page.time(&metric::WORKER_SECONDS, Vec::new(), 1_500_000_000);
        page.count(&metric::BUILD, vec![("version", "1".to_owned())], 1);
        let exemplar =
            page::Exemplar { trace_id: "0a".repeat(16), nanoseconds: 900, time: 12_345_678_900 };
        let histogram = page::Histogram {
            buckets: vec![(1024, 2, Some(exemplar)), (1 << 30, 3, None)],
            count: 5,
            sum: 2_000_000_000,
            beyond: None,
        };
        page.push(&metric::IO_DURATION, Vec::new(), Value::Histogram(histogram));
        let request = request(&page, &resource("m0"), SystemTime::UNIX_EPOCH);
        let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
        let of = |name: &str| metrics.iter().find(|metric| metric.name == name).unwrap();
        assert_eq!(metrics.len(), 4, "what has no sample is left out");
        let bytes = of("vireo_io_bytes");
        assert_eq!(bytes.unit, "By");
        let Some(Data::Sum(sum)) = &bytes.data else { panic!("{bytes:?}") };
        assert!(sum.is_monotonic);
        assert_eq!(sum.data_points[0].value, Some(Number::AsInt(4096)));
        assert_eq!(sum.data_points[0].attributes, [text("op", "read")]);
        let Some(Data::Sum(sum)) = &of("vireo_worker_seconds").data else { panic!("a sum") };
        assert_eq!(sum.data_points[0].value, Some(Number::AsDouble(1.5)));
        assert!(matches!(of("vireo_build_info").data, Some(Data::Gauge(_))));
        let duration = of("vireo_io_duration_seconds");
        assert_eq!(duration.unit, "s");
        let Some(Data::Histogram(histogram)) = &duration.data else { panic!("a histogram") };
        let point = &histogram.data_points[0];
        assert_eq!((point.count, point.sum), (5, Some(2.0)));
        assert_eq!(point.bucket_counts, [2, 1, 2]);
        assert_eq!(point.exemplars[0].trace_id, [0x0A; 16]);
    }
}
