//! Subsystems, namespaces, controllers, workers, and the target itself.

use crate::support::{Host, told};
use crate::volumes::{create, delete, malloc};
use tonic::Code;
use vireo_api::v1::{
    Client, Controller, CreateControllerRequest, CreateNamespaceRequest, CreateSubsystemRequest,
    DeleteControllerRequest, DeleteNamespaceRequest, DeleteSubsystemRequest, DoorbellMode,
    GetControllerRequest, GetNamespaceRequest, GetSubsystemRequest, GetTargetRequest,
    GetWorkerRequest, ListControllersRequest, ListNamespacesRequest, ListSubsystemsRequest,
    ListWorkersRequest, Namespace, Origin, ProcessKind, ReloadTargetRequest, State, Subsystem,
};
use vireo_proto::handoff::EndpointReport;

pub fn subsystem(id: &str) -> CreateSubsystemRequest {
    CreateSubsystemRequest {
        subsystem_id: id.into(),
        subsystem: Some(Subsystem::default()),
        ..Default::default()
    }
}

pub fn namespace(parent: &str, id: &str, volume: &str) -> CreateNamespaceRequest {
    let volume = format!("volumes/{volume}");
    CreateNamespaceRequest {
        parent: format!("subsystems/{parent}"),
        namespace_id: id.into(),
        namespace: Some(Namespace { volume, ..Namespace::default() }),
        ..Default::default()
    }
}

pub fn controller(id: &str, of: &str) -> CreateControllerRequest {
    let subsystem = format!("subsystems/{of}");
    CreateControllerRequest {
        controller_id: id.into(),
        controller: Some(Controller { subsystem, ..Controller::default() }),
        ..Default::default()
    }
}

fn remove(name: &str) -> DeleteSubsystemRequest {
    DeleteSubsystemRequest { name: format!("subsystems/{name}"), ..Default::default() }
}

#[tokio::test]
async fn a_drive_is_built_and_taken_away_beside_those_of_the_file() {
    let host = Host::start();
    let managed = host.reached().await;
    managed.volumes().create_volume(create("v1", malloc(1 << 20))).await.unwrap();
    let made = managed.subsystems().create_subsystem(subsystem("s1")).await.unwrap().into_inner();
    assert_eq!(
        (made.origin(), made.state(), made.frontend.as_str()),
        (Origin::Api, State::Ready, "f0")
    );
    assert!(made.nqn.starts_with("nqn.2014-08.org.nvmexpress:uuid:"), "{made:?}");
    let first = managed
        .namespaces()
        .create_namespace(namespace("s1", "", "v1"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!((first.name.as_str(), first.nsid), ("subsystems/s1/namespaces/1", 1));
    assert_eq!((first.uuid.len(), first.state()), (36, State::Ready));
    let vm1 = managed
        .controllers()
        .create_controller(controller("vm1", "s1"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!((vm1.queues, vm1.vectors, vm1.max_transfer_bytes), (64, 65, 1 << 20));
    assert_eq!(
        (vm1.doorbells(), vm1.workers.as_slice()),
        (DoorbellMode::Mapped, &["workers/w0".to_owned()][..])
    );
    assert_eq!(vm1.path, host.path("vm1").to_string_lossy());
    assert_eq!(*host.frontend.served.lock().unwrap(), ["s0", "s0/1", "s1", "s1/1", "vm0", "vm1"]);

    // What is built upon stays.
    for status in [
        managed.volumes().delete_volume(delete("v1")).await.unwrap_err(),
        managed.subsystems().delete_subsystem(remove("s1")).await.unwrap_err(),
    ] {
        assert_eq!(told(&status), (Code::FailedPrecondition, "IN_THE_WAY".into()), "{status:?}");
    }
    let all = DeleteSubsystemRequest { force: true, ..remove("s1") };
    managed.subsystems().delete_subsystem(all).await.unwrap();
    assert_eq!(*host.frontend.served.lock().unwrap(), ["s0", "s0/1", "vm0"]);
    managed.volumes().delete_volume(delete("v1")).await.unwrap();
    managed.reached().await;
    assert_eq!(*host.backend.served.lock().unwrap(), ["mem0 67108864"]);
}

#[tokio::test]
async fn namespaces_come_and_go_in_the_files_subsystem() {
    let host = Host::start();
    let managed = host.reached().await;
    let mut namespaces = managed.namespaces();
    for id in ["v1", "v2"] {
        managed.volumes().create_volume(create(id, malloc(1 << 20))).await.unwrap();
    }
    let second = namespaces.create_namespace(namespace("s0", "", "v1")).await.unwrap().into_inner();
    assert_eq!(second.nsid, 2);
    let uuid = second.uuid.clone();
    for (request, code) in [
        (namespace("s0", "2", "v2"), Code::AlreadyExists),
        (namespace("s0", "0", "v2"), Code::InvalidArgument),
        (namespace("s0", "257", "v2"), Code::InvalidArgument),
        (namespace("s0", "01", "v2"), Code::InvalidArgument),
        (namespace("s0", "3", "v9"), Code::InvalidArgument),
        (namespace("s0", "3", "v1"), Code::InvalidArgument),
        (namespace("s9", "3", "v2"), Code::NotFound),
        (
            CreateNamespaceRequest { namespace: None, ..namespace("s0", "3", "v2") },
            Code::InvalidArgument,
        ),
    ] {
        let status = namespaces.create_namespace(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
    }
    let list = |parent: &str| ListNamespacesRequest { parent: parent.into(), ..Default::default() };
    for parent in ["subsystems/s0", "subsystems/-"] {
        let listed = namespaces.list_namespaces(list(parent)).await.unwrap().into_inner();
        let origins: Vec<_> = listed.namespaces.iter().map(|n| (n.nsid, n.origin())).collect();
        assert_eq!(origins, [(1, Origin::File), (2, Origin::Api)]);
    }
    assert_eq!(
        namespaces.list_namespaces(list("subsystems/s9")).await.unwrap_err().code(),
        Code::NotFound
    );
    let name = second.name;
    let get = GetNamespaceRequest { name: name.clone() };
    assert_eq!(namespaces.get_namespace(get.clone()).await.unwrap().into_inner().uuid, uuid);
    let of_file =
        DeleteNamespaceRequest { name: "subsystems/s0/namespaces/1".into(), ..Default::default() };
    let status = namespaces.delete_namespace(of_file).await.unwrap_err();
    assert_eq!(told(&status).1, "OF_CONFIGURATION_FILE");
    let gone = DeleteNamespaceRequest { name, ..Default::default() };
    namespaces.delete_namespace(gone.clone()).await.unwrap();
    assert_eq!(namespaces.get_namespace(get).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(namespaces.delete_namespace(gone).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn subsystems_are_checked() {
    let host = Host::start();
    let managed = host.reached().await;
    let mut subsystems = managed.subsystems();
    let with = |id: &str, change: fn(&mut Subsystem)| {
        let mut wanted = Subsystem::default();
        change(&mut wanted);
        CreateSubsystemRequest { subsystem: Some(wanted), ..subsystem(id) }
    };
    for (request, code) in [
        (subsystem("s0"), Code::AlreadyExists),
        (subsystem(""), Code::InvalidArgument),
        (CreateSubsystemRequest { subsystem: None, ..subsystem("s1") }, Code::InvalidArgument),
        (with("s1", |s| s.nqn = "iqn.x".into()), Code::InvalidArgument),
        (with("s1", |s| s.serial = "x".repeat(21)), Code::InvalidArgument),
        (with("s1", |s| s.model = "\u{e4}".into()), Code::InvalidArgument),
        (with("s1", |s| s.frontend = "f9".into()), Code::InvalidArgument),
    ] {
        let status = subsystems.create_subsystem(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
    }
    let listed = subsystems.list_subsystems(ListSubsystemsRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().subsystems.len(), 1);
    let get = GetSubsystemRequest { name: "subsystems/s0".into() };
    let of_file = subsystems.get_subsystem(get).await.unwrap().into_inner();
    assert_eq!((of_file.origin(), of_file.create_time), (Origin::File, None));
    let forced = DeleteSubsystemRequest { force: true, ..remove("s0") };
    assert_eq!(
        told(&subsystems.delete_subsystem(forced).await.unwrap_err()).1,
        "OF_CONFIGURATION_FILE"
    );
}

#[tokio::test]
async fn a_controller_tells_of_its_client_and_is_not_taken_from_him() {
    let host = Host::start();
    let managed = host.reached().await;
    let mut controllers = managed.controllers();
    controllers.create_controller(controller("vm1", "s0")).await.unwrap();
    let report =
        EndpointReport { connected: true, client_pid: 42, client_uid: 1000, ..Default::default() };
    host.frontend.reports.lock().unwrap().insert("vm1".into(), report);
    let get = |id: &str| GetControllerRequest { name: format!("controllers/{id}") };
    let connected = controllers.get_controller(get("vm1")).await.unwrap().into_inner();
    let client = Some(Client { pid: 42, uid: 1000 });
    assert_eq!(connected.client, client);
    assert_eq!(controllers.get_controller(get("vm0")).await.unwrap().into_inner().client, None);
    let listed = controllers.list_controllers(ListControllersRequest::default()).await.unwrap();
    let clients: Vec<_> = listed.into_inner().controllers.into_iter().map(|c| c.client).collect();
    assert_eq!(clients, [None, client]);
    let gone = DeleteControllerRequest { name: "controllers/vm1".into(), ..Default::default() };
    let status = controllers.delete_controller(gone.clone()).await.unwrap_err();
    assert_eq!(told(&status).1, "IN_THE_WAY");
    assert!(status.message().contains("pid 42"), "{status:?}");
    let forced = DeleteControllerRequest { force: true, ..gone };
    controllers.delete_controller(forced).await.unwrap();
    let of_file = DeleteControllerRequest { name: "controllers/vm0".into(), ..Default::default() };
    assert_eq!(
        told(&controllers.delete_controller(of_file).await.unwrap_err()).1,
        "OF_CONFIGURATION_FILE"
    );
}

#[tokio::test]
async fn controllers_are_checked() {
    let host = Host::start();
    let managed = host.reached().await;
    let mut controllers = managed.controllers();
    let with = |change: fn(&mut Controller)| {
        let mut request = controller("vm1", "s0");
        change(request.controller.as_mut().unwrap());
        request
    };
    let path = host.path("vm0").to_string_lossy().into_owned();
    let mut taken = controller("vm1", "s0");
    taken.controller.as_mut().unwrap().path = path;
    for (request, code) in [
        (controller("vm0", "s0"), Code::AlreadyExists),
        (controller("vm1", "s9"), Code::NotFound),
        (controller("vm 1", "s0"), Code::InvalidArgument),
        (taken, Code::InvalidArgument),
        (with(|c| c.subsystem = "s0".into()), Code::InvalidArgument),
        (with(|c| c.path = "relative".into()), Code::InvalidArgument),
        (with(|c| c.doorbells = 7), Code::InvalidArgument),
        (with(|c| c.tenant = "nobody".into()), Code::InvalidArgument),
        (with(|c| c.workers = vec!["workers/w9".into()]), Code::InvalidArgument),
        (with(|c| c.workers = vec!["w0".into()]), Code::InvalidArgument),
        (with(|c| c.queues = 128), Code::InvalidArgument),
        (with(|c| c.queues = u32::MAX), Code::InvalidArgument),
        (with(|c| c.vectors = 129), Code::InvalidArgument),
        (with(|c| c.max_transfer_bytes = 5000), Code::InvalidArgument),
    ] {
        let status = controllers.create_controller(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
    }
    let shadow = with(|c| (c.doorbells, c.queues) = (DoorbellMode::Shadow.into(), 3));
    let made = controllers.create_controller(shadow).await.unwrap().into_inner();
    assert_eq!((made.doorbells(), made.queues, made.vectors), (DoorbellMode::Shadow, 3, 4));
}

#[tokio::test]
async fn workers_and_the_target_are_shown() {
    let mut host = Host::start();
    let managed = host.reached().await;
    let mut workers = managed.workers();
    let listed = workers.list_workers(ListWorkersRequest::default()).await.unwrap().into_inner();
    let [w0] = listed.workers.as_slice() else { panic!("{listed:?}") };
    assert_eq!((w0.name.as_str(), w0.core, w0.running, w0.pid), ("workers/w0", Some(0), true, 7));
    assert_eq!(
        (w0.version.as_str(), w0.controllers.as_slice()),
        ("1.2.3", &["controllers/vm0".to_owned()][..])
    );
    let get = |name: &str| GetWorkerRequest { name: name.into() };
    assert_eq!(workers.get_worker(get("workers/w0")).await.unwrap().into_inner(), *w0);
    assert_eq!(workers.get_worker(get("workers/w9")).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(workers.get_worker(get("w0")).await.unwrap_err().code(), Code::InvalidArgument);

    let target = GetTargetRequest { name: "target".into() };
    let shown = managed.target().get_target(target.clone()).await.unwrap().into_inner();
    assert!(shown.ready, "{shown:?}");
    let kinds: Vec<_> = shown.processes.iter().map(|p| (p.kind(), p.running)).collect();
    let expected =
        [ProcessKind::Backend, ProcessKind::Worker, ProcessKind::Frontend, ProcessKind::Manager];
    assert_eq!(kinds, expected.map(|kind| (kind, true)));
    host.kill("w0").await;
    let mut progress = managed.manager.progress();
    progress.wait_for(|progress| !progress.failures.is_empty()).await.unwrap();
    let shown = managed.target().get_target(target).await.unwrap().into_inner();
    assert_eq!(
        (shown.ready, shown.failures.as_slice()),
        (false, &["worker w0: is not there".to_owned()][..])
    );
    let w0 = workers.get_worker(get("workers/w0")).await.unwrap().into_inner();
    assert_eq!((w0.running, w0.pid), (false, 0));
    let wrong = GetTargetRequest { name: "targets/x".into() };
    assert_eq!(managed.target().get_target(wrong).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_reload_keeps_what_was_made_and_is_refused_where_both_speak_of_one_thing() {
    let host = Host::start();
    let managed = host.reached().await;
    managed.volumes().create_volume(create("v1", malloc(1 << 20))).await.unwrap();
    let reload = |validate_only| ReloadTargetRequest { name: "target".into(), validate_only };
    let bdev = |name: &str| {
        format!("[[bdev]]\nname = \"{name}\"\ndriver = \"malloc\"\nsize = \"1MiB\"\n[[subsystem]]")
    };
    host.write(&[("[[subsystem]]", &bdev("v2"))]);
    let would = managed.target().reload_target(reload(true)).await.unwrap().into_inner();
    assert_eq!(would.changes, ["bdev v2 added"]);
    assert_eq!(*host.backend.served.lock().unwrap(), ["mem0 67108864", "v1 1048576"]);
    let done = managed.target().reload_target(reload(false)).await.unwrap().into_inner();
    assert_eq!((done.changes, done.failures.len()), (would.changes, 0));
    assert_eq!(*host.backend.served.lock().unwrap(), ["mem0 67108864", "v2 1048576", "v1 1048576"]);
    host.write(&[("[[subsystem]]", &bdev("v1"))]);
    let status = managed.target().reload_target(reload(false)).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("volumes/v1 was made through the API"), "{status:?}");
    host.write(&[("[[worker]]", "[api]\nadmin_users = [\"7\"]\n[[worker]]")]);
    let status = managed.target().reload_target(reload(false)).await.unwrap_err();
    assert!(status.message().contains("restart the manager"), "{status:?}");
    host.write(&[("64MiB", "64MoB")]);
    let status = managed.target().reload_target(reload(false)).await.unwrap_err();
    assert!(status.message().contains("bdev[0].size"), "{status:?}");
    assert_eq!(*host.backend.served.lock().unwrap(), ["mem0 67108864", "v2 1048576", "v1 1048576"]);
}

#[tokio::test]
async fn a_file_that_speaks_of_what_was_made_while_no_manager_ran_is_not_served_and_told() {
    let host = Host::start();
    let managed = host.reached().await;
    managed.volumes().create_volume(create("v1", malloc(1 << 20))).await.unwrap();
    managed.kill().await;
    let bdev = "[[bdev]]\nname = \"v1\"\ndriver = \"null\"\nsize = \"1GiB\"\n[[subsystem]]";
    host.write(&[("[[subsystem]]", bdev)]);
    let managed = host.reached().await;
    assert_eq!(*host.backend.served.lock().unwrap(), ["mem0 67108864", "v1 1048576"]);
    let target = GetTargetRequest { name: "target".into() };
    let shown = managed.target().get_target(target.clone()).await.unwrap().into_inner();
    assert!(!shown.ready && shown.failures.len() == 1, "{shown:?}");
    assert!(shown.failures[0].contains("volumes/v1 was made through the API"), "{shown:?}");
    // What the message advises helps.
    managed.volumes().delete_volume(delete("v1")).await.unwrap();
    managed.reached().await;
    let reload = ReloadTargetRequest { name: "target".into(), validate_only: false };
    managed.target().reload_target(reload).await.unwrap();
    assert_eq!(*host.backend.served.lock().unwrap(), ["mem0 67108864", "v1 1073741824"]);
    assert!(managed.target().get_target(target).await.unwrap().into_inner().ready);
}
