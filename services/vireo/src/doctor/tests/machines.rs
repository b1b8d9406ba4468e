//! Kernels, limits, cores, drives and directories.

use super::super::{cores, directories, drives, kernel, limits, vmm};
use super::*;

#[test]
fn an_old_kernel_and_what_it_refuses_are_told() {
    let mut fake = Fake::new();
    fake.write("proc/sys/kernel/osrelease", "5.2.9\n");
    says(&only(kernel::check(&fake.machine())), Level::Problem, "pidfd_open");
    fake.write("proc/sys/kernel/osrelease", "5.10.0\n");
    says(&only(kernel::check(&fake.machine())), Level::Warning, "older");
    fake.write("proc/sys/kernel/osrelease", "what?\n");
    says(&only(kernel::check(&fake.machine())), Level::Warning, "what?");
    fake.write("proc/sys/kernel/osrelease", "6.12.1\n");

    fake.calls.io_uring = || Err(Errno::EPERM);
    let finding = only(kernel::check(&fake.machine()));
    says(&finding, Level::Warning, "refused to this process");
    assert!(finding.remedy.contains("seccomp"), "{finding:?}");
    fake.write("proc/sys/kernel/io_uring_disabled", "2\n");
    assert!(only(kernel::check(&fake.machine())).remedy.contains("io_uring_disabled=0"));
    fake.calls.io_uring = || Ok(());
    fake.calls.memfd = || Err(Errno::EACCES);
    says(&only(kernel::check(&fake.machine())), Level::Problem, "memfd");
    fake.calls.memfd = || Ok(());
    fake.write("sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet\n");
    says(&only(kernel::check(&fake.machine())), Level::Warning, "hpet");
}

#[test]
fn limits_are_compared_with_what_the_configuration_needs() {
    let fake = Fake::new();
    let endpoints: String = (0..20)
        .map(|i| format!("[[endpoint]]\nname = \"vm{i}\"\nsubsystem = \"s0\"\nqueues = 127\n"))
        .collect();
    let many = config(&format!("[[subsystem]]\nname = \"s0\"\n{endpoints}"));
    all_is_well(&limits::check(&fake.machine(), Some(&many)));
    fake.write("proc/self/limits", "Max open files            1024   2048   files\n");
    says(&only(limits::check(&fake.machine(), Some(&many))), Level::Problem, "2048 are allowed");
    fake.write("proc/self/limits", "Max open files            unlimited unlimited files\n");
    all_is_well(&limits::check(&fake.machine(), Some(&many)));
}

#[test]
fn a_quota_below_the_workers_is_found_in_both_kinds_of_cgroups() {
    let fake = Fake::new();
    let one = config("");
    fake.write("proc/self/cgroup", "0::/a/b\n");
    fake.write("sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
    all_is_well(&limits::check(&fake.machine(), Some(&one)));
    fake.write("sys/fs/cgroup/a/cpu.max", "50000 100000\n");
    says(&only(limits::check(&fake.machine(), Some(&one))), Level::Warning, "0.50 cores");
    fake.write("sys/fs/cgroup/a/cpu.max", "200000 100000\n");
    all_is_well(&limits::check(&fake.machine(), Some(&one)));
    fake.write("proc/self/cgroup", "4:cpu,cpuacct:/c\n0::/\n");
    fake.write("sys/fs/cgroup/cpu/c/cpu.cfs_quota_us", "-1\n");
    fake.write("sys/fs/cgroup/cpu/c/cpu.cfs_period_us", "100000\n");
    all_is_well(&limits::check(&fake.machine(), Some(&one)));
    fake.write("sys/fs/cgroup/cpu/c/cpu.cfs_quota_us", "25000\n");
    says(&only(limits::check(&fake.machine(), Some(&one))), Level::Warning, "0.25 cores");
}

#[test]
fn memory_devices_have_to_fit() {
    let fake = Fake::new();
    let sized = |size: &str| {
        config(&format!("[[bdev]]\nname = \"m\"\ndriver = \"malloc\"\nsize = \"{size}\"\n"))
    };
    let look = |size: &str| limits::check(&fake.machine(), Some(&sized(size)));
    all_is_well(&look("1GiB"));
    says(&only(look("5GiB")), Level::Warning, "5 GiB");
    says(&only(look("9GiB")), Level::Problem, "8 GiB");
    fake.write("proc/self/cgroup", "0::/a\n");
    fake.write("sys/fs/cgroup/a/memory.max", "536870912\n");
    says(&only(look("1GiB")), Level::Problem, "512 MiB");
}

#[test]
fn cores_have_to_be_there_and_each_workers_own() {
    let fake = Fake::new();
    let workers = |cores: &[u32]| {
        let worker = |(i, core)| format!("[[worker]]\nname = \"w{i}\"\ncore = {core}\n");
        config(&cores.iter().enumerate().map(worker).collect::<String>())
    };
    let look = |cores: &[u32]| cores::check(&fake.machine(), Some(&workers(cores)));
    all_is_well(&look(&[1, 2]));
    says(&only(look(&[1, 9])), Level::Problem, "core 9 is not online; 0-3 are");
    says(&only(look(&[1, 1])), Level::Warning, "both poll on core 1");
    fake.write("sys/devices/system/cpu/cpu2/topology/thread_siblings_list", "0,2\n");
    says(&only(look(&[0, 2])), Level::Warning, "threads of one core");
    fake.write("proc/self/status", "Cpus_allowed_list:\t0-1\n");
    says(&only(look(&[1, 3])), Level::Problem, "not for this process");
    fake.write("sys/devices/system/cpu/isolated", "1\n");
    assert!(look(&[1]).iter().any(|f| f.check == "isolation" && f.remedy.is_empty()));
    assert!(look(&[0]).iter().any(|f| f.remedy.contains("isolcpus=0")));
    let three: String = (0..3).map(|i| format!("[[worker]]\nname = \"w{i}\"\n")).collect();
    let findings = cores::check(&fake.machine(), Some(&config(&three)));
    says(&only(findings), Level::Warning, "3 workers for 2 cores");
}

const DRIVE: &str = "[[bdev]]\nname = \"nv0\"\ndriver = \"nvme\"\ntarget = \"pcie:0000:01:00.0\"\n";

#[test]
fn a_drive_is_followed_from_its_function_to_its_group() {
    let mut fake = Fake::new();
    let drive = config(DRIVE);
    let look = |fake: &Fake| drives::check(&fake.machine(), Some(&drive));
    let device = "sys/bus/pci/devices/0000:01:00.0";
    assert_eq!(
        look(&fake).iter().filter(|f| f.level == Level::Problem).count(),
        2,
        "no IOMMU either"
    );
    fake.directory("sys/kernel/iommu_groups/7/devices/0000:01:00.0", 0o755);
    says(&only(look(&fake)), Level::Problem, "no PCI function");
    fake.directory(device, 0o755);
    says(&only(look(&fake)), Level::Problem, "driver none");
    fake.link(&format!("{device}/driver"), "../../drivers/nvme");
    let finding = only(look(&fake));
    says(&finding, Level::Problem, "driver nvme");
    assert!(finding.remedy.contains("0000:01:00.0"), "{finding:?}");
    fs::remove_file(fake.root.path().join(device).join("driver")).unwrap();
    fake.link(&format!("{device}/driver"), "../../drivers/vfio-pci");
    says(&only(look(&fake)), Level::Problem, "no IOMMU group");
    fake.link(&format!("{device}/iommu_group"), "../../groups/7");
    // A bridge in the group may keep its driver; another drive may not.
    fake.directory("sys/kernel/iommu_groups/7/devices/0000:00:01.0", 0o755);
    fake.write("sys/bus/pci/devices/0000:00:01.0/class", "0x060400\n");
    fake.link("sys/bus/pci/devices/0000:00:01.0/driver", "../pcieport");
    fake.directory("sys/kernel/iommu_groups/7/devices/0000:02:00.0", 0o755);
    fake.link("sys/bus/pci/devices/0000:02:00.0/driver", "../ahci");
    says(&only(look(&fake)), Level::Problem, "0000:02:00.0 is in group 7");
    fs::remove_file(fake.root.path().join("sys/bus/pci/devices/0000:02:00.0/driver")).unwrap();
    says(&only(look(&fake)), Level::Problem, "/dev/vfio/vfio is not there");
    fake.write("dev/vfio/vfio", "");
    fake.write("dev/vfio/7", "");
    let open = |path: &str, mode| {
        fs::set_permissions(fake.root.path().join(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    open("dev/vfio/vfio", 0o666);
    open("dev/vfio/7", 0o600);
    says(&only(look(&fake)), Level::Problem, "vireo may not open /dev/vfio/7");
    fake.who.uid = 0;
    all_is_well(&look(&fake));

    fake.write("proc/self/limits", "Max locked memory         8388608   8388608   bytes\n");
    let finding = only(limits::check(&fake.machine(), Some(&drive)));
    says(&finding, Level::Problem, "8 MiB");
    fake.write("proc/self/status", "CapEff:\t0000000000004000\n");
    all_is_well(&limits::check(&fake.machine(), Some(&drive)));
}

#[test]
fn another_target_may_come_later() {
    let fake = Fake::new();
    let drive = config(&DRIVE.replace("pcie:0000:01:00.0", "vfio-user:/run/other/vm0"));
    let look = || drives::check(&fake.machine(), Some(&drive));
    says(&only(look()), Level::Warning, "no socket at /run/other/vm0");
    fake.write("run/other/vm0/cntrl", "");
    says(&only(look()), Level::Problem, "may not connect");
}

#[test]
fn directories_have_to_be_writable_and_not_by_everybody() {
    let mut fake = Fake::new();
    let place = config("runtime_dir = \"/run/x\"\nstate_dir = \"/var/x\"\n");
    fake.directory("var/x", 0o777);
    fake.directory("run", 0o755);
    let look = |fake: &Fake| directories::check(&fake.machine(), &place);
    let found = look(&fake);
    says(&found[0], Level::Problem, "vireo may not make it in /run");
    says(&found[1], Level::Warning, "everybody may write to /var/x");
    fake.directory("run/x", 0o750);
    says(&look(&fake)[0], Level::Problem, "vireo may not write to /run/x");
    assert!(look(&fake)[0].remedy.starts_with("chown vireo"));
    fake.who.uid = 0;
    fake.directory("var/x", 0o750);
    all_is_well(&look(&fake));
    fs::remove_dir(fake.root.path().join("var/x")).unwrap();
    fake.write("var/x", "");
    says(&only(look(&fake)), Level::Problem, "no directory");
}

#[test]
fn qemu_is_asked_what_it_can() {
    let mut fake = Fake::new();
    fake.write("dev/kvm", "");
    all_is_well(&vmm::check(&fake.machine()));
    fake.write("usr/libexec/qemu-kvm", "");
    let program = fake.root.path().join("usr/libexec/qemu-kvm");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    says(&only(vmm::check(&fake.machine())), Level::Warning, "does not tell its version");
    fake.calls.run = |_, arguments| {
        let version = "QEMU emulator version 7.2.22 (Debian 1:7.2)\nCopyright\n";
        Some(if arguments == ["--version"] { version } else { "name \"nvme\"\n" }.to_owned())
    };
    says(&only(vmm::check(&fake.machine())), Level::Warning, "7.2.22 is too old");
    fake.calls.run = |_, arguments| {
        let devices = "name \"vfio-user-pci\", bus PCI\n";
        Some(
            if arguments == ["--version"] { "QEMU emulator version 10.1.0" } else { devices }
                .to_owned(),
        )
    };
    all_is_well(&vmm::check(&fake.machine()));
    fs::remove_file(fake.root.path().join("dev/kvm")).unwrap();
    says(&only(vmm::check(&fake.machine())), Level::Warning, "emulated");
}
