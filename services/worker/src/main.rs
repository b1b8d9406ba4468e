//! `vireo-worker`: configure, start, wait, drain.

#![forbid(unsafe_code)]

use anyhow::Context;
use clap::Parser;
use ipc::event::EventFd;
use ipc::layout::telemetry::{Policy, TelemetryLayout};
use ipc::segment::Segment;
use ipc::watchdog::{DEFAULT_BOUND, Watchdog};
use service::capture::Capturing;
use service::config::{Config, Kind};
use service::control::Server;
use service::observe::Observed;
use service::shutdown::Shutdown;
use service::start::{self, Arguments, Service, set_limits};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use telemetry::capture::Captures;
use vireo_worker::clock::Monotonic;
use vireo_worker::control::{Control, ControlConfig};
use vireo_worker::notify::WatchedNotifier;
use vireo_worker::reactor::{ControlEnd, Reactor};
use vireo_worker::sleep;
use vireo_worker::times::Times;
use vireo_worker::tracer::Tracer;

/// Serves I/O queues of virtual NVMe controllers on one core.
#[derive(Parser)]
#[command(version)]
struct CommandLine {
    #[command(flatten)]
    arguments: Arguments,
}

/// What the poll thread is made with.
struct PollThread {
    kick: EventFd,
    wake: EventFd,
    core: Option<u32>,
    max_nap: Duration,
    stop: Arc<AtomicBool>,
    shared: Arc<Segment<TelemetryLayout>>,
    tracer: Arc<Tracer>,
}

fn main() -> ExitCode {
    let CommandLine { arguments } = CommandLine::parse();
    let service = match Service::load(Kind::Worker, arguments) {
        Ok(service) => service,
        Err(code) => return code,
    };
    set_limits();
    start::status(service.run(run))
}

async fn run(config: Config, name: &str) -> anyhow::Result<()> {
    let shutdown = Shutdown::listen().context("listen for signals")?;
    // Before any guest memory is mapped: a fault in it fails one controller, not this process.
    ipc::sigbus::install().context("handle faults of guest memory")?;
    let settings = config
        .workers
        .iter()
        .find(|worker| worker.name == name)
        .context("the worker is not in the configuration")?;
    let shared = Segment::<TelemetryLayout>::create("vireo-telemetry", 0);
    let shared = Arc::new(shared.context("make the telemetry segment")?);
    // Relaxed: nobody reads it yet.
    shared.policy.word.store(policy(&config).to_word(), Ordering::Relaxed);
    let (writer, records) = ipc::trace::ends(&shared).context("make the trace ring")?;
    let traced = telemetry::spans::export::is_on();
    let tracer = Tracer::new(Arc::clone(&shared), Some(writer));
    let tracer = if traced { tracer } else { tracer.for_captures_alone() };
    let (kick, wake) = (EventFd::create()?, EventFd::create()?);
    let stop = Arc::new(AtomicBool::new(false));
    let poll = PollThread {
        kick: kick.try_clone()?,
        wake: wake.try_clone()?,
        core: settings.core,
        max_nap: settings.max_nap,
        stop: Arc::clone(&stop),
        shared: Arc::clone(&shared),
        tracer: Arc::new(tracer),
    };
    let watchdog = Watchdog::start(DEFAULT_BOUND).context("start the watchdog")?;
    let (tell, started) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("poll".to_owned())
        .spawn(move || poll.run(&watchdog, tell))
        .context("start the poll thread")?;
    let end = started.await.context("the poll thread has ended")??;
    let waker = kick.try_clone()?;
    let runtime_dir = config.runtime_dir.clone();
    let faults = config.api.fault_injection;
    let control = ControlConfig { name: name.to_owned(), runtime_dir, end, kick, faults };
    let control = Control::new(control).context("start the control thread")?;
    let wake = service::async_fd::register(wake).context("watch the poll thread's eventfd")?;
    tokio::spawn(Arc::clone(&control).pump(wake));
    let alive = Arc::clone(&control);
    let socket = config.socket(Kind::Worker, name);
    let server =
        Server::bind(&socket).with_context(|| format!("listen on {}", socket.display()))?;
    let captures = Arc::<Captures>::default();
    let (described, captured) = (Arc::clone(&control), Arc::clone(&captures));
    let describe = move |id| described.describe(id);
    tokio::spawn(telemetry::io_trace::pump(records, describe, captured));
    let told = Arc::clone(&control);
    let capturing = Capturing::new(Arc::clone(&control), control, captures);
    let observed = Observed::new(Arc::new(capturing), Kind::Worker.as_str(), name)
        .with_segment(shared)
        .with_policy(move |_| told.policy_changed());
    service::ready::ready("serving");
    tracing::info!(socket = %socket.display(), core = ?settings.core, "worker ready");
    // Lives until the poll thread has ended: frontends take a closed connection for the end of all DMA.
    let mut serving = std::pin::pin!(server.serve(Arc::new(observed)));
    tokio::select! {
        () = &mut serving => {}
        () = service::watchdog::feed_while(|bound| alive.is_alive(bound)) => {}
        () = shutdown.requested() => {}
    }
    service::ready::stopping();
    stop.store(true, Ordering::Release);
    waker.signal()?;
    tokio::task::spawn_blocking(move || thread.join().ok()).await.ok();
    Ok(())
}

/// Which commands are traced by the configuration.
fn policy(config: &Config) -> Policy {
    let slow = config.telemetry.slow.map_or(0, |slow| slow.as_micros());
    Policy { sample: config.telemetry.sample, slow_us: u32::try_from(slow).unwrap_or(u32::MAX) }
}

impl PollThread {
    /// Runs the reactor on this thread. The other end of its queues, or why there is none, goes to `tell`.
    fn run(
        self,
        watchdog: &Watchdog,
        tell: tokio::sync::oneshot::Sender<anyhow::Result<ControlEnd>>,
    ) {
        let (mut reactor, end) = match self.prepare(watchdog) {
            Ok(prepared) => prepared,
            Err(error) => return drop(tell.send(Err(error))),
        };
        if tell.send(Ok(end)).is_ok() {
            let mut times = Times::new(self.shared);
            sleep::run_timed(&mut reactor, &self.kick, self.max_nap, &self.stop, &mut times);
        }
    }

    fn prepare(
        &self,
        watchdog: &Watchdog,
    ) -> anyhow::Result<(Reactor<Monotonic, WatchedNotifier>, ControlEnd)> {
        if let Some(core) = self.core {
            service::cpu::pin(core).context("pin the poll thread")?;
        }
        // The default, 50 microseconds, would lengthen the first naps several times over.
        nix::sys::prctl::set_timerslack(1_000).context("set the timer slack")?;
        let notifier = WatchedNotifier::new(watchdog.guard().context("watch the poll thread")?);
        let (mut reactor, end) = Reactor::new(Monotonic::default(), notifier);
        reactor.wake_by(self.wake.try_clone()?);
        reactor.trace_by(Arc::clone(&self.tracer));
        Ok((reactor, end))
    }
}
