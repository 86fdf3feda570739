//! Boots an image in QEMU and talks to it: the one harness of `xtask up`, the tests and the
//! benchmarks.
//!
//! ```no_run
//! use std::time::Duration;
//! use alknet_qemu::{VirtioDisk, MachineKind, Nic, Vm};
//!
//! let mut vm = Vm::builder(MachineKind::Q35)
//!     .kernel("bzImage")
//!     .initrd("alknet.initrd")
//!     .append("console=ttyS0 quiet panic=10")
//!     .disk(VirtioDisk::file("data.raw").data())
//!     .nic(Nic::user())
//!     .start()?;
//! vm.wait_for("serving", Duration::from_secs(10))?;
//! println!("the node listens on {:?}", vm.address());
//! vm.power_button()?;
//! let exit = vm.wait_exit(Duration::from_secs(10))?;
//! assert_eq!(exit.reason(), Some("guest-shutdown"));
//! # Ok::<(), alknet_qemu::Error>(())
//! ```
//!
//! Everything blocks, and nothing needs an async runtime. A [`Vm`] may be moved to and used from any
//! thread. QEMU never outlives the process that started it, however that ends, and what it left in
//! the file system is removed by the next one.

mod accel;
mod ansi;
mod boot_entry;
mod builder;
mod console;
mod controller;
mod disk;
mod error;
mod file_counter;
mod lan;
mod machine;
mod nbd;
mod nic;
mod permits;
mod process;
mod qmp;
mod record;
mod scratch;
mod search;
mod secure_boot;
mod snapshot;
mod tools;
mod tpm;
mod tsc;
mod vm;

pub use accel::{ACCEL_VARIABLE, Accel, SCALED_MAX, TCG_TIMEOUT_FACTOR, expect_slowdown};
pub use boot_entry::{BootPartitionFile, set_boot_file, set_command_line};
pub use builder::VmBuilder;
pub use console::{ConsoleLine, ConsoleMark, VmConsole, WaitResult};
pub use controller::{DiskController, DiskFormat};
pub use disk::{DATA_SERIAL, VirtioDisk, blank, checksum, content, copy};
pub use error::{Error, Result};
pub use lan::{DhcpLease, Lan, LanEvent, LanSettings, ROUTER_V4, ROUTER_V6, RouterAdvertisement};
pub use machine::{MachineKind, TCG_CPU, WatchdogAction};
pub use nic::{NODE_PORT, Nic, NicModel};
pub use permits::{MACHINE_WAIT_MAX, machines_mib};
pub use process::{ChildProcess, CpuClock};
pub use qmp::{Qmp, QmpEvent};
pub use record::{CutSummary, DiskRecorder, DiskRecording, WrittenPart};
pub use scratch::ScratchDir;
pub use search::PatternSearch;
pub use secure_boot::PlatformOwner;
pub use tools::{FIRMWARE_VARIABLE, QEMU_VARIABLE, cache_dir, version};
pub use tpm::Interposer;
pub use vm::{LOGS_VARIABLE, PortForward, READY_WITHIN, Vm, VmExit};
