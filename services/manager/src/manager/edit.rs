//! Changes of what is wanted that come through the API.

use super::{Manager, RELOAD_WAIT, line};
use crate::change::compare;
use crate::event::{self, Event};
use crate::made::{self, Request};
use crate::object::Object;
use crate::store::StoreError;
use crate::view::{Standing, View};
use service::config::{Config, Mistake};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use vireo_proto::{ErrorCode, Failure};

/// How a change is asked for.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// The caller's identifier of the request and a digest of its content.
    pub request: Option<(String, u64)>,
    /// Only say what would be.
    pub validate_only: bool,
}

/// What came of a change.
#[derive(Clone, Debug)]
pub struct Edited {
    /// What the change was about.
    pub object: Object,
    /// What is wanted now, or would be.
    pub view: View,
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// Fields of the object are wrong; keys are those of the configuration below the object's own.
    #[error("{} has mistakes", object)]
    Invalid {
        /// The object.
        object: Object,
        /// At least one.
        mistakes: Vec<Mistake>,
    },
    /// It is there already.
    #[error("{0} is there already")]
    Exists(Object),
    /// It is not there.
    #[error("{0} is not there")]
    Missing(Object),
    /// It stands in the configuration file.
    #[error("{0} belongs to the configuration file: change it there, and reload")]
    OfFile(Object),
    /// The caller has seen another one.
    #[error("{0} has changed: its etag is another one")]
    Changed(Object),
    /// Something stands in the way.
    #[error("{object}: {reason}")]
    InTheWay {
        /// What was to be changed.
        object: Object,
        /// What stands in the way, and what helps.
        reason: String,
    },
    /// The request's identifier was that of another request.
    #[error("the request with this identifier was another one")]
    OtherRequest,
    /// A process must be there to tell whether the change is possible.
    #[error("{0}")]
    Unavailable(String),
    /// A limit was reached.
    #[error("{0}")]
    TooMuch(String),
    /// The state could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A process could not do it; nothing is left of it.
    #[error("{object} cannot be served: {reason}")]
    Failed {
        /// The object.
        object: Object,
        /// The process's reason.
        reason: String,
    },
    /// This process has failed.
    #[error("{0}")]
    Internal(String),
}

impl Manager {
    /// What is wanted, and how far the host is.
    pub fn view(&self) -> View {
        let store = self.store();
        let goal = Arc::clone(&self.goals.borrow());
        View {
            desired: goal.desired.clone(),
            made: store.state().made.clone(),
            generation: goal.generation,
            progress: self.reconciler.progress().borrow().clone(),
        }
    }

    /// Changes what is wanted: `work` edits a copy, which is then checked as a whole, stored, and brought about. When
    /// this returns, the processes serve it, or say why not, or have not answered within 8 s; what `work` added and a
    /// process refuses is taken back.
    ///
    /// # Errors
    /// [`EditError`]; what was wanted before is wanted still.
    pub async fn edit(
        &self,
        call: Call,
        work: impl FnOnce(&mut View) -> Result<Object, EditError> + Send,
    ) -> Result<Edited, EditError> {
        let _serial = self.reload.lock().await;
        let before = self.view();
        if let Some((id, digest)) = &call.request
            && let Some(known) = before.made.requests.iter().find(|known| known.id == *id)
        {
            let object = known.object.clone();
            let same = known.digest == *digest;
            return if same {
                Ok(Edited { object, view: before })
            } else {
                Err(EditError::OtherRequest)
            };
        }
        let mut after = before.clone();
        let object = work(&mut after)?;
        after.made.forget_ids();
        if after.desired.config == before.desired.config && after.made == before.made {
            return Ok(Edited { object, view: before });
        }
        self.check(&before, &after, &object).await?;
        if call.validate_only {
            after.generation += 1;
            return Ok(Edited { object, view: after });
        }
        if let Some((id, digest)) = call.request {
            after.made.remember(Request { id, digest, object: object.clone() });
        }
        let is_new = object.is_in(&after.desired.config) && !object.is_in(&before.desired.config);
        self.want(&after)?;
        let view = self.settled().await;
        match view.standing(&object) {
            Standing::Failed(reason) if is_new && !is_away(&view, &object) => {
                self.want(&before)?;
                self.settled().await;
                Err(EditError::Failed { object, reason })
            }
            Standing::Ready | Standing::Reconciling | Standing::Failed(_) => {
                self.tell_differences(&before.desired.config, &after.desired.config, "by the API");
                Ok(Edited { object, view })
            }
        }
    }

    /// Checks `after` as a whole: its text, the machine, and what can change while guests run.
    async fn check(&self, before: &View, after: &View, object: &Object) -> Result<(), EditError> {
        let config = after.desired.config.clone();
        let mistakes = tokio::task::spawn_blocking(move || {
            let mut mistakes = made::mistakes(&config);
            if mistakes.is_empty() {
                mistakes = config.check_machine();
            }
            mistakes
        });
        let mistakes = mistakes.await.map_err(|error| EditError::Internal(error.to_string()))?;
        let key = object.key(&after.desired.config);
        let own = |mistake: &Mistake| {
            let rest = mistake.key.strip_prefix(key.as_deref()?)?.strip_prefix('.')?;
            Some(Mistake { key: rest.to_owned(), ..mistake.clone() })
        };
        let of_object: Vec<Mistake> = mistakes.iter().filter_map(own).collect();
        if !of_object.is_empty() {
            return Err(EditError::Invalid { object: object.clone(), mistakes: of_object });
        }
        // What the machine lacks for others (a file, a core) was so before, and is theirs.
        let (old, new) = (&before.desired.config, &after.desired.config);
        let text = made::mistakes(new);
        let lines: Vec<String> = text.iter().map(|m| after.made.line(m, new)).collect();
        let in_the_way = |reason| EditError::InTheWay { object: object.clone(), reason };
        if !lines.is_empty() {
            return Err(in_the_way(lines.join("; ")));
        }
        let unavailable = |failure: Failure| EditError::Unavailable(failure.message().to_owned());
        let sizes = self.sizes(new).await.map_err(unavailable)?;
        compare(&before.desired, new, &sizes).map_err(|refused| in_the_way(refused.join("; ")))?;
        debug_assert!(old != new || before.made != after.made, "there is something to change");
        Ok(())
    }

    /// Makes what `view` wants durable, and the reconciler's goal.
    fn want(&self, view: &View) -> Result<(), EditError> {
        let desired = view.desired.clone();
        self.pursue(desired.config, view.made.clone(), desired.identities).map(|_| ()).map_err(
            |refused| match refused {
                super::Refused::Store(error) => EditError::Store(error),
                super::Refused::Failure(failure) => match failure.code() {
                    ErrorCode::ResourceExhausted => {
                        EditError::TooMuch(failure.message().to_owned())
                    }
                    ErrorCode::FailedPrecondition => {
                        EditError::Unavailable(failure.message().to_owned())
                    }
                    _ => EditError::Internal(failure.message().to_owned()),
                },
            },
        )
    }

    /// Waits until the processes have answered to the present goal, or for long enough.
    async fn settled(&self) -> View {
        let generation = self.goals.borrow().generation;
        let mut progress = self.reconciler.progress();
        let done = progress.wait_for(|p| p.generation == generation && p.settled);
        // What has not answered by then is in the view as such.
        tokio::time::timeout(RELOAD_WAIT, done).await.ok();
        self.view()
    }

    /// Tells watchers and the log what changed.
    pub(super) fn tell_differences(&self, old: &Config, new: &Config, how: &str) {
        for (kind, object) in event::differences(old, new) {
            tracing::info!(%object, change = kind.as_str(), how, "changed");
            self.events.tell(Event {
                kind,
                name: object.to_string(),
                message: format!("{} {how}", kind.as_str()),
            });
        }
    }
}

/// True if the object is not served because its process is not there, which says nothing of the object.
fn is_away(view: &View, object: &Object) -> bool {
    let away = |(process, _)| view.progress.failures.contains(&format!("{process}: is not there"));
    object.served_as(&view.desired.config).is_some_and(away)
}

/// Now, in milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl From<std::io::Error> for EditError {
    fn from(error: std::io::Error) -> Self {
        Self::Internal(line(&error))
    }
}
