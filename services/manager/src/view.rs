//! What is wanted, what of it the API made, and how far the host is: all that an answer of the API is put together from.

use crate::desired::Desired;
use crate::made::Made;
use crate::object::Object;
use crate::reconcile::Progress;

/// The host's wanted state at one time. An edit works on one, and what is checked only is answered from it.
#[derive(Clone, Debug)]
pub struct View {
    /// What is to be served.
    pub desired: Desired,
    /// What of it was made through the API.
    pub made: Made,
    /// Of which goal this is.
    pub generation: u64,
    /// How far the host is.
    pub progress: Progress,
}

/// How far the processes are with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is served as wanted.
    Ready,
    /// They have not said yet.
    Reconciling,
    /// It is not served as wanted, in one line.
    Failed(String),
}

impl View {
    /// How far the processes are with an object.
    pub fn standing(&self, object: &Object) -> Standing {
        let Some((process, label)) = object.served_as(&self.desired.config) else {
            return Standing::Reconciling;
        };
        if self.progress.generation != self.generation {
            return Standing::Reconciling;
        }
        let prefix = format!("{process}: ");
        let mut waits = false;
        for line in &self.progress.failures {
            let Some(reason) = line.strip_prefix(&prefix) else { continue };
            if let Some(reason) = reason.strip_prefix(&label).and_then(|r| r.strip_prefix(": ")) {
                return Standing::Failed(reason.to_owned());
            }
            if reason == "has not answered yet" {
                waits = true;
            } else if !is_of_an_object(reason) {
                return Standing::Failed(line.clone());
            }
        }
        if waits || !self.progress.settled { Standing::Reconciling } else { Standing::Ready }
    }
}

/// True if a process's failure is that of one of its objects.
fn is_of_an_object(reason: &str) -> bool {
    let kinds = ["bdev ", "subsystem ", "namespace ", "endpoint "];
    kinds.iter().any(|kind| reason.starts_with(kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    fn standing(name: &str, settled: bool, failures: &[&str]) -> Standing {
        let failures = failures.iter().map(|line| (*line).to_owned()).collect();
        let view = View {
            desired: sample::desired(sample::config(&[])),
            made: Made::default(),
            generation: 3,
            progress: Progress { generation: 3, settled, left: true, failures },
        };
        view.standing(&name.parse().unwrap())
    }

    #[test]
    fn a_failure_is_that_of_its_object_alone() {
        let lines = ["backend b0: bdev mem0: no memory", "frontend f1: is not there"];
        assert_eq!(standing("volumes/mem0", true, &lines), Standing::Failed("no memory".into()));
        assert_eq!(standing("volumes/file0", true, &lines), Standing::Ready);
        assert_eq!(standing("controllers/vm0", true, &lines), Standing::Ready);
        let away = Standing::Failed("frontend f1: is not there".into());
        assert_eq!(standing("controllers/vm1", true, &lines), away);
        let waits = ["backend b0: has not answered yet"];
        assert_eq!(standing("volumes/mem0", false, &waits), Standing::Reconciling);
        assert_eq!(standing("volumes/mem0", false, &[]), Standing::Reconciling);
    }

    #[test]
    fn what_was_said_of_an_earlier_goal_says_nothing() {
        let view = View {
            desired: sample::desired(sample::config(&[])),
            made: Made::default(),
            generation: 3,
            progress: Progress { generation: 2, settled: true, left: true, failures: Vec::new() },
        };
        assert_eq!(view.standing(&Object::Volume("mem0".into())), Standing::Reconciling);
    }
}
