//! A client that was not written here: the crate that cloud-hypervisor is built on.

#[path = "protocol/support.rs"]
#[allow(dead_code)]
mod support;

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;

use foreign_client::Client;
use support::{BAR0_SIZE, TestDevice, VECTORS, description, event, memfd};
use vfio_user::server::{Session, serve};
use vfio_user::version::Limits;

#[test]
fn client_of_cloud_hypervisor_attaches_uses_and_leaves() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cntrl");
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_complete, mut completions) = tokio::sync::mpsc::channel(1);
            let stream = tokio::net::UnixStream::from_std(stream).unwrap();
            let mut session = Session::new(description(), Limits::default());
            let mut device = TestDevice::new();
            let result = serve(stream, &mut session, &mut device, &mut completions).await;
            (result, device)
        })
    });

    let mut client = Client::new(&path).unwrap();
    let bar0 = client.region(0).unwrap();
    assert_eq!((bar0.size, bar0.sparse_areas.len()), (BAR0_SIZE, 1));
    assert!(bar0.file_offset.is_some());
    assert_eq!(client.region(7).unwrap().size, 4096);
    let msix = client.get_irq_info(2).unwrap();
    assert_eq!(msix.count, VECTORS);
    // This client reads the flag the wrong way round, and so resets a device that does not
    // advertise it. Both are served.
    assert!(!client.resettable());
    let memory = memfd(0x10_0000);
    client.dma_map(0, 0x10_0000, 0x10_0000, memory.as_raw_fd()).unwrap();
    let eventfds: Vec<_> = (0..16).map(|_| event()).collect();
    let raw: Vec<_> = eventfds.iter().map(AsRawFd::as_raw_fd).collect();
    client.set_irqs(2, 0x24, 0, 16, &raw).unwrap();
    client.region_write(7, 0x10, &u32::MAX.to_le_bytes()).unwrap();
    let mut bar = [0; 4];
    client.region_read(7, 0x10, &mut bar).unwrap();
    assert_eq!(u32::from_le_bytes(bar), !(BAR0_SIZE as u32 - 1) | 4);
    // What it cannot tell from success must have the form of success.
    let mut ones = [0; 8];
    client.region_read(0, 1 << 40, &mut ones).unwrap();
    assert_eq!(ones, [0xff; 8]);
    client.dma_unmap(0x77_0000, 0x1000).unwrap();
    client.reset().unwrap();
    client.dma_unmap(0x10_0000, 0x10_0000).unwrap();
    client.shutdown().unwrap();
    drop(client);

    let (result, device) = server.join().unwrap();
    result.unwrap();
    assert!(device.maps.is_empty() && device.vectors.eventfd(15).is_some());
    assert_eq!(device.resets, 1);
}
