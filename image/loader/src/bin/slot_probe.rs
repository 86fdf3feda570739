//! A program for a boot slot, for tests of the loader: prints the path of its own file and the bytes of its load
//! options, and restarts the machine.

#![no_main]
#![no_std]

use core::fmt::Write;
use core::panic::PanicInfo;
use core::time::Duration;

use uefi::boot::{self, open_protocol_exclusive};
use uefi::proto::device_path::DevicePathNodeEnum;
use uefi::proto::loaded_image::LoadedImage;
use uefi::runtime::ResetType;
use uefi::{Status, entry, runtime, system};

/// How long the console has to print the line before the machine restarts.
const PRINTED_WITHIN: Duration = Duration::from_millis(100);

#[entry]
fn main() -> Status {
    // The image's own handle has this protocol, or there is no line and the test fails.
    if let Ok(image) = open_protocol_exclusive::<LoadedImage>(boot::image_handle()) {
        say(&image);
    }
    boot::stall(PRINTED_WITHIN);
    runtime::reset(ResetType::COLD, Status::SUCCESS, None)
}

fn say(image: &LoadedImage) {
    let options = image.load_options_as_bytes().unwrap_or_default().len();
    system::with_stdout(|out| {
        let _ = write!(out, "alknet-slot-probe: ");
        for node in image
            .file_path()
            .into_iter()
            .flat_map(|path| path.node_iter())
        {
            if let Ok(DevicePathNodeEnum::MediaFilePath(file)) = node.as_enum() {
                let units = file.path_name();
                let units = units.iter().filter_map(|unit| char::from_u32(unit.into()));
                for character in units.filter(|it| *it != '\0') {
                    let _ = out.write_char(character);
                }
            }
        }
        let _ = writeln!(out, ", {options} bytes of options");
    });
}

#[panic_handler]
fn panicked(_: &PanicInfo<'_>) -> ! {
    runtime::reset(ResetType::COLD, Status::ABORTED, None)
}
