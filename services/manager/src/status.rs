//! How all processes are, in one answer.

use crate::peer::Peer;
use crate::reconcile::{Progress, Reconciler};
use ipc::handoff::MAX_MESSAGE;
use service::config::Kind;
use service::control::Session;
use std::time::Duration;
use tokio::task::JoinSet;
use vireo_proto::handoff::{GetStatus, HostStatus, ProcessStatus, reply, request};

/// How long one process may take to tell how it is.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of an answer beside the processes.
const ENVELOPE: usize = 1024;

/// Asks every process at the same time; one that is away or silent is shown as such.
pub(crate) async fn collect(reconciler: &Reconciler, own: ProcessStatus) -> HostStatus {
    let processes = ask_all(reconciler.peers().iter()).await;
    let progress = reconciler.progress().borrow().clone();
    host(progress, processes.into_iter().chain([own]).collect())
}

/// The same of the processes of one kind.
pub(crate) async fn of_kind(peers: &[Peer], kind: Kind) -> Vec<ProcessStatus> {
    ask_all(peers.iter().filter(|peer| peer.kind == kind)).await
}

async fn ask_all(peers: impl Iterator<Item = &Peer>) -> Vec<ProcessStatus> {
    let mut asked = JoinSet::new();
    for (index, peer) in peers.enumerate() {
        let (kind, name, session) = (peer.kind, peer.name.clone(), peer.session());
        asked.spawn(async move { (index, ask(kind, name, session).await) });
    }
    let mut processes: Vec<(usize, ProcessStatus)> = Vec::with_capacity(asked.len());
    while let Some(answer) = asked.join_next().await {
        // A task that panicked leaves its process out; there is none.
        processes.extend(answer.ok());
    }
    processes.sort_by_key(|(index, _)| *index);
    processes.into_iter().map(|(_, status)| status).collect()
}

async fn ask(kind: Kind, name: String, session: Option<Session>) -> ProcessStatus {
    let message = match session {
        None => "is not there".to_owned(),
        Some(session) => {
            let body = request::Body::GetStatus(GetStatus {});
            match session.call_within(STATUS_TIMEOUT, body, &[]).await {
                Ok(answer) => match answer.body {
                    reply::Body::ProcessStatus(status) => return status,
                    _ => "answers with something else than its status".to_owned(),
                },
                Err(error) => error.line(),
            }
        }
    };
    ProcessStatus { kind: kind.to_string(), name, message, ..ProcessStatus::default() }
}

fn host(progress: Progress, processes: Vec<ProcessStatus>) -> HostStatus {
    let ready = progress.reached() && processes.iter().all(|process| process.ready);
    let mut failures = progress.failures;
    for process in processes.iter().filter(|process| !process.ready) {
        let line = format!("{} {}: {}", process.kind, process.name, process.message);
        if process.kind != Kind::Manager.as_str() && !failures.contains(&line) {
            failures.push(line);
        }
    }
    let mut status = HostStatus { ready, failures, processes };
    shorten(&mut status);
    status
}

/// Leaves out the objects of the largest processes until the answer fits into one message.
fn shorten(status: &mut HostStatus) {
    while vireo_proto::encode(status).len() > MAX_MESSAGE - ENVELOPE {
        let Some(process) = status.processes.iter_mut().max_by_key(|p| p.items.len()) else {
            return;
        };
        if process.items.is_empty() {
            // Lines beyond any screen: what is first is enough to go on.
            status.failures.truncate(status.failures.len() / 2);
            continue;
        }
        process.message = format!("{} objects are too many to show", process.items.len());
        process.items.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vireo_proto::handoff::StatusItem;

    fn process(name: &str, ready: bool, items: usize) -> ProcessStatus {
        let item = StatusItem { name: "x".repeat(100), ..StatusItem::default() };
        let kind = "frontend".to_owned();
        ProcessStatus {
            kind,
            name: name.to_owned(),
            ready,
            items: vec![item; items],
            ..Default::default()
        }
    }

    fn reached() -> Progress {
        Progress { generation: 1, settled: true, left: true, failures: Vec::new() }
    }

    #[test]
    fn a_host_is_ready_if_its_goal_is_reached_and_every_process_is() {
        assert!(host(reached(), vec![process("f0", true, 1)]).ready);
        let status = host(reached(), vec![process("f0", true, 1), process("f1", false, 1)]);
        assert!(!status.ready);
        assert_eq!(status.failures, ["frontend f1: "]);
        assert!(!host(Progress::default(), vec![process("f0", true, 1)]).ready);
    }

    #[test]
    fn an_answer_fits_into_one_message_however_much_there_is() {
        let processes = vec![process("f0", true, 10_000), process("f1", true, 3)];
        let status = host(reached(), processes);
        assert!(vireo_proto::encode(&status).len() < MAX_MESSAGE);
        assert_eq!(status.processes[0].message, "10000 objects are too many to show");
        assert_eq!(status.processes[1].items.len(), 3);
        let failures = vec!["x".repeat(200); 10_000];
        let status = host(Progress { failures, ..reached() }, vec![process("f0", true, 0)]);
        assert!(vireo_proto::encode(&status).len() < MAX_MESSAGE);
        assert!(!status.failures.is_empty());
    }
}
