//! `vireo trace`: policies, and captures of a controller's commands.

use super::arguments::{Access, Format};
use super::run::{answer, list, one};
use super::session::{Session, full_name, refusal};
use super::{json, show};
use crate::perf::units::{parse_duration, show_size};
use crate::text::print;
use clap::Subcommand;
use std::process::ExitCode;
use std::time::Duration;
use vireo_api::v1::{
    CaptureCommandsRequest, CapturedCommand, CommandStage, GetTracePolicyRequest,
    ListWorkersRequest, TracePolicy, UpdateTracePolicyRequest,
};

/// Of `vireo trace`.
#[derive(Debug, Subcommand)]
pub enum TraceVerb {
    /// Show which commands workers trace.
    Get {
        /// The worker; all if not given.
        worker: Option<String>,
    },
    /// Have a worker trace other commands, until it starts again.
    Update {
        /// The worker.
        worker: String,
        /// One command in so many; 0 for none.
        #[arg(long, value_name = "N", required_unless_present = "slow")]
        sample: Option<u32>,
        /// Commands that take longer, too (`500us`); `0s` for none.
        #[arg(long, value_name = "TIME", value_parser = parse_duration)]
        slow: Option<Duration>,
        /// Check everything, change nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Show the next I/O commands of a controller as they complete, with all their stages.
    Capture {
        /// The controller; its client is connected.
        controller: String,
        /// How many.
        #[arg(short = 'n', long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=4096))]
        count: u32,
        /// How long to wait for them.
        #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
        timeout: Duration,
    },
}

/// Runs a command.
pub(super) async fn run(verb: TraceVerb, access: &Access) -> anyhow::Result<ExitCode> {
    let mut session = Session::open(access).await?;
    match verb {
        TraceVerb::Get { worker: Some(worker) } => {
            let request = GetTracePolicyRequest { name: policy_name(&worker) };
            let policy = answer(session.traces.get_trace_policy(request).await)?;
            one("TracePolicy", &policy, show::TRACE_POLICY, access.output)
        }
        TraceVerb::Get { worker: None } => {
            let workers =
                answer(session.workers.list_workers(ListWorkersRequest::default()).await)?;
            let mut policies = Vec::new();
            for worker in workers.workers.iter().filter(|worker| worker.running) {
                let request = GetTracePolicyRequest { name: policy_name(&worker.name) };
                policies.push(answer(session.traces.get_trace_policy(request).await)?);
            }
            list("TracePolicy", &policies, show::TRACE_POLICY, access.output)
        }
        TraceVerb::Update { worker, sample, slow, dry_run } => {
            let paths = [("sample_interval", sample.is_some()), ("slow_threshold", slow.is_some())];
            let given = paths.into_iter().filter(|(_, given)| *given);
            let paths = given.map(|(path, _)| path.to_owned()).collect();
            let policy = TracePolicy {
                name: policy_name(&worker),
                sample_interval: sample.unwrap_or_default(),
                slow_threshold: slow.map(prost_types::Duration::try_from).transpose()?,
                ..TracePolicy::default()
            };
            let request = UpdateTracePolicyRequest {
                trace_policy: Some(policy),
                update_mask: Some(prost_types::FieldMask { paths }),
                validate_only: dry_run,
            };
            let policy = answer(session.traces.update_trace_policy(request).await)?;
            one("TracePolicy", &policy, show::TRACE_POLICY, access.output)
        }
        TraceVerb::Capture { controller, count, timeout } => {
            let request = CaptureCommandsRequest {
                name: full_name("controllers", &controller),
                count,
                timeout: Some(timeout.try_into()?),
            };
            capture(&mut session, request, access.output).await
        }
    }
}

fn policy_name(worker: &str) -> String {
    let worker = full_name("workers", worker);
    if worker.ends_with("/tracePolicy") { worker } else { format!("{worker}/tracePolicy") }
}

async fn capture(
    session: &mut Session,
    request: CaptureCommandsRequest,
    format: Format,
) -> anyhow::Result<ExitCode> {
    let wanted = request.count;
    let mut stream = answer(session.traces.capture_commands(request).await)?;
    if format == Format::Table {
        print(&format!(
            "{:<14} {:<18} {:>4} {:>5} {:>6} {:>14} {:>9} {:>7} {:>10}  {}\n",
            "time",
            "operation",
            "nsid",
            "queue",
            "cid",
            "lba",
            "length",
            "status",
            "us",
            "stages in us"
        ))?;
    }
    let (mut count, mut lost) = (0, 0);
    while let Some(message) = stream.message().await.map_err(|status| refusal(&status))? {
        lost = message.lost;
        let Some(command) = message.command else { continue };
        count += 1;
        match format {
            Format::Table => print(&line(&command))?,
            Format::Json => print(&format!("{}\n", json::of("CapturedCommand", &command)?))?,
            Format::Yaml => {
                print("---\n")?;
                show::structured(&json::of("CapturedCommand", &command)?, format)?;
            }
        }
    }
    if lost > 0 {
        eprintln!("{lost} commands came too fast to be kept");
    }
    if count < wanted {
        eprintln!("{count} of {wanted} commands within the time");
    }
    Ok(ExitCode::SUCCESS)
}

fn line(command: &CapturedCommand) -> String {
    let time = command.fetch_time.map(|time| time.to_string()).unwrap_or_default();
    // Without the date: 12:34:56.789012
    let time: String = time.chars().skip(11).take(14).collect();
    let stages = command.stages.iter().map(|stage| {
        let name = show::word(stage.stage().as_str_name()).replace('_', " ");
        let requests = match (stage.stage(), command.requests) {
            (CommandStage::Device, 2..) => format!(" in {} requests", command.requests),
            _ => String::new(),
        };
        format!("{name} {:.1}{requests}", micros(stage.duration.as_ref()))
    });
    format!(
        "{time:<14} {:<18} {:>4} {:>5} {:>6} {:>14} {:>9} {:>7} {:>10.1}  {}\n",
        command.operation,
        command.nsid,
        command.queue,
        command.cid,
        command.lba,
        show_size(command.length_bytes as f64),
        if command.status == 0 { "ok".to_owned() } else { format!("{:#x}", command.status) },
        micros(command.duration.as_ref()),
        stages.collect::<Vec<_>>().join(", "),
    )
}

fn micros(duration: Option<&prost_types::Duration>) -> f64 {
    duration.map_or(0.0, |d| d.seconds as f64 * 1e6 + f64::from(d.nanos) / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vireo_api::v1::CapturedStage;

    #[test]
    fn a_command_is_a_line() {
        let nanos = |nanos| Some(prost_types::Duration { seconds: 0, nanos });
        let stage = |stage: CommandStage, took| CapturedStage {
            stage: stage.into(),
            start: nanos(0),
            duration: nanos(took),
        };
        let command = CapturedCommand {
            fetch_time: Some(prost_types::Timestamp { seconds: 3_723, nanos: 45_000_000 }),
            operation: "read".to_owned(),
            status: 0x281,
            length_bytes: 4096,
            duration: nanos(12_300),
            stages: vec![
                stage(CommandStage::BackendQueue, 1_500),
                stage(CommandStage::Device, 2_500),
            ],
            requests: 3,
            ..CapturedCommand::default()
        };
        let line = line(&command);
        for part in
            ["01:02:03.045", "read", "4 KiB", "0x281", "12.3", "backend queue 1.5, device 2.5 in 3"]
        {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert_eq!(policy_name("w0"), "workers/w0/tracePolicy");
        assert_eq!(policy_name("workers/w0/tracePolicy"), "workers/w0/tracePolicy");
    }
}
