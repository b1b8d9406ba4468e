//! OPI's volumes: every method of the three services, beside `vireo.v1`, which sees the same.

use crate::support::{Host, Managed, told};
use crate::volumes::{create, malloc};
use prost_types::FieldMask;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use vireo_api::opi::aio_volume_service_client::AioVolumeServiceClient;
use vireo_api::opi::malloc_volume_service_client::MallocVolumeServiceClient;
use vireo_api::opi::null_volume_service_client::NullVolumeServiceClient;
use vireo_api::opi::{
    AioVolume, CreateAioVolumeRequest, CreateMallocVolumeRequest, CreateNullVolumeRequest,
    DeleteAioVolumeRequest, DeleteMallocVolumeRequest, DeleteNullVolumeRequest,
    GetAioVolumeRequest, GetMallocVolumeRequest, GetNullVolumeRequest, ListAioVolumesRequest,
    ListMallocVolumesRequest, ListNullVolumesRequest, MallocVolume, NullVolume,
    StatsAioVolumeRequest, StatsMallocVolumeRequest, StatsNullVolumeRequest,
    UpdateAioVolumeRequest, UpdateMallocVolumeRequest, UpdateNullVolumeRequest, VolumeStats,
};
use vireo_api::v1;

fn null(managed: &Managed) -> NullVolumeServiceClient<Channel> {
    NullVolumeServiceClient::new(managed.channel.clone())
}

fn memory(managed: &Managed) -> MallocVolumeServiceClient<Channel> {
    MallocVolumeServiceClient::new(managed.channel.clone())
}

fn aio(managed: &Managed) -> AioVolumeServiceClient<Channel> {
    AioVolumeServiceClient::new(managed.channel.clone())
}

fn blocks(block_size: i64, blocks_count: i64) -> MallocVolume {
    MallocVolume { block_size, blocks_count, ..Default::default() }
}

pub fn create_malloc(id: &str, volume: MallocVolume) -> CreateMallocVolumeRequest {
    CreateMallocVolumeRequest { malloc_volume: Some(volume), malloc_volume_id: id.into() }
}

fn get(name: &str) -> GetMallocVolumeRequest {
    GetMallocVolumeRequest { name: name.into() }
}

fn delete(name: &str, allow_missing: bool) -> DeleteMallocVolumeRequest {
    DeleteMallocVolumeRequest { name: name.into(), allow_missing }
}

fn update(volume: MallocVolume, paths: &[&str]) -> UpdateMallocVolumeRequest {
    let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
    UpdateMallocVolumeRequest {
        malloc_volume: Some(volume),
        update_mask: (!paths.is_empty()).then_some(FieldMask { paths }),
        allow_missing: false,
    }
}

/// The fields that a refusal names.
pub fn fields(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    let violations = details.bad_request().map(|wrong| wrong.field_violations.clone());
    violations.unwrap_or_default().into_iter().map(|violation| violation.field).collect()
}

#[tokio::test]
async fn a_volume_is_made_shown_grown_counted_and_deleted() {
    let host = Host::start();
    let managed = host.reached().await;
    let mut volumes = memory(&managed);
    let made = volumes.create_malloc_volume(create_malloc("v1", blocks(4096, 256))).await;
    let made = made.unwrap().into_inner();
    let name = "mallocVolumes/v1";
    assert_eq!(made, MallocVolume { name: name.into(), ..blocks(4096, 256) });
    assert_eq!(*host.backend.served.lock().unwrap(), ["mem0 67108864", "v1 1048576"]);
    for name in [name, "volumes/v1"] {
        assert_eq!(volumes.get_malloc_volume(get(name)).await.unwrap().into_inner(), made);
    }
    let v1 = v1::GetVolumeRequest { name: "volumes/v1".into() };
    let v1 = managed.volumes().get_volume(v1).await.unwrap().into_inner();
    assert_eq!((v1.size_bytes, v1.block_size, v1.origin()), (1 << 20, 4096, v1::Origin::Api));

    let larger = MallocVolume { name: name.into(), blocks_count: 512, ..Default::default() };
    let grown = volumes.update_malloc_volume(update(larger, &[])).await.unwrap().into_inner();
    assert_eq!(grown, MallocVolume { name: name.into(), ..blocks(4096, 512) });
    assert_eq!(*host.backend.served.lock().unwrap(), ["mem0 67108864", "v1 2097152"]);
    let request = StatsMallocVolumeRequest { name: name.into() };
    let stats = volumes.stats_malloc_volume(request).await.unwrap().into_inner().stats;
    assert_eq!(stats, Some(VolumeStats::default()));

    volumes.delete_malloc_volume(delete(name, false)).await.unwrap();
    assert_eq!(*host.backend.served.lock().unwrap(), ["mem0 67108864"]);
    let status = volumes.delete_malloc_volume(delete(name, false)).await.unwrap_err();
    assert_eq!(told(&status), (Code::NotFound, "NOT_FOUND".into()));
    assert_eq!(status.message(), "mallocVolumes/v1 is not there");
    volumes.delete_malloc_volume(delete(name, true)).await.unwrap();
    assert_eq!(volumes.get_malloc_volume(get(name)).await.unwrap_err().code(), Code::NotFound);
    let request = StatsMallocVolumeRequest { name: name.into() };
    assert_eq!(volumes.stats_malloc_volume(request).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_call_that_is_repeated_finds_what_it_made() {
    let host = Host::start();
    let managed = host.reached().await;
    let mut volumes = memory(&managed);
    let request = || create_malloc("v1", blocks(512, 2048));
    let made = volumes.create_malloc_volume(request()).await.unwrap().into_inner();
    let state = host.state();
    assert_eq!(volumes.create_malloc_volume(request()).await.unwrap().into_inner(), made);
    assert_eq!(host.state(), state);
    let other = create_malloc("v1", blocks(512, 4096));
    let status = volumes.create_malloc_volume(other).await.unwrap_err();
    assert_eq!(told(&status), (Code::AlreadyExists, "EXISTS".into()));
    // All kinds share their identifiers.
    let same = NullVolume { block_size: 512, blocks_count: 2048, ..Default::default() };
    let same = CreateNullVolumeRequest { null_volume: Some(same), null_volume_id: "v1".into() };
    let status = null(&managed).create_null_volume(same).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::AlreadyExists, "nullVolumes/v1 is there already")
    );
    // Without an identifier, each is another one.
    let first = volumes.create_malloc_volume(create_malloc("", blocks(512, 8))).await.unwrap();
    let second = volumes.create_malloc_volume(create_malloc("", blocks(512, 8))).await.unwrap();
    assert_ne!(first.into_inner().name, second.into_inner().name);
}

#[tokio::test]
async fn null_and_aio_have_the_same_methods() {
    let host = Host::start();
    let managed = host.reached().await;
    let content = NullVolume { block_size: 4096, blocks_count: 16, ..Default::default() };
    let mut volumes = null(&managed);
    let request =
        CreateNullVolumeRequest { null_volume: Some(content), null_volume_id: "n1".into() };
    let made = volumes.create_null_volume(request).await.unwrap().into_inner();
    let name = made.name.clone();
    assert_eq!((name.as_str(), made.blocks_count), ("nullVolumes/n1", 16));
    let get = GetNullVolumeRequest { name: name.clone() };
    assert_eq!(volumes.get_null_volume(get).await.unwrap().into_inner(), made);
    let larger = NullVolume { blocks_count: 32, ..made };
    let request =
        UpdateNullVolumeRequest { null_volume: Some(larger.clone()), ..Default::default() };
    assert_eq!(volumes.update_null_volume(request).await.unwrap().into_inner(), larger);
    let listed = volumes.list_null_volumes(ListNullVolumesRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().null_volumes, [larger]);
    let request = StatsNullVolumeRequest { name: name.clone() };
    assert!(volumes.stats_null_volume(request).await.unwrap().into_inner().stats.is_some());
    let request = DeleteNullVolumeRequest { name, allow_missing: false };
    volumes.delete_null_volume(request).await.unwrap();

    let path = host.path("disk");
    std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let filename = path.to_string_lossy().into_owned();
    let content = AioVolume { filename: filename.clone(), blocks_count: 64, ..Default::default() };
    let mut volumes = aio(&managed);
    let request = CreateAioVolumeRequest { aio_volume: Some(content), aio_volume_id: "a1".into() };
    let made = volumes.create_aio_volume(request).await.unwrap().into_inner();
    let name = made.name.clone();
    assert_eq!((made.block_size, made.blocks_count, made.filename.as_str()), (512, 64, &*filename));
    let get = GetAioVolumeRequest { name: name.clone() };
    assert_eq!(volumes.get_aio_volume(get).await.unwrap().into_inner(), made);
    std::fs::File::create(host.path("other")).unwrap().set_len(1 << 20).unwrap();
    let filename = host.path("other").to_string_lossy().into_owned();
    let elsewhere = AioVolume { filename, ..made.clone() };
    let request =
        UpdateAioVolumeRequest { aio_volume: Some(elsewhere), ..UpdateAioVolumeRequest::default() };
    let status = volumes.update_aio_volume(request).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    let listed = volumes.list_aio_volumes(ListAioVolumesRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().aio_volumes, [made]);
    let request = StatsAioVolumeRequest { name: name.clone() };
    assert!(volumes.stats_aio_volume(request).await.unwrap().into_inner().stats.is_some());
    volumes.delete_aio_volume(DeleteAioVolumeRequest { name, allow_missing: false }).await.unwrap();
    let nowhere = AioVolume { filename: "/nowhere/at/all".into(), ..Default::default() };
    let request = CreateAioVolumeRequest { aio_volume: Some(nowhere), aio_volume_id: "a2".into() };
    let status = volumes.create_aio_volume(request).await.unwrap_err();
    assert_eq!(fields(&status), ["aio_volume.filename"], "{status:?}");
}

#[tokio::test]
async fn what_is_wrong_is_named_by_its_field_and_changes_nothing() {
    let host = Host::start();
    let managed = host.reached().await;
    let mut volumes = memory(&managed);
    let state = host.state();
    let metadata = MallocVolume { metadata_size: 8, ..blocks(512, 8) };
    for (request, field) in [
        (create_malloc("a/b", blocks(512, 8)), "malloc_volume_id"),
        (create_malloc(&"x".repeat(64), blocks(512, 8)), "malloc_volume_id"),
        (CreateMallocVolumeRequest::default(), "malloc_volume"),
        (create_malloc("v", blocks(0, 8)), "malloc_volume.block_size"),
        (create_malloc("v", blocks(-512, 8)), "malloc_volume.block_size"),
        (create_malloc("v", blocks(1000, 8)), "malloc_volume.block_size"),
        (create_malloc("v", blocks(512, 0)), "malloc_volume.blocks_count"),
        (create_malloc("v", blocks(512, -1)), "malloc_volume.blocks_count"),
        (create_malloc("v", blocks(4096, i64::MAX)), "malloc_volume.blocks_count"),
        (create_malloc("v", metadata), "malloc_volume.metadata_size"),
    ] {
        let status = volumes.create_malloc_volume(request).await.unwrap_err();
        assert_eq!(told(&status), (Code::InvalidArgument, "INVALID_FIELD".into()), "{status:?}");
        assert!(fields(&status).iter().any(|found| found == field), "{field}: {status:?}");
    }
    for name in ["", "v", "nullVolumes/mem0", "mallocVolumes/", "mallocVolumes/a/b"] {
        let status = volumes.get_malloc_volume(get(name)).await.unwrap_err();
        assert_eq!(fields(&status), ["name"], "{name}: {status:?}");
    }
    // One of another kind is not there.
    let other = GetNullVolumeRequest { name: "volumes/mem0".into() };
    assert_eq!(null(&managed).get_null_volume(other).await.unwrap_err().code(), Code::NotFound);
    let other = DeleteNullVolumeRequest { name: "volumes/mem0".into(), allow_missing: false };
    assert_eq!(null(&managed).delete_null_volume(other).await.unwrap_err().code(), Code::NotFound);
    let page = ListMallocVolumesRequest { page_size: -1, ..Default::default() };
    let status = volumes.list_malloc_volumes(page).await.unwrap_err();
    assert_eq!(fields(&status), ["page_size"]);
    assert_eq!(host.state(), state);
}

#[tokio::test]
async fn masks_say_what_changes_and_a_missing_volume_may_be_made() {
    let host = Host::start();
    let managed = host.reached().await;
    let mut volumes = memory(&managed);
    volumes.create_malloc_volume(create_malloc("v1", blocks(512, 2048))).await.unwrap();
    let named = |volume| MallocVolume { name: "mallocVolumes/v1".into(), ..volume };
    // What the mask does not name is left alone.
    let request = update(named(blocks(4096, 4096)), &["blocks_count", "name", "uuid"]);
    let grown = volumes.update_malloc_volume(request).await.unwrap().into_inner();
    assert_eq!((grown.block_size, grown.blocks_count), (512, 4096));
    let same = update(named(blocks(512, 4096)), &["*"]);
    assert_eq!(volumes.update_malloc_volume(same).await.unwrap().into_inner(), grown);
    for (request, code, field) in [
        (update(named(blocks(512, 2048)), &[]), Code::FailedPrecondition, None),
        (update(named(blocks(4096, 512)), &["*"]), Code::FailedPrecondition, None),
        (update(named(blocks(0, 0)), &["*"]), Code::InvalidArgument, Some("block_size")),
        (
            update(named(blocks(512, -1)), &["blocks_count"]),
            Code::InvalidArgument,
            Some("blocks_count"),
        ),
        (update(named(blocks(512, 1)), &["size"]), Code::InvalidArgument, None),
        (update(MallocVolume::default(), &["*"]), Code::InvalidArgument, Some("name")),
        (UpdateMallocVolumeRequest::default(), Code::InvalidArgument, None),
    ] {
        let status = volumes.update_malloc_volume(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        let field = field.map(|field| format!("malloc_volume.{field}"));
        assert!(field.is_none_or(|field| fields(&status) == [field]), "{status:?}");
    }
    let absent = MallocVolume { name: "mallocVolumes/v2".into(), ..blocks(512, 8) };
    let request = update(absent, &["blocks_count"]);
    let status = volumes.update_malloc_volume(request.clone()).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::NotFound, "mallocVolumes/v2 is not there")
    );
    let request = UpdateMallocVolumeRequest { allow_missing: true, ..request };
    for _ in 0..2 {
        let made = volumes.update_malloc_volume(request.clone()).await.unwrap().into_inner();
        assert_eq!((made.name.as_str(), made.block_size), ("mallocVolumes/v2", 512));
    }
}

#[tokio::test]
async fn the_files_volumes_are_shown_in_pages_with_the_others_and_change_there() {
    let host = Host::start();
    let managed = host.reached().await;
    let mut volumes = memory(&managed);
    managed.volumes().create_volume(create("by-vireo", malloc(1 << 20))).await.unwrap();
    volumes.create_malloc_volume(create_malloc("z", blocks(512, 8))).await.unwrap();
    let (mut names, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListMallocVolumesRequest { page_size: 1, page_token };
        let page = volumes.list_malloc_volumes(request).await.unwrap().into_inner();
        assert_eq!(page.malloc_volumes.len(), 1);
        names.extend(page.malloc_volumes.into_iter().map(|volume| volume.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["mallocVolumes/by-vireo", "mallocVolumes/mem0", "mallocVolumes/z"]);
    let larger = MallocVolume { blocks_count: 1 << 20, ..Default::default() };
    let larger = MallocVolume { name: "mallocVolumes/mem0".into(), ..larger };
    for status in [
        volumes.update_malloc_volume(update(larger, &[])).await.unwrap_err(),
        volumes.delete_malloc_volume(delete("mallocVolumes/mem0", true)).await.unwrap_err(),
    ] {
        assert_eq!(told(&status), (Code::FailedPrecondition, "OF_CONFIGURATION_FILE".into()));
        assert!(status.message().starts_with("mallocVolumes/mem0 belongs to"), "{status:?}");
    }
    // What one API makes, the other deletes.
    let name = "mallocVolumes/by-vireo";
    volumes.delete_malloc_volume(delete(name, false)).await.unwrap();
    assert_eq!(*host.backend.served.lock().unwrap(), ["mem0 67108864", "z 4096"]);
}

#[tokio::test]
async fn nothing_is_left_of_a_volume_that_its_backend_refuses() {
    let host = Host::start();
    let managed = host.reached().await;
    host.backend.failures.lock().unwrap().insert("bdev v1".into(), "no memory".into());
    let request = create_malloc("v1", blocks(512, 8));
    let status = memory(&managed).create_malloc_volume(request).await.unwrap_err();
    assert_eq!(told(&status), (Code::FailedPrecondition, "PROCESS_REFUSED".into()));
    assert_eq!(status.message(), "mallocVolumes/v1 cannot be served: no memory");
    let status = memory(&managed).get_malloc_volume(get("mallocVolumes/v1")).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}
