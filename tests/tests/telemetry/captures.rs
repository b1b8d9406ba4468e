//! The next commands of a controller, captured.

use std::collections::BTreeSet;

use nvme_spec::{Lba, Nsid};
use tonic::Code;
use vireo_api::v1::CommandStage;
use vireo_tests::host::Host;
use vireo_tests::target::{Target, one_memory_namespace, program, run};
use vireo_tests::wait::until;

use super::api::Capturing;
use super::collector::{Collector, Received};
use super::traces::{assert_child, of, through_a_ring};

const NSID: Nsid = Nsid(1);
const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn captured_commands_are_children_of_the_call_through_worker_and_backend() {
    let collector = Collector::start();
    let keys = format!("otlp = \"{}\"\nsample = 0\nslow = \"off\"\n", collector.endpoint());
    let target = Target::start(&through_a_ring(&keys, ""));
    let mut host = Host::connect(target.socket("vm0"));
    host.write(NSID, Lba(0), &[1; 4096], 512).expect("write");
    let capturing = Capturing::start(&target, 3, Some(CALLER)).expect("it starts");
    for block in 1..=5 {
        host.write(NSID, Lba(block * 8), &[1; 4096], 512).expect("write");
    }
    let commands = capturing.all();
    let told: Vec<(&str, u64, u64, u32)> =
        commands.iter().map(|c| (&*c.operation, c.lba, c.length_bytes, c.status)).collect();
    assert_eq!(told, [("write", 8, 4096, 0), ("write", 16, 4096, 0), ("write", 24, 4096, 0)]);
    for command in &commands {
        assert_eq!((&*command.controller, &*command.worker), ("controllers/vm0", "workers/w0"));
        assert_eq!(command.trace_id, &CALLER[3..35]);
        let stages: BTreeSet<CommandStage> = command.stages.iter().map(|s| s.stage()).collect();
        for stage in [
            CommandStage::Fetch,
            CommandStage::Translate,
            CommandStage::BackendQueue,
            CommandStage::Device,
            CommandStage::Return,
            CommandStage::Completion,
        ] {
            assert!(stages.contains(&stage), "{stage:?} of {command:?}");
        }
    }
    let count = |trace: &[Received], process: &str, name: &str| {
        trace.iter().filter(|one| one.process == process && one.span.name == name).count()
    };
    let trace = collector.await_trace("the call's trace", |trace| {
        count(trace, "worker-w0", "nvme write") == 3
            && count(trace, "worker-w0", "channel") == 3
            && count(trace, "backend-b0", "device") == 3
            && of(trace, "manager-m0", "capture").is_some()
    });
    let capture = of(&trace, "manager-m0", "capture").expect("the capture");
    assert_eq!(hex(&capture.span.trace_id), &CALLER[3..35]);
    let call = of(&trace, "manager-m0", "vireo.v1.TraceService/CaptureCommands").expect("the call");
    assert_eq!(capture.span.parent_span_id, call.span.span_id);
    assert_eq!(hex(&call.span.parent_span_id), &CALLER[36..52], "what the caller said");
    let roots = trace.iter().filter(|one| one.span.name == "nvme write");
    roots.for_each(|one| assert_eq!(one.span.parent_span_id, capture.span.span_id));
    let asked =
        trace.iter().find(|one| one.process == "worker-w0" && one.span.name == "StartCapture");
    assert!(asked.is_some(), "the worker's handling is a part of it: {trace:?}");
    let root = of(&trace, "worker-w0", "nvme write").expect("a command");
    let fetch = trace
        .iter()
        .find(|one| one.span.name == "fetch" && one.span.parent_span_id == root.span.span_id);
    assert_child(fetch.expect("its first stage"), root);
    assert_eq!(root.attribute("vireo.reason").as_deref(), Some("captured"));
}

#[test]
fn a_capture_ends_with_the_client_or_the_worker_and_says_so() {
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    let refused = Capturing::start(&target, 3, None).err().expect("nobody is there");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    let mut host = Host::connect(target.socket("vm0"));
    let capturing = Capturing::start(&target, 100, None).expect("it starts");
    host.write(NSID, Lba(0), &[1; 512], 512).expect("write");
    assert!(capturing.next().is_some_and(|next| next.is_ok()));
    drop(host);
    assert_eq!(capturing.failure(), Code::Aborted);

    let mut host = Host::connect(target.socket("vm0"));
    let capturing = Capturing::start(&target, 100, None).expect("it starts");
    host.write(NSID, Lba(0), &[1; 512], 512).expect("write");
    assert!(capturing.next().is_some_and(|next| next.is_ok()));
    target.kill_and_await_successor("w0");
    assert_eq!(capturing.failure(), Code::Unavailable);
}

#[test]
fn callers_that_leave_make_room_for_others() {
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    let mut host = Host::connect(target.socket("vm0"));
    let start = || Capturing::start(&target, 2, None);
    let four: Vec<Capturing> = (0..4).map(|_| start().expect("there is room")).collect();
    let full = start().err().expect("there is none");
    assert_eq!(full.code(), Code::ResourceExhausted, "{full:?}");
    drop(four);
    let mut last = None;
    until("there is room again", || {
        last = start().ok();
        last.is_some()
    });
    for _ in 0..2 {
        host.read(NSID, Lba(0), 8, 512).expect("read");
    }
    let commands = last.expect("it runs").all();
    assert!(commands.len() == 2 && commands.iter().all(|command| command.operation == "read"));
    // A lease: the worker itself is the device.
    assert!(commands[0].stages.iter().any(|stage| stage.stage() == CommandStage::Device));
    assert!(commands[0].stages.iter().all(|stage| stage.stage() != CommandStage::BackendQueue));
}

#[test]
fn a_person_sees_a_line_for_each_command() {
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    let mut host = Host::connect(target.socket("vm0"));
    let vireo = |arguments: &[&str]| {
        let mut command = std::process::Command::new(program("vireo"));
        command.args(arguments).arg("--runtime-dir").arg(target.site().run_dir());
        command
    };
    let mut seen = String::new();
    // The first ones may come before the capture.
    let capture = vireo(&["trace", "capture", "vm0", "-n", "3"]);
    let person = std::thread::spawn(move || run(capture));
    until("three commands are shown", || {
        host.read(NSID, Lba(64), 8, 512).expect("read");
        person.is_finished()
    });
    let output = person.join().expect("it runs");
    seen += &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{seen}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(seen.lines().count(), 4, "{seen}");
    for part in ["stages in us", "read", "4 KiB", "ok", "device ", "completion "] {
        assert!(seen.contains(part), "{part} in\n{seen}");
    }
    let shown = run(vireo(&["trace", "update", "w0", "--sample", "7"]));
    assert!(shown.status.success());
    let shown = String::from_utf8_lossy(&run(vireo(&["trace", "get"])).stdout).into_owned();
    assert!(shown.contains("w0") && shown.contains(" 7 ") && shown.contains("0.010s"), "{shown}");
}
