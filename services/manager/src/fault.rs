//! Faults that are injected into volumes: the manager holds them, workers are told all of them whenever they change, and
//! again when a worker starts anew. They are kept nowhere else: they end with the manager, whose successor says so to the
//! workers.

use ipc::layout::faults::{FaultsLayout, MAX_FAULTS};
use ipc::segment::{Segment, SegmentError};
use service::config::{Config, Kind};
use service::control::{Client, Session};
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use vireo_proto::handoff::{self, SetFaults, request};

/// How long a change waits for workers.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long it waits for a worker that is not there: one that starts just now is.
const AWAY: Duration = Duration::from_millis(500);
/// Pause before a worker that refused is told again.
const PAUSE: Duration = Duration::from_secs(1);

/// A fault.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fault {
    /// The volume's name.
    pub(crate) volume: String,
    /// The last part of its own.
    pub(crate) id: String,
    /// What workers are told; its number and slot are set when it is added.
    pub(crate) told: handoff::Fault,
}

/// What a fault counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Requests that it was about.
    pub(crate) seen: u64,
    /// Of these, requests that it hit.
    pub(crate) hit: u64,
}

/// Why a fault was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotAdded {
    /// One of this name is there.
    Exists,
    /// There are as many as there can be.
    TooMany,
}

/// All faults of the host.
pub(crate) struct Faults {
    table: Mutex<Table>,
    counters: Segment<FaultsLayout>,
    /// Number of the last change.
    changes: watch::Sender<u64>,
    /// How far each worker is.
    workers: watch::Sender<Vec<(String, Told)>>,
}

#[derive(Debug, Default)]
struct Table {
    faults: Vec<Fault>,
    last: u64,
}

/// How far a worker is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Away,
    /// It has all up to this change.
    Has(u64),
    /// It refused this change.
    Refused(u64, String),
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").field("table", &self.table).finish_non_exhaustive()
    }
}

impl Faults {
    /// None, and the workers of `config`.
    ///
    /// # Errors
    /// There is no memory for what faults count.
    pub(crate) fn new(config: &Config) -> Result<Arc<Self>, SegmentError> {
        let workers = config.workers.iter().map(|worker| (worker.name.clone(), Told::Away));
        Ok(Arc::new(Self {
            table: Mutex::default(),
            counters: Segment::create("vireo-faults", 0)?,
            changes: watch::Sender::new(0),
            workers: watch::Sender::new(workers.collect()),
        }))
    }

    /// Tells all workers whatever changes, for ever.
    pub(crate) async fn run(self: Arc<Self>, config: Config) {
        let mut tasks = JoinSet::new();
        for worker in &config.workers {
            let client = Client::new(config.socket(Kind::Worker, &worker.name), "manager-faults");
            tasks.spawn(Arc::clone(&self).tell(worker.name.clone(), client));
        }
        while tasks.join_next().await.is_some() {}
    }

    async fn tell(self: Arc<Self>, worker: String, client: Client) {
        let (mut sessions, mut changes) = (client.watch(), self.changes.subscribe());
        loop {
            let session = sessions.borrow_and_update().clone().filter(|s| !s.is_closed());
            let Some(session) = session else {
                self.note(&worker, Told::Away);
                if sessions.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let number = *changes.borrow_and_update();
            let told = self.tell_once(&session, number).await;
            let refused = matches!(told, Told::Refused(..));
            self.note(&worker, told);
            tokio::select! {
                changed = sessions.changed() => if changed.is_err() { return },
                changed = changes.changed() => if changed.is_err() { return },
                () = session.closed() => {}
                () = tokio::time::sleep(PAUSE), if refused => {}
            }
        }
    }

    async fn tell_once(&self, session: &Session, number: u64) -> Told {
        let faults = self.table().faults.iter().map(|fault| fault.told.clone()).collect();
        let body = request::Body::SetFaults(SetFaults { faults });
        match session.tell(body, &[self.counters.fd()]).await {
            Ok(_) => Told::Has(number),
            Err(error) => Told::Refused(number, error.line()),
        }
    }

    fn note(&self, worker: &str, told: Told) {
        self.workers.send_if_modified(|workers| {
            let mut place = workers.iter_mut().filter(|(name, _)| name == worker);
            place.next().is_some_and(|(_, old)| std::mem::replace(old, told.clone()) != told)
        });
    }

    /// All faults in the order in which they were made, with what they counted. Those of volumes that are gone go.
    pub(crate) fn list(&self, config: &Config) -> Vec<(Fault, Counts)> {
        let mut table = self.table();
        table.faults.retain(|fault| config.bdev(&fault.volume).is_some());
        let counted = |fault: &Fault| {
            let counters = &self.counters.rules[fault.told.slot as usize % MAX_FAULTS];
            // Relaxed: counters that stand for themselves.
            let seen = counters.seen.load(Ordering::Relaxed);
            let hit = counters.hit.load(Ordering::Relaxed);
            // A rule for the next so many goes on counting what it sees.
            (fault.clone(), Counts { seen, hit })
        };
        table.faults.iter().map(counted).collect()
    }

    /// Adds a fault behind those that are there. An empty id is replaced. Nothing is added if `only_check`.
    pub(crate) fn add(&self, mut fault: Fault, only_check: bool) -> Result<Fault, NotAdded> {
        let mut table = self.table();
        if table.faults.len() >= MAX_FAULTS {
            return Err(NotAdded::TooMany);
        }
        let number = table.last + 1;
        if fault.id.is_empty() {
            fault.id = format!("fault-{number}");
        }
        if table.faults.iter().any(|old| (&old.volume, &old.id) == (&fault.volume, &fault.id)) {
            return Err(NotAdded::Exists);
        }
        let taken = |slot: &u32| table.faults.iter().any(|old| old.told.slot == *slot);
        let slot = (0..MAX_FAULTS as u32).find(|slot| !taken(slot)).ok_or(NotAdded::TooMany)?;
        (fault.told.id, fault.told.slot) = (number, slot);
        if !only_check {
            let counters = &self.counters.rules[slot as usize % MAX_FAULTS];
            counters.seen.store(0, Ordering::Relaxed);
            counters.hit.store(0, Ordering::Relaxed);
            table.last = number;
            table.faults.push(fault.clone());
            self.changes.send_modify(|change| *change += 1);
        }
        Ok(fault)
    }

    /// Takes out the faults that `is` holds of; how many. Nothing is taken out if `only_check`.
    pub(crate) fn remove(&self, is: impl Fn(&Fault) -> bool, only_check: bool) -> usize {
        let mut table = self.table();
        let count = table.faults.iter().filter(|fault| is(fault)).count();
        if !only_check && count > 0 {
            table.faults.retain(|fault| !is(fault));
            self.changes.send_modify(|change| *change += 1);
        }
        count
    }

    /// Waits until every worker that is there knows of all changes so far.
    ///
    /// # Errors
    /// One line about a worker that does not.
    pub(crate) async fn settled(&self) -> Result<(), String> {
        let number = *self.changes.borrow();
        let mut workers = self.workers.subscribe();
        let start = tokio::time::Instant::now();
        let has = |told: &Told, absent: bool| match told {
            Told::Has(has) => *has >= number,
            Told::Away => absent,
            Told::Refused(..) => false,
        };
        let refused = |told: &Told| matches!(told, Told::Refused(change, _) if *change >= number);
        let early = workers.wait_for(|all| all.iter().all(|(_, told)| has(told, false)));
        if tokio::time::timeout(AWAY, early).await.is_ok() {
            return Ok(());
        }
        let late = workers.wait_for(|all| {
            all.iter().all(|(_, told)| has(told, true)) || all.iter().any(|(_, told)| refused(told))
        });
        tokio::time::timeout_at(start + PATIENCE, late).await.ok();
        let workers = self.workers.borrow();
        let Some((name, told)) = workers.iter().find(|(_, told)| !has(told, true)) else {
            return Ok(());
        };
        Err(match told {
            Told::Refused(_, line) => format!("worker {name}: {line}"),
            Told::Away | Told::Has(_) => format!("worker {name} has not answered yet"),
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
