//! `[telemetry]`: where metrics and traces go, and which commands are traced.

use super::print;
use super::section::Section;
use super::units::{format_duration, parse_duration};
use ::telemetry::metrics::http::Address;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::{Table, Value};

/// The metrics' socket in the runtime directory if none is configured.
const SOCKET: &str = "metrics.sock";
/// One command in this many is timed if nothing else is configured: its cost is not measurable.
const SAMPLE: u32 = 1000;
/// From here on a command is slow if nothing else is configured.
const SLOW: Duration = Duration::from_millis(10);
/// Longest bound for slow commands: above every time-out of a guest's driver.
const MAX_SLOW: Duration = Duration::from_secs(3600);
/// Says that there is none.
const OFF: &str = "off";

/// Where metrics and traces go, and which commands are traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Telemetry {
    /// Where the manager serves `/metrics`; nowhere if absent.
    pub metrics: Option<Address>,
    /// The collector that takes OTLP over gRPC, `http://HOST:PORT`; if absent, OTEL_EXPORTER_OTLP_ENDPOINT says, and
    /// without that no trace leaves.
    pub otlp: Option<String>,
    /// How often the manager sends all metrics to that collector; never if absent.
    pub otlp_metrics: Option<Duration>,
    /// One command in this many is timed in all its stages; 0 for none.
    pub sample: u32,
    /// Commands that took longer are traced, sampled or not.
    pub slow: Option<Duration>,
}

pub(super) fn parse(section: Option<Section<'_>>, runtime_dir: &Path) -> Telemetry {
    let mut telemetry = Telemetry {
        metrics: Some(Address::Unix(runtime_dir.join(SOCKET))),
        otlp: None,
        otlp_metrics: None,
        sample: SAMPLE,
        slow: Some(SLOW),
    };
    let Some(section) = section else { return telemetry };
    if let Some(text) = section.text("metrics") {
        telemetry.metrics = metrics(&section, &text);
    }
    if let Some(text) = section.text("otlp").filter(|text| text != OFF) {
        if text.strip_prefix("http://").is_none_or(|rest| rest.is_empty() || rest.contains('@')) {
            let right = "write http://HOST:PORT of a collector that takes OTLP over gRPC";
            section.wrong("otlp", format!("\"{text}\" is not a collector's address"), right);
        }
        telemetry.otlp = Some(text);
    }
    if let Some(sample) = section.integer("sample", 0..=u64::from(u32::MAX)) {
        telemetry.sample = sample as u32;
    }
    if let Some(text) = section.text("otlp_metrics") {
        let range = Duration::from_secs(1)..=MAX_SLOW;
        telemetry.otlp_metrics = duration(&section, "otlp_metrics", &text, range);
    }
    if let Some(text) = section.text("slow") {
        let range = Duration::from_micros(1)..=MAX_SLOW;
        telemetry.slow = duration(&section, "slow", &text, range);
    }
    section.finish(&[]);
    telemetry
}

fn metrics(section: &Section<'_>, text: &str) -> Option<Address> {
    if text == OFF {
        return None;
    }
    if let Some(path) = text.strip_prefix("unix:").filter(|path| path.starts_with('/')) {
        return Some(Address::Unix(PathBuf::from(path)));
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => return Some(Address::Tcp(address)),
        Ok(address) => {
            let right = "write 127.0.0.1:9464 and put what controls access before it";
            let wrong = format!("{address} would let the network read without asking who it is");
            section.wrong("metrics", wrong, right);
        }
        Err(_) => {
            let right = "write \"127.0.0.1:9464\", \"unix:/path\" or \"off\"";
            section.wrong("metrics", format!("\"{text}\" is not an address"), right);
        }
    }
    None
}

/// A duration, or none.
fn duration(
    section: &Section<'_>,
    key: &str,
    text: &str,
    range: RangeInclusive<Duration>,
) -> Option<Duration> {
    if text == OFF {
        return None;
    }
    let duration = parse_duration(text).filter(|duration| range.contains(duration));
    if duration.is_none() {
        let (low, high) = (format_duration(*range.start()), format_duration(*range.end()));
        let right = format!("write a duration from \"{low}\" to \"{high}\", or \"off\"");
        section.wrong(key, format!("\"{text}\" is not such a duration"), right);
    }
    duration
}

pub(super) fn print(telemetry: &Telemetry) -> Value {
    let metrics = telemetry.metrics.as_ref().map_or_else(|| OFF.to_owned(), Address::to_string);
    let duration = |time: Option<Duration>| time.map_or_else(|| OFF.to_owned(), format_duration);
    let mut table = Table::new();
    table.insert("metrics".into(), print::text(&metrics));
    table.insert("otlp".into(), print::text(telemetry.otlp.as_deref().unwrap_or(OFF)));
    table.insert("otlp_metrics".into(), print::text(&duration(telemetry.otlp_metrics)));
    table.insert("sample".into(), Value::Integer(telemetry.sample.into()));
    table.insert("slow".into(), print::text(&duration(telemetry.slow)));
    Value::Table(table)
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    const REST: &str = "runtime_dir = \"/run/v\"\n[[worker]]\nname = \"w0\"\n[[backend]]\n\
                        name = \"b0\"\n[[frontend]]\nname = \"f0\"\n";

    fn read(table: &str) -> Result<Telemetry, String> {
        let text = format!("{REST}[telemetry]\n{table}");
        Config::parse(&text, []).map(|config| config.telemetry).map_err(|mistakes| {
            mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        })
    }

    #[test]
    fn without_a_table_metrics_are_on_a_socket_and_no_trace_leaves() {
        let config = Config::parse(REST, []).unwrap();
        let expected = Telemetry {
            metrics: Some(Address::Unix("/run/v/metrics.sock".into())),
            otlp: None,
            otlp_metrics: None,
            sample: 1000,
            slow: Some(Duration::from_millis(10)),
        };
        assert_eq!(config.telemetry, expected);
        let again = Config::parse(&config.to_toml(), []).unwrap();
        assert_eq!(again.telemetry, expected);
    }

    #[test]
    fn what_is_written_is_read_again() {
        let written = read(
            "metrics = \"[::1]:9464\"\notlp = \"http://collector:4317\"\nsample = 0\nslow = \"off\"",
        )
        .unwrap();
        assert_eq!(written.metrics, Some(Address::Tcp("[::1]:9464".parse().unwrap())));
        assert_eq!((written.sample, written.slow), (0, None));
        let pushed = read("otlp_metrics = \"5s\"").unwrap();
        assert_eq!(pushed.otlp_metrics, Some(Duration::from_secs(5)));
        let off = read("metrics = \"off\"\notlp = \"off\"").unwrap();
        assert_eq!((off.metrics, off.otlp), (None, None));
        let unix = read("metrics = \"unix:/x/m\"").unwrap();
        assert_eq!(unix.metrics, Some(Address::Unix("/x/m".into())));
    }

    #[test]
    fn mistakes_name_their_key_and_the_remedy() {
        for (table, words) in [
            ("metrics = \"0.0.0.0:9464\"", ["telemetry.metrics", "network"]),
            ("metrics = \"9464\"", ["telemetry.metrics", "127.0.0.1:9464"]),
            ("metrics = \"unix:x\"", ["telemetry.metrics", "unix:/path"]),
            ("otlp = \"collector:4317\"", ["telemetry.otlp", "http://HOST:PORT"]),
            ("otlp_metrics = \"10ms\"", ["telemetry.otlp_metrics", "\"1s\""]),
            ("sample = -1", ["telemetry.sample", "0 to 4294967295"]),
            ("slow = \"5\"", ["telemetry.slow", "off"]),
            ("slow = \"0s\"", ["telemetry.slow", "1us"]),
            ("simple = 1", ["telemetry.simple", "sample"]),
        ] {
            let mistake = read(table).expect_err(table);
            assert!(words.iter().all(|word| mistake.contains(word)), "{table}: {mistake}");
        }
    }
}
