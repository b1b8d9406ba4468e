//! OPI's namespaces: every method of theirs, its errors, and the identifiers that they keep.

use crate::opi_frontend::{client, mask};
use crate::opi_volumes::{create_malloc, fields};
use crate::support::{Host, Managed, told};
use tonic::Code;
use vireo_api::opi::malloc_volume_service_client::MallocVolumeServiceClient;
use vireo_api::opi::nvme_namespace_status::{OperState, State};
use vireo_api::opi::{
    CreateNvmeNamespaceRequest, DeleteNvmeNamespaceRequest, GetNvmeNamespaceRequest,
    ListNvmeNamespacesRequest, MallocVolume, NvmeNamespace, NvmeNamespaceSpec,
    UpdateNvmeNamespaceRequest,
};
use vireo_api::v1;

fn namespace(of: &str, id: &str, volume: &str, host_nsid: i32) -> CreateNvmeNamespaceRequest {
    let volume_name_ref = volume.to_owned();
    let spec = NvmeNamespaceSpec { volume_name_ref, host_nsid, ..NvmeNamespaceSpec::default() };
    CreateNvmeNamespaceRequest {
        parent: format!("nvmeSubsystems/{of}"),
        nvme_namespace: Some(NvmeNamespace { spec: Some(spec), ..NvmeNamespace::default() }),
        nvme_namespace_id: id.into(),
    }
}

async fn volume(managed: &Managed, id: &str) {
    let content = MallocVolume { block_size: 512, blocks_count: 2048, ..MallocVolume::default() };
    let mut volumes = MallocVolumeServiceClient::new(managed.channel.clone());
    volumes.create_malloc_volume(create_malloc(id, content)).await.unwrap();
}

#[tokio::test]
async fn a_namespace_keeps_the_identifier_it_was_made_with_over_a_restart() {
    let host = Host::start();
    let managed = host.reached().await;
    let mut frontend = client(&managed);
    for id in ["v1", "v2"] {
        volume(&managed, id).await;
    }
    let request = || namespace("s0", "disk-1", "mallocVolumes/v1", 0);
    let made = frontend.create_nvme_namespace(request()).await.unwrap().into_inner();
    let name = made.name.clone();
    assert_eq!(name, "nvmeSubsystems/s0/nvmeNamespaces/disk-1");
    let spec = made.spec.clone().unwrap();
    assert_eq!((spec.host_nsid, spec.volume_name_ref.as_str()), (2, "mallocVolumes/v1"));
    assert_eq!((spec.uuid.len(), spec.nguid.as_str(), spec.eui64), (36, "", 0));
    let status = made.status.unwrap();
    assert_eq!((status.state(), status.oper_state()), (State::Enabled, OperState::Online));
    assert_eq!(frontend.create_nvme_namespace(request()).await.unwrap().into_inner(), made);
    let v1 = v1::GetNamespaceRequest { name: "subsystems/s0/namespaces/2".into() };
    let v1 = managed.namespaces().get_namespace(v1).await.unwrap().into_inner();
    assert_eq!((&v1.uuid, v1.opi_id.as_str()), (&spec.uuid, "disk-1"));

    drop(frontend);
    managed.kill().await;
    let managed = host.reached().await;
    let mut frontend = client(&managed);
    let get = || GetNvmeNamespaceRequest { name: name.clone() };
    assert_eq!(frontend.get_nvme_namespace(get()).await.unwrap().into_inner(), made);
    let by_nsid = GetNvmeNamespaceRequest { name: "nvmeSubsystems/s0/nvmeNamespaces/2".into() };
    let status = frontend.get_nvme_namespace(by_nsid).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "one name for one namespace");
    let list = ListNvmeNamespacesRequest {
        parent: "nvmeSubsystems/s0".into(),
        ..ListNvmeNamespacesRequest::default()
    };
    let listed = frontend.list_nvme_namespaces(list).await.unwrap().into_inner().nvme_namespaces;
    let names: Vec<_> = listed.iter().map(|namespace| namespace.name.as_str()).collect();
    assert_eq!(names, ["nvmeSubsystems/s0/nvmeNamespaces/1", &name]);
    // What vireo.v1 takes away takes its identifier along.
    let gone = v1::DeleteNamespaceRequest {
        name: "subsystems/s0/namespaces/2".into(),
        ..v1::DeleteNamespaceRequest::default()
    };
    managed.namespaces().delete_namespace(gone).await.unwrap();
    assert!(!host.state().contains("disk-1"), "{}", host.state());
    let again = frontend.create_nvme_namespace(namespace("s0", "", "v2", 0)).await.unwrap();
    assert_eq!(again.into_inner().name, "nvmeSubsystems/s0/nvmeNamespaces/2");
}

#[tokio::test]
async fn what_vireo_s_api_makes_from_an_export_has_the_names_it_had() {
    let host = Host::start();
    let managed = host.reached().await;
    volume(&managed, "v1").await;
    let exported = v1::Namespace {
        volume: "volumes/v1".into(),
        uuid: "123e4567-e89b-42d3-a456-426614174000".into(),
        opi_id: "disk-1".into(),
        ..v1::Namespace::default()
    };
    let request = |namespace: &v1::Namespace, nsid: &str| v1::CreateNamespaceRequest {
        parent: "subsystems/s0".into(),
        namespace_id: nsid.into(),
        namespace: Some(namespace.clone()),
        ..v1::CreateNamespaceRequest::default()
    };
    let made = managed.namespaces().create_namespace(request(&exported, "2")).await.unwrap();
    let made = made.into_inner();
    assert_eq!((&made.uuid, &made.opi_id), (&exported.uuid, &exported.opi_id));
    let name = "nvmeSubsystems/s0/nvmeNamespaces/disk-1".to_owned();
    let get = GetNvmeNamespaceRequest { name };
    let seen = client(&managed).get_nvme_namespace(get).await.unwrap().into_inner().spec.unwrap();
    assert_eq!((seen.host_nsid, &seen.uuid), (2, &exported.uuid));

    volume(&managed, "v2").await;
    let other = v1::Namespace { volume: "volumes/v2".into(), ..exported };
    let no_id = v1::Namespace { opi_id: String::new(), ..other.clone() };
    let no_uuid = v1::Namespace { uuid: String::new(), ..other };
    for (namespace, field) in [(no_id, "namespace.uuid"), (no_uuid, "namespace.opi_id")] {
        let status = managed.namespaces().create_namespace(request(&namespace, "3")).await;
        assert_eq!(fields(&status.unwrap_err()), [field]);
    }
}

#[tokio::test]
async fn namespaces_that_cannot_be_are_refused_by_field() {
    let host = Host::start();
    let managed = host.reached().await;
    let mut frontend = client(&managed);
    for id in ["v1", "v2"] {
        volume(&managed, id).await;
    }
    frontend.create_nvme_namespace(namespace("s0", "n", "volumes/v1", 7)).await.unwrap();
    let state = host.state();
    let spec = |field: &str| Some(format!("nvme_namespace.spec.{field}"));
    for (request, code, field) in [
        (namespace("s0", "n", "v2", 0), Code::AlreadyExists, None),
        (namespace("s0", "n", "v1", 8), Code::AlreadyExists, None),
        (namespace("s0", "m", "v2", 7), Code::AlreadyExists, None),
        (namespace("s0", "m", "v2", -1), Code::InvalidArgument, spec("host_nsid")),
        (namespace("s0", "m", "v2", 257), Code::InvalidArgument, spec("host_nsid")),
        (namespace("s0", "m", "", 0), Code::InvalidArgument, spec("volume_name_ref")),
        (namespace("s0", "m", "v9", 0), Code::InvalidArgument, spec("volume_name_ref")),
        (namespace("s0", "m", "nullVolumes/v2", 0), Code::InvalidArgument, spec("volume_name_ref")),
        (namespace("s0", "m", "v1", 0), Code::InvalidArgument, spec("volume_name_ref")),
        (namespace("s0", "9", "v2", 8), Code::InvalidArgument, Some("nvme_namespace_id".into())),
        (namespace("s0", "a b", "v2", 8), Code::InvalidArgument, Some("nvme_namespace_id".into())),
        (namespace("s9", "m", "v2", 0), Code::NotFound, None),
        (
            CreateNvmeNamespaceRequest { nvme_namespace: None, ..namespace("s0", "m", "v2", 0) },
            Code::InvalidArgument,
            Some("nvme_namespace".into()),
        ),
    ] {
        let status = frontend.create_nvme_namespace(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        assert!(field.is_none_or(|field| fields(&status) == [field]), "{status:?}");
    }
    let update = |name: &str, volume: &str, host_nsid| UpdateNvmeNamespaceRequest {
        nvme_namespace: namespace("", "", volume, host_nsid).nvme_namespace.map(|n| {
            NvmeNamespace { name: format!("nvmeSubsystems/s0/nvmeNamespaces/{name}"), ..n }
        }),
        update_mask: mask(&["*"]),
        allow_missing: false,
    };
    frontend.update_nvme_namespace(update("n", "mallocVolumes/v1", 7)).await.unwrap();
    for (request, code) in [
        (update("n", "v2", 7), Code::FailedPrecondition),
        (update("n", "v1", 8), Code::FailedPrecondition),
        (update("n", "v9", 7), Code::InvalidArgument),
        (update("m", "v2", 8), Code::NotFound),
        (UpdateNvmeNamespaceRequest::default(), Code::InvalidArgument),
    ] {
        let status = frontend.update_nvme_namespace(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
    }
    assert_eq!(host.state(), state);
    let made = UpdateNvmeNamespaceRequest { allow_missing: true, ..update("m", "v2", 8) };
    let made = frontend.update_nvme_namespace(made).await.unwrap().into_inner();
    assert_eq!(made.name, "nvmeSubsystems/s0/nvmeNamespaces/m");
    let delete = |name: &str, allow_missing| DeleteNvmeNamespaceRequest {
        name: format!("nvmeSubsystems/s0/nvmeNamespaces/{name}"),
        allow_missing,
    };
    frontend.delete_nvme_namespace(delete("m", false)).await.unwrap();
    frontend.delete_nvme_namespace(delete("m", true)).await.unwrap();
    let status = frontend.delete_nvme_namespace(delete("m", false)).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::NotFound, "nvmeSubsystems/s0/nvmeNamespaces/m is not there")
    );
    let status = frontend.delete_nvme_namespace(delete("1", false)).await.unwrap_err();
    assert_eq!(told(&status).1, "OF_CONFIGURATION_FILE");
}
