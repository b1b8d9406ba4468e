//! Volumes: standard methods with all that belongs to them.

use crate::support::{Host, told};
use prost_types::FieldMask;
use tonic::Code;
use tonic_types::StatusExt;
use vireo_api::v1::{
    CreateVolumeRequest, DeleteVolumeRequest, FileVolume, GetVolumeRequest, ListVolumesRequest,
    MallocVolume, NullVolume, Origin, State, UpdateVolumeRequest, Volume, VolumeChannel, volume,
};

pub fn malloc(size_bytes: u64) -> Volume {
    let driver = Some(volume::Driver::Malloc(MallocVolume {}));
    Volume { driver, size_bytes, ..Volume::default() }
}

pub fn create(id: &str, volume: Volume) -> CreateVolumeRequest {
    CreateVolumeRequest { volume_id: id.into(), volume: Some(volume), ..Default::default() }
}

pub fn delete(id: &str) -> DeleteVolumeRequest {
    DeleteVolumeRequest { name: format!("volumes/{id}"), ..Default::default() }
}

fn get(id: &str) -> GetVolumeRequest {
    GetVolumeRequest { name: format!("volumes/{id}") }
}

#[tokio::test]
async fn a_volume_is_made_shown_grown_and_deleted_while_all_runs() {
    let host = Host::start();
    let managed = host.reached().await;
    let mut volumes = managed.volumes();
    let made = volumes.create_volume(create("v1", malloc(1 << 20))).await.unwrap().into_inner();
    assert_eq!(made.name, "volumes/v1");
    assert_eq!((made.origin(), made.state()), (Origin::Api, State::Ready));
    assert_eq!(
        (made.block_size, made.channel(), made.backend.as_str()),
        (512, VolumeChannel::Lease, "b0")
    );
    assert!(made.create_time.is_some() && !made.etag.is_empty());
    assert_eq!(*host.backend.served.lock().unwrap(), ["mem0 67108864", "v1 1048576"]);
    assert_eq!(volumes.get_volume(get("v1")).await.unwrap().into_inner(), made);

    let wanted = Volume { name: made.name.clone(), size_bytes: 2 << 20, ..Volume::default() };
    let update = UpdateVolumeRequest { volume: Some(wanted), ..Default::default() };
    let grown = volumes.update_volume(update).await.unwrap().into_inner();
    assert_eq!((grown.size_bytes, grown.state()), (2 << 20, State::Ready));
    assert_eq!((made.capacity_bytes, grown.capacity_bytes), (1 << 20, 2 << 20));
    assert_ne!(grown.etag, made.etag);
    assert_eq!(*host.backend.served.lock().unwrap(), ["mem0 67108864", "v1 2097152"]);

    volumes.delete_volume(delete("v1")).await.unwrap();
    assert_eq!(*host.backend.served.lock().unwrap(), ["mem0 67108864"]);
    assert_eq!(
        told(&volumes.get_volume(get("v1")).await.unwrap_err()),
        (Code::NotFound, "NOT_FOUND".into())
    );
    assert_eq!(told(&volumes.delete_volume(delete("v1")).await.unwrap_err()).0, Code::NotFound);
    let again = DeleteVolumeRequest { allow_missing: true, ..delete("v1") };
    volumes.delete_volume(again).await.unwrap();
}

#[tokio::test]
async fn every_driver_is_shown_as_it_was_given() {
    let host = Host::start();
    let managed = host.reached().await;
    let mut volumes = managed.volumes();
    let latency = Some(prost_types::Duration { seconds: 0, nanos: 10_000 });
    let path = host.path("disk").to_string_lossy().into_owned();
    let file = FileVolume { path, create: true, buffered: true, read_only: false };
    let drivers = [
        volume::Driver::Null(NullVolume { latency }),
        volume::Driver::Malloc(MallocVolume {}),
        volume::Driver::File(file),
    ];
    for (number, driver) in drivers.into_iter().enumerate() {
        let id = format!("v{number}");
        let given = Volume {
            driver: Some(driver),
            size_bytes: 1 << 20,
            block_size: 4096,
            ..Volume::default()
        };
        let made = volumes.create_volume(create(&id, given.clone())).await.unwrap().into_inner();
        assert_eq!((made.driver, made.block_size), (given.driver, 4096));
    }
}

#[tokio::test]
async fn what_is_wrong_is_named_by_its_field_and_changes_nothing() {
    let host = Host::start();
    let managed = host.reached().await;
    let mut volumes = managed.volumes();
    let state = host.state();
    let file = |path: &str| FileVolume { path: path.into(), ..FileVolume::default() };
    let with_file =
        |path: &str| Volume { driver: Some(volume::Driver::File(file(path))), ..Volume::default() };
    let latency = Some(prost_types::Duration { seconds: -1, nanos: 0 });
    let negative = Some(volume::Driver::Null(NullVolume { latency }));
    let cases = [
        (create("", malloc(1 << 20)), "volume_id"),
        (create("a/b", malloc(1 << 20)), "volume_id"),
        (create(&"x".repeat(64), malloc(1 << 20)), "volume_id"),
        (create("v", Volume::default()), "volume.driver"),
        (CreateVolumeRequest { volume_id: "v".into(), ..Default::default() }, "volume"),
        (create("v", malloc(0)), "volume.size_bytes"),
        (create("v", malloc(513)), "volume.size_bytes"),
        (create("v", malloc(u64::MAX)), "volume.size_bytes"),
        (create("v", Volume { block_size: 1000, ..malloc(1 << 20) }), "volume.block_size"),
        (create("v", Volume { backend: "b9".into(), ..malloc(1 << 20) }), "volume.backend"),
        (create("v", Volume { channel: 9, ..malloc(1 << 20) }), "volume.channel"),
        (create("v", Volume { channel: 1, ..with_file("/dev/null") }), "volume.channel"),
        (create("v", with_file("relative")), "volume.file.path"),
        (create("v", with_file("/nowhere/at/all")), "volume.file.path"),
        (create("v", Volume { driver: negative, ..malloc(1 << 20) }), "volume.null.latency"),
        (
            CreateVolumeRequest { request_id: "\u{e4}".into(), ..create("v", malloc(1 << 20)) },
            "request_id",
        ),
    ];
    for (request, field) in cases {
        let status = volumes.create_volume(request).await.unwrap_err();
        assert_eq!(told(&status), (Code::InvalidArgument, "INVALID_FIELD".into()), "{status:?}");
        let details = status.get_error_details();
        let violations = &details.bad_request().unwrap().field_violations;
        assert!(violations.iter().any(|v| v.field == field), "{field}: {violations:?}");
    }
    for name in ["", "v", "volumes/", "volumes/a/b", "subsystems/s0"] {
        let status = volumes.get_volume(GetVolumeRequest { name: name.into() }).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{name}");
    }
    assert_eq!(host.state(), state);
    assert_eq!(*host.backend.served.lock().unwrap(), ["mem0 67108864"]);
}

#[tokio::test]
async fn what_is_there_and_what_is_the_files_is_refused() {
    let host = Host::start();
    let managed = host.reached().await;
    let mut volumes = managed.volumes();
    let status = volumes.create_volume(create("mem0", malloc(1 << 20))).await.unwrap_err();
    assert_eq!(told(&status), (Code::AlreadyExists, "EXISTS".into()));
    let of_file = (Code::FailedPrecondition, "OF_CONFIGURATION_FILE".to_owned());
    let status = volumes.delete_volume(delete("mem0")).await.unwrap_err();
    assert_eq!(told(&status), of_file);
    let wanted = Volume { name: "volumes/mem0".into(), size_bytes: 128 << 20, ..Volume::default() };
    let update = UpdateVolumeRequest { volume: Some(wanted), ..Default::default() };
    assert_eq!(told(&volumes.update_volume(update).await.unwrap_err()), of_file);
}

#[tokio::test]
async fn a_volume_grows_and_changes_in_no_other_way() {
    let host = Host::start();
    let managed = host.reached().await;
    let mut volumes = managed.volumes();
    let made = volumes.create_volume(create("v1", malloc(1 << 20))).await.unwrap().into_inner();
    let masked = |volume: Volume, paths: &[&str]| {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        let volume = Volume { name: "volumes/v1".into(), ..volume };
        UpdateVolumeRequest {
            volume: Some(volume),
            update_mask: Some(FieldMask { paths }),
            ..Default::default()
        }
    };
    // The mask says what is meant, whatever else is set.
    let both = Volume { block_size: 4096, ..malloc(2 << 20) };
    let grown = volumes.update_volume(masked(both, &["size_bytes"])).await.unwrap().into_inner();
    assert_eq!((grown.size_bytes, grown.block_size), (2 << 20, 512));
    for (volume, paths) in [
        (malloc(1 << 20), &["size_bytes"][..]),
        (Volume { block_size: 4096, ..Volume::default() }, &["block_size"]),
        (Volume { channel: 2, ..Volume::default() }, &["channel"]),
        (malloc(1 << 20), &["*"]),
    ] {
        let status = volumes.update_volume(masked(volume, paths)).await.unwrap_err();
        assert_eq!(told(&status), (Code::FailedPrecondition, "IN_THE_WAY".into()), "{paths:?}");
    }
    let status = volumes.update_volume(masked(malloc(0), &["etag"])).await.unwrap_err();
    assert_eq!(told(&status).0, Code::InvalidArgument);
    // An etag of before the growth.
    let old = Volume { etag: made.etag, ..malloc(4 << 20) };
    let status = volumes.update_volume(masked(old, &["size_bytes"])).await.unwrap_err();
    assert_eq!(told(&status), (Code::Aborted, "ETAG_MISMATCH".into()));
    let stale = DeleteVolumeRequest { etag: "0".into(), ..delete("v1") };
    assert_eq!(volumes.delete_volume(stale).await.unwrap_err().code(), Code::Aborted);
    let now = Volume { etag: grown.etag, ..malloc(4 << 20) };
    volumes.update_volume(masked(now, &["size_bytes"])).await.unwrap();
}

#[tokio::test]
async fn validate_only_says_what_would_be_and_changes_nothing() {
    let host = Host::start();
    let managed = host.reached().await;
    let mut volumes = managed.volumes();
    let state = host.state();
    let request = CreateVolumeRequest {
        validate_only: true,
        request_id: "r1".into(),
        ..create("v1", malloc(1 << 20))
    };
    let would_be = volumes.create_volume(request).await.unwrap().into_inner();
    assert_eq!((would_be.name.as_str(), would_be.state()), ("volumes/v1", State::Reconciling));
    assert_eq!(would_be.capacity_bytes, 0, "no backend has it");
    assert_eq!(volumes.get_volume(get("v1")).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(host.state(), state);
    let wrong = CreateVolumeRequest { validate_only: true, ..create("v1", malloc(1)) };
    assert_eq!(volumes.create_volume(wrong).await.unwrap_err().code(), Code::InvalidArgument);
    // The identifier was not used up.
    let request = CreateVolumeRequest { request_id: "r1".into(), ..create("v1", malloc(1 << 20)) };
    volumes.create_volume(request).await.unwrap();
    let request = DeleteVolumeRequest { validate_only: true, ..delete("v1") };
    volumes.delete_volume(request).await.unwrap();
    volumes.get_volume(get("v1")).await.unwrap();
}

#[tokio::test]
async fn a_request_that_is_repeated_is_done_once_also_after_a_restart() {
    let host = Host::start();
    let managed = host.reached().await;
    let request = CreateVolumeRequest { request_id: "r1".into(), ..create("v1", malloc(1 << 20)) };
    let first = managed.volumes().create_volume(request.clone()).await.unwrap().into_inner();
    let state = host.state();
    let second = managed.volumes().create_volume(request.clone()).await.unwrap().into_inner();
    assert_eq!(second, first);
    assert_eq!(host.state(), state);
    let other = CreateVolumeRequest { request_id: "r1".into(), ..create("v2", malloc(1 << 20)) };
    let status = managed.volumes().create_volume(other).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    managed.kill().await;

    let managed = host.reached().await;
    let third = managed.volumes().create_volume(request).await.unwrap().into_inner();
    assert_eq!(third, first);
    let gone = DeleteVolumeRequest { request_id: "r2".into(), ..delete("v1") };
    for _ in 0..2 {
        managed.volumes().delete_volume(gone.clone()).await.unwrap();
    }
    let fresh = DeleteVolumeRequest { request_id: "r3".into(), ..delete("v1") };
    assert_eq!(managed.volumes().delete_volume(fresh).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn lists_come_in_pages() {
    let host = Host::start();
    let managed = host.reached().await;
    let mut volumes = managed.volumes();
    for number in 0..4 {
        volumes.create_volume(create(&format!("v{number}"), malloc(1 << 20))).await.unwrap();
    }
    let (mut names, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListVolumesRequest { page_size: 2, page_token };
        let answer = volumes.list_volumes(request).await.unwrap().into_inner();
        assert!(answer.volumes.len() <= 2);
        names.extend(answer.volumes.into_iter().map(|volume| volume.name));
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["volumes/mem0", "volumes/v0", "volumes/v1", "volumes/v2", "volumes/v3"]);
    for (page_size, page_token) in [(-1, ""), (1, "junk")] {
        let request = ListVolumesRequest { page_size, page_token: page_token.into() };
        assert_eq!(volumes.list_volumes(request).await.unwrap_err().code(), Code::InvalidArgument);
    }
}
