//! A collector: takes spans and metrics by OTLP over gRPC, in the protocol's own published messages, and keeps what it
//! got.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::sync::oneshot;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use vireo_tests::wait::until;

/// A span and the process that it came from.
#[derive(Clone, Debug)]
pub struct Received {
    /// `service.instance.id`: kind and name of the process.
    pub process: String,
    /// Other attributes of its resource.
    pub resource: BTreeMap<String, String>,
    /// The span.
    pub span: Span,
}

impl Received {
    /// An attribute as text.
    pub fn attribute(&self, name: &str) -> Option<String> {
        attributes(&self.span.attributes).remove(name)
    }
}

/// A running collector.
pub struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Received>>>,
    metrics: Arc<Mutex<Metrics>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The last of each metric: its unit and data.
pub type Metrics = BTreeMap<String, (String, Data)>;

struct Service(Arc<Mutex<Vec<Received>>>);

struct MetricsTaker(Arc<Mutex<Metrics>>);

#[tonic::async_trait]
impl MetricsService for MetricsTaker {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let resources = request.into_inner().resource_metrics.into_iter();
        let scopes = resources.flat_map(|resource| resource.scope_metrics);
        let metrics = scopes.flat_map(|scope| scope.metrics);
        let told = metrics.filter_map(|metric| Some((metric.name, (metric.unit, metric.data?))));
        lock(&self.0).extend(told);
        Ok(Response::new(ExportMetricsServiceResponse { partial_success: None }))
    }
}

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = lock(&self.0);
        for of_resource in request.into_inner().resource_spans {
            let resource = of_resource.resource.unwrap_or_default();
            let resource = attributes(&resource.attributes);
            let process = resource.get("service.instance.id").cloned().unwrap_or_default();
            for span in of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                let (process, resource) = (process.clone(), resource.clone());
                spans.push(Received { process, resource, span });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse { partial_success: None }))
    }
}

impl Collector {
    /// Starts one on a port of its own.
    pub fn start() -> Self {
        let spans = Arc::new(Mutex::new(Vec::new()));
        let metrics = Arc::<Mutex<Metrics>>::default();
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = std::sync::mpsc::channel();
        let service = TraceServiceServer::new(Service(Arc::clone(&spans)));
        let taker = MetricsServiceServer::new(MetricsTaker(Arc::clone(&metrics)));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                let any = SocketAddr::from(([127, 0, 0, 1], 0));
                let incoming = TcpIncoming::bind(any).expect("a port");
                tell.send(incoming.local_addr().expect("its address")).expect("somebody waits");
                let stopped = async { drop(stopped.await) };
                Server::builder()
                    .add_service(service)
                    .add_service(taker)
                    .serve_with_incoming_shutdown(incoming, stopped)
                    .await
                    .expect("serve");
            });
        });
        let address = told.recv().expect("the collector's address");
        Self { address, spans, metrics, stop: Some(stop), thread: Some(thread) }
    }

    /// What `telemetry.otlp` is to be.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What came so far.
    pub fn spans(&self) -> Vec<Received> {
        lock(&self.spans).clone()
    }

    /// The last of each metric that came.
    pub fn metrics(&self) -> Metrics {
        lock(&self.metrics).clone()
    }

    /// Waits for a span, and gives the whole of its trace as far as it is there.
    #[track_caller]
    pub fn await_trace(&self, what: &str, is: impl Fn(&[Received]) -> bool) -> Vec<Received> {
        self.await_trace_of(what, || {}, is)
    }

    /// The same for what is done again and again until a trace of it is there.
    #[track_caller]
    pub fn await_trace_of(
        &self,
        what: &str,
        mut again: impl FnMut(),
        is: impl Fn(&[Received]) -> bool,
    ) -> Vec<Received> {
        let mut found = Vec::new();
        until(what, || {
            again();
            let all = self.spans();
            let mut traces: BTreeMap<Vec<u8>, Vec<Received>> = BTreeMap::new();
            for span in all {
                traces.entry(span.span.trace_id.clone()).or_default().push(span);
            }
            match traces.into_values().find(|trace| is(trace)) {
                Some(trace) => {
                    found = trace;
                    true
                }
                None => false,
            }
        });
        found
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        drop(self.stop.take());
        // The server waits for connections to end, which their processes hold as long as they live.
        drop(self.thread.take());
    }
}

fn lock<T>(kept: &Mutex<T>) -> MutexGuard<'_, T> {
    kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn attributes(list: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    let pair =
        |pair: &KeyValue| Some((pair.key.clone(), text(pair.value.as_ref()?.value.as_ref()?)));
    list.iter().filter_map(pair).collect()
}
