//! Who may call what: users by their process's credentials, certificates over TCP; and the line in the log for each call
//! that changes something or is refused.

use crate::opi_volumes::create_malloc;
use crate::support::{BOUND, Host, Managed, connect, told};
use crate::volumes::{create, malloc};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use service::config::{Api, Tls};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};
use tracing_subscriber::registry;
use vireo_api::opi::malloc_volume_service_client::MallocVolumeServiceClient;
use vireo_api::opi::{DeleteMallocVolumeRequest, MallocVolume, StatsMallocVolumeRequest};
use vireo_api::v1::volume_service_client::VolumeServiceClient;
use vireo_api::v1::{CreateVolumeRequest, ListVolumesRequest};
use vireo_manager::grpc::listen::{ListenError, Listener};

/// The socket for [`call_as_this_user`].
const SOCKET: &str = "VIREO_TEST_API_SOCKET";

/// What is logged on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Lines of the audit log.
    fn audit(&self) -> Vec<serde_json::Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let lines =
            text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.filter(|line| line["target"] == "audit").map(|line| line["fields"].clone()).collect()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Collects what this thread logs, until the guard is dropped.
fn listen() -> (Log, tracing::subscriber::DefaultGuard) {
    // While there is one subscriber only, a line that another test's thread comes to first is asked about of that thread's
    // alone, which has none: nobody would ever get it. This one is the second for all that follow.
    static SECOND: Once = Once::new();
    SECOND.call_once(|| tracing::subscriber::set_global_default(registry()).expect("the first"));
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().json().with_writer(move || writer.clone()).finish();
    (log, tracing::subscriber::set_default(subscriber))
}

/// What reading and changing come to.
async fn both(channel: Channel) -> [Result<(), Status>; 2] {
    let mut volumes = VolumeServiceClient::new(channel);
    let read = volumes.list_volumes(ListVolumesRequest::default()).await.map(|_| ());
    let request = CreateVolumeRequest { validate_only: true, ..create("v9", malloc(1 << 20)) };
    [read, volumes.create_volume(request).await.map(|_| ())]
}

fn codes(results: &[Result<(), Status>; 2]) -> [Code; 2] {
    [0, 1].map(|at| results[at].as_ref().err().map_or(Code::Ok, Status::code))
}

/// Not a test of its own: the program that another test runs as another user.
#[tokio::test]
#[ignore = "run by users_have_the_roles_that_are_configured"]
async fn call_as_this_user() {
    let socket = PathBuf::from(std::env::var_os(SOCKET).expect("the socket is named"));
    let words = match vireo_api::connect(&socket).await {
        Ok(channel) => codes(&both(channel).await).map(|code| format!("{code:?}")).join(" "),
        Err(_) => "no connection".to_owned(),
    };
    println!("came to: {words}");
}

/// What a process of this user and group comes to.
async fn of_user(program: &Path, socket: &Path, uid: u32, gid: u32) -> String {
    let mut command = std::process::Command::new(program);
    command.args(["--ignored", "--exact", "--nocapture", "callers::call_as_this_user"]);
    command.env_clear().env(SOCKET, socket).current_dir("/").uid(uid).gid(gid);
    let mut command = tokio::process::Command::from(command);
    let output = command.kill_on_drop(true).output();
    let output = tokio::time::timeout(BOUND, output).await.expect("it ends").unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words = text.lines().find_map(|line| line.split_once("came to: "));
    words.unwrap_or_else(|| panic!("{output:?}")).1.to_owned()
}

#[tokio::test]
async fn users_have_the_roles_that_are_configured() {
    if !nix::unistd::Uid::effective().is_root() {
        // Nobody else can become another user.
        eprintln!("not the superuser: not tested");
        return;
    }
    let (log, _guard) = listen();
    let mode = std::fs::Permissions::from_mode(0o755);
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), mode.clone()).unwrap();
    let program = place.path().join("program");
    // By another process: a descriptor for writing of this one's would be inherited by what other tests start at this
    // moment, and a file that is open for writing cannot be executed.
    let own = std::env::current_exe().unwrap();
    let copied = std::process::Command::new("cp").arg(own).arg(&program).status();
    assert!(copied.unwrap().success());
    let api = "[api]\nadmin_groups = [\"60003\"]\nobserver_users = [\"60002\"]\n[[worker]]";
    let host = Host::start();
    std::fs::set_permissions(host.path(""), mode).unwrap();
    // Without a word, others do not even get to the socket.
    let managed = host.reached().await;
    let socket = host.path("api.sock");
    assert_eq!(of_user(&program, &socket, 60001, 60001).await, "no connection");
    managed.kill().await;
    host.write(&[("[[worker]]", api)]);
    let _managed = host.reached().await;
    for (uid, gid, words) in [
        (60001, 60001, "PermissionDenied PermissionDenied"),
        (60002, 60002, "Ok PermissionDenied"),
        (60001, 60003, "Ok Ok"),
        (60002, 60003, "Ok Ok"),
        (0, 0, "Ok Ok"),
    ] {
        assert_eq!(of_user(&program, &socket, uid, gid).await, words, "user {uid}, group {gid}");
    }
    let audit = log.audit();
    let refused: Vec<&str> = audit
        .iter()
        .filter(|line| line["message"] == "refused" && line["code"] == "PermissionDenied")
        .filter_map(|line| line["caller"].as_str())
        .collect();
    assert_eq!(refused.len(), 3, "{audit:?}");
    assert!(refused[0].starts_with("uid 60001 gid 60001 pid "), "{refused:?}");
    assert!(refused[2].starts_with("uid 60002 gid 60002 pid "), "{refused:?}");
}

#[tokio::test]
async fn what_is_changed_and_what_is_refused_is_written_down() {
    let (log, _guard) = listen();
    let host = Host::start();
    let managed = host.reached().await;
    let mut volumes = managed.volumes();
    volumes.list_volumes(ListVolumesRequest::default()).await.unwrap();
    assert_eq!(log.audit().len(), 0, "reading is not");
    volumes.create_volume(create("v1", malloc(1 << 20))).await.unwrap();
    volumes.create_volume(create("v1", malloc(1 << 20))).await.unwrap_err();
    let lines = log.audit();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(lines[0]["object"], "volumes/v1");
    assert_eq!(lines[0]["method"], "/vireo.v1.VolumeService/CreateVolume");
    assert!(lines[0]["caller"].as_str().unwrap().starts_with("uid "), "{lines:?}");
    assert_eq!(
        (&lines[1]["code"], &lines[1]["message"]),
        (&"AlreadyExists".into(), &"refused".into())
    );
    assert!(lines[1]["reason"].as_str().unwrap().contains("volumes/v1"), "{lines:?}");
}

#[tokio::test]
async fn a_change_by_opis_services_is_written_down_as_any_other() {
    let (log, _guard) = listen();
    let host = Host::start();
    let managed = host.reached().await;
    let mut volumes = MallocVolumeServiceClient::new(managed.channel.clone());
    let content = MallocVolume { block_size: 512, blocks_count: 8, ..MallocVolume::default() };
    let made = volumes.create_malloc_volume(create_malloc("v1", content)).await.unwrap();
    let name = made.into_inner().name;
    volumes.stats_malloc_volume(StatsMallocVolumeRequest { name: name.clone() }).await.unwrap();
    let gone = DeleteMallocVolumeRequest { name, allow_missing: false };
    volumes.delete_malloc_volume(gone.clone()).await.unwrap();
    volumes.delete_malloc_volume(gone).await.unwrap_err();
    let lines = log.audit();
    assert_eq!(lines.len(), 3, "reading is not: {lines:?}");
    let method = "/opi_api.storage.v1.MallocVolumeService/CreateMallocVolume";
    assert_eq!((&lines[0]["method"], &lines[0]["object"]), (&method.into(), &"volumes/v1".into()));
    assert_eq!(lines[1]["object"], "volumes/v1");
    assert_eq!(lines[2]["code"], "NotFound");
}

#[tokio::test]
async fn a_request_over_the_limit_is_refused_and_written_down() {
    let (log, _guard) = listen();
    let host = Host::start();
    let managed = host.reached().await;
    let state = host.state();
    let long = create(&"x".repeat(vireo_api::MAX_REQUEST + 1), malloc(1 << 20));
    let status = managed.volumes().create_volume(long).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange);
    assert!(status.message().contains("limit"), "{status:?}");
    assert_eq!(log.audit().last().unwrap()["code"], "OutOfRange");
    assert_eq!(host.state(), state);
    managed.volumes().list_volumes(ListVolumesRequest::default()).await.unwrap();
}

/// An authority with what it signs.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Certificate and key for a name, valid until a year.
    fn sign(&self, name: &str, until: i32) -> (String, String) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// A manager that listens on TCP too, and its port.
async fn over_tcp(host: &Host, authority: &Authority) -> (Managed, u16) {
    let (certificate, key) = authority.sign("localhost", 2100);
    for (name, content) in
        [("server.pem", &certificate), ("server.key", &key), ("ca.pem", &authority.pem)]
    {
        std::fs::write(host.path(name), content).unwrap();
    }
    // A port that is free now; nobody else asks for it in between, as the kernel goes round.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let path = |name: &str| host.path(name).display().to_string();
    let api = format!(
        "[api]\nlisten = \"127.0.0.1:{port}\"\ncertificate = \"{}\"\nkey = \"{}\"\nclient_ca = \"{}\"\n\
         admin_names = [\"ops.example\"]\nobserver_names = [\"watch.example\"]\n[[worker]]",
        path("server.pem"),
        path("server.key"),
        path("ca.pem")
    );
    host.write(&[("[[worker]]", &api)]);
    (host.reached().await, port)
}

async fn dial(
    port: u16,
    authority: &Authority,
    own: Option<(String, String)>,
) -> Result<Channel, tonic::transport::Error> {
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&authority.pem))
        .domain_name("localhost");
    if let Some((certificate, key)) = own {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{port}"))?.tls_config(tls)?;
    endpoint.timeout(BOUND).connect_timeout(BOUND).connect().await
}

#[tokio::test]
async fn certificates_have_the_roles_that_are_configured() {
    let host = Host::start();
    let authority = Authority::new();
    let (_managed, port) = over_tcp(&host, &authority).await;
    for (name, expected) in [
        ("ops.example", [Code::Ok, Code::Ok]),
        ("watch.example", [Code::Ok, Code::PermissionDenied]),
        ("other.example", [Code::PermissionDenied, Code::PermissionDenied]),
    ] {
        let channel = dial(port, &authority, Some(authority.sign(name, 2100))).await.unwrap();
        let results = both(channel).await;
        assert_eq!(codes(&results), expected, "{name}");
        if let Err(status) = &results[1] {
            assert!(status.message().contains(name), "{status:?}");
            assert!(["NO_ROLE", "OBSERVER"].contains(&told(status).1.as_str()));
        }
    }
}

#[tokio::test]
async fn who_has_no_valid_certificate_does_not_come_in() {
    let (log, _guard) = listen();
    let host = Host::start();
    let authority = Authority::new();
    let (_managed, port) = over_tcp(&host, &authority).await;
    let strangers = Authority::new();
    for (own, reason) in [
        (Some(authority.sign("ops.example", 2021)), "expired"),
        (Some(strangers.sign("ops.example", 2100)), "invalid peer certificate"),
        (None, "no certificates"),
    ] {
        let before = log.audit().len();
        // With TLS 1.3 the client may believe in the connection until it reads.
        if let Ok(channel) = dial(port, &authority, own).await {
            let results = both(channel).await;
            assert!(results.iter().all(Result::is_err), "{reason}");
        }
        let audit = log.audit();
        assert!(audit.len() > before, "{reason}");
        let line = audit[before].to_string();
        assert!(line.contains("connection refused") && line.contains("127.0.0.1"), "{line}");
        assert!(line.to_lowercase().contains(&reason.to_lowercase()), "{reason}: {line}");
    }
    // Nor who speaks no TLS at all.
    let plain = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
    if let Ok(channel) = plain.timeout(BOUND).connect().await {
        assert!(both(channel).await.iter().all(Result::is_err));
    }
    // The Unix socket is where it was.
    assert_eq!(codes(&both(connect(&host.path("api.sock")).await).await), [Code::Ok, Code::Ok]);
}

#[tokio::test]
async fn what_cannot_be_served_is_named_with_its_key_and_costs_nobody_a_file() {
    let host = Host::start();
    let authority = Authority::new();
    let (managed, _) = over_tcp(&host, &authority).await;
    let api = managed.manager.config().api;
    let taken = Listener::bind(&api).await.unwrap_err();
    assert!(matches!(taken, ListenError::InUse { .. }) && !taken.is_lasting(), "{taken}");
    managed.kill().await;
    let file = host.path("somebodys.file");
    std::fs::write(&file, "precious").unwrap();
    let error = Listener::bind(&Api { socket: file.clone(), ..api.clone() }).await.unwrap_err();
    assert!(matches!(error, ListenError::Unix { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    let tls = api.tls.clone().unwrap();
    let cases = [
        (Tls { key: file.clone(), ..tls.clone() }, "api.key"),
        (Tls { certificate: file.clone(), ..tls.clone() }, "api.certificate"),
        (Tls { client_ca: file, ..tls.clone() }, "api.client_ca"),
        (Tls { key: host.path("ca.pem"), ..tls }, "api.key"),
    ];
    for (tls, key) in cases {
        let error = Listener::bind(&Api { tls: Some(tls), ..api.clone() }).await.unwrap_err();
        assert!(error.is_lasting() && error.to_string().contains(key), "{error}");
    }
}
