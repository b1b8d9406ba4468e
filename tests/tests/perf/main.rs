//! `vireo perf` against real targets: it finds damage, its clock is right, its results can be read, and it says what is
//! wrong.

mod hangs;
mod terminal;

use bdev::fault::{Effect, Plan, Rule, When};
use bdev::request::Op;
use serde_json::Value;
use vireo_tests::command::vireo;
use vireo_tests::cores::{alone, beside};
use vireo_tests::faulty::FaultyTarget;
use vireo_tests::stranger::{Manner, Stranger};
use vireo_tests::target::{Target, configuration, one_memory_namespace};
use vireo_tests::wait::one_of;

/// Bytes of the memory device.
const MEMORY: u64 = 64 << 20;
/// Null devices that answer after these latencies, namespace 1 of one endpoint each: `vm0`, `vm1` and so on.
fn null_devices(latencies: &[&str]) -> String {
    let mut tables = String::new();
    for (index, latency) in latencies.iter().enumerate() {
        tables += &format!(
            "[[bdev]]\nname = \"null{index}\"\ndriver = \"null\"\nsize = \"1GiB\"\nlatency = \"{latency}\"\n\
             [[subsystem]]\nname = \"s{index}\"\n\
             [[subsystem.namespace]]\nnsid = 1\nbdev = \"null{index}\"\n\
             [[endpoint]]\nname = \"vm{index}\"\nsubsystem = \"s{index}\"\n"
        );
    }
    configuration(&tables)
}

fn address(endpoint: std::path::PathBuf) -> String {
    format!("vfio-user:{}", endpoint.display())
}

/// Splits a line of words, with `T` standing for the target.
fn perf<'a>(line: &'a str, target: &'a str) -> Vec<&'a str> {
    let words = line.split_whitespace().map(|word| if word == "T" { target } else { word });
    std::iter::once("perf").chain(words).collect()
}

fn number(value: &Value, path: &str) -> f64 {
    let found = value.pointer(path).and_then(Value::as_f64);
    found.unwrap_or_else(|| panic!("no number at {path} in {value:#}"))
}

/// Runs a verified load on a memory device of which one write is spoilt; what checking came to.
#[track_caller]
fn damage(effect: Effect, nth: u64, line: &str) -> (Value, String) {
    let configuration = one_memory_namespace(&["vm0"])
        .replace("driver = \"malloc\"", "driver = \"malloc\"\nchannel = \"ring\"");
    let rule = Rule { op: Some(Op::Write), range: None, when: When::Nth(nth), effect };
    let target = FaultyTarget::start(&configuration, MEMORY, Plan { seed: 1, rules: vec![rule] });
    let endpoint = address(target.endpoint("vm0"));
    let ended = vireo(perf(line, &endpoint));
    assert_eq!(ended.output.status.code(), Some(1), "{}{}", ended.stdout(), ended.stderr());
    let report = ended.json();
    let verify = report["runs"][0]["verify"].clone();
    assert_eq!(report["runs"][0]["errors"], 0, "{report:#}");
    // The same damage is still there, and is told to a person too.
    let seen =
        vireo(["perf", &endpoint, "--pattern", "read", "--time", "1s", "--verify", "pattern"]);
    (verify, seen.stdout())
}

/// Sequential writes of a known number: no block is written twice before its damage is looked for.
const LOAD: &str = "T --pattern write --time 1s --warm-up 0s -o json";

#[test]
fn a_lost_write_is_found() {
    let _cores = beside();
    let line = format!("{LOAD} --rate 2000 --size 32MiB --verify crc32c");
    let (verify, _) = damage(Effect::Lose, 20, &line);
    assert_eq!((&verify["lost"], &verify["torn"]), (&1.into(), &0.into()), "{verify:#}");
    assert_eq!((&verify["misplaced"], &verify["corrupt"]), (&0.into(), &0.into()), "{verify:#}");
    let note = verify["notes"][0].as_str().expect("a note");
    // The 20th write, counted from 1, of I/Os of 8 blocks.
    assert!(note.contains("lost write at block 152 ") && note.contains("number 1"), "{note}");
}

#[test]
fn a_torn_write_is_found() {
    let _cores = beside();
    for verify in ["crc32c", "pattern"] {
        let line = format!("{LOAD} --block-size 64KiB --size 32MiB --rate 400 --verify {verify}");
        let (verify, _) = damage(Effect::Tear, 20, &line);
        assert_eq!((&verify["torn"], &verify["lost"]), (&1.into(), &0.into()), "{verify:#}");
        assert_eq!((&verify["misplaced"], &verify["corrupt"]), (&0.into(), &0.into()));
        let note = verify["notes"][0].as_str().expect("a note");
        assert!(note.contains("torn write at block 2432"), "{note}");
    }
}

#[test]
fn a_misplaced_write_is_found_at_both_ends() {
    let _cores = beside();
    let line = format!("{LOAD} --rate 2000 --size 32MiB --verify crc32c");
    // Ten I/Os back, modulo the places of an I/O on the device: over what was written before.
    let back = MEMORY - 4096 + 1 - 10 * 4096;
    let (verify, seen) = damage(Effect::Misplace(back), 30, &line);
    assert_eq!((&verify["misplaced"], &verify["lost"]), (&1.into(), &1.into()), "{verify:#}");
    assert_eq!((&verify["torn"], &verify["corrupt"]), (&0.into(), &0.into()), "{verify:#}");
    let notes = verify["notes"].to_string();
    assert!(notes.contains("misplaced write at block 152 "), "{notes}");
    assert!(notes.contains("lost write at block 232 "), "{notes}");
    println!("{seen}");
    assert!(seen.contains("DAMAGE") && seen.contains("misplaced"), "{seen}");
}

#[test]
fn what_is_not_damaged_is_good_by_every_pattern_and_way() {
    let _cores = beside();
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    let endpoint = address(target.endpoint("vm0"));
    for line in [
        "T --pattern randwrite --verify crc32c --depth 32 --queues 2",
        "T --pattern randrw --mix 70 --verify pattern --block-size 64KiB --depth 8 --zipf 1.1",
        "T --pattern write --verify crc32c --block-size 4MiB --depth 2 --size 32MiB",
        "T --pattern randrw --verify crc32c --depth 16 --completions interrupt",
    ] {
        let line = format!("{line} --time 400ms --warm-up 50ms -o json");
        let run = || {
            let report = vireo(perf(&line, &endpoint)).success();
            let report: Value = serde_json::from_str(&report).expect("JSON");
            let verify = &report["runs"][0]["verify"];
            for kind in ["lost", "torn", "misplaced", "corrupt"] {
                assert_eq!(verify[kind], 0, "{line}: {verify:#}");
            }
            number(verify, "/good")
        };
        // The range of the largest I/Os holds eight of them. A machine that is late writes fewer in one of several runs.
        let most = (0..8).map(|_| run()).find(|&good| good >= 8.0);
        assert!(most.is_some(), "{line}: hardly anything is checked");
    }
    assert!(target.stop().success());
}

/// Two runs that differ only in their time: what the longer one took more, by a clock outside and by what it says itself.
#[test]
fn latency_at_depth_1_agrees_with_a_clock_outside() {
    let _cores = alone();
    let target = Target::start(&null_devices(&["1ms"]));
    let endpoint = address(target.endpoint("vm0"));
    let run = |time: &str| {
        let line = format!("T --depth 1 --warm-up 0s --time {time} -o json");
        let ended = vireo(perf(&line, &endpoint));
        ended.success();
        let report = ended.json();
        let all = &report["runs"][0]["all"];
        let said = number(all, "/ios") * number(all, "/latency_ns/mean") * 1e-9;
        (said, ended.took.as_secs_f64(), number(all, "/latency_ns/p50"))
    };
    let mut worst = f64::INFINITY;
    // The start of a process takes longer at one time than at another: the best of several is what counts.
    for _ in 0..12 {
        let (short, long) = (run("300ms"), run("3s"));
        // The worker's clock is that of its last look at it, so a millisecond may have begun a little before.
        assert!(short.2 >= 0.95e6 && long.2 >= 0.95e6, "faster than the device: {}", long.2);
        let (said, took) = (long.0 - short.0, long.1 - short.1);
        worst = f64::min(worst, (said / took - 1.0).abs());
        if worst < 0.05 {
            return;
        }
    }
    panic!("latencies and the clock differ by {:.1} %", worst * 100.0);
}

#[test]
fn latency_at_depth_1_is_what_the_device_was_told_to_take() {
    let _cores = alone();
    let target = Target::start(&null_devices(&["10ms"]));
    let endpoint = address(target.endpoint("vm0"));
    let mut found = Vec::new();
    // A processor that is shared with others is late now and then: one of several runs is on time.
    for _ in 0..20 {
        let report = vireo(perf("T --depth 1 --time 500ms -o json", &endpoint)).success();
        let report: Value = serde_json::from_str(&report).expect("JSON");
        let median = number(&report, "/runs/0/all/latency_ns/p50");
        let ended = number(&report, "/runs/0/all/ios");
        assert!(ended == 0.0 || median >= 0.99e7, "faster than the device: {median} ns");
        if ended > 0.0 && median < 1.05e7 {
            return;
        }
        found.push(median);
    }
    panic!("medians of a device of 10 ms: {found:?} ns");
}

#[test]
fn two_targets_are_compared_with_the_spread_of_their_ratio() {
    let _cores = alone();
    let target = Target::start(&null_devices(&["5ms", "20ms"]));
    let (a, b) = (address(target.endpoint("vm0")), address(target.endpoint("vm1")));
    let line = "T --time 300ms --warm-up 50ms --alternations 3 --against";
    let words = |output| perf(line, &a).into_iter().chain([b.as_str(), "-o", output]);
    let mut found = Vec::new();
    // A shared processor makes both late by the same time now and then, which changes their ratio.
    for _ in 0..12 {
        let report = vireo(words("json")).success();
        let report: Value = serde_json::from_str(&report).expect("JSON");
        let runs = report["runs"].as_array().expect("runs").iter();
        let addresses: Vec<_> =
            runs.map(|run| run["target"]["address"].as_str().expect("address")).collect();
        assert_eq!(addresses, [&a, &b, &a, &b, &a, &b]);
        assert_eq!(report["ratio"]["alternations"], 3);
        let median = |figure: &str| {
            let spread = &report["ratio"][figure];
            let [min, median, max] = ["/min", "/median", "/max"].map(|key| number(spread, key));
            assert!(min <= median && median <= max, "{spread:#}");
            median
        };
        let (iops, latency) = (median("iops"), median("latency_mean"));
        found.push((iops, latency));
        if (iops / 4.0 - 1.0).abs() < 0.3 && (latency / 0.25 - 1.0).abs() < 0.3 {
            break;
        }
    }
    assert!(found.len() < 12, "devices of 5 ms and 20 ms: ratios of {found:?}");
    let table = vireo(words("table")).success();
    for word in ["A / B", "median", "min", "max", "IOPS", &a, &b] {
        assert!(table.contains(word), "{word} in\n{table}");
    }
}

#[test]
fn results_agree_with_each_other_and_with_the_clock() {
    let _cores = alone();
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    let endpoint = address(target.endpoint("vm0"));
    let line = "T --pattern randrw --mix 30 --depth 4 --time 1s --warm-up 100ms -o json";
    // A machine that stalls in the middle leaves too few I/Os, or most of them to one point of the time line; a thread that
    // is held up counts an I/O from before it was sent.
    one_of(12, || agrees(&vireo(perf(line, &endpoint)).success()));
}

/// Checks that the figures of a report of the run above fit each other.
#[track_caller]
fn agrees(report: &str) {
    let report: Value = serde_json::from_str(report).expect("JSON");
    assert_eq!(report["schema"], 1);
    assert_eq!(report["load"]["read_percent"], 30);
    let run = &report["runs"][0];
    let (all, read, write) = (&run["all"], &run["read"], &run["write"]);
    assert_eq!(number(all, "/ios"), number(read, "/ios") + number(write, "/ios"));
    let share = number(read, "/ios") / number(all, "/ios");
    assert!((share - 0.3).abs() < 0.05, "{share} of the I/Os are reads");
    let seconds = number(run, "/seconds");
    assert!((number(all, "/iops") * seconds / number(all, "/ios") - 1.0).abs() < 0.01);
    let bytes = number(all, "/iops") * 4096.0;
    assert!((number(all, "/bytes_per_second") / bytes - 1.0).abs() < 1e-6, "bytes are blocks");
    let latency: Vec<f64> = ["min", "p50", "p90", "p99", "p99_9", "p99_99", "max"]
        .map(|key| number(&all["latency_ns"], &format!("/{key}")))
        .into();
    assert!(latency.is_sorted(), "{latency:?}");
    // By Little's law: what is outstanding is rate times latency.
    let outstanding = number(all, "/iops") * number(all, "/latency_ns/mean") * 1e-9;
    assert!((2.0..4.1).contains(&outstanding), "{outstanding} outstanding of 4");
    let points = run["timeline"].as_array().expect("time line");
    let sum: f64 = points.iter().map(|point| number(point, "/iops")).sum::<f64>() * seconds
        / points.len() as f64;
    assert!((sum / number(all, "/ios") - 1.0).abs() < 0.1, "time line: {sum}");
}

#[test]
fn pictures_are_xml_with_what_belongs_in_them() {
    let _cores = beside();
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    let endpoint = address(target.endpoint("vm0"));
    let file =
        |name: &str| target.site().directory().join(name).to_str().expect("UTF-8").to_owned();
    let (histogram, timeline) = (file("histogram.svg"), file("timeline.svg"));
    let line = "T --pattern randrw --depth 4 --time 500ms";
    let pictures = ["--histogram", &histogram, "--timeline", &timeline];
    vireo(perf(line, &endpoint).into_iter().chain(pictures)).success();
    for (file, words, shapes) in [
        (histogram, ["latency", "share of I/Os, %", "reads: median", "writes: median"], "rect"),
        (timeline, ["IOPS", "latency", "seconds", "mean"], "polyline"),
    ] {
        let text = std::fs::read_to_string(&file).expect("the picture");
        let document = roxmltree::Document::parse(&text).expect("XML");
        let root = document.root_element();
        assert_eq!(root.tag_name().name(), "svg");
        assert_eq!(root.attribute("width"), Some("900"));
        let texts: Vec<_> = document.descendants().filter_map(|node| node.text()).collect();
        for word in words {
            assert!(texts.iter().any(|text| text.contains(word)), "{word} in {file}: {texts:?}");
        }
        let shapes = document.descendants().filter(|node| node.has_tag_name(shapes)).count();
        let (_, least) = if file.contains("histogram") { ("bars", 10) } else { ("lines", 3) };
        assert!(shapes >= least, "{shapes} shapes in {file}");
        // Every number of the drawing is one.
        let finite = |attribute: roxmltree::Attribute<'_, '_>| !attribute.value().contains("NaN");
        assert!(document.descendants().all(|node| node.attributes().all(finite)), "{file}");
    }
}

#[test]
fn a_thread_that_waits_for_interrupts_sleeps() {
    let _cores = alone();
    let target = Target::start(&null_devices(&["2ms"]));
    let endpoint = address(target.endpoint("vm0"));
    let program = vireo_tests::target::program("vireo");
    one_of(4, || sleeps(&program, &endpoint));
}

/// Checks what a run at a device of two milliseconds takes of a processor.
#[track_caller]
fn sleeps(program: &std::path::Path, endpoint: &str) {
    let mut command = std::process::Command::new("bash");
    command.args(["-c", "TIMEFORMAT='%U %S'; time \"$@\"", "bash"]).arg(program);
    command.args(perf("T --completions interrupt --time 2s --depth 2 -o json", endpoint));
    let output = vireo_tests::target::run(command);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["load"]["completions"], "interrupt");
    let iops = number(&report, "/runs/0/all/iops");
    assert!((300.0..1050.0).contains(&iops), "{iops} a second of 2 ms each, two at a time");
    let times = said.lines().last().expect("times").split_whitespace();
    let busy: f64 = times.map(|time| time.parse::<f64>().expect("a time")).sum();
    // A polling one takes all of its two seconds and more.
    assert!(busy < 1.0, "{busy} s of a processor in two seconds");
}

#[test]
fn a_limited_rate_is_kept() {
    let _cores = alone();
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    let endpoint = address(target.endpoint("vm0"));
    for (line, rate) in [("T --rate 500", 500.0), ("T --rate 5k --depth 8 --queues 2", 5000.0)] {
        let line = format!("{line} --time 1s --warm-up 200ms -o json");
        let run = || {
            let report = vireo(perf(&line, &endpoint)).success();
            let report: Value = serde_json::from_str(&report).expect("JSON");
            let iops = number(&report, "/runs/0/all/iops");
            assert!(iops <= rate * 1.02, "{iops} of at most {rate}");
            iops
        };
        // What a shared processor is late for is not made up for entirely: one of several runs is on time.
        let best = (0..8).map(|_| run()).find(|&iops| iops >= rate * 0.97);
        assert!(best.is_some(), "never near {rate} a second");
    }
}

#[test]
fn its_own_cost_is_shown() {
    let _cores = alone();
    let text = vireo(["perf", "--self", "--depth", "128", "--time", "300ms"]).success();
    let line = text.lines().find(|line| line.starts_with("own cost: ")).expect("a line of its own");
    assert!(line.contains("ns an I/O at depth 128"), "{line}");
    let json = vireo(["perf", "--self", "--depth", "128", "--time", "300ms", "-o", "json"]).json();
    let (cost, iops) = (number(&json, "/own_cost/ns_per_io"), number(&json, "/own_cost/all/iops"));
    assert!((cost * iops / 1e9 - 1.0).abs() < 0.01, "{cost} ns at {iops} a second by one thread");
}

#[test]
fn what_is_no_target_is_told_in_one_line_with_the_remedy() {
    let _cores = beside();
    for (command, option) in [("perf", "--connect-timeout"), ("identify", "--timeout")] {
        vireo([command, "vfio-user:/nowhere/at/all"])
            .refused(1, &["no vfio-user socket", "start the target"]);
        vireo([command, "nonsense"]).refused(2, &["\"nonsense\"", "vfio-user:/run/vireo/vm0"]);
        vireo([command, "pcie:7777:77:07.7"])
            .refused(1, &["no pci device 7777:77:07.7", "lspci -D"]);
        for (manner, told) in [
            (Manner::Garbage, ["does not speak vfio-user", "check that it is a target's socket"]),
            (Manner::Silence, ["does not answer", "restart it"]),
            (Manner::HangUp, ["closed the connection", "see its log"]),
        ] {
            let stranger = Stranger::listen(manner);
            let endpoint = address(stranger.endpoint().into());
            // Who never answers is given up soon.
            let mut words = vec![command, &endpoint];
            if manner == Manner::Silence {
                words.extend([option, "4s"]);
            }
            vireo(words).refused(1, &told);
            // Its socket is as good as its directory.
            if manner == Manner::HangUp {
                vireo([command, &address(stranger.socket())]).refused(1, &told);
            }
        }
        let directory = tempfile::tempdir().expect("tempdir");
        let file = directory.path().join("file");
        std::fs::write(&file, "").expect("write");
        vireo([command, &address(file)]).refused(1, &["nobody listens", "start it again"]);
        let long = format!("vfio-user:/{}", "a".repeat(200));
        vireo([command, &long]).refused(1, &["File name too long", "at most 107 bytes"]);
    }
}

#[test]
fn loads_that_do_not_fit_their_target_are_told_what_would() {
    let _cores = beside();
    let tables = "[[bdev]]\nname = \"big\"\ndriver = \"malloc\"\nsize = \"16MiB\"\nblock_size = 4096\n\
                  [[bdev]]\nname = \"fixed\"\ndriver = \"file\"\npath = \"@DIR@/fixed\"\nread_only = true\n\
                  [[subsystem]]\nname = \"s0\"\n\
                  [[subsystem.namespace]]\nnsid = 1\nbdev = \"big\"\n\
                  [[subsystem.namespace]]\nnsid = 5\nbdev = \"fixed\"\n\
                  [[endpoint]]\nname = \"vm0\"\nsubsystem = \"s0\"\nqueues = 2\n\
                  [[subsystem]]\nname = \"empty\"\n\
                  [[endpoint]]\nname = \"vm1\"\nsubsystem = \"empty\"\n";
    let site = vireo_tests::target::Site::new(&configuration(tables));
    std::fs::write(site.directory().join("fixed"), vec![0; 1 << 20]).expect("write");
    let target = Target::start_in(site);
    let endpoint = address(target.endpoint("vm0"));
    let empty = address(target.endpoint("vm1"));
    for (line, told) in [
        ("T --block-size 512", ["--block-size 512", "say --block-size 4096"]),
        ("T --offset 512", ["--offset 512", "4096"]),
        ("T --size 1GiB", ["of 16777216 bytes", "say --size 16777216"]),
        ("T --offset 1GiB", ["namespace 1 has 16777216 bytes", "--offset 1073741824"]),
        ("T --namespace 7", ["namespace 7 is not there", "active: 1, 5"]),
        ("T --queues 3", ["2 queue pairs", "say --queues 2"]),
        (
            "T --namespace 5 --pattern randwrite",
            ["namespace 5 is write protected", "--pattern read"],
        ),
        ("T --depth 16000", ["commands a queue pair", "say --depth"]),
    ] {
        vireo(perf(line, &endpoint)).refused(1, &told);
    }
    vireo(["perf", &empty]).refused(1, &["no active namespace"]);
    for (line, told) in [
        ("T --depth 0", "--depth"),
        ("T --block-size 100", "--block-size"),
        ("T --connect-timeout 1ms", "--connect-timeout"),
        ("T --time 1ms", "--time"),
    ] {
        vireo(perf(line, &endpoint)).refused(2, &[told]);
    }
    // What the command line itself refuses comes with its usage.
    let ended = vireo(perf("T --pattern backwards", &endpoint));
    assert_eq!(ended.output.status.code(), Some(2));
    assert!(ended.stderr().contains("randrw"), "{}", ended.stderr());
    // What would be wrong in the end is told at once.
    let (picture, other) = ("/nowhere/at/all.svg", "vfio-user:/nowhere");
    vireo(perf(&format!("T --time 100s --timeline {picture}"), &endpoint))
        .refused(1, &[picture, "a directory that can be written"]);
    vireo(perf(&format!("T --time 100s --against {other}"), &endpoint))
        .refused(1, &["no vfio-user socket at /nowhere"]);
}
