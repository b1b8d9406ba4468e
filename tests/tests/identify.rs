//! `vireo identify` against real targets: what it says is so, in words as in JSON.

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use vireo_tests::command::vireo;
use vireo_tests::target::{Site, Target, configuration, one_memory_namespace};

/// Two namespaces of different kinds.
const TABLES: &str = "[[bdev]]\nname = \"mem0\"\ndriver = \"malloc\"\nsize = \"64MiB\"\nblock_size = 4096\n\
     [[bdev]]\nname = \"disk\"\ndriver = \"file\"\npath = \"@DIR@/disk\"\nread_only = true\n\
     [[subsystem]]\nname = \"s0\"\nserial = \"IDENT0001\"\nmodel = \"A model of its own\"\n\
     nqn = \"nqn.2014-08.org.nvmexpress:uuid:12345678-1234-1234-1234-123456789abc\"\n\
     [[subsystem.namespace]]\nnsid = 2\nbdev = \"mem0\"\n\
     [[subsystem.namespace]]\nnsid = 9\nbdev = \"disk\"\n\
     [[endpoint]]\nname = \"vm0\"\nsubsystem = \"s0\"\nqueues = 7\nmax_transfer = \"512KiB\"\n\
     [[subsystem]]\nname = \"empty\"\n\
     [[endpoint]]\nname = \"vm1\"\nsubsystem = \"empty\"\n";

fn start() -> (Target, String, String) {
    let site = Site::new(&configuration(TABLES));
    std::fs::write(site.directory().join("disk"), vec![0; 3 << 20]).expect("write");
    let target = Target::start_in(site);
    let address = |name| format!("vfio-user:{}", target.endpoint(name).display());
    let (full, empty) = (address("vm0"), address("vm1"));
    (target, full, empty)
}

/// The words of a fact: the lines from the one with its label up to the next label.
fn fact<'a>(text: &'a str, title: &str, label: &str) -> Vec<&'a str> {
    let section = text.split("\n\n").find(|section| section.starts_with(title));
    let section = section.unwrap_or_else(|| panic!("no section {title} in\n{text}"));
    let start = format!("  {label} ");
    let mut lines = section.lines().skip_while(|line| !line.starts_with(&start));
    let first = lines.next().unwrap_or_else(|| panic!("no {label} in\n{section}"));
    let more = lines.take_while(|line| line.starts_with("      "));
    std::iter::once(first[start.len()..].trim()).chain(more.map(str::trim)).collect()
}

fn strings<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => found.push(text),
        Value::Array(values) => values.iter().for_each(|value| strings(value, found)),
        Value::Object(values) => values.values().for_each(|value| strings(value, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[test]
fn words_and_json_say_what_was_configured() {
    let (target, address, _) = start();
    let text = vireo(["identify", &address]).success();
    let json = vireo(["identify", &address, "-o", "json"]);
    json.success();
    let json = json.json();
    assert_eq!(json["schema"], 1);

    let controller = &json["controller"];
    assert_eq!(controller["serial_number"], "IDENT0001");
    assert_eq!(controller["model"], "A model of its own");
    assert_eq!(controller["nvme_version"], "2.0");
    let limits = &json["limits"];
    assert_eq!(
        (&limits["io_queue_pairs"], &limits["max_transfer_bytes"]),
        (&7.into(), &(512 << 10).into())
    );
    assert_eq!(limits["doorbell_stride_bytes"], 4);
    assert_eq!(fact(&text, "Limits", "largest transfer"), ["512 KiB (MDTS 7)"]);
    assert_eq!(fact(&text, "Limits", "memory page size"), ["4 KiB to 64 KiB"]);
    assert_eq!(fact(&text, "Limits", "I/O queue pairs"), ["7"]);
    assert_eq!(json["supports"]["io_commands"]["compare_and_write"], true);
    assert_eq!(json["supports"]["io_commands"]["reservations"], false);
    let admin = fact(&text, "What it supports", "admin commands").join(" ");
    let (there, absent) = admin.split_once("not supported: ").expect("both");
    assert!(there.contains("Format NVM") && absent.contains("Namespace Management"), "{admin}");

    let namespaces = json["namespaces"].as_array().expect("a list");
    let [memory, disk] = namespaces.as_slice() else { panic!("two namespaces: {namespaces:#?}") };
    assert_eq!((&memory["nsid"], &disk["nsid"]), (&2.into(), &9.into()));
    assert_eq!(
        (&memory["size_bytes"], &disk["size_bytes"]),
        (&(64 << 20).into(), &(3 << 20).into())
    );
    assert_eq!((&memory["block_bytes"], &disk["block_bytes"]), (&4096.into(), &512.into()));
    assert_eq!(
        (&memory["write_protected"], &disk["write_protected"]),
        (&false.into(), &true.into())
    );
    assert_eq!(fact(&text, "Namespace 2", "size"), ["64 MiB: 16384 blocks of 4096 bytes"]);
    assert_eq!(fact(&text, "Namespace 9", "size"), ["3 MiB: 6144 blocks of 512 bytes"]);
    assert_eq!(fact(&text, "Namespace 2", "formats"), ["0: 512 bytes", "1: 4096 bytes, in use"]);
    assert_eq!(fact(&text, "Namespace 9", "writable"), ["no: write protected"]);
    let uuid = memory["uuid"].as_str().expect("a UUID");
    assert_eq!(fact(&text, "Namespace 2", "identifiers")[0], format!("UUID {uuid}"));

    // What is text in the one is in the other; lines that were broken are put together for that.
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut found = Vec::new();
    strings(&json, &mut found);
    assert!(found.len() > 40, "{found:?}");
    for word in found {
        let known = ["zeroes", "namespace", "all", "No Write Protect", "Write Protect", "ones"];
        assert!(known.contains(&word) || flat.contains(word), "{word:?} in\n{text}");
    }
    assert!(target.stop().success());
}

#[test]
fn it_asks_for_nothing_that_a_controller_refuses() {
    let (_target, address, _) = start();
    for _ in 0..2 {
        let json = vireo(["identify", &address, "-o", "json"]);
        json.success();
        let json = json.json();
        assert_eq!(json["smart"]["error_log_entries"], 0, "{:#}", json["logs"]["errors"]);
        assert_eq!(json["logs"]["errors"], serde_json::json!([]));
        let features = json["features"].as_object().expect("an object");
        let supported: Vec<_> = features.values().filter(|one| one["supported"] == true).collect();
        assert!(supported.len() >= 10, "{features:#?}");
        assert_eq!(features["keep_alive_timer"]["supported"], false);
        assert_eq!(features["number_of_queues"]["submission_queues"], 7);
    }
}

#[test]
fn health_counts_what_was_done() {
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    let address = format!("vfio-user:{}", target.endpoint("vm0").display());
    let json = |what: &str| {
        let json = vireo(["identify", &address, "-o", "json"]);
        json.success();
        json.json()["smart"][what].as_u64().expect("a number")
    };
    assert_eq!((json("written_bytes"), json("write_commands")), (0, 0));
    let load =
        "--pattern write --size 16MiB --block-size 64KiB --rate 1000 --time 200ms --warm-up 0s";
    vireo(["perf", &address].into_iter().chain(load.split(' '))).success();
    let (bytes, commands) = (json("written_bytes"), json("write_commands"));
    assert!(commands > 0);
    // A data unit is 512,000 bytes, and a started one counts.
    assert_eq!(bytes, (commands * 65_536).div_ceil(512_000) * 512_000);
    let text = vireo(["identify", &address]).success();
    let written = fact(&text, "Health", "written");
    assert!(written[0].ends_with(&format!("by {commands} commands")), "{written:?}");
}

#[test]
fn one_namespace_can_be_asked_for_and_none_is_told() {
    let (_target, address, empty) = start();
    let json = vireo(["identify", &address, "--namespace", "9", "-o", "json"]);
    json.success();
    let json = json.json();
    assert_eq!(json["namespaces"].as_array().map(Vec::len), Some(1));
    assert_eq!(json["namespaces"][0]["nsid"], 9);
    vireo(["identify", &address, "--namespace", "7"])
        .refused(1, &["namespace 7 is not there", "active: 2, 9", "--namespace"]);
    vireo(["identify", &empty, "--namespace", "1"])
        .refused(1, &["namespace 1 is not there", "active: none"]);
    let text = vireo(["identify", &empty]).success();
    assert!(!text.contains("\nNamespace "), "{text}");
    assert_eq!(fact(&text, "Namespaces", "active"), ["none"]);
    let json = vireo(["identify", &empty, "-o", "json"]).json();
    assert_eq!(json["namespaces"], serde_json::json!([]));
}

#[test]
fn a_controller_in_use_is_told_as_that() {
    let (target, address, _) = start();
    let client = vfio_user::client::Client::connect(target.socket("vm0")).expect("connect");
    let mut client = client;
    client
        .version(&vfio_user::client::VersionStyle::Json(vfio_user::version::Proposal {
            major: 0,
            minor: 0,
            capabilities: vfio_user::version::Capabilities::default(),
        }))
        .expect("version");
    // Of four seconds three are for the target's answer; then there must be time to say so.
    vireo_tests::wait::despite_stalls(|| {
        vireo(["identify", &address, "--timeout", "4s"]).refused(1, &["serves another client"]);
    });
    drop(client);
    vireo_tests::wait::until("the next client is served", || {
        vireo(["identify", &address]).output.status.success()
    });
}

#[test]
fn a_target_that_stops_answering_is_given_up_in_time() {
    let (target, address, _) = start();
    // The frontend: nothing answers. The worker: all does but that no I/O queue comes into being.
    for (process, command, option) in [
        ("f0", "identify", "--timeout"),
        ("f0", "perf", "--connect-timeout"),
        ("w0", "perf", "--connect-timeout"),
    ] {
        let pid = target.pid(process);
        kill(pid, Signal::SIGSTOP).expect("stop a process of our own");
        let ended = vireo([command, &address, option, "4s"]);
        kill(pid, Signal::SIGCONT).expect("let it go on");
        ended.refused(1, &["restart it"]);
        // Whatever is left of the client is cleared away, and the next one is served.
        vireo_tests::wait::until("the next client is served", || {
            vireo(["identify", &address]).output.status.success()
        });
    }
}

#[test]
fn a_target_that_stops_answering_in_the_middle_is_given_up_in_time() {
    let (target, address, _) = start();
    let pid = target.pid("f0");
    let mut given_up = 0;
    // Moments all over what an identify takes, which is told by a run before. If that one met a machine that stalled, they
    // all come too late: once more then.
    for part in (1..=6).cycle().take(30) {
        if part == 1 && given_up > 0 {
            break;
        }
        let whole = vireo(["identify", &address]);
        whole.success();
        let theirs = address.clone();
        let run = std::thread::spawn(move || vireo(["identify", &theirs, "--timeout", "4s"]));
        std::thread::sleep(whole.took * part / 7);
        kill(pid, Signal::SIGSTOP).expect("stop a process of our own");
        let ended = run.join().expect("the thread that waits");
        kill(pid, Signal::SIGCONT).expect("let it go on");
        if !ended.output.status.success() {
            given_up += 1;
            ended.refused(1, &["vireo identify: ", "restart it"]);
        }
        vireo_tests::wait::until("the next client is served", || {
            vireo(["identify", &address]).output.status.success()
        });
    }
    assert!(given_up > 0, "each of them was done before");
}

/// A PCI device of this machine that another driver has, or none.
fn device_of_another_driver() -> Option<String> {
    let devices = std::fs::read_dir("/sys/bus/pci/devices").ok()?;
    let of_another = |device: &std::fs::DirEntry| {
        let driver = std::fs::read_link(device.path().join("driver"));
        driver.is_ok_and(|driver| !driver.ends_with("vfio-pci"))
    };
    let device = devices.flatten().find(of_another)?;
    Some(device.file_name().to_string_lossy().into_owned())
}

#[test]
fn a_device_of_another_driver_is_told_with_what_binds_it() {
    // Machines without PCI have none; the guest tests see to it then.
    let Some(device) = device_of_another_driver() else { return };
    for command in ["perf", "identify"] {
        vireo([command, &format!("pcie:{device}")])
            .refused(1, &[&device, "not to vfio-pci", "driver_override"]);
    }
}

#[test]
fn mistakes_of_the_command_line_have_exit_status_2() {
    vireo(["identify", "vfio-user:/x", "--timeout", "1ms"]).refused(2, &["--timeout"]);
    vireo(["identify", "tcp:host"]).refused(2, &["\"tcp:host\"", "pcie:0000:01:00.0"]);
    for words in [&["identify"][..], &["identify", "vfio-user:/x", "--namespace", "0"]] {
        let ended = vireo(words.iter().copied());
        assert_eq!(ended.output.status.code(), Some(2), "{}", ended.stderr());
    }
}

#[test]
fn a_reader_that_stops_reading_is_no_error() {
    let (_target, address, _) = start();
    let mut command = std::process::Command::new("bash");
    command.args(["-c", "set -o pipefail; \"$@\" | head -1", "bash"]);
    command.arg(vireo_tests::target::program("vireo")).args(["identify", &address]);
    let output = vireo_tests::target::run(command);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout.starts_with(b"Controller vfio-user:"));
}
