//! The registers in BAR0 below the doorbells. NVMe Base 2.0c 3.1.3.
//!
//! Reads of any offset and size return bytes of the registers. Writes take effect if they are dwords or quadwords at
//! a multiple of 4, which is all that 3.1.3 allows; a quadword is two dwords, low half first. Anything else is
//! undefined there and dropped here.

use crate::controller::ResetKind;
use crate::controller::{Context, Controller, Effect};
use ipc::layout::MAX_QUEUE_ENTRIES;
use nvme_spec::register::{
    AdminQueueBase, Aqa, Cap, CapCrms, CapCss, Cc, Crto, Csts, NSSR_RESET, ShutdownNotification,
    Vs, offset,
};
use std::sync::atomic::Ordering;

const CAP_HIGH: u64 = offset::CAP + 4;
const ASQ_HIGH: u64 = offset::ASQ + 4;
const ACQ_HIGH: u64 = offset::ACQ + 4;

/// What enabling, disabling and becoming ready may take (CAP.TO, CRTO.CRWMT), in units of 500 ms: workers drain what is
/// in flight, which is as fast as the slowest device.
const TIMEOUT: u8 = 60;
/// Largest memory page: 4096 << 4 = 64 KiB (CAP.MPSMAX).
pub(crate) const MPS_MAX: u8 = 4;
/// Bits of CC that are fields which the controller has: all but CRIME, which CAP.CRMS does not offer.
const CC_FIELDS: u32 = 0x00FF_FFF1;

/// Registers that a host writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Registers {
    /// Controller Configuration.
    pub cc: Cc,
    /// Admin Queue Attributes.
    pub aqa: Aqa,
    /// Admin Submission Queue Base Address.
    pub asq: AdminQueueBase,
    /// Admin Completion Queue Base Address.
    pub acq: AdminQueueBase,
    /// Interrupt mask. Pin-based interrupts and MSI alone would heed it.
    pub interrupt_mask: u32,
    /// CSTS.NSSRO.
    pub nssro: bool,
}

impl Controller {
    /// Reads registers at `offset` in BAR0. Reserved ones, and those of what the controller has not (controller memory
    /// buffer, boot partitions, persistent memory), are 0; so are doorbells.
    pub fn read_register(&self, offset: u64, data: &mut [u8]) {
        for (index, byte) in (0_u64..).zip(data) {
            let at = offset.saturating_add(index);
            let bytes = self.register(at & !3).to_le_bytes();
            *byte = bytes.get((at & 3) as usize).copied().unwrap_or(0);
        }
    }

    /// Writes a register at `offset` in BAR0, below the doorbells.
    pub fn write_register(&mut self, offset: u64, data: &[u8], cx: &mut Context<'_>) {
        if offset & 3 != 0 || !matches!(data.len(), 4 | 8) {
            return;
        }
        let (dwords, _) = data.as_chunks::<4>();
        for (index, dword) in (0_u64..).zip(dwords) {
            self.write_dword(offset.saturating_add(index * 4), u32::from_le_bytes(*dword), cx);
        }
        self.store_registers();
        self.poll(cx);
    }

    /// Controller Capabilities (CAP). NVM Subsystem Reset is on offer while the controller is its subsystem's only one.
    pub(crate) fn cap(&self) -> Cap {
        let sets = CapCss::new().with_nvm(true).with_io_command_sets(true);
        Cap::new()
            .with_mqes_z((MAX_QUEUE_ENTRIES - 1) as u16)
            .with_cqr(true)
            .with_to(TIMEOUT)
            .with_nssrs(self.alone)
            .with_css(sets)
            .with_mpsmax(MPS_MAX)
            .with_crms(CapCrms::new().with_crwms(true))
    }

    /// Controller Status (CSTS).
    pub(crate) fn csts(&self) -> Csts {
        Csts::new()
            .with_rdy(self.state.is_ready())
            .with_cfs(self.is_failed())
            .with_shst(self.shutdown_status())
            .with_nssro(self.registers.nssro)
    }

    /// Keeps what a host wrote where a successor of this process finds it.
    pub(crate) fn store_registers(&self) {
        let Registers { cc, aqa, asq, acq, interrupt_mask, .. } = self.registers;
        let record = &self.segment.admin;
        record.cc.store(cc.into_bits(), Ordering::Relaxed);
        record.aqa.store(aqa.into_bits(), Ordering::Relaxed);
        record.asq.store(asq.into_bits(), Ordering::Relaxed);
        record.acq.store(acq.into_bits(), Ordering::Relaxed);
        record.interrupt_mask.store(interrupt_mask, Ordering::Relaxed);
        record.csts.store(self.csts().into_bits(), Ordering::Release);
    }

    fn register(&self, offset: u64) -> u32 {
        let registers = &self.registers;
        match offset {
            offset::CAP => low(self.cap().into_bits()),
            CAP_HIGH => high(self.cap().into_bits()),
            offset::VS => Vs::V2_0.into_bits(),
            offset::INTMS | offset::INTMC => registers.interrupt_mask,
            offset::CC => registers.cc.into_bits(),
            offset::CSTS => self.csts().into_bits(),
            offset::AQA => registers.aqa.into_bits(),
            offset::ASQ => low(registers.asq.into_bits()),
            ASQ_HIGH => high(registers.asq.into_bits()),
            offset::ACQ => low(registers.acq.into_bits()),
            ACQ_HIGH => high(registers.acq.into_bits()),
            offset::CRTO => Crto::new().with_crwmt(u16::from(TIMEOUT)).into_bits(),
            _ => 0,
        }
    }

    fn write_dword(&mut self, offset: u64, value: u32, cx: &mut Context<'_>) {
        let enabled = self.registers.cc.en();
        let registers = &mut self.registers;
        match offset {
            offset::INTMS => registers.interrupt_mask |= value,
            offset::INTMC => registers.interrupt_mask &= !value,
            offset::CC => self.write_cc(Cc::from_bits(value & CC_FIELDS), cx),
            offset::CSTS if Csts::from_bits(value).nssro() => registers.nssro = false,
            // The others' hosts are other guests: none of them resets what is theirs.
            offset::NSSR if value == NSSR_RESET && cx.subsystem.is_alone() => {
                cx.effect(Effect::SubsystemReset);
            }
            // The admin queue is where it was when the controller was enabled, until it is disabled (3.5.1).
            _ if enabled => {}
            offset::AQA => {
                let aqa = Aqa::from_bits(value);
                registers.aqa = Aqa::new().with_asqs_z(aqa.asqs_z()).with_acqs_z(aqa.acqs_z());
            }
            offset::ASQ => registers.asq = base(registers.asq, 0, value),
            ASQ_HIGH => registers.asq = base(registers.asq, 32, value),
            offset::ACQ => registers.acq = base(registers.acq, 0, value),
            ACQ_HIGH => registers.acq = base(registers.acq, 32, value),
            _ => {}
        }
    }

    fn write_cc(&mut self, new: Cc, cx: &mut Context<'_>) {
        let old = self.registers.cc;
        let mut cc = new;
        if old.en() && new.en() {
            // CSS, MPS and AMS change only while the controller is disabled (3.1.3.5).
            cc = new.with_css(old.css()).with_mps(old.mps()).with_ams(old.ams());
        }
        self.registers.cc = cc;
        match (old.en(), new.en()) {
            (true, false) => return self.reset(ResetKind::Disable, cx),
            (false, true) => self.enable(cx),
            (true, true) | (false, false) => {}
        }
        if new.shn() != old.shn() {
            match new.shn() {
                ShutdownNotification::NORMAL => self.shutdown(true, cx),
                ShutdownNotification::ABRUPT => self.shutdown(false, cx),
                _ => {}
            }
        }
    }
}

fn low(value: u64) -> u32 {
    value as u32
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

/// `old` with the half at bit `shift` replaced; the reserved bits stay 0.
fn base(old: AdminQueueBase, shift: u32, half: u32) -> AdminQueueBase {
    let kept = old.into_bits() & !(u64::from(u32::MAX) << shift);
    let new = AdminQueueBase::from_bits(kept | u64::from(half) << shift);
    AdminQueueBase::new().with_page(new.page())
}
