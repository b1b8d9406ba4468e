//! `vireo-manager`: configure, start, wait, drain.

#![forbid(unsafe_code)]

use anyhow::Context;
use clap::Parser;
use ipc::fd_store::FdStore;
use service::config::{Config, Kind, MANAGER};
use service::control::Server;
use service::shutdown::Shutdown;
use service::start::{Arguments, EXIT_CONFIGURATION, EXIT_FAILURE, Service};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use telemetry::metrics::http;
use vireo_manager::grpc;
use vireo_manager::grpc::listen::{ListenError, Listener};
use vireo_manager::manager::{Manager, StartError};
use vireo_manager::metrics::{Metrics, push};

/// How long the host may take to serve all before the manager counts as ready without that.
const START_BOUND: Duration = Duration::from_secs(15);

/// Keeps what the host serves as its configuration file says.
#[derive(Parser)]
#[command(version)]
struct CommandLine {
    /// The host's configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Which of the configured services this process is.
    #[arg(long, default_value = MANAGER)]
    name: String,
}

fn main() -> ExitCode {
    let CommandLine { config: file, name } = CommandLine::parse();
    let arguments = Arguments { config: file.clone(), name };
    let service = match Service::load(Kind::Manager, arguments) {
        Ok(service) => service,
        Err(code) => return code,
    };
    // Before other descriptors are opened: what the keeper passed lies at fixed numbers.
    let passed = match FdStore::from_environment() {
        Ok((_, passed)) => passed,
        Err(error) => {
            tracing::error!(%error, "what the keeper passed");
            return ExitCode::from(EXIT_FAILURE);
        }
    };
    match service.run(async |config, name| run(config, name, file, passed).await) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let lasting = error.downcast_ref().is_some_and(StartError::is_lasting)
                || error.downcast_ref().is_some_and(ListenError::is_lasting);
            ExitCode::from(if lasting { EXIT_CONFIGURATION } else { EXIT_FAILURE })
        }
    }
}

async fn run(
    config: Config,
    name: &str,
    file: PathBuf,
    passed: Vec<(String, OwnedFd)>,
) -> anyhow::Result<()> {
    let shutdown = Shutdown::listen().context("listen for signals")?;
    let socket = config.socket(Kind::Manager, name);
    // Before any process is told anything: where another manager answers, this one does nothing.
    let server = Server::adopt_or_bind(&socket, passed)
        .with_context(|| format!("listen on {}", socket.display()))?;
    let manager = Arc::new(Manager::start(name, file, config).await.context("start")?);
    let listener_of_scrapes = listen_for_scrapes(&manager);
    let metrics = Arc::new(Metrics::new(Arc::clone(&manager)));
    let listener = Listener::bind(&manager.config().api).await.context("serve the API")?;
    let telemetry = manager.config().telemetry;
    tokio::select! {
        served = grpc::serve(Arc::clone(&manager), listener) => served?,
        () = server.serve(Arc::clone(&manager)) => {}
        () = manager.run() => {}
        () = serve_metrics(Arc::clone(&metrics), listener_of_scrapes) => {}
        () = push::run(&metrics, &telemetry, name) => {}
        () = tell(&manager) => {}
        () = feed_watchdog() => {}
        () = shutdown.requested() => {}
    }
    service::ready::stopping();
    Ok(())
}

/// Listens where the metrics are to be had, if they are. Where that cannot be, all the rest goes on without.
fn listen_for_scrapes(manager: &Manager) -> Option<http::Listener> {
    let address = manager.config().telemetry.metrics?;
    http::Listener::bind(&address)
        .inspect_err(|error| {
            tracing::error!(key = "telemetry.metrics", %address, %error, "no metrics");
        })
        .ok()
}

/// Serves the metrics for ever, or nothing.
async fn serve_metrics(metrics: Arc<Metrics>, listener: Option<http::Listener>) {
    let Some(listener) = listener else { return std::future::pending().await };
    listener
        .serve(move || {
            let metrics = Arc::clone(&metrics);
            async move { metrics.page().await }
        })
        .await;
}

/// Tells the keeper once that the manager is ready, and whenever the host's state is another one.
async fn tell(manager: &Manager) {
    let mut progress = manager.progress();
    let reached = progress.wait_for(|progress| progress.reached());
    if tokio::time::timeout(START_BOUND, reached).await.is_err() {
        tracing::warn!(state = manager.line(), "not all is served yet");
    }
    service::ready::ready(&manager.line());
    tracing::info!(state = manager.line(), "manager ready");
    while progress.changed().await.is_ok() {
        service::ready::status(&manager.line());
    }
}

/// Tells the keeper that the runtime, and with it all of the manager, makes progress.
async fn feed_watchdog() {
    let Some(interval) = service::ready::watchdog_interval() else {
        return std::future::pending().await;
    };
    loop {
        service::ready::feed_watchdog();
        tokio::time::sleep(interval).await;
    }
}
