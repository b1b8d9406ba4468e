//! Finished spans on their way to a collector: a bounded queue, and a thread that empties it by OTLP.
//!
//! Nobody waits for a collector. What finds the queue full is dropped and counted, what a collector does not take within
//! the time-out is dropped and counted, and a log line says so once in a while.

use crate::limit::Limit;
use opentelemetry::KeyValue;
use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Says where the collector is, and turns the export on: OpenTelemetry's variables.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
/// Spans that wait for the collector.
const QUEUE: usize = 4096;
/// Spans of one message.
const BATCH: usize = 512;
/// How long the first span of a message waits for others.
const LINGER: Duration = Duration::from_millis(200);
/// How long the collector may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long a process that ends waits for its last spans to leave.
const LAST: Duration = Duration::from_secs(1);

static SENDER: OnceLock<SyncSender<Item>> = OnceLock::new();
static EXPORTED: AtomicU64 = AtomicU64::new(0);
static DROPPED_QUEUE: AtomicU64 = AtomicU64::new(0);
static DROPPED_EXPORT: AtomicU64 = AtomicU64::new(0);

/// What became of this process's spans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// The collector took them.
    pub exported: u64,
    /// The queue was full.
    pub dropped_queue: u64,
    /// The collector was away, too slow, or refused them.
    pub dropped_export: u64,
}

enum Item {
    Span(Box<SpanData>),
    /// Told when all before it left.
    Flush(SyncSender<()>),
}

/// What became of this process's spans so far.
pub fn statistics() -> Statistics {
    Statistics {
        exported: EXPORTED.load(Ordering::Relaxed),
        dropped_queue: DROPPED_QUEUE.load(Ordering::Relaxed),
        dropped_export: DROPPED_EXPORT.load(Ordering::Relaxed),
    }
}

/// Whether spans leave this process.
pub fn is_on() -> bool {
    SENDER.get().is_some()
}

/// Starts to send spans to the collector at `endpoint` (`http://HOST:PORT`, OTLP over gRPC), or where OpenTelemetry's
/// variables say if that is `None`; without either nothing is started. `kind` and `name` tell this process from others
/// of the service `vireo`. What cannot be started is told in the log, and the process goes on.
pub fn start(endpoint: Option<&str>, kind: &str, name: &str) {
    let disabled = std::env::var("OTEL_SDK_DISABLED")
        .is_ok_and(|value| value.eq_ignore_ascii_case("true"))
        || std::env::var("OTEL_TRACES_EXPORTER").is_ok_and(|value| value == "none");
    let from_environment = || {
        ENDPOINTS.into_iter().find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()))
    };
    let endpoint = endpoint.map(str::to_owned).or_else(from_environment);
    let Some(endpoint) = endpoint.filter(|_| !disabled) else { return };
    let resource = resource(kind, name);
    let (sender, items) = sync_channel(QUEUE);
    let started = std::thread::Builder::new().name("otlp".to_owned()).spawn(move || {
        run(&endpoint, &resource, &items);
    });
    match started {
        // A second start changes nothing; its thread ends, as nobody can send to it.
        Ok(_) => drop(SENDER.set(sender)),
        Err(error) => tracing::warn!(%error, "no traces: the exporter's thread cannot be started"),
    }
}

fn resource(kind: &str, name: &str) -> Resource {
    // OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES are over what is said here, but for the process itself.
    let mut builder = Resource::builder();
    if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
        builder = builder.with_service_name("vireo");
    }
    builder
        .with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", format!("{kind}-{name}")),
            KeyValue::new("process.pid", i64::from(std::process::id())),
            KeyValue::new("vireo.process.kind", kind.to_owned()),
            KeyValue::new("vireo.process.name", name.to_owned()),
        ])
        .build()
}

/// Hands a finished span over, or drops and counts it. Never waits.
pub(crate) fn send(span: SpanData) {
    let Some(sender) = SENDER.get() else { return };
    if sender.try_send(Item::Span(Box::new(span))).is_err() {
        DROPPED_QUEUE.fetch_add(1, Ordering::Relaxed);
    }
}

/// Waits a moment for the spans so far to leave; for a process that ends.
pub fn flush() {
    let Some(sender) = SENDER.get() else { return };
    let (tell, told) = sync_channel(1);
    if sender.try_send(Item::Flush(tell)).is_ok() {
        told.recv_timeout(LAST).ok();
    }
}

fn run(endpoint: &str, resource: &Resource, items: &Receiver<Item>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return tracing::warn!(%error, "no traces: no runtime for the exporter"),
    };
    let exporter = {
        let _entered = runtime.enter();
        OtlpExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(TIMEOUT).build()
    };
    let mut exporter = match exporter {
        Ok(exporter) => exporter,
        Err(error) => {
            return tracing::warn!(endpoint, %error, "no traces: the exporter cannot be made");
        }
    };
    exporter.set_resource(resource);
    tracing::info!(endpoint, "traces leave by OTLP");
    let limit = Limit::new(1, Duration::from_secs(60));
    while let Some((batch, flushed)) = next_batch(items) {
        let count = batch.len() as u64;
        if count > 0 {
            let sent = runtime.block_on(async {
                // Twice the exporter's own time-out: it is there for a peer that keeps that from firing.
                tokio::time::timeout(2 * TIMEOUT, exporter.export(batch)).await
            });
            let failure = match sent {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some("no answer".to_owned()),
            };
            let counter = if failure.is_none() { &EXPORTED } else { &DROPPED_EXPORT };
            counter.fetch_add(count, Ordering::Relaxed);
            if let Some(reason) = failure
                && let Some(suppressed) = limit.pass()
            {
                tracing::warn!(endpoint, reason, spans = count, suppressed, "traces dropped");
            }
        }
        if let Some(flushed) = flushed {
            flushed.try_send(()).ok();
        }
    }
}

/// The next spans, at least one unless somebody waits for them to leave; `None` when nobody can send any more.
fn next_batch(items: &Receiver<Item>) -> Option<(Vec<SpanData>, Option<SyncSender<()>>)> {
    let mut batch = Vec::new();
    let mut item = items.recv().ok();
    let deadline = Instant::now() + LINGER;
    loop {
        match item? {
            Item::Span(span) => batch.push(*span),
            Item::Flush(flushed) => return Some((batch, Some(flushed))),
        }
        if batch.len() >= BATCH {
            return Some((batch, None));
        }
        item = match items.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(item) => Some(item),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                return Some((batch, None));
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Context, span_data};
    use super::*;
    use opentelemetry::trace::SpanKind;
    use std::time::SystemTime;

    fn span() -> SpanData {
        let now = SystemTime::now();
        span_data(Context::new_trace(), 0, "span", SpanKind::Internal, now, now)
    }

    #[test]
    fn batches_are_bounded_and_end_with_a_flush() {
        let (sender, items) = sync_channel(2 * BATCH);
        let push = |item| sender.try_send(item).unwrap();
        (0..BATCH + 1).for_each(|_| push(Item::Span(Box::new(span()))));
        let (tell, _told) = sync_channel(1);
        push(Item::Flush(tell));
        let (batch, flushed) = next_batch(&items).unwrap();
        assert!(batch.len() == BATCH && flushed.is_none());
        let (batch, flushed) = next_batch(&items).unwrap();
        assert!(batch.len() == 1 && flushed.is_some());
        push(Item::Span(Box::new(span())));
        drop(sender);
        assert_eq!(next_batch(&items).map(|(batch, _)| batch.len()), Some(1));
        assert!(next_batch(&items).is_none());
    }
}
