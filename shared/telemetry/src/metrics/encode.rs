//! A page as text.

use super::definition::{ALL, Definition, Kind};
use super::{Exemplar, Histogram, Labels, Page, Value};
use std::fmt::Write;

/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;

/// Which text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0: with units and exemplars.
    OpenMetrics,
    /// Prometheus's text format 0.0.4.
    Prometheus,
}

impl Format {
    /// What an HTTP client that sent this `Accept` header gets.
    pub fn accepted(accept: &str) -> Self {
        let wanted = accept.split(',').any(|range| {
            range.trim().to_ascii_lowercase().starts_with("application/openmetrics-text")
        });
        if wanted { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// Its media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Writes a page down. Metrics without a sample are left out.
pub fn encode(page: &Page, format: Format) -> String {
    let mut text = String::new();
    for definition in ALL {
        let mut samples = page.of(definition).peekable();
        if samples.peek().is_some() {
            head(&mut text, definition, format);
        }
        for (labels, value) in samples {
            match value {
                Value::Count(value) => {
                    sample(&mut text, definition, labels, &value.to_string());
                }
                Value::Nanoseconds(value) => {
                    sample(&mut text, definition, labels, &seconds(*value));
                }
                Value::Histogram(histogram) => {
                    distribution(&mut text, definition, labels, histogram, format);
                }
            }
        }
    }
    if format == Format::OpenMetrics {
        text.push_str("# EOF\n");
    }
    text
}

fn head(text: &mut String, definition: &Definition, format: Format) {
    let Definition { name, kind, help } = definition;
    let (kind, suffix) = match (kind, format) {
        (Kind::Counter, Format::OpenMetrics) => ("counter", ""),
        (Kind::Counter, Format::Prometheus) => ("counter", "_total"),
        (Kind::Gauge, _) => ("gauge", ""),
        (Kind::Histogram, _) => ("histogram", ""),
        (Kind::Info, Format::OpenMetrics) => ("info", ""),
        (Kind::Info, Format::Prometheus) => ("gauge", "_info"),
    };
    // Writing to a String does not fail.
    let _ = writeln!(text, "# TYPE {name}{suffix} {kind}");
    if let Some(unit) = definition.unit().filter(|_| format == Format::OpenMetrics) {
        let _ = writeln!(text, "# UNIT {name} {unit}");
    }
    let _ = writeln!(text, "# HELP {name}{suffix} {help}");
}

fn sample(text: &mut String, definition: &Definition, labels: &Labels, value: &str) {
    let suffix = match definition.kind {
        Kind::Counter => "_total",
        Kind::Info => "_info",
        Kind::Gauge | Kind::Histogram => "",
    };
    let name = definition.name;
    let _ = writeln!(text, "{name}{suffix}{} {value}", braces(labels, None));
}

fn distribution(
    text: &mut String,
    definition: &Definition,
    labels: &Labels,
    histogram: &Histogram,
    format: Format,
) {
    let name = definition.name;
    let example = |exemplar: &Option<Exemplar>| match (exemplar, format) {
        (Some(Exemplar { trace_id, nanoseconds, time }), Format::OpenMetrics) => format!(
            " # {{trace_id=\"{}\"}} {} {}.{:03}",
            escape(trace_id),
            seconds(*nanoseconds),
            time / SECOND,
            time % SECOND / 1_000_000
        ),
        _ => String::new(),
    };
    for (bound, count, exemplar) in &histogram.buckets {
        let labels = braces(labels, Some(&seconds(*bound)));
        let _ = writeln!(text, "{name}_bucket{labels} {count}{}", example(exemplar));
    }
    let Histogram { count, sum, beyond, .. } = histogram;
    let _ =
        writeln!(text, "{name}_bucket{} {count}{}", braces(labels, Some("+Inf")), example(beyond));
    let _ = writeln!(text, "{name}_count{} {count}", braces(labels, None));
    let _ = writeln!(text, "{name}_sum{} {}", braces(labels, None), seconds(*sum));
}

fn braces(labels: &Labels, bound: Option<&str>) -> String {
    let labels = labels.iter().map(|(name, value)| (*name, value.as_str()));
    let all: Vec<String> = labels
        .chain(bound.map(|bound| ("le", bound)))
        .map(|(name, value)| format!("{name}=\"{}\"", escape(value)))
        .collect();
    if all.is_empty() { String::new() } else { format!("{{{}}}", all.join(",")) }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Seconds without the error of a floating point number; `1.0`, as OpenMetrics wants a bound, not `1`.
fn seconds(nanoseconds: u64) -> String {
    let text = format!("{}.{:09}", nanoseconds / SECOND, nanoseconds % SECOND);
    let short = text.trim_end_matches('0');
    if short.ends_with('.') { format!("{short}0") } else { short.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::definition::{
        BUILD, CLIENT_CONNECTED, IO_DURATION, IO_OPERATIONS, WORKER_SECONDS,
    };
    use super::*;

    fn page() -> Page {
        let mut page = Page::default();
        page.count(&CLIENT_CONNECTED, vec![("endpoint", "a\"b\\c\nd".to_owned())], 1);
        page.count(&BUILD, vec![("version", "1".to_owned())], 1);
        page.count(&IO_OPERATIONS, vec![("op", "read".to_owned())], u64::MAX);
        page.time(&WORKER_SECONDS, Vec::new(), 1_500_000_000);
        let exemplar =
            Exemplar { trace_id: "ab".repeat(16), nanoseconds: 900, time: 12_345_678_900 };
        let histogram = Histogram {
            buckets: vec![(1024, 2, Some(exemplar)), (1 << 30, 3, None)],
            count: 4,
            sum: 20 * SECOND,
            beyond: None,
        };
        page.push(&IO_DURATION, Vec::new(), Value::Histogram(histogram));
        page
    }

    #[test]
    fn openmetrics_has_units_exemplars_and_an_end() {
        let text = encode(&page(), Format::OpenMetrics);
        let expected = "# TYPE vireo_build info\n\
            # HELP vireo_build Version of the manager that made this page.\n\
            vireo_build_info{version=\"1\"} 1\n\
            # TYPE vireo_client_connected gauge\n\
            # HELP vireo_client_connected 1 if a client is connected to the endpoint.\n\
            vireo_client_connected{endpoint=\"a\\\"b\\\\c\\nd\"} 1\n\
            # TYPE vireo_io_operations counter\n";
        assert!(text.starts_with(expected), "{text}");
        for line in [
            "vireo_io_operations_total{op=\"read\"} 18446744073709551615",
            "# UNIT vireo_io_duration_seconds seconds",
            "vireo_io_duration_seconds_bucket{le=\"0.000001024\"} 2 \
             # {trace_id=\"abababababababababababababababab\"} 0.0000009 12.345",
            "vireo_io_duration_seconds_bucket{le=\"1.073741824\"} 3",
            "vireo_io_duration_seconds_bucket{le=\"+Inf\"} 4",
            "vireo_io_duration_seconds_count 4",
            "vireo_io_duration_seconds_sum 20.0",
            "vireo_worker_seconds_total 1.5",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} in\n{text}");
        }
        assert!(text.ends_with("\n# EOF\n"));
    }

    #[test]
    fn the_older_format_names_types_as_their_samples() {
        let text = encode(&page(), Format::Prometheus);
        assert!(text.contains("# TYPE vireo_io_operations_total counter\n"));
        assert!(text.contains("# TYPE vireo_build_info gauge\n"));
        assert!(!text.contains("# UNIT") && !text.contains("EOF") && !text.contains("trace_id"));
    }

    #[test]
    fn a_client_gets_what_it_can_read() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2,*/*";
        assert_eq!(Format::accepted(prometheus), Format::OpenMetrics);
        assert_eq!(Format::accepted("*/*"), Format::Prometheus);
        assert_eq!(Format::accepted(""), Format::Prometheus);
    }
}
