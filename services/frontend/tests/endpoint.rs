//! An endpoint as a client sees it: a real socket, a backend that only describes its bdev, no worker.

use ipc::segment::Segment;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use nvme_spec::command::{AdminOpcode, Command};
use service::control::{Answer, Handler, Incoming, Server, Session};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use vfio_user::client::{Client, VersionStyle};
use vfio_user::dma::{DmaUnmap, Iova};
use vfio_user::message::DmaAccess;
use vfio_user::region::RegionIndex;
use vireo_frontend::registry::{Registry, RegistryConfig};
use vireo_proto::Failure;
use vireo_proto::handoff::{
    ApplyTargets, BdevInfo, DoorbellMode, Endpoint, Namespace, Subsystem, reply, request,
};

const MEMORY: u64 = 1 << 20;
const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;

struct FakeBackend;

impl Handler for FakeBackend {
    async fn handle(&self, request: Incoming) -> Result<Answer, Failure> {
        match request.body {
            request::Body::DescribeBdev(describe) => {
                Ok(Answer::new(reply::Body::BdevInfo(BdevInfo {
                    bdev: describe.bdev,
                    size_bytes: 64 << 20,
                    block_size: 512,
                    driver: "null".to_owned(),
                    ..BdevInfo::default()
                })))
            }
            _ => Err(Failure::unsupported()),
        }
    }
}

/// Serves one endpoint in `directory` while `client` runs in a thread of its own.
fn with_endpoint(doorbells: DoorbellMode, client: impl FnOnce(&Path) + Send + 'static) {
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let path = directory.path();
        let backend = Server::bind(&path.join("backend-b0.sock")).unwrap();
        tokio::spawn(backend.serve(Arc::new(FakeBackend)));
        let server = Server::bind(&path.join("frontend-f0.sock")).unwrap();
        let registry = Arc::new(Registry::new(RegistryConfig {
            name: "f0".to_owned(),
            runtime_dir: path.to_owned(),
            state_dir: path.to_owned(),
        }));
        tokio::spawn(server.serve(Arc::clone(&registry)));
        let manager = Session::connect(&path.join("frontend-f0.sock"), "manager-test").unwrap();
        // The second changes nothing.
        for _ in 0..2 {
            let body = request::Body::ApplyTargets(targets(path, doorbells));
            let answer = manager.call(body, &[]).await.unwrap();
            let reply::Body::ApplyResult(result) = answer.body else { panic!("{answer:?}") };
            assert_eq!(result.failures, []);
        }
        let endpoint = path.join("vm0");
        tokio::task::spawn_blocking(move || client(&endpoint.join("cntrl"))).await.unwrap();
        registry.stop().await;
        assert!(!path.join("vm0/cntrl").exists(), "a socket that nobody serves is left");
    });
}

fn targets(directory: &Path, doorbells: DoorbellMode) -> ApplyTargets {
    ApplyTargets {
        subsystems: vec![Subsystem {
            name: "s0".to_owned(),
            nqn: "nqn.2026-11.org.example:s0".to_owned(),
            serial: "SERIAL".to_owned(),
            model: "Model".to_owned(),
            namespaces: vec![Namespace {
                nsid: 1,
                bdev: "null0".to_owned(),
                backend: "b0".to_owned(),
                size_bytes: 64 << 20,
                block_size: 512,
                ..Namespace::default()
            }],
        }],
        endpoints: vec![Endpoint {
            name: "vm0".to_owned(),
            subsystem: "s0".to_owned(),
            path: directory.join("vm0").display().to_string(),
            doorbells: doorbells as i32,
            workers: vec!["w0".to_owned()],
            queues: 4,
            max_transfer_bytes: 1 << 20,
            vectors: 5,
        }],
    }
}

struct Guest {
    client: Client,
    memory: std::fs::File,
}

impl Guest {
    fn attach(socket: &Path) -> Self {
        let mut client = Client::connect(socket).unwrap();
        client.version(&VersionStyle::Bare { minor: 0 }).unwrap();
        let memory = memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap();
        ftruncate(&memory, MEMORY as i64).unwrap();
        let access = DmaAccess::new().with_read(true).with_write(true);
        client.dma_map(Iova(0), MEMORY, access, Some((memory.as_fd(), 0))).unwrap();
        Self { client, memory: memory.into() }
    }

    fn register(&mut self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.client.region_read(RegionIndex::BAR0, offset, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.client.region_write(RegionIndex::BAR0, offset, bytes).unwrap();
    }

    /// Admin queues of 16 entries at 1000h and 2000h, then CC.EN.
    fn enable(&mut self) {
        self.write(0x24, &0x000f_000f_u32.to_le_bytes());
        self.write(0x28, &0x1000_u64.to_le_bytes());
        self.write(0x30, &0x2000_u64.to_le_bytes());
        self.write(CC, &0x0046_0001_u32.to_le_bytes());
        assert_eq!(self.register(CSTS) & 1, 1, "not ready");
    }

    /// Sends the first admin command: Identify Controller into 3000h. Returns its completion.
    fn identify(&mut self, ring: impl FnOnce(&mut Self)) -> [u8; 16] {
        let mut command = Command::admin(AdminOpcode::IDENTIFY, nvme_spec::CommandId(7))
            .with_prps(nvme_spec::Iova(0x3000), nvme_spec::Iova(0));
        command.cdw10 = 1;
        let bytes: Vec<u8> =
            command.into_words().iter().flat_map(|word| word.to_le_bytes()).collect();
        self.memory.write_all_at(&bytes, 0x1000).unwrap();
        ring(self);
        for _ in 0..1000 {
            let mut completion = [0; 16];
            self.memory.read_exact_at(&mut completion, 0x2000).unwrap();
            if completion[14] & 1 == 1 {
                return completion;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("no completion");
    }
}

#[test]
fn the_admin_queue_runs_by_written_doorbells() {
    with_endpoint(DoorbellMode::Shadow, |socket| {
        let mut guest = Guest::attach(socket);
        guest.enable();
        let completion = guest.identify(|guest| guest.write(0x1000, &1_u32.to_le_bytes()));
        assert_eq!(completion[12], 7, "cid");
        assert_eq!(u16::from_le_bytes([completion[14], completion[15]]) >> 1, 0, "status");
        let mut serial = [0; 20];
        guest.memory.read_exact_at(&mut serial, 0x3004).unwrap();
        assert_eq!(&serial, b"SERIAL              ");
        let info = guest.client.region_info(RegionIndex::BAR0).unwrap();
        assert!(info.areas.is_empty(), "doorbells can be mapped though they are not to be");
    });
}

#[test]
fn mapped_doorbells_are_seen_though_no_worker_watches_them() {
    with_endpoint(DoorbellMode::Mapped, |socket| {
        let mut guest = Guest::attach(socket);
        guest.enable();
        let info = guest.client.region_info(RegionIndex::BAR0).unwrap();
        let page = std::fs::File::from(info.fd.unwrap().try_clone().unwrap());
        guest.identify(|_| page.write_all_at(&1_u32.to_le_bytes(), 0x1000).unwrap());
    });
}

#[test]
fn clients_come_and_go_and_find_the_controller_disabled() {
    with_endpoint(DoorbellMode::Mapped, |socket| {
        for _ in 0..3 {
            let mut guest = Guest::attach(socket);
            assert_eq!(guest.register(CSTS), 0);
            guest.enable();
            guest.client.dma_unmap(DmaUnmap::All).unwrap();
        }
        // One that says nothing at all, and one whose message is cut off.
        drop(Client::connect(socket).unwrap());
        let mut cut = Client::connect(socket).unwrap();
        cut.send_raw(&[0; 7], &[]).unwrap();
        drop(cut);
        assert_eq!(Guest::attach(socket).register(CSTS), 0);
    });
}

#[test]
fn a_reset_disables_and_keeps_memory() {
    with_endpoint(DoorbellMode::Shadow, |socket| {
        let mut guest = Guest::attach(socket);
        guest.enable();
        guest.client.reset().unwrap();
        assert_eq!(guest.register(CSTS), 0);
        assert_eq!(guest.register(CC), 0);
        guest.enable();
        guest.identify(|guest| guest.write(0x1000, &1_u32.to_le_bytes()));
    });
}

#[test]
fn memory_that_is_no_memory_is_refused_and_the_client_stays() {
    with_endpoint(DoorbellMode::Mapped, |socket| {
        let mut guest = Guest::attach(socket);
        let access = DmaAccess::new().with_read(true).with_write(true);
        let pipe: OwnedFd = std::io::pipe().unwrap().1.into();
        let short = memfd_create(c"short", MFdFlags::MFD_CLOEXEC).unwrap();
        for fd in [&pipe, &short] {
            let mapped = guest.client.dma_map(Iova(MEMORY), 4096, access, Some((fd.as_fd(), 0)));
            assert!(mapped.is_err());
        }
        // Without a descriptor the range exists, and DMA to it fails.
        guest.client.dma_map(Iova(MEMORY), 4096, access, None).unwrap();
        guest.enable();
    });
}

#[test]
fn a_controller_segment_is_sealed_for_its_readers() {
    let segment = Segment::<ipc::layout::controller::ControllerLayout>::create("test", 1).unwrap();
    let reader = std::fs::File::from(segment.read_only_fd().unwrap());
    assert!(reader.write_at(&[1], 0).is_err(), "a worker could write the controller segment");
}
