use super::*;
use service::control::{Answer, Handler, Incoming, Server};
use std::sync::Mutex;
use tokio::sync::Semaphore;
use vireo_proto::Failure;
use vireo_proto::handoff::{ApplyBdevs, ApplyResult};

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
