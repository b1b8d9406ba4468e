use super::*;
use crate::pause::Pausable;
use service::control::{Answer, Handler, Incoming, Server};
use std::sync::Mutex;
use tokio::sync::Semaphore;
use vireo_proto::Failure;
use vireo_proto::handoff::{
    ApplyBdevs, ApplyResult, Done, Endpoint, Namespace, ProcessStatus, Subsystem,
};

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that answers as often as it is let.
struct Process {
    answers: Semaphore,
    told: Mutex<usize>,
}

impl Handler for Process {
    async fn handle(&self, _request: Incoming) -> Result<Answer, Failure> {
        *self.told.lock().unwrap() += 1;
        self.answers.acquire().await.unwrap().forget();
        Ok(Answer::new(reply::Body::ApplyResult(ApplyResult::default())))
    }
}

fn process(socket: &std::path::Path, answers: usize) -> (Arc<Process>, Session) {
    let process = Arc::new(Process { answers: Semaphore::new(answers), told: Mutex::new(0) });
    let server = Server::bind(socket).unwrap();
    tokio::spawn(server.serve(Arc::clone(&process)));
    (process, Session::connect(socket, "manager-test").unwrap())
}

async fn until(outcome: &mut watch::Receiver<Outcome>, wanted: Outcome) {
    let waited = tokio::time::timeout(PATIENCE, outcome.wait_for(|now| *now == wanted));
    let reached = waited.await.is_ok();
    assert!(reached, "{:?} instead of {wanted:?}", outcome.borrow());
}

/// Its connection took the place of its predecessor's between two looks.
#[tokio::test]
async fn a_successor_is_not_taken_for_its_predecessor() {
    let directory = tempfile::tempdir().unwrap();
    let (first, session) = process(&directory.path().join("first"), 1);
    let (sessions, watched) = watch::channel(Some(session));
    let body = request::Body::ApplyBdevs(ApplyBdevs::default());
    let (_wanted, told) = watch::channel(Some(Wanted { document: 1, body, asked_in: None }));
    let (tell, mut outcome) = watch::channel(Outcome::Away);
    let talk = Talk {
        label: "backend b0".to_owned(),
        sessions: watched,
        wanted: told,
        outcome: tell,
        again: Arc::default(),
        kept: Arc::default(),
        stirred: Arc::default(),
    };
    let task = tokio::spawn(talk.run());
    let applied = Outcome::Applied { document: 1, failures: Vec::new() };
    until(&mut outcome, applied.clone()).await;
    let (second, session) = process(&directory.path().join("second"), 0);
    sessions.send_replace(Some(session));
    until(&mut outcome, Outcome::Present).await;
    second.answers.add_permits(1);
    until(&mut outcome, applied).await;
    assert_eq!((*first.told.lock().unwrap(), *second.told.lock().unwrap()), (1, 1));
    task.abort();
}

/// A frontend that serves nothing yet, and notes what it is asked.
#[derive(Default)]
struct Frontend(Mutex<Vec<&'static str>>);

impl Handler for Frontend {
    async fn handle(&self, request: Incoming) -> Result<Answer, Failure> {
        let (asked, answer) = match request.body {
            request::Body::GetStatus(_) => {
                ("status", reply::Body::ProcessStatus(ProcessStatus::default()))
            }
            request::Body::ApplyTargets(targets) => {
                let asked = if targets.endpoints.is_empty() { "subsystems" } else { "all" };
                (asked, reply::Body::ApplyResult(ApplyResult::default()))
            }
            request::Body::PauseNamespace(_) => ("pause", reply::Body::Done(Done {})),
            _ => return Err(Failure::unsupported()),
        };
        self.0.lock().unwrap().push(asked);
        Ok(Answer::new(answer))
    }
}

#[tokio::test]
async fn a_frontend_that_starts_anew_pauses_before_it_has_endpoints() {
    let directory = tempfile::tempdir().unwrap();
    for (kept, expected) in
        [(true, &["status", "subsystems", "pause", "all", "pause"][..]), (false, &["all"])]
    {
        let socket = directory.path().join(kept.to_string());
        let frontend = Arc::new(Frontend::default());
        tokio::spawn(Server::bind(&socket).unwrap().serve(Arc::clone(&frontend)));
        let peer = Peer::start(Kind::Frontend, "f0", &socket, "manager-test", Arc::default());
        if kept {
            let namespace = Pausable::Namespace { subsystem: "s0".to_owned(), nsid: 1 };
            peer.kept().keep(&namespace, None);
        }
        let namespaces = vec![Namespace { nsid: 1, ..Namespace::default() }];
        let subsystem = Subsystem { name: "s0".to_owned(), namespaces, ..Subsystem::default() };
        let targets =
            ApplyTargets { subsystems: vec![subsystem], endpoints: vec![Endpoint::default()] };
        peer.want(request::Body::ApplyTargets(targets), None);
        let applied = Outcome::Applied { document: 1, failures: Vec::new() };
        until(&mut peer.outcome.clone(), applied).await;
        assert_eq!(*frontend.0.lock().unwrap(), expected);
    }
}
