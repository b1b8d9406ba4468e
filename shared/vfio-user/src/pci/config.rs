//! Configuration space of one PCI Express function: 4 KiB with a write mask for each byte.
//!
//! Reads and writes of any length and alignment are served: one client reads all of it at once,
//! another goes two bytes at a time. A write tells what follows from it; it is the owner's to
//! carry that out.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::capability::{self, Capability, Id};

/// Bytes of configuration space.
pub const CONFIG_SIZE: usize = 4096;

/// Smallest BAR0: Windows takes no less.
pub const MIN_BAR0_SIZE: u64 = 16 * 1024;
/// Bytes of a BAR that holds the MSI-X table or the pending bits: a page each.
pub const MSIX_BAR_SIZE: u64 = 4096;
/// The BAR of the MSI-X table.
pub const MSIX_TABLE_BAR: u8 = 4;
/// The BAR of the MSI-X pending bits.
pub const MSIX_PBA_BAR: u8 = 5;

/// Command register.
pub const COMMAND: usize = 0x04;
/// Command: the function answers to its memory BARs.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command: the function may do DMA and send MSIs.
pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Command: no INTx.
pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;

const COMMAND_WRITABLE: u16 =
    COMMAND_MEMORY | COMMAND_BUS_MASTER | 1 << 6 | 1 << 8 | COMMAND_INTX_DISABLE;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const BAR0: usize = 0x10;
const CAPABILITIES_POINTER: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const BAR_MEMORY_64: u32 = 0b100;

/// What distinguishes one function from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// Vendor id.
    pub vendor_id: u16,
    /// Device id.
    pub device_id: u16,
    /// Subsystem vendor id.
    pub subsystem_vendor_id: u16,
    /// Subsystem id.
    pub subsystem_id: u16,
    /// Revision id.
    pub revision_id: u8,
    /// Class code: base class, subclass, programming interface, from high to low byte.
    pub class_code: u32,
    /// Bytes of BAR0, a power of two and at least [`MIN_BAR0_SIZE`].
    pub bar0_size: u64,
    /// MSI-X vectors, 1 to 256, so that table and pending bits fit a page each. Linux wants one
    /// per queue and one more; 512 are known to break Windows.
    pub msix_vectors: u16,
    /// Serial number; none, no capability.
    pub serial_number: Option<u64>,
    /// Whether advanced error reporting is there.
    pub advanced_error_reporting: bool,
}

/// Class code of an NVMe I/O controller.
pub const CLASS_NVME: u32 = 0x01_08_02;

/// A profile that cannot be shown by configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// BAR0 must be a power of two, and large enough for Windows.
    #[error("bar0 size {size:#x} is not a power of two of at least {MIN_BAR0_SIZE:#x}")]
    Bar0Size {
        /// The size, in bytes.
        size: u64,
    },
    /// MSI-X vectors do not fit their page.
    #[error("{vectors} msi-x vectors are not 1 to {MAX_VECTORS}")]
    Vectors {
        /// The number.
        vectors: u16,
    },
}

/// Most MSI-X vectors: as many table entries of 16 bytes as fit [`MSIX_BAR_SIZE`].
pub const MAX_VECTORS: u16 = (MSIX_BAR_SIZE / 16) as u16;

/// Power state of the function (PMCSR.PowerState); a function here knows D0 and D3hot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerState {
    /// It works.
    D0,
    /// It is asleep: it answers to configuration space only.
    D3Hot,
}

/// What follows from a write to configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigEffect {
    /// Initiate Function Level Reset was written. Configuration space is not reset yet: when the
    /// function is, its owner calls [`ConfigSpace::reset`].
    FunctionLevelReset,
    /// The function answers to its memory BARs from now on, or no more.
    MemoryEnable(bool),
    /// The function may do DMA from now on, or no more.
    BusMaster(bool),
    /// MSI-X is enabled, or disabled.
    MsixEnable(bool),
    /// All MSI-X vectors are masked together, or no more.
    MsixFunctionMask(bool),
    /// The function goes to another power state.
    PowerState(PowerState),
}

/// What follows from one write, in the order in which it is to be carried out; mostly nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigEffects(Vec<ConfigEffect>);

impl ConfigEffects {
    /// Whether nothing follows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The effects.
    pub fn iter(&self) -> impl Iterator<Item = ConfigEffect> + '_ {
        self.0.iter().copied()
    }

    /// Whether `effect` is among them.
    #[must_use]
    pub fn contains(&self, effect: ConfigEffect) -> bool {
        self.0.contains(&effect)
    }
}

/// What software wrote, to be kept where a successor finds it: the whole space.
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ConfigImage(pub [u8; CONFIG_SIZE]);

/// Configuration space.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: Box<[u8; CONFIG_SIZE]>,
    /// Values at reset.
    initial: Box<[u8; CONFIG_SIZE]>,
    writable: Box<[u8; CONFIG_SIZE]>,
    clear_on_one: Box<[u8; CONFIG_SIZE]>,
}

/// The state whose changes have effects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Watched {
    command: u16,
    msix_control: u16,
    power: PowerState,
}

impl ConfigSpace {
    /// Configuration space of a function with this profile, as it is after reset.
    ///
    /// # Errors
    /// [`ProfileError`] if the profile cannot be shown.
    pub fn new(profile: &Profile) -> Result<Self, ProfileError> {
        let (size, vectors) = (profile.bar0_size, profile.msix_vectors);
        if !size.is_power_of_two() || size < MIN_BAR0_SIZE {
            return Err(ProfileError::Bar0Size { size });
        }
        if !(1..=MAX_VECTORS).contains(&vectors) {
            return Err(ProfileError::Vectors { vectors });
        }
        let mut space = Self {
            bytes: Box::new([0; CONFIG_SIZE]),
            initial: Box::new([0; CONFIG_SIZE]),
            writable: Box::new([0; CONFIG_SIZE]),
            clear_on_one: Box::new([0; CONFIG_SIZE]),
        };
        space.lay_header(profile);
        let mut capabilities = vec![
            capability::power_management(),
            capability::msix(vectors, MSIX_TABLE_BAR, MSIX_PBA_BAR),
            capability::express_endpoint(),
        ];
        if profile.advanced_error_reporting {
            capabilities.push(capability::advanced_error_reporting());
        }
        if let Some(serial) = profile.serial_number {
            capabilities.push(capability::serial_number(serial));
        }
        space.lay_capabilities(&capabilities);
        space.reset();
        Ok(space)
    }

    /// All registers as after a conventional or function level reset.
    pub fn reset(&mut self) {
        self.bytes.copy_from_slice(&self.initial[..]);
    }

    /// The space as it stands, for a successor.
    #[must_use]
    pub fn image(&self) -> ConfigImage {
        ConfigImage(*self.bytes)
    }

    /// Takes over what software had written to a predecessor with the same profile. Bits that
    /// software cannot write are not taken: a damaged image changes no capability.
    pub fn restore(&mut self, image: &ConfigImage) {
        for (at, &saved) in image.0.iter().enumerate() {
            let writable = self.writable[at];
            self.bytes[at] = self.initial[at] & !writable | saved & writable;
        }
    }

    /// Fills `data` from `offset`; what lies past the end reads as ones.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let start = usize::try_from(offset).unwrap_or(CONFIG_SIZE).min(CONFIG_SIZE);
        let inside = data.len().min(CONFIG_SIZE - start);
        let (head, tail) = data.split_at_mut(inside);
        head.copy_from_slice(&self.bytes[start..start + inside]);
        tail.fill(0xff);
    }

    /// Writes `data` at `offset`; what lies past the end is dropped. Repeating a write repeats no
    /// effect but [`ConfigEffect::FunctionLevelReset`].
    pub fn write(&mut self, offset: u64, data: &[u8]) -> ConfigEffects {
        let start = usize::try_from(offset).unwrap_or(CONFIG_SIZE).min(CONFIG_SIZE);
        let before = self.watched();
        for (at, &value) in (start..CONFIG_SIZE).zip(data) {
            let writable = self.writable[at];
            let kept = self.bytes[at] & !writable & !(value & self.clear_on_one[at]);
            self.bytes[at] = kept | value & writable;
        }
        self.settle_power(before.power);
        let mut effects = self.changes(before);
        // Device Control's high byte holds the bit, whatever the length of the write.
        let flr = usize::from(capability::EXPRESS_OFFSET + capability::DEVICE_CONTROL) + 1;
        let written = flr.checked_sub(start).and_then(|index| data.get(index));
        if written.is_some_and(|byte| byte & (capability::INITIATE_FLR >> 8) as u8 != 0) {
            effects.push(ConfigEffect::FunctionLevelReset);
        }
        ConfigEffects(effects)
    }

    /// Whether the function answers to its memory BARs.
    #[must_use]
    pub fn memory_enabled(&self) -> bool {
        self.watched().command & COMMAND_MEMORY != 0
    }

    /// Whether the function may do DMA.
    #[must_use]
    pub fn bus_master(&self) -> bool {
        self.watched().command & COMMAND_BUS_MASTER != 0
    }

    /// Whether MSI-X is enabled.
    #[must_use]
    pub fn msix_enabled(&self) -> bool {
        self.watched().msix_control & capability::MSIX_ENABLE != 0
    }

    /// Whether all MSI-X vectors are masked together.
    #[must_use]
    pub fn msix_function_masked(&self) -> bool {
        self.watched().msix_control & capability::MSIX_FUNCTION_MASK != 0
    }

    /// The power state.
    #[must_use]
    pub fn power_state(&self) -> PowerState {
        self.watched().power
    }

    /// Address that software gave a BAR (0, 4 or 5; others have none).
    #[must_use]
    pub fn bar_address(&self, bar: u8) -> u64 {
        let at = BAR0 + 4 * usize::from(bar);
        let bytes = match bar {
            0 => 8,
            MSIX_TABLE_BAR | MSIX_PBA_BAR => 4,
            _ => return 0,
        };
        let mut address = [0; 8];
        address[..bytes].copy_from_slice(&self.bytes[at..at + bytes]);
        u64::from_le_bytes(address) & !0xf
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    fn watched(&self) -> Watched {
        let pmcsr = self.word(usize::from(capability::PM_OFFSET + capability::PMCSR));
        Watched {
            command: self.word(COMMAND),
            msix_control: self
                .word(usize::from(capability::MSIX_OFFSET + capability::MSIX_CONTROL)),
            power: match pmcsr & capability::PMCSR_STATE {
                3 => PowerState::D3Hot,
                _ => PowerState::D0,
            },
        }
    }

    /// A write of a state that the function does not have leaves the old one (PM 1.2, 3.2.4).
    fn settle_power(&mut self, before: PowerState) {
        let at = usize::from(capability::PM_OFFSET + capability::PMCSR);
        let mask = capability::PMCSR_STATE as u8;
        if matches!(self.bytes[at] & mask, 1 | 2) {
            let state = if before == PowerState::D3Hot { 3 } else { 0 };
            self.bytes[at] = self.bytes[at] & !mask | state;
        }
    }

    fn changes(&self, before: Watched) -> Vec<ConfigEffect> {
        let after = self.watched();
        let mut effects = Vec::new();
        let command = |bit| (before.command ^ after.command) & bit != 0;
        let msix = |bit| (before.msix_control ^ after.msix_control) & bit != 0;
        if command(COMMAND_MEMORY) {
            effects.push(ConfigEffect::MemoryEnable(after.command & COMMAND_MEMORY != 0));
        }
        if command(COMMAND_BUS_MASTER) {
            effects.push(ConfigEffect::BusMaster(after.command & COMMAND_BUS_MASTER != 0));
        }
        if msix(capability::MSIX_FUNCTION_MASK) {
            let masked = after.msix_control & capability::MSIX_FUNCTION_MASK != 0;
            effects.push(ConfigEffect::MsixFunctionMask(masked));
        }
        if msix(capability::MSIX_ENABLE) {
            let enabled = after.msix_control & capability::MSIX_ENABLE != 0;
            effects.push(ConfigEffect::MsixEnable(enabled));
        }
        if before.power != after.power {
            effects.push(ConfigEffect::PowerState(after.power));
        }
        effects
    }

    fn lay_header(&mut self, profile: &Profile) {
        self.put(0x00, &profile.vendor_id.to_le_bytes());
        self.put(0x02, &profile.device_id.to_le_bytes());
        self.put(0x06, &STATUS_CAPABILITIES.to_le_bytes());
        self.put(0x08, &(profile.class_code << 8 | u32::from(profile.revision_id)).to_le_bytes());
        self.put(BAR0, &BAR_MEMORY_64.to_le_bytes());
        self.put(0x2c, &profile.subsystem_vendor_id.to_le_bytes());
        self.put(0x2e, &profile.subsystem_id.to_le_bytes());
        self.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        self.allow(0x0c, &[0xff]); // cache line size
        self.allow(BAR0, &(!(profile.bar0_size - 1)).to_le_bytes());
        let msix_mask = (!(MSIX_BAR_SIZE as u32 - 1)).to_le_bytes();
        self.allow(BAR0 + 4 * usize::from(MSIX_TABLE_BAR), &msix_mask);
        self.allow(BAR0 + 4 * usize::from(MSIX_PBA_BAR), &msix_mask);
        self.allow(INTERRUPT_LINE, &[0xff]); // the pin beside it is 0: no INTx
    }

    /// Puts capabilities in their places and links each kind in the order given.
    fn lay_capabilities(&mut self, capabilities: &[Capability]) {
        let mut standard_link = CAPABILITIES_POINTER;
        let mut extended_link: Option<(usize, u32)> = None;
        for capability in capabilities {
            let at = usize::from(capability.offset);
            match capability.id {
                Id::Standard(id) => {
                    self.put(standard_link, &[capability.offset as u8]);
                    self.put(at, &[id]);
                    standard_link = at + 1;
                }
                Id::Extended { id, version } => {
                    let header = u32::from(id) | u32::from(version) << 16;
                    if let Some((last, last_header)) = extended_link {
                        let linked = last_header | u32::from(capability.offset) << 20;
                        self.put(last, &linked.to_le_bytes());
                    }
                    // The list begins at 0x100, always: a first capability elsewhere is reached
                    // by an empty header there.
                    if extended_link.is_none() && at != 0x100 {
                        self.put(0x100, &(u32::from(capability.offset) << 20).to_le_bytes());
                    }
                    self.put(at, &header.to_le_bytes());
                    extended_link = Some((at, header));
                }
            }
            for field in &capability.fields {
                let at = at + usize::from(field.offset);
                let size = usize::from(field.size.min(4));
                self.put(at, &field.value.to_le_bytes()[..size]);
                self.allow(at, &field.writable.to_le_bytes()[..size]);
                self.clear_on_one[at..at + size]
                    .copy_from_slice(&field.clear_on_one.to_le_bytes()[..size]);
            }
        }
    }

    fn put(&mut self, at: usize, value: &[u8]) {
        self.initial[at..at + value.len()].copy_from_slice(value);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }
}
