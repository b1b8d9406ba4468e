//! What a hostile guest or client does, row by row: bugs that were found elsewhere. In each test a well-behaved
//! neighbour on the same worker does verified I/O all the time, and must go on.
//!
//! | class | end to end, here | closer to the code |
//! |---|---|---|
//! | double fetch | [`memory::a_list_that_changes_under_the_walk_hits_nothing_else`], [`memory::a_command_that_changes_behind_the_doorbell_is_one_command_or_the_other`] | copies by type: `nvme`, `ipc` |
//! | unbounded list, length out of bounds | [`commands::lists_without_end_are_refused`] | `nvme::sgl`, fuzz `walks` |
//! | one guest stalls the others | [`commands::a_tail_past_the_queue_stops_that_queue_alone`] | simulation |
//! | log or identify out of bounds | [`commands::logs_and_structures_end_where_they_end`] | `nvme::admin` |
//! | integer overflow | [`commands::numbers_at_their_limits_are_refused`] | fuzz `commands` |
//! | DMA into the device | [`memory::the_device_s_own_address_is_no_memory`] | `ipc::dma_table` |
//! | use after teardown | [`lifecycle::clients_that_vanish_with_commands_in_flight_leave_nothing`] | simulation |
//! | write to recycled memory | [`memory::an_unmap_waits_for_what_touches_it_and_for_nothing_else`], [`death`] | simulation |
//! | SIGBUS | [`memory::truncated_memory_fails_that_controller_alone`], [`memory::memory_of_a_full_file_system_fails_that_controller_alone`] | `ipc::sigbus` |
//! | blocking eventfd | [`interrupts::a_full_eventfd_that_blocks_fails_that_controller_alone`] | `ipc::watchdog` |
//! | confused deputy | [`memory::access_follows_each_client_s_own_descriptor`] | `ipc::guest_memory` |
//! | descriptor that blocks, address space | [`memory::files_and_giants_are_no_memory`] | `ipc::guest_memory` |
//! | guest memory in core files | [`lifecycle::guest_memory_is_in_no_core_file`] | |
//! | check by us, use by hardware | `nvme_backend`: data goes to the drive without a copy, lists do not | `bdev::nvme`, `nvme_driver::prp` |
//! | state confusion | [`lifecycle::doorbells_out_of_state_do_nothing`] | `nvme::controller` |
//! | wrong address | [`commands::misaligned_pointers_are_refused`] | `nvme::prp` against a model |
//! | desync, exhaustion by messages | [`messages`] | `vfio_user`, fuzz `frames` |
//! | stale interrupts | [`interrupts::ranges_past_the_vectors_are_refused`], [`interrupts::a_vector_taken_away_is_silent`] | `vfio_user` |
//! | floods | [`commands::event_requests_are_bounded`], [`messages::mistakes_do_not_flood_the_log`] | |

mod commands;
mod death;
mod interrupts;
mod lifecycle;
mod memory;
mod messages;

use nvme_spec::{Lba, Nsid};
use vireo_tests::host::{Attach, Host, Neighbour};
use vireo_tests::target::{Target, configuration};

/// A memory device.
pub const MEMORY: Nsid = Nsid(1);
/// A device that takes three seconds for everything.
pub const SLOW: Nsid = Nsid(2);
/// That long, in milliseconds.
pub const SLOW_MS: u64 = 3000;

/// A target with two endpoints of one subsystem: `vm0` for the hostile client, `vm1` for its neighbour.
pub struct Stage {
    /// The target.
    pub target: Target,
    neighbour: Neighbour,
}

impl Stage {
    /// Starts the target and the neighbour.
    #[track_caller]
    pub fn start() -> Self {
        let target = Target::start(&configuration(&format!(
            "[[bdev]]\nname = \"mem0\"\ndriver = \"malloc\"\nsize = \"64MiB\"\n\
             [[bdev]]\nname = \"slow\"\ndriver = \"null\"\nsize = \"1GiB\"\nlatency = \"{SLOW_MS}ms\"\n\
             [[subsystem]]\nname = \"s0\"\nserial = \"HOSTILE\"\n\
             [[subsystem.namespace]]\nnsid = 1\nbdev = \"mem0\"\n\
             [[subsystem.namespace]]\nnsid = 2\nbdev = \"slow\"\n\
             [[endpoint]]\nname = \"vm0\"\nsubsystem = \"s0\"\n\
             [[endpoint]]\nname = \"vm1\"\nsubsystem = \"s0\"\n"
        )));
        let neighbour = Neighbour::start(target.socket("vm1"), MEMORY, Lba(65_536));
        Self { target, neighbour }
    }

    /// The hostile client, attached, its controller enabled, with one queue pair of 64 entries.
    #[track_caller]
    pub fn host(&self) -> Host {
        Host::connect(self.target.socket("vm0"))
    }

    /// The hostile client, attached its own way and not enabled.
    #[track_caller]
    pub fn attach(&self, how: &Attach) -> Host {
        Host::attach(self.target.socket("vm0"), how)
    }

    /// The neighbour still does verified I/O.
    #[track_caller]
    pub fn neighbour_goes_on(&self) {
        self.neighbour.goes_on();
    }

    /// The neighbour still does, and the next client of the hostile one's endpoint finds a working controller.
    #[track_caller]
    pub fn end(self) {
        let mut host = self.host();
        host.write(MEMORY, Lba(0), &[0x42; 512], 512).expect("the next client writes");
        assert!(host.read(MEMORY, Lba(0), 1, 512).expect("the next client reads") == [0x42; 512]);
        self.neighbour.finish();
        assert!(self.target.stop().success());
    }
}
