//! `vireo-frontend`: configure, start, wait, drain.

#![forbid(unsafe_code)]

use anyhow::Context;
use clap::Parser;
use ipc::watchdog::{DEFAULT_BOUND, Watchdog};
use service::config::{Config, Kind};
use service::control::Server;
use service::observe::Observed;
use service::shutdown::Shutdown;
use service::start::{self, Arguments, Service, set_limits};
use std::process::ExitCode;
use std::sync::Arc;
use vireo_frontend::registry::{self, Registry, RegistryConfig};

/// Serves vfio-user sockets: PCI configuration space, registers and the admin queue of virtual NVMe controllers.
#[derive(Parser)]
#[command(version)]
struct CommandLine {
    #[command(flatten)]
    arguments: Arguments,
}

fn main() -> ExitCode {
    let CommandLine { arguments } = CommandLine::parse();
    let service = match Service::load(Kind::Frontend, arguments) {
        Ok(service) => service,
        Err(code) => return code,
    };
    set_limits();
    start::status(service.run(run))
}

async fn run(config: Config, name: &str) -> anyhow::Result<()> {
    let shutdown = Shutdown::listen().context("listen for signals")?;
    // Before any client memory is mapped: a fault in it fails one controller, not this process.
    ipc::sigbus::install().context("handle faults of client memory")?;
    let watchdog = Watchdog::start(DEFAULT_BOUND).context("start the watchdog")?;
    vireo_frontend::signal::watch(watchdog.guard().context("start the watchdog")?);
    let socket = config.socket(Kind::Frontend, name);
    let server =
        Server::bind(&socket).with_context(|| format!("listen on {}", socket.display()))?;
    let registry = Arc::new(Registry::new(RegistryConfig {
        name: name.to_owned(),
        runtime_dir: config.runtime_dir.clone(),
        state_dir: config.state_dir.clone(),
        patience: registry::PATIENCE,
    }));
    let counted = Arc::clone(&registry);
    let observed = Observed::new(Arc::clone(&registry), Kind::Frontend.as_str(), name)
        .with_queues(move || counted.queues());
    service::ready::ready("waiting for targets");
    tracing::info!(socket = %socket.display(), "frontend ready");
    tokio::select! {
        () = server.serve(Arc::new(observed)) => {}
        // All of a frontend is tasks of this runtime.
        () = service::ready::keep_fed(|| true) => {}
        () = shutdown.requested() => {}
    }
    service::ready::stopping();
    registry.stop().await;
    Ok(())
}
