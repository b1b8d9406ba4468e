//! Pauses that a frontend was asked for and that are to last: a frontend that starts anew knows nothing of them, and is asked
//! again.

use super::{Pausable, request_of};
use service::control::{ControlError, Session};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use vireo_proto::handoff::ApplyTargets;

/// How long commands may be in flight at a frontend that starts anew: its workers may have some of its predecessor's, and it
/// fetches nothing meanwhile.
const SETTLE: Duration = Duration::from_secs(24 * 60 * 60);

/// The pauses of one frontend. They are of this process: a manager that restarts has forgotten them.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// Each with the time at which it goes on by itself.
    pauses: Mutex<BTreeMap<Pausable, Option<Instant>>>,
}

impl Kept {
    /// Keeps a pause that is in effect now, and lasts for `longest` at most.
    pub(crate) fn keep(&self, object: &Pausable, longest: Option<Duration>) {
        let until = longest.and_then(|longest| Instant::now().checked_add(longest));
        self.lock().insert(object.clone(), until);
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// It goes on.
    pub(crate) fn forget(&self, object: &Pausable) {
        self.lock().remove(object);
    }

    /// What is wanted no more has no pause either.
    pub(crate) fn retain(&self, targets: &ApplyTargets) {
        self.lock().retain(|object, _| match object {
            Pausable::Controller(name) => targets.endpoints.iter().any(|one| one.name == *name),
            Pausable::Namespace { subsystem, nsid } => {
                let mut subsystems = targets.subsystems.iter();
                let subsystem = subsystems.find(|one| one.name == *subsystem);
                subsystem.is_some_and(|one| one.namespaces.iter().any(|one| one.nsid == *nsid))
            }
        });
    }

    /// Asks a frontend for all that is kept. False if some of it is to be asked for once more: it refuses, and does not
    /// serve all it should (`clean`) yet.
    pub(crate) async fn ask_again(&self, session: &Session, clean: bool) -> bool {
        let now = Instant::now();
        let pauses: Vec<(Pausable, Option<Duration>)> = {
            let mut pauses = self.lock();
            pauses.retain(|_, until| until.is_none_or(|until| until > now));
            let left = |until: &Option<Instant>| until.map(|until| until - now);
            pauses.iter().map(|(object, until)| (object.clone(), left(until))).collect()
        };
        let mut all = true;
        for (object, longest) in pauses {
            match session.tell(request_of(&object, SETTLE, longest), &[]).await {
                Ok(_) => tracing::info!(?object, "paused again: its frontend started anew"),
                Err(ControlError::Refused(failure)) if clean => {
                    let reason = failure.message();
                    tracing::warn!(?object, reason, "not paused again");
                    self.forget(&object);
                }
                Err(error) => {
                    tracing::warn!(?object, reason = error.line(), "not paused again yet");
                    all = false;
                }
            }
        }
        all
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Pausable, Option<Instant>>> {
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use service::control::{Answer, Handler, Incoming, Server};
    use std::sync::Arc;
    use vireo_proto::Failure;
    use vireo_proto::handoff::{Done, Endpoint, Namespace, Subsystem, reply, request};

    /// A frontend that notes what it is asked, and refuses namespaces above that.
    struct Frontend {
        asked: Mutex<Vec<(u32, bool)>>,
        most: Mutex<u32>,
    }

    impl Handler for Frontend {
        async fn handle(&self, request: Incoming) -> Result<Answer, Failure> {
            let request::Body::PauseNamespace(pause) = request.body else {
                return Err(Failure::unsupported());
            };
            self.asked.lock().unwrap().push((pause.nsid, pause.longest_ns > 0));
            match pause.nsid <= *self.most.lock().unwrap() {
                true => Ok(Answer::new(reply::Body::Done(Done {}))),
                false => Err(Failure::invalid("no such namespace".to_owned())),
            }
        }
    }

    fn namespace(nsid: u32) -> Pausable {
        Pausable::Namespace { subsystem: "s0".to_owned(), nsid }
    }

    #[tokio::test]
    async fn what_is_kept_is_asked_for_until_it_is_known_or_over() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("frontend");
        let frontend = Arc::new(Frontend { asked: Mutex::default(), most: Mutex::new(2) });
        tokio::spawn(Server::bind(&socket).unwrap().serve(Arc::clone(&frontend)));
        let session = Session::connect(&socket, "manager-test").unwrap();
        let asked = || std::mem::take(&mut *frontend.asked.lock().unwrap());
        let kept = Kept::default();
        kept.keep(&namespace(1), None);
        kept.keep(&namespace(2), Some(Duration::from_secs(3600)));
        kept.keep(&namespace(3), None);
        kept.keep(&namespace(4), Some(Duration::ZERO));
        assert!(!kept.ask_again(&session, false).await, "it does not know the third yet");
        assert_eq!(asked(), [(1, false), (2, true), (3, false)]);
        *frontend.most.lock().unwrap() = 3;
        kept.forget(&namespace(1));
        assert!(kept.ask_again(&session, true).await);
        assert_eq!(asked(), [(2, true), (3, false)]);
        *frontend.most.lock().unwrap() = 2;
        assert!(kept.ask_again(&session, true).await, "it serves all, and has no third");
        asked();
        assert!(kept.ask_again(&session, true).await);
        assert_eq!(asked(), [(2, true)]);
    }

    #[test]
    fn pauses_go_with_what_they_are_of() {
        let kept = Kept::default();
        let controller = |name: &str| Pausable::Controller(name.to_owned());
        kept.keep(&controller("vm0"), None);
        kept.keep(&controller("vm1"), None);
        kept.keep(&namespace(1), None);
        kept.keep(&namespace(2), None);
        let endpoint = |name: &str| Endpoint { name: name.to_owned(), ..Endpoint::default() };
        let namespaces = vec![Namespace { nsid: 2, ..Namespace::default() }];
        let subsystem = Subsystem { name: "s0".to_owned(), namespaces, ..Subsystem::default() };
        kept.retain(&ApplyTargets {
            subsystems: vec![subsystem],
            endpoints: vec![endpoint("vm1"), endpoint("vm2")],
        });
        let left: Vec<Pausable> = kept.lock().keys().cloned().collect();
        assert_eq!(left, [controller("vm1"), namespace(2)]);
    }
}
