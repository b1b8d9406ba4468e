//! Traces of commands that leave the straight way: over a limit, through a pause, as fused pairs, with several requests.

use nvme_spec::command::Fuse;
use nvme_spec::nvm::{CopyRange, DatasetDword11, DatasetRange};
use nvme_spec::{Command, CommandId, Iova, Lba, Nsid, NvmOpcode};
use vireo_api::v1::{CapturedCommand, CommandStage};
use vireo_tests::admin_client::ok;
use vireo_tests::host::{Host, commands};
use vireo_tests::target::Target;
use vireo_tests::wait::until;
use zerocopy::IntoBytes;

use super::api::Capturing;
use super::collector::{Collector, Received};
use super::traces::{assert_child, of, through_a_ring};

const NSID: Nsid = Nsid(1);
const CALLER: &str = "00-5bf92f3577b34da6a3ce929d0e0e4799-10f067aa0ba902b7-01";

/// A read of a page to memory that nobody looks at.
fn read(host: &mut Host, lba: u64) -> Command {
    let buffer = host.memory.allocate(4096);
    commands::io(NvmOpcode::READ, NSID, Lba(lba), 8).with_prps(buffer.iova, Iova(0))
}

/// Takes so many completions, all of which are well.
#[track_caller]
fn take(host: &mut Host, count: usize) {
    for _ in 0..count {
        let completion = host.next_completion(0);
        assert!(completion.status().is_success(), "{completion:?}");
    }
}

#[test]
fn a_limit_is_a_stage_of_a_slow_command_s_trace_and_a_pause_a_part_of_that() {
    let collector = Collector::start();
    let keys = format!("otlp = \"{}\"\nsample = 0\nslow = \"1ms\"\n", collector.endpoint());
    let target = Target::start(&through_a_ring(&keys, "limits = { iops = 4 }\n"));
    let mut host = Host::connect(target.socket("vm0"));
    let again = || host.write(NSID, Lba(64), &[5; 4096], 512).expect("write");
    let trace = collector.await_trace_of("a throttled write's trace", again, |trace| {
        of(trace, "worker-w0", "nvme write").is_some() && of(trace, "worker-w0", "limit").is_some()
    });
    let root = of(&trace, "worker-w0", "nvme write").expect("the command");
    assert_eq!(root.attribute("vireo.reason").as_deref(), Some("slow"));
    assert_eq!(root.attribute("vireo.waited_for").as_deref(), Some("limit"));
    let limit = of(&trace, "worker-w0", "limit").expect("its stage");
    assert_child(limit, root);
    assert_eq!(limit.attribute("vireo.limit.of").as_deref(), Some("controller"));
    assert_eq!(limit.attribute("vireo.limit.rate").as_deref(), Some("iops"));
    for stage in ["fetch", "translate", "channel", "complete"] {
        let stage = of(&trace, "worker-w0", stage).unwrap_or_else(|| panic!("{stage}: {trace:?}"));
        assert_child(stage, root);
    }
    let channel = of(&trace, "worker-w0", "channel").expect("the channel's stage");
    assert!(limit.span.end_time_unix_nano <= channel.span.start_time_unix_nano);

    // What waits is caught by the pause, unless the machine stalls.
    let mut found = Vec::new();
    let read = read(&mut host, 0);
    until("a command waits for its limit through a pause", || {
        for _ in 0..6 {
            host.submit(0, read);
        }
        ok(&target, &["controller", "pause", "vm0", "--timeout", "40s"]);
        ok(&target, &["controller", "resume", "vm0"]);
        take(&mut host, 6);
        let spans = collector.spans();
        let paused = spans.iter().find(|one| one.span.name == "pause");
        let of_it =
            |one: &&Received| paused.is_some_and(|pause| pause.span.trace_id == one.span.trace_id);
        found = spans.iter().filter(of_it).cloned().collect();
        ["nvme read", "limit"].iter().all(|name| of(&found, "worker-w0", name).is_some())
    });
    let root = of(&found, "worker-w0", "nvme read").expect("the command");
    let limit = of(&found, "worker-w0", "limit").expect("its limit");
    let pause = of(&found, "worker-w0", "pause").expect("its pause");
    assert_child(limit, root);
    assert_eq!(pause.span.parent_span_id, limit.span.span_id);
    assert_eq!(root.attribute("vireo.waited_for").as_deref(), Some("limit,pause"));
}

/// A Compare and a Write, a Dataset Management of three ranges, a Copy of two, and a read: one after the other in a queue.
fn submit_all(host: &mut Host) {
    let block = |host: &mut Host| host.memory.allocate(4096).iova;
    let (zeroes, list, sources) = (block(host), block(host), block(host));
    let of = |opcode, at| commands::io(opcode, NSID, Lba(5), 1).with_prps(at, Iova(0));
    let compare = of(NvmOpcode::COMPARE, zeroes).with_fuse(Fuse::FIRST);
    let write = of(NvmOpcode::WRITE, zeroes).with_fuse(Fuse::SECOND);
    host.submit_pair(0, [compare, write]);
    let range = |slba| DatasetRange { slba: Lba(slba), length: 8, ..DatasetRange::default() };
    host.memory.write(list, [range(64), range(80), range(96)].as_bytes());
    let of = |opcode, at| Command::nvm(opcode, CommandId(0), NSID).with_prps(at, Iova(0));
    let cdw11 = DatasetDword11::new().with_ad(true).into_bits();
    let deallocate = of(NvmOpcode::DATASET_MANAGEMENT, list);
    host.submit(0, Command { cdw10: 2, cdw11, ..deallocate });
    let source = |slba| CopyRange { slba: Lba(slba), nlb_z: 7, ..CopyRange::default() };
    host.memory.write(sources, [source(0), source(16)].as_bytes());
    let copy = of(NvmOpcode::COPY, sources).with_slba(Lba(1024));
    host.submit(0, Command { cdw12: 1, ..copy });
    let read = read(host, 8);
    host.submit(0, read);
}

#[test]
fn pairs_ranges_and_throttled_commands_are_captured_below_the_call() {
    let collector = Collector::start();
    let keys = format!("otlp = \"{}\"\nsample = 0\nslow = \"off\"\n", collector.endpoint());
    let target = Target::start(&through_a_ring(&keys, "limits = { iops = 2 }\n"));
    let mut host = Host::connect(target.socket("vm0"));
    let capturing = Capturing::start(&target, 4, Some(CALLER)).expect("it starts");
    submit_all(&mut host);
    take(&mut host, 5);
    let commands = capturing.all();
    let expected = [("compare and write", 1), ("copy", 2), ("dataset management", 3), ("read", 1)];
    let told = |c: &CapturedCommand| (c.operation.clone(), c.requests, c.status);
    let mut told: Vec<(String, u32, u32)> = commands.iter().map(told).collect();
    // Those whose parts come late are told of late.
    told.sort();
    assert_eq!(told, expected.map(|(name, requests)| (name.to_owned(), requests, 0)));
    let has =
        |command: &CapturedCommand, stage| command.stages.iter().any(|one| one.stage() == stage);
    assert!(commands.iter().all(|command| has(command, CommandStage::Device)), "{commands:?}");
    // A machine that stalls between two of them lets the second pass.
    assert!(commands.iter().any(|command| has(command, CommandStage::Limit)), "{commands:?}");

    let roots = |trace: &[Received], name: &str| {
        let name = format!("nvme {name}");
        trace.iter().find(|one| one.process == "worker-w0" && one.span.name == name).cloned()
    };
    let children = |trace: &[Received], name: &str, above: &Received| -> Vec<Received> {
        let is_child = |one: &&Received| {
            one.span.name == name && one.span.parent_span_id == above.span.span_id
        };
        trace.iter().filter(is_child).cloned().collect()
    };
    let devices = |trace: &[Received], name: &str| {
        let root = roots(trace, name)?;
        let [channel] = &children(trace, "channel", &root)[..] else { return None };
        Some(children(trace, "device", channel))
    };
    let trace = collector.await_trace("all parts below the call", |trace| {
        let count = |name: &str| devices(trace, name).map_or(0, |devices| devices.len() as u32);
        expected.iter().all(|(name, requests)| count(name) == *requests)
            && of(trace, "worker-w0", "limit").is_some()
    });
    for (name, requests) in expected {
        let root = roots(&trace, name).expect("the command");
        assert_eq!(root.attribute("vireo.requests"), Some(requests.to_string()), "{name}");
        assert_eq!(root.attribute("vireo.reason").as_deref(), Some("captured"));
        let devices = devices(&trace, name).expect("its requests");
        let bytes = |one: &Received| one.attribute("vireo.bytes");
        let each = if name == "compare and write" { "512" } else { "4096" };
        assert!(devices.iter().all(|one| bytes(one).as_deref() == Some(each)), "{devices:?}");
        assert!(devices.iter().all(|one| one.process == "backend-b0"), "{devices:?}");
    }
}
