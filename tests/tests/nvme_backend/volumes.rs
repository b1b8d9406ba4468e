//! Several bdevs on one drive: a namespace each, one connection.

use super::*;

/// A drive of two namespaces.
fn drive() -> Target {
    Target::start(&configuration(
        "[[bdev]]\nname = \"mem0\"\ndriver = \"malloc\"\nsize = \"16MiB\"\n\
         [[bdev]]\nname = \"mem1\"\ndriver = \"malloc\"\nsize = \"8MiB\"\n\
         [[subsystem]]\nname = \"s0\"\n\
         [[subsystem.namespace]]\nnsid = 1\nbdev = \"mem0\"\n\
         [[subsystem.namespace]]\nnsid = 2\nbdev = \"mem1\"\n\
         [[endpoint]]\nname = \"drive\"\nsubsystem = \"s0\"\n",
    ))
}

/// A target with those of the drive's namespaces as its own.
fn with(endpoint: &Path, namespaces: &[u32]) -> String {
    let bdev = |nsid: &u32| {
        format!(
            "[[bdev]]\nname = \"nv{nsid}\"\ndriver = \"nvme\"\nnsid = {nsid}\n\
             target = \"vfio-user:{}\"\n",
            endpoint.display()
        )
    };
    let namespace =
        |nsid: &u32| format!("[[subsystem.namespace]]\nnsid = {nsid}\nbdev = \"nv{nsid}\"\n");
    let bdevs: String = namespaces.iter().map(bdev).collect();
    let namespaces: String = namespaces.iter().map(namespace).collect();
    configuration(&format!(
        "{bdevs}[[subsystem]]\nname = \"s0\"\n{namespaces}\
         [[endpoint]]\nname = \"vm0\"\nsubsystem = \"s0\"\n"
    ))
}

/// Reads a namespace until that goes well, and compares.
#[track_caller]
fn holds(client: &mut Client, nsid: Nsid, byte: u8) {
    let namespace = client.controller.namespace(nsid).expect("namespace");
    until("it is served", || {
        let request = Request::read(&namespace, Lba(8), client.buffer(0, 8192));
        client.run(request).is_ok_and(|buffer| buffer.expect("its buffer").to_vec() == [byte; 8192])
    });
}

/// Writes to a namespace until that goes well.
#[track_caller]
fn fill(client: &mut Client, nsid: Nsid, byte: u8) {
    let namespace = client.controller.namespace(nsid).expect("namespace");
    until("it is written", || {
        let mut buffer = client.buffer(0, 8192);
        buffer.copy_from(&[byte; 8192]);
        client.run(Request::write(&namespace, Lba(8), buffer)).is_ok()
    });
}

#[test]
fn namespaces_of_one_drive_are_volumes_of_their_own() {
    let drive = drive();
    let target = Target::start(&with(&drive.endpoint("drive"), &[1, 2]));
    let mut client = Client::connect(&target, "vm0");
    let blocks = |nsid| client.controller.namespace(Nsid(nsid)).expect("namespace").blocks().0;
    assert_eq!((blocks(1), blocks(2)), ((16 << 20) / 512, (8 << 20) / 512));
    fill(&mut client, Nsid(1), 0x61);
    fill(&mut client, Nsid(2), 0x62);
    holds(&mut client, Nsid(1), 0x61);
    holds(&mut client, Nsid(2), 0x62);
    until("each has a lease", || leases(&target) == 2);

    // A drive that fails, and one that is lost, is so for both.
    drive.kill_and_await_successor("w0");
    holds(&mut client, Nsid(2), 0x62);
    holds(&mut client, Nsid(1), 0x61);
    drive.kill_and_await_successor("f0");
    holds(&mut client, Nsid(1), 0x61);
    holds(&mut client, Nsid(2), 0x62);

    // One goes, the other is left alone.
    target.reload_ok(&with(&drive.endpoint("drive"), &[2]));
    fill(&mut client, Nsid(2), 0x72);
    holds(&mut client, Nsid(2), 0x72);
    target.reload_ok(&with(&drive.endpoint("drive"), &[1, 2]));
    drop(client);
    let mut client = Client::connect(&target, "vm0");
    holds(&mut client, Nsid(1), 0x61);
    holds(&mut client, Nsid(2), 0x72);

    target.kill_and_await_successor("b0");
    holds(&mut client, Nsid(1), 0x61);
    holds(&mut client, Nsid(2), 0x72);
}
