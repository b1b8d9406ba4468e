//! Every mistake beside a configuration without it.

use super::*;

const VALID: &str = r#"
runtime_dir = "/run/vireo"
state_dir = "/var/lib/vireo"
[[worker]]
name = "w0"
core = 0
max_nap = "500us"
[[backend]]
name = "b0"
[[frontend]]
name = "f0"
[[bdev]]
name = "mem0"
driver = "malloc"
size = "256MiB"
block_size = 4096
[[bdev]]
name = "null0"
driver = "null"
size = 1048576
latency = "10us"
channel = "ring"
[[bdev]]
name = "file0"
driver = "file"
path = "/data/file0"
create = true
size = "1GiB"
[[subsystem]]
name = "s0"
serial = "VIREO0001"
[[subsystem.namespace]]
nsid = 1
bdev = "mem0"
[[subsystem.namespace]]
nsid = 7
bdev = "null0"
[[endpoint]]
name = "vm0"
subsystem = "s0"
doorbells = "shadow"
queues = 8
[[endpoint]]
name = "vm1"
subsystem = "s0"
path = "/run/other/vm1"
workers = ["w0"]
"#;

fn parse(text: &str) -> Result<Config, Vec<Mistake>> {
    Config::parse(text, [])
}

fn lines(text: &str) -> Vec<String> {
    parse(text).expect_err("a mistake is found").iter().map(ToString::to_string).collect()
}

#[test]
fn a_valid_file_is_understood_and_its_defaults_filled_in() {
    let config = parse(VALID).unwrap();
    assert_eq!(config.bdevs[0].size, Some(256 << 20));
    assert_eq!(config.bdevs[0].channel, Channel::Lease);
    assert_eq!(config.bdevs[1].block_size, 512);
    assert_eq!(config.bdevs[1].channel, Channel::Ring);
    assert_eq!(config.bdevs[1].driver, Driver::Null { latency: Duration::from_micros(10) });
    assert_eq!(config.bdevs[2].channel, Channel::Ring, "a file has no lease");
    assert_eq!(config.bdevs[2].backend, "b0");
    let vm0 = &config.endpoints[0];
    assert_eq!(vm0.path, Path::new("/run/vireo/vm0"));
    assert_eq!((vm0.queues, vm0.vectors, vm0.max_transfer), (8, 9, 1 << 20));
    assert_eq!(
        (vm0.doorbells, config.endpoints[1].doorbells),
        (Doorbells::Shadow, Doorbells::Mapped)
    );
    assert_eq!(vm0.workers, ["w0"]);
    let kinds: Vec<Kind> = config.services().into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, [Kind::Backend, Kind::Worker, Kind::Frontend, Kind::Manager]);
    assert_eq!(config.socket(Kind::Worker, "w0"), Path::new("/run/vireo/worker-w0.sock"));
}

#[test]
fn what_is_printed_reads_back_as_the_same() {
    let config = parse(VALID).unwrap();
    assert_eq!(parse(&config.to_toml()).unwrap(), config);
}

#[test]
fn a_namespace_may_bring_its_uuid() {
    let with = |first: &str, second: &str| {
        let text =
            VALID.replace("bdev = \"mem0\"\n", &format!("bdev = \"mem0\"\nuuid = \"{first}\"\n"));
        let second = format!("bdev = \"null0\"\nuuid = \"{second}\"\n[[endpoint]]");
        text.replace("bdev = \"null0\"\n[[endpoint]]", &second)
    };
    let (one, other) =
        ("123e4567-e89b-42d3-a456-426614174000", "223e4567-e89b-42d3-a456-426614174000");
    let config = parse(&with(one, other)).unwrap();
    let uuids = config.subsystems[0].namespaces.iter().map(|namespace| namespace.uuid.unwrap());
    assert!(uuids.map(|uuid| uuid.to_string()).eq([one, other]));
    assert_eq!(parse(&config.to_toml()).unwrap(), config);
    assert_eq!(
        lines(&with(one, one)),
        [format!(
            "subsystem[0].namespace[1].uuid: {one} is that of namespace 1 of s0 already; write another one, or nothing"
        )]
    );
}

/// (what is replaced in the valid file, by what, the line that is expected)
const MISTAKES: &[(&str, &str, &str)] = &[
    ("core = 0", "cpu = 0", r#"worker[0].cpu: unknown key; known: name, core, tenant, max_nap"#),
    ("serial =", "seriel =", r#"subsystem[0].seriel: unknown key; did you mean "serial"?"#),
    ("runtime_dir =", "runtimedir =", r#"runtimedir: unknown key; did you mean "runtime_dir"?"#),
    (
        "core = 0",
        "core = \"0\"",
        "worker[0].core: is text, not a number; write a whole number from 0 to 4095",
    ),
    (
        "size = 1048576",
        "size = 1048577",
        "bdev[1].size: 1048577 is not a multiple of the block size 512; write 1048576 or 1049088",
    ),
    (
        "size = \"256MiB\"",
        "size = \"256 megs\"",
        r#"bdev[0].size: "256 megs" is not a size; write a number of bytes, or one with a unit as in "256MiB""#,
    ),
    (
        "size = \"256MiB\"",
        "size = 0",
        r#"bdev[0].size: 0 is not a size; write a number of bytes, or one with a unit as in "256MiB""#,
    ),
    (
        "size = \"256MiB\"",
        "size = \"8388608TiB\"",
        r#"bdev[0].size: "8388608TiB" is not a size; write a number of bytes, or one with a unit as in "256MiB""#,
    ),
    (
        "size = \"256MiB\"",
        "size = -5",
        r#"bdev[0].size: -5 is not a size; write a number of bytes, or one with a unit as in "256MiB""#,
    ),
    ("size = \"256MiB\"", "", r#"bdev[0].size: is missing; add size = "256MiB""#),
    (
        "block_size = 4096",
        "block_size = 520",
        "bdev[0].block_size: 520 is not offered; write 512 or 4096",
    ),
    (
        "name = \"null0\"",
        "name = \"mem0\"",
        r#"bdev[1].name: "mem0" is the name of bdev[0] already; give it another name"#,
    ),
    (
        "name = \"vm1\"",
        "name = \"vm0\"",
        r#"endpoint[1].name: "vm0" is the name of endpoint[0] already; give it another name"#,
    ),
    (
        "/run/other/vm1",
        "/run/vireo/vm0",
        "endpoint[1].path: /run/vireo/vm0 belongs to endpoint[0] already; give each endpoint its own directory",
    ),
    (
        "/run/other/vm1",
        "vm1",
        r#"endpoint[1].path: "vm1" is not an absolute path; start it with /"#,
    ),
    (
        "driver = \"null\"",
        "driver = \"nul\"",
        r#"bdev[1].driver: "nul" is not known; did you mean "null"?"#,
    ),
    (
        "block_size = 4096",
        "latency = \"1us\"",
        r#"bdev[0].latency: is for driver = "null" only; remove it"#,
    ),
    (
        "latency = \"10us\"",
        "latency = \"10\"",
        r#"bdev[1].latency: "10" is not a duration; write a duration from "0s" to "10s""#,
    ),
    (
        "max_nap = \"500us\"",
        "max_nap = \"5s\"",
        r#"worker[0].max_nap: "5s" is out of range; write a duration from "1us" to "100ms""#,
    ),
    (
        "bdev = \"mem0\"",
        "bdev = \"men0\"",
        r#"subsystem[0].namespace[0].bdev: there is no bdev "men0"; did you mean "mem0"?"#,
    ),
    (
        "bdev = \"null0\"",
        "bdev = \"mem0\"",
        r#"subsystem[0].namespace[1].bdev: "mem0" is namespace 1 of s0 already; give each namespace its own bdev; hosts share one through two endpoints of its subsystem"#,
    ),
    (
        "nsid = 7",
        "nsid = 1",
        "subsystem[0].namespace[1].nsid: 1 is there already; write another number",
    ),
    (
        "nsid = 7",
        "nsid = 257",
        "subsystem[0].namespace[1].nsid: 257 is out of range; write a whole number from 1 to 256",
    ),
    ("nsid = 7", "", "subsystem[0].namespace[1].nsid: is missing; add nsid = 2"),
    (
        "queues = 8",
        "queues = 128",
        "endpoint[0].queues: 128 is out of range; write a whole number from 1 to 127",
    ),
    (
        "queues = 8",
        "vectors = 129",
        "endpoint[0].vectors: 129 is out of range; write a whole number from 1 to 128",
    ),
    (
        "queues = 8",
        "max_transfer = \"3MiB\"",
        r#"endpoint[0].max_transfer: 3MiB is not a power of two in range; write a power of two from "8KiB" to "4MiB""#,
    ),
    (
        "workers = [\"w0\"]",
        "workers = [\"w1\"]",
        r#"endpoint[1].workers[0]: there is no worker "w1"; did you mean "w0"?"#,
    ),
    (
        "workers = [\"w0\"]",
        "workers = []",
        "endpoint[1].workers: is empty; name at least one worker",
    ),
    (
        "workers = [\"w0\"]",
        "workers = \"w0\"",
        r#"endpoint[1].workers: is text, not a list of texts; write workers = ["..."]"#,
    ),
    (
        "workers = [\"w0\"]",
        "tenant = \"blue\"",
        r#"endpoint[1].tenant: no worker serves tenant "blue"; add a [[worker]] with tenant = "blue""#,
    ),
    ("workers = [\"w0\"]", "subsystem.x = 1", "line 47: is not TOML: "),
    (
        "name = \"b0\"",
        "name = \"b/0\"",
        r#"backend[0].name: "b/0" is not a name; write 1 to 32 letters, digits, '-', '_' or '.', a letter or digit first"#,
    ),
    (
        "serial = \"VIREO0001\"",
        "serial = \"VIREO000100020003004X\"",
        r#"subsystem[0].serial: "VIREO000100020003004X" does not fit; write 1 to 20 printable ASCII characters"#,
    ),
    (
        "serial = \"VIREO0001\"",
        "nqn = \"vireo\"",
        r#"subsystem[0].nqn: "vireo" is not an NQN; write nqn.<yyyy-mm>.<domain>:<name>, at most 223 bytes"#,
    ),
    (
        "bdev = \"null0\"\n[[endpoint]]",
        "bdev = \"null0\"\nuuid = \"vireo\"\n[[endpoint]]",
        r#"subsystem[0].namespace[1].uuid: "vireo" is not a UUID; write 32 digits and small letters a to f as in 123e4567-e89b-42d3-a456-426614174000, or nothing for one that is made"#,
    ),
    (
        "bdev = \"null0\"\n[[endpoint]]",
        "bdev = \"null0\"\nuuid = \"00000000-0000-0000-0000-000000000000\"\n[[endpoint]]",
        r#"subsystem[0].namespace[1].uuid: "00000000-0000-0000-0000-000000000000" is not a UUID; write 32"#,
    ),
    (
        "serial = \"VIREO0001\"",
        "frontend = \"f1\"",
        r#"subsystem[0].frontend: there is no frontend "f1"; did you mean "f0"?"#,
    ),
    (
        "create = true",
        "create = true\nchannel = \"lease\"",
        r#"bdev[2].channel: a file has no lease; write channel = "ring" or remove it"#,
    ),
    (
        "path = \"/data/file0\"",
        "",
        r#"bdev[2].path: is missing; add path = "/..." of a file or a block device"#,
    ),
    (
        "create = true",
        "create = 1",
        "bdev[2].create: is a whole number, neither true nor false; write create = true or create = false",
    ),
    ("size = \"1GiB\"", "", r#"bdev[2].size: is missing where create = true; add size = "256MiB""#),
    (
        "[[backend]]\nname = \"b0\"",
        "",
        r#"backend: none is configured; add [[backend]] with name = "b0""#,
    ),
    (
        "[[frontend]]\nname",
        "[frontend]\nname",
        "frontend: is a table, not a list of tables; write [[frontend]] before each",
    ),
];

#[test]
fn each_mistake_gets_one_line_with_key_fault_and_remedy() {
    for (valid, wrong, expected) in MISTAKES {
        assert!(VALID.contains(valid), "{valid} is in the valid file");
        let found = lines(&VALID.replacen(valid, wrong, 1));
        assert!(
            found.iter().any(|line| line.starts_with(expected)),
            "{wrong}: expected\n  {expected}\nfound\n  {}",
            found.join("\n  ")
        );
        assert!(found.iter().all(|line| !line.contains('\n') && line.contains("; ")), "{found:?}");
    }
}

#[test]
fn all_mistakes_are_told_at_once() {
    let text = VALID.replace("core = 0", "cpu = 0").replace("nsid = 7", "nsid = 0");
    assert_eq!(lines(&text).len(), 2, "{:?}", lines(&text));
}

#[test]
fn a_socket_path_that_does_not_fit_is_told() {
    let long = format!("/run/{}", "x".repeat(100));
    let found = lines(&VALID.replace("/run/vireo", &long));
    assert!(found.iter().any(|l| l.starts_with("runtime_dir: socket /run/xxx")), "{found:?}");
    assert!(found.iter().any(|l| l.starts_with("endpoint[0].path: socket")), "{found:?}");
}

#[test]
fn a_read_only_device_may_be_shared() {
    let twin = VALID.replace(
        "[[subsystem]]",
        "[[bdev]]\nname = \"file1\"\ndriver = \"file\"\npath = \"/data/file0\"\nread_only = true\n[[subsystem]]",
    );
    assert_eq!(
        lines(&twin),
        [
            "bdev[3].path: /data/file0 belongs to bdev[2] already; give each its own file, or make both read_only"
        ]
    );
    let both = twin.replace("create = true\nsize = \"1GiB\"", "read_only = true");
    parse(&both).unwrap();
}

#[test]
fn the_environment_overrides_the_file() {
    let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let config = Config::parse(
        VALID,
        [
            set("VIREO__RUNTIME_DIR", "/run/v"),
            set("VIREO__BDEV__MEM0__SIZE", "1GiB"),
            set("VIREO__WORKER__W0__CORE", "1"),
            set("VIREO__ENDPOINT__VM1__WORKERS", "[\"w0\"]"),
            set("VIREO__SUBSYSTEM__S0__NAMESPACE__7__NSID", "8"),
            set("VIREO_LOG", "debug"),
            set("HOME", "/"),
        ],
    )
    .unwrap();
    assert_eq!(config.runtime_dir, Path::new("/run/v"));
    assert_eq!(config.bdevs[0].size, Some(1 << 30));
    assert_eq!(config.workers[0].core, Some(1));
    assert_eq!(config.subsystems[0].namespaces[1].nsid, 8);

    for (name, value, expected) in [
        (
            "VIREO__BDEV__MEM1__SIZE",
            "1GiB",
            "VIREO__BDEV__MEM1__SIZE: there is no bdev \"mem1\"; did you mean \"mem0\"?",
        ),
        ("VIREO__BDEV__MEM0__SISE", "1GiB", "bdev[0].sise: unknown key; did you mean \"size\"?"),
        ("VIREO__", "1", "VIREO__: names no key; write it like VIREO__RUNTIME_DIR"),
        (
            "VIREO__RUNTIME_DIR__X",
            "1",
            "VIREO__RUNTIME_DIR__X: leads through runtime_dir, which has no such levels; write it like VIREO__BDEV__MEM0__SIZE",
        ),
        ("VIREO__NOTHING__X", "1", "VIREO__NOTHING__X: there is no nothing; known: "),
    ] {
        let mistakes = Config::parse(VALID, [set(name, value)]).unwrap_err();
        let found: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        assert!(found.iter().any(|line| line.starts_with(expected)), "{expected}: {found:?}");
    }
}

#[test]
fn the_environment_makes_the_sections_that_a_file_may_leave_out() {
    let set = |name: &str, value: &str| [(name.to_owned(), value.to_owned())];
    assert!(!VALID.contains("[api]") && !VALID.contains("[telemetry]"));
    let config = Config::parse(VALID, set("VIREO__API__SOCKET", "/run/v.sock")).unwrap();
    assert_eq!(config.api.socket, Path::new("/run/v.sock"));
    let config = Config::parse(VALID, set("VIREO__TELEMETRY__SAMPLE", "7")).unwrap();
    assert_eq!(config.telemetry.sample, 7);
    let text = format!("{VALID}\n[telemetry]\nsample = 9\n");
    let config = Config::parse(&text, set("VIREO__TELEMETRY__SLOW", "off")).unwrap();
    assert_eq!(config.telemetry.sample, 9, "what is there stays");
    for (name, line) in [
        ("VIREO__API__SOCKETS", "api.sockets: unknown key; did you mean \"socket\"?"),
        ("VIREO__TELEMETRY__SAMPLE__X", "VIREO__TELEMETRY__SAMPLE__X: there is no sample"),
    ] {
        let mistakes = Config::parse(VALID, set(name, "/x")).unwrap_err();
        let found: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        assert!(found.iter().any(|found| found.starts_with(line)), "{line}: {found:?}");
    }
}

#[test]
fn files_and_cores_that_are_not_there_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(at("good"), vec![0; 8192]).unwrap();
    std::fs::write(at("odd"), vec![0; 1000]).unwrap();
    std::fs::write(at("empty"), []).unwrap();
    let core = crate::cpu::allowed_cores().unwrap().first().copied().unwrap();
    let check = |body: &str, core: u32| {
        let text = format!(
            "[[worker]]\nname = \"w\"\ncore = {core}\n[[backend]]\nname = \"b\"\n[[frontend]]\nname = \"f\"\n\
             [[bdev]]\nname = \"d\"\ndriver = \"file\"\n{body}\n"
        );
        let file = directory.path().join("vireo.toml");
        std::fs::write(&file, text).unwrap();
        Config::load(&file).map_err(|mistakes| mistakes.to_string())
    };
    check(&format!("path = \"{}\"", at("good")), core).unwrap();
    check(&format!("path = \"{}\"\ncreate = true\nsize = 4096", at("new")), core).unwrap();
    check(&format!("path = \"{}\"\ncreate = true\nsize = 1048576", at("good")), core).unwrap();
    for (body, core, expected) in [
        (
            format!("path = \"{}\"", at("good")),
            4095,
            "worker[0].core: core 4095 is not there for this process; use one of ",
        ),
        (
            format!("path = \"{}\"", at("none")),
            core,
            "none is not there; name a file that is there, or add create = true and a size",
        ),
        (
            format!("path = \"{}\"\ncreate = true\nsize = 4096", at("no/new")),
            core,
            "no is not there; make the directory, or name another",
        ),
        (
            format!("path = \"{}\"", at("odd")),
            core,
            "is not a multiple of 512; add size = 512, or make the file a multiple",
        ),
        (
            format!("path = \"{}\"", at("empty")),
            core,
            "empty is empty; add create = true and a size",
        ),
        (format!("path = \"{}\"\nsize = \"1MiB\"", at("good")), core, "bdev[0].size: "),
        (
            "path = \"/dev/null\"".to_owned(),
            core,
            "/dev/null is neither a file nor a block device; name one",
        ),
    ] {
        let found = check(&body, core).unwrap_err();
        assert!(found.contains(expected), "{expected}\n{found}");
        assert_eq!(found.lines().count(), 1);
    }
    let missing = Config::load(&directory.path().join("absent.toml")).unwrap_err().to_string();
    assert!(missing.contains("cannot be read") && missing.lines().count() == 1, "{missing}");
}
