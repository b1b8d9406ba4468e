//! Registers: values, widths, and a random client against a model of ten lines.

use crate::host::{ASQ, Host};
use nvme::ResetKind;
use nvme_spec::register::{Cap, Cc, offset};
use proptest::prelude::*;

#[test]
fn registers_have_their_reset_values() {
    let host = Host::new();
    let cap = Cap::from_bits(host.read64(offset::CAP));
    assert_eq!(cap.mqes_z(), 4095);
    assert!(cap.cqr() && cap.nssrs() && cap.to() > 0);
    assert_eq!((cap.dstrd(), cap.mpsmin(), cap.mpsmax()), (0, 0, 4));
    assert!(cap.css().nvm() && cap.css().io_command_sets() && !cap.css().no_io_command_set());
    assert!(!cap.bps() && !cap.pmrs() && !cap.cmbs() && !cap.nsss());
    assert!(cap.crms().crwms() && !cap.crms().crims());
    assert_eq!(host.read32(offset::VS), 0x0002_0000);
    assert_eq!(host.read32(offset::CRTO), u32::from(cap.to()));
    for at in [offset::INTMS, offset::CC, offset::CSTS, offset::NSSR, offset::AQA, 0x18] {
        assert_eq!(host.read32(at), 0, "{at:#x}");
    }
    for at in (offset::CMBLOC..offset::CRTO).chain(offset::CRTO + 4..0x1000).step_by(4) {
        assert_eq!(host.read32(at), 0, "{at:#x}");
    }
}

#[test]
fn reads_of_any_width_give_bytes_of_the_registers() {
    let host = Host::new();
    let mut all = [0; 64];
    host.controller.read_register(0, &mut all);
    for (start, bytes) in [(0, 1), (1, 2), (3, 5), (8, 4), (6, 8)] {
        let mut part = vec![0; bytes];
        host.controller.read_register(start as u64, &mut part);
        assert_eq!(part, all[start..start + bytes]);
    }
    let mut past = [0xFF; 16];
    host.controller.read_register(u64::MAX - 3, &mut past);
    assert_eq!(past, [0; 16]);
}

#[test]
fn writes_of_odd_width_or_place_are_dropped() {
    let mut host = Host::new();
    host.write64(offset::ASQ, ASQ);
    for (at, bytes) in [
        (offset::ASQ, 1),
        (offset::ASQ, 2),
        (offset::ASQ + 1, 4),
        (offset::ASQ + 2, 8),
        (offset::ASQ, 16),
    ] {
        host.call(|controller, cx| controller.write_register(at, &vec![0xFF; bytes], cx));
    }
    assert_eq!(host.read64(offset::ASQ), ASQ);
    host.write32(offset::ASQ + 4, 7);
    assert_eq!(host.read64(offset::ASQ), 7 << 32 | ASQ);
}

#[test]
fn read_only_and_reserved_registers_keep_their_values() {
    let mut host = Host::new();
    for at in (0..0x1000).step_by(4).filter(|at| {
        ![offset::INTMS, offset::INTMC, offset::CC, offset::NSSR, offset::AQA].contains(at)
            && !(offset::ASQ..offset::CMBLOC).contains(at)
    }) {
        let before = host.read32(at);
        host.write32(at, u32::MAX);
        assert_eq!(host.read32(at), before, "{at:#x}");
    }
    host.write32(offset::INTMS, 0b1100);
    host.write32(offset::INTMC, 0b0100);
    assert_eq!((host.read32(offset::INTMS), host.read32(offset::INTMC)), (0b1000, 0b1000));
}

/// The registers that a client writes, as the specification says it in words.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Model {
    cc: u32,
    aqa: u32,
    asq: u64,
    acq: u64,
    ready: bool,
    fatal: bool,
    shutdown: u32,
    /// Workers have not acknowledged the last reset, or shutdown.
    resetting: bool,
}

impl Model {
    fn write(&mut self, at: u64, value: u32) {
        let half = |old: u64, high: bool| match high {
            true => old & 0xFFFF_FFFF | u64::from(value) << 32,
            false => old & !0xFFFF_FFFF | u64::from(value & 0xFFFF_F000),
        };
        let enabled = self.cc & 1 == 1;
        match at {
            offset::AQA if !enabled => self.aqa = value & 0x0FFF_0FFF,
            0x28 | 0x2C if !enabled => self.asq = half(self.asq, at == 0x2C),
            0x30 | 0x34 if !enabled => self.acq = half(self.acq, at == 0x34),
            offset::CC => self.write_cc(value & 0x00FF_FFF1),
            _ => {}
        }
    }

    fn write_cc(&mut self, value: u32) {
        let (old, locked) = (self.cc, 0x3FF0);
        self.cc = if old & value & 1 == 1 { value & !locked | old & locked } else { value };
        if old & 1 == 1 && value & 1 == 0 {
            (self.resetting, self.fatal, self.shutdown) = (true, false, 0);
            return;
        }
        if old & 1 == 0 && value & 1 == 1 {
            self.enable();
        }
        let (shn, before) = (value >> 14 & 3, old >> 14 & 3);
        if matches!(shn, 1 | 2)
            && shn != before
            && !self.fatal
            && !self.resetting
            && self.shutdown == 0
        {
            self.shutdown = 1;
        }
    }

    fn enable(&mut self) {
        if self.resetting || self.shutdown == 1 || (self.shutdown == 2 && self.ready) || self.fatal
        {
            return;
        }
        let (css, mps, ams) = (self.cc >> 4 & 7, self.cc >> 7 & 15, self.cc >> 11 & 7);
        let page = (4096_u64 << mps) - 1;
        let valid = matches!(css, 0 | 6 | 7)
            && mps <= 4
            && ams == 0
            && self.aqa & 0xFFF > 0
            && self.aqa >> 16 > 0
            && self.asq & page == 0
            && self.acq & page == 0;
        (self.ready, self.fatal, self.shutdown) = (valid, !valid, 0);
    }

    fn acknowledge(&mut self) {
        if self.resetting {
            (self.resetting, self.ready) = (false, false);
            if self.cc & 1 == 1 {
                self.enable();
            }
        }
        if self.shutdown == 1 {
            self.shutdown = 2;
        }
    }

    fn csts(&self) -> u32 {
        u32::from(self.ready) | u32::from(self.fatal) << 1 | self.shutdown << 2
    }
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Write(u64, u32),
    Acknowledge,
}

fn act() -> impl Strategy<Value = Act> {
    let valid = Host::cc().into_bits();
    let base = prop_oneof![Just(0x1_0000), Just(0x2_0000), any::<u32>()];
    let cc = prop_oneof![
        4 => Just(valid),
        4 => Just(valid & !1),
        1 => Just(valid | 1 << 14),
        1 => Just(valid | 2 << 14),
        1 => Just(Cc::from_bits(valid).with_mps(4).into_bits()),
        1 => any::<u32>(),
    ];
    prop_oneof![
        3 => cc.prop_map(|value| Act::Write(offset::CC, value)),
        2 => prop_oneof![Just(0x001F_001F), any::<u32>()].prop_map(|value| Act::Write(offset::AQA, value)),
        4 => (prop::sample::select(vec![0x28, 0x30]), base).prop_map(|(at, value)| Act::Write(at, value)),
        1 => (prop::sample::select(vec![0x2C, 0x34]), 0..2_u32).prop_map(|(at, value)| Act::Write(at, value)),
        2 => (0..0x400_u64, any::<u32>()).prop_map(|(at, value)| Act::Write(at * 4, value)),
        3 => Just(Act::Acknowledge),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn registers_follow_the_model(acts in prop::collection::vec(act(), 1..60)) {
        let mut host = Host::new();
        host.acknowledge();
        let mut model = Model::default();
        for act in acts {
            match act {
                Act::Write(at, value) => {
                    host.write32(at, value);
                    model.write(at, value);
                }
                Act::Acknowledge => {
                    host.acknowledge();
                    // A backend that flushes at once.
                    for effect in host.effects() {
                        if let nvme::Effect::Request { ticket, .. } = effect {
                            host.complete(ticket, Ok(()));
                        }
                    }
                    model.acknowledge();
                }
            }
            host.effects.clear();
            let seen = [host.read32(offset::CC), host.read32(offset::AQA), host.read32(offset::CSTS)];
            prop_assert_eq!(seen, [model.cc, model.aqa, model.csts()], "{:?}", act);
            prop_assert_eq!(host.read64(offset::ASQ), model.asq);
            prop_assert_eq!(host.read64(offset::ACQ), model.acq);
        }
        host.reset(ResetKind::Disconnect);
        host.acknowledge();
        prop_assert_eq!(host.read32(offset::CSTS), 0);
    }
}
