use vfio_user::pci::capability::INITIATE_FLR;
use vfio_user::pci::config::{
    CLASS_NVME, CONFIG_SIZE, ConfigEffect, ConfigSpace, PowerState, Profile, ProfileError,
};

pub fn profile() -> Profile {
    Profile {
        vendor_id: 0x1b36,
        device_id: 0x0010,
        subsystem_vendor_id: 0x1af4,
        subsystem_id: 0x1100,
        revision_id: 2,
        class_code: CLASS_NVME,
        bar0_size: 0x4000,
        msix_vectors: 64,
        serial_number: Some(0x0123_4567_89ab_cdef),
        advanced_error_reporting: true,
    }
}

fn space() -> ConfigSpace {
    ConfigSpace::new(&profile()).unwrap()
}

fn read(space: &ConfigSpace, at: u64, size: usize) -> u64 {
    let mut data = [0; 8];
    space.read(at, &mut data[..size]);
    u64::from_le_bytes(data)
}

fn write16(space: &mut ConfigSpace, at: u64, value: u16) -> Vec<ConfigEffect> {
    space.write(at, &value.to_le_bytes()).iter().collect()
}

/// Offset of a standard capability, found as software finds it.
fn find(space: &ConfigSpace, id: u64) -> Option<u64> {
    assert_ne!(read(space, 6, 2) & 0x10, 0, "capabilities are announced");
    let mut at = read(space, 0x34, 1);
    for _ in 0..48 {
        if at == 0 {
            return None;
        }
        assert_eq!(at % 4, 0);
        if read(space, at, 1) == id {
            return Some(at);
        }
        at = read(space, at + 1, 1);
    }
    panic!("the list of capabilities does not end");
}

fn find_extended(space: &ConfigSpace, id: u64) -> Option<u64> {
    let mut at = 0x100;
    for _ in 0..480 {
        let header = read(space, at, 4);
        if header & 0xffff == id {
            return Some(at);
        }
        at = header >> 20;
        if at == 0 {
            return None;
        }
    }
    panic!("the list of extended capabilities does not end");
}

#[test]
fn header_names_an_nvme_controller_without_interrupt_pin() {
    let space = space();
    assert_eq!(read(&space, 0, 4), 0x0010_1b36);
    assert_eq!(read(&space, 8, 4), 0x0108_0202);
    assert_eq!(read(&space, 0x0e, 1), 0, "header type");
    assert_eq!(read(&space, 0x2c, 4), 0x1100_1af4);
    assert_eq!(read(&space, 0x3d, 1), 0, "interrupt pin");
}

#[test]
fn bars_are_sized_by_writing_ones() {
    let mut space = space();
    for (at, size, kind) in [
        (0x10, 0x4000, 4),
        (0x18, 0, 0),
        (0x1c, 0, 0),
        (0x20, 4096, 0),
        (0x24, 4096, 0),
        (0x30, 0, 0),
    ] {
        space.write(at, &u32::MAX.to_le_bytes());
        let low = read(&space, at, 4) as u32;
        assert_eq!(low & 0xf, kind, "BAR at {at:#x}");
        assert_eq!((low & !0xf).wrapping_neg(), size, "BAR at {at:#x}");
    }
    space.write(0x14, &u32::MAX.to_le_bytes());
    assert_eq!(read(&space, 0x14, 4), 0xffff_ffff, "upper half of BAR0");
}

#[test]
fn bar_addresses_are_kept() {
    let mut space = space();
    space.write(0x10, &0x0000_00fe_8000_4000_u64.to_le_bytes());
    assert_eq!(space.bar_address(0), 0xfe_8000_4000);
    space.write(0x20, &0xfebf_1000_u32.to_le_bytes());
    assert_eq!(
        (space.bar_address(4), space.bar_address(5), space.bar_address(2)),
        (0xfebf_1000, 0, 0)
    );
}

#[test]
fn large_bar0_is_sized_over_both_halves() {
    let big = Profile { bar0_size: 1 << 33, ..profile() };
    let mut space = ConfigSpace::new(&big).unwrap();
    space.write(0x10, &u64::MAX.to_le_bytes());
    assert_eq!((read(&space, 0x10, 8) & !0xf).wrapping_neg(), 1 << 33);
}

#[test]
fn capabilities_are_found_by_their_lists() {
    let space = space();
    for id in [0x01, 0x11, 0x10] {
        assert!(find(&space, id).is_some(), "{id:#x}");
    }
    assert_eq!(find(&space, 0x05), None, "no MSI");
    assert!(find_extended(&space, 1).is_some());
    let serial = find_extended(&space, 3).unwrap();
    assert_eq!(read(&space, serial + 4, 8), 0x0123_4567_89ab_cdef);
}

#[test]
fn serial_number_is_found_without_error_reporting_and_neither_need_be_there() {
    let only_serial = Profile { advanced_error_reporting: false, ..profile() };
    let space = ConfigSpace::new(&only_serial).unwrap();
    assert_eq!(find_extended(&space, 1), None);
    assert!(find_extended(&space, 3).is_some());
    let space = ConfigSpace::new(&Profile { serial_number: None, ..only_serial }).unwrap();
    assert_eq!(read(&space, 0x100, 4), 0);
}

#[test]
fn msix_tells_its_size_and_bars_and_its_enabling_is_an_effect() {
    let mut space = space();
    let at = find(&space, 0x11).unwrap();
    assert_eq!(read(&space, at + 2, 2), 63, "table size, 0's based");
    assert_eq!((read(&space, at + 4, 4), read(&space, at + 8, 4)), (4, 5));
    assert_eq!(write16(&mut space, at + 2, 0x8000), [ConfigEffect::MsixEnable(true)]);
    assert_eq!(write16(&mut space, at + 2, 0x8000), []);
    assert_eq!(write16(&mut space, at + 2, 0xc000), [ConfigEffect::MsixFunctionMask(true)]);
    assert!(space.msix_enabled() && space.msix_function_masked());
    let both = [ConfigEffect::MsixFunctionMask(false), ConfigEffect::MsixEnable(false)];
    assert_eq!(write16(&mut space, at + 2, 0), both);
    assert_eq!(read(&space, at + 2, 2), 63);
}

#[test]
fn command_register_enables_memory_and_dma() {
    let mut space = space();
    let both = [ConfigEffect::MemoryEnable(true), ConfigEffect::BusMaster(true)];
    assert_eq!(write16(&mut space, 4, 0x0406), both);
    assert!(space.memory_enabled() && space.bus_master());
    assert_eq!(write16(&mut space, 4, 0x0406), []);
    assert_eq!(write16(&mut space, 4, 0xffff), []);
    assert_eq!(read(&space, 4, 2), 0x0546, "no i/o, no special cycles");
    assert_eq!(write16(&mut space, 4, 4), [ConfigEffect::MemoryEnable(false)]);
}

#[test]
fn function_level_reset_is_an_effect_of_any_write_that_covers_its_bit() {
    let space = space();
    let at = find(&space, 0x10).unwrap();
    assert_ne!(read(&space, at + 4, 4) & 1 << 28, 0, "FLR is offered");
    for (offset, data) in [
        (at + 8, &INITIATE_FLR.to_le_bytes()[..]),
        (at + 9, &[0x80]),
        (at + 8, &[0, 0x80, 0, 0]),
        (at + 4, &[0, 0, 0, 0, 0, 0x80]),
    ] {
        let mut space = space.clone();
        let effects: Vec<_> = space.write(offset, data).iter().collect();
        assert_eq!(effects, [ConfigEffect::FunctionLevelReset]);
        assert_eq!(read(&space, at + 8, 2) & 0x8000, 0, "the bit reads 0");
    }
    for (offset, data) in [(at + 8, &[0x80][..]), (at + 9, &[0x7f]), (at + 10, &[0x80, 0x80])] {
        assert!(!space.clone().write(offset, data).contains(ConfigEffect::FunctionLevelReset));
    }
}

#[test]
fn reset_brings_every_register_back() {
    let mut space = space();
    let fresh = space.image();
    space.write(0, &[0xa5; CONFIG_SIZE]);
    assert_ne!(space.image(), fresh);
    space.reset();
    assert_eq!(space.image(), fresh);
}

#[test]
fn power_states_that_are_not_there_change_nothing() {
    let mut space = space();
    let at = find(&space, 0x01).unwrap() + 4;
    assert_eq!(write16(&mut space, at, 3), [ConfigEffect::PowerState(PowerState::D3Hot)]);
    assert_eq!(write16(&mut space, at, 1), []);
    assert_eq!(space.power_state(), PowerState::D3Hot);
    assert_eq!(write16(&mut space, at, 0), [ConfigEffect::PowerState(PowerState::D0)]);
    assert_eq!(write16(&mut space, at, 2), []);
    assert_eq!(read(&space, at, 2) & 3, 0);
}

#[test]
fn successor_takes_over_what_software_wrote_and_nothing_else() {
    let mut old = space();
    old.write(0x10, &0xfebf_0000_u32.to_le_bytes());
    write16(&mut old, 4, 0x0406);
    let mut new = space();
    new.restore(&old.image());
    assert_eq!(new.image(), old.image());
    let mut damaged = old.image();
    damaged.0.fill(0xff);
    new.restore(&damaged);
    assert_eq!(read(&new, 0, 4), 0x0010_1b36);
    assert!(find(&new, 0x10).is_some());
}

#[test]
fn profiles_that_cannot_be_shown_are_refused() {
    for size in [0, 0x2000, 0x4001, 0x6000] {
        let error = ConfigSpace::new(&Profile { bar0_size: size, ..profile() }).unwrap_err();
        assert_eq!(error, ProfileError::Bar0Size { size });
    }
    for vectors in [0, 257, u16::MAX] {
        let error = ConfigSpace::new(&Profile { msix_vectors: vectors, ..profile() }).unwrap_err();
        assert_eq!(error, ProfileError::Vectors { vectors });
    }
    for vectors in [1, 33, 128, 256] {
        assert!(ConfigSpace::new(&Profile { msix_vectors: vectors, ..profile() }).is_ok());
    }
}
