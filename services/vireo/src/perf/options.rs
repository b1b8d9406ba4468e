//! What is asked for on the command line, and whether it makes sense together.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use super::units::{CoreList, parse_cores, parse_duration, parse_rate, parse_size, show_size};
use crate::reach::DEFAULT_TIMEOUT;

/// Largest I/O: beyond it a transfer is many commands anyway.
const BLOCK_SIZE_MAX: u64 = 64 << 20;
/// Smallest unit that any namespace has.
const BLOCK_SIZE_UNIT: u64 = 512;
/// Deepest queue: what one ring of a controller can hold at most is less.
const DEPTH_MAX: u16 = 16_384;
/// Most queue pairs: the controllers at hand grant fewer.
const QUEUES_MAX: u16 = 1024;
/// Most memory for buffers, so that a slip of the finger does not take the machine down.
const BUFFERS_MAX: u64 = 8 << 30;
/// Most runs of each target when two are compared.
const ALTERNATIONS_MAX: u32 = 1000;
/// Steepest Zipf distribution: beyond, one block takes it all.
const THETA_MAX: f64 = 10.0;

/// `vireo perf`: load a controller and measure it.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  vireo perf vfio-user:/run/vireo/vm0 --depth 128 --cores 1
  vireo perf pcie:0000:01:00.0 --pattern randrw --mix 70 --block-size 16KiB --time 30s
  vireo perf vfio-user:/run/vireo/vm0 --pattern randwrite --verify crc32c --size 1GiB
  vireo perf vfio-user:/run/vireo/vm0 --against vfio-user:/tmp/other --alternations 7
  vireo perf --self --depth 128")]
pub struct PerfArguments {
    /// The controller: vfio-user:DIRECTORY-OR-SOCKET or pcie:DDDD:BB:DD.F.
    #[arg(value_name = "TARGET", required_unless_present = "own_cost")]
    pub target: Option<String>,
    /// What to do where.
    #[arg(short, long, value_enum, default_value_t = Pattern::RandRead)]
    pub pattern: Pattern,
    /// Of randrw: how many in a hundred are reads [default: 50].
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub mix: Option<u8>,
    /// Bytes of each I/O.
    #[arg(short, long, value_name = "SIZE", default_value = "4KiB", value_parser = parse_size)]
    pub block_size: u64,
    /// I/Os outstanding at a time on each queue pair.
    #[arg(short, long, value_name = "N", default_value_t = 1)]
    pub depth: u16,
    /// Queue pairs, shared out over the cores.
    #[arg(short, long, value_name = "N", default_value_t = 1)]
    pub queues: u16,
    /// Cores to use, one pinned thread on each (1, 0,2 or 2-5). Without it, one thread runs where the system puts it.
    #[arg(short, long, value_name = "LIST", value_parser = parse_cores)]
    pub cores: Option<CoreList>,
    /// How long to measure.
    #[arg(short, long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub time: Duration,
    /// How long to run before measuring.
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = parse_duration)]
    pub warm_up: Duration,
    /// Random patterns: blocks by Zipf's law with this exponent instead of evenly.
    #[arg(long, value_name = "THETA")]
    pub zipf: Option<f64>,
    /// The namespace [default: the first that is active].
    #[arg(short, long, value_name = "NSID")]
    pub namespace: Option<u32>,
    /// Where the range that is used starts.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_size)]
    pub offset: u64,
    /// Length of the range that is used [default: to the end of the namespace].
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub size: Option<u64>,
    /// Check what is read: each block carries its address, a generation and a checksum. Finds lost, torn and misplaced
    /// writes. Everything written is read again at the end. With read and randread: check what an earlier run wrote.
    #[arg(long, value_enum)]
    pub verify: Option<Verify>,
    /// How completions are noticed.
    #[arg(long, value_enum, default_value_t = Completions::Polled)]
    pub completions: Completions,
    /// At most this many I/Os a second in all.
    #[arg(long, value_name = "IOPS", value_parser = parse_rate)]
    pub rate: Option<f64>,
    /// Where random numbers start: the same seed, the same blocks.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// After this long without completion an I/O is aborted, half as long later the controller reset; what takes three
    /// quarters of it hangs.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_duration)]
    pub io_timeout: Duration,
    /// Give up a target that cannot be reached after this long.
    #[arg(long, value_name = "TIME", default_value = DEFAULT_TIMEOUT, value_parser = parse_duration)]
    pub connect_timeout: Duration,
    /// How to show the results.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// Draw the distribution of latencies.
    #[arg(long, value_name = "FILE.svg")]
    pub histogram: Option<PathBuf>,
    /// Draw I/Os a second and latency over time.
    #[arg(long, value_name = "FILE.svg")]
    pub timeline: Option<PathBuf>,
    /// A second controller: both are run in turn, A B A B, and compared.
    #[arg(long, value_name = "TARGET", conflicts_with = "own_cost", requires = "target")]
    pub against: Option<String>,
    /// How often each of the two is run [default: 5].
    #[arg(long, value_name = "N", requires = "against")]
    pub alternations: Option<u32>,
    /// Show what vireo perf and its driver cost by themselves: the same load on a target within this process that
    /// completes everything at once. Alone, or beside a TARGET.
    #[arg(long = "self")]
    pub own_cost: bool,
}

/// What to do where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Pattern {
    /// Reads, one block after the other.
    Read,
    /// Writes, one block after the other.
    Write,
    /// Reads anywhere.
    #[value(name = "randread")]
    RandRead,
    /// Writes anywhere.
    #[value(name = "randwrite")]
    RandWrite,
    /// Reads and writes anywhere, see --mix.
    #[value(name = "randrw")]
    RandRw,
}

/// How data is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Verify {
    /// Every byte is compared with what it has to be.
    Pattern,
    /// A CRC32C over each block.
    Crc32c,
}

/// How completions are noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Completions {
    /// By looking all the time.
    Polled,
    /// By interrupts; the thread sleeps in between.
    Interrupt,
}

/// How results are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For a person.
    Table,
    /// For a program.
    Json,
}

/// A load whose parts fit together.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// What to do where.
    pub pattern: Pattern,
    /// Reads in a hundred.
    pub read_percent: u8,
    /// Bytes of each I/O.
    pub block_size: u64,
    /// I/Os outstanding on each queue pair.
    pub depth: u16,
    /// Queue pairs.
    pub queues: u16,
    /// Cores of the threads; none: one thread that is not pinned.
    pub cores: Option<Vec<usize>>,
    /// How long to measure.
    pub time: Duration,
    /// How long to run before.
    pub warm_up: Duration,
    /// Exponent of Zipf's law.
    pub zipf: Option<f64>,
    /// The namespace, or the first.
    pub namespace: Option<u32>,
    /// Start of the range in bytes.
    pub offset: u64,
    /// Length of the range in bytes.
    pub size: Option<u64>,
    /// How data is checked.
    pub verify: Option<Verify>,
    /// How completions are noticed.
    pub completions: Completions,
    /// Most I/Os a second.
    pub rate: Option<f64>,
    /// Seed of the random numbers.
    pub seed: u64,
    /// When an I/O is taken for lost.
    pub io_timeout: Duration,
    /// When a target is taken for one that cannot be reached.
    pub connect_timeout: Duration,
}

impl Pattern {
    /// Whether it writes.
    #[must_use]
    pub fn writes(self) -> bool {
        matches!(self, Self::Write | Self::RandWrite | Self::RandRw)
    }

    /// Whether blocks come in no order.
    #[must_use]
    pub fn is_random(self) -> bool {
        matches!(self, Self::RandRead | Self::RandWrite | Self::RandRw)
    }

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::RandRead => "randread",
            Self::RandWrite => "randwrite",
            Self::RandRw => "randrw",
        }
    }
}

impl PerfArguments {
    /// Checks what clap cannot.
    ///
    /// # Errors
    /// One line that names the option, what is wrong and what would be right.
    pub fn load(&self) -> Result<Load, String> {
        self.check_shape()?;
        self.check_combinations()?;
        let cores = match &self.cores {
            Some(CoreList(cores)) => Some(self.check_cores(cores)?),
            None => None,
        };
        let read_percent = match self.pattern {
            Pattern::Read | Pattern::RandRead => 100,
            Pattern::Write | Pattern::RandWrite => 0,
            Pattern::RandRw => self.mix.unwrap_or(50),
        };
        Ok(Load {
            pattern: self.pattern,
            read_percent,
            block_size: self.block_size,
            depth: self.depth,
            queues: self.queues,
            cores,
            time: self.time,
            warm_up: self.warm_up,
            zipf: self.zipf,
            namespace: self.namespace,
            offset: self.offset,
            size: self.size,
            verify: self.verify,
            completions: self.completions,
            rate: self.rate,
            seed: self.seed,
            io_timeout: self.io_timeout,
            connect_timeout: self.connect_timeout,
        })
    }

    fn check_shape(&self) -> Result<(), String> {
        let block = self.block_size;
        if block == 0 || !block.is_multiple_of(BLOCK_SIZE_UNIT) || block > BLOCK_SIZE_MAX {
            return Err(format!(
                "--block-size {block}: has to be a multiple of 512 and at most {}",
                show_size(BLOCK_SIZE_MAX as f64)
            ));
        }
        if self.depth == 0 || self.depth > DEPTH_MAX {
            return Err(format!("--depth {}: has to be 1 to {DEPTH_MAX}", self.depth));
        }
        if self.queues == 0 || self.queues > QUEUES_MAX {
            return Err(format!("--queues {}: has to be 1 to {QUEUES_MAX}", self.queues));
        }
        // At most 2^26 times 2^14 times 2^10.
        let buffers = block * u64::from(self.depth) * u64::from(self.queues);
        if buffers > BUFFERS_MAX {
            return Err(format!(
                "--block-size, --depth and --queues together take {} of buffers: at most {}",
                show_size(buffers as f64),
                show_size(BUFFERS_MAX as f64)
            ));
        }
        if self.time < Duration::from_millis(10) {
            return Err("--time: has to be at least 10ms".to_owned());
        }
        if self.io_timeout < Duration::from_millis(100) {
            return Err("--io-timeout: has to be at least 100ms".to_owned());
        }
        if self.connect_timeout < Duration::from_millis(100) {
            return Err("--connect-timeout: has to be at least 100ms".to_owned());
        }
        if !self.offset.is_multiple_of(BLOCK_SIZE_UNIT) {
            return Err(format!("--offset {}: has to be a multiple of 512", self.offset));
        }
        if let Some(size) = self.size.filter(|&size| size < block) {
            return Err(format!("--size {size}: holds no I/O of --block-size {block}"));
        }
        if self.namespace.is_some_and(|nsid| nsid == 0 || nsid == u32::MAX) {
            return Err("--namespace: namespaces count from 1".to_owned());
        }
        Ok(())
    }

    fn check_combinations(&self) -> Result<(), String> {
        if self.mix.is_some() && self.pattern != Pattern::RandRw {
            return Err("--mix: only --pattern randrw mixes reads and writes".to_owned());
        }
        if let Some(theta) = self.zipf {
            if !self.pattern.is_random() {
                return Err("--zipf: only patterns that begin with rand choose blocks".to_owned());
            }
            if !(theta > 0.0 && theta <= THETA_MAX) {
                return Err(format!("--zipf {theta}: has to be above 0 and at most {THETA_MAX}"));
            }
        }
        if self.verify.is_some() && self.own_cost {
            return Err("--verify: the target of --self keeps no data".to_owned());
        }
        if self.alternations.is_some_and(|n| n == 0 || n > ALTERNATIONS_MAX) {
            return Err(format!("--alternations: has to be 1 to {ALTERNATIONS_MAX}"));
        }
        Ok(())
    }

    fn check_cores(&self, cores: &[usize]) -> Result<Vec<usize>, String> {
        if cores.len() > usize::from(self.queues) {
            return Err(format!(
                "--cores: {} cores for {} queue pairs; say --queues {}, at least one for each core",
                cores.len(),
                self.queues,
                cores.len()
            ));
        }
        let allowed =
            sched_getaffinity(Pid::from_raw(0)).map_err(|error| format!("--cores: {error}"))?;
        let missing = cores.iter().find(|&&core| !allowed.is_set(core).unwrap_or(false));
        match missing {
            Some(core) => {
                let there: Vec<_> = (0..CpuSet::count())
                    .filter(|&core| allowed.is_set(core).unwrap_or(false))
                    .map(|core| core.to_string())
                    .collect();
                Err(format!(
                    "--cores {core}: not there for this process; there are {}",
                    there.join(", ")
                ))
            }
            None => Ok(cores.to_vec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        perf: PerfArguments,
    }

    fn parse(line: &str) -> Result<PerfArguments, clap::Error> {
        Line::try_parse_from(std::iter::once("perf").chain(line.split_whitespace())).map(|l| l.perf)
    }

    fn load(line: &str) -> Load {
        parse(line).unwrap().load().unwrap()
    }

    #[test]
    fn a_target_alone_is_a_load() {
        let load = load("vfio-user:/run/vireo/vm0");
        assert_eq!((load.block_size, load.depth, load.queues), (4096, 1, 1));
        assert_eq!((load.pattern, load.read_percent), (Pattern::RandRead, 100));
        assert_eq!(load.time, Duration::from_secs(5));
        assert!(load.cores.is_none() && load.verify.is_none() && load.rate.is_none());
    }

    #[test]
    fn every_option_arrives() {
        let load = load(
            "pcie:0000:01:00.0 --pattern randrw --mix 70 --block-size 16KiB --depth 32 --queues 2 --cores 0 \
             --time 30s --warm-up 1s --zipf 1.1 --namespace 2 --offset 1MiB --size 1GiB --verify crc32c \
             --completions interrupt --rate 50k --seed 9 --io-timeout 5s --connect-timeout 20s",
        );
        assert_eq!(
            load,
            Load {
                pattern: Pattern::RandRw,
                read_percent: 70,
                block_size: 16 << 10,
                depth: 32,
                queues: 2,
                cores: Some(vec![0]),
                time: Duration::from_secs(30),
                warm_up: Duration::from_secs(1),
                zipf: Some(1.1),
                namespace: Some(2),
                offset: 1 << 20,
                size: Some(1 << 30),
                verify: Some(Verify::Crc32c),
                completions: Completions::Interrupt,
                rate: Some(50_000.0),
                seed: 9,
                io_timeout: Duration::from_secs(5),
                connect_timeout: Duration::from_secs(20),
            }
        );
    }

    #[test]
    fn own_cost_needs_no_target_and_a_comparison_needs_two() {
        assert!(parse("--self").unwrap().load().is_ok());
        assert!(parse("vfio-user:/a --self").unwrap().load().is_ok());
        assert!(
            parse("vfio-user:/a --against vfio-user:/b --alternations 3").unwrap().load().is_ok()
        );
        assert!(parse("").is_err());
        assert!(parse("--against vfio-user:/b").is_err());
        assert!(parse("vfio-user:/a --self --against vfio-user:/b").is_err());
        assert!(parse("vfio-user:/a --alternations 3").is_err());
    }

    #[test]
    fn what_clap_refuses_has_exit_status_2() {
        for line in [
            "t --pattern backwards",
            "t --mix 101",
            "t --depth x",
            "t --depth 70000",
            "t --block-size 4XB",
            "t --cores 1,1",
            "t --time never",
            "t --rate 0",
            "t --verify md5",
            "t --nonsense",
            "t u",
        ] {
            let error = parse(line).map(|_| ()).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn what_does_not_fit_together_names_the_option_and_the_remedy() {
        for (line, option) in [
            ("t --block-size 1000", "--block-size"),
            ("t --block-size 0", "--block-size"),
            ("t --block-size 1GiB", "--block-size"),
            ("t --block-size 64MiB --depth 16384", "--block-size"),
            ("t --depth 0", "--depth"),
            ("t --queues 0", "--queues"),
            ("t --cores 0-1", "--cores"),
            ("t --cores 4000", "--cores"),
            ("t --mix 50", "--mix"),
            ("t --zipf 1 --pattern read", "--zipf"),
            ("t --zipf 0", "--zipf"),
            ("t --zipf nan", "--zipf"),
            ("t --zipf 11", "--zipf"),
            ("t --self --verify pattern", "--verify"),
            ("t --time 1ms", "--time"),
            ("t --io-timeout 1ms", "--io-timeout"),
            ("t --connect-timeout 1ms", "--connect-timeout"),
            ("t --offset 100", "--offset"),
            ("t --size 1KiB", "--size"),
            ("t --namespace 0", "--namespace"),
            ("t --against u --alternations 0", "--alternations"),
        ] {
            let error = parse(line).unwrap().load().unwrap_err();
            assert!(error.starts_with(option), "{line}: {error}");
            assert!(!error.contains('\n'), "{line}: {error}");
        }
    }
}
