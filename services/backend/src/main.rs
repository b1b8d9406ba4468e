//! `vireo-backend`: configure, start, wait, drain.

#![forbid(unsafe_code)]

use anyhow::Context;
use clap::Parser;
use ipc::layout::telemetry::TelemetryLayout;
use ipc::segment::Segment;
use service::capture::{Capturing, Marked};
use service::config::{Config, Kind};
use service::control::Server;
use service::observe::Observed;
use service::shutdown::Shutdown;
use service::start::{self, Arguments, EXIT_FAILURE, Service, set_limits};
use std::process::ExitCode;
use std::sync::Arc;
use telemetry::capture::Captures;
use vireo_backend::backend::Backend;
use vireo_backend::serve::{self, Command};
use vireo_backend::store::Store;

/// Owns block devices; serves rings and grants leases.
#[derive(Parser)]
#[command(version)]
struct CommandLine {
    #[command(flatten)]
    arguments: Arguments,
}

fn main() -> ExitCode {
    let CommandLine { arguments } = CommandLine::parse();
    let service = match Service::load(Kind::Backend, arguments) {
        Ok(service) => service,
        Err(code) => return code,
    };
    set_limits();
    // Before other descriptors are opened: what the keeper passed lies at fixed numbers.
    let store = match Store::from_environment() {
        Ok(store) => store,
        Err(error) => {
            tracing::error!(%error, "descriptor store");
            return ExitCode::from(EXIT_FAILURE);
        }
    };
    start::status(service.run(async |config, name| run(&config, name, store).await))
}

async fn run(config: &Config, name: &str, store: Store) -> anyhow::Result<()> {
    let shutdown = Shutdown::listen().context("listen for signals")?;
    // Before any guest memory is mapped: a fault in it fails one controller, not this process.
    ipc::sigbus::install().context("handle faults of guest memory")?;
    let socket = config.socket(Kind::Backend, name);
    let server =
        Server::bind(&socket).with_context(|| format!("listen on {}", socket.display()))?;
    let (loop_, handle) = serve::new().context("make the serve loop's event")?;
    let (ended, loop_ended) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("serve".to_owned())
        .spawn(move || {
            loop_.run();
            ended.send(()).ok();
        })
        .context("start the serve loop")?;
    let mut backend = Backend::new(name.to_owned(), handle.clone(), store);
    let shared = Segment::<TelemetryLayout>::create("vireo-telemetry", 0);
    let shared = Arc::new(shared.context("make the telemetry segment")?);
    // Without a collector workers mark no commands but captured ones.
    let (writer, records) = ipc::trace::ends(&shared).context("make the trace ring")?;
    backend = backend.traced_by(writer);
    let captures = Arc::<Captures>::default();
    let nameless = |_| Default::default();
    tokio::spawn(telemetry::io_trace::pump(records, nameless, Arc::clone(&captures)));
    let capturing = Capturing::new(Arc::new(backend), Arc::new(Marked), captures);
    let observed = Observed::new(Arc::new(capturing), Kind::Backend.as_str(), name);
    let observed = observed.with_segment(shared);
    service::ready::ready("waiting for devices");
    tracing::info!(socket = %socket.display(), "backend ready");
    tokio::select! {
        () = server.serve(Arc::new(observed)) => {}
        () = shutdown.requested() => {}
        () = service::watchdog::feed_while(|bound| handle.is_alive(bound)) => {}
        // Without the loop nothing is served; the keeper starts this process anew.
        _ = loop_ended => anyhow::bail!("the serve loop has ended"),
    }
    service::ready::stopping();
    handle.send(Command::Stop).await.ok();
    // Devices wait for what the kernel still does with guest memory.
    tokio::task::spawn_blocking(move || thread.join().ok()).await.ok();
    Ok(())
}
