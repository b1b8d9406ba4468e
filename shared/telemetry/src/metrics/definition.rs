//! Every metric that there is. Dashboards and rules name no other; a test sees to that.

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Goes up only, from 0 when its process or its segment was made.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution.
    Histogram,
    /// Always 1; what it tells are its labels.
    Info,
}

/// A metric.
#[derive(Debug, PartialEq, Eq)]
pub struct Definition {
    /// Its name without the suffix of its kind.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// One sentence for a person.
    pub help: &'static str,
}

impl Definition {
    /// The names under which its samples are found.
    pub fn sample_names(&self) -> Vec<String> {
        let suffixes: &[&str] = match self.kind {
            Kind::Counter => &["_total"],
            Kind::Gauge => &[""],
            Kind::Histogram => &["_bucket", "_count", "_sum"],
            Kind::Info => &["_info"],
        };
        suffixes.iter().map(|suffix| format!("{}{suffix}", self.name)).collect()
    }

    /// The unit, where the name ends with one.
    pub fn unit(&self) -> Option<&'static str> {
        ["seconds", "bytes"].into_iter().find(|unit| self.name.ends_with(unit))
    }
}

macro_rules! metrics {
    ($($constant:ident: $kind:ident $name:literal $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $constant: Definition =
                Definition { name: $name, kind: Kind::$kind, help: $help };
        )*
        /// All of them, in the order in which a page has them.
        pub static ALL: &[&Definition] = &[$(&$constant),*];
    };
}

metrics! {
    BUILD: Info "vireo_build" "Version of the manager that made this page.";
    READY: Gauge "vireo_ready" "1 if the host serves all that its configuration says.";
    PROCESS_UP: Gauge "vireo_process_up" "1 if the process answered when this page was made.";
    PROCESS_START: Gauge "vireo_process_start_time_seconds" "When the process started, in seconds since 1970; it changes with every restart.";
    PROCESS_RESIDENT: Gauge "vireo_process_resident_memory_bytes" "Memory of the process that is resident, guest memory that it touched included.";
    PROCESS_CPU: Counter "vireo_process_cpu_seconds" "Processor time of the process, user and system.";
    PROCESS_RESTARTS: Counter "vireo_process_restarts" "Times that the process was seen to have been replaced since the manager started.";
    CLIENT_CONNECTED: Gauge "vireo_client_connected" "1 if a client is connected to the endpoint.";
    IO_OPERATIONS: Counter "vireo_io_operations" "Commands completed; op is read (compares and verifies included), write or other.";
    IO_BYTES: Counter "vireo_io_bytes" "Data moved, in bytes; op is read or write.";
    IO_ERRORS: Counter "vireo_io_errors" "Commands that ended with an error; kind is media (status code type 2h, compare failure apart) or other.";
    IO_THROTTLED: Counter "vireo_io_throttled" "Commands that had to wait for a limit of their namespace or controller.";
    IO_THROTTLED_SECONDS: Counter "vireo_io_throttled_seconds" "Time that commands waited for a limit, of those that went on, in sum.";
    IO_DURATION: Histogram "vireo_io_duration_seconds" "Time from fetch to completion of sampled commands; op is read, write or other.";
    IO_QUEUE_COMMANDS: Counter "vireo_io_queue_commands" "Commands fetched from a submission queue since it was created.";
    IO_QUEUE_COMPLETIONS: Counter "vireo_io_queue_completions" "Entries posted to a completion queue since it was created.";
    INTERRUPTS: Counter "vireo_interrupts" "Interrupts raised.";
    CONTROLLER_FAILED: Gauge "vireo_controller_failed" "1 if the worker gave the controller up; reason is memory_fault, stuck_interrupt or queue_unmapped.";
    WORKER_SECONDS: Counter "vireo_worker_seconds" "Time of the poll thread; mode is busy, spin or sleep.";
    WORKER_POLLS: Counter "vireo_worker_polls" "Polls of the poll thread.";
    WORKER_PAUSES: Counter "vireo_worker_pauses" "Pauses of the poll thread; kind is nap (ends by itself) or sleep.";
    TRACE_RECORDS_DROPPED: Counter "vireo_trace_dropped" "Traced commands that found their ring full.";
    SPANS_EXPORTED: Counter "vireo_spans_exported" "Spans that the collector took.";
    SPANS_DROPPED: Counter "vireo_spans_dropped" "Spans that were dropped; reason is queue (the collector is slow) or export (it failed).";
    SCRAPE_SECONDS: Gauge "vireo_scrape_duration_seconds" "How long it took to make this page.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_the_formats_want_them() {
        for (index, definition) in ALL.iter().enumerate() {
            let Definition { name, kind, help } = definition;
            assert!(name.starts_with("vireo_"), "{name}");
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
            assert!(!name.ends_with("_total") && !name.ends_with("_info"), "{name}");
            assert!(help.ends_with('.') && !help.contains(['\n', '\\', '"']), "{name}");
            assert!(*kind != Kind::Histogram || definition.unit() == Some("seconds"), "{name}");
            let twice = ALL[..index].iter().any(|other| other.name == *name);
            assert!(!twice, "{name} is there twice");
        }
    }
}
