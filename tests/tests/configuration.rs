//! Mistakes in a configuration: each has one line that names the key, says what is wrong and what would be right; the
//! exit status is 2; nothing was started, nothing was made.

use std::fs;
use vireo_tests::target::{Site, Target, configuration, one_memory_namespace, run};

/// A mistake: what it is called, the configuration, the key, and words that its line must have.
struct Mistake {
    name: &'static str,
    configuration: String,
    key: &'static str,
    words: &'static [&'static str],
}

fn mistakes() -> Vec<Mistake> {
    let good = one_memory_namespace(&["vm0"]);
    let with = |from: &str, to: &str| {
        assert!(good.contains(from), "{from} stands in the configuration");
        good.replacen(from, to, 1)
    };
    let add = |tables: &str| format!("{good}{tables}");
    let mistake = |name, configuration, key, words| Mistake { name, configuration, key, words };
    vec![
        mistake(
            "unknown key",
            with("size = ", "block_sise = 512\nsize = "),
            "bdev[0].block_sise",
            &["did you mean \"block_size\"?"],
        ),
        mistake(
            "two endpoints on one path",
            add("[[endpoint]]\nname = \"vm1\"\nsubsystem = \"s0\"\npath = \"@RUN@/vm0\"\n"),
            "endpoint[1].path",
            &["endpoint[0]", "its own"],
        ),
        mistake(
            "file missing",
            add("[[bdev]]\nname = \"disk\"\ndriver = \"file\"\npath = \"@DIR@/none.img\"\n"),
            "bdev[1].path",
            &["none.img", "not there", "create = true"],
        ),
        mistake(
            "size not a multiple of the block size",
            with("\"64MiB\"", "1000"),
            "bdev[0].size",
            &["1000", "512", "1024"],
        ),
        mistake(
            "core not there",
            with("name = \"w0\"\n", "name = \"w0\"\ncore = 4000\n"),
            "worker[0].core",
            &["4000", "use one of"],
        ),
        mistake(
            "a reference to nothing",
            with("bdev = \"mem0\"", "bdev = \"mem1\""),
            "subsystem[0].namespace[0].bdev",
            &["\"mem1\"", "did you mean \"mem0\"?"],
        ),
        mistake(
            "a name used twice",
            add("[[endpoint]]\nname = \"vm0\"\nsubsystem = \"s0\"\npath = \"@DIR@/other\"\n"),
            "endpoint[1].name",
            &["vm0", "another name"],
        ),
        mistake(
            "one bdev for two namespaces",
            add("[[subsystem]]\nname = \"s1\"\nserial = \"B\"\n\
                 [[subsystem.namespace]]\nnsid = 1\nbdev = \"mem0\"\n"),
            "subsystem[1].namespace[0].bdev",
            &["mem0", "its own"],
        ),
        mistake(
            "an unknown driver",
            with("\"malloc\"", "\"maloc\""),
            "bdev[0].driver",
            &["maloc", "malloc"],
        ),
        mistake("no size", with("size = \"64MiB\"\n", ""), "bdev[0].size", &[]),
        mistake("a unit that is none", with("\"64MiB\"", "\"64MuB\""), "bdev[0].size", &["MuB"]),
        mistake(
            "an nsid that cannot be",
            with("nsid = 1", "nsid = 0"),
            "subsystem[0].namespace[0].nsid",
            &["0"],
        ),
        mistake(
            "queues beyond what there are",
            with("subsystem = \"s0\"\n", "subsystem = \"s0\"\nqueues = 500\n"),
            "endpoint[0].queues",
            &["500", "127"],
        ),
        mistake(
            "a file that is too small",
            add(
                "[[bdev]]\nname = \"disk\"\ndriver = \"file\"\npath = \"@DIR@/vireo.toml\"\nsize = \"1GiB\"\n",
            ),
            "bdev[1].size",
            &["has only", "at most"],
        ),
    ]
}

#[test]
fn every_mistake_has_one_line_that_helps_and_nothing_is_started() {
    for Mistake { name, configuration, key, words } in mistakes() {
        let site = Site::new(&configuration);
        for command in ["check", "up"] {
            let output = site.vireo(&[command]);
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{name}, {command}: {text}");
            assert_eq!(text.lines().count(), 1, "{name}, {command}: one line: {text}");
            assert!(text.contains(&format!("{key}: ")), "{name}, {command}: names {key}: {text}");
            for word in words {
                assert!(text.contains(word), "{name}, {command}: says {word}: {text}");
            }
            assert!(output.stdout.is_empty(), "{name}, {command}: nothing on stdout");
        }
        for directory in [site.run_dir(), site.state_dir()] {
            let left: Vec<_> = fs::read_dir(directory).unwrap().collect();
            assert!(left.is_empty(), "{name}: {left:?} was made");
        }
    }
}

#[test]
fn text_that_is_no_toml_and_files_that_are_not_there_are_said_in_one_line() {
    let site = Site::new("runtime_dir = \n");
    let output = site.vireo(&["check"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), text.lines().count()), (Some(2), 1), "{text}");
    assert!(text.contains("vireo.toml"), "{text}");

    fs::remove_file(site.file()).unwrap();
    let output = site.vireo(&["up"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), text.lines().count()), (Some(2), 1), "{text}");
    assert!(text.contains("vireo.toml"), "{text}");
}

#[test]
fn several_mistakes_are_told_at_once() {
    let text = one_memory_namespace(&["vm0"])
        .replace("\"64MiB\"", "1000")
        .replace("bdev = \"mem0\"", "bdev = \"mem9\"");
    let output = Site::new(&text).vireo(&["check"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), text.lines().count()), (Some(2), 2), "{text}");
}

#[test]
fn a_good_configuration_is_silent() {
    let output = Site::new(&one_memory_namespace(&["vm0", "vm1"])).vireo(&["check"]);
    assert!(
        output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(),
        "{output:?}"
    );
}

#[test]
fn the_demo_s_configuration_is_good() {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/demo/vireo.toml");
    let text = fs::read_to_string(demo).unwrap();
    let text = text.replace("/run/vireo", "@RUN@").replace("/var/lib/vireo", "@STATE@");
    let output = Site::new(&text).vireo(&["check"]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_second_up_in_the_same_directory_is_refused_and_disturbs_nobody() {
    let mut target = Target::start(&one_memory_namespace(&["vm0"]));
    let output = target.site().vireo(&["up"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("another vireo up"), "{text}");
    assert!(target.is_running());
    target.await_all_ready();
    assert!(target.stop().success());
}

#[test]
fn status_without_services_says_what_to_start() {
    let site = Site::new(&configuration(""));
    let mut command = std::process::Command::new(vireo_tests::target::program("vireo"));
    command.arg("status").arg("--runtime-dir").arg(site.run_dir());
    let output = run(command);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("vireo up"), "{text}");
}
