//! Assembles bootable images: one kernel and one static binary in, every bootable form out.
//!
//! Everything is done as an ordinary user, without loop devices or mounts, and every output is
//! byte-identical when it is built again from the same inputs, wherever the folders lie.
//!
//! ```no_run
//! use alknet_image::{BuildProvenance, ImageForm, ImageInputs, build};
//!
//! let inputs = ImageInputs {
//!     kernel: "bzImage".into(),
//!     vmlinux: None,
//!     kernel_config: None,
//!     binary: "alknet".into(),
//!     stub: Some("linuxx64.efi.stub".into()),
//!     grub: None,
//!     loader: None,
//!     update_root: None,
//!     cmdline: "console=ttyS0 quiet panic=10 noreplace-smp no_timer_check".into(),
//!     version: "0.1.0".into(),
//!     git: "0123abc".into(),
//!     provenance: BuildProvenance::default(),
//! };
//! let manifest = build(&inputs, &[ImageForm::Uki], "out".as_ref(), &mut |_| {})?;
//! println!("{}", manifest.outputs[0].file);
//! # Ok::<(), alknet_image::ImageError>(())
//! ```

mod assemble;
mod command_line;
mod container_images;
mod cpio;
mod disk;
mod disk_end;
mod disk_parts;
mod disk_table;
mod elf;
mod erofs;
mod error;
mod esp;
mod examples;
mod facts;
mod form;
mod grub;
mod ids;
mod inputs;
mod install;
mod iso;
mod kernel;
mod linuxkit;
mod lz4;
mod manifest;
mod network_boot;
mod oci;
mod out;
mod program_parts;
mod provenance;
mod regular_file;
mod sbom;
mod start;
mod tar;
mod tool;
mod travel;
mod tree;
mod uki;
mod virtual_disk;
mod zstandard;

pub use assemble::{BuildProgress, SignEfiProgram, build, build_signed};
pub use disk::{
    BACKUP_LBAS, BIOS_FIRST_LBA, BIOS_LAST_LBA, DATA_FIRST_LBA, DATA_HEAD_END, DISK_BYTES,
    ESP_BYTES, ESP_FIRST_LBA, LBA_BYTES, UKI_BYTES_MAX,
};
pub use disk_end::{DISK_END_BYTES, end_difference, table_end};
pub use disk_parts::{
    DISK_PARTS_LEFT_OUT, LOADER_PATH, ManifestDisk, ManifestEspFile, ManifestRegion,
    NEW_DISK_PARTS, PROGRAM_MARK_BYTES, SLOT_PATHS, begins_as_program, boot_state_difference,
};
pub use disk_table::{
    data_partition_end, disk_bytes_by_head, has_image_identity, head_has_layout,
    identity_difference, table_difference,
};
pub use error::ImageError;
pub use esp::{EspFile, EspVolume};
pub use facts::InputFacts;
pub use form::{ImageForm, OutputRole};
pub use grub::{BOOT_CODE_BEGIN, GRUB_FORMATS, GRUB_MODULES, GRUB_PREFIX, GrubFormat};
pub use inputs::{CMDLINE, CMDLINE_BYTES_MAX, GrubFiles, ImageInputs};
pub use install::{MEDIUM_LABEL, MediumDisk};
pub use linuxkit::yml as linuxkit_yml;
pub use manifest::{
    MANIFEST_BYTES_MAX, MANIFEST_FILE, Manifest, ManifestBoot, ManifestInput, ManifestOutput,
    ManifestSource,
};
pub use program_parts::{ProgramParts, ProgramPartsError};
pub use provenance::{BUILD_TIME_VARIABLE, BuildProvenance, named_build_time};
pub use regular_file::{RegularFileError, open_regular, open_regular_or_disk, read_regular};
pub use start::StartMethod;
pub use travel::{
    FileToSign, MANIFEST_SIGNATURE_FILE, PackOptions, SIGNATURE_ENDING, pack, pack_outputs,
    sign_folder, sign_outputs,
};
pub use tree::UPDATE_ROOT_FILE;
pub use virtual_disk::{VirtualDiskFormat, write_virtual_disk};
