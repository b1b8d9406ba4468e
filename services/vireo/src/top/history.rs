//! From readings to figures: what came between two of them, and how it went in the last minute.

use super::figures::{Controller, Doing, Figures, Namespace, Queue, Rates, Worker};
use super::latency::{Histogram, Latency, Window};
use super::sample::{ControllerCounts, Counts, Inventory, Sample, Times, WorkerCounts};
use super::trend::Trend;
use std::collections::BTreeMap;

/// Two readings closer than this say little of a rate: the later one is left out. The shortest interval is twice that.
const LEAST_SECONDS: f64 = 0.05;
/// Readings further apart than this are of two times: the machine slept, or a clock was set.
const MOST_SECONDS: f64 = 7200.0;

/// All that was read so far, as far as it is needed.
#[derive(Debug, Default)]
pub struct History {
    before: Option<Sample>,
    now: Option<Sample>,
    inventory: Option<Inventory>,
    workers: BTreeMap<String, Kept>,
    controllers: BTreeMap<String, Kept>,
    /// By controller and worker.
    places: BTreeMap<(String, String), Kept>,
    /// By controller, worker and identifier.
    queues: BTreeMap<(String, String, u32), Kept>,
    namespaces: BTreeMap<String, Kept>,
    total: Trend,
}

/// What is kept of one row.
#[derive(Debug, Default)]
struct Kept {
    trend: Trend,
    latencies: Window,
}

/// Notes each row's value and latencies with what is kept of it, and forgets the rows that are not there any more.
fn keep<'a, K: Ord>(
    kept: &mut BTreeMap<K, Kept>,
    time: f64,
    rows: impl Iterator<Item = (K, Option<f64>, Option<&'a Histogram>)>,
) {
    let mut before = std::mem::take(kept);
    for (key, value, latencies) in rows {
        let mut one = before.remove(&key).unwrap_or_default();
        if let Some(value) = value {
            one.trend.push(time, value);
        }
        if let Some(latencies) = latencies {
            one.latencies.push(time, latencies.clone());
        }
        kept.insert(key, one);
    }
}

/// What is kept of a row's last minute, and its latencies. This reading is a part of both only after it was noted.
fn kept_of(kept: Option<&Kept>) -> (Trend, Option<Latency>) {
    kept.map(|kept| (kept.trend.clone(), kept.latencies.latency())).unwrap_or_default()
}

impl History {
    /// Takes a reading over.
    pub fn sample(&mut self, sample: Sample) {
        if let Some(now) = &self.now {
            let passed = sample.time - now.time;
            if (0.0..LEAST_SECONDS).contains(&passed) {
                return;
            }
            if !(LEAST_SECONDS..MOST_SECONDS).contains(&passed) {
                self.forget();
            }
        }
        self.before = self.now.replace(sample);
        self.note();
    }

    /// Takes over what there is.
    pub fn inventory(&mut self, inventory: Inventory) {
        self.inventory = Some(inventory);
    }

    /// The manager is gone: what comes next is not compared with what was before.
    pub fn interrupt(&mut self) {
        self.before = None;
        self.now = None;
    }

    /// Everything begins anew, but for what there is.
    fn forget(&mut self) {
        *self = Self { inventory: self.inventory.take(), ..Self::default() };
    }

    /// Notes the newest reading where the last seconds are kept; what is no longer there is forgotten.
    fn note(&mut self) {
        let Some((figures, now)) = self.figures().zip(self.now.take()) else { return };
        let time = figures.time;
        let all = |rates: Option<Rates>| rates.map(|rates| rates.all());
        let workers = by_name(Some(&now.workers), |worker| &worker.name);
        let rows = figures.workers.iter().map(|worker| {
            let counts = workers.get(worker.name.as_str());
            (worker.name.clone(), worker.busy_percent, counts.map(|counts| &counts.latencies))
        });
        keep(&mut self.workers, time, rows);
        let controllers = by_name(Some(&now.controllers), |controller| &controller.name);
        let rows = figures.controllers.iter().map(|controller| {
            let counts = controllers.get(controller.name.as_str());
            let latencies = counts.map(|counts| &counts.latencies);
            (controller.name.clone(), all(controller.rates), latencies)
        });
        keep(&mut self.controllers, time, rows);
        let rows = now.controllers.iter().flat_map(|controller| {
            let key = move |worker: &String| (controller.name.clone(), worker.clone());
            controller.on_workers.iter().map(move |(worker, all)| (key(worker), None, Some(all)))
        });
        keep(&mut self.places, time, rows);
        let rows = figures.queues.iter().map(|queue| {
            let key = (queue.controller.clone(), queue.worker.clone(), queue.id);
            (key, queue.commands, None)
        });
        keep(&mut self.queues, time, rows);
        let rows = figures.namespaces.iter();
        let rows = rows.map(|namespace| (namespace.name.clone(), all(namespace.rates), None));
        keep(&mut self.namespaces, time, rows);
        if let Some(rates) = figures.total {
            self.total.push(time, rates.all());
        }
        self.now = Some(now);
    }

    /// The figures of the newest reading; `None` before the first.
    pub fn figures(&self) -> Option<Figures> {
        let now = self.now.as_ref()?;
        let seconds = self.before.as_ref().map(|before| now.time - before.time);
        let controllers: Vec<Controller> = self.all_controllers(now, seconds);
        let rates = controllers.iter().filter_map(|controller| controller.rates);
        let inventory = self.inventory.as_ref();
        let mut failures: Vec<String> =
            inventory.map(|inventory| inventory.missing.clone()).unwrap_or_default();
        failures.extend(now.failures.iter().cloned());
        Some(Figures {
            time: now.time,
            seconds,
            ready: inventory.map(|inventory| inventory.ready),
            failures,
            total: seconds.map(|_| rates.fold(Rates::default(), Rates::plus)),
            workers: self.all_workers(now, seconds),
            queues: self.all_queues(now, seconds),
            namespaces: self.all_namespaces(now, seconds),
            controllers,
            trend: self.total.clone(),
        })
    }

    fn all_workers(&self, now: &Sample, seconds: Option<f64>) -> Vec<Worker> {
        let before = by_name(self.before.as_ref().map(|s| s.workers.as_slice()), |w| &w.name);
        let places = self.inventory.as_ref().map(|inventory| inventory.workers.as_slice());
        let places = by_name(places, |place| &place.name);
        let worker = |counts: &WorkerCounts| {
            let old = before.get(counts.name.as_str()).copied();
            let place = places.get(counts.name.as_str());
            let times = counts.times.zip(old.and_then(|old| old.times));
            let shares = times.and_then(|(new, old)| shares(&new, &old));
            let doing = match (counts.times, shares) {
                (None, _) if place.is_some_and(|place| !place.running) => Doing::Away,
                (None, _) => Doing::Unknown,
                (Some(_), None) => Doing::Unknown,
                (Some(_), Some([busy, polling, asleep])) => {
                    if busy >= polling && busy >= asleep {
                        Doing::Busy
                    } else if polling >= asleep {
                        Doing::Polling
                    } else {
                        Doing::Asleep
                    }
                }
            };
            let polls = times.zip(seconds);
            let (trend, latency) = kept_of(self.workers.get(&counts.name));
            Worker {
                name: counts.name.clone(),
                core: place.and_then(|place| place.core),
                doing,
                busy_percent: shares.map(|shares| shares[0]),
                polling_percent: shares.map(|shares| shares[1]),
                asleep_percent: shares.map(|shares| shares[2]),
                polls: polls.map(|((new, old), seconds)| grown(new.polls, old.polls) / seconds),
                rates: rates(old.map(|old| old.counts), counts.counts, seconds),
                latency,
                errors: counts.counts.errors,
                controllers: place.map_or(0, |place| place.controllers),
                tenant: place.map(|place| place.tenant.clone()).unwrap_or_default(),
                pid: place.map_or(0, |place| place.pid),
                trend,
            }
        };
        sorted(now.workers.iter().map(worker).collect(), |worker| worker.name.clone())
    }

    fn all_controllers(&self, now: &Sample, seconds: Option<f64>) -> Vec<Controller> {
        let before = by_name(self.before.as_ref().map(|s| s.controllers.as_slice()), |c| &c.name);
        let places = self.inventory.as_ref().map(|inventory| inventory.controllers.as_slice());
        let places = by_name(places, |place| &place.name);
        let controller = |counts: &ControllerCounts| {
            let old = before.get(counts.name.as_str()).map(|old| old.counts);
            let place = places.get(counts.name.as_str());
            let (trend, latency) = kept_of(self.controllers.get(&counts.name));
            let rates = rates(old, counts.counts, seconds);
            let state = match place {
                None => "-",
                Some(place) if place.client.is_some() => "connected",
                Some(place) if place.served => "waiting",
                Some(_) => "failed",
            };
            Controller {
                name: counts.name.clone(),
                subsystem: place.map(|place| place.subsystem.clone()).unwrap_or_default(),
                state,
                client: place.and_then(|place| place.client),
                queues_used: counts.queues.len(),
                queues: place.map_or(0, |place| place.queues),
                rates,
                latency,
                depth: rates
                    .zip(latency)
                    .map(|(rates, latency)| rates.all() * latency.mean_ns / 1e9),
                errors: counts.counts.errors,
                trend,
            }
        };
        sorted(now.controllers.iter().map(controller).collect(), |c| c.name.clone())
    }

    fn all_queues(&self, now: &Sample, seconds: Option<f64>) -> Vec<Queue> {
        let positions = |sample: &Sample| {
            let mut all = BTreeMap::new();
            for controller in &sample.controllers {
                for queue in &controller.queues {
                    let key = (controller.name.clone(), queue.worker.clone(), queue.id);
                    all.insert(key, (queue.commands, queue.completions));
                }
            }
            all
        };
        let before = self.before.as_ref().map(positions).unwrap_or_default();
        let mut sums: BTreeMap<String, f64> = BTreeMap::new();
        let mut queues = Vec::new();
        for (key, (commands, completions)) in positions(now) {
            // One that was not there before has done all of it since.
            let (old_commands, old_completions) = before.get(&key).copied().unwrap_or_default();
            let rate = |new, old| seconds.map(|seconds| grown(new, old) / seconds);
            let rate_of_commands = rate(commands, old_commands);
            *sums.entry(key.0.clone()).or_default() += rate_of_commands.unwrap_or(0.0);
            let (trend, _) = kept_of(self.queues.get(&key));
            let place = self.places.get(&(key.0.clone(), key.1.clone()));
            queues.push(Queue {
                trend,
                shared_latency: place.and_then(|kept| kept.latencies.latency()),
                controller: key.0,
                worker: key.1,
                id: key.2,
                commands: rate_of_commands,
                completions: rate(completions, old_completions),
                share_percent: None,
                commands_total: commands,
            });
        }
        for queue in &mut queues {
            let sum = sums.get(&queue.controller).copied().filter(|sum| *sum > 0.0);
            queue.share_percent = queue.commands.zip(sum).map(|(part, sum)| 100.0 * part / sum);
        }
        queues
    }

    fn all_namespaces(&self, now: &Sample, seconds: Option<f64>) -> Vec<Namespace> {
        let counts = |sample: &Sample| {
            let mut all: BTreeMap<String, Counts> = BTreeMap::new();
            for part in sample.controllers.iter().flat_map(|controller| &controller.parts) {
                let sum = all.entry(part.namespace.clone()).or_default();
                *sum = sum.plus(part.counts);
            }
            all
        };
        let before = self.before.as_ref().map(counts).unwrap_or_default();
        let mut all = counts(now);
        let places = self.inventory.as_ref().map(|inventory| inventory.namespaces.as_slice());
        let places = by_name(places, |place| &place.name);
        for name in places.keys() {
            all.entry((*name).to_owned()).or_default();
        }
        let namespace = |(name, counts): (String, Counts)| {
            let place = places.get(name.as_str());
            let old = self.before.as_ref().map(|_| before.get(&name).copied().unwrap_or_default());
            Namespace {
                volume: place.map(|place| place.volume.clone()).unwrap_or_default(),
                state: match place {
                    None => "-",
                    Some(place) if place.served => "served",
                    Some(_) => "failed",
                },
                rates: rates(old, counts, seconds),
                errors: counts.errors,
                trend: kept_of(self.namespaces.get(&name)).0,
                name,
            }
        };
        all.into_iter().map(namespace).collect()
    }
}

/// By their names; the last of equal ones.
fn by_name<T>(all: Option<&[T]>, name: fn(&T) -> &String) -> BTreeMap<&str, &T> {
    let all = all.unwrap_or_default().iter();
    all.map(|one| (name(one).as_str(), one)).collect()
}

fn sorted<T>(mut all: Vec<T>, name: fn(&T) -> String) -> Vec<T> {
    all.sort_by_key(name);
    all
}

/// How much a counter grew; one that begins anew counts from zero.
fn grown(new: u64, old: u64) -> f64 {
    new.checked_sub(old).unwrap_or(new) as f64
}

fn rates(old: Option<Counts>, new: Counts, seconds: Option<f64>) -> Option<Rates> {
    let (old, seconds) = (old?, seconds?);
    let rate = |of: fn(&Counts) -> u64| grown(of(&new), of(&old)) / seconds;
    Some(Rates {
        reads: rate(|counts| counts.reads),
        writes: rate(|counts| counts.writes),
        others: rate(|counts| counts.others),
        read_bytes: rate(|counts| counts.read_bytes),
        written_bytes: rate(|counts| counts.written_bytes),
        errors: rate(|counts| counts.errors),
        throttled: rate(|counts| counts.throttled),
        throttled_seconds: rate(|counts| counts.throttled_ns) / 1e9,
    })
}

/// Parts of 100 of busy, polling and asleep; `None` if nothing of the time between is known, or the worker is another one.
fn shares(new: &Times, old: &Times) -> Option<[f64; 3]> {
    let busy = new.busy_ns.checked_sub(old.busy_ns)? as f64;
    let polling = new.spinning_ns.checked_sub(old.spinning_ns)? as f64;
    let asleep = new.sleeping_ns.checked_sub(old.sleeping_ns)? as f64;
    let all = busy + polling + asleep;
    (all > 0.0).then(|| [busy, polling, asleep].map(|part| 100.0 * part / all))
}

#[cfg(test)]
mod tests;
