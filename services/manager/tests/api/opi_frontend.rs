//! OPI's subsystems and controllers: every method of theirs, its errors, and what stays.

use crate::opi_volumes::fields;
use crate::support::{Host, Managed, told};
use prost_types::FieldMask;
use tonic::Code;
use tonic::transport::Channel;
use vireo_api::opi::frontend_nvme_service_client::FrontendNvmeServiceClient;
use vireo_api::opi::nvme_controller_spec::Endpoint;
use vireo_api::opi::{
    CreateNvmeControllerRequest, CreateNvmeSubsystemRequest, DeleteNvmeControllerRequest,
    DeleteNvmeSubsystemRequest, FabricsEndpoint, GetNvmeControllerRequest, GetNvmeSubsystemRequest,
    ListNvmeControllersRequest, ListNvmeSubsystemsRequest, NvmeController, NvmeControllerSpec,
    NvmeSubsystem, NvmeSubsystemSpec, NvmeTransportType, PciEndpoint, QosLimit,
    StatsNvmeControllerRequest, StatsNvmeNamespaceRequest, StatsNvmeSubsystemRequest,
    UpdateNvmeControllerRequest, UpdateNvmeSubsystemRequest, VolumeStats,
};
use vireo_api::v1;
use vireo_proto::handoff::{EndpointReport, NamespaceCounters, WorkerCounters};

pub fn client(managed: &Managed) -> FrontendNvmeServiceClient<Channel> {
    FrontendNvmeServiceClient::new(managed.channel.clone())
}

fn subsystem(id: &str, spec: NvmeSubsystemSpec) -> CreateNvmeSubsystemRequest {
    let subsystem = NvmeSubsystem { spec: Some(spec), ..NvmeSubsystem::default() };
    CreateNvmeSubsystemRequest { nvme_subsystem: Some(subsystem), nvme_subsystem_id: id.into() }
}

fn pcie(function: i32) -> NvmeControllerSpec {
    let number = |number| Some(number);
    NvmeControllerSpec {
        trtype: NvmeTransportType::Pcie.into(),
        endpoint: Some(Endpoint::PcieId(PciEndpoint {
            port_id: number(0),
            physical_function: number(function),
            virtual_function: number(0),
        })),
        ..NvmeControllerSpec::default()
    }
}

fn controller(of: &str, id: &str, spec: NvmeControllerSpec) -> CreateNvmeControllerRequest {
    CreateNvmeControllerRequest {
        parent: format!("nvmeSubsystems/{of}"),
        nvme_controller: Some(NvmeController { spec: Some(spec), ..NvmeController::default() }),
        nvme_controller_id: id.into(),
    }
}

pub fn mask(paths: &[&str]) -> Option<FieldMask> {
    Some(FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() })
}

#[tokio::test]
async fn a_subsystem_is_made_shown_kept_and_deleted() {
    let host = Host::start();
    let managed = host.reached().await;
    let mut frontend = client(&managed);
    let spec = NvmeSubsystemSpec {
        nqn: "nqn.2024-01.org.example:s1".into(),
        serial_number: "SN1".into(),
        max_namespaces: 10,
        ..NvmeSubsystemSpec::default()
    };
    let request = || subsystem("s1", spec.clone());
    let made = frontend.create_nvme_subsystem(request()).await.unwrap().into_inner();
    let shown = made.spec.clone().unwrap();
    assert_eq!((made.name.as_str(), &shown.nqn), ("nvmeSubsystems/s1", &spec.nqn));
    assert_eq!((shown.serial_number.as_str(), shown.max_namespaces), ("SN1", 256));
    assert_eq!(shown.model_number, "Vireo NVMe Controller");
    assert_eq!(made.status.as_ref().unwrap().firmware_revision, env!("CARGO_PKG_VERSION"));
    assert_eq!(frontend.create_nvme_subsystem(request()).await.unwrap().into_inner(), made);
    let get = || GetNvmeSubsystemRequest { name: "nvmeSubsystems/s1".into() };
    assert_eq!(frontend.get_nvme_subsystem(get()).await.unwrap().into_inner(), made);
    let listed = frontend.list_nvme_subsystems(ListNvmeSubsystemsRequest::default()).await.unwrap();
    let names: Vec<_> = listed.into_inner().nvme_subsystems.into_iter().map(|s| s.name).collect();
    assert_eq!(names, ["nvmeSubsystems/s0", "nvmeSubsystems/s1"]);
    let stats = StatsNvmeSubsystemRequest { name: made.name.clone() };
    let stats = frontend.stats_nvme_subsystem(stats).await.unwrap().into_inner().stats;
    assert_eq!(stats, Some(VolumeStats::default()));

    // What is so already may be asked for; the rest cannot change.
    let update = |spec: NvmeSubsystemSpec, paths: &[&str]| UpdateNvmeSubsystemRequest {
        nvme_subsystem: Some(NvmeSubsystem {
            name: "nvmeSubsystems/s1".into(),
            spec: Some(spec),
            status: None,
        }),
        update_mask: mask(paths),
        allow_missing: false,
    };
    let same = update(spec.clone(), &["*"]);
    assert_eq!(frontend.update_nvme_subsystem(same).await.unwrap().into_inner(), made);
    let serial = |serial: &str| NvmeSubsystemSpec { serial_number: serial.into(), ..spec.clone() };
    let unnamed = update(serial("SN2"), &["spec.nqn"]);
    assert_eq!(frontend.update_nvme_subsystem(unnamed).await.unwrap().into_inner(), made);
    let other = update(serial("SN2"), &["spec.serial_number"]);
    let status = frontend.update_nvme_subsystem(other).await.unwrap_err();
    assert_eq!(told(&status), (Code::FailedPrecondition, "IN_THE_WAY".into()), "{status:?}");
    let missing = || UpdateNvmeSubsystemRequest {
        nvme_subsystem: Some(NvmeSubsystem {
            name: "nvmeSubsystems/s2".into(),
            spec: Some(NvmeSubsystemSpec::default()),
            status: None,
        }),
        ..UpdateNvmeSubsystemRequest::default()
    };
    assert_eq!(frontend.update_nvme_subsystem(missing()).await.unwrap_err().code(), Code::NotFound);
    let made_so = UpdateNvmeSubsystemRequest { allow_missing: true, ..missing() };
    let made_so = frontend.update_nvme_subsystem(made_so).await.unwrap().into_inner();
    assert!(made_so.spec.unwrap().nqn.starts_with("nqn.2014-08.org.nvmexpress:uuid:"));

    let delete = |allow_missing| DeleteNvmeSubsystemRequest {
        name: "nvmeSubsystems/s1".into(),
        allow_missing,
    };
    frontend.delete_nvme_subsystem(delete(false)).await.unwrap();
    let status = frontend.delete_nvme_subsystem(delete(false)).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::NotFound, "nvmeSubsystems/s1 is not there")
    );
    frontend.delete_nvme_subsystem(delete(true)).await.unwrap();
    assert_eq!(frontend.get_nvme_subsystem(get()).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn subsystems_that_cannot_be_are_refused_by_field() {
    let host = Host::start();
    let managed = host.reached().await;
    let mut frontend = client(&managed);
    let state = host.state();
    let with = |change: fn(&mut NvmeSubsystemSpec)| {
        let mut spec = NvmeSubsystemSpec::default();
        change(&mut spec);
        subsystem("s1", spec)
    };
    for (request, field) in [
        (subsystem("a/b", NvmeSubsystemSpec::default()), "nvme_subsystem_id"),
        (CreateNvmeSubsystemRequest::default(), "nvme_subsystem"),
        (with(|spec| spec.nqn = "iqn.x".into()), "nvme_subsystem.spec.nqn"),
        (with(|spec| spec.serial_number = "x".repeat(21)), "nvme_subsystem.spec.serial_number"),
        (with(|spec| spec.model_number = "\u{e4}".into()), "nvme_subsystem.spec.model_number"),
        (with(|spec| spec.max_namespaces = 257), "nvme_subsystem.spec.max_namespaces"),
        (with(|spec| spec.hostnqn = "nqn.host".into()), "nvme_subsystem.spec.hostnqn"),
        (with(|spec| spec.psk = vec![1]), "nvme_subsystem.spec.psk"),
    ] {
        let status = frontend.create_nvme_subsystem(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert_eq!(fields(&status), [field], "{status:?}");
    }
    let serial = NvmeSubsystemSpec { serial_number: "X".into(), ..NvmeSubsystemSpec::default() };
    let status = frontend.create_nvme_subsystem(subsystem("s0", serial)).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    let of_file =
        DeleteNvmeSubsystemRequest { name: "nvmeSubsystems/s0".into(), allow_missing: false };
    let status = frontend.delete_nvme_subsystem(of_file).await.unwrap_err();
    assert_eq!(told(&status).1, "OF_CONFIGURATION_FILE");
    assert_eq!(host.state(), state);
}

#[tokio::test]
async fn a_controller_is_a_function_whose_numbers_name_its_directory() {
    let host = Host::start();
    let managed = host.reached().await;
    let mut frontend = client(&managed);
    let limit = QosLimit { rw_iops_kiops: 5, ..QosLimit::default() };
    let spec = NvmeControllerSpec {
        max_nsq: 8,
        max_ncq: 500,
        sqes: 7,
        nvme_controller_id: Some(1),
        max_limit: Some(limit),
        ..pcie(3)
    };
    let request = || controller("s0", "c1", spec.clone());
    let made = frontend.create_nvme_controller(request()).await.unwrap().into_inner();
    let name = made.name.clone();
    assert_eq!(name, "nvmeSubsystems/s0/nvmeControllers/c1");
    let shown = made.spec.clone().unwrap();
    assert_eq!(shown.endpoint, pcie(3).endpoint);
    assert_eq!((shown.max_nsq, shown.max_ncq, shown.sqes, shown.cqes), (8, 8, 6, 4));
    assert_eq!((shown.nvme_controller_id, shown.max_limit), (None, Some(limit)));
    assert!(!made.status.unwrap().active);
    let v1 = v1::GetControllerRequest { name: "controllers/c1".into() };
    let v1 = managed.controllers().get_controller(v1).await.unwrap().into_inner();
    assert_eq!(v1.path, host.path("pcie-0.3.0").to_string_lossy());
    assert_eq!((v1.queues, v1.limits.unwrap().iops), (8, Some(5_000)));
    assert_eq!(frontend.create_nvme_controller(request()).await.unwrap().into_inner(), made);

    for (request, code, field) in [
        (controller("s0", "c1", pcie(3)), Code::AlreadyExists, None),
        (controller("s0", "vm0", pcie(4)), Code::AlreadyExists, None),
        (controller("s0", "c2", pcie(3)), Code::InvalidArgument, Some("spec.pcie_id")),
        (
            controller("s0", "c2", pcie(-1)),
            Code::InvalidArgument,
            Some("spec.pcie_id.physical_function"),
        ),
        (controller("s9", "c2", pcie(4)), Code::NotFound, None),
        (
            controller("s0", "c2", NvmeControllerSpec { trtype: 0, ..pcie(4) }),
            Code::InvalidArgument,
            Some("spec.trtype"),
        ),
        (
            controller(
                "s0",
                "c2",
                NvmeControllerSpec {
                    trtype: NvmeTransportType::Tcp.into(),
                    endpoint: Some(Endpoint::FabricsId(FabricsEndpoint::default())),
                    ..NvmeControllerSpec::default()
                },
            ),
            Code::InvalidArgument,
            Some("spec.trtype"),
        ),
        (
            controller("s0", "c2", NvmeControllerSpec { max_ncq: -1, ..pcie(4) }),
            Code::InvalidArgument,
            Some("spec.max_ncq"),
        ),
        (
            controller("s0", "c2", NvmeControllerSpec { min_limit: Some(limit), ..pcie(4) }),
            Code::InvalidArgument,
            Some("spec.min_limit"),
        ),
        (
            controller(
                "s0",
                "c2",
                NvmeControllerSpec {
                    max_limit: Some(QosLimit { rd_iops_kiops: 1 << 40, ..QosLimit::default() }),
                    ..pcie(4)
                },
            ),
            Code::InvalidArgument,
            Some("spec.max_limit.rd_iops_kiops"),
        ),
        (
            controller(
                "s0",
                "c2",
                NvmeControllerSpec { nvme_controller_id: Some(65536), ..pcie(4) },
            ),
            Code::InvalidArgument,
            Some("spec.nvme_controller_id"),
        ),
    ] {
        let status = frontend.create_nvme_controller(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        let field = field.map(|field| format!("nvme_controller.{field}"));
        assert!(field.is_none_or(|field| fields(&status) == [field]), "{status:?}");
    }
    let delete = |allow_missing| DeleteNvmeControllerRequest { name: name.clone(), allow_missing };
    frontend.delete_nvme_controller(delete(false)).await.unwrap();
    assert_eq!(
        frontend.delete_nvme_controller(delete(false)).await.unwrap_err().code(),
        Code::NotFound
    );
    frontend.delete_nvme_controller(delete(true)).await.unwrap();
    assert_eq!(*host.frontend.served.lock().unwrap(), ["s0", "s0/1", "vm0"]);
    // Without numbers the directory has the controller's name.
    let spec = NvmeControllerSpec { endpoint: None, ..pcie(0) };
    let made = frontend.create_nvme_controller(controller("s0", "c3", spec)).await.unwrap();
    assert_eq!(made.into_inner().spec.unwrap().endpoint, None);
    let v1 = v1::GetControllerRequest { name: "controllers/c3".into() };
    let v1 = managed.controllers().get_controller(v1).await.unwrap().into_inner();
    assert_eq!(v1.path, host.path("c3").to_string_lossy());
}

#[tokio::test]
async fn a_controller_changes_its_limits_and_nothing_else() {
    let host = Host::start();
    let managed = host.reached().await;
    let mut frontend = client(&managed);
    let made = frontend.create_nvme_controller(controller("s0", "c1", pcie(1))).await.unwrap();
    let name = made.into_inner().name;
    let update = |spec: NvmeControllerSpec, paths: &[&str]| UpdateNvmeControllerRequest {
        nvme_controller: Some(NvmeController {
            name: name.clone(),
            spec: Some(spec),
            status: None,
        }),
        update_mask: (!paths.is_empty()).then(|| mask(paths)).flatten(),
        allow_missing: false,
    };
    let limited = |kiops| NvmeControllerSpec {
        max_limit: Some(QosLimit { rd_iops_kiops: kiops, ..QosLimit::default() }),
        ..NvmeControllerSpec::default()
    };
    let limit = |controller: NvmeController| {
        controller.spec.unwrap().max_limit.map(|limit| limit.rd_iops_kiops)
    };
    let changed = frontend.update_nvme_controller(update(limited(3), &[])).await.unwrap();
    assert_eq!(limit(changed.into_inner()), Some(3));
    let same = frontend.update_nvme_controller(update(limited(9), &["spec.max_nsq"])).await;
    let _refused = same.unwrap();
    let get = GetNvmeControllerRequest { name: name.clone() };
    let now = frontend.get_nvme_controller(get).await.unwrap().into_inner();
    assert_eq!(limit(now), Some(3), "what the mask does not name is left alone");
    let none = NvmeControllerSpec::default();
    let changed = frontend.update_nvme_controller(update(none, &["spec.max_limit"])).await.unwrap();
    assert_eq!(limit(changed.into_inner()), None);
    for (request, code) in [
        (update(pcie(2), &["*"]), Code::FailedPrecondition),
        (update(NvmeControllerSpec { max_nsq: 3, ..pcie(1) }, &[]), Code::FailedPrecondition),
        (update(NvmeControllerSpec { trtype: 4, ..pcie(1) }, &[]), Code::InvalidArgument),
        (update(pcie(1), &["spec.nothing"]), Code::InvalidArgument),
        (update(limited(-1), &[]), Code::InvalidArgument),
    ] {
        let status = frontend.update_nvme_controller(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
    }
    frontend.update_nvme_controller(update(pcie(1), &["*"])).await.unwrap();
    let other = UpdateNvmeControllerRequest {
        nvme_controller: Some(NvmeController {
            name: "nvmeSubsystems/s0/nvmeControllers/c2".into(),
            spec: Some(pcie(2)),
            status: None,
        }),
        ..UpdateNvmeControllerRequest::default()
    };
    let status = frontend.update_nvme_controller(other.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let other = UpdateNvmeControllerRequest { allow_missing: true, ..other };
    let made = frontend.update_nvme_controller(other).await.unwrap().into_inner();
    assert_eq!(made.name, "nvmeSubsystems/s0/nvmeControllers/c2");
}

#[tokio::test]
async fn controllers_are_listed_by_subsystem_with_their_clients_who_keep_them() {
    let host = Host::start();
    let managed = host.reached().await;
    let mut frontend = client(&managed);
    frontend.create_nvme_subsystem(subsystem("s1", NvmeSubsystemSpec::default())).await.unwrap();
    frontend.create_nvme_controller(controller("s1", "c1", pcie(1))).await.unwrap();
    let rows = NamespaceCounters {
        nsid: 1,
        reads: 3,
        read_bytes: 1 << 40,
        writes: 4,
        ..NamespaceCounters::default()
    };
    let workers =
        vec![WorkerCounters { worker: "w0".into(), namespaces: vec![rows], ..Default::default() }];
    let report = |workers| EndpointReport {
        connected: true,
        client_pid: 42,
        workers,
        ..EndpointReport::default()
    };
    host.frontend.reports.lock().unwrap().insert("c1".into(), report(Vec::new()));
    host.frontend.reports.lock().unwrap().insert("vm0".into(), report(workers));
    let list = |parent: &str| ListNvmeControllersRequest {
        parent: parent.into(),
        ..ListNvmeControllersRequest::default()
    };
    for (parent, names) in [
        ("nvmeSubsystems/s0", &["nvmeSubsystems/s0/nvmeControllers/vm0"][..]),
        (
            "nvmeSubsystems/-",
            &["nvmeSubsystems/s0/nvmeControllers/vm0", "nvmeSubsystems/s1/nvmeControllers/c1"],
        ),
    ] {
        let listed = frontend.list_nvme_controllers(list(parent)).await.unwrap().into_inner();
        assert!(listed.nvme_controllers.iter().all(|c| c.status.is_some_and(|s| s.active)));
        let found: Vec<_> = listed.nvme_controllers.into_iter().map(|c| c.name).collect();
        assert_eq!(found, names);
    }
    for (parent, code) in [("nvmeSubsystems/s9", Code::NotFound), ("", Code::InvalidArgument)] {
        let status = frontend.list_nvme_controllers(list(parent)).await.unwrap_err();
        assert_eq!(status.code(), code);
    }
    let stats = |name: &str| StatsNvmeControllerRequest { name: name.into() };
    let name = "nvmeSubsystems/s0/nvmeControllers/vm0";
    let counted = frontend.stats_nvme_controller(stats(name)).await.unwrap().into_inner().stats;
    let counted = counted.unwrap();
    assert_eq!((counted.read_ops_count, counted.write_ops_count), (3, 4));
    assert_eq!(counted.read_bytes_count, i32::MAX, "it does not fit");
    let namespace = StatsNvmeNamespaceRequest { name: "nvmeSubsystems/s0/nvmeNamespaces/1".into() };
    let of_it = frontend.stats_nvme_namespace(namespace).await.unwrap().into_inner().stats;
    assert_eq!(of_it, Some(counted));
    // A controller has one name.
    let elsewhere = "nvmeSubsystems/s0/nvmeControllers/c1";
    let status = frontend.stats_nvme_controller(stats(elsewhere)).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let get = GetNvmeControllerRequest { name: elsewhere.into() };
    assert_eq!(frontend.get_nvme_controller(get).await.unwrap_err().code(), Code::NotFound);
    let delete =
        |name: &str| DeleteNvmeControllerRequest { name: name.into(), ..Default::default() };
    let status = frontend.delete_nvme_controller(delete(elsewhere)).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let name = "nvmeSubsystems/s1/nvmeControllers/c1";
    let status = frontend.delete_nvme_controller(delete(name)).await.unwrap_err();
    assert_eq!(told(&status).1, "IN_THE_WAY");
    assert!(status.message().contains("pid 42"), "{status:?}");
    // Nor is the subsystem taken from under it.
    let gone =
        DeleteNvmeSubsystemRequest { name: "nvmeSubsystems/s1".into(), allow_missing: false };
    let status = frontend.delete_nvme_subsystem(gone).await.unwrap_err();
    assert!(status.message().contains(name), "{status:?}");
}
