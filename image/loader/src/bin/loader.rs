//! The loader, `\EFI\BOOT\BOOTX64.EFI` of a disk with two boot slots. It reads no key, no variable of the firmware and
//! no load options of its own, and has no menu.

#![no_main]
#![no_std]

use core::fmt::{self, Write};
use core::mem::MaybeUninit;
use core::panic::PanicInfo;
use core::time::Duration;

use alknet_boot_state::{BootSlot, BootSlots};
use alknet_loader::{
    BLOCK_BYTES_MAX, LoaderMachine, PREFIX, RESTART_AFTER, RESTART_WATCHDOG, RecordDisk,
    SLOT_WATCHDOG, SlotStartError, run,
};
use uefi::boot::{
    self, LoadImageSource, OpenProtocolAttributes, OpenProtocolParams, ScopedProtocol,
};
use uefi::proto::BootPolicy;
use uefi::proto::ProtocolPointer;
use uefi::proto::device_path::build::{DevicePathBuilder, media};
use uefi::proto::device_path::{DevicePath, DeviceSubType, DeviceType};
use uefi::proto::loaded_image::LoadedImage;
use uefi::proto::media::block::BlockIO;
use uefi::proto::media::file::{File, FileAttribute, FileMode};
use uefi::proto::media::fs::SimpleFileSystem;
use uefi::runtime::ResetType;
use uefi::{CStr16, Handle, Status, cstr16, entry, runtime, system};

/// Bytes of a device path that the loader can have. Paths of disks behind several bridges take about 100.
const PATH_BYTES_MAX: usize = 1024;

/// The loader's own number for the firmware's watchdog. Numbers below 0x10000 are the firmware's.
const WATCHDOG_CODE: u64 = 0x1_0000;

/// The first bytes of every program for UEFI. An updater writes them last, so a slot that it is writing has none.
const PROGRAM_MAGIC: [u8; 2] = *b"MZ";

#[entry]
fn main() -> Status {
    run(&mut Firmware::find());
    restart()
}

/// Waits, and restarts the machine: a disk may answer at the next power-on, and a remote machine waits at no menu.
fn restart() -> ! {
    watchdog(RESTART_WATCHDOG);
    boot::stall(RESTART_AFTER);
    runtime::reset(ResetType::COLD, Status::SUCCESS, None)
}

#[panic_handler]
fn panicked(info: &PanicInfo<'_>) -> ! {
    print(format_args!("{info}"));
    restart()
}

fn print(line: fmt::Arguments<'_>) {
    system::with_stdout(|out| {
        // A console that does not take the text must not stop the machine.
        let _ = writeln!(out, "{PREFIX}{line}");
    });
}

fn watchdog(limit: Duration) {
    let seconds = usize::try_from(limit.as_secs()).unwrap_or(usize::MAX);
    // Without a watchdog the machine starts all the same.
    let _ = boot::set_watchdog_timer(seconds, WATCHDOG_CODE, None);
}

fn file_of(slot: BootSlot) -> &'static CStr16 {
    match slot {
        BootSlot::A => cstr16!("\\EFI\\ALKNET\\A.EFI"),
        BootSlot::B => cstr16!("\\EFI\\ALKNET\\B.EFI"),
    }
}

/// Opens a protocol without closing it to the firmware's own drivers: an exclusive open would stop the drivers of the
/// disk's partitions, and with them the file system.
fn open<P: ProtocolPointer + ?Sized>(handle: Handle) -> uefi::Result<ScopedProtocol<P>> {
    let params = OpenProtocolParams {
        handle,
        agent: boot::image_handle(),
        controller: None,
    };
    // SAFETY: the handles are of the loader's own image, of the partition that it came from, and of that partition's
    // disk. While the loader runs, no other program does, and the loader disconnects no driver. It drops each protocol
    // before it starts a program that could.
    unsafe { boot::open_protocol(params, OpenProtocolAttributes::GetProtocol) }
}

/// The firmware, and where it loaded the loader from.
struct Firmware {
    partition: Option<Handle>,
}

impl Firmware {
    fn find() -> Self {
        let image = open::<LoadedImage>(boot::image_handle()).ok();
        let partition = image.and_then(|image| image.get()?.device());
        Self { partition }
    }

    fn has_program(&self, slot: BootSlot) -> Option<bool> {
        let mut volume = open::<SimpleFileSystem>(self.partition?).ok()?;
        let mut root = volume.get_mut()?.open_volume().ok()?;
        let file = root.open(file_of(slot), FileMode::Read, FileAttribute::empty());
        let mut file = file.ok()?.into_regular_file()?;
        let mut magic = [0; PROGRAM_MAGIC.len()];
        let read = file.read(&mut magic).ok()?;
        Some(read == magic.len() && magic == PROGRAM_MAGIC)
    }

    /// Loads by the path of the file, so that the firmware itself reads, verifies and measures the program.
    fn load(&self, slot: BootSlot) -> uefi::Result<Handle> {
        let partition = self.partition.ok_or(Status::NOT_FOUND)?;
        let path = open::<DevicePath>(partition)?;
        let path = path.get().ok_or(Status::NOT_FOUND)?;
        let mut storage = [MaybeUninit::uninit(); PATH_BYTES_MAX];
        let mut file = DevicePathBuilder::with_buf(&mut storage);
        for node in path.node_iter() {
            file = file.push(&node).map_err(|_| Status::BUFFER_TOO_SMALL)?;
        }
        let name = media::FilePath {
            path_name: file_of(slot),
        };
        let file = file.push(&name).map_err(|_| Status::BUFFER_TOO_SMALL)?;
        let file = file.finalize().map_err(|_| Status::BUFFER_TOO_SMALL)?;
        let source = LoadImageSource::FromDevicePath {
            device_path: file,
            boot_policy: BootPolicy::ExactMatch,
        };
        boot::load_image(boot::image_handle(), source)
    }

    /// The disk that has the partition. `None` if the loader came from something without partitions: then there is no
    /// record either, and its place belongs to something else.
    fn disk_handle(&self) -> Option<Handle> {
        let path = open::<DevicePath>(self.partition?).ok()?;
        let mut storage = [MaybeUninit::uninit(); PATH_BYTES_MAX];
        let mut disk = DevicePathBuilder::with_buf(&mut storage);
        let mut is_partition = false;
        for node in path.get()?.node_iter() {
            is_partition = node.full_type() == (DeviceType::MEDIA, DeviceSubType::MEDIA_HARD_DRIVE);
            if is_partition {
                break;
            }
            disk = disk.push(&node).ok()?;
        }
        let mut rest = disk.finalize().ok()?;
        let handle = boot::locate_device_path::<BlockIO>(&mut rest).ok()?;
        // Firmware finds the nearest handle on the path, which must be the whole of it.
        (is_partition && rest.node_iter().next().is_none()).then_some(handle)
    }
}

impl LoaderMachine for Firmware {
    type Disk<'a> = WholeDisk;
    type Status = Status;

    fn disk(&mut self) -> Result<WholeDisk, &'static str> {
        let handle = self.disk_handle();
        let handle = handle.ok_or("the loader was not started from a partition of a disk")?;
        let disk = open::<BlockIO>(handle).map_err(|_| "firmware does not open the disk")?;
        let media = disk.get().ok_or("firmware does not open the disk")?.media();
        if media.is_logical_partition() || !media.is_media_present() {
            return Err("firmware has no whole disk below the partition");
        }
        // Greater alignments than a page are not known.
        if usize::try_from(media.io_align()).is_ok_and(|align| align > BLOCK_BYTES_MAX) {
            return Err("firmware demands buffers that the loader does not have");
        }
        let (id, block_bytes) = (media.media_id(), media.block_size());
        Ok(WholeDisk {
            disk,
            id,
            block_bytes,
        })
    }

    fn present(&mut self) -> BootSlots {
        BootSlots::filter(|slot| self.has_program(slot).unwrap_or(false))
    }

    fn start(&mut self, slot: BootSlot) -> SlotStartError<Status> {
        watchdog(SLOT_WATCHDOG);
        let image = match self.load(slot) {
            Ok(image) => image,
            Err(error) => return reason(error.status()),
        };
        let status = match boot::start_image(image) {
            Ok(()) => Status::SUCCESS,
            Err(error) => error.status(),
        };
        // Firmware has unloaded a program that ended, and refuses this then.
        let _ = boot::unload_image(image);
        match reason(status) {
            SlotStartError::NotPermitted => SlotStartError::NotPermitted,
            _ => SlotStartError::Ended(status),
        }
    }

    fn say(&mut self, line: fmt::Arguments<'_>) {
        print(line);
    }
}

fn reason(status: Status) -> SlotStartError<Status> {
    match status {
        Status::ACCESS_DENIED | Status::SECURITY_VIOLATION => SlotStartError::NotPermitted,
        other => SlotStartError::NotLoaded(other),
    }
}

/// The disk below the partition that the loader came from.
struct WholeDisk {
    disk: ScopedProtocol<BlockIO>,
    id: u32,
    block_bytes: u32,
}

impl WholeDisk {
    fn io(&mut self) -> uefi::Result<&mut BlockIO> {
        self.disk.get_mut().ok_or_else(|| Status::NO_MEDIA.into())
    }
}

impl RecordDisk for WholeDisk {
    type Error = Status;

    fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    fn read(&mut self, first: u64, blocks: &mut [u8]) -> Result<(), Status> {
        let id = self.id;
        let read = self.io().and_then(|io| io.read_blocks(id, first, blocks));
        read.map_err(|error| error.status())
    }

    fn write(&mut self, first: u64, blocks: &[u8]) -> Result<(), Status> {
        let id = self.id;
        let written = self.io().and_then(|io| io.write_blocks(id, first, blocks));
        written.map_err(|error| error.status())
    }

    fn flush(&mut self) -> Result<(), Status> {
        let flushed = self.io().and_then(BlockIO::flush_blocks);
        flushed.map_err(|error| error.status())
    }
}
