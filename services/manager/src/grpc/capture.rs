//! Commands of a controller, captured and told as they complete.
//!
//! Worker and backend are asked over connections of their own, whose end is the end of the capture there: nothing is left
//! behind however a call ends. A command that went through a ring waits a moment for its backend's part.

use super::guard::Audited;
use super::time::{self, timestamp};
use super::{Api, error};
use crate::object::Object;
use crate::peer::Peer;
use ipc::layout::telemetry::{TRACE_WORDS, TraceRecord, trace_reason};
use service::config::{Config, Endpoint, Kind};
use service::control::{ControlError, Session};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use telemetry::io_trace::{Waits, WallClock, operation};
use telemetry::spans::{Role, Span, export};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status};
use vireo_api::v1::{
    CaptureCommandsRequest, CaptureCommandsResponse, CapturedCommand, CapturedStage, CommandStage,
};
use vireo_proto::handoff::{
    CapturedCommands, ReadCapture, ReadEndpoint, StartCapture, reply, request,
};
use vireo_proto::{ErrorCode, id_from_bytes};

/// Captures of all callers at a time.
pub(super) const MAX_CAPTURES: usize = 4;
/// Most commands of one capture, and how many if the caller does not say.
const COUNT: (u32, u32) = (4096, 100);
/// Longest time for them, and how long if the caller does not say.
const TIMEOUT: (Duration, Duration) = (Duration::from_secs(3600), Duration::from_secs(60));
/// How long a process may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a process waits for a command before it says that there is none.
const WAIT: Duration = Duration::from_millis(500);
/// How long a command waits for its backend's part: records of two processes come in any order.
const HOLD: Duration = Duration::from_millis(250);
/// Answers that wait for a slow caller; further ones wait where they were captured.
const WAITING: usize = 64;
/// Parts of commands that wait for the rest; those of commands that nobody will tell of go with the others.
const MAX_PARTS: usize = 4096;

/// The stream of a capture.
pub(super) type Answers = ReceiverStream<Result<CaptureCommandsResponse, Status>>;

/// What a process told.
enum Heard {
    /// A worker's record.
    Command(Arc<str>, TraceRecord),
    /// A backend's.
    Part(TraceRecord),
    /// Records that found no room in the process of this number.
    Lost(usize, u64),
    /// There will be no more commands.
    End(Status),
}

/// One process that captures.
#[derive(Clone)]
struct Process {
    kind: Kind,
    name: Arc<str>,
    number: usize,
}

impl Api {
    /// Starts a capture; its commands come by the stream.
    pub(super) async fn capture(
        &self,
        request: CaptureCommandsRequest,
    ) -> Result<Response<Answers>, Status> {
        let count = match request.count {
            0 => COUNT.1,
            count if count <= COUNT.0 => count,
            count => {
                let text = format!("{count} are too many; ask for at most {}", COUNT.0);
                return Err(error::invalid("count", text));
            }
        };
        let timeout = match &request.timeout {
            None => Some(TIMEOUT.1),
            Some(given) => time::parse(given).filter(|t| !t.is_zero() && *t <= TIMEOUT.0),
        };
        let timeout = timeout
            .ok_or_else(|| error::invalid("timeout", "is out of range; write up to 3600 s"))?;
        let object = super::controller::controller_named(&request.name)?;
        let config = self.manager.config();
        let is = |e: &&Endpoint| Object::Controller(e.name.clone()) == object;
        let endpoint = config.endpoints.iter().find(is);
        let endpoint = endpoint.ok_or_else(|| error::missing(&request.name))?;
        let permit = Arc::clone(&self.captures).try_acquire_owned().map_err(|_| {
            let text = format!("{MAX_CAPTURES} captures run already: end one, and try again");
            error::refuse(Code::ResourceExhausted, error::reason::TOO_MUCH, text)
        })?;
        let controller_id = self.connected(&config, endpoint).await?;
        let mut span = Span::new(Role::Internal, "capture");
        span.set("vireo.endpoint", endpoint.name.clone());
        let traceparent = span.context().map(|context| context.to_string()).unwrap_or_default();
        let start = StartCapture { controller_id, count, traceparent };
        let sessions = span.scope(start_all(&config, endpoint, &start)).await?;
        let trace_id = span.context().filter(|_| export::is_on());
        let join = Join {
            controller: object.to_string(),
            trace_id: trace_id.map(|c| format!("{:032x}", c.trace_id())).unwrap_or_default(),
            left: count,
            lost: HashMap::new(),
            held: VecDeque::new(),
            parts: HashMap::new(),
            clock: WallClock::now(),
        };
        let (give, answers) = mpsc::channel(WAITING);
        tokio::spawn(run(join, sessions, Instant::now() + timeout, give, (span, permit)));
        let mut response = Response::new(ReceiverStream::new(answers));
        response.extensions_mut().insert(Audited(object.to_string()));
        Ok(response)
    }

    /// The id of an endpoint's controller, which has a client.
    async fn connected(&self, config: &Config, endpoint: &Endpoint) -> Result<Vec<u8>, Status> {
        let unavailable =
            |text: String| error::refuse(Code::Unavailable, error::reason::UNAVAILABLE, text);
        let frontend = config.subsystem(&endpoint.subsystem).map(|found| found.frontend.as_str());
        let frontend = frontend.unwrap_or_default();
        let peers = self.manager.peers().iter();
        let mut peers = peers.filter(|peer| peer.kind == Kind::Frontend && peer.name == frontend);
        let session = peers.next().and_then(Peer::session);
        let session = session.ok_or_else(|| unavailable(format!("frontend {frontend} is away")))?;
        let read = ReadEndpoint { endpoint: endpoint.name.clone(), first_worker: u32::MAX };
        let answer = session.call_within(PATIENCE, request::Body::ReadEndpoint(read), &[]).await;
        let report = match answer.map(|answer| answer.body) {
            Ok(reply::Body::EndpointReport(report)) => report,
            Ok(_) => {
                return Err(unavailable(format!("frontend {frontend} answers something else")));
            }
            Err(failed) => return Err(unavailable(failed.line())),
        };
        if !report.connected || id_from_bytes(&report.instance).is_err() {
            let text = format!("controllers/{} has no client: connect one first", endpoint.name);
            return Err(error::refuse(Code::FailedPrecondition, error::reason::NO_CLIENT, text));
        }
        Ok(report.instance)
    }
}

/// Has all processes capture that the controller's commands may pass through: backends first, so that they know what
/// workers mark.
async fn start_all(
    config: &Config,
    endpoint: &Endpoint,
    start: &StartCapture,
) -> Result<Vec<(Process, Session)>, Status> {
    let namespaces = config.subsystem(&endpoint.subsystem).map(|found| &found.namespaces);
    let bdevs = namespaces.into_iter().flatten().filter_map(|one| config.bdev(&one.bdev));
    let backends: BTreeSet<&str> = bdevs.map(|bdev| bdev.backend.as_str()).collect();
    let backends = backends.into_iter().map(|name| (Kind::Backend, name));
    let workers = endpoint.workers.iter().map(|name| (Kind::Worker, name.as_str()));
    let mut sessions = Vec::new();
    for (kind, name) in backends.chain(workers) {
        let started = match Session::connect(&config.socket(kind, name), "capture") {
            Ok(session) => {
                let body = request::Body::StartCapture(start.clone());
                session.tell(body, &[]).await.map(|_| session)
            }
            Err(error) => Err(error),
        };
        match (started, kind) {
            (Ok(session), _) => {
                sessions
                    .push((Process { kind, name: name.into(), number: sessions.len() }, session));
            }
            // Without its part commands are told all the same; and the controller need not be on every worker.
            (Err(_), Kind::Backend) => {}
            (Err(failed), _) if failed.code() == Some(ErrorCode::NotFound) => {}
            (Err(failed), _) => return Err(refused(&failed)),
        }
    }
    if !sessions.iter().any(|(process, _)| process.kind == Kind::Worker) {
        let text = format!("no worker serves controllers/{} yet: try again", endpoint.name);
        return Err(error::refuse(Code::FailedPrecondition, error::reason::NO_CLIENT, text));
    }
    Ok(sessions)
}

fn refused(failed: &ControlError) -> Status {
    match failed.code() {
        Some(ErrorCode::ResourceExhausted) => {
            error::refuse(Code::ResourceExhausted, error::reason::TOO_MUCH, failed.line())
        }
        _ => error::refuse(Code::Unavailable, error::reason::UNAVAILABLE, failed.line()),
    }
}

/// Asks one process again and again, until there is no more or nobody wants to know.
async fn follow(process: Process, session: Session, tell: mpsc::Sender<Heard>) {
    loop {
        let body = request::Body::ReadCapture(ReadCapture { wait_ms: WAIT.as_millis() as u32 });
        let answer = session.call_within(WAIT + PATIENCE, body, &[]).await;
        let CapturedCommands { commands, lost, ended } = match answer.map(|answer| answer.body) {
            Ok(reply::Body::CapturedCommands(captured)) => captured,
            Ok(_) | Err(_) => {
                let text = format!("worker {} has ended; its commands with it", process.name);
                let status = error::refuse(Code::Unavailable, error::reason::UNAVAILABLE, text);
                if process.kind == Kind::Worker {
                    tell.send(Heard::End(status)).await.ok();
                }
                return;
            }
        };
        for command in commands {
            let Ok(words) = <[u64; TRACE_WORDS]>::try_from(command.words) else { continue };
            let record = TraceRecord::from_words(&words);
            let heard = match process.kind {
                Kind::Worker => Heard::Command(Arc::clone(&process.name), record),
                _ => Heard::Part(record),
            };
            if tell.send(heard).await.is_err() {
                return;
            }
        }
        if lost > 0 && tell.send(Heard::Lost(process.number, lost)).await.is_err() {
            return;
        }
        if ended && process.kind == Kind::Worker {
            let text = "the controller's client has left";
            let status = error::refuse(Code::Aborted, error::reason::GONE, text);
            tell.send(Heard::End(status)).await.ok();
            return;
        }
    }
}

/// What backends did of a command, which may be several requests.
#[derive(Clone, Copy)]
struct Part {
    requests: u32,
    /// Of the first.
    taken: u64,
    /// Of the last.
    done: u64,
}

impl Part {
    fn with(self, record: &TraceRecord) -> Self {
        Self {
            requests: self.requests.saturating_add(1),
            taken: self.taken.min(record.fetched),
            done: self.done.max(record.done),
        }
    }

    /// Whether these are all requests that backends had of a worker's command.
    fn is_all_of(self, command: &TraceRecord) -> bool {
        self.requests >= u32::from(command.by_ring)
    }
}

/// Commands on their way to the caller.
struct Join {
    controller: String,
    trace_id: String,
    left: u32,
    /// By process.
    lost: HashMap<usize, u64>,
    /// Commands that wait for their backend's part, and until when.
    held: VecDeque<(Instant, Arc<str>, TraceRecord)>,
    /// Parts of backends by trace.
    parts: HashMap<u64, Part>,
    clock: WallClock,
}

type Give = mpsc::Sender<Result<CaptureCommandsResponse, Status>>;

/// Tells commands until all were told, the time is over, the caller leaves, or there are no more. What `_kept` holds
/// lasts as long, as do the captures in `sessions`.
async fn run(
    mut join: Join,
    sessions: Vec<(Process, Session)>,
    deadline: Instant,
    give: Give,
    _kept: (Span, OwnedSemaphorePermit),
) {
    let (tell, mut heard) = mpsc::channel(WAITING);
    let mut followers = JoinSet::new();
    for (process, session) in sessions {
        followers.spawn(follow(process, session, tell.clone()));
    }
    drop(tell);
    while join.left > 0 {
        let next = join.held.front().map_or(deadline, |(until, ..)| (*until).min(deadline));
        let came = tokio::select! {
            came = heard.recv() => came,
            () = tokio::time::sleep_until(next) => {
                let over = Instant::now() >= deadline;
                if join.release(over, &give).await.is_err() || over {
                    return;
                }
                continue;
            }
            () = give.closed() => return,
        };
        let given = match came {
            Some(Heard::Command(worker, record)) => join.command(worker, record, &give).await,
            Some(Heard::Part(part)) => join.part(part, &give).await,
            Some(Heard::Lost(process, lost)) => {
                join.lost.insert(process, lost);
                Ok(())
            }
            Some(Heard::End(status)) => {
                if join.release(true, &give).await.is_ok() && join.left > 0 {
                    give.send(Err(status)).await.ok();
                }
                return;
            }
            None => return,
        };
        if given.is_err() {
            return;
        }
    }
}

/// The caller has left.
struct Left;

impl Join {
    async fn command(
        &mut self,
        worker: Arc<str>,
        record: TraceRecord,
        give: &Give,
    ) -> Result<(), Left> {
        let part = self.parts.get(&record.trace).copied();
        let by_ring = record.reason & trace_reason::RING != 0;
        if by_ring && part.is_none_or(|part| !part.is_all_of(&record)) {
            self.held.push_back((Instant::now() + HOLD, worker, record));
            return Ok(());
        }
        self.give(&worker, &record, give).await
    }

    async fn part(&mut self, part: TraceRecord, give: &Give) -> Result<(), Left> {
        if self.parts.len() >= MAX_PARTS {
            self.parts.clear();
        }
        let none = Part { requests: 0, taken: u64::MAX, done: 0 };
        let all = self.parts.entry(part.trace).or_insert(none);
        *all = all.with(&part);
        let all = *all;
        let is_it = |(_, _, record): &(Instant, Arc<str>, TraceRecord)| {
            record.trace == part.trace && all.is_all_of(record)
        };
        let place = self.held.iter().position(is_it);
        match place.and_then(|place| self.held.remove(place)) {
            Some((_, worker, record)) => self.give(&worker, &record, give).await,
            None => Ok(()),
        }
    }

    /// Gives what has waited long enough, or all.
    async fn release(&mut self, all: bool, give: &Give) -> Result<(), Left> {
        let now = Instant::now();
        while self.held.front().is_some_and(|(until, ..)| all || *until <= now) {
            let Some((_, worker, record)) = self.held.pop_front() else { break };
            self.give(&worker, &record, give).await?;
        }
        Ok(())
    }

    async fn give(&mut self, worker: &str, record: &TraceRecord, give: &Give) -> Result<(), Left> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(()) };
        self.left = left;
        let part = self.parts.remove(&record.trace);
        let command = self.shown(worker, record, part);
        let lost = self.lost.values().sum();
        let response = CaptureCommandsResponse { command: Some(command), lost };
        give.send(Ok(response)).await.map_err(|_| Left)
    }

    fn shown(&self, worker: &str, record: &TraceRecord, part: Option<Part>) -> CapturedCommand {
        let end = [record.done, record.posted, record.signalled].into_iter().max().unwrap_or(0);
        CapturedCommand {
            controller: self.controller.clone(),
            worker: format!("workers/{worker}"),
            trace_id: self.trace_id.clone(),
            fetch_time: Some(timestamp(self.clock.at(record.fetched))),
            operation: operation(record).to_owned(),
            opcode: record.opcode.into(),
            nsid: record.nsid,
            lba: record.lba,
            length_bytes: record.bytes,
            queue: record.sqid.into(),
            cid: record.cid.into(),
            status: record.status.into(),
            duration: Some(between(record.fetched, end)),
            stages: stages(record, part),
            requests: record.requests.into(),
        }
    }
}

fn between(from: u64, to: u64) -> prost_types::Duration {
    time::duration(Duration::from_nanos(to.saturating_sub(from)))
}

/// The stages of a command, of which backends did `part`.
fn stages(record: &TraceRecord, part: Option<Part>) -> Vec<CapturedStage> {
    let TraceRecord { fetched, started, translated, submitted, done, posted, signalled, .. } =
        *record;
    let Waits { fetched_to, held, wait, pause } = Waits::of(record);
    let asked = if submitted == 0 { None } else { part };
    let (taken, ended) = asked.map_or((submitted, done), |part| (part.taken, part.done));
    let all = [
        (CommandStage::Fetch, (fetched, fetched_to)),
        (CommandStage::Limit, held),
        (CommandStage::Translate, (started, translated)),
        (CommandStage::Wait, wait),
        (CommandStage::BackendQueue, (asked.map_or(0, |_| submitted), taken)),
        (CommandStage::Device, (taken, ended)),
        (CommandStage::Return, (asked.map_or(0, |part| part.done), done)),
        (CommandStage::Completion, (done, posted)),
        (CommandStage::Interrupt, (posted, signalled)),
        (CommandStage::Pause, pause.unwrap_or((0, 0))),
    ];
    let timed = all.into_iter().filter(|(_, (from, to))| *from != 0 && to >= from);
    let stage = |(stage, (from, to)): (CommandStage, (u64, u64))| CapturedStage {
        stage: stage.into(),
        start: Some(between(fetched, from)),
        duration: Some(between(from, to)),
    };
    timed.map(stage).collect()
}

#[cfg(test)]
mod tests;
