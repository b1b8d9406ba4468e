//! The gRPC API on a socket: who calls ([`caller`]), what he may ([`guard`]), and one module for each kind of resource.
//!
//! Protobuf types stop here. What changes goes through [`Manager::edit`], which checks and stores it as a whole.

pub mod caller;
mod capture;
pub(crate) mod controller;
mod deletion;
pub(crate) mod error;
mod event;
mod fault;
pub mod guard;
mod limits;
pub mod listen;
pub(crate) mod namespace;
mod namespace_names;
pub(crate) mod page;
mod pause;
pub(crate) mod request;
mod stats;
pub(crate) mod subsystem;
mod target;
mod time;
mod trace;
pub(crate) mod volume;
mod worker;

use crate::counters::Bases;
use crate::fault::Faults;
use crate::manager::Manager;
use crate::manager::edit::{Call, EditError, Edited};
use crate::object::Object;
use crate::view::View;
use guard::Guards;
use listen::Listener;
use std::sync::Arc;
use std::time::Duration;
use telemetry::spans;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic::{Response, Status};
use tonic_health::server::HealthReporter;
use vireo_api::MAX_REQUEST;
use vireo_api::opi::aio_volume_service_server::AioVolumeServiceServer;
use vireo_api::opi::frontend_nvme_service_server::FrontendNvmeServiceServer;
use vireo_api::opi::malloc_volume_service_server::MallocVolumeServiceServer;
use vireo_api::opi::null_volume_service_server::NullVolumeServiceServer;
use vireo_api::v1::controller_service_server::ControllerServiceServer;
use vireo_api::v1::event_service_server::EventServiceServer;
use vireo_api::v1::fault_service_server::FaultServiceServer;
use vireo_api::v1::namespace_service_server::NamespaceServiceServer;
use vireo_api::v1::stats_service_server::StatsServiceServer;
use vireo_api::v1::subsystem_service_server::SubsystemServiceServer;
use vireo_api::v1::target_service_server::TargetServiceServer;
use vireo_api::v1::trace_service_server::TraceServiceServer;
use vireo_api::v1::volume_service_server::VolumeServiceServer;
use vireo_api::v1::worker_service_server::WorkerServiceServer;

/// Calls of one connection that run at the same time.
const MAX_CALLS: usize = 32;
/// Streams that watch something, of all callers: each costs a task and a little memory.
const MAX_WATCHERS: usize = 64;
/// How often a connection without traffic is asked for a sign of life, and how long that may take.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Why the API is not served any more.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The descriptors that are compiled in; a mistake of ours.
    #[error("descriptors for reflection")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// Memory for what faults count.
    #[error("make the faults segment")]
    Faults(#[from] ipc::segment::SegmentError),
    /// HTTP/2.
    #[error("serve the API")]
    Transport(#[from] tonic::transport::Error),
}

/// What all services work on.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub(crate) manager: Arc<Manager>,
    pub(crate) bases: Arc<Bases>,
    watchers: Arc<Semaphore>,
    /// Room for captures.
    captures: Arc<Semaphore>,
    /// Where they are allowed.
    faults: Option<Arc<Faults>>,
}

impl Api {
    /// Changes what is wanted, and says why not as a caller of `vireo.v1` reads it.
    async fn edit(
        &self,
        call: Call,
        work: impl FnOnce(&mut View) -> Result<Object, EditError> + Send + 'static,
    ) -> Result<Edited, Status> {
        self.change(call, work).await.map_err(error::edit)
    }

    /// Changes what is wanted. What has begun is finished, though its caller leaves or has no more patience.
    pub(crate) async fn change(
        &self,
        call: Call,
        work: impl FnOnce(&mut View) -> Result<Object, EditError> + Send + 'static,
    ) -> Result<Edited, EditError> {
        let manager = Arc::clone(&self.manager);
        let edit = async move { manager.edit(call, work).await };
        let task = tokio::spawn(spans::within(spans::current(), edit));
        let ended = task.await.map_err(|error| EditError::Internal(error.to_string()));
        ended.and_then(|edited| edited)
    }
}

/// An answer about an object, which the audit log names.
pub(crate) fn audited<T>(answer: T, object: &Object) -> Response<T> {
    let mut response = Response::new(answer);
    response.extensions_mut().insert(guard::Audited(object.to_string()));
    response
}

/// Serves the API to all who come to `listener`, until this is dropped.
///
/// # Errors
/// [`ServeError`]; never for what a caller does.
pub async fn serve(manager: Arc<Manager>, listener: Listener) -> Result<(), ServeError> {
    let config = manager.config();
    let faults = config.api.fault_injection.then(|| Faults::new(&config)).transpose()?;
    // Ends with this future.
    let mut beside = JoinSet::new();
    if let Some(faults) = &faults {
        beside.spawn(Arc::clone(faults).run(config));
    }
    let api = Api {
        manager,
        bases: Arc::default(),
        watchers: Arc::new(Semaphore::new(MAX_WATCHERS)),
        captures: Arc::new(Semaphore::new(capture::MAX_CAPTURES)),
        faults,
    };
    let (reporter, health) = tonic_health::server::health_reporter();
    // Every service has the same bound on its requests, and a health of its own.
    let target = TargetServiceServer::new(api.clone()).max_decoding_message_size(MAX_REQUEST);
    let volume = VolumeServiceServer::new(api.clone()).max_decoding_message_size(MAX_REQUEST);
    let subsystem = SubsystemServiceServer::new(api.clone()).max_decoding_message_size(MAX_REQUEST);
    let namespace = NamespaceServiceServer::new(api.clone()).max_decoding_message_size(MAX_REQUEST);
    let controller =
        ControllerServiceServer::new(api.clone()).max_decoding_message_size(MAX_REQUEST);
    let worker = WorkerServiceServer::new(api.clone()).max_decoding_message_size(MAX_REQUEST);
    let stats = StatsServiceServer::new(api.clone()).max_decoding_message_size(MAX_REQUEST);
    let trace = TraceServiceServer::new(api.clone()).max_decoding_message_size(MAX_REQUEST);
    let fault = FaultServiceServer::new(api.clone()).max_decoding_message_size(MAX_REQUEST);
    let opi_frontend =
        FrontendNvmeServiceServer::new(api.clone()).max_decoding_message_size(MAX_REQUEST);
    let opi_null = NullVolumeServiceServer::new(api.clone()).max_decoding_message_size(MAX_REQUEST);
    let opi_malloc =
        MallocVolumeServiceServer::new(api.clone()).max_decoding_message_size(MAX_REQUEST);
    let opi_aio = AioVolumeServiceServer::new(api.clone()).max_decoding_message_size(MAX_REQUEST);
    let event = EventServiceServer::new(api).max_decoding_message_size(MAX_REQUEST);
    healthy(&reporter, &target).await;
    healthy(&reporter, &volume).await;
    healthy(&reporter, &subsystem).await;
    healthy(&reporter, &namespace).await;
    healthy(&reporter, &controller).await;
    healthy(&reporter, &worker).await;
    healthy(&reporter, &stats).await;
    healthy(&reporter, &trace).await;
    healthy(&reporter, &fault).await;
    healthy(&reporter, &event).await;
    healthy(&reporter, &opi_frontend).await;
    healthy(&reporter, &opi_null).await;
    healthy(&reporter, &opi_malloc).await;
    healthy(&reporter, &opi_aio).await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(vireo_api::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Server::builder()
        .concurrency_limit_per_connection(MAX_CALLS)
        .max_concurrent_streams(MAX_CALLS as u32)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .layer(Guards)
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(target)
        .add_service(volume)
        .add_service(subsystem)
        .add_service(namespace)
        .add_service(controller)
        .add_service(worker)
        .add_service(stats)
        .add_service(trace)
        .add_service(fault)
        .add_service(event)
        .add_service(opi_frontend)
        .add_service(opi_null)
        .add_service(opi_malloc)
        .add_service(opi_aio)
        .serve_with_incoming(listener)
        .await?;
    Ok(())
}

/// Says that a service answers.
async fn healthy<S>(reporter: &HealthReporter, _: &S)
where
    S: NamedService,
{
    reporter.set_service_status(S::NAME, tonic_health::ServingStatus::Serving).await;
}
