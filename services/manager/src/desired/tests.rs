use super::*;
use crate::sample;
use std::time::Duration;

#[test]
fn a_backend_hears_of_its_own_bdevs_with_all_that_is_configured() {
    let desired = sample::desired(sample::config(&[]));
    let b0 = desired.bdevs("b0", []).bdevs;
    let mem0 = Bdev {
        name: "mem0".into(),
        size_bytes: 64 << 20,
        block_size: 4096,
        channel: ChannelPreference::Lease.into(),
        driver: Some(bdev::Driver::Malloc(MallocDriver {})),
    };
    let file =
        FileDriver { path: "/data/file0".into(), create: false, direct: false, read_only: false };
    let file0 = Bdev {
        name: "file0".into(),
        size_bytes: 0,
        block_size: 512,
        channel: ChannelPreference::Ring.into(),
        driver: Some(bdev::Driver::File(file)),
    };
    assert_eq!(b0, [mem0, file0]);
    let b1 = desired.bdevs("b1", []).bdevs;
    assert_eq!(b1.len(), 1);
    let latency_ns = Duration::from_micros(10).as_nanos() as u64;
    assert_eq!(b1[0].driver, Some(bdev::Driver::Null(NullDriver { latency_ns })));
    assert_eq!(b1[0].channel(), ChannelPreference::Ring);
}

#[test]
fn bdevs_that_are_held_are_told_to_their_own_backend_only() {
    let desired = sample::desired(sample::config(&[]));
    let mut held = desired.config.bdevs[0].clone();
    held.name = "old".into();
    let names = |backend: &str| -> Vec<String> {
        let bdevs = desired.bdevs(backend, [&held]).bdevs;
        bdevs.into_iter().map(|bdev| bdev.name).collect()
    };
    assert_eq!(names("b0"), ["mem0", "file0", "old"]);
    assert_eq!(names("b1"), ["null0"]);
}

#[test]
fn a_frontend_hears_of_its_own_subsystems_and_of_their_endpoints() {
    let desired = sample::desired(sample::config(&[]));
    let f0 = desired.targets("f0");
    let s0 = &f0.subsystems[0];
    assert_eq!((f0.subsystems.len(), f0.endpoints.len()), (1, 1));
    assert_eq!((s0.serial.as_str(), s0.model.as_str()), ("SN0", "M0"));
    assert!(s0.nqn.starts_with("nqn.2014-08.org.nvmexpress:uuid:"), "{}", s0.nqn);
    let [first, second] = s0.namespaces.as_slice() else { panic!("{s0:?}") };
    assert_eq!((first.nsid, first.bdev.as_str(), first.backend.as_str()), (1, "mem0", "b0"));
    assert_eq!((first.size_bytes, first.block_size), (64 << 20, 4096));
    assert_eq!((second.nsid, second.bdev.as_str(), second.backend.as_str()), (7, "null0", "b1"));
    assert_eq!(first.uuid.len(), 16);
    assert_ne!(first.uuid, second.uuid);
    let vm0 = Endpoint {
        name: "vm0".into(),
        subsystem: "s0".into(),
        path: "/run/vireo/vm0".into(),
        doorbells: DoorbellMode::Mapped.into(),
        workers: vec!["w0".into(), "w1".into()],
        queues: 8,
        max_transfer_bytes: 256 << 10,
        vectors: 4,
        limits: None,
    };
    assert_eq!(f0.endpoints, [vm0]);

    let f1 = desired.targets("f1");
    assert_eq!(f1.subsystems[0].nqn, "nqn.2024-01.org.example:s1");
    assert_eq!(f1.subsystems[0].namespaces[0].size_bytes, 0, "the file knows");
    assert_eq!(f1.endpoints[0].doorbells(), DoorbellMode::Shadow);
    assert_eq!(f1.endpoints[0].workers, ["w1"]);
}

#[test]
fn a_namespace_s_own_uuid_is_told_and_none_is_made() {
    let own = "bdev = \"mem0\"\nuuid = \"00112233-4455-4677-8899-aabbccddeeff\"\n";
    let desired = sample::desired(sample::config(&[("bdev = \"mem0\"\n", own)]));
    let f0 = desired.targets("f0");
    let [first, second] = f0.subsystems[0].namespaces.as_slice() else { panic!("{f0:?}") };
    let bytes = [0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x46, 0x77];
    assert_eq!((&first.uuid[..8], first.uuid[15]), (&bytes[..], 0xFF));
    assert_eq!((second.uuid.len(), desired.identities.namespaces.len()), (16, 2));
}

#[test]
fn limits_are_told_where_there_are_any() {
    let edits = [
        ("nsid = 7\nbdev = \"null0\"", "nsid = 7\nbdev = \"null0\"\nlimits = { iops = 500 }"),
        ("queues = 8", "queues = 8\nlimits = { write_bandwidth = \"1MiB\" }"),
    ];
    let f0 = sample::desired(sample::config(&edits)).targets("f0");
    let namespaces: Vec<_> = f0.subsystems[0].namespaces.iter().map(|n| n.limits).collect();
    assert_eq!(namespaces, [None, Some(Limits { iops: 500, ..Limits::default() })]);
    let expected = Limits { write_bandwidth: 1 << 20, ..Limits::default() };
    assert_eq!(f0.endpoints[0].limits, Some(expected));
}

#[test]
fn names_last_over_changes_and_do_not_pass_to_others() {
    let before = sample::desired(sample::config(&[]));
    let mut identities = before.identities.clone();
    identities.complete(&before.config).unwrap();
    assert_eq!(identities, before.identities, "nothing is made twice");
    // Away, and back again.
    let without = sample::config(&[("nsid = 7\nbdev = \"null0\"", "nsid = 8\nbdev = \"null0\"")]);
    identities.complete(&without).unwrap();
    let after = Desired { config: without, identities: identities.clone() };
    let uuids = |desired: &Desired| -> Vec<Vec<u8>> {
        let subsystem = desired.targets("f0").subsystems.remove(0);
        subsystem.namespaces.into_iter().map(|namespace| namespace.uuid).collect()
    };
    assert_eq!(uuids(&before)[0], uuids(&after)[0]);
    assert_ne!(uuids(&before)[1], uuids(&after)[1], "another NSID is another namespace");
    identities.complete(&before.config).unwrap();
    assert_eq!(uuids(&Desired { config: before.config.clone(), identities }), uuids(&before));
}

#[test]
fn more_than_a_message_holds_is_named_with_its_process() {
    assert_eq!(sample::desired(sample::config(&[])).too_long(), None);
    let long = "x".repeat(70);
    let endpoint =
        |n| format!("[[endpoint]]\nname = \"{n}\"\nsubsystem = \"s0\"\npath = \"/{long}/{n}\"\n");
    let many: String = (0..2500).map(endpoint).collect();
    let first = "[[endpoint]]\nname = \"vm0\"\n";
    let config = sample::config(&[(first, &format!("{many}{first}"))]);
    let line = sample::desired(config).too_long().unwrap();
    assert!(line.starts_with("frontend f0 has to serve more than fits"), "{line}");
}
