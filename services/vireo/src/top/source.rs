//! Where figures come from: the manager's API, asked by a thread of its own, so that a manager that hangs does not make the
//! keyboard hang. Whatever happens to the connection, it is tried again.

use super::sample::{ControllerPlace, Inventory, NamespacePlace, Sample, WorkerPlace, line};
use crate::admin::{Access, Session};
use anyhow::Context;
use service::start::EXIT_FAILURE;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tonic::Status;
use vireo_api::v1::{GetTargetRequest, ListWorkersRequest, WatchStatsRequest};

/// Updates that wait for the terminal; the manager is not read faster than they are drawn.
const WAITING: usize = 16;
/// Between two tries to connect.
const RETRY: Duration = Duration::from_secs(1);
/// How long the manager may take beyond the interval: processes that hang cost it two seconds each reading.
const PATIENCE: Duration = Duration::from_secs(8);
/// What there is changes rarely, and asking costs a question to each process.
const INVENTORY: Duration = Duration::from_secs(2);
/// How long the terminal may take to be given back after a signal.
const ENDING: Duration = Duration::from_secs(2);
/// Most bytes of an answer: of some thousand controllers with all their queues.
const MAX_ANSWER: usize = 64 << 20;
/// Most pages of a list that are read.
const MAX_PAGES: usize = 64;

/// What the source tells.
#[derive(Debug)]
pub enum Update {
    /// Counters were read.
    Sample(Box<Sample>),
    /// This is what there is.
    Inventory(Box<Inventory>),
    /// The manager cannot be reached; why, in one line. It is tried again.
    Lost(String),
    /// Somebody wants this process to end.
    Stop,
}

/// The thread that asks.
#[derive(Debug)]
pub struct Source {
    updates: mpsc::Receiver<Update>,
    interval: watch::Sender<Duration>,
}

impl Source {
    /// Starts to ask.
    ///
    /// # Errors
    /// There can be no thread.
    pub fn start(access: Access, interval: Duration) -> anyhow::Result<Self> {
        let (give, updates) = mpsc::channel(WAITING);
        let (set, get) = watch::channel(interval);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("start the runtime")?;
        let ask = async move {
            tokio::select! {
                () = stopped(&give) => {}
                () = ask(&access, get, &give) => {}
            }
        };
        let thread = std::thread::Builder::new().name("source".into());
        thread.spawn(move || runtime.block_on(ask)).context("start a thread")?;
        Ok(Self { updates, interval: set })
    }

    /// What was told since; `None` if nothing was.
    ///
    /// # Errors
    /// The thread is dead, which is a mistake of ours.
    pub fn next(&mut self) -> anyhow::Result<Option<Update>> {
        match self.updates.try_recv() {
            Ok(update) => Ok(Some(update)),
            Err(mpsc::error::TryRecvError::Empty) => Ok(None),
            Err(mpsc::error::TryRecvError::Disconnected) => anyhow::bail!("nobody asks any more"),
        }
    }

    /// Waits for what is told next.
    ///
    /// # Errors
    /// As [`Source::next`].
    pub fn wait(&mut self) -> anyhow::Result<Update> {
        self.updates.blocking_recv().context("nobody asks any more")
    }

    /// Asks at another interval from now on.
    pub fn set_interval(&self, interval: Duration) {
        // Without a receiver the next update tells that the thread is dead.
        self.interval.send(interval).ok();
    }
}

/// Tells when a signal ends this process: the terminal has to be given back first. Ends it if nobody listens.
async fn stopped(give: &mpsc::Sender<Update>) {
    let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
    let [Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)] = kinds.map(signal) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = hangup.recv() => {}
    }
    // The receiver may be in the middle of something that does not end, with a terminal that is gone.
    timeout(ENDING, give.send(Update::Stop)).await.ok();
    if timeout(ENDING, give.closed()).await.is_err() {
        ratatui::restore();
        std::process::exit(EXIT_FAILURE.into());
    }
}

/// Asks until nobody listens any more.
async fn ask(
    access: &Access,
    mut interval: watch::Receiver<Duration>,
    give: &mpsc::Sender<Update>,
) {
    while !give.is_closed() {
        let lost = match Session::open(access).await {
            Err(error) => error,
            Ok(session) => tokio::select! {
                error = counters(session.clone(), &mut interval, give) => error,
                error = inventories(session, give) => error,
            },
        };
        if give.send(Update::Lost(line(&format!("{lost:#}")))).await.is_err() {
            return;
        }
        sleep(RETRY).await;
    }
}

/// Reads counters until something goes wrong; what it was.
async fn counters(
    session: Session,
    interval: &mut watch::Receiver<Duration>,
    give: &mpsc::Sender<Update>,
) -> anyhow::Error {
    let mut client = session.stats.max_decoding_message_size(MAX_ANSWER);
    loop {
        let every = *interval.borrow_and_update();
        let request = WatchStatsRequest {
            names: vec!["controllers/-".to_owned(), "workers/-".to_owned()],
            interval: every.try_into().ok(),
            queues: true,
        };
        let mut answers = match timeout(PATIENCE, client.watch_stats(request)).await {
            Err(_) => return silent(),
            Ok(Err(status)) => return refused(&status),
            Ok(Ok(answer)) => answer.into_inner(),
        };
        loop {
            let answer = tokio::select! {
                answer = timeout(every + PATIENCE, answers.message()) => answer,
                changed = interval.changed() => match changed {
                    // Asked anew.
                    Ok(()) => break,
                    Err(_) => return anyhow::anyhow!("nobody listens any more"),
                },
            };
            let answer = match answer {
                Err(_) => return silent(),
                Ok(Err(status)) => return refused(&status),
                Ok(Ok(None)) => return anyhow::anyhow!("the manager ended"),
                Ok(Ok(Some(answer))) => answer,
            };
            let sample = Update::Sample(Box::new(Sample::of(answer)));
            if give.send(sample).await.is_err() {
                return anyhow::anyhow!("nobody listens any more");
            }
        }
    }
}

/// Reads what there is until something goes wrong; what it was.
async fn inventories(mut session: Session, give: &mpsc::Sender<Update>) -> anyhow::Error {
    loop {
        match timeout(PATIENCE, inventory(&mut session)).await {
            Err(_) => return silent(),
            Ok(Err(error)) => return error,
            Ok(Ok(inventory)) => {
                if give.send(Update::Inventory(Box::new(inventory))).await.is_err() {
                    return anyhow::anyhow!("nobody listens any more");
                }
            }
        }
        sleep(INVENTORY).await;
    }
}

async fn inventory(session: &mut Session) -> anyhow::Result<Inventory> {
    let request = GetTargetRequest { name: "target".to_owned() };
    let target = session.target.get_target(request).await.map_err(|status| refused(&status))?;
    let target = target.into_inner();
    let mut workers = Vec::new();
    let mut request = ListWorkersRequest { page_size: 1000, ..ListWorkersRequest::default() };
    for _ in 0..MAX_PAGES {
        let page = session.workers.list_workers(request.clone()).await;
        let page = page.map_err(|status| refused(&status))?.into_inner();
        workers.extend(page.workers.iter().map(WorkerPlace::of));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    let controllers = session.all_controllers().await?;
    let namespaces = session.all_namespaces("subsystems/-").await?;
    Ok(Inventory {
        ready: target.ready,
        missing: target.failures.iter().map(|failure| line(failure)).collect(),
        workers,
        controllers: controllers.iter().map(ControllerPlace::of).collect(),
        namespaces: namespaces.iter().map(NamespacePlace::of).collect(),
    })
}

fn silent() -> anyhow::Error {
    anyhow::anyhow!("the manager does not answer")
}

fn refused(status: &Status) -> anyhow::Error {
    match status.code() {
        // What the library says of a connection that broke is nothing for a person.
        tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled => {
            anyhow::anyhow!("the manager is gone")
        }
        _ => anyhow::anyhow!("the manager refuses: {}", status.message()),
    }
}
